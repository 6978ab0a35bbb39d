"""Rows of the data as a few distinct cells, and how units are made of them.

Where times repeat (waves, ages in years), thousands of rows are a handful of distinct
design rows. The log-density is then computed once for each cell and group, and that of
a unit is a sum over its cells: a product of matrices, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = ["Dense", "Incidence", "Sparse", "incidence", "rows_of_units", "unique_rows"]

#: Rows looked at before the search for repeated ones is worth its time.
_LOOK = 5_000
#: A dense incidence may hold this many times the numbers of the rows ...
_FILL = 4
#: ... or this many numbers, which cost nothing.
_SMALL = 100_000


def unique_rows(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Give the distinct rows of several columns numbers.

    Parameters
    ----------
    columns : sequence of Tensor, each of shape (n,)

    Returns
    -------
    tuple of Tensor, or None
        Number of the distinct row of each row (n,), and a row that shows it (cells,);
        None where most rows are distinct.
    """
    arrays = [c.cpu().numpy() for c in columns if not _constant(c)]
    n = len(columns[0])
    if not arrays:
        return torch.zeros(n, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    look = slice(0, None, max(1, n // _LOOK))
    codes, first = _hashed([a[look] for a in arrays])
    if len(first) > max(len(codes) // 2, 8):
        return None
    codes, first = _hashed(arrays)
    if len(first) > max(n // 4, 8):
        return None
    return torch.from_numpy(codes), torch.from_numpy(first)


def _constant(column: Tensor) -> bool:
    if column.stride(0) == 0:
        return True
    return bool((column == column[0]).all())


def _hashed(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows by one random sum of the columns, checked against the columns."""
    weights = np.random.default_rng(0).uniform(1, 2, len(arrays))
    total = sum(w * a for w, a in zip(weights, arrays, strict=True))
    codes, first = _codes(total)
    if all(np.array_equal(a[first][codes], a) for a in arrays):
        return codes, first
    codes = np.zeros(len(total), dtype=np.int64)
    for array in arrays:
        more, _ = _codes(array)
        codes, first = _codes(codes * (int(more.max()) + 1) + more)
    return codes, first


def _codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, _ = pd.factorize(values)
    codes = codes.astype(np.int64)
    first = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return codes, first


def rows_of_units(unit: Tensor, units: int) -> Tensor:
    """Return where each unit's rows begin, and the end; (units + 1,)."""
    counts = torch.bincount(unit, minlength=units)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@dataclass(frozen=True, eq=False)
class Dense:
    """Features of every unit in every cell, as one matrix.

    Attributes
    ----------
    matrix : Tensor, shape (N, M * U) or (S, N, M * U)
        With a leading axis every replicate has data of its own.
    """

    matrix: Tensor

    def apply(self, terms: Tensor, block: slice) -> Tensor:
        """Sum terms (K, S, M * U) over the cells of units: (K, S, B)."""
        K, S, width = terms.shape
        if self.matrix.ndim == 3:
            found = terms.permute(1, 0, 2) @ self.matrix[:, block].transpose(1, 2)
            return found.permute(1, 0, 2)
        return (terms.reshape(K * S, width) @ self.matrix[block].T).reshape(K, S, -1)

    def adjoint(self, weights: Tensor, block: slice) -> Tensor:
        """Sum weights (K, S, B) of units over their cells: (K, S, M * U)."""
        K, S, B = weights.shape
        if self.matrix.ndim == 3:
            found = weights.permute(1, 0, 2) @ self.matrix[:, block]
            return found.permute(1, 0, 2)
        return (weights.reshape(K * S, B) @ self.matrix[block]).reshape(K, S, -1)

    def select(self, units: Tensor) -> Dense:
        """Return the incidence of some units."""
        if self.matrix.ndim == 3:
            return Dense(self.matrix[:, units])
        return Dense(self.matrix[units])


@dataclass(frozen=True, eq=False)
class Sparse:
    """The same with few cells in a unit: rows, each with its cell and its features.

    Attributes
    ----------
    start : Tensor of int, shape (N + 1,)
        Where each unit's rows begin.
    cell : Tensor of int, shape (n,)
    features : Tensor, shape (M, n)
    cells : int
    """

    start: Tensor
    cell: Tensor
    features: Tensor
    cells: int

    def _block(self, block: slice) -> tuple[Tensor, ...]:
        low, high = int(self.start[block.start]), int(self.start[block.stop])
        start = self.start[block.start : block.stop + 1] - low
        return start, self.cell[low:high], self.features[:, low:high]

    def apply(self, terms: Tensor, block: slice) -> Tensor:
        """Sum terms (K, S, M * U) over the cells of units: (K, S, B)."""
        K, S, _ = terms.shape
        start, cell, features = self._block(block)
        table = terms.reshape(K * S, len(features), self.cells)
        parts = [
            _bags(cell, table[:, m].T.contiguous(), start, phi)
            for m, phi in enumerate(features)
        ]
        return sum(parts[1:], parts[0]).T.reshape(K, S, -1)

    def adjoint(self, weights: Tensor, block: slice) -> Tensor:
        """Sum weights (K, S, B) of units over their cells: (K, S, M * U)."""
        K, S, B = weights.shape
        start, cell, features = self._block(block)
        by_unit = weights.reshape(K * S, B).T.contiguous()
        unit = torch.repeat_interleave(
            torch.arange(B, device=cell.device), start.diff()
        )
        order = torch.argsort(cell, stable=True)
        counts = torch.bincount(cell, minlength=self.cells)
        begin = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        parts = [_bags(unit[order], by_unit, begin, phi[order]).T for phi in features]
        return torch.stack(parts, 1).reshape(K, S, -1)

    def select(self, units: Tensor) -> Sparse:
        """Return the incidence of some units."""
        rows, start = selected_rows(self.start, units)
        return Sparse(start, self.cell[rows], self.features[:, rows], self.cells)


def selected_rows(start: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of some units, in their order, and where each begins."""
    counts = start.diff()[units]
    begin = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = torch.arange(int(begin[-1]), device=start.device)
    rows = rows - torch.repeat_interleave(begin[:-1] - start[units], counts)
    return rows, begin


def _bags(index: Tensor, table: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """Sum weighted rows of a table over runs of an index: (runs, columns)."""
    return torch.nn.functional.embedding_bag(
        index, table, start[:-1], mode="sum", per_sample_weights=weights.to(table)
    )


Incidence = Dense | Sparse


def incidence(
    unit: Tensor, cell: Tensor, features: Tensor, units: int, cells: int
) -> Incidence:
    """Choose between a dense and a sparse incidence by their sizes."""
    M, n = features.shape
    if units * cells * M <= max(_FILL * n * M, _SMALL):
        matrix = features.new_zeros(units, M, cells)
        for m in range(M):
            matrix[:, m].index_put_((unit, cell), features[m], accumulate=True)
        return Dense(matrix.reshape(units, M * cells))
    return Sparse(rows_of_units(unit, units), cell, features, cells)
