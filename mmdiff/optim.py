"""Optimisers: one optax chain per top-level parameter group, each with its own schedule, clipping and weight decay.

`config.optim = dict(default=dict(name="adamw", lr=1e-3, …), image=dict(…))`: a group named after a top-level parameter group (`image`,
`text`, `denoiser`, …) takes that group's parameters, `default` takes the rest.

Weight decay is decoupled everywhere, and papers write it in two ways, which differ by the peak rate, a factor of a thousand. A step takes
off a decayed parameter (`decayed`: path patterns)

  decay_times="lr"        rate(step) · weight_decay        PyTorch's AdamW, so OpenAI's and OpenCLIP's CLIP and Stable Diffusion; optax;
                                                           Lion's paper; the Adafactor of Lingvo and Praxis
  decay_times="schedule"  rate(step) / lr · weight_decay   big_vision (`optax.py`: lr, then wd, then the schedule from 0 to 1), so SigLIP,
                                                           LiT and Scaling ViT; "Fixing weight decay" (https://arxiv.org/abs/1711.05101)
"""
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmdiff.core import tree
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array, Tree

OPTIMIZERS = {
  "adamw": "mmdiff.optim:adamw",
  "adafactor": "mmdiff.optim:adafactor",
  "lion": "mmdiff.optim:lion",
}

DECAYED = (".*kernel", ".*embedding")     # by name: the scale of a scanned norm is two-dimensional
Decay = Literal["cosine", "linear", "constant", "rsqrt", "wsd"]        # of the learning rate, see `rate`
DECAYS = get_args(Decay)
DecayTimes = Literal["lr", "schedule"]                                 # of the weights, see the module's docstring

# Parameters before the first block of a tower, by name; what is neither here nor in a stack comes after the last.
FIRST = (".*/embed/embedding", ".*/position", ".*/patchify/.*", ".*/class_token", ".*/norm_pre/.*", ".*/conv_in/.*")
COOLDOWN = 0.2                            # of all steps, of the decay "wsd"


class Numbers(NamedTuple):
  """What a group's rule takes as inputs of the compiled step: another learning rate, warm-up, decay or length of the run is the same
  program. Each is a scalar; `numbers` makes them."""
  lr: Any
  warmup: Any                             # steps
  rest: Any                               # steps after the warm-up
  cooldown: Any                           # steps, of the decay "wsd"
  final: Any                              # rate at the end, as a share of lr
  shape: Any                              # index in `DECAYS`
  weight_decay: Any                       # as it is multiplied by the rate
  clip: Any


class Group(NamedTuple):
  """One parameter group's update rule. Its updates take `numbers`, a `Numbers` of scalars."""
  tx: optax.GradientTransformationExtraArgs
  numbers: Numbers


def numbers(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, weight_decay: float = 0.0,
            decay_times: DecayTimes = "lr", clip: float = 0.0) -> Numbers:
  """The numbers of a group, on the host."""
  if decay_times == "schedule" and weight_decay:
    if not lr:
      raise ConfigError("optim: decay_times='schedule' has no meaning with lr 0; freeze the group (config.freeze) or set weight_decay=0")
    weight_decay = weight_decay / lr
  one = np.float32
  return Numbers(one(lr), one(warmup_steps), one(max(total_steps - warmup_steps, 1)), one(max(int(COOLDOWN * total_steps), 1)), one(final),
                 np.int32(DECAYS.index(decay)), one(weight_decay), one(clip))


def rate(of: Numbers, count: Array | int) -> Array:
  """The learning rate after `count` accepted updates of the group: linear warm-up to `lr`, then the decay until the run's last step.

  cosine: to `final * lr` (Loshchilov & Hutter 2017); linear: likewise, straight; constant; rsqrt: lr * sqrt(warmup / step); wsd: constant,
  then linear to `final * lr` in the last `COOLDOWN` of the steps (https://arxiv.org/abs/2405.18392).
  """
  count = jnp.asarray(count, jnp.float32)
  after, warmup = jnp.maximum(count - of.warmup, 0.0), jnp.maximum(of.warmup, 1.0)
  falling = lambda share: 1.0 + (of.final - 1.0) * jnp.clip(share, 0.0, 1.0)
  shapes = dict(
    cosine=falling(0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(after / of.rest, 1.0))),
    linear=falling(after / of.rest),
    constant=jnp.ones_like(after),
    rsqrt=jnp.sqrt(warmup / (after + warmup)),
    wsd=falling((after - jnp.maximum(of.rest - of.cooldown, 0.0)) / of.cooldown))
  return of.lr * jnp.where(count < of.warmup, count / warmup, jnp.stack([shapes[name] for name in DECAYS])[of.shape])


