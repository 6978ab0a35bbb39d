"""Side by side with statsmodels on the doctor visits, COMPAS and Petersen data."""

from __future__ import annotations

import numpy as np
import pytest

import deepstats as ds

smf = pytest.importorskip("statsmodels.formula.api")
sm = pytest.importorskip("statsmodels.api")

DOCVISITS = "drvisits ~ private + medicaid + age + educ + actlim + chronic"
# Factors first: patsy moves them there; here the order of the formula holds.
COMPAS = "Recid ~ C(race) + C(sex) + YearsScreening + juv_fel_count + priors_count"
KINDS = ("nonrobust", "HC0", "HC1", "HC2", "HC3")
COEF, SE = 1e-9, 1e-8


def close(ours, theirs, rtol) -> None:
    assert [n.replace(" ", "") for n in ours.index] == [
        n.replace(" ", "") for n in theirs.index
    ]
    np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=rtol)


def same(ours, theirs) -> None:
    """Estimates, standard errors, tests and intervals of two fits."""
    close(ours.params, theirs.params, COEF)
    close(ours.bse, theirs.bse, SE)
    close(ours.tvalues, theirs.tvalues, SE)
    np.testing.assert_allclose(ours.pvalues, theirs.pvalues, rtol=1e-5, atol=1e-300)
    np.testing.assert_allclose(
        ours.conf_int(), theirs.conf_int(), rtol=1e-7, atol=1e-12
    )
    assert ours.use_t == theirs.use_t


@pytest.fixture(scope="module")
def compas(shared_data):
    """Return a function: only tests that call it are skipped without the file."""

    def read():
        frame = shared_data("reg_compas.csv")
        names = [
            "Recid",
            "juv_fel_count",
            "priors_count",
            "YearsScreening",
            "race",
            "sex",
        ]
        return frame.dropna(subset=names).assign(decile=lambda d: d["person_id"] % 10)

    return read


@pytest.fixture(scope="module")
def pairs(docvisits, petersen, compas):
    """Our model and theirs, for each name."""
    plain = docvisits.assign(region=docvisits["region"].astype(str))

    def both(name):
        if name == "ols docvisits":
            return ds.OLS(DOCVISITS, plain), smf.ols(DOCVISITS, plain), plain
        if name == "ols petersen":
            return ds.OLS("y ~ x", petersen), smf.ols("y ~ x", petersen), petersen
        if name == "ols compas":
            return ds.OLS(COMPAS, compas()), smf.ols(COMPAS, compas()), compas()
        if name == "poisson docvisits":
            ours = ds.GLM(DOCVISITS, plain, family="poisson")
            return ours, smf.poisson(DOCVISITS, plain), plain
        if name == "poisson compas":
            text = "priors_count ~ C(race) + C(sex) + YearsScreening"
            ours = ds.GLM(text, compas(), family="poisson")
            return ours, smf.poisson(text, compas()), compas()
        if name == "logit docvisits":
            text = (
                "I(drvisits > 0) ~ private + medicaid + age + educ + actlim + chronic"
            )
            frame = plain.assign(any=(plain["drvisits"] > 0).astype(int))
            text = text.replace("I(drvisits > 0)", "any")
            return ds.GLM(text, frame, family="binomial"), smf.logit(text, frame), frame
        ours = ds.GLM(COMPAS, compas(), family="binomial")
        return ours, smf.logit(COMPAS, compas()), compas()

    return both


LEAST_SQUARES = ("ols docvisits", "ols petersen", "ols compas")
LIKELIHOODS = ("poisson docvisits", "poisson compas", "logit docvisits", "logit compas")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_ols(name, kind, pairs):
    ours, theirs, _ = pairs(name)
    same(ours.fit(kind), theirs.fit(cov_type=kind))


def _fit(model, **options):
    return model.fit(disp=0, method="newton", tol=1e-12, maxiter=100, **options)


# statsmodels' results of likelihood models have no cov_HC1 ... cov_HC3: the branch in
# base/covtype.py then takes the uncorrected sandwich for every one of them. HC0 is
# compared here; HC1 to HC3 below with the definition, and with R.
@pytest.mark.parametrize("kind", ("nonrobust", "HC0"))
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood(name, kind, pairs):
    ours, theirs, _ = pairs(name)
    found, wanted = ours.fit(kind), _fit(theirs, cov_type=kind)
    same(found, wanted)
    assert found.llf == pytest.approx(wanted.llf, rel=1e-11)
    assert found.llnull == pytest.approx(wanted.llnull, rel=1e-9)
    assert found.aic == pytest.approx(wanted.aic, rel=1e-11)
    assert found.bic == pytest.approx(wanted.bic, rel=1e-11)
    assert found.prsquared == pytest.approx(wanted.prsquared, rel=1e-7)
    assert found.llr_pvalue == pytest.approx(wanted.llr_pvalue, rel=1e-5, abs=1e-300)


