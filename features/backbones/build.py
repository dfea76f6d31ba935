"""The network, cut at its blocks: the frozen part, images -> {block: feature map}, and the tail that can be trained."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from features.backbones import timm_networks, torchvision_networks, weights
from features.backbones.layouts import (
    CLASS_TOKEN,
    TOKENS,
    Layout,
    class_token_of,
    layout_of,
    maps_of,
    raw_of,
    tokens_of,
)
from features.backbones.registry import BACKBONES, Row, architecture, size_of
from features.backbones.spec import BackboneSpec
from features.errors import BadWeights, FirnError, unknown

IMAGES = ""  # the boundary before the first layer: nothing stays frozen


class Library(NamedTuple):
    """One row of LIBRARIES: where networks come from, and how their parts are had."""

    row: Callable[[str], Row]  # of an architecture that is not in the table
    complete: Callable[[Row], Row]  # with its preprocessing, and blocks where these have to be found
    network: Callable[[Row, str], nn.Module]
    node_names: Callable[[nn.Module], list[str]]
    trace: Callable[[nn.Module, Mapping[str, str]], fx.GraphModule]  # {node: block} -> images to {block: tensor}
    adapted: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]  # weights of other names or another size
    download: Callable[[str, Row], Path]
    check: Callable[[Row, nn.Module, fx.GraphModule, Tensor], None]  # of maps, where the library gives some itself


def _library(module: Any) -> Library:
    return Library(*(getattr(module, name) for name in Library._fields))


LIBRARIES = {"torchvision": _library(torchvision_networks), "timm": _library(timm_networks)}


@lru_cache(32)
def row(name: str) -> Row:
    """Return the row of a backbone, or one made for any other classifier: torchvision's, or timm's as "timm/<name>".

    It has the size that the name asks for, blocks and preprocessing. Raises UnknownName, FirnError.
    """
    base = architecture(name)
    library, _, inner = base.rpartition("/")
    if library not in ("", *LIBRARIES):
        raise unknown("library of backbones", library, LIBRARIES)
    found = BACKBONES.get(base) or LIBRARIES[library or "torchvision"].row(inner)
    line = LIBRARIES[found.library].complete(found)
    assert line.preset is not None
    size = size_of(name)
    return line if size in (0, line.preset.size) else replace(line, size=size)


def network(row: Row, device: str = "cpu") -> nn.Module:
    """Return the whole network in eval mode, without pretrained weights ("meta": without numbers where it can be)."""
    return LIBRARIES[row.library].network(row, device)


def side_and_channels(line: Row) -> tuple[int, int]:
    """Return the side of the images that a row's network sees, and their channels."""
    assert line.preset is not None
    return line.size or line.preset.size, len(line.preset.mean)


def cut(line: Row, model: nn.Module, blocks: Mapping[str, str]) -> fx.GraphModule:
    """Return the part of `model` that ends at the last block; its forward gives {block: (B, C, H, W)}.

    Everything after the last block is dropped. Transformers with a class token give {block + CLASS_TOKEN: (B, C)} too,
    and a block that is named with TOKENS all of its tokens, as `layouts.tokens_of` lays them out.
    """
    part = LIBRARIES[line.library].trace(model, {node: block for block, node in blocks.items()})
    return (part if line.plain else _with_maps(part, layouts(line, part))).eval()


def _with_maps(part: fx.GraphModule, found: Mapping[str, Layout]) -> fx.GraphModule:
    """Return a part of a network with maps in place of what its blocks end in."""
    output = part.graph.output_node()
    ends: dict[str, fx.Node] = {}
    with part.graph.inserting_before(output):
        for block, raw in output.args[0].items():  # type: ignore[union-attr]
            way = tokens_of if block.endswith(TOKENS) else maps_of
            ends[block] = part.graph.call_function(way, (raw, found[block]))
            if found[block].has_class_token and way is maps_of:
                ends[block + CLASS_TOKEN] = part.graph.call_function(class_token_of, (raw, found[block]))
    output.args = (ends,)
    return _anew(part)


def _anew(part: fx.GraphModule) -> fx.GraphModule:
    """Return a changed graph as a module of its own, with the submodules that are left."""
    module = fx.GraphModule(part, part.graph)
    constants = {name for name, _ in module.named_buffers() if name.startswith("_tensor_constant")}
    module._non_persistent_buffers_set |= constants  # tables that were computed, and are no weights
    return module


def layouts(line: Row, part: fx.GraphModule) -> dict[str, Layout]:
    """Return how each block of a traced part lies in memory. FirnError for one that has no place for every patch."""
    found = {block: layout_of(shape) for block, shape in _shapes(line, part).items()}
    if lost := [block for block, layout in found.items() if layout is None]:
        raise FirnError(f"{lost[0]} of {line.architecture} does not end in maps or tokens; take another backbone")
    return {block: layout for block, layout in found.items() if layout}


