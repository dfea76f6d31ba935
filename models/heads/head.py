"""What every head is, how it is saved without a pickle, and early stopping for those that torch trains."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from features.devices import device_for, out_of_memory
from features.errors import ConstantFeatures
from features.progress import say
from features.storage import write_whole
from models.folds import held_out

if TYPE_CHECKING:
    from torch import Tensor


Array = NDArray[Any]
Made = TypeVar("Made")
Form: TypeAlias = Literal["linear", "votes", "attention", "pyramid", "neighbours", "perceptron", "trees", "stack"]
_BLOCK = 512  # rows compared at once
FEWEST_FOLDS = 4  # that still leave half of the rows when two are left out


class Head(ABC):
    """A classifier on features. Construction stores, `fit` works; learned attributes end in an underscore."""

    several: ClassVar[bool] = False  # whether labels are a matrix (n, L) of findings, and probabilities too
    saved: ClassVar[Mapping[str, str]] = {}  # name in the file -> attribute, of each learned array
    classes_: NDArray[np.int64]  # (K,)
    chosen_: dict[str, Any]  # what inner folds or early stopping chose
    device_: str = "cpu"  # where it was computed

    def __init__(self, *, seed: int = 0, device: str = "cpu") -> None:
        """Store the seed, and the device for heads that can use one: "cpu", "cuda[:n]", or "auto" where it pays."""
        self.seed, self.device, self.chosen_ = seed, device, {}

    @abstractmethod
    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Learn from X (n, d) float32, or (n, C, H, W) for map heads, and y (n,) in 0..K-1.

        Rows of one group never stand on both sides of an inner split.
        """

    @abstractmethod
    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K), rows summing to 1."""

    def on_device(self, numbers: int, work: Callable[[str], Made]) -> Made:
        """Return work(device) on the device for so many numbers; on the CPU, and say so, where they do not fit a GPU.

        FirnError for a GPU that was named and is not there.
        """
        self.device_ = device_for(self.device, numbers)
        if self.device_ == "cpu":
            return work("cpu")  # without torch
        import torch

        try:
            return work(self.device_)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            say(f"{numbers:,} numbers and what is made of them do not fit the memory of {self.device_}; on the CPU now")
        torch.cuda.empty_cache()
        self.device = self.device_ = "cpu"
        return work("cpu")

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return what was learned: plain values and arrays."""
        return {}, {name: getattr(self, attribute) for name, attribute in self.saved.items()}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over what `state` returned."""
        for name, attribute in self.saved.items():
            setattr(self, attribute, arrays[name])
        return self


@runtime_checkable
class Nested(Protocol):
    """A head with a nested cross-validation of its own, cheaper than one fit per fold."""

    def fit_folds(
        self, X: Any, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None]
    ) -> NDArray[np.float64] | None:
        """Fit on all rows and return probabilities without each fold, (F, n, K), all choices made inside the others.

        [f] is of models that have not seen fold f: of its own rows the one fitted on all others, the nested
        out-of-fold probabilities; of other rows one that has not seen their fold either. None where these folds need
        one fit after the other.
        """


@dataclass(frozen=True)
class HeadRow:
    """One row of HEADS.

    `form` is what was learned, and all that others need to know: `models.predictor.torch_heads.MODULES` exports by it,
    `models.explain.class_maps.CLASS_MAPS` explains by it, `models.predictor.heads.READERS` loads by it.
    """

    make: Callable[..., Head]
    form: Form
    about: str
    on_disk: bool = False  # whether features larger than memory will do: `features.cache.reader.FeatureRows`
    random: bool = False  # whether training draws at random, so that SEEDS= varies it; else they vary the folds
    findings: Callable[..., Head] | None = None  # the head for several findings per image; None: it knows one alone
    input: str = "pooled"  # or "maps", or "runs": the predictions of other heads, (n, M, K)


def save_head(folder: Path, name: str, head: Head) -> None:
    """Write `head.json` and `head.safetensors` (and the text of trees, if any) so that each is absent or whole."""
    from safetensors.numpy import save

    values, arrays = head.state()
    if text := values.pop("text", None):
        write_whole(folder / "lightgbm.txt", [text.encode()])
    if arrays:
        write_whole(folder / "head.safetensors", [save({k: np.ascontiguousarray(a) for k, a in arrays.items()})])
    content = {"head": name, "classes": len(head.classes_), "chosen": head.chosen_, "values": values}
    content |= {"findings": True} if head.several else {}
    write_whole(folder / "head.json", [json.dumps(content, indent=1).encode()])


def silent(done: int, total: int) -> None:
    """Show no progress."""


def standardisation(X: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each feature, (d,) each; constant features get 1."""
    mean = X.mean(axis=0, dtype=np.float64)
    std = np.sqrt(np.maximum(np.square(X, dtype=np.float64).mean(axis=0) - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1).astype(np.float32)


def check_varied(X: Any) -> None:
    """Raise ConstantFeatures where all rows of X (n, ...), an array or rows on the disk, are equal."""
    if all((X[i : i + _BLOCK] == X[:1]).all() for i in range(0, len(X), _BLOCK)):
        raise ConstantFeatures(
            f"features that differ between images expected, but all {len(X)} images to learn from have the same: are "
            "they all alike? Look at them, run: make doctor"
        )


def log_loss(y: NDArray[np.int64], proba: NDArray[np.float64]) -> float:
    """Return the mean negative log probability of the true class."""
    return float(-np.log(np.clip(proba[np.arange(len(y)), y], 1e-15, None)).mean())


MOST_EPOCHS, PATIENCE, BATCH = 60, 5, 128


def tensor_on(device: str, array: Array) -> Tensor:
    """Return an array as a tensor on a device, as `Head.on_device` names it."""
    import torch

    return torch.from_numpy(array).to(device.removeprefix("torch-"))


def train_until_stale(
    optimiser: Any,
    loss: Callable[[NDArray[np.intp]], Tensor],
    parameters: Sequence[Tensor],
    y: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    *,
    seed: int,
) -> int:
    """Run epochs until the loss of a grouped fifth of the rows has not fallen for PATIENCE epochs; return how many.

    `loss` maps row numbers to their mean loss. The parameters end as they were after the best epoch.
    """
    import torch

    held = held_out(y, groups, seed=seed)
    train, watched = np.flatnonzero(~held), np.flatnonzero(held)
    rng = np.random.default_rng(seed)
    best, epoch_of_best, kept = np.inf, 0, [p.detach().clone() for p in parameters]
    for epoch in range(1, MOST_EPOCHS + 1):
        order = rng.permutation(train)
        for start in range(0, len(order), BATCH):
            optimiser.zero_grad()
            loss(np.sort(order[start : start + BATCH])).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            pieces = np.array_split(watched, max(1, len(watched) // (4 * BATCH)))
            now = sum(float(loss(piece)) * len(piece) for piece in pieces) / len(watched)
        if now < best:
            best, epoch_of_best, kept = now, epoch, [p.detach().clone() for p in parameters]
        if epoch - epoch_of_best >= PATIENCE:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return epoch_of_best
