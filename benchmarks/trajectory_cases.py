"""What is fitted: trajectory models, their data, starts, and times that were recorded.

lcmm, trajeR, crimCV and gbtmkit are not to be had where the benchmark is run. Their
processor seconds were recorded once, on a machine of the same type (two shared cores),
and are shown as recorded. Those of simulated data were taken on data of the same shape
that are not kept; those of real data and their log-likelihoods are read from
`../shared/reference/gbtm.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
OCCASIONS = 10
# Share of the true labels that is drawn anew, for a start near the truth.
DRAWN_ANEW = 0.35
WARM_UNITS = 200


@dataclass(frozen=True)
class Recorded:
    """Processor seconds of a program that is not run here.

    Attributes
    ----------
    program : str
    cpu : float
    bound : bool
        Whether the program was stopped then.
    starts : str
        What it began from.
    case : str
        Name in `gbtm.json`, whose log-likelihood is shown; empty for simulated data.
    """

    program: str
    cpu: float
    bound: bool = False
    starts: str = "the labels"
    case: str = ""

    @property
    def loglik(self) -> float | None:
        """Log-likelihood that the program reached."""
        return reference()[self.case]["loglik"] if self.case else None


@dataclass(frozen=True)
class Case:
    """A model, its data and where it begins.

    Attributes
    ----------
    name, title : str
    response, time : str
        Columns; the id is `id`.
    trend : int or None
        Degree in time; None for a mean of its own at every occasion.
    family : str
    groups, starts : int
        No starts: groups that are given, which everybody begins from.
    draw : callable
        From a number of units (or None for all) a frame, and labels or None.
    options : mapping
        Of deepstats' call.
    peers : mapping of str to int
        Peers that fit this model, and how many starts they are given.
    threads : int
    recorded : tuple of Recorded
    best : str
        Case of `gbtm.json` that holds the best log-likelihood known.
    """

    name: str
    title: str
    family: str
    groups: int
    starts: int
    draw: Callable[[int | None], tuple[pd.DataFrame, np.ndarray | None]]
    response: str = "y"
    time: str = "t"
    trend: int | None = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    peers: Mapping[str, int] = field(default_factory=dict)
    threads: int = 1
    recorded: tuple[Recorded, ...] = ()
    best: str = ""

    @property
    def formula(self) -> str:
        """As deepstats reads it."""
        return f"traj({self._sum('{}**{}')}, groups={self.groups}, id=id)"

    @property
    def r_formula(self) -> str:
        """As flexmix reads it."""
        return f"{self._sum('{}^{}')} | id"

    def _sum(self, power: str) -> str:
        t = self.time
        if self.trend is None:
            return f"{self.response} ~ C({t})"
        powers = [f"I({power.format(t, d)})" for d in range(2, self.trend + 1)]
        return f"{self.response} ~ {' + '.join([t, *powers])}"

    @property
    def best_loglik(self) -> float | None:
        """Best log-likelihood known, where the data have been fitted before."""
        return reference()[self.best]["loglik"] if self.best else None


@lru_cache
def reference() -> Mapping[str, Any]:
    """Read the recorded cases; empty where they are not at hand."""
    path = REFERENCE / "gbtm.json"
    return json.loads(path.read_text())["cases"] if path.exists() else {}


# -- simulated data --------------------------------------------------------------------


def simulate(
    family: str, groups: int, unique: bool, size: int, units: int | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw quadratic trajectories that overlap, and the labels of a start.

    Parameters
    ----------
    family : {"gaussian", "poisson", "zip", "binomial"}
    groups : int
    unique : bool
        Times of each unit's own, uniform; else the same ten for all.
    size : int
        Units, where `units` is None.
    units : int or None
    """
    n = size if units is None else units
    rng = np.random.default_rng(7)
    group = rng.integers(0, groups, n)
    shape = (n, OCCASIONS)
    t = np.tile(np.arange(OCCASIONS) / (OCCASIONS - 1), (n, 1))
    if unique:
        t = np.sort(rng.random(shape), axis=1)
    k = np.arange(groups)
    level, slope, bend = (
        np.linspace(-1.2, 1.2, groups), 1.5 * np.cos(3.1 * k), np.cos(1.7 * k)
    )  # fmt: skip
    eta = level[group, None] + slope[group, None] * t + bend[group, None] * t**2
    eta *= {"gaussian": 0.6}.get(family, 0.8)
    y = {
        "gaussian": lambda: eta + rng.standard_normal(shape),
        "binomial": lambda: rng.random(shape) < 1 / (1 + np.exp(-1.5 * eta)),
        "poisson": lambda: rng.poisson(np.exp(0.5 + eta)),
        "zip": lambda: rng.poisson(np.exp(0.8 + eta)) * (rng.random(shape) > 0.25),
    }[family]()
    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(n), OCCASIONS),
            "t": t.ravel(),
            "y": y.ravel().astype(float),
        }
    )
    drawn = rng.random(n) < DRAWN_ANEW
    labels = np.where(drawn, rng.integers(0, groups, n), group) + 1
    # Nobody may be short of a group in a small sample.
    labels[:groups] = k + 1
    return frame, labels


