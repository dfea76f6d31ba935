"""The table HEADS: light classifiers on cached features, with scikit-learn's interface on plain arrays.

head            the base class of heads, how they are saved without a pickle, early stopping with torch
linear          logistic (L2 strength by grouped folds), lda, sgd (a published recipe)
ridge           least squares with Platt's sigmoid
lightgbm        gradient-boosted trees
knn             k-nearest neighbours
mlp             a multi-layer perceptron with one hidden layer
findings        heads for several findings per image
map_heads       map (1x1 convolution), attention, spatial: heads on feature maps
stacking        a weighted vote of other runs
"""

import json
from pathlib import Path

import numpy as np

from features.errors import CacheError, FirnError, command, unknown
from models.heads.findings import LogisticFindings, PerceptronFindings, per_finding
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
    "logistic": HeadRow(
        Logistic,
        "linear",
        "logistic regression, L2 strength chosen by grouped folds",
        on_disk=True,
        findings=LogisticFindings,
    ),
    "sgd": HeadRow(
        Sgd,
        "linear",
        "linear head by SGD 0.9 with StepLR(10, 0.1), a published recipe",
        random=True,
        findings=per_finding(Sgd),
    ),
    "lda": HeadRow(
        Discriminant,
        "linear",
        "linear discriminant analysis with Ledoit-Wolf shrinkage",
        findings=per_finding(Discriminant),
    ),
    "ridge": HeadRow(
        Ridge,
        "linear",
        "least squares on the labels, penalty by grouped folds, Platt's sigmoid",
        findings=per_finding(Ridge),
    ),
    "knn": HeadRow(
        Neighbours,
        "neighbours",
        "nearest neighbours by cosine, k chosen by grouped folds",
        findings=per_finding(Neighbours),
    ),
    "mlp": HeadRow(
        Perceptron,
        "perceptron",
        "one hidden layer, early stopping on held-out groups",
        random=True,
        findings=PerceptronFindings,
    ),
    "lightgbm": HeadRow(
        Boosted,
        "trees",
        "gradient-boosted trees, early stopping on held-out groups",
        on_disk=True,
        random=True,
        findings=per_finding(Boosted),
    ),
    "map": HeadRow(
        MapHead,
        "votes",
        "1x1 convolution on feature maps, pooled class maps",
        random=True,
        findings=per_finding(MapHead),
        input="maps",
    ),
    "attention": HeadRow(
        Attention,
        "attention",
        "gated attention over map positions, early stopping",
        random=True,
        findings=per_finding(Attention),
        input="maps",
    ),
    "spatial": HeadRow(
        Spatial,
        "pyramid",
        "logistic on 1x1, 2x2 and 3x3 means of principal channels",
        findings=per_finding(Spatial),
        input="maps",
    ),
    "stack": HeadRow(Stack, "stack", "a weighted vote of other runs, from out-of-fold predictions", input="runs"),
}


def make_head(name: str, *, seed: int = 0, findings: bool = False, device: str = "cpu") -> Head:
    """Return an unfitted head, for several findings per image if asked for; `device` as in `Head`.

    Raises UnknownName for a name that is no row of HEADS, FirnError for a head that knows one finding alone.
    """
    if name not in HEADS:
        raise unknown("head", name, HEADS)
    row = HEADS[name]
    if not findings:
        return row.make(seed=seed, device=device)
    if row.findings is None:
        able = " ".join(known for known, other in HEADS.items() if other.findings)
        raise FirnError(
            f"{name} knows one finding at a time; run: {command('train-heads', HEADS=able)} for all of them, or "
            f"{command('train-heads', HEADS=name, LABELS='finding:NAME')} for one"
        )
    return row.findings(seed=seed, device=device)


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
        arrays = load_file(tensors) if tensors.exists() else {}
        head = make_head(content["head"], findings=bool(content.get("findings"))).restore(values, arrays)
        head.classes_, head.chosen_ = np.arange(content["classes"]), content["chosen"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise CacheError(f"cannot read a head from {folder} ({error}); remove it and run: make train-heads") from None
    return head
