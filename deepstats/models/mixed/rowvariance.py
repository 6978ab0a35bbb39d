"""Variances of linear combinations of fixed and random effects, row by row.

The inverse ``K`` of Henderson's equations, times sigma^2, is the joint covariance of
``(beta^ - beta, b^ - b)`` (Henderson 1975; Robinson 1991). A row ``a`` of new or old
data has few entries that are not zero, so that ``a'Ka`` needs few entries of K: those
of the rest are held, those of a stage follow from ``K_iR = -W_i C_i K_RR``. No array
has a row for each row of the data and a column for each effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ...design import Design
from .blocks import apply, multiply
from .coupling import Dense, Pairs
from .criterion import Point
from .elimination import Factorisation
from .fitted import Fitted

__all__ = ["Inverse", "Rows", "curvature", "degrees_of_freedom", "free_parameters"]

# Elements of the largest temporary array.
_ELEMENTS = 4_000_000
# Differences of gradients reach this far, in units of 1 / sqrt(curvature).
_STEP = 1e-3
# Curvature below this share of the largest (diagonal scaled to one) counts as none.
_FLAT = 1e-8


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data as combinations of the effects that are estimated.

    Attributes
    ----------
    codes : list of Tensor, each (n,)
        Level of each factor of the structure; any level where `z` is zero.
    z : list of Tensor, each (n, K)
        Standardised columns of each factor; zero for effects that take no part.
    x : Tensor, shape (n, p)
        Orthonormalised columns of the fixed effects.
    """

    codes: list[Tensor]
    z: list[Tensor]
    x: Tensor

    @classmethod
    def build(
        cls,
        fitted: Fitted,
        design: Design,
        columns: Sequence[np.ndarray | None],
        codes: Sequence[np.ndarray | None],
    ) -> Rows:
        """Rows of a design.

        Parameters
        ----------
        fitted : Fitted
        design : Design
            Its X with the columns of the fit.
        columns : sequence of ndarray or None, each (n, K)
            Columns of each term of the structure; None for a term left out.
        codes : sequence of ndarray or None, each (n,)
            Levels of each term; -1 for one that is not known, whose effects then take
            no part.
        """
        structure, device = fitted.structure, fitted.factorisation.L.device
        all_codes, z = [], []
        for j, factor in enumerate(structure.factors):
            part = np.zeros((design.n, factor.k))
            level = np.zeros(design.n, dtype=np.int64)
            for term in structure.of(j):
                found = columns[term.order]
                if found is None:
                    continue
                code = np.asarray(codes[term.order], dtype=np.int64)
                part[:, term.at] = found * (code >= 0)[:, None]
                level = np.maximum(code, 0)
            all_codes.append(torch.from_numpy(level).to(device))
            z.append(torch.from_numpy(part @ fitted.units[j]).to(device))
        X = design.X.to_dense(fitted.compute.on_cpu()).to(device)
        return cls(all_codes, z, X @ fitted.products.R)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.x)


