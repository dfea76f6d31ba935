"""The models of a bundle: what the networks saw -> probabilities, and class maps where a model has some."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.backbones import BackboneSpec
from features.backbones.build import IMAGES, load_tail
from features.devices import out_of_memory
from features.errors import BadBundle, CacheError, UnknownName
from features.views import choose_pool
from models.explain.class_maps import CLASS_MAPS, ensemble_class_maps, votes
from models.finetuning.network import Ensemble, FinetunedNetwork, arithmetic
from models.heads import HEADS, load_head
from models.heads.linear import probabilities
from models.predictor.archive import read_json, sealed
from models.predictor.backbones import PIXELS, Features
from models.predictor.manifest import Contents, Part
from models.predictor.trees import Trees, read_trees

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Model(Protocol):
    """One model of a bundle."""

    def proba(self, features: Sequence[Features]) -> Floats:
        """Return probabilities (n, K) from what each network of the bundle saw."""

    def votes(self, features: Sequence[Features]) -> Floats:
        """Return what each position says for each class, (n, K, H, W). BadBundle for a model without class maps."""


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """A head on pooled features or on maps."""

    part: Part
    head: Any

    def proba(self, features: Sequence[Features]) -> Floats:
        """Return probabilities, (n, K)."""
        return np.asarray(self.head.predict_proba(seen_by(self.part, features)), dtype=np.float64)

    def votes(self, features: Sequence[Features]) -> Floats:
        """Return class maps: exact for a linear head on one block's mean, the votes of a map head."""
        if not has_class_maps(self.part):
            raise BadBundle(f"{self.part.head} on this view has no class maps; leave OVERLAYS= away")
        maps = features[self.part.networks[0]][f"maps/{self.part.blocks[0][-1]}"]
        return votes(HEADS[self.part.head].form, self.head, maps)


@dataclass(frozen=True, eq=False)
class NetworkModel:
    """A fine-tuned network, or several as one, on the maps at the boundary, or on images."""

    part: Part
    network: Ensemble
    name: str  # of what it sees
    device: str

    def proba(self, features: Sequence[Features]) -> Floats:
        """Return probabilities (n, K), in the precision of the training."""
        return probabilities(self._logits(self._maps(features)))

    def _logits(self, maps: Array) -> Floats:
        """Return the logits (n, K) of maps (n, C, H, W), half of them at a time where a GPU has no memory for more."""
        try:
            return self._at_once(maps)
        except RuntimeError as error:
            if len(maps) < 2 or not out_of_memory(error):
                raise
        halves = maps[: len(maps) // 2], maps[len(maps) // 2 :]
        return np.concatenate([self._logits(half) for half in halves])

    def _at_once(self, maps: Array) -> Floats:
        import torch

        X = torch.from_numpy(maps).to(self.device).float().contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), arithmetic(self.part.precision, self.device):
            logits: Floats = self.network(X).double().cpu().numpy()
        return logits

    def votes(self, features: Sequence[Features]) -> Floats:
        """Return the exact class maps of the last block."""
        with arithmetic(self.part.precision, "cpu"):
            return ensemble_class_maps(copy.deepcopy(self.network).cpu(), self._maps(features)).votes()

    def _maps(self, features: Sequence[Features]) -> Array:
        return features[self.part.networks[0]][self.name]


def seen_by(part: Part, features: Sequence[Features]) -> Array:
    """Return what a head sees: X (n, d) float32 side by side as `features.views` puts it, or maps (n, C, H, W)."""
    if not part.pool:
        return features[part.networks[0]][f"maps/{part.blocks[0][-1]}"]
    way, columns = choose_pool(part.pool), []
    for place, blocks in zip(part.networks, part.blocks, strict=True):
        for block in blocks:
            if way.of_maps is not None:
                columns.append(way.of_maps(features[place][f"maps/{block}"]))
            columns += [features[place][f"pooled/{block}/{kind}"].astype(np.float32) for kind in way.cached]
    return np.concatenate(columns, axis=1)


def maps_of(part: Part, *, explained: bool = False) -> dict[int, tuple[str, ...]]:
    """Return the blocks whose maps a part needs, by network."""
    needed = not part.pool or choose_pool(part.pool).of_maps is not None or (explained and has_class_maps(part))
    return dict(zip(part.networks, part.blocks, strict=True)) if needed and part.input != "thawed" else {}


def has_class_maps(part: Part) -> bool:
    """Tell whether class maps say how a part decides: one network, and a head on maps or on one block's mean."""
    if part.input == "thawed":
        return True
    one_mean = part.pool == "avg" and len(part.blocks) == 1 and len(part.blocks[0]) == 1
    return HEADS[part.head].form in CLASS_MAPS and (one_mean or not part.pool)


def read_model(folder: Path, part: Part, contents: Contents, specs: Sequence[BackboneSpec], device: str) -> Model:
    """Return a model of a bundle whose files were checked. Raises BadBundle."""
    if part.input not in INPUTS:
        raise BadBundle(f"unknown input {part.input[:40]!r} of a part; this bundle is of another version of Firn")
    try:
        return INPUTS[part.input](folder, part, contents, specs, device)
    except (BadBundle, MemoryError):
        raise
    except Exception as error:  # tensors and texts of strangers: anything may be missing or of another shape
        raise BadBundle(
            f"{folder / part.folder} holds no {part.head[:40]} that fits ({type(error).__name__}: {str(error)[:200]}); "
            "get the bundle anew, or make it anew (make bundle)"
        ) from None


