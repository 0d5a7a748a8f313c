"""The keys of every config: the one description that files, flags, `mmdiff doctor` and the docs share. Nothing here runs."""
from collections.abc import Mapping
from typing import Literal

from mmdiff.core.build import Built


class Checkpoint:
  every_steps: int                      # a save also happens at the last step and on SIGTERM
  keep: int = 3                         # newest checkpoints kept


class Mesh:
  data: int = -1                        # -1: all devices that the other axes leave
  fsdp: int = 1                         # parameters are sharded over it, the batch too
  tensor: int = 1                       # heads and MLP widths are sharded over it


class Augment:
  crop: tuple[float, ...] = ()          # (min area, max area) of a random square-ish crop; () = none
  flip: bool = False                    # mirror with probability one half; wrong for captions that say left or right
  sentences: bool = False               # those after a caption's first in another order every epoch
  position: Literal["centre", "random"] = "centre"     # of the crop to a bucket of data.buckets


class Data:
  source: Built["mmdiff.data:SOURCES"]
  captions: Mapping[str, float]         # caption kind -> share; one kind is drawn per example and epoch
  on_missing: Literal["error", "original", "any", "replace"] = "any"   # when a record lacks the kind drawn
  tokenizer: Built["mmdiff.data:TOKENIZERS"]
  image_size: int                       # pictures come out square, [image_size image_size 3] uint8, unless there are buckets
  buckets: tuple[str, ...] = ()         # multi-aspect training: "HEIGHTxWIDTH", …, or ("step=64", "ratio=4"): all near image_size² pixels
  text_len: int
  resize: Literal["crop", "squash", "pad"] = "crop"    # shorter side then centre crop, both sides, or longer side then pad
  interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
  augment: Augment | None = None
  held_out: float = 0.0                 # share of the records, by key, that training leaves to evaluators: their source `held_out`
  sidecar: str = ""                     # captions joined by record key: a file of {"key", kind: caption, …} lines, or a folder of
                                        # `mmdiff caption`; several with commas between
  features: str = ""                    # folder of `mmdiff data precompute`: latents and text states in place of pictures
  max_pixels: int = 89_478_485          # a larger picture is refused from its header
  max_decode_bytes: int = 1_073_741_824  # of memory; a picture that would take more while it is decoded is refused likewise
  max_bad_fraction: float = 0.1         # of the records seen so far; beyond it training stops (exit 65)
  threads: int = 2                      # reading threads per process
  workers: int = 0                      # reading processes per process


class Profile:
  start: int = 0                        # first step of a trace for TensorBoard's or Perfetto's viewers, in profile/; 0 = none
  steps: int = 5                        # traced


class Init:
  path: str = ""                        # run directory, DIR or DIR@STEP, or a public checkpoint; its tokenizer is used, too; "" = none
  params: str = ""                      # raw, or an average; "" = eval where there is one, else raw
  map: Mapping[str, str] = {}           # path here -> path there, by their beginnings; "" starts fresh. See `train.init`
  parts: Mapping[str, str] = {}         # path here -> run or public checkpoint of its own, e.g. dict(text="sd/text_encoder")
  differs: tuple[str, ...] = ()         # facts that are meant to be others than the source's, e.g. ("denoiser/prediction",)


class Experiment:
  seed: int
  steps: int
  batch_size: int                       # global
  accumulate: int = 1                   # microbatches a step; exact for every objective
  log_every_steps: int
  precision: Literal["default", "high", "highest"] = "highest"   # of float32 products: "default" is TF32 on GPUs, bfloat16 on TPUs;
                                        # "high" three passes of bfloat16 on TPUs; "highest" float32. Models of dtype bfloat16 don't care
  max_bad_steps: int = 20               # updates in a row refused as not finite before training gives up (exit 70)
  checkpoint: Checkpoint
  mesh: Mesh
  sharding: Literal["auto", "replicated"] = "auto"     # "auto": the one table of `parallel.RULES`
  objective: Built["mmdiff.objectives:OBJECTIVES"]
  data: Data
  optim: Mapping[str, Built["mmdiff.optim:OPTIMIZERS"]]   # top-level parameter group -> optimiser; `default` takes the rest
  init: Init | None = None              # another run's weights to start from; a run that goes on ignores it
  freeze: tuple[str, ...] = ()          # path patterns, e.g. ("image/.*",)
  ema: Mapping[str, float] = {}         # name -> decay, e.g. dict(eval=0.999)
  ema_warmup: bool = True               # an average's decay after t updates is at most (1 + t) / (10 + t); False: the decay from the start
  evals: Mapping[str, Built["mmdiff.evaluators:EVALUATORS"]] = {}
  trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)   # see `train.trackers`
  profile: Profile | None = None        # None: no trace