def test_statsmodels_gives_hc0_for_hc3(pairs):
    _, theirs, _ = pairs("poisson docvisits")
    a, b = (_fit(theirs, cov_type=kind).bse for kind in ("HC0", "HC3"))
    np.testing.assert_array_equal(a, b)


def by_definition(X, y, mu, variance, kind):
    """Sandwich of a GLM with its canonical link, written out."""
    n, k = X.shape
    bread = np.linalg.inv(X.T @ (variance[:, None] * X))
    h = variance * np.einsum("ij,jk,ik->i", X, bread, X)
    scale = {"HC0": 1.0, "HC1": n / (n - k), "HC2": 1 / (1 - h), "HC3": (1 - h) ** -2}
    u = (y - mu) ** 2 * scale[kind]
    return np.sqrt(np.diag(bread @ (X.T @ (u[:, None] * X)) @ bread))


@pytest.mark.parametrize("kind", ("HC0", "HC1", "HC2", "HC3"))
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_sandwiches_by_definition(name, kind, pairs):
    ours, theirs, _ = pairs(name)
    result = ours.fit(kind)
    X, y = theirs.exog, theirs.endog
    mu = result.fittedvalues.to_numpy()
    variance = mu if name.startswith("poisson") else mu * (1 - mu)
    wanted = by_definition(X, y, mu, variance, kind)
    np.testing.assert_allclose(result.bse, wanted, rtol=1e-9)


# R 4.2.2, sandwich 3.0-2:
#   d <- read.csv("reg_docvisits_nmes1988.csv")
#   f <- drvisits ~ private + medicaid + age + educ + actlim + chronic
#   m <- glm(f, poisson, d, control = glm.control(epsilon = 1e-15, maxit = 100))
#   for (t in c("HC0", "HC1", "HC2", "HC3"))
#     print(sqrt(diag(vcovHC(m, type = t))), digits = 15)
#   m <- glm(update(f, drvisits > 0 ~ .), binomial, d, control = ...)   # likewise
R_SANDWICH = {
    "poisson docvisits": {
        "HC0": [
            0.219403083838,
            0.0497975064064,
            0.0625807862882,
            0.00282626761591,
            0.00513882295253,
            0.0501199299158,
            0.0113780464609,
        ],
        "HC1": [
            0.219577579302,
            0.0498371113146,
            0.0626305579832,
            0.00282851540054,
            0.00514290995661,
            0.0501597912537,
            0.0113870956387,
        ],
        "HC2": [
            0.219706230174,
            0.049887632756,
            0.0627396878857,
            0.00283028849818,
            0.00514517415852,
            0.0501914200484,
            0.0114005502488,
        ],
        "HC3": [
            0.220010470062,
            0.0499782129847,
            0.0628994506734,
            0.00283432410797,
            0.00515154253287,
            0.0502631033303,
            0.0114231891797,
        ],
    },
    "logit docvisits": {
        "HC0": [
            0.62266067781,
            0.111849621436,
            0.178472724946,
            0.00792523329666,
            0.0127821544863,
            0.124222415365,
            0.0514373671647,
        ],
        "HC1": [
            0.623155891743,
            0.111938577577,
            0.178614667714,
            0.00793153638612,
            0.0127923203779,
            0.124321211826,
            0.0514782762855,
        ],
        "HC2": [
            0.623544160248,
            0.112007727614,
            0.178837250504,
            0.00793686096351,
            0.012801312932,
            0.124421765227,
            0.0514815722546,
        ],
        "HC3": [
            0.624430118854,
            0.112166183465,
            0.179202805641,
            0.00794852334991,
            0.0128205256245,
            0.124621673872,
            0.05152588421,
        ],
    },
}


@pytest.mark.parametrize("kind", ("HC0", "HC1", "HC2", "HC3"))
@pytest.mark.parametrize("name", ("poisson docvisits", "logit docvisits"))
def test_likelihood_sandwiches_of_r(name, kind, pairs):
    ours, _, _ = pairs(name)
    wanted = R_SANDWICH[name][kind]
    np.testing.assert_allclose(ours.fit(kind).bse, wanted, rtol=1e-7)


