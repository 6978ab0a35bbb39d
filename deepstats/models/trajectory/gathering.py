"""One pass from plan and frame to a study; frames end here.

Each outcome has a `Design` of its own, so that missing rows, levels and bases are read
as everywhere else. Rows are brought into the order of their units, and what is said of
units (risk factors, weights) is read once for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from ...errors import (
    DesignError,
    MissingDataWarning,
    ModelError,
    RankWarning,
    caution,
    listed,
)
from ...expressions import expression_variables
from ...families import GaussianML
from ...formula import Formula, Response, Rhs
from ...frame import Table
from ..base import INTERCEPT
from .dropout import (
    EVENT,
    Attendance,
    Attrition,
    at_risk,
    plain_names,
    planned,
    without_rows,
)
from .layout import (
    aliased,
    as_tensor,
    laid_out,
    matrix_numbers,
    ones,
    order_of,
    parts_of,
    pattern_of,
    taken,
)
from .reading import OutcomePlan, Plan, Values, named, predictors_of
from .responses import check_limits, check_varies, response_of, with_levels
from .study import Effects, Outcome, Study, Units

__all__ = ["Gatherer", "OfUnits", "identified"]

_UNIT = ".unit"
_UNIT_RESPONSE = Response("single", (f"`{_UNIT}`",), _UNIT)
_LIMITS = ("lower", "upper")
_VARYING = "What varies over time belongs in the formula, or in common=."


# --------------------------------------------------------------------------------------
# Ids
# --------------------------------------------------------------------------------------


def identified(table: Table, name: str) -> tuple[np.ndarray, pd.Index]:
    """Return the unit of each row, and the units' labels in ascending order."""
    if name not in table.columns:
        raise DesignError(
            f"id={name}: there is no such column; the data have "
            f"{listed(table.columns, 20)}."
        )
    missing = table.missing(name)
    if missing is not None:
        raise DesignError(
            f"id={name} is missing in {missing.sum()} rows (first: row "
            f"{int(missing.argmax())}): a row must belong to a unit; drop these rows "
            "or give them ids."
        )
    column = table.full(name)
    values = table.numeric(name) if isinstance(column.dtype, np.dtype) else None
    if values is not None and bool((values[1:] >= values[:-1]).all()):
        # Sorted numbers need no table of hashes.
        new = np.empty(len(values), dtype=bool)
        new[:1], new[1:] = True, values[1:] != values[:-1]
        return np.cumsum(new) - 1, pd.Index(values[new], name=name)
    codes, labels = pd.factorize(column, sort=True)
    return codes.astype(np.int64, copy=False), pd.Index(labels, name=name)


class OfUnits:
    """Columns of the data that are constant within units, one value for each unit.

    Parameters
    ----------
    table : Table
    codes : ndarray of int, shape (rows,)
        Unit of each row.
    labels : pandas.Index
        Ids of the units.
    unit_name : str
        Column of the ids.
    hint : str, optional
        What to do about a column that varies within units.
    """

    def __init__(
        self,
        table: Table,
        codes: np.ndarray,
        labels: pd.Index,
        unit_name: str,
        hint: str = _VARYING,
    ) -> None:
        self.table, self.codes, self.labels = table, codes, labels
        self.unit_name, self.hint = unit_name, hint

    def column(self, name: str, what: str) -> Any:
        """Return the units' values of a column; missing only where no row has one."""
        return self.values(self.table.full(name), name, what)

    def values(self, column: Any, name: str, what: str) -> Any:
        """Reduce values of rows to values of units."""
        column = pd.Series(column) if isinstance(column, np.ndarray) else column
        array, dtype = column.array, column.dtype
        if isinstance(dtype, np.dtype) and dtype.kind in "fiub":
            keys = column.to_numpy()
            absent = np.isnan(keys) if dtype.kind == "f" else None
        else:
            keys, _ = pd.factorize(column)
            absent = keys < 0
        rows = np.arange(len(keys))
        if absent is not None and not absent.any():
            absent = None
        rows = rows if absent is None else rows[~absent]
        first = np.full(len(self.labels), -1, dtype=np.int64)
        first[self.codes[rows][::-1]] = rows[::-1]
        differ = keys != keys[first[self.codes]]
        if absent is not None:
            differ &= ~absent
        if differ.any():
            unit = self.labels[self.codes[differ][:1]].tolist()[0]
            raise DesignError(
                f"{what} {name} varies within {self.unit_name} {unit!r}, and in "
                f"{len(np.unique(self.codes[differ]))} units in all; it must be "
                f"constant in a unit. {self.hint}"
            )
        if (first >= 0).all():
            return pd.Series(array.take(first))
        return pd.Series(pd.api.extensions.take(array, first, allow_fill=True))


