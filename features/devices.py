"""What this machine has, and which device and precision "auto" stands for, found out without importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import FirnError, unknown

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")
_FLOAT16_MAX = 65504.0
_NO_MEMORY = (  # where it is a library of CUDA that says so: cuDNN has no engine whose workspace there is room for
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
_SHARE = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time, and in how many
_PAYS_FROM = 4_000_000  # numbers: below, a CPU is done with them while torch and the GPU start (some seconds)
BATCH = {"cpu": 8, "cuda": 256}  # images per forward pass; on a CPU few, so that maps stay in reused memory


def memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """Return how many cores this process may use: of its affinity (SLURM, taskset), and of its container's share."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _SHARE.read_text().split())
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return own
    return max(1, min(own, -(-quota // period)))


def choose_device(wanted: str) -> str:
    """Return "cpu" or "cuda[:n]" for "auto", "cpu", "cuda" or "cuda:1".

    "auto" is the GPU where the NVIDIA driver's device file is there and CUDA_VISIBLE_DEVICES does not hide it.
    """
    if wanted not in DEVICES and not re.fullmatch(r"cuda:\d+", wanted):
        raise unknown("device", wanted, DEVICES)
    if wanted != "auto":
        return wanted
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if _has_driver() and not hidden else "cpu"


def _has_driver() -> bool:
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg"))


def checked(name: str) -> str:
    """Return the device after asking torch whether it is really there."""
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise FirnError("no usable CUDA device (torch.cuda.is_available() is False); run again with DEVICE=cpu")
    if name.startswith("cuda:") and int(name[5:]) >= (count := torch.cuda.device_count()):
        raise FirnError(f"expected DEVICE= to name one of {count} GPUs, got {name}; run again with DEVICE=cuda")
    return name


def device_for(wanted: str, numbers: int) -> str:
    """Return where arrays of so many numbers are computed with, asking torch only where a GPU may be meant.

    "auto" is a GPU where torch finds one and they are enough to pay for its start; "torch-cpu" runs a GPU's code on the
    CPU, in tests. FirnError for a GPU that was named and is not there.
    """
    if wanted in ("cpu", "torch-cpu"):
        return wanted
    if wanted != "auto":
        return checked(choose_device(wanted))
    if numbers < _PAYS_FROM or choose_device(wanted) == "cpu":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def out_of_memory(error: Exception) -> bool:
    """Tell whether a GPU had no memory left, be it torch that says so or cuBLAS, cuDNN or cuSOLVER."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _NO_MEMORY)


def first_words(error: Exception) -> str:
    """Return how an error begins, in one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:100].partition(". ")[0] or type(error).__name__


@contextmanager
def fitting(what: str, instead: str = "DEVICE=cpu") -> Iterator[None]:
    """Raise FirnError where a GPU has no room for something in a block; most often other programs have taken it."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise FirnError(
            f"{what} does not fit the GPU's free memory ({first_words(error)}; nvidia-smi tells who has it); "
            f"run again with {instead}"
        ) from None


def gpu_utilisation(device: str) -> list[int]:
    """Return the percentage of the last moments in which a GPU was at work, in a list.

    Empty for a CPU, and where the package nvidia-ml-py, which torch asks, is not installed.
    """
    import torch

    if not device.startswith("cuda"):
        return []
    try:
        return [torch.cuda.utilization(device)]
    except Exception:  # a driver that does not tell raises kinds of its own
        return []


def choose_precision(wanted: str, device: str, largest: float = 0.0) -> str:
    """Return the arithmetic of the forward pass: for "auto" the half precision that the hardware has natively.

    float16 on a GPU, or bfloat16 where the network's `largest` value comes near what float16 can hold; bfloat16 on a
    CPU with AVX512-BF16 or AMX-BF16 instructions, else float32. "tf32" is float32 with
    products of rounded numbers, as NVIDIA's tensor cores do them; FirnError for it on a CPU.
    """
    if wanted not in PRECISIONS:
        raise unknown("precision", wanted, PRECISIONS)
    if wanted == "tf32" and not device.startswith("cuda"):
        raise FirnError("PRECISION=tf32 needs a GPU; run again with PRECISION=float32 or DEVICE=cuda")
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "float16" if largest < _FLOAT16_MAX / 8 else "bfloat16"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & _cpu_flags() else "float32"


def _cpu_flags() -> set[str]:
    """Return the processor's features as Linux lists them; empty elsewhere."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return set()
