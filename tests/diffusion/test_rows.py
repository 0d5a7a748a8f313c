"""Rows against their formulas on paper."""
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import rows
from mmdiff.diffusion.rows import Options
from mmdiff.diffusion.schedules import Level

OPTIONS = Options(eta=0.0, variance="small", flow=False)


def chain(*ratios):
  """Variance-preserving steps between levels of these sigma / alpha."""
  levels = [Level(1 / np.sqrt(1 + r * r), r / np.sqrt(1 + r * r), 0.0) for r in ratios]
  return list(zip(levels, levels[1:]))


def test_the_transfer_of_pndm():
  """Its equation 11, with alpha-bar: sqrt(b'/b) x - (b' - b) / (sqrt(b) (sqrt((1 - b') b) + sqrt((1 - b) b'))) eps."""
  (now, then), = chain(3.0, 1.2)
  b, b2 = now.alpha**2, then.alpha**2
  wanted = (b2 / b) ** 0.5, -(b2 - b) / (b**0.5 * (((1 - b2) * b) ** 0.5 + ((1 - b) * b2) ** 0.5))
  np.testing.assert_allclose(rows.transfer(now, then), wanted, rtol=1e-12)


@pytest.mark.parametrize("extrapolate", ["eps", "v"])
def test_plms_combines_the_last_four(extrapolate):
  """The next x after every row, from outputs that are arbitrary numbers. The repeated start is no part of the history."""
  steps, r = chain(9.0, 6.0, 4.0, 2.5, 1.5, 0.7, 0.2), np.random.default_rng(0)
  start = x = 1.3
  memory, history = [0.0] * 4, []
  for number, row in enumerate(rows.plms(steps, OPTIONS._replace(extrapolate=extrapolate))):
    now, then = steps[row["at"]]
    made = r.normal()
    eps = made if extrapolate == "eps" else now.alpha * made + now.sigma * x
    d = (x - now.sigma * eps) / now.alpha
    if number == 1:
      combined, base, (now, then) = (history[0] + made) / 2, start, steps[0]
    else:
      history = [made, *history[:3]]
      combined, base = sum(w * o for w, o in zip(rows.ADAMS_BASHFORTH[len(history) - 1], history)), x
    eps = combined if extrapolate == "eps" else now.alpha * combined + now.sigma * base
    on_x, on_eps = rows.transfer(now, then)
    wanted = on_x * base + on_eps * eps
    x, memory = (row["on_x"] * x + row["on_d"] * d + sum(row.get(f"on_m{k}", 0.0) * kept for k, kept in enumerate(memory, 1)),
                 [row["keep_x"] * x + row["keep_d"] * d, *memory[:3]])
    assert memory[0] == pytest.approx(made) and x == pytest.approx(wanted)
  assert number == len(steps)


@pytest.mark.parametrize("extrapolate", ["eps", "v"])
def test_pndm_is_runge_kutta_then_multistep(extrapolate):
  """From outputs that are arbitrary numbers: each part starts where its step began, and the history is of whole steps' first outputs."""
  whole, r = chain(9.0, 6.0, 4.0, 2.5, 1.5, 0.7, 0.2), np.random.default_rng(0)
  steps = []
  for now, then in whole[:3]:
    half = chain(np.sqrt(now.sigma / now.alpha * then.sigma / then.alpha), 0.0)[0][0]
    steps += [(now, half), (half, half), (half, then), (then, then)]
  x, memory, history, outputs, ended = 1.3, [0.0] * 12, [], [], []
  made_rows = rows.pndm(steps + whole[3:], OPTIONS._replace(extrapolate=extrapolate))
  for i, (row, (now, then)) in enumerate(zip(made_rows, steps + whole[3:], strict=True)):
    made = r.normal()
    d = (x - now.sigma * made) / now.alpha if extrapolate == "eps" else now.alpha * x - now.sigma * made
    outputs.append(made)
    history += [made] if i % 4 == 0 or i > 12 else []
    if i < 12:
      start, base = steps[i // 4 * 4][0], [1.3, *ended][i // 4]
      combined = np.dot(outputs[-4:], (1 / 6, 1 / 3, 1 / 3, 1 / 6)) if i % 4 == 3 else made
    else:
      start, base = now, x
      combined = np.dot(history[:-5:-1], rows.ADAMS_BASHFORTH[3])
    on_x, on_eps = rows.transfer(start, then)
    wanted = on_x * base + on_eps * (combined if extrapolate == "eps" else start.alpha * combined + start.sigma * base)
    x, memory = (row["on_x"] * x + row["on_d"] * d + sum(row.get(f"on_m{k}", 0.0) * kept for k, kept in enumerate(memory, 1)),
                 [row["keep_x"] * x + row["keep_d"] * d, *memory[:-1]])
    ended += [x] if i < 12 and i % 4 == 3 else []
    assert memory[0] == pytest.approx(made) and x == pytest.approx(wanted), i


def test_unipc_is_predictor_and_corrector():
  """By algorithms 5 and 6 with the sample kept that each prediction started from, from D that are arbitrary numbers."""
  steps, r = chain(9.0, 6.0, 4.0, 2.5, 1.5, 0.7, 0.0), np.random.default_rng(0)
  lam = [-np.log(now.sigma / now.alpha) for now, _ in steps]
  x, before, ds = 1.3, None, []
  own, memory = 1.3, [0.0] * 4
  for i, (row, (now, then)) in enumerate(zip(rows.unipc(steps, OPTIONS), steps)):
    d = r.normal()
    if i:                               # correct x with the new D
      h, (last, _) = lam[i] - lam[i - 1], steps[i - 1]
      big, m0 = np.expm1(-h), ds[-1]
      x = now.sigma / last.sigma * before - now.alpha * big * m0
      if i == 1:
        x -= now.alpha * big * 0.5 * (d - m0)
      else:
        r1 = (lam[i - 2] - lam[i - 1]) / h
        phi = big / -h - 1
        b = np.asarray([phi / big, 2 * (phi / -h - 0.5) / big])
        rho = np.linalg.solve(np.asarray([[1.0, 1.0], [r1, 1.0]]), b)
        x -= now.alpha * big * (rho[0] * (ds[-2] - m0) / r1 + rho[1] * (d - m0))
    before, ds = x, [*ds, d]
    if then.sigma == 0:
      x = then.alpha * d
    else:
      h = -np.log(then.sigma / then.alpha) - lam[i]
      x = then.sigma / now.sigma * before - then.alpha * np.expm1(-h) * d
      if i:
        x -= then.alpha * np.expm1(-h) * 0.5 * (ds[-2] - d) / ((lam[i - 1] - lam[i]) / h)
    own, memory = (row["on_x"] * own + row["on_d"] * d + sum(row.get(f"on_m{k}", 0.0) * kept for k, kept in enumerate(memory, 1)),
                   [d, *memory[:3]])
    assert own == pytest.approx(x), i


def test_eps_at_pure_noise_is_refused():
  steps = [(Level(0.0, 1.0, 0.0), Level(1.0, 0.0, 0.0))]
  for make in (rows.plms, rows.lms):
    with pytest.raises(ConfigError, match="zero terminal SNR"):
      make(steps, OPTIONS)
