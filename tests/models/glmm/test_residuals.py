"""Residuals of generalised linear mixed models, and tests by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from deepstats.errors import ModelError
from deepstats.families import get_family
from deepstats.models.glmm import MixedGLM
from deepstats.models.glmm.residuals import discrete, distribution

from .data import fit, load
from .panels import fitted, panel

ETA = torch.tensor([-0.4, 0.3, 1.1], dtype=torch.float64)
SECOND = torch.tensor([0.2, -0.3, 0.6], dtype=torch.float64)


@pytest.fixture(scope="module")
def cbpp():
    return fit("glmmTMB.cbpp_binomial")


# -- distribution functions ------------------------------------------------------------


def frozen(name):
    """Return scipy's distribution at `ETA` and `SECOND`, and responses in its range."""
    mu, s = np.exp(ETA.numpy()), np.exp(SECOND.numpy())
    p = 1 / (1 + np.exp(-ETA.numpy()))
    counts, shares = [0.0, 2.0, 5.0], [0.2, 0.7, 0.9]
    return {
        "poisson": (stats.poisson(mu), counts),
        "nb2": (stats.nbinom(1 / s, 1 / (1 + s * mu)), counts),
        "nb1": (stats.nbinom(mu / s, 1 / (1 + s)), counts),
        "gaussianml": (stats.norm(ETA.numpy(), s), [0.1, -0.5, 2.0]),
        "gammaml": (stats.gamma(s, scale=mu / s), [0.3, 1.0, 4.0]),
        "beta": (stats.beta(p * s, (1 - p) * s), shares),
    }[name]


@pytest.mark.parametrize(
    "name", ["poisson", "nb2", "nb1", "gaussianml", "gammaml", "beta"]
)
def test_distribution_functions_are_scipys(name):
    family, (law, y) = get_family(name), frozen(name)
    etas = (ETA, SECOND)[: len(family.predictors)]
    y = torch.tensor(y, dtype=torch.float64)
    below, at = distribution(family, y, etas)
    np.testing.assert_allclose(at, law.cdf(y.numpy()), rtol=1e-10)
    before = y.numpy() - 1 if discrete(family) else y.numpy()
    np.testing.assert_allclose(below, law.cdf(before), rtol=1e-10, atol=1e-15)


def test_distribution_functions_of_t_and_of_trials():
    family, y = get_family("t"), torch.tensor([0.1, -0.5, 2.0], dtype=torch.float64)
    nu = family.links[2].link(torch.full((3,), 4.0, dtype=torch.float64))
    _, at = distribution(family, y, (ETA, SECOND, nu))
    law = stats.t(4, ETA.numpy(), np.exp(SECOND.numpy()))
    np.testing.assert_allclose(at, law.cdf(y.numpy()), rtol=1e-10)
    size = torch.tensor([3.0, 7.0, 10.0], dtype=torch.float64)
    yes, p = np.array([0, 3, 10]), 1 / (1 + np.exp(-ETA.numpy()))
    phi = np.exp(SECOND.numpy())
    laws = {
        "binomial": stats.binom(size.numpy(), p),
        "betabinomial": stats.betabinom(size.numpy().astype(int), p * phi,
                                        (1 - p) * phi),
    }  # fmt: skip
    for name, law in laws.items():
        family = get_family(name)
        etas = (ETA, SECOND)[: len(family.predictors)]
        below, at = distribution(family, torch.from_numpy(yes) / size, etas, size)
        np.testing.assert_allclose(at, law.cdf(yes), rtol=1e-10)
        np.testing.assert_allclose(below, law.cdf(yes - 1), rtol=1e-10, atol=1e-15)


def test_distribution_functions_with_excess_zeros():
    y = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    mu, p = np.exp(ETA.numpy()), 1 / (1 + np.exp(-SECOND.numpy()))
    law = stats.poisson(mu)
    _, at = distribution(get_family("zip"), y, (ETA, SECOND))
    np.testing.assert_allclose(at, p + (1 - p) * law.cdf(y.numpy()))
    _, at = distribution(get_family("hurdle"), y, (ETA, SECOND))
    positive = (law.cdf(y.numpy()) - law.pmf(0)) / law.sf(0)
    np.testing.assert_allclose(at, 1 - p + p * positive)


