"""Decoding with any step function under one `lax.while_loop`: greedy, sampling (top-k, nucleus) and beam search.

  step(tokens int32 [R], position int32 [], cache) -> (logits float32 [R V], cache)

`cache` is any tree of arrays [R …] with static shapes, such as `nn.attention.KeysValues`; whatever else a step needs it closes over.
A row's result depends on its own start, seed and cache alone: rows that have ended emit padding while others go on, and every draw is
keyed by (seed, position). Nucleus sampling: Holtzman et al. 2019 (https://arxiv.org/abs/1904.09751); repetition penalty: Keskar et al. 2019
(https://arxiv.org/abs/1909.05858, §4.1).
"""
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array, Tree

Step = Callable[[Array, Array, Tree], tuple[Array, Tree]]
BANNED = -1e9                                # of logits: finite, so that a row with nothing left is uniform and not NaN


class Settings(struct.PyTreeNode):
  """What `settings` makes. Values are traced; None switches a rule off, and the fields that decide shapes are static."""
  start: Array
  end: Array
  pad: Array
  min_len: Array | None
  repetition_penalty: Array | None
  no_repeat_ngram: Array | None
  temperature: Array | None
  top_k: Array | None
  top_p: Array | None
  length_penalty: Array | None
  method: str = struct.field(pytree_node=False)
  max_len: int = struct.field(pytree_node=False)
  beams: int = struct.field(pytree_node=False)


class Decoded(NamedTuple):
  """tokens [B L]: what was written after the start token, the end token included, then padding. lengths [B]: tokens before the padding.
  A row whose last token is not the end token was cut off at `max_len`."""
  tokens: Int[Array, "B L"]
  lengths: Int[Array, " B"]


def settings(*, start: int, end: int, pad: int = 0, method: Literal["greedy", "sample", "beam"] = "greedy", max_len: int = 64,
             min_len: int = 0, beams: int = 4, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             repetition_penalty: float = 1.0, no_repeat_ngram: int = 0, length_penalty: float = 1.0) -> Settings:
  """Checked settings. Raises ConfigError that lists every wrong value.

  Args:
    start, end, pad: token ids.
    method: the most likely token, a drawn one, or the best of `beams` hypotheses.
    max_len: most tokens, the end token included.
    min_len: fewest tokens before the end token.
    beams: hypotheses kept by `beam`.
    temperature, top_k, top_p: of `sample`: logits are divided, then only the k best and then the smallest set with that probability
      stay. 0 and 1 are off.
    repetition_penalty: logits of tokens already written are divided by it if positive, else multiplied. 1 is off.
    no_repeat_ngram: no such number of tokens in a row occurs twice. 0 is off.
    length_penalty: a hypothesis of `beam` counts its log-probability / (its tokens ** this).
  """
  counts = dict(max_len=(max_len, 1), min_len=(min_len, 0), beams=(beams, 1), top_k=(top_k, 0), no_repeat_ngram=(no_repeat_ngram, 0),
                length_penalty=(length_penalty, 0))
  wrong = [f"{name}: expected at least {least}, found {value}" for name, (value, least) in counts.items() if not value >= least]
  wrong += [f"{name}: expected more than 0, found {value}" for name, value in
            dict(temperature=temperature, repetition_penalty=repetition_penalty).items() if not value > 0]
  wrong += [f"top_p: expected more than 0 and at most 1, found {top_p}"] * (not 0 < top_p <= 1)
  wrong += [f"method: unknown value {method!r}; known: {', '.join(METHODS)}"] * (method not in METHODS)
  wrong += [f"min_len: {min_len} does not fit max_len {max_len}"] * (max_len >= 1 and min_len >= max_len)
  sampling = [name for name, value, off in (("temperature", temperature, 1.0), ("top_k", top_k, 0), ("top_p", top_p, 1.0)) if value != off]
  if method != "sample" and sampling:
    wrong.append(f"{', '.join(sampling)}: only for method='sample', found method={method!r}")
  if wrong:
    raise ConfigError("decoding: " + "; ".join(wrong))
  number = lambda value, dtype: jnp.asarray(value, dtype)
  given = lambda value, off, dtype: None if value == off else number(value, dtype)
  return Settings(
    start=number(start, jnp.int32), end=number(end, jnp.int32), pad=number(pad, jnp.int32), min_len=given(min_len, 0, jnp.int32),
    repetition_penalty=given(repetition_penalty, 1.0, jnp.float32), no_repeat_ngram=given(no_repeat_ngram, 0, jnp.int32),
    temperature=given(temperature, 1.0, jnp.float32), top_k=given(top_k, 0, jnp.int32), top_p=given(top_p, 1.0, jnp.float32),
    length_penalty=number(length_penalty, jnp.float32) if method == "beam" else None, method=method, max_len=max_len,
    beams=beams if method == "beam" else 1)


