"""Pictures of trajectory models: Axes in, Axes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...families import Multinomial, Ordinal
from ...plots import _GREY, _MARKERS, OKABE_ITO, _axes, _need, _pyplot
from .bands import numbers_of, scores_of, trajectories
from .grids import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import TrajectoryResults
    from .study import Outcome

__all__ = ["plot", "plot_alluvial", "plot_posterior", "plot_selection"]

DATA = ("means", "spaghetti", None)
#: Times at which means are shown one by one; more are put into as many bins as given.
_TIMES, _BINS = 30, 12
#: Posterior mass (in units) below which a mean is that of hardly anybody.
_LEAST = 1.0
#: Posterior probability of the assigned group that Nagin (2005) asks of each group.
_ADEQUATE = 0.7


def _colour(group: int) -> str:
    """Colour of a group, numbered from zero."""
    return OKABE_ITO[group % len(OKABE_ITO)]


def _dashes(group: int) -> Any:
    """Lines of groups that have to share a colour differ in their dashes."""
    return ("-", (0, (5, 2)), (0, (1, 1.5)))[group // len(OKABE_ITO) % 3]


def _own(results: TrajectoryResults, number: int) -> np.ndarray:
    """Which group of an outcome each class of the mixture has: ones; (K, groups)."""
    mixture = results.traj.assembled.mixture
    groups = mixture.groups_of[number] if mixture.groups_of else None
    return (
        np.eye(mixture.groups) if groups is None else np.eye(max(groups) + 1)[[*groups]]
    )


# -- trajectories --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Panel:
    """What one Axes shows: an outcome, or one level of a multinomial one.

    Attributes
    ----------
    results : TrajectoryResults
    grid : Grid
        Of the outcome; its time is the horizontal axis.
    curves : DataFrame
        Of `bands.trajectories`.
    level : int or None
        Code of the level.
    """

    results: TrajectoryResults
    grid: Grid
    curves: pd.DataFrame
    level: int | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome."""
        return self.grid.outcome

    @property
    def title(self) -> str:
        """The response, and its level."""
        name = self.outcome.name
        return name if self.level is None else f"{name}: {self.label}"

    @property
    def label(self) -> Any:
        """The level as the data have it."""
        return None if self.level is None else self.outcome.levels[self.level]

    @cached_property
    def posterior(self) -> np.ndarray:
        """Posterior probabilities of the outcome's groups; (units, groups)."""
        return self.results.traj.posterior @ _own(self.results, self.grid.number)

    @cached_property
    def response(self) -> np.ndarray:
        """Observed responses in the units of the curves."""
        y = self.outcome.y.cpu().numpy()
        if self.level is not None:
            return (y == self.level).astype(np.float64)
        if isinstance(self.outcome.family, Ordinal):
            return np.asarray(scores_of(self.outcome.levels))[y.astype(np.int64)]
        return y

    @cached_property
    def unit(self) -> np.ndarray:
        """Unit of each row."""
        return self.outcome.unit.cpu().numpy()

    @cached_property
    def times(self) -> np.ndarray:
        """Time of each row."""
        values = self.grid.numbers(self.grid.time)
        assert values is not None
        return values

    # -- what is observed --------------------------------------------------------------

    def means(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Means of responses, rows weighted by the posterior of their unit.

        Yields
        ------
        group, times, means : int, ndarray, ndarray
            The group is numbered from zero.
        """
        fitted, outcome = self.results.traj, self.outcome
        bins = self._bins()
        rows = np.ones(len(bins))
        if fitted.study.units.weights is not None:
            rows = fitted.study.units.weights.cpu().numpy()[self.unit]
        trials = rows if outcome.size is None else rows * outcome.size.cpu().numpy()
        for k, posterior in enumerate(self.posterior.T):
            own = posterior[self.unit]
            mass = np.bincount(bins, own)
            weight = np.bincount(bins, own * trials)
            held = mass >= _LEAST
            totals = (
                np.bincount(bins, own * trials * values)[held] / weight[held]
                for values in (self.times, self.response)
            )
            yield k, *totals

    def _bins(self) -> np.ndarray:
        """Return the number of each row's time, or of the bin that it is in."""
        distinct, number = np.unique(self.times, return_inverse=True)
        if len(distinct) <= _TIMES:
            return number
        inner = np.quantile(self.times, np.linspace(0, 1, _BINS + 1)[1:-1])
        return np.searchsorted(np.unique(inner), self.times, side="right")

    def lines(self, most: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Lines of units in the order of time, by the group that they are assigned to.

        Yields
        ------
        group, lines : int, list of ndarray, each (rows, 2)
            The group is numbered from zero.
        """
        assigned = self.posterior.argmax(1)
        present = np.unique(self.unit)
        if len(present) > most:
            present = np.random.default_rng(0).choice(present, most, replace=False)
        rows = np.flatnonzero(np.isin(self.unit, present))
        rows = rows[np.lexsort([self.times[rows], self.unit[rows]])]
        points = np.column_stack([self.times, self.response])[rows]
        unit = self.unit[rows]
        ends = np.flatnonzero(np.diff(unit)) + 1
        found: dict[int, list[np.ndarray]] = {}
        for line, first in zip(
            np.split(points, ends), unit[np.r_[0, ends]], strict=True
        ):
            found.setdefault(int(assigned[first]), []).append(line)
        yield from sorted(found.items())

    # -- drawing -----------------------------------------------------------------------

    def draw(self, ax: Axes, data: str | None, most: int) -> None:
        """Draw curves and bands over the data."""
        if data == "spaghetti":
            self._draw_lines(ax, most)
        if data == "means":
            self._draw_means(ax)
        halo = None
        if data == "spaghetti":
            # Curves stand out from lines of their own colour.
            from matplotlib.patheffects import Normal, Stroke

            halo = [Stroke(linewidth=4.0, foreground="white"), Normal()]
        for group, curve in self.curves.groupby("group"):
            k = int(group) - 1
            x = curve[self._column].to_numpy()
            if "lower" in curve:
                ax.fill_between(
                    x, curve["lower"], curve["upper"], color=_colour(k), alpha=0.18,
                    linewidth=0, zorder=2,
                )  # fmt: skip
            ax.plot(
                x, curve["estimate"], color=_colour(k), linewidth=2.0,
                linestyle=_dashes(k), path_effects=halo, zorder=4,
            )  # fmt: skip
        ax.set_xlabel(str(self.grid.time))
        ax.margins(x=0.02)

    @property
    def _column(self) -> str:
        """Column of the curves that holds the time."""
        name = str(self.grid.time)
        return f"{name}.data" if f"{name}.data" in self.curves else name

    def _draw_means(self, ax: Axes) -> None:
        for k, x, mean in self.means():
            ax.plot(
                x, mean, linestyle="none", marker=_MARKERS[k % len(_MARKERS)],
                color=_colour(k), markersize=5, markeredgecolor="white",
                markeredgewidth=0.6, zorder=5,
            )  # fmt: skip

    def _draw_lines(self, ax: Axes, most: int) -> None:
        from matplotlib.collections import LineCollection

        lines = dict(self.lines(most))
        count = sum(map(len, lines.values()))
        alpha = float(np.clip(4 / np.sqrt(max(count, 1)), 0.15, 0.6))
        for k, own in lines.items():
            drawn = LineCollection(own, colors=_colour(k), linewidths=0.6, zorder=1)
            drawn.set(alpha=alpha, rasterized=count > 200)
            ax.add_collection(drawn)
        ax.autoscale_view()


def _panels(
    results: TrajectoryResults, outcome: str | None, time: str | None, **bands: Any
) -> list[_Panel]:
    """Return what the Axes show, one after the other."""
    study, found = results.model.study, []
    for number in numbers_of(study, outcome):
        grid = Grid(study, number, time)
        name = study.outcomes[number].name
        if grid.time is None:
            raise ValueError(
                f"the trajectory of {name} has no column that changes over time; name "
                "the one to draw it along with time=."
            )
        curves = trajectories(
            results, outcome=name, time=grid.time, smooth=True, **bands
        )
        if not isinstance(study.outcomes[number].family, Multinomial):
            found.append(_Panel(results, grid, curves))
            continue
        for code, level in enumerate(study.outcomes[number].levels):
            own = curves[curves["level"] == level]
            found.append(_Panel(results, grid, own, code))
    return found


def plot(
    results: TrajectoryResults,
    data: str | None = "means",
    *,
    interval: str | None = "pointwise",
    level: float = 0.95,
    over: str = "group",
    outcome: str | None = None,
    time: str | None = None,
    most: int = 300,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Draw the trajectories of the groups with their bands.

    Parameters
    ----------
    results : TrajectoryResults
    data : {"means", "spaghetti", None}
        What stands behind: means of the observed responses, weighted by posterior
        probability, at each time (in 12 bins where there are more than 30 times); lines
        of units in the colour of the group they are assigned to; or nothing.
    interval, level, over
        Of the bands; see `bands.trajectories`.
    outcome : str, optional
        One of several responses; all, each in its own Axes, by default.
    time : str, optional
        Column of the horizontal axis: by default the first numeric one in the formula
        that changes within units. Other columns are held as in `bands.trajectories`.
    most : int, default 300
        Largest number of units drawn as lines, taken at random (always the same).
    ax : Axes, optional
        Where to draw, for a single panel; a new figure by default.

    Returns
    -------
    Axes, or ndarray of Axes where there are several outcomes or levels

    Raises
    ------
    ValueError
        For an unknown option, and where no column changes over time.
    """
    if data not in DATA:
        raise ValueError(f"data={data!r} must be one of {list(DATA)}.")
    if most < 1:
        raise ValueError(f"most={most!r} must be at least 1.")
    panels = _panels(results, outcome, time, interval=interval, level=level, over=over)
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"ax= has room for one panel; choose outcome= from "
            f"{list(results.model.study.plan.names)}."
        )
    apart = results.model.study.plan.grouping is not None
    columns = 1 if apart else _columns(len(panels))
    axes: Sequence[Axes]
    axes = (
        [_axes(ax, (6.4, 3.8))] if len(panels) == 1 else _grid_of(len(panels), columns)
    )
    for j, (place, panel) in enumerate(zip(axes, panels, strict=True)):
        panel.draw(place, data, most)
        if len(panels) == 1:
            place.set_ylabel(panel.title)
        else:
            place.set_title(panel.title, loc="left", fontsize=10)
        # One legend beside the first row; one each where outcomes differ in groups.
        if apart or j == columns - 1:
            place.legend(
                handles=_handles(results, panel.grid.number, data == "means"),
                frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0),
                borderaxespad=0.0,
            )  # fmt: skip
    return axes[0] if len(panels) == 1 else np.asarray(axes, dtype=object)


