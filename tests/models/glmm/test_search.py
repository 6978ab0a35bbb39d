"""Tests of the search: optimum, Hessian, variances at zero."""

from __future__ import annotations

import numpy as np
import pytest

from deepstats.models.glmm.laplace import Laplace, Point
from deepstats.models.glmm.search import hessian, minimise

from .small import DESIGNS, Small

each = pytest.mark.parametrize("small", DESIGNS, ids=lambda s: s.name)


def _central(laplace: Laplace, point: Point, reach: np.ndarray) -> np.ndarray:
    """Second derivatives by central differences of the gradient."""
    z, k = np.concatenate([point.x, point.gamma]), len(point.x)
    H = np.empty((len(z), len(z)))
    for j in range(len(z)):
        sides = []
        for sign in (1, -1):
            at = z.copy()
            at[j] += sign * reach[j]
            sides.append(np.concatenate(laplace(at[:k], at[k:]).gradient))
        H[:, j] = (sides[0] - sides[1]) / (2 * reach[j])
    return (H + H.T) / 2


@each
def test_optimum(small: Small) -> None:
    """Free parameters have no gradient left, those at zero one that holds them."""
    laplace, x, gamma = small.criterion()
    found = minimise(laplace, x, gamma)
    assert found.converged
    gradient = np.concatenate(found.point.gradient)
    free = np.flatnonzero(found.free)
    H = found.hessian[np.ix_(free, free)]
    left = gradient[free]
    assert np.sqrt(abs(left @ np.linalg.solve(H, left))) < 1e-4
    assert (gradient[~found.free] >= 0).all()
    assert (np.concatenate([found.point.x, found.point.gamma])[~found.free] == 0).all()
    if laplace.structure.only_variances:
        again = minimise(laplace, found.point.x + 0.2, found.point.gamma + 0.1)
        assert again.point.value == pytest.approx(found.point.value, abs=1e-6)


# Excess zeros that the data do not have leave a direction flat.
@pytest.mark.parametrize(
    "small", [d for d in DESIGNS if d.name != "zinb1"], ids=lambda s: s.name
)
def test_hessian(small: Small) -> None:
    """Forward differences give standard errors to a thousandth."""
    laplace, x, gamma = small.criterion()
    found = minimise(laplace, x, gamma)
    free = np.flatnonzero(found.free)
    scale = np.sqrt(np.abs(np.diag(found.hessian)))
    reach = 1e-3 / scale
    # Central differences of a variance near zero would leave its range.
    reach[: len(x)] = np.minimum(reach[: len(x)], 0.5 * np.abs(found.point.x) + 1e-9)
    H = _central(laplace, found.point, reach)[np.ix_(free, free)]
    fresh = hessian(found.point)[np.ix_(free, free)]
    wanted = np.sqrt(np.diag(np.linalg.inv(H)))
    for one in (found.hessian[np.ix_(free, free)], fresh):
        errors = np.sqrt(np.diag(np.linalg.inv(one)))
        np.testing.assert_allclose(errors, wanted, rtol=2e-3)


def test_few_evaluations() -> None:
    """A common model takes a dozen evaluations besides those of the Hessian."""
    laplace, x, gamma = DESIGNS[0].criterion()
    found = minimise(laplace, x, gamma)
    assert found.evaluations - len(found.hessian) < 15
