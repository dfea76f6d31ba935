"""The bundle: the run's own numbers, nothing unsafe read, nothing damaged taken for whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from features.errors import BadBundle, BadImage, BadWeights, FirnError, UnknownName
from models.predictor.archive import BUNDLE, check_files, opened, write_archive
from models.predictor.build import BundleOptions, write_bundle
from models.predictor.loading import GOLDEN, OUTLIERS, draw_images, load
from models.predictor.manifest import load_contents
from models.predictor.ood import fit_novelty
from models.predictor.trees import read_trees
from models.runs.record import Run, load_runs

HEADS = ("logistic", "lightgbm", "spatial", "stack", "finetuned")


def best(head: str, **facts: Any) -> Run:
    """Return the run of a head on the drawn images."""
    found = [run for run in load_runs(stored("spots")) if run.record.head == head]
    return next(run for run in found if all(getattr(run.record, name) == value for name, value in facts.items()))


@pytest.fixture(scope="module")
def written(trained_spots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the plain linear run, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(trained_spots / "artifacts"))
        return write_bundle(best("logistic", pool="avg"), tmp_path_factory.mktemp("written") / "b", BundleOptions())


@pytest.fixture
def linear(written: Path, tmp_path: Path) -> Path:
    """Return a bundle of the plain linear run, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "linear"))


def spoil(folder: Path, name: str, content: bytes, *, sign: bool = True) -> None:
    """Replace a file of a bundle, and its digest as a stranger would."""
    (folder / name).write_bytes(content)
    values = json.loads((folder / BUNDLE).read_text())
    if sign:
        values["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / BUNDLE).write_text(json.dumps(values))


@pytest.mark.parametrize("head", HEADS)
def test_same_images_same_numbers(head: str, workshop: Path, tmp_path: Path) -> None:
    """Probabilities of the test images are those of the run's predictions.csv, a linear head's to all digits."""
    run = best(head)
    target = write_bundle(run, tmp_path / f"{head}.zip", BundleOptions())
    predictor = load(target)
    test = run.predictions.part(test=True)
    found = predictor([workshop / "spots" / image for image in test.ids])
    np.testing.assert_allclose(found.proba, test.proba, rtol=0, atol=1e-12 if head == "logistic" else 1e-6)
    assert found.names == [str(workshop / "spots" / image) for image in test.ids]
    np.testing.assert_array_equal(found.decision, found.proba[:, 1] >= predictor.points["youden"])
    digests = [hashlib.sha256((workshop / "spots" / image).read_bytes()).hexdigest().encode() for image in test.ids]
    assert predictor.seen is not None
    assert [len(part) for part in predictor.seen.arrays().values()] == [20, 8]
    assert all(predictor.seen.in_test(d) and not predictor.seen.in_training(d) for d in digests)
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".txt"}
    assert any(name.startswith("networks/") for name in names) == (head == "finetuned")


def test_joined_blocks_and_poolings(workshop: Path, tmp_path: Path) -> None:
    """Several blocks, mean and maximum, come side by side as the head learned them."""
    run = best("logistic", pool="both")
    test = run.predictions.part(test=True)
    found = load(write_bundle(run, tmp_path / "b", BundleOptions()))([workshop / "spots" / image for image in test.ids])
    np.testing.assert_allclose(found.proba, test.proba, rtol=0, atol=1e-6)


