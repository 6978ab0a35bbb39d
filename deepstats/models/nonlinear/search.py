"""From the estimates of the linearised model to the optimum of the likelihood.

Steps are Newton's. The Hessian comes from differences of the exact gradient, once, and
is corrected by what gradients show on the way; at the optimum it is made anew, for the
standard errors, and a step that is still long says to go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from ..mixed.search import bounded_step, corrected
from .laplace import Laplace, Point

__all__ = ["Found", "hessian", "minimise"]

#: Differences of gradients reach this far, in standard errors.
_REACH = 1e-3
#: A standardised variance that falls below this is tried at zero.
_ZERO = 1e-9
_HALVINGS = 30
#: Longest step, in standard errors of the first Hessian.
_LONGEST = 5.0


@dataclass(frozen=True, eq=False)
class Found:
    """Where the search ended.

    Attributes
    ----------
    point : Point
    hessian : ndarray
        Second derivatives of minus twice the log-likelihood.
    free : ndarray of bool
        Parameters that are not at their bound.
    converged : bool
    iterations, evaluations : int
    decrement : float
        Length of the last step, in standard errors.
    message : str
    """

    point: Point
    hessian: np.ndarray
    free: np.ndarray
    converged: bool
    iterations: int
    evaluations: int
    decrement: float
    message: str


def minimise(
    criterion: Laplace, start: np.ndarray, scale: np.ndarray, *,
    tolerance: float = 1e-6, max_iterations: int = 100,
) -> Found:  # fmt: skip
    """Minimise minus twice the log-likelihood.

    Parameters
    ----------
    criterion : Laplace
    start : ndarray
        Covariance parameters, coefficients, logarithm of sigma.
    scale : ndarray
        What is a small change of each.
    tolerance : float, default 1e-6
        On the length of the last step, in standard errors.
    max_iterations : int, default 100

    Returns
    -------
    Found
    """
    lower = criterion.lower
    now = criterion(start)
    if not now.value < inf:
        raise ArithmeticError("the likelihood is undefined at the start.")
    H, exact, length = hessian(now, scale, False), False, inf
    converged, message = False, f"not converged in {max_iterations} iterations"
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        back, length = bounded_step(now, H, lower)
        if length < tolerance:
            if exact:
                converged, message = True, "converged"
                break
            H, exact = hessian(now, _scale(H, scale)), True
            continue
        step = -back * min(1.0, _LONGEST / max(length, 1e-300))
        after = _line(criterion, now, step, lower)
        if after is None:
            if not exact:
                H, exact = hessian(now, _scale(H, scale)), True
                continue
            converged = length < 1e3 * tolerance
            message = "converged to rounding" if converged else "no step descends"
            break
        H = corrected(H, after.z - now.z, after.gradient - now.gradient)
        now, exact = after, False
    if not exact:
        H = hessian(now, _scale(H, scale))
    free = ~((now.z <= lower) & (now.gradient >= 0))
    return Found(
        now, H, free, converged, iteration, criterion.evaluations, length, message
    )


def hessian(point: Point, scale: np.ndarray, central: bool = True) -> np.ndarray:
    """Second derivatives by differences of the exact gradient.

    Parameters
    ----------
    point : Point
    scale : ndarray
        What is a small change of each parameter.
    central : bool, default True
        False for differences to one side, which are enough on the way.
    """
    z, H = point.z, np.empty((len(point.z), len(point.z)))
    for j in range(len(z)):
        high, up = _beside(point, j, _REACH * scale[j])
        low, down = z[j], point.gradient
        if central:
            low, down = _beside(point, j, -_REACH * scale[j])
        H[:, j] = (up - down) / (high - low) if high > low else 0.0
    point.criterion.hold(point.modes)
    return (H + H.T) / 2


def _beside(point: Point, j: int, change: float) -> tuple[float, np.ndarray]:
    """Value of a parameter next to a point, and the gradient there."""
    criterion, z = point.criterion, point.z.copy()
    z[j] = max(z[j] + change, criterion.lower[j])
    criterion.hold(point.modes)
    found = criterion(z)
    if found.modes is None or not np.isfinite(found.value):
        return point.z[j], point.gradient
    return z[j], found.gradient


def _scale(H: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """One over the root of the curvature, but no more than ten times what was said."""
    d = np.abs(np.diag(H))
    return np.minimum(1 / np.sqrt(np.maximum(d, 1e-300)), 10 * scale)


def _line(
    criterion: Laplace, now: Point, step: np.ndarray, lower: np.ndarray
) -> Point | None:
    """Halve a step until the value falls."""
    slope, noise = float(step @ now.gradient), 1e-12 * (1 + abs(now.value))
    length = 1.0
    for _ in range(_HALVINGS):
        z = np.maximum(now.z + length * step, lower)
        z[np.isfinite(lower) & (z < _ZERO)] = 0.0
        criterion.hold(now.modes)
        after = criterion(z)
        if after.value <= now.value + 1e-4 * length * min(slope, 0.0) + noise:
            return after
        length /= 2
    criterion.hold(now.modes)
    return None
