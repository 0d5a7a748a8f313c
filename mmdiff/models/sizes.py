"""Which denoisers are told how a picture was scaled and cropped (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.2)."""
from collections.abc import Mapping
from typing import Any

from mmdiff.core.build import build
from mmdiff.models import DENOISERS


def reads_sizes(config: Mapping[str, Any]) -> bool:
  """Whether a run's data must bring `size` for each record: its denoiser has the numbers among its inputs."""
  denoiser = (config.get("objective") or {}).get("denoiser")
  return isinstance(denoiser, Mapping) and bool(getattr(build(DENOISERS, denoiser), "sizes", 0))
