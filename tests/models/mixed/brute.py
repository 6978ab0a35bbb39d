"""Mixed models by n x n matrices, from the textbook, to hold the engine against.

With ``Sigma = W^-1 + Z V Z'`` (all relative to the residual variance), everything below
is written as in Searle, Casella & McCulloch (1992), Variance Components, chapter 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import block_diag
from scipy.stats import multivariate_normal

from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.criterion import Criterion

__all__ = ["Brute"]


@dataclass(eq=False)
class Brute:
    """The model of a criterion at the parameters x.

    Standardised columns of random effects stand factor by factor, and in a factor by
    effect, then level, as ``(K, m)`` in the engine.
    """

    model: LinearMixed
    criterion: Criterion
    x: np.ndarray

    def __post_init__(self) -> None:
        design = self.model.design
        self.structure, self.products = self.model.prepare()
        self.X = design.X.to_dense().numpy()
        offset = 0.0 if design.offset is None else design.offset
        self.y = np.asarray(design.y, dtype=float) - offset
        self.w = np.ones(design.n) if design.weights is None else design.weights
        self.n, self.p = self.X.shape
        self.Z_by_factor = [
            self._columns(j) for j in range(len(self.structure.factors))
        ]
        self.Z = np.concatenate(self.Z_by_factor, axis=1)
        roots = self.structure.roots(self.x)
        self.V_by_factor = [root @ root.T for root in roots]
        self.L = block_diag(
            *(
                np.kron(root, np.eye(f.m))
                for root, f in zip(roots, self.structure.factors, strict=True)
            )
        )
        self.V = self.L @ self.L.T

    def _columns(self, j: int) -> np.ndarray:
        """Columns of a factor, standardised; (n, K m)."""
        factor, terms = self.structure.factors[j], self.structure.of(j)
        own = np.eye(factor.m)[factor.codes]
        out = []
        for term, matrix in zip(terms, factor.matrices, strict=True):
            columns = matrix.to_dense().numpy() @ term.U
            out += [own * column[:, None] for column in columns.T]
        return np.concatenate(out, axis=1)

    @cached_property
    def Sigma(self) -> np.ndarray:
        return np.diag(1 / self.w) + self.Z @ self.V @ self.Z.T

    @cached_property
    def inverse(self) -> np.ndarray:
        return np.linalg.inv(self.Sigma)

    @cached_property
    def cov_beta(self) -> np.ndarray:
        return np.linalg.inv(self.X.T @ self.inverse @ self.X)

    @cached_property
    def P(self) -> np.ndarray:
        half = self.inverse @ self.X
        return self.inverse - half @ self.cov_beta @ half.T

    @property
    def beta(self) -> np.ndarray:
        return self.cov_beta @ self.X.T @ self.inverse @ self.y

    @property
    def variance(self) -> float:
        """Residual variance, estimated unless it is known."""
        if self.criterion.sigma is not None:
            return self.criterion.sigma**2
        return float(self.y @ self.P @ self.y) / self.criterion.df

    @property
    def value(self) -> float:
        """Minus twice the log-density, integrated over the fixed effects for REML."""
        s2 = self.variance
        density = multivariate_normal(self.X @ self.beta, s2 * self.Sigma)
        out = -2 * density.logpdf(self.y)
        if self.criterion.reml:
            logdet = -np.linalg.slogdet(self.cov_beta)[1]
            out += logdet - self.p * np.log(2 * np.pi * s2)
        return float(out)

    @property
    def modes(self) -> np.ndarray:
        """``V Z' Sigma^-1 (y - X beta)``, standardised."""
        return self.V @ self.Z.T @ self.inverse @ (self.y - self.X @ self.beta)

    @property
    def mode_variances(self) -> np.ndarray:
        """Conditional variance of all effects given y and beta, standardised."""
        VZ = self.V @ self.Z.T
        return self.variance * (self.V - VZ @ self.inverse @ VZ.T)

    @cached_property
    def slopes(self) -> list[np.ndarray]:
        """Derivative of the criterion in V of each factor."""
        M = self.P if self.criterion.reml else self.inverse
        Py, out = self.P @ self.y, []
        for Z, V in zip(self.Z_by_factor, self.V_by_factor, strict=True):
            k = len(V)
            r = (Z.T @ Py).reshape(k, -1)
            inner = (Z.T @ M @ Z).reshape(k, r.shape[1], k, r.shape[1])
            out.append(np.einsum("aibi->ab", inner) - r @ r.T / self.variance)
        return out

    @cached_property
    def directions(self) -> list[tuple[int, np.ndarray, np.ndarray | None]]:
        """Factor and derivative of V for each parameter, and of which entry it is."""
        out = []
        for term in self.structure.terms:
            k = len(self.V_by_factor[term.factor])
            start, root = term.at.start, term.root(self.x)
            for number, (r, c) in enumerate(self._entries(term)):
                E = np.zeros((k, k))
                E[start + r, start + c] = 1.0
                full = np.zeros((k, k))
                full[term.at, term.at] = root
                if term.variances:
                    out.append((term.factor, E, None))
                else:
                    out.append((term.factor, E @ full.T + full @ E.T, E))
                assert term.params.start + number == len(out) - 1
        return out

    @staticmethod
    def _entries(term) -> list[tuple[int, int]]:
        if term.variances:
            return [(j, j) for j in range(term.k)]
        return [(r, c) for c in range(term.k) for r in range(c, term.k)]

    @property
    def gradient(self) -> np.ndarray:
        return np.array([(self.slopes[j] * D).sum() for j, D, _ in self.directions])

    @property
    def information(self) -> np.ndarray:
        """Average information with sigma profiled out, and the second derivative of V.

        Gilmour, Thompson & Cullis (1995), equation 8, twice because the criterion is
        minus twice the log-likelihood.
        """
        Py = self.P @ self.y
        moved = []
        for j, D, _ in self.directions:
            Z = self.Z_by_factor[j]
            m = Z.shape[1] // len(D)
            moved.append(Z @ np.kron(D, np.eye(m)) @ Z.T @ Py)
        U = np.array(moved).T
        out = U.T @ self.P @ U / self.variance
        if self.criterion.sigma is None:
            q = U.T @ Py / self.variance
            out -= np.outer(q, q) / self.criterion.df
        for a, (j, _, E) in enumerate(self.directions):
            for b, (i, _, F) in enumerate(self.directions):
                if i == j and E is not None and F is not None:
                    out[a, b] += (self.slopes[j] * (E @ F.T + F @ E.T)).sum()
        return out

    # -- vectors of the engine -------------------------------------------------------

    @property
    def equations(self) -> np.ndarray:
        """``[Z X~]'W[Z X~]`` with the engine's orthonormal fixed effects."""
        A = np.concatenate([self.Z, self.X @ self.products.R.numpy()], axis=1)
        return A.T @ (self.w[:, None] * A)

    def solve(self, rhs: np.ndarray) -> np.ndarray:
        """Apply the inverse of the penalised equations, also where V is singular."""
        q, p = self.Z.shape[1], self.p
        scale = block_diag(self.L, np.eye(p))
        Omega = scale.T @ self.equations @ scale
        Omega[:q, :q] += np.eye(q)
        return scale @ np.linalg.solve(Omega, scale.T @ rhs)
