"""The table FORMATS: how a torch module is written for a runtime, and opened there again to be checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features.errors import FirnError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from models.predictor.export import Portable

__all__ = ["FORMATS", "Format", "Runner"]

Runner = Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any]]]  # pixels -> probabilities, calibrated ones
NAMES = ("pixels", ("proba", "calibrated"))  # of input and outputs
_EXAMPLES = 2  # pictures; 1 would be taken for a constant


@dataclass(frozen=True)
class Format:
    """One row of FORMATS."""

    about: str
    suffix: str
    write: Callable[[Portable, int, Path], None]  # module, side of the square, file
    open: Callable[[Path], Runner]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush exporters, which announce what they will drop some day."""
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
        raise FirnError("FORMAT=onnx needs the extra: pip install -e '.[onnx]'; or take FORMAT=program") from None
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
        raise FirnError("checking an ONNX file needs onnxruntime: pip install -e '.[onnx]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = NAMES

    def run(pixels: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        proba, calibrated = session.run(list(outputs), {inputs: pixels})
        return proba, calibrated

    return run


def _write_torchscript(module: Portable, side: int, path: Path) -> None:
    import torch

    with _quiet(), torch.inference_mode():
        example = torch.rand(_EXAMPLES, 3, side, side) * 255
        trace: Any = torch.jit.trace
        torch.jit.save(trace(module, example, check_trace=False), path)


def _open_torchscript(path: Path) -> Runner:
    import torch

    load: Any = torch.jit.load
    with _quiet():
        return _of_torch(load(path))


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
    "torchscript": Format("TorchScript, for older torch and C++", ".pt", _write_torchscript, _open_torchscript),
}
