"""Degrees of freedom of tests of fixed effects, and standard errors of variances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from ...compute import one_thread
from ...errors import ModelError
from ...inference import HypothesisTest, wald
from ...prediction import ContrastResults
from .covariances import POSITIVE
from .fitted import Fitted
from .information import pseudo_inverse
from .modes import varcorr_frame

if TYPE_CHECKING:
    from .results import MixedResults
    from .structure import Term

__all__ = [
    "DDF",
    "KenwardRoger",
    "approximate_f",
    "coefficient_df",
    "contrast_table",
    "contrast_test",
    "kenward_roger",
    "random_parameters",
    "satterthwaite",
]

DDF = ("satterthwaite", "kenward-roger", "residual", "normal")

# Restrictions whose variance is below this share of the largest repeat others.
_RANK = 1.5e-8


# -- Satterthwaite --------------------------------------------------------------------


@one_thread()
def satterthwaite(fitted: Fitted, R: np.ndarray) -> np.ndarray:
    """Degrees of freedom of one-dimensional contrasts, as lmerTest.

    ``2 (r'Cr)^2 / (g'Ag)``: twice the squared variance of the contrast over the
    variance of its estimate, g its gradient in the covariance parameters and A their
    asymptotic covariance. Parameters at zero are taken as known to be zero.

    Parameters
    ----------
    fitted : Fitted
    R : ndarray, shape (contrasts, p)

    Returns
    -------
    ndarray, shape (contrasts,)

    References
    ----------
    Kuznetsova, Brockhoff & Christensen (2017), lmerTest package: tests in linear mixed
    effects models, Journal of Statistical Software 82(13).
    """
    curvature = fitted.curvature
    _, C = curvature.weights
    slopes = curvature.free_slopes
    variance = ((R @ C) * R).sum(1)
    g = ((R @ slopes) * R).sum(2).T
    if fitted.criterion.sigma is None:
        g = np.column_stack([g, variance])
    spread = ((g @ curvature.covariance) * g).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, 2 * variance**2 / spread, np.inf)


def _joint_df(nu: np.ndarray) -> float:
    """Denominator degrees of freedom of a mean of squared t (Fai & Cornelius 1996)."""
    if np.ptp(nu) < 1e-8:
        return float(nu.mean())
    if (nu <= 2).any():
        return 2.0
    E = (1 / (1 - 2 / nu)).sum()
    return float(2 * E / (E - len(nu)))


# -- Kenward & Roger ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KenwardRoger:
    """Adjusted covariance of the fixed effects, and moments of Wald statistics.

    Attributes
    ----------
    plain, covariance : ndarray, shape (p, p)
        Covariance as estimated, and adjusted for its bias.
    slopes : ndarray, shape (count, p, p)
        Derivatives of the plain covariance in the covariance parameters.
    W : ndarray, shape (count, count)
        Asymptotic covariance of the covariance parameters.
    """

    plain: np.ndarray
    covariance: np.ndarray
    slopes: np.ndarray
    W: np.ndarray

    def moments(self, R: np.ndarray) -> tuple[float, float]:
        """Denominator degrees of freedom and scale of ``F`` for ``R beta`` (rank q).

        Returns
        -------
        df, scale : float
            ``scale * F`` is taken as F with (q, df) degrees of freedom.
        """
        q = len(R)
        middle = np.linalg.inv(R @ self.plain @ R.T)
        U = np.einsum("ij,ajk->aik", middle, R @ self.slopes @ R.T)
        t = np.trace(U, axis1=1, axis2=2)
        A1 = float(t @ self.W @ t)
        A2 = float((self.W * np.einsum("aij,bji->ab", U, U)).sum())
        return approximate_f(A1, A2, q)


def approximate_f(A1: float, A2: float, q: int) -> tuple[float, float]:
    """Denominator degrees of freedom and scale of F from Kenward and Roger's A1, A2.

    Parameters
    ----------
    A1, A2 : float
        Of the approximate mean and variance of the Wald statistic.
    q : int
        Restrictions.
    """
    if A2 <= 0:
        return np.inf, 1.0
    B = (A1 + 6 * A2) / (2 * q)
    g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
    below = 3 * q + 2 * (1 - g)
    V0 = 1 + g / below * B
    V1 = 1 - (q - g) / below * B
    V2 = 1 - (q + 2 - g) / below * B
    ratio = 1.0 if max(abs(1 - A2 / q), abs(V1)) < 1e-10 else (1 - A2 / q) / V1
    rho = ratio**2 * (0.0 if abs(V0) < 1e-10 else V0) / V2 / q
    df = 4 + (q + 2) / (q * rho - 1)
    return df, 1.0 if abs(df - 2) < 1e-2 else df * (1 - A2 / q) / (df - 2)


@one_thread()
def kenward_roger(fitted: Fitted) -> KenwardRoger:
    """Adjust the covariance of the fixed effects for small samples.

    The parameters are the (co)variances, all of them, also those estimated as zero,
    and the residual variance. In place of the residual's own covariance W^-1 the
    parameters have all of Sigma as direction, which spans the same space with the
    others and has traces known beforehand; the results do not depend on the basis.

    Parameters
    ----------
    fitted : Fitted

    Raises
    ------
    ModelError
        For a fit by maximum likelihood.

    References
    ----------
    Kenward & Roger (1997), Small sample inference for fixed effects from restricted
    maximum likelihood, Biometrics 53. Halekoh & Højsgaard (2014), A Kenward-Roger
    approximation and parametric bootstrap methods for tests in linear mixed models,
    Journal of Statistical Software 59(9).
    """
    if not fitted.reml:
        raise ModelError(
            "Kenward-Roger degrees of freedom need a REML fit; use "
            "fit(reml=True), results.refit(reml=True), or ddf='satterthwaite'."
        )
    if fitted.structure.structured:
        (first, *_) = fitted.structure.structured
        raise ModelError(
            "Kenward-Roger degrees of freedom are for covariances that are linear in "
            f"their parameters, which that of {first.text} is not; use "
            "ddf='satterthwaite'."
        )
    return fitted.kenward_roger


def adjusted(fitted: Fitted) -> KenwardRoger:
    """Do the work of `kenward_roger`."""
    curvature, s2 = fitted.curvature, fitted.sigma**2
    basis = curvature.linear
    parts, C = curvature.weights
    slopes = curvature.covariance_slopes(basis)
    information = curvature.information(basis)
    if fitted.criterion.sigma is None:
        cross = curvature.traces(basis)
        information = np.block(
            [[information, cross[:, None]], [cross[None], fitted.criterion.df]]
        )
    W = 2 * pseudo_inverse(information)
    values, vectors = np.linalg.eigh(W[: len(basis), : len(basis)])
    bias = np.zeros_like(C)
    # A solution for each direction of W costs p columns; pairs of directions would
    # need them all at once.
    for value, vector in zip(values, vectors.T, strict=True):
        if value <= _RANK**2 * values[-1]:
            continue
        moved = [np.zeros_like(part) for part in parts]
        for weight, (j, D) in zip(vector, basis, strict=True):
            moved[j] += weight * np.einsum("rs,smp->rmp", D, parts[j])
        bias += value * curvature.project(moved)
    if fitted.criterion.sigma is None:
        slopes = np.concatenate([slopes, C[None]])
    return KenwardRoger(s2 * C, s2 * (C + 2 * bias), s2 * slopes, W)


# -- what the results ask for ---------------------------------------------------------


def coefficient_df(results: MixedResults) -> np.ndarray:
    """Degrees of freedom of each coefficient.

    Parameters
    ----------
    results : MixedResults

    Returns
    -------
    ndarray, shape (p,)
        By the results' `ddf`; infinite for "normal". With cluster-robust standard
        errors the Satterthwaite approximation that belongs to them, whatever `ddf`,
        except for "normal".
    """
    return _single_df(results, np.eye(len(results.names)))


def _single_df(results: MixedResults, R: np.ndarray) -> np.ndarray:
    """Degrees of freedom of contrasts one by one."""
    fitted, ddf = results.mixed, results.ddf
    if ddf == "normal":
        return np.full(len(R), np.inf)
    if results.covariance.kind != "nonrobust":
        from .robust import cluster_df

        return cluster_df(results, R)
    if ddf == "residual":
        return np.full(len(R), float(fitted.products.n - fitted.products.p))
    if ddf == "satterthwaite":
        return satterthwaite(fitted, R)
    found = kenward_roger(fitted)
    return np.array([found.moments(r[None])[0] for r in R])


def contrast_test(
    results: MixedResults, R: np.ndarray, q: np.ndarray, use_f: bool
) -> HypothesisTest:
    """Test ``R beta = q`` jointly.

    Parameters
    ----------
    results : MixedResults
    R : ndarray, shape (restrictions, p)
        Restrictions that repeat others are counted once.
    q : ndarray, shape (restrictions,)
    use_f : bool
        F with the denominator degrees of freedom of the results' `ddf`, else
        chi-squared. Satterthwaite as lmerTest's ``contestMD``; Kenward-Roger with its
        scale of F; with cluster-robust standard errors the approximate Hotelling test
        of `robust.cluster_test`.
    """
    beta, C = results.params.to_numpy(), results._cov
    if not use_f or results.ddf == "normal" or not np.isfinite(C).all():
        return wald(beta, C, R, q)
    if results.covariance.kind != "nonrobust":
        from .robust import cluster_test

        return cluster_test(results, *_independent(R, q, C))
    if results.ddf == "residual":
        df = float(results.mixed.products.n - results.mixed.products.p)
        return wald(beta, C, R, q, df)
    if results.ddf == "kenward-roger":
        return _kenward_roger_test(results, *_independent(R, q, C))
    values, vectors = np.linalg.eigh(R @ C @ R.T)
    keep = values > _RANK * values[-1]
    turned = vectors[:, keep].T @ R
    t2 = (turned @ beta - vectors[:, keep].T @ q) ** 2 / values[keep]
    df = _joint_df(satterthwaite(results.mixed, turned))
    return _f_test(float(t2.mean()), len(t2), df)


def _kenward_roger_test(
    results: MixedResults, R: np.ndarray, q: np.ndarray
) -> HypothesisTest:
    found = kenward_roger(results.mixed)
    difference = R @ results.params.to_numpy() - q
    F = difference @ np.linalg.solve(R @ found.covariance @ R.T, difference) / len(R)
    df, scale = found.moments(R)
    return _f_test(float(scale * F), len(R), df)


def _f_test(value: float, q: int, df: float) -> HypothesisTest:
    p = special.chdtrc(q, q * value) if np.isinf(df) else special.fdtrc(q, df, value)
    return HypothesisTest(value, float(q), float(df), float(p), "F")


def _independent(
    R: np.ndarray, q: np.ndarray, C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Restrictions without those that follow from others, scaled and turned."""
    middle = R @ C @ R.T
    scale = 1 / np.sqrt(np.maximum(np.diag(middle), 1e-300))
    values, vectors = np.linalg.eigh(middle * scale[:, None] * scale)
    turn = vectors[:, values > _RANK * values[-1]].T * scale
    return turn @ R, turn @ q


