"""From captions to pictures: a denoiser, a text encoder and perhaps an autoencoder, as functions of one parameter tree.

What a diffusion objective trains with and what a checkpoint of others is sampled with are the same functions, made here. A picture is
drawn (`sample`) or drawn anew from one that exists (`edit`): as a whole from part of the noise (SDEdit, https://arxiv.org/abs/2108.01073,
"img2img"), or within a mask (inpainting), by a denoiser that was trained for it and reads mask and masked picture as further channels, or
by any other, whose known region is put back at every step, at the step's noise. A denoiser that reads a small picture, and how much noise
was added to it, draws it large (`enlarge`; https://arxiv.org/abs/2106.15282 §3, and the x4 upscaler of Stable Diffusion 2).
"""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array, Tree
from mmdiff.diffusion import guidance, predictions, samplers
from mmdiff.diffusion.plans import COLUMN, Plan
from mmdiff.diffusion.samplers import Known
from mmdiff.diffusion.schedules import Level
from mmdiff.objectives.conditioning import (
  Text,
  as_text,
  drop_captions,
  fill_empty,
  interleave,
  separate,
  spread,
  whole_picture,
  zero_where,
)

SMALL = 2**30                           # beyond every row of a plan: folded into a picture's key for the noise of its small picture


class Drawing(NamedTuple):
  """The functions of `drawing`."""
  factor: int                           # a picture's side by that of what the denoiser works on
  channels: int                         # of what it works on
  encode_text: Callable[..., Text]
  sized: Callable[..., Text]
  encode_image: Callable[..., tuple[Array, Array]]
  output: Callable[..., Array]
  sample: Callable[..., Array]
  edit: Callable[..., Array]
  enlarge: Callable[..., Array]
  enlarges: bool                        # whether `enlarge` is all that it does
  decode: Callable[..., Array]


