"""Every objective through the one step: any mesh, with and without accumulation, gives the losses of one device; nothing recompiles."""
import functools

import jax
import numpy as np
import pytest

from mmdiff.commands import flags
from mmdiff.commands.train import make_dataset
from mmdiff.core.build import build
from mmdiff.objectives import OBJECTIVES
from mmdiff.train.setup import set_up

STEPS = 20
SMALL = ["--config.batch_size=32", "--config.data.threads=1", "--config.log_every_steps=1", f"--config.steps={STEPS}"]
CONFIGS = {
  # At the config's own rate twenty steps of this small model magnify float rounding beyond what is compared.
  "autoencoder": ["--config=configs/kl_f8.py:tiny", "--config.objective.model.widths=(8,)", "--config.objective.model.groups=4",
                  "--config.optim.default.lr=5e-4",
                  "--config.objective.model.image_size=16", "--config.data.image_size=16", "--config.data.source.tier=T16",
                  "--config.objective.discriminator.name=patch", "--config.objective.discriminator.width=16",
                  "--config.objective.discriminator.layers=1", "--config.objective.discriminator.norm=group",
                  "--config.objective.discriminator_start=0"],
  "contrastive": ["--config=configs/clip.py:tiny", "--config.objective.model.image_width=48", "--config.objective.model.text_width=48",
                  "--config.objective.model.text_heads=3"],
  "diffusion": ["--config=configs/t2i_pixels.py:tiny", "--config.objective.denoiser.width=32", "--config.objective.denoiser.heads=2"],
}
MESHES = {"1": None, "8x1x1": (8, 1, 1), "4x2x1": (4, 2, 1), "2x2x2": (2, 2, 2)}


@functools.cache
def losses(name: str, mesh: str, accumulate: int, tmp: str) -> tuple[float, ...]:
  from pathlib import Path
  sizes = MESHES[mesh] or (1, 1, 1)
  overrides = [f"--config.mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), sizes)]
  config = flags.load_config([*CONFIGS[name], *SMALL, *overrides, f"--config.accumulate={accumulate}"])
  dataset = make_dataset(config, Path(tmp))
  example = {key: value[0] for key, value in dataset.batch_at(0, batch_size=1).items()}
  setup = set_up(config, build(OBJECTIVES, config["objective"]), example, devices=jax.devices()[:int(np.prod(sizes))])
  state, found = setup.state, []
  batches = dataset.train_batches(batch_size=config["batch_size"], start_step=0, rows=setup.rows)
  with jax.set_mesh(setup.mesh):
    for _ in range(STEPS):
      # The step is compiled ahead of time: a second compilation is impossible, and another shape would raise here.
      state, metrics = setup.step(state, setup.put(next(batches)))
      found.append(float(metrics["loss"]))
  assert int(state.skipped) == 0
  return tuple(found)


@pytest.mark.long
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_do_not_depend_on_mesh_or_accumulation(name, mesh, accumulate, tmp_path_factory):
  tmp = str(tmp_path_factory.getbasetemp())
  np.testing.assert_allclose(losses(name, mesh, accumulate, tmp), losses(name, "1", 1, tmp), rtol=1e-5)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name == "autoencoder")) for name in CONFIGS])
def test_training_lowers_the_loss(name, tmp_path):
  found = losses(name, "1", 1, str(tmp_path))
  assert np.isfinite(found).all() and np.mean(found[-5:]) < np.mean(found[:5])
