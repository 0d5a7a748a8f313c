import io
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from mmdiff.core.errors import DataError
from mmdiff.data import decode, sizes
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import encode, noise, png_header

PICTURE = Image.fromarray(noise())


@pytest.mark.parametrize("format, options", [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_pixels_back(format, options):
  assert (decode.decode(encode(PICTURE, format, **options)) == noise()).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "YCbCr"])
def test_modes_become_rgb_as_pillow_converts_them(mode):
  image = PICTURE.convert(mode)
  out = decode.decode(encode(image, "TIFF"))
  assert out.shape == (24, 32, 3) and out.dtype == np.uint8
  assert (out == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
  alpha = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (24, 1)))
  image = PICTURE.convert(mode)
  image.putalpha(alpha)
  out = decode.decode(encode(image, "PNG")).astype(float)
  a = np.asarray(alpha)[..., None] / 255
  expected = np.asarray(PICTURE.convert("L").convert("RGB") if mode == "LA" else PICTURE) * a + 255 * (1 - a)
  assert np.abs(out - expected).max() <= 1 and (out[:, 0] == 255).all()


def test_a_transparent_palette_colour_is_white():
  image = Image.new("P", (4, 4), 1)
  image.putpalette([0, 0, 0, 10, 20, 30])
  image.putpixel((0, 0), 0)
  out = decode.decode(encode(image, "PNG", transparency=0))
  assert out[0, 0].tolist() == [255, 255, 255] and out[1, 1].tolist() == [10, 20, 30]


def test_sixteen_bits_keep_the_high_byte():
  samples = (np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) + 200
  for format in ("PNG", "TIFF"):
    assert (decode.decode(encode(Image.fromarray(samples), format)) == (samples >> 8).astype(np.uint8)[..., None]).all()


def test_samples_without_a_range_are_refused():
  with pytest.raises(BadRecord, match="undecodable.*no defined range"):
    decode.decode(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  upright = np.zeros((16, 32, 3), np.uint8)
  upright[:8, :8] = 255                                # a mark in the upper left corner
  turn = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.transpose(1, 0, 2),
          6: lambda x: np.rot90(x, 1), 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2), 8: lambda x: np.rot90(x, -1)}[orientation]
  stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
  out = decode.decode(encode(stored, format, exif=exif)).astype(int)
  assert out.shape == upright.shape and np.abs(out - upright).mean() < 8


def test_a_broken_exif_block_does_not_break_the_picture():
  data = encode(PICTURE, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)       # as the command line sets it; pytest sets its own filters
    assert decode.decode(data).shape == (24, 32, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format):
  frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
  data = encode(frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {}))
  assert (decode.decode(data) == [255, 0, 0]).all()


def test_one_pixel():
  assert decode.decode(encode(Image.new("L", (1, 1), 7), "PNG")).tolist() == [[[7, 7, 7]]]


def test_the_fast_path_is_bit_identical():
  """With or without simplejpeg a JPEG has the same pixels; libjpeg's chroma upsampling differs by subsampling, so each one is tried."""
  smooth = Image.fromarray(noise(9, 13)).resize((131, 97), Image.Resampling.BICUBIC)
  for subsampling in (0, 1, 2):
    for options in ({}, {"progressive": True}, {"quality": 30}, {"optimize": True}):
      data = encode(smooth, "JPEG", subsampling=subsampling, **options)
      for cut in (data, data + b"trailing", data[:-2]):
        try:
          slow = decode.decode(cut, fast=False)
        except BadRecord as fault:
          with pytest.raises(BadRecord, match=fault.kind):
            decode.decode(cut)
        else:
          assert (decode.decode(cut) == slow).all()


def test_reduction_in_the_dct_domain_stays_long_enough():
  flat = encode(Image.new("RGB", (640, 480), (200, 100, 50)), "JPEG")
  assert decode.decode(flat, at_least=120).shape == (120, 160, 3)
  assert decode.decode(flat, at_least=121).shape == (240, 320, 3)
  assert decode.decode(flat, at_least=1000).shape == (480, 640, 3)
  assert np.abs(decode.decode(flat, at_least=120).astype(int) - [200, 100, 50]).max() <= 3


