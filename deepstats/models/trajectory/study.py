"""The data of a trajectory model as arrays: outcomes, units, and the two together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import Compute, default_compute
from ...design import Design
from ...errors import DesignError
from ...frame import Table
from .dropout import Attendance
from .reading import Plan

__all__ = ["Effects", "Outcome", "Study", "Units"]

#: What may be given beside new data.
_GIVEN = ("offset", "exposure", "lower", "upper", "weights")
# Units whose histories are compared first: enough, nearly always.
_LOOK = 256


@dataclass(frozen=True, eq=False)
class Effects:
    """Random effects of units within groups.

    Attributes
    ----------
    Z : Tensor, shape (n, q)
    columns : tuple of str
        Their names.
    pattern : ndarray of int, shape (K, q (q + 1) / 2)
        Number of the free parameter of each entry of the factor of the covariance
        matrix, by rows of its lower triangle.
    cov : {"shared", "proportional", "group"}
    """

    Z: Tensor
    columns: tuple[str, ...]
    pattern: np.ndarray
    cov: str

    @classmethod
    def of(cls, Z: Tensor, columns: tuple[str, ...], groups: int, cov: str) -> Effects:
        """Give numbers to the parameters: groups share all, but the first, or none."""
        count = len(columns) * (len(columns) + 1) // 2
        own = {"shared": 0, "proportional": 1, "group": count}[cov]
        pattern = np.empty((groups, count), dtype=np.int64)
        pattern[:, :own] = np.arange(groups * own).reshape(groups, own)
        pattern[:, own:] = groups * own + np.arange(count - own)
        return cls(Z, columns, pattern, cov)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One outcome: its rows, in the order of their units.

    Attributes
    ----------
    name : str
        The response, as written.
    family : Family, Ordinal or Multinomial
        What `densities.kernel_of` takes.
    y : Tensor, shape (n,)
        Codes where the response has levels; a proportion after ``cbind``; NaN where
        new data have no response.
    size : Tensor or None, shape (n,)
        Numbers of trials.
    lower, upper : Tensor or None, shape (n,)
        Limits of a censored normal response; infinite where there is none.
    unit : Tensor of long, shape (n,)
        Unit of each row, ascending.
    X : tuple of Tensor, each (n, p_j)
        Matrix of each predictor, its columns contiguous; an intercept alone is a
        column of ones with stride 0.
    columns : tuple of tuple of str
        Their names.
    predictors : tuple of str
        "mu", "sigma", "inflate" ...
    patterns : tuple of ndarray of int, each (K, p_j)
        Number of the free parameter of each group's coefficient, counted within the
        predictor; -1 where the coefficient is absent, equal numbers where shared.
    offsets : tuple of Tensor or None, each (n,)
    index : pandas.Index
        Labels of the rows.
    design : Design
        Of the rows in the order of the data; rebuilds the columns for new data.
    order : ndarray of int or None
        Rows of the design in the order used here; None where they are the same.
    levels : tuple or None
        Levels of a response of codes.
    effects : Effects or None
    common : tuple of str
        Columns of the mean whose effects groups share.
    """

    name: str
    family: Any
    y: Tensor
    size: Tensor | None
    lower: Tensor | None
    upper: Tensor | None
    unit: Tensor
    X: tuple[Tensor, ...]
    columns: tuple[tuple[str, ...], ...]
    predictors: tuple[str, ...]
    patterns: tuple[np.ndarray, ...]
    offsets: tuple[Tensor | None, ...]
    index: pd.Index
    design: Design
    order: np.ndarray | None = None
    levels: tuple | None = None
    effects: Effects | None = None
    common: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.unit)

    @property
    def free(self) -> int:
        """Number of free parameters."""
        more = () if self.effects is None else (self.effects.pattern,)
        return sum(int(p.max(initial=-1)) + 1 for p in (*self.patterns, *more))


