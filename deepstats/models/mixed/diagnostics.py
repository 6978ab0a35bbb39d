"""What a fit of a linear mixed model rests on, and how much it explains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, log, pi
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.linalg import block_diag

from ...compute import one_thread
from ...design import Design
from ...errors import DesignError
from ...leastsquares import least_squares
from .criterion import Criterion
from .fitted import Fitted
from .products import cross_products
from .rows import fixed_part, random_columns
from .rowvariance import Rows, curvature, free_parameters
from .search import minimise
from .structure import Term

if TYPE_CHECKING:
    from .results import MixedResults

__all__ = [
    "Convergence",
    "GroupInfluence",
    "check_convergence",
    "conditional_aic",
    "cooks",
    "group_influence",
    "intraclass",
    "leverages",
    "principal_components",
    "r_squared",
]

# A Newton step this short, in standard errors, is no step.
_SHORT = 1e-3
# Curvature below minus this (diagonal scaled to one) is a saddle's.
_BENT = 1e-6
# A derivative at the edge of the range may point outwards by rounding only.
_OUTWARD = 1e-5


# -- rows ----------------------------------------------------------------------------


@one_thread()
def leverages(results: MixedResults) -> np.ndarray:
    """Diagonal of the hat matrix: derivative of each fitted value in its response.

    For fixed and random effects together, at the estimated covariance:
    ``w_i a_i'K a_i`` with K the inverse of Henderson's equations. Their sum is the
    effective number of parameters of Hodges & Sargent (2001).

    Parameters
    ----------
    results : MixedResults

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    Demidenko & Stukel (2005), Influence analysis for linear mixed-effects models,
    Statistics in Medicine 24.
    """
    design, fitted = results.model.design, results.mixed
    columns = random_columns(design, fitted.compute)
    codes = [r.grouping.codes for r in design.random]
    rows = Rows.build(fitted, design, columns, codes)
    found = fitted.inverse.quadratic(rows).cpu().numpy()
    return found if design.weights is None else found * design.weights


def cooks(results: MixedResults) -> np.ndarray:
    """Cook's distance of each row, the covariance parameters held.

    ``r^2 h / (p sigma^2 (1 - h)^2)`` with Pearson residuals r and leverages h, as in
    lme4 and MixedModels.jl; NaN for a leverage of one.

    Parameters
    ----------
    results : MixedResults

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    Cook (1977), Detection of influential observation in linear regression,
    Technometrics 19.
    """
    h, r = results.leverage.to_numpy(), results.resid_pearson.to_numpy()
    p, scale = results.mixed.products.p, results.sigma**2
    with np.errstate(divide="ignore", invalid="ignore"):
        out = (r / (1 - h)) ** 2 * h / (scale * p)
    return np.where(np.isfinite(out), out, np.nan)


# -- groups --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroupInfluence:
    """Estimates without each level of a factor.

    Attributes
    ----------
    group : str
    frame : DataFrame
        One row a level left out: fixed effects, then the relative covariance factors
        and sigma as in `MixedResults.theta` and `sigma`, then whether the search
        converged. A fixed effect that only this level tells of is NaN.
    full : Series
        The same of the whole data.
    std_errors : DataFrame
        Standard errors of the fixed effects without each level.
    covariance : DataFrame
        Covariance of the fixed effects of the whole data.
    """

    group: str
    frame: pd.DataFrame
    full: pd.Series
    std_errors: pd.DataFrame
    covariance: pd.DataFrame

    @property
    def dfbeta(self) -> pd.DataFrame:
        """Fixed effects of the whole data less those without each level."""
        names = self.covariance.columns
        return self.full[names] - self.frame[names]

    @property
    def dfbetas(self) -> pd.DataFrame:
        """The same in standard errors without the level (Belsley et al. 1980)."""
        return self.dfbeta / self.std_errors

    @property
    def cooks_distance(self) -> pd.Series:
        """Cook's distance of each level: ``d'Cov^-1 d / p``.

        That of Nieuwenhuis, te Grotenhuis & Pelzer (2012). lme4 multiplies by
        ``(m - p) / m``, m being the number of levels.
        """
        d = self.dfbeta.to_numpy()
        half = np.linalg.solve(np.linalg.cholesky(self.covariance.to_numpy()), d.T)
        out = (half**2).sum(0) / len(half)
        return pd.Series(out, self.frame.index, name="cooks_distance")

    @property
    def converged(self) -> pd.Series:
        """Whether each search converged."""
        return self.frame["converged"]


@one_thread()
def group_influence(results: MixedResults, group: str) -> GroupInfluence:
    """Refit without each level of a factor.

    The criterion is that of the fit and the search starts from its optimum, so that it
    takes two or three steps. Each level costs one pass over all rows and those steps.

    Parameters
    ----------
    results : MixedResults
    group : str
        A grouping factor of the model, or any column of the data.

    Returns
    -------
    GroupInfluence

    References
    ----------
    Belsley, Kuh & Welsch (1980), Regression diagnostics. Nieuwenhuis, te Grotenhuis &
    Pelzer (2012), influence.ME: tools for detecting influential data in mixed effects
    models, The R Journal 4(2).
    """
    design = results.model.design
    factors = {r.grouping.name: r.grouping for r in design.random}
    grouping = factors.get(group) or design.grouping(group, "group")
    names = list(results.model.design.X.names)
    theta = list(results.theta.index)
    rows, errors = [], []
    for code, level in enumerate(grouping.levels):
        fitted, kept = fit_without(results, grouping.codes == code, level)
        beta, se = np.full(len(names), np.nan), np.full(len(names), np.nan)
        beta[kept], se[kept] = fitted.beta, np.sqrt(np.diag(fitted.cov_beta))
        parameters = fitted.structure.theta(fitted.x).values()
        rows.append([*beta, *parameters, fitted.sigma, fitted.found.converged])
        errors.append(se)
    index = pd.Index(grouping.levels, name=grouping.name)
    frame = pd.DataFrame(rows, index, [*names, *theta, "sigma", "converged"])
    params = results.params[names]
    full = pd.concat([params, results.theta, pd.Series({"sigma": results.sigma})])
    return GroupInfluence(
        grouping.name, frame, full, pd.DataFrame(errors, index, names),
        pd.DataFrame(results.mixed.cov_beta, names, names),
    )  # fmt: skip


def fit_without(
    results: MixedResults, gone: np.ndarray, level: object
) -> tuple[Fitted, list[int]]:
    """Fit without some rows, and the fixed effects that can be estimated.

    Rows of weight zero leave all cross-products, and a level without rows leaves the
    criterion.
    """
    model, fitted = results.model, results.mixed
    design, compute = model.design, model.compute
    w = np.ones(design.n) if design.weights is None else design.weights
    n = int((~gone).sum())
    reduced = replace(design, weights=np.where(gone, 0.0, w))
    fixed = least_squares(reduced, compute)
    if n <= len(fixed.kept) + fitted.structure.size:
        raise DesignError(
            f"without {level!r} {n} rows are left, too few for the model's parameters."
        )
    if len(fixed.kept) < design.X.k:
        reduced = _select(reduced, fixed.kept)
    with np.errstate(divide="ignore"):
        products = cross_products(reduced, fitted.structure, fixed, compute)
    given = design.weights is not None
    products = replace(
        products, n=n, log_weights=float(np.log(w[~gone]).sum()) if given else 0.0
    )
    criterion = Criterion(products, fitted.reml, model.sigma)
    return Fitted(minimise(criterion, _inside(fitted)), criterion, compute), fixed.kept


def _select(design: Design, kept: list[int]) -> Design:
    """Keep some columns of the fixed part; the model's own specification stays."""
    spec = replace(design.spec, kept=dict(design.spec.kept))
    return replace(design, spec=spec).select_columns(kept)


