"""The test of normal random effects against heavier tails."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from deepstats.errors import ModelError, SingularFitWarning
from deepstats.models.glmm import MixedGLM
from deepstats.models.glmm.tails import _Found, _score

from .panels import fitted


def drawn(effects: np.ndarray, seed: int, size: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(len(effects)), size)
    x = rng.normal(size=len(g))
    y = rng.poisson(np.exp(0.5 + 0.3 * x + effects[g]))
    return pd.DataFrame({"y": y, "x": x, "g": g})


def test_score_is_the_derivative_in_one_over_nu():
    """Normal responses, whose posteriors are normal: by integrals with t effects."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(12), 4)
    y = 1 + 0.8 * rng.normal(size=12)[g] + 0.6 * rng.normal(size=48)
    data = pd.DataFrame({"y": y, "g": g})
    results = MixedGLM("y ~ 1 + (1 | g)", data, family="gaussian").fit()
    mean, sigma = results.params["Intercept"], results.params["sigma"]
    sd = results.varcorr["sdcor"][0]

    def llf(nu: float) -> float:
        total = 0.0
        for level in range(12):
            own = y[g == level]

            def joint(u, own=own):
                rows = stats.norm.logpdf(own, mean + sd * u, sigma).sum()
                return np.exp(rows + stats.t.logpdf(u, nu))

            area = integrate.quad(joint, -9, 9, points=[modes[level]], epsrel=1e-11)[0]
            total += np.log(area)
        return total

    h = 1e-3  # Of 1 / nu, from infinity; extrapolated.
    base, modes = results.llf, results.ranef()["g"]["Intercept"].to_numpy() / sd
    one, two = (llf(1 / h) - base) / h, (llf(2 / h) - base) / (h / 2)
    found = _Found.of(results.found.point, 0)
    assert found.statistic == pytest.approx(2 * two - one, rel=1e-3)


def test_score_of_several_effects_a_level():
    """The posterior mean of the polynomial, by Monte Carlo."""
    rng = np.random.default_rng(3)
    u = rng.normal(size=(2, 3))
    C = np.array([[[0.5, 0.2], [0.2, 0.4]], np.diag([0.1, 0.9]), np.eye(2)])
    total, count = 0.0, 400_000
    for level in range(3):
        b = rng.multivariate_normal(u[:, level], C[level], count)
        q = (b**2).sum(1)
        total += (q**2 / 4 - q).mean()  # K = 2: the constant is zero.
    assert _score(u, C) == pytest.approx(total, abs=0.05)


def test_heavy_tails_are_found():
    rng = np.random.default_rng(0)
    t, z = rng.standard_t(2.2, size=70), rng.standard_normal(70)
    heavy = MixedGLM("y ~ x + (1 | g)", drawn(0.6 * t, 1), family="poisson").fit()
    normal = MixedGLM("y ~ x + (1 | g)", drawn(0.6 * z, 2), family="poisson").fit()
    one, two = heavy.heavy_tails(nsim=24, seed=5), normal.heavy_tails(nsim=24, seed=5)
    assert one.pvalue == 1 / 25 and one.statistic > one.draws.max()
    assert "heavy tails of g" in repr(two) and two.failed == 0
    # The largest mode leaves the band of the simulations.
    outside = (one.modes["mode"] > one.modes["high"]) | (
        one.modes["mode"] < one.modes["low"]
    )
    assert outside.any()
    again = normal.heavy_tails(nsim=24, seed=5)
    np.testing.assert_array_equal(again.draws, two.draws)
    for ax in (one.plot(), one.plot_gradient()):
        assert ax.get_xlabel()
    matplotlib.pyplot.close("all")


def test_normal_effects_are_rarely_rejected():
    """Of six data sets, of which the level says 0.3, no more than two."""
    pvalues = []
    for seed in range(6):
        effects = 0.6 * np.random.default_rng(seed).normal(size=30)
        data = drawn(effects, seed, 6)
        results = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit()
        pvalues.append(results.heavy_tails(nsim=20, seed=seed).pvalue)
    assert sum(p <= 1 / 21 for p in pvalues) <= 2
    assert np.mean(pvalues) > 0.25


def test_gradient_function_averages_to_one_under_the_model():
    rng = np.random.default_rng(4)
    data = drawn(0.7 * rng.normal(size=30), 3, 4)
    results = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit()
    from deepstats.models.glmm.tails import _GRID

    found = _Found.of(results.found.point, 0).gradient
    mean = np.trapezoid(found * stats.norm.pdf(_GRID), _GRID)
    assert mean == pytest.approx(1, abs=2e-3)


def test_crossed_and_vector_effects_have_a_score():
    results = fitted("zip")
    point = results.found.point
    for number in range(2):
        found = _Found.of(point, number)
        assert np.isfinite(found.statistic) and found.gradient is None


def test_what_cannot_be_tested_is_refused():
    rng = np.random.default_rng(8)
    data = drawn(np.zeros(20), 8, 6)
    data["y"] = rng.poisson(np.exp(0.4 + 0.3 * data["x"]))
    with pytest.warns(SingularFitWarning):
        results = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit()
    with pytest.raises(ModelError, match="variance of g is zero"):
        results.heavy_tails()
    with pytest.raises(ValueError, match="must be one of 'g'"):
        results.heavy_tails("h")
    with pytest.raises(ValueError, match="nsim must be at least"):
        results.heavy_tails(nsim=5)
    bound = MixedGLM(
        "y ~ x + (1 | g)", drawn(rng.normal(size=20), 8, 6), family="poisson"
    ).fit(method="vi")
    with pytest.raises(ModelError, match="use the exact fit"):
        bound.heavy_tails()
