"""The libraries of mixed models compared: how each is called, at its best.

`table` is what a user types and is timed: a data frame and a formula in, a table of
fixed effects out, with standard errors, and p-values where the library gives them.
`read` takes the numbers for the comparison out of what `table` returned, off the clock.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from mixed_cases import SMALL, Case

STATSMODELS_CASES = (*SMALL, "mathachieve")


@dataclass(frozen=True)
class Estimates:
    """What libraries are compared by.

    Attributes
    ----------
    loglik : float
        Log-likelihood, the restricted one for REML.
    beta, errors : list of float
        Fixed effects and standard errors; the intercept comes first in every library.
    spreads : dict of str to float
        Standard deviations and correlations of the random effects, under `label`.
    iterations : int or None
    exact : bool
        False where the log-likelihood is itself an estimate.
    """

    loglik: float
    beta: list[float]
    errors: list[float]
    spreads: dict[str, float]
    iterations: int | None = None
    exact: bool = True

    @classmethod
    def of(
        cls,
        loglik: float,
        beta: Sequence[float],
        errors: Sequence[float],
        spreads: Mapping[str, float],
        iterations: int | None = None,
        exact: bool = True,
    ) -> Estimates:
        return cls(
            float(loglik),
            [float(b) for b in beta],
            [float(e) for e in errors],
            {name: float(value) for name, value in spreads.items()},
            None if iterations is None else int(iterations),
            exact,
        )


def label(group: str, *terms: str) -> str:
    """Name a standard deviation, or of two terms a correlation, alike everywhere."""
    intercepts = ("(Intercept)", "Intercept", "1")
    names = ["1" if term in intercepts else term for term in terms]
    return f"{':'.join(sorted(group.split(':')))} {','.join(sorted(names))}"


def spreads_of(group: str, terms: Sequence[str], cov: Any) -> dict[str, float]:
    """Label the standard deviations and correlations of a covariance matrix."""
    cov = np.atleast_2d(np.asarray(cov, dtype=float))
    sd = np.sqrt(np.diag(cov))
    out = {label(group, term): sd[i] for i, term in enumerate(terms)}
    for i, first in enumerate(terms):
        for j, second in enumerate(terms[:i]):
            if sd[i] * sd[j] > 0:
                out[label(group, first, second)] = cov[i, j] / (sd[i] * sd[j])
    return out


class Library(ABC):
    """A way to fit linear mixed models."""

    package: ClassVar[str]
    #: How it is called and what its table holds, for the report.
    call: ClassVar[str]

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        """Why this case is not run, if so."""
        return None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        raise NotImplementedError

    def read(self, case: Case, found: Any) -> Estimates:
        raise NotImplementedError


class Deepstats(Library):
    package = "deepstats"
    call = "`ds.lmer(formula, frame).fit(reml=…).tidy()`: Satterthwaite t, p"

    def __init__(self) -> None:
        import deepstats

        self.ds = deepstats

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        results = self.ds.lmer(case.formula, frame).fit(reml=case.reml)
        return results, results.tidy()

    def read(self, case: Case, found: Any) -> Estimates:
        results, _ = found
        return Estimates.of(
            results.llf,
            results.params,
            results.bse,
            self._spreads(results),
            results.fit_info.iterations,
        )

    @staticmethod
    def _spreads(results: Any) -> dict[str, float]:
        """Read `varcorr`: a row for each standard deviation and each correlation."""
        out = {}
        for row in results.varcorr.to_dict("records"):
            second = row.get("var2")
            if row["grp"] == "Residual":
                continue
            terms = [row["var1"]] if pd.isna(second) else [row["var1"], second]
            out[label(row["grp"], *terms)] = row["sdcor"]
        return out | {"sigma": results.sigma}


class Glmm(Library):
    package = "glmm"
    call = "`glmm.fit(frame, formula, reml=…)`: Satterthwaite t, p, as arrays"

    def __init__(self) -> None:
        import glmm

        self.glmm = glmm

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        fit = self.glmm.fit(frame, case.formula, reml=case.reml)
        if not fit.converged:
            raise RuntimeError("glmm did not converge")
        return fit, (fit.names, fit.beta, fit.se, fit.coef_df, fit.coef_p)

    def read(self, case: Case, found: Any) -> Estimates:
        fit, _ = found
        spreads = {"sigma": np.sqrt(fit.dispersion)}
        for i, (group, terms) in enumerate(fit.re_groups):
            sd, correlation = fit.stddev_corr(i)
            spreads |= spreads_of(group, terms, correlation * np.outer(sd, sd))
        return Estimates.of(
            fit.loglik, fit.beta, fit.se, spreads, fit.n_eval + fit.n_grad
        )


class Mixedlm(Library):
    package = "mixedlm"
    call = "`mixedlm.tidy(mixedlm.lmer(formula, frame, REML=…))`: Satterthwaite t, p"

    def __init__(self) -> None:
        import mixedlm

        self.mixedlm = mixedlm

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        model = self.mixedlm.lmer(case.formula, frame, REML=case.reml)
        return model, self.mixedlm.tidy(model)

    def read(self, case: Case, found: Any) -> Estimates:
        model, table = found
        varcorr = model.VarCorr()
        spreads = {"sigma": np.sqrt(varcorr.residual)}
        for group in varcorr.groups.values():
            spreads |= spreads_of(group.grouping_factor, group.term_names, group.cov)
        return Estimates.of(
            -model.deviance / 2,
            table["estimate"],
            table["std.error"],
            spreads,
            model.function_evals,
        )


class Gpboost(Library):
    """GPBoost: arrays are its only entry, so the design is made on the clock.

    Its default for several factors estimates log-determinants from random vectors,
    which leaves -2 log L wrong by about one, or by tens on nested factors. Its exact
    Cholesky is the quicker on data like InstEval, and takes minutes at 50,000 levels.
    """

    package = "gpboost"
    call = (
        "`GPModel(group_data=codes).fit(y, X)`, `get_coef(std_err=True)`: z without p; "
        "exact (`cholesky`) up to 5,000 levels, else its default"
    )
    _most_exact = 5000

    def __init__(self) -> None:
        import gpboost

        self.gpboost = gpboost

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        if case.reml:
            return "maximum likelihood only"
        return None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        response, fixed, groups = _terms(case.formula)
        X = np.column_stack([np.ones(len(frame)), *(_column(frame, t) for t in fixed)])
        codes = np.column_stack([_interaction(frame, group) for group in groups])
        levels = sum(len(np.unique(column)) for column in codes.T)
        exact = levels <= self._most_exact
        method = "cholesky" if exact else "default"
        model = self.gpboost.GPModel(
            group_data=codes, likelihood="gaussian", matrix_inversion_method=method
        )
        model.fit(y=frame[response].to_numpy(dtype=float), X=X)
        return model, model.get_coef(std_err=True), groups, exact

    def read(self, case: Case, found: Any) -> Estimates:
        model, table, groups, exact = found
        variances = model.get_cov_pars(std_err=False).iloc[0].to_numpy()
        names = ["sigma", *(label(group, "1") for group in groups)]
        return Estimates.of(
            -model.get_current_neg_log_likelihood(),
            table.iloc[0],
            table.iloc[1],
            dict(zip(names, np.sqrt(variances), strict=True)),
            exact=exact,
        )


class Statsmodels(Library):
    """statsmodels' MixedLM: one factor, and crossed effects of small data."""

    package = "statsmodels"
    call = "`smf.mixedlm(formula, frame, groups=…).fit(reml=…)`: z, p"

    def __init__(self) -> None:
        import statsmodels.formula.api as smf

        self.smf = smf

    @classmethod
    def refuses(cls, case: Case) -> str | None:
        if case.name not in STATSMODELS_CASES:
            return "dense matrices of every group, or of all rows: hours, or no memory"
        return None

    def table(self, case: Case, frame: pd.DataFrame) -> Any:
        fixed, options = {
            "sleepstudy": (
                "Reaction ~ Days", {"groups": "Subject", "re_formula": "~ Days"}),
            "mathachieve": (
                "MathAch ~ SES + Sex", {"groups": "School", "re_formula": "~ SES"}),
            "pastes": (
                "strength ~ 1", {"groups": "batch", "re_formula": "1",
                "vc_formula": {"batch:cask": "0 + C(cask)"}}),
            "penicillin": (
                "diameter ~ 1", {"groups": np.ones(len(frame)),
                "vc_formula": {"plate": "0 + C(plate)", "sample": "0 + C(sample)"}}),
        }[case.name]  # fmt: skip
        results = self.smf.mixedlm(fixed, frame, **options).fit(reml=case.reml)
        table = pd.concat(
            [results.params, results.bse, results.tvalues, results.pvalues], axis=1
        )
        return results, table, options["groups"]

    def read(self, case: Case, found: Any) -> Estimates:
        results, _, group = found
        spreads = {"sigma": np.sqrt(results.scale)}
        cov = results.cov_re
        if len(cov):
            # It calls the random intercept by the name of the group.
            terms = ["1" if name == group else name for name in cov.columns]
            spreads |= spreads_of(group, terms, cov)
        if len(results.vcomp):
            named = zip(results.model.exog_vc.names, results.vcomp, strict=True)
            spreads |= {label(name, "1"): np.sqrt(value) for name, value in named}
        # Its formulas put factors before numbers.
        _, fixed, _ = _terms(case.formula)
        names = list(results.fe_params.index)
        written = [next(n for n in names if n.startswith(term)) for term in fixed]
        order = ["Intercept", *written]
        beta, errors = results.fe_params[order], results.bse_fe[order]
        return Estimates.of(results.llf, beta, errors, spreads)


