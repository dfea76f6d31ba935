"""LightGBM's text as arrays, checked and walked here: a stranger's text never reaches LightGBM's own loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from features.errors import BadBundle
from models.heads.linear import probabilities

MOST_TEXT = 256 << 20
MOST_NODES = 5_000_000
_CATEGORICAL, _MISSING, _ZERO = 1, 12, 4  # bits of a split's decision type


@dataclass(frozen=True, eq=False)
class Trees:
    """All trees in one table of nodes; a leaf leads to itself. The same numbers as LightGBM's to the last bits."""

    feature: NDArray[np.int64]  # (m,)
    threshold: NDArray[np.float64]  # (m,) to the left up to it
    left: NDArray[np.int64]  # (m,)
    right: NDArray[np.int64]  # (m,)
    value: NDArray[np.float64]  # (m,) of leaves
    roots: NDArray[np.int64]  # (T,) tree t votes for class t modulo the number of columns
    depth: int
    columns: int  # 1 for two classes
    sigmoid: float

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities, (n, K), of finite features (n, d)."""
        at = np.tile(self.roots, (len(X), 1))
        for _ in range(self.depth):
            seen = np.take_along_axis(X, self.feature[at], axis=1)
            at = np.where(seen <= self.threshold[at], self.left[at], self.right[at])
        raw = self.value[at].reshape(len(X), -1, self.columns).sum(axis=1)
        if self.columns > 1:
            return probabilities(raw)
        positive = expit(self.sigmoid * raw[:, 0])
        return np.stack([1 - positive, positive], axis=1)


def read_trees(path: Path, classes: int, features: int) -> Trees:
    """Read LightGBM's text of numerical splits. BadBundle for anything else, naming the tree."""
    if path.stat().st_size > MOST_TEXT:
        raise BadBundle(f"expected at most {MOST_TEXT:,} bytes in {path}, got {path.stat().st_size:,}")
    try:
        head, *texts = path.read_text(encoding="utf-8").partition("\nend of trees")[0].split("\nTree=")
        return _joined(_fields(head), [_fields(text) for text in texts], classes, features)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise BadBundle(f"{path} holds no trees that can be read ({error}); make it anew (make bundle)") from None


def _fields(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}


def _joined(head: Mapping[str, str], trees: list[dict[str, str]], classes: int, features: int) -> Trees:
    objective, *settings = head["objective"].split()
    columns = int(head["num_tree_per_iteration"])
    known = {"binary": 1, "multiclass": classes}
    if known.get(objective) != columns or (objective == "binary") != (classes == 2) or len(trees) % columns:
        raise ValueError(f"expected trees of {classes} classes, got {objective} with {columns} a round")
    sigmoid = dict(pair.partition(":")[::2] for pair in settings).get("sigmoid", "1")
    tables, roots, depth, start = [], [], 0, 0
    for number, tree in enumerate(trees):
        table, deep = _table(tree, features, f"tree {number}", start)
        tables.append(table)
        roots.append(start)
        depth, start = max(depth, deep), start + len(table[0])
        if start > MOST_NODES:
            raise ValueError(f"expected at most {MOST_NODES:,} nodes")
    if not tables:
        raise ValueError("there is no tree")
    feature, threshold, left, right, value = (np.concatenate(column) for column in zip(*tables, strict=True))
    return Trees(feature, threshold, left, right, value, np.array(roots), depth, columns, float(sigmoid))


def _table(tree: Mapping[str, str], features: int, what: str, start: int) -> tuple[list[NDArray[Any]], int]:
    """Return the columns of one tree's nodes, inner ones first, numbered from `start`; and its depth."""
    leaves = int(tree["num_leaves"])
    value = _numbers(tree["leaf_value"], leaves, what)
    inner = leaves - 1
    feature, kinds, left, right = (
        _whole(tree.get(name, "") if inner else "", inner, what)
        for name in ("split_feature", "decision_type", "left_child", "right_child")
    )
    threshold = _numbers(tree.get("threshold", "") if inner else "", inner, what)
    if inner and (feature.min() < 0 or feature.max() >= features):
        raise ValueError(f"{what} splits by features that are none of the {features}")
    if (kinds & _CATEGORICAL).any() or ((kinds & _MISSING) == _ZERO).any():
        raise ValueError(f"{what} splits by categories or takes 0 for missing")
    deep = _depth(left, right, leaves, what)
    children = [np.where(c < 0, start + inner - 1 - c, start + c) for c in (left, right)]  # leaf k is written -k - 1
    own = start + inner + np.arange(leaves)
    none = np.zeros(leaves)
    return [
        np.concatenate([feature, none.astype(np.int64)]),
        np.concatenate([threshold, none]),
        *(np.concatenate([c, own]) for c in children),
        np.concatenate([np.zeros(inner), value]),
    ], deep


def _numbers(text: str, count: int, what: str) -> NDArray[np.float64]:
    found = np.array([float(word) for word in text.split()], dtype=np.float64)
    if len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"{what} has {len(found)} numbers where {count} finite ones are expected")
    return found


def _whole(text: str, count: int, what: str) -> NDArray[np.int64]:
    found = _numbers(text, count, what)
    if (np.abs(found) > MOST_NODES).any():
        raise ValueError(f"{what} counts further than {MOST_NODES:,}")
    return found.astype(np.int64)


def _depth(left: NDArray[np.int64], right: NDArray[np.int64], leaves: int, what: str) -> int:
    """Return the depth of a tree; a child comes after its parent, so that no walk goes in circles."""
    level = np.zeros(max(len(left), 1), dtype=np.int64)
    deepest = 0
    for node in range(len(left)):
        for child in (int(left[node]), int(right[node])):
            if not (-leaves <= child < 0 or node < child < len(left)):
                raise ValueError(f"{what} has a child that is no later node")
            if child >= 0:
                level[child] = level[node] + 1
        deepest = max(deepest, int(level[node]) + 1)
    return deepest
