"""Views of pictures: drawn from the content, within their amplitudes, in the dtype of the picture."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from features.errors import FirnError
from features.images import Augmentation, Geometry, pixels, several_pixels

STILL = Augmentation(1, shift=0, degrees=0, zoom=0, brightness=0, contrast=0)
PLAIN = Geometry("squash", 64, 64, "bilinear")


def encoded(seed: int = 0, *, mode: str = "L", size: int = 64) -> bytes:
    """Return a PNG with noise, much darker on its right half."""
    rng = np.random.default_rng(seed)
    shape = (size, size) if mode == "L" else (size, size, 3)
    values = rng.integers(120, 200, shape).astype(np.uint8)
    values[:, size // 2 :] //= 4
    out = io.BytesIO()
    Image.fromarray(values).save(out, "png")
    return out.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_without_amplitudes_nothing_changes(mode: str) -> None:
    """Bit for bit."""
    data = encoded(mode=mode)
    plain = pixels(data, PLAIN, name="a")
    assert np.array_equal(pixels(data, replace(PLAIN, augmentation=STILL), name="a"), plain)


def test_a_view_belongs_to_the_content() -> None:
    """The same bytes under any name give the same pixels; another number, seed or content gives others."""
    data = encoded()
    view = replace(PLAIN, augmentation=Augmentation(1))
    first = pixels(data, view, name="a")
    assert np.array_equal(first, pixels(data, view, name="b"))
    for other in (Augmentation(2), Augmentation(1, seed=1)):
        assert not np.array_equal(first, pixels(data, replace(PLAIN, augmentation=other), name="a"))
    a, b = (Augmentation(1)(np.zeros((1, 8, 8), np.uint8), content) for content in (b"x", b"y"))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_dtype_and_scale_stay(dtype: type, channels: int) -> None:
    """For every kind of square that the images package gives."""
    square = np.random.default_rng(0).uniform(0, 255, (channels, 33, 33)).astype(dtype)
    strong = Augmentation(1, brightness=0.9, contrast=0.9, flip=True, turns=True)
    for content in (b"a", b"b", b"c"):
        out = strong(square, content)
        assert (out.shape, out.dtype) == (square.shape, square.dtype)
        assert out.min() >= 0 <= 255 >= out.max()
        assert out.flags.c_contiguous


def test_a_shift_is_within_its_amplitude_and_drawn_both_ways() -> None:
    """A bright dot moves by less than the amplitude; over many pictures up, down, left and right."""
    square = np.zeros((1, 101, 101), np.uint8)
    square[0, 50, 50] = 255
    only = replace(STILL, shift=0.1)
    moved = []
    for i in range(60):
        view = only(square, str(i).encode()).astype(float)[0]
        yy, xx = np.indices(view.shape)
        moved.append([(view * yy).sum() / view.sum() - 50, (view * xx).sum() / view.sum() - 50])
    found = np.array(moved)
    assert np.abs(found).max() <= 10.6
    assert (found.min(axis=0) < -6).all()
    assert (found.max(axis=0) > 6).all()


def test_a_turn_leaves_the_middle_and_mirrors_the_border() -> None:
    """A constant picture stays constant: no black corner; the middle stays where it is."""
    only = replace(STILL, degrees=45.0, zoom=0.3)
    assert all((only(np.full((1, 50, 50), 90, np.uint8), str(i).encode()) == 90).all() for i in range(10))
    square = np.zeros((1, 51, 51), np.uint8)
    square[0, 24:27, 24:27] = 200
    assert all(only(square, str(i).encode())[0, 25, 25] > 150 for i in range(10))


def test_flips_only_where_asked_for() -> None:
    """The dark side stays on the right, unless mirror images are wanted: then it changes about half the time."""

    def right_is_dark(augmentation: Augmentation) -> float:
        squares = (pixels(encoded(i), replace(PLAIN, augmentation=augmentation), name="a") for i in range(60))
        return float(np.mean([square[0, :, 40:].mean() < square[0, :, :24].mean() for square in squares]))

    assert right_is_dark(Augmentation(1)) == 1
    assert 0.3 < right_is_dark(Augmentation(1, flip=True)) < 0.7
    assert 0.05 < right_is_dark(replace(STILL, turns=True)) < 0.5


def test_several_views_at_once_are_those_one_by_one() -> None:
    """In the order asked for, also of different geometries."""
    data, pad = encoded(size=90), replace(PLAIN, how="pad", size=40)
    asked = [replace(PLAIN, augmentation=Augmentation(2)), PLAIN, replace(pad, augmentation=Augmentation(1)), pad]
    for found, geometry in zip(several_pixels(data, asked, name="a"), asked, strict=True):
        assert np.array_equal(found, pixels(data, geometry, name="a"))


def test_the_line_says_everything() -> None:
    """A change of any field changes the line that goes into the key; without views the line is what it was."""
    view = Augmentation(1)
    other = {
        f.name: (not getattr(view, f.name)) if f.type == "bool" else getattr(view, f.name) / 2 + 1 for f in fields(view)
    }
    other["zoom"] = 0.5
    lines = {replace(view, **{name: value}).describe() for name, value in other.items()} | {view.describe()}
    assert len(lines) == len(fields(view)) + 1
    assert PLAIN.describe() == "squash: whole picture to 64 x 64 (bilinear, antialias)"
    assert replace(PLAIN, augmentation=view).describe() == f"{PLAIN.describe()}; {view.describe()}"
    with pytest.raises(FirnError, match="zoom below 1"):
        Augmentation(1, zoom=1.0)
