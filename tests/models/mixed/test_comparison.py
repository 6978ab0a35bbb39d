"""Likelihood-ratio tests and tables of mixed models."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

import deepstats as ds
from deepstats.errors import ModelError, SingularFitWarning
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.comparison import compare_models

from .data import INFERENCE, load

SLOPES = "Reaction ~ Days + (Days | Subject)"
INTERCEPTS = "Reaction ~ Days + (1 | Subject)"
NO_DAYS = "Reaction ~ 1 + (Days | Subject)"
APART = "Reaction ~ Days + (Days || Subject)"


@lru_cache
def sleep(formula: str, reml: bool = True):
    return LinearMixed(formula, load("sleepstudy")).fit(reml)


@lru_cache
def sleep_ols(formula: str = "Reaction ~ Days"):
    return ds.ols(formula, load("sleepstudy")).fit()


# -- one test ------------------------------------------------------------------------


def test_fixed_effect_as_mixedmodels():
    # MixedModels.jl, test/likelihoodratiotest.jl.
    found = sleep(SLOPES, False).compare_lr_test(sleep(NO_DAYS, False))
    assert found.statistic == pytest.approx(23.5365, abs=1e-4)
    assert (found.df_num, found.variances) == (1, 0)
    assert found.pvalue == found.naive_pvalue
    assert found.name == "likelihood ratio"


def test_reml_fits_with_other_fixed_effects_are_refitted():
    found = sleep(SLOPES).compare_lr_test(sleep(NO_DAYS))
    by_ml = sleep(SLOPES, False).compare_lr_test(sleep(NO_DAYS, False))
    assert found.statistic == pytest.approx(by_ml.statistic, abs=1e-8)
    assert "refitted by maximum likelihood" in found.name
    mixed = sleep(SLOPES).compare_lr_test(sleep(INTERCEPTS, False))
    assert mixed.statistic == pytest.approx(42.1392985162349, abs=1e-6)
    assert "refitted by maximum likelihood" in str(mixed)


# (full, restricted, reference case, its row): lmerTest's ranova compares REML criteria.
RANOVA = [
    (SLOPES, INTERCEPTS, "sleepstudy_slope", 1),
    (APART, "Reaction ~ Days + (0 + Days | Subject)", "sleepstudy_uncorr", 1),
    (APART, INTERCEPTS, "sleepstudy_uncorr", 2),
]


@pytest.mark.parametrize(("full", "restricted", "case", "row"), RANOVA)
def test_reml_criteria_as_ranova(full, restricted, case, row):
    want = INFERENCE[case]["ranova"][row]
    found = sleep(full).compare_lr_test(sleep(restricted))
    # ranova's fits stop at lme4's tolerance.
    assert found.statistic == pytest.approx(want["LRT"], abs=1e-4)
    assert "REML criteria" in found.name
    assert found.naive_pvalue == pytest.approx(want["Pr(>Chisq)"], rel=1e-3)


def test_reml_of_least_squares_as_ranova():
    want = INFERENCE["dyestuff"]["ranova"][1]["LRT"]
    data = load("Dyestuff")
    found = LinearMixed("Yield ~ 1 + (1 | Batch)", data).fit()
    test = found.compare_lr_test(ds.ols("Yield ~ 1", data).fit())
    assert test.statistic == pytest.approx(want, abs=1e-6)
    assert test.pvalue == pytest.approx(chi2.sf(want, 1) / 2, rel=1e-6)
    assert test.naive_pvalue == pytest.approx(chi2.sf(want, 1), rel=1e-6)


def test_stram_and_lee_mixtures():
    one = sleep(INTERCEPTS, False).compare_lr_test(sleep_ols())
    deviance = -2 * sleep_ols().llf
    assert one.statistic == pytest.approx(deviance - 1794.07864300523, abs=1e-6)
    assert one.pvalue == pytest.approx(0.5 * chi2.sf(one.statistic, 1))
    slope = sleep(SLOPES, False).compare_lr_test(sleep(INTERCEPTS, False))
    tails = chi2.sf(slope.statistic, [1, 2])
    assert slope.pvalue == pytest.approx(tails.mean())
    assert slope.naive_pvalue == pytest.approx(tails[1])
    assert "mixture of chi2(1) and chi2(2)" in slope.name
    both = sleep(SLOPES, False).compare_lr_test(sleep_ols())
    assert both.pvalue == both.naive_pvalue
    assert "conservative: 2 variances" in both.name
    # A covariance alone is zero inside its range.
    covariance = sleep(SLOPES, False).compare_lr_test(sleep(APART, False))
    assert (covariance.variances, covariance.df_num) == (0, 1)
    assert covariance.pvalue == pytest.approx(chi2.sf(covariance.statistic, 1))


def test_mixture_is_the_distribution_under_the_null():
    # 400 data sets without group effects: half the statistics are zero, and the
    # p-values of the mixture are uniform on the other half (binomial error 2.5%).
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(40), 6)
    pvalues = []
    for _ in range(400):
        data = pd.DataFrame({"y": rng.normal(size=240), "g": group})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularFitWarning)
            full = LinearMixed("y ~ 1 + (1 | g)", data).fit()
        pvalues.append(full.compare_lr_test(ds.ols("y ~ 1", data).fit()).pvalue)
    pvalues = np.array(pvalues)
    assert 0.42 < np.mean(pvalues == 1) < 0.6
    assert np.mean(pvalues <= 0.2) == pytest.approx(0.2, abs=0.06)
    assert np.mean(pvalues <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_weights_and_least_squares():
    data = load("sleepstudy").assign(w=np.linspace(0.5, 2, 180))
    full = LinearMixed(INTERCEPTS, data, weights="w").fit(reml=False)
    small = ds.wls("Reaction ~ Days", data, weights="w").fit()
    zero = full.mixed.criterion(np.zeros(1)).value
    found = full.compare_lr_test(small)
    assert found.statistic == pytest.approx(zero + 2 * full.llf, abs=1e-8)
    with pytest.raises(ValueError, match="different weights"):
        full.compare_lr_test(sleep_ols())


def test_combinations_of_columns_are_nested():
    data = load("sleepstudy").assign(Late=lambda d: np.maximum(d["Days"] - 4, 0))
    data["Early"] = np.minimum(data["Days"], 4)
    full = LinearMixed("Reaction ~ Early + Late + (1 | Subject)", data).fit(False)
    found = full.compare_lr_test(sleep(INTERCEPTS, False))
    want = 2 * (full.llf - sleep(INTERCEPTS, False).llf)
    assert found.statistic == pytest.approx(want) and found.df_num == 1


def test_bad_input():
    data = load("sleepstudy").assign(z=lambda d: np.sin(np.arange(len(d))))
    data["Other"] = np.arange(180) % 7
    full = sleep(SLOPES)
    with pytest.raises(ValueError, match="must have fewer parameters"):
        sleep(INTERCEPTS).compare_lr_test(sleep(INTERCEPTS))
    with pytest.raises(ValueError, match="is the order of the two right"):
        sleep(INTERCEPTS).compare_lr_test(full)
    with pytest.raises(ValueError, match="only the smaller one has Days"):
        sleep(NO_DAYS).compare_lr_test(sleep(INTERCEPTS))
    with pytest.raises(ValueError, match="has the covariances"):
        three = "Reaction ~ Days + z + I(z**2) + (1 | Subject) + (0 + Days | Subject)"
        LinearMixed(three, data).fit().compare_lr_test(full)
    with pytest.raises(ValueError, match="180 and 179 observations"):
        full.compare_lr_test(LinearMixed(INTERCEPTS, data[1:]).fit())
    with pytest.raises(ValueError, match="values of Reaction differ"):
        shuffled = data.iloc[::-1].reset_index(drop=True)
        full.compare_lr_test(LinearMixed(INTERCEPTS, shuffled).fit())
    with pytest.raises(ValueError, match="explain Reaction and z"):
        full.compare_lr_test(ds.ols("z ~ 1", data).fit())
    with pytest.raises(ValueError, match="only the smaller one has z"):
        full.compare_lr_test(ds.ols("Reaction ~ z", data).fit())
    with pytest.raises(ValueError, match=r"random effect Intercept \| Other"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularFitWarning)
            other = LinearMixed("Reaction ~ Days + (1 | Other)", data).fit()
        full.compare_lr_test(other)
    with pytest.raises(ModelError, match="cannot be compared with a linear mixed"):
        full.compare_lr_test(ds.poisson("Reaction ~ Days", data.round()).fit())


# -- tables --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "formula"), [("random", INTERCEPTS), ("fixed", NO_DAYS)]
)
@pytest.mark.parametrize("reml", [True, False])
def test_table_of_lme4(which, formula, reml):
    want = pd.DataFrame(INFERENCE["lrt_sleepstudy"][which]).set_index("term")
    # In the other order: rows are by number of parameters.
    found = ds.anova(sleep(SLOPES, reml), sleep(formula, reml))
    assert list(found.index) == [formula, SLOPES]
    assert list(found) == list(want)
    for column in found:
        np.testing.assert_allclose(
            found[column], want[column].astype(float), rtol=1e-7, err_msg=column
        )
    assert ("refitted by maximum likelihood" in found.attrs["note"]) == reml


def test_table_with_least_squares():
    found = ds.anova(sleep(INTERCEPTS), sleep_ols(), test="LR")
    assert list(found.index) == ["Reaction ~ Days", INTERCEPTS]
    assert found["npar"].tolist() == [3, 4]
    assert found["logLik"].iloc[0] == pytest.approx(sleep_ols().llf)
    assert INTERCEPTS in found.attrs["note"]


def test_table_refuses():
    with pytest.raises(ValueError, match="at least two"):
        compare_models(sleep(SLOPES))
    with pytest.raises(ValueError, match="test must be 'LR'"):
        ds.anova(sleep(SLOPES), sleep(INTERCEPTS), test="F")
    with pytest.raises(ValueError, match="same rows"):
        less = LinearMixed(INTERCEPTS, load("sleepstudy")[:170]).fit()
        ds.anova(sleep(SLOPES), less)


def test_equal_numbers_of_parameters_have_no_p():
    twin = sleep("Reaction ~ 1 + Days + (1 | Subject)")
    found = ds.anova(sleep(INTERCEPTS), twin)
    assert found["Df"].iloc[1] == 0 and np.isnan(found["Pr(>Chisq)"].iloc[1])
