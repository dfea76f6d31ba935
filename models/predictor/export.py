"""A bundle as one torch module, pixels -> probabilities, for runtimes that know nothing of Firn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from features.backbones import BackboneSpec
from features.backbones.build import IMAGES, fold_batch_norm, load_backbone, truncated
from features.backbones.layouts import CLASS_TOKEN
from features.backbones.spec import luma
from features.errors import FirnError
from features.images import Geometry, pixels
from features.version import install_command
from features.views import GEM_POWER
from models.predictor.backbones import way_of
from models.predictor.heads import FeatureModel, Model, NetworkModel
from models.predictor.loading import Loaded
from models.predictor.manifest import Contents, Network, Part
from models.predictor.torch_heads import calibrator, head_module

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from models.predictor.predictor import Predictor

Runner = Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any]]]  # pixels -> probabilities, calibrated ones
NAMES = ("pixels", ("proba", "calibrated"))  # of input and outputs
PARITY = 1e-4  # in probability, between the exported graph and torch
ALIKE, APART = (
    0.01,
    0.1,
)  # between the graph and a bundle of coarser precision: what is not worth a word; what is refused
_EXAMPLES = 2  # images; 1 would be taken for a constant


@dataclass(frozen=True)
class Format:
    """One row of FORMATS."""

    about: str
    suffix: str
    write: Callable[[Portable, int, Path], None]  # module, side of the square, file
    open: Callable[[Path], Runner]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the deprecation warnings of exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _program(module: Portable, side: int) -> ExportedProgram:
    import torch

    example = torch.rand(_EXAMPLES, 3, side, side) * 255
    return torch.export.export(module, (example,), dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}})


def _write_onnx(module: Portable, side: int, path: Path) -> None:
    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise FirnError(f"FORMAT=onnx needs the extra: {install_command('onnx')}; or take FORMAT=program") from None
    inputs, outputs = NAMES
    with _quiet():
        found = torch.onnx.export(
            _program(module, side), dynamo=True, input_names=[inputs], output_names=list(outputs), verbose=False
        )
        if found is None:
            raise FirnError("torch wrote no ONNX program; take FORMAT=program")
        found.save(path, external_data=False)


def _open_onnx(path: Path) -> Runner:
    try:
        import onnxruntime
    except ImportError:
        raise FirnError(f"checking an ONNX file needs onnxruntime: {install_command('onnx')}") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = NAMES

    def run(pixels: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        proba, calibrated = session.run(list(outputs), {inputs: pixels})
        return proba, calibrated

    return run


def _write_program(module: Portable, side: int, path: Path) -> None:
    import torch

    with _quiet():
        torch.export.save(_program(module, side), path)


def _open_program(path: Path) -> Runner:
    import torch

    with _quiet():
        return _of_torch(torch.export.load(path).module())


def _of_torch(module: Callable[[Any], Any]) -> Runner:
    import torch

    def run(pixels: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        with torch.inference_mode(), _quiet():
            proba, calibrated = module(torch.from_numpy(pixels))
        return proba.numpy(), calibrated.numpy()

    return run


FORMATS: dict[str, Format] = {
    "onnx": Format("ONNX, for onnxruntime and many others", ".onnx", _write_onnx, _open_onnx),
    "program": Format("torch.export, for torch of the same version or later", ".pt2", _write_program, _open_program),
}


_STORED = {"float16": torch.float16, "float32": torch.float32}
_LEAST = 1e-6  # as in `features.views`


class Portable(nn.Module):
    """Pixels (B, 3, S, S) float32 on the scale 0..255 -> probabilities and calibrated ones, (B, K) float32 each.

    Pixels are the square that the bundle's preprocessing makes of an image, grey ones three times over. All arithmetic
    is float32 or finer, whatever the bundle's own precision; what the cache rounds to float16 is rounded here too.
    Raises FirnError for networks that see squares of different sizes.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Take a bundle in memory, on the CPU."""
        super().__init__()
        contents, specs = loaded.contents, loaded.specs
        _check_one_square(contents, specs)
        self.trunks = nn.ModuleList(_trunk(n, r) for n, r in zip(contents.networks, specs, strict=True))
        stored = [contents.networks[part.networks[0]].key.stored for part in contents.parts]
        self.heads = nn.ModuleList(map(_head, contents.parts, loaded.models, stored))
        self.places = [part.networks for part in contents.parts]
        self.vote = head_module("stack", loaded.stack) if loaded.stack else None
        self.calibrate = calibrator(contents.calibration)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and calibrated probabilities."""
        seen = [trunk(pixels) for trunk in self.trunks]
        each = [
            torch.softmax(head([seen[i] for i in places]).double(), 1)
            for head, places in zip(self.heads, self.places, strict=True)
        ]
        proba = each[0] if self.vote is None else torch.softmax(self.vote(torch.stack(each, 1)), 1)
        return proba.float(), self.calibrate(proba).float()


