"""How well an autoencoder gives pictures back, and what its latents look like to a diffusion model."""
import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data.pipelines import NO_CAPTION
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, grid, left_out, records, require, streamed, to_uint8
from mmdiff.losses import reconstruction as losses


def reconstruction(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "",
                   limit: int | None = None, count: int = 16, columns: int = 8) -> Evaluator:
  """PSNR (dB), SSIM and mean absolute error of what the mean latents decode to, and a grid: a row of pictures, below it their
  reconstructions.

  `latent_std` is the root mean square of sampled latents around `latent_mean`: divide the model's `scale` by it to give a diffusion model
  latents of deviation one. `latent_used` counts the channels whose means vary more than the noise around them: the others are noise that a
  diffusion model has to carry along; make them fewer, or `kl_weight` smaller. PSNR and SSIM are means over pictures; below 11 pixels there
  is no SSIM.

  Args:
    limit: records, from the source's first.
    count: of pictures in the grid.
    columns: of the grid.
  """
  require(services, "reconstruction", *NEEDS["reconstruction"])
  if count < 1 or columns < 1:
    raise ConfigError(f"reconstruction: count and columns must be at least 1, found {count} and {columns}")
  dataset, predict = services.dataset(source), services.predict

  @jax.jit
  def measure(values, extra, images):
    mean, std = predict["encode"](values, images, extra=extra)
    pictures, made = images.astype(jnp.float32) / 127.5 - 1.0, predict["decode"](values, mean, extra=extra)
    found = {"psnr": losses.psnr(made, pictures), "l1": losses.l1(made, pictures),
             "first": mean.mean((1, 2)), "second": jnp.square(mean).mean((1, 2)), "noise": jnp.square(std).mean((1, 2))}
    found |= {"ssim": losses.ssim(made, pictures)} if min(images.shape[1:3]) >= 11 else {}
    return found, made

  def run(values, step, extra=()):
    parts, before, after = [], [], []
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind=NO_CAPTION)
    for batch, (found, made) in streamed(services, lambda arrays: measure(values, extra, arrays["image"]), batches, ["image"],
                                         total=records(dataset, limit)):
      keep = batch["valid"]
      parts.append({name: value[keep] for name, value in found.items()})
      if sum(map(len, before)) < count:
        before.append(batch["image"][keep])
        after.append(to_uint8(made[keep]))
    if not parts:
      raise DataError("reconstruction: the source gave no records")
    means = {name: np.concatenate([part[name] for part in parts]).mean(0, dtype=np.float64) for name in parts[0]}
    first, second, noise = (means.pop(name) for name in ("first", "second", "noise"))              # by channel
    variance = (second + noise).mean() - first.mean() ** 2
    scalars = {name: float(value) for name, value in means.items()} | {
      "latent_mean": float(first.mean()), "latent_std": float(np.sqrt(max(variance, 0.0))),
      "latent_used": float((second - first**2 > noise).sum()), "records": float(sum(len(part["psnr"]) for part in parts))}
    scalars |= left_out(dataset, limit, int(scalars["records"]))
    return Result(scalars, images={"": pairs(np.concatenate(before)[:count], np.concatenate(after)[:count], columns)})

  return Evaluator(every_steps, params, run)


def pairs(before: np.ndarray, after: np.ndarray, columns: int) -> np.ndarray:
  """uint8 [N H W 3] twice -> one picture: each row of the first, below it the same row of the second."""
  rows = []
  for start in range(0, len(before), columns):
    for images in (before, after):
      row = images[start:start + columns]
      filling = np.full((min(columns, len(before)) - len(row), *row.shape[1:]), 255, np.uint8)
      rows.append(np.concatenate([row, filling]))
  return grid(np.concatenate(rows), min(columns, len(before)))