CLUSTERED = {
    "ols docvisits": "region",
    "ols petersen": "firm",
    "ols compas": "decile",
    "poisson docvisits": "region",
    "poisson compas": "decile",
    "logit docvisits": "region",
    "logit compas": "decile",
}


@pytest.mark.parametrize("correct", (True, False))
@pytest.mark.parametrize("name", CLUSTERED)
def test_clusters(name, correct, pairs):
    ours, theirs, data = pairs(name)
    column = CLUSTERED[name]
    kwds = {"groups": column, "use_correction": correct}
    found = ours.fit("cluster", kwds)
    kwds = {
        "groups": data[column].astype("category").cat.codes,
        "use_correction": correct,
    }
    fit = theirs.fit if name.startswith("ols") else lambda **o: _fit(theirs, **o)
    same(found, fit(cov_type="cluster", cov_kwds=kwds))


def test_clusters_with_student_t(petersen):
    kwds = {"groups": "firm"}
    ours = ds.OLS("y ~ x", petersen).fit("cluster", kwds, use_t=True)
    kwds = {"groups": petersen["firm"]}
    theirs = smf.ols("y ~ x", petersen).fit(
        cov_type="cluster", cov_kwds=kwds, use_t=True
    )
    same(ours, theirs)


@pytest.mark.parametrize("how", ("names", "frame", "array"))
def test_clusters_two_ways(how, petersen):
    frame = petersen[["firm", "year"]]
    given = {"names": ["firm", "year"], "frame": frame, "array": frame.to_numpy()}[how]
    ours = ds.OLS("y ~ x", petersen).fit("cluster", {"groups": given})
    kwds = {"groups": frame.to_numpy()}
    same(ours, smf.ols("y ~ x", petersen).fit(cov_type="cluster", cov_kwds=kwds))


@pytest.mark.parametrize("name", ("poisson docvisits", "logit docvisits"))
def test_clusters_two_ways_of_a_likelihood(name, pairs):
    ours, theirs, data = pairs(name)
    frame = data[["region", "educ"]].assign(region=data["region"].factorize()[0])
    found = ours.fit("cluster", {"groups": frame})
    same(found, _fit(theirs, cov_type="cluster", cov_kwds={"groups": frame.to_numpy()}))


@pytest.mark.parametrize("correct", (True, False))
@pytest.mark.parametrize("name", ("ols docvisits", "poisson docvisits"))
def test_hac(name, correct, pairs):
    ours, theirs, _ = pairs(name)
    kwds = {"maxlags": 5, "use_correction": correct}
    fit = theirs.fit if name.startswith("ols") else lambda **o: _fit(theirs, **o)
    same(ours.fit("HAC", kwds), fit(cov_type="HAC", cov_kwds=kwds))


def test_least_squares_figures(pairs):
    ours, theirs, _ = pairs("ols compas")
    found, wanted = ours.fit(), theirs.fit()
    for name in (
        "rsquared", "rsquared_adj", "fvalue", "llf", "aic", "bic", "ssr", "ess",
        "centered_tss", "uncentered_tss", "mse_resid", "mse_model", "mse_total",
        "scale", "nobs", "df_model", "df_resid",
    ):  # fmt: skip
        assert getattr(found, name) == pytest.approx(
            getattr(wanted, name), rel=1e-10
        ), name
    for name in ("HC0_se", "HC1_se", "HC2_se", "HC3_se"):
        close(getattr(found, name), getattr(wanted, name), SE)
    np.testing.assert_allclose(found.resid, wanted.resid, atol=1e-10)
    np.testing.assert_allclose(found.resid_pearson, wanted.resid_pearson, atol=1e-10)


@pytest.mark.parametrize("kind", ("HC1", "cluster"))
def test_f_of_a_robust_fit(kind, petersen):
    kwds = {"groups": "firm"} if kind == "cluster" else None
    ours = ds.OLS("y ~ x", petersen).fit(kind, kwds)
    kwds = {"groups": petersen["firm"]} if kind == "cluster" else None
    theirs = smf.ols("y ~ x", petersen).fit(cov_type=kind, cov_kwds=kwds)
    assert ours.fvalue == pytest.approx(theirs.fvalue, rel=1e-8)
    assert ours.f_pvalue == pytest.approx(theirs.f_pvalue, rel=1e-5, abs=1e-300)