BOMBS = {
  "png 12000x10000": png_header(12_000, 10_000), "png 60000x60000": png_header(60_000, 60_000), "png 1x2^31": png_header(1, 2**31 - 1),
  "png 100000x100": png_header(100_000, 100),
}


def announcing(format: str, marker: bytes, skip: int, layout: str, size: tuple[int, int]) -> bytes:
  """A small picture whose header is rewritten to announce another size, `skip` bytes after `marker`."""
  data = bytearray(encode(PICTURE, format))
  struct.pack_into(layout, data, data.index(marker) + skip, *size)
  return bytes(data)


BOMBS |= {
  "jpeg": announcing("JPEG", b"\xff\xc0", 5, ">HH", (10_000, 12_000)), "gif": announcing("GIF", b"GIF8", 6, "<HH", (12_000, 10_000)),
  "bmp": announcing("BMP", b"BM", 18, "<ii", (12_000, 10_000)), "webp": announcing("WEBP", b"\x9d\x01\x2a", 3, "<HH", (12_000, 10_000)),
  "ppm": b"P6 12000 10000 255\n" + bytes(100),
}


@pytest.mark.parametrize("strict", [True, False])
def test_bombs_are_refused_from_the_header(strict):
  with warnings.catch_warnings():
    warnings.simplefilter("error" if strict else "ignore")
    for name, data in BOMBS.items():
      times = []
      tracemalloc.start()
      for _ in range(5):
        started = time.perf_counter()
        with pytest.raises(BadRecord, match="oversized"):
          decode.decode(data)
        times.append(time.perf_counter() - started)
      peak = tracemalloc.get_traced_memory()[1]
      tracemalloc.stop()
      assert min(times) < 0.005 and peak < 10 * 2**20, (name, times, peak)


def test_the_limit_is_the_config_s():
  data = encode(PICTURE, "PNG")
  with pytest.raises(BadRecord, match="oversized: 32x24"):
    decode.decode(data, max_pixels=32 * 24 - 1)
  assert decode.decode(data, max_pixels=32 * 24).shape == (24, 32, 3)


def test_pillow_s_own_bound_is_neither_used_nor_changed(monkeypatch):
  """What a process allows itself elsewhere, and how it takes Pillow's warning, is its own."""
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  for format in ("PNG", "JPEG", "BMP", "PPM"):            # Pillow's readers of WEBP and TIFF look at it themselves
    assert decode.decode(encode(PICTURE, format), max_pixels=1000).shape == (24, 32, 3)
  assert Image.MAX_IMAGE_PIXELS == 100
  code = ("import numpy, warnings; from PIL import Image; before = list(warnings.filters), Image.MAX_IMAGE_PIXELS; "
          "from mmdiff.data import decode; decode.decode(b'P6 1 1 255 abc'); "
          "assert before == (list(warnings.filters), Image.MAX_IMAGE_PIXELS)")
  subprocess.run([sys.executable, "-c", code], check=True)


def chunk(tag: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def with_chunks(data: bytes, *chunks: bytes, late: bool = False) -> bytes:
  """A PNG with further chunks after its header, or before its end."""
  at = data.index(b"IEND") - 4 if late else 33
  return data[:at] + b"".join(chunks) + data[at:]


MEGABYTES = bytes(3 * 2**20)
TEXTS = {
  "profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(MEGABYTES)), "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MEGABYTES)),
  "iTXt": chunk(b"iTXt", b"Comment\0\1\0en\0\0" + zlib.compress(MEGABYTES)),
  "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MEGABYTES)),
  "exif as text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MEGABYTES)),
  "65 MB of them": b"".join(chunk(b"tEXt", b"Comment\0" + b"x" * 2**19) for _ in range(130)),
}


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize("late", [False, True])
def test_large_profiles_and_texts_do_not_make_a_sound_png_bad(what, late):
  exif = Image.Exif()
  exif[0x0112] = 6
  for options in ({}, {"exif": exif}):
    plain = encode(PICTURE, "PNG", **options)
    data = with_chunks(plain, TEXTS[what], late=late)
    assert (decode.decode(data) == decode.decode(plain)).all()
    if not late:
      assert sizes.size_of(data) == decode.decode(plain).shape[:2]


