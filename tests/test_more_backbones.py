"""Networks of timm, transformers and published medical weights, against the libraries' own features; sizes."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import stored
from safetensors.torch import save_file
from torch import nn
from verbs_for_tests import bundle, export, extract, finetune, selected, train_heads, verb

from features.backbones import BACKBONES, load_spec, make_spec
from features.backbones.build import boundary, load_backbone, load_tail, network, row, truncated
from features.backbones.layouts import Layout, maps_of, raw_of, tokens_of
from features.backbones.registry import file_name, size_of
from features.errors import BadWeights, CacheError, FirnError, UnknownName
from features.extraction.forward import Forward, to_arrays
from features.options import FeatureOptions
from models.explain.class_maps import grad_cam, hires_cam
from models.finetuning.network import FinetunedNetwork
from models.runs.record import load_runs

timm = pytest.importorskip("timm")

FAMILIES = ("convnextv2_atto", "vit_tiny_patch16_224@64", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224@56")


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network with numbers that keep its values in bounds, and statistics of batch-norm that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean") or (tensor.requires_grad and tensor.ndim == 1):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.requires_grad:
                scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def timm_network(name: str, folder: Path) -> Any:
    """Write random weights of a network of timm, of the size in its name, to where Firn looks; return the network."""
    bare = file_name(name)
    takes_size = size_of(name) and timm.create_model(bare).pretrained_cfg.get("fixed_input_size")
    model = randomised(timm.create_model(bare, **({"img_size": size_of(name)} if takes_size else {})))
    (folder / "timm").mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "timm" / f"{bare}.pth")
    return model


def close(got: np.ndarray, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Compare features, relative to the size of all of them."""
    reference = wanted.numpy()
    assert got.shape == reference.shape
    assert np.linalg.norm(got - reference) <= tolerance * np.linalg.norm(reference)


