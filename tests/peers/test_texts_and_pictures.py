"""Texts and pictures of any kind to embeddings, beside transformers: its own models, tokenizers and image processors write a folder, and
`mmdiff.load` of it gives what they give. So with the folder that we write back."""
import json
import random

import numpy as np
import pytest

from tests.data.test_tokenizers import byte_letters
from tests.peers.test_clip_formats import random_weights

pytestmark = pytest.mark.peers

TOLERANCE = 1e-5                        # of unit embeddings, and of states relative to the largest
WORDS = "the quick brown fox jumps over a lazy dog while two small red circles stand left of blue square near naïve café photo cat".split()
TEXTS = ["a photo of a cat", "", "A Photo of a CAT.", "it's \"two\" small, red circles!?", "naïve CAFÉ ÜBER straße",
         "two 😀 cats 🐱\u200d👤 and 👩\u200d🚀", "日本の猫 and кошка", "  spaces \t and\nlines  ", "-", "snake_case_words and #tags @home",
         "12345 3.14", "the quick brown fox jumps over a lazy dog " * 12, "“curly” – dashes… ﬁ"]
IMAGE = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=80, image_size=24, patch_size=8)
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=60)


def pictures():
  """Of every shape, size and mode that a photo may have."""
  from PIL import Image
  rng = np.random.default_rng(0)
  smooth = lambda h, w: Image.fromarray(rng.integers(0, 256, (max(h // 6, 1), max(w // 6, 1), 3), dtype=np.uint8)).resize((w, h))
  return [smooth(24, 24), smooth(31, 57), smooth(90, 40), smooth(25, 24), smooth(200, 33), smooth(12, 17),
          Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8))]


def merges(count=60):
  """Byte pairs as GPT-2 learns them from the words: enough for real-looking tokens."""
  words, made = [list(word) for word in WORDS if word.isascii()], []
  words = [[*word[:-1], word[-1] + "</w>"] for word in words]
  for _ in range(count):
    pairs: dict = {}
    for word in words:
      for pair in zip(word, word[1:]):
        pairs[pair] = pairs.get(pair, 0) + 1
    if not pairs:
      break
    best = max(sorted(pairs), key=lambda pair: pairs[pair])
    made.append(best)
    for word in words:
      i = 0
      while i < len(word) - 1:
        if (word[i], word[i + 1]) == best:
          word[i:i + 2] = ["".join(best)]
        i += 1
  return made


def clip_tokenizer():
  from transformers import CLIPTokenizer
  letters, pairs = byte_letters(), merges()
  tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in pairs] + ["<|startoftext|>", "<|endoftext|>"]
  return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, model_max_length=16)


def sentencepiece_model(folder, **options):
  import sentencepiece
  rng = random.Random(0)
  (folder / "text.txt").write_text("\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) for _ in range(2000)), encoding="utf-8")
  sentencepiece.SentencePieceTrainer.train(input=str(folder / "text.txt"), model_prefix=str(folder / "spiece"), vocab_size=50,
                                           character_coverage=1.0, minloglevel=2, **options)
  return str(folder / "spiece.model")


def gemma_tokenizer(kind):
  letters = sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyz.!"))
  pairs = [(a, b.removesuffix("</w>")) for a, b in merges(30)]
  tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
  tokens += [pair for pair in dict.fromkeys(a + b for a, b in pairs) if pair not in tokens]
  return kind(vocab={token: i for i, token in enumerate(tokens)}, merges=list(dict.fromkeys(pairs)), add_bos_token=False,
              add_eos_token=True, padding_side="right", model_max_length=16)


def unit(x):
  x = x.detach().numpy()
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def compare(ours, theirs, what, record=None):
  error = np.abs(np.asarray(ours) - theirs).max() / max(1, np.abs(theirs).max())
  print(f"{what}: largest difference {error:.2g}")
  assert error <= TOLERANCE, (what, np.abs(np.asarray(ours) - theirs).reshape(len(theirs), -1).max(1))


def both_ways(folder, texts=None, images=None, states=None):
  """The folder's model, and that of the folder that it is written back to, give these numbers."""
  import mmdiff
  model = mmdiff.load(folder, quiet=True)
  mmdiff.save(model, folder.parent / f"{folder.name}_again")
  again = mmdiff.load(folder.parent / f"{folder.name}_again", quiet=True)
  for name, one in (("read", model), ("written and read", again)):
    if texts is not None:
      compare(one.embed_text(TEXTS), texts, f"{folder.name}, {name}: texts")
    if images is not None:
      compare(one.embed_image(pictures()), images, f"{folder.name}, {name}: pictures")
    if states is not None:
      made, mask = one.encode_text(TEXTS)
      compare(np.where(mask[..., None], made, 0), np.where(mask[..., None], states, 0), f"{folder.name}, {name}: states")
  return model


def tokens(tokenizer, length, **how):
  return tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **how).input_ids


