"""The readers that strangers' files go through, and sound files to begin with; what `benchmarks.fuzz` feeds."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmarks.mutations import Repair, in_zip, plain, png_sums, sealed
from features.backbones.weights import digest, read_state
from features.cache.content import Digests
from features.cache.entry import Entry
from features.cache.key import Key
from features.cache.verify import verify
from features.datasets import load_dataset
from features.images import Geometry, describe, pixels
from features.views import load_manifest, map_view, pooled_view

__all__ = ["READERS", "Reader"]

Read = Callable[[bytes], object]
SMALL = Geometry("squash", 32, 32, "bilinear")
KEY = Key("small", "ab" * 32, ("one", "two"), "squash: 8 x 8", "float32", "float16")
REAL = Path(__file__).parents[2] / "shared" / "data"


class Reader(NamedTuple):
    """One row of READERS."""

    samples: Callable[[Path], list[bytes]]  # sound files, some made in a folder
    reader: Callable[[Path], Read]  # what reads one, given the same folder
    repair: Repair = plain


def _image(_: Path) -> Read:
    def read(data: bytes) -> object:
        describe(data, "fuzzed")
        return pixels(data, SMALL, name="fuzzed")

    return read


def _noise(*shape: int, top: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def _saved(kind: str, modes: str, **options: object) -> list[bytes]:
    out = []
    for mode in modes.split():
        target = io.BytesIO()
        Image.fromarray(_noise(24, 31, 3)).convert(mode).save(target, kind, **options)
        out.append(target.getvalue())
    return out


def _jpeg(_: Path) -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    real = [path.read_bytes() for path in sorted(REAL.glob("*/train/*/*.jp*g"))[::900][:6]]
    return _saved("JPEG", "L RGB CMYK") + _saved("JPEG", "RGB", progressive=True, exif=exif.tobytes()) + real


def _png(_: Path) -> list[bytes]:
    from test_images import chunk, png

    note = chunk(b"tEXt", b"Comment\0" + b"x" * 40) + chunk(b"zTXt", b"Comment\0\0" + b"x\x9cK\4\0\0b\0b")
    deep = [_noise(24, 31, top=65536, dtype="uint16"), _noise(24, 31, 3, top=65536, dtype="uint16")]
    return [*_saved("PNG", "1 L LA P RGB RGBA"), png(deep[0], 0), png(deep[1], 2, note)]


def _tiff(_: Path) -> list[bytes]:
    from test_images import tiff

    made = [tiff(_noise(24, 31, top=65536, dtype="uint16"), k, order=o) for k in (0, 1) for o in ("<", ">")]
    made += [
        data
        for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        for data in _saved("TIFF", "RGB", compression=kind)
    ]
    floats = io.BytesIO()
    Image.fromarray(_noise(24, 31).astype(np.float32)).save(floats, "TIFF")
    return [*made, floats.getvalue(), *_saved("TIFF", "1 L P RGB RGBA CMYK")]


def _dicom(_: Path) -> list[bytes]:
    from pydicom.data import get_testdata_file
    from test_images import dicom

    names = "CT_small MR_small_RLE MR_small_jp2klossless MR_small_jpeg_ls_lossless SC_rgb_jpeg_dcmtk image_dfl"
    found = [get_testdata_file(f"{name}.dcm", download=False) for name in names.split()]
    shipped = [Path(name).read_bytes() for name in found if name]
    window = dicom(_noise(16, 16, top=4096, dtype="uint16"), "MONOCHROME1", WindowCenter=100, WindowWidth=300)
    return [*shipped, window, dicom(_noise(16, 16, 3), "RGB")]


def _npy(_: Path) -> list[bytes]:
    out = []
    for array in (
        _noise(9, 7),
        _noise(9, 7, 3),
        _noise(9, 7).astype("<f8"),
        np.asfortranarray(_noise(9, 7).astype(">u2")),
    ):
        target = io.BytesIO()
        np.save(target, array)
        out.append(target.getvalue())
    return out


def _manifests(folder: Path) -> list[bytes]:
    for i in range(12):
        Image.fromarray(_noise(8, 8)).save(folder / f"p{i:02d}.png")
    rows = [f"p{i:02d}.png,{'ab'[i % 2]},{'train' if i < 8 else 'test'},g{i // 2}" for i in range(12)]
    short = [row.rsplit(",", 2)[0] for row in rows]
    texts = ["path,label,split,group\n" + "\n".join(rows), "\ufeffpath,label\r\n" + "\r\n".join(short), "path,label\n"]
    return [text.encode() for text in texts]


def _manifest(folder: Path) -> Read:
    def read(data: bytes) -> object:
        (folder / "manifest.csv").write_bytes(data)
        dataset = load_dataset(str(folder / "manifest.csv"))
        return [dataset.source.read(image) for image in dataset.ids]

    return read


def _npzs(_: Path) -> list[bytes]:
    out = []
    for save in (np.savez, np.savez_compressed):
        target = io.BytesIO()
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "val", "test"):
            arrays |= {f"{split}_images": _noise(6, 8, 8), f"{split}_labels": np.arange(6)[:, None] % 2}
        save(target, **arrays)
        out.append(target.getvalue())
    return out


def _npz(folder: Path) -> Read:
    def read(data: bytes) -> object:
        (folder / "set.npz").write_bytes(data)
        dataset = load_dataset(str(folder / "set.npz"))
        return [pixels(dataset.source.read(image), SMALL, name=image) for image in dataset.ids[:2]]

    return read


def _entry(folder: Path) -> Entry:
    """Return a small entry below a folder, filled at the first call."""
    from features.datasets.dataset import Dataset

    entry = Entry(folder / "entry", KEY)
    if entry.master.exists():
        return entry
    images = folder / "images"
    for i in range(8):
        (images / f"{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(_noise(8, 8 + i)).save(images / "ab"[i % 2] / f"{i}.png")
    dataset: Dataset = load_dataset(str(images))
    sha256 = np.array([f"{i:064x}" for i in range(8)], "S64")
    pooled = {f"pooled/{b}/{how}": _noise(8, 6).astype("float16") for b in KEY.blocks for how in ("avg", "max")}
    entry.commit("pooled", sha256, pooled)
    entry.commit("maps/two", sha256, {"maps/two": _noise(8, 6, 2, 2).astype("float16")})
    digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), Digests.load(folder / "none"))
    digests.sha256[:] = sha256
    entry.refresh(dataset, digests, {}, {})
    return entry


def _masters(folder: Path) -> list[bytes]:
    return [_entry(folder).master.read_bytes()]


def _shards(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(_entry(folder).shards.glob("*.h5"))]


def _read_all(entry: Entry) -> None:
    verify(entry)
    load_manifest(entry)
    pooled_view(entry, KEY.blocks)
    map_view(entry, "two")


def _master(folder: Path) -> Read:
    entry = _entry(folder)

    def read(data: bytes) -> object:
        entry.master.write_bytes(data)
        return _read_all(entry)

    return read


def _shard(folder: Path) -> Read:
    entry = _entry(folder)
    sound = {path: path.read_bytes() for path in sorted(entry.shards.glob("*.h5"))}

    def read(data: bytes) -> object:
        for path, content in sound.items():
            path.write_bytes(data if abs(len(content) - len(data)) < 200 else content)
        return _read_all(entry)

    return read


def _packs(folder: Path) -> list[bytes]:
    from features.cache.pack import write_pack

    path = folder / "sound.h5"
    if not path.exists():
        write_pack(_entry(folder), path, ("pooled", "maps/two"))
    return [path.read_bytes()]


def _pack(folder: Path) -> Read:
    def read(data: bytes) -> object:
        from features.options import FeatureOptions
        from features.request import open_features

        path = folder / "some.h5"
        path.write_bytes(data)
        dataset = load_dataset(str(path))
        (pack,) = open_features(dataset, FeatureOptions())
        return load_manifest(pack), pooled_view(pack, pack.key.blocks[-1:])

    return read


def _tensors() -> dict[str, object]:
    import torch

    return {"features.0.weight": torch.ones(4, 3, 3, 3), "features.0.bias": torch.zeros(4)}


def _pths(_: Path) -> list[bytes]:
    import torch

    out = []
    for content in (_tensors(), {"model": _tensors()}):
        for new in (True, False):
            target = io.BytesIO()
            torch.save(content, target, _use_new_zipfile_serialization=new)
            out.append(target.getvalue())
    return [*out, pickle.dumps({"a": 1})]


def _safetensors(_: Path) -> list[bytes]:
    from safetensors.torch import save

    return [save(_tensors())]


def _weights(folder: Path, suffix: str) -> Read:
    def read(data: bytes) -> object:
        path = folder / f"weights{suffix}"
        path.write_bytes(data)
        return digest(read_state(path))

    return read


def _heads(folder: Path) -> list[bytes]:
    from models.heads import make_head, save_head

    X = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    out = []
    for name in ("logistic", "lda", "knn", "mlp"):
        save_head(folder / "head", name, make_head(name).fit(X, np.arange(30) % 2))
        out.append((folder / "head" / "head.safetensors").read_bytes())
    return out


def _head(folder: Path) -> Read:
    def read(data: bytes) -> object:
        from models.heads import load_head

        (folder / "head" / "head.safetensors").write_bytes(data)
        return load_head(folder / "head")

    return read


def _bundle(folder: Path) -> Path:
    """Return the folder of a bundle without its networks, written at the first call."""
    import hashlib
    import json

    from models.metrics import Platt
    from models.predictor.archive import BUNDLE
    from models.predictor.manifest import Contents, Network, Part, Point

    place, (head, *_) = folder / "bundle", _heads(folder)
    (place / "parts" / "0").mkdir(parents=True, exist_ok=True)
    (place / "parts" / "0" / "head.safetensors").write_bytes(head)
    part = Part("pooled", "logistic", "parts/0", (0,), (("two",),), "avg")
    outliers = {"rest": 1.0, "threshold": 1.5, "quantile": 0.99, "features": [[0, "two"]]}
    files = {"parts/0/head.safetensors": hashlib.sha256(head).hexdigest()}
    calibration, points = Platt(0.9, (0.0, 0.1)), {"youden": Point(0.4, {"sensitivity": {"value": 0.9}})}
    contents = Contents(
        "fuzzed", ("a", "b"), (Network(KEY),), (part,), "", calibration, points, outliers, files, {"data": {}}
    )
    (place / BUNDLE).write_text(json.dumps(contents.as_dict()))
    return place


def _bundle_jsons(folder: Path) -> list[bytes]:
    return [(_bundle(folder) / "bundle.json").read_bytes()]


def _bundle_json(folder: Path) -> Read:
    from models.predictor.manifest import load_contents

    place = _bundle(folder)

    def read(data: bytes) -> object:
        (place / "bundle.json").write_bytes(data)
        return load_contents(place)

    return read


def _bundle_zips(folder: Path) -> list[bytes]:
    import zipfile

    out = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        target, place = io.BytesIO(), _bundle(folder)
        with zipfile.ZipFile(target, "w", how) as archive:
            for path in sorted(p for p in place.rglob("*") if p.is_file()):
                archive.write(path, path.relative_to(place).as_posix())
        out.append(target.getvalue())
    return out


def _bundle_zip(folder: Path) -> Read:
    from models.predictor.archive import check_files, opened
    from models.predictor.manifest import load_contents

    def read(data: bytes) -> object:
        (folder / "some.zip").write_bytes(data)
        with opened(folder / "some.zip") as place:
            return check_files(place, load_contents(place).files)

    return read


def _forests(_: Path) -> list[bytes]:
    import lightgbm

    X, y = np.random.default_rng(0).random((200, 6)), np.arange(200) % 2
    quiet = {"verbosity": -1, "num_leaves": 5, "objective": "binary"}
    return [lightgbm.train(quiet, lightgbm.Dataset(X, y, params=quiet), n).model_to_string().encode() for n in (1, 4)]


def _forest(folder: Path) -> Read:
    from models.predictor.trees import read_trees

    X = np.random.default_rng(1).random((5, 6)).astype(np.float32)

    def read(data: bytes) -> object:
        (folder / "trees.txt").write_bytes(data)
        return read_trees(folder / "trees.txt", 2, 6).predict_proba(X)

    return read


READERS: dict[str, Reader] = {
    "JPEG": Reader(_jpeg, _image),
    "PNG": Reader(_png, _image, png_sums),
    "TIFF": Reader(_tiff, _image),
    "BMP": Reader(lambda _: _saved("BMP", "1 L P RGB"), _image),
    "GIF": Reader(lambda _: _saved("GIF", "L P RGB RGBA"), _image),
    "DICOM": Reader(_dicom, _image),
    "NPY": Reader(_npy, _image),
    "manifest CSV": Reader(_manifests, _manifest),
    "MedMNIST npz": Reader(_npzs, _npz, in_zip),
    "cache master": Reader(_masters, _master, sealed),
    "cache shards": Reader(_shards, _shard, sealed),
    "pack": Reader(_packs, _pack, sealed),
    "weights .pth": Reader(_pths, partial(_weights, suffix=".pth"), in_zip),
    "weights .safetensors": Reader(_safetensors, partial(_weights, suffix=".safetensors")),
    "head .safetensors": Reader(_heads, _head),
    "bundle.json": Reader(_bundle_jsons, _bundle_json),
    "bundle .zip": Reader(_bundle_zips, _bundle_zip, in_zip),
    "trees": Reader(_forests, _forest),
}
