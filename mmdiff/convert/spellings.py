"""Names that other code and older versions write for the same tensors. Every reader renames them on sight, in folders and in single files
alike, so that what is read in one is read in the other."""
import re
from collections.abc import Iterable, Mapping

from mmdiff.convert import rules
from mmdiff.convert.tensors import Tensor

# The attention of an autoencoder's middle: diffusers since 0.13, diffusers before, CompVis' code.
ATTENTION = {"query": ("to_q", "query", "q"), "key": ("to_k", "key", "k"), "value": ("to_v", "value", "v"),
             "out": ("to_out.0", "proj_attn", "proj_out")}
MIDDLES = {"diffusers": r"mid_block\.attentions\.0", "ldm": r"mid\.attn_1"}
COLUMN = {"diffusers": 0, "ldm": 2}
NORMS = {"diffusers": ("group_norm", "norm"), "ldm": ("norm", "group_norm")}
# CLIP's towers alone: transformers before 5, and the classes with a projection, keep them under these groups, others write them bare.
TEXT, IMAGE = "text_model.", "vision_model."
OF_TOWERS = r"(embeddings|encoder|final_layer_norm|pre_layrnorm|post_layernorm)\."


def autoencoder(found: Mapping[str, Tensor], style: str, prefix: str = "") -> dict[str, Tensor]:
  """An autoencoder's tensors under the names of a style, "diffusers" or "ldm"; a name that stands there already stays."""
  start = rf"^({re.escape(prefix)}(?:encoder|decoder)\.{MIDDLES[style]})"
  spelt = [(rf"{start}\.(?:{'|'.join(map(re.escape, names))})\.(weight|bias)$", rf"\1.{names[COLUMN[style]]}.\2")
           for names in ATTENTION.values()]
  norm, other = NORMS[style]
  return rules.renamed(found, [*spelt, (rf"{start}\.{other}\.", rf"\1.{norm}.")])


def start(names: Iterable[str], group: str, prefix: str = "") -> str:
  """How the names of a tower of transformers begin after `prefix`: with the group `TEXT` or `IMAGE`, or bare."""
  bare = re.compile(re.escape(prefix) + OF_TOWERS)
  return "" if any(bare.match(name) for name in names) else group
