"""A value that a caller says and nobody can honour is blamed on the option, not on the file."""
import re
from pathlib import Path

import numpy as np
import pytest

import mmdiff
from mmdiff.__main__ import main
from mmdiff.convert import choices, clip_configs, public, tensors
from mmdiff.core.errors import ConfigError, OptionError
from tests import toy_pipelines

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("given, said", [
  (dict(act="relu"), "act: expected one of gelu, gelu_tanh, quick_gelu, silu, found 'relu'"), (dict(act=3), "act: expected one of"),
  *((dict(head_width=odd), "head_width: expected a whole number from 1 to 65,536, found") for odd in (0, -1, 10 ** 9, 1.5, "x", True)),
  (dict(image_size=0), "image_size: expected a whole number from 1 to 16,384, found 0"),
  (dict(skip=-1), "skip: expected a whole number from 0"),
  (dict(scale=float("nan")), "scale: expected a positive number"), (dict(scale=0), "scale: expected a positive number"),
  (dict(allow_missing="("), "allow_missing: expected a regular expression (missing )"),
  (dict(allow_missing=5), "allow_missing: expected a text"),
  (dict(prefer=5), "prefer: expected a text")])
def test_a_value_that_an_option_does_not_take(given, said):
  with pytest.raises(OptionError, match=re.escape(said)):
    public.load(FIXTURES / "openai.pt", quiet=True, **given)
  choices.check({name: None for name in given})


def test_flags_with_such_values_are_a_line_before_anything_is_read(capsys):
  for words in (["info", "nowhere"], ["convert", "--src=nowhere", "--to=open_clip", "--out=out"]):
    assert main([*words, "--act=relu"]) == 64
    said = capsys.readouterr().err
    assert "--act: " in said and "quick_gelu" in said and "relu" in said and "nowhere" not in said
  assert main(["info", str(FIXTURES / "openai.pt"), "--head_width=0"]) == 64
  assert "head_width: expected a whole number from 1 to 65,536, found 0" in capsys.readouterr().err


def clip(text, image):
  shapes = {"ln_final.weight": (text,), "text_projection": (text, 512), "positional_embedding": (77, text),
            "token_embedding.weight": (99, text), "visual.proj": (image, 512), "visual.conv1.weight": (image, 3, 14, 14),
            "visual.positional_embedding": (257, image)}
  return {name: tensors.Tensor(shape, np.dtype(np.float32), lambda: None) for name, shape in shapes.items()}


def test_the_width_of_heads_divides_or_is_refused():
  """H, g and bigG: heads of another width for pictures, of 64 for texts."""
  for text, image, width, heads in ((1024, 1280, 80, (16, 16)), (1024, 1408, 88, (16, 16)), (1280, 1664, 104, (20, 16)),
                                    (768, 1024, 64, (12, 16))):
    made = clip_configs.openai_options(clip(text, image), "x", act="gelu", head_width=width)
    assert (made["text_heads"], made["image_heads"]) == heads
  for odd, of in ((100, "the image tower is 1280 wide"), (72, "the image tower is 1280 wide")):
    with pytest.raises(OptionError, match=f"head_width: {of}, which is no number of heads of {odd}"):
      clip_configs.openai_options(clip(1024, 1280), "x", act="gelu", head_width=odd)


def test_options_of_another_part_or_set_of_weights(tmp_path):
  single = toy_pipelines.file(tmp_path)
  for given, said in ((dict(part="vae", skip=1), "part vae takes no skip; it takes scale"),
                      (dict(part="text", heads=2), "part text takes no heads"), (dict(part="unet", head_dim=7), "no heads of 7"),
                      (dict(part="unet", heads=3), "are not 3 heads; say heads or head_dim"),
                      (dict(part="unet", prefer="ema"), "prefer: .* holds one set of weights; leave it out")):
    with pytest.raises(OptionError, match=said):
      public.load(single, quiet=True, **given)
  with pytest.raises(OptionError, match="prefer: expected one of the sets of weights there, .*state_dict.*, found 'emma'"):
    public.load(FIXTURES / "training.ckpt", quiet=True, prefer="emma")


def test_a_mesh_has_three_axes():
  for mesh, said in ((dict(fsd=2), "mesh: expected sizes of data, fsdp, tensor, found {'fsd': 2}"),
                     (dict(fsdp=2.5), "positive whole numbers")):
    with pytest.raises(ConfigError, match=said):
      mmdiff.load(FIXTURES / "hf_clip", quiet=True, mesh=mesh)
