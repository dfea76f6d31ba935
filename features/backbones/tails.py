"""The network cut in two at a boundary: the trunk before it stays frozen, the tail after it can be trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from features.backbones.build import load_weights, network, row
from features.backbones.registry import Row
from features.backbones.spec import Recipe
from features.errors import FirnError, unknown

IMAGES = ""  # the boundary before the first layer: nothing stays frozen


def boundary(recipe: Recipe, wanted: str) -> str:
    """Return after which block, or other module, the network is cut so that what is `wanted` can be trained.

    `wanted` is a number of last blocks, names of blocks up to the last one, one dotted module ("layer4.2": from this
    module on), or "all" (IMAGES). Raises UnknownName; FirnError where more than one map crosses the cut.
    """
    blocks, names = list(recipe.blocks), wanted.replace(",", " ").split()
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
    return _before(row(recipe.name), names[0], blocks)


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


def load_tail(recipe: Recipe, after: str) -> nn.Module:
    """Return the float32 network after a boundary with the weights of the recipe, in eval mode on the CPU.

    It maps the boundary's maps (B, C, H, W), or images (B, 3, S, S) for IMAGES, to the last block's
    (B, C', H', W'). Names of its tensors are torchvision's. Raises FirnError where the network cannot be cut there.
    """
    line = row(recipe.name)
    whole = network(line, "meta")
    module = _tail(whole, line.blocks.get(after, after), line.blocks[list(recipe.blocks)[-1]])
    load_weights(module, whole, recipe)
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
