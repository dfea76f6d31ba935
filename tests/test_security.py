"""What strangers' files must not do: fill the memory, hang, run code, lead elsewhere, steer a spreadsheet or terminal.

Names in pages are in test_report and test_gallery, links and paths of manifests in test_datasets, weights that would
run code in test_backbones, formulas in test_report.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from conftest import draw, stored
from test_images import chunk, dicom, npy, png, saved
from verbs_for_tests import asked, extract
from verbs_for_tests import pack as cache_pack

from benchmarks import fuzz as fuzzing
from benchmarks.readers import READERS
from features.cache.entry import cache_root
from features.cache.sealed import USER_BLOCK, check_heaps, seal
from features.cache.verify import find_entries
from features.datasets import load_dataset
from features.datasets.registry import from_table
from features.errors import BadDataset, BadImage, CacheError
from features.images import Geometry, pixels
from features.images.image import MAX_BYTES, MAX_PIXELS, ImageFacts
from features.request import open_features
from features.views import pooled_view
from models.heads import load_head, make_head, save_head

ROOT = Path(__file__).parents[1]
SMALL = Geometry("squash", 16, 16, "bilinear")
GREY = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
NET = "squeezenet1_1"


def jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG whose frame header claims a size."""
    data = bytearray(saved(np.repeat(GREY[..., None], 3, axis=2), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(saved(GREY, "GIF"))
    struct.pack_into("<HH", data, 6, width, height)
    return bytes(data)


SWOLLEN = zlib.compress(bytes(100_000_000))  # a hundred kilobytes
BOMBS = {
    "jpeg": (jpeg_of(65000, 65000), "at most 250000000 pixels"),
    "jpeg that fills the memory": (
        jpeg_of(15000, 15000),
        r"decodes in 1e\+09 bytes, got 15000 x 15000 pixels of 3 x 8",
    ),
    "gif": (gif_of(65535, 65535), "at most 250000000 pixels"),
    "gif that fills the memory": (gif_of(15000, 15000), "decodes in"),
    "deep png that fills the memory": (png(GREY.astype(np.uint16), 0, size=(9000, 9000)), "which take 1.9e"),
    "dicom that fills the memory": (dicom(GREY.astype(np.uint16), Rows=9000, Columns=9000), "decodes in"),
    "png text": (
        png(GREY, 0, chunk(b"zTXt", b"a\0\0" + SWOLLEN)),
        "Decompressed data too",
    ),
    "png profile": (png(GREY, 0, chunk(b"iCCP", b"a\0\0" + SWOLLEN)), "Decompressed data too"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs_take_no_memory(what: str) -> None:
    """A small file that would grow is refused before memory is taken."""
    data, reason = BOMBS[what]
    tracemalloc.start()
    with pytest.raises(BadImage, match=reason):
        pixels(data, SMALL, name="bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000_000


def test_whole_mammograms_are_no_bombs() -> None:
    """The limit is above what medicine has: 36 million pixels of 16 bits, 90 million of a colour slide."""
    for facts in (
        ImageFacts("DICOM", 5220, 6871, 1, 16, "MONOCHROME2"),
        ImageFacts("JPEG", 10000, 9000, 3, 8, "rgb"),
    ):
        assert facts.decoded_bytes() <= MAX_BYTES
    assert ImageFacts("JPEG", 50_000, MAX_PIXELS // 50_000, 1, 8, "grey").decoded_bytes() > MAX_BYTES


def test_nested_dicom() -> None:
    """Sequences inside sequences without end are refused, not followed until the stack is full."""
    data = dicom(GREY)
    start = 144 + int.from_bytes(data[140:144], "little")  # behind the meta information
    opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    deep = data[:start] + opened * 20_000
    with pytest.raises(BadImage):
        pixels(deep, SMALL, name="nested")


def npz(path: Path, **changed: Any) -> Path:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": np.zeros((4, 8, 8), np.uint8), f"{split}_labels": np.arange(4)[:, None] % 2}
    np.savez_compressed(path, **(arrays | changed))  # type: ignore[arg-type]
    return path


def test_npz_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a header claims must be there, and must fit into half of the memory."""
    path = npz(tmp_path / "claims.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    claim = npy(np.zeros((4, 8, 8), np.uint8)).replace(b"(4, 8, 8), }", b"(4, 99999999, 99999999), }")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, claim if name == "train_images.npy" else content)
    with pytest.raises(BadDataset, match=r"train_images says \(4, 99999999, 99999999\) and holds"):
        load_dataset(str(path))
    large = npz(tmp_path / "large.npz", train_images=np.zeros((4, 1000, 1000), np.uint8))
    assert large.stat().st_size < 20_000
    monkeypatch.setattr("features.datasets.medmnist.memory", lambda: 1500 * 4096)
    with pytest.raises(BadDataset, match="more than half of the memory"):
        load_dataset(str(large))


class Harmful:
    """A pickle that would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_no_pickle_is_run(tmp_path: Path) -> None:
    """Neither in an archive, nor in the place of a head, a cache or an image."""
    harm = tmp_path / "harm"
    labels = np.array([[Harmful(harm)]] * 4, dtype=object)
    with pytest.raises(BadDataset, match="holds object"):
        load_dataset(str(npz(tmp_path / "evil.npz", train_labels=labels)))
    folder = tmp_path / "head"
    save_head(folder, "lda", make_head("lda").fit(np.eye(20, 4, dtype=np.float32), np.arange(20) % 2))
    (folder / "head.safetensors").write_bytes(pickle.dumps(Harmful(harm)))
    with pytest.raises(CacheError, match="cannot read a head"):
        load_head(folder)
    (tmp_path / "pack.h5").write_bytes(pickle.dumps(Harmful(harm)))
    with pytest.raises(CacheError, match="does not open as HDF5"):
        load_dataset(str(tmp_path / "pack.h5"))
    with pytest.raises(BadImage):
        pixels(pickle.dumps(Harmful(harm)), SMALL, name="pickle")
    assert not harm.exists()


def test_a_table_of_groups_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "files.csv").write_bytes("class,file,group\ngröße,1.png,2\n".encode("latin-1"))
    with pytest.raises(BadDataset, match=r"files\.csv cannot be read"):
        from_table("files.csv", "group")(tmp_path, ["a/1.png"])


def resealed(path: Path, change: Any) -> None:
    """Change an HDF5 file and seal it anew, as a stranger could."""
    with h5py.File(path, "r+", locking=False) as file:
        change(file)
    body = path.read_bytes()[USER_BLOCK:]
    path.write_bytes(seal(xxhash.xxh3_128_hexdigest(body)) + body)


def test_a_sealed_master_that_leads_elsewhere(spots: Path, tmp_path: Path) -> None:
    """The seal tells damage and no intent: names of shards and indices are looked at for themselves."""
    extract(str(spots), NET, precision="float32")
    (entry,) = find_entries(cache_root(stored("spots")))
    sound = entry.master.read_bytes()

    def replaced(name: str, value: Any) -> Any:
        def change(file: h5py.File) -> None:
            group = file["rows/pooled"]
            del group[name]
            group[name] = value(group)

        return change

    rows = len(load_dataset(str(spots)))
    changes = {
        "leads out of the folder": replaced("shards", lambda _: np.array([b"../../../../etc/passwd"])),
        "outside its shards": replaced("shard", lambda _: np.full(rows, 9, np.int32)),
        "has no rows": replaced("row", lambda _: np.full(rows, 10**6, np.int32)),
    }
    for reason, change in changes.items():
        entry.master.write_bytes(sound)
        resealed(entry.master, change)
        with pytest.raises(CacheError, match=reason):
            pooled_view(entry, entry.key.blocks)


def test_a_damaged_pack(spots: Path, tmp_path: Path) -> None:
    """A pack comes from a colleague: a label outside the classes is damage, whatever the checksums say."""
    extract(str(spots), NET, precision="float32")
    pack = tmp_path / "spots.h5"
    cache_pack(str(spots), NET, out=str(pack), precision="float32")

    def change(file: h5py.File) -> None:
        labels = np.full(file["labels"].shape, 7, file["labels"].dtype)
        file["labels"][...] = labels
        file["checksums/labels"][...] = [xxhash.xxh3_64_intdigest(labels.data)]

    resealed(pack, change)
    with pytest.raises(CacheError, match="a label is outside its classes"):
        open_features(load_dataset(str(pack)), asked(pack))


def test_a_heap_that_leads_nowhere(spots: Path, tmp_path: Path) -> None:
    """HDF5 follows the objects of a heap of texts for ever where one has no length; a pack with one is refused."""
    extract(str(spots), NET, precision="float32")
    pack = tmp_path / "spots.h5"
    cache_pack(str(spots), NET, out=str(pack), precision="float32")
    data = bytearray(pack.read_bytes())
    check_heaps(pack)
    at = data.index(b"GCOL\x01") + 16
    while struct.unpack_from("<H", data, at)[0]:
        at += 16 + -(-struct.unpack_from("<Q", data, at + 8)[0] // 8) * 8
    struct.pack_into("<Q", data, at + 8, 0)
    pack.write_bytes(seal(xxhash.xxh3_128_hexdigest(data[USER_BLOCK:])) + data[USER_BLOCK:])
    with pytest.raises(CacheError, match="a heap of its texts leads nowhere"):
        load_dataset(str(pack))


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences in a file's name are shown as what they are, in errors and in what is left out."""
    folder = draw(tmp_path / "set", per_class=6, test=2)
    (folder / "train" / "spot" / "\x1b[2J\x1b]0;owned\x07.png").write_bytes(b"no image")
    extract(str(folder), NET, precision="float32")
    shown = capsys.readouterr()
    assert "left out train/spot/" in shown.err
    (folder / "train" / "spot" / "\x1b[2J.png").symlink_to("/etc/hostname")
    command = [sys.executable, "-m", "pipeline", "extract", "--dataset", str(folder), "--backbone", NET]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is a link that leads out of" in done.stderr
    for text in (*shown, done.stderr, done.stdout):
        assert "\x1b" not in text
        assert "\x07" not in text


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """A short run of benchmarks.fuzz inside this process: no error but Firn's own."""
    row = READERS[name]
    samples = row.samples(tmp_path)
    read = row.reader(tmp_path)
    for i in range(40):
        word, detail = fuzzing.outcome(read, fuzzing.input_of(name, i, 11, samples))
        assert word in ("read", "refused"), f"input {i}: {detail}"


def test_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that says nothing, or ends in the middle of an input, is told with the input that it was at."""
    tally = fuzzing.fuzz("BMP", 25, seed=1)
    assert (tally.inputs, tally.faults) == (25, [])
    assert tally.counts["refused"] > 0
    monkeypatch.setattr(fuzzing, "LIMIT", 0.05)
    monkeypatch.setattr(fuzzing, "PATIENCE", 0.2)
    said, says = os.pipe()
    os.write(says, b"begin\t3\nread\tinput 3\t0.1\t1000\t\nbegin\t4\n")
    tally = fuzzing.Tally("BMP")
    assert fuzzing.followed(said, tally, -1) == (4, "no answer in 0 s")
    os.close(says)
    assert fuzzing.followed(said, tally, 4) == (4, "the process died")
    os.close(said)
    assert tally.counts["fault"] == 1  # longer than this limit
