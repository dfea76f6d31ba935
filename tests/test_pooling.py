"""Poolings of feature maps, held against torch's, and the views that use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from verbs_for_tests import asked, extract

from features.datasets import load_dataset
from features.errors import CacheError, UnknownName
from features.request import open_features
from features.views import POOLS, choose_pool, gem, grid, join, map_view, pooled_view


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
    """Every pooling of POOLS is a view; those of maps are computed from the cached maps, two backbones join by id."""
    folder = draw(tmp_path / "spots")
    extract(str(folder), "squeezenet1_1", maps="1")
    (entry,) = open_features(load_dataset(str(folder)), asked(folder, "squeezenet1_1"))
    maps = map_view(entry, "features.12")
    for name, pool in POOLS.items():
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
