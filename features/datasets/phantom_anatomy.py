"""Synthetic chest radiograph: smooth shapes that attenuate X-rays, summed and read through a film curve.

The shapes are formulas on a grid and the numbers in them were fitted by eye. Attenuation is in units of the trunk's
greatest, so that 1 is about white and 0 is air. Lengths are in units of half an image: x runs from -1 to 1 to the
viewer's right, y downwards. The patient faces the viewer, so the heart points to the viewer's right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

SIZE = 224  # pixels a side of an image
CANVAS = 256  # pixels a side of what is drawn; the margin lets a pose turn and shift
HALF = SIZE / 2  # pixels in one unit of length
CONTRAST = (0.24, 0.47)  # attenuation of an opacity; with SPREAD it sets how hard the classes are to tell apart
SPREAD = (0.17, 0.36)  # radius of an opacity

Map = NDArray[np.float32]  # (CANVAS, CANVAS)
Points = NDArray[np.float64]  # (n, 2) x and y
Stroke = tuple[Points, int, float]  # along the points; width in pixels; brightness 0..1

Y, X = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) - (CANVAS - 1) / 2) / np.float32(HALF)
U = np.abs(X)  # distance from the midline


class Chest(NamedTuple):
    """The measures of one patient."""

    width: float  # midline to the outer edge of a lung
    apex: float  # y of the tops of the lungs
    base: float  # y of the domes of the diaphragm
    gap: float  # midline to the inner edge of a lung
    heart: float  # half its length
    turn: float  # of the heart, rad
    pitch: float  # from one rib to the next
    phase: float  # of the ribs, in pitches
    droop: float  # of the ribs towards the sides
    flesh: float  # beyond the ribs
    vessels: float  # attenuation
    grain: float  # attenuation
    bone: float  # attenuation, relative


LEAST = Chest(0.64, -0.86, 0.46, 0.07, 0.24, 0.45, 0.145, 0.0, 0.35, 0.07, 0.06, 0.005, 0.7)
MOST = Chest(0.76, -0.76, 0.62, 0.11, 0.33, 0.95, 0.175, 1.0, 0.60, 0.18, 0.14, 0.030, 1.5)


def draw_chest(rng: np.random.Generator, *, opaque: bool, more: Callable[[Chest, Map], Map] | None = None) -> Map:
    """Return the attenuation (CANVAS, CANVAS) float32 of a new patient, with opacities in the lungs if `opaque`.

    The same generator state gives the same chest with and without: the opacities are drawn last and added. `more` gives
    what else is to be added, for the measures of the patient and the air in the lungs.
    """
    chest = Chest(*map(float, rng.uniform(LEAST, MOST)))
    heart = _heart(chest)
    air = (_lung(chest, -1) + _lung(chest, 1)) * (1 - 0.93 * heart)
    thickness = np.sqrt(np.maximum(1.15 - (X / (chest.width + chest.flesh + 0.15)) ** 2, 0))
    inside = thickness * (0.80 + 0.06 * within(chest.base - Y, 0.3)) - 0.42 * air + 0.06 * heart + _bones(chest)
    inside -= 0.10 * within(U - 0.045, 0.04) * within(Y - chest.base + 0.62, 0.1)  # the windpipe
    inside += 1.5 * chest.vessels * air * _vessels(chest, rng)
    inside += chest.grain * (0.3 + 0.5 * air) * _grain(rng, 2.5)
    inside += air * _lookalikes(chest, rng)
    devices = 0.45 * _devices(chest, rng)
    if opaque:
        inside += air * _opacities(air, rng)
    if more:
        inside += more(chest, air)
    return _blurred(inside * _trunk(chest), 0.8) + devices


def expose(attenuation: Map, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one image (SIZE, SIZE) of `attenuation` (CANVAS, CANVAS): pose, uneven exposure, noise, film curve."""
    angle, (tall, wide) = rng.normal(0, 0.035), np.exp(rng.normal(0, 0.03, 2))
    pose = np.array([[math.cos(angle) * tall, -math.sin(angle)], [math.sin(angle), math.cos(angle) * wide]])
    corner = (CANVAS - 1) / 2 - pose @ np.full(2, (SIZE - 1) / 2) + rng.normal(0, 4, 2)
    seen = ndimage.affine_transform(attenuation, pose, corner, output_shape=(SIZE, SIZE), order=1, mode="nearest")
    slope = np.linspace(-1, 1, SIZE, dtype=np.float32)
    seen += rng.normal(0, 0.05) * slope + rng.normal(0, 0.04) * slope[:, None]
    seen += rng.uniform(0.006, 0.020) * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    middle = seen.mean() + rng.uniform(-0.06, 0.12)  # the exposure follows the patient, as an automatic one does
    steepness = rng.uniform(4.5, 7.5)
    film: NDArray[np.uint8] = np.rint(255 / (1 + np.exp(steepness * (middle - seen)))).astype(np.uint8)
    return film


