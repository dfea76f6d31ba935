"""What `bundle.json` says, checked field by field; the only place that knows its layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from features.cache.key import Key
from features.errors import BadBundle
from features.storage import slug
from features.views import POOLS
from models.metrics import BadPredictions, Calibration, calibration_from_json
from models.predictor.archive import BUNDLE, read_json

SCHEMA = 1  # raised when a later Firn writes bundles that this one would misread
SCHEMA_OF_FINDINGS = 2  # of several findings per image, which an earlier Firn would take for classes
MOST_CLASSES = 10_000
MOST = sys.float_info.max
T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """One backbone of a bundle."""

    key: Key  # of its cache entry; the digest of the weights is in there
    file: str = ""  # the weights in the bundle; empty where they are found by their digest
    after: str | None = None  # where a fine-tuned network is cut in two ("": before the first layer); None: it is not

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"key": json.loads(self.key.to_json()), "file": self.file, "after": self.after}


@dataclass(frozen=True)
class Part:
    """One model of a bundle: what it sees, and the folder of its head."""

    input: str  # a row of `members.INPUTS`
    head: str
    folder: str
    networks: tuple[int, ...]  # places in `Contents.networks`
    blocks: tuple[tuple[str, ...], ...]  # of each network
    pool: str = ""  # a row of POOLS, where pooled features are seen
    precision: str = "float32"  # of a fine-tuned network
    mirrored: bool = False  # whether it also looks at the mirror image

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        own = {"input": self.input, "head": self.head, "folder": self.folder, "pool": self.pool}
        blocks = [list(some) for some in self.blocks]
        of_network = {"precision": self.precision, "mirrored": self.mirrored}
        return own | {"networks": list(self.networks), "blocks": blocks, **of_network}


@dataclass(frozen=True)
class Point:
    """An operating point: class 1 of two is decided from this probability up."""

    threshold: float
    about: Mapping[str, Any] = field(default_factory=dict)  # sensitivity and specificity with intervals


@dataclass(frozen=True)
class Finding:
    """What is learned of one of several findings from out-of-fold predictions."""

    points: Mapping[str, Point]
    calibration: Calibration | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        points = {name: {"threshold": p.threshold, **p.about} for name, p in self.points.items()}
        return {"points": points, "calibration": json.loads(self.calibration.to_json()) if self.calibration else None}


@dataclass(frozen=True)
class Contents:
    """A bundle, without its tensors."""

    name: str
    classes: tuple[str, ...]
    networks: tuple[Network, ...]
    parts: tuple[Part, ...]
    stack: str  # folder of the head that combines the parts; empty for a single part
    calibration: Calibration | None
    points: Mapping[str, Point]
    outliers: Mapping[str, Any] | None  # see `novelty.Novelty`
    files: Mapping[str, str]  # name -> sha256
    card: Mapping[str, Any]  # data, results, settings, versions: for people, and for `make bundle` itself
    findings: tuple[Finding, ...] = ()  # one for each of `classes`, where these are several findings per image

    @property
    def identity(self) -> str:
        """Return what tells its run from all others; empty where the card does not say."""
        run = self.card.get("run")
        identity = run.get("identity") if isinstance(run, Mapping) else ""
        return identity if isinstance(identity, str) else ""

    @property
    def stem(self) -> str:
        """Return the name of a folder for what it says of images, which no other model has."""
        return slug(f"{self.name[:80]}-{self.identity[:8]}")

    def as_dict(self) -> dict[str, Any]:
        """Return what `bundle.json` holds."""
        points = {name: {"threshold": p.threshold, **p.about} for name, p in self.points.items()}
        several = {"findings": [finding.as_dict() for finding in self.findings]} if self.findings else {}
        return {
            **several,
            "schema": SCHEMA_OF_FINDINGS if several else SCHEMA,
            "about": "A Firn predictor for research; not a medical device.",
            "name": self.name,
            "classes": list(self.classes),
            "networks": [network.as_dict() for network in self.networks],
            "parts": [part.as_dict() for part in self.parts],
            "stack": self.stack,
            "calibration": json.loads(self.calibration.to_json()) if self.calibration else None,
            "points": points,
            "outliers": dict(self.outliers) if self.outliers else None,
            "files": dict(self.files),
            "card": dict(self.card),
        }


def load_contents(folder: Path) -> Contents:
    """Return what `bundle.json` in a folder says. BadBundle, with the field, for anything but a whole one."""
    where = folder / BUNDLE
    try:
        return _contents(_mapping(read_json(folder, BUNDLE), "the file"))
    except _Fault as fault:
        raise BadBundle(
            f"{where}: {fault}; get it anew from where it was made, or make it anew (make bundle)"
        ) from None


class _Fault(Exception):
    """Which field is wrong, and how."""


def _contents(values: Mapping[str, Any]) -> Contents:
    findings = tuple(_finding(item) for item in _items(values, "findings")) if "findings" in values else ()
    if (schema := _get(values, "schema", int)) != (wanted := SCHEMA_OF_FINDINGS if findings else SCHEMA):
        raise _Fault(f"expected schema {wanted}, got {schema}, which another version of Firn wrote")
    classes = _texts(values, "classes")
    if findings and len(findings) != len(classes):
        raise _Fault(f"expected {len(classes)} findings, got {len(findings)}")
    if not (1 if findings else 2) <= len(classes) <= MOST_CLASSES or len(set(classes)) < len(classes):
        raise _Fault(f"expected 2 or more different classes, got {len(classes)}")
    networks = tuple(_network(item) for item in _items(values, "networks"))
    parts = tuple(_part(item, len(networks)) for item in _items(values, "parts"))
    stack = _get(values, "stack", str)
    if not networks or not parts or (len(parts) > 1 and not stack):
        raise _Fault("expected a network, and one part or a stack of several")
    points = _points(values)
    if points and (findings or len(classes) != 2):
        raise _Fault("operating points need two classes")
    outliers = values.get("outliers")
    files = _get(values, "files", dict)
    if not all(isinstance(digest, str) for digest in files.values()):
        raise _Fault("expected a sha256 for each of the files")
    return Contents(
        _get(values, "name", str),
        classes,
        networks,
        parts,
        stack,
        None if findings else _calibration(values.get("calibration"), len(classes)),
        points,
        None if outliers is None else _outliers(_mapping(outliers, "outliers"), len(networks)),
        files,
        _get(values, "card", dict),
        findings,
    )


def _points(values: Mapping[str, Any]) -> dict[str, Point]:
    return {str(n): _point(_mapping(p, f"point {n}")) for n, p in _get(values, "points", dict).items()}


def _finding(values: Mapping[str, Any]) -> Finding:
    return Finding(_points(values), _calibration(values.get("calibration"), 2))


def _network(values: Mapping[str, Any]) -> Network:
    try:
        key = Key.from_json(json.dumps(_get(values, "key", dict)))
        right = all(isinstance(text, str) for text in (key.backbone, key.weights, key.preprocess, *key.blocks))
    except (KeyError, TypeError) as error:
        raise _Fault(f"a network's key lacks or misspells a field ({error})") from None
    if not right:
        raise _Fault("expected texts as backbone, weights, preprocess and blocks of a network")
    if key.precision not in ("float32", "tf32", "bfloat16", "float16") or key.stored not in ("float32", "float16"):
        raise _Fault(f"unknown precision {key.precision!r}, or {key.stored!r} for what is stored")
    after = values.get("after")
    if after is not None and not isinstance(after, str):
        raise _Fault("expected a block or null as 'after'")
    return Network(key, _get(values, "file", str), after)


def _part(values: Mapping[str, Any], networks: int) -> Part:
    places = tuple(_get(values, "networks", list))
    blocks = tuple(_strings(some, "blocks") for some in _get(values, "blocks", list))
    pool = _get(values, "pool", str)
    if not places or not all(isinstance(at, int) and 0 <= at < networks for at in places):
        raise _Fault(f"expected places of the {networks} networks in a part, got {list(places)[:9]}")
    if len(blocks) != len(places):
        raise _Fault("expected blocks for each network of a part")
    if pool and pool not in POOLS:
        raise _Fault(f"unknown pool {pool!r}")
    kind, head, folder = (_get(values, name, str) for name in ("input", "head", "folder"))
    if not isinstance(mirrored := values.get("mirrored", False), bool):
        raise _Fault(f"expected true or false as 'mirrored', got {mirrored!r:.40}")
    return Part(kind, head, folder, places, blocks, pool, _get(values, "precision", str), mirrored)


def _point(values: Mapping[str, Any]) -> Point:
    threshold = values.get("threshold")
    if not _is_number(threshold):
        raise _Fault(f"expected a finite threshold, got {threshold!r:.40}")
    return Point(float(values["threshold"]), {name: value for name, value in values.items() if name != "threshold"})


def _calibration(values: Any, classes: int) -> Calibration | None:
    if values is None:
        return None
    try:
        found = calibration_from_json(json.dumps(values))
        with np.errstate(all="ignore"):  # what comes of a stranger's numbers is looked at
            shown = found([[1 / classes] * classes])
        if shown.shape != (1, classes) or not abs(float(shown.sum()) - 1) < 1e-6:
            raise ValueError("it makes no probabilities")
    except (BadPredictions, ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise _Fault(f"the calibration does not read ({error})") from None
    return found


def _outliers(values: Mapping[str, Any], networks: int) -> Mapping[str, Any]:
    """Check what says when an image is unlike those that were learned from."""
    numbers: list[Any] = [values.get(name) for name in ("threshold", "quantile", "rest")]
    if not all(_is_number(x) and x > 0 for x in numbers):
        raise _Fault("expected numbers above 0 as threshold, quantile and rest of the outliers")
    pairs = _get(values, "features", list)
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str)):
            raise _Fault("expected pairs of a network and a block as features of the outliers")
        if not isinstance(pair[0], int) or not 0 <= pair[0] < networks:
            raise _Fault(f"the outliers name network {pair[0]!r:.20}, and there are {networks}")
    return values


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number; JSON has whole ones that no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST


def _get(values: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Fault(f"expected {kind.__name__} as {name!r}, got {value!r:.40}")
    return value


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f"expected an object as {what}, got {type(value).__name__}")
    return value


def _items(values: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [_mapping(item, f"an item of {name}") for item in _get(values, name, list)]


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return _strings(_get(values, name, list), name)


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Fault(f"expected a list of texts as {name!r}")
    return tuple(value)
