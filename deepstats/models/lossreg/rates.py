"""Rates of error by group at a threshold: counted exactly, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from ...errors import DesignError

__all__ = [
    "MEASURES",
    "RATES",
    "Tallies",
    "check_threshold",
    "fairness_table",
    "nij_score",
    "tallied",
]

Array = np.ndarray

_EVERY = (0, 1, 2, 3)
#: Rates as cells over cells; a cell is twice the outcome plus whether it is flagged.
RATES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "base_rate": ((2, 3), _EVERY),
    "flagged": ((1, 3), _EVERY),
    "fpr": ((1,), (0, 1)),
    "tpr": ((3,), (2, 3)),
    "fnr": ((2,), (2, 3)),
    "fdr": ((1,), (1, 3)),
    "accuracy": ((0, 3), _EVERY),
}
#: What groups may be compared by: the rates whose largest difference is the gap.
MEASURES: Mapping[str, tuple[str, ...]] = {
    "fpr": ("fpr",),
    "tpr": ("tpr",),
    "odds": ("fpr", "tpr"),
    "parity": ("flagged",),
}
_SHOWN = ("base_rate", "flagged", "fpr", "fnr", "fdr", "accuracy")
_COMPARED = ("flagged", "fpr", "fnr", "fdr", "accuracy")


def check_threshold(threshold: float) -> float:
    """Return a threshold strictly between 0 and 1; raise `ValueError` for others."""
    if not 0 < threshold < 1:
        raise ValueError(
            f"threshold={threshold!r} must lie strictly between 0 and 1: at 0 all rows "
            "are flagged, at 1 none."
        )
    return float(threshold)


@dataclass(frozen=True, eq=False)
class Tallies:
    """Counts of a sample, or of many, by group.

    Attributes
    ----------
    cells : ndarray, shape (..., groups, 4)
        Rows by outcome and flag: negative passed, negative flagged, positive passed,
        positive flagged.
    squares : ndarray, shape (..., groups)
        Sums of squared errors of the predictions.
    """

    cells: Array
    squares: Array

    def counts(self, rate: str) -> tuple[Array, Array]:
        """Numerators and denominators of one of `RATES`; shape (..., groups)."""
        above, below = RATES[rate]
        return (
            self.cells[..., list(above)].sum(-1),
            self.cells[..., list(below)].sum(-1),
        )

    def rate(self, rate: str) -> Array:
        """Return a rate of each group, NaN if of no rows; shape (..., groups)."""
        above, below = self.counts(rate)
        with np.errstate(invalid="ignore"):
            return above / np.where(below > 0, below, np.nan)

    def gap(self, measure: str) -> Array:
        """Return the largest difference between groups in any rate of a measure."""
        rates = [self.rate(name) for name in MEASURES[measure]]
        return np.max([r.max(-1) - r.min(-1) for r in rates], axis=0)

    @property
    def whole(self) -> Tallies:
        """All groups as one."""
        return Tallies(
            self.cells.sum(-2, keepdims=True), self.squares.sum(-1, keepdims=True)
        )

    @property
    def brier(self) -> Array:
        """Mean squared error of each group; shape (..., groups)."""
        return self.squares / self.cells.sum(-1)

    @property
    def nij(self) -> Array:
        """Return (1 - Brier score)(1 - gap of false-positive rates); shape (...)."""
        return (1 - self.whole.brier[..., 0]) * (1 - self.gap("fpr"))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Checked rows: cells, squared errors, codes and levels of the groups."""

    cells: Array
    squares: Array
    codes: Array
    levels: tuple

    def tallies(self) -> Tallies:
        """Count them."""
        count = len(self.levels)
        cells = np.bincount(4 * self.codes + self.cells, minlength=4 * count)
        squares = np.bincount(self.codes, self.squares, count)
        return Tallies(cells.reshape(count, 4).astype(np.float64), squares)

    def resampled(self, reps: int, seed: int) -> Tallies:
        """Count samples drawn with replacement within each group."""
        rng = np.random.default_rng(seed)
        cells = np.empty((reps, len(self.levels), 4))
        squares = np.empty((reps, len(self.levels)))
        for g in range(len(self.levels)):
            own = self.codes == g
            cell, square = self.cells[own], self.squares[own]
            for r in range(reps):
                at = rng.integers(len(cell), size=len(cell))
                cells[r, g] = np.bincount(cell[at], minlength=4)
                squares[r, g] = square[at].sum()
        return Tallies(cells, squares)


def tallied(y: Any, p: Any, group: Any, threshold: float) -> tuple[Tallies, tuple]:
    """Count outcomes and flags of each group.

    Parameters
    ----------
    y, p, group : array_like, shape (n,)
        Outcomes 0 and 1, predicted probabilities, and what groups rows.
    threshold : float
        Rows whose prediction is at least that are flagged.

    Returns
    -------
    tallies : Tallies
    levels : tuple
        The groups, sorted.

    Raises
    ------
    DesignError, ValueError
        For missing values, outcomes other than 0 and 1, predictions that are no
        probabilities, one group, a group without one of the outcomes, a threshold
        outside (0, 1).
    """
    rows = _rows(y, p, group, threshold)
    return rows.tallies(), rows.levels