def _inside(fitted: Fitted) -> np.ndarray:
    """Start at the optimum, but not from exactly zero variances."""
    return np.where(
        fitted.x > fitted.structure.lower, fitted.x, np.maximum(fitted.x, 1e-3)
    )


# -- how much is explained -----------------------------------------------------------


def _variances(results: MixedResults) -> tuple[float, dict[str, float], float]:
    """Variance of the fixed part, mean variances by factor, and of the residual."""
    design, fitted = results.model.design, results.mixed
    beta = results.fe_params.to_numpy(copy=True)
    predictor = fixed_part(replace(design, offset=None), beta, fitted.compute)
    # Terms of another predictor than the mean's are no part of its variance.
    of_mean = {r.grouping.name for r in design.random if not r.part}
    shares = {name: 0.0 for name in results.ngroups if name in of_mean}
    columns = random_columns(design, fitted.compute)
    for term, Z, root, random in zip(
        fitted.structure.terms, columns, fitted.roots, design.random, strict=True
    ):
        if random.part:
            continue
        name = fitted.structure.factors[term.factor].name
        mean = ((Z @ root) ** 2).sum(1).mean()
        shares[name] += float(fitted.sigma**2 * mean)
    w = design.weights
    residual = fitted.sigma**2 * (1.0 if w is None else float((1 / w).mean()))
    return float(predictor.var(ddof=1)), shares, residual


