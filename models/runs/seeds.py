"""Sources of variance besides the images: how far the ROC AUC of a run spreads over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.metrics.bootstrap import quantile
from models.runs.compare import area_of
from models.runs.record import RunRecord
from models.validation.predictions import Predictions

PARTS = ("validation", "test")
LEVEL = 0.95


def spread(of: str, first: int, predictions: Sequence[Predictions]) -> dict[str, Any]:
    """Return how the ROC AUC of a run spreads over the seeds from `first` on, in validation and on test images.

    `of` says what the seeds vary: "head" or "network" where training draws at random, in the same folds, else "folds".
    What a run reports is its first seed; mean and SD are those of training by this recipe, which a single seed is one
    draw of (Bouthillier et al. 2021, arXiv:2103.03098). Parts without images are left away.
    """
    parts = {part: [found.part(test=part == "test") for found in predictions] for part in PARTS}
    areas = {part: [_area(p) for p in each] for part, each in parts.items() if len(each[0].y)}
    seeds = [first + i for i in range(len(predictions))]
    return {"of": of, "seeds": seeds, **{part: _described(values) for part, values in areas.items()}}


def _area(part: Predictions) -> float:
    return area_of(part)


def _described(values: Sequence[float]) -> dict[str, Any] | None:
    """Return values, mean, SD (of n - 1), minimum and maximum; None where an area is undefined."""
    if np.isnan(values).any():
        return None
    sd = float(np.std(values, ddof=1))
    return {"values": [*values], "mean": float(np.mean(values)), "sd": sd, "min": min(values), "max": max(values)}


def difference_over_seeds(direct: RunRecord, detour: RunRecord) -> Mapping[str, float] | None:
    """Return the mean difference of ROC AUC between two runs over the seeds both have, with Student's t interval.

    On test images, out of fold where there are none; seed by seed, so that folds they share cancel. None without two
    seeds of both.
    """
    ours, theirs = (_areas(record) for record in (direct, detour))
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) < 2:
        return None
    gaps = np.array([theirs[seed] - ours[seed] for seed in shared])
    mean, sd = float(gaps.mean()), float(gaps.std(ddof=1))
    half = quantile(LEVEL, len(gaps) - 1) * sd / len(gaps) ** 0.5
    return {"seeds": len(gaps), "value": mean, "sd": sd, "low": mean - half, "high": mean + half}


def _areas(record: RunRecord) -> dict[int, float]:
    """Return the ROC AUC by seed."""
    told = record.spread or {}
    part = told.get("test" if "test" in told else "validation")
    return dict(zip(told["seeds"], part["values"], strict=True)) if part else {}
