"""The network cut in two: trunk and tail together are the network, and a cut is found by any of its names."""

from __future__ import annotations

import pytest
import torch
from conftest import SHARED, needs_weights

from features.backbones import load_spec
from features.backbones.build import IMAGES, boundary, load_backbone, load_tail, network, row, truncated
from features.errors import FirnError, UnknownName


@pytest.fixture
def scrambled(tmp_path, monkeypatch):
    """Return a function that gives a backbone random weights and batch-norm statistics that are not 0 and 1."""

    def make(name: str):
        torch.manual_seed(0)
        whole = network(row(name))
        for key, tensor in whole.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith("running_mean"):
                tensor.normal_(0, 0.1)
        torch.save(whole.state_dict(), tmp_path / f"{name}.pth")
        monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
        return load_spec(name)

    return make


@pytest.mark.parametrize(
    ("name", "wanted", "after"),
    [
        ("squeezenet1_1", "1", "features.8"),
        ("squeezenet1_1", "features.12", "features.8"),
        ("squeezenet1_1", "2", "features.5"),
        ("squeezenet1_1", "features.8 features.12", "features.5"),
        ("squeezenet1_1", "4", IMAGES),
        ("squeezenet1_1", "all", IMAGES),
        ("squeezenet1_1", "features.11", "features.10"),  # no block of the table
        ("squeezenet1_1", "features.0", IMAGES),
    ],
)
def test_a_cut_has_many_names(name, wanted, after) -> None:
    """Numbers of last blocks, blocks, several blocks, and modules inside a block."""
    assert boundary(load_spec(name), wanted) == after


@pytest.mark.parametrize(
    ("wanted", "after", "first"),
    [("layer4.1", "layer4.0", "layer4.1"), ("1", "layer3", "layer4.0"), ("layer2", "layer1", "layer2.0")],
)
def test_residual_blocks(scrambled, wanted, after, first) -> None:
    """A single residual block can be named, and the cut lies right before it."""
    spec = scrambled("resnet18")
    assert boundary(spec, wanted) == after
    trained = sorted(load_tail(spec, after).state_dict())
    assert trained[0].startswith(f"{first}.")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("resnet18", "layer4.1"), ("densenet121", "1"), ("mobilenet_v2", "1"), ("alexnet", "1"), ("squeezenet1_1", "2")],
)
def test_trunk_and_tail_are_the_network(scrambled, name, wanted) -> None:
    """The tail on the trunk's maps gives what the whole network gives; only the tail's tensors are in it."""
    spec = scrambled(name)
    after = boundary(spec, wanted)
    images = torch.rand(2, 3, spec.size, spec.size)
    with torch.inference_mode():
        maps = load_backbone(truncated(spec, after))(images)[after]
        found = load_tail(spec, after)(maps)
        whole = load_backbone(spec)(images)
        everything = load_tail(spec, IMAGES)(images)
    expected = whole[list(spec.blocks)[-1]]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(everything, expected, rtol=1e-5, atol=1e-5)
    tail, trunk = load_tail(spec, after).state_dict(), load_backbone(truncated(spec, after)).state_dict()
    assert tail
    assert not set(tail) & set(trunk)
    assert set(tail) | set(trunk) == set(load_backbone(spec).state_dict())


def test_a_trunk_has_a_digest_of_its_own() -> None:
    """Weights after the boundary do not change the boundary's maps, so they are not in its key."""
    spec = load_spec("squeezenet1_1")
    trunk = truncated(spec, "features.8")
    assert trunk.weights != spec.weights
    assert trunk.blocks == {"features.8": spec.blocks["features.8"]}


def test_what_cannot_be_cut() -> None:
    """An unknown module, blocks that are not the last ones, and a branch, across which two maps run."""
    spec = load_spec("squeezenet1_1")
    with pytest.raises(UnknownName, match=r"features\.99"):
        boundary(spec, "features.99")
    with pytest.raises(FirnError, match="expected the last blocks"):
        boundary(spec, "features.5 features.12")
    after = boundary(spec, "features.12.expand3x3")
    with pytest.raises(FirnError, match="more than one map crosses"):
        load_tail(spec, after)


@needs_weights
def test_real_weights(monkeypatch) -> None:
    """The tail has the numbers of the weights file."""
    monkeypatch.setenv("FIRN_WEIGHTS", str(SHARED / "weights"))
    spec = load_spec("resnet18")
    stored = torch.load(spec.file, weights_only=True)
    for name, tensor in load_tail(spec, "layer3").state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, stored[name].float(), rtol=0, atol=0)
