"""From a run to the files of its bundle: networks, heads, calibration, operating points, outliers, golden samples."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.backbones import BackboneSpec, load_spec, make_spec, spec_of_digest
from features.backbones.build import IMAGES
from features.backbones.registry import domains
from features.cache import open_entry
from features.cache.key import Key
from features.datasets import load_dataset
from features.datasets.packed import Packed
from features.errors import BadWeights, CacheError, FirnError, unknown
from features.options import make_command, option
from features.storage import make_folder, write_whole
from features.version import firn_version
from features.views import Cached, choose_blocks, rows_view
from models.heads import HEADS, load_head, save_head
from models.metrics import CALIBRATIONS, Calibration
from models.predictor.archive import BUNDLE, write_archive
from models.predictor.heads import member_tensors
from models.predictor.loading import BUNDLED_FINDINGS, GOLDEN, OUTLIERS, draw_images, load_unchecked
from models.predictor.manifest import Contents, Finding, Network, Part, Point
from models.predictor.ood import MOST, Novelty, fit_novelty
from models.predictor.seen import SEEN, Seen, seen_of
from models.runs.examination import points_by_group, trained_shares
from models.runs.findings import score_run
from models.runs.record import FINETUNED, Run, load_run, require_whole, train_command
from models.runs.scores import scored


def learn_outliers(contents: Contents, run: Run, cut: Mapping[int, Key]) -> tuple[list[list[Any]], Novelty | None]:
    """Return which pooled blocks are looked at, [network, block] each, and what the training images are like there.

    Of a single model the last block of each of its networks, of a fine-tuned one the block where it was cut (`cut` has
    the key of that entry), of a stack the networks of the part it listens to most. None where nothing is frozen: of
    what a whole fine-tuned network sees in its training images nothing is cached. Raises CacheError where features are
    not cached any more.
    """
    sources = []
    for place in contents.parts[0].networks:
        network = contents.networks[place]
        if network.after == IMAGES:
            return [], None
        key = cut.get(place, network.key)
        sources.append((place, key, network.after or key.blocks[-1]))
    X, y, groups = _features(run, [(key, block) for _, key, block in sources])
    return [[place, block] for place, _, block in sources], fit_novelty(X, y, groups, seed=run.record.seed)


def _features(
    run: Run, sources: list[tuple[Key, str]]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Return the mean-pooled blocks side by side of images that were learned from, their labels and groups."""
    held = run.predictions.part(test=False)
    ids, first = np.unique(held.ids, return_index=True)
    if len(ids) > MOST:
        drawn = np.sort(np.random.default_rng(run.record.seed).choice(len(ids), MOST, replace=False))
        ids, first = ids[drawn], first[drawn]
    columns = []
    for key, block in sources:
        view = rows_view(_cached(run, key), [block])
        order = np.argsort(view.ids, kind="stable")
        at = order[np.minimum(np.searchsorted(view.ids[order], ids), len(order) - 1)]
        if not np.array_equal(view.ids[at], ids):
            raise CacheError(f"{run.name} is of other images than are now in the cache; run: {_again(run)}")
        with view.X as rows:
            columns.append(rows[at])
    return np.concatenate(columns, axis=1), held.y[first], held.groups[first]


def _cached(run: Run, key: Key) -> Cached:
    """Return the entry of a key, or the pack that the run was trained on."""
    entry = open_entry(run.record.dataset, key)
    if entry.manifest() is not None:
        return entry
    source = load_dataset(run.record.asked, seed=run.record.seed).source
    if isinstance(source, Packed) and source.pack.key == key:
        return source.pack
    raise CacheError(f"no features at {entry.folder}, of which the outliers are learned; run: {_again(run)}")


def _seen(run: Run, key: Key) -> Seen | None:
    """Return the digests of the images that a run has seen; None where nothing of them is cached any more."""
    try:
        manifest = _cached(run, key).manifest()
    except CacheError:
        return None
    if manifest is None:
        return None
    return seen_of(run.predictions, np.char.decode(manifest.ids, "utf-8"), manifest.sha256)


