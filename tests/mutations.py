"""One-line mistakes in the places where they cost most, and whether the default suite notices them.

  python -m tests.mutations [--only NAME …] [--jobs N]

Each row of `TABLE` is a change that a tired person could make: a value that is not handed on, a constant, a sign at an edge. The package is
copied to a temporary folder, one change is made there, and the test files that stand nearby run until the first failure. A change that they
let through has survived. `tests/test_mutations.py` holds the table against the source, so that it can't rot.
"""
import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("mmdiff", "configs", "launch", "tests", "docs", "README.md", "pyproject.toml", "Makefile")
LEAST = 55               # of the table that must be killed
SECONDS = 900            # of one change; what hangs is noticed


class Mutation(NamedTuple):
  file: str              # in mmdiff/
  old: str               # there exactly once
  new: str
  tests: str             # files in tests/, before them perhaps the test that is likeliest to notice; none of them `long` or `peers`


TABLE: dict[str, Mutation] = {
  # Diffusion: samplers, plans, guidance, schedules, weightings.
  "start noise in every row": Mutation(
    "diffusion/samplers.py", "jax.random.fold_in(key, row + 1)", "jax.random.fold_in(key, 0)", "diffusion/test_samplers.py"),
  "known region at this row's noise": Mutation(
    "diffusion/samplers.py", "jnp.minimum(row + 1, MAX_ROWS - 1)", "jnp.minimum(row, MAX_ROWS - 1)",
    "diffusion/test_samplers.py objectives/test_drawing.py"),
  "large variance at the last step": Mutation(
    "diffusion/rows.py", 'if variance == "large" and s2 > 0 else small', 'if variance == "large" else small',
    "diffusion/test_plan_options.py diffusion/test_rows.py diffusion/test_plans.py"),
  "variance not handed on": Mutation(
    "diffusion/plans.py", 'flow=schedule.kind == "flow", eta=eta, variance=variance)', 'flow=schedule.kind == "flow", eta=eta)',
    "diffusion/test_plan_options.py diffusion/test_plans.py diffusion/test_rows.py"),
  "guidance interval without an upper end": Mutation(
    "diffusion/plans.py", "(t[where] >= interval[0]) & (t[where] <= interval[1])", "t[where] >= interval[0]", "diffusion/test_plans.py"),
  "strength rounded": Mutation(
    "diffusion/plans.py", "return int(steps * strength)", "return round(steps * strength)",
    "diffusion/test_plan_options.py diffusion/test_plans.py"),
  "clip never reaches the plan": Mutation(
    "diffusion/plans.py", "np.float32(clip or np.inf)", "np.float32(np.inf)", "diffusion/test_plans.py diffusion/test_samplers.py"),
  "every schedule starts at unit noise": Mutation(
    "diffusion/plans.py", 'start_scale=1.0 if schedule.kind == "discrete" else whole.sigma[0]', "start_scale=1.0",
    "diffusion/test_plan_options.py diffusion/test_plans.py"),
  "guidance rescale never reaches the loop": Mutation(
    "objectives/drawing.py", "plan.rescale)", "0.0)",
    "objectives/test_drawing.py::test_guidance_and_its_rescale_reach_the_loop objectives/test_diffusion.py"),
  "negative prompts read as the empty one": Mutation(
    "objectives/drawing.py", "told(encode_text(params, *(negative or nothing)), aesthetics[1])",
    "told(encode_text(params, *nothing), aesthetics[1])",
    "objectives/test_diffusion.py::test_guidance_one_ignores_the_negative_and_the_empty_negative_is_the_default "
    "objectives/test_diffusion.py"),
  "inpainting shows what is to be drawn": Mutation(
    "objectives/drawing.py", "masked = still * (where < 0.5)", "masked = still * (where > 0.5)",
    "objectives/test_drawing.py::test_a_model_of_more_channels_sees_mask_and_masked_picture objectives/test_drawing.py"),
  "threshold at another quantile": Mutation(
    "diffusion/guidance.py", "quantile: float = 0.995", "quantile: float = 0.95",
    "diffusion/test_plan_options.py diffusion/test_guidance.py"),
  "cosine schedule's offset": Mutation("diffusion/schedules.py", "0.008) / 1.008", "0.08) / 1.08", "diffusion/test_schedules.py"),
  "EDM's network time": Mutation(
    "diffusion/schedules.py", "250.0 * log_sigma", "1000.0 * log_sigma", "diffusion/test_plan_options.py diffusion/test_schedules.py"),
  "EDM's training noise": Mutation(
    "diffusion/weighting.py", '"lognormal": (-1.2, 1.2)', '"lognormal": (-1.2, 1.0)',
    "diffusion/test_plan_options.py diffusion/test_weighting.py"),
  "min-SNR's gamma for eps": Mutation(
    "diffusion/weighting.py", "jnp.minimum(1.0, gamma /", "jnp.minimum(1.0, 5.0 /", "diffusion/test_weighting.py"),
  "times one level early": Mutation(
    "diffusion/weighting.py", "jnp.floor(t * schedule.length) + 1, schedule.length)", "jnp.floor(t * schedule.length), schedule.length)",
    "diffusion/test_weighting.py"),
  # The diffusion objective.
  "caption dropout squared": Mutation(
    "objectives/diffusion.py", ">= caption_dropout", ">= caption_dropout ** 2",
    "objectives/test_diffusion.py::test_as_many_captions_are_dropped_as_asked objectives/test_diffusion.py"),
  "offset noise shared by channels": Mutation(
    "objectives/diffusion.py", "(1, 1, shape[-1])", "(1, 1, 1)",
    "objectives/test_diffusion.py::test_offset_noise_is_each_channels_own objectives/test_diffusion.py"),
  "gamma not handed on": Mutation(
    "objectives/diffusion.py", "prediction=prediction, gamma=min_snr_gamma, sigma_data", "prediction=prediction, sigma_data",
    "test_reach.py"),
  "shift not handed on": Mutation("objectives/diffusion.py", ", shift=time_shift)", ")", "test_reach.py"),
  "spread of times ignored": Mutation("objectives/diffusion.py", "own[1] if std is None else std", "own[1]", "test_reach.py"),
  # Losses.
  "sigmoid loss over the padding": Mutation(
    "losses/contrastive.py", "(image.shape[0] if valid is None else valid.sum())", "image.shape[0]",
    "losses/test_contrastive.py objectives/test_contrastive.py"),
  "ring's gradients one device off": Mutation(
    "losses/contrastive.py", "return kept, turn(moving)", "return kept, moving", "losses/test_contrastive.py"),
  "ring's bias slope of one device": Mutation(
    "losses/contrastive.py", "weight * total(ring, d_scale), weight * total(ring, d_bias)",
    "weight * total(ring, d_scale), weight * d_bias", "losses/test_contrastive.py"),
  "scale not held at its limit": Mutation(
    "objectives/contrastive.py", "jnp.minimum(params[name], limit)}", "params[name]}",
    "objectives/test_contrastive.py::test_the_scale_is_never_above_100_and_comes_back_at_once objectives/test_contrastive.py"),
  "scale limit tenfold": Mutation(
    "objectives/contrastive.py", "MAX_SCALE = 100.0", "MAX_SCALE = 1000.0",
    "objectives/test_contrastive.py::test_the_scale_is_never_above_100_and_comes_back_at_once objectives/test_contrastive.py"),
  "CoCa without a limit of scale": Mutation(
    "objectives/coca.py", 'jnp.exp(at_most(params["logit_scale"], LOG_MAX_SCALE))', 'jnp.exp(params["logit_scale"])',
    "objectives/test_coca.py::test_predictions objectives/test_coca.py"),
  "captions counted one word early": Mutation(
    "objectives/coca.py", 'counted = batch["mask"][:, 1:]', 'counted = batch["mask"][:, :-1]', "objectives/test_coca.py"),
  "discriminator heard one step late": Mutation(
    "objectives/autoencoder.py", "context.step >= discriminator_start", "context.step > discriminator_start",
    "objectives/test_autoencoder.py::test_before_its_start_the_discriminator_neither_learns_nor_is_heard "
    "objectives/test_autoencoder.py"),
  "adaptive weight's largest": Mutation("losses/adversarial.py", "LARGEST = 1e4", "LARGEST = 1e3", "losses/test_adversarial.py"),
  "discriminator's slope": Mutation("models/discriminator.py", 'f"norm{i}"), 0.2)', 'f"norm{i}"), 0.1)', "models/test_discriminator.py"),
  # Optimisers, step, state, loop.
  "decay of positions instead of embeddings": Mutation(
    "optim.py", 'DECAYED = (".*kernel", ".*embedding")', 'DECAYED = (".*kernel", ".*position")',
    "test_optim.py objectives/test_hand_offs.py"),
  "Adam's epsilon not handed on": Mutation(
    "optim.py", "scale_by_adam(b1, b2, eps, mu", "scale_by_adam(b1, b2, mu", "test_optim.py objectives/test_hand_offs.py"),
  "Lion's second rate not handed on": Mutation(
    "optim.py", "scale_by_lion(b1, b2, mu", "scale_by_lion(b1, mu", "test_optim.py objectives/test_hand_offs.py"),
  "Adafactor's update clipping": Mutation("optim.py", "update_clip: float = 1.0", "update_clip: float = 2.0", "test_optim.py"),
  "guard without the gradient norm": Mutation(
    "train/step.py", "jnp.isfinite(loss) & jnp.isfinite(grad_norm)", "jnp.isfinite(loss)",
    "train/test_step.py::test_a_non_finite_step_changes_nothing_but_the_counters train/test_step.py"),
  "bad steps in a row never forgotten": Mutation(
    "train/step.py", "(state.skipped_in_a_row + 1) * bad", "state.skipped_in_a_row + bad",
    "train/test_step.py::test_a_non_finite_step_changes_nothing_but_the_counters train/test_step.py"),
  "a teacher that is the student": Mutation(
    "train/step.py", "ema={name: state.full(name) for", "ema={name: state.full() for",
    "train/test_step.py::test_a_loss_sees_the_averages_as_they_were_before_its_step_and_a_key_of_its_own train/test_step.py"),
  "one noise for all steps": Mutation(
    "train/step.py", "key=jax.random.fold_in(state.key, state.step)", "key=state.key",
    "train/test_step.py::test_a_loss_sees_the_averages_as_they_were_before_its_step_and_a_key_of_its_own train/test_step.py"),
  "microbatches forget each other's state": Mutation(
    "train/step.py", "context._replace(extra=extra), chunk", "context, chunk", "train/test_step.py"),
  "data from the start after a resume": Mutation(
    "train/loop.py", "start_step=first, rows", "start_step=0, rows",
    "train/test_loop.py::test_a_crash_loses_only_what_came_after_the_last_save train/test_loop.py"),
  "one bad step too many": Mutation(
    "train/loop.py", '>= config["max_bad_steps"]', '> config["max_bad_steps"]',
    "train/test_loop.py::test_it_gives_up_when_nothing_is_finite train/test_loop.py"),
  "number of kept checkpoints ignored": Mutation(
    "train/loop.py", ', keep=config["checkpoint"]["keep"])', ")",
    "train/test_loop.py::test_a_run_killed_between_save_and_evaluation_makes_up_for_it train/test_loop.py"),
  "fingerprints blind to a highest bit": Mutation(
    "train/integrity.py", "jnp.uint32(GOLDEN)) | jnp.uint32(1)", "jnp.uint32(GOLDEN)) & jnp.uint32(0xFFFF_FFFE)",
    "train/test_integrity.py::test_every_flipped_bit_changes_the_fingerprint train/test_checkpoint.py"),
  # Sharding.
  "attention's output the other way": Mutation(
    "parallel.py", '(r"\\w*attention/out/kernel", ("tensor", "fsdp"))', '(r"\\w*attention/out/kernel", ("fsdp", "tensor"))',
    "test_parallel.py"),
  "convolutions by their inputs": Mutation(
    "parallel.py", '(r"conv\\w*/kernel", (None, "fsdp"))', '(r"conv\\w*/kernel", ("fsdp", None))', "test_parallel.py"),
  # Decoding.
  "penalty rewards unlikely tokens": Mutation(
    "decode.py", "logits * settings.repetition_penalty)", "logits / settings.repetition_penalty)",
    "test_decode.py::test_least_length_and_repetition_penalty test_decode.py"),
  "nucleus without its last token": Mutation(
    "decode.py", "axis=1) - probability < top_p", "axis=1) < top_p",
    "test_decode.py::test_drawn_tokens_have_the_right_frequencies test_decode.py"),
  "beam lengths one short": Mutation(
    "decode.py", "best / penalty(position + 1)", "best / penalty(jnp.maximum(position, 1))",
    "test_decode.py::test_enough_beams_are_exhaustive_search test_decode.py"),
  "beams end with the first ending": Mutation(
    "decode.py", "~jnp.all(state.ended_scores >= could)", "~jnp.all(jnp.isfinite(state.ended_scores))",
    "test_decode.py::test_enough_beams_are_exhaustive_search test_decode.py"),
  # Models: published sizes and the parts they are made of.
  "ViT-g with 8 heads": Mutation(
    "models/vit.py", "width=1408, depth=40, heads=16", "width=1408, depth=40, heads=8", "models/test_presets.py models/test_vit.py"),
  "OpenCLIP's ViT-H with QuickGELU": Mutation(
    "models/clip.py", 'image="H/14", image_size=224, embed_dim=1024, text=(1024, 24, 16), act="gelu")',
    'image="H/14", image_size=224, embed_dim=1024, text=(1024, 24, 16))', "models/test_presets.py"),
  "Stable Diffusion 1 with 4 heads": Mutation(
    "models/unet.py", "depths=(1, 1, 1, 0), heads=8)", "depths=(1, 1, 1, 0), heads=4)", "models/test_presets.py"),
  "SDXL's latent scale": Mutation(
    "models/autoencoder.py", "latent_channels=4, scale=0.13025)", "latent_channels=4, scale=0.18215)", "models/test_presets.py"),
  "SigLIP's pooling epsilon": Mutation(
    "nn/pool.py", 'layer_norm("norm", dtype=self.dtype, eps=self.eps)', 'layer_norm("norm", dtype=self.dtype)', "nn/test_pool.py"),
  "long attention sees what is hidden": Mutation(
    "nn/attention.py", "if seen is not None:\n      scores", "if seen is not None and scores.ndim == 4:\n      scores",
    "nn/test_attention.py"),
  "positions resized without antialiasing": Mutation(
    "convert/resize.py", '"cubic", antialias=True)', '"cubic", antialias=False)', "convert/test_resize.py"),
  # Data.
  "one caption kind for all epochs": Mutation(
    "data/captions.py", 'draws.uniform("caption", seed, epoch, key)', 'draws.uniform("caption", seed, 0, key)', "data/test_captions.py"),
  "captions may write special tokens": Mutation(
    "data/tokenizers.py", "backend.encode_special_tokens = True", "backend.encode_special_tokens = False", "data/test_tokenizers.py"),
}


