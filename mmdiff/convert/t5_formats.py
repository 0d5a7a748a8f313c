"""The encoder of T5 1.1 and FLAN-T5 in transformers' layout: T5EncoderModel, or the encoder's half of T5ForConditionalGeneration."""
from collections.abc import Mapping

from mmdiff.convert.clip_formats import clip_inputs, merged
from mmdiff.convert.formats import Format, Reading, Source, Writing, take
from mmdiff.convert.rules import Rule
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data.token_facts import Like
from mmdiff.models.t5 import BUCKETS, LONGEST, T5Encoder

BLOCK = "encoder.block.{n}.layer"
TABLE = (
  Rule("shared.weight", "embed/embedding"),
  Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position_bias"),
  *(Rule(f"{BLOCK}.0.SelfAttention.{part[0]}.weight", f"stack/attention/{part}/kernel[n]", "linear")
    for part in ("query", "key", "value", "out")),
  Rule(f"{BLOCK}.0.layer_norm.weight", "stack/norm_attention/scale[n]"),
  Rule(f"{BLOCK}.1.DenseReluDense.wi_0.weight", "stack/mlp/gate/kernel[n]", "linear"),
  Rule(f"{BLOCK}.1.DenseReluDense.wi_1.weight", "stack/mlp/up/kernel[n]", "linear"),
  Rule(f"{BLOCK}.1.DenseReluDense.wo.weight", "stack/mlp/down/kernel[n]", "linear"),
  Rule(f"{BLOCK}.1.layer_norm.weight", "stack/norm_mlp/scale[n]"),
  Rule("encoder.final_layer_norm.weight", "norm_post/scale"))
# The other half, and second copies of the one embedding.
IGNORABLE = (r"decoder\..*", r"lm_head\.weight", r"encoder\.embed_tokens\.weight")
ACTIVATION = "gated-gelu"                       # T5 1.1's; transformers means the tanh form by it
FIXED = dict(relative_attention_num_buckets=BUCKETS, relative_attention_max_distance=LONGEST, layer_norm_epsilon=1e-6)


def read(source: Source, *, text_len: int | None = None) -> Reading:
  config, where = source.config, f"{source.path}: config.json"
  if config.get("feed_forward_proj", "relu") != ACTIVATION:
    raise DataError(f"{where}: feed_forward_proj: expected {ACTIVATION!r}, as T5 1.1 and FLAN-T5 have, "
                    f"found {config.get('feed_forward_proj')!r:.40}")
  for key, value in FIXED.items():
    if config.get(key, value) != value:
      raise DataError(f"{where}: {key}: mmdiff's T5 has {value}, found {config[key]!r:.40}")
  number = lambda key: take(config, key, int, where)
  module = T5Encoder(number("vocab_size"), number("d_model"), number("num_layers"), number("num_heads"), number("d_kv"), number("d_ff"))
  found = dict(source.container.tensors)
  if "shared.weight" not in found and "encoder.embed_tokens.weight" in found:
    found["shared.weight"] = found.pop("encoder.embed_tokens.weight")
  length = text_len or take(config, "n_positions", int, where, 512)
  return Reading(module, dict(objective=None, model=dict(name="t5"), data=dict(text_len=length)), TABLE, found, clip_inputs(8, 8)[1:],
                 IGNORABLE, dict(config=dict(config)), like=Like("T5Tokenizer"))


def write(module: T5Encoder, config: Mapping, style: Mapping) -> Writing:
  if not isinstance(module, T5Encoder):
    raise ConfigError("hf-t5 holds the encoder of T5 1.1 only")
  made = dict(FIXED, architectures=["T5EncoderModel"], model_type="t5", dtype="float32", vocab_size=module.vocab, d_model=module.width,
              d_kv=module.head_dim, d_ff=module.mlp_dim, num_layers=module.depth, num_heads=module.heads, feed_forward_proj=ACTIVATION,
              is_encoder_decoder=False, use_cache=False, pad_token_id=0, eos_token_id=1)
  # transformers 5 writes true for every model and keeps the meaning in the other key; both false is T5 1.1 to all versions.
  before = {**dict(tie_word_embeddings=False, scale_decoder_outputs=False), **style.get("config", {})}
  before.pop("architectures", None)
  before.pop("is_encoder_decoder", None)
  return Writing(TABLE, {"config.json": merged(before, made)}, "model")


HF_T5 = Format("hf-t5", "text", "the encoder of transformers' T5", lambda s: s.model_type in ("t5", "mt5"), read, write, ("text_len",))
