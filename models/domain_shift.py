"""Domain shift between two sets of images: Fréchet distance, domain classifier AUC and CKA, from cached features.

`measure` returns all of them; labels are not read, only groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from features.errors import BadDataset
from models.folds import grouped_folds
from models.logistic_path import balanced, out_of_fold, sweep
from models.metrics import Interval, score

Features: TypeAlias = NDArray[Any]  # (n, d) floating point, a row an image
Groups: TypeAlias = NDArray[np.str_]  # (n,) patients, slides
Floats: TypeAlias = NDArray[np.float64]

MOST = 2_000  # images a side
DIRECTIONS = 64  # principal directions that Gaussians are fitted in
A_DIRECTION = 8  # images of the smaller side for each direction, so that the halves of it have four
HALVINGS = 10  # of each side, whose mean is the floor
_STRENGTH = 0.01  # C; within 0.001 of the best of 1e-4 to 1e-1 on four real pairs; choosing takes ten times as long
_STILL = 0.01  # least deviation within the sets that a feature is measured by, as a share of that over both
_DUST = 1e-20  # share of its sum of squares that rounding leaves of a constant feature


class Distances(NamedTuple):
    """Distances between the images of a source and a target domain, in the features of one backbone."""

    frechet: float  # squared; 1 is a shift as large as an image's typical distance from the mean of its own set
    floor: float  # what `frechet` would come to by chance for two samples of one domain, as large and grouped as these
    directions: int  # principal directions that `frechet` looks at
    auc: Interval  # of a classifier that tells the sets apart, out of fold: 0.5 one domain, 1 told apart always
    cka: float | None  # likeness of the target's features before and after the detour: 1 unchanged, 0 unrelated
    images: tuple[int, int]  # looked at on either side
    groups: tuple[int, int]


def measure(
    X: Features, groups_x: Groups, Z: Features, groups_z: Groups, *, after: Features | None = None, seed: int = 0
) -> Distances:
    """Return the distances between source features X (n, d) and target features Z (m, d), with the group of each image.

    `after` (m, e) are features of the target's images from the backbone fine-tuned on the source. At most 2,000
    images a side are looked at, drawn one by one: that keeps more groups, and so tells more, than whole groups would,
    and folds keep what was drawn of a group together all the same. Raises BadDataset for a side of a single group.
    """
    at, to = (_drawn(len(F), seed) for F in (X, Z))
    X, groups_x, Z, groups_z = X[at], groups_x[at], Z[to], groups_z[to]
    counts = len(np.unique(groups_x)), len(np.unique(groups_z))
    if min(counts) < 2:
        raise BadDataset(
            "domains are compared by groups (patients): two or more expected on either side, got "
            f"{counts[0]} in the source and {counts[1]} in the target; add images of other groups"
        )
    F, G = shared_directions(X, Z)
    return Distances(
        frechet=frechet_distance(F, G),
        floor=_floor(F, groups_x, G, groups_z, seed),
        directions=F.shape[1],
        auc=domain_auc(X, groups_x, Z, groups_z, seed=seed),
        cka=None if after is None else linear_cka(Z, after[to]),
        images=(len(X), len(Z)),
        groups=counts,
    )


def _drawn(n: int, seed: int) -> NDArray[np.intp]:
    """Return the places of at most MOST of n images, in order."""
    if n <= MOST:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MOST, replace=False))


def linear_cka(X: Features, Z: Features) -> float:
    """Return the linear CKA of two representations (n, d) and (n, e) of the same images: 1 alike, 0 unrelated.

    Centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414) from the unbiased HSIC (Song et al. 2012, JMLR
    13:1393; Nguyen et al. 2021, arXiv:2010.15327): the plain estimate nears 1 for unrelated features where d and e
    exceed n. It may come out a little below 0 or above 1. NaN where a representation is constant, or so nearly noise
    that its own HSIC is not positive, and for fewer than four images.
    """
    F, G = _centred(X), _centred(Z)
    if not F.any() or not G.any() or len(F) < 4:
        return float("nan")
    both, own, other = _unbiased_hsic(F, G), _unbiased_hsic(F, F), _unbiased_hsic(G, G)
    return both / float(np.sqrt(own) * np.sqrt(other)) if own > 0 and other > 0 else float("nan")


def _centred(X: Features) -> Floats:
    """Return features less their means; of constant ones exact zeros rather than what rounding leaves."""
    F = np.asarray(X, dtype=np.float64)
    C: Floats = F - F.mean(axis=0)
    C[:, np.square(C).sum(axis=0) <= _DUST * np.square(F).sum(axis=0)] = 0.0
    return C


def _overlap(F: Floats, G: Floats) -> float:
    """Return the sum of the products of FF' and GG', (n, n) each, formed only where that is the shorter way."""
    (n, d), e = F.shape, G.shape[1]
    if n * (d + e) < d * e:
        return float(((F @ F.T) * (G @ G.T)).sum())
    return float(np.square(F.T @ G).sum())


def _unbiased_hsic(F: Floats, G: Floats) -> float:
    """Return n (n - 3) times the unbiased HSIC of centred features under linear kernels with their diagonals out."""
    n = len(F)
    k, m = np.square(F).sum(axis=1), np.square(G).sum(axis=1)
    # rows of centred kernels sum to 0, and without the diagonal to -k and -m
    return _overlap(F, G) - float(k @ m) + float(k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m))


def _floor(F: Floats, groups_f: Groups, G: Floats, groups_g: Groups, seed: int) -> float:
    """Return what the distance would come to by chance for two samples of one domain, as large and grouped as these.

    The bias goes with 1/n + 1/m, so it is read off the distances between two halves of each set that share no group.
    """
    return sum(_share_of_floor(side, groups, seed) for side, groups in ((F, groups_f), (G, groups_g)))


def _share_of_floor(F: Floats, groups: Groups, seed: int) -> float:
    """Return the bias that a set brings: a distance between halves of a and b images counts a b / n^2 of itself."""
    rng = np.random.default_rng(seed)
    names, group = np.unique(groups, return_inverse=True)
    found = np.zeros(HALVINGS)
    for draw in range(HALVINGS):
        first = np.isin(group, rng.permutation(len(names))[: len(names) // 2])
        weight = first.mean() * (1 - first.mean())
        found[draw] = weight * frechet_distance(F[first], F[~first])
    return float(found.mean())


def shared_directions(X: Features, Z: Features) -> tuple[Floats, Floats]:
    """Return both sets in shared principal directions, (n, k) and (m, k), of mean total variance 1 within a set.

    Features are scaled by their deviation within the sets. A covariance of d directions from n < d images is singular,
    so there are at most 64, one for every eight images of the smaller set; both sets count alike, however many images
    they have. NaN where nothing varies within either set.
    """
    from sklearn.utils.extmath import randomized_svd

    F, G = _scaled(np.asarray(X, dtype=np.float64), np.asarray(Z, dtype=np.float64))
    k = max(1, min(DIRECTIONS, F.shape[1], min(len(F), len(G)) // A_DIRECTION))
    both = np.concatenate([F / np.sqrt(len(F)), G / np.sqrt(len(G))])
    # not transposed, the sketch is of features, so that the order of the sets and of their images plays no part
    axes = randomized_svd(both, k, random_state=0, transpose=False)[2].T
    F, G = F @ axes, G @ axes
    spread = float(_variance(F).sum() + _variance(G).sum()) / 2
    return F / np.sqrt(spread or np.nan), G / np.sqrt(spread or np.nan)


def _scaled(X: Floats, Z: Floats) -> tuple[Floats, Floats]:
    """Return features about the middle of both means, by their deviation within the sets; constant ones become 0."""
    shift = X.mean(axis=0) - Z.mean(axis=0)
    within = (_variance(X) + _variance(Z)) / 2
    total = within + np.square(shift) / 4
    moves = total > _DUST * (np.square(X).mean(axis=0) + np.square(Z).mean(axis=0))
    scale = np.where(moves, np.sqrt(np.maximum(within, _STILL**2 * total)), np.inf)
    middle = (X.mean(axis=0) + Z.mean(axis=0)) / 2
    return (X - middle) / scale, (Z - middle) / scale


def _variance(F: Floats) -> Floats:
    """Return the variance of each column, (d,)."""
    variance: Floats = np.square(_centred(F)).sum(axis=0) / max(1, len(F) - 1)
    return variance


def frechet_distance(F: Floats, G: Floats) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to two sets in shared directions, (n, k) and (m, k).

    |difference of means|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), Dowson & Landau 1982 (J. Multivariate Anal. 12:450),
    for images Heusel et al. 2017 (arXiv:1706.08500). The estimate grows with k / n (Chong & Forsyth 2020,
    arXiv:1911.07023), which is `Distances.floor`. The product is symmetric, so that rounding leaves its eigenvalues
    real, and those below 0 are 0.
    """
    if np.isnan(F).any():
        return float("nan")
    shift = float(np.square(F.mean(axis=0) - G.mean(axis=0)).sum())
    C, D = (_centred(side) / np.sqrt(max(1, len(side) - 1)) for side in (F, G))
    values, vectors = np.linalg.eigh(C.T @ C)
    root = D @ (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ root), 0)).sum()
    return max(0.0, shift + float(np.square(C).sum() + np.square(D).sum() - 2 * cross))


def domain_auc(X: Features, groups_x: Groups, Z: Features, groups_z: Groups, *, seed: int = 0) -> Interval:
    """Return the ROC AUC, with its 95 % interval by group, of logistic regression that tells Z (m, d) from X (n, d).

    Each image is judged by a model that saw nothing of its group (five grouped folds); the interval takes these
    models as given. 0.5 is one domain, 1 told apart always. Both sets weigh the same in every fold, or else a model
    that learned nothing but the shares would rank folds the wrong way round. A name of a group on both sides is two
    groups. Raises BadDataset for a side of a single group.
    """
    y = np.repeat(np.arange(2), [len(X), len(Z)])
    groups = np.concatenate([np.char.add("x/", groups_x), np.char.add("z/", groups_z)])
    both = np.concatenate([X, Z]).astype(np.float32)
    folds = grouped_folds(y, groups, 5, seed=seed)
    masks = folds != np.arange(folds.max() + 1)[:, None]
    found = sweep(both, y, strengths=[_STRENGTH], folds=masks, sample_weight=balanced(y, masks), tol=1e-4)
    return score(y, out_of_fold(both, found, masks)[0], groups, folds=folds, n_bootstrap=0)["roc_auc"]
