"""The functions a formula may call, and the interpreter that evaluates them.

Formulas never run Python: an expression is parsed with :mod:`ast` and walked by an
interpreter that knows arithmetic, comparisons and the functions in `TRANSFORMS`
(plus what the caller passes as `context`). Anything else is refused.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import keyword
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from formulaic.transforms import TRANSFORMS as _FORMULAIC
from formulaic.transforms import ContrastsRegistry
from formulaic.transforms import poly as _formulaic_poly

from deepstats.errors import DesignError

__all__ = [
    "CONTRASTS",
    "TRANSFORMS",
    "Categorical",
    "Contrast",
    "Numeric",
    "Transform",
    "evaluate",
    "expression_variables",
    "parse_expression",
    "quote_name",
]

Lookup = Callable[[str], Any]

CONTRASTS = ("treatment", "sum", "helmert", "poly", "diff", "SAS")
"""Names `c` for which `contr.c` may be written in a formula."""

PATSY_CONTRASTS = {
    "Treatment": "treatment",
    "Sum": "sum",
    "Helmert": "helmert",
    "Poly": "poly",
    "Diff": "diff",
}
"""The patsy spelling of the same contrasts: `C(g, Treatment(reference="b"))`."""

CONSTANTS = frozenset({"True", "False", "None"})

# --------------------------------------------------------------------------------------
# Expressions as text
# --------------------------------------------------------------------------------------

_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]+)`""")
_MANGLED = re.compile(r"\b_bq([0-9a-f]+)_\b")


def is_plain_name(name: str) -> bool:
    """Whether a column name can stand in an expression without backticks.

    Python rewrites non-ASCII identifiers to their NFKC form, so that a column called
    with the micro sign would be looked up under the Greek letter: those are quoted.
    """
    return (
        name.isascii()
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith(("__", "_bq"))
    )


def quote_name(name: str) -> str:
    """Write a column name as it must stand in an expression.

    Parameters
    ----------
    name : str
        A column name.

    Returns
    -------
    str
        The name itself where it is a plain identifier, else the name in backticks.

    Examples
    --------
    >>> quote_name("x"), quote_name("my column"), quote_name("a.b")
    ('x', '`my column`', '`a.b`')
    """
    return name if is_plain_name(name) else f"`{name}`"


def mangle(name: str) -> str:
    """Encode any column name as an ASCII identifier."""
    return name if is_plain_name(name) else f"_bq{name.encode().hex()}_"


def demangle(text: str) -> str:
    """Put the backticked names back into a text made with `mangle`."""
    return _MANGLED.sub(lambda m: f"`{bytes.fromhex(m[1]).decode()}`", text)


def column_name(identifier: str) -> str:
    """Return the column that an identifier of a parsed expression stands for."""
    return demangle(identifier).strip("`") if "_bq" in identifier else identifier


@lru_cache(maxsize=4096)
def parse_expression(expression: str) -> ast.expr:
    """Parse a canonical expression, in which odd column names stand in backticks.

    Parameters
    ----------
    expression : str
        One factor of a formula, such as ``"poly(x, 2)"`` or ``"`my column`"``.

    Returns
    -------
    ast.expr
        The tree; nothing is checked or run.

    Raises
    ------
    DesignError
        If the text is not a Python expression.
    """
    source = _QUOTED.sub(lambda m: m[1] or mangle(m[2]), expression)
    try:
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DesignError(f"cannot read the expression `{expression}`") from error


@lru_cache(maxsize=4096)
def expression_variables(expression: str) -> tuple[str, ...]:
    """List the columns an expression mentions, in order, without functions.

    Examples
    --------
    >>> expression_variables("poly(x, 2) * log(`my column`)")
    ('x', 'my column')
    """
    found: dict[str, None] = {}
    _collect_variables(parse_expression(expression), found)
    return tuple(found)


def _collect_variables(node: ast.AST, found: dict[str, None]) -> None:
    if isinstance(node, ast.Name):
        found[column_name(node.id)] = None
    elif isinstance(node, ast.Attribute):
        return
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "Q" and node.args and isinstance(node.args[0], ast.Constant):
            found[str(node.args[0].value)] = None
            return
        for index, argument in enumerate([*node.args, *node.keywords]):
            if not (name == "C" and index and _is_contrast(argument)):
                _collect_variables(argument, found)
    else:
        for child in ast.iter_child_nodes(node):
            _collect_variables(child, found)


def _is_contrast(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.keyword) else node
    return isinstance(value, ast.Name) and value.id in PATSY_CONTRASTS


