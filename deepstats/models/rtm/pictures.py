"""Pictures of risk terrain models: Axes in, Axes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...plots import _GREY, OKABE_ITO, _axes, _need
from .geometry import lines_of, rings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import RiskTerrainResults

__all__ = ["plot_hits", "plot_map"]

#: Dark is low: a scale that the colour-blind, and grey print, tell apart.
_SCALE = "cividis"
#: Square points of type that all units together take, and the least and most of one.
_INK, _LEAST, _MOST = 40_000.0, 1.5, 30.0


def plot_map(
    results: RiskTerrainResults,
    values: Any = "relative_risk",
    ax: Axes | None = None,
    *,
    cmap: str = _SCALE,
    label: str | None = None,
) -> Axes:
    """Draw the units coloured by risk.

    Parameters
    ----------
    results : RiskTerrainResults
    values : str or array_like, default "relative_risk"
        A column of `RiskTerrainResults.scores`, or a value for each unit used.
    ax : Axes, optional
        Where to draw; a new figure by default.
    cmap : str, default "cividis"
        A scale of matplotlib's.
    label : str, optional
        Of the scale.

    Returns
    -------
    Axes
        Polygons and lines as they are, other units as points; the riskiest on top, the
        scale logarithmic where all values are positive.

    Raises
    ------
    ValueError
        For a column that is not there, or values of another length.
    """
    from matplotlib.colors import LogNorm, Normalize

    scores = results.scores()
    if isinstance(values, str):
        _need(scores, [values])
        label, values = label or values.replace("_", " ").capitalize(), scores[values]
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(scores),):
        raise ValueError(f"values has shape {numbers.shape}; {len(scores)} units.")
    ax = _axes(ax, (6.0, 5.4))
    low, high = float(numbers.min()), float(numbers.max())
    norm = LogNorm if low > 0 and high > low else Normalize
    order = np.argsort(numbers, kind="stable")
    drawn, unit = _collection(results, order, ax)
    drawn.set(array=numbers[order][unit], cmap=cmap, norm=norm(low, high))
    ax.autoscale_view()
    ax.set_aspect("equal")
    ax.set_axis_off()
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label(label or "Value")
    if norm is LogNorm:
        bar.ax.minorticks_off()
        bar.set_ticks(_ticks(low, high))
        bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)
    return ax


def _ticks(low: float, high: float) -> np.ndarray:
    """Round numbers of a logarithmic scale, its ends where these are few."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = (1, 2, 3, 5) if high / low < 100 else (1,)
    round_ones = np.unique(np.outer(powers, steps))
    found = round_ones[(round_ones >= low * 0.999) & (round_ones <= high * 1.001)]
    return found if len(found) > 2 else np.round(np.geomspace(low, high, 4), 2)


def _collection(
    results: RiskTerrainResults, order: np.ndarray, ax: Axes
) -> tuple[Any, np.ndarray]:
    """Draw the units in order; return the collection, and the unit of each part."""
    from matplotlib.collections import LineCollection, PolyCollection

    units, rows = results.model.units, results.model.rows[order]
    shapes = [] if units.shapes is None else [units.shapes[r] for r in rows]
    for parts_of, kind, style in (
        (_outer_rings, PolyCollection, {"linewidths": 0.1, "edgecolors": "face"}),
        (lines_of, LineCollection, {"linewidths": 1.1, "capstyle": "round"}),
    ):
        parts = [list(parts_of(shape)) for shape in shapes]
        if parts and all(parts):
            drawn = kind([p for own in parts for p in own], **style)
            ax.add_collection(drawn)
            return drawn, np.repeat(np.arange(len(rows)), [len(p) for p in parts])
    size = float(np.clip(_INK / len(rows), _LEAST, _MOST))
    x, y = units.xy[rows].T
    drawn = ax.scatter(x, y, c=np.zeros(len(rows)), s=size, linewidths=0)
    drawn.set_rasterized(len(rows) > 5000)
    return drawn, np.arange(len(rows))


def _outer_rings(shape: Any) -> list[np.ndarray]:
    return [rings[0] for rings in rings_of(shape)]


def plot_hits(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how much of the crime is in the riskiest share of the area.

    Parameters
    ----------
    frame : DataFrame
        share, hit_rate and best; see `evaluation.hit_curve`.
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With the curve of a perfect map, and the line of no knowledge.
    """
    _need(frame, ["share", "hit_rate", "best"])
    ax = _axes(ax, (4.6, 3.6))
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.plot(
        frame["share"], frame["best"], color=OKABE_ITO[1], linewidth=1.4,
        linestyle=(0, (1, 1.2)), label="perfect map",
    )  # fmt: skip
    ax.plot(
        frame["share"], frame["hit_rate"], color=OKABE_ITO[0], linewidth=1.8,
        label="this map",
    )  # fmt: skip
    ax.set_xlabel("Share of the area, the riskiest first")
    ax.set_ylabel("Share of the crime")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.01)
    ax.legend(frameon=False, loc="lower right")
    return ax
