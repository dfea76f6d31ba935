"""Class maps of some images of a run, from the feature maps in the cache: the evidence for its decisions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.backbones import BackboneSpec
from features.cache import open_entry
from features.cache.index import Manifest
from features.cache.key import Key
from features.datasets import Dataset
from features.errors import CacheError
from features.images import Geometry, pixels
from features.options import make_command
from features.views import load_manifest
from models.explain.class_maps import CLASS_MAPS, asked_maps, votes
from models.heads import HEADS, load_head
from models.heads.findings import sigmoid
from models.heads.linear import probabilities
from models.runs.current import manifest_digest
from models.runs.record import FINETUNED, Run, RunRecord, extract_command, require_whole, train_command

if TYPE_CHECKING:
    from features.cache import Entry
    from models.finetuning.network import Ensemble

Floats = NDArray[np.float64]
_CLOSE = 0.05  # how far a probability may lie from the one that was predicted on another machine


@dataclass(frozen=True)
class Case:
    """Some images of a run."""

    run: Run
    dataset: Dataset
    spec: BackboneSpec
    ids: NDArray[np.str_]  # (m,)
    asked: Floats  # (m, K) which sum of logits is shown, see `models.explain.class_maps.grad_cam`


class Evidence(NamedTuple):
    """The class maps of the images: the evidence for the logits that were asked for, at each position."""

    maps: dict[str, Floats]  # kind -> (m, H, W); the first is signed and its mean is the image's, where it is exact
    proba: Floats  # (m, K) of the model that the maps are of
    sha256: list[str]  # (m,) of the images that were in the cache
    exact: bool  # whether the mean of the first map is the sum of logits that was asked for


def _of_head(case: Case) -> Evidence:
    """Explain a head; the mean over positions of a linear one's class maps is its logits."""
    record = case.run.record
    maps, sha256 = _cached(case, record.keys[0], record.blocks[-1])
    require_whole(case.run.folder, record)
    head, form = load_head(case.run.folder), HEADS[record.head].form
    found, exact = votes(form, head, maps), form == "linear"
    of_logits = sigmoid if head.several else probabilities
    proba = of_logits(found.mean(axis=(2, 3))) if exact else head.predict_proba(maps)
    return Evidence({"class map": asked_maps(found, case.asked)}, proba, sha256, exact)


def _thawed(case: Case) -> Evidence:
    """Explain a fine-tuned network in the precision of its training; by gradients too where its input is maps."""
    from features.backbones.build import IMAGES
    from models.explain.class_maps import ensemble_class_maps, grad_cam, hires_cam
    from models.finetuning.network import arithmetic

    network, about = _network(case)
    key, after = Key.from_json(about["keys"][0]), about["after"]
    maps, sha256 = _images(case, key) if after == IMAGES else _cached(case, key, after)
    with arithmetic(key.precision, "cpu"):
        found = ensemble_class_maps(network, maps)
    shown = {"class map": asked_maps(found.votes(), case.asked)}
    if after != IMAGES:
        with arithmetic(key.precision, "cpu"):
            shown[f"HiResCAM at {after}"] = hires_cam(network, maps, case.asked)
            shown[f"Grad-CAM at {after}"] = grad_cam(network, maps, case.asked)
    return Evidence(shown, probabilities(found.logits()), sha256, True)


EXPLAINERS: dict[str, Callable[[Case], Evidence]] = {
    **{name: _of_head for name, row in HEADS.items() if row.form in CLASS_MAPS},
    FINETUNED: _thawed,
}


def can_be_explained(record: RunRecord) -> bool:
    """Tell whether class maps say how a run decides: one backbone, and a head on maps or on one block's mean."""
    on_maps = record.view.endswith(" maps") or record.head == FINETUNED
    plain = len(record.blocks) == 1 and record.pool == "avg"
    return record.head in EXPLAINERS and len(record.keys) == 1 and (on_maps or plain)


