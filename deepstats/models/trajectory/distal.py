"""An outcome of units by latent group, the uncertainty of the grouping accounted for.

Units are assigned to groups with error: P(assigned to s | in k) follows from the
posterior probabilities. Regressing on the assigned group pulls the groups together; BCH
weights and maximum likelihood undo it, and leave the groups as they were fitted.

References
----------
Bolck, Croon & Hagenaars (2004), Estimating latent structure models with categorical
variables; Vermunt (2010), Latent class modeling with covariates: two improved
three-step approaches; Bakk, Tekle & Vermunt (2013); Bakk, Oberski & Vermunt (2014),
Relating latent class assignments to external variables: standard errors for correct
inference; Bakk & Vermunt (2016), Robustness of stepwise latent class modeling with
continuous distal outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from ...batched import batched_newton, inverses
from ...errors import (
    ConvergenceWarning,
    DesignError,
    MissingDataWarning,
    ModelError,
    SeparationWarning,
    caution,
    listed,
)
from ...formula import Formula
from ...frame import Table
from ...inference import HypothesisTest, delta_method, wald
from ...parameters import Block, Parameters
from ...summary.page import Notes, Pairs, Summary
from ...summary.page import Table as PageTable
from .assemble import _risk_basis, emission_of
from .emission import Emission, Position, Scratch
from .fitted import FLAT, Fitted, outcome_etas
from .gathering import Gatherer, OfUnits, identified
from .labels import group_names, parameters_of
from .membership import Membership
from .mixture import Mixture
from .reading import read
from .slots import Slots

if TYPE_CHECKING:
    from .densities import Kernel
    from .results import TrajectoryResults
    from .study import Study

__all__ = ["METHODS", "Distal", "classification", "distal"]

METHODS = ("bch", "ml", "three-step", "modal")
#: Below this a classification cannot be inverted: groups are not told apart.
_LEAST = 1e-3
#: Step of the derivative in the first step's parameters, in standard errors.
_STEP = 1e-3
_UNITS = 50_000


# --------------------------------------------------------------------------------------
# What comes out
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distal:
    """Regression of a distal outcome on the latent group.

    Attributes
    ----------
    formula, family, method, assignment : str
    params : pandas.Series
        Coefficients: an intercept for each group, effects of covariates, a scale.
    cov : pandas.DataFrame
        Their covariance matrix: a sandwich of units (or clusters), the uncertainty of
        the first step included where asked for.
    means : pandas.DataFrame
        Expected outcome of every group, averaged over the covariates of all units.
    classification : pandas.DataFrame
        P(assigned to column | in row).
    nobs : int
        Units with the outcome.
    llf : float
        Log-likelihood of the third step for "ml"; else NaN.
    first_step : bool
        Whether standard errors include the uncertainty of the groups' parameters.
    notes : tuple of str
    """

    formula: str
    family: str
    method: str
    assignment: str
    params: pd.Series
    cov: pd.DataFrame
    means_: pd.Series
    means_cov: np.ndarray
    classification: pd.DataFrame
    nobs: int
    llf: float
    first_step: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def bse(self) -> pd.Series:
        """Standard errors."""
        root = np.sqrt(np.diag(self.cov.to_numpy()))
        return pd.Series(root, self.params.index, name="std err")

    def coefficients(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimates, standard errors, z, p-values and limits."""
        frame = _with_limits(self.params, self.bse, alpha)
        z = frame["estimate"] / frame["std_error"]
        frame.insert(2, "z", z)
        frame.insert(3, "p_value", 2 * special.ndtr(-np.abs(z)))
        return frame

    @cached_property
    def means(self) -> pd.DataFrame:
        """Expected outcome of every group, and 95% limits."""
        se = pd.Series(np.sqrt(np.diag(self.means_cov)), self.means_.index)
        return _with_limits(self.means_, se, 0.05)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Wald tests of the difference between every two groups' means."""
        rows = []
        for a, b in combinations(range(len(self.means_)), 2):
            R = np.zeros(len(self.means_))
            R[a], R[b] = -1.0, 1.0
            estimate, se = R @ self.means_.to_numpy(), np.sqrt(R @ self.means_cov @ R)
            z = estimate / se
            name = f"{self.means_.index[b]} - {self.means_.index[a]}"
            rows.append((name, estimate, se, z, 2 * special.ndtr(-abs(z))))
        columns = ["difference", "estimate", "std_error", "z", "p_value"]
        return pd.DataFrame(rows, columns=columns).set_index("difference")

    @cached_property
    def equality(self) -> HypothesisTest:
        """Wald test that all groups have the same mean."""
        K = len(self.means_)
        R = np.hstack([-np.ones((K - 1, 1)), np.eye(K - 1)])
        return wald(self.means_.to_numpy(), self.means_cov, R, np.zeros(K - 1))

    def summary(self) -> Summary:
        """Lay out the page."""
        test = self.equality
        header = Pairs(
            (
                ("Family", self.family), ("Method", self.method),
                ("Assignment", self.assignment), ("Units", str(self.nobs)),
                ("Equal means, chi2", test.statistic), ("p-value", test.pvalue),
            ),
            columns=2,
        )  # fmt: skip
        blocks: list[Any] = [
            header,
            PageTable(self.means, caption="Means by group"),
            PageTable(self.pairs, caption="Differences"),
            PageTable(self.coefficients(), caption="Coefficients"),
            PageTable(self.classification, caption="P(assigned to column | in row)"),
        ]
        if self.notes:
            blocks.append(Notes(self.notes))
        return Summary("Distal outcome", self.formula, tuple(blocks))

    def __str__(self) -> str:
        return str(self.summary())


