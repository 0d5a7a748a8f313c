"""The TFRecord framing: the checksum's published value, and every way in which a file can be cut."""
import struct

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import tfrecord


def frame(data: bytes) -> bytes:
  """One record as TensorFlow writes it."""
  length = struct.pack("<Q", len(data))
  return length + struct.pack("<I", tfrecord.masked_crc(length)) + data + struct.pack("<I", tfrecord.masked_crc(data))


def test_the_checksum_is_castagnolis():
  crc = 0xE3069283                                                        # of "123456789", RFC 3720 appendix B.4's polynomial
  assert tfrecord.masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_blocks_sum_to_what_bytes_one_by_one_do():
  data = bytes(i * i % 251 for i in range(1000))
  register, slowly = 0xFFFFFFFF, [0]
  for byte in data:
    register = register >> 8 ^ tfrecord.FEW[(register ^ byte) & 0xFF]
    slowly.append(register ^ 0xFFFFFFFF)
  for size in (0, 1, 3, 63, 127, 128, 129, 191, 192, 193, 257, 640, 999, 1000):
    assert tfrecord.crc32c(data[:size]) == slowly[size], size


def test_offsets_and_sizes(tmp_path):
  records = [b"first", b"", b"x" * 1000]
  path = tmp_path / "a.tfrecord"
  path.write_bytes(b"".join(map(frame, records)))
  table, whole = tfrecord.index(str(path)), path.read_bytes()
  assert [whole[at:at + size] for at, size in zip(table["offset"], table["size"])] == records
  assert table["crc"].tolist() == [tfrecord.masked_crc(record) for record in records]


def test_a_cut_or_damaged_file_is_refused(tmp_path):
  whole, path = frame(b"first") + frame(b"second"), tmp_path / "a.tfrecord"
  for size in set(range(1, len(whole))) - {len(frame(b"first"))}:
    path.write_bytes(whole[:size])
    with pytest.raises(DataError, match="cut short|no TFRecord header"):
      tfrecord.index(str(path))
  for at in range(12):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    with pytest.raises(DataError, match="no TFRecord header at byte 0"):
      tfrecord.index(str(path))
