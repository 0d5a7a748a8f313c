r"""A CoCa base fine-tuned to write long, descriptive captions (DALL·E 3 §2.1: "descriptive synthetic captions").

  mmdiff train --config=configs/coca_long.py:tiny --workdir=runs/coca_long --config.init.path=runs/coca
      2,000 gold captions of scenes T32, a quarter of an hour on a CPU core. Of 500 new pictures 0.979 of the facts that it says are true
      and it says 0.985 of those to be said; 7 % of its captions have a false one (0.917, 0.927 and 31 % on pairs of shape and colour that
      no picture of its training shows). In the captions' own order of sentences our best run had 0.8: it learnt that order by heart.
      With tier=T16, after 250 steps of its base: 0.99 and 0.99, 4 % (0.93, 0.94 and 25 %).
  mmdiff train --config=configs/coca_long.py:variant=ViT-L/14 --workdir=DIR --config.init.path=runs/coca_large \
      --config.data.tokenizer.path=clip_tokenizer/
      at any size of configs/coca.py, from a run of it or a folder of open_clip's, on tars whose captions have the kind `long`; what is
      beyond the model's 76 tokens is cut. Not run here.
"""
from configs.coca import fine_tuned


def get_config(arg=""):
  return fine_tuned(arg, "long")
