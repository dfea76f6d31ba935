"""Distances of domains against other formulations, closed forms, and sets made to lie a known distance apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from features.errors import BadDataset
from models.domain_shift import MOST, domain_auc, frechet_distance, linear_cka, measure, shared_directions

Floats = NDArray[np.float64]


def noise(n: int, d: int, seed: int) -> Floats:
    """Return independent normal features (n, d)."""
    return np.random.default_rng(seed).normal(size=(n, d))


def rotation(d: int, seed: int) -> Floats:
    """Return a random orthogonal matrix (d, d)."""
    return np.linalg.qr(noise(d, d, seed))[0]


def exactly(n: int, mean: Floats, covariance: Floats, seed: int) -> Floats:
    """Return features (n, d) whose sample mean and covariance are exactly these."""
    F = noise(n, len(mean), seed)
    F -= F.mean(axis=0)
    white = F @ np.linalg.inv(np.linalg.cholesky(np.cov(F.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def distance(X: Floats, Z: Floats) -> float:
    """Return the Fréchet distance of two sets of images."""
    return frechet_distance(*shared_directions(X, Z))


def grouped(n: int, size: int) -> NDArray[np.str_]:
    """Return names of groups of `size` images each, (n,)."""
    return np.char.add("g", (np.arange(n) // size).astype(str))


def clustered(n: int, size: int, d: int, seed: int, spread: float = 1.0) -> Floats:
    """Return noise with a shift of `spread` of its own for each group of `size` images."""
    return noise(n, d, seed) + spread * np.repeat(noise(n // size, d, seed + 1), size, axis=0)


def hsic_by_matrices(K: Floats, L: Floats) -> float:
    """Return the unbiased HSIC of two kernels (n, n), equation 5 of Song et al. 2012 as it is printed."""
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    inner = one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)
    return float((np.trace(K @ L) + inner) / (n * (n - 3)))


@pytest.mark.parametrize(("n", "d", "e"), [(40, 7, 5), (25, 60, 80), (30, 100, 4)])
def test_cka_is_that_of_kernel_matrices(n: int, d: int, e: int) -> None:
    X = noise(n, d, 0) + 3
    Z = X @ noise(d, e, 1) + 4 * noise(n, e, 2)
    K, L = X @ X.T, Z @ Z.T
    expected = hsic_by_matrices(K, L) / np.sqrt(hsic_by_matrices(K, K) * hsic_by_matrices(L, L))
    assert linear_cka(X, Z) == pytest.approx(expected, rel=1e-9)


def test_cka_overlooks_rotation_and_scale_but_not_change() -> None:
    X = noise(50, 20, 0) * np.linspace(0.1, 3, 20)
    Z = X**2 + X
    assert linear_cka(X, X @ rotation(20, 1) * 7 + 2) == pytest.approx(1, abs=1e-12)
    there = linear_cka(X, Z)
    assert there == pytest.approx(linear_cka(X @ rotation(20, 2) / 5, Z - 40), abs=1e-9)
    assert there == pytest.approx(linear_cka(Z, X), abs=1e-12)
    assert 0.1 < there < 0.9


def test_cka_of_unrelated_features_is_0() -> None:
    pairs = [(noise(60, 200, seed), noise(60, 200, 1000 + seed)) for seed in range(30)]
    unbiased = np.array([linear_cka(X, Z) for X, Z in pairs])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / np.sqrt(30)
    assert unbiased.std() < 0.1
    assert linear_cka(pairs[0][0], pairs[0][0]) == pytest.approx(1, abs=1e-12)


def test_cka_of_a_constant_is_undefined_and_a_constant_feature_plays_no_part() -> None:
    X, Z = noise(30, 4, 0), noise(30, 3, 1)
    still = np.full((30, 2), 0.1)
    assert np.isnan(linear_cka(X, still))
    assert np.isnan(linear_cka(still, still))
    assert np.isnan(linear_cka(X[:3], Z[:3]))
    assert linear_cka(np.hstack([X, still]), Z) == pytest.approx(linear_cka(X, Z), abs=1e-12)


def test_frechet_is_the_closed_form_on_diagonal_gaussians() -> None:
    means = np.array([[0.0, 1.0, -2.0, 5.0], [0.5, 1.0, -1.0, 4.0]])
    stds = np.array([[1.0, 2.0, 0.5, 3.0], [2.0, 2.0, 1.5, 1.0]])
    X, Z = (exactly(n, m, np.diag(s**2), n) for n, m, s in zip((300, 200), means, stds, strict=True))
    within = (stds**2).mean(axis=0)
    expected = ((np.diff(means, axis=0)[0] ** 2 + np.diff(stds, axis=0)[0] ** 2) / within).sum() / 4
    assert distance(X, Z) == pytest.approx(expected, rel=1e-9)
    assert distance(X * 100 - 7, Z * 100 - 7) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_that_of_a_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    X, Z = noise(400, 6, 0) @ noise(6, 6, 1), noise(300, 6, 2) @ noise(6, 6, 3) + 1
    std = np.sqrt((X.var(axis=0, ddof=1) + Z.var(axis=0, ddof=1)) / 2)
    A, B = np.cov((X / std).T), np.cov((Z / std).T)
    shift = ((X.mean(axis=0) - Z.mean(axis=0)) / std) ** 2
    expected = (shift.sum() + np.trace(A + B - 2 * np.real(sqrtm(A @ B)))) / 6
    assert distance(X, Z) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_symmetric_and_0_for_the_same_set() -> None:
    X, Z = noise(200, 90, 0) * np.linspace(0.1, 4, 90), noise(150, 90, 1) + 0.3
    assert distance(X, X) == pytest.approx(0, abs=1e-9)
    assert distance(X, X[::-1]) == pytest.approx(0, abs=1e-9)
    assert distance(X, Z) == pytest.approx(distance(Z, X), rel=1e-6)


def test_frechet_counts_both_sets_alike() -> None:
    X, Z = noise(160, 60, 0) * np.linspace(3, 0.5, 60), noise(320, 60, 1) * np.linspace(0.5, 3, 60)
    assert distance(X, np.tile(Z, (10, 1))) == pytest.approx(distance(X, Z), rel=0.02)


def test_frechet_grows_with_the_shift_where_images_are_fewer_than_features() -> None:
    X, Z = noise(40, 500, 0), noise(30, 500, 1)
    found = [distance(X, Z + shift) for shift in (0, 1, 3, 10)]
    assert np.isfinite(found).all()
    assert found == sorted(found)
    assert found[3] > 20 * found[1] > 20 * found[0]


def test_frechet_of_constant_features() -> None:
    X, Z, still = noise(80, 5, 0), noise(80, 5, 1) + 1, np.full((80, 3), 0.1)
    assert np.isnan(distance(still, still + 1))
    plain, beside = distance(X, Z), distance(np.hstack([X, still]), np.hstack([Z, still]))
    assert beside == pytest.approx(plain, rel=1e-9)
    telling = distance(np.hstack([X, still]), np.hstack([Z, still + 1]))
    assert plain < telling < np.inf


@pytest.mark.parametrize(("n", "m", "size", "d"), [(400, 200, 1, 60), (400, 400, 4, 64)])
def test_floor_is_what_one_domain_comes_to(n: int, m: int, size: int, d: int) -> None:
    found = []
    for seed in range(6):
        X, Z = clustered(n, size, d, 10 * seed), clustered(m, size, d, 10 * seed + 5)
        apart = measure(X, grouped(n, size), Z, grouped(m, size), seed=seed)
        found.append((apart.frechet, apart.floor))
    frechet, floor = np.mean(found, axis=0)
    assert frechet == pytest.approx(floor, rel=0.15)
    assert floor < 0.25


def test_auc_of_one_domain_is_a_half() -> None:
    areas = [
        domain_auc(clustered(120, 3, 50, seed), grouped(120, 3), clustered(60, 3, 50, seed + 500), grouped(60, 3))
        for seed in range(0, 100, 5)
    ]
    assert np.mean([area.value for area in areas]) == pytest.approx(0.5, abs=0.04)
    assert all(area.low < area.value < area.high for area in areas)


def test_auc_of_shifted_domains_nears_1() -> None:
    X, Z = noise(150, 30, 0), noise(100, 30, 1)
    near, far = (domain_auc(X, grouped(150, 2), Z + shift, grouped(100, 2)) for shift in (0.2, 2.0))
    assert 0.55 < near.value < 0.9
    assert far.value > 0.999


def test_groups_that_differ_are_not_taken_for_domains() -> None:
    """Images of a group are nearly copies, so that only folds by group keep their side from being known by heart."""
    X, Z = clustered(200, 10, 40, 0, spread=10), clustered(200, 10, 40, 50, spread=10)
    singly = np.char.add("p", np.arange(200).astype(str))
    by_heart, honest = domain_auc(X, singly, Z, singly), domain_auc(X, grouped(200, 10), Z, grouped(200, 10))
    assert by_heart.value > 0.95
    assert 0.2 < honest.value < 0.8
    assert honest.low < 0.5 < honest.high


def test_groups_of_one_name_on_both_sides_are_two() -> None:
    X, Z = clustered(90, 3, 10, 0), clustered(90, 3, 10, 50) + 0.5
    names = grouped(90, 3)
    assert domain_auc(X, names, Z, names) == domain_auc(X, names, Z, np.char.add("other ", names))


def test_copies_make_the_interval_no_narrower() -> None:
    X, Z = noise(80, 5, 0), noise(80, 5, 1) + 0.3
    once, often = (
        domain_auc(np.repeat(X, k, axis=0), grouped(80 * k, k), np.repeat(Z, k, axis=0), grouped(80 * k, k))
        for k in (1, 5)
    )
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.25)


def test_a_share_of_the_sides_that_varies_by_fold_is_no_difference() -> None:
    """A large group fills its fold with one side; models that learn only shares would rank the folds by them."""
    groups = np.repeat(np.arange(20).astype(str), [30, *[3] * 19])
    found = [domain_auc(noise(87, 2, s), groups, noise(87, 2, s + 99), groups, seed=s).value for s in range(30)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_measure_says_all_and_again_the_same() -> None:
    X, Z = clustered(2600, 2, 12, 0), clustered(90, 3, 12, 7) + 1
    groups_x, groups_z = grouped(2600, 2), grouped(90, 3)
    apart = measure(X, groups_x, Z, groups_z, after=Z @ rotation(12, 0), seed=4)
    assert apart == measure(X, groups_x, Z, groups_z, after=Z @ rotation(12, 0), seed=4)
    assert apart.images == (MOST, 90)
    assert 1200 <= apart.groups[0] <= 1300
    assert apart.groups[1] == 30
    assert apart.directions == 11
    assert apart.cka == pytest.approx(1, abs=1e-9)
    assert apart.frechet > 3 * apart.floor > 0
    assert apart.auc.value > 0.9
    other = measure(X, groups_x, Z, groups_z, seed=5)
    assert other.cka is None
    assert other.frechet != apart.frechet


def test_measure_pairs_the_images_it_drew() -> None:
    """With more images than are looked at, those before and after the detour must be the same ones."""
    Z = noise(MOST + 500, 6, 0)
    apart = measure(noise(60, 6, 1), grouped(60, 1), Z, grouped(len(Z), 1), after=2 * Z)
    assert apart.cka == pytest.approx(1, abs=1e-9)


def test_a_side_of_one_group_is_refused_in_words() -> None:
    X = noise(20, 3, 0)
    with pytest.raises(BadDataset, match="got 20 in the source and 1 in the target"):
        measure(X, grouped(20, 1), X, grouped(20, 20))


def test_distances_need_no_torch() -> None:
    code = "import sys, models.domain_shift; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
