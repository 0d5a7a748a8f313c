r"""A CoCa base fine-tuned to write short captions of the main subject (DALL·E 3 §2.1: "short synthetic captions").

  mmdiff train --config=configs/coca_short.py:tiny --workdir=runs/coca_short --config.init.path=runs/coca
      from the run of configs/coca.py:tiny, on 2,000 gold captions of scenes T32.
"""
from configs import common
from configs.coca import fine_tuned


def get_config(arg=""):
  arg = common.parse(arg, tiny=False, tier="T32", init="runs/coca", limit=2_000)
  return fine_tuned("short", arg.tier, arg.init, arg.limit)
