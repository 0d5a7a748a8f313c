"""The CLIP train step beside that of transformers' CLIPModel under PyTorch: same weights, batch, optimiser, precision and cores.

  python -m tests.peers.clip_step --variant=ViT-B/32 --batch_size=32 --rounds=3 --steps=3 --cores=1

Both models are built locally with the same random weights; nothing is downloaded. Before any time counts, the embeddings of both must
agree (1e-4 relative in float32, 2e-2 in bfloat16) and so must the losses of the first steps. Then the two are timed in turns, A B A B, in
this one process. On a machine that others use too, read the ratio of CPU seconds.
"""
import argparse
import os
import sys

from tests.peers import measured


def arguments(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--variant", default="ViT-B/32")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
  parser.add_argument("--steps", type=int, default=3, help="timed steps a turn")
  parser.add_argument("--cores", type=int, default=1, help="CPU cores that this process may use")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--unroll", action="store_true", help="our layers unrolled instead of scanned")
  parser.add_argument("--compile", action="store_true", help="torch.compile for the peer")
  parser.add_argument("--json", help="write the result to this file")
  return parser.parse_args(argv)


def peer_model(model, vocab: int):
  """transformers' CLIPModel with the shape of our `CLIP` module."""
  from transformers import CLIPConfig, CLIPModel
  image, text = model.image, model.text
  tower = lambda part: dict(hidden_size=part.width, intermediate_size=part.mlp_dim, num_hidden_layers=part.depth,
                            num_attention_heads=part.heads, hidden_act=part.act, layer_norm_eps=part.eps)
  config = CLIPConfig(
    projection_dim=text.embed_dim,
    vision_config=dict(image_size=model.image_size, patch_size=image.patch, **tower(image)),
    text_config=dict(vocab_size=vocab, max_position_embeddings=text.length, eos_token_id=vocab - 1, bos_token_id=vocab - 2, pad_token_id=0,
                     **tower(text)))
  config._attn_implementation = "sdpa"
  return CLIPModel(config)


def our_params(peer) -> dict:
  """The peer's weights in our tree. Kernels are [in, out]; the layers of a stack share one leading axis."""
  import numpy as np
  weights = {name: value.detach().numpy() for name, value in peer.state_dict().items()}

  def dense(prefix, bias=True):
    return dict(kernel=weights[f"{prefix}.weight"].T) | (dict(bias=weights[f"{prefix}.bias"]) if bias else {})

  def norm(prefix):
    return dict(scale=weights[f"{prefix}.weight"], bias=weights[f"{prefix}.bias"])

  def block(prefix):
    attention = dict(query="q_proj", key="k_proj", value="v_proj", out="out_proj")
    return dict(norm_attention=norm(f"{prefix}.layer_norm1"), norm_mlp=norm(f"{prefix}.layer_norm2"),
                attention={ours: dense(f"{prefix}.self_attn.{theirs}") for ours, theirs in attention.items()},
                mlp=dict(up=dense(f"{prefix}.mlp.fc1"), down=dense(f"{prefix}.mlp.fc2")))

  def stack(prefix, depth):
    import jax
    return jax.tree.map(lambda *layers: np.stack(layers), *(block(f"{prefix}.{i}") for i in range(depth)))

  vision = "vision_model.embeddings"
  patch = weights[f"{vision}.patch_embedding.weight"]                    # [D C P P]
  image = dict(patchify=dict(kernel=patch.transpose(2, 3, 1, 0).reshape(-1, patch.shape[0])),
               class_token=weights[f"{vision}.class_embedding"], position=weights[f"{vision}.position_embedding.weight"],
               norm_pre=norm("vision_model.pre_layrnorm"), norm_post=norm("vision_model.post_layernorm"),
               stack=stack("vision_model.encoder.layers", peer.config.vision_config.num_hidden_layers),
               projection=dense("visual_projection", bias=False))
  text = dict(embed=dict(embedding=weights["text_model.embeddings.token_embedding.weight"]),
              position=weights["text_model.embeddings.position_embedding.weight"], norm_post=norm("text_model.final_layer_norm"),
              stack=stack("text_model.encoder.layers", peer.config.text_config.num_hidden_layers),
              projection=dense("text_projection", bias=False))
  return dict(image=image, text=text, logit_scale=weights["logit_scale"])


def peer_case(peer, model, batch, optim, *, dtype: str, compiled: bool):
  """(one optimiser step that returns the loss, a function that returns both embeddings) on the same inputs as ours."""
  import torch
  mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (model.mean, model.std))
  image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous()
  tokens = torch.from_numpy(batch["tokens"]).long()
  decayed = lambda name: name.endswith("weight") and "norm" not in name and "position" not in name
  groups = [dict(params=[p for n, p in peer.named_parameters() if decayed(n)], weight_decay=optim["weight_decay"]),
            dict(params=[p for n, p in peer.named_parameters() if not decayed(n)], weight_decay=0.0)]
  optimiser = torch.optim.AdamW(groups, lr=optim["lr"], betas=(optim["b1"], optim["b2"]), eps=optim["eps"], fused=True)

  def forward():
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
      return peer(input_ids=tokens, pixel_values=(image.float() / 255 - mean) / std, return_loss=True)

  run = torch.compile(forward) if compiled else forward

  def step() -> float:
    optimiser.zero_grad(set_to_none=True)
    loss = run().loss
    loss.backward()
    optimiser.step()
    return loss.item()

  def embeddings():
    with torch.no_grad():
      out = forward()
    return out.image_embeds.float().numpy(), out.text_embeds.float().numpy()
  return step, embeddings


