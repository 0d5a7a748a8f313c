"""Compiled programs are kept between starts of a process, on disk, whoever starts it: a command, a script, a notebook."""
import contextlib
import os

CACHE = "~/.cache/mmdiff/jax"
CACHE_HIT = "/jax/compilation_cache/cache_hits"


def prepare() -> None:
  """Sets the cache unless JAX was told where, and mutes what XLA says of a long compilation, unless JAX was told how much to say."""
  import jax
  if not jax.config.values["jax_compilation_cache_dir"]:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE))
  if jax.config.values["jax_logging_level"] in (None, "NOTSET"):
    with contextlib.suppress(ImportError, AttributeError):          # jaxlib's own; where it is gone, the alarm is heard
      from jax._src.lib import utils
      utils.absl_set_min_log_level(3)
