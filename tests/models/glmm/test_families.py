"""Families and links beside glmmTMB and ordinal::clmm, and what each result is.

The numbers are made by ``tests/reference/families.R``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, special, stats

import deepstats as ds
from deepstats.errors import BoundaryWarning, DesignError, ModelError
from deepstats.families import StudentT, Tweedie, TweedieML, get_family
from deepstats.families.tweedie import tweedie_cdf, tweedie_normaliser
from deepstats.models.glmm import MixedGLM, MixedGLMResults
from deepstats.models.glmm.rows import RowDensity

from .families import simulated

REFERENCE = json.loads(
    (Path(__file__).parents[2] / "reference" / "families.json").read_text()
)
#: By the record's name: formula, family, further arguments.
CASES: dict[str, tuple[str, Any, dict]] = {
    "tweedie": ("tweedie ~ x + (1 | g) + (1 | h)", "tweedie", {}),
    "tweedie, dispersion": (
        "tweedie ~ x + (1 | g)", "tweedie", {"disp_formula": "~ x"}
    ),
    "ztp": ("above ~ x + (1 | g)", "ztp", {}),
    "ztnb2": ("above ~ x + (1 | g) + (1 | h)", "ztnb2", {}),
    "ztnb1": ("above ~ x + (1 | g)", "ztnb1", {}),
    "poisson sqrt": ("counts ~ x + (1 | g)", "poisson", {"link": "sqrt"}),
    "nb2 sqrt": ("counts ~ x + (1 | g)", "nb2", {"link": "sqrt"}),
    "gamma log": ("positive ~ x + (1 | g) + (1 | h)", "gamma", {"link": "log"}),
    "gamma inverse": ("positive ~ x + (1 | h)", "gamma", {}),
    "gamma identity": ("positive ~ x + (1 | h)", "gamma", {"link": "identity"}),
    "gaussian log": ("positive ~ x + (1 | g)", "gaussian", {"link": "log"}),
    "binomial cloglog": (
        "yes ~ x + (1 | g) + (1 | h)", "binomial", {"link": "cloglog"}
    ),
    "binomial probit": ("yes ~ x + (1 | g) + (1 | h)", "binomial", {"link": "probit"}),
    "t": ("heavy ~ x + (1 | g)", "t", {}),
}  # fmt: skip


@lru_cache
def fit(name: str) -> MixedGLMResults:
    """Return the fit of a case."""
    formula, family, options = CASES[name]
    return ds.glmer(formula, simulated(), family=family, **options).fit()


@pytest.mark.parametrize("name", CASES)
def test_glmmtmb(name: str) -> None:
    """Log-likelihood, coefficients, errors and deviations are glmmTMB's."""
    theirs, results = REFERENCE[name], fit(name)
    assert results.converged
    assert results.llf == pytest.approx(theirs["loglik"], abs=1e-5)
    se = np.array(theirs["se"])
    off = (results.fe_params.to_numpy() - theirs["coef"]) / se
    assert np.abs(off).max() < 1e-3
    np.testing.assert_allclose(results.bse.to_numpy()[: len(se)], se, rtol=1e-3)
    np.testing.assert_allclose(results.varcorr["sdcor"], theirs["sd"], rtol=1e-3)


def test_dispersions() -> None:
    """Dispersion, power and degrees of freedom are glmmTMB's, on their own scales."""
    for name, labels in (("tweedie", ["phi", "power"]), ("t", ["sigma", "nu"])):
        found = fit(name).params[labels].to_numpy()
        np.testing.assert_allclose(found, REFERENCE[name]["extra"], rtol=1e-3)
    power = fit("tweedie, dispersion").params["power"]
    assert power == pytest.approx(REFERENCE["tweedie, dispersion"]["extra"][1], 1e-3)


