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
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
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
Decay = Literal["cosine", "linear", "constant", "rsqrt", "wsd"]        # of the learning rate, see `schedule`
DecayTimes = Literal["lr", "schedule"]                                 # of the weights, see the module's docstring

# Parameters before the first block of a tower, by name; what is neither here nor in a stack comes after the last.
FIRST = (".*/embed/embedding", ".*/position", ".*/patchify/.*", ".*/class_token", ".*/norm_pre/.*", ".*/conv_in/.*")
COOLDOWN = 0.2                            # of all steps, of the decay "wsd"


class Group(NamedTuple):
  """One parameter group's update rule, and its learning rate by step (for the log)."""
  tx: optax.GradientTransformation
  schedule: Callable[[int], Array]


def schedule(total_steps: int, *, lr: float, warmup_steps: int, decay: str, final: float) -> optax.Schedule:
  """Linear warm-up to `lr`, then `decay` until `total_steps`; a function of the group's count of accepted updates.

  cosine: to `final * lr` (Loshchilov & Hutter 2017); linear: likewise, straight; constant; rsqrt: lr * sqrt(warmup / step); wsd: constant,
  then linear to `final * lr` in the last `COOLDOWN` of the steps (https://arxiv.org/abs/2405.18392).
  """
  rest = max(total_steps - warmup_steps, 1)
  last = max(int(COOLDOWN * total_steps), 1)
  after = {
    "cosine": lambda: optax.cosine_decay_schedule(lr, rest, alpha=final),
    "linear": lambda: optax.linear_schedule(lr, final * lr, rest),
    "constant": lambda: optax.constant_schedule(lr),
    "wsd": lambda: optax.linear_schedule(lr, final * lr, last, transition_begin=max(rest - last, 0)),
    "rsqrt": lambda: lambda step: lr * jnp.sqrt(max(warmup_steps, 1) / (step + max(warmup_steps, 1))),
  }[decay]()
  return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), after], [warmup_steps]) if warmup_steps else after


def _decay_mask(patterns: tuple[str, ...]) -> Callable[[Tree], Tree]:
  return lambda params: tree.map_with_path(lambda path, _: tree.matches(path, patterns), params)


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


def _group(rate: optax.Schedule, direction: optax.GradientTransformation, *, lr: float, weight_decay: float, decay_times: str,
           decayed: tuple[str, ...], clip: float, layer_decay: float = 1.0) -> Group:
  """clip by the group's global norm → direction → layer decay and decoupled weight decay → −learning rate. With `decay_times` "schedule"
  the last factor takes `lr` out of the decay again, and a layer that learns less decays no less, as in big_vision."""
  if not 0 < layer_decay <= 1:
    raise ConfigError(f"optim: layer_decay: expected a number above 0, up to 1, found {layer_decay}")
  if decay_times == "schedule" and weight_decay and not lr:
    raise ConfigError("optim: decay_times='schedule' has no meaning with lr 0; freeze the group (config.freeze) or set weight_decay=0")
  scaled = lambda updates, params: jax.tree.map(jnp.multiply, updates, layer_scales(updates, layer_decay))
  layers = [optax.stateless(scaled)] if layer_decay < 1 else []
  shrunk = weight_decay / lr if weight_decay and decay_times == "schedule" else weight_decay
  shrink = [optax.add_decayed_weights(shrunk, _decay_mask(decayed))] if weight_decay else []
  parts = [optax.clip_by_global_norm(clip)] if clip else []
  parts += [direction, *layers, *shrink] if decay_times == "schedule" else [direction, *shrink, *layers]
  return Group(optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate)


def adamw(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, b1: float = 0.9,
          b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, decay_times: DecayTimes = "lr",
          decayed: tuple[str, ...] = DECAYED, clip: float = 0.0, mu_dtype: Literal["float32", "bfloat16"] = "float32",
          layer_decay: float = 1.0) -> Group:
  """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101); `mu_dtype` is that of the first moment, `layer_decay` multiplies
  the updates once for every block that comes after them (`layer_scales`)."""
  rate = schedule(total_steps, lr=lr, warmup_steps=warmup_steps, decay=decay, final=final)
  return _group(rate, optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.dtype(mu_dtype)), lr=lr, weight_decay=weight_decay,
                decay_times=decay_times, decayed=tuple(decayed), clip=clip, layer_decay=layer_decay)


def adafactor(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, b1: float = 0.9,
              b2_cap: float = 0.999, weight_decay: float = 0.0, decay_times: DecayTimes = "lr", decayed: tuple[str, ...] = DECAYED,
              clip: float = 0.0, update_clip: float = 1.0, min_factored: int = 128) -> Group:
  """Adafactor (https://arxiv.org/abs/1804.04235) without relative step sizes, with a bfloat16 first moment and the second moment's decay
  at most `b2_cap`, as Scaling ViT uses it (https://arxiv.org/abs/2106.04560 §3.4).

  update_clip: root mean square that the update of a parameter is scaled down to, 0 = none: 1 in the paper (§6) and in Lingvo's and
  Praxis's, none in big_vision's. min_factored: both dimensions from which a second moment is kept by rows and columns; 32 in big_vision.
  """
  rate = schedule(total_steps, lr=lr, warmup_steps=warmup_steps, decay=decay, final=final)
  factored = optax.scale_by_factored_rms(min_dim_size_to_factor=min_factored, decay_rate=0.8, epsilon=1e-30,
                                         decay_rate_fn=lambda step, rate: jnp.minimum(b2_cap, 1.0 - (step + 1.0) ** -rate))
  parts = [factored] + ([optax.clip_by_block_rms(update_clip)] if update_clip else [])
  parts += [optax.ema(b1, debias=False, accumulator_dtype=jnp.bfloat16)] if b1 else []
  return _group(rate, optax.chain(*parts), lr=lr, weight_decay=weight_decay, decay_times=decay_times, decayed=tuple(decayed),
                clip=clip)


def lion(total_steps: int, *, lr: float, warmup_steps: int = 0, decay: Decay = "cosine", final: float = 0.0, b1: float = 0.9,
         b2: float = 0.99, weight_decay: float = 0.0, decay_times: DecayTimes = "lr", decayed: tuple[str, ...] = DECAYED,
         clip: float = 0.0, mu_dtype: Literal["float32", "bfloat16"] = "float32", layer_decay: float = 1.0) -> Group:
  """Lion (https://arxiv.org/abs/2302.06675): the sign of an interpolated momentum."""
  rate = schedule(total_steps, lr=lr, warmup_steps=warmup_steps, decay=decay, final=final)
  return _group(rate, optax.scale_by_lion(b1, b2, mu_dtype=jnp.dtype(mu_dtype)), lr=lr, weight_decay=weight_decay,
                decay_times=decay_times, decayed=tuple(decayed), clip=clip, layer_decay=layer_decay)


def make(config: Mapping, total_steps: int, groups: tuple[str, ...]) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
  """(transformation over the whole tree of trained parameters, learning rate by group) from `config.optim`.

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
  tx = optax.multi_transform({name: group.tx for name, group in used.items()}, lambda params: tree.map_with_path(label, params))
  return tx, {name: group.schedule for name, group in used.items()}


def learning_rates(schedules: Mapping[str, optax.Schedule], step: int) -> dict[str, float]:
  """{"learning_rate/GROUP": rate} at a step, for the log; computed on the host, so that the log never waits for an accelerator."""
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    return {f"learning_rate/{name}": float(rate(step)) for name, rate in schedules.items()}
