"""Dropout by group: the probability of leaving the study as one more outcome.

A unit that was observed up to an occasion is at risk of being gone at the next one. The
rows at risk are made here from the occasions of the data; their outcome, a logit with
coefficients for each group, enters the mixture as any other.

References
----------
Haviland, Jones & Nagin (2011), Group-based trajectory modeling extended to account for
nonrandom participant attrition, Sociological Methods & Research 40; Jones & Nagin
(2013), A note on a Stata plugin for estimating group-based trajectory models.
"""

from __future__ import annotations

import ast
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import special

from ...errors import DesignError, ModelError, listed
from ...expressions import column_name, mangle, parse_expression, quote_name, text_of
from ...families import get_family
from ...formula import Formula, Response, Rhs, Term
from ...frame import Table
from ..base import INTERCEPT
from .labels import group_names
from .reading import LAG, OutcomePlan, Plan

if TYPE_CHECKING:
    from .results import TrajectoryResults
    from .study import Outcome

__all__ = [
    "EVENT",
    "AtRisk",
    "Attendance",
    "Attrition",
    "at_risk",
    "dropout_table",
    "plain_names",
    "planned",
    "standard_errors",
    "without_rows",
]

#: Name of the outcome, and the column of the rows at risk that holds it.
NAME, EVENT = "dropout", ".dropout"
#: Basis functions of time that tell which column is the time.
_CURVES = ("poly", "bs", "ns", "cr", "cc", "cs")
#: Least share of the grid's occasions that units are seen at, between their first and
#: last, for the times to be a common grid.
_COMMON = 0.5
#: Slope of a result in a parameter below which the parameter plays no part.
_FELT = 1e-6


# --------------------------------------------------------------------------------------
# The plan
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attrition:
    """What the dropout model needs of the data.

    Attributes
    ----------
    time : str
        Column of the occasions.
    lags : tuple of (str, int)
        Columns whose earlier values it depends on, and how far back.
    others : tuple of str
        Columns that are constant in a unit.
    """

    time: str
    lags: tuple[tuple[str, int], ...]
    others: tuple[str, ...]


def planned(plan: Plan) -> Plan:
    """Add the outcome of dropping out to a plan that asks for it.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    Plan
        Its last outcome is named "dropout", and stands for the option.

    Raises
    ------
    ModelError
        For a dropout model that cannot be read.
    """
    if plan.dropout is None:
        return plan
    if NAME in plan.names:
        raise ModelError(
            f"with dropout= no response may be named {NAME!r}; rename the column."
        )
    asked = plan.dropout
    rhs = asked if isinstance(asked, Rhs) else _of_lags(plan, asked)
    time = _time_of(plan)
    finder = _Lags()
    terms = tuple(Term(tuple(map(finder.named, t.factors))) for t in rhs.terms)
    names = {lag_name(*lag) for lag in finder.found}
    new = Rhs(terms, text=rhs.text)
    others = tuple(v for v in new.variables if v not in {*names, time, *plan.context})
    formula = Formula(
        f"{NAME} ~ {rhs.text.strip()}",
        Response("single", (quote_name(EVENT),), NAME), new,
    )  # fmt: skip
    outcome = OutcomePlan(
        NAME, formula, get_family("binomial"),
        attrition=Attrition(time, tuple(finder.found), others),
    )  # fmt: skip
    return replace(plan, outcomes=(*plan.outcomes, outcome), dropout=None)


def lag_name(column: str, back: int) -> str:
    """Return the name of an earlier value, as results print it."""
    return f"{LAG}({column})" if back == 1 else f"{LAG}({column}, {back})"


def _of_lags(plan: Plan, count: int) -> Rhs:
    """Return the right-hand side that a number of lags stands for."""
    if not count:
        return INTERCEPT
    (response, *more) = [o.formula.response for o in plan.outcomes]
    names = response.variables
    plain = response.kind == "single" and response.expressions == tuple(
        map(quote_name, names)
    )
    if more or not plain:
        what = "several responses" if more else f"the response {response.text.strip()}"
        raise ModelError(
            f"dropout={count} does not say of what with {what}: write the columns, "
            "dropout=~ lag(column)."
        )
    backs = range(1, count + 1)
    call = f"{LAG}({quote_name(names[0])}{{}})"
    factors = [call.format("" if k == 1 else f", {k}") for k in backs]
    return Rhs(
        (*INTERCEPT.terms, *(Term((f,)) for f in factors)), text=" + ".join(factors)
    )


