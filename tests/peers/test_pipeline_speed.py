import pytest

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]


def test_both_sides_draw_the_same_before_they_are_timed():
  from tests.peers import pipeline_speed
  result = pipeline_speed.compare(pipeline_speed.arguments(["--widths=32,64", "--side=8", "--steps=3", "--rounds=1"]))
  assert result["difference"] < 1e-3 and result["speed_up"]["cpu"] > 0
