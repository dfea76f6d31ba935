"""Class maps: where in an image the evidence for each class lies, exact where a head ends in a mean over positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.finetuning.network import Ensemble, FinetunedNetwork

Array = NDArray[Any]
Floats = NDArray[np.float64]


class ClassMaps(NamedTuple):
    """What each position says for each class: mean over positions + bias is the logit, whose softmax the probability.

    Two classes with one logit have it as two of half the size and opposite sign: class 1 less class 0 is that logit.
    """

    evidence: Floats  # (n, K, H, W)
    bias: Floats  # (K,)

    def logits(self) -> Floats:
        """Return the logits, (n, K)."""
        return np.asarray(self.evidence.mean(axis=(2, 3)) + self.bias)

    def votes(self) -> Floats:
        """Return the logits that each position would give if all others were like it, (n, K, H, W)."""
        return self.evidence + self.bias[:, None, None]


def linear_class_maps(coef: Floats, intercept: Floats, maps: Array) -> ClassMaps:
    """Return the exact class maps of a linear head on average-pooled maps (n, C, H, W) of any precision.

    coef (K, C) and intercept (K,), or (1, C) and (1,) for two classes, in the units of the maps: a mean and a linear
    layer commute (Zhou et al. 2016, arXiv:1512.04150). Computed in float64.
    """
    if len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    evidence = np.einsum("kc,nchw->nkhw", coef.astype(np.float64), maps.astype(np.float64), optimize=True)
    return ClassMaps(evidence, intercept.astype(np.float64))


def network_class_maps(network: FinetunedNetwork, maps: Array) -> ClassMaps:
    """Return the exact class maps of a fine-tuned network in eval mode for its input, the boundary's maps (n, C, H, W).

    It too ends in a mean over positions and a linear layer.
    """
    import torch

    with torch.inference_mode():
        last = network.last_maps(torch.from_numpy(maps).float()).double().numpy()
        weight, bias = (p.double().numpy() for p in (network.classifier.weight, network.classifier.bias))
    return linear_class_maps(weight, bias, last)


def ensemble_class_maps(ensemble: Ensemble, maps: Array) -> ClassMaps:
    """Return the exact class maps of several networks as one, (n, K, H, W): the mean of theirs.

    Those of mirror images are mirrored back.
    """
    found = [network_class_maps(network, maps) for network in ensemble.networks]
    evidence = [one.evidence for one in found]
    if ensemble.mirrored:
        turned = np.ascontiguousarray(maps[:, :, :, ::-1])
        evidence += [network_class_maps(network, turned).evidence[:, :, :, ::-1] for network in ensemble.networks]
    return ClassMaps(np.mean(evidence, axis=0), np.mean([one.bias for one in found], axis=0))


def grad_cam(network: FinetunedNetwork | Ensemble, maps: Array, asked: Floats) -> Floats:
    """Return Grad-CAM (n, H, W) of a fine-tuned network in eval mode at its boundary, from the maps there (n, C, H, W).

    `asked` (n, K) says which sum of logits is explained for each image: 1 for a class and 0 for others, or -1 and 1.
    Channels are weighted by the mean of their gradient over positions, and what speaks against is cut off
    (Selvaraju et al. 2017, arXiv:1610.02391). That mean forgets where a channel mattered: before blocks that look at
    several positions at once, only the order of positions inside an image means something, not the level.
    """
    gradient = _of_places(_gradient(network, maps, asked))
    weighted = gradient.mean(axis=(2, 3), keepdims=True) * _of_places(maps).astype(np.float64)
    return np.asarray(np.maximum(weighted.sum(axis=1), 0))


def hires_cam(network: FinetunedNetwork | Ensemble, maps: Array, asked: Floats) -> Floats:
    """Return gradient times maps at every position, (n, H, W), for what `grad_cam` takes: signed, and not averaged.

    HiResCAM (Draelos & Carin 2020, arXiv:2011.08891), scaled by the number of positions. Right after the boundary's
    last block it is the exact class map; before more blocks it is the part of the logits that is linear there.
    """
    positions = maps.shape[3] ** 2
    product = _of_places(_gradient(network, maps, asked)) * _of_places(maps).astype(np.float64)
    return np.asarray(product.sum(axis=1) * positions)


def _of_places(maps: Array) -> Array:
    """Return square maps (n, C, W, W) without the rows above them, which hold a transformer's tokens of no place."""
    return maps[:, :, maps.shape[2] - maps.shape[3] :]


def _gradient(network: FinetunedNetwork | Ensemble, maps: Array, asked: Floats) -> Floats:
    """Return the gradient of the asked sums of logits with respect to the boundary's maps, (n, C, H, W)."""
    import torch

    X = torch.from_numpy(maps).float().requires_grad_(True)
    score = (network(X) * torch.from_numpy(asked)).sum()
    (gradient,) = torch.autograd.grad(score, X)
    return np.asarray(gradient.double().numpy())


def asked_maps(maps: Array, asked: Floats) -> Floats:
    """Return the sums (n, H, W) of class maps (n, K, H, W), weighted by `asked` (n, K)."""
    return np.asarray(np.einsum("nk,nkhw->nhw", asked, maps.astype(np.float64)))


def votes(form: str, head: Any, maps: Array) -> Floats:
    """Return what each position of maps (n, C, H, W) says for each class, (n, K, H, W), by a head of a form.

    Of several findings those are the log odds of each, (n, L, H, W).
    """
    if not head.several:
        return CLASS_MAPS[form](head, maps)
    pairs = [CLASS_MAPS[form](one, maps) for one in head.each()]
    return np.stack([pair[:, 1] - pair[:, 0] for pair in pairs], axis=1)


CLASS_MAPS: Mapping[str, Callable[[Any, Array], Floats]] = {  # form of a head -> (head, maps (n, C, H, W)) -> votes
    "linear": lambda head, maps: linear_class_maps(head.coef_, head.intercept_, maps).votes(),
    "votes": lambda head, maps: np.asarray(head.class_maps(maps), dtype=np.float64),
}