def within(distance: Map, softness: float) -> Map:
    """Return 1 where `distance` is well below 0, 0 where well above, and a smooth step of that width between."""
    step = np.clip(0.5 - distance / softness, 0, 1)
    smooth: Map = step * step * (3 - 2 * step)
    return smooth


def _radius(x: float, y: float, a: float, b: float, turn: float = 0.0) -> Map:
    """Return the distance from (x, y) in units of an ellipse with half-axes `a`, `b`: 1 on it."""
    cos, sin = math.cos(turn), math.sin(turn)
    along, across = (cos * (X - x) + sin * (Y - y)) / a, (cos * (Y - y) - sin * (X - x)) / b
    radius: Map = np.sqrt(along * along + across * across)
    return radius


def disc(x: float, y: float, a: float, b: float, turn: float = 0.0, *, softness: float = 0.2) -> Map:
    """Return 1 inside an ellipse with half-axes `a`, `b`, 0 outside, a smooth edge between; `x`, `y` is its centre."""
    return within(_radius(x, y, a, b, turn) - 1, softness)


def _blurred(image: Map, sigma: float) -> Map:
    return np.asarray(ndimage.gaussian_filter(image, sigma), dtype=np.float32)


def _grain(rng: np.random.Generator, sigma: float) -> Map:
    """Return smooth noise of standard deviation 1; `sigma` in pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal((CANVAS, CANVAS), dtype=np.float32), sigma, truncate=3)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _profile(depth: Map) -> Map:
    """Return how far out, 0..1, the rib cage reaches at a `depth` of 0 (apex) to 1 (base)."""
    profile: Map = np.sqrt(1 - (1 - depth) ** 2.6)
    return profile


def _lung(chest: Chest, side: int) -> Map:
    out = X * side
    depth = np.clip((Y - chest.apex) / (chest.base + 0.24 - chest.apex), 0, 1)
    centre = 0.5 * chest.gap + 0.31 * chest.width
    outer = centre + (chest.width - centre) * _profile(depth)
    inner = centre - (centre - chest.gap) * np.sqrt(np.minimum(1, 3.2 * depth))
    dome = chest.base + 0.03 * side + np.where(out > 0.3, 1.52, 0.72) * (out - 0.3) ** 2
    return within(np.maximum.reduce([out - outer, inner - out, Y - dome, chest.apex - Y]), 0.03)


def _heart(chest: Chest) -> Map:
    """Return the shadow of heart, great vessels and mediastinum."""
    base = chest.base
    parts = [
        disc(0.15, base - 0.16, 1.1 * chest.heart, 0.8 * chest.heart, chest.turn, softness=0.12),
        disc(0.11, base - 0.40, 0.13, 0.26, -0.25),
        disc(-0.06, base - 0.20, 0.13, 0.26),
        disc(0.075, base - 0.78, 0.085, 0.10, softness=0.3),
        disc(0.0, base - 0.60, chest.gap + 0.015, 0.90, softness=0.3),
        disc(-0.03, base - 0.85, 0.12, 0.40, softness=0.4),
    ]
    return _blurred(1 - np.multiply.reduce([1 - part for part in parts]), 2.5)


def _trunk(chest: Chest) -> Map:
    side = chest.width + chest.flesh + 0.4 * np.maximum(0, -0.1 - Y) ** 2
    shoulder = chest.apex - 0.10 + 0.3 * np.maximum(U - 0.2, 0) ** 1.5
    neck = 0.21 + 0.25 * np.maximum(0, Y - chest.apex + 0.25)
    return within(U - side, 0.06) * np.maximum(within(shoulder - Y, 0.08), within(U - neck, 0.08))


def _bones(chest: Chest) -> Map:
    spine = within(U - 0.085, 0.04) * (0.75 + 0.25 * np.cos(Y * (2.5 * math.pi / chest.pitch)))
    along = Y - (chest.apex + 0.188 - 0.30 * U + 0.05 * np.sin(9 * U))
    clavicles = within(np.abs(along) - 0.026, 0.02) * within(np.abs(U - 0.40) - 0.34, 0.06)
    clavicles *= 0.6 + 0.4 * np.minimum(1, (along / 0.026) ** 2)
    across = U - (chest.width - 0.02) - 0.35 * (Y + 0.45) ** 2
    blades = within(np.abs(across) - 0.015, 0.03) * within(np.abs(Y + 0.42) - 0.28, 0.2)
    bones: Map = chest.bone * (0.13 * _ribs(chest) + 0.13 * spine + 0.15 * clavicles + 0.07 * blades)
    return bones


def _ribs(chest: Chest) -> Map:
    """Return the ribs of the back, which droop towards the sides, and, fainter, those of the front, which rise."""
    depth = np.clip((Y - chest.apex + 0.06) / (chest.base - chest.apex + 0.3), 0, 1)
    cage = within(U - (chest.width + 0.035) * _profile(depth), 0.03) * within(Y - chest.base - 0.3, 0.4)
    v = np.maximum(U - 0.08, 0)
    back = _bands(Y - 1.5 * chest.droop * v**2 + 0.08 * v, chest.pitch, chest.phase, 0.024)
    front = _bands(Y + 0.75 * v - 0.35 * v**2, 1.15 * chest.pitch, chest.phase / 2, 0.028)
    ribs: Map = cage * (back * within(0.08 - U, 0.05) + 0.5 * front * within(0.30 - U, 0.3))
    return ribs


def _bands(height: Map, pitch: float, phase: float, half: float) -> Map:
    """Return bands of half-width `half`, one every `pitch`, brighter along their edges as hollow bones are."""
    turns = height / pitch + phase
    off = np.abs(turns - np.rint(turns)) * pitch
    bands: Map = within(off - half, 0.018) * (0.5 + 0.5 * np.minimum(1, (off / half) ** 2))
    return bands


def lines(strokes: Iterable[Stroke], blur: float) -> Map:
    """Return the brightness of lines drawn with a pen, with a blur of so many pixels."""
    film = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(film)
    for points, width, brightness in strokes:
        pen.line([(x, y) for x, y in points * HALF + CANVAS / 2], fill=round(255 * brightness), width=width)
    return _blurred(np.asarray(film, dtype=np.float32) / np.float32(255), blur)


def _vessels(chest: Chest, rng: np.random.Generator) -> Map:
    """Return 16 vessels a side, wandering from the root of the lung and thinning out."""
    strokes: list[Stroke] = []
    for side in (-1, 1) * 16:
        steps = int(rng.integers(5, 12))
        angles = rng.uniform(-1.35, 1.5) + np.cumsum(rng.normal(0, 0.18, steps))
        root = np.array([side * (chest.gap + 0.08), chest.base - 0.52]) + rng.normal(0, 0.04, 2)
        way = 0.055 * np.cumsum(np.stack([side * np.cos(angles), np.sin(angles)], axis=1), axis=0)
        points = np.concatenate([root[None], root + way])
        strokes += [(points[k : k + 2], 3 if k < 2 else 2 if k < 5 else 1, 1 - 0.07 * k) for k in range(steps)]
    return lines(strokes, 0.8)


def _devices(chest: Chest, rng: np.random.Generator) -> Map:
    """Return what lies in or on some patients: a venous line, leads that end in discs, the letter L."""
    strokes: list[Stroke] = []
    t = np.linspace(0, 1, 12)
    if rng.random() < 0.35:
        start, bend = rng.choice((-1, 1)) * rng.uniform(0.15, 0.6), rng.uniform(0.7, 1.4)
        strokes.append((np.stack([start * (1 - t) ** 1.5 + 0.05 * t, (chest.base + 0.75) * t**bend - 1.1], 1), 1, 0.9))
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.35 else 0):
        x, y, drift = rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.6), rng.normal(0, 0.3)
        strokes.append((np.stack([x + drift * t + 0.06 * np.sin(5 * t), y + (1.15 - y) * t], 1), 1, 0.6))
        strokes.append((np.array([[x - 0.012, y], [x + 0.012, y]]), 6, 0.8))
    if rng.random() < 0.7:
        x, y, h = rng.uniform(0.78, 0.9), rng.uniform(-0.85, -0.5), rng.uniform(0.05, 0.09)
        strokes.append((np.array([[x, y - h], [x, y + h], [x + 0.9 * h, y + h]]), 2, 1.0))
    return lines(strokes, 0.6)


def _lookalikes(chest: Chest, rng: np.random.Generator) -> Map:
    """Return structures that resemble an opacity: roots of the lungs, breasts, nipples, a fold of skin."""
    shade: Map = np.zeros_like(X)
    breasts = rng.uniform(0.03, 0.14) * (rng.random() < 0.5)
    nipples, low = rng.uniform(0.03, 0.09) * (rng.random() < 0.3), rng.uniform(0.05, 0.2)
    for side in (-1, 1):
        x, y = side * (chest.gap + 0.07), chest.base - 0.52 + rng.normal(0, 0.03)
        a, b = rng.uniform(0.07, 0.12), rng.uniform(0.10, 0.17)
        shade += rng.uniform(0.02, 0.08) * disc(x, y, a, b, -0.3 * side, softness=0.9)
        shade += breasts * disc(0.36 * side, chest.base - 0.08, 0.28, 0.30, softness=0.35)
        shade += nipples * disc(side * rng.uniform(0.32, 0.40), chest.base - low, 0.035, 0.035, softness=0.6)
    if rng.random() < 0.3:
        fold = X * int(rng.choice((-1, 1))) - rng.uniform(0.25, 0.45) - rng.uniform(-0.2, 0.2) * Y
        shade += rng.uniform(0.03, 0.07) * within(fold, 0.02) * within(-fold - 0.25, 0.5)
    return shade


def _opacities(air: Map, rng: np.random.Generator) -> Map:
    """Return one to three soft patches with ragged edges, centred anywhere in the lungs."""
    centres = np.flatnonzero(air > 0.9)
    ragged, mottled = _grain(rng, 9), _grain(rng, 3)
    patches: Map = np.zeros_like(X)
    for _ in range(int(rng.choice((1, 2, 3), p=(0.6, 0.2, 0.2)))):
        row, column = divmod(int(rng.choice(centres)), CANVAS)
        size, stretch = _between(SPREAD, rng), _between((0.74, 1.35), rng)
        turn, edge, mottle = rng.uniform(0, math.pi), rng.uniform(1.6, 4.0), rng.uniform(0.1, 0.4)
        r = _radius(float(X[0, column]), float(Y[row, 0]), size * stretch, size / stretch, turn)
        patch = np.exp(-(np.maximum(r * (1 + 0.25 * ragged), 0) ** edge)) * np.maximum(1 + mottle * mottled, 0)
        patches = np.maximum(patches, _between(CONTRAST, rng) * patch)
    return patches


def _between(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Return a number between the bounds, uniform in its logarithm."""
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))
