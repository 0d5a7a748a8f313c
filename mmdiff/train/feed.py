"""Batches on the device ahead of the step that needs them."""
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

END = object()


def ahead(iterator: Iterator, put: Callable[[Any], Any], *, depth: int = 2) -> Generator:
  """Yields `put(item)` for each item, made by a thread up to `depth` items early, so that reading, decoding and the copy to the device
  overlap with the step. An exception of the iterator surfaces at the item where it happened. Closing the generator stops the thread."""
  ready: queue.Queue = queue.Queue(maxsize=depth)
  stop = threading.Event()

  def offer(item) -> None:
    while not stop.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work() -> None:
    try:
      for item in iterator:
        offer(put(item))
        if stop.is_set():
          return
      offer(END)
    except Exception as error:     # handed to the consumer, who raises it
      offer(error)

  thread = threading.Thread(target=work, name="feed", daemon=True)
  thread.start()
  try:
    while (item := ready.get()) is not END:
      if isinstance(item, Exception):
        raise item
      yield item
  finally:
    stop.set()
    thread.join(timeout=5)