# -- quantile residuals ----------------------------------------------------------------


def test_quantile_residuals_integrate_over_random_effects():
    results, data = fitted("poisson"), panel()
    u = results.resid_quantile(5, scale="uniform").to_numpy()
    jump = np.random.default_rng(5).uniform(size=len(data))
    eta = results.predict(re_form="none", which="link").to_numpy()
    sd = float(results.varcorr["sdcor"].iloc[0])
    for row in (0, 7, 20):
        y = int(data["y"][row])

        def probability(b, row=row, y=y):
            law = stats.poisson(np.exp(eta[row] + b))
            value = law.cdf(y - 1) + jump[row] * law.pmf(y)
            return value * stats.norm.pdf(b, scale=sd)

        expected, _ = integrate.quad(probability, -10 * sd, 10 * sd)
        # 40 points of quadrature over a step that is steep for large counts.
        assert u[row] == pytest.approx(expected, abs=2e-5)
    normal = results.resid_quantile(5)
    np.testing.assert_allclose(normal, stats.norm.ppf(u), atol=1e-9)


def test_quantile_residuals_given_the_modes():
    results, data = fitted("nb2"), panel()
    u = results.resid_quantile(2, re_form=None, scale="uniform").to_numpy()
    mu, a = results.fittedvalues.to_numpy(), results.params["alpha"]
    law = stats.nbinom(1 / a, 1 / (1 + a * mu))
    y = data["y"].to_numpy()
    low, high = law.cdf(y - 1), law.cdf(y)
    assert ((u >= low - 1e-12) & (u <= high + 1e-12)).all()


def test_simulation_agrees_with_the_exact_distribution():
    results = fitted("zip")
    exact = results.resid_quantile(1, scale="uniform")
    ranks = results.resid_quantile(1, method="simulation", nsim=2000, scale="uniform")
    # Both have jumps of their own; the ranks' error is sqrt(p (1 - p) / 2000), and
    # the jumps' uniform numbers differ.
    y = panel()["y"]
    large = y > 8
    np.testing.assert_allclose(ranks[large], exact[large], atol=0.08)
    assert abs(ranks.mean() - exact.mean()) < 0.03


def test_quantile_residuals_are_normal_where_the_model_holds():
    results = fitted("poisson")
    data = panel().assign(y=results.simulate(1, seed=11)["sim_1"])
    again = MixedGLM(results.formula_text, data, family="poisson", exposure="t").fit()
    values = again.resid_quantile(3, re_form=None)
    assert stats.kstest(values, "norm").pvalue > 0.01
    wrong = MixedGLM("y ~ x + (1 | g)", panel(), family="poisson").fit()
    assert stats.kstest(wrong.resid_quantile(3), "norm").pvalue < 0.01


def test_quantile_residuals_refuse_bad_options(cbpp):
    with pytest.raises(ValueError, match="method must be"):
        cbpp.resid_quantile(method="guess")
    with pytest.raises(ValueError, match="scale must be"):
        cbpp.resid_quantile(scale="log")
    with pytest.raises(ValueError, match="at least 20"):
        cbpp.resid_quantile(method="simulation", nsim=3)


# -- Pearson and deviance --------------------------------------------------------------


def test_pearson_and_deviance_residuals(cbpp):
    y, n = load("cbpp")["incidence"].to_numpy(), load("cbpp")["size"].to_numpy()
    p = cbpp.fittedvalues.to_numpy()
    pearson = (y - n * p) / np.sqrt(n * p * (1 - p))
    np.testing.assert_allclose(cbpp.resid_pearson, pearson)
    deviance = 2 * (stats.binom.logpmf(y, n, y / n) - stats.binom.logpmf(y, n, p))
    expected = np.sign(y - n * p) * np.sqrt(deviance)
    np.testing.assert_allclose(cbpp.resid_deviance, expected, atol=1e-7)
    with pytest.raises(ModelError, match="no deviance"):
        _ = fitted("nb2").resid_deviance


