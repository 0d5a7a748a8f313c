"""diffusers' schedulers beside ours, step by step, from the same `scheduler_config.json`, with the same network and noise."""
import importlib
import json

import numpy as np
import pytest

from mmdiff.convert import edm_schedulers
from mmdiff.convert.schedulers import CLASSES, DDPM, IDLE, OPTIONS, facts, plan_of
from mmdiff.core.errors import ConfigError
from mmdiff.diffusion.plans import COLUMN, COLUMNS, MEMORY
from mmdiff.diffusion.predictions import SIGMA_DATA

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
MODULES = {"DDPM": "ddpm", "DDIM": "ddim", "PNDM": "pndm", "LMSDiscrete": "lms_discrete", "EulerDiscrete": "euler_discrete",
           "EulerAncestralDiscrete": "euler_ancestral_discrete", "HeunDiscrete": "heun_discrete",
           "DPMSolverMultistep": "dpmsolver_multistep", "UniPCMultistep": "unipc_multistep", "EDMEuler": "edm_euler",
           "EDMDPMSolverMultistep": "edm_dpmsolver_multistep"}
DISCRETE = [name for name in MODULES if not name.startswith("EDM")]
STEPS = (1, 2, 3, 7, 10, 15, 25, 33, 50)
SPACINGS = ("leading", "trailing", "linspace")
RAMPED = ("LMSDiscrete", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep")
SOLVERS = ("DPMSolverMultistep", "UniPCMultistep")
CASES = [
  *[(name, dict(timestep_spacing=spacing), steps) for name in DISCRETE for spacing in SPACINGS for steps in STEPS],
  *[(name, dict(prediction_type=kind, timestep_spacing=spacing), steps) for name in DISCRETE for kind in ("v_prediction", "sample")
    for spacing in SPACINGS for steps in (7, 10) if (name, kind) not in (("PNDM", "sample"), ("EulerAncestralDiscrete", "sample"))],
  *[("PNDM", dict(skip_prk_steps=False, timestep_spacing=spacing, prediction_type=kind), steps) for spacing in SPACINGS
    for kind in ("epsilon", "v_prediction") for steps in (4, 6, *STEPS[3:])],
  *[(name, {f"use_{ramp}_sigmas": True, "timestep_spacing": spacing}, steps) for name in RAMPED for ramp in ("karras", "exponential")
    for spacing in SPACINGS for steps in (1, 3, 10, 25) if (ramp, name in SOLVERS) != ("exponential", True)],
  *[(name, {f"use_{ramp}_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}, 10) for name in RAMPED if name not in SOLVERS
    for ramp in ("karras", "exponential")],
  *[(name, dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"), steps) for name in (
      "DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep") for steps in (7, 10)],
  *[(name, dict(final_sigmas_type="sigma_min", **more), steps) for name in ("EulerDiscrete", *SOLVERS) for steps in (2, 10, 14, 15, 20)
    for more in ({}, dict(use_karras_sigmas=True))],
  *[("DPMSolverMultistep", dict(final_sigmas_type=final, lower_order_final=lower, euler_at_final=euler), steps)
    for final in ("zero", "sigma_min") for lower in (True, False) for euler in (True, False) for steps in (10, 20)],
  *[(name, dict(set_alpha_to_one=one, timestep_spacing=spacing), 10) for name in ("DDIM", "PNDM") for one in (True, False)
    for spacing in SPACINGS],
  *[(name, dict(steps_offset=offset), steps) for name in DISCRETE for offset in (0, 3) for steps in (7, 10)],
  *[("DDPM", dict(variance_type=variance, timestep_spacing=spacing), 10) for variance in ("fixed_small", "fixed_large")
    for spacing in SPACINGS],
  *[(name, dict(clip_sample=True, clip_sample_range=0.7), 10) for name in ("DDPM", "HeunDiscrete")],
  *[(name, dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02), 10) for name in DISCRETE],
  *[(name, dict(beta_schedule="squaredcos_cap_v2"), 10) for name in DISCRETE],
  # What other classes left in a file.
  *[(name, dict(use_karras_sigmas=True, final_sigmas_type="sigma_min", thresholding=True, clip_sample=True, solver_order=3), 10)
    for name in ("PNDM", "EulerAncestralDiscrete")],
  ("LMSDiscrete", dict(final_sigmas_type="sigma_min", clip_sample=True), 10),
  ("DDIM", dict(use_karras_sigmas=True, variance_type="fixed_large"), 10),
  *[(name, dict(sigma_schedule=ramp, final_sigmas_type=final), steps) for name in ("EDMEuler", "EDMDPMSolverMultistep")
    for ramp in ("karras", "exponential") for final in ("zero", "sigma_min") for steps in (2, 3, 10, 15, 25)],
  *[(name, {}, 1) for name in ("EDMEuler", "EDMDPMSolverMultistep")],
  *[(name, dict(sigma_min=0.01, sigma_max=50.0, rho=5.0, **more), 10) for name in ("EDMEuler", "EDMDPMSolverMultistep")
    for more in ({}, dict(prediction_type="v_prediction", sigma_data=1.0))],
]
# diffusers itself can't: there is no next level to divide by, or no place in the list.
REFUSED = [(name, options, steps) for name in SOLVERS for options, steps in (
  (dict(timestep_spacing="leading"), 1000), (dict(timestep_spacing="linspace"), 1000),
  (dict(timestep_spacing="leading", steps_offset=1), 999))]


def network(x, t):
  """Something smooth that depends on both."""
  return 0.6 * np.tanh(1.3 * x) + 0.2 * np.sin(t / 90) + 0.1 * x


def theirs(name, config, steps, start, noise, monkeypatch, *, strength=1.0, clean=None):
  """x after every step; with `clean`, of img2img's loop, as its pipeline begins one."""
  import diffusers
  import torch
  scheduler = getattr(diffusers, f"{name}Scheduler").from_config(config)
  draws = iter(noise)
  module = importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}")
  if hasattr(module, "randn_tensor"):
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.from_numpy(next(draws)))
  scheduler.set_timesteps(steps)
  x, timesteps, trail = torch.from_numpy(start) * scheduler.init_noise_sigma, scheduler.timesteps, []
  if clean is not None:
    begin = (steps - min(int(steps * strength), steps)) * scheduler.order
    timesteps = timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
      scheduler.set_begin_index(begin)
    x = scheduler.add_noise(torch.from_numpy(clean), torch.from_numpy(start), timesteps[:1])
  for t in timesteps:
    seen = scheduler.scale_model_input(x, t).numpy()
    x = scheduler.step(torch.from_numpy(network(seen, float(t)).astype(np.float32)), t, x).prev_sample
    trail.append(x.numpy())
  return trail


