"""Images -> probabilities, decisions and what looks unlike the training images: `load(path)(images)`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Source
from features.devices import cores
from features.errors import BadBundle, BadImage, unknown
from features.extraction.prefetch import Prepared, prepare
from features.extraction.shard_writer import stacked
from features.images import Geometry
from models.heads.stacking import Stack
from models.metrics.sample import two_classes
from models.predictor.backbones import Features, Lane
from models.predictor.heads import Model
from models.predictor.manifest import Contents
from models.predictor.ood import Novelty
from models.predictor.seen import Seen

Image: TypeAlias = "str | Path | bytes | NDArray[Any]"  # a file, an encoded image, or pixels (H, W) or (H, W, 3)
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is said of images, in the order in which they came."""

    names: list[str]  # (n,)
    proba: Floats  # (n, K), as the comparison has them
    calibrated: Floats  # (n, K), with the bundle's calibration; the same where it has none
    decision: NDArray[np.int64]  # (n,), of several findings (n, L) of 0 and 1
    distance: Floats  # (n,) from the training images, about 1 for such; NaN where the bundle cannot tell
    outlier: NDArray[np.bool_]  # (n,)
    classes: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # name -> why it is unreadable
    votes: Floats | None = None  # (n, K, H, W) what each position says for each class, where that was asked for

    @property
    def labels(self) -> list[str]:
        """Return the name of the class decided for each image; of several findings those that are present, by |."""
        if self.decision.ndim == 2:
            names = np.array(self.classes)
            return ["|".join(names[row == 1]) for row in self.decision]
        return [self.classes[k] for k in self.decision]


@final
class Predictor:
    """Made by `models.predictor.load`. Calls from several threads take turns inside torch."""

    def __init__(
        self,
        contents: Contents,
        lanes: Sequence[Lane],
        models: Sequence[Model],
        stack: Stack | None,
        outliers: Novelty | None,
        *,
        batch_size: int,
        explained: bool = False,
        seen: Seen | None = None,
    ) -> None:
        self.contents, self.classes, self.seen = contents, contents.classes, seen
        self._lanes, self._models, self._stack, self._outliers = tuple(lanes), tuple(models), stack, outliers
        self._batch, self._explained = batch_size, explained
        self._geometries = tuple(dict.fromkeys(lane.geometry for lane in lanes))

    @property
    def several(self) -> bool:
        """Return whether images have several findings each, which `classes` names."""
        return bool(self.contents.findings)

    def thresholds(self, point: str = "") -> Floats:
        """Return the probability from which each of several findings is decided, (L,): by a name, or one for all."""
        usual = point or "youden"
        if any(usual in finding.points for finding in self.contents.findings):
            return np.array([f.points[usual].threshold if usual in f.points else 0.5 for f in self.contents.findings])
        return np.full(len(self.classes), _share(point, self.contents.findings[0].points) if point else 0.5)

    @property
    def points(self) -> dict[str, float]:
        """Return the operating points: name -> threshold of class 1 of two; empty for more classes."""
        return {name: point.threshold for name, point in self.contents.points.items()}

    def __call__(self, images: Image | Sequence[Image], *, point: str = "", strict: bool = True) -> Prediction:
        """Predict one image or several: files, encoded bytes, or arrays of pixels.

        Decisions take class 1 of two from the threshold of a `point` up: a name in `points` (the first without), or a
        number; of more classes the most probable. Raises BadImage at the first unreadable image when `strict`,
        else leaves such out and says why; UnknownName for a point.
        """
        several = [images] if isinstance(images, str | Path | bytes | np.ndarray) else list(images)
        pieces = list(self.stream(several, point=point))
        left_out = {name: why for piece in pieces for name, why in piece.left_out.items()}
        if left_out and strict:
            raise BadImage(next(iter(left_out.values())))
        return joined(pieces, self.classes, several=self.several)

    def stream(self, images: Sequence[Image], *, point: str = "", workers: int = 0) -> Iterator[Prediction]:
        """Yield predictions batch by batch, unreadable images left out; see `__call__`."""
        source = _Given(images)
        yield from self.stream_of(source, source.ids, point=point, workers=workers)

    def stream_of(
        self,
        source: Source,
        ids: list[str],
        *,
        point: str = "",
        workers: int = 0,
        wanted: Callable[[bytes], bool] = lambda sha256: True,
    ) -> Iterator[Prediction]:
        """Yield predictions of images of a data set as `stream` does, without those whose sha256 is not `wanted`."""
        threshold = self.thresholds(point) if self.several else self.threshold(point)
        workers = workers or cores()
        coming = prepare(
            source,
            ids,
            range(len(ids)),
            self._geometries,
            wanted=wanted,
            workers=workers,
            ahead=2 * self._batch + 8 * workers,
        )
        ready: list[Prepared] = []
        left_out: dict[str, str] = {}
        for prepared in coming:
            if prepared.error:
                left_out[ids[prepared.image]] = prepared.error
            elif prepared.pixels:
                ready.append(prepared)
            if len(ready) == self._batch:
                yield self._of_batch(ids, ready, threshold, left_out)
                ready, left_out = [], {}
        if ready or left_out or not ids:
            yield self._of_batch(ids, ready, threshold, left_out)

    @property
    def training_distances(self) -> Floats | None:
        """Return rising quantiles of the distances of training images; None where the bundle does not say."""
        return None if self._outliers is None else self._outliers.held

    @property
    def geometry(self) -> Geometry:
        """Return how images come into the first network."""
        return self._geometries[0]

    def threshold(self, point: str = "") -> float | None:
        """Return the probability of class 1 from which it is decided; None for more classes than two."""
        if len(self.classes) != 2 or self.several:
            if point and not self.several:
                raise unknown("operating point", point, ["none: there are more than two classes"])
            return None
        if not point:
            return next(iter(self.points.values()), 0.5)
        if point in self.points:
            return self.points[point]
        return _share(point, self.points)

    def features(self, pixels: dict[Any, NDArray[Any]]) -> list[Features]:
        """Return what every network sees in pixels (n, C, S, S) of each geometry."""
        return [lane(pixels[lane.geometry]) for lane in self._lanes]

    def _of_batch(
        self, ids: list[str], ready: Sequence[Prepared], threshold: Any, left_out: dict[str, str]
    ) -> Prediction:
        names = [ids[p.image] for p in ready]
        if not ready:
            return _nothing(self.classes, left_out, several=self.several)
        columns = zip(*(p.pixels for p in ready), strict=True)
        pixels = {g: stacked(list(column)) for g, column in zip(self._geometries, columns, strict=True)}
        features = self.features(pixels)
        proba = self.proba_of(features)
        calibration = self.contents.calibration
        if self.several:
            decision = (proba >= threshold).astype(np.int64)
        else:
            decision = proba.argmax(axis=1) if threshold is None else (proba[:, 1] >= threshold).astype(np.int64)
        distance = self.distance_of(features)
        limit = self._outliers.threshold if self._outliers else np.inf
        votes = self._models[0].votes(features) if self._explained else None
        calibrated = self._calibrated(proba) if self.several else calibration(proba) if calibration else proba
        outlier = distance > limit
        return Prediction(names, proba, calibrated, decision, distance, outlier, self.classes, left_out, votes)

    def _calibrated(self, proba: Floats) -> Floats:
        """Return the probability of each finding, (n, L), with its own calibration."""
        pairs = zip(self.contents.findings, proba.T, strict=True)
        columns = [f.calibration(two_classes(p))[:, 1] if f.calibration else p for f, p in pairs]
        return np.stack(columns, axis=1)

    def proba_of(self, features: Sequence[Features]) -> Floats:
        """Return probabilities, (n, K)."""
        each = [model.proba(features) for model in self._models]
        proba = each[0] if self._stack is None else self._stack.predict_proba(np.stack(each, axis=1))
        if proba.ndim != 2 or proba.shape[1] != len(self.classes) or not np.isfinite(proba).all():
            raise BadBundle(f"{self.contents.name} makes no probabilities of {len(self.classes)} classes")
        return proba

    def distance_of(self, features: Sequence[Features]) -> Floats:
        """Return how far images are from the training images, (n,); NaN where the bundle does not say."""
        if self._outliers is None or self.contents.outliers is None:
            return np.full(len(next(iter(features[0].values()))), np.nan)
        pairs = self.contents.outliers["features"]
        X = [features[place][f"pooled/{block}/avg"].astype(np.float32) for place, block in pairs]
        return self._outliers.distance(np.concatenate(X, axis=1))


