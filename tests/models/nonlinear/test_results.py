"""What results give back: estimates, predictions, tests, pages, pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import deepstats as ds
from deepstats.models.nonlinear import NonlinearMixedResults

from .data import fit, load, simulated


def test_estimates_and_their_names():
    results = fit("orange")
    assert isinstance(results, NonlinearMixedResults)
    assert results.names == ["Asym", "xmid", "scal"]
    assert results.method == "laplace"
    assert results.aic == pytest.approx(-2 * results.llf + 2 * 5)
    assert results.ngroups == {"Tree": 5}
    interval = results.conf_int()
    half = 1.959963984540054 * results.bse
    np.testing.assert_allclose(interval[1] - results.params, half)
    covariates = fit("soybean_covariates")
    assert covariates.names[:2] == ["Asym:Intercept", "Asym:Year[T.1989]"]
    assert list(covariates.ranef()["Plot"]) == ["Asym:Intercept"]
    total = covariates.coef()["Plot"]["Asym:Intercept"]
    alone = covariates.ranef()["Plot"]["Asym:Intercept"]
    np.testing.assert_allclose(total - alone, covariates.params["Asym:Intercept"])


def test_standard_errors_of_random_effects_are_those_of_the_joint_hessian():
    results = fit("orange")
    frame = results.random_params()
    sd, sigma = frame["estimate"]
    k, joint = len(results.mixed.x), results.joint_cov
    assert joint is not None
    assert k == 1
    # sd = sigma sqrt(x U^2): relative changes add up.
    gradient = np.array([0.5 / results.mixed.x[0], 1.0])
    part = joint[np.ix_([0, -1], [0, -1])]
    assert frame["std_error"][0] == pytest.approx(
        sd * np.sqrt(gradient @ part @ gradient)
    )
    assert frame["std_error"][1] == pytest.approx(sigma * np.sqrt(joint[-1, -1]))
    linear = fit("orange", "lindstrom-bates").random_params()
    np.testing.assert_allclose(linear["std_error"], frame["std_error"], rtol=0.02)


@pytest.mark.parametrize("method", ["laplace", "lindstrom-bates"])
def test_predictions_of_the_data_and_of_new_rows(method):
    results, data = fit("theoph_weight", method), load("Theoph")
    np.testing.assert_allclose(results.predict(), results.fittedvalues)
    np.testing.assert_allclose(results.predict(data), results.fittedvalues, rtol=1e-10)
    population = results.predict(data.drop(columns=["Subject", "conc"]), re_form="none")
    np.testing.assert_allclose(population, results.augment()[".fixed"])
    one = data.iloc[[5, 40]].assign(Time=[1.0, 2.0])
    phi = results.curve_parameters().iloc[[5, 40]].to_numpy()
    Ke, Ka, Cl = np.exp(phi).T
    dose, time = one["Dose"].to_numpy(), one["Time"].to_numpy()
    by_hand = (
        dose * Ke * Ka / Cl / (Ka - Ke) * (np.exp(-Ke * time) - np.exp(-Ka * time))
    )
    np.testing.assert_allclose(results.predict(one), by_hand)
    new = one.assign(Subject=["x", "y"])
    np.testing.assert_allclose(
        results.predict(new, allow_new_levels=True),
        results.predict(new, re_form="none"),
    )
    holes = one.assign(Time=[np.nan, 2.0])
    assert results.predict(holes).isna().tolist() == [True, False]


def test_prediction_keeps_the_factors_that_are_named():
    results = fit("wafer")
    data = load("Wafer")
    inner = results.predict(data, re_form="Wafer")
    assert not np.allclose(inner, results.predict(re_form="none"))
    both = results.predict(data, re_form=["Wafer", "Wafer:Site"])
    np.testing.assert_allclose(both, results.fittedvalues, rtol=1e-9)


def test_interval_is_the_delta_method():
    results = fit("orange")
    found = results.predict({"age": [300.0]}, re_form="none", interval="confidence")

    def curve(beta):
        return beta[0] / (1 + torch.exp((beta[1] - 300) / beta[2]))

    exact = results.delta_method(curve)
    assert found["mean"][0] == pytest.approx(exact["estimate"].iloc[0])
    assert found["mean_se"][0] == pytest.approx(exact["std_error"].iloc[0])
    assert found["mean_ci_lower"][0] == pytest.approx(exact["conf_low"].iloc[0])


def test_simulated_responses_have_the_models_moments():
    results = fit("orange")
    draws = results.simulate(4000, seed=1)
    assert draws.shape == (35, 4000)
    pd.testing.assert_frame_equal(draws, results.simulate(4000, seed=1))
    rows = results.model.rows
    _, D = rows.slopes(rows.fixed(results.solved.beta))
    sd = results.varcorr["sdcor"].to_numpy()
    expected = (
        D[:, 0].numpy() ** 2 * sd[0] ** 2 + sd[1] ** 2
    )  # Linear in the asymptote.
    np.testing.assert_allclose(draws.var(axis=1), expected, rtol=0.1)
    held = results.simulate(4000, seed=1, re_form=None)
    np.testing.assert_allclose(held.var(axis=1), sd[1] ** 2, rtol=0.12)
    np.testing.assert_allclose(held.mean(axis=1), results.fittedvalues, atol=1.0)


def test_likelihood_ratios():
    data = load("Orange")
    text = "circumference ~ SSlogis(age, Asym, xmid, scal)"
    alone, one, two = ds.nls(text, data).fit(), fit("orange"), fit("orange_two")
    test = one.compare_lr_test(alone)
    assert test.statistic == pytest.approx(2 * (one.llf - alone.llf))
    assert test.naive_pvalue == pytest.approx(2 * test.pvalue)
    assert "a variance is zero" in test.name
    assert two.compare_lr_test(alone).variances == 2
    table = ds.anova(alone, two, one)
    assert table["npar"].tolist() == [4, 5, 6]
    assert table["Chisq"].iloc[2] == pytest.approx(2 * (two.llf - one.llf))
    full, small = fit("theoph_weight"), fit("theoph")
    test = full.compare_lr_test(small)
    assert test.df_num == 1
    assert test.variances == 0


def test_terms_of_every_parameter_are_tested():
    results = fit("soybean_covariates")
    table = results.anova()
    assert list(table.index) == ["Asym:Year", "Asym:Variety", "xmid:Year"]
    names = [n for n in results.names if n.startswith("xmid:Year")]
    by_hand = results.wald_test(
        np.eye(len(results.names))[[results.names.index(n) for n in names]]
    )
    assert table.loc["xmid:Year", "Chisq"] == pytest.approx(by_hand.statistic)
    assert table["Df"].tolist() == [2, 1, 2]
    # A balanced design would give the same; this one does not.
    assert results.anova(1).loc["Asym:Year", "Chisq"] != table.loc["Asym:Year", "Chisq"]


def test_weights_are_the_inverse_variances_of_rows():
    data = simulated(4, groups=8)
    twice = pd.concat([data, data], ignore_index=True)
    text = "y ~ SSlogis(x, Asym, xmid, scal)"
    heavy = ds.nls(text, data, weights=np.full(len(data), 2.0)).fit()
    both = ds.nls(text, twice).fit()
    np.testing.assert_allclose(heavy.params, both.params, rtol=1e-6)
    # A row of weight two, and two rows: one sum of squares, other degrees of freedom.
    n, p = len(data), 3
    ratio = np.sqrt((2 * n - p) / (n - p))
    np.testing.assert_allclose(heavy.bse / both.bse, ratio, rtol=1e-5)
    free = ds.nlmer(text, data, random="Asym ~ 1 | g")
    tied = ds.nlmer(text, data, random="Asym ~ 1 | g", weights=np.full(len(data), 4.0))
    for method in ("laplace", "lindstrom-bates"):
        one, four = free.fit(method), tied.fit(method)
        assert four.llf == pytest.approx(one.llf, rel=1e-8)
        assert four.sigma == pytest.approx(2 * one.sigma, rel=1e-5)
        np.testing.assert_allclose(four.params, one.params, rtol=1e-5)


def test_functions_of_the_caller_are_as_good_as_our_own():
    def growth(x, top, middle, scale):
        return top * torch.sigmoid((x - middle) / scale)

    data = load("Orange")
    start = {"top": 190, "middle": 700, "scale": 350}
    own = ds.nlmer(
        "circumference ~ growth(age, top, middle, scale)", data,
        random="top ~ 1 | Tree", start=start, context={"growth": growth},
    ).fit()  # fmt: skip
    text = "circumference ~ top / (1 + exp((middle - age) / scale))"
    plain = ds.nlmer(text, data, random="top ~ 1 | Tree", start=start).fit()
    for results in (own, plain):
        assert results.llf == pytest.approx(fit("orange").llf, rel=1e-9)
        np.testing.assert_allclose(results.params, fit("orange").params, rtol=1e-5)
        np.testing.assert_allclose(results.bse, fit("orange").bse, rtol=1e-4)


def test_names_in_backticks_are_not_read_as_operators():
    frame = simulated(1)
    plain = ds.nlmer(
        "y ~ SSlogis(x^1, Asym, xmid, scal)", frame, random="Asym ~ 1 | g"
    ).fit()
    odd = frame.rename(columns={"x": "x^1", "g": "a~g", "y": "y ~ z"})
    results = ds.nlmer(
        "`y ~ z` ~ SSlogis(`x^1`, Asym, xmid, scal)", odd, random="Asym ~ 1 | `a~g`"
    ).fit()
    assert results.llf == plain.llf
    new = results.predict(odd.head(3)).to_numpy()
    np.testing.assert_allclose(new, results.fittedvalues[:3], rtol=1e-12)


def test_start_values_by_coefficient():
    given = {"Asym:Intercept": 20.0, "xmid": 55.0, "scal": 8.5}
    model = ds.nlmer(
        "weight ~ SSlogis(Time, Asym, xmid, scal)", load("Soybean"),
        random="Asym ~ 1 | Plot", fixed="Asym ~ Variety", start=given,
    )  # fmt: skip
    begin = dict(zip(model.labels, model.starts().tolist(), strict=True))
    assert begin["Asym:Intercept"] == 20.0
    assert begin["xmid"] == 55.0
    assert begin["Asym:Variety[T.P]"] != 0.0  # By least squares.


def test_rows_with_missing_values_are_left_out():
    data = load("Orange")
    data.loc[[0, 9], "circumference"] = np.nan
    data.loc[20, "age"] = np.nan
    text = "circumference ~ SSlogis(age, Asym, xmid, scal)"
    results = ds.nlmer(text, data, random="Asym ~ 1 | Tree").fit()
    assert results.nobs == 32
    assert "3 rows with missing values" in results.summary().as_text()
    assert list(results.fittedvalues.index) == [
        j for j in range(35) if j not in (0, 9, 20)
    ]


def test_page_names_the_approximation():
    text = fit("theoph_correlated").summary().as_text()
    for words in ("Laplace (expected)", "Groups: Subject", "Corr", "lCl", "Residual"):
        assert words in text
    page = fit("orange", "lindstrom-bates", reml=True).summary()
    assert "REML, Lindstrom-Bates" in page.as_text()
    assert "<table" in page.as_html()
    assert "tabular" in page.as_latex()
    glance = fit("orange").glance()
    assert glance["approximation"].iloc[0] == "ML, Laplace (expected)"


def test_page_of_nonlinear_regression():
    results = ds.nls(
        "circumference ~ SSlogis(age, Asym, xmid, scal)", load("Orange")
    ).fit()
    text = results.summary().as_text()
    assert "least squares" in text
    assert results.use_t
    assert results.simulate(3, seed=0).shape == (35, 3)
    frame = results.predict({"age": [300.0]}, interval="confidence")
    assert frame["mean_ci_lower"][0] < frame["mean"][0] < frame["mean_ci_upper"][0]


def test_pictures():
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    results = fit("theoph")
    axes = results.plot.curves(top=6, columns=3)
    assert len(axes) == 6
    first = axes[0]
    assert first.get_title(loc="left") == "1"
    line = next(line for line in first.lines if line.get_label() == "group")
    x, y = line.get_data()
    data = load("Theoph").query("Subject == '1'").iloc[[0] * len(x)].assign(Time=x)
    np.testing.assert_allclose(y, results.predict(data))
    short = results.plot.curves(top=5, columns=3)
    assert [ax.get_xlabel() for ax in short] == ["", "", "Time", "Time", "Time"]
    with pytest.raises(ValueError, match="not a covariate"):
        results.plot.curves("Wt")
    with pytest.raises(ValueError, match="no grouping factor"):
        results.plot.curves(factor="g")
    results.plot.residuals()
    results.plot.caterpillar(term="lKa")
    results.plot.qq()
    plt.close("all")
