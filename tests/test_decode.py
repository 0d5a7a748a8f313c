"""Decoding over a toy step: a table of logits by the last token, position and row, with a cache that remembers what was written."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import decode
from mmdiff.core.errors import ConfigError

VOCAB, LONGEST, START, END, PAD = 5, 4, 0, 1, 0


def tables(rows, *, vocab=VOCAB, longest=LONGEST, seed=0):
  """Logits [R L V V]: by row, position and last token."""
  return jnp.asarray(np.random.default_rng(seed).normal(scale=2.0, size=(rows, longest, vocab, vocab)), jnp.float32)


@jax.jit
def decoded(table, seeds, settings):
  def step(tokens, position, cache):
    return cache["table"][jnp.arange(tokens.shape[0]), position, tokens], cache | {"last": tokens}
  cache = dict(table=jnp.repeat(table, settings.beams, axis=0), last=jnp.zeros((table.shape[0] * settings.beams,), jnp.int32))
  return decode.decode(step, cache, seeds, settings)


def run(table, *, seeds=None, **options):
  """Decodes every row with its own table, which the cache carries, so that beams must carry it too."""
  settings = decode.settings(**(dict(start=START, end=END, pad=PAD, max_len=table.shape[1]) | options))
  seeds = jnp.arange(table.shape[0], dtype=jnp.uint32) if seeds is None else seeds
  return jax.tree.map(np.asarray, decoded(table, seeds, settings))


def words(made, row):
  return made.tokens[row, :made.lengths[row]].tolist()


def test_greedy_follows_the_most_likely_token_until_the_end():
  table = tables(6)
  made = run(table)
  for row in range(6):
    last, expected = START, []
    for position in range(LONGEST):
      last = int(np.argmax(table[row, position, last]))
      expected.append(last)
      if last == END:
        break
    assert words(made, row) == expected
    assert np.all(made.tokens[row, len(expected):] == PAD)
  assert len(set(made.lengths.tolist())) > 1


@functools.cache
def sequences(vocab, longest):
  """Every sequence that ends, or is cut."""
  found = []
  for length in range(1, longest + 1):
    for sequence in itertools.product(range(vocab), repeat=length):
      ends = END in sequence
      if (ends and sequence.index(END) == length - 1) or (not ends and length == longest):
        found.append(sequence)
  return found


def scores(table, length_penalty):
  """{sequence: score}."""
  log_probs = np.asarray(jax.nn.log_softmax(table, axis=-1), np.float64)
  total = lambda sequence: sum(log_probs[i, a, b] for i, (a, b) in enumerate(zip((START, *sequence), sequence)))
  return {sequence: total(sequence) / len(sequence) ** length_penalty for sequence in sequences(table.shape[-1], table.shape[0])}


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_enough_beams_are_exhaustive_search(length_penalty):
  table = tables(8, vocab=3, longest=4, seed=3)
  made = run(table, method="beam", beams=3**4, length_penalty=length_penalty)
  for row in range(8):
    every = scores(table[row], length_penalty)
    best = max(every, key=every.get)
    assert words(made, row) == list(best)


def test_one_beam_is_greedy_and_more_beams_score_no_worse():
  table = tables(40, seed=1)
  greedy, beams = run(table), {k: run(table, method="beam", beams=k, length_penalty=0.0) for k in (1, 2, 8)}
  every = [scores(table[row], 0.0) for row in range(40)]
  total = lambda made: np.array([every[row][tuple(words(made, row))] for row in range(40)])
  assert np.all(total(beams[1]) >= total(greedy) - 1e-5) and np.all(total(beams[8]) >= total(greedy) - 1e-5)
  assert total(beams[8]).sum() >= total(beams[2]).sum() > total(greedy).sum()
  assert np.mean([words(beams[1], row) == words(greedy, row) for row in range(40)]) >= 0.5      # the rest ended earlier and better


@pytest.mark.parametrize("options", [dict(), dict(method="sample", temperature=1.5), dict(method="sample", top_k=3, top_p=0.9),
                                     dict(method="beam", beams=3), dict(repetition_penalty=1.5, no_repeat_ngram=2, min_len=2)])
def test_a_row_does_not_depend_on_its_batch(options):
  table = tables(7, longest=8, seed=2)
  seeds = jnp.arange(7, dtype=jnp.uint32) * 1000
  made = run(table, seeds=seeds, **options)
  for row in (0, 3, 6):
    alone = run(table[row:row + 1], seeds=seeds[row:row + 1], **options)
    assert words(alone, 0) == words(made, row)
  order = np.array([4, 2, 6, 0, 1, 5, 3])
  shuffled = run(table[order], seeds=seeds[order], **options)
  assert np.array_equal(shuffled.tokens, made.tokens[order])


def test_drawn_tokens_have_the_right_frequencies():
  table = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.0001, 0.25, 0.15, 0.0999]))[None, None, None], (2000, 1, VOCAB, VOCAB))
  seeds = jnp.arange(2000, dtype=jnp.uint32)
  share = lambda **options: np.bincount(run(table, seeds=seeds, method="sample", **options).tokens[:, 0], minlength=VOCAB) / 2000
  assert np.abs(share() - [0.5, 0, 0.25, 0.15, 0.1]).max() <= 0.03
  assert np.abs(share(top_k=2) - [2 / 3, 0, 1 / 3, 0, 0]).max() <= 0.03
  assert np.abs(share(top_p=0.6) - [2 / 3, 0, 1 / 3, 0, 0]).max() <= 0.03
  assert np.abs(share(top_p=0.5) - [1, 0, 0, 0, 0]).max() == 0
  cold = share(temperature=0.5)
  assert np.abs(cold - np.array([0.25, 0, 0.0625, 0.0225, 0.01]) / 0.345).max() <= 0.03
  assert np.array_equal(share(top_k=1), [1, 0, 0, 0, 0])


@pytest.mark.parametrize("options", [dict(), dict(method="sample"), dict(method="beam", beams=3)], ids=str)
def test_no_ngram_occurs_twice(options):
  logits = np.random.default_rng(0).normal(scale=3.0, size=(12, 1, 8, 8))
  logits[..., END] = -20
  table = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (12, 6, 8, 8))
  repeats = lambda text, n: len(text) - n + 1 - len({tuple(text[i:i + n]) for i in range(len(text) - n + 1)})
  free = run(table, **options)
  for n in (1, 2, 3):
    made = run(table, no_repeat_ngram=n, **options)
    assert any(repeats(words(free, row), n) for row in range(12)) and not any(repeats(words(made, row), n) for row in range(12))


def test_least_length_and_repetition_penalty():
  table = tables(20, longest=6)
  assert np.all(run(table, min_len=3).lengths >= 4)
  assert run(table).lengths.min() < 4
  assert np.all(run(table, method="beam", min_len=3).lengths >= 4)
  flat = jnp.broadcast_to(jnp.array([-9.0, -9.0, 3.0, 2.0, 1.0])[None, None, None], (1, 3, VOCAB, VOCAB))
  assert words(run(flat), 0) == [2, 2, 2]
  assert words(run(flat, repetition_penalty=2.0), 0) == [2, 3, 2]          # 3 -> 1.5 < 2 -> 1 < 1.5
  assert words(run(flat, repetition_penalty=4.0), 0) == [2, 3, 4]
  unlikely = flat - 4.0                                                     # -1, -2, -3: a penalty makes these less likely too
  assert words(run(unlikely), 0) == [2, 2, 2]
  assert words(run(unlikely, repetition_penalty=2.5), 0) == [2, 3, 2]      # -1 -> -2.5 < -2 -> -5 < -2.5


def test_values_do_not_compile_again():
  traces = []

  def step(tokens, position, cache):
    traces.append(1)
    return cache[:, :VOCAB] * 1.0, cache
  go = jax.jit(lambda settings: decode.decode(step, jnp.ones((2, VOCAB)), jnp.zeros((2,), jnp.uint32), settings))
  for value in (0.5, 0.7, 0.9):
    go(decode.settings(start=0, end=1, method="sample", max_len=3, temperature=value, top_p=value, repetition_penalty=1 + value))
  compiled = len(traces)
  go(decode.settings(start=0, end=1, method="sample", max_len=4, temperature=0.5, top_p=0.5, repetition_penalty=1.5))
  assert len(traces) == 2 * compiled


def test_wrong_settings_are_listed():
  with pytest.raises(ConfigError, match="max_len: expected at least 1, found 0.*top_p: expected.*found 1.5.*method: unknown value 'best'"):
    decode.settings(start=0, end=1, max_len=0, top_p=1.5, method="best")
  with pytest.raises(ConfigError, match="temperature: only for method='sample', found method='greedy'"):
    decode.settings(start=0, end=1, temperature=0.5)
  with pytest.raises(ConfigError, match="min_len: 9 does not fit max_len 9"):
    decode.settings(start=0, end=1, min_len=9, max_len=9)