def mistakes() -> list[str]:
  """What is wrong with the table as the source stands."""
  found = []
  for name, (file, old, new, tests) in TABLE.items():
    count = (ROOT / "mmdiff" / file).read_text().count(old) if (ROOT / "mmdiff" / file).is_file() else None
    found += [f"{name}: mmdiff/{file} has {old!r} {count} times, expected once"] * (count != 1)
    found += [f"{name}: the change changes nothing"] * (old == new)
    for test in tests.split():
      path, _, function = test.partition("::")
      there = (ROOT / "tests" / path).is_file() and f"def {function}(" in (ROOT / "tests" / path).read_text() + "def ("
      found += [f"{name}: there is no tests/{test}"] * (not there)
  return found


def copy(folder: Path) -> None:
  """What the tests need, and the store of compiled programs, which is shared."""
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(ROOT / name, folder / name)
  (ROOT / ".cache").mkdir(exist_ok=True)
  (folder / ".cache").symlink_to((ROOT / ".cache").resolve())


def run_tests(folder: Path, files: list[str]) -> tuple[str, str]:
  """("passed" | "failed" | "hung" | "broken", the first failure) of test files in a copy."""
  command = [sys.executable, "-B", "-m", "pytest", "-n", "0", "-x", "-p", "no:cacheprovider", "--tb=no",
             *(f"tests/{file}" for file in files)]
  try:
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True,
                          timeout=SECONDS)
  except subprocess.TimeoutExpired:
    return "hung", ""
  first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
  return {0: "passed", 1: "failed"}.get(done.returncode, "broken"), first.split(" - ")[0]


