"""What strangers wrote can neither move a terminal nor fill it."""
import copy

import pytest

from mmdiff.core.errors import EXIT_CODES, CannotWrite, ConfigError, DataError, GaveUp, OptionError
from mmdiff.core.terminal import LINE, WORD, one_line, printable, table, tell


def test_what_moves_a_terminal_is_escaped_and_the_rest_stays():
  assert printable("\x1b[31mred\r\x9b2J \u202eevil\u2028\ud800") == r"\u001b[31mred\u000d\u009b2J \u202eevil\u2028\ud800"
  for fine in ("Straße – 猫 🐈\u200d⬛ é", "one\n\ttwo", "C:\\path"):
    assert printable(fine) == fine
  assert one_line("a\nb") == r"a\nb"


def test_long_words_and_lines_are_cut_in_their_middle():
  word = printable(f"config.json: act: unknown activation {'x' * 70_000!r} (known: gelu)")
  assert word.startswith("config.json: act: unknown activation 'xxx") and word.endswith("x' (known: gelu)") and len(word) < 2 * WORD
  assert "… (70,002 letters) …" in word
  line = printable("begin " + "[1, 2] " * 20_000 + "end\nnext")
  assert line.startswith("begin") and line.endswith("end\nnext") and len(line) < 1.1 * LINE
  assert printable(word) == word and printable(line) == line


@pytest.mark.parametrize("kind", [ConfigError, OptionError, DataError, GaveUp, CannotWrite])
def test_every_error_and_notice_passes(kind, capsys):
  error = kind("tensor \x1b[2J" + "y" * 70_000)
  assert "\x1b" not in str(error) and len(str(error)) < 2 * WORD and issubclass(kind, tuple(EXIT_CODES))
  assert str(copy.copy(error)) == str(error)
  tell("tensor \x1b[2J")
  assert capsys.readouterr().err == "tensor \\u001b[2J\n"


def test_tables_line_up():
  assert table([dict(score="a", value=1.0), dict(score="longer", value=0.12345)]) == \
    "score    value\na            1\nlonger  0.1235"