def test_weighted_least_squares(small):
    ours = ds.OLS("y ~ a + x", small, weights="w").fit()
    theirs = smf.wls("y ~ a + x", small, weights=small["w"]).fit()
    same(ours, theirs)
    for name in ("rsquared", "llf", "ssr", "fvalue", "aic", "centered_tss"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-10), (
            name
        )
    for kind in KINDS[1:]:
        close(
            ours.get_robustcov_results(kind).bse,
            smf.wls("y ~ a + x", small, weights=small["w"]).fit(cov_type=kind).bse,
            SE,
        )


FAMILIES = {
    "gaussian": ("y", sm.families.Gaussian(), {}),
    "poisson": ("count", sm.families.Poisson(), {}),
    "binomial": ("hit", sm.families.Binomial(), {}),
    "probit": ("hit", sm.families.Binomial(sm.families.links.Probit()),
               dict(family="binomial", link="probit")),
    "cloglog": ("hit", sm.families.Binomial(sm.families.links.CLogLog()),
                dict(family="binomial", link="cloglog")),
    "gamma": ("positive", sm.families.Gamma(sm.families.links.Log()),
              dict(family="gamma", link="log")),
    "inversegaussian": ("positive",
                        sm.families.InverseGaussian(sm.families.links.Log()),
                        dict(family="inversegaussian", link="log")),
    "tweedie": ("positive", sm.families.Tweedie(var_power=1.5),
                dict(family="tweedie")),
}  # fmt: skip


@pytest.mark.parametrize("weighting", ("none", "weights", "freq_weights"))
@pytest.mark.parametrize("name", FAMILIES)
def test_glm(name, weighting, small):
    y, family, options = FAMILIES[name]
    options = dict(options) or {"family": name}
    theirs_options = {}
    if weighting != "none":
        column = "w" if weighting == "weights" else "f"
        options[weighting] = column
        kind = "var_weights" if weighting == "weights" else weighting
        theirs_options[kind] = small[column]
    text = f"{y} ~ a + x"
    ours = ds.GLM(text, small, **options).fit()
    theirs = smf.glm(text, small, family=family, **theirs_options).fit(tol=1e-14)
    close(ours.params, theirs.params, 1e-7)
    close(ours.bse, theirs.bse, 1e-6)
    for figure in ("deviance", "pearson_chi2", "null_deviance", "scale", "df_resid"):
        assert getattr(ours, figure) == pytest.approx(getattr(theirs, figure), rel=1e-7)
    if name not in ("gaussian", "tweedie"):  # gaussian: at the ML dispersion, as R
        assert ours.llf == pytest.approx(theirs.llf, rel=1e-7)
    for kind in ("response", "pearson", "deviance", "working"):
        wanted = getattr(theirs, f"resid_{kind}")
        found = getattr(ours, f"resid_{kind}")
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=kind)


def test_offset_and_exposure(small):
    family = sm.families.Poisson()
    theirs = smf.glm("count ~ x", small, family=family, exposure=small["e"]).fit(
        tol=1e-14
    )
    for options in (
        {"exposure": "e"},
        {"exposure": small["e"]},
        {"offset": np.log(small["e"])},
        {"offset": "log(e)"},
    ):
        same(ds.GLM("count ~ x", small, family="poisson", **options).fit(), theirs)
    same(ds.GLM("count ~ x + offset(log(e))", small, family="poisson").fit(), theirs)


@pytest.mark.parametrize("which", ("none", "new"))
def test_prediction(which, small):
    new = None if which == "none" else small.iloc[5:20]
    ours = ds.OLS("y ~ a + x", small).fit().get_prediction(new).summary_frame()
    theirs = smf.ols("y ~ a + x", small).fit().get_prediction(new).summary_frame()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=name)
    assert ours.index.equals((small if new is None else new).index)
    family = sm.families.Poisson()
    ours = ds.GLM("count ~ a + x", small, family="poisson").fit().get_prediction(new)
    theirs = smf.glm("count ~ a + x", small, family=family).fit(tol=1e-14)
    theirs = theirs.get_prediction(new).summary_frame()
    for name, column in ours.summary_frame().items():
        np.testing.assert_allclose(column, theirs[name], rtol=1e-7, err_msg=name)


