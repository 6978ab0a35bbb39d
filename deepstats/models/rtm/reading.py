"""The call ``rtm(crimes ~ alcohol + metro, ...)`` and its options, without the data."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np

from ...errors import ModelError
from ...expressions import parse_expression
from ...formula import Formula, Name, Term
from .choosing import METHODS
from .features import KERNELS
from .layers import PointLayer
from .likelihood import FAMILIES

__all__ = ["OPTIONS", "Plan", "bare_name", "read"]

#: Options of the model, in the call or as keywords.
OPTIONS = (
    "x", "y", "id", "distances", "bandwidths", "block", "blocks", "kernel", "dense",
    "family", "choose", "criterion", "limit", "exposure", "offset", "projected",
)  # fmt: skip
_COLUMNS = ("x", "y", "id")
_NUMBERS = ("block", "dense")


@dataclass(frozen=True)
class Plan:
    """A risk terrain model as it was asked for: strings and numbers, no data.

    Attributes
    ----------
    text : str
        The formula as written.
    formula : Formula
        Response and what is forced in; the factors left out.
    factors : tuple of str
        Names of layers, in the order of the formula.
    x, y : str
        Columns of the coordinates of units, and of layers that name no others.
    id : str or None
        Column that identifies units.
    distances, bandwidths : tuple of float
        Of layers that have none of their own.
    kernel : {"quartic", "gaussian", "uniform"}
    dense : float
        Standard deviations above the mean from which a density is high.
    family : {"best", "poisson", "nb1", "nb2"}
    choose : {"auto", "exhaustive", "stepwise", "dropout"}
    criterion : {"bic", "aic"}
    limit : int
        Models that "auto" fits at most before it goes by steps.
    exposure, offset
        Of the units, as in a generalised linear model.
    projected : bool
        Whether coordinates are known not to be degrees.
    """

    text: str
    formula: Formula
    factors: tuple[str, ...]
    x: str = "x"
    y: str = "y"
    id: str | None = None
    distances: tuple[float, ...] = ()
    bandwidths: tuple[float, ...] = ()
    kernel: str = "quartic"
    dense: float = 2.0
    family: str = "best"
    choose: str = "auto"
    criterion: str = "bic"
    limit: int = 100_000
    exposure: Any = None
    offset: Any = None
    projected: bool = False

    @property
    def families(self) -> tuple[str, ...]:
        """Families that are tried."""
        return tuple(FAMILIES) if self.family == "best" else (self.family,)

    def sizes(self, layer: Any) -> dict[str, tuple[float, ...]]:
        """Distances and bandwidths of a layer: its own, or those of the model."""
        own = layer if isinstance(layer, PointLayer) else PointLayer(None)
        found = {}
        for kind, given, common in (
            ("distance", own.distances, self.distances),
            ("density", own.bandwidths, self.bandwidths),
        ):
            name = "distances" if kind == "distance" else "bandwidths"
            found[kind] = common if given is None else _lengths(name, given)
        return found


def read(formula: str | Formula, layers: Mapping[str, Any], **options: Any) -> Plan:
    """Read the call and keyword options.

    Parameters
    ----------
    formula : str or Formula
        ``"rtm(crimes ~ alcohol + metro, block=100)"``, or the formula alone.
    layers : mapping
        Only its names are read.
    **options
        Any of `OPTIONS`; an option in the call and as a keyword must be the same.

    Returns
    -------
    Plan

    Raises
    ------
    FormulaError, ModelError
        For text or options that cannot be used; the message says what to do.
    """
    if isinstance(formula, str):
        formula = Formula.parse(formula)
    if not isinstance(layers, Mapping) or not layers:
        raise ModelError(
            "layers= maps the names of risk factors to their points: "
            "layers={'alcohol': frame, 'metro': frame}."
        )
    inner = _inner(formula)
    asked = _merged(formula, options)
    factors, forced = _split(inner, layers)
    rhs = type(inner.rhs)(forced, (), inner.rhs.offsets, (), "")
    text = f"{inner.response.text.strip()} ~ {rhs}"
    return Plan(
        formula.text.strip(), Formula(text, inner.response, rhs), factors, **asked
    )


def _inner(formula: Formula) -> Formula:
    """Return the formula inside the call, checked."""
    call, inner = formula.call, formula
    if call is not None:
        if call.name != "rtm" or len(call.arguments) != 1:
            raise ModelError(
                f"{formula.text.strip()!r}: a risk terrain model is one formula and "
                "its options, rtm(crimes ~ alcohol + metro, block=100)."
            )
        inner = call.formula
    if inner.response is None or inner.response.kind != "single":
        raise ModelError(
            f"{formula.text.strip()!r} needs one response, the counts of crimes: "
            "rtm(crimes ~ alcohol + metro)."
        )
    if inner.rhs.groups or inner.parts or inner.rhs.calls:
        raise ModelError(
            f"{inner.text.strip()!r}: a risk terrain model has factors and covariates, "
            "no random effects and nothing after '|'."
        )
    if not inner.rhs.intercept:
        raise ModelError(
            "a risk terrain model has an intercept, the rate of places without any "
            "risk factor; leave out '0 +' or '- 1'."
        )
    return inner


def _split(
    formula: Formula, layers: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[Term, ...]]:
    """Tell factors, which are names of layers, from what is forced in."""
    factors, forced = [], []
    for term in formula.rhs.terms:
        if term.degree == 1 and term.name in layers:
            factors.append(term.name)
            continue
        within = [name for name in term.variables if name in layers]
        if within:
            raise ModelError(
                f"{term.name}: the layer {within[0]!r} stands in the formula by its "
                "name alone; what it is made into is chosen, not written."
            )
        forced.append(term)
    if not factors:
        raise ModelError(
            f"{formula.text.strip()!r} names none of the layers "
            f"({', '.join(map(str, layers))}): there is nothing to choose."
        )
    response = bare_name(formula.response.expressions[0])
    idle = [name for name in layers if name not in (*factors, response)]
    if idle:
        raise ModelError(
            f"layers= has {idle[0]!r}, which the formula does not mention; add it "
            "there or leave it out."
        )
    return tuple(factors), tuple(forced)


def bare_name(expression: str) -> str | None:
    """Return the column that an expression is, or None if it is more than a name."""
    if expression.startswith("`"):
        return expression[1:-1]
    node = parse_expression(expression)
    return node.id if isinstance(node, ast.Name) else None


# -- options ---------------------------------------------------------------------------


def _merged(formula: Formula, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Join the options of the call and the keywords, each checked."""
    found: dict[str, Any] = {}
    for source in (dict(formula.call.options) if formula.call else {}, keywords):
        for key, value in source.items():
            if key not in OPTIONS:
                close = get_close_matches(key, OPTIONS, n=1)
                hint = f"did you mean {close[0]}=? " if close else ""
                raise ModelError(
                    f"{key}= is no option of a risk terrain model: {hint}there are "
                    f"{', '.join(OPTIONS)}."
                )
            value = _checked(key, value)
            if key in found and not _same(found[key], value):
                raise ModelError(
                    f"{key}= is {found[key]!r} in the call and {value!r} as a keyword."
                )
            found[key] = value
    return _with_sizes(found)


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(np.all(one == other)))


