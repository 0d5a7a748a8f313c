"""The emoji set: parsing, splits and captions on a small sample, and whichever holds on this machine: the pictures, or how to get them."""
import collections
import os
import pickle
import re

import numpy as np
import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import emoji

SAMPLE = """# emoji-test.txt
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                  ; fully-qualified     # ☺️ E0.6 smiling face
263A                                       ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
# subgroup: person-role
1F469 1F3FE 200D 1F692                     ; fully-qualified     # 👩🏾‍🚒 E4.0 woman firefighter: medium-dark skin tone
# group: Component
# subgroup: skin-tone
1F3FB                                      ; component           # 🏻 E1.0 light skin tone
"""


def test_parsing_takes_the_fully_qualified_sequences():
  parsed = emoji.parse(SAMPLE)
  assert [(item.key, item.name, item.group, item.subgroup) for item in parsed] == [
    ("1f600", "grinning face", "Smileys & Emotion", "face-smiling"), ("263a-fe0f", "smiling face", "Smileys & Emotion", "face-smiling"),
    ("1f469-1f3fe-200d-1f692", "woman firefighter: medium-dark skin tone", "People & Body", "person-role")]


def test_captions_are_a_ladder():
  item = emoji.parse(SAMPLE)[2]
  made = emoji.captions(item, ["brown", "yellow", "grey"])
  assert made["short"] == item.name and made["original"] == emoji.alt_text(item)
  assert all(part in made["long"] for part in (item.name, "person role", "People & Body", "brown, yellow and grey"))
  assert "mostly in red on" in emoji.captions(item, ["red"])["long"]


def test_every_role_and_tone_of_the_held_out_combinations_is_trained():
  roles = [emoji.Emoji(chr(code), "x", "People & Body", "role") for code in range(0x1F440, 0x1F4A0)]
  toned = [emoji.Emoji(role.text + chr(tone), "x", role.group, role.subgroup) for role in roles for tone in emoji.TONES]
  split = {item.text: emoji.split_of(item) for item in toned}
  held = collections.Counter(text[0] for text, name in split.items() if name == "val_comp")
  assert set(held.values()) == {1} and 0.3 < len(held) / len(roles) < 0.7
  assert {text[1] for text, name in split.items() if name == "val_comp"} == {chr(tone) for tone in emoji.TONES}
  assert set(split.values()) == {"train", "val_comp"}


@pytest.mark.parametrize("rgb, name", [
  ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "grey"), ((220, 20, 20), "red"), ((255, 200, 30), "yellow"),
  ((30, 160, 40), "green"), ((30, 60, 220), "blue"), ((130, 30, 200), "purple"), ((250, 130, 10), "orange"), ((240, 90, 170), "pink"),
  ((110, 70, 40), "brown")])
def test_colour_names(rgb, name):
  assert emoji.colour_name(*rgb) == name


def test_dominant_colours_are_measured_where_something_is_drawn():
  rgba = np.zeros((10, 10, 4), np.uint8)
  rgba[:6] = (220, 20, 20, 255)
  rgba[6:9] = (30, 60, 220, 255)
  rgba[9] = (30, 160, 40, 100)
  assert emoji.dominant_colours(rgba) == ["red", "blue"]
  assert emoji.dominant_colours(np.zeros((4, 4, 4), np.uint8)) == []


def test_a_font_or_table_that_is_not_there_says_how_to_install_it(tmp_path):
  for name in ("font", "table"):
    with pytest.raises(DataError, match=re.escape("apt-get install fonts-noto-color-emoji unicode-data")):
      emoji.emoji(**{name: str(tmp_path / "absent")})


def test_the_set_on_this_machine():
  """Where font and table are installed: every sequence has a picture of its own, bar those the font repeats, and none leaks."""
  if not (any(map(os.path.isfile, emoji.FONTS)) and any(map(os.path.isfile, emoji.TABLES))):
    with pytest.raises(DataError, match="apt-get install"):
      emoji.emoji()
    return
  sources = {split: emoji.emoji(split=split) for split in emoji.SPLITS}
  whole = emoji.emoji(split="all", size=32)
  keys = {item.key: split for split, source in sources.items() for item in source.emoji}
  assert len(keys) == len(whole) == sum(map(len, sources.values())) >= 3655 and not whole.missing
  pictures = collections.defaultdict(set)
  for i, item in enumerate(whole.emoji):
    pictures[whole.draw(item).tobytes()].add(whole.key(i))
  repeated = [group for group in pictures.values() if len(group) > 1]
  assert sum(map(len, repeated)) - len(repeated) <= 20                    # 14 in Noto 2.042: territories' flags, snowboarders, a family
  assert all({keys[key] for key in group} == {"train"} for group in repeated)
  record = whole[100]
  assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
  assert set(record["captions"]) == {"original", "short", "long"}
  native = sources["val"][0]
  assert native["image"].shape == (128, 136, 3)
  copy = pickle.loads(pickle.dumps(sources["val"]))                       # noqa: S301
  assert np.array_equal(copy[0]["image"], native["image"]) and copy.fingerprint() == sources["val"].fingerprint()
  assert len({source.fingerprint() for source in (*sources.values(), whole)}) == 4
