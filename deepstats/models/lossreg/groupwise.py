"""Quadratic functions with a group lasso: its step, group by group, then by Newton."""

from __future__ import annotations

import numpy as np

from .penalties import Group, Penalty

__all__ = ["solve_groups"]

Array = np.ndarray

_SWEEPS = 2000


def solve_groups(H: Array, r: Array, penalty: Penalty, start: Array) -> Array:
    """Minimise ``b'Hb / 2 - r'b`` plus a group lasso.

    Sweeps over the groups, each solved exactly, find which are zero; given that the
    function is smooth, and Newton's method on the others finishes.

    Parameters
    ----------
    H : ndarray, shape (k, k)
        Positive definite.
    r, start : ndarray, shape (k,)
    penalty : Penalty

    References
    ----------
    Simon & Tibshirani (2012), Standardization and the group lasso penalty, Statistica
    Sinica 22; the secular equation of each group as in Nocedal & Wright (2006), 4.3.
    """
    x, k = start.copy(), len(r)
    grouped = np.zeros(k, dtype=bool)
    for group in penalty.groups:
        grouped[group.at] = True
    rest = np.flatnonzero(~grouped)
    roots = [_Root.of(H, g) for g in penalty.groups]
    for sweep in range(_SWEEPS):
        before = x.copy()
        if len(rest):
            right = r[rest] - H[np.ix_(rest, grouped.nonzero()[0])] @ x[grouped]
            x[rest] = np.linalg.solve(H[np.ix_(rest, rest)], right)
        for root in roots:
            at = root.group.at
            x[at] = root.solve(r[at] - H[at] @ x + H[np.ix_(at, at)] @ x[at])
        change = np.abs(x - before) * np.sqrt(H.diagonal())
        size = np.abs(x) * np.sqrt(H.diagonal())
        if change.max() <= 1e-3 * size.max(initial=1e-300) and sweep % 5 == 4:
            finished = _newton(H, r, penalty, x)
            if finished is not None:
                return finished
        if change.max() <= 1e-15 * size.max(initial=1e-300):
            break
    return x


class _Root:
    """One group's problem, diagonal in the eigenvectors of its scaled Hessian."""

    def __init__(self, group: Group, values: Array, vectors: Array) -> None:
        self.group, self.values, self.vectors = group, values, vectors

    @classmethod
    def of(cls, H: Array, group: Group) -> _Root:
        s = group.scale
        block = H[np.ix_(group.at, group.at)] / s[:, None] / s
        return cls(group, *np.linalg.eigh(block))

    def solve(self, right: Array) -> Array:
        """Coefficients of the group, given those of all others."""
        s, weight = self.group.scale, self.group.weight
        c = self.vectors.T @ (right / s)
        if float(np.linalg.norm(c)) <= weight:
            return np.zeros_like(right)
        # The length t solves sum(c**2 / (values t + weight)**2) = 1: Newton on one
        # over its root, which is nearly linear in t.
        t = 0.0
        for _ in range(100):
            below = self.values * t + weight
            total = float((c**2 / below**2).sum())
            slope = float((c**2 * self.values / below**3).sum())
            step = (np.sqrt(total) - 1.0) * total / slope
            t += step
            if abs(step) <= 1e-15 * t:
                break
        return self.vectors @ (c * t / (self.values * t + weight)) / s


def _newton(H: Array, r: Array, penalty: Penalty, x: Array) -> Array | None:
    """Finish on the groups that are not zero; None if that leaves the region."""
    on = np.ones(len(x), dtype=bool)
    alive = [g for g in penalty.groups if np.linalg.norm(x[g.at]) > 0]
    for group in penalty.groups:
        on[group.at] = np.linalg.norm(x[group.at]) > 0
    F = np.flatnonzero(on)
    x = x.copy()
    for _ in range(30):
        gradient, hessian = H @ x - r, H.copy()
        for group in alive:
            v = group.scale * x[group.at]
            length = float(np.linalg.norm(v))
            if length < 1e-12:
                return None
            unit = group.scale * v / length
            gradient[group.at] += group.weight * unit
            bend = np.diag(group.scale**2) - np.outer(unit, unit)
            hessian[np.ix_(group.at, group.at)] += group.weight / length * bend
        step = np.linalg.solve(hessian[np.ix_(F, F)], -gradient[F])
        x[F] += step
        size = np.abs(x[F]).max(initial=1e-300)
        if np.abs(step).max(initial=0.0) <= 1e-15 * size:
            break
    for group in penalty.groups:
        force = np.linalg.norm((H[group.at] @ x - r[group.at]) / group.scale)
        if group not in alive and force > group.weight * (1 + 1e-12):
            return None
    still = np.abs(gradient[F]).max(initial=0.0)
    return x if still <= 1e-10 * np.abs(r).max(initial=1e-300) else None
