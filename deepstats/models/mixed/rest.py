"""The effects that are not eliminated in closed form: one dense block, or many.

What remains after the stages falls apart where levels never meet: raters of one school
and raters of another. Its columns are laid out by connected component, ``(c, d, d)``
with as many components as there are and the size of the largest, padded with ones on
the diagonal; a crossed design is one component. Fixed effects and response border it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .dense import cholesky, inverse_from

__all__ = ["Layout", "Rest", "RestInverse", "factorise_rest", "find_layout"]

# Fewer columns than this are not worth taking apart.
_WORTH = 256


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the columns of the rest are held.

    Attributes
    ----------
    q : int
        Columns.
    count, width : int
        Components, and the size of the largest.
    place : Tensor of int, shape (q,)
        ``component * width + position inside it``; positions keep the columns' order.
    """

    q: int
    count: int
    width: int
    place: Tensor

    @property
    def whole(self) -> bool:
        """Whether there is one component, so that columns are where they were."""
        return self.count == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in which a matrix is held."""
        return (self.count, self.width, self.width)

    def multiply(self, matrix: Tensor, V: Tensor) -> Tensor:
        """Multiply a matrix that is held so by columns, (q, k)."""
        return self.scatter(matrix @ self.gather(V))

    def norms(self, matrix: Tensor, owner: Tensor) -> Tensor:
        """Add up squares by block of factors; `owner` (q, factors) is 0 or 1."""
        mine = self.gather(owner)
        return torch.einsum("cdi,cdj->ij", mine, matrix**2 @ mine)

    @property
    def elements(self) -> int:
        """Numbers that one matrix over the rest takes."""
        return self.count * self.width**2

    def cells(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Flat places of entries of a matrix; the two are in one component."""
        if self.whole:
            return rows * self.q + columns
        place = self.place.to(rows.device)
        return place[rows] * self.width + place[columns] % self.width

    def gather(self, V: Tensor) -> Tensor:
        """Lay rows of the rest out by component: (q, k) gives (c, d, k)."""
        if self.whole:
            return V[None]
        out = V.new_zeros(self.count * self.width, V.shape[1])
        out[self.place] = V
        return out.view(self.count, self.width, -1)

    def scatter(self, V: Tensor) -> Tensor:
        """Inverse of `gather`."""
        if self.whole:
            return V[0]
        return V.reshape(self.count * self.width, -1)[self.place]

    def diagonal(self, matrix: Tensor) -> Tensor:
        """Diagonal of a matrix over the rest, (q,), which may be written to."""
        flat = matrix.view(-1)
        if self.whole:
            return flat[:: self.q + 1]
        return flat[self.place * self.width + self.place % self.width]


def find_layout(
    codes: list[np.ndarray],
    sizes: list[tuple[int, int]],
    device: torch.device,
    apart: bool = True,
) -> Layout:
    """Find the connected components of the factors of the rest.

    Parameters
    ----------
    codes : list of ndarray of int
        Levels of each row: the eliminated factor first, then the factors of the rest.
    sizes : list of (levels, K)
        Of the same factors.
    device : torch.device
    apart : bool, default True
        Whether to look for components at all.
    """
    q = sum(m * k for m, k in sizes[1:])
    whole = Layout(q, 1, q, torch.arange(q, device=device))
    if not apart or q < _WORTH:
        return whole
    starts = np.cumsum([0, *(m for m, _ in sizes)])
    n = int(starts[-1])
    graph = sp.csr_matrix((n, n), dtype=bool)
    for j in range(1, len(codes)):
        rows, columns = codes[0], starts[j] + codes[j]
        met = sp.coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), (n, n))
        graph = graph + met.tocsr()
    _, label = connected_components(graph, directed=False)
    level = np.concatenate([
        np.repeat(label[starts[j] : starts[j + 1]], sizes[j][1])
        for j in range(1, len(sizes))
    ])  # fmt: skip
    _, component = np.unique(level, return_inverse=True)
    counts = np.bincount(component)
    count, width = len(counts), int(counts.max())
    if count * width**2 > q**2 / 2:
        return whole
    order = np.argsort(component, kind="stable")
    position = np.empty(q, dtype=np.int64)
    first = np.cumsum(counts) - counts
    position[order] = np.arange(q) - np.repeat(first, counts)
    place = torch.from_numpy(component * width + position).to(device)
    return Layout(q, count, width, place)


