"""Checkpoints: bitwise round trips, any mesh, and damage that is found and survived."""
import shutil

import jax
import numpy as np
import pytest

from mmdiff.core.errors import DataError
from mmdiff.train.checkpoint import Checkpoints, available_steps, meta_of, newest_whole, restore_params
from mmdiff.train.setup import set_up
from tests.train import toys

META = dict(data=dict(next_index=0, fingerprint="toy"))


SETUPS = {}


def start(devices=1, compile_step=True, **changes):
  """A fresh state each time; what is compiled is compiled once."""
  name = repr((devices, compile_step, changes))
  if name not in SETUPS:
    example = {k: v[0] for k, v in toys.Data().batch_at(0, batch_size=1).items()}
    SETUPS[name] = set_up(toys.config(**changes), toys.regression(), example, devices=jax.devices()[:devices], compile_step=compile_step)
  return SETUPS[name]._replace(state=jax.tree.map(jax.numpy.copy, SETUPS[name].state))


def trained(setup, steps, state=None):
  state = setup.state if state is None else state
  batches = toys.Data().train_batches(batch_size=16, start_step=int(state.step), rows=setup.rows)
  with jax.set_mesh(setup.mesh):
    for _ in range(steps):
      state, _ = setup.step(state, setup.put(next(batches)))
  return state


def values(state):
  unkey = lambda x: jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  return [np.asarray(unkey(x)) for x in jax.tree.leaves(state)]


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(values(a), values(b)):
    np.testing.assert_array_equal(x, y)


def saved(tmp_path, steps=(2, 4), **changes):
  checkpoints, setup = Checkpoints(tmp_path), start(**changes)
  state, snapshots = setup.state, {}
  for step in steps:
    state = trained(setup, step - int(state.step), state)
    checkpoints.save(state, META)
    snapshots[step] = jax.tree.map(lambda x: x.copy(), state)
  checkpoints.close()
  return snapshots


def test_a_saved_state_is_the_state_even_when_its_buffers_are_donated_at_once(tmp_path):
  setup, checkpoints = start(), Checkpoints(tmp_path)
  state = trained(setup, 2)
  kept = jax.tree.map(lambda x: x.copy(), state)
  checkpoints.save(state, META)
  trained(setup, 3, state)
  checkpoints.close()
  restored, meta = Checkpoints(tmp_path).restore(start().state)
  assert meta["step"] == 2
  assert_same(restored, kept)


@pytest.mark.parametrize("mesh", [dict(data=8, fsdp=1, tensor=1), dict(data=2, fsdp=2, tensor=2)])
def test_another_mesh_reads_it(tmp_path, mesh):
  snapshots = saved(tmp_path)
  restored, _ = Checkpoints(tmp_path).restore(start(devices=8, compile_step=False, mesh=mesh).state)
  assert_same(restored, snapshots[4])


def test_frozen_parameters_are_saved_once_and_come_back(tmp_path):
  snapshots = saved(tmp_path, freeze=("image/.*",))
  assert not any("image" in str(path) for path in (tmp_path / "checkpoints" / "4" / "params").rglob("*"))
  restored, _ = Checkpoints(tmp_path).restore(start(compile_step=False, freeze=("image/.*",), seed=5).state)
  assert_same(restored, snapshots[4])
  params, _, _ = restore_params(tmp_path)
  np.testing.assert_array_equal(params["image"]["proj"]["kernel"], snapshots[4].frozen["image"]["proj"]["kernel"])


def test_what_else_lies_among_the_checkpoints_is_no_step(tmp_path):
  for name in ("2", "²", "٣", "x", "-3", "9" * 200, "4.tmp"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert available_steps(tmp_path) == [2]


def test_params_and_averages_are_read_alone(tmp_path):
  snapshots = saved(tmp_path)
  for ema in ("", "eval"):
    params, extra, meta = restore_params(tmp_path, step=2, ema=ema)
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, snapshots[2].full(ema)))
    assert extra["seen"] == 32 and meta["step"] == 2
  with pytest.raises(DataError, match="no average named 'evil'; there are eval"):
    restore_params(tmp_path, ema="evil")
  with pytest.raises(DataError, match="no checkpoint of step 3; there are 2, 4"):
    restore_params(tmp_path, step=3)
  with pytest.raises(DataError, match="no checkpoints found"):
    restore_params(tmp_path / "nowhere")