def _columns(count: int) -> int:
    """Panels side by side: at most three, and four in two rows of two."""
    return 2 if count == 4 else min(count, 3)


def _grid_of(
    count: int, columns: int, width: float = 3.3, height: float = 3.0
) -> list[Axes]:
    """Make Axes for panels in rows."""
    rows = -(-count // columns)
    # A single column is wider than those that stand side by side.
    size = (1.6 + max(width * columns, 4.8), 0.4 + height * rows)
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(wspace=0.05, hspace=0.06)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return [_axes(ax, (0, 0)) for ax in axes.flat[:count]]


def _handles(results: TrajectoryResults, number: int, marked: bool) -> list[Any]:
    """Entries of the legend: the groups of an outcome, with their shares."""
    from matplotlib.lines import Line2D

    shares = results.group_probs["share"].to_numpy() @ _own(results, number)
    return [
        Line2D(
            [], [], color=_colour(k), linewidth=2.0, linestyle=_dashes(k),
            marker=_MARKERS[k % len(_MARKERS)] if marked else None, markersize=5,
            markeredgecolor="white", markeredgewidth=0.6,
            label=f"Group {k + 1} ({100 * share:.1f}%)",
        )
        for k, share in enumerate(shares)
    ]  # fmt: skip


# -- posterior probabilities -----------------------------------------------------------


def plot_posterior(results: TrajectoryResults) -> np.ndarray:
    """Draw histograms of the posterior probability of the assigned group.

    Parameters
    ----------
    results : TrajectoryResults

    Returns
    -------
    ndarray of Axes
        One for each group: the units assigned to it, by how certain that is. The mean
        is to be above 0.7 (dashed) in every group (Nagin 2005).
    """
    posterior = results.traj.posterior
    assigned, top = posterior.argmax(1), posterior.max(1)
    groups = posterior.shape[1]
    low = np.floor(20 / groups) / 20 if groups > 1 else 0.0
    edges = np.linspace(low, 1.0, round((1.0 - low) / 0.05) + 1)
    columns = _columns(groups)
    axes = _grid_of(groups, columns, 2.7, 2.6)
    for k, ax in enumerate(axes):
        own = top[assigned == k]
        ax.hist(own, edges, color=_colour(k), edgecolor="white", linewidth=0.6)
        ax.axvline(_ADEQUATE, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        mean = f", mean {own.mean():.2f}" if len(own) else ""
        units = "unit" if len(own) == 1 else "units"
        title = f"Group {k + 1}: {len(own):,} {units}{mean}"
        ax.set_title(title, loc="left", fontsize=9)
        ax.set_xlim(low, 1.0)
        ax.yaxis.get_major_locator().set_params(integer=True)
        if k % columns == 0:
            ax.set_ylabel("Units")
        if k + columns >= groups:
            ax.set_xlabel("Posterior probability")
    return np.asarray(axes, dtype=object)


# -- how many groups -----------------------------------------------------------------


_CRITERIA = {
    "aic": "AIC", "bic": "BIC", "bic_units": "BIC (units)", "bic_rows": "BIC (rows)",
    "caic": "CAIC", "sabic": "SABIC", "icl": "ICL",
    "cv_error": "Cross-validated error",
}  # fmt: skip


def _groups(count: float) -> str:
    return "group" if count == 1 else "groups"


def plot_selection(
    table: pd.DataFrame, criterion: str = "bic_units", ax: Axes | None = None
) -> Axes:
    """Draw a criterion against the number of groups.

    Parameters
    ----------
    table : DataFrame
        A column (or the index) "groups", and one of the criterion, as `traj_select`
        gives them. Several rows of one number of groups (other orders) are all drawn;
        the line goes through the best.
    criterion : str, default "bic_units"
        A column of which smaller is better.
    ax : Axes, optional

    Returns
    -------
    Axes
        The best row of all is marked.

    Raises
    ------
    ValueError
        For a missing column, or where the criterion has no finite value.
    """
    frame = table if "groups" in table else table.reset_index()
    _need(frame, ["groups", criterion])
    frame = frame[["groups", criterion]].astype(float)
    frame = frame[np.isfinite(frame).all(axis=1)].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"{criterion} has no finite value.")
    best = frame.groupby("groups")[criterion].min()
    ax = _axes(ax, (4.6, 3.4))
    ax.plot(best.index, best, color=OKABE_ITO[0], linewidth=1.6, zorder=2)
    ax.scatter(
        frame["groups"], frame[criterion], s=26, color=OKABE_ITO[0],
        edgecolor="white", linewidth=0.6, zorder=3,
    )  # fmt: skip
    k = best.idxmin()
    name = _CRITERIA.get(criterion, criterion)
    ax.scatter(
        [k], [best[k]], s=70, color=OKABE_ITO[1], marker="D", edgecolor="white",
        linewidth=0.8, zorder=4, label=f"lowest {name}: {k:g} {_groups(k)}",
    )  # fmt: skip
    ax.set_xticks(best.index)
    ax.margins(x=0.06, y=0.1)
    ax.grid(axis="y", color="0.9", linewidth=0.6)
    ax.set_xlabel("Number of groups")
    ax.set_ylabel(name)
    ax.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), handletextpad=0.2,
        borderaxespad=0.0,
    )  # fmt: skip
    return ax


