"""Every strength and fold at once, against scikit-learn one at a time."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController, threadpool_limits

from features.errors import FirnError
from models.logistic_path import Sweep, balanced, one_thread, out_of_fold, predicted, strengths, sweep
from models.logistic_path.arrays import Numpy, Torch, _libraries, in_turn
from models.logistic_path.duality_gap import newton_step
from models.logistic_path.loss import losses

REAL = Path("../shared/data/colon/train")
GRID = [1e-4, 1e-2, 1.0, 1e2, 1e4]


def features(n: int, d: int, classes: int, *, noise: float = 1.0, seed: int = 0) -> tuple[Any, NDArray[np.int64]]:
    """Return rectified, correlated features (n, d) and labels that they tell apart but for the noise."""
    rng = np.random.default_rng(seed)
    rank = max(4, d // 8)
    X = np.maximum(rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d)) / 3 + rng.normal(0, 0.3, (n, d)), 0)
    s = X @ rng.standard_normal((d, classes))
    s = (s - s.mean(0)) / s.std(0)
    return X, np.argmax(s + noise * rng.standard_normal(s.shape), 1)


def masks(n: int, folds: int) -> NDArray[np.bool_]:
    """Return training masks (folds, n) that hold out every n-th row."""
    kept: NDArray[np.bool_] = np.arange(n) % folds != np.arange(folds)[:, None]
    return kept


def reference(X: Any, y: Any, C: float, weight: Any = None, **kwargs: Any) -> Any:
    """Return scikit-learn's solution at tol 1e-8, whatever it takes."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=C, tol=1e-8, max_iter=20_000, **kwargs).fit(X, y, sample_weight=weight)


def objective(X: Any, y: Any, coef: Any, intercept: Any, C: float, scale: Any = 1.0, weight: Any = 1.0) -> float:
    """Return sum w logloss + ||scale * coef||^2 / (2 C), computed the plain way."""
    z = np.asarray(X, np.float64) @ coef.T + intercept
    z = np.concatenate([np.zeros_like(z), z], 1) if z.shape[1] == 1 else z
    loss = np.logaddexp.reduce(z, 1) - z[np.arange(len(y)), y]
    return float((weight * loss).sum() + np.square(coef * scale).sum() / (2 * C))


def standardised(X: Any) -> Any:
    """Return X as scikit-learn standardises it."""
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit_transform(np.asarray(X, np.float64))


