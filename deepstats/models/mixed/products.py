"""Cross-products of random effects, fixed effects and response: the rows' last use.

One pass over the rows, in blocks, gives every cross-product that estimation needs;
afterwards nothing costs more when there are more rows. Fixed effects enter as
``X~ = X R`` with ``X~'WX~ = I`` and the response as its least-squares residual, so
that neither the units of the data nor a distant mean cost digits.

Grouping factors nested in one another (``a:b`` in ``a``), from the one with most
effects on, are *stages*: each is eliminated level by level. Other factors form the
*rest*, whose columns are held side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from ...leastsquares import LeastSquares
from .blocks import apply, apply_transposed
from .coupling import Coupling, Dense, Pairs, choose
from .rest import Layout, find_layout
from .sparse import SparseLayout, find_sparse_layout
from .structure import Structure

__all__ = ["Products", "Stage", "Vector"]

# Stages beyond the first need the coupling to the rest as dense columns.
_DENSE_CHAIN = 20_000_000
# A dense coupling whose product takes so many operations needs no comparison.
_QUICK = 100_000_000


@dataclass(eq=False)
class Stage:
    """Cross-products of one eliminated factor.

    Attributes
    ----------
    D : Tensor, shape (K, K, m)
        With itself, by level.
    E : dict of int to Tensor, each (K, K_l, m)
        With the stage l above, by level.
    parent : dict of int to Tensor, each (m,)
        Which level of stage l each level belongs to.
    C : Coupling or None
        With the rest.
    XY : Tensor, shape (K, m, p + 1)
        With fixed effects and response.
    """

    D: Tensor
    E: dict[int, Tensor]
    parent: dict[int, Tensor]
    C: Coupling | None
    XY: Tensor


@dataclass(eq=False)
class Vector:
    """Columns in the space of all effects: by stage, then the rest, then X.

    Attributes
    ----------
    stages : list of Tensor, each (K, m, c)
    rest : Tensor, shape (q, c)
    X : Tensor, shape (p, c)
    """

    stages: list[Tensor]
    rest: Tensor
    X: Tensor

    def minus(self, other: Vector) -> Vector:
        """Return the difference."""
        return Vector(
            [a - b for a, b in zip(self.stages, other.stages, strict=True)],
            self.rest - other.rest,
            self.X - other.X,
        )

    def gram(self, other: Vector) -> Tensor:
        """Return inner products of the columns, (c, c')."""
        out = self.rest.T @ other.rest + self.X.T @ other.X
        for a, b in zip(self.stages, other.stages, strict=True):
            out = out + a.flatten(0, 1).T @ b.flatten(0, 1)
        return out


@dataclass(eq=False)
class Products:
    """All cross-products of a mixed model.

    Attributes
    ----------
    structure : Structure
    stages : list of Stage
    stage_factors, rest_factors : list of int
        Which factors of the structure are stages, in order, and which are the rest.
    offsets : list of int
        Where each factor of the rest begins, and their total q.
    layout : Layout or SparseLayout
        How matrices over the rest are held.
    B : Tensor
        The rest with itself, as the layout holds it.
    BXY : Tensor, shape (q, p + 1)
        The rest with fixed effects and response.
    G : Tensor, shape (p + 1, p + 1)
        Fixed effects and response with themselves.
    R : Tensor, shape (p, p)
        ``X~ = X R``.
    center : Tensor, shape (p,)
        Least-squares coefficients, which the response is net of.
    n : int
    log_weights : float
        Sum of logarithms of the weights.
    """

    structure: Structure
    stages: list[Stage]
    stage_factors: list[int]
    rest_factors: list[int]
    offsets: list[int]
    layout: Layout | SparseLayout
    B: Tensor
    BXY: Tensor
    G: Tensor
    R: Tensor
    center: Tensor
    n: int
    log_weights: float

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return len(self.center)

    @property
    def q(self) -> int:
        """Columns of the rest."""
        return self.offsets[-1]

    @cached_property
    def positions(self) -> list[list[Tensor | slice]]:
        """Rows of each effect of the rest, laid out, by factor."""
        out: list[list[Tensor | slice]] = []
        for number, j in enumerate(self.rest_factors):
            k, at = self.structure.factors[j].k, self.rest_at(number)
            if self.layout.whole or isinstance(self.layout, SparseLayout):
                out.append([slice(at.start + a, at.stop, k) for a in range(k)])
            else:
                out.append([self.layout.place[at][a::k] for a in range(k)])
        return out

    def rest_at(self, number: int) -> slice:
        """Columns of the rest's factor `number`."""
        return slice(self.offsets[number], self.offsets[number + 1])

    def cut_norms(self) -> dict[tuple[int, int], float]:
        """Squared norms of blocks of two factors that are held apart: none here."""
        return {}

    def whole_rest(self) -> Tensor:
        """Return the rest with itself as one dense matrix, (q, q)."""
        eye = torch.eye(self.q, dtype=self.B.dtype, device=self.B.device)
        return self.layout.multiply(self.B, eye)

    def by_factor(self, vector: Vector) -> list[Tensor]:
        """Parts of a vector by factor of the structure, each (K, m, c)."""
        out: list[Tensor | None] = [None] * len(self.structure.factors)
        for number, factor in enumerate(self.stage_factors):
            out[factor] = vector.stages[number]
        for number, factor in enumerate(self.rest_factors):
            f = self.structure.factors[factor]
            part = vector.rest[self.rest_at(number)]
            out[factor] = part.reshape(f.m, f.k, -1).transpose(0, 1)
        return out

    def from_factors(self, parts: list[Tensor], X: Tensor) -> Vector:
        """Inverse of `by_factor`."""
        rest = [parts[f].transpose(0, 1).flatten(0, 1) for f in self.rest_factors]
        c = X.shape[1]
        return Vector(
            [parts[f] for f in self.stage_factors],
            torch.cat(rest) if rest else X.new_zeros(0, c),
            X,
        )

    @property
    def response(self) -> Vector:
        """Cross-products of every effect with the response."""
        return Vector(
            [s.XY[:, :, -1:] for s in self.stages],
            self.BXY[:, -1:],
            self.G[:-1, -1:],
        )

    def multiply(self, vector: Vector) -> Vector:
        """Cross-products of all effects times a vector of them."""
        p = self.p
        rest = self.layout.multiply(self.B, vector.rest)
        rest = rest + self.BXY[:, :p] @ vector.X
        X = self.BXY[:, :p].T @ vector.rest + self.G[:p, :p] @ vector.X
        stages = []
        for stage, part in zip(self.stages, vector.stages, strict=True):
            out = apply(stage.D, part) + stage.XY[:, :, :p] @ vector.X
            if stage.C is not None:
                out = out + stage.C.times(vector.rest)
                rest = rest + stage.C.transposed(part)
            flat = stage.XY[:, :, :p].flatten(0, 1)
            X = X + flat.T @ part.flatten(0, 1)
            stages.append(out)
        for number, stage in enumerate(self.stages):
            for later, E in stage.E.items():
                parent = stage.parent[later]
                above = vector.stages[later].index_select(1, parent)
                stages[number] = stages[number] + apply(E, above)
                below = apply_transposed(E, vector.stages[number])
                stages[later] = stages[later].index_add(1, parent, below)
        return Vector(stages, rest, X)


def cross_products(
    design: Design,
    structure: Structure,
    fixed: LeastSquares,
    compute: Compute,
    R: Tensor | None = None,
) -> Products:
    """Pass over the rows once.

    Parameters
    ----------
    design : Design
        Its `X` of full rank.
    structure : Structure
    fixed : LeastSquares
        The least-squares fit without random effects.
    compute : Compute
    R : Tensor, optional
        A triangle that makes the fixed effects orthonormal, where one is known.
    """
    return _Pass(design, structure, fixed, compute, R).run()


class _Pass:
    """What the pass over the rows adds up."""

    def __init__(
        self, design: Design, structure: Structure, fixed: LeastSquares,
        compute: Compute, R: Tensor | None,
    ) -> None:  # fmt: skip
        self.design, self.structure, self.compute = design, structure, compute
        device = compute.device
        self.orthonormal = R is not None
        self.R = (torch.linalg.cholesky(fixed.inverse) if R is None else R).to(device)
        self.center = fixed.params.to(device)
        self.p = len(fixed.params)
        self.codes = [
            torch.from_numpy(f.codes.astype(np.int64)).to(device)
            for f in structure.factors
        ]
        self._order()

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.compute.device)

    def _order(self) -> None:
        """Choose stages and rest, and the levels above each level."""
        factors = self.structure.factors
        chain, parents = [0], [{}]
        for j in range(1, len(factors)):
            above = {i: self._parent(i, j) for i in chain}
            if all(found is not None for found in above.values()):
                chain.append(j)
                for number, i in enumerate(chain[:-1]):
                    parents[number][len(chain) - 1] = above[i]
                parents.append({})
        rest = [j for j in range(len(factors)) if j not in chain]
        q = sum(factors[j].q for j in rest)
        held = sum(factors[j].q for j in chain) * q
        if len(chain) > 1 and held > _DENSE_CHAIN:
            chain, parents = [0], [{}]
            rest = list(range(1, len(factors)))
        self.chain, self.parents, self.rest = chain, parents, rest
        sizes = [factors[j].q for j in rest]
        self.offsets = [0, *np.cumsum(sizes).tolist()] if rest else [0]
        self.q = self.offsets[-1]
        self.layout: Layout | SparseLayout = self._layout()
        if 24 * self.layout.elements > self.compute.memory:
            self.layout = self._sparse_layout()

    def _layout(self) -> Layout:
        """Take the rest apart where levels never meet."""
        if not self.rest or len(self.chain) > 1:
            return find_layout([], [(0, 0), (self.q, 1)], self.compute.device, False)
        used = [self.chain[0], *self.rest]
        factors = self.structure.factors
        return find_layout(
            [self.codes[j].cpu().numpy() for j in used],
            [(factors[j].m, factors[j].k) for j in used],
            self.compute.device,
        )

    def _sparse_layout(self) -> SparseLayout:
        """Entries of the rest where dense components would not fit in memory."""
        factors = self.structure.factors
        names = ", ".join(factors[j].name for j in self.rest)
        instead = (
            "raise the budget with set_default_device(memory=...), or absorb the "
            "largest of them as fixed effects (`| g`)."
        )
        if self.compute.on_gpu or len(self.chain) > 1:
            self.compute.require(3 * self.layout.elements, f"the block of {names}",
                                 instead)  # fmt: skip
        pattern = self._pattern
        met = np.diff(pattern.indptr).astype(np.float64)
        self.compute.require(
            int(6 * (met * (met + 1) / 2).sum()),
            f"the list of pairs of levels of {names} ({self.q:,} effects)", instead,
        )  # fmt: skip
        blocks = [
            (self.offsets[number], factors[j].m, factors[j].k)
            for number, j in enumerate(self.rest)
        ]
        return find_sparse_layout(pattern, blocks, self.compute.memory)

    @cached_property
    def _pattern(self) -> sp.csr_matrix:
        """Which columns of the rest each level of the first stage meets."""
        factors, low = self.structure.factors, self.codes[self.chain[0]].cpu().numpy()
        rows, columns = [], []
        for number, j in enumerate(self.rest):
            k, high = factors[j].k, self.codes[j].cpu().numpy()
            for b in range(k):
                rows.append(low)
                columns.append(self.offsets[number] + high * k + b)
        row, column = np.concatenate(rows), np.concatenate(columns)
        shape = (factors[self.chain[0]].m, self.q)
        ones = np.ones(len(row), dtype=np.float32)
        return sp.coo_matrix((ones, (row, column)), shape).tocsr()

    def _parent(self, i: int, j: int) -> Tensor | None:
        """Level of factor j that each level of factor i belongs to, if it is one."""
        low, high = self.codes[i], self.codes[j]
        parent = torch.zeros(
            self.structure.factors[i].m, dtype=torch.int64, device=low.device
        )
        parent[low] = high
        return parent if bool((parent[low] == high).all()) else None

    def run(self) -> Products:
        self._allocate()
        self._rows()
        if not self.orthonormal:
            self._orthonormalise()
        weights = self.design.weights
        return self._gathered(0.0 if weights is None else float(np.log(weights).sum()))

    def _allocate(self) -> None:
        """Begin all sums at zero."""
        factors = self.structure.factors
        self.D = [self.zeros(f.k, f.k, f.m) for f in factors]
        self.XY = [self.zeros(f.k, self.p + 1, f.m) for f in factors]
        self.E = {
            (a, b): self.zeros(factors[i].k, factors[self.chain[b]].k, factors[i].m)
            for a, i in enumerate(self.chain)
            for b in self.parents[a]
        }
        self.B = self.zeros(*self.layout.shape)
        forms = self._forms()
        self.C = {
            a: self.zeros(factors[i].k, factors[i].m, self.q)
            for a, i in enumerate(self.chain)
            if forms[a] is Dense
        }
        self.patterns: dict[int, list[tuple[np.ndarray, ...]]] = {
            a: [] for a, form in enumerate(forms) if form is Pairs
        }
        self.G = self.zeros(self.p + 1, self.p + 1)

    def _gathered(self, log_weights: float) -> Products:
        """Put the sums together."""
        forms = self._forms()
        XY = [x.transpose(1, 2).contiguous() for x in self.XY]
        stages = []
        for a, i in enumerate(self.chain):
            C: Coupling | None = None
            if forms[a] is Dense:
                C = Dense(self.C[a], None if self._plain else self._pattern)
            elif forms[a] is Pairs:
                C = Pairs(self._sparse(a), self.layout)
            E = {b: self.E[a, b] for b in self.parents[a]}
            stages.append(Stage(self.D[i], E, self.parents[a], C, XY[i]))
        for number, j in enumerate(self.rest):
            self._fill_diagonal(number, self.D[j])
        BXY = [XY[j].transpose(0, 1).reshape(-1, self.p + 1) for j in self.rest]
        return Products(
            self.structure, stages, self.chain, self.rest, self.offsets, self.layout,
            self.B, torch.cat(BXY) if BXY else self.zeros(0, self.p + 1), self.G,
            self.R, self.center, self.design.n, log_weights,
        )  # fmt: skip

    def _forms(self) -> list[type[Coupling] | None]:
        """Form of the coupling of each stage with the rest."""
        if not self.q:
            return [None] * len(self.chain)
        if self._plain:
            return [Dense] * len(self.chain)
        if not self.layout.whole:
            return [Pairs]
        met = np.diff(self._pattern.indptr)
        k = self.structure.factors[self.chain[0]].k
        return [choose(met, k, self.q, self.compute.memory)]

    @property
    def _plain(self) -> bool:
        """Whether the coupling is dense whatever it holds: of a chain, or small."""
        first = self.structure.factors[self.chain[0]]
        quick = self.layout.whole and first.q * self.q**2 <= _QUICK
        return quick or len(self.chain) > 1

    def _orthonormalise(self) -> None:
        """Give back the digits that the factor of an inverse has lost.

        As the second half of CholeskyQR2: columns that are all but orthonormal are made
        so by a triangular factor near the identity.
        """
        p = self.p
        T = torch.linalg.cholesky(torch.linalg.inv(self.G[:p, :p]))
        self.R = self.R @ T
        for XY in self.XY:
            XY[:, :p] = T.T @ XY[:, :p]
        self.G[:p, p] = self.G[p, :p] = T.T @ self.G[:p, p]
        self.G[:p, :p] = torch.eye(p, dtype=T.dtype, device=T.device)

    def _fill_diagonal(self, number: int, D: Tensor) -> None:
        k, m = D.shape[0], D.shape[2]
        start = self.offsets[number]
        at = start + k * torch.arange(m, device=D.device)
        for a in range(k):
            for b in range(k):
                self.B.view(-1)[self.layout.cells(at + a, at + b)] = D[a, b]

    # -- rows ----------------------------------------------------------------------

    def _rows(self) -> None:
        """Add up all rows, a block at a time."""
        design, compute = self.design, self.compute
        factors = self.structure.factors
        wide = self.p + 2 + sum(f.k for f in factors)
        rows = min(compute.block_rows(wide), design.n)
        maps = [_block_diagonal([t.U for t in self.structure.of(j)]).to(compute.device)
                for j in range(len(factors))]  # fmt: skip
        raw = design.X.to_raw(self.center)

        def prepare() -> tuple:
            random = [[z.scratch(rows, compute) for z in f.matrices] for f in factors]
            return design.scratches(rows, compute), random

        def body(start: int, stop: int, worker: tuple) -> None:
            scratches, random = worker
            batch = design.batch(start, stop, scratches, compute)
            e = batch.y - batch.blocks[0].eta(raw)
            if batch.offset[0] is not None:
                e = e - batch.offset[0]
            XY = torch.cat([(batch.X @ self.R).T, e[None]])
            Z = [
                U.T @ torch.cat([s.block(start, stop).columns().T for s in spaces])
                for U, spaces in zip(maps, random, strict=True)
            ]
            self._add(Z, XY, batch.weights, slice(start, stop))

        def merge(into: tuple, other: tuple) -> None:
            raise AssertionError("one worker adds up all rows")

        # All rows go into the same sums: a second worker would need its own.
        replace(compute, threads=1).sum_blocks(design.n, rows, prepare, body, merge)

    def _add(self, Z: list[Tensor], XY: Tensor, w: Tensor | None, part: slice) -> None:
        weighted = Z if w is None else [z * w for z in Z]
        wXY = XY if w is None else XY * w
        self.G += wXY @ XY.T
        self._add_products(Z, weighted, wXY, part)

    def _add_products(
        self, Z: list[Tensor], weighted: list[Tensor], wXY: Tensor, part: slice
    ) -> None:
        """Add all but the fixed effects' own; `wXY` is weighted already."""
        codes = [c[part] for c in self.codes]
        for j, (z, wz) in enumerate(zip(Z, weighted, strict=True)):
            for a in range(len(z)):
                self.XY[j][a].index_add_(1, codes[j], wXY * z[a])
                for b in range(a + 1):
                    self.D[j][a, b].index_add_(0, codes[j], wz[a] * z[b])
                    if a != b:
                        self.D[j][b, a] = self.D[j][a, b]
        for (a, b), E in self.E.items():
            i, j = self.chain[a], self.chain[b]
            for k, wz in enumerate(weighted[i]):
                E[k].index_add_(1, codes[i], Z[j] * wz)
        for number, j in enumerate(self.rest):
            for other in range(number):
                self._add_rest(number, other, Z, weighted, codes)
            for a, C in self.C.items():
                i = self.chain[a]
                for k, wz in enumerate(weighted[i]):
                    for b, z in enumerate(Z[j]):
                        column = self.offsets[number] + codes[j] * len(Z[j]) + b
                        at = codes[i] * self.q + column
                        C[k].view(-1).index_add_(0, at, wz * z)
            for a, kept in self.patterns.items():
                i = self.chain[a]
                values = weighted[i][:, None] * Z[j]
                kept.append((number, part, values.cpu().numpy().copy()))

    def _add_rest(
        self, one: int, two: int, Z: list[Tensor], weighted: list[Tensor],
        codes: list[Tensor],
    ) -> None:  # fmt: skip
        i, j, flat = self.rest[one], self.rest[two], self.B.view(-1)
        for a, wz in enumerate(weighted[i]):
            row = self.offsets[one] + codes[i] * len(Z[i]) + a
            for b, z in enumerate(Z[j]):
                column = self.offsets[two] + codes[j] * len(Z[j]) + b
                value = wz * z
                flat.index_add_(0, self.layout.cells(row, column), value)
                if isinstance(self.layout, Layout):
                    flat.index_add_(0, self.layout.cells(column, row), value)

    def _sparse(self, a: int) -> list[sp.csr_matrix]:
        """Coupling of a stage with the rest, one matrix for each effect of a level."""
        i = self.chain[a]
        f, low = self.structure.factors[i], self.codes[i].cpu().numpy()
        rows, columns, values = [], [], []
        for number, part, value in self.patterns[a]:
            j = self.rest[number]
            high, k = self.codes[j][part].cpu().numpy(), self.structure.factors[j].k
            for b in range(k):
                rows.append(low[part])
                columns.append(self.offsets[number] + high * k + b)
                values.append(value[:, b])
        row, column = np.concatenate(rows), np.concatenate(columns)
        value = np.concatenate(values, axis=1)
        return [
            sp.coo_matrix((v, (row, column)), shape=(f.m, self.q)).tocsr()
            for v in value
        ]


def _block_diagonal(blocks: list[np.ndarray]) -> Tensor:
    return torch.block_diag(*(torch.from_numpy(b) for b in blocks))
