"""What configs share. Composition is calling these functions; there is no base config and no inheritance."""
from ml_collections import ConfigDict


class WrongArgument(ValueError):
  """An argument of a config, `FILE.py:ARGUMENT`, that it does not take. `name`: of one that it does not know, `known`: those it does."""

  def __init__(self, message: str, name: str = "", known: tuple[str, ...] = ()):
    super().__init__(message)
    self.name, self.known = name, known


def parse(arg: str, *, apart: tuple[tuple[str, ...], ...] = (), within: dict = {}, **defaults) -> ConfigDict:  # noqa: B006
  """`"tiny,variant=B/16"` -> the defaults with those values; a bare word is True.

  apart: groups of names of which one is given at most, since it decides what the others would. within: name -> another, without which it
  would change nothing. Raises WrongArgument for these, unknown names, bad values, and a name given twice.
  """
  values, said = dict(defaults), []
  for part in filter(None, (arg or "").split(",")):
    name, given, text = part.partition("=")
    if name not in defaults:
      raise WrongArgument(f"unknown config argument {name!r}; known: {', '.join(defaults)}", name, tuple(defaults))
    if name in said:
      raise WrongArgument(f"config argument {name} is given twice")
    kind = type(defaults[name])
    if kind is bool:
      if text.lower() not in ("", "true", "false"):
        raise WrongArgument(f"config argument {name} takes true or false, found {text!r}")
      values[name] = text.lower() != "false"
    elif not given:
      raise WrongArgument(f"config argument {name} needs a value: {name}={defaults[name]}")
    else:
      try:
        values[name] = kind(text)
      except ValueError:
        raise WrongArgument(f"config argument {name} takes {kind.__name__}, found {text!r}") from None
    said += [name] if values[name] is not False else []
  for group in apart:
    if len(both := [name for name in said if name in group]) > 1:
      raise WrongArgument(f"config arguments {' and '.join(both)} don't go together: give one of them")
  for name, other in within.items():
    if name in said and other not in said:
      raise WrongArgument(f"config argument {name} belongs to {other}: give {other},{name}=… or leave it out")
  return ConfigDict(values)


def one_of(name: str, value, known) -> None:
  """Raises WrongArgument for a value of a config argument that is not among those known."""
  if value not in known:
    raise WrongArgument(f"config argument {name} takes {', '.join(map(str, known))}, found {value!r}")


def base(*, steps: int, batch_size: int, seed: int = 0, log_every_steps: int = 50, save_every_steps: int = 1000) -> ConfigDict:
  """The keys that every config has, with the values that most want."""
  return ConfigDict(dict(
    seed=seed, steps=steps, batch_size=batch_size, accumulate=1, precision="highest", log_every_steps=log_every_steps,
    checkpoint=dict(every_steps=save_every_steps, keep=3),
    mesh=dict(data=-1, fsdp=1, tensor=1),
    sharding="auto",
    init=dict(path="", params="", map={}, parts={}), profile=dict(start=0, steps=5),
    freeze=(), ema={}, evals={},
  ), type_safe=False)


def adamw(*, lr: float, warmup_steps: int, weight_decay: float, decay: str = "cosine", b1: float = 0.9, b2: float = 0.999,
          eps: float = 1e-8, clip: float = 0.0, decayed: tuple[str, ...] = ()) -> dict:
  """One AdamW group of `config.optim`: PyTorch's convention, a step takes rate × weight_decay off. `decayed`: patterns, () = kernels and
  embeddings."""
  made = dict(name="adamw", lr=lr, warmup_steps=warmup_steps, decay=decay, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay,
              decay_times="lr", clip=clip)
  return made | (dict(decayed=decayed) if decayed else {})


def scenes(tier: str = "T32", split: str = "train", size: int | None = None) -> dict:
  """The built-in captioned world, or the first `size` records of it; needs no files."""
  return dict(name="scenes", tier=tier, split=split) | ({} if size is None else dict(size=size))


def data(source: dict, *, image_size: int, text_len: int, captions: dict, tokenizer: dict, threads: int = 2, workers: int = 0,
         **more) -> dict:
  """`config.data`: a source and how its records become a batch."""
  return dict(source=source, captions=captions, on_missing="any", tokenizer=tokenizer, image_size=image_size, text_len=text_len,
              resize="crop", interpolation="bicubic", augment=dict(crop=(), flip=False), threads=threads, workers=workers) | more


def small_t2i(*, image_size: int, vocab: int, text_len: int) -> dict:
  """A text-to-image objective for minutes of CPU: three wide blocks on large patches, text by cross-attention, and starts that let words
  and positions speak before pixels. A patch of 8 has 192 values, so a narrower model could not draw all of them."""
  return dict(
    name="diffusion", schedule="flow", prediction="x0", caption_dropout=0.1,
    denoiser=dict(name="dit", variant="tiny", image_size=image_size, width=192, heads=6, text="cross", patch_std=0.02, gate_init=1.0,
                  dtype="float32", remat="none", attention="auto"),
    condition=dict(name="conv_text", vocab=vocab, text_len=text_len, width=128))


def bpe(vocab: int = 512) -> dict:
  """A byte-level BPE that is trained on the source's captions at the first start and kept in the run directory."""
  return dict(name="bpe", vocab=vocab, path="")
