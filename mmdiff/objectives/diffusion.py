"""Text-to-image diffusion: a denoiser learns to undo Gaussian noise, given a caption (Ho 2020, https://arxiv.org/abs/2006.11239).

One objective for eps, x0, v, velocity and EDM's preconditioned prediction over the schedules of `diffusion.schedules`. The loss is a
mean over examples, and an example's time, noise and caption dropout come from its own key, so that neither the batch size, the number
of microbatches nor the devices change it.
"""
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Context, Objective, Variables
from mmdiff.core.types import Array, Batch, Key, Tree
from mmdiff.diffusion import guidance, plans, predictions, samplers, schedules
from mmdiff.diffusion.plans import Plan
from mmdiff.diffusion.schedules import Level, Schedule
from mmdiff.diffusion.weighting import TIME_SAMPLINGS, sample_time, weight
from mmdiff.models import flops

# Schedule kind -> what "auto" means.
AUTO_WEIGHTING = {"discrete": "uniform", "edm": "edm", "flow": "uniform"}
AUTO_TIMES = {"discrete": "uniform", "edm": "lognormal", "flow": "logit_normal"}
AUTO_SAMPLER = {"discrete": "ddim", "edm": "heun", "flow": "euler"}
QUARTERS = 4


def diffusion(*, denoiser: Built["mmdiff.models:DENOISERS"], condition: Built["mmdiff.models:TEXT_ENCODERS"],
              schedule: Literal["linear", "scaled_linear", "cosine", "edm", "flow"] = "flow",
              prediction: Literal["eps", "x0", "v", "flow", "edm"] = "x0",
              weighting: Literal["auto", "uniform", "inverse_time", "min_snr", "edm", "sigmoid"] = "auto", min_snr_gamma: float = 5.0,
              time_sampling: Literal["auto", "uniform", "logit_normal", "lognormal"] = "auto", time_mean: float | None = None,
              time_std: float | None = None, time_shift: float = 1.0, zero_terminal_snr: bool = False, offset_noise: float = 0.0,
              caption_dropout: float = 0.1) -> Objective:
  """The objective over parameter groups `denoiser` and `text`.

  Args:
    denoiser: a module (x [B H W C], time [B], text dict) -> [B H W C] with fields `image_size` and `channels`.
    condition: a module (tokens, mask) -> text dict as in `models.conv_text`, or -> [B L D].
    schedule: of the noise, see `diffusion.schedules`.
    prediction: what the network outputs, see `diffusion.predictions`.
    weighting: of the loss by noise level, see `diffusion.weighting`; auto is uniform, but edm for schedule edm and inverse_time for
      x0 in schedule flow.
    min_snr_gamma: of weighting min_snr.
    time_sampling: distribution of training times; auto is uniform for discrete schedules, lognormal for edm and logit_normal for flow.
    time_mean, time_std: of logit_normal (None = 0.6, 1.3) and lognormal (-1.2, 1.2).
    time_shift: of schedule flow, in training and sampling; above 1 for large pictures.
    zero_terminal_snr: rescales a discrete schedule so that its last level is pure noise.
    offset_noise: standard deviation of a further noise per picture and channel (0.1 is usual), which lets overall brightness move.
    caption_dropout: share of examples that are trained without their caption, which guidance needs.

  Raises:
    ConfigError: for combinations that are not defined; the message names the fix.
  """
  levels = schedules.schedule(schedule, zero_terminal_snr=zero_terminal_snr, shift=time_shift)
  if weighting == "auto":
    weighting = "inverse_time" if (levels.kind, prediction) == ("flow", "x0") else AUTO_WEIGHTING[levels.kind]
  time_sampling = AUTO_TIMES[levels.kind] if time_sampling == "auto" else time_sampling
  _refuse(schedule, levels, prediction, weighting, time_sampling, min_snr_gamma, caption_dropout)
  if denoiser.channels != 3:
    raise ConfigError(f"objective.denoiser.channels: pictures have 3 channels, found {denoiser.channels}; leave it 3 to train on pixels")
  mean, std = _time_options(time_sampling, time_mean, time_std)

  def init(key: Key, batch: Batch) -> Variables:
    k_denoiser, k_text = jax.random.split(key)
    first = {name: batch[name][:1] for name in ("image", "tokens", "mask")}
    text_params = condition.init(k_text, first["tokens"], first["mask"])["params"]
    described = encode_text({"text": text_params}, first["tokens"], first["mask"])
    x, time = to_pixels(first["image"]), jnp.zeros((1,), jnp.float32)
    return Variables({"denoiser": denoiser.init(k_denoiser, x, time, described)["params"], "text": text_params})

  def encode_text(params: Tree, tokens: Array, mask: Array) -> dict[str, Array]:
    return as_text(condition.apply({"params": params["text"]}, tokens, mask), mask)

  def output(params: Tree, x: Array, level: Level, described: Mapping[str, Array]) -> Array:
    """The network's output, float32; the level's leaves are [B]."""
    x = predictions.network_input(x, level, levels.kind)
    return denoiser.apply({"params": params["denoiser"]}, x, level.time, described).astype(jnp.float32)

  def errors(params: Tree, batch: Batch, keys: Key, t: Array, keep: Array) -> tuple[Array, Array]:
    """([B] weighted loss, [B] plain squared error of the output) at times t [B], with captions where `keep` [B]."""
    x0, level = to_pixels(batch["image"]), schedules.level(levels, t)
    eps = jax.vmap(lambda key: noise(key, x0.shape[1:], offset_noise))(keys)
    described = encode_text(params, *drop_captions(batch["tokens"], batch["mask"], keep))
    out = output(params, predictions.add_noise(x0, eps, level), level, described)
    error = jnp.square(out - predictions.target(prediction, x0, eps, level)).mean((1, 2, 3))
    return weights(level) * error, error

  def weights(level: Level) -> Array:
    return weight(weighting, level, prediction=prediction, gamma=min_snr_gamma)

  def draw_times(keys: Key) -> Array:
    return sample_time(time_sampling, levels, keys, mean=mean, std=std)

  def loss(params: Tree, context: Context, batch: Batch) -> tuple[Array, Aux]:
    k_time, k_noise, k_drop = example_keys(context.key, batch["id"])
    keep = jax.vmap(jax.random.uniform)(k_drop) >= caption_dropout
    weighted, error = errors(params, batch, k_noise, draw_times(k_time), keep)
    value = weighted.mean()
    return value, Aux({"loss": value, "mse": error.mean()})

  def evaluate(params: Tree, batch: Batch, key: Key, extra: Tree = ()) -> dict[str, Array]:
    """The loss with all captions, and the output's error in each quarter of t; `valid` bool [B] leaves out padding."""
    k_time, k_noise, _ = example_keys(key, batch["id"])
    valid = batch["valid"].astype(jnp.float32) if "valid" in batch else jnp.ones(batch["id"].shape, jnp.float32)
    over = lambda values: (values * valid).sum() / jnp.maximum(valid.sum(), 1.0)
    keep = jnp.ones(batch["id"].shape, bool)
    weighted, error = errors(params, batch, k_noise, draw_times(k_time), keep)

    def quarter(q: Array) -> Array:
      k_time, k_noise, _ = example_keys(jax.random.fold_in(key, q), batch["id"])
      t = (q + jax.vmap(jax.random.uniform)(k_time)) / QUARTERS
      return over(errors(params, batch, k_noise, t, keep)[1])
    by_quarter = jax.lax.map(quarter, jnp.arange(QUARTERS))
    return {"loss": over(weighted), "mse": over(error)} | {f"mse_quarter_{q + 1}": by_quarter[q] for q in range(QUARTERS)}

  def denoise(params: Tree, x: Array, t: Array, tokens: Array, mask: Array, extra: Tree = ()) -> Array:
    """x_t [B H W C], t [B] -> the clean picture that the network expects, float32 [B H W C]."""
    level = schedules.level(levels, t)
    return predictions.to_x0(prediction, output(params, x, level, encode_text(params, tokens, mask)), x, level)

  def plan(sampler: str | None = None, **options) -> Plan:
    """A sampling plan for this schedule with the options of `diffusion.plans.plan`, made on the host.

    The sampler None is ddim, heun for edm, euler for flow. Expected pictures are clipped to [-1, 1] unless `clip` says otherwise.
    """
    return plans.plan(sampler or AUTO_SAMPLER[levels.kind], levels, **(dict(clip=1.0) | options))

  def sample(params: Tree, tokens: Array, mask: Array, seeds: Array, plan: Plan, *, negative: tuple[Array, Array] | None = None,
             latents: Array | None = None, extra: Tree = ()) -> Array:
    """Pictures float32 [B H W 3] in [-1, 1] for tokens [B L], mask [B L], seeds uint32 [B].

    negative: (tokens, mask) of what guidance points away from; None = the empty caption. latents: unit noise [B H W 3] to start from
    instead of the seeds'. Captions are encoded once. Rows with guidance 1 run the network on the prompts alone.
    """
    prompt = encode_text(params, tokens, mask)
    other = encode_text(params, *(negative or drop_captions(tokens, mask, jnp.zeros(mask.shape[0], bool))))
    both = jax.tree.map(interleave, prompt, other)

    def guided(x, level, scale):
      one = lambda: output(params, x, spread(level, x.shape[0]), prompt)
      two = lambda: guidance.guide(*separate(output(params, interleave(x, x), spread(level, 2 * x.shape[0]), both)), scale, plan.rescale)
      return predictions.to_x0(prediction, jax.lax.cond(scale == 1.0, one, two), x, level)

    keys = samplers.picture_keys(seeds)
    shape = (denoiser.image_size, denoiser.image_size, denoiser.channels)
    x = plan.start_scale * (samplers.start_noise(keys, shape) if latents is None else latents)
    return jnp.clip(samplers.sample(guided, x, plan, keys), -1.0, 1.0)

  return Objective(init, loss, {
    "denoise": denoise, "sample": sample, "plan": plan, "loss": evaluate,
    "flops": lambda batch_size, text_len: flops.TRAIN * batch_size * flops.text_to_image(denoiser, condition, text_len=text_len)})