def evidence_of(case: Case, predicted: Floats | None) -> Evidence:
    """Return the evidence in the images of a case.

    CacheError where their maps are not cached, or where the probabilities are not those `predicted` (m, K), NaN for
    those that do not matter.
    """
    found = EXPLAINERS[case.run.record.head](case)
    if predicted is not None and np.nanmax(np.abs(found.proba - predicted), initial=0) > _CLOSE:
        raise CacheError(
            f"{case.run.name} does not give the probabilities again that it once predicted: model and predictions "
            f"in {case.run.folder} do not belong together; remove that folder and run: {train_command(case.run.record)}"
        )
    return found


def digests_of(case: Case) -> list[str]:
    """Return the digests (m,) of a case's images as they were extracted. CacheError where their entry is gone."""
    return _digests(_current(case, _entry(case, case.run.record.keys[0])), case.ids)


def image_seen(case: Case, i: int, sha256: str, geometry: Geometry) -> NDArray[np.uint8]:
    """Return an image of a case as the network saw it, (S, S, 3). CacheError where it has changed since."""
    name = str(case.ids[i])
    data = case.dataset.source.read(name)
    if hashlib.sha256(data).hexdigest() != sha256:
        again = make_command("extract train-heads", case.run.record.data, backbone=case.run.record.backbone)
        raise CacheError(f"{name} has changed since its features were extracted; run: {again}")
    square = np.rint(pixels(data, geometry, name=name)).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(square, (*square.shape[:2], 3)).copy()


def _network(case: Case) -> tuple[Ensemble, dict[str, Any]]:
    """Return the networks of a run as one in eval mode, and their configuration."""
    from safetensors import SafetensorError

    from models.finetuning.cross_validation import load_ensemble

    try:
        return load_ensemble(case.run.folder, case.spec, case.run.record.networks)
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"cannot read the networks in {case.run.folder} ({error}); run: {train_command(case.run.record)}"
        ) from None


def _cached(case: Case, key: Key, block: str) -> tuple[NDArray[Any], list[str]]:
    """Return the cached maps of the images, (m, C, H, W), and the digests of the images."""
    from features.views import map_rows

    entry = _entry(case, key)
    manifest = _current(case, entry)
    if f"maps/{block}" not in manifest.parts:
        raise CacheError(f"no maps of {block} at {entry.folder}; run: {_extraction(case.run.record, block)}")
    view = map_rows(entry, block)
    with view.X as rows:
        return rows[np.searchsorted(view.ids, case.ids)], _digests(manifest, case.ids)


def _images(case: Case, key: Key) -> tuple[NDArray[Any], list[str]]:
    """Return the images as the network sees them, (m, 3, S, S)."""
    from features.extraction.prefetch import ImageStream

    manifest = _current(case, _entry(case, key))
    stream = ImageStream(case.dataset.source, case.ids.tolist(), case.spec, key.preprocess_mode)
    return stream.read(np.arange(len(case.ids))), _digests(manifest, case.ids)


def _entry(case: Case, key: Key) -> Entry:
    return open_entry(case.dataset.name, key)


def _current(case: Case, entry: Entry) -> Manifest:
    """Return the manifest of an entry; CacheError where there is none, or of other images than the run's."""
    record = case.run.record
    if entry.manifest() is None:
        raise CacheError(f"no features at {entry.folder}; run: {_extraction(record, record.blocks[-1])}")
    manifest = load_manifest(entry)
    if manifest_digest(manifest, record.classes) != record.manifest:
        again = train_command(record)
        raise CacheError(f"{case.run.name} is of other images than are now in the cache; run: {again}")
    return manifest


def _digests(manifest: Manifest, ids: Sequence[str] | NDArray[np.str_]) -> list[str]:
    known = dict(zip(np.char.decode(manifest.ids, "utf-8").tolist(), manifest.sha256.tolist(), strict=True))
    return [known[image].decode() for image in ids]


def _extraction(record: RunRecord, block: str) -> str:
    """Return the command that puts maps of a block into the cache; fine-tuning itself does for other boundaries."""
    return extract_command(record, block) if block in record.keys[0].blocks else train_command(record)
