from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import file_size_limit
from numpy.typing import NDArray
from PIL import Image

from features.datasets.phantom import CLASSES, draw_phantom
from features.datasets.phantom_anatomy import SIZE, draw_chest, expose
from features.errors import BadDataset

ROOT = Path(__file__).parents[1]
PATIENTS = 32


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "phantom"
    draw_phantom(folder, patients=PATIENTS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(folder: Path, patients: int) -> subprocess.Popen[bytes]:
    program = (
        "import sys, pathlib; from features.datasets.phantom import draw_phantom;"
        "draw_phantom(pathlib.Path(sys.argv[1]), patients=int(sys.argv[2]))"
    )
    return subprocess.Popen([sys.executable, "-W", "error", "-c", program, str(folder), str(patients)], cwd=ROOT)


def hidden(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def test_a_patient_has_three_to_five_images_one_class_and_one_split(phantom: Path) -> None:
    places: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    counts: defaultdict[str, int] = defaultdict(int)
    for path in phantom.rglob("*.png"):
        patient, _, k = path.stem.partition("_")
        places[patient].add((path.parts[-3], path.parts[-2]))
        counts[patient] += 1
        assert int(k) < 5
    assert sorted(places) == [f"p{i:04d}" for i in range(PATIENTS)]
    assert set(counts.values()) == {3, 4, 5}
    assert all(len(place) == 1 for place in places.values())
    patients_in = [place for (place,) in places.values()]
    assert {c: patients_in.count(("test", c)) for c in CLASSES} == dict.fromkeys(CLASSES, PATIENTS // 8)
    assert {c: patients_in.count(("train", c)) for c in CLASSES} == dict.fromkeys(CLASSES, 3 * PATIENTS // 8)


def test_images_are_grey_varied_and_carry_no_clock(phantom: Path) -> None:
    means = []
    for path in sorted(phantom.rglob("*.png")):
        with Image.open(path) as image:
            assert (image.size, image.mode, image.info) == ((SIZE, SIZE), "L", {})
            pixels = np.asarray(image)
        assert np.ptp(pixels) > 120
        means.append(pixels.mean())
    assert np.std(means) > 5


def test_neither_brightness_nor_contrast_gives_the_class_away(phantom: Path) -> None:
    def auc(of: Callable[[NDArray[np.uint8]], float]) -> float:
        values = {c: [of(np.asarray(Image.open(p))) for p in phantom.glob(f"*/{c}/*.png")] for c in CLASSES}
        clear, opaque = (np.array(values[c]) for c in CLASSES)
        return float((opaque[:, None] > clear[None]).mean())

    assert abs(auc(lambda pixels: float(pixels.mean())) - 0.5) < 0.15
    assert abs(auc(lambda pixels: float(pixels.std())) - 0.5) < 0.15


def test_opacities_brighten_the_lungs_only() -> None:
    for seed in range(4):
        clear, opaque = (draw_chest(np.random.default_rng(seed), opaque=flag) for flag in (False, True))
        added = opaque - clear
        assert clear.dtype == np.float32
        assert added.min() > -1e-5
        assert added.max() > 0.1
        assert (added > 0.02).mean() < 0.35
        beside, below = added[:, :24], added[232:]
        assert max(beside.max(), below.max()) < 1e-3


def test_images_of_a_chest_differ_in_pose_and_exposure() -> None:
    rng = np.random.default_rng(0)
    chest = draw_chest(rng, opaque=False)
    one, other = expose(chest, rng), expose(chest, rng)
    assert one.shape == (SIZE, SIZE) and one.dtype == np.uint8
    assert 2 < np.abs(one.astype(int) - other).mean() < 80
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8


def test_readme_says_that_it_is_synthetic(phantom: Path) -> None:
    text = (phantom / "README.txt").read_text()
    assert "synthetic" in text and "no patient" in text and f"patients={PATIENTS} seed=0" in text


def test_bytes_depend_on_patients_and_seed_alone(tmp_path: Path) -> None:
    draw_phantom(tmp_path / "here", patients=4)
    assert start(tmp_path / "elsewhere", 4).wait() == 0
    draw_phantom(tmp_path / "other", patients=4, seed=1)
    here = contents(tmp_path / "here")
    assert here == contents(tmp_path / "elsewhere")
    assert not set(here.values()) & set(contents(tmp_path / "other").values())


def test_a_drawn_phantom_is_left_alone_and_an_empty_folder_filled(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "phantom"
    folder.mkdir(parents=True)
    draw_phantom(folder, patients=4)
    (folder / "README.txt").touch()
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    draw_phantom(folder, patients=4)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_another_content_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadDataset, match=r"holds something else than the phantom \(edition=\d+ patients=4 seed=7\)"):
        draw_phantom(tmp_path, patients=4, seed=7)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(("patients", "seed"), [(3, 0), (4, -1)])
def test_too_few_patients_are_refused(tmp_path: Path, patients: int, seed: int) -> None:
    with pytest.raises(BadDataset, match="patients >= 4 and seed >= 0"):
        draw_phantom(tmp_path / "phantom", patients=patients, seed=seed)
    assert not list(tmp_path.iterdir())


def test_two_at_once_end_with_one_whole_folder(tmp_path: Path) -> None:
    draw_phantom(tmp_path / "alone", patients=5)
    both = [start(tmp_path / "phantom", 5) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "phantom") == contents(tmp_path / "alone")
    assert not hidden(tmp_path)


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = start(tmp_path / "phantom", 10_000)
    while not list(tmp_path.rglob("*.png")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert hidden(tmp_path) and not (tmp_path / "phantom").exists()
    draw_phantom(tmp_path / "phantom", patients=4)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        file_size_limit(1000),
        pytest.raises(BadDataset, match=r"^cannot draw the phantom into .*phantom: File too large; [^\n]*$"),
    ):
        draw_phantom(tmp_path / "phantom", patients=4)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadDataset, match=r"^cannot draw the phantom into [^\n]*writable$"):
        draw_phantom(tmp_path / "file" / "phantom", patients=4)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_told_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadDataset, match="Permission denied"):
        draw_phantom(tmp_path / "phantom", patients=4)
    tmp_path.chmod(0o700)
