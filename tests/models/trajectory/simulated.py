"""Small data of known groups, shared by the tests of replicates."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["crossing"]


def crossing(units: int = 120, seed: int = 3) -> pd.DataFrame:
    """Two groups whose lines cross, with normal and Poisson responses; unbalanced."""
    rng = np.random.default_rng(seed)
    times = np.arange(6) / 2
    frame = pd.DataFrame(
        {"id": np.repeat(np.arange(units), 6), "t": np.tile(times, units)}
    )
    high = np.repeat(rng.random(units) < 0.45, 6)
    t = frame["t"]
    frame["y"] = np.where(high, 0.5 + t, 2.5 - 0.4 * t) + rng.normal(size=len(t))
    frame["count"] = rng.poisson(np.exp(np.where(high, 0.1 + 0.5 * t, 1.3 - 0.3 * t)))
    frame["site"] = frame["id"] // 3
    frame["weight"] = np.repeat(rng.uniform(0.5, 2.0, units), 6)
    return frame[rng.random(len(frame)) > 0.1].reset_index(drop=True)