def decode(step: Step, cache: Tree, seeds: Int[Array, " B"], settings: Settings) -> Decoded:
  """Runs `step` from the start token until every row has ended or `max_len` tokens are written.

  cache: arrays [R …], R = B · beams; the hypotheses of a row lie together. seeds: uint32 [B], used by `sample` only.
  """
  return METHODS[settings.method](step, cache, seeds, settings)


class History(NamedTuple):
  """What the rules look at: the tokens so far, and where their last ones stood before."""
  tokens: Int[Array, "R L"]
  matched: Int[Array, "R L"]           # [r j]: how many of the last tokens equal those right before position j


def start_history(rows: int, settings: Settings) -> History:
  blank = jnp.zeros((rows, settings.max_len), jnp.int32)
  return History(jnp.broadcast_to(settings.pad, blank.shape), blank)


def extended(history: History, position: Array, token: Int[Array, " R"]) -> History:
  """The history with one more token per row at `position`."""
  tokens = jax.lax.dynamic_update_slice_in_dim(history.tokens, token[:, None], position, axis=1)
  same = (tokens == token[:, None]) & (jnp.arange(tokens.shape[1]) < position)[None]
  runs = jnp.where(same, history.matched + 1, 0)
  return History(tokens, jnp.pad(runs, ((0, 0), (1, 0)))[:, :-1])


def ruled(logits: Float[Array, "R V"], history: History, position: Array, settings: Settings) -> Float[Array, "R V"]:
  """Logits after repetition penalty, n-gram ban and least length."""
  logits = logits.astype(jnp.float32)
  written = (jnp.arange(history.tokens.shape[1]) < position)[None]
  if settings.repetition_penalty is not None:
    weaker = jnp.where(logits > 0, logits / settings.repetition_penalty, logits * settings.repetition_penalty)
    logits = jnp.where(among(history.tokens, jnp.broadcast_to(written, history.tokens.shape), logits.shape[1]), weaker, logits)
  if settings.no_repeat_ngram is not None:
    repeats = written & (history.matched >= settings.no_repeat_ngram - 1)
    logits = jnp.where(among(history.tokens, repeats, logits.shape[1]), BANNED, logits)
  if settings.min_len is not None:
    is_end = (jnp.arange(logits.shape[1]) == settings.end)[None]
    logits = jnp.where(is_end & (position < settings.min_len), BANNED, logits)
  return logits


def among(tokens: Int[Array, "R L"], chosen: Bool[Array, "R L"], vocab: int) -> Bool[Array, "R V"]:
  """Which tokens of the vocabulary stand at the chosen positions of each row."""
  rows = jnp.arange(tokens.shape[0])[:, None]
  return jnp.zeros((tokens.shape[0], vocab), bool).at[rows, jnp.where(chosen, tokens, vocab)].set(True, mode="drop")


def truncated(logits: Float[Array, "R V"], top_k: Array | None, top_p: Array | None) -> Float[Array, "R V"]:
  """Logits with all but the `top_k` best and then the smallest set of probability `top_p` banned; ties at the border stay."""
  if top_k is None and top_p is None:
    return logits
  ordered = -jnp.sort(-logits, axis=1)
  rank = jnp.arange(logits.shape[1])[None]
  if top_k is not None:
    ordered = jnp.where(rank < top_k, ordered, BANNED)
  kept = (ordered > BANNED).sum(1, keepdims=True)
  if top_p is not None:
    probability = jax.nn.softmax(ordered, axis=1)
    kept = jnp.minimum(kept, (jnp.cumsum(probability, axis=1) - probability < top_p).sum(1, keepdims=True))
  least = jnp.take_along_axis(ordered, jnp.maximum(kept, 1) - 1, axis=1)
  return jnp.where(logits >= least, logits, BANNED)


