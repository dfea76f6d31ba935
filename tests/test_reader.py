"""Features that stay on the disk: the same rows, the same heads, as from an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_entry import filled

from features.cache import Digests, Entry, Key, open_entry
from features.cache.reader import FeatureRows, subset, widened
from features.datasets import load_dataset
from features.datasets.dataset import Dataset, Stamps
from features.errors import CacheError, UnknownName
from features.views import map_rows, map_view, pooled_view, rows_view
from models.heads import make_head
from models.heads.lightgbm import Boosted
from models.heads.linear import Logistic
from models.logistic_path import out_of_core, out_of_fold, predicted, sweep

N, D = 3000, 24


def entry_of(X: NDArray[np.float16], y: NDArray[np.int64]) -> Entry:
    """Return an entry of two poolings of one block, in shards of 700 rows that are not in the order of the ids."""
    ids = [f"{i:05d}.png" for i in range(len(y))]
    groups = np.array([f"{i // 3}" for i in range(len(y))])
    dataset = Dataset("drawn", ("a", "b", "c"), ids, y, np.full(len(y), "train"), groups, None)  # type: ignore[arg-type]
    known = Digests.of(ids, Stamps(*np.zeros((3, len(y)), np.int64)))
    known.sha256[:] = [f"{i:064x}".encode() for i in range(len(y))]
    entry = open_entry("drawn", Key("bench", "0" * 64, ("last",), "squash", "float32"))
    half = X.shape[1] // 2
    for start in range(2100, -1, -700):
        at = slice(start, start + (900 if start == 2100 else 700))
        arrays = {"pooled/last/avg": X[at, :half], "pooled/last/max": X[at, half:]}
        entry.commit("pooled", known.sha256[at], arrays)
    entry.refresh(dataset, known, {}, {})
    return entry


@pytest.fixture
def drawn() -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Return correlated features (N, D) and labels of three classes that they tell apart but for noise."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(N, 6)) @ rng.normal(size=(6, D)) + rng.normal(size=(N, D)) + 3).astype(np.float16)
    side = X[:, :3].astype(np.float64) + rng.normal(0, 2, (N, 3))
    return X, side.argmax(1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few thousand rows too many for memory."""
    monkeypatch.setattr(out_of_core, "SAMPLE", 600)
    monkeypatch.setattr(out_of_core, "_FLOATS", 2**14)