class Lme4(Library):
    """R's lme4, timed by mixed_cell.R."""

    package = "lme4"
    call = (
        "`coef(summary(lmer(formula, frame, REML = …, control = "
        "lmerControl(calc.derivs = FALSE))))`: t without p"
    )


def _terms(formula: str) -> tuple[str, list[str], list[str]]:
    """Split a formula: response, fixed terms, and the groups of random intercepts."""
    response, rhs = formula.split(" ~ ")
    fixed, groups = [], []
    for term in rhs.split(" + "):
        if not term.startswith("("):
            fixed.append(term)
            continue
        outer, _, inner = term.strip("()").removeprefix("1 | ").partition("/")
        groups += [outer, f"{outer}:{inner}"] if inner else [outer]
    return response, [t for t in fixed if t != "1"], groups


def _column(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A number, or the dummy of a factor of two levels."""
    column = frame[name]
    if isinstance(column.dtype, pd.CategoricalDtype):
        if len(column.cat.categories) > 2:
            raise ValueError(f"{name} has more than two levels.")
        return column.cat.codes.to_numpy(dtype=float)
    return column.to_numpy(dtype=float)


def _interaction(frame: pd.DataFrame, group: str) -> np.ndarray:
    codes = np.zeros(len(frame), dtype=np.int64)
    for name in group.split(":"):
        column = frame[name].cat
        codes = codes * len(column.categories) + column.codes.to_numpy()
    return codes


LIBRARIES: dict[str, type[Library]] = {
    "deepstats": Deepstats,
    "glmm": Glmm,
    "mixedlm": Mixedlm,
    "gpboost": Gpboost,
    "statsmodels": Statsmodels,
    "R lme4": Lme4,
}
