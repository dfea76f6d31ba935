"""Whether two thumbnails show the same picture, after one is laid over the other as well as it goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

__all__ = ["likeness", "likenesses"]

_ITERATIONS, _EPSILON = 30, 1e-6
_FINE, _COARSE = 0.7, 2.0  # pixels: blur that takes out coding noise, blur that takes out what all such pictures share
_EDGE = 9  # pixels, twice the reach of the coarse blur, and one: beyond the edge of b nothing is known
_AREA, _COMMON = 0.35, 0.5  # most change of area, least share of the thumbnail that both show
_TASK = 64  # pairs per task


def likeness(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return how alike two thumbnails (S, S) are, -1 to 1, after the affine map of b that fits a best.

    The map maximises the enhanced correlation coefficient (Evangelidis & Psarakis 2008, IEEE TPAMI 30:1858), which
    brightness and contrast do not change: it undoes crops, resizes and small turns. Then both pass a difference of
    Gaussians (Marr & Hildreth 1980), which leaves edges and structures and takes out the anatomy's rough shape, and are
    correlated where both show something. 0 where no map is found.
    """
    import cv2

    first, second = a.astype(np.float32), b.astype(np.float32)
    if first.std() < 1 or second.std() < 1:
        return 0.0
    everywhere = np.ones(a.shape, np.uint8)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, _EPSILON)
    try:
        _, found = cv2.findTransformECC(
            first, second, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, criteria, everywhere, 3
        )
    except cv2.error:  # it did not converge: the two have nothing in common
        return 0.0
    warp = np.asarray(found, np.float32)
    if not abs(np.linalg.det(warp[:, :2]) - 1) < _AREA:
        return 0.0
    return _correlation(first, second, warp)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32], warp: NDArray[np.float32]) -> float:
    """Return the correlation of the structures in a with those in b under the map, where both are there."""
    import cv2

    size, flags = a.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = np.asarray(cv2.warpAffine(b, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32)
    both = cv2.warpAffine(np.ones_like(b), warp, size, flags=flags) > 0.99
    both = cv2.erode(both.astype(np.uint8), np.ones((_EDGE, _EDGE), np.uint8)) > 0
    if both.mean() < _COMMON:
        return 0.0
    x, y = _structures(a)[both].astype(np.float64), _structures(laid)[both].astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _structures(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference of Gaussians of an image."""
    import cv2

    fine, coarse = (cv2.GaussianBlur(image, (0, 0), width) for width in (_FINE, _COARSE))
    return np.asarray(fine - coarse, np.float32)


def likenesses(
    thumbnails: NDArray[np.uint8],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """Return the likeness of each pair (m,) of rows of thumbnails (n, S, S), (m,), by threads."""
    import cv2

    starts = range(0, len(first), _TASK)

    def task(start: int) -> list[float]:
        pairs = zip(first[start : start + _TASK], second[start : start + _TASK], strict=True)
        return [likeness(thumbnails[i], thumbnails[j]) for i, j in pairs]

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    found: list[float] = []
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for values in pool.map(task, starts):
                found += values
                progress(len(found), len(first))
    finally:
        cv2.setNumThreads(threads)
    return np.array(found, np.float64)
