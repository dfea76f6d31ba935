"""The table BACKBONES: one row per hand-checked network or published set of weights; what a backbone's name says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Preset:
    """How weights want their images: scale 0..1, less the mean, by the standard deviation; one value for a channel."""

    size: int  # side of the square that the network sees
    resize: int  # short side before the centre crop
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One architecture of a library: which weights, and after which graph nodes its blocks end."""

    architecture: str  # the library's name
    weights: str  # torchvision's weights, which carry the preprocessing; empty where the row or timm does
    file: str  # what torchvision's own download of these weights is called; empty for what a user puts there
    blocks: Mapping[str, str]  # block -> node of the traced network, in the order of the network; empty: found
    options: Mapping[str, Any] = field(default_factory=dict)  # constructor arguments that the weights ask for
    library: str = "torchvision"  # a row of features.backbones.build.LIBRARIES
    plain: bool = True  # whether every block ends in a map (B, C, H, W), as in CNNs
    preset: Preset | None = None  # where neither torchvision nor timm says how images come in
    names: Sequence[tuple[str, str]] = ()  # patterns of the publisher's names of tensors, and the library's names
    source: str = ""  # who publishes the weights, and where
    licence: str = ""
    size: int = 0  # side that was asked for in place of the preset's


def _row(architecture: str, weights: str, file: str, blocks: str | Mapping[str, str], **options: Any) -> Row:
    named = {name: name for name in blocks.split()} if isinstance(blocks, str) else blocks
    return Row(architecture, f"{weights}_Weights.IMAGENET1K_V1", file, named, options)


_RESNET = "layer1 layer2 layer3 layer4"
_DENSENET = {f"denseblock{i}": f"features.denseblock{i}" for i in (1, 2, 3)} | {"denseblock4": "relu"}
_INCEPTION = "maxpool1 maxpool2 Mixed_5d Mixed_6e Mixed_7c"
OLD_DENSENET = ((r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),)  # torchvision's own file has them still


def architecture(name: str) -> str:
    """Return the row that a backbone's name begins with: resnet18 of "resnet18@320@pneumonia"."""
    return name.partition("@")[0]


def domains(name: str) -> tuple[str, ...]:
    """Return the data sets that a backbone was fine-tuned on, in turn: ("pneumonia",) of "resnet18@320@pneumonia"."""
    return tuple(part for part in name.split("@")[1:] if not part.isdigit())


def size_of(name: str) -> int:
    """Return the side of the images that a backbone is to see, 320 of "resnet18@320"; 0 for that of its weights."""
    return next((int(part) for part in reversed(name.split("@")[1:]) if part.isdigit()), 0)


def file_name(name: str) -> str:
    """Return what the weights of a backbone are called: resnet18 of "resnet18@320", for size is no weight."""
    return re.sub(r"(@\d+)+$", "", name)


def sized(name: str, size: int) -> str:
    """Return a backbone, or several joined by +, that see images of a side, unless their names say another one."""
    return "+".join(one if size_of(one) else f"{one}@{size}" for one in name.split("+"))


def library_of(name: str) -> str:
    """Return the library that a backbone's network comes from: timm for "timm/convnextv2_nano"."""
    row = BACKBONES.get(architecture(name))
    return row.library if row else name.partition("/")[0] if "/" in name else "torchvision"


_VIT_B = {f"encoder_layer_{i}": f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8)}
_VIT_B |= {"encoder_layer_11": "encoder.ln"}  # what the classifier sees is normalised
_SWIN = {f"features.{i}": f"features.{i}" for i in (1, 3, 5)} | {"features.7": "norm"}

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
    "densenet121": replace(
        _row("densenet121", "DenseNet121", "densenet121-a639ec97.pth", _DENSENET), names=OLD_DENSENET
    ),
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
    "vit_b_16": replace(_row("vit_b_16", "ViT_B_16", "vit_b_16-c867db91.pth", _VIT_B), plain=False),
    "swin_t": replace(_row("swin_t", "Swin_T", "swin_t-704ceda3.pth", _SWIN), plain=False),
}


