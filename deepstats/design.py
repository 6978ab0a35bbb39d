"""From a formula and a frame to tensors: rows kept, factors coded, columns named.

Frames end here. A `Design` holds the response and model matrices whose columns are
views of the caller's data (see `matrix`); its `Spec` rebuilds the same columns for new
data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from .coding import codings, encode
from .columns import Categorical, Numeric
from .compute import Compute, default_compute
from .errors import DesignError
from .expressions import expression_variables
from .formula import PLACES, Formula, GroupTerm, Rhs, Term
from .frame import Table, all_finite
from .matrix import Block, Coded, Column, ModelMatrix, Scratch, Source
from .transforms import evaluate

__all__ = ["Batch", "Design", "Grouping", "RandomTerm", "Spec", "Table", "varying"]


@dataclass(frozen=True, eq=False)
class Grouping:
    """A grouping factor: integer codes and the levels they stand for.

    Attributes
    ----------
    name : str
        As in the formula, ``"a:b"`` for an interaction.
    codes : ndarray of int, shape (n,)
    levels : tuple
    unseen : tuple
        In new data: labels that are not among the levels; their codes are -1.
    """

    name: str
    codes: np.ndarray
    levels: tuple
    unseen: tuple = ()

    def __len__(self) -> int:
        return len(self.levels)


@dataclass(frozen=True, eq=False)
class RandomTerm:
    """A random-effects term: its columns, its grouping and its covariance structure.

    Attributes
    ----------
    term : GroupTerm
    Z : ModelMatrix, shape (n, q)
        Columns that vary by group (one row of the data each, not expanded).
    grouping : Grouping
    part : int
        Number of the linear predictor it belongs to.
    label : str
        What is written before the names of its effects: the parameter whose predictor
        it belongs to, where that is not the first.
    """

    term: GroupTerm
    Z: ModelMatrix
    grouping: Grouping
    part: int = 0
    label: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its effects: ``"x"``, or ``"inflate:x"``."""
        if not self.label:
            return self.Z.names
        return tuple(f"{self.label}:{name}" for name in self.Z.names)


@dataclass(eq=False)
class Batch:
    """Some rows of a design, as tensors.

    Attributes
    ----------
    y : Tensor, shape (rows,) or (rows, responses)
    blocks : tuple of Block
        One for each linear predictor's matrix.
    offset : tuple of Tensor or None
        Added to each linear predictor; shape (rows,).
    weights, freq_weights : Tensor or None, shape (rows,)
    size : Tensor or None, shape (rows,)
        Trials, where the response counts successes.
    rows : slice
        Which rows of the design these are.
    """

    y: Tensor
    blocks: tuple[Block, ...]
    offset: tuple[Tensor | None, ...]
    weights: Tensor | None
    freq_weights: Tensor | None
    size: Tensor | None
    rows: slice

    @property
    def X(self) -> Tensor:
        """Return the first matrix, dense; shape (rows, k)."""
        return self.blocks[0].columns()


