import json
import shlex

import numpy as np
import pytest
from PIL import Image

import mmdiff
from mmdiff.commands import info, sample
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.train import distributed
from tests import toy_runs


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  """The test's process used JAX already, which is too late to join others."""
  monkeypatch.setattr(distributed, "initialize", lambda: None)


@pytest.fixture(scope="module")
def t2i_run(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("t2i"), toy_runs.t2i())


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("clip"), toy_runs.clip())


def draw(run, out, *flags, prompts="a red circle"):
  return sample.main([f"--model={run}", f"--prompts={prompts}", f"--out={out}", "--steps=2", "--batch_size=4", *flags])


def manifest(out):
  return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name, text", [
  ("p.txt", "a red circle\n\n  a blue square \n"),
  ("p.jsonl", '{"prompt": "a red circle"}\n{"caption": "a blue square"}\n'),
  ("p.csv", 'Prompt,Category\n"a red circle",x\na blue square,y\n'),
  ("p.tsv", "text\tn\na red circle\t1\na blue square\t2\n"),
])
def test_every_kind_of_prompt_file(tmp_path, name, text):
  (tmp_path / name).write_text(text)
  assert [row["prompt"] for row in sample.read_prompts(str(tmp_path / name))] == ["a red circle", "a blue square"]


def test_a_text_is_one_prompt_and_a_wrong_file_is_named(tmp_path):
  assert sample.read_prompts("a circle, e.g. red.") == [dict(prompt="a circle, e.g. red.")]
  with pytest.raises(DataError, match="none.txt: cannot be read"):
    sample.read_prompts(str(tmp_path / "none.txt"))
  for text, message in (('{"prompt": "a"}\nx', "p.jsonl:2: not valid JSON"), ('{"txt": "a"}', "prompt 1: expected a text under prompt"),
                        ('{"prompt": "a", "seed": "x"}', "seed: expected a whole number"), ("\n", "has no prompts")):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
      sample.read_prompts(str(tmp_path / "p.jsonl"))


def test_no_prompt_is_merged_with_its_neighbours_or_cut(tmp_path):
  (tmp_path / "p.tsv").write_text('prompt\tn\n"quoth the raven\t1\na 5" nail\t2\nthe\u2028end\t3\n')
  assert [row["prompt"] for row in sample.read_prompts(str(tmp_path / "p.tsv"))] == ['"quoth the raven', 'a 5" nail', "the\u2028end"]
  (tmp_path / "p.txt").write_text("one\u2028line\r\nanother\x0cone\n")
  assert [row["prompt"] for row in sample.read_prompts(str(tmp_path / "p.txt"))] == ["one\u2028line", "another\x0cone"]
  for text, said in (("prompt\na cat, blue\n", "1 of 1 rows are no prompts, the first one: .*line 2: 2 cells, the header has 1"),
                     ('prompt,n\n"a cat,1\n', "line 2: unexpected end of data")):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=said):
      sample.read_prompts(str(tmp_path / "p.csv"))


def test_jobs_have_names_and_seeds_by_position():
  rows = [dict(prompt="a"), dict(prompt="b", seed=2 ** 32 - 1, negative="dark")]
  jobs = sample.jobs_of(rows, seed=10, per_prompt=2, negative="ugly")
  assert [job[:4] for job in jobs] == [("00000_00.png", "a", 10, "ugly"), ("00000_01.png", "a", 11, "ugly"),
                                       ("00001_00.png", "b", 2 ** 32 - 1, "dark"), ("00001_01.png", "b", 0, "dark")]


