"""Greedy decoding beside transformers' `generate` with its cache, on one GPT-2 decoder with the same weights; and our own without a cache.

  .venv-peers/bin/python -m tests.peers.decode_speed --batch_size=4 --cores=1

No time counts before all three write the same tokens. The sides take turns in one process on the same cores, and the JSON has wall and CPU
seconds of every call; on a machine that others use too, read the ratio of CPU seconds.
"""
import argparse
import os
import sys

from tests.peers import measured


def arguments(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--depth", type=int, default=12)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--heads", type=int, default=8)
  parser.add_argument("--vocab", type=int, default=49_408)
  parser.add_argument("--tokens", type=int, default=64, help="tokens to write")
  parser.add_argument("--batch_size", type=int, default=4)
  parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
  parser.add_argument("--cores", type=int, default=1, help="CPU cores that this process may use")
  parser.add_argument("--json", help="write the result to this file")
  return parser.parse_args(argv)


def peer_model(options):
  """transformers' GPT-2 with random weights; its head is the table of words."""
  import torch
  from transformers import GPT2Config, GPT2LMHeadModel
  torch.manual_seed(0)
  config = GPT2Config(vocab_size=options.vocab, n_positions=options.tokens + 1, n_embd=options.width, n_layer=options.depth,
                      n_head=options.heads, initializer_range=0.08, bos_token_id=0, eos_token_id=None, pad_token_id=0)
  return GPT2LMHeadModel(config).eval()


def our_params(peer) -> dict:
  """The peer's weights for blocks of `nn.transformer`, layers stacked. Its kernels are [in, out] already."""
  import jax
  import numpy as np
  weights = {name.removeprefix("transformer."): value.detach().numpy() for name, value in peer.state_dict().items()}
  dense = lambda prefix: dict(kernel=weights[f"{prefix}.weight"], bias=weights[f"{prefix}.bias"])
  norm = lambda prefix: dict(scale=weights[f"{prefix}.weight"], bias=weights[f"{prefix}.bias"])

  def block(prefix):
    parts = zip(("query", "key", "value"), *(np.split(weights[f"{prefix}.attn.c_attn.{kind}"], 3, axis=-1) for kind in ("weight", "bias")))
    attention = {name: dict(kernel=kernel, bias=bias) for name, kernel, bias in parts} | {"out": dense(f"{prefix}.attn.c_proj")}
    return dict(norm_attention=norm(f"{prefix}.ln_1"), norm_mlp=norm(f"{prefix}.ln_2"), attention=attention,
                mlp=dict(up=dense(f"{prefix}.mlp.c_fc"), down=dense(f"{prefix}.mlp.c_proj")))
  stack = jax.tree.map(lambda *layers: np.stack(layers), *(block(f"h.{i}") for i in range(peer.config.n_layer)))
  return dict(embedding=weights["wte.weight"], position=weights["wpe.weight"], stack=stack, norm_post=norm("ln_f"))


def our_case(params, options, *, cached: bool):
  """A function that writes the tokens [B tokens]."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mmdiff import decode
  from mmdiff.nn.attention import empty_cache
  from mmdiff.nn.transformer import Block, layer_norm, layers_of, stack
  fields = dict(heads=options.heads, mlp_dim=4 * options.width, act="gelu_tanh", causal=True)
  rows, length = options.batch_size, options.tokens
  settings = decode.settings(start=0, end=options.vocab, max_len=length)            # no such token: every row is written to its end

  def logits(params, x):
    x = layer_norm().apply({"params": params["norm_post"]}, x)
    return x @ params["embedding"].T

  @jax.jit
  def write(params, seeds):
    layers = layers_of(params["stack"], options.depth)

    def cached_step(tokens, position, cache):
      x = (params["embedding"][tokens] + params["position"][position][None])[:, None]
      new = []
      for layer, kept in zip(layers, cache):
        x, kept = Block(**fields).apply({"params": layer}, x, cache=kept, position=position)
        new.append(kept)
      return logits(params, x[:, 0]), new

    def whole_step(tokens, position, written):
      written = jax.lax.dynamic_update_slice_in_dim(written, tokens[:, None], position, axis=1)
      x = params["embedding"][written] + params["position"][None, :length]
      x, _ = stack(Block, options.depth, unroll=True, **fields).apply({"params": params["stack"]}, x)
      return logits(params, jax.lax.dynamic_index_in_dim(x, position, axis=1, keepdims=False)), written

    if cached:
      room = [empty_cache(rows, length, heads=options.heads, head_dim=options.width // options.heads) for _ in layers]
      return decode.decode(cached_step, room, seeds, settings).tokens
    return decode.decode(whole_step, jnp.zeros((rows, length), jnp.int32), seeds, settings).tokens

  params, seeds = jax.device_put(params), jnp.zeros((rows,), jnp.uint32)
  return lambda: np.asarray(write(params, seeds))


def compare(options) -> dict:
  """Runs the comparison; raises AssertionError when the sides do not write the same."""
  import jax
  import numpy as np
  import torch
  import transformers

  from mmdiff.commands import bench
  torch.set_num_threads(options.cores)
  peer = peer_model(options)
  params = our_params(peer)
  start = torch.zeros((options.batch_size, 1), dtype=torch.long)
  start[:, 0] = 0

  def generate():
    with torch.no_grad():
      made = peer.generate(start, attention_mask=torch.ones_like(start), do_sample=False, use_cache=True, max_new_tokens=options.tokens)
    return made[:, 1:].numpy()

  sides = dict(mmdiff=our_case(params, options, cached=True), transformers=generate, uncached=our_case(params, options, cached=False))
  written = {name: side() for name, side in sides.items()}
  for name, tokens in written.items():
    assert np.array_equal(tokens, written["transformers"]), f"{name} and transformers write different tokens; no time counts"
  times = {name: bench.Times([], []) for name in sides}
  for _ in range(options.rounds):
    for name, side in sides.items():
      more = bench.measure(side, warmup=0, repeats=1 if name == "uncached" else 2)
      times[name].wall.extend(more.wall)
      times[name].cpu.extend(more.cpu)
  count = options.batch_size * options.tokens
  rates = {name: dict(tokens_per_second=count / min(spent.wall), tokens_per_cpu_second=count / min(spent.cpu))
           for name, spent in times.items()}
  ratio = lambda a, b: {kind: rates[a][kind] / rates[b][kind] for kind in rates[a]}
  return dict(vars(options), rates=rates, to_transformers=ratio("mmdiff", "transformers"), to_uncached=ratio("mmdiff", "uncached"),
              different_words=int(len(np.unique(written["mmdiff"]))), times={name: spent._asdict() for name, spent in times.items()},
              load=os.getloadavg(), versions=dict(jax=jax.__version__, torch=torch.__version__, transformers=transformers.__version__,
                                                  python=sys.version.split()[0]))


def main(argv=None) -> int:
  return measured.run(arguments(argv), compare, lambda result: [
    f"mmdiff {name.replace('_', ' ')}: {result[name]['tokens_per_cpu_second']:.2f} in tokens per CPU second, "
    f"{result[name]['tokens_per_second']:.2f} by the clock" for name in ("to_transformers", "to_uncached")])


if __name__ == "__main__":
  sys.exit(main())
