"""What is fitted: generalised mixed models, and where their rows come from."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from mixed_cases import WARM_ROWS


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes
    ----------
    name : str
    title : str
        What the tables call it.
    formula : str
        As lme4 reads it.
    family : str
        "binomial", "poisson" or "nbinom2", at their usual links.
    zero : str
        Formula of excess zeros as glmmTMB reads it; "~ 0" for none.
    rows, warm : callable
        Draw or read the data frame, and a small one of the same columns.
    """

    name: str
    title: str
    formula: str
    family: str
    zero: str
    rows: Callable[[], pd.DataFrame]
    warm: Callable[[], pd.DataFrame]


# -- real data -------------------------------------------------------------------------


def _read(package: str, item: str, factors: tuple[str, ...]) -> pd.DataFrame:
    """Read a data set of an R package, from R itself."""
    code = (
        f'data("{item}", package = "{package}"); '
        f"write.csv({item}, stdout(), row.names = FALSE)"
    )
    command = ["Rscript", "--vanilla", "-e", code]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(factors, str))
    for name in factors:
        frame[name] = pd.Categorical(frame[name])
    return frame


def _verbagg() -> pd.DataFrame:
    factors = ("Gender", "btype", "situ", "id", "item")
    frame = _read("lme4", "VerbAgg", factors)
    frame["y"] = (frame["r2"] == "Y").astype(np.int64)
    return frame[["y", "Anger", *factors]]


def _grouseticks() -> pd.DataFrame:
    factors = ("YEAR", "BROOD", "INDEX", "LOCATION")
    return _read("lme4", "grouseticks", factors)[["TICKS", "cHEIGHT", *factors]]


def _cbpp() -> pd.DataFrame:
    frame = _read("lme4", "cbpp", ("herd", "period"))
    frame["healthy"] = frame["size"] - frame["incidence"]
    return frame


def _salamanders() -> pd.DataFrame:
    frame = _read("glmmTMB", "Salamanders", ("site", "mined", "spp"))
    return frame[["count", "site", "mined", "spp"]]


def _head(rows: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Take the rows to warm up on: all of a small data set, or people of a large."""
    frame = rows()
    if len(frame) <= WARM_ROWS:
        return frame
    frame = frame.sample(WARM_ROWS, random_state=1).reset_index(drop=True)
    for name in frame.select_dtypes("category"):
        frame[name] = frame[name].cat.remove_unused_categories()
    return frame


# -- simulated data --------------------------------------------------------------------


def _crossed(family: str, n: int, g: int, h: int) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(n)
    first, second = rng.integers(0, g, n), rng.integers(0, h, n)
    eta = -0.5 + 0.5 * x + 0.8 * rng.standard_normal(g)[first]
    eta += 0.5 * rng.standard_normal(h)[second]
    if family == "binomial":
        y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(np.int64)
    else:
        y = rng.poisson(np.exp(eta))
    return pd.DataFrame({"y": y, "x": x, "g": _coded(first), "h": _coded(second)})


def _coded(codes: np.ndarray) -> pd.Categorical:
    levels, codes = np.unique(codes, return_inverse=True)
    return pd.Categorical.from_codes(codes, [f"l{level}" for level in levels])


def crossed(family: str, n: int, g: int, h: int) -> Case:
    """Two crossed factors, a random intercept each."""
    return Case(
        f"crossed-{family}-{n}",
        f"{family}, crossed, {n:,} rows, {g:,} × {h:,} levels",
        "y ~ x + (1 | g) + (1 | h)",
        family,
        "~ 0",
        partial(_crossed, family, n, g, h),
        partial(_crossed, family, 2000, 50, 10),
    )


def _real(
    name: str, title: str, formula: str, family: str, rows: Callable[[], pd.DataFrame],
    zero: str = "~ 0",
) -> Case:  # fmt: skip
    return Case(name, title, formula, family, zero, rows, partial(_head, rows))


FAMILIES = ("binomial", "poisson")
#: Rows and levels of the simulated models, which grow together.
SHAPES = (
    (1_000, 100, 10), (10_000, 500, 50), (100_000, 2_000, 200),
    (1_000_000, 10_000, 1_000),
)  # fmt: skip


def _cases() -> list[Case]:
    return [
        _real("verbagg", "VerbAgg, crossed binomial, 7,584 rows",
              "y ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", "binomial",
              _verbagg),
        _real("grouseticks", "grouseticks, Poisson, three factors, 403 rows",
              "TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)",
              "poisson", _grouseticks),
        _real("cbpp", "cbpp, binomial, one factor, 56 rows",
              "cbind(incidence, healthy) ~ period + (1 | herd)", "binomial", _cbpp),
        _real("salamanders", "Salamanders, zero-inflated NB2, 644 rows",
              "count ~ mined + spp + (1 | site)", "nbinom2", _salamanders, "~ mined"),
        *(crossed(family, *shape) for shape in SHAPES for family in FAMILIES),
    ]  # fmt: skip


CASES: Mapping[str, Case] = {case.name: case for case in _cases()}
SMALL = ("grouseticks", "cbpp")
MILLION = tuple(name for name in CASES if name.endswith("-1000000"))
QUICK = tuple(name for name in CASES if name not in MILLION)
