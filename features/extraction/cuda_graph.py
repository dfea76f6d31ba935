"""A step recorded on a GPU and replayed as a whole, so that the CPU launches no kernel; copies run beside it."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_WARM_UP = 3  # calls before the recording, in which libraries choose kernels and take their memory
_SLOTS = 2  # batches on their way to the GPU: one travels while the other is computed
COMPILE_FROM = 1_000_000  # images: below, the seconds that torch.compile takes are not won back


def compiling_pays(device: str, images: int) -> bool:
    """Tell whether torch.compile is worth its time: on a GPU, for a large data set, with a C compiler and headers.

    `images` is the size of the whole data set, not of what it lacks, so that a run that is resumed rounds as before.
    """
    compiler = find_spec("triton") is not None and any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()  # which triton includes
    return device.startswith("cuda") and images >= COMPILE_FROM and compiler and headers


class _Streams(NamedTuple):
    """Where a device works besides the stream that computes."""

    recording: torch.cuda.Stream
    entering: torch.cuda.Stream  # pixels
    leaving: torch.cuda.Stream  # features


@cache
def _streams(device: torch.device) -> _Streams:
    """Return the streams of a device, always the same ones.

    torch gives out 32 in turn, so that a new one may be that on which another thread records; and
    `torch.cuda.graph` would record on a stream of the first device that it was used on, whatever the device.
    """
    return _Streams(*(torch.cuda.Stream(device) for _ in _Streams._fields))  # type: ignore[no-untyped-call]


class Replay:
    """A CUDA graph of `step` for inputs of one shape. Called from one thread."""

    def __init__(self, step: Callable[[Tensor], dict[str, Tensor]], example: Tensor) -> None:
        """Record `step` on an example that is on the device. Raises torch.OutOfMemoryError."""
        self.count = 0  # of replays
        self._device, self._input = example.device, example.clone()
        with torch.cuda.device(self._device):  # streams and recordings are the current device's, in every thread anew
            self._record(step)
            self._pinned = [torch.empty_like(example, device="cpu", pin_memory=True) for _ in range(_SLOTS)]
            self._staged = [torch.empty_like(example) for _ in range(_SLOTS)]
            # Blocking: who waits sleeps, and leaves its core to those who decode.
            self._arrived = [torch.cuda.Event(blocking=True) for _ in range(_SLOTS)]  # type: ignore[no-untyped-call]
            self._used = [torch.cuda.Event() for _ in range(_SLOTS)]  # type: ignore[no-untyped-call]

    def _record(self, step: Callable[[Tensor], dict[str, Tensor]]) -> None:
        stream = _streams(self._device).recording
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                step(self._input)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Writers of other entries fetch their features meanwhile: what other threads do is no part of the recording.
        # A recording that fails leaves its stream the current one, on which `made` would find nothing.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._outputs = step(self._input)

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what `step` makes of pixels in the memory of the host; comes back before the GPU is done."""
        slot, self.count = self.count % _SLOTS, self.count + 1
        with torch.cuda.device(self._device):
            compute, entering = torch.cuda.current_stream(), _streams(self._device).entering
            self._arrived[slot].synchronize()  # the pixels that lay in the slot have left it
            self._pinned[slot].copy_(pixels)
            with torch.cuda.stream(entering):
                entering.wait_event(self._used[slot])
                self._staged[slot].copy_(self._pinned[slot], non_blocking=True)
                self._arrived[slot].record()
            compute.wait_event(self._arrived[slot])
            self._input.copy_(self._staged[slot])
            self._used[slot].record()
            self._graph.replay()
            return {name: output.clone() for name, output in self._outputs.items()}  # the next replay overwrites them


def made(named: Mapping[str, Tensor]) -> torch.cuda.Event | None:
    """Return the event after which features that this thread asked a GPU for are there; None for those of a CPU."""
    device = next(iter(named.values())).device
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def fetched(named: Mapping[str, Tensor], after: torch.cuda.Event) -> dict[str, Tensor]:
    """Return features in the memory of the host, copied on a stream of their own beside what is computed next.

    `after` is what `made` said of them: not those of later batches are waited for.
    """
    stream = _streams(next(iter(named.values())).device).leaving
    stream.wait_event(after)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        found = {name: torch.empty_like(t, device="cpu", pin_memory=True) for name, t in named.items()}
        for name, tensor in named.items():
            found[name].copy_(tensor, non_blocking=True)
        copied.record()
    copied.synchronize()
    return found