_SHAPES: dict[Hashable, dict[str, tuple[int, ...]]] = {}  # a transformer takes half a second to go through


def _shapes(line: Row, part: fx.GraphModule) -> dict[str, tuple[int, ...]]:
    """Return the shape of all that a part of a row's network gives for one square image, without computing it."""
    side, channels = side_and_channels(line)
    ends = [(block, node, *node.all_input_nodes) for block, node in part.graph.output_node().args[0].items()]  # type: ignore[union-attr]
    key = line.library, line.architecture, repr(line.options), side, channels, repr(ends)
    if key not in _SHAPES:
        _SHAPES[key] = _computed_shapes(part, side, channels)
    return _SHAPES[key]


def _computed_shapes(part: nn.Module, side: int, channels: int) -> dict[str, tuple[int, ...]]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    on_meta = any(parameter.is_meta for parameter in part.parameters())
    with torch.inference_mode(on_meta), torch.no_grad():
        with nullcontext() if on_meta else FakeTensorMode(allow_non_fake_inputs=True):
            out = part(torch.empty(1, channels, side, side, device="meta" if on_meta else "cpu"))
        return {block: tuple(map(int, tensor.shape)) for block, tensor in out.items()}


def block_shapes(line: Row, part: fx.GraphModule) -> dict[str, tuple[int, int, int]]:
    """Return (C, H, W) of each block of a part of a row's network."""
    return _of_maps(_shapes(line, part))


def _of_maps(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int, int]]:
    return {block: (shape[1], shape[2], shape[3]) for block, shape in shapes.items() if len(shape) == 4}


def has_class_token(model: fx.GraphModule) -> bool:
    """Tell whether a cut network gives class tokens."""
    return any(block.endswith(CLASS_TOKEN) for block in model.graph.output_node().args[0])  # type: ignore[union-attr]


def load_backbone(spec: BackboneSpec) -> fx.GraphModule:
    """Return the frozen float32 network of a spec, in eval mode on the CPU: (B, 3, S, S) -> {block: (B, C, H, W)}.

    Raises BadWeights where the file changed since the spec was made.
    """
    line = row(spec.name)
    whole = network(line, "meta")
    module = cut(line, whole, _nodes(spec))
    state = load_weights(line, module, whole, spec.file)
    if weights.digest(state) != spec.weights:
        raise BadWeights(f"{spec.file} changed while it was in use; run the command again")
    return module.requires_grad_(False).eval()


def refined(network: fx.GraphModule) -> fx.GraphModule:
    """Return a frozen CNN of torchvision traced into the modules it keeps whole, batch-norm folded; others as they are.

    Transformers, and networks of timm, decide by shapes inside their modules, which a trace cannot follow.
    """
    laid_out = any(node.target in (maps_of, tokens_of) for node in network.graph.nodes)
    return network if laid_out else fold_batch_norm(fx.symbolic_trace(network))


def fold_batch_norm(network: fx.GraphModule) -> fx.GraphModule:
    """Return a traced network in eval mode with every batch-norm folded into the convolution before it."""
    folded = fx.GraphModule(network, network.graph)
    for node in [node for node in folded.graph.nodes if node.op == "call_module"]:
        norm, before = folded.get_submodule(node.target), node.args[0]
        convolution = folded.get_submodule(before.target) if before.op == "call_module" else None
        if type(norm) is nn.BatchNorm2d and type(convolution) is nn.Conv2d and len(before.users) == 1:
            folded.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    return fx.GraphModule(folded, folded.graph)  # anew: with the modules that are left