def _medical(like: str, preset: Preset, source: str, licence: str, names: Sequence[tuple[str, str]] = ()) -> Row:
    """Return the row of weights for a CNN of the table that somebody else publishes."""
    line = BACKBONES[like]
    options = {k: v for k, v in line.options.items() if k != "transform_input"}  # ImageNet's, for Google's weights
    return replace(
        line, weights="", file="", options=options, preset=preset, names=names, source=source, licence=licence
    )


def _children(*modules: str) -> tuple[tuple[str, str], ...]:
    """Return the names of a Sequential over a network's children, as RadImageNet saves them."""
    return tuple((rf"^(?:backbone\.)?{i}\.", f"{name}.") for i, name in enumerate(modules) if name)


def _radimagenet(like: str, *modules: str) -> Row:
    half = (0.5, 0.5, 0.5)
    return _medical(
        like,
        Preset(224, 224, "bilinear", half, half),  # (image - 127.5) * 2 / 255, as in its example
        "RadImageNet (Mei et al. 2022), github.com/BMEII-AI/RadImageNet",
        "of RadImageNet, for research",
        (*_children(*modules), *OLD_DENSENET),
    )


_XRAYVISION = Preset(224, 224, "bilinear", (0.5,), (1 / 2048,))  # one grey channel on the scale -1024..1024
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_INCEPTION_CHILDREN = (
    "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2 Mixed_5b Mixed_5c "
    "Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c"
)
_TRANSFORMERS = (  # names that the library transformers gives a DINOv2 network, and timm's
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r"blocks.\1.attn.\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"^(?:embeddings\.)?mask_token$", ""),  # an empty name: a tensor that is of no use here
)


def _vit(architecture: str, preset: Preset, source: str, licence: str, **how: Any) -> Row:
    """Return the row of a vision transformer of timm; `names` in `how` are the publisher's, the rest are options."""
    names = how.pop("names", ())
    return Row(architecture, "", "", {}, how, "timm", False, preset, names, source, licence)


BACKBONES |= {
    "radimagenet_resnet50": _radimagenet("resnet50", "conv1", "bn1", "relu", "maxpool", *_RESNET.split()),
    "radimagenet_densenet121": _radimagenet("densenet121", "features"),
    "radimagenet_inception_v3": _radimagenet("inception_v3", *_INCEPTION_CHILDREN.split()),
    "xrv_densenet121": _medical(
        "densenet121",
        _XRAYVISION,
        "torchxrayvision (Cohen et al. 2022), its densenet121-res224-*",
        "Apache-2.0",
        OLD_DENSENET,
    ),
    "chexnet_densenet121": _medical(
        "densenet121",
        Preset(224, 256, "bilinear", *_IMAGENET),
        "CheXNet in PyTorch and its likes (module.densenet121.*)",
        "of the publisher",
        OLD_DENSENET,
    ),
    "rad_dino": _vit(
        "vit_base_patch14_dinov2",
        Preset(518, 518, "bicubic", (0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583)),
        "microsoft/rad-dino (Perez-Garcia et al. 2024)",
        "MIT, for research",
        names=_TRANSFORMERS,
    ),
    "uni": _vit(
        "vit_large_patch16_224",
        Preset(224, 224, "bilinear", *_IMAGENET),
        "MahmoodLab/UNI (Chen et al. 2024)",
        "CC-BY-NC-ND 4.0",
        init_values=1e-5,
    ),
    "gigapath": _vit(
        "vit_giant_patch14_dinov2",
        Preset(224, 256, "bicubic", *_IMAGENET),
        "prov-gigapath/prov-gigapath (Xu et al. 2024)",
        "of Prov-GigaPath, for research",
        patch_size=16,
        img_size=224,
    ),
    "h_optimus_0": _vit(
        "vit_giant_patch14_reg4_dinov2",
        Preset(224, 224, "bicubic", (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
        "bioptimus/H-optimus-0 (2024)",
        "Apache-2.0",
        init_values=1e-5,
        img_size=224,
    ),
}
