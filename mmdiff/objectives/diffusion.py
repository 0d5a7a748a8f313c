"""Text-to-image diffusion: a denoiser learns to undo Gaussian noise, given a caption (Ho 2020, https://arxiv.org/abs/2006.11239), on pixels
or on the latents of an autoencoder (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

One objective for eps, x0, v, velocity and EDM's preconditioned prediction over the schedules of `diffusion.schedules`. The loss is a
mean over examples, and an example's time, noise and caption dropout come from its own key, so that neither the batch size, the number
of microbatches nor the devices change it.
"""
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Context, Objective, Variables
from mmdiff.core.types import Array, Batch, Key, Tree
from mmdiff.diffusion import plans, predictions, schedules
from mmdiff.diffusion.plans import Plan
from mmdiff.diffusion.schedules import Level, Schedule
from mmdiff.diffusion.weighting import TIME_SAMPLINGS, sample_time, weight
from mmdiff.models import flops
from mmdiff.objectives.conditioning import Text, as_text, choose, drop_captions, zero_where
from mmdiff.objectives.drawing import drawing, served, to_pixels

# Schedule kind -> what "auto" means.
AUTO_WEIGHTING = {"discrete": "uniform", "edm": "edm", "flow": "uniform"}
AUTO_TIMES = {"discrete": "uniform", "edm": "lognormal", "flow": "logit_normal"}
AUTO_SAMPLER = {"discrete": "ddim", "edm": "heun", "flow": "euler"}
QUARTERS = 4