def _with_limits(values: pd.Series, se: pd.Series, alpha: float) -> pd.DataFrame:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
    half = special.ndtri(1 - alpha / 2) * se
    return pd.DataFrame(
        {"estimate": values, "std_error": se, "conf_low": values - half,
         "conf_high": values + half}
    )  # fmt: skip


# --------------------------------------------------------------------------------------
# The three steps
# --------------------------------------------------------------------------------------


def distal(
    results: TrajectoryResults,
    formula: str,
    data: Any,
    *,
    family: Any = "gaussian",
    method: str = "bch",
    assignment: str = "modal",
    interact: bool = False,
    variance: str = "shared",
    first_step: bool = True,
) -> Distal:
    """Regress an outcome of units on their latent group: `TrajectoryResults.distal`.

    Returns
    -------
    Distal
    """
    if method not in METHODS:
        raise ModelError(f"method= is one of {', '.join(METHODS)}; not {method!r}.")
    if assignment not in ("modal", "proportional"):
        raise ModelError(
            f"assignment= is 'modal' or 'proportional', not {assignment!r}."
        )
    found = results.traj
    if found.groups < 2:
        raise ModelError("the model has one group: regress the outcome by itself.")
    naive = {"modal": "modal", "three-step": "proportional"}
    assignment = naive.get(method, assignment)
    study, notes = _study_of(found, formula, data, family, interact, variance)
    step = _Third(found, study, method, assignment)
    optimum = step.fit()
    if not optimum.converged:
        text = (
            "the third step has not converged: a group may hold too few units"
            + (", or negative BCH weights prevail; use method='ml'." if method == "bch"
               else "; use fewer covariates.")
        )  # fmt: skip
        notes = (*notes, text)
        caution(text, ConvergenceWarning)
    if bool(step.flat(optimum).any()):
        text = (
            "the outcome is (nearly) certain in a group, so that a coefficient has no "
            "finite estimate; no standard errors are given for it."
        )
        notes = (*notes, text)
        caution(text, SeparationWarning)
    covariance = step.covariance(optimum)
    if first_step:
        covariance = covariance + step.first_step(optimum, results)
    return _reported(
        step, optimum, covariance, formula, first_step=first_step, notes=notes
    )


def _study_of(
    found: Fitted, formula: str, data: Any, family: Any, interact: bool, variance: str
) -> tuple[Study, tuple[str, ...]]:
    """Read the outcome and its covariates, one row for each unit of the fit."""
    plan = found.study.plan
    parsed = Formula.parse(formula, tuple(plan.context))
    if parsed.response is None or parsed.call is not None or parsed.parts:
        raise ModelError(
            f"a distal outcome is 'z ~ 1' or 'z ~ x1 + x2', not {formula!r}."
        )
    if not parsed.rhs.intercept:
        raise ModelError(
            f"{formula!r}: every group has an intercept; leave out '0 +' or '- 1'."
        )
    names = {*parsed.response.variables, *parsed.rhs.variables} - {*plan.context}
    table, notes = _unit_table(found, Table(data), sorted(names))
    options: dict[str, Any] = {}
    text = formula
    if any(t.factors for t in parsed.rhs.terms) and not interact:
        text = f"{parsed.response.text} ~ 1"
        options["common"] = f"~ {parsed.rhs.text}"
    if variance != "shared":
        options["variance"] = variance
    asked = read(
        text, family=family, groups=found.groups, id=plan.id, context=plan.context,
        **options,
    )  # fmt: skip
    if isinstance(asked.outcomes[0].family, str):
        raise ModelError(
            f"family={family!r}: a response of several levels has no mean by group; "
            "use 'binomial' for one level against the others."
        )
    study = Gatherer(asked, Table(table), found.study.compute).study()
    return study, (*notes, *study.notes)


