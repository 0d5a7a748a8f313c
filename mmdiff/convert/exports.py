"""Runs of this project as what public formats hold: one model of a contrastive, CoCa or autoencoder run, a whole pipeline of a latent
text-to-image run."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmdiff.convert import pipelines, rules
from mmdiff.convert.pipelines import Pipeline
from mmdiff.convert.public import Loaded
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.models import AUTOENCODERS, CAPTIONERS, DENOISERS, MODELS, TEXT_ENCODERS
from mmdiff.models.text import SideBySide
from mmdiff.models.unet import UNet

# Objective -> the table of its one model.
TABLES = {"contrastive": MODELS, "coca": CAPTIONERS, "autoencoder": AUTOENCODERS}
GROUPS = {"autoencoder": "autoencoder"}                 # parameter group of that model, where it is not all of them
BETAS = {"linear": dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
         "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
         "cosine": dict(beta_schedule="squaredcos_cap_v2", beta_start=0.0001, beta_end=0.02)}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def loaded(module: Any, config: Mapping[str, Any], params: Mapping, statistics: Any = (), notices: tuple[str, ...] = ()) -> Loaded:
  """What a run holds, as if it had been loaded from a public format."""
  report = rules.Report([], [], [], [], [], list(notices))
  return Loaded("mmdiff", "", module, dict(config), dict(params), statistics, report, {}, None, {}, ())


def model_of(config: Mapping[str, Any], params: Mapping, statistics: Any = (), notices: tuple[str, ...] = ()) -> Loaded:
  """The model of a run's config. Raises ConfigError for an objective whose models no public format holds."""
  objective = config["objective"]
  if objective["name"] not in TABLES:
    raise ConfigError(f"a {objective['name']} run has no public format of one model; those of {', '.join(TABLES)} have")
  module = build(TABLES[objective["name"]], objective["model"])
  group = GROUPS.get(objective["name"])
  return loaded(module, {**config, "model": objective["model"]}, params[group] if group else params, statistics, notices)


def pipeline_of(config: Mapping[str, Any], params: Mapping, *, tokenizer: Path | None = None) -> Pipeline:
  """A latent text-to-image run as a pipeline. Raises ConfigError for parts or a schedule that diffusers' pipelines do not have."""
  objective = config["objective"]
  if objective["name"] != "diffusion" or not objective.get("encode"):
    raise ConfigError("only latent text-to-image runs (objective.name=diffusion with objective.encode) are written as pipelines")
  denoiser, encode = build(DENOISERS, objective["denoiser"]), build(AUTOENCODERS, objective["encode"])
  condition = build(TEXT_ENCODERS, objective["condition"])
  if not isinstance(denoiser, UNet):
    raise ConfigError(f"pipelines of diffusers hold the UNets of Stable Diffusion, found denoiser {objective['denoiser']['name']!r}")
  about = lambda name: {**config, "model": dict(name=name)}
  parts = {"denoiser": loaded(denoiser, {**config, "model": facts_of(denoiser, params["denoiser"])}, params["denoiser"]),
           "autoencoder": loaded(encode, about("kl"), params["autoencoder"])}
  if isinstance(condition, SideBySide):
    for which in ("first", "second"):
      parts[f"text/{which}"] = loaded(getattr(condition, which), about("clip_text"), params["text"][which])
  else:
    parts["text"] = loaded(condition, about("clip_text"), params["text"])
  return Pipeline(parts, scheduler_of(objective), {}, tokenizer, objective.get("uncond") == "zeros", (), "diffusers")


def facts_of(unet: UNet, params: Mapping) -> dict[str, Any]:
  """What a UNet's module does not say and its parameters' shapes do; heads of a fixed width go with linear projections, as published."""
  widths = {leaf.shape[-2] for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
            if "cross_attention" in (names := [str(key.key) for key in path]) and names[-2:] == ["key", "kernel"]}
  inside = params["conv_in"]["kernel"].shape[2]
  pooled = params["project_vector_in"]["kernel"].shape[0] - unet.sizes * unet.size_width if unet.sizes else 0
  return dict(name="unet", linear=unet.head_dim is not None, text_width=next(iter(widths)), in_channels=inside, pooled_width=pooled)


def scheduler_of(objective: Mapping[str, Any]) -> dict[str, Any]:
  """The scheduler_config.json of a run's schedule. Raises ConfigError."""
  schedule, prediction = objective.get("schedule", "flow"), objective.get("prediction", "x0")
  if schedule not in BETAS or prediction not in PREDICTIONS:
    raise ConfigError(f"objective.schedule: pipelines of diffusers have {', '.join(BETAS)} with {', '.join(PREDICTIONS)}, found "
                      f"{schedule!r} with {prediction!r}")
  zero = bool(objective.get("zero_terminal_snr"))
  return pipelines.SD_SCHEDULER | BETAS[schedule] | dict(
    prediction_type=PREDICTIONS[prediction], rescale_betas_zero_snr=zero, set_alpha_to_one=True,
    timestep_spacing="trailing", steps_offset=0)
