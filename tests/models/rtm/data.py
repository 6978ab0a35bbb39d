"""Cities with known risk, and the street units of Washington.

>>> units, layers = city(seed=1)
>>> sorted(layers), len(units)
(['alcohol', 'metro', 'trees'], 900)
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepstats.models.rtm import PointLayer

__all__ = [
    "BANDS",
    "DISTANCES",
    "REFERENCE",
    "TRUE",
    "city",
    "street_layers",
    "street_units",
]

DISTANCES, BANDS = (100.0, 200.0, 400.0, 800.0), (200.0, 400.0)
#: Effects of the city: within so far of a place of the layer.
TRUE = {"alcohol": (200.0, np.log(3.0)), "metro": (400.0, np.log(2.0))}
_TESTS = Path(__file__).parents[2]
#: Independent fits of the street units; see tests/reference/README.md.
REFERENCE = json.loads((_TESTS / "reference" / "rtm.json").read_text())
_SHARED = Path(__file__).parents[4] / "shared" / "reference" / "data"


def city(
    seed: int = 0,
    n: int = 900,
    alpha: float = 0.0,
    wealth_effect: float = -0.3,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return units in a square of 5 km and layers; crimes Poisson, or NB2 with alpha.

    Trees have no effect. ``near`` has distances to the nearest place of each layer.
    """
    rng = np.random.default_rng(seed)
    place = lambda k: 400_000 + rng.uniform(0, 5000, (k, 2))  # noqa: E731
    xy = place(n)
    layers = {"alcohol": place(40), "metro": place(12), "trees": place(30)}
    near = {
        name: np.hypot(*(xy[:, None] - at).transpose(2, 0, 1)).min(axis=1)
        for name, at in layers.items()
    }
    wealth = rng.normal(size=n)
    eta = sum(b * (near[k] <= d) for k, (d, b) in TRUE.items())
    mu = np.exp(eta + wealth_effect * wealth)
    y = rng.poisson(mu * rng.gamma(1 / alpha, alpha, n) if alpha else mu)
    units = pd.DataFrame({
        "id": np.arange(n) + 1000, "x": xy[:, 0], "y": xy[:, 1], "crimes": y,
        "wealth": wealth, "area": rng.uniform(0.5, 2, n), "zone": np.arange(n) % 30,
        "block": rng.choice(["in", "out"], n),
    })  # fmt: skip
    frames = {k: pd.DataFrame(v, columns=["x", "y"]) for k, v in layers.items()}
    return units, frames


@lru_cache
def _streets() -> pd.DataFrame:
    path = _SHARED / "reg_dc_streetunits.csv"
    if not path.exists():
        pytest.skip("reg_dc_streetunits is only in ../shared/reference/data, not here")
    units = pd.read_csv(path)
    # The two periods of the reference: crimes of 2011 halved at random.
    first = np.random.default_rng(1).binomial(units["TotalCrime"], 0.5)
    return units.assign(first=first, second=units["TotalCrime"] - first)


def street_units() -> pd.DataFrame:
    """Load the street units; skips the test where they are not to be had."""
    return _streets().copy()


def street_layers(units: pd.DataFrame, sizes: tuple[float, ...]) -> dict:
    """Return the layers of the reference: licences, and two kinds of calls."""

    def layer(column, distances=()):
        return PointLayer(units, weight=column, distances=distances, bandwidths=sizes)

    return {"alc": layer("TotalLic", sizes), "c1": layer("CFS1"), "c2": layer("CFS2")}
