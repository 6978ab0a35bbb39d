"""What simple weights give back: points, certificate, rivals, score card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ...prediction import row_labels
from ...summary import Summary
from .baselines import Row
from .cards import ScoreCard, sql_of
from .lattice import Found
from .tasks import Valued

if TYPE_CHECKING:
    from .model import SimpleWeights

__all__ = ["SimpleWeightsResults"]

# Relative distance of loss and bound below which a search counts as finished.
_SAME = 1e-9


class SimpleWeightsResults:
    """The best points found, and what is certain of them.

    Attributes
    ----------
    model : SimpleWeights
    points : Series of int
        Whole numbers by column.
    step : float
        Coefficients are points times this.
    intercept : float
    loss_value : float
        Mean squared error, or mean log-loss.
    bound : float
        No points within the bounds have a lower loss, to rounding errors.
    nodes : int
        Partial choices the exact search looked at.
    """

    def __init__(
        self, model: SimpleWeights, found: Found, valued: Valued, bound: float,
        rows: Sequence[Row],
    ) -> None:  # fmt: skip
        self.model, self.nodes, self.bound = model, found.nodes, bound
        self.points = pd.Series(
            found.z.astype(np.int64), pd.Index(model.names, name="column"),
            name="points",
        )  # fmt: skip
        self.step, self.intercept = valued.step, valued.intercept
        self.loss_value = valued.loss
        self._rows = tuple(rows)

    # -- certificate -------------------------------------------------------------------

    @property
    def gap(self) -> float:
        """Loss less its bound: zero where the search was exhaustive."""
        return max(self.loss_value - self.bound, 0.0)

    @property
    def optimal(self) -> bool:
        """Whether no other points can be better."""
        return self.gap <= _SAME * max(abs(self.loss_value), 1e-300)

    # -- coefficients ------------------------------------------------------------------

    @property
    def params(self) -> pd.Series:
        """Intercept, and points times the step."""
        values = np.r_[self.intercept, self.step * self.points.to_numpy()]
        return pd.Series(values, ["Intercept", *self.points.index])

    @property
    def terms(self) -> int:
        """Columns whose points are not zero."""
        return int((self.points != 0).sum())

    def comparison(self) -> pd.DataFrame:
        """Return these points beside simpler ways.

        Returns
        -------
        DataFrame
            By method: loss, excess (over real coefficients), terms, step, intercept,
            and points (coefficients over the step) of each column. "select, regress,
            round" has a step of its own.
        """
        least = self._rows[0].valued.loss
        rows = [
            {
                "method": row.method, "loss": row.valued.loss,
                "excess": row.valued.loss - least,
                "terms": int(np.count_nonzero(np.abs(row.points) > 1e-9)),
                "step": row.valued.step, "intercept": row.valued.intercept,
                **dict(zip(self.points.index, map(float, row.points), strict=True)),
            }
            for row in self._rows
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index("method")

    # -- predictions -------------------------------------------------------------------

    def score(self, data: Any = None) -> pd.Series:
        """Total points of each row.

        Parameters
        ----------
        data : frame or mapping, optional
            New data; by default the rows of the fit.

        Returns
        -------
        Series
            NaN for rows of new data with missing values.
        """
        design = self.model.regression.design
        new = design if data is None else design.spec.rebuild(data)
        at = [list(design.X.names).index(name) for name in self.model.names]
        X = new.X.to_dense(self.model.regression.compute.on_cpu()).double()[:, at]
        total = X @ torch.from_numpy(self.points.to_numpy(dtype=float))
        if data is None:
            return pd.Series(total.numpy(), design.index, name="score")
        return row_labels(new, data)(total, "score")

    def predict(self, data: Any = None, which: str = "mean") -> pd.Series:
        """Predict the outcome, or the probability that it is one.

        Parameters
        ----------
        data : frame or mapping, optional
            New data; by default the rows of the fit.
        which : {"mean", "linear"}, default "mean"

        Returns
        -------
        Series
        """
        if which not in ("mean", "linear"):
            raise ValueError(f"which must be 'mean' or 'linear', not {which!r}.")
        return self._of_score(self.score(data), which).rename("predicted")

    def _of_score(self, score: pd.Series, which: str = "mean") -> pd.Series:
        eta = self.intercept + self.step * score
        if which == "linear" or self.model.loss == "squared":
            return eta
        return 1.0 / (1.0 + np.exp(-eta))

    def risk_table(self, most: int = 20) -> pd.DataFrame:
        """Return what totals predict, and what was observed.

        Parameters
        ----------
        most : int, default 20
            With more distinct totals these are cut into at most so many groups of
            about equal numbers of rows.

        Returns
        -------
        DataFrame
            By total (or its range): rows, predicted, observed; means by the weights
            of the model.
        """
        score = self.score().round(10)
        if isinstance(most, bool) or most < 2:
            raise ValueError(f"most must be 2 or more, not {most!r}.")
        o = self.model.regression.objective
        w = np.ones(len(score)) if o.weights is None else o.weights.cpu().numpy()
        whole = bool((score == score.round()).all())
        keys: Any = score.astype(int) if whole else score
        if keys.nunique() > most:
            keys = pd.qcut(score, most, duplicates="drop").astype(str)
            order = score.groupby(keys.to_numpy()).mean().sort_values().index
        else:
            order = pd.Index(np.unique(keys))
        frame = pd.DataFrame({
            "key": keys.to_numpy(), "w": w,
            "predicted": w * self.predict().to_numpy(),
            "observed": w * o.y.cpu().numpy(),
        })  # fmt: skip
        groups = frame.groupby("key")
        sums = groups[["w", "predicted", "observed"]].sum().loc[order]
        return pd.DataFrame(
            {
                "rows": groups.size().loc[order].to_numpy(),
                "predicted": (sums["predicted"] / sums["w"]).to_numpy(),
                "observed": (sums["observed"] / sums["w"]).to_numpy(),
            },
            index=pd.Index(order, name="total"),
        )

    # -- score card --------------------------------------------------------------------

    def score_card(self, most: int = 20) -> ScoreCard:
        """Return the points and what their totals mean; prints as text and HTML."""
        note = f"Predicted: {self._equation('total')}."
        return ScoreCard(
            self._points_table(), self.risk_table(most), self.model.formula_text, note
        )

    def _equation(self, total: str) -> str:
        inner = f"{self.intercept:.6g} + {self.step:.6g} * {total}"
        return inner if self.model.loss == "squared" else f"1 / (1 + exp(-({inner})))"

    def _points_table(self) -> pd.DataFrame:
        design = self.model.regression.design
        names = list(design.X.names)
        X = self.model.regression.objective.X.cpu().numpy()
        at = [names.index(name) for name in self.points.index]
        frame = pd.DataFrame(
            {
                "points": self.points.to_numpy(),
                "from": X[:, at].min(axis=0), "to": X[:, at].max(axis=0),
            },
            index=self.points.index.rename(None),
        )  # fmt: skip
        return frame[frame["points"] != 0]

    def to_sql(self, which: str = "mean") -> str:
        """Return an expression of SQL that predicts.

        A row with a missing number gives NULL; a level that the data of the fit did
        not have counts as the reference level.

        Parameters
        ----------
        which : {"mean", "linear", "score"}, default "mean"
            "mean" of a log-loss needs the function EXP.

        Raises
        ------
        ModelError
            If a column is computed in the formula, as ``log(x)`` is.
        """
        if which not in ("mean", "linear", "score"):
            raise ValueError(
                f"which must be 'mean', 'linear' or 'score', not {which!r}."
            )
        table = self.model.regression.design.spec.table
        assert table is not None
        total = sql_of(list(self.points.index), self.points.to_numpy(), table.full)
        if which == "score":
            return total
        linear = f"{self.intercept!r} + {self.step!r} * ({total})"
        if which == "linear" or self.model.loss == "squared":
            return linear
        return f"1.0 / (1.0 + EXP(-({linear})))"

    # -- page --------------------------------------------------------------------------

    def summary(self) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import simple_summary

        return simple_summary(self)

    def __repr__(self) -> str:
        listed = ", ".join(f"{n}: {v}" for n, v in self.points.items() if v)
        return f"<SimpleWeightsResults: {listed or 'no points'}>"

    def _repr_html_(self) -> str:
        return self.summary().as_html()
