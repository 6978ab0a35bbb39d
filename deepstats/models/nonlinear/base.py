"""What nonlinear models share: reading, starts, and results that a curve has."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import default_compute
from ...errors import ModelError
from ...families import get_family
from ...inference import HypothesisTest, wald
from ...parameters import Block, Parameters
from ...results import Results
from ..base import RegressionModel
from ..mixed.terms import term_contrasts
from .reading import Reading, numbers, read
from .rows import Rows
from .squares import Squares, least_squares

if TYPE_CHECKING:
    from ...summary import Summary

__all__ = ["CurveModel", "CurveResults"]

#: Relative offset to which starts are looked for.
_ROUGH = 1e-3
#: Residuals are rounding where their squares are this share of the responses'.
_ROUNDING = 1e-26


class CurveModel(RegressionModel):
    """A model of a curve whose parameters have designs of their own.

    Parameters
    ----------
    formula : str
        ``"y ~ SSlogis(x, Asym, xmid, scal)"``, or a response and any expression of
        columns and parameters. Its functions are `expression.FUNCTIONS`, the curves of
        `curves.CURVES` and those of `context`.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    fixed : str, sequence of str or mapping, optional
        Covariates of parameters: ``"Asym ~ treatment"`` or ``{"Asym": "~ treatment"}``;
        parameters that are not named are one number.
    start : mapping, optional
        Start values by parameter (an average) or by coefficient. Self-starting curves
        need none.
    weights : str or array_like, optional
        Prior weights: the residual variance of a row is ``sigma^2 / weight``.
    na_action : {"drop", "raise"}, default "drop"
    context : mapping of str to callable, optional
        Functions that the curve may call: torch in, torch out, row by row.

    Notes
    -----
    Computed in float64 on the CPU.
    """

    family = get_family("gaussian")
    #: Residual standard deviation; it is always estimated.
    sigma: ClassVar[None] = None
    _takes_random: ClassVar[bool] = False

    def __init__(
        self, formula: str, data: Any, *, fixed: Any = None, random: Any = None,
        start: Mapping[str, float] | None = None, weights: Any = None,
        na_action: str = "drop", context: Mapping[str, Callable] | None = None,
    ) -> None:  # fmt: skip
        self.compute = default_compute().on_cpu()
        self.reading: Reading = read(
            formula, data, fixed=fixed, random=random, start=start, weights=weights,
            na_action=na_action, context=context, compute=self.compute,
        )  # fmt: skip
        self.design = self.reading.design
        self.given = dict(start or {})
        for name, value in self.given.items():
            if isinstance(value, bool) or not np.isfinite(np.float64(value)):
                raise ModelError(
                    f"start value of {name} must be finite, not {value!r}."
                )
        self._check_labels()

    @cached_property
    def rows(self) -> Rows:
        """Responses, covariates and designs, as tensors."""
        return self.reading.rows()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        return tuple(name for part in self.reading.labels for name in part)

    @property
    def parameters(self) -> Parameters:
        """One block: the coefficients of all parameters of the curve."""
        return Parameters((Block("beta", self.labels),))

    def _check_labels(self) -> None:
        known = {*self.reading.parameters, *self.labels}
        wrong = [name for name in self.given if name not in known]
        if wrong:
            raise ModelError(
                f"start= names {', '.join(wrong)}; coefficients are "
                f"{', '.join(self.labels)}."
            )

    # -- where fits begin --------------------------------------------------------------

    def starts(self) -> Tensor:
        """Return coefficients to begin with: those given, others by least squares.

        Raises
        ------
        ModelError
            Where a start value is missing, or the curve is not finite at the start.
        """
        missing = [p for p in self.reading.parameters if not self._is_given(p)]
        if missing and not self._starts_itself:
            raise ModelError(
                f"no start value for {', '.join(missing)}: only "
                "self-starting curves whose parameters stand alone, such as "
                "SSlogis(x, Asym, xmid, scal), find their own; give "
                f"start={{{', '.join(f'{n!r}: ...' for n in missing)}}}."
            )
        beta = self._automatic() if missing else self._coefficients({})
        f, D = self.rows.slopes(self.rows.fixed(beta))
        usable = torch.isfinite(f) & torch.isfinite(D).all(1)
        if not bool(usable.all()):
            row = int((~usable).nonzero()[0, 0])
            raise ModelError(
                f"the curve or its derivative is not finite at the start values (first "
                f"in row {self.design.index[row]!r}); give other start= values."
            )
        return beta

    def check_residuals(self, variance: float) -> None:
        """Refuse a curve that meets all responses: it leaves nothing to estimate from.

        Parameters
        ----------
        variance : float
            Of the residuals.
        """
        size = float((self.rows.w * self.rows.y.square()).mean())
        if not variance > _ROUNDING * size:
            raise ModelError(
                f"the curve goes through all values of {self.design.y_name}: the "
                "residual variance is zero, and there is no likelihood. Are the "
                "responses computed from the curve?"
            )

    def _is_given(self, parameter: str) -> bool:
        labels = dict(zip(self.reading.parameters, self.reading.labels, strict=True))
        return parameter in self.given or all(
            label in self.given for label in labels[parameter]
        )

    @property
    def _starts_itself(self) -> bool:
        expression = self.reading.expression
        if expression.curve is None:
            return False
        arguments = expression.arguments()
        names = set(self.reading.parameters)
        along = [arguments[c] for c in expression.curve.covariates]
        inside = {n.id for a in along for n in ast.walk(a) if isinstance(n, ast.Name)}
        alone = all(
            isinstance(arguments[p], ast.Name) and arguments[p].id in names
            for p in expression.curve.parameters
        )
        return alone and not inside & names

    def _automatic(self) -> Tensor:
        """Least squares over all rows, from the best points of the curve's grid."""
        expression, rows = self.reading.expression, self.rows
        curve = expression.curve
        assert curve is not None
        arguments = expression.arguments()
        along = tuple(
            expression.value_of(arguments[c], rows.columns) for c in curve.covariates
        )
        names = {p: arguments[p].id for p in curve.parameters}
        best: Squares | None = None
        for values in curve.starts(along, rows.y):
            beta = self._coefficients({names[p]: v for p, v in values.items()})
            found = least_squares(rows, beta, _ROUGH)
            if found is not None and (best is None or found.rss < best.rss):
                best = found
        if best is None:
            raise ModelError(
                f"{curve.name} found no start in these data; give start= values."
            )
        if not self.given:
            return best.beta
        return self._coefficients({}, best.beta)

    def _coefficients(
        self, values: Mapping[str, float], beta: Tensor | None = None
    ) -> Tensor:
        """Coefficients that give parameters some values, and those that were given."""
        parts, place = [], 0
        for name, X in zip(self.reading.parameters, self.rows.X, strict=True):
            value = self.given.get(name, values.get(name))
            part = torch.zeros(X.shape[1], dtype=torch.float64)
            if value is not None:
                target = torch.full((len(X), 1), float(value), dtype=torch.float64)
                part = torch.linalg.lstsq(X, target, driver="gelsd").solution[:, 0]
            elif beta is not None:
                part = beta[place : place + X.shape[1]].clone()
            parts.append(part)
            place += X.shape[1]
        out = torch.cat(parts)
        for j, label in enumerate(self.labels):
            if label in self.given:
                out[j] = float(self.given[label])
        return out


