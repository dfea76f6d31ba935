"""Loading of bundles: a predictor must first reproduce the golden samples, which are of drawn images, no patient's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from features.backbones import BackboneSpec
from features.devices import BATCH, checked, choose_device, fitting
from features.errors import BadBundle, FirnError, unknown
from models.explain.class_maps import CLASS_MAPS
from models.heads import HEADS
from models.heads.stacking import Stack
from models.predictor.archive import check_files, opened, sealed
from models.predictor.backbones import Lane, load_spec_of, make_lane
from models.predictor.heads import INPUTS, Model, has_class_maps, head_of, maps_of, read_model
from models.predictor.manifest import Contents, load_contents
from models.predictor.ood import Novelty
from models.predictor.predictor import Predictor
from models.predictor.seen import load_seen
from models.runs.record import FINETUNED

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
    """Raise BadBundle, with the difference, where samples are not reproduced within the precision's tolerance.

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


OUTLIERS = "outliers.safetensors"
# Heads of several findings that are bundled: trees of strangers have a reader of their own, which reads one text.
BUNDLED_FINDINGS = tuple(name for name, row in HEADS.items() if row.findings and row.form != "trees")


class Loaded:
    """A bundle in memory: contents, specs, models; what a predictor and an export are made of."""

    def __init__(self, folder: Path, where: str) -> None:
        self.contents = load_contents(folder)
        check_files(folder, self.contents.files)
        for part in self.contents.parts:
            _check_part(part.head, part.input)
            if self.contents.findings and (part.head not in BUNDLED_FINDINGS or self.contents.stack):
                raise BadBundle(str(unknown("head of several findings", part.head[:40], BUNDLED_FINDINGS)))
        for network in self.contents.networks:
            if network.file:
                sealed(folder, network.file)
        self.specs: list[BackboneSpec] = [load_spec_of(network, folder) for network in self.contents.networks]
        self.models: list[Model] = [
            read_model(folder, part, self.contents, self.specs, where) for part in self.contents.parts
        ]
        self.stack = _stack(folder, self.contents)
        self.outliers = _outliers(folder, self.contents)
        self.seen = load_seen(folder, self.contents.files)

    def lanes(self, where: str, batch_size: int, *, explained: bool = False) -> list[Lane]:
        """Return a lane for each network."""
        maps: list[list[str]] = [[] for _ in self.specs]
        for part in self.contents.parts:
            for place, blocks in maps_of(part, explained=explained).items():
                maps[place] += blocks
        return [
            make_lane(network, spec, list(dict.fromkeys(some)), device=where, batch_size=batch_size)
            for network, spec, some in zip(self.contents.networks, self.specs, maps, strict=True)
        ]


def _check_part(head: str, kind: str) -> None:
    """Raise BadBundle for a head or an input that this version does not know."""
    if kind not in INPUTS:
        raise BadBundle(str(unknown("input of a part", kind[:40], INPUTS)))
    if kind != "thawed" and (head not in HEADS or HEADS[head].input == "runs"):
        raise BadBundle(str(unknown("head", head[:40], HEADS)))


def load(path: str | Path, *, device: str = "auto", batch_size: int = 0, explained: bool = False) -> Predictor:
    """Return the predictor in a bundle (a folder or a .zip) once it has reproduced its golden samples.

    `explained` makes predictions carry class maps. Images go through the networks `batch_size` at once (as in
    extraction 8 on each core of a CPU, 256 on a GPU); another size may change the last digits. Raises BadBundle for
    what is malformed, unsafe or damaged, BadWeights where a backbone's weights are neither inside nor found.
    """
    with opened(Path(path)) as folder:
        try:
            with fitting("the bundle"):
                predictor = load_unchecked(folder, device=device, batch_size=batch_size, explained=explained)
                images, proba, distance = load_golden(folder)
                found = predictor(images)
        except (FirnError, MemoryError):
            raise
        except Exception as error:  # blocks and tensors of strangers that fit nowhere
            raise BadBundle(
                f"{path} does not fit together ({type(error).__name__}: {str(error)[:200]}); "
                "get it anew, or make it anew (make bundle)"
            ) from None
    weakest = max((n.key.precision for n in predictor.contents.networks), key=_coarseness)
    ours = {"proba": found.proba, "distance": np.nan_to_num(found.distance)}
    if predictor.several:  # each against its own absence
        proba, ours["proba"] = (np.stack([p, 1 - p], axis=2).reshape(-1, 2) for p in (proba, ours["proba"]))
    check_golden({"proba": proba, "distance": distance}, ours, weakest, Path(path))
    return predictor


