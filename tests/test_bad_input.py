"""What cannot be fitted is refused, with the reason; what is doubtful is warned of."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import (
    BoundaryWarning,
    ConvergenceWarning,
    DesignError,
    FormulaError,
    ModelError,
    RankWarning,
    SeparationWarning,
)
from deepstats.families import get_family

NEGATIVE_BINOMIAL = get_family("negativebinomial", alpha=0.5)


def ols(formula, data, **options):
    return ds.OLS(formula, data, **options).fit()


def glm(formula, data, family, *, maxiter=100, **options):
    return ds.GLM(formula, data, family=family, **options).fit(maxiter=maxiter)


# -- rows ------------------------------------------------------------------------------


def test_missing_rows_are_dropped_together(small):
    holes = small.copy()
    holes.loc[3, "y"] = np.nan
    holes.loc[[3, 7], "x"] = np.nan
    holes.loc[11, "a"] = None
    holes.loc[13, "w"] = np.nan
    found = ols("y ~ x + a", holes, weights="w")
    wanted = ols("y ~ x + a", small.drop([3, 7, 11, 13]), weights="w")
    assert found.nobs == len(small) - 4
    pd.testing.assert_series_equal(found.params, wanted.params)
    assert "4 rows with missing values" in str(found.summary())
    assert found.resid.index.equals(small.index.drop([3, 7, 11, 13]))


def test_missing_in_a_column_not_used(small):
    assert ols("y ~ x", small.assign(unused=np.nan)).nobs == len(small)


def test_missing_can_be_refused(small):
    holes = small.copy()
    holes.loc[[3, 7], "x"] = np.nan
    with pytest.raises(DesignError, match=r"2 rows have missing values, in x \(2\)"):
        ols("y ~ x", holes, na_action="raise")


def test_na_action_that_is_not_known(small):
    with pytest.raises(ValueError, match="'drop' or 'raise', not 'impute'"):
        ols("y ~ x", small, na_action="impute")


def test_all_rows_missing(small):
    with pytest.raises(DesignError, match="no row is complete"):
        ols("y ~ x", small.assign(x=np.nan))


@pytest.mark.parametrize("value", (np.inf, -np.inf))
@pytest.mark.parametrize("column", ("x", "y"))
def test_infinite(column, value, small):
    bad = small.copy()
    bad.loc[5, column] = value
    with pytest.raises(DesignError, match=f"'{column}' is infinite in 1 rows.*row 5"):
        ols("y ~ x", bad)


def test_infinite_after_a_transform(small):
    bad = small.copy()
    bad.loc[5, "z"] = 0.0
    with pytest.raises(DesignError, match=r"log\(z\) is not finite in 1 rows"):
        ols("y ~ log(z)", bad)
    with pytest.raises(DesignError, match=r"log\(z\) is not finite in 1 rows"):
        ols("log(z) ~ x", bad)


def test_overflowing_power(small):
    bad = small.assign(x=small["x"] * 1e100)
    with pytest.raises(DesignError, match="not finite"):
        ols("y ~ I(x**4)", bad)


@pytest.mark.parametrize("kind", ("frame", "mapping"))
def test_empty(kind, small):
    data = small.iloc[:0] if kind == "frame" else {"y": [], "x": []}
    with pytest.raises(DesignError, match="no rows"):
        ols("y ~ x", data)


def test_more_columns_than_rows(small):
    with pytest.raises(DesignError, match="4 rows cannot determine 6 coefficients"):
        ols("y ~ x + z + w + e + share", small.iloc[:4])


def test_as_many_columns_as_rows(small):
    with pytest.warns(BoundaryWarning, match="exactly"):
        result = ols("y ~ x + z", small.iloc[:3])
    assert result.bse.isna().all()


# -- response --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ("gaussian", "poisson", "binomial"))
def test_constant_response(family, small):
    with pytest.raises(DesignError, match="constant .*nothing to explain"):
        glm("k ~ x", small.assign(k=1.0), family)
    with pytest.raises(DesignError, match="constant"):
        ols("k ~ x", small.assign(k=1.0))


def test_no_response(small):
    with pytest.raises(DesignError, match="no response"):
        ols("~ x", small)


@pytest.mark.parametrize("family", ("poisson", NEGATIVE_BINOMIAL), ids=str)
@pytest.mark.parametrize("value", (-1, 1.5))
def test_counts(value, family, small):
    bad = small.assign(count=small["count"].astype(float))
    bad.loc[4, "count"] = value
    with pytest.raises(DesignError, match="1 (of|rows)|1 .*(negative|whole|count)"):
        glm("count ~ x", bad, family)


def test_proportions(small):
    bad = small.copy()
    bad.loc[[4, 9], "share"] = [1.2, -0.1]
    with pytest.raises(DesignError, match="2 "):
        glm("share ~ x", bad, "binomial")


@pytest.mark.parametrize("family", ("gamma", "inversegaussian"))
def test_positive_responses(family, small):
    bad = small.copy()
    bad.loc[4, "positive"] = 0.0
    with pytest.raises(DesignError, match="1 "):
        glm("positive ~ x", bad, family, link="log")


def test_cbind_of_what_are_not_counts(small):
    bad = small.assign(n=small["f"] + 0.5)
    with pytest.raises(DesignError, match="takes counts; n is negative or not whole"):
        glm("cbind(f, n) ~ x", bad, "binomial")


def test_cbind_without_a_binomial_family(small):
    with pytest.raises(DesignError, match="needs a binomial family"):
        glm("cbind(f, count) ~ x", small, "poisson")


def test_categorical_response(small):
    with pytest.raises(DesignError, match="categorical"):
        ols("a ~ x", small)
    with pytest.raises(DesignError, match="exactly two levels"):
        glm("a ~ x", small, "binomial")
    assert glm("b ~ x", small, "binomial").nobs == len(small)


def test_several_responses(small):
    with pytest.raises((DesignError, FormulaError)):
        ols("y + z ~ x", small)


# -- columns ---------------------------------------------------------------------------


def test_factor_with_one_level(small):
    with pytest.raises(DesignError, match="same has one level .*leave it out"):
        ols("y ~ x + same", small.assign(same="only"))


def test_factor_with_one_level_in_the_rows_used(small):
    bad = small.assign(x=small["x"].where(small["b"] == "k"))
    with pytest.raises(DesignError, match="one level"):
        ols("y ~ x + b", bad)


@pytest.mark.parametrize("model", ("ols", "poisson"))
def test_duplicated_columns(model, small):
    twice = small.assign(again=2 * small["x"], sum=small["x"] + small["z"])
    y = "y" if model == "ols" else "count"

    def fit(text):
        return ols(text, twice) if model == "ols" else glm(text, twice, model)

    with pytest.warns(RankWarning, match="again, sum: linear combinations of earlier"):
        found = fit(f"{y} ~ x + again + z + sum")
    wanted = fit(f"{y} ~ x + z")
    assert list(found.params.index) == ["Intercept", "x", "z"]
    np.testing.assert_allclose(found.params, wanted.params, rtol=1e-9)
    np.testing.assert_allclose(found.bse, wanted.bse, rtol=1e-9)
    new = twice.iloc[:5]
    np.testing.assert_allclose(found.predict(new), wanted.predict(new))


def test_dummy_trap(small):
    dummies = pd.get_dummies(small["a"]).astype(float)
    with pytest.warns(RankWarning, match="w: linear"):
        found = ols("y ~ u + v + w", pd.concat([small[["y"]], dummies], axis=1))
    assert found.params.index.tolist() == ["Intercept", "u", "v"]


def test_column_of_zeros(small):
    with pytest.warns(RankWarning, match="nil"):
        found = ols("y ~ x + nil", small.assign(nil=0.0))
    assert found.params.index.tolist() == ["Intercept", "x"]


def test_unknown_column(small):
    with pytest.raises(DesignError, match="no column 'shre'. Did you mean 'share'"):
        ols("y ~ x + shre", small)


@pytest.mark.parametrize("option", ("weights", "freq_weights", "offset", "exposure"))
def test_unknown_column_of_an_option(option, small):
    with pytest.raises(DesignError, match="no column 'nowhere'"):
        ols("y ~ x", small, **{option: "nowhere"})


def test_unknown_cluster(small):
    with pytest.raises(DesignError, match="no column 'nowhere'"):
        ds.OLS("y ~ x", small).fit("cluster", {"groups": "nowhere"})


def test_misspelt_function(small):
    with pytest.raises(FormulaError, match="unknown function `lg`.*did you mean `log`"):
        ols("y ~ lg(z)", small)


def test_column_of_text_that_should_be_numbers(small):
    bad = small.assign(z=small["z"].astype(str))
    with pytest.raises((DesignError, TypeError, ValueError), match="z"):
        ols("y ~ log(z)", bad)


def test_column_of_objects(small):
    bad = small.assign(z=[{"a": 1}] * len(small))
    with pytest.raises(DesignError):
        ols("y ~ z", bad)


def test_two_columns_of_one_name(small):
    bad = pd.concat([small[["y", "x"]], small[["x"]]], axis=1)
    with pytest.raises(DesignError, match="several columns named 'x'"):
        ols("y ~ x", bad)


@pytest.mark.parametrize("data", (7, "data.csv", None, [1, 2, 3], np.ones((4, 2))))
def test_data_of_a_wrong_kind(data):
    with pytest.raises(DesignError, match="data must be a pandas or polars frame"):
        ols("y ~ x", data)


def test_columns_that_differ_in_length():
    with pytest.raises(DesignError, match=r"columns differ in length: \[2, 3\]"):
        ols("y ~ x", {"y": [1.0, 2.0, 3.0], "x": [1.0, 2.0]})


def test_column_of_two_dimensions():
    with pytest.raises(DesignError, match="one dimension"):
        ols("y ~ x", {"y": np.arange(3.0), "x": np.ones((3, 2))})


# -- new data --------------------------------------------------------------------------


def test_unseen_level(small):
    result = ols("y ~ a", small)
    new = pd.DataFrame({"a": ["u", "q", "r"]})
    with pytest.raises(DesignError, match="'q'"):
        result.predict(new)


def test_column_missing_from_new_data(small):
    with pytest.raises(DesignError, match="no column 'x'"):
        ols("y ~ x", small).predict(small.drop(columns="x"))


def test_numeric_column_that_becomes_text(small):
    with pytest.raises(DesignError, match="numeric in the data of the fit"):
        ols("y ~ x", small).predict(pd.DataFrame({"x": ["1", "2"]}))


def test_new_data_with_holes(small):
    result = ols("y ~ x + a", small)
    new = small.iloc[:4].copy()
    new.loc[2, "x"] = np.nan
    found = result.predict(new)
    assert found.isna().tolist() == [False, False, True, False]
    assert found.index.equals(new.index)


# -- weights, offsets, clusters --------------------------------------------------------


def test_rows_of_weight_zero_are_left_out(small):
    w = small["w"].where(small.index % 10 > 0, 0.0)
    found = ols("y ~ x", small, weights=w)
    wanted = ols("y ~ x", small[w > 0], weights="w")
    assert found.nobs == (w > 0).sum()
    pd.testing.assert_series_equal(found.bse, wanted.bse)
    assert "12 rows of weight zero" in str(found.summary())


@pytest.mark.parametrize("option", ("weights", "freq_weights"))
def test_negative_weights(option, small):
    with pytest.raises(DesignError, match="finite and not negative; 1 are negative"):
        ols("y ~ x", small, **{option: np.r_[-1.0, np.ones(len(small) - 1)]})


@pytest.mark.parametrize("option", ("weights", "freq_weights"))
def test_weights_that_are_all_zero(option, small):
    with pytest.raises(DesignError, match="all zero"):
        ols("y ~ x", small, **{option: np.zeros(len(small))})


def test_infinite_weights(small):
    with pytest.raises(DesignError, match="finite"):
        ols("y ~ x", small, weights=np.r_[np.inf, np.ones(len(small) - 1)])


def test_frequencies_that_are_not_whole(small):
    with pytest.raises(DesignError, match="whole numbers; use weights="):
        ols("y ~ x", small, freq_weights="w")


@pytest.mark.parametrize("option", ("weights", "freq_weights", "offset", "exposure"))
def test_lengths(option, small):
    with pytest.raises(DesignError, match=rf"{option} has shape \(3,\)"):
        glm("count ~ x", small, "poisson", **{option: np.ones(3)})


@pytest.mark.parametrize("option", ("weights", "offset"))
def test_text_as_numbers(option, small):
    with pytest.raises(DesignError, match="numeric"):
        glm("count ~ x", small, "poisson", **{option: ["a"] * len(small)})
    with pytest.raises(DesignError, match="numeric"):
        glm("count ~ x", small, "poisson", **{option: "a"})


def test_exposure_that_is_not_positive(small):
    with pytest.raises(DesignError, match="exposure must be positive; 1 rows"):
        glm("count ~ x", small, "poisson", exposure=np.r_[0.0, np.ones(len(small) - 1)])


def test_infinite_offset(small):
    with pytest.raises(DesignError, match="offset is not finite"):
        glm(
            "count ~ x", small, "poisson", offset=np.r_[np.inf, np.ones(len(small) - 1)]
        )


def test_length_of_clusters(small):
    with pytest.raises(DesignError, match="groups has 3 values"):
        ds.OLS("y ~ x", small).fit("cluster", {"groups": np.arange(3)})


def test_missing_clusters(small):
    bad = small.assign(g=small["g"].where(small["g"] > 2))
    with pytest.raises(DesignError, match="g is missing in 24 of the rows"):
        ds.OLS("y ~ x", bad).fit("cluster", {"groups": "g"})


def test_one_cluster(small):
    with pytest.raises(ModelError, match="at least two clusters"):
        ds.OLS("y ~ x", small.assign(g=1)).fit("cluster", {"groups": "g"})


def test_clusters_without_groups(small):
    with pytest.raises(ValueError, match="cov_kwds=.'groups'"):
        ds.OLS("y ~ x", small).fit("cluster")


@pytest.mark.parametrize(
    ("kind", "kwds", "fragment"),
    (
        ("HC5", None, "cov_type 'HC5' is not known"),
        ("HC1", {"maxlags": 3}, "do not go with HC1; it takes none"),
        ("HAC", None, "HAC needs cov_kwds"),
        ("HAC", {"maxlags": 2, "kernel": "flat"}, "kernel 'flat' is not known"),
        ("HAC", {"lags": 2}, r"\['lags'\] do not go with HAC"),
        ("cluster", {"groups": "g", "ssc": "most"}, "'each' or 'min'"),
    ),
)
def test_covariances_that_are_not_known(kind, kwds, fragment, small):
    with pytest.raises(ValueError, match=fragment):
        ds.OLS("y ~ x", small).fit(kind, kwds)


@pytest.mark.parametrize("lags", (-1, 2.5, 1000))
def test_lags_that_make_no_sense(lags, small):
    with pytest.raises(ValueError, match="maxlags"):
        ds.OLS("y ~ x", small).fit("HAC", {"maxlags": lags})


def test_misspelt_options(small):
    with pytest.raises(TypeError):
        ds.OLS("y ~ x", small, wieghts="w")
    with pytest.raises(ValueError, match="poison"):
        ds.GLM("count ~ x", small, family="poison")
    with pytest.raises(ValueError, match="lgo"):
        ds.GLM("count ~ x", small, family="poisson", link="lgo")
    with pytest.raises(ValueError, match="information"):
        ds.GLM("count ~ x", small, family="poisson").fit(information="fisher")
    with pytest.raises(ValueError, match="start_params needs 2 values"):
        ds.GLM("count ~ x", small, family="poisson").fit(start_params=[1.0])


# -- formulas that are not formulas ----------------------------------------------------


@pytest.mark.parametrize(
    "text",
    (
        "y ~ __import__('os').system('touch {path}')",
        "y ~ I(__import__('os').system('touch {path}'))",
        "y ~ eval(\"open('{path}', 'w')\")",
        "y ~ I(open('{path}', 'w'))",
        "y ~ x.__class__",
        "y ~ I(x.to_csv('{path}'))",
        "y ~ C(x, (lambda: open('{path}', 'w'))())",
        "y ~ I([open('{path}', 'w') for i in (1,)])",
        "open('{path}', 'w') ~ x",
        "y ~ x + offset(open('{path}', 'w'))",
        "y ~ I(getattr(x, 'values'))",
        "y ~ {{open('{path}', 'w')}}",
        "y ~ np.save('{path}', x)",
        "y ~ I(f\"{{open('{path}', 'w')}}\")",
    ),
)
def test_injection(text, small, tmp_path):
    path = tmp_path / "touched"
    with pytest.raises((FormulaError, DesignError)):
        ols(text.format(path=path), small)
    assert not os.path.exists(path)


@pytest.mark.parametrize("option", ("weights", "offset", "exposure"))
def test_injection_by_an_option(option, small, tmp_path):
    path = tmp_path / "touched"
    with pytest.raises((FormulaError, DesignError)):
        ols("y ~ x", small, **{option: f"I(open('{path}', 'w'))"})
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    "text", ("", "y", "y ~", "y ~ x +", "y ~ (x", "~", "y ~ x ~ z")
)
def test_unfinished_formulas(text, small):
    with pytest.raises((FormulaError, DesignError)):
        ols(text, small)


def test_random_effects_where_there_are_none(small):
    with pytest.raises(ModelError, match=r"no random effects such as \(1 ?\| ?g\)"):
        ols("y ~ x + (1 | g)", small)


# -- separation and convergence --------------------------------------------------------


@pytest.fixture
def separated() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    return pd.DataFrame(
        {"x": x, "z": rng.normal(size=200), "hit": (x > 0.1).astype(int)}
    )


@pytest.mark.parametrize("link", ("logit", "probit", "cloglog"))
def test_complete_separation(link, separated):
    with pytest.warns(SeparationWarning, match=r"estimates of .*\bx\b"):
        glm("hit ~ x + z", separated, "binomial", link=link)


@pytest.mark.parametrize("link", ("logit", "probit"))
def test_quasi_complete_separation(link, small):
    """One level of a factor never fails; the other columns have estimates."""
    hit = small["hit"].where(small["a"] != "w", 1)
    with pytest.warns(SeparationWarning, match=r"estimates of a\[T.w\] are"):
        result = glm("hit ~ x + a", small.assign(hit=hit), "binomial", link=link)
    rest = small[small["a"] != "w"].assign(hit=hit)
    wanted = glm("hit ~ x + a", rest, "binomial", link=link)
    np.testing.assert_allclose(result.params["x"], wanted.params["x"], rtol=1e-5)


@pytest.mark.parametrize("family", ("poisson", NEGATIVE_BINOMIAL), ids=str)
def test_separation_of_counts(family, small):
    """One level of a factor has only zeros."""
    count = small["count"].where(small["a"] != "w", 0)
    with pytest.warns(SeparationWarning, match=r"estimates of a\[T.w\] are"):
        glm("count ~ x + a", small.assign(count=count), family)


def test_no_false_alarm_of_separation(small):
    """Fitted values near the edge are not separation."""
    rng = np.random.default_rng(8)
    x = np.r_[rng.normal(size=400), 40.0]
    hit = (rng.uniform(size=401) < 1 / (1 + np.exp(-x))).astype(int)
    hit[-1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = glm("hit ~ x", pd.DataFrame({"x": x, "hit": hit}), "binomial")
    assert result.converged


def test_not_converged(small):
    with pytest.warns(ConvergenceWarning, match="did not converge: .* raise maxiter="):
        result = glm("count ~ x + z", small, "poisson", maxiter=1)
    assert not result.converged
    assert "NOT CONVERGED" in str(result.summary())


def test_not_converged_probit(small):
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        glm("hit ~ x + z", small, "binomial", link="probit", maxiter=1)
