from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mmdiff.convert import formats
from mmdiff.core.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"


def test_shapes_are_found_without_making_values():
  class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.BatchNorm(use_running_average=True, name="norm")(nn.Dense(10**7, name="dense")(x))
  shapes = formats.variables(Wide(), (jax.ShapeDtypeStruct((1, 10**6), jnp.float32),))
  assert shapes["dense/kernel"] == (10**6, 10**7) and shapes["batch_stats/norm/mean"] == (10**7,)


def test_a_source_has_the_configs_beside_it(tmp_path):
  source = formats.open_source(FIXTURES / "hf_clip")
  assert source.model_type == "clip" and source.folder == FIXTURES / "hf_clip" and source.has("logit_scale") and not source.has("no")
  alone = formats.open_source(FIXTURES / "openai.pt")
  assert alone.folder is None and alone.model_type == ""
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(DataError, match="expected an object, found a list"):
    formats.read_json(tmp_path / "config.json")
  assert formats.read_json(tmp_path / "none.json") == {}