def test_a_picture_says_how_to_draw_it_again(t2i_run, tmp_path, capsys):
  draw(t2i_run, tmp_path / "out", "--per_prompt=2", "--seed=7", "--negative=dark", "--guidance=3", prompts="a red circle, it's 'round'")
  picture = tmp_path / "out" / "00000_01.png"
  assert info.main([str(picture), f"--json={tmp_path / 'facts.json'}"]) == 0
  facts = json.loads((tmp_path / "facts.json").read_text())
  assert facts["seed"] == 8 and facts["prompt"] == "a red circle, it's 'round'" and facts["settings"]["guidance"] == 3
  assert facts["command"] in capsys.readouterr().out
  said = Image.open(picture).text["parameters"]
  assert said.startswith("a red circle, it's 'round'\nNegative prompt: dark\nSteps: 2, CFG scale: 3.0, Seed: 8")
  words = shlex.split(facts["command"])
  assert words[:2] == ["mmdiff", "sample"]
  sample.main([*words[2:-1], f"--out={tmp_path / 'again'}", "--batch_size=4"])
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again" / "00000_00.png")), np.asarray(Image.open(picture)))


def test_pictures_pages_and_manifest(t2i_run, tmp_path, capsys):
  (tmp_path / "p.txt").write_text('a red circle\n<script>alert("x")</script>\n')
  out = tmp_path / "out"
  assert draw(t2i_run, out, "--per_prompt=3", "--seed=7", prompts=tmp_path / "p.txt") == 0
  assert "6 pictures" in capsys.readouterr().out
  rows = manifest(out)
  assert [(row["file_name"], row["seed"]) for row in rows] == [(f"{i:05}_{j:02}.png", 7 + 3 * i + j) for i in (0, 1) for j in (0, 1, 2)]
  model = mmdiff.load(t2i_run)
  np.testing.assert_allclose(np.asarray(Image.open(out / "00000_01.png"), int), model.generate("a red circle", seeds=8, steps=2)[0],
                             atol=1)
  assert np.asarray(Image.open(out / "grid.png")).shape == (2 * 18 - 2, 3 * 18 - 2, 3)
  page = (out / "index.html").read_text()
  assert "&lt;script&gt;" in page and "<script" not in page and page.count("data:image/png;base64,") == 6
  meta = json.loads((out / "sample.json").read_text())
  assert meta["complete"] and meta["argv"][0] == "sample" and meta["model"]["step"] == 2 and meta["model"]["checkpoint"]
  assert meta["settings"]["params"] == "eval" and meta["config"]["seed"] == 0 and meta["versions"]["jax"]


def test_a_second_start_draws_what_is_missing_and_nothing_else(t2i_run, tmp_path, capsys):
  (tmp_path / "p.txt").write_text("\n".join(f"a red circle {i}" for i in range(6)))
  out = tmp_path / "out"
  draw(t2i_run, out, prompts=tmp_path / "p.txt")
  before = {file.name: file.read_bytes() for file in out.glob("0*.png")}
  times = {file.name: file.stat().st_mtime_ns for file in out.glob("0*.png")}
  lines = (out / "metadata.jsonl").read_text().splitlines(keepends=True)
  (out / "metadata.jsonl").write_text("".join(lines[:4]) + lines[4][:20])        # killed while it wrote the fifth line
  (out / "00002_00.png").unlink()
  draw(t2i_run, out, prompts=tmp_path / "p.txt")
  assert "3 of them drawn now" in capsys.readouterr().out
  assert {file.name: file.read_bytes() for file in out.glob("0*.png")} == before
  kept = {name for name, time in times.items() if (out / name).stat().st_mtime_ns == time}
  assert kept == {"00000_00.png", "00001_00.png", "00003_00.png"} and len(manifest(out)) == 6


def test_a_folder_of_other_pictures_is_left_alone(t2i_run, tmp_path):
  draw(t2i_run, tmp_path / "out")
  with pytest.raises(ConfigError, match="guidance was 2.0, now 5.0; choose another folder"):
    draw(t2i_run, tmp_path / "out", "--guidance=5")
  with pytest.raises(ConfigError, match="00000_00.png is of 'a red circle' from seed 0, asked for is 'a blue square' from seed 0"):
    draw(t2i_run, tmp_path / "out", prompts="a blue square")


