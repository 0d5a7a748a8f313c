"""Pytrees by path: `image/stack/attention/query/kernel`. Freezing, decay masks, sharding and conversion all address leaves this way."""
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.core.types import Tree


def path_str(path) -> str:
  """A JAX key path as `a/b/c`; list indices and attribute names are plain parts."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: Tree) -> list[str]:
  """The path of every leaf, in tree order."""
  return [path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(fn: Callable, tree: Tree, *rest: Tree) -> Tree:
  """`jax.tree.map` whose function receives the leaf's path first."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_str(path), *leaves), tree, *rest)


def matches(path: str, patterns: Sequence[str]) -> bool:
  """Whether any regular expression matches the *whole* path."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def partition(tree: Tree, patterns: Sequence[str]) -> tuple[Tree, Tree]:
  """Splits a tree into (kept, matched): two trees of one structure, each with `None` where the other has a leaf.

  Raises ValueError for a pattern that matches no leaf, since a typo would otherwise train what was meant to stay frozen.
  """
  names = paths(tree)
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      groups = sorted({name.split("/")[0] for name in names})
      raise ValueError(f"pattern {pattern!r} matches no parameter; top-level groups are {groups}")
  kept = map_with_path(lambda path, leaf: None if matches(path, patterns) else leaf, tree)
  matched = map_with_path(lambda path, leaf: leaf if matches(path, patterns) else None, tree)
  return kept, matched


def merge(kept: Tree, matched: Tree) -> Tree:
  """The inverse of `partition`."""
  return jax.tree.map(lambda a, b: b if a is None else a, kept, matched, is_leaf=lambda x: x is None)


def count(tree: Tree) -> int:
  """Number of elements; accepts abstract leaves."""
  return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))


def cast(tree: Tree, dtype) -> Tree:
  """Floating leaves in `dtype`, the others as they are."""
  return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def select(flag, new: Tree, old: Tree) -> Tree:
  """`new` where the scalar flag is true, else `old`, bit for bit: a NaN in the tree not chosen does not leak through."""
  return jax.tree.map(lambda n, o: jnp.where(flag, n, o), new, old)
