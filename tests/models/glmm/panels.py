"""Small simulated data with crossed random effects, and fits to them.

>>> panel().shape
(360, 7)
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pandas as pd

from deepstats.errors import SingularFitWarning
from deepstats.models.glmm import MixedGLM, MixedGLMResults

__all__ = ["FITS", "fitted", "panel"]


@lru_cache
def _panel() -> pd.DataFrame:
    rng = np.random.default_rng(20)
    n, groups, others = 360, 24, 9
    g, h = np.repeat(np.arange(groups), n // groups), np.arange(n) % others
    x, t = rng.normal(size=n), rng.uniform(1, 3, n)
    slopes = rng.normal(size=(groups, 2)) @ np.array([[0.6, 0.2], [0.0, 0.4]])
    eta = 0.4 + 0.5 * x + slopes[g, 0] + slopes[g, 1] * x + 0.4 * rng.normal(size=9)[h]
    y = rng.poisson(t * np.exp(eta)) * (rng.uniform(size=n) > 0.25)
    return pd.DataFrame(
        {
            "y": y, "yes": (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int),
            "x": x, "t": t, "f": np.array(["a", "b", "c"])[rng.integers(3, size=n)],
            "g": [f"g{j:02d}" for j in g], "h": [f"h{j}" for j in h],
        }
    )  # fmt: skip


def panel() -> pd.DataFrame:
    """Return counts with excess zeros and a binary response, by two factors."""
    return _panel().copy()


#: Fits by name: the formula and further arguments.
FITS: dict[str, tuple[str, dict]] = {
    "zip": (
        "y ~ x + (1 + x | g) + (1 | h) + offset(log(t))",
        {"family": "zip", "zi_formula": "~ x"},
    ),
    "poisson": ("y ~ x + f + (1 | g)", {"family": "poisson", "exposure": "t"}),
    "nb2": ("y ~ x + (1 | g)", {"family": "nb2"}),
    "logit": ("yes ~ x + f + (1 | g) + (1 | h)", {"family": "binomial"}),
    "cloglog": (
        "yes ~ x + (1 | g)",
        {"family": "binomial", "link": "cloglog", "information": "expected"},
    ),
}


@lru_cache
def fitted(name: str) -> MixedGLMResults:
    """Return a fit of `FITS`; singular ones do not warn here."""
    formula, options = FITS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return MixedGLM(formula, panel(), **options).fit()