def test_ranking_puts_the_best_of_each_prompt_first(t2i_run, clip_run, tmp_path):
  (tmp_path / "p.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue square", "negative": "red"}\n')
  out = tmp_path / "out"
  draw(t2i_run, out, "--per_prompt=3", f"--rank_with={clip_run}", prompts=tmp_path / "p.jsonl")
  rows, clip = manifest(out), mmdiff.load(clip_run)
  images = clip.embed_image([Image.open(out / row["file_name"]) for row in rows])
  cosines = np.sum(images * clip.embed_text([row["caption"] for row in rows]), 1)
  np.testing.assert_allclose([row["clip_similarity"] for row in rows], 100 * cosines, atol=1e-3)
  for group in (rows[:3], rows[3:]):
    assert [row["rank"] for row in sorted(group, key=lambda row: -row["clip_similarity"])] == [1, 2, 3]
  best = min(rows[:3], key=lambda row: row["rank"])
  first = np.asarray(Image.open(out / "grid.png"))[:16, :16]
  np.testing.assert_array_equal(first, np.asarray(Image.open(out / best["file_name"])))


def test_what_cannot_be_done_is_said_first(t2i_run, clip_run, tmp_path):
  with pytest.raises(ConfigError, match="--steps: expected at least 1, found 0\n--per_prompt: expected at least 1, found -1"):
    sample.main([f"--model={t2i_run}", "--prompts=a", f"--out={tmp_path}", "--steps=0", "--per_prompt=-1"])
  with pytest.raises(DataError, match="it has embed_image, embed_text, logit_scale, similarity, classify, not generate"):
    draw(clip_run, tmp_path / "out")
  with pytest.raises(DataError, match="it has encode_text, img2img, inpaint, generate, not embed_image"):
    draw(t2i_run, tmp_path / "out", f"--rank_with={t2i_run}")
  with pytest.raises(ConfigError, match="unknown value 'eulr'"):
    draw(t2i_run, tmp_path / "out", "--sampler=eulr")
  for flag, said in (("--height=24", "height and width: this model draws 16×16, found 24×16"),
                     (f"--refiner={clip_run}", "refiner: .* is a contrastive model: it has .*, not generate"),
                     (f"--refiner={t2i_run}", "refiner: .* was trained here")):
    with pytest.raises(ConfigError, match=said):
      draw(t2i_run, tmp_path / "out", flag)
  (tmp_path / "p.jsonl").write_text('{"prompt": "a", "negative": "dark"}\n')
  with pytest.raises(ConfigError, match="--guidance=1 guides nowhere, and 1 prompts have a negative one, such as 'dark'"):
    draw(t2i_run, tmp_path / "out", "--guidance=1", prompts=tmp_path / "p.jsonl")
  assert not (tmp_path / "out").exists()


def test_a_refiner_takes_the_flags_of_what_it_computes(monkeypatch):
  """It decodes the pictures: tiles that only the base was told of were none."""
  loaded = []
  monkeypatch.setattr(mmdiff.model, "load", lambda path, **options: loaded.append((path, options)))
  given = dict(model="base", refiner="xlr", fsdp=1, dtype="bfloat16", tile=512)
  sample.open_model(given, params="raw"), sample.open_model(given, "refiner")
  shared = dict(mesh=dict(fsdp=1), dtype="bfloat16", tile=512)
  assert loaded == [("base", dict(shared, params="raw")), ("xlr", shared)]


def test_a_prompt_with_line_breaks_of_its_own_is_one_line_of_the_manifest(tmp_path):
  """U+2028 and the like end no line of JSON; and what is no object is no picture."""
  job = sample.Job("a.png", "one\u2028two\x85three", 0, "")
  (tmp_path / "a.png").write_bytes(b"")
  sample.append(tmp_path / "metadata.jsonl", [job])
  with open(tmp_path / "metadata.jsonl", "a") as file:
    file.write("5\n" + "[" * 100_000 + "\n")
  assert sample.finished(tmp_path, [job]) == {job}


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"settings": 5}', "{"])
def test_settings_that_cannot_be_read_are_not_taken_for_others(tmp_path, content):
  sample.append(tmp_path / "metadata.jsonl", [sample.Job("a.png", "a", 0, "")])
  (tmp_path / "sample.json").write_text(content)
  with pytest.raises(DataError, match="sample.json: cannot be read .*choose another --out"):
    sample.check_settings(tmp_path, dict(steps=2))
