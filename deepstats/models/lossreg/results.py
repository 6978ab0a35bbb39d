"""What a regression by any loss gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch

from ...bootstrap import BootstrapResults, collected
from ...errors import ModelError
from ...inference import Covariance
from ...plots import OKABE_ITO, _axes
from ...results import Results, counted, whole
from .solvers import minimise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LossResults"]

_REFUSED = ("nonrobust", "oim", "eim", "opg", "HC2", "HC3")
_BOOTSTRAP = ("reps", "seed", "groups")


class LossResults(Results):
    """Coefficients that minimise a loss."""

    # -- uncertainty -------------------------------------------------------------------

    def _covariance(
        self, cov_type: str, cov_kwds: Mapping[str, Any] | None
    ) -> Covariance:
        options, p = dict(cov_kwds or {}), len(self.names)
        if cov_type == "none":
            if options:
                raise ModelError(
                    f"cov_type='none' takes no cov_kwds: {sorted(options)}."
                )
            nothing = torch.full((p, p), torch.nan, dtype=torch.float64)
            return Covariance(nothing, "none", "none", options={})
        if cov_type == "bootstrap":
            return self._bootstrapped(options)
        if cov_type in _REFUSED:
            raise ModelError(
                f"cov_type={cov_type!r} takes the loss for a likelihood, or needs "
                "leverages; use 'HC0', 'HC1', 'cluster', 'HAC' or 'bootstrap'."
            )
        loss = self.model.objective.composite.loss
        if not loss.smooth:
            raise ModelError(
                f"the loss {loss.name} is not smooth: cov_type={cov_type!r} needs its "
                "second derivatives. Use cov_type='bootstrap'."
            )
        if not self.model.problem(self.lam).penalty.smooth:
            raise ModelError(
                "after a penalty that sets coefficients to zero or to integers "
                f"cov_type={cov_type!r} says nothing of the uncertainty; use "
                "'bootstrap' or 'none'."
            )
        found = super()._covariance(cov_type, options)
        matrix, held = found.matrix.clone(), list(self.fit_info.at_bound)
        matrix[held] = torch.nan  # at a bound Wald inference fails
        matrix[:, held] = torch.nan
        return dataclasses.replace(found, matrix=matrix)

    def _bootstrapped(self, options: dict[str, Any]) -> Covariance:
        if unknown := set(options) - set(_BOOTSTRAP):
            raise ModelError(
                f"cov_kwds {sorted(unknown)} do not go with 'bootstrap'; it takes "
                f"{_BOOTSTRAP}."
            )
        reps, groups = options.get("reps", 200), options.get("groups")
        kind = "pairs" if groups is None else "cluster"
        found = self._resample(kind, reps, groups, options.get("seed", 0), None)
        matrix = torch.from_numpy(np.cov(found.params.to_numpy(), rowvar=False))
        text = f"bootstrap ({kind}, {len(found.params)} replicates)"
        matrix = matrix.reshape(len(self.names), len(self.names))
        kept = {k: v for k, v in options.items() if k != "groups"}
        return Covariance(matrix, "bootstrap", text, options=kept)

    def bootstrap(
        self,
        kind: str = "pairs",
        replications: int = 999,
        *,
        groups: Any = None,
        seed: int | None = None,
        statistic: Callable[[pd.Series], Any] | None = None,
    ) -> BootstrapResults:
        """Fit to many resampled data sets.

        Parameters
        ----------
        kind : {"pairs", "cluster"}, default "pairs"
            Rows, or whole clusters, drawn with replacement.
        replications : int, default 999
        groups : optional
            Clusters: a column's name or values.
        seed : int, optional
        statistic : callable, optional
            From a Series of coefficients to a number or a Series.

        Warns
        -----
        ConvergenceWarning
            With the number of replicates left out because their fit did not converge.

        Notes
        -----
        The strength of a penalty is that of the fit in all replicates.
        """
        if kind not in ("pairs", "cluster"):
            raise ValueError(f"kind must be 'pairs' or 'cluster', not {kind!r}.")
        return self._resample(kind, replications, groups, seed, statistic)

    def _resample(
        self, kind: str, replications: int, groups: Any, seed: int | None,
        statistic: Callable[[pd.Series], Any] | None,
    ) -> BootstrapResults:  # fmt: skip
        if int(replications) != replications or replications < 2:
            raise ValueError(f"replications must be 2 or more, not {replications!r}.")
        if (kind == "cluster") != (groups is not None):
            raise ValueError("groups= goes with kind='cluster', and is needed there.")
        design, rng = self.likelihood.design, np.random.default_rng(seed)
        codes, units = np.arange(design.n), design.n
        if kind == "cluster":
            grouping = design.grouping(groups)
            codes, units = grouping.codes, len(grouping)
        problem, b = self.model.problem(self.lam), self.fit_info.x.numpy()
        rows = []
        for _ in range(int(replications)):
            drawn = np.bincount(rng.integers(units, size=units), minlength=units)
            part = dataclasses.replace(
                problem, objective=problem.objective.repeated(drawn[codes])
            )
            found = minimise(part, b, tol=1e-7)
            if found.converged:
                rows.append(found.b)
        frame = pd.DataFrame(np.array(rows).reshape(-1, len(b)), columns=self.names)
        return collected(
            self, kind, _no_acceleration, frame, int(replications), statistic
        )

    # -- the fit -----------------------------------------------------------------------

    @property
    def loss_value(self) -> float:
        """Mean loss in the sample, without the penalty."""
        return self.fit_info.facts["loss"]

    @property
    def objective(self) -> float:
        """Mean loss plus penalty."""
        return self.fit_info.facts["objective"]

    @property
    def kkt_residual(self) -> float:
        """How far the conditions of a minimum are from holding, without units.

        The largest element of the gradient, with the best multipliers, over the root
        mean squares of its column and of the rows' derivatives.
        """
        return self.fit_info.facts["residual"]

    @property
    def lam(self) -> float | None:
        """Strength of the penalty."""
        return self.fit_info.facts["lam"]

    @property
    def active_constraints(self) -> list[str]:
        """Inequalities that hold with equality."""
        facts = self.fit_info.facts
        labels: Any = facts["constraints"]
        bars: Any = facts["bars"]
        return [b for b, active in zip(labels, bars, strict=False) if active]

    @property
    def choice(self) -> pd.DataFrame | None:
        """Table by which `lam` was chosen, if it was."""
        found: Any = self.fit_info.facts["choice"]
        return None if found is None else pd.DataFrame(found["table"])

    @property
    def loss_history(self) -> pd.DataFrame:
        """Losses at each iteration: stage, iteration, in_sample, objective.

        With `eval_data` also out_of_sample. Each stage has its own loss.
        """
        return pd.DataFrame(self.fit_info.facts["history"])

    def plot_loss(self, skip: int = 0, ax: Axes | None = None) -> Axes:
        """Draw the loss in the sample, and outside it, at each iteration.

        Parameters
        ----------
        skip : int, default 0
            Iterations left out at the beginning, to see the end more closely.
        ax : Axes, optional
        """
        history = self.loss_history
        last = history[history["stage"] == history["stage"].iloc[-1]]
        shown = last[last["iteration"] >= skip]
        if shown.empty:
            raise ValueError(
                f"skip={skip} leaves none of the {len(last)} iterations to draw."
            )
        ax = _axes(ax, (5.2, 3.4))
        curves = (("in_sample", "In sample"), ("out_of_sample", "Out of sample"))
        for number, (name, label) in enumerate(curves):
            if name in shown:
                ax.plot(
                    shown["iteration"], shown[name], color=OKABE_ITO[number],
                    marker="os"[number], ms=4, lw=1.4, label=label,
                )  # fmt: skip
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="Iteration", ylabel=f"Mean {self.model.loss_name} loss")
        if "out_of_sample" in shown:
            ax.legend(frameon=False)
        return ax

    # -- what a loss does not have -----------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(
            f"a loss is no likelihood, and has no {what}; compare fits by loss_value "
            "outside the sample (eval_data=, lam='cv')."
        )

    @property
    def llf(self) -> float:
        """Not defined; raises `ModelError`."""
        self._refuse("log-likelihood")

    @property
    def aic(self) -> float:
        """Not defined; raises `ModelError`."""
        self._refuse("AIC")

    @property
    def bic(self) -> float:
        """Not defined; raises `ModelError`."""
        self._refuse("BIC")

    @property
    def resid_pearson(self) -> pd.Series:
        """Not defined; raises `ModelError`."""
        self._refuse("Pearson residuals")

    def compare_lr_test(self, restricted: Results) -> NoReturn:
        """Not defined; raises `ModelError`. Use `wald_test`."""
        self._refuse("likelihood ratio (use wald_test)")

    # -- tables ------------------------------------------------------------------------

    def glance(self) -> pd.DataFrame:
        """Return the figures of the fit in one row."""
        row = {
            "nobs": self.nobs, "df_model": self.df_model, "df_resid": self.df_resid,
            "loss": self.loss_value, "objective": self.objective,
            "kkt_residual": self.kkt_residual, "converged": self.converged,
        }  # fmt: skip
        return pd.DataFrame([row])

    def _extra_augment(self) -> dict[str, Any]:
        return {}

    def _header(self) -> list[tuple[str, Any]]:
        steps = counted(self.fit_info.iterations, "step")
        return [
            ("Loss", f"{self.model.loss_name} ({self.model.link_name})"),
            ("Penalty", self.fit_info.facts["penalty"]),
            ("SE", self.cov_description), ("Observations", whole(self.nobs)),
            ("Df residuals", whole(self.df_resid)), ("Search", steps),
            ("Mean loss", self.loss_value), ("Objective", self.objective),
            ("KKT residual", f"{self.kkt_residual:.1e}"),
            ("Converged", "yes" if self.converged else "NO"),
        ]  # fmt: skip

    def _notes(self) -> list[str]:
        out = super()._notes()
        facts: Any = self.fit_info.facts
        if facts["stopped"]:
            out.append("Stopped early, at the lowest loss in the validation data.")
        elif not facts["convex"]:
            text = "The loss is not convex, or not known to be: another start may "
            out.append(text + "end elsewhere.")
        if active := self.active_constraints:
            text = "; ".join(active[:6]) + (" ..." if len(active) > 6 else "")
            given = (
                "" if self.cov_type == "none" else " Standard errors are given them."
            )
            out.append(f"Active constraints: {text}.{given}")
        if facts["choice"] is not None:
            out.append(f"lam chosen by {facts['choice']['rule']}.")
        return out


def _no_acceleration(gradient: np.ndarray) -> None:
    """BCa intervals need the influence of rows, which is not made for losses."""