@pytest.mark.parametrize("log_mean", [10, 16, 20])
def test_errors_of_counts_with_huge_means(log_mean: float) -> None:
    """Where counts say all of the groups' means, these are normal responses.

    The intercept's error is then the standard deviation over the root of the number of
    groups, that of the deviation itself over the root of twice their number; the
    slope's is a weighted regression's. Differences of gradients give four digits.
    """
    rng, groups = np.random.default_rng(0), 20
    g, x = np.repeat(np.arange(groups), 15), rng.normal(size=300)
    y = rng.poisson(np.exp(log_mean + 0.2 * x + 0.3 * rng.normal(size=groups)[g]))
    data = pd.DataFrame({"y": y, "x": x, "g": g.astype(str)})
    results = ds.glmer("y ~ x + (1 | g)", data, family="poisson").fit()
    assert results.converged
    sd = results.varcorr["sdcor"].iloc[0]
    # Not all at means of exp(10), where Laplace's weights differ by as much.
    rtol = 1e-3 if log_mean == 10 else 3e-4
    assert results.bse["Intercept"] == pytest.approx(sd / np.sqrt(groups), rel=rtol)
    error = results.random_params()["std_error"].iloc[0]
    assert error == pytest.approx(sd / np.sqrt(2 * groups), rel=2 * rtol)
    centres = np.array(
        [np.average(x[g == j], weights=y[g == j]) for j in range(groups)]
    )
    slope = 1 / np.sqrt((y * (x - centres[g]) ** 2).sum())
    assert results.bse["x"] == pytest.approx(slope, rel=rtol)


# -- known parameters ------------------------------------------------------------------


def test_known_power_is_the_profile() -> None:
    """At the estimated power the fit with a known one is the same, less a parameter."""
    free = fit("tweedie")
    family = Tweedie("log", float(free.params["power"]))
    known = ds.glmer(CASES["tweedie"][0], simulated(), family=family).fit()
    assert known.llf == pytest.approx(free.llf, abs=1e-7)
    assert list(known.params.index) == ["Intercept", "x", "phi"]
    lower = ds.glmer(
        CASES["tweedie"][0], simulated(), family=get_family("tweedie", power=1.4)
    ).fit()
    assert lower.llf < free.llf - 1


def test_known_degrees_of_freedom() -> None:
    """So it is with degrees of freedom; many of them make it normal."""
    formula, data = CASES["t"][0], simulated()
    free = fit("t")
    nu = float(free.params["nu"])
    known = ds.glmer(formula, data, family=get_family("t", nu=nu)).fit()
    assert known.llf == pytest.approx(free.llf, abs=1e-7)
    assert list(known.params.index) == ["Intercept", "x", "sigma"]
    normal = ds.glmer(formula, data, family="gaussian", link="identity").fit()
    many = ds.glmer(formula, data, family=get_family("t", nu=1e7)).fit()
    assert many.llf == pytest.approx(normal.llf, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "4", True])
def test_impossible_degrees_of_freedom(value: Any) -> None:
    with pytest.raises(ValueError, match="nu between 0 and inf"):
        StudentT(nu=value)


@pytest.mark.parametrize("value", [1.0, 2.0, 0.5])
def test_impossible_power(value: float) -> None:
    with pytest.raises(ValueError, match="power between 1 and 2"):
        TweedieML(power=value)


# -- the tweedie's density -------------------------------------------------------------


@pytest.mark.parametrize("power", [1.05, 1.3, 1.7, 1.95])
@pytest.mark.parametrize("phi", [0.05, 1.0, 20.0])
def test_tweedie_density_is_the_mixture(power: float, phi: float) -> None:
    """Density and distribution are sums of gammas, and integrate to one."""
    mu = 1.7
    rate = mu ** (2 - power) / (phi * (2 - power))
    shape, scale = (2 - power) / (power - 1), phi * (power - 1) * mu ** (power - 1)
    counts = np.arange(1, int(rate + 12 * np.sqrt(rate)) + 40)
    weights = stats.poisson.pmf(counts, rate)
    y = np.array([0.05, 0.5, 1.7, 4.0])
    each = stats.gamma(counts * shape, scale=scale)
    wanted = (weights * each.pdf(y[:, None])).sum(1)
    family = TweedieML(power=power)
    etas = [torch.full((4,), np.log(v), dtype=torch.float64) for v in (mu, phi)]
    found = family.log_prob(torch.from_numpy(y), *etas).exp().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-290)
    zero = family.log_prob(torch.zeros(4).double(), *etas).numpy()
    np.testing.assert_allclose(zero, -rate, rtol=1e-12)
    given = (torch.tensor(v, dtype=torch.float64) for v in (mu, phi))
    below, at = tweedie_cdf(torch.from_numpy(y), *given, power)
    wanted = np.exp(-rate) + (weights * each.cdf(y[:, None])).sum(1)
    np.testing.assert_allclose(at.numpy(), wanted, rtol=1e-8)
    assert torch.equal(below, at)


