"""What others call our samplers: k-diffusion (`sample_dpmpp_2m`), the web UI ("DPM++ 2M Karras") and diffusers' classes.

Names are compared by their letters and digits, "++" as "pp". A name whose method or spacing is not here ("DPM++ SDE", "Euler Karras") is
refused with the nearest of ours: another sampler draws another picture.
"""
import re
from collections.abc import Sequence

from mmdiff.core.errors import ConfigError
from mmdiff.core.spelling import nearest, shown

# Ours -> theirs. Our own names need no line, nor do k-diffusion's `sample_NAME` and `k_NAME`, or diffusers' `NAMEScheduler`.
SPELLINGS = {
  "lms": ("LMS Discrete",),
  "euler": ("Euler Discrete",),
  "euler_ancestral": ("Euler a", "Euler Ancestral Discrete"),
  "heun": ("Heun Discrete",),
  "dpm++2m": ("DPM Solver Multistep", "DPM-Solver++", "DPM Solver++ 2M"),
  "dpm++2m_karras": ("DPM++ 2M k", "DPM Solver Multistep Karras"),
  "unipc": ("UniPC Multistep",),
}


def key(name: str) -> str:
  """"DPM++ 2M Karras", "dpmpp_2m_karras" -> "dpmpp2mkarras"; without what k-diffusion and diffusers put around a name."""
  bare = re.sub("[^a-z0-9]", "", name.lower().replace("++", "pp"))
  return re.sub("^(sample|k(?!arras))|scheduler$", "", bare)


def named(name: str, known: Sequence[str]) -> str:
  """The one of `known`, names of ours, that a name stands for. Raises ConfigError with the nearest."""
  spelt = {key(other): ours for ours in known for other in (*SPELLINGS.get(ours, ()), ours)}
  if isinstance(name, str) and key(name) in spelt:
    return spelt[key(name)]
  guess = nearest(key(name), spelt) if isinstance(name, str) else None
  raise ConfigError(f"sampler: unknown value {shown(name)}; known: {', '.join(known)}, also as k-diffusion, the web UI and diffusers spell "
                    "them" + (f"; did you mean {spelt[guess]}?" if guess else ""))
