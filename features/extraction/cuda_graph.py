"""On a GPU: a step recorded once and replayed as a whole, so that the CPU does not launch its kernels one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3  # calls before the recording, in which libraries choose kernels and take their memory


class Replay:
    """A CUDA graph of `step` for inputs of one shape. Called from one thread."""

    def __init__(self, step: Callable[[Tensor], dict[str, Tensor]], example: Tensor) -> None:
        """Record `step` on an example that is on the device. Raises torch.OutOfMemoryError."""
        self._device, self._input = example.device, example.clone()
        with torch.cuda.device(self._device):  # streams and recordings are the current device's, in every thread anew
            self._record(step)

    def _record(self, step: Callable[[Tensor], dict[str, Tensor]]) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                step(self._input)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Writers of other writers fetch their features meanwhile: what other threads do is no part of the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = step(self._input)

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what `step` makes of pixels in the memory of the host; comes back before the GPU is done."""
        with torch.cuda.device(self._device):
            self._input.copy_(pixels.pin_memory(), non_blocking=True)
            self._graph.replay()
            return {name: output.clone() for name, output in self._outputs.items()}  # the next replay overwrites them
