"""Bad input is refused with an error that says what to do."""

from __future__ import annotations

import numpy as np
import pytest

import deepstats as ds
from deepstats.errors import DesignError, ModelError, RankWarning

from .data import CROSSED, sample

DATA = sample(60)


@pytest.mark.parametrize("penalty", [0, -1.0, np.nan, np.inf, True, None])
def test_penalties_are_positive_numbers(penalty):
    with pytest.raises(ValueError, match="positive number"):
        ds.hierreg(CROSSED, DATA, penalty=penalty)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"penalty": "best"}, ValueError, "'best' is not known"),
        ({"form": "cubed"}, ValueError, "form must be one of norm, squared"),
        ({"family": "poisson"}, ValueError, "family must be one of"),
        ({"group_weights": "rows"}, ValueError, "one of size, equal, sd"),
        ({"group_weights": 3}, ValueError, "mapping"),
        ({"group_weights": {"x | g": 1.0}}, ValueError, "needs a number for each"),
        ({"weigths": "w"}, TypeError, "weigths"),
        ({"penalty": "reml", "form": "norm"}, ModelError, "form='squared'"),
        ({"penalty": "reml", "group_weights": "sd"}, ModelError, "leave out"),
        ({"na_action": "raise", "offset": "none"}, DesignError, "none"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used(options, error, match):
    with pytest.raises(error, match=match):
        ds.hierreg(CROSSED, DATA, **{"penalty": 1.0} | options)


def test_given_weights_are_positive():
    weights = {"Intercept | g": 1.0, "x | g": -2.0, "Intercept | h": 1.0}
    with pytest.raises(ValueError, match="positive numbers: see 'x | g'"):
        ds.hierreg(CROSSED, DATA, penalty=1.0, group_weights=weights).fit()


@pytest.mark.parametrize("rule", ["gcv", "reml"])
def test_rules_for_squares_are_refused_for_a_binomial_response(rule):
    with pytest.raises(ModelError, match="penalty='cv'"):
        ds.hierreg("hit ~ x + (1 || g)", DATA, penalty=rule, family="binomial")


@pytest.mark.parametrize(
    ("formula", "error", "match"),
    [
        ("y ~ x", ModelError, "no deviations by group"),
        ("y ~ x + (1 + x | g)", ModelError, r"write \(1 \+ x \|\| g\)"),
        ("y ~ x + ar1(0 + x | g)", ModelError, "no covariance structure"),
        ("y ~ x + (1 || nowhere)", DesignError, "nowhere"),
        ("y ~ x + (1 | g) + (1 | g)", DesignError, "alike|twice"),
        ("g ~ x + (1 || h)", DesignError, "categorical"),
    ],
)
def test_formulas_that_cannot_be_used(formula, error, match):
    with pytest.raises(error, match=match):
        ds.hierreg(formula, DATA, penalty=1.0).fit()


def test_one_level_and_levels_of_one_row_are_refused():
    with pytest.raises(DesignError, match="one level"):
        ds.hierreg("y ~ x + (1 || g)", DATA.assign(g="a"), penalty=1.0)
    with pytest.raises(DesignError, match="every level of g has one row"):
        ds.hierreg("y ~ x + (1 || g)", DATA.assign(g=np.arange(60)), penalty=1.0)


def test_missing_values_are_dropped_or_refused():
    data = DATA.copy()
    data.loc[[3, 7], "x"] = np.nan
    data.loc[9, "g"] = None
    fit = ds.hierreg("y ~ x + (1 || g)", data, penalty=1.0).fit()
    assert fit.nobs == 57
    assert "3 rows" in str(fit.summary())
    with pytest.raises(DesignError, match="missing"):
        ds.hierreg("y ~ x + (1 || g)", data, penalty=1.0, na_action="raise")
    with pytest.raises(DesignError, match="finite|infinite"):
        bad = DATA.assign(x=np.where(DATA.index == 4, np.inf, DATA["x"]))
        ds.hierreg("y ~ x + (1 || g)", bad, penalty=1.0)


def test_linear_combinations_are_dropped_with_a_warning():
    data = DATA.assign(twice=2 * DATA["x"])
    with pytest.warns(RankWarning, match="twice"):
        model = ds.hierreg("y ~ x + twice + (1 + x || g)", data, penalty=0.1)
    fit = model.fit()
    plain = ds.hierreg("y ~ x + (1 + x || g)", DATA, penalty=0.1).fit()
    assert list(fit.params.index) == ["Intercept", "x"]
    assert fit.objective == pytest.approx(plain.objective, rel=1e-12)
    assert "twice" in str(fit.summary())
    assert fit.predict(data).notna().all()


def test_outcomes_that_can_be_reproduced():
    exact = DATA.assign(y=1 + 2 * DATA["x"])
    with pytest.raises(DesignError, match="exactly"):
        ds.hierreg("y ~ x + (1 || g)", exact, penalty=1.0).fit()
    few = sample(30, groups=12).assign(g=np.arange(30) % 29)
    with pytest.raises(ModelError, match="larger penalty"):
        ds.hierreg("y ~ x + (1 + x || g)", few, penalty=1e-9).fit()


def test_separated_outcomes_are_refused():
    data = DATA.assign(hit=(DATA["x"] > 0).astype(int))
    with pytest.raises(ModelError, match="apart perfectly"):
        ds.hierreg("hit ~ x + (1 || g)", data, penalty=1.0, family="binomial").fit()


def test_responses_of_a_binomial_fit_are_zero_or_one():
    with pytest.raises(DesignError):
        ds.hierreg("y ~ x + (1 || g)", DATA, penalty=1.0, family="binomial")
    named = DATA.assign(hit=np.where(DATA["hit"] == 1, "yes", "no"))
    fit = ds.hierreg("hit ~ x + (1 || g)", named, penalty=0.1, family="binomial").fit()
    same = ds.hierreg("hit ~ x + (1 || g)", DATA, penalty=0.1, family="binomial").fit()
    assert fit.params.to_numpy() == pytest.approx(same.params.to_numpy(), rel=1e-9)


def test_arguments_of_the_fit():
    fixed = ds.hierreg(CROSSED, DATA, penalty=1.0)
    with pytest.raises(ValueError, match="folds= and seed= go with"):
        fixed.fit(folds=3)
    with pytest.raises(ValueError, match="strengths must be 3"):
        fixed.fit(strengths=1)
    with pytest.raises(ValueError, match="folds must be from 2"):
        ds.hierreg(CROSSED, DATA, penalty="cv").fit(folds=1)


def test_arguments_of_the_results(tmp_path):
    fit = ds.hierreg(CROSSED, DATA, penalty=0.1).fit()
    with pytest.raises(ValueError, match="which must be"):
        fit.predict(which="median")
    with pytest.raises(ValueError, match="grouping must be one of"):
        fit.coefficients()
    with pytest.raises(ValueError, match="block must be one of"):
        fit.path_deviations("z | g")
    with pytest.raises(ValueError, match="new data"):
        fit.predict(offset=1.0)
    with pytest.raises(ModelError, match="cannot be saved"):
        fit.save(tmp_path / "fit")
    with pytest.raises(DesignError):
        fit.predict({"x": [1.0]})
