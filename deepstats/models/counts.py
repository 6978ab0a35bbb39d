"""Counts: negative binomial, zero-inflated and hurdle regressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..design import Batch, Design
from ..errors import BoundaryWarning, DesignError, ModelError, SeparationWarning
from ..families import (
    Family,
    HurdleNegativeBinomial,
    HurdlePoisson,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    get_family,
)
from ..formula import Formula
from ..likelihood import Point, PredictorLikelihood
from ..optimize import Optimum, newton
from ..parameters import Block, Parameters
from ..results import CountPredictions, Results
from .base import INTERCEPT, zero_probability
from .countpoints import count_point, has_closed_form, inflated_point
from .glm import GLM
from .multipart import MultiPartModel, MultiPartResults, second_part, slopes_only

__all__ = [
    "CountResults",
    "HurdleModel",
    "NegativeBinomialModel",
    "ZeroInflatedModel",
    "hurdle",
    "negativebinomial",
    "zinb",
    "zip_",
]

# Log of the overdispersion, and log odds of a certain zero, below which there is none.
_LOWEST = -18.0
_VARIANCE = {"nb2": "mu + alpha mu^2 (nb2)", "nb1": "mu + alpha mu (nb1)"}


class CountResults(CountPredictions, MultiPartResults):
    """Estimates of a count regression; predicts probabilities of counts."""


class CountModel(MultiPartModel):
    """A regression of counts, with a log link or another for the mean."""

    results_class: ClassVar[type[Results]] = CountResults

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Add P(y = 0) to the predictions of every model."""
        return {**super().predictions(), **zero_probability(self.family)}

    def family_text(self) -> str:
        """Return the distribution of the counts and the link of their mean."""
        few = len(self.family.predictors) - hasattr(self.family, "count") < 2
        name = "Poisson" if few else "negative binomial"
        return f"{name} ({self.family.links[0].name})"

    def _alpha_block(self) -> Block:
        return Block("alpha", ("alpha",), True, "Overdispersion", _LOWEST)


