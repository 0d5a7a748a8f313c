"""Random access to TFRecord files in plain Python.

A record is `uint64 length, uint32 masked crc of length, data, uint32 masked crc of data`, little endian; the mask is
`rotate_right(crc32c, 15) + 0xa282ead8` (TensorFlow, lib/io/record_writer.h). The length's checksum is checked when a file is indexed,
so that a damaged file is refused at once; the data's is not, protobuf parsing finds its damage.
"""
import os
import struct

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.data.indexes import Table

HEADER = struct.Struct("<QI")
FOOTER_BYTES = 4


def _crc_table() -> list[int]:
  table = []
  for byte in range(256):
    value = byte
    for _ in range(8):
      value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)             # Castagnoli polynomial, reflected
    table.append(value)
  return table


CRC_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
  """The masked crc32c of `data` as TFRecord files carry it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index(path: str) -> Table:
  """{"offset", "size"} int64 [n] of the data of each record. DataError when the framing is broken or the file is cut short."""
  total, at = os.path.getsize(path), 0
  offsets, sizes = [], []
  with open(path, "rb", buffering=0) as file:
    while at < total:
      header = os.pread(file.fileno(), HEADER.size, at)
      size, crc = HEADER.unpack(header) if len(header) == HEADER.size else (0, -1)
      if masked_crc(header[:8]) != crc:
        raise DataError(f"{path}: no TFRecord header at byte {at:,} of {total:,}; the file is damaged or compressed, get it again")
      if at + HEADER.size + size + FOOTER_BYTES > total:
        raise DataError(f"{path}: cut short: the record at byte {at:,} needs {size:,} bytes, the file ends at {total:,}; get it again")
      offsets.append(at + HEADER.size)
      sizes.append(size)
      at += HEADER.size + size + FOOTER_BYTES
  return {"offset": np.array(offsets, np.int64), "size": np.array(sizes, np.int64)}