def _unit_table(
    found: Fitted, table: Table, names: list[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """One row for each unit that has a posterior and all of some columns."""
    unit = found.study.plan.id
    absent = [name for name in names if name not in table.columns]
    if absent:
        raise DesignError(
            f"the data of units have no column {absent[0]!r}; they have "
            f"{listed(table.columns, 20)}."
        )
    codes, labels = identified(table, unit)
    hint = "A distal outcome and its covariates have one value for each unit."
    of_units = OfUnits(table, codes, labels, unit, hint)
    columns = {name: of_units.column(name, "the column") for name in names}
    known = np.asarray(labels.isin(found.study.units.labels))
    if not known.any():
        raise DesignError(
            f"none of the {len(labels)} ids of the data is a unit of the fit: is "
            f"{unit} the same column?"
        )
    complete = ~np.any([pd.isna(c).to_numpy() for c in columns.values()], axis=0)
    notes = []
    for mask, why in ((~known, "are not units of the fit"),
                      (known & ~complete, "have missing values")):  # fmt: skip
        if mask.any():
            ids = listed(labels[mask].tolist())
            notes.append(f"{mask.sum()} ids of the data {why} and are left out: {ids}.")
            caution(notes[-1], MissingDataWarning)
    keep = known & complete
    if not keep.any():
        raise DesignError("no unit of the fit has the outcome and its covariates.")
    found_columns = {name: column[keep] for name, column in columns.items()}
    return {unit: pd.Series(labels[keep]), **found_columns}, tuple(notes)


def classification(
    posterior: Tensor, assigned: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Probability of being assigned to a group (columns) given the true one (rows).

    Parameters
    ----------
    posterior, assigned : Tensor, shape (N, K)
    weights : Tensor, shape (N,), optional

    Returns
    -------
    Tensor, shape (K, K)
    """
    mass = posterior if weights is None else posterior * weights[:, None]
    return mass.T @ assigned / mass.sum(0)[:, None]


def _assigned(posterior: Tensor, rule: str) -> Tensor:
    if rule == "proportional":
        return posterior
    best = posterior.argmax(1)
    return torch.nn.functional.one_hot(best, posterior.shape[1]).to(posterior)


@dataclass(frozen=True, eq=False)
class _Optimum:
    """Where the third step ended: parameters (P,) and the derivatives there."""

    x: Tensor
    value: float
    information: Tensor
    converged: bool


class _Third:
    """The third step: an estimating equation for given posterior probabilities."""

    def __init__(
        self, found: Fitted, study: Study, method: str, assignment: str
    ) -> None:
        self.found, self.study = found, study
        self.method, self.assignment = method, assignment
        self.compute = found.study.compute
        (self.outcome,) = study.outcomes
        self.units = len(study.units)
        self.emission: Emission
        self.kernel: Kernel
        self.emission, self.change, self.kernel = emission_of(
            self.outcome, self.units, self.compute
        )
        place = found.study.units.labels.get_indexer(study.units.labels)
        self.place = torch.from_numpy(place).to(self.compute.device)
        weights = found.study.units.weights
        self.weights = None if weights is None else self.compute.tensor(weights)
        self.posterior = found.assembled.mixture.posterior(found.solution.x)
        self.assigned = _assigned(self.posterior, assignment)
        self.errors = classification(self.posterior, self.assigned, self.weights)
        if method in ("bch", "ml"):
            self._check()
        if method == "ml":
            self._prepare()

    def _check(self) -> None:
        values = torch.linalg.svdvals(self.errors)
        if not bool(torch.isfinite(values).all()) or float(values.min()) < _LEAST:
            raise ModelError(
                "the groups are not told apart: no unit is assigned to one of them, or "
                "assignments say nothing of it. Use fewer groups, or "
                "method='three-step', whose results are biased towards no difference."
            )

    def _own(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values[self.place]

    # -- weights that are given ------------------------------------------------------

    def class_weights(self, posterior: Tensor) -> Tensor:
        """Weight of every unit in every group, (K, units), at posteriors (N, K)."""
        if self.method == "three-step":
            weights = posterior
        else:
            assigned = self.assigned
            if self.assignment == "proportional":
                assigned = posterior
            weights = assigned
            if self.method == "bch":
                errors = classification(posterior, assigned, self.weights)
                weights = assigned @ torch.linalg.inv(errors)
        own, w = weights[self.place], self._own(self.weights)
        return (own if w is None else own * w[:, None]).T.contiguous()

    def _weighted(self, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and information of a weighted log-density; S sets (S, P)."""
        emission, S = self.emission, len(x)
        at, scratch = emission.at(x), Scratch(exact=True)
        value, gradient = x.new_zeros(S), x.new_zeros(S, x.shape[1])
        for low in range(0, self.units, _UNITS):
            block = slice(low, min(low + _UNITS, self.units))
            part = W[:, None, block].expand(-1, S, -1).contiguous()
            value += (emission.table(at, block, scratch) * part).sum((0, 2))
            scores = emission.scores(at, block, scratch)
            gradient += emission.slots.gather((scores * part[:, :, None]).sum(3))
            emission.collect(at, block, part, scratch)
        square = emission.slots.gather_square(emission.curvature(at, scratch))
        return value, gradient, square

    def _unit_scores(self, x: Tensor, W: Tensor) -> Tensor:
        """Score of every unit; (units, P)."""
        emission, parts = self.emission, []
        at, scratch = emission.at(x[None]), Scratch()
        for low in range(0, self.units, _UNITS):
            block = slice(low, min(low + _UNITS, self.units))
            scores = emission.scores(at, block, scratch)[:, 0]
            own = (scores * W[:, None, block]).transpose(1, 2)
            parts.append((own @ emission.slots.selection.to(own)).sum(0))
        return torch.cat(parts)

    # -- maximum likelihood ----------------------------------------------------------

    def _prepare(self) -> None:
        """Lay out one entry for each unit and group it may be assigned to."""
        own = self.assigned[self.place]
        self.entry_unit, self.entry_group = torch.nonzero(own > 1e-12, as_tuple=True)
        W, self.risk_basis = _risk_basis(self.found.study.units.W[self.place.cpu()])
        plan = self.found.study.plan
        self.membership = Membership(
            None if W is None else self.compute.tensor(W)[self.entry_unit],
            self.found.groups, plan.reference - 1,
        )  # fmt: skip

    def mixture(self, posterior: Tensor) -> Mixture:
        """Return the mixture of outcome and assignment, its errors held fixed."""
        assigned = self.assigned
        if self.assignment == "proportional":
            assigned = posterior
        errors = classification(posterior, assigned, self.weights)
        weights = assigned[self.place][self.entry_unit, self.entry_group]
        w = self._own(self.weights)
        if w is not None:
            weights = weights * w[self.entry_unit]
        known = _Known(errors.clamp_min(1e-300).log()[:, self.entry_group])
        return Mixture(
            (self.emission.select(self.entry_unit), known), self.membership,
            len(self.entry_unit), weights, self.compute,
        )  # fmt: skip

    # -- the fit and its covariance ----------------------------------------------------

    def fit(self) -> _Optimum:
        """Solve the equations."""
        start = self._fixed()
        if self.method != "ml":
            return start
        mixture = self.mixture(self.posterior)
        theta = self.membership.start(1, start.x)
        x = torch.cat([start.x[None], theta], dim=1)
        for _ in range(20):
            x = mixture.step(x).x

        def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            del which
            found = mixture.derivatives(x)
            return found.value, found.gradient, found.information

        found = batched_newton(objective, x, lower=mixture.lower, max_iterations=100)
        last = mixture.derivatives(found.x)
        return _Optimum(
            found.x[0], float(last.value), last.information[0], bool(found.converged)
        )

    def _fixed(self) -> _Optimum:
        """Solve with weights; for "ml" those of posteriors, where it begins."""
        if self.method == "ml":
            own, w = self.posterior[self.place], self._own(self.weights)
            W = (own if w is None else own * w[:, None]).T.contiguous()
        else:
            W = self.class_weights(self.posterior)

        def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            del which
            return self._weighted(x, W)

        found = batched_newton(
            objective, self.emission.begin(1), lower=self.emission.lower,
            max_iterations=100,
        )  # fmt: skip
        return _Optimum(
            found.x[0], float("nan"), self._weighted(found.x, W)[2][0],
            bool(found.converged) and bool(found.free.all()),
        )  # fmt: skip

    def scores(self, x: Tensor) -> Tensor:
        """Score of every unit; (units, P)."""
        if self.method != "ml":
            return self._unit_scores(x, self.class_weights(self.posterior))
        entries = self.mixture(self.posterior).scores(x)
        total = entries.new_zeros(self.units, len(x))
        return total.index_add_(0, self.entry_unit, entries)

    def gradient(self, x: Tensor, posterior: Tensor) -> Tensor:
        """Sum of the scores at other posterior probabilities; (P,)."""
        if self.method == "ml":
            return self.mixture(posterior).derivatives(x[None]).gradient[0]
        return self._weighted(x[None], self.class_weights(posterior))[1][0]

    def covariance(self, optimum: _Optimum) -> Tensor:
        """Sandwich of units, or of the clusters of the fit."""
        scores, clusters = self.scores(optimum.x), self.found.study.units.clusters
        if clusters is not None:
            codes = clusters[self.place]
            total = scores.new_zeros(int(clusters.max()) + 1, scores.shape[1])
            scores = total.index_add_(0, codes, scores)
        bread = self.bread(optimum)
        return bread @ (scores.T @ scores) @ bread

    def flat(self, optimum: _Optimum) -> Tensor:
        """Which parameters have hardly any information: a mean at its edge; (P,)."""
        d = optimum.information.diagonal()
        found = torch.zeros_like(d, dtype=torch.bool)
        if self.kernel.links[0] != "identity":
            count = self.emission.slots.count
            found[:count] = d[:count].abs() < FLAT
        return found

    def bread(self, optimum: _Optimum) -> Tensor:
        """Inverse of the information; zeros for parameters that have none."""
        kept = torch.nonzero(~self.flat(optimum)).flatten()
        found = torch.zeros_like(optimum.information)
        part = optimum.information[kept][:, kept]
        found[kept[:, None], kept] = inverses(part[None])[0]
        return found

    def first_step(self, optimum: _Optimum, results: TrajectoryResults) -> Tensor:
        """Return what the uncertainty of the groups' parameters adds."""
        assembled, x = self.found.assembled, results.fit_info.x
        matrix = results.covariance.matrix
        se = matrix.diagonal().clamp_min(0).sqrt()
        free = torch.nonzero(torch.isfinite(se) & (se > 0)).flatten().tolist()
        columns = []
        for j in free:
            ends = []
            for sign in (1.0, -1.0):
                moved = x.clone()
                moved[j] += sign * _STEP * se[j]
                posterior = assembled.mixture.posterior(assembled.to_mixture(moved))
                ends.append(self.gradient(optimum.x, posterior))
            columns.append((ends[0] - ends[1]) / (2 * _STEP * se[j]))
        if not columns:
            return torch.zeros_like(optimum.information)
        cross = torch.stack(columns, dim=1)
        bread = self.bread(optimum)
        return bread @ cross @ matrix[free][:, free] @ cross.T @ bread

    # -- the user's parameters ---------------------------------------------------------

    @property
    def labelled(self) -> Parameters:
        """Names of the parameters; those of the membership follow for "ml"."""
        blocks = [
            b for b in parameters_of(self.study, (self.kernel,)).blocks
            if not b.name.startswith("membership")
        ]  # fmt: skip
        if self.method == "ml":
            columns = self.found.study.units.columns
            for k in self.membership.others:
                labels = tuple(f"g{k + 1}:membership:{c}" for c in columns)
                blocks.append(Block(f"membership{k + 1}", labels, False, "Membership"))
        return Parameters(tuple(blocks))

    @property
    def basis(self) -> Tensor:
        """User's parameters are ``basis @ those of the search``; (P, P)."""
        if self.method != "ml":
            return self.change
        others = [self.risk_basis] * (self.found.groups - 1)
        return torch.block_diag(self.change, *others)

    def means(self) -> Callable[[Tensor], Tensor]:
        """Return the function from the user's parameters to the groups' means."""
        slots, outcome, kernel = self.emission.slots, self.outcome, self.kernel
        w = self._own(self.weights)
        share = torch.ones(self.units).double() if w is None else w.cpu().double()
        share = share / share.sum()

        def function(x: Tensor) -> Tensor:
            b = slots.spread(x[None, : slots.count])[:, 0]
            mean = kernel.mean(outcome_etas(outcome, b))
            return mean.expand(len(b), self.units) @ share

        return function


@dataclass(frozen=True, eq=False)
class _Known:
    """An emission without parameters: log-densities that are given.

    Attributes
    ----------
    values : Tensor, shape (K, N)
    """

    values: Tensor
    reusable = True

    @property
    def slots(self) -> Slots:
        """No parameters."""
        return Slots(torch.zeros(len(self.values), 0, dtype=torch.long), 0)

    @property
    def lower(self) -> Tensor:
        """Least values of no parameters."""
        return self.values.new_zeros(0)

    @property
    def floors(self) -> Tensor:
        """Floors of no parameters."""
        return torch.zeros(0, dtype=torch.bool, device=self.values.device)

    @property
    def rows_per_unit(self) -> float:
        """Numbers worked on for a unit, group and set of parameters."""
        return 1.0

    def at(self, free: Tensor) -> Position:
        """Prepare nothing."""
        return Position(free, self.slots.spread(free))

    def table(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Log-density of units in each group; (K, S, B)."""
        return self.values[:, None, block].expand(-1, len(at.free), -1)

    def constant(self, block: slice) -> Tensor | None:
        """Return nothing: the table is all."""
        return None

    def collect(
        self, at: Position, block: slice, weights: Tensor, scratch: Scratch
    ) -> None:
        """Gather nothing."""

    def improve(self, at: Position, scratch: Scratch, inner: int = 1) -> Tensor:
        """Return the parameters, of which there are none."""
        return at.free

    def scores(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Return derivatives in no coefficients; (K, S, 0, B)."""
        K, S = len(self.values), len(at.free)
        return self.values.new_zeros(K, S, 0, block.stop - block.start)

    def curvature(self, at: Position, scratch: Scratch) -> Tensor:
        """Return second derivatives in no coefficients; (K, S, 0, 0)."""
        return self.values.new_zeros(len(self.values), len(at.free), 0, 0)

    def begin(self, count: int) -> Tensor:
        """Return no parameters; (S, 0)."""
        return self.values.new_zeros(count, 0)

    def select(self, units: Tensor) -> _Known:
        """Return those of some units."""
        return _Known(self.values[:, units])

    def with_groups(self, groups: int) -> _Known:
        """Return those of the first groups."""
        return _Known(self.values[:groups])


def _delta(
    function: Callable[[Tensor], Tensor], x: Tensor, cov: Tensor, lost: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and covariance of a function; NaN where it depends on what is `lost`."""
    value, found = delta_method(function, x, cov)
    unknown = (torch.func.jacrev(function)(x)[:, lost] != 0).any(1)
    unknown |= found.diagonal() <= 0
    found[unknown] = found[:, unknown] = torch.nan
    return value, found


def _reported(
    step: _Third, optimum: _Optimum, covariance: Tensor, formula: str, *,
    first_step: bool, notes: tuple[str, ...],
) -> Distal:  # fmt: skip
    """Put estimates in the user's parameters, with names."""
    parameters, basis = step.labelled, step.basis.to(optimum.x).cpu()
    x = basis @ optimum.x.cpu()
    cov = basis @ covariance.cpu() @ basis.T
    lost = (basis[:, step.flat(optimum).cpu()] != 0).any(1)
    means, means_cov = _delta(step.means(), x, cov, lost)
    cov[lost] = cov[:, lost] = torch.nan
    scale, names = parameters.scale(x), list(parameters.labels)
    reported = (cov * scale[:, None] * scale).numpy()
    groups = group_names(step.found.groups)
    family = step.study.plan.outcomes[0].family.name.removesuffix("ml")
    return Distal(
        formula, family, step.method, step.assignment,
        pd.Series(parameters.reported(x).numpy(), names, name="coef"),
        pd.DataFrame(reported, names, names),
        pd.Series(means.numpy(), groups, name="mean"), means_cov.numpy(),
        pd.DataFrame(step.errors.cpu().numpy(), groups, groups), step.units,
        optimum.value if step.method == "ml" else float("nan"), first_step, notes,
    )  # fmt: skip
