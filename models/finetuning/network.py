"""The fine-tuned network: the tail of a backbone, the mean over positions, a linear classifier; several as one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from features.extraction.forward import float32_products


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


_FEW = 4  # channels of images, whose gradient in bfloat16 takes several times that in float32
_POSITIONS = 256  # on more of them oneDNN's own gradient is the faster one


class Convolution(nn.Conv2d):
    """A Conv2d whose gradient is fast where autocast multiplies in bfloat16 on a CPU.

    There oneDNN's own kernel for the weight's gradient is slow for images, which are convolved in float32, and for
    small maps, where matrix products give it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, (B, C', H', W')."""
        if not (input.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return super().forward(input)
        if self.in_channels <= _FEW:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        if input.shape[2] * input.shape[3] > _POSITIONS * self.stride[0] * self.stride[1]:
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


_NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class FinetunedNetwork(nn.Module):
    """Maps at the boundary (B, C, H, W), or images (B, 3, S, S) -> logits (B, K)."""

    def __init__(
        self, tail: nn.Module, width: int, classes: int, *, seed: int = 0, frozen: Collection[str] = ()
    ) -> None:
        """Take a tail that ends in `width` channels, and which of its parameters stay as they are.

        The classifier is drawn as torch draws a linear layer.
        """
        super().__init__()
        self.tail = tail
        for name, parameter in tail.named_parameters():
            parameter.requires_grad_(name not in frozen)
        use_products(self.tail)
        self.classifier = nn.Linear(width, classes)
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                parameter.copy_((2 * torch.rand(parameter.shape, generator=drawn) - 1) * width**-0.5)

    def forward(self, maps: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return logits, (B, K) float32; `kept` (B, width) is what pooled features are multiplied by: dropout."""
        pooled = self.tail(maps).mean((2, 3), dtype=torch.float32)
        pooled = pooled if kept is None else pooled * kept
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.classifier(pooled)
        return logits

    def last_maps(self, maps: Tensor) -> Tensor:
        """Return the last block's maps, (B, C', H', W')."""
        out: Tensor = self.tail(maps)
        return out


class Ensemble(nn.Module):
    """Several networks as one: the mean of their logits, of images and their mirror images where asked for.

    A mean of logits, and not of probabilities, so that the mean of class maps over positions is still the logit.
    """

    def __init__(self, networks: Sequence[FinetunedNetwork], *, mirrored: bool = False) -> None:
        """Take networks with the same input and classes."""
        super().__init__()
        self.networks: Any = nn.ModuleList(networks)  # of FinetunedNetwork
        self.mirrored = mirrored

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits, (B, K) float32."""
        seen = torch.cat([maps, maps.flip(3)]) if self.mirrored else maps
        logits = torch.stack([network(seen) for network in self.networks]).mean(0)
        n = maps.shape[0]  # an export follows the shape, and not len()
        return (logits[:n] + logits[n:]) / 2 if self.mirrored else logits


def start_from_probe(network: FinetunedNetwork, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> None:
    """Give the classifier the weights (K or 1, d) and (K or 1,) of a linear head on average-pooled features."""
    if len(coef) == 1:  # one logit against zero is two logits of half the size and opposite sign
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(coef))
        network.classifier.bias.copy_(torch.from_numpy(intercept))


def set_mode(network: nn.Module, *, training: bool, norm: str) -> None:
    """Put a network into eval mode, its batch normalisation into training mode where it is to adapt.

    Dropout and stochastic depth inside a tail stay off: the boundary's maps are what is varied.
    """
    network.eval()
    if training and norm == "adapt":
        for module in network.modules():
            frozen = not any(parameter.requires_grad for parameter in module.parameters())
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not frozen:
                module.train()


def parameter_groups(network: FinetunedNetwork, decay: float, last: float = 1.0) -> list[dict[str, Any]]:
    """Return the trained parameters in groups: of tail and classifier, each those that decay and those that do not.

    Biases and normalisation do not. "scale" is what the rate of a group is multiplied by: `last` for the classifier.
    """
    still = {id(p) for m in network.modules() if isinstance(m, _NORMALISATION) for p in m.parameters(recurse=False)}
    groups = []
    for part, scale in ((network.tail, 1.0), (network.classifier, last)):
        trained = [p for p in part.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1 and id(p) not in still]
        others = [p for p in trained if p.ndim <= 1 or id(p) in still]
        groups += [{"params": decayed, "weight_decay": decay, "scale": scale}] * bool(decayed)
        groups += [{"params": others, "weight_decay": 0.0, "scale": scale}] * bool(others)
    return groups


def products(precision: str, device: str) -> AbstractContextManager[None]:
    """Have a GPU multiply float32 numbers as they are during a block, or rounded where "tf32" is asked for."""
    if torch.device(device).type != "cuda":
        return nullcontext()
    return float32_products("tf32" if precision == "tf32" else "ieee")


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Multiply in bfloat16 where half precision is asked for; weights stay in float32, so no loss has to be scaled.

    float32 and tf32 are what they say; their gradients need `products` too.
    """
    half = precision in ("bfloat16", "float16")
    with products(precision, device), torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
        yield
