"""Least squares and generalised linear models against stored numbers of R."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import deepstats as ds

# Relative tolerances of the issue. Where a record is the work of one program alone, and
# its `agree` field shows that this program stopped short of the optimum, the tolerance
# of its coefficients is that field; our own optimum is checked by its gradient instead.
COEF, SE, LLF = 1e-8, 1e-6, 1e-9
LOOSER = {
    # key: (coefficients, standard errors, whose iterations stopped early)
    "gamma_docvisits_log": (1e-7, SE, "R and statsmodels: 6.1e-8 (agree.sm)"),
    "invgauss_docvisits_log": (1e-6, SE, "R and statsmodels: 9.1e-7 (agree.sm)"),
    "tweedie15_docvisits_log": (3e-8, SE, "R and statsmodels: 2.7e-8 (agree.sm)"),
    # No second program has the cauchit, so no `agree`: R stops 1.5e-9 = 5e-8 standard
    # errors short in `children`, as the score at its estimates tells (tested below).
    "binom_affairs_cauchit": (2e-6, SE, "R glm alone: a coefficient of -8e-4"),
    "binom_spector_probit": (5e-7, SE, "R alone; its probits are 5.9e-8 off"),
}  # fmt: skip

DOCVISITS = "drvisits ~ private + medicaid + age + educ + actlim + chronic"
AFFAIRS = "affair ~ rate_marriage + age + yrs_married + children + religious + educ"


def ols(formula, data, **options):
    return ds.OLS(formula, data, **options)


def glm(formula, data, family, **options):
    return ds.GLM(formula, data, family=family, **options)


def aligned(stored: dict, found: pd.Series) -> np.ndarray:
    """Stored values in the order of the fit, whatever the spelling of their names."""
    plain = {_plain(k): v for k, v in stored.items()}
    assert len(plain) == len(found)
    return np.array([plain[_plain(name)] for name in found.index], dtype=float)


def _plain(name: str) -> str:
    name = name.replace(" ", "").replace("(Intercept)", "Intercept")
    return {"100*dlog(realdpi)": "gy"}.get(name, name)


def check(found: pd.Series, stored: dict, rtol: float) -> None:
    np.testing.assert_allclose(found.to_numpy(), aligned(stored, found), rtol=rtol)


def robust(result, kind, **options):
    return result.get_robustcov_results(kind, **options).bse


# -- least squares ------------------------------------------------------------------


@pytest.fixture(scope="module")
def doctor_ols(docvisits):
    return ols(DOCVISITS, docvisits).fit()


@pytest.fixture(scope="module")
def petersen_ols(petersen):
    return ols("y ~ x", petersen).fit()


@pytest.fixture(scope="module")
def least_squares_fits(doctor_ols, cps1988, petersen_ols):
    wages = ols(
        "log(wage) ~ education + experience + I(experience**2) + ethnicity + smsa + "
        "region + parttime",
        cps1988,
    ).fit()
    return {
        "ols_docvisits": doctor_ols,
        "ols_cps": wages,
        "ols_petersen": petersen_ols,
    }


OLS_KEYS = ("ols_docvisits", "ols_cps", "ols_petersen")


@pytest.mark.parametrize("key", OLS_KEYS)
def test_ols_estimates(key, least_squares_fits, reference):
    result, stored = least_squares_fits[key], reference[key]
    check(result.params, stored["coef"], COEF)
    check(result.bse, stored["se"], SE)
    check(result.tvalues, stored["t"], SE)
    np.testing.assert_allclose(
        result.pvalues, aligned(stored["p"], result.pvalues), rtol=1e-6, atol=1e-300
    )
    assert result.nobs == stored["n"]
    assert len(result.params) == stored["k"]


@pytest.mark.parametrize("key", OLS_KEYS)
def test_ols_figures(key, least_squares_fits, reference):
    result, stored = least_squares_fits[key], reference[key]
    assert result.ssr == pytest.approx(stored["ssr"], rel=LLF)
    assert result.llf == pytest.approx(stored["llf"], rel=LLF)
    assert result.aic == pytest.approx(stored["aic_sm"], rel=LLF)
    assert result.bic == pytest.approx(stored["bic_sm"], rel=LLF)
    assert result.rsquared == pytest.approx(stored["r2"], rel=LLF)
    assert result.mse_resid**0.5 == pytest.approx(stored["s"], rel=LLF)
    assert result.fvalue == pytest.approx(stored["F"], rel=COEF)
    assert result.f_pvalue == pytest.approx(stored["F_p"], rel=SE, abs=1e-300)


@pytest.mark.parametrize("key", OLS_KEYS)
def test_ols_intervals(key, least_squares_fits, reference):
    result, stored = least_squares_fits[key], reference[key]["ci95"]
    ends = result.conf_int()
    for column in (0, 1):
        one = {name: pair[column] for name, pair in stored.items()}
        np.testing.assert_allclose(ends[column], aligned(one, ends[column]), rtol=1e-6)


@pytest.mark.parametrize("kind", ("HC0", "HC1", "HC2", "HC3"))
@pytest.mark.parametrize("key", OLS_KEYS)
def test_ols_heteroscedastic(key, kind, least_squares_fits, reference):
    check(robust(least_squares_fits[key], kind), reference[key][kind], SE)


@pytest.mark.parametrize("key", ("ols_docvisits", "ols_cps"))
def test_ols_clustered_by_region(key, least_squares_fits, reference):
    found = robust(least_squares_fits[key], "cluster", groups="region")
    check(found, reference[key]["cl_region"], SE)


CLUSTERS = {
    "cl_firm": dict(groups="firm"),
    "cl_year": dict(groups="year"),
    "cl_firm_year": dict(groups=["firm", "year"]),
    "cl_firm_year_Gmin_adj": dict(groups=["firm", "year"], ssc="min"),
    "R.cl_firm": dict(groups="firm"),
    "R.cl_year": dict(groups="year"),
    "R.cl_firm_HC0_noadj": dict(groups="firm", use_correction=False),
    "R.cl_2way": dict(groups=["firm", "year"]),
    "fixest.firm.se": dict(groups="firm"),
    "fixest.tw.se": dict(groups=["firm", "year"], ssc="min"),
}


@pytest.mark.parametrize("path", CLUSTERS)
def test_petersen_clusters(path, petersen_ols, reference):
    stored = reference["ols_petersen"]
    for step in path.split("."):
        stored = stored[step]
    check(robust(petersen_ols, "cluster", **CLUSTERS[path]), stored, SE)


def test_petersen_fixest_heteroscedastic(petersen_ols, reference):
    stored = reference["ols_petersen"]["fixest"]["het"]["se"]
    check(robust(petersen_ols, "HC1"), stored, SE)


@pytest.fixture(scope="module")
def growth(statsmodels_data):
    macro = statsmodels_data("macrodata")
    frame = pd.DataFrame(
        {
            "gc": 100 * np.log(macro["realcons"]).diff(),
            "gy": 100 * np.log(macro["realdpi"]).diff(),
            "realint": macro["realint"],
        }
    )
    return frame.iloc[1:]


HAC = {
    "nw4": dict(maxlags=4),
    "nw4_adj": dict(maxlags=4, use_correction=True),
    "R.nw4": dict(maxlags=4),
    "R.nw4_adj": dict(maxlags=4, use_correction=True),
    "R.parzen": dict(maxlags=4, kernel="parzen"),
}


@pytest.mark.parametrize("path", HAC)
def test_hac(path, growth, reference):
    result = ols("gc ~ gy + realint", growth).fit("HAC", HAC[path])
    stored = reference["ols_hac"]
    check(result.params, stored["coef"], COEF)
    for step in path.split("."):
        stored = stored[step]
    check(result.bse, stored, SE)


def test_ols_prediction(doctor_ols, docvisits, reference):
    stored = reference["ols_docvisits_pred"]
    rows = docvisits.iloc[np.array(stored["rows"]) - 1]
    frame = doctor_ols.get_prediction(rows).summary_frame()
    names = {
        "mean": "fit", "mean_ci_lower": "ci_l", "mean_ci_upper": "ci_u",
        "obs_ci_lower": "pi_l", "obs_ci_upper": "pi_u",
    }  # fmt: skip
    for ours, theirs in names.items():
        np.testing.assert_allclose(frame[ours], stored[theirs], rtol=1e-8)


# -- Poisson -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def doctor_poisson(docvisits):
    return glm(DOCVISITS, docvisits, "poisson").fit()


def test_poisson_estimates(doctor_poisson, reference):
    stored = reference["poisson_docvisits"]
    check(doctor_poisson.params, stored["coef"], COEF)
    check(doctor_poisson.bse, stored["se_oim"], SE)
    assert doctor_poisson.llf == pytest.approx(stored["llf"], rel=LLF)


POISSON = {
    "se_oim": ("oim", {}),
    "se_opg": ("opg", {}),
    "se_hc0": ("HC0", {}),
    "se_hc1": ("HC1", {}),
    "se_cluster": ("cluster", dict(groups="region")),
    "se_cluster_noadj": ("cluster", dict(groups="region", use_correction=False)),
}


@pytest.mark.parametrize("key", POISSON)
def test_poisson_standard_errors(key, doctor_poisson, reference):
    kind, options = POISSON[key]
    stored = reference["poisson_docvisits"]
    check(robust(doctor_poisson, kind, **options), stored[key], SE)


def test_poisson_prediction(doctor_poisson, docvisits, reference):
    stored = reference["poisson_docvisits_pred"]
    rows = docvisits.iloc[np.array(reference["ols_docvisits_pred"]["rows"]) - 1]
    found = doctor_poisson.get_prediction(rows)
    frame = found.summary_frame()
    np.testing.assert_allclose(found.predicted["linear"], stored["link"], rtol=COEF)
    np.testing.assert_allclose(found.predicted["linear_se"], stored["link_se"], rtol=SE)
    np.testing.assert_allclose(frame["mean"], stored["mean"], rtol=COEF)
    np.testing.assert_allclose(frame["mean_se"], stored["mean_se_delta"], rtol=SE)
    ends = frame[["mean_ci_lower", "mean_ci_upper"]]
    np.testing.assert_allclose(ends, stored["sm_ci_link_transformed"], rtol=SE)


@pytest.fixture(scope="module")
def crime(shared_data):
    streets = shared_data("reg_dc_streetunits.csv")
    return streets[streets["AreaMinWat"] > 0]


def test_poisson_with_offset(crime, reference):
    stored = reference["poisson_dc_offset"]
    text = "TotalCrime ~ TotalLic + CFS1 + CFS2 + offset(log(AreaMinWat))"
    result = glm(text, crime, "poisson").fit()
    check(result.params, stored["coef"], COEF)
    check(result.bse, stored["se"], SE)
    check(robust(result, "HC0"), stored["HC0"], SE)
    check(robust(result, "opg"), stored["opg"], SE)
    assert result.deviance == pytest.approx(stored["deviance"], rel=LLF)
    assert result.llf == pytest.approx(stored["llf"], rel=LLF)
    found = robust(result, "cluster", groups="FishID")
    check(found, stored["cl_fish"], SE)


# -- families with a dispersion --------------------------------------------------------

DISPERSED = {
    "gamma_docvisits_log": dict(family="gamma", link="log"),
    "invgauss_docvisits_log": dict(family="inversegaussian", link="log"),
    "tweedie15_docvisits_log": dict(family="tweedie"),
    "quasipoisson_docvisits": dict(family="quasipoisson"),
    "gamma_scotland_inverse": dict(family="gamma", link="inverse"),
    "gamma_scotland_log": dict(family="gamma", link="log"),
}


@pytest.fixture(scope="module")
def dispersed(docvisits, statsmodels_data):
    scotland = statsmodels_data("scotland")
    # Gamma and inverse Gaussian need positive responses: visits plus one.
    some = docvisits.assign(drvisits=docvisits["drvisits"] + 1)
    cache = {}

    def fit(key):
        if key not in cache:
            if "scotland" in key:
                text = "YES ~ " + " + ".join(c for c in scotland if c != "YES")
                data = scotland
            else:
                text = DOCVISITS
                data = some if key.startswith(("gamma", "invgauss")) else docvisits
            cache[key] = glm(text, data, **DISPERSED[key]).fit()
        return cache[key]

    return fit


@pytest.mark.parametrize("key", DISPERSED)
def test_dispersed_family(key, dispersed, reference):
    result, stored = dispersed(key), reference[key]
    coef, se, _ = LOOSER.get(key, (COEF, SE, ""))
    check(result.params, stored["coef"], coef)
    check(result.bse, stored["se"], se)
    assert result.scale == pytest.approx(stored["dispersion"], rel=se)
    if "deviance" in stored:
        assert result.deviance == pytest.approx(stored["deviance"], rel=LLF)
    if "HC0" in stored:
        # R's sandwich takes the expected information for its bread.
        check(robust(result, "HC0"), stored["HC0"], se)


# -- binomial --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def affairs(statsmodels_data):
    fair = statsmodels_data("fair")
    return fair.assign(affair=(fair["affairs"] > 0).astype(float))


@pytest.mark.parametrize("link", ("logit", "probit", "cloglog"))
def test_affairs(link, affairs, reference):
    stored = reference[f"binom_affairs_{link}"]
    model = glm(AFFAIRS, affairs, "binomial", link=link)
    observed = model.fit(information="observed")
    check(observed.params, stored["coef"], COEF)
    check(observed.bse, stored["se_oim"], SE)
    check(robust(observed, "opg"), stored["se_opg"], SE)
    check(robust(observed, "HC0"), stored["se_hc0"], SE)
    check(robust(observed, "HC1"), stored["se_hc1"], SE)
    check(robust(observed, "eim"), stored["se_eim"], SE)
    assert observed.llf == pytest.approx(stored["llf"], rel=LLF)
    expected = model.fit(information="expected")
    check(expected.params, stored["coef"], COEF)
    check(expected.bse, stored["se_eim"], SE)
    check(robust(expected, "oim"), stored["se_oim"], SE)


@pytest.mark.parametrize("link", ("logit", "probit"))
def test_affairs_null_and_tests(link, affairs, reference):
    stored = reference[f"binom_affairs_{link}"]
    result = glm(AFFAIRS, affairs, "binomial", link=link).fit(information="observed")
    assert result.llnull == pytest.approx(stored["llnull"], rel=LLF)
    assert result.prsquared == pytest.approx(stored["mcfadden_r2"], rel=COEF)
    tests = stored["tests_drop_rate_marriage_age"]
    wald = result.wald_test("rate_marriage = 0, age = 0")
    assert wald.statistic == pytest.approx(tests["wald_chi2"], rel=SE)
    assert wald.df_num == tests["df"]
    text = "affair ~ yrs_married + children + religious + educ"
    smaller = glm(text, affairs, "binomial", link=link).fit()
    ratio = result.compare_lr_test(smaller)
    assert ratio.statistic == pytest.approx(tests["lr_chi2"], rel=SE)
    assert ratio.df_num == tests["df"]


def check_r_binomial(key, result, reference):
    stored = reference[key]
    coef, se, _ = LOOSER.get(key, (COEF, SE, ""))
    check(result.params, stored["coef"], coef)
    check(result.bse, stored["se"], se)
    check(robust(result, "HC0"), stored["HC0"], se)
    check(robust(result, "opg"), stored["opg"], se)
    assert result.deviance == pytest.approx(stored["deviance"], rel=LLF)
    assert result.llf == pytest.approx(stored["llf"], rel=LLF)


def test_affairs_cauchit(affairs, reference):
    result = glm(AFFAIRS, affairs, "binomial", link="cauchit").fit()
    check_r_binomial("binom_affairs_cauchit", result, reference)
    theirs = aligned(reference["binom_affairs_cauchit"]["coef"], result.params)
    distances = []
    for x in (result.fit_info.x, torch.tensor(theirs)):
        at = result.likelihood.derivatives(x, "observed")
        step = torch.linalg.solve(at.information, at.gradient)
        distances.append(float(at.gradient @ step) ** 0.5)
    assert distances[0] < 1e-10 < distances[1] < 1e-6


@pytest.mark.parametrize("link", ("logit", "probit"))
def test_spector(link, statsmodels_data, reference):
    data = statsmodels_data("spector")
    result = glm("GRADE ~ GPA + TUCE + PSI", data, "binomial", link=link).fit()
    check_r_binomial(f"binom_spector_{link}", result, reference)


def test_star98(statsmodels_data, reference):
    text = (
        "cbind(NABOVE, NBELOW) ~ LOWINC + PERASIAN + PERBLACK + PERHISP + "
        "PERMINTE*AVYRSEXP*AVSALK + PERSPENK*PTRATIO*PCTAF + PCTCHRT + PCTYRRND"
    )
    result = glm(text, statsmodels_data("star98"), "binomial").fit()
    check_r_binomial("binom_star98", result, reference)


def test_information_is_named_on_the_page(affairs):
    model = glm(AFFAIRS, affairs, "binomial", link="probit")
    for which in ("observed", "expected"):
        assert f"{which} information" in str(model.fit(information=which).summary())
