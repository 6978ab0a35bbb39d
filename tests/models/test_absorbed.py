"""Absorbed fixed effects against dummies, pyfixest and fixest; rows left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import (
    ConvergenceWarning,
    DesignError,
    ModelError,
    RankWarning,
    SeparationWarning,
)
from deepstats.models.absorbed import absorbed_glm, absorbed_ols

# pyfixest 0.60 on `panel`, default ssc, fixef_tol 1e-13: coefficients of x and z, and
# standard errors by kind. R's fixest counts effects not nested in the clusters in
# `firm` too, as pyfixest does since 0.60.
KINDS = {
    "nonrobust": ("nonrobust", {}),
    "HC1": ("HC1", {}),
    "firm": ("cluster", {"groups": "firm"}),
    "both": ("cluster", {"groups": ["firm", "year"]}),
}
PYFIXEST = {
    "y ~ x + z | firm": {
        "coef": [0.5492373822638625, -0.08840905230225689],
        "nonrobust": [0.05146575260595721, 0.03882771820782786],
        "HC1": [0.05569835095173721, 0.0359856976083835],
        "firm": [0.047539223999418304, 0.03604205197670758],
        "both": [0.026738721482546864, 0.021458384250089908],
        "r2": (0.6888938367155149, 0.18711451876764862),
    },
    "y ~ x + z | firm + year": {
        "coef": [0.5387095649994971, -0.18895090045525642],
        "nonrobust": [0.051375747889043664, 0.04715985631631201],
        "HC1": [0.05664154600345428, 0.04445307281052536],
        "firm": [0.04606995555612173, 0.04495785125708242],
        "both": [0.024316057183799245, 0.026462769175262066],
        "r2": (0.6984862547189359, 0.2012795742186705),
    },
    "y ~ x + z | region^year": {
        "coef": [1.0097172084864443, -0.16054412941776977],
        "nonrobust": [0.04439273938735525, 0.05440231754155808],
        "HC1": [0.04334298585389213, 0.053883389360297684],
        "firm": [0.04977093660419279, 0.05555613765261513],
        "both": [0.06028507832025128, 0.04111799967181125],
        "r2": (0.5907752965906751, 0.5008686192587684),
    },
}
WEIGHTED = {
    "coef": [0.5424321558294181, -0.19820921632253405],
    "nonrobust": [0.0519511284366948, 0.047280921712516556],
    "HC1": [0.06080055764219338, 0.04776363997730387],
    "firm": [0.056328051578504436, 0.04797211563828304],
    "both": [0.0370251939246275, 0.02903359809742441],
}
POISSON = {
    "coef": [0.2554161558822799, -0.12789331494018566],
    "nonrobust": [0.04519891094069193, 0.03980859793568152],
    "HC1": [0.04455275593136696, 0.038990527822369364],
    "firm": [0.03429847171452417, 0.037375819715845846],
}


@pytest.fixture(scope="module")
def panel() -> pd.DataFrame:
    rng, n = np.random.default_rng(7), 600
    firm = np.concatenate([rng.integers(0, 60, n - 6), np.arange(60, 66)])
    year, region = rng.integers(0, 9, n), firm % 7
    e = rng.normal(size=66)
    x = rng.normal(size=n) + e[firm]
    z = rng.normal(size=n) + 0.3 * year
    noise = rng.normal(size=n) * (1 + 0.3 * (x > 0))
    y = 0.5 * x - 0.2 * z + e[firm] + 0.1 * year + noise
    c = rng.poisson(np.exp(0.3 * x - 0.1 * z + 0.5 * e[firm]))
    b = (rng.random(n) < 1 / (1 + np.exp(-(0.5 * x - 0.3 * z + e[firm])))).astype(float)
    w = rng.uniform(0.5, 2, n)
    return pd.DataFrame(
        {"y": y, "x": x, "z": z, "c": c, "b": b, "w": w, "firm": firm, "year": year,
         "region": region}
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", PYFIXEST)
def test_ols_matches_pyfixest(panel, formula, kind):
    stored = PYFIXEST[formula]
    cov_type, options = KINDS[kind]
    fit = absorbed_ols(formula, panel).fit(cov_type, options)
    # Both demean to 1e-10 or better; pyfixest's numbers have no known error.
    np.testing.assert_allclose(fit.params, stored["coef"], rtol=1e-9)
    np.testing.assert_allclose(fit.bse, stored[kind], rtol=1e-8)
    found = (fit.rsquared, fit.rsquared_within)
    np.testing.assert_allclose(found, stored["r2"], rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_matches_pyfixest(panel, kind):
    cov_type, options = KINDS[kind]
    fit = absorbed_ols("y ~ x + z | firm + year", panel, weights="w").fit(
        cov_type, options
    )
    np.testing.assert_allclose(fit.params, WEIGHTED["coef"], rtol=1e-9)
    np.testing.assert_allclose(fit.bse, WEIGHTED[kind], rtol=1e-8)


@pytest.mark.parametrize("kind", sorted(POISSON.keys() - {"coef"}))
def test_poisson_matches_pyfixest(panel, kind):
    cov_type, options = KINDS[kind]
    model = absorbed_glm("c ~ x + z | firm + year", panel, family="poisson")
    fit = model.fit(cov_type, options)
    assert fit.nobs == 564
    np.testing.assert_allclose(fit.params, POISSON["coef"], rtol=1e-8)
    np.testing.assert_allclose(fit.bse, POISSON[kind], rtol=1e-6)


def test_poisson_matches_fixest(shared_data, reference):
    stored = reference["fepois_dc"]
    data = shared_data("reg_dc_streetunits.csv")
    formula = "TotalCrime ~ TotalLic + CFS1 + CFS2 | FishID"
    fit = absorbed_glm(formula, data, family="poisson").fit()
    np.testing.assert_allclose(
        fit.params, list(stored["iid"]["coef"].values()), rtol=1e-8
    )
    np.testing.assert_allclose(fit.bse, list(stored["iid"]["se"].values()), rtol=1e-6)
    clustered = fit.get_robustcov_results("cluster", groups="FishID")
    np.testing.assert_allclose(
        clustered.bse, list(stored["cl"]["se"].values()), rtol=1e-6
    )


def test_ols_is_ols_with_dummies(panel):
    fit = absorbed_ols("y ~ x + z | firm + year", panel, singletons="keep").fit()
    dummies = ds.OLS("y ~ x + z + C(firm) + C(year)", panel).fit()
    np.testing.assert_allclose(fit.params, dummies.params[["x", "z"]], rtol=1e-9)
    np.testing.assert_allclose(fit.bse, dummies.bse[["x", "z"]], rtol=1e-9)
    np.testing.assert_allclose(fit.fittedvalues, dummies.fittedvalues, rtol=1e-8)
    for name in (
        "llf",
        "aic",
        "bic",
        "rsquared",
        "rsquared_adj",
        "df_resid",
        "df_model",
    ):
        np.testing.assert_allclose(
            getattr(fit, name), getattr(dummies, name), rtol=1e-9
        )
    robust = dummies.get_robustcov_results("HC1").bse[["x", "z"]]
    np.testing.assert_allclose(fit.get_robustcov_results("HC1").bse, robust, rtol=1e-8)


CASES = [
    ("poisson", None, "c", None),
    ("binomial", None, "b", None),
    ("binomial", "probit", "b", "expected"),
    ("binomial", "probit", "b", "observed"),
    ("gamma", "log", "np.exp(y)", "expected"),
    ("gaussian", None, "y", None),
]


@pytest.mark.parametrize(("family", "link", "response", "information"), CASES)
def test_glm_is_glm_with_dummies(panel, family, link, response, information):
    response = "exp(y)" if family == "gamma" else response
    data = panel[panel["firm"] < 60]
    options = {"family": family, "link": link, "weights": "w"}
    fit = absorbed_glm(f"{response} ~ x + z | region + year", data, **options).fit(
        information=information
    )
    dummies = ds.GLM(f"{response} ~ x + z + C(region) + C(year)", data, **options).fit(
        information=information
    )
    np.testing.assert_allclose(fit.params, dummies.params[["x", "z"]], rtol=1e-7)
    # Families without a dispersion: fixest's factor (n - 1)/(n - K).
    factor = 1.0 if fit.model.dispersed else ((fit.nobs - 1) / fit.df_resid) ** 0.5
    np.testing.assert_allclose(fit.bse, factor * dummies.bse[["x", "z"]], rtol=1e-6)
    np.testing.assert_allclose(fit.fittedvalues, dummies.fittedvalues, rtol=1e-6)
    for name in ("llf", "deviance", "null_deviance", "df_resid", "scale"):
        np.testing.assert_allclose(
            getattr(fit, name), getattr(dummies, name), rtol=1e-8
        )
    np.testing.assert_allclose(fit.resid_pearson, dummies.resid_pearson, atol=1e-6)


def test_counts_of_successes(panel):
    data = panel.assign(hits=panel["c"], misses=panel["year"] + 1)
    formula = "cbind(hits, misses) ~ x + z"
    fit = absorbed_glm(f"{formula} | region", data, family="binomial").fit()
    dummies = ds.GLM(f"{formula} + C(region)", data, family="binomial").fit()
    np.testing.assert_allclose(fit.params, dummies.params[["x", "z"]], rtol=1e-8)


def test_frequency_weights_are_repeated_rows(panel):
    data = panel.assign(f=1 + panel.index % 3)
    rows = data.loc[np.repeat(data.index, data["f"])].reset_index(drop=True)
    weighted = absorbed_ols("y ~ x | firm", data, freq_weights="f").fit("HC1")
    repeated = absorbed_ols("y ~ x | firm", rows).fit("HC1")
    np.testing.assert_allclose(weighted.params, repeated.params, rtol=1e-10)
    np.testing.assert_allclose(weighted.bse, repeated.bse, rtol=1e-10)
    assert weighted.nobs == repeated.nobs


def test_offsets(panel):
    shifted = panel.assign(y=panel["y"] - panel["w"])
    fit = absorbed_ols("y ~ x | firm", panel, offset="w").fit()
    plain = absorbed_ols("y ~ x | firm", shifted).fit()
    np.testing.assert_allclose(fit.params, plain.params, rtol=1e-9)
    new = panel[panel["firm"] < 60]
    np.testing.assert_allclose(fit.predict(new), plain.predict(new) + new["w"])
    counts = absorbed_glm("c ~ x | region", panel, family="poisson", exposure="w").fit()
    dummies = ds.GLM("c ~ x + C(region)", panel, family="poisson", exposure="w").fit()
    np.testing.assert_allclose(counts.params["x"], dummies.params["x"], rtol=1e-8)
    np.testing.assert_allclose(counts.predict(panel), dummies.fittedvalues, rtol=1e-8)


# -- fixed effects and prediction -----------------------------------------------------


@pytest.mark.parametrize("kind", ["ols", "poisson"])
def test_prediction_on_the_same_rows_is_the_fit(panel, kind):
    if kind == "ols":
        fit = absorbed_ols("y ~ x + C(region) + z | firm:region + year", panel)
        with pytest.warns(RankWarning, match="region"):
            fit = fit.fit()
    else:
        fit = absorbed_glm("c ~ x | firm + year", panel, family="poisson").fit()
    used = panel.loc[fit.fittedvalues.index]
    np.testing.assert_allclose(fit.predict(used), fit.fittedvalues, rtol=1e-8)
    assert fit.predict().equals(fit.fittedvalues.rename("predicted"))


def test_fixed_effects_are_those_of_dummies(panel):
    data = panel[panel["firm"] < 60]
    fit = absorbed_ols("y ~ x | firm + year", data).fit()
    dummies = ds.OLS("y ~ x + C(firm) + C(year)", data).fit().params
    effects = fit.fixef()
    assert list(effects) == ["firm", "year"]
    # The first year is zero; firms then hold the intercept.
    year = [0.0, *(v for k, v in dummies.items() if k.startswith("C(year)"))]
    np.testing.assert_allclose(effects["year"], year, atol=1e-8)
    np.testing.assert_allclose(effects["firm"].iloc[0], dummies["Intercept"], rtol=1e-7)


def test_new_rows(panel):
    fit = absorbed_ols("y ~ x | firm + year", panel).fit()
    new = panel.head(3).drop(columns="y").assign(x=[0.0, np.nan, 1.0])
    found = fit.predict(new)
    assert list(found.isna()) == [False, True, False] and list(found.index) == [0, 1, 2]
    with pytest.raises(DesignError, match=r"firm has 1 levels .*\(999\)"):
        fit.predict(new.assign(firm=999))
    with pytest.raises(DesignError, match="60"):  # left out as a singleton
        fit.predict(new.assign(firm=60))
    with pytest.raises(ModelError, match="predict"):
        fit.get_prediction(new)


# -- rows left out --------------------------------------------------------------------


def test_singletons_are_left_out_and_counted(panel):
    fit = absorbed_ols("y ~ x + z | firm + year", panel).fit()
    assert fit.nobs == 594 and "6 rows alone" in fit.summary().as_text()
    kept = absorbed_ols("y ~ x + z | firm + year", panel, singletons="keep").fit()
    assert kept.nobs == 600
    np.testing.assert_allclose(kept.params, fit.params, rtol=1e-9)
    # Counting rows that say nothing makes clustered standard errors smaller.
    groups = {"groups": "firm"}
    small = kept.get_robustcov_results("cluster", **groups).bse
    assert (small < fit.get_robustcov_results("cluster", **groups).bse).all()


def test_levels_without_variation_are_left_out(panel):
    data = panel.assign(b=panel["b"].where(panel["region"] != 3, 1.0))
    data["c"] = data["c"].where(data["region"] != 3, 0)
    part = data[data["region"] != 3]
    for response, family in (("b", "binomial"), ("c", "poisson")):
        formula = f"{response} ~ x | region"
        fit = absorbed_glm(formula, data, family=family).fit()
        again = absorbed_glm(formula, part, family=family).fit()
        assert fit.nobs == len(part) and "infinite" in fit.summary().as_text()
        np.testing.assert_allclose(fit.params, again.params, rtol=1e-12)


def test_missing_levels_are_missing_rows(panel):
    data = panel.assign(firm=panel["firm"].where(panel.index >= 10))
    fit = absorbed_ols("y ~ x | firm", data).fit("cluster", {"groups": "firm"})
    assert fit.model.design.n_missing == 10
    np.testing.assert_allclose(
        fit.params, absorbed_ols("y ~ x | firm", panel[10:]).fit().params, rtol=1e-12
    )


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_separation_by_x_within_levels_is_reported(panel, family):
    data = panel.assign(hit=(panel["x"] > 0.3) * 1.0)
    if family == "poisson":
        data["x"] = -data["hit"]
        data["hit"] = data["c"] * (1 - data["hit"])
    with pytest.warns(SeparationWarning, match="infinite"):
        absorbed_glm("hit ~ x | region", data, family=family).fit()


def test_stopping_early_is_reported(panel):
    with pytest.warns(ConvergenceWarning, match="2 iterations"):
        fit = absorbed_glm("c ~ x | region", panel, family="poisson").fit(maxiter=2)
    assert not fit.converged and "NOT CONVERGED" in fit.summary().as_text()


def test_components_are_counted_exactly_or_as_fixest_does(panel):
    half = panel["firm"] >= 30
    data = panel.assign(year=panel["year"] + 100 * half)
    fit = absorbed_ols("y ~ x | firm + year", data).fit()
    bound = fit.get_robustcov_results("nonrobust", fixef_exact=False)
    assert bound.cov_kwds["parameters"] == fit.cov_kwds["parameters"] + 1
    ratio = (fit.df_resid / (fit.df_resid - 1)) ** 0.5
    np.testing.assert_allclose(bound.bse, ratio * fit.bse, rtol=1e-12)


# -- conventions ----------------------------------------------------------------------


def test_small_sample_conventions(panel):
    fit = absorbed_ols("y ~ x | firm + year", panel).fit()

    def clustered(**options):
        found = fit.get_robustcov_results("cluster", groups="firm", **options)
        return found.bse["x"] ** 2, found

    nested, result = clustered()
    full, _ = clustered(fixef_k="full")
    none, _ = clustered(fixef_k="none")
    n, K = fit.nobs, 1 + 60 + 8
    np.testing.assert_allclose(full / none, (n - 1) / (n - K), rtol=1e-12)
    np.testing.assert_allclose(nested / none, (n - 1) / (n - (K - 59)), rtol=1e-12)
    assert result.df_inference == 59 and result.use_t
    assert result.cov_kwds["fixef_k"] == "nested"
    assert "nested in clusters" in result.summary().as_text()
    assert fit.df_resid == n - K
    # One coefficient: its F is t squared, whatever the clusters.
    np.testing.assert_allclose(result.fvalue, result.tvalues["x"] ** 2, rtol=1e-12)


@pytest.mark.parametrize("kind", ["HC2", "HC3", "opg"])
def test_undefined_covariances_are_refused(panel, kind):
    with pytest.raises(ModelError, match="not defined"):
        absorbed_ols("y ~ x | firm", panel).fit(kind)


def test_wrong_convention(panel):
    with pytest.raises(ValueError, match="fixef_k"):
        absorbed_ols("y ~ x | firm", panel).fit("HC1", {"fixef_k": "some"})
    with pytest.raises(ValueError, match="singletons"):
        absorbed_ols("y ~ x | firm", panel, singletons="maybe")


# -- columns and bad input ------------------------------------------------------------


def test_columns_constant_within_levels_are_dropped_and_named(panel):
    data = panel.assign(size=panel["firm"] ** 2.0, shifted=panel["x"] + panel["firm"])
    with pytest.warns(RankWarning) as caught:
        fit = absorbed_ols("y ~ size + x + shifted + z | firm", data).fit()
    texts = sorted(str(w.message) for w in caught)
    assert len(texts) == 2 and "shifted" in texts[0] and "size" in texts[1]
    assert fit.names == ["x", "z"]
    plain = absorbed_ols("y ~ x + z | firm", panel).fit()
    np.testing.assert_allclose(fit.params, plain.params, rtol=1e-9)
    used = data.loc[fit.fittedvalues.index]
    np.testing.assert_allclose(fit.predict(used), fit.fittedvalues, rtol=1e-8)
    with pytest.raises(DesignError, match="determined by the fixed effects"):
        absorbed_ols("y ~ size | firm", data).fit()


@pytest.mark.parametrize(
    ("formula", "change", "error", "text"),
    [
        ("y ~ x | one", {"one": 1}, DesignError, "one level"),
        ("y ~ x | row", {"row": range(600)}, DesignError, "no row is left"),
        ("y ~ 1 | firm", {}, ModelError, "nothing to estimate"),
        ("y ~ x | firm | year", {}, ModelError, "written once"),
        ("y ~ x", {}, ModelError, "firm"),
        ("y ~ x | firms", {}, DesignError, "firm"),
        ("flat ~ x | firm", {"flat": "firm"}, DesignError, "constant within"),
        ("y ~ x | firm", {"firm": np.nan}, DesignError, "no row is complete"),
    ],
)
def test_bad_input(panel, formula, change, error, text):
    change = {k: panel[v] if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(error, match=text):
        absorbed_ols(formula, panel.assign(**change)).fit()


def test_power_between_names_is_an_interaction_only_after_the_bar(panel):
    one = absorbed_ols("y ~ x | region^year", panel).fit()
    two = absorbed_ols("y ~ x | region:year", panel).fit()
    np.testing.assert_array_equal(one.params, two.params)
    with pytest.raises(ds.errors.FormulaError, match="whole number"):
        absorbed_ols("y ~ x^z | firm", panel)
