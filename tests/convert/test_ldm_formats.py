"""Single files of Stable Diffusion: small ones of every kind are understood from their names and shapes alone."""
import json
import os
import struct

import jax
import numpy as np
import pytest

from mmdiff.convert import formats, ldm_formats, public, rules, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.convert.containers import Container
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.models.autoencoder import Autoencoder
from mmdiff.models.text import ClipStates
from mmdiff.models.unet import PRESETS, UNet

SIZE = jax.ShapeDtypeStruct


def unet(kind, *, inside=4, text_width=768, linear=False, pooled=0):
  """(module, inputs, table) of a small UNet of a kind: a tenth of the width."""
  preset = PRESETS[kind]
  size, middle = 128 if kind in ("sdxl", "refiner", "x4") else 64, preset.get("middle", max(preset["depths"]))
  module = UNet(image_size=size, channels=4, width=32, middle=middle, blocks=2, **{
    key: preset[key] for key in ("mults", "depths", "heads", "sizes", "levels", "text_only", "head_dim") if key in preset})
  module = module if "head_dim" not in preset else module.clone(head_dim=16)
  side = 2 ** (len(module.mults) - 1)
  text = dict(tokens=SIZE((1, 8, text_width), np.float32), mask=SIZE((1, 8), bool))
  text |= dict(pooled=SIZE((1, pooled), np.float32), size=SIZE((1, 6), np.int32)) if pooled else {}
  text |= dict(concat=SIZE((1, side, side, inside - 4), np.float32)) if inside > 4 else {}
  text |= dict(level=SIZE((1,), np.int32)) if module.levels else {}
  inputs = (SIZE((1, side, side, 4), np.float32), SIZE((1,), np.float32), text)
  return module, inputs, ldm_formats.unet_table(tuple(map(bool, module.depths)), 2, linear=linear)


def vae():
  module = Autoencoder(widths=(32, 64), latent_channels=4, blocks=1, scale=0.18215, image_size=256)
  return module, (SIZE((1, 2, 2, 3), np.float32),), ldm_formats.vae_table(2)


def text(prefix, **fields):
  from mmdiff.convert import clip_tables
  module = ClipStates(**(dict(vocab=60, length=12, width=64, depth=3, heads=1, mlp_dim=128, embed_dim=None) | fields))
  table = clip_tables.hf_text(f"{prefix}text_model.", "") if prefix.endswith("transformer.") else clip_tables.openai_text(prefix, "")
  return module, (SIZE((1, 12), np.int32), SIZE((1, 12), bool)), table


def values_of(part, seed):
  """(parameters by path, tensors by public name) of random values."""
  module, inputs, table = part
  shapes, rng = formats.variables(module, inputs), np.random.default_rng(seed)
  leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
  bindings = rules.bind(table, shapes)
  return leaves, {name: tensor.read() for name, tensor in rules.save(leaves, bindings).items()}


def file(path, parts, more=()):
  """Writes a file of these parts; the parameters of each."""
  made = {name: values_of(part, seed) for seed, (name, part) in enumerate(parts.items())}
  whole = {name: value for _, named in made.values() for name, value in named.items()} | dict(more)
  st.write(path, {name: tensors.of(value) for name, value in whole.items()})
  return {name: leaves for name, (leaves, _) in made.items()}


def flat(params):
  return public.flatten(params)


