"""A rest too large for a dense block: sparse factors, under a guard of memory.

SuperLU factorises the sparse equations by minimum degree. It has no selected inverse,
so the determinants' derivatives come by the complex step (Squire & Trapp 1998): the
logarithm of the determinant of ``M + i h M'``, exact to rounding for one more
factorisation a parameter; far from the optimum by Hutchinson's estimate with fixed
probes, which needs solutions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from ...errors import ModelError

if TYPE_CHECKING:
    from .rest import RestInverse

__all__ = ["SparseLayout", "SparseRest", "factorise_sparse", "find_sparse_layout"]

_PROBES = 32
_STEP = 1e-30


@dataclass(frozen=True, eq=False)
class SparseLayout:
    """A symmetric matrix over the rest by its entries on and below the diagonal.

    Attributes
    ----------
    q : int
    keys : ndarray of int
        ``row * q + column`` of each entry, ascending.
    memory : int
        Bytes that a factorisation may take.
    """

    q: int
    keys: np.ndarray
    memory: int
    whole: bool = False

    @property
    def elements(self) -> int:
        """Entries held."""
        return len(self.keys)

    @property
    def place(self) -> Tensor:
        """A tensor on the device of the matrices: sparse factors live on the CPU."""
        return torch.empty(0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in which a matrix is held."""
        return (len(self.keys),)

    @cached_property
    def full(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entry, row indices and column pointers of the whole matrix, by columns."""
        rows, columns = np.divmod(self.keys, self.q)
        entry = np.arange(len(self.keys))
        below = rows != columns
        all_rows = np.concatenate([rows, columns[below]])
        all_columns = np.concatenate([columns, rows[below]])
        numbered = sp.coo_matrix(
            (np.concatenate([entry, entry[below]]) + 1.0, (all_rows, all_columns)),
            (self.q, self.q),
        ).tocsc()
        numbered.sort_indices()
        return (
            numbered.data.astype(np.int64) - 1, numbered.indices, numbered.indptr
        )  # fmt: skip

    def cells(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Places of entries."""
        high, low = torch.maximum(rows, columns), torch.minimum(rows, columns)
        found = np.searchsorted(self.keys, (high * self.q + low).numpy())
        return torch.from_numpy(found)

    def matrix(self, values: np.ndarray) -> sp.csc_matrix:
        """Return the whole symmetric matrix."""
        entry, indices, indptr = self.full
        return sp.csc_matrix((values[entry], indices, indptr), (self.q, self.q))

    def multiply(self, values: Tensor, V: Tensor) -> Tensor:
        """Multiply the symmetric matrix by columns."""
        return torch.from_numpy(self.matrix(values.numpy()) @ V.contiguous().numpy())

    def diagonal(self, values: Tensor) -> Tensor:
        """Diagonal, (q,)."""
        at = torch.arange(self.q)
        return values[self.cells(at, at)]

    def norms(self, values: Tensor, owner: Tensor) -> Tensor:
        """Add up squares by block of factors; `owner` (q, factors) is 0 or 1."""
        squares = self.matrix((values**2).numpy())
        return owner.T @ torch.from_numpy(squares @ owner.numpy())


def find_sparse_layout(
    pattern: sp.csr_matrix, blocks: list[tuple[int, int, int]], memory: int
) -> SparseLayout:
    """Find the entries that elimination of the first factor makes.

    Parameters
    ----------
    pattern : csr_matrix, shape (levels, q)
        Which columns each level of the eliminated factor meets.
    blocks : list of (offset, levels, K)
        Factors of the rest: the K columns of a level meet one another.
    memory : int
    """
    ones = pattern.copy()
    ones.data = np.ones(len(ones.data), dtype=np.float32)
    met = sp.tril(ones.T @ ones).tocoo()
    q = pattern.shape[1]
    keys = [met.row.astype(np.int64) * q + met.col]
    for offset, m, k in blocks:
        first = offset + k * np.arange(m, dtype=np.int64)
        keys += [(first + a) * q + first + b for a in range(k) for b in range(a + 1)]
    return SparseLayout(q, np.unique(np.concatenate(keys)), memory)


@dataclass(eq=False)
class SparseRest:
    """Sparse factorised equations of the rest; as `rest.Rest`.

    Attributes
    ----------
    layout : SparseLayout
    S : ndarray
        Net of the stages, unscaled.
    scaling : csr_matrix, shape (q, q)
        Factor of V over the rest.
    factors : SuperLU
    V, N : ndarray, shape (q, p + 1)
        Scaled border, and the inverse times it.
    corner : Tensor, shape (p + 1, p + 1)
    logdet : float
    """

    layout: SparseLayout
    S: np.ndarray
    scaling: sp.csr_matrix
    factors: object
    V: np.ndarray
    N: np.ndarray
    corner: Tensor
    logdet: float
    probes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def L(self) -> Tensor:
        """Stand-in that tells the device."""
        return self.corner

    def solve(self, rest: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse to the rest's and the fixed effects' right-hand sides."""
        p = len(self.corner) - 1
        y = self._inverse(self.scaling.T @ rest.numpy())
        X = X - torch.from_numpy(self.V[:, :p].T @ y)
        corner = self.corner[:p, :p]
        X = torch.linalg.solve_triangular(corner, X, upper=False)
        X = torch.linalg.solve_triangular(corner.T, X, upper=True)
        return torch.from_numpy(self.scaling @ (y - self.N[:, :p] @ X.numpy())), X

    def _inverse(self, V: np.ndarray) -> np.ndarray:
        return self.factors.solve(np.asfortranarray(V)) if V.shape[1] else V.copy()

    def inverse(self, with_x: bool, full: bool = True) -> RestInverse:
        """Refuse: a sparse factor has no inverse to give."""
        raise ModelError(
            f"the random effects outside the largest factor ({self.layout.q:,}) are "
            "held sparse, and conditional variances need their dense inverse: raise "
            "the budget with set_default_device(memory=...) if the machine allows."
        )

    def scaled(self, values: Tensor) -> sp.csc_matrix:
        """Multiply a matrix of the layout by the factor of V from both sides."""
        return _scaled(self.layout, values.numpy(), self.scaling)

    def own_trace(self, root: np.ndarray, at: slice, m: int, exact: bool) -> Tensor:
        """``sum_i (S - S K S)_ii`` of the levels of one factor of the rest.

        Where V is regular it is the derivative of the determinant in V, which is a
        change of its factor; a singular V needs a solution for each effect.
        """
        k = len(root)
        out = np.zeros((k, k))
        if abs(np.diag(root)).min() <= 1e-6:
            S = self.layout.matrix(self.S)
            columns = S[:, at].toarray()
            solved = self.scaling @ self._inverse(self.scaling.T @ columns)
            own = columns - S @ solved
            blocks = own[at].reshape(m, k, m, k)
            return torch.from_numpy(np.einsum("iaib->ab", blocks))
        for a in range(k):
            for b in range(a + 1):
                E = np.zeros((k, k))
                E[a, b] = E[b, a] = 1.0
                # The lower-triangular change of the root whose V changes by E.
                inner = np.linalg.solve(root, np.linalg.solve(root, E).T)
                change = root @ (np.tril(inner, -1) + np.diag(np.diag(inner)) / 2)
                pieces = [
                    sp.csr_matrix((at.start, at.start)),
                    sp.kron(sp.identity(m), sp.csr_matrix(change)),
                    sp.csr_matrix((self.layout.q - at.stop,) * 2),
                ]
                whole = sp.block_diag(pieces, format="csr")
                half = whole.T @ self.layout.matrix(self.S) @ self.scaling
                taken = self.trace((half + half.T).tocsc(), exact)
                out[a, b] = out[b, a] = taken if a == b else taken / 2
        return torch.from_numpy(out)

    def trace(self, change: sp.csc_matrix, exact: bool) -> float:
        """``tr(M^-1 M')`` for a change of the scaled equations."""
        if exact:
            eye = sp.identity(self.layout.q, format="csc")
            M = _scaled(self.layout, self.S, self.scaling) + eye
            size = max(abs(change.data).max(initial=0.0), 1e-300)
            with _guard(self.layout.memory):
                factors = _factors((M + (1j * _STEP / size) * change).tocsc())
            d = factors.U.diagonal()
            return float((d.imag / d.real).sum()) * size / _STEP
        if not self.probes:
            rng = np.random.default_rng(1)
            z = rng.choice([-1.0, 1.0], (self.layout.q, _PROBES))
            self.probes.update(z=z, solved=self._inverse(z))
        product = change @ self.probes["z"]
        return float((self.probes["solved"] * product).sum() / _PROBES)


def _scaled(
    layout: SparseLayout, S: np.ndarray, scaling: sp.csr_matrix
) -> sp.csc_matrix:
    return (scaling.T @ layout.matrix(S) @ scaling).tocsc()


def _factors(M: sp.csc_matrix):  # type: ignore[no-untyped-def]
    return splu(
        M, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )  # fmt: skip


def factorise_sparse(
    layout: SparseLayout,
    S: Tensor,
    border: Tensor,
    G: Tensor,
    roots: list[Tensor],
    levels: list[int],
) -> SparseRest | None:
    """Factorise; None where rounding made it impossible.

    Parameters
    ----------
    layout, S, border, G, roots
        As in `rest.factorise_rest`.
    levels : list of int
        Of each factor of the rest.

    Raises
    ------
    MemoryError
        Where the factors need more than the budget; the message names alternatives.
    """
    scaling = sp.block_diag(
        [sp.kron(sp.identity(m), sp.csr_matrix(r.numpy()))
         for r, m in zip(roots, levels, strict=True)], format="csr",
    )  # fmt: skip
    M = _scaled(layout, S.numpy(), scaling) + sp.identity(layout.q, format="csc")
    with _guard(layout.memory):
        factors = _factors(M.tocsc())
    d = factors.U.diagonal()
    if not (d > 0).all():
        return None
    V = scaling.T @ border.numpy()
    N = factors.solve(np.asfortranarray(V))
    corner, info = torch.linalg.cholesky_ex(G - torch.from_numpy(V.T @ N))
    if int(info):
        return None
    return SparseRest(
        layout, S.numpy(), scaling, factors, V, N, corner, float(np.log(d).sum())
    )


@contextmanager
def _guard(memory: int) -> Iterator[None]:
    """Make an allocation beyond the budget fail, instead of the whole process."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limit = used + memory
        limits = [x for x in (soft, hard) if x != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min([limit, *limits]), hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise MemoryError(
            f"the sparse factors of the random effects need more than the budget of "
            f"{memory / 1e9:.1f} GB. Raise it with set_default_device(memory=...), "
            "absorb a large factor as fixed effects (`| g`), or fit to a sample of "
            "its levels."
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
