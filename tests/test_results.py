"""What results answer: estimates, intervals, predictions, tests, frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import deepstats as ds


@pytest.fixture
def ols(small):
    return ds.OLS("y ~ x*a + z", small).fit()


@pytest.fixture
def poisson(small):
    return ds.GLM("count ~ x*a + z", small, family="poisson").fit()


@pytest.fixture(params=("ols", "poisson"))
def result(request):
    return request.getfixturevalue(request.param)


def test_labels(result):
    names = ["Intercept", "x", "a[T.v]", "a[T.w]", "z", "x:a[T.v]", "x:a[T.w]"]
    for frame in (result.params, result.bse, result.tvalues, result.pvalues):
        assert frame.index.tolist() == names
    assert result.cov_params().index.tolist() == names
    assert result.cov_params().columns.tolist() == names
    assert result.conf_int().index.tolist() == names


def test_tests_of_coefficients(result):
    t = result.params / result.bse
    distribution = stats.t(result.df_resid) if result.use_t else stats.norm
    np.testing.assert_allclose(result.tvalues, t)
    np.testing.assert_allclose(result.pvalues, 2 * distribution.sf(t.abs()), rtol=1e-9)
    for alpha in (0.05, 0.1):
        half = distribution.ppf(1 - alpha / 2) * result.bse
        found = result.conf_int(alpha)
        np.testing.assert_allclose(found[0], result.params - half)
        np.testing.assert_allclose(found[1], result.params + half)
    with pytest.raises(ValueError, match="between 0 and 1"):
        result.conf_int(95)


def test_small_p_values_do_not_underflow_early(small):
    strong = small.assign(y=small["y"] + 50 * small["x"])
    assert 0 < ds.OLS("y ~ x", strong).fit().pvalues["x"] < 1e-60


def test_cov_type_after_the_fit(result, small):
    model = result.model
    for kind, kwds in (("HC3", {}), ("cluster", {"groups": "g"}), ("opg", {})):
        found = result.get_robustcov_results(kind, **kwds)
        wanted = model.fit(kind, kwds)
        pd.testing.assert_series_equal(found.bse, wanted.bse)
        assert found.cov_type == kind
        assert found.use_t == result.use_t
    assert result.cov_type == "nonrobust"  # unchanged


def test_use_t(small):
    model = ds.OLS("y ~ x", small)
    normal, student = model.fit("HC1", use_t=False), model.fit("HC1", use_t=True)
    assert (normal.use_t, student.use_t) == (False, True)
    assert student.pvalues["x"] > normal.pvalues["x"]
    assert model.fit("HC1").use_t is False
    assert model.fit().use_t is True
    clustered = model.fit("cluster", {"groups": "g"}, use_t=True)
    assert clustered.df_inference == 14


@pytest.mark.parametrize("which", ("mean", "linear"))
def test_predict(which, result, small):
    eta = result.model.design.X.to_dense().numpy() @ result.params
    wanted = np.exp(eta) if which == "mean" and not result.use_t else eta
    np.testing.assert_allclose(result.predict(which=which), wanted)
    new = small.iloc[[5, 3, 80]]
    found = result.predict(new, which=which)
    assert found.index.tolist() == [5, 3, 80]
    np.testing.assert_allclose(found, wanted[[5, 3, 80]])
    columns = {c: new[c].tolist() for c in ("x", "a", "z")}
    np.testing.assert_allclose(result.predict(columns, which=which), found)
    with pytest.raises(ValueError, match="allowed: mean, linear"):
        result.predict(which="median")


def test_predict_a_single_row_with_transforms(small):
    result = ds.OLS("y ~ poly(x, 2) + scale(z) + bs(w, df=4) + a", small).fit()
    whole = result.fittedvalues
    for i in (0, 7, 99):
        found = result.predict(small.iloc[[i]])
        assert float(found.iloc[0]) == pytest.approx(whole.iloc[i], rel=1e-11)


def test_predict_with_offsets(small):
    inside = ds.GLM("count ~ x + offset(log(e))", small, family="poisson").fit()
    beside = ds.GLM("count ~ x", small, family="poisson", exposure="e").fit()
    values = ds.GLM("count ~ x", small, family="poisson", exposure=small["e"]).fit()
    new = small.iloc[:4]
    wanted = inside.predict(new)
    np.testing.assert_allclose(beside.predict(new), wanted, rtol=1e-12)
    np.testing.assert_allclose(
        values.predict(new, exposure=new["e"]), wanted, rtol=1e-12
    )
    np.testing.assert_allclose(
        beside.predict(new, exposure=np.ones(4)), wanted / new["e"], rtol=1e-12
    )
    with pytest.raises(ValueError, match="go with new data"):
        inside.predict(offset=np.ones(120))


def test_standard_errors_of_predictions(result, small):
    X = result.model.design.X.to_dense().numpy()[:6]
    V = result.cov_params().to_numpy()
    linear = np.sqrt(np.einsum("ij,jk,ik->i", X, V, X))
    found = result.get_prediction(small.iloc[:6])
    slope = 1.0 if result.use_t else found.predicted_mean
    np.testing.assert_allclose(found.se_mean, linear * slope, rtol=1e-10)
    np.testing.assert_allclose(found.predicted["linear_se"], linear, rtol=1e-10)
    ends = found.conf_int(0.1)
    assert (ends[:, 0] < found.predicted_mean).all()
    assert (found.predicted_mean < ends[:, 1]).all()
    assert (found.conf_int(0.01)[:, 0] < ends[:, 0]).all()


def test_predictions_with_high_cardinality(small):
    data = small.assign(lev=np.arange(len(small)) * 7 % 19)
    result = ds.OLS("y ~ x + C(lev)", data).fit("HC1")
    assert result.model.design.X.coded  # held as codes
    X = result.model.design.X.to_dense().numpy()
    V = result.cov_params().to_numpy()
    found = result.get_prediction()
    np.testing.assert_allclose(found.predicted_mean, X @ result.params)
    np.testing.assert_allclose(
        found.se_mean, np.sqrt(np.einsum("ij,jk,ik->i", X, V, X))
    )


def test_contrasts(result):
    found = result.t_test("a[T.v] - a[T.w]")
    names = result.params.index.tolist()
    R = np.zeros(len(names))
    R[names.index("a[T.v]")], R[names.index("a[T.w]")] = 1, -1
    np.testing.assert_allclose(found.effect, R @ result.params)
    np.testing.assert_allclose(found.sd, np.sqrt(R @ result.cov_params() @ R))
    joint = result.wald_test("a[T.v] = a[T.w]", use_f=False)
    assert joint.statistic == pytest.approx(float(found.tvalue[0] ** 2))
    assert "a[T.v]" in str(found)
    shifted = result.t_test("x = 0.25")
    np.testing.assert_allclose(
        shifted.tvalue, (result.params["x"] - 0.25) / result.bse["x"]
    )


def test_f_and_chi2(result):
    f = result.f_test("x = 0, z = 0")
    chi2 = result.wald_test("x = 0, z = 0", use_f=False)
    assert f.statistic * 2 == pytest.approx(chi2.statistic)
    assert f.df_denom == result.df_resid
    assert f.pvalue == pytest.approx(stats.f.sf(f.statistic, 2, result.df_resid))
    assert chi2.pvalue == pytest.approx(stats.chi2.sf(chi2.statistic, 2))


def test_terms(result):
    found = result.wald_test_terms()
    assert found.index.tolist() == ["x", "a", "z", "x:a"]
    assert found["df"].tolist() == [1, 2, 1, 2]
    joint = result.wald_test("x:a[T.v] = 0, x:a[T.w] = 0")
    assert found.loc["x:a"].iloc[0] == pytest.approx(joint.statistic)


def test_terms_whose_names_begin_alike(small):
    data = small.assign(xx=small["z"], x_=small["w"])
    found = ds.OLS("y ~ x + xx + x_ + C(c) + I(x**2)", data).fit().wald_test_terms()
    assert found["df"].tolist() == [1, 1, 1, 3, 1]


def test_nested_models(small, ols, poisson):
    smaller = ds.OLS("y ~ x + z", small).fit()
    lr = ols.compare_lr_test(smaller)
    assert lr.df_num == 4
    assert lr.statistic == pytest.approx(2 * (ols.llf - smaller.llf))
    f = ols.compare_f_test(smaller)
    wanted = ols.f_test("a[T.v], a[T.w], x:a[T.v], x:a[T.w]")
    assert f.statistic == pytest.approx(wanted.statistic, rel=1e-9)
    with pytest.raises(ValueError, match="fewer parameters"):
        smaller.compare_lr_test(ols)
    other = ds.OLS("y ~ x", small.iloc[:100]).fit()
    with pytest.raises(ValueError, match="same rows"):
        ols.compare_lr_test(other)


def test_delta_method(result):
    found = result.delta_method(lambda b: torch.exp(b[1]), ["exp(x)"])
    wanted = np.exp(result.params["x"])
    assert found.loc["exp(x)", "estimate"] == pytest.approx(wanted)
    assert found.loc["exp(x)", "std_error"] == pytest.approx(wanted * result.bse["x"])


def test_tidy(result):
    frame = result.tidy(0.9)
    assert frame.columns.tolist()[:7] == [
        "term", "estimate", "std_error", "statistic", "p_value",
        "conf_low", "conf_high",
    ]  # fmt: skip
    np.testing.assert_allclose(frame["conf_low"], result.conf_int(0.1)[0])
    assert frame["term"].tolist() == result.params.index.tolist()


def test_glance(result):
    frame = result.glance()
    assert len(frame) == 1
    for name in ("nobs", "df_resid", "llf", "aic", "bic"):
        assert frame[name].iloc[0] == getattr(result, name)


def test_augment(result, small):
    frame = result.augment()
    assert len(frame) == len(small)
    np.testing.assert_allclose(frame[".fitted"], result.fittedvalues)
    y = small["y"] if result.use_t else small["count"]
    np.testing.assert_allclose(frame[".fitted"] + frame[".resid"], y)


def test_information_criteria(result):
    k = len(result.params)
    assert result.aic == pytest.approx(-2 * result.llf + 2 * k)
    assert result.bic == pytest.approx(-2 * result.llf + np.log(120) * k)


@pytest.mark.parametrize(
    ("formula", "constant"),
    (
        ("y ~ x", True),
        ("y ~ 0 + x", False),
        ("y ~ 0 + a + x", True),
        ("y ~ 0 + a:b", True),
    ),
)
def test_constant_in_the_span(formula, constant, small):
    """R-squared is about the mean exactly when a constant is in the span."""
    result = ds.OLS(formula, small).fit()
    y = small["y"]
    tss = ((y - y.mean()) ** 2).sum() if constant else (y**2).sum()
    assert result.rsquared == pytest.approx(1 - (result.resid**2).sum() / tss)


def test_f_without_a_constant(small):
    statsmodels = pytest.importorskip("statsmodels.formula.api")
    for formula in ("y ~ 0 + x + z", "y ~ 0 + a + x"):
        ours, theirs = (
            ds.OLS(formula, small).fit(),
            statsmodels.ols(formula, small).fit(),
        )
        assert ours.fvalue == pytest.approx(theirs.fvalue, rel=1e-9)
        assert ours.df_model == theirs.df_model
        assert ours.rsquared_adj == pytest.approx(theirs.rsquared_adj, rel=1e-9)


def test_intercept_only(small):
    result = ds.OLS("y ~ 1", small).fit()
    assert result.params["Intercept"] == pytest.approx(small["y"].mean())
    assert result.bse["Intercept"] == pytest.approx(small["y"].std() / np.sqrt(120))
    assert np.isnan(result.fvalue)
    assert result.rsquared == pytest.approx(0, abs=1e-14)
    str(result.summary())
    count = ds.GLM("count ~ 1", small, family="poisson").fit()
    assert count.fittedvalues.iloc[0] == pytest.approx(small["count"].mean())
    assert count.llr == pytest.approx(0, abs=1e-9)


def test_frequency_weights_are_repeated_rows(small):
    repeated = small.loc[small.index.repeat(small["f"])]
    for kind in ("nonrobust", "HC0", "HC1", "HC3"):
        found = ds.OLS("y ~ x + a", small, freq_weights="f").fit(kind)
        wanted = ds.OLS("y ~ x + a", repeated).fit(kind)
        np.testing.assert_allclose(found.bse, wanted.bse, rtol=1e-10, err_msg=kind)
    for name in ("nobs", "llf", "rsquared", "fvalue", "df_resid", "scale", "aic"):
        found = getattr(ds.OLS("y ~ x + a", small, freq_weights="f").fit(), name)
        wanted = getattr(ds.OLS("y ~ x + a", repeated).fit(), name)
        assert found == pytest.approx(wanted, rel=1e-10), name
    for kind in ("nonrobust", "HC1", "HC3", "opg"):
        options = {"family": "poisson"}
        found = ds.GLM("count ~ x", small, freq_weights="f", **options).fit(kind)
        wanted = ds.GLM("count ~ x", repeated, **options).fit(kind)
        np.testing.assert_allclose(found.bse, wanted.bse, rtol=1e-9, err_msg=kind)
    cluster = {"groups": "g"}
    found = ds.OLS("y ~ x", small, freq_weights="f").fit("cluster", cluster)
    wanted = ds.OLS("y ~ x", repeated).fit("cluster", cluster)
    np.testing.assert_allclose(found.bse, wanted.bse, rtol=1e-10)


def test_scale_of_weights_does_not_matter(small):
    one = ds.OLS("y ~ x", small, weights="w").fit("HC1")
    ten = ds.OLS("y ~ x", small.assign(w=10 * small["w"]), weights="w").fit("HC1")
    np.testing.assert_allclose(one.params, ten.params)
    np.testing.assert_allclose(one.bse, ten.bse)
    np.testing.assert_allclose(one.rsquared, ten.rsquared)


def test_cbind_is_the_long_form(small):
    wide = small.assign(failures=small["f"] + 1, successes=small["count"])
    found = ds.GLM("cbind(successes, failures) ~ x + a", wide, family="binomial").fit(
        "HC0"
    )
    long = pd.concat(
        [
            wide.loc[wide.index.repeat(wide["successes"])].assign(won=1),
            wide.loc[wide.index.repeat(wide["failures"])].assign(won=0),
        ]
    )
    wanted = ds.GLM("won ~ x + a", long, family="binomial").fit()
    np.testing.assert_allclose(found.params, wanted.params, rtol=1e-9)
    plain = ds.GLM("cbind(successes, failures) ~ x + a", wide, family="binomial").fit()
    np.testing.assert_allclose(plain.bse, wanted.bse, rtol=1e-9)
    share = wide.assign(n=wide["successes"] + wide["failures"])
    share["p"] = share["successes"] / share["n"]
    third = ds.GLM("p ~ x + a", share, family="binomial", weights="n").fit("HC0")
    np.testing.assert_allclose(third.params, wanted.params, rtol=1e-9)
    np.testing.assert_allclose(third.bse, found.bse, rtol=1e-9)


def test_start_params(small):
    model = ds.GLM("count ~ x + z", small, family="poisson")
    found = model.fit()
    again = model.fit(start_params=found.params)
    assert again.mle_retvals["iterations"] <= 2
    np.testing.assert_allclose(again.params, found.params, rtol=1e-9)


def test_the_callers_data_are_not_changed(small):
    before = small.copy(deep=True)
    ds.OLS("y ~ scale(x) + log(z) + a", small, weights="w").fit("HC3").get_prediction()
    pd.testing.assert_frame_equal(small, before)


def test_index_is_the_datas(small):
    data = small.set_index(pd.Index([f"row{i}" for i in range(len(small))]))
    data.loc["row4", "x"] = np.nan
    result = ds.OLS("y ~ x", data).fit()
    assert result.resid.index.tolist() == [f"row{i}" for i in range(120) if i != 4]
    assert result.predict(data).index.equals(data.index)
