"""The canary: embeddings that are all one stop a run, others are measured."""
import numpy as np
import pytest

from mmdiff.core.errors import GaveUp
from mmdiff.evaluators import collapse
from tests import toy_runs


def test_measures():
  eye = np.eye(4, dtype=np.float32)
  assert collapse.alike(eye) == 0 and collapse.dimensions(eye) == pytest.approx(4)
  one = np.tile(eye[:1], (5, 1))
  assert collapse.alike(one) == pytest.approx(1) and collapse.alike(one * np.float32(1.000001)) == 1        # `stop_at=1` never stops
  assert collapse.dimensions(one) == pytest.approx(1)
  assert collapse.alike(np.concatenate([eye[:1], -eye[:1]])) == pytest.approx(-1)
  x = np.random.default_rng(0).normal(size=(50, 8))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  cosines = x @ x.T
  assert collapse.alike(x) == pytest.approx((cosines.sum() - 50) / (50 * 49))


def test_a_run_that_collapsed_is_stopped(tmp_path):
  import jax

  import mmdiff
  model = mmdiff.load(toy_runs.make(tmp_path / "run", toy_runs.clip()))
  config = dict(source=dict(name="scenes", tier="T16", split="val_iid"), every_steps=1, limit=24, caption="long")
  run, lenient = (collapse.collapse(model.services, **config, stop_at=stop_at).run for stop_at in (0.9995, 1.0))
  with jax.set_mesh(model.mesh):
    found = lenient(model.params, 5).scalars
    assert set(found) == {f"{what}/{name}" for what in ("alike", "dimensions") for name in ("image", "text")}
    assert found["alike/image"] < 0.98 and 1 < found["dimensions/text"] <= 8
    # Words and positions that say nothing: all texts are one.
    silent = {name: jax.tree.map(lambda leaf: leaf * 0, model.params["text"][name]) for name in ("embed", "position")}
    params = {**model.params, "text": {**model.params["text"], **silent}}
    with pytest.raises(GaveUp, match="step 5: the embeddings of different records are alike .mean cosine of text 1.000"):
      run(params, 5)
    assert run(params, 0).scalars["alike/text"] > 0.98                            # before training it is only said
    assert lenient(params, 5).scalars["alike/text"] > 0.98