def _again(run: Run) -> str:
    return make_command("extract train-heads", run.record.data, backbone=run.record.backbone.replace("+", " "))


_HEAD_FILES = ("head.json", "head.safetensors", "lightgbm.txt")
_OF_RUN = (
    *("head", "about", "backbone", "view", "chosen", "seed", "folds", "repeats", "features", "identity"),
    *("asked_blocks", "protocol", "labels", "finetuning", "bases", "firn"),
)
_OF_DATA = ("dataset", "asked", "classes", "counts", "groups", "grouped_by", "split_by", "note", "manifest")


@dataclass(frozen=True)
class BundleOptions:
    """What a user may choose about a bundle."""

    calibration: str = option("platt", "platt, temperature, isotonic or none, learned from out-of-fold predictions.")
    weights: str = option("", "A weights file of your own (.pth or .safetensors) for the backbone.")
    with_weights: bool = option(False, "Put the weights inside also where their digest would do.")

    def __post_init__(self) -> None:
        """Refuse a calibration that is in no table."""
        if self.calibration not in (*CALIBRATIONS, "none"):
            raise unknown("calibration", self.calibration, [*CALIBRATIONS, "none"])

    def as_dict(self) -> dict[str, Any]:
        """Return what changes a bundle, ready for JSON."""
        return {"calibration": self.calibration, "with_weights": self.with_weights}

    def fitted(self, run: Run) -> Calibration | None:
        """Return the calibration, learned from out-of-fold predictions."""
        if self.calibration == "none":
            return None
        held = run.predictions.part(test=False)
        return CALIBRATIONS[self.calibration](held.y, held.proba)

    def fitted_findings(self, run: Run) -> list[Calibration | None]:
        """Return the calibration of each of several findings."""
        if self.calibration == "none":
            return [None] * len(run.record.classes)
        held, make = run.predictions.part(test=False), CALIBRATIONS[self.calibration]
        ones = [held.finding(k) for k in range(len(run.record.classes))]
        return [make(one.y, one.proba) for one in ones]


def write_bundle(run: Run, target: Path, how: BundleOptions) -> Path:
    """Write the bundle of a run as a folder or a .zip, absent or whole; return `target`.

    Networks whose weights are public are named by their digest, fine-tuned ones are inside. No image and no name of one
    goes in. Raises CacheError where what the run was made of is not there any more, BadWeights likewise.
    """
    _check_bundled(run)
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=target.parent) as beside:
        folder = Path(beside) / "bundle"
        folder.mkdir()
        _Packing(folder, how).pack(run)
        write_archive(folder, target)
    return target


def _check_bundled(run: Run) -> None:
    """Raise FirnError for a head of several findings that no bundle holds."""
    if run.record.several and run.record.head not in BUNDLED_FINDINGS:
        heads = " ".join(BUNDLED_FINDINGS)
        again = make_command("bundle", run.record.data, backbone=run.record.backbone, heads=heads)
        raise FirnError(
            f"a bundle of several findings is of {heads}, and {run.record.head} is none of them; run: {again}"
        )


