import json
import resource
import struct
import time

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mmdiff.convert import safetensors_file as st
from mmdiff.convert import tensors
from mmdiff.core.errors import CannotWrite, DataError


def arrays():
  rng = np.random.default_rng(0)
  return {"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=5).astype(np.float16), "i": np.arange(3),
          "flag": np.asarray([True, False]), "scalar": np.asarray(2.5, np.float32), "empty": np.zeros((0, 3), np.float32),
          "bf": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16), "byte": np.arange(7, dtype=np.uint8)}


def lazy(named):
  return {name: tensors.of(value) for name, value in named.items()}


def test_what_is_written_is_read_back_here_and_by_the_library(tmp_path):
  st.write(tmp_path / "x.safetensors", lazy(arrays()), {"format": "pt"})
  found, metadata = st.read(tmp_path / "x.safetensors")
  library = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  assert metadata == {"format": "pt"} and set(found) == set(library) == set(arrays())
  for name, value in arrays().items():
    assert found[name].dtype == value.dtype and found[name].shape == value.shape
    np.testing.assert_array_equal(found[name].read(), value)
    np.testing.assert_array_equal(np.asarray(library[name], value.dtype), value)


def test_files_of_the_library_are_read(tmp_path):
  safetensors.numpy.save_file(arrays(), tmp_path / "x.safetensors", metadata={"made": "there"})
  found, metadata = st.read(tmp_path / "x.safetensors")
  assert metadata == {"made": "there"}
  for name, value in arrays().items():
    np.testing.assert_array_equal(found[name].read(), value)


def test_large_models_are_split_and_joined_by_an_index(tmp_path):
  named = {f"layer.{i}": np.full((4, 4), i, np.float32) for i in range(5)}
  files = st.write_sharded(tmp_path, "model", lazy(named), shard_bytes=128)
  assert files == [*(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), "model.safetensors.index.json"]
  index = json.loads((tmp_path / files[-1]).read_text())
  assert index["metadata"]["total_size"] == 5 * 64 and set(index["weight_map"]) == set(named)
  found, _ = st.read_sharded(tmp_path / files[-1])
  for name, value in named.items():
    np.testing.assert_array_equal(found[name].read(), value)
  assert st.write_sharded(tmp_path / "one", "model", lazy(named)) == ["model.safetensors"]
  (tmp_path / files[0]).unlink()
  with pytest.raises(DataError, match="model-00001-of-00003.safetensors is missing"):
    st.read_sharded(tmp_path / files[-1])


@pytest.mark.parametrize("weights, message", [
  ({"a": "../x.safetensors"}, "names files of its own folder only"),
  ({"a": "x.safetensors"}, "lists 1 tensors that its files do not have: a"),
  (None, "not an index")])
def test_an_index_points_into_its_own_folder(tmp_path, weights, message):
  st.write(tmp_path / "x.safetensors", lazy({"b": np.zeros(2)}))
  (tmp_path / "i.index.json").write_text(json.dumps({"weight_map": weights} if weights else []))
  with pytest.raises(DataError, match=message):
    st.read_sharded(tmp_path / "i.index.json")


def entry(**changes):
  return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize("header, message", [
  ({"a": entry(dtype="F31")}, "unknown dtype F31"), ({"a": entry(shape=[3])}, "are 12 bytes, found 8"),
  ({"a": entry(shape=[-2])}, "whole numbers"), ({"a": entry(shape=[True])}, "whole numbers"),
  ({"a": entry(shape=[2**63])}, "whole numbers"),
  ({"a": entry(), "b": entry()}, "overlap"), ({"a": entry(data_offsets=[8, 16])}, "starts at byte 8"),
  ({"a": entry(data_offsets=[8, 0])}, "start, stop"),
  ({"a": entry(shape=[1], data_offsets=[0, 4])}, "cut off or has extra"), ({"a": 3}, "expected dtype"), ({}, "the file holds 8"),
  ([1], "is a list"), ({"__metadata__": {"a": 1}}, "texts"), ({"a": {**entry(), "more": 1}}, "expected dtype")])
def test_a_wrong_header_is_named(header, message):
  with pytest.raises(ValueError, match=message):
    st.parse(json.dumps(header).encode(), 8)


@pytest.mark.parametrize("text, message", [
  (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "given twice"),
  (b"[" * 100_000, "."), (b'{"a":NaN}', "NaN"), (b"\xff", "utf-8"), (b"", ".")])
def test_text_that_is_no_header(text, message):
  with pytest.raises(ValueError, match=message):
    st.parse(text, 8)


@pytest.mark.parametrize("content, message", [
  (b"", "0 bytes has no header"), (b"\xff" * 16, "claims 18446744073709551615"), (struct.pack("<Q", 100) + b"{}", "claims 100")])
def test_a_file_that_is_none_is_named(tmp_path, content, message):
  (tmp_path / "x.safetensors").write_bytes(content)
  with pytest.raises(DataError, match=message):
    st.read(tmp_path / "x.safetensors")


def mutated(rng, text: bytes) -> bytes:
  data = bytearray(text)
  for _ in range(rng.integers(1, 4)):
    at, what = int(rng.integers(len(data))), rng.integers(5)
    if what == 0:
      data[at] = rng.integers(256)
    elif what == 1:
      del data[at:at + int(rng.integers(1, 9))]
    elif what == 2:
      data[at:at] = bytes(rng.integers(0, 256, int(rng.integers(1, 9)), dtype=np.uint8))
    elif what == 3:
      data[at:at] = rng.choice([b"9" * 30, b"[", b"{", b"-1", b"1e999", b"null", b'"', b"\\u0000", b"0,", b"true"])
    else:
      data[at:at + 3] = data[:3]
    if not data:
      data += b" "
  return bytes(data)


def test_ten_thousand_mutated_headers_are_read_right_or_refused(tmp_path):
  named = arrays()
  st.write(tmp_path / "x.safetensors", lazy(named))
  whole = (tmp_path / "x.safetensors").read_bytes()
  length, = struct.unpack("<Q", whole[:8])
  header, data = whole[8:8 + length], whole[8 + length:]
  rng, accepted, slowest = np.random.default_rng(0), 0, 0.0
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for i in range(10_000):
    text = mutated(rng, header)
    started = time.process_time()
    try:
      if i % 20:
        entries, _ = st.parse(text, len(data))
      else:                                                   # through a file, at times with a wrong length
        (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", max(0, len(text) + int(rng.integers(-2, 3)))) + text + data)
        found, _ = st.read(tmp_path / "y.safetensors")
        entries = {name: (tensor.dtype, tensor.shape, 0) for name, tensor in found.items()}
        assert all(tensor.read().shape == tensor.shape for tensor in found.values())
    except (ValueError, DataError):
      continue
    finally:
      slowest = max(slowest, time.process_time() - started)
    accepted += 1
    assert sum(tensors.size(shape) * dtype.itemsize for dtype, shape, _ in entries.values()) == len(data)
  assert 0 < accepted < 5000
  assert slowest < 1.0
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000          # kB


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(CannotWrite, match="cannot write"):
    st.write(tmp_path / "file" / "x.safetensors", lazy({"a": np.zeros(2)}))
  with pytest.raises(DataError, match="a: safetensors has no complex64"):
    st.write(tmp_path / "x.safetensors", lazy({"a": np.zeros(2, np.complex64)}))
  assert [file.name for file in tmp_path.iterdir()] == ["file"]
