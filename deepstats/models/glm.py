"""Generalised linear models by Fisher scoring and Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..design import Batch, Design
from ..errors import SeparationWarning
from ..families import ExponentialFamily, Family, get_family
from ..likelihood import (
    Point,
    PredictorLikelihood,
    exponential_point,
    has_simple_scores,
)
from ..optimize import Optimum, solve_information
from ..results import CountPredictions, NullComparison, Results
from .base import RegressionModel, zero_probability
from .separation import separated_columns

__all__ = ["GLM", "GLMResults"]

#: Families whose likelihood may have no maximum, and how rows can force that.
_SEPARABLE = {
    "binomial": "binary",
    "quasibinomial": "binary",
    "poisson": "count",
    "quasipoisson": "count",
    "negativebinomial": "count",
}


class GLMResults(NullComparison, Results):
    """Estimates of a generalised linear model; adds deviances and their residuals."""

    @property
    def deviance(self) -> float:
        """Deviance: twice the distance to the saturated log-likelihood, times scale."""
        return self.fit_info.facts["deviance"]

    @property
    def df_model(self) -> float:
        """Columns besides the constant, which may be a sum of columns."""
        return float(len(self.names)) - self.fit_info.facts["constant"]

    @property
    def llr_pvalue(self) -> float:
        """P-value of `llr`; NaN without a constant, when it is no nested test."""
        return super().llr_pvalue if self.fit_info.facts["constant"] else float("nan")

    @property
    def pearson_chi2(self) -> float:
        """Sum of squared Pearson residuals."""
        return self.fit_info.facts["pearson_chi2"]

    @cached_property
    def _null(self) -> tuple[float, float]:
        """Log-likelihood and deviance of the constant alone (with the offset)."""
        return self.model.null_figures(self.likelihood)

    @property
    def llnull(self) -> float:
        """Log-likelihood of the model with only a constant."""
        return self._null[0]

    @property
    def null_deviance(self) -> float:
        """Deviance of the model with only a constant."""
        return self._null[1]

    @property
    def mu(self) -> pd.Series:
        """Fitted means."""
        return self.fittedvalues

    def _rowwise(self, name: str) -> pd.Series:
        family: ExponentialFamily = self.model.family

        def value(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            mu = family.mean(*etas)
            if name == "working":
                return (batch.y - mu) / family.link.derivative(etas[0])
            deviance = family.deviance(batch.y, mu)
            for weight in (batch.size, batch.weights):
                deviance = deviance if weight is None else deviance * weight
            return torch.sign(batch.y - mu) * deviance.clamp_min(0).sqrt()

        return self._series(
            self.likelihood.map(self.fit_info.x, value), f"resid_{name}"
        )

    @property
    def resid_pearson(self) -> pd.Series:
        """Response residuals over the square root of the variance function."""

        def value(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            return _pearson(self.model.family, batch, etas)

        return self._series(
            self.likelihood.map(self.fit_info.x, value), "resid_pearson"
        )

    @property
    def resid_deviance(self) -> pd.Series:
        """Signed roots of the rows' deviances."""
        return self._rowwise("deviance")

    @property
    def resid_working(self) -> pd.Series:
        """Response residuals over the derivative of the mean."""
        return self._rowwise("working")

    def _extra_glance(self) -> dict[str, float]:
        return {"deviance": self.deviance, "pearson_chi2": self.pearson_chi2}

    def _header(self) -> list[tuple[str, Any]]:
        first = super()._header()
        extra = [
            ("Dispersion", self.scale), ("Deviance", self.deviance),
            ("Pearson chi2", self.pearson_chi2),
        ]  # fmt: skip
        return [x for i in range(3) for x in (*first[3 * i : 3 * i + 3], extra[i])]


def _pearson(
    family: ExponentialFamily, batch: Batch, etas: tuple[Tensor, ...]
) -> Tensor:
    mu = family.mean(*etas)
    # A variance of zero is met only where the fit is perfect: residual zero.
    value = (batch.y - mu) / family.unit_variance(mu).clamp_min(1e-300).sqrt()
    for weight in (batch.size, batch.weights):
        value = value if weight is None else value * weight.sqrt()
    return value


class CountGLMResults(CountPredictions, GLMResults):
    """Estimates of a generalised linear model of counts."""


