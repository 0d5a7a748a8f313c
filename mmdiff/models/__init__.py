"""Models that a config can name, by the role they play."""
MODELS = {
  "clip": "mmdiff.models.clip:clip",
}
CAPTIONERS = {
  "coca": "mmdiff.models.coca:coca",
}
DENOISERS = {
  "dit": "mmdiff.models.dit:dit",
  "unet": "mmdiff.models.unet:unet",
}
TEXT_ENCODERS = {
  "conv_text": "mmdiff.models.conv_text:conv_text",
  "causal_text": "mmdiff.models.text:causal_text",
  "clip_states": "mmdiff.models.text:clip_states",
  "two_texts": "mmdiff.models.text:two_texts",
  "t5": "mmdiff.models.t5:t5",
}
AUTOENCODERS = {
  "kl": "mmdiff.models.autoencoder:kl",
}
FEATURES = {
  "lpips": "mmdiff.models.perceptual:lpips",
  "random": "mmdiff.models.perceptual:random",
  "gradients": "mmdiff.models.perceptual:gradients",
}
DISCRIMINATORS = {
  "patch": "mmdiff.models.discriminator:patch",
}