def contrast_table(
    results: MixedResults, R: np.ndarray, q: np.ndarray, labels: list[str], alpha: float
) -> ContrastResults:
    """Estimate and test linear combinations one by one.

    Parameters
    ----------
    results : MixedResults
    R : ndarray, shape (combinations, p)
    q : ndarray, shape (combinations,)
        Values under the null hypothesis.
    labels : list of str
    alpha : float
        One less the level of the intervals.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
    estimate = R @ results.params.to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        se = np.sqrt(((R @ results._cov) * R).sum(1))
        statistic = (estimate - q) / se
    df = _single_df(results, R)
    half = _t_quantile(1 - alpha / 2, df) * se
    frame = pd.DataFrame(
        {"coef": estimate, "std err": se, "t" if results.use_t else "z": statistic,
         "pvalue": 2 * _t_below(-np.abs(statistic), df),
         "lower": estimate - half, "upper": estimate + half, "df": df}, index=labels,
    )  # fmt: skip
    return ContrastResults(frame, results.use_t, 1 - alpha)


def _t_below(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Distribution function of t, normal for infinite degrees of freedom."""
    finite = np.where(np.isinf(df), 1.0, df)
    return np.where(np.isinf(df), special.ndtr(t), special.stdtr(finite, t))


def _t_quantile(level: float, df: np.ndarray) -> np.ndarray:
    finite = np.where(np.isinf(df), 1.0, df)
    return np.where(np.isinf(df), special.ndtri(level), special.stdtrit(finite, level))


