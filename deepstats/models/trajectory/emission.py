"""The log-density of units in each group, and what an M-step needs of it.

Three ways to the same numbers. Where rows repeat, cells (`GridEmission`); for normal
responses, cross-products of each unit (`quadratic.QuadraticEmission`); else row by row
(`RowEmission`). Tables keep units last: (K, S, B) for K groups, S sets of parameters
worked on at once, B units of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ...batched import solves
from .cells import Incidence, selected_rows
from .densities import Kernel, Observed
from .slots import Slots

__all__ = [
    "Emission",
    "GridEmission",
    "Position",
    "RowEmission",
    "Scratch",
    "free_step",
    "own_steps",
    "unit_sums",
]

#: Longest change of a coefficient of a log or logit predictor in one step: columns
#: have mean square one, so this is about the change of the predictor.
_LONGEST = 3.0


@dataclass(frozen=True, eq=False)
class Position:
    """A point at which an emission is asked: parameters, and tables made from them.

    Attributes
    ----------
    free : Tensor, shape (S, P)
    coefficients : Tensor, shape (K, S, C)
    terms : Tensor or None, shape (K, S, features)
        Log-density of every feature or cell, where units are sums of these.
    """

    free: Tensor
    coefficients: Tensor
    terms: Tensor | None = None


class Scratch:
    """What one worker gathers of an emission over its blocks of units."""

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.sums: tuple[Tensor, ...] = ()
        self.block: Any = None

    def add(self, *parts: Tensor) -> None:
        """Add to the sums."""
        if self.sums:
            for total, part in zip(self.sums, parts, strict=True):
                total += part
        else:
            self.sums = parts

    def merge(self, other: Scratch) -> None:
        """Add another worker's sums."""
        if other.sums:
            self.add(*other.sums)


class Emission(Protocol):
    """Responses of units given their group."""

    slots: Slots
    lower: Tensor
    #: Parameters whose least value is that of a standard deviation; (P,).
    floors: Tensor
    #: Whether sums over units serve any number of M-steps at the same weights.
    reusable: bool

    @property
    def rows_per_unit(self) -> float:
        """Numbers worked on for a unit, group and set of parameters."""

    def at(self, free: Tensor) -> Position:
        """Prepare tables at free parameters (S, P)."""

    def table(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Log-density of units in each group; (K, S, B)."""

    def constant(self, block: slice) -> Tensor | None:
        """Return the part of the log-density that no parameter changes; (B,)."""

    def collect(
        self, at: Position, block: slice, weights: Tensor, scratch: Scratch
    ) -> None:
        """Gather what an M-step, or `curvature`, needs; weights (K, S, B)."""

    def improve(self, at: Position, scratch: Scratch, inner: int = ...) -> Tensor:
        """Raise the expected log-density; returns free parameters (S, P)."""

    def scores(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Differentiate `table` in the coefficients; (K, S, C, B)."""

    def curvature(self, at: Position, scratch: Scratch) -> Tensor:
        """Minus the second derivatives of what was collected; (K, S, C, C)."""

    def begin(self, count: int) -> Tensor:
        """Parameters of one group without trends; (S, P)."""

    def select(self, units: Tensor) -> Emission:
        """Return the emission of some units."""

    def with_groups(self, groups: int) -> Emission:
        """Return the emission of the first groups only."""


def free_step(
    slots: Slots, gradient: Tensor, curvature: Tensor, longest: Tensor
) -> Tensor:
    """Newton step in the free parameters from derivatives in the coefficients.

    Parameters
    ----------
    slots : Slots
    gradient : Tensor, shape (K, S, C)
    curvature : Tensor, shape (K, S, C, C)
    longest : Tensor, shape (P,)
        Largest change of each parameter.

    Returns
    -------
    Tensor, shape (S, P)
    """
    if slots.all_separate:
        step = slots.gather(own_steps(gradient, curvature))
        return step.clamp(-longest, longest)
    g = slots.gather(gradient)
    H = slots.gather_square(curvature)
    return own_steps(g[None], H[None])[0].clamp(-longest, longest)


def own_steps(gradient: Tensor, curvature: Tensor) -> Tensor:
    """Newton steps (K, S, C) of coefficients that no two groups share."""
    K, S, C = gradient.shape
    H = curvature.clone()
    # A group that nobody belongs to leaves its parameters where they are.
    d = H.diagonal(dim1=2, dim2=3)
    d.add_(1e-10 * d.abs().amax(dim=(0, 2))[:, None] + 1e-100)
    step = solves(H.reshape(K * S, C, C), gradient.reshape(K * S, C))
    return torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0).reshape(K, S, C)


