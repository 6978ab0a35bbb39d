"""How the levels of the eliminated factor meet the columns that remain.

Eliminating a factor leaves ``S = B - C' W C`` with W block-diagonal and C sparse: what
each level subtracts is linear in the few entries of its W. So either the pairs of
columns that a level meets are listed once and S is one sparse product away (`Pairs`),
or, where levels meet many columns, C is held dense and S is one matrix product
(`Dense`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .blocks import apply, multiply, multiply_transposed
from .dense import gather
from .grams import ROUNDING, WeightedGrams
from .rest import Layout
from .sparse import SparseLayout

__all__ = ["Coupling", "Dense", "Pairs", "choose"]

# A dense C may have so many elements.
_MOST_DENSE = 400_000_000
# Up to this share of entries a sparse matrix by a few columns is the quicker one.
_SPARSE = 0.25
# Measured: listed once and read twice a step, a pair costs as much as so many
# operations of the products of a dense C.
_FLOPS_A_PAIR = 700
_BYTES_A_PAIR = 60


class Coupling(ABC):
    """C, shape (K, m, columns): one K-row block a level."""

    @abstractmethod
    def schur(self, W: Tensor, error: float = ROUNDING) -> Tensor:
        """``sum_i C_i' W_i C_i`` as `Layout` holds it, on and below the diagonal.

        Parameters
        ----------
        W : Tensor, shape (K, K, m)
            Positive semi-definite.
        error : float
            How far off W may be taken, relatively, where that is quicker.
        """

    @abstractmethod
    def quadratic(self, inner: Tensor) -> Tensor:
        """``C_i inner C_i'`` of a symmetric matrix; shape (K, K, m)."""

    @property
    def needs_full(self) -> bool:
        """Whether `trace` reads what is above the diagonal of a matrix."""
        return False

    def trace(self, inner: Tensor, F: Tensor, slack: float = 0.0) -> Tensor:
        """``sum_i F_i' C_i inner C_i' F_i``; shape (K, K).

        Parameters
        ----------
        inner : Tensor
            Symmetric and positive semi-definite.
        F : Tensor, shape (K, K, m)
        slack : float, default 0
            How far off the result may be, where that is quicker.
        """
        Q = self.quadratic(inner)
        return multiply(multiply_transposed(F, Q), F).sum(2)

    @abstractmethod
    def times(self, V: Tensor) -> Tensor:
        """``C V``: (columns, c) gives (K, m, c)."""

    @abstractmethod
    def transposed(self, V: Tensor) -> Tensor:
        """``sum_i C_i' V_i``: (K, m, c) gives (columns, c)."""

    @abstractmethod
    def norms(self, at: slice) -> float:
        """Sum of squares of some columns."""


class Dense(Coupling):
    """C as a dense tensor.

    Parameters
    ----------
    C : Tensor, shape (K, m, columns)
    pattern : scipy.sparse.csr_matrix, shape (m, columns), optional
        Where it may have entries: on a CPU a few are multiplied alone.
    """

    def __init__(self, C: Tensor, pattern: sp.csr_matrix | None = None) -> None:
        self.C = C
        self.flat = C.reshape(-1, C.shape[2])
        self._grams = WeightedGrams(self.flat)
        self._entries: _Entries | None = None
        few = pattern is not None and pattern.nnz <= _SPARSE * C[0].numel()
        if few and C.is_cpu:
            self._entries = _Entries(_read(C, pattern), C.device)

    @property
    def needs_full(self) -> bool:
        """Whether `trace` reads what is above the diagonal of a matrix."""
        return len(self.C) > 1

    @property
    def sparse(self) -> bool:
        """Whether it is multiplied by the entries alone."""
        return self._entries is not None

    def schur(self, W: Tensor, error: float = ROUNDING) -> Tensor:
        """Return ``C' W C``, on and below the diagonal at least."""
        if len(W) == 1:
            return self._grams.gram(W[0, 0], error)[None]
        return (self.flat.T @ apply(W, self.C).reshape(self.flat.shape))[None]

    def quadratic(self, inner: Tensor) -> Tensor:
        """Return ``C_i inner C_i'``."""
        product = (self.flat @ inner[0]).reshape(self.C.shape)
        k, m = self.C.shape[:2]
        out = product.new_empty(k, k, m)
        for a in range(k):
            for b in range(a + 1):
                out[a, b] = out[b, a] = torch.linalg.vecdot(product[a], self.C[b])
        return out

    def trace(self, inner: Tensor, F: Tensor, slack: float = 0.0) -> Tensor:
        """Return ``sum_i F_i' C_i inner C_i' F_i``."""
        if len(F) > 1:
            return super().trace(inner, F)
        found = self._grams.inner(F[0, 0] ** 2, inner[0], slack)
        return torch.full_like(F[:, :, 0], found)

    def times(self, V: Tensor) -> Tensor:
        """Return ``C V``."""
        if self._entries is not None:
            return self._entries.times(V)
        return (self.flat @ V).reshape(*self.C.shape[:2], V.shape[1])

    def transposed(self, V: Tensor) -> Tensor:
        """Return ``C' V``."""
        if self._entries is not None:
            return self._entries.transposed(V)
        return gather(self.flat, V.reshape(len(self.flat), V.shape[2]))

    def norms(self, at: slice) -> float:
        """Sum of squares of some columns."""
        return float(torch.linalg.vector_norm(self.C[:, :, at])) ** 2