def picture(prediction, x, made, alpha, sigma):
  if prediction == "edm":
    return (SIGMA_DATA**2 * x + sigma * SIGMA_DATA * (sigma**2 + SIGMA_DATA**2) ** 0.5 * made) / (sigma**2 + SIGMA_DATA**2)
  if prediction == "eps":
    return (x - sigma * made) / alpha
  return alpha * x - sigma * made if prediction == "v" else made


def ours(config, steps, start, noise, known, *, strength=1.0, clean=None):
  """Every step from where theirs (`known`) ended the one before: float32 rounding at a sigma of 4096 stays in the step that makes it."""
  found, scaled = plan_of(config, steps=steps, strength=strength), facts(config)["kind"] == "edm"
  plan, draws = found.plan, iter(noise)
  x, memory, trail = start * np.float64(plan.start_scale), [0.0] * MEMORY, []
  rows = np.asarray(plan.table[:plan.rows], np.float64)
  if clean is not None:
    x = rows[0, COLUMN["alpha"]] * clean + rows[0, COLUMN["sigma"]] * start
  # Some of theirs keep x / alpha.
  divides = CLASSES.get(config["_class_name"], ("", "sigma"))[1] == "sigma"
  alphas = [*(rows[1:, COLUMN["alpha"]] if divides else np.ones(len(rows) - 1)), 1.0]
  for row, alpha, their_x in zip(rows, alphas, known, strict=True):
    c = dict(zip(COLUMNS, row))
    made = network(x / (c["sigma"] ** 2 + SIGMA_DATA**2) ** 0.5 if scaled else x, c["time"])
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
  # Of x / alpha, at the start.
  sigma = 4096.0 if name in ("EulerDiscrete", "EulerAncestralDiscrete") and options.get("rescale_betas_zero_snr") else 1.0
  sigma = 80.0 if name.startswith("EDM") else sigma
  befores = [sigma * np.abs(start).max(), *(np.abs(b).max() for b in wanted)]
  rows = plan_of(config, steps=steps).plan.table
  for step, (a, b, before) in enumerate(zip(found, wanted, befores)):
    largest = np.abs(rows[step, [i for key, i in COLUMN.items() if key.startswith("on_")]]).max()
    worst = np.abs(a - b).max() / max(1, np.abs(b).max(), before)
    # Heun's correction multiplies what float32 rounds by half its step's ratio of sigmas, up to 250 in a loop of two.
    bound = max(1e-5, 5e-6 * largest) if name == "HeunDiscrete" else 1e-5
    assert worst <= bound, f"step {step}: {worst:.2g} of the largest value before and after it"