def r_squared(results: MixedResults, residual: float | None = None) -> pd.Series:
    """Marginal and conditional R-squared.

    With the variance F of the fixed part over the rows (offset left out), R the mean of
    ``z'Vz`` over the rows, and E the (mean) residual variance: ``F / (F + R + E)`` and
    ``(F + R) / (F + R + E)``.

    Parameters
    ----------
    results : MixedResults
    residual : float, optional
        Residual variance in place of that of the model.

    Returns
    -------
    Series
        "marginal" and "conditional".

    References
    ----------
    Nakagawa & Schielzeth (2013), A general and simple method for obtaining R2 from
    generalized linear mixed-effects models, Methods in Ecology and Evolution 4.
    Johnson (2014), Extension of Nakagawa & Schielzeth's R2GLMM to random slopes models,
    ibid. 5. Nakagawa, Johnson & Schielzeth (2017), Journal of the Royal Society
    Interface 14.
    """
    fixed, shares, own = _variances(results)
    residual = own if residual is None else residual
    random = sum(shares.values())
    total = fixed + random + residual
    values = [fixed / total, (fixed + random) / total]
    return pd.Series(values, ["marginal", "conditional"], name="R2")


def intraclass(results: MixedResults, residual: float | None = None) -> pd.DataFrame:
    """Share of the variance that each grouping factor has.

    Parameters
    ----------
    results : MixedResults
    residual : float, optional
        Residual variance in place of that of the model.

    Returns
    -------
    DataFrame
        A row for each factor, and "all" for all together. Columns: "adjusted", of the
        variance that is not of the fixed part, and "unadjusted", of all. With random
        slopes a factor's variance is the mean of ``z'Vz`` over the rows.

    References
    ----------
    Nakagawa, Johnson & Schielzeth (2017), The coefficient of determination R2 and
    intra-class correlation coefficient from generalized linear mixed-effects models
    revisited and expanded, Journal of the Royal Society Interface 14.
    """
    fixed, shares, own = _variances(results)
    residual = own if residual is None else residual
    part = pd.Series({**shares, "all": sum(shares.values())})
    rest = part["all"] + residual
    return pd.DataFrame({"adjusted": part / rest, "unadjusted": part / (fixed + rest)})


