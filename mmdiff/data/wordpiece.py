"""BERT's WordPiece (https://arxiv.org/abs/1810.04805) from a vocab.txt, one piece a line, as a tokenizer of the `tokenizers` library."""
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mmdiff.core.errors import DataError

START, END, UNKNOWN, PAD = "[CLS]", "[SEP]", "[UNK]", "[PAD]"


def normalizer(lower: bool | None, strip_accents: bool | None, chinese: bool | None) -> normalizers.Normalizer:
  """BERT's own; what is None is as the authors had it: lower case without accents, Chinese characters apart."""
  return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=chinese is not False, strip_accents=strip_accents,
                                    lowercase=lower is not False)


def read(path: Path, *, flags: tuple[bool | None, bool | None, bool | None] = (None, None, None)) -> Backend:
  """The tokenizer of a file; "[CLS]" goes before a text, "[SEP]" behind it. flags: of `normalizer`. Raises DataError."""
  try:
    pieces = path.read_text(encoding="utf-8").split("\n")
  except (OSError, ValueError) as error:
    raise DataError(f"{path}: not a vocabulary of WordPiece: {error}") from None
  vocab = {piece.rstrip("\r"): i for i, piece in enumerate(pieces[:-1] if pieces[-1] == "" else pieces)}
  if missing := [token for token in (START, END, UNKNOWN) if token not in vocab]:
    raise DataError(f"{path}: not a vocabulary of BERT: it lacks {', '.join(missing)}")
  backend = Backend(models.WordPiece(vocab, unk_token=UNKNOWN, continuing_subword_prefix="##"))
  backend.normalizer, backend.pre_tokenizer = normalizer(*flags), pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece(prefix="##")
  backend.add_special_tokens([token for token in (PAD, UNKNOWN, START, END, "[MASK]") if token in vocab])
  backend.post_processor = processors.TemplateProcessing(
    single=f"{START} $A {END}", pair=f"{START} $A {END} $B {END}", special_tokens=[(START, vocab[START]), (END, vocab[END])])
  return backend
