"""Rows as arrays: outcome, common columns, and the columns that deviate by group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

__all__ = ["Grouped", "Sample"]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Grouped:
    """Columns whose coefficients deviate over the levels of one grouping factor.

    Attributes
    ----------
    name : str
    levels : tuple, length m
    columns : tuple of str, length k
    codes : ndarray of int, shape (n,)
    Z : ndarray, shape (n, k)
    scale : ndarray, shape (m, k)
        One over the weight of each deviation in the penalty: deviations are
        ``scale * u`` and the penalty is of ``u``. Zero where there is to be none.
    """

    name: str
    levels: tuple
    columns: tuple[str, ...]
    codes: Array
    Z: Array
    scale: Array

    @property
    def q(self) -> int:
        """Number of deviations."""
        return self.scale.size

    @cached_property
    def counts(self) -> Array:
        """Rows of each level, shape (m,)."""
        return np.bincount(self.codes, minlength=len(self.levels))

    @cached_property
    def columns_apart(self) -> Array:
        """Z with each column in one piece of memory, shape (k, n)."""
        return np.ascontiguousarray(self.Z.T)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its blocks, one a column: ``"x | g"``."""
        return tuple(f"{column} | {self.name}" for column in self.columns)


@dataclass(frozen=True, eq=False)
class Sample:
    """All that a fit needs of the data.

    Attributes
    ----------
    y : ndarray, shape (n,)
    X : ndarray, shape (n, p)
        Columns of the population coefficients.
    groups : tuple of Grouped
    offset : ndarray, shape (n,), or None
    """

    y: Array
    X: Array
    groups: tuple[Grouped, ...]
    offset: Array | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def p(self) -> int:
        """Number of population coefficients."""
        return self.X.shape[1]

    @cached_property
    def q(self) -> int:
        """Number of deviations."""
        return sum(g.q for g in self.groups)

    def split(self, u: Array) -> list[Array]:
        """Cut a vector of shape (q,) into one array (m, k) for each grouping."""
        ends = np.cumsum([g.q for g in self.groups])[:-1]
        parts = np.split(u, ends)
        return [
            v.reshape(g.scale.shape) for v, g in zip(parts, self.groups, strict=True)
        ]

    def linear(self, w: Array, u: Array) -> Array:
        """Linear predictor without the offset, shape (n,)."""
        eta = self.X @ w
        for g, part in zip(self.groups, self.split(u), strict=True):
            by_column = np.ascontiguousarray((g.scale * part).T)
            for column, values in zip(g.columns_apart, by_column, strict=True):
                eta += column * values[g.codes]
        return eta

    def adjoint(self, rows: Array) -> tuple[Array, Array]:
        """Sum rows over columns: ``X'r`` (p,) and ``B'r`` (q,)."""
        parts = [
            (by_level(g.codes, len(g.levels), g.columns_apart * rows) * g.scale).ravel()
            for g in self.groups
        ]
        return self.X.T @ rows, np.concatenate(parts)

    def subset(self, rows: Array) -> Sample:
        """Return some of the rows; all levels remain, with the weights they have."""
        groups = tuple(
            replace(g, codes=g.codes[rows], Z=g.Z[rows]) for g in self.groups
        )
        offset = None if self.offset is None else self.offset[rows]
        return Sample(self.y[rows], self.X[rows], groups, offset)

    def scaled(self, scales: Sequence[Array]) -> Sample:
        """Return the sample with other weights of the deviations."""
        groups = tuple(
            replace(g, scale=s) for g, s in zip(self.groups, scales, strict=True)
        )
        return replace(self, groups=groups)


def by_level(codes: Array, m: int, columns: Iterable[Array]) -> Array:
    """Sum columns of shape (n,) by code: (m, k)."""
    return np.array([np.bincount(codes, column, m) for column in columns]).T
