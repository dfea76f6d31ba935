"""Views out of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_cache import filled

from features.datasets import load_dataset
from features.errors import CacheError, UnknownName
from features.views import View, choose_blocks, join, pooled_view


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
