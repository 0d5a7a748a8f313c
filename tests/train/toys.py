"""The smallest objective that has everything: two groups, per-example noise, state that the loss rewrites."""
import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.core.objective import Aux, Objective, Variables

WIDTH = 8


@jax.custom_vjp
def spoiled(x, bad):
  """x, with a gradient of NaN where `bad`."""
  return x


spoiled.defvjp(lambda x, bad: (x, bad), lambda bad, cotangent: (jnp.where(bad, jnp.nan, cotangent), None))


def regression(poison=None, poison_gradient=None, *, statistics: bool = False) -> Objective:
  """Fits a linear map of `image` to `tokens`; `poison(step)` true makes the loss NaN, `poison_gradient(step)` its gradient alone.
  statistics: `seen` is averaged, too.

  Metrics: `draw`, a number of the step's own key, and `teacher/NAME`, the sum of every average's parameters as the loss sees it.
  """
  def init(key, batch):
    k_a, k_b = jax.random.split(key)
    return Variables({"image": {"proj": {"kernel": jax.random.normal(k_a, (WIDTH, WIDTH)) * 0.3}},
                      "text": {"proj": {"kernel": jax.random.normal(k_b, (WIDTH, 1)) * 0.3, "bias": jnp.zeros((1,))}}},
                     {"seen": jnp.zeros(())})

  def loss(params, context, batch):
    keys = jax.vmap(lambda i: jax.random.fold_in(context.key, i))(batch["id"])
    noise = jax.vmap(lambda k: jax.random.normal(k, (WIDTH,)))(keys)
    x = jnp.tanh((batch["image"] + 0.1 * noise) @ params["image"]["proj"]["kernel"])
    y = (x @ params["text"]["proj"]["kernel"] + params["text"]["proj"]["bias"][None])[:, 0]
    value = jnp.mean(jnp.square(y - batch["tokens"]))
    if poison is not None:
      value = jnp.where(poison(context.step), jnp.nan, value)
    if poison_gradient is not None:
      value = spoiled(value, poison_gradient(context.step))
    metrics = {f"teacher/{name}": sum(leaf.sum() for leaf in jax.tree.leaves(params)) for name, params in context.ema.items()}
    metrics |= {"mean": jnp.mean(y), "draw": jax.random.uniform(jax.random.fold_in(context.key, 0))}
    return value, Aux(metrics, {"seen": context.extra["seen"] + jnp.float32(batch["id"].shape[0])})

  return Objective(init, loss, {}, statistics=statistics)


class Data:
  """A pure function of (step, row), like the loader."""
  count_names = ("caption/long", "caption/original")
  offenders: dict = {}

  def train_batches(self, *, batch_size, start_step, rows=None):
    step = start_step
    while True:
      rows_now = np.arange(batch_size) if rows is None else rows
      ids = (step * batch_size + rows_now).astype(np.uint32)
      x = np.stack([np.random.default_rng(int(i)).normal(size=WIDTH) for i in ids]).astype(np.float32)
      yield dict(image=x, tokens=x.sum(1), id=ids, counts=np.stack([ids % 2, 1 - ids % 2], 1).astype(np.int32))
      step += 1

  def batch_at(self, step, *, batch_size):
    return next(Data.train_batches(self, batch_size=batch_size, start_step=step))

  def variants(self):
    return [{name: value[0] for name, value in Data.batch_at(self, 0, batch_size=1).items()}]

  def fingerprint(self):
    return "toy"

  def check_counts(self, counts):
    pass


def config(**changes) -> dict:
  """Every key of a config that the loop reads; one of the eight devices unless `mesh` says otherwise."""
  base = dict(seed=0, steps=6, batch_size=16, accumulate=1, log_every_steps=2, max_bad_steps=3, checkpoint=dict(every_steps=3, keep=3),
              mesh=dict(data=1, fsdp=1, tensor=1), sharding="auto", freeze=(), ema=dict(eval=0.9), ema_warmup=True,
              optim=dict(default=dict(name="adamw", lr=1e-2, warmup_steps=2, clip=1.0, weight_decay=0.01)), evals={},
              trackers=("tensorboard",), profile=dict(start=0, steps=5))
  return base | changes
