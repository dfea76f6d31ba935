"""Stage one as a whole: every image once, interruptions lose nothing, the end is the same to the bit."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from verbs_for_tests import verb

from features.backbones import load_spec
from features.backbones.build import load_backbone
from features.cache import Entry, open_entry
from features.datasets import load_dataset
from features.datasets.image_folder import FileSource
from features.devices import choose_precision, gpu_utilisation
from features.errors import BadImage, FirnError
from features.extraction import prefetch
from features.extraction.engine import _told
from features.extraction.forward import Forward, float32_products, to_arrays
from features.extraction.job import Job, Outcome
from features.extraction.loop import extract
from features.extraction.shard_writer import ShardWriter
from features.extraction.workers import WorkerPool
from features.images import Augmentation, Geometry, pixels, several_pixels
from features.progress import heard
from features.views import map_view, pooled_view

ROOT = Path(__file__).parents[1]


def job(folder: Path, *, precision: str = "float32", maps: tuple[str, ...] = (), name: str = "", view: int = 0) -> Job:
    """Return the job of filling a squeezenet1_1 entry, of a view of the images where `view` is not 0."""
    spec = replace(load_spec("squeezenet1_1"), augmentation=Augmentation(view) if view else None)
    entry = open_entry(name or load_dataset(str(folder)).name, spec.key(preprocess="squash", precision=precision))
    return Job(entry, spec, "squash", maps)


def run(folder: Path, one: Job, **options: object) -> Outcome:
    """Extract with small batches and shards."""
    settings: dict[str, object] = {"batch_size": 4, "shard_rows": 6, "workers": 2} | options
    return extract(load_dataset(str(folder)), [one], **settings)  # type: ignore[arg-type]


def everything(entry: Entry) -> tuple[np.ndarray, ...]:
    """Return all that a reader sees of an entry."""
    view = pooled_view(entry, list(entry.key.blocks), "both")
    return (view.X, view.y, view.ids, view.groups, view.splits)


def same(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    """Tell whether two readings are equal bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_features_are_those_of_the_network(spots: Path) -> None:
    """What comes out of the cache is what the network says of the decoded image, in float16."""
    one = job(spots, maps=("features.12",))
    outcome = run(spots, one)
    assert outcome.images == 32
    view, maps = pooled_view(one.entry, ["features.5", "features.12"]), map_view(one.entry, "features.12")
    spec, dataset = one.spec, load_dataset(str(spots))
    network = load_backbone(spec)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    for i in (0, 13, 31):
        data = (spots / dataset.ids[i]).read_bytes()
        image = torch.from_numpy(pixels(data, Geometry("squash", 224, 256, "bilinear"), name="x")).float()
        with torch.inference_mode():
            out = network((image[None].expand(-1, 3, -1, -1) / 255 - mean) / std)
        wanted = torch.cat([out[b].mean((2, 3)) for b in ("features.5", "features.12")], 1)[0].numpy()
        np.testing.assert_allclose(view.X[i], wanted, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(maps.X[i].astype(np.float32), out["features.12"][0], rtol=2e-3, atol=2e-3)
    assert view.ids.tolist() == dataset.ids
    assert np.array_equal(view.y, dataset.labels)


def test_second_run_computes_nothing(spots: Path) -> None:
    """Ready is ready: no image goes through the network twice."""
    one = job(spots)
    assert run(spots, one).images == 32
    shards = sorted(os.listdir(one.entry.shards))
    again = run(spots, one)
    assert (again.images, again.skipped) == (0, 0)
    assert sorted(os.listdir(one.entry.shards)) == shards


def test_images_of_this_moment_are_ready_at_once(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just before the run are read again when their times tell, and are then known."""
    monkeypatch.setattr("features.cache.content.RACY_NS", 2_000_000_000)
    (spots / "train" / "spot" / "train000.png").touch()
    run(spots, job(spots))
    again = run(spots, job(spots))
    assert (again.images, again.skipped) == (0, 0), "no byte had to be read"


def test_maps_can_be_added_later(spots: Path) -> None:
    """Asking for maps after the pooled features leaves the pooled shards as they are."""
    plain, with_maps = job(spots), job(spots, maps=("features.12",))
    run(spots, plain)
    before = everything(plain.entry)
    pooled = plain.entry.files("pooled")
    assert run(spots, with_maps).images == 32
    assert plain.entry.files("pooled") == pooled
    assert same(before, everything(plain.entry))
    maps = map_view(with_maps.entry, "features.12").X.astype(np.float32)
    average = pooled_view(with_maps.entry, ["features.12"]).X
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), average, rtol=2e-3, atol=1e-3)


def test_only_what_changed_is_computed(spots: Path) -> None:
    """A new and a changed image cost themselves; a renamed and a removed one cost nothing."""
    one = job(spots)
    run(spots, one)
    before = pooled_view(one.entry, ["features.12"])
    draw(spots / "more", per_class=1, test=0, seed=9)
    shutil.move(spots / "more" / "train" / "spot" / "train000.png", spots / "train" / "spot" / "new.png")
    shutil.rmtree(spots / "more")
    (spots / "train" / "spot" / "train003.png").rename(spots / "train" / "spot" / "renamed.png")
    (spots / "train" / "spot" / "train004.png").unlink()
    Image.fromarray(np.full((30, 50), 7, np.uint8)).save(spots / "train" / "normal" / "train001.png")
    assert run(spots, one).images == 2
    after = pooled_view(one.entry, ["features.12"])
    assert len(after.ids) == 32
    old = dict(zip(before.ids.tolist(), before.X, strict=True))
    new = dict(zip(after.ids.tolist(), after.X, strict=True))
    assert np.array_equal(new["train/spot/renamed.png"], old["train/spot/train003.png"])
    assert not np.array_equal(new["train/normal/train001.png"], old["train/normal/train001.png"])
    assert "train/spot/train004.png" not in new
    assert all(np.array_equal(new[i], old[i]) for i in set(old) & set(new) - {"train/normal/train001.png"})


def test_unreadable_images_are_left_out_and_named(spots: Path) -> None:
    """Two broken files among thirty do not stop a run; with strict the first one does."""
    (spots / "train" / "spot" / "train002.png").write_bytes(b"")
    whole = (spots / "train" / "normal" / "train005.png").read_bytes()
    (spots / "train" / "normal" / "train005.png").write_bytes(whole[: len(whole) // 2])
    one = job(spots)
    with pytest.raises(BadImage, match=r"train005\.png.*--strict"):
        run(spots, one, strict=True)
    outcome = run(spots, one)
    assert sorted(outcome.left_out) == ["train/normal/train005.png", "train/spot/train002.png"]
    assert len(pooled_view(one.entry, ["features.12"]).ids) == 30
    again = run(spots, one)
    assert (again.left_out, again.images) == (outcome.left_out, 0)
    (spots / "train" / "normal" / "train005.png").write_bytes(whole)
    assert run(spots, one).images == 1
    assert len(pooled_view(one.entry, ["features.12"]).ids) == 31


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    """When every image is broken the message shows the first reason."""
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.png").write_bytes(b"text x of " + name.encode())
        (tmp_path / "set" / name / "y.png").write_bytes(b"text y of " + name.encode())
    with pytest.raises(BadImage, match="no image could be read"):
        run(tmp_path / "set", job(tmp_path / "set"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interruption_keeps_what_was_done(spots: Path, tmp_path: Path, stop: type[BaseException]) -> None:
    """After Ctrl-C or a fault the next run goes on, and ends bit-identical to an undisturbed one."""
    undisturbed = job(spots, name="undisturbed")
    run(spots, undisturbed)

    def after_twenty(done: int, total: int) -> None:
        if done == 20:
            raise stop

    one = job(spots)
    with pytest.raises(stop):
        run(spots, one, progress=after_twenty)
    kept = len(pooled_view(one.entry, ["features.12"]).ids)
    assert 16 <= kept <= 20
    assert run(spots, one).images == 32 - kept
    assert same(everything(one.entry), everything(undisturbed.entry))


def test_one_decode_fills_several_entries(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three writers, one of them a view, give what three runs give, and each image is decoded once."""
    dataset = load_dataset(str(spots))
    asked: list[dict[str, Any]] = [{}, {"precision": "bfloat16"}, {"view": 1}]
    alone = [job(spots, name=f"alone{i}", **one) for i, one in enumerate(asked)]
    for one in alone:
        run(spots, one)
    together = [job(spots, **one) for one in asked]
    assert len({one.entry.key.folder() for one in together}) == 3
    decoded: list[bytes] = []

    def noting(data: bytes, *how: Any, name: str) -> Any:
        decoded.append(data)
        return several_pixels(data, *how, name=name)

    monkeypatch.setattr(prefetch, "several_pixels", noting)
    extract(dataset, together, batch_size=4, shard_rows=6, workers=2)
    assert sorted(decoded) == sorted((spots / image).read_bytes() for image in dataset.ids)
    for one, other in zip(alone, together, strict=True):
        assert same(everything(one.entry), everything(other.entry))
    plain, _, view = (everything(one.entry)[0] for one in together)
    assert not np.array_equal(plain, view)


def test_what_cannot_be_recorded_is_run() -> None:
    """Where no CUDA graph can be made (here for want of CUDA), the step gives the same features unrecorded."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and records")
    forward = Forward(load_spec("squeezenet1_1"), batch_size=4)
    batch = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64), dtype=np.uint8)
    with torch.inference_mode():
        found = to_arrays(forward._recorded(torch.from_numpy(batch))(torch.from_numpy(batch)))
    assert same(tuple(found.values()), tuple(to_arrays(forward(batch)).values()))


class Recording:
    """In place of a CUDA graph: what it would be of."""

    def __init__(self, step: Any, example: torch.Tensor) -> None:
        self.step = step
        step(example)


@pytest.mark.parametrize("error", [subprocess.CalledProcessError(1, "cc"), RuntimeError("no headers"), RuntimeError()])
def test_what_cannot_be_compiled_is_recorded(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that fails, in whatever way, costs a line and the speed; that memory is lacking is passed on."""

    def failing(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise error

    monkeypatch.setattr("features.extraction.forward.Replay", Recording)
    forward, batch = Forward(load_spec("squeezenet1_1"), batch_size=2), torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    forward._compiled = failing
    with heard() as lines:
        recorded = forward._recorded(batch)
    assert isinstance(recorded, Recording) and recorded.step == forward._features
    assert len(lines) == 1 and lines[0].startswith("not compiled, which is slower")
    error = torch.OutOfMemoryError()
    with pytest.raises(torch.OutOfMemoryError):
        forward._recorded(batch)


def test_a_network_that_is_not_needed_is_gone() -> None:
    """Nothing waits for the garbage collector, which knows nothing of the memory of a GPU."""
    gc.disable()
    try:
        forward = Forward(load_spec("squeezenet1_1"), batch_size=1)
        forward(np.zeros((1, 1, 64, 64), np.uint8))
        seen = weakref.ref(forward)
        del forward
        assert seen() is None
    finally:
        gc.enable()


def test_deep_pixels_stay_as_they_are() -> None:
    """Another network sees them too: they come in float32, and are not normalised in their own memory."""
    forward, seen = Forward(load_spec("squeezenet1_1"), batch_size=2), np.full((2, 1, 64, 64), 51.0, np.float32)
    once, again = (to_arrays(forward(seen)) for _ in range(2))
    assert (seen == 51).all()
    assert same(tuple(once.values()), tuple(again.values()))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),  # of a recording, or of pinned memory
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_out_of_memory_halves_the_batch(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes only two images at once still gives all features, and the smaller size stays."""
    forward = Forward(load_spec("squeezenet1_1"), batch_size=8, stored="float32")
    batch = np.random.default_rng(0).integers(0, 256, (5, 1, 64, 64), dtype=np.uint8)
    wanted = to_arrays(forward(batch))
    real = forward._run

    def small(pixels: np.ndarray) -> dict[str, torch.Tensor]:
        if forward.batch_size > 2:
            raise error
        return real(pixels)

    monkeypatch.setattr(forward, "_run", small)
    got = to_arrays(forward(batch))
    assert forward.batch_size == 2
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 65504.0, -65504.0, 6e-8, -0.0])
def test_what_is_not_finite_is_no_feature(value: float, dtype: torch.dtype) -> None:
    """Infinity and NaN are refused wherever they are; the largest and the smallest numbers of float16 pass."""
    named = {"pooled/a/avg": torch.zeros(3, 5, dtype=dtype), "maps/a": torch.full((3, 2, 4, 4), 1.5, dtype=dtype)}
    named["maps/a"][2, 1, 3, 3] = value
    if np.isfinite(value):
        assert to_arrays(named)["maps/a"][2, 1, 3, 3] == np.asarray(value, str(dtype).removeprefix("torch."))
        return
    with pytest.raises(FirnError, match=r"^maps/a has values beyond 65,504 in float16, or none"):
        to_arrays(named, "float16")


def test_a_gpu_without_room_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that other programs have taken is told in one line; any other error passes."""
    spec = load_spec("squeezenet1_1")
    for error, shown in (
        (RuntimeError("CUDA error: out of memory"), (FirnError, "nvidia-smi .*; run again with DEVICE=cpu$")),
        (RuntimeError("CUDA error: device busy"), (RuntimeError, "device busy")),
    ):
        monkeypatch.setattr(Forward, "_fast", Mock(side_effect=error))
        with pytest.raises(shown[0], match=shown[1]):
            Forward(spec)


def test_other_errors_of_a_device_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a lack of memory halves the batch."""
    forward = Forward(load_spec("squeezenet1_1"), batch_size=8)

    def broken(pixels: np.ndarray) -> dict[str, torch.Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(forward, "_run", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        forward(np.zeros((1, 1, 64, 64), np.uint8))
    assert forward.batch_size == 8


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_batch(precision: str) -> None:
    """The same image at another place of another batch, full or not, has the same features bit for bit."""
    forward = Forward(load_spec("squeezenet1_1"), precision=precision, batch_size=4)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 224, 224), dtype=np.uint8)
    first, later, alone = (to_arrays(forward(pixels[at])) for at in (slice(0, 4), slice(2, 6), slice(3, 4)))
    for name in first:
        assert np.array_equal(first[name][3], later[name][1])
        assert np.array_equal(first[name][3], alone[name][0])


def test_rows_that_wait_hold_no_larger_memory(spots: Path) -> None:
    """Features that wait for the rest of their partition are copies, not views of what the network gave."""
    one = job(spots)
    writer = ShardWriter(one, Forward(one.spec, batch_size=4), 0, WorkerPool("cpu"))
    for i in range(4):
        writer.add(0, f"{i:064x}".encode(), np.zeros((1, 224, 224), np.uint8))
    writer._behind.pop().result()
    ((_, arrays),) = writer._partitions[0]
    assert all(array.flags.owndata and len(array) == 4 for array in arrays.values())
    writer.close()


def test_rows_do_not_depend_on_how_many_threads_there_are(spots: Path) -> None:
    """One thread or three, each with a batch of its own: the same features bit for bit, and torch's setting is kept."""
    views, before = [], torch.get_num_threads()
    for threads in (1, 3):
        one = job(spots, name=f"threads{threads}")
        torch.set_num_threads(threads)
        try:
            run(spots, one)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        views.append(everything(one.entry))
    assert same(*views)


def test_a_crew_works_on_one_core_each() -> None:
    """Each thread computes on one core, as many as torch would have used, and results come in their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    pool = WorkerPool("cpu")
    try:
        assert pool.size == 3
        together = Barrier(3)

        def threads(i: int) -> tuple[int, int, int]:
            together.wait(60)  # all three are at work
            torch.ones(100_000).exp()  # what computes first might take the number of all
            return i, torch.get_num_threads(), get_ident()

        numbers, each, who = zip(*pool.each(threads, range(6)), strict=True)
        assert numbers == tuple(range(6))
        assert set(each) == {1}
        assert len(set(who)) == 3
        assert torch.get_num_threads() == 3
    finally:
        pool.close()
        torch.set_num_threads(before)


def test_grey_is_looked_up() -> None:
    """Grey pixels out of the table are the numbers that computing them gives."""
    forward = Forward(load_spec("squeezenet1_1"), precision="bfloat16", batch_size=1)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(forward._entering(pixels), forward._entering(pixels.expand(-1, 3, -1, -1)))


def test_half_precision_is_close_to_float32(spots: Path) -> None:
    """bfloat16 features have a cosine of at least 0.999 to the float32 ones, image by image."""
    full, half = job(spots, precision="float32"), job(spots, precision="bfloat16")
    run(spots, full)
    run(spots, half)
    a, b = (pooled_view(one.entry, ["features.12"]).X for one in (full, half))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.999


def slow(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> None:
    """Have a function or method take some seconds longer."""
    as_before = getattr(owner, name)

    def slower(*what: Any, **how: Any) -> Any:
        time.sleep(seconds)
        return as_before(*what, **how)

    monkeypatch.setattr(owner, name, slower)


@pytest.mark.parametrize(
    ("limit", "owner", "name", "seconds"),
    [
        ("read", FileSource, "read", 0.15),  # a slow network drive
        ("decode", prefetch, "several_pixels", 0.1),
        ("forward", Forward, "__call__", 0.5),
        ("write", Entry, "commit", 0.5),  # a slow disk
    ],
)
def test_the_last_line_names_the_limit(
    spots: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: str,
    owner: Any,
    name: str,
    seconds: float,
) -> None:
    """A stage that is made slow is the one that is named, and the others waited for it most of the time."""
    slow(monkeypatch, owner, name, seconds)
    monkeypatch.setattr("features.extraction.loop.rows_per_shard", lambda n, jobs: 4)
    monkeypatch.setattr("features.extraction.shard_writer._BATCHES_BEHIND", 1)
    verb("extract", str(spots), "squeezenet1_1", precision="float32", batch_size=4, workers=1, size=64)
    last = capsys.readouterr().err.splitlines()[-1]
    found = re.search(
        r"32 images in .*the limit was (\w+), waited for (\d+)% of the time; at work: read \d+%, .*", last
    )
    assert found and found[1] == limit, last
    assert int(found[2]) >= 40, last


def test_the_limit_where_decoding_has_threads_of_its_own() -> None:
    """On a GPU the loop waits for pixels or for room, whatever the threads that decode and launch are doing."""
    at_work = {"wall": 10.0, "read": 1.0, "decode": 60.0, "forward": 9.0, "write": 1.0}
    outcome = Outcome(images=8, seconds=defaultdict(float, at_work), threads={"decode": 8})
    for limit, waits in (
        ("decode", {"decode": 9.0, "forward": 8.0}),
        ("forward", {"write": 9.0, "forward": 8.0}),
        ("read", {"read": 70.0, "decode": 9.0, "forward": 8.0}),
        ("write", {"write": 9.0, "forward": 0.5}),
    ):
        outcome.waits = defaultdict(float, waits)
        assert outcome.limit() == limit
    assert outcome.busy() == {"read": 0.1, "decode": 0.75, "forward": 0.9, "write": 0.1}


def test_the_last_line_tells_how_busy_a_gpu_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver says through torch, on average; nothing of a CPU, or where nvidia-ml-py is not installed."""
    monkeypatch.setattr("torch.cuda.utilization", {"cuda:1": 37}.__getitem__)
    assert gpu_utilisation("cuda:1") == [37]
    assert gpu_utilisation("cuda:0") == gpu_utilisation("cpu") == []
    outcome = Outcome(images=8, seconds=defaultdict(float, {"wall": 2.0}), gpu=[37, 60, 80])
    assert _told(outcome, 8).split("; ")[2].endswith(", GPU 59%")
    outcome.gpu = []
    assert "GPU" not in _told(outcome, 8)


def spawn(folder: Path) -> subprocess.Popen[str]:
    """Start an extraction of a folder in a process of its own."""
    command = [sys.executable, "-m", "pipeline", "extract", "--dataset", str(folder), "--backbone", "squeezenet1_1"]
    return subprocess.Popen(
        [*command, "--precision", "float32", "--batch-size", "4", "--device", "cpu"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_process_is_resumed(tmp_path: Path) -> None:
    """SIGKILL in the middle: what was committed stays, the next run ends as if nothing had happened."""
    folder = draw(tmp_path / "set", per_class=60, test=20)
    one = job(folder)
    child = spawn(folder)
    deadline = time.monotonic() + 120
    while len(one.entry.files("pooled")) < 1 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    committed = one.entry.scan("pooled")[0]
    assert 0 < len(committed) < 160
    outcome = extract(load_dataset(str(folder)), [one], batch_size=4, workers=2)
    assert outcome.images == 160 - len(committed)
    undisturbed = job(folder, name="undisturbed")
    extract(load_dataset(str(folder)), [undisturbed], batch_size=4, workers=2)
    assert same(everything(one.entry), everything(undisturbed.entry))
    assert not [name for name in os.listdir(one.entry.shards) if name.startswith(".")]


def test_float32_is_multiplied_as_it_is() -> None:
    """NVIDIA's libraries are told so for as long as a batch takes, and TF32 only where it is asked for by name."""
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    for kind in ("ieee", "tf32"):
        with float32_products(kind):
            assert (convolutions.fp32_precision, products.fp32_precision) == (kind, kind)
    assert (convolutions.fp32_precision, products.fp32_precision) == before
    assert choose_precision("tf32", "cuda:1") == "tf32"
    with pytest.raises(FirnError, match="PRECISION=tf32 needs a GPU; run again with PRECISION=float32"):
        choose_precision("tf32", "cpu")
