"""Reference values and samples of regressions by loss.

>>> sorted(STORED)[:2]
['compas_logit', 'glmnet_binom_lasso']
>>> sample(50).shape
(50, 9)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["STORED", "glmnet_objective", "sample"]

#: Numbers of glmnet, quantreg and own programs; see tests/reference/README.md.
STORED = json.loads(
    (Path(__file__).parents[2] / "reference" / "lossreg.json").read_text()
)


def sample(n: int, seed: int = 0) -> pd.DataFrame:
    """Return outcomes of all kinds that depend on numbers and an ordered factor."""
    rng = np.random.default_rng(seed)
    x, z, v = rng.normal(size=(3, n))
    grade = rng.choice(list("abcd"), size=n)
    eta = 0.3 + 0.8 * x - 0.5 * z + 0.4 * np.searchsorted(list("abcd"), grade)
    return pd.DataFrame(
        {
            "x": x, "z": z, "v": v, "grade": grade,
            "y": eta + rng.standard_t(3, size=n),
            "hit": (rng.uniform(size=n) < 1 / (1 + np.exp(-eta + 1))).astype(int),
            "count": rng.poisson(np.exp(eta / 2)),
            "w": rng.uniform(0.5, 2.0, size=n),
            "group": rng.choice(["u", "v"], size=n),
        }
    )  # fmt: skip


def glmnet_objective(family, X, y, a0, beta, lam, alpha, scale) -> float:
    """Return what glmnet minimises, as its paper writes it."""
    eta = a0 + X @ beta
    root = 1.0
    if family == "gaussian":
        loss, root = ((y - eta) ** 2).mean() / 2, y.std()
    elif family == "poisson":
        loss = (np.exp(eta) - y * eta).mean()
    else:
        loss = (np.logaddexp(0, eta) - y * eta).mean()
    size = scale * beta
    return loss + lam * (
        alpha * np.abs(size).sum() + (1 - alpha) / 2 * (size**2).sum() / root
    )
