"""Golden samples: drawn images, no patient's, whose probabilities travel with a bundle and must come out again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import BadBundle
from models.predictor.archive import sealed

GOLDEN = "golden.safetensors"
SIDE = (72, 96)  # pixels
MOST = 64  # samples
# How far logits and outliers' distances, relative to themselves where they exceed 1, may be off: another processor sums
# in another order, rounds another last bit to float16, and a tree may take the other branch there. A wrong file is off
# by much more.
TOLERANCES = {"float32": 2e-2, "tf32": 2e-2, "float16": 0.1, "bfloat16": 0.1}
_LEAST = 1e-300  # a probability; of drawn images, unlike any training image, heads are often very sure


def draw_images(seed: int = 0) -> list[NDArray[Any]]:
    """Return small grey, colour, deep and flat images, (H, W) or (H, W, 3), the same for the same seed."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: SIDE[0], : SIDE[1]] / max(SIDE)
    waves = [np.sin(2 * np.pi * (a * xx + b * yy + c)) for a, b, c in rng.uniform(0.5, 4, (5, 3))]
    grey = 127 + 40 * waves[0] + 25 * waves[1] + rng.normal(0, 12, SIDE)
    disc = 60 * ((xx - 0.5) ** 2 + (yy - 0.35) ** 2 < 0.04)
    colour = np.stack([130 + 60 * wave + disc for wave in waves[2:]], axis=2) + rng.normal(0, 6, (*SIDE, 3))
    deep = 1500 + 900 * waves[0] + 15 * disc
    return [
        np.clip(grey, 0, 255).astype(np.uint8),
        np.clip(grey + disc, 0, 255).astype(np.uint8),
        np.clip(colour, 0, 255).astype(np.uint8),
        deep.astype(np.uint16),
    ]


def load_golden(folder: Path) -> tuple[list[NDArray[Any]], NDArray[np.float64], NDArray[np.float64]]:
    """Return the images of a bundle's samples, their probabilities (n, K) and distances (n,). Raises BadBundle."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = sealed(folder, GOLDEN)
    try:
        tensors = load_file(path)
        proba, distance = (tensors.pop(name).astype(np.float64) for name in ("proba", "distance"))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadBundle(f"cannot read the golden samples {path} ({error}); make it anew (make bundle)") from None
    images = [tensors[name] for name in sorted(tensors)]
    if not 1 <= len(images) <= MOST or proba.ndim != 2 or not len(images) == len(proba) == len(distance):
        raise BadBundle(f"expected as many images as probabilities in {path}, got {len(images)} and {len(proba)}")
    return images, proba, distance


def check_golden(
    expected: Mapping[str, NDArray[np.float64]], found: Mapping[str, NDArray[np.float64]], precision: str, where: Path
) -> None:
    """Raise BadBundle, saying by how much, where samples do not come out again within the precision's tolerance.

    Both hold "proba" (n, K) and "distance" (n,), which is compared relatively.
    """
    tolerance = TOLERANCES[precision]
    if expected["proba"].shape != found["proba"].shape:
        raise BadBundle(
            f"{where}: golden samples are of {expected['proba'].shape[1]} classes; make it anew (make bundle)"
        )
    off = {
        "logits": _apart(_logits(expected["proba"]), _logits(found["proba"])),
        "distances from the training images": _apart(expected["distance"], found["distance"]),
    }
    for what, by in off.items():
        if not by <= tolerance:  # NaN is no agreement
            raise BadBundle(
                f"{where}: {what} of the golden samples differ by {by:.2g} from those when the bundle was made, more "
                f"than the {tolerance:g} that {precision} allows; it is damaged, or this machine computes otherwise"
            )


def _logits(proba: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log(np.maximum(proba, _LEAST))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def _apart(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float((np.abs(expected - found) / np.maximum(np.abs(expected), 1)).max())
