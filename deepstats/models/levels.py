"""Categories as codes and levels, and designs whose constant thresholds replace."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..compute import Compute
from ..design import Design
from ..errors import DesignError
from ..formula import Formula, Term
from ..leastsquares import aliased_columns, triangle

__all__ = [
    "ALIASED",
    "coded",
    "cuts",
    "ordered",
    "with_constant",
    "without_constant",
    "without_rows",
]

#: Why columns are dropped beside thresholds.
ALIASED = "linear combinations of earlier columns or of the thresholds, dropped."
_MOST_LEVELS = 100
_ROWS = 20_000


def coded(design: Design) -> tuple[np.ndarray, tuple[Any, ...], tuple[Any, ...]]:
    """Return codes of the response, levels that occur in order, and those that do not.

    Parameters
    ----------
    design : Design
        Whose response is categorical, strings or whole numbers.

    Raises
    ------
    DesignError
        For numbers that are not whole, for too many levels, and for a single one.
    """
    found = _coded(design.y, design.y_levels, design.y_name)
    if len(found[1]) < 2:
        raise DesignError(
            f"the response {design.y_name} is always {found[1][0]!r}; there is "
            "nothing to explain."
        )
    return found


def _coded(
    y: np.ndarray, levels: tuple | None, name: str
) -> tuple[np.ndarray, tuple[Any, ...], tuple[Any, ...]]:
    """Codes, levels that occur in order, and levels that do not."""
    if levels is None:
        values = np.asarray(y, dtype=np.float64)
        broken = int((values != np.round(values)).sum())
        if broken:
            raise DesignError(
                f"the response {name} is not categorical: {broken} values are not "
                "whole numbers. Cut it into categories first."
            )
        found, codes = np.unique(values, return_inverse=True)
        if len(found) > _MOST_LEVELS:
            raise DesignError(
                f"the response {name} has {len(found)} different values, more than "
                f"{_MOST_LEVELS}: merge levels, or use a model of counts or numbers."
            )
        return codes.astype(np.float64), tuple(int(v) for v in found), ()
    used = np.unique(y)
    place = np.searchsorted(used, y).astype(np.float64)
    unused = tuple(v for k, v in enumerate(levels) if k not in used)
    return place, tuple(levels[k] for k in used), unused


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def cuts(levels: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of the thresholds between levels: ``"low|high"``."""
    return tuple(f"{low}|{high}" for low, high in pairwise(levels))


def ordered(levels: tuple[Any, ...], width: int = 60) -> str:
    """Levels in their order, as one line of at most `width` characters."""
    text = " < ".join(str(v) for v in levels)
    return text if len(text) <= width else text[: width - 3] + "..."


def without_rows(name: str, unused: tuple[Any, ...]) -> list[str]:
    """Say which levels of a response do not occur, if there are any."""
    if not unused:
        return []
    names = ", ".join(str(v) for v in unused)
    return [f"Levels of {name} without rows, left out: {names}."]


def with_constant(formula: Formula) -> Formula:
    """Give a formula an intercept, which makes factors drop a level.

    Its own column goes afterwards; see `without_constant`.
    """
    terms = tuple(t for t in formula.rhs.terms if t.factors)
    return replace(formula, rhs=replace(formula.rhs, terms=(Term(()), *terms)))


def without_constant(design: Design, compute: Compute) -> tuple[list[int], list[str]]:
    """Find the columns to keep where thresholds take the constant's place.

    What is aliased with the constant is aliased with the thresholds.

    Returns
    -------
    keep : list of int
    gone : list of str
        Names of columns that are linear combinations of others, the constant apart.
    """
    names = design.X.names
    # Columns that are independent in some of the rows are so in all.
    some = design.every(max(1, design.n // _ROWS)).only(0)
    gone = aliased_columns(*triangle(some, compute))
    if gone and some.n < design.n:
        gone = aliased_columns(*triangle(design.only(0), compute))
    keep = [j for j, n in enumerate(names) if n != "Intercept" and j not in gone]
    return keep, [names[j] for j in gone]