def _simulated(
    family: str, groups: int, units: int, starts: int, *, unique: bool = False,
    **more: Any,
) -> Case:  # fmt: skip
    kind = "cold" if starts else "near"
    words = {"gaussian": "gaussian", "poisson": "Poisson", "zip": "ZIP"}[family]
    name = f"{family}-g{groups}-{units}-{kind}{'-unique' if unique else ''}"
    title = f"{words}, {groups} groups, {units:,} units"
    if unique:
        title += ", all times unique"
    # Every peer here has a residual variance for each group.
    options = {"variance": "group"} if family == "gaussian" else {}
    draw = partial(simulate, family, groups, unique, units)
    return Case(
        name, title, family, groups, starts, draw, options=more.pop("options", options),
        **more,
    )  # fmt: skip


def _near(
    family: str, groups: int, units: int, recorded: Mapping[str, float] | None = None,
    unique: bool = False,
) -> Case:  # fmt: skip
    """Begin where all begin: near the truth."""
    shown = tuple(
        Recorded(
            program,
            abs(cpu),
            cpu < 0,
            "2 of its own" if program == "gbtmkit" else "the labels",
        )
        for program, cpu in (recorded or {}).items()
    )
    peers = {} if family == "zip" else {"R flexmix": 0}
    return _simulated(
        family, groups, units, 0, unique=unique, recorded=shown, peers=peers
    )


def _cold(family: str, groups: int, units: int, flexmix: int = 0) -> Case:
    """Thirty-two starts; flexmix has as many, or the few it has time for."""
    peers = {"R flexmix": flexmix} if flexmix else {}
    return _simulated(family, groups, units, 32, peers=peers)


def _free(family: str, words: str, units: int) -> Case:
    """Give every occasion a mean of its own: the model that StepMix has."""
    return Case(
        f"{family}-free-{units}",
        f"{words}, 3 groups, {units:,} units, free means",
        family,
        3,
        32,
        partial(simulate, family, 3, False, units),
        trend=None,
        options={"variance": "group"} if family == "gaussian" else {},
        peers={"stepmix": 32},
    )


# -- real data -------------------------------------------------------------------------


def _read(
    file: str, columns: Mapping[str, Callable[[pd.DataFrame], Any]], units: int | None
) -> tuple[pd.DataFrame, None]:
    frame = pd.read_csv(REFERENCE / "data" / f"gbtm_{file}.csv")
    made = {name: make(frame) for name, make in columns.items()}
    frame = pd.DataFrame({"id": frame["id"]} | made).dropna(ignore_index=True)
    if units is not None:
        frame = frame[frame["id"].isin(frame["id"].unique()[:units])]
    return frame, None


def _real(
    name: str, title: str, family: str, groups: int, starts: int, best: str,
    file: str, columns: Mapping[str, Callable[[pd.DataFrame], Any]], trend: int,
    recorded: tuple[tuple[str, str, str], ...], **options: Any,
) -> Case:  # fmt: skip
    time, response = columns
    known = reference()
    shown = tuple(
        Recorded(program, known[case]["cpu"], False, words, case)
        for program, case, words in recorded
        if case in known
    )
    return Case(
        name, title, family, groups, starts, partial(_read, file, columns),
        response, time, trend, options, recorded=shown, best=best,
    )  # fmt: skip


