"""Quadratic plus piecewise linear functions under linear constraints, minimised.

One form holds the l1 penalty, the absolute and the quantile loss, inequalities and
equations: ``g'b + b'Qb / 2 + sum(cost(f - F b))`` where ``cost(s)`` is ``up * s`` above
zero and ``-down * s`` below, and an infinite slope is a constraint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, null_space

__all__ = ["Kinks", "PlqSolution", "kkt", "solve_plq"]

Array = np.ndarray

_MAX_ITERATIONS = 100
# Complementarity, over the terms of the objective, at which the search ends: rounding,
# and with linear terms only what tells the vertex.
_GAP, _VERTEX = 1e-13, 1e-10
# What a step may leave of a number that must stay positive: quotients do not overflow.
_TINY = 1e-60


@dataclass(frozen=True, eq=False)
class Kinks:
    """Piecewise linear terms of a function of coefficients.

    Attributes
    ----------
    F : ndarray, shape (m, k)
    f : ndarray, shape (m,)
    up, down : ndarray, shape (m,)
        Slopes in ``s = f - F b`` above and below zero; both infinite for an equation,
        one of them for an inequality.
    """

    F: Array
    f: Array
    up: Array
    down: Array

    def __len__(self) -> int:
        return len(self.f)

    def plus(self, other: Kinks) -> Kinks:
        """Return these terms and others."""
        return Kinks(
            np.vstack([self.F, other.F]), np.r_[self.f, other.f],
            np.r_[self.up, other.up], np.r_[self.down, other.down],
        )  # fmt: skip

    def value(self, b: Array) -> float:
        """Sum of the finite terms (constraints are taken to hold)."""
        s = self.f - self.F @ b
        up = np.where(np.isfinite(self.up), self.up, 0.0)
        down = np.where(np.isfinite(self.down), self.down, 0.0)
        return float(np.maximum(up * s, -down * s).sum())

    @classmethod
    def none(cls, k: int) -> Kinks:
        """Return no terms."""
        zero = np.zeros(0)
        return cls(np.zeros((0, k)), zero, zero, zero)

    @classmethod
    def absolute(cls, l1: Array, centre: Array) -> Kinks:
        """Return ``sum(l1 |b - centre|)``."""
        on = np.flatnonzero(l1 > 0)
        return cls(np.eye(len(l1))[on], centre[on], l1[on], l1[on])

    @classmethod
    def constrained(cls, A: Array, c: Array, E: Array, d: Array) -> Kinks:
        """Return ``A b >= c`` and ``E b = d``."""
        inf = np.inf
        up = np.full(len(c) + len(d), inf)
        down = np.r_[np.zeros(len(c)), np.full(len(d), inf)]
        return cls(np.vstack([A, E]), np.r_[c, d], up, down)


@dataclass(frozen=True, eq=False)
class PlqSolution:
    """A minimiser.

    Attributes
    ----------
    b : ndarray, shape (k,)
    slopes : ndarray, shape (m,)
        Multiplier of each term: the slope in ``s`` that holds the gradient at zero.
    iterations : int
    converged : bool
    """

    b: Array
    slopes: Array
    iterations: int
    converged: bool


def solve_plq(
    Q: Array,
    g: Array,
    kinks: Kinks,
    start: Array,
    watch: Callable[[Array], bool] | None = None,
) -> PlqSolution:
    """Minimise by a primal-dual interior-point method and finish on the active set.

    Parameters
    ----------
    Q : ndarray, shape (k, k)
        Positive semidefinite.
    g : ndarray, shape (k,)
    kinks : Kinks
        Constraints must have a solution.
    start : ndarray, shape (k,)
    watch : callable, optional
        Called with the coefficients of each iteration; true stops there.

    Returns
    -------
    PlqSolution

    References
    ----------
    Mehrotra (1992), On the implementation of a primal-dual interior point method, SIAM
    J. Optimization 2(4); Koenker & Park (1996), An interior point algorithm for
    nonlinear quantile regression, J. Econometrics 71, for bounded multipliers.
    """
    equal = np.isinf(kinks.up) & np.isinf(kinks.down)
    base, N = _affine(kinks.F[equal], kinks.f[equal], start)
    rest = Kinks(
        kinks.F[~equal] @ N, kinks.f[~equal] - kinks.F[~equal] @ base,
        kinks.up[~equal], kinks.down[~equal],
    )  # fmt: skip
    y0 = N.T @ (start - base)
    inner = _InteriorPoint(N.T @ Q @ N, N.T @ (g + Q @ base), rest, y0)
    y, z, steps, good = inner.run(
        None if watch is None else lambda y: watch(base + N @ y)
    )
    y, z, residual = _polish(inner.Q, inner.g, rest, y, z)
    if residual > 1e-8 and not Q.any() and not inner.interrupted:
        y, z = _vertex(inner.g, rest, y, z)
    slopes = np.zeros(len(kinks))
    slopes[~equal] = z
    b = base + N @ y
    if equal.any():
        slope = g + Q @ b - kinks.F[~equal].T @ z
        slopes[equal] = np.linalg.lstsq(kinks.F[equal].T, slope, rcond=None)[0]
    return PlqSolution(_snapped(b, kinks), slopes, steps, good)


def _snapped(b: Array, kinks: Kinks) -> Array:
    """Put coefficients on the kinks and bounds they are at, but for rounding."""
    b, largest = b.copy(), float(np.abs(b).max(initial=0.0))
    for i in np.flatnonzero((kinks.F != 0).sum(1) == 1):
        j = int(np.flatnonzero(kinks.F[i])[0])
        value = kinks.f[i] / kinks.F[i, j]
        if abs(b[j] - value) <= 1e-13 * max(largest, abs(value)):
            b[j] = value
    return b


def _affine(E: Array, d: Array, start: Array) -> tuple[Array, Array]:
    """Point and orthonormal basis of the solutions of ``E b = d`` nearest to start."""
    if not len(E):
        return np.zeros_like(start), np.eye(len(start))
    correction = np.linalg.lstsq(E, d - E @ start, rcond=None)[0]
    return start + correction, null_space(E)


class _InteriorPoint:
    """Predictor-corrector steps; terms have multipliers between -down and up."""

    def __init__(self, Q: Array, g: Array, kinks: Kinks, y: Array) -> None:
        self.Q, self.g, self.kinks, self.y = Q, g, kinks, y
        self.interrupted = False
        s = kinks.f - kinks.F @ y
        up, down = kinks.up, kinks.down
        self.has_u, self.has_v = np.isfinite(up), np.isfinite(down)
        size = float(np.abs(s).mean()) if len(s) else 1.0
        size = size if size > 1e-8 else 1.0
        self.u = np.where(self.has_u, np.maximum(s, 0) + size, 0.0)
        self.v = np.where(self.has_v, np.maximum(-s, 0) + size, 0.0)
        finite = np.r_[up[self.has_u], down[self.has_v]]
        force = float(np.abs(g + Q @ y).max(initial=0.0))
        width = max(float(finite.max(initial=0.0)), force, 1e-8)
        middle = np.where(self.has_u & self.has_v, (up - down) / 2, 0.0)
        only_v = ~self.has_u & self.has_v
        only_u = self.has_u & ~self.has_v
        self.z = np.where(only_v, -down + width, np.where(only_u, up - width, middle))
        # Distances of multipliers from their bounds are kept apart: as differences
        # they would be zero where they are below rounding.
        self.p = np.where(self.has_u, up - self.z, 1.0)
        self.q = np.where(self.has_v, down + self.z, 1.0)

    def run(
        self, watch: Callable[[Array], bool] | None
    ) -> tuple[Array, Array, int, bool]:
        """Iterate to rounding; coefficients, multipliers, steps, success."""
        F = self.kinks.F
        if not len(self.kinks):
            y = np.linalg.lstsq(self.Q, -self.g, rcond=None)[0]
            return y, self.z, 1, True
        count = max(int(self.has_u.sum() + self.has_v.sum()), 1)
        least, stalled = np.inf, 0
        for iteration in range(1, _MAX_ITERATIONS + 1):
            p, q = self.p, self.q
            rs = self.kinks.f - F @ self.y - self.u + self.v
            rd = -(self.Q @ self.y + self.g - F.T @ self.z)
            gap = float((self.u * p * self.has_u + self.v * q * self.has_v).sum())
            mu = gap / count
            if watch is not None and watch(self.y):
                self.interrupted = True
                return self.y, self.z, iteration, False
            if self._done(gap, rs, rd):
                return self.y, self.z, iteration, True
            if not self._step(p, q, rs, rd, mu):
                return self.y, self.z, iteration, gap < 1e-6 * self._size()
            # Rounding: complementarity no longer falls.
            stalled = stalled + 1 if gap > 0.9 * least else 0
            if stalled > 7:
                return self.y, self.z, iteration, gap < 1e-8 * self._size()
            least = min(least, gap)
        return self.y, self.z, _MAX_ITERATIONS, False

    def _size(self) -> float:
        quadratic = abs(float(self.y @ self.Q @ self.y)) / 2 + abs(
            float(self.g @ self.y)
        )
        return 1e-300 + quadratic + abs(self.kinks.value(self.y))

    def _done(self, gap: float, rs: Array, rd: Array) -> bool:
        length = 1.0 + float(np.abs(self.kinks.f).max(initial=0.0))
        force = 1e-300 + float(np.abs(self.g).max(initial=0.0))
        force += float(np.abs(self.kinks.F.T @ self.z).max(initial=0.0))
        near = np.abs(rs).max(initial=0.0) <= 1e-11 * length
        still = np.abs(rd).max(initial=0.0) <= 1e-11 * force
        least = _GAP if self.Q.any() else _VERTEX
        return gap <= least * self._size() and bool(near and still)

    def _step(self, p: Array, q: Array, rs: Array, rd: Array, mu: float) -> bool:
        F, has_u, has_v = self.kinks.F, self.has_u, self.has_v
        D = np.where(has_u, self.u / p, 0.0) + np.where(has_v, self.v / q, 0.0)
        W = 1.0 / np.maximum(D, 1e-300)
        half = F * np.sqrt(W)[:, None]
        M = self.Q + half.T @ half
        scale = 1.0 / np.sqrt(np.maximum(M.diagonal(), 1e-300))
        scaled = M * scale[:, None] * scale + 1e-15 * np.eye(len(M))
        if not np.isfinite(scaled).all():
            return False
        try:
            factor = cho_factor(scaled)
        except LinAlgError:
            return False

        def direction(cu: Array, cv: Array) -> tuple[Array, Array, Array, Array]:
            """Newton step to ``u p = cu``, ``v q = cv``."""
            eu = np.where(has_u, cu / p - self.u, 0.0)
            ev = np.where(has_v, cv / q - self.v, 0.0)
            t = rs - eu + ev
            dy = scale * cho_solve(factor, scale * (rd + F.T @ (W * t)))
            dz = W * (t - F @ dy)
            du = eu + np.where(has_u, self.u / p, 0.0) * dz
            dv = ev - np.where(has_v, self.v / q, 0.0) * dz
            return dy, dz, du, dv

        zero = np.zeros_like(rs)
        dy, dz, du, dv = direction(zero, zero)
        a, c = self._lengths(p, q, du, dv, dz)
        after = ((self.u + a * du) * (p - c * dz) * has_u).sum()
        after += ((self.v + a * dv) * (q + c * dz) * has_v).sum()
        count = max(int(has_u.sum() + has_v.sum()), 1)
        target = mu * (max(float(after), 0.0) / (mu * count)) ** 3
        dy, dz, du, dv = direction(target + du * dz, target - dv * dz)
        if not np.isfinite(dy).all():
            return False
        a, c = self._lengths(p, q, du, dv, dz)
        if self.Q.any():  # one length for both: the quadratic ties them
            a = c = min(a, c)
        self.y = self.y + a * dy
        self.u = np.where(has_u, np.maximum(self.u + a * du, _TINY), 0.0)
        self.v = np.where(has_v, np.maximum(self.v + a * dv, _TINY), 0.0)
        self.z = self.z + c * dz
        self.p = np.where(has_u, np.maximum(self.p - c * dz, _TINY), 1.0)
        self.q = np.where(has_v, np.maximum(self.q + c * dz, _TINY), 1.0)
        return max(a, c) > 1e-12

    def _lengths(
        self, p: Array, q: Array, du: Array, dv: Array, dz: Array
    ) -> tuple[float, float]:
        """Longest primal and dual steps inside the bounds, times almost one."""

        def longest(x: Array, dx: Array) -> float:
            falls = dx < 0
            return float((-x[falls] / dx[falls]).min(initial=np.inf))

        u, v = self.has_u, self.has_v
        primal = min(longest(self.u[u], du[u]), longest(self.v[v], dv[v]))
        dual = min(longest(p[u], -dz[u]), longest(q[v], dz[v]))
        return min(1.0, 0.9995 * primal), min(1.0, 0.9995 * dual)


def _vertex(g: Array, kinks: Kinks, y: Array, z: Array) -> tuple[Array, Array]:
    """Solve a linear program by the simplex method, where ties hid the active set."""
    from scipy import sparse
    from scipy.optimize import linprog

    m, k = kinks.F.shape
    eye = sparse.identity(m, format="csr")
    up, down = np.isinf(kinks.up), np.isinf(kinks.down)
    slack = [(0.0, 0.0 if none else None) for none in np.r_[up, down]]
    found = linprog(
        np.r_[g, np.where(up, 0.0, kinks.up), np.where(down, 0.0, kinks.down)],
        A_eq=sparse.hstack([sparse.csr_matrix(kinks.F), eye, -eye]), b_eq=kinks.f,
        bounds=[(None, None)] * k + slack, method="highs-ds",
    )  # fmt: skip
    if found.status != 0:
        return y, z
    return found.x[:k], found.eqlin.marginals


def _polish(
    Q: Array, g: Array, kinks: Kinks, y: Array, z: Array
) -> tuple[Array, Array, float]:
    """Solve on the terms found at their kink; keep it where it is better.

    The interior point says which terms are at zero (the multiplier is inside its
    bounds) and which are not; given that, the rest is linear equations.
    """
    if not len(kinks):
        return y, z, 0.0
    own = np.sqrt(np.maximum(Q.diagonal(), 0.0))
    scale = np.where(own > 0, own, np.sqrt((kinks.F**2).mean(0)))
    scale = np.where(scale > 0, scale, 1.0)
    best, found = kkt(Q @ y + g, kinks, y, scale)[0], (y, z)
    for _ in range(3):
        s = kinks.f - kinks.F @ y
        up, down = kinks.up, kinks.down
        inside = np.minimum(up - z, down + z)
        width = np.where(np.isfinite(up + down), up + down, np.abs(z) + 1e-300)
        size = _sizes(kinks, y, scale) + 1e-300
        active = inside / width > np.abs(s) / size
        side = np.where(s > 0, up, -down)
        z = np.where(active, z, np.where(np.isfinite(side), side, 0.0))
        A = kinks.F[active]
        if len(A) > 2 * len(y) + 50:  # ties in great number: nothing to gain
            break
        K = np.block([[Q, -A.T], [A, np.zeros((len(A), len(A)))]])
        right = np.r_[-g + kinks.F[~active].T @ z[~active], kinks.f[active]]
        unit = 1.0 / np.sqrt(np.maximum((K**2).sum(1), 1e-300))
        try:
            solution = np.linalg.lstsq(K * unit[:, None] * unit, right * unit, None)[0]
        except np.linalg.LinAlgError:
            break
        solution = solution * unit
        y, z = solution[: len(y)], z.copy()
        z[active] = solution[len(y) :]
        z = np.clip(z, -down, up)
        residual = kkt(Q @ y + g, kinks, y, scale)[0]
        if residual < best:
            best, found = residual, (y, z)
    return *found, best


def _sizes(kinks: Kinks, b: Array, scale: Array) -> Array:
    """Return what ``f - F b`` is compared with: coefficients as large as the largest.

    `scale` says how coefficients compare: ``b * scale`` is free of units.
    """
    return np.abs(kinks.F) @ (np.abs(b * scale).max(initial=0.0) / scale) + np.abs(
        kinks.f
    )


def kkt(
    gradient: Array,
    kinks: Kinks,
    b: Array,
    scale: Array | None = None,
    tolerance: float = 1e-9,
) -> tuple[float, Array]:
    """How far coefficients are from satisfying the conditions of a minimum.

    Parameters
    ----------
    gradient : ndarray, shape (k,)
        Of the smooth part.
    kinks : Kinks
    b : ndarray, shape (k,)
    scale : ndarray, shape (k,), optional
        The gradient is divided by it, element by element.
    tolerance : float
        Relative size of ``f - F b`` below which a term is at its kink.

    Returns
    -------
    residual : float
        Largest element of the gradient that no admissible slopes of the terms at
        their kinks take away, or violation of a constraint.
    slopes : ndarray, shape (m,)
        The slopes nearest to it: multipliers.
    """
    scale = np.ones_like(b) if scale is None else scale
    if not len(kinks):
        return float(np.abs(gradient / scale).max(initial=0.0)), np.zeros(0)
    s = kinks.f - kinks.F @ b
    size = _sizes(kinks, b, scale)
    broken = np.where(s > 0, np.isinf(kinks.up), np.isinf(kinks.down)) * np.abs(s)
    at = np.abs(s) <= tolerance * size
    at |= broken > 0
    side = np.where(s > 0, kinks.up, -kinks.down)
    slopes = np.where(at, 0.0, side)
    left = (gradient - kinks.F[~at].T @ slopes[~at]) / scale
    if at.any():
        F = kinks.F[at].T / scale[:, None]
        slopes[at] = _nearest(F, left, -kinks.down[at], kinks.up[at])
        left = left - F @ slopes[at]
    worst = float((broken / np.maximum(size, 1e-300)).max(initial=0.0))
    return max(float(np.abs(left).max(initial=0.0)), worst), slopes


def _nearest(F: Array, left: Array, low: Array, high: Array) -> Array:
    """Least squares with bounds; by one formula where each row has its own column."""
    if F.shape[1] <= F.shape[0] and bool(((F != 0).sum(0) == 1).all()):
        at = (F != 0).argmax(0)
        if len(set(at.tolist())) == len(at):
            return np.clip(left[at] / F[at, np.arange(len(at))], low, high)
    from scipy.optimize import lsq_linear

    spread = np.where(high - low > 0, high, low + 1.0)
    found = lsq_linear(F, left, (low, spread), method="bvls", tol=1e-15)
    return np.clip(found.x, low, high)
