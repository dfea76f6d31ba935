"""Maximum pooling on a CPU of bfloat16 maps that are never negative, as they are after ReLU: the same numbers, sooner.

Of numbers that are not negative the larger one has the larger bits. So whole rows and then columns are compared as
integers; torch's kernel widens bfloat16 on the way, and also keeps where each maximum was. (float32 gains nothing.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["Peaks", "never_negative"]

_KEEP = (nn.MaxPool2d, nn.Dropout, nn.Identity)  # give what they get, or zero


class Peaks(nn.Module):
    """nn.MaxPool2d, without dilation, of bfloat16 maps (B, C, H, W) that are never negative."""

    def __init__(self, layer: nn.MaxPool2d) -> None:
        """Take a layer for which `fits` holds."""
        super().__init__()
        kernels, strides, paddings = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        self._sizes = list(zip(kernels, strides, paddings, strict=True))
        self._ceil = layer.ceil_mode

    @staticmethod
    def fits(layer: nn.MaxPool2d) -> bool:
        """Tell whether this can stand in for a layer: the place in the middle of each window has to lie inside."""
        kernels, paddings = _pair(layer.kernel_size), _pair(layer.padding)
        if _pair(layer.dilation) != (1, 1) or layer.return_indices or (layer.ceil_mode and any(paddings)):
            return False
        return all(2 * padding < kernel for kernel, padding in zip(kernels, paddings, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H', W')."""
        bits = x.view(torch.int16)
        for dim, (kernel, stride, padding) in enumerate(self._sizes, start=2):
            bits = _along(bits, dim, kernel, stride, padding, self._ceil)
        return bits.view(torch.bfloat16)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _along(x: Tensor, dim: int, kernel: int, stride: int, padding: int, ceil: bool) -> Tensor:
    """Return the maxima of windows along one dimension; what lies outside is no part of a window."""
    length = x.shape[dim]
    windows = (length + 2 * padding - kernel + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (windows - 1) * stride >= length:
        windows -= 1  # as torch does: a window begins inside
    out: Tensor | None = None
    # The place `padding` of a window lies inside for all windows, so it comes first; it is written, others compared.
    for place in sorted(range(kernel), key=lambda place: place != padding):
        first = max(0, -(-(padding - place) // stride))
        last = min(windows, (length - 1 + padding - place) // stride + 1)
        begin = first * stride + place - padding
        some = x.narrow(dim, begin, (last - first - 1) * stride + 1)
        some = some[:, :, ::stride] if dim == 2 else some[..., ::stride]
        if out is None:
            out = some.contiguous(memory_format=torch.channels_last)
            out = out.clone(memory_format=torch.channels_last) if out.data_ptr() == x.data_ptr() else out
        else:
            part = out.narrow(dim, first, last - first)
            torch.maximum(part, some, out=part)
    assert out is not None
    return out


def never_negative(network: fx.GraphModule, node: Any, is_relu: Callable[[nn.Module], bool]) -> bool:
    """Tell whether a map in a network cannot be negative, for all that its graph says. `is_relu` knows more modules."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_function" and node.target is torch.cat:
        return all(never_negative(network, part, is_relu) for part in node.args[0])  # type: ignore[union-attr]
    if node.op == "call_function" and node.target in (torch.relu, nn.functional.relu):
        return True
    if node.op != "call_module":
        return False
    module = network.get_submodule(str(node.target))
    if isinstance(module, nn.ReLU | nn.ReLU6) or is_relu(module):
        return True
    return isinstance(module, (*_KEEP, Peaks)) and never_negative(network, node.args[0], is_relu)
