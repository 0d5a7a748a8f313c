"""Evaluators by name. Each sees only an objective's `predict` functions."""
EVALUATORS = {
  "loss": "mmdiff.evaluators.loss:loss",
  "retrieval": "mmdiff.evaluators.retrieval:retrieval",
  "collapse": "mmdiff.evaluators.collapse:collapse",
  "zeroshot": "mmdiff.evaluators.zeroshot:zeroshot",
  "clipscore": "mmdiff.evaluators.clipscore:clipscore",
  "alignment": "mmdiff.evaluators.alignment:alignment",
  "samples": "mmdiff.evaluators.samples:samples",
  "reconstruction": "mmdiff.evaluators.reconstruction:reconstruction",
  "scenes_judge": "mmdiff.evaluators.scenes:scenes_judge",
  "hard_negatives": "mmdiff.evaluators.scenes:hard_negatives",
  "captions": "mmdiff.evaluators.captions:captions",
}
# The predict functions that each of them calls.
NEEDS = {
  "loss": ("loss",),
  "retrieval": ("embed_image", "embed_text"),
  "collapse": ("embed_image", "embed_text"),
  "zeroshot": ("embed_image", "embed_text"),
  "clipscore": ("embed_image", "embed_text"),
  "alignment": ("sample", "plan"),
  "samples": ("sample", "plan"),
  "reconstruction": ("encode", "decode"),
  "scenes_judge": ("sample", "plan"),
  "hard_negatives": ("embed_image", "embed_text"),
  "captions": ("caption",),
}