def assert_timms_features(name: str, folder: Path) -> None:
    """Compare all that the forward stage gives with `forward_intermediates` and `forward_features`."""
    model = timm_network(name, folder)
    spec = make_spec(f"timm/{name}")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, spec.size, spec.size), dtype=np.uint8)
    blocks = list(spec.blocks)
    got = to_arrays(Forward(spec, maps=blocks, stored="float32", batch_size=2)(pixels))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]))
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).float() / 255).sub(mean).div(std)
        every = model.forward_intermediates(images, norm=False, intermediates_only=True)
        last = model.forward_features(images)
    info = getattr(model.feature_info, "info", model.feature_info)
    named = dict(zip([stage["module"] for stage in info], every, strict=True))
    side = spec.blocks[blocks[-1]][-1]
    if last.ndim == 3:
        prefix = last.shape[1] - side**2
        assert spec.class_token == (prefix > 0)
        if prefix:
            close(got[f"pooled/{blocks[-1]}/cls"], last[:, 0])
        last = last[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    elif last.shape[1] == side:
        last = last.permute(0, 3, 1, 2)
    for block in blocks:
        wanted = last if block == blocks[-1] else named[block]
        close(got[f"maps/{block}"], wanted)
        close(got[f"pooled/{block}/avg"], wanted.mean((2, 3)))
        close(got[f"pooled/{block}/max"], wanted.amax((2, 3)))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of weights; nothing is looked for on a hub."""
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_timms(name: str, weights: Path) -> None:
    """Maps and poolings of every block are those of timm, to 1e-5."""
    assert_timms_features(name, weights)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("timm/vit_tiny_patch16_224@64", "1"),
        ("timm/vit_tiny_patch16_224@64", "blocks.10"),
        ("timm/convnextv2_atto@64", "2"),
        ("timm/swin_tiny_patch4_window7_224", "1"),
    ],
)
def test_the_tail_goes_on_where_the_trunk_ends(name: str, wanted: str, weights: Path) -> None:
    """From the boundary's maps, with the tokens of no place, the tail gives the last block's maps."""
    timm_network(name.removeprefix("timm/"), weights)
    spec = make_spec(name)
    images = torch.randn(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    after = boundary(spec, wanted)
    trunk = load_backbone(truncated(spec, after))
    with torch.inference_mode():
        (maps,) = [maps for block, maps in trunk(images).items() if block == after]
        last = load_backbone(spec)(images)[list(spec.blocks)[-1]]
        close(load_tail(spec, after)(maps).numpy(), last)
    assert set(load_tail(spec, after).state_dict()) <= set(network(row(name)).state_dict())


@pytest.mark.parametrize("name", ["vit_b_16@32", "swin_t@64"])
def test_torchvisions_transformers(name: str, weights: Path) -> None:
    """The last block is what torchvision's classifier pools; embeddings of positions are interpolated as it does."""
    whole = randomised(network(row(name.partition("@")[0])))
    torch.save(whole.state_dict(), weights / f"{name.partition('@')[0]}.pth")
    spec, line, model = make_spec(name), row(name), network(row(name))
    state: Any = whole.state_dict()
    if spec.class_token:
        state = torchvision.models.vision_transformer.interpolate_embeddings(32, 16, state)
    model.load_state_dict(state)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, spec.size, spec.size), dtype=np.uint8)
    last = list(spec.blocks)[-1]
    got = to_arrays(Forward(spec, maps=[last], stored="float32", batch_size=2)(pixels))
    seen: list[torch.Tensor] = []
    model.get_submodule(line.blocks[last]).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        model(torch.from_numpy(spec.normalised(pixels)))
    (raw,) = seen
    if spec.class_token:
        close(got[f"pooled/{last}/cls"], raw[:, 0])
        maps = raw[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    else:
        maps = raw.permute(0, 3, 1, 2)
    close(got[f"maps/{last}"], maps)
    close(got[f"pooled/{last}/avg"], maps.mean((2, 3)))
    assert spec.class_token == name.startswith("vit")


def test_position_embeddings_are_interpolated(weights: Path) -> None:
    """Weights for 224 pixels serve 64, as timm interpolates them."""
    model = timm_network("vit_tiny_patch16_224", weights)
    small = timm.create_model("vit_tiny_patch16_224", img_size=64)
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    small.load_state_dict(convert(model.state_dict(), small))
    assert torch.equal(load_backbone(make_spec("timm/vit_tiny_patch16_224@64")).pos_embed, small.pos_embed)


def as_radimagenet(model: nn.Module, children: int) -> dict[str, torch.Tensor]:
    """Return a state as RadImageNet's own code saves it: of a Sequential over a network's children."""
    return {f"backbone.{name}": t for name, t in nn.Sequential(*list(model.children())[:children]).state_dict().items()}


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a densenet's tensors under their names of 2017."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): t for name, t in state.items()}


def one_channel(model: Any) -> Any:
    """Return a densenet as torchxrayvision has it."""
    model.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return model


def dense(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the last map of a densenet."""
    return torch.relu(model.features(images))


HALF = lambda x: (x - 127.5) * 2 / 255  # noqa: E731 - as in RadImageNet's example
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NORMAL = torchvision.transforms.Normalize(*IMAGENET)
MODELS = torchvision.models
PUBLISHED: dict[str, tuple[Any, ...]] = {  # name -> network, its state as published, preprocessing, its last map
    "radimagenet_resnet50@64": (
        lambda: MODELS.resnet50(),
        lambda m: as_radimagenet(m, 9),
        HALF,
        lambda m, x: nn.Sequential(*list(m.children())[:8])(x),
    ),
    "radimagenet_densenet121@64": (lambda: MODELS.densenet121(), lambda m: as_radimagenet(m, -1), HALF, dense),
    "radimagenet_inception_v3@96": (
        lambda: MODELS.inception_v3(aux_logits=False, init_weights=False),
        lambda m: as_radimagenet(m, -1),
        HALF,
        lambda m, x: nn.Sequential(*list(m.children())[:-3])(x),
    ),
    "xrv_densenet121@64": (
        lambda: one_channel(MODELS.densenet121(num_classes=18)),
        lambda m: m.state_dict() | {"op_threshs": torch.zeros(18)},
        lambda x: (2 * (x[:, :1] / 255) - 1) * 1024,
        dense,
    ),
    "chexnet_densenet121@64": (
        lambda: MODELS.densenet121(),
        lambda m: {
            "epoch": 3,
            "state_dict": {
                f"module.densenet121.{n.replace('classifier.', 'classifier.0.')}": t
                for n, t in old_names(m.state_dict()).items()
            },
        },
        lambda x: NORMAL(x / 255),
        dense,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_medical_weights(name: str, weights: Path) -> None:
    """Random tensors in the layout of the publisher give the features of a plain network with its preprocessing."""
    make, layout, prepared, last_map = PUBLISHED[name]
    model = randomised(make())
    torch.save(layout(model), weights / f"{name.partition('@')[0]}.pth")
    spec = make_spec(name)
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, spec.size, spec.size), dtype=np.uint8)
    last = list(spec.blocks)[-1]
    found = [
        to_arrays(Forward(spec, maps=[last], stored="float32", batch_size=2)(pixels))
        for pixels in (grey, grey.repeat(3, 1))
    ]
    with torch.inference_mode():
        wanted = last_map(model, prepared(torch.from_numpy(grey).float().expand(-1, 3, -1, -1)))
    for got in found:
        close(got[f"maps/{last}"], wanted)
        close(got[f"pooled/{last}/avg"], wanted.mean((2, 3)))
    np.testing.assert_array_equal(found[0][f"maps/{last}"], found[1][f"maps/{last}"])


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a DINOv2 network of timm under the names of the library transformers."""
    names = (
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
        (r"^blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (r"^blocks\.(\d+)\.(norm|mlp)", r"encoder.layer.\1.\2"),
        (r"^norm\.", "layernorm."),
    )
    saved = {"embeddings.mask_token": torch.zeros(1, 768)}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rpartition(".")[2]
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                saved[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece.clone()
        else:
            for pattern, replacement in names:
                name = re.sub(pattern, replacement, name)
            saved[name] = tensor
    return saved


def test_rad_dino_in_both_layouts(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the original DINOv2 code saves it, and as the library transformers does; with two of its layers."""
    monkeypatch.setitem(BACKBONES, "rad_dino", replace(BACKBONES["rad_dino"], options={"depth": 2}))
    row.cache_clear()
    model = randomised(timm.create_model("vit_base_patch14_dinov2", img_size=70, depth=2))
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("head")}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 70, 70), dtype=np.uint8)
    images = (torch.from_numpy(pixels).float().expand(-1, 3, -1, -1) / 255 - 0.5307) / 0.2583
    with torch.inference_mode():
        wanted = model.forward_features(images)
    digests = set()
    for content in ({**state, "mask_token": torch.zeros(1, 768)}, as_transformers(state)):
        torch.save(content, weights / "rad_dino.pth")
        spec = make_spec("rad_dino@70")
        digests.add(spec.weights)
        got = to_arrays(Forward(spec, stored="float32", batch_size=2)(pixels))
        close(got["pooled/blocks.1/cls"], wanted[:, 0])
        close(got["pooled/blocks.1/avg"], wanted[:, 1:].mean(1))
    assert len(digests) == 1
    row.cache_clear()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "uni",
            {"pos_embed": (1, 197, 1024), "blocks.23.ls1.gamma": (1024,), "blocks.23.mlp.fc1.weight": (4096, 1024)},
        ),
        ("gigapath", {"pos_embed": (1, 197, 1536), "patch_embed.proj.weight": (1536, 3, 16, 16)}),
        ("h_optimus_0", {"pos_embed": (1, 256, 1536), "reg_token": (1, 4, 1536), "blocks.39.norm1.bias": (1536,)}),
    ],
)
def test_large_transformers_have_the_published_shapes(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """The rows of large networks, which are not run here, build what their configurations say."""
    line = BACKBONES[name]
    with torch.device("meta"):
        state = timm.create_model(line.architecture, **line.options).state_dict()
    assert {tensor: tuple(state[tensor].shape) for tensor in shapes} == shapes


def test_a_row_without_its_file_says_where_it_comes_from(weights: Path) -> None:
    """The publisher, the licence, and the name of the file."""
    with pytest.raises(BadWeights, match=r"no weights of xrv_densenet121: .*torchxrayvision.*xrv_densenet121\.pth"):
        load_spec("xrv_densenet121")
    with pytest.raises(BadWeights, match=r"no weights of rad_dino: .*microsoft/rad-dino.*MIT"):
        load_spec("rad_dino")


def test_hugging_faces_cache_and_no_network(weights: Path) -> None:
    """Weights in the cache are taken; without them and without a network the message names file and place."""
    words = (
        r"put model\.safetensors of timm/resnet18\.a1_in1k as timm/resnet18\.safetensors into the folder FIRN_WEIGHTS"
    )
    with pytest.raises(BadWeights, match=words):
        load_spec("timm/resnet18")
    place = weights / "hub" / "models--timm--resnet18.a1_in1k"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    save_file(randomised(timm.create_model("resnet18")).state_dict(), place / "snapshots" / "abc" / "model.safetensors")
    assert load_spec("timm/resnet18").file.is_relative_to(place)


def test_names_that_timm_does_not_have(weights: Path) -> None:
    """A typing error is answered with a guess; a network that cannot be cut, or has no order, with a word."""
    with pytest.raises(UnknownName, match=r"known: [\d,]+ names \(did you mean timm/resnet50"):
        load_spec("timm/resnet05")
    with pytest.raises(FirnError, match=r"CrossVit of timm cannot be cut at its blocks"):
        load_spec("timm/crossvit_tiny_240")
    timm_network("hiera_tiny_224", weights)
    with pytest.raises(FirnError, match=r"timm/hiera_tiny_224 has its tokens in an order of its own"):
        load_spec("timm/hiera_tiny_224")


def test_size_is_in_the_key_and_no_weights_of_its_own() -> None:
    """`SIZE=` is part of a backbone's name; without it key and spec are what they were."""
    plain, large = load_spec("squeezenet1_1"), load_spec("squeezenet1_1@320")
    assert (large.size, large.resize, large.weights) == (320, round(256 * 320 / 224), plain.weights)
    assert large.blocks["features.12"] == (512, 19, 19)
    keys = [spec.key(preprocess="squash", precision="float32") for spec in (plain, large)]
    assert keys[1].preprocess.startswith("squash: whole picture to 320 x 320 (bilinear, antialias)")
    assert len({key.digest() for key in keys}) == 2
    assert (
        load_spec("squeezenet1_1@224")
        .key(preprocess="crop", precision="float32")
        .preprocess.startswith("crop: short side to 256 (bilinear, antialias), centre 224")
    )
    assert FeatureOptions(backbone="alexnet a@64+b", size=320).backbone == "alexnet@320 a@64+b@320"
    assert FeatureOptions(size=320).backbone == "resnet18@320"


def test_a_transformer_travels_the_whole_way(weights: Path, spots: Path) -> None:
    """Extraction resumes; heads on the class token and on maps, fine-tuning, class maps, bundle and export agree."""
    name = "timm/vit_tiny_patch16_224@48"
    timm_network(name.removeprefix("timm/"), weights)
    folder = str(spots)
    for _ in range(2):
        (line,) = extract(folder, name, maps="1", precision="float32")
        assert line.startswith(f"ready: {stored('spots')} {name} 32 images")
    train_heads(folder, name, heads="logistic", precision="float32")
    train_heads(folder, name, heads="lda", pool="cls", precision="float32")
    finetune(folder, name, epochs=1, batch_size=8, precision="float32")
    runs = load_runs(stored("spots"), "classes", "split")
    assert {run.record.backbone for run in runs} == {name}
    for run in runs:
        path = weights / f"{run.record.head}.zip"
        assert "8 test images agree within" in bundle(selected(run.folder), out=str(path))
    (exported,) = (weights / f"{run.record.head}.zip" for run in runs if run.record.head == "finetuned")
    lines = export(selected(exported), "program", out=str(weights / "finetuned.pt2"))
    assert any("it agrees with torch within" in line for line in lines)
    explained = verb("explain", folder, name, heads="finetuned")
    assert "explained on 8 images" in explained[0]
    assert len(selected(dataset=folder, backbone="timm/vit_tiny_patch16_224").load_all()) == len(runs) == 3
    with pytest.raises(CacheError, match="no trained heads"):
        selected(dataset=folder, backbone="timm/vit_tiny_patch16_224@64").load_all()


def test_class_maps_leave_out_the_tokens_of_no_place() -> None:
    """Grad-CAM and HiResCAM at a transformer's boundary have a value for each patch; logits see all tokens."""
    layout = Layout("tokens", 3, 5)
    raw = torch.randn(2, 14, 4, generator=torch.Generator().manual_seed(0))
    maps = tokens_of(raw, layout)
    assert maps.shape == (2, 4, 5, 3)
    assert torch.equal(raw_of(maps, layout), raw)
    assert torch.equal(maps[:, :, 2:], maps_of(raw, layout))

    class Tail(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return maps_of(raw_of(x, layout), layout)

    network, asked = FinetunedNetwork(Tail(), 4, 2), np.array([[0.0, 1.0], [0.0, 1.0]])
    with torch.no_grad():
        logits = network(maps)
    found = hires_cam(network, maps.numpy(), asked)
    assert found.shape == grad_cam(network, maps.numpy(), asked).shape == (2, 3, 3)
    np.testing.assert_allclose(found.mean((1, 2)) + network.classifier.bias[1].item(), logits[:, 1], rtol=1e-5)