@pytest.mark.parametrize("power", [1.01, 1.5, 1.99, 1.9999])
@pytest.mark.parametrize("phi", [1e-3, 0.2])
def test_tweedie_series_is_summed_at_steps(power: float, phi: float) -> None:
    """Of up to ten million terms that count, a few hundred are computed."""
    y = np.array([0.03, 1.2, 40.0])
    given = (torch.from_numpy(y), torch.tensor(phi, dtype=torch.float64), power)
    alpha, logs = (2 - power) / (power - 1), []
    for value in y:
        centre = value ** (2 - power) / (phi * (2 - power))
        reach = int(12 * np.sqrt(centre) + 50)
        j = np.arange(max(1, int(centre) - reach), centre + reach)
        log_z = alpha * np.log(value / (power - 1)) - np.log(2 - power)
        log_z -= (1 + alpha) * np.log(phi)
        terms = j * log_z - special.gammaln(1 + j) - special.gammaln(alpha * j)
        logs.append(special.logsumexp(terms) - np.log(value))
    found = tweedie_normaliser(*given).numpy()
    np.testing.assert_allclose(found, logs, rtol=1e-14, atol=1e-11)


def _without_zeros(draw: Callable[..., np.ndarray], seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g, x = rng.integers(0, 20, 400), rng.normal(size=400)
    mu = np.exp(0.5 + 0.4 * x + rng.normal(0, 0.4, 20)[g])
    return pd.DataFrame({"y": draw(rng, mu), "x": x, "g": g})


def test_tweedie_without_zeros() -> None:
    """Gamma responses: a power near 2, and a likelihood no lower than the gamma's."""
    data = _without_zeros(lambda rng, mu: rng.gamma(3, mu / 3), 1)
    results = ds.glmer("y ~ x + (1 | g)", data, family="tweedie").fit()
    gamma = ds.glmer("y ~ x + (1 | g)", data, family="gamma", link="log").fit()
    assert results.converged
    assert 1.8 < results.params["power"] < 1.98
    assert 0 < results.llf - gamma.llf < 2
    np.testing.assert_allclose(results.fe_params, gamma.fe_params, atol=0.01)
    np.testing.assert_allclose(
        results.bse[["Intercept", "x"]], gamma.bse[["Intercept", "x"]], rtol=0.05
    )


def test_tweedie_at_the_end_of_its_powers() -> None:
    """Inverse Gaussian responses are beyond it: a warning, and the power's limit."""
    data = _without_zeros(lambda rng, mu: rng.wald(mu, 5 * mu), 3)
    model = ds.glmer("y ~ x + (1 | g)", data, family="tweedie")
    with pytest.warns(BoundaryWarning, match=r"runs to an end of its range.*gamma"):
        results = model.fit()
    assert results.params["power"] == pytest.approx(1.99, abs=1e-6)
    known = get_family("tweedie", power=1.99)
    held = ds.glmer("y ~ x + (1 | g)", data, family=known).fit()
    assert results.llf == pytest.approx(held.llf, abs=1e-6)
    labels = ["Intercept", "x", "phi"]
    np.testing.assert_allclose(results.params[labels], held.params[labels], rtol=1e-5)
    np.testing.assert_allclose(results.bse[labels], held.bse[labels], rtol=1e-3)


def test_tweedie_draws_have_its_moments() -> None:
    """Mean, variance and share of zeros of many draws."""
    family, n = TweedieML(), 200_000
    etas = [torch.full((n,), v, dtype=torch.float64) for v in (0.6, -0.2, 0.4)]
    y = family.sample(*etas, generator=torch.Generator().manual_seed(5))
    mean, variance = family.mean(*etas)[0], family.variance(*etas)[0]
    assert float(y.mean()) == pytest.approx(float(mean), rel=0.01)
    assert float(y.var()) == pytest.approx(float(variance), rel=0.02)
    zero = family.log_prob(torch.zeros(1).double(), *(e[:1] for e in etas)).exp()
    assert float((y == 0).double().mean()) == pytest.approx(float(zero), rel=0.02)


# -- inverse gaussian, by integration --------------------------------------------------


def _wald_by_integration(results: MixedGLMResults) -> float:
    """-2 log-likelihood at the estimates, every group's integral by scipy."""
    data = simulated()
    beta, phi = results.fe_params.to_numpy(), results.params["phi"]
    sd = results.varcorr["sdcor"].iloc[0]
    total = 0.0
    for _, rows in data.groupby("g"):
        y, x = rows["wald"].to_numpy(), rows["x"].to_numpy()

        def density(b, y=y, x=x):
            mu = np.exp(beta[0] + beta[1] * x + b)
            logs = stats.invgauss.logpdf(y, mu * phi, scale=1 / phi).sum()
            return np.exp(logs + stats.norm.logpdf(b, 0, sd) + 30)

        value, _ = integrate.quad(density, -4, 4, limit=400, epsabs=0, epsrel=1e-10)
        total += np.log(value) - 30
    return -2 * total


def test_inverse_gaussian_by_integration() -> None:
    """Quadrature is scipy's integral of scipy's density, and near Laplace's method."""
    model = ds.glmer(
        "wald ~ x + (1 | g)", simulated(), family="inversegaussian", link="log"
    )
    quadrature = model.fit(nagq=25)
    wanted = _wald_by_integration(quadrature)
    assert -2 * quadrature.llf == pytest.approx(wanted, abs=1e-5)
    laplace = model.fit()
    assert laplace.llf == pytest.approx(quadrature.llf, abs=1)
    np.testing.assert_allclose(laplace.params, quadrature.params, rtol=0.02)
    # The draws have 1/4, and the effects of h that are left out here.
    assert 0.25 < laplace.params["phi"] < 0.4


# -- information -----------------------------------------------------------------------

EXPECTED = {
    "nb2": ("counts ~ x + (1 | g)", "nb2", {}),
    "gamma": ("positive ~ x + (1 | g)", "gamma", {"link": "log"}),
    "inversegaussian": ("wald ~ x + (1 | g)", "inversegaussian", {"link": "log"}),
    "tweedie": ("tweedie ~ x + (1 | g)", "tweedie", {}),
    "gaussian log": ("positive ~ x + (1 | g)", "gaussian", {"link": "log"}),
    "poisson sqrt": ("counts ~ x + (1 | g)", "poisson", {"link": "sqrt"}),
    "loglog": ("yes ~ x + (1 | g)", "binomial", {"link": "loglog"}),
    "ordinal": ("level ~ x + (1 | g)", "ordinal", {"link": "cloglog"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_expected_information(name: str) -> None:
    """Weights are the mean of the observed ones over responses; fits are near."""
    formula, family, options = EXPECTED[name]
    model = ds.glmer(
        formula, simulated(), family=family, information="expected", **options
    )
    results = model.fit()
    observed = ds.glmer(formula, simulated(), family=family, **options).fit()
    assert results.converged
    assert 0 < abs(results.llf - observed.llf) < 1
    etas = tuple(e[:1].expand(100_000) for e in results.found.point.modes.etas)
    y = model.family.sample(*etas, generator=torch.Generator().manual_seed(3))
    weight = RowDensity(model.family, y, None, None).slopes(etas).weight
    expected = model.family.expected_information(*(e[:1] for e in etas))
    error = float(weight.std()) / np.sqrt(len(weight))
    assert abs(float(weight.mean() - expected)) < 4 * error


@pytest.mark.parametrize("family", ["nb1", "t", "zip", "beta", "betabinomial", "ztp"])
def test_no_expected_information(family: str) -> None:
    with pytest.raises(ModelError, match="no closed-form expected information"):
        MixedGLM("y ~ x + (1 | g)", simulated(), family=family, information="expected")


# -- what results say ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tweedie", "t", "gamma inverse", "ztnb2", "ig"])
def test_quantile_residuals_are_normal(name: str) -> None:
    """Given the modes of no effect, residuals of a true model are standard normal."""
    if name == "ig":
        model = ds.glmer(
            "wald ~ x + (1 | g) + (1 | h)", simulated(), family="inversegaussian",
            link="log",
        )  # fmt: skip
        results = model.fit()
    else:
        results = fit(name)
    if name == "gamma inverse":
        values = results.resid_quantile(seed=1, re_form=None)
    else:
        values = results.resid_quantile(seed=1)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.2
    assert values.std() == pytest.approx(1.0, abs=0.12)


def test_exact_residuals_are_those_of_simulation() -> None:
    """The tweedie's distribution function agrees with many draws."""
    results = fit("tweedie")
    exact = results.resid_quantile(seed=1, scale="uniform")
    drawn = results.resid_quantile(
        seed=1, scale="uniform", method="simulation", nsim=2000
    )
    positive = simulated()["tweedie"] > 0
    assert float((exact - drawn)[positive].abs().max()) < 0.06


def test_tweedie_results() -> None:
    """Every method has an answer, or says why not."""
    results = fit("tweedie")
    assert results.predict(which="dispersion").iloc[0] == results.params["phi"]
    assert results.predict(which="power").iloc[0] == pytest.approx(
        results.params["power"]
    )
    frame = results.predict(simulated().head(3), interval="prediction", seed=1)
    assert (frame["obs_ci_upper"] > frame["obs_ci_lower"]).all()
    zeros = results.zero_inflation_test(100, seed=1)
    assert zeros.statistic == (simulated()["tweedie"] == 0).sum()
    assert zeros.pvalue > 0.01
    assert results.dispersion_test(100, seed=1).pvalue > 0.01
    sim = results.simulate(2, seed=1)
    assert (sim.to_numpy() >= 0).all()
    assert (sim.to_numpy() == 0).any()
    assert np.isfinite(results.resid_deviance).all()
    assert "tweedie (log)" in results.summary().as_text()
    assert 0 < results.r2()["marginal"] < results.r2()["conditional"] < 1
    low, high = results.conf_int().loc["power"]
    assert 1 < low < results.params["power"] < high < 2


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "value", "text"),
    [
        ("gamma", -0.1, "gamma: 1 of 600 responses are zero or negative"),
        ("inversegaussian", 0.0, "inversegaussian: 1 of 600 .* zero or negative"),
        ("tweedie", -1.0, "tweedie: 1 of 600 responses are negative"),
        ("ztp", 0.0, "zero-truncated count is at least 1"),
        ("tweedie", np.inf, "infinite"),
    ],
)
def test_impossible_responses(family: str, value: float, text: str) -> None:
    data = simulated()
    column = "above" if family == "ztp" else "positive"
    data[column] = data[column].astype(float)
    data.loc[7, column] = value
    with pytest.raises(DesignError, match=text):
        ds.glmer(f"{column} ~ x + (1 | g)", data, family=family)


def test_tweedie_with_zeros_only() -> None:
    data = simulated()
    with pytest.raises(DesignError, match="nothing to explain"):
        ds.glmer("tweedie ~ x + (1 | g)", data.assign(tweedie=0.0), family="tweedie")


def test_multinomial_is_refused() -> None:
    with pytest.raises(ModelError, match="multinomial mixed models"):
        ds.glmer("level ~ x + (1 | g)", simulated(), family="multinomial")


# -- recovery --------------------------------------------------------------------------


def test_tweedie_recovers_what_was_simulated() -> None:
    """Over 8 data sets means of estimates are near the truth."""
    rng, found = np.random.default_rng(7), []
    g = np.repeat(np.arange(25), 20)
    for _ in range(8):
        x = rng.normal(size=500)
        mu = np.exp(0.4 + 0.5 * x + 0.6 * rng.normal(size=25)[g])
        jumps = rng.poisson(mu**0.5 / 0.5)
        y = rng.gamma(np.maximum(jumps, 1) * 1.0, 0.5 * mu**0.5) * (jumps > 0)
        data = pd.DataFrame({"y": y, "x": x, "g": g.astype(str)})
        results = ds.glmer("y ~ x + (1 | g)", data, family="tweedie").fit()
        found.append([*results.params, results.varcorr["sdcor"].iloc[0]])
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
    truth = np.array([0.4, 0.5, 1.0, 1.5, 0.6])
    # Maximum likelihood makes variances a little small: 25 groups.
    assert (np.abs(mean - truth) < 3.5 * error + [0, 0, 0, 0, 0.02]).all()
