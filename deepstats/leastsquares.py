"""Weighted least squares in blocks of rows, as accurate as the data ask for.

Three routes, chosen by the condition number of the column-scaled matrix:

1. cross-products, then one step of refinement from the residuals (two passes; one
   where there are many rows and the columns are so well conditioned that cross-products
   alone are right to about twelve digits);
2. Cholesky QR applied twice (two more passes), Householder-grade up to about 1e7;
3. Householder QR in the widest floating-point format of the machine, blocks stacked
   on the triangle of those before, for what is worse and for small problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .compute import Compute
from .design import Batch, Design

__all__ = ["LeastSquares", "aliased_columns", "least_squares", "triangle"]

# Cross-products square the condition number: with refinement, full accuracy to here.
_CONDITION_GRAM = 1e3
_CONDITION_CHOLESKY = 1e6
# Up to this condition number, and this share of the response explained, the error of
# cross-products alone stays below 1e-12: a second pass over many rows buys nothing.
_CONDITION_EASY = 50.0
_EASY_SHARE = 1e-3
_EASY_ELEMENTS = 10_000_000
# Householder QR in extended precision costs about 5 ns a flop; up to this many flops
# it is taken whenever the matrix is not well conditioned, and below the second bound
# always.
_EXTENDED_FLOPS = 2e7
_EXTENDED_ALWAYS = 1e5
#: A column is aliased when this share of its length, or less, is its own.
ALIASED = 1e-11


@dataclass(frozen=True)
class LeastSquares:
    """Solution of a weighted least-squares problem.

    Attributes
    ----------
    params : Tensor, shape (k,)
    inverse : Tensor, shape (k, k)
        Inverse of X'WX.
    ssr : float
        Weighted sum of squared residuals.
    kept : list of int
        Columns that are not aliased; the shapes above are of these.
    condition : float
        Condition number of the column-scaled matrix.
    method : str
    """

    params: Tensor
    inverse: Tensor
    ssr: float
    kept: list[int]
    condition: float
    method: str


def least_squares(
    design: Design, compute: Compute, *, extended: bool = True
) -> LeastSquares:
    """Regress the response of a design (less its offset) on its first matrix.

    Parameters
    ----------
    design : Design
    compute : Compute
    extended : bool, default True
        Whether small problems are solved in extended precision however well
        conditioned they are; False for what is refined later anyway.

    Returns
    -------
    LeastSquares

    References
    ----------
    Yamamoto, Nakatsukasa, Yanagisawa & Fukaya (2015), Roundoff error analysis of the
    CholeskyQR2 algorithm, ETNA 44; Björck (1996), Numerical Methods for Least Squares
    Problems, chapter 2.
    """
    n, k = design.X.shape
    # Without columns there are no cross-products to factorise.
    if (extended or not k) and n * k * k <= _EXTENDED_ALWAYS:
        return _by_householder(design, compute)
    gram, moment, squares = _cross_products(design, compute)
    d = gram.diagonal().clamp_min(1e-300).rsqrt()
    scaled = gram * d[:, None] * d
    values = torch.linalg.eigvalsh(scaled)
    least = float(values[0].clamp_min(1e-300))
    condition = (float(values[-1]) / least) ** 0.5
    if condition <= _CONDITION_GRAM:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(scaled))
        inverse = inverse * d[:, None] * d
        params = inverse @ moment
        ssr = squares - float(params @ moment)
        easy = condition <= _CONDITION_EASY and ssr >= _EASY_SHARE * squares
        if easy and n * k >= _EASY_ELEMENTS:
            kept = list(range(k))
            return LeastSquares(params, inverse, ssr, kept, condition, "cross-products")
        return _refined(design, compute, inverse, inverse @ moment, condition)
    if n * k * k <= _EXTENDED_FLOPS or condition > _CONDITION_CHOLESKY:
        return _by_householder(design, compute)
    return _by_cholesky_twice(design, compute, scaled, d, condition)


def aliased_columns(R: np.ndarray, lengths: np.ndarray) -> list[int]:
    """Columns that earlier ones determine, from the triangle of a QR factorisation.

    Parameters
    ----------
    R : ndarray, shape (m, k) or wider
        Any matrix with the cross-products of the design's columns.
    lengths : ndarray, shape (k,)
        Norms of the columns.
    """
    A, row, found = R[:, : len(lengths)].astype(np.longdouble), 0, []
    for j, length in enumerate(lengths):
        own = A[row:, j]
        size = np.sqrt(own @ own)
        if size <= ALIASED * length:
            found.append(j)
            continue
        v = own.copy()
        v[0] += np.copysign(size, v[0])
        v /= np.sqrt(v @ v)
        A[row:, j:] -= 2 * np.outer(v, v @ A[row:, j:])
        row += 1
    return found


def _sqrt_weights(batch: Batch) -> Tensor | None:
    w = batch.weights
    if batch.freq_weights is not None:
        w = batch.freq_weights if w is None else w * batch.freq_weights
    return w


def _response(batch: Batch) -> Tensor:
    offset = batch.offset[0]
    return batch.y if offset is None else batch.y - offset


def _cross_products(design: Design, compute: Compute) -> tuple[Tensor, Tensor, float]:
    """X'WX, X'Wy and y'Wy in one pass."""
    X = design.X
    rows = compute.block_rows(design.widest(), design.n)

    def prepare() -> tuple:
        zeros = torch.zeros(X.raw, X.raw, dtype=torch.float64, device=compute.device)
        moment = torch.zeros(X.raw + 1, dtype=torch.float64, device=compute.device)
        return design.scratches(rows, compute), zeros, moment

    def body(start: int, stop: int, worker: tuple) -> None:
        scratches, gram, moment = worker
        batch = design.batch(start, stop, scratches, compute)
        w = _sqrt_weights(batch)
        block, y = batch.blocks[0], _response(batch)
        block.add_cross(gram, block, w)
        weighted = y if w is None else y * w
        moment[:-1] += block.moments(weighted)
        moment[-1] += weighted @ y

    def merge(into: tuple, other: tuple) -> None:
        into[1].add_(other[1])
        into[2].add_(other[2])

    with torch.no_grad():
        _, gram, moment = compute.sum_blocks(design.n, rows, prepare, body, merge)
    gram = X.sandwich(X.symmetric(gram), X)
    return gram.cpu(), X.from_raw(moment[:-1]).cpu(), float(moment[-1])


