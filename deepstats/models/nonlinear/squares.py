"""Nonlinear least squares: Gauss-Newton steps, damped where they do not descend.

References
----------
Levenberg (1944); Marquardt (1963); Bates & Watts (1981), A relative offset
orthogonality convergence criterion for nonlinear least squares, Technometrics 23.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Rows

__all__ = ["Squares", "least_squares"]

_DAMPING, _MOST_DAMPING = 1e-3, 1e12
#: A gradient with less of its own than this share is one that others determine.
_RANK = 1e-10


@dataclass(frozen=True, eq=False)
class Squares:
    """Where the search ended.

    Attributes
    ----------
    beta : Tensor, shape (p,)
    rss : float
        Weighted sum of squared residuals.
    gradient : Tensor, shape (n, p)
        Of the curve in the coefficients, weighted.
    offset : float
        Relative offset: what the tangent plane still explains, in residual standard
        deviations.
    converged, singular : bool
    iterations : int
    """

    beta: Tensor
    rss: float
    gradient: Tensor
    offset: float
    converged: bool
    singular: bool
    iterations: int


def least_squares(
    rows: Rows, start: Tensor, tolerance: float = 1e-8, max_iterations: int = 200
) -> Squares | None:
    """Minimise the weighted sum of squares; None where the start has no finite one.

    Parameters
    ----------
    rows : Rows
    start : Tensor, shape (p,)
    tolerance : float, default 1e-8
        On the relative offset.
    max_iterations : int, default 200
    """
    beta, damping = start.clone(), 0.0
    state = _evaluate(rows, beta)
    if state is None:
        return None
    residual, J, rss = state
    offset, converged, iteration = float("inf"), False, 0
    while iteration < max_iterations:
        iteration += 1
        offset, known = _offset(J, residual)
        if known and offset < tolerance:
            converged = True
            break
        scale = J.square().sum(0).sqrt().clamp_min(1e-300)
        descended = False
        while damping < _MOST_DAMPING:
            step = _damped(J / scale, residual, damping) / scale
            after = _evaluate(rows, beta + step)
            if after is not None and after[2] < rss:
                beta, (residual, J, rss) = beta + step, after
                damping = 0.0 if damping <= _DAMPING else damping / 10
                descended = True
                break
            damping = max(10 * damping, _DAMPING)
        if not descended:
            # Rounding hides what is left to gain.
            converged = known and offset < 1e3 * tolerance
            break
    singular = not _offset(J, residual)[1]
    return Squares(beta, rss, J, offset, converged, singular, iteration)


def _evaluate(rows: Rows, beta: Tensor) -> tuple[Tensor, Tensor, float] | None:
    f, D = rows.slopes(rows.fixed(beta))
    root = rows.w.sqrt()
    residual, J = root * (rows.y - f), root[:, None] * rows.design(D)
    rss = float(residual.dot(residual))
    finite = bool(torch.isfinite(J).all()) and rss < float("inf")
    return (residual, J, rss) if finite else None


def _offset(J: Tensor, residual: Tensor) -> tuple[float, bool]:
    """Relative offset, and whether the gradient has full rank."""
    n, p = J.shape
    scale = J.square().sum(0).sqrt().clamp_min(1e-300)
    Q, R = torch.linalg.qr(J / scale)
    known = bool((R.diagonal().abs() > _RANK).all()) and bool((scale > 1e-290).all())
    explained = Q.T @ residual
    inside = float(explained.dot(explained)) / p
    outside = (float(residual.dot(residual)) - p * inside) / max(n - p, 1)
    return float(inside**0.5 / max(outside, 1e-300) ** 0.5), known


def _damped(J: Tensor, residual: Tensor, damping: float) -> Tensor:
    p = J.shape[1]
    if damping == 0:
        return torch.linalg.lstsq(J, residual[:, None], driver="gelsd").solution[:, 0]
    below = damping**0.5 * torch.eye(p, dtype=torch.float64)
    tall = torch.cat([J, below])
    wide = torch.cat([residual, residual.new_zeros(p)])
    return torch.linalg.lstsq(tall, wide[:, None]).solution[:, 0]