def test_one_flipped_bit_anywhere_is_found_and_the_one_before_is_used(tmp_path, capsys):
  snapshots = saved(tmp_path)
  files = [f for f in (tmp_path / "checkpoints" / "4").rglob("*") if f.is_file() and f.stat().st_size and f.name != "manifest.json"]
  victim = max(files, key=lambda f: f.stat().st_size)
  data = bytearray(victim.read_bytes())
  data[len(data) // 2] ^= 4
  victim.write_bytes(bytes(data))
  restored, meta = Checkpoints(tmp_path).restore(start().state)
  assert meta["step"] == 2 and "damaged" in capsys.readouterr().err
  assert_same(restored, snapshots[2])
  assert available_steps(tmp_path) == [2] and (tmp_path / "corrupt" / "4").is_dir()


def test_fingerprints_alone_find_it_when_the_writer_was_killed_before_its_manifest(tmp_path, monkeypatch):
  saved(tmp_path, steps=(2,))
  (tmp_path / "checkpoints" / "2" / "manifest.json").unlink()
  meta = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
  text = meta.read_text()
  number = text.split('"image.proj.kernel": ')[1].split(",")[0].split("}")[0]
  meta.write_text(text.replace(number, str(int(number) ^ 1), 1))
  with pytest.raises(DataError, match="every checkpoint is damaged"):
    restore_params(tmp_path)
  with pytest.raises(DataError, match="every checkpoint is damaged .2, now in .*corrupt.*would begin at step 0"):
    Checkpoints(tmp_path).restore(start().state)
  assert Checkpoints(tmp_path).restore(start().state) is None


def test_without_a_manifest_a_flip_in_meta_or_in_an_array_is_found(tmp_path):
  saved(tmp_path)
  folder = tmp_path / "checkpoints" / "4"
  (folder / "manifest.json").unlink()
  assert restore_params(tmp_path)[2]["step"] == 4
  data = max((file for file in (folder / "params").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
  whole, clean, taken = data.read_bytes(), restore_params(tmp_path)[0], []
  for at in range(0, len(whole), len(whole) // 12):
    data.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    params, _, meta = restore_params(tmp_path)
    taken.append(meta["step"])
    assert meta["step"] == 2 or all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(clean)))
  assert 2 in taken
  data.write_bytes(whole)
  meta = folder / "meta" / "metadata"
  meta.write_text(meta.read_text().replace('"next_index": 0', '"next_index": 1'))
  assert restore_params(tmp_path)[2]["step"] == 2 and newest_whole(tmp_path)[1] == {4: "meta differs from its digest"}


FREEZE = dict(freeze=("image/.*",))


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(bytes(data))


def refused(tmp_path, *told):
  """Neither training nor loading takes the frozen parameters, and no checkpoint is blamed for them."""
  for read in (lambda: Checkpoints(tmp_path).restore(start(**FREEZE).state), lambda: restore_params(tmp_path)):
    with pytest.raises(DataError) as error:
      read()
    assert all(part in str(error.value) for part in (*told, "frozen parameters that checkpoint 4 belongs to"))
  assert available_steps(tmp_path) == [2, 4]


def test_frozen_parameters_that_are_damaged_missing_or_of_another_start_are_an_error_that_names_them(tmp_path):
  saved(tmp_path / "run", **FREEZE)
  folder, = (tmp_path / "run" / "frozen").iterdir()
  victim = max((file for file in folder.rglob("*") if file.is_file() and file.suffix != ".json"), key=lambda file: file.stat().st_size)
  kept = victim.read_bytes()
  flip(victim)
  refused(tmp_path / "run", folder.name, str(victim.relative_to(folder)))
  victim.write_bytes(kept)
  saved(tmp_path / "other", seed=5, **FREEZE)
  other, = (tmp_path / "other" / "frozen").iterdir()
  assert other.name != folder.name
  folder.rename(tmp_path / "away")
  refused(tmp_path / "run", folder.name, "no such folder")
  other.rename(folder)
  refused(tmp_path / "run", folder.name, "arrays differ from their fingerprints: image.proj.kernel")


def test_frozen_parameters_left_over_from_an_earlier_start_do_not_win(tmp_path):
  saved(tmp_path, seed=5, **FREEZE)
  shutil.rmtree(tmp_path / "checkpoints")                  # a start that was killed before its first checkpoint, and another seed
  snapshots = saved(tmp_path, **FREEZE)
  restored, _ = Checkpoints(tmp_path).restore(start(**FREEZE).state)
  assert_same(restored, snapshots[4])
  np.testing.assert_array_equal(restore_params(tmp_path)[0]["image"]["proj"]["kernel"], snapshots[4].frozen["image"]["proj"]["kernel"])


def test_frozen_parameters_that_a_killed_start_left_unfinished_are_saved_again(tmp_path):
  saved(tmp_path, steps=(2,), **FREEZE)
  shutil.rmtree(tmp_path / "checkpoints")
  folder, = (tmp_path / "frozen").iterdir()
  (folder / "manifest.json").unlink()
  saved(tmp_path, steps=(2,), **FREEZE)
  assert (folder / "manifest.json").is_file() and restore_params(tmp_path)[2]["frozen"] == folder.name


def test_another_model_is_named_not_called_damaged(tmp_path):
  saved(tmp_path)
  with pytest.raises(DataError, match="ema.*checkpoint has .*asks for"):
    Checkpoints(tmp_path).restore(start(compile_step=False, ema={}).state)
  assert available_steps(tmp_path) == [2, 4]


def test_what_is_nested_without_end_is_a_fault_like_any_other(tmp_path):
  for name in ("meta/metadata", "manifest.json"):
    file = tmp_path / "1" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply|manifest.json is not JSON"):
      meta_of(tmp_path / "1")
