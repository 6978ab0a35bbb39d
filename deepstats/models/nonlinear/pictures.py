"""Pictures of a nonlinear mixed model: curves by group, and those of linear ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...plots import _GREY, OKABE_ITO, _pyplot
from ..mixed.pictures import Pictures as MixedPictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Pictures"]

#: Points of a curve.
_POINTS = 100


@dataclass(frozen=True, eq=False)
class Pictures(MixedPictures):
    """Pictures of a fitted nonlinear mixed model, as ``results.plot``.

    Parameters
    ----------
    results : NonlinearMixedResults
    """

    results: Any

    def curves(
        self, x: str | None = None, *, factor: str | None = None, top: int = 12,
        columns: int = 4,
    ) -> np.ndarray:  # fmt: skip
        """Draw the curve of every group through its data, beside the typical one.

        Parameters
        ----------
        x : str, optional
            Covariate along the horizontal axis; by default the one of the curve with
            most values.
        factor : str, optional
            Grouping factor; by default the one with most levels.
        top : int, default 12
            How many groups, in the order of their levels.
        columns : int, default 4
            Panels in a row.

        Returns
        -------
        ndarray of Axes, one a group

        Raises
        ------
        ValueError
            For an unknown covariate or factor.
        """
        reading, data = self.results.model.reading, self._rows()
        x = self._along(data) if x is None else x
        if x not in reading.covariates:
            raise ValueError(
                f"x={x!r} is not a covariate of the curve, which are "
                f"{', '.join(reading.covariates)}."
            )
        names = list(self.results.ngroups)
        factor = names[0] if factor is None else factor
        if factor not in names:
            raise ValueError(f"no grouping factor {factor!r}; there are {names}.")
        random = next(r for r in reading.design.random if r.grouping.name == factor)
        levels = [
            j for j in range(len(random.grouping)) if (random.grouping.codes == j).any()
        ]
        levels = levels[:top]
        columns = min(columns, len(levels))
        rows = -(-len(levels) // columns)
        _, axes = _pyplot().subplots(
            rows, columns, figsize=(2.5 * columns, 2.1 * rows), sharex=True,
            sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for ax, level in zip(axes.flat, levels, strict=False):
            mine = data[random.grouping.codes == level]
            self._panel(ax, mine, x)
            ax.set_title(str(random.grouping.levels[level]), loc="left", fontsize=9)
        for ax in axes.flat[len(levels) :]:
            ax.set_visible(False)
        # The lowest panel of each column, though others stand lower beside it.
        for ax in axes.flat[max(len(levels) - columns, 0) : len(levels)]:
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
        for row in axes:
            row[0].set_ylabel(self.results.response_name)
        axes[0, 0].legend(frameon=False, fontsize=8)
        return axes.flat[: len(levels)]

    def _panel(self, ax: Axes, mine: pd.DataFrame, x: str) -> None:
        """Draw one group: its rows, its curve, and that of a typical group."""
        grid = pd.concat([mine.iloc[:1]] * _POINTS, ignore_index=True)
        grid[x] = np.linspace(mine[x].min(), mine[x].max(), _POINTS)
        response = self.results.model.rows.y.numpy()
        place = self.results.model.design.index.get_indexer(mine.index)
        ax.plot(mine[x], response[place], "o", color=_GREY, markersize=3)
        for re_form, colour, style, label in (
            ("none", OKABE_ITO[1], "--", "typical"), (None, OKABE_ITO[0], "-", "group"),
        ):  # fmt: skip
            curve = self.results.predict(grid, re_form=re_form)
            ax.plot(grid[x], curve, style, color=colour, linewidth=1.2, label=label)

    def _rows(self) -> pd.DataFrame:
        """Columns of the data that the model uses, in the rows of the fit."""
        design, table = self.results.model.design, self.results.model.design.spec.table
        if table is None or not design.index.is_unique:
            raise ModelError(
                "curves need the data of the fit, with an index of its own."
            )
        spec = design.spec
        names = dict.fromkeys(
            [*self.results.model.reading.covariates, *spec.formula.rhs.variables,
             *(v for part in spec.parts for v in part.variables)]
        )  # fmt: skip
        rows = slice(None) if design.rows is None else design.rows
        columns = {n: np.asarray(table.full(n))[rows] for n in names}
        return pd.DataFrame(columns, index=design.index)

    def _along(self, data: pd.DataFrame) -> str:
        covariates = self.results.model.reading.covariates
        if not covariates:
            raise ModelError("the curve has no covariate to be drawn along.")
        return max(covariates, key=lambda name: data[name].nunique())