class NegativeBinomialModel(CountModel):
    """Negative binomial regression with an estimated overdispersion alpha.

    Parameters
    ----------
    formula, data, **options
        See `RegressionModel`.
    loglike : {"nb2", "nb1"}, default "nb2"
        Variance mu + alpha mu^2 or mu + alpha mu.
    link : str or Link, default "log"
        Link of the mean.

    References
    ----------
    Cameron, A. and Trivedi, P. (2013). Regression analysis of count data, 2nd ed., 3.3.
    """

    title = "Negative binomial regression"

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        loglike: str = "nb2",
        link: Any = "log",
        **options: Any,
    ) -> None:
        self.family = NegativeBinomial(link=link, loglike=loglike)
        super().__init__(formula, data, parts=(INTERCEPT,), **options)

    def _takes_parts(self) -> bool:
        return False

    @property
    def options(self) -> dict[str, Any]:
        """What makes this model besides formula and data."""
        return {"loglike": self.family.loglike, "link": self.family.link.name}

    @property
    def layout(self) -> tuple[int, ...]:
        """Predictors of the mean and of alpha."""
        return (0, 1)

    @property
    def parameters(self) -> Parameters:
        """Coefficients, then alpha."""
        return Parameters((Block("beta", self.design.X.names), self._alpha_block()))

    def headline(self) -> tuple[str, Any]:
        """Return the variance function."""
        return ("Variance", _VARIANCE[self.family.loglike])

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """Poisson estimates, and alpha by moments of their residuals."""
        beta = poisson_fit(likelihood, self.family.link)
        guess = torch.cat([beta, torch.zeros(1, dtype=beta.dtype)])
        power = 2.0 if self.family.loglike == "nb2" else 1.0

        def moments(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            mu = self.family.mean(*etas)
            parts = [(batch.y - mu) ** 2 - mu, mu**power]
            for w in (batch.weights, batch.freq_weights):
                parts = parts if w is None else [p * w for p in parts]
            return torch.stack([p.sum() for p in parts])

        excess, size = likelihood.reduce(guess, moments)
        alpha = min(max(float(excess / size), 0.02), 20.0)
        guess[-1] = math.log(alpha) if math.isfinite(alpha) else 0.0
        return guess

    def other_starts(self, likelihood: PredictorLikelihood) -> list[Tensor]:
        """Moments of the response, slopes zero."""
        return [super().start(likelihood)]

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-density and derivatives; closed forms for the log link."""
        if not has_closed_form(self.family, batch.y):
            return super().point(batch, etas, order, information)
        return count_point(self.family, batch.y, etas, order)


class _TwoPart(CountModel):
    """A count regression whose zeros have a predictor of their own."""

    _part_name: ClassVar[str]
    _part_title: ClassVar[str]
    _link_option: ClassVar[str]
    #: Families with Poisson and with negative binomial counts.
    _families: ClassVar[tuple[type[Family], type[Family]]]

    def _declare(self, dist: str, loglike: str | None, link: Any) -> None:
        """Set the family and the title."""
        kind = _distribution(dist, loglike)
        links = {f"{self._part_name}_link": link}
        poisson, negative_binomial = self._families
        self.family = (
            poisson(**links)
            if kind is None
            else negative_binomial(loglike=kind, **links)
        )
        name = "Poisson" if kind is None else "negative binomial"
        self.title = self.title.replace("regression", f"{name} regression")

    @property
    def options(self) -> dict[str, Any]:
        """What makes this model besides formula and data."""
        loglike = getattr(self.family, "loglike", None)
        return {
            "dist": "poisson" if loglike is None else "negativebinomial",
            "loglike": loglike, self._link_option: self.family.links[1].name,
        }  # fmt: skip

    @property
    def layout(self) -> tuple[int, ...]:
        """Predictors of the counts, of the zeros, and of alpha where there is one."""
        return (0, 1, 2)[: len(self.family.predictors)]

    @property
    def parameters(self) -> Parameters:
        """Coefficients of the counts, of the zeros, then alpha."""
        names = self.design.parts[0].names
        labels = tuple(f"{self._part_name}_{name}" for name in names)
        lower = _LOWEST if self._bounded(names) else -torch.inf
        title = f"{self._part_title} ({self.family.links[1].name})"
        blocks = [
            Block("beta", self.design.X.names),
            Block(self._part_name, labels, component=title, lower=lower),
        ]
        if len(self.family.predictors) > 2:
            blocks.append(self._alpha_block())
        return Parameters(tuple(blocks))

    def _bounded(self, names: tuple[str, ...]) -> bool:
        return False

    def _parts(self, part: Any) -> tuple:
        return (part, INTERCEPT) if len(self.family.predictors) > 2 else (part,)

    def headline(self) -> tuple[str, Any]:
        """Return how many responses are zero."""
        zeros, f = self.design.y == 0, self.design.freq_weights
        share = np.average(zeros, weights=f)
        return ("Zeros", f"{100 * share:.1f}%")

    def notes(self) -> list[str]:
        """Say what the variance of the count part is."""
        if len(self.family.predictors) < 3:
            return []
        return [f"Variance of the count part: {_VARIANCE[self.family.loglike]}."]

    def _check_response(self) -> None:
        super()._check_response()
        zeros = int((self.design.y == 0).sum())
        if zeros == 0 or zeros == self.design.n:
            which = "no zeros" if zeros == 0 else "only zeros"
            raise DesignError(
                f"the response {self.design.y_name} has {which}: {self.title} "
                "needs zeros and positive counts; use negativebinomial or poisson."
            )

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """Poisson estimates from the positive counts; constants for the rest."""
        design = likelihood.design
        positive = (np.asarray(design.y) > 0).astype(np.float64)
        f = design.freq_weights
        beta = poisson_fit(
            _with_design(
                likelihood,
                replace(design, freq_weights=positive if f is None else positive * f),
            ),
            self.family.link,
        )
        sizes = [design.matrices[m].k for m in self.layout]
        x = torch.zeros(sum(sizes), dtype=torch.float64)
        x[: sizes[0]] = beta
        share = self._zero_probability(likelihood, x, positive)
        zero = float(self.family.links[1].link(torch.tensor(share).double()))
        names = design.parts[0].names
        if "Intercept" in names:
            x[sizes[0] + names.index("Intercept")] = zero
        if len(sizes) > 2:
            x[-1] = math.log(0.5)
        return x

    def _zero_probability(
        self, likelihood: PredictorLikelihood, x: Tensor, positive: np.ndarray
    ) -> float:
        raise NotImplementedError

    def other_starts(self, likelihood: PredictorLikelihood) -> list[Tensor]:
        """Poisson estimates from all counts; then moments, slopes zero."""
        x = self.start(likelihood)
        x[: likelihood.design.X.k] = poisson_fit(likelihood, self.family.link)
        return [x, super().start(likelihood)]


class ZeroInflatedModel(_TwoPart):
    """Zero-inflated Poisson or negative binomial regression.

    A row is a certain zero with probability pi, else a count: E(y) = (1 - pi) mu.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``: z explains pi. A constant pi without the second part.
    data, **options
        See `RegressionModel`; offset and exposure belong to mu.
    dist : {"poisson", "negativebinomial"}, default "poisson"
    loglike : {"nb2", "nb1"}, optional
        Variance of negative binomial counts; "nb2" by default.
    inflation : str, optional
        In place of the second part of the formula: ``"~ z"``.
    inflation_link : str or Link, default "logit"

    References
    ----------
    Lambert, D. (1992). Zero-inflated Poisson regression, with an application to defects
    in manufacturing. Technometrics 34, 1-14.
    """

    title = "Zero-inflated regression"
    unbounded = (1,)
    _part_name, _part_title = "inflate", "Zero inflation"
    _link_option = "inflation_link"
    _families = (ZeroInflatedPoisson, ZeroInflatedNegativeBinomial)

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        dist: str = "poisson",
        loglike: str | None = None,
        inflation: str | None = None,
        inflation_link: Any = "logit",
        **options: Any,
    ) -> None:
        self._declare(dist, loglike, inflation_link)
        functions = tuple(options.get("context") or ())
        formula, part = second_part(
            formula, inflation, "inflation", INTERCEPT, functions
        )
        super().__init__(formula, data, parts=self._parts(part), **options)

    def _bounded(self, names: tuple[str, ...]) -> bool:
        return names == ("Intercept",)

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Add the mean of the count part and the probability of a certain zero."""
        family = self.family
        return {
            **super().predictions(),
            "mean-main": lambda *e: family.count.mean(*family.split(e)[1]),
            "prob-inflate": lambda *e: family.links[1].inverse(e[1]),
        }

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-density and derivatives; closed forms for log and logit links."""
        family = self.family
        logit = family.inflate_link.name == "logit"
        if not logit or not has_closed_form(family.count, batch.y):
            return super().point(batch, etas, order, information)
        return inflated_point(family.count, batch.y, etas, order)

    def _zero_probability(
        self, likelihood: PredictorLikelihood, x: Tensor, positive: np.ndarray
    ) -> float:
        """Share of zeros beyond those of a Poisson."""

        def zeros(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            expected = torch.exp(-self.family.link.inverse(etas[0]))
            parts = [(batch.y == 0).to(expected), expected, torch.ones_like(expected)]
            for w in (batch.weights, batch.freq_weights):
                parts = parts if w is None else [p * w for p in parts]
            return torch.stack([p.sum() for p in parts])

        seen, expected, n = likelihood.reduce(x, zeros).tolist()
        share = (seen - expected) / max(n - expected, 1e-12)
        return min(max(share, 0.05), 0.95)

    def _runaway_text(self, names: str) -> tuple[str, type[Warning]]:
        return (
            f"the probability of a certain zero runs to 0 or 1 in some rows: the "
            f"estimates of {names} are infinite and what is printed is where the "
            "search stopped. Leave those terms out of the inflation part, or fit the "
            "model without inflation (poisson, negativebinomial).",
            BoundaryWarning,
        )


class HurdleModel(_TwoPart):
    """Hurdle regression: a binary part for y > 0, truncated counts beyond it.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``: z explains P(y > 0), the regressors of the counts when there
        is no second part (as in pscl); its coefficients are those of crossing the
        hurdle.
    data, **options
        See `RegressionModel`; offset and exposure belong to the counts alone.
    dist : {"poisson", "negativebinomial"}, default "poisson"
        Distribution of the counts before truncation.
    loglike : {"nb2", "nb1"}, optional
        Variance of negative binomial counts; "nb2" by default.
    zero : str, optional
        In place of the second part of the formula: ``"~ z"``.
    zero_link : str or Link, default "logit"

    References
    ----------
    Mullahy, J. (1986). Specification and testing of some modified count data models.
    Journal of Econometrics 33, 341-365.
    """

    title = "Hurdle regression"
    unbounded = (1,)
    _part_name, _part_title = "zero", "Crossing the hurdle, P(y > 0)"
    _link_option = "zero_link"
    _families = (HurdlePoisson, HurdleNegativeBinomial)

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        dist: str = "poisson",
        loglike: str | None = None,
        zero: str | None = None,
        zero_link: Any = "logit",
        **options: Any,
    ) -> None:
        self._declare(dist, loglike, zero_link)
        functions = tuple(options.get("context") or ())
        if isinstance(formula, str):
            formula = Formula.parse(formula, functions)
        default = slopes_only(formula.rhs)
        formula, part = second_part(formula, zero, "zero", default, functions)
        super().__init__(formula, data, parts=self._parts(part), **options)

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Add means of the count part and the probability of crossing the hurdle."""
        family = self.family
        return {
            **super().predictions(),
            "mean-main": lambda *e: family.count.count.mean(*family.split(e)[1]),
            "mean-nonzero": lambda *e: family.count.mean(*family.split(e)[1]),
            "prob-nonzero": lambda *e: family.links[1].inverse(e[1]),
        }

    def _zero_probability(
        self, likelihood: PredictorLikelihood, x: Tensor, positive: np.ndarray
    ) -> float:
        """Share of positive counts."""
        design = likelihood.design
        w = np.ones(design.n)
        for given in (design.weights, design.freq_weights):
            w = w if given is None else w * given
        return min(max(float((w * positive).sum() / w.sum()), 0.01), 0.99)

    def _warn(self, optimum: Optimum, likelihood: PredictorLikelihood) -> None:
        _warn_of_small_means(self, optimum, likelihood)
        super()._warn(optimum, likelihood)

    def _runaway_text(self, names: str) -> tuple[str, type[Warning]]:
        return (
            f"whether the response is zero is predicted perfectly in some rows: the "
            f"estimates of {names} are infinite and what is printed is where the "
            "search stopped. Leave those terms out of the zero part or merge levels.",
            SeparationWarning,
        )


def _warn_of_small_means(
    model: HurdleModel, optimum: Optimum, likelihood: PredictorLikelihood
) -> None:
    """Warn when the count part is at its limit: all ones, or logarithmic series."""
    if not bool(optimum.x.isfinite().all()):
        return

    def small(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
        return (etas[0] < -8).sum()

    if float(likelihood.reduce(optimum.x, small)) > 0.5 * likelihood.design.n:
        model.caution(
            "the means before truncation run to 0: the positive counts are (nearly) "
            "all one, or so dispersed that alpha runs to infinity. The estimates of "
            "the count part are where the search stopped; model y > 0 alone with "
            "logit, or try dist='poisson'.",
            BoundaryWarning,
        )


def _distribution(dist: str, loglike: str | None) -> str | None:
    """Return None for Poisson, else the kind of negative binomial."""
    if dist == "poisson":
        if loglike is not None:
            raise ModelError(f"loglike={loglike!r} goes with dist='negativebinomial'.")
        return None
    if dist != "negativebinomial":
        raise ValueError(f"dist must be 'poisson' or 'negativebinomial', not {dist!r}.")
    return "nb2" if loglike is None else loglike


def _with_design(
    likelihood: PredictorLikelihood, design: Design
) -> PredictorLikelihood:
    return PredictorLikelihood(likelihood.model, design, likelihood.compute)


def poisson_fit(likelihood: PredictorLikelihood, link: Any = "log") -> Tensor:
    """Poisson coefficients of the first matrix, to a hundredth of a standard error.

    Parameters
    ----------
    likelihood : PredictorLikelihood
    link : str or Link

    Returns
    -------
    Tensor, shape (k,)
    """
    model = GLM.__new__(GLM)
    model.family, model.compute = get_family("poisson", link=link), likelihood.compute
    model.design = replace(likelihood.design, parts=())
    part = PredictorLikelihood(model, model.design, model.compute)
    start = model.start(part)
    found = newton(
        lambda x: part.derivatives(x, "expected"),
        start,
        max_iterations=8,
        tolerance=0.05,
        reevaluate=False,
    )
    return found.x if bool(found.x.isfinite().all()) else torch.zeros_like(start)


def negativebinomial(
    formula: str | Formula, data: Any, *, loglike: str = "nb2", **options: Any
) -> NegativeBinomialModel:
    """Negative binomial regression; see `NegativeBinomialModel`.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
    loglike : {"nb2", "nb1"}, default "nb2"
        Variance mu + alpha mu^2 or mu + alpha mu.
    **options
        link, weights, freq_weights, offset, exposure ...; see `RegressionModel`.

    Returns
    -------
    NegativeBinomialModel
        Call `fit`.
    """
    return NegativeBinomialModel(formula, data, loglike=loglike, **options)


def zip_(
    formula: str | Formula, data: Any, *, inflation: str | None = None, **options: Any
) -> ZeroInflatedModel:
    """Zero-inflated Poisson regression; see `ZeroInflatedModel`.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``, or ``"y ~ x"`` for a constant probability of a certain zero.
    data : frame or mapping
    inflation : str, optional
        ``"~ z"`` in place of the second part.
    **options
        inflation_link, weights, freq_weights, offset, exposure ...

    Returns
    -------
    ZeroInflatedModel
        Call `fit`.
    """
    return ZeroInflatedModel(formula, data, inflation=inflation, **options)


def zinb(
    formula: str | Formula,
    data: Any,
    *,
    inflation: str | None = None,
    loglike: str = "nb2",
    **options: Any,
) -> ZeroInflatedModel:
    """Zero-inflated negative binomial regression; see `ZeroInflatedModel`.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``, or ``"y ~ x"`` for a constant probability of a certain zero.
    data : frame or mapping
    inflation : str, optional
        ``"~ z"`` in place of the second part.
    loglike : {"nb2", "nb1"}, default "nb2"
    **options
        inflation_link, weights, freq_weights, offset, exposure ...

    Returns
    -------
    ZeroInflatedModel
        Call `fit`.
    """
    return ZeroInflatedModel(
        formula, data, dist="negativebinomial", loglike=loglike, inflation=inflation,
        **options,
    )  # fmt: skip


def hurdle(
    formula: str | Formula,
    data: Any,
    *,
    dist: str = "poisson",
    zero: str | None = None,
    loglike: str | None = None,
    **options: Any,
) -> HurdleModel:
    """Hurdle regression of counts; see `HurdleModel`.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``; without a second part x explains P(y > 0) too.
    data : frame or mapping
    dist : {"poisson", "negativebinomial"}, default "poisson"
    zero : str, optional
        ``"~ z"`` in place of the second part.
    loglike : {"nb2", "nb1"}, optional
        With ``dist="negativebinomial"``; "nb2" by default.
    **options
        zero_link, weights, freq_weights, offset, exposure ...

    Returns
    -------
    HurdleModel
        Call `fit`.
    """
    return HurdleModel(formula, data, dist=dist, zero=zero, loglike=loglike, **options)