def diffusion(*, denoiser: Built["mmdiff.models:DENOISERS"], condition: Built["mmdiff.models:TEXT_ENCODERS"],
              encode: Built["mmdiff.models:AUTOENCODERS"] | None = None, latents: Literal["sample", "mean"] = "sample",
              schedule: Literal["linear", "scaled_linear", "cosine", "edm", "flow"] = "flow",
              prediction: Literal["eps", "x0", "v", "flow", "edm"] = "x0",
              weighting: Literal["auto", "uniform", "inverse_time", "min_snr", "edm", "sigmoid"] = "auto", min_snr_gamma: float = 5.0,
              time_sampling: Literal["auto", "uniform", "logit_normal", "lognormal"] = "auto", time_mean: float | None = None,
              time_std: float | None = None, time_shift: float = 1.0, zero_terminal_snr: bool = False, sigma_data: float | None = None,
              offset_noise: float = 0.0, caption_dropout: float = 0.1, uncond: Literal["empty", "zeros"] = "empty") -> Objective:
  """The objective over parameter groups `denoiser`, `text` and, on latents, `autoencoder`.

  A batch may bring what the encoders would compute, which then don't run: `latent_mean` and `latent_std` float32 [B h w C], as
  `encode.encode` gives them, in place of `image`; `text_states` float32 [B L D] (and `text_pooled` [B D]) with their `mask`. Only the
  empty caption is still encoded, once a step. `size` int32 [B 6] says how each picture was scaled and cropped, see `conditioning`.

  Args:
    denoiser: a module (x [B H W C], time [B], text dict) -> [B H W C] with fields `image_size` and `channels`.
    condition: a module (tokens, mask) -> text dict as in `conditioning`, or -> [B L D]. Its field `empty`, if any, is the empty caption.
    encode: a module with methods encode(pictures) -> (mean, std) and decode(latents) -> pictures, to be frozen and initialised from a
      trained one, without a gradient. None: the denoiser works on pixels.
    latents: what it learns to draw of the autoencoder's posterior: a sample, anew at every step, as latent diffusion does; or its mean,
      which spares it the noise of channels that the autoencoder does not use (`latent_used` of the evaluator `reconstruction`).
    schedule: of the noise, see `diffusion.schedules`.
    prediction: what the network outputs, see `diffusion.predictions`.
    weighting: of the loss by noise level, see `diffusion.weighting`; auto is uniform, but edm for schedule edm and inverse_time for
      x0 in schedule flow.
    min_snr_gamma: of weighting min_snr.
    time_sampling: distribution of training times; auto is uniform for discrete schedules, lognormal for edm and logit_normal for flow.
    time_mean, time_std: of logit_normal (None = 0.6, 1.3) and lognormal (-1.2 + ln(2 sigma_data), 1.2: as far from the data's deviation as
      in EDM).
    time_shift: of schedule flow, in training and sampling; above 1 for large pictures.
    zero_terminal_snr: rescales a discrete schedule so that its last level is pure noise.
    sigma_data: of schedule edm: the deviation of what is drawn, which its scalings and its weighting go by. None = 0.5 for pixels, as EDM
      has it, and 1 for latents, which the autoencoder's `scale` brings there (`latent_std` of the evaluator `reconstruction`).
    offset_noise: standard deviation of a further noise per picture and channel (0.1 is usual), which lets overall brightness move.
    caption_dropout: share of examples that are trained without their caption, which guidance needs.
    uncond: what stands for no caption: the encoder's states of the empty one (what `condition` makes of it), or zeros (SDXL).

  Raises:
    ConfigError: for combinations that are not defined; the message names the fix.
  """
  levels = schedules.schedule(schedule, zero_terminal_snr=zero_terminal_snr, shift=time_shift)
  if weighting == "auto":
    weighting = "inverse_time" if (levels.kind, prediction) == ("flow", "x0") else AUTO_WEIGHTING[levels.kind]
  time_sampling = AUTO_TIMES[levels.kind] if time_sampling == "auto" else time_sampling
  _refuse(schedule, levels, prediction, weighting, time_sampling, min_snr_gamma, caption_dropout)
  if time_sampling == "uniform" and (time_mean, time_std) != (None, None):
    raise ConfigError(f"objective.time_mean and time_std: time_sampling 'uniform' has neither, found {time_mean} and {time_std}; leave "
                      "them out, or set time_sampling to 'logit_normal'")
  if latents == "mean" and not encode:
    raise ConfigError("objective.latents: 'mean' is of an autoencoder's latents, and there is no objective.encode; leave it out")
  if sigma_data is None:
    sigma_data = predictions.LATENT_SIGMA_DATA if encode else predictions.SIGMA_DATA
  elif levels.kind != "edm":
    raise ConfigError(f"objective.sigma_data: only schedule 'edm' scales by it, found schedule {schedule!r}; leave it out")
  elif sigma_data <= 0:
    raise ConfigError(f"objective.sigma_data: expected a positive number, found {sigma_data}")
  channels = encode.latent_channels if encode else 3
  if denoiser.channels != channels:
    raise ConfigError(f"objective.denoiser.channels: {'latents of this encode' if encode else 'pictures'} have {channels} channels, found "
                      f"{denoiser.channels}; set it to {channels}" + ("" if encode else ", or set objective.encode to train on latents"))
  made = drawing(denoiser=denoiser, condition=condition, encode=encode, prediction=prediction, kind=levels.kind, uncond=uncond,
                 sigma_data=sigma_data)
  factor, encode_text, sized, output = made.factor, made.encode_text, made.sized, made.output
  mean, std = _time_options(time_sampling, time_mean, time_std, sigma_data=sigma_data)

  def init(key: Key, batch: Batch) -> Variables:
    k_denoiser, k_text, k_encode = jax.random.split(key, 3)
    mask = jnp.zeros((1, batch["mask"].shape[1]), bool)
    tokens = jnp.zeros(mask.shape, jnp.int32)
    params = {"text": condition.init(k_text, tokens, mask)["params"]}
    height, width = (side * factor for side in batch["latent_mean"].shape[1:3]) if "latent_mean" in batch else batch["image"].shape[1:3]
    if encode:
      params["autoencoder"] = encode.init(k_encode, jnp.zeros((1, height, width, 3), jnp.float32))["params"]
    x, time = jnp.zeros((1, height // factor, width // factor, channels)), jnp.zeros((1,), jnp.float32)
    described = sized(encode_text(params, tokens, mask), None, height, width)
    return Variables(params | {"denoiser": denoiser.init(k_denoiser, x, time, described)["params"]})

  def batch_text(params: Tree, batch: Batch, keep: Array) -> Text:
    """The batch's captions where `keep` [B], none elsewhere, by their precomputed states if it has those."""
    mask = batch["mask"] & keep[:, None]
    if "text_states" not in batch:
      return encode_text(params, *drop_captions(batch["tokens"], batch["mask"], keep))
    seen = jnp.ones_like(mask) if getattr(condition, "sees_padding", False) else mask
    text = as_text(batch["text_states"], seen) | ({"pooled": batch["text_pooled"]} if "text_pooled" in batch else {})
    if uncond == "zeros":
      return zero_where(text, ~mask.any(1))
    return choose(mask.any(1), text, encode_text(params, jnp.zeros((1, mask.shape[1]), jnp.int32), jnp.zeros((1, mask.shape[1]), bool)))

  def clean(params: Tree, batch: Batch, keys: Key) -> Array:
    """The pictures, or latents drawn by `keys` [B]: float32 [B h w C]."""
    if not encode:
      return to_pixels(batch["image"])
    moments = (batch["latent_mean"], batch["latent_std"]) if "latent_mean" in batch else made.encode_image(params, batch["image"])
    middle, spread_of = (jax.lax.stop_gradient(part.astype(jnp.float32)) for part in moments)
    if latents == "mean":
      return middle
    return middle + spread_of * jax.vmap(lambda key: jax.random.normal(key, middle.shape[1:]))(keys)

  def errors(params: Tree, batch: Batch, keys: list[Key], t: Array, keep: Array) -> tuple[Array, Array]:
    """([B] weighted loss, [B] plain squared error of the output) at times t [B], with captions where `keep` [B]."""
    k_noise, k_latent = keys
    x0, level = clean(params, batch, k_latent), schedules.level(levels, t)
    eps = jax.vmap(lambda key: noise(key, x0.shape[1:], offset_noise))(k_noise)
    described = sized(batch_text(params, batch, keep), batch.get("size"), *(factor * side for side in x0.shape[1:3]))
    out = output(params, predictions.add_noise(x0, eps, level), level, described)
    error = jnp.square(out - predictions.target(prediction, x0, eps, level, sigma_data)).mean((1, 2, 3))
    return weights(level) * error, error

  def weights(level: Level) -> Array:
    return weight(weighting, level, prediction=prediction, gamma=min_snr_gamma, sigma_data=sigma_data,
                  from_pure_noise=levels.from_pure_noise)

  def draw_times(keys: Key) -> Array:
    return sample_time(time_sampling, levels, keys, mean=mean, std=std)

  def loss(params: Tree, context: Context, batch: Batch) -> tuple[Array, Aux]:
    k_time, k_drop, *k_pixels = example_keys(context.key, batch["id"])
    keep = jax.vmap(jax.random.uniform)(k_drop) >= caption_dropout
    weighted, error = errors(params, batch, k_pixels, draw_times(k_time), keep)
    value = weighted.mean()
    return value, Aux({"loss": value, "mse": error.mean()})

  def evaluate(params: Tree, batch: Batch, key: Key, extra: Tree = ()) -> dict[str, Array]:
    """The loss with all captions, and the output's error in each quarter of t; `valid` bool [B] leaves out padding."""
    k_time, _, *k_pixels = example_keys(key, batch["id"])
    valid = batch["valid"].astype(jnp.float32) if "valid" in batch else jnp.ones(batch["id"].shape, jnp.float32)
    over = lambda values: (values * valid).sum() / jnp.maximum(valid.sum(), 1.0)
    keep = jnp.ones(batch["id"].shape, bool)
    weighted, error = errors(params, batch, k_pixels, draw_times(k_time), keep)

    def quarter(q: Array) -> Array:
      k_time, _, *k_pixels = example_keys(jax.random.fold_in(key, q), batch["id"])
      t = (q + jax.vmap(jax.random.uniform)(k_time)) / QUARTERS
      return over(errors(params, batch, k_pixels, t, keep)[1])
    by_quarter = jax.lax.map(quarter, jnp.arange(QUARTERS))
    return {"loss": over(weighted), "mse": over(error)} | {f"mse_quarter_{q + 1}": by_quarter[q] for q in range(QUARTERS)}

  def denoise(params: Tree, x: Array, t: Array, tokens: Array, mask: Array, extra: Tree = ()) -> Array:
    """x_t [B h w C], t [B] -> the clean picture, or latents, that the network expects, float32 [B h w C]."""
    level = schedules.level(levels, t)
    described = sized(encode_text(params, tokens, mask), None, *(factor * side for side in x.shape[1:3]))
    return predictions.to_x0(prediction, output(params, x, level, described), x, level, sigma_data)

  @functools.wraps(plans.plan, assigned=())          # whose options are its own: who asks for its signature gets that one's
  def plan(sampler: str | None = None, **options) -> Plan:
    """A sampling plan for this schedule with the options of `diffusion.plans.plan`, made on the host.

    The sampler None is ddim, heun for edm, euler for flow. Expected pictures are clipped to [-1, 1] unless `clip` says otherwise; latents
    are not.
    """
    return plans.plan(sampler or AUTO_SAMPLER[levels.kind], levels, **(dict(clip=0.0 if encode else 1.0) | options))

  predict = {
    "denoise": denoise, "plan": plan, "loss": evaluate,
    "flops": lambda batch_size, text_len: flops.TRAIN * batch_size * flops.text_to_image(denoiser, condition, text_len=text_len)}
  return Objective(init, loss, predict | served(made, encodes=encode is not None))


def noise(key: Key, shape: tuple[int, ...], offset: float) -> Array:
  """Unit normal noise [H W C], with `offset` times a constant per channel if that is not 0."""
  if not offset:
    return jax.random.normal(key, shape)
  k_pixel, k_channel = jax.random.split(key)
  return jax.random.normal(k_pixel, shape) + offset * jax.random.normal(k_channel, (1, 1, shape[-1]))


def example_keys(key: Key, ids: Array) -> tuple[Key, ...]:
  """Keys [B] for each record's time, caption, noise and latents, functions of the step's key and the record's id alone, which is another
  one each time that the record comes (`data.draws.record_id`)."""
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(ids)
  return tuple(keys[:, i] for i in range(4))


def _time_options(name: str, mean: float | None, std: float | None, *, sigma_data: float) -> tuple[float, float]:
  own = TIME_SAMPLINGS[name]
  moved = math.log(sigma_data / predictions.SIGMA_DATA) if name == "lognormal" else 0.0
  return own[0] + moved if mean is None else mean, own[1] if std is None else std


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
