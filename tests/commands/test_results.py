from mmdiff.commands import results


def test_progress_says_count_rate_and_time_left(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
  progress = results.Progress("judge", "pictures")
  for _ in range(5):
    now[0] += 2
    progress(16, 256)
  assert capsys.readouterr().err == "judge: 64 of 256 pictures · 8.0/s · 0:24 left\n"


def test_a_new_pass_starts_anew_and_short_work_is_silent(capsys):
  progress = results.Progress("x")
  progress(8, 8)
  progress(8, 8)
  assert (progress.done, progress.total) == (8, 8)
  progress(3, None)
  assert (progress.done, progress.total) == (3, None) and not capsys.readouterr().err
