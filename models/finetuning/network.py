"""The thawed network: the tail of a backbone, the mean over positions, a linear classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.finetuning.convolution import use_products

__all__ = ["Thawed", "arithmetic", "parameter_groups", "set_mode", "start_from_probe"]

_NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Thawed(nn.Module):
    """Maps at the boundary (B, C, H, W) -> logits (B, K)."""

    def __init__(self, tail: nn.Module, width: int, classes: int, *, seed: int = 0) -> None:
        """Take a tail that ends in `width` channels; the classifier is drawn as torch draws a linear layer."""
        super().__init__()
        self.tail = tail.requires_grad_(True)
        use_products(self.tail)
        self.classifier = nn.Linear(width, classes)
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                parameter.copy_((2 * torch.rand(parameter.shape, generator=drawn) - 1) * width**-0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits, (B, K) float32."""
        pooled = self.tail(maps).mean((2, 3), dtype=torch.float32)
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.classifier(pooled)
        return logits

    def last_maps(self, maps: Tensor) -> Tensor:
        """Return the last block's maps, (B, C', H', W')."""
        out: Tensor = self.tail(maps)
        return out


def start_from_probe(network: Thawed, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> None:
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
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()


def parameter_groups(network: nn.Module, decay: float) -> list[dict[str, object]]:
    """Return the parameters in two groups: weights, which decay, and biases and normalisation, which do not."""
    still = {id(p) for m in network.modules() if isinstance(m, _NORMALISATION) for p in m.parameters(recurse=False)}
    decayed = [p for p in network.parameters() if p.ndim > 1 and id(p) not in still]
    others = [p for p in network.parameters() if p.ndim <= 1 or id(p) in still]
    return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Multiply in bfloat16 unless float32 is asked for; weights stay in float32, and bfloat16 needs no loss scaling."""
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision != "float32"):
        yield