class Pairs(Coupling):
    """C as sparse matrices and the list of pairs of columns each level meets.

    Parameters
    ----------
    parts : list of scipy.sparse.csr_matrix, each (m, columns)
        One for each of the K rows of a level's block, all with the same pattern.
    layout : Layout or SparseLayout
        How matrices over the columns are held.
    """

    def __init__(
        self, parts: list[sp.csr_matrix], layout: Layout | SparseLayout
    ) -> None:
        first = parts[0]
        self.k, (self.m, self.columns) = len(parts), first.shape
        self.parts = parts
        self.layout, device = layout, layout.place.device
        weight, column, value, share = _list_pairs(parts, layout)
        entries = self.m * (self.k * (self.k + 1) // 2)
        indptr = np.concatenate(
            [[0], np.cumsum(np.bincount(weight, minlength=entries))]
        )
        shape = (entries, layout.elements)
        order = slice(None) if self.k == 1 else np.argsort(weight, kind="stable")
        self._sum = _Sparse(sp.csr_matrix((value[order], column[order], indptr), shape),
                            device)  # fmt: skip
        self._pick = _Sparse(
            sp.csr_matrix((share[order], column[order], indptr), shape), device
        )
        self._entries = _Entries(parts, device)
        squares = sum(p.multiply(p) for p in parts)
        self._norms = np.asarray(squares.sum(axis=0)).ravel()

    def schur(self, W: Tensor, error: float = ROUNDING) -> Tensor:
        """Return ``C' W C``, on and below the diagonal; always exact."""
        rows, columns = np.tril_indices(self.k)
        weights = W[rows, columns].T.reshape(-1)
        return self._sum.transposed(weights).view(self.layout.shape)

    def quadratic(self, inner: Tensor) -> Tensor:
        """Return ``C_i inner C_i'``."""
        found = self._pick.times(inner.reshape(-1)).view(self.m, -1).T
        out = found.new_empty(self.k, self.k, self.m)
        for number, (a, b) in enumerate(zip(*np.tril_indices(self.k), strict=True)):
            out[a, b] = out[b, a] = found[number]
        return out

    def times(self, V: Tensor) -> Tensor:
        """Return ``C V``."""
        return self._entries.times(V)

    def transposed(self, V: Tensor) -> Tensor:
        """Return ``C' V``."""
        return self._entries.transposed(V)

    def norms(self, at: slice) -> float:
        """Sum of squares of some columns."""
        return float(self._norms[at].sum())


class _Entries:
    """C as sparse matrices, one for each of the K rows of a level's block."""

    def __init__(self, parts: list[sp.csr_matrix], device: torch.device) -> None:
        self.parts = [_Sparse(part, device) for part in parts]

    def times(self, V: Tensor) -> Tensor:
        return torch.stack([part.times(V) for part in self.parts])

    def transposed(self, V: Tensor) -> Tensor:
        return sum(part.transposed(v) for part, v in zip(self.parts, V, strict=True))


class _Sparse:
    """A sparse matrix by a vector or a few; SciPy on a CPU, torch on a card."""

    def __init__(self, matrix: sp.csr_matrix, device: torch.device) -> None:
        self.matrix = matrix
        self.on_cpu = device.type == "cpu"
        if not self.on_cpu:
            self.forward = _to_torch(matrix, device)
            self.backward = _to_torch(matrix.T.tocsr(), device)

    def times(self, V: Tensor) -> Tensor:
        if self.on_cpu:
            return torch.from_numpy(self.matrix @ V.contiguous().numpy())
        return self.forward @ V

    def transposed(self, V: Tensor) -> Tensor:
        if self.on_cpu:
            return torch.from_numpy(self.matrix.T @ V.contiguous().numpy())
        return self.backward @ V


def _to_torch(matrix: sp.csr_matrix, device: torch.device) -> Tensor:
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        torch.from_numpy(matrix.data),
        size=matrix.shape,
    ).to(device)