def try_out(name: str, folder: Path) -> tuple[str, str]:
  """What the tests nearby say of one change, which is undone."""
  mutation = TABLE[name]
  path = folder / "mmdiff" / mutation.file
  before = path.read_text()
  path.write_text(before.replace(mutation.old, mutation.new))
  try:
    return run_tests(folder, mutation.tests.split())
  finally:
    path.write_text(before)


def main(arguments: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="+", choices=TABLE, metavar="NAME", help="of the table; all by default")
  parser.add_argument("--jobs", type=int, default=1, help="changes tried side by side")
  parser.add_argument("--unproven", action="store_true", help="leaves out the run of the tests without any change")
  options = parser.parse_args(arguments)
  names = options.only or list(TABLE)
  if wrong := mistakes():
    print("\n".join(wrong), file=sys.stderr)
    return 2
  with tempfile.TemporaryDirectory() as temporary:
    free: queue.Queue[Path] = queue.Queue()
    for job in range(options.jobs):
      folder = Path(temporary) / str(job)
      folder.mkdir()
      copy(folder)
      free.put(folder)
    if not options.unproven:
      files = sorted({file for name in names for file in TABLE[name].tests.split()})
      found, first = run_tests(Path(temporary) / "0", files)
      if found != "passed":
        print(f"without any change the tests do not pass ({found} {first})", file=sys.stderr)
        return 2

    def one(name: str) -> tuple[str, str]:
      folder, started = free.get(), time.perf_counter()
      try:
        found, first = try_out(name, folder)
      finally:
        free.put(folder)
      verdict = {"passed": "SURVIVED", "failed": "killed", "hung": "killed (hung)", "broken": "BROKEN"}[found]
      print(f"{verdict:14}{name} ({time.perf_counter() - started:.0f} s) {first}", flush=True)
      return name, verdict
    with ThreadPoolExecutor(options.jobs) as pool:
      verdicts = dict(pool.map(one, names))
  left = [name for name, verdict in verdicts.items() if not verdict.startswith("killed")]
  print(f"{len(names) - len(left)} of {len(names)} killed" + (f"; not: {', '.join(left)}" if left else ""))
  return int(len(names) - len(left) < LEAST * len(names) / len(TABLE))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
