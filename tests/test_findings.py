"""Several findings per image: tables, folds, the sweep, heads, scores, and the verbs on them."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import verbs_for_tests as verbs
from numpy.typing import NDArray
from PIL import Image

from features.cache.pack import open_pack
from features.datasets import load_dataset
from features.datasets.findings import FEWEST, label_matrix, patterns_of
from features.datasets.phantom_findings import FINDINGS, draw_phantom_findings
from features.datasets.stratification import label_folds
from features.errors import BadDataset, FirnError, UnknownName
from models.folds import grouped_folds
from models.heads import HEADS, load_head, make_head, save_head
from models.heads.findings import finding_loss
from models.logistic_path import strengths, sweep, sweep_findings
from models.metrics import BadPredictions, score
from models.metrics.findings import macro_auc, micro, score_findings
from models.runs.findings import compare_findings
from models.runs.outcomes import Judged, of_finding
from models.runs.record import load_runs
from models.validation.cross_validation import own_fold
from models.validation.predictions import load_predictions, save_predictions

Ints = NDArray[np.int64]
NAMES = ("alpha", "beta", "gamma")


def drawn(n: int = 240, d: int = 12, *, missing: float = 0.15, seed: int = 0) -> tuple[Any, Ints, Any]:
    """Return features (n, d), labels (n, 3) of 0, 1 and -1 that they tell, and groups of two."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    chance = X[:, :3] * 2 + rng.normal(size=(n, 3)) + np.array([0.0, -1.0, -1.8])
    y = (chance > 0).astype(np.int64)
    y[rng.random((n, 3)) < missing] = -1
    return X, y, np.char.add("p", (np.arange(n) // 2).astype(str))


# --- labels ---


def test_a_matrix_comes_back_from_its_patterns() -> None:
    matrix = np.array([[0, 1, -1], [1, 1, 0], [-1, -1, -1]])
    assert patterns_of(matrix) == ["01?", "110", "???"]
    assert np.array_equal(label_matrix(patterns_of(matrix)), matrix)


def table(root: Path, lines: list[str]) -> Path:
    """Write a table and an image for each of its lines."""
    for at, line in enumerate(lines[1:]):
        image = root / line.partition(",")[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(f"image {at}".encode())
    path = root / "table.csv"
    path.write_text("\n".join(lines))
    return path


def test_patients_come_from_the_folders_where_no_column_tells(tmp_path: Path) -> None:
    """CheXpert has no column of patients: its paths tell, and a split that Firn draws keeps them together."""
    lines = ["Path,Edema,Mass"]
    lines += [
        f"train/patient{n // 3:05}/study{n % 3}/view1_frontal.jpg,{int(n % 2 == 0)},{int(n % 3 == 0)}"
        for n in range(90)
    ]
    dataset = load_dataset(str(table(tmp_path, lines)))
    assert (dataset.grouped_by, len(set(dataset.groups.tolist()))) == ("patient", 30)
    sides = {(group, split) for group, split in zip(dataset.groups.tolist(), dataset.splits.tolist(), strict=True)}
    assert len(sides) == 30
    lines[1] = lines[1].replace("train/patient00000/", "train/other/")
    assert load_dataset(str(table(tmp_path, lines))).grouped_by == ""


def chexpert(root: Path, count: int = 60) -> Path:
    """Write a table as CheXpert's: 1, 0, -1 and blank; the first finding is present in every third image."""
    lines = ["Path,Sex,No Finding,Edema,Mass,Support Devices"]
    for n in range(count):
        if n % 4 == 3:
            lines.append(f"p{n // 2}/{n}.png,M,1.0,,,")
            continue
        mass = ("1.0", "0.0", "-1.0", "")[n % 5 if n % 5 < 4 else 0]
        lines.append(f"p{n // 2}/{n}.png,F,,{float(n % 3 == 0)},{mass},{'1.0' if n % 2 else '0.0'}")
    return table(root, lines)


def test_chexperts_blanks_are_missing_but_for_images_without_findings(tmp_path: Path) -> None:
    dataset = load_dataset(str(chexpert(tmp_path)))
    matrix = label_matrix(dataset.classes)[dataset.labels]
    at = dict(zip(dataset.ids, matrix.tolist(), strict=True))
    assert dataset.findings == ("edema", "mass", "support_devices")
    assert at["p1/3.png"] == [0, 0, -1]  # no finding; whether there are devices is not said
    assert at["p1/2.png"] == [0, -1, 0]  # the -1 of mass
    assert at["p0/0.png"] == [1, 1, 0]
    assert set(dataset.columns) == {"sex", "no_finding"}


@pytest.mark.parametrize(("way", "counts"), [("ignore", -1), ("positive", 1), ("negative", 0)])
def test_uncertain_labels_count_as_asked(tmp_path: Path, way: str, counts: int) -> None:
    dataset = load_dataset(str(chexpert(tmp_path)), uncertain=way)
    matrix = label_matrix(dataset.classes)[dataset.labels]
    assert matrix[dataset.ids.index("p1/2.png")].tolist() == [0, counts, 0]


def test_uncertain_is_refused_where_nothing_can_be(tmp_path: Path) -> None:
    path = table(tmp_path, ["path,label", *(f"{n}.png,{'ab'[n % 2]}" for n in range(20))])
    with pytest.raises(BadDataset, match=r"UNCERTAIN= is about findings of -1, and .* has none; leave it away"):
        load_dataset(str(path), uncertain="positive")


def test_uncertain_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"UNCERTAIN=.*'maybe'"):
        load_dataset(str(chexpert(tmp_path)), uncertain="maybe")


def test_rare_findings_are_left_out_by_name(tmp_path: Path) -> None:
    lines = ["path,label,patient"]
    lines += [f"{n}.png,{'a|b' if n < FEWEST - 1 else 'a' if n < 30 else 'No Finding'},p{n}" for n in range(60)]
    dataset = load_dataset(str(table(tmp_path, lines)))
    assert dataset.findings == ("a",)
    assert (
        str(dataset.left_out[-1]) == f"left out 1: findings that fewer than {FEWEST} patients have, or have not (b (9))"
    )
    assert dataset.split_by.startswith("Firn, 20% of each finding drawn as test by patient")
    with pytest.raises(BadDataset, match="which are no classes; leave TASK= away"):
        load_dataset(str(tmp_path / "table.csv"), task="classes")
    with pytest.raises(BadDataset, match="POSITIVE= chooses between two classes"):
        load_dataset(str(tmp_path / "table.csv"), positive="a")


def test_one_sign_in_a_name_of_many_classes_is_said_in_a_short_line(tmp_path: Path) -> None:
    """Of 100 classes one is called p|q, which makes a table of findings, each of them rare."""
    lines = ["path,label", "0.png,p|q", *(f"{n}.png,class {n % 99:03d}" for n in range(1, 298))]
    with pytest.raises(
        BadDataset, match=r"class 029 \(3\) and 71 more\); add images, or, .* write their names without \| and ;$"
    ):
        load_dataset(str(table(tmp_path, lines)))


def test_columns_of_who_and_how_are_no_findings_and_odd_values_are_told_of(tmp_path: Path) -> None:
    lines = ["path,patient_id,Sex,fold,Mass,Edema,Nodule,Male"]
    lines += [f"{n}.png,p{n},{n % 2},{n // 2 % 2},{n // 4 % 2},{n // 8 % 2},{n % 3},{n % 2}" for n in range(64)]
    dataset = load_dataset(str(table(tmp_path, lines)))
    assert (dataset.findings, set(dataset.columns)) == (("mass", "edema"), {"sex", "fold", "nodule", "male"})
    (gone,) = dataset.left_out
    assert (gone.reason, gone.examples) == (
        "columns that are no finding, with values besides 1, 0, -1 and blank",
        ("nodule (2)",),
    )
    lines = ["image,MEL,BCC,male", *(f"{n}.png,{n % 2},{1 - n % 2},{n // 2 % 2}" for n in range(20))]
    one_hot = load_dataset(str(table(tmp_path, lines)))
    assert (one_hot.classes, one_hot.findings, set(one_hot.columns)) == (("bcc", "mel"), (), {"male"})
    lines = ["image,male,female", *(f"{n}.png,{n % 2},{1 - n % 2}" for n in range(20))]
    assert load_dataset(str(table(tmp_path, lines))).classes == ("female", "male")  # nothing else is asked about


@pytest.mark.parametrize("cells", ["a;b b;c a;c", "'b, a' 'c, b' 'a, c'", "a b c 'a and b' 'b and c'", "a;b; b;c a"])
def test_findings_in_one_cell_are_parted_however_they_are_written(tmp_path: Path, cells: str) -> None:
    words = shlex.split(cells.replace(";", "\\;"))
    lines = ["path,label", *(f'{n}.png,"{words[n % len(words)]}"' for n in range(120))]
    dataset = load_dataset(str(table(tmp_path, lines)))
    assert dataset.findings == ("a", "b", "c")
    matrix = label_matrix(dataset.classes)[dataset.labels]
    for image, row in zip(dataset.ids, matrix.tolist(), strict=True):
        letters = set(words[int(image.removesuffix(".png")) % len(words)].replace("and", "")) & set("abc")
        assert row == [int(letter in letters) for letter in "abc"]


def test_a_comma_may_be_part_of_a_name(tmp_path: Path) -> None:
    names = ("normal, left", "normal, right", "tumor, left", "tumor, right")
    dataset = load_dataset(str(table(tmp_path, ["path,label", *(f'{n}.png,"{names[n % 4]}"' for n in range(40))])))
    assert (dataset.classes, dataset.findings) == (names, ())


def medmnist(path: Path, labels: Ints) -> Path:
    n = len(labels) // 3
    arrays = {f"{s}_images": np.full((n, 8, 8), k, np.uint8) for k, s in enumerate(("train", "val", "test"))}
    arrays |= {f"{s}_labels": labels[k * n : (k + 1) * n] for k, s in enumerate(("train", "val", "test"))}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_an_archive_of_several_labels_is_a_set_of_findings(tmp_path: Path) -> None:
    labels = (np.random.default_rng(0).random((90, 4)) < 0.4).astype(np.uint8)
    dataset = load_dataset(str(medmnist(tmp_path / "chest.npz", labels)))
    assert dataset.findings == ("0", "1", "2", "3")
    order = [f"{s}/{k:06}" for s in ("train", "val", "test") for k in range(30)]
    rows = label_matrix(dataset.classes)[dataset.labels]
    assert np.array_equal(rows[[dataset.ids.index(image) for image in order]], labels)
    labels[0, 0] = 2
    with pytest.raises(BadDataset, match="expected 0 and 1 for each"):
        load_dataset(str(medmnist(tmp_path / "chest.npz", labels)))


def test_an_archive_with_one_of_several_labels_in_each_row_is_a_set_of_classes(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 90)
    dataset = load_dataset(str(medmnist(tmp_path / "one.npz", np.eye(3, dtype=np.uint8)[labels])))
    plain = load_dataset(str(medmnist(tmp_path / "plain.npz", labels.astype(np.uint8))))
    assert (dataset.classes, dataset.findings) == (("0", "1", "2"), ())
    assert np.array_equal(dataset.labels, plain.labels)


def test_the_phantom_is_the_same_each_time_and_says_what_it_shows(tmp_path: Path) -> None:
    for place in ("a", "b"):
        draw_phantom_findings(tmp_path / place, patients=12, seed=1)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    with (tmp_path / "a/findings.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(files) - 2
    assert {row[name] for row in rows for name in FINDINGS} == {"1", "0", "-1", ""}
    assert len({row["split"] for row in rows if row["patient"] == "p0003"}) == 1


# --- folds ---


def test_folds_hold_whole_groups_and_each_finding_alike() -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.random((3000, 6)) < [0.4, 0.2, 0.1, 0.05, 0.03, 0.02]).astype(np.int64)
    matrix[rng.random(matrix.shape) < 0.3] = -1
    groups = rng.integers(0, 700, 3000)
    folds = label_folds(matrix, groups, 5, seed=3)
    assert all(len(set(folds[groups == g].tolist())) == 1 for g in np.unique(groups))
    share = np.stack([(matrix[folds == f] == 1).sum(axis=0) for f in range(5)]) / (matrix == 1).sum(axis=0)
    assert np.abs(share - 0.2).max() < 0.03
    assert np.abs(np.bincount(folds) / 3000 - 0.2).max() < 0.02
    order = rng.permutation(3000)
    assert np.array_equal(label_folds(matrix[order], groups[order], 5, seed=3), folds[order])
    assert np.array_equal(grouped_folds(matrix, groups.astype(str), 5, seed=3).shape, folds.shape)
    assert not np.array_equal(label_folds(matrix, groups, 5, seed=4), folds)


def test_folds_are_as_many_as_the_rarest_finding_has_groups() -> None:
    matrix = np.zeros((40, 2), np.int64)
    matrix[:20, 0], matrix[:3, 1] = 1, 1
    assert set(label_folds(matrix, None, 5).tolist()) == {0, 1, 2}
    matrix[:, 1] = [1, *[0] * 39]
    with pytest.raises(BadDataset, match="one group only"):
        label_folds(matrix, None, 5)


# --- the sweep ---


def test_the_sweep_of_all_findings_is_that_of_each_on_its_own_rows() -> None:
    X, y, _ = drawn()
    folds = np.arange(len(y)) % 4 != np.arange(4)[:, None]
    grid = strengths(5)
    for k, found in enumerate(sweep_findings(X, y, strengths=grid, folds=folds, tol=1e-10)):
        own = y[:, k] >= 0
        alone = sweep(X[own], y[own, k], strengths=grid, folds=folds[:, own], tol=1e-10)
        assert found.converged.all()
        np.testing.assert_allclose(found.coef, alone.coef, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.objective, alone.objective, rtol=1e-8)
        assert found.gap.max() <= 1e-10


def test_the_sweep_names_a_fold_without_a_finding() -> None:
    X, y, _ = drawn()
    folds = np.stack([y[:, 1] != 1, y[:, 1] != 0])
    with pytest.raises(FirnError, match="fold 0 has none of class 1"):
        sweep_findings(X, y, strengths=[1.0], folds=folds)


# --- heads ---

ABLE = [name for name, row in HEADS.items() if row.findings]


@pytest.mark.parametrize("name", ABLE)
def test_heads_learn_all_findings_and_are_saved(name: str, tmp_path: Path) -> None:
    (X, y, groups), (new, truth, _) = drawn(seed=1), drawn(seed=2, missing=0)
    if HEADS[name].input == "maps":  # each feature in the upper left of its map
        X, new = (np.pad(rows[:, :, None, None], [(0, 0), (0, 0), (0, 2), (0, 2)]) for rows in (X, new))
    head = make_head(name, findings=True).fit(X, y, groups)
    proba = head.predict_proba(new)
    assert proba.shape == truth.shape
    assert ((proba >= 0) & (proba <= 1)).all()
    assert macro_auc(truth, proba) > 0.75
    save_head(tmp_path, name, head)
    np.testing.assert_allclose(load_head(tmp_path).predict_proba(new), proba, atol=1e-6)


def test_a_missing_label_has_no_part_in_its_finding() -> None:
    X, y, groups = drawn(missing=0.3)
    spoilt = np.where(y < 0, 100, 1).max(axis=1)[:, None] * X  # rows with a missing label are far out
    for name in ("logistic", "lda"):
        kept = y[:, 0] >= 0
        alone = make_head(name).fit(spoilt[kept], y[kept, 0], groups[kept])
        several = make_head(name, findings=True).fit(spoilt, np.stack([y[:, 0], y[:, 0]], axis=1), groups)
        apart = np.abs(several.predict_proba(X)[:, 0] - alone.predict_proba(X)[:, 1])
        assert apart.max() < (1e-6 if name == "lda" else 0.2)  # logistic: other inner folds, hence perhaps another C


def test_nested_folds_are_those_of_a_fit_for_each() -> None:
    X, y, groups = drawn(300)
    folds = grouped_folds(y, groups, 5)
    head = make_head("logistic", findings=True)
    every = head.fit_folds(X, y, folds, lambda done, total: None)  # type: ignore[attr-defined]
    assert every.shape == (5, *y.shape)
    assert macro_auc(y[folds != 0], every[0][folds != 0], folds[folds != 0]) > 0.8
    held = own_fold(every, folds)
    assert macro_auc(y, held, folds) > 0.8
    assert all(finding_loss(y[:, k], held[:, k]) < 0.6 for k in range(3))
    assert len(head.chosen_["C"]) == 3


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ABLE])
def test_a_head_that_knows_one_finding_says_so(name: str) -> None:
    with pytest.raises(FirnError, match=f"{name} knows one finding at a time; run: make train-heads"):
        make_head(name, findings=True)