# --------------------------------------------------------------------------------------
# What an expression evaluates to
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """How the levels of a categorical variable become columns.

    Parameters
    ----------
    kind : str
        One of `CONTRASTS`, or ``"custom"``.
    options : tuple of (str, object)
        Arguments of the coding: ``base`` (treatment, SAS), ``scores`` (poly),
        ``reverse`` and ``scale`` (helmert), ``backward`` (diff), ``columns`` (custom:
        pairs of a name and one weight for each level).
    """

    kind: str = "treatment"
    options: tuple[tuple[str, Any], ...] = ()

    def matrix(self, levels: Iterable[Any], reduced: bool) -> np.ndarray:
        """Return the coding matrix.

        Parameters
        ----------
        levels : iterable
            The levels in order.
        reduced : bool
            Whether to leave out what the intercept already spans; otherwise every
            level has its own indicator.

        Returns
        -------
        numpy.ndarray of float64, shape (len(levels), columns)

        Raises
        ------
        DesignError
            If an option does not fit the levels, such as an unknown base level.
        """
        levels = list(levels)
        if not reduced:
            return np.eye(len(levels))
        if len(levels) < 2:
            return np.zeros((len(levels), 0))
        if self.kind == "custom":
            return self._custom(levels)
        coding = self._coding(levels)
        table = coding.get_coding_matrix(levels, reduced_rank=True)
        return np.ascontiguousarray(np.asarray(table, dtype=np.float64))

    def names(self, levels: Iterable[Any], reduced: bool) -> tuple[str, ...]:
        """Return the column suffixes, such as ``"[T.b]"``, in the order of `matrix`."""
        levels = list(levels)
        if not reduced:
            return tuple(f"[{level}]" for level in levels)
        if len(levels) < 2:
            return ()
        if self.kind == "custom":
            return tuple(f"[{name}]" for name, _ in dict(self.options)["columns"])
        coding = self._coding(levels)
        form = coding.get_factor_format(levels, reduced_rank=True)
        fields = coding.get_coding_column_names(levels, reduced_rank=True)
        return tuple(form.format(name="", field=field) for field in fields)

    def _coding(self, levels: list[Any]) -> Any:
        options = dict(self.options)
        if "base" in options:
            options["base"] = _base_level(options["base"], levels)
        scores = options.get("scores")
        if scores is not None:
            if len(scores) != len(levels):
                raise DesignError(
                    f"contr.poly has {len(scores)} scores for {len(levels)} levels: "
                    "give one score for each level"
                )
            options["scores"] = list(scores)
        return getattr(ContrastsRegistry, self.kind)(**options)

    def _custom(self, levels: list[Any]) -> np.ndarray:
        columns = [weights for _, weights in dict(self.options)["columns"]]
        if any(len(weights) != len(levels) for weights in columns):
            raise DesignError(
                f"a custom contrast needs one weight for each of the {len(levels)} "
                f"levels ({_listed(levels)})"
            )
        return np.array(columns, dtype=np.float64).T


def _base_level(base: Any, levels: list[Any]) -> Any:
    """Find the base among the levels, by value or else by R's one-based position."""
    if base in levels:
        return base
    numbered = any(isinstance(level, (int, float)) for level in levels)
    whole = isinstance(base, int) and not isinstance(base, bool)
    if whole and not numbered and 1 <= base <= len(levels):
        return levels[base - 1]
    raise DesignError(
        f"the base level {base!r} does not occur; the levels are {_listed(levels)}"
    )


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
    contrast: Contrast = Contrast()


# --------------------------------------------------------------------------------------
# Columns of the data
# --------------------------------------------------------------------------------------


def _listed(values: Iterable[Any], limit: int = 10) -> str:
    values = list(values)
    shown = ", ".join(repr(value) for value in values[:limit])
    return shown + (f", ... ({len(values)} in all)" if len(values) > limit else "")


class _Column:
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
        return self.dtype == object

    @property
    def is_categorical(self) -> bool:
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


def _align(
    codes: np.ndarray, levels: tuple[Any, ...], known: list[Any], what: str
) -> np.ndarray:
    """Recode to the levels known from the fit, refusing those that are not."""
    if list(levels) == known:
        return codes
    position = {level: index for index, level in enumerate(known)}
    unseen = [level for level in levels if level not in position]
    if unseen:
        raise DesignError(
            f"`{what}` has values that are not among its levels: {_listed(unseen)}. "
            f"The levels are {_listed(known)}. Leave these rows out, or fit again "
            "with data that contain them"
        )
    table = np.array([position[level] for level in levels] + [-1], dtype=np.int32)
    return table[codes]


# --------------------------------------------------------------------------------------
# Transforms
# --------------------------------------------------------------------------------------


def _on_observed(
    x: np.ndarray, basis: Callable[[np.ndarray], tuple[np.ndarray, tuple[str, ...]]]
) -> Numeric:
    """Compute a basis from the finite rows; the other rows are NaN."""
    if x.ndim != 1:
        raise DesignError("a basis is made from one column, not from several")
    finite = np.isfinite(x)
    if not finite.any():
        raise DesignError("no row has a finite value")
    values, names = basis(x[finite])
    if finite.all():
        return Numeric(values, names)
    filled = np.full((x.size, values.shape[1]), np.nan)
    filled[finite] = values
    return Numeric(filled, names)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"[{index}]" for index in range(1, count + 1))


