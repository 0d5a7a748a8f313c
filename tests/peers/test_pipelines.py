"""Whole pipelines of diffusers with tiny random weights: loaded here, the same pictures from the same noise, written back, loaded there."""
import json

import numpy as np
import pytest

from tests.peers.test_clip_formats import random_weights

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]

CROSS, PLAIN, UP_CROSS, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
LENGTH, SIDE = 16, 8                                # of a prompt, and of the latents
PROMPTS, NEGATIVE = ["a red cat and a dog", "two birds"], ["a dark sky", "rain"]
UNET = dict(sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
            down_block_types=(CROSS, PLAIN), up_block_types=(UP, UP_CROSS), attention_head_dim=4)
XL = dict(cross_attention_dim=56, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
          projection_class_embeddings_input_dim=24 + 48)
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False, timestep_spacing="leading")


def tokenizer(folder):
  """CLIP's tokenizer with single letters and a few merges."""
  from transformers import CLIPTokenizer
  letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
  merges = ["c a", "ca t</w>", "r e", "re d</w>", "d o", "do g</w>"]
  merged = [merge.replace(" ", "") for merge in merges]
  words = [*letters, *(f"{c}</w>" for c in letters), "!", "!</w>", *merged, "<|startoftext|>", "<|endoftext|>"]
  vocab = {word: i for i, word in enumerate(["!!", *[w for w in words if w != "!!"]])}
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.json").write_text(json.dumps(vocab))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH), len(vocab)


