"""What belongs to a tokenizer is read from the files beside its vocabulary, holds, and goes on with what is saved."""
import json
import pickle

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from mmdiff.core.errors import DataError
from mmdiff.data import cleaning, tokenizers
from mmdiff.data.token_facts import Like
from tests.data.test_sentencepiece import PIECES, model
from tests.data.test_tokenizers import BPE

SHOUTED = "A RED_circles!"                   # "red circles" where it is canonical: pieces 4, 5 and 6


def folder(path, **files):
  """A folder with a SentencePiece model and these JSON files."""
  path.mkdir(parents=True, exist_ok=True)
  (path / "spiece.model").write_bytes(model())
  for name, content in files.items():
    (path / f"{name}.json").write_text(json.dumps(content))
  return str(path)


def rows(tokenizer, texts=("Red, CIRCLES", ""), length=6):
  return tokenizer.batch(list(texts), length)[0].tolist()


SIGLIP_ROWS = [[4, 5, 6, 1, 1, 1], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("files", [
  dict(tokenizer_config=dict(tokenizer_class="SiglipTokenizer", pad_token="</s>", eos_token="</s>", model_max_length=64)),
  dict(tokenizer_config=dict(tokenizer_class="SiglipTokenizer"), special_tokens_map=dict(pad_token=dict(content="</s>"))),
  dict(config=dict(model_type="siglip"))])
def test_siglips_texts_are_canonical_and_padded_with_their_end(tmp_path, files):
  found = tokenizers.file(path=folder(tmp_path, **files))
  assert rows(found) == SIGLIP_ROWS and found.facts.clean == cleaning.SIGLIP and found.facts.pad == "</s>"
  assert found.vocab_size == len(PIECES)                                 # T5's sentinels are T5's own
  mask = found.batch(["red", ""], 4)[1]
  assert mask.tolist() == [[True, True, False, False], [True, False, False, False]]


def test_the_model_says_whose_texts_they_are_where_no_file_does(tmp_path):
  lone = folder(tmp_path)
  assert rows(tokenizers.siglip(path=lone)) == rows(tokenizers.of_folder(lone, Like("SiglipTokenizer"))) == SIGLIP_ROWS
  t5 = tokenizers.file(path=lone)
  assert t5.facts.clean == () and t5.pad == 0 and t5.vocab_size == len(PIECES) + tokenizers.SENTINELS
  assert rows(t5, ["red circles", "Red"]) == [[4, 5, 6, 1, 0, 0], [*t5.encode("Red"), *[0] * (6 - len(t5.encode("Red")))]]
  assert t5.encode("Red") != t5.encode("red")
  own = tokenizers.of_folder(lone, Like("big_vision"))
  assert own.pad == 1 and own.encode("RED") == own.encode("red") != own.encode("red.") and own.facts.clean == cleaning.BIG_VISION


def test_lower_case_and_sentinels_as_the_file_says(tmp_path):
  kept = tokenizers.file(path=folder(tmp_path / "a", tokenizer_config=dict(tokenizer_class="SiglipTokenizer", do_lower_case=False)))
  assert kept.encode("red.") == kept.encode("red") != kept.encode("RED")
  few = tokenizers.file(path=folder(tmp_path / "b", tokenizer_config=dict(tokenizer_class="T5TokenizerFast", extra_ids=3)))
  assert few.vocab_size == len(PIECES) + 3


def test_facts_go_with_every_copy(tmp_path):
  made = tokenizers.siglip(path=folder(tmp_path / "a"))
  made.save(tmp_path / "tokenizer.json")
  names = made.export(tmp_path)
  assert names == ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
  made.save(tmp_path / "run.json")
  for again in (tokenizers.file(path=str(tmp_path / "run.json")), tokenizers.file(path=str(tmp_path)), pickle.loads(pickle.dumps(made))):  # noqa: S301
    assert again.facts == made.facts and rows(again) == SIGLIP_ROWS
  assert tokenizers.file(path=str(tmp_path / "run.json")).fingerprint() == made.fingerprint()
  assert made.fingerprint() != tokenizers.of_folder(folder(tmp_path / "a"), Like("big_vision")).fingerprint()
  # Others read the exported file without us: cleaning and ids are the library's own.
  alone = Backend.from_file(str(tmp_path / "tokenizer.json"))
  assert alone.encode("Red, CIRCLES").ids == made.encode("Red, CIRCLES")
  about = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert about["pad_token"] == about["eos_token"] == "</s>" and about["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_with_nothing_to_say_is_saved_as_before(tmp_path):
  BPE.save(tmp_path / "tokenizer.json")
  assert json.loads((tmp_path / "tokenizer.json").read_text()).keys() == json.loads(BPE._backend.to_str()).keys()
  assert BPE.facts.clean == () and (BPE.facts.pad, BPE.facts.start, BPE.facts.end) == ("<pad>", "<start>", "<end>")


def test_padding_of_the_file_itself_holds(tmp_path):
  backend = Backend.from_str(BPE._backend.to_str())
  backend.enable_padding(pad_id=2, pad_token="<end>", direction="left")      # noqa: S106 (no password)
  backend.save(str(tmp_path / "tokenizer.json"))
  found = tokenizers.file(path=str(tmp_path))
  ids = found.encode("red")
  assert found.pad == 2 and rows(found, ["red"], 8) == [[2] * (8 - len(ids)) + ids]
  assert found.batch(["red"], 8)[1][0].tolist() == [False] * (8 - len(ids)) + [True] * len(ids)
  found.save(tmp_path / "again.json")
  assert tokenizers.file(path=str(tmp_path / "again.json")).facts == found.facts


def gemma(path, **config):
  """A byte-pair tokenizer with Gemma's special tokens."""
  vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyzR."])}
  backend = Backend(models.BPE(vocab, [], unk_token="<unk>"))                # noqa: S106 (no password)
  backend.normalizer, backend.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
  backend.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
  backend.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)])
  path.mkdir()
  backend.save(str(path / "tokenizer.json"))
  (path / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="GemmaTokenizer", **config)))
  return str(path)


