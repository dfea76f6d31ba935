"""Networks of timm (the extra `timm`): any image classifier by its name, traced along its `forward_features`."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from features.backbones.registry import Preset, Row
from features.backbones.torchvision_networks import NoNumbers
from features.errors import BadWeights, FirnError, unknown

_FINEST = 4  # times that a block's maps are smaller than the image, at least
_FILES = ("model.safetensors", "pytorch_model.bin")


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError:
        raise FirnError("backbones of timm need the extra: pip install -e '.[timm]'") from None


def row(name: str) -> Row:
    """Return a row for any image classifier of timm. Raises UnknownName; FirnError where timm is not installed."""
    timm = _timm()
    architecture = name.partition(".")[0]
    if architecture not in (known := timm.list_models()):
        raise unknown("backbone", f"timm/{name}", [f"timm/{one}" for one in known])
    return Row(name, "", "", {}, library="timm", plain=False)


def complete(row: Row) -> Row:
    """Return a row with its preprocessing and blocks. Raises FirnError."""
    model = network(row)
    return replace(row, preset=row.preset or _preset(row, model), blocks=_blocks(row, model))


def _blocks(row: Row, model: nn.Module) -> dict[str, str]:
    """Return the last module at each resolution, or of each quarter where all have the same.

    The last block ends where `forward_features` does, in what the classifier pools.
    """
    info = getattr(model, "feature_info", [])
    stages = {f["module"]: f["reduction"] for f in getattr(info, "info", info)}
    names = node_names(model)
    stages = {m: r for m, r in stages.items() if r >= _FINEST and any(_within(name, m) for name in names)}
    if not stages:
        raise FirnError(f"timm/{row.architecture} names no blocks that give maps; take another")
    ends = list({reduction: module for module, reduction in stages.items()}.values())
    if len(ends) == 1:
        modules = list(stages)
        ends = [modules[i] for i in sorted({-(-len(modules) * part // 4) - 1 for part in range(1, 5)})]
    return {module: module for module in ends[:-1]} | {ends[-1]: names[-1]}


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def network(row: Row, device: str = "cpu") -> nn.Module:
    """Return the whole network in eval mode; its numbers are to come from a file, and are on the CPU whatever `device`.

    Tables that are no weights (of rotations, of relative positions) are computed when it is built.
    """
    timm, size = _timm(), {"img_size": row.size} if row.size else {}
    how = {"pretrained": False, **row.options}
    try:
        with NoNumbers():
            try:
                model: nn.Module = timm.create_model(row.architecture, **how | size)
            except TypeError:  # a CNN, whose layers look at no size
                model = timm.create_model(row.architecture, **how)
    except (AssertionError, RuntimeError, ValueError) as error:
        asked = f" for images of {row.size} pixels" * bool(row.size)
        raise FirnError(f"timm cannot build {row.architecture}{asked}: {str(error).splitlines()[0]}") from None
    return model.eval()


def _preset(row: Row, model: nn.Module) -> Preset:
    """Return how the weights want their images, from `pretrained_cfg`."""
    cfg: Any = model.pretrained_cfg
    channels, size, _ = cfg["input_size"]
    if channels != 3:
        raise FirnError(f"timm/{row.architecture} wants images of {channels} channels; Firn gives it 3")
    interpolation = "bilinear" if cfg["interpolation"] != "bicubic" else "bicubic"
    resize = math.floor(size / cfg["crop_pct"])
    return Preset(size, resize, interpolation, tuple(cfg["mean"]), tuple(cfg["std"]))


class _Features(fx.Tracer):
    """Traces `forward_features` into the modules that it calls: containers are looked into, all else stays whole."""

    traced_func_name = "forward_features"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential | nn.ModuleList)


@lru_cache(1)
def _traced(model: nn.Module) -> fx.Graph:
    features: Any = model.forward_features
    _, *others = inspect.signature(features).parameters.values()
    try:
        graph = _Features().trace(model, {other.name: other.default for other in others})
    except (fx.proxy.TraceError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0][:80]
        raise FirnError(f"{type(model).__name__} of timm cannot be cut at its blocks ({why}); take another") from None
    for unused in [node for node in graph.nodes if node.op == "placeholder"][1:]:  # masks, which are None here
        _erase(graph, unused)
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Take a node out of a graph with all that comes of it."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def node_names(model: nn.Module) -> list[str]:
    """Return the names of what `forward_features` computes, in order: modules, and operations between them."""
    *nodes, output = _traced(model).nodes
    last = nodes.index(output.args[0]) if output.args[0] in nodes else len(nodes) - 1
    return [_name(node) for node in nodes[: last + 1] if node.op != "get_attr"]


def trace(model: nn.Module, nodes: Mapping[str, str]) -> fx.GraphModule:
    """Return the part of `model` that ends at the last of some nodes; its forward gives {name: tensor}."""
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(_traced(model), copied)
    called = [node for node in copied if node.op.startswith("call")]
    ends = {block: [copied[node] for node in called if _within(_name(node), end)][-1] for end, block in nodes.items()}
    graph.output(ends)
    part = fx.GraphModule(model, graph)
    part.graph.eliminate_dead_code()
    return part


def adapted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state in timm's names and for the model's size, as timm itself converts and interpolates it."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        fitted: dict[str, Tensor] = convert(dict(state), model)
    except (KeyError, RuntimeError, AttributeError, AssertionError, IndexError):
        return state  # what does not fit is named when the numbers are taken over
    return fitted


def check(row: Row, model: Any, part: fx.GraphModule, images: Tensor) -> None:
    """Compare the maps of a part that has its numbers with those of timm's `forward_intermediates`.

    Raises FirnError for a network that keeps its tokens in another order than that of their places.
    """
    model.load_state_dict(part.state_dict(), strict=False)
    whole: Any = model
    info = whole.feature_info
    with torch.inference_mode():
        found = part(images)
        try:
            every = whole.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NCHW")
        except (AttributeError, TypeError):
            raise FirnError(f"timm gives no maps of timm/{row.architecture}; take another backbone") from None
    inner = dict(zip([stage["module"] for stage in getattr(info, "info", info)], every, strict=True))
    for block in list(row.blocks)[:-1]:
        if (
            found[block].shape != inner[block].shape
            or (found[block] - inner[block]).norm() > 1e-3 * inner[block].norm()
        ):
            raise FirnError(f"timm/{row.architecture} has its tokens in an order of its own; take another backbone")


def download(name: str, row: Row) -> Path:
    """Return the weights in Hugging Face's cache, from its hub where they are not there and HF_HUB_OFFLINE is not set.

    Raises BadWeights, saying which file to put where.
    """
    cfg: Any = network(row).pretrained_cfg
    if row.source or not (repository := cfg.get("hf_hub_id")):
        where = f"they come from {row.source} (licence: {row.licence})" if row.source else "timm publishes none"
        raise BadWeights(
            f"no weights of {name}: {where}; save a state dict as {name}.pth in the folder FIRN_WEIGHTS, or give it as "
            "WEIGHTS="
        )
    return _from_hub(name, repository, [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else _FILES)


def _from_hub(name: str, repository: str, files: Any) -> Path:
    hub = import_module("huggingface_hub")
    for file in files:
        cached = hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    why = ""
    for file in files:
        try:
            return Path(hub.hf_hub_download(repository, file))
        except Exception as error:  # the hub and what it sends with raise many kinds
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
            elsewhere = isinstance(error, hub.errors.EntryNotFoundError)
            if not elsewhere or isinstance(error, hub.errors.LocalEntryNotFoundError):  # the latter: not reached
                break
    raise BadWeights(
        f"no weights for {name}, and Hugging Face's hub was not reached ({why}); put {files[0]} of {repository} as "
        f"{name}{Path(files[0]).suffix.replace('.bin', '.pth')} into the folder FIRN_WEIGHTS, or give it as WEIGHTS="
    )
