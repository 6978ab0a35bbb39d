"""What fairness costs: fits along the weight of a gap between groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...plots import OKABE_ITO, _axes
from .fairness import FairLoss, fair
from .losses import get_loss
from .model import LossRegression
from .objective import Objective
from .rates import MEASURES, tallied
from .results import LossResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Frontier", "fairness_frontier"]

#: From where the gap hardly counts to where hardly anything else does.
_WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SAMPLES = {"in_sample": "In sample", "out_of_sample": "Out of sample"}


@dataclass(frozen=True, eq=False)
class Frontier:
    """Fits from the most accurate to the most even.

    Attributes
    ----------
    table : DataFrame
        weight, sample, brier, accuracy, gap, nij, a rate of each group, converged; a
        row for each weight and sample. All are counted, none is of the surrogate.
    fits : tuple of LossResults
        In the order of the weights.
    measure, threshold
        See `fairness.fair`.
    """

    table: pd.DataFrame
    fits: tuple[LossResults, ...]
    measure: str
    threshold: float

    @property
    def params(self) -> pd.DataFrame:
        """Coefficients by weight."""
        weights = self.table["weight"].unique()
        return pd.DataFrame(
            [f.params for f in self.fits], index=pd.Index(weights, name="weight")
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the Brier score against the gap, with the first and the last weight.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        Axes
        """
        ax = _axes(ax, (5.2, 3.6))
        for number, (sample, label) in enumerate(_SAMPLES.items()):
            part = self.table[self.table["sample"] == sample]
            if part.empty:
                continue
            ax.plot(
                part["gap"], part["brier"], color=OKABE_ITO[number],
                marker="os"[number], ms=4, lw=1.2, label=label,
            )  # fmt: skip
            for end in (0, -1):
                ax.annotate(
                    f"{part['weight'].iloc[end]:g}",
                    (part["gap"].iloc[end], part["brier"].iloc[end]),
                    xytext=(4, 4), textcoords="offset points", fontsize=8,
                )  # fmt: skip
        rates = " or ".join(MEASURES[self.measure]).upper()
        ax.set(
            xlabel=f"Largest difference in {rates} at {self.threshold:g}",
            ylabel="Brier score", xlim=(0, None),
        )  # fmt: skip
        if self.table["sample"].nunique() > 1:
            ax.legend(frameon=False)
        return ax


def fairness_frontier(
    formula: Any,
    data: Any,
    group: str,
    *,
    threshold: float = 0.5,
    measure: str = "fpr",
    base: str = "brier",
    gap_weights: Sequence[float] = _WEIGHTS,
    width: float = 0.02,
    eval_data: Any = None,
    **options: Any,
) -> Frontier:
    """Fit `fairness.fair` with a growing weight of the gap between groups.

    Parameters
    ----------
    formula, data
        See `lossreg`.
    group, threshold, measure, base, width
        See `fairness.fair`.
    gap_weights : sequence of float, optional
        Increasing; zero is the fit of the base alone.
    eval_data : frame, optional
        Other data, in which the fits are measured too.
    **options
        penalty, lam, constraints, weights (of rows) ...: see `LossRegression`.

    Returns
    -------
    Frontier

    Notes
    -----
    The loss is not convex: each fit starts from the one before and, through the wider
    surrogates, from the first; the lower minimum counts.
    """
    steps = [float(w) for w in gap_weights]
    if not steps or sorted(set(steps)) != steps:
        raise ValueError("gap_weights must increase, and there must be one or more.")
    if refused := {"loss", "link", "loss_columns"} & set(options):
        raise ModelError(f"{sorted(refused)} are given by the frontier's own loss.")
    fits: list[LossResults] = []
    rows: list[dict[str, Any]] = []
    for weight in steps:
        loss = fair(
            group, threshold, measure=measure, weight=weight, base=base, width=width
        )
        fit = _fit(formula, data, loss, options, fits)
        fits.append(fit)
        samples = {"in_sample": fit.model.objective}
        if eval_data is not None:
            samples["out_of_sample"] = fit.model._outside(
                eval_data, fit.model.composite
            )
        for sample, objective in samples.items():
            row = {"weight": weight, "sample": sample}
            rows.append(row | _measured(fit, objective, loss))
    return Frontier(pd.DataFrame(rows), tuple(fits), measure, float(threshold))


def _fit(
    formula: Any, data: Any, loss: FairLoss, options: dict[str, Any],
    before: list[LossResults],
) -> LossResults:  # fmt: skip
    """Fit from the first fit and from the last, and keep the better."""
    model = LossRegression(formula, data, loss=loss, **options)
    if loss.surrogate.weight == 0:
        # The base alone; the gap is only looked at, for its checks.
        start = LossRegression(
            formula, data, loss=get_loss(loss.surrogate.base), **options
        )
        return model.fit("none", start=start.fit("none"), stages=())
    if not before:
        return model.fit("none")
    found = [model.fit("none", start=before[0])]
    if len(before) > 1:
        found.append(model.fit("none", start=before[-1], stages=()))
    return min(found, key=lambda f: f.objective)


def _measured(fit: LossResults, objective: Objective, loss: FairLoss) -> dict[str, Any]:
    """Count errors of a fit in a sample."""
    surrogate = loss.surrogate
    codes = objective.columns[surrogate.column].cpu().numpy()
    known = fit.model.column_levels.get(surrogate.column)
    group = np.array(known, dtype=object)[codes] if known else codes
    p = fit.model.final.function(objective.eta(fit.fit_info.x.numpy()))
    found, levels = tallied(
        objective.y.cpu().numpy(), p.cpu().numpy(), group, surrogate.threshold
    )
    row = {
        "brier": float(found.whole.brier[0]),
        "accuracy": float(found.whole.rate("accuracy")[0]),
        "gap": float(found.gap(surrogate.measure)), "nij": float(found.nij),
    }  # fmt: skip
    for rate in MEASURES[surrogate.measure]:
        for level, value in zip(levels, found.rate(rate), strict=True):
            row[f"{rate}[{level}]"] = float(value)
    return row | {"converged": fit.converged}
