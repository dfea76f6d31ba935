"""A contact sheet: images in lines, under each the same image with maps laid over it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.progress import printable
from pipeline.render.plots import COLOURS, METADATA, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST = COLOURS[3], COLOURS[0]  # vermilion and blue, which every kind of colour vision tells apart
STRONGEST = 0.5  # how much of an image the highest value hides
LINED = 0.5  # share of the scale at which a line is drawn
DPI = 120
TILE, GAP, CAPTION, TITLE, HEAD, FOOT, MARGIN = 1.5, 0.1, 0.34, 0.3, 0.32, 0.72, 0.2  # inches
CHARACTERS = 29  # of a caption's line
_SEAM = 3  # pixels between an image and its maps


class Tile(NamedTuple):
    """One image."""

    image: NDArray[np.uint8]  # (S, S, 3)
    maps: list[NDArray[np.float64]]  # each (H, W), above 0 for and below 0 against
    caption: tuple[str, str]
    wrong: bool


class Strip(NamedTuple):
    """One line of the sheet."""

    title: str
    tiles: list[Tile]


class Sheet(NamedTuple):
    """The whole contact sheet."""

    title: str
    notes: list[str]  # below the title, a line each
    strips: list[Strip]
    columns: int
    ends: tuple[str, str, str] = ("", "", "")  # of the colour bar: what blue means, its unit, what red means


def draw_sheet(sheet: Sheet) -> bytes:
    """Return the sheet as PNG, the same bytes for the same sheet. Each kind of map has one scale for all images."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    scales = _scales([tile for strip in sheet.strips for tile in strip.tiles])
    tall = TILE * (1 + len(scales))
    width = max(2 * MARGIN + sheet.columns * (TILE + GAP), 7.6)
    notes = [line for note in sheet.notes for line in wrap(note, int((width - 2 * MARGIN) * 16))]
    head = HEAD + 0.19 * len(notes)
    height = (
        head
        + (FOOT if scales else MARGIN)
        + sum(TITLE + (tall + CAPTION if strip.tiles else 0.1) for strip in sheet.strips)
    )
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in a script that the font lacks is drawn as boxes
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        _write(figure, MARGIN, 0.24, sheet.title, fontsize=11, fontweight="bold")
        for i, note in enumerate(notes):
            _write(figure, MARGIN, HEAD + 0.12 + 0.19 * i, note, fontsize=7.5, color="0.25")
        top = head
        for strip in sheet.strips:
            title = strip.title if strip.tiles else f"{strip.title} (none)"
            _write(figure, MARGIN, top + 0.24, title, fontsize=9, fontweight="bold")
            top += TITLE
            for i, tile in enumerate(strip.tiles):
                _tile(figure, MARGIN + i * (TILE + GAP), top, tall, tile, scales)
            top += tall + CAPTION if strip.tiles else 0.1
        if scales:
            _bar(figure, sheet.ends, scales[0])
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=DPI, metadata=METADATA["png"])
    return target.getvalue()


def overlaid(image: NDArray[np.uint8], values: NDArray[np.float64], scale: float) -> NDArray[np.uint8]:
    """Return an image (S, S, 3) in grey with a map (H, W) over it: red for, blue against, the image itself at zero.

    The map is enlarged bilinearly; at `scale` and beyond the colour is strongest, and still lets the image through.
    Where it passes half of that a white line encloses what is for, a dotted black one what is against: in print
    without colour they tell the two apart.
    """
    from matplotlib.colors import to_rgb
    from PIL import Image

    side = image.shape[:2]
    large = Image.fromarray(values.astype(np.float32)).resize(side[::-1], Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(large, dtype=np.float64) / scale, -1, 1)[..., None]
    grey = np.repeat(np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)[..., None], 3, axis=2)
    colour = np.where(strength > 0, np.array(to_rgb(FOR)), np.array(to_rgb(AGAINST))) * 255
    alpha = STRONGEST * np.abs(strength)
    return _lined(np.asarray(np.rint(grey * (1 - alpha) + colour * alpha), dtype=np.uint8), strength[..., 0])


