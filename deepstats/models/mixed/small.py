"""Cross-products of small models as one matrix, made by NumPy in a few calls.

A model of a few hundred rows is fitted in the time that bookkeeping takes. Here all its
columns stand side by side and one product gives all that the search needs; the
`Products` that everything else uses are made, in the same basis, when they are asked
for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack

from ...compute import Compute
from ...design import Design
from ...leastsquares import LeastSquares
from .products import Products, cross_products
from .structure import Structure

__all__ = [
    "Small",
    "SmallProducts",
    "is_small",
    "small_fixed",
    "small_of",
    "small_products",
    "solve_moments",
    "squared_traces",
]

#: Measured: from here on the elimination is quicker than one dense factor.
MOST_EFFECTS = 120
#: A start no nearer to zero than this (relative variances of standardised columns).
LEAST_START = 1e-3
_MOST_NUMBERS = 200_000
# Columns less of their own than this are left to the route that finds aliases.
_OWN = 1e-6


@dataclass(frozen=True, eq=False)
class Small:
    """All cross-products of a small model.

    Attributes
    ----------
    A : ndarray, shape (q + p + 1, q + p + 1)
        Of random effects (factor by factor, level by level), fixed effects and
        response.
    edges : list of int
        Where each factor begins, and q.
    """

    A: np.ndarray
    edges: list[int]

    def covariances(self, structure: Structure, df: int) -> list[np.ndarray]:
        """Relative covariance of each term by the method of moments; (K, K).

        The equations ``tr(Q G_a Q G_b) v_b = y'Q G_a Q y`` of Haseman & Elston (1972)
        and Rao (1971), Q the projection off the fixed effects, for every entry of every
        covariance and the residual variance; then brought inside the range.
        """
        q = self.edges[-1]
        onto = self.A[:q, q:-1]
        net, e = self.A[:q, :q] - onto @ onto.T, self.A[:q, -1]
        directions = structure.entries
        at = [slice(a, b) for a, b in pairwise(self.edges)]
        count = len(directions)
        left, right = np.empty((count + 1, count + 1)), np.empty(count + 1)
        left[:count, :count] = squared_traces(net, at, directions)
        for number, (j, D) in enumerate(directions):
            by_level = e[at[j]].reshape(-1, len(D))
            right[number] = ((by_level @ D) * by_level).sum()
            f = structure.factors[j]
            own = np.einsum("iaib->ab", net[at[j], at[j]].reshape(f.m, f.k, f.m, f.k))
            left[number, count] = left[count, number] = (own * D).sum()
        left[count, count], right[count] = df, self.A[-1, -1]
        found, rest = solve_moments(left, right, df)
        out = []
        place = 0
        for term in structure.terms:
            V = np.zeros((term.k, term.k))
            # Of a structured covariance all variances are one entry.
            own = term.covariance is None
            size = term.params.stop - term.params.start if own else 1
            for v, (_, D) in zip(
                found[place : place + size], directions[place : place + size],
                strict=True,
            ):  # fmt: skip
                V += v / rest * D[term.at, term.at]
            place += size
            values, vectors = np.linalg.eigh(V)
            out.append((vectors * values.clip(LEAST_START, 1e6)) @ vectors.T)
        return out

    def unexplained(self) -> np.ndarray:
        """Share of each factor's sum of squares that the fixed effects leave."""
        q = self.edges[-1]
        total = self.A.diagonal()[:q]
        rest = total - (self.A[:q, q:-1] ** 2).sum(1)
        starts = self.edges[:-1]
        return np.add.reduceat(rest, starts) / np.add.reduceat(total, starts)


class SmallProducts(Products):
    """`Products` of a small model: the parts are made when they are first asked for.

    Attributes
    ----------
    small : Small or None
    """

    small: Small | None

    def __init__(
        self,
        make: Callable[[], Products] | None = None,
        small: Small | None = None,
        **known: Any,
    ) -> None:
        # With all fields known, as `dataclasses.replace` gives them, these are plain
        # `Products`: what was changed need not be in `small`.
        vars(self).update(known, small=small, _make=make)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not there yet.
        make = vars(self).get("_make")
        if make is None or name.startswith("__"):
            raise AttributeError(name)
        del vars(self)["_make"]
        whole = make()
        for item in fields(Products):
            vars(self).setdefault(item.name, getattr(whole, item.name))
        return getattr(self, name)


def solve_moments(A: np.ndarray, c: np.ndarray, df: int) -> tuple[np.ndarray, float]:
    """Solve equations of the method of moments, the residual variance's last.

    Returns
    -------
    found : ndarray
        Covariances; without the residual variance.
    rest : float
        Residual variance, kept off zero.
    """
    scale = 1 / np.sqrt(A.diagonal().clip(1e-300))
    found = np.linalg.lstsq(A * scale[:, None] * scale, c * scale, rcond=1e-10)[0]
    found = found * scale
    return found[:-1], max(found[-1], 0.1 * c[-1] / max(df, 1))


