"""Cholesky factor and inverse of one large dense matrix, in place.

SciPy's LAPACK inverts from a Cholesky factor in two thirds of the time of torch's on a
CPU (measured: docs/performance.md); on a card torch does both.
"""

from __future__ import annotations

import torch
from scipy.linalg import blas, lapack
from torch import Tensor

__all__ = ["add_gram", "cholesky", "gather", "inverse_from", "mirror", "product"]

_SQUARE = 1024


def cholesky(A: Tensor) -> tuple[Tensor, bool]:
    """Lower Cholesky factor, and whether there is one.

    Only what is on and below the diagonal is read; A is overwritten. What is above the
    diagonal of the factor is not cleared.
    """
    if A.is_cpu:
        # LAPACK's columns are torch's rows: its upper triangle is our lower one.
        found, info = lapack.dpotrf(A.numpy().T, lower=0, clean=0, overwrite_a=1)
        return torch.from_numpy(found.T), info == 0
    found, info = torch.linalg.cholesky_ex(A)
    return found, int(info) == 0


def add_gram(A: Tensor, to: Tensor) -> None:
    """Add ``A'A``, on and below the diagonal; on a CPU half the work of a product."""
    if A.is_cpu:
        blas.dsyrk(1.0, A.numpy().T, 1.0, to.numpy().T, lower=0, overwrite_c=1)
    else:
        to.addmm_(A.T, A)


def product(A: Tensor, B: Tensor) -> Tensor:
    """Multiply; on a CPU by NumPy's library, the quicker one (docs/performance.md)."""
    return torch.from_numpy(A.numpy() @ B.numpy()) if A.is_cpu else A @ B


def gather(A: Tensor, V: Tensor) -> Tensor:
    """``A'V`` of a tall A and few columns V.

    Read along its rows, A comes from memory once; torch's own product is eight times
    as slow here (docs/performance.md).
    """
    if A.is_cpu:
        return torch.from_numpy(V.numpy().T @ A.numpy()).T
    return A.T @ V


def inverse_from(L: Tensor, size: int, full: bool = True) -> Tensor:
    """Inverse of the leading part of the matrix whose Cholesky factor is L.

    Parameters
    ----------
    L : Tensor
        What is above its diagonal is not read.
    size : int
    full : bool, default True
        False leaves what is above the diagonal of the inverse undefined.

    Returns
    -------
    Tensor, shape (size, size)
    """
    part = L[:size, :size]
    if not size:
        return part.clone()
    if L.is_cpu:
        found, info = lapack.dpotri(part.contiguous().numpy().T, lower=0, overwrite_c=0)
        if info:
            raise ArithmeticError("a Cholesky factor is singular.")
        out = torch.from_numpy(found.T)
    else:
        out = torch.cholesky_inverse(part.tril())
    return mirror(out) if full else out


def mirror(A: Tensor) -> Tensor:
    """Copy what is below the diagonal above it, in place, a square at a time."""
    for start in range(0, len(A), _SQUARE):
        rows = slice(start, start + _SQUARE)
        block = A[rows, rows]
        block.copy_(block.tril() + block.tril(-1).T)
        for low in range(start + _SQUARE, len(A), _SQUARE):
            below = slice(low, low + _SQUARE)
            A[rows, below] = A[below, rows].T
    return A
