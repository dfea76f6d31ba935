"""FinetuneJob: what is trained from the cache is what would be trained on images, and a kill changes nothing."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from threading import current_thread
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_images, needs_weights
from torch import nn
from verbs_for_tests import choose_settings

from features.backbones import load_spec
from features.backbones.build import boundary, load_tail, network, row
from features.cache.entry import open_entry
from features.datasets import load_dataset
from features.errors import FirnError, UnknownName
from features.extraction.job import Job
from features.extraction.loop import extract
from features.extraction.prefetch import ImageStream
from features.views import View, map_rows
from models.finetuning.batches import Batch, Inputs, batches, epoch_plan
from models.finetuning.network import Convolution, FinetunedNetwork, set_mode, start_from_probe, use_products
from models.finetuning.settings import RECIPES
from models.finetuning.train import Epoch, Task, best_epoch, predict, train

LABELS = np.array([0] * 8 + [1] * 8)
LEARNED, WATCHED = np.array([0, 1, 2, 3, 4, 8, 9, 10, 11, 12]), np.array([5, 6, 13, 14])
SIX = ("resnet18", "resnet50", "alexnet", "squeezenet1_1", "mobilenet_v2", "densenet121")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Return 8 real images of each class."""
    for folder in sorted(p for p in (SHARED / "data" / "pneumonia" / "train").iterdir() if p.is_dir()):
        target = tmp_path / "few" / folder.name
        target.mkdir(parents=True)
        for image in sorted(folder.iterdir())[:8]:
            shutil.copy(image, target)
    return tmp_path / "few"


