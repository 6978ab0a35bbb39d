"""Predictions, and linear combinations of parameters, with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .design import Batch, Design
from .summary import Summary, coefficient_table

if TYPE_CHECKING:
    from .results import Results

__all__ = [
    "ContrastResults",
    "PredictionResults",
    "delta_variance",
    "row_labels",
    "slopes",
]


@dataclass(frozen=True, eq=False)
class ContrastResults:
    """Estimates and tests of linear combinations of parameters.

    Attributes
    ----------
    frame : DataFrame
        Columns coef, std err, t or z, pvalue, lower, upper.
    use_t : bool
    conf_level : float
    """

    frame: pd.DataFrame
    use_t: bool
    conf_level: float

    @property
    def effect(self) -> np.ndarray:
        """Estimates."""
        return self.frame["coef"].to_numpy()

    @property
    def sd(self) -> np.ndarray:
        """Standard errors."""
        return self.frame["std err"].to_numpy()

    @property
    def tvalue(self) -> np.ndarray:
        """Statistics."""
        return self.frame.iloc[:, 2].to_numpy()

    @property
    def pvalue(self) -> np.ndarray:
        """Two-sided p-values."""
        return self.frame["pvalue"].to_numpy()

    def conf_int(self) -> np.ndarray:
        """Intervals, shape (combinations, 2)."""
        return self.frame[["lower", "upper"]].to_numpy()

    def summary(self) -> Summary:
        """Return the table."""
        f = self.frame
        table = coefficient_table(
            f["coef"], f["std err"], f.iloc[:, 2], f["pvalue"],
            f[["lower", "upper"]], self.use_t, conf_level=self.conf_level,
        )  # fmt: skip
        return Summary("Linear combinations of parameters", "", (table,))

    def __repr__(self) -> str:
        return self.summary().as_text()


class PredictionResults:
    """Predicted means with standard errors and intervals.

    Attributes
    ----------
    results : Results
    predicted : DataFrame
        Columns mean, mean_se, linear, linear_se.
    """

    def __init__(self, results: Results, predicted: pd.DataFrame) -> None:
        self.results, self.predicted = results, predicted

    @property
    def predicted_mean(self) -> np.ndarray:
        """Predicted means."""
        return self.predicted["mean"].to_numpy()

    @property
    def se_mean(self) -> np.ndarray:
        """Standard errors of the means, by the delta method."""
        return self.predicted["mean_se"].to_numpy()

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Confidence intervals of the means, shape (rows, 2)."""
        frame = self.summary_frame(alpha)
        return frame[["mean_ci_lower", "mean_ci_upper"]].to_numpy()

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """Return means, standard errors and intervals.

        Parameters
        ----------
        alpha : float, default 0.05

        Returns
        -------
        DataFrame
            Columns mean, mean_se, mean_ci_lower, mean_ci_upper; for least squares also
            obs_ci_lower, obs_ci_upper, the interval of a new observation. With a
            single predictor the interval is made for the linear predictor and brought
            through the link, so that it stays in the range of the mean.
        """
        results, p = self.results, self.predicted
        q = results._quantile(alpha)
        out = pd.DataFrame({"mean": p["mean"], "mean_se": p["mean_se"]})
        if len(results.model.layout) == 1:
            ends = [
                results.model.mean(
                    torch.tensor((p["linear"] + s * q * p["linear_se"]).to_numpy())
                )
                for s in (-1, 1)
            ]
            low, high = (e.numpy() for e in ends)
            out["mean_ci_lower"] = np.minimum(low, high)
            out["mean_ci_upper"] = np.maximum(low, high)
        else:
            out["mean_ci_lower"] = p["mean"] - q * p["mean_se"]
            out["mean_ci_upper"] = p["mean"] + q * p["mean_se"]
        variance = results._new_variance()
        if variance is not None:
            half = q * np.sqrt(p["mean_se"] ** 2 + variance)
            out["obs_ci_lower"], out["obs_ci_upper"] = (
                p["mean"] - half,
                p["mean"] + half,
            )
        return out


def row_labels(design: Design, data: Any) -> Callable[[Tensor, str], pd.Series]:
    """Return what labels values of a design's rows as the new data they came from.

    Parameters
    ----------
    design : Design
        New data, read; rows with missing values are not in it and get NaN.
    data : frame or mapping
        The new data.

    Returns
    -------
    callable
        From a tensor of shape (n,) and a name to a Series.
    """
    framed = isinstance(data, pd.DataFrame)
    index = data.index if framed else pd.RangeIndex(design.n_given)

    def label(values: Tensor, name: str) -> pd.Series:
        if design.rows is None:
            return pd.Series(values.numpy(), index, name=name)
        out = np.full(design.n_given, np.nan)
        out[design.rows] = values.numpy()
        return pd.Series(out, index, name=name)

    return label


def slopes(
    function: Callable[..., Tensor], etas: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a function of the linear predictors, and its slope in each."""
    etas = tuple(e.detach().requires_grad_() for e in etas)
    with torch.enable_grad():
        value = function(*etas)
        found = torch.autograd.grad(value.sum(), etas, allow_unused=True)
    filled = tuple(
        torch.zeros_like(e) if s is None else s
        for s, e in zip(found, etas, strict=True)
    )
    return value.detach(), filled


def delta_variance(
    batch: Batch,
    layout: Sequence[int],
    middle: Any,
    slopes: Sequence[Tensor],
) -> Tensor:
    """Variance of a function of the linear predictors, row by row.

    Parameters
    ----------
    batch : Batch
    layout : sequence of int
        Matrix of each linear predictor.
    middle : mapping of pairs of predictors to Tensor
        Covariances of raw coefficients, as `PredictorLikelihood` returns them.
    slopes : sequence of Tensor, each (rows,) or (functions, rows)
        Of the function in each linear predictor.
    """
    total = torch.zeros_like(slopes[0])
    for j, one in enumerate(layout):
        for k, other in enumerate(layout):
            part = batch.blocks[one].bilinear(middle[j, k], batch.blocks[other])
            total += slopes[j] * slopes[k] * part
    return total