_TO1ADJ = {"x": lambda d: d["t"] / 30, "count": lambda d: d["count"].astype(float)}
_WHEELER = {"t": lambda d: d["t"].astype(float), "y": lambda d: d["y"].astype(float)}
_PAQUID = {"a": lambda d: (d["age"] - 65) / 10, "MMSE": lambda d: d["MMSE"]}


def _cases() -> list[Case]:
    near = [
        _near("gaussian", 3, 500, {"lcmm": 2.4, "trajeR": 21.6, "gbtmkit": 1.3}),
        _near("gaussian", 3, 5_000, {"lcmm": 15.7, "trajeR": -179, "gbtmkit": 14.4}),
        _near("gaussian", 3, 50_000, {"lcmm": -179, "gbtmkit": 108}),
        _near("gaussian", 5, 500, {"lcmm": 2.9}),
        _near("gaussian", 5, 5_000, {"lcmm": 48}),
        _near("poisson", 4, 500, {"gbtmkit": 1.7}),
        _near("poisson", 4, 5_000, {"gbtmkit": 16.9}),
        _near("poisson", 4, 50_000),
        *(_near("zip", 3, units) for units in (500, 5_000, 50_000)),
        _near("gaussian", 3, 5_000, {"lcmm": 17.3}, unique=True),
        _near("poisson", 4, 5_000, unique=True),
    ]
    cold = [
        _cold("gaussian", 3, 500, 32),
        _cold("gaussian", 3, 5_000, 8),
        _cold("gaussian", 3, 50_000),
        _cold("poisson", 4, 500, 32),
        _cold("poisson", 4, 5_000, 8),
        _cold("poisson", 4, 50_000),
        *(_cold("zip", 3, units) for units in (500, 5_000, 50_000)),
        _free("gaussian", "gaussian", 5_000),
        _free("binomial", "0/1", 5_000),
    ]
    large = _simulated("gaussian", 5, 1_000_000, 20, threads=2)
    return [*near, *cold, large, *_real_cases()]


def _real_cases() -> list[Case]:
    return [
        _real("paquid-g3", "paquid MMSE, 3 groups, near-unique ages", "gaussian", 3, 15,
              "lab.paquid.MMSE.g3", "paquid", _PAQUID, 2,
              (("lcmm", "hlme.paquid.MMSE.g3", "gridsearch, 15 starts"),)),
        _real("wheeler-zip0", "Wheeler's counts, ZIP, 3 groups", "zip", 3, 10,
              "lab.wheeler.zip0.g3", "wheeler_zip", _WHEELER, 2,
              (("trajeR", "trajeR.wheeler_zip.g3.L", "its own one"),)),
        _real("wheeler-zip1", "Wheeler's counts, ZIP, zeros in time, 3 groups", "zip",
              3, 10, "lab.wheeler.zip1.g3", "wheeler_zip", _WHEELER, 2,
              (("crimCV", "crimCV.wheeler.zip.g3", "10 starts"),), zero="~ t"),
        _real("to1adj-zip", "TO1adj, ZIP, cubic, 3 groups", "zip", 3, 10,
              "lab.to1adj.zip.g3", "to1adj", _TO1ADJ, 3, (), zero="~ x"),
        _real("to1adj-tau", "TO1adj, ZIP(tau), cubic, 3 groups", "zip", 3, 10,
              "lab.to1adj.zipt.g3", "to1adj", _TO1ADJ, 3,
              (("crimCV", "crimCV.to1adj.zipt.g3", "10 starts"),), zero="tau"),
    ]  # fmt: skip


CASES: Mapping[str, Case] = {case.name: case for case in _cases()}
LARGE = "gaussian-g5-1000000-cold"
QUICK = tuple(n for n, c in CASES.items() if "50000" not in n and n != LARGE)
REAL = tuple(case.name for case in _real_cases())