SD1 = dict(unet=unet("sd1"), vae=vae(), text=text(ldm_formats.HF_TEXT))
SCHEDULE = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
BUFFERS = {"betas": np.zeros(1000, np.float32), "alphas_cumprod": SCHEDULE.astype(np.float32), "model_ema.decay": np.zeros(1, np.float32),
           "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(12)[None]}


def test_every_part_of_a_file_comes_out(tmp_path):
  path = tmp_path / "v1.safetensors"
  wanted = file(path, SD1, BUFFERS)
  for part, leaves in wanted.items():
    loaded = public.load(path, quiet=True, part=part)
    found = flat(loaded.params)
    assert found.keys() == leaves.keys() and all(np.array_equal(found[name], leaves[name]) for name in leaves), part
    assert not loaded.report.missing and not loaded.report.unexpected
  assert public.load(path, quiet=True, part="unet").module == SD1["unet"][0]
  assert public.load(path, quiet=True, part="text").module.act == "quick_gelu"
  with pytest.raises(ConfigError, match="holds unet, vae, text; expected part to be one of them, found None"):
    public.load(path, quiet=True)


def test_a_file_becomes_folders_of_diffusers(tmp_path):
  path = tmp_path / "v1.safetensors"
  wanted = file(path, SD1)
  for part, format in (("unet", "diffusers-unet"), ("vae", "diffusers-vae"), ("text", "hf-clip-text")):
    loaded = public.load(path, quiet=True, part=part)
    public.save(tmp_path / part, format=format, module=loaded.module, config=loaded.config, params=loaded.params)
    again = flat(public.load(tmp_path / part, quiet=True).params)
    assert all(np.array_equal(again[name], wanted[part][name]) for name in wanted[part]), part


@pytest.mark.parametrize("kind, options, read", [
  ("sd1", dict(inside=9), {}), ("sd2", dict(text_width=1024, linear=True), dict(head_dim=16)),
  ("sdxl", dict(text_width=2048, linear=True, pooled=1280), dict(head_dim=16)),
  ("refiner", dict(text_width=1280, linear=True, pooled=1280), dict(head_dim=16)),
  ("x4", dict(text_width=1024, inside=7, linear=True), {})])
def test_unets_from_their_shapes(tmp_path, kind, options, read):
  part = unet(kind, **options)
  wanted = file(tmp_path / "a.safetensors", dict(unet=part))["unet"]
  loaded = public.load(tmp_path / "a.safetensors", quiet=True, part="unet", **read)
  # Where a level attends to nothing, it does not matter to what.
  assert loaded.module == part[0].clone(text_only=tuple(flag and bool(depth) for flag, depth in zip(part[0].text_only, part[0].depths)))
  found = flat(loaded.params)
  assert all(np.array_equal(found[name], wanted[name]) for name in wanted) and found.keys() == wanted.keys()


def test_the_text_encoders_of_the_later_models(tmp_path):
  second = dict(embed_dim=40, skip=1, norm=False, act="gelu")
  parts = dict(unet=unet("sdxl", text_width=128, linear=True, pooled=1280), vae=vae(), text=text(ldm_formats.HF_FIRST),
               text_2=text(ldm_formats.OPEN_SECOND, **second))
  path = tmp_path / "xl.safetensors"
  wanted = file(path, parts)
  first = public.load(path, quiet=True, part="text")
  assert (first.module.skip, first.module.norm, first.module.depth) == (1, False, 3)
  # Two layers of three are used, and all are kept.
  assert np.array_equal(first.params["stack"]["mlp"]["up"]["kernel"], wanted["text"]["stack/mlp/up/kernel"])
  both = public.load(path, quiet=True, part="text_2")
  assert both.module == parts["text_2"][0].clone(pad=0, whole=True) and set(flat(both.params)) == set(wanted["text_2"])
  assert public.load(path, quiet=True, part="vae").module.scale == 0.13025


@pytest.mark.parametrize("layers, skip", [(24, 1), (23, 0)])
def test_the_layer_that_stable_diffusion_2_reads(tmp_path, layers, skip):
  """OpenCLIP's 24 layers are read up to the 23rd; files made from folders of diffusers end there, and lose no more."""
  path, small = tmp_path / "2.safetensors", dict(depth=layers, width=8, mlp_dim=8, act="gelu", skip=skip, whole=True)
  unread = {"text_projection": np.zeros((8, 8), np.float32), "logit_scale": np.zeros((), np.float32)} if layers == 24 else {}
  more = {ldm_formats.OPEN_TEXT + name: value for name, value in unread.items()}
  wanted = file(path, dict(text=text(ldm_formats.OPEN_TEXT, **small)), more)
  loaded = public.load(path, quiet=True)
  assert (loaded.module.depth, loaded.module.skip, loaded.module.norm, loaded.module.pad) == (layers, skip, True, 0)
  assert np.array_equal(loaded.params["norm_post"]["scale"], wanted["text"]["norm_post/scale"])
  assert public.load(path, quiet=True, skip=2).module.skip == 2
  with pytest.raises(ConfigError, match=f"has {layers} layers, found {layers}"):
    public.load(path, quiet=True, skip=layers)


def test_a_layer_that_a_folder_of_one_encoder_does_not_say_is_told_of(tmp_path, capsys):
  for skip, told in ((1, True), (0, False)):
    module, inputs, _ = text(ldm_formats.OPEN_TEXT, act="gelu", depth=2, width=8, mlp_dim=8)
    module = module.clone(skip=skip, whole=True)
    params = public.nest({name: np.zeros(shape, np.float32) for name, shape in formats.variables(module, inputs).items()})
    public.save(tmp_path / str(skip), format="hf-clip-text", module=module, config=dict(data={}), params=params)
    assert ("states are those 1 before the last, and readers of this folder alone take the last" in capsys.readouterr().err) == told


def test_one_family_is_not_taken_for_its_neighbour(tmp_path):
  """SD-Turbo's file has the names of SDXL's and is a Stable Diffusion 2; a refiner's has them too and is SDXL's."""
  small = dict(width=8, depth=24, mlp_dim=8, embed_dim=8)
  for kind, options, skip, scale in (("sd2", dict(text_width=8, linear=True), 1, 0.18215),
                                     ("refiner", dict(text_width=8, linear=True, pooled=1280), 1, 0.13025)):
    path = tmp_path / f"{kind}.safetensors"
    file(path, dict(unet=unet(kind, **options), vae=vae(), text=text(ldm_formats.OPEN_FIRST, **small)))
    found = public.read(path, part="text")[2].module
    assert (found.skip, found.norm) == (skip, kind == "sd2"), kind
    assert public.read(path, part="vae")[2].module.scale == scale and public.read(path, part="unet", head_dim=16)[2].module.image_size == (
      64 if kind == "sd2" else 128)


def test_an_autoencoder_alone(tmp_path):
  path = tmp_path / "vae.safetensors"
  leaves, named = values_of(vae(), 0)
  st.write(path, {name.removeprefix("first_stage_model."): tensors.of(value) for name, value in named.items()})
  loaded = public.load(path, quiet=True)
  assert all(np.array_equal(flat(loaded.params)[name], leaves[name]) for name in leaves)
  assert "does not say how its latents are scaled" in loaded.report.text()
  assert public.load(path, quiet=True, scale=0.5).module.scale == 0.5


def test_names_that_others_write_are_renamed_on_sight(tmp_path):
  """Attention of an autoencoder, and CLIP's text tower with or without its group, in a single file and in a folder of diffusers."""
  leaves, named = values_of(vae(), 0)
  for spelling in (("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")):
    spelt = {}
    for name, value in named.items():
      for letter, other in zip(("q", "k", "v", "proj_out"), spelling):
        name = name.replace(f".mid.attn_1.{letter}.", f".mid.attn_1.{other}.")
      spelt[name] = value[..., 0, 0] if ".attn_1." in name and value.ndim == 4 else value
    assert sum(spelling[0] in name for name in spelt) == 4
    st.write(tmp_path / "vae.safetensors", {name: tensors.of(value) for name, value in spelt.items()})
    found = flat(public.load(tmp_path / "vae.safetensors", quiet=True).params)
    assert found.keys() == leaves.keys() and all(np.array_equal(found[name], leaves[name]) for name in leaves)
  both = named | {"first_stage_model.encoder.mid.attn_1.query.bias": named["first_stage_model.encoder.mid.attn_1.q.bias"]}
  st.write(tmp_path / "both.safetensors", {name: tensors.of(value) for name, value in both.items()})
  with pytest.raises(DataError, match="by another spelling, and both are there"):
    public.load(tmp_path / "both.safetensors", quiet=True)
  leaves, named = values_of(text(ldm_formats.HF_TEXT), 0)
  bare = {name.replace("text_model.", ""): tensors.of(value) for name, value in named.items()}
  st.write(tmp_path / "text.safetensors", bare)
  loaded = public.load(tmp_path / "text.safetensors", quiet=True)
  assert all(np.array_equal(flat(loaded.params)[name], leaves[name]) for name in leaves)
  public.save(tmp_path / "again", format="ldm", module=loaded.module, config=loaded.config, params=loaded.params, style=loaded.style)
  assert set(st.read(tmp_path / "again" / "model.safetensors")[0]) == set(bare)


def test_an_autoencoder_with_names_of_diffusers_and_no_config(tmp_path):
  module, inputs, _ = vae()
  leaves, _ = values_of(vae(), 0)
  public.save(tmp_path, format="diffusers-vae", module=module, config=dict(data={}), params=public.nest(leaves))
  (tmp_path / "config.json").unlink()
  loaded = public.load(tmp_path, quiet=True)
  assert loaded.format == "ldm" and loaded.module == module
  assert all(np.array_equal(flat(loaded.params)[name], leaves[name]) for name in leaves)


def test_what_does_not_fit_is_named(tmp_path):
  path, lacking = tmp_path / "a.safetensors", "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
  _, named = values_of(SD1["unet"], 0)
  more = {**named, "model.diffusion_model.control.weight": np.zeros(3, np.float32)}
  del more[lacking]
  st.write(path, {name: tensors.of(value) for name, value in more.items()})
  with pytest.raises(DataError, match=f"(?s)missing: {lacking}.*unexpected: model.diffusion_model.control.weight"):
    public.load(path, quiet=True)
  del more["model.diffusion_model.out.2.weight"]
  st.write(path, {name: tensors.of(value) for name, value in more.items()})
  with pytest.raises(DataError, match="out.2.weight is missing, from which the architecture is read"):
    public.load(path, quiet=True)
  _, named = values_of(text(ldm_formats.OPEN_SECOND, embed_dim=40, act="gelu"), 0)
  del named[f"{ldm_formats.OPEN_SECOND}text_projection"]
  st.write(path, {name: tensors.of(value) for name, value in named.items()})
  with pytest.raises(DataError, match="embedders.1.model.text_projection is missing, from which"):
    public.load(path, quiet=True)


@pytest.mark.parametrize("kind, options, expected", [
  ("sd1", {}, (686, 859_520_964)), ("sdxl", dict(text_width=2048, linear=True, pooled=1280), (1680, 2_567_463_684))])
def test_published_sizes(tmp_path, kind, options, expected):
  """Every tensor of the full UNets has one name, and reading the names back gives the published model."""
  _, inputs, table = unet(kind, **options)
  module = UNet(image_size=128 if kind == "sdxl" else 64, channels=4, blocks=2, middle=max(PRESETS[kind]["depths"]), **PRESETS[kind])
  bindings = rules.bind(table, formats.variables(module, inputs))
  assert (len(bindings), sum(tensors.size(binding.shape) for binding in bindings)) == expected
  found = {binding.theirs: tensors.Tensor(binding.shape, np.dtype(np.float32), lambda: np.zeros(())) for binding in bindings}
  source = formats.Source(tmp_path, None, {}, {}, {}, Container(found, {}, "safetensors"))
  assert ldm_formats.read(source).module == module


def published(path, *, width, depth, projection, extra=()):
  """A file of the names and shapes of a text encoder as others trade it, without values: a hole on the disk."""
  block = {f"self_attn.{name}_proj": (width, width) for name in "qkv"} | {
    "self_attn.out_proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
  shapes = {"text_model.embeddings.token_embedding.weight": (49_408, width), "text_model.embeddings.position_embedding.weight": (77, width)}
  shapes |= {f"text_model.encoder.layers.{n}.{name}.{leaf}": shape if leaf == "weight" else shape[:1]
             for n in range(depth) for name, shape in block.items() for leaf in ("weight", "bias")}
  norms = [f"encoder.layers.{n}.layer_norm{i}" for n in range(depth) for i in (1, 2)] + ["final_layer_norm"]
  shapes |= {f"text_model.{name}.{leaf}": (width,) for name in norms for leaf in ("weight", "bias")}
  shapes |= {"text_projection.weight": (projection, width)} if projection else {}
  header, end = {}, 0
  for name, shape in (shapes | dict(extra)).items():
    header[name] = dict(dtype="F16", shape=list(shape), data_offsets=[end, end + 2 * int(np.prod(shape))])
    end = header[name]["data_offsets"][1]
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text)
  os.truncate(path, 8 + len(text) + end)
  return path


@pytest.mark.parametrize("width, depth, projection, act, parameters", [
  (768, 12, None, "quick_gelu", 123_060_480), (768, 12, 768, "quick_gelu", 123_650_304), (1280, 32, 1280, "gelu", 694_659_840)])
def test_a_published_text_encoder_alone_is_known_by_its_shapes(tmp_path, width, depth, projection, act, parameters):
  file = published(tmp_path / "clip_l.safetensors", width=width, depth=depth, projection=projection)
  found, _, reading = public.read(file)
  module = reading.module
  assert found.name == "ldm" and (module.act, module.heads, module.depth, module.embed_dim) == (act, width // 64, depth, projection)
  assert (module.skip, module.norm) == (0, True) and module.pad == (49_407 if width == 768 else 0)
  shapes = formats.variables(module, reading.inputs)
  missing, unexpected, _ = rules.cover(reading.found, rules.bind(reading.rules, shapes), reading.ignorable)
  assert not missing and not unexpected and sum(tensors.size(shape) for shape in shapes.values()) == parameters
  assert "is a CLIP text encoder alone, " in reading.notices[0] and f"took the activation ({act})" in reading.notices[0]


def test_a_text_encoder_alone_computes_what_its_folder_does(tmp_path, monkeypatch):
  monkeypatch.setitem(ldm_formats.LONE, 32, ("tiny", "nobody's"))
  folder = tmp_path / "text_encoder"
  module = ClipStates(vocab=60, length=12, width=32, depth=2, heads=1, mlp_dim=64, embed_dim=24, act="quick_gelu", pad=59)
  shapes = formats.variables(module, (SIZE((1, 12), np.int32), SIZE((1, 12), bool)))
  rng = np.random.default_rng(0)
  params = public.nest({path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})
  config = dict(objective=None, model=dict(name="clip_text"), data=dict(text_len=12))
  public.save(folder, format="hf-clip-text", module=module, config=config, params=params)
  os.rename(folder / "model.safetensors", tmp_path / "clip_l.safetensors")
  alone = public.load(tmp_path / "clip_l.safetensors", quiet=True)
  assert alone.module.clone(whole=False) == module and not alone.report.missing and not alone.report.unexpected
  jax.tree.map(np.testing.assert_array_equal, alone.params, params)
  for format in ("hf-clip-text", "ldm"):
    public.save(tmp_path / format, format=format, module=alone.module, config=alone.config, params=alone.params, style=alone.style)
    jax.tree.map(np.testing.assert_array_equal, public.load(tmp_path / format, quiet=True).params, params)


def test_what_a_file_without_its_config_is_and_needs(tmp_path):
  path = tmp_path / "x.safetensors"
  with pytest.raises(DataError, match="is a CLIP text encoder alone, 512 wide, with 12 layers, and no config.json says its activation"):
    public.read(published(path, width=512, depth=12, projection=None))
  with pytest.raises(DataError, match="768 wide, with 11 layers"):
    public.read(published(path, width=768, depth=11, projection=None))
  for extra in ("vision_model.embeddings.class_embedding", "text_model.head.weight"):
    with pytest.raises(DataError, match="no known format.*those of transformers' CLIP or SigLIP, which goes by its config.json"):
      public.read(published(path, width=768, depth=12, projection=None, extra={extra: (768,)}))
  st.write(path, {"encoder.block.0.layer.0.SelfAttention.q.weight": tensors.of(np.zeros((2, 2), np.float32))})
  with pytest.raises(DataError, match="no known format.*those of transformers' T5, which goes by its config.json: put it beside"):
    public.read(path)
