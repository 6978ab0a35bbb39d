"""How sure the linear predictors of rows are: modes and parameters together.

At given parameters the random effects vary about their modes with the inverse of the
joint density's curvature, H; the modes themselves move with the parameters. With V the
covariance of the estimates of all parameters t (covariances of the random effects,
coefficients of all predictors) and ``J = d(linear predictor) / dt`` the predictor of a
row has the variance ``z'H^-1 z + J V J'``, which is what TMB reports (Kass & Steffey
1989; Kristensen et al. 2016). The modes' derivatives are exact, by the implicit
function theorem:

    d b / d coefficients_j = H^-1 Z' F_0j X_j
    d b / d V              = H^-1 V^-1 dV Z'F_0 = (I - H^-1 Z'DZ) dV Z'F_0.

References
----------
Kass & Steffey (1989), Approximate Bayesian inference in conditionally independent
hierarchical models, Journal of the American Statistical Association 84. Kristensen et
al. (2016), TMB, Journal of Statistical Software 70(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...design import RandomTerm
from .laplace import Point

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = [
    "LinearParts",
    "add_movement",
    "covariance_of_all",
    "mode_slopes",
    "variance_slopes",
]


def covariance_of_all(results: MixedGLMResults) -> np.ndarray:
    """Covariance of all parameters, those at the edge of their range held there.

    Parameters
    ----------
    results : MixedGLMResults

    Returns
    -------
    ndarray, shape (T, T)
        First the covariance parameters of the search, then all coefficients.
    """
    free = results.found.free
    return np.where(free[:, None] & free, results.joint_cov, 0.0)


def mode_slopes(results: MixedGLMResults) -> list[np.ndarray]:
    """Differentiate the modes of every term in all parameters.

    Parameters
    ----------
    results : MixedGLMResults

    Returns
    -------
    list of ndarray, each (levels, K, T)
        By term of the formula, in the data's units.
    """
    point, fitted = results.found.point, results.mixed
    laplace = point.laplace
    solver = laplace._observed(point)
    empty = solver.L.new_zeros(0, len(point.x))
    moved = solver.products.from_factors(_turned(point), empty)
    held = solver.solve(solver.products.multiply(moved))
    by_x = solver.products.by_factor(moved.minus(held))
    total = sum(laplace.sizes)
    pulled = solver.products.from_factors(_pulls(point), solver.L.new_zeros(0, total))
    by_gamma = solver.products.by_factor(solver.solve(pulled))
    parts = [
        np.einsum("ab,bmt->mat", U, torch.cat([x, g], dim=2).cpu().numpy())
        for U, x, g in zip(fitted.units, by_x, by_gamma, strict=True)
    ]
    return fitted.by_term(parts)


def add_movement(results: MixedGLMResults, frames: dict[str, pd.DataFrame]) -> None:
    """Add the uncertainty of the parameters to conditional standard deviations.

    Parameters
    ----------
    results : MixedGLMResults
    frames : dict of str to DataFrame
        By grouping factor, with a column ``<name>.sd`` for each effect; changed.
    """
    structure, covariance = results.mixed.structure, covariance_of_all(results)
    by_term = mode_slopes(results)
    for j, factor in enumerate(structure.factors):
        frame = frames[factor.name]
        moved = np.concatenate([by_term[t.order] for t in structure.of(j)], axis=1)
        names = [n for n in frame.columns if f"{n}.sd" in frame]
        for place, name in enumerate(names):
            part = moved[:, place]
            variance = ((part @ covariance) * part).sum(1)
            frame[f"{name}.sd"] = np.sqrt(frame[f"{name}.sd"] ** 2 + variance)


def _turned(point: Point) -> list[Tensor]:
    """``dV Z'F_0`` for each covariance parameter, by factor: (K, m, parameters)."""
    laplace = point.laplace
    score = laplace.rows.gather(point.modes.slopes.first)
    directions = laplace.structure.directions(point.x)
    out = [s.new_zeros(*s.shape, len(directions)) for s in score]
    for number, (j, D) in enumerate(directions):
        out[j][:, :, number] = torch.from_numpy(D).to(score[j]) @ score[j]
    return out


def _pulls(point: Point) -> list[Tensor]:
    """``Z' F_0j X_j`` for each coefficient, by factor: (K, m, coefficients)."""
    laplace = point.laplace
    columns = [
        laplace.rows.gather(second * column)
        for X, second in zip(laplace.X, point.turns.second, strict=True)
        for column in X.T
    ]
    return [torch.stack(part, dim=2) for part in zip(*columns, strict=True)]


