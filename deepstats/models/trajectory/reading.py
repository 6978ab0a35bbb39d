"""The call ``traj(y ~ t, groups=3, id=pid)`` and its options, read without the data."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from numbers import Integral, Real
from typing import Any

import numpy as np

from ...errors import ModelError
from ...expressions import parse_expression, quote_name, text_of
from ...families import (
    CensoredNormal,
    GammaML,
    GaussianML,
    Multinomial,
    Ordinal,
    ZeroInflatedPoisson,
    ZeroInflatedPoissonTau,
    get_family,
)
from ...formula import Call, Formula, Name, Rhs, Term
from ..base import INTERCEPT
from .densities import kernel_of

__all__ = [
    "OPTIONS",
    "OutcomePlan",
    "Plan",
    "Values",
    "is_scale",
    "is_zero",
    "polynomial",
    "predictors_of",
    "read",
]

#: Options that belong to one outcome, and may be mappings by response name.
OF_OUTCOMES = (
    "family",
    "orders",
    "common",
    "zero",
    "zero_orders",
    "variance",
    "disp",
    "offset",
    "exposure",
    "lower",
    "upper",
)
#: All options of a trajectory model, in the call or as keywords.
OPTIONS = (
    "groups",
    "id",
    "risk",
    "reference",
    "weights",
    "cluster",
    "dropout",
    "time",
    "random",
    "random_cov",
    *OF_OUTCOMES,
)
#: Families whose number of levels the data say.
LEVELLED = ("ordinal", "multinomial")

_OF_ALL = (
    "risk", "weights", "cluster", "dropout", "time", "random", "random_cov",
)  # fmt: skip
#: How covariances of random effects differ by group.
_COVARIANCES = ("shared", "proportional", "group")
#: What a dropout model may call besides the functions of formulas.
LAG = "lag"
#: Lags of the response that a number asks of a dropout model, at most.
_MOST_LAGS = 2
#: By name a gamma response has the log link, not the inverse one of GLMs.
_NAMES = {"logit": "binomial", "mnlogit": "multinomial", "gamma": "gammaml"}


# --------------------------------------------------------------------------------------
# What is read
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Values:
    """An option given as values, one for each row of the data.

    Attributes
    ----------
    array : array_like, shape (rows given,)
    """

    array: Any


@dataclass(frozen=True)
class OutcomePlan:
    """What was asked of one outcome.

    Attributes
    ----------
    name : str
        The response, as written.
    formula : Formula
        Response and trajectory.
    family : Family, Ordinal or Multinomial, or str
        A name where the number of levels is the data's to say.
    orders : tuple of int, or None
        Polynomial order of each group.
    ladder : tuple of str
        Columns of the polynomial, by degree from 1; empty without `orders`.
    common : tuple of Term
        Terms whose effects are the same in all groups.
    zero : Rhs
        Right-hand side of the zero part.
    zero_shared : bool
        Whether all groups share the zero part.
    zero_orders, zero_ladder
        As `orders` and `ladder`, of the zero part.
    variance : {"shared", "group"}
        Whether groups share the scale parameters.
    disp : Rhs
        Right-hand side of the scale parameters.
    offset, exposure, lower, upper : str, float, Values or None
        A column (offset, exposure: an expression), a number, or values.
    attrition : Attrition or None
        Of the outcome that says when units drop out: what it needs of the data.
    """

    name: str
    formula: Formula
    family: Any
    orders: tuple[int, ...] | None = None
    ladder: tuple[str, ...] = ()
    common: tuple[Term, ...] = ()
    zero: Rhs = INTERCEPT
    zero_shared: bool = False
    zero_orders: tuple[int, ...] | None = None
    zero_ladder: tuple[str, ...] = ()
    variance: str = "shared"
    disp: Rhs = INTERCEPT
    offset: Any = None
    exposure: Any = None
    lower: Any = None
    upper: Any = None
    attrition: Any = None


@dataclass(frozen=True)
class Plan:
    """A trajectory model as it was asked for: strings and numbers, no data.

    Attributes
    ----------
    text : str
        The formula as written; not part of equality.
    groups : int
        Number of groups, K; of all their combinations where every outcome has groups
        of its own.
    id : str
        Column that says which rows belong to one unit.
    outcomes : tuple of OutcomePlan
    risk : Rhs or None
        Risk factors: what membership depends on.
    reference : int
        Group that membership is relative to, from 1.
    weights : str, Values or None
        Sampling weights of units: a column, an expression, or values.
    cluster : str or None
        Column of clusters of units.
    dropout : Rhs, int or None
        Right-hand side of the dropout model, or how many lags of the response it has.
    time : str or None
        Column of the occasions, where the formulas do not tell.
    random : Rhs or None
        Right-hand side of random effects within groups.
    random_cov : {"shared", "proportional", "group"}
        Whether their covariance matrix is the same in all groups, the same but for a
        factor, or one for each group.
    grouping : tuple of int, or None
        Number of groups of each outcome, where every outcome has groups of its own.
    na_action : {"drop", "raise"}
    context : mapping of str to callable
        Functions the formulas may call; not part of equality.
    """

    text: str = field(compare=False)
    groups: int
    id: str
    outcomes: tuple[OutcomePlan, ...]
    risk: Rhs | None = None
    reference: int = 1
    weights: Any = None
    cluster: str | None = None
    dropout: Rhs | int | None = None
    time: str | None = None
    random: Rhs | None = None
    random_cov: str = "shared"
    grouping: tuple[int, ...] | None = None
    na_action: str = "drop"
    context: Mapping[str, Callable] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outcomes."""
        return tuple(o.name for o in self.outcomes)

    @property
    def own_groups(self) -> tuple[int, ...]:
        """Number of groups that each outcome has."""
        return self.grouping or (self.groups,) * len(self.outcomes)

    @property
    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """Own group of each outcome, from 0, in every class of a dual model."""
        return tuple(product(*(range(k) for k in self.grouping or (self.groups,))))


