r"""A CoCa base fine-tuned to write long, descriptive captions (DALL·E 3 §2.1: "descriptive synthetic captions").

  mmdiff train --config=configs/coca_long.py:tiny --workdir=runs/coca_long --config.init.path=runs/coca
      2,000 gold captions of scenes T32, where it is not good yet: 0.67 of the facts that it says are true, 0.70 of those to be said are
      said, and it does not tell stripes from checks. With tier=T16, after 250 steps of its base: of new pictures 0.99 of the facts that
      it says are true and it says 0.99 of those to be said; 4 % of its captions have a false one (0.93, 0.94 and 25 % on pairs of shape
      and colour that no picture of its training shows).
"""
from configs import common
from configs.coca import fine_tuned


def get_config(arg=""):
  arg = common.parse(arg, tiny=False, tier="T32", init="runs/coca", limit=2_000)
  return fine_tuned("long", arg.tier, arg.init, arg.limit)
