"""What a hierarchical regression gives back."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ...errors import ModelError
from ...prediction import row_labels
from ...summary import Summary
from ..mixed.rows import fixed_part, random_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .choice import Choice
    from .model import HierarchicalRegression
    from .problems import Gaussian, Logistic, Solution

__all__ = ["HierarchicalResults"]


class HierarchicalResults:
    """Coefficients of the population and deviations by group.

    Attributes
    ----------
    model : HierarchicalRegression
    problem : Gaussian or Logistic
        What was minimised, with the weights of the deviations.
    solution : Solution
    strengths : int
        Penalties of the path.
    """

    def __init__(
        self,
        model: HierarchicalRegression,
        problem: Gaussian | Logistic,
        solution: Solution,
        choice: Choice | None,
        strengths: int,
    ) -> None:
        self.model, self.problem, self.solution = model, problem, solution
        self._choice, self.strengths = choice, strengths

    # -- estimates ---------------------------------------------------------------------

    @property
    def params(self) -> pd.Series:
        """Coefficients of the population."""
        return pd.Series(self.solution.w, self.model.design.X.names, name="population")

    @cached_property
    def _deviations(self) -> list[np.ndarray]:
        """An array (m, k) for each grouping."""
        sample = self.problem.sample
        return [
            g.scale * part
            for g, part in zip(
                sample.groups, sample.split(self.solution.u), strict=True
            )
        ]

    @property
    def deviations(self) -> pd.DataFrame:
        """Deviations by grouping and level; NaN where a column does not deviate."""
        return self._frame(self._deviations)

    def _frame(self, values: list[np.ndarray]) -> pd.DataFrame:
        parts = {
            g.name: pd.DataFrame(v, list(g.levels), list(g.columns))
            for g, v in zip(self.problem.sample.groups, values, strict=True)
        }
        return pd.concat(parts, names=["grouping", "level"])

    def coefficients(self, grouping: str | None = None) -> pd.DataFrame:
        """Coefficients of each group: population plus the deviations of a grouping.

        Parameters
        ----------
        grouping : str, optional
            Needed where there are several.

        Returns
        -------
        DataFrame
            By level; a column for each coefficient.
        """
        names = [g.name for g in self.problem.sample.groups]
        if grouping is None and len(names) == 1:
            grouping = names[0]
        if grouping not in names:
            raise ValueError(f"grouping must be one of {names}, not {grouping!r}.")
        j = names.index(grouping)
        group = self.problem.sample.groups[j]
        own = pd.DataFrame(
            self._deviations[j], pd.Index(group.levels, name=grouping), group.columns
        )
        columns = [*self.params.index, *(c for c in own if c not in self.params.index)]
        own = own.reindex(columns=columns, fill_value=0.0)
        return own + self.params.reindex(columns, fill_value=0.0)

    @cached_property
    def blocks(self) -> pd.DataFrame:
        """Deviations of each column over the levels of a grouping.

        Returns
        -------
        DataFrame
            By block, ``"x | g"``: levels, weight (mean over the levels; infinite where
            there are to be no deviations), sd, min and max of the deviations.
        """
        rows = {}
        groups = self.problem.sample.groups
        for g, values in zip(groups, self._deviations, strict=True):
            for j, label in enumerate(g.labels):
                v, scale = values[:, j], g.scale[:, j]
                weight = np.inf if not scale.all() else float((1 / scale).mean())
                rows[label] = (len(v), weight, v.std(), v.min(), v.max())
        names = ["levels", "weight", "sd", "min", "max"]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=names)
        return frame.rename_axis("block")

    # -- the fit -----------------------------------------------------------------------

    @property
    def penalty(self) -> float:
        """Strength of the penalty."""
        return self.solution.penalty

    @property
    def penalty_max(self) -> float:
        """Least strength at which the norm leaves no deviations.

        Infinite for the squared form, which never sets deviations to zero.
        """
        return self.problem.penalty_max if self.model.form == "norm" else np.inf

    @property
    def mu(self) -> float:
        """Strength of the ridge regression with the same solution.

        The solution also minimises ``|r|^2 + mu |W v|^2`` (the weighted sum of the last
        Newton step for a binomial response); infinite where all deviations are zero.
        """
        return self.solution.mu

    @property
    def objective(self) -> float:
        """Loss plus penalty."""
        return self.solution.objective

    @property
    def loss_value(self) -> float:
        """Root mean square ("norm") or mean square of the residuals, or log-loss."""
        return self.solution.loss

    @property
    def kkt_residual(self) -> float:
        """How far the conditions of a minimum are from holding, without units.

        The larger of the correlation of a column of X with the rows' derivatives, and
        the error of the condition on the deviations, relative to the penalty.
        """
        return self.solution.residual

    @property
    def converged(self) -> bool:
        """Whether the conditions of a minimum hold to 1e-6."""
        return self.kkt_residual < 1e-6

    @property
    def df(self) -> float:
        """Effective number of parameters, at the ridge regression's strength."""
        return self.solution.df

    @property
    def nobs(self) -> int:
        """Number of rows."""
        return self.problem.sample.n

    @property
    def choice(self) -> pd.DataFrame | None:
        """Table by which the penalty was chosen, if it was."""
        return None if self._choice is None else self._choice.table.copy()

    @property
    def rule(self) -> str | None:
        """How the penalty was chosen, if it was."""
        return None if self._choice is None else self._choice.rule

    # -- the path ----------------------------------------------------------------------

    @cached_property
    def _path(self) -> list[Solution]:
        """Solutions from the strongest penalty on; ends where none can be computed."""
        out: list[Solution] = []
        for penalty in self.problem.grid(self.model.form, self.strengths):
            last = out[-1] if out else None
            try:
                found = self.problem.solve(float(penalty), self.model.form, last)
            except ModelError:
                if not out:
                    raise
                break
            out.append(found)
        return out

    @property
    def path(self) -> pd.DataFrame:
        """Minima over a grid of penalties, the strongest first.

        Returns
        -------
        DataFrame
            By penalty: mu, df, loss, objective, kkt_residual, size (the norm of the
            weighted deviations), gcv (gaussian), and the population's coefficients.
        """
        rows = []
        for s in self._path:
            row = {
                "mu": s.mu, "df": s.df, "loss": s.loss, "objective": s.objective,
                "kkt_residual": s.residual, "size": float(np.linalg.norm(s.u)),
            }  # fmt: skip
            if self.model.family_name == "gaussian":
                row["gcv"] = self.problem.gcv(s)
            row |= dict(zip(self.model.design.X.names, s.w.tolist(), strict=True))
            rows.append(row)
        index = pd.Index([s.penalty for s in self._path], name="penalty")
        return pd.DataFrame(rows, index=index)

    def path_deviations(self, block: str | None = None) -> pd.DataFrame:
        """Deviations of one block over the grid of penalties.

        Parameters
        ----------
        block : str, optional
            As in `blocks`; the first by default.

        Returns
        -------
        DataFrame
            By penalty; a column for each level.
        """
        sample = self.problem.sample
        places = {
            label: (i, j)
            for i, g in enumerate(sample.groups)
            for j, label in enumerate(g.labels)
        }
        block = next(iter(places)) if block is None else block
        if block not in places:
            raise ValueError(f"block must be one of {list(places)}, not {block!r}.")
        i, j = places[block]
        g = sample.groups[i]
        values = [(g.scale * sample.split(s.u)[i])[:, j] for s in self._path]
        index = pd.Index([s.penalty for s in self._path], name="penalty")
        return pd.DataFrame(values, index, pd.Index(g.levels, name=g.name))

    def plot_path(self, block: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the deviations of a block over penalties; see `pictures.plot_path`."""
        from .pictures import plot_path

        return plot_path(self, block, ax)

    # -- predictions -------------------------------------------------------------------

    def predict(
        self,
        data: Any = None,
        *,
        which: str = "mean",
        population: bool = False,
        offset: Any = None,
    ) -> pd.Series:
        """Predict the response.

        Parameters
        ----------
        data : frame or mapping, optional
            New data; those of the fit when None. Groups that were not in the data of
            the fit get the population's coefficients; rows with missing values NaN.
        which : {"mean", "linear"}, default "mean"
            "linear" is the log-odds of a binomial response.
        population : bool, default False
            Without deviations; the grouping columns need not be there.
        offset : optional
            In place of that of the fit.

        Returns
        -------
        Series
        """
        if which not in ("mean", "linear"):
            raise ValueError(f"which must be 'mean' or 'linear', not {which!r}.")
        model, sample = self.model, self.problem.sample
        if data is None:
            if offset is not None:
                raise ValueError("offset goes with new data.")
            u = np.zeros(sample.q) if population else self.solution.u
            eta = sample.linear(self.solution.w, u)
            eta = eta if sample.offset is None else eta + sample.offset
            return pd.Series(self._mean(eta, which), model.design.index, name=which)
        design = model.new_design(data, offset, population)
        eta = fixed_part(design, self.solution.w, model.compute)
        if not population:
            modes = model.by_term(self._deviations)
            eta = eta + random_part(design, modes, model.compute)
        values = torch.from_numpy(self._mean(eta, which))
        return row_labels(design, data)(values, which)

    def _mean(self, eta: np.ndarray, which: str) -> np.ndarray:
        if which == "linear" or self.model.family_name == "gaussian":
            return eta
        from scipy.special import expit

        return expit(eta)

    @property
    def fittedvalues(self) -> pd.Series:
        """Predicted means of the rows used."""
        return self.predict()

    @property
    def resid(self) -> pd.Series:
        """Outcome less the predicted mean."""
        return (self.problem.sample.y - self.fittedvalues).rename("resid")

    # -- pages -------------------------------------------------------------------------

    def glance(self) -> pd.DataFrame:
        """Return the figures of the fit in one row."""
        row = {
            "nobs": self.nobs, "df": self.df, "penalty": self.penalty, "mu": self.mu,
            "loss": self.loss_value, "objective": self.objective,
            "kkt_residual": self.kkt_residual, "converged": self.converged,
        }  # fmt: skip
        return pd.DataFrame([row])

    def summary(self) -> Summary:
        """Lay out the printed page."""
        from .page import hierarchical_summary

        return hierarchical_summary(self)

    def save(self, path: Any) -> None:
        """Not supported; raises `ModelError`."""
        raise ModelError(
            "a hierarchical regression cannot be saved: a file holds no groups. Write "
            "params and deviations as tables."
        )

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().as_html()
