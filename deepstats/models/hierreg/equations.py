"""The normal equations of population coefficients and deviations, at any strength.

With ``B = Z W^-1`` and ``u = W v`` they are::

    [B'DB + mu I   B'DX] [u]   [B'Dy]
    [X'DB          X'DX] [w] = [X'Dy]

Levels of one grouping factor share no row, so its part of ``B'DB`` is one small block a
level. The blocks of the largest factor are diagonalised once; at any ``mu`` they are
then eliminated by a division, and the Schur complement of what remains, the other
factors and X, is one small dense matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from ...errors import ModelError
from .sample import Grouped, Sample, by_level

__all__ = ["Equations", "Factored"]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Equations:
    """Cross-products of a sample, its largest grouping factor in its eigenbasis.

    Attributes
    ----------
    q, p : int
        Numbers of deviations and of population coefficients.
    main : slice
        Place of the deviations of the largest factor among all.
    values : ndarray, shape (a,)
        Eigenvalues of its blocks.
    vectors : ndarray, shape (m, k, k)
    border : ndarray, shape (a, r)
        Its cross-products with the rest, in the eigenbasis.
    rest : ndarray, shape (r, r)
        Cross-products of the rest: deviations of other factors, then X.
    """

    q: int
    p: int
    main: slice
    values: Array
    vectors: Array
    border: Array
    rest: Array

    @classmethod
    def build(cls, sample: Sample, weights: Array | None = None) -> Equations:
        """Sum over the rows of a sample, with weights of shape (n,) or none."""
        groups = sample.groups
        first = max(range(len(groups)), key=lambda j: groups[j].q)
        main, others = groups[first], [g for g in groups if g is not groups[first]]
        start = sum(g.q for g in groups[:first])
        values, vectors = np.linalg.eigh(_own(main, weights))
        parts = [_between(main, g, weights) for g in others]
        parts.append(_with_columns(main, np.ascontiguousarray(sample.X.T), weights))
        m, k = main.scale.shape
        border = np.concatenate(parts, axis=1).reshape(m, k, -1)
        border = np.matmul(vectors.transpose(0, 2, 1), border).reshape(main.q, -1)
        return cls(
            sample.q, sample.p, slice(start, start + main.q),
            np.maximum(values.ravel(), 0.0), vectors, border,
            _rest(others, sample.X, weights),
        )  # fmt: skip

    @cached_property
    def top(self) -> float:
        """Bound of the largest eigenvalue of ``B'DB``, within a small factor."""
        mine = self.values.max(initial=0.0)
        d = self.rest.diagonal()[: len(self.rest) - self.p]
        return float(mine + d.max(initial=0.0))

    def _rotate(self, v: Array) -> Array:
        m, k, _ = self.vectors.shape
        return np.matmul(v.reshape(m, 1, k), self.vectors).ravel()

    def _rotate_back(self, v: Array) -> Array:
        m, k, _ = self.vectors.shape
        return np.matmul(self.vectors, v.reshape(m, k, 1)).ravel()

    def parted(self, u: Array, w: Array) -> tuple[Array, Array]:
        """Cut off the main part (a,), in the eigenbasis, from the rest (r,)."""
        others = np.concatenate([u[: self.main.start], u[self.main.stop :], w])
        return self._rotate(u[self.main]), others

    def joined(self, main: Array, others: Array) -> tuple[Array, Array]:
        """Undo `parted`: deviations (q,) and population coefficients (p,)."""
        cut, start = len(others) - self.p, self.main.start
        u = np.concatenate([others[:start], self._rotate_back(main), others[start:cut]])
        return u, others[cut:]

    def product(self, u: Array, w: Array) -> tuple[Array, Array]:
        """Cross-products times a vector, without the penalty."""
        main, others = self.parted(u, w)
        return self.joined(
            self.values * main + self.border @ others,
            main @ self.border + self.rest @ others,
        )

    @cached_property
    def _columns(self) -> Array:
        """Factor of ``X'DX``."""
        return _cholesky(self.rest[-self.p :, -self.p :])

    def population(self, x: Array) -> Array:
        """Solve for coefficients without deviations, of ``X'Dy`` of shape (p,)."""
        return _solve(self._columns, x) if self.p else x

    def factored(self, mu: float) -> Factored:
        """Factorise at a strength."""
        divided = 1.0 / (self.values + mu)
        half = self.border * np.sqrt(divided)[:, None]
        schur = self.rest - half.T @ half  # of one matrix: half the work
        free = len(schur) - self.p
        schur[range(free), range(free)] += mu
        return Factored(self, mu, divided, _cholesky(schur))


