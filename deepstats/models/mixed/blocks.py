"""Arithmetic of many small matrices at once, levels along the last axis.

``(K, K, m)`` holds one matrix a level. A sum over K of products of long vectors needs
no library of batched matrices, and for the K of mixed models it is quicker than one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "apply",
    "apply_transposed",
    "congruence",
    "identity_plus",
    "inverse",
    "multiply",
    "multiply_transposed",
]

# From here on a batched product beats sums of products of long vectors.
_WIDE = 6


def multiply(A: Tensor, B: Tensor) -> Tensor:
    """``A_i B_i``: (a, b, m) and (b, c, m) give (a, c, m)."""
    if A.shape[1] == 1:
        return A * B
    if A.shape[1] >= _WIDE:
        return (A.permute(2, 0, 1) @ B.permute(2, 0, 1)).permute(1, 2, 0)
    out = A[:, 0, None] * B[0]
    for k in range(1, A.shape[1]):
        out.addcmul_(A[:, k, None], B[k].unsqueeze(0))
    return out


def multiply_transposed(A: Tensor, B: Tensor) -> Tensor:
    """``A_i' B_i``: (b, a, m) and (b, c, m) give (a, c, m)."""
    return multiply(A.transpose(0, 1), B)


def apply(A: Tensor, V: Tensor) -> Tensor:
    """``A_i V_i`` of rows by level: (a, b, m) and (b, m, c) give (a, m, c)."""
    if A.shape[1] == 1:
        return A[:, 0, :, None] * V
    if A.shape[1] >= _WIDE:
        return (A.permute(2, 0, 1) @ V.transpose(0, 1)).transpose(0, 1)
    out = A[:, 0, :, None] * V[0]
    for k in range(1, A.shape[1]):
        out.addcmul_(A[:, k, :, None], V[k].unsqueeze(0))
    return out


def apply_transposed(A: Tensor, V: Tensor) -> Tensor:
    """``A_i' V_i``: (b, a, m) and (b, m, c) give (a, m, c)."""
    return apply(A.transpose(0, 1), V)


def congruence(L: Tensor, A: Tensor) -> Tensor:
    """``L' A_i L`` with one L for all levels."""
    if A.shape[0] == 1:
        return A * (L * L)[:, :, None]
    k, m = A.shape[0], A.shape[2]
    if k >= _WIDE:
        return (L.T @ A.permute(2, 0, 1) @ L).permute(1, 2, 0)
    flat = torch.kron(L.T.contiguous(), L.T.contiguous())
    return (flat @ A.reshape(k * k, m)).reshape(k, k, m)


def identity_plus(A: Tensor) -> Tensor:
    """``I + A_i``, in place."""
    A.diagonal().add_(1.0)
    return A


def inverse(A: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of every positive-definite matrix, and the logarithms of determinants.

    Gauss-Jordan elimination on the diagonal, which for matrices ``I + A`` with A
    positive semi-definite needs no pivots.
    """
    k = A.shape[0]
    if k == 1:
        return 1 / A, A[0, 0].log()
    if k >= _WIDE:
        factor = torch.linalg.cholesky_ex(A.permute(2, 0, 1))[0]
        logs = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return torch.cholesky_inverse(factor).permute(1, 2, 0), logs
    A = A.clone()
    logs = torch.zeros_like(A[0, 0])
    for j in range(k):
        pivot = A[j, j].clone()
        logs += pivot.log()
        row = A[j] / pivot
        column = A[:, j].clone()
        A.addcmul_(column[:, None], row.unsqueeze(0), value=-1)
        A[j] = row
        A[:, j] = -column / pivot
        A[j, j] = 1 / pivot
    return A, logs
