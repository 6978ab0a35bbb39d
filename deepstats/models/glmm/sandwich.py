"""Standard errors that are robust to what a model has wrong within clusters.

Where clusters share no random effect the log-likelihood is a sum over clusters, and the
sandwich ``B (sum_c g_c g_c') B`` holds for all parameters together, covariances and
coefficients: B the inverse of the observed information, g_c the exact derivative of
what a cluster adds to the log-likelihood, by Laplace's method or by quadrature.

References
----------
White (1982), Maximum likelihood estimation of misspecified models, Econometrica 50.
Wang & Merkle (2018), merDeriv: Derivative computations for linear mixed effects models
with application to robust standard errors, Journal of Statistical Software 87.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...compute import one_thread
from ...design import Grouping
from ...errors import ModelError
from ...inference import Covariance
from ..mixed.robust import clusters_of
from .laplace import Point
from .quadrature import Quadrature
from .uncertainty import covariance_of_all

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = ["cluster_scores", "robust", "sandwich"]

_KINDS = {"CR0": False, "robust": False, "cluster": True}
#: Covariances worse conditioned than this (by standard deviations) are singular.
_SINGULAR = 1e7


@one_thread()
def sandwich(
    results: MixedGLMResults, kind: str, groups: Any = None
) -> tuple[np.ndarray, Covariance]:
    """Cluster-robust covariance of all parameters.

    Parameters
    ----------
    results : MixedGLMResults
    kind : {"cluster", "CR0", "robust"}
        "cluster" multiplies by G / (G - 1), G the number of clusters, as Stata and the
        other models here; "CR0", also called "robust", does not.
    groups : str or array_like, optional
        Clusters, within which every level of every grouping factor must lie. By
        default the coarsest grouping factor of the model.

    Returns
    -------
    joint : ndarray, shape (T, T)
        Of covariance parameters and coefficients; NaN for those at the edge.
    covariance : Covariance
        Of the coefficients.

    Raises
    ------
    ModelError
        Where random effects are shared by clusters, and for restricted likelihoods,
        which are no sum over clusters.
    """
    if kind not in _KINDS:
        raise ModelError(
            f"cov_type={kind!r}: generalised linear mixed models have 'nonrobust' "
            "(observed information) and the sandwich by clusters: 'cluster' (times "
            "G / (G - 1)) and 'CR0'."
        )
    if results.reml:
        raise ModelError(
            "a restricted likelihood is no sum over clusters; fit with reml=False for "
            "cluster-robust standard errors."
        )
    clusters = clusters_of(results, groups)
    scores, bread = cluster_scores(results, clusters), covariance_of_all(results)
    half = np.where(results.found.free, scores, 0.0) @ bread
    count = len(clusters)
    factor = count / (count - 1) if _KINDS[kind] else 1.0
    joint, k = factor * half.T @ half, len(results.found.point.x)
    edge = ~results.found.free
    joint[edge], joint[:, edge] = np.nan, np.nan
    covariance = Covariance(
        torch.from_numpy(joint[k:, k:]), "cluster" if kind == "cluster" else "CR0",
        f"{kind if kind == 'cluster' else 'CR0 cluster'} by {clusters.name} ({count})",
        float(count - 1), (count,), {"groups": clusters.name},
    )  # fmt: skip
    return joint, covariance


def cluster_scores(results: MixedGLMResults, clusters: Grouping) -> np.ndarray:
    """Differentiate what each cluster adds to the log-likelihood.

    Parameters
    ----------
    results : MixedGLMResults
    clusters : Grouping
        That share no level of a grouping factor.

    Returns
    -------
    ndarray, shape (clusters, T)
        In the covariance parameters of the search and all coefficients. The sum is
        zero at an optimum.
    """
    point = results.found.point
    laplace = point.laplace
    by_levels = _quadrature if isinstance(laplace, Quadrature) else _laplace
    along, levels = by_levels(point)
    codes = torch.from_numpy(np.array(clusters.codes, dtype=np.int64))
    count = len(clusters)

    def summed(values: Tensor, home: Tensor) -> np.ndarray:
        out = values.new_zeros(count, values.shape[1])
        return out.index_add(0, home.to(values.device), values).cpu().numpy()

    by_x = np.zeros((count, len(point.x)))
    for factor, values in zip(laplace.structure.factors, levels, strict=True):
        home = torch.empty(factor.m, dtype=torch.int64)
        home[torch.from_numpy(np.array(factor.codes, dtype=np.int64))] = codes
        by_x += summed(values, home)
    by_gamma = [
        summed(X * a[:, None], codes) for X, a in zip(laplace.X, along, strict=True)
    ]
    # The criterion is minus twice the log-likelihood.
    return -0.5 * np.concatenate([by_x, *by_gamma], axis=1)


def _laplace(point: Point) -> tuple[list[Tensor], list[Tensor]]:
    """Differentiate by row in every predictor, and by level of every factor.

    Returns
    -------
    along : list of Tensor, each (n,)
    levels : list of Tensor, each (m, parameters)
    """
    laplace, structure = point.laplace, point.laplace.structure
    pieces = laplace.pieces(point, point.leverages, lambda g: laplace.through(point, g))
    blocks = _precisions(point)
    levels = [s.new_zeros(s.shape[1], len(point.x)) for s in pieces.score]
    directions = structure.directions(point.x)
    for number, (j, D) in enumerate(directions):
        s, c, T = pieces.score[j], pieces.left[j], blocks[j]
        if T is None:
            continue
        d = torch.from_numpy(D).to(s)
        pull = d @ s
        levels[j][:, number] = (
            torch.einsum("abm,ab->m", T, d) - (s * pull).sum(0) + (c * pull).sum(0)
        )
    return pieces.along, levels


def _precisions(point: Point) -> list[Tensor | None]:
    """Blocks of ``Z'Sigma^-1 Z`` by level of each factor, (K, K, m).

    None where a covariance is zero in all directions that could be asked for.
    """
    laplace, f = point.laplace, point.modes.factorisation
    diagonal, _, _ = f.blocks(with_x=False)
    if len(diagonal) == 1:
        # Also where the covariance is singular.
        A, K = laplace.rows._own(point.modes.weights, 0), diagonal[0]
        return [A - torch.einsum("abm,bcm,cdm->adm", A, K, A)]
    out: list[Tensor | None] = []
    for j, (K, root) in enumerate(
        zip(diagonal, laplace.structure.roots(point.x), strict=True)
    ):
        sizes = np.linalg.svd(root, compute_uv=False)
        if sizes.max() == 0:
            out.append(None)
            continue
        if sizes.max() > _SINGULAR * sizes.min():
            raise ModelError(
                f"the covariance of {laplace.structure.factors[j].name} is singular, "
                "and the sandwich is not defined there; leave the term out or "
                "simplify it (|| for |)."
            )
        P = torch.from_numpy(np.linalg.inv(root @ root.T)).to(K)
        out.append(P[:, :, None] - torch.einsum("ab,bcm,cd->adm", P, K, P))
    return out


def _quadrature(point: Point) -> tuple[list[Tensor], list[Tensor]]:
    """Do as `_laplace` for quadrature."""
    laplace = point.laplace
    assert isinstance(laplace, Quadrature)
    along, by_W = laplace.row_slopes(point)
    rows, factor = laplace.rows, laplace.structure.factors[0]
    total = along[0].new_zeros(factor.m, factor.k, factor.k)
    for Z, by in zip(rows.columns(0), by_W, strict=True):
        total = total.index_add(0, rows.codes[0], Z.T[:, :, None] * by[:, None, :])
    slopes = laplace.root_slopes(point.x)
    columns = [
        total.new_zeros(factor.m) if slope is None
        else torch.einsum("mab,ab->m", total, torch.from_numpy(slope).to(total))
        for slope in slopes
    ]  # fmt: skip
    return along, [torch.stack(columns, dim=1)]


def robust(results: MixedGLMResults, kind: str, groups: Any = None) -> MixedGLMResults:
    """Return the same fit with cluster-robust standard errors; see `sandwich`."""
    joint, covariance = sandwich(results, kind, groups)
    return type(results)(
        results.model, results.fit_info, results.found, joint, covariance
    )
