"""Every row of BACKBONES: the same features as torchvision's own extractor, frozen, keyed by its weights."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import SHARED, needs_weights
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from features.backbones import BACKBONES, load_spec, make_spec, spec_of_digest
from features.backbones.build import cut, load_backbone, network, row
from features.backbones.weights import read_state
from features.devices import choose_precision
from features.errors import BadWeights, UnknownName
from features.extraction.forward import Forward, to_arrays
from features.extraction.onednn import packs

CNNS = [name for name, line in BACKBONES.items() if line.plain and line.weights]
REAL = ("alexnet", "mobilenet_v2", "resnet18", "resnet50", "squeezenet1_1")


SIDE = 128  # the networks are convolutional, so equality needs no full-size image


def random_network(name: str) -> nn.Module:
    """Return a backbone's whole network with random weights and random batch-norm statistics."""
    torch.manual_seed(0)
    model = network(row(name), "meta").to_empty(device="cpu")
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            scale = (6 / max(1, tensor[0].numel())) ** 0.5 if tensor.ndim > 1 else 0.1
            tensor.uniform_(0.5, 1.5) if key.endswith("running_var") else tensor.uniform_(-scale, scale)
    return model


def random_weights(name: str, folder: Path) -> nn.Module:
    """Write random weights for the part of a backbone in use, and return the whole network."""
    model = random_network(name)
    torch.save(cut(row(name), model, row(name).blocks).state_dict(), folder / f"{name}.pth")
    return model


def expected(model: nn.Module, name: str, pixels: np.ndarray) -> dict[str, torch.Tensor]:
    """Return what torchvision's create_feature_extractor gives on the same images, pooled."""
    spec = load_spec(name)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    extractor = create_feature_extractor(
        model.eval(), {node: block for block, node in row(name).blocks.items()}, suppress_diff_warning=True
    )
    with torch.inference_mode():
        maps = extractor((torch.from_numpy(pixels).float() / 255).expand(-1, 3, -1, -1).sub(mean).div(std))
    out = {f"maps/{block}": m for block, m in maps.items()}
    out |= {f"pooled/{block}/avg": m.mean((2, 3)) for block, m in maps.items()}
    return out | {f"pooled/{block}/max": m.amax((2, 3)) for block, m in maps.items()}


def assert_same_features(model: nn.Module, name: str, channels: int) -> None:
    """Compare the float32 forward stage with torchvision's extractor: 1e-5 relative to each block's size."""
    spec = load_spec(name)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, channels, SIDE, SIDE), dtype=np.uint8)
    last = list(spec.blocks)[-1]
    forward = Forward(spec, maps=[last], stored="float32", batch_size=2)
    got = to_arrays(forward(pixels))
    wanted = expected(model, name, pixels)
    assert set(got) == {n for n in wanted if n.startswith("pooled/")} | {f"maps/{last}"}
    for block, shape in spec.blocks.items():
        assert wanted[f"maps/{block}"].shape[1] == shape[0]
    for key, array in got.items():
        reference = wanted[key].numpy()
        assert np.linalg.norm(array - reference) <= 1e-5 * np.linalg.norm(reference), key


def assert_close_in_half(model: nn.Module, name: str) -> None:
    """Compare the last block in bfloat16 with torchvision's float32: cosine 0.999; on a CPU that can, all is packed."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, SIDE, SIDE), dtype=np.uint8)
    forward, key = Forward(load_spec(name), precision="bfloat16", batch_size=2), f"pooled/{row_end(name)}/avg"
    got, wanted = to_arrays(forward(pixels))[key].astype(np.float32), expected(model, name, pixels)[key].numpy()
    cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() >= 0.999
    assert not packs(torch.bfloat16) or not any(type(m) is nn.Conv2d for m in forward._module.modules())


def row_end(name: str) -> str:
    """Return the last block of a row."""
    return list(BACKBONES[name].blocks)[-1]


@pytest.mark.parametrize("name", CNNS)
def test_random_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features equal torchvision's extractor for every row, and nothing in the network has changed or can learn."""
    monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
    model = random_weights(name, tmp_path)
    assert_same_features(model, name, channels=3)
    assert_close_in_half(model, name)
    frozen = load_backbone(load_spec(name))
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    with torch.inference_mode():
        frozen(torch.rand(1, 3, SIDE, SIDE))
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


@needs_weights
@pytest.mark.parametrize("name", REAL)
def test_real_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features equal torchvision's extractor with the real weights, on grey images."""
    monkeypatch.setenv("FIRN_WEIGHTS", str(SHARED / "weights"))
    model = network(row(name))
    state = torch.load(SHARED / "weights" / f"{name}.pth", weights_only=True)
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert_same_features(model, name, channels=1)


