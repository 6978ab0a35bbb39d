"""Columns, patterns and order of rows: from a design to the arrays of an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from ...formula import Rhs
from ...leastsquares import aliased_columns, triangle
from ...matrix import Column, ModelMatrix
from ..base import INTERCEPT
from .reading import OutcomePlan, is_scale, is_zero

__all__ = [
    "aliased",
    "as_tensor",
    "laid_out",
    "matrix_numbers",
    "ones",
    "order_of",
    "parts_of",
    "pattern_of",
    "taken",
]

# Squared length of a column less its projection on others, as a share of its own, from
# which cross-products settle that no column is determined by others.
_CLEAR = 1e-8
# Rows that settle it where these are not enough.
_ROWS = 20_000


def parts_of(asked: OutcomePlan) -> tuple[Rhs, ...]:
    """Right-hand sides besides the mean's, where they are more than an intercept."""
    return tuple(rhs for rhs in (asked.zero, asked.disp) if rhs != INTERCEPT)


def matrix_numbers(
    asked: OutcomePlan, predictors: Sequence[str]
) -> tuple[int | None, ...]:
    """Return the number of each predictor's matrix; None for an intercept alone."""
    parts, scales = parts_of(asked), [p for p in predictors if is_scale(p)]
    # Of several scales (those of Student's t) the first is what `disp` describes.
    rhs = {p: asked.zero for p in predictors if is_zero(p)}
    rhs |= {p: asked.disp if p == scales[0] else INTERCEPT for p in scales}
    return tuple(
        0 if p not in rhs else None if rhs[p] == INTERCEPT else 1 + parts.index(rhs[p])
        for p in predictors
    )


def pattern_of(
    asked: OutcomePlan,
    predictor: str,
    columns: tuple[str, ...],
    groups: int,
    common: tuple[str, ...],
) -> np.ndarray:
    """Give numbers to the free parameters of one predictor, group after group."""
    shared = np.zeros(len(columns), dtype=bool)
    absent = np.zeros((groups, len(columns)), dtype=bool)
    orders, ladder = None, ()
    if is_scale(predictor):
        shared[:] = asked.variance == "shared"
    elif is_zero(predictor):
        shared[:] = asked.zero_shared
        orders, ladder = asked.zero_orders, asked.zero_ladder
    else:
        shared[:] = [c in common for c in columns]
        orders, ladder = asked.orders, asked.ladder
    for k, order in enumerate(orders or ()):
        absent[k] = [c in ladder[order:] for c in columns]
    pattern = np.full((groups, len(columns)), -1, dtype=np.int64)
    own = ~absent & ~shared
    pattern[own] = np.arange(own.sum())
    pattern[:, shared] = own.sum() + np.arange(shared.sum())
    return pattern


def laid_out(matrix: ModelMatrix, rows: np.ndarray | None) -> np.ndarray:
    """Columns of a matrix in some order of its rows; shape (k, rows)."""
    everything = slice(0, matrix.n)
    n = matrix.n if rows is None else len(rows)
    out = np.empty((matrix.k, n))
    whole = np.empty(0 if rows is None else matrix.n)
    for column, at in zip(matrix.dense, matrix.dense_at, strict=True):
        if rows is None or not (column.numerics or column.codes):
            column.fill(out[at], slice(0, n))
        else:
            column.fill(whole, everything)
            # With mode="raise" numpy would write to a buffer first.
            np.take(whole, rows, out=out[at], mode="clip")
    for piece, places in zip(matrix.coded, matrix.coded_at, strict=True):
        codes = taken(piece.codes[everything], rows)
        factor = np.ones(matrix.n)
        Column(piece.numerics).fill(factor, everything)
        factor = taken(factor, rows)
        for j, at in enumerate(places):
            values = np.ascontiguousarray(piece.table[:, j])
            np.take(values, codes, out=out[at], mode="clip")
            out[at] *= factor
    return out


def aliased(
    flat: np.ndarray, design: Design, number: int, compute: Compute
) -> list[int]:
    """Columns that earlier ones determine; cross-products tell in the usual case."""
    gram = flat @ flat.T
    d = np.sqrt(gram.diagonal())
    if np.isfinite(gram).all() and (d > 0).all():
        factor, failed = torch.linalg.cholesky_ex(
            torch.from_numpy(gram / d / d[:, None])
        )
        if not int(failed) and float(factor.diagonal().min() ** 2) > _CLEAR:
            return []
    only = design.only(number)
    step = max(1, design.n // _ROWS)
    few = aliased_columns(*triangle(only.every(step), compute))
    return few if step == 1 or not few else aliased_columns(*triangle(only, compute))


def order_of(unit: np.ndarray) -> np.ndarray | None:
    """Rows in the order of their units, those of no unit (-1) left out."""
    if len(unit) and unit.min() < 0:
        rows = np.flatnonzero(unit >= 0)
        order = order_of(unit[rows])
        return rows if order is None else rows[order]
    if bool((unit[1:] >= unit[:-1]).all()):
        return None
    # Three times as fast as numpy's stable sort.
    return torch.argsort(torch.from_numpy(unit), stable=True).numpy()


def taken(values: Any, rows: np.ndarray | None) -> Any:
    """Return some rows; all where None."""
    return values if values is None or rows is None else values[rows]


def ones(n: int, compute: Compute) -> Tensor:
    """Return a column of ones that takes the memory of one number."""
    return torch.ones(1, 1, dtype=torch.float64, device=compute.device).expand(n, 1)


def as_tensor(values: np.ndarray | None, compute: Compute) -> Tensor | None:
    """Return an array as a float64 tensor; one number for all rows takes no memory."""
    if values is None:
        return None
    if values.strides == (0,) and len(values):
        one = torch.tensor([float(values[0])], dtype=torch.float64)
        return one.to(compute.device).expand(len(values))
    array = np.require(values, dtype=np.float64, requirements="CW")
    return torch.from_numpy(array).to(compute.device)
