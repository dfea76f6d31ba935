"""Fine-tuning on images: augmentation by image, seed and epoch; decoded once; the steps of a plain torch loop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from torch import nn
from verbs_for_tests import choose_settings

from features.backbones import load_spec
from features.backbones.build import boundary, load_tail
from features.datasets import load_dataset
from features.errors import BadImage, FirnError, UnknownName
from features.extraction.prefetch import ImageStream
from features.options import replaced
from models.finetuning.augmentation import NUMBERS, Pixels, augment
from models.finetuning.batches import Inputs, epoch_plan, numbers
from models.finetuning.images import DecodedImages
from models.finetuning.network import Ensemble, FinetunedNetwork, parameter_groups
from models.finetuning.settings import AUGMENTATIONS, FLIPS, RECIPES, Amplitudes, FinetuneOptions
from models.finetuning.train import Epoch, Task, predict, predict_logits, train, trained_per_second

NET = "squeezenet1_1"
STRONG = AUGMENTATIONS["strong"]
PIXELS = Pixels((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def squares(n: int = 6, side: int = 33, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Return smooth images (n, C, S, S) uint8."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side] / side
    waves = [127 + 100 * np.sin(6 * (a * xx + b * yy + c)) for a, b, c in rng.uniform(0, 1, (n * channels, 3))]
    return torch.from_numpy(np.reshape(waves, (n, channels, side, side)).astype(np.uint8))


def drawn(n: int, **numbers_: int) -> torch.Tensor:
    """Return how n images are varied."""
    return torch.from_numpy(numbers(n, **{"seed": 0, "training": 1, "epoch": 0} | numbers_))


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("how", AUGMENTATIONS)
def test_a_batch_is_its_images_one_by_one(how: str, flip: str) -> None:
    """Whatever else is in the batch, and in whichever order; grey as colour."""
    for channels in (1, 3):
        images, numbers_ = squares(6, channels=channels), drawn(6)
        together = augment(images, numbers_, AUGMENTATIONS[how], flip)
        alone = [augment(images[i : i + 1], numbers_[i : i + 1], AUGMENTATIONS[how], flip) for i in range(6)]
        assert torch.equal(together, torch.cat(alone))
        assert together.dtype == torch.float32
        assert 0 <= float(together.min()) <= float(together.max()) <= 255
    if how == flip == "none":
        assert torch.equal(together, images.float())


def test_numbers_are_of_an_image_a_seed_a_training_and_an_epoch() -> None:
    """The same for the same, whichever images there are besides; others for anything else; all over [0, 1)."""
    first = numbers(200, seed=3, training=1, epoch=4)
    assert first.shape == (200, NUMBERS)
    assert np.array_equal(first[:50], numbers(50, seed=3, training=1, epoch=4))
    for other in ({"seed": 4}, {"training": 2}, {"epoch": 5}):
        assert not np.isin(first, numbers(200, **{"seed": 3, "training": 1, "epoch": 4} | other)).any()
    assert len(np.unique(first)) == first.size
    assert first.min() < 0.01 < 0.99 < first.max() < 1


def test_images_of_a_batch_are_varied_differently() -> None:
    """Six copies of one image come out as six images, and as six others in the next epoch."""
    copies = squares(1).expand(6, -1, -1, -1)
    first, second = (augment(copies, drawn(6, epoch=epoch), STRONG, "mirror") for epoch in (0, 1))
    every = torch.cat([first, second]).flatten(1)
    apart = torch.cdist(every, every) + 1e6 * torch.eye(12)
    assert float(apart.min()) > 100


@pytest.mark.parametrize(
    ("how", "at", "expected"),
    [
        (Amplitudes(degrees=90), {0: 1.0}, lambda x: torch.rot90(x, 1, (2, 3))),
        (Amplitudes(shift=0.25), {2: 1.0}, lambda x: torch.roll(x, -8, 3)),
        (Amplitudes(shift=0.25), {3: 1.0}, lambda x: torch.roll(x, -8, 2)),
        (Amplitudes(brightness=0.1), {4: 1.0}, lambda x: (x + 25.5).clamp(0, 255)),
        (Amplitudes(contrast=0.5), {5: 1.0}, lambda x: (1.5 * x - 0.5 * x.mean((1, 2, 3), True)).clamp(0, 255)),
        (Amplitudes(gamma=0.7), {6: 1.0}, lambda x: 255 * (x / 255) ** np.exp(0.7)),
    ],
)
def test_what_each_number_does(how: Amplitudes, at: dict[int, float], expected: Any) -> None:
    """In the middle of the image, where nothing comes in from outside; 0.5 changes nothing."""
    images = squares(2).float()
    still = torch.full((2, NUMBERS), 0.5)
    torch.testing.assert_close(augment(images, still, how, "none"), images, atol=2e-3, rtol=0)
    for number, value in at.items():
        still[:, number] = value
    found, inside = augment(images, still, how, "none"), (slice(None), slice(None), slice(0, 24), slice(0, 24))
    torch.testing.assert_close(found[inside], expected(images)[inside], atol=5e-3, rtol=0)


def test_mirror_and_quarter_turns() -> None:
    """Half of the images are mirrored; of eight ways to lay a square all occur, and no pixel is lost."""
    image = squares(1).float()
    ways = [torch.rot90(one, k, (2, 3)) for one in (image, image.flip(3)) for k in range(4)]
    found = augment(image.expand(400, -1, -1, -1), drawn(400), Amplitudes(), "any")
    nearest = torch.cdist(found.flatten(1), torch.cat(ways).flatten(1))
    assert float(nearest.min(1).values.max()) < 1
    assert np.bincount(nearest.argmin(1).numpy(), minlength=8).min() > 25
    mirrored = augment(image.expand(400, -1, -1, -1), drawn(400), Amplitudes(), "mirror")
    share = float(((mirrored - image.flip(3)).abs().amax((1, 2, 3)) < 0.01).float().mean())
    assert 0.4 < share < 0.6


def test_images_are_normalised_as_elsewhere() -> None:
    """Grey becomes three channels; the same numbers as an image stream's."""
    images = squares(2)
    expected = images.numpy().astype(np.float32) / np.float32(255) - np.array(PIXELS.mean, np.float32)[:, None, None]
    found = PIXELS(images)
    assert np.array_equal(found.numpy(), expected / np.array(PIXELS.std, np.float32)[:, None, None])
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a folder of grey images, one in colour and one of 16 bits."""
    folder = draw(tmp_path / "mixed", per_class=4, test=1)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / "train" / "spot" / "colour.png")
    Image.fromarray(rng.integers(0, 65535, (48, 48)).astype(np.uint16)).save(folder / "train" / "spot" / "deep.png")
    return folder


@pytest.mark.parametrize("memory", [None, 0.0])
def test_decoded_images_are_those_of_a_stream(mixed: Path, memory: float | None, monkeypatch: Any) -> None:
    """In memory and in a file, to the last bit; read once; a file has no name and is gone."""
    monkeypatch.setattr("models.finetuning.images._SLAB", 3)
    dataset, spec = load_dataset(str(mixed)), load_spec(NET)
    ids = sorted(dataset.ids)
    kept = DecodedImages(dataset.source, ids, spec, "squash", most=memory)
    stream = ImageStream(dataset.source, ids, spec, "squash")
    at = np.array([9, 0, 4, 11, 0])
    expected = stream.read(at)
    for path in mixed.rglob("*.png"):
        path.unlink()
    found = Pixels(spec.mean, spec.std)(torch.from_numpy(kept.read(at)))
    assert np.array_equal(found.numpy(), expected)
    assert not list(mixed.parent.joinpath("artifacts").rglob("*tmp*"))


def test_grey_images_take_one_byte_a_pixel(spots: Path) -> None:
    """And an unreadable one is named."""
    dataset, spec = load_dataset(str(spots)), load_spec(NET)
    images = DecodedImages(dataset.source, dataset.ids, spec, "squash")
    assert images.read(np.arange(5)).shape == (5, 1, spec.size, spec.size)
    assert images.read(np.arange(5)).dtype == np.uint8
    broken = next(spots.rglob("*.png"))
    broken.write_bytes(b"no image")
    with pytest.raises(BadImage, match=broken.name):
        DecodedImages(dataset.source, dataset.ids, spec, "squash")


class Images:
    """Images in memory as a stream."""

    def __init__(self, n: int = 28, side: int = 16) -> None:
        rng = np.random.default_rng(0)
        self.y = np.arange(n) % 2
        bright = 80 * self.y[:, None, None, None] * (np.arange(side) < side // 2)
        self.X = (rng.integers(20, 120, (n, 1, side, side)) + bright).astype(np.uint8)
        self.ids = np.array([f"{i:03d}" for i in range(n)])

    def read(self, at: np.ndarray) -> np.ndarray:
        return self.X[at]


def small(seed: int = 0, frozen: tuple[str, ...] = ()) -> FinetunedNetwork:
    """Return a network of two convolutions on images."""
    torch.manual_seed(seed)
    tail = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
    return FinetunedNetwork(tail, 8, 2, seed=seed, frozen=frozen)


def small_task() -> Task:
    """Return a training on twenty images, eight are watched."""
    images = Images()
    return Task(Inputs([images], PIXELS), images.y, np.arange(20), np.arange(20, 28), 1)


def by_hand(network: FinetunedNetwork, task: Task, settings: Any) -> dict[str, list[torch.Tensor]]:
    """Take the steps of one epoch of `strong` as torch alone does; return the weights, and their moving average.

    Written without Firn's training; only which images are in a batch, and what is drawn for them, is the same.
    """
    tail, classifier = network.tail.eval(), network.classifier
    whole = [*tail.parameters(), *classifier.parameters()]
    groups = [
        {"params": [p for p in part.parameters() if (p.ndim > 1) == bool(decay)], "weight_decay": decay, "part": part}
        for part in (tail, classifier)
        for decay in (settings.decay, 0.0)
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.rate)
    average = [p.detach().clone() for p in whole]
    rng = np.random.default_rng([settings.seed, task.draw, 0])
    varied = torch.from_numpy(numbers(len(task.y), seed=settings.seed, training=task.draw, epoch=0))
    plan = epoch_plan(task.rows, batch=2, views=1, channels=8, mixup=0, dropout=settings.dropout, rng=rng)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PIXELS.mean, PIXELS.std))
    for done, batch in enumerate(plan):
        images = augment(torch.from_numpy(Images().X[batch.rows]), varied[batch.rows], STRONG, "mirror")
        features = tail((images / 255 - mean) / std).mean((2, 3))
        features = features * torch.from_numpy(batch.kept) / (1 - settings.dropout)
        optimiser.zero_grad()
        nn.functional.cross_entropy(classifier(features), torch.from_numpy(task.y[batch.rows])).backward()
        rate = settings.rate * RECIPES["strong"].multiplier(done / len(plan), 1)
        for group in optimiser.param_groups:
            group["lr"] = rate * (10 if group["part"] is classifier else 1)
        optimiser.step()
        keep = min(0.998, (2 + done) / (11 + done))
        for moving, now in zip(average, whole, strict=True):
            moving.mul_(keep).add_(now.detach(), alpha=1 - keep)
    assert len(plan) == 10
    return {"none": [p.detach() for p in whole], "ema": average}


@pytest.mark.parametrize("average", ["none", "ema"])
def test_ten_steps_are_those_of_a_plain_loop(average: str) -> None:
    """Augmented images, dropout, discriminative rates, one cycle, in float32 on a CPU: the same within rounding."""
    settings = choose_settings("strong", blocks="all", epochs=1, batch=2, rate=1e-3, average=average)
    task, found = small_task(), small()
    expected = by_hand(small(), task, settings)[average]
    train(found, task, settings)
    for ours, theirs, before in zip(found.parameters(), expected, small().parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(ours, before, rtol=1e-4, atol=1e-6)


def test_one_cycle_is_torchs() -> None:
    """Step for step that of OneCycleLR."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=10_000)
    found = []
    for _ in range(10_000 - 1):
        found.append(cycle.get_last_lr()[0])
        optimiser.step()
        cycle.step()
    expected = [RECIPES["strong"].multiplier(step / 1000, 10) for step in range(10_000 - 1)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("more", [{}, {"mixup": 0.3, "norm": "adapt", "flip": "any", "class_weights": "balanced"}])
def test_a_resumed_training_on_images_is_the_undisturbed_one(more: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after an epoch and taken up again: every bit is the same, and so is what it predicts."""
    settings, task = choose_settings("strong", blocks="all", epochs=3, batch=8, rate=1e-3, **more), small_task()
    expected, resumed = small(), small(seed=5)
    history = train(expected, task, settings)

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), task, settings, checkpoint=tmp_path / "one", identity="a", tell=stop)
    again = train(resumed, task, settings, checkpoint=tmp_path / "one", identity="a")
    assert [line[:4] for line in again] == [line[:4] for line in history]
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), resumed.parameters(), strict=True))
    ours, theirs = (predict(net, task.inputs, task.watched, settings) for net in (resumed, expected))
    assert np.array_equal(ours, theirs)


def test_timing_a_few_steps_changes_nothing() -> None:
    """The network is as it was, and the rate is a number."""
    settings, task, network = choose_settings("strong", blocks="all", batch=4), small_task(), small()
    assert trained_per_second(network, task, settings) > 0
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), small().parameters(), strict=True))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_frozen_parameters_stay_and_the_rest_moves() -> None:
    """Of tail and classifier; frozen batch normalisation does not adapt; no optimiser knows of what is frozen."""
    frozen = ("0.weight", "0.bias", "1.weight", "1.bias")
    settings = choose_settings("strong", blocks="all", epochs=1, batch=8, rate=1e-2, norm="adapt")
    network, before = small(frozen=frozen), small().state_dict()
    groups = parameter_groups(network, 0.01, 10.0)
    assert [(len(g["params"]), g["weight_decay"], g["scale"]) for g in groups] == [
        (1, 0.01, 1.0),
        (1, 0.0, 1.0),
        (1, 0.01, 10.0),
        (1, 0.0, 10.0),
    ]
    train(network, small_task(), settings)
    still = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert still == {name for name in before if name.startswith(("tail.0", "tail.1"))}


def test_the_mean_of_networks_and_of_mirror_images() -> None:
    """Logits are averaged; a training with mirrored images is judged with them."""
    X = torch.rand(3, 3, 16, 16)
    networks = [small(seed).eval() for seed in (1, 2, 3)]
    expected = torch.stack([net(x) for net in networks for x in (X, X.flip(3))]).mean(0)
    torch.testing.assert_close(Ensemble(networks, mirrored=True)(X), expected)
    torch.testing.assert_close(Ensemble(networks)(X), torch.stack([net(X) for net in networks]).mean(0))
    task = small_task()
    images = PIXELS(torch.from_numpy(Images().X[task.watched]))
    for flip, mirrored in (("none", False), ("mirror", True)):
        settings = choose_settings("strong", blocks="all", flip=flip)
        found = predict_logits(networks[0], task.inputs, task.watched, settings)
        wanted = Ensemble(networks[:1], mirrored=mirrored)(images).detach().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_recipes_by_name_and_by_what_is_trained() -> None:
    """`strong` for the whole network, `adamw` for cached maps; the article's own; each may be asked for anywhere."""
    assert [FinetuneOptions(blocks=blocks).named for blocks in ("1", "2", "all")] == ["adamw", "adamw", "strong"]
    strong = choose_settings("", blocks="all")
    assert (strong.rate, strong.decay, strong.keep, strong.last) == (3e-4, 0.01, 0.998, 10.0)
    assert (strong.augment, strong.flip, strong.norm, strong.average) == ("strong", "mirror", "frozen", "ema")
    assert strong.mirrored
    last = choose_settings("strong", blocks="1")
    assert (last.augment, last.flip) == ("strong", "mirror")
    assert not choose_settings("strong", blocks="all", flip="none").mirrored
    cached = choose_settings("strong", blocks="1", augment="none")
    assert (cached.augment, cached.flip) == ("none", "none")
    article = choose_settings("article", blocks="all")
    assert (article.rate, article.epochs, article.augment, article.batch) == (0.01, 200, "none", 64)
    with pytest.raises(UnknownName, match=r"augment.*strnog.*strong"):
        FinetuneOptions(augment="strnog")
    with pytest.raises(UnknownName, match="networks"):
        FinetuneOptions(networks="two")
    with pytest.raises(FirnError, match="VIEWS=3 are of cached maps"):
        FinetuneOptions(blocks="all", recipe="strong", views=3)


def test_what_is_frozen_below_a_block(spots: Path) -> None:
    """With BLOCKS=1 on images the trunk stays, and the tail gives what the tail on the trunk's maps gives."""
    from verbs_for_tests import asked

    from models.runs.finetune import _jobs
    from models.runs.options import RunOptions

    features = asked(spots, NET, precision="float32")
    (job,) = _jobs(features, FinetuneOptions(blocks="1", recipe="strong"), RunOptions())
    network, spec = job.network(0), load_spec(NET)
    trained = {name for name, p in network.tail.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in load_tail(spec, boundary(spec, "1")).named_parameters()}
    assert trained < {name for name, _ in network.tail.named_parameters()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_images_and_steps_are_the_cpus() -> None:
    """Images are varied alike, and ten steps end nearly where those of the CPU do; bfloat16 trains too."""
    images, varied = squares(8, channels=3), drawn(8)
    ours = augment(images.cuda(), varied.cuda(), STRONG, "any").cpu()
    torch.testing.assert_close(ours, augment(images, varied, STRONG, "any"), atol=0.05, rtol=0)
    settings = choose_settings("strong", blocks="all", epochs=1, batch=2, rate=1e-3)
    on_cpu, on_gpu = small(), small()
    train(on_cpu, small_task(), settings)
    train(on_gpu, small_task(), settings, device="cuda")
    for found, expected in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-2, atol=2e-3)
    lowered = replaced(settings, precision="bfloat16", epochs=3)
    history = train(small(), small_task(), lowered, device="cuda")
    assert history[-1].loss < history[0].loss
