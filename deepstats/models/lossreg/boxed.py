"""Quadratic functions with an l1 penalty and bounds: the step of an elastic net."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

__all__ = ["solve_boxed"]

Array = np.ndarray


def solve_boxed(
    H: Array,
    r: Array,
    l1: Array,
    start: Array,
    low: Array | None = None,
    high: Array | None = None,
    tolerance: float = 1e-12,
) -> Array:
    """Minimise ``b'Hb / 2 - r'b + sum(l1 |b|)`` with ``low <= b <= high``.

    An active-set method: given which coefficients are zero or at a bound, and the
    signs of the others, the rest is a linear system; on the way to its solution the
    first coefficient to change sign or meet a bound is held there; at the solution
    those whose gradient asks for it are freed. Exact after finitely many systems,
    few of them from a good start.

    Parameters
    ----------
    H : ndarray, shape (k, k)
        Positive definite.
    r, l1, start : ndarray, shape (k,)
    low, high : ndarray, shape (k,), optional
    tolerance : float
        On the gradient, relative to the largest element of `r`.

    References
    ----------
    Lee, Battle, Raina & Ng (2006), Efficient sparse coding algorithms, NIPS 19
    (feature-sign search); with bounds, Nocedal & Wright (2006), section 16.5.
    """
    k = len(r)
    low = np.full(k, -np.inf) if low is None else low
    high = np.full(k, np.inf) if high is None else high
    x = np.clip(start, low, high)
    slack = tolerance * max(float(np.abs(r).max(initial=0.0)), 1e-300)
    kinked = l1 > 0
    free = (x > low) & (x < high) & ((x != 0) | ~kinked)
    sign = np.where(kinked, np.sign(x), 0.0)
    everyone = True
    for _ in range(50 * k + 50):
        blocked = _toward(H, r, l1, x, free, sign, low, high)
        if blocked is not None:
            if blocked[1] == 0.0:
                everyone = False  # no progress: free one at a time, which descends
            continue
        ask, direction = _asking(H @ x - r, l1, x, free, low, high)
        worst = float(ask.max(initial=0.0))
        if worst <= slack:
            break
        chosen = ask > (0.0 if everyone else worst * (1 - 1e-12)) + slack
        if not chosen.any():
            chosen = ask >= worst
        free |= chosen
        # A coefficient that leaves a bound keeps its sign until it meets zero.
        off = np.where(x != 0, np.sign(x), direction)
        sign = np.where(chosen & kinked, off, sign)
    return x


def _toward(
    H: Array, r: Array, l1: Array, x: Array, free: Array, sign: Array,
    low: Array, high: Array,
) -> tuple[int, float] | None:  # fmt: skip
    """Move to the solution of the free ones, or to the first obstacle on the way.

    Changes `x` and `free`; returns the coefficient held and the length of the step.
    """
    F = np.flatnonzero(free)
    if not len(F):
        return None
    held = np.flatnonzero(~free & (x != 0))
    right = r[F] - l1[F] * sign[F]
    if len(held):
        right = right - H[np.ix_(F, held)] @ x[held]
    target = _solve(H[np.ix_(F, F)], right)
    now, move = x[F], target - x[F]
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.where(move > 0, high[F], low[F])
        length = np.where(move != 0, (bound - now) / move, np.inf)
        wrong = (l1[F] > 0) & (target * sign[F] <= 0) & (target != now)
        zero = np.where(wrong, -now / move, np.inf)
    place = np.where(wrong & (zero <= length), 0.0, bound)
    length = np.minimum(length, zero)
    j = int(length.argmin())
    if length[j] >= 1.0:
        x[F] = target
        return None
    step = max(float(length[j]), 0.0)
    x[F] = now + step * move
    x[F[j]] = place[j]
    free[F[j]] = False
    return int(F[j]), step


def _asking(
    gradient: Array, l1: Array, x: Array, free: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """How much each held coefficient would gain by moving, and in which direction."""
    at_zero = (x == 0) & (l1 > 0)
    side = np.sign(x)
    up = -(gradient + np.where(at_zero, l1, l1 * side))
    down = gradient - np.where(at_zero, l1, -l1 * side)
    up = np.where(x < high, up, -np.inf)
    down = np.where(x > low, down, -np.inf)
    ask = np.where(free, 0.0, np.maximum(up, down))
    return np.maximum(ask, 0.0), np.where(up >= down, 1.0, -1.0)


def _solve(H: Array, right: Array) -> Array:
    """Solve a symmetric system; least squares where it is singular."""
    scale = 1.0 / np.sqrt(np.maximum(H.diagonal(), 1e-300))
    factor, failed = lapack.dpotrf(H * scale[:, None] * scale, lower=1)
    if failed:
        return np.linalg.lstsq(H, right, rcond=None)[0]
    found, _ = lapack.dpotrs(factor, scale * right, lower=1)
    return scale * found