def test_gemmas_texts_are_what_the_files_and_the_model_make_of_them(tmp_path):
  said = dict(add_bos_token=False, add_eos_token=True, padding_side="right", model_max_length=64)
  mine = tokenizers.of_folder(gemma(tmp_path / "a", **said), Like("SiglipTokenizer"))
  assert mine.notices and "in lower case" in mine.notices[0] and mine.facts.length == 64
  red = [mine._backend.token_to_id(letter) for letter in "red"]
  assert rows(mine, ["Red"]) == [[*red, 1, 0, 0]] and rows(mine, ["re" * 9]) == [[*[red[0], red[1]] * 2, red[0], 1]]
  alone = tokenizers.file(path=gemma(tmp_path / "b", add_bos_token=True, add_eos_token=False, padding_side="right"))
  assert alone.encode("R.")[0] == 2 and alone.encode("R.") != alone.encode("r.") and not alone.notices
  assert tokenizers.file(path=gemma(tmp_path / "c")).facts.side == "left"                    # transformers' default for it
  own = tokenizers.of_folder(gemma(tmp_path / "d"), Like("big_vision"))
  assert own.encode("Red") == [*red, 1] and own.facts.side == "right"


@pytest.mark.parametrize("config, message", [
  (dict(tokenizer_class="T5Tokenizer", padding_side="left"), "padding_side: left, and T5Tokenizer texts are padded at their end"),
  (dict(padding_side="middle"), "padding_side: expected left or right, found 'middle'"),
  (dict(truncation_side="left"), "truncation_side: 'left'"), (dict(model_max_length=1), "model_max_length: expected at least 2"),
  (dict(model_max_length="long"), "model_max_length: expected"), (dict(pad_token="<nothing>"), "the pad token is '<nothing>', which"),
  (dict(tokenizer_class="XLMRobertaTokenizer"), "a XLMRobertaTokenizer numbers the pieces in its own way"),
  (dict(eos_token="<stop>"), "the end token is '<stop>'"), (dict(tokenizer_class="CLIPTokenizer", do_lower_case=False), "do_lower_case"),
  (dict(mmdiff=dict(clean=["shout"])), "mmdiff.clean: unknown cleaning shout"), (dict(mmdiff=dict(padd=1)), "mmdiff: expected")])
def test_what_can_not_be_honoured_is_refused(tmp_path, config, message):
  with pytest.raises(DataError, match=message):
    tokenizers.file(path=folder(tmp_path, tokenizer_config=config))


def test_what_only_the_class_says_gives_way_to_the_vocabulary(tmp_path):
  BPE.save(tmp_path / "tokenizer.json")
  assert tokenizers.of_folder(tmp_path, Like("CLIPTokenizer")).facts == BPE.facts


def test_a_mask_that_siglip_was_trained_without_is_said(tmp_path):
  told = lambda name, *inputs: tokenizers.file(path=folder(tmp_path / name, tokenizer_config=dict(
    tokenizer_class="SiglipTokenizer", model_input_names=list(inputs)))).notices
  assert "padding is seen" in told("a", "input_ids", "attention_mask")[0] and told("b", "input_ids") == ()


def test_the_end_that_the_model_looks_for_must_be_the_tokenizers(tmp_path):
  lone = folder(tmp_path)
  assert tokenizers.of_folder(lone, Like("T5Tokenizer", end=1)).end == 1
  with pytest.raises(DataError, match="the model reads a text where token 2 is, and this tokenizer ends a text with 1"):
    tokenizers.of_folder(lone, Like("T5Tokenizer", end=2))


@pytest.mark.parametrize("key, values", [
  ("extra_ids", (10 ** 9, -1, "x", [], float("inf"), True)), ("model_input_names", (5, True)), ("add_bos_token", ("yes", 1)),
  ("do_lower_case", ("false",)), ("pad_token", ("\ud800", {"content": "\ud800"})), ("tokenizer_class", ([], 5))])
def test_what_is_not_of_its_kind_is_refused_by_its_key(tmp_path, key, values):
  for value in values:
    with pytest.raises(DataError, match=f"tokenizer_config.json: {key}: expected"):
      tokenizers.file(path=folder(tmp_path, tokenizer_config={"tokenizer_class": "T5Tokenizer", key: value}))


@pytest.mark.parametrize("name, values", [("clean", (5, "", {}, [[]])), ("length", (-1, True, "x", 1.5)), ("side", ("up", 0)),
                                          ("pad", (0, False, {}, "\ud800"))])
def test_our_own_facts_are_checked_too(tmp_path, name, values):
  for value in values:
    with pytest.raises(DataError, match=f"mmdiff.{name}: expected"):
      tokenizers.file(path=folder(tmp_path, tokenizer_config=dict(mmdiff={name: value})))
