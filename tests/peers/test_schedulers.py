"""diffusers' schedulers beside ours, step by step, from the same `scheduler_config.json`, with the same network and noise."""
import importlib
import json

import numpy as np
import pytest

from mmdiff.convert.schedulers import CLASSES, plan_of
from mmdiff.diffusion.plans import COLUMN, COLUMNS, MEMORY

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
MODULES = {"DDPM": "ddpm", "DDIM": "ddim", "PNDM": "pndm", "LMSDiscrete": "lms_discrete", "EulerDiscrete": "euler_discrete",
           "EulerAncestralDiscrete": "euler_ancestral_discrete", "HeunDiscrete": "heun_discrete",
           "DPMSolverMultistep": "dpmsolver_multistep", "UniPCMultistep": "unipc_multistep"}
CASES = [
  *[(name, dict(timestep_spacing=spacing), steps) for name in MODULES for spacing in ("leading", "trailing", "linspace")
    for steps in (10, 50) if (name, spacing) not in (("PNDM", "linspace"),)],
  *[(name, dict(prediction_type=kind), 10) for name in MODULES for kind in ("v_prediction", "sample")
    if (name, kind) not in (("PNDM", "sample"), ("EulerAncestralDiscrete", "sample"))],
  *[("PNDM", dict(skip_prk_steps=False, timestep_spacing=spacing, prediction_type=kind), steps) for spacing in ("leading", "trailing")
    for kind in ("epsilon", "v_prediction") for steps in (4, 6, 10, 30, 50)],
  *[(name, dict(use_karras_sigmas=True, timestep_spacing=spacing), steps) for name in (
      "LMSDiscrete", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep")
    for spacing in ("leading", "linspace") for steps in (10, 25)],
  *[(name, dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"), 10) for name in (
      "DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep")],
  *[(name, dict(final_sigmas_type="sigma_min"), steps) for name in ("EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
    for steps in (10, 20)],
  *[(name, dict(set_alpha_to_one=one), 10) for name in ("DDIM", "PNDM") for one in (True, False)],
  *[(name, dict(steps_offset=0), 10) for name in ("DDIM", "PNDM", "EulerDiscrete", "DPMSolverMultistep")],
  ("DDPM", dict(variance_type="fixed_large"), 10), ("DDPM", dict(clip_sample=True, clip_sample_range=0.7), 10),
  *[(name, dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02), 10) for name in MODULES],
  *[(name, dict(beta_schedule="squaredcos_cap_v2"), 10) for name in MODULES],
]


def network(x, t):
  """Something smooth that depends on both."""
  return 0.6 * np.tanh(1.3 * x) + 0.2 * np.sin(t / 90) + 0.1 * x


def theirs(name, config, steps, start, noise, monkeypatch):
  import diffusers
  import torch
  scheduler = getattr(diffusers, f"{name}Scheduler").from_config(config)
  draws = iter(noise)
  module = importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}")
  if hasattr(module, "randn_tensor"):
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.from_numpy(next(draws)))
  scheduler.set_timesteps(steps)
  x = torch.from_numpy(start) * scheduler.init_noise_sigma
  trail = []
  for t in scheduler.timesteps:
    seen = scheduler.scale_model_input(x, t).numpy()
    x = scheduler.step(torch.from_numpy(network(seen, float(t)).astype(np.float32)), t, x).prev_sample
    trail.append(x.numpy())
  return trail


def picture(prediction, x, made, alpha, sigma):
  if prediction == "eps":
    return (x - sigma * made) / alpha
  return alpha * x - sigma * made if prediction == "v" else made


def ours(config, steps, start, noise, known):
  """Every step from where theirs (`known`) ended the one before: float32 rounding at a sigma of 4096 stays in the step that makes it."""
  found = plan_of(config, steps=steps)
  plan, draws = found.plan, iter(noise)
  x, memory, trail = start * np.float64(plan.start_scale), [0.0] * MEMORY, []
  rows = np.asarray(plan.table[:plan.rows], np.float64)
  # Some of theirs keep x / alpha.
  alphas = [*(rows[1:, COLUMN["alpha"]] if CLASSES[config["_class_name"]][1] == "sigma" else np.ones(len(rows) - 1)), 1.0]
  for row, alpha, their_x in zip(rows, alphas, known, strict=True):
    c = dict(zip(COLUMNS, row))
    made = network(x, c["time"])
    d = np.clip(picture(found.prediction, x, made, c["alpha"], c["sigma"]), -plan.clip, plan.clip)
    new = c["on_x"] * x + c["on_d"] * d + sum(c[f"on_m{k}"] * kept for k, kept in enumerate(memory, 1))
    if found.sampler in ("ddpm", "euler_ancestral"):
      z = next(draws, None)
      new = new + (c["noise"] * z if c["noise"] else 0.0)
    trail.append(new / alpha)
    x, memory = np.float64(their_x) * alpha, [c["keep_x"] * x + c["keep_d"] * d, *memory[:-1]]
  assert not plan.table[plan.rows:, COLUMN["alpha"]].any()
  return trail


@pytest.mark.parametrize("name, options, steps", CASES, ids=lambda value: json.dumps(value) if isinstance(value, dict) else str(value))
def test_every_step_is_diffusers(name, options, steps, monkeypatch):
  config = SD | dict(_class_name=f"{name}Scheduler", timestep_spacing="leading", skip_prk_steps=True) | options
  rng = np.random.default_rng(0)
  start, noise = rng.normal(size=(2, 3, 4, 4)).astype(np.float32), rng.normal(size=(steps, 2, 3, 4, 4)).astype(np.float32)
  wanted = theirs(name, config, steps, start, noise, monkeypatch)
  found = ours(config, steps, start, noise, wanted)
  sigma = {"EulerDiscrete": 4096.0}.get(name, 1.0) if options.get("rescale_betas_zero_snr") else 1.0      # of x / alpha, at the start
  befores = [sigma * np.abs(start).max(), *(np.abs(b).max() for b in wanted)]
  for step, (a, b, before) in enumerate(zip(found, wanted, befores)):
    worst = np.abs(a - b).max() / max(1, np.abs(b).max(), before)
    assert worst <= 1e-5, f"step {step}: {worst:.2g} of the largest value before and after it"
