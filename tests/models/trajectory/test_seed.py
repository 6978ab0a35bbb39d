"""The seed's example: two groups of 50 units, 11 occasions, a tiny bit of noise.

Wheeler simulated it (1 + t/2 and 3/2 t^2, noise uniform within 0.05), needed 30,000
steps of Adam, and left open standard errors, counts, 0/1 outcomes, new units and an
equation for the groups. Here default settings find the groups for every seed.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import deepstats as ds
from deepstats.models.trajectory import TrajectoryResults

EACH, OCCASIONS, SEEDS = 50, 11, 100
T = 2.0 * np.arange(OCCASIONS) / OCCASIONS - 1.0
#: Intercept, t, t^2; numbered as the fit numbers them, by level.
TRUE = np.array([[0.0, 0.0, 1.5], [1.0, 0.5, 0.0]])
X = np.column_stack([np.ones(OCCASIONS), T, T**2])
FORMULA = "traj(y ~ t + I(t**2), groups=2, id=id)"
#: Of other outcomes: multiplies the curves, so that 11 of them tell groups apart.
STEEPER = {"poisson": 1.5, "binomial": 4.0}


def simulate(seed: int, family: str = "gaussian") -> pd.DataFrame:
    """Wheeler's data, or counts and 0/1 outcomes about his curves."""
    rng = np.random.default_rng(seed)
    eta = np.repeat(TRUE @ X.T, EACH, axis=0)
    if family == "gaussian":
        y = eta + rng.uniform(-0.05, 0.05, eta.shape)
    elif family == "poisson":
        y = rng.poisson(np.exp(STEEPER[family] * eta))
    else:
        eta = STEEPER[family] * (eta - 0.7)
        y = (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))).astype(float)
    return pd.DataFrame(
        {
            "id": np.repeat(np.arange(2 * EACH), OCCASIONS),
            "t": np.tile(T, 2 * EACH),
            "y": y.ravel(),
            "truth": np.repeat([1, 2], EACH * OCCASIONS),
        }
    )


def coefficients(family: str) -> np.ndarray:
    """Return the true coefficients, in the order of `params`."""
    values = TRUE * STEEPER.get(family, 1.0)
    if family == "binomial":
        values = values - np.array([STEEPER[family] * 0.7, 0.0, 0.0])
    return values.ravel()


def truth(data: pd.DataFrame) -> np.ndarray:
    """True group of every unit."""
    return data.groupby("id")["truth"].first().to_numpy()


def bayes(data: pd.DataFrame, family: str) -> np.ndarray:
    """Group of every unit by the true parameters: the best that anyone can do."""
    y = data["y"].to_numpy().reshape(-1, OCCASIONS)
    eta = coefficients(family).reshape(2, 3) @ X.T
    if family == "poisson":
        llf = stats.poisson.logpmf(y[:, None], np.exp(eta)).sum(2)
    else:
        llf = stats.bernoulli.logpmf(y[:, None], 1 / (1 + np.exp(-eta))).sum(2)
    return llf.argmax(1) + 1


@lru_cache
def fits() -> tuple[TrajectoryResults, ...]:
    """Fits of the seed's example by default settings, one for each seed."""
    return tuple(ds.traj(FORMULA, simulate(seed)).fit() for seed in range(SEEDS))


def covered(results: TrajectoryResults, values: np.ndarray) -> np.ndarray:
    """Whether the intervals of the first parameters hold their true values."""
    interval = results.conf_int().to_numpy()[: len(values)]
    return (interval[:, 0] <= values) & (values <= interval[:, 1])


def test_every_seed_finds_the_groups():
    for seed, results in enumerate(fits()):
        data = simulate(seed)
        assert (results.assign().to_numpy() == truth(data)).all()
        assert results.converged
        assert len(results.optima) == 1  # whatever the start
        assert results.posterior.to_numpy().max(1).min() > 1 - 1e-10


def test_standard_errors_are_those_of_known_groups():
    # Nothing is uncertain about the groups: two regressions with one variance.
    for seed, results in enumerate(fits()):
        y = simulate(seed)["y"].to_numpy().reshape(2, -1)
        wide = np.tile(X, (EACH, 1))
        b, rss, *_ = np.linalg.lstsq(wide, y.T, rcond=None)
        variance = rss.sum() / y.size
        bse = np.sqrt(variance * np.diag(np.linalg.inv(wide.T @ wide)))
        expected = [*bse, *bse, np.sqrt(variance / (2 * y.size))]
        estimates = [*b.T.ravel(), np.sqrt(variance)]
        np.testing.assert_allclose(results.params[:7], estimates, atol=1e-8)
        np.testing.assert_allclose(results.bse[:7], expected, rtol=1e-6)
        # The log-odds of the groups: 1/sqrt(n p (1 - p)).
        np.testing.assert_allclose(results.bse.iloc[7], 1 / np.sqrt(25), rtol=1e-6)


def test_intervals_cover_at_the_nominal_rate():
    hits = np.array([covered(results, coefficients("gaussian")) for results in fits()])
    low, high = stats.binom.ppf([0.001, 0.999], SEEDS, 0.95)
    assert (hits.sum(0) >= low).all()
    low, high = stats.binom.ppf([0.001, 0.999], 2 * SEEDS, 0.95) / (2 * SEEDS)
    assert low <= hits.mean() <= high


@pytest.mark.parametrize("family", ["poisson", "binomial"])
def test_counts_and_binary_outcomes(family):
    values, hits, seeds = coefficients(family), [], 8
    for seed in range(seeds):
        data = simulate(seed, family)
        results = ds.traj(FORMULA, data, family=family).fit()
        right = results.assign().to_numpy() == truth(data)
        best = bayes(data, family) == truth(data)
        assert right.sum() >= best.sum() - 3
        assert np.isfinite(results.bse).all()
        assert (np.abs(results.params[:6] - values) < 4.5 * results.bse[:6]).all()
        hits.append(covered(results, values))
    assert np.mean(hits) > 0.88  # 48 intervals, 95% nominal


def test_covariates_of_membership():
    covering = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        risk = rng.normal(size=200)
        second = rng.random(200) < 1 / (1 + np.exp(0.5 - 1.0 * risk))
        eta = TRUE[second.astype(int)] @ X.T
        data = pd.DataFrame(
            {
                "id": np.repeat(np.arange(200), OCCASIONS),
                "t": np.tile(T, 200),
                "risk": np.repeat(risk, OCCASIONS),
                "y": (eta + rng.uniform(-0.05, 0.05, eta.shape)).ravel(),
            }
        )
        results = ds.traj(FORMULA, data, risk="~ risk").fit()
        assert (results.assign().to_numpy() == second + 1).all()
        labels = ["g2:membership:Intercept", "g2:membership:risk"]
        interval = results.conf_int().loc[labels].to_numpy()
        # Groups that nobody doubts: the fit is a logit of the groups on the covariate.
        known = ds.logit("g ~ x", {"g": second.astype(float), "x": risk}).fit()
        np.testing.assert_allclose(results.params[labels], known.params, atol=1e-6)
        np.testing.assert_allclose(results.bse[labels], known.bse, rtol=1e-5)
        covering += [
            (lo <= v <= hi) for (lo, hi), v in zip(interval, (-0.5, 1.0), strict=True)
        ]
    assert np.mean(covering) > 0.74  # 16 intervals, 95% nominal
