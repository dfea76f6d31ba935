"""The forward stage: a batch of pixels -> pooled features and maps of every block, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.functional import embedding, max_pool2d

from features.backbones.build import load_backbone, refined
from features.backbones.spec import BackboneSpec, luma
from features.devices import first_words, fitting, out_of_memory
from features.errors import FirnError
from features.extraction.cuda_graph import Replay, fetched, made
from features.extraction.onednn import pack, packs
from features.progress import say

_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Step: TypeAlias = Callable[[Tensor], dict[str, Tensor]]  # from a batch of pixels to features


@contextmanager
def float32_products(kind: str) -> Iterator[None]:
    """Have NVIDIA's libraries multiply float32 numbers as they are ("ieee") or rounded ("tf32") during a block."""
    libraries: Any = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [library.fp32_precision for library in libraries]
    try:
        for library in libraries:
            library.fp32_precision = kind
        yield
    finally:
        for library, as_before in zip(libraries, before, strict=True):
            library.fp32_precision = as_before


class Forward:
    """A frozen backbone on its device, called with batches of one fixed size.

    The batch size is fixed (short batches are padded) because kernels are chosen by it: this way a row's features do
    not depend on which run, or which batch, its image came in.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        maps: Sequence[str] = (),
        device: str = "cpu",
        precision: str = "float32",
        stored: str = "float16",
        batch_size: int = 32,
        compiled: bool = False,
    ) -> None:
        """Take a backbone, the blocks whose maps are kept, and whether torch.compile shall make the GPU's kernels."""
        self.maps, self.batch_size = tuple(maps), batch_size
        self._device, self._dtype = torch.device(device), _DTYPES[precision]
        self._products = "tf32" if precision == "tf32" else "ieee"  # of float32 numbers, on a GPU
        self._stored = _DTYPES[stored]
        network = load_backbone(spec)
        with fitting("the network"):
            self._mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
            self._std = torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
            self._greys = self._normal(torch.arange(256, device=device).view(256, 1, 1, 1)).flatten(1)  # (256, C)
            self._module = self._fast(network, spec.size)
        self._steps: dict[object, Step] = {}  # on a GPU, by the shape and type of pixels
        # Not self._features itself: what holds itself keeps its memory on the GPU until Python looks for such.
        self._compiled: Step | None = torch.compile(self._features, dynamic=False) if compiled else None

    def _fast(self, network: fx.GraphModule, side: int) -> nn.Module:
        """Return the network as this device runs it best."""
        # Traced once more, into the blocks that torchvision keeps whole; batch-norm is folded into the convolutions
        # before rounding: fewer passes and less rounding.
        folded = refined(network)
        moved = folded.to(self._device, self._dtype).to(memory_format=torch.channels_last).eval()
        if folded is not network and self._device.type == "cpu" and packs(self._dtype):
            return pack(moved, (self.batch_size, self._mean.numel(), side, side))
        return moved

    def __call__(self, pixels: NDArray[np.generic]) -> dict[str, Tensor]:
        """Return {"pooled/<block>/avg": (n, C), ".../max": (n, C), "maps/<block>": (n, C, H, W)}, still on the device.

        Transformers with a class token give "pooled/<block>/cls" (n, C) too.

        `pixels` is (n, 1 or 3, S, S), uint8 or float32 on the scale 0..255. On a GPU that runs out of memory the batch
        size is halved and the batch tried again.
        """
        while True:
            try:
                with float32_products(self._products) if self._device.type == "cuda" else nullcontext():
                    return self._whole(pixels)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise FirnError(
                        f"not even one image fits the GPU's memory ({first_words(error)}); run again with DEVICE=cpu"
                    ) from None
            self.batch_size //= 2  # here, where the error does not hold on any more to what was computed
            self._steps.clear()
            torch.cuda.empty_cache()

    def _whole(self, pixels: NDArray[np.generic]) -> dict[str, Tensor]:
        """Run as many batches as it takes."""
        pieces = [self._run(pixels[i : i + self.batch_size]) for i in range(0, len(pixels), self.batch_size)]
        return pieces[0] if len(pieces) == 1 else {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}

    @torch.inference_mode()
    def _run(self, pixels: NDArray[np.generic]) -> dict[str, Tensor]:
        """Run one batch of at most the fixed size."""
        n = len(pixels)
        if n < self.batch_size:
            pixels = np.concatenate([pixels, np.zeros((self.batch_size - n, *pixels.shape[1:]), pixels.dtype)])
        named = self._step(pixels)(torch.from_numpy(pixels))
        return {name: tensor[:n] for name, tensor in named.items()}

    @property
    def replays(self) -> int:
        """Return how many batches were replays of a recording."""
        return sum(step.count for step in self._steps.values() if isinstance(step, Replay))

    def _step(self, pixels: NDArray[np.generic]) -> Step:
        """Return what takes a whole batch from pixels to features; on a GPU a recording of it."""
        if self._device.type != "cuda":
            return self._features
        kind = (pixels.shape, pixels.dtype)
        if kind not in self._steps:
            self._steps[kind] = self._recorded(torch.from_numpy(pixels).to(self._device))
        return self._steps[kind]

    def _recorded(self, example: Tensor) -> Step:
        """Return a recording of the step, compiled where that was asked for.

        Where there is no compiling, or CUDA cannot record what a network does, it goes without, and a line says so.
        """
        for step, lost in ((self._compiled, "compiled"), (self._features, "recorded as a CUDA graph")):
            try:
                if step:
                    return Replay(step, example)
            except Exception as error:  # compilers have kinds of their own
                if out_of_memory(error):
                    raise
                say(f"not {lost}, which is slower: {first_words(error)}")
        return lambda pixels: self._features(pixels.to(self._device))

    def _features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the features of one whole batch that is on the device."""
        named: dict[str, Tensor] = {}
        for block, feature_map in self._module(self._entering(pixels)).items():
            if feature_map.ndim == 2:  # a class token, <block>/cls
                named[f"pooled/{block}"] = feature_map.to(self._stored)
                continue
            named[f"pooled/{block}/avg"] = feature_map.mean((2, 3), dtype=torch.float32).to(self._stored)
            named[f"pooled/{block}/max"] = self._maximum(feature_map).to(self._stored)
            if block in self.maps:
                named[f"maps/{block}"] = feature_map.to(self._stored).contiguous()
        return named

    def _maximum(self, feature_map: Tensor) -> Tensor:
        """Return the maximum over positions, (B, C), by the operator that is quicker on the device."""
        if self._device.type == "cuda":
            return feature_map.amax((2, 3))
        return max_pool2d(feature_map, feature_map.shape[2:]).flatten(1)

    def _entering(self, pixels: Tensor) -> Tensor:
        """Return pixels as the network wants them, channels last; grey becomes three channels here, or colour one."""
        if pixels.dtype == torch.uint8 and pixels.shape[1] == 1:  # the same numbers, looked up instead of computed
            return embedding(pixels[:, 0].int(), self._greys).permute(0, 3, 1, 2)
        if self._mean.numel() == 1 and pixels.shape[1] == 3:
            pixels = luma(pixels.float())
        return self._normal(pixels).contiguous(memory_format=torch.channels_last)

    def _normal(self, pixels: Tensor) -> Tensor:
        # A copy: deep images come as float32 already, and are somebody's.
        seen = pixels.to(torch.float32, copy=True)
        return seen.div_(255).sub(self._mean).div_(self._std).to(self._dtype)


def to_arrays(
    named: dict[str, Tensor], precision: str = "", after: torch.cuda.Event | None = None
) -> dict[str, NDArray[Any]]:
    """Bring features to the CPU; waits until the device has made them.

    In another thread than that which asked for them `after` is what `cuda_graph.made` said there. Raises FirnError
    where a value is not finite: float16 overflowed, in the arithmetic or where features are stored.
    """
    after = after or made(named)
    on_host = fetched(named, after) if after else named
    arrays = {name: tensor.contiguous().numpy() for name, tensor in on_host.items()}
    for name, array in arrays.items():
        if not _finite(array):
            finer = "run again with PRECISION=float32" if precision == "float16" else "give other WEIGHTS="
            raise FirnError(f"{name} has values beyond 65,504 in {precision or 'this precision'}, or none; {finer}")
    return arrays


def _finite(array: NDArray[Any]) -> bool:
    """Tell whether all values are finite; numpy takes 17 times as long for float16 as a look at their exponents."""
    if array.dtype == np.float16:
        return not ((array.view(np.uint16) & 0x7C00) == 0x7C00).any()
    return bool(np.isfinite(array).all())
