"""Refits and the parametric bootstrap: exact where they can be, else by simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import DesignError, ModelError
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.bootstrap import draw, parametric, refit
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.replicates import (
    _first_steps,
    _fit_apart,
    _fit_together,
    refit_many,
)
from deepstats.models.mixed.responses import RowSpace
from deepstats.models.mixed.search import bounded_step
from deepstats.models.mixed.together import Together

from .data import load

FORMULAS = {
    "slope": ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
    "uncorrelated": ("sleepstudy", "Reaction ~ Days + (Days || Subject)"),
    "two terms": ("sleepstudy", "Reaction ~ Days + (1|Subject) + (0 + Days|Subject)"),
    "crossed": ("Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
    "nested": ("Pastes", "strength ~ 1 + (1 | batch/cask)"),
    "vector": ("Machines", "score ~ Machine + (0 + Machine | Worker)"),
    "split plot": ("Oats", "`yield` ~ nitro * Variety + (1 | Block/Variety)"),
}  # fmt: skip


def model_of(case: str, **options) -> LinearMixed:
    name, formula = FORMULAS[case]
    data = load(name)
    if options:
        data["w"] = np.random.default_rng(0).uniform(0.5, 2, len(data))
        data["o"] = np.random.default_rng(1).normal(size=len(data))
    return LinearMixed(formula, data, **options)


def fit_of(case: str = "slope", **options):
    return model_of(case).fit(**options)


@pytest.mark.parametrize("case", FORMULAS)
def test_all_at_once_evaluates_every_criterion(case):
    """Values, gradients and information of each replicate, at parameters of its own."""
    model = model_of(case, weights="w", offset="o")
    structure, products = model.prepare()
    rng = np.random.default_rng(3)
    Y = model.design.y[:, None] + rng.normal(size=(model.design.n, 4))
    responses = RowSpace(model.design, products, model.compute).meet(Y)
    x = rng.uniform(0.2, 2.0, size=(4, structure.size))
    x[0] = np.where(structure.lower == 0, 0.0, x[0])
    for reml, sigma in ((True, None), (False, None), (True, 2.5)):
        found = Together(products, responses, reml, sigma)(x, np.arange(4))
        for number in range(4):
            one = responses.products(products, number)
            point = Criterion(one, reml, sigma)(x[number])
            f = point.factorisation
            assert found.value[number] == pytest.approx(point.value, rel=1e-11)
            scale = np.abs(point.gradient).max()
            np.testing.assert_allclose(
                found.gradient[number], point.gradient, rtol=1e-8, atol=1e-9 * scale
            )
            scale = np.abs(point.information).max()
            np.testing.assert_allclose(
                found.information[number], point.information, rtol=1e-8,
                atol=1e-9 * scale,
            )  # fmt: skip
            np.testing.assert_allclose(found.beta[number], f.beta, rtol=1e-8)
            cov = point.variance * f.cov_beta
            np.testing.assert_allclose(found.cov_beta[number], cov, rtol=1e-7)


@pytest.mark.parametrize("case", FORMULAS)
@pytest.mark.parametrize("reml", [True, False])
def test_both_ways_of_fitting_agree_with_fresh_fits(case, reml):
    model = model_of(case)
    _, products = model.prepare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = model.fit(reml)
    Y = draw(fit, 6, np.random.default_rng(11))
    responses = RowSpace(model.design, products, model.compute).meet(Y)
    problem = Together(products, responses, reml)
    one = _fit_together(problem, fit.mixed.x, 100, 1e-6)
    two = _fit_apart(products, responses, reml, None, fit.mixed.x, 100, 1e-6)
    assert one.converged.all() and two.converged.all()
    np.testing.assert_allclose(one.value, two.value, rtol=0, atol=1e-6)
    np.testing.assert_allclose(one.beta, two.beta, rtol=1e-6, atol=1e-8)
    name, formula = FORMULAS[case]
    for number in range(3):
        data = load(name)
        data[model.design.y_name.strip("`")] = Y[:, number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fresh = LinearMixed(formula, data).fit(reml)
        assert one.value[number] == pytest.approx(-2 * fresh.llf, abs=1e-6)
        np.testing.assert_allclose(one.beta[number], fresh.params, rtol=1e-5)


@pytest.mark.parametrize("case", ["slope", "crossed", "nested"])
@pytest.mark.parametrize("sigma", [None, 2.5])
def test_the_first_step_is_that_of_each_search(case, sigma):
    model = model_of(case, weights="w", offset="o")
    structure, products = model.prepare()
    Y = model.design.y[:, None] + np.random.default_rng(0).normal(
        size=(model.design.n, 3)
    )
    responses = RowSpace(model.design, products, model.compute).meet(Y)
    x = np.where(structure.lower == 0, 0.7, 0.4)
    found = _first_steps(products, responses, True, sigma, x)
    for number in range(3):
        criterion = Criterion(responses.products(products, number), True, sigma)
        point = criterion(x)
        step, _ = bounded_step(point, point.information, structure.lower)
        expected = np.maximum(x - step, structure.lower)
        np.testing.assert_allclose(found[number], expected, rtol=1e-9)


def test_refit_is_a_fit_of_the_other_response():
    data, options = load("sleepstudy"), {"ddf": "kenward-roger"}
    fit = LinearMixed(FORMULAS["slope"][1], data, offset="Days").fit(**options)
    y = np.log(data["Reaction"]) * 100
    again = refit(fit, y)
    other = data.assign(Reaction=y)
    fresh = LinearMixed(FORMULAS["slope"][1], other, offset="Days").fit(**options)
    assert again.ddf == "kenward-roger"
    assert again.llf == pytest.approx(fresh.llf, abs=1e-8)
    np.testing.assert_allclose(again.bse, fresh.bse, rtol=1e-6)
    np.testing.assert_allclose(again.resid, fresh.resid, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(again.theta, fresh.theta, rtol=1e-5)
    np.testing.assert_allclose(fit.model.design.y, data["Reaction"])
    # Residuals of the first fit still belong to its own response.
    assert fit.resid.abs().mean() > 5


def test_refit_changes_the_criterion():
    fit = fit_of()
    ml = fit.refit(reml=False)
    assert not ml.reml
    assert ml.llf == pytest.approx(fit_of(reml=False).llf, abs=1e-8)
    assert fit_of(ddf="kenward-roger").refit(reml=False).ddf == "satterthwaite"


def test_refit_keeps_only_rows_used():
    data = load("sleepstudy")
    data.loc[data.index[5], "Days"] = np.nan
    fit = LinearMixed("Reaction ~ Days + (1 | Subject)", data).fit()
    y = data["Reaction"].to_numpy() * 2
    assert refit(fit, y).params["Days"] == pytest.approx(2 * fit.params["Days"])
    short = np.delete(y, 5)
    assert refit(fit, short).llf == pytest.approx(refit(fit, y).llf)


def test_refit_refuses_bad_responses():
    fit = fit_of()
    with pytest.raises(DesignError, match="values"):
        fit.refit(np.ones(7))
    with pytest.raises(DesignError, match="fit the new response exactly"):
        fit.refit(load("sleepstudy")["Days"] * 2.0)
    y = load("sleepstudy")["Reaction"].to_numpy().copy()
    y[3] = np.nan
    with pytest.raises(DesignError, match="missing or infinite in 1"):
        fit.refit(y)


def test_draws_have_the_moments_of_the_model():
    data = load("sleepstudy")
    data["w"] = np.where(data["Days"] > 4, 4.0, 1.0)
    fit = LinearMixed(FORMULAS["slope"][1], data, weights="w").fit()
    Y = draw(fit, 20_000, np.random.default_rng(0))
    X = np.column_stack([np.ones(10), np.arange(10.0)])
    V = fit.mixed.covariances[0]
    expected = X @ V @ X.T + np.diag(fit.sigma**2 / data["w"][:10])
    found = np.cov(Y[:10])
    se = np.sqrt(2 * np.outer(np.diag(expected), np.diag(expected)) / 20_000)
    assert (np.abs(found - expected) < 5 * se).all()
    mean = X @ fit.params.to_numpy()
    se = np.sqrt(np.diag(expected) / 20_000)
    assert (np.abs(Y[:10].mean(1) - mean) < 5 * se).all()
    # Another subject's effects are its own.
    across = np.corrcoef(Y[:20])[:10, 10:]
    assert np.abs(across).max() < 5 / np.sqrt(20_000)
    kept = draw(fit, 5000, np.random.default_rng(0), [True])
    se = fit.sigma / np.sqrt(data["w"] * 5000)
    assert (np.abs(kept.mean(1) - fit.fittedvalues) < 5 * se).all()


def test_how_many_are_drawn_at_once_does_not_matter():
    fit = fit_of()
    one, two = np.random.default_rng(4), np.random.default_rng(4)
    whole = draw(fit, 5, one)
    parts = np.hstack([draw(fit, 2, two), draw(fit, 3, two)])
    np.testing.assert_array_equal(whole, parts)


def test_bootstrap_has_the_fits_standard_errors():
    fit = fit_of()
    boot = fit.bootstrap(2000, seed=7)
    assert list(boot.frame) == [
        "sd(Intercept)|Subject", "cor(Days,Intercept)|Subject", "sd(Days)|Subject",
        "sigma", "Intercept", "Days",
    ]  # fmt: skip
    assert boot.failed == 0 and 0 < boot.singular < 100
    assert boot.estimate["sd(Days)|Subject"] == pytest.approx(5.92213, abs=1e-4)
    # Five Monte-Carlo standard errors of a standard deviation from 2,000 draws.
    np.testing.assert_allclose(boot.bse[["Intercept", "Days"]], fit.bse, rtol=0.08)
    assert (boot.bias[["Intercept", "Days"]].abs() < 5 * fit.bse / np.sqrt(2000)).all()
    exact = fit.sigma / np.sqrt(2 * 144)
    assert boot.bse["sigma"] == pytest.approx(exact, rel=0.08)
    percentile = boot.conf_int()
    draws = np.quantile(boot.frame["Days"], [0.025, 0.975])
    np.testing.assert_allclose(percentile.loc["Days"], draws)
    basic = boot.conf_int(kind="basic")
    np.testing.assert_allclose(basic.loc["Days"], 2 * fit.params["Days"] - draws[::-1])
    normal = boot.conf_int(0.1, "normal").loc["Days"]
    half = 1.6448536269514722 * boot.bse["Days"]
    middle = fit.params["Days"] - boot.bias["Days"]
    np.testing.assert_allclose(normal, [middle - half, middle + half])
    assert "2000 of 2000" in repr(boot)
    assert list(boot.summary_frame()) == [
        "estimate", "bias", "std_error", "conf_low", "conf_high"
    ]  # fmt: skip


def test_intervals_of_results_may_be_bootstrapped():
    fit = fit_of()
    found = fit.conf_int(method="boot", replications=50, seed=3)
    pd.testing.assert_frame_equal(found, fit.bootstrap(50, seed=3).conf_int())


def test_bootstrap_repeats_itself_and_its_refits():
    fit = fit_of("uncorrelated")
    boot = parametric(fit, 40, seed=2)
    pd.testing.assert_frame_equal(boot.frame, parametric(fit, 40, seed=2).frame)
    Y = draw(fit, 40, np.random.default_rng(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = fit.refit(Y[:, 17])
    np.testing.assert_allclose(boot.frame.iloc[17][["Intercept", "Days"]], again.params,
                               rtol=1e-6)  # fmt: skip
    assert boot.frame["sigma"][17] == pytest.approx(again.sigma, rel=1e-6)


def test_a_statistic_sees_the_results_of_each_replicate():
    fit = fit_of()
    boot = parametric(
        fit, 15, seed=2, statistic=lambda r: pd.Series({"t": r.tvalues["Days"],
                                                        "resid": r.resid.std()}),
    )  # fmt: skip
    plain = parametric(fit, 15, seed=2)
    assert list(boot.frame) == ["t", "resid"]
    assert boot.estimate["t"] == pytest.approx(fit.tvalues["Days"])
    Y = draw(fit, 15, np.random.default_rng(2))
    again = fit.refit(Y[:, 4])
    assert boot.frame["t"][4] == pytest.approx(again.tvalues["Days"], rel=1e-5)
    assert boot.frame["resid"][4] == pytest.approx(again.resid.std(), rel=1e-5)
    assert not np.allclose(boot.frame["t"], plain.frame["Days"])
    single = parametric(fit, 3, seed=2, statistic=lambda r: r.params["Days"])
    np.testing.assert_allclose(single.frame["statistic"], plain.frame["Days"][:3])


def test_kept_effects_are_not_drawn():
    fit = fit_of("crossed")
    all_new = parametric(fit, 200, seed=1)
    kept = parametric(fit, 200, seed=1, re_form="~ (1 | sample)")
    # With six samples kept, the mean varies with the plates and errors only.
    assert kept.bse["Intercept"] < 0.5 * all_new.bse["Intercept"]
    with pytest.raises(ModelError, match="re_form"):
        parametric(fit, 10, re_form="~ (1 | nobody)")
    with pytest.raises(ModelError, match="whole terms"):
        parametric(fit_of(), 10, re_form="~ (1 | Subject)")


def test_singular_replicates_count_and_do_not_warn():
    fit = fit_of("nested")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boot = parametric(fit, 100, seed=1)
    zero = (boot.frame.filter(like="sd(") < 1e-6).any(axis=1).sum()
    assert boot.singular == zero > 5


def test_a_singular_fit_can_be_bootstrapped():
    data = load("sleepstudy")
    rng = np.random.default_rng(2)
    data["y"] = data["Days"] + rng.normal(size=len(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = LinearMixed("y ~ Days + (Days | Subject)", data).fit()
    assert fit.singular
    boot = parametric(fit, 60, seed=1)
    Y = draw(fit, 60, np.random.default_rng(1))
    _, products = fit.model.prepare()
    responses = RowSpace(fit.model.design, products, fit.model.compute).meet(Y)
    apart = _fit_apart(products, responses, True, None,
                       np.array([1.0, 0.0, 1.0]), 100, 1e-6)  # fmt: skip
    found = refit_many(products, responses, True, None, np.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found.value, apart.value, rtol=0, atol=1e-5)
    np.testing.assert_allclose(boot.frame["Days"], apart.beta[:, 1], atol=1e-4)


def test_a_known_sigma_stays_known():
    data = load("sleepstudy")
    fit = LinearMixed("Reaction ~ Days + (1 | Subject)", data, sigma=30.0).fit()
    boot = parametric(fit, 30, seed=1)
    assert list(boot.frame) == ["sd(Intercept)|Subject", "Intercept", "Days"]
    again = fit.refit(draw(fit, 30, np.random.default_rng(1))[:, 3])
    assert again.sigma == pytest.approx(30.0)
    assert boot.frame["Days"][3] == pytest.approx(again.params["Days"], rel=1e-6)


def test_bad_requests_are_refused():
    fit = fit_of()
    with pytest.raises(ValueError, match="2 or more"):
        fit.bootstrap(1)
    boot = fit.bootstrap(5, seed=0)
    with pytest.raises(ValueError, match="kind must be"):
        boot.conf_int(kind="bca")
    with pytest.raises(ValueError, match="alpha must be"):
        boot.conf_int(1.5)
