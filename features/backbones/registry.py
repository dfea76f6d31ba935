"""The table BACKBONES: one row per hand-checked network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One torchvision architecture: which weights, and after which graph nodes its blocks end."""

    architecture: str  # torchvision's name
    weights: str  # torchvision's weights, which carry the preprocessing
    file: str  # what torchvision's own download of these weights is called
    blocks: Mapping[str, str]  # block -> node of torchvision.models.feature_extraction, in the order of the network
    options: Mapping[str, Any] = field(default_factory=dict)  # constructor arguments that the weights ask for


def _row(architecture: str, weights: str, file: str, blocks: str | Mapping[str, str], **options: Any) -> Row:
    named = {name: name for name in blocks.split()} if isinstance(blocks, str) else blocks
    return Row(architecture, f"{weights}_Weights.IMAGENET1K_V1", file, named, options)


_RESNET = "layer1 layer2 layer3 layer4"
_DENSENET = {f"denseblock{i}": f"features.denseblock{i}" for i in (1, 2, 3)} | {"denseblock4": "relu"}
_INCEPTION = "maxpool1 maxpool2 Mixed_5d Mixed_6e Mixed_7c"


def architecture(name: str) -> str:
    """Return the row that a backbone's name begins with: resnet18 of "resnet18@pneumonia"."""
    return name.partition("@")[0]


def domains(name: str) -> tuple[str, ...]:
    """Return the data sets that a backbone was fine-tuned on, in turn: ("pneumonia",) of "resnet18@pneumonia"."""
    return tuple(name.split("@")[1:])


BACKBONES: dict[str, Row] = {
    "alexnet": _row(
        "alexnet", "AlexNet", "alexnet-owt-7be5be79.pth", "features.2 features.5 features.7 features.9 features.12"
    ),
    "vgg16": _row("vgg16", "VGG16", "vgg16-397923af.pth", "features.4 features.9 features.16 features.23 features.30"),
    "resnet18": _row("resnet18", "ResNet18", "resnet18-f37072fd.pth", _RESNET),
    "resnet34": _row("resnet34", "ResNet34", "resnet34-b627a593.pth", _RESNET),
    "resnet50": _row("resnet50", "ResNet50", "resnet50-0676ba61.pth", _RESNET),
    "resnet101": _row("resnet101", "ResNet101", "resnet101-63fe2227.pth", _RESNET),
    "resnet152": _row("resnet152", "ResNet152", "resnet152-394f9c45.pth", _RESNET),
    "densenet121": _row("densenet121", "DenseNet121", "densenet121-a639ec97.pth", _DENSENET),
    "inception_v3": _row(
        "inception_v3",
        "Inception_V3",
        "inception_v3_google-0cc3c7bd.pth",
        _INCEPTION,
        transform_input=True,
        init_weights=False,
    ),
    "googlenet": _row(
        "googlenet",
        "GoogLeNet",
        "googlenet-1378be20.pth",
        "maxpool1 maxpool2 maxpool3 maxpool4 inception5b",
        transform_input=True,
        init_weights=False,
    ),
    "mobilenet_v2": _row(
        "mobilenet_v2", "MobileNet_V2", "mobilenet_v2-b0353104.pth", "features.3 features.6 features.13 features.18"
    ),
    "mobilenet_v3_small": _row(
        "mobilenet_v3_small",
        "MobileNet_V3_Small",
        "mobilenet_v3_small-047dcff4.pth",
        "features.1 features.3 features.8 features.12",
    ),
    "mobilenet_v3_large": _row(
        "mobilenet_v3_large",
        "MobileNet_V3_Large",
        "mobilenet_v3_large-8738ca79.pth",
        "features.3 features.6 features.12 features.16",
    ),
    "efficientnet_b0": _row(
        "efficientnet_b0",
        "EfficientNet_B0",
        "efficientnet_b0_rwightman-7f5810bc.pth",
        "features.2 features.3 features.5 features.8",
    ),
    "squeezenet1_1": _row(
        "squeezenet1_1", "SqueezeNet1_1", "squeezenet1_1-b8a52dc0.pth", "features.2 features.5 features.8 features.12"
    ),
    "shufflenet_v2": _row(
        "shufflenet_v2_x1_0", "ShuffleNet_V2_X1_0", "shufflenetv2_x1-5666bf0f80.pth", "stage2 stage3 stage4 conv5"
    ),
    "convnext_tiny": _row(
        "convnext_tiny", "ConvNeXt_Tiny", "convnext_tiny-983f1562.pth", "features.1 features.3 features.5 features.7"
    ),
}