# --- scores ---


def test_scores_are_scikit_learns_with_masks() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(5)
    _, y, groups = drawn(400, missing=0.25)
    proba = np.clip(np.where(y == 1, 0.6, 0.4) + rng.normal(0, 0.2, y.shape), 0, 1).round(2)
    found = score_findings(y, proba, groups, n_bootstrap=50)
    own = [y[:, k] >= 0 for k in range(3)]
    for metric, truth in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score)):
        each = [float(truth(y[at, k], proba[at, k])) for k, at in enumerate(own)]
        assert [row[metric].value for row in found.each] == pytest.approx(each, abs=1e-12)
        assert found.macro[metric].value == pytest.approx(np.mean(each), abs=1e-12)
        known = y >= 0
        pooled = micro(y, proba, groups)[metric]
        assert pooled.value == pytest.approx(truth(y[known], proba[known]), abs=1e-12)
    full = np.where(y < 0, 0, y)
    assert macro_auc(full, proba) == pytest.approx(roc_auc_score(full, proba, average="macro"), abs=1e-12)
    assert (
        found.each[0]["roc_auc"]
        == score(y[own[0], 0], np.stack([1 - proba[own[0], 0], proba[own[0], 0]], 1), groups[own[0]], n_bootstrap=50)[
            "roc_auc"
        ]
    )