@dataclass(frozen=True, eq=False)
class _Linear:
    """Linear predictors of cells or rows.

    Attributes
    ----------
    kernel : Kernel
    X : tuple of Tensor, each (cells, p_j)
        In the internal basis.
    offsets : tuple of Tensor or None, each (cells,)
    data : Observed or None
    """

    kernel: Kernel
    X: tuple[Tensor, ...]
    offsets: tuple[Tensor | None, ...]
    data: Observed | None

    def etas(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        """Linear predictors (K, S, cells), or (K, S, 1) where all cells have one."""
        parts = torch.split(coefficients, [x.shape[1] for x in self.X], dim=2)
        found = []
        for x, b, offset in zip(self.X, parts, self.offsets, strict=True):
            one = x.shape[1] == 1 and x.stride(0) == 0
            eta = b * x[0, 0] if one else b @ x.T
            found.append(eta if offset is None else eta + offset)
        return tuple(found)

    def gradient(self, first: Sequence[Tensor]) -> Tensor:
        """Return derivatives in the coefficients: (K, S, C)."""
        return torch.cat(
            [
                f @ x if _wide(f, x) else _alone(f, x)
                for f, x in zip(first, self.X, strict=True)
            ],
            dim=2,
        )

    def square(self, second: dict[tuple[int, int], Tensor]) -> Tensor:
        """Products ``X_j' diag X_l`` of every pair of predictors: (K, S, C, C)."""
        widths = [x.shape[1] for x in self.X]
        some = next(iter(second.values()))
        K, S = some.shape[:2]
        total = some.new_zeros(K, S, sum(widths), sum(widths))
        starts = [sum(widths[:j]) for j in range(len(widths))]
        for (j, i), w in second.items():
            a = slice(starts[j], starts[j] + widths[j])
            b = slice(starts[i], starts[i] + widths[i])
            part = _square(w, self.X[j], self.X[i])
            total[:, :, a, b] += part
            if j != i:
                total[:, :, b, a] += part.transpose(2, 3)
        return total


def _wide(f: Tensor, x: Tensor) -> bool:
    return x.stride(0) != 0 and f.shape[-1] == len(x)


def _alone(f: Tensor, x: Tensor) -> Tensor:
    """Sum over cells times a column that is one number."""
    if f.shape[-1] != len(x):
        f = f.expand(*f.shape[:-1], len(x))
    return f @ x if x.stride(0) != 0 else f.sum(-1, keepdim=True) * x[0]


def _square(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if w.shape[-1] != len(a):
        w = w.expand(*w.shape[:-1], len(a))
    if a.stride(0) == 0 and b.stride(0) == 0:
        return w.sum(-1)[..., None, None] * (a[0][:, None] * b[0])
    if a.stride(0) == 0:
        return ((w @ b) * a[0, 0])[:, :, None, :]
    if b.stride(0) == 0:
        return ((w @ a) * b[0, 0])[..., None]
    q = a.shape[1]
    products = (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
    return (w @ products).reshape(*w.shape[:-1], q, -1)


class _Summed:
    """What emissions share whose units are sums over features or cells."""

    incidence: Incidence
    slots: Slots
    normaliser: Tensor | None
    reusable = True

    @property
    def rows_per_unit(self) -> float:
        """Numbers worked on for a unit, group and set of parameters."""
        return 3.0

    def constant(self, block: slice) -> Tensor | None:
        """Return the part of the log-density that no parameter changes; (B,)."""
        return None if self.normaliser is None else self.normaliser[..., block]

    def table(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Log-density of units in each group; (K, S, B)."""
        assert at.terms is not None
        return self.incidence.apply(at.terms, block)

    def collect(
        self, at: Position, block: slice, weights: Tensor, scratch: Scratch
    ) -> None:
        """Gather the weights of every group on features or cells."""
        scratch.add(self.incidence.adjoint(weights, block))

    def score_terms(self, at: Position) -> Tensor:
        """Differentiate `Position.terms` in the coefficients; (K, C, S, features)."""
        raise NotImplementedError

    def scores(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Differentiate `table` in the coefficients; (K, S, C, B)."""
        if scratch.block is None:
            scratch.block = self.score_terms(at)
        terms = scratch.block
        K, C, S, width = terms.shape
        found = self.incidence.apply(terms.reshape(K * C, S, width), block)
        return found.reshape(K, C, S, -1).transpose(1, 2)


class _Predicted:
    """What emissions share whose groups have linear predictors."""

    linear: _Linear
    slots: Slots
    first: tuple[float, ...]
    longest: Tensor
    lower: Tensor
    floors: Tensor

    def begin(self, count: int) -> Tensor:
        """Parameters of one group without trends."""
        return beginning(self.slots, self.linear.X, self.first, count)

    def with_groups(self, groups: int) -> Self:
        """Return the emission of the first groups only."""
        slots, kept = self.slots.first(groups)
        return replace(
            self, slots=slots, longest=self.longest[kept], lower=self.lower[kept],
            floors=self.floors[kept],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class GridEmission(_Predicted, _Summed):
    """Units whose rows are among a few cells.

    Attributes
    ----------
    linear : _Linear
        Of the cells.
    incidence : Dense or Sparse
        Features of units in cells, side by side.
    slots : Slots
    normaliser : Tensor or None, shape (N,) or (S, N)
    first : tuple of float
        Linear predictors of a group without trends.
    longest, lower : Tensor, shape (P,)
        Longest step and least value of each parameter.
    floors : Tensor of bool, shape (P,)
        Parameters whose least value is that of a standard deviation.
    """

    linear: _Linear
    incidence: Incidence
    slots: Slots
    normaliser: Tensor | None
    first: tuple[float, ...]
    longest: Tensor
    lower: Tensor
    floors: Tensor

    def at(self, free: Tensor) -> Position:
        """Prepare tables at free parameters (S, P)."""
        b = self.slots.spread(free)
        etas, kernel = self.linear.etas(b), self.linear.kernel
        terms = kernel.terms(etas, self.linear.data)
        U = len(self.linear.X[0])
        terms = [t.expand(*b.shape[:2], U) for t in terms]
        joined = terms[0] if len(terms) == 1 else torch.cat(terms, dim=2)
        return Position(free, b, joined.contiguous())

    def improve(self, at: Position, scratch: Scratch, inner: int = 1) -> Tensor:
        """Take Newton steps on the expected log-density."""
        free, kernel, linear = at.free, self.linear.kernel, self.linear
        weights = self._weights(scratch)
        for _ in range(inner):
            etas = linear.etas(self.slots.spread(free))
            first, second = kernel.scoring(etas, weights, linear.data)
            step = free_step(
                self.slots, linear.gradient(first), linear.square(second), self.longest
            )
            free = torch.maximum(free + step, self.lower)
        return free

    def _weights(self, scratch: Scratch) -> tuple[Tensor, ...]:
        (joined,) = scratch.sums
        return torch.split(joined, len(self.linear.X[0]), dim=2)

    def score_terms(self, at: Position) -> Tensor:
        """Differentiate the cells' terms in the coefficients."""
        linear, U = self.linear, len(self.linear.X[0])
        etas = linear.etas(at.coefficients)
        K, S = at.coefficients.shape[:2]
        parts = []
        for of_term in linear.kernel.slopes(etas, linear.data):
            columns = [
                slope.expand(K, S, U)[:, None] * x.T[:, None, :]
                for slope, x in zip(of_term, linear.X, strict=True)
            ]
            parts.append(torch.cat(columns, dim=1))
        return torch.cat(parts, dim=3)

    def curvature(self, at: Position, scratch: Scratch) -> Tensor:
        """Minus the second derivatives of what was collected."""
        etas = self.linear.etas(at.coefficients)
        _, second = self.linear.kernel.derivatives(
            etas, self._weights(scratch), self.linear.data
        )
        return self.linear.square(second)

    def select(self, units: Tensor) -> GridEmission:
        """Return the emission of some units."""
        normaliser = self.normaliser
        return replace(
            self,
            incidence=self.incidence.select(units),
            normaliser=None if normaliser is None else normaliser[..., units],
        )


def beginning(
    slots: Slots, X: Sequence[Tensor], first: Sequence[float], count: int
) -> Tensor:
    """Free parameters at which every predictor is constant, where it can be; (S, P)."""
    free = torch.zeros(slots.count, dtype=X[0].dtype, device=X[0].device)
    start = 0
    for x, value in zip(X, first, strict=True):
        if x.stride(0) == 0 or bool((x[:, 0] == x[0, 0]).all()):
            at = slots.index[:, start]
            free[at[at >= 0]] = value / x[0, 0]
        start += x.shape[1]
    return free.expand(count, -1).clone()


@dataclass(frozen=True, eq=False)
class RowEmission(_Predicted):
    """Units by their rows: for times and responses that hardly repeat.

    Attributes
    ----------
    linear : _Linear
        Of the rows, sorted by unit.
    features : Tensor, shape (M, n)
    start : Tensor of int, shape (N + 1,)
        Where each unit's rows begin.
    slots, normaliser, first, longest, lower, floors
        As in `GridEmission`.
    """

    linear: _Linear
    features: Tensor
    start: Tensor
    slots: Slots
    normaliser: Tensor | None
    first: tuple[float, ...]
    longest: Tensor
    lower: Tensor
    floors: Tensor
    reusable = False

    @property
    def rows_per_unit(self) -> float:
        """Numbers worked on for a unit, group and set of parameters."""
        rows = len(self.linear.X[0]) / max(len(self.start) - 1, 1)
        return 4.0 * rows * (len(self.linear.X) + len(self.features))

    def constant(self, block: slice) -> Tensor | None:
        """Return the part of the log-density that no parameter changes; (B,)."""
        return None if self.normaliser is None else self.normaliser[block]

    def at(self, free: Tensor) -> Position:
        """Prepare at free parameters (S, P)."""
        return Position(free, self.slots.spread(free))

    def _rows(self, at: Position, block: slice, scratch: Scratch) -> Any:
        """Linear part, predictors and features of a block's rows."""
        if scratch.block is not None and scratch.block[0] == (block, id(at)):
            return scratch.block[1]
        low, high = int(self.start[block.start]), int(self.start[block.stop])
        part = slice(low, high)
        linear = _Linear(
            self.linear.kernel,
            tuple(x[part] for x in self.linear.X),
            tuple(None if o is None else o[part] for o in self.linear.offsets),
            _observed_rows(self.linear.data, part),
        )
        start = self.start[block.start : block.stop + 1] - low
        found = (
            linear,
            linear.etas(at.coefficients),
            tuple(self.features[:, part]),
            start,
        )
        scratch.block = ((block, id(at)), found)
        return found

    def table(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Log-density of units in each group; (K, S, B)."""
        linear, etas, features, start = self._rows(at, block, scratch)
        terms = linear.kernel.terms(etas, linear.data)
        total: Tensor | None = None
        for phi, g in zip(features, terms, strict=True):
            part = g * phi
            total = part if total is None else total + part
        assert total is not None
        return unit_sums(
            total.expand(*at.coefficients.shape[:2], len(features[0])), start
        )

    def collect(
        self, at: Position, block: slice, weights: Tensor, scratch: Scratch
    ) -> None:
        """Gather gradient and curvature of the expected log-density."""
        linear, etas, features, start = self._rows(at, block, scratch)
        by_row = _to_rows(weights, start)
        given = tuple(by_row * phi for phi in features)
        kernel = linear.kernel
        derive = kernel.derivatives if scratch.exact else kernel.scoring
        first, second = derive(etas, given, linear.data)
        scratch.add(linear.gradient(first), linear.square(second))

    def improve(self, at: Position, scratch: Scratch, inner: int = 1) -> Tensor:
        """Take one Newton step on the expected log-density."""
        gradient, square = scratch.sums
        step = free_step(self.slots, gradient, square, self.longest)
        return torch.maximum(at.free + step, self.lower)

    def scores(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Differentiate `table` in the coefficients; (K, S, C, B)."""
        linear, etas, features, start = self._rows(at, block, scratch)
        slopes = linear.kernel.slopes(etas, linear.data)
        K, S = at.coefficients.shape[:2]
        n = len(features[0])
        found = []
        for j, x in enumerate(linear.X):
            total = sum(slopes[m][j] * phi for m, phi in enumerate(features))
            total = torch.as_tensor(total).expand(K, S, n)
            found += [unit_sums(total * x[:, c], start) for c in range(x.shape[1])]
        return torch.stack(found, dim=2)

    def curvature(self, at: Position, scratch: Scratch) -> Tensor:
        """Minus the second derivatives of what was collected."""
        return scratch.sums[1]

    def select(self, units: Tensor) -> RowEmission:
        """Return the emission of some units."""
        rows, start = selected_rows(self.start, units)
        linear = _Linear(
            self.linear.kernel,
            tuple(_taken(x, rows) for x in self.linear.X),
            tuple(None if o is None else o[rows] for o in self.linear.offsets),
            _observed_rows(self.linear.data, rows),
        )
        normaliser = None if self.normaliser is None else self.normaliser[units]
        return replace(
            self, linear=linear, features=self.features[:, rows], start=start,
            normaliser=normaliser,
        )  # fmt: skip


def _observed_rows(data: Observed | None, rows: Any) -> Observed | None:
    if data is None:
        return None
    parts = (data.y, data.size, data.lower, data.upper)
    return Observed(*(None if v is None else v[rows] for v in parts))


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix; a column of one number stays one number."""
    return x[:1].expand(len(rows), x.shape[1]) if x.stride(0) == 0 else x[rows]


def _even(start: Tensor) -> int:
    """Rows of each unit where all have as many; else zero."""
    rows = int(start[1]) - int(start[0])
    n = int(start[-1])
    even = rows > 0 and n == rows * (len(start) - 1)
    return rows if even and bool((start.diff() == rows).all()) else 0


def unit_sums(rows: Tensor, start: Tensor) -> Tensor:
    """Sum rows (K, S, n) over each unit: (K, S, B)."""
    K, S, n = rows.shape
    if each := _even(start):
        return rows.reshape(K, S, -1, each).sum(-1)
    table = rows.reshape(K * S, n).T.contiguous()
    index = torch.arange(n, device=rows.device)
    summed = torch.nn.functional.embedding_bag(index, table, start[:-1], mode="sum")
    return summed.T.reshape(K, S, -1)


def _to_rows(units: Tensor, start: Tensor) -> Tensor:
    """Repeat values (K, S, B) of units for each of their rows: (K, S, n)."""
    if each := _even(start):
        K, S, B = units.shape
        return units[..., None].expand(K, S, B, each).reshape(K, S, B * each)
    return torch.repeat_interleave(units, start.diff(), dim=2)
