import pytest

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_both_sides_compute_the_same_before_they_are_timed(dtype, tolerance):
  from tests.peers import clip_step
  options = clip_step.arguments(["--variant=tiny", "--batch_size=8", "--rounds=1", "--steps=1", f"--dtype={dtype}"])
  result = clip_step.compare(options)
  assert max(result["forward_errors"]) <= tolerance
  assert len(result["first_losses"]) == 3
  assert result["ratio_cpu_seconds"] > 0
