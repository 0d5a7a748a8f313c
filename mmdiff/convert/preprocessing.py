"""How a picture becomes the model's pixels, as public files say it: transformers' preprocessor_config.json or processor_config.json, and
open_clip's preprocess_cfg. Both ways.

Reading gives the normalisation (keys of `models.clip.clip`: of pixels in [0, 1]) and the resize (keys of a run's data). Scales and shifts
of any kind are folded into mean and std; what a picture would have to go through that we do not do is refused by its name.
"""
from collections.abc import Mapping, Sequence
from typing import Any

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.models.clip import PIXELS

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
RESIZE_MODES = {"shortest": "crop", "longest": "pad", "squash": "squash"}
HALF = PIXELS["half"]
# transformers' image processors, without "Fast" and "Pil": what they do where the file says nothing.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
  "CLIPImageProcessor": dict(image_mean=PIXELS["clip"][0], image_std=PIXELS["clip"][1], resample=3, do_center_crop=True, do_normalize=True,
                             size=dict(shortest_edge=224), crop_size=224),
  "SiglipImageProcessor": dict(image_mean=HALF[0], image_std=HALF[1], resample=3, do_center_crop=False, do_normalize=True,
                               size=dict(height=224, width=224)),
  "ViTImageProcessor": dict(image_mean=HALF[0], image_std=HALF[1], resample=2, do_center_crop=False, do_normalize=True, size=224,
                            default_to_square=True),
}
SAME = {"CLIPFeatureExtractor": "CLIPImageProcessor", "ViTFeatureExtractor": "ViTImageProcessor"}
# Keys that change no pixel of a picture in RGB, or no pixel at all.
INERT = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "data_format", "input_data_format", "device",
         "return_tensors", "disable_grouping", "default_to_square", "image_seq_length", "transformers_version", "rescale_factor",
         "image_mean", "image_std", "crop_size", "size", "resample", "do_convert_rgb", "do_resize", "do_rescale", "do_normalize",
         "do_center_crop", "crop_pct", "use_square_size", "pad_size", "return_metadata")
NORMALISED = tuple[dict[str, Any], dict[str, Any], list[str]]


def hf(config: Mapping[str, Any], *, image_size: int, siglip: bool = False) -> NORMALISED:
  """(keys of `clip`, data settings, notices) of an image processor's config; nothing is known without one.

  image_size: what the model was trained for. Raises DataError.
  """
  if not config:
    return {}, {}, []
  where = "preprocessor_config.json"
  said = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
  kind = said.removesuffix("Fast").removesuffix("Pil")
  kind = SAME.get(kind, kind) or ("SiglipImageProcessor" if siglip else "CLIPImageProcessor")
  if kind not in PROCESSORS:
    raise DataError(f"{where}: image_processor_type: {said!r:.60} is not read (known: {', '.join(PROCESSORS)})")
  full = {**PROCESSORS[kind], **{key: value for key, value in config.items() if value is not None}}
  odd = [f"{key} {value!r:.40}" for key, value in config.items() if key not in INERT and value not in (None, False)]
  if odd:
    raise DataError(f"{where}: {', '.join(odd)}: pictures are not treated like that here")
  if full.get("do_resize", True) is not True:
    raise DataError(f"{where}: do_resize: false: pictures of any size are resized to the model's here; make it true, with a size")
  if full.get("crop_pct") not in (None, 1, 1.0):
    raise DataError(f"{where}: crop_pct: {full['crop_pct']!r:.40}: pictures are resized to the size that is cropped")
  if full["resample"] not in RESAMPLING:
    raise DataError(f"{where}: resample: unknown value {full['resample']!r:.40} (known: {RESAMPLING})")
  resize, notices = _resize(full, where, image_size)
  if config.get("do_convert_rgb") is False:
    notices.append(f"{where}: do_convert_rgb is false; pictures of other modes are made RGB all the same")
  return _pixels(full, where), dict(resize=resize, interpolation=RESAMPLING[full["resample"]]), notices


def _resize(config: Mapping[str, Any], where: str, image_size: int) -> tuple[str, list[str]]:
  size, crops, notices = config["size"], config["do_center_crop"], []
  if isinstance(size, int):               # a number is one side for transformers, but where a processor makes squares of it
    size = dict(height=size, width=size) if config.get("default_to_square") and not crops else dict(shortest_edge=size)
  crop = config.get("crop_size", size)
  crop = dict(height=crop, width=crop) if isinstance(crop, int) else crop
  if not isinstance(size, Mapping) or crops and not isinstance(crop, Mapping):
    raise DataError(f"{where}: size, crop_size: expected a number or an object, found {size!r:.60}, {crop!r:.60}")
  sides = {key: value for key, value in size.items() if value}
  edges = {*sides.values(), *(value for key, value in crop.items() if crops and key in ("height", "width"))}
  if set(sides) not in ({"shortest_edge"}, {"height", "width"}) or not all(isinstance(edge, int) for edge in edges):
    raise DataError(f"{where}: size: expected height and width, or shortest_edge, found {size!r:.60}")
  if len(edges) != 1:
    raise DataError(f"{where}: size {size!r:.60} and crop_size {crop!r:.60}: pictures are resized to the square that is cropped")
  if edges != {image_size}:
    notices.append(f"{where}: pictures are resized to the model's {image_size} pixels, not to {edges.pop()}")
  if "shortest_edge" in sides and not crops:
    notices.append(f"{where}: the shorter side is resized and nothing cropped, which no model of square pictures takes: pictures are "
                   "squashed to squares")
  return "crop" if "shortest_edge" in sides and crops else "squash", notices