def _read(C: Tensor, pattern: sp.csr_matrix) -> list[sp.csr_matrix]:
    """Return the entries of C that a pattern names."""
    columns = pattern.indices.astype(np.int64)
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    at = torch.from_numpy(rows * pattern.shape[1] + columns)
    return [
        sp.csr_matrix(
            (part.view(-1)[at].numpy(), pattern.indices, pattern.indptr), pattern.shape
        )
        for part in C
    ]


def _list_pairs(
    parts: list[sp.csr_matrix], layout: Layout | SparseLayout
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """List for each level the pairs (a, b <= a) of columns it meets, by entry of W.

    Returns
    -------
    weight : ndarray
        Which entry of W, level by level, lower triangle by rows.
    column : ndarray
        Place of (a, b) in the layout.
    value, share : ndarray
        What the entry is multiplied by in ``C' W C``, and what the (a, b) entry of a
        symmetric matrix is multiplied by in ``C inner C'``.
    """
    first, k = parts[0], len(parts)
    indptr, columns = first.indptr.astype(np.int64), first.indices.astype(np.int64)
    level = np.repeat(np.arange(first.shape[0]), np.diff(indptr))
    position = np.arange(len(columns)) - indptr[level]
    one = np.repeat(np.arange(len(columns)), position + 1)
    start = np.cumsum(position + 1) - (position + 1)
    other = np.arange(len(one)) - np.repeat(start - indptr[level], position + 1)
    column = layout.cells(
        torch.from_numpy(columns[one]), torch.from_numpy(columns[other])
    ).numpy()
    apart = one != other
    weight, values, shares = [], [], []
    entries = k * (k + 1) // 2
    for number, (a, b) in enumerate(zip(*np.tril_indices(k), strict=True)):
        value = parts[a].data[one] * parts[b].data[other]
        if a != b:
            value = value + parts[b].data[one] * parts[a].data[other]
        weight.append(level[one] * entries + number)
        values.append(value)
        shares.append(value * np.where(apart, 2.0, 1.0) / (1 if a == b else 2))
    if k == 1:
        return weight[0], column, values[0], shares[0]
    return (
        np.concatenate(weight), np.tile(column, entries), np.concatenate(values),
        np.concatenate(shares),
    )  # fmt: skip


def choose(counts: np.ndarray, k: int, columns: int, memory: int) -> type[Coupling]:
    """Pick the cheaper form.

    Parameters
    ----------
    counts : ndarray, shape (m,)
        Columns that each level meets.
    k : int
        Effects a level.
    columns : int
    memory : int
        Bytes that the list of pairs may take.
    """
    counts = counts.astype(np.float64)
    pairs = (counts * (counts + 1) / 2).sum() * k * (k + 1) / 2
    size = len(counts) * k * columns
    fits = _BYTES_A_PAIR * pairs <= memory
    quick = columns <= 32 or size * columns <= _FLOPS_A_PAIR * pairs
    return Dense if size <= _MOST_DENSE and (quick or not fits) else Pairs
