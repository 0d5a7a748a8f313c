import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from mmdiff.convert import archives, tensors
from mmdiff.core.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
VALUES = dict(np.load(FIXTURES / "values.npz"))


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt"])
def test_both_forms_of_pytorch_files(file):
  found = archives.flatten(archives.read_pytorch(FIXTURES / file))
  assert set(found) == set(VALUES)
  for name, value in VALUES.items():
    assert found[name].shape == value.shape
    np.testing.assert_array_equal(found[name].read().astype(np.float32), value, err_msg=name)
  assert found["bf16"].dtype == ml_dtypes.bfloat16 and found["half"].dtype == np.float16 and found["integer"].dtype == np.int64


def test_the_weights_of_a_training_checkpoint():
  value = archives.read_pytorch(FIXTURES / "training.ckpt")
  assert value["epoch"] == 3 and value["best"] == 3.25 and value["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.98)
  assert set(archives.flatten(archives.unwrap(value))) == {f"module.{name}" for name in VALUES}
  assert archives.unwrap(dict(model=dict(a=1), ema=dict(b=2)), prefer="ema") == dict(b=2)


def test_torchscript_gives_the_names_of_its_modules():
  found = archives.flatten(archives.read_pytorch(FIXTURES / "script.pt"))
  expected = np.load(FIXTURES / "script.npz")
  assert set(found) == set(expected.files) and "blocks.0.weight" in found
  for name in expected.files:
    np.testing.assert_array_equal(found[name].read(), expected[name])


def test_new_dtypes_and_pickled_modules():
  found = archives.read_pytorch(FIXTURES / "float8.bin")["f8"]
  assert found.dtype == ml_dtypes.float8_e4m3fn and (found.read().astype(np.float32) == 1).all()
  with pytest.raises(DataError, match=r"module.pt: it asks for torch.nn.modules.linear.Linear, which is neither"):
    archives.read_pytorch(FIXTURES / "module.pt")


def test_damage_is_named(tmp_path):
  for file in ("zip.pt", "legacy.pt"):
    whole = (FIXTURES / file).read_bytes()
    for keep in (10, len(whole) // 2, len(whole) - 5):
      (tmp_path / "x.pt").write_bytes(whole[:keep])
      with pytest.raises(DataError, match="x.pt: "):
        archives.flatten(archives.read_pytorch(tmp_path / "x.pt"))
  with zipfile.ZipFile(FIXTURES / "zip.pt") as archive, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed:
    for member in archive.infolist():
      packed.writestr(member.filename, archive.read(member))
  with pytest.raises(DataError, match="is compressed or encrypted"):
    archives.read_pytorch(tmp_path / "y.pt")


def test_npz_is_read_without_pickles(tmp_path):
  values = {"params/a": np.arange(6.0).reshape(2, 3), "b": np.asarray(3, np.int8), "bf": np.ones(2, ml_dtypes.bfloat16)}
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "x.npz", **values)
    found = archives.read_npz(tmp_path / "x.npz")
    for name, value in values.items():
      assert found[name].shape == value.shape and found[name].dtype == value.dtype
      np.testing.assert_array_equal(found[name].read(), value)
  np.savez(tmp_path / "o.npz", a=np.asarray([object()], dtype=object), allow_pickle=True)
  with pytest.raises(DataError, match="a holds Python objects"):
    archives.read_npz(tmp_path / "o.npz")
  whole = bytearray((tmp_path / "x.npz").read_bytes())
  rng = np.random.default_rng(0)
  for _ in range(200):
    data = bytearray(whole)
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    (tmp_path / "y.npz").write_bytes(data)
    try:
      assert all(tensor.nbytes < 1000 for tensor in archives.read_npz(tmp_path / "y.npz").values())
    except DataError:
      pass


def test_a_header_that_promises_more_than_its_file_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
  with pytest.raises(DataError, match="do not fit its"):
    archives.read_npz(tmp_path / "x.npz")


def test_msgpack_of_flax(tmp_path):
  value = {"text": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "scale": np.float32(2)}
  (tmp_path / "x.msgpack").write_bytes(serialization.msgpack_serialize(value))
  found = archives.read_msgpack(tmp_path / "x.msgpack")
  np.testing.assert_array_equal(found["text/kernel"].read(), value["text"]["kernel"])
  assert found["scale"].shape == ()
  (tmp_path / "x.msgpack").write_bytes(b"\xc1\xff\xff")
  with pytest.raises(DataError, match="not a msgpack"):
    archives.read_msgpack(tmp_path / "x.msgpack")


def test_flatten_keeps_tensors_alone():
  nested = {"a": {"b": tensors.of(np.zeros(2)), "n": 3}, "list": [tensors.of(np.ones(1)), None], ("odd",): tensors.of(np.ones(1))}
  assert set(archives.flatten(nested)) == {"a.b", "list.0"}
