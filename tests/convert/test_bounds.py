"""Public configs from strangers: every key with every kind of nonsense is read as before or is one line of DataError, at once."""
import copy
import json
from pathlib import Path

import pytest

from mmdiff.convert import bounds, formats, public, schedulers
from mmdiff.core.errors import DataError
from tests import toy_pipelines

FIXTURES = Path(__file__).parent / "fixtures"
ODD = (0, -1, 10 ** 9, 10 ** 400, 1e308, "", "x" * 70_000, [], {}, None, [[1]], {"a": 1}, True, [10 ** 9] * 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{name: (folder, config's file name, the config)}: linked weights beside a config that may be written."""
  made, root = {}, tmp_path_factory.mktemp("strangers")
  pipeline = toy_pipelines.folder(root / "pipeline")
  for name, source, file in (("hf_clip", FIXTURES / "hf_clip", "config.json"), ("hf_siglip", FIXTURES / "hf_siglip", "config.json"),
                             ("open_clip_vit", FIXTURES / "open_clip_vit", "open_clip_config.json"),
                             ("unet", pipeline / "unet", "config.json"), ("vae", pipeline / "vae", "config.json"),
                             ("text_encoder", pipeline / "text_encoder", "config.json")):
    folder = root / "copies" / name
    folder.mkdir(parents=True)
    for path in source.iterdir():
      (folder / path.name).write_bytes(path.read_bytes()) if path.suffix == ".json" else (folder / path.name).symlink_to(path)
    made[name] = folder, file, json.loads((folder / file).read_text())
  return made


def paths(value, path=()):
  for key, inner in value.items():
    yield (*path, key)
    if isinstance(inner, dict):
      yield from paths(inner, (*path, key))


def put(config, path, value):
  made = copy.deepcopy(config)
  node = made
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = value
  return made


def swept(folder: Path, file: str, config: dict, tried) -> set:
  """The keys of which some value of `tried(n)` was refused; anything but a line of DataError fails."""
  _, _, before = public.read(folder)
  refused = set()
  for n, path in enumerate(paths(config)):
    for value in tried(n):
      (folder / file).write_text(json.dumps(put(config, path, value)))
      try:
        _, _, reading = public.read(folder)
        if reading.module != before.module:
          with bounds.understood(str(folder)):
            formats.variables(reading.module, reading.inputs)
      except DataError as error:
        refused.add(path)
        assert "\n" not in str(error) and len(str(error)) < 1_000, (path, str(error)[:300])
  (folder / file).write_text(json.dumps(config))
  return refused


@pytest.mark.parametrize("name", ["hf_clip", "open_clip_vit", "unet"])
def test_nonsense_is_one_line_of_data_error(name, folders):
  """One kind of nonsense for each key, in turn."""
  assert len(swept(*folders[name], lambda n: [ODD[n % len(ODD)]])) > 4


@pytest.mark.long
@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip", "open_clip_vit", "unet", "vae", "text_encoder"])
def test_every_nonsense_for_every_key(name, folders):
  assert len(swept(*folders[name], lambda n: ODD)) > 8


@pytest.mark.parametrize("key,value,says", [
  ("num_attention_heads", 0, "expected at least 1, found 0"),
  ("num_hidden_layers", 10 ** 9, "expected a value from 1 to 256, found 1000000000"),
  ("hidden_act", ["gelu"], "unknown activation"),
  ("layer_norm_eps", "1e-5", "layer_norm_eps: expected"), ("hidden_size", [8], "hidden_size")])
def test_the_key_is_named(key, value, says, folders):
  folder, file, config = folders["hf_clip"]
  (folder / file).write_text(json.dumps(put(config, ("text_config", key), value)))
  with pytest.raises(DataError, match="config.json") as error:
    public.read(folder)
  assert says in str(error.value) and key.split("_")[-1] in str(error.value)
  (folder / file).write_text(json.dumps(config))


def test_nesting_and_repetition(tmp_path):
  for text, says in (("{" + '"a":{' * 40 + "}" * 41, "nested more than"), ('{"a": 1, "a": 2}', "given twice"), ('{"a": NaN}', "no number"),
                     ("[" * 100_000, "nested too deeply")):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=says):
      formats.read_json(tmp_path / "config.json")


def test_the_infinity_that_diffusers_writes_is_read_and_no_other(tmp_path):
  """Its DPM-Solver, UniPC and DEIS write -inf as Python's json does."""
  file = tmp_path / "scheduler_config.json"
  file.write_text('{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity}')
  assert schedulers.plan_of(formats.read_json(file), steps=4).prediction == "eps"
  for text in ('"lambda_min_clipped": Infinity', '"lambda_min_clipped": NaN', '"beta_start": -Infinity', '"rho": Infinity', '"rho": 1e999'):
    file.write_text(f"{{{text}}}")
    with pytest.raises(DataError, match="NaN is no number|expected .*found -?inf"):
      formats.read_json(file)
