"""Views out of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from test_entry import filled
from verbs_for_tests import asked, extract

from features.datasets import load_dataset
from features.errors import CacheError, UnknownName
from features.request import open_features
from features.views import POOLS, View, choose_blocks, choose_pool, gem, grid, join, map_view, pooled_view


def test_blocks_and_pools_stand_side_by_side(spots: Path) -> None:
    """Columns come block by block, average before maximum; rows come by id."""
    dataset = load_dataset(str(spots))
    entry, _, features = filled(dataset)
    view = pooled_view(entry, ["early", "late"], "both")
    names = ["pooled/early/avg", "pooled/early/max", "pooled/late/avg", "pooled/late/max"]
    assert np.array_equal(view.X, np.concatenate([features[n] for n in names], axis=1).astype(np.float32))
    assert view.ids.tolist() == dataset.ids
    assert view.groups.tolist() == dataset.groups.tolist()
    assert view.splits.tolist() == dataset.splits.tolist()
    with pytest.raises(UnknownName, match="unknown pool 'mean'"):
        pooled_view(entry, ["late"], "mean")
    with pytest.raises(CacheError, match=r"has no pooled/late/cls, for it has no class token; take POOL=avg"):
        pooled_view(entry, ["late"], "cls")


def test_damage_is_an_error_not_a_number(spots: Path) -> None:
    """A view over a damaged shard raises and names the command."""
    entry, _, features = filled(load_dataset(str(spots)))
    wanted = features["pooled/late/max"][10:20].tobytes()
    paths = [entry.shards / name for name in entry.files("pooled")]
    path = next(p for p in paths if wanted in p.read_bytes())
    image = path.read_bytes()
    at = image.index(wanted)
    path.write_bytes(image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :])
    assert pooled_view(entry, ["early"]).X.shape == (32, 3)
    with pytest.raises(CacheError, match=r"pooled/late/max do not match their checksum; run: make cache-repair"):
        pooled_view(entry, ["late"], "max")


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("1", ("c",)), ("2", ("b", "c")), ("all", ("a", "b", "c")), ("c a", ("a", "c")), ("b,c", ("b", "c"))],
)
def test_blocks_are_chosen_by_number_or_name(wanted: str, chosen: tuple[str, ...]) -> None:
    """A number counts from the end; names come in network order."""
    assert choose_blocks(["a", "b", "c"], wanted) == chosen


@pytest.mark.parametrize("wanted", ["0", "4", "layer9"])
def test_unknown_blocks(wanted: str) -> None:
    """The message lists what there is."""
    with pytest.raises(UnknownName, match="unknown block"):
        choose_blocks(["a", "b", "c"], wanted)


def test_backbones_are_joined_by_id() -> None:
    """Images that one view lacks are dropped; the rest stands side by side."""

    def view(ids: list[str], scale: float) -> View:
        n = len(ids)
        X = np.array([[scale * int(i[1:])] for i in ids], dtype=np.float32)
        text = np.array(ids)
        return View(X, np.zeros(n, np.int64), text, text, np.full(n, "train"))

    both = join([view(["p1", "p2", "p4"], 1), view(["p1", "p3", "p4"], 10)])
    assert both.ids.tolist() == ["p1", "p4"]
    assert both.X.tolist() == [[1, 10], [4, 40]]


@pytest.mark.parametrize("cells", [1, 2, 3])
@pytest.mark.parametrize("side", [(7, 7), (6, 5), (13, 13), (3, 3)])
def test_grid_is_adaptive_average_pooling(cells: int, side: tuple[int, int]) -> None:
    """Cells are those of torch, channel by channel."""
    maps = np.random.default_rng(0).normal(size=(4, 5, *side)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), cells).flatten(1)
    np.testing.assert_allclose(grid(maps, cells), expected, atol=1e-6)


def test_gem_lies_between_mean_and_maximum() -> None:
    """Power 1 is the mean, a large power the maximum, and three the formula."""
    maps = np.random.default_rng(0).uniform(0.1, 2, size=(4, 5, 7, 7)).astype(np.float16)
    wide = maps.astype(np.float32)
    np.testing.assert_allclose(gem(maps, 1), wide.mean((2, 3)), rtol=1e-4)
    np.testing.assert_allclose(gem(maps, 60), wide.max((2, 3)), rtol=0.08)
    np.testing.assert_allclose(gem(maps), np.cbrt((wide**3).mean((2, 3))), rtol=1e-4)
    assert np.isfinite(gem(-maps)).all()


def test_views_of_maps(tmp_path: Path) -> None:
    """Every pooling of CNNs is a view; those of maps are computed from the cached maps, two backbones join by id."""
    folder = draw(tmp_path / "spots")
    extract(str(folder), "squeezenet1_1", maps="1")
    (entry,) = open_features(load_dataset(str(folder)), asked(folder, "squeezenet1_1"))
    maps = map_view(entry, "features.12")
    for name, pool in POOLS.items():
        if pool.cached == ("cls",):
            continue
        view = pooled_view(entry, ["features.12"], name)
        assert view.X.dtype == np.float32
        assert np.array_equal(view.ids, maps.ids)
        if pool.of_maps:
            np.testing.assert_array_equal(view.X, pool.of_maps(maps.X))
    narrow, wide = pooled_view(entry, ["features.12"]), pooled_view(entry, ["features.12"], "grid2")
    both = join([narrow, wide])
    np.testing.assert_array_equal(both.X, np.concatenate([narrow.X, wide.X], axis=1))
    fewer = join([narrow, wide.take(np.arange(3, 20))])
    assert np.array_equal(fewer.ids, narrow.ids[3:20])
    assert np.array_equal(fewer.X[:, :512], narrow.X[3:20])
    with pytest.raises(CacheError, match=r"no maps of features.5 at .*; run: make extract MAPS="):
        pooled_view(entry, ["features.5"], "gem")
    with pytest.raises(UnknownName, match="did you mean grid2"):
        choose_pool("grid22")
