"""Convolutions whose weight gradient is a matrix product, for bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["Convolution", "use_products"]


class _ByProducts(torch.autograd.Function):
    """conv2d in the precision of the maps; weight, bias and their gradients stay in float32."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Return the convolution of maps (B, C, H, W) with a weight (C', C, k, l), undilated and ungrouped."""
        lowered = weight.to(maps.dtype)
        ctx.save_for_backward(maps, lowered)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return torch.conv2d(maps, lowered, None if bias is None else bias.to(maps.dtype), stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        """Return the gradients of maps, where needed, weight and bias."""
        (grad,), (maps, weight) = grads, ctx.saved_tensors
        of_maps = None
        if ctx.needs_input_grad[0]:
            of_maps = torch.ops.aten.convolution_backward(
                grad, maps, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        of_weight = _weight_gradient(grad, maps, weight, ctx.stride, ctx.padding).float()
        return of_maps, of_weight, grad.sum((0, 2, 3), dtype=torch.float32) if ctx.biased else None, None, None


def _weight_gradient(
    grad: Tensor, maps: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient (C', C, k, l): patches of the padded maps against the gradient, positions summed out."""
    (out, channels, height, width), (rows, columns) = weight.shape, grad.shape[2:]
    padded = pad(maps.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    left = grad.permute(0, 2, 3, 1).reshape(-1, out).t()
    patches = torch.cat(
        [
            padded[
                :, i : i + stride[0] * (rows - 1) + 1 : stride[0], j : j + stride[1] * (columns - 1) + 1 : stride[1]
            ].reshape(-1, channels)
            for i in range(height)
            for j in range(width)
        ],
        dim=1,
    )
    return (left @ patches).view(out, height, width, channels).permute(0, 3, 1, 2)


class Convolution(nn.Conv2d):
    """A Conv2d that computes its weight's gradient by matrix products where autocast multiplies in bfloat16 on a CPU.

    oneDNN's own kernel for it takes several times what the forward pass takes there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, (B, C', H', W')."""
        if not (input.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return super().forward(input)
        lowered = input.to(torch.get_autocast_dtype("cpu"))
        with torch.autocast("cpu", enabled=False):
            out: Tensor = _ByProducts.apply(lowered, self.weight, self.bias, self.stride, self.padding)
            return out


def use_products(network: nn.Module) -> None:
    """Give every plain Conv2d of a network that gradient, in place; names and numbers of its tensors stay."""
    for module in network.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        if plain and module.dilation == (1, 1) and not isinstance(module.padding, str):
            module.__class__ = Convolution
