"""Simulated data for families of which glmmTMB has the numbers.

``PYTHONPATH=tests/models python -m glmm.families out.csv`` writes them down, for
``tests/reference/families.R``.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import numpy as np
import pandas as pd

__all__ = ["simulated"]

ROWS, GROUPS, OTHERS = 600, 30, 12


@lru_cache
def _simulated() -> pd.DataFrame:
    rng = np.random.default_rng(31)
    g, h = np.repeat(np.arange(GROUPS), ROWS // GROUPS), np.arange(ROWS) % OTHERS
    x = rng.normal(size=ROWS).round(4)
    eta = 0.5 + 0.4 * x + 0.5 * rng.normal(size=GROUPS)[g]
    eta = eta + 0.3 * rng.normal(size=OTHERS)[h]
    mu = np.exp(eta)
    # Tweedie of power 1.6 and dispersion 0.8: a Poisson number of gamma sizes.
    jumps = rng.poisson(mu**0.4 / (0.8 * 0.4))
    sizes = rng.gamma(np.maximum(jumps, 1) * 0.4 / 0.6, 0.8 * 0.6 * mu**0.6)
    tweedie = np.where(jumps > 0, sizes, 0.0).round(6)
    heavy = eta + 0.7 * rng.standard_t(4, ROWS)
    positive = rng.gamma(3, mu / 3).round(6) + 0.01
    counts = rng.negative_binomial(2, 2 / (2 + mu))
    latent = 1.5 * (eta - 0.5) + rng.logistic(size=ROWS)
    return pd.DataFrame(
        {
            "g": [f"g{j:02d}" for j in g], "h": [f"h{j:02d}" for j in h], "x": x,
            "tweedie": tweedie, "heavy": heavy.round(6), "positive": positive,
            "wald": rng.wald(mu, 4.0).round(6) + 1e-3, "counts": counts,
            "above": 1 + rng.negative_binomial(2, 2 / (2 + mu)),
            "yes": (latent > 0).astype(int),
            "level": np.digitize(latent, (-1.5, 0.0, 1.0)),
        }
    )  # fmt: skip


def simulated() -> pd.DataFrame:
    """Return responses of every kind, by two crossed factors."""
    return _simulated().copy()


if __name__ == "__main__":
    simulated().to_csv(sys.argv[1], index=False)