def layer_scales(params: Tree, decay: float) -> Tree:
  """What the updates of each layer are multiplied by: `decay` to the power of the blocks that come after it in its tower.

  A tower is a top-level group with a stack of blocks, whose parameters have the block on the leading axis (Clark et al. 2020,
  https://arxiv.org/abs/2003.10555, as BEiT and EVA-CLIP fine-tune with it).
  """
  depths: dict[str, int] = {}
  for path, leaf in zip(tree.paths(params), jax.tree.leaves(params)):
    if "/stack/" in path:
      depths[path.split("/")[0]] = max(depths.get(path.split("/")[0], 0), leaf.shape[0])

  def scale(path: str, leaf: Array) -> Array:
    depth = depths.get(path.split("/")[0], 0)
    if depth and "/stack/" in path:
      return (decay ** (leaf.shape[0] - jnp.arange(leaf.shape[0], dtype=jnp.float32))).reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.float32(decay ** (depth + 1) if depth and tree.matches(path, FIRST) else 1.0)
  return tree.map_with_path(scale, params)


def _by_numbers(fn: Callable[[Tree, Tree, Numbers], Tree]) -> optax.GradientTransformationExtraArgs:
  """A transformation without state: (updates, params, numbers) -> updates."""
  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), lambda updates, state, params=None, *, numbers, **_: (fn(updates, params, numbers), state))


def _clipped(updates: Tree, params: Tree, of: Numbers) -> Tree:
  return optax.clip_by_global_norm(of.clip).update(updates, optax.EmptyState())[0]


def _scaled_by_rate() -> optax.GradientTransformationExtraArgs:
  def update(updates, state, params=None, *, numbers, **_):
    step = -rate(numbers, state.count)
    updates = jax.tree.map(lambda x: step.astype(x.dtype) * x, updates)
    return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))
  return optax.GradientTransformationExtraArgs(lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)


def _group(total_steps: int, direction: optax.GradientTransformation, *, decayed: tuple[str, ...], decay_times: str,
           layer_decay: float = 1.0, **options) -> Group:
  """clip by the group's global norm → direction → layer decay and decoupled weight decay → −learning rate. With `decay_times` "schedule"
  the last factor takes `lr` out of the decay again, and a layer that learns less decays no less, as in big_vision."""
  if not 0 < layer_decay <= 1:
    raise ConfigError(f"optim: layer_decay: expected a number above 0, up to 1, found {layer_decay}")
  own = numbers(total_steps, decay_times=decay_times, **options)

  def shrunk(updates: Tree, params: Tree, of: Numbers) -> Tree:
    return tree.map_with_path(lambda path, update, param: update + of.weight_decay.astype(param.dtype) * param
                              if tree.matches(path, decayed) else update, updates, params)
  scaled = lambda updates, params: jax.tree.map(jnp.multiply, updates, layer_scales(updates, layer_decay))
  layers = [optax.stateless(scaled)] if layer_decay < 1 else []
  shrink = [_by_numbers(shrunk)] if own.weight_decay else []
  parts = [_by_numbers(_clipped)] if own.clip else []
  parts += [direction, *layers, *shrink] if decay_times == "schedule" else [direction, *shrink, *layers]
  return Group(optax.with_extra_args_support(optax.chain(*parts, _scaled_by_rate())), own)


def adamw(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, b1: float = 0.9,
          b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, decay_times: DecayTimes = "lr",
          decayed: tuple[str, ...] = DECAYED, clip: float = 0.0, mu_dtype: Literal["float32", "bfloat16"] = "float32",
          layer_decay: float = 1.0) -> Group:
  """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101); `mu_dtype` is that of the first moment, `layer_decay` multiplies
  the updates once for every block that comes after them (`layer_scales`)."""
  return _group(total_steps, optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.dtype(mu_dtype)), lr=lr, warmup_steps=warmup_steps, decay=decay,
                final=final, weight_decay=weight_decay, decay_times=decay_times, decayed=tuple(decayed), clip=clip, layer_decay=layer_decay)