def _lined(image: NDArray[np.uint8], strength: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return an image (S, S, 3) with lines around what is strongly for and against, strength (S, S) in -1 to 1."""
    drawn, width = image.copy(), max(1, round(image.shape[1] / 160))
    dots = np.add(*np.indices(strength.shape)) // (3 * width) % 2 == 0
    drawn[_edge(strength >= LINED, width)] = 255
    drawn[_edge(strength <= -LINED, width) & dots] = 0
    return drawn


def _edge(inside: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the rim of a region, so many pixels wide and within it."""
    core = inside.copy()
    for axis in (0, 1):
        for step in (width, -width):
            core &= _moved(inside, step, axis)
    return inside & ~core


def _moved(inside: NDArray[np.bool_], step: int, axis: int) -> NDArray[np.bool_]:
    """Return a region moved along an axis; beyond the image it goes on as at its border."""
    padded = np.pad(inside, [(abs(step), abs(step)) if i == axis else (0, 0) for i in (0, 1)], mode="edge")
    start = abs(step) - step
    return np.take(padded, range(start, start + inside.shape[axis]), axis=axis)


def legend_strip(ends: tuple[str, str, str], scale: float, width: int) -> NDArray[np.uint8]:
    """Return the colour bar with its scale as an image (H, width, 3), to stand below images under maps.

    `ends` are what blue means, the unit, and what red means.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(width / DPI, 0.62), dpi=DPI, facecolor="white")
        canvas: Any = FigureCanvasAgg(figure)
        _bar(figure, ends, scale, across=width / DPI - 2 * MARGIN, unit_below=True)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _scales(tiles: Sequence[Tile]) -> list[float]:
    """Return for each kind of map the value of the strongest colour: one position in a hundred lies beyond it."""
    kinds = len(tiles[0].maps) if tiles else 0
    every = [np.abs(np.concatenate([tile.maps[kind].ravel() for tile in tiles])) for kind in range(kinds)]
    return [float(np.quantile(values, 0.99)) or 1.0 for values in every]


def _tile(figure: Figure, left: float, top: float, tall: float, tile: Tile, scales: Sequence[float]) -> None:
    panels = [tile.image, *(overlaid(tile.image, m, s) for m, s in zip(tile.maps, scales, strict=True))]
    seam = np.full((_SEAM, tile.image.shape[1], 3), 255, np.uint8)
    stacked = np.concatenate([piece for panel in panels for piece in (panel, seam)][:-1])
    axes = _axes(figure, left, top, TILE, tall)
    axes.imshow(stacked, aspect="auto", interpolation="antialiased")
    axes.axis("off")
    for i, line in enumerate(tile.caption):
        weight = "bold" if tile.wrong and i else "normal"
        _write(figure, left, top + tall + 0.12 + 0.13 * i, _short(line), fontsize=6, fontweight=weight)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes at a place in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _write(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Write one line with its base at a place in inches, taken literally."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, printable(text), parse_math=False, **style)


def map_ends(classes: Sequence[str], *, several: bool = False) -> tuple[str, str, str]:
    """Return what blue means, the unit of a map, and what red means; `several` findings, or classes."""
    two = len(classes) == 2 and not several
    named = "the finding" if several else classes[1] if two else "what it was called"
    unit = "log odds" if two or several else "logit less the mean of all classes"
    return f"against {named}", unit, f"for {named}"


def ramp(scale: float = 1.0) -> NDArray[np.uint8]:
    """Return all colours from strongest against to strongest for, on middle grey, (24, 256, 3)."""
    return overlaid(np.full((24, 256, 3), 150, np.uint8), np.linspace(-scale, scale, 256)[None], scale)


def _bar(
    figure: Figure, ends: tuple[str, str, str], scale: float, *, across: float = 3.2, unit_below: bool = False
) -> None:
    """Draw the colour bar of the first kind of map, as it looks on middle grey."""
    against, unit, favour = ends
    down = float(figure.get_size_inches()[1])
    axes = _axes(figure, MARGIN, down - (0.42 if unit_below else 0.52), across, 0.13)
    axes.imshow(ramp(scale), aspect="auto", extent=(-scale, scale, 0, 1))
    axes.set_yticks([])
    middle = f"0 {printable(unit)}" if unit_below else "0"
    axes.set_xticks([-scale, 0, scale], [f"{-scale:.3g}", middle, f"{scale:.3g}"], fontsize=6.5, parse_math=False)
    axes.tick_params(length=2, pad=2)
    axes.set_title(printable(against), loc="left", fontsize=7, color=AGAINST, pad=3, parse_math=False)
    axes.set_title(printable(favour), loc="right", fontsize=7, color=FOR, pad=3, parse_math=False)
    if not unit_below:
        _write(figure, MARGIN + across + 0.2, down - 0.42, unit, fontsize=7)


def _short(text: str) -> str:
    """Return a text that fits under an image: its ends, which tell names of files apart."""
    half = (CHARACTERS - 1) // 2
    return text if len(text) <= CHARACTERS else f"{text[:half]}…{text[-half:]}"
