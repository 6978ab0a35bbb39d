"""Variational inference for crossed random effects, at a cost that grows with the rows.

Exact equations of crossed factors fill up: their cost is the cube of the second
largest. The variational posterior is *partially factorised* (Goplerud, Papaspiliopoulos
& Zanella 2024): fixed effects and factors of few levels, u, are taken together, and
given them the large factors are independent of one another,

    q(b, u) = q(u) q(b_1 | u) q(b_2 | u) ...

Factors nested in one another stay together. In a Gaussian model all of it is known in
closed form. With P the precision of all effects and D what is left of it when the
blocks between large factors are cut, the best q has the exact posterior means, the
exact ``q(u) = p(u | y)``, and ``q(b | u)`` with precision D; its bound differs from the
log-likelihood in one place,

    log p(y) - ELBO = (log|D| - log|P|) / 2      (of the large factors' part),

so that the criterion of `criterion.py` holds with one determinant replaced. Solutions
with P are found by conjugate gradients, with the eliminated D as their preconditioner:
products of sparse matrices with as many entries as pairs of levels meet. Where one
large factor remains nothing is cut, and the bound is the log-likelihood.

Under *mean field* everything is cut, nested factors and fixed effects included.
Standard errors are then wrong, and variances of small factors can vanish.

References
----------
Goplerud, Papaspiliopoulos & Zanella (2024), Partially factorized variational inference
for high-dimensional mixed models, arXiv 2312.13148. Hestenes & Stiefel (1952), Methods
of conjugate gradients for solving linear systems. Blei, Kucukelbir & McAuliffe (2017),
Variational inference: a review for statisticians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from ...errors import ModelError
from ...leastsquares import LeastSquares
from .coupling import Coupling, Dense, _Sparse
from .criterion import Criterion, Point
from .elimination import Blocks, Factorisation, _outer, factorise
from .fitted import Fitted
from .products import Products, Stage, Vector, _Pass
from .rest import Layout, factorise_rest, find_layout
from .reweighted import LARGE, Reweighted, sums
from .rowvariance import Rows
from .structure import Structure

__all__ = [
    "METHODS",
    "Bound",
    "Crossed",
    "CrossedRows",
    "Equations",
    "Posterior",
    "VariationalFitted",
    "crossed_products",
    "equations",
    "small_factors",
]

#: Variational methods, and whether they are mean field.
METHODS = {"vi": False, "mf-vi": True}
#: Effects that are unfactorised unless told otherwise, and the most numbers that the
#: solutions for them may take.
_FEW, _MOST = 100, 40_000_000
#: Conjugate gradients end at this share of the right-hand side's norm.
_TIGHT, _STEPS = 1e-10, 2000
#: Elements of the largest temporary array over rows.
_ELEMENTS = 4_000_000


# -- what is cut -----------------------------------------------------------------------


def small_factors(
    structure: Structure, unfactorised: int | str | Sequence[str] | None = None
) -> list[int]:
    """Choose the factors that are taken together with the fixed effects.

    Parameters
    ----------
    structure : Structure
    unfactorised : int, str or sequence of str, optional
        The most effects they may have in all (the smallest factors are taken first), or
        their names. 100 by default, less where there are very many levels.

    Returns
    -------
    list of int
        Numbers of factors of the structure; never all of them.

    Raises
    ------
    ModelError
        For names that are no grouping factors, or if no factor would be left.
    """
    factors = structure.factors
    if isinstance(unfactorised, str):
        unfactorised = [unfactorised]
    if unfactorised is None or isinstance(unfactorised, Integral):
        if isinstance(unfactorised, bool) or (unfactorised or 0) < 0:
            raise ModelError(f"unfactorised must be 0 or more, not {unfactorised!r}.")
        largest = sum(f.q for f in factors)
        most = (
            min(_FEW, _MOST // largest) if unfactorised is None else int(unfactorised)
        )
        out, total = [], 0
        for j in range(len(factors) - 1, 0, -1):
            total += factors[j].q
            if total > most:
                break
            out.append(j)
        return sorted(out)
    names = [f.name for f in factors]
    unknown = [name for name in unfactorised if name not in names]
    if unknown:
        raise ModelError(
            f"unfactorised={unknown[0]!r} is no grouping factor; there are "
            f"{', '.join(names)}."
        )
    if len(set(unfactorised)) == len(names):
        raise ModelError(
            "with every factor unfactorised nothing is left to approximate; leave "
            "method= out for the exact fit."
        )
    return sorted({names.index(name) for name in unfactorised})


class Crossing:
    """Cross-products of two factors whose block of the precision is cut.

    Parameters
    ----------
    codes, other : Tensor, each (n,)
        Levels of the two factors.
    shape : (int, int)
        Their numbers of levels.

    Attributes
    ----------
    parts : list of list of _Sparse, each (m, m')
        By effect of the one and the other; set by `fill`.
    """

    def __init__(self, codes: Tensor, other: Tensor, shape: tuple[int, int]) -> None:
        cells = (codes * shape[1] + other).cpu().numpy()
        met, place = np.unique(cells, return_inverse=True)
        self.shape, self.device = shape, codes.device
        self._place = torch.from_numpy(place).to(self.device)
        self._columns = (met % shape[1]).astype(np.int32)
        counts = np.bincount(met // shape[1], minlength=shape[0])
        self._indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.parts: list[list[_Sparse]] = []

    def fill(self, weighted: Tensor, other: Tensor) -> Crossing:
        """Return the sums of products of rows' columns, (K, n) and (K', n)."""
        out = object.__new__(Crossing)
        out.__dict__.update(self.__dict__)
        entries = len(self._columns)
        out.parts = [
            [
                _Sparse(
                    sp.csr_matrix(
                        (
                            sums(self._place, a * b, entries).cpu().numpy(),
                            self._columns,
                            self._indptr,
                        ),
                        self.shape,
                    ),
                    self.device,
                )
                for b in other
            ]
            for a in weighted
        ]
        return out

    def times(self, V: Tensor) -> Tensor:
        """Cross-products times columns: (K', m', c) gives (K, m, c)."""
        return torch.stack([
            sum(part.times(v) for part, v in zip(row, V, strict=True))
            for row in self.parts
        ])  # fmt: skip

    def transposed(self, V: Tensor) -> Tensor:
        """Transposed cross-products times columns: (K, m, c) gives (K', m', c)."""
        return torch.stack([
            sum(row[b].transposed(v) for row, v in zip(self.parts, V, strict=True))
            for b in range(len(self.parts[0]))
        ])  # fmt: skip

    @property
    def norm(self) -> float:
        """Sum of squares of all entries."""
        return float(
            sum((part.matrix.data**2).sum() for row in self.parts for part in row)
        )


@dataclass(eq=False)
class Crossed(Products):
    """All cross-products, those between large factors held apart.

    Large factors are stages, coupled only to those they are nested in; small ones are
    the rest.

    Attributes
    ----------
    crossings : dict of (int, int) to Crossing
        By numbers of two stages: what is cut.
    mean_field : bool
        Whether the fixed effects are cut off too.
    """

    crossings: dict[tuple[int, int], Crossing]
    mean_field: bool

    def cross(self, parts: list[Tensor]) -> list[Tensor]:
        """Multiply what is cut by columns of every stage, each (K, m, c)."""
        out = [torch.zeros_like(p) for p in parts]
        for (a, b), crossing in self.crossings.items():
            out[a] += crossing.times(parts[b])
            out[b] += crossing.transposed(parts[a])
        return out

    def multiply(self, vector: Vector) -> Vector:
        """Cross-products of all effects times a vector of them."""
        out = super().multiply(vector)
        for stage, more in zip(out.stages, self.cross(vector.stages), strict=True):
            stage += more
        return out

    def cut_norms(self) -> dict[tuple[int, int], float]:
        """Squared norms of the blocks that are cut, by factor of the structure."""
        return {
            (self.stage_factors[a], self.stage_factors[b]): crossing.norm
            for (a, b), crossing in self.crossings.items()
        }

    def alone(self) -> Products:
        """Return the large factors with nothing but what they are nested in."""
        empty = self.R.new_zeros(0)
        stages = [Stage(s.D, s.E, s.parent, None, s.XY[:, :, -1:]) for s in self.stages]
        layout = find_layout([], [(0, 0), (0, 1)], self.R.device, False)
        return Products(
            self.structure, stages, self.stage_factors, [], [0], layout,
            self.R.new_zeros(*layout.shape), self.R.new_zeros(0, 1),
            self.R.new_full((1, 1), LARGE), empty.view(0, 0), empty, self.n, 0.0,
        )  # fmt: skip


class _Cut(_Pass):
    """Which factors are stages and which the rest, when large ones are cut apart."""

    small: list[int]
    mean_field: bool

    def _order(self) -> None:
        """Choose stages, what they are nested in, and the rest."""
        factors = self.structure.factors
        self.chain = [j for j in range(len(factors)) if j not in self.small]
        self.rest = list(self.small)
        self.parents: list[dict[int, Tensor]] = [{} for _ in self.chain]
        if not self.mean_field:
            self._nest()
        sizes = [factors[j].q for j in self.rest]
        self.offsets = [0, *np.cumsum(sizes).tolist()] if sizes else [0]
        self.q = self.offsets[-1]
        first = factors[0].q
        self.compute.require(
            2 * first * max(self.q, 1), "the solutions for the unfactorised effects",
            "make unfactorised= smaller.",
        )  # fmt: skip
        self.layout: Layout = self._layout()

    def _nest(self) -> None:
        """Keep nested factors together, as long as what a level is in is a chain."""
        for b in range(1, len(self.chain)):
            for a in range(b - 1, -1, -1):
                if all(b in self.parents[c] for c in self.parents[a]):
                    found = self._parent(self.chain[a], self.chain[b])
                    if found is not None:
                        self.parents[a][b] = found

    def _layout(self) -> Layout:
        return find_layout([], [(0, 0), (self.q, 1)], self.compute.device, False)

    def _forms(self) -> list[type[Coupling] | None]:
        return [Dense if self.q else None] * len(self.chain)

    @property
    def _plain(self) -> bool:
        return True

    def cut(self) -> dict[tuple[int, int], Crossing]:
        """Find which levels meet, for every two stages that are cut apart."""
        factors = self.structure.factors
        return {
            (a, b): Crossing(
                self.codes[i], self.codes[self.chain[b]],
                (factors[i].m, factors[self.chain[b]].m),
            )
            for a, i in enumerate(self.chain)
            for b in range(a + 1, len(self.chain))
            if b not in self.parents[a]
        }  # fmt: skip


class _CrossedPass(_Cut):
    """The one pass over the rows of a Gaussian model."""

    def __init__(
        self, design: Design, structure: Structure, fixed: LeastSquares,
        compute: Compute, small: list[int], mean_field: bool,
    ) -> None:  # fmt: skip
        self.small, self.mean_field = small, mean_field
        super().__init__(design, structure, fixed, compute, None)
        self._kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in structure.factors]

    def _add_products(
        self, Z: list[Tensor], weighted: list[Tensor], wXY: Tensor, part: slice
    ) -> None:
        super()._add_products(Z, weighted, wXY, part)
        if len(self.chain) > 1:
            for j in self.chain:
                self._kept[j].append((weighted[j].clone(), Z[j].clone()))

    def crossed(self) -> Crossed:
        """Read the rows and put all sums together."""
        found = self.run()
        joined = [
            [torch.cat(parts, dim=1) for parts in zip(*kept, strict=True)]
            for kept in self._kept
        ]
        crossings = {
            (a, b): crossing.fill(joined[self.chain[a]][0], joined[self.chain[b]][1])
            for (a, b), crossing in self.cut().items()
        }
        return Crossed(**vars(found), crossings=crossings, mean_field=self.mean_field)


def crossed_products(
    design: Design, structure: Structure, fixed: LeastSquares, compute: Compute,
    small: list[int], mean_field: bool = False,
) -> Crossed:  # fmt: skip
    """Pass over the rows once.

    Parameters
    ----------
    design : Design
        Its `X` of full rank.
    structure : Structure
    fixed : LeastSquares
        The least-squares fit without random effects.
    compute : Compute
    small : list of int
        Factors that are unfactorised; see `small_factors`.
    mean_field : bool, default False
    """
    return _CrossedPass(design, structure, fixed, compute, small, mean_field).crossed()


class CrossedRows(_Cut, Reweighted):
    """Rows under weights that change, with their fixed effects.

    Parameters
    ----------
    design : Design
    structure : Structure
    compute : Compute
    X : Tensor, shape (n, p)
        Of full rank.
    small : list of int
        Factors that are unfactorised; see `small_factors`.
    mean_field : bool, default False
    """

    def __init__(
        self, design: Design, structure: Structure, compute: Compute, X: Tensor,
        small: list[int], mean_field: bool = False,
    ) -> None:  # fmt: skip
        self.small, self.mean_field = small, mean_field
        super().__init__(design, structure, compute)
        self.turn = torch.linalg.inv(torch.linalg.qr(X, mode="r")[1])
        self.X = X @ self.turn
        self._met_levels = self.cut()

    def crossed(self, weights: Tensor, response: Tensor, fixed: bool = True) -> Crossed:
        """Return the cross-products under weights, with a response in their place.

        Parameters
        ----------
        weights : Tensor, shape (n,)
        response : Tensor, shape (n,)
            Already weighted.
        fixed : bool, default True
            Whether the fixed effects are among them.
        """
        found = self.at(weights, response)
        if fixed:
            wX = self.X * weights[:, None]
            columns = [self.gather(x) for x in wX.T]
            for stage, j in zip(found.stages, self.chain, strict=True):
                one = [c[j][:, :, None] for c in columns]
                stage.XY = torch.cat([*one, stage.XY], dim=2)
            p = self.X.shape[1]
            border = self.zeros(self.q, p + 1)
            border[:, -1:] = found.BXY
            for number, j in enumerate(self.rest):
                at = slice(self.offsets[number], self.offsets[number + 1])
                for a, c in enumerate(columns):
                    border[at, a] = c[j].T.reshape(-1)
            found.BXY = border
            G = self.zeros(p + 1, p + 1)
            G[:-1, :-1] = self.X.T @ wX
            G[:-1, -1] = G[-1, :-1] = self.X.T @ response
            G[-1, -1] = LARGE
            found.G, found.R = G, self.turn
            found.center = self.zeros(p)
        crossings = {
            (a, b): crossing.fill(
                self.Z[self.chain[a]] * weights, self.Z[self.chain[b]]
            )
            for (a, b), crossing in self._met_levels.items()
        }
        return Crossed(**vars(found), crossings=crossings, mean_field=self.mean_field)

    def variances(self, f: Equations) -> Tensor:
        """Variance of every row's random part under q, over sigma^2; (n,)."""
        out, _, _ = self.leverages(f)
        K, shifts = f.covariance(False), f.shifts(False)
        if not len(K) or not self._met_levels:
            return out
        step = max(1, _ELEMENTS // len(K))
        for a, b in self._met_levels:
            i, j = self.chain[a], self.chain[b]
            for one, left in zip(self.Z[i], shifts[a] @ K, strict=True):
                for two, right in zip(self.Z[j], shifts[b], strict=True):
                    for start in range(0, self.n, step):
                        at = slice(start, start + step)
                        first = left.index_select(0, self.codes[i][at])
                        second = right.index_select(0, self.codes[j][at])
                        met = torch.linalg.vecdot(first, second)
                        out[at] += 2 * met * one[at] * two[at]
        return out


# -- the equations ---------------------------------------------------------------------


@dataclass(eq=False)
class Equations(Factorisation):
    """The model's equations at one relative covariance, and q.

    `logdet` is that of the bound; everything else about means, the unfactorised effects
    and the fixed effects is exact.

    Attributes
    ----------
    own : Factorisation
        Of the large factors with what is cut left out: ``D + V^-1``.
    moved : list of Tensor, each (K, m, q + p + 1)
        By stage, ``P^-1`` times the columns of the rest, X and the response.
    dual : list of Tensor
        ``V^-1`` times the same.
    total : list of Tensor
        ``D + V^-1`` times the same: where the next search begins.
    inner : Tensor, shape (q + p + 1, q + p + 1)
        The rest, X and the response net of the large factors.
    iterations : int
        Of conjugate gradients.
    """

    own: Factorisation
    moved: list[Tensor]
    dual: list[Tensor]
    total: list[Tensor]
    inner: Tensor
    iterations: int

    def solve(self, rhs: Vector) -> Vector:
        """Apply the inverse of the penalised equations (zero where V is zero)."""
        products, q = self.products, self.products.q
        x, _, _ = _conjugate(self.own, products, list(rhs.stages), None)
        rest, X = rhs.rest, rhs.X
        for stage, part in zip(products.stages, x, strict=True):
            if stage.C is not None:
                rest = rest - stage.C.transposed(part)
            XY = stage.XY[:, :, :-1].flatten(0, 1)
            X = X - XY.T @ part.flatten(0, 1)
        rest, X = self.rest.solve(rest, X)
        both = torch.cat([rest, X])
        stages = [
            part - moved[:, :, : q + products.p] @ both
            for part, moved in zip(x, self.moved, strict=True)
        ]
        return Vector(stages, rest, X)

    def covariance(self, with_x: bool) -> Tensor:
        """Covariance of the unfactorised effects over sigma^2.

        With `with_x` that of the fixed effects stands behind theirs.
        """
        if self.products.mean_field and with_x:
            return torch.linalg.inv(self._gram)
        return self.rest.inverse(with_x).whole()

    def shifts(self, with_x: bool) -> list[Tensor]:
        """By stage, minus what the means move with the unfactorised effects."""
        if self.products.mean_field:
            p = self.products.p if with_x else 0
            return [m[:, :, :p] * 0 for m in self.moved]
        u = self.products.q + (self.products.p if with_x else 0)
        return [m[:, :, :u] for m in self.moved]

    @property
    def cov_beta(self) -> Tensor:
        """Covariance of the fixed effects over sigma^2."""
        if self.products.mean_field:
            return self.products.R @ torch.linalg.solve(self._gram, self.products.R.T)
        return super().cov_beta

    @property
    def _gram(self) -> Tensor:
        p = self.products.p
        return self.products.G[:p, :p]

    def known(self, with_x: bool, whole: bool = True, across: bool = False) -> Blocks:
        """Blocks of q's covariance by level of each factor, and of nested ones."""
        found = self.own.known(False, True)
        with_x = with_x and not self.products.mean_field
        inner, K = self.rest.inverse(with_x), self.covariance(with_x)
        diagonal = list(found.diagonal)
        for number, j in enumerate(self.products.rest_factors):
            diagonal[j] = self._diagonal(inner, number)
        between, to_rest = dict(found.between), {}
        shifts = self.shifts(with_x)
        for number, (j, M) in enumerate(
            zip(self.products.stage_factors, shifts, strict=True)
        ):
            MK = M @ K
            diagonal[j] = diagonal[j] + _outer(MK, M)
            if across:
                to_rest[number] = -MK[:, :, : self.products.q]
            for later, parent in self.products.stages[number].parent.items():
                above = shifts[later].index_select(1, parent)
                between[number, later] = between[number, later] + _outer(MK, above)
        return Blocks(diagonal, found.Q, inner, between, to_rest)

    def traces(
        self, with_x: bool, exact: bool = True, blocks: Blocks | None = None
    ) -> list[Tensor]:
        """Differentiate the bound's determinants in each factor's V, (K, K)."""
        products = self.products
        with_x = with_x and not products.mean_field
        out = self.own.traces(False)
        K = self.covariance(with_x)
        u = len(K)
        for j, Q in zip(products.stage_factors, self.dual, strict=True):
            part = Q[:, :, :u].flatten(1)
            out[j] = out[j] - (Q[:, :, :u] @ K).flatten(1) @ part.T
        S = self.inner[:u, :u]
        left = S - S @ K @ S
        for number, j in enumerate(products.rest_factors):
            k, at = products.structure.factors[j].k, products.rest_at(number)
            block = left[at, at].reshape((at.stop - at.start) // k, k, -1, k)
            out[j] = block.diagonal(dim1=0, dim2=2).sum(2)
        return out


def equations(
    products: Crossed, roots: list[np.ndarray], held: list[Tensor] | None = None,
    tight: float = _TIGHT,
) -> Equations | None:  # fmt: skip
    """Solve at given standardised roots; None where rounding made it impossible.

    Parameters
    ----------
    products : Crossed
    roots : list of ndarray, each (K, K)
        Lower factors of the relative covariance, by factor of the structure.
    held : list of Tensor, optional
        `Equations.total` of a covariance nearby, to begin from.
    tight : float
        Share of the right-hand sides' norm that conjugate gradients leave.
    """
    own = factorise(products.alone(), roots)
    if own is None or not np.isfinite(own.logdet):
        return None
    q, p = products.q, products.p
    wanted = [
        s.XY if s.C is None else torch.cat([s.C.C, s.XY], dim=2)
        for s in products.stages
    ]
    x, total, (left, iterations) = _conjugate(own, products, wanted, held, tight)
    inner = products.G.new_zeros(q + p + 1, q + p + 1)
    inner[:q, :q] = products.B[0]
    inner[:q, q:], inner[q:, :q] = products.BXY, products.BXY.T
    inner[q:, q:] = products.G
    for b, m, r in zip(wanted, x, left, strict=True):
        # With what is left of the right-hand sides errors are squared.
        taken = b.flatten(0, 1).T @ m.flatten(0, 1)
        inner -= taken + m.flatten(0, 1).T @ r.flatten(0, 1)
    inner = (inner + inner.T) / 2
    below = [torch.from_numpy(roots[j]).to(inner) for j in products.rest_factors]
    rest = factorise_rest(
        products.layout, inner[None, :q, :q].clone(), inner[:q, q:], inner[q:, q:],
        below, products.positions,
    )  # fmt: skip
    if rest is None:
        return None
    within = own.products.multiply(_vector(own, x)).stages
    dual = [t - d for t, d in zip(total, within, strict=True)]
    d = rest.corner.diagonal()
    logdet_x = 2 * float(d[:p].log().sum())
    if products.mean_field:
        logdet_x = float(torch.linalg.slogdet(products.G[:p, :p])[1])
    return Equations(
        products, [torch.from_numpy(r).to(inner) for r in roots], own.stages, rest,
        own.logdet + rest.logdet,
        logdet_x - 2 * float(products.R.diagonal().abs().log().sum()),
        float(d[-1] ** 2), own, x, dual, total, inner, iterations,
    )  # fmt: skip


def _vector(own: Factorisation, stages: list[Tensor]) -> Vector:
    """Columns of the large factors alone."""
    empty = stages[0].new_zeros(0, stages[0].shape[2])
    return Vector(list(stages), empty, empty)


def _conjugate(
    own: Factorisation, products: Crossed, b: list[Tensor],
    held: list[Tensor] | None, tight: float = _TIGHT,
) -> tuple[list[Tensor], list[Tensor], tuple[list[Tensor], int]]:  # fmt: skip
    """Solve ``(D + V^-1 + N) x = b``, N what is cut, by conjugate gradients.

    With W the inverse of ``D + V^-1`` (zero where V is zero) as preconditioner, x is
    held as ``W t``: then ``(D + V^-1) x = t`` needs no inverse of V.

    Returns
    -------
    x, t : list of Tensor, each (K, m, c)
    (left, steps)
        What is left of b, and how many steps were taken.
    """

    def inverse(parts: list[Tensor]) -> list[Tensor]:
        return own.solve(_vector(own, parts)).stages

    if not products.crossings:
        return inverse(b), b, ([torch.zeros_like(part) for part in b], 0)
    size = _dots(b, inverse(b)) * tight**2
    # Where the right-hand side is zero the solution is, wherever the last one was.
    t = b if held is None else [part * (size > 0) for part in held]
    x = inverse(t)
    r = _add(_add(b, t, -1.0), products.cross(x), -1.0)
    z = inverse(r)
    rz, s, direction = _dots(r, z), r, z
    step = 0
    while bool((rz > size).any()) and step < _STEPS:
        step += 1
        q = _add(s, products.cross(direction), 1.0)
        curvature = _dots(direction, q)
        length = torch.where(rz > 0, rz / curvature, 0.0).nan_to_num(0.0)
        x, t = _add(x, direction, length), _add(t, s, length)
        r = _add(r, q, -length)
        z = inverse(r)
        after = _dots(r, z)
        share = torch.where(rz > 0, after / rz, 0.0).nan_to_num(0.0)
        direction, s, rz = _add(z, direction, share), _add(r, s, share), after
    return x, t, (r, step)


def _dots(one: list[Tensor], two: list[Tensor]) -> Tensor:
    """Inner product of every two columns."""
    return sum((a * b).sum((0, 1)) for a, b in zip(one, two, strict=True))


def _add(one: list[Tensor], two: list[Tensor], times: Tensor | float) -> list[Tensor]:
    return [a + times * b for a, b in zip(one, two, strict=True)]


# -- the bound -------------------------------------------------------------------------


@dataclass(eq=False)
class Bound(Criterion):
    """Minus twice the bound as a function of the covariance parameters.

    Attributes
    ----------
    products : Crossed
    history : list of float
        The bound at every step of the search.
    """

    history: list[float] = field(default_factory=list)
    _held: list[Tensor] | None = None

    def __call__(self, x: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        f = equations(self.products, self.products.structure.roots(x), self._held)
        if f is None:
            return Point(x, np.inf, f, self)
        self._held = f.total
        return Point(x, self.value(f), f, self)

    def watch(self, point: Point) -> None:
        """Note where a step of the search begins."""
        self.history.append(-0.5 * point.value)

    def finish(self, point: Point) -> None:
        """Note where the search ended."""
        if not self.history or self.history[-1] != -0.5 * point.value:
            self.watch(point)


@dataclass(frozen=True, eq=False)
class VariationalFitted(Fitted):
    """A fit whose posterior of the random effects is q."""

    @property
    def inverse(self) -> Any:
        """Covariance of all effects under q, for variances of rows."""
        return Posterior(self.factorisation)

    @property
    def by_ml(self) -> Fitted:
        """Not here: the bound is no likelihood to compare models by."""
        raise ModelError(
            "a variational fit has a bound of the likelihood, not the likelihood: "
            "models are compared by exact fits."
        )


@dataclass(eq=False)
class Posterior:
    """The covariance of random and fixed effects under q, over sigma^2.

    Attributes
    ----------
    equations : Equations
    """

    equations: Equations

    def quadratic(self, rows: Rows) -> Tensor:
        """Variance of combinations of effects, (n,), over sigma^2.

        Parameters
        ----------
        rows : Rows
            Fixed effects that have no columns there are taken as known.
        """
        f, products = self.equations, self.equations.products
        blocks = f.own.known(False, True)
        with_x = rows.x.shape[1] > 0
        K, shifts = f.covariance(with_x), f.shifts(with_x)
        out = rows.x.new_empty(rows.n)
        step = max(1, _ELEMENTS // max(1, len(K) + sum(z.shape[1] for z in rows.z)))
        for start in range(0, rows.n, step):
            at = slice(start, start + step)
            out[at] = self._own(rows, at, blocks) + self._shared(
                rows, at, products, K, shifts, with_x
            )
        return out

    def _own(self, rows: Rows, at: slice, blocks: Blocks) -> Tensor:
        """Variance given the unfactorised effects."""
        order, total = self.equations.products.stage_factors, rows.x.new_zeros(())
        for (a, b), block in blocks.between.items():
            i, j = order[a], order[b]
            part = block[:, :, rows.codes[i][at]]
            form = torch.einsum("na,abn,nb->n", rows.z[i][at], part, rows.z[j][at])
            total = total + (form if a == b else 2 * form)
        return total

    @staticmethod
    def _shared(
        rows: Rows, at: slice, products: Crossed, K: Tensor, shifts: list[Tensor],
        with_x: bool,
    ) -> Tensor:  # fmt: skip
        """Variance that comes from the unfactorised effects."""
        x = rows.x[at]
        rho = x.new_zeros(len(x), len(K))
        for number, j in enumerate(products.rest_factors):
            k, offset = products.structure.factors[j].k, products.offsets[number]
            for a in range(k):
                column = offset + rows.codes[j][at] * k + a
                rho[torch.arange(len(x), device=x.device), column] = rows.z[j][at, a]
        if with_x:
            rho[:, len(K) - x.shape[1] :] = x
        for j, M in zip(products.stage_factors, shifts, strict=True):
            codes = rows.codes[j][at]
            for a in range(len(M)):
                rho -= rows.z[j][at, a, None] * M[a].index_select(0, codes)
        return ((rho @ K) * rho).sum(1)
