"""Which images a model has seen already: eight bytes of the digest of each, so that they can be told again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import BadBundle
from models.predictor.archive import sealed
from models.validation.predictions import Predictions

SEEN = "seen.safetensors"
_PARTS = ("trained", "tested")
_HEX = 16  # digits of a sha256 that are kept: of a million images and a million others two are alike once in 10^7 sets


@dataclass(frozen=True, eq=False)
class Seen:
    """The images that a model was trained on, and those that it was tested on."""

    trained: NDArray[np.uint64]  # (n,)
    tested: NDArray[np.uint64]  # (m,)

    def in_training(self, sha256: bytes) -> bool:
        """Tell whether the image of a digest (hex) is one that the model was trained on."""
        return _short(sha256) in self._trained

    def in_test(self, sha256: bytes) -> bool:
        """Tell whether the image of a digest (hex) is one that the model was tested on."""
        return _short(sha256) in self._tested

    @cached_property
    def _trained(self) -> frozenset[int]:
        return frozenset(self.trained.tolist())

    @cached_property
    def _tested(self) -> frozenset[int]:
        return frozenset(self.tested.tolist())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, for safetensors."""
        return {name: getattr(self, name) for name in _PARTS}


def _short(sha256: bytes) -> int:
    return int(sha256[:_HEX], 16)


def seen_of(predictions: Predictions, ids: ArrayLike, sha256: ArrayLike) -> Seen:
    """Return what a run has seen: its images by the digests (n,) of the data set's `ids` (n,)."""
    known = dict(zip(np.asarray(ids).tolist(), np.asarray(sha256).tolist(), strict=True))

    def digests(test: bool) -> NDArray[np.uint64]:
        names = np.unique(predictions.part(test=test).ids).tolist()
        return np.array(sorted(_short(known[name]) for name in names if name in known), dtype=np.uint64)

    return Seen(digests(test=False), digests(test=True))


def load_seen(folder: Path, files: Mapping[str, str]) -> Seen | None:
    """Return what a bundle's folder says was seen; None for a bundle of before. Raises BadBundle."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if SEEN not in files:
        return None
    try:
        arrays = load_file(sealed(folder, SEEN))
        found = Seen(*(arrays[name] for name in _PARTS))
        if any(array.dtype != np.uint64 or array.ndim != 1 for array in found.arrays().values()):
            raise ValueError("expected rows of 64-bit digests")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadBundle(f"{folder / SEEN} does not read ({error}); make it anew (make bundle)") from None
    return found