def test_ways_to_give_images(linear: Path, workshop: Path) -> None:
    """A file, its bytes and its pixels are the same image; one may come alone; any batch gives the same."""
    path = workshop / "spots" / "test" / "spot" / "test000.png"
    with Image.open(path) as image:
        array = np.asarray(image)
    predictor = load(linear)
    several = predictor([path, str(path), path.read_bytes(), array])
    assert np.ptp(several.proba, axis=0).max() == 0
    assert several.labels == [predictor.classes[several.decision[0]]] * 4
    np.testing.assert_allclose(predictor(array).proba, several.proba[:1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(load(linear, batch_size=2)(array).proba, several.proba[:1], atol=1e-5)
    assert predictor([]).proba.shape == (0, 2)


def test_unreadable_images(linear: Path, workshop: Path, tmp_path: Path) -> None:
    """They stop a strict call, and are left out of the other with a reason."""
    good, bad = workshop / "spots" / "test" / "spot" / "test000.png", tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG nonsense")
    predictor = load(linear)
    with pytest.raises(BadImage, match=r"bad\.png"):
        predictor([good, bad])
    found = predictor([bad, good, tmp_path / "none.png"], strict=False)
    assert found.names == [str(good)]
    assert set(found.left_out) == {str(bad), str(tmp_path / "none.png")}


def test_operating_points(linear: Path, workshop: Path) -> None:
    """Points come from out-of-fold predictions; a number is one too; others are refused."""
    predictor = load(linear)
    assert list(predictor.points) == ["youden", "sensitivity>=0.95"]
    images = sorted((workshop / "spots" / "test").rglob("*.png"))
    assert predictor(images, point="0").decision.all()
    for point in ("yuoden", "1.5", "nan"):
        with pytest.raises(UnknownName, match="operating point"):
            predictor(images[:1], point=point)


def test_calibration_is_kept_apart(workshop: Path, tmp_path: Path) -> None:
    """Calibrated probabilities come beside those of the comparison; without a calibration they are the same."""
    run, image = best("logistic", pool="avg"), draw_images()[0]
    with_it = load(write_bundle(run, tmp_path / "a", BundleOptions("temperature")))(image)
    without = load(write_bundle(run, tmp_path / "b", BundleOptions("none")))(image)
    np.testing.assert_array_equal(with_it.proba, without.proba)
    np.testing.assert_array_equal(without.proba, without.calibrated)
    assert not np.array_equal(with_it.calibrated, with_it.proba)
    with pytest.raises(UnknownName, match="calibration"):
        BundleOptions("plat")


def test_weights_travel_where_asked(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By digest they are looked for and named when missing; inside they need nothing else."""
    run = best("logistic", pool="avg")
    by_digest, inside = (
        write_bundle(run, tmp_path / n, BundleOptions(with_weights=bool(i))) for i, n in enumerate("ab")
    )
    expected = load(by_digest)(draw_images()[0]).proba
    monkeypatch.setattr("features.backbones.weights.BUNDLED", tmp_path)
    monkeypatch.setattr("features.backbones.weights.download", lambda name, url: (_ for _ in ()).throw(BadWeights(url)))
    with pytest.raises(BadWeights):
        load(by_digest)
    np.testing.assert_array_equal(load(inside)(draw_images()[0]).proba, expected)


def test_what_is_unlike_the_training_images() -> None:
    """About one in a hundred of the same kind lies beyond the threshold, nearly all of another kind do."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 40))
    X = (rng.normal(size=(1500, 8)) @ mixing + 0.3 * rng.normal(size=(1500, 40)) + 5).astype(np.float32)
    names = np.arange(1000).astype(str)
    found = fit_novelty(X[:1000], np.arange(1000) % 2, names)
    assert (found.distance(X[1000:]) > found.threshold).mean() < 0.03
    assert 0.9 < np.median(found.distance(X[1000:])) < 1.1
    strange = rng.permuted(X[1000:], axis=1)
    assert (found.distance(strange) > found.threshold).mean() > 0.95


def test_outliers_are_flagged(linear: Path, workshop: Path) -> None:
    """Drawn test images are ordinary; an image of something else is not."""
    predictor = load(linear)
    ordinary = predictor(sorted((workshop / "spots" / "test").rglob("*.png")))
    assert ordinary.outlier.sum() <= 1
    stripes = np.tile(np.array([0, 255], np.uint8).repeat(8), (64, 4))
    assert predictor(stripes).outlier.all()


def test_golden_samples_must_come_out_again(linear: Path) -> None:
    """Another head under the same name is noticed, and by how much it differs."""
    from safetensors.numpy import load_file, save

    name = "parts/0/head.safetensors"
    arrays = load_file(linear / name)
    spoil(linear, name, save({n: 0.9 * a for n, a in arrays.items()}))
    with pytest.raises(BadBundle, match=r"logits of the golden samples differ by [\d.e-]+ "):
        load(linear)


def test_damage_is_noticed(linear: Path) -> None:
    """A changed byte without its digest, a missing file, half a file."""
    name = "parts/0/head.safetensors"
    whole = (linear / name).read_bytes()
    spoil(linear, name, whole[:-1] + bytes([whole[-1] ^ 1]), sign=False)
    with pytest.raises(BadBundle, match="damaged"):
        load(linear)
    spoil(linear, name, whole[: len(whole) // 2])
    with pytest.raises(BadBundle, match="parts/0"):
        load(linear)
    (linear / name).unlink()
    with pytest.raises(BadBundle, match="missing"):
        load(linear)


def test_a_gpu_without_memory_is_not_the_bundles_fault(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to make a bundle anew that another machine, or the CPU, can read."""

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("models.predictor.loading.load_unchecked", full)
    with pytest.raises(FirnError, match=r"^the bundle does not fit the GPU's .*; run again with DEVICE=cpu$"):
        load(linear)


def test_pickles_are_refused(linear: Path) -> None:
    """Neither as a head nor as weights is a pickle ever loaded."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {linear}/ran",))

    spoil(linear, "parts/0/head.safetensors", pickle.dumps(Evil()))
    with pytest.raises(BadBundle):
        load(linear)
    values = json.loads((linear / BUNDLE).read_text())
    values["networks"][0]["file"] = "networks/0.pth"
    (linear / "networks").mkdir()
    (linear / BUNDLE).write_text(json.dumps(values))
    spoil(linear, "networks/0.pth", pickle.dumps(Evil()))
    with pytest.raises(FirnError):
        load(linear)
    assert not (linear / "ran").exists()


def zipped(path: Path, *entries: tuple[Any, bytes], **how: Any) -> Path:
    """Write a .zip of entries as they are."""
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../escaped", "/tmp/firn-escaped", "a/../../escaped", "a\\..\\escaped", "..", "C:/x"])
def test_zip_slip(name: str, tmp_path: Path) -> None:
    """A name that leads out of the folder is refused before anything is written."""
    path = zipped(tmp_path / "b.zip", (BUNDLE, b"{}"), (name, b"x"))
    with pytest.raises(BadBundle, match="leads out"):
        load(path)
    assert not list(tmp_path.rglob("escaped"))


def test_links_in_archives_and_folders(linear: Path, tmp_path: Path) -> None:
    """A link is refused, wherever it leads."""
    link = zipfile.ZipInfo("parts")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(BadBundle, match="link"):
        load(zipped(tmp_path / "b.zip", (link, b"/etc")))
    head = linear / "parts" / "0" / "head.json"
    head.rename(tmp_path / "head.json")
    head.symlink_to(tmp_path / "head.json")
    with pytest.raises(BadBundle, match="link"):
        load(linear)
    head.unlink()
    shutil.move(str(linear / "parts"), tmp_path / "parts")
    (linear / "parts").symlink_to(tmp_path / "parts")
    with pytest.raises(BadBundle, match="link"):
        load(linear)


def test_bombs_and_broken_archives(tmp_path: Path) -> None:
    """What inflates without end is refused by its header; what is no archive, by name."""
    bomb = zipped(tmp_path / "bomb.zip", (BUNDLE, bytes(300 << 20)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadBundle, match="inflate"):
        load(bomb)
    doubled = tmp_path / "doubled.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(doubled, (BUNDLE, b"{}"), (BUNDLE, b"{}"))
    with pytest.raises(BadBundle, match="twice"):
        load(doubled)
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 and no more")
    for missing in ("no.zip", "absent.zip", "absent"):
        with pytest.raises(BadBundle):
            load(tmp_path / missing)


def test_names_of_files_stay_inside(linear: Path) -> None:
    """bundle.json cannot point at a file outside either."""
    values = json.loads((linear / BUNDLE).read_text())
    for change in (
        lambda v: v["parts"][0].update(folder="../../etc"),
        lambda v: v["networks"][0].update(file="../secret.safetensors"),
        lambda v: v["files"].update({"/etc/passwd": "0" * 64}),
    ):
        other = json.loads(json.dumps(values))
        change(other)
        (linear / BUNDLE).write_text(json.dumps(other))
        with pytest.raises(BadBundle, match="leads out"):
            load(linear)


MISFITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a boundary that is no block": lambda v: v["networks"][0].update(after="layer9"),
    "nothing frozen under a head": lambda v: v["networks"][0].update(after=""),
    "another block": lambda v: v["parts"][0].update(blocks=[["features.8"]]),
    "no block": lambda v: v["parts"][0].update(blocks=[[]]),
    "maps for a head on means": lambda v: v["parts"][0].update(pool=""),
    "twice the features": lambda v: v["parts"][0].update(pool="both"),
    "another head": lambda v: v["parts"][0].update(head="knn"),
    "a head of runs": lambda v: v["parts"][0].update(head="stack"),
    "a part as a network": lambda v: v["parts"][0].update(input="thawed"),
    "a backbone that is none": lambda v: v["networks"][0]["key"].update(backbone="../../etc/passwd"),
    "another preprocessing": lambda v: v["networks"][0]["key"].update(preprocess="crop: and nothing more"),
    "distances of another block": lambda v: v["outliers"].update(features=[[0, "features.2"]]),
    "more classes": lambda v: v.update(classes=["a", "b", "c"], points={}, calibration=None),
    "isotonic of nothing": lambda v: v.update(calibration={"kind": "isotonic", "knots": [[]], "levels": [[]]}),
    "a threshold that no float can hold": lambda v: v["points"]["youden"].update(threshold=10**400),
    "a calibration by zero": lambda v: v.update(calibration={"kind": "temperature", "temperature": 0}),
    "a stack that is not there": lambda v: v.update(stack="stack"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_together(misfit: str, linear: Path) -> None:
    """Well-formed, well-signed and wrong: one of Firn's own errors."""
    values = json.loads((linear / BUNDLE).read_text())
    MISFITS[misfit](values)
    (linear / BUNDLE).write_text(json.dumps(values))
    with pytest.raises(FirnError):
        load(linear)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to every value of a JSON document but the card's."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if (*path, name) != ("card",):
            found += places(inner, (*path, name))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bundle_json(data: st.DataObject, written: Path, tmp_path: Path) -> None:
    """One value replaced, removed or truncated anywhere: contents as checked, or Firn's errors; never another one."""
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        shutil.copytree(written, folder)
    values = json.loads((written / BUNDLE).read_text())
    path = data.draw(st.sampled_from(places(values)))
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    if data.draw(st.booleans()):
        inner[path[-1]] = data.draw(JSON)
    else:
        del inner[path[-1]]
    text = json.dumps(values)
    cut = data.draw(st.just(len(text)) | st.integers(1, len(text)))
    (folder / BUNDLE).write_text(text[:cut])
    with contextlib.suppress(FirnError):
        assert len(load_contents(folder).classes) == 2 or "classes" in path
        load(folder)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([GOLDEN, OUTLIERS, "parts/0/head.safetensors", "parts/0/head.json"]), data=st.data())
def test_any_tensors(name: str, data: st.DataObject, written: Path, tmp_path: Path) -> None:
    """Bytes changed anywhere in a signed file: a predictor that gives its golden samples, or only Firn's errors."""
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written, folder)
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content), 400) - 1) | st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    spoil(folder, name, bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]))
    with contextlib.suppress(FirnError):
        load(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_archive(data: st.DataObject, written: Path, tmp_path: Path) -> None:
    """Bytes of a .zip changed or cut anywhere: its files as they were, or BadBundle; never another error."""
    whole, path = tmp_path / "whole.zip", tmp_path / "changed.zip"
    if not whole.exists():
        write_archive(Path(shutil.copytree(written, tmp_path / "copy")), whole)
    content = bytearray(whole.read_bytes())
    headers = [i for i in range(len(content) - 46) if content[i : i + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 45))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with contextlib.suppress(BadBundle), opened(path) as folder:
        check_files(folder, load_contents(folder).files)
        assert (folder / BUNDLE).read_bytes() == (written / BUNDLE).read_bytes()


@pytest.fixture(scope="module", params=[2, 3])
def forest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return LightGBM's text of small trees for two or three classes."""
    import lightgbm

    rng = np.random.default_rng(0)
    X, y = rng.random((200, 6)), rng.integers(request.param, size=200)
    objective = {"objective": "binary"} if request.param == 2 else {"objective": "multiclass", "num_class": 3}
    table = lightgbm.Dataset(X, y + (X[:, 0] > 0.5) * (1 - y), params={"verbosity": -1})
    path = tmp_path_factory.mktemp("forest") / "lightgbm.txt"
    lightgbm.train({**objective, "num_leaves": 5, "verbosity": -1}, table, 4).save_model(path)
    return path, request.param


CHANGES: dict[str, tuple[str, str]] = {
    "too many children": (r"left_child=", "left_child=0 "),
    "a circle": (r"left_child=-?\d+", "left_child=0"),
    "a child that is none": (r"right_child=-?\d+", "right_child=99"),
    "a feature that is none": (r"split_feature=\d+", "split_feature=6"),
    "a threshold that is no number": (r"threshold=\S+", "threshold=nan"),
    "categories": (r"decision_type=2", "decision_type=1"),
    "another objective": (r"objective=\w+", "objective=regression"),
    "too few leaves": (r"num_leaves=\d", "num_leaves=9"),
    "no tree": (r"(?s)\nTree=.*", ""),
}


def test_trees_as_lightgbm_walks_them(forest: tuple[Path, int]) -> None:
    """The own walk gives LightGBM's probabilities to the last bits."""
    import lightgbm

    path, classes = forest
    X = np.random.default_rng(1).random((300, 6)).astype(np.float32)
    ours = read_trees(path, classes, 6).predict_proba(X)
    theirs = lightgbm.Booster(model_file=str(path)).predict(X)
    np.testing.assert_allclose(ours if classes > 2 else ours[:, 1], theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("change", CHANGES)
def test_trees_of_strangers(change: str, forest: tuple[Path, int], tmp_path: Path) -> None:
    """A text that would lead LightGBM out of its arrays is refused before anything is walked."""
    path, classes = forest
    text, (pattern, by) = path.read_text(), CHANGES[change]
    changed = re.sub(pattern, by, text, count=1)
    assert changed != text
    (tmp_path / "trees.txt").write_text(changed)
    with pytest.raises(BadBundle, match="holds no trees"):
        read_trees(tmp_path / "trees.txt", classes, 6)


def test_folders_are_replaced_whole(linear: Path, workshop: Path, tmp_path: Path) -> None:
    """Writing again replaces a bundle, and nothing else."""
    write_bundle(best("logistic", pool="both"), linear, BundleOptions())
    assert "both" in load(linear).contents.name
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadBundle, match="no bundle"):
        write_bundle(best("logistic", pool="both"), tmp_path / "mine", BundleOptions())
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not list(tmp_path.glob(".*"))
    with opened(linear) as folder:
        assert folder == linear
