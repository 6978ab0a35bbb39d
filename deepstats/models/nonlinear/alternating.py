"""Lindstrom and Bates's method: penalised least squares, then a linear mixed model.

Two steps take turns. With the covariance parameters held, fixed and random effects
minimise the penalised sum of squares, by Gauss-Newton steps, each of which solves the
equations of the linearised model. Then the linearised model's covariance parameters are
estimated, by (restricted) maximum likelihood. What is maximised in the end is the
likelihood of the linear mixed model next to the estimates: an approximation, and the
one whose values nlme reports.

References
----------
Lindstrom & Bates (1990), Nonlinear mixed effects models for repeated measures data,
Biometrics 46; Pinheiro & Bates (2000), Mixed-effects models in S and S-PLUS, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from ..mixed.criterion import Criterion, Point
from ..mixed.light import LazyPoint, LightPoint, light
from ..mixed.search import Found, minimise
from .linearised import Linearised
from .reading import numbers

__all__ = ["Alternated", "alternate", "fixed_covariance"]

#: Gauss-Newton steps of one turn; they end where one is this short, in units of the
#: residual standard deviation, or of what the last turn left.
_STEPS, _SHORT = 7, 1e-3
_HALVINGS = 12


@dataclass(frozen=True, eq=False)
class Alternated:
    """Where the alternation ended.

    Attributes
    ----------
    found : Found
        Optimum of the linear mixed model at the estimates.
    criterion : Criterion
    beta : Tensor, shape (p,)
    b : Tensor, shape (clusters, size)
        Standardised effects.
    converged : bool
    iterations : int
        Turns.
    change : float
        Of the last turn: of the fixed effects in standard errors, or of the covariance
        parameters.
    """

    found: Found
    criterion: Criterion
    beta: Tensor
    b: Tensor
    converged: bool
    iterations: int
    change: float


@dataclass(eq=False)
class _State:
    """Estimates on the way; ``b = V c``."""

    beta: Tensor
    b: Tensor
    c: Tensor

    def toward(self, other: _State, length: float) -> _State:
        return _State(
            self.beta + length * (other.beta - self.beta),
            self.b + length * (other.b - self.b),
            self.c + length * (other.c - self.c),
        )


def alternate(
    linear: Linearised, beta: Tensor, *, reml: bool, max_iterations: int = 200,
    tolerance: float = 1e-6, x: np.ndarray | None = None,
) -> Alternated:  # fmt: skip
    """Find the estimates.

    Parameters
    ----------
    linear : Linearised
    beta : Tensor, shape (p,)
        Where to begin.
    reml : bool
    max_iterations : int, default 200
    tolerance : float, default 1e-6
        On what a turn changes.
    x : ndarray, optional
        Covariance parameters to begin with.
    """
    zeros = linear.effects.zeros()
    x = linear.first(beta, reml) if x is None else x
    state = _State(beta, zeros, zeros)
    change, turn, converged = inf, 0, False
    while turn < max_iterations and not converged:
        turn += 1
        state = _least_squares(linear, state, x, min(_SHORT, change / 10))
        criterion = Criterion(linear.at(state.beta, state.b), reml)
        found = minimise(criterion, x)
        after = _solution(linear, found.point)
        moved = numbers(after.beta - state.beta)
        inverse = np.linalg.pinv(fixed_covariance(found))
        far = float(np.sqrt(max(moved @ inverse @ moved, 0.0)))
        turned = np.abs(found.point.x - x) / np.maximum(np.abs(x), 0.1)
        change = max(far, float(turned.max()) if len(x) else 0.0)
        state, x = after, found.point.x
        converged = bool(change <= tolerance and found.converged)
        if not np.isfinite(change):
            break
    return Alternated(found, criterion, state.beta, state.b, converged, turn, change)


def fixed_covariance(found: Found) -> np.ndarray:
    """Covariance of the fixed effects of a linear fit."""
    point = found.point
    if isinstance(point, LazyPoint):
        return point.variance * point.light.cov_beta
    assert point.factorisation is not None
    return point.variance * point.factorisation.cov_beta.cpu().numpy()


def _solution(linear: Linearised, point: Point | LightPoint) -> _State:
    """Return fixed effects and modes of a linear fit."""
    effects = linear.effects
    if isinstance(point, LazyPoint):
        point = point.light
    if isinstance(point, LightPoint):
        beta = torch.from_numpy(np.ascontiguousarray(point.beta))
    else:
        assert point.factorisation is not None
        beta = point.factorisation.beta.cpu()
    dual = [torch.from_numpy(np.ascontiguousarray(m.T)) for m in point.modes]
    V = linear.covariances(point.x)
    b = [c @ v for c, v in zip(dual, V, strict=True)]
    return _State(beta, effects.from_factors(b), effects.from_factors(dual))


def _least_squares(
    linear: Linearised, state: _State, x: np.ndarray, short: float
) -> _State:
    """Minimise the penalised sum of squares with the covariance parameters held."""
    effects = linear.effects
    V = linear.covariances(x)
    # The effects of another covariance may not be within this one's range.
    parts = [c @ v for c, v in zip(effects.by_factor(state.c), V, strict=True)]
    now = _State(state.beta, effects.from_factors(parts), state.c)
    value = _penalised(linear, now)
    if not value < inf:
        zeros = effects.zeros()
        now = _State(state.beta, zeros, zeros)
        value = _penalised(linear, now)
    for _ in range(_STEPS):
        point = light(Criterion(linear.at(now.beta, now.b), False))(x)
        if not np.isfinite(point.value):
            break
        after = _solution(linear, point)
        length = 1.0
        for _ in range(_HALVINGS):
            trial = now.toward(after, length)
            found = _penalised(linear, trial)
            if found <= value * (1 + 1e-14):
                break
            length /= 2
        else:
            break
        gain, now, value = value - found, trial, found
        # A gain is about the square of the step that made it.
        if gain <= short**2 * value / linear.rows.n:
            break
    return now


def _penalised(linear: Linearised, state: _State) -> float:
    """Weighted sum of squares plus ``b'V^-1 b``; infinite where it is not finite."""
    rows = linear.rows
    f = rows.mean(rows.fixed(state.beta) + linear.effects.move(state.b))
    value = float((rows.w * (rows.y - f).square()).sum() + (state.b * state.c).sum())
    return value if np.isfinite(value) else inf