def encoded(image: Image) -> bytes:
    """Return an image as the bytes that are decoded: pixels as `.npy`. OSError passes through."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        file = io.BytesIO()
        np.lib.format.write_array(file, image, allow_pickle=False)
        return file.getvalue()
    return Path(image).read_bytes()


class _Given:
    """Images as they were given, as the source that the decoding threads read from."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images: dict[str, Image] = {}
        self.ids: list[str] = []
        for number, image in enumerate(images):
            name = str(image) if isinstance(image, str | Path) else f"image {number}"
            self.ids.append(name)
            self._images[name] = image

    @property
    def where(self) -> str:
        return "the given images"

    def read(self, image: str) -> bytes:
        return encoded(self._images[image])

    def stamps(self, images: list[str]) -> Any:
        raise NotImplementedError("given images are always read")


def joined(pieces: Sequence[Prediction], classes: tuple[str, ...], *, several: bool = False) -> Prediction:
    """Return predictions one after the other."""
    full = [piece for piece in pieces if piece.names]
    left_out = {name: why for piece in pieces for name, why in piece.left_out.items()}
    if not full:
        return _nothing(classes, left_out, several=several)
    names = ("proba", "calibrated", "decision", "distance", "outlier")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(piece, name) for piece in full]) for name in names}
    votes = [piece.votes for piece in full if piece.votes is not None]
    every = [name for piece in full for name in piece.names]
    return Prediction(
        every, classes=classes, left_out=left_out, votes=np.concatenate(votes) if votes else None, **arrays
    )


def _share(point: str, known: Mapping[str, Any]) -> float:
    """Return an operating point that is a number. Raises UnknownName for another."""
    try:
        number = float(point)
    except ValueError:
        number = np.nan
    if not 0 <= number <= 1:
        raise unknown("operating point", point, [*known, "a number from 0 to 1"])
    return number


def _nothing(classes: tuple[str, ...], left_out: dict[str, str], *, several: bool) -> Prediction:
    none = np.empty((0, len(classes)))
    empty = np.empty(0)
    decision = none if several else empty
    return Prediction([], none, none, decision.astype(np.int64), empty, empty.astype(bool), classes, left_out)
