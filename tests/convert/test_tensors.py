import numpy as np
import pytest

from mmdiff.convert import tensors
from mmdiff.core.errors import DataError


def test_a_view_reads_what_the_bytes_say_and_no_further():
  values = np.arange(6, dtype=np.float32)
  buffer = np.frombuffer(b"\0" + values.tobytes(), np.uint8)
  tensor = tensors.view(buffer, 1, (2, 3), np.dtype(np.float32))
  np.testing.assert_array_equal(tensor.read(), values.reshape(2, 3))
  assert tensor.nbytes == 24
  with pytest.raises(DataError, match="needs bytes 4 to 28, but there are 25"):
    tensors.view(buffer, 4, (2, 3), np.dtype(np.float32))
  assert tensors.view(buffer, 25, (0, 3), np.dtype(np.float32)).read().shape == (0, 3)


def test_sizes_do_not_overflow():
  assert tensors.size((2**62, 2**62)) == 2**124 and tensors.size(()) == 1


def test_files_are_mapped_not_read(tmp_path):
  (tmp_path / "empty").touch()
  assert tensors.mapped(tmp_path / "empty").size == 0
  (tmp_path / "some").write_bytes(b"abc")
  assert isinstance(tensors.mapped(tmp_path / "some"), np.memmap)
  with pytest.raises(DataError, match="none: cannot be read"):
    tensors.mapped(tmp_path / "none")
