"""Trajectories of the groups with their bands.

A trajectory is a function of the parameters; its standard error is by the delta method
from the covariance that the results have. A simultaneous band covers the curve at all
points of the grid at once: its quantile is that of the largest of the correlated
statistics, by simulation.

References
----------
Hothorn, Bretz & Westfall (2008), Simultaneous inference in general parametric models,
Biometrical Journal 50; Krivobokova, Kneib & Claeskens (2010), Simultaneous confidence
bands for penalized spline estimators, JASA 105; Nagin (2005), Group-based modeling of
development.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...errors import DesignError, SeparationWarning, caution, listed
from ...families import Multinomial, Ordinal
from ...frame import Table
from ...prediction import slopes
from .densities import Kernel, Observed
from .fitted import outcome_etas
from .grids import Grid, alone

if TYPE_CHECKING:
    from .results import TrajectoryResults
    from .study import Outcome, Study

__all__ = [
    "Target",
    "limits_of",
    "numbers_of",
    "scores_of",
    "targets",
    "trajectories",
]

INTERVALS = ("pointwise", "simultaneous", None)
SCALES = ("response", "linear")
#: Draws of the estimates behind a simultaneous band, and rows worked on at once.
_DRAWS, _ROWS = 10_000, 500
#: Slope in a parameter, as a share of the largest, below which it plays no part: an
#: inflation that is not there leaves the band as it is without one.
_FELT = 1e-6

Function = Callable[..., Tensor]


# -- what is estimated -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Target:
    """A function of an outcome's linear predictors.

    Attributes
    ----------
    function : callable
        From linear predictors, tensors of one shape, to a tensor of that shape.
    level : object
        Level of a multinomial response that it is about; None elsewhere.
    low, high : float
        Ends of its range; infinite where there are none.
    """

    function: Function
    level: Any = None
    low: float = -math.inf
    high: float = math.inf

    def free(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Values on a scale without ends, and the slope of that scale at them.

        The logarithm of the distance from one end, the logit between two; values that
        rounding has put on an end are moved off it.
        """
        one = math.isfinite(self.low), math.isfinite(self.high)
        tiny = torch.finfo(value.dtype).tiny
        up, down = (
            (value - self.low).clamp(min=tiny),
            (self.high - value).clamp(min=tiny),
        )
        if all(one):
            return (up / down).log(), 1.0 / up + 1.0 / down
        if one[0]:
            return up.log(), 1.0 / up
        if one[1]:
            return -down.log(), 1.0 / down
        return value, torch.ones_like(value)

    def bound(self, free: Tensor) -> Tensor:
        """Return the values of `free`."""
        one = math.isfinite(self.low), math.isfinite(self.high)
        if all(one):
            return self.low + (self.high - self.low) * torch.sigmoid(free)
        if one[0]:
            return self.low + free.exp()
        return self.high - (-free).exp() if one[1] else free


def limits_of(outcome: Outcome, rows: Any = slice(None)) -> Observed | None:
    """Limits of censoring of an outcome's rows, as kernels take them."""
    if outcome.lower is None and outcome.upper is None:
        return None
    low, high = (None if v is None else v[rows] for v in (outcome.lower, outcome.upper))
    return Observed(outcome.y[rows], None, low, high)


def targets(
    outcome: Outcome, kernel: Kernel, scale: str = "response", rows: Any = slice(None)
) -> list[Target]:
    """Return what a trajectory shows of an outcome.

    Parameters
    ----------
    outcome : Outcome
    kernel : Kernel
    scale : {"response", "linear"}
        The expected response (of an ordinal one: of its levels where they are numbers,
        else of their codes from zero), the probability of each level of a multinomial
        one; or the predictor of the mean, the log odds of each level against the first.
    rows : slice, optional
        Of the outcome: those that the predictors are of.
    """
    if isinstance(outcome.family, Multinomial):
        levels = list(enumerate(outcome.levels))
        if scale == "linear":
            return [Target(_predictor(j - 1), level) for j, level in levels[1:]]
        return [Target(_probability(kernel, j), level, 0.0, 1.0) for j, level in levels]
    if scale == "linear":
        return [Target(_predictor(0))]
    if isinstance(outcome.family, Ordinal):
        scores = scores_of(outcome.levels)
        return [Target(_score(kernel, scores), None, min(scores), max(scores))]
    data = limits_of(outcome, rows)
    ends = _ends(kernel, data)
    return [Target(lambda *etas: kernel.mean(etas, data), None, *ends)]