def load_weights(line: Row, module: nn.Module, whole: nn.Module, file: Path) -> dict[str, Tensor]:
    """Give a part of a network the numbers of a weights file; return them, float32."""
    used, known = module.state_dict(), whole.state_dict()
    state = weights.bared(weights.renamed(weights.read_state(file), line.names), used, file)
    if not line.plain and any(name not in state or state[name].shape != used[name].shape for name in used):
        state = LIBRARIES[line.library].adapted(state, whole)
    state = weights.select(state, used, known, file)
    module.load_state_dict(state, strict=False, assign=True)
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(child, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return state


def tried(
    network: fx.GraphModule, mean: Sequence[float], std: Sequence[float], size: int
) -> tuple[float, dict[str, tuple[int, int, int]]]:
    """Show a float32 network noise and a white image: the largest magnitude in any map, (C, H, W) of each block.

    The shapes come with it, for to find them on the meta device imports torch._dynamo (1.1 s).
    """
    largest, channels = 0.0, len(mean)

    def note(out: Any) -> None:
        nonlocal largest
        largest = max(largest, float(out.abs().max()) if isinstance(out, Tensor) else 0.0)

    class Look(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            note(out)
            return out

    images = torch.ones(2, channels, size, size)
    images[0] = torch.rand(channels, size, size, generator=torch.Generator().manual_seed(0))
    deep = refined(network)
    hooks = [m.register_forward_hook(lambda _module, _inputs, out: note(out)) for m in deep.modules() if m is not deep]
    with torch.inference_mode():
        scale, shift = (torch.tensor(v).view(1, channels, 1, 1) for v in (std, mean))
        out = Look(deep).run((images - shift) / scale)
    for hook in hooks:
        hook.remove()
    return largest, _of_maps({block: tuple(tensor.shape) for block, tensor in out.items()})


def check_maps(line: Row, whole: nn.Module, module: fx.GraphModule) -> None:
    """Compare the maps of a cut network that has its numbers with the library's own. Raises FirnError."""
    side, channels = side_and_channels(line)
    images = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    LIBRARIES[line.library].check(line, whole, module, images)


def truncated(spec: BackboneSpec, block: str) -> BackboneSpec:
    """Return the spec of the part of a network that ends after one block or module: of a trunk."""
    line, node = row(spec.name), _node(spec, block)
    whole = network(line, "meta")
    module = cut(line, whole, {block: node})
    shapes = block_shapes(line, module)
    digest = weights.digest(load_weights(line, module, whole, spec.file))
    return replace(spec, blocks=shapes, weights=digest, class_token=has_class_token(module))


def _node(spec: BackboneSpec, block: str) -> str:
    """Return the graph node after which a block ends; a module that is no block of the table ends after itself."""
    name = block.removesuffix(TOKENS)
    return row(spec.name).blocks.get(name, name)


def _nodes(spec: BackboneSpec) -> dict[str, str]:
    return {block: _node(spec, block) for block in spec.blocks}


def boundary(spec: BackboneSpec, wanted: str) -> str:
    """Return after which block, or other module, the network is cut so that what is `wanted` can be trained.

    `wanted` is a number of last blocks, names of blocks up to the last one, one dotted module ("layer4.2": from this
    module on), or "all" (IMAGES). Where a transformer has tokens of no place, the boundary's name ends in TOKENS.
    Raises UnknownName; FirnError where more than one map crosses the cut.
    """
    after = _after(spec, wanted)
    line = row(spec.name)
    if line.plain or after == IMAGES:
        return after
    part = LIBRARIES[line.library].trace(network(line, "meta"), {_node(spec, after): after})
    return after + TOKENS * (layouts(line, part)[after].prefix > 0)


def _after(spec: BackboneSpec, wanted: str) -> str:
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
    names = LIBRARIES[line.library].node_names(network(line, "meta"))
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
    (B, C', H', W'). Names of its tensors are the library's. Raises FirnError where the network cannot be cut there.
    """
    line = row(spec.name)
    whole = network(line, "meta")
    module = _tail(line, whole, _node(spec, after), line.blocks[list(spec.blocks)[-1]])
    load_weights(line, module, whole, spec.file)
    return module.eval()


def _tail(line: Row, whole: nn.Module, after: str, last: str) -> nn.Module:
    """Return the part of a network between two nodes, in the form that it has in eval mode."""
    wanted = {last: "last"} | ({after: "after"} if after else {})
    part = LIBRARIES[line.library].trace(whole, wanted).eval()
    found = {} if line.plain else layouts(line, part)
    part = fx.GraphModule(part, part.graph)
    ends: dict[str, fx.Node] = part.graph.output_node().args[0]  # type: ignore[assignment]
    part.graph.output_node().args = (_converted(part.graph, maps_of, ends["last"], found.get("last")),)
    if after:
        _begin_after(part.graph, after, ends["after"], found.get("after"))
    return _anew(part)


def _converted(graph: fx.Graph, way: Any, node: fx.Node, layout: Layout | None) -> fx.Node:
    """Return a node in another layout, behind it; itself where it has the layout of maps."""
    if layout is None:
        return node
    with graph.inserting_after(node):
        return graph.call_function(way, (node, layout))


def _begin_after(graph: fx.Graph, after: str, end: fx.Node, layout: Layout | None) -> None:
    """Let a graph begin with maps in place of images. FirnError where more than these maps crosses there."""
    for node in [node for node in graph.nodes if node.target is torch._assert]:  # looks at the images
        graph.erase_node(node)
    (images,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_before(images):
        maps = graph.placeholder("maps")
    end.replace_all_uses_with(_converted(graph, raw_of, maps, layout))
    graph.eliminate_dead_code()
    if images.users:
        raise FirnError(f"the network cannot be cut after {after}: more than one map crosses there")
    graph.erase_node(images)