# -- assignments from model to model ---------------------------------------------------

#: Gap between groups, and least distance of labels, as shares of the height.
_GAP, _ROOM = 0.03, 0.055
_WIDTH = 0.09


def plot_alluvial(*results: TrajectoryResults, ax: Axes | None = None) -> Axes:
    """Draw where the units of each group go as groups are added.

    Parameters
    ----------
    *results : TrajectoryResults
        Two fits or more, from left to right, usually of K, K + 1 ... groups; units are
        matched by id, and those that are not in all fits are left out.
    ax : Axes, optional

    Returns
    -------
    Axes
        A column for each fit, group 1 at the bottom; ribbons have the colour of the
        group that units come from.

    Raises
    ------
    ValueError
        For fewer than two fits, and fits without common units.
    """
    if len(results) < 2:
        raise ValueError("plot_alluvial needs two fits or more.")
    table = pd.concat([r.assign() for r in results], axis=1, join="inner")
    if table.empty:
        raise ValueError("these fits have no units in common.")
    groups = table.to_numpy() - 1
    sizes = [r.traj.groups for r in results]
    ax = _axes(ax, (1.6 + 2.6 * (len(results) - 1) + 1.6, 4.2))
    unit = 1.0 / len(groups)
    tops = []
    for j, count in enumerate(sizes):
        held = np.bincount(groups[:, j], minlength=count) * unit
        # Every column is as tall as the one with most groups.
        gap = _GAP * (max(sizes) - 1) / max(count - 1, 1)
        low = np.r_[0.0, np.cumsum(held + gap)[:-1]]
        low += 0.5 * (1 + _GAP * (max(sizes) - 1) - (low[-1] + held[-1]))
        tops.append(low)
        _draw_column(ax, j, low, held, len(groups), j in (0, len(sizes) - 1))
        ax.text(j, -0.04, f"{count} {_groups(count)}", ha="center", va="top")
    for j in range(len(sizes) - 1):
        flows = np.zeros((sizes[j], sizes[j + 1]))
        np.add.at(flows, (groups[:, j], groups[:, j + 1]), unit)
        _draw_flows(ax, j, flows, tops[j], tops[j + 1])
    ax.set_axis_off()
    ax.set_xlim(-0.55, len(sizes) - 0.45)
    ax.set_ylim(-0.1, 1.02 + _GAP * (max(sizes) - 1))
    return ax


