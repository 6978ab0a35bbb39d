"""Tests of Laplace's criterion: value, modes and gradient by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.models.glmm.laplace import Laplace

from .small import DESIGNS, Small, dense_z

each = pytest.mark.parametrize("small", DESIGNS, ids=lambda s: s.name)


def _relative(laplace: Laplace, x: np.ndarray) -> torch.Tensor:
    """Covariance of all effects, dense."""
    return torch.block_diag(*(
        torch.block_diag(*([torch.from_numpy(r @ r.T)] * f.m))
        for r, f in zip(
            laplace.structure.roots(x), laplace.structure.factors, strict=True
        )
    ))  # fmt: skip


def _brute(
    laplace: Laplace, x: np.ndarray, gamma: np.ndarray
) -> tuple[float, torch.Tensor]:
    """Minus twice the log-likelihood by Laplace's method and the modes, densely."""
    Z, V = dense_z(laplace), _relative(laplace, x)
    fixed, precision = laplace.predictors(gamma), torch.linalg.inv(V)
    density, b = laplace.density, torch.zeros(Z.shape[1]).double()

    def joint(b: torch.Tensor) -> torch.Tensor:
        etas = (fixed[0] + Z @ b, *fixed[1:])
        return b @ precision @ b / 2 - density.log_prob(*etas).sum()

    for _ in range(60):
        at = b.clone().requires_grad_()
        (g,) = torch.autograd.grad(joint(at), at)
        H = torch.autograd.functional.hessian(joint, b)
        values, vectors = torch.linalg.eigh(H)
        step = vectors @ ((vectors.T @ g) / values.abs())
        length = 1.0
        while joint(b - length * step) > joint(b) + 1e-9 and length > 1e-8:
            length /= 2
        b = b - length * step
    etas = (fixed[0] + Z @ b, *fixed[1:])
    w = density.slopes(etas).weight
    H = Z.T @ (w[:, None] * Z) + precision
    value = 2 * joint(b) + torch.linalg.slogdet(V)[1] + torch.linalg.slogdet(H)[1]
    return float(value), b


@each
def test_value_and_modes(small: Small) -> None:
    """Value and modes are those of dense matrices and automatic derivatives."""
    laplace, x, gamma = small.criterion()
    value, b = _brute(laplace, x, gamma)
    for _ in range(2):  # From no modes at all, and from those of the first call.
        point = laplace(x, gamma)
        assert point.modes.converged
        assert point.value == pytest.approx(value, abs=1e-8)
        effects = torch.cat([e.T.reshape(-1) for e in point.modes.effects])
        assert float((effects - b).abs().max()) < 1e-9


@each
def test_modes_solve_their_equations(small: Small) -> None:
    """At the modes scores equal the penalty's slope, to 1e-10 standard deviations."""
    laplace, x, gamma = small.criterion()
    laplace(x * 1.3 + 0.05, gamma - 0.1)
    modes = laplace.modes(x, gamma)
    left = [
        s - c
        for s, c in zip(
            laplace.rows.gather(modes.slopes.first), modes.dual, strict=True
        )
    ]
    off = laplace.solve(modes.factorisation, left)
    length = sum(float((a * b).sum()) for a, b in zip(left, off, strict=True))
    assert np.sqrt(abs(length)) < 1e-10
    roots = laplace.structure.roots(x)
    for effect, dual, root in zip(modes.effects, modes.dual, roots, strict=True):
        V = torch.from_numpy(root @ root.T)
        assert torch.allclose(effect, V @ dual, rtol=0, atol=1e-12)


@each
def test_gradient(small: Small) -> None:
    """The gradient is that of differences."""
    laplace, x, gamma = small.criterion()
    exact = np.concatenate(laplace(x, gamma).gradient)
    z, k = np.concatenate([x, gamma]), len(x)
    found, reach = np.empty_like(z), 1e-4
    for j in range(len(z)):
        values = []
        for step in (-2, -1, 1, 2):
            at = z.copy()
            at[j] += step * reach
            values.append(laplace(at[:k], at[k:]).value)
        low2, low, high, high2 = values
        found[j] = (low2 - 8 * low + 8 * high - high2) / (12 * reach)
    np.testing.assert_allclose(exact, found, rtol=1e-6, atol=1e-6)


def test_path_does_not_matter() -> None:
    """The value depends on where modes are looked for by less than 1e-9."""
    for small in DESIGNS:
        laplace, x, gamma = small.criterion()
        cold = laplace(x, gamma).value
        laplace(3 * x, gamma + 0.5)
        assert laplace(x, gamma).value == pytest.approx(cold, abs=1e-9)


def test_variance_of_zero() -> None:
    """At a variance of zero the effects are zero, and the gradient is one-sided."""
    laplace, x, gamma = DESIGNS[1].criterion()
    x[0] = 0.0
    point = laplace(x, gamma)
    factor = laplace.structure.terms[0].factor
    assert float(point.modes.effects[factor].abs().max()) == 0.0
    up = x.copy()
    up[0] = 1e-6
    slope = (laplace(up, gamma).value - point.value) / 1e-6
    assert point.gradient[0][0] == pytest.approx(slope, rel=1e-4)


def test_few_factorisations() -> None:
    """Near the last point the equations are made once: at the new modes."""
    laplace, x, gamma = DESIGNS[1].criterion()
    point = laplace(x, gamma)
    before = laplace.factorisations
    laplace.begin_at(point)
    laplace(x + 1e-5, gamma)
    assert laplace.factorisations == before + 1
