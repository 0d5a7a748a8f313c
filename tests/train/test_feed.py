"""The feed yields everything in order, hands errors on, and stops when its consumer does."""
import itertools
import threading

import pytest

from mmdiff.train.feed import ahead


def test_order_and_end():
  assert list(ahead(iter(range(50)), lambda x: x * 2)) == [2 * i for i in range(50)]


def test_an_error_surfaces_where_it_happened():
  def source():
    yield 1
    yield 2
    raise OSError("torn")
  seen = []
  with pytest.raises(OSError, match="torn"):
    for item in ahead(source(), lambda x: x):
      seen.append(item)
  assert seen == [1, 2]


def test_closing_stops_the_thread():
  feed = ahead(itertools.count(), lambda x: x)
  assert next(feed) == 0
  feed.close()
  assert not [t for t in threading.enumerate() if t.name == "feed" and t.is_alive()]