# -- standard errors of variances -----------------------------------------------------


@one_thread()
def random_parameters(
    fitted: Fitted, alpha: float, covariance: np.ndarray | None = None
) -> pd.DataFrame:
    """Estimate variances, standard deviations and correlations with their errors.

    From the observed second derivatives of the (restricted) likelihood, by the delta
    method.

    Parameters
    ----------
    fitted : Fitted
    alpha : float
        One less the level of the intervals, which are made on the scales of the
        logarithm of a standard deviation and of Fisher's z of a correlation.
    covariance : ndarray, optional
        Of the parameters that are free; by default from the fit's own curvature.

    Returns
    -------
    DataFrame
        See `MixedResults.random_params`.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
    frame = varcorr_frame(fitted).rename(columns={"sdcor": "estimate"})
    gradients = _gradients(fitted)
    known = np.isfinite(gradients).all(2)
    filled = np.where(known[..., None], gradients, 0.0)
    if covariance is None:
        covariance = fitted.curvature.covariance
    variances = np.einsum("rea,ab,reb->re", filled, covariance, filled)
    errors = np.sqrt(np.maximum(variances, 0.0))
    errors[~known | (variances <= 0)] = np.nan
    estimate, se = frame["estimate"].to_numpy(dtype=float), errors[:, 1]
    z = special.ndtri(1 - alpha / 2)
    # Ranges are positive as standard deviations are; only they have no covariance.
    positive = frame["vcov"].isna() & frame["var2"].isin(POSITIVE)
    is_sd = (frame["var2"].isna() | positive).to_numpy()
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        fisher, width = np.arctanh(estimate), z * se / (1 - estimate**2)
        factor = np.exp(z * se / estimate)
        low = np.where(is_sd, estimate / factor, np.tanh(fisher - width))
        high = np.where(is_sd, estimate * factor, np.tanh(fisher + width))
    frame["std_error"], frame["vcov_std_error"] = se, errors[:, 0]
    frame["conf_low"], frame["conf_high"] = low, high
    columns = ["grp", "var1", "var2", "estimate", "std_error", "conf_low", "conf_high",
               "vcov", "vcov_std_error"]  # fmt: skip
    return frame[columns]


def _gradients(fitted: Fitted) -> np.ndarray:
    """Differentiate (co)variance and SD or correlation; (rows, 2, parameters).

    Rows as in `varcorr_frame`; NaN on the edge of the range.
    """
    structure, s2 = fitted.structure, fitted.sigma**2
    at = np.flatnonzero(fitted.curvature.free)
    estimated = fitted.criterion.sigma is None
    size, out = len(at) + estimated, []
    for j in fitted.structure.order:
        term, V = structure.terms[j], fitted.covariances[j]
        if term.covariance is not None:
            out += _structured_gradients(fitted, term, at, size)
            continue
        slopes = np.zeros((size, term.k, term.k))
        for place, a in enumerate(at):
            factor, D = fitted.curvature.directions[a]
            if factor == term.factor:
                slopes[place] = s2 * term.U @ D[term.at, term.at] @ term.U.T
        if estimated:
            slopes[-1] = V
        edge = fitted.on_edge(j)
        sd = np.sqrt(np.diag(V))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.einsum("aii->ia", slopes) / (2 * np.diag(V))[:, None]
            for r in range(term.k):
                pair = np.stack([slopes[:, r, r], sd[r] * relative[r]])
                out.append(pair * (np.nan if edge[r] else 1.0))
            if term.kind == "diag":
                continue
            for r in range(term.k):
                for c in range(r + 1, term.k):
                    cor = V[r, c] / (sd[r] * sd[c])
                    slope = slopes[:, r, c] / (sd[r] * sd[c])
                    slope = slope - cor * (relative[r] + relative[c])
                    pair = np.stack([slopes[:, r, c], slope])
                    out.append(pair * (np.nan if edge[r] or edge[c] else 1.0))
    last = np.zeros((2, size))
    if estimated:
        last[:, -1] = s2, fitted.sigma / 2
    return np.stack([*out, last])


def _structured_gradients(
    fitted: Fitted, term: Term, at: np.ndarray, size: int
) -> list[np.ndarray]:
    """Rows of `_gradients` of a structured covariance; (2, parameters) each.

    Where a parameter has no variance of its own to be printed with, that row is NaN.
    """
    own = term.covariance
    assert own is not None
    x, s = fitted.x[term.params], fitted.sigma
    sds = s * own.natural(x, term.U)[: own.scales]
    jacobian = np.zeros((own.size, fitted.structure.size))
    scale = s * np.diag(term.U)[: own.scales]
    roots = np.maximum(own.sizes(x), 1e-300)
    inner = np.ones(own.scales) if own.heterogeneous else 0.5 / roots
    inside = np.arange(term.params.start, term.params.stop)
    jacobian[np.arange(own.scales), inside[: own.scales]] = scale * inner
    jacobian[np.ix_(np.arange(own.scales, own.size), inside)] = own.shape_slopes(x)
    slopes = np.zeros((own.size, size))
    slopes[:, : len(at)] = jacobian[:, at]
    if size > len(at):
        slopes[: own.scales, -1] = sds / 2
    edge = np.zeros(own.size, bool)
    edge[: own.scales] = own.zeros(x)[: own.scales]
    edge[own.scales :] = not own.determined(x)[own.scales :].all()
    slopes[edge] = np.nan
    out = [
        np.stack([2 * sd * slope, slope])
        for sd, slope in zip(sds, slopes[: own.scales], strict=True)
    ]
    return out + [
        np.stack([np.full(size, np.nan), slope]) for slope in slopes[own.scales :]
    ]
