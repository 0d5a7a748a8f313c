"""The one interface between a training problem and everything else.

An objective is to the train step what an optax transformation is to an update: a NamedTuple of pure functions. The step, the loop,
the evaluators and the commands know this file and no particular objective.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmdiff.core.types import Array, Batch, Key, Tree


class Variables(NamedTuple):
  """What `Objective.init` makes."""
  params: Tree                # differentiated, unless `config.freeze` says otherwise
  extra: Tree = ()            # non-gradient state that the loss rewrites: queues, codebook averages, batch statistics


class Context(NamedTuple):
  """What a loss may read but not differentiate."""
  extra: Tree
  ema: Mapping[str, Tree]     # name -> full parameter tree, as of the previous step
  step: Array                 # int32 []
  key: Array                  # fresh for this step
  microbatches: int = 1       # > 1: an objective that couples the batch runs its towers over this many chunks (`in_chunks`)


class Aux(NamedTuple):
  """What a loss returns beside its scalar."""
  metrics: Mapping[str, Array]        # name -> float32 []
  extra: Tree = ()                    # the new `Variables.extra`


class Objective(NamedTuple):
  """A training problem.

  `couples_batch` says that the loss is not a mean over examples (contrastive losses). The step accumulates gradients of a mean by
  itself; a coupled loss receives `context.microbatches` and chunks its towers, so that accumulation keeps every negative. `statistics`
  says that `extra` describes activations, such as batch statistics: an average of the parameters then has an average of it, too. `given`
  names parameter groups that `init` reads from files, so that they may be frozen as they are.

  `project` takes parameters that an update has moved (None where one is frozen) back to where they are allowed: limits that hold after
  every step, whatever the optimiser.
  """
  init: Callable[[Key, Batch], Variables]
  loss: Callable[[Tree, Context, Batch], tuple[Array, Aux]]
  predict: Mapping[str, Callable[..., Tree]]      # all that evaluators and samplers may call
  couples_batch: bool = False
  statistics: bool = False
  given: tuple[str, ...] = ()
  project: Callable[[Tree], Tree] = lambda params: params


def split_chunks(x: Array, chunks: int) -> Array:
  """[B …] -> [chunks, B/chunks, …] by strides, so that rows stay on the device that holds them."""
  if x.shape[0] % chunks:
    raise ValueError(f"a batch of {x.shape[0]} does not divide into {chunks} equal microbatches")
  return jnp.swapaxes(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1)


def join_chunks(x: Array) -> Array:
  """The inverse of `split_chunks`."""
  return jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def in_chunks(fn: Callable[[Tree], Tree], batch: Tree, chunks: int) -> Tree:
  """`fn(batch)` with the activations of one chunk alive at a time, in the forward and in the backward pass.

  `fn` maps arrays [b …] to arrays [b …], row by row. The backward pass recomputes each chunk (Gao et al. 2021, GradCache,
  https://arxiv.org/abs/2101.06983), so values and gradients are those of the whole batch for one more forward pass of work.
  """
  if chunks == 1:
    return fn(batch)
  chunked = jax.tree.map(lambda x: split_chunks(x, chunks), batch)
  return jax.tree.map(join_chunks, jax.lax.map(jax.checkpoint(fn), chunked))
