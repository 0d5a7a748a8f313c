"""The cache of compiled programs is set once, and never in place of the user's own."""
import jax
import pytest

from mmdiff.core import compilation


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_the_users_own_cache_stays(given):
  before = jax.config.values["jax_compilation_cache_dir"]
  try:
    jax.config.update("jax_compilation_cache_dir", given or None)
    compilation.prepare()
    set_to = jax.config.values["jax_compilation_cache_dir"]
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert set_to == given if given else set_to.endswith("/.cache/mmdiff/jax")
