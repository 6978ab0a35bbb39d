"""Simpler ways to simple weights, for the same table.

Jung, J., Concannon, C., Shroff, R., Goel, S. and Goldstein, D. (2020). Simple rules to
guide expert classifications. Journal of the Royal Statistical Society A 183, 771-800.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tasks import Task, Valued

__all__ = [
    "Row",
    "near_integers",
    "real_coefficients",
    "rounded",
    "select_regress_round",
]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Row:
    """One way, as a row of the table.

    Attributes
    ----------
    method : str
    points : ndarray, shape (p,)
        Whole numbers; real coefficients where `step` is one and they are not whole.
    valued : Valued
    """

    method: str
    points: Array
    valued: Valued


def real_coefficients(task: Task) -> Row:
    """Coefficients without any restriction: a bound for the other rows."""
    p = len(task.low)
    b, intercept, loss = task.real(np.arange(p))
    return Row("real coefficients", b, Valued(loss, intercept, 1.0))


def rounded(task: Task, top: int) -> Row:
    """Fit, keep the largest effects, fit again, round, and fit the intercept again.

    Where the multiplier is free the largest coefficient becomes `top` points.
    """
    p = len(task.low)
    b, _, _ = task.real(np.arange(p))
    at = np.sort(np.argsort(-np.abs(b) * task.spread, kind="stable")[: task.terms])
    z = _rounded(task, at, task.real(at)[0], top, task.step)
    return Row("round and refit", z, task.evaluate(z))


def near_integers(task: Task, b: Array) -> Row:
    """Coefficients of the near-integer penalty, moved to their nearest points."""
    z = np.clip(np.round(b), task.low, task.high)
    if np.count_nonzero(z) > task.terms:
        weak = np.argsort(-np.abs(z) * task.spread, kind="stable")[task.terms :]
        z[weak] = 0.0
    return Row("near-integer penalty, rounded", z, task.evaluate(z))


def select_regress_round(task: Task, top: int) -> Row:
    """Forward selection, regression, largest coefficient to `top` points, rounding.

    The regression is not penalised, where Jung et al. take a lasso; intercept and
    multiplier are fitted to the score, so that its step is its own.
    """
    chosen: list[int] = []
    left = list(range(len(task.low)))
    while left and len(chosen) < task.terms:
        losses = [task.real(np.array([*chosen, j]))[2] for j in left]
        chosen.append(left.pop(int(np.argmin(losses))))
    at = np.sort(np.array(chosen))
    z = _rounded(task, at, task.real(at)[0], top, None)
    return Row(f"select, regress, round (M = {top})", z, task.evaluate(z, free=True))


def _rounded(task: Task, at: Array, b: Array, top: int, step: float | None) -> Array:
    """Whole numbers of coefficients of some columns, within the bounds."""
    z = np.zeros(len(task.low))
    if step is None:
        largest = np.abs(b).max()
        step = largest / top if largest > 0 else 1.0
    z[at] = np.round(b / step)
    return np.clip(z, task.low, task.high)
