"""A run that starts from another run's weights."""
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.commands import flags, train
from mmdiff.convert import public, resize
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import TOKENIZERS
from mmdiff.models import MODELS
from mmdiff.models.autoencoder import kl
from mmdiff.objectives import OBJECTIVES
from mmdiff.train import checkpoint, init, loop, sources
from tests import toy_runs
from tests.train import toys


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("source"), toy_runs.coca(), steps=(2, 4))


def test_the_longest_entry_counts():
  names = {"text": "words", "text/stack": "", "image/stack": "visual/blocks"}
  where = lambda path: init.source_path(path, names)
  assert where("text/embed/embedding") == "words/embed/embedding" and where("text/stack/mlp/up/kernel") is None
  assert where("image/stack/mlp/up/kernel") == "visual/blocks/mlp/up/kernel"
  assert where("image/position") == "image/position" and where("textual/position") == "textual/position"


def state_of(params, frozen=None):
  from mmdiff.train.state import TrainState
  zero = jnp.zeros((), jnp.int32)
  frozen = jax.tree.map(lambda x: None, params) if frozen is None else frozen
  return TrainState(step=zero, params=params, frozen=frozen, opt_state=(), ema={"eval": jax.tree.map(jnp.copy, params)}, extra=(),
                    key=jax.random.key(0), counts=jnp.zeros((2, 1), jnp.uint32), skipped=zero, skipped_in_a_row=zero)


def start(state, **source):
  return init.initialised(state, init.found(state.full(), state.extra, **source))


def test_every_leaf_comes_from_the_source_and_what_is_fresh_stays(source):
  values, _, _ = checkpoint.restore_params(source, step=4)
  blank = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), values)
  made = start(state_of(blank), path=str(source), params="raw", map={"decoder/project_vocab": ""})
  assert jnp.all(made.params["decoder"]["project_vocab"]["kernel"] == 7)
  assert np.array_equal(made.params["image"]["position"], values["image"]["position"])
  assert np.array_equal(made.ema["eval"]["text"]["position"], values["text"]["position"])
  older = start(state_of(blank), path=f"{source}@2", params="raw")
  assert not np.array_equal(older.params["image"]["position"], values["image"]["position"])


def test_frozen_leaves_too(source):
  values, _, _ = checkpoint.restore_params(source)
  blank = jax.tree.map(lambda x: jnp.zeros(x.shape), values)
  kept = {name: part if name != "image" else jax.tree.map(lambda x: None, part) for name, part in blank.items()}
  frozen = {name: part if name == "image" else jax.tree.map(lambda x: None, part) for name, part in blank.items()}
  made = start(state_of(kept, frozen), path=str(source), params="raw")
  assert np.array_equal(made.frozen["image"]["position"], values["image"]["position"]) and made.params["image"]["position"] is None


def test_what_does_not_fit_is_named(source):
  values, _, _ = checkpoint.restore_params(source)
  blank = jax.tree.map(lambda x: jnp.zeros(x.shape), values)
  blank["image"]["position"] = jnp.zeros((5, 16))
  blank["more"] = {"kernel": jnp.zeros((2, 2))}
  with pytest.raises(DataError) as error:
    start(state_of(blank), path=str(source), map={"wrong": ""})
  for told in ("map names 'wrong'", "image/position: 4 positions cannot be interpolated to 5", "(step 4, eval parameters)",
               "has no more/kernel"):
    assert told in str(error.value)
  with pytest.raises(DataError, match="parts names 'texts', which is no parameter here"):
    start(state_of(blank), parts={"texts": "nowhere"})
  with pytest.raises(DataError, match="elsewhere: no such file or folder; expected a run directory"):
    start(state_of(blank), path=str(source / "elsewhere"))
  with pytest.raises(DataError, match="checkpoints: no model, but a folder"):
    start(state_of(blank), path=str(source / "checkpoints"))


