"""How far long work has come: one line on stderr, for terminals, notebooks and logs."""
import contextlib
import sys
import threading
import time
from collections.abc import Iterator

FIRST_SECONDS = 5         # silence of a log before its first line
GROWTH = 0.1              # of the time so far: the silence of a log before each further one, so that ten hours are eighty lines
REWRITE_SECONDS = 0.5     # between two states of a line that is rewritten
COMPILED = "/jax/core/compile/backend_compile_duration"


def rewrites() -> bool:
  """Whether stderr can show one line that is rewritten: a terminal, or a notebook's cell."""
  return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def duration(seconds: float) -> str:
  """3725 -> "1:02:05"."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
  """The count, the rate and the time left of passes over rows: a line that is rewritten or, in a log, lines that grow rarer, and none of
  what takes seconds.

  The first batch of a pass compiles: the rate is that of the others. expected: seconds of a pass, where they are known before its first
  batch is done.
  """

  def __init__(self, what: str, unit: str = "rows", *, active: bool = True, total: int | None = None, expected: float | None = None):
    self.what, self.unit, self.active, self.total, self.expected = what, unit, active, total, expected
    self.inline = rewrites()
    self.begun = self.start = self.said = time.monotonic()
    self.done = self.first = self.width = 0
    self.phase = ""                       # what goes on that no count tells of
    self.lock = threading.Lock()

  def __call__(self, count: int, total: int | None = None) -> None:
    """`count` more are done, of `total` in this pass; another total, or a pass beyond it, begins a new one."""
    if not self.done or total != self.total or (total and self.done >= total):
      self._begin(0, count, total)
    self._reached(min(self.done + count, total) if total else self.done + count)

  def at(self, done: int, total: int | None = None) -> None:
    """`done` of `total` are done in all."""
    if total != self.total or done < self.done:
      self._begin(done, done, total)
    self._reached(done)

  def _begin(self, done: int, first: int, total: int | None) -> None:
    self.phase, self.done, self.first, self.total = "", done, first, total
    self.start = time.monotonic()
    self.said = self.said if self.inline else self.start

  def _reached(self, done: int) -> None:
    self.done = done
    self.show()
    if self.total and self.done >= self.total:
      self.close()                        # what is printed next begins a line

  def show(self) -> None:
    """Writes the line if it is time."""
    with self.lock:
      now = time.monotonic()
      pause = REWRITE_SECONDS if self.inline else max(FIRST_SECONDS, GROWTH * (now - self.begun))
      if self.active and now - self.said >= pause:
        self.said = now
        self._print(self.line(now))

  def line(self, now: float) -> str:
    counted = f"{self.done:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}"
    rate, waited = (self.done - self.first) / max(now - self.start, 1e-9), now - self.begun
    left = (self.total - self.done) / rate if rate and self.total else max(self.expected - waited, 0) if self.expected else None
    pace = duration(waited) if not rate else f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s"
    parts = [f"{self.what}: {self.phase or counted}", pace]
    return " · ".join(parts + ([f"{duration(left)} left"] if left is not None and not self.phase else []))

  def _print(self, text: str) -> None:
    if self.inline:
      print(f"\r{text}{' ' * (self.width - len(text))}", end="", file=sys.stderr, flush=True)
      self.width = len(text)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Clears a line that was rewritten."""
    with self.lock:
      if self.inline and self.width:
        print(f"\r{' ' * self.width}\r", end="", file=sys.stderr, flush=True)
        self.width = 0

  @contextlib.contextmanager
  def running(self, *, compiles: str = "") -> Iterator[None]:
    """Keeps the line going while the work within tells nothing, and clears it at the end. compiles: the name of a function that is compiled
    first, of which the line tells, and a log at once."""
    if not self.active:
      yield
      return
    import jax
    stop = threading.Event()

    def compiled(event: str, duration_secs: float, **kwargs: str | int) -> None:
      if event == COMPILED and compiles in str(kwargs.get("fun_name", "")):
        self.phase = ""

    def tick() -> None:
      while not stop.wait(REWRITE_SECONDS):
        self.show()
    if compiles:
      where = jax.config.values["jax_compilation_cache_dir"]
      self.phase = "compiling, seconds to minutes" + (f"; then kept in {where}" if where else "")
      self._print(self.line(time.monotonic()))
      jax.monitoring.register_event_duration_secs_listener(compiled)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
      yield
    finally:
      stop.set()
      thread.join()
      if compiles:
        jax.monitoring.unregister_event_duration_listener(compiled)
      self.close()
