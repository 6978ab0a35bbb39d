"""A column of the data, read as numbers or as levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .contrasts import Contrast
from .errors import DesignError, listed
from .expressions import quote_name

__all__ = ["Categorical", "Column", "Numeric", "align"]


@dataclass(frozen=True)
class Numeric:
    """Numeric columns.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,) or (n, d)
        float64, except that a bare integer or float32 column keeps its dtype. A bare
        column is a view of the data, not a copy. Missing values are NaN.
    names : tuple of str
        Empty for one column, else the d suffixes such as ``"[1]"``.
    """

    values: np.ndarray
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Categorical:
    """A categorical variable as integer codes.

    Parameters
    ----------
    codes : numpy.ndarray of int32, shape (n,)
        Position of each row's level in `levels`; -1 where it is missing.
    levels : tuple
        The levels in order: that of a pandas categorical, else sorted. Levels that
        do not occur in the data are dropped, as R's ``lm`` does.
    contrast : Contrast
        Treatment coding unless `C` says otherwise; for ordered pandas categoricals
        too, as in formulaic and patsy (R would use ``contr.poly``).
    """

    codes: np.ndarray
    levels: tuple[Any, ...]
    contrast: Contrast = field(default_factory=Contrast)


class Column:
    """A column as `lookup` returned it, read as numbers or as levels on demand."""

    def __init__(self, name: str, values: Any):
        if not hasattr(values, "dtype"):
            values = np.asarray(values)
        self.name, self.values, self.dtype = name, values, values.dtype
        if getattr(self.dtype, "kind", "") in "mM" or isinstance(
            self.dtype, (pd.PeriodDtype, pd.IntervalDtype)
        ):
            raise DesignError(
                f"column {name!r} holds {self.dtype}, which a formula cannot use: "
                "make it a number (days since a start) or text first"
            )
        if getattr(self.dtype, "kind", "") == "c":
            raise DesignError(f"column {name!r} holds complex numbers")
        if np.ndim(values) != 1:
            raise DesignError(
                f"column {name!r} has {np.ndim(values)} dimensions, where one value "
                "for each row was expected"
            )

    @cached_property
    def inferred(self) -> str:
        """What an object column holds, in pandas' words."""
        return pd.api.types.infer_dtype(self.values, skipna=True)

    @property
    def is_object(self) -> bool:
        """Whether the column holds Python objects."""
        return self.dtype == object

    @property
    def is_categorical(self) -> bool:
        """Whether the column holds levels: categories, text, true and false."""
        if isinstance(self.dtype, pd.CategoricalDtype):
            return True
        if self.is_object:
            return self.inferred not in _NUMBERS
        return bool(
            pd.api.types.is_bool_dtype(self.dtype)
            or not pd.api.types.is_numeric_dtype(self.dtype)
        )

    @property
    def is_logical(self) -> bool:
        """Whether the column holds true and false."""
        if isinstance(self.dtype, pd.CategoricalDtype):
            return False
        if self.is_object:
            return self.inferred == "boolean"
        return bool(pd.api.types.is_bool_dtype(self.dtype))

    def array(self) -> np.ndarray:
        """Return the column as numbers, a view where that is possible."""
        if self.is_categorical and not self.is_logical:
            raise DesignError(
                f"column {self.name!r} is not numeric (it holds {self._describe()}), "
                "so it cannot be used in arithmetic or compared with numbers; write "
                f"C({quote_name(self.name)}) to use it as a categorical variable"
            )
        if isinstance(self.dtype, np.dtype) and not self.is_object:
            return np.asarray(self.values)
        series = pd.Series(self.values)
        if self.is_object:
            series = pd.to_numeric(series.astype("Float64"))
        if series.isna().any():
            return series.to_numpy(dtype=np.float64, na_value=np.nan)
        return series.to_numpy(dtype=getattr(series.dtype, "numpy_dtype", np.float64))

    def factor(self) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Return codes and the levels that occur."""
        if isinstance(self.dtype, pd.CategoricalDtype):
            values = self.values
            values = values.array if isinstance(values, pd.Series) else values
            return _drop_unused(values.codes, values.categories.tolist())
        if isinstance(self.dtype, np.dtype) and self.dtype.kind == "b":
            return _drop_unused(np.asarray(self.values, dtype=np.int8), [False, True])
        values = self.values
        if isinstance(values, np.ndarray) and values.dtype.kind in "US":
            values = values.astype(object)
        return _factorize(values)

    def _describe(self) -> str:
        return self.inferred if self.is_object else f"values of type {self.dtype}"


_NUMBERS = frozenset({"integer", "floating", "mixed-integer-float", "decimal"})


def _drop_unused(
    codes: np.ndarray, levels: list[Any]
) -> tuple[np.ndarray, tuple[Any, ...]]:
    used = np.bincount(codes[codes >= 0], minlength=len(levels)) > 0
    if used.all():
        return codes.astype(np.int32), tuple(levels)
    table = np.append(np.cumsum(used) - 1, -1).astype(np.int32)
    return table[codes], tuple(lv for lv, use in zip(levels, used, strict=True) if use)


def _factorize(values: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
    codes, uniques = pd.factorize(values)
    levels = uniques.tolist()
    try:
        order = sorted(range(len(levels)), key=levels.__getitem__)
    except TypeError:  # mixed types have no order of their own
        order = sorted(
            range(len(levels)), key=lambda i: (type(levels[i]).__name__, str(levels[i]))
        )
    rank = np.empty(len(levels) + 1, dtype=np.int32)
    rank[order], rank[-1] = np.arange(len(levels)), -1
    return rank[codes], tuple(levels[i] for i in order)


def align(
    codes: np.ndarray, levels: tuple[Any, ...], known: list[Any], what: str
) -> np.ndarray:
    """Recode to the levels known from the fit, refusing those that are not."""
    if list(levels) == known:
        return codes
    position = {level: index for index, level in enumerate(known)}
    unseen = [level for level in levels if level not in position]
    if unseen:
        raise DesignError(
            f"`{what}` has values that are not among its levels: {listed(unseen)}. "
            f"The levels are {listed(known)}. Leave these rows out, or fit again "
            "with data that contain them."
        )
    table = np.array([position[level] for level in levels] + [-1], dtype=np.int32)
    return table[codes]