def _time_of(plan: Plan) -> str:
    """Return the column of the occasions: the only one, or that of the curves."""
    if plan.time is not None:
        return plan.time
    rights = [o.formula.rhs for o in plan.outcomes]
    names = {v for rhs in rights for v in rhs.variables} - {*plan.context}
    curved = {
        column_name(node.args[0].id)
        for rhs in rights for term in rhs.terms for factor in term.factors
        for node in ast.walk(parse_expression(factor))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        and node.func.id in _CURVES and node.args
        and isinstance(node.args[0], ast.Name)
    }  # fmt: skip
    for found in (curved, names):
        if len(found) == 1:
            return found.pop()
    raise ModelError(
        "dropout= needs the column of the occasions, and the formulas mention "
        f"{listed(sorted(names)) or 'none'}; say which with time=."
    )


class _Lags(ast.NodeTransformer):
    """Replace calls of ``lag`` by columns, and remember them."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], None] = {}

    def named(self, factor: str) -> str:
        """Return a factor in which earlier values are columns."""
        before = len(self.found)
        tree = self.visit(deepcopy(parse_expression(factor)))
        has_lag = len(self.found) > before or LAG in factor
        return text_of(tree) if has_lag else factor

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Read one call."""
        if not (isinstance(node.func, ast.Name) and node.func.id == LAG):
            return self.generic_visit(node)
        named = [k.value for k in node.keywords if k.arg == "k"]
        (back,) = (node.args[1:] + named or [ast.Constant(1)])[:1]
        readable = (
            len(node.args) + len(node.keywords) in (1, 2)
            and len(named) == len(node.keywords)
            and node.args
            and isinstance(node.args[0], ast.Name)
            and isinstance(back, ast.Constant)
        )
        if not readable or type(back.value) is not int or back.value < 1:
            raise ModelError(
                f"{text_of(node)}: write lag(column), or lag(column, 2) for the value "
                "before; functions go around it, as in log(lag(y))."
            )
        lag = (column_name(node.args[0].id), back.value)
        self.found[lag] = None
        return ast.Name(mangle(lag_name(*lag)))


# --------------------------------------------------------------------------------------
# Rows at risk
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AtRisk:
    """Occasions at which units that were in may be gone.

    Attributes
    ----------
    grid : ndarray, shape (T,)
        The study's occasions.
    unit, occasion : ndarray of int, shape (n,)
        Units ascending, and the place of each row's occasion in the grid.
    event : ndarray, shape (n,)
        One where the unit is gone.
    columns : dict of str to array, each (n,)
        Time and earlier values.
    first, last : ndarray of int, shape (units,)
        Occasions between which units were observed; -1 where never.
    left_out : int
        Rows without enough earlier values.
    """

    grid: np.ndarray
    unit: np.ndarray
    occasion: np.ndarray
    event: np.ndarray
    columns: dict[str, np.ndarray]
    first: np.ndarray
    last: np.ndarray
    left_out: int


@dataclass(frozen=True, eq=False)
class Attendance:
    """When units were in the study.

    Attributes
    ----------
    grid : ndarray, shape (T,)
        The study's occasions.
    occasion : ndarray of int, shape (n,)
        Of each row of the outcome "dropout".
    first, last : ndarray of int, shape (N,)
        Occasions between which every unit was observed.
    """

    grid: np.ndarray
    occasion: np.ndarray
    first: np.ndarray
    last: np.ndarray


def at_risk(
    asked: Attrition,
    table: Table,
    codes: np.ndarray,
    units: int,
    observed: np.ndarray,
    grid: np.ndarray | None = None,
) -> AtRisk:
    """Make the rows at risk.

    A unit is at risk from the occasion after its first up to the one after its last, at
    which it is gone; a unit observed at the last occasion of the data never is. Earlier
    values are those observed last before the occasion, so that gaps count for nothing:
    ``lag(y, 2)`` is the last but one value observed. Rows without them are left out.

    Parameters
    ----------
    asked : Attrition
    table : Table
    codes : ndarray of int, shape (rows,)
        Unit of each row.
    units : int
    observed : ndarray of bool, shape (rows,)
        Whether a row has a response.
    grid : ndarray, optional
        The occasions of an earlier study; by default the distinct times.

    Returns
    -------
    AtRisk

    Raises
    ------
    DesignError
        Where the times are no common grid, are not numbers, or nobody drops out.
    """
    times = _numbers(table, asked.time, "the time column")
    rows = np.flatnonzero(observed & np.isfinite(times))
    known = grid is not None
    grid = np.unique(times[rows]) if grid is None else grid
    occasion = _occasions(times[rows], grid, asked.time)
    rows = rows[np.lexsort((occasion, codes[rows]))]
    unit, occasion = codes[rows], _occasions(times[rows], grid, asked.time)
    _check_single(unit, occasion, grid, asked.time)
    first, last = np.full(units, -1), np.full(units, -1)
    first[unit[::-1]], last[unit] = occasion[::-1], occasion
    if not known:
        _check_common(first, last, len(rows), grid, asked.time)
    horizon = int(occasion.max(initial=0))
    count = np.where(last < 0, 0, np.minimum(last + 1, horizon) - first)
    of = np.repeat(np.arange(units), count)
    steps = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    at = first[of] + 1 + steps
    event = (at > last[of]).astype(np.float64)
    if not known and not event.any():
        raise DesignError(
            "nobody drops out: every unit is observed at the last occasion, "
            f"{asked.time} = {grid[-1]:g}; leave out dropout=."
        )
    columns = {
        lag_name(name, back): _earlier(
            _numbers(table, name, "the lagged column")[rows], unit, occasion, of, at,
            back, len(grid),
        )
        for name, back in asked.lags
    }  # fmt: skip
    columns[asked.time] = grid[at]
    complete = np.ones(len(of), dtype=bool)
    for name, back in asked.lags:
        complete &= np.isfinite(columns[lag_name(name, back)])
    return AtRisk(
        grid, of[complete], at[complete], event[complete],
        {name: values[complete] for name, values in columns.items()},
        first, last, int((~complete).sum()),
    )  # fmt: skip


