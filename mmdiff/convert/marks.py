"""What a single file of Stable Diffusion says of itself beside its weights: how it was trained and is sampled.

| mark                                     | says                                                                   | written by         |
| ---------------------------------------- | ---------------------------------------------------------------------- | ------------------ |
| tensors `v_pred`, `ztsnr`                | v is predicted; the schedule ends in noise alone                       | NoobAI XL          |
| `edm_mean`, `edm_std` [1 C 1 1]          | EDM's formulation, latents (z - mean) · 0.5 / std                      | Playground 2.5     |
| `edm_vpred.sigma_max`, `….sigma_min`     | EDM's levels, v of unit latents                                        | CosXL              |
| `alphas_cumprod` [T], `denoiser.sigmas`  | the schedule itself                                                    | CompVis, Stability |
| `scale_factor` []                        | what the latents are multiplied by                                     | latent diffusion   |
| `global_step` 875000                     | Stable Diffusion 2 base, which predicts eps                            | Stability          |
| metadata `modelspec.prediction_type`     | "epsilon" or "v"                                                       | sd-scripts         |
| metadata `modelspec.resolution`          | "1024x1024": what is drawn where the caller names no size              | the same           |
| metadata `modelspec.architecture`        | stable-diffusion-v2-768-v predicts v, …-v2-512 eps                     | the same           |
| metadata `ss_zero_terminal_snr`          | "True": trained with a schedule that ends in noise alone               | the same           |
| metadata `modelspec.encoder_layer`       | "2": trained on the states of the last layer but one ("clip skip")     | the same           |
| metadata `mmdiff.pipeline`               | scheduler, null text and heads, whole                                  | `pipelines.save`   |

What contradicts is an error, or a notice where one of the two is the caller's word. `model_ema.*` are averages, which `ema` asks for.
"""
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from mmdiff.convert import edm_schedulers, facts, schedulers, tensors
from mmdiff.convert.containers import Container
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import DataError
from mmdiff.core.files import parse_json
from mmdiff.core.ranges import ABOVE, WIDE
from mmdiff.models.autoencoder import Autoencoder
from mmdiff.models.text import ClipStates
from mmdiff.models.unet import UNet
from mmdiff.nn.transformer import ACTIVATIONS

OWN = "mmdiff.pipeline"
EDM_SCALE = 0.5                         # of Playground's latents, beside their mean and deviation (its vae/config.json)
REAL = ("scale", "eps")                 # fields of a part that need not be whole
NAMES = dict(act=ACTIVATIONS, conditioning=("add", "scale_shift"))
BASE_STEPS = 875_000                    # global_step of stable-diffusion-2-base, by which others know it
PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v"}
ARCHITECTURES = {"stable-diffusion-v2-768-v": "v", "stable-diffusion-v2-512": "eps"}
# Tensors that are marks, or that follow from the schedule: no part reads them, `scheduler` and `latents` do.
READ = (r"v_pred", r"ztsnr", r"edm_(mean|std)", r"edm_vpred\.sigma_(min|max)", r"scale_factor", r"alphas_cumprod", r"denoiser\.sigmas",
        r"global_step", r"low_scale_model\.alphas_cumprod")
SAYING = READ[:5]                       # of these, a save writes its own
DERIVED = (r"betas", r"alphas_cumprod_prev", r"sqrt_.*", r"log_one_minus_.*", r"posterior_.*", r"lvlb_weights",
           r"low_scale_model\.(betas|alphas_cumprod_prev|sqrt_.*|log_one_minus_.*)")
LOSSES = (r"logvar", r"(first_stage_model\.)?loss\..*")          # of training alone: learned weights of the loss, its networks


class Marks(NamedTuple):
  """scheduler: keys of `scheduler_config.json` that the file says. said: whether it says what is predicted. notices: for people."""
  scheduler: dict[str, Any]
  said: bool
  notices: list[str]


def own(container: Container) -> dict[str, Any]:
  """What `pipelines.save` left in the metadata, {} in others' files. Raises DataError."""
  text = container.metadata.get(OWN)
  try:
    found = parse_json(text, nan=True) if text else {}
  except ValueError as error:
    raise DataError(f"metadata {OWN}: not valid JSON: {error}") from None
  if not isinstance(found, dict) or not isinstance(found.get("scheduler", {}), dict):
    raise DataError(f"metadata {OWN}: expected an object with a scheduler, found {text!r:.80}")
  return found