def text_encoder(vocab, *, width=32, layers=3, projected=None, act="quick_gelu"):
  from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
  config = CLIPTextConfig(vocab_size=vocab, hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=2,
                          max_position_embeddings=LENGTH, hidden_act=act, bos_token_id=vocab - 2, eos_token_id=vocab - 1,
                          pad_token_id=vocab - 1, **(dict(projection_dim=projected) if projected else {}))
  return random_weights((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def autoencoder():
  from diffusers import AutoencoderKL
  return random_weights(AutoencoderKL(
    block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=2 * SIDE, scaling_factor=0.3,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2))


def stable(folder, *, scheduler="DDIM", unet=(), **levels):
  import diffusers
  words, vocab = tokenizer(folder / "words")
  made = random_weights(diffusers.UNet2DConditionModel(**UNET | dict(unet)))
  kind = diffusers.StableDiffusionInpaintPipeline if made.config.in_channels == 9 else diffusers.StableDiffusionPipeline
  pipe = kind(vae=autoencoder(), text_encoder=text_encoder(vocab), tokenizer=words, unet=made, safety_checker=None, feature_extractor=None,
              scheduler=getattr(diffusers, f"{scheduler}Scheduler").from_config(SD | levels), requires_safety_checker=False)
  return quiet(pipe)


def xl(folder, *, refiner=False, scheduler="EulerDiscrete"):
  import diffusers
  words, vocab = tokenizer(folder / "words")
  second = text_encoder(vocab, width=24, projected=24, act="gelu")
  more = dict(XL, cross_attention_dim=24, projection_class_embeddings_input_dim=24 + 40) if refiner else XL
  shared = dict(vae=autoencoder(), text_encoder_2=second, tokenizer_2=words,
                unet=random_weights(diffusers.UNet2DConditionModel(**UNET | more)),
                scheduler=getattr(diffusers, f"{scheduler}Scheduler").from_config(SD), add_watermarker=False)
  if refiner:
    return quiet(diffusers.StableDiffusionXLImg2ImgPipeline(text_encoder=None, tokenizer=None, requires_aesthetics_score=True,
                                                           force_zeros_for_empty_prompt=False, **shared))
  return quiet(diffusers.StableDiffusionXLPipeline(text_encoder=text_encoder(vocab), tokenizer=words, **shared))


def quiet(pipe):
  pipe.set_progress_bar_config(disable=True)
  return pipe


def load(pipe, folder):
  import mmdiff
  pipe.save_pretrained(folder)
  return mmdiff.load(folder)


def noise(side=SIDE, rows=2):
  return np.random.default_rng(0).normal(size=(rows, side, side, 4)).astype(np.float32)


def nchw(x):
  import torch
  return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def pictures(side=2 * SIDE):
  y, x = np.mgrid[:side, :side] / side
  one = np.stack([x, y, x * y], -1)
  return (np.stack([one, 1 - one]) * 255).astype(np.uint8)


def same(found, wanted, bound=1e-4):
  """found [B H W 3] in [-1, 1], wanted in [0, 1] as diffusers gives it."""
  np.testing.assert_allclose((found + 1) / 2, wanted, atol=bound)
  assert np.std(found) > 0.02


@pytest.mark.parametrize("scheduler, options", [
  ("DDIM", {}), ("PNDM", dict(skip_prk_steps=True)), ("EulerDiscrete", {}), ("DPMSolverMultistep", dict(use_karras_sigmas=True)),
  ("UniPCMultistep", {}), ("LMSDiscrete", {}), ("HeunDiscrete", {}),
  ("DDIM", dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"))])
def test_text_to_image(tmp_path, scheduler, options):
  pipe = stable(tmp_path, scheduler=scheduler, **options)
  model = load(pipe, tmp_path / "sd")
  how = dict(num_inference_steps=10, guidance_scale=5.0, output_type="np")
  rescale = 0.7 if options.get("rescale_betas_zero_snr") else 0.0
  wanted = pipe(PROMPTS, negative_prompt=NEGATIVE, latents=nchw(noise()), guidance_rescale=rescale, **how).images
  found = model.generate(PROMPTS, NEGATIVE, latents=noise(), steps=10, guidance=5.0, rescale=rescale, output="float")
  same(found, wanted)
  if scheduler == "DDIM" and not options:
    same(model.generate(PROMPTS, latents=noise(), steps=10, guidance=5.0, output="float"),
         pipe(PROMPTS, latents=nchw(noise()), **how).images)
    other = model.generate(PROMPTS, latents=noise(), steps=10, guidance=5.0, sampler="euler", output="float")
    import diffusers
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    same(other, pipe(PROMPTS, latents=nchw(noise()), **how).images)


def test_image_to_image(tmp_path, monkeypatch):
  import diffusers
  pipe = stable(tmp_path, scheduler="EulerDiscrete")
  model = load(pipe, tmp_path / "sd")
  editor = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
  module = __import__("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img", fromlist=["randn_tensor"])
  monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: nchw(noise()))
  monkeypatch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())
  image = pictures()
  wanted = editor(PROMPTS, image=list(image / 255.0), strength=0.6, num_inference_steps=10, guidance_scale=4.0, output_type="np").images
  found = model.img2img(image, PROMPTS, strength=0.6, steps=10, guidance=4.0, latents=noise(), output="float")
  same(found, wanted)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_inpainting(tmp_path, monkeypatch, channels, strength):
  import diffusers
  import torch
  pipe = stable(tmp_path, unet=dict(in_channels=channels), scheduler="DDIM")
  model = load(pipe, tmp_path / "sd")
  editor = quiet(diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False))
  module = __import__("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint", fromlist=["randn_tensor"])
  monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: nchw(noise()))
  monkeypatch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())
  image, mask = pictures(), np.zeros((2, 2 * SIDE, 2 * SIDE), bool)
  mask[0, 2:10, 4:], mask[1, 6:, :8] = True, True
  wanted = editor(PROMPTS, image=torch.from_numpy(image / 255.0).permute(0, 3, 1, 2).float(),
                  mask_image=torch.from_numpy(mask[:, None].astype(np.float32)), strength=strength, num_inference_steps=10,
                  guidance_scale=4.0, height=2 * SIDE, width=2 * SIDE, output_type="np").images
  found = model.inpaint(image, mask, PROMPTS, strength=strength, steps=10, guidance=4.0, latents=noise(), output="float")
  same(found[mask], wanted[mask])
  np.testing.assert_array_equal(model.inpaint(image, mask, PROMPTS, strength=strength, steps=2, output="uint8")[~mask], image[~mask])


