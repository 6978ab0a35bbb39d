"""Columns by name, whatever frame they come in: the door at which frames end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from .errors import DesignError

__all__ = ["Table", "all_finite"]


class Table:
    """Columns by name, whatever frame they come in.

    Parameters
    ----------
    data : pandas.DataFrame, polars or pyarrow table, or mapping of columns
        Anything narwhals reads is accepted; only columns that are asked for are
        converted.

    Raises
    ------
    DesignError
        If `data` is none of these, or its columns differ in length.
    """

    def __init__(self, data: Any) -> None:
        self.rows: np.ndarray | None = None
        self._cache: dict[str, Any] = {}
        if isinstance(data, Table):
            # Columns once converted serve every reader.
            data, self._cache = data._data, data._cache
        elif not isinstance(data, pd.DataFrame):
            data = _as_columns(data)
        self._data = data
        self.columns = [str(c) for c in data]
        self.index = data.index if isinstance(data, pd.DataFrame) else None
        if self.index is not None:
            self.n = len(data)
        else:
            lengths = {len(data[c]) for c in data}
            if len(lengths) > 1:
                raise DesignError(f"columns differ in length: {sorted(lengths)}.")
            self.n = lengths.pop() if lengths else 0

    def full(self, name: str) -> pd.Series | np.ndarray:
        """Return all rows of a column."""
        if name not in self._cache:
            if name not in self.columns:
                raise KeyError(name)
            column = self._data[name]
            if isinstance(column, pd.DataFrame):
                raise DesignError(f"there are several columns named {name!r}.")
            if not isinstance(column, pd.Series):
                column = _to_series(column)
            self._cache[name] = column
        return self._cache[name]

    def __call__(self, name: str) -> pd.Series | np.ndarray:
        """Return the kept rows of a column."""
        column = self.full(name)
        if self.rows is None:
            return column
        return (
            column.iloc[self.rows]
            if isinstance(column, pd.Series)
            else column[self.rows]
        )

    def numeric(self, name: str) -> np.ndarray | None:
        """Return a float or integer column as an array (a view if it can be)."""
        if name not in self.columns:
            return None
        column = self.full(name)
        dtype = column.dtype
        if isinstance(dtype, np.dtype):
            return column.to_numpy() if dtype.kind in "fiu" else None
        if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(
            dtype
        ):
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        return None

    def missing(self, name: str) -> np.ndarray | None:
        """Return which rows are missing, or None when no row is."""
        values = self.numeric(name)
        if values is not None:
            if values.dtype.kind != "f" or all_finite(values):
                return None
            mask = np.isnan(values)
        else:
            column = self.full(name)
            if isinstance(column.dtype, pd.CategoricalDtype):
                mask = column.array.codes < 0
            else:
                mask = np.asarray(pd.isna(column))
        return mask if mask.any() else None


def _as_columns(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(k): _to_series(v) for k, v in data.items()}
    import narwhals.stable.v1 as nw

    try:
        frame = nw.from_native(data, eager_only=True)
    except TypeError as error:
        raise DesignError(
            "data must be a pandas or polars frame, a pyarrow table or a mapping of "
            f"columns, not {type(data).__name__}."
        ) from error
    return _Narwhal(frame)


class _Narwhal:
    """A frame of another library, its columns brought to pandas when asked for."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __iter__(self) -> Any:
        return iter(self.frame.columns)

    def __getitem__(self, name: str) -> pd.Series:
        import narwhals.stable.v1 as nw

        column = self.frame[name]
        series = column.to_pandas().reset_index(drop=True)
        if self.frame.implementation.is_polars() and column.dtype == nw.Categorical:
            # Polars orders these by first use in the session: no order of the caller's.
            levels = sorted(series.cat.categories)
            series = series.cat.reorder_categories(levels, ordered=False)
        return series


def _to_series(values: Any) -> pd.Series:
    if isinstance(values, pd.Series):
        return values
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = values if hasattr(values, "dtype") else np.asarray(values)
    if getattr(array, "ndim", 1) != 1:
        raise DesignError(
            f"a column must have one dimension, not shape {array.shape}; give each "
            "column its own name."
        )
    return pd.Series(array, copy=False)


def all_finite(values: np.ndarray) -> bool:
    """Whether every value is finite; one pass, no array of flags unless needed."""
    with np.errstate(all="ignore"):
        total = values.sum()
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())
