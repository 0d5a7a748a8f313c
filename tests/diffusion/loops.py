"""The loop of `samplers.sample` in numpy, for whole products of plans at a thousand steps: no noise is drawn."""
import numpy as np

from mmdiff.diffusion.plans import COLUMN, MEMORY

SPREAD = 0.6
OLDER = [COLUMN[f"on_m{age}"] for age in range(1, MEMORY + 1)]
ORDER = [COLUMN[name] for name in ("alpha", "sigma", "on_x", "on_d", "keep_x", "keep_d")]


def gaussian(x, alpha, sigma):
  """What is expected of data N(0, SPREAD²)."""
  return x * (alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2))


def run(plan, start, denoise=gaussian):
  """float32 [n] of unit noise -> what the plan makes of it, in float32 as on the device."""
  x, memory = np.float32(plan.start_scale) * np.asarray(start, np.float32), np.zeros((MEMORY, len(start)), np.float32)
  for row in plan.table[:plan.rows]:
    alpha, sigma, on_x, on_d, keep_x, keep_d = row[ORDER]
    d = denoise(x, alpha, sigma)
    new = on_x * x + on_d * d + row[OLDER] @ memory
    memory[1:] = memory[:-1]
    memory[0] = keep_x * x + keep_d * d
    x = new
  return x
