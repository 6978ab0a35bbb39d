"""Quadratics with kinks, and losses, against other solvers and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from deepstats.models.lossreg.boxed import solve_boxed
from deepstats.models.lossreg.losses import Composite, get_link, get_loss
from deepstats.models.lossreg.plq import Kinks, kkt, solve_plq
from deepstats.quantile import fit_quantile


@pytest.mark.parametrize("seed", range(20))
def test_both_solvers_of_boxed_quadratics_agree(seed):
    rng = np.random.default_rng(seed)
    k = 8
    A = rng.normal(size=(12, k))
    H, r = A.T @ A, rng.normal(size=k) * 4
    l1 = np.where(rng.uniform(size=k) < 0.3, 0.0, rng.uniform(0, 2, size=k))
    low = np.where(
        rng.uniform(size=k) < 0.4, rng.choice([-0.1, 0.0, 0.1], size=k), -np.inf
    )
    high = np.where(rng.uniform(size=k) < 0.3, low.clip(-1) + 0.3, np.inf)
    b = solve_boxed(H, r, l1, rng.normal(size=k), low, high)
    eye = np.eye(k)
    on, off = np.isfinite(low), np.isfinite(high)
    kinks = Kinks.absolute(l1, np.zeros(k)).plus(
        Kinks.constrained(
            np.vstack([eye[on], -eye[off]]), np.r_[low[on], -high[off]],
            np.zeros((0, k)), np.zeros(0),
        )
    )  # fmt: skip
    other = solve_plq(H, -r, kinks, np.zeros(k)).b
    np.testing.assert_allclose(b, other, atol=1e-9)
    assert kkt(H @ b - r, kinks, b)[0] < 1e-9
    moved = b + 1e-3 * rng.normal(size=k)
    assert kkt(H @ moved - r, kinks, np.clip(moved, low, high))[0] > 1e-5


@pytest.mark.parametrize("q", [0.1, 0.5, 0.8])
def test_quantiles_by_the_interior_point(q, rng):
    n, k = 500, 4
    X = np.c_[np.ones(n), rng.normal(size=(n, k - 1))]
    y = X @ np.arange(k) + rng.standard_t(3, size=n)
    kinks = Kinks(X, y, np.full(n, q), np.full(n, 1 - q))
    found = solve_plq(np.zeros((k, k)), np.zeros(k), kinks, np.zeros(k))
    np.testing.assert_allclose(found.b, fit_quantile(X, y, q).params, atol=1e-12)


def test_ties_are_left_to_the_simplex(rng):
    # A binary outcome: many rows lie on the plane, in many ways.
    n, k = 300, 4
    X = np.c_[np.ones(n), rng.integers(0, 2, size=(n, k - 1))].astype(float)
    y = rng.integers(0, 2, size=n).astype(float)
    kinks = Kinks(X, y, np.ones(n), np.ones(n))
    found = solve_plq(np.zeros((k, k)), np.zeros(k), kinks, np.zeros(k))
    eye = np.eye(n)
    best = linprog(
        np.r_[np.zeros(k), np.ones(2 * n)], A_eq=np.hstack([X, eye, -eye]), b_eq=y,
        bounds=[(None, None)] * k + [(0, None)] * (2 * n),
    ).fun  # fmt: skip
    assert kinks.value(found.b) == pytest.approx(best, rel=1e-10)


def test_equations_hold(rng):
    A = rng.normal(size=(10, 5))
    H, r = A.T @ A, rng.normal(size=5)
    E, d = np.array([[1.0, 1, 0, 0, 0], [0, 0, 1, -1, 0]]), np.array([1.0, 0.0])
    kinks = Kinks.constrained(np.zeros((0, 5)), np.zeros(0), E, d)
    found = solve_plq(H, -r, kinks, np.zeros(5))
    K = np.block([[H, E.T], [E, np.zeros((2, 2))]])
    np.testing.assert_allclose(found.b, np.linalg.solve(K, np.r_[r, d])[:5], atol=1e-12)


PAIRS = [
    ("logloss", "sigmoid"), ("brier", "sigmoid"), ("brier", "clamp"),
    ("poisson", "exp"), ("squared", "identity"), ("huber(0.7)", "identity"),
    ("focal(2)", "sigmoid"), ("quantile(0.3)", "identity"), ("squared", "exp"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "link"), PAIRS)
def test_derivatives_in_the_predictor(loss, link):
    composite = Composite(get_loss(loss), get_link(link))
    eta = torch.linspace(-2.01, 2.2, 31, dtype=torch.float64)
    y = (torch.arange(31) % 2).double()
    found, h = composite.rows(eta, y, {}), 1e-5
    up, down = (composite.rows(eta + s * h, y, {}) for s in (1, -1))
    torch.testing.assert_close(
        found.first, (up.value - down.value) / (2 * h), atol=1e-8, rtol=1e-7
    )
    torch.testing.assert_close(
        found.second, (up.first - down.first) / (2 * h), atol=1e-8, rtol=1e-7
    )
    plain = composite.evaluate(eta, y, {})
    torch.testing.assert_close(found.value, plain, atol=1e-12, rtol=1e-12)