def predicts(container: Container, *, asked: str | None, where: str) -> tuple[str | None, list[str]]:
  """("eps" or "v" by the caller's word or by the file's, None where neither says; notices). Raises DataError for two marks that differ."""
  found, metadata = container.tensors, container.metadata
  said: dict[str, str] = {}
  if "v_pred" in found:
    said["the tensor v_pred"] = "v"
  if (text := metadata.get("modelspec.prediction_type")) is not None:
    if text not in PREDICTIONS:
      raise DataError(f"{where}: metadata modelspec.prediction_type: expected epsilon or v, found {text!r:.40}")
    said[f"its metadata modelspec.prediction_type {text!r}"] = PREDICTIONS[text]
  if (text := metadata.get("modelspec.architecture")) in ARCHITECTURES:
    said[f"its metadata modelspec.architecture {text!r}"] = ARCHITECTURES[text]
  if "global_step" in found and found["global_step"].read().reshape(-1).tolist() == [BASE_STEPS]:
    said[f"global_step {BASE_STEPS}"] = "eps"
  if asked:
    against = [mark for mark, kind in said.items() if kind != asked]
    return asked, [f"{where}: took {asked} as asked, against {' and '.join(against)}"] if against else []
  kinds = set(said.values())
  if len(kinds) > 1:
    raise DataError(f"{where} contradicts itself: " + ", ".join(f"{kind} by {mark}" for mark, kind in said.items())
                    + '; say which: prediction="eps" or prediction="v"')
  return (kinds.pop() if kinds else None), []


def scheduler(container: Container, assumed: Mapping[str, Any], *, asked: str | None, where: str) -> Marks:
  """What the file says of its scheduler, where it differs from what is `assumed` for its kind. Raises DataError."""
  found, metadata = container.tensors, container.metadata
  prediction, notices = predicts(container, asked=asked, where=where)
  edm = edm_of(found, where)
  if edm:
    if prediction and asked:
      raise DataError(f"{where}: its marks say EDM ({edm['_class_name']}), which has a prediction of its own; leave out prediction")
    return Marks(edm, True, notices)
  made: dict[str, Any] = dict(prediction_type=schedulers.NAMES[prediction]) if prediction else {}
  made |= levels_of(found, assumed, where, notices)
  zero = "ztsnr" in found or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
  if zero and "trained_betas" not in made:
    if (made or assumed).get("prediction_type", assumed.get("prediction_type", "epsilon")) == "epsilon":
      raise DataError(f"{where}: it is marked to be trained down to noise alone (zero terminal SNR), where eps says nothing of the "
                      'picture, and nothing says that it predicts v; give prediction="v"')
    made |= dict(rescale_betas_zero_snr=True)
  if made.get("rescale_betas_zero_snr"):
    made |= dict(timestep_spacing="trailing")         # the last level has to be sampled (https://arxiv.org/abs/2305.08891, §3.3)
  return Marks(made, prediction is not None, notices)


def number(found: Mapping[str, Tensor], name: str, where: str) -> float:
  """The one number above zero of a tensor. Raises DataError."""
  values = np.asarray(found[name].read(), np.float64).reshape(-1)
  if values.size != 1 or not 0 < values[0] < np.inf:
    raise DataError(f"{where}: {name}: expected a number above zero, found {values}")
  return float(values[0])


def edm_of(found: Mapping[str, Tensor], where: str) -> dict[str, Any]:
  """The scheduler of a file of EDM's formulation, {} of another."""
  if "edm_mean" in found or "edm_std" in found:
    return dict(_class_name="EDMDPMSolverMultistepScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0,
                num_train_timesteps=1000, prediction_type="epsilon", solver_order=2, solver_type="midpoint", algorithm_type="dpmsolver++",
                final_sigmas_type="zero", lower_order_final=True, euler_at_final=False, thresholding=False)
  if "edm_vpred.sigma_max" not in found:
    if "edm_vpred.sigma_min" in found:
      raise DataError(f"{where}: edm_vpred.sigma_min is there, and no edm_vpred.sigma_max")
    return {}
  low = number(found, "edm_vpred.sigma_min", where) if "edm_vpred.sigma_min" in found else 0.002
  high = number(found, "edm_vpred.sigma_max", where)
  return dict(_class_name="EDMEulerScheduler", sigma_min=low, sigma_max=high, sigma_data=1.0, rho=7.0,
              sigma_schedule="exponential", num_train_timesteps=1000, prediction_type="v_prediction", final_sigmas_type="zero")