def test_float16_is_widened_bit_by_bit() -> None:
    """All 65,536 values, infinities and NaN among them."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    assert np.array_equal(widened(finite).view(np.int32), finite.astype(np.float32).view(np.int32))
    assert np.array_equal(widened(every), every.astype(np.float32), equal_nan=True)
    assert widened(np.ones(3)).dtype == np.float32


def test_any_rows_are_those_of_the_view(drawn: tuple[NDArray[np.float16], NDArray[np.int64]]) -> None:
    """Slices, places in any order, masks and subsets of subsets; damage raises."""
    entry = entry_of(*drawn)
    whole, view = pooled_view(entry, ["last"], "both"), rows_view(entry, ["last"], "both")
    X: FeatureRows = view.X  # type: ignore[assignment]
    assert X.shape == (N, D) and X.dtype == np.float32 and X.ndim == 2
    assert np.array_equal(view.ids, whole.ids) and np.array_equal(view.groups, whole.groups)
    rng, mask = np.random.default_rng(1), np.arange(N) % 7 == 2
    for at in (
        slice(650, 1500),
        slice(0, 0),
        rng.permutation(N)[:500],
        np.array([5, 5, 2999]),
        np.array([3, 3, 5]),
        np.array([1, 0, 3, 2, 4]),
        mask,
    ):
        assert np.array_equal(X[at], whole.X[at])
    part = X.take(mask).take(np.array([3, 1]))
    assert np.array_equal(part[:], whole.X[mask][[3, 1]])
    assert np.array_equal(subset(whole.X, mask), subset(X, mask)[:])
    with pytest.raises(UnknownName, match="pool"):
        rows_view(entry, ["last"], "median")
    X.close()
    path = entry.shards / entry.files("pooled")[0]
    image = bytearray(path.read_bytes())
    with entry.shard(path.name) as shard:
        image[shard.column("pooled/last/max").offset + 5] ^= 1
    path.write_bytes(image)
    with X, pytest.raises(CacheError, match="damaged"):
        X[:]


def test_maps_in_any_order(spots: Path) -> None:
    """Shuffled, repeated, sorted and no rows are those of the whole view; damage raises."""
    dataset = load_dataset(str(spots))
    entry, digests, _ = filled(dataset)
    maps = np.random.default_rng(0).normal(size=(32, 40, 30, 30)).astype(np.float16)
    for i in range(0, 32, 9):
        entry.commit("maps/late", digests.sha256[i : i + 9], {"maps/late": maps[i : i + 9]})
    entry.refresh(dataset, digests, {}, {})
    whole = map_view(entry, "late").X
    view = map_rows(entry, "late")
    assert view.ids.tolist() == dataset.ids
    with view.X as X:
        assert X.shape == whole.shape and X.dtype == np.float16
        for at in (np.random.default_rng(1).permutation(32), np.array([5, 5, 4]), np.arange(8, 20), np.array([], int)):
            assert np.array_equal(X[at], whole[at])
    path = entry.shards / entry.files("maps/late")[0]
    image = bytearray(path.read_bytes())
    image[len(image) // 2] ^= 1
    path.write_bytes(image)
    with view.X as X, pytest.raises(CacheError, match="does not match its checksum"):
        X[np.arange(32)]
    with pytest.raises(CacheError, match="MAPS=early"):
        map_rows(entry, "early")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("classes", [2, 3])
def test_the_sweep_finds_the_same_minimum(drawn: tuple[NDArray[np.float16], NDArray[np.int64]], classes: int) -> None:
    """Coefficients, objective and certificates, with a feature that is constant and one that is in one fold."""
    X, y = drawn
    y, folds = np.minimum(y, classes - 1), np.arange(N) % 3 != np.arange(3)[:, None]
    X[:, 5], X[:, 7] = 7, np.where(folds[0], 5, X[:, 7])
    rows = rows_view(entry_of(X, y), ["last"], "both").X
    array, settings = X.astype(np.float32), {"strengths": [1e-4, 1e-2, 1.0], "folds": folds, "tol": 1e-10}
    a, b = (sweep(x, y, **settings) for x in (array, rows))
    assert b.converged.all() and b.gap.max() <= 1e-10
    scale = np.abs(a.coef).max()
    np.testing.assert_allclose(b.coef, a.coef, atol=1e-5 * scale)
    np.testing.assert_allclose(b.intercept, a.intercept, atol=1e-5 * np.abs(a.intercept).max())
    np.testing.assert_allclose(b.objective, a.objective, rtol=1e-9)
    np.testing.assert_allclose(predicted(rows, b, 1), predicted(array, a, 1), atol=1e-4)
    np.testing.assert_allclose(out_of_fold(rows, b, folds), out_of_fold(array, a, folds), atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("head", ["logistic", "lightgbm"])
def test_heads_learn_the_same(
    drawn: tuple[NDArray[np.float16], NDArray[np.int64]], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same choices and probabilities from rows on the disk as from the array; LightGBM's text to the letter."""
    monkeypatch.setattr(Logistic, "steps", 4)
    monkeypatch.setattr(Boosted, "most_trees", 30)
    monkeypatch.setattr(Boosted, "enough", 1000)
    X, y = drawn
    view = rows_view(entry_of(X, y), ["last"], "both")
    array = X.astype(np.float32)
    a, b = (make_head(head).fit(x, y, view.groups) for x in (array, view.X))
    assert a.chosen_.keys() == b.chosen_.keys() and a.state()[0] == b.state()[0]
    np.testing.assert_allclose(b.predict_proba(view.X), a.predict_proba(array), atol=2e-3)


def test_a_rare_class_is_in_every_sample(
    drawn: tuple[NDArray[np.float16], NDArray[np.int64]], small_blocks: None
) -> None:
    """Four rows of a class among thousands are all looked at."""
    X, y = drawn
    y = np.where(np.isin(np.arange(N), [7, 900, 1701, 2500]), 1, 0)
    rows = rows_view(entry_of(X, y), ["last"], "both").X
    found = sweep(rows, y, strengths=[1e-2], folds=np.arange(N) % 2 != np.arange(2)[:, None])
    assert found.converged.all()