def compare(options) -> dict:
  """Runs the comparison; raises AssertionError when the two do not compute the same."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import torch
  import transformers

  from mmdiff.commands import bench, flags
  from mmdiff.core.build import build
  from mmdiff.models import MODELS, flops
  from mmdiff.objectives import OBJECTIVES
  torch.set_num_threads(options.cores)
  sizes = build(MODELS, dict(name="clip", variant=options.variant))
  config = flags.load_config([
    f"--config.data.image_size={sizes.image_size}", f"--config.data.text_len={sizes.text.length}",
    "--config=configs/clip.py", f"--config.objective.model.variant={options.variant}",
    "--config.evals={}", f"--config.batch_size={options.batch_size}",
    "--config.mesh.data=-1", "--config.objective.chunk=0", f"--config.objective.model.dtype={options.dtype}",
    "--config.objective.model.remat=none", f"--config.objective.model.unroll={str(options.unroll).lower()}",
    "--config.optim.default.warmup_steps=0", "--config.optim.default.decay=constant"])
  model = build(MODELS, config["objective"]["model"])
  batch = bench.random_batch(config)
  batch["tokens"][:, -1] = model.text.vocab - 1              # the peer pools at its end token, we at the mask's end: the same place
  torch.manual_seed(0)
  peer = peer_model(model, model.text.vocab)
  params = our_params(peer)
  case = bench.train_case(config, params=params, batch=batch)
  peer_step, peer_embeddings = peer_case(peer, model, batch, config["optim"]["default"], dtype=options.dtype, compiled=options.compile)

  tolerance = 1e-4 if options.dtype == "float32" else 2e-2
  predict = build(OBJECTIVES, config["objective"]).predict
  ours = (jax.jit(predict["embed_image"])(params, batch["image"]),
          jax.jit(predict["embed_text"])(params, batch["tokens"], jnp.asarray(batch["mask"])))
  errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, peer_embeddings())]
  assert max(errors) <= tolerance, f"the forward passes differ by {errors} (relative); no time counts"
  losses = [(case.step(), peer_step()) for _ in range(3)]
  worst = max(abs(a - b) / abs(b) for a, b in losses)
  assert worst <= 10 * tolerance, f"the losses of the first steps differ: {losses}"

  mine, theirs = bench.Times([], []), bench.Times([], [])
  for _ in range(options.rounds):
    for fn, times in ((case.step, mine), (peer_step, theirs)):
      more = bench.measure(fn, warmup=1, repeats=options.steps)
      times.wall.extend(more.wall)
      times.cpu.extend(more.cpu)
  work = flops.TRAIN * options.batch_size * flops.clip(model)
  probe = bench.matmul_rates(options.dtype)
  ours_rates, peer_rates = bench.rates(mine, options.batch_size), bench.rates(theirs, options.batch_size)
  return dict(
    vars(options), forward_errors=errors, first_losses=losses, mmdiff=ours_rates, peer=peer_rates,
    ratio_cpu_seconds=ours_rates["images_per_cpu_second"] / peer_rates["images_per_cpu_second"],
    ratio_wall=ours_rates["images_per_second"] / peer_rates["images_per_second"], flops_per_step=work,
    share_of_matmul_cpu_rate=work / ours_rates["cpu_seconds_per_step"] / probe["matmul_flops_per_cpu_second"], probe=probe,
    times=dict(mmdiff=mine._asdict(), peer=theirs._asdict()), compile_seconds=case.compile_seconds, load=os.getloadavg(),
    versions=dict(jax=jax.__version__, torch=torch.__version__, transformers=transformers.__version__, python=sys.version.split()[0]))


def main(argv=None) -> int:
  return measured.run(arguments(argv), compare, lambda result: [
    f"mmdiff / transformers: {result['ratio_cpu_seconds']:.2f} in images per CPU second, {result['ratio_wall']:.2f} by the clock"])


if __name__ == "__main__":
  sys.exit(main())