@pytest.mark.parametrize("late", [False, True])
def test_a_size_is_read_without_decoding(late, monkeypatch):
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = chunk(b"eXIf", exif.tobytes()[6:])
  data = with_chunks(encode(PICTURE, "PNG"), turned, late=late)
  assert decode.decode(data).shape == (32, 24, 3)
  monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
  assert sizes.size_of(data) == (32, 24) and sizes.size_of(encode(PICTURE, "PNG")) == (24, 32)
  with pytest.raises(BadRecord, match="oversized"):
    decode.decode(data, max_bytes=1000)


def test_a_short_text_that_turns_the_picture_still_does():
  xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
  turned = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
  plain = encode(PICTURE, "PNG")
  assert decode.decode(with_chunks(plain, turned)).shape == (32, 24, 3)
  assert decode.decode(with_chunks(plain, turned, TEXTS["zTXt"])).shape == (32, 24, 3)


def test_a_bad_png_stays_bad_without_its_texts():
  whole = with_chunks(encode(PICTURE, "PNG"), TEXTS["zTXt"])
  data = whole.index(b"IDAT") + 50
  for damaged in (whole[:-30], whole[:data] + bytes(20) + whole[data + 20:]):
    with pytest.raises(BadRecord, match="undecodable"):
      decode.decode(damaged)


LARGE = Image.new("RGBA", (1500, 1400), (10, 20, 30, 128))      # two strips
LARGE.paste((200, 100, 50, 255), (300, 700, 1400, 1399))


@pytest.mark.parametrize("format, mode, options", [
  ("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "P", {"transparency": 3}), ("PNG", "RGB", {"transparency": (200, 100, 50)}),
  ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}), ("GIF", "P", {}), ("TIFF", "RGBA", {}), ("PNG", "1", {})])
def test_large_pictures_are_converted_in_strips_alike(format, mode, options):
  data = encode(LARGE.convert(mode), format, **options)
  whole = np.asarray(decode.to_rgb(Image.open(io.BytesIO(data))))
  assert (decode.decode(data) == whole).all()


@pytest.mark.parametrize("format, mode, options, at_least", [
  ("PNG", "RGBA", {}, 7), ("PNG", "P", {}, 4), ("PNG", "I;16", {}, 5), ("JPEG", "RGB", {"progressive": True}, 13), ("JPEG", "RGB", {}, 7),
  ("JPEG", "CMYK", {"progressive": True}, 15), ("WEBP", "RGBA", {}, 20), ("TIFF", "RGB", {}, 10), ("GIF", "P", {}, 4),
  ("BMP", "RGB", {}, 10)])
def test_the_memory_of_decoding_is_bounded_by_the_header(format, mode, options, at_least):
  picture = Image.fromarray(np.zeros((24, 32), np.uint16)) if mode == "I;16" else PICTURE.convert(mode)
  data, pixels = encode(picture, format, **options), 32 * 24
  cost = decode.bytes_to_decode(decode.header(data))
  assert at_least * pixels <= cost <= (at_least + 30) * pixels
  assert decode.decode(data, max_bytes=cost).shape == (24, 32, 3)
  with pytest.raises(BadRecord, match=f"oversized: {format} 32x24 .*: {cost:,} bytes of memory to decode, more than {cost - 1:,}"):
    decode.decode(data, max_bytes=cost - 1)


@pytest.mark.long
@pytest.mark.parametrize("format, mode, options", [
  ("PNG", "RGBA", {"compress_level": 1}), ("JPEG", "RGB", {"progressive": True, "subsampling": 0}), ("WEBP", "RGBA", {"method": 0}),
  ("TIFF", "RGBA", {"compression": "tiff_lzw"}), ("GIF", "P", {}), ("BMP", "RGB", {}), ("PNG", "LA", {"compress_level": 1})])