def test_xl_and_its_refiner(tmp_path):
  base, refiner = xl(tmp_path / "a"), xl(tmp_path / "b", refiner=True)
  ours, finer = load(base, tmp_path / "base"), load(refiner, tmp_path / "refiner")
  how = dict(num_inference_steps=10, guidance_scale=4.0)
  for negative in (NEGATIVE, None):
    wanted = base(PROMPTS, negative_prompt=negative, latents=nchw(noise()), output_type="np", height=2 * SIDE, width=2 * SIDE, **how).images
    same(ours.generate(PROMPTS, negative, latents=noise(), steps=10, guidance=4.0, output="float"), wanted)
  sizes = np.tile(np.asarray([[40, 24, 3, 5, 16, 16]], np.int32), (2, 1))
  wanted = base(PROMPTS, negative_prompt=NEGATIVE, latents=nchw(noise()), output_type="np", height=2 * SIDE, width=2 * SIDE,
                original_size=(40, 24), crops_coords_top_left=(3, 5), target_size=(16, 16), **how)
  same(ours.generate(PROMPTS, NEGATIVE, latents=noise(), steps=10, guidance=4.0, size=sizes, output="float"), wanted.images)
  left = base(PROMPTS, negative_prompt=NEGATIVE, latents=nchw(noise()), output_type="latent", denoising_end=0.8, height=2 * SIDE,
              width=2 * SIDE, **how).images
  wanted = refiner(PROMPTS, negative_prompt=NEGATIVE, image=left, denoising_start=0.8, output_type="np", **how).images
  found = ours.generate(PROMPTS, NEGATIVE, latents=noise(), steps=10, guidance=4.0, refiner=finer, handover=0.8, output="float")
  same(found, wanted)


def upscaler(folder):
  import diffusers
  words, vocab = tokenizer(folder / "words")
  vae = autoencoder()
  vae.register_to_config(scaling_factor=0.08333)
  unet = random_weights(diffusers.UNet2DConditionModel(**UNET | dict(in_channels=7, num_class_embeds=400)))
  return quiet(diffusers.StableDiffusionUpscalePipeline(
    vae=vae, text_encoder=text_encoder(vocab), tokenizer=words, unet=unet,
    low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02),
    scheduler=diffusers.DDIMScheduler.from_config(SD | dict(beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction"))))


@pytest.mark.parametrize("level", [0, 20, 350])
def test_upscaling(tmp_path, monkeypatch, level):
  pipe = upscaler(tmp_path)
  model = load(pipe, tmp_path / "x4")
  module = __import__("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale", fromlist=["randn_tensor"])
  small = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
  monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: nchw(small))
  image = pictures(SIDE)
  wanted = pipe(PROMPTS, image=list(image / 255.0), negative_prompt=NEGATIVE, noise_level=level, latents=nchw(noise()),
                num_inference_steps=10, guidance_scale=5.0, output_type="np").images
  found = model.upscale(image, PROMPTS, NEGATIVE, noise_level=level, latents=noise(), small_noise=small, steps=10, guidance=5.0,
                        output="float")
  same(found, wanted)


@pytest.mark.parametrize("kind", ["sd1", "sd-inpaint", "xl", "refiner", "x4"])
def test_written_back(tmp_path, kind):
  """The same folder, as names, shapes and values, and diffusers draws the same from it."""
  import diffusers
  from safetensors.numpy import load_file

  import mmdiff
  pipe = {"sd1": lambda: stable(tmp_path), "sd-inpaint": lambda: stable(tmp_path, unet=dict(in_channels=9)), "xl": lambda: xl(tmp_path),
          "refiner": lambda: xl(tmp_path, refiner=True), "x4": lambda: upscaler(tmp_path)}[kind]()
  model = load(pipe, tmp_path / "theirs")
  mmdiff.save(model, tmp_path / "ours", format="diffusers")
  parts = sorted(file.relative_to(tmp_path / "theirs") for file in (tmp_path / "theirs").rglob("*.safetensors"))
  assert len(parts) == (4 if kind == "xl" else 3)
  for part in parts:
    a, b = load_file(tmp_path / "theirs" / part), load_file(tmp_path / "ours" / part)
    assert set(a) == set(b) and all(a[name].shape == b[name].shape and (a[name] == b[name]).all() for name in a), part
  again = type(pipe).from_pretrained(tmp_path / "ours", **({} if "xl" in kind or kind == "refiner" else dict(safety_checker=None)))
  assert isinstance(again, type(pipe)) and isinstance(again.scheduler, type(pipe.scheduler))
  assert {key: value for key, value in again.scheduler.config.items() if key[0] != "_"} == {
    key: value for key, value in pipe.scheduler.config.items() if key[0] != "_"}
  if kind in ("sd1", "xl"):
    draw = lambda p: quiet(p)(PROMPTS, latents=nchw(noise()), num_inference_steps=3, output_type="np", height=16, width=16).images
    np.testing.assert_allclose(draw(again), draw(pipe), atol=1e-6)
  assert isinstance(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours"), type(pipe))