def processed(kind, **options):
  """(a processor of transformers on Pillow, the pictures after it)."""
  import torch
  made = kind(**options)
  return made, torch.stack([made(image, return_tensors="pt").pixel_values[0] for image in pictures()])


@pytest.mark.parametrize("how", ["plain", "odd"])
def test_clip(tmp_path, how):
  import torch
  from transformers import CLIPConfig, CLIPModel
  from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
  tokenizer = clip_tokenizer()
  config = CLIPConfig(text_config=TEXT | dict(vocab_size=len(tokenizer), max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id,
                                              eos_token_id=tokenizer.eos_token_id), vision_config=IMAGE, projection_dim=20)
  peer = random_weights(CLIPModel(config))
  options = dict(size=dict(shortest_edge=24), crop_size=dict(height=24, width=24)) if how == "plain" else dict(
    size=dict(height=24, width=24), do_center_crop=False, resample=2, do_rescale=False, image_mean=[100.0, 120.0, 90.0],
    image_std=[60.0, 70.0, 80.0])
  processor, pixels = processed(CLIPImageProcessorPil, **options)
  for part in (peer, tokenizer, processor):
    part.save_pretrained(tmp_path / "clip")
  with torch.no_grad():
    theirs = peer(input_ids=tokens(tokenizer, 16), pixel_values=pixels)
  both_ways(tmp_path / "clip", theirs.text_embeds.numpy(), theirs.image_embeds.numpy())