def to_pixels(image: Array) -> Array:
  """uint8 [B H W C] -> float32 in [-1, 1]; floats pass through."""
  return image.astype(jnp.float32) / 127.5 - 1.0 if image.dtype == jnp.uint8 else image.astype(jnp.float32)


def noise(key: Key, shape: tuple[int, ...], offset: float) -> Array:
  """Unit normal noise [H W C], with `offset` times a constant per channel if that is not 0."""
  if not offset:
    return jax.random.normal(key, shape)
  k_pixel, k_channel = jax.random.split(key)
  return jax.random.normal(k_pixel, shape) + offset * jax.random.normal(k_channel, (1, 1, shape[-1]))


def example_keys(key: Key, ids: Array) -> tuple[Key, Key, Key]:
  """Three keys [B] for each record, functions of the step's key and the record alone."""
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(ids)
  return keys[:, 0], keys[:, 1], keys[:, 2]


def drop_captions(tokens: Array, mask: Array, keep: Array) -> tuple[Array, Array]:
  """Captions [B L] emptied where `keep` [B] is false."""
  return jnp.where(keep[:, None], tokens, 0), mask & keep[:, None]


def as_text(encoded: Any, mask: Array) -> dict[str, Array]:
  """A text encoder's output as the text dict of `models.conv_text`.

  An array [B L D] is pooled by its masked mean. Of an empty caption one zero token is left, which the denoiser's norm turns into a
  learned constant.
  """
  if isinstance(encoded, Mapping):
    return dict(encoded)
  x = jnp.where(mask[..., None], encoded, 0)
  pooled = x.sum(1, dtype=jnp.float32) / jnp.maximum(mask.sum(1, keepdims=True), 1)
  first = (jnp.arange(mask.shape[1]) == 0)[None]
  return {"tokens": x, "mask": mask | (~mask.any(1, keepdims=True) & first), "pooled": pooled.astype(encoded.dtype)}