def conditional_aic(results: MixedResults) -> float:
    """Akaike criterion for predictions in the groups at hand.

    Minus twice the log-density of the responses given the predicted effects, plus 2K.
    With rho the trace of the hat matrix (the effective degrees of freedom of Hodges &
    Sargent 2001), n rows and p fixed effects, K corrects for finite samples (Vaida &
    Blanchard 2005, theorem 2 and its restricted form):
    ``((n - p - 1)(rho + 1) + p + 1) c / (n - p - 2)`` with ``c = n / (n - p)`` for
    maximum likelihood and 1 for REML; where sigma is known, ``K = rho``. Covariance
    parameters over sigma^2 are taken as known: Greven & Kneib (2010) correct for their
    estimation too, which is not done here.

    Parameters
    ----------
    results : MixedResults

    Returns
    -------
    float

    References
    ----------
    Vaida & Blanchard (2005), Conditional Akaike information for mixed-effects models,
    Biometrika 92. Hodges & Sargent (2001), Counting degrees of freedom in hierarchical
    and other richly-parameterised models, Biometrika 88. Greven & Kneib (2010), On the
    behaviour of marginal and conditional AIC in linear mixed models, Biometrika 97.
    """
    fitted = results.mixed
    n, p, s2 = fitted.products.n, fitted.products.p, fitted.sigma**2
    rho = float(results.leverage.sum())
    rss = float((results.resid_pearson**2).sum())
    deviance = n * log(2 * pi * s2) - fitted.products.log_weights + rss / s2
    return deviance + 2 * _penalty(rho, n, p, fitted.reml, results.model.sigma)


def _penalty(rho: float, n: int, p: int, reml: bool, sigma: float | None) -> float:
    if sigma is not None:
        return rho
    if n - p - 2 <= 0:
        return inf
    c = 1.0 if reml else n / (n - p)
    return c * ((n - p - 1) * (rho + 1) + p + 1) / (n - p - 2)


def principal_components(fitted: Fitted) -> dict[str, pd.DataFrame]:
    """Principal components of the random effects of each grouping factor.

    Parameters
    ----------
    fitted : Fitted

    Returns
    -------
    dict of str to DataFrame
        By factor, a row a component: "sd" (relative to sigma, as lme4's rePCA),
        "proportion" of the variance, "cumulative", and the loadings of the effects.
        A proportion near zero is a dimension that the data do not support.

    References
    ----------
    Bates, Kliegl, Vasishth & Baayen (2015), Parsimonious mixed models,
    arXiv:1506.04967.
    """
    out, factors = {}, fitted.structure.factors
    for j in sorted(range(len(factors)), key=lambda j: -factors[j].m):
        terms = fitted.structure.of(j)
        root = block_diag(*(fitted.roots[t.order] for t in terms))
        vectors, sizes, _ = np.linalg.svd(root)
        total = max(float((sizes**2).sum()), 1e-300)
        share = sizes**2 / total
        frame = pd.DataFrame(
            {"sd": sizes, "proportion": share, "cumulative": share.cumsum()},
            [f"PC{i + 1}" for i in range(len(sizes))],
        )
        for place, name in enumerate(_effect_names(terms)):
            frame[name] = vectors[place]
        out[factors[j].name] = frame
    return out


def _effect_names(terms: list[Term]) -> Iterator[str]:
    """Names of a factor's effects; one that is there already gets a number."""
    seen: dict[str, int] = {}
    for name in (n for t in terms for n in t.names):
        seen[name] = seen.get(name, -1) + 1
        yield f"{name}.{seen[name]}" if seen[name] else name


# -- the optimum ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Convergence:
    """What speaks for the optimum being one.

    Attributes
    ----------
    ok : bool
        Whether it is a minimum, up to a thousandth of a standard error.
    gradient : float
        Largest entry of the gradient of the deviance in the free parameters, each
        scaled by the square root of its curvature: about twice the distance to the
        optimum in standard errors.
    decrement : float
        Length of the Newton step that is left, in standard errors.
    smallest_curvature : float
        Smallest eigenvalue of the Hessian in the free parameters, scaled to a diagonal
        of one; NaN where none is free.
    singular : tuple of str
        Covariances on the edge of their range: an estimate, not a failure.
    messages : tuple of str
        What is wrong, if anything.
    """

    ok: bool
    gradient: float
    decrement: float
    smallest_curvature: float
    singular: tuple[str, ...]
    messages: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            "converged" if self.ok else "not converged",
            f"gradient {self.gradient:.2g} (scaled), "
            f"step left {self.decrement:.2g} standard errors, "
            f"smallest curvature {self.smallest_curvature:.2g}",
            *self.messages,
            *(f"singular: {s}" for s in self.singular),
        ]
        return "\n".join(lines)