def test_decoding_takes_no_more_memory_than_it_says(tmp_path, format, mode, options):
  side = 4000
  picture = Image.fromarray(np.tile(np.arange(side, dtype=np.uint8)[None, :, None], (side, 1, 4))).convert(mode)
  (tmp_path / "picture").write_bytes(encode(picture, format, **options))
  # Of this process image alone: getrusage's peak begins at that of the process that started it.
  code = ("import sys; from pathlib import Path; from mmdiff.data import decode\n"
          "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024\n"
          "data = open(sys.argv[1], 'rb').read(); said = decode.bytes_to_decode(decode.header(data)); before = peak()\n"
          "decode.decode(data); print(peak() - before, said)")
  made = subprocess.run([sys.executable, "-c", code, str(tmp_path / "picture")], check=True, capture_output=True, text=True)
  taken, said = map(int, made.stdout.split())
  assert 0.2 * said < taken < said


@pytest.mark.parametrize("data", [b"", b"\0", b"<html><body>404</body></html>", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n",
                                  b"<svg xmlns='http://www.w3.org/2000/svg'/>", encode(PICTURE, "JPEG")[:300], encode(PICTURE, "PNG")[:200],
                                  encode(PICTURE, "WEBP")[:80]])
def test_what_is_no_picture_is_undecodable(data):
  with pytest.raises(BadRecord, match="undecodable"):
    decode.decode(data)
  assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_mutated_pictures_never_raise_anything_else():
  rng, kinds = random.Random(0), {"decoded": 0, "undecodable": 0, "oversized": 0}
  exif = Image.Exif()
  exif[0x0112] = 6
  originals = [encode(PICTURE.convert(mode), format, **options) for format, mode, options in (
    ("JPEG", "RGB", {"exif": exif}), ("JPEG", "CMYK", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("WEBP", "RGBA", {}), ("GIF", "P", {}),
    ("BMP", "RGB", {}), ("TIFF", "RGB", {}), ("PPM", "RGB", {}))]
  for _ in range(3000):
    data = bytearray(rng.choice(originals))
    for _ in range(rng.randint(1, 5)):
      at = rng.randrange(min(len(data), rng.choice((32, 128, len(data)))))
      if rng.random() < 0.1:
        del data[at:at + rng.randint(1, 200)]
      else:
        data[at] = rng.choice((0, 255, rng.randrange(256)))
      if not data:
        break
    try:
      assert decode.decode(bytes(data), max_pixels=10**6).dtype == np.uint8
      kinds["decoded"] += 1
    except BadRecord as fault:
      kinds[fault.kind] += 1
  assert min(kinds.values()) > 20, kinds


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8),
                                   np.zeros(4, np.uint8), "a path", 3, [1, 2]])
def test_wrong_types_are_named(image):
  with pytest.raises(BadRecord, match="bad_type"):
    decode.pixels(image)


def test_arrays_pass_as_they_are_or_become_rgb():
  np.testing.assert_array_equal(decode.pixels(noise()), noise(), strict=True)
  grey = noise(channels=1)
  assert (decode.pixels(grey) == np.repeat(grey, 3, -1)).all() and (decode.pixels(grey[..., 0]) == np.repeat(grey, 3, -1)).all()
  clear = np.concatenate([noise(), np.zeros((24, 32, 1), np.uint8)], -1)
  assert (decode.pixels(clear) == 255).all()
  with pytest.raises(BadRecord, match="oversized"):
    decode.pixels(noise(), max_pixels=10)


def test_a_file_is_read_as_its_bytes_are(tmp_path):
  (tmp_path / "a.jpg").write_bytes(encode(PICTURE, "JPEG"))
  np.testing.assert_array_equal(decode.of_file(tmp_path / "a.jpg"), decode.decode(encode(PICTURE, "JPEG")))
  with pytest.raises(DataError, match="b.jpg: no such file; expected a picture"):
    decode.of_file(tmp_path / "b.jpg")