def plain_names(names: tuple[str, ...], lags: tuple) -> tuple[str, ...]:
    """Return the names of columns, those of earlier values without backticks."""
    for lag in lags:
        odd = lag_name(*lag)
        names = tuple(name.replace(f"`{odd}`", odd) for name in names)
    return names


def without_rows(outcome: Outcome) -> Outcome:
    """Return an outcome of which nothing is observed."""
    return replace(
        outcome, y=outcome.y[:0], unit=outcome.unit[:0],
        X=tuple(x[:0] for x in outcome.X), index=outcome.index[:0],
        order=np.zeros(0, dtype=np.int64),
    )  # fmt: skip


def _numbers(table: Table, name: str, what: str) -> np.ndarray:
    values = table.numeric(name)
    if values is None:
        known = name in table.columns
        raise DesignError(
            f"dropout=: {what} {name} "
            + (
                "is not numeric; the dropout model needs numbers."
                if known
                else f"is not there; the data have {listed(table.columns, 20)}."
            )
        )
    return values.astype(np.float64, copy=False)


def _occasions(times: np.ndarray, grid: np.ndarray, name: str) -> np.ndarray:
    """Place of each time in the grid."""
    if not len(times):
        return np.zeros(0, dtype=np.int64)
    above = np.searchsorted(grid, times).clip(0, len(grid) - 1)
    below = (above - 1).clip(0)
    nearer = np.abs(grid[below] - times) < np.abs(grid[above] - times)
    place = np.where(nearer, below, above)
    off = np.abs(grid[place] - times) > 1e-9 * (1 + np.abs(times))
    if off.any():
        raise DesignError(
            f"dropout=: {name} = {times[off][0]:g} is none of the occasions of the "
            f"fit: {listed(grid.tolist())}."
        )
    return place


def _check_single(
    unit: np.ndarray, occasion: np.ndarray, grid: np.ndarray, name: str
) -> None:
    twice = (unit[1:] == unit[:-1]) & (occasion[1:] == occasion[:-1])
    if twice.any():
        raise DesignError(
            f"dropout=: {twice.sum()} rows repeat a unit's occasion (the first at "
            f"{name} = {grid[occasion[1:][twice][0]]:g}); a unit has one row for each."
        )


def _check_common(
    first: np.ndarray, last: np.ndarray, rows: int, grid: np.ndarray, name: str
) -> None:
    inside = int((last - first + 1)[last >= 0].sum())
    if len(grid) < 2 or rows < _COMMON * inside:
        raise DesignError(
            f"dropout= needs occasions that units share: {name} has {len(grid)} "
            f"distinct values, and units are observed at {rows} of the {inside} "
            "between their first and last. Give the wave instead, with time=, or "
            "round the times."
        )


def _earlier(
    values: np.ndarray, unit: np.ndarray, occasion: np.ndarray, of: np.ndarray,
    at: np.ndarray, back: int, width: int,
) -> np.ndarray:  # fmt: skip
    """Value of a column so many observations before an occasion; NaN where none."""
    present = np.isfinite(values)
    keys, kept = (unit * width + occasion)[present], values[present]
    before = np.searchsorted(keys, of * width + at) - back
    found = np.full(len(of), np.nan)
    own = before >= np.searchsorted(keys, of * width)
    found[own] = kept[before[own]]
    return found


