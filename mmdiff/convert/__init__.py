"""Public weight formats: containers of tensors, one bidirectional rule table per layout, and what a load found."""
# By name, in the order in which a path is tried.
FORMATS = {
  "hf-clip": "mmdiff.convert.clip_formats:HF_CLIP",
  "hf-siglip": "mmdiff.convert.clip_formats:HF_SIGLIP",
  "hf-clip-text": "mmdiff.convert.clip_formats:HF_CLIP_TEXT",
  "hf-clip-image": "mmdiff.convert.clip_formats:HF_CLIP_IMAGE",
  "hf-t5": "mmdiff.convert.t5_formats:HF_T5",
  "diffusers-unet": "mmdiff.convert.diffusers_formats:UNET",
  "diffusers-vae": "mmdiff.convert.diffusers_formats:VAE",
  "ldm": "mmdiff.convert.ldm_formats:LDM",
  "open_clip-coca": "mmdiff.convert.coca_formats:FORMAT",
  "open_clip": "mmdiff.convert.clip_formats:OPEN_CLIP",
  "openai": "mmdiff.convert.clip_formats:OPENAI",
  "big_vision": "mmdiff.convert.clip_formats:BIG_VISION",
}
