"""A model matrix kept as its columns' sources and worked through in blocks of rows.

The matrix of a million rows is never formed. A numeric column is a view of the
caller's data, a factor is its integer codes with a small table that says how each
level is coded. A block of rows is laid out as ``(columns, rows)``, so that filling a
column is one contiguous copy and a Gram matrix one product of a thin matrix with its
transpose; factors with many levels enter sums through their codes and never as dummy
columns. Sums are made in *raw* coordinates (dense columns, then one slot for each
level) and brought to the model's columns once, at the end, by the coding matrix T:
``X'WX = T' (raw sum) T``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .compute import Compute, sharing

__all__ = ["Block", "Coded", "Column", "ModelMatrix", "Source", "intercept_matrix"]

#: Factors with more coded columns than this stay codes; below, dummies are cheaper.
DENSE_LEVELS = 16
# Products up to this size, (columns x columns) and in all, are OpenBLAS's small ones:
# measured, see docs/performance.md.
_SMALL_PRODUCT = 1024
_SMALL_FLOPS = 1 << 18


@dataclass(frozen=True, eq=False)
class Source:
    """A column of the caller's data, and which of its rows are used.

    Attributes
    ----------
    array : ndarray, shape (all rows,)
    rows : ndarray of int, optional
        Rows kept, where some were dropped; all when None.
    """

    array: np.ndarray
    rows: np.ndarray | None = None

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.array[part] if self.rows is None else self.array[self.rows[part]]


@dataclass(frozen=True, eq=False)
class Column:
    """A column held dense in a block: product of numeric sources and a level's value.

    Attributes
    ----------
    numerics : tuple of Source
        Multiplied together; ones when empty.
    codes : Source, optional
        Level of each row, with `values`.
    values : ndarray, shape (levels,), optional
        Value of this column at each level.
    """

    numerics: tuple[Source, ...] = ()
    codes: Source | None = None
    values: np.ndarray | None = None

    def fill(self, out: np.ndarray, part: slice) -> None:
        """Write rows `part` of the column into `out`."""
        if self.codes is not None:
            values = self.values.astype(out.dtype, copy=False)
            np.take(values, self.codes[part], out=out)
        elif self.numerics:
            np.copyto(out, self.numerics[0][part], casting="unsafe")
        else:
            out.fill(1.0)
        for source in self.numerics[0 if self.codes is not None else 1 :]:
            np.multiply(out, source[part], out=out)


@dataclass(frozen=True, eq=False)
class Coded:
    """A factor with many levels, possibly times a numeric variable.

    Attributes
    ----------
    codes : Source
        Integer level of each row.
    table : ndarray, shape (levels, columns)
        How each level is coded.
    numerics : tuple of Source
        Multiplied into the row; ones when empty.
    """

    codes: Source
    table: np.ndarray
    numerics: tuple[Source, ...] = ()


@dataclass(eq=False)
class Block:
    """Rows of a model matrix: dense columns laid flat, and codes.

    Attributes
    ----------
    dense : Tensor, shape (dense columns, rows)
    codes : list of Tensor, each (rows,)
    factors : list of Tensor or None, each (rows,)
        Numeric multiplier of each coded factor.
    matrix : ModelMatrix
    scratch : Tensor, shape (dense columns, rows)
    """

    dense: Tensor
    codes: list[Tensor]
    factors: list[Tensor | None]
    matrix: ModelMatrix
    scratch: Tensor

    def eta(self, theta: Tensor) -> Tensor:
        """Linear predictor of raw coefficients `theta`; shape (rows,)."""
        out = theta[: self.dense.shape[0]] @ self.dense
        for start, codes, factor in self._coded():
            part = theta[start:].index_select(0, codes)
            out = out.add_(part if factor is None else part.mul_(factor))
        return out

    def moments(self, u: Tensor) -> Tensor:
        """Raw ``X'u``."""
        out = u.new_zeros(self.matrix.raw)
        wide = self.dense.shape[0]
        torch.mv(self.dense, u, out=out[:wide])
        for start, codes, factor in self._coded():
            out.index_add_(0, codes + start, u if factor is None else u * factor)
        return out

    def add_cross(self, total: Tensor, other: Block, w: Tensor | None) -> None:
        """Add the raw ``X' diag(w) Z`` of this block and another to `total`.

        With ``other is self`` only the part on and above the diagonal of blocks is
        added; `ModelMatrix.symmetric` completes it.
        """
        rows, same = self.dense.shape[1], other is self
        wide, broad = self.dense.shape[0], other.dense.shape[0]
        left = self.scratch[:, :rows]
        left = (
            left.copy_(self.dense) if w is None else torch.mul(self.dense, w, out=left)
        )
        _add_product(total[:wide, :broad], left, other.dense)
        for start, codes, factor in other._coded():
            size = other.matrix.levels_at(start)
            values = (left if factor is None else left * factor).to(total.dtype)
            total[:wide, start : start + size].index_add_(1, codes, values)
        flat, width = total.view(-1), total.shape[1]
        for start, codes, factor in self._coded():
            size = self.matrix.levels_at(start)
            weight = _times(w, factor)
            if not same:
                values = other.dense if weight is None else other.dense * weight
                values = values.T.to(total.dtype)
                total[start : start + size, :broad].index_add_(0, codes, values)
            for start2, codes2, factor2 in other._coded():
                if same and start2 < start:
                    continue
                value = _times(weight, factor2)
                if value is None:
                    value = total.new_ones(len(codes))
                flat.index_add_(
                    0,
                    (codes.long() + start) * width + codes2 + start2,
                    value.to(total.dtype),
                )

    def add_group_sums(self, total: Tensor, groups: Tensor, u: Tensor) -> None:
        """Add raw ``sum of u_i x_i`` over the rows of each group to `total`.

        `total` has shape (raw, groups): along a row torch adds three times as fast.
        """
        rows, wide = self.dense.shape[1], self.dense.shape[0]
        scaled = torch.mul(self.dense, u, out=self.scratch[:, :rows])
        total[:wide].index_add_(1, groups, scaled.to(total.dtype))
        flat, width = total.view(-1), total.shape[1]
        for start, codes, factor in self._coded():
            value = u if factor is None else u * factor
            at = (codes.long() + start) * width + groups
            flat.index_add_(0, at, value.to(total.dtype))

    def bilinear(self, middle: Tensor, other: Block) -> Tensor:
        """``x_i' M z_i`` for each row, `middle` the raw matrix M."""
        wide, broad = self.dense.shape[0], other.dense.shape[0]
        out = ((middle[:wide, :broad].T @ self.dense) * other.dense).sum(0)
        for start, codes, factor in other._coded():
            size = other.matrix.levels_at(start)
            picked = middle[:wide, start : start + size].index_select(1, codes)
            out += _times((picked * self.dense).sum(0), factor)
        for start, codes, factor in self._coded():
            size = self.matrix.levels_at(start)
            picked = middle[start : start + size, :broad].index_select(0, codes)
            out += _times((picked.T * other.dense).sum(0), factor)
            for start2, codes2, factor2 in other._coded():
                picked = middle[codes + start, codes2 + start2]
                out += _times(_times(picked, factor), factor2)
        return out

    def columns(self) -> Tensor:
        """Model columns of these rows, dense; shape (rows, k)."""
        matrix = self.matrix
        out = self.dense.new_empty(self.dense.shape[1], matrix.k)
        out[:, matrix.dense_at] = self.dense.T
        for number, (_, codes, factor) in enumerate(self._coded()):
            table = torch.as_tensor(matrix.coded[number].table).to(out)
            part = table.index_select(0, codes)
            if factor is not None:
                part = part * factor[:, None]
            out[:, matrix.coded_at[number]] = part
        return out

    def _coded(self) -> list[tuple[int, Tensor, Tensor | None]]:
        return list(zip(self.matrix.starts, self.codes, self.factors, strict=True))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right.T`` of thin matrices laid flat.

    For few columns OpenBLAS's product of small matrices takes half the time of any
    other here. It is used up to a size at which that library still works in the
    thread that called it, and only between different arrays: numpy would turn the
    product of an array with its own transpose into a slower routine. Workers that
    share the machine take one long operation instead of many short ones.
    """
    wide, rows = left.shape
    small = wide * right.shape[0] <= _SMALL_PRODUCT and not sharing()
    if small and left.is_cpu and left.dtype == total.dtype == torch.float64:
        one, other, into = left.numpy(), right.numpy(), total.numpy()
        step = _SMALL_FLOPS // max(1, wide * right.shape[0])
        for start in range(0, rows, step):
            part = slice(start, start + step)
            into += one[:, part] @ other[:, part].T
    elif left.dtype == total.dtype:
        total.addmm_(left, right.T)
    else:
        total += left @ right.T


def _times(value: Tensor | None, factor: Tensor | None) -> Tensor | None:
    if value is None or factor is None:
        return factor if value is None else value
    return value * factor


@dataclass(eq=False)
class ModelMatrix:
    """A matrix of `n` rows and named columns, given by the sources of its columns.

    Attributes
    ----------
    n : int
        Rows.
    names : tuple of str
        Columns.
    dense : tuple of Column
    dense_at : list of int
        Place of each dense column among `names`.
    coded : tuple of Coded
    coded_at : list of list of int
        Places of each factor's columns among `names`.
    """

    n: int
    names: tuple[str, ...]
    dense: tuple[Column, ...]
    dense_at: list[int]
    coded: tuple[Coded, ...] = ()
    coded_at: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts, place = [], len(self.dense)
        for piece in self.coded:
            self.starts.append(place)
            place += piece.table.shape[0]
        self.raw = place
        self._held: dict[tuple, tuple] = {}

    @property
    def k(self) -> int:
        """Number of columns."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.n, self.k

    def levels_at(self, start: int) -> int:
        """Levels of the coded factor whose raw slots begin at `start`."""
        return self.coded[self.starts.index(start)].table.shape[0]

    @cached_property
    def coding(self) -> Tensor:
        """T, shape (raw, k): raw coefficients are ``T @ beta``."""
        out = torch.zeros(self.raw, self.k, dtype=torch.float64)
        out[torch.arange(len(self.dense)), self.dense_at] = 1.0
        for start, piece, at in zip(
            self.starts, self.coded, self.coded_at, strict=True
        ):
            table = torch.as_tensor(piece.table, dtype=torch.float64)
            out[start : start + len(table), at] = table
        return out

    @property
    def plain(self) -> bool:
        """Whether raw coordinates are the model's columns, in their order."""
        return not self.coded and self.dense_at == list(range(self.k))

    def to_raw(self, beta: Tensor) -> Tensor:
        """Raw coefficients of the model's coefficients."""
        return beta if self.plain else self.coding.to(beta) @ beta

    def from_raw(self, moments: Tensor) -> Tensor:
        """Bring raw sums ``X'u`` (last axis) to the model's columns."""
        return moments if self.plain else moments @ self.coding.to(moments)

    def sandwich(self, total: Tensor, other: ModelMatrix) -> Tensor:
        """Bring a raw cross-product to the two matrices' columns."""
        total = total if other.plain else total @ other.coding.to(total)
        return total if self.plain else self.coding.to(total).T @ total

    def symmetric(self, total: Tensor) -> Tensor:
        """Complete what `Block.add_cross` left out when a block met itself."""
        if not self.coded:
            return total
        out = total.clone()
        edges = [0, *self.starts, self.raw]
        for i, j in pairwise(edges):
            out[j:, i:j] = total[i:j, j:].T
        return out

    def select(self, keep: list[int]) -> ModelMatrix:
        """Return the matrix of some of the columns, in their order."""
        place = {old: new for new, old in enumerate(keep)}
        dense = [
            (c, place[a])
            for c, a in zip(self.dense, self.dense_at, strict=True)
            if a in place
        ]
        coded, coded_at = [], []
        for piece, at in zip(self.coded, self.coded_at, strict=True):
            kept = [j for j, a in enumerate(at) if a in place]
            if kept:
                coded.append(Coded(piece.codes, piece.table[:, kept], piece.numerics))
                coded_at.append([place[at[j]] for j in kept])
        return ModelMatrix(
            self.n,
            tuple(self.names[j] for j in keep),
            tuple(c for c, _ in dense),
            [a for _, a in dense],
            tuple(coded),
            coded_at,
        )

    def every(self, step: int) -> ModelMatrix:
        """Return the matrix of every `step`-th row, as views."""

        def thin(source: Source) -> Source:
            if source.rows is None:
                return Source(source.array[::step])
            return Source(source.array, source.rows[::step])

        dense = tuple(
            Column(
                tuple(map(thin, c.numerics)),
                None if c.codes is None else thin(c.codes),
                c.values,
            )
            for c in self.dense
        )
        coded = tuple(
            Coded(thin(c.codes), c.table, tuple(map(thin, c.numerics)))
            for c in self.coded
        )
        n = -(-self.n // step)
        return ModelMatrix(n, self.names, dense, self.dense_at, coded, self.coded_at)

    def scratch(self, rows: int, compute: Compute) -> Scratch:
        """Memory for one worker's blocks of up to `rows` rows."""
        return Scratch(self, rows, compute)

    def extended(self, start: int, stop: int) -> np.ndarray:
        """Rows in the widest format of the machine; shape (rows, k).

        Products of sources, such as powers, are not rounded to float64 on the way.
        """
        part = slice(start, stop)
        out = np.empty((self.k, stop - start), dtype=np.longdouble)
        for column, at in zip(self.dense, self.dense_at, strict=True):
            column.fill(out[at], part)
        for piece, at in zip(self.coded, self.coded_at, strict=True):
            factor = np.empty(stop - start, dtype=np.longdouble)
            Column(piece.numerics).fill(factor, part)
            out[at] = piece.table[piece.codes[part]].T * factor
        return out.T

    def to_dense(self, compute: Compute | None = None) -> Tensor:
        """Return the whole matrix, shape (n, k)."""
        compute = compute or Compute("cpu")
        if not self.coded and not compute.on_gpu:
            # As below, without what a block needs besides.
            host = np.empty((self.k, self.n), dtype=_numpy(compute.dtype))
            for column, at in zip(self.dense, self.dense_at, strict=True):
                column.fill(host[at], slice(0, self.n))
            return torch.from_numpy(np.ascontiguousarray(host.T))
        space = self.scratch(max(self.n, 1), compute)
        return space.block(0, self.n).columns()


class Scratch:
    """One worker's reusable memory for blocks of a `ModelMatrix`.

    Allocating afresh would cost more in page faults than the arithmetic.
    """

    def __init__(self, matrix: ModelMatrix, rows: int, compute: Compute) -> None:
        wide = len(matrix.dense)
        self.matrix, self.compute = matrix, compute
        self.other = torch.empty(wide, rows, dtype=compute.dtype, device=compute.device)
        self.held = _hold(matrix, compute)
        if self.held is None:
            self.host = np.empty((wide, rows), dtype=_numpy(compute.dtype))

    def block(self, start: int, stop: int) -> Block:
        """Rows `start` to `stop`; valid until the next call."""
        rows = stop - start
        scratch = self.other[:, :rows]
        if self.held is not None:
            dense, codes, factors = self.held
            return Block(
                dense[:, start:stop],
                [c[start:stop] for c in codes],
                [f if f is None else f[start:stop] for f in factors],
                self.matrix,
                scratch,
            )
        host = self.host[:, :rows]
        parts = _gather(self.matrix, host, slice(start, stop), self.compute)
        return Block(*parts, self.matrix, scratch)


def _gather(
    matrix: ModelMatrix, host: np.ndarray, part: slice, compute: Compute
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    for row, column in zip(host, matrix.dense, strict=True):
        column.fill(row, part)
    codes, factors = [], []
    for piece in matrix.coded:
        codes.append(torch.tensor(piece.codes[part]).to(compute.device).long())
        factor = None
        if piece.numerics:
            values = np.empty(host.shape[1])
            Column(piece.numerics).fill(values, part)
            factor = compute.tensor(values)
        factors.append(factor)
    return torch.from_numpy(host).to(compute.device), codes, factors


def _hold(matrix: ModelMatrix, compute: Compute) -> tuple | None:
    """Keep a small matrix whole on the device, so that it is laid out once."""
    key = (compute.device, compute.dtype)
    wide = len(matrix.dense) + len(matrix.coded)
    if key not in matrix._held and compute.resident(matrix.n * wide):
        host = np.empty((len(matrix.dense), matrix.n), dtype=_numpy(compute.dtype))
        matrix._held[key] = _gather(matrix, host, slice(0, matrix.n), compute)
    return matrix._held.get(key)


def _numpy(dtype: torch.dtype) -> type:
    return np.float64 if dtype == torch.float64 else np.float32


def intercept_matrix(n: int, name: str = "Intercept") -> ModelMatrix:
    """Return a matrix of one column of ones."""
    return ModelMatrix(n, (name,), (Column(),), [0])