@pytest.mark.parametrize("name", [n for n in CNNS if n != "inception_v3"])
def test_row_is_what_torchvision_says(name: str) -> None:
    """File name, blocks and preprocessing agree with torchvision's own weights."""
    line = BACKBONES[name]
    weights = torchvision.models.get_weight(line.weights)
    assert weights.url.endswith(line.file)
    assert weights.transforms().crop_size == [224]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("wide_resnet50_2", ["layer1", "layer2", "layer3", "layer4"]),
        (
            "regnet_y_400mf",
            ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"],
        ),
        ("mnasnet0_5", ["layers.8", "layers.9", "layers.11", "layers.16"]),
        ("vgg11", ["features.9", "features.14", "features.19", "features.20"]),
    ],
)
def test_other_torchvision_networks(name: str, blocks: list[str]) -> None:
    """A CNN without a row gets a tap at the end of each stage."""
    assert list(row(name).blocks) == blocks


def test_unknown_names() -> None:
    """A typing error is answered with a guess, of an architecture and of a library."""
    with pytest.raises(UnknownName, match="did you mean resnet50"):
        load_spec("resnet05")
    with pytest.raises(UnknownName, match="did you mean timm"):
        load_spec("tim/resnet50")


def test_bundled_weights_need_no_download() -> None:
    """squeezenet1_1 is in the repository; its spec is remembered and then needs no torch."""
    spec = load_spec("squeezenet1_1")
    assert spec.file.is_relative_to(Path(__file__).parents[1])
    assert list(spec.blocks.values())[-1] == (512, 13, 13)
    assert load_spec("squeezenet1_1") == spec


