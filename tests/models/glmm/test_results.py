"""Results of generalised linear mixed models: estimates, effects, tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import deepstats as ds
from deepstats.errors import ModelError
from deepstats.models.glmm import MixedGLM
from deepstats.models.glmm.diagnostics import residual_variance
from deepstats.models.glmm.uncertainty import mode_slopes

from .data import fit, load
from .panels import fitted, panel
from .recorded import recorded

TMB = ["cbpp_binomial", "grouseticks_poisson", "sleepstudy_disp", "epil2_nbinom1"]


@pytest.fixture(scope="module")
def cbpp():
    return fit("glmmTMB.cbpp_binomial")


# -- estimates -------------------------------------------------------------------------


def test_parameters_of_all_predictors_are_reported():
    results = fit("glmmTMB.sleepstudy_disp")
    assert list(results.params.index) == [
        "Intercept", "Days", "sigma:Intercept", "sigma:Days"
    ]  # fmt: skip
    assert list(results.fe_params.index) == ["Intercept", "Days"]
    assert list(results.tidy()["component"]) == ["", "", "sigma", "sigma"]


def test_a_lone_dispersion_is_on_its_own_scale():
    results = fitted("nb2")
    working = float(results.fit_info.x[-1])
    assert results.params["alpha"] == pytest.approx(np.exp(working))
    se = np.sqrt(results.joint_cov[-1, -1])
    assert results.bse["alpha"] == pytest.approx(np.exp(working) * se)


def test_criteria_count_variance_parameters(cbpp):
    assert cbpp.aic == pytest.approx(-2 * cbpp.llf + 2 * 5)
    assert cbpp.bic == pytest.approx(-2 * cbpp.llf + np.log(56) * 5)
    assert (cbpp.nobs, cbpp.df_resid, cbpp.df_model) == (56, 51, 3)
    assert cbpp.nagq == 1
    assert fit("lme4.cbpp_agq9").nagq == 9


@pytest.mark.parametrize("name", TMB)
def test_effects_and_joint_deviations_are_those_of_glmmtmb(name):
    results = fit(f"glmmTMB.{name}")
    frames = results.ranef("joint")
    for record in recorded("glmmTMB", name, "ranef_first5"):
        frame = frames[record["grpvar"][0]]
        frame = frame.set_axis([str(level) for level in frame.index])
        for level, term, mode, sd in zip(
            record["level"], record["term"], record["condval"], record["condsd"],
            strict=True,
        ):  # fmt: skip
            column = "Intercept" if term == "(Intercept)" else term
            # glmmTMB stops where its gradient is 1e-3: its modes have four digits.
            assert frame.loc[level, column] == pytest.approx(mode, abs=2e-3 * sd)
            assert frame.loc[level, f"{column}.sd"] == pytest.approx(sd, rel=2e-3)


def test_conditional_deviations_are_those_of_lme4(cbpp):
    frame = cbpp.ranef(cond_var=True)["herd"]
    for row in recorded("lme4", "cases", "cbpp_laplace", "ranef_first5", "herd"):
        mode, sd = frame.loc[row["level"]]
        # glmer's defaults stop short of its optimum (notes): SEs are off by 1e-3.
        assert mode == pytest.approx(row["condval"], abs=2e-3)
        assert sd == pytest.approx(row["condsd"], rel=1e-3)
    covariances = cbpp.cond_var()["herd"]
    np.testing.assert_allclose(covariances[:, 0, 0], frame["Intercept.sd"] ** 2)


def test_ranef_refuses_what_it_does_not_know(cbpp):
    with pytest.raises(ValueError, match="True, False or 'joint'"):
        cbpp.ranef("both")


def test_coef_adds_fixed_and_random_effects(cbpp):
    frame = cbpp.coef()["herd"]
    expected = cbpp.params["Intercept"] + cbpp.ranef()["herd"]["Intercept"]
    np.testing.assert_allclose(frame["Intercept"], expected)
    assert frame["period[T.2]"].nunique() == 1


@pytest.mark.parametrize("name", ["zip", "nb2", "logit", "cloglog"])
def test_modes_move_as_their_derivatives_say(name):
    """Central differences of the modes found anew at moved parameters."""
    results = fitted(name)
    point = results.found.point
    laplace, k = point.laplace, len(point.x)
    at = np.concatenate([point.x, point.gamma])
    structure, units = results.mixed.structure, results.mixed.units
    exact = mode_slopes(results)

    def modes(z):
        found = laplace.modes(z[:k], z[k:]).effects
        return [
            (U @ e.numpy()).T for U, e in zip(units, found, strict=True)
        ]  # fmt: skip

    for j in range(len(at)):
        h = 1e-4 * max(abs(at[j]), 0.1)
        up, down = at.copy(), at.copy()
        up[j] += h
        down[j] -= h
        high, low = modes(up), modes(down)
        for term, slope in zip(structure.terms, exact, strict=True):
            f = term.factor
            numeric = (high[f] - low[f])[:, term.at] / (2 * h)
            # Modes are found to 1e-9 standard deviations: 1e-5 after division.
            scale = max(np.abs(numeric).max(), 1e-2)
            np.testing.assert_allclose(
                slope[:, :, j], numeric, atol=2e-5 * scale + 1e-6
            )


def test_random_parameters_by_the_delta_method():
    results = fitted("zip")
    structure, x = results.mixed.structure, results.found.point.x
    frame = results.random_params()

    def values(z):
        out = []
        for j in structure.order:
            root = structure.raw_roots(z)[j]
            V = root @ root.T
            sd = np.sqrt(np.diag(V))
            out += list(sd)
            if len(V) == 2:
                out.append(V[1, 0] / sd.prod())
        return np.array(out)

    np.testing.assert_allclose(frame["estimate"], values(x))
    J = np.empty((len(frame), len(x)))
    for j in range(len(x)):
        step = 1e-6 * (np.arange(len(x)) == j)
        J[:, j] = (values(x + step) - values(x - step)) / 2e-6
    cov = results.joint_cov[: len(x), : len(x)]
    np.testing.assert_allclose(
        frame["std_error"], np.sqrt(np.diag(J @ cov @ J.T)), rtol=1e-5
    )
    sd, se = frame.loc[0, ["estimate", "std_error"]]
    assert frame.loc[0, "conf_high"] == pytest.approx(sd * np.exp(1.959964 * se / sd))
    assert "Residual" not in set(frame["grp"])


def test_random_parameters_of_glmmtmb(cbpp):
    """Its standard error of log(SD) is in its full covariance."""
    record = recorded("glmmTMB", "cbpp_binomial", "vcov_full")
    se = np.sqrt(record["V"][-1][-1])
    row = cbpp.random_params().iloc[0]
    assert row["std_error"] / row["estimate"] == pytest.approx(se, rel=1e-3)


# -- rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TMB)
def test_fitted_values_are_those_of_glmmtmb(name):
    results = fit(f"glmmTMB.{name}")
    expected = recorded("glmmTMB", name, "fitted_first5")
    np.testing.assert_allclose(results.fittedvalues[:5], expected, rtol=1e-4)
    link = recorded("glmmTMB", name, "predict_link_first5")
    np.testing.assert_allclose(results.linear_predictor[:5], link, atol=1e-4)


def test_fitted_values_index_and_residuals(cbpp):
    y = load("cbpp")["incidence"] / load("cbpp")["size"]
    np.testing.assert_allclose(cbpp.resid_response, y - cbpp.fittedvalues)
    pd.testing.assert_series_equal(cbpp.resid, cbpp.resid_response)


def test_tables_hold_the_same_numbers(cbpp):
    tidy, glance, augment = cbpp.tidy(), cbpp.glance(), cbpp.augment()
    np.testing.assert_allclose(tidy["estimate"], cbpp.params)
    np.testing.assert_allclose(tidy["std_error"], cbpp.bse)
    assert glance.loc[0, "llf"] == cbpp.llf
    assert glance.loc[0, "n_herd"] == 15
    assert glance.loc[0, "nagq"] == 1
    np.testing.assert_allclose(augment[".fitted"], cbpp.fittedvalues)
    np.testing.assert_allclose(
        augment[".eta"] - augment[".fixed"],
        cbpp.ranef()["herd"]["Intercept"].loc[load("cbpp")["herd"]],
    )


# -- tests -----------------------------------------------------------------------------


def test_wald_tests_are_chi_squared(cbpp):
    hypothesis = "period[T.2] = 0, period[T.3] = 0, period[T.4] = 0"
    found = cbpp.wald_test(hypothesis)
    b, V = cbpp.params.to_numpy()[1:], cbpp.cov_params().to_numpy()[1:, 1:]
    assert found.statistic == pytest.approx(b @ np.linalg.solve(V, b))
    assert found.distribution == "chi2"
    assert cbpp.wald_test_terms().loc["period", "chi2"] == pytest.approx(
        found.statistic
    )
    contrast = cbpp.t_test("period[T.2] - period[T.3]").frame.iloc[0]
    assert contrast["coef"] == pytest.approx(b[0] - b[1])
    half = stats.norm.ppf(0.975) * cbpp.bse
    np.testing.assert_allclose(cbpp.conf_int()[1], cbpp.params + half)


def test_likelihood_ratio_against_no_random_effects(cbpp):
    formula = "cbind(incidence, size - incidence) ~ period"
    without = ds.glm(formula, load("cbpp"), family="binomial").fit()
    found = cbpp.compare_lr_test(without)
    statistic = 2 * (cbpp.llf - without.llf)
    assert found.statistic == pytest.approx(statistic)
    assert found.pvalue == pytest.approx(stats.chi2.sf(statistic, 1) / 2)
    assert found.variances == 1


def test_likelihood_ratio_of_fixed_effects_and_of_families(cbpp):
    data, formula = load("cbpp"), "cbind(incidence, size - incidence) ~ 1 + (1 | herd)"
    small = MixedGLM(formula, data, family="binomial").fit()
    found = cbpp.compare_lr_test(small)
    assert (found.df_num, found.variances) == (3, 0)
    statistic = 2 * (cbpp.llf - small.llf)
    assert found.pvalue == pytest.approx(stats.chi2.sf(statistic, 3))
    count = ds.negativebinomial("y ~ x", panel()).fit()
    found = fitted("nb2").compare_lr_test(count)
    assert found.statistic == pytest.approx(2 * (fitted("nb2").llf - count.llf))
    assert (found.df_num, found.variances) == (1, 1)
    poisson = MixedGLM("y ~ x + (1 | g)", panel(), family="poisson").fit()
    against = fitted("nb2").compare_lr_test(poisson)
    assert (against.df_num, against.variances) == (1, 1)
    assert "mixture" in against.name
    with pytest.raises(ValueError, match="fewer parameters"):
        small.compare_lr_test(cbpp)


def test_likelihoods_that_cannot_be_compared_are_refused(cbpp):
    data = load("cbpp")
    with pytest.raises(ModelError, match="different rules"):
        fit("lme4.cbpp_agq9").compare_lr_test(cbpp)
    with pytest.raises(ValueError, match="same rows"):
        MixedGLM(
            "cbind(incidence, size - incidence) ~ period + (1 | herd)", data[:-1],
            family="binomial",
        ).fit().compare_lr_test(cbpp)  # fmt: skip
    nb = fitted("nb2")
    with pytest.raises(ModelError, match="not within"):
        nb.compare_lr_test(
            MixedGLM("y ~ 1 + (1 | g)", panel(), family="zip").fit()
        )  # fmt: skip
    data = panel().assign(w=lambda d: np.cos(np.arange(len(d))))
    other = MixedGLM("y ~ 1 + (1 | g)", data, family="zip", zi_formula="~ w").fit()
    larger = MixedGLM(
        "y ~ x + f + (1 | g)", data, family="zip", zi_formula="~ x"
    ).fit()  # fmt: skip
    with pytest.raises(ValueError, match="only the smaller one has w in its predictor"):
        larger.compare_lr_test(other)
    with pytest.raises(ModelError, match="by moments"):
        nb.compare_lr_test(ds.glm("y ~ 1", panel(), family="quasipoisson").fit())
    with pytest.raises(ModelError, match="cannot be compared"):
        nb.compare_lr_test(ds.lmer("y ~ 1 + (1 | g)", panel()).fit())
    with pytest.raises(ValueError, match="different offsets"):
        fitted("poisson").compare_lr_test(
            ds.glm("y ~ 1", panel(), family="poisson").fit()
        )


def test_a_table_of_several_fits(cbpp):
    data, formula = load("cbpp"), "cbind(incidence, size - incidence) ~ "
    small = MixedGLM(formula + "1 + (1 | herd)", data, family="binomial").fit()
    without = ds.glm(formula + "1", data, family="binomial").fit()
    table = ds.anova(cbpp, without, small)
    assert list(table["npar"]) == [1, 2, 5]
    np.testing.assert_allclose(table["logLik"], [f.llf for f in (without, small, cbpp)])
    np.testing.assert_allclose(table["AIC"], [f.aic for f in (without, small, cbpp)])
    found = cbpp.compare_lr_test(small)
    assert table["Chisq"].iloc[2] == pytest.approx(found.statistic)
    assert table["Pr(>Chisq)"].iloc[2] == pytest.approx(found.pvalue)
    with pytest.raises(ModelError, match="different rules"):
        ds.anova(cbpp, fit("lme4.cbpp_agq9"))


def test_terms_are_tested_by_chi_squared(cbpp):
    expected = cbpp.wald_test_terms().loc["period"]
    for type in (1, 2, 3):
        row = cbpp.anova(type).loc["period"]
        assert row["Chisq"] == pytest.approx(expected["chi2"])
        assert (row["Df"], row["Pr(>Chisq)"]) == (3, pytest.approx(expected["pvalue"]))
    with pytest.raises(ValueError, match="1, 2 or 3"):
        cbpp.anova(4)


# -- explained variance ----------------------------------------------------------------


def test_r_squared_of_a_logit_model(cbpp):
    """Nakagawa & Schielzeth (2013): pi^2 / 3 for the logit."""
    eta = cbpp.model.design.X.to_dense().numpy() @ cbpp.params.to_numpy()
    F, R, E = eta.var(ddof=1), float(cbpp.varcorr["vcov"].iloc[0]), np.pi**2 / 3
    r2 = cbpp.r2()
    assert r2["marginal"] == pytest.approx(F / (F + R + E))
    assert r2["conditional"] == pytest.approx((F + R) / (F + R + E))
    assert cbpp.icc().loc["herd", "adjusted"] == pytest.approx(R / (R + E))


def test_residual_variances_of_counts():
    """Nakagawa, Johnson & Schielzeth (2017), table 1, at the mean of the responses."""
    from scipy.special import polygamma

    for name in ("poisson", "nb2"):
        results = fitted(name)
        mean = float(results.predict(marginal=True).mean())
        a = results.params["alpha"] if name == "nb2" else 0.0
        delta = 1 / mean + a
        expected = {
            "delta": delta, "lognormal": np.log1p(delta),
            "trigamma": float(polygamma(1, 1 / delta)),
        }  # fmt: skip
        for method, value in expected.items():
            assert residual_variance(results, method) == pytest.approx(value, rel=1e-8)
        assert residual_variance(results) == residual_variance(results, "lognormal")


def test_explained_variance_refuses_methods_that_do_not_fit(cbpp):
    with pytest.raises(ModelError, match="log link"):
        cbpp.r2("lognormal")
    with pytest.raises(ModelError, match="no latent variable"):
        fitted("nb2").r2("theoretical")
    with pytest.raises(ValueError, match="method must be"):
        cbpp.icc("best")


def test_principal_components_are_of_the_covariance():
    results = fitted("zip")
    frame = results.pca()["g"]
    V = results.mixed.covariances[0]
    np.testing.assert_allclose(frame["sd"] ** 2, np.linalg.eigvalsh(V)[::-1])


# -- what there is not -----------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.f_test("period[T.2] = 0"),
        lambda r: r.wald_test("period[T.2] = 0", use_f=True),
        lambda r: r.get_prediction(),
        lambda r: r.lr_test("period[T.2] = 0"),
        lambda r: r.score_test("period[T.2] = 0"),
        lambda r: r.get_influence(),
        lambda r: r.get_margeff(),
        lambda r: r.marginal_effects(),
        lambda r: r.get_robustcov_results("HC1"),
        lambda r: r.likelihood,
    ],
)
def test_what_makes_no_sense_says_what_to_use(cbpp, call):
    with pytest.raises(ModelError):
        call(cbpp)


def test_saving_is_refused(cbpp, tmp_path):
    with pytest.raises(ModelError, match="cannot be saved"):
        cbpp.save(tmp_path / "fit")
    assert not list(tmp_path.iterdir())


def test_delta_method_and_nonrobust_errors(cbpp):
    found = cbpp.delta_method(lambda b: torch.exp(b[1]), ["odds ratio"])
    ratio = np.exp(cbpp.params.iloc[1])
    assert found.loc["odds ratio", "estimate"] == pytest.approx(ratio)
    expected = ratio * cbpp.bse.iloc[1]
    assert found.loc["odds ratio", "std_error"] == pytest.approx(expected)
    assert cbpp.get_robustcov_results("nonrobust") is cbpp