def nij_score(y: Any, p: Any, group: Any, threshold: float = 0.5) -> float:
    """Return the score of the National Institute of Justice's forecasting challenge.

    ``(1 - BS)(1 - |FPR_a - FPR_b|)``: BS the mean squared error of the predictions, FPR
    the share of a group's rows with outcome 0 that are flagged. With more than two
    groups the largest difference counts.

    Parameters
    ----------
    y, p, group, threshold
        See `tallied`.

    References
    ----------
    National Institute of Justice (2021), Recidivism Forecasting Challenge.

    Examples
    --------
    >>> nij_score([0, 0, 1, 0, 0, 1], [0.6, 0.2, 0.9, 0.1, 0.2, 0.8], list("aaabbb"))
    0.4583333333333333
    """
    found, _ = tallied(y, p, group, threshold)
    return float(found.nij)


def fairness_table(
    y: Any,
    p: Any,
    group: Any,
    threshold: float = 0.5,
    *,
    conf_level: float = 0.95,
    reps: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    """Tabulate rates of error by group, their differences and gaps, with intervals.

    Parameters
    ----------
    y, p, group : array_like, shape (n,)
        Outcomes 0 and 1, predicted probabilities, and what groups rows.
    threshold : float, default 0.5
        Rows whose prediction is at least that are flagged.
    conf_level : float, default 0.95
    reps : int, default 999
        Bootstrap samples.
    seed : int, default 0

    Returns
    -------
    DataFrame
        Indexed by measure and group, with columns estimate, low, high, count, of and
        method. For each group and for ``"all"``: base_rate, flagged, fpr (of outcomes
        0), fnr (of outcomes 1), fdr (of those flagged), accuracy, brier. For each group
        less the largest: the differences. Last, for all: the largest differences
        gap_fpr, gap_tpr, gap_odds (in either), gap_parity (in flagged), and nij.

    Raises
    ------
    DesignError, ValueError
        See `tallied`.

    Notes
    -----
    Intervals of rates are Wilson's, of differences Newcombe's (his method 10, of two
    Wilson intervals). Those of Brier scores are percentiles of a bootstrap that draws
    rows within groups; those of gaps the percentiles of the signed difference of the
    two groups that are furthest apart, with zero as the low end where they have both
    signs (that these two were chosen out of several groups is not allowed for). The
    interval of nij goes from the product of the high ends of Brier score and gap to
    that of the low ones, and covers more than `conf_level`.

    References
    ----------
    Newcombe (1998), Interval estimation for the difference between independent
    proportions, Statistics in Medicine 17, 873-890.

    Examples
    --------
    >>> y = [0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    >>> p = [0.7, 0.2, 0.3, 0.9, 0.6, 0.1, 0.2, 0.3, 0.8, 0.4]
    >>> table = fairness_table(y, p, list("aaaaabbbbb"))
    >>> print(table.loc["fpr", ["estimate", "low", "high", "count", "of"]].round(3)
    ...     .reset_index().to_string(index=False))
    group  estimate    low  high  count  of
        a     0.333  0.061 0.792    1.0 3.0
        b     0.000  0.000 0.561    0.0 3.0
      all     0.167  0.030 0.564    1.0 6.0
    b - a    -0.333 -0.792 0.291    NaN NaN
    """
    if not 0 < conf_level < 1:
        raise ValueError(f"conf_level={conf_level!r} must lie between 0 and 1.")
    if reps < 2:
        raise ValueError(f"reps={reps!r}: the bootstrap needs 2 samples or more.")
    rows = _rows(y, p, group, threshold)
    found, drawn = rows.tallies(), rows.resampled(int(reps), seed)
    z = float(ndtri((1 + conf_level) / 2))
    lines: list[dict[str, Any]] = []
    for rate in _SHOWN:
        lines += _rate_lines(found, rate, rows.levels, z)
    lines += _drawn_lines("brier", found.brier, drawn.brier, rows.levels, conf_level)
    lines += _drawn_lines(
        "brier", found.whole.brier, drawn.whole.brier, ("all",), conf_level
    )
    brier = lines[-1]
    gaps = {m: _gap_line(found, drawn, m, conf_level) for m in MEASURES}
    lines += gaps.values()
    ends = [(1 - brier[e]) * (1 - gaps["fpr"][e]) for e in ("high", "low")]
    lines.append(_line("nij", "all", found.nij, *ends, "ends"))
    return pd.DataFrame(lines).set_index(["measure", "group"])


# -- intervals -------------------------------------------------------------------------


def wilson(count: Array, of: Array, z: float) -> tuple[Array, Array]:
    """Wilson's interval of a proportion; NaN where it is of no rows."""
    n = np.where(of > 0, of, np.nan)
    share, square = count / n, z**2 / n
    middle = (share + square / 2) / (1 + square)
    half = np.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    # Rounding must not take the bounds of no and of all rows off 0 and 1.
    return np.where(count == 0, 0.0 * n, middle - half), np.where(
        count == of, 1.0 + 0.0 * n, middle + half
    )


def _rate_lines(
    found: Tallies, rate: str, levels: tuple, z: float
) -> list[dict[str, Any]]:
    """Lines of a rate: each group, all, and differences from the largest group."""
    count, of = found.counts(rate)
    low, high = wilson(count, of, z)
    value = found.rate(rate)
    every, total = (float(v[0]) for v in found.whole.counts(rate))
    ends = wilson(np.array(every), np.array(total), z)
    lines = [
        _line(rate, level, value[g], low[g], high[g], "Wilson", count[g], of[g])
        for g, level in enumerate(levels)
    ]
    share = every / total if total else np.nan
    lines.append(_line(rate, "all", share, *ends, "Wilson", every, total))
    if rate not in _COMPARED:
        return lines
    r = int(found.cells.sum(-1).argmax())
    for g, level in enumerate(levels):
        if g != r:
            gap = value[g] - value[r]
            down = np.hypot(value[g] - low[g], high[r] - value[r])
            up = np.hypot(high[g] - value[g], value[r] - low[r])
            name = f"{level} - {levels[r]}"
            lines.append(_line(rate, name, gap, gap - down, gap + up, "Newcombe"))
    return lines


def _drawn_lines(
    measure: str, value: Array, drawn: Array, names: tuple, conf_level: float
) -> list[dict[str, Any]]:
    """Lines with percentiles of the bootstrap; samples without a rate are left out."""
    tail = (1 - conf_level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    return [
        _line(measure, name, value[g], low[g], high[g], "bootstrap")
        for g, name in enumerate(names)
    ]


def _gap_line(
    found: Tallies, drawn: Tallies, measure: str, conf_level: float
) -> dict[str, Any]:
    """Return the line of a largest difference, by the bootstrap of its two groups."""
    rate = max(MEASURES[measure], key=lambda name: float(np.ptp(found.rate(name))))
    first, second = found.rate(rate).argmax(), found.rate(rate).argmin()
    signed = drawn.rate(rate)[:, first] - drawn.rate(rate)[:, second]
    tail = (1 - conf_level) / 2
    ends = np.nanquantile(signed, [tail, 1 - tail])
    low, high = max(ends[0], 0.0), np.abs(ends).max()
    return _line(f"gap_{measure}", "all", found.gap(measure), low, high, "bootstrap")


def _line(
    measure: str, group: Any, value: Any, low: Any, high: Any, method: str,
    count: float = np.nan, of: float = np.nan,
) -> dict[str, Any]:  # fmt: skip
    return {
        "measure": measure, "group": group, "estimate": float(value),
        "low": float(low), "high": float(high), "count": float(count),
        "of": float(of), "method": method,
    }  # fmt: skip


# -- checks ----------------------------------------------------------------------------


def _rows(y: Any, p: Any, group: Any, threshold: float) -> _Rows:
    threshold = check_threshold(threshold)
    outcome, prediction = _numbers(y, "y"), _numbers(p, "p")
    labels = pd.Series(np.asarray(group, dtype=object)).infer_objects()
    if not len(outcome) == len(prediction) == len(labels):
        raise DesignError(
            f"y, p and group have {len(outcome)}, {len(prediction)} and {len(labels)} "
            "rows; give as many of each."
        )
    if labels.isna().any():
        raise DesignError(
            f"group is missing in {int(labels.isna().sum())} rows; drop them."
        )
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise DesignError("y must be 0 or 1 in all rows: rates of error count them.")
    if prediction.min(initial=0.0) < 0 or prediction.max(initial=1.0) > 1:
        raise DesignError(
            f"p must be probabilities; it runs from {prediction.min():g} to "
            f"{prediction.max():g}."
        )
    levels = tuple(sorted(labels.unique(), key=_order))
    if len(levels) < 2:
        raise DesignError(f"there are no two groups to compare: group is {levels}.")
    codes = pd.Categorical(labels, categories=list(levels)).codes.astype(np.int64)
    cells = 2 * outcome.astype(np.int64) + (prediction >= threshold)
    for value, name in ((0, "negatives"), (1, "positives")):
        there = np.bincount(codes[outcome == value], minlength=len(levels)) > 0
        if not there.all():
            gone = [level for level, t in zip(levels, there, strict=True) if not t]
            raise DesignError(
                f"the groups {gone} have no {name} (rows with outcome {value}), so "
                "that their rates of error are not defined; merge or leave out groups."
            )
    return _Rows(cells, (prediction - outcome) ** 2, codes, levels)


def _order(level: Any) -> tuple[bool, Any]:
    """Sort numbers as numbers, anything else as text."""
    number = isinstance(level, (int, float, np.number))
    return (not number, level if number else str(level))


def _numbers(values: Any, name: str) -> Array:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DesignError(f"{name} must be numbers.") from None
    if found.ndim != 1:
        raise DesignError(f"{name} has shape {found.shape}; give one value a row.")
    if not np.isfinite(found).all():
        count = int((~np.isfinite(found)).sum())
        raise DesignError(
            f"{name} is NaN or infinite in {count} rows; drop them (a prediction is "
            "NaN where a variable is missing)."
        )
    return found