def test_residuals_of_a_dispersion_with_predictors():
    results = fit("glmmTMB.sleepstudy_disp")
    sigma = results.predict(which="dispersion")
    np.testing.assert_allclose(results.resid_pearson, results.resid / sigma)
    np.testing.assert_allclose(results.resid_deviance, results.resid)
    # The variance does not depend on the predictor that is integrated.
    found = results.dispersion_test(50, seed=1)
    m = results.predict(re_form="none")
    v = float(results.varcorr["vcov"].iloc[0]) + sigma**2
    assert found.statistic == pytest.approx(
        (((results.resid + results.fittedvalues) - m) ** 2 / v).mean()
    )


# -- tests -----------------------------------------------------------------------------


def test_overdispersion_and_excess_zeros_are_found():
    poisson = MixedGLM("y ~ x + (1 | g)", panel(), family="poisson", exposure="t").fit()
    found = poisson.dispersion_test(200, seed=1, re_form=None)
    assert found.ratio > 1.2
    assert found.pvalue < 0.02
    zeros = poisson.zero_inflation_test(200, seed=1, alternative="greater")
    assert zeros.statistic == (panel()["y"] == 0).sum()
    assert zeros.pvalue < 0.02
    assert "zeros" in repr(zeros)
    right = fitted("zip")
    assert right.zero_inflation_test(200, seed=1).pvalue > 0.05
    assert right.dispersion_test(200, seed=1).pvalue > 0.05


def test_the_dispersion_statistic_is_pearsons():
    results = fitted("poisson")
    found = results.dispersion_test(50, seed=1)
    m = results.predict(marginal=True).to_numpy()
    v = m + m**2 * np.expm1(float(results.varcorr["vcov"].iloc[0]))
    expected = ((panel()["y"] - m) ** 2 / v).mean()
    assert found.statistic == pytest.approx(expected, rel=1e-8)
    kept = results.dispersion_test(50, seed=1, re_form=None)
    assert kept.statistic == pytest.approx((results.resid_pearson**2).mean(), rel=1e-8)
    assert len(found.simulated) == 50


def test_simulated_tests_refuse_bad_options(cbpp):
    with pytest.raises(ValueError, match="alternative"):
        cbpp.dispersion_test(alternative="more")
    with pytest.raises(ValueError, match="nsim"):
        cbpp.zero_inflation_test(5)
    with pytest.raises(ModelError, match="never exactly zero"):
        fit("glmmTMB.sleepstudy_disp").zero_inflation_test()


# -- pictures --------------------------------------------------------------------------


def test_residuals_are_drawn():
    plt = pytest.importorskip("matplotlib.pyplot")
    results = fitted("zip")
    left, right = results.plot_residuals(1)
    values = np.sort(results.resid_quantile(1))
    drawn = left.collections[-1].get_offsets()[:, 1]
    np.testing.assert_allclose(np.sort(drawn), values)
    against = right.collections[0].get_offsets()
    fixed = results.predict(marginal=True)
    np.testing.assert_allclose(np.sort(against[:, 0]), np.sort(fixed))
    assert right.get_xlabel() == "Predicted y"
    _, axes = plt.subplots(1, 2)
    kept = results.plot_residuals(1, re_form=None, axes=axes)
    assert kept[0] is axes[0]
    plt.close("all")


def test_pictures_are_of_quantile_residuals_and_of_effects():
    plt = pytest.importorskip("matplotlib.pyplot")
    results = fitted("zip")
    ax = results.plot.residuals(seed=1, scale_location=True)
    drawn = ax.collections[0].get_offsets()[:, 1]
    expected = np.sqrt(np.abs(results.resid_quantile(1)))
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected))
    ax = results.plot.qq(seed=1)
    drawn = np.sort(ax.collections[-1].get_offsets()[:, 1])
    np.testing.assert_allclose(drawn, np.sort(results.resid_quantile(1)))
    ax = results.plot.caterpillar("h")
    drawn = ax.lines[-1].get_xdata()
    np.testing.assert_allclose(
        np.sort(drawn), np.sort(results.ranef()["h"]["Intercept"])
    )
    axes = results.plot.panels(seed=1)
    assert axes.shape == (2, 2)
    assert axes[1, 1].get_title(loc="left") == "Intercept | g"
    plt.close("all")