def is_zero(predictor: str) -> bool:
    """Whether a predictor is that of excess zeros or of a hurdle."""
    return predictor in ("zero", "inflate", "tau")


def is_scale(predictor: str) -> bool:
    """Whether a predictor is that of a scale: all but the mean, levels and zeros."""
    return not (predictor == "mu" or predictor.isdigit() or is_zero(predictor))


# --------------------------------------------------------------------------------------
# Reading it
# --------------------------------------------------------------------------------------


def read(
    formula: str | Formula,
    *,
    na_action: str = "drop",
    context: Mapping[str, Callable] | None = None,
    **options: Any,
) -> Plan:
    """Read a call and keyword options.

    Parameters
    ----------
    formula : str or Formula
        ``"traj(y ~ poly(t, 2), groups=3, id=pid)"``, with a formula for each outcome;
        or one formula alone, all options then being keywords.
    na_action : {"drop", "raise"}, default "drop"
    context : mapping of str to callable, optional
        Further functions the formulas may call.
    **options
        Any of `OPTIONS`; an option in the call and as a keyword must be the same.

    Returns
    -------
    Plan

    Raises
    ------
    FormulaError, ModelError
        For text or options that cannot be used; the message says what to do.

    Examples
    --------
    >>> plan = read("traj(y ~ poly(t, 2), groups=2, id=pid, orders=(2, 1))")
    >>> plan.groups, plan.id, plan.outcomes[0].ladder
    (2, 'pid', ('poly(t, 2)[1]', 'poly(t, 2)[2]'))
    """
    functions = (*(context or ()), LAG)
    if isinstance(formula, str):
        formula = Formula.parse(formula, functions)
    elif not isinstance(formula, Formula):
        raise ModelError(
            f"a formula is text such as 'traj(y ~ t, groups=3, id=pid)', not "
            f"{type(formula).__name__}."
        )
    formulas = _formulas(formula)
    asked = _merged(formula.call, options, functions)
    own = _groups(asked.pop("groups", None), formulas)
    grouping = own if isinstance(own, tuple) else None
    groups = math.prod(grouping) if grouping else own
    unit = asked.pop("id", None)
    if unit is None:
        raise ModelError(
            "id= is missing: name the column that says which rows belong to one unit, "
            "as in traj(y ~ t, groups=3, id=pid)."
        )
    reference = asked.pop("reference", 1)
    if reference > groups:
        raise ModelError(
            f"reference={reference} is no group: there are groups 1 to {groups}."
        )
    whole = {key: asked.pop(key) for key in _OF_ALL if key in asked}
    if LAG not in (context or ()):
        _check_lags(formulas, [*asked.values(), whole.get("risk")])
    if "random_cov" in whole and "random" not in whole:
        raise ModelError(
            "random_cov= says how random effects vary, and there are none; give "
            "random=~ 1 + t too."
        )
    if grouping and whole.keys() & {"dropout", "random"}:
        raise ModelError(
            "dropout= and random= belong to one grouping; they have no use where "
            f"every outcome has groups of its own, groups={grouping}."
        )
    outcomes = _outcomes(formulas, asked, grouping or (groups,) * len(formulas))
    return Plan(
        formula.text.strip(), groups, unit, outcomes, reference=reference,
        grouping=grouping, na_action=na_action, context=dict(context or {}), **whole,
    )  # fmt: skip


