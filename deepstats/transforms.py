"""The functions a formula may call, and the interpreter that evaluates them.

Formulas never run Python: an expression is parsed with :mod:`ast` and walked by an
interpreter that knows arithmetic, comparisons and the functions in `TRANSFORMS`
(plus what the caller passes as `context`). Anything else is refused.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bases import bs, cubic, ns, numbered, poly, whole_number
from .columns import Categorical, Column, Numeric, align
from .contrasts import CONTRASTS, PATSY_CONTRASTS, Contrast, as_contrast, contrast_of
from .errors import DesignError, listed
from .expressions import column_name, parse_expression, text_of

__all__ = ["TRANSFORMS", "Transform", "evaluate"]

Lookup = Callable[[str], Any]


# --------------------------------------------------------------------------------------
# Transforms
# --------------------------------------------------------------------------------------


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
    "points": Transform("places as levels, one for each distinct pair: points(x, y)"),
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
    "poly": Transform("polynomials: poly(x, 2), raw=True", poly, stateful=True),
    "bs": Transform("B-splines: bs(x, df=5)", bs, stateful=True),
    "ns": Transform("natural splines as R's: ns(x, df=3)", ns, stateful=True),
    "cr": Transform("natural cubic regression splines", cubic("cr"), stateful=True),
    "cs": Transform("the same as cr", cubic("cr"), stateful=True),
    "cc": Transform("cyclic cubic regression splines", cubic("cc"), stateful=True),
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
                f"`{text_of(node)}` is not allowed in a formula: it may hold column "
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
        return contrast_of(_contrast_kind(node), (), {})

    def visit_List(self, node: ast.List | ast.Tuple) -> list[Any]:
        items = [self.visit(item) for item in node.elts]
        if any(isinstance(item, (np.ndarray, Column, Numeric)) for item in items):
            raise DesignError(f"the list `{text_of(node)}` may hold constants only")
        return items

    visit_Tuple = visit_List

    def visit_Dict(self, node: ast.Dict) -> dict[Any, Any]:
        if any(key is None for key in node.keys):
            raise DesignError("`**` is not allowed in a formula")
        keys = [self.visit(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(self.visit, node.values), strict=True))

    def column(self, name: str) -> Column:
        try:
            return Column(name, self.lookup(name))
        except KeyError:
            columns = [str(c) for c in getattr(self.lookup, "columns", ())]
            close = difflib.get_close_matches(name, columns, n=3, cutoff=0.6)
            hint = f": did you mean {' or '.join(map(repr, close))}?" if close else ""
            if not close and columns:
                hint = f"; the columns are {listed(columns)}"
            raise DesignError(f"the data have no column {name!r}{hint}") from None

    # -- arithmetic and logic

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, (ast.BitAnd, ast.BitOr)):
            return self._junction(isinstance(node.op, ast.BitAnd), [left, right])
        function = _ARITHMETIC.get(type(node.op))
        if function is None:
            raise DesignError(f"`{text_of(node)}`: this operator is not allowed")
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
            raise DesignError(f"`{text_of(node)}` compares constants, not columns")
        return result

    def _compare(self, node: ast.AST, op: ast.cmpop, left: Any, right: Any) -> Any:
        if isinstance(op, (ast.In, ast.NotIn)):
            among = self._among(left, right if isinstance(right, list) else [right])
            return ~among if isinstance(op, ast.NotIn) else among
        if isinstance(right, Column) and isinstance(left, str):
            left, right = right, left
        if isinstance(left, Column) and isinstance(right, str):
            if not isinstance(op, (ast.Eq, ast.NotEq)):
                raise DesignError(f"`{text_of(node)}`: compare text with == or !=")
            equal = self._among(left, [right])
            return equal if isinstance(op, ast.Eq) else ~equal
        if type(op) not in _COMPARISONS:
            raise DesignError(f"`{text_of(node)}`: this comparison is not allowed")
        pair = [
            v if _is_number(v) else self.number(v, node, missing=True)
            for v in (left, right)
        ]
        return _COMPARISONS[type(op)](*pair)

    def _among(self, value: Any, wanted: list[Any]) -> np.ndarray:
        if not isinstance(value, Column):
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
        if isinstance(value, Column):
            value = value.array()
        elif isinstance(value, Numeric):
            value = value.values
        elif _is_number(value) or isinstance(value, bool):
            return float(value)
        if not isinstance(value, np.ndarray):
            where = f" in `{text_of(node)}`" if node is not None else ""
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
                f"`{text_of(node.func)}` is not a function that a formula may call; "
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
        key = text_of(node)
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
            raise DesignError(f"`{text_of(node)}` needs a column as first argument")
        _check_call(transform.function, args, words, node)
        return float(transform.function(*map(float, args), **words))  # type: ignore[misc]

    def _operand(self, value: Any, node: ast.AST) -> Any:
        is_data = isinstance(value, (Column, Numeric, np.ndarray))
        if isinstance(value, Categorical):
            raise DesignError(f"`{text_of(node)}` needs numbers, not categories")
        return self.number(value, node) if is_data else value

    def _call_user(self, name: str, node: ast.Call) -> np.ndarray | Numeric:
        args, words = self._arguments(node)
        try:
            value = self.context[name](
                *map(_exposed, args), **{k: _exposed(v) for k, v in words.items()}
            )
        except Exception as error:
            raise DesignError(f"`{text_of(node)}` failed: {error!r}") from error
        array = np.asarray(value)
        rows = [len(a) for a in map(_exposed, args) if isinstance(a, np.ndarray)]
        fits = array.ndim in (1, 2) and (not rows or len(array) == rows[0])
        if not fits or array.dtype.kind not in "biuf":
            raise DesignError(
                f"`{text_of(node)}` returned {array.dtype} of shape {array.shape}, "
                "where one number (or one row of numbers) for each row was expected"
            )
        if array.dtype == np.bool_ and array.ndim == 1:
            return array
        array = array.astype(np.float64, copy=False)
        return array if array.ndim == 1 else Numeric(array, numbered(array.shape[1]))

    def _call_I(self, node: ast.Call) -> Any:
        if len(node.args) != 1 or node.keywords:
            raise DesignError(f"`{text_of(node)}`: I() takes one expression")
        return self.visit(node.args[0])

    def _call_Q(self, node: ast.Call) -> Column:
        args, words = self._arguments(node)
        if len(args) != 1 or words or not isinstance(args[0], str):
            raise DesignError(f'`{text_of(node)}`: write Q("column name")')
        return self.column(args[0])

    def _call_lag(self, node: ast.Call) -> Any:
        def lag(x: Any, k: int = 1) -> Any:
            return x, k

        args, words = self._arguments(node)
        _check_call(lag, args, words, node)
        x, k = lag(*args, **words)
        k = whole_number("k", k, -(2**31))
        if isinstance(x, Column) and x.is_categorical and not x.is_logical:
            key = text_of(node)
            codes, levels = x.factor()
            codes = self._levels(key, codes, levels, None)
            levels = tuple(self.state[key]["levels"])
            return Categorical(_shift(codes, k, -1), levels)
        return _shift(np.asarray(self.number(x, node)), k, np.nan)

    def _call_C(self, node: ast.Call) -> Categorical:
        def C(x: Any, contrasts: Any = None, levels: Any = None) -> tuple[Any, ...]:
            return x, contrasts, levels

        key = text_of(node)
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
            contrast = as_contrast(contrasts)
        codes = self._levels(key, codes, levels, wanted)
        return Categorical(codes, tuple(self.state[key]["levels"]), contrast)

    def _call_points(self, node: ast.Call) -> Categorical:
        key = text_of(node)
        if not node.args or node.keywords:
            raise DesignError(f"`{key}`: write points(x), points(x, y)")
        columns = [np.asarray(self.number(self.visit(a), node)) for a in node.args]
        if any(c.ndim != 1 for c in columns):
            raise DesignError(f"`{key}`: every coordinate is one column of numbers")
        values = np.stack(columns, axis=1) + 0.0  # No minus zero.
        known = np.isfinite(values).all(1)
        places, at = np.unique(values[known], axis=0, return_inverse=True)
        codes = np.full(len(values), -1, dtype=np.int32)
        codes[known] = at.reshape(-1)
        levels = tuple(";".join(map(repr, place)) for place in places.tolist())
        codes = self._levels(key, codes, levels, None)
        return Categorical(codes, tuple(self.state[key]["levels"]))

    def _contrast_argument(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name) and node.id in PATSY_CONTRASTS:
            return Contrast(PATSY_CONTRASTS[node.id])
        return self.visit(node)

    def _factor_of(
        self, x: Any, node: ast.AST
    ) -> tuple[np.ndarray, tuple[Any, ...], Contrast]:
        if isinstance(x, Categorical):
            return x.codes, x.levels, x.contrast
        if isinstance(x, Column):
            return (*x.factor(), Contrast())
        if isinstance(x, np.ndarray) and x.ndim == 1:
            return (*self._array_factor(x), Contrast())
        raise DesignError(f"`{text_of(node)}`: C() takes one column")

    def _array_factor(self, x: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...]]:
        codes, levels = Column("", x).factor()
        if self.undefined is not None:
            codes = np.where(self.undefined, np.int32(-1), codes)
        return codes, levels

    def _call_contrast(self, kind: str, node: ast.Call) -> Contrast:
        args, words = self._arguments(node)
        if "reference" in words:
            words["base"] = words.pop("reference")
        return contrast_of(kind, tuple(args), words)

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
            codes = align(codes, levels, known, key)
            self.state[key] = {"kind": "categorical", "levels": known}
            return codes
        if saved.get("kind") != "categorical":
            raise DesignError(
                f"`{key}` was numeric in the data of the fit and holds categories now"
            )
        return align(codes, levels, list(saved["levels"]), key)

    def finish(self, value: Any, expression: str) -> Numeric | Categorical:
        """Turn what the walk returned into the public result."""
        if isinstance(value, Categorical):
            return value
        if isinstance(value, Column):
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
            value = Numeric(value, numbered(value.shape[1]))
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
                f"{listed(saved.get('levels', ()))}) and is numeric now"
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
    if isinstance(value, Column):
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
        name = text_of(node.func)
        names = ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in shown
        )
        raise DesignError(
            f"`{text_of(node)}`: {error}; the arguments are {name}({names})"
        ) from None


def _contrast_kind(node: ast.Attribute) -> str:
    if not (isinstance(node.value, ast.Name) and node.value.id == "contr"):
        raise DesignError(f"`{text_of(node)}`: attributes are not allowed")
    if node.attr not in CONTRASTS:
        allowed = ", ".join(f"contr.{name}" for name in CONTRASTS)
        raise DesignError(f"`contr.{node.attr}` does not exist; there are {allowed}")
    return node.attr