@dataclass
class _Packing:
    """The networks and parts put into a folder so far."""

    folder: Path
    how: BundleOptions
    networks: list[Network] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    _cut: dict[int, Key] = field(
        default_factory=dict
    )  # fine-tuned network -> key of the entry with its boundary's maps

    def pack(self, run: Run) -> None:
        """Add a run: its parts, what is learned from its predictions, then the golden samples that check them."""
        stack = self._stack(run) if run.record.bases else self._single(run)
        contents = self._of_findings(run) if run.record.several else self._contents(run, stack)
        features, outliers = learn_outliers(contents, run, self._cut)
        if outliers is not None:
            _save(self.folder / OUTLIERS, outliers.arrays())
            numbers = {name: getattr(outliers, name) for name in ("rest", "threshold", "quantile")}
            contents = replace(contents, outliers={**numbers, "features": features})
        if (seen := _seen(run, self._cut.get(0, self.networks[0].key))) is not None:
            _save(self.folder / SEEN, seen.arrays())
        self._write(contents)
        images = draw_images(run.record.seed)
        found = load_unchecked(self.folder, device="cpu")(images)
        samples = {"proba": found.proba, "distance": np.nan_to_num(found.distance)}
        _save(self.folder / GOLDEN, samples | {f"picture{i}": a for i, a in enumerate(images)})
        self._write(contents)

    def _write(self, contents: Contents) -> None:
        """Write bundle.json with the digests of all files beside it."""
        paths = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.name != BUNDLE)
        digests = {p.relative_to(self.folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
        text = json.dumps(replace(contents, files=digests).as_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        write_whole(self.folder / BUNDLE, [text.encode()])

    def _single(self, run: Run) -> str:
        self._part(run)
        return ""

    def _stack(self, run: Run) -> str:
        """Add the runs to which a stack gives weight, the largest first, then the stack."""
        require_whole(run.folder, run.record)
        head: Any = load_head(run.folder)
        root = run.record.root
        _, arrays = head.state()
        weights = arrays["weights"]
        order = [at for at in np.argsort(-weights, kind="stable").tolist() if weights[at] > 0]
        for at in order:
            self._part(load_run(root / run.record.bases[at]))
        save_head(self.folder / "stack", "stack", head.restore({}, arrays | {"weights": weights[order]}))
        return "stack"

    def _part(self, run: Run) -> None:
        """Add one run that is no stack."""
        kind = "thawed" if run.record.head == FINETUNED else HEADS[run.record.head].input
        folder = f"parts/{len(self.parts)}"
        put = self._thawed if kind == "thawed" else self._headed
        self.parts.append(put(run, kind, folder))

    def _headed(self, run: Run, kind: str, folder: str) -> Part:
        """Add a head on features or maps, as it lies in the folder of its run."""
        require_whole(run.folder, run.record)
        keys = run.record.keys
        networks = tuple(self._network(key) for key in keys)
        wanted = " ".join(run.record.blocks) if kind == "maps" else run.record.asked_blocks
        blocks = tuple(tuple(choose_blocks(key.blocks, wanted)) for key in keys)
        (self.folder / folder).mkdir(parents=True)
        for name in _HEAD_FILES:
            if (run.folder / name).exists():
                shutil.copyfile(run.folder / name, self.folder / folder / name)
        pool = "" if kind == "maps" else run.record.pool
        return Part(kind, run.record.head, folder, networks, blocks, pool, keys[0].precision)

    def _thawed(self, run: Run, kind: str, folder: str) -> Part:
        """Add a fine-tuned network: frozen trunk and trained tail as one backbone, its classifier as the head.

        Of several networks the first is that backbone; tails and classifiers of the others are beside its classifier.
        """
        from features.backbones.build import load_backbone
        from models.finetuning.checkpoints import save_network
        from models.finetuning.cross_validation import is_mirrored

        members, about = _members(run)
        spec, _ = self._spec(about["backbone"], about["weights"])
        tail = {n.removeprefix("tail."): t for n, t in members[0].items() if n.startswith("tail.")}
        named = {n: t for number, state in enumerate(members) for n, t in member_tensors(number, state).items()}
        file = f"networks/{len(self.networks)}.safetensors"
        save_network(self.folder / file, load_backbone(spec).state_dict() | tail, {"backbone": spec.name})
        save_network(self.folder / folder / "head.safetensors", named, {"head": FINETUNED})
        cached = Key.from_json(about["keys"][0])
        whole = make_spec(spec.name, self.folder / file)
        key = whole.key(preprocess=cached.preprocess_mode, precision=cached.precision, stored=cached.stored)
        self.networks.append(Network(key, file, about["after"]))
        self._cut[len(self.networks) - 1] = cached
        precision = about["settings"]["precision"]
        place, seen = (len(self.networks) - 1,), ((about["after"],),)
        return Part(kind, FINETUNED, folder, place, seen, "", precision, is_mirrored(about))

    def _network(self, key: Key) -> int:
        """Return the place of a frozen network, which several parts may share."""
        for place, known in enumerate(self.networks):
            if known.key == key and known.after is None:
                return place
        spec, found = self._spec(key.backbone, key.weights)
        file = ""
        if not found or self.how.with_weights or domains(key.backbone):
            from features.backbones.build import load_backbone
            from models.finetuning.checkpoints import save_network

            file = f"networks/{len(self.networks)}.safetensors"
            save_network(self.folder / file, load_backbone(spec).state_dict(), {"backbone": spec.name})
        self.networks.append(Network(key, file))
        return len(self.networks) - 1

    def _spec(self, name: str, digest: str) -> tuple[BackboneSpec, bool]:
        """Return a backbone with the weights of a digest, and whether they are found without being told where."""
        try:
            return spec_of_digest(name, digest), True
        except BadWeights:
            spec = load_spec(name, self.how.weights) if self.how.weights else None
            if spec is None or spec.weights != digest:
                raise
            return spec, False

    def _card(self, run: Run) -> dict[str, Any]:
        record = run.record.to_json()
        return {
            "run": {name: record[name] for name in _OF_RUN if name in record},
            "data": {name: record[name] for name in _OF_DATA},
            "versions": dict(run.record.versions) | {"firn": firn_version()},
            "made": self.how.as_dict(),
        }

    def _of_findings(self, run: Run) -> Contents:
        """Return what a bundle of several findings says: points and calibration of each."""
        found = score_run(run, run.name, seed=run.record.seed, n_bootstrap=2000)
        findings = [
            Finding({name: Point(at) for name, at in row.thresholds.items()}, calibration)
            for row, calibration in zip(found.findings, self.how.fitted_findings(run), strict=True)
        ]
        scores = {row.name: row.scores for row in found.findings}
        card = self._card(run) | {
            "results": {"validation": found.validation, "test": found.test, "findings": scores},
        }
        classes, networks, parts = run.record.classes, tuple(self.networks), tuple(self.parts)
        return Contents(run.name, classes, networks, parts, "", None, {}, None, {}, card, tuple(findings))

    def _contents(self, run: Run, stack: str) -> Contents:
        rows = scored(run, seed=run.record.seed, n_bootstrap=2000)
        points = {
            name: Point(row["threshold"], {m: row[m] for m in ("sensitivity", "specificity")})
            for name, row in rows.thresholds.items()
        }
        card = {
            **self._card(run),
            "results": {name: getattr(rows, name) for name in ("validation", "test", "confusion", "threshold")},
            "trained_shares": trained_shares(run).tolist(),
            "points_by_group": points_by_group(run),
        }
        calibration = self.how.fitted(run)
        classes, networks, parts = run.record.classes, tuple(self.networks), tuple(self.parts)
        return Contents(run.name, classes, networks, parts, stack, calibration, points, None, {}, card)


def _members(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the tensors of a run's fine-tuned networks, as `tail.` and `classifier.`, and their configuration."""
    from safetensors import SafetensorError

    from models.finetuning.checkpoints import load_network
    from models.finetuning.cross_validation import CLASSIFIER, NETWORK, network_files

    members = []
    for path in network_files(run.folder, run.record.networks) or [run.folder / NETWORK]:
        try:
            tensors, about = load_network(path)
        except (OSError, SafetensorError) as error:
            raise CacheError(f"cannot read {path} ({error}); run: {train_command(run.record)}") from None
        names = {n: n.replace(CLASSIFIER, "classifier") if n.startswith(CLASSIFIER) else f"tail.{n}" for n in tensors}
        members.append({names[name]: tensor for name, tensor in tensors.items()})
    return members, about


def _save(path: Path, arrays: dict[str, Any]) -> None:
    from safetensors.numpy import save

    write_whole(path, [save({name: np.ascontiguousarray(array) for name, array in arrays.items()})])