def _checked(key: str, value: Any) -> Any:
    """Return an option in its one form."""
    if key in ("exposure", "offset"):
        return value.name if isinstance(value, Name) else value
    if isinstance(value, Name):
        value = value.name
    choices = {
        "kernel": tuple(KERNELS), "family": ("best", *FAMILIES), "choose": METHODS,
        "criterion": ("bic", "aic"), "projected": (True, False),
    }  # fmt: skip
    if key in choices:
        if not isinstance(value, str | bool) or value not in choices[key]:
            raise ModelError(
                f"{key}={value!r} is not one of {', '.join(map(str, choices[key]))}."
            )
        return value
    if key in _COLUMNS:
        if not isinstance(value, str):
            raise ModelError(f"{key}= names a column, not {value!r}.")
        return value
    if key in ("distances", "bandwidths"):
        return _lengths(key, value)
    if key in _NUMBERS:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not np.isfinite(value) or (key == "block" and value <= 0):
            raise ModelError(f"{key}={value!r} must be a number above zero.")
        return float(value)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{key}={value!r} must be a whole number from 1.")
    return int(value)


def _lengths(key: str, value: Any) -> tuple[float, ...]:
    """Read distances or bandwidths: positive, each once, from the smallest on."""
    values = [value] if isinstance(value, Real) else value
    numbers = isinstance(values, Sequence | np.ndarray) and all(
        isinstance(v, Real) and not isinstance(v, bool) and 0 < v < np.inf
        for v in values
    )
    if isinstance(value, str) or not numbers:
        raise ModelError(
            f"{key}={value!r} must be lengths above zero, in the units of the "
            f"coordinates: {key}=(50, 100, 200); () for none."
        )
    return tuple(sorted({float(v) for v in values}))


def _with_sizes(found: dict[str, Any]) -> dict[str, Any]:
    """Put half blocks, up to some blocks, where no lengths were given."""
    block, blocks = found.pop("block", None), found.pop("blocks", None)
    if block is None:
        if blocks is not None:
            raise ModelError("blocks= counts blocks; give their length too, block=100.")
        return found
    halves = tuple(block / 2 * k for k in range(1, 2 * (blocks or 4) + 1))
    for key in ("distances", "bandwidths"):
        found.setdefault(key, halves)
    return found