def one_by_one(step: Step, cache: Tree, seeds: Array, settings: Settings) -> Decoded:
  """Greedy decoding and sampling."""
  rows = seeds.shape[0]
  keys = jax.vmap(jax.random.key)(seeds) if settings.method == "sample" else None

  def chosen(logits: Array, position: Array) -> Array:
    if keys is None:
      return jnp.argmax(logits, axis=1).astype(jnp.int32)
    if settings.temperature is not None:
      logits = logits / settings.temperature
    logits = truncated(logits, settings.top_k, settings.top_p)
    draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row)
    return jax.vmap(draw)(keys, logits).astype(jnp.int32)

  def going(state):
    position, _, ended, *_ = state
    return (position < settings.max_len) & ~jnp.all(ended)

  def body(state):
    position, last, ended, lengths, history, cache = state
    logits, cache = step(last, position, cache)
    token = jnp.where(ended, settings.pad, chosen(ruled(logits, history, position, settings), position))
    lengths = lengths + ~ended
    return position + 1, token, ended | (token == settings.end), lengths, extended(history, position, token), cache

  zero = jnp.zeros((rows,), jnp.int32)
  state = jnp.zeros((), jnp.int32), zero + settings.start, zero > 0, zero, start_history(rows, settings), cache
  _, _, _, lengths, history, _ = jax.lax.while_loop(going, body, state)
  return Decoded(history.tokens, lengths)


class Beams(NamedTuple):
  """Hypotheses that go on (`scores`: log-probabilities) and the best that have ended (`scores`: after the length penalty)."""
  position: Array
  last: Int[Array, "B K"]
  scores: Float[Array, "B K"]
  history: History                       # rows B · K
  ended_scores: Float[Array, " B"]
  ended: Int[Array, "B L"]
  cache: Tree


def beam(step: Step, cache: Tree, seeds: Array, settings: Settings) -> Decoded:
  """The best of `beams` hypotheses per row, by log-probability / length ** length_penalty. With as many beams as there are sequences it
  is exhaustive search. A row stops when no hypothesis that goes on could still win."""
  batch, width, longest = seeds.shape[0], settings.beams, settings.max_len
  penalty = lambda length: length.astype(jnp.float32) ** settings.length_penalty

  def going(state: Beams):
    could = state.scores.max(1) / penalty(jnp.int32(longest))            # scores are ≤ 0: the longest divides them most
    return (state.position < longest) & ~jnp.all(state.ended_scores >= could)

  def body(state: Beams) -> Beams:
    position = state.position
    logits, cache = step(state.last.reshape(-1), position, state.cache)
    log_probs = jax.nn.log_softmax(ruled(logits, state.history, position, settings), axis=1)
    vocab = log_probs.shape[1]
    totals = (state.scores[:, :, None] + log_probs.reshape(batch, width, vocab)).reshape(batch, width * vocab)
    # At most one continuation of each hypothesis ends, so twice as many candidates hold enough that go on.
    best, index = jax.lax.top_k(totals, min(2 * width, width * vocab))                                       # [B 2K]
    parent, token = index // vocab, (index % vocab).astype(jnp.int32)
    ends = token == settings.end

    finishing = jnp.where(ends, best / penalty(position + 1), -jnp.inf)
    winner = jnp.argmax(finishing, axis=1)[:, None]
    at = lambda values: jnp.take_along_axis(values, winner, axis=1)[:, 0]
    tokens = state.history.tokens.reshape(batch, width, longest)
    written = jnp.take_along_axis(tokens, at(parent)[:, None, None], axis=1)[:, 0]
    written = jax.lax.dynamic_update_slice_in_dim(written, jnp.broadcast_to(settings.end, (batch, 1)), position, axis=1)
    better = at(finishing) > state.ended_scores
    ended = jnp.where(better[:, None], written, state.ended)
    ended_scores = jnp.where(better, at(finishing), state.ended_scores)

    scores, going_on = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), width)                                 # [B K]
    token = jnp.take_along_axis(token, going_on, axis=1)
    rows = (jnp.take_along_axis(parent, going_on, axis=1) + width * jnp.arange(batch)[:, None]).reshape(-1)
    history = extended(jax.tree.map(lambda x: x[rows], state.history), position, token.reshape(-1))
    return Beams(position + 1, token, scores, history, ended_scores, ended, jax.tree.map(lambda x: x[rows], cache))

  scores = jnp.broadcast_to(jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)[None], (batch, width))
  history = start_history(batch * width, settings)
  state = Beams(jnp.zeros((), jnp.int32), jnp.broadcast_to(settings.start, (batch, width)), scores, history,
                jnp.full((batch,), -jnp.inf), history.tokens[::width], cache)
  state = jax.lax.while_loop(going, body, state)

  cut = state.scores.max(1) / penalty(jnp.int32(longest))
  whole = (state.ended_scores >= cut) | (state.position < longest)
  first = jnp.arange(batch) * width + jnp.argmax(state.scores, axis=1)
  tokens = jnp.where(whole[:, None], state.ended, state.history.tokens[first])
  lengths = jnp.where(whole, 1 + jnp.argmax(state.ended == settings.end, axis=1), longest).astype(jnp.int32)
  return Decoded(tokens, lengths)


METHODS = {"greedy": one_by_one, "sample": one_by_one, "beam": beam}
