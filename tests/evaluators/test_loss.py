import jax
import numpy as np
import pytest

from mmdiff.core.errors import DataError
from mmdiff.evaluators.loss import loss
from tests.evaluators import toys


def by_hand(count):
  """The toy loss of each record, from its own id."""
  key = jax.random.key(7)
  values = []
  for batch in toys.dataset(count).eval_batches(batch_size=1):
    noise = jax.random.normal(jax.random.fold_in(key, batch["id"][0]))
    values.append(float(batch["image"].mean() + noise))
  return values


def test_a_mean_over_examples_does_not_see_padding_or_the_batch_size():
  for batch_size in (4, 8, 16):
    services = toys.services(dict(loss=toys.loss), data=toys.dataset(11), batch_size=batch_size)
    found = loss(services, source={}, every_steps=1, seed=7).run({}, 1).scalars
    assert found == {"loss": pytest.approx(np.mean(by_hand(11)), rel=1e-6), "records": 11}


def test_two_evaluations_are_bitwise_equal():
  made = loss(toys.services(dict(loss=toys.loss)), source={}, every_steps=1, limit=9)
  assert made.run({}, 1) == made.run({}, 2)


def test_a_contrastive_loss_is_that_of_whole_batches():
  predict = dict(loss=toys.loss, embed_text=toys.embed_text)
  run = lambda **kw: loss(toys.services(predict, data=toys.dataset(11), batch_size=4), source={}, every_steps=1, seed=7, **kw).run({}, 1)
  assert run().scalars == {"loss": pytest.approx(np.mean(by_hand(11)[:8]), rel=1e-6), "records": 8, "left_out": 3}
  assert run(limit=3).scalars["records"] == 3


def test_sizes_reach_the_loss_where_the_data_have_them():
  class Sized:
    def __len__(self):
      return 2

    def eval_batches(self, **_):
      yield dict(image=np.zeros((2, 1)), tokens=np.zeros((2, 1)), mask=np.ones((2, 1), bool), id=np.arange(2, dtype=np.uint32),
                 valid=np.ones(2, bool), size=np.full((2, 6), 7.0))
  told = lambda params, batch, key, extra=(): {"loss": batch["size"].mean()}
  assert loss(toys.services(dict(loss=told), data=Sized()), source={}, every_steps=1).run({}, 1).scalars["loss"] == 7


def test_no_records_is_bad_data():
  class Empty:
    def __len__(self):
      return 0

    def eval_batches(self, **_):
      return iter(())
  with pytest.raises(DataError, match="fewer than 1 records"):
    loss(toys.services(dict(loss=toys.loss), data=Empty()), source={}, every_steps=1).run({}, 1)
