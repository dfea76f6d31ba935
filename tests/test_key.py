"""Keys of the cache: text and digest are for ever, so that no change of words makes anybody extract anew."""

from __future__ import annotations

import pytest

from features.cache.key import Key
from features.images import Augmentation, Geometry

LINES = {
    "squash": "squash: whole picture to 224 x 224 (bilinear, antialias)",
    "pad": "pad: long side to 224 (bilinear, antialias), centred on black 224",
    "crop": "crop: short side to 256 (bilinear, antialias), centre 224",
}


@pytest.mark.parametrize("how", LINES)
def test_the_line_of_a_preprocessing(how: str) -> None:
    assert Geometry(how, 224, 256, "bilinear").describe() == LINES[how]


def test_the_line_of_a_view() -> None:
    line = Geometry("squash", 224, 256, "bilinear", Augmentation(1)).describe()
    assert line.startswith(f"{LINES['squash']}; view number 1, seed 0, shift 0.06, degrees 8.0, ")


def test_the_digest_of_a_key() -> None:
    key = Key("alexnet", "ab" * 32, ("features.12",), f"{LINES['squash']}; mean [0.5], std [0.25]", "bfloat16")
    assert key.folder() == "alexnet-05090bab"
    assert key.preprocess_mode == "squash"