def test_contrasts_and_joint_tests(small):
    ours = ds.OLS("y ~ a + x + z", small).fit()
    theirs = smf.ols("y ~ a + x + z", small).fit()
    for text in ("x = z", "a[T.v] = a[T.w], x = 0.5", "2*x - z/3 = 0.25"):
        found, wanted = ours.f_test(text), theirs.f_test(text)
        assert found.statistic == pytest.approx(float(wanted.fvalue), rel=1e-9)
        assert found.pvalue == pytest.approx(float(wanted.pvalue), rel=1e-8)
        found, wanted = ours.t_test(text), theirs.t_test(text)
        np.testing.assert_allclose(found.effect, wanted.effect, rtol=1e-9)
        np.testing.assert_allclose(found.sd, wanted.sd.ravel(), rtol=1e-9)
        np.testing.assert_allclose(found.tvalue, wanted.tvalue.ravel(), rtol=1e-8)
        np.testing.assert_allclose(found.pvalue, wanted.pvalue.ravel(), rtol=1e-8)
        np.testing.assert_allclose(found.conf_int(), wanted.conf_int(), rtol=1e-8)
    found = ours.wald_test_terms()
    wanted = theirs.wald_test_terms(scalar=True).table
    for term in found.index:
        assert found.loc[term, "F"] == pytest.approx(wanted.loc[term, "statistic"])
        assert found.loc[term, "pvalue"] == pytest.approx(wanted.loc[term, "pvalue"])


# -- negative binomial -----------------------------------------------------------------


@pytest.fixture(scope="module")
def negative_binomials(docvisits, compas):
    def read(name):
        if name == "docvisits":
            plain = docvisits.assign(region=docvisits["region"].astype(str))
            return DOCVISITS, plain, "region"
        text = "priors_count ~ C(race) + C(sex) + scale(YearsScreening)"
        return text, compas(), "decile"

    return read


@pytest.fixture(scope="module")
def nb2(negative_binomials):
    cache = {}

    def fit(name):
        if name not in cache:
            text, data, _ = negative_binomials(name)
            ours = ds.negativebinomial(text, data, loglike="nb2")
            theirs = smf.negativebinomial(
                text.replace(
                    "scale(YearsScreening", "standardize(YearsScreening, ddof=1"
                ),
                data,
                loglike_method="nb2",
            )
            found = ours.fit()
            # statsmodels' own start does not reach the optimum on these data.
            start = found.params.to_numpy() * 1.001
            cache[name] = found, theirs, start
        return cache[name]

    return fit


@pytest.mark.parametrize("kind", ("nonrobust", "HC0", "cluster"))
@pytest.mark.parametrize("name", ("docvisits", "compas"))
def test_negative_binomial(name, kind, nb2, negative_binomials):
    found, theirs, start = nb2(name)
    _, data, column = negative_binomials(name)
    ours = found.get_robustcov_results(
        kind, **({"groups": column} if kind == "cluster" else {})
    )
    kwds = None
    if kind == "cluster":
        kwds = {"groups": data[column].astype("category").cat.codes.to_numpy()}
    wanted = theirs.fit(
        start_params=start,
        method="newton",
        disp=0,
        tol=1e-12,
        cov_type=kind,
        cov_kwds=kwds,
    )
    np.testing.assert_allclose(ours.params, wanted.params, rtol=1e-7)
    np.testing.assert_allclose(ours.bse, wanted.bse, rtol=1e-6)
    assert ours.llf == pytest.approx(wanted.llf, rel=1e-11)
    assert ours.aic == pytest.approx(wanted.aic, rel=1e-11)


@pytest.mark.parametrize("groups", (["region", "educ"],))
def test_negative_binomial_two_ways(groups, nb2, negative_binomials):
    found, theirs, start = nb2("docvisits")
    _, data, _ = negative_binomials("docvisits")
    ours = found.get_robustcov_results("cluster", groups=groups)
    codes = np.column_stack([data[g].factorize()[0] for g in groups])
    wanted = theirs.fit(
        start_params=start, method="newton", disp=0, tol=1e-12, cov_type="cluster",
        cov_kwds={"groups": codes},
    )  # fmt: skip
    np.testing.assert_allclose(ours.bse, wanted.bse, rtol=1e-6)


def test_negative_binomial_hc1_is_hc0_scaled(nb2):
    found, _, _ = nb2("docvisits")
    n, k = 4406, 8  # the dispersion is counted too
    a, b = (found.get_robustcov_results(kind).bse for kind in ("HC0", "HC1"))
    np.testing.assert_allclose(b, a * np.sqrt(n / (n - k)), rtol=1e-12)
