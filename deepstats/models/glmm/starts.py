"""Where the search begins: variances by moments, coefficients given them.

Without random effects the scores s of rows have variance W, their information. With
them, to first order, those of a level add up to more: the method of moments gives the
variances of the factors in one pass over the rows. What a link makes of the average
over random effects is then undone: coefficients of a marginal model are nearer to zero
than those given the effects (logit, probit), or differ by the intercept (log).

References
----------
Zeger, Liang & Albert (1988), Models for longitudinal data: a generalized estimating
equation approach; Breslow & Clayton (1993).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...families import GaussianML
from ...families.links import Log, Logit, Probit
from ..mixed.criterion import Criterion
from ..mixed.search import moments_of_scores, newton
from ..mixed.structure import Structure
from .laplace import Laplace

__all__ = ["starting"]

#: Variance of standardised columns where moments do not tell it, and what it is held
#: between where they do: in units that the link makes.
_START, _LEAST, _MOST = 0.5, 0.03, 4.0
#: Of averaging over a normal variance v: coefficients shrink by ``sqrt(1 + c v)``.
_SHRINKS = {Logit: (16 * np.sqrt(3) / (15 * np.pi)) ** 2, Probit: 1.0}
#: Steps of the working linear model.
_WORKING = 20
#: Not more than this is made of what one step knows.
_STRETCH = 3.0


def starting(
    laplace: Laplace, gamma: np.ndarray, unit: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Covariance parameters, and coefficients that go with them.

    Parameters
    ----------
    laplace : Laplace
    gamma : ndarray
        Estimates without random effects.
    unit : float, default 1
        What a large variance is on the scale of the linear predictor.

    Returns
    -------
    x, gamma : ndarray
    """
    structure = laplace.structure
    plain = all(term.covariance is None for term in structure.terms)
    v = np.full(len(structure.factors), _START * unit)
    if plain and tuple(laplace.rows.parts) == (0,):
        slopes = laplace.density.slopes(laplace.predictors(gamma))
        found = moments_of_scores(laplace.rows.at(slopes.positive, slopes.first))
        if np.isfinite(found).all():
            v, gamma = _undone(laplace, found, gamma)
            v = v.clip(_LEAST * unit, _MOST * unit)
    x = _parameters(structure, v, unit)
    if structure.structured and tuple(laplace.rows.parts) == (0,):
        return _working(laplace, x, gamma, unit)
    return x, gamma


def _working(
    laplace: Laplace, x: np.ndarray, gamma: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of structured covariances by the working linear model.

    Its weights and response are those without random effects. It costs little, so that
    all beginnings that shapes have are looked at, and the best is followed to the end.
    A dispersion is profiled out, which else would begin as that of all rows.
    """
    slopes = laplace.density.slopes(laplace.predictors(gamma))
    weights, scores = slopes.positive, slopes.first
    products = laplace.rows.at(weights, scores)
    products.G[-1, -1] = float((scores.square() / weights).sum())
    family = laplace.density.family
    criterion = Criterion(products, False, 1.0 if len(family.links) == 1 else None)
    x = laplace.structure.begun(x, lambda x: criterion(x).value)
    found = newton(criterion, x, _WORKING, 1e-2).point
    if not np.isfinite(found.value):
        return x, gamma
    x = _scaled(laplace.structure, found.x, found.variance, unit)
    if isinstance(family, GaussianML) and isinstance(family.links[1], Log):
        gamma = gamma.copy()
        place = slice(len(gamma) - laplace.X[1].shape[1], None)
        gamma[place] += np.log(found.variance) / 2 * _constant(laplace.X[1])
    return x, gamma


def _scaled(
    structure: Structure, x: np.ndarray, variance: float, unit: float
) -> np.ndarray:
    """Multiply covariances, and move structured ones off the ends of their range.

    There shapes, or all but the size, have no gradient to leave by.
    """
    x = x.copy()
    for term in structure.terms:
        part = x[term.params]
        if term.covariance is not None:
            sizes = part[: term.covariance.scales]
            least = _LEAST * unit / term.k
            if term.covariance.heterogeneous:
                sizes[:] = np.maximum(sizes * np.sqrt(variance), np.sqrt(least))
            else:
                sizes[:] = np.maximum(sizes * variance, least)
            shapes = part[term.covariance.scales :]
            if len(shapes):
                usual = np.array(term.covariance.correlation.starts())
                shapes[:] = shapes.clip(usual.min(0) - 1, usual.max(0) + 1)
        else:
            part *= variance if term.variances else np.sqrt(variance)
    return x


def _parameters(structure: Structure, v: np.ndarray, unit: float) -> np.ndarray:
    """Return the parameters of uncorrelated effects with the variances of a factor."""
    x = np.zeros(structure.size)
    for term in structure.terms:
        size = v[term.factor]
        if term.covariance is not None:
            # A row's variance is the sum of what its columns contribute. Large: the
            # dispersion begins as that of all.
            x[term.params] = term.covariance.starts(unit / term.k)[0]
        elif term.variances:
            x[term.params] = size
        else:
            r, c = term.triangle
            x[term.params] = np.where(r == c, np.sqrt(size), 0.0)
    return x


def _undone(
    laplace: Laplace, v: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Undo the average over random effects, as far as their sum at a row tells it."""
    link, X = laplace.density.family.links[0], laplace.X[0]
    p, gamma = X.shape[1], gamma.copy()
    if isinstance(link, Log):
        v = np.log1p(v)
        gamma[:p] -= float(v.clip(0, _MOST).sum()) / 2 * _constant(X)
        return v, gamma
    shrink = _SHRINKS.get(type(link))
    if shrink is None:
        return v, gamma
    v = v / max(1 - shrink * float(v.sum()), 1 / _STRETCH)
    if laplace.offsets[0] is None:
        gamma[:p] *= np.sqrt(min(1 + shrink * float(v.sum()), _STRETCH))
    return v, gamma


def _constant(X: Tensor) -> np.ndarray:
    """Return columns' combination that is one in every row, or zeros."""
    gram, sums = (X.T @ X).cpu().numpy(), X.sum(0).cpu().numpy()
    found = np.linalg.lstsq(gram, sums, rcond=1e-12)[0]
    left = float((X @ X.new_tensor(found) - 1).abs().max()) if len(found) else 1.0
    return found if left < 1e-6 else np.zeros_like(found)
