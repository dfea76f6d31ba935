"""Maps row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_cache import filled

from features.datasets import load_dataset
from features.errors import CacheError
from features.streams import MapStream
from features.views import map_view


def test_any_order_gives_the_same_rows(spots: Path) -> None:
    """Shuffled, repeated, sorted and no rows are those of the whole view; damage raises."""
    dataset = load_dataset(str(spots))
    entry, digests, _ = filled(dataset)
    maps = np.random.default_rng(0).normal(size=(32, 40, 30, 30)).astype(np.float16)
    for i in range(0, 32, 9):
        entry.commit("maps/late", digests.sha256[i : i + 9], {"maps/late": maps[i : i + 9]})
    entry.refresh(dataset, digests, {}, {})
    whole = map_view(entry, "late").X
    with MapStream(entry, "late") as stream:
        assert stream.ids.tolist() == dataset.ids
        assert len(stream) == 32
        for at in (np.random.default_rng(1).permutation(32), np.array([5, 5, 4]), np.arange(8, 20), np.array([], int)):
            assert np.array_equal(stream.read(at), whole[at])
    path = entry.shards / entry.files("maps/late")[0]
    image = bytearray(path.read_bytes())
    image[len(image) // 2] ^= 1
    path.write_bytes(image)
    with MapStream(entry, "late") as stream, pytest.raises(CacheError, match="does not match its checksum"):
        stream.read(np.arange(32))
    with pytest.raises(CacheError, match="MAPS=early"):
        MapStream(entry, "early")
