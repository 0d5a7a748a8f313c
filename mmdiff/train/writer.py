"""The record of a run: `metrics.jsonl`, TensorBoard events and `samples/*.png`, without TensorFlow.

The methods are those of clu's metric writers (`write_scalars(step, scalars)`, …), callable by keyword.

`metrics.jsonl` has one object a line, `step` first. Floats are written so that they read back exactly: a numpy float32 as the shortest
decimal that is that float32 (`0.1`, not `0.10000000149011612`), a Python float as the shortest that is that double. Values that are not
finite are the strings "nan", "inf" and "-inf", since JSON has no numbers for them; `float(value)` reads all of them.

A run that resumes at step s drops what was written after s, and a line cut short by a crash, so that the file reads as if the run had never
stopped. TensorBoard gets a purge mark for the same reason.
"""
import contextlib
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.core.errors import CannotWrite
from mmdiff.core.files import parse_json
from mmdiff.core.terminal import tell
from mmdiff.train import sums
from mmdiff.train.trackers import Trackers


@contextlib.contextmanager
def _naming(path: Path):
  """Turns an OSError into a CannotWrite that names the file."""
  try:
    yield
  except OSError as error:
    raise CannotWrite(f"cannot write {path}: {error.strerror or error}; free space or choose another --workdir") from error


def as_json(value: Any) -> Any:
  """A scalar as JSON writes it: exact floats, "nan"/"inf"/"-inf" as strings. Arrays of one element count as scalars."""
  if isinstance(value, (bool, int, str)):
    return value
  array = np.asarray(value)
  if array.size != 1:
    raise ValueError(f"a scalar has one element, found shape {array.shape}")
  item = array.reshape(()).item()
  if isinstance(item, float) and not math.isfinite(item):
    return str(item)
  if isinstance(item, float) and array.dtype != np.float64:
    # The shortest decimal of the float32; half precisions widen to it exactly. json prints its double in the same digits.
    return float(str(np.float32(item)))
  return item


def read_metrics(file: Path) -> list[dict[str, Any]]:
  """The lines of a `metrics.jsonl`, with non-finite strings as floats. A last line that a crash cut short is left out."""
  lines = []
  for text in file.read_bytes().splitlines(keepends=True):
    try:
      line = parse_json(text, nan=True)
    except ValueError:
      continue
    if text.endswith(b"\n") and isinstance(line, dict):
      lines.append({key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in line.items()})
  return lines


def changed(metrics: Path, vouched: Mapping[str, Any] | None) -> str:
  """What is wrong with a `metrics.jsonl` that once began as `vouched` says, by its name in the run directory, or ""."""
  if not vouched:
    return ""
  content = metrics.read_bytes() if metrics.is_file() else b""
  if hashlib.sha256(content[:vouched["bytes"]]).hexdigest() == vouched["sha256"]:
    return ""
  how = f"has {len(content):,} bytes and had {vouched['bytes']:,}" if len(content) < vouched["bytes"] else "begins with other lines"
  return f"{metrics.name}: damaged: it {how} when the checkpoint was saved"