def interleave(a: Array, b: Array) -> Array:
  """Two [B …] -> [2B …], a row of a and its row of b side by side: on a mesh both stay where they are."""
  return jnp.stack([a, b], 1).reshape(2 * a.shape[0], *a.shape[1:])


def separate(x: Array) -> tuple[Array, Array]:
  """The inverse of `interleave`."""
  return x[::2], x[1::2]


def spread(level: Level, rows: int) -> Level:
  """A level of scalars as one of [rows]."""
  return Level(*(jnp.full((rows,), leaf, jnp.float32) for leaf in level))


def _time_options(name: str, mean: float | None, std: float | None) -> tuple[float, float]:
  own = TIME_SAMPLINGS[name]
  return own[0] if mean is None else mean, own[1] if std is None else std


def _refuse(name: str, levels: Schedule, prediction: str, weighting: str, time_sampling: str, gamma: float, dropout: float) -> None:
  """Raises ConfigError for what is not defined."""
  edm, flow = levels.kind == "edm", levels.kind == "flow"
  wrong = [
    (prediction == "eps" and levels.zero_terminal_snr,
     "objective.prediction: 'eps' says nothing about the picture at a terminal SNR of zero; use 'v' or 'x0', or zero_terminal_snr=False"),
    (prediction == "eps" and flow,
     "objective.prediction: 'eps' says nothing about the picture at the start of schedule 'flow', pure noise; use 'flow', 'v' or 'x0'"),
    (prediction == "edm" and not edm, f"objective.prediction: 'edm' is the preconditioning of schedule 'edm', found schedule {name!r}"),
    (prediction in ("v", "flow") and edm,
     f"objective.prediction: {prediction!r} grows with sigma in schedule 'edm'; use 'edm', its preconditioned form, or 'x0' or 'eps'"),
    (prediction == "flow" and not flow,
     f"objective.prediction: 'flow' is the velocity of schedule 'flow', found schedule {name!r}; use 'v'"),
    (weighting == "edm" and not edm, f"objective.weighting: 'edm' belongs to schedule 'edm', found schedule {name!r}; use 'auto'"),
    (weighting == "min_snr" and gamma <= 0, f"objective.min_snr_gamma: expected a positive number (5 is usual), found {gamma}"),
    (time_sampling == "lognormal" and not edm,
     f"objective.time_sampling: 'lognormal' draws the sigma of schedule 'edm', found schedule {name!r}; use 'uniform' or 'logit_normal'"),
    (not 0 <= dropout <= 1, f"objective.caption_dropout: expected a share in [0, 1], found {dropout}"),
  ]
  for is_wrong, message in wrong:
    if is_wrong:
      raise ConfigError(message)