@dataclass(eq=False)
class Rest:
    """Factorised equations of the rest, bordered by fixed effects and response.

    Attributes
    ----------
    layout : Layout
    L : Tensor, shape (c, d, d)
        Cholesky factors; what is above their diagonals is not read.
    H : Tensor, shape (c, d, p + 1)
        ``L^-1`` times the border.
    corner : Tensor, shape (p + 1, p + 1)
        Cholesky factor of fixed effects and response net of the rest.
    roots : list of Tensor, each (K, K)
        Factors of V, by factor of the rest.
    positions : list of Tensor or slice, by factor and effect
        Rows of each effect of a level, laid out.
    vector : Tensor or None, shape (c, d)
        The factors as one number a column, where every K is one.
    """

    layout: Layout
    L: Tensor
    H: Tensor
    corner: Tensor
    roots: list[Tensor]
    positions: list[list[Tensor | slice]]
    vector: Tensor | None

    @cached_property
    def logdet(self) -> float:
        """Logarithm of the determinant of the rest."""
        return 2 * float(self.L.diagonal(dim1=1, dim2=2).log().sum())

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return len(self.corner) - 1

    def solve(self, rest: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse to the rest's and the fixed effects' right-hand sides."""
        p, layout = self.p, self.layout
        V = self.scale(layout.gather(rest), transposed=True)
        half = torch.linalg.solve_triangular(self.L, V, upper=False)
        if not p:
            back = torch.linalg.solve_triangular(self.L.mT, half, upper=True)
            return layout.scatter(self.scale(back)), X
        H = self.H[:, :, :p]
        X = X - torch.einsum("cdp,cdk->pk", H, half)
        corner = self.corner[:p, :p]
        X = torch.linalg.solve_triangular(corner, X, upper=False)
        X = torch.linalg.solve_triangular(corner.T, X, upper=True)
        back = torch.linalg.solve_triangular(self.L.mT, half - H @ X, upper=True)
        return layout.scatter(self.scale(back)), X

    def scale(self, V: Tensor, transposed: bool = False) -> Tensor:
        """Multiply rows that are laid out, (c, d, k), by the factors of V."""
        return scale_rows(V, self.roots, self.positions, transposed)

    def inverse(self, with_x: bool, full: bool = True) -> RestInverse:
        """Inverse, with the fixed effects eliminated or known.

        With `full` false only what is on and below the diagonals need be right.
        """
        if self.layout.whole:
            full = full or self.vector is None
            inner = inverse_from(self.L[0], self.layout.q, full)[None]
        else:
            eye = torch.eye(self.layout.width, dtype=self.L.dtype, device=self.L.device)
            half = torch.linalg.solve_triangular(
                self.L, eye.expand(self.L.shape), upper=False
            )
            inner = half.mT @ half
        if (vector := self.vector) is None:
            inner = self.scale(self.scale(inner).mT)
        else:
            inner = inner.mul_(vector[:, :, None]).mul_(vector[:, None])
        p = self.p
        if not with_x or not p:
            empty = self.H.new_zeros(self.layout.q, 0)
            return RestInverse(self.layout, inner, empty, empty[:0])
        half = torch.linalg.solve_triangular(
            self.corner[:p, :p], torch.eye(p, dtype=inner.dtype, device=inner.device),
            upper=False,
        )  # fmt: skip
        xx = half.T @ half
        back = torch.linalg.solve_triangular(self.L.mT, self.H[:, :, :p], upper=True)
        N = self.scale(back)
        inner = inner.baddbmm_(N @ xx, N.mT)
        return RestInverse(self.layout, inner, -self.layout.scatter(N) @ xx, xx)


@dataclass(eq=False)
class RestInverse:
    """Inverse of the equations for the rest and, unless they are known, fixed effects.

    Attributes
    ----------
    layout : Layout
    zz : Tensor, shape (c, d, d)
        What two columns of one component have in common; with fixed effects
        eliminated, columns of different components have something in common too,
        which no cross-product of the data asks for.
    zx : Tensor, shape (q, p)
    xx : Tensor, shape (p, p)
    """

    layout: Layout
    zz: Tensor
    zx: Tensor
    xx: Tensor

    def whole(self) -> Tensor:
        """Return one dense matrix over the rest and the fixed effects.

        Entries between components, which are not held, are ``zx xx^-1 zx'``.
        """
        q, p = self.layout.q, len(self.xx)
        out = self.zz.new_zeros(q + p, q + p)
        if self.layout.whole:
            out[:q, :q] = self.zz[0]
        else:
            if p:
                out[:q, :q] = self.zx @ torch.linalg.solve(self.xx, self.zx.T)
            component = self.layout.place // self.layout.width
            local = self.layout.place % self.layout.width
            for number in range(self.layout.count):
                at = (component == number).nonzero()[:, 0]
                inside = local[at]
                out[at[:, None], at] = self.zz[number][inside[:, None], inside]
        out[:q, q:], out[q:, :q], out[q:, q:] = self.zx, self.zx.T, self.xx
        return out


def scale_rows(
    V: Tensor, roots: list[Tensor], positions: list, transposed: bool
) -> Tensor:
    """Multiply the K rows of every level by the factor of V, or its transpose."""
    if not roots:
        return V
    shape = V.shape
    flat = V.flatten(0, 1)
    out = flat.clone()
    for root, rows in zip(roots, positions, strict=True):
        k = len(root)
        for a in range(k):
            part = flat[rows[a]] * root[a, a]
            for b in range(k):
                factor = root[b, a] if transposed else root[a, b]
                if b != a and ((b > a) == transposed):
                    part = part + flat[rows[b]] * factor
            out[rows[a]] = part
    return out.view(shape)


def factorise_rest(
    layout: Layout,
    S: Tensor,
    border: Tensor,
    G: Tensor,
    roots: list[Tensor],
    positions: list[list[Tensor | slice]],
) -> Rest | None:
    """Factorise; None where rounding made it impossible.

    Parameters
    ----------
    layout : Layout
    S : Tensor, shape (c, d, d)
        Net of the stages, unscaled; on and below the diagonal. Overwritten.
    border : Tensor, shape (q, p + 1)
    G : Tensor, shape (p + 1, p + 1)
    roots, positions
        See `Rest`.
    """
    if not layout.q:
        corner, info = torch.linalg.cholesky_ex(G)
        if int(info):
            return None
        return Rest(layout, S, border[None], corner, roots, positions, None)
    vector = _vector(layout, roots, positions)
    if vector is not None:
        S = S.mul_(vector[:, :, None]).mul_(vector[:, None])
    else:
        S = S.tril_() + S.tril(-1).mT
        S = scale_rows(S, roots, positions, True)
        S = scale_rows(S.mT.contiguous(), roots, positions, True)
    S.diagonal(dim1=1, dim2=2).add_(1.0)
    if layout.whole:
        L, fine = cholesky(S[0])
        L = L[None]
    else:
        L, info = torch.linalg.cholesky_ex(S)
        fine = not bool(info.any())
    if not fine:
        return None
    V = scale_rows(layout.gather(border), roots, positions, True)
    H = torch.linalg.solve_triangular(L, V, upper=False)
    corner, info = torch.linalg.cholesky_ex(G - torch.einsum("cdp,cdr->pr", H, H))
    if int(info):
        return None
    return Rest(layout, L, H, corner, roots, positions, vector)


def _vector(layout: Layout, roots: list[Tensor], positions: list) -> Tensor | None:
    """Factor of V as one number a column, (c, d), where it is diagonal by terms."""
    if any(len(root) > 1 for root in roots) or not roots:
        return None
    out = roots[0].new_ones(layout.count * layout.width)
    for root, rows in zip(roots, positions, strict=True):
        out[rows[0]] = root[0, 0]
    return out.view(layout.count, layout.width)