@one_thread()
def check_convergence(fitted: Fitted) -> Convergence:
    """Verify first- and second-order conditions of the optimum.

    Lengths are in standard errors, so that neither the units of the data nor their
    number raise an alarm. At the edge of the range the gradient need not vanish: what
    must hold are the conditions of Karush, Kuhn and Tucker, that the deviance does not
    fall where a variance of zero, or a direction in which effects do not vary, grows.
    The Hessian is by differences of the exact gradient.

    Parameters
    ----------
    fitted : Fitted

    Returns
    -------
    Convergence

    References
    ----------
    Nocedal & Wright (2006), Numerical optimization, chapter 12.
    """
    free = free_parameters(fitted)
    H, g = fitted.with_residuals(curvature(fitted), fitted.point.gradient[free])
    gradient, decrement, smallest = _conditions(H, g)
    messages = list(_outward(fitted))
    if not decrement <= _SHORT:
        messages.append(
            f"the deviance still falls: a Newton step is {decrement:.2g} standard "
            "errors long. Fit with more steps (maxiter=) or from another start=."
        )
    if smallest < -_BENT:
        messages.append(
            "a saddle, not a minimum: the smallest scaled curvature is "
            f"{smallest:.2g}. Fit from another start=."
        )
    return Convergence(
        not messages, gradient, decrement, smallest, tuple(fitted.singular),
        tuple(messages),
    )  # fmt: skip


def _conditions(H: np.ndarray, g: np.ndarray) -> tuple[float, float, float]:
    """Scaled gradient, length of the step that is left, smallest curvature."""
    if not len(g):
        return 0.0, 0.0, np.nan
    scale = np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    values, vectors = np.linalg.eigh(H / scale[:, None] / scale)
    scaled = g / scale
    onto = vectors.T @ scaled
    # Along directions without curvature a step has no length to measure.
    bent = np.abs(values) > 1e-8
    decrement = float(np.sqrt((onto[bent] ** 2 / np.abs(values[bent])).sum()))
    return float(np.abs(scaled).max()), decrement, float(values[0])


def _outward(fitted: Fitted) -> Iterator[str]:
    """Terms whose variances want to grow from zero."""
    structure, x = fitted.structure, fitted.x
    for term in structure.terms:
        G = fitted.point.slopes[term.factor][term.at, term.at]
        if term.covariance is not None:
            held = x[term.params] <= term.covariance.lower
            inward = term.covariance.gradient(x[term.params], G)[held]
            if inward.min(initial=0.0) < -_OUTWARD * max(_size(fitted, term), 1.0):
                yield _grows(term)
            continue
        if term.variances:
            null = np.eye(term.k)[:, x[term.params] <= 0]
        else:
            left, sizes, _ = np.linalg.svd(term.root(x))
            null = left[:, sizes <= 1e-4 * max(sizes.max(), 1.0)]
        if not null.shape[1]:
            continue
        inner = null.T @ G @ null
        least = np.diag(inner).min() if term.variances else np.linalg.eigvalsh(inner)[0]
        if least < -_OUTWARD * max(_size(fitted, term), 1.0):
            yield _grows(term)


def _grows(term: Term) -> str:
    return (
        f"the deviance falls where {term.text} varies more than it does: the "
        "estimate on the edge is not the optimum. Fit from another start=."
    )


def _size(fitted: Fitted, term: Term) -> float:
    """Size that the two parts of a derivative, which cancel, have."""
    modes = fitted.point.modes[term.factor][term.at]
    return float((modes**2).sum(1).max() / fitted.point.variance)
