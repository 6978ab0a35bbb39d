"""Tests of adaptive quadrature: the integral itself as points are added."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from deepstats.errors import ModelError
from deepstats.models.glmm.laplace import Laplace

from .small import DESIGNS, Small

_NAMES = ("one factor", "cloglog", "nb1", "zinb1", "ordinal", "truncated")
ONE_FACTOR = [d for d in DESIGNS if d.name in _NAMES]
each = pytest.mark.parametrize("small", ONE_FACTOR, ids=lambda s: s.name)


def _integral(laplace: Laplace, x: np.ndarray, gamma: np.ndarray) -> float:
    """Minus twice the log-likelihood by a dense grid over the effects of a group."""
    root = torch.from_numpy(laplace.structure.roots(x)[0])
    k, points = len(root), 401 if len(root) == 1 else 161
    line = torch.linspace(-9, 9, points, dtype=torch.float64)
    pairs = list(itertools.product(line.tolist(), repeat=k))
    grid = torch.tensor(pairs, dtype=torch.float64)
    weight = k * (line[1] - line[0]).log() - grid.square().sum(1) / 2
    weight = weight - 0.5 * k * np.log(2 * np.pi)
    fixed, total = laplace.predictors(gamma), 0.0
    columns = (root.T @ laplace.rows.Z[0]).T
    eta = fixed[0][:, None] + columns @ grid.T
    rows = laplace.density.log_prob_of(eta, *(f[:, None] for f in fixed[1:]))
    codes = laplace.rows.codes[0]
    for level in range(laplace.structure.factors[0].m):
        total += float(torch.logsumexp(rows[codes == level].sum(0) + weight, 0))
    return -2 * total


@each
def test_converges_to_the_integral(small: Small) -> None:
    """More points are nearer to the integral; one is Laplace's method."""
    laplace, x, gamma = small.criterion()
    exact = _integral(laplace, x, gamma)
    off = [abs(laplace(x, gamma).value - exact)]
    for nagq in (7, 15, 31):
        quadrature, _, _ = small.criterion(nagq)
        off.append(abs(quadrature(x, gamma).value - exact))
    assert off[1] < off[0]
    assert off[2] < off[1]
    assert off[3] < 1e-6


@each
def test_gradient(small: Small) -> None:
    """The gradient is that of differences."""
    quadrature, x, gamma = small.criterion(5)
    exact = np.concatenate(quadrature(x, gamma).gradient)
    z, k, reach = np.concatenate([x, gamma]), len(x), 1e-5
    found = np.empty_like(z)
    for j in range(len(z)):
        up, down = z.copy(), z.copy()
        up[j] += reach
        down[j] -= reach
        high, low = quadrature(up[:k], up[k:]), quadrature(down[:k], down[k:])
        found[j] = (high.value - low.value) / (2 * reach)
    np.testing.assert_allclose(exact, found, rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    """Several factors and too many points are refused, with what to do."""
    with pytest.raises(ModelError, match="one grouping factor"):
        DESIGNS[1].criterion(5)
    with pytest.raises(ModelError, match="use fewer"):
        ONE_FACTOR[1].criterion(200)