def adafactor(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, b1: float = 0.9,
              b2_cap: float = 0.999, weight_decay: float = 0.0, decay_times: DecayTimes = "lr", decayed: tuple[str, ...] = DECAYED,
              clip: float = 0.0, update_clip: float = 1.0, min_factored: int = 128) -> Group:
  """Adafactor (https://arxiv.org/abs/1804.04235) without relative step sizes, with a bfloat16 first moment and the second moment's decay
  at most `b2_cap`, as Scaling ViT uses it (https://arxiv.org/abs/2106.04560 §3.4).

  update_clip: root mean square that the update of a parameter is scaled down to, 0 = none: 1 in the paper (§6) and in Lingvo's and
  Praxis's, none in big_vision's. min_factored: both dimensions from which a second moment is kept by rows and columns; 32 in big_vision.
  """
  factored = optax.scale_by_factored_rms(min_dim_size_to_factor=min_factored, decay_rate=0.8, epsilon=1e-30,
                                         decay_rate_fn=lambda step, rate: jnp.minimum(b2_cap, 1.0 - (step + 1.0) ** -rate))
  parts = [factored] + ([optax.clip_by_block_rms(update_clip)] if update_clip else [])
  parts += [optax.ema(b1, debias=False, accumulator_dtype=jnp.bfloat16)] if b1 else []
  return _group(total_steps, optax.chain(*parts), lr=lr, warmup_steps=warmup_steps, decay=decay, final=final,
                weight_decay=weight_decay, decay_times=decay_times, decayed=tuple(decayed), clip=clip)


def lion(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, b1: float = 0.9,
         b2: float = 0.99, weight_decay: float = 0.0, decay_times: DecayTimes = "lr", decayed: tuple[str, ...] = DECAYED,
         clip: float = 0.0, mu_dtype: Literal["float32", "bfloat16"] = "float32", layer_decay: float = 1.0) -> Group:
  """Lion (https://arxiv.org/abs/2302.06675): the sign of an interpolated momentum."""
  return _group(total_steps, optax.scale_by_lion(b1, b2, mu_dtype=jnp.dtype(mu_dtype)), lr=lr, warmup_steps=warmup_steps, decay=decay,
                final=final, weight_decay=weight_decay, decay_times=decay_times, decayed=tuple(decayed), clip=clip, layer_decay=layer_decay)


def make(config: Mapping, total_steps: int, groups: tuple[str, ...]) -> tuple[optax.GradientTransformationExtraArgs, dict[str, Numbers]]:
  """(transformation over the whole tree of trained parameters, numbers by group) from `config.optim`. Its `update` takes
  `numbers={group: Numbers}`, by default those returned.

  groups: the top-level parameter groups that have something to train. Raises ConfigError for a group that does not exist and for a
  parameter that no group takes.
  """
  unknown = [name for name in config if name != "default" and name not in groups]
  if unknown:
    raise ConfigError(f"optim.{unknown[0]}: no parameter group of that name is trained; there are {', '.join(groups)}")
  homeless = [] if "default" in config else [group for group in groups if group not in config]
  if homeless:
    raise ConfigError(f"optim: nothing updates the parameter group {homeless[0]!r}; add optim.{homeless[0]} or optim.default, or freeze it")
  built = {name: build(OPTIMIZERS, options, total_steps) for name, options in config.items()}
  label = lambda path, _: path.split("/")[0] if path.split("/")[0] in config else "default"
  used = {name: group for name, group in built.items() if name in groups or any(g not in config for g in groups)}
  own = {name: group.numbers for name, group in used.items()}

  def named(name: str, tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(tx.init, lambda updates, state, params=None, *, numbers=None, **extra: tx.update(
      updates, state, params, numbers=(numbers or own)[name], **extra))
  tx = optax.multi_transform({name: named(name, group.tx) for name, group in used.items()},
                             lambda params: tree.map_with_path(label, params))
  return tx, own


def problems(config: Mapping, params: Tree) -> list[str]:
  """What a config of optimisers asks of trained parameters (abstract ones will do) that have none of it: a weight decay whose patterns,
  other than the usual ones, match none of its group's."""
  found = []
  for name, options in config.items():
    patterns = tuple(options.get("decayed", DECAYED))
    own = [path for path in tree.paths(params) if path.split("/")[0] == name or name == "default" and path.split("/")[0] not in config]
    if options.get("weight_decay") and patterns != DECAYED and own and not any(tree.matches(path, patterns) for path in own):
      found.append(f"--config.optim.{name}.decayed: {patterns} match none of the group's {len(own)} parameters, such as {own[0]}; without "
                   "a match nothing decays: say weight_decay=0 if that is meant")
  return found


def learning_rates(numbers: Mapping[str, Numbers], step: int) -> dict[str, float]:
  """{"learning_rate/GROUP": rate} at a step, for the log; computed on the host, so that the log never waits for an accelerator."""
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    return {f"learning_rate/{name}": float(rate(of, step)) for name, of in numbers.items()}
