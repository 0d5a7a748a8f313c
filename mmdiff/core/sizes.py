"""Sizes that must move together: a model's pictures, texts and vocabulary, and those of its data.

JAX clamps a lookup beyond a table without a word, and a model of 224 pixels on pictures of 256 fails after the data are read. What a block
of a config leaves to its preset is read from the preset's literal tables, as `signatures` reads everything: the row of `variant`, before
it the tables that the row's true flags name (`siglip=True`: `SIGLIP`), before these `DEFAULTS`.
"""
from collections.abc import Iterator, Mapping
from typing import Any

from mmdiff.core import schema
from mmdiff.core.signatures import definition, fields, literal, table


def preset(spec: str, variant: str) -> dict[str, Any]:
  """What the module of a factory says of a variant; {} where its presets are no mappings. None stands for what is no literal."""
  module = spec.partition(":")[0]
  annotation = fields(spec)["variant"].annotation
  named = literal(getattr(annotation, "slice", None))
  row = table(named if ":" in named else f"{module}:{named}").get(variant) if isinstance(named, str) else None
  if not isinstance(row, dict):
    return {}
  own = lambda name: table(f"{module}:{name}") if definition(name, module) else {}
  made = dict(own("DEFAULTS"))
  for flag, value in row.items():
    made |= own(flag.upper()) if value is True else {}
  return made | row


def blocks(config: Mapping) -> dict[str, dict[str, Any]]:
  """{dotted path: its keys, with the preset's where they are None} of the objective and every block in it."""
  found = {}
  for path, field, value in schema.walk(config):
    block = schema.block_of(field)
    if path.split(".")[0] == "objective" and block and block.table and isinstance(value, Mapping):
      spec = table(block.table)[value["name"]]
      given = {key: inner for key, inner in value.items() if inner is not None}
      found[path] = (preset(spec, value["variant"]) if "variant" in value else {}) | given
  return found


def problems(config: Mapping) -> Iterator[tuple[str, str]]:
  """(dotted key, what does not go together) of a checked and completed config."""
  data, found = config["data"], blocks(config)
  number = lambda value: isinstance(value, int)
  vocab, side, text_len = data["tokenizer"].get("vocab"), data["image_size"], data["text_len"]
  encoder = found.get("objective.encode")
  for path, block in found.items():
    if number(block.get("vocab")) and number(vocab) and not data["tokenizer"].get("path") and block["vocab"] < vocab:
      yield f"{path}.vocab", f"{block['vocab']} entries for the {vocab} tokens of data.tokenizer.vocab"
    if number(block.get("text_len")) and block["text_len"] < text_len:
      yield f"{path}.text_len", f"{block['text_len']} is shorter than the captions of data.text_len {text_len}"
    size, patch = block.get("image_size"), block.get("patch")
    if not isinstance(size, int):
      continue
    reduced = factor(encoder) if path == "objective.denoiser" and encoder else 1
    if reduced == 1 and size != side:
      yield f"{path}.image_size", f"{size}, but the pictures of data.image_size are {side}"
    elif side % reduced:
      yield "data.image_size", f"{side} does not divide by {reduced}, the pixels of a latent's side (objective.encode)"
    elif size * reduced != side:
      yield f"{path}.image_size", (f"{size}, but the latents of data.image_size {side} are {side // reduced}: the autoencoder makes one of "
                                   f"{reduced} pixels")
    if isinstance(patch, int) and patch > 0 and size % patch:
      yield f"{path}.patch", f"image_size {size} does not divide into patches of {patch}"


def factor(autoencoder: Mapping[str, Any]) -> int:
  """A picture's side by its latent's; 1 where the block does not say."""
  widths = autoencoder.get("widths")
  return int(autoencoder.get("patch") or 1) * 2 ** (len(widths) - 1) if widths and len(widths) <= 16 else 1
