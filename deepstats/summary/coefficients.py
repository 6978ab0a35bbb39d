"""The table of estimates on a printed page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .page import Table

# ----------------------------------------------------- coefficient tables


def coefficient_table(
    params: pd.Series,
    bse: pd.Series,
    stat: pd.Series,
    pvalues: pd.Series,
    conf_int: pd.DataFrame | np.ndarray,
    use_t: bool,
    conf_level: float = 0.95,
    *,
    component: Sequence[str] | None = None,
    caption: str | None = None,
    df: Sequence[float] | np.ndarray | None = None,
) -> Table:
    """Build the coefficient block of a summary.

    Parameters
    ----------
    params, bse, stat, pvalues : Series
        Estimates, standard errors, test statistics and p-values, labelled by term.
    conf_int : DataFrame or array, shape (terms, 2)
        Lower and upper limits.
    use_t : bool
        Whether the statistic is compared with Student's t (head ``t``) or with the
        normal distribution (head ``z``).
    conf_level : float, default 0.95
        The level of `conf_int`; it sets the heads ``[0.025`` and ``0.975]``.
    component : sequence of str, optional
        The part of the model each term belongs to; every part gets a sub-heading.
    caption : str, optional
        One line above the heads.
    df : sequence of float, optional
        Degrees of freedom of each term's test, where they differ: a column before the
        statistic.

    Returns
    -------
    Table
        With statsmodels' heads. A row is written with four decimals as long as these
        show two digits of its standard error, otherwise scientifically. A parameter
        that is not tested (its statistic is NaN) has blanks for statistic and p-value.

    Raises
    ------
    ValueError
        If lengths differ or `conf_level` is not between 0 and 1.
    """
    if not 0 < conf_level < 1:
        raise ValueError(f"conf_level={conf_level} must lie between 0 and 1")
    columns = [np.asarray(a, dtype=float) for a in (params, bse, stat, pvalues)]
    limits = np.asarray(conf_int, dtype=float)
    n = len(columns[0])
    if any(len(c) != n for c in columns) or limits.shape != (n, 2):
        raise ValueError(
            f"{n} estimates need as many standard errors, statistics, p-values and "
            f"pairs of limits; got {[len(c) for c in columns[1:]]} and {limits.shape}"
        )
    if component is not None and len(component) != n:
        raise ValueError(f"{len(component)} components given for {n} estimates")
    rows = [
        _coefficient_row(*values, *limits[i])
        for i, values in enumerate(zip(*columns, strict=True))
    ]
    letter, tail = ("t" if use_t else "z"), (1 - conf_level) / 2
    heads = ["coef", "std err", letter, f"P>|{letter}|"]
    heads += [f"[{tail:.4g}", f"{1 - tail:.4g}]"]
    frame = pd.DataFrame(rows, index=list(params.index), columns=heads)
    if df is not None:
        if len(df) != n:
            raise ValueError(f"{len(df)} degrees of freedom given for {n} estimates")
        frame.insert(2, "df", [_degrees(float(value)) for value in df])
    sections = _section_starts(component) if component is not None else ()
    return Table(frame, caption=caption, sections=sections, align="r" * frame.shape[1])


def _degrees(value: float) -> str:
    """Write degrees of freedom to two decimals; blank where there is no test."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if abs(value) < 1e5 else f"{value:.4g}"


def _coefficient_row(
    estimate: float, error: float, statistic: float, p: float, low: float, high: float
) -> list[str]:
    scale = error if math.isfinite(error) and error > 0 else abs(estimate)
    largest = max((abs(v) for v in (estimate, scale) if math.isfinite(v)), default=0)
    fixed = (scale >= 1e-3 or scale == 0) and largest < 1e7
    outcome = [
        f"{v:.4f}" if fixed and math.isfinite(v) else f"{v:.3e}"
        for v in (estimate, error, low, high)
    ]
    test = f"{statistic:.3f}" if abs(statistic) < 1e6 else f"{statistic:.3e}"
    tests = ["", ""] if math.isnan(statistic) else [test, f"{p:.3f}"]
    return [*outcome[:2], *tests, *outcome[2:]]


def _section_starts(names: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Where a run of equal names begins; a single run needs no heading."""
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    return tuple((i, str(names[i])) for i in starts) if len(starts) > 1 else ()
