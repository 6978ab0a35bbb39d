"""Pictures of hierarchical regressions: Axes in, Axes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...plots import _GREY, OKABE_ITO, _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import HierarchicalResults

__all__ = ["plot_path"]

#: As many groups as this have lines of their own colours, and names.
_NAMED = len(OKABE_ITO)


def plot_path(
    results: HierarchicalResults, block: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how the deviations of a block grow as the penalty falls.

    Parameters
    ----------
    results : HierarchicalResults
    block : str, optional
        As in `HierarchicalResults.blocks`, ``"x | g"``; the first by default.
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        Penalties fall from left to right; the dashed line is the one of the fit.
    """
    frame = results.path_deviations(block)
    block = results.blocks.index[0] if block is None else block
    ax = _axes(ax, (5.6, 3.8))
    few = frame.shape[1] <= _NAMED
    for j, level in enumerate(frame.columns):
        colour = OKABE_ITO[j] if few else OKABE_ITO[0]
        ax.plot(
            frame.index, frame[level], color=colour, lw=1.4 if few else 0.7,
            alpha=1.0 if few else 0.5, label=str(level),
        )  # fmt: skip
    ax.axhline(0, color=_GREY, lw=0.8)
    ax.axvline(results.penalty, color=_GREY, lw=1.0, ls="--")
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set(xlabel="Penalty", ylabel=f"Deviation, {block}")
    if few:
        ax.legend(frameon=False, title=frame.columns.name, fontsize="small")
    return ax