def _residual_pass(
    design: Design, compute: Compute, params: Tensor
) -> tuple[Tensor, float]:
    """X'Wr and r'Wr at given coefficients."""
    X = design.X
    rows = compute.block_rows(design.widest(), design.n)
    raw = X.to_raw(params.to(compute.device)).to(compute.dtype)

    def prepare() -> tuple:
        zeros = torch.zeros(X.raw + 1, dtype=torch.float64, device=compute.device)
        return design.scratches(rows, compute), zeros

    def body(start: int, stop: int, worker: tuple) -> None:
        scratches, total = worker
        batch = design.batch(start, stop, scratches, compute)
        w = _sqrt_weights(batch)
        r = _response(batch) - batch.blocks[0].eta(raw)
        weighted = r if w is None else r * w
        total[:-1] += batch.blocks[0].moments(weighted)
        total[-1] += weighted @ r

    def merge(into: tuple, other: tuple) -> None:
        into[1].add_(other[1])

    with torch.no_grad():
        _, total = compute.sum_blocks(design.n, rows, prepare, body, merge)
    return X.from_raw(total[:-1]).cpu(), float(total[-1])


def _refined(
    design: Design, compute: Compute, inverse: Tensor, params: Tensor, condition: float
) -> LeastSquares:
    gradient, ssr = _residual_pass(design, compute, params)
    step = inverse @ gradient
    ssr = max(ssr - float(gradient @ step), 0.0)
    kept = list(range(design.X.k))
    return LeastSquares(
        params + step, inverse, ssr, kept, condition, "cross-products, refined"
    )


def _by_cholesky_twice(
    design: Design, compute: Compute, scaled: Tensor, d: Tensor, condition: float
) -> LeastSquares:
    first = torch.linalg.cholesky(scaled).T / d
    half = torch.linalg.solve_triangular(
        first, torch.eye(len(d), dtype=torch.float64), upper=True
    )
    gram, moment = _orthogonal_products(design, compute, half)
    upper = torch.linalg.cholesky(gram).T
    back = torch.linalg.solve_triangular(
        upper, half.new_ones(len(d)).diag(), upper=True
    )
    inverse_triangle = half @ back
    params = inverse_triangle @ (back.T @ moment)
    inverse = inverse_triangle @ inverse_triangle.T
    found = _refined(design, compute, inverse, params, condition)
    return LeastSquares(
        found.params, inverse, found.ssr, found.kept, condition, "Cholesky QR, twice"
    )


