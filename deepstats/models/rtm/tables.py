"""Units as a few patterns of yes and no: the sums that likelihoods of counts need.

A model of 0/1 columns sees of the data only how many units, and how many crimes, are
in each combination of its columns. These sums come, for every choice of one column for
each factor at once, from the sums over intersections of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Patterns", "Tallies", "cell_tallies", "intersections"]

#: Distinct rows of covariates that are kept as strata; with more every unit is one.
_STRATA = 64


@dataclass(frozen=True, eq=False)
class Tallies:
    """Sums over groups of units, of one model or of many.

    Attributes
    ----------
    units : Tensor, shape (..., rows)
        Number of units, times their exposure where only that product counts.
    crimes : Tensor, shape (..., rows)
    beyond : Tensor, shape (..., rows, J)
        Units with more than j crimes, j = 0 .. J - 1; no columns where not needed.
    """

    units: Tensor
    crimes: Tensor
    beyond: Tensor

    @classmethod
    def split(cls, sums: Tensor) -> Tallies:
        """Read them from the last dimension: units, crimes, beyond."""
        return cls(sums[..., 0], sums[..., 1], sums[..., 2:])

    def sparse(self) -> tuple[Tallies, tuple[Tensor, Tensor]]:
        """Keep of `beyond`, (rows, J), what is not zero; with its rows and its j."""
        rows, j = self.beyond.nonzero().unbind(1)
        return Tallies(self.units, self.crimes, self.beyond[rows, j]), (rows, j)


@dataclass(frozen=True, eq=False)
class Patterns:
    """Units that no model tells apart, as one row.

    Attributes
    ----------
    columns : ndarray of bool, shape (U, C)
        The candidates.
    covariates : ndarray, shape (U, q)
        Intercept and covariates.
    offset : ndarray, shape (U,)
    stratum : ndarray of int, shape (U,)
        Which distinct row of covariates and offset it has.
    strata : int
        Number of these; U where every unit has one of its own.
    row_of : ndarray of int, shape (n,)
        Pattern of each unit.
    """

    columns: np.ndarray
    covariates: np.ndarray
    offset: np.ndarray
    stratum: np.ndarray
    strata: int
    row_of: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def build(
        cls, columns: np.ndarray, covariates: np.ndarray, offset: np.ndarray
    ) -> Patterns:
        """Find the distinct rows.

        Parameters
        ----------
        columns : ndarray of bool, shape (n, C)
        covariates : ndarray, shape (n, q)
        offset : ndarray, shape (n,)
        """
        rows = np.ascontiguousarray(np.column_stack([covariates, offset]) + 0.0)
        first, stratum = _distinct(rows)
        if len(first) > _STRATA:
            n = np.arange(len(columns))
            return cls(columns, covariates, offset, n, len(n), n)
        bits = np.packbits(columns, axis=1)
        keys = np.column_stack([bits, stratum.astype(np.uint8)])
        at, row_of = _distinct(np.ascontiguousarray(keys))
        return cls(
            columns[at], covariates[at], offset[at], stratum[at], len(first), row_of
        )

    def sums(
        self,
        y: np.ndarray,
        counted: bool,
        weights: np.ndarray | None = None,
        exposure: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return units, crimes and, if `counted`, units beyond j, by pattern.

        Parameters
        ----------
        y : ndarray, shape (n,)
        counted : bool
        weights : ndarray, shape (n,), optional
            How often each unit counts.
        exposure : ndarray, shape (n,), optional
            Of each unit, where `offset` does not have it.

        Returns
        -------
        ndarray, shape (U, 2 or 2 + J)
        """
        w = np.ones(len(y)) if weights is None else weights
        U = len(self)
        at_risk = w if exposure is None else w * exposure
        sums = [np.bincount(self.row_of, v, U) for v in (at_risk, w * y)]
        if counted:
            levels, code = np.unique(y.astype(np.int64), return_inverse=True)
            cells = np.bincount(self.row_of * len(levels) + code, w, U * len(levels))
            cells = cells.reshape(U, len(levels))
            # Units above j: a step at every count that occurs.
            more = cells[:, ::-1].cumsum(axis=1)[:, ::-1]
            at = np.searchsorted(levels, np.arange(levels[-1]), side="right")
            sums += list(more[:, at].T)
        return np.column_stack(sums)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each distinct row is first met, and which of these each row is."""
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def intersections(
    columns: list[np.ndarray], sums: np.ndarray, stratum: np.ndarray, strata: int
) -> Tensor:
    """Sum over the patterns in which every one of several columns says yes.

    Parameters
    ----------
    columns : list of ndarray of bool, each (U, C_f)
        Candidates of each factor; the first of each is a column of ones, which stands
        for leaving the factor out.
    sums : ndarray, shape (U, M)
        Of `Patterns.sums`.
    stratum : ndarray of int, shape (U,)
    strata : int

    Returns
    -------
    Tensor, shape (C_1, ..., C_F, strata, M)
    """
    U, M = sums.shape
    spread = np.zeros((U, strata, M))
    spread[np.arange(U), stratum] = sums
    last = torch.as_tensor(columns[-1].T.astype(np.float64))
    front = [torch.as_tensor(c.T.astype(np.float64)) for c in columns[:-1]]
    right = torch.as_tensor(spread.reshape(U, -1))
    shape = tuple(c.shape[1] for c in columns)
    out = torch.empty((*shape, strata * M), dtype=torch.float64)
    for prefix in np.ndindex(*shape[:-1]):
        both = torch.ones(U, dtype=torch.float64)
        for f, c in enumerate(prefix):
            both = both * front[f][c]
        used = both.nonzero().flatten()
        out[prefix] = last[:, used] @ right[used]
    return out.reshape(*shape, strata, M)


def cell_tallies(sums: Tensor, choices: Tensor) -> Tensor:
    """Return the sums of the cells of a table, for many choices of columns.

    Parameters
    ----------
    sums : Tensor, shape (C_1, ..., C_F, strata, M)
        Of `intersections`.
    choices : Tensor of int, shape (A, F)
        Candidate of each factor; 0 leaves it out.

    Returns
    -------
    Tensor, shape (A, strata * 2**F, M)
        Factor f says yes in the cells whose number has bit F - 1 - f; of a factor that
        is left out those cells are empty.
    """
    F = choices.shape[1]
    cells = []
    for cell in np.ndindex(*(2,) * F):
        # Yes to some: what is left out of the others is ones, by inclusion-exclusion.
        bits = torch.tensor(cell)
        cells.append(sums[tuple((choices * bits).unbind(1))])
    table = torch.stack(cells, 1)
    A, _, strata, M = table.shape
    table = table.reshape(A, *(2,) * F, strata, M).clone()
    for f in range(F):
        no, yes = table.select(f + 1, 0), table.select(f + 1, 1)
        yes[choices[:, f] == 0] = 0.0
        no -= yes
    # Strata outermost, so that rows of one stratum stand together.
    return table.reshape(A, 2**F, strata, M).transpose(1, 2).reshape(A, -1, M)
