"""Beta regression: proportions between 0 and 1 with a mean and a precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..design import Batch
from ..families import Beta
from ..formula import Formula
from ..likelihood import Point
from ..parameters import Block, Parameters
from ..results import Results
from .base import INTERCEPT
from .multipart import MultiPartModel, MultiPartResults, second_part

__all__ = ["BetaModel", "BetaResults", "betareg"]


class BetaResults(MultiPartResults):
    """Estimates of a beta regression."""

    model: BetaModel

    @cached_property
    def prsquared(self) -> float:
        """Squared correlation of the predictor with the link of the response.

        That of Ferrari and Cribari-Neto; McFadden's has no meaning for densities.
        """
        design, link = self.model.design, self.model.family.link
        y = link.link(torch.tensor(np.asarray(design.y, dtype=np.float64)))
        w = np.ones(design.n)
        for given in (design.weights, design.freq_weights):
            w = w if given is None else w * given
        eta = self.predict(which="linear").to_numpy()
        C = np.cov(np.stack([y.numpy(), eta]), aweights=w)
        return float(C[0, 1] ** 2 / (C[0, 0] * C[1, 1])) if C[1, 1] > 0 else 0.0


class BetaModel(MultiPartModel):
    """Beta regression with a model for the precision phi.

    The variance is mu (1 - mu) / (1 + phi). Coefficients of phi are reported on the
    scale of its link, also when phi is constant: phi_Intercept is then log phi.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``: z explains phi. A constant phi without the second part.
    data, **options
        See `RegressionModel`; offset and exposure belong to the mean.
    link : str or Link, default "logit"
        Link of the mean: logit, probit, cloglog, loglog, cauchit.
    precision : str, optional
        In place of the second part of the formula: ``"~ z"``.
    precision_link : str or Link, default "log"

    References
    ----------
    Ferrari, S. and Cribari-Neto, F. (2004). Beta regression for modelling rates and
    proportions. Journal of Applied Statistics 31, 799-815.
    Simas, A., Barreto-Souza, W. and Rocha, A. (2010). Improved estimators for a general
    class of beta regression models. Computational Statistics and Data
    Analysis 54, 348-366.
    """

    title = "Beta regression"
    results_class: ClassVar[type[Results]] = BetaResults

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        link: Any = "logit",
        precision: str | None = None,
        precision_link: Any = "log",
        **options: Any,
    ) -> None:
        self.family = Beta(link=link, phi_link=precision_link)
        functions = tuple(options.get("context") or ())
        formula, part = second_part(
            formula, precision, "precision", INTERCEPT, functions
        )
        super().__init__(formula, data, parts=(part,), **options)

    @property
    def options(self) -> dict[str, Any]:
        """What makes this model besides formula and data."""
        link, precision = self.family.links
        return {"link": link.name, "precision_link": precision.name}

    @property
    def layout(self) -> tuple[int, ...]:
        """Predictors of the mean and of the precision."""
        return (0, 1)

    @property
    def parameters(self) -> Parameters:
        """Coefficients of the mean, then of the precision."""
        labels = tuple(f"phi_{name}" for name in self.design.parts[0].names)
        title = f"Precision ({self.family.phi_link.name} link)"
        return Parameters(
            (Block("beta", self.design.X.names), Block("phi", labels, component=title))
        )

    def headline(self) -> tuple[str, Any]:
        """Return the link of the precision."""
        return ("Precision link", self.family.phi_link.name)

    def notes(self) -> list[str]:
        """Say on which scale the precision is."""
        name = self.family.phi_link.name
        what = {"log": "log phi", "identity": "phi"}.get(name, f"{name} of phi")
        return [
            f"The phi_ rows are coefficients of {what}; "
            "var(y) = mu (1 - mu) / (1 + phi)."
        ]

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Add the precision phi."""
        return {
            **super().predictions(),
            "precision": lambda *e: self.family.phi_link.inverse(e[1]),
        }

    def _has_expected(self) -> bool:
        return True

    def _needs_polish(self) -> bool:
        return True

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-density and derivatives; the expected information is closed form."""
        if information != "expected" or order < 2:
            return super().point(batch, etas, order, information)
        found = super().point(batch, etas, 1, information)
        return Point(found.value, found.first, self._expected(etas))

    def _expected(self, etas: tuple[Tensor, ...]) -> dict[tuple[int, int], Tensor]:
        """Fisher information in the predictors (Ferrari & Cribari-Neto, appendix A)."""
        mean, precision = self.family.links
        mu, phi = mean.inverse(etas[0]), precision.inverse(etas[1])
        slope, curve = mean.derivative(etas[0]), precision.derivative(etas[1])
        one, other, both = (
            torch.special.polygamma(1, a) for a in (mu * phi, (1 - mu) * phi, phi)
        )
        cross = phi * (mu * one - (1 - mu) * other)
        own = mu**2 * one + (1 - mu) ** 2 * other - both
        return {
            (0, 0): phi**2 * (one + other) * slope**2,
            (0, 1): cross * slope * curve,
            (1, 1): own * curve**2,
        }


def betareg(
    formula: str | Formula,
    data: Any,
    *,
    link: Any = "logit",
    precision: str | None = None,
    precision_link: Any = "log",
    **options: Any,
) -> BetaModel:
    """Beta regression of proportions; see `BetaModel`.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"``, or ``"y ~ x"`` for a constant precision.
    data : frame or mapping
    link : str or Link, default "logit"
    precision : str, optional
        ``"~ z"`` in place of the second part.
    precision_link : str or Link, default "log"
    **options
        weights, freq_weights, offset, exposure ...; see `RegressionModel`.

    Returns
    -------
    BetaModel
        Call `fit`.
    """
    return BetaModel(
        formula, data, link=link, precision=precision, precision_link=precision_link,
        **options,
    )  # fmt: skip
