"""Likelihood-ratio tests between fits of one curve, and tables of several of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...errors import ModelError
from ..mixed.comparison import (
    BoundaryTest,
    _effects,
    _tail,
    comparison_table,
    criteria,
)
from .reading import numbers

if TYPE_CHECKING:
    from ...results import Results
    from .base import CurveResults

__all__ = ["compare_models", "likelihood_ratio_test"]

#: Columns are spanned by others where they leave no more than this share of a length.
_SPAN = 1e-7


def likelihood_ratio_test(full: CurveResults, restricted: Results) -> BoundaryTest:
    """Test a fit against a smaller one of the same curve and rows.

    Parameters
    ----------
    full : CurveResults
    restricted : CurveResults

    Returns
    -------
    BoundaryTest
        Its `name` says which distribution gave the p-value: where one variance is zero
        under the null an equal mixture of chi-squared distributions; where more are,
        chi-squared, which is conservative.

    Raises
    ------
    ValueError
        For other rows, another response, or models that are not nested.
    ModelError
        For other curves, or likelihoods approximated by other rules.

    References
    ----------
    Self & Liang (1987), Journal of the American Statistical Association 82. Stram & Lee
    (1994), Biometrics 50.
    """
    _check(full, restricted)
    df, variances = _restrictions(full, restricted)
    statistic = 2 * (full.llf - restricted.llf)
    if statistic < -1e-5 * (1 + abs(full.llf)):
        raise ValueError(
            f"{restricted.formula_text!r} has the higher likelihood: the models are "
            "not nested, or the larger one did not converge."
        )
    statistic = max(statistic, 0.0)
    naive = _tail(statistic, df)
    pvalue, how = naive, ""
    if variances == 1:
        pvalue = 0.5 * (_tail(statistic, df - 1) + naive)
        how = f" (mixture of chi2({df - 1}) and chi2({df}): a variance is zero if true)"
    elif variances > 1:
        how = f" (conservative: {variances} variances are zero if true)"
    return BoundaryTest(
        statistic, df, None, pvalue, "chi2", f"likelihood ratio{how}", naive, variances
    )


def compare_models(fits: Sequence[Results]) -> pd.DataFrame:
    """Table of several fits to the same rows, as lme4's ``anova(m0, m1)``.

    Parameters
    ----------
    fits : sequence of CurveResults

    Returns
    -------
    DataFrame
        Columns npar, AIC, BIC, logLik, deviance, and, against the row above, Chisq, Df
        and Pr(>Chisq), by number of parameters. P-values take no account of variances
        that are zero under the null; `compare_lr_test` does.
    """
    first = next(f for f in fits if hasattr(f.model, "reading"))
    for other in fits:
        if other is not first:
            _check(first, other)
    texts = [f.formula_text for f in fits]
    if len(set(texts)) < len(texts):
        texts = [f"{i}: {text}" for i, text in enumerate(texts, start=1)]
    rows = [criteria(f, -2 * f.llf, int(f._counted)) for f in fits]
    return comparison_table(rows, texts)


def _check(full: Results, other: Results) -> None:
    """Refuse other rows and curves, and likelihoods found by other rules."""
    if not hasattr(other.model, "reading"):
        raise ModelError(
            f"{other.model_name} cannot be compared with a nonlinear model; compare "
            "fits of ds.nlmer and ds.nls."
        )
    one, two = full.model, other.model
    if full.nobs != other.nobs or full.response_name != other.response_name:
        raise ValueError(
            f"the models explain {full.response_name} in {full.nobs:g} rows and "
            f"{other.response_name} in {other.nobs:g}; a likelihood-ratio test needs "
            "the same rows and response."
        )
    if not np.array_equal(numbers(one.rows.y), numbers(two.rows.y)) or not (
        np.array_equal(numbers(one.rows.w), numbers(two.rows.w))
    ):
        raise ValueError("the two fits have different responses or weights.")
    if one.reading.parameters != two.reading.parameters:
        raise ModelError("the two fits are of different curves.")
    mixed = [r for r in (full, other) if hasattr(r, "solved")]
    rules = {(r.method, r.reml, r.nagq, r.information) for r in mixed}
    if len(rules) > 1:
        raise ModelError(
            "the likelihoods of the two fits are approximated by different rules; fit "
            "both with the same method=, reml=, nagq= and information=."
        )
    if any(r.reml for r in mixed) and (
        len(mixed) < 2 or list(full.names) != list(other.names)
    ):
        raise ModelError(
            "restricted likelihoods of different fixed parts cannot be compared; fit "
            "with reml=False."
        )


def _restrictions(full: CurveResults, restricted: Results) -> tuple[int, int]:
    """Parameters that the smaller model lacks, and how many of them are variances."""
    df = int(full._counted - restricted._counted)
    if df <= 0:
        raise ValueError(
            f"{restricted.formula_text!r} must have fewer parameters than "
            f"{full.formula_text!r}; is the order of the two right?"
        )
    large, small = full.model.rows, restricted.model.rows
    for name, have, want in zip(
        full.model.reading.parameters, large.X, small.X, strict=True
    ):
        have, want = numbers(have), numbers(want)
        left = want - have @ np.linalg.lstsq(have, want, rcond=None)[0]
        if (np.linalg.norm(left, axis=0) > _SPAN * np.linalg.norm(want, axis=0)).any():
            raise ValueError(
                f"the models are not nested: only the smaller one has some of its "
                f"covariates of {name}."
            )
    lost = _random(full)
    extra = _random(restricted) - lost
    if extra:
        names = ", ".join(f"{name} | {':'.join(group)}" for group, name in extra)
        raise ValueError(
            f"the models are not nested: only the smaller one has the random effect "
            f"{names}."
        )
    return df, sum((lost - _random(restricted)).values())


def _random(results: Results) -> Counter:
    """Random effects, their intercepts named alike with and without covariates."""
    if not hasattr(results, "solved"):
        return Counter()
    found = _effects(results.mixed.structure)
    return Counter(
        {(g, name.removesuffix(":Intercept")): k for (g, name), k in found.items()}
    )