def _draw_column(
    ax: Axes, j: int, low: np.ndarray, held: np.ndarray, units: int, outer: bool
) -> None:
    """Draw the groups of one fit, with labels beside the first and last columns."""
    from matplotlib.patches import Rectangle

    for k, (bottom, height) in enumerate(zip(low, held, strict=True)):
        ax.add_patch(
            Rectangle((j - _WIDTH / 2, bottom), _WIDTH, height, color=_colour(k),
                      linewidth=0, zorder=3)
        )  # fmt: skip
        if height > _ROOM:
            ax.text(
                j, bottom + height / 2, str(k + 1), color="white", ha="center",
                va="center", fontsize=9, fontweight="bold", zorder=4,
            )  # fmt: skip
    if not outer:
        return
    side = -1 if j == 0 else 1
    for k, y in enumerate(_apart(low + held / 2, _ROOM)):
        ax.text(
            j + side * (_WIDTH / 2 + 0.03), y,
            f"Group {k + 1}: {round(held[k] * units):,}",
            ha="right" if side < 0 else "left", va="center", fontsize=9,
        )  # fmt: skip


def _apart(y: np.ndarray, room: float) -> np.ndarray:
    """Move ascending positions so that no two are nearer than `room`, by least squares.

    With ``z = y - room * rank`` the condition is that z ascends: isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    steps = room * np.arange(len(y))
    return isotonic_regression(y - steps).x + steps


def _draw_flows(
    ax: Axes, j: int, flows: np.ndarray, left: np.ndarray, right: np.ndarray
) -> None:
    """Draw the ribbons between two columns; small ones lie over large ones."""
    start = left[:, None] + np.cumsum(flows, axis=1) - flows
    end = right[None, :] + np.cumsum(flows, axis=0) - flows
    x = np.linspace(0.0, 1.0, 60)
    bend = x * x * (3.0 - 2.0 * x)
    inner = j + _WIDTH / 2 + x * (1.0 - _WIDTH)
    for at in np.argsort(-flows, axis=None, kind="stable"):
        k, g = np.unravel_index(at, flows.shape)
        if flows[k, g] == 0:
            continue
        low = start[k, g] + (end[k, g] - start[k, g]) * bend
        ax.fill_between(
            inner, low, low + flows[k, g], color=_colour(int(k)), alpha=0.45,
            linewidth=0, zorder=2,
        )  # fmt: skip