def variance_slopes(
    results: MixedGLMResults, drawn: Sequence[np.ndarray | None], n: int
) -> np.ndarray:
    """Differentiate ``z'Vz`` of rows in the covariance parameters of the search.

    Parameters
    ----------
    results : MixedGLMResults
    drawn : sequence of ndarray or None, each (n, K)
        Columns of each term of the formula; None leaves a term out.
    n : int

    Returns
    -------
    ndarray, shape (n, parameters)
    """
    structure, x = results.mixed.structure, results.found.point.x
    out = np.zeros((n, len(x)))
    for number, (factor, D) in enumerate(structure.directions(x)):
        for term, Z in zip(structure.terms, drawn, strict=True):
            if term.factor == factor and Z is not None:
                standard = Z @ term.U
                out[:, number] += ((standard @ D[term.at, term.at]) * standard).sum(1)
    return out


@dataclass(frozen=True, eq=False)
class LinearParts:
    """Linear predictors of rows and how they vary.

    Attributes
    ----------
    jacobians : list of ndarray, each (n, T)
        Derivative of each linear predictor in all parameters, modes moving along.
    extra : ndarray, shape (n, J, J)
        Covariance of the predictors at given parameters: of the effects kept about
        their modes, and of those of new levels.
    covariance : ndarray, shape (T, T)
    """

    jacobians: list[np.ndarray]
    extra: np.ndarray
    covariance: np.ndarray

    @classmethod
    def build(
        cls, results: MixedGLMResults, X: list[np.ndarray],
        random: list[RandomTerm | None], columns: list[np.ndarray | None],
        extra: np.ndarray,
    ) -> LinearParts:  # fmt: skip
        """Differentiate the predictors of rows.

        Parameters
        ----------
        results : MixedGLMResults
        X : list of ndarray, each (n, p_j)
            Columns of every linear predictor.
        random : list of RandomTerm or None
            By term of the model, those whose effects are kept.
        columns : list of ndarray or None, each (n, K)
            Their columns, zero for effects that are left out.
        extra : ndarray, shape (n, J, J)
        """
        place = len(results.found.point.x)
        total = place + sum(x.shape[1] for x in X)
        jacobians = []
        for x in X:
            jacobian = np.zeros((len(extra), total))
            jacobian[:, place : place + x.shape[1]] = x
            place += x.shape[1]
            jacobians.append(jacobian)
        if any(r is not None for r in random):
            _add_modes(jacobians, mode_slopes(results), random, columns)
        return cls(jacobians, extra, covariance_of_all(results))

    def spread(self) -> np.ndarray:
        """Covariance of the linear predictors of each row; (n, J, J)."""
        moved = [jacobian @ self.covariance for jacobian in self.jacobians]
        out = np.stack(
            [np.stack([(m * j).sum(1) for j in self.jacobians], axis=1) for m in moved],
            axis=1,
        )
        return out + self.extra

    def variance(
        self, slopes: list[np.ndarray], of_covariances: np.ndarray | None = None
    ) -> np.ndarray:
        """Variance of a function of the linear predictors, row by row.

        Parameters
        ----------
        slopes : list of ndarray, each (n,)
            Of the function in each linear predictor.
        of_covariances : ndarray, shape (n, parameters), optional
            What the function adds to the derivative in the covariance parameters.
        """
        total = sum(s[:, None] * j for s, j in zip(slopes, self.jacobians, strict=True))
        assert isinstance(total, np.ndarray)
        if of_covariances is not None:
            total[:, : of_covariances.shape[1]] += of_covariances
        known = ((total @ self.covariance) * total).sum(1)
        along = np.stack(slopes, axis=1)
        given = np.einsum("nj,njk,nk->n", along, self.extra, along)
        return np.maximum(known, 0.0) + given


def _add_modes(
    jacobians: list[np.ndarray], slopes: list[np.ndarray],
    random: list[RandomTerm | None], columns: list[np.ndarray | None],
) -> None:  # fmt: skip
    """Add the movement of the modes, ``z'db/dt``, to the predictors' derivatives."""
    for term, Z, moved in zip(random, columns, slopes, strict=True):
        if term is None or Z is None:
            continue
        codes = term.grouping.codes
        known = codes >= 0
        for a in range(Z.shape[1]):
            part = Z[known, a, None] * moved[codes[known], a]
            jacobians[term.part][known] += part