@dataclass(frozen=True, eq=False)
class Design:
    """Everything a model needs of the data.

    Attributes
    ----------
    spec : Spec
        Rebuilds the same columns for new data.
    n : int
        Rows used.
    y : ndarray, shape (n,) or (n, responses)
        Response; codes when it is categorical, a proportion after ``cbind``.
    y_levels : tuple or None
        Levels of a categorical response.
    y_name : str
    X : ModelMatrix
        Fixed effects.
    parts : tuple of ModelMatrix
        Matrices of further linear predictors.
    absorbed : tuple of Grouping
        Fixed effects after ``|``, when the model absorbs them.
    random : tuple of RandomTerm
        Of the first linear predictor, then of further ones.
    offset, weights, freq_weights, size : ndarray or None, shape (n,)
    index : pandas.Index
        Labels of the rows used.
    rows : ndarray of int or None
        Positions of the rows used among those given; None when all were.
    n_missing, n_zero_weight : int
        Rows left out for missing values and for weight zero.
    has_constant : bool
        Whether a column of ones is in the span of X.
    """

    spec: Spec
    n: int
    y: np.ndarray | None
    y_levels: tuple | None
    y_name: str
    X: ModelMatrix
    parts: tuple[ModelMatrix, ...] = ()
    absorbed: tuple[Grouping, ...] = ()
    random: tuple[RandomTerm, ...] = ()
    offset: np.ndarray | None = None
    weights: np.ndarray | None = None
    freq_weights: np.ndarray | None = None
    size: np.ndarray | None = None
    index: pd.Index | None = None
    rows: np.ndarray | None = None
    n_given: int = 0
    n_missing: int = 0
    n_zero_weight: int = 0
    has_constant: bool = False

    @classmethod
    def build(
        cls,
        formula: str | Formula,
        data: Any,
        *,
        weights: Any = None,
        freq_weights: Any = None,
        offset: Any = None,
        exposure: Any = None,
        parts: Sequence[Rhs] = (),
        absorb: bool = False,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        compute: Compute | None = None,
    ) -> Design:
        """Read a formula against data.

        Parameters
        ----------
        formula : str or Formula
        data : frame or mapping
            See `Table`.
        weights, freq_weights, offset, exposure : str or array_like, optional
            A column's name, an expression of the formula language, or values, one
            for each row. Exposure enters the linear predictor as its logarithm.
        parts : sequence of Rhs, optional
            Right-hand sides of further linear predictors.
        absorb : bool, default False
            Whether what follows ``|`` in the formula are fixed effects to absorb.
        na_action : {"drop", "raise"}, default "drop"
            What is done with rows that have a missing value in any variable used.
        context : mapping of str to callable, optional
            Further functions the formula may call.
        compute : Compute, optional

        Returns
        -------
        Design

        Raises
        ------
        FormulaError, DesignError
            For a formula or data that cannot be used; the message says why.
        """
        if isinstance(formula, str):
            formula = Formula.parse(formula, tuple(context or ()))
        return _Builder(
            formula, Table(data), context, compute or default_compute()
        ).build(
            dict(weights=weights, freq_weights=freq_weights, offset=offset,
                 exposure=exposure),
            tuple(parts), absorb, na_action,
        )  # fmt: skip

    @property
    def matrices(self) -> tuple[ModelMatrix, ...]:
        """The matrix of each linear predictor."""
        return (self.X, *self.parts)

    def widest(self) -> int:
        """Columns that a row of all matrices takes in a block."""
        return sum(len(m.dense) + len(m.coded) for m in self.matrices)

    def scratches(self, rows: int, compute: Compute) -> tuple[Scratch, ...]:
        """One worker's memory for `batch`."""
        return tuple(m.scratch(rows, compute) for m in self.matrices)

    def batch(
        self, start: int, stop: int, scratches: tuple[Scratch, ...], compute: Compute
    ) -> Batch:
        """Rows `start` to `stop` as tensors; valid until the scratches' next use."""
        part = slice(start, stop)

        def tensor(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else compute.tensor(_plain(values[part]))

        offset = tensor(self.offset)
        return Batch(
            tensor(self.y),
            tuple(s.block(start, stop) for s in scratches),
            (offset, *(None for _ in self.parts)),
            tensor(self.weights),
            tensor(self.freq_weights),
            tensor(self.size),
            part,
        )

    def select_columns(self, keep: list[int], number: int = 0) -> Design:
        """Return the design with only some columns of one of its matrices."""
        matrices = list(self.matrices)
        before = self.spec.kept.get(number)
        self.spec.kept[number] = keep if before is None else [before[j] for j in keep]
        matrices[number] = matrices[number].select(keep)
        return replace(self, X=matrices[0], parts=tuple(matrices[1:]))

    def only(self, number: int) -> Design:
        """Return the design with one of its matrices as the first and only one."""
        return replace(self, X=self.matrices[number], parts=(), offset=None)

    def every(self, step: int) -> Design:
        """Return the design of every `step`-th row, as views: for starting values."""

        def thin(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[::step]

        return replace(
            self,
            n=-(-self.n // step),
            y=thin(self.y),
            X=self.X.every(step),
            parts=tuple(m.every(step) for m in self.parts),
            offset=thin(self.offset),
            weights=thin(self.weights),
            freq_weights=thin(self.freq_weights),
            size=thin(self.size),
        )

    def values(self, given: Any, what: str) -> np.ndarray:
        """Values the caller gave beside the data, for the rows used.

        Parameters
        ----------
        given : array_like, shape (rows given,) or (n,)
        what : str
            Named in the error.
        """
        array = np.asarray(given)
        if len(array) == self.n_given and self.rows is not None:
            return array[self.rows]
        if len(array) != self.n:
            raise DesignError(
                f"{what} has {len(array)} values; the data have {self.n_given} rows, "
                f"of which {self.n} are used. Give one value for each row."
            )
        return array

    def grouping(self, given: Any, what: str = "groups") -> Grouping:
        """Codes of a grouping given as a column's name or as values."""
        name = given if isinstance(given, str) else getattr(given, "name", None) or what
        if isinstance(given, str):
            table = self.spec.table
            if table is None:
                raise DesignError(
                    f"{what}={given!r} needs the data the model was fit to."
                )
            try:
                given = table.full(given)
            except KeyError:
                raise DesignError(_unknown(given, table.columns)) from None
        codes, levels = _factorize(self.values(given, what))
        if (codes < 0).any():
            raise DesignError(
                f"{name} is missing in {(codes < 0).sum()} of the rows used; drop "
                "those rows before the fit."
            )
        return Grouping(str(name), codes, tuple(levels))

    def groupings(self, given: Any) -> tuple[Grouping, ...]:
        """Read clusters: a column, its name, a list of names, or a frame of columns."""
        if given is None:
            raise ValueError(
                "cluster needs cov_kwds={'groups': column, name or frame}."
            )
        if isinstance(given, str):
            return (self.grouping(given),)
        if hasattr(given, "columns"):
            columns = [c for c in given.columns]
            return tuple(self.grouping(_column(given, c), str(c)) for c in columns)
        if isinstance(given, (list, tuple)) and all(isinstance(g, str) for g in given):
            if len(given) != self.n and len(given) != self.n_given:
                return tuple(self.grouping(g) for g in given)
        elif isinstance(given, (list, tuple)) and not np.isscalar(given[0]):
            return tuple(self.grouping(g) for g in given)
        array = np.asarray(given)
        if array.ndim == 2:
            return tuple(
                self.grouping(array[:, j], f"groups[{j}]")
                for j in range(array.shape[1])
            )
        return (self.grouping(given),)


def _factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sorted levels; by counting, not hashing, where integers are dense."""
    if getattr(values.dtype, "kind", "O") not in "iu" or isinstance(values, pd.Series):
        return pd.factorize(values, sort=True)
    low, high = int(values.min()), int(values.max())
    if high - low >= 2 * len(values):
        return pd.factorize(values, sort=True)
    codes = values.astype(np.int64, copy=False)
    codes = codes - low if low else codes
    present = np.bincount(codes, minlength=high - low + 1) > 0
    levels = np.flatnonzero(present) + low
    if len(levels) == len(present):
        return codes, levels
    return (np.cumsum(present) - 1)[codes], levels


def _coded(values: Any) -> tuple[np.ndarray, Any]:
    """Codes and sorted levels of a column of any kind."""
    if isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        # Levels in the order of the categories: nothing to sort unless some are unused.
        codes, levels = values.array.codes, values.dtype.categories
        if len(codes) and np.bincount(codes + 1, minlength=len(levels) + 1)[1:].all():
            return codes, levels
    return _factorize(_whole_numbers(values))


def _whole_numbers(values: Any) -> Any:
    """Return the array of a column of integers; any other column as it is."""
    dtype = values.dtype
    return (
        np.asarray(values)
        if isinstance(dtype, np.dtype) and dtype.kind in "iu"
        else values
    )


def _column(frame: Any, name: Any) -> np.ndarray:
    return frame[name].to_numpy()


def _plain(values: np.ndarray) -> np.ndarray:
    """Return an array torch can take: positive strides, native numbers, writable."""
    if values.dtype == np.float64 and values.strides[0] >= 0 and values.flags.writeable:
        return values
    return np.array(values, dtype=np.float64)


@dataclass(eq=False)
class Spec:
    """What is needed to make the same columns from new data.

    Attributes
    ----------
    formula : Formula
    states : dict of str to dict
        What each factor learnt from the data: levels, knots, means.
    parts : tuple of Rhs
        Right-hand sides of the further matrices.
    offset : str or None
        Name or expression given as `offset=`, if it was one.
    exposure : str or None
    context : mapping of str to callable
    table : Table or None
        The data themselves; None after loading from a file.
    kept : list of list of int
        Columns kept of each matrix, when some were aliased; else empty.
    by_value : tuple of str
        Which of offset and exposure were given as values: new data need their own.
    levels : dict of str to tuple
        Levels of each grouping factor of random effects.
    """

    formula: Formula
    states: dict[str, dict] = field(default_factory=dict)
    parts: tuple[Rhs, ...] = ()
    offset: str | None = None
    exposure: str | None = None
    context: Mapping[str, Callable] = field(default_factory=dict)
    table: Table | None = None
    kept: dict[int, list[int]] = field(default_factory=dict)
    by_value: tuple[str, ...] = ()
    levels: dict[str, tuple] = field(default_factory=dict)

    def neutral(self) -> dict[str, Any]:
        """Stand-ins for the offset and exposure given as values: they add nothing."""
        nothing = {"offset": 0.0, "exposure": 1.0}
        return {name: nothing[name] for name in self.by_value}

    def rebuild(
        self,
        data: Any,
        *,
        offset: Any = None,
        exposure: Any = None,
        absorb: bool = False,
        random: bool = False,
    ) -> Design:
        """Build the design of new data, with the columns of the first.

        Rows with missing values are left out; `Design.rows` says which remain. The
        response is not needed. With `absorb` the fixed effects after ``|`` are read
        too, with the levels of the new data; with `random` the random effects, with
        the levels of the first data: what is not among them has code -1.

        Raises
        ------
        DesignError
            For an unknown column or a level that was not in the data of the fit.
        """
        for name, value in (("offset", offset), ("exposure", exposure)):
            if name in self.by_value and value is None:
                raise DesignError(
                    f"the model was fitted with {name}= given as values; give {name}= "
                    f"for the new data too (a number, a column or values)."
                )
        given = dict(
            weights=None,
            freq_weights=None,
            offset=self.offset if offset is None else offset,
            exposure=self.exposure if exposure is None else exposure,
        )
        builder = _Builder(
            self.formula, Table(data), self.context, default_compute(), self.states,
            self.levels if random else None,
        )  # fmt: skip
        design = builder.build(given, self.parts, absorb, "drop", response=False)
        for number, keep in self.kept.items():
            design = design.select_columns(keep, number)
        return design


class _Builder:
    """One pass from formula and table to design; keeps the factors it evaluated."""

    def __init__(
        self,
        formula: Formula,
        table: Table,
        context: Mapping[str, Callable] | None,
        compute: Compute,
        states: dict[str, dict] | None = None,
        levels: dict[str, tuple] | None = None,
    ) -> None:
        self.formula, self.table, self.levels = formula, table, levels
        self.context, self.compute = dict(context or {}), compute
        self.fresh = states is None
        self.states: dict[str, dict] = {} if states is None else states
        self.factors: dict[str, Numeric | Categorical] = {}
        self.lagged: list[str] = []

    def build(
        self,
        given: dict[str, Any],
        parts: tuple[Rhs, ...],
        absorb: bool,
        na_action: str,
        response: bool = True,
    ) -> Design:
        if na_action not in ("drop", "raise"):
            raise ValueError(f"na_action must be 'drop' or 'raise', not {na_action!r}.")
        table, formula = self.table, self.formula
        if formula.call is not None:
            raise DesignError(
                f"{formula.call.name}(...) is a model of its own; build the design of "
                "the formula inside it."
            )
        if table.n == 0:
            raise DesignError("the data have no rows.")
        expected = {
            n: np.full(table.n, v) if n in ("offset", "exposure") and _number(v) else v
            for n, v in given.items()
            if v is not None
        }
        rhs = (formula.rhs, *parts)
        absorbing = formula.parts if absorb else ()
        used = self._variables(rhs, absorbing, expected, response)
        n_missing, n_zero = self._choose_rows(used, expected, na_action)
        n = table.n if table.rows is None else len(table.rows)
        arrays = {k: self._vector(v, k) for k, v in expected.items()}
        y, y_levels, size = self._response() if response else (None, None, None)
        matrices = [self._matrix(r.terms, n, r.text) for r in rhs]
        spec = Spec(
            formula, self.states, parts,
            *(v if isinstance(v := given[k], str) else None
              for k in ("offset", "exposure")),
            self.context, table if self.fresh else None, {},
            tuple(k for k in ("offset", "exposure")
                  if given[k] is not None and not isinstance(given[k], str)),
        )  # fmt: skip
        index = table.index if table.index is not None else pd.RangeIndex(table.n)
        reads = response or self.levels is not None
        random = tuple(
            self._random(g, n, number)
            for number, r in enumerate(rhs if reads else ())
            for g in r.groups
        )
        spec.levels = self.levels or {
            r.grouping.name: r.grouping.levels for r in random
        }
        return Design(
            spec, n, y, y_levels,
            formula.response.text if formula.response else "",
            matrices[0], tuple(matrices[1:]),
            tuple(self._grouping(f) for r in absorbing for f in _absorbed(r)),
            random, self._offset(arrays, n), arrays.get("weights"),
            arrays.get("freq_weights"), size,
            index if table.rows is None else index[table.rows], table.rows,
            table.n, n_missing, n_zero, self._constant(formula.rhs.terms),
        )  # fmt: skip

    def _constant(self, terms: Sequence[Term]) -> bool:
        """Whether a column of ones is in the span of the terms, by their coding."""
        factors = {e: self._factor(e) for t in terms for e in t.factors}
        return any(
            all(full and isinstance(factors[e], Categorical) for e, full in coding)
            for coding in codings(terms, factors)
        )

    # -- rows ------------------------------------------------------------------

    def _variables(
        self,
        rhs: Sequence[Rhs],
        absorbing: Sequence[Rhs],
        given: dict[str, Any],
        response: bool,
    ) -> list[str]:
        expressions: list[str] = []
        if response and self.formula.response is not None:
            expressions += self.formula.response.expressions
        for part in (*rhs, *absorbing):
            for term in part.terms:
                expressions += term.factors
            expressions += part.offsets
            if response or self.levels is not None:
                for group in part.groups:
                    expressions += group.factors
                    for term in group.terms:
                        expressions += term.factors
        expressions += [v for v in given.values() if isinstance(v, str)]
        self.lagged = [e for e in dict.fromkeys(expressions) if "lag(" in e]
        names = dict.fromkeys(v for e in expressions for v in _names(e))
        functions = {
            n for n in names if n in self.context and n not in self.table.columns
        }
        unknown = [
            n for n in names if n not in self.table.columns and n not in functions
        ]
        if unknown:
            raise DesignError(_unknown(unknown[0], self.table.columns))
        return [n for n in names if n not in functions]

    def _choose_rows(
        self, used: list[str], given: dict[str, Any], na_action: str
    ) -> tuple[int, int]:
        table = self.table
        drop: np.ndarray | None = None
        where = []
        for name in used:
            values = table.numeric(name)
            if values is not None:
                if values.dtype.kind != "f" or all_finite(values):
                    continue
                infinite = np.isinf(values)
                if infinite.any():
                    raise DesignError(
                        f"column {name!r} is infinite in {infinite.sum()} rows "
                        f"(first: row {int(infinite.argmax())}); mend them "
                        "or make them missing."
                    )
            mask = table.missing(name)
            if mask is not None:
                where.append(f"{name} ({mask.sum()})")
                drop = mask if drop is None else drop | mask
        for name, value in given.items():
            if not isinstance(value, str):
                mask = pd.isna(_length(value, table.n, name))
                if mask.any():
                    where.append(f"{name} ({mask.sum()})")
                    drop = mask if drop is None else drop | mask
        for expression in self.lagged:
            lagged = evaluate(expression, table, {}, self.context)
            mask = pd.isna(pd.DataFrame(getattr(lagged, "values", None))).any(axis=1)
            mask = mask.to_numpy() & (True if drop is None else ~drop)
            if mask.any():
                where.append(f"{expression} ({mask.sum()})")
                drop = mask if drop is None else drop | mask
        if drop is not None and na_action == "raise":
            raise DesignError(
                f"{drop.sum()} rows have missing values, in {', '.join(where)}; drop "
                "or impute them, or use na_action='drop'."
            )
        n_missing = 0 if drop is None else int(drop.sum())
        if n_missing == table.n:
            raise DesignError(
                f"no row is complete: missing values in {', '.join(where)}."
            )
        zero = self._zero_weights(given, drop)
        n_zero = 0 if zero is None else int(zero.sum())
        if zero is not None:
            drop = zero if drop is None else drop | zero
        if drop is not None:
            table.rows = np.flatnonzero(~drop)
        return n_missing, n_zero

    def _zero_weights(
        self, given: dict[str, Any], drop: np.ndarray | None
    ) -> np.ndarray | None:
        zero = None
        for name in ("weights", "freq_weights"):
            value = given.get(name)
            if value is None:
                continue
            values = _length(
                self._evaluated(value) if isinstance(value, str) else value,
                self.table.n, name,
            ).astype(np.float64)  # fmt: skip
            kept = values if drop is None else values[~drop]
            if not np.isfinite(kept).all() or (kept < 0).any():
                raise DesignError(
                    f"{name} must be finite and not negative; {(kept < 0).sum()} are "
                    "negative. Negative weights have no likelihood."
                )
            if not (kept > 0).any():
                raise DesignError(f"{name} are all zero.")
            if name == "freq_weights" and (kept != np.round(kept)).any():
                raise DesignError(
                    "freq_weights count rows and must be whole numbers; use weights= "
                    "for precision (variance) weights."
                )
            if (kept == 0).any():
                mask = values == 0
                if drop is not None:
                    mask &= ~drop
                zero = mask if zero is None else zero | mask
        return zero

    def _evaluated(self, expression: str) -> np.ndarray:
        value = evaluate(expression, self.table, {}, self.context)
        if not isinstance(value, Numeric) or value.values.ndim != 1:
            raise DesignError(f"{expression!r} must be a single numeric column.")
        return value.values

    # -- vectors ---------------------------------------------------------------

    def _vector(self, value: Any, what: str) -> np.ndarray:
        if isinstance(value, str):
            out = np.asarray(self._evaluated(value), dtype=np.float64)
        else:
            out = _length(value, self.table.n, what).astype(np.float64)
            out = out if self.table.rows is None else out[self.table.rows]
        if not np.isfinite(out).all():
            raise DesignError(
                f"{what} is not finite in {(~np.isfinite(out)).sum()} rows."
            )
        if what == "exposure":
            if (out <= 0).any():
                raise DesignError(
                    f"exposure must be positive; {(out <= 0).sum()} rows are not."
                )
            out = np.log(out)
        return out

    def _offset(self, arrays: dict[str, np.ndarray], n: int) -> np.ndarray | None:
        found = [arrays[k] for k in ("offset", "exposure") if k in arrays]
        for expression in self.formula.rhs.offsets:
            values = np.asarray(self._evaluated(expression), dtype=np.float64)
            if not np.isfinite(values).all():
                raise DesignError(f"offset({expression}) is not finite in some rows.")
            found.append(np.broadcast_to(values, (n,)))
        return sum(found[1:], found[0]) if found else None

    def _response(self) -> tuple[np.ndarray | None, tuple | None, np.ndarray | None]:
        response = self.formula.response
        if response is None:
            raise DesignError(
                f"the formula {self.formula.text!r} has no response: y ~ x."
            )
        parts = [self._one_response(e) for e in response.expressions]
        if response.kind == "single":
            return parts[0][0], parts[0][1], None
        if any(levels is not None for _, levels in parts):
            raise DesignError(
                "cbind() and several responses take numeric columns only."
            )
        columns = [np.asarray(v, dtype=np.float64) for v, _ in parts]
        if response.kind == "multiple" or len(columns) != 2:
            return np.stack(columns, axis=1), None, None
        successes, failures = columns
        for name, values in zip(response.expressions, columns, strict=True):
            bad = (values < 0) | (values != np.round(values))
            if bad.any():
                raise DesignError(
                    f"cbind(successes, failures) takes counts; {name} is negative or "
                    f"not whole in {bad.sum()} rows (first: row {int(bad.argmax())})."
                )
        size = successes + failures
        share = np.divide(successes, size, out=np.zeros_like(size), where=size > 0)
        return share, None, size

    def _one_response(self, expression: str) -> tuple[np.ndarray, tuple | None]:
        source = self._bare(expression)
        if source is not None:
            values = source.array if source.rows is None else source.array[source.rows]
            return values, None
        value = self._value(expression, {})
        if isinstance(value, Categorical):
            return value.codes, tuple(value.levels)
        values = value.values
        if values.ndim != 1:
            raise DesignError(f"the response {expression!r} has several columns.")
        if values.dtype.kind == "b":
            values = values.astype(np.float64)
        _finite(values, expression)
        return values, None

    # -- columns ---------------------------------------------------------------

    def _bare(self, expression: str) -> Source | None:
        name = _bare_name(expression)
        if name is None:
            return None
        values = self.table.numeric(name)
        return None if values is None else Source(values, self.table.rows)

    def _power(self, expression: str) -> tuple[Source, ...] | None:
        """Return a whole power of a column as a product, which is never stored.

        Long products also stay exact where least squares works in more than float64:
        Filip's tenth powers, rounded first, lose six digits of the estimates.
        """
        found = _POWER.fullmatch(expression)
        source = None if found is None else self._bare(found[1])
        if source is None or not len(source.array):
            return None
        values, degree = source.array, int(found[2])
        # Missing rows are left out, and do not make it another kind of column.
        largest = max(abs(float(np.nanmin(values))), abs(float(np.nanmax(values))))
        if not degree * np.log2(max(largest, 1.0)) < 1023:
            return None
        return (source,) * degree

    def _factor(self, expression: str) -> Numeric | Categorical | Source:
        if expression not in self.factors:
            known = self.states.get(expression, {}).get("kind")
            found: Any = self._bare(expression) or self._power(expression)
            if found is None or known == "categorical":
                found = self._evaluate(expression)
            elif known is None and self.fresh:
                self.states[expression] = {"kind": "bare"}
            self.factors[expression] = found
        return self.factors[expression]

    def _evaluate(self, expression: str) -> Numeric | Categorical:
        stored = self.states.setdefault(expression, {"kind": "", "state": {}})
        if stored["kind"] == "bare":
            raise DesignError(
                f"{expression} was numeric in the data of the fit and is not now."
            )
        value = self._value(expression, stored["state"])
        stored["kind"] = "categorical" if isinstance(value, Categorical) else "numeric"
        if isinstance(value, Numeric):
            _finite(value.values, expression)
        elif (value.codes < 0).any():
            raise DesignError(
                f"{expression} has {(value.codes < 0).sum()} missing values that its "
                "variables do not have."
            )
        elif self.fresh and len(value.levels) < 2:
            raise DesignError(
                f"{expression} has one level ({value.levels[0]!r}) in the rows used: "
                "it cannot be told from the intercept; leave it out."
            )
        return value

    def _value(self, expression: str, state: dict) -> Numeric | Categorical:
        """Evaluate on the rows used; a lag looks back at all rows, used or not."""
        rows = self.table.rows
        if rows is None or expression not in self.lagged:
            return evaluate(expression, self.table, state, self.context)
        self.table.rows = None
        try:
            value = evaluate(expression, self.table, state, self.context)
        finally:
            self.table.rows = rows
        if isinstance(value, Categorical):
            return replace(value, codes=value.codes[rows])
        return replace(value, values=value.values[rows])

    def _matrix(self, terms: Sequence[Term], n: int, text: str) -> ModelMatrix:
        factors = {e: self._factor(e) for term in terms for e in term.factors}
        names: list[str] = []
        dense: list[tuple[Column, int]] = []
        coded: list[tuple[Coded, list[int]]] = []
        for coding in codings(terms, factors):
            self._guard(coding, factors, text)
            encode(coding, factors, n, names, dense, coded)
        return ModelMatrix(
            n,
            tuple(names),
            tuple(c for c, _ in dense),
            [a for _, a in dense],
            tuple(c for c, _ in coded),
            [a for _, a in coded],
        )

    def _guard(
        self, coding: tuple[tuple[str, bool], ...], factors: dict, text: str
    ) -> None:
        """Refuse factors that would make a matrix of cross-products too large."""
        levels = [
            len(f.levels) for e, _ in coding if isinstance(f := factors[e], Categorical)
        ]
        if not levels:
            return
        total = int(np.prod(levels, dtype=np.int64))
        name = ":".join(e for e, _ in coding)
        self.compute.require(
            3 * total**2,
            f"{name} in {text!r} has {total:,} columns: its cross-products",
            f"absorb it (`| {name}`), make it random (`(1 | {name})`), or raise the "
            "budget with set_default_device(memory=...).",
        )

    def _grouping(self, expressions: Sequence[str]) -> Grouping:
        parts = []
        for expression in expressions:
            name = _bare_name(expression)
            if name is not None:
                codes, levels = _coded(self.table(name))
            else:
                value = evaluate(expression, self.table, {}, self.context)
                if isinstance(value, Categorical):
                    codes, levels = value.codes, value.levels
                else:
                    codes, levels = pd.factorize(value.values, sort=True)
            parts.append((np.asarray(codes, dtype=np.int64), list(levels)))
        name = ":".join(expressions)
        if len(parts) == 1:
            codes, levels = parts[0]
            return Grouping(name, codes.astype(np.int32), tuple(levels))
        combined = parts[0][0]
        for codes, levels in parts[1:]:
            combined = combined * len(levels) + codes
        codes, present = _factorize(combined)
        shape = [len(levels) for _, levels in parts]
        where = np.unravel_index(np.asarray(present), shape)
        texts = [[str(level) for level in levels] for _, levels in parts]
        columns = (
            [text[i] for i in at.tolist()]
            for text, at in zip(texts, where, strict=True)
        )
        labels = tuple(map(":".join, zip(*columns, strict=True)))
        return Grouping(name, codes.astype(np.int32), labels)

    def _random(self, term: GroupTerm, n: int, part: int) -> RandomTerm:
        grouping = self._grouping(term.factors)
        if self.levels is not None:
            grouping = _recoded(grouping, self.levels[grouping.name])
        elif len(grouping) < 2 and term.structure in ("us", "diag"):
            raise DesignError(
                f"the grouping factor {grouping.name} of {term.text} has one level in "
                "the rows used: its variance cannot be estimated."
            )
        matrix = self._matrix(varying(term), n, term.text)
        return RandomTerm(term, matrix, grouping, part)


def varying(term: GroupTerm) -> tuple[Term, ...]:
    """Terms that give a group term its columns: one for each place, of coordinates."""
    if term.structure not in PLACES:
        return term.terms
    coordinates = [t for t in term.terms if t.factors]
    if not coordinates or any(t.degree > 1 for t in coordinates):
        raise DesignError(
            f"{term.text}: before the bar of {term.structure}() stand coordinates, "
            f"columns of numbers: {term.structure}(x + y | g)."
        )
    names = ", ".join(t.factors[0] for t in coordinates)
    return (Term((f"points({names})",)),)


def _recoded(grouping: Grouping, levels: tuple) -> Grouping:
    """Give a grouping of new data the codes of known levels, -1 for all others."""
    place: dict[Any, int] = {str(level): j for j, level in enumerate(levels)}
    place |= {level: j for j, level in enumerate(levels)}
    found = [place.get(g, place.get(str(g), -1)) for g in grouping.levels]
    unseen = tuple(g for g, j in zip(grouping.levels, found, strict=True) if j < 0)
    codes = np.asarray(found, dtype=np.int32)[grouping.codes]
    return Grouping(grouping.name, codes, levels, unseen)


def _absorbed(rhs: Rhs) -> list[tuple[str, ...]]:
    return [t.factors for t in rhs.terms if t.factors]


_POWER = re.compile(r"I\((\w+) ?\*\* ?([2-9]|1[0-6])\)")


def _bare_name(expression: str) -> str | None:
    if expression.isidentifier():
        return expression
    if expression.startswith("`") and expression.endswith("`"):
        return expression[1:-1]
    return None


def _names(expression: str) -> tuple[str, ...]:
    return expression_variables(expression)


def _unknown(name: str, columns: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, columns, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
    return f"there is no column {name!r}.{hint} The data have: {shown}."


def _number(value: Any) -> bool:
    return np.ndim(value) == 0 and not isinstance(value, str)


def _length(value: Any, n: int, what: str) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else None
    array = np.asarray(value) if array is None else array
    if array.shape != (n,):
        raise DesignError(
            f"{what} has shape {array.shape}; give a column's name or one value for "
            f"each of the {n} rows."
        )
    if array.dtype.kind not in "fiub":
        raise DesignError(f"{what} must be numeric, not {array.dtype}.")
    return array


def _finite(values: np.ndarray, expression: str) -> None:
    if values.dtype.kind != "f" or all_finite(values):
        return
    bad = ~np.isfinite(values)
    bad = bad if bad.ndim == 1 else bad.any(axis=1)
    raise DesignError(
        f"{expression} is not finite in {bad.sum()} rows (first: row "
        f"{int(bad.argmax())}, counted among complete rows)."
    )
