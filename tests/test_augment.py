"""Views of images: drawn from the content, within their amplitudes, in the dtype of the image."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
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
    square: NDArray[Any] = np.random.default_rng(0).uniform(0, 255, (channels, 33, 33)).astype(dtype)
    strong = Augmentation(1, brightness=0.9, contrast=0.9, flip=True, turns=True)
    for content in (b"a", b"b", b"c"):
        for view in (strong, replace(STILL, flip=True, turns=True), STILL):
            out = view(square, content)
            assert (out.shape, out.dtype) == (square.shape, square.dtype)
            assert out.min() >= 0 <= 255 >= out.max()
            assert out.flags.c_contiguous
            assert not np.shares_memory(out, square)


def test_a_shift_is_within_its_amplitude_and_drawn_both_ways() -> None:
    """A bright dot moves by less than the amplitude; over many images up, down, left and right."""
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
    """A constant image stays constant: no black corner; the middle stays where it is."""
    only = replace(STILL, degrees=45.0, zoom=0.3)
    assert all((only(np.full((1, 50, 50), 90, np.uint8), str(i).encode()) == 90).all() for i in range(10))
    square = np.zeros((1, 51, 51), np.uint8)
    square[0, 24:27, 24:27] = 200
    assert all(only(square, str(i).encode())[0, 25, 25] > 150 for i in range(10))


def test_turns_and_zooms_are_within_their_amplitudes_and_drawn_both_ways() -> None:
    """Read off two bright dots 60 pixels apart: their angle and their distance."""
    square = np.zeros((1, 101, 101), np.float32)
    square[0, 49:52, [19, 20, 21, 79, 80, 81]] = 255
    left = np.arange(101) < 50

    def dots(only: Augmentation, content: bytes) -> tuple[float, float]:
        view = only(square, content).astype(float)[0]
        yy, xx = np.indices(view.shape)
        (y0, x0), (y1, x1) = (
            [(view * yy * half).sum() / (view * half).sum(), (view * xx * half).sum() / (view * half).sum()]
            for half in (left, ~left)
        )
        return float(np.degrees(np.arctan2(y1 - y0, x1 - x0))), float(np.hypot(y1 - y0, x1 - x0) / 60)

    turned = np.array([dots(replace(STILL, degrees=10.0), str(i).encode()) for i in range(60)])
    zoomed = np.array([dots(replace(STILL, zoom=0.2), str(i).encode()) for i in range(60)])
    both = np.array([dots(replace(STILL, degrees=10.0, zoom=0.2), str(i).encode()) for i in range(60)])
    assert (np.abs(both - np.column_stack([turned[:, 0], zoomed[:, 1]])).max(axis=0) < [0.3, 0.01]).all()
    assert np.abs(turned[:, 1] - 1).max() < 0.01
    assert np.abs(zoomed[:, 0]).max() < 0.5
    assert -10.3 < turned[:, 0].min() < -6 < 6 < turned[:, 0].max() < 10.3
    assert 0.79 < zoomed[:, 1].min() < 0.9 < 1.1 < zoomed[:, 1].max() < 1.21


def test_light_and_contrast_are_within_their_amplitudes_and_drawn_both_ways() -> None:
    """Brightness moves the mean and leaves the spread; contrast the other way round."""
    square = np.random.default_rng(0).uniform(100, 140, (1, 32, 32)).astype(np.float32)

    def drawn(**amplitudes: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        views = [replace(STILL, number=i, **amplitudes)(square, b"x") for i in range(60)]
        means, spreads = np.array([v.mean() for v in views], float), np.array([v.std() for v in views], float)
        return (means - square.mean()) / 255, spreads / square.std() - 1

    for (moved, kept), most in ((drawn(brightness=0.2), 0.2), (drawn(contrast=0.3)[::-1], 0.3)):
        assert np.abs(kept).max() < 1e-5
        assert -most - 1e-5 < moved.min() < -most / 2 < most / 2 < moved.max() < most + 1e-5


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
    assert STILL.describe() == replace(STILL, shift=0.0, degrees=0.0).describe()


@pytest.mark.parametrize(
    "wrong", [{"zoom": 1.0}, {"shift": -0.1}, {"shift": np.nan}, {"degrees": np.inf}, {"seed": -1}, {"number": -1}]
)
def test_numbers_that_make_no_view_are_refused(wrong: dict[str, Any]) -> None:
    """In one line, before any image is read."""
    with pytest.raises(FirnError, match=r"expected .* got view number"):
        replace(STILL, **wrong)
