"""Whether two models compute the same: one pass over random inputs through each. Equal parameters are not enough: which layer of a text
encoder is read, heads, activations and scales are no parameters."""
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmdiff.core import tree
from mmdiff.core.precision import USUAL
from mmdiff.data import tokenizers
from mmdiff.data.token_facts import Like
from mmdiff.models.autoencoder import Autoencoder

LARGER = 2                # than the smallest inputs that a model takes
LENGTH = 77
TEXTS = ("a photo of a cat", "A Photo, of 3 CATS!  (it's  odd)", "Straße – 猫 🐈 é", "", "again and " * 60)


def difference(first: tuple[nn.Module, Any, Any], second: tuple[nn.Module, Any, Any], inputs: tuple, *, seed: int = 0) -> float:
  """The largest difference of any output, relative to the largest output of its kind.

  first, second: (module, parameters, batch statistics or ()). inputs: abstract arguments; pictures, tokens and numbers are drawn, masks
  are true up to a drawn length.
  """
  args = random_inputs(inputs, first[1], rows=2, seed=seed)
  with_statistics = lambda statistics: {"batch_stats": statistics} if jax.tree.leaves(statistics) else {}
  made = [jax.tree.leaves(outputs(module, {"params": params} | with_statistics(more), args)) for module, params, more in (first, second)]
  return worst(*made)


def outputs(module: nn.Module, variables: Mapping[str, Any], args: tuple) -> Any:
  """What a model computes. An autoencoder is asked for both of its ways, with the scale of its latents, which its parameters don't say."""
  run = lambda method, *given: applied(module, method, variables, given)
  with jax.default_matmul_precision(USUAL):
    if not isinstance(module, Autoencoder):
      return run("__call__", *args)
    mean, std = run("encode", *args)
    return mean, std, run("decode", np.random.default_rng(1).normal(size=mean.shape).astype(np.float32))


def pipelines(first: Any, second: Any, *, dtype: str = "float32") -> tuple[dict[str, float], dict[str, tuple[Any, Any]]]:
  """What two `pipelines.Pipeline` of one model compute, and what is said of how they are used.

  dtype: in which the second was written: the first's values are rounded to it, so that what is left is not rounding.

  Returns ({part: the largest difference of any output that the pipeline reads, relative to the largest}, {fact: (first's, second's)} of
  facts that differ). Denoisers run on few latents and the autoencoder, both ways, on a small picture: they are convolutional.
  """
  worse, told = dict[str, float](), dict[str, tuple[Any, Any]]()
  pooled = bool(getattr(getattr(first.parts.get("denoiser"), "module", None), "sizes", 0))
  for group in dict.fromkeys([*first.parts, *second.parts]):
    a, b = first.parts.get(group), second.parts.get(group)
    kinds = tuple("nothing" if part is None else type(part.module).__name__ for part in (a, b))
    if kinds[0] != kinds[1]:
      told[group] = kinds
      continue
    inputs = jax.tree.map(larger, b.inputs)
    worse[group] = worst(*(read_of(part, inputs, dtype=dtype, pooled=pooled and group != "text/first") for part in (a, b)))
  for name, of in dict(scheduler=lambda one: one.scheduler, low_res_scheduler=lambda one: dict(one.small), zeros=lambda one: one.zeros,
                       image_size=lambda one: one.parts["denoiser"].module.image_size if "denoiser" in one.parts else None).items():
    pair = tuple(json.loads(json.dumps(of(one))) for one in (first, second))
    told |= {} if pair[0] == pair[1] else {name: pair}
  return worse, told | tokens(first, second)


def tokens(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
  """{tokenizer: (ids, ids)} of the first text that the tokenizers of two pipelines read differently. A single file has none."""
  if first.tokenizer is None or second.tokenizer is None:
    return {}
  told = {}
  for name in ("tokenizer", "tokenizer_2") if second.format == "diffusers" else ("",):
    folders = [one.tokenizer.with_name(name) if name and one.format == "diffusers" else one.tokenizer for one in (first, second)]
    if not tokenizers.vocabulary(folders[1]):
      continue
    folders = [folder if tokenizers.vocabulary(folder) else one.tokenizer for folder, one in zip(folders, (first, second))]
    read = [tokenizers.of_folder(folder, Like("CLIPTokenizer")) for folder in folders]
    ids = [[[int(i) for i in row[own]] for row, own in zip(*words.batch(TEXTS, LENGTH))] for words in read]
    told |= next(({name or "tokenizer": (a, b)} for a, b in zip(*ids) if a != b), {})
  return told


def larger(like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """Pictures and latents of `LARGER` times the sides: over a single position, attention computes the same whatever its keys are."""
  batch, *sides = like.shape
  return jax.ShapeDtypeStruct((batch, *(LARGER * side for side in sides[:2]), *sides[2:]), like.dtype) if len(sides) == 3 else like


@functools.partial(jax.jit, static_argnums=(0, 1))
def applied(module: nn.Module, method: str, variables: Mapping[str, Any], given: tuple) -> Any:
  """Compiled once for two models that are the same but for their values."""
  return module.apply(variables, *given, method=method)


def read_of(part: Any, inputs: tuple, *, dtype: str, pooled: bool) -> list[Any]:
  """What a pipeline reads of one of its parts, in float32, of values rounded to `dtype`: of a text encoder its states, and `pooled` where
  that counts."""
  params = jax.tree.map(lambda leaf: np.asarray(np.asarray(leaf, np.float32).astype(jnp.dtype(dtype)), np.float32), part.params)
  made = outputs(part.module.clone(dtype=jnp.float32), {"params": params}, random_inputs(inputs, params, rows=2, seed=0))
  return [made["tokens"], *([made["pooled"]] if pooled else [])] if isinstance(made, Mapping) else jax.tree.leaves(made)


def worst(first: Sequence[Any], second: Sequence[Any]) -> float:
  """The largest difference of any array, relative to the largest value of its kind; infinite where one is missing or of another shape."""
  if len(first) != len(second):
    return float("inf")
  largest = 0.0
  for a, b in zip(first, second):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    found = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) if a.shape == b.shape and a.size else float("inf")
    largest = max(largest, found if np.isfinite(found) else float("inf"))
  return largest


def random_inputs(inputs: tuple, params: Any, *, rows: int, seed: int) -> tuple:
  """Arrays for abstract arguments with one row; tokens are drawn from the smallest embedding of `params`."""
  rng = np.random.default_rng(seed)
  words = min((leaf.shape[0] for path, leaf in zip(tree.paths(params), jax.tree.leaves(params)) if path.endswith("embedding")), default=2)

  def draw(like):
    shape = (rows, *like.shape[1:])
    if like.dtype == jnp.bool_:
      return np.arange(shape[1])[None] < rng.integers(2, shape[1] + 1, (rows, 1))
    if like.dtype == jnp.uint8:
      return rng.integers(0, 256, shape, dtype=np.uint8)
    if jnp.issubdtype(like.dtype, jnp.integer):
      return rng.integers(0, words, shape, dtype=np.int32)
    return rng.normal(size=shape).astype(np.float32)
  return jax.tree.map(draw, inputs)