class CurveResults(Results):
    """What estimates of a curve have in common."""

    model: Any

    @property
    def formula_text(self) -> str:
        """Formula, and the fixed and random parts of the parameters."""
        return self.model.reading.text

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        raise NotImplementedError

    def _phi(self) -> Tensor:
        """Parameters of the curve in every row of the fit."""
        raise NotImplementedError

    @cached_property
    def fittedvalues(self) -> pd.Series:
        """Values of the curve, with the random effects where there are any."""
        return self._rows(numbers(self.model.rows.mean(self._phi())), "fittedvalues")

    def _rows(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(values, self.model.design.index, name=name)

    @property
    def resid_pearson(self) -> pd.Series:
        """Residuals times the square roots of the weights."""
        root = numbers(self.model.rows.w.sqrt())
        return (self.resid_response * root).rename("resid_pearson")

    def _extra_augment(self) -> dict[str, Any]:
        beta = torch.from_numpy(self.params.to_numpy(copy=True))
        fixed = self.model.rows.mean(self.model.rows.fixed(beta))
        return {".fixed": numbers(fixed), ".pearson": self.resid_pearson.to_numpy()}

    # -- tests -------------------------------------------------------------------------

    def anova(self, type: int | str = 3) -> pd.DataFrame:
        """Test the terms of every parameter that has covariates.

        Parameters
        ----------
        type : {1, 2, 3}
            Sequential, each after all of its parameter that do not contain it, or
            marginal.

        Returns
        -------
        DataFrame
            Wald tests, a row a term: ``"Asym:treatment"``.
        """
        number = {"1": 1, "I": 1, "2": 2, "II": 2, "3": 3, "III": 3}.get(
            str(type).upper()
        )
        if number is None:
            raise ValueError(f"type must be 1, 2 or 3, not {type!r}.")
        rows, place, df = {}, 0, self.df_resid if self.use_t else None
        for j, part in enumerate(self.model.reading.labels):
            for name, inner in self._contrasts(j, number).items():
                R = np.zeros((len(inner), len(self.names)))
                R[:, place : place + len(part)] = inner
                test = wald(self.params.to_numpy(), self._cov, R, np.zeros(len(R)), df)
                label = f"{self.model.reading.parameters[j]}:{name}"
                rows[label] = (test.statistic, test.df_num, test.pvalue)
            place += len(part)
        heads = ["F", "Df", "Pr(>F)"] if self.use_t else ["Chisq", "Df", "Pr(>Chisq)"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=heads)

    def _contrasts(self, j: int, number: int) -> dict[str, np.ndarray]:
        """Hypotheses about the terms of one parameter."""
        design = self.model.design
        formula = replace(design.spec.formula, rhs=design.spec.parts[j])
        only = replace(
            design, X=design.parts[j], parts=(), random=(),
            spec=replace(design.spec, formula=formula, parts=(), kept={}),
        )  # fmt: skip
        holder: Any = _Holder(only)
        return term_contrasts(holder, number)

    def wald_test_terms(self, *, use_f: bool | None = None) -> pd.DataFrame:
        """Use `anova`, which tests the terms of every parameter."""
        refuse(self, "wald_test_terms", "anova()")

    def _compare(self, fits: Sequence[Results]) -> pd.DataFrame:
        """Table of several fits, for `anova`."""
        from .comparison import compare_models

        return compare_models(fits)

    def compare_lr_test(self, restricted: Results) -> HypothesisTest:
        """Likelihood-ratio test against a nested model of the same curve and rows.

        Parameters
        ----------
        restricted : Results
            With fewer covariates or random effects; `nls` has none of the latter. One
            variance at zero under the null gives the p-value of a mixture of
            chi-squared distributions (Self & Liang 1987; Stram & Lee 1994).
        """
        from .comparison import likelihood_ratio_test

        return likelihood_ratio_test(self, restricted)

    # -- what the model has not --------------------------------------------------------

    @property
    def likelihood(self) -> Any:
        """Not here: what needs the scores of rows is not to be had."""
        refuse(self, "scores of rows", "conf_int and compare_lr_test")

    def get_robustcov_results(
        self, cov_type: str = "nonrobust", use_t: bool | None = None, **cov_kwds: Any
    ) -> Results:
        """Only "nonrobust"."""
        if cov_type == "nonrobust" and use_t in (None, self.use_t) and not cov_kwds:
            return self
        refuse(self, f"cov_type={cov_type!r}", "the standard errors of the fit")

    def get_prediction(self, exog: Any = None, **options: Any) -> NoReturn:
        """Use ``predict(..., interval='confidence')`` instead."""
        refuse(self, "get_prediction", "predict(newdata, interval='confidence')")

    def lr_test(self, hypotheses: Any) -> NoReturn:
        """Not here: compare two fits with `compare_lr_test`."""
        refuse(self, "lr_test", "a fit of the smaller model and compare_lr_test")

    def score_test(self, hypotheses: Any, **options: Any) -> NoReturn:
        """Not here: use `wald_test` or `compare_lr_test`."""
        refuse(self, "score_test", "wald_test or compare_lr_test")

    def get_influence(self) -> NoReturn:
        """Not here: look at the residuals."""
        refuse(self, "get_influence", "resid_pearson and the pictures")

    def get_margeff(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: `predict` at two values."""
        refuse(self, "get_margeff", "predict at two values")

    def marginal_effects(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: `predict` at two values."""
        refuse(self, "marginal_effects", "predict at two values")

    def bootstrap(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: refit to the columns of `simulate`."""
        refuse(self, "bootstrap", "fits to the responses that simulate() draws")

    # -- tables ------------------------------------------------------------------------

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import curve_summary

        return curve_summary(self, alpha)


class _Holder:
    """What `term_contrasts` asks of results."""

    def __init__(self, design: Any) -> None:
        self.model, self.design = self, design


def refuse(results: Results, what: str, instead: str) -> NoReturn:
    """Raise for what nonlinear models have not."""
    raise ModelError(f"{results.model_name} has no {what} here; use {instead}.")
