"""Likelihood-ratio tests between generalised linear mixed models, and against none."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...families import ExponentialFamily, Family
from ...inference import wald
from ..mixed.comparison import (
    BoundaryTest,
    _restrictions,
    _tail,
    comparison_table,
    criteria,
)
from ..mixed.terms import droppable, dropped_table, model_without, term_contrasts

if TYPE_CHECKING:
    from ...results import Results
    from .results import MixedGLMResults

__all__ = ["anova_table", "compare_models", "drop1", "likelihood_ratio_test"]

#: Families a family has at the edge of its range, and the parameters held there.
_WITHIN: dict[str, dict[str, int]] = {
    "negativebinomial": {"poisson": 1},
    "zeroinflatedpoisson": {"poisson": 1},
    "zeroinflatednegativebinomial": {
        "poisson": 2, "negativebinomial": 1, "zeroinflatedpoisson": 1,
    },
    "hurdlenegativebinomial": {"hurdlepoisson": 1},
    "zerotruncatednegativebinomial": {"zerotruncatedpoisson": 1},
    "betabinomial": {"binomial": 1},
}  # fmt: skip


def likelihood_ratio_test(full: MixedGLMResults, restricted: Results) -> BoundaryTest:
    """Test a generalised linear mixed model against a smaller one of the same rows.

    Parameters
    ----------
    full : MixedGLMResults
    restricted : Results
        Another mixed model, or one without random effects: `glm` and its relatives.

    Returns
    -------
    BoundaryTest
        Its `name` says which distribution gave the p-value. Where one variance, or
        the overdispersion or share of excess zeros that the smaller family lacks, is
        at the edge of its range, an equal mixture of chi-squared distributions; where
        more are, chi-squared, which is conservative.

    Raises
    ------
    ValueError
        For other rows, another response, or models that are not nested.
    ModelError
        For families that are not, or likelihoods found by other rules.

    References
    ----------
    Self & Liang (1987), Journal of the American Statistical Association 82. Stram & Lee
    (1994), Biometrics 50.
    """
    edge = _check(full, restricted)
    df, variances = _restrictions(full, restricted)
    variances += edge
    statistic = 2 * (full.llf - restricted.llf)
    if statistic < -1e-6 * (1 + abs(full.llf)):
        raise ValueError(
            f"{restricted.formula_text!r} has the higher likelihood: the models are "
            "not nested, or the larger one did not converge."
        )
    statistic = max(statistic, 0.0)
    naive = _tail(statistic, df)
    pvalue, how = naive, ""
    if variances == 1:
        pvalue = 0.5 * (_tail(statistic, df - 1) + naive)
        how = f" (mixture of chi2({df - 1}) and chi2({df}): one on the edge if true)"
    elif variances > 1:
        how = f" (conservative: {variances} parameters on the edge if true)"
    return BoundaryTest(
        statistic, df, None, pvalue, "chi2", f"likelihood ratio{how}", naive, variances
    )


def _check(full: MixedGLMResults, other: Results) -> int:
    """Refuse what cannot be compared; return parameters of the family on the edge."""
    _check_rows(full, other)
    if hasattr(other, "nagq"):
        _check_parts(full, other)
    return _edge(full.model.family, other.model.family)


def _check_parts(full: MixedGLMResults, other: Results) -> None:
    """Refuse columns of further predictors that the larger model cannot make."""
    big, small = full.model, other.model
    names = big.family.predictors
    for j, name in enumerate(small.family.predictors):
        if j == 0 or name not in names:
            continue
        have, want = (
            m.design.matrices[k].to_dense(m.compute.on_cpu()).numpy()
            for m, k in ((big, names.index(name)), (small, j))
        )
        left = want - have @ np.linalg.lstsq(have, want, rcond=None)[0]
        apart = np.linalg.norm(left, axis=0) > 1e-7 * np.linalg.norm(want, axis=0)
        if apart.any():
            only = np.array(small.design.matrices[j].names)[apart]
            raise ValueError(
                f"the models are not nested: only the smaller one has "
                f"{', '.join(only)} in its predictor of {name}."
            )


def _check_rows(full: MixedGLMResults, other: Results) -> None:
    """Refuse other rows, and likelihoods found by other rules."""
    if other.nobs != full.nobs or other.response_name != full.response_name:
        raise ValueError(
            f"the models explain {full.response_name} in {full.nobs:g} rows and "
            f"{other.response_name} in {other.nobs:g}; a likelihood-ratio test needs "
            "the same rows and response."
        )
    one, two = full.model.design, other.model.design
    for what, default in (("y", 0.0), ("weights", 1.0), ("size", 1.0)):
        a, b = (getattr(d, what, None) for d in (one, two))
        a, b = (default if v is None else np.asarray(v, float) for v in (a, b))
        if not np.all(a == b):
            raise ValueError(
                f"the two fits have different {'responses' if what == 'y' else what}."
            )
    a, b = (0.0 if d.offset is None else d.offset for d in (one, two))
    if not np.all(np.asarray(a) == np.asarray(b)):
        raise ValueError("the two fits have different offsets.")
    if full.reml or (hasattr(other, "nagq") and other.reml):
        _check_restricted(full, other)
    if hasattr(other, "nagq"):
        if (full.nagq, full.model.expected) != (other.nagq, other.model.expected):
            raise ModelError(
                "the likelihoods of the two fits are approximated by different rules; "
                "fit both with the same nagq= and information=."
            )
    elif hasattr(other, "mixed") or not hasattr(other.model, "family"):
        raise ModelError(
            f"{other.model_name} cannot be compared with a generalised linear mixed "
            "model; compare two of them, or one with a fit of ds.glm or a count model."
        )
    family = other.model.family
    if isinstance(family, ExponentialFamily) and family.scale != "one":
        raise ModelError(
            f"a {family.name} model estimates its dispersion by moments, not by "
            "maximum likelihood: its likelihood cannot be compared."
        )


def _check_restricted(full: MixedGLMResults, other: Results) -> None:
    """Refuse restricted likelihoods that integrate over different coefficients."""
    both = full.reml and getattr(other, "reml", False)
    if not both or list(full.fe_params.index) != list(other.fe_params.index):
        raise ModelError(
            "restricted likelihoods can be compared where both fits have one and the "
            "same fixed part only; use refit(reml=False) for both."
        )


def _edge(full: Family, other: Family) -> int:
    """Parameters of the larger family that the smaller has at the edge."""
    kinds = [getattr(f, "loglike", None) for f in (full, other)]
    if full.links[0] != other.links[0] or (None not in kinds and kinds[0] != kinds[1]):
        raise ModelError("the two fits have different links or kinds of variance.")
    if full.name == other.name:
        return 0
    found = _WITHIN.get(full.name, {}).get(other.name, inf)
    if found is inf:
        raise ModelError(
            f"{other.name} is not within {full.name}: the models are not nested."
        )
    return int(found)


# -- tables ----------------------------------------------------------------------------


def compare_models(fits: Sequence[Results]) -> pd.DataFrame:
    """Table of several fits to the same rows, as lme4's ``anova(m0, m1)``.

    Parameters
    ----------
    fits : sequence of Results
        Generalised linear mixed models, and models without random effects.

    Returns
    -------
    DataFrame
        Columns npar, AIC, BIC, logLik, deviance, and, against the row above, Chisq, Df
        and Pr(>Chisq), by number of parameters. P-values take no account of parameters
        on the edge of their range; `MixedGLMResults.compare_lr_test` does.
    """
    first: Any = next(f for f in fits if hasattr(f, "nagq"))
    for other in fits:
        if other is not first:
            _check_rows(first, other)
    texts = [f.formula_text for f in fits]
    if len(set(texts)) < len(texts):
        texts = [f"{i}: {text}" for i, text in enumerate(texts, start=1)]
    rows = [criteria(f, -2 * f.llf, int(f._counted)) for f in fits]
    return comparison_table(rows, texts)


def drop1(results: MixedGLMResults) -> pd.DataFrame:
    """Leave out each term of the mean's fixed part that no other contains.

    Parameters
    ----------
    results : MixedGLMResults
        By maximum likelihood.

    Returns
    -------
    DataFrame
        Columns npar, AIC, LRT, Pr(Chi), as lme4's ``drop1(fit, test="Chisq")``.
    """
    full = results.refit(reml=False) if results.reml else results
    return dropped_table(
        full,
        {
            term.name: model_without(full, term).fit(nagq=full.nagq)
            for term in droppable(full)
        },
    )


def anova_table(results: MixedGLMResults, type: int | str = 3) -> pd.DataFrame:
    """Test each term of the mean's fixed part by Wald's chi-squared.

    Parameters
    ----------
    results : MixedGLMResults
    type : {1, 2, 3}
        The hypotheses, as `mixed.terms.term_contrasts` has them.

    Returns
    -------
    DataFrame
        Columns Chisq, Df and Pr(>Chisq); a row a term.
    """
    number = {"1": 1, "I": 1, "2": 2, "II": 2, "3": 3, "III": 3}.get(str(type).upper())
    if number is None:
        raise ValueError(f"type must be 1, 2 or 3, not {type!r}.")
    b = results.fe_params.to_numpy()
    V = results._cov[: len(b), : len(b)]
    rows = {}
    for name, R in term_contrasts(results, number).items():
        test = wald(b, V, R, np.zeros(len(R)), None)
        rows[name] = (test.statistic, test.df_num, test.pvalue)
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["Chisq", "Df", "Pr(>Chisq)"]
    )
