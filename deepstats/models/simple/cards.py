"""A score card: points as a table, as HTML, and as an expression of SQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...summary import Notes, Summary, Table

__all__ = ["ScoreCard", "sql_of"]

_LEVEL = re.compile(r"(?:C\()?(`[^`]+`|\w+)\)?\[(?:T\.)?(.*)\]")


@dataclass(frozen=True, eq=False)
class ScoreCard:
    """Points to be added up, and what a total means.

    Attributes
    ----------
    points : DataFrame
        By column: points, from and to (the range of the column).
    risks : DataFrame
        By total: rows, predicted, observed.
    title, note : str
    """

    points: pd.DataFrame
    risks: pd.DataFrame
    title: str
    note: str

    @property
    def summary(self) -> Summary:
        """Both tables as a page."""
        formats = {"predicted": ".3f", "observed": ".3f"}
        ranges = {"from": "g", "to": "g"}
        blocks = (
            Table(self.points, ranges, caption="Points"),
            Table(self.risks, formats, caption="What a total means"),
            Notes((self.note,)),
        )
        return Summary("Score card", self.title, blocks)

    def as_html(self) -> str:
        """Return the card as HTML."""
        return self.summary.as_html()

    def __str__(self) -> str:
        return self.summary.as_text()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.as_html()


def sql_of(names: list[str], points: np.ndarray, column: Callable[[str], Any]) -> str:
    """Write the sum of points as an expression of SQL.

    Parameters
    ----------
    names : list of str
        Columns of the design: names of columns of the data, levels of factors
        (``g[T.b]``, ``C(g)[T.b]``) and their products.
    points : ndarray of int, shape (p,)
    column : callable
        From a name to that column of the data; raises `KeyError`.

    Raises
    ------
    ModelError
        For a column that is computed by Python.
    """
    terms = []
    for name, value in zip(names, points, strict=True):
        if value:
            factors = [_factor(part, name, column) for part in _parts(name)]
            sign = "-" if value < 0 else "+"
            terms.append(f"{sign} {abs(int(value))} * {' * '.join(factors)}")
    text = " ".join(terms).removeprefix("+ ")
    return text or "0"


def _parts(name: str) -> list[str]:
    """Factors of a product: the colons outside of brackets and backticks."""
    return re.findall(r"(?:`[^`]*`|\[[^\]]*\]|\([^)]*\)|[^:`\[(])+", name)


def _factor(part: str, name: str, column: Callable[[str], Any]) -> str:
    plain = part.strip("`")
    if _known(plain, column) is not None:
        return _quoted(plain)
    found = _LEVEL.fullmatch(part)
    values = None if found is None else _known(found[1].strip("`"), column)
    if found is None or values is None:
        raise ModelError(
            f"the column {name} is computed, and cannot be written in SQL: make it a "
            "column of the data first."
        )
    label = next((v for v in pd.unique(values) if str(v) == found[2]), None)
    if label is None:
        raise ModelError(
            f"the column {name} is no level of {found[1]}: SQL can be written for "
            "treatment contrasts."
        )
    base = _quoted(found[1].strip("`"))
    if isinstance(label, bool | np.bool_):
        test = base if label else f"NOT {base}"
    else:
        test = f"{base} = {_literal(label)}"
    return f"CASE WHEN {base} IS NULL THEN NULL WHEN {test} THEN 1 ELSE 0 END"


def _known(name: str, column: Callable[[str], Any]) -> pd.Series | None:
    try:
        return pd.Series(np.asarray(column(name), dtype=object)).dropna()
    except KeyError:
        return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Any) -> str:
    if isinstance(value, int | float | np.number):
        return repr(value.item() if isinstance(value, np.number) else value)
    return "'" + str(value).replace("'", "''") + "'"
