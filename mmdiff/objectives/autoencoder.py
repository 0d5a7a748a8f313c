"""The first stage of latent diffusion: a KL autoencoder with a perceptual and an adversarial loss (https://arxiv.org/abs/2112.10752 §3.1
and appendix G; LPIPSWithDiscriminator of CompVis/latent-diffusion), both players in one scalar (`losses.adversarial`).

Per picture of N values, the generator's part is

  (|x − x̂| + perceptual) / exp(s) + s  +  kl_weight · KL / N  +  λ · discriminator_weight · (−D(x̂))

which is latent diffusion's, there summed over the picture, divided by N: Adam sees no difference, and the loss reads the same at all
sizes. λ is VQGAN's adaptive weight, by the same division at most 1e4 / N. Before `discriminator_start` both adversarial terms are zero.
"""
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Context, Objective, Variables, in_chunks
from mmdiff.core.types import Array, Batch, Key, Tree
from mmdiff.losses import adversarial
from mmdiff.losses import reconstruction as losses
from mmdiff.models import flops
from mmdiff.models.autoencoder import draw_latents


def autoencoder(*, model: Built["mmdiff.models:AUTOENCODERS"], pixel: Literal["l1", "l2"] = "l1",
                perceptual: Built["mmdiff.models:FEATURES"] | None = None, perceptual_weight: float = 1.0, kl_weight: float = 1e-6,
                learned_scale: bool = False,
                discriminator: Built["mmdiff.models:DISCRIMINATORS"] | None = None, discriminator_weight: float = 0.5,
                discriminator_start: int = 50_001, adaptive: bool = True) -> Objective:
  """The objective over parameter groups `autoencoder` and, where there are any, `discriminator`, `perceptual` (to be frozen) and
  `log_scale`.

  Args:
    model: see `models.autoencoder`.
    pixel: the distance of pixels: l1 as published, or l2, squared, which the later ft-mse weights of Stable Diffusion used.
    perceptual: a distance beside |x − x̂|, see `models.perceptual`; None = none.
    perceptual_weight: of that distance.
    kl_weight: of the latents' KL in nats, summed over a picture's latent.
    learned_scale: trains s, the logarithm of the error's scale. Published weights kept it at 0, since no optimiser had it.
    discriminator: see `models.discriminator`; None trains without one.
    discriminator_weight: of the generator's adversarial term, beside the adaptive weight.
    discriminator_start: first step at which the discriminator learns and is heard.
    adaptive: weighs the adversarial term by gradient norms at the decoder's last convolution; false uses `discriminator_weight` alone.

  Metrics: l1, perceptual, kl (nats a picture), mse; with a discriminator also generator (−D(x̂)), discriminator, logits_real, logits_fake
  and adaptive_weight.
  """
  if discriminator_start < 0 or min(perceptual_weight, kl_weight, discriminator_weight) < 0:
    raise ConfigError("objective: perceptual_weight, kl_weight, discriminator_weight and discriminator_start are not negative, found "
                      f"{perceptual_weight}, {kl_weight}, {discriminator_weight}, {discriminator_start}")
  couples_rows = discriminator is not None and discriminator.couples_rows

  def init(key: Key, batch: Batch) -> Variables:
    k_model, k_features, k_discriminator = jax.random.split(key, 3)
    image = pixels(batch["image"][:1])
    params = {"autoencoder": model.init(k_model, image)["params"]}
    found = perceptual.init(k_features) if perceptual else {}
    params |= {"perceptual": found} if found else {}
    params |= {"log_scale": jnp.zeros(())} if learned_scale else {}
    params |= {"discriminator": discriminator.init(k_discriminator, image)["params"]} if discriminator else {}
    return Variables(params)

  def apply(weights: Tree, method: str, *args):
    return model.apply({"params": weights}, *args, method=method)

  def hidden(params: Tree, image: Array, ids: Array, key: Key) -> dict[str, Array]:
    """Row by row: what the decoder's last convolution sees, and the posterior's KL [B]."""
    mean, log_variance = apply(params["autoencoder"], "posterior", image)
    z = draw_latents(mean, jnp.exp(0.5 * log_variance), key, ids)
    return {"features": apply(params["autoencoder"], "features", z), "kl": losses.kl_to_normal(mean, log_variance)}

  def distances(params: Tree, made: Array, image: Array) -> dict[str, Array]:
    """l1, mse, perceptual and nll of pictures, [B] each."""
    l1, mse = losses.l1(made, image), losses.mse(made, image)
    frozen = jax.lax.stop_gradient(params.get("perceptual", {}))
    distance = perceptual.distance(frozen, made, image) if perceptual else jnp.zeros_like(l1)
    s = params.get("log_scale", jnp.zeros(()))
    error = (l1 if pixel == "l1" else mse) + perceptual_weight * distance
    return {"l1": l1, "mse": mse, "perceptual": distance, "nll": error / jnp.exp(s) + s}

  def judge(weights: Tree, made: Array) -> Array:
    return discriminator.apply({"params": weights}, made)

  def against(params: Tree, made: Array) -> Array:
    """−D(made) [B] for the generator: D is held."""
    return adversarial.generator(judge(jax.lax.stop_gradient(params["discriminator"]), made))

  def balance(params: Tree, rows: Mapping[str, Array], chunks: int) -> Array:
    """λ: both terms as functions of the last kernel alone, everything before it held."""
    params, rows = jax.lax.stop_gradient((params, dict(rows)))

    def mean_of(term):
      return lambda kernel: in_chunks(lambda part: term(apply(with_last(params["autoencoder"], kernel), "paint", part["features"]),
                                                        part["image"]), rows, chunks).mean()
    nll = mean_of(lambda made, image: distances(params, made, image)["nll"])
    return adversarial.adaptive_weight(nll, mean_of(lambda made, image: against(params, made)), last(params["autoencoder"]),
                                       largest=adversarial.LARGEST / rows["image"][0].size)

  def loss(params: Tree, context: Context, batch: Batch) -> tuple[Array, Aux]:
    chunks, image = context.microbatches, pixels(batch["image"])
    if couples_rows and chunks > 1:
      raise ConfigError("accumulate > 1 is not exact with the discriminator's batch norm, which couples the pictures of a batch: "
                        "set accumulate=1 or objective.discriminator.norm='group'")
    rows = {"image": image} | in_chunks(lambda part: hidden(params, part["image"], part["id"], context.key),
                                        {"image": image, "id": batch["id"]}, chunks)

    def scores(part: Mapping[str, Array]) -> dict[str, Array]:
      made = apply(params["autoencoder"], "paint", part["features"])
      found = distances(params, made, part["image"]) | {"kl": part["kl"]}
      if discriminator is None:
        return found
      real, fake = judge(params["discriminator"], part["image"]), judge(params["discriminator"], jax.lax.stop_gradient(made))
      return found | {"generator": against(params, made), "discriminator": adversarial.hinge(real, fake),
                      "logits_real": real.mean((1, 2, 3)), "logits_fake": fake.mean((1, 2, 3))}

    metrics = {name: values.mean() for name, values in in_chunks(scores, rows, chunks).items()}
    value = metrics["nll"] + kl_weight / image[0].size * metrics["kl"]
    if discriminator is not None:
      weight = balance(params, rows, chunks) if adaptive else jnp.ones(())
      heard = (context.step >= discriminator_start).astype(jnp.float32)
      value = value + heard * (weight * discriminator_weight * metrics["generator"] + metrics["discriminator"])
      metrics["adaptive_weight"] = weight
    return value, Aux({name: metric for name, metric in metrics.items() if name != "nll"} | {"loss": value})

  def encode(params: Tree, images: Array, extra: Tree = ()) -> tuple[Array, Array]:
    """Pictures [B H W 3], uint8 or [-1, 1] -> (mean, standard deviation) of their latents, float32 [B h w C], both already times the
    model's latent scale; `models.autoencoder.draw_latents` samples them."""
    return apply(params["autoencoder"], "encode", pixels(images))

  def decode(params: Tree, latents: Array, extra: Tree = ()) -> Array:
    """Latents float32 [B h w C] as `encode` scales them -> pictures float32 [B H W 3] in [-1, 1]."""
    return apply(params["autoencoder"], "decode", latents)

  def reconstruct(params: Tree, images: Array, extra: Tree = ()) -> Array:
    """Pictures, uint8 or [-1, 1] -> what their mean latents decode to, float32 in [-1, 1]."""
    return decode(params, encode(params, images)[0])

  def evaluate(params: Tree, batch: Batch, key: Key, extra: Tree = ()) -> dict[str, Array]:
    """The generator's loss without its adversarial term, and its parts; `valid` bool [B] leaves out padding."""
    image = pixels(batch["image"])
    valid = batch["valid"].astype(jnp.float32) if "valid" in batch else jnp.ones(image.shape[0], jnp.float32)
    rows = hidden(params, image, batch["id"], key)
    made = apply(params["autoencoder"], "paint", rows["features"])
    found = distances(params, made, image) | {"kl": rows["kl"]}
    metrics = {name: (values * valid).sum() / jnp.maximum(valid.sum(), 1.0) for name, values in found.items()}
    return {"loss": metrics.pop("nll") + kl_weight / image[0].size * metrics["kl"]} | metrics

  def count(batch_size: int, text_len: int) -> int:
    """Of one step: three passes of the model and of the discriminator on real pictures and made ones, the perceptual network on both
    (backwards to the made ones' pixels only), and the discriminator once more for the generator."""
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    params = jax.eval_shape(init, jax.random.key(0), {"image": image}).params
    total = flops.TRAIN * flops.traced(lambda p, x: apply(p, "__call__", x), params["autoencoder"], image)
    if perceptual:
      one = flops.traced(perceptual.distance, params.get("perceptual", {}), image, image) // 2
      total += 3 * one
    if discriminator:
      total += (2 * flops.TRAIN + 1) * flops.traced(judge, params["discriminator"], image)
    return batch_size * total

  return Objective(init, loss, {"encode": encode, "decode": decode, "reconstruct": reconstruct, "loss": evaluate, "flops": count},
                   couples_batch=couples_rows or (discriminator is not None and adaptive),
                   given=("perceptual",) if perceptual and perceptual.given else ())


def pixels(image: Array) -> Array:
  """uint8 [B H W C] -> float32 in [-1, 1]; floats pass through."""
  return image.astype(jnp.float32) / 127.5 - 1.0 if image.dtype == jnp.uint8 else image.astype(jnp.float32)


def last(weights: Tree) -> Array:
  """The kernel of the decoder's last convolution."""
  return weights["decoder"]["conv_out"]["kernel"]


def with_last(weights: Tree, kernel: Array) -> Tree:
  """The autoencoder's parameters with that kernel instead."""
  decoder = weights["decoder"]
  return dict(weights, decoder=dict(decoder, conv_out=dict(decoder["conv_out"], kernel=kernel)))
