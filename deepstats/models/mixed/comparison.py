"""Likelihood-ratio tests between mixed models, and tables of several of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...compute import one_thread
from ...errors import ModelError
from ...inference import HypothesisTest

if TYPE_CHECKING:
    from ...results import Results
    from .results import MixedResults
    from .structure import Structure

__all__ = [
    "BoundaryTest",
    "compare_models",
    "comparison_table",
    "criteria",
    "likelihood_ratio_test",
]


@dataclass(frozen=True, repr=False)
class BoundaryTest(HypothesisTest):
    """A likelihood-ratio test whose null may be on the edge of the parameters' range.

    Attributes
    ----------
    naive_pvalue : float
        By chi-squared with `df_num` degrees of freedom, as if the null were inside;
        the same as `pvalue` unless the null fixes one variance at zero.
    variances : int
        Variances that are zero under the null.
    """

    naive_pvalue: float = nan
    variances: int = 0


# -- one test --------------------------------------------------------------------------


@one_thread()
def likelihood_ratio_test(full: MixedResults, restricted: Results) -> BoundaryTest:
    """Test a mixed model against a smaller one fitted to the same rows.

    Parameters
    ----------
    full : MixedResults
    restricted : MixedResults or results of `ols`
        Its fixed effects and random effects are among those of `full`.

    Returns
    -------
    BoundaryTest
        Its `name` says which likelihood was compared and which distribution gave the
        p-value. Where random effects of one column are removed, with or without their
        covariances, that is an equal mixture of chi-squared with one degree of freedom
        less and with all of them. Where more variances are zero under the null the
        weights depend on the design; chi-squared is then conservative, and it says so.

    Raises
    ------
    ValueError
        For other rows, another response, or models that are not nested.

    Notes
    -----
    Criteria of two REML fits are compared as they are where the fixed effects are the
    same. Otherwise REML fits are refitted by maximum likelihood.

    References
    ----------
    Self & Liang (1987), Journal of the American Statistical Association 82, 605-610.
    Stram & Lee (1994), Biometrics 50, 1171-1177.
    """
    _check_rows(full, restricted)
    df, variances = _restrictions(full, restricted)
    reml, refitted = _criterion(full, restricted)
    ours, theirs = (_deviance(r, full, reml) for r in (full, restricted))
    statistic = max(theirs - ours, 0.0)
    naive = _tail(statistic, df)
    pvalue, how = naive, ""
    if variances == 1:
        pvalue = 0.5 * (_tail(statistic, df - 1) + naive)
        how = f"mixture of chi2({df - 1}) and chi2({df}): a variance is zero if true"
    elif variances > 1:
        how = f"conservative: {variances} variances are zero if true"
    which = "REML criteria" if reml else "refitted by maximum likelihood"
    said = [which] * (reml or refitted) + [how] * bool(how)
    name = "likelihood ratio" + (f" ({'; '.join(said)})" if said else "")
    return BoundaryTest(statistic, df, None, pvalue, "chi2", name, naive, variances)


def _tail(statistic: float, df: int) -> float:
    """Upper tail of chi-squared; with no degrees of freedom all mass is at zero."""
    from scipy.special import chdtrc

    return float(chdtrc(df, statistic)) if df else float(statistic <= 0)


def _is_mixed(results: Results) -> bool:
    return hasattr(results, "mixed")


def _structure(results: Results) -> Structure | None:
    """Random effects; None for least squares."""
    return results.mixed.structure if hasattr(results, "mixed") else None


def _check_rows(full: Results, other: Results) -> None:
    if not _is_mixed(other) and "ssr" not in other.fit_info.facts:
        raise ModelError(
            f"{other.model_name} cannot be compared with a linear mixed model; compare "
            "two mixed models, or one with a fit of ds.ols."
        )
    if other.nobs != full.nobs:
        raise ValueError(
            f"the models use {full.nobs:g} and {other.nobs:g} observations; a "
            "likelihood-ratio test needs the same rows. Drop the rows with missing "
            "values before fitting."
        )
    if other.response_name != full.response_name:
        raise ValueError(
            f"the models explain {full.response_name} and {other.response_name}; "
            "their likelihoods cannot be compared."
        )
    one, two = full.model.design, other.model.design
    if not np.array_equal(np.asarray(one.y), np.asarray(two.y)):
        raise ValueError(
            f"the values of {full.response_name} differ between the two fits: they "
            "were made from different rows or data, or from rows in another order."
        )
    for what, default in (("weights", 1.0), ("offset", 0.0), ("freq_weights", 1.0)):
        a, b = (getattr(d, what, None) for d in (one, two))
        a, b = (default if v is None else np.asarray(v) for v in (a, b))
        if not np.all(a == b):
            raise ValueError(f"the two fits have different {what}.")
    if _known(full) != _known(other):
        raise ValueError(
            "the two fits have different known residual standard deviations (sigma=)."
        )


def _known(results: Results) -> float | None:
    return getattr(results.model, "sigma", None)


def _restrictions(full: MixedResults, restricted: Results) -> tuple[int, int]:
    """Parameters that the smaller model lacks, and how many of them are variances."""
    big, lost = full.mixed.structure, _effects(full.mixed.structure)
    fixed, size, extra = len(full.names) - len(restricted.names), big.size, Counter()
    small = _structure(restricted)
    size += _of_residuals(full, restricted)
    if small is not None:
        size -= small.size
        extra = _effects(small) - lost
        lost -= _effects(small)
    if fixed + size <= 0:
        raise ValueError(
            f"{restricted.formula_text!r} must have fewer parameters than "
            f"{full.formula_text!r}; is the order of the two right?"
        )
    _check_columns(full, restricted)
    if extra or size < 0:
        only = f"random effect {_named(extra)}" if extra else "covariances it has"
        raise ValueError(
            f"the models are not nested: only the smaller one has the {only}."
        )
    return fixed + size, sum(lost.values())


def _of_residuals(full: MixedResults, restricted: Results) -> int:
    """Parameters of the residuals' covariance that the smaller model lacks."""
    for name in ("correlation", "variance"):
        big, small = (getattr(r.model, name, None) for r in (full, restricted))
        if not _factors(small) <= _factors(big):
            raise ValueError(
                f"the models are not nested: {name}={small!r} of the smaller one is "
                f"not that of the larger, {big!r}."
            )
    return sum(
        sign * getattr(getattr(r, "mixed", None), "residual_size", 0)
        for sign, r in ((1, full), (-1, restricted))
    )