def _formulas(formula: Formula) -> tuple[Formula, ...]:
    """Return the formula of each outcome, checked."""
    call = formula.call
    if call is None:
        found: tuple[Formula, ...] = (formula,)
    else:
        found = call.formulas
        others = [a for a in call.arguments if isinstance(a, str)]
        if others:
            raise ModelError(
                f"{call.name}(...) takes formulas, then options as name=value; "
                f"`{others[0]}` is neither."
            )
    for one in found:
        _check_formula(one)
    names = [_name(f) for f in found]
    twice = [n for j, n in enumerate(names) if n in names[:j]]
    if twice:
        raise ModelError(f"{twice[0]} is the response of two formulas; give each once.")
    return found


def _name(formula: Formula) -> str:
    return formula.response.text.strip()


def _check_formula(formula: Formula) -> None:
    text, response, rhs = formula.text.strip(), formula.response, formula.rhs
    if response is None:
        raise ModelError(f"the formula {text!r} has no response: y ~ poly(t, 2).")
    if response.kind == "multiple":
        raise ModelError(
            f"the formula {text!r} has several responses; give each outcome a formula "
            "of its own: traj(y1 ~ t, y2 ~ t, groups=3, id=pid)."
        )
    if rhs.groups:
        raise ModelError(
            f"{rhs.groups[0].text} in {text!r}: random effects within groups are "
            "given as an option, random=~ 1 + t; their unit is that of id=."
        )
    if rhs.calls:
        raise ModelError(f"a trajectory cannot use {rhs.calls[0].text}.")
    if formula.parts:
        raise ModelError(
            f"{text!r}: nothing may follow '|'; the zero part of counts is zero=~ t, "
            "risk factors are risk=~ x."
        )
    if not rhs.terms:
        raise ModelError(f"the formula {text!r} has no columns; use y ~ 1.")


def _check_lags(formulas: tuple[Formula, ...], options: Sequence[Any]) -> None:
    """Refuse lag() outside of the dropout model."""
    sides = [f.rhs for f in formulas]
    for option in options:
        given = option.values() if isinstance(option, Mapping) else [option]
        sides += [side for side in given if isinstance(side, Rhs)]
    for factor in (f for s in sides for t in s.terms for f in t.factors):
        if any(_calls(node, LAG) for node in ast.walk(parse_expression(factor))):
            raise ModelError(
                f"{factor}: lag() belongs to dropout=~ lag(y). A trajectory that "
                "depends on earlier responses has a column of them: add it to the "
                "data."
            )


# -- options ---------------------------------------------------------------------------


def _merged(
    call: Call | None, keywords: Mapping[str, Any], functions: tuple[str, ...]
) -> dict[str, Any]:
    """Join the options of the call and the keywords, each in its one form."""
    found: dict[str, Any] = {}
    for source in (dict(call.options) if call is not None else {}, keywords):
        for key, value in source.items():
            if key not in OPTIONS:
                raise ModelError(_unknown("option", key, OPTIONS))
            if value is None:
                continue
            value = _normal(key, value, functions)
            if key in found and found[key] != value:
                raise ModelError(
                    f"{key} is given in the call and as a keyword, and differs; give "
                    "it once."
                )
            found[key] = value
    return found


