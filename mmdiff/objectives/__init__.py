"""Training problems by name."""
OBJECTIVES = {
  "contrastive": "mmdiff.objectives.contrastive:contrastive",
  "diffusion": "mmdiff.objectives.diffusion:diffusion",
}
