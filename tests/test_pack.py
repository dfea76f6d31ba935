"""A pack: one file that serves stage two without images, weights and torch, and that shows every flipped bit."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import draw, stored
from test_entry import filled
from test_verify import flip
from verbs_for_tests import compare, extract, pack, repair, train_heads, verify_entries

from features.cache import Entry, entries
from features.cache.index import Manifest
from features.cache.pack import Pack, open_pack, write_pack
from features.datasets import load_dataset
from features.errors import BadDataset, CacheError
from features.views import map_view, pooled_view

ROOT = Path(__file__).parents[1]
NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Refuse())
from pipeline.__main__ import main
sys.exit(main())
"""


def without_torch(*arguments: str, artifacts: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process in which torch cannot be imported, and no data and weights are to be found."""
    surroundings = {**os.environ, "FIRN_ARTIFACTS": str(artifacts), "FIRN_DATA": str(artifacts / "none")}
    command = [sys.executable, "-c", NO_TORCH, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done


def same(a: Manifest, b: Manifest) -> bool:
    """Tell whether two manifests say the same of the same images in the same order."""
    names = ("ids", "sha256", "labels", "splits", "groups")
    columns = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)
    return columns and a.left_out == b.left_out and a.about == b.about


def scattered(spots: Path) -> tuple[Entry, dict[str, np.ndarray], np.ndarray]:
    """Return an entry of 32 images in shards of 5 with maps in shards of 7, its pooled features and its maps."""
    dataset = load_dataset(str(spots))
    entry, digests, features = filled(dataset, shard=5)
    maps = np.random.default_rng(3).normal(size=(32, 2, 90, 90)).astype(np.float16)
    for i in range(0, 32, 7):
        at = np.random.default_rng(i).permutation(np.arange(i, min(i + 7, 32)))
        entry.commit("maps/late", digests.sha256[at], {"maps/late": maps[at]})
    entry.refresh(dataset, digests, {"f" * 64: "not an image"}, {"h5py": "x"})
    return entry, features, maps


def test_a_pack_is_the_entry_in_one_file(spots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of many shards, read in pieces of a few, stand in one file as any HDF5 tool expects them."""
    monkeypatch.setattr("features.cache.reader.PIECE", 3 * 2 * 90 * 90 * 2)
    entry, features, maps = scattered(spots)
    told: list[tuple[int, int]] = []
    path = tmp_path / "out" / "all.h5"
    write_pack(entry, path, ("pooled", "maps/late"), progress=lambda done, total: told.append((done, total)))
    shutil.rmtree(entry.folder)
    shutil.rmtree(spots)
    with h5py.File(path) as file:
        assert [i.decode() for i in file["ids"][...]] == sorted(i.decode() for i in file["ids"][...])
        assert all(np.array_equal(file[name][...], array) for name, array in features.items())
        assert np.array_equal(file["maps/late"][...], maps)
        assert not file["maps/late"].is_virtual
        assert file.attrs["classes"].tolist() == ["normal", "spot"]
    packed = open_pack(path)
    assert packed.whole()
    assert packed.key == entry.key
    assert told[-1][0] == told[-1][1] == maps.nbytes + sum(a.nbytes for a in features.values())
    assert os.listdir(path.parent) == ["all.h5"]


def test_views_of_a_pack_are_those_of_its_entry(spots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, labels, names, groups and splits, to the bit, also when read in small stretches."""
    entry, _, _ = scattered(spots)
    write_pack(entry, tmp_path / "all.h5", ("pooled", "maps/late"))
    packed = open_pack(tmp_path / "all.h5")
    before = entry.manifest()
    assert before is not None
    assert same(packed.manifest(), before)
    for stretch in (1 << 20, 20_000, 1):
        monkeypatch.setattr("features.cache.reader.PIECE", stretch)
        for ours, theirs in (
            (pooled_view(packed, ["early", "late"], "both"), pooled_view(entry, ["early", "late"], "both")),
            (map_view(packed, "late"), map_view(entry, "late")),
        ):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert ours.X.dtype == theirs.X.dtype
    write_pack(entry, tmp_path / "pooled.hdf5")
    with pytest.raises(CacheError, match="pack it with MAPS=late where its images are"):
        map_view(open_pack(tmp_path / "pooled.hdf5"), "late")


def read_all(path: Path) -> tuple[Pack, Manifest, list[np.ndarray]]:
    """Read everything that stage two would."""
    packed = open_pack(path)
    views = [*pooled_view(packed, ["early", "late"], "both"), *map_view(packed, "late")]
    return packed, packed.manifest(), views


def test_every_flipped_bit_is_found(spots: Path, tmp_path: Path) -> None:
    """At 300 random positions the seal notices, and reading raises one clear error or gives what was written."""
    entry, _, _ = scattered(spots)
    path = tmp_path / "all.h5"
    write_pack(entry, path, ("pooled", "maps/late"))
    right, manifest, views = read_all(path)
    size, frame = path.stat().st_size, 24_000  # most of the file is maps; its frame deserves a closer look
    rng = np.random.default_rng(0)
    raised = 0
    for position in [*rng.integers(0, frame, 250).tolist(), *rng.integers(0, size, 50).tolist()]:
        flip(path, position)
        assert not right.whole()
        try:
            pack_, found, seen = read_all(path)
            assert pack_ == right
            assert same(found, manifest)
            assert all(np.array_equal(a, b) for a, b in zip(seen, views, strict=True))
        except CacheError as error:
            raised += 1
            assert str(path) in str(error)
        flip(path, position)
    assert right.whole()
    assert raised > 50
    flip(path, size - 10)
    lines, well = verify_entries(str(path))
    assert not well
    assert lines == [f"damaged: {path}, its bytes do not match their seal; fetch it again"]


def test_a_full_disk_leaves_what_was_there(spots: Path, tmp_path: Path) -> None:
    """A limit that stops the writing: a plain OSError, the older pack untouched, no litter."""
    entry, _, _ = scattered(spots)
    path = tmp_path / "out" / "all.h5"
    write_pack(entry, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_pack(entry, path, ("pooled", "maps/late"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["all.h5"]


def test_a_killed_packer_leaves_nothing_that_looks_like_a_pack(spots: Path, tmp_path: Path) -> None:
    """SIGKILL before the rename: no pack, and the next one clears the litter away."""
    entry, _, _ = scattered(spots)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from features.cache import entries\n"
        "from features.cache.pack import write_pack\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_pack(entries(sys.argv[2])[0], Path(sys.argv[1]))\n"
    )
    path = tmp_path / "out" / "all.h5"
    done = subprocess.run([sys.executable, "-c", code, str(path), stored("spots")], cwd=ROOT)
    assert done.returncode == -9
    (litter,) = path.parent.iterdir()
    assert litter.name.endswith(".tmp")
    write_pack(entry, path)
    assert os.listdir(path.parent) == ["all.h5"]
    assert open_pack(path).whole()


def test_a_damaged_shard_is_not_packed(spots: Path, tmp_path: Path) -> None:
    """Rows pass their checksum on the way into the pack."""
    entry, features, _ = scattered(spots)
    wanted = features["pooled/late/max"][10:15].tobytes()
    path = next(p for p in entry.shards.iterdir() if wanted in p.read_bytes())
    flip(path, path.read_bytes().index(wanted))
    with pytest.raises(CacheError, match="do not match their checksum; run: make cache-repair"):
        write_pack(entry, tmp_path / "out" / "all.h5")
    assert os.listdir(tmp_path / "out") == []


@pytest.fixture(scope="module")
def colleague(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a pack of real features, the artifacts of those who made it, and an empty folder for a colleague's."""
    root = tmp_path_factory.mktemp("colleague")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(root / "ours"))
        patch.delenv("FIRN_WEIGHTS", raising=False)
        patch.setattr("features.cache.content.RACY_NS", 0)  # the images were drawn a moment ago
        folder = str(draw(root / "spots", per_class=15, test=5))
        extract(folder, "squeezenet1_1", maps="1", precision="float32")
        (line,) = pack(folder, "squeezenet1_1", out=str(root / "hand.h5"), precision="float32")
        assert line.startswith("packed: 40 images, pooled, ")
        train_heads(folder, "squeezenet1_1", heads="logistic lda knn", precision="float32")
        shutil.rmtree(folder)
    return root / "hand.h5", root / "ours", root / "theirs"


def test_stage_two_needs_nothing_but_the_pack(colleague: tuple[Path, Path, Path]) -> None:
    """Without images, weights and torch: the same predictions to the byte, and a page that compares the heads."""
    path, ours, theirs = colleague
    done = without_torch("train-heads", "--dataset", str(path), "--heads", "logistic lda knn", artifacts=theirs)
    lines = done.stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["ready:", name, "on", "squeezenet1_1"] for name in ("logistic", "lda", "knn")
    ]
    for line in lines:
        run = Path(line.split()[-1])
        assert (run / "predictions.csv").read_bytes() == (
            ours / run.relative_to(theirs) / "predictions.csv"
        ).read_bytes()
    page = Path(without_torch("compare", "--dataset", str(path), artifacts=theirs).stdout.split()[-1])
    assert page == theirs / "compare" / load_dataset(str(path)).name / "report.html"
    assert page.is_file()


