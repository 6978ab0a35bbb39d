"""Several outcomes that share the groups: likelihood, recovery, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from deepstats.errors import ModelError
from deepstats.models.trajectory import Trajectory

N, T = 120, 5
CALL = "traj(y ~ t, visits ~ poly(t, 2, raw=True), ill ~ 1, groups=2, id=pid{})"
FAMILIES = ["gaussian", "poisson", "binomial"]


def panel(seed: int = 0, units: int = N, risk: float = 1.0) -> pd.DataFrame:
    """Two groups; each outcome is missing on rows of its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=units)
    high = rng.random(units) < special.expit(risk * x)
    unit = np.repeat(np.arange(units), T)
    t, g = np.tile(np.arange(T, dtype=float), units), high[unit]
    frame = pd.DataFrame(
        {
            "pid": unit,
            "t": t,
            "x": x[unit],
            "y": np.where(g, 2 - 0.3 * t, 0.4 * t) + rng.normal(size=len(t)),
            "visits": rng.poisson(np.exp(np.where(g, 0.8 + 0.1 * t, 0.0))).astype(
                float
            ),
            "ill": (rng.random(len(t)) < np.where(g, 0.7, 0.2)).astype(float),
        }
    )
    for name in ("y", "visits", "ill"):
        frame.loc[rng.random(len(t)) < 0.2, name] = np.nan
    # One unit has one outcome only.
    frame.loc[frame.pid == 3, ["y", "visits"]] = np.nan
    frame.loc[frame.pid == 3, "ill"] = 1.0
    return frame


def brute(p: dict[str, float], data: pd.DataFrame) -> float:
    """Log-likelihood by its definition."""
    parts = []
    for g in ("g1", "g2"):
        mean = p[f"{g}:y:Intercept"] + p[f"{g}:y:t"] * data.t
        rows = stats.norm.logpdf(data.y, mean, p["y:sigma"])
        a, b, c = (
            p[f"{g}:visits:{name}"]
            for name in ("Intercept", "poly(t, 2, raw=True)[1]",
                         "poly(t, 2, raw=True)[2]")
        )  # fmt: skip
        rate = np.exp(a + b * data.t + c * data.t**2)
        counts = stats.poisson.logpmf(data.visits.fillna(0), rate)
        chance = special.expit(p[f"{g}:ill:Intercept"])
        ill = stats.bernoulli.logpmf(data.ill.fillna(0), chance)
        total = np.where(data.y.isna(), 0.0, rows)
        total += np.where(data.visits.isna(), 0.0, counts)
        total += np.where(data.ill.isna(), 0.0, ill)
        parts.append(np.bincount(data.pid, total))
    x = data.groupby("pid").x.first()
    eta = p["g2:membership:Intercept"] + p["g2:membership:x"] * x
    first, second = parts
    return np.logaddexp(
        first + special.log_expit(-eta), second + special.log_expit(eta)
    ).sum()


@pytest.fixture(scope="module")
def data():
    return panel()


@pytest.fixture(scope="module")
def fit(data):
    return Trajectory(CALL.format(", risk=~ x"), data, family=FAMILIES).fit()


def test_the_likelihood_is_that_of_its_definition(fit, data):
    assert fit.llf == pytest.approx(brute(fit.params.to_dict(), data), rel=1e-11)


def test_derivatives_anywhere(fit, data):
    """At a random point the gradient is that of the definition's differences."""
    rng = np.random.default_rng(1)
    x = fit.fit_info.x.numpy() + 0.1 * rng.normal(size=len(fit.params))
    parameters = fit.model.parameters

    def value(at: np.ndarray) -> float:
        reported = parameters.reported(torch.from_numpy(at)).tolist()
        return brute(dict(zip(parameters.labels, reported, strict=True)), data)

    found = fit.likelihood.derivatives(torch.from_numpy(x))
    assert found.value == pytest.approx(value(x), rel=1e-11)
    step = 1e-5
    for j in range(len(x)):
        e = step * (np.arange(len(x)) == j)
        slope = (value(x + e) - value(x - e)) / (2 * step)
        assert float(found.gradient[j]) == pytest.approx(slope, rel=1e-6, abs=1e-5)


def test_the_gradient_is_zero_and_the_information_its_slope(fit):
    x = fit.fit_info.x
    here = fit.likelihood.derivatives(x)
    decrement = here.gradient @ torch.linalg.solve(here.information, here.gradient)
    assert float(decrement) < 1e-12
    e = torch.zeros_like(x)
    for j in range(len(x)):
        e[j] = 1e-5
        up, down = (fit.likelihood.derivatives(x + s * e).gradient for s in (1, -1))
        e[j] = 0.0
        slope = (down - up) / 2e-5
        assert torch.allclose(slope, here.information[j], rtol=1e-5, atol=1e-3)


def test_rows_of_outcomes_differ(fit, data):
    for outcome in fit.model.study.outcomes:
        assert outcome.n == data[outcome.name].notna().sum()
    assert fit.nobs == data[["y", "visits", "ill"]].notna().sum().sum()
    # The unit of one outcome has a posterior, by that outcome and its risk factor.
    p, own = fit.params.copy(), data[data.pid == 3]
    eta = p["g2:membership:Intercept"] + p["g2:membership:x"] * own.x.iloc[0]
    for g, sign in (("g1", -1), ("g2", 1)):
        p.loc[f"{g}:chance"] = special.expit(p[f"{g}:ill:Intercept"]) ** len(own)
        p.loc[f"{g}:chance"] *= special.expit(sign * eta)
    expected = p["g2:chance"] / (p["g1:chance"] + p["g2:chance"])
    assert fit.posterior.loc[3, "g2"] == pytest.approx(expected, rel=1e-9)


def test_new_units_and_units_of_the_fit_agree(fit, data):
    again = fit.predict(data)
    pd.testing.assert_frame_equal(again, fit.posterior, rtol=1e-9, check_names=False)


def test_recovery():
    fit = Trajectory(
        CALL.format(", risk=~ x"), panel(4, 2000), family=FAMILIES
    ).fit(starts=12)  # fmt: skip
    truth = {
        "g1:y:Intercept": 0.0, "g1:y:t": 0.4, "g2:y:Intercept": 2.0, "g2:y:t": -0.3,
        "y:sigma": 1.0, "g2:visits:Intercept": 0.8, "g1:visits:Intercept": 0.0,
        "g1:ill:Intercept": special.logit(0.2), "g2:ill:Intercept": special.logit(0.7),
        "g2:membership:Intercept": 0.0, "g2:membership:x": 1.0,
    }  # fmt: skip
    z = [(fit.params[k] - v) / fit.bse[k] for k, v in truth.items()]
    assert max(map(abs, z)) < 3.5


def test_options_by_outcome(data):
    data = data[data.pid != 3]
    fit = Trajectory(
        "traj(y ~ t, visits ~ t, groups=2, id=pid)", data,
        family={"y": "gaussian", "visits": "poisson"}, orders={"visits": (0, 1)},
        variance={"y": "group"},
    ).fit(starts=8)  # fmt: skip
    labels = set(fit.params.index)
    assert {"g1:y:sigma", "g2:y:sigma", "g1:y:t", "g2:visits:t"} <= labels
    assert "g1:visits:t" not in labels


def test_bad_input(data):
    with pytest.raises(ModelError, match="family= has 2 entries and there are 3"):
        Trajectory(CALL.format(""), data, family=["gaussian", "poisson"])
    with pytest.raises(ModelError, match="says nothing of ill"):
        Trajectory(CALL.format(""), data, family={"y": "gaussian", "visits": "poisson"})