def weights_of(name: str, folder: Path) -> Path:
    """Return a weights file: the real one where there is one, else a drawn one with statistics of its own."""
    real = SHARED / "weights" / f"{name}.pth"
    if real.exists():
        return real
    torch.manual_seed(0)
    whole = network(row(name))
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):  # nothing is 0 or 1, as after a real training
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    torch.save(whole.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


def cached(data: Path, name: str, folder: Path, stored: str) -> tuple[Any, str, View, ImageStream]:
    """Extract the boundary's maps in float32; return recipe, boundary, and both ways to the same images."""
    recipe = load_spec(name, weights_of(name, folder))
    dataset, after = load_dataset(str(data)), boundary(recipe, "1")
    entry = open_entry(dataset.name, recipe.key(preprocess="squash", precision="float32", stored=stored))
    extract(dataset, [Job(entry, recipe, "squash", (after,))], batch_size=8)
    maps = map_rows(entry, after)
    return recipe, after, maps, ImageStream(dataset.source, maps.ids.tolist(), recipe, "squash")


def on_images(
    recipe: Any, images: ImageStream, task: Task, settings: Any, start: FinetunedNetwork
) -> dict[str, torch.Tensor]:
    """Take the same steps the ordinary way, written without Firn's training: whole network, frozen trunk, images."""
    whole = load_tail(recipe, "")
    trained = set(start.tail.state_dict())
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in trained)
    classifier = nn.Linear(start.classifier.in_features, start.classifier.out_features)
    classifier.load_state_dict(start.classifier.state_dict())
    parameters = [p for p in [*whole.parameters(), *classifier.parameters()] if p.requires_grad]
    if settings.recipe == "article":
        optimiser: Any = torch.optim.SGD(parameters, lr=settings.rate, momentum=0.9)
    else:
        optimiser = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0)
    for epoch in range(settings.epochs):
        rng = np.random.default_rng([settings.seed, task.draw, epoch])
        plan = epoch_plan(task.rows, batch=settings.batch, views=1, channels=1, mixup=0, dropout=0, rng=rng)
        for done, batch in enumerate(plan):
            for group in optimiser.param_groups:
                share = RECIPES[settings.recipe].multiplier(epoch + done / len(plan), settings.epochs)
                group["lr"] = settings.rate * share
            X, y = torch.from_numpy(images.read(batch.rows)), torch.from_numpy(task.y[batch.rows])
            loss = nn.functional.cross_entropy(classifier(whole(X).mean((2, 3))), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return {n: t for n, t in whole.state_dict().items() if n in trained} | {
        f"classifier.{n}": t for n, t in classifier.state_dict().items()
    }


def plain(network: FinetunedNetwork) -> dict[str, torch.Tensor]:
    """Return copies of a network's tensors, the tail's under torchvision's names."""
    return {name.removeprefix("tail."): tensor.clone() for name, tensor in network.state_dict().items()}


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference of a tensor, in the Euclidean norm."""
    pairs = [(found[name].double(), t.double()) for name, t in expected.items() if t.is_floating_point()]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)


@needs_images
@needs_weights
@pytest.mark.parametrize("name", SIX)
def test_ten_steps_from_the_cache_are_ten_steps_on_images(name: str, few: Path, tmp_path: Path) -> None:
    """In float32, with frozen batch normalisation and no augmentation: the same weights within 1e-4, relative."""
    recipe, after, maps, images = cached(few, name, tmp_path, "float32")
    # a larger rate or smaller batches would amplify the rounding of folded batch normalisation: training is chaotic
    settings = choose_settings("article", rate=1e-4, epochs=5, batch=5)
    task = Task(Inputs([maps]), LABELS, LEARNED, WATCHED, 1)
    start = FinetunedNetwork(load_tail(recipe, after), list(recipe.blocks.values())[-1][0], 2, seed=3)
    expected = on_images(recipe, images, task, settings, start)
    before = plain(start)
    last: dict[str, torch.Tensor] = {}
    train(start, task, settings, tell=lambda _: last.update(plain(start)))
    assert largest_difference(before, expected) > 1e-3  # they did move
    assert largest_difference(last, expected) < 1e-4


@needs_images
@needs_weights
def test_half_precision_maps_cost_little(few: Path, tmp_path: Path) -> None:
    """With float16 maps, AdamW and ten steps: within 2e-3, relative (docs/finetuning.md states it)."""
    recipe, after, maps, images = cached(few, "resnet18", tmp_path, "float16")
    task = Task(Inputs([maps]), LABELS, LEARNED, WATCHED, 1)
    settings = choose_settings("adamw", epochs=2, batch=2, mixup=0.0, dropout=0.0, average="none", decay=0.0)
    start = FinetunedNetwork(load_tail(recipe, after), 512, 2, seed=3)
    expected = on_images(recipe, images, task, settings, start)
    last: dict[str, torch.Tensor] = {}
    train(start, task, settings, tell=lambda _: last.update(plain(start)))
    assert largest_difference(last, expected) < 2e-3


class Rows:
    """Maps in memory as a stream."""

    def __init__(self, X: np.ndarray) -> None:
        self.X, self.ids = X, np.array([f"{i:04d}" for i in range(len(X))])

    def read(self, at: np.ndarray) -> np.ndarray:
        return self.X[at]


def toy(n: int = 60, classes: int = 2, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Return maps (n, 4, 3, 3) whose channel means tell the class, not without error."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(size=(n, 4, 3, 3)) + 0.8 * np.eye(4)[y][:, :, None, None]
    return Rows(X.astype(np.float16)), y


def small(classes: int = 2, seed: int = 0) -> FinetunedNetwork:
    """Return a fine-tuned network of one convolution with batch normalisation."""
    torch.manual_seed(seed)
    return FinetunedNetwork(
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()), 6, classes, seed=seed
    )


TASK = {"rows": np.arange(40), "watched": np.arange(40, 60), "draw": 1}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stopped", [1, 3])
def test_a_resumed_training_is_the_undisturbed_one(recipe: str, stopped: int, tmp_path: Path) -> None:
    """Interrupted after an epoch and taken up again, with all that can be switched on: every bit is the same."""
    stream, y = toy()
    settings = choose_settings(recipe, epochs=5, batch=8, norm="adapt", mixup=0.4, dropout=0.2, average="ema")
    task = Task(Inputs([stream, stream]), y, **TASK)
    expected = small()
    history = train(expected, task, settings)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == stopped:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "fold.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(small(), task, settings, checkpoint=checkpoint, identity="a", tell=stop)
    resumed, told = small(seed=9), []
    again = train(resumed, task, settings, checkpoint=checkpoint, identity="a", tell=told.append)
    assert [line.epoch for line in told] == [1, 2, 3, 4, 5]
    assert [line[:4] for line in again] == [line[:4] for line in history]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert not checkpoint.exists()


def test_a_checkpoint_of_other_settings_or_a_broken_one_is_not_taken_up(tmp_path: Path) -> None:
    """Training begins anew, and ends as it would have without."""
    stream, y = toy()
    settings, task = choose_settings("adamw", epochs=2, batch=8), Task(Inputs([stream]), y, **TASK)
    expected, checkpoint = small(), tmp_path / "fold.checkpoint"
    train(expected, task, settings)

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    for disturb in (lambda: None, lambda: checkpoint.write_bytes(checkpoint.read_bytes()[:1000])):
        with pytest.raises(KeyboardInterrupt):
            train(small(seed=5), task, settings, checkpoint=checkpoint, identity="another", tell=stop)
        disturb()
        found = small()
        train(found, task, settings, checkpoint=checkpoint, identity="this")
        assert torch.equal(found.classifier.weight, expected.classifier.weight)


def test_the_best_epoch_is_kept_and_patience_ends_a_training() -> None:
    """By area, of equals by loss; without any area by loss; the network ends with that epoch's weights."""

    def line(area: float, loss: float) -> Epoch:
        return Epoch(0, 0.0, area, loss, 1.0, 1)

    assert best_epoch([line(0.8, 1), line(0.9, 3), line(0.9, 2), line(0.85, 0)]) == 2
    assert best_epoch([line(float("nan"), 3), line(float("nan"), 1), line(float("nan"), 2)]) == 1
    stream, y = toy()
    task, seen = Task(Inputs([stream]), y, **TASK), []
    settings = choose_settings("adamw", epochs=40, batch=8, rate=0.05, patience=2, average="none", probe=False)
    network = small()
    history = train(network, task, settings, tell=lambda _: seen.append(plain(network)))
    best = best_epoch(history)
    assert len(history) == best + 3 < 40
    assert all(torch.equal(t, seen[best][n]) for n, t in plain(network).items())
    assert history[-1].loss < history[0].loss


def test_frozen_and_adapting_batch_normalisation() -> None:
    """Frozen keeps statistics and trains weights; adapt learns statistics; neither is in training mode afterwards."""
    stream, y = toy()
    task = Task(Inputs([stream]), y, **TASK)
    for norm, moves in (("frozen", False), ("adapt", True)):
        network = small()
        before = plain(network)
        train(network, task, choose_settings("adamw", epochs=1, batch=8, norm=norm, rate=0.01, average="none"))
        after = plain(network)
        assert torch.equal(before["1.running_mean"], after["1.running_mean"]) != moves
        assert not torch.equal(before["1.weight"], after["1.weight"])
        assert not network.training
        assert not any(module.training for module in network.modules())
    set_mode(network, training=True, norm="adapt")
    assert [type(m).__name__ for m in network.modules() if m.training] == ["BatchNorm2d"]


def test_an_epoch_sees_every_image_once_and_every_view_in_time() -> None:
    """Rows are shuffled, batches nearly equal; views, partners and dropped channels are drawn anew by the seed."""
    rows = np.arange(100, 203)

    def plan(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return epoch_plan(rows, batch=20, views=3, channels=50, mixup=0.3, dropout=0.25, rng=rng)

    first, again, other = plan(1), plan(1), plan(2)
    seen = np.concatenate([batch.rows for batch in first])
    assert sorted(seen) == rows.tolist() != seen.tolist()
    assert {len(batch.rows) for batch in first} <= {20, 21}
    assert set(np.concatenate([batch.view for batch in first]).tolist()) == {0, 1, 2}
    kept = np.concatenate([batch.kept for batch in first])
    assert 0.7 < kept.mean() < 0.8
    assert all(sorted(batch.partner) == list(range(len(batch.rows))) for batch in first)
    assert all(np.array_equal(a.kept, b.kept) and a.mixed == b.mixed for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.rows, b.rows) for a, b in zip(first, other, strict=True))


def test_batches_come_from_the_views_that_were_drawn() -> None:
    """Row i of a batch is image rows[i] in view[i]."""
    views = [Rows(np.full((10, 1, 1, 1), 100 * v) + np.arange(10)[:, None, None, None]) for v in range(3)]
    rng = np.random.default_rng(0)
    plan = epoch_plan(np.arange(10), batch=4, views=3, channels=1, mixup=0, dropout=0, rng=rng)
    for batch, maps in batches(Inputs(views), plan):
        assert maps[:, 0, 0, 0].tolist() == (100 * batch.view + batch.rows).tolist()


def test_batches_for_a_gpu_are_pinned_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads copies them into pinned memory, and not the one that keeps a GPU busy."""
    threads = []

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        threads.append(current_thread().name.partition("_")[0])
        return tensor + 1

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    plan = [Batch(np.arange(3 * i, 3 * i + 3), np.zeros(3, np.intp)) for i in range(3)]
    for batch, maps in batches(Inputs([Rows(np.arange(10.0)[:, None, None, None])]), plan, "cuda:1"):
        assert maps.flatten().tolist() == (batch.rows + 1).tolist()
    assert threads == ["read"] * 3


def test_class_weights_and_multiclass() -> None:
    """Balanced weights lift the rare class; seven classes work like two."""
    rng = np.random.default_rng(0)
    y = (rng.random(200) < 0.1).astype(np.int64)
    X = Rows((rng.normal(size=(200, 4, 3, 3)) + 0.3 * y[:, None, None, None]).astype(np.float32))
    task = Task(Inputs([X]), y, np.arange(150), np.arange(150, 200), 1)
    mean = {}
    for how in ("none", "balanced"):
        network = small()
        train(network, task, choose_settings("adamw", epochs=4, batch=16, rate=0.01, class_weights=how))
        mean[how] = predict(network, task.inputs, task.watched, choose_settings("adamw"))[:, 1].mean()
    assert mean["none"] < 0.3 < mean["balanced"]
    stream, y = toy(140, 4)
    network, task = small(4), Task(Inputs([stream]), y, np.arange(100), np.arange(100, 140), 1)
    train(network, task, choose_settings("adamw", epochs=15, batch=8, rate=0.01))
    proba = predict(network, task.inputs, task.watched, choose_settings("adamw"))
    assert proba.shape == (40, 4)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (proba.argmax(1) == y[100:]).mean() > 0.6


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_where_training_starts(classes: int) -> None:
    """A classifier with a linear head's weights gives that head's probabilities."""
    from models.heads import make_head

    rng = np.random.default_rng(0)
    y = np.arange(90) % classes
    X = (rng.normal(size=(90, 6)) + np.eye(6)[y]).astype(np.float32)
    head: Any = make_head("logistic").fit(X, y)
    network = FinetunedNetwork(nn.Identity(), 6, classes)
    start_from_probe(network, head.coef_, head.intercept_)
    proba = torch.softmax(network(torch.from_numpy(X)[:, :, None, None]), 1).detach().numpy()
    np.testing.assert_allclose(proba, head.predict_proba(X), atol=1e-5)


def test_settings_that_make_no_sense() -> None:
    """What was expected and what came."""
    with pytest.raises(UnknownName, match=r"adamv.*adamw"):
        choose_settings("adamv")
    with pytest.raises(UnknownName, match=r"frozzen.*frozen"):
        choose_settings("adamw", norm="frozzen")
    with pytest.raises(FirnError, match="RATE=-1"):
        choose_settings("adamw", rate=-1.0)
    with pytest.raises(FirnError, match="DROPOUT < 1"):
        choose_settings("adamw", dropout=1.0)
    assert choose_settings("article", epochs=150).epochs == 150
    assert choose_settings("article").rate == 0.01
    steps = RECIPES["article"].multiplier
    assert [round(steps(epoch, 100), 6) for epoch in (0, 9.9, 10, 25)] == [1, 1, 0.1, 0.01]
    cosine = [RECIPES["adamw"].multiplier(epoch, 10) for epoch in (0, 0.5, 1, 5.5, 10)]
    assert cosine == pytest.approx([0.01, 0.5, 1, 0.5, 0])


def test_a_loss_that_is_not_finite_is_said() -> None:
    """With the command's own way out."""
    stream, y = toy()
    stream.X[3] = np.inf
    with pytest.raises(FirnError, match=r"not finite.*RATE="):
        train(small(), Task(Inputs([stream]), y, **TASK), choose_settings("adamw", epochs=1, mixup=0.0))


def test_a_network_that_the_last_step_ruined_is_said() -> None:
    """The loss before that step is finite, and the logits after it are not; the recipe's own rate is the way out."""
    stream, y = toy()
    with pytest.raises(FirnError, match=r"the (loss is|logits are) not finite.* in epoch 1; .*RATE=0\.0002$"):
        train(small(), Task(Inputs([stream]), y, **TASK), choose_settings("adamw", epochs=1, rate=1e30, batch=1024))


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "padding", "bias"),
    [(3, 5, 3, 1, 1, True), (4, 6, 3, 2, 1, False), (8, 4, 1, 2, 0, True), (5, 7, (1, 7), 1, (0, 3), False)],
)
def test_gradients_by_products_are_those_of_the_convolution(
    channels: int, out: int, kernel: Any, stride: int, padding: Any, bias: bool
) -> None:
    """Of maps, weight and bias: no further from float32's than those of torch's own bfloat16 convolution, or 1 %."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, out, kernel, stride, padding, bias=bias)
    maps, towards = torch.randn(6, channels, 9, 10), None
    found = []
    for module, lowered in ((plain, False), (plain, True), (copy.deepcopy(plain), True)):
        if len(found) == 2:
            use_products(module)
            assert type(module) is Convolution
        given = maps.clone().requires_grad_(True)
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
            y = module(given)
        towards = torch.randn_like(y) if towards is None else towards
        (y.float() * towards).sum().backward()
        found.append([given.grad, *(p.grad.clone() for p in module.parameters())])
        assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    exact, theirs, ours = found
    for right, other, own in zip(exact, theirs, ours, strict=True):
        assert float((own - right).norm()) <= max(1.2 * float((other - right).norm()), 0.01 * float(right.norm()))


def test_only_plain_convolutions_are_changed() -> None:
    """Grouped, dilated and reflecting ones stay torch's; names and numbers stay; elsewhere nothing changes."""
    layers = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2)]
    network = nn.Sequential(*layers, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 1))
    before, maps = {n: t.clone() for n, t in network.state_dict().items()}, torch.randn(2, 4, 12, 12)
    expected = network(maps)
    use_products(network)
    assert [type(m) is Convolution for m in network] == [True, False, False, False, True]
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert torch.equal(network(maps), expected)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(maps).dtype == torch.bfloat16
