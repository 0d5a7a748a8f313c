"""A run that starts from another run's weights."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.commands import train
from mmdiff.convert import public, resize
from mmdiff.core.build import build
from mmdiff.core.errors import DataError
from mmdiff.data import TOKENIZERS
from mmdiff.models.autoencoder import kl
from mmdiff.train import checkpoint, init, loop
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


def test_every_leaf_comes_from_the_source_and_what_is_fresh_stays(source):
  values, _, _ = checkpoint.restore_params(source, step=4)
  blank = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), values)
  made = init.initialised(state_of(blank), path=str(source), params="raw", map={"decoder/project_vocab": ""})
  assert jnp.all(made.params["decoder"]["project_vocab"]["kernel"] == 7)
  assert np.array_equal(made.params["image"]["position"], values["image"]["position"])
  assert np.array_equal(made.ema["eval"]["text"]["position"], values["text"]["position"])
  older = init.initialised(state_of(blank), path=f"{source}@2", params="raw")
  assert not np.array_equal(older.params["image"]["position"], values["image"]["position"])


def test_frozen_leaves_too(source):
  values, _, _ = checkpoint.restore_params(source)
  blank = jax.tree.map(lambda x: jnp.zeros(x.shape), values)
  kept = {name: part if name != "image" else jax.tree.map(lambda x: None, part) for name, part in blank.items()}
  frozen = {name: part if name == "image" else jax.tree.map(lambda x: None, part) for name, part in blank.items()}
  made = init.initialised(state_of(kept, frozen), path=str(source), params="raw")
  assert np.array_equal(made.frozen["image"]["position"], values["image"]["position"]) and made.params["image"]["position"] is None


def test_what_does_not_fit_is_named(source):
  values, _, _ = checkpoint.restore_params(source)
  blank = jax.tree.map(lambda x: jnp.zeros(x.shape), values)
  blank["image"]["position"] = jnp.zeros((5, 16))
  blank["more"] = {"kernel": jnp.zeros((2, 2))}
  with pytest.raises(DataError) as error:
    init.initialised(state_of(blank), path=str(source), map={"wrong": ""})
  for told in ("map names 'wrong'", "image/position: 4 positions cannot be interpolated to 5", "(step 4, eval parameters)",
               "has no more/kernel"):
    assert told in str(error.value)
  with pytest.raises(DataError, match="parts names 'texts', which is no parameter here"):
    init.initialised(state_of(blank), parts={"texts": "nowhere"})
  with pytest.raises(DataError, match="elsewhere: no such file or folder; give a run directory"):
    init.initialised(state_of(blank), path=str(source / "elsewhere"))
  with pytest.raises(DataError, match="no run directory"):
    init.initialised(state_of(blank), path=str(source / "checkpoints"))


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
  made = init.initialised(state_of(blank), params="raw", parts={"autoencoder": str(folder), "text": f"{source}@4"})
  for name, wanted in (("autoencoder", autoencoder), ("text", values["text"])):
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.params[name]), jax.tree.leaves(wanted)))
  assert jnp.all(made.params["denoiser"]["scale"] == 7) and jnp.all(made.params["two"]["first"]["position"] == 7)


def test_a_whole_run_may_be_a_public_checkpoint(vae):
  folder, params = vae
  made = init.initialised(state_of(jax.tree.map(jnp.zeros_like, params)), path=str(folder))
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.params), jax.tree.leaves(params)))
  assert init.tokenizer_of(str(folder)) is None


def test_a_whole_stable_diffusion_is_one_source(vae, tmp_path, monkeypatch):
  folder, params = vae
  (tmp_path / "sd" / "vae").mkdir(parents=True)
  for file in folder.iterdir():
    (tmp_path / "sd" / "vae" / file.name).write_bytes(file.read_bytes())
  (tmp_path / "sd" / "model_index.json").write_text("{}")
  here = {"denoiser": {"scale": jnp.zeros(3)}, "autoencoder": jax.tree.map(jnp.zeros_like, params)}
  made = init.initialised(state_of(here), path=str(tmp_path / "sd"), map={"denoiser": ""})
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.params["autoencoder"]), jax.tree.leaves(params)))
  with pytest.raises(DataError, match=r"denoiser/scale: .*sd \(autoencoder\) has no denoiser/scale"):
    init.initialised(state_of(here), path=str(tmp_path / "sd"))


def test_batch_statistics_are_not_left_out_in_silence(vae, monkeypatch):
  loaded = public.load(vae[0], quiet=True)
  monkeypatch.setattr(public, "load", lambda *args, **kwargs: loaded._replace(statistics={"norm": {"mean": np.zeros(2)}}))
  with pytest.raises(DataError, match="has batch statistics"):
    init.weights_of(str(vae[0]))


def test_where_a_part_is_in_its_source():
  weights = init.Weights({"text/embed/embedding": np.zeros(1), "image/position": np.zeros(1)}, "a model")
  alone = init.Weights({"embed/embedding": np.zeros(1)}, "an encoder")
  assert init.part_path("text/embed/embedding", "text", weights) == "text/embed/embedding"
  assert init.part_path("text/first/embed/embedding", "text/first", weights) == "text/embed/embedding"
  assert init.part_path("text/first/embed/embedding", "text/first", alone) == "embed/embedding"


def test_a_part_may_be_the_first_layers_of_a_stack(monkeypatch, capsys):
  there = {"stack/mlp/up/kernel": np.arange(24.0).reshape(12, 2), "embed/embedding": np.zeros((4, 2))}
  monkeypatch.setattr(init, "weights_of", lambda path, params: init.Weights(there, "an encoder", public=True))
  here = {"text": {"stack": {"mlp": {"up": {"kernel": jnp.zeros((11, 2))}}}}}
  made = init.initialised(state_of(here), parts={"text": "anywhere"})
  assert np.array_equal(made.params["text"]["stack"]["mlp"]["up"]["kernel"], there["stack/mlp/up/kernel"][:11])
  assert capsys.readouterr().err == "init: text: the first 11 of 12 layers of an encoder\n"
  short = {"text": {"stack": {"mlp": {"up": {"kernel": jnp.zeros((13, 2))}}}, "embed": {"embedding": jnp.zeros((3, 2))}}}
  with pytest.raises(DataError, match=r"(?s)embedding: \[3, 2\] here.*\[13, 2\] here, stack/mlp/up/kernel is \[12, 2\] in an encoder"):
    init.initialised(state_of(short), parts={"text": "anywhere"})


def test_positions_and_patches_of_another_size_are_resized(monkeypatch, capsys):
  rng = np.random.default_rng(0)
  there = {"image/position": rng.normal(size=(5, 4)), "image/patchify/kernel": rng.normal(size=(48, 4)), "text/position": np.eye(16)[:, :4]}
  monkeypatch.setattr(init, "weights_of", lambda path, params: init.Weights(there, "a model"))
  here = {"image": {"position": jnp.zeros((17, 4)), "patchify": {"kernel": jnp.zeros((12, 4))}}, "text": {"position": jnp.zeros((9, 4))}}
  made = init.initialised(state_of(here), path="anywhere").params
  np.testing.assert_allclose(made["image"]["position"], resize.positions(there["image/position"], 17, grid=True), atol=1e-6)
  np.testing.assert_allclose(made["image"]["patchify"]["kernel"], resize.patch_kernel(there["image/patchify/kernel"], 2), atol=1e-6)
  np.testing.assert_allclose(made["text"]["position"], resize.positions(there["text/position"], 9, grid=False), atol=1e-6)
  assert capsys.readouterr().err.splitlines() == [
    "init: image/patchify/kernel: patches of 4×4 pixels were resized to 2×2", "init: image/position: 5 positions were interpolated to 17",
    "init: text/position: 16 positions were interpolated to 9"]
  here["image"]["position"] = jnp.zeros((17, 5))
  with pytest.raises(DataError, match=r"image/position: \[17, 5\] here, image/position is \[5, 4\]"):
    init.initialised(state_of(here), path="anywhere")
  here["image"]["position"] = jnp.zeros((12, 4))
  with pytest.raises(DataError, match="5 positions cannot be interpolated to 12"):
    init.initialised(state_of(here), path="anywhere")


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