def _poly(
    x: np.ndarray, degree: int = 1, raw: bool = False, *, state: dict[str, Any]
) -> Numeric:
    """Orthogonal polynomials as R's `poly`, or plain powers with `raw=True`."""
    degree = _whole("degree", degree, 1)

    def basis(x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        names = _numbered(degree)
        if raw:
            return np.stack([x**k for k in range(1, degree + 1)], axis=1), names
        if "alpha" not in state:
            distinct = np.unique(x).size
            if distinct <= degree:
                raise DesignError(
                    f"a polynomial of degree {degree} needs more than {degree} "
                    f"distinct values, and there are {distinct}: lower the degree"
                )
            saved: dict[str, Any] = {}
        else:
            saved = {k: dict(enumerate(state[k])) for k in ("alpha", "norms2")}
        values = np.asarray(_formulaic_poly(x, degree, _state=saved))
        for key in ("alpha", "norms2"):
            state[key] = [float(saved[key][k]) for k in range(len(saved[key]))]
        return values, names

    return _on_observed(x, basis)


def _bs(
    x: np.ndarray,
    df: int | None = None,
    knots: Any = None,
    degree: int = 3,
    include_intercept: bool = False,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
    extrapolation: str = "raise",
    boundary_knots: Any = None,
    intercept: bool = False,
    *,
    state: dict[str, Any],
) -> Numeric:
    """B-splines as R's and patsy's `bs`."""
    if boundary_knots is not None:
        lower_bound, upper_bound = boundary_knots
    return _formulaic_basis(
        "bs",
        x,
        state,
        df=None if df is None else _whole("df", df, 1),
        knots=None if knots is None else np.atleast_1d(knots).tolist(),
        degree=_whole("degree", degree, 0),
        include_intercept=bool(include_intercept or intercept),
        lower_bound=lower_bound,
        upper_bound=upper_bound,
        extrapolation=extrapolation,
    )


def _cubic(name: str) -> Callable[..., Numeric]:
    def spline(
        x: np.ndarray,
        df: int | None = None,
        knots: Any = None,
        lower_bound: float | None = None,
        upper_bound: float | None = None,
        constraints: Any = None,
        extrapolation: str = "extend",
        *,
        state: dict[str, Any],
    ) -> Numeric:
        return _formulaic_basis(
            name,
            x,
            state,
            df=None if df is None else _whole("df", df, 1),
            knots=None if knots is None else np.atleast_1d(knots).tolist(),
            lower_bound=lower_bound,
            upper_bound=upper_bound,
            constraints=constraints,
            extrapolation=extrapolation,
        )

    return spline


def _formulaic_basis(
    name: str, x: np.ndarray, state: dict[str, Any], **options: Any
) -> Numeric:
    """Call one of formulaic's stateful spline bases and stack its columns."""

    def basis(x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        if state.get("constraints") is not None:
            state["constraints"] = np.asarray(state["constraints"])
        columns = _FORMULAIC[name](x, _state=state, **options)
        if state.get("constraints") is not None:
            state["constraints"] = state["constraints"].tolist()
        values = np.column_stack([columns[key] for key in columns])
        return values, tuple(f"[{key}]" for key in columns)

    return _on_observed(x, basis)


def _ns(
    x: np.ndarray,
    df: int | None = None,
    knots: Any = None,
    intercept: bool = False,
    boundary_knots: Any = None,
    *,
    state: dict[str, Any],
) -> Numeric:
    """Natural cubic splines with the columns of R's `splines::ns`.

    Cubic B-splines are projected on the null space of their second derivatives at
    the two boundary knots; outside the boundary knots they are straight lines.
    """

    def basis(x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        if "knots" not in state:
            state.update(_ns_knots(x, df, knots, intercept, boundary_knots))
        values = _ns_basis(x, state["knots"], state["boundary"], intercept)
        return values, _numbered(values.shape[1])

    return _on_observed(x, basis)


def _ns_knots(
    x: np.ndarray, df: int | None, knots: Any, intercept: bool, boundary_knots: Any
) -> dict[str, Any]:
    if df is not None and knots is not None:
        raise DesignError("give either df or knots, not both")
    if boundary_knots is None:
        boundary_knots = (x.min(), x.max())
    low, high = sorted(float(knot) for knot in boundary_knots)
    if knots is None:
        count = _whole("df", 1 if df is None else df, 1) - 1 - bool(intercept)
        if df is None:
            count = 0
        if count < 0:
            raise DesignError("ns with intercept=True needs a df of 2 or more")
        inside = x[(x >= low) & (x <= high)]
        knots = np.quantile(inside, np.linspace(0, 1, count + 2)[1:-1])
    knots = sorted(float(knot) for knot in np.atleast_1d(knots))
    bounds = [low, *knots, high]
    if any(b <= a for a, b in pairwise(bounds)):
        raise DesignError(
            f"the knots {_listed(knots)} must be distinct and lie between the boundary "
            f"knots {low!r} and {high!r}: lower df, or name the knots"
        )
    return {"knots": knots, "boundary": [low, high]}


def _ns_basis(
    x: np.ndarray, knots: list[float], boundary: list[float], intercept: bool
) -> np.ndarray:
    from scipy.interpolate import BSpline

    low, high = boundary
    t = np.array([low] * 4 + list(knots) + [high] * 4)
    splines = BSpline(t, np.eye(t.size - 4), 3)
    slopes = splines.derivative()
    B = splines(np.clip(x, low, high))
    for edge, outside in ((low, x < low), (high, x > high)):
        if outside.any():
            B[outside] += (x[outside, None] - edge) * slopes(edge)
    curvature = splines.derivative(2)(np.array(boundary))
    first = 0 if intercept else 1
    Q, _ = np.linalg.qr(curvature[:, first:].T, mode="complete")
    return B[:, first:] @ Q[:, 2:]


def _scale(
    x: np.ndarray,
    center: Any = True,
    scale: Any = True,
    ddof: int = 1,
    *,
    state: dict[str, Any],
) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation, skipping NaN."""
    if "center" not in state:
        state["center"] = (
            (float(np.nanmean(x)) if center else 0.0)
            if isinstance(center, bool)
            else float(center)
        )
        state["scale"] = 1.0 if isinstance(scale, bool) else float(scale)
        if scale is True:
            spread = x - state["center"]
            count = np.count_nonzero(~np.isnan(x)) - ddof
            state["scale"] = float(np.sqrt(np.nansum(spread**2) / count))
        if state["scale"] == 0.0 or not np.isfinite(state["scale"]):
            raise DesignError(
                "the standard deviation is zero or undefined, so the column cannot "
                "be scaled: leave it out, or use center()"
            )
    return (x - state["center"]) / state["scale"]


def _standardize(
    x: np.ndarray,
    center: Any = True,
    rescale: Any = True,
    ddof: int = 0,
    *,
    state: dict[str, Any],
) -> np.ndarray:
    """Apply patsy's `standardize`: `scale` with the population standard deviation."""
    return _scale(x, center, rescale, ddof, state=state)


def _center(x: np.ndarray, *, state: dict[str, Any]) -> np.ndarray:
    """Subtract the mean."""
    return _scale(x, True, False, state=state)


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise DesignError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise DesignError(f"{name} must be at least {least}, not {value}")
    return int(value)


def _log(x: np.ndarray, base: float | None = None) -> np.ndarray:
    return np.log(x) if base is None else np.log(x) / np.log(base)


def _logit(x: np.ndarray) -> np.ndarray:
    from scipy.special import logit

    return logit(x)


def _expit(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(x)


def _round(x: np.ndarray, digits: int = 0) -> np.ndarray:
    return np.round(x, digits)


def _where(condition: np.ndarray, yes: Any, no: Any) -> np.ndarray:
    chosen = np.where(condition != 0, yes, no).astype(np.float64)
    return np.where(np.isnan(condition), np.nan, chosen)


def _unary(function: np.ufunc) -> Callable[[np.ndarray], np.ndarray]:
    def elementwise(x: np.ndarray) -> np.ndarray:
        return function(x)

    return elementwise


def _binary(function: np.ufunc) -> Callable[[Any, Any], np.ndarray]:
    def elementwise(x: Any, y: Any) -> np.ndarray:
        return function(x, y)

    return elementwise


@dataclass(frozen=True)
class Transform:
    """A function that a formula may call.

    Parameters
    ----------
    summary : str
        One line for the documentation.
    function : callable, optional
        What computes it from float64 arrays and constants. None for the few that the
        interpreter itself handles, because they take columns unevaluated.
    stateful : bool
        Whether it learns something from the data (a mean, knots) which new data must
        reuse; it then takes the keyword `state`.
    """

    summary: str
    function: Callable[..., Any] | None = None
    stateful: bool = False


TRANSFORMS: dict[str, Transform] = {
    "I": Transform("arithmetic as written: I(x^2), I(x > 2)"),
    "Q": Transform('a column by its name: Q("my column")'),
    "C": Transform("categorical: C(x), C(x, contr.sum), C(x, levels=[...])"),
    "lag": Transform("the value k rows earlier: lag(x, k=1)"),
    "log": Transform("natural logarithm: log(x), log(x, base)", _log),
    "log10": Transform("logarithm to base 10", _unary(np.log10)),
    "log2": Transform("logarithm to base 2", _unary(np.log2)),
    "log1p": Transform("log(1 + x)", _unary(np.log1p)),
    "exp": Transform("exponential", _unary(np.exp)),
    "expm1": Transform("exp(x) - 1", _unary(np.expm1)),
    "sqrt": Transform("square root", _unary(np.sqrt)),
    "abs": Transform("absolute value", _unary(np.abs)),
    "sign": Transform("-1, 0 or 1", _unary(np.sign)),
    "sin": Transform("sine", _unary(np.sin)),
    "cos": Transform("cosine", _unary(np.cos)),
    "tan": Transform("tangent", _unary(np.tan)),
    "floor": Transform("round down", _unary(np.floor)),
    "ceil": Transform("round up", _unary(np.ceil)),
    "round": Transform("round to digits: round(x, 2)", _round),
    "logit": Transform("log(x / (1 - x))", _logit),
    "expit": Transform("1 / (1 + exp(-x))", _expit),
    "pow": Transform("power: pow(x, 2)", _binary(np.power)),
    "minimum": Transform("smaller of two, row by row", _binary(np.minimum)),
    "maximum": Transform("larger of two, row by row", _binary(np.maximum)),
    "where": Transform("where(condition, yes, no), row by row", _where),
    "center": Transform("x minus its mean", _center, stateful=True),
    "scale": Transform("centred, over its standard deviation", _scale, stateful=True),
    "standardize": Transform("scale(x, ddof=0)", _standardize, stateful=True),
    "poly": Transform("polynomials: poly(x, 2), raw=True", _poly, stateful=True),
    "bs": Transform("B-splines: bs(x, df=5)", _bs, stateful=True),
    "ns": Transform("natural splines as R's: ns(x, df=3)", _ns, stateful=True),
    "cr": Transform("natural cubic regression splines", _cubic("cr"), stateful=True),
    "cs": Transform("the same as cr", _cubic("cr"), stateful=True),
    "cc": Transform("cyclic cubic regression splines", _cubic("cc"), stateful=True),
    "Treatment": Transform('patsy\'s contr.treatment: Treatment(reference="b")'),
    "Sum": Transform("patsy's contr.sum"),
    "Helmert": Transform("patsy's contr.helmert"),
    "Poly": Transform("patsy's contr.poly"),
    "Diff": Transform("patsy's contr.diff"),
}
"""Every function a formula may call, with a line of documentation each."""


# --------------------------------------------------------------------------------------
# The interpreter
# --------------------------------------------------------------------------------------

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CONTRAST_OPTIONS = {
    "treatment": ("base",),
    "SAS": ("base",),
    "sum": (),
    "helmert": ("reverse", "scale"),
    "diff": ("backward",),
    "poly": ("scores",),
}


def evaluate(
    expression: str,
    lookup: Lookup,
    state: dict[str, Any],
    context: Mapping[str, Callable[..., Any]] | None = None,
) -> Numeric | Categorical:
    """Evaluate one factor of a formula without ever running it as Python.

    Parameters
    ----------
    expression : str
        A canonical expression, as in `deepstats.formula.Term.factors`.
    lookup : callable
        Returns the column of a given name as a pandas Series or Categorical or a
        numpy array, and raises KeyError if there is none. If it has an attribute
        `columns`, error messages suggest from it.
    state : dict
        Filled on the first call with what the expression learnt from the data
        (levels, knots, means), keyed by the text of each sub-expression, in plain
        numbers, lists, strings and arrays. With a filled state the same columns are
        rebuilt for new data.
    context : mapping of str to callable, optional
        Further functions; they receive read-only numpy arrays and return one number,
        or d numbers, for each row.

    Returns
    -------
    Numeric or Categorical
        Text, pandas categoricals, and true/false columns and comparisons are
        categorical; everything else is numeric. ``log(0)`` stays ``-inf``: the caller
        checks that values are finite. A comparison with a missing value is missing.

    Raises
    ------
    DesignError
        If a column does not exist or cannot be used so, if a function is unknown or
        refuses its arguments, or if new data have levels that the state has not.

    Examples
    --------
    >>> import numpy as np
    >>> data = {"x": np.array([1.0, 4.0, 9.0])}
    >>> evaluate("sqrt(x) + 1", data.__getitem__, {}).values
    array([2., 3., 4.])
    """
    interpreter = _Interpreter(lookup, state, context or {})
    with np.errstate(all="ignore"):
        try:
            value = interpreter.visit(parse_expression(expression))
            return interpreter.finish(value, expression)
        except DesignError as error:
            if f"`{expression}`" in str(error):
                raise
            raise DesignError(f"{error} (in `{expression}`)") from error.__cause__
        except (TypeError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            raise DesignError(f"`{expression}` failed: {error}") from error
        except RecursionError as error:
            raise DesignError(f"`{expression}` is nested too deeply") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text_of(node: ast.AST) -> str:
    return demangle(ast.unparse(node))


class _Interpreter:
    """Walks one expression; each kind of syntax it knows has a method."""

    def __init__(
        self,
        lookup: Lookup,
        state: dict[str, Any],
        context: Mapping[str, Callable[..., Any]],
    ):
        self.lookup, self.state, self.context = lookup, state, context
        self.undefined: np.ndarray | None = None

    def visit(self, node: ast.AST) -> Any:
        method = getattr(self, f"visit_{type(node).__name__}", None)
        if method is None:
            raise DesignError(
                f"`{_text_of(node)}` is not allowed in a formula: it may hold column "
                "names, numbers, arithmetic, comparisons and calls"
            )
        return method(node)

    # -- leaves

    def visit_Constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, (int, float, str, bool)) or node.value is None:
            return node.value
        raise DesignError(f"`{node.value!r}` is not allowed in a formula")

    def visit_Name(self, node: ast.Name) -> Any:
        return self.column(column_name(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> Contrast:
        return _contrast(_contrast_kind(node), (), {})

    def visit_List(self, node: ast.List | ast.Tuple) -> list[Any]:
        items = [self.visit(item) for item in node.elts]
        if any(isinstance(item, (np.ndarray, _Column, Numeric)) for item in items):
            raise DesignError(f"the list `{_text_of(node)}` may hold constants only")
        return items

    visit_Tuple = visit_List

    def visit_Dict(self, node: ast.Dict) -> dict[Any, Any]:
        if any(key is None for key in node.keys):
            raise DesignError("`**` is not allowed in a formula")
        keys = [self.visit(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(self.visit, node.values), strict=True))

    def column(self, name: str) -> _Column:
        try:
            return _Column(name, self.lookup(name))
        except KeyError:
            columns = [str(c) for c in getattr(self.lookup, "columns", ())]
            close = difflib.get_close_matches(name, columns, n=3, cutoff=0.6)
            hint = f": did you mean {' or '.join(map(repr, close))}?" if close else ""
            if not close and columns:
                hint = f"; the columns are {_listed(columns)}"
            raise DesignError(f"the data have no column {name!r}{hint}") from None

    # -- arithmetic and logic

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, (ast.BitAnd, ast.BitOr)):
            return self._junction(isinstance(node.op, ast.BitAnd), [left, right])
        function = _ARITHMETIC.get(type(node.op))
        if function is None:
            raise DesignError(f"`{_text_of(node)}`: this operator is not allowed")
        if _is_number(left) and _is_number(right):
            # numpy scalars overflow to inf where Python's integers would grow forever
            value = function(np.float64(left), np.float64(right))
            whole = isinstance(left, int) and isinstance(right, int)
            exact = whole and np.isfinite(value) and value == int(value)
            return int(value) if exact and abs(value) < 2**53 else float(value)
        return function(self.number(left, node), self.number(right, node))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.visit(node.operand)
        if isinstance(node.op, (ast.Not, ast.Invert)):
            return ~self.logical(value)
        sign = -1 if isinstance(node.op, ast.USub) else 1
        return sign * (value if _is_number(value) else self.number(value, node))

    def visit_BoolOp(self, node: ast.BoolOp) -> np.ndarray:
        return self._junction(
            isinstance(node.op, ast.And), [self.visit(value) for value in node.values]
        )

    def _junction(self, conjunction: bool, values: list[Any]) -> np.ndarray:
        function = np.logical_and if conjunction else np.logical_or
        result = self.logical(values[0])
        for value in values[1:]:
            result = function(result, self.logical(value))
        return result

    def visit_Compare(self, node: ast.Compare) -> np.ndarray:
        operands = [self.visit(n) for n in (node.left, *node.comparators)]
        result: Any = True
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            result = np.logical_and(result, self._compare(node, op, left, right))
        if np.ndim(result) == 0:
            raise DesignError(f"`{_text_of(node)}` compares constants, not columns")
        return result

    def _compare(self, node: ast.AST, op: ast.cmpop, left: Any, right: Any) -> Any:
        if isinstance(op, (ast.In, ast.NotIn)):
            among = self._among(left, right if isinstance(right, list) else [right])
            return ~among if isinstance(op, ast.NotIn) else among
        if isinstance(right, _Column) and isinstance(left, str):
            left, right = right, left
        if isinstance(left, _Column) and isinstance(right, str):
            if not isinstance(op, (ast.Eq, ast.NotEq)):
                raise DesignError(f"`{_text_of(node)}`: compare text with == or !=")
            equal = self._among(left, [right])
            return equal if isinstance(op, ast.Eq) else ~equal
        if type(op) not in _COMPARISONS:
            raise DesignError(f"`{_text_of(node)}`: this comparison is not allowed")
        pair = [
            v if _is_number(v) else self.number(v, node, missing=True)
            for v in (left, right)
        ]
        return _COMPARISONS[type(op)](*pair)

    def _among(self, value: Any, wanted: list[Any]) -> np.ndarray:
        if not isinstance(value, _Column):
            return np.isin(self.number(value, None, missing=True), wanted)
        codes, levels = value.factor()
        self._note_missing(codes < 0)
        if all(isinstance(level, str) for level in levels) and not all(
            isinstance(item, str) for item in wanted
        ):
            raise DesignError(
                f"column {value.name!r} holds text: compare it with text in quotes"
            )
        table = np.array([level in wanted for level in levels] + [False])
        return table[codes]

    def _note_missing(self, rows: np.ndarray) -> None:
        if rows.any():
            known = self.undefined
            self.undefined = rows if known is None else known | rows

    def number(
        self, value: Any, node: ast.AST | None, missing: bool = False
    ) -> np.ndarray | float:
        """Read a value as float64, noting rows where a comparison is undefined."""
        if isinstance(value, _Column):
            value = value.array()
        elif isinstance(value, Numeric):
            value = value.values
        elif _is_number(value) or isinstance(value, bool):
            return float(value)
        if not isinstance(value, np.ndarray):
            where = f" in `{_text_of(node)}`" if node is not None else ""
            raise DesignError(f"a number or a column was expected{where}")
        array = np.asarray(value, dtype=np.float64)
        if missing:
            by_row = np.isnan(array).reshape(len(array), -1)
            self._note_missing(np.logical_or.reduce(by_row, axis=1))
        return array

    def logical(self, value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray) and value.dtype == np.bool_:
            return value
        return np.asarray(self.number(value, None, missing=True) != 0)

    # -- calls

    def visit_Call(self, node: ast.Call) -> Any:
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            word.arg is None for word in node.keywords
        ):
            raise DesignError("`*` and `**` arguments are not allowed in a formula")
        if isinstance(node.func, ast.Attribute):
            return self._call_contrast(_contrast_kind(node.func), node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in self.context:
            return self._call_user(name, node)
        if name not in TRANSFORMS:
            known = ", ".join(sorted({*TRANSFORMS, *self.context}))
            raise DesignError(
                f"`{_text_of(node.func)}` is not a function that a formula may call; "
                f"these are: {known}. Pass your own with context={{...}}"
            )
        if name in PATSY_CONTRASTS:
            return self._call_contrast(PATSY_CONTRASTS[name], node)
        if TRANSFORMS[name].function is None:
            return getattr(self, f"_call_{name}")(node)
        return self._call_transform(TRANSFORMS[name], node)

    def _arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        return [self.visit(argument) for argument in node.args], {
            str(word.arg): self.visit(word.value) for word in node.keywords
        }

    def _call_transform(self, transform: Transform, node: ast.Call) -> Any:
        function = transform.function
        assert function is not None
        args, words = self._arguments(node)
        args = [self._operand(a, node) for a in args]
        words = {k: self._operand(a, node) for k, a in words.items()}
        if not any(isinstance(a, np.ndarray) for a in (*args, *words.values())):
            return self._call_constant(transform, args, words, node)
        _check_call(function, args, words, node)
        if not transform.stateful:
            return function(*args, **words)
        key = _text_of(node)
        learnt = dict(self.state.get(key, {}))
        try:
            value = function(*args, **words, state=learnt)
        except ValueError as error:
            hint = ""
            if "extrapolation" in str(error):
                hint = " (for example extrapolation='extend', as R does)"
            raise DesignError(f"`{key}`: {error}{hint}") from error
        self.state[key] = learnt
        return value

    def _call_constant(
        self, transform: Transform, args: list[Any], words: dict[str, Any], node: Any
    ) -> float:
        if transform.stateful or not all(map(_is_number, args)):
            raise DesignError(f"`{_text_of(node)}` needs a column as first argument")
        _check_call(transform.function, args, words, node)
        return float(transform.function(*map(float, args), **words))  # type: ignore[misc]

    def _operand(self, value: Any, node: ast.AST) -> Any:
        is_data = isinstance(value, (_Column, Numeric, np.ndarray))
        if isinstance(value, Categorical):
            raise DesignError(f"`{_text_of(node)}` needs numbers, not categories")
        return self.number(value, node) if is_data else value

    def _call_user(self, name: str, node: ast.Call) -> np.ndarray | Numeric:
        args, words = self._arguments(node)
        try:
            value = self.context[name](
                *map(_exposed, args), **{k: _exposed(v) for k, v in words.items()}
            )
        except Exception as error:
            raise DesignError(f"`{_text_of(node)}` failed: {error!r}") from error
        array = np.asarray(value)
        rows = [len(a) for a in map(_exposed, args) if isinstance(a, np.ndarray)]
        fits = array.ndim in (1, 2) and (not rows or len(array) == rows[0])
        if not fits or array.dtype.kind not in "biuf":
            raise DesignError(
                f"`{_text_of(node)}` returned {array.dtype} of shape {array.shape}, "
                "where one number (or one row of numbers) for each row was expected"
            )
        if array.dtype == np.bool_ and array.ndim == 1:
            return array
        array = array.astype(np.float64, copy=False)
        return array if array.ndim == 1 else Numeric(array, _numbered(array.shape[1]))

    def _call_I(self, node: ast.Call) -> Any:
        if len(node.args) != 1 or node.keywords:
            raise DesignError(f"`{_text_of(node)}`: I() takes one expression")
        return self.visit(node.args[0])

    def _call_Q(self, node: ast.Call) -> _Column:
        args, words = self._arguments(node)
        if len(args) != 1 or words or not isinstance(args[0], str):
            raise DesignError(f'`{_text_of(node)}`: write Q("column name")')
        return self.column(args[0])

    def _call_lag(self, node: ast.Call) -> Any:
        def lag(x: Any, k: int = 1) -> Any:
            return x, k

        args, words = self._arguments(node)
        _check_call(lag, args, words, node)
        x, k = lag(*args, **words)
        k = _whole("k", k, -(2**31))
        if isinstance(x, _Column) and x.is_categorical and not x.is_logical:
            key = _text_of(node)
            codes, levels = x.factor()
            codes = self._levels(key, codes, levels, None)
            levels = tuple(self.state[key]["levels"])
            return Categorical(_shift(codes, k, -1), levels)
        return _shift(np.asarray(self.number(x, node)), k, np.nan)

    def _call_C(self, node: ast.Call) -> Categorical:
        def C(x: Any, contrasts: Any = None, levels: Any = None) -> tuple[Any, ...]:
            return x, contrasts, levels

        key = _text_of(node)
        args = [
            self._contrast_argument(argument) if index else self.visit(argument)
            for index, argument in enumerate(node.args)
        ]
        words = {
            str(word.arg): self._contrast_argument(word.value) for word in node.keywords
        }
        _check_call(C, args, words, node)
        x, contrasts, wanted = C(*args, **words)
        codes, levels, contrast = self._factor_of(x, node)
        if contrasts is not None:
            contrast = _as_contrast(contrasts)
        codes = self._levels(key, codes, levels, wanted)
        return Categorical(codes, tuple(self.state[key]["levels"]), contrast)

    def _contrast_argument(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name) and node.id in PATSY_CONTRASTS:
            return Contrast(PATSY_CONTRASTS[node.id])
        return self.visit(node)

    def _factor_of(
        self, x: Any, node: ast.AST
    ) -> tuple[np.ndarray, tuple[Any, ...], Contrast]:
        if isinstance(x, Categorical):
            return x.codes, x.levels, x.contrast
        if isinstance(x, _Column):
            return (*x.factor(), Contrast())
        if isinstance(x, np.ndarray) and x.ndim == 1:
            return (*self._array_factor(x), Contrast())
        raise DesignError(f"`{_text_of(node)}`: C() takes one column")

    def _array_factor(self, x: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...]]:
        codes, levels = _Column("", x).factor()
        if self.undefined is not None:
            codes = np.where(self.undefined, np.int32(-1), codes)
        return codes, levels

    def _call_contrast(self, kind: str, node: ast.Call) -> Contrast:
        args, words = self._arguments(node)
        if "reference" in words:
            words["base"] = words.pop("reference")
        return _contrast(kind, tuple(args), words)

    # -- results

    def _levels(
        self, key: str, codes: np.ndarray, levels: tuple[Any, ...], wanted: Any
    ) -> np.ndarray:
        """Record the levels on the first call, recode to them afterwards."""
        saved = self.state.get(key)
        if saved is None:
            if not levels:
                raise DesignError(f"`{key}` has no observed values")
            known = list(levels) if wanted is None else list(wanted)
            codes = _align(codes, levels, known, key)
            self.state[key] = {"kind": "categorical", "levels": known}
            return codes
        if saved.get("kind") != "categorical":
            raise DesignError(
                f"`{key}` was numeric in the data of the fit and holds categories now"
            )
        return _align(codes, levels, list(saved["levels"]), key)

    def finish(self, value: Any, expression: str) -> Numeric | Categorical:
        """Turn what the walk returned into the public result."""
        if isinstance(value, Categorical):
            return value
        if isinstance(value, _Column):
            if value.is_categorical:
                codes = self._levels(expression, *value.factor(), None)
                levels = tuple(self.state[expression]["levels"])
                return Categorical(codes, levels)
            self._note_numeric(expression)
            return Numeric(value.array())
        if isinstance(value, np.ndarray) and value.dtype == np.bool_:
            codes = self._levels(expression, *self._array_factor(value), None)
            return Categorical(codes, tuple(self.state[expression]["levels"]))
        if isinstance(value, np.ndarray) and value.ndim == 2:
            value = Numeric(value, _numbered(value.shape[1]))
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = Numeric(np.asarray(value, dtype=np.float64))
        if not isinstance(value, Numeric):
            raise DesignError(
                f"`{expression}` is a constant: a term must depend on the data"
            )
        if self.undefined is None:
            return value
        values = np.array(value.values, dtype=np.float64)
        values[self.undefined] = np.nan
        return Numeric(values, value.names)

    def _note_numeric(self, expression: str) -> None:
        saved = self.state.setdefault(expression, {"kind": "numeric"})
        if saved.get("kind") != "numeric":
            raise DesignError(
                f"`{expression}` was categorical in the data of the fit (levels "
                f"{_listed(saved.get('levels', ()))}) and is numeric now"
            )


def _shift(values: np.ndarray, k: int, fill: Any) -> np.ndarray:
    shifted = np.full_like(values, fill)
    if k == 0:
        return values
    if abs(k) < len(values):
        if k > 0:
            shifted[k:] = values[:-k]
        else:
            shifted[:k] = values[-k:]
    return shifted


def _exposed(value: Any) -> Any:
    """Give a user's function a read-only array in place of a column."""
    if isinstance(value, _Column):
        if value.is_categorical and not value.is_logical:
            return np.asarray(value.values, dtype=object)
        value = value.array()
    if isinstance(value, Numeric):
        value = value.values
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def _check_call(
    function: Any, args: list[Any], words: Mapping[str, Any], node: ast.Call
) -> None:
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.name != "state"]
    try:
        signature.replace(parameters=shown).bind(*args, **words)
    except TypeError as error:
        name = _text_of(node.func)
        names = ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in shown
        )
        raise DesignError(
            f"`{_text_of(node)}`: {error}; the arguments are {name}({names})"
        ) from None


def _contrast_kind(node: ast.Attribute) -> str:
    if not (isinstance(node.value, ast.Name) and node.value.id == "contr"):
        raise DesignError(f"`{_text_of(node)}`: attributes are not allowed")
    if node.attr not in CONTRASTS:
        allowed = ", ".join(f"contr.{name}" for name in CONTRASTS)
        raise DesignError(f"`contr.{node.attr}` does not exist; there are {allowed}")
    return node.attr


def _contrast(kind: str, args: tuple[Any, ...], words: Mapping[str, Any]) -> Contrast:
    allowed = _CONTRAST_OPTIONS[kind]
    given = dict(zip(allowed, args, strict=False))
    if len(args) > len(allowed) or set(words) - set(allowed) or set(given) & set(words):
        options = ", ".join(allowed) or "no options"
        raise DesignError(f"contr.{kind} takes {options}")
    given.update(words)
    if any(isinstance(value, (_Column, np.ndarray)) for value in given.values()):
        raise DesignError(
            f"the options of contr.{kind} are constants: put the name of a level in "
            'quotes, as in contr.treatment(base="b")'
        )
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Contrast(kind, tuple(sorted(frozen.items())))


def _as_contrast(value: Any) -> Contrast:
    if isinstance(value, Contrast):
        return value
    if isinstance(value, str) and value.removeprefix("contr.") in CONTRASTS:
        return Contrast(value.removeprefix("contr."))
    if isinstance(value, list) and value and all(isinstance(v, list) for v in value):
        value = {i: list(w) for i, w in enumerate(zip(*value, strict=True), start=1)}
    if isinstance(value, dict) and value:
        columns = tuple((str(k), tuple(map(float, w))) for k, w in value.items())
        return Contrast("custom", (("columns", columns),))
    names = ", ".join(f"contr.{name}" for name in CONTRASTS)
    raise DesignError(
        f"the contrasts of C() must be one of {names}, "
        f"or a dictionary of weights, not {value!r}"
    )
