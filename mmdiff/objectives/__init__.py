"""Training problems by name."""
OBJECTIVES = {
  "contrastive": "mmdiff.objectives.contrastive:contrastive",
  "coca": "mmdiff.objectives.coca:coca",
  "diffusion": "mmdiff.objectives.diffusion:diffusion",
}
