"""The table of mistakes fits the source that it would change; `python -m tests.mutations` says which of them the suite notices."""
import ast

from tests import mutations


def test_every_change_finds_its_line_once():
  assert len(mutations.TABLE) == 60 and not mutations.mistakes(), "\n".join(mutations.mistakes())


def test_every_change_is_still_python():
  """A change that can't be imported would be noticed by any test at all."""
  for name, mutation in mutations.TABLE.items():
    text = (mutations.ROOT / "mmdiff" / mutation.file).read_text()
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(text.replace(mutation.old, mutation.new))), name