def _coarseness(precision: str) -> int:
    return ("float32", "tf32", "float16", "bfloat16").index(precision)


def read_bundle(folder: Path, where: str = "cpu") -> Loaded:
    """Read a bundle's folder without a check of its golden samples. Raises BadBundle, BadWeights."""
    return Loaded(folder, where)


def load_unchecked(folder: Path, *, device: str = "auto", batch_size: int = 0, explained: bool = False) -> Predictor:
    """Return the predictor in a folder without a check of its golden samples, in order to make them."""
    where = checked(choose_device(device))
    size = batch_size or BATCH[where.partition(":")[0]]
    loaded = read_bundle(folder, where)
    if explained:
        _check_explained(loaded.contents)
    lanes = loaded.lanes(where, size, explained=explained)
    several = 2 * size * torch.get_num_threads() if where == "cpu" else size  # two batches for each core
    return Predictor(
        loaded.contents,
        lanes,
        loaded.models,
        loaded.stack,
        loaded.outliers,
        batch_size=several,
        explained=explained,
        seen=loaded.seen,
    )


def _check_explained(contents: Contents) -> None:
    """Raise FirnError for a model without class maps."""
    if not contents.stack and has_class_maps(contents.parts[0]):
        return
    able = " ".join([*(name for name, row in HEADS.items() if row.form in CLASS_MAPS), FINETUNED])
    raise FirnError(f"{contents.name} has no class maps to lay over images; leave OVERLAYS= away, or take {able}")


def _stack(folder: Path, contents: Contents) -> Stack | None:
    if not contents.stack:
        return None
    try:
        head: Any = head_of(folder, contents.stack, "stack", contents)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadBundle(
            f"the stack in {folder / contents.stack} does not read ({error}); make it anew (make bundle)"
        ) from None
    if not isinstance(head, Stack) or head.models != len(contents.parts):
        raise BadBundle(f"expected a stack of {len(contents.parts)} parts; make it anew (make bundle)")
    return head


def _outliers(folder: Path, contents: Contents) -> Novelty | None:
    """Return what says how unlike the training images an image is."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    values = contents.outliers
    if values is None:
        return None
    try:
        arrays = load_file(sealed(folder, OUTLIERS))
        numbers: dict[str, Any] = {name: float(values[name]) for name in ("rest", "threshold", "quantile")}
        known: dict[str, Any] = {name: arrays[name] for name in ("mean", "directions", "scale", "variances")}
        found = Novelty(**known, **numbers, held=arrays.get("held"))
        width, directions = found.directions.shape
        fits = found.mean.shape == found.scale.shape == (width,) and found.variances.shape == (directions,)
        rising = found.held is None or _rises(found.held)
        if not fits or not rising or not (found.variances > 0).all() or not (found.scale > 0).all():
            raise ValueError("its arrays do not fit together")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadBundle(f"{folder / OUTLIERS} does not read ({error}); make it anew (make bundle)") from None
    return found


def _rises(values: NDArray[Any]) -> bool:
    """Tell whether there are two or more numbers in a row, finite and none below the one before."""
    return bool(values.ndim == 1 and len(values) > 1 and np.isfinite(values).all() and (np.diff(values) >= 0).all())
