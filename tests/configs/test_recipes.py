"""What the published recipes do to a parameter, in numbers: the same value means different things in different code."""
import jax
import jax.numpy as jnp
import pytest

from mmdiff import optim
from mmdiff.commands import flags

PARAMS = {"image": {"embed": {"embedding": jnp.ones((2, 2))}, "position": jnp.ones((2, 2)), "class_token": jnp.ones((2,)),
                    "up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}, "norm": {"scale": jnp.ones((2,))}}}
# What a step at the peak of the schedule takes off a kernel, a table of tokens, a table of positions, and a bias.
TAKEN = {
  "clip.py:variant=ViT-B/32": (5e-4 * 0.2, 5e-4 * 0.2, 5e-4 * 0.2, 0.0),                 # paper, table 18 and 20; OpenCLIP: by dimensions
  "clip.py:variant=RN50x64": (3.6e-4 * 0.2, 3.6e-4 * 0.2, 3.6e-4 * 0.2, 0.0),
  "siglip.py": (1e-4, 0.0, 0.0, 0.0),                                                    # big_vision: the schedule, kernels alone
  "coca.py": (8e-4 * 0.01, 8e-4 * 0.01, 0.0, 0.0),                                       # Praxis: the rate
  "t2i_latent.py:model=sd15": (1e-4 * 0.01,) * 4,                                        # PyTorch's AdamW on all parameters
  "t2i_latent.py:model=sdxl": (1e-4 * 0.01,) * 4,
  "kl_f8.py": (0.0,) * 4,                                                                # Adam
}


@pytest.mark.parametrize("name", TAKEN)
def test_weight_decay_of_published_recipes(name):
  config, problems = flags.read_config(f"configs/{name}", [])
  assert not problems
  options = dict(next(iter(config["optim"].values())))
  options |= dict(decay="constant", warmup_steps=0)                 # the peak at once
  tx, _ = optim.make(dict(default=options), 10, ("image",))
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
  found = updates["image"]
  taken = [-float(leaf.ravel()[0]) for leaf in (found["up"]["kernel"], found["embed"]["embedding"], found["position"], found["up"]["bias"])]
  assert taken == pytest.approx(TAKEN[name], rel=1e-4, abs=0)


def test_first_and_second_moments_of_published_recipes():
  """b1, b2 or its cap, epsilon or what is clipped, as printed in the papers and the authors' code."""
  read = lambda name: next(iter(flags.read_config(f"configs/{name}", [])[0]["optim"].values()))
  pick = lambda name, *keys: tuple(read(name).get(key) for key in keys)
  assert pick("clip.py:variant=ViT-B/32", "b1", "b2", "eps", "clip") == (0.9, 0.98, 1e-6, 0.0)
  assert pick("clip.py:variant=RN50", "b1", "b2", "eps", "clip") == (0.9, 0.999, 1e-8, 0.0)
  assert pick("siglip.py", "name", "b1", "b2_cap", "update_clip", "min_factored", "clip") == ("adafactor", 0.9, 0.95, 0.0, 32, 1.0)
  assert pick("coca.py", "name", "b1", "b2_cap", "update_clip", "lr", "warmup_steps", "decay") == \
    ("adafactor", 0.9, 0.999, 1.0, 8e-4, 10_000, "linear")
  assert pick("t2i_latent.py:model=sd15", "b1", "b2", "eps", "lr", "warmup_steps") == (0.9, 0.999, 1e-8, 1e-4, 10_000)
  assert pick("kl_f8.py", "b1", "b2", "weight_decay", "lr") == (0.5, 0.9, 0.0, pytest.approx(4.5e-6 * 24))
