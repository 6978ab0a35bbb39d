"""Units and what has been observed of them: densities of histories, posteriors, curves.

Rows of most outcomes are independent in a group, so that the density of a history is a
sum over its rows. With random effects within groups it is that of all rows together,
from the cross-products of the unit: in group k, with e = y - X b and B the covariance
of the effects, ``u = B (s^2 I + Z'Z B)^-1 Z'e`` are the expected effects, and the
quadratic form of the density is ``(e'e - u'Z'e) / s^2``.

References
----------
Nagin (2005), Group-based modeling of development, ch. 5; Laird & Ware (1982),
Random-effects models for longitudinal data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...errors import DesignError, MissingDataWarning, listed
from ...frame import Table
from .bands import targets
from .densities import Kernel, Observed
from .effects import covariances_of
from .fitted import Fitted, outcome_etas
from .reading import Values

if TYPE_CHECKING:
    from .results import TrajectoryResults
    from .study import Outcome, Study

__all__ = ["OPTIONS", "Cases", "Effected", "plain_column"]

#: What may be given beside new data.
OPTIONS = ("offset", "exposure", "lower", "upper")
#: Numbers that the tables of one block of rows may hold.
_BLOCK = 4_000_000


@dataclass(eq=False)
class Effected:
    """What rows of an outcome with random effects say of their units, in every group.

    Rows may come in parts; sums of cross-products are kept.

    Parameters
    ----------
    fitted : Fitted
    number : int
        Which outcome.
    units : int
    """

    fitted: Fitted
    number: int
    units: int

    def __post_init__(self) -> None:
        """Begin with no rows."""
        B = covariances_of(self.fitted, self.number).cpu()
        groups, q = B.shape[:2]
        self.covariances = B
        self.count = torch.zeros(self.units).double()
        self.squares = torch.zeros(groups, self.units).double()
        self.residuals = torch.zeros(groups, self.units, q).double()
        self.gram = torch.zeros(self.units, q, q).double()
        self.variance = torch.ones(groups).double()

    def add(self, outcome: Outcome, unit: Tensor, rows: Any = slice(None)) -> None:
        """Add rows of an outcome, of the units given; each (rows,)."""
        b = self.fitted.coefficients(self.number)
        mu, zeta = (e.cpu() for e in outcome_etas(outcome, b, rows))
        self.variance = (2.0 * zeta[:, 0]).exp()
        e, Z = outcome.y[rows].cpu() - mu, outcome.effects.Z[rows].cpu().double()
        self.count.index_add_(0, unit, torch.ones(len(unit)).double())
        self.squares.index_add_(1, unit, e * e)
        self.residuals.index_add_(1, unit, e[:, :, None] * Z)
        self.gram.index_add_(0, unit, Z[:, :, None] * Z[:, None, :])

    def _system(self, at: Any) -> tuple[Tensor, Tensor]:
        """Return s^2 I + Z'Z B and the expected effects; (K, at, q, q), (K, at, q)."""
        B, eye = self.covariances[:, None], torch.eye(self.gram.shape[1]).double()
        system = self.variance[:, None, None, None] * eye + self.gram[at] @ B
        solved = torch.linalg.solve(system, self.residuals[:, at, :, None])
        return system, (B @ solved)[..., 0]

    def effects(self, at: Any = slice(None)) -> Tensor:
        """Return the expected effects of units in every group; (K, units, q)."""
        return self._system(at)[1]

    def density(self, at: Any = slice(None)) -> Tensor:
        """Log-density of the rows of units in every group; (K, units)."""
        system, u = self._system(at)
        n, s2 = self.count[at], self.variance[:, None]
        explained = (u * self.residuals[:, at]).sum(-1)
        q = u.shape[-1]
        logdet = torch.linalg.slogdet(system).logabsdet + (n - q) * s2.log()
        quadratic = (self.squares[:, at] - explained) / s2
        return -0.5 * (n * math.log(2 * math.pi) + logdet + quadratic)


@dataclass(frozen=True, eq=False)
class Known:
    """The observed rows of an outcome.

    Attributes
    ----------
    number : int
        Which outcome.
    outcome : Outcome
    unit : Tensor of long, shape (n,)
        Unit of each row, among all units to predict.
    density : Tensor or None, shape (K, n)
        Log-density of each row in every group; None where rows are not independent.
    """

    number: int
    outcome: Outcome
    unit: Tensor
    density: Tensor | None