def test_same_numbers_in_another_file_have_the_same_digest(tmp_path: Path) -> None:
    """The digest is of tensors: bare, wrapped under `model`, or with a DataParallel prefix."""
    bundled = load_spec("squeezenet1_1")
    from safetensors.torch import load_file

    state = load_file(bundled.file)
    digests = set()
    for number, content in enumerate(
        (state, {"model": state, "epoch": 3}, {"state_dict": {f"module.{k}": v.float() for k, v in state.items()}})
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        digests.add(load_spec("squeezenet1_1", tmp_path / f"{number}.pth").weights)
    assert digests == {bundled.weights}
    state["features.0.bias"][0] += 0.5
    torch.save(state, tmp_path / "changed.pth")
    assert load_spec("squeezenet1_1", tmp_path / "changed.pth").weights != bundled.weights


class Harmful:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Name the code."""
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features.0.weight": torch.zeros(2)}, r"49 missing .* 1 misshapen \(features\.0\.weight is \(2,\), not"),
        ({"head.weight": torch.zeros(2)}, r"1 unexpected \(head\.weight\)"),
        ([1, 2], "is no state dict"),
        ({"model": {}}, "is no state dict"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, content: object, message: str) -> None:
    """The message counts and names what is missing, unexpected or misshapen."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BadWeights, match=message):
        load_spec("squeezenet1_1", tmp_path / "w.pth")


def test_unsafe_and_broken_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A pickle with code is refused without running it; text, a cut file and a missing file are told apart."""
    torch.save({"model": Harmful()}, tmp_path / "unsafe.pth")
    with pytest.raises(BadWeights, match="would have to run code"):
        load_spec("squeezenet1_1", tmp_path / "unsafe.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(BadWeights):
        load_spec("squeezenet1_1", tmp_path / "bare.pth")
    assert "run" not in capfd.readouterr().out
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(BadWeights, match=f"{name}"):
            load_spec("squeezenet1_1", tmp_path / name)
    with pytest.raises(BadWeights, match="no weights file"):
        load_spec("squeezenet1_1", tmp_path / "none.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone."])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state_dict", "net"])
def test_what_wrappers_put_around_weights(tmp_path: Path, prefix: str, wrapper: str) -> None:
    """The tensors are those of the bare file, under any of the keys and prefixes that people's programs write."""
    bare = load_spec("squeezenet1_1")
    state = {f"{prefix}{name}": tensor for name, tensor in read_state(bare.file).items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    assert load_spec("squeezenet1_1", tmp_path / "w.pth").weights == bare.weights


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda state: {"state_dict": _under("model.", state) | {"criterion.weight": torch.ones(2)}, "epoch": 3}, ""),
        (
            lambda state: {"state_dict": _under("model.", state) | _under("ema_model.", _plus(state, 1))},
            "model. is taken",
        ),
        (lambda state: {"model_ema": state, "epoch": 3}, ""),
        (lambda state: {"model": state, "model_ema": _plus(state, 1)}, ""),
        (lambda state: {"n_averaged": torch.tensor(3), **_under("module.", state)}, ""),
        (lambda state: _under("student.net.", state), ""),
        (lambda state: _without_head(state) | {"fc.weight": torch.zeros(5, 512)}, ""),
        (lambda state: {name: tensor.half() for name, tensor in state.items()}, ""),
    ],
    ids=["lightning", "ema beside it", "ema alone", "ema under its key", "averaged", "prefix", "other head", "half"],
)
def test_what_training_programs_save_besides(
    tmp_path: Path, content: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss, averages, counters and other heads beside a network are passed over, and a choice is told."""
    bare = load_spec("squeezenet1_1")
    torch.save(content(read_state(bare.file)), tmp_path / "w.ckpt")
    assert load_spec("squeezenet1_1", tmp_path / "w.ckpt").weights == bare.weights
    assert said in capsys.readouterr().err


def _under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _plus(state: dict[str, torch.Tensor], more: float) -> dict[str, torch.Tensor]:
    return {name: tensor + more for name, tensor in state.items()}


def _without_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}


def test_a_layer_too_many_is_a_fault(tmp_path: Path) -> None:
    """Another head is none; a layer in a module that is in use is."""
    state = read_state(load_spec("squeezenet1_1").file)
    torch.save(state | {"features.13.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(BadWeights, match=r"1 unexpected \(features\.13\.weight\)"):
        load_spec("squeezenet1_1", tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["features.0.weight", "features.6.expand1x1.bias", "features.12.squeeze.weight"])
def test_numbers_that_are_none(tmp_path: Path, value: float, which: str) -> None:
    """NaN and infinity are refused when weights are loaded: fused kernels would turn them into zeros."""
    state = read_state(load_spec("squeezenet1_1").file)
    state[which] = state[which].clone()
    state[which].view(-1)[0] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadWeights, match=rf"1 values of {re.escape(which)} are NaN or infinite"):
        load_spec("squeezenet1_1", tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"epoch 3\n", "is a text and no weights"),
    ],
)
def test_files_that_are_saved_in_place_of_weights(tmp_path: Path, content: bytes, words: str) -> None:
    """Each is called what it is."""
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(BadWeights, match=words):
        load_spec("squeezenet1_1", tmp_path / "w.pth")


def test_weights_are_found_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever weights are looked for, those of the digest are taken, also behind others of the same name."""
    ours = make_spec("squeezenet1_1")
    state = read_state(ours.file)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "squeezenet1_1.pth")
    monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
    other = make_spec("squeezenet1_1")
    assert other.weights != ours.weights
    assert spec_of_digest("squeezenet1_1", ours.weights) == ours
    assert spec_of_digest("squeezenet1_1", other.weights).file == tmp_path / "squeezenet1_1.pth"
    with pytest.raises(BadWeights, match=rf"digest abab.*got .*has {other.weights[:12]}; .*{ours.weights[:12]}"):
        spec_of_digest("squeezenet1_1", "ab" * 32)


def test_networks_that_overflow_float16_take_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU "auto" goes by the largest value of the weights at hand, before any image is read."""
    bundled = load_spec("squeezenet1_1")
    assert 1 < bundled.largest < 8000
    assert choose_precision("auto", "cuda", bundled.largest) == "float16"
    state = read_state(bundled.file)
    state["features.3.squeeze.weight"] = state["features.3.squeeze.weight"].float() * 1e4
    torch.save(state, tmp_path / "squeezenet1_1.pth")
    monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
    assert choose_precision("auto", "cuda", load_spec("squeezenet1_1").largest) == "bfloat16"
    assert choose_precision("float16", "cuda", 1e9) == "float16"
    assert choose_precision("auto", "cpu", 1e9) in ("bfloat16", "float32")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_torchvision_comes_without_what_it_does_not_need(name: str) -> None:
    """torch._dynamo, half of the import, stays away until it is asked for; then it is the real one."""
    code = (
        f"import sys; from features.backbones.build import cut, network, row; line = row('{name}')\n"
        "cut(line, network(line, 'meta'), line.blocks)\n"
        "assert not [n for n in sys.modules if n[:13] == 'torch._dynamo']\n"
        "import torch, torchvision; print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist())\n"
        "print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 1).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[2.0, 2.0]", "[[[[1.0]]]]"], done.stderr
