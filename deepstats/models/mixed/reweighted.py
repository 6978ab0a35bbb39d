"""Cross-products of the same random effects under weights that change.

A generalised linear mixed model solves the linear model's equations again and again,
with the weights of its last linear predictor. Codes, columns and the layout of what
remains after the elimination stay; only the sums are formed anew.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from .coupling import Coupling, Dense, Pairs
from .elimination import Factorisation
from .products import Products, Stage, _Pass
from .rest import Layout
from .rows import random_columns
from .rowvariance import Inverse, Rows
from .structure import Structure

__all__ = ["LARGE", "Reweighted", "sums"]

#: Largest dense coupling, as a share of the memory budget: a list of pairs would have
#: to be made anew with every change of the weights.
_SHARE = 8
#: Columns from which on it is looked whether a row has one of them alone.
_MANY = 4
#: In place of the response's own square, which nothing asks for: larger than any
#: quadratic form in it.
LARGE = 1e100


class Reweighted(_Pass):
    """The rows of a design's random effects, held for one pass after another.

    Parameters
    ----------
    design : Design
    structure : Structure
    compute : Compute

    Attributes
    ----------
    Z : list of Tensor, each (K, n)
        Standardised columns of each factor of the structure.
    scales : list of float or None
        Their one value, where a factor has one column that is constant.
    alone : list of tuple or None
        Of each factor, where it has many columns of which no row has two: where each
        row's effect is among all (level by level), its column, and its value.
    parts : tuple of int
        Numbers of the linear predictors that have random effects: the first alone.
    """

    parts: tuple[int, ...] = (0,)

    def __init__(self, design: Design, structure: Structure, compute: Compute) -> None:
        empty = torch.zeros(0, 0, dtype=torch.float64)
        fixed = SimpleNamespace(params=empty.new_zeros(0), inverse=empty)
        super().__init__(design, structure, fixed, compute, empty)
        columns = random_columns(design, compute)
        self.Z, self.scales = [], []
        for j in range(len(structure.factors)):
            parts = [columns[t.order] @ t.U for t in structure.of(j)]
            joined = np.ascontiguousarray(np.concatenate(parts, axis=1).T)
            self.Z.append(compute.tensor(joined))
            alike = len(joined) == 1 and bool((joined == joined[0, 0]).all())
            self.scales.append(float(joined[0, 0]) if alike else None)
        self.alone = [
            _alone(z, codes) for z, codes in zip(self.Z, self.codes, strict=True)
        ]
        self._chosen = self._choose_forms()
        self._dense = (
            isinstance(self.layout, Layout)
            and self.layout.whole
            and all(form in (None, Dense) for form in self._chosen)
        )
        if self._dense:
            self._prepare()

    def _choose_forms(self) -> list[type[Coupling] | None]:
        forms = super()._forms()
        held = self.structure.factors[self.chain[0]].q * self.q
        if (
            forms == [Pairs]
            and self.layout.whole
            and 8 * held * _SHARE < (self.compute.memory or 0)
        ):
            return [Dense]
        return forms

    def _forms(self) -> list[type[Coupling] | None]:
        return self._chosen if hasattr(self, "_chosen") else super()._forms()

    def _prepare(self) -> None:
        """Find once which two levels meet in every row, and where blocks go."""
        factors = self.structure.factors
        self._cells = {
            (i, j): self.codes[i] * factors[j].m + self.codes[j]
            for number, j in enumerate(self.rest)
            for i in [*self.chain, *self.rest[:number]]
        }
        self._places = []
        for number, j in enumerate(self.rest):
            k, at = factors[j].k, self.offsets[number]
            steps = at + k * torch.arange(factors[j].m, device=self.compute.device)
            self._places.append([steps + a for a in range(k)])

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.design.n

    def at(self, weights: Tensor, response: Tensor) -> Products:
        """Return the cross-products under weights, with a response in their place.

        Parameters
        ----------
        weights : Tensor, shape (n,)
        response : Tensor, shape (n,)
            Already weighted: the right-hand side is ``Z'response``.
        """
        if not self._dense:
            return self._general(weights, response)
        factors = self.structure.factors
        D = [self._own(weights, j) for j in range(len(factors))]
        XY = [x[:, :, None] for x in self.gather(response)]
        stages = []
        for a, i in enumerate(self.chain):
            E = {b: self._nested(weights, i, self.chain[b], D) for b in self.parents[a]}
            C: Coupling | None = None
            if self.q:
                pattern = None if self._plain else self._pattern
                C = Dense(self._coupling(weights, i), pattern)
            stages.append(Stage(D[i], E, self.parents[a], C, XY[i]))
        BXY = [XY[j].transpose(0, 1).reshape(-1, 1) for j in self.rest]
        corner = self.zeros(1, 1)
        corner[0, 0] = LARGE
        return Products(
            self.structure, stages, self.chain, self.rest, self.offsets, self.layout,
            self._rest_block(weights, D), torch.cat(BXY) if BXY else self.zeros(0, 1),
            corner, self.R, self.center, self.design.n, 0.0,
        )  # fmt: skip

    def _general(self, weights: Tensor, response: Tensor) -> Products:
        """Form the sums of designs whose coupling is sparse."""
        self._allocate()
        rows = self.compute.block_rows(2 + sum(len(z) for z in self.Z))
        for start in range(0, self.n, rows):
            part = slice(start, min(start + rows, self.n))
            Z = [z[:, part] for z in self.Z]
            weighted = [z * weights[part] for z in Z]
            self._add_products(Z, weighted, response[None, part], part)
        self.G[-1, -1] = LARGE
        return self._gathered(0.0)

    def _own(self, weights: Tensor, j: int) -> Tensor:
        """Cross-products of a factor with itself, by level."""
        f, codes, scale = self.structure.factors[j], self.codes[j], self.scales[j]
        if scale is not None:
            return (scale**2 * sums(codes, weights, f.m))[None, None]
        out, z = self.zeros(f.k, f.k, f.m), self.Z[j]
        if (alone := self.alone[j]) is not None:
            cells, _, value = alone
            squares = sums(cells, weights * value * value, f.q)
            out.diagonal().copy_(squares.view(f.m, f.k))
            return out
        for a in range(f.k):
            weighted = weights * z[a]
            for b in range(a + 1):
                out[a, b] = sums(codes, weighted * z[b], f.m)
                out[b, a] = out[a, b]
        return out

    def _nested(self, weights: Tensor, i: int, j: int, D: list[Tensor]) -> Tensor:
        """Cross-products of a factor with one that it is nested in, by its levels."""
        one, two, m = self.scales[i], self.scales[j], self.structure.factors[i].m
        if one is not None and two is not None:
            return D[i] * (two / one)
        return torch.stack([
            torch.stack([sums(self.codes[i], weights * a * b, m) for b in self.Z[j]])
            for a in self.Z[i]
        ])  # fmt: skip

    def _met(self, weights: Tensor, i: int, a: int, j: int, b: int) -> Tensor:
        """Cross-products of two columns of two factors; (m_i, m_j)."""
        shape = (self.structure.factors[i].m, self.structure.factors[j].m)
        cells, one, two = self._cells[i, j], self.scales[i], self.scales[j]
        if one is not None and two is not None:
            found = sums(cells, weights, shape[0] * shape[1])
            return found.view(shape).mul_(one * two)
        values = weights * self.Z[i][a] * self.Z[j][b]
        return sums(cells, values, shape[0] * shape[1]).view(shape)

    def _coupling(self, weights: Tensor, i: int) -> Tensor:
        """Cross-products of a stage with the rest; (K, m, q)."""
        f = self.structure.factors[i]
        if f.k == 1 and len(self.rest) == 1 and len(self.Z[self.rest[0]]) == 1:
            return self._met(weights, i, 0, self.rest[0], 0)[None]
        out = torch.empty(
            f.k, f.m, self.q, dtype=torch.float64, device=self.compute.device
        )
        for number, j in enumerate(self.rest):
            k, at = len(self.Z[j]), self.offsets[number]
            for a in range(f.k):
                for b in range(k):
                    columns = slice(at + b, self.offsets[number + 1], k)
                    out[a, :, columns] = self._met(weights, i, a, j, b)
        return out

    def _rest_block(self, weights: Tensor, D: list[Tensor]) -> Tensor:
        """Cross-products of the rest with itself; (1, q, q)."""
        B = self.zeros(1, self.q, self.q)
        block = B[0]
        for number, j in enumerate(self.rest):
            places = self._places[number]
            for a, rows in enumerate(places):
                for b, columns in enumerate(places):
                    block[rows, columns] = D[j][a, b]
            k = len(places)
            for other, i in enumerate(self.rest[:number]):
                for a in range(len(self.Z[i])):
                    rows = self._columns(other, a)
                    for b in range(k):
                        found = self._met(weights, i, a, j, b)
                        block[rows, self._columns(number, b)] = found
                        block[self._columns(number, b), rows] = found.T
        return B

    def _columns(self, number: int, a: int) -> slice:
        k = len(self.Z[self.rest[number]])
        return slice(self.offsets[number] + a, self.offsets[number + 1], k)

    # Rows have one value each; where several predictors have random effects
    # (`Parted`), one for each predictor, and one weight for each pair.

    @staticmethod
    def stack(values: list[Tensor]) -> Tensor:
        """Values of rows of all predictors that have random effects."""
        (value,) = values
        return value

    @staticmethod
    def split(values: Tensor) -> tuple[Tensor, ...]:
        """Inverse of `stack`, or the columns of weights."""
        return (values,)

    @staticmethod
    def times(weights: Tensor, values: Tensor) -> Tensor:
        """Weights times values of rows."""
        return weights * values

    @staticmethod
    def total(values: Tensor) -> Tensor:
        """Sum over predictors, or pairs of them."""
        return values

    def columns(self, j: int) -> list[Tensor]:
        """Columns of a factor by predictor, each (K, n); zero for those of others."""
        return [self.Z[j]]

    def combine(self, effects: list[Tensor]) -> Tensor:
        """Return ``Z b`` of effects by factor, each (K, m): (n,)."""
        total: Tensor | None = None
        for z, b, codes, scale, alone in zip(
            self.Z, effects, self.codes, self.scales, self.alone, strict=True
        ):
            if alone is not None:
                part = b.T.reshape(-1).index_select(0, alone[0]).mul_(alone[2])
                total = part if total is None else total.add_(part)
                continue
            for k in range(len(z)):
                if scale is not None:
                    part = (scale * b[k]).index_select(0, codes)
                else:
                    part = b[k].index_select(0, codes).mul_(z[k])
                total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return ``Z' values`` by factor, each (K, m)."""
        out = []
        for z, codes, factor, scale, alone in zip(
            self.Z, self.codes, self.structure.factors, self.scales, self.alone,
            strict=True,
        ):  # fmt: skip
            if alone is not None:
                found = sums(alone[0], values * alone[2], factor.q)
                out.append(found.view(factor.m, factor.k).T.contiguous())
            elif scale is not None:
                out.append(sums(codes, values, factor.m).mul_(scale)[None])
            else:
                out.append(torch.stack([sums(codes, values * c, factor.m) for c in z]))
        return out

    # -- the inverse where rows have entries -------------------------------------------

    def leverages(
        self, f: Factorisation
    ) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
        """``z_i'(Z'DZ + V^-1)^-1 z_i`` of every row, and the traces of the factors.

        Parameters
        ----------
        f : Factorisation
            Of what `at` returned.

        Returns
        -------
        leverages : Tensor, shape (n,)
        traces : list of Tensor, each (K, K)
            As `Factorisation.traces`.
        diagonal : list of Tensor, each (K, K, m), or None
            Blocks of the inverse by level of each factor, where they are formed.
        """
        if not self._dense:
            rows = Rows(self.codes, [z.T for z in self.Z], self.zeros(self.n, 0))
            return Inverse(f).quadratic(rows), f.traces(with_x=False), None
        blocks = f.known(with_x=False, across=True)
        out = self.form(0, blocks.diagonal[0])
        for j in range(1, len(self.Z)):
            out += self.form(j, blocks.diagonal[j])
        for a, i in enumerate(self.chain):
            for b in self.parents[a]:
                j = self.chain[b]
                out += self._across(blocks.between[a, b], i, j, self.codes[i])
            if self.q:
                self._meet_rest(i, blocks.to_rest[a].flatten(1), out)
        for other, i in enumerate(self.rest):
            rows = [self._columns(other, a) for a in range(len(self.Z[i]))]
            block = torch.stack([blocks.inner.zz[0][r] for r in rows])
            if other + 1 < len(self.rest):
                self._meet_rest(i, block.flatten(1), out, other + 1)
        return out, f.traces(with_x=False, blocks=blocks), blocks.diagonal

    def form(self, j: int, blocks: Tensor) -> Tensor:
        """Quadratic form of every row's columns of a factor in its level's block.

        Parameters
        ----------
        j : int
        blocks : Tensor, shape (K, K, m)
            Symmetric.
        """
        z, codes, scale = self.Z[j], self.codes[j], self.scales[j]
        if scale is not None:
            return (blocks[0, 0] * scale**2).index_select(0, codes)
        if (alone := self.alone[j]) is not None:
            _, column, value = alone
            return blocks[column, column, codes] * value * value
        out = torch.zeros_like(z[0])
        for a in range(len(z)):
            for b in range(a + 1):
                part = blocks[a, b].index_select(0, codes).mul_(z[a]).mul_(z[b])
                out.add_(part, alpha=1 if a == b else 2)
        return out

    def _across(self, K: Tensor, i: int, j: int, codes: Tensor) -> Tensor:
        """Twice what two factors contribute together; K is (K_i, K_j, cells)."""
        one, two = self.scales[i], self.scales[j]
        if one is not None and two is not None:
            return K[0, 0].index_select(0, codes).mul_(2 * one * two)
        out = torch.zeros_like(self.Z[i][0])
        for a, first in enumerate(self.Z[i]):
            for b, second in enumerate(self.Z[j]):
                out += 2 * K[a, b].index_select(0, codes) * first * second
        return out

    def _meet_rest(self, i: int, K: Tensor, out: Tensor, begin: int = 0) -> None:
        """Add what a factor and those of the rest contribute; K is (K_i, m_i * q)."""
        for number in range(begin, len(self.rest)):
            j = self.rest[number]
            k = len(self.Z[j])
            cells = self.codes[i] * self.q + self.offsets[number] + self.codes[j] * k
            if number == 0 and self.q == k * self.structure.factors[j].m and k == 1:
                cells = self._cells[i, j]
            for a in range(len(K)):
                for b in range(k):
                    part = K[a].index_select(0, cells + b if b else cells)
                    self._add_met(part, i, a, j, b, out)

    def _add_met(
        self, part: Tensor, i: int, a: int, j: int, b: int, out: Tensor
    ) -> None:
        """Add twice what two columns of two factors contribute; `part` is (n,)."""
        one, two = self.scales[i], self.scales[j]
        if one is not None and two is not None:
            out.add_(part, alpha=2 * one * two)
        else:
            out += 2 * part * self.Z[i][a] * self.Z[j][b]


def _alone(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Find each row's only column; None where columns are few, or rows have several.

    As of a factor's levels, or of places: what would be a loop over pairs of columns.
    """
    if len(z) < _MANY or int((z != 0).sum(0).max()) > 1:
        return None
    column = z.abs().argmax(0)
    value = z.gather(0, column[None])[0]
    return codes * len(z) + column, column, value


def sums(codes: Tensor, values: Tensor, size: int) -> Tensor:
    """Add up values by code, (size,)."""
    if not codes.is_cpu:
        return values.new_zeros(size).index_add_(0, codes, values)
    # Quicker than torch's index_add_ where rows are few, and as quick where not.
    found = np.bincount(codes.numpy(), values.numpy(), size)
    return torch.from_numpy(found)
