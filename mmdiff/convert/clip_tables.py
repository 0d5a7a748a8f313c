"""The names of CLIP's tensors: transformers' (CLIPModel and its parts) and OpenAI's, which open_clip keeps; SigLIP's in transformers and
big_vision. Every table is made for the groups `image` and `text` of `models.clip`; a part alone uses its lines without the group."""
from mmdiff.convert.rules import Rule, norm, pair

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
# Buffers and counters that carry nothing.
IGNORABLE = (r"(.*\.)?position_ids", r"(.*\.)?attn_mask", r"(.*\.)?num_batches_tracked", "input_resolution", "context_length", "vocab_size")


def hf_block(theirs: str, ours: str) -> tuple[Rule, ...]:
  """`theirs` up to the layer's number, `ours` up to the block."""
  attention = [rule for here, there in ATTENTION.items()
               for rule in pair(f"{theirs}.self_attn.{there}", f"{ours}/attention/{here}", index="[n]")]
  return (*norm(f"{theirs}.layer_norm1", f"{ours}/norm_attention", "[n]"), *attention,
          *norm(f"{theirs}.layer_norm2", f"{ours}/norm_mlp", "[n]"),
          *pair(f"{theirs}.mlp.fc1", f"{ours}/mlp/up", index="[n]"), *pair(f"{theirs}.mlp.fc2", f"{ours}/mlp/down", index="[n]"))


def hf_text(theirs: str = "text_model.", ours: str = "text/") -> tuple[Rule, ...]:
  return (Rule(f"{theirs}embeddings.token_embedding.weight", f"{ours}embed/embedding"),
          Rule(f"{theirs}embeddings.position_embedding.weight", f"{ours}position", "rows"),
          *hf_block(f"{theirs}encoder.layers.{{n}}", f"{ours}stack"), *norm(f"{theirs}final_layer_norm", f"{ours}norm_post"))


def hf_image(theirs: str = "vision_model.", ours: str = "image/") -> tuple[Rule, ...]:
  return (Rule(f"{theirs}embeddings.class_embedding", f"{ours}class_token"),
          *pair(f"{theirs}embeddings.patch_embedding", f"{ours}patchify", "patch"),
          Rule(f"{theirs}embeddings.position_embedding.weight", f"{ours}position", "grid"),
          *norm(f"{theirs}pre_layrnorm", f"{ours}norm_pre"),                      # sic
          *hf_block(f"{theirs}encoder.layers.{{n}}", f"{ours}stack"), *norm(f"{theirs}post_layernorm", f"{ours}norm_post"))


HF_CLIP = (Rule("logit_scale", "logit_scale"), *hf_text(), *hf_image(), Rule("text_projection.weight", "text/projection/kernel", "linear"),
           Rule("visual_projection.weight", "image/projection/kernel", "linear"))

HEAD = "vision_model.head"
HF_SIGLIP = (
  Rule("logit_scale", "logit_scale", "vector"), Rule("logit_bias", "logit_bias", "vector"), *hf_text(), *hf_image(),
  *pair("text_model.head", "text/projection"), Rule(f"{HEAD}.probe", "image/pool/probe", "lead"),
  Rule(f"{HEAD}.attention.in_proj_weight", tuple(f"image/pool/attention/{part}/kernel" for part in ("query", "key", "value")), "fused"),
  Rule(f"{HEAD}.attention.in_proj_bias", tuple(f"image/pool/attention/{part}/bias" for part in ("query", "key", "value")), "fused_bias"),
  *pair(f"{HEAD}.attention.out_proj", "image/pool/attention/out"), *norm(f"{HEAD}.layernorm", "image/pool/norm"),
  *pair(f"{HEAD}.mlp.fc1", "image/pool/mlp/up"), *pair(f"{HEAD}.mlp.fc2", "image/pool/mlp/down"))


def openai_block(theirs: str, ours: str) -> tuple[Rule, ...]:
  fused = tuple(f"{ours}/attention/{part}" for part in ("query", "key", "value"))
  return (*norm(f"{theirs}.ln_1", f"{ours}/norm_attention", "[n]"),
          Rule(f"{theirs}.attn.in_proj_weight", tuple(f"{part}/kernel[n]" for part in fused), "fused"),
          Rule(f"{theirs}.attn.in_proj_bias", tuple(f"{part}/bias[n]" for part in fused), "fused_bias"),
          *pair(f"{theirs}.attn.out_proj", f"{ours}/attention/out", index="[n]"), *norm(f"{theirs}.ln_2", f"{ours}/norm_mlp", "[n]"),
          *pair(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up", index="[n]"), *pair(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down", index="[n]"))


def openai_text(theirs: str = "", ours: str = "text/") -> tuple[Rule, ...]:
  return (Rule(f"{theirs}positional_embedding", f"{ours}position", "rows"),
          Rule(f"{theirs}token_embedding.weight", f"{ours}embed/embedding"),
          *openai_block(f"{theirs}transformer.resblocks.{{n}}", f"{ours}stack"), *norm(f"{theirs}ln_final", f"{ours}norm_post"),
          Rule(f"{theirs}text_projection", f"{ours}projection/kernel"))


