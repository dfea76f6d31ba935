"""Features and results in Python: numpy arrays and pandas data frames, asked for by the names that commands use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from features.errors import CacheError, FirnError, unknown
from features.options import DatasetOptions, FeatureOptions, leaves, make_command, replaced
from features.request import open_features
from features.storage import artifacts_root
from features.views import Cached, View, choose_blocks, choose_pool, rows_view
from models.runs.features import Stage
from models.runs.options import RunOptions
from models.runs.record import runs_root

if TYPE_CHECKING:
    from pandas import DataFrame

_SIDE = 6  # of maps that tell how many features a pooling makes of a channel


@dataclass(frozen=True, eq=False)
class Features:
    """Cached features of images as heads see them; rows are images, sorted by id."""

    X: NDArray[np.float32]  # (n, d)
    y: NDArray[np.int64]  # (n,) places in `classes`
    ids: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,) patients, slides: what is independent of each other
    splits: NDArray[np.str_]  # (n,) train, val or test
    classes: tuple[str, ...]  # (K,)
    columns: tuple[str, ...]  # (d,) block/pooling/channel, after the backbone where there are several
    blocks: str  # as they were asked for
    pool: str
    stage: Stage  # the cache entries and how they were asked for

    def part(self, *splits: str) -> Features:
        """Return the images of some splits. Raises UnknownName for one that there is not."""
        known = np.unique(self.splits).tolist()
        for name in splits:
            if name not in known:
                raise unknown("split", name, known)
        at = np.isin(self.splits, splits)
        rows = {name: getattr(self, name)[at] for name in ("X", "y", "ids", "groups", "splits")}
        return replace(self, **rows)

    def frame(self) -> DataFrame:
        """Return a data frame: ids, label (the class's name), group and split, then a column for each feature."""
        from pandas import DataFrame, concat

        labels = np.array(self.classes)[self.y]
        about = DataFrame({"ids": self.ids, "label": labels, "group": self.groups, "split": self.splits})
        return concat([about, DataFrame(self.X, columns=list(self.columns))], axis=1)


def load_features(
    dataset: str, backbone: str = "", *, blocks: str | int = "1", pool: str = "avg", **more: Any
) -> Features:
    """Return the cached features of a data set, one backbone or several joined by `+`.

    All arguments mean what the variables of `train-heads` of the same names mean (docs/reference.md); `more` may hold
    labels, protocol, seed, root, target, positive, preprocess, precision, device and weights. Raises CacheError, with
    the command to type, where the features were not extracted; UnknownName for what is in no table.
    """
    asked, run = _options(FeatureOptions(), {"dataset": str(dataset), "backbone": backbone} | more)
    if len(asked.terms) > 1:
        raise FirnError(f"expected one view, got {backbone!r}; join backbones as {'+'.join(asked.terms)!r}")
    entries = open_features(asked.data.load(), asked, asked.terms[0])
    stage = Stage(entries, asked.data, run)
    view = _in_order(stage.view("logistic", str(blocks), pool)[1])
    names = tuple(_columns(entries, str(blocks), pool))
    return Features(*view, stage.classes, names, str(blocks), pool, stage)


T = TypeVar("T", DatasetOptions, FeatureOptions)


def _options(of_data: T, given: Mapping[str, Any]) -> tuple[T, RunOptions]:
    """Return the options that are given by name, those of data or features and those of runs. Raises UnknownName."""
    known = {field.name for field, _ in leaves(of_data)}
    of_runs = {field.name for field, _ in leaves(RunOptions)}
    if strange := sorted(given.keys() - known - of_runs):
        raise unknown("option", strange[0], known | of_runs)
    run = RunOptions(**{name: value for name, value in given.items() if name in of_runs})
    return replaced(of_data, **{name: value for name, value in given.items() if name in known}), run


def _in_order(view: View) -> View:
    """Return a view in memory, sorted by id; one that stays on the disk may be in another order."""
    order = np.argsort(view.ids, kind="stable")
    return view._replace(X=np.asarray(view.X[:])).take(order) if (np.diff(order) != 1).any() else view


def _columns(entries: Sequence[Cached], blocks: str, pool: str) -> Iterator[str]:
    """Yield the name of each feature, in the order of `features.views.pooled_view`."""
    way = choose_pool(pool)
    for entry in entries:
        backbone = f"{entry.key.backbone}/" if len(entries) > 1 else ""
        for block in choose_blocks(entry.key.blocks, blocks):
            width = rows_view(entry, [block]).X.shape[1]
            if way.of_maps is not None:
                width = way.of_maps(np.zeros((1, width, _SIDE, _SIDE), np.float32)).shape[1]
            yield from (f"{backbone}{block}/{kind}/{i}" for kind in way.cached or (pool,) for i in range(width))


def load_results(where: str | Path, **more: Any) -> DataFrame:
    """Return a comparison as a data frame: a row for each run, the chosen one first.

    `where` is a results.json, its folder, or a data set as it is typed (`more` may hold labels, protocol, seed, root,
    target and positive). Columns:
    run, head, backbone, view, verdict, difference, p_adjusted (against the chosen run), seconds, and each metric as
    validation_NAME and test_NAME with _low and _high of its interval; what the images cannot tell is NaN. Raises
    CacheError, with the command to type, where there is no comparison.
    """
    from pandas import DataFrame

    path = _results_file(*_options(DatasetOptions(), {"dataset": str(where)} | more))
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return DataFrame([_row(run) for run in runs])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is no results.json of this Firn ({error}); make it anew (make compare)") from None


def _results_file(data: DatasetOptions, run: RunOptions) -> Path:
    for path in (Path(data.dataset), Path(data.dataset) / "results.json"):
        if path.is_file() and path.name == "results.json":
            return path
    root = runs_root(data.load().name, run.labels, run.protocol)
    path = artifacts_root() / "compare" / root.name / "results.json"
    if not path.is_file():
        raise CacheError(f"no comparison at {path}; run: {make_command('compare', data, run)}")
    return path


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    against = run["against_chosen"] or {"verdict": "chosen", "difference": {"value": None}, "p_adjusted": None}
    row = {
        "run": run["name"],
        **{name: run[name] for name in ("head", "backbone", "view")},
        "verdict": against["verdict"],
        "difference": _number(against["difference"]["value"]),
        "p_adjusted": _number(against["p_adjusted"]),
        "seconds": sum(run["seconds"].values()),
    }
    for part in ("validation", "test"):
        for metric, score in (run[part] or {}).items():
            ends = {"": "value", "_low": "low", "_high": "high"}
            row |= {f"{part}_{metric}{end}": _number(score[name]) for end, name in ends.items()}
    return row


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