class Writer:
  """Writes in `workdir`; `active=False` (every process but the first) writes nothing. Raises CannotWrite when the disk refuses."""

  def __init__(self, workdir: Path | str, *, resume_step: int = 0, vouched: Mapping[str, Any] | None = None, active: bool = True,
               trackers: Trackers | None = None, events: bool = True):
    """vouched: what `vouch` said at the step that the run resumes at; a line on stderr says when the file no longer begins so. trackers:
    are told the same. events: whether TensorBoard's are written."""
    self.workdir, self.active, self.trackers = Path(workdir), active, trackers
    self.file: Any = None
    self.events: Any = None
    if not active:
      return
    self.metrics = self.workdir / "metrics.jsonl"
    with _naming(self.workdir):
      self.workdir.mkdir(parents=True, exist_ok=True)
      if (problem := changed(self.metrics, vouched)):
        tell(f"{self.workdir / problem}; the report's curves are not those of the run")
      resumed = self.metrics.exists()
      if resumed:
        dropped = self._drop_after(resume_step)
        if dropped and not resume_step:
          tell(f"{self.workdir}: a log and no checkpoint: the run begins again at step 0, and {dropped:,} lines of metrics.jsonl go")
      self.file = open(self.metrics, "ab", buffering=0)
      self.seen, self.size = hashlib.sha256(self.metrics.read_bytes()), self.metrics.stat().st_size
      if events:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        self.events = EventFileWriter(str(self.workdir), flush_secs=30)
    if resumed and events:
      from tensorboard.compat.proto.event_pb2 import Event, SessionLog
      self._event(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))

  def _drop_after(self, step: int) -> int:
    """Rewrites `metrics.jsonl` without the lines beyond `step` and removes later pictures; the number of lines that went."""
    kept, lines = [], self.metrics.read_bytes().splitlines(keepends=True)
    for text in lines:
      try:
        if text.endswith(b"\n") and parse_json(text, nan=True)["step"] <= step:
          kept.append(text)
      except (ValueError, KeyError, TypeError):
        continue
    part = self.metrics.with_name("metrics.jsonl.part")
    with open(part, "wb") as file:
      file.write(b"".join(kept))
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, self.metrics)
    later = []
    for picture in (self.workdir / "samples").glob("*.png"):
      name = re.fullmatch(r".*_(\d{8,})", picture.stem)
      if name and int(name.group(1)) > step:
        picture.unlink()
        later.append(f"samples/{picture.name}")
    sums.forget(self.workdir, later)
    return len(lines) - len(kept)

  def vouch(self) -> dict[str, Any]:
    """{bytes, sha256} of what is in `metrics.jsonl` now; {} in a process that writes nothing."""
    return dict(bytes=self.size, sha256=self.seen.hexdigest()) if self.active else {}

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """One line of `metrics.jsonl`, whole or not at all, and one TensorBoard event."""
    if not self.active:
      return
    line = {"step": int(step)} | {name: as_json(value) for name, value in scalars.items()}
    with _naming(self.metrics):
      data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
      if self.file.write(data) != len(data):
        raise OSError("the disk took only a part of a line")
      self.seen.update(data)
      self.size += len(data)
    numbers = {name: float(value) for name, value in line.items() if name != "step" and not _is_text(value)}
    self._summary(step, [dict(tag=name, simple_value=value) for name, value in numbers.items()])
    if self.trackers:
      self.trackers.scalars(step, numbers)

  def write_images(self, step: int, images: Mapping[str, np.ndarray], caption: str = "") -> None:
    """uint8 [H W 3] (or [N H W 3], laid side by side) as `samples/NAME_STEP.png` and in TensorBoard; `caption` goes to the trackers."""
    if not self.active or not images:
      return
    from PIL import Image
    values = []
    for name, image in images.items():
      image = np.asarray(image)
      if image.dtype != np.uint8 or image.ndim not in (3, 4):
        raise ValueError(f"image {name!r}: expected uint8 [H W C] or [N H W C], found {image.dtype} {list(image.shape)}")
      image = np.concatenate(list(image), axis=1) if image.ndim == 4 else image
      buffer = io.BytesIO()
      Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
      sums.write(self.workdir, f"samples/{name.replace('/', '_')}_{step:08}.png", buffer.getvalue())
      picture = dict(height=image.shape[0], width=image.shape[1], colorspace=image.shape[-1], encoded_image_string=buffer.getvalue())
      values.append(dict(tag=name, image=picture))
      if self.trackers:
        self.trackers.picture(step, name, image, caption)
    self._summary(step, values)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Texts in TensorBoard."""
    if not self.active:
      return
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = lambda text: TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
    self._summary(step, [dict(tag=name, metadata=metadata, tensor=tensor(text)) for name, text in texts.items()])

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """The hyperparameters as a text in TensorBoard; `config.json` is their home."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in hparams.items())
    self.write_texts(0, {"hparams": "| name | value |\n|---|---|\n" + rows})

  def flush(self) -> None:
    if self.active and self.file and not self.file.closed:
      with _naming(self.workdir):
        os.fsync(self.file.fileno())
        if self.events:
          self.events.flush()

  def close(self) -> None:
    if self.active and self.file and not self.file.closed:
      with _naming(self.workdir):
        try:
          os.fsync(self.file.fileno())
          if self.events:
            self.events.close()
        finally:
          self.file.close()
      if self.trackers:
        self.trackers.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def _summary(self, step: int, values: list[dict]) -> None:
    if values and self.events:
      from tensorboard.compat.proto.event_pb2 import Event
      from tensorboard.compat.proto.summary_pb2 import Summary
      self._event(Event(step=int(step), summary=Summary(value=[_value(v) for v in values])))

  def _event(self, event) -> None:
    event.wall_time = time.time()
    with _naming(self.workdir):
      self.events.add_event(event)


def _value(fields: Mapping[str, Any]):
  from tensorboard.compat.proto.summary_pb2 import Summary
  fields = dict(fields)
  if "image" in fields:
    fields["image"] = Summary.Image(**fields["image"])
  return Summary.Value(**fields)


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and value not in ("nan", "inf", "-inf")
