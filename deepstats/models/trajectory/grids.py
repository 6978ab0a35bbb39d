"""Where trajectories are drawn when nobody says where: a grid of the data's own times.

A grid has one time column that moves. What else the formulas mention stays at its mean
or most frequent level, unless the data make it a function of time (a column of squares,
a period), in which case it moves along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import DesignError, listed
from ...expressions import expression_variables
from .reading import Values
from .rows import data_rows

if TYPE_CHECKING:
    from .study import Outcome, Study

__all__ = ["Grid", "alone"]

#: Points of a grid, and of one that is drawn as a smooth line.
_POINTS, _SMOOTH = 50, 121
#: Powers of time that columns are compared with.
_POWERS = (2, 3, 4)


def alone(study: Study, number: int) -> Study:
    """Return a study of one outcome that needs no risk factors and no weights.

    Parameters
    ----------
    study : Study
    number : int
        Which outcome.
    """
    plan = replace(
        study.plan, outcomes=(study.plan.outcomes[number],), risk=None, weights=None,
        cluster=None, groups=study.plan.own_groups[number], grouping=None,
    )  # fmt: skip
    return replace(
        study, plan=plan, outcomes=(study.outcomes[number],), attendance=None
    )


@dataclass(frozen=True, eq=False)
class Grid:
    """The columns that an outcome's formulas mention, and times to draw them at.

    Parameters
    ----------
    study : Study
    number : int, default 0
        Which outcome.
    chosen : str, optional
        The time column; see `time`.
    """

    study: Study
    number: int = 0
    chosen: str | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome."""
        return self.study.outcomes[self.number]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Columns mentioned: of the mean, of other predictors, of offset, exposure."""
        asked = self.study.plan.outcomes[self.number]
        found = list(asked.formula.rhs.variables)
        found += [v for term in asked.common for v in term.variables]
        found += [*asked.zero.variables, *asked.disp.variables]
        random = self.study.plan.random
        found += [] if random is None else random.variables
        for given in (asked.offset, asked.exposure):
            found += expression_variables(given) if isinstance(given, str) else ()
        known = self.study.table.columns
        return tuple(name for name in dict.fromkeys(found) if name in known)

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of the data that the outcome has, in its order."""
        return data_rows(self.outcome)

    def column(self, name: str) -> pd.Series:
        """Return a column at the outcome's rows."""
        return pd.Series(self.study.table.full(name)).iloc[self.rows]

    def numbers(self, name: str) -> np.ndarray | None:
        """Return a numeric column at the outcome's rows; None for other columns."""
        values = self.study.table.numeric(name)
        return None if values is None else values[self.rows].astype(np.float64)

    def _varies(self, name: str) -> bool:
        """Whether a column changes within units."""
        values, unit = self.numbers(name), self.outcome.unit.cpu().numpy()
        if values is None:
            values = pd.factorize(self.column(name))[0]
        return bool(((values[1:] != values[:-1]) & (unit[1:] == unit[:-1])).any())

    @cached_property
    def time(self) -> str | None:
        """Column that moves: the first numeric one that changes within units.

        Raises
        ------
        DesignError
            For a `chosen` column that is not there, not numeric, or incomplete.
        """
        if self.chosen is None:
            numeric = (n for n in self.names if self.numbers(n) is not None)
            return next((n for n in numeric if self._varies(n)), None)
        if self.study.table.numeric(self.chosen) is None:
            known = listed(self.study.table.columns, 20)
            raise DesignError(
                f"time={self.chosen!r} must be a numeric column of the data: {known}."
            )
        if np.isnan(self.numbers(self.chosen)).any():
            raise DesignError(
                f"time={self.chosen!r} is missing in rows that the fit uses."
            )
        return self.chosen

    @cached_property
    def times(self) -> np.ndarray:
        """Distinct times of the outcome's rows, ascending."""
        assert self.time is not None
        return np.unique(self.numbers(self.time))

    def frame(self, smooth: bool = False) -> pd.DataFrame:
        """Return the grid.

        Parameters
        ----------
        smooth : bool, default False
            Enough points for a line, where the formula is defined between the times;
            else the distinct times, or 50 points over their range if they are more.
        """
        others = [name for name in self.names if name != self.time]
        if self.time is None:
            return pd.DataFrame({n: [self._typical(n)] for n in others}, index=[0])
        moving = {n: self._companion(n) for n in others if self._varies(n)}
        fixed = any(isinstance(m, pd.Series) for m in moving.values())
        at = self._points(smooth, fixed or self._levelled(self.time))
        found: dict[str, Any] = {self.time: at}
        for name in others:
            companion = moving.get(name)
            if companion is None:
                found[name] = [self._typical(name)] * len(at)
            elif isinstance(companion, int):
                found[name] = at**companion
            else:
                found[name] = companion.loc[at].to_numpy()
        return pd.DataFrame(found)

    def _points(self, smooth: bool, observed: bool) -> np.ndarray:
        times = self.times
        if observed or (len(times) <= _POINTS and not smooth):
            few = np.linspace(0, len(times) - 1, min(len(times), _POINTS))
            return times[few.round().astype(int)]
        return np.linspace(times[0], times[-1], _SMOOTH if smooth else _POINTS)

    def _companion(self, name: str) -> int | pd.Series | None:
        """Return a power of time, or the column by time, where it is that."""
        time, values = self.numbers(self.time), self.numbers(name)
        if values is not None:
            for power in _POWERS:
                if np.allclose(values, time**power, rtol=1e-9, atol=1e-12):
                    return power
        if 2 * len(self.times) > len(time):
            # With times of their own for all rows, anything is a function of time.
            return None
        column = pd.Series(self.column(name).to_numpy(), index=time)
        first = column[~column.index.duplicated()]
        same = first.loc[time].to_numpy() == column.to_numpy()
        return first if bool(np.all(same)) else None

    def _levelled(self, name: str) -> bool:
        """Whether a column is read as levels, so that only known values will do."""
        states = self.outcome.design.spec.states.items()
        return any(
            state.get("kind") == "categorical" and name in expression_variables(text)
            for text, state in states
        )

    def _typical(self, name: str) -> Any:
        """Mean of numbers, most frequent value of anything else."""
        values = self.numbers(name)
        if values is None or self._levelled(name):
            return self.column(name).mode().iloc[0]
        return float(np.mean(values))

    def given(self) -> dict[str, Any]:
        """Offset and exposure where the fit had them as values: their means."""
        asked = self.study.plan.outcomes[self.number]
        return {
            key: float(np.mean(np.asarray(value.array, dtype=np.float64)))
            for key in ("offset", "exposure")
            if isinstance(value := getattr(asked, key), Values)
        }
