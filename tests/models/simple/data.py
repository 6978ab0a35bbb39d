"""Doctor visits and COMPAS from ../shared, and small samples to enumerate.

>>> small(0)[0].shape
(60, 3)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

__all__ = ["VISITS", "compas", "doctor_visits", "small"]

_SHARED = Path(__file__).parents[4] / "shared" / "reference" / "data"
VISITS = ("private", "medicaid", "age", "educ", "actlim", "chronic")


@lru_cache
def _read(name: str) -> pd.DataFrame:
    path = _SHARED / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{name} is only in ../shared/reference/data, not here")
    return pd.read_csv(path)


def doctor_visits() -> pd.DataFrame:
    """Visits and six columns, these between zero and one as in the seed's post."""
    frame = _read("reg_docvisits_nmes1988").copy()
    X = frame[list(VISITS)]
    frame[list(VISITS)] = (X - X.min()) / (X.max() - X.min())
    return frame


def compas() -> tuple[pd.DataFrame, list[str]]:
    """Arrest within 30 days as `y`, and thirteen columns of yes and no."""
    c = _read("reg_compas")
    jail = pd.to_numeric(c["JailDays"], errors="coerce")
    columns = {
        "age_lt25": c["YearsScreening"] < 25,
        "age_25_45": c["YearsScreening"].between(25, 45),
        "male": c["sex"] == "Male", "felony": c["c_charge_degree"] == "F",
        **{f"priors_ge{k}": c["priors_count"] >= k for k in (1, 2, 5, 10)},
        "juvfel": c["juv_fel_count"] > 0, "juvmis": c["juv_misd_count"] > 0,
        "juvoth": c["juv_other_count"] > 0, "single": c["marital_status"] == "Single",
        "jail_ge30": jail >= 30,
    }  # fmt: skip
    frame = pd.DataFrame(columns).astype(int)
    return frame.assign(y=c["Recid30"].astype(int)), list(columns)


def small(seed: int, binary: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """60 rows of three correlated columns, and an outcome, 0/1 if `binary`."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 3)) + rng.normal(size=(60, 1))
    eta = X @ np.array([0.8, -0.5, 0.3]) - 0.4
    if binary:
        return X, (rng.uniform(size=60) < 1 / (1 + np.exp(-eta))).astype(float)
    return X, 3 * eta + rng.normal(size=60)