class GLM(RegressionModel):
    """Generalised linear model.

    Parameters
    ----------
    formula, data, **options
        See `RegressionModel`.
    family : str or Family, default "gaussian"
        An exponential family; see `families.get_family`.
    link : str or Link, optional
        In place of the family's own.
    scale : float or "pearson" or "deviance", optional
        A known dispersion, or how a family that has one estimates it: by Pearson's
        statistic unless told otherwise.
    information : {"expected", "observed"}, optional
        Default of ``fit(information=...)``.
    title : str, optional
        As printed.
    var_weights : str or array_like, optional
        statsmodels' name of `weights`.
    """

    title = "Generalised linear model"
    information = "expected"

    @property
    def results_class(self) -> type[Results]:
        """Counts predict their probabilities too."""
        return CountGLMResults if self._counts else GLMResults

    @property
    def _counts(self) -> bool:
        return self.family.name in ("poisson", "negativebinomial")

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Add the variance where it is known, and for counts P(y = 0)."""
        out = super().predictions()
        if self.family.scale == "one":
            out["var"] = self.family.variance
        return {**out, **zero_probability(self.family)} if self._counts else out

    #: Likelihood, point and sums of the last pass of `_statistics`.
    _known: tuple[PredictorLikelihood, Tensor, Tensor] | None = None

    def __init__(
        self,
        formula: Any,
        data: Any,
        *,
        family: str | Family = "gaussian",
        link: Any = None,
        scale: float | str | None = None,
        information: str | None = None,
        title: str | None = None,
        var_weights: Any = None,
        **options: Any,
    ) -> None:
        if var_weights is not None:
            if options.get("weights") is not None:
                raise ValueError("var_weights is another name of weights; give one.")
            options["weights"] = var_weights
        self.family = get_family(family, link=link)
        if not isinstance(self.family, ExponentialFamily):
            raise ValueError(
                f"{self.family.name} is not an exponential family; use its own model."
            )
        if not (
            scale in (None, "pearson", "deviance")
            or (np.isscalar(scale) and not isinstance(scale, str))
        ):
            raise ValueError(
                f"scale must be a number, 'pearson' or 'deviance': {scale!r}."
            )
        number = scale is not None and not isinstance(scale, str)
        if number and not 0 < scale < float("inf"):
            raise ValueError(f"scale must be positive, not {scale!r}.")
        if isinstance(scale, str) and self.family.scale == "one":
            raise ValueError(
                f"the {self.family.name} family has dispersion one; to estimate it use "
                f"family='quasi{self.family.name}', or give a number."
            )
        self._scale = scale or ("one" if self.family.scale == "one" else "pearson")
        if information is not None:
            self.information = information
        if title is not None:
            self.title = title
        super().__init__(formula, data, **options)
        if type(self) is GLM and self.family.name == "binomial":
            self.design = _trials(self.design)

    @property
    def options(self) -> dict[str, Any]:
        """What makes this model besides formula and data."""
        family = self.family
        return {"family": family.name, "link": family.link.name, "scale": self._scale}

    def _has_expected(self) -> bool:
        return True

    def _needs_polish(self) -> bool:
        return not self.family.canonical

    def _scoring_is_newton(self) -> bool:
        return has_simple_scores(self.family)

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Quasi-log-likelihood and its derivatives in the linear predictor."""
        return exponential_point(self.family, batch, etas, order, information)

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """One weighted regression of the link of a smoothed response."""
        proxy = PredictorLikelihood(_Smoothed(self), likelihood.design, self.compute)
        zero = torch.zeros(likelihood.design.X.k, dtype=torch.float64)
        found = proxy.derivatives(zero, "expected")
        return solve_information(found.information) @ found.gradient

    def scale(
        self, likelihood: PredictorLikelihood, x: Tensor, df_resid: float
    ) -> float:
        """Dispersion by Pearson's statistic unless it is known."""
        if self._scale == "one":
            return 1.0
        if self._scale in ("pearson", "deviance"):
            sums = self._statistics(likelihood, x)
            total = sums[1 if self._scale == "pearson" else 0]
            return float(total / df_resid) if df_resid > 0 else float("nan")
        return float(self._scale)

    def _statistics(self, likelihood: PredictorLikelihood, x: Tensor) -> Tensor:
        """Sum what the page needs in one pass, and remember it for the point.

        Deviance, Pearson chi-squared, log-likelihood at dispersion one, and the number
        of rows whose mean is at the edge of its range.
        """
        known = self._known
        if known and known[0] is likelihood and torch.equal(known[1], x):
            return known[2]
        family, kind = self.family, _SEPARABLE.get(self.family.name)

        def statistic(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            mu = family.mean(*etas)
            deviance = family.deviance(batch.y, mu)
            pearson = _pearson(family, batch, etas) ** 2
            for weight in (batch.size, batch.weights):
                deviance = deviance if weight is None else deviance * weight
            llf = deviance.new_zeros(())
            if family.scale == "one":
                llf = family.log_prob(batch.y, *etas, **_size(batch))
                llf = llf if batch.weights is None else llf * batch.weights
            f = batch.freq_weights
            parts = [t if f is None else t * f for t in (deviance, pearson, llf)]
            return torch.stack([*(p.sum() for p in parts), _edges(mu, batch.y, kind)])

        self._known = (likelihood, x, likelihood.reduce(x, statistic))
        return self._known[2]

    def facts(
        self, likelihood: PredictorLikelihood, x: Tensor, scale: float, value: float
    ) -> dict[str, float]:
        """Deviance, Pearson chi-squared and log-likelihood."""
        sums = self._statistics(likelihood, x)
        deviance, pearson, llf = (float(v) for v in sums[:3])
        if self.family.scale != "one":
            llf = self._scaled_llf(likelihood, x, scale, deviance)
        return {
            "llf": llf, "deviance": deviance, "pearson_chi2": pearson,
            "constant": float(likelihood.design.has_constant),
        }  # fmt: skip

    def _scaled_llf(
        self, likelihood: PredictorLikelihood, x: Tensor, scale: float, deviance: float
    ) -> float:
        """Log-likelihood at a dispersion; the Gaussian's at its own maximum in it."""
        family, design = self.family, likelihood.design
        if not family.has_likelihood:
            return float("nan")
        if family.name == "gaussian":
            f = design.freq_weights
            n = float(design.n if f is None else f.sum())
            logs = 0.0
            if design.weights is not None:
                logs = 0.5 * float(
                    (np.log(design.weights) * (1 if f is None else f)).sum()
                )
            return -n / 2 * (np.log(2 * np.pi * deviance / n) + 1) + logs

        def statistic(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            phi = scale if batch.weights is None else scale / batch.weights
            value = family.log_prob(batch.y, *etas, scale=phi)
            f = batch.freq_weights
            return (value if f is None else value * f).sum()

        return float(likelihood.reduce(x, statistic))

    def null_figures(self, likelihood: PredictorLikelihood) -> tuple[float, float]:
        """Log-likelihood and deviance of the model with a constant alone."""
        from ..matrix import intercept_matrix
        from ..optimize import newton

        design = replace(likelihood.design, X=intercept_matrix(likelihood.design.n))
        null = GLM.__new__(type(self))
        null.__dict__.update(self.__dict__)
        null.design = design
        part = PredictorLikelihood(null, design, self.compute)
        found = newton(lambda x: part.derivatives(x, "expected"), null.start(part))
        f = design.freq_weights
        n = float(design.n if f is None else f.sum())
        scale = null.scale(part, found.x, n - 1)
        facts = null.facts(part, found.x, scale, found.value)
        return facts["llf"], facts["deviance"]

    def _warn(self, optimum: Optimum, likelihood: PredictorLikelihood) -> None:
        columns = self._separation(optimum, likelihood)
        if columns:
            names = ", ".join(self.design.X.names[j] for j in columns)
            self.caution(
                f"the response is predicted perfectly in some rows: the estimates of "
                f"{names} are infinite and what is printed is where the search "
                "stopped. Leave those terms out, merge levels, or penalise.",
                SeparationWarning,
            )
        else:
            super()._warn(optimum, likelihood)

    def _separation(
        self, optimum: Optimum, likelihood: PredictorLikelihood
    ) -> list[int]:
        """Columns along which the likelihood has no maximum."""
        kind = _SEPARABLE.get(self.family.name)
        if kind is None or not bool(optimum.x.isfinite().all()):
            return []
        if not float(self._statistics(likelihood, optimum.x)[3]):
            return []
        return separated_columns(self.design, kind, self.compute)


def _edges(mu: Tensor, y: Tensor, kind: str | None) -> Tensor:
    """Count the rows that look fitted perfectly; zero where that cannot be."""
    if kind is None:
        return mu.new_zeros(())
    if kind == "binary":
        return ((mu < 1e-7) | (mu > 1 - 1e-7)).sum().to(mu.dtype)
    return (mu < 1e-7 * y.mean()).sum().to(mu.dtype)


def _trials(design: Design) -> Design:
    """Read the weights of proportions as trials, where they make whole successes.

    As R does: the log-likelihood is then that of the counts.
    """
    y, w = design.y, design.weights
    if design.size is not None or w is None or y is None or y.ndim != 1:
        return design
    y = np.asarray(y, dtype=np.float64)
    if not ((y > 0) & (y < 1)).any() or ((y < 0) | (y > 1)).any():
        return design
    if (w != np.round(w)).any() or (np.abs(w * y - np.round(w * y)) > 1e-7).any():
        return design
    return replace(design, size=w, weights=None)


def _size(batch: Batch) -> dict[str, Tensor]:
    return {} if batch.size is None else {"size": batch.size}


class _Smoothed:
    """A stand-in whose one Newton step from zero is R's first IRLS step."""

    def __init__(self, model: GLM) -> None:
        self.family, self.layout = model.family, (0,)
        self.parameters = model.parameters

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Weights and working response at the smoothed response."""
        family, y = self.family, batch.y
        mu = (
            family.start_mu(y, batch.size)
            if batch.size is not None
            else family.start_mu(y)
        )
        link = family.link
        eta = link(mu)
        slope = link.derivative(eta)
        weight = slope**2 / family.unit_variance(mu)
        if batch.size is not None:
            weight = weight * batch.size
        z = eta + (y - mu) / slope - etas[0]
        return Point(torch.zeros_like(z), (weight * z,), {(0, 0): weight})
