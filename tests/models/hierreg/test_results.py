"""Frames, predictions, pages and pictures of hierarchical regressions."""

from __future__ import annotations

import numpy as np
import pytest

import deepstats as ds

from .data import CROSSED, sample

DATA = sample(200, seed=7)
OPTIONS = {"group_weights": "sd"}


def test_deviations_and_coefficients_are_labelled():
    fit = ds.hierreg(CROSSED, DATA, penalty=0.05, **OPTIONS).fit()
    deviations = fit.deviations
    assert list(deviations.columns) == ["Intercept", "x"]
    assert deviations.index.names == ["grouping", "level"]
    assert deviations.loc["h", "x"].isna().all()
    own = fit.coefficients("g")
    assert list(own.columns) == ["Intercept", "x", "z"]
    assert own.loc["c", "x"] == pytest.approx(
        fit.params["x"] + deviations.loc[("g", "c"), "x"]
    )
    assert (own["z"] == fit.params["z"]).all()
    row = DATA.iloc[11]
    by_hand = (
        own.loc[row["g"]] @ [1.0, row["x"], row["z"]]
        + deviations.loc[("h", row["h"]), "Intercept"]
    )
    assert fit.fittedvalues.iloc[11] == pytest.approx(by_hand, rel=1e-12)
    assert fit.resid.iloc[11] == pytest.approx(row["y"] - by_hand, rel=1e-10)


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_unseen_groups_get_the_coefficients_of_the_population(family):
    formula = CROSSED if family == "gaussian" else CROSSED.replace("y ~", "hit ~")
    fit = ds.hierreg(formula, DATA, penalty=0.02, family=family, **OPTIONS).fit()
    assert fit.solution.u.any()
    new = DATA.head(4).assign(g="new", h=99)
    eta = fit.params.to_numpy() @ np.array([np.ones(4), new["x"], new["z"]])
    assert fit.predict(new, which="linear").to_numpy() == pytest.approx(eta, rel=1e-12)
    assert fit.predict(new).to_numpy() == pytest.approx(
        fit.predict(new.drop(columns=["g", "h"]), population=True).to_numpy()
    )
    mean = eta if family == "gaussian" else 1 / (1 + np.exp(-eta))
    assert fit.predict(new).to_numpy() == pytest.approx(mean, rel=1e-12)
    seen = fit.predict(DATA.head(4))
    assert seen.to_numpy() == pytest.approx(fit.fittedvalues.head(4).to_numpy())
    hole = DATA.head(4).assign(x=[1.0, np.nan, 0.0, 2.0])
    assert fit.predict(hole).isna().tolist() == [False, True, False, False]


@pytest.mark.parametrize("form", ["norm", "squared"])
@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_the_path_runs_from_no_deviations_to_many(family, form):
    formula = CROSSED if family == "gaussian" else CROSSED.replace("y ~", "hit ~")
    model = ds.hierreg(formula, DATA, penalty=0.05, family=family, form=form, **OPTIONS)
    fit = model.fit(strengths=12)
    path = fit.path
    assert len(path) == 12
    assert path.index.is_monotonic_decreasing
    assert path["df"].is_monotonic_increasing and path["size"].is_monotonic_increasing
    assert path["df"].iloc[0] == pytest.approx(3, abs=1.0)
    assert (path["kkt_residual"] < 1e-6).all()
    middle = path.index[6]
    alone = ds.hierreg(
        formula, DATA, penalty=middle, family=family, form=form, **OPTIONS
    ).fit()
    assert alone.objective == pytest.approx(path.loc[middle, "objective"], rel=1e-10)
    values = fit.path_deviations("x | g").loc[middle]
    theirs = alone.deviations.loc["g", "x"]
    assert values.to_numpy() == pytest.approx(theirs.to_numpy(), abs=1e-6)


def test_the_page_says_what_was_minimised():
    fit = ds.hierreg(CROSSED, DATA, penalty="gcv", **OPTIONS).fit()
    page = str(fit.summary())
    for words in (
        "Hierarchical regression", "|r|/sqrt(n) + penalty |Wv|",
        "generalised cross-validation", "KKT residual", "x | g", "no standard errors",
        "standard deviations of the columns",
    ):  # fmt: skip
        assert words in page
    assert "<table" in fit.summary().as_html()
    assert "tabular" in fit.summary().as_latex()
    assert repr(fit) == page
    glance = fit.glance().iloc[0]
    assert glance["nobs"] == 200 and glance["converged"]
    none = ds.hierreg(CROSSED, DATA, penalty=100.0, **OPTIONS).fit()
    assert "no deviations: as here" in str(none.summary())


def test_a_model_without_population_coefficients():
    fit = ds.hierreg("y ~ 0 + (1 + x || g)", DATA, penalty=0.05, **OPTIONS).fit()
    assert fit.params.empty and fit.kkt_residual < 1e-8
    assert fit.coefficients().shape == (6, 2)
    assert "Deviations" in str(fit.summary())


def test_the_path_is_drawn():
    pytest.importorskip("matplotlib")
    fit = ds.hierreg(CROSSED, DATA, penalty=0.05, **OPTIONS).fit(strengths=8)
    ax = fit.plot_path("x | g")
    assert len(ax.lines) == 6 + 2
    assert ax.lines[0].get_ydata()[0] == 0
    assert ax.get_ylabel() == "Deviation, x | g"
    assert ax.get_xscale() == "log"
    assert ax.lines[-1].get_xdata()[0] == fit.penalty