def _orthogonal_products(
    design: Design, compute: Compute, half: Tensor
) -> tuple[Tensor, Tensor]:
    """A'WA and A'Wy of the nearly orthogonal A = X half."""
    rows = compute.block_rows(2 * design.X.k)
    k = design.X.k
    half = half.to(compute.device).to(compute.dtype)

    def prepare() -> tuple:
        zeros = torch.zeros(k, k + 1, dtype=torch.float64, device=compute.device)
        return design.scratches(rows, compute), zeros

    def body(start: int, stop: int, worker: tuple) -> None:
        scratches, total = worker
        batch = design.batch(start, stop, scratches, compute)
        A, w = batch.X @ half, _sqrt_weights(batch)
        weighted = A if w is None else A * w[:, None]
        total[:, :-1] += weighted.T @ A
        total[:, -1] += weighted.T @ _response(batch)

    def merge(into: tuple, other: tuple) -> None:
        into[1].add_(other[1])

    with torch.no_grad():
        _, total = compute.sum_blocks(design.n, rows, prepare, body, merge)
    total = total.cpu()
    return total[:, :-1], total[:, -1]


def _by_householder(design: Design, compute: Compute) -> LeastSquares:
    k = design.X.k
    R, lengths = triangle(design, compute)
    aliased = aliased_columns(R, lengths)
    if aliased:
        kept = [j for j in range(k) if j not in aliased]
        R = _householder(R[:, [*kept, k]])
    else:
        kept = list(range(k))
    p = len(kept)
    A, c = R[:p, :p], R[:p, p]
    inverse_triangle = _back_substitute(A, np.eye(p, dtype=A.dtype))
    params = inverse_triangle @ c
    ssr = R[p, p] ** 2 if len(R) > p else 0.0
    inverse = inverse_triangle @ inverse_triangle.T
    scale = np.sqrt((A.astype(np.float64) ** 2).sum(0))
    singular = np.linalg.svd(A.astype(np.float64) / scale, compute_uv=False)
    condition = float(singular[0] / max(singular[-1], 1e-300)) if p else 1.0
    return LeastSquares(
        torch.from_numpy(params.astype(np.float64)),
        torch.from_numpy(np.ascontiguousarray(inverse.astype(np.float64))),
        float(ssr),
        kept,
        condition,
        "Householder QR",
    )


def triangle(design: Design, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """Triangle of the QR factorisation of [X y], rows weighted, block by block.

    Returns
    -------
    R : ndarray of longdouble, shape (k + 1, k + 1)
    lengths : ndarray, shape (k,)
        Norms of the columns of X.
    """
    X, rows = design.X, max(compute.block_rows(design.X.k), 2 * design.X.k)
    cpu = compute.on_cpu()
    scratches = design.scratches(rows, cpu)
    R = np.zeros((0, X.k + 1), dtype=np.longdouble)
    lengths = np.zeros(X.k, dtype=np.longdouble)
    for start in range(0, design.n, rows):
        batch = design.batch(start, min(start + rows, design.n), scratches, cpu)
        y = _response(batch).numpy()
        block = np.column_stack([X.extended(batch.rows.start, batch.rows.stop), y])
        w = _sqrt_weights(batch)
        if w is not None:
            block *= np.sqrt(w.numpy().astype(np.longdouble))[:, None]
        lengths += (block[:, :-1] ** 2).sum(0)
        R = _householder(np.concatenate([R, block]))
    return R, np.sqrt(lengths).astype(np.float64)


def _householder(A: np.ndarray) -> np.ndarray:
    """Return the triangle of the QR factorisation of A; A is overwritten."""
    m, k = A.shape
    for j in range(min(k, m - 1)):
        v = A[j:, j].copy()
        size = np.sqrt(v @ v)
        if size == 0:
            continue
        v[0] += np.copysign(size, v[0])
        v /= np.sqrt(v @ v)
        A[j:, j:] -= 2 * np.outer(v, v @ A[j:, j:])
    return np.triu(A[: min(m, k)])


def _back_substitute(R: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Solve R X = B for upper triangular R, in the precision of R."""
    X = B.copy()
    for j in range(len(R) - 1, -1, -1):
        X[j] = (X[j] - R[j, j + 1 :] @ X[j + 1 :]) / R[j, j]
    return X