# --------------------------------------------------------------------------------------
# Results
# --------------------------------------------------------------------------------------


def dropout_table(results: TrajectoryResults, alpha: float = 0.05) -> pd.DataFrame:
    """Estimate the probability of dropping out, by group and occasion.

    Parameters
    ----------
    results : TrajectoryResults
        Of a model with ``dropout=``.
    alpha : float, default 0.05
        One minus the coverage of the intervals, which are symmetric on the logit scale.

    Returns
    -------
    DataFrame
        Indexed by group and occasion, all weighted by the posterior: units at_risk and
        dropped, their ratio (observed), the model's mean probability over the units at
        risk with its standard error and interval, the part of the group `remaining`
        after the occasion, and the group's `share` of the units that are in the study.
        The standard error takes who is at risk as given. Where no unit has the earlier
        values that the model needs, what was observed stands in for `remaining`.

    Raises
    ------
    ModelError
        For a model without a dropout part.
    """
    found, study = results.traj, results.model.study
    attendance = study.attendance
    if attendance is None:
        raise ModelError(
            "the model has no dropout part; fit it with dropout=1, or dropout=~ lag(y)."
        )
    posterior = torch.as_tensor(found.posterior)
    if study.units.weights is not None:
        posterior = posterior * study.units.weights.cpu()[:, None]
    asked = study.plan.outcomes[-1].attrition
    index = pd.MultiIndex.from_product(
        [group_names(found.groups), attendance.grid], names=["group", asked.time]
    )
    T = len(attendance.grid)
    mass = posterior.T.numpy()
    at, first, last = np.arange(T), attendance.first[:, None], attendance.last[:, None]
    # Who is seen last at the end of the data is not known to be gone.
    gone = mass @ ((last == at - 1) & (at <= last.max()))
    risk = mass @ ((first < at) & (last >= at - 1) & (at <= last.max()))
    inside = mass @ ((first <= at) & (at <= last))
    p, se = _probabilities(results, posterior, attendance)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = gone / risk
        half = results._quantile(alpha) * se / (p * (1 - p))
        odds = special.logit(p)
    stays = 1 - np.where(np.isnan(p), observed, p)
    columns = {
        "at_risk": risk, "dropped": gone, "observed": observed, "probability": p,
        "std_error": se, "conf_low": special.expit(odds - half),
        "conf_high": special.expit(odds + half),
        "remaining": np.cumprod(np.nan_to_num(stays, nan=1.0), axis=1),
        "share": inside / inside.sum(0),
    }  # fmt: skip
    return pd.DataFrame({n: v.reshape(-1) for n, v in columns.items()}, index=index)


def _probabilities(
    results: TrajectoryResults, posterior: torch.Tensor, attendance: Attendance
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probabilities over the rows at risk, and standard errors; (K, T)."""
    found, study = results.traj, results.model.study
    outcome, mixture = study.outcomes[-1], found.assembled.mixture
    K, T, x = found.groups, len(attendance.grid), outcome.X[0].cpu()
    cells = torch.from_numpy(attendance.occasion)
    weights = posterior[outcome.unit.cpu()].T

    def total(values: torch.Tensor) -> torch.Tensor:
        """Sum rows (K, n, ...) over occasions: (K, T, ...)."""
        summed = torch.zeros(K, T, *values.shape[2:]).double()
        return summed.index_add(1, cells, values)

    number = len(study.outcomes) - 1
    p = torch.sigmoid(found.coefficients(number).cpu() @ x.T)
    weight, mean = total(weights), total(weights * p)
    slope = total((weights * p * (1 - p))[:, :, None] * x) / weight[:, :, None]
    selection = mixture.emissions[number].slots.selection.cpu()
    start = sum(mixture.sizes[:number])
    block = slice(start, start + selection.shape[2])
    se = standard_errors(
        (slope @ selection).reshape(K * T, -1).numpy(),
        results.covariance.matrix.cpu().numpy()[block, block],
    )
    return (mean / weight).numpy(), se.reshape(K, T)


def standard_errors(jacobian: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Return standard errors by the delta method; NaN where a variance is unknown.

    Parameters
    ----------
    jacobian : ndarray, shape (m, p)
    cov : ndarray, shape (p, p)
        NaN in the rows and columns of parameters that are not identified.
    """
    lost = ~np.isfinite(cov.diagonal())
    known = np.where(lost[:, None] | lost, 0.0, cov)
    with np.errstate(invalid="ignore"):
        se = np.sqrt(np.einsum("kp,pq,kq->k", jacobian, known, jacobian))
    return np.where((np.abs(jacobian[:, lost]) > _FELT).any(1), np.nan, se)