def _pixels(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """mean and std of pixels in [0, 1] for (pixels · 255 · rescale_factor − image_mean) / image_std, of which both halves may be off."""
  three = lambda value: [float(value)] * 3 if isinstance(value, (int, float)) else value
  mean, std = (three(config[key]) if config["do_normalize"] else [fill] * 3 for key, fill in (("image_mean", 0.0), ("image_std", 1.0)))
  for key, value in (("image_mean", mean), ("image_std", std)):
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(x, (int, float)) for x in value):
      raise DataError(f"{where}: {key}: expected three numbers, found {value!r:.60}")
  factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
  if not isinstance(factor, (int, float)) or not factor > 0 or min(std) <= 0:
    raise DataError(f"{where}: rescale_factor and image_std: expected positive numbers, found {factor!r:.40}, {std!r:.60}")
  scale = 255 * factor
  return options(mean, std) if abs(scale - 1) < 1e-6 else options([x / scale for x in mean], [x / scale for x in std])


def open_clip(shown: Mapping[str, Any], where: str, *, image_size: int) -> NORMALISED:
  """The same of a preprocess_cfg (open_clip/transform.py, PreprocessCfg), whose defaults are OpenAI's. Raises DataError."""
  known = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
  if odd := [f"{key} {value!r:.40}" for key, value in shown.items() if key not in known and value]:
    raise DataError(f"{where}: preprocess_cfg: {', '.join(odd)}: pictures are not treated like that here")
  mode, interpolation = shown.get("resize_mode") or "shortest", shown.get("interpolation") or "bicubic"
  if mode not in RESIZE_MODES or interpolation not in ("random", *RESAMPLING.values()):
    raise DataError(f"{where}: preprocess_cfg: unknown resize_mode or interpolation: {mode!r:.40}, {interpolation!r:.40}")
  if mode == "longest" and shown.get("fill_color"):
    raise DataError(f"{where}: preprocess_cfg: fill_color: {shown['fill_color']!r:.40}; what is padded is black here")
  if shown.get("mode", "RGB") != "RGB":
    raise DataError(f"{where}: preprocess_cfg: mode: {shown['mode']!r:.40}; pictures are RGB")
  size = shown.get("size") or image_size
  notices = [f"{where}: preprocess_cfg: pictures are resized to the model's {image_size} pixels, not to {size!r:.40}"] * bool(
    {*(size if isinstance(size, (list, tuple)) else (size,))} - {image_size})
  three = lambda value: [float(value)] * 3 if isinstance(value, (int, float)) else value
  mean, std = three(shown.get("mean") or PIXELS["clip"][0]), three(shown.get("std") or PIXELS["clip"][1])
  data = dict(resize=RESIZE_MODES[mode], interpolation="bicubic" if interpolation == "random" else interpolation)     # random: in training
  return options(mean, std), data, notices


def options(mean: Any, std: Any) -> dict[str, Any]:
  """The keys of `clip` for a normalisation of pixels in [0, 1]."""
  close = lambda a, b: len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b))
  name = next((name for name, (a, b) in PIXELS.items() if close(a, mean) and close(b, std)), None)
  return dict(pixels=name) if name else dict(mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def to_hf(size: int, mean, std, data: Mapping[str, Any], *, siglip: bool) -> dict[str, Any]:
  """preprocessor_config.json. Raises ConfigError for a resize that transformers' processors do not do."""
  resize = data.get("resize", "crop")
  if resize == "pad":
    raise ConfigError("transformers' processors of CLIP and SigLIP can't pad: data.resize must be crop or squash")
  resample = next(code for code, name in RESAMPLING.items() if name == data.get("interpolation", "bicubic"))
  square = dict(height=size, width=size)
  crop = dict(crop_size=square, do_center_crop=True, size=dict(shortest_edge=size)) if resize == "crop" else dict(
    do_center_crop=False, size=square)
  return dict(image_processor_type="SiglipImageProcessor" if siglip else "CLIPImageProcessor", do_convert_rgb=True, do_normalize=True,
              do_rescale=True, do_resize=True, image_mean=list(mean), image_std=list(std), resample=resample,
              rescale_factor=1 / 255) | crop


def to_open_clip(mean, std, data: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
  """preprocess_cfg, with what it was before. Raises ConfigError for an interpolation that open_clip does not know."""
  interpolation = data.get("interpolation", "bicubic")
  if interpolation not in ("bicubic", "bilinear"):
    raise ConfigError(f"open_clip resizes bicubic or bilinear: data.interpolation is {interpolation!r}")
  mode = {value: key for key, value in RESIZE_MODES.items()}[data.get("resize", "crop")]
  return {**before, **dict(mean=list(mean), std=list(std), interpolation=interpolation, resize_mode=mode)}
