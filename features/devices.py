"""Which device and which precision "auto" stands for, found out without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

from features.errors import FirnError, unknown

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")
_FLOAT16_MAX = 65504.0
BATCH = {"cpu": 8, "cuda": 256}  # images per forward pass; on a CPU few, so that maps stay in reused memory


def choose_device(wanted: str) -> str:
    """Return "cpu" or "cuda[:n]" for "auto", "cpu", "cuda" or "cuda:1".

    "auto" is the GPU where the NVIDIA driver's device file is there and CUDA_VISIBLE_DEVICES does not hide it.
    """
    if wanted.partition(":")[0] not in DEVICES:
        raise unknown("device", wanted, DEVICES)
    if wanted != "auto":
        return wanted
    driver = any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if driver and not hidden else "cpu"


def checked(name: str) -> str:
    """Return the device after asking torch whether it is really there."""
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise FirnError("no usable CUDA device (torch.cuda.is_available() is False); run again with DEVICE=cpu")
    return name


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