def test_a_run_reads_its_data_with_the_sources_tokenizer(source, tmp_path):
  config = toy_runs.coca() | dict(init=dict(path=f"{source}@2", params="", map={}))
  config["data"] = dict(config["data"], captions=dict(short=1.0), tokenizer=dict(name="bpe", vocab=300, sample=3))
  assert train.make_dataset(config, tmp_path).tokenizer.fingerprint() == build(
    TOKENIZERS, dict(name="file", path=str(source / "tokenizer.json"))).fingerprint()
  assert train.starts_from(config)["path"] == f"{source}@2" and train.starts_from(toy_runs.coca()) == {}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """(folder in the layout of diffusers, the parameters in it)."""
  path, model = tmp_path_factory.mktemp("vae"), kl(variant="f8", widths=(8, 16), blocks=1, groups=4, image_size=16)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  public.save(path, format="diffusers-vae", module=model, config={}, params=params)
  return path, params


def test_parts_come_from_sources_of_their_own_and_the_rest_stays(source, vae):
  values, _, _ = checkpoint.restore_params(source, step=4)
  folder, autoencoder = vae
  blank = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), {"denoiser": {"scale": np.zeros(3)}, "autoencoder": autoencoder,
                                                          "text": values["text"], "two": {"first": values["text"]}})
  made = start(state_of(blank), params="raw", parts={"autoencoder": str(folder), "text": f"{source}@4"})
  for name, wanted in (("autoencoder", autoencoder), ("text", values["text"])):
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.params[name]), jax.tree.leaves(wanted)))
  assert jnp.all(made.params["denoiser"]["scale"] == 7) and jnp.all(made.params["two"]["first"]["position"] == 7)


def test_a_whole_run_may_be_a_public_checkpoint(vae):
  folder, params = vae
  made = start(state_of(jax.tree.map(jnp.zeros_like, params)), path=str(folder))
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.params), jax.tree.leaves(params)))
  assert sources.tokenizer_of(str(folder)) is None          # an autoencoder has none


def test_a_whole_stable_diffusion_is_one_source(vae, tmp_path, monkeypatch):
  folder, params = vae
  (tmp_path / "sd" / "vae").mkdir(parents=True)
  for file in folder.iterdir():
    (tmp_path / "sd" / "vae" / file.name).write_bytes(file.read_bytes())
  (tmp_path / "sd" / "model_index.json").write_text("{}")
  here = {"denoiser": {"scale": jnp.zeros(3)}, "autoencoder": jax.tree.map(jnp.zeros_like, params)}
  made = start(state_of(here), path=str(tmp_path / "sd"), map={"denoiser": ""})
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.params["autoencoder"]), jax.tree.leaves(params)))
  with pytest.raises(DataError, match=r"denoiser/scale: .*sd \(autoencoder\) has no denoiser/scale"):
    start(state_of(here), path=str(tmp_path / "sd"))


def weights(monkeypatch, there: dict, **more):
  """Makes every path a source of these leaves."""
  monkeypatch.setattr(init, "weights_of", lambda path, params: sources.Weights(there, "a model", **more))


def test_batch_statistics_come_with_the_parameters_that_they_belong_to(monkeypatch):
  leaves = {"image/norm/scale": np.ones(2), "text/kernel": np.ones(3)}
  here = {"image": {"norm": {"scale": jnp.zeros(2)}}, "text": {"kernel": jnp.zeros(3)}}
  extra = {"image": {"norm": {"mean": jnp.zeros(2)}}}
  state = state_of(here).replace(extra=extra, ema_extra={"eval": extra})
  weights(monkeypatch, leaves, statistics={"image/norm/mean": np.array([3.0, 4.0])})
  made = start(state, path="anywhere")
  assert made.extra["image"]["norm"]["mean"].tolist() == made.ema_extra["eval"]["image"]["norm"]["mean"].tolist() == [3, 4]
  assert start(state, parts={"text": "anywhere"}).extra["image"]["norm"]["mean"].tolist() == [0, 0]
  assert start(state, path="anywhere", map={"image": ""}).extra["image"]["norm"]["mean"].tolist() == [0, 0]
  with pytest.raises(DataError, match="image: a model has batch statistics of image, and this model keeps none"):
    start(state_of(here), path="anywhere")
  assert start(state_of(here), parts={"text": "anywhere"}).params["text"]["kernel"].tolist() == [1, 1, 1]
  for there, told in (({}, "a model has no batch statistics image/norm/mean"),
                      ({"image/norm/mean": np.zeros(3)}, r"image/norm/mean: \[2\] here, the batch statistics image/norm/mean are \[3\]")):
    weights(monkeypatch, leaves, statistics=there)
    with pytest.raises(DataError, match=told):
      start(state, path="anywhere")


