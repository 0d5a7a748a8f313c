"""What is written reads back exactly, also after a stop."""
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdiff.core.errors import CannotWrite
from mmdiff.train.writer import Writer, as_json, read_metrics


def events(workdir):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  accumulator = EventAccumulator(str(workdir))
  accumulator.Reload()
  return accumulator


def run(workdir, first, last, *, resume_step=0):
  with Writer(workdir, resume_step=resume_step) as writer:
    for step in range(first, last + 1):
      writer.write_scalars(step, {"loss": np.float32(1) / np.float32(step), "images_per_second": 10.5 * step})
      writer.write_images(step, {"samples": np.full((4, 4, 3), step, np.uint8)})


@given(st.floats(width=32))
@settings(max_examples=300, deadline=None)
def test_float32_reads_back_to_the_bit(value):
  text = json.dumps(as_json(np.float32(value)))
  back = np.float32(float(json.loads(text)))
  assert back.tobytes() == np.float32(value).tobytes() or math.isnan(value) and np.isnan(back)
  assert len(text) <= len(repr(float(np.float32(value)))) + 2


@given(st.floats(width=64, allow_nan=False, allow_infinity=False))
@settings(max_examples=100, deadline=None)
def test_double_reads_back_to_the_bit(value):
  assert json.loads(json.dumps(as_json(value))) == value


def test_scalars_of_any_kind():
  import jax.numpy as jnp
  assert as_json(np.float32(0.1)) == 0.1
  assert as_json(jnp.ones((), jnp.bfloat16)) == 1.0
  assert as_json(np.int64(3)) == 3 and isinstance(as_json(np.int64(3)), int)
  assert [as_json(np.float32(x)) for x in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]
  with pytest.raises(ValueError, match="one element"):
    as_json(np.ones(2))


def test_lines_start_with_step_and_are_strict_json(tmp_path):
  with Writer(tmp_path) as writer:
    writer.write_scalars(3, {"loss": np.float32("nan"), "a/b": 2})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": "nan", "a/b": 2}\n'       # already on disk
  assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])


def test_resumed_file_is_that_of_an_uninterrupted_run(tmp_path):
  run(tmp_path / "whole", 1, 8)
  run(tmp_path / "cut", 1, 6)
  with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
    file.write('{"step": 7, "lo')                       # killed while writing
  run(tmp_path / "cut", 5, 8, resume_step=4)
  assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  names = lambda folder: sorted(path.name for path in (tmp_path / folder / "samples").iterdir())
  assert names("cut") == names("whole")
  assert [event.step for event in events(tmp_path / "cut").Scalars("loss")] == list(range(1, 9))


def test_resume_without_checkpoint_starts_over(tmp_path, capsys):
  run(tmp_path, 1, 3)
  run(tmp_path, 1, 2)
  assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
  assert len(list((tmp_path / "samples").iterdir())) == 2
  assert "begins again at step 0" in capsys.readouterr().err


def test_tensorboard_reads_scalars_images_and_texts(tmp_path):
  with Writer(tmp_path) as writer:
    writer.write_scalars(step=1, scalars={"loss": np.float32(0.25)})
    writer.write_images(step=1, images={"grid/a": np.zeros((2, 3, 3), np.uint8)})
    writer.write_texts(step=1, texts={"prompt": "a red circle"})
    writer.write_hparams(hparams={"lr": 1e-3})
    writer.flush()
  read = events(tmp_path)
  assert read.Scalars("loss")[0].value == 0.25
  assert (read.Images("grid/a")[0].width, read.Images("grid/a")[0].height) == (3, 2)
  assert read.Tensors("prompt")[0].tensor_proto.string_val == [b"a red circle"]
  assert b"| lr | 0.001 |" in read.Tensors("hparams")[0].tensor_proto.string_val[0]
  assert "tensorflow" not in sys.modules


def test_images_are_kept_as_they_are(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  with Writer(tmp_path) as writer:
    writer.write_images(12, {"judge/a": picture, "two": np.stack([picture, picture])})
    with pytest.raises(ValueError, match="uint8"):
      writer.write_images(12, {"float": picture / 255})
  with Image.open(tmp_path / "samples" / "judge_a_00000012.png") as image:
    assert (np.asarray(image) == picture).all()
  with Image.open(tmp_path / "samples" / "two_00000012.png") as image:
    assert image.size == (14, 5)


def test_only_the_active_process_writes(tmp_path):
  with Writer(tmp_path / "run", active=False) as writer:
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    writer.flush()
  assert not (tmp_path / "run").exists()


def test_what_cannot_be_written_is_said(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CannotWrite, match="file"):
    Writer(tmp_path / "file" / "run")
  with Writer(tmp_path / "run") as writer:
    (tmp_path / "run" / "samples").write_text("")       # in the way of the folder
    with pytest.raises(CannotWrite, match="samples"):
      writer.write_images(1, {"a": np.zeros((2, 2, 3), np.uint8)})


def test_full_disk_is_said(tmp_path):
  writer = Writer(tmp_path)
  writer.file.close()
  writer.file = open("/dev/full", "ab", buffering=0)
  with pytest.raises(CannotWrite, match="metrics.jsonl"):
    writer.write_scalars(1, {"loss": 1.0})
  writer.file.close()
  writer.events.close()
