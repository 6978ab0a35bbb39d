"""The strength at which a ridge solution minimises a loss plus an unsquared norm.

Where ``|u| > 0`` the minimiser of ``loss + lam |u|`` solves ridge equations with
``mu |u(mu)| = t``; t is a constant for a quadratic loss, and ``lam sqrt(n) |r(mu)|``
where the loss is the root mean square of the residuals r. In ``nu = 1 / mu`` the
function ``psi = t / (mu |u|)`` rises from ``psi(0)``, first as a straight line, like
the secular equation of trust regions (Moré & Sorensen 1983), then more like a power: in
logarithms of nu and ``psi - psi(0)`` both are lines, and Newton's method takes a few
steps to ``psi = 1``. If ``psi(0) >= 1`` the minimiser has no deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import ModelError
from .equations import Equations, Factored

__all__ = ["Root", "solve_norm"]

Array = np.ndarray

#: Relative to the largest eigenvalue: below it float64 cannot tell mu from zero.
_LEAST = 1e-13
#: A step of nu shorter than this, relatively, is taken to first order: what is left is
#: its square.
_SHORT = 1e-6


@dataclass(frozen=True, eq=False)
class Root:
    """Solution of the secular equation.

    Attributes
    ----------
    mu : float
        Infinite where there are no deviations.
    u : ndarray, shape (q,)
    w : ndarray, shape (p,)
    factored : Factored or None
        The equations at mu, to a millionth of it.
    """

    mu: float
    u: Array
    w: Array
    factored: Factored | None


def solve_norm(
    equations: Equations,
    right: tuple[Array, Array],
    target: float,
    residual: float | None = None,
) -> Root:
    """Solve ``mu |u(mu)| = t``.

    Parameters
    ----------
    equations : Equations
    right : tuple of ndarray, (q,) and (p,)
        Right-hand sides ``B'Dy`` and ``X'Dy``.
    target : float
        t, or what multiplies ``|r(mu)|`` in it.
    residual : float, optional
        Sum of squares of y, where t has the residuals in it; y has been projected on
        the complement of X.

    Returns
    -------
    Root

    Raises
    ------
    ModelError
        Where the deviations can reproduce y and the penalty is too weak to matter.
    """
    w0 = equations.population(right[1])
    nothing = np.zeros(equations.q)
    c = right[0] - equations.product(nothing, w0)[0]
    size = float(np.linalg.norm(c))
    top = target * (1.0 if residual is None else np.sqrt(residual))
    if size <= top:
        return Root(np.inf, nothing, w0, None)
    at_zero = top / size
    nu = _first(equations, c, at_zero, residual)
    low, high = 0.0, np.inf
    for _ in range(100):
        nu = _inside(nu, low, high, 1 / (_LEAST * equations.top))
        factored = equations.factored(1 / nu)
        u, w = factored.solve(*right)
        moved = factored.solve(u, np.zeros(len(w)))
        psi, slope = _psi(factored.mu, u, w, moved[0], right, target, residual)
        low, high = (nu, high) if psi < 1 else (low, nu)
        if abs(1 - psi) <= _SHORT * slope * nu:
            break
        rise = psi - at_zero
        power = slope * nu / rise if rise > 0 else 0.0
        if power > 0:
            nu *= np.exp(np.clip(np.log((1 - at_zero) / rise) / power, -20, 20))
        else:  # rounding has eaten the rise: double nu
            nu *= 2
    mu = 1 / (nu + (1 - psi) / slope)
    change = mu - factored.mu
    return Root(mu, u - change * moved[0], w - change * moved[1], factored)


def _first(
    equations: Equations, c: Array, at_zero: float, residual: float | None
) -> float:
    """Newton's step from ``nu = 0``."""
    w = equations.population(-equations.product(c, np.zeros(equations.p))[1])
    curvature = float(c @ equations.product(c, w)[0]) / float(c @ c)
    if residual is not None:
        curvature -= float(c @ c) / residual
    if curvature <= 0:
        return 1 / equations.top
    return (1 / at_zero - 1) / curvature


def _inside(nu: float, low: float, high: float, most: float) -> float:
    """Keep a step inside the bracket, and away from what cannot be computed."""
    if low < nu < high and np.isfinite(nu) and (low == 0 or nu <= 1e6 * low):
        found = nu
    elif np.isfinite(high):
        found = np.sqrt(low * high) if low > 0 else high / 10
    else:
        found = 10 * low
    if found <= most:
        return found
    if low >= most:
        raise ModelError(
            "at this penalty the deviations reproduce the outcomes exactly: there are "
            "as many of them as rows. Give a larger penalty."
        )
    return most


def _psi(
    mu: float, u: Array, w: Array, moved: Array, right: tuple[Array, Array],
    target: float, residual: float | None,
) -> tuple[float, float]:  # fmt: skip
    """Value of psi and its derivative in nu."""
    squares = float(u @ u)
    # d|u|^2 / d mu = -2 u'(K + mu)^-1 u, and d|r|^2 = -mu d|u|^2 on the path.
    change = -2 * float(u @ moved)
    log_slope = 1 / mu + change / (2 * squares)
    t = target
    if residual is not None:
        rss = residual - float(u @ right[0]) - float(w @ right[1]) - mu * squares
        rss = max(rss, 1e-30 * residual)
        t *= np.sqrt(rss)
        log_slope += mu * change / (2 * rss)
    psi = t / (mu * np.sqrt(squares))
    return psi, psi * log_slope * mu**2