def _ends(kernel: Kernel, data: Observed | None) -> tuple[float, float]:
    """Return the ends of the range of a mean."""
    if kernel.censored:
        low, high = kernel.family.lower, kernel.family.upper
        if data is not None:
            low = low if data.lower is None else float(data.lower.min())
            high = high if data.upper is None else float(data.upper.max())
        return low, high
    low, high = kernel.family.links[0].domain
    return low, high


def _predictor(number: int) -> Function:
    return lambda *etas: etas[number]


def _probability(kernel: Any, number: int) -> Function:
    return lambda *etas: kernel.probabilities(etas)[..., number]


def scores_of(levels: Sequence[Any]) -> list[float]:
    """Return what ordinal levels count for: themselves if numbers, else their codes."""
    numeric = all(isinstance(v, int | float | np.number) for v in levels)
    return [float(v) for v in (levels if numeric else range(len(levels)))]


def _score(kernel: Any, scores: Sequence[float]) -> Function:
    values = torch.tensor(scores, dtype=torch.float64)

    def score(*etas: Tensor) -> Tensor:
        p = kernel.probabilities(etas)
        return p @ values.to(p)

    return score


# -- uncertainty -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Uncertainty:
    """The covariance of the estimates, as bands use it.

    Attributes
    ----------
    root : Tensor, shape (P, P)
        The covariance is ``root @ root.T``; zero for parameters without one.
    lost : Tensor of bool, shape (P,)
        Parameters whose variance is not known.
    joint : bool
        Whether more than variances is needed of curves.
    """

    root: Tensor
    lost: Tensor
    joint: bool

    @classmethod
    def of(cls, results: TrajectoryResults, joint: bool) -> _Uncertainty:
        """Read the results' covariance; warn of parameters without one."""
        cov = results.covariance.matrix
        lost = ~torch.isfinite(cov.diagonal())
        if bool(lost.any()):
            names = np.asarray(results.names)[lost.cpu().numpy()].tolist()
            caution(
                f"no standard errors are known of {listed(names, 6)}: bands are "
                "missing where trajectories depend on them.",
                SeparationWarning,
            )
        known = torch.where(lost[:, None] | lost, 0.0, cov)
        values, vectors = torch.linalg.eigh(0.5 * (known + known.T))
        return cls(vectors * values.clamp(min=0.0).sqrt(), lost, joint)

    def half(self, jacobian: Tensor, start: int) -> Tensor:
        """Rows whose squares sum to variances: of a block of parameters from `start`.

        Parameters
        ----------
        jacobian : Tensor, shape (rows, parameters of the block)
        start : int

        Returns
        -------
        Tensor, shape (rows, P)
            NaN where a parameter without variance plays a part.
        """
        block = slice(start, start + jacobian.shape[1])
        found = jacobian @ self.root[block]
        least = _FELT * jacobian.abs().amax(1, keepdim=True)
        touched = (jacobian[:, self.lost[block]].abs() > least).any(1)
        return found.masked_fill(touched[:, None], torch.nan)

    def spread(self, jacobian: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Return standard errors, and what `half` does where it is needed."""
        half = self.half(jacobian, start)
        return (half**2).sum(1).sqrt(), half if self.joint else None


@dataclass(frozen=True, eq=False)
class _Curve:
    """One target of an outcome in one group, over rows.

    Attributes
    ----------
    value : Tensor, shape (n,)
    base : Tensor, shape (n,)
        What intervals are made of: the predictor of the mean where the target depends
        on no other, else the target on a scale without ends.
    slope : Tensor, shape (n,)
        Of the target in the base.
    error : Tensor, shape (n,)
        Standard errors of the base.
    half : Tensor, shape (n, P), or None
        Of the base, where bands are simultaneous; see `_Uncertainty.half`.
    back : callable
        From the base to the target.
    """

    value: Tensor
    base: Tensor
    slope: Tensor
    error: Tensor
    half: Tensor | None
    back: Callable[[Tensor], Tensor]

    def columns(self, quantile: float | None) -> dict[str, np.ndarray]:
        """Estimates, standard errors, and limits where there is a quantile."""
        se = self.error
        found = {"estimate": self.value, "std_err": se * self.slope.abs()}
        if quantile is not None:
            ends = [self.back(self.base + s * quantile * se) for s in (-1.0, 1.0)]
            found["lower"] = torch.minimum(*ends)
            found["upper"] = torch.maximum(*ends)
        return {name: v.detach().cpu().numpy() for name, v in found.items()}


def _curve(
    target: Target, etas: tuple[Tensor, ...], lines: list[Tensor], start: int,
    uncertainty: _Uncertainty,
) -> _Curve:  # fmt: skip
    """Evaluate a target in one group.

    Parameters
    ----------
    target : Target
    etas : tuple of Tensor, each (n,)
    lines : list of Tensor, each (n, parameters of the outcome)
        Derivatives of the predictors in the outcome's parameters.
    start : int
        Where these parameters begin.
    uncertainty : _Uncertainty
    """
    value, change = slopes(target.function, etas)
    used = [j for j, s in enumerate(change) if bool((s != 0).any())]
    if len(used) == 1:
        j = used[0]

        def back(base: Tensor) -> Tensor:
            return target.function(*etas[:j], base, *etas[j + 1 :])

        spread = uncertainty.spread(lines[j], start)
        return _Curve(value, etas[j], change[j], *spread, back)
    jacobian = torch.zeros_like(lines[0])
    for slope, line in zip(change, lines, strict=True):
        jacobian += slope[:, None] * line
    base, slope = target.free(value)
    spread = uncertainty.spread(jacobian * slope[:, None], start)
    return _Curve(value, base, 1.0 / slope, *spread, target.bound)


def _largest(curves: Sequence[_Curve], level: float, seed: int) -> float:
    """Quantile of the largest absolute statistic over curves and rows."""
    P = curves[0].half.shape[1]
    generator = np.random.default_rng(seed)
    draws = torch.from_numpy(generator.standard_normal((P, _DRAWS)))
    top = torch.zeros(_DRAWS, dtype=torch.float64)
    for curve in curves:
        error = curve.error
        known = torch.isfinite(error) & (error > 0)
        scaled = (curve.half[known] / error[known, None]).cpu()
        for start in range(0, len(scaled), _ROWS):
            part = scaled[start : start + _ROWS] @ draws
            top = torch.maximum(top, part.abs().amax(0))
    return float(torch.quantile(top, level)) if bool((top > 0).any()) else np.nan


# -- the frame -------------------------------------------------------------------------


def numbers_of(study: Study, outcome: str | None) -> list[int]:
    """Numbers of the outcomes asked for: all, or the one of that name."""
    names = [o.name for o in study.measured]
    if outcome is None:
        return list(range(len(names)))
    if outcome not in names:
        raise ValueError(f"outcome={outcome!r} must be one of {names}.")
    return [names.index(outcome)]


def _check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level!r}.")


def trajectories(
    results: TrajectoryResults,
    newdata: Any = None,
    *,
    interval: str | None = "pointwise",
    level: float = 0.95,
    outcome: str | None = None,
    scale: str = "response",
    over: str = "group",
    time: str | None = None,
    offset: Any = None,
    exposure: Any = None,
    seed: int = 0,
    smooth: bool = False,
) -> pd.DataFrame:
    """Estimate the course of each group, with standard errors and bands.

    Parameters
    ----------
    results : TrajectoryResults
    newdata : frame or mapping, optional
        Columns that the trajectories' formulas mention; ids, responses and risk factors
        are not needed. By default a grid over time: the distinct times of the data, or
        50 points over their range if they are more, other columns at their mean or most
        frequent level (powers and functions of time move along).
    interval : {"pointwise", "simultaneous", None}
        Simultaneous bands cover a curve at all its points at once.
    level : float, default 0.95
    outcome : str, optional
        The response of one outcome; all by default.
    scale : {"response", "linear"}
        Expected responses (as they are seen, thus within limits that are the same for
        all rows), or the linear predictor of the mean.
    over : {"group", "all"}
        What a simultaneous band is simultaneous over: the rows of each group and
        outcome, or those of all groups and outcomes together.
    time : str, optional
        Column that the grid moves along: by default the first numeric one in the
        formula that changes within units.
    offset, exposure : optional
        For `newdata`, where those of the fit were given as values. The grid has them
        at their means.
    seed : int, default 0
        Of the 10,000 draws behind a simultaneous band.
    smooth : bool, default False
        Make the grid dense enough for a line.

    Returns
    -------
    DataFrame
        Columns group, outcome (where there are several), level (of a multinomial
        response), those of the formula, estimate, std_err, lower and upper. A column of
        the formula with one of these names gets ``.data`` after it. Rows with missing
        values have NaN estimates.

    Raises
    ------
    DesignError
        For columns or levels that are missing or not known.
    ValueError
        For an unknown option.

    Warns
    -----
    SeparationWarning
        Where parameters have no standard errors: bands that need them are NaN.

    Notes
    -----
    Where the mean depends on one predictor alone, limits are made for this predictor
    and brought through the link; elsewhere (zero-inflated, censored, ordinal) for the
    logarithm of the mean, or its logit between the ends of its range, and brought back,
    so that they stay in the range. Standard errors are always of what `scale` says.
    """
    _check_options(interval, scale, over)
    _check_level(level)
    study, pieces = results.model.study, []
    uncertainty = _Uncertainty.of(results, interval == "simultaneous")
    for number in numbers_of(study, outcome):
        grid = Grid(study, number, time)
        data, given = newdata, {"offset": offset, "exposure": exposure}
        names = grid.names
        if newdata is None:
            data, given = grid.frame(smooth), grid.given()
            names = tuple(data)
        pieces += _pieces(results, number, data, given, names, scale, uncertainty)
    quantiles = _quantiles([p.curve for p in pieces], interval, level, over, seed)
    several = len(study.measured) > 1
    frames = [p.frame(q, several) for p, q in zip(pieces, quantiles, strict=True)]
    return pd.concat(frames, ignore_index=True)


def _check_options(interval: str | None, scale: str, over: str) -> None:
    known = {"interval": INTERVALS, "scale": SCALES, "over": ("group", "all")}
    for (name, allowed), value in zip(
        known.items(), (interval, scale, over), strict=True
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {list(allowed)}.")


def _quantiles(
    curves: list[_Curve], interval: str | None, level: float, over: str, seed: int
) -> list[float | None]:
    """How many standard errors the limits of each curve are away."""
    if interval is None:
        return [None] * len(curves)
    if interval == "pointwise":
        from scipy.special import ndtri

        return [float(ndtri(0.5 + level / 2))] * len(curves)
    if over == "all":
        return [_largest(curves, level, seed)] * len(curves)
    return [_largest([curve], level, seed) for curve in curves]


@dataclass(frozen=True, eq=False)
class _Piece:
    """One curve and the columns beside it.

    Attributes
    ----------
    group : int
    outcome : str
    level : object
    table : DataFrame
        Columns of the formula.
    rows : ndarray of int
        Rows of `table` that the curve has.
    curve : _Curve
    """

    group: int
    outcome: str
    level: Any
    table: pd.DataFrame
    rows: np.ndarray
    curve: _Curve

    def frame(self, quantile: float | None, several: bool) -> pd.DataFrame:
        """Return the rows of the frame."""
        labels: dict[str, Any] = {"group": self.group}
        if several:
            labels["outcome"] = self.outcome
        if self.level is not None:
            labels["level"] = self.level
        found = self.curve.columns(quantile)
        taken = {*labels, *found}
        renamed = {c: f"{c}.data" for c in self.table if c in taken}
        frame = self.table.rename(columns=renamed).reset_index(drop=True)
        for name, values in found.items():
            column = np.full(len(frame), np.nan)
            column[self.rows] = values
            frame[name] = column
        for place, (name, value) in enumerate(labels.items()):
            frame.insert(place, name, value)
        return frame


def _pieces(
    results: TrajectoryResults, number: int, data: Any, given: dict[str, Any],
    names: Sequence[str], scale: str, uncertainty: _Uncertainty,
) -> list[_Piece]:  # fmt: skip
    """Evaluate all curves of an outcome at rows of data."""
    found, table = results.traj, Table(data)
    missing = [n for n in names if n not in table.columns]
    if missing:
        raise DesignError(f"newdata needs the columns {listed(missing)}.")
    columns = {name: table.full(name) for name in names}
    # Curves are not those of units: one for all rows, so that none is left out.
    columns[found.study.plan.id] = np.zeros(table.n)
    renewed = alone(found.study, number).renew(columns, responses=False, **given)
    outcome, kernel = renewed.outcomes[0], found.assembled.kernels[number]
    mixture = found.assembled.mixture
    start = sum(mixture.sizes[:number])
    selection = mixture.emissions[number].slots.selection
    etas = outcome_etas(outcome, found.own_coefficients(number))
    shown = pd.DataFrame(
        {n: np.asarray(columns[n]) for n in names}, index=range(table.n)
    )
    rows = outcome.index.to_numpy()
    wanted = targets(outcome, kernel, scale)
    pieces = []
    for k in range(len(selection)):
        lines = _lines(outcome, selection[k])
        own = tuple(eta[k] for eta in etas)
        for target in wanted:
            curve = _curve(target, own, lines, start, uncertainty)
            pieces.append(_Piece(k + 1, outcome.name, target.level, shown, rows, curve))
    return pieces


def _lines(outcome: Outcome, selection: Tensor) -> list[Tensor]:
    """Differentiate a group's predictors in the outcome's parameters: each (n, P)."""
    found, start = [], 0
    for x in outcome.X:
        part = selection[start : start + x.shape[1]]
        found.append(x.to(part) @ part)
        start += x.shape[1]
    return found
