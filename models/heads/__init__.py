"""The table HEADS: light classifiers on cached features, with scikit-learn's interface on plain arrays.

head            the base class of heads, how they are saved without a pickle, early stopping with torch
linear          logistic (L2 strength by grouped folds), lda, sgd (the seed article's recipe)
ridge           least squares with Platt's sigmoid
lightgbm        gradient-boosted trees
knn             k-nearest neighbours
mlp             a multi-layer perceptron with one hidden layer
map_heads       map (1x1 convolution), attention, spatial: heads on feature maps
stacking        a weighted vote of other runs
"""

import json
from pathlib import Path

import numpy as np

from features.errors import CacheError, unknown
from models.heads.head import Head, HeadRow, save_head
from models.heads.knn import Neighbours
from models.heads.lightgbm import Boosted
from models.heads.linear import Discriminant, Logistic, Sgd
from models.heads.map_heads import Attention, MapHead, Spatial
from models.heads.mlp import Perceptron
from models.heads.ridge import Ridge
from models.heads.stacking import Stack

__all__ = ["HEADS", "Head", "HeadRow", "choose_heads", "load_head", "make_head", "save_head"]

HEADS: dict[str, HeadRow] = {
    "logistic": HeadRow(Logistic, "linear", "logistic regression, L2 strength chosen by grouped folds", on_disk=True),
    "sgd": HeadRow(
        Sgd, "linear", "linear head by SGD 0.9 with StepLR(10, 0.1), the seed article's recipe", random=True
    ),
    "lda": HeadRow(Discriminant, "linear", "linear discriminant analysis with Ledoit-Wolf shrinkage"),
    "ridge": HeadRow(Ridge, "linear", "least squares on the labels, penalty by grouped folds, Platt's sigmoid"),
    "knn": HeadRow(Neighbours, "neighbours", "nearest neighbours by cosine, k chosen by grouped folds"),
    "mlp": HeadRow(Perceptron, "perceptron", "one hidden layer, early stopping on held-out groups", random=True),
    "lightgbm": HeadRow(
        Boosted, "trees", "gradient-boosted trees, early stopping on held-out groups", on_disk=True, random=True
    ),
    "map": HeadRow(MapHead, "votes", "1x1 convolution on feature maps, pooled class maps", input="maps", random=True),
    "attention": HeadRow(
        Attention, "attention", "gated attention over map positions, early stopping", input="maps", random=True
    ),
    "spatial": HeadRow(Spatial, "pyramid", "logistic on 1x1, 2x2 and 3x3 means of principal channels", input="maps"),
    "stack": HeadRow(Stack, "stack", "a weighted vote of other runs, from out-of-fold predictions", input="runs"),
}


def make_head(name: str, *, seed: int = 0) -> Head:
    """Return an unfitted head. Raises UnknownName for a name that is no row of HEADS."""
    if name not in HEADS:
        raise unknown("head", name, HEADS)
    return HEADS[name].make(seed=seed)


def choose_heads(wanted: str) -> tuple[str, ...]:
    """Return heads for "all" or for names separated by blanks or commas, in the order of the table."""
    names = wanted.replace(",", " ").split()
    for name in names:
        if name not in HEADS and name != "all":
            raise unknown("head", name, [*HEADS, "all"])
    return tuple(name for name in HEADS if name in names or "all" in names)


def load_head(folder: Path) -> Head:
    """Return the fitted head saved in a folder. CacheError where it does not read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        content = json.loads((folder / "head.json").read_text())
        trees = folder / "lightgbm.txt"
        values = content["values"] | ({"text": trees.read_text()} if trees.exists() else {})
        tensors = folder / "head.safetensors"
        head = make_head(content["head"]).restore(values, load_file(tensors) if tensors.exists() else {})
        head.classes_, head.chosen_ = np.arange(content["classes"]), content["chosen"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise CacheError(f"cannot read a head from {folder} ({error}); remove it and run: make train-heads") from None
    return head