def _unknown(what: str, given: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"there is no {what} {given!r}.{hint} There are: {', '.join(allowed)}."


def _normal(key: str, value: Any, functions: tuple[str, ...]) -> Any:
    """Bring the value of an option to the one form that a plan holds."""
    if isinstance(value, Mapping):
        if key not in OF_OUTCOMES:
            raise ModelError(f"{key}= is one value for all outcomes, not a mapping.")
        return {str(k): _normal(key, v, functions) for k, v in value.items()}
    if key == "groups" and isinstance(value, list | tuple):
        return tuple(_whole(key, v, 1) for v in value)
    if key in ("groups", "reference"):
        return _whole(key, value, 1)
    if key in ("id", "cluster", "time"):
        return _column(key, value)
    if key == "dropout" and isinstance(value, Integral) and not isinstance(value, bool):
        return _lags(int(value))
    if key in ("risk", "dropout", "random", "disp", "common"):
        return _one_sided(key, value, functions)
    if key == "zero":
        plain = value.name if isinstance(value, Name) else value
        if plain in ("shared", "tau"):
            return plain
        return _one_sided(key, value, functions)
    if key in ("orders", "zero_orders"):
        return _orders(key, value)
    if key == "variance":
        value = value.name if isinstance(value, Name) else value
        if value not in ("shared", "group"):
            raise ModelError(f"variance= is 'shared' or 'group', not {value!r}.")
        return value
    if key == "random_cov":
        value = value.name if isinstance(value, Name) else value
        if value not in _COVARIANCES:
            raise ModelError(
                f"random_cov= is one of {', '.join(map(repr, _COVARIANCES))}, not "
                f"{value!r}."
            )
        return value
    if key == "family":
        return _family_names(value)
    if key in ("lower", "upper"):
        return _limit(key, value)
    return _values(key, value)


def _whole(key: str, value: Any, least: int) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ModelError(
            f"{key}= is a whole number of at least {least}, not {_shown(value)}."
        )
    return int(value)


def _lags(value: int) -> int:
    if not 0 <= value <= _MOST_LAGS:
        raise ModelError(
            f"dropout={value}: a number says how many earlier responses dropping out "
            f"depends on, 0 to {_MOST_LAGS}; write more as dropout=~ lag(y) + "
            "lag(y, 2) + lag(y, 3)."
        )
    return value


def _column(key: str, value: Any) -> str:
    value = value.name if isinstance(value, Name) else value
    if not isinstance(value, str):
        raise ModelError(f"{key}= is the name of a column, not {_shown(value)}.")
    return value.strip("`")


def _one_sided(key: str, value: Any, functions: tuple[str, ...]) -> Rhs | None:
    """Read a right-hand side of plain terms."""
    if isinstance(value, str):
        value = Rhs.parse(value, functions)
    if isinstance(value, Name):
        raise ModelError(f"write {key}=~ {value.name}: {key}= is a formula.")
    if isinstance(value, bool) and key == "dropout":
        return INTERCEPT if value else None
    if not isinstance(value, Rhs):
        also = ", 'shared' or 'tau'" if key == "zero" else ""
        raise ModelError(
            f"{key}= is a one-sided formula such as '~ x'{also}, not {_shown(value)}."
        )
    if value.groups or value.calls or value.offsets:
        raise ModelError(
            f"{key}=~ {value.text.strip()} takes plain terms only: no offset(), no "
            "(1 | g), no model calls."
        )
    if not value.terms:
        raise ModelError(f"{key}=~ {value.text.strip()} has no columns; use ~ 1.")
    if key in ("risk", "common") and not any(t.factors for t in value.terms):
        if key == "risk":
            return None
        raise ModelError("common= names no columns: intercepts differ by group.")
    if key == "risk" and not value.intercept:
        raise ModelError(
            "risk= always has an intercept: it is the size of the group; leave out "
            "'0 +' or '- 1'."
        )
    return value


def _orders(key: str, value: Any) -> Any:
    """Read orders: a number, one for each group, or one sequence for each outcome."""
    if isinstance(value, Integral):
        return _whole(key, value, 0)
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ModelError(
            f"{key}= gives the polynomial order of each group, as in {key}=(2, 1, 0); "
            f"not {_shown(value)}."
        )
    if any(isinstance(v, Sequence | np.ndarray) for v in value):
        return tuple(_orders(key, v) for v in value)
    return tuple(_whole(key, v, 0) for v in value)


def _family_names(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_family_names, value))
    return value.name if isinstance(value, Name) else value


