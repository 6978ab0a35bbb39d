"""Cross-products of random effects that belong to several linear predictors.

A row's log-density then has a matrix of weights D, one for each pair of predictors with
random effects, where it had one number; and two columns a, b of random effects of the
predictors p, q have the cross-product ``sum_i D_pq z_ia z_ib``. That is all that
changes: effects on one grouping factor share a block a level whatever their predictor,
and are eliminated as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from .elimination import Factorisation
from .products import Products
from .reweighted import LARGE, Reweighted, sums
from .rowvariance import Inverse, Rows
from .structure import Structure

__all__ = ["Parted"]


class Parted(Reweighted):
    """The rows of the random effects of several predictors.

    With r predictors that have random effects, values of rows are (r, n) and weights
    (r, r, n), symmetric, where `Reweighted` has (n,).

    Parameters
    ----------
    design : Design
    structure : Structure
    compute : Compute

    Attributes
    ----------
    owners : list of list of int
        By factor, for each of its columns the place of its predictor in `parts`.
    """

    def __init__(self, design: Design, structure: Structure, compute: Compute) -> None:
        super().__init__(design, structure, compute)
        self.parts = tuple(sorted({r.part for r in design.random}))
        place = {part: number for number, part in enumerate(self.parts)}
        self.owners = [
            [place[design.random[t.order].part] for t in structure.of(j) for _ in t.U]
            for j in range(len(structure.factors))
        ]

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        """Pairs of predictors, a predictor with itself first."""
        r = len(self.parts)
        own = [(p, p) for p in range(r)]
        return own + [(p, q) for p in range(r) for q in range(p)]

    def _masked(self, Z: list[Tensor], owners: tuple[int, ...]) -> list[Tensor]:
        """Columns of some predictors; zero for those of others."""
        return [
            z * z.new_tensor([float(o in owners) for o in own])[:, None]
            for z, own in zip(Z, self.owners, strict=True)
        ]

    # -- rows and effects ----------------------------------------------------------

    @staticmethod
    def stack(values: list[Tensor]) -> Tensor:
        """Values of rows of all predictors that have random effects; (r, n)."""
        return torch.stack(values)

    @staticmethod
    def split(values: Tensor) -> tuple[Tensor, ...]:
        """Inverse of `stack`, or the columns of weights."""
        return values.unbind(-2)

    @staticmethod
    def times(weights: Tensor, values: Tensor) -> Tensor:
        """Weights times values of rows; (r, n)."""
        return (weights * values).sum(1)

    @staticmethod
    def total(values: Tensor) -> Tensor:
        """Sum over predictors, or pairs of them; (n,)."""
        return values.flatten(0, -2).sum(0)

    def columns(self, j: int) -> list[Tensor]:
        """Columns of a factor by predictor, each (K, n); zero for those of others."""
        return [self._masked(self.Z, (place,))[j] for place in range(len(self.parts))]

    def combine(self, effects: list[Tensor]) -> Tensor:
        """Return ``Z b`` by predictor, (r, n), of effects by factor, each (K, m)."""
        out = self.zeros(len(self.parts), self.n)
        for z, b, codes, owners in zip(
            self.Z, effects, self.codes, self.owners, strict=True
        ):
            for k, owner in enumerate(owners):
                out[owner].addcmul_(b[k].index_select(0, codes), z[k])
        return out

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return ``Z' values`` by factor, each (K, m); every column has its own."""
        return [
            torch.stack(
                [
                    sums(codes, values[o] * c, factor.m)
                    for o, c in zip(owners, z, strict=True)
                ]
            )
            for z, codes, factor, owners in zip(
                self.Z, self.codes, self.structure.factors, self.owners, strict=True
            )
        ]

    # -- cross-products --------------------------------------------------------------

    def _general(self, weights: Tensor, response: Tensor) -> Products:
        """Form the sums of designs whose coupling is sparse.

        For two predictors ``2 D_pq z_p z_q`` is what ``(z_p + z_q)^2`` has more than
        the squares: every pass adds the products of some columns under one weight.
        """
        self._allocate()
        own = {(p, p): weights[p, p].clone() for p in range(len(self.parts))}
        passes = {**own, **{(p, q): weights[p, q] for p, q in self._pairs if p != q}}
        for p, q in passes:
            if p != q:
                passes[p, p] -= weights[p, q]
                passes[q, q] -= weights[p, q]
        rows = self.compute.block_rows(2 + 2 * sum(len(z) for z in self.Z))
        for start in range(0, self.n, rows):
            part = slice(start, min(start + rows, self.n))
            for (p, q), w in passes.items():
                Z = self._masked([z[:, part] for z in self.Z], (p, q))
                weighted = [z * w[part] for z in Z]
                here = response[p : p + 1, part] if p == q else None
                right = w.new_zeros(1, len(w[part])) if here is None else here
                self._add_products(Z, weighted, right, part)
        self.G[-1, -1] = LARGE
        return self._gathered(0.0)

    def _own(self, weights: Tensor, j: int) -> Tensor:
        f, z, owners = self.structure.factors[j], self.Z[j], self.owners[j]
        out = self.zeros(f.k, f.k, f.m)
        for a, p in enumerate(owners):
            for b, q in enumerate(owners[: a + 1]):
                out[a, b] = sums(self.codes[j], weights[p, q] * z[a] * z[b], f.m)
                out[b, a] = out[a, b]
        return out

    def _nested(self, weights: Tensor, i: int, j: int, D: list[Tensor]) -> Tensor:
        codes, m = self.codes[i], self.structure.factors[i].m
        columns = list(zip(self.Z[j], self.owners[j], strict=True))
        return torch.stack([
            torch.stack([sums(codes, weights[p, q] * a * b, m) for b, q in columns])
            for a, p in zip(self.Z[i], self.owners[i], strict=True)
        ])  # fmt: skip

    def _met(self, weights: Tensor, i: int, a: int, j: int, b: int) -> Tensor:
        own = weights[self.owners[i][a], self.owners[j][b]]
        return super()._met(own, i, a, j, b)

    # -- the inverse where rows have entries -------------------------------------------

    def leverages(
        self, f: Factorisation
    ) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
        """``z_p'(Z'DZ + V^-1)^-1 z_q`` of every row, and the traces of the factors.

        Parameters
        ----------
        f : Factorisation

        Returns
        -------
        leverages : Tensor, shape (r, r, n)
        traces, diagonal
            As `Reweighted.leverages`.
        """
        if self._dense:
            return super().leverages(f)
        inverse, out = Inverse(f), self._zero_form()
        for p, q in self._pairs:
            Z = [z.T for z in self._masked(self.Z, (p, q))]
            found = inverse.quadratic(Rows(self.codes, Z, self.zeros(self.n, 0)))
            if p != q:
                found = (found - out[p, p] - out[q, q]) / 2
            out[p, q] = out[q, p] = found
        return out, f.traces(with_x=False), None

    def _zero_form(self) -> Tensor:
        r = len(self.parts)
        return self.zeros(r, r, self.n)

    def form(self, j: int, blocks: Tensor) -> Tensor:
        """Forms of every row's columns of a factor in its level's block; (r, r, n)."""
        z, codes, owners, out = self.Z[j], self.codes[j], self.owners[j], None
        out = self._zero_form()
        for a, p in enumerate(owners):
            for b, q in enumerate(owners):
                part = blocks[a, b].index_select(0, codes)
                out[p, q].add_(part.mul_(z[a]).mul_(z[b]))
        return out

    def _across(self, K: Tensor, i: int, j: int, codes: Tensor) -> Tensor:
        out = self._zero_form()
        for a, p in enumerate(self.owners[i]):
            for b, q in enumerate(self.owners[j]):
                part = K[a, b].index_select(0, codes) * self.Z[i][a] * self.Z[j][b]
                out[p, q] += part
                out[q, p] += part
        return out

    def _add_met(self, part: Tensor, i: int, a: int, j: int, b: int,
                 out: Tensor) -> None:  # fmt: skip
        p, q = self.owners[i][a], self.owners[j][b]
        part = part * self.Z[i][a] * self.Z[j][b]
        out[p, q] += part
        out[q, p] += part
