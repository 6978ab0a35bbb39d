"""Panels drawn from known groups, for tests of what follows from a fit."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pandas as pd

from deepstats.errors import MissingDataWarning
from deepstats.models.trajectory import Trajectory
from deepstats.models.trajectory.results import TrajectoryResults

__all__ = ["UNITS", "fit", "panel"]

UNITS, TIMES = 120, 5


@lru_cache
def _panel(missing: bool) -> pd.DataFrame:
    rng = np.random.default_rng(11)
    x = rng.normal(size=UNITS)
    share = 1 / (1 + np.exp(-(0.3 + 0.8 * x)))
    group = (rng.random(UNITS) < share).astype(int)
    unit = np.repeat(np.arange(UNITS), TIMES)
    t = np.tile(np.arange(TIMES, dtype=float), UNITS)
    g, n = group[unit], UNITS * TIMES
    z = rng.normal(size=n)
    mean = np.where(g == 1, 2 + 0.8 * t, 0.5 - 0.3 * t) + 0.4 * z
    rate = np.exp(np.where(g == 1, 1.6 - 0.1 * t, 0.3 + 0.2 * t))
    odds = np.where(g == 1, 1.0 - 0.6 * t, -1.5 + 0.2 * t)
    trials = rng.integers(3, 9, n)
    yes = rng.binomial(trials, 1 / (1 + np.exp(-odds)))
    hours = rng.uniform(0.5, 2.0, n)
    data = pd.DataFrame(
        {
            "pid": unit + 100,
            "t": t,
            "square": t**2,
            "z": z,
            "x": x[unit],
            "place": np.array(["a", "b", "c"])[rng.integers(0, 3, UNITS)][unit],
            "y": mean + rng.normal(size=n),
            "count": rng.poisson(rate),
            "hours": hours,
            "calls": rng.poisson(rate * hours),
            "excess": rng.poisson(rate) * (rng.random(n) > np.where(g == 1, 0.2, 0.4)),
            "yes": yes,
            "no": trials - yes,
            "trials": trials,
            "grade": np.digitize(mean + rng.logistic(size=n), [0.0, 2.0, 4.0]) + 1,
            "w": rng.uniform(0.5, 2.0, UNITS)[unit],
            "truth": g + 1,
        }
    )
    data["seen"] = data["y"].clip(-1.0, 5.0)
    if missing:
        rows = rng.choice(n, n // 6, replace=False)
        data.loc[rows, "y"] = np.nan
        data.loc[data["pid"] == 103, "y"] = np.nan
    return data


def panel(missing: bool = False) -> pd.DataFrame:
    """Return 120 units on five occasions, of two groups that differ in every response.

    Parameters
    ----------
    missing : bool, default False
        Leave out a sixth of ``y``, and all of unit 103.
    """
    return _panel(missing).copy()


def fit(formula: str, data: pd.DataFrame | None = None, **options) -> TrajectoryResults:
    """Fit two groups to a panel; units without a response are left out quietly."""
    options = {"groups": 2, "id": "pid", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingDataWarning)
        model = Trajectory(formula, panel() if data is None else data, **options)
    return model.fit(starts=6)
