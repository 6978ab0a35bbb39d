"""Units with any history, those of the fit or new ones: groups, curves, simulation.

The posterior of a unit is its prior (from its risk factors) times the densities of what
has been observed of it. It needs no responses: a unit without any has its prior, and
rows whose response is missing get what the unit's other rows say of its group.

References
----------
Nagin (2005), Group-based modeling of development, ch. 5; Jones, Nagin & Roeder (2001).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...design import _bare_name
from ...errors import DesignError, ModelError
from ...frame import Table
from .densities import Observed
from .effects import covariances_of
from .fitted import Fitted
from .grids import Grid
from .histories import OPTIONS, Cases, plain_column
from .reading import Values
from .rows import data_rows

if TYPE_CHECKING:
    from ...formula import Response
    from .results import TrajectoryResults
    from .study import Outcome, Study

__all__ = ["Simulated", "predict", "simulate"]

WHICH = ("posterior", "group", "mean", "by_group", "linear", "sequential")


# -- prediction ------------------------------------------------------------------------


def predict(
    results: TrajectoryResults,
    newdata: Any = None,
    which: str = "posterior",
    *,
    responses: bool | None = None,
    time: str | None = None,
    **given: Any,
) -> pd.DataFrame | pd.Series:
    """Predict groups and curves of units with any history.

    Parameters
    ----------
    results : TrajectoryResults
    newdata : frame or mapping, optional
        Long, with the id, the columns of the formulas and the risk factors; those of
        the fit when None. Responses may be missing, in some rows, in all, or as
        columns. Ids need not be those of the fit, and tell units of `newdata` apart.
    which : str, default "posterior"
        "posterior": probability of every group for every unit given all its responses;
        the prior where it has none.
        "group": the most probable group of every unit, from 1.
        "mean": the expected response at every row, groups weighted by the posterior of
        its unit: for rows whose response is missing, a forecast from the others; with
        random effects, these as the history lets expect them in each group.
        "by_group": the expected response at every row in every group.
        "linear": the linear predictor of the mean at every row in every group.
        "sequential": posterior of the row's unit after this occasion, from this row
        and those before it in time.
    responses : bool, optional
        Whether responses are used: True to demand their columns, False to leave them
        out (the prior), None to use what there is.
    time : str, optional
        Column that orders occasions for "sequential": by default the first numeric
        one in the formula that changes within units. Rows of the same time stay in
        the order given.
    **given
        offset, exposure, lower, upper for the rows of `newdata`, where those of the fit
        were given as values; mappings by response for several outcomes.

    Returns
    -------
    DataFrame or Series
        By unit for "posterior" and "group", else indexed as the rows of `newdata`, NaN
        where a covariate is missing. "mean" is a Series for one outcome, else a frame
        with a column for each; "by_group" and "linear" have a column for each group,
        below the outcome (and level) where there are several.

    Raises
    ------
    DesignError
        For missing columns, and levels that were not in the data of the fit.
    ValueError
        For an unknown `which`.

    Warns
    -----
    MissingDataWarning
        Where units are left out: no row with complete covariates, or a risk factor
        missing.
    """
    if which not in WHICH:
        raise ValueError(f"which={which!r} must be one of {list(WHICH)}.")
    unknown = given.keys() - {*OPTIONS}
    if unknown:
        raise TypeError(
            f"predict takes {', '.join(OPTIONS)} beside the data; not "
            f"{', '.join(sorted(unknown))}."
        )
    if which == "sequential" and results.traj.study.attendance is not None:
        raise ModelError(
            "sequential posteriors do not know when a unit has dropped out: with "
            "dropout= give the history up to each occasion to which='posterior'."
        )
    cases = Cases.read(results, newdata, responses, given)
    if which == "posterior":
        return cases.of_units(cases.posterior)
    if which == "group":
        best = cases.posterior.argmax(1).numpy() + 1
        return pd.Series(best, cases.rows.units.labels, name="group")
    if which == "sequential":
        time = Grid(results.model.study).time if time is None else time
        return _sequential(cases, time)
    if which == "mean":
        return _expected(cases, cases.curves("response", effects=True))
    return _by_group(cases, cases.curves("linear" if which == "linear" else "response"))


def _expected(cases: Cases, curves: dict[Any, np.ndarray]) -> pd.Series | pd.DataFrame:
    """Weight the curves of the groups by the posterior of each row's unit."""
    unit = cases.unit_of_rows
    weights = cases.posterior.numpy()[unit]
    weights[unit < 0] = np.nan
    found = {key: (weights * curve).sum(1) for key, curve in curves.items()}
    if len(found) == 1:
        (values,) = found.values()
        return pd.Series(values, cases.index, name="predicted")
    return pd.DataFrame(found, cases.index)