def levels_of(found: Mapping[str, Tensor], assumed: Mapping[str, Any], where: str, notices: list[str], *,
              prefix: str = "") -> dict[str, Any]:
  """The keys that a file's own schedule needs: none where it is the assumed one, as far as its dtype tells. Raises DataError."""
  name = next((name for name in (f"{prefix}alphas_cumprod", f"{prefix}denoiser.sigmas") if name in found), None)
  if name is None:
    return {}
  values = np.asarray(found[name].read(), np.float64).reshape(-1)
  abar = values if name.endswith("alphas_cumprod") else 1 / (1 + np.sort(values) ** 2)
  coarse = 2e-2 if found[name].dtype.itemsize == 2 else 1e-4
  falls = len(abar) > 1 and np.isfinite(abar).all() and abar[0] - abar[-1] > coarse and (np.diff(abar) <= coarse).all()
  if not falls or abar.max() > 1 or abar.min() < 0:
    raise DataError(f"{where}: {name} is no schedule: expected falling numbers from about 1 to 0, found {len(abar)} "
                    f"{f'from {abar[0]:.3g} to {abar[-1]:.3g}' if len(abar) else 'of them'}")
  for more in ({}, dict(rescale_betas_zero_snr=True)):
    known = schedulers.alpha_bar({**schedulers.DDPM, **assumed, **more, "_class_name": "DDIMScheduler"})
    if len(known) == len(abar) and np.allclose(known, abar, rtol=coarse, atol=coarse / 10):
      return dict(more)
  notices.append(f"{where}: {name} is a schedule of its own, of {len(abar)} levels; it is sampled by that")
  betas = 1 - np.append(abar[:1], abar[1:] / np.maximum(abar[:-1], 1e-12))
  return dict(trained_betas=[float(beta) for beta in np.clip(betas, 0, 1)], num_train_timesteps=len(abar))


def latents(found: Mapping[str, Tensor], assumed: float, where: str) -> dict[str, Any]:
  """The fields `scale` and `shift` of an autoencoder in a file. Raises DataError."""
  lone = [name for name in ("edm_mean", "edm_std") if name in found]
  if len(lone) == 1:
    raise DataError(f"{where}: edm_mean and edm_std belong together, found {lone[0]} alone")
  if lone:
    mean, std = (np.asarray(found[name].read(), np.float64).reshape(-1) for name in ("edm_mean", "edm_std"))
    if mean.shape != std.shape or not np.isfinite(mean).all() or not (std > 0).all():
      raise DataError(f"{where}: edm_mean and edm_std: expected one number above zero for each channel, found {mean} and {std}")
    return dict(scale=tuple(float(EDM_SCALE / value) for value in std), shift=tuple(map(float, mean)))
  if "scale_factor" in found:
    return dict(scale=number(found, "scale_factor", where))
  return dict(scale=assumed)


def unsaid(module: nn.Module, alone: nn.Module) -> dict[str, Any]:
  """The fields of a part that a reading of its file alone would take to be others."""
  idle = (*facts.RUNS, *facts.BEGAN, "whole", *(["image_size"] if isinstance(module, Autoencoder) else []))
  fields = [field for field in module.__dataclass_fields__ if field not in idle]
  return {field: getattr(module, field) for field in fields if getattr(module, field) != getattr(alone, field)}


def own_fields(container: Container, part: str, where: str) -> dict[str, Any]:
  """The fields of a part that `unsaid` found when its file was written. Raises DataError."""
  said = own(container).get("parts", {})
  fields = said.get(part, {}) if isinstance(said, Mapping) else None
  known = {field for module in (UNet, Autoencoder, ClipStates) for field in module.__dataclass_fields__ if field not in facts.RUNS}
  if not isinstance(fields, Mapping) or set(fields) - known:
    raise DataError(f"{where}: metadata {OWN}: parts: expected fields of its models, found {said!r:.80}")
  for field, value in fields.items():
    if not _plausible(field, value):
      raise DataError(f"{where}: metadata {OWN}: parts.{part}.{field}: no such value is known, found {value!r:.60}")
  return {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}


