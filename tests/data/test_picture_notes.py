"""A PNG carries how it was drawn, for us and for other programs; files of strangers are read without trust."""
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mmdiff.core.errors import DataError
from mmdiff.data import picture_notes

NOTES = dict(prompt="ein Bär\nin two lines", negative="", seed=3, settings=dict(steps=30, sampler="ddim", guidance=7.5), model="runs/sd",
             checkpoint="0123456789abcdef")


def saved(path, info=None):
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path, pnginfo=info)
  return path


def test_notes_come_back_and_others_can_read_them(tmp_path):
  file = saved(tmp_path / "a.png", picture_notes.texts(NOTES, height=4, width=6))
  assert picture_notes.is_png(file) and picture_notes.read(file) == dict(width=6, height=4) | NOTES
  assert Image.open(file).text["parameters"] == (
    "ein Bär\nin two lines\nSteps: 30, Sampler: ddim, CFG scale: 7.5, Seed: 3, Size: 6x4, Model hash: 0123456789, Model: sd")


def test_of_other_programs_and_of_nobody(tmp_path):
  info = PngImagePlugin.PngInfo()
  info.add_text("parameters", "a cat\nSteps: 20")
  assert picture_notes.read(saved(tmp_path / "a.png", info))["parameters"] == "a cat\nSteps: 20"
  assert picture_notes.read(saved(tmp_path / "b.png")) == dict(width=6, height=4)
  assert not picture_notes.is_png(tmp_path / "none.png") and not picture_notes.is_png(tmp_path)


@pytest.mark.parametrize("text, said", [("{", "damaged"), ("[" * 100_000, "damaged"), ("[1]", "no object but a list")])
def test_damaged_notes_are_named(tmp_path, text, said):
  info = PngImagePlugin.PngInfo()
  info.add_itxt("mmdiff", text)
  with pytest.raises(DataError, match=f"a.png: its notes .*{said}"):
    picture_notes.read(saved(tmp_path / "a.png", info))


def test_a_bomb_of_text_is_refused(tmp_path):
  info = PngImagePlugin.PngInfo()
  info.add_itxt("mmdiff", "x" * (80 << 20), zip=True)
  with pytest.raises(DataError, match="cannot be read as a picture"):
    picture_notes.read(saved(tmp_path / "a.png", info))
  whole = saved(tmp_path / "b.png").read_bytes()
  (tmp_path / "b.png").write_bytes(whole[:20])
  with pytest.raises(DataError, match="b.png"):
    picture_notes.read(tmp_path / "b.png")


def test_a_command_is_quoted():
  assert picture_notes.command(["edit", "inpaint"], dict(prompts="it's", seed=3)) == """mmdiff edit inpaint '--prompts=it'"'"'s' --seed=3"""
