"""The network, cut at its blocks: the frozen part, images -> {block: feature map}, and the tail that can be trained."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from features.backbones import weights
from features.backbones.registry import BACKBONES, Row, architecture
from features.backbones.spec import BackboneSpec
from features.errors import BadWeights, FirnError, UnknownName, unknown

_SLOW = "torch._dynamo.utils"  # takes 1.3 s of processor time


def _stand_in() -> ModuleType:
    """Return a module that knows what torchvision asks for, and becomes the real one where it asks for more."""
    module = ModuleType(_SLOW)

    def real(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # for Python itself asks for some
        sys.modules.pop(_SLOW, None)
        return getattr(importlib.import_module(_SLOW), name)

    vars(module).update(is_compile_supported=lambda device: False, __getattr__=real)
    return module


def _without_dynamo() -> ModuleType:
    importlib.import_module("torch")
    stand_in = sys.modules.setdefault(_SLOW, _stand_in())
    try:
        importlib.import_module("torchvision.models.feature_extraction")
        return importlib.import_module("torchvision")
    finally:
        if sys.modules.get(_SLOW) is stand_in and "torch._dynamo" not in sys.modules:
            del sys.modules[_SLOW]


torchvision: Any = _without_dynamo()
create_feature_extractor = torchvision.models.feature_extraction.create_feature_extractor
get_graph_node_names = torchvision.models.feature_extraction.get_graph_node_names


IMAGES = ""  # the boundary before the first layer: nothing stays frozen


def row(name: str) -> Row:
    """Return the hand-checked row of a backbone, or one made for any other torchvision CNN classifier."""
    name = architecture(name)
    if name in BACKBONES:
        return BACKBONES[name]
    available = torchvision.models.list_models(module=torchvision.models)
    if name not in available:
        raise unknown("backbone", name, {*BACKBONES, *available})
    best = torchvision.models.get_model_weights(name).DEFAULT
    bare = Row(name, str(best), best.url.rsplit("/", 1)[-1], {})
    return Row(name, str(best), bare.file, _stages(name, network(bare, "meta"), best.transforms().crop_size[0]))


_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_)


class _NoNumbers(TorchFunctionMode):
    """Draws nothing for the meta device, where there is nothing to fill and drawing imports torch._dynamo (1.3 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return (*args, given.get("tensor"))[0] if func in _RANDOM else func(*args, **given)


def network(row: Row, device: str = "cpu") -> nn.Module:
    """Return the whole torchvision network in eval mode, without pretrained weights ("meta": without any numbers)."""
    try:
        with torch.device(device), _NoNumbers() if device == "meta" else nullcontext():
            model: nn.Module = torchvision.models.get_model(row.architecture, weights=None, **row.options)
    except NotImplementedError:  # RegNet computes its widths with tensors and must be built for real
        model = torchvision.models.get_model(row.architecture, weights=None, **row.options).to(device)
    return model.eval()


def cut(model: nn.Module, blocks: Mapping[str, str]) -> fx.GraphModule:
    """Return the part of `model` that ends at the last tap; its forward gives {block: (B, C, H, W)}.

    torchvision.models.feature_extraction traces the network and drops everything after the last tap.
    """
    nodes = {node: block for block, node in blocks.items()}
    extractor: fx.GraphModule = create_feature_extractor(model, nodes, suppress_diff_warning=True)
    return extractor.eval()


def block_shapes(model: nn.Module, size: int) -> dict[str, tuple[int, int, int]]:
    """Return (C, H, W) of each block of a cut network on the meta device for square images of a side."""
    with torch.inference_mode():
        out: Mapping[str, Tensor] = model(torch.empty(1, 3, size, size, device="meta"))
    return {block: (int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for block, m in out.items()}


def load_backbone(spec: BackboneSpec) -> fx.GraphModule:
    """Return the frozen float32 network of a spec, in eval mode on the CPU: (B, 3, S, S) -> {block: (B, C, H, W)}.

    Raises BadWeights where the file changed since the spec was made.
    """
    whole = network(row(spec.name), "meta")
    module = cut(whole, _nodes(spec))
    state = load_weights(module, whole, spec.file)
    if weights.digest(state) != spec.weights:
        raise BadWeights(f"{spec.file} changed while it was in use; run the command again")
    return module.requires_grad_(False).eval()


def fold_batch_norm(network: fx.GraphModule) -> fx.GraphModule:
    """Return a traced network in eval mode with every batch-norm folded into the convolution before it."""
    folded = fx.GraphModule(network, network.graph)
    for node in [node for node in folded.graph.nodes if node.op == "call_module"]:
        norm, before = folded.get_submodule(node.target), node.args[0]
        convolution = folded.get_submodule(before.target) if before.op == "call_module" else None
        if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
            folded.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    return fx.GraphModule(folded, folded.graph)  # anew: with the modules that are left


def load_weights(module: nn.Module, whole: nn.Module, file: Path) -> dict[str, Tensor]:
    """Give a part of a network on the meta device the numbers of a weights file; return them in float32."""
    state = weights.select(weights.read_state(file), module.state_dict(), whole.state_dict(), file)
    module.load_state_dict(state, strict=False, assign=True)
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(child, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return state


def largest_value(network: fx.GraphModule, mean: Sequence[float], std: Sequence[float], size: int) -> float:
    """Return the largest magnitude in any map of a float32 network that is shown noise and a white image."""
    largest = 0.0

    class Look(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            nonlocal largest
            out = super().run_node(n)
            largest = max(largest, float(out.abs().max()) if isinstance(out, Tensor) else 0.0)
            return out

    images = torch.ones(2, 3, size, size)
    images[0] = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scale, shift = (torch.tensor(v).view(1, 3, 1, 1) for v in (std, mean))
        Look(fold_batch_norm(fx.symbolic_trace(network))).run((images - shift) / scale)
    return largest


def truncated(spec: BackboneSpec, block: str) -> BackboneSpec:
    """Return the spec of the part of a network that ends after one block or module: of a trunk."""
    whole, node = network(row(spec.name), "meta"), _node(spec, block)
    module = cut(whole, {block: node})
    shapes = block_shapes(module, spec.size)
    return replace(spec, blocks=shapes, weights=weights.digest(load_weights(module, whole, spec.file)))


def _node(spec: BackboneSpec, block: str) -> str:
    """Return the graph node after which a block ends; a module that is no block of the table ends after itself."""
    return row(spec.name).blocks.get(block, block)


def _nodes(spec: BackboneSpec) -> dict[str, str]:
    return {block: _node(spec, block) for block in spec.blocks}


def _stages(name: str, model: nn.Module, size: int) -> dict[str, str]:
    """Return the modules that end each stage: the last one at each resolution, from a quarter of the side down."""
    if any("Attention" in type(module).__name__ for module in model.modules()):
        raise UnknownName(f"{name} is a transformer; Firn's backbones are CNNs, for example resnet50 or convnext_tiny")
    shapes = _module_shapes(model, size)
    stages: dict[int, str] = {}
    for top, _ in model.named_children():
        inner = [child for child in shapes if child.startswith(f"{top}.")]
        several = len({shapes[child][-1] for child in inner}) > 2
        for module in inner if several else [top]:
            shape = shapes.get(module, ())
            pooling = isinstance(model.get_submodule(module), nn.AdaptiveAvgPool2d)
            if len(shape) == 4 and 1 < shape[-1] <= size // 4 and not pooling:
                stages[shape[-1]] = module
    return {module: module for module in stages.values()}


def _module_shapes(model: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Return the output shape of every module of the two upper levels."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        return lambda _module, _inputs, out: shapes.update({name: tuple(out.shape)} if isinstance(out, Tensor) else {})

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name and name.count(".") < 2]
    with torch.inference_mode():
        model(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return shapes


def boundary(spec: BackboneSpec, wanted: str) -> str:
    """Return after which block, or other module, the network is cut so that what is `wanted` can be trained.

    `wanted` is a number of last blocks, names of blocks up to the last one, one dotted module ("layer4.2": from this
    module on), or "all" (IMAGES). Raises UnknownName; FirnError where more than one map crosses the cut.
    """
    blocks, names = list(spec.blocks), wanted.replace(",", " ").split()
    if wanted == "all":
        return IMAGES
    if wanted.isdigit() and 0 < int(wanted) <= len(blocks):
        return ([IMAGES, *blocks])[-int(wanted) - 1]
    if len(names) > 1 and set(names) == set(blocks[-len(names) :]):
        names = blocks[-len(names) :][:1]
    if len(names) == 1 and names[0] in blocks:
        return ([IMAGES, *blocks])[blocks.index(names[0])]
    if len(names) != 1:
        raise FirnError(f"expected the last blocks of {' '.join(blocks)} as BLOCKS=, got {wanted!r}")
    return _before(row(spec.name), names[0], blocks)


def _before(line: Row, module: str, blocks: Sequence[str]) -> str:
    """Return the shortest name of what comes before a module."""
    names = get_graph_node_names(network(line, "meta"), suppress_diff_warning=True)[1]
    inside = [i for i, name in enumerate(names) if name == module or name.startswith(f"{module}.")]
    if not inside:
        raise unknown("block", module, [*blocks, "all", f"1..{len(blocks)}"])
    node = names[inside[0] - 1]
    if inside[0] < 2:
        return IMAGES
    for block, tap in line.blocks.items():
        if _last(names, tap) == node:
            return block
    parts = node.split(".")
    prefixes = (".".join(parts[:k]) for k in range(1, len(parts) + 1))
    return next(prefix for prefix in prefixes if _last(names, prefix) == node)


def _last(names: Sequence[str], prefix: str) -> str:
    """Return the last node of a module, or the node itself."""
    return next((n for n in reversed(names) if n == prefix or n.startswith(f"{prefix}.")), "")


def load_tail(spec: BackboneSpec, after: str) -> nn.Module:
    """Return the float32 network after a boundary with the weights of the spec, in eval mode on the CPU.

    It maps the boundary's maps (B, C, H, W), or images (B, 3, S, S) for IMAGES, to the last block's
    (B, C', H', W'). Names of its tensors are torchvision's. Raises FirnError where the network cannot be cut there.
    """
    line = row(spec.name)
    whole = network(line, "meta")
    module = _tail(whole, line.blocks.get(after, after), line.blocks[list(spec.blocks)[-1]])
    load_weights(module, whole, spec.file)
    return module.eval()


def _tail(whole: nn.Module, after: str, last: str) -> nn.Module:
    """Return the part of a network between two nodes, in the form that it has in eval mode."""
    wanted = {last: "last"} | ({after: "after"} if after else {})
    cut = create_feature_extractor(whole, wanted, suppress_diff_warning=True).eval()
    part = fx.GraphModule(cut, cut.graph)
    graph = part.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    ends: dict[str, fx.Node] = output.args[0]
    output.args = (ends["last"],)
    if after:
        (images,) = (node for node in graph.nodes if node.op == "placeholder")
        with graph.inserting_before(images):
            maps = graph.placeholder("maps")
        ends["after"].replace_all_uses_with(maps)
        graph.eliminate_dead_code()
        if images.users:
            raise FirnError(f"the network cannot be cut after {after}: more than one map crosses there")
        graph.erase_node(images)
    return fx.GraphModule(part, graph)  # anew: with the modules that are left