def _plausible(field: str, value: Any) -> bool:
  """Whether a field may have a value: a known name, nothing, a switch, finite numbers that are no negative count or scale."""
  if field in NAMES:
    return isinstance(value, str) and value in NAMES[field]
  if field != "shift" and isinstance(value, (int, float)) and not isinstance(value, bool):
    least = ABOVE if field in ("heads", "head_dim", "scale", "image_size") else 0
    return least <= value <= WIDE and (field in REAL or type(value) is int)
  values = value if isinstance(value, list) else [value]
  return len(values) <= WIDE and all(one is None or isinstance(one, (bool, int, float)) and abs(one) <= 1e6 for one in values)


def written(named: Mapping[str, Tensor], scheduler: Mapping[str, Any], vae: Autoencoder | None) -> dict[str, Tensor]:
  """A file's tensors with the marks that say how they are sampled, and without what an earlier file said of that."""
  made = {name: tensor for name, tensor in named.items() if not any(re.fullmatch(pattern, name) for pattern in SAYING)}
  empty, number = tensors.of(np.zeros((0,), np.float32)), lambda value: tensors.of(np.asarray(value, np.float32))
  edm = edm_schedulers.is_edm(scheduler)
  if edm and scheduler.get("prediction_type") == "v_prediction":
    made |= {f"edm_vpred.{key}": number(scheduler[key]) for key in ("sigma_min", "sigma_max") if key in scheduler}
  elif scheduler.get("prediction_type") == "v_prediction":
    made |= {"v_pred": empty} | ({"ztsnr": empty} if scheduler.get("rescale_betas_zero_snr") else {})
  if vae is not None and isinstance(vae.scale, tuple) and edm:
    side = (1, len(vae.scale), 1, 1)
    made |= {"edm_mean": number(np.broadcast_to(vae.shift, len(vae.scale))), "edm_std": number(EDM_SCALE / np.asarray(vae.scale))}
    made |= {name: tensors.of(made[name].read().reshape(side)) for name in ("edm_mean", "edm_std")}
  return made


def metadata_of(scheduler: Mapping[str, Any]) -> dict[str, str]:
  """What a scheduler is in the metadata that other programs read."""
  if edm_schedulers.is_edm(scheduler) or scheduler.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
    return {}
  return {"modelspec.prediction_type": "v" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"} | (
    {"ss_zero_terminal_snr": "True"} if scheduler.get("rescale_betas_zero_snr") else {})


def resolution(metadata: Mapping[str, str]) -> int | None:
  """The side in pixels that the metadata says a model was trained on, None if nothing or no square."""
  sides = set(re.split(r"[x,]", metadata.get("modelspec.resolution", "").replace(" ", "").strip("()")))
  return int(side) if len(sides) == 1 and re.fullmatch("[0-9]{2,5}", side := sides.pop()) and int(side) >= 64 else None


def notices(found: Mapping[str, Tensor], metadata: Mapping[str, str], part: str, where: str) -> list[str]:
  """What a file says of a part that is left to the caller, and what others may read of it in another way."""
  if part == "unet":
    averages = sum(name.startswith("model_ema.") for name in found)           # two of them are counters
    return [f"{where} has averages of its UNet's weights, which were left; ema=True (--ema) takes them"] if averages > 2 else []
  if part == "vae":
    return []
  made = []
  layer = metadata.get("modelspec.encoder_layer", metadata.get("ss_clip_skip", ""))
  if re.fullmatch("[0-9]{1,3}", layer) and int(layer) > 1:
    made.append(f"{where} was trained on the states of layer {layer} from the end of its text encoder (modelspec.encoder_layer), and files "
                f"do not do that by themselves: skip={int(layer) - 1} (--skip) does")
  for name, tensor in found.items():
    if name.endswith("position_ids"):
      ids = tensor.read().reshape(-1).astype(np.float64)
      if not np.array_equal(np.round(ids), np.arange(len(ids))):
        made.append(f"{where}: {name} does not count from 0 to {len(ids) - 1}: a conversion has damaged it. Positions are taken in order, "
                    "as transformers takes them; other programs may obey it")
  return made
