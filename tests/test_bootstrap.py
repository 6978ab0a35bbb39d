"""Batched replicates against fits one by one, and intervals against definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from deepstats import GLM, OLS
from deepstats.bootstrap import _Plan, bootstrap
from deepstats.errors import ConvergenceWarning, ModelError
from deepstats.models.beta import BetaModel
from deepstats.models.categorical import MultinomialModel, OrdinalModel
from deepstats.models.counts import NegativeBinomialModel, ZeroInflatedModel
from deepstats.models.quantile import QuantReg

MODELS = {
    "ols": lambda d, **o: OLS("y ~ x + a", d, **o),
    "wls": lambda d, **o: OLS("y ~ x + a", d, weights="w", **o),
    "poisson": lambda d, **o: GLM("count ~ x + a", d, family="poisson", **o),
    "offset": lambda d, **o: GLM(
        "count ~ x + offset(log(e))", d, family="poisson", weights="w", **o
    ),
    "probit": lambda d, **o: GLM("hit ~ x", d, family="binomial", link="probit", **o),
    "gamma": lambda d, **o: GLM("positive ~ x", d, family="gamma", link="log", **o),
    "nb2": lambda d, **o: NegativeBinomialModel("count ~ x", d, **o),
    "nb1": lambda d, **o: NegativeBinomialModel("count ~ x", d, loglike="nb1", **o),
    "ordinal": lambda d, **o: OrdinalModel("c ~ x + z", d, **o),
    "multinomial": lambda d, **o: MultinomialModel("a ~ x", d, **o),
    "beta": lambda d, **o: BetaModel("share ~ x | z", d, **o),
}


@pytest.fixture
def data(small, rng):
    spread = rng.gamma(2, 0.5, len(small))
    return small.assign(count=rng.poisson(small["count"] * spread))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["pairs", "cluster"])
def test_replicates_are_the_fits_of_their_weights(data, name, kind):
    fit = MODELS[name](data).fit()
    plan = _Plan.of(fit, kind, "g" if kind == "cluster" else None)
    generator = torch.Generator().manual_seed(3)
    counts = plan._counts(2, generator)
    if plan.base.weights is not None:
        counts = counts / plan.base.weights
    options = {} if kind == "pairs" else {"groups": "g"}
    found = bootstrap(fit, kind, 2, seed=3, **options)
    for row, weights in zip(found.params.to_numpy(), counts.numpy(), strict=True):
        alone = MODELS[name](data, freq_weights=np.round(weights)).fit()
        np.testing.assert_allclose(row, alone.params, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["ols", "wls", "poisson", "gamma", "nb2", "ordinal",
                                  "multinomial", "beta", "probit"])  # fmt: skip
def test_parametric_replicates_are_the_fits_of_their_responses(data, name):
    fit = MODELS[name](data).fit()
    plan = _Plan.of(fit, "parametric", None)
    drawn = plan._sampled(2, torch.Generator().manual_seed(4)).numpy()
    found = bootstrap(fit, "parametric", 2, seed=4)
    for row, y in zip(found.params.to_numpy(), drawn, strict=True):
        values = (
            np.array(sorted(data["a"].unique()))[y.astype(int)]
            if name == "multinomial"
            else y
        )
        alone = MODELS[name](data.assign(**{fit.response_name: values})).fit()
        np.testing.assert_allclose(row, alone.params, rtol=1e-6, atol=1e-8)


def test_standard_errors_are_those_of_the_sandwich(docvisits):
    formula = "drvisits ~ private + age + chronic"
    fit = GLM(formula, docvisits, family="poisson").fit("HC0")
    found = fit.bootstrap(replications=600, seed=1)
    # 600 replicates: a standard error of a standard error is 3%
    np.testing.assert_allclose(found.bse, fit.bse, rtol=0.12)
    assert found.failed == 0 and len(found.params) == 600
    np.testing.assert_allclose(found.cov(), np.cov(found.params.T))
    assert (found.bias.abs() < 0.2 * found.bse).all()


def test_clusters_and_residuals_have_their_standard_errors(petersen):
    data = petersen[petersen["firm"] <= 150]
    fit = OLS("y ~ x", data).fit("cluster", {"groups": "firm"})
    found = fit.bootstrap("cluster", 500, groups="firm", seed=1)
    np.testing.assert_allclose(found.bse, fit.bse, rtol=0.15)
    plain = OLS("y ~ x", data).fit()
    residual = plain.bootstrap("residual", 500, seed=1)
    np.testing.assert_allclose(residual.bse, plain.bse, rtol=0.15)


def test_intervals_are_their_definitions(data):
    fit = OLS("y ~ x", data).fit()
    found = fit.bootstrap(replications=400, seed=2)
    values, estimate = found.params["x"].to_numpy(), fit.params["x"]
    low, high = np.quantile(values, [0.05, 0.95])
    np.testing.assert_allclose(found.conf_int(0.1).loc["x"], [low, high])
    basic = found.conf_int(0.1, "basic").loc["x"]
    np.testing.assert_allclose(basic, [2 * estimate - high, 2 * estimate - low])
    half = 1.6448536269514722 * values.std(ddof=1)
    normal = found.conf_int(0.1, "normal").loc["x"]
    np.testing.assert_allclose(normal, [estimate - half, estimate + half])
    frame = found.summary_frame(0.1, "bca")
    assert (frame["conf_low"] < frame["estimate"]).all()


def test_bca_matches_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    y = rng.gamma(1.5, size=60)
    fit = OLS("y ~ 1", pd.DataFrame({"y": y})).fit()
    found = fit.bootstrap(replications=20_000, seed=5).conf_int(method="bca")
    theirs = stats.bootstrap((y,), np.mean, n_resamples=20_000, rng=6, method="BCa")
    spread = y.std() / len(y) ** 0.5
    np.testing.assert_allclose(
        found.loc["Intercept"], list(theirs.confidence_interval), atol=0.06 * spread
    )


def test_a_statistic_in_place_of_parameters(data):
    fit = GLM("count ~ x + z", data, family="poisson").fit()
    found = fit.bootstrap(replications=50, seed=1, statistic=lambda p: p["x"] / p["z"])
    whole = fit.bootstrap(replications=50, seed=1)
    np.testing.assert_allclose(
        found.params["statistic"], whole.params["x"] / whole.params["z"]
    )
    assert found.estimate["statistic"] == fit.params["x"] / fit.params["z"]
    assert np.isfinite(found.conf_int(method="bca").to_numpy()).all()


def test_frequency_weights_draw_observations(data):
    short = OLS("y ~ x", data, freq_weights="f").fit()
    plan = _Plan.of(short, "pairs", None)
    counts = plan._counts(20, torch.Generator().manual_seed(1))
    assert (counts.sum(1) == data["f"].sum()).all()
    long = OLS("y ~ x", data.loc[data.index.repeat(data["f"])]).fit()
    a, b = (f.bootstrap(replications=800, seed=1) for f in (short, long))
    np.testing.assert_allclose(a.bse, b.bse, rtol=0.15)
    np.testing.assert_allclose(a.acceleration, b.acceleration, rtol=1e-8)


def test_seeds_and_pieces(data, monkeypatch):
    fit = GLM("count ~ x", data, family="poisson").fit()
    one, again = (fit.bootstrap(replications=20, seed=9).params for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(fit.bootstrap(replications=20, seed=10).params)
    monkeypatch.setattr("deepstats.batched._PIECE", 640)
    pieces = fit.bootstrap(replications=20, seed=9).params
    pd.testing.assert_frame_equal(one, pieces, rtol=1e-10)


def test_replicates_without_a_maximum_are_counted(rng):
    x = np.arange(12.0)
    data = pd.DataFrame({"x": x, "y": (x > 5) ^ (x == 4) ^ (x == 7)}).astype(float)
    fit = GLM("y ~ x", data, family="binomial").fit()
    with pytest.warns(ConvergenceWarning, match="did not converge and are left out"):
        found = fit.bootstrap(replications=100, seed=1)
    assert found.failed > 0 and len(found.params) == 100 - found.failed
    assert np.isfinite(found.params.to_numpy()).all()


def test_zero_inflated_models(data):
    zeros = data.assign(count=data["count"].where(data["g"] > 3, 0))
    fit = ZeroInflatedModel("count ~ x", zeros).fit()
    found = fit.bootstrap(replications=60, seed=1)
    assert list(found.params.columns) == fit.names
    assert len(found.params) > 50


def test_what_cannot_be_bootstrapped(data):
    ols, counts = (
        OLS("y ~ x", data).fit(),
        GLM("count ~ x", data, family="poisson").fit(),
    )
    with pytest.raises(ValueError, match="kind must be"):
        ols.bootstrap("wild")
    with pytest.raises(ValueError, match="groups= goes with"):
        ols.bootstrap("cluster")
    with pytest.raises(ValueError, match="replications"):
        ols.bootstrap(replications=1)
    with pytest.raises(ModelError, match="residual bootstrap is for least squares"):
        counts.bootstrap("residual")
    weighted = GLM("count ~ x", data, family="poisson", weights="w").fit()
    with pytest.raises(ModelError, match="precision weights"):
        weighted.bootstrap("parametric")
    quasi = GLM("count ~ x", data, family="quasipoisson").fit()
    with pytest.raises(ModelError, match="quasi-likelihood"):
        quasi.bootstrap("parametric")
    with pytest.raises(ModelError):
        QuantReg("y ~ x", data).fit().bootstrap(replications=5)
    with pytest.raises(ValueError, match="bca intervals need"):
        ols.bootstrap("residual", 20, seed=1).conf_int(method="bca")