def _check_one_square(contents: Contents, specs: Sequence[BackboneSpec]) -> None:
    ways = {r.geometry(way_of(n.key.preprocess)) for n, r in zip(contents.networks, specs, strict=True)}
    if len(ways) > 1:
        lines = "; ".join(sorted(way.describe() for way in ways))
        raise FirnError(f"{contents.name} sees images in different ways ({lines}), and an export takes one square")


class _Normalised(nn.Module):
    """Pixels as a network expects them."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        seen = luma(pixels) if self.mean.numel() == 1 else pixels
        return {IMAGES: (seen / 255 - self.mean) / self.std}


class _Trunk(_Normalised):
    """A frozen network: its blocks' maps."""

    def __init__(self, network: Network, spec: BackboneSpec) -> None:
        super().__init__(spec)
        part = truncated(spec, network.after) if network.after else spec
        self.network = fold_batch_norm(load_backbone(part))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.network(super().forward(pixels)[IMAGES])
        return maps


def _trunk(network: Network, spec: BackboneSpec) -> nn.Module:
    return _Normalised(spec) if network.after == IMAGES else _Trunk(network, spec)


class _Rounded(nn.Module):
    """What the cache would have stored."""

    def __init__(self, stored: str) -> None:
        super().__init__()
        self.stored = _STORED[stored]

    def forward(self, values: Tensor) -> Tensor:
        return values.to(self.stored).float()


class _Pooled(nn.Module):
    """Pooled blocks side by side, then a head."""

    def __init__(self, part: Part, head: nn.Module, stored: str) -> None:
        super().__init__()
        self.blocks, self.head, self.rounded = part.blocks, head, _Rounded(stored)
        self.pools = POOLING[part.pool]

    def forward(self, seen: list[dict[str, Tensor]]) -> Tensor:
        ends = [(some, block) for some, blocks in zip(seen, self.blocks, strict=True) for block in blocks]
        out: Tensor = self.head(torch.cat([pool(*end, self.rounded) for end in ends for pool in self.pools], 1))
        return out


class _OnMaps(nn.Module):
    """One block's maps, then a head, or the tail of a fine-tuned network."""

    def __init__(self, block: str, head: nn.Module, stored: str) -> None:
        super().__init__()
        self.block, self.head, self.rounded = block, head, _Rounded(stored)

    def forward(self, seen: list[dict[str, Tensor]]) -> Tensor:
        maps = seen[0][self.block]
        out: Tensor = self.head(maps if self.block == IMAGES else self.rounded(maps))
        return out


def _head(part: Part, model: Model, stored: str) -> nn.Module:
    if isinstance(model, NetworkModel):
        return _OnMaps(part.blocks[0][-1], model.network, stored)
    if not isinstance(model, FeatureModel):
        raise FirnError(f"{part.head} cannot be exported")
    module = head_module(part.head, model.head)
    return _Pooled(part, module, stored) if part.pool else _OnMaps(part.blocks[0][-1], module, stored)


Rounding = Callable[[Tensor], Tensor]
Seen = dict[str, Tensor]  # what a network gives: maps of its blocks, class tokens


def _mean(seen: Seen, block: str, rounded: Rounding) -> Tensor:
    return rounded(seen[block].mean((2, 3)))


def _highest(seen: Seen, block: str, rounded: Rounding) -> Tensor:
    return rounded(seen[block].amax((2, 3)))


def _class_token(seen: Seen, block: str, rounded: Rounding) -> Tensor:
    return rounded(seen[block + CLASS_TOKEN])


