r"""A CoCa base fine-tuned to write short captions of the main subject (DALL·E 3 §2.1: "short synthetic captions").

  mmdiff train --config=configs/coca_short.py:tiny --workdir=runs/coca_short --config.init.path=runs/coca
      from the run of configs/coca.py:tiny, on 2,000 gold captions of scenes T32 (limit=N: of N).
  mmdiff train --config=configs/coca_short.py:variant=ViT-L/14 --workdir=DIR --config.init.path=runs/coca_large \
      --config.data.tokenizer.path=clip_tokenizer/
      at any size of configs/coca.py, from a run of it or a folder of open_clip's, on tars whose captions have the kind `short`.
"""
from configs.coca import fine_tuned


def get_config(arg=""):
  return fine_tuned(arg, "short")
