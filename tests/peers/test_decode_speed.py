import pytest

pytestmark = pytest.mark.peers


def test_all_sides_write_the_same_before_they_are_timed():
  from tests.peers import decode_speed
  options = decode_speed.arguments(["--depth=2", "--vocab=1000", "--tokens=16", "--rounds=1"])
  result = decode_speed.compare(options)
  assert result["different_words"] > 3 and result["to_transformers"]["tokens_per_cpu_second"] > 0


def test_a_cache_is_five_times_faster_at_64_tokens():
  from tests.peers import decode_speed
  options = decode_speed.arguments(["--depth=6", "--vocab=1000", "--rounds=2"])
  assert decode_speed.compare(options)["to_uncached"]["tokens_per_cpu_second"] >= 5
