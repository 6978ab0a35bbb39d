"""The lattice search against all points of a box."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from deepstats.models.simple.lattice import best_points, closest_point, subsets

P = 4


def problem(seed: int, p: int = P) -> tuple[np.ndarray, np.ndarray]:
    """Return a triangle of correlated columns, and a target."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(30, p)) + 2 * rng.normal(size=(30, 1))
    return np.linalg.qr(A, mode="r"), rng.uniform(-3, 3, p)


def least(R, t, low, high, terms=None, counted=None) -> float:
    """Smallest value of all points of a box."""
    on = np.ones(len(t), bool) if counted is None else counted
    values = [
        np.sum((R @ (np.array(z) - t)) ** 2)
        for z in itertools.product(
            *(range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        )
        if terms is None or np.count_nonzero(np.array(z)[on]) <= terms
    ]
    return float(min(values))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("box", [(-6, 6), (-1, 2), (1, 3)])
def test_nearest_point_of_a_box(seed, box):
    R, t = problem(seed)
    low, high = np.full(P, float(box[0])), np.full(P, float(box[1]))
    found = closest_point(R, t, low, high)
    assert found.value == pytest.approx(least(R, t, low, high), rel=1e-12)
    assert found.bound == found.value
    assert ((found.z >= low) & (found.z <= high)).all()
    assert found.value == pytest.approx(np.sum((R @ (found.z - t)) ** 2), rel=1e-12)
    ordered = best_points(R, t, low, high)
    assert ordered.value == pytest.approx(found.value, rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("most", [0, 50_000])
def test_few_terms(seed, terms, most):
    """By subsets, and in one search where there are too many of them."""
    R, t = problem(seed)
    low, high = np.full(P, -4.0), np.full(P, 4.0)
    found = best_points(R, t, low, high, terms=terms, most=most)
    assert np.count_nonzero(found.z) <= terms
    assert found.value == pytest.approx(least(R, t, low, high, terms), rel=1e-10)
    assert found.bound == pytest.approx(found.value, rel=1e-10)


@pytest.mark.parametrize("most", [0, 50_000])
def test_elements_that_do_not_count(most):
    R, t = problem(3)
    low, high, on = np.full(P, -4.0), np.full(P, 4.0), np.arange(P) < P - 1
    t[-1] = 2.2
    found = best_points(R, t, low, high, terms=1, counted=on, most=most)
    assert found.value == pytest.approx(least(R, t, low, high, 1, on), rel=1e-10)
    assert found.z[-1] != 0 and np.count_nonzero(found.z) == 2


def test_without_bounds_rounding_is_never_better():
    for seed in range(10):
        R, t = problem(seed, 8)
        wide = np.full(8, math.inf)
        found = best_points(R, t, -wide, wide)
        assert found.value <= np.sum((R @ (np.round(t) - t)) ** 2) + 1e-12
        assert np.sum((R @ (found.z - t)) ** 2) == pytest.approx(found.value)


@pytest.mark.parametrize("limit", [1, 5, 20])
@pytest.mark.parametrize("terms", [None, 2])
def test_bound_of_a_search_cut_short(limit, terms):
    cut = 0
    for seed in range(8):
        R, t = problem(seed)
        low, high = np.full(P, -4.0), np.full(P, 4.0)
        start = np.clip(np.round(t), low, high)
        if terms:
            start[terms:] = 0
        found = best_points(R, t, low, high, terms=terms, starts=[start], limit=limit)
        best = least(R, t, low, high, terms)
        assert found.bound <= best * (1 + 1e-10)
        assert found.value >= best * (1 - 1e-10)
        cut += found.bound < found.value
        assert found.nodes <= limit
    assert cut or limit > 1


def test_nothing_below_a_value():
    R, t = problem(0)
    wide = np.full(P, 9.0)
    best = closest_point(R, t, -wide, wide)
    assert closest_point(R, t, -wide, wide, value=best.value) is None


def test_subsets_are_all_there():
    found = subsets(np.array([2, 5, 7, 9]), 2)
    assert found.tolist() == [[2, 5], [2, 7], [2, 9], [5, 7], [5, 9], [7, 9]]
