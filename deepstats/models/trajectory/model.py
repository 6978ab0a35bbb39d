"""Group-based trajectory models: reading, checks, the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import Compute, default_compute
from ...errors import (
    BoundaryWarning,
    ConvergenceWarning,
    DesignError,
    NonuniqueWarning,
    SeparationWarning,
    caution,
)
from ...formula import Formula
from ...results import Fit
from .assemble import Assembled, assemble
from .dual import class_codes, empty_classes, rereferenced
from .fitted import Fitted, fitted
from .labels import parameters_of
from .likelihood import TrajectoryLikelihood
from .reading import read
from .results import TrajectoryResults
from .search import Optima, Schedule, climb, polish, rounds_of, search
from .study import Study

__all__ = ["Progress", "Trajectory", "schedule_of"]

#: A group of fewer units than this is reported.
_FEW = 3.0


class Trajectory:
    """Finite mixture of longitudinal regressions: group-based trajectories.

    Every unit belongs to one latent group through all its occasions; a group has a
    regression of its own on time. Data are long, one row an occasion, of any number of
    occasions at any times.

    Parameters
    ----------
    formula : str or Formula
        ``"traj(y ~ poly(t, 2), groups=3, id=pid)"``; several formulas for several
        outcomes that share the groups, or with ``groups=(3, 2)`` have groups of their
        own (dual trajectories).
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    family : str or Family, or list or mapping of them
        "gaussian", "cnorm", "poisson", "zip", "nb", "zinb", "binomial", "beta",
        "gamma", "ordinal" ... one for each outcome.
    na_action : {"drop", "raise"}, default "drop"
    context : mapping of str to callable, optional
        Functions the formula may call besides the documented ones.
    device, dtype : optional
        See `Compute`.
    **options
        groups, id, risk, reference, orders, common, zero, zero_orders, variance, disp,
        offset, exposure, weights, lower, upper, cluster, dropout, time, random,
        random_cov: see `reading.read`.

    Notes
    -----
    ``dropout=1`` adds, for each group, a logit of leaving the study at an occasion,
    given that the unit was in at the one before: on an intercept and the last response
    (``dropout=2``: the last two; ``dropout=0``: a constant; ``dropout=~ t + x +
    lag(y)``: a formula of the time, of columns that are constant in a unit, and of
    earlier values). Occasions are the distinct times of the data, `time=` says of which
    column. A unit is gone where others are observed later than it ever is. Earlier
    values are the last ones observed, over gaps; occasions without enough of them say
    nothing of dropping out.

    ``random=~ 1 + t`` adds random effects of units within their group to gaussian
    outcomes (a growth mixture). Their covariance matrix is the same in all groups
    (``random_cov="shared"``), the same but for a factor ("proportional", lcmm's nwg),
    or one for each group ("group").

    References
    ----------
    Nagin (1999), Analyzing developmental trajectories; Nagin (2005), Group-based
    modeling of development; Jones, Nagin & Roeder (2001), A SAS procedure based on
    mixture models for estimating developmental trajectories.
    """

    title = "Group-based trajectory model"
    t_by_default = False

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        family: Any = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> None:
        self.compute: Compute = default_compute(device, dtype)
        plan = read(
            formula, family=family, na_action=na_action, context=context, **options
        )
        self._take(Study.build(plan, data, self.compute))

    @classmethod
    def of_study(cls, study: Study) -> Trajectory:
        """Return the model of data that have been read."""
        model = cls.__new__(cls)
        model.compute = study.compute
        model._take(study)
        return model

    def _take(self, study: Study) -> None:
        self.study = study
        self.assembled: Assembled = assemble(study, self.compute)
        self.parameters = parameters_of(study, self.assembled.kernels)
        self.cautions: tuple[str, ...] = ()

    @property
    def design(self) -> Any:
        """Design of the (first) outcome."""
        return self.study.outcomes[0].design

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.study.plan.groups

    def fit(
        self,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        starts: int = 100,
        seed: int = 0,
        start: Any = None,
        order: str = "mean",
        maxiter: int = 100,
        tol: float = 1e-6,
        em_steps: Sequence[int] = (10, 25, 60),
        progress: bool = False,
    ) -> TrajectoryResults:
        """Estimate by maximum likelihood, from many starts.

        Parameters
        ----------
        cov_type : str, default "nonrobust"
            "nonrobust": observed information; "opg"; "HC0" (sandwich by units);
            "cluster" with ``cov_kwds={"groups": column}``.
        cov_kwds : mapping, optional
        starts : int, default 100
            Groupings that the search begins from.
        seed : int, default 0
            The same seed gives the same starts.
        start : array_like, optional
            A start of your own, and the only one: groups of the units (numbers from 1,
            in the order of `units` or as a Series by id; of each outcome where they
            have groups of their own), posterior probabilities (units, groups), or
            parameters in the order of `params`.
        order : {"mean", "size", "found"}, default "mean"
            How groups are numbered: ascending by the expected response over the rows
            of the data, or descending by size. Groups of different polynomial orders
            keep the numbers they were given.
        maxiter : int, default 100
            Largest number of Newton steps.
        tol : float, default 1e-6
            On the Newton decrement: the length of the last step in standard errors.
        em_steps : sequence of int, default (10, 25, 60)
            EM steps of the rounds. The best starts go on, a like share after each
            round: 5% after the last.
        progress : bool, default False
            Show a bar (tqdm).

        Returns
        -------
        TrajectoryResults

        Warns
        -----
        ConvergenceWarning, BoundaryWarning, SeparationWarning, NonuniqueWarning
            Where the search did not end at a proper maximum; the text says what to do.
        """
        schedule = schedule_of(em_steps, tol, maxiter)
        self.cautions = self.study.notes
        if start is not None:
            optima = self._from_start(start, schedule)
        else:
            if not isinstance(starts, int) or starts < 1:
                raise ValueError(f"starts must be a whole number >= 1, not {starts!r}.")
            generator = torch.Generator().manual_seed(seed)
            with Progress(progress) as advance:
                optima = search(
                    self.assembled.mixture, starts, generator, schedule,
                    progress=advance,
                )  # fmt: skip
        return self.finish(optima, order, cov_type, cov_kwds)

    def finish(
        self,
        optima: Optima,
        order: str = "mean",
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
    ) -> TrajectoryResults:
        """Order the groups of what a search found, say what is wrong, label it."""
        found = rereferenced(fitted(self.study, self.assembled, optima, order))
        model = self._of(found)
        model._warn(found)
        return model.results(found, cov_type, cov_kwds)

    def _of(self, found: Fitted) -> Trajectory:
        """Return the model of a fit: another one where the reference has changed."""
        if found.study is self.study:
            return self
        model = copy(self)
        model.study, model.assembled = found.study, found.assembled
        model.parameters = parameters_of(found.study, found.assembled.kernels)
        return model

    def results(
        self,
        found: Fitted,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
    ) -> TrajectoryResults:
        """Label a solution."""
        solution = found.solution
        units = len(self.study.units)
        fit = Fit(
            x=found.x, bread=found.bread, information="observed", scale=1.0,
            nobs=float(units), df_resid=float(units - len(found.x)),
            facts={"llf": solution.llf}, converged=solution.converged,
            iterations=solution.steps,
            gradient_norm=float(solution.gradient.abs().max()),
            message="converged" if solution.converged else "not converged",
            at_bound=solution.at_bound, notes=self.cautions,
        )  # fmt: skip
        likelihood = TrajectoryLikelihood(self.assembled, self.parameters)
        return TrajectoryResults(self, fit, likelihood, found, cov_type, cov_kwds)

    # -- starts that are given -------------------------------------------------------

    def _from_start(self, start: Any, schedule: Schedule) -> Optima:
        mixture = self.assembled.mixture
        x = self._start(start)
        if not self._is_parameters(start):
            x, _ = climb(mixture, x, sum(steps for steps, _ in schedule.rounds))
        found = polish(mixture, x, torch.ones(1, dtype=torch.long), schedule)
        return Optima(tuple(found), 1, 1)

    def _is_parameters(self, start: Any) -> bool:
        return np.shape(start) == (len(self.parameters),) and (
            len(self.parameters) != len(self.study.units)
        )

    def _start(self, start: Any) -> Tensor:
        mixture, units = self.assembled.mixture, self.study.units
        if self._is_parameters(start):
            values = torch.from_numpy(np.array(start, dtype=np.float64))
            working = self.parameters.working(values)
            return self.assembled.to_mixture(self.compute.tensor(working))[None]
        if isinstance(start, (pd.Series, pd.DataFrame)):
            missing = units.labels.difference(start.index)
            if len(missing):
                raise DesignError(
                    f"start has no value for {len(missing)} units, {missing[0]!r} "
                    "among them; its index must be the ids."
                )
            start = start.loc[units.labels]
        values = np.asarray(start)
        grouping = self.study.plan.grouping
        if grouping and values.dtype.kind in "iu":
            codes = class_codes(grouping, values, len(units))
            return mixture.from_labels(torch.from_numpy(codes)[None])
        if values.shape == (len(units), self.groups):
            posterior = self.compute.tensor(values.astype(np.float64))
            return mixture.from_posterior(posterior[None])
        if values.shape == (len(units),):
            _, codes = np.unique(values, return_inverse=True)
            if codes.max() >= self.groups:
                raise DesignError(
                    f"start has {codes.max() + 1} groups; the model has {self.groups}."
                )
            return mixture.from_labels(torch.from_numpy(codes)[None])
        raise DesignError(
            f"start has shape {values.shape}; give a group for each of the "
            f"{len(units)} units, posterior probabilities ({len(units)}, "
            f"{self.groups}), or {len(self.parameters)} parameters."
        )

    # -- what may be wrong with a fit -------------------------------------------------

    def _warn(self, found: Fitted) -> None:
        """Say what is wrong with the solution, on the page and as a warning."""
        for text, category in _complaints(found, self.parameters.labels):
            self.cautions = (*self.cautions, text)
            caution(text, category)


def _complaints(
    found: Fitted, labels: tuple[str, ...]
) -> list[tuple[str, type[Warning]]]:
    solution, out = found.solution, []
    if found.optima.interrupted:
        out.append(
            ("the search was interrupted: the best start so far is reported.",
             ConvergenceWarning)
        )  # fmt: skip
    if not solution.converged:
        out.append(
            ("the search has not converged: use more starts, a larger maxiter, or "
             "fewer groups.", ConvergenceWarning)
        )  # fmt: skip
    if solution.degenerate:
        out.append(
            (f"the best of all starts is degenerate ({solution.degenerate}): use fewer "
             "groups, or variance='shared'.", BoundaryWarning)
        )  # fmt: skip
    smallest = solution.smallest
    if not solution.degenerate and smallest < _FEW:
        number = int(solution.mass.argmin()) + 1
        out.append(
            (f"group {number} holds {smallest:.1f} units: it may be an outlier rather "
             "than a group.", NonuniqueWarning)
        )  # fmt: skip
    edge = set(solution.at_bound) - set(solution.floored)
    if edge:
        # Scales are in no other basis: their numbers are the user's.
        names = ", ".join(labels[j] for j in sorted(edge))
        out.append(
            (f"{names} went to zero, the edge of the range: a simpler family fits as "
             "well. No standard errors are given there.", BoundaryWarning)
        )  # fmt: skip
    if empty := empty_classes(found):
        names = ", ".join(found.names[c] for c in empty)
        out.append(
            (f"no unit is in the combination {names}: its probability is zero, at the "
             "edge, and has no standard error.", BoundaryWarning)
        )  # fmt: skip
        edge = {*edge, *found.of_membership(empty)}
    lost = [labels[j] for j in found.unidentified if j not in edge]
    if lost and not solution.degenerate:
        shown = ", ".join(lost[:6]) + (" ..." if len(lost) > 6 else "")
        out.append(
            (f"the data do not determine {shown}: in that group the outcome is "
             "(nearly) certain, or there are more parameters than the data tell. No "
             "standard errors are given for them; use a lower order or fewer groups.",
             SeparationWarning)
        )  # fmt: skip
    return out


def schedule_of(em_steps: Sequence[int], tol: float, maxiter: int) -> Schedule:
    """Return the schedule of a search from the options of a fit."""
    steps = tuple(int(s) for s in em_steps)
    if not steps or min(steps) < 1:
        raise ValueError(f"em_steps must be whole numbers >= 1, not {em_steps!r}.")
    if not tol > 0 or maxiter < 1:
        raise ValueError("tol must be positive and maxiter at least 1.")
    return Schedule(rounds_of(steps), tolerance=tol, steps=maxiter)


class Progress:
    """A bar that counts EM steps, where one is asked for."""

    def __init__(self, show: bool) -> None:
        self.show = show
        self.bar: Any = None

    def __enter__(self) -> Callable[[], None] | None:
        if not self.show:
            return None
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True needs tqdm: pip install tqdm, or leave it out."
            ) from error
        self.bar = tqdm(desc="EM steps", unit=" step", leave=False)
        return self.bar.update

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