def test_facts_that_no_shape_tells_must_be_those_of_the_source(monkeypatch):
  leaves = {"visual/stack/kernel": np.ones(2), "text/stack/kernel": np.ones(2)}
  here = {"image": {"stack": {"kernel": jnp.zeros(2)}}, "text": {"stack": {"kernel": jnp.zeros(2)}}}
  weights(monkeypatch, leaves, facts={"visual/act": "quick_gelu", "visual/eps": 1e-5, "visual/mean": (0.5, 0.5, 0.5), "text/act": "gelu"})
  told = {"image/act": "gelu", "image/eps": 1.00000001e-5, "image/mean": [0.5, 0.5, 0.4], "text/act": "gelu", "text/heads": 8}
  source = dict(path="anywhere", map={"image": "visual"}, facts=told)
  with pytest.raises(ConfigError) as error:
    start(state_of(here), **source)
  assert [line.partition(";")[0] for line in str(error.value).splitlines()] == [
    "init: image/act is gelu here and quick_gelu in a model", "init: image/mean is 0.5,0.5,0.4 here and 0.5,0.5,0.5 in a model"]
  assert "set --config.objective.model.act to that" in str(error.value) and "add 'image/act' to --config.init.differs" in str(error.value)
  assert start(state_of(here), differs=("image/act", "image/mean"), **source).params["image"]["stack"]["kernel"].tolist() == [1, 1]
  assert start(state_of(here), path="anywhere", map={"image": ""}, facts=told).params["text"]["stack"]["kernel"].tolist() == [1, 1]
  with pytest.raises(ConfigError, match="init.differs names image/acts; the facts of this model are image/act, "):
    start(state_of(here), differs=("image/acts",), **source)
  keys = [init.key_of(fact, drawing=True) for fact in ("denoiser/prediction", "denoiser/heads", "text/first/act", "autoencoder/scale")]
  assert keys == ["--config.objective.prediction", "--config.objective.denoiser.heads", "--config.objective.condition.first.act",
                  "--config.objective.encode.scale"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A CLIP with GELU in transformers' layout."""
  folder, model = tmp_path_factory.mktemp("published") / "clip", build(MODELS, toy_runs.clip()["objective"]["model"])
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 24), jnp.int32), jnp.ones((1, 24), bool))
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes["params"])
  config = dict(objective=dict(name="contrastive", loss="softmax"), data=dict(resize="crop", interpolation="bicubic"))
  public.save(folder, format="hf-clip", module=model.clone(image=model.image.clone(act="gelu"), text=model.text.clone(act="gelu")),
              config=config, params=params)
  return folder


def start_of(config, **init_block):
  """`train.start_of` without data to read."""
  config = config | dict(init=dict(path="", params="", map={}, parts={}, differs=()) | init_block)
  example = dict(image=np.zeros((16, 16, 3), np.uint8), tokens=np.zeros((24,), np.int32), mask=np.ones((24,), bool), id=np.uint32(0))
  dataset = types.SimpleNamespace(variants=lambda: [example])
  return train.start_of(config, build(OBJECTIVES, config["objective"]), dataset)