@pytest.mark.parametrize("files", ["config", "special tokens", "pieces alone", "another length"])
def test_siglip(tmp_path, files):
  import torch
  from transformers import SiglipConfig, SiglipModel, SiglipTokenizer
  from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
  length = 12 if files == "another length" else 16
  tokenizer = SiglipTokenizer(sentencepiece_model(tmp_path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1), model_max_length=length)
  side = 26 if files == "another length" else 24         # as 384 of So400m/14, no multiple of the patch
  peer = random_weights(SiglipModel(SiglipConfig(text_config=TEXT | dict(vocab_size=50, max_position_embeddings=16),
                                                 vision_config=IMAGE | dict(image_size=side))))
  processor, pixels = processed(SiglipImageProcessorPil, size=dict(height=side, width=side))
  folder = tmp_path / "siglip"
  for part in (peer, tokenizer, processor):
    part.save_pretrained(folder)
  if files in ("special tokens", "pieces alone"):
    (folder / "tokenizer_config.json").unlink()
  if files == "special tokens":
    (folder / "special_tokens_map.json").write_text(json.dumps(dict(eos_token=dict(content="</s>"), pad_token=dict(content="</s>"))))
  with torch.no_grad():
    theirs = peer(input_ids=tokens(tokenizer, length), pixel_values=pixels)
  model = both_ways(folder, theirs.text_embeds.numpy(), theirs.image_embeds.numpy())
  # Padding with another token is another embedding: what this test is for.
  other = tokens(tokenizer, length)
  ends = (other == 1).int().argmax(1)
  other[torch.arange(length)[None] > ends[:, None]] = 0
  with torch.no_grad():
    wrong = unit(peer.get_text_features(input_ids=other).pooler_output)
  assert (model.embed_text(TEXTS[:1])[0] * wrong[0]).sum() < 0.99


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "GemmaTokenizer"])
def test_siglip_2_of_fixed_size(tmp_path, kind):
  import torch
  import transformers
  from transformers import SiglipConfig, SiglipModel
  tokenizer = gemma_tokenizer(getattr(transformers, kind))
  peer = random_weights(SiglipModel(SiglipConfig(text_config=TEXT | dict(vocab_size=len(tokenizer), max_position_embeddings=16),
                                                 vision_config=IMAGE)))
  for part in (peer, tokenizer):
    part.save_pretrained(tmp_path / "siglip2")
  texts = [text.lower() for text in TEXTS] if kind == "GemmaTokenizer" else TEXTS         # which is how the model was trained
  ids = tokenizer(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
  with torch.no_grad():
    theirs = unit(peer.get_text_features(input_ids=ids).pooler_output)
  both_ways(tmp_path / "siglip2", theirs)


def test_t5(tmp_path):
  import torch
  from transformers import T5Config, T5EncoderModel, T5Tokenizer
  sentencepiece_model(tmp_path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  tokenizer = T5Tokenizer.from_pretrained(tmp_path, model_max_length=20)
  config = T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=5, d_ff=40, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
                    tie_word_embeddings=False, n_positions=20)
  peer = random_weights(T5EncoderModel(config))
  made = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
  with torch.no_grad():
    theirs = peer(input_ids=made.input_ids, attention_mask=made.attention_mask).last_hidden_state.numpy()
  for name, files in (("t5", True), ("t5_pieces", False)):
    peer.save_pretrained(tmp_path / name)
    if files:
      tokenizer.save_pretrained(tmp_path / name)
    else:
      (tmp_path / name / "spiece.model").write_bytes((tmp_path / "spiece.model").read_bytes())
    both_ways(tmp_path / name, states=theirs)


@pytest.mark.parametrize("projected", [False, True])
def test_clips_text_encoder(tmp_path, projected):
  import torch
  from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
  tokenizer = clip_tokenizer()
  tokenizer.pad_token = "!"                                 # noqa: S105 (as Stable Diffusion 2's tokenizer pads)
  config = CLIPTextConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=16, projection_dim=20,
                          bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
  peer = random_weights((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))
  for part in (peer, tokenizer):
    part.save_pretrained(tmp_path / "text")
  with torch.no_grad():
    theirs = peer(input_ids=tokens(tokenizer, 16))
  import mmdiff
  model = mmdiff.load(tmp_path / "text", quiet=True)
  compare(model.encode_text(TEXTS)[0], theirs.last_hidden_state.numpy(), "all states, those of the padding too")
  if projected:
    both_ways(tmp_path / "text", unit(theirs.text_embeds))


@pytest.mark.parametrize("projected", [False, True])
def test_clips_image_encoder(tmp_path, projected):
  import torch
  from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
  from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
  peer = random_weights((CLIPVisionModelWithProjection if projected else CLIPVisionModel)(CLIPVisionConfig(**IMAGE, projection_dim=20)))
  processor, pixels = processed(CLIPImageProcessorPil, size=dict(shortest_edge=24), crop_size=dict(height=24, width=24),
                                do_normalize=False)
  peer.save_pretrained(tmp_path / "image_encoder")
  processor.save_pretrained(tmp_path / "feature_extractor")         # where diffusers keeps it
  with torch.no_grad():
    made = peer(pixel_values=pixels)
  both_ways(tmp_path / "image_encoder", images=unit(made.image_embeds if projected else made.pooler_output))


@pytest.mark.parametrize("format", ["hf-clip", "open_clip"])
def test_what_was_trained_here(tmp_path, format):
  """A run's tokenizer ends texts with token 2, which transformers' CLIP takes for something else, and open_clip's looks for the highest."""
  import torch
  from transformers import AutoTokenizer, CLIPModel

  from mmdiff.convert import formats, public
  from mmdiff.convert.clip_formats import clip_inputs
  from mmdiff.models.clip import clip
  from tests.data.test_tokenizers import BPE
  module = clip(variant="tiny", vocab=BPE.vocab_size, text_len=16, act="gelu", text_heads=2, image_heads=2)
  rng = np.random.default_rng(0)
  params = public.nest({name: rng.normal(scale=0.2, size=shape).astype(np.float32)
                        for name, shape in formats.variables(module, clip_inputs(32, 16)).items()})
  public.save(tmp_path, format=format, module=module, params=params, tokenizer=BPE,
              config=dict(objective=dict(name="contrastive", loss="softmax"), data=dict(image_size=32)))
  if format == "hf-clip":
    words, peer = AutoTokenizer.from_pretrained(tmp_path), CLIPModel.from_pretrained(tmp_path)
    with torch.no_grad():
      theirs = unit(peer.get_text_features(input_ids=tokens(words, 16)).pooler_output)
  else:
    from tests.peers.without_torchvision import open_clip
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    peer = open_clip.model.CLIP(**config).eval()
    peer.load_state_dict(open_clip.factory.load_state_dict(str(tmp_path / "open_clip_model.safetensors")))
    with torch.no_grad():
      theirs = unit(peer.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS[:-1])))
  texts = TEXTS if format == "hf-clip" else TEXTS[:-1]              # open_clip straightens quotation marks first, whatever the tokenizer
  ours = np.asarray(module.apply({"params": params}, *BPE.batch(texts, 16), method="encode_text"))
  compare(ours / np.linalg.norm(ours, axis=-1, keepdims=True), theirs, f"{format}: texts")


def test_a_processor_of_the_whole(tmp_path):
  """transformers 5 writes one processor_config.json."""
  import torch
  from transformers import CLIPConfig, CLIPModel, CLIPProcessor
  from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
  tokenizer = clip_tokenizer()
  processor, pixels = processed(CLIPImageProcessorPil, size=dict(shortest_edge=24), crop_size=dict(height=24, width=24),
                                image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7], resample=2)
  config = CLIPConfig(text_config=TEXT | dict(vocab_size=len(tokenizer), max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id,
                                              eos_token_id=tokenizer.eos_token_id), vision_config=IMAGE, projection_dim=20)
  peer = random_weights(CLIPModel(config))
  peer.save_pretrained(tmp_path / "clip")
  CLIPProcessor(processor, tokenizer).save_pretrained(tmp_path / "clip")
  assert (tmp_path / "clip" / "processor_config.json").is_file()
  with torch.no_grad():
    both_ways(tmp_path / "clip", images=unit(peer.get_image_features(pixel_values=pixels).pooler_output))
