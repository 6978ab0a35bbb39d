"""Detection of separated data: likelihoods that rise for ever along some direction."""

from __future__ import annotations

import numpy as np

from ..compute import Compute
from ..design import Design

__all__ = ["separated_columns"]

_LIMIT = 4_000_000


def separated_columns(design: Design, kind: str, compute: Compute) -> list[int]:
    """Columns of the first matrix whose estimates are infinite.

    A direction g with ``s_i x_i'g >= 0`` for all rows and > 0 for some keeps raising
    the likelihood; s is +1 and -1 for successes and failures. For counts rows at zero
    have s = -1 and all others must not move, ``x_i'g = 0``. Of ordered levels a row
    is a success at the threshold below its level and a failure at that above. One
    linear program finds the direction that moves the most rows.

    Parameters
    ----------
    design : Design
    kind : {"binary", "count", "ordinal"}
        Responses of the last are codes from zero; every level occurs.
    compute : Compute

    Returns
    -------
    list of int
        Empty when the data are not separated. Where the program would be too large
        (four million numbers) all columns are looked at on an evenly spaced sample
        of rows; a sample can only miss what rows outside it forbid.

    References
    ----------
    Konis (2007), Linear programming algorithms for detecting separated data in binary
    logistic regression models, DPhil thesis, Oxford; Correia, Guimaraes & Zylkin
    (2019), Verifying the existence of maximum likelihood estimates for generalized
    linear models.
    """
    from scipy.optimize import linprog

    step = max(1, -(-design.n * design.X.k // _LIMIT))
    part = design if step == 1 else design.every(step)
    X = part.X.to_dense(Compute("cpu", memory=compute.memory)).numpy()
    y, k = np.asarray(part.y, dtype=np.float64), X.shape[1]
    if kind == "ordinal":
        X, y = _at_thresholds(X, y.astype(int))
    scale = np.sqrt((X**2).sum(0))
    X = X / np.where(scale > 0, scale, 1.0)
    if kind != "count":
        inner = (y > 0) & (y < 1)
        free, fixed = np.where(y > 0.5, 1.0, -1.0)[~inner, None] * X[~inner], X[inner]
    else:
        free, fixed = -X[y == 0], X[y > 0]
    if not len(free):
        return []
    found = linprog(
        -free.sum(0),
        A_ub=-free,
        b_ub=np.zeros(len(free)),
        A_eq=fixed if len(fixed) else None,
        b_eq=np.zeros(len(fixed)) if len(fixed) else None,
        bounds=[(-1, 1)] * X.shape[1],
        method="highs",
    )
    if found.status != 0 or -found.fun < 1e-7 * len(free):
        return []
    return [int(j) for j in np.flatnonzero(np.abs(found.x[:k]) > 1e-6)]


def _at_thresholds(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows at the thresholds beside their levels, with a column for each threshold."""
    own = -np.eye(int(y.max()))
    above, below = y > 0, y < len(own)
    return (
        np.vstack([
            np.hstack([X[above], own[y[above] - 1]]),
            np.hstack([X[below], own[y[below]]]),
        ]),
        np.repeat([1.0, 0.0], [above.sum(), below.sum()]),
    )  # fmt: skip
