"""The libraries of generalised mixed models compared: how each is called.

`table` is what a user types and is timed: a data frame and a formula in, a table of
coefficients with standard errors out. `read` takes the numbers for the comparison out
of what `table` returned, off the clock.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from glmms_cases import Case

OURS = "deepstats"


@dataclass(frozen=True)
class Estimates:
    """What libraries are compared by.

    Attributes
    ----------
    loglik : float
        Log-likelihood by Laplace's method.
    beta, errors : list of float
        Coefficients of the mean and standard errors; the intercept comes first.
    """

    loglik: float
    beta: list[float]
    errors: list[float]

    @classmethod
    def of(
        cls, loglik: float, beta: Sequence[float], errors: Sequence[float]
    ) -> Estimates:
        return cls(float(loglik), [float(b) for b in beta], [float(e) for e in errors])


class Library(ABC):
    """A way to fit generalised linear mixed models."""

    package: ClassVar[str]
    #: How it is called and what its table holds, for the report.
    call: ClassVar[str]

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        """Why this case is not run, if so."""
        return None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        raise NotImplementedError

    def read(self, found: Any) -> Estimates:
        raise NotImplementedError


class Deepstats(Library):
    package = "deepstats"
    call = "`ds.glmer(formula, frame, family=…).fit().tidy()`"

    def __init__(self) -> None:
        import deepstats

        self.ds = deepstats

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        family, options = case.family, {}
        if case.family == "nbinom2":
            family = "nb2"
        if case.zero != "~ 0":
            family, options = "zinb2", {"zi_formula": case.zero}
        results = self.ds.glmer(case.formula, frame, family=family, **options).fit()
        return results, results.tidy()

    def read(self, found: Any) -> Estimates:
        results, _ = found
        p = results.model.design.X.k
        return Estimates.of(results.llf, results.params[:p], results.bse[:p])


class Glmm(Library):
    package = "glmm"
    call = "`glmm.fit(frame, formula, family=…)`, the table as arrays"

    def __init__(self) -> None:
        import glmm

        self.glmm = glmm

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        return "has no excess zeros" if case.zero != "~ 0" else None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        fit = self.glmm.fit(frame, case.formula, family=case.family)
        if not fit.converged:
            raise RuntimeError("glmm did not converge")
        return fit, (fit.names, fit.beta, fit.se, fit.coef_p)

    def read(self, found: Any) -> Estimates:
        fit, _ = found
        return Estimates.of(fit.loglik, fit.beta, fit.se)


class Mixedlm(Library):
    package = "mixedlm"
    call = "`mixedlm.tidy(mixedlm.glmer(formula, frame, family=…))`"

    def __init__(self) -> None:
        import mixedlm

        self.mixedlm = mixedlm

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        return "has no excess zeros" if case.zero != "~ 0" else None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        families = self.mixedlm.families
        family = {"binomial": families.Binomial, "poisson": families.Poisson}
        formula, options = case.formula, {}
        if formula.startswith("cbind"):
            # It takes proportions, with the trials as weights.
            size = (frame["incidence"] + frame["healthy"]).to_numpy(dtype=float)
            frame = frame.assign(share=frame["incidence"] / size)
            formula = "share" + formula[formula.index(" ~") :]
            options = {"weights": size}
        model = self.mixedlm.glmer(
            formula, frame, family=family[case.family](), **options
        )
        return model, self.mixedlm.tidy(model)

    def read(self, found: Any) -> Estimates:
        model, table = found
        loglik = model.logLik()
        value = getattr(loglik, "value", loglik)
        return Estimates.of(value, table["estimate"], table["std.error"])


class Gpboost(Library):
    """GPBoost: arrays are its only entry, so the design is made on the clock."""

    package = "gpboost"
    call = (
        "`GPModel(group_data=codes, likelihood=…).fit(y, X)`, "
        "`get_coef(std_err=True)`; its default solver"
    )

    def __init__(self) -> None:
        import gpboost

        self.gpboost = gpboost

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        if case.zero != "~ 0":
            return "no formula for excess zeros"
        return "no numbers of trials" if case.formula.startswith("cbind") else None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        response, rhs = case.formula.split(" ~ ")
        terms = rhs.split(" + ")
        groups = [t.strip("()").removeprefix("1 | ") for t in terms if "|" in t]
        fixed = [t for t in terms if "|" not in t]
        columns = [np.ones(len(frame)), *(c for t in fixed for c in _columns(frame[t]))]
        likelihood = {"binomial": "bernoulli_logit"}.get(case.family, case.family)
        codes = np.column_stack([frame[g].cat.codes for g in groups])
        model = self.gpboost.GPModel(group_data=codes, likelihood=likelihood)
        y = frame[response].to_numpy(dtype=float)
        model.fit(y=y, X=np.column_stack(columns))
        return model, model.get_coef(std_err=True)

    def read(self, found: Any) -> Estimates:
        model, table = found
        value = -model.get_current_neg_log_likelihood()
        return Estimates.of(value, table.iloc[0], table.iloc[1])


class Lme4(Library):
    """R's lme4, timed by glmms_cell.R."""

    package = "lme4"
    call = (
        "`coef(summary(glmer(formula, frame, family = …)))`: Hessian by differences, "
        "which its standard errors need"
    )

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        return "has no excess zeros" if case.zero != "~ 0" else None


class GlmmTMB(Library):
    """R's glmmTMB, timed by glmms_cell.R."""

    package = "glmmTMB"
    call = "`coef(summary(glmmTMB(formula, frame, family = …, ziformula = …)))$cond`"


def _columns(column: pd.Series) -> list[np.ndarray]:
    """A number, or the dummies of a factor."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return [column.to_numpy(dtype=float)]
    codes = column.cat.codes.to_numpy()
    count = len(column.cat.categories)
    return [(codes == level).astype(float) for level in range(1, count)]


LIBRARIES: dict[str, type[Library]] = {
    "deepstats": Deepstats,
    "glmm": Glmm,
    "mixedlm": Mixedlm,
    "gpboost": Gpboost,
    "R lme4": Lme4,
    "R glmmTMB": GlmmTMB,
}
