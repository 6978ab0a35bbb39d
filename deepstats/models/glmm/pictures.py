"""Pictures of a generalised linear mixed model: those of linear ones, other residuals.

Random effects are drawn as for linear models; residuals are randomised quantile ones,
which are normal where the model holds, whatever the family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...plots import _axes, _draw_quantiles, _order_statistics, _pyplot
from ..mixed.pictures import Pictures as MixedPictures
from .residuals import draw_against, plot_residuals, predicted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Pictures"]


@dataclass(frozen=True, eq=False)
class Pictures(MixedPictures):
    """Pictures of a fitted generalised linear mixed model, as ``results.plot``.

    Parameters
    ----------
    results : MixedGLMResults
    """

    results: Any

    def residuals(
        self, *, scale_location: bool = False, seed: int | None = None,
        ax: Axes | None = None,
    ) -> Axes:  # fmt: skip
        """Draw quantile residuals against predictions, with a smooth.

        Parameters
        ----------
        scale_location : bool, default False
            Draw the square roots of absolute residuals, in which a spread that changes
            with the mean shows as a slope.
        seed : int, optional
            Of the residuals' randomisation.
        ax : Axes, optional

        Returns
        -------
        Axes
        """
        values = self.results.resid_quantile(seed).to_numpy()
        fitted = predicted(self.results)
        if scale_location:
            values = np.sqrt(np.abs(values))
        ax = draw_against(_axes(ax, (5.2, 3.8)), fitted, values, self.results)
        if scale_location:
            ax.set_ylabel("√|quantile residual|")
            ax.set_title("Scale and location", loc="left")
        return ax

    def qq(
        self, of: str = "residuals", factor: str | None = None,
        term: str | None = None, *, level: float = 0.95, seed: int | None = None,
        ax: Axes | None = None,
    ) -> Axes:  # fmt: skip
        """Draw quantile residuals or random effects against normal quantiles.

        Parameters
        ----------
        of : {"residuals", "ranef"}
        factor, term : str, optional
            Which random effect; by default the first of the factor with most levels.
        level : float, default 0.95
            Of the band, for each point.
        seed : int, optional
            Of the residuals' randomisation.
        ax : Axes, optional

        Returns
        -------
        Axes
        """
        if of != "residuals":
            return super().qq(of, factor, term, level=level, ax=ax)
        sample = _order_statistics(self.results.resid_quantile(seed), level)
        ax = _draw_quantiles(sample, "Quantile residual", level, ax)
        ax.set_title("Residuals", loc="left")
        return ax

    def panels(self, seed: int | None = None) -> np.ndarray:
        """Draw residuals, their quantiles, their spread, and quantiles of effects.

        Parameters
        ----------
        seed : int, optional
            Of the residuals' randomisation.

        Returns
        -------
        ndarray of Axes, shape (2, 2)
        """
        _, axes = _pyplot().subplots(2, 2, figsize=(9.2, 7.4), layout="constrained")
        plot_residuals(self.results, seed, axes=axes[0])
        self.residuals(scale_location=True, seed=seed, ax=axes[1, 0])
        self.draw_effects(axes[1, 1])
        return axes
