"""Array aliases, the batch schema and the letters that every file uses.

Letters: B batch, H W space, C channels, L queries, S keys, D width, N heads, V vocabulary.

A batch is a flat dict of arrays whose first axis is the global batch:

| key      | dtype, shape       | meaning                                                                     |
|----------|--------------------|-----------------------------------------------------------------------------|
| `image`  | uint8 [B H W 3]    | pixels as they were decoded; models normalise them on the device            |
| `tokens` | int32 [B L]        | caption tokens                                                              |
| `mask`   | bool [B L]         | true where a token is real; never inferred from the tokens                  |
| `id`     | uint32 [B]         | identity of the record; per-example randomness is folded with it            |
| `counts` | int32 [B K]        | what happened to each record (caption kind drawn, faults met): accounting   |
| `size`   | int32 [B 6]        | in aspect buckets: original height, width, crop's top, left, target height, width, in pixels |

Precomputed by frozen encoders, in place of `image` and `tokens`: `latent_mean`, `latent_std` float32 [B h w C]; `text_states` float32
[B L D] with their `mask`, perhaps `text_pooled` float32 [B D].
"""
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray     # what a test of shapes accepts: numpy arrays are arguments like any other
Key = jax.Array                    # a typed PRNG key, `jax.random.key(seed)`
Tree = Any                         # any pytree of arrays
Params = Any                       # nested dict of arrays: {"image": …, "text": …}
Batch = Mapping[str, Array]
