"""The restricted likelihood: coefficients of the mean integrated out with the effects.

With a flat prior the coefficients beta of the mean join the random effects: Laplace's
method finds the mode of both together and divides by the determinant of their joint
curvature. For normal responses that is REML; for others it takes the bias of maximum
likelihood off the variances in the same way (Laird & Ware 1982; Millar 2011, section
9.3), and is what glmmTMB's ``REML=TRUE`` computes. With D the weights, H the curvature
in the effects and

    R = X - Z H^-1 Z'DX,    S = X'DR

the joint curvature has the determinant ``|H| |S|``, and its inverse adds ``R S^-1 R'``
to what Laplace's gradient takes from the effects alone.

References
----------
Laird & Ware (1982), Random-effects models for longitudinal data, Biometrics 38. Millar
(2011), Maximum Likelihood Estimation and Inference. Kristensen et al. (2016), TMB.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import log, pi

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError
from ..mixed.bootstrap import start_of
from .laplace import Laplace, Point
from .quadrature import Quadrature
from .search import Found, approximate, minimise

__all__ = ["Restricted", "RestrictedPoint", "find"]

_STEPS, _HALVINGS = 100, 30


@dataclass(eq=False)
class RestrictedPoint(Point):
    """The restricted criterion at given parameters.

    Attributes
    ----------
    x : ndarray
        Covariance parameters.
    gamma : ndarray
        Coefficients of the predictors other than the mean's.
    value : float
        Minus twice the restricted log-likelihood.
    modes : Modes
    laplace : Restricted
    inner : Point
        Laplace's criterion at the joint mode, with the mean's coefficients.
    """

    inner: Point = field(repr=False, kw_only=True)

    @cached_property
    def projection(self) -> tuple[Tensor, Tensor]:
        """R, shape (n, p), and S, (p, p)."""
        return _projection(self.inner)

    @cached_property
    def information(self) -> np.ndarray:
        """Approximate Hessian: that of all parameters without the coefficients."""
        H, k = approximate(self.inner), len(self.x)
        p = self.inner.laplace.sizes[0]
        own = np.r_[0:k, k + p : len(H)]
        fixed = slice(k, k + p)
        across = H[np.ix_(own, np.arange(k, k + p))]
        return H[np.ix_(own, own)] - across @ np.linalg.solve(H[fixed, fixed], across.T)


@approximate.register
def _(point: RestrictedPoint) -> np.ndarray:
    return point.information


class Restricted:
    """The restricted criterion as a function of the other parameters.

    Parameters
    ----------
    laplace : Laplace
    beta : ndarray, shape (p,)
        Coefficients of the mean to begin from.

    Raises
    ------
    ModelError
        For quadrature, expected information, and random effects outside the mean.
    """

    def __init__(self, laplace: Laplace, beta: np.ndarray) -> None:
        if isinstance(laplace, Quadrature):
            raise ModelError(
                "reml=True integrates the coefficients by Laplace's method; use nagq=1."
            )
        if laplace.density.expected:
            raise ModelError(
                "reml=True needs the observed information; leave information= out."
            )
        if tuple(laplace.rows.parts) != (0,):
            raise ModelError(
                "reml=True is for models whose random effects are all in the mean."
            )
        self.full, self._beta = laplace, np.array(beta, dtype=np.float64)
        self.structure, self.density = laplace.structure, laplace.density
        self.X = laplace.X[1:]

    @property
    def evaluations(self) -> int:
        """How many evaluations of Laplace's criterion there were."""
        return self.full.evaluations

    @property
    def tight(self) -> float:
        """How near to the joint mode evaluations are, in standard deviations."""
        return self.full.tight

    @tight.setter
    def tight(self, value: float) -> None:
        self.full.tight = value

    def begin_at(self, point: Point) -> None:
        """Look for the joint mode of the next call near that of a point."""
        inner = point.inner if isinstance(point, RestrictedPoint) else point
        self.full.begin_at(inner)
        self._beta = inner.gamma[: len(self._beta)]

    def __call__(self, x: np.ndarray, gamma: np.ndarray) -> RestrictedPoint:
        """Evaluate: Newton's method on the coefficients, effects at their modes."""
        point = self._at(x, self._beta, gamma)
        for _ in range(_STEPS):
            R, S = _projection(point)
            score = self.full.X[0].T @ point.modes.slopes.first
            step = torch.linalg.solve(S, score)
            decrement = float(score @ step)
            if not abs(decrement) > self.tight**2:
                break
            after = self._shortened(point, step.cpu().numpy(), decrement)
            if after is None:
                break
            point = after
        R, S = _projection(point)
        sign, logdet = torch.linalg.slogdet(S)
        if not float(sign) > 0:
            raise FloatingPointError("the coefficients have no joint mode")
        self._beta = point.gamma[: len(self._beta)]
        value = point.value + float(logdet) - len(self._beta) * log(2 * pi)
        out = RestrictedPoint(
            np.array(x), np.array(gamma), value, point.modes, self, inner=point
        )
        out.projection = R, S
        return out

    def _at(self, x: np.ndarray, beta: np.ndarray, gamma: np.ndarray) -> Point:
        return self.full(x, np.concatenate([beta, gamma]))

    def _shortened(
        self, point: Point, step: np.ndarray, decrement: float
    ) -> Point | None:
        """Halve a step of the coefficients until the joint density rises."""
        value, p, length = _joint(point), len(step), 1.0
        if decrement < 0:
            step = -step  # Where the density is not concave the step leads downhill.
        slack = 1e-13 * (1 + abs(value))
        for _ in range(_HALVINGS):
            after = self._at(point.x, point.gamma[:p] + length * step, point.gamma[p:])
            if _joint(after) <= value + slack:
                return after
            self.full.begin_at(point)
            length /= 2
        return None

    def gradient(self, point: RestrictedPoint) -> tuple[np.ndarray, np.ndarray]:
        """Exact derivative in the covariance parameters and the other coefficients.

        As `Laplace.gradient`, with the joint curvature in the place of the effects'.
        """
        inner, full = point.inner, self.full
        R, S = point.projection
        RS = torch.linalg.solve(S, R.T).T

        def through(values: Tensor) -> Tensor:
            return full.through(inner, values) + RS @ (R.T @ values)

        h, traces, _ = inner.inverse
        pieces = full.pieces(inner, h + (RS * R).sum(1), through)
        inverse = torch.linalg.inv(S)
        net = [
            trace - torch.einsum("kmp,pq,lmq->kl", pull, inverse, pull)
            for trace, pull in zip(traces, self._pulls(point), strict=True)
        ]
        return full.summed(inner, pieces, net, skip=1)

    def _pulls(self, point: RestrictedPoint) -> list[Tensor]:
        """``Z'DR`` by factor: (K, m, p)."""
        R, _ = point.projection
        w, rows = point.inner.modes.slopes.weight, self.full.rows
        columns = [rows.gather(w * column) for column in R.T]
        if not columns:
            return [R.new_zeros(f.k, f.m, 0) for f in self.structure.factors]
        return [torch.stack(parts, dim=2) for parts in zip(*columns, strict=True)]

    def moves(self, point: RestrictedPoint) -> np.ndarray:
        """How the coefficients move with the other parameters; (p, parameters)."""
        inner, rows = point.inner, self.full.rows
        R, S = point.projection
        score, pulls = rows.gather(inner.modes.slopes.first), self._pulls(point)
        columns = [
            -torch.einsum("kmp,km->p", pulls[j], torch.from_numpy(D).to(R) @ score[j])
            for j, D in self.structure.directions(point.x)
        ]
        for X, second in zip(self.X, inner.turns.second[1:], strict=True):
            columns += list((R.T @ (second[:, None] * X)).T)
        if not columns:
            return np.zeros((len(S), 0))
        return torch.linalg.solve(S, torch.stack(columns, dim=1)).cpu().numpy()


