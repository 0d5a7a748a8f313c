from mmdiff.models.sizes import reads_sizes


def test_what_is_told_the_sizes():
  unet = lambda variant: dict(objective=dict(denoiser=dict(name="unet", variant=variant, image_size=8)))
  assert reads_sizes(unet("sdxl")) and reads_sizes(unet("refiner"))
  assert not any(map(reads_sizes, (unet("sd1"), dict(objective=dict(name="contrastive")), dict(objective=None))))