@dataclass(frozen=True, eq=False)
class Factored:
    """The equations at one strength.

    Attributes
    ----------
    equations : Equations
    mu : float
    divided : ndarray, shape (a,)
        One over eigenvalues plus mu.
    factor : ndarray, shape (r, r)
        Cholesky factor of the Schur complement.
    """

    equations: Equations
    mu: float
    divided: Array
    factor: Array

    def solve(self, u: Array, w: Array) -> tuple[Array, Array]:
        """Deviations (q,) and population coefficients (p,) of a right-hand side."""
        eq = self.equations
        main, others = eq.parted(u, w)
        others = _solve(self.factor, others - (self.divided * main) @ eq.border)
        return eq.joined(self.divided * (main - eq.border @ others), others)

    def df(self) -> float:
        """Effective number of parameters: trace of the matrix from y to its fit."""
        eq, free = self.equations, len(self.equations.rest) - self.equations.p
        scaled = eq.border * self.divided[:, None]
        inner = scaled.T @ scaled
        inner[range(free), range(free)] += 1.0
        trace = float(self.divided.sum()) + float(np.trace(_solve(self.factor, inner)))
        return eq.p + eq.q - self.mu * trace


# LAPACK itself: what scipy wraps around it takes longer than these small matrices.


def _cholesky(matrix: Array) -> Array:
    if not len(matrix):
        return matrix
    factor, failed = dpotrf(matrix.T, lower=1, clean=0)
    if failed:
        raise ModelError(
            "the penalty is too weak for the equations to be solved in float64: "
            "deviations and population coefficients cannot be told apart. Give a "
            "larger penalty."
        )
    return factor


def _solve(factor: Array, right: Array) -> Array:
    return dpotrs(factor, right, lower=1)[0] if len(factor) else right


# -- cross-products --------------------------------------------------------------------


def _weighted(columns: Array, weights: Array | None) -> Array:
    """Columns (k, n) times the weights of the rows."""
    return columns if weights is None else columns * weights


def _own(g: Grouped, weights: Array | None) -> Array:
    """Blocks of one factor, (m, k, k)."""
    m, k = g.scale.shape
    Z, weighted = g.columns_apart, _weighted(g.columns_apart, weights)
    pairs = [(i, j) for i in range(k) for j in range(i + 1)]
    sums = by_level(g.codes, m, (weighted[i] * Z[j] for i, j in pairs))
    out = np.empty((m, k, k))
    for (i, j), column in zip(pairs, sums.T, strict=True):
        out[:, i, j] = out[:, j, i] = column
    return out * g.scale[:, :, None] * g.scale[:, None, :]


def _with_columns(g: Grouped, X: Array, weights: Array | None) -> Array:
    """Cross-products of a factor with columns (p, n): (m k, p)."""
    (m, k), p = g.scale.shape, len(X)
    Z = _weighted(g.columns_apart, weights)
    if not p:
        return np.empty((m * k, 0))
    sums = by_level(g.codes, m, (z * x for z in Z for x in X))
    return (sums.reshape(m, k, p) * g.scale[:, :, None]).reshape(m * k, p)


def _between(g: Grouped, h: Grouped, weights: Array | None) -> Array:
    """Cross-products of two factors, (m k, m' k')."""
    (m, k), (other, j) = g.scale.shape, h.scale.shape
    Z = _weighted(g.columns_apart, weights)
    both = g.codes.astype(np.int64) * other + h.codes
    out = np.empty((m, k, other, j))
    for a in range(k):
        for b in range(j):
            sums = np.bincount(both, Z[a] * h.columns_apart[b], m * other)
            out[:, a, :, b] = sums.reshape(m, other)
    out *= g.scale[:, :, None, None]
    out *= h.scale
    return out.reshape(m * k, other * j)


def _rest(others: list[Grouped], X: Array, weights: Array | None) -> Array:
    """Cross-products of the smaller factors and X."""
    sizes, apart = [g.q for g in others], np.ascontiguousarray(X.T)
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    free, p = int(start[-1]), X.shape[1]
    out = np.zeros((free + p, free + p))
    for i, g in enumerate(others):
        m, k = g.scale.shape
        here = slice(start[i], start[i + 1])
        block = np.zeros((m, k, m, k))
        block[range(m), :, range(m), :] = _own(g, weights)
        out[here, here] = block.reshape(m * k, m * k)
        for j, h in enumerate(others[:i]):
            there = slice(start[j], start[j + 1])
            out[here, there] = _between(g, h, weights)
            out[there, here] = out[here, there].T
        out[here, free:] = _with_columns(g, apart, weights)
        out[free:, here] = out[here, free:].T
    out[free:, free:] = _weighted(apart, weights) @ X
    return out
