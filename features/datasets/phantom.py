"""Synthetic chest phantom, drawn by the program: a data set with or without opacities in the lungs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.errors import BadDataset
from features.storage import remove_leftovers_of, temporary_name

if TYPE_CHECKING:
    from features.datasets.phantom_anatomy import Map

CLASSES = ("clear", "opacity")
TEST_SHARE = 0.25  # of the patients of each class
EDITION = 1  # of the drawing: count it up whenever a pixel changes

README = """A synthetic chest phantom. NOT radiographs: no patient, real or altered, is in these images.

Drawn by the program from random numbers: edition={edition} patients={patients} seed={seed}
Each patient is a sum of smooth shapes (trunk, lungs, heart, spine, ribs, clavicles, vessels, lines and discs), read
through a film curve in 3 to 5 images of different pose, exposure and noise. Class `opacity` has one to three soft
opacities in the lungs, class `clear` has none. Files are pPATIENT_IMAGE.png; a patient is on one side of the split.
It is there to try the program out. Scores on it say nothing about medicine.
"""


def draw_phantom(folder: Path, *, patients: int = 240, seed: int = 0) -> None:
    """Draw `{train,test}/{clear,opacity}/pNNNN_k.png` (224x224, 8-bit grey) and README.txt into `folder`.

    Half of the patients have opacities, and a quarter of each class is in test. The bytes depend on `patients` and
    `seed` alone. `folder` appears whole or not at all, whoever else draws it at the same time; a folder that holds
    this phantom already is left as it is. BadDataset if it holds something else or cannot be written.
    """
    if patients < 4 or seed < 0:
        raise BadDataset(f"a phantom takes patients >= 4 and seed >= 0, not {patients} and {seed}; try 240 and 0")
    readme = README.format(edition=EDITION, patients=patients, seed=seed)
    draw_set(folder, readme, lambda drawing: _draw_patients(drawing, patients, seed))


def draw_set(folder: Path, readme: str, draw: Callable[[Path], None]) -> None:
    """Draw a set into `folder` by `draw`, whole or not at all; README.txt tells it from others.

    Raises BadDataset if the folder holds something else or cannot be written.
    """
    folder = folder.absolute()
    try:
        if _is_drawn(folder, readme):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(folder)
        _draw_whole(folder, readme, draw)
    except OSError as error:
        why = error.strerror or error
        raise BadDataset(f"cannot draw the phantom into {folder}: {why}; its folder must be writable") from None


def _is_drawn(folder: Path, readme: str) -> bool:
    """Tell whether `folder` is this very phantom; an absent or empty one is yet to be drawn."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = folder / "README.txt"
    if found.is_file() and found.read_text(encoding="utf-8", errors="replace") == readme:
        return True
    asked = readme.splitlines()[2].partition(": ")[2]
    raise BadDataset(f"{folder} holds something else than the phantom ({asked}); move it away, then run again")


def _draw_whole(folder: Path, readme: str, draw: Callable[[Path], None]) -> None:
    """Draw into a hidden sibling and rename it; where another process came first, its equal folder stays."""
    drawing = temporary_name(folder)
    try:
        draw(drawing)
        (drawing / "README.txt").write_text(readme, encoding="utf-8")
        drawing.rename(folder)
    except OSError:
        if not _is_drawn(folder, readme):
            raise
    finally:
        shutil.rmtree(drawing, ignore_errors=True)


def _draw_patients(folder: Path, patients: int, seed: int) -> None:
    """Draw every patient from a stream of random numbers of its own, so that none depends on another."""
    from features.datasets.phantom_anatomy import draw_chest

    *seeds, plan_seed = np.random.SeedSequence(seed).spawn(patients + 1)
    for patient, (split, label) in enumerate(_plan(patients, np.random.default_rng(plan_seed))):
        shelf = folder / split / CLASSES[label]
        shelf.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # a sign of life, for others who draw the same
        rng = np.random.default_rng(seeds[patient])
        chest = draw_chest(rng, opaque=label == 1)
        draw_shelf(shelf, f"p{patient:04d}", chest, rng)


def draw_shelf(shelf: Path, patient: str, chest: Map, rng: np.random.Generator) -> list[str]:
    """Write 3 to 5 images of a patient into a folder, and return their names."""
    from PIL import Image

    from features.datasets.phantom_anatomy import expose

    names = [f"{patient}_{k}.png" for k in range(int(rng.integers(3, 6)))]
    for name in names:
        Image.fromarray(expose(chest, rng)).save(shelf / name, compress_level=1)
    return names


def _plan(patients: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Return split and label of each patient: half of them of each class, a share of each class in test."""
    labels = rng.permutation(np.arange(patients) % len(CLASSES))
    splits = np.full(patients, "train")
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        splits[members[: max(1, round(TEST_SHARE * len(members)))]] = "test"
    return list(zip(splits.tolist(), labels.tolist(), strict=True))