def squared_traces(
    H: np.ndarray, at: list[slice], directions: list[tuple[int, np.ndarray]]
) -> np.ndarray:
    """``tr(H B_a H B_b)`` for block-diagonal B with one direction in every level.

    Parameters
    ----------
    H : ndarray, shape (q, q)
        Factor by factor, level by level.
    at : list of slice
        Columns of each factor.
    directions : list of (int, ndarray)
        A factor, and a symmetric (K, K) matrix.
    """
    moved = []
    for j, D in directions:
        columns = H[:, at[j]]
        if len(D) > 1:
            moved.append((columns.reshape(-1, len(D)) @ D).reshape(columns.shape))
        else:
            moved.append(columns * D[0, 0])
    out = np.empty((len(directions),) * 2)
    for a, (i, _) in enumerate(directions):
        for b, (j, _) in enumerate(directions[: a + 1]):
            out[a, b] = out[b, a] = (moved[a][at[j]] * moved[b][at[i]].T).sum()
    return out


def small_of(products: Products) -> Small | None:
    """Return the matrix of all cross-products, where there is one."""
    return products.small if isinstance(products, SmallProducts) else None


def is_small(design: Design, compute: Compute) -> bool:
    """Whether a model is for this module."""
    effects = sum(len(r.grouping) * r.Z.k for r in design.random) + design.X.k
    numbers = design.n * (effects + 1)
    return not compute.on_gpu and effects <= MOST_EFFECTS and numbers <= _MOST_NUMBERS


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weighted rows of the fixed part.

    Attributes
    ----------
    Q : ndarray, shape (n, p)
        Orthonormal columns, ``X R``.
    R : ndarray, shape (p, p)
    e : ndarray, shape (n,)
        Least-squares residuals.
    root : ndarray or None, shape (n,)
        Square roots of the weights.
    """

    Q: np.ndarray
    R: np.ndarray
    e: np.ndarray
    root: np.ndarray | None


def small_fixed(design: Design, compute: Compute) -> tuple[LeastSquares, _Rows] | None:
    """Regress on the fixed part; None where columns may determine one another."""
    X = design.X.to_dense(compute).numpy()
    y = np.asarray(design.y, dtype=np.float64)
    if design.offset is not None:
        y = y - design.offset
    root = None if design.weights is None else np.sqrt(design.weights)
    if root is not None:
        X, y = X * root[:, None], y * root
    n, p = X.shape
    if not 0 < p < n or not np.isfinite(X).all():
        return None
    Q, triangle = np.linalg.qr(X)
    signs = np.where(triangle.diagonal() < 0, -1.0, 1.0)
    Q, triangle = Q * signs, triangle * signs[:, None]
    lengths = np.sqrt((triangle**2).sum(0))
    if not (triangle.diagonal() > _OWN * lengths).all():
        return None
    sizes = np.linalg.svd(triangle / lengths, compute_uv=False)
    R, info = lapack.dtrtri(triangle)
    if info:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        coefficients = Q.T @ y
        e = y - Q @ coefficients
        again = Q.T @ e
        e -= Q @ again
        params, ssr = R @ (coefficients + again), float(e @ e)
    if not (np.isfinite(ssr) and np.isfinite(params).all()):
        return None
    fixed = LeastSquares(
        torch.from_numpy(params), torch.from_numpy(R @ R.T), ssr,
        list(range(p)), float(sizes[0] / sizes[-1]), "QR",
    )  # fmt: skip
    return fixed, _Rows(Q, np.ascontiguousarray(R), e, root)


def small_products(
    design: Design,
    structure: Structure,
    fixed: LeastSquares,
    rows: _Rows,
    compute: Compute,
) -> SmallProducts:
    """Multiply all columns with one another.

    Parameters
    ----------
    design : Design
    structure : Structure
    fixed, rows
        Of `small_fixed`.
    compute : Compute
    """
    n, p = rows.Q.shape
    edges = [0]
    for f in structure.factors:
        edges.append(edges[-1] + f.q)
    q = edges[-1]
    V = np.zeros((n, q + p + 1))
    V[:, q:-1], V[:, -1] = rows.Q, rows.e
    every = np.arange(n)
    for j, f in enumerate(structure.factors):
        place = edges[j] + f.codes.astype(np.int64) * f.k
        for term, matrix in zip(structure.of(j), f.matrices, strict=True):
            if matrix.names == ("Intercept",):
                columns = np.full((n, 1), term.U[0, 0])
            else:
                columns = matrix.to_dense(compute).numpy() @ term.U
            for a, column in enumerate(columns.T, term.at.start):
                V[every, place + a] = column if rows.root is None else (
                    column * rows.root
                )  # fmt: skip
    A = V.T @ V
    R = torch.from_numpy(rows.R)
    return SmallProducts(
        lambda: cross_products(design, structure, fixed, compute, R),
        Small(A, edges), structure=structure, n=design.n, R=R,
        G=torch.from_numpy(A[q:, q:].copy()), center=fixed.params,
        log_weights=(
            0.0 if design.weights is None else float(np.log(design.weights).sum())
        ),
    )  # fmt: skip