def _joint(point: Point) -> float:
    """Minus twice the joint log-density of responses and effects."""
    return -2 * float(point.modes.slopes.value.sum()) + point.modes.penalty


def _projection(point: Point) -> tuple[Tensor, Tensor]:
    laplace, X = point.laplace, point.laplace.X[0]
    w, f = point.modes.slopes.weight, point.modes.factorisation
    if not X.shape[1]:
        return X, X.new_zeros(0, 0)
    columns = [laplace.rows.gather(w * column) for column in X.T]
    parts = [torch.stack(c, dim=2) for c in zip(*columns, strict=True)]
    solved = f.products.by_factor(
        f.solve(f.products.from_factors(parts, f.L.new_zeros(0, X.shape[1])))
    )
    onto = [
        laplace.rows.combine([s[:, :, j] for s in solved]) for j in range(X.shape[1])
    ]
    R = X - torch.stack(onto, dim=1)
    S = X.T @ (w[:, None] * R)
    return R, (S + S.T) / 2


def find(
    laplace: Laplace, x: np.ndarray | None, gamma: np.ndarray, *, reml: bool = False,
    **options: object,
) -> Found:  # fmt: skip
    """Minimise minus twice the log-likelihood, or the restricted one.

    Parameters
    ----------
    laplace : Laplace
    x, gamma : ndarray
        Where to begin: covariance parameters and coefficients.
    reml : bool, default False
    **options
        Of `search.minimise`.

    Returns
    -------
    Found
        In all parameters, the coefficients of the mean at the joint mode.
    """
    if not reml:
        return minimise(laplace, x, gamma, **options)
    p, k = laplace.sizes[0], laplace.structure.size
    restricted = Restricted(laplace, gamma[:p])
    if options.get("scored", True):
        # From afar: the optimum of the likelihood is near that of the restricted one.
        begin = minimise(laplace, x, gamma, **options).point
        restricted.begin_at(begin)
        x, gamma = start_of(laplace.structure, begin.x), begin.gamma
    found = minimise(restricted, x, gamma[p:], **(options | {"scored": False}))
    point = found.point
    assert isinstance(point, RestrictedPoint)
    own = np.r_[0:k, k + p : k + len(gamma)]
    fixed = np.arange(k, k + p)
    # The joint precision: of the coefficients given the others it is S.
    S, J = point.projection[1].cpu().numpy(), restricted.moves(point)
    H = np.empty((k + len(gamma), k + len(gamma)))
    H[np.ix_(fixed, fixed)] = 2 * S
    H[np.ix_(fixed, own)] = -2 * S @ J
    H[np.ix_(own, fixed)] = H[np.ix_(fixed, own)].T
    H[np.ix_(own, own)] = found.hessian + 2 * J.T @ S @ J
    free = np.ones(len(H), dtype=bool)
    free[own] = found.free
    inner = replace(point.inner, value=point.value)
    return replace(found, point=inner, hessian=H, free=free, reml=True)
