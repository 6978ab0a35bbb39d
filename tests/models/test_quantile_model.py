"""Quantile regression as a model: R's and statsmodels' numbers, options, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import (
    DesignError,
    FormulaError,
    ModelError,
    NonuniqueWarning,
    RankWarning,
)
from deepstats.models.quantile import QuantReg, quantreg

LEVELS = (0.25, 0.5, 0.75)


@pytest.fixture(scope="module")
def engel(statsmodels_data):
    return statsmodels_data("engel")


@pytest.fixture(scope="module")
def model(engel):
    return quantreg("foodexp ~ income", engel)


@pytest.mark.parametrize("q", LEVELS)
def test_vertex_and_objective_match_the_exact_program(model, reference, q):
    stored, fit = reference[f"quantile_engel_{q}"], model.fit(q=q)
    # Both are vertices: only the last linear solve rounds.
    np.testing.assert_allclose(fit.params, list(stored["coef"].values()), rtol=1e-10)
    np.testing.assert_allclose(fit.objective, stored["objective"], rtol=1e-12)


@pytest.mark.parametrize("q", LEVELS)
@pytest.mark.parametrize("kind", ["iid", "nid", "ker"])
def test_standard_errors_match_quantreg(model, reference, q, kind):
    stored = reference[f"quantile_engel_{q}"]["R_se"][f"se_{kind}"]
    fit = model.fit(q=q, cov_type=kind)
    np.testing.assert_allclose(fit.bse, list(stored.values()), rtol=1e-6)


@pytest.mark.parametrize("q", LEVELS)
@pytest.mark.parametrize("vcov", ["robust", "iid"])
def test_statsmodels_call_gives_statsmodels_numbers(engel, q, vcov):
    smf = pytest.importorskip("statsmodels.formula.api")
    theirs = smf.quantreg("foodexp ~ income", engel).fit(
        q=q, vcov=vcov, kernel="gau", bandwidth="bofinger"
    )
    ours = quantreg("foodexp ~ income", engel).fit(
        q=q, vcov=vcov, kernel="gau", bandwidth="bofinger"
    )
    # statsmodels iterates to about 1e-8.
    np.testing.assert_allclose(ours.params, theirs.params, rtol=1e-6)
    np.testing.assert_allclose(ours.bse, theirs.bse, rtol=1e-6)
    np.testing.assert_allclose(ours.conf_int(), theirs.conf_int(), rtol=1e-6)
    np.testing.assert_allclose(ours.sparsity, theirs.sparsity, rtol=1e-6)
    np.testing.assert_allclose(ours.bandwidth, theirs.bandwidth, rtol=1e-6)
    # Their null loss is at an interpolated percentile.
    np.testing.assert_allclose(ours.prsquared, theirs.prsquared, atol=2e-5)
    assert ours.use_t and ours.df_resid == theirs.df_resid
    assert ours.df_model == theirs.df_model


@pytest.mark.parametrize("q", LEVELS)
def test_default_is_the_default_of_statsmodels(model, reference, q):
    stored = reference[f"quantile_engel_{q}"]["sm_se"]
    fit = model.fit(q=q)
    assert fit.cov_type == "robust"
    np.testing.assert_allclose(fit.bse, list(stored.values()), rtol=1e-6)


def test_several_levels_give_a_list(model):
    fits = model.fit(q=[0.25, 0.75], cov_type="nid")
    assert [f.q for f in fits] == [0.25, 0.75]
    np.testing.assert_array_equal(fits[1].params, model.fit(q=0.75).params)


def test_tables_and_predictions(model, engel):
    fit = model.fit(q=0.75, cov_type="nid")
    text = fit.summary().as_text()
    assert "q = 0.75" in text and "Hendricks-Koenker" in text
    assert list(fit.tidy()["term"]) == ["Intercept", "income"]
    assert fit.glance()["prsquared"].iloc[0] == fit.prsquared
    new = engel.head(4).drop(columns="foodexp")
    X = np.column_stack([np.ones(4), new["income"]])
    np.testing.assert_allclose(fit.predict(new), X @ fit.params, rtol=1e-13)
    found = fit.get_prediction(new).summary_frame()
    se = np.sqrt(np.einsum("ij,jk,ik->i", X, fit.cov_params(), X))
    np.testing.assert_allclose(found["mean_se"], se, rtol=1e-8)
    assert list(found) == ["mean", "mean_se", "mean_ci_lower", "mean_ci_upper"]
    np.testing.assert_allclose(fit.resid, engel["foodexp"] - fit.fittedvalues)
    assert (fit.resid < -1e-9).mean() < 0.75 < (fit.resid < 1e-9).mean()
    test = fit.wald_test("income = 0")
    np.testing.assert_allclose(test.statistic, fit.tvalues["income"] ** 2, rtol=1e-10)
    assert list(fit.augment()) == ["foodexp", ".fitted", ".resid", ".tau"]


def test_other_standard_errors_without_a_new_fit(model):
    fit = model.fit(q=0.5)
    other = fit.get_robustcov_results("ker", hs=False)
    assert other.cov_type == "ker" and "Bofinger" in other.cov_description
    np.testing.assert_array_equal(other.params, fit.params)


@pytest.mark.parametrize("name", ["llf", "aic", "bic", "resid_pearson"])
def test_what_needs_a_likelihood_is_refused_with_the_reason(model, name):
    with pytest.raises(ModelError, match="check loss"):
        getattr(model.fit(), name)


def test_weights_scale_the_losses(small):
    # A whole weight is a repeated row.
    twice = quantreg("y ~ x + a", small, weights="f").fit(q=0.313)
    rows = small.loc[np.repeat(small.index, small["f"])].reset_index(drop=True)
    again = quantreg("y ~ x + a", rows).fit(q=0.313)
    np.testing.assert_allclose(twice.params, again.params, rtol=1e-9)
    np.testing.assert_allclose(twice.objective, again.objective, rtol=1e-12)


def test_offset_is_taken_from_the_response(small):
    plain = quantreg("y ~ x", small.assign(y=small["y"] - small["z"])).fit(q=0.4)
    fit = quantreg("y ~ x", small, offset="z").fit(q=0.4)
    np.testing.assert_allclose(fit.params, plain.params, rtol=1e-9)
    np.testing.assert_allclose(fit.predict(small), plain.predict(small) + small["z"])


def test_bootstrap_is_repeatable_and_near_the_asymptotic(small):
    model = quantreg("y ~ x", small)
    one, two = (
        model.fit(cov_type="boot", cov_kwds={"reps": 60, "seed": 4}) for _ in range(2)
    )
    np.testing.assert_array_equal(one.bse, two.bse)
    # 60 samples: a standard error to 10 %, and 120 rows besides.
    ratio = one.bse / model.fit(cov_type="nid").bse
    assert ratio.between(0.5, 2).all()
    clustered = model.fit(cov_type="boot", cov_kwds={"reps": 20, "groups": "g"})
    assert "clusters of g (15)" in clustered.cov_description


def test_aliased_columns_are_dropped_and_named(small):
    data = small.assign(double=2 * small["x"])
    with pytest.warns(RankWarning, match="double"):
        fit = quantreg("y ~ x + double + z", data).fit()
    assert fit.names == ["Intercept", "x", "z"]
    np.testing.assert_allclose(fit.params, quantreg("y ~ x + z", small).fit().params)
    assert fit.predict(data.head(3)).notna().all()


def test_a_flat_optimum_is_reported():
    with pytest.warns(NonuniqueWarning, match="flat"):
        fit = quantreg("y ~ 1", {"y": [1.0, 2.0, 5.0, 9.0]}).fit(
            cov_type="boot", cov_kwds={"reps": 5}
        )
    assert 2 <= fit.params["Intercept"] <= 5
    assert "same objective" in fit.summary().as_text()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"q": 0}, ValueError, "strictly between"),
        ({"q": [0.5, 1.2]}, ValueError, "1.2"),
        ({"q": []}, ValueError, "q must be"),
        ({"cov_type": "HC1"}, ModelError, "robust, iid, nid, ker, boot"),
        ({"cov_type": "cluster"}, ModelError, "groups"),
        ({"cov_type": "nid", "kernel": "epa"}, ModelError, "kernel"),
        ({"cov_type": "iid", "vcov": "iid"}, ValueError, "not both"),
        ({"kernel": "box"}, ModelError, "epa"),
        (
            {"cov_type": "iid", "cov_kwds": {"hs": True, "kernel": "epa"}},
            ModelError,
            "hs",
        ),
    ],
)
def test_wrong_options(model, options, error, text):
    with pytest.raises(error, match=text):
        model.fit(**options)


@pytest.mark.parametrize(
    ("formula", "data", "error"),
    [
        ("y ~ x | g", {"y": [1.0, 2, 4], "x": [0.0, 1, 3], "g": [1, 1, 2]}, ModelError),
        ("y ~ x +", {"y": [1.0, 2], "x": [0.0, 1]}, FormulaError),
        ("y ~ x", {"y": [1.0], "x": [0.0]}, DesignError),
        ("y ~ x", {"y": [1.0, 1, 1], "x": [0.0, 1, 2]}, DesignError),
        ("y ~ x", {"y": [1.0, np.inf, 1], "x": [0.0, 1, 2]}, DesignError),
        ("y ~ x", {"y": ["a", "b", "c"], "x": [0.0, 1, 2]}, DesignError),
    ],
)
def test_bad_input(formula, data, error):
    with pytest.raises(error):
        quantreg(formula, pd.DataFrame(data)).fit()


def test_missing_rows_are_counted(small):
    data = small.assign(x=small["x"].where(small.index > 4))
    fit = QuantReg("y ~ x", data).fit()
    assert fit.nobs == 115 and "5 rows" in fit.summary().as_text()
    with pytest.raises(DesignError, match="missing"):
        quantreg("y ~ x", data, na_action="raise")