def test_the_interval_of_a_mean_is_that_of_one_finding_where_all_are_the_same() -> None:
    """Copies of a finding tell no more than one: drawing findings apart would make the interval too narrow."""
    rng = np.random.default_rng(6)
    _, y, groups = drawn(300, missing=0)
    proba = np.clip(np.where(y == 1, 0.6, 0.4) + rng.normal(0, 0.25, y.shape), 0, 1)
    one = score_findings(y[:, :1], proba[:, :1], groups, n_bootstrap=1500).macro["roc_auc"]
    five = score_findings(np.repeat(y[:, :1], 5, 1), np.repeat(proba[:, :1], 5, 1), groups, n_bootstrap=1500).macro[
        "roc_auc"
    ]
    assert (five.value, five.high - five.low) == pytest.approx((one.value, one.high - one.low), rel=0.02)
    apart = score_findings(y, proba, groups, n_bootstrap=1500).macro["roc_auc"]
    assert apart.high - apart.low < one.high - one.low


def test_the_interval_of_a_mean_holds() -> None:
    """About 95 of 100 samples have the truth in the interval; each patient has two images and all findings."""
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.repeat((rng.random((60, 3)) < [0.5, 0.3, 0.2]).astype(np.int64), 2, axis=0)
        noise = np.repeat(rng.normal(size=(60, 3)), 2, axis=0) * 0.8 + rng.normal(size=(120, 3)) * 0.6
        proba = 1 / (1 + np.exp(-(1.4142 * y + noise)))
        found = score_findings(y, proba, np.arange(120) // 2, n_bootstrap=200, seed=seed).macro["roc_auc"]
        inside.append(found.low <= 0.8413 <= found.high)  # Phi(1): of normal scores 1.4142 apart, each of variance 1
    assert np.mean(inside) >= 0.87


def test_a_finding_too_rare_for_an_area_does_not_count_in_the_mean() -> None:
    _, y, groups = drawn(missing=0)
    y[:, 2] = 0
    y[0, 2] = 1
    found = score_findings(y, np.full(y.shape, 0.3), groups, n_bootstrap=20)
    assert found.counted.tolist() == [True, True, False]
    assert found.macro["roc_auc"].value == 0.5
    alone = score_findings(y[:, 2:], np.full((len(y), 1), 0.3), groups, n_bootstrap=20)
    assert np.isnan(alone.macro["roc_auc"]).all()
    with pytest.raises(BadPredictions, match=r"expected y \(n, L\) and proba \(n, L\)"):
        score_findings(y[:, 0], np.full(len(y), 0.3))
    with pytest.raises(BadPredictions, match="expected y of 1, 0 and -1"):
        score_findings(y + 5, np.full(y.shape, 0.3))


# --- the verbs ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a small phantom with findings, extract it and train two heads; return the artifacts."""
    root = tmp_path_factory.mktemp("findings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(root / "artifacts"))
        patch.setattr("features.cache.content.RACY_NS", 0)
        draw_phantom_findings(root / "set", patients=40, seed=0)
        verbs.extract(str(root / "set/findings.csv"), "squeezenet1_1", maps="1")
        verbs.train_heads(str(root / "set/findings.csv"), "squeezenet1_1", heads="logistic knn")
    return root


@pytest.fixture
def place(trained: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of the set, its artifacts at hand."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(trained / "artifacts"))
    return str(trained / "set/findings.csv")


def test_compare_ranks_by_the_mean_area_and_tests_each_finding(place: str) -> None:
    name = load_dataset(place).name
    page = Path(verbs.compare(place))
    results = json.loads((page.parent / "results.json").read_text())
    runs = load_runs(name)
    assert (results["task"], results["findings"]) == ("findings", list(FINDINGS))
    areas = [run["validation"]["roc_auc"]["value"] for run in results["runs"]]
    assert areas == sorted(areas, reverse=True)
    held = {run.record.head: run.predictions.part(test=False) for run in runs}
    for run in results["runs"]:
        part = held[run["record"]["head"]]
        assert run["validation"]["roc_auc"]["value"] == pytest.approx(macro_auc(part.y, part.proba, part.fold))
    other = results["runs"][1]["findings"]
    assert all({"difference", "p_value", "p_adjusted"} == set(row["against_chosen"]) for row in other)
    assert all(row["against_chosen"]["p_adjusted"] >= row["against_chosen"]["p_value"] for row in other)
    tested = next(run.predictions.part(test=True).y for run in runs)
    assert [row[k] for k, row in enumerate(results["together"])] == (tested == 1).sum(axis=0).tolist()
    text = page.read_text()
    assert "<script" not in text
    chosen = results["runs"][0]["findings"]
    least, *_, best = (row["name"] for row in sorted(chosen, key=lambda row: row["scores"]["roc_auc"]["value"]))
    hardest = min(chosen, key=lambda row: row["scores"]["sensitivity"]["value"])
    lost = 100 * (1 - hardest["scores"]["sensitivity"]["value"])
    assert results["summary"].startswith("The best model finds 4 findings (opacity, effusion, nodule, device) with")
    assert re.search(rf"It knows best {best}, AUC [^;]*, and least {least}, AUC 0\.", text)
    assert re.search(rf"it would miss {lost:.0f} of 100 \([^)]*\) images with {hardest['name']}, ", text)
    assert re.search(r"Bear in mind.*Few images with, or without: opacity \(\d+\)", text, re.DOTALL)
    assert all(f"<b>{finding}</b>" in text for finding in FINDINGS)
    assert text.count('<figure class="small">') == 2 * len(FINDINGS)


def test_areas_over_all_findings_are_told_where_asked_for(place: str) -> None:
    from sklearn.metrics import roc_auc_score

    page = Path(verbs.verb("compare", place, micro=True)[0])
    results = json.loads((page.parent / "results.json").read_text())
    runs = {run.record.head: run.predictions.part(test=True) for run in load_runs(load_dataset(place).name)}
    for row in results["runs"]:
        part = runs[row["record"]["head"]]
        known, found = part.y >= 0, row["micro"]["roc_auc"]
        assert found["value"] == pytest.approx(roc_auc_score(part.y[known], part.proba[known]))
        assert found["low"] < found["value"] < found["high"]
    assert (
        f"(micro), in which frequent findings weigh most: ROC AUC {results['runs'][0]['micro']['roc_auc']['value']:.3f}"
        in (page.read_text())
    )
    assert results["commands"][-1].endswith("MICRO=1")
    verbs.train_heads(place, "squeezenet1_1", heads="knn", labels="finding:device")
    with pytest.raises(FirnError, match="MICRO=1 is of several findings per image"):
        verbs.verb("compare", place, labels="finding:device", micro=True)


def test_class_maps_of_each_finding(place: str) -> None:
    """The mean of a map is the log odds of that finding; found ones come first, then missed ones, then false alarms."""
    (line,) = verbs.explain(place, heads="logistic")
    told = json.loads(Path(line.split()[-2]).read_text())
    (run,) = (run for run in load_runs(load_dataset(place).name) if run.record.head == "logistic")
    test = run.predictions.part(test=True)
    assert {image["line"] for image in told["images"]} == set(FINDINGS)
    for image in told["images"]:
        at, k = test.ids.tolist().index(image["id"]), FINDINGS.index(image["line"])
        logit = np.log(test.proba[at, k] / (1 - test.proba[at, k]))
        assert image["mean"] == pytest.approx(logit, abs=0.03 * max(1, abs(logit))), "of maps in float16"
        assert image["is"] == (FINDINGS[k] if test.y[at, k] else f"no {FINDINGS[k]}")
        assert (image["called"] == FINDINGS[k]) == (test.proba[at, k] >= told["threshold"][FINDINGS[k]])
        assert image["proba"][FINDINGS[k]] == test.proba[at, k]
    for name in FINDINGS:
        own = [(image["is"], image["called"]) for image in told["images"] if image["line"] == name]
        kinds = [(name, name), (name, f"no {name}"), (f"no {name}", name)]
        assert own == sorted(own, key=kinds.index)


def test_the_page_has_images_of_each_finding(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "are added by" in Path(verbs.compare(place)).read_text()
    page = Path(verbs.report(place))
    gallery = json.loads((page.parent / "gallery.json").read_text())
    assert [line["title"].partition(":")[0] for line in gallery["lines"]] == list(FINDINGS)
    tiles = [tile for line in gallery["lines"] for tile in line["images"]]
    assert all(2 <= len(line["images"]) <= 6 for line in gallery["lines"])
    assert all(tile["map"] and tile["words"] in page.read_text() for tile in tiles)
    assert Path(verbs.compare(place)).read_text() == page.read_text()  # what was made is shown again
    assert "no gallery" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aggregate", "prevalence", "bins", "columns", "ordered", "margin", "title"])
@pytest.mark.parametrize("verb", ["compare", "report"])
def test_what_is_of_classes_is_refused_and_not_ignored(place: str, verb: str, name: str) -> None:
    given = {"aggregate": "maximum", "prevalence": "0.1", "bins": "age:40", "ordered": True, "margin": 0.1}
    with pytest.raises(FirnError, match=rf"{name.upper()}=.* is of runs of classes, and these are of several findings"):
        verbs.verb(verb, place, **{name: given.get(name, "x")})


def test_two_runs_alone_and_a_search_know_their_limits(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(run.folder) for run in load_runs(load_dataset(place).name)]
    with pytest.raises(FirnError, match=r"4 findings per image, and this takes one at a time; run: make extract"):
        verbs.verb("compare", place, a=pair[0], b=pair[1])
    assert len(verbs.train_heads(place, "squeezenet1_1", heads="knn stack", budget=1)) >= 1
    assert "stack is left out: it knows one finding at a time" in capsys.readouterr().err


def test_a_bundle_of_all_findings_names_the_images_that_it_was_made_of(place: str, spots: Path, tmp_path: Path) -> None:
    """And not those that it was to be judged on."""
    bundle = tmp_path / "all"
    verbs.verb("bundle", place, heads="knn", out=str(bundle))
    with pytest.raises(FirnError, match=rf"run: make bundle DATASET={place} LABELS=finding:") as told:
        verbs.verb("validate", model=str(bundle), dataset=str(spots))
    assert str(spots) not in str(told.value)


def test_fine_tuning_on_all_findings_is_refused_before_anything_is_extracted(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for labels, words in (("classes", "takes one of them at a time"), ("finding:x", "unknown labels")):
        with pytest.raises(FirnError, match=words):
            verbs.finetune(place, "squeezenet1_1", blocks="2", labels=labels)
    assert "extract" not in capsys.readouterr().err


def test_one_finding_alone_is_a_task_of_two_classes(place: str) -> None:
    name = load_dataset(place).name
    verbs.train_heads(place, "squeezenet1_1", heads="knn", labels="finding:device")
    (run,) = load_runs(name, "finding:device")
    assert run.record.classes == ("no device", "device")
    (all_of_them,) = (other for other in load_runs(name) if other.name == run.name)
    one = all_of_them.predictions.finding(FINDINGS.index("device"))
    assert set(run.predictions.ids.tolist()) == set(one.ids.tolist())  # images without its label are left out
    assert "report.html" in verbs.compare(place, labels="finding:device")
    with pytest.raises(UnknownName, match=r"unknown labels .*did you mean finding:device"):
        verbs.train_heads(place, "squeezenet1_1", heads="lda", labels="finding:devise")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("audit", {}),
        ("learning-curve", {"heads": "lda"}),
        ("finetune", {"epochs": 1}),
        ("export", {}),
        ("train-heads", {"heads": "stack"}),
    ],
)
def test_other_verbs_say_what_to_type_for_one_finding(place: str, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(
        FirnError, match=r"one (of them|at a time|finding at a time)[^\n]*; run: make [^\n]*LABELS="
    ) as told:
        verbs.verb(name, place, "squeezenet1_1", **options)
    assert "\n" not in str(told.value)


def test_relabelled_findings_make_runs_stale(trained: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    table_ = Path(place)
    before = table_.read_text()
    lines = before.splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:3], "1", "1", "1", "1"])
    try:
        table_.write_text("\n".join(lines))
        with pytest.raises(FirnError, match=r"no run of .* is of its images, labels and splits as they are now"):
            verbs.compare(place)
        assert "labels have changed" in capsys.readouterr().err
    finally:
        table_.write_text(before)


def test_a_pack_keeps_its_findings(place: str, tmp_path: Path) -> None:
    out = tmp_path / "pack.h5"
    verbs.pack(place, "squeezenet1_1", out=str(out))
    assert open_pack(out).manifest().about["findings"] == list(FINDINGS)
    with pytest.raises(
        BadDataset, match="was packed with its labels as they are; pack it anew with UNCERTAIN=positive"
    ):
        load_dataset(str(out), uncertain="positive")
    assert load_dataset(str(out)).findings == FINDINGS
    verbs.train_heads(str(out), heads="knn")


def test_a_bundle_predicts_all_findings(trained: Path, place: str, tmp_path: Path) -> None:
    """A bundle says of test images what the run said, and decides each finding by its own threshold."""
    told = verbs.bundle(verbs.selected(dataset=place, heads="logistic"), out=tmp_path / "all.zip")
    assert told.startswith("ready: logistic on squeezenet1_1")
    (run,) = (run for run in load_runs(load_dataset(place).name) if run.record.head == "logistic")
    tested = run.predictions.part(test=True)
    shown = tested.take(np.arange(len(tested.ids)) < 6)
    (tmp_path / "new").mkdir()
    for image in shown.ids.tolist():
        shutil.copy(trained / "set" / image, tmp_path / "new")
    verbs.predict(tmp_path / "new", verbs.selected(tmp_path / "all.zip"), out=str(tmp_path / "out"))
    with (tmp_path / "out/predictions.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["path"] for row in rows] == [Path(image).name for image in shown.ids.tolist()]
    proba = np.array([[float(row[f"p_{name}"]) for name in FINDINGS] for row in rows])
    np.testing.assert_allclose(proba, shown.proba, atol=0.03)
    findings = json.loads(_bundle_json(tmp_path / "all.zip"))["findings"]
    limits = np.array([finding["points"]["youden"]["threshold"] for finding in findings])
    assert [row["decision"] for row in rows] == [
        "|".join(name for name, there in zip(FINDINGS, own, strict=True) if there) for own in (proba >= limits).tolist()
    ]
    with pytest.raises(FirnError, match="one at a time"):
        verbs.verb("export", model=str(tmp_path / "all.zip"))
    verbs.predict(tmp_path / "new", verbs.selected(tmp_path / "all.zip"), overlays=True, out=str(tmp_path / "over"))
    for row, file in zip(rows, sorted((tmp_path / "over/overlays").iterdir()), strict=True):
        present = [name for name in row["decision"].split("|") if name]
        assert file.stem.endswith("-".join(present))
        with Image.open(file) as image:
            assert image.width == 224 * max(2, 1 + len(present))
    with pytest.raises(FirnError, match="PREVALENCE= is of classes"):
        verbs.verb("predict", model=str(tmp_path / "all.zip"), images=str(tmp_path / "new"), prevalence="0.1")


def _bundle_json(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("bundle.json"))
        return archive.read(name).decode()


def test_predictions_come_back_from_their_table(trained: Path, place: str, tmp_path: Path) -> None:
    run = load_runs(load_dataset(place).name)[0]
    save_predictions(tmp_path / "p.csv", run.predictions, run.record.classes)
    again = load_predictions(tmp_path / "p.csv", run.record.classes)
    assert all(np.array_equal(a, b) for a, b in zip(again, run.predictions, strict=True))
    with (tmp_path / "p.csv").open() as lines:
        row = next(csv.DictReader(lines))
    assert set(row) == {"id", "group", "fold", *(f"{kind}_{name}" for kind in ("label", "p") for name in FINDINGS)}


def test_cross_validation_has_decisions_of_the_other_folds(place: str) -> None:
    verbs.train_heads(place, "squeezenet1_1", heads="knn", protocol="cv")
    result = compare_findings(load_runs(load_dataset(place).name, protocol="cv"), n_bootstrap=50)
    assert not result.tested
    every = load_dataset(place)
    assert result.images == {"validation": len(every), "test": 0, "groups": len(set(every.groups))}
    assert "The only model finds 4 findings (opacity, effusion, nodule, device) with a mean AUC of 0." in result.summary
    assert "that it had not learned from (cross-validation; there are no test images)." in result.summary
    assert all(0 < row.scores["sensitivity"]["value"] <= 1 for row in result.chosen.findings)  # type: ignore[operator]


@pytest.mark.parametrize(("most", "shares"), [(2, (1, 1, 0)), (3, (1, 1, 1)), (5, (2, 2, 1)), (6, (2, 2, 2))])
def test_a_third_of_the_images_of_a_finding_are_missed_ones(most: int, shares: tuple[int, int, int]) -> None:
    y, called = np.repeat([1, 1, 0, 0], 9), np.repeat([1, 0, 1, 0], 9)
    proba = np.linspace(0.1, 0.9, 36)
    found = Judged(np.arange(36).astype(str), y, np.stack([1 - proba, proba], axis=1), called, 0.5, False)
    at = of_finding(found, "mass", most).at
    assert len(at) == most
    pairs = list(zip(y[at].tolist(), called[at].tolist(), strict=True))
    assert tuple(map(pairs.count, ((1, 1), (1, 0), (0, 1)))) == shares
