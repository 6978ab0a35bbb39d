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

from ...families.links import Log, Logit, Probit
from ..mixed.search import moments_of_scores
from ..mixed.structure import Structure
from .laplace import Laplace

__all__ = ["starting"]

#: Variance of standardised columns where moments do not tell it, and what it is held
#: between where they do: in units that the link makes.
_START, _LEAST, _MOST = 0.5, 0.03, 4.0
#: Of averaging over a normal variance v: coefficients shrink by ``sqrt(1 + c v)``.
_SHRINKS = {Logit: (16 * np.sqrt(3) / (15 * np.pi)) ** 2, Probit: 1.0}
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
    return _parameters(structure, v, unit), gamma


def _parameters(structure: Structure, v: np.ndarray, unit: float) -> np.ndarray:
    """Return the parameters of uncorrelated effects with the variances of a factor."""
    x = np.zeros(structure.size)
    for term in structure.terms:
        size = v[term.factor]
        if term.covariance is not None:
            # A row's variance is the sum of what its columns contribute. Large, and
            # with a moderate shape: the dispersion begins as that of all.
            starts = term.covariance.starts(unit / term.k)
            x[term.params] = starts[min(1, len(starts) - 1)]
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