@dataclass(frozen=True, eq=False)
class Units:
    """What is known of units.

    Attributes
    ----------
    labels : pandas.Index
        Their ids, ascending.
    weights : Tensor or None, shape (N,)
        Sampling weights.
    W : Tensor, shape (N, q)
        Risk factors, the first column ones.
    columns : tuple of str
        Names of the columns of W, "Intercept" first.
    dropped : tuple
        Ids left out: no outcome, or a risk factor missing.
    clusters : Tensor of long or None, shape (N,)
        Cluster of each unit.
    design : Design or None
        Of the risk factors, one row for each unit that has them.
    """

    labels: pd.Index
    weights: Tensor | None
    W: Tensor
    columns: tuple[str, ...]
    dropped: tuple = ()
    clusters: Tensor | None = None
    design: Design | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Study:
    """All that a trajectory model needs of its data.

    Attributes
    ----------
    plan : Plan
    outcomes : tuple of Outcome
    units : Units
    compute : Compute
    table : Table
        The data, for columns that no formula mentions.
    notes : tuple of str
        What was warned of, for the printed page.
    attendance : Attendance or None
        When units were in the study, where dropping out is an outcome: the last one.
    """

    plan: Plan
    outcomes: tuple[Outcome, ...]
    units: Units
    compute: Compute
    table: Table
    notes: tuple[str, ...] = ()
    attendance: Attendance | None = None

    @classmethod
    def build(cls, plan: Plan, data: Any, compute: Compute | None = None) -> Study:
        """Read a plan against data in long format.

        Parameters
        ----------
        plan : Plan
        data : frame or mapping
            A row for each occasion; see `Table`. Rows need not be sorted.
        compute : Compute, optional

        Returns
        -------
        Study

        Raises
        ------
        DesignError, ModelError
            For data that cannot be used; the message says why.

        Warns
        -----
        MissingDataWarning
            Where units are left out, with their ids.
        RankWarning
            Where columns are left out that others determine.
        """
        from .gathering import Gatherer

        found = Gatherer(plan, Table(data), compute or default_compute())
        study = found.study()
        _check_study(study)
        return study

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.plan.groups

    @property
    def measured(self) -> tuple[Outcome, ...]:
        """The outcomes that the data have: all but that of dropping out."""
        return self.outcomes if self.attendance is None else self.outcomes[:-1]

    @property
    def free(self) -> int:
        """Number of free parameters, of outcomes and membership."""
        membership = (self.groups - 1) * self.units.W.shape[1]
        return sum(o.free for o in self.outcomes) + membership

    def renew(self, data: Any, *, responses: bool = True, **given: Any) -> Study:
        """Read the same columns from new units.

        Parameters
        ----------
        data : frame or mapping
        responses : bool, default True
            Whether responses are read; if not they are NaN, and the data need no
            column of them.
        **given
            offset, exposure, lower, upper and weights for the new rows, where those
            of the fit were given as values; mappings by response name for several
            outcomes.

        Returns
        -------
        Study
            Its patterns and families are those of this one.

        Raises
        ------
        DesignError
            For a missing column, or a level that the fit's data do not have.
        """
        unknown = given.keys() - {*_GIVEN}
        if unknown:
            raise TypeError(
                f"renew takes {', '.join(_GIVEN)}; not {', '.join(sorted(unknown))}."
            )
        from .gathering import Gatherer

        return Gatherer(
            self.plan, Table(data), self.compute, self, responses, given
        ).study()

    def replanned(self, plan: Plan) -> Study:
        """Return the study of the same data for other groups or other orders.

        Parameters
        ----------
        plan : Plan
            Of the same formulas and options otherwise: nothing is read again.

        Raises
        ------
        DesignError
            Where the data cannot tell so many groups apart.
        """
        from .layout import pattern_of

        outcomes = []
        for outcome, asked, groups in zip(
            self.outcomes, plan.outcomes, plan.own_groups, strict=True
        ):
            patterns = tuple(
                pattern_of(asked, p, c, groups, outcome.common)
                for p, c in zip(outcome.predictors, outcome.columns, strict=True)
            )
            effects = outcome.effects
            if effects is not None:
                effects = Effects.of(effects.Z, effects.columns, groups, effects.cov)
            outcomes.append(replace(outcome, patterns=patterns, effects=effects))
        study = replace(self, plan=plan, outcomes=tuple(outcomes))
        _check_study(study)
        return study


def _check_study(study: Study) -> None:
    """Refuse data that cannot tell groups apart."""
    count, plan = len(study.units), study.plan
    if all(o.n == 0 or int(torch.bincount(o.unit).max()) == 1 for o in study.outcomes):
        raise DesignError(
            f"every {plan.id} has one occasion: a trajectory needs several rows for a "
            "unit. Is id= the column that says which rows belong together?"
        )
    if count < study.free:
        raise DesignError(
            f"{count} units cannot determine {study.free} parameters; use fewer "
            "groups, lower orders, or fewer risk factors."
        )
    found = _distinct(study.outcomes, count, plan.groups)
    if found < plan.groups:
        raise DesignError(
            f"there are {plan.groups} groups and only {found} distinct histories; use "
            f"at most {found} groups."
        )


def _distinct(outcomes: Sequence[Outcome], count: int, wanted: int) -> int:
    """Count distinct histories; the first units settle it nearly always."""
    for units in (min(count, _LOOK * wanted), count):
        found = len(np.unique(_histories(outcomes, units)))
        if found >= wanted:
            break
    return found


def _histories(outcomes: Sequence[Outcome], units: int) -> np.ndarray:
    """Give each of the first units a number that equal histories share."""
    total = np.zeros(units, dtype=np.uint64)
    for number, outcome in enumerate(outcomes):
        unit = outcome.unit.cpu().numpy()
        rows = int(np.searchsorted(unit, units))
        unit = unit[:rows]
        given = (outcome.y, outcome.size)
        columns = [v[:rows] for v in given if v is not None]
        columns += [x[:rows, j] for x in outcome.X for j in range(x.shape[1])
                    if x.stride(0)]  # fmt: skip
        key = np.full(rows, number + 1, dtype=np.uint64)
        for column in columns:
            # Adding zero makes one of the two zeros of float64.
            bits = (column.cpu().numpy() + 0.0).view(np.uint64)
            key = (key ^ bits) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        # The sum over a unit does not depend on the order in which it was observed.
        sums = np.zeros(units + 1, dtype=np.uint64)
        np.cumsum(key, out=key)
        ends = np.searchsorted(unit, np.arange(units), side="right")
        sums[1:] = np.where(ends > 0, key[ends - 1], np.uint64(0))
        total = total * np.uint64(31) + np.diff(sums)
    return total