def _factors(text: str | None) -> set[str]:
    """Split what is said of residuals: ``"ident(f) * power(x)"`` has two factors."""
    return set((text or "").replace(" ", "").split("*")) - {""}


def _effects(structure: Structure) -> Counter:
    """Random effects: grouping factor (whatever the order of its parts) and column."""
    return Counter(
        (tuple(sorted(structure.factors[t.factor].name.split(":"))), name)
        for t in structure.terms
        for name in t.names
    )


def _named(effects: Counter) -> str:
    return ", ".join(f"{name} | {':'.join(group)}" for group, name in effects)


def _check_columns(full: Results, restricted: Results) -> None:
    """Refuse fixed effects of the smaller model that the larger cannot make."""
    if set(restricted.names) <= set(full.names):
        return
    big, small = (
        r.model.design.X.to_dense(r.model.compute.on_cpu()).numpy()
        for r in (full, restricted)
    )
    scale = np.linalg.norm(small, axis=0)
    fit = np.linalg.lstsq(big / np.linalg.norm(big, axis=0), small / scale, rcond=None)
    miss = small / scale - big / np.linalg.norm(big, axis=0) @ fit[0]
    apart = np.linalg.norm(miss, axis=0) > 1e-7
    if apart.any():
        names = [n for n, out in zip(restricted.names, apart, strict=True) if out]
        raise ValueError(
            f"the models are not nested: only the smaller one has {', '.join(names)}."
        )