def _by_group(cases: Cases, curves: dict[Any, np.ndarray]) -> pd.DataFrame:
    """Set the curves of the groups side by side."""
    names = cases.fitted.names
    frames = {k: pd.DataFrame(v, cases.index, names) for k, v in curves.items()}
    return (
        next(iter(frames.values())) if len(frames) == 1 else pd.concat(frames, axis=1)
    )


def _sequential(cases: Cases, time: str | None) -> pd.DataFrame:
    """Posterior after each row, from it and the unit's earlier rows."""
    n, unit = len(cases.index), cases.unit_of_rows
    occasions = _occasions(cases, time)
    row_of = [_places(known.outcome, n) for known in cases.known]
    grown = [
        cases.effected(known, rows=False) if known.density is None else None
        for known in cases.known
    ]
    joint, found = cases.log_prior.clone(), np.full((n, cases.fitted.groups), np.nan)
    # One occasion of all units at a time: sums over a unit never leave it.
    for rows in occasions:
        at, more = torch.from_numpy(unit[rows]), 0.0
        for known, places, effected in zip(cases.known, row_of, grown, strict=True):
            own = torch.from_numpy(places[rows])
            own = own[own >= 0]
            if effected is None:
                joint[:, known.unit[own]] += known.density[:, own]
                continue
            if len(own):
                effected.add(known.outcome, known.unit[own], own)
            more = more + effected.density(at)
        found[rows] = torch.softmax(joint[:, at] + more, dim=0).T.numpy()
    return pd.DataFrame(found, cases.index, cases.fitted.names)


def _occasions(cases: Cases, time: str | None) -> list[np.ndarray]:
    """Rows of the first occasion of every unit, of the second ..."""
    unit = cases.unit_of_rows
    keys = [np.arange(len(unit)), unit]
    if time is not None:
        values = cases.rows.table.numeric(time)
        if values is None:
            raise DesignError(f"the data have no numeric column {time} to go by.")
        keys.insert(1, values)
    order = np.lexsort(keys)
    order = order[unit[order] >= 0]
    first = np.flatnonzero(np.diff(unit[order], prepend=-1))
    number = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    turn = np.argsort(number, kind="stable")
    return np.split(order[turn], np.cumsum(np.bincount(number))[:-1])


def _places(outcome: Outcome, n: int) -> np.ndarray:
    """Return which row of an outcome each row of the data is; -1 where it is none."""
    found = np.full(n, -1)
    found[outcome.index.to_numpy()] = np.arange(outcome.n)
    return found


# -- simulation ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Simulated:
    """Data drawn from a trajectory model.

    Attributes
    ----------
    frames : tuple of DataFrame
        One for each simulation: the data, with drawn responses; missing where a row was
        not used.
    groups : DataFrame, shape (units, nsim)
        Group of each unit in each of them, from 1; columns sim_1, sim_2 ...
    """

    frames: tuple[pd.DataFrame, ...]
    groups: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The first of the frames."""
        return self.frames[0]


def simulate(
    results: TrajectoryResults,
    nsim: int = 1,
    seed: int | None = None,
    newdata: Any = None,
    **given: Any,
) -> Simulated:
    """Draw a group for each unit from its prior, then its responses in that group.

    Parameters
    ----------
    results : TrajectoryResults
    nsim : int, default 1
    seed : int, optional
        The same seed gives the same draws.
    newdata : frame or mapping, optional
        Rows to simulate; those of the fit by default, where rows that the fit left out
        stay without a response. Responses need not be there, except for numbers of
        trials (``cbind``) and limits of censoring that differ between rows. Nobody
        drops out: the rows are those given.
    **given
        As in `predict`.

    Returns
    -------
    Simulated

    Raises
    ------
    ModelError
        Where the response is an expression, into which nothing can be put back.
    """
    if not isinstance(nsim, int) or nsim < 1:
        raise ValueError(f"nsim must be a whole number >= 1, not {nsim!r}.")
    study, table = _to_simulate(results, newdata, given)
    writers = [
        _writer(asked.formula.response)
        for asked in study.plan.outcomes[: len(study.measured)]
    ]
    base = pd.DataFrame(
        {name: plain_column(table.full(name)) for name in table.columns}
    )
    generator = torch.Generator().manual_seed(_seed(seed))
    prior = results.traj.shares(W=study.units.W).cpu()
    frames: list[pd.DataFrame] = []
    drawn: dict[str, np.ndarray] = {}
    for j in range(nsim):
        # A uniform number is beyond as many cumulated shares as groups are passed.
        u = torch.rand(len(prior), 1, generator=generator, dtype=torch.float64)
        groups = (u > prior.cumsum(1)[:, :-1]).sum(1)
        frame = base.copy()
        if table.index is not None:
            frame.index = table.index
        for number, outcome in enumerate(study.measured):
            y = _draw(results.traj, number, outcome, groups, generator)
            for name, values in writers[number](outcome, y).items():
                frame[name] = _column(values, outcome, base.get(name), len(frame))
        frames.append(frame)
        drawn[f"sim_{j + 1}"] = groups.numpy() + 1
    return Simulated(tuple(frames), pd.DataFrame(drawn, study.units.labels))


def _seed(seed: int | None) -> int:
    return int(np.random.default_rng().integers(2**62)) if seed is None else int(seed)


def _to_simulate(
    results: TrajectoryResults, newdata: Any, given: dict[str, Any]
) -> tuple[Study, Table]:
    """Return the study to draw responses for, and the data behind it."""
    study = results.traj.study
    if newdata is None:
        if given:
            raise ValueError(f"{', '.join(given)} go with new data.")
        return study, study.table
    study = replace(study, plan=replace(study.plan, weights=None, cluster=None))
    needs = any(
        o.size is not None
        or any(isinstance(v, str | Values) for v in (asked.lower, asked.upper))
        for o, asked in zip(study.outcomes, study.plan.outcomes, strict=True)
    )
    return study.renew(newdata, responses=needs, **given), Table(newdata)


def _draw(
    fitted: Fitted, number: int, outcome: Outcome, groups: Tensor,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Draw responses of an outcome's rows, each in the group of its unit."""
    kernel, b = fitted.assembled.kernels[number], fitted.coefficients(number).cpu()
    own = groups[outcome.unit.cpu()]
    etas, start = [], 0
    for x, offset in zip(outcome.X, outcome.offsets, strict=True):
        part = b[:, start : start + x.shape[1]][own]
        eta = (x.cpu().to(part) * part).sum(1)
        etas.append(eta if offset is None else eta + offset.cpu())
        start += x.shape[1]
    if outcome.effects is not None:
        etas[0] = etas[0] + _effects(fitted, number, outcome, groups, generator)
    given = (outcome.size, outcome.lower, outcome.upper)
    some = (None if v is None else v.cpu() for v in given)
    return kernel.sample(tuple(etas), generator, Observed(outcome.y.cpu(), *some))


