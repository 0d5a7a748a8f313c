"""The text of a command's help."""
from mmdiff.commands import help
from tests.commands.test_flags import FLAGS


def test_help_lists_forms_and_defaults():
  text = help.text("Does it.", FLAGS | {"config": dict(required=True, help="file")})
  for part in ("Does it.", "--workdir=STR", "run directory (required)", "steps [20]", "--[no]grid", "--seeds=INT,…",
               "--sampler=euler|heun", "--config.KEY=VALUE"):
    assert part in text
  assert max(map(len, text.splitlines())) <= 132