def test_public_weights_of_another_activation_or_eps_are_refused_before_anything_is_compiled(published):
  gelu, quick = (toy_runs.changed(toy_runs.clip(), act=act) for act in ("gelu", "quick_gelu"))
  assert np.all(start_of(gelu, path=str(published)).values["image/position"] == 1)
  with pytest.raises(ConfigError, match="image/act is quick_gelu here and gelu in .*clip .hf-clip.*text/act is"):
    try:
      start_of(quick, path=str(published))
    except ConfigError as error:
      raise ConfigError(str(error).replace("\n", " ")) from None
  with pytest.raises(ConfigError, match="text/eps is 0.001 here and 1e-05"):
    start_of(toy_runs.changed(gelu, eps=1e-3), parts={"text": str(published)})
  assert start_of(toy_runs.changed(gelu, pixels="half"), parts={"text": str(published)}).values.keys() == {
    name for name in sources.weights_of(str(published)).leaves if name.startswith("text/")}
  with pytest.raises(ConfigError, match="image/mean is 0.5,0.5,0.5 here and 0.48"):
    start_of(toy_runs.changed(gelu, pixels="half"), path=str(published))


def test_a_run_of_another_activation_is_refused(source):
  coca = toy_runs.coca()
  assert start_of(coca, path=str(source)).values
  with pytest.raises(ConfigError, match="decoder/act is quick_gelu here and gelu in .*source.* .step 4"):
    start_of(toy_runs.changed(coca, act="quick_gelu"), path=str(source))


def test_frozen_parameters_that_nothing_initialises_are_told_of(source, published, capsys):
  frozen = toy_runs.changed(toy_runs.clip(), act="gelu") | dict(freeze=("image/.*",))
  told = r"freeze holds image .image/.*nothing initialises it.*--config.init.parts.image .*--config.init.map.image=$"
  assert start_of(frozen) is None
  assert re.search(told, capsys.readouterr().err, re.MULTILINE)
  start_of(frozen, parts={"text": str(published)})
  assert "freeze holds image" in capsys.readouterr().err
  assert start_of(frozen, map={"image": ""}) is None
  assert start_of(frozen, parts={"image": str(published)}).values.keys() == {
    name for name in sources.weights_of(str(published)).leaves if name.startswith("image/")}
  with pytest.raises(ConfigError, match="--config.freeze: pattern 'imag/.*' matches no parameter"):
    start_of(frozen | dict(freeze=("imag/.*",)))
  init.say_what_stays_random(["perceptual/kernel"], given=("perceptual",))
  assert "freeze holds" not in capsys.readouterr().err


def test_a_line_that_names_a_path_takes_the_place_of_the_parts_of_the_config():
  load = lambda *line: flags.load_config(["--config=configs/t2i_latent.py:model=sd15", *line])
  config = load()
  assert config["init"]["parts"] and not config["init"]["path"]
  made = load("--config.init.path=v1-5.safetensors")
  assert made["init"]["path"] == "v1-5.safetensors" and made["init"]["parts"] == {}
  both = load("--config.init.parts.text=own", "--config.init.path=v1-5.safetensors")
  assert both["init"]["parts"] == {"text": "own"}


def test_where_a_part_is_in_its_source():
  weights = sources.Weights({"text/embed/embedding": np.zeros(1), "image/position": np.zeros(1)}, "a model")
  alone = sources.Weights({"embed/embedding": np.zeros(1)}, "an encoder")
  assert init.part_path("text/embed/embedding", "text", weights) == "text/embed/embedding"
  assert init.part_path("text/first/embed/embedding", "text/first", weights) == "text/embed/embedding"
  assert init.part_path("text/first/embed/embedding", "text/first", alone) == "embed/embedding"


