"""Random access to TFRecord files in plain Python.

A record is `uint64 length, uint32 masked crc of length, data, uint32 masked crc of data`, little endian; the mask is
`rotate_right(crc32c, 15) + 0xa282ead8` (TensorFlow, lib/io/record_writer.h). The length's checksum is checked when a file is indexed,
so that a damaged file is refused at once; the data's is kept in the index, and checked whenever a record is read.
"""
import os
import struct

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.data.indexes import Table

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
BLOCK = 64                           # bytes that a checksum takes at a time


def _crc_table() -> np.ndarray:
  """uint32 [256]: the register after one byte, from zero (Castagnoli's polynomial, reflected)."""
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = table >> 1 ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
  return table


def _block_tables(table: np.ndarray) -> np.ndarray:
  """uint32 [BLOCK 256]: what a byte at each place of a block adds to the register at the block's end."""
  tables = [table]
  while len(tables) < BLOCK:
    tables.insert(0, tables[0] >> 8 ^ table[tables[0] & 0xFF])
  return np.stack(tables)


def _moved(tables: np.ndarray, register: np.ndarray) -> np.ndarray:
  """Registers uint32 [n] after as many zero bytes as `tables` [4 256] stand for."""
  first, second, third, fourth = tables
  return first[register & 0xFF] ^ second[register >> 8 & 0xFF] ^ third[register >> 16 & 0xFF] ^ fourth[register >> 24]


CRC_TABLE = _crc_table()
BLOCK_TABLES = _block_tables(CRC_TABLE)
FEW = CRC_TABLE.tolist()             # Python's own numbers are faster one by one


def crc32c(data: bytes) -> int:
  """The checksum is linear: blocks are summed side by side and then in pairs, the earlier one moved past the later one's bytes. 0.5 ms for
  100 kB."""
  if len(data) < 2 * BLOCK:
    crc = 0xFFFFFFFF
    for byte in data:
      crc = crc >> 8 ^ FEW[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
  pad = -len(data) % BLOCK           # zeros in front leave a register of zero as it is
  filled = np.frombuffer(bytes(pad) + data, np.uint8).copy()
  filled[pad:pad + 4] ^= 0xFF        # the register's first value, as data
  places = np.ascontiguousarray(filled.reshape(-1, BLOCK).T)
  sums = BLOCK_TABLES[0].take(places[0])
  for table, place in zip(BLOCK_TABLES[1:], places[1:]):
    sums ^= table.take(place)
  past = BLOCK_TABLES[:4]
  while len(sums) > 1:
    if len(sums) % 2:
      sums = np.concatenate([np.zeros(1, np.uint32), sums])
    sums = _moved(past, sums[::2]) ^ sums[1::2]
    past = np.stack([_moved(past, table) for table in past])
  return int(sums[0]) ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
  """The masked crc32c of `data` as TFRecord files carry it."""
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index(path: str) -> Table:
  """{"offset", "size" int64 [n], "crc" uint32 [n]} of the data of each record. DataError when the framing is broken or the file is cut
  short."""
  total, at = os.path.getsize(path), 0
  offsets, sizes, sums = [], [], []
  with open(path, "rb", buffering=0) as file:
    header = os.pread(file.fileno(), HEADER.size, 0)
    while at < total:
      size, crc = HEADER.unpack(header) if len(header) == HEADER.size else (0, -1)
      if masked_crc(header[:8]) != crc:
        raise DataError(f"{path}: no TFRecord header at byte {at:,} of {total:,}; the file is damaged or compressed, get it again")
      end = at + HEADER.size + size
      if end + FOOTER.size > total:
        raise DataError(f"{path}: cut short: the record at byte {at:,} needs {size:,} bytes, the file ends at {total:,}; get it again")
      between = os.pread(file.fileno(), FOOTER.size + HEADER.size, end)
      offsets.append(at + HEADER.size)
      sizes.append(size)
      sums.append(FOOTER.unpack(between[:FOOTER.size])[0])
      at, header = end + FOOTER.size, between[FOOTER.size:]
  return {"offset": np.array(offsets, np.int64), "size": np.array(sizes, np.int64), "crc": np.array(sums, np.uint32)}
