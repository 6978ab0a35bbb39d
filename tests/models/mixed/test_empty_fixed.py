"""Models without fixed effects, ``y ~ 0 + (1 | g)``: the mean is zero or the offset."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, multivariate_normal, norm

import deepstats as ds
from deepstats.errors import DesignError, ModelError, SingularFitWarning
from deepstats.models.mixed import LinearMixed, MixedResults
from deepstats.models.mixed.degrees import DDF
from deepstats.models.mixed.together import Together

from .brute import Brute
from .data import load

FORMULAS = {
    "scalar": "y ~ 0 + (1 | g)",
    "slopes": "y ~ 0 + (x | g)",
    "uncorrelated": "y ~ 0 + (x || g)",
    "crossed": "y ~ 0 + (1 | g) + (1 | h)",
    "nested": "y ~ 0 + (1 | k/g)",
    "mixture": "y ~ 0 + (x | g) + (1 | h) + (0 + z | k)",
}


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    n = 96
    d = pd.DataFrame(
        {
            "g": np.repeat(np.arange(12), 8), "h": np.tile(np.arange(8), 12),
            "x": rng.normal(size=n) + 1, "z": rng.normal(size=n),
            "w": rng.uniform(0.5, 2, n), "o": rng.normal(size=n),
        }
    )  # fmt: skip
    d["k"] = d.g // 3
    d["y"] = 1.5 * rng.normal(size=12)[d.g] + rng.normal(size=12)[d.g] * d.x
    d["y"] += rng.normal(size=8)[d.h] + rng.normal(size=4)[d.k] * (1 + d.z)
    d["y"] += d.o + rng.normal(size=n)
    return d


def fitted(formula: str, data: pd.DataFrame, reml: bool = True, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return LinearMixed(formula, data, **options).fit(reml)


def dense(fit: MixedResults) -> Brute:
    return Brute(fit.model, fit.mixed.criterion, fit.mixed.x)


# -- the criterion -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"weights": "w", "offset": "o"}, {"sigma": 1}])
@pytest.mark.parametrize("name", FORMULAS)
def test_likelihood_is_the_normal_density_of_the_rows(name, options, data):
    fit, by_ml = (fitted(FORMULAS[name], data, reml, **options) for reml in (True, 0))
    brute = dense(fit)
    density = multivariate_normal(np.zeros(len(data)), brute.variance * brute.Sigma)
    assert fit.llf == pytest.approx(density.logpdf(brute.y), abs=1e-8)
    assert fit.llf == pytest.approx(by_ml.llf, abs=1e-8)
    np.testing.assert_allclose(fit.theta, by_ml.theta, atol=1e-5)
    # No other parameters are likelier.
    for step in np.vstack([np.eye(len(brute.x)), -np.eye(len(brute.x))]) * 1e-3:
        x = np.maximum(fit.mixed.x + step, fit.mixed.structure.lower)
        assert Brute(fit.model, fit.mixed.criterion, x).value >= brute.value - 1e-7


# lmer 1.1-31 (bobyqa, rhoend=1e-10), which turns REML off without fixed effects:
# log-likelihood, df, AIC, BIC, variances and correlations, effects of the first level.
LME4 = [
    (
        "Reaction ~ 0 + (Days | Subject)", "sleepstudy", {}, -916.390682184,
        (4, 1840.78136437, 1853.55319177),
        [252.52725778262, 11.92670206188, 0.87740493037, 25.59181627825],
        [255.400727034, 19.37773541643],
    ),
    (
        "Reaction ~ 0 + (1 | Subject)", "sleepstudy", {}, -992.839845471,
        (2, 1989.67969094, 1996.06560464), [300.5052393424, 44.2590690056],
        [341.393278241],
    ),
    (
        "diameter ~ 0 + (1 | plate) + (1 | sample)", "Penicillin", {}, -181.475846637,
        (3, 368.951693275, 377.861133174),
        [0.846739735011, 23.032658597782, 0.549922858126], [0.812310375401],
    ),
    (
        "Reaction ~ 0 + (Days || Subject)", "sleepstudy",
        {"weights": np.tile([1.0, 2, 4], 60), "offset": np.tile([250.0, 260], 90)},
        -912.897248768, (3, 1831.79449754, 1841.37336809),
        [21.0582362236, 11.7968535710, 42.6087241986],
        [-4.52673335702, 20.91561082041],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", LME4, ids=lambda case: case[0])
def test_fits_of_lme4(case):
    formula, name, options, llf, criteria, spread, first = case
    fit = fitted(formula, load(name), **options)
    assert fit.llf == pytest.approx(llf, abs=1e-6)
    assert fit._counted == criteria[0]
    assert (fit.aic, fit.bic) == pytest.approx(criteria[1:], abs=1e-5)
    np.testing.assert_allclose(fit.varcorr["sdcor"], spread, rtol=1e-4)
    np.testing.assert_allclose(next(iter(fit.ranef().values())).iloc[0], first, 1e-4)


def test_profile_limits_of_lme4():
    fit = fitted("Reaction ~ 0 + (Days | Subject)", load("sleepstudy"))
    wanted = {
        "sd(Intercept)|Subject": (187.813990381, 364.633038479),
        "cor(Days,Intercept)|Subject": (0.676154646644, 0.959434993851),
        "sd(Days)|Subject": (8.679534129743, 17.453356461310),
        "sigma": (22.898249426668, 28.857994308268),
    }
    limits = fit.conf_int(method="profile")
    assert list(limits.index) == list(wanted)
    # lme4 interpolates.
    np.testing.assert_allclose(limits, list(wanted.values()), rtol=1e-3)


def test_likelihood_ratio_against_an_intercept():
    data = load("sleepstudy")
    empty, full = (
        fitted(f"Reaction ~ {fixed} + (1 | Subject)", data) for fixed in "01"
    )
    test = full.compare_lr_test(empty)
    assert test.statistic == pytest.approx(75.13863, abs=1e-4)
    assert test.df_num == 1 and test.pvalue == pytest.approx(chi2.sf(75.13863, 1), 1e-4)
    table = ds.anova(empty, full)
    assert table["npar"].tolist() == [2, 3]
    assert table["Chisq"].iloc[1] == pytest.approx(75.13863, abs=1e-4)
    assert table["AIC"].tolist() == pytest.approx([1989.679691, 1916.541058], abs=1e-5)
    with pytest.raises(ValueError, match="order of the two"):
        empty.compare_lr_test(full)


def test_likelihood_ratio_against_no_effects_at_all(data):
    fit, plain = fitted("y ~ 0 + (1 | g)", data), ds.ols("y ~ 0", data).fit()
    llf = norm(0, np.sqrt(np.square(data.y).mean())).logpdf(data.y).sum()
    test = fit.compare_lr_test(plain)
    assert test.statistic == pytest.approx(2 * (fit.llf - llf), abs=1e-8)
    assert test.pvalue == pytest.approx(chi2.sf(test.statistic, 1) / 2)


# -- what the results say ------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_coefficients_are_none_in_the_right_shapes(name, data):
    fit = fitted(FORMULAS[name], data)
    for ddf in DDF:
        own = fit.with_ddf(ddf)
        for values in (own.params, own.bse, own.tvalues, own.pvalues):
            assert values.shape == (0,)
        assert own.df_coefficients.shape == (0,)
        assert own.cov_params().shape == (0, 0) and own.conf_int().shape == (0, 2)
        assert own.anova().shape == (0, 6) and own.tidy().shape == (0, 9)
    assert fit._counted == fit.mixed.structure.size + 1
    assert fit.aic == pytest.approx(2 * fit._counted - 2 * fit.llf)
    assert fit.bic == pytest.approx(np.log(len(data)) * fit._counted - 2 * fit.llf)
    assert fit.df_resid == len(data) - fit._counted
    assert len(fit.glance()) == 1 and len(fit.augment()) == len(data)


@pytest.mark.parametrize("offset", [None, "o"])
def test_page_says_that_there_are_no_fixed_effects(offset, data):
    page = fitted("y ~ 0 + (x | g)", data, offset=offset).summary()
    note = f"No fixed effects: the mean is {'the offset' if offset else 'zero'}."
    for text in (page.as_text(), page.as_html(), page.as_latex()):
        assert note in text and "std err" not in text
        assert "Random effects" in text


def test_tests_of_coefficients_say_that_there_are_none(data):
    fit = fitted("y ~ 0 + (1 | g)", data)
    for ask in (
        lambda: fit.wald_test("x = 0"),
        lambda: fit.wald_test(np.zeros((1, 0))),
        lambda: fit.f_test("x = 0"),
        lambda: fit.t_test("x"),
        lambda: ds.power(fit, test="x"),
    ):
        with pytest.raises(ModelError, match="fixed part is empty"):
            ask()
    for test in ("lrt", "f"):
        with pytest.raises(ModelError, match="no term that could be left out"):
            fit.drop1(test)


def test_an_offset_that_is_the_response_leaves_nothing(data):
    with pytest.raises(DesignError, match="the offset fits the response exactly"):
        fitted("y ~ 0 + (1 | g)", data, offset="y")


def test_drop1_may_leave_no_columns(data):
    full = fitted("y ~ 0 + x + (1 | g)", data, reml=False)
    empty = fitted("y ~ 0 + (1 | g)", data, reml=False)
    table = full.drop1()
    assert table.loc["x", "AIC"] == pytest.approx(empty.aic, abs=1e-6)
    assert table.loc["x", "LRT"] == pytest.approx(2 * (full.llf - empty.llf), abs=1e-6)
    by_f = full.drop1("f").loc["x", "F value"]
    assert by_f == pytest.approx(full.tvalues["x"] ** 2, rel=1e-8)


def test_shares_of_the_variance(data):
    fit = fitted("y ~ 0 + (1 | g)", data)
    share = fit.varcorr["vcov"].iloc[0] / fit.varcorr["vcov"].sum()
    assert fit.r2().tolist() == pytest.approx([0.0, share])
    assert fit.icc().loc["g", "adjusted"] == pytest.approx(share)


@pytest.mark.parametrize("kind", ["CR0", "CR2"])
def test_robust_covariance_is_of_nothing(kind, data):
    fit = fitted("y ~ 0 + (1 | g)", data).get_robustcov_results(kind)
    assert fit.cov_params().shape == (0, 0) and fit.tidy().shape == (0, 9)


# -- rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_effects_and_predictions_are_those_of_the_joint_normal(name, data):
    fit = fitted(FORMULAS[name], data, weights="w", offset="o").with_ddf("normal")
    brute, o = dense(fit), data.o.to_numpy()
    mean = o + brute.Z @ brute.modes
    np.testing.assert_allclose(fit.fittedvalues, mean, atol=1e-7)
    np.testing.assert_allclose(fit.predict(data, offset="o"), mean, atol=1e-7)
    np.testing.assert_allclose(fit.predict(re_form="none"), o)
    hat = np.diag(brute.Z @ brute.mode_variances @ brute.Z.T) / brute.variance
    np.testing.assert_allclose(fit.leverage, hat * data.w, atol=1e-7)
    frame = fit.predict(interval="confidence")
    np.testing.assert_allclose(frame["mean_se"] ** 2, hat * brute.variance, atol=1e-7)
    frame = fit.predict(interval="prediction")
    new = hat * brute.variance + brute.variance / data.w
    np.testing.assert_allclose(frame["obs_se"] ** 2, new, atol=1e-7)
    frame = fit.predict(re_form="none", interval="confidence")
    assert (frame["mean_se"] == 0).all()
    frame = fit.predict(re_form="none", interval="prediction")
    np.testing.assert_allclose(
        frame["obs_se"] ** 2, brute.variance * np.diag(brute.Sigma), atol=1e-7
    )


def test_a_new_level_is_predicted_as_the_mean(data):
    fit = fitted("y ~ 0 + (x | g)", data)
    new = pd.DataFrame({"g": [99, 0], "x": [2.0, 2.0]})
    frame = fit.predict(new, allow_new_levels=True, interval="prediction")
    z, V = np.array([1.0, 2.0]), fit.mixed.covariances[0]
    assert frame["mean"].iloc[0] == 0
    assert frame["obs_se"].iloc[0] ** 2 == pytest.approx(z @ V @ z + fit.scale)
    effects = fit.ranef()["g"].loc[0]
    assert frame["mean"].iloc[1] == pytest.approx(effects @ z)
    pd.testing.assert_frame_equal(fit.coef()["g"], fit.ranef()["g"])


def test_simulated_responses_have_the_covariance_of_the_fit(data):
    fit = fitted("y ~ 0 + (1 | g)", data)
    Y = fit.simulate(4000, seed=1).to_numpy()
    assert np.abs(Y.mean(axis=1)).max() < 5 * np.sqrt(np.square(Y).mean() / 4000)
    wanted = fit.mixed.covariances[0][0, 0]
    within = np.mean([Y[8 * j] * Y[8 * j + 1] for j in range(12)])
    assert within == pytest.approx(wanted, rel=0.05)
    assert np.square(Y).mean() == pytest.approx(wanted + fit.scale, rel=0.05)


def test_refit_is_the_fit_of_another_response(data):
    fit, y = fitted("y ~ 0 + (x | g)", data), 2 * data.y + np.cos(data.x)
    again = fitted("y ~ 0 + (x | g)", data.assign(y=y))
    assert fit.refit(y).llf == pytest.approx(again.llf, abs=1e-7)
    assert fit.refit(reml=False).llf == pytest.approx(fit.llf, abs=1e-8)


@pytest.mark.parametrize("name", ["slopes", "crossed", "nested"])
def test_bootstrap_refits_each_replicate(name, data, monkeypatch):
    fit = fitted(FORMULAS[name], data)
    boot = fit.bootstrap(12, seed=4)
    Y = fit.simulate(12, seed=4).to_numpy()
    for number in (0, 7):
        own = fitted(FORMULAS[name], data.assign(y=Y[:, number]))
        np.testing.assert_allclose(boot.frame["sigma"][number], own.sigma, rtol=1e-5)
    monkeypatch.setattr(Together, "pays", staticmethod(lambda products: False))
    apart = fit.bootstrap(12, seed=4)
    np.testing.assert_allclose(boot.frame, apart.frame, atol=1e-4)
    assert not set(boot.frame) & {"Intercept", "x"}
    assert boot.conf_int().shape == (fit._counted, 2)


def test_profile_limits_are_where_the_likelihood_falls(data):
    fit = fitted("y ~ 0 + (1 | g)", data)
    limits = fit.profile().conf_int()
    same = (data.g.to_numpy()[:, None] == data.g.to_numpy()).astype(float)

    def deviance(sd: float, sigma: float) -> float:
        Sigma = sd**2 * same + sigma**2 * np.eye(len(data))
        return -2 * multivariate_normal(np.zeros(len(data)), Sigma).logpdf(data.y)

    least = -2 * fit.llf
    for sd in limits.loc["sd(Intercept)|g"]:
        found = minimize_scalar(lambda s, sd=sd: deviance(sd, s), bounds=(0.5, 5)).fun
        assert found - least == pytest.approx(chi2.isf(0.05, 1), abs=2e-3)
    for sigma in limits.loc["sigma"]:
        found = minimize_scalar(lambda s, v=sigma: deviance(s, v), bounds=(0, 9)).fun
        assert found - least == pytest.approx(chi2.isf(0.05, 1), abs=2e-3)


def test_standard_errors_of_variances_are_those_of_curvature(data):
    """Balanced one-way without a mean: the two mean squares are independent."""
    fit = fitted("y ~ 0 + (1 | g)", data)
    m, k, s2 = 12, 8, fit.scale
    between = k * fit.mixed.covariances[0][0, 0] + s2
    wanted = 2 * s2**2 / (m * (k - 1))
    errors = fit.random_params()["vcov_std_error"]
    assert errors.iloc[-1] ** 2 == pytest.approx(wanted, rel=1e-6)
    assert errors.iloc[0] ** 2 == pytest.approx(
        (2 * between**2 / m + wanted) / k**2, rel=1e-6
    )


def test_groups_left_out_and_folds(data):
    fit = fitted("y ~ 0 + (1 | g)", data)
    influence = fit.influence("k")
    assert len(influence.frame) == 4
    own = fitted("y ~ 0 + (1 | g)", data[data.k != 2])
    assert influence.frame.loc[2, "sigma"] == pytest.approx(own.sigma, rel=1e-5)
    folds = fit.cross_validate(3, seed=1)
    assert folds["converged"].all() and (folds["rmse"] > 0).all()