def _criterion(full: MixedResults, restricted: Results) -> tuple[bool, bool]:
    """Whether REML criteria are compared, and whether a fit is refitted instead."""
    same = list(full.names) == list(restricted.names)
    by_reml = [r.reml for r in (full, restricted) if _is_mixed(r)]
    reml = all(by_reml) and same
    return reml, any(by_reml) and not reml


def _deviance(results: Results, full: MixedResults, reml: bool) -> float:
    """Minus twice the (restricted) log-likelihood."""
    if _is_mixed(results):
        fitted = results.mixed
        return (fitted if reml else fitted.by_ml).point.value
    if reml:
        # Least squares is the larger model with all random effects at zero.
        return full.mixed.criterion(np.zeros(full.mixed.structure.size)).value
    return -2 * results.llf


# -- tables ----------------------------------------------------------------------------


@one_thread()
def compare_models(*results: Results) -> pd.DataFrame:
    """Table of several fits to the same rows, as lme4's ``anova(m0, m1)``.

    Parameters
    ----------
    *results : MixedResults or results of `ols`
        Any order; rows of the table are by number of parameters.

    Returns
    -------
    DataFrame
        Columns npar, AIC, BIC, logLik, deviance, and, against the row above, Chisq, Df
        and Pr(>Chisq). Its ``attrs["note"]`` says which fits were refitted by maximum
        likelihood. As in lme4 p-values take no account of variances that are zero under
        the null; `MixedResults.compare_lr_test` does.
    """
    if len(results) < 2:
        raise ValueError("give at least two fits to compare.")
    first = next((r for r in results if _is_mixed(r)), results[0])
    for other in results:
        if other is not first:
            _check_rows(first, other)
    texts = [r.formula_text for r in results]
    if len(set(texts)) < len(texts):
        texts = [f"{i}: {text}" for i, text in enumerate(texts, start=1)]
    frame = comparison_table([_row(r) for r in results], texts)
    changed = [t for t, r in zip(texts, results, strict=True) if getattr(r, "reml", 0)]
    frame.attrs["note"] = (
        f"refitted by maximum likelihood, not REML: {', '.join(changed)}."
        if changed
        else ""
    )
    return frame


def comparison_table(rows: list[dict[str, float]], texts: list[str]) -> pd.DataFrame:
    """Set fits beside each other by number of parameters, each against the last.

    Parameters
    ----------
    rows : list of dict
        As `criteria` gives them.
    texts : list of str
        Labels of the rows.
    """
    frame = pd.DataFrame(rows, index=texts).sort_values("npar", kind="stable")
    change = -frame["deviance"].diff()
    frame["Chisq"] = change.clip(lower=0.0)
    frame["Df"] = frame["npar"].diff()
    frame["Pr(>Chisq)"] = [
        _tail(chi2, int(df)) if df > 0 else nan
        for chi2, df in zip(frame["Chisq"], frame["Df"], strict=True)
    ]
    return frame


def _row(results: Results) -> dict[str, float]:
    deviance = (
        results.mixed.by_ml.point.value if _is_mixed(results) else -2 * results.llf
    )
    # Least squares counts its residual variance here, as mixed models do.
    npar = int(results._counted) + (0 if _is_mixed(results) else 1)
    return criteria(results, deviance, npar)


def criteria(results: Results, deviance: float, npar: int) -> dict[str, float]:
    """Collect the criteria of a fit, as a row of a comparison.

    Parameters
    ----------
    results : Results
    deviance : float
        Minus twice the log-likelihood.
    npar : int
        Parameters counted.
    """
    return {
        "npar": npar,
        "AIC": deviance + 2 * npar,
        "BIC": deviance + float(np.log(results.nobs)) * npar,
        "logLik": -0.5 * deviance,
        "deviance": deviance,
    }