def drawing(*, denoiser: Any, condition: Any, encode: Any = None, prediction: str, kind: str, uncond: str = "empty",
            sigma_data: float = predictions.SIGMA_DATA, more_channels: int = 0,
            aesthetics: tuple[float, float] = (6.0, 2.5)) -> Drawing:
  """Functions of parameters {"denoiser", "text" and, on latents, "autoencoder"}.

  Args:
    denoiser, condition, encode: modules as `objectives.diffusion` takes them.
    prediction: what the denoiser outputs, see `diffusion.predictions`.
    kind: of the schedule that it was trained on: discrete, edm or flow.
    uncond: what stands for no caption: "empty", the encoder's states of the empty one, or "zeros".
    sigma_data: of kind edm, see `diffusion.predictions`.
    more_channels: that the denoiser reads beside the noisy ones: for inpainting 1 + `channels`, to enlarge 3.
    aesthetics: where the denoiser reads five numbers instead of six (SDXL's refiner), the fifth of the prompt and of what guidance points
      away from.
  """
  factor, channels = (encode.factor, encode.latent_channels) if encode else (1, 3)
  inpaints = more_channels == 1 + channels
  keeps = getattr(denoiser, "keeps_text", False)
  enlarges = more_channels == 3 and bool(getattr(denoiser, "levels", 0))

  def encode_text(params: Tree, tokens: Array, mask: Array) -> Text:
    """Captions [B L] as a text dict; a row without a true mask entry has no caption.

    L may be several times the encoder's length: the pieces are encoded one by one and their states stand in a row; `pooled` is the first's.
    Pieces beyond a caption's own, there because others in the batch are longer, are hidden.
    """
    window = getattr(condition, "length", tokens.shape[1])
    pieces = tokens.shape[1] // window if tokens.shape[1] % window == 0 else 1
    rows = lambda x: x.reshape(x.shape[0] * pieces, -1)
    filled = fill_empty(rows(tokens), rows(mask), getattr(condition, "empty", ()))
    text = as_text(condition.apply({"params": params["text"]}, *filled), filled[1])
    if pieces > 1:
      joined = lambda x: x.reshape(tokens.shape[0], tokens.shape[1], *x.shape[2:])
      own = mask.reshape(tokens.shape[0], pieces, window).any(-1) | (jnp.arange(pieces) == 0)[None]
      text = text | {"tokens": joined(text["tokens"]), "mask": joined(text["mask"]) & jnp.repeat(own, window, 1),
                     "pooled": text["pooled"][::pieces]}
    return zero_where(text, ~mask.any(1)) if uncond == "zeros" else text

  def sized(text: Text, size: Array | None, height: int, width: int, aesthetic: float = aesthetics[0]) -> Text:
    """With the sizes of the pictures, if the denoiser reads them; None: whole pictures of these sides."""
    count = getattr(denoiser, "sizes", 0)
    if not count:
      return text
    size = whole_picture(text["mask"].shape[0], height, width) if size is None else size
    if count == 5:
      size = jnp.concatenate([size[:, :4].astype(jnp.float32), jnp.full((size.shape[0], 1), aesthetic, jnp.float32)], 1)
    return text | {"size": size}

  def encode_image(params: Tree, image: Array, extra: Tree = ()) -> tuple[Array, Array]:
    """uint8 or [-1, 1] pictures [B H W 3] -> (mean, standard deviation) of their latents, float32 [B h w C]."""
    return encode.apply({"params": params["autoencoder"]}, to_pixels(image), method="encode")

  def decode(params: Tree, latents: Array, extra: Tree = ()) -> Array:
    """Latents float32 [B h w C] -> pictures float32 [B H W 3] in [-1, 1]."""
    return jnp.clip(encode.apply({"params": params["autoencoder"]}, latents, method="decode"), -1.0, 1.0)

  def output(params: Tree, x: Array, level: Level, described: Text, kept: Mapping[str, Tree] = {}) -> Array:
    """The network's output, float32; the level's leaves are [B]. kept: of `keep_text`."""
    x = predictions.network_input(x, level, kind, sigma_data)
    return denoiser.apply({"params": params["denoiser"], **kept}, x, level.time, described).astype(jnp.float32)

  def keep_text(params: Tree, shape: tuple[int, ...], described: Text) -> Mapping[str, Tree]:
    """What the denoiser computes from the text and the times alone, for all evaluations of a sampling loop."""
    if not keeps:
      return {}
    blank, rows = jnp.zeros(shape, jnp.float32), described["mask"].shape[0]
    return denoiser.apply({"params": params["denoiser"]}, jnp.broadcast_to(blank[None], (rows, *shape)), jnp.zeros((rows,), jnp.float32),
                          described, mutable=["cache"])[1]

  def run(params: Tree, tokens: Array, mask: Array, keys: Array, plan: Plan, x: Array, *, negative: tuple[Array, Array] | None,
          size: Array | None, beside: Mapping[str, Array] = {}, known: Known | None = None, decoded: bool) -> Array:
    """The plan from x [B h w C], at the noise of its first row, to pictures or latents. beside: `concat` and `level` of the denoiser."""
    shape = x.shape[1:]
    if more_channels and ("concat" not in beside or beside["concat"].shape[-1] != more_channels):
      raise ConfigError(f"this denoiser reads {more_channels} channels beside the noisy {channels}: "
                        + ("it fills masks; use inpaint" if inpaints else "it enlarges pictures; use upscale" if enlarges
                           else "sampling it is not there"))
    if size is not None and not getattr(denoiser, "sizes", 0):
      raise ConfigError("size: this model's denoiser reads no sizes of pictures; leave it out")
    if size is not None:
      check_rows("size", size, 6)
    sides = tuple(factor * side for side in shape[:2])
    told = lambda text, aesthetic: sized(text, size, *sides, aesthetic) | dict(beside)
    prompt = told(encode_text(params, tokens, mask), aesthetics[0])
    nothing = drop_captions(tokens, mask, jnp.zeros(mask.shape[0], bool))
    both = jax.tree.map(interleave, prompt, told(encode_text(params, *(negative or nothing)), aesthetics[1]))
    times = {"times": plan.table[:, COLUMN["time"]]} if keeps else {}
    prompt, both = prompt | times, both | times
    kept_prompt, kept_both = (keep_text(params, shape, text) for text in (prompt, both))

    def guided(x, level, scale):
      one = lambda: output(params, x, spread(level, x.shape[0]), prompt, kept_prompt)
      two = lambda: guidance.guide(*separate(output(params, interleave(x, x), spread(level, 2 * x.shape[0]), both, kept_both)), scale,
                                   plan.rescale)
      return predictions.to_x0(prediction, jax.lax.cond(scale == 1.0, one, two), x, level, sigma_data)

    x = samplers.sample(guided, x, plan, keys, known)
    if not encode:
      return jnp.clip(x, -1.0, 1.0)
    return decode(params, x) if decoded else x

  def sample(params: Tree, tokens: Array, mask: Array, seeds: Array, plan: Plan, *, negative: tuple[Array, Array] | None = None,
             latents: Array | None = None, noisy: Array | None = None, size: Array | None = None, height: int | None = None,
             width: int | None = None, decode: bool = True, extra: Tree = ()) -> Array:
    """Pictures float32 [B H W 3] in [-1, 1] for tokens [B L], mask [B L], seeds uint32 [B].

    negative: (tokens, mask) of what guidance points away from; None = the empty caption. latents: unit noise [B h w C] to start from
    instead of the seeds', of any size that the denoiser takes. noisy: in place of that [B h w C] at the noise of the plan's first row, as
    another model left it. size: int32 [B 6] as in training; None = whole pictures. height, width: in pixels, None = the denoiser's own.
    decode: latents to pictures; False returns the latents. Captions are encoded once, and their keys and values computed once. Rows with
    guidance 1 run the network on the prompts alone.
    """
    own, keys = factor * denoiser.image_size, samplers.picture_keys(seeds)
    if (height or own) % factor or (width or own) % factor:
      raise ConfigError(f"height and width: pictures are {factor} times their latents, found {height or own}×{width or own}")
    if latents is not None:
      check_rows("latents", latents, *(side and side // factor for side in (height, width)), channels)
    if noisy is not None:
      check_rows("noisy latents", noisy, None, None, channels)
    else:
      shape = ((height or own) // factor, (width or own) // factor, channels)
      noisy = plan.start_scale * (samplers.start_noise(keys, shape) if latents is None else latents)
    return run(params, tokens, mask, keys, plan, noisy, negative=negative, size=size, decoded=decode)

  def edit(params: Tree, tokens: Array, mask: Array, seeds: Array, plan: Plan, image: Array, *, where: Array | None = None,
           fresh: Array | None = None, negative: tuple[Array, Array] | None = None, latents: Array | None = None, size: Array | None = None,
           decode: bool = True, extra: Tree = ()) -> Array:
    """Pictures float32 [B H W 3] in [-1, 1] made from image [B H W 3], uint8 or in [-1, 1].

    Sides that the model can't take are filled up by repeating the border, and cut again at the end; latents are left as they are.

    where: float32 [B H W], 1 where the picture is drawn anew and 0 where it is kept; what is kept differs from the picture by what the
    autoencoder loses. fresh: bool [B]: starts from noise alone instead of the noised picture. Other arguments as of `sample`.
    """
    height, width = image.shape[1:3]
    multiple = factor * getattr(denoiser, "multiple", 1)
    fill = lambda x: jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), *[(0, 0)] * (x.ndim - 3)), mode="edge")
    still = fill(to_pixels(image))
    clean = encode_image(params, still)[0] if encode else still
    keys = samplers.picture_keys(seeds)
    if latents is not None:
      check_rows("latents", latents, *clean.shape[1:])
    noise = samplers.start_noise(keys, clean.shape[1:]) if latents is None else latents
    first = Level(*(plan.table[0, COLUMN[name]] for name in ("alpha", "sigma", "time")))
    x = predictions.add_noise(clean, noise, first)
    if fresh is not None:
      x = jnp.where(fresh[:, None, None, None], plan.start_scale * noise, x)
    beside, known = {}, None
    if where is not None:
      where = fill(where)
      small = where[:, ::factor, ::factor, None].astype(jnp.float32)
      if inpaints:
        masked = still * (where < 0.5)[..., None]
        beside = {"concat": jnp.concatenate([small, encode_image(params, masked)[0] if encode else masked], -1)}
      else:
        known = Known(clean, noise, small)
    made = run(params, tokens, mask, keys, plan, x, negative=negative, size=size, beside=beside, known=known, decoded=decode)
    return made[:, :height, :width] if decode or not encode else made

  def enlarge(params: Tree, tokens: Array, mask: Array, seeds: Array, plan: Plan, small: Array, level: Array, noised: Array, *,
              negative: tuple[Array, Array] | None = None, latents: Array | None = None, small_noise: Array | None = None,
              decode: bool = True, extra: Tree = ()) -> Array:
    """Pictures float32 [B f·h f·w 3] in [-1, 1] of small ones [B h w 3], uint8 or in [-1, 1]; f is `factor`.

    Sides that the denoiser can't take are filled up as in `edit`. level: int32 [B], the noise that is added to the small picture, as the
    denoiser knows it, and noised: float32 [B 2], its alpha and sigma. small_noise: float32 [B h w 3] in place of the seeds'. Other
    arguments as of `sample`.
    """
    height, width = small.shape[1:3]
    multiple, keys = getattr(denoiser, "multiple", 1), samplers.picture_keys(seeds)
    low = to_pixels(small)
    if small_noise is not None:
      check_rows("small_noise", small_noise, *low.shape[1:])
    else:
      small_noise = samplers.start_noise(jax.vmap(lambda key: jax.random.fold_in(key, SMALL))(keys), low.shape[1:])
    alpha, sigma = (noised[:, i, None, None, None] for i in (0, 1))
    low = jnp.pad(alpha * low + sigma * small_noise, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    if latents is not None:
      check_rows("latents", latents, *low.shape[1:3], channels)
    noise = samplers.start_noise(keys, (*low.shape[1:3], channels)) if latents is None else latents
    made = run(params, tokens, mask, keys, plan, plan.start_scale * noise, negative=negative, size=None,
               beside={"concat": low, "level": level}, decoded=decode)
    return made[:, :factor * height, :factor * width] if decode else made

  return Drawing(factor, channels, encode_text, sized, encode_image, output, sample, edit, enlarge, enlarges, decode)


def check_rows(name: str, given: Array, *sides: int | None) -> None:
  """Raises ConfigError unless what was given for each picture has these sides; None is any."""
  if given.ndim != 1 + len(sides) or any(side not in (None, found) for side, found in zip(sides, given.shape[1:])):
    expected = ", ".join(str(side or name) for side, name in zip(sides, "hwC" if len(sides) > 1 else "n"))
    raise ConfigError(f"{name}: expected [{expected}] for each picture, found {list(given.shape[1:])}"
                      + "; channels come last" * (len(sides) > 1))


def to_pixels(image: Array) -> Array:
  """uint8 [B H W C] -> float32 in [-1, 1]; floats pass through."""
  return image.astype(jnp.float32) / 127.5 - 1.0 if image.dtype == jnp.uint8 else image.astype(jnp.float32)


def served(made: Drawing, *, encodes: bool) -> dict[str, Callable]:
  """What a drawing serves as `predict` functions."""
  text = lambda params, tokens, mask, extra=(): made.encode_text(params, tokens, mask)
  states = lambda params, tokens, mask, extra=(): (made.encode_text(params, tokens, mask)["tokens"], mask)
  drawn = {"enlarge": made.enlarge} if made.enlarges else {"sample": made.sample, "edit": made.edit}
  return drawn | {"encode_text": text, "text_states": states} | (
    {"encode_image": made.encode_image, "encode": made.encode_image, "decode": made.decode} if encodes else {})