def spoilt(X: Any, kind: str) -> Any:
    """Return X with what real features do to solvers."""
    d = X.shape[1]
    kinds: dict[str, Callable[[], Any]] = {
        "plain": lambda: X,
        "duplicated": lambda: np.concatenate([X[:, : d // 2]] * 2, 1),
        "constant": lambda: np.where(np.arange(d) < 3, [[7.1]], X),
        "badly scaled": lambda: X * np.logspace(-3, 3, d) + 1000,
    }
    return kinds[kind]()


@pytest.mark.parametrize("kind", ["plain", "duplicated", "constant", "badly scaled"])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize(("n", "d", "noise"), [(150, 20, 1.0), (40, 90, 0.0)])
def test_the_objective_is_scikit_learns(n: int, d: int, noise: float, classes: int, kind: str) -> None:
    X, y = features(n, d, classes, noise=noise)
    X, folds = spoilt(X, kind), masks(n, 3)[:2]
    found = sweep(X, y, strengths=GRID, folds=folds)
    assert found.converged.all()
    for s, C in enumerate(GRID):
        A, rows = standardised(X[folds[1]]), y[folds[1]]
        theirs = reference(A, rows, C)
        minimum = objective(A, rows, theirs.coef_, theirs.intercept_, C)
        assert found.objective[1, s] <= minimum * (1 + 1e-6)
        assert found.objective[1, s] * (1 - found.gap[1, s]) <= minimum * (1 + 1e-12)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("standardize", [True, False])
def test_coefficients_are_in_the_features_own_units(classes: int, standardize: bool) -> None:
    X, y = features(120, 10, classes)
    X = X * np.linspace(0.5, 5, 10) + 3
    folds = masks(120, 3)
    found = sweep(X, y, strengths=[0.1, 1.0], folds=folds, standardize=standardize, tol=1e-9)
    for f in range(3):
        A, rows = X[folds[f]], y[folds[f]]
        scale = A.std(0) if standardize else np.ones(10)
        theirs = reference(A / scale, rows, 1.0)
        np.testing.assert_allclose(found.coef[f, 1], theirs.coef_ / scale, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.intercept[f, 1], theirs.intercept_, rtol=1e-3, atol=1e-3)
        plain = objective(A, rows, found.coef[f, 1], found.intercept[f, 1], 1.0, scale)
        assert found.objective[f, 1] == pytest.approx(plain, rel=1e-10)


@pytest.mark.parametrize("classes", [2, 3])
def test_many_features_in_float32_are_proved_in_float64(classes: int) -> None:
    X, y = features(500, 2200, classes)  # more than fits the all-float64 path
    X, folds = X.astype(np.float32), masks(500, 5)[:2]
    found = sweep(X, y, strengths=[1e-4, 1e-2, 1.0], folds=folds, tol=1e-6)
    assert found.converged.all()
    A, rows = standardised(X[folds[0]]), y[folds[0]]
    for s, C in ((0, 1e-4), (2, 1.0)):
        theirs = reference(A, rows, C)
        assert found.objective[0, s] == pytest.approx(objective(A, rows, theirs.coef_, theirs.intercept_, C), rel=1e-5)
    tight = sweep(X, y, strengths=[1e-2], folds=folds, tol=1e-12)  # beyond float32
    assert tight.converged.all() and tight.gap.max() <= 1e-12
    assert np.all(found.objective[:, 1] * (1 - found.gap[:, 1]) <= tight.objective[:, 0])


def test_many_rows_share_one_hessian() -> None:
    X, y = features(3000, 600, 2)
    folds = masks(3000, 3)
    found = sweep(X.astype(np.float32), y, strengths=[1e-3, 1e-2, 1e-1], folds=folds)
    assert found.converged.all() and found.iterations.max() < 25
    A, rows = standardised(X[folds[2]].astype(np.float32)), y[folds[2]]
    theirs = reference(A, rows, 1e-1)
    assert found.objective[2, 2] == pytest.approx(objective(A, rows, theirs.coef_, theirs.intercept_, 1e-1), rel=1e-6)


def test_separable_data_at_any_strength() -> None:
    X, y = features(200, 30, 2, noise=0.0)
    folds = masks(200, 4)
    found = sweep(X, y, strengths=np.logspace(-4, 4, 9), folds=folds)
    assert found.converged.all()
    assert np.all(np.diff(found.objective, axis=1) < 0)
    assert np.all(predicted(X, found, 0)[8].argmax(1) == y, where=folds[0])


def test_a_feature_constant_in_one_fold_has_no_say_there() -> None:
    X, y = features(90, 6, 2)
    folds = masks(90, 3)
    X[:, 2] = np.where(folds[0], 5.0, X[:, 2])
    X[:, 4] = np.where(folds[0], 1e-4 * X[:, 4] + 1e3, 0)  # its spread is a rounding error of the spread of all rows
    found = sweep(X, y, strengths=[1.0], folds=folds)
    assert np.all(found.coef[0, 0, :, 2] == 0) and np.all(found.coef[1:, 0, :, 2] != 0)
    A, rows = standardised(X[folds[0]]), y[folds[0]]
    theirs = reference(A, rows, 1.0)
    assert found.objective[0, 0] == pytest.approx(objective(A, rows, theirs.coef_, theirs.intercept_, 1.0), rel=1e-6)


def test_float16_counts_as_what_it_holds() -> None:
    X, y = features(80, 12, 2)
    half, folds = X.astype(np.float16), masks(80, 2)
    a, b = (sweep(x, y, strengths=[0.1, 1.0], folds=folds, tol=1e-14) for x in (half, half.astype(np.float64)))
    np.testing.assert_allclose(a.coef, b.coef, rtol=1e-5, atol=1e-7)


def test_the_same_numbers_every_time_and_in_any_order() -> None:
    X, y = features(100, 15, 3)
    folds = masks(100, 4)
    a, b = (sweep(X, y, strengths=[1e-2, 1.0, 10.0], folds=folds) for _ in range(2))
    np.testing.assert_array_equal(a.coef, b.coef)
    other = sweep(X, y, strengths=[10.0, 1e-2, 10.0, 1.0], folds=folds)
    np.testing.assert_array_equal(other.coef, a.coef[:, [2, 0, 2, 1]])
    np.testing.assert_array_equal(other.strengths, [10.0, 1e-2, 10.0, 1.0])


def test_a_weight_of_two_is_the_row_twice() -> None:
    X, y = features(60, 5, 3)
    weight = np.arange(60) % 3
    twice = np.repeat(np.arange(60), weight)
    folds = np.ones((1, 60), bool)
    a = sweep(X, y, strengths=[1.0], folds=folds, sample_weight=weight, standardize=False, tol=1e-10)
    b = sweep(X[twice], y[twice], strengths=[1.0], folds=folds[:, twice], standardize=False, tol=1e-10)
    np.testing.assert_allclose(a.coef, b.coef, atol=1e-4)
    assert a.objective[0, 0] == pytest.approx(b.objective[0, 0], rel=1e-9)


def test_balanced_weights_are_scikit_learns() -> None:
    X, y = features(150, 8, 3)
    y[y == 2] = np.where(np.arange((y == 2).sum()) % 5, 0, 2)
    folds = masks(150, 3)
    found = sweep(X, y, strengths=[1.0], folds=folds, sample_weight=balanced(y, folds), tol=1e-10)
    for f in range(3):
        A, rows = X[folds[f]], y[folds[f]]
        theirs = reference(standardised(A), rows, 1.0, class_weight="balanced")
        np.testing.assert_allclose(found.coef[f, 0] * A.std(0), theirs.coef_, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_out_of_fold_probabilities_are_cross_validations(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = features(120, 10, classes)
    folds = masks(120, 4)
    proba = out_of_fold(X, sweep(X, y, strengths=[0.01, 1.0], folds=folds, tol=1e-9), folds)
    assert proba.shape == (2, 120, classes)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-8, max_iter=5000))
    theirs = cross_val_predict(model, X, y, cv=PredefinedSplit(np.arange(120) % 4), method="predict_proba")
    np.testing.assert_allclose(proba[1], theirs, atol=1e-4)


def test_out_of_fold_averages_repeats_and_marks_rows_never_held_out() -> None:
    X, y = features(60, 5, 2)
    folds = np.ones((2, 60), bool)
    folds[:, :10] = False
    folds[1, 10:20] = False
    found = sweep(X, y, strengths=[1.0], folds=folds)
    proba = out_of_fold(X, found, folds)[0, :, 1]
    each = [predicted(X, found, f)[0, :, 1] for f in range(2)]
    np.testing.assert_allclose(proba[:10], (each[0] + each[1])[:10] / 2, rtol=1e-12)
    np.testing.assert_allclose(proba[10:20], each[1][10:20], rtol=1e-12)
    assert np.isnan(proba[20:]).all()


def test_what_was_cut_short_says_so() -> None:
    X, y = features(150, 20, 2)
    found = sweep(X, y, strengths=[1e2], folds=masks(150, 2), max_iter=1)
    full = sweep(X, y, strengths=[1e2], folds=masks(150, 2))
    assert not found.converged.any() and np.all(found.iterations == 1)
    assert np.all(found.gap > 1e-6)
    assert np.all(found.objective * (1 - found.gap) <= full.objective)
    assert np.all(found.objective > full.objective)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_keep_their_digits(dtype: type) -> None:
    t: Any = np.array([[-80.0, -1.0, 0.0, 3.0, 9e3], [-81.0, -2.0, -1e30, 3.0, 10.0]], dtype)[None]
    loss, q = losses(np, t)
    exact = t[0].astype(np.longdouble)
    np.testing.assert_allclose(loss[0, :4], np.log1p(np.exp(exact).sum(0))[:4].astype(float), rtol=1e-5)
    np.testing.assert_allclose(
        q[0, :, :4], (np.exp(exact) / (1 + np.exp(exact).sum(0)))[:, :4].astype(float), rtol=1e-5
    )
    assert loss[0, 4] == 9e3 and q[0, 0, 4] == 1


@pytest.mark.parametrize(("n", "d", "classes"), [(150, 20, 3), (700, 1600, 2)])
def test_torch_runs_the_same_algorithm(n: int, d: int, classes: int) -> None:
    X, y = features(n, d, classes)
    X, folds = X.astype(np.float16), masks(n, 3)
    a, b = (sweep(X, y, strengths=[1e-2, 1.0], folds=folds, device=name) for name in ("cpu", "torch-cpu"))
    assert b.converged.all()
    np.testing.assert_allclose(a.objective, b.objective, rtol=1e-7)
    np.testing.assert_allclose(a.coef, b.coef, atol=1e-3 * np.abs(a.coef).max())
    assert np.abs(a.iterations - b.iterations).max() <= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_agrees() -> None:
    X, y = features(700, 1600, 3)
    a, b = (sweep(X, y, strengths=GRID, folds=masks(700, 3), device=name) for name in ("cpu", "cuda"))
    assert b.converged.all()
    np.testing.assert_allclose(a.objective, b.objective, rtol=2e-6)


def test_memory_stays_below_three_copies() -> None:
    X, y = features(4000, 700, 2)
    X = X.astype(np.float32)
    sweep(X[:40], y[:40], strengths=[1e-3], folds=masks(40, 3))  # what it imports is not counted
    tracemalloc.start()
    try:
        with threadpool_limits(1):  # each further thread has rows in hand too
            sweep(X, y, strengths=[1e-3, 1e-2], folds=masks(4000, 3))
        assert tracemalloc.get_traced_memory()[1] < 3 * X.nbytes
    finally:
        tracemalloc.stop()


def test_the_default_grid_ascends_from_1e_4_to_1e2() -> None:
    assert len(strengths()) == 20 and len(strengths(5)) == 5
    assert np.all(np.diff(strengths()) > 0)
    np.testing.assert_allclose(strengths(7), [1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100])


WRONG: dict[str, dict[str, Any]] = {
    "row per label": {"X": np.ones((5, 3))},
    "of floats": {"X": np.ones((30, 3), int)},
    "training masks": {"folds": np.ones((2, 30))},
    "positive strengths": {"strengths": [1.0, 0.0]},
    "sample_weight": {"sample_weight": np.full(30, -1.0)},
    "two classes": {"y": np.zeros(30, np.int64)},
    "none of class 2": {"y": np.where(np.arange(30) == 0, 2, np.arange(30) % 2)},
    "column 1 of X": {"X": np.where(np.arange(3) == 1, np.nan, np.ones((30, 3)))},
    "unknown device": {"device": "abacus"},
}


@pytest.mark.parametrize("words", list(WRONG))
def test_a_mistake_is_named_in_one_line(words: str) -> None:
    X, y = features(30, 3, 2)
    folds = np.array([np.arange(30) > 2, np.ones(30, bool)])
    with pytest.raises(FirnError, match=words) as caught:
        sweep(**{"X": X, "y": y, "strengths": [1.0], "folds": folds, **WRONG[words]})
    assert "\n" not in str(caught.value)


def test_neither_torch_nor_scikit_learn_is_imported() -> None:
    code = "import sys, models.logistic_path; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


@pytest.mark.skipif(not REAL.exists(), reason="no ../shared/data: images of colon tissue")
def test_real_images() -> None:
    from PIL import Image

    paths = [p for c in sorted(REAL.iterdir()) for p in sorted(c.glob("*"))[:60]]
    X = np.stack([np.asarray(Image.open(p).convert("RGB").resize((8, 8)), np.float32).ravel() for p in paths])
    y = np.repeat([0, 1], 60)
    folds = masks(120, 4)
    found: Sweep = sweep(X, y, strengths=strengths(), folds=folds)
    assert found.converged.all()
    A, rows = standardised(X[folds[3]]), y[folds[3]]
    for s in (0, 10, 19):
        theirs = reference(A, rows, found.strengths[s])
        minimum = objective(A, rows, theirs.coef_, theirs.intercept_, found.strengths[s])
        assert found.objective[3, s] <= minimum * (1 + 1e-6)
    accuracy = (out_of_fold(X, found, folds).argmax(-1) == y).mean(1)
    assert accuracy.max() > 0.7


def blas_threads() -> set[int]:
    """Return how many threads each library of linear algebra has."""
    import scipy.linalg  # noqa: F401 - that it is among them

    return {int(each["num_threads"]) for each in ThreadpoolController().select(user_api="blas").info()}


def test_the_linear_algebra_has_one_thread() -> None:
    """In a block, in blocks inside it and in a decorated function; as many as before when they end, by an error too."""
    _libraries.cache_clear()  # OpenCV, loaded since by another test, has one of its own, which nothing here asks
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        with pytest.raises(KeyError), one_thread():
            assert blas_threads() == one_thread()(blas_threads)() == {1}
            assert list(in_turn(Numpy(), lambda x: x * x, range(7))) == [0, 1, 4, 9, 16, 25, 36]
            raise KeyError
        assert blas_threads() == before


def test_bits_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads go through the rows of a large matrix and factor the Hessians."""
    monkeypatch.setattr("models.logistic_path.design._LARGE", 1)
    X, y = features(1200, 30, 3)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("models.logistic_path.arrays._threads", ContextVar("threads", default=threads))
        found.append(sweep(X.astype(np.float32), y, strengths=[1e-3, 1.0], folds=masks(1200, 3)))
    assert np.array_equal(found[0].coef, found[1].coef)
    plain = sweep(X, y, strengths=[1e-3, 1.0], folds=masks(1200, 3), tol=1e-9)
    np.testing.assert_allclose(found[0].objective, plain.objective, rtol=1e-6)


@pytest.mark.parametrize("arrays", [Numpy(), Torch(torch, "cpu")], ids=["numpy", "torch"])
def test_classes_told_apart_for_certain_leave_a_step_for_the_others(arrays: Any) -> None:
    """Of five classes three have probabilities of 0 and 1 alone: the curvature is singular to the last digit."""
    bend = np.full((2, 5, 5), 0.1)
    bend[:, :2, :2] += np.array([[0.25, -0.25], [-0.25, 0.25]])
    slope = np.array([0.01, -0.01, 0, 0, 0])[:, None] + np.zeros((2, 1, 1))
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.solve(bend, slope)

    def step(bend: Any) -> Any:
        design: Any = SimpleNamespace(arrays=arrays, dtype="float64")
        return arrays.get(newton_step(design, arrays.put(bend, "float64"), arrays.put(slope, "float64")))

    found = step(bend)
    np.testing.assert_allclose(found[:, 0] - found[:, 1], 0.02 / 0.5, rtol=1e-6)
    np.testing.assert_allclose(bend @ found, slope, atol=1e-9)
    lost = np.where(np.arange(2)[:, None, None] == 1, np.nan, bend)
    np.testing.assert_allclose(step(lost)[0], found[0], err_msg="a problem that is lost ends no other one")
    np.testing.assert_allclose(step(bend + np.eye(5)), np.linalg.solve(bend + np.eye(5), slope), atol=1e-15)