@dataclass(frozen=True, eq=False)
class Cases:
    """Units to predict, and what has been observed of them.

    Attributes
    ----------
    fitted : Fitted
    index : Index
        Labels of the rows given.
    rows : Study
        Of all rows whose covariates are known; its responses are not read.
    history : Study or None
        Of the rows that have a response; None where there is none.
    """

    fitted: Fitted
    index: pd.Index
    rows: Study
    history: Study | None

    @classmethod
    def read(
        cls, results: TrajectoryResults, data: Any, responses: bool | None,
        given: dict[str, Any],
    ) -> Cases:  # fmt: skip
        """Read new data, or those of the fit, with the columns of the fit."""
        fitted = results.traj
        # Where new units belong has nothing to do with how they were sampled.
        plan = replace(fitted.study.plan, weights=None, cluster=None)
        study = replace(fitted.study, plan=plan)
        if data is None:
            if given:
                raise ValueError(f"{', '.join(given)} go with new data.")
            data, given = study.table, _given_to(study)
        table = Table(data)
        index = table.index if table.index is not None else pd.RangeIndex(table.n)
        columns: dict[str, Any] = {n: table.full(n) for n in table.columns}
        # Without an index of their own, rows keep their positions as labels.
        columns = {n: plain_column(c) for n, c in columns.items()}
        rows = study.renew(columns, responses=False, **given)
        history = None
        if responses is not False:
            _complete(study, columns, table.n, bool(responses))
            if _has_history(rows, columns):
                with warnings.catch_warnings():
                    # A unit without a response is no loss here.
                    warnings.simplefilter("ignore", MissingDataWarning)
                    history = study.renew(columns, **given)
        return cls(fitted, index, rows, history)

    def pairs(
        self, outcomes: tuple[Outcome, ...]
    ) -> Iterator[tuple[int, Outcome, Kernel]]:
        """Return the first outcomes of the model with their numbers and kernels."""
        kernels = self.fitted.assembled.kernels
        for number, (o, k) in enumerate(zip(outcomes, kernels, strict=False)):
            yield number, o, k

    def blocks(self, outcome: Outcome) -> Iterator[slice]:
        """Cut an outcome's rows into blocks."""
        size = max(1, _BLOCK // (4 * self.fitted.groups))
        for start in range(0, outcome.n, size):
            yield slice(start, min(start + size, outcome.n))

    def logdensities(self, number: int, outcome: Outcome, kernel: Kernel) -> Tensor:
        """Log-density of an outcome's rows in every group; (K, n)."""
        b = self.fitted.coefficients(number)
        table = torch.empty(self.fitted.groups, outcome.n, dtype=torch.float64)
        for part in self.blocks(outcome):
            etas = outcome_etas(outcome, b, part)
            y, size, low, high = (
                None if v is None else v[part]
                for v in (outcome.y, outcome.size, outcome.lower, outcome.upper)
            )
            data = Observed(y, size, low, high)
            terms = kernel.terms(etas, data if kernel.needs_y else None)
            total = kernel.constant(y, size)
            for phi, g in zip(kernel.features(y, size), terms, strict=True):
                total = total + phi * g
            table[:, part] = total.cpu()
        return table

    @cached_property
    def known(self) -> list[Known]:
        """What has been observed, by outcome."""
        if self.history is None:
            return []
        place = self.rows.units.labels.get_indexer(self.history.units.labels)
        of_units, found = torch.from_numpy(place), []
        for number, outcome, kernel in self.pairs(self.history.outcomes):
            unit, density = of_units[outcome.unit.cpu()], None
            if outcome.effects is None:
                density = self.logdensities(number, outcome, kernel)
            found.append(Known(number, outcome, unit, density))
        return found

    def effected(self, known: Known, rows: bool = True) -> Effected:
        """Return what an outcome with random effects says, with its rows or none."""
        found = Effected(self.fitted, known.number, len(self.rows.units))
        if rows and known.outcome.n:
            found.add(known.outcome, known.unit)
        return found

    @cached_property
    def log_prior(self) -> Tensor:
        """Logarithms of the units' prior probabilities; (K, N)."""
        W = self.rows.units.W
        eta = W.double() @ self.fitted.membership().to(W.device).T
        return torch.log_softmax(eta, dim=1).T.cpu()

    @cached_property
    def posterior(self) -> Tensor:
        """Probability of every group for every unit; (N, K)."""
        joint = self.log_prior.clone()
        for known in self.known:
            if known.density is None:
                joint += self.effected(known).density()
            else:
                joint.index_add_(1, known.unit, known.density)
        return torch.softmax(joint, dim=0).T

    # -- frames ----------------------------------------------------------------------

    def of_units(self, values: Tensor) -> pd.DataFrame:
        """Label a table (N, K) of units."""
        return pd.DataFrame(values.numpy(), self.rows.units.labels, self.fitted.names)

    def scattered(self, outcome: Outcome, values: Tensor) -> np.ndarray:
        """Put values (n, ...) of an outcome's rows at their rows; NaN elsewhere."""
        found = np.full((len(self.index), *values.shape[1:]), np.nan)
        found[outcome.index.to_numpy()] = values.numpy()
        return found

    def curves(self, scale: str, effects: bool = False) -> dict[Any, np.ndarray]:
        """Curves of every group at all rows, by outcome (and level); each (rows, K).

        Parameters
        ----------
        scale : {"response", "linear"}
        effects : bool, default False
            Whether to add the random effects that the history lets expect.
        """
        found = {}
        for number, outcome, kernel in self.pairs(self.rows.measured):
            b, blocks = self.fitted.coefficients(number), list(self.blocks(outcome))
            parts: dict[Any, list[Tensor]] = {}
            for part in blocks:
                etas = torch.broadcast_tensors(*outcome_etas(outcome, b, part))
                for target in targets(outcome, kernel, scale, part):
                    value = target.function(*etas).T.cpu()
                    if effects and outcome.effects is not None:
                        value = value + self._shift(number, outcome, part)
                    parts.setdefault(target.level, []).append(value)
            for level, values in parts.items():
                curve = self.scattered(outcome, torch.cat(values))
                found[outcome.name, level] = curve
        if all(level is None for _, level in found):
            return {name: curve for (name, _), curve in found.items()}
        return found

    def _shift(self, number: int, outcome: Outcome, rows: slice) -> Tensor:
        """Return the expected random effects at rows, in every group; (rows, K)."""
        Z = outcome.effects.Z[rows].cpu().double()
        if not self.known:
            return Z.new_zeros(len(Z), self.fitted.groups)
        u = self._expected[number][:, outcome.unit[rows].cpu()]
        return (u * Z).sum(-1).T

    @cached_property
    def _expected(self) -> dict[int, Tensor]:
        """Expected random effects of all units, by number of the outcome."""
        return {
            known.number: self.effected(known).effects()
            for known in self.known
            if known.density is None
        }

    @cached_property
    def unit_of_rows(self) -> np.ndarray:
        """Number of the unit of each row given; -1 for units left out."""
        found = np.full(len(self.index), -1)
        for _, outcome, _ in self.pairs(self.rows.measured):
            found[outcome.index.to_numpy()] = outcome.unit.cpu().numpy()
        return found


def plain_column(column: Any) -> Any:
    """Return a column whose rows are labelled by their positions."""
    return column.reset_index(drop=True) if isinstance(column, pd.Series) else column


def _given_to(study: Study) -> dict[str, Any]:
    """Options that the fit had as values, to read its own data again."""
    found: dict[str, Any] = {}
    for key in OPTIONS:
        values = {
            o.name: getattr(o, key).array
            for o in study.plan.outcomes
            if isinstance(getattr(o, key), Values)
        }
        if values:
            found[key] = values
    return found


def _complete(study: Study, columns: dict[str, Any], n: int, demanded: bool) -> None:
    """Add columns of responses that the data do not have, all missing."""
    for _, asked in zip(study.measured, study.plan.outcomes, strict=False):
        response = asked.formula.response
        missing = [v for v in response.variables if v not in columns]
        if missing and demanded:
            raise DesignError(
                f"responses=True needs the columns {listed(missing)}; the data have "
                f"{listed(list(columns), 20)}."
            )
        columns.update({name: np.full(n, np.nan) for name in missing})


def _has_history(rows: Study, columns: dict[str, Any]) -> bool:
    """Whether any row has a response and its covariates."""
    table = Table(columns)
    for outcome, asked in zip(rows.measured, rows.plan.outcomes, strict=False):
        seen = np.zeros(table.n, dtype=bool)
        seen[outcome.index.to_numpy()] = True
        for name in asked.formula.response.variables:
            missing = table.missing(name)
            seen &= True if missing is None else ~missing
        if seen.any():
            return True
    return False
