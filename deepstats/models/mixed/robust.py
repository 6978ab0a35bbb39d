"""Standard errors of fixed effects that are robust to correlation within clusters.

The sandwich ``M (sum_i X_i' W_i A_i e_i e_i' A_i W_i X_i) M`` over clusters i, with W_i
the inverse of the model's covariance Phi_i of a cluster, ``M = (X'WX)^-1`` and e_i
residuals of the fixed part. CR0 has ``A_i = I``. CR2 (Bell & McCaffrey 2002;
Pustejovsky & Tipton 2018) has the symmetric A_i that makes the sandwich unbiased where
the model's covariance holds: ``A_i (Phi_i - X_i M X_i') A_i = Phi_i``. As clubSandwich
does for lmer, Phi is relative to the residual variance; weights, which clubSandwich
refuses, are in it.

A cluster costs the cube of its rows, or of its effects where they are fewer: outside
the span of ``[X_i Z_i]`` both covariances are the identity, and so is A_i.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import special

from ...compute import one_thread
from ...design import Grouping
from ...errors import ModelError
from ...inference import Covariance, HypothesisTest
from .rows import random_columns

if TYPE_CHECKING:
    from ...results import Results
    from .results import MixedResults

__all__ = [
    "ClusterCovariance",
    "cluster_covariance",
    "cluster_df",
    "cluster_test",
    "clusters_of",
]

KINDS = ("CR0", "CR2")

# A cluster with more rows than this is reduced to the span of its effects.
_LARGE = 48
# Numbers held at once for a batch of clusters of one size.
_BATCH = 2_000_000
# Eigenvalues below this share of the largest count as zero, as in clubSandwich.
_ZERO = 1e-12
# A combination whose mean variance is below this share of another's has none.
_RANK = 1e-10


@dataclass(frozen=True, eq=False)
class ClusterCovariance(Covariance):
    """A cluster-robust covariance, and what its degrees of freedom need.

    Attributes
    ----------
    onto : ndarray, shape (clusters, p, p)
        ``X_i' W_i A_i X_i``.
    forms : ndarray, shape (clusters, p, p)
        ``X_i' W_i A_i Phi_i A_i W_i X_i``.
    M : ndarray, shape (p, p)
    """

    onto: np.ndarray | None = None
    forms: np.ndarray | None = None
    M: np.ndarray | None = None


@one_thread()
def cluster_covariance(
    results: MixedResults, kind: str, groups: Any = None
) -> ClusterCovariance:
    """Cluster-robust covariance of the fixed effects.

    Parameters
    ----------
    results : MixedResults
    kind : {"CR0", "CR2"}
    groups : str or array_like, optional
        Clusters, within which every level of every grouping factor must lie. By
        default the coarsest grouping factor of the model.

    Raises
    ------
    ModelError
        Where random effects are shared by clusters.
    """
    if kind not in KINDS:
        raise ValueError(
            f"cov_type of a mixed model must be nonrobust, {' or '.join(KINDS)}; not "
            f"{kind!r}."
        )
    clusters = clusters_of(results, groups)
    m, p = len(clusters), results.mixed.products.p
    results.model.compute.require(
        2 * m * p * p, f"two {p} x {p} matrices for each of {m:,} clusters",
        "use coarser groups=.",
    )  # fmt: skip
    M = results.mixed.factorisation.cov_beta.cpu().numpy()
    scores = np.empty((m, p))
    onto, forms = np.empty((m, p, p)), np.empty((m, p, p))
    for at, (score, left, form) in _Rows(results, clusters, kind, M).pieces():
        scores[at], onto[at], forms[at] = score, left, form
    half = scores @ M
    description = f"{kind} cluster by {clusters.name} ({m})"
    return ClusterCovariance(
        torch.from_numpy(half.T @ half), kind, description, float(m - 1), (m,),
        {"groups": clusters.name}, onto, forms, M,
    )  # fmt: skip


def clusters_of(results: Results, groups: Any) -> Grouping:
    """Read the clusters, or find the coarsest factor that holds all others.

    Parameters
    ----------
    results : Results
        Of a mixed model.
    groups : str or array_like, optional

    Raises
    ------
    ModelError
        Where random effects are shared by clusters.
    """
    design = results.model.design
    factors = {r.grouping.name: r.grouping for r in design.random}
    if groups is None:
        clusters = min(factors.values(), key=len)
        advice = (
            "Crossed random effects have no independent clusters: use the model's own "
            "standard errors, or groups= with units that share no level."
        )
    else:
        found = design.groupings(groups)
        if len(found) != 1:
            raise ModelError("mixed models take clusters in one dimension.")
        clusters = found[0]
        advice = "Use coarser clusters, such as the model's coarsest grouping factor."
    for name, factor in factors.items():
        if not _within(factor, clusters):
            raise ModelError(
                f"levels of {name} are in more than one cluster of {clusters.name}, so "
                f"that clusters are not independent. {advice}"
            )
    if len(clusters) < 2:
        raise ModelError("cluster-robust standard errors need at least two clusters.")
    return clusters


def _within(factor: Grouping, clusters: Grouping) -> bool:
    """Whether every level of a factor is in one cluster only."""
    home = np.empty(len(factor), dtype=np.int64)
    home[factor.codes] = clusters.codes
    return bool((home[factor.codes] == clusters.codes).all())


class _Rows:
    """The rows by cluster, and the algebra of a batch of clusters of one size."""

    def __init__(
        self, results: MixedResults, clusters: Grouping, kind: str, M: np.ndarray
    ) -> None:
        model, fitted = results.model, results.mixed
        design, compute = model.design, model.compute.on_cpu()
        self.kind, self.M, self.compute = kind, M, compute
        order = np.argsort(clusters.codes, kind="stable")
        self.sizes = np.bincount(clusters.codes, minlength=len(clusters))
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.X = design.X.to_dense(compute).numpy()[order]
        y = np.asarray(design.y, dtype=np.float64)
        if design.offset is not None:
            y = y - design.offset
        self.e = y[order] - self.X @ fitted.beta
        self.Z = [z[order] for z in random_columns(design, compute)]
        # Columns of a term times the factor of its covariance.
        self.Z = [z @ root for z, root in zip(self.Z, fitted.roots, strict=True)]
        self.codes = [r.grouping.codes[order] for r in design.random]
        w = None if design.weights is None else design.weights[order]
        self.inverse_weights = None if w is None else 1 / w
        if w is not None and kind == "CR0":
            # Without a symmetric root to take, rows can be scaled to unit weights.
            half = np.sqrt(w)
            self.X, self.e = self.X * half[:, None], self.e * half
            self.Z = [z * half[:, None] for z in self.Z]
            self.inverse_weights = None

    def pieces(self) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        """Clusters and their scores, ``X'WAX`` and ``X'WA Phi AWX``."""
        for size in np.unique(self.sizes):
            chosen = np.flatnonzero(self.sizes == size)
            if size > _LARGE and self.inverse_weights is None:
                for i in chosen:
                    yield np.array([i]), self._algebra(*self._reduced(i))
                continue
            self.compute.require(
                6 * int(size) ** 2, f"{self.kind} with {size:,} rows in a cluster",
                "use CR0, which needs no root of a matrix of that size.",
            )  # fmt: skip
            step = max(1, _BATCH // int(size) ** 2)
            for start in range(0, len(chosen), step):
                at = chosen[start : start + step]
                yield at, self._algebra(*self._stacked(at, int(size)))

    def _stacked(self, at: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        """Return X, residuals and Phi of clusters of one size, row by row."""
        rows = self.starts[at][:, None] + np.arange(size)
        if self.inverse_weights is None:
            Phi = np.broadcast_to(np.eye(size), (len(at), size, size)).copy()
        else:
            Phi = self.inverse_weights[rows][:, :, None] * np.eye(size)
        for Z, codes in zip(self.Z, self.codes, strict=True):
            z, c = Z[rows], codes[rows]
            Phi += (z @ z.swapaxes(1, 2)) * (c[:, :, None] == c[:, None])
        return self.X[rows], self.e[rows], Phi

    def _reduced(self, i: int) -> tuple[np.ndarray, ...]:
        """Return the same of one cluster in a basis of the span of its effects."""
        at = slice(self.starts[i], self.starts[i] + self.sizes[i])
        columns = []
        for Z, codes in zip(self.Z, self.codes, strict=True):
            levels, code = np.unique(codes[at], return_inverse=True)
            wide = np.zeros((self.sizes[i], len(levels), Z.shape[1]))
            wide[np.arange(self.sizes[i]), code] = Z[at]
            columns.append(wide.reshape(self.sizes[i], -1))
        wide = np.concatenate(columns, axis=1)
        basis = np.linalg.qr(np.concatenate([self.X[at], wide], axis=1))[0]
        inner = basis.T @ wide
        Phi = np.eye(basis.shape[1]) + inner @ inner.T
        return (basis.T @ self.X[at])[None], (basis.T @ self.e[at])[None], Phi[None]

    def _algebra(
        self, X: np.ndarray, e: np.ndarray, Phi: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        J = np.linalg.solve(Phi, X).swapaxes(1, 2)
        if self.kind == "CR2":
            J = J @ _adjustment(Phi, X @ self.M @ X.swapaxes(1, 2))
        score = (J @ e[:, :, None])[:, :, 0]
        return score, J @ X, J @ Phi @ J.swapaxes(1, 2)


def _adjustment(Phi: np.ndarray, hat: np.ndarray) -> np.ndarray:
    """Symmetric A with ``A (Phi - hat) A = Phi``, on the range of ``Phi - hat``."""
    D = np.linalg.cholesky(Phi).swapaxes(1, 2)
    B = D @ (Phi - hat) @ D.swapaxes(1, 2)
    values, vectors = np.linalg.eigh((B + B.swapaxes(1, 2)) / 2)
    keep = values > _ZERO * values[:, -1:]
    roots = np.where(keep, 1 / np.sqrt(np.where(keep, values, 1.0)), 0.0)
    middle = (vectors * roots[:, None]) @ vectors.swapaxes(1, 2)
    return D.swapaxes(1, 2) @ middle @ D


# -- degrees of freedom ---------------------------------------------------------------


def cluster_df(results: MixedResults, R: np.ndarray) -> np.ndarray:
    """Satterthwaite degrees of freedom of contrasts with robust standard errors.

    Twice the squared mean over the variance of the variance estimate, where the
    model's covariance holds (Bell & McCaffrey 2002; clubSandwich's "Satterthwaite").

    Parameters
    ----------
    results : MixedResults
        With a `ClusterCovariance`.
    R : ndarray, shape (contrasts, p)
    """
    return np.array([_wishart(results.covariance, r[None])[0] for r in R])


def cluster_test(results: MixedResults, R: np.ndarray, q: np.ndarray) -> HypothesisTest:
    """Test ``R beta = q`` with robust standard errors.

    Hotelling's T-squared with approximate degrees of freedom (clubSandwich's "HTZ"):
    ``F = Q (eta - k + 1) / (eta k)`` of k restrictions with (k, eta - k + 1) degrees of
    freedom; NaN where too few clusters tell about the restrictions.

    Parameters
    ----------
    results : MixedResults
    R : ndarray, shape (restrictions, p)
        Of full rank.
    q : ndarray, shape (restrictions,)

    References
    ----------
    Tipton & Pustejovsky (2015), Small-sample adjustments for tests of moderators and
    model fit using robust variance estimation in meta-regression, Journal of
    Educational and Behavioral Statistics 40.
    """
    eta, _ = _wishart(results.covariance, R)
    k = len(R)
    df = eta - k + 1
    if not df > 0:
        return HypothesisTest(np.nan, float(k), float(df), np.nan, "F")
    difference = R @ results.params.to_numpy() - q
    Q = difference @ np.linalg.solve(R @ results._cov @ R.T, difference)
    F = float(Q * df / (eta * k))
    return HypothesisTest(F, float(k), float(df), float(special.fdtrc(k, df, F)), "F")


def _wishart(cov: Covariance, R: np.ndarray) -> tuple[float, np.ndarray]:
    """Degrees of freedom of the Wishart distribution nearest to ``R V R'``.

    Returns
    -------
    eta : float
        NaN where the mean is singular.
    mean : ndarray, shape (k, k)
        Of ``R V R'`` over sigma^2.
    """
    if not isinstance(cov, ClusterCovariance):
        raise ModelError(
            "these results were loaded from a file, which holds no clusters; fit the "
            "model again, or use ddf='normal'."
        )
    C = R @ cov.M
    forms = np.einsum("si,nij,tj->nst", C, cov.forms, C, optimize=True)
    half = np.linalg.cholesky(cov.M)
    u = np.einsum("si,nij,jk->nsk", C, cov.onto, half, optimize=True)
    mean = forms.sum(0) - np.einsum("nsk,ntk->st", u, u)
    values, vectors = np.linalg.eigh(mean)
    if not values[0] > _RANK * values[-1]:
        return np.nan, mean
    turn = (vectors / np.sqrt(values)) @ vectors.T
    forms = turn @ forms @ turn
    u = turn @ u
    inner = u @ u.swapaxes(1, 2)
    K = np.einsum("nsk,ntl->stkl", u, u, optimize=True)
    d, i = np.einsum("nss->ns", forms), np.einsum("nss->ns", inner)
    one = d.T @ d - d.T @ i - i.T @ d + (K**2).sum((2, 3))
    two = (forms**2 - 2 * forms * inner).sum(0)
    two = two + np.einsum("stkl,stlk->st", K, K)
    k = len(R)
    return float(k * (k + 1) / (one + two).sum()), mean
