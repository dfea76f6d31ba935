"""A frozen network for the CPU: weights laid out once as oneDNN's kernels want them, what follows a convolution fused.

torch lays the weights of a convolution out anew at every call, because they might have changed; frozen ones do not. The
operators are those that torch.compile's freezing ends in, called without compiling: there is no compiler to have and no
time to win back, so that few and many images go the same way, to the same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import relu


class Fused(NamedTuple):
    """An activation as oneDNN names it."""

    name: str
    scalars: Sequence[float] = []


_NOTHING = Fused("none")  # oneDNN's word; after a sum it is None
_RELU = Fused("relu")
_ACTIVATIONS: Mapping[object, Fused] = {
    nn.ReLU: _RELU,
    relu: _RELU,
    nn.ReLU6: Fused("hardtanh", [0.0, 6.0]),
    nn.Hardswish: Fused("hardswish"),
    nn.SiLU: Fused("swish"),
    nn.Sigmoid: Fused("sigmoid"),
}
_SUMS = (operator.add, operator.iadd, torch.add)


def packs(dtype: torch.dtype) -> bool:
    """Tell whether this machine and this torch have the operators for a number format."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedConvolution(nn.Module):
    """conv(x), or conv(x) + other, and the activation after it, in one pass over memory."""

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...]) -> None:
        """Take a layer and the shape (B, C, H, W) that it will see most, for which the layout is chosen."""
        super().__init__()
        self.activation = _NOTHING
        settings = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        lay_out: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        weight = lay_out(layer.weight.detach().to_mkldnn(), *settings, list(shape))
        self._layer = (weight, None if layer.bias is None else layer.bias.detach(), *settings)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return (B, C', H', W'); `other` has that shape too."""
        convolve: Any = torch.ops.mkldnn._convolution_pointwise
        name, scalars = self.activation
        if other is None:
            out: Tensor = convolve.default(x, *self._layer, name, scalars, "")
        else:
            out = convolve.binary(x, other, *self._layer, "add", 1.0, None if name == "none" else name, scalars, "")
        return out


def pack(network: fx.GraphModule, shape: tuple[int, int, int, int]) -> fx.GraphModule:
    """Return the network with its convolutions packed, for images of a shape (B, 3, S, S); `network` is used up.

    Other shapes work as well, more slowly. Values stay those of the network but for rounding.
    """
    shapes = _shapes(network, shape)
    for node in list(network.graph.nodes):
        layer = _module(network, node)
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            packed = PackedConvolution(layer, shapes[node.args[0]])
            network.set_submodule(node.target, packed)
            _take_sum(network, node, shapes)
            _take_activation(network, node, packed)
    network.graph.lint()
    network.recompile()
    return network


def _shapes(network: fx.GraphModule, shape: tuple[int, ...]) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape (B, ...) of every map in the network, found with one image: sooner than on "meta"."""
    found: dict[fx.Node, tuple[int, ...]] = {}

    class Look(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            found[n] = (shape[0], *out.shape[1:]) if isinstance(out, Tensor) else ()
            return out

    with torch.inference_mode():
        Look(network).run(torch.zeros((1, *shape[1:]), dtype=next(network.parameters()).dtype))
    return found


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return what uses a map, where that is one thing: a map that is a block's end as well has the output besides."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _take_sum(network: fx.GraphModule, node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> None:
    """Let a convolution add the shortcut that is added to it next, if that is there by then and of the same shape."""
    user = _only_user(node)
    if user is None or user.op != "call_function" or user.target not in _SUMS or user.kwargs:
        return
    (other,) = [a for a in user.args if a is not node] or (None,)
    before = set(_until(network, node))
    if isinstance(other, fx.Node) and other in before and shapes[other] == shapes[node]:
        node.args = (node.args[0], other)
        user.replace_all_uses_with(node)
        network.graph.erase_node(user)


def _until(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the nodes before a node."""
    nodes = list(network.graph.nodes)
    return nodes[: nodes.index(node)]


def _take_activation(network: fx.GraphModule, node: fx.Node, packed: PackedConvolution) -> None:
    """Let a convolution apply the activation that follows it; after a sum that is ReLU or none."""
    user = _only_user(node)
    if user is None:
        return
    kind: Callable[..., Any] | object = type(_module(network, user)) if user.op == "call_module" else user.target
    fused = _ACTIVATIONS.get(kind)
    if fused and (len(node.args) == 1 or fused == _RELU):
        packed.activation = fused
        user.replace_all_uses_with(node)
        network.graph.erase_node(user)
