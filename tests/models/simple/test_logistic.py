"""Points of a logistic model against all points of a box, fitted by scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from deepstats.models.simple.logistic import Patterns, ScoreSearch, newton

from .data import small

LOW, HIGH = -2, 2


def logloss(eta: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, eta) - y * eta))


def one(s: np.ndarray, y: np.ndarray, step: float | None, whole: bool) -> float:
    """Least log-loss of a total, by a search of scipy's."""
    if step is None and not whole:
        start = [np.log(y.mean() / (1 - y.mean())), 0.1]
        found = minimize(
            lambda v: logloss(v[0] + v[1] * s, y), start, method="L-BFGS-B",
            bounds=[(None, None), (0, None)], options={"ftol": 1e-15, "gtol": 1e-9},
        )  # fmt: skip
        return float(found.fun)
    if step is None:
        values = [
            minimize_scalar(
                lambda m, z=z: logloss(m * (z + s), y), bounds=(0, 5),
                method="bounded", options={"xatol": 1e-9},
            ).fun
            for z in range(-5, 6)
        ]  # fmt: skip
        return float(min(values))
    if whole:
        return min(logloss(step * (z + s), y) for z in range(-12, 13))
    return float(minimize_scalar(lambda a: logloss(a + step * s, y), tol=1e-12).fun)


def least(X, y, step, whole, terms) -> float:
    """Smallest log-loss of all points of the box."""
    points = itertools.product(range(LOW, HIGH + 1), repeat=X.shape[1])
    return min(
        one(X @ np.array(z), y, step, whole)
        for z in points
        if np.count_nonzero(z) <= terms
    )


def search(X, y, step, whole, terms, low=LOW, high=HIGH) -> ScoreSearch:
    p = X.shape[1]
    return ScoreSearch(
        Patterns.of(X, y), np.full(p, low), np.full(p, high), step=step, whole=whole,
        terms=terms,
    )  # fmt: skip


@pytest.mark.parametrize("step", [None, 0.4])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("terms", [2, 3])
def test_best_points_of_all(step, whole, terms):
    X, y = small(terms - 2, binary=True)
    found = search(X, y, step, whole, terms).run(0, 0, 100_000)
    # scipy's minima are good to about 1e-9.
    assert found.value == pytest.approx(least(X, y, step, whole, terms), abs=1e-8)
    assert found.bound == found.value
    assert np.count_nonzero(found.z) <= terms


def test_coded_columns_need_the_branches():
    """With the local search switched off, branch and bound finds the same."""
    rng = np.random.default_rng(5)
    X = rng.integers(0, 2, (300, 4)).astype(float)
    eta = X @ np.array([1.0, -0.7, 0.55, 0.2]) - 0.3
    y = (rng.uniform(size=300) < 1 / (1 + np.exp(-eta))).astype(float)
    s = search(X, y, None, False, 4, -3, 3)
    whole = s.run(0, 0, 100_000)
    null = float(s.evaluate(np.zeros((1, 4))).value[0])
    at = np.arange(4)
    w, floor = s.floors(at[None])
    z, value, left, nodes = s.branch(at, w[0], np.zeros(4, int), null, 100_000)
    assert value == pytest.approx(whole.value, abs=1e-12) and left == np.inf
    assert floor[0] <= value < null and nodes > 7
    assert s.evaluate(z[None].astype(float)).value[0] == pytest.approx(value)


@pytest.mark.parametrize("limit", [1, 30])
def test_bound_of_a_search_cut_short(limit):
    X, y = small(2, binary=True)
    best = search(X, y, None, False, 3).run(0, 0, 100_000)
    s = search(X, y, None, False, 3)
    at = np.arange(3)
    w, _ = s.floors(at[None])
    _, value, left, nodes = s.branch(at, w[0], np.zeros(3, int), 0.7, limit)
    assert left <= best.value + 1e-10 <= value + 2e-10
    assert nodes <= limit + 32 * 5
    cut = s.run(2, 0, limit)
    assert cut.bound <= best.value + 1e-10 and cut.value >= best.value - 1e-10


def test_too_many_subsets_leave_the_bound_of_real_coefficients():
    X, y = small(3, binary=True)
    s = search(X, y, None, False, 2)
    found = s.run(3, 0, 1000, most=1)
    exact = s.run(0, 0, 1000)
    assert found.bound < exact.value <= found.value + 1e-12
    assert np.count_nonzero(found.z) <= 2


def test_many_models_at_once_match_one():
    X, y = small(4, binary=True)
    patterns = Patterns.of(X, y)
    A = np.column_stack([np.ones(len(patterns.X)), patterns.X])
    coef, value, bound = newton(np.stack([A, A[:, [0, 2, 1, 3]]]), patterns)
    np.testing.assert_allclose(coef[0, [0, 2, 1, 3]], coef[1], rtol=1e-8)
    fit = minimize(lambda b: logloss(b[0] + X @ b[1:], y), np.zeros(4), tol=1e-12)
    assert value[0] == pytest.approx(fit.fun, abs=1e-10)
    assert bound[0] <= value[0] <= bound[0] + 1e-11


def test_separated_rows_have_the_bound_zero():
    X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    patterns = Patterns.of(X, np.array([0.0, 0.0, 1.0, 1.0]))
    _, value, bound = newton(np.column_stack([np.ones(4), patterns.X])[None], patterns)
    assert bound[0] == 0.0 <= value[0] < 1e-6


def test_patterns_keep_the_totals():
    X = np.array([[0.0, 1], [1, 1], [0, 1], [1, 0]])
    found = Patterns.of(X, np.array([0.0, 1, 1, 0]), np.array([1.0, 2, 3, 4]))
    assert found.X.tolist() == [[0, 1], [1, 0], [1, 1]]
    np.testing.assert_allclose(found.total, [0.4, 0.4, 0.2])
    np.testing.assert_allclose(found.events, [0.3, 0.0, 0.2])
