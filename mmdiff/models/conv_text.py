"""A small text encoder that trains together with a denoiser: token and position embeddings, mixed locally by convolutions.

For captions that name many things, the words that belong together stand together ("small striped red circle"): a width of five binds
them in one layer, where attention first has to learn positions. An empty or dropped caption (no true mask entry) becomes a learned null.

A text encoder maps (tokens int32 [B L], mask bool [B L], a prefix of each row) to a dict that every denoiser reads:
`tokens` [B L D], `mask` bool [B L] (true where `tokens` counts), `pooled` [B D].
"""
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Int

from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array


class ConvText(nn.Module):
  """x = embed + position, then x + gelu(conv(x)) per layer, padding held at zero; `pooled` is the mean over real tokens."""
  vocab: int
  text_len: int
  width: int
  layers: int
  kernel: int
  embed_std: float
  position_std: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> dict[str, Array]:
    if tokens.shape[1] > self.text_len:
      raise ConfigError(f"captions of {tokens.shape[1]} tokens, but the text encoder has positions for {self.text_len}; set text_len "
                        "alike, and long_prompts='cut' in sampling")
    real = mask[..., None]
    x = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(self.embed_std), dtype=self.dtype,
                 name="embed")(tokens)                                                                         # [B L D]
    position = self.param("position", nn.initializers.normal(self.position_std), (self.text_len, self.width))
    x = pin(jnp.where(real, x + position[None, :tokens.shape[1]].astype(self.dtype), 0), BATCH)
    for i in range(self.layers):
      conv = nn.Conv(self.width, (self.kernel,), dtype=self.dtype, name=f"conv_{i}")
      x = jnp.where(real, x + jax.nn.gelu(conv(x)), 0)
    null = self.param("null", nn.initializers.normal(self.position_std), (1, self.width)).astype(self.dtype)
    empty = ~mask.any(1)
    pooled = x.sum(1, dtype=jnp.float32) / jnp.maximum(mask.sum(1, keepdims=True), 1)                            # [B D]
    first = (jnp.arange(tokens.shape[1]) == 0)[None]
    stands_in = empty[:, None] & first
    return {"tokens": jnp.where(stands_in[..., None], null[None], x), "mask": mask | stands_in,
            "pooled": jnp.where(empty[:, None], null.astype(jnp.float32), pooled).astype(self.dtype)}


def conv_text(*, vocab: int, text_len: int, width: int = 128, layers: int = 2, kernel: int = 5, embed_std: float = 1.0,
              position_std: float = 0.1, dtype: Literal["float32", "bfloat16"] = "float32") -> ConvText:
  """The encoder; `vocab` and `text_len` are the tokenizer's size and the data's caption length.

  The words start much larger than their positions (`embed_std`, `position_std`), so that the convolutions see what is said before where.
  """
  return ConvText(vocab, text_len, width, layers, kernel, embed_std, position_std, jnp.dtype(dtype))