def openai_image(theirs: str = "visual.", ours: str = "image/") -> tuple[Rule, ...]:
  return (Rule(f"{theirs}class_embedding", f"{ours}class_token"), Rule(f"{theirs}positional_embedding", f"{ours}position", "grid"),
          Rule(f"{theirs}proj", f"{ours}projection/kernel"), Rule(f"{theirs}conv1.weight", f"{ours}patchify/kernel", "patch"),
          *norm(f"{theirs}ln_pre", f"{ours}norm_pre"), *openai_block(f"{theirs}transformer.resblocks.{{n}}", f"{ours}stack"),
          *norm(f"{theirs}ln_post", f"{ours}norm_post"))


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
  return (*norm(theirs, ours), Rule(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
          Rule(f"{theirs}.running_var", f"batch_stats/{ours}/var"))


def openai_resnet(theirs: str = "visual.", ours: str = "image/") -> tuple[Rule, ...]:
  rules: list[Rule] = []
  for i in (1, 2, 3):
    rules += [Rule(f"{theirs}conv{i}.weight", f"{ours}conv{i}/kernel", "conv"), *batch_norm(f"{theirs}bn{i}", f"{ours}norm{i}")]
    rules += [Rule(f"{theirs}layer{{s}}.{{n}}.conv{i}.weight", f"{ours}stage{{s}}_{{n}}/conv{i}/kernel", "conv"),
              *batch_norm(f"{theirs}layer{{s}}.{{n}}.bn{i}", f"{ours}stage{{s}}_{{n}}/norm{i}")]
  shortcut = f"{theirs}layer{{s}}.{{n}}.downsample"
  rules += [Rule(f"{shortcut}.0.weight", f"{ours}stage{{s}}_{{n}}/conv_shortcut/kernel", "conv"),
            *batch_norm(f"{shortcut}.1", f"{ours}stage{{s}}_{{n}}/norm_shortcut"),
            Rule(f"{theirs}attnpool.positional_embedding", f"{ours}position", "grid")]
  for part, name in {**ATTENTION, "out": "c_proj"}.items():
    rules += pair(f"{theirs}attnpool.{name}", f"{ours}attention/{part}")
  return tuple(rules)


def open_clip(*, resnet: bool, custom_text: bool) -> tuple[Rule, ...]:
  """OpenAI's names; a config with `custom_text` keeps the text tower under `text.`."""
  image = openai_resnet() if resnet else openai_image()
  return (Rule("logit_scale", "logit_scale"), Rule("logit_bias", "logit_bias"), *openai_text("text." if custom_text else ""), *image)


def big_vision(*, image_stacked: bool, text_stacked: bool) -> tuple[Rule, ...]:
  """SigLIP's two towers; a scanned tower has one `encoderblock`, another one `encoderblock_N` per layer. It is only read."""
  def dense(theirs: str, ours: str, index: str = "") -> tuple[Rule, Rule]:
    return Rule(f"{theirs}/kernel", f"{ours}/kernel{index}", "flat"), Rule(f"{theirs}/bias", f"{ours}/bias{index}", "flat")

  def scales(theirs: str, ours: str, index: str = "") -> tuple[Rule, Rule]:
    return Rule(f"{theirs}/scale", f"{ours}/scale{index}"), Rule(f"{theirs}/bias", f"{ours}/bias{index}")

  def block(theirs: str, ours: str, index: str = "") -> tuple[Rule, ...]:
    attention = [rule for part in ATTENTION for rule in
                 dense(f"{theirs}/MultiHeadDotProductAttention_0/{part}", f"{ours}/attention/{part}", index)]
    return (*attention, *dense(f"{theirs}/MlpBlock_0/Dense_0", f"{ours}/mlp/up", index),
            *dense(f"{theirs}/MlpBlock_0/Dense_1", f"{ours}/mlp/down", index))

  def tower(theirs: str, ours: str, stacked: bool) -> tuple[Rule, ...]:
    layer, index = (f"{theirs}/encoderblock", "") if stacked else (f"{theirs}/encoderblock_{{n}}", "[n]")
    return (*scales(f"{layer}/LayerNorm_0", f"{ours}/stack/norm_attention", index),
            *scales(f"{layer}/LayerNorm_1", f"{ours}/stack/norm_mlp", index), *block(layer, f"{ours}/stack", index),
            *scales(f"{theirs}/encoder_norm", f"{ours}/norm_post"))

  pool = "img/MAPHead_0"
  return (Rule("t", "logit_scale", "vector"), Rule("b", "logit_bias", "vector"), *dense("img/embedding", "image/patchify"),
          Rule("img/pos_embedding", "image/position", "grid"), *tower("img/Transformer", "image", image_stacked),
          Rule(f"{pool}/probe", "image/pool/probe", "lead"), *block(pool, "image/pool"), *scales(f"{pool}/LayerNorm_0", "image/pool/norm"),
          Rule("txt/Embed_0/embedding", "text/embed/embedding"), Rule("txt/pos_embedding", "text/position", "rows"),
          *tower("txt/Encoder_0", "text", text_stacked), *dense("txt/head", "text/projection"))
