"""What the numbers of a model don't say of it, as a plain mapping: activations, epsilons, heads, which layer is read, how pixels and
latents are scaled, what a denoiser predicts.

Two models whose parameters have the same shapes compute the same only where these agree. They are read off modules, so that those of a
public checkpoint (`of_loaded`, `of_pipeline`) and those of a config's models (`of_module`) compare key by key.
"""
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from mmdiff.convert import schedulers

# Fields that are no part of what a trained model computes: how it runs, how it began, and what the shapes of its parameters tell or a load
# may change by resizing.
RUNS = ("parent", "name", "dtype", "remat", "unroll", "attention", "implementation")
BEGAN = ("scale_init", "bias_init", "position_std", "word_std", "patch_std", "embed_std", "gate_init", "open_start", "total_depth")
SHAPED = ("image_size", "length", "text_len", "patch", "vocab", "width", "mlp_dim", "embed_dim", "widths", "latent_channels", "channels",
          "queries", "blocks", "class_token", "projection_bias")
# Of text encoders: layers beyond the one that is read do not matter, but for `pooled`, whose projection tells.
LAYERS = ("depth", "skip", "whole")


def of_module(module: Any, group: str = "") -> dict[str, Any]:
  """{path/field: value} of a module and those within it; `group` is the path of its parameters, such as "image" or "text/first"."""
  start = f"{group}/" if group else ""
  made: dict[str, Any] = {}
  for field in getattr(module, "__dataclass_fields__", {}):
    value = getattr(module, field)
    if isinstance(value, nn.Module):
      made |= of_module(value, f"{start}{field}")
    elif field not in (*RUNS, *BEGAN, *SHAPED, *LAYERS) and not isinstance(value, Mapping):
      made[f"{start}{field}"] = tuple(value) if isinstance(value, (list, tuple)) else value
  if hasattr(module, "depth"):
    made[f"{start}layers"] = module.depth - getattr(module, "skip", 0)
  return made


def of_loaded(loaded: Any, group: str = "") -> dict[str, Any]:
  """The facts of a `public.Loaded`; an image tower alone has its pixels' mean and std beside the module."""
  pixels = {key: tuple(value) for key, value in (loaded.config.get("model") or {}).items() if key in ("mean", "std")}
  return of_module(loaded.module, group) | {f"{group}/{key}".lstrip("/"): value for key, value in pixels.items()}


def of_pipeline(pipeline: Any) -> dict[str, Any]:
  """The facts of all parts of a `pipelines.Pipeline`, by parameter group, and how they are trained and sampled: `prediction`, `kind`,
  `schedule`, `zero_terminal_snr` and `uncond` in the words of `objectives.diffusion`."""
  made = {key: value for group, part in pipeline.parts.items() for key, value in of_loaded(part, group).items()}
  return made | schedulers.facts(pipeline.scheduler) | dict(uncond="zeros" if pipeline.zeros else "empty")