def _column(
    values: np.ndarray, outcome: Outcome, before: pd.Series | None, n: int
) -> Any:
    """Values of an outcome's rows as a column of the data; missing elsewhere."""
    found = np.full(n, np.nan, dtype=values.dtype)
    found[data_rows(outcome)] = values
    if before is not None and isinstance(before.dtype, pd.CategoricalDtype):
        return pd.Categorical(found, dtype=before.dtype)
    return found


def _effects(
    fitted: Fitted, number: int, outcome: Outcome, groups: Tensor,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Draw random effects of units in their groups; return them at the rows."""
    values, vectors = torch.linalg.eigh(covariances_of(fitted, number).cpu())
    roots = vectors * values.clamp(min=0.0).sqrt()[:, None, :]
    z = torch.randn(
        len(groups), roots.shape[1], generator=generator, dtype=torch.float64
    )
    drawn = (roots[groups] @ z[:, :, None])[:, :, 0]
    return (outcome.effects.Z.cpu() * drawn[outcome.unit.cpu()]).sum(1)


Writer = Callable[["Outcome", Tensor], dict[str, np.ndarray]]


def _writer(response: Response) -> Writer:
    """Return what puts drawn responses into the columns that they stand in."""
    names = [_bare_name(e) for e in response.expressions]
    first = names[0]
    if response.kind != "cbind" and first is not None:
        return lambda outcome, y: {first: _levelled(outcome, y)}
    if response.kind == "cbind" and first is not None:
        yes, no = first, names[1]
        others = [v for v in response.variables if v != yes]
        # The second may also be what is left of the trials: cbind(yes, n - yes).
        left = response.expressions[1].replace(" ", "")
        rest = len(others) == 1 and left == f"{others[0]}-{yes}"
        if no is not None or rest:
            return lambda outcome, y: _counts(outcome, y, yes, no)
    raise ModelError(
        f"the response {response} is an expression: drawn values cannot be put back "
        "into its columns. Make it a column of the data, and fit that."
    )


def _levelled(outcome: Outcome, y: Tensor) -> np.ndarray:
    """Responses as the data have them: levels for codes."""
    values = y.numpy()
    if outcome.levels is None:
        return values
    levels = np.asarray(outcome.levels)
    kind = np.float64 if levels.dtype.kind in "fiub" else object
    return levels.astype(kind)[values.astype(np.int64)]


def _counts(
    outcome: Outcome, y: Tensor, yes: str, no: str | None
) -> dict[str, np.ndarray]:
    """Successes and failures of proportions."""
    size = outcome.size.cpu().numpy()
    successes = np.round(y.numpy() * size)
    return {yes: successes} if no is None else {yes: successes, no: size - successes}