def _gem(seen: Seen, block: str, rounded: Rounding) -> Tensor:
    return rounded(seen[block]).clamp_min(_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


def _grid(seen: Seen, block: str, rounded: Rounding, cells: int) -> Tensor:
    return adaptive_avg_pool2d(rounded(seen[block]), cells).flatten(1)


POOLING: dict[str, tuple[Callable[[Seen, str, Rounding], Tensor], ...]] = {  # the rows of features.views.POOLS in torch
    "avg": (_mean,),
    "max": (_highest,),
    "cls": (_class_token,),
    "both": (_mean, _highest),
    "gem": (_gem,),
    "grid2": (partial(_grid, cells=2),),
    "grid3": (partial(_grid, cells=3),),
}


class Trial(NamedTuple):
    """Images that an export is checked on."""

    words: str
    images: list[bytes | NDArray[Any]]
    drawn: bool = False  # by Firn, unlike any image that a model was made for


class Agreement(NamedTuple):
    """How far an exported graph is from the bundle, on the images of a trial."""

    trial: Trial
    of_torch: float  # the largest difference in probability from torch, both in float32
    of_bundle: float  # and from the bundle in its own precision
    changed: int  # images that are decided otherwise, at the bundle's default operating point
    precision: str  # the bundle's

    @property
    def words(self) -> str:
        """Return what a summary and a card say of it."""
        return (
            f"on {self.trial.words} it agrees with torch within {self.of_torch:.1g}, with the bundle in "
            f"{self.precision} within {self.of_bundle:.1g}; {self.changed} of {len(self.trial.images)} decisions change"
        )

    @property
    def doubt(self) -> str:
        """Return a warning where the graph is not quite the bundle: a decision changes, or more than ALIKE."""
        if not self.changed and self.of_bundle <= ALIKE:
            return ""
        return (
            f"the graph computes in float32 and the bundle in {self.precision}: probabilities differ by up to "
            f"{self.of_bundle:.2g}, {self.changed} of {len(self.trial.images)} decisions change; choose the threshold "
            "anew on images of yours, or make the bundle of features with PRECISION=float32"
        )

    def check(self) -> None:
        """Raise FirnError for a graph that is not the bundle.

        That is where float32 differs from float32 by more than PARITY, or, on images that are none of Firn's own
        drawing, the probability of the bundle's coarser precision by more than APART.
        """
        alike = [("torch", self.of_torch), ("the bundle", self.of_bundle)][: 2 if self.precision == "float32" else 1]
        for whom, off in alike:
            if not off <= PARITY:
                raise FirnError(
                    f"the exported graph differs by {off:.2g} from {whom} on {self.trial.words}, "
                    f"more than {PARITY:g}; it was not kept; take another FORMAT="
                )
        if not self.trial.drawn and not self.of_bundle <= APART:
            raise FirnError(
                f"the graph, in float32, differs by up to {self.of_bundle:.2g} in probability from the bundle in "
                f"{self.precision} on {self.trial.words}, more than {APART:g}, and decides {self.changed} otherwise; "
                "it was not kept; extract with PRECISION=float32, train and bundle again, which agrees"
            )


def check_export(run: Runner, module: Portable, predictor: Predictor, trial: Trial) -> Agreement:
    """Compare a graph with torch, all images at once and one alone, and with the bundle in its own precision.

    Raises FirnError as `Agreement.check`.
    """
    squares = _squares(trial.images, predictor.geometry)
    with torch.inference_mode():
        expected = [out.numpy() for out in module(torch.from_numpy(squares))]
    together, alone = run(squares), run(squares[:1])
    off = max(float(np.abs(a - b).max()) for a, b in zip(together, expected, strict=True))
    off = max(off, *(float(np.abs(a - b[:1]).max()) for a, b in zip(alone, expected, strict=True)))
    own, threshold = predictor(trial.images), predictor.threshold()
    decided = together[0].argmax(axis=1) if threshold is None else together[0][:, 1] >= threshold
    names = "/".join(sorted({network.key.precision for network in predictor.contents.networks}))
    apart, changed = float(np.abs(together[0] - own.proba).max()), int((decided != own.decision).sum())
    found = Agreement(trial, off, apart, changed, names)
    found.check()
    return found


def _squares(images: Sequence[bytes | NDArray[Any]], geometry: Geometry) -> NDArray[np.float32]:
    """Return images as the graph takes them, (n, 3, S, S) float32 on the scale 0..255."""
    from models.predictor.predictor import encoded

    each = [pixels(encoded(image), geometry, name="an image").astype(np.float32) for image in images]
    return np.stack([np.broadcast_to(square, (3, *square.shape[1:])) for square in each])
