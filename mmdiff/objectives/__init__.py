"""Training problems by name."""
OBJECTIVES = {
  "autoencoder": "mmdiff.objectives.autoencoder:autoencoder",
  "contrastive": "mmdiff.objectives.contrastive:contrastive",
  "coca": "mmdiff.objectives.coca:coca",
  "diffusion": "mmdiff.objectives.diffusion:diffusion",
}