@pytest.mark.parametrize("strength", [0.02, 0.1, 0.5, 0.8, 0.98, 1.0])
@pytest.mark.parametrize("name", [name for name in DISCRETE if name != "LMSDiscrete"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_img2img_is_diffusers(name, strength, spacing, monkeypatch):
  """From the same step, at the same noise, to the same end. (LMS there takes the coefficients of evaluations that it has not made.)"""
  config = SD | dict(_class_name=f"{name}Scheduler", timestep_spacing=spacing, skip_prk_steps=True)
  rng = np.random.default_rng(0)
  start, clean = rng.normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
  noise = rng.normal(size=(50, 2, 3, 4, 4)).astype(np.float32)
  wanted = theirs(name, config, 50, start, noise, monkeypatch, strength=strength, clean=clean)
  found = ours(config, 50, start, noise, wanted, strength=strength, clean=clean)
  for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
    assert np.abs(a - b).max() <= 2e-5 * max(1, np.abs(b).max(), np.abs(wanted[step - 1]).max() if step else 15), step


@pytest.mark.parametrize("name", MODULES)
def test_every_option_of_a_class_is_known(name):
  """And what it does when the file does not say."""
  import inspect

  import diffusers
  theirs = {key: value.default for key, value in inspect.signature(getattr(diffusers, f"{name}Scheduler").__init__).parameters.items()
            if key not in ("self", *IDLE)}
  if name.startswith("EDM"):
    assert {key: edm_schedulers.DEFAULTS.get(key, "missing") for key in theirs} == theirs
    return
  ours = DDPM | OPTIONS[f"{name}Scheduler"]
  assert {key: ours.get(key, "missing") for key in theirs} == theirs
  assert set(ours) - set(theirs) <= {"rescale_betas_zero_snr"}               # of the model, whatever samples it


@pytest.mark.parametrize("name, options, steps", REFUSED, ids=str)
def test_what_is_refused_can_not_be_there(name, options, steps, monkeypatch):
  config = SD | dict(_class_name=f"{name}Scheduler") | options
  start = np.ones((1, 1, 1, 1), np.float32)
  try:
    last = theirs(name, config, steps, start, [], monkeypatch)[-1]
  except (IndexError, AssertionError):
    last = np.nan
  assert not np.isfinite(last).all()
  with pytest.raises(ConfigError, match="steps: "):
    plan_of(config, steps=steps)
