"""Synthetic chest phantom with several findings per image, drawn by the program, and their table."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.datasets.phantom import draw_set, draw_shelf
from features.datasets.phantom_anatomy import Chest, Map, X, Y, disc, draw_chest, lines, within

FINDINGS = ("opacity", "effusion", "nodule", "device")
SHARES = (0.35, 0.3, 0.25, 0.3)  # of the patients
TOGETHER = 0.6  # chance of an effusion beside an opacity
BLANK, UNCERTAIN = 0.06, 0.03  # shares of labels
TEST_SHARE = 0.25  # of the patients
EDITION = 1  # of the drawing: count it up whenever a pixel changes
TABLE = "findings.csv"

README = """A synthetic chest phantom with findings. NOT radiographs: no patient, real or altered, is in these images.

Drawn by the program from random numbers: edition={edition} patients={patients} seed={seed}
Each patient has none, one or several of opacity, effusion, nodule and device, in 3 to 5 images of different pose,
exposure and noise. findings.csv says which: 1, 0, -1 (uncertain) or nothing, as tables of radiographs do.
It is there to try the program out. Scores on it say nothing about medicine.
"""


class _Patient(NamedTuple):
    split: str
    present: list[bool]  # for each of FINDINGS


def draw_phantom_findings(folder: Path, *, patients: int = 240, seed: int = 0) -> None:
    """Draw `images/pNNNN_k.png` (224x224, 8-bit grey), findings.csv and README.txt into `folder`.

    The bytes depend on `patients` and `seed` alone. As with `features.datasets.phantom.draw_phantom`, `folder` appears
    whole or not at all. BadDataset if it holds something else or cannot be written.
    """
    readme = README.format(edition=EDITION, patients=patients, seed=seed)
    draw_set(folder, readme, lambda drawing: _draw(drawing, patients, seed))


def _draw(folder: Path, patients: int, seed: int) -> None:
    *seeds, plan_seed = np.random.SeedSequence(seed).spawn(patients + 1)
    shelf = folder / "images"
    shelf.mkdir(parents=True)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "patient", "split", *FINDINGS])
    for patient, (split, present) in enumerate(_plan(patients, np.random.default_rng(plan_seed))):
        rng = np.random.default_rng(seeds[patient])
        opacity, *others = present

        def added(chest: Chest, air: Map, others: list[bool] = others, rng: np.random.Generator = rng) -> Map:
            drawn = [draw(chest, air, rng) for draw, there in zip(_DRAWN, others, strict=True) if there]
            return np.asarray(sum(drawn, np.zeros_like(X)))

        chest = draw_chest(rng, opaque=opacity, more=added)
        for name in draw_shelf(shelf, f"p{patient:04d}", chest, rng):
            table.writerow([f"images/{name}", f"p{patient:04d}", split, *_labels(present, rng)])
    (folder / TABLE).write_text(text.getvalue(), encoding="utf-8")


def _plan(patients: int, rng: np.random.Generator) -> list[_Patient]:
    """Return split and findings of each patient; effusions are more frequent beside opacities."""
    test = rng.permutation(patients) < round(TEST_SHARE * patients)
    plan = []
    for own in test.tolist():
        present = (rng.random(len(FINDINGS)) < SHARES).tolist()
        present[1] = bool(rng.random() < TOGETHER) if present[0] else present[1]
        plan.append(_Patient("test" if own else "train", present))
    return plan


def _labels(present: list[bool], rng: np.random.Generator) -> list[str]:
    """Return the labels of one image as a table has them: a few are uncertain, a few missing."""
    chance = rng.random(len(present)).tolist()
    return [
        "" if p < BLANK else "-1" if p < BLANK + UNCERTAIN else str(int(there))
        for there, p in zip(present, chance, strict=True)
    ]


def _effusion(chest: Chest, air: Map, rng: np.random.Generator) -> Map:
    """Return fluid at the base of one lung, its surface higher towards the side."""
    side, level = float(rng.choice((-1, 1))), chest.base - rng.uniform(0.02, 0.22)
    surface = level - 0.35 * np.maximum(X * side - 0.25, 0)
    return np.asarray(rng.uniform(0.22, 0.36) * air * within(surface - Y, 0.10) * (X * side > 0), np.float32)


def _nodule(chest: Chest, air: Map, rng: np.random.Generator) -> Map:
    """Return one to three small round shadows with sharp edges in the lungs."""
    centres, shade = np.argwhere(air > 0.9), np.zeros_like(X)
    for row, column in rng.choice(centres, int(rng.integers(1, 4)), replace=False):
        size = rng.uniform(0.035, 0.07)
        shade += rng.uniform(0.20, 0.34) * disc(float(X[0, column]), float(Y[row, 0]), size, size, softness=0.4)
    return np.asarray(shade, np.float32)


def _device(chest: Chest, air: Map, rng: np.random.Generator) -> Map:
    """Return a pacemaker below a clavicle and its lead to the heart."""
    side, drop = float(rng.choice((-1, 1))), rng.uniform(0.12, 0.22)
    x, y, t = 0.55 * side, chest.apex + drop, np.linspace(0, 1, 12)
    way = np.stack([x * (1 - t) + 0.12 * t, y + (chest.base - 0.2 - y) * t - 0.18 * np.sin(np.pi * t)], axis=1)
    box = disc(x, y, 0.08, 0.06, rng.uniform(-0.5, 0.5), softness=0.15)
    return np.asarray(rng.uniform(0.2, 0.4) * box + 0.25 * lines([(way, 1, 0.8)], 0.6), np.float32)


_DRAWN = (_effusion, _nodule, _device)
