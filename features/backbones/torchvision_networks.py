"""Networks of torchvision: built without numbers, traced, with a block at the end of each stage."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from features.backbones import weights
from features.backbones.registry import BACKBONES, OLD_DENSENET, Preset, Row
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
VisionTransformer = torchvision.models.vision_transformer.VisionTransformer
SwinTransformer = torchvision.models.swin_transformer.SwinTransformer


def row(name: str) -> Row:
    """Return a row made for any torchvision classifier that is not in the table. Raises UnknownName."""
    available = torchvision.models.list_models(module=torchvision.models)
    if name not in available:
        raise unknown("backbone", name, {*BACKBONES, *available})
    best = torchvision.models.get_model_weights(name).DEFAULT
    bare = Row(name, str(best), best.url.rsplit("/", 1)[-1], {}, names=OLD_DENSENET)
    model = network(bare, "meta")
    stages = STAGES.get(type(model))
    blocks = stages(model) if stages else _stages(name, model, best.transforms().crop_size[0])
    return replace(bare, blocks=blocks, plain=stages is None)


_RANDOM = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_)


class NoNumbers(TorchFunctionMode):
    """Draws nothing where all numbers come from a file; on the meta device drawing imports torch._dynamo (1.3 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return (*args, given.get("tensor"))[0] if func in _RANDOM else func(*args, **given)


def network(row: Row, device: str = "cpu") -> nn.Module:
    """Return the whole torchvision network in eval mode, without pretrained weights ("meta": without any numbers)."""
    try:
        with torch.device(device), NoNumbers() if device == "meta" else nullcontext():
            model = _made(row)
    except NotImplementedError:  # RegNet computes its widths with tensors and must be built for real
        model = _made(row).to(device)
    return model.eval()


def _made(row: Row) -> nn.Module:
    make, size = torchvision.models.get_model, {"image_size": row.size} if row.size else {}
    try:
        model: nn.Module = make(row.architecture, weights=None, **row.options, **size)
    except (TypeError, ValueError, RuntimeError) as error:
        if not size:
            raise
        if "image_size" not in str(error):
            raise FirnError(f"{row.architecture} cannot see images of {row.size} pixels: {error}") from None
        model = make(row.architecture, weights=None, **row.options)  # its layers look at no size
    if row.preset and len(row.preset.mean) != 3:
        _see_channels(model, len(row.preset.mean))
    return model


def _see_channels(model: nn.Module, channels: int) -> None:
    """Let the first convolution of a network see images of another number of channels."""
    name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    how = {"stride": first.stride, "padding": first.padding, "bias": first.bias is not None}
    model.set_submodule(name, nn.Conv2d(channels, first.out_channels, first.kernel_size, **how))  # type: ignore[arg-type]


def complete(row: Row) -> Row:
    """Return a row with its preprocessing, of torchvision's own weights where it says no other."""
    return row if row.preset else replace(row, preset=_preset(row))


def _preset(row: Row) -> Preset:
    found = torchvision.models.get_weight(row.weights).transforms()
    size, resize, how = found.crop_size[0], found.resize_size[0], found.interpolation.value
    return Preset(size, resize, how, tuple(found.mean), tuple(found.std))


def trace(model: nn.Module, nodes: Mapping[str, str]) -> fx.GraphModule:
    """Return the part of `model` that ends at the last of some nodes; its forward gives {name: tensor}.

    torchvision.models.feature_extraction traces the network and drops everything after the last node.
    """
    extractor: fx.GraphModule = create_feature_extractor(model, dict(nodes), suppress_diff_warning=True)
    return extractor


def node_names(model: nn.Module) -> list[str]:
    """Return the names of the nodes of a network in eval mode, in their order."""
    names: list[str] = get_graph_node_names(model, suppress_diff_warning=True)[1]
    return names


def adapted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state whose position embeddings fit a vision transformer's size, interpolated as torchvision does."""
    if not isinstance(model, VisionTransformer) or "encoder.pos_embedding" not in state:
        return state
    interpolate = torchvision.models.vision_transformer.interpolate_embeddings
    fitted: dict[str, Tensor] = interpolate(model.image_size, model.patch_size, dict(state))
    return fitted


def check(row: Row, model: nn.Module, part: fx.GraphModule, images: Tensor) -> None:
    """Do nothing: what is traced are modules whose maps are known."""


def download(name: str, row: Row) -> Path:
    """Return torchvision's own weights, downloaded. Raises BadWeights, saying which file to put where."""
    if not row.weights:
        raise BadWeights(
            f"no weights of {name}: they come from {row.source} (licence: {row.licence}); save their state dict as "
            f"{name}.pth in the folder FIRN_WEIGHTS, or give it as WEIGHTS="
        )
    return weights.download(name, torchvision.models.get_weight(row.weights).url)


def _quarters(n: int) -> list[int]:
    """Return the last places of four parts of equal length."""
    return sorted({-(-n * part // 4) - 1 for part in range(1, 5)})


def _vit_blocks(model: Any) -> dict[str, str]:
    """Return a quarter of the layers each; the last one is normalised, as the classifier sees it."""
    layers = [name for name, _ in model.encoder.layers.named_children()]
    named = {layers[i]: f"encoder.layers.{layers[i]}" for i in _quarters(len(layers))}
    return named | {layers[-1]: "encoder.ln"}


def _swin_blocks(model: Any) -> dict[str, str]:
    """Return the stages; between them are layers that merge patches."""
    stages = [f"features.{i}" for i in range(1, len(model.features), 2)]
    return {stage: stage for stage in stages[:-1]} | {stages[-1]: "norm"}


STAGES: Mapping[type, Any] = {VisionTransformer: _vit_blocks, SwinTransformer: _swin_blocks}  # beside CNNs


def _stages(name: str, model: nn.Module, size: int) -> dict[str, str]:
    """Return the modules that end each stage: the last one at each resolution, from a quarter of the side down."""
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
    if not stages:
        raise UnknownName(f"{name} has no stages that give maps; take another, for example resnet50 or vit_b_16")
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