def _limit(key: str, value: Any) -> Any:
    if isinstance(value, Name | str):
        return _column(key, value)
    return _number_or_values(key, value)


def _values(key: str, value: Any) -> Any:
    """Read an expression, a number or values."""
    if isinstance(value, Name):
        return quote_name(value.name)
    if isinstance(value, str):
        return value
    if key == "weights" and np.ndim(value) == 0:
        raise ModelError(
            f"weights= is a column, an expression or values, not {_shown(value)}."
        )
    return _number_or_values(key, value)


def _number_or_values(key: str, value: Any) -> Any:
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if np.isnan(number):
            raise ModelError(f"{key}= is not a number (NaN).")
        return number
    if isinstance(value, bool) or np.ndim(value) != 1:
        raise ModelError(
            f"{key}= is a column, a number, or one value for each row; not "
            f"{_shown(value)}."
        )
    return Values(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{type(value).__name__} {text[:50]}..."


def _groups(
    groups: int | tuple[int, ...] | None, formulas: tuple[Formula, ...]
) -> int | tuple[int, ...]:
    """Return the number of groups; one for each outcome where they differ."""
    if groups is None:
        raise ModelError(
            "groups= is missing: how many groups are there, as in "
            "traj(y ~ t, groups=3, id=pid)?"
        )
    if isinstance(groups, tuple) and (
        len(groups) != len(formulas) or len(formulas) == 1
    ):
        raise ModelError(
            f"groups={groups} gives every outcome groups of its own, and there "
            + ("is one outcome" if len(formulas) == 1 else
               f"are {len(formulas)} outcomes")
            + ": "
            + ", ".join(map(_name, formulas))
            + ". Give one number for each outcome, or one for all that they share."
        )  # fmt: skip
    return groups


# -- outcomes --------------------------------------------------------------------------


def _outcomes(
    formulas: tuple[Formula, ...], asked: dict[str, Any], groups: tuple[int, ...]
) -> tuple[OutcomePlan, ...]:
    """Give every outcome its options, and refuse those that have no use."""
    names = tuple(_name(f) for f in formulas)
    families = _assigned("family", asked.pop("family", "gaussian"), names)
    for name in names:
        if name not in families:
            raise ModelError(f"family= says nothing of {name}; give it one too.")
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    resolved = {name: _resolved(families[name]) for name in names}
    for key, value in asked.items():
        given = _assigned(key, value, names)
        idle = {n: why for n in given if (why := _no_use(key, resolved[n]))}
        if idle and (isinstance(value, dict) or len(idle) == len(given)):
            raise ModelError(next(iter(idle.values())))
        for name in given.keys() - idle.keys():
            options[name][key] = given[name]
    return tuple(
        _outcome(formula, name, own, resolved[name], dict(options[name]))
        for formula, name, own in zip(formulas, names, groups, strict=True)
    )


def _assigned(key: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the value of an option by the name of the response."""
    if isinstance(value, dict):
        unknown = [name for name in value if name not in names]
        if unknown:
            raise ModelError(f"{key}=: {_unknown('response', unknown[0], names)}")
        return value
    nested = isinstance(value, tuple) and (
        key == "family" or any(isinstance(v, tuple) for v in value)
    )
    if not nested:
        return dict.fromkeys(names, value)
    if len(value) != len(names):
        raise ModelError(
            f"{key}= has {len(value)} entries and there are {len(names)} outcomes: "
            f"{', '.join(names)}."
        )
    return dict(zip(names, value, strict=True))


def _resolved(value: Any) -> Any:
    """Return a family; its name alone where the data say the number of levels."""
    if isinstance(value, str):
        key = "".join(c for c in value.lower() if c not in " ._-")
        key = _NAMES.get(key, key)
        if key in LEVELLED:
            return key
        value = key
    return _with_scale(get_family(value))


def _with_scale(family: Any) -> Any:
    """Return the family whose scale has a predictor, where a GLM's has none."""
    if family.name == "gaussian":
        return GaussianML(link=family.link)
    if family.name == "gamma":
        return GammaML(link=family.link)
    return family


def _predictors(family: Any) -> tuple[str, ...]:
    """Names of the predictors; those of levels that the data say are left out."""
    if isinstance(family, str):
        return ("mu", "step") if family == "ordinal" else ("1",)
    return predictors_of(family)


def _no_use(key: str, family: Any) -> str:
    """Say why a family has no use for an option; nothing where it has one."""
    predictors = _predictors(family)
    name = named(family)
    if key in ("zero", "zero_orders") and not any(map(is_zero, predictors)):
        return (
            f"{key}=: the family {name} has no zero part; zip, zinb and hurdle "
            "families have one."
        )
    if key in ("variance", "disp") and not any(map(is_scale, predictors)):
        return f"{key}=: the family {name} has no scale parameter."
    if key == "disp" and (name == "ordinal" or isinstance(family, Ordinal)):
        return "disp=: the steps of an ordinal response have no columns."
    normal = isinstance(family, GaussianML | CensoredNormal)
    if key in ("lower", "upper") and not normal:
        return f"{key}=: only a normal response has limits, not the family {name}."
    if key in ("offset", "exposure") and (
        name == "multinomial" or isinstance(family, Multinomial)
    ):
        return f"{key}=: a multinomial response has several predictors and no {key}."
    return ""


def _outcome(
    formula: Formula, name: str, groups: int, family: Any, options: dict[str, Any]
) -> OutcomePlan:
    several = family == "multinomial" or isinstance(family, Multinomial)
    if several and formula.rhs.offsets:
        raise ModelError(_no_use("offset", family))
    family = _limited(family, name, options)
    own = "tau" if isinstance(family, ZeroInflatedPoissonTau) else INTERCEPT
    zero = options.pop("zero", own)
    if "tau" in (own, zero):
        family, zero = _tau(family, zero), "tau"
    for key in ("orders", "zero_orders"):
        if key not in options:
            continue
        if key == "zero_orders" and isinstance(zero, str):
            raise ModelError(f"zero_orders= has no use with zero={zero!r}.")
        rhs = formula.rhs if key == "orders" else zero
        ladder = _ladder(rhs.terms, key, rhs.text.strip())
        options[key] = _checked_orders(options[key], key, groups, ladder, rhs)
        options[key.replace("orders", "ladder")] = ladder
    if "common" in options:
        options["common"] = _common(formula, options["common"])
    shared = isinstance(zero, str)
    return OutcomePlan(
        name, formula, family, zero_shared=zero == "shared",
        zero=INTERCEPT if shared else zero, **options,
    )  # fmt: skip


def _common(formula: Formula, rhs: Rhs) -> tuple[Term, ...]:
    terms = tuple(t for t in rhs.terms if t.factors)
    twice = [t.name for t in terms if t in formula.rhs.terms]
    if twice:
        raise ModelError(
            f"{twice[0]} is in the formula {formula.text.strip()!r}, where its effect "
            "differs by group, and in common=; leave it out of one of them."
        )
    return terms


# -- polynomials -----------------------------------------------------------------------


def _checked_orders(
    orders: Any, key: str, groups: int, ladder: tuple[str, ...], rhs: Rhs
) -> tuple[int, ...]:
    """Return an order for each group, none above the degree of the polynomial."""
    orders = (orders,) * groups if isinstance(orders, int) else orders
    if len(orders) != groups:
        raise ModelError(
            f"{key}={orders} has {len(orders)} entries and there are {groups} groups."
        )
    if max(orders) > len(ladder):
        raise ModelError(
            f"{key}={orders}: the polynomial in '~ {rhs.text.strip()}' has degree "
            f"{len(ladder)}; raise it there (poly(t, {max(orders)}), or "
            f"I(t**{max(orders)}) where powers are written out)."
        )
    return orders


def polynomial(rhs: Rhs) -> tuple[str, ...]:
    """Columns of the one polynomial of a right-hand side, by degree; else nothing."""
    try:
        return _ladder(rhs.terms, "orders", rhs.text)
    except ModelError:
        return ()


def _ladder(terms: Sequence[Term], key: str, text: str) -> tuple[str, ...]:
    """Columns of the one polynomial among terms, by degree from 1."""
    found: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    powers: dict[str, dict[int, str]] = {}
    for factor in (t.factors[0] for t in terms if t.degree == 1):
        node = parse_expression(factor)
        if _calls(node, "poly"):
            names = [
                f"{Term((factor,)).name}[{k}]" for k in range(1, _degree(node) + 1)
            ]
            found.append((factor, tuple(names), (factor,)))
            continue
        base, power = _power(node)
        powers.setdefault(base, {})[power] = factor
    written = {b: p for b, p in powers.items() if max(p) > 1}
    if not found and not written:
        # A straight line is a polynomial of degree one, where it is the only term.
        single = [parse_expression(t.factors[0]) for t in terms if t.degree]
        plain = all(isinstance(node, ast.Name) or _calls(node, "I") for node in single)
        written = powers if len(single) == len(powers) == 1 and plain else {}
    for base, by_degree in written.items():
        degrees = range(1, max(by_degree) + 1)
        missing = [k for k in degrees if k not in by_degree]
        if missing:
            lack = base if missing[0] == 1 else f"I({base}**{missing[0]})"
            raise ModelError(f"{key}=: the powers of {base} in '~ {text}' lack {lack}.")
        factors = tuple(by_degree[k] for k in degrees)
        found.append((base, tuple(Term((f,)).name for f in factors), factors))
    if len(found) != 1:
        what = "no polynomial" if not found else "several polynomials"
        raise ModelError(
            f"{key}= gives each group its order of one polynomial, and '~ {text}' has "
            f"{what}: write poly(t, 2), or t + I(t**2)."
        )
    _, names, factors = found[0]
    crossed = [t.name for t in terms if t.degree > 1 and set(t.factors) & {*factors}]
    if crossed:
        raise ModelError(
            f"{key}=: the polynomial is part of the interaction {crossed[0]}, whose "
            "order by group is not defined; leave orders or the interaction out."
        )
    return tuple(names)


def _calls(node: ast.AST, name: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == name
    )


def _degree(node: ast.Call) -> int:
    """Return the degree that a call of poly says: its second argument."""
    given = [k.value for k in node.keywords if k.arg == "degree"] or node.args[1:2]
    return int(ast.literal_eval(given[0])) if given else 1


def _power(node: ast.AST) -> tuple[str, int]:
    """Return the base and the whole power of ``t``, ``I(t)`` or ``I(t ** 2)``."""
    if _calls(node, "I"):
        node = node.args[0]
    if (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Pow)
        and isinstance(node.right, ast.Constant)
        and isinstance(node.right.value, int)
        and node.right.value > 0
    ):
        return text_of(node.left), node.right.value
    return text_of(node), 1


# -- families --------------------------------------------------------------------------


def named(family: Any) -> str:
    """Return the name of a family as its users know it: a normal one is gaussian."""
    return family if isinstance(family, str) else family.name.removesuffix("ml")


def predictors_of(family: Any) -> tuple[str, ...]:
    """Names of the linear predictors of a family, as its kernel has them."""
    return kernel_of(family).predictors


def _tau(family: Any, zero: Any) -> Any:
    """Return the family whose zeros follow the mean."""
    if zero != "tau":
        raise ModelError(
            "the family ziptau has zero='tau': its zeros follow the mean; use zip for "
            "a zero part of its own."
        )
    if isinstance(family, ZeroInflatedPoissonTau):
        return family
    if not isinstance(family, ZeroInflatedPoisson):
        raise ModelError(f"zero='tau' is a form of zip, not of {named(family)}.")
    return ZeroInflatedPoissonTau(family.link)


def _limited(family: Any, name: str, options: dict[str, Any]) -> Any:
    """Return the censored family, its limits among the options."""
    if isinstance(family, CensoredNormal):
        for key in ("lower", "upper"):
            own = getattr(family, key)
            if np.isfinite(own) and options.setdefault(key, own) != own:
                raise ModelError(f"the family and {key}= give different limits.")
        if not options.keys() & {"lower", "upper"}:
            raise ModelError(
                f"a censored normal {name} needs its limits: lower= or upper=, "
                "numbers, columns or values."
            )
    elif not options.keys() & {"lower", "upper"}:
        return family
    return CensoredNormal(family.link)
