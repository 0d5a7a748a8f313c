import os
import pickle
import resource
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from mmdiff.convert import archives, pickles
from mmdiff.core.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"


STORAGE = pickles.Storage(np.dtype(np.float32), 4, lambda: np.arange(4, dtype=np.float32))


def load(data: bytes):
  return pickles.Reader(memoryview(data), 0, lambda found: STORAGE).load()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [
  None, True, False, 0, -1, 255, 2**20, -2**40, 2**70, 1.5, "text", "ä\n", b"bytes", [1, [2]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4),
  {"a": {"b": [1, None]}, 3: "x"}, {1, 2}, OrderedDict(a=1, b=2), ["same"] * 3], ids=str)
def test_plain_values_are_read_as_python_reads_them(value, protocol):
  found = load(pickle.dumps(value, protocol))
  assert found == value and isinstance(found, (dict, type(value)))


def test_numpy_numbers_are_read():
  assert load(pickle.dumps({"a": np.float64(3.25), "b": np.int64(-7)})) == {"a": 3.25, "b": -7}


class Payload:
  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def payloads(canary: Path):
  touch = f"open({str(canary)!r}, 'w').close()"
  yield from (pickle.dumps(Payload(function, *args), protocol) for protocol in (0, 2, 4) for function, args in (
    (os.system, (f"touch {canary}",)), (eval, (touch,)), (exec, (touch,)), (open, (str(canary), "w")), (getattr, (os, "system")),
    (__import__, ("os",)), (os.mkdir, (str(canary),))) if not isinstance(args[0], type(os)))
  yield b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
  yield b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n."                                   # INST
  yield b"(cos\nsystem\nS'touch " + str(canary).encode() + b"'\no."                                  # OBJ
  yield b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."
  yield b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."
  yield b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."                                    # STACK_GLOBAL
  yield b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R."
  yield b"\x80\x02c__torch__.x\nsystem\nX\x01\x00\x00\x001\x85R."
  yield b"\x80\x02c__torch__.x\nsystem\nX\x01\x00\x00\x001\x85\x81."
  yield b"\x80\x02cos\nsystem\n."
  yield b"\x82\x01."                                                                                 # EXT1


def test_no_payload_runs(tmp_path):
  canary, count = tmp_path / "canary", 0
  for data in payloads(canary):
    with pytest.raises(DataError):
      load(data)
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr("archive/data.pkl", data)
    with pytest.raises(DataError, match="x.pt: "):
      archives.read_pytorch(file)
    file.write_bytes(data)
    with pytest.raises(DataError, match="x.pt: "):
      archives.read_pytorch(file)
    count += 1
  assert count > 20 and not canary.exists()
  with pytest.raises(pickles.Refused, match=r"asks for (posix|nt).system.*Nothing in it was run.*safetensors.torch.save_file"):
    load(pickle.dumps(Payload(os.system, "true")))


def bombs():
  yield b"(" + b"(lp0\n" + b"g0\n" * 10 + b"t."
  yield b"\x80\x02]q\x00" + b"h\x00\x86" * 60 + b"."                                  # a pair of pairs
  yield b"\x80\x02N" + b"2\x86" * 200_000 + b"ctorch\nSize\nq\x000}h\x00."
  yield b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns."                                    # deep tuples as a key
  yield b"\x80\x02\x8f(N" + b"2\x86" * 1000 + b"\x90."
  yield b"\x8b\xff\xff\xff\x7f" + b"1" * 100 + b"."
  yield b"I" + b"9" * 5000 + b"\n."
  yield b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc."
  yield b"\x80\x02cnumpy\ndtype\nX\x0a\x00\x00\x00V100000000\x85R."
  yield b"\x80\x02ccollections\nOrderedDict\n]N" + b"2\x86" * 40 + b"a\x85R."
  yield b"\x80\x02N" + b"2\x86" * 80 + b"Q."                                         # as a persistent id
  yield b"\x80\x02(" + b"N2\x86" + b"2\x86" * 80 + b"tR."


def test_bombs_end_at_once():
  for data in bombs():
    started = time.process_time()
    try:
      load(data)
    except DataError:
      pass
    assert time.process_time() - started < 2, data[:50]


def test_shared_containers_do_not_flatten_for_ever():
  deep: dict = {}
  for _ in range(40):
    deep = {"a": deep, "b": deep}
  with pytest.raises(DataError, match="nested without end"):
    archives.flatten(deep)


def test_five_hundred_mutated_pickles_are_read_or_refused(tmp_path):
  with zipfile.ZipFile(FIXTURES / "zip.pt") as archive:
    members = {info.filename: archive.read(info) for info in archive.infolist()}
  name = next(name for name in members if name.endswith("data.pkl"))
  rng, canary = np.random.default_rng(0), tmp_path / "canary"
  calls = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"R", b"b", b"\x81", b"(", b".", b"0", b"2", b"h\x05",
           f"X\x20\x00\x00\x00touch {canary}".encode()]
  before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
  for i in range(500):
    data = bytearray(members[name])
    for _ in range(rng.integers(1, 4)):
      at = int(rng.integers(len(data)))
      if rng.integers(2):
        data[at] = rng.integers(256)
      else:
        data[at:at + int(rng.integers(0, 4))] = calls[rng.integers(len(calls))]
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
      for member, content in members.items():
        archive.writestr(member, bytes(data) if member == name else content)
    if i % 5 == 0:                                                                 # the zip itself, too
      whole = bytearray(file.read_bytes())
      whole[int(rng.integers(len(whole)))] = rng.integers(256)
      file.write_bytes(whole)
    started = time.process_time()
    try:
      found = archives.flatten(archives.read_pytorch(file))
      read += sum(tensor.read().size >= 0 for tensor in found.values())
    except DataError:
      pass
    assert time.process_time() - started < 1
  assert not canary.exists() and read > 100
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000       # kB


@pytest.mark.parametrize("offset, shape, strides", [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1)), (-1, (2,), (1,)),
                                                    (0, (2,), (-1,)), (0, (2, 2), (1,)), (0, (100,), (0,)), (0, (2**61,), (2**61,))])
def test_tensors_stay_inside_their_storage(offset, shape, strides):
  with pytest.raises(DataError):
    pickles.tensor(STORAGE, offset, shape, strides)
  np.testing.assert_array_equal(pickles.tensor(STORAGE, 1, (2,), (2,)).read(), [1, 3])
