"""Defects that were found once: each stays mended."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

import deepstats as ds
from deepstats.errors import BoundaryWarning, DesignError, RankWarning
from deepstats.inference import wald


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "z": rng.normal(size=n),
            "g": rng.choice(list("abcd"), n),
        }
    )
    frame["y"] = 1 + frame.x - 0.5 * frame.z + rng.normal(size=n)
    frame["k"] = rng.poisson(np.exp(0.3 + 0.3 * frame.x))
    frame["b"] = (frame.x + rng.logistic(size=n) > 0).astype(int)
    frame["m"] = rng.integers(1, 9, n)
    frame["s"] = rng.binomial(frame.m, 1 / (1 + np.exp(-frame.x)))
    return frame


def test_r_squared_with_an_offset_is_of_the_response_less_offset(data):
    ours = ds.ols("y ~ x + g", data, offset="z").fit()
    peer = smf.ols("I(y - z) ~ x + g", data).fit()
    for name in ("rsquared", "rsquared_adj", "ess", "mse_model", "fvalue", "llf"):
        assert getattr(ours, name) == pytest.approx(getattr(peer, name), rel=1e-10)
    absorbed = ds.ols("y ~ x | g", data, offset="z").fit()
    assert absorbed.rsquared == pytest.approx(ours.rsquared, rel=1e-10)


def test_weighted_proportions_have_the_likelihood_of_the_counts(data):
    frame = data.assign(failures=data.m - data.s, share=data.s / data.m)
    counts = ds.logit("cbind(s, failures) ~ x", frame).fit("HC3")
    shares = ds.logit("share ~ x", frame, weights="m").fit("HC3")
    for name in ("llf", "aic", "bic", "llnull", "deviance", "null_deviance"):
        assert getattr(shares, name) == pytest.approx(getattr(counts, name), rel=1e-10)
    np.testing.assert_allclose(shares.bse, counts.bse, rtol=1e-10)


def test_glm_without_intercept_knows_the_constant_in_its_factor(data):
    ours = ds.logit("b ~ 0 + g + x", data).fit()
    peer = smf.logit("b ~ 0 + g + x", data).fit(disp=0)
    assert ours.df_model == peer.df_model == 4
    assert ours.llr_pvalue == pytest.approx(peer.llr_pvalue, rel=1e-6)
    assert np.isnan(ds.logit("b ~ 0 + x", data).fit().llr_pvalue)


def test_a_variable_may_be_called_intercept_something(data):
    frame = data.assign(Intercept_x=data.x)
    assert ds.logit("b ~ Intercept_x + z", frame).fit().df_model == 2


@pytest.mark.parametrize("cov_type", ["nonrobust", "HC1", "HC3"])
def test_as_many_rows_as_coefficients(data, cov_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryWarning)
        linear = ds.ols("y ~ x", data.head(2)).fit(cov_type)
        assert linear.bse.isna().all()
        assert "nan" in str(linear.summary()).lower()
        assert np.isnan(linear.rsquared_adj)
        gamma = ds.glm("exp(y) ~ x", data.head(2), family="gamma", link="log")
        assert gamma.fit(cov_type).bse.isna().all()


@pytest.mark.parametrize("cov_type", ["HC2", "HC3"])
def test_leverage_one_has_no_hc2_or_hc3(data, cov_type):
    frame = data.head(6).assign(only=[0, 0, 0, 0, 0, 1])
    with pytest.warns(BoundaryWarning, match="leverage one"):
        assert ds.ols("y ~ x + only", frame).fit(cov_type).bse.isna().all()


def test_joint_test_with_an_indefinite_covariance_is_nan():
    test = wald(np.ones(2), np.diag([1.0, -0.5]), np.eye(2), np.zeros(2))
    assert np.isnan(test.statistic)
    assert np.isnan(test.pvalue)
    redundant = wald(np.ones(2), np.eye(2), np.array([[1, 0], [2, 0.0]]), np.zeros(2))
    assert redundant.df_num == 1


@pytest.mark.parametrize("model", ["poisson", "logit"])
def test_columns_far_from_zero_warn_that_digits_are_lost(data, model):
    frame = data.assign(x=data.x + 1e8)
    with pytest.warns(RankWarning, match="digits of the estimates are lost"):
        getattr(ds, model)("b ~ x", frame).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RankWarning)
        getattr(ds, model)("b ~ x", data.assign(x=data.x * 1e8)).fit()


def test_likelihoods_of_two_responses_are_not_compared(data):
    big, small = ds.poisson("k ~ x", data).fit(), ds.poisson("m ~ 1", data).fit()
    with pytest.raises(ValueError, match="cannot be compared"):
        big.compare_lr_test(small)


def test_scale_that_would_be_ignored_is_refused(data):
    with pytest.raises(ValueError, match="quasipoisson"):
        ds.glm("k ~ x", data, family="poisson", scale="deviance")
    with pytest.raises(ValueError, match="positive"):
        ds.glm("m ~ x", data, family="gamma", scale=-1)


def test_prediction_of_a_power_with_a_missing_value(data):
    new = data.head(3).copy()
    new.loc[1, "x"] = np.nan
    fit = ds.ols("y ~ x + I(x**2)", data).fit()
    found = fit.predict(new)
    assert found.isna().tolist() == [False, True, False]
    np.testing.assert_allclose(found[[0, 2]], fit.fittedvalues[[0, 2]], rtol=1e-12)


def test_ordinal_with_a_year_is_not_called_separated(data):
    frame = data.head(40).assign(level=pd.cut(data.y.head(40), 3, labels=list("abc")))
    centred = ds.ordinal("level ~ x", frame).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shifted = ds.ordinal("level ~ x", frame.assign(x=frame.x + 10_000)).fit()
    assert shifted.bse["x"] == pytest.approx(centred.bse["x"], rel=1e-6)


def test_lag_looks_back_at_all_rows(data):
    frame = data.copy()
    frame.loc[50, "z"] = np.nan
    found = ds.ols("y ~ lag(x) + z", frame).fit()
    keep = np.array([i for i in range(1, len(frame)) if i != 50])
    x = frame.x.to_numpy()[keep - 1]
    wanted = np.linalg.lstsq(
        np.c_[np.ones(len(keep)), x, frame.z[keep]], frame.y[keep], rcond=None
    )[0]
    assert found.nobs == len(frame) - 2
    np.testing.assert_allclose(found.params, wanted, rtol=1e-10)


def test_exposure_given_as_values_is_asked_for_in_prediction(data, tmp_path):
    exposure = 1.0 + data.z.abs()
    fit = ds.poisson("k ~ x", data, exposure=exposure.to_numpy()).fit()
    new = data.head(3)
    fit.save(tmp_path / "fit.zip")
    for one in (fit, ds.load(tmp_path / "fit.zip")):
        with pytest.raises(DesignError, match="give exposure= for the new data"):
            one.predict(new)
        unit = one.predict(new, exposure=1)
        np.testing.assert_allclose(
            one.predict(new, exposure=exposure[:3]), unit * exposure[:3], rtol=1e-12
        )
        np.testing.assert_allclose(
            unit * exposure[:3], fit.fittedvalues[:3], rtol=1e-12
        )


def test_an_estimated_scale_of_a_family_without_one_is_refused(data):
    with pytest.raises(ValueError, match="quasipoisson"):
        ds.glm("k ~ x", data, family="poisson", scale="pearson")


def test_true_and_false_are_one_and_zero(data):
    flags = ds.ols("I(y > 0) ~ x", data).fit()
    numbers = ds.ols("b ~ x", data.assign(b=(data.y > 0).astype(float))).fit()
    np.testing.assert_allclose(flags.params, numbers.params, rtol=1e-13)


def test_start_params_are_used_when_a_column_is_dropped(data):
    frame = data.assign(x2=2 * data.x)
    best = ds.poisson("k ~ x", data).fit().params
    with pytest.warns(RankWarning, match="x2"):
        found = ds.poisson("k ~ x + x2", frame).fit(start_params=[*best, 0.0])
    assert found.mle_retvals["iterations"] == 1
    assert "x2: linear combinations" in str(found.summary())


def test_a_warning_points_at_the_callers_line(data):
    with pytest.warns(RankWarning) as caught:
        ds.ols("y ~ x + x2", data.assign(x2=2 * data.x)).fit()
    assert caught[0].filename == __file__