def _of_features(
    folder: Path, part: Part, contents: Contents, specs: Sequence[BackboneSpec], device: str
) -> FeatureModel:
    for place, blocks in zip(part.networks, part.blocks, strict=True):
        if unknown := set(blocks) - set(specs[place].blocks) or not blocks:
            raise BadBundle(f"{specs[place].name} has no block {unknown!r}")
    if (HEADS[part.head].input == "maps") == bool(part.pool):
        raise BadBundle(f"{part.head} sees {HEADS[part.head].input}, and the part has pool {part.pool!r}")
    width = seen_by(part, _empty(part, specs)).shape[1]
    if reader := READERS.get(HEADS[part.head].form):
        return FeatureModel(part, reader(_listed(folder, part, contents), len(contents.classes), width))
    return FeatureModel(part, head_of(folder, part.folder, part.head, contents))


def _empty(part: Part, specs: Sequence[BackboneSpec]) -> list[Features]:
    """Return features of one image, all zero, with the shapes of the specs."""
    empty: list[Features] = []
    for spec in specs:
        pooled = {f"pooled/{b}/{kind}": np.zeros((1, s[0])) for b, s in spec.blocks.items() for kind in spec.poolings}
        empty.append(pooled | {f"maps/{block}": np.zeros((1, *shape)) for block, shape in spec.blocks.items()})
    return empty


def _listed(folder: Path, part: Part, contents: Contents) -> Path:
    """Return the text of the trees of a part."""
    name = f"{part.folder}/lightgbm.txt"
    if name not in contents.files:
        raise BadBundle(f"{name} is not among the files of the bundle")
    return sealed(folder, name)


READERS: dict[str, Callable[[Path, int, int], Trees]] = {"trees": read_trees}  # forms with a reader of their own


def head_of(folder: Path, name: str, head: str, contents: Contents) -> Any:
    """Return a head as `save_head` wrote it, after a look at what it claims. Raises BadBundle, ValueError, KeyError."""
    content = read_json(folder, f"{name}/head.json")
    for path in (folder / name).iterdir():
        if path.name.startswith("head.") and f"{name}/{path.name}" not in contents.files:
            raise BadBundle(f"{path} is not among the files of the bundle")
    if (
        content["head"] != head
        or content["classes"] != len(contents.classes)
        or (bool(content.get("findings")) != bool(contents.findings))
    ):
        raise BadBundle(f"expected {head} of {len(contents.classes)} classes, got {content['head']!r:.40}")
    tensors = folder / name / "head.safetensors"
    if tensors.exists():
        _check_tensors(tensors, 2 if contents.findings else len(contents.classes))
    try:
        return load_head(folder / name)
    except (CacheError, UnknownName) as error:
        raise BadBundle(str(error)) from None


def _check_tensors(path: Path, classes: int) -> None:
    """Raise BadBundle for numbers that are not finite, or whole numbers that are no classes."""
    from safetensors.numpy import load_file

    for name, array in load_file(path).items():
        if not np.isfinite(array).all():
            raise BadBundle(f"{name} in {path} is not finite")
        if array.dtype.kind not in "f" and not (0 <= array.min(initial=0) <= array.max(initial=0) < classes):
            raise BadBundle(f"{name} in {path} names classes that are not among {classes}")


def _of_network(
    folder: Path, part: Part, contents: Contents, specs: Sequence[BackboneSpec], device: str
) -> NetworkModel:
    from safetensors.torch import load_file

    (place,) = part.networks
    after, spec = contents.networks[place].after, specs[place]
    if after is None:
        raise BadBundle("a thawed part needs a network that says where it is cut")
    name = f"{part.folder}/head.safetensors"
    if name not in contents.files:
        raise BadBundle(f"{name} is not among the files of the bundle")
    tensors = load_file(sealed(folder, name))
    width = list(spec.blocks.values())[-1][0]
    networks = list[FinetunedNetwork]()
    for own in member_states(tensors):
        network = FinetunedNetwork(load_tail(spec, after), width, len(contents.classes))
        # the first one's tail is in the file of the spec
        network.load_state_dict(own if networks else network.state_dict() | own)
        networks.append(network)
    mean = Ensemble(networks, mirrored=part.mirrored and after == IMAGES).requires_grad_(False).eval().to(device)
    return NetworkModel(part, mean, f"maps/{after}" if after != IMAGES else PIXELS, device)


def member_tensors(number: int, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a network of several (from 0) under the names that they have in a bundle.

    The first one's tail is part of the bundle's backbone, so that only its classifier is named, as `weight` and `bias`.
    """
    if number == 0:
        return {name: state[f"{_CLASSIFIER}{name}"] for name in ("weight", "bias")}
    return {f"{number}.{name}": tensor for name, tensor in state.items()}


def member_states(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what `member_tensors` named, for each network in its order. ValueError for a name of no number."""
    states: dict[int, dict[str, Any]] = {0: {}}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".") if "." in name else ("0", "", f"{_CLASSIFIER}{name}")
        states.setdefault(int(number), {})[rest] = tensor
    return [states[number] for number in sorted(states)]


_CLASSIFIER = "classifier."
INPUTS: Mapping[str, Callable[..., Model]] = {"pooled": _of_features, "maps": _of_features, "thawed": _of_network}