@dataclass(eq=False)
class Inverse:
    """The inverse of Henderson's equations over sigma^2, and quadratic forms in it.

    With ``K_0`` the inverse for known fixed effects, ``N = K_0 Z'WX`` and C the
    covariance of the fixed effects, ``a'Ka = z'K_0 z + (x - N'z)'C(x - N'z)``: two
    sources of uncertainty, and K_0 is zero between effects that never meet.

    Attributes
    ----------
    factorisation : Factorisation
    """

    factorisation: Factorisation

    @cached_property
    def _blocks(self) -> tuple[list[Tensor], Tensor]:
        """Diagonal blocks of K_0 by stage, and its components of the rest."""
        diagonal, _, inner = self.factorisation.blocks(with_x=False)
        order = self.factorisation.products.stage_factors
        return [diagonal[j] for j in order], inner.zz.flatten(0, 1)

    @cached_property
    def _fixed(self) -> tuple[list[Tensor], Tensor]:
        """N by factor of the structure, each (K, m, p), and C."""
        products, p = self.factorisation.products, self.factorisation.products.p
        L = self.factorisation.L
        empty = [L.new_zeros(f.k, f.m, p) for f in products.structure.factors]
        eye = torch.eye(p, dtype=L.dtype, device=L.device)
        found = self.factorisation.solve(products.from_factors(empty, eye))
        # Effects and fixed effects have -N C in common.
        N = [
            -torch.linalg.solve(found.X, part, left=False)
            for part in products.by_factor(found)
        ]
        return N, found.X

    @cached_property
    def _to_rest(self) -> dict[int, Tensor]:
        """Blocks between each stage but the first and the rest; (K, m, width)."""
        out: dict[int, Tensor] = {}
        stages = self.factorisation.stages
        for number in range(len(stages) - 1, 0, -1):
            m = stages[number].W.shape[2]
            levels = torch.arange(m, device=self.factorisation.L.device)
            out[number] = self._rest_of(number, levels, out)
        return out

    def _rest_of(
        self, number: int, levels: Tensor, later_ones: dict[int, Tensor]
    ) -> Tensor:
        """Blocks between some levels of a stage and their component of the rest."""
        stage, inner = self.factorisation.stages[number], self._blocks[1]
        layout = self.factorisation.products.layout
        k = stage.W.shape[0]
        out = inner.new_zeros(k, len(levels), layout.width)
        if isinstance(stage.C, Dense):
            out += stage.C.C[:, levels] @ inner
        elif stage.C is not None:
            out += _sparse_rows(stage.C.parts, levels, layout.place, inner)
        for later, E in stage.E.items():
            above = later_ones[later].index_select(1, stage.parent[later][levels])
            out += apply(E[:, :, levels], above)
        return -apply(stage.W[:, :, levels], out)

    @cached_property
    def _component(self) -> Tensor:
        """Component of the rest that each level of the first stage belongs to."""
        layout, C = self.factorisation.products.layout, self.factorisation.stages[0].C
        if layout.whole or not isinstance(C, Pairs):
            m = self.factorisation.stages[0].W.shape[2]
            return torch.zeros(m, dtype=torch.int64, device=layout.place.device)
        first = torch.from_numpy(C.parts[0].indices[C.parts[0].indptr[:-1]])
        return layout.place[first.to(layout.place.device).long()] // layout.width

    def _between(self, s: int, i: Tensor, t: int, j: Tensor) -> Tensor:
        """Blocks between levels i of stage s and levels j of stage t; (K, K', L)."""
        if s > t:
            return self._between(t, j, s, i).transpose(0, 1)
        if s < t:
            return self._eliminated(s, i, t, j)
        out = self._blocks[0][s][:, :, i]
        apart = (i != j).nonzero()[:, 0]
        if len(apart):
            out[:, :, apart] = self._eliminated(s, i[apart], s, j[apart])
        return out

    def _eliminated(self, s: int, i: Tensor, t: int, j: Tensor) -> Tensor:
        """Blocks between two levels by the equations of level i, which come first."""
        stages = self.factorisation.stages
        stage = stages[s]
        total = stage.W.new_zeros(stage.W.shape[0], stages[t].W.shape[0], len(i))
        if stage.C is not None:  # chains of stages hold it dense
            other = self._to_rest[t].index_select(1, j)
            total += torch.linalg.vecdot(stage.C.C[:, None, i], other[None])
        for later, E in stage.E.items():
            above = self._between(later, stage.parent[later][i], t, j)
            total += multiply(E[:, :, i], above)
        return -multiply(stage.W[:, :, i], total)

    def quadratic(self, rows: Rows) -> Tensor:
        """``a'Ka`` of every row; shape (n,)."""
        chain = self.factorisation.products.stage_factors
        out = rows.x.new_zeros(rows.n)
        order, starts = _by_level([rows.codes[j] for j in chain])
        first = order[starts[:-1]]
        levels = [rows.codes[j][first] for j in chain]
        width = self.factorisation.products.layout.width + 1
        step = max(1, _ELEMENTS // (width * self.factorisation.stages[0].W.shape[0]))
        for low in range(0, len(first), step):
            high = min(low + step, len(first))
            here = [level[low:high] for level in levels]
            at = order[starts[low] : starts[high]]
            counts = starts[low + 1 : high + 1] - starts[low:high]
            combination = torch.repeat_interleave(counts)
            self._add_chunk(rows, here, at, combination, out)
        return out.clamp_(min=0.0)

    def _add_chunk(
        self, rows: Rows, levels: list[Tensor], at: Tensor, combination: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        """Rows of some combinations of the stages' levels."""
        chain = range(len(levels))
        used, place = torch.unique(levels[0], return_inverse=True)
        to_rest = [self._rest_of(0, used, self._to_rest)]
        to_rest += [self._to_rest[s] for s in chain[1:]]
        places, component = [place, *levels[1:]], self._component[levels[0]]
        blocks = [
            (s, t, self._between(s, levels[s], t, levels[t]).permute(2, 0, 1))
            for s in chain
            for t in chain[s:]
        ]
        for part in _pieces(len(at), self._row_width(rows)):
            row, group = at[part], combination[part]
            z = [rows.z[j][row] for j in self.factorisation.products.stage_factors]
            cells, owner, values = self._entries(rows, row)
            total = self._of_fixed(rows, row) + self._of_rest(cells, owner, values)
            own = values * (owner == component[group][:, None])
            for s in chain:
                level = places[s][group][:, None]
                for a in range(z[s].shape[1]):
                    across = (to_rest[s][a][level, cells] * own).sum(1)
                    total += 2 * z[s][:, a] * across
            for s, t, block in blocks:
                pairs = z[s][:, :, None] * z[t][:, None, :]
                form = (pairs * block[group]).sum((1, 2))
                total += form if s == t else 2 * form
            out[row] = total

    def _of_fixed(self, rows: Rows, row: Tensor) -> Tensor:
        """``(x - N'z)'C(x - N'z)``."""
        N, C = self._fixed
        left = rows.x[row]
        for part, z, codes in zip(N, rows.z, rows.codes, strict=True):
            for a in range(z.shape[1]):
                left = left - z[row, a, None] * part[a][codes[row]]
        return ((left @ C) * left).sum(1)

    def _of_rest(self, cells: Tensor, owner: Tensor, values: Tensor) -> Tensor:
        """Quadratic form in K_0 of the rest."""
        width = self.factorisation.products.layout.width
        inner, out = self._blocks[1], values.new_zeros(len(values))
        for a in range(values.shape[1]):
            line = owner[:, a] * width + cells[:, a]
            for b in range(a + 1):
                form = values[:, a] * values[:, b] * inner[line, cells[:, b]]
                if a != b:
                    form = 2 * form * (owner[:, a] == owner[:, b])
                out += form
        return out

    def _row_width(self, rows: Rows) -> int:
        return sum(z.shape[1] ** 2 for z in rows.z) + 4 * rows.x.shape[1] + 8

    def _entries(self, rows: Rows, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where in their components of the rest rows have entries, and the entries."""
        products, places, values = self.factorisation.products, [], []
        layout = products.layout
        for number, j in enumerate(products.rest_factors):
            z = rows.z[j][row]
            start = products.offsets[number] + rows.codes[j][row] * z.shape[1]
            places += [layout.place[start + a] for a in range(z.shape[1])]
            values.append(z)
        if not places:
            none = row.new_zeros(len(row), 0)
            return none, none, rows.x.new_zeros(none.shape)
        place = torch.stack(places, dim=1)
        return place % layout.width, place // layout.width, torch.cat(values, dim=1)


def _sparse_rows(
    parts: Sequence, levels: Tensor, place: Tensor, flat: Tensor
) -> Tensor:
    """Rows of sparse matrices times the blocks of their components; (K, L, width)."""
    out, where = [], place.cpu().numpy()
    for part in parts:
        picked = part[levels.cpu().numpy()]
        laid_out = sp.csr_matrix(
            (picked.data, where[picked.indices], picked.indptr),
            (len(levels), len(flat)),
        )
        if flat.is_cpu:
            out.append(torch.from_numpy(laid_out @ flat.numpy()))
        else:
            out.append(torch.from_numpy(laid_out.toarray()).to(flat) @ flat)
    return torch.stack(out)


def _by_level(codes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Order of rows by level, and where each combination of levels starts."""
    order = torch.arange(len(codes[0]), device=codes[0].device)
    for code in reversed(codes):
        order = order[torch.argsort(code[order], stable=True)]
    new = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    new[:1] = True
    for code in codes:
        sorted_code = code[order]
        new[1:] |= sorted_code[1:] != sorted_code[:-1]
    starts = new.nonzero()[:, 0]
    return order, torch.cat([starts, starts.new_tensor([len(order)])])


def _pieces(n: int, width: int) -> Iterator[slice]:
    step = max(1, _ELEMENTS // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


# -- how sure the variances are ------------------------------------------------------


def free_parameters(fitted: Fitted) -> np.ndarray:
    """Parameters that are not held at the edge of their range."""
    return np.flatnonzero(fitted.x > fitted.structure.lower)


def _around(fitted: Fitted, free: np.ndarray) -> Iterator[tuple[float, Point, Point]]:
    """Points on both sides of the optimum along each free parameter."""
    diagonal = np.diag(fitted.point.information)
    lower = fitted.structure.lower
    for j in free:
        x = fitted.x
        widest = _STEP * max(abs(x[j]), 1.0)
        h = min(_STEP / np.sqrt(max(diagonal[j], 1e-300)), widest)
        h = min(h, (x[j] - lower[j]) / 2)
        step = h * (np.arange(len(x)) == j)
        yield 2 * h, fitted.criterion(x + step), fitted.criterion(x - step)


def curvature(fitted: Fitted) -> np.ndarray:
    """Hessian of the criterion in the free parameters.

    By central differences of the exact gradient; two factorisations a parameter.

    Parameters
    ----------
    fitted : Fitted

    Returns
    -------
    ndarray, shape (free, free)
    """
    free = free_parameters(fitted)
    H = np.empty((len(free), len(free)))
    for j, (width, above, below) in enumerate(_around(fitted, free)):
        H[j] = (above.gradient[free] - below.gradient[free]) / width
    return (H + H.T) / 2


def degrees_of_freedom(
    fitted: Fitted, variance: Callable[[Point], np.ndarray]
) -> np.ndarray:
    """Satterthwaite's degrees of freedom of estimated variances.

    With v the variance as a function of the covariance parameters and A their
    asymptotic covariance, ``2 v^2 / (g'Ag)`` (Satterthwaite 1946; Kuznetsova,
    Brockhoff & Christensen 2017). Here g and A are taken along the criterion with
    sigma^2 profiled out, and sigma^2 given the others adds its own ``2 v^2 / df``.

    Parameters
    ----------
    fitted : Fitted
    variance : callable
        From a point of the criterion to the variances at it, proportional to sigma^2
        (unless that is known); shape (n,).

    Returns
    -------
    ndarray, shape (n,)
    """
    free, v = free_parameters(fitted), variance(fitted.point)
    H, slopes = np.empty((len(free), len(free))), np.empty((len(free), len(v)))
    for j, (width, above, below) in enumerate(_around(fitted, free)):
        H[j] = (above.gradient[free] - below.gradient[free]) / width
        slopes[j] = (variance(above) - variance(below)) / width
    spread = _form((H + H.T) / 2, slopes)
    if fitted.criterion.sigma is None:
        spread = spread + v**2 / fitted.criterion.df
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, v**2 / spread, np.inf)


def _form(H: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """``g'H^-1 g`` of every column, without directions of no curvature."""
    if not len(H):
        return np.zeros(slopes.shape[1])
    scale = np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    values, vectors = np.linalg.eigh(H / scale[:, None] / scale)
    kept = values > _FLAT * max(values.max(), 0.0)
    onto = vectors[:, kept].T @ (slopes / scale[:, None])
    return (onto**2 / values[kept, None]).sum(0)