def test_a_part_may_be_the_first_layers_of_a_stack(monkeypatch, capsys):
  there = {"stack/mlp/up/kernel": np.arange(24.0).reshape(12, 2), "embed/embedding": np.zeros((4, 2))}
  weights(monkeypatch, there, public=True)
  here = {"text": {"stack": {"mlp": {"up": {"kernel": jnp.zeros((11, 2))}}}}}
  made = start(state_of(here), parts={"text": "anywhere"})
  assert np.array_equal(made.params["text"]["stack"]["mlp"]["up"]["kernel"], there["stack/mlp/up/kernel"][:11])
  assert capsys.readouterr().err == "init: text: the first 11 of 12 layers of a model\n"
  short = {"text": {"stack": {"mlp": {"up": {"kernel": jnp.zeros((13, 2))}}}, "embed": {"embedding": jnp.zeros((3, 2))}}}
  with pytest.raises(DataError, match=r"(?s)embedding: \[3, 2\] here.*\[13, 2\] here, stack/mlp/up/kernel is \[12, 2\] in a model"):
    start(state_of(short), parts={"text": "anywhere"})


def test_positions_and_patches_of_another_size_are_resized(monkeypatch, capsys):
  rng = np.random.default_rng(0)
  there = {"image/position": rng.normal(size=(5, 4)), "image/patchify/kernel": rng.normal(size=(48, 4)), "text/position": np.eye(16)[:, :4]}
  weights(monkeypatch, there)
  here = {"image": {"position": jnp.zeros((17, 4)), "patchify": {"kernel": jnp.zeros((12, 4))}}, "text": {"position": jnp.zeros((9, 4))}}
  made = start(state_of(here), path="anywhere").params
  np.testing.assert_allclose(made["image"]["position"], resize.positions(there["image/position"], 17, grid=True), atol=1e-6)
  np.testing.assert_allclose(made["image"]["patchify"]["kernel"], resize.patch_kernel(there["image/patchify/kernel"], 2), atol=1e-6)
  np.testing.assert_allclose(made["text"]["position"], resize.positions(there["text/position"], 9, grid=False), atol=1e-6)
  assert capsys.readouterr().err.splitlines() == [
    "init: image/patchify/kernel: patches of 4×4 pixels were resized to 2×2", "init: image/position: 5 positions were interpolated to 17",
    "init: text/position: 16 positions were interpolated to 9"]
  here["image"]["position"] = jnp.zeros((17, 5))
  with pytest.raises(DataError, match=r"image/position: \[17, 5\] here, image/position is \[5, 4\]"):
    start(state_of(here), path="anywhere")
  here["image"]["position"] = jnp.zeros((12, 4))
  with pytest.raises(DataError, match="5 positions cannot be interpolated to 12"):
    start(state_of(here), path="anywhere")


def test_only_a_fresh_run_is_initialised(tmp_path):
  seen = []

  def initialise(state):
    seen.append(int(state.step))
    return state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
  run = lambda steps: loop.train(toys.config(steps=steps, optim=dict(default=dict(toy_runs.ADAMW, lr=0.0))), tmp_path,
                                 objective=toys.regression(), dataset=toys.Data(), initialise=initialise, devices=jax.devices()[:1])
  assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(run(2).params))
  assert int(run(3).step) == 3 and seen == [0]


@pytest.mark.long
def test_a_run_starts_from_another_with_its_tokenizer_and_goes_on_without_it(source, tmp_path):
  config = toy_runs.coca() | dict(steps=1, mesh=dict(data=-1, fsdp=1, tensor=1), init=dict(path=str(source), params="raw", map={}))
  config["optim"] = dict(default=dict(toy_runs.ADAMW, lr=0.0))
  config["data"] = dict(config["data"], captions=dict(short=1.0))
  state = train.run(config, tmp_path / "run", argv=[])
  values, _, _ = checkpoint.restore_params(source)
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(values)))
  assert (tmp_path / "run" / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
  gone = config | dict(steps=2, init=dict(path="nowhere", params="", map={}))
  assert int(train.run(gone, tmp_path / "run", argv=[]).step) == 2