# --------------------------------------------------------------------------------------
# Outcomes and units
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Draft:
    """An outcome's rows before it is known which units remain."""

    asked: OutcomePlan
    design: Design
    #: Rows of the design that are used, None for all, and the unit of each.
    rows: np.ndarray | None
    unit: np.ndarray
    #: Response, trials and levels, in the order of `rows`.
    y: np.ndarray | None
    size: np.ndarray | None
    levels: tuple | None
    #: Columns of the mean that groups share.
    common: tuple[str, ...] = ()


class Gatherer:
    """One pass from plan and table to study, for first data and for new ones."""

    def __init__(
        self,
        plan: Plan,
        table: Table,
        compute: Compute,
        known: Study | None = None,
        responses: bool = True,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.table, self.compute = planned(plan), table, compute
        self.known, self.responses = known, responses
        self.given = dict(given or {})
        self.notes: list[str] = []
        if table.n == 0:
            raise DesignError("the data have no rows.")
        self.codes, self.labels = identified(table, plan.id)
        self.of_units = OfUnits(table, self.codes, self.labels, plan.id)

    def study(self) -> Study:
        """Read units, then outcomes, then bring rows into the units' order."""
        membership, risky = self.membership()
        drafts = [
            self.draft(asked, number)
            for number, asked in enumerate(self.plan.outcomes)
            if asked.attrition is None
        ]
        seen = np.zeros(len(self.labels), dtype=bool)
        for draft in drafts:
            seen[draft.unit] = True
        keep = seen if risky is None else seen & ~risky
        dropped = self.left_out(seen, risky, keep)
        place = np.where(keep, np.cumsum(keep) - 1, -1)
        whole = bool(keep.all())
        outcomes = tuple(
            self.outcome(draft, None if whole else place, number)
            for number, draft in enumerate(drafts)
        )
        attendance = None
        if len(outcomes) < len(self.plan.outcomes):
            leaving, attendance = self.leaving(place)
            outcomes += (leaving,)
        units = self.units(membership, keep, dropped)
        return Study(
            self.plan, outcomes, units, self.compute, self.table, tuple(self.notes),
            attendance,
        )  # fmt: skip

    def left_out(
        self, seen: np.ndarray, risky: np.ndarray | None, keep: np.ndarray
    ) -> tuple:
        """Warn of units that cannot be used; return their ids."""
        if keep.all():
            return ()
        reasons = []
        if not seen.all():
            ids = listed(self.labels[~seen].tolist())
            reasons.append(f"no occasion without missing values ({ids})")
        if risky is not None and risky.any():
            ids = listed(self.labels[risky].tolist())
            reasons.append(f"a risk factor is missing ({ids})")
        count = int((~keep).sum())
        text = (
            f"{count} of {len(keep)} units are left out: {'; '.join(reasons)}. They "
            "belong to no group and are not counted."
        )
        if not keep.any():
            raise DesignError(f"no unit can be used: {'; '.join(reasons)}.")
        self.note(text, MissingDataWarning)
        return tuple(self.labels[~keep].tolist())

    def note(self, text: str, category: type[Warning]) -> None:
        """Warn, and keep the text."""
        self.notes.append(text)
        caution(text, category)

    def option(self, key: str, number: int | None = None) -> Any:
        """Return what was given for an option, for these data."""
        source = self.plan if number is None else self.plan.outcomes[number]
        planned, given = getattr(source, key), self.given.get(key)
        if isinstance(given, Mapping):
            given = given.get(source.name)
        if given is not None:
            return given
        if not isinstance(planned, Values):
            return planned
        if self.known is None:
            return planned.array
        # Weights say nothing of where new units belong; limits only with a response.
        if key == "weights" or (key in _LIMITS and not self.responses):
            return None
        raise DesignError(
            f"the model was fitted with {key}= given as values; give {key}= for the "
            "new data too."
        )

    # -- units ---------------------------------------------------------------------

    def membership(self) -> tuple[Design | None, np.ndarray | None]:
        """Return the design of the risk factors, and which units lack one of them."""
        risk = self.plan.risk
        if risk is None:
            return None, None
        table = self.unit_table(risk.variables, "the risk factor")
        if self.known is None:
            formula = Formula(
                f".unit ~ {risk.text.strip()}", _UNIT_RESPONSE, risk.without_groups()
            )
            design = Design.build(
                formula, table, na_action=self.plan.na_action,
                context=self.plan.context, compute=self.compute,
            )  # fmt: skip
        else:
            design = self.known.units.design.spec.rebuild(table)
        risky = None
        if design.rows is not None:
            risky = np.ones(len(self.labels), dtype=bool)
            risky[design.rows] = False
        return design, risky

    def unit_table(self, names: Sequence[str], what: str) -> dict[str, Any]:
        """Columns of the data with one row for each unit."""
        table: dict[str, Any] = {_UNIT: np.zeros(len(self.labels))}
        for name in names:
            if name in self.table.columns:
                table[name] = self.of_units.column(name, what)
            elif name not in self.plan.context:
                raise DesignError(
                    f"{what} {name}: there is no such column; the data have "
                    f"{listed(self.table.columns, 20)}."
                )
        return table

    def units(self, design: Design | None, keep: np.ndarray, dropped: tuple) -> Units:
        """Assemble what is known of the units that remain."""
        labels = self.labels if keep.all() else self.labels[keep]
        columns: tuple[str, ...] = ("Intercept",)
        W = ones(len(labels), self.compute)
        if design is not None:
            rows = keep if design.rows is None else keep[design.rows]
            order = None if rows.all() else np.flatnonzero(rows)
            W, design = self.columns(design, 0, order, "risk")
            columns = design.X.names
        return Units(
            labels, self.weights(keep), W, columns, dropped, self.clusters(keep), design
        )

    def weights(self, keep: np.ndarray) -> Tensor | None:
        """Read the sampling weights of the units."""
        given = self.option("weights")
        names = expression_variables(given) if isinstance(given, str) else ()
        known = {*self.table.columns, *self.plan.context}
        if given is None or (self.known is not None and not known.issuperset(names)):
            return None
        what = "the sampling weight"
        if names:
            table = self.unit_table(names, what)
        else:
            values = pd.Series(_array(given, self.table.n))
            table = self.unit_table((), what)
            table["weights"] = self.of_units.values(values, "weights", what)
        table = {name: column[keep] for name, column in table.items()}
        for name, column in table.items():
            missing = pd.isna(column)
            if missing.any():
                ids = listed(self.labels[keep][np.asarray(missing)].tolist())
                raise DesignError(
                    f"{what} {name} is missing for the units {ids}; give them one, or "
                    "leave them out."
                )
        design = Design.build(
            Formula(".unit ~ 1", _UNIT_RESPONSE, INTERCEPT),
            table,
            weights=given if isinstance(given, str) else table["weights"].to_numpy(),
            context=self.plan.context,
            compute=self.compute,
        )
        if design.n_zero_weight:
            raise DesignError(
                f"{what} is zero for {design.n_zero_weight} units: they say nothing; "
                "leave them out."
            )
        return as_tensor(design.weights, self.compute)

    def clusters(self, keep: np.ndarray) -> Tensor | None:
        """Cluster of each unit."""
        name = self.plan.cluster
        if name is None or self.known is not None:
            return None
        column = self.unit_table((name,), "the cluster")[name]
        codes, _ = pd.factorize(column[keep], sort=True)
        if (codes < 0).any():
            raise DesignError(
                f"the cluster {name} is missing for {(codes < 0).sum()} units."
            )
        return torch.from_numpy(codes.astype(np.int64)).to(self.compute.device)

    # -- outcomes ------------------------------------------------------------------

    def draft(self, asked: OutcomePlan, number: int) -> _Draft:
        """Build the design of an outcome and read its response."""
        given = {k: self.option(k, number) for k in ("offset", "exposure")}
        if self.known is None:
            return self.first(asked, given)
        known = self.known.outcomes[number]
        design = known.design.spec.rebuild(self.table, **given)
        if not self.responses:
            unit = self.codes if design.rows is None else self.codes[design.rows]
            return _Draft(asked, design, None, unit, None, None, known.levels)
        if self.is_missing(asked.formula.response):
            none = np.zeros(0, dtype=np.int64)
            size = None if known.size is None else none
            return _Draft(asked, design, none, none, none, size, known.levels)
        found = Design.build(
            replace(asked.formula, rhs=INTERCEPT), self.table,
            context=self.plan.context, compute=self.compute,
        )  # fmt: skip
        ours, theirs, rows = _both(design.rows, found.rows)
        y, levels = response_of(found, asked.family, known)
        unit = self.codes if rows is None else self.codes[rows]
        return _Draft(
            asked, design, ours, unit, taken(y, theirs), taken(found.size, theirs),
            levels,
        )  # fmt: skip

    def is_missing(self, response: Response) -> bool:
        """Whether no row has a response: new units may lack one outcome of several."""
        names = [n for n in response.variables if n in self.table.columns]
        masks = [self.table.missing(name) for name in names]
        return any(mask is not None and mask.all() for mask in masks)

    def first(self, asked: OutcomePlan, given: dict[str, Any]) -> _Draft:
        """Build the design of an outcome for the first time."""
        rhs = asked.formula.rhs
        mean = Rhs((*rhs.terms, *asked.common), (), rhs.offsets, (), rhs.text)
        parts = (*parts_of(asked), *self.random_parts)
        design = Design.build(
            replace(asked.formula, rhs=mean), self.table, **given,
            # The formula alone says which columns it has, and which are common.
            parts=(*parts, rhs) if asked.common else parts,
            na_action=self.plan.na_action, context=self.plan.context,
            compute=self.compute,
        )  # fmt: skip
        common: tuple[str, ...] = ()
        if asked.common:
            common = design.X.names[design.parts[-1].k :]
            design = replace(design, parts=design.parts[:-1])
            design.spec.parts = parts
        unit = self.codes if design.rows is None else self.codes[design.rows]
        y, levels = response_of(design, asked.family, None)
        return _Draft(asked, design, None, unit, y, design.size, levels, common)

    def outcome(self, draft: _Draft, place: np.ndarray | None, number: int) -> Outcome:
        """Bring an outcome's rows into the order of their units."""
        asked, design, compute = draft.asked, draft.design, self.compute
        known = None if self.known is None else self.known.outcomes[number]
        unit = draft.unit if place is None else place[draft.unit]
        order = order_of(unit)
        unit = taken(unit, order)
        rows = order if draft.rows is None else taken(draft.rows, order)
        family = known.family if known else with_levels(asked.family, draft.levels)
        y = np.full(len(unit), np.nan) if draft.y is None else taken(draft.y, order)
        used = design.rows if rows is None else _rows_of(design.rows, rows)
        lower, upper = (self.limit(k, number, used, len(unit)) for k in _LIMITS)
        if draft.y is not None:
            # In the order of the data, so that a row that is wrong can be found there.
            family.check(
                *(as_tensor(v, compute.on_cpu()) for v in (draft.y, draft.size))
            )
            check_limits(asked.name, y, lower, upper)
        if known is None:
            check_varies(asked.name, family, y)
        predictors = predictors_of(family)
        numbers = matrix_numbers(asked, predictors)
        X, design = self.matrices(design, numbers, rows, len(unit), asked.name)
        columns = tuple(
            ("Intercept",) if j is None else design.matrices[j].names for j in numbers
        )
        patterns = tuple(
            pattern_of(asked, p, c, self.plan.own_groups[number], draft.common)
            for p, c in zip(predictors, columns, strict=True)
        )
        effects, design = self.effects(asked, family, design, rows, len(unit))
        offset = as_tensor(taken(design.offset, rows), compute)
        return Outcome(
            name=asked.name,
            family=family,
            y=as_tensor(y, compute),
            size=as_tensor(taken(draft.size, order), compute),
            lower=as_tensor(lower, compute),
            upper=as_tensor(upper, compute),
            unit=torch.from_numpy(unit).to(compute.device),
            X=X,
            columns=columns,
            predictors=predictors,
            patterns=known.patterns if known else patterns,
            offsets=tuple(offset if p == "mu" else None for p in predictors),
            index=design.index if rows is None else design.index[rows],
            design=design,
            order=rows,
            levels=draft.levels,
            effects=effects,
            common=draft.common,
        )

    @property
    def random_parts(self) -> tuple[Rhs, ...]:
        """Right-hand side of the random effects, where it is more than an intercept."""
        random = self.plan.random
        return () if random is None or random == INTERCEPT else (random,)

    def effects(
        self, asked: OutcomePlan, family: Any, design: Design,
        rows: np.ndarray | None, n: int,
    ) -> tuple[Effects | None, Design]:  # fmt: skip
        """Lay out the columns of the random effects within groups."""
        if self.plan.random is None or asked.attrition is not None:
            return None, design
        if not isinstance(family, GaussianML) or family.link.name != "identity":
            raise ModelError(
                f"random=: the outcome {asked.name} is {named(family)}; random effects "
                "within groups are for gaussian outcomes. Leave random= out."
            )
        if asked.disp != INTERCEPT:
            raise ModelError(
                "disp= and random= do not go together: with random effects the "
                "residual variance is one number for each group, or for all."
            )
        columns: tuple[str, ...] = ("Intercept",)
        Z = ones(n, self.compute)
        if self.random_parts:
            number = len(design.matrices) - 1
            what = f"random effects of {asked.name}"
            Z, design = self.columns(design, number, rows, what)
            columns = design.matrices[number].names
        found = Effects.of(Z, columns, self.plan.groups, self.plan.random_cov)
        return found, design

    def leaving(self, place: np.ndarray) -> tuple[Outcome, Attendance]:
        """Make the outcome of dropping out; without rows where none are observed."""
        number, known = len(self.plan.outcomes) - 1, self.known
        asked = self.plan.outcomes[number]
        grid = known.attendance.grid if known and known.attendance else None
        risk = at_risk(
            asked.attrition, self.table, self.codes, len(self.labels), self.observed(),
            grid,
        )  # fmt: skip
        kept = place >= 0
        first, last = risk.first[kept], risk.last[kept]
        if known and not (place[risk.unit] >= 0).any():
            none = np.zeros(0, dtype=np.int64)
            empty = without_rows(known.outcomes[number])
            return empty, Attendance(risk.grid, none, first, last)
        table: dict[str, Any] = {EVENT: risk.event, **risk.columns}
        for name, column in self.constants(asked.attrition).items():
            table[name] = column.iloc[risk.unit].reset_index(drop=True)
        if known is None:
            design = Design.build(
                asked.formula, table, na_action=self.plan.na_action,
                context=self.plan.context, compute=self.compute,
            )  # fmt: skip
            if risk.left_out:
                self.notes.append(
                    f"dropout: {risk.left_out} of {risk.left_out + len(risk.unit)} "
                    "occasions at risk lack earlier values and are left out of it."
                )
        else:
            design = known.outcomes[number].design.spec.rebuild(table)
        unit, y = (taken(v, design.rows) for v in (risk.unit, risk.event))
        draft = _Draft(asked, design, None, unit, y, None, None)
        outcome = self.outcome(draft, place, number)
        names = tuple(plain_names(c, asked.attrition.lags) for c in outcome.columns)
        outcome = replace(outcome, columns=names)
        at = taken(taken(risk.occasion, design.rows), outcome.order)
        return outcome, Attendance(risk.grid, at, first, last)

    def observed(self) -> np.ndarray:
        """Which rows have a response of some outcome."""
        found = np.zeros(self.table.n, dtype=bool)
        for asked in self.plan.outcomes[:-1] if self.responses else ():
            row = np.ones(self.table.n, dtype=bool)
            for name in asked.formula.response.variables:
                if name in self.table.columns:
                    missing = self.table.missing(name)
                    row &= True if missing is None else ~missing
            found |= row
        return found

    def constants(self, asked: Attrition) -> dict[str, Any]:
        """Columns of the dropout model that have one value in each unit."""
        found = {}
        for name in asked.others:
            if name not in self.table.columns:
                raise DesignError(
                    f"dropout=: there is no column {name}; the data have "
                    f"{listed(self.table.columns, 20)}."
                )
            try:
                found[name] = self.of_units.column(name, "the column")
            except DesignError as error:
                raise DesignError(
                    f"dropout=: {name} varies within units, and at the occasion at "
                    f"which a unit is gone it is not observed; write lag({name})."
                ) from error
        return found

    def matrices(
        self,
        design: Design,
        numbers: tuple[int | None, ...],
        rows: np.ndarray | None,
        n: int,
        name: str,
    ) -> tuple[tuple[Tensor, ...], Design]:
        """Lay out the matrix of each predictor; each matrix once."""
        found: dict[int | None, Tensor] = {}
        for number in numbers:
            if number is None:
                found[None] = ones(n, self.compute)
            elif number not in found:
                found[number], design = self.columns(design, number, rows, name)
        return tuple(found[number] for number in numbers), design

    def columns(
        self, design: Design, number: int, rows: np.ndarray | None, what: str
    ) -> tuple[Tensor, Design]:
        """Lay out one matrix, less the columns that others determine."""
        matrix = design.matrices[number]
        if matrix.names == ("Intercept",):
            return ones(matrix.n if rows is None else len(rows), self.compute), design
        flat = laid_out(matrix, rows)
        if self.known is None:
            gone = aliased(flat, design, number, self.compute)
            if gone:
                names = ", ".join(matrix.names[j] for j in gone)
                self.note(
                    f"{names} ({what}): linear combinations of earlier columns, "
                    "dropped.",
                    RankWarning,
                )
                keep = [j for j in range(matrix.k) if j not in gone]
                design, flat = design.select_columns(keep, number), flat[keep]
        return torch.from_numpy(flat).to(self.compute.device).T, design

    def limit(
        self, key: str, number: int, rows: np.ndarray | None, n: int
    ) -> np.ndarray | None:
        """Limits of a censored response on one side."""
        given = self.option(key, number)
        # Where no response is read, limits matter only if they are the same everywhere.
        if given is None or not (self.responses or isinstance(given, float | int)):
            return None
        if isinstance(given, float | int):
            return np.broadcast_to(np.float64(given), (n,))
        if isinstance(given, str):
            values = self.table.numeric(given)
            if values is None:
                known = given in self.table.columns
                raise DesignError(
                    f"{key}={given}: "
                    + ("the column is not numeric." if known else "no such column.")
                )
        else:
            values = _array(given, self.table.n)
        values = np.asarray(taken(values, rows), dtype=np.float64)
        if np.isnan(values).any():
            raise DesignError(
                f"{key}= is missing in {np.isnan(values).sum()} rows; where there is "
                "no limit write -inf or inf."
            )
        return values


def _both(
    one: np.ndarray | None, other: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Rows that two designs share: their places in each, and in the data."""
    if one is None and other is None:
        return None, None, None
    if one is None or other is None:
        rows = other if one is None else one
        return (rows if one is None else None), (rows if other is None else None), rows
    rows, ours, theirs = np.intersect1d(
        one, other, assume_unique=True, return_indices=True
    )
    return ours, theirs, rows


def _rows_of(rows: np.ndarray | None, chosen: np.ndarray) -> np.ndarray:
    return chosen if rows is None else rows[chosen]


def _array(given: Any, n: int) -> np.ndarray:
    array = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if array.shape != (n,) or array.dtype.kind not in "fiub":
        raise DesignError(
            f"values given beside the data must be {n} numbers, one for each row; "
            f"these have shape {array.shape} and type {array.dtype}."
        )
    return array.astype(np.float64)