def test_runs_on_a_pack_are_those_on_its_entry(
    colleague: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both are at hand, nothing is trained twice, and both stand in one comparison."""
    path, ours, _ = colleague
    monkeypatch.setenv("FIRN_ARTIFACTS", str(ours))
    stamps = {p: p.stat().st_mtime_ns for p in ours.rglob("run.json")}
    assert len(train_heads(str(path), "", heads="logistic lda knn")) == 3
    assert {p: p.stat().st_mtime_ns for p in ours.rglob("run.json")} == stamps
    assert "report.html" in compare(str(path))


WRONG = [
    (["train-heads", "--backbone", "resnet18"], "holds features of squeezenet1_1, not resnet18; leave BACKBONE= away"),
    (["train-heads", "--preprocess", "pad"], "holds features of squash, not pad; leave PREPROCESS= away"),
    (["train-heads", "--precision", "float16"], "holds features of float32, not float16; leave PRECISION= away"),
    (["train-heads", "--heads", "map"], "no feature maps at"),
    (["extract", "--backbone", "squeezenet1_1"], "without the images"),
    (["cache-why", "--backbone", "squeezenet1_1"], "without the images"),
    (["cache-repair"], "without the images"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_what_a_pack_cannot_do(arguments: list[str], message: str, colleague: tuple[Path, Path, Path]) -> None:
    """One line that says so."""
    from test_flow import pipeline

    path, _, _ = colleague
    done = pipeline(*arguments, "--dataset", str(path), expect=2)
    assert message in done.stderr
    assert done.stdout == ""


def test_a_pack_as_a_data_set(colleague: tuple[Path, Path, Path]) -> None:
    """Names, labels, splits and groups are there; an image is not."""
    path, _, _ = colleague
    dataset = load_dataset(str(path))
    with pytest.raises(BadDataset, match="was packed with its labels as they are; pack it anew with POSITIVE=normal"):
        load_dataset(str(path), positive="normal")
    assert load_dataset(str(path), positive=dataset.classes[1]).classes == dataset.classes
    assert (dataset.name[:6], len(dataset), dataset.classes) == ("spots-", 40, ("normal", "spot"))
    assert sorted(dataset.ids) == dataset.ids
    assert sorted(set(dataset.splits.tolist())) == ["test", "train"]
    with pytest.raises(BadDataset, match="features of squeezenet1_1 without the images"):
        dataset.source.read(dataset.ids[0])
    with pytest.raises(BadDataset, match="without the images"):
        repair(str(path))


def test_other_files_are_no_packs(spots: Path, tmp_path: Path) -> None:
    """A master, another HDF5 file, and a file that is none are told apart from a pack."""
    entry, _, _ = filled(load_dataset(str(spots)))
    with pytest.raises(CacheError, match=r"features\.h5 is no pack.*cache-pack"):
        load_dataset(str(entry.master))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(CacheError, match="is no pack"):
        load_dataset(str(tmp_path / "other.h5"))
    (tmp_path / "none.h5").write_bytes(b"not at all")
    with pytest.raises(CacheError, match="does not open as HDF5"):
        load_dataset(str(tmp_path / "none.h5"))


def test_places_that_a_pack_may_not_take(spots: Path, tmp_path: Path) -> None:
    """The cache itself and names that no reader expects are refused, before anything is written."""
    extract(str(spots), "squeezenet1_1", precision="float32")
    (entry,) = entries(stored("spots"))
    image = entry.master.read_bytes()
    for out, message in ((entry.master, "in the cache itself"), (tmp_path / "features.npz", "ends in .h5")):
        with pytest.raises(CacheError, match=message):
            pack(str(spots), "squeezenet1_1", out=str(out), precision="float32")
    assert entry.master.read_bytes() == image
