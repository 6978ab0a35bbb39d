"""How much a generalised linear mixed model explains: R-squared, intraclass shares.

Both need a variance of the responses given the predictors on the scale of the link,
which families other than the normal do not have; Nakagawa, Johnson & Schielzeth (2017)
give several.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import pi
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...errors import ModelError
from ...families import BetaBinomial, Binomial, CumulativeLink
from ...prediction import slopes
from ..mixed.diagnostics import intraclass, r_squared
from .forecast import Linear, integrated, marginal_moments

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = ["explained", "residual_variance", "shares"]

_METHODS = ("theoretical", "lognormal", "delta", "trigamma")
#: Variance of the latent variable whose sign is a binary response.
_LATENT = {"logit": pi**2 / 3, "probit": 1.0, "cloglog": pi**2 / 6, "loglog": pi**2 / 6}


def explained(results: MixedGLMResults, method: str | None = None) -> pd.Series:
    """Marginal and conditional R-squared; see `MixedGLMResults.r2`.

    Parameters
    ----------
    results : MixedGLMResults
    method : str, optional
        See `residual_variance`.
    """
    return r_squared(results, residual_variance(results, method))


def shares(results: MixedGLMResults, method: str | None = None) -> pd.DataFrame:
    """Share of the variance of each grouping factor; see `MixedGLMResults.icc`.

    Parameters
    ----------
    results : MixedGLMResults
    method : str, optional
        See `residual_variance`.
    """
    return intraclass(results, residual_variance(results, method))


def residual_variance(results: MixedGLMResults, method: str | None = None) -> float:
    """Variance of the responses given their predictors, on the scale of the link.

    Parameters
    ----------
    results : MixedGLMResults
    method : {"theoretical", "lognormal", "delta", "trigamma"}, optional
        "theoretical" is that of the latent variable behind a proportion or an ordered
        response (pi^2 / 3 for
        the logit), the default for them; "lognormal" ``log(1 + V / mu^2)``, the
        default with a log link, and "trigamma" ``psi'(mu^2 / V)`` are for log links;
        "delta" is ``V / (d mu / d eta)^2``, for all.

    Returns
    -------
    float
        With mu the mean over the rows of the marginal means, random effects
        integrated, and V the mean variance of a response at the predictor of mu.

    Notes
    -----
    Other programs take mu from the model without fixed effects; where these explain
    much the two differ.

    References
    ----------
    Nakagawa & Schielzeth (2013), Methods in Ecology and Evolution 4. Nakagawa, Johnson
    & Schielzeth (2017), Journal of the Royal Society Interface 14.
    """
    family = results.model.family
    link = family.links[0].name
    latent = isinstance(family, Binomial | BetaBinomial | CumulativeLink)
    binary = latent and link in _LATENT
    if method is None:
        method = "theoretical" if binary else "lognormal" if link == "log" else "delta"
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, not {method!r}.")
    if isinstance(family, CumulativeLink) and not (method == "theoretical" and binary):
        raise ModelError(
            f"ordinal responses with the {link} link: method={method!r} needs a mean, "
            "and a category has none; 'theoretical' is for "
            f"{', '.join(_LATENT)}."
        )
    if method == "theoretical":
        if not binary:
            raise ModelError(
                f"{family.name} with the {link} link has no latent variable; use "
                "method='delta'."
            )
        return _LATENT[link]
    if method in ("lognormal", "trigamma") and link != "log":
        raise ModelError(f"method={method!r} is for the log link, not {link}.")
    mu, variance, slope = _at_the_mean(results)
    if method == "delta":
        return variance / slope**2
    if method == "lognormal":
        return float(np.log1p(variance / mu**2))
    from scipy.special import polygamma

    return float(polygamma(1, mu**2 / variance))


def _at_the_mean(results: MixedGLMResults) -> tuple[float, float, float]:
    """Mean, variance there, and the slope of the mean in its predictor."""
    family = results.model.family
    linear = Linear.read(results, None, "none")
    size = results.model.design.size
    given = None if size is None else torch.from_numpy(np.array(size, dtype=np.float64))
    if given is None and family.sized:
        given = torch.ones_like(linear.etas[0])
    v = torch.from_numpy(linear.drawn)
    mean, _ = marginal_moments(family, linear.etas, v, given)
    middle, others = float(mean.mean()), linear.etas[1:]
    rest = v.clone()
    rest[0] = 0.0

    def average(function: Callable[..., Tensor], **options: Tensor) -> Callable:
        """Average a function over the random effects of the other predictors."""
        if not bool((rest > 0).any()):
            return partial(function, **options)
        options = {name: values[:, None] for name, values in options.items()}
        return lambda *etas: integrated(partial(function, **options), etas, rest)

    mean_at = average(family.mean)
    # The predictor at which the rows have this mean, other predictors as they are.
    eta = _predictor_of(lambda e: float(mean_at(e, *others).mean()), middle,
                        linear.etas[0])  # fmt: skip
    options = {} if given is None else {"size": given}
    variance = float(average(family.variance, **options)(eta, *others).mean())
    _, by_eta = slopes(mean_at, (eta, *others))
    return middle, variance, float(by_eta[0].mean())


def _predictor_of(
    mean: Callable[[Tensor], float], target: float, like: Tensor
) -> Tensor:
    """Constant predictor with a given mean of the responses."""
    from scipy.optimize import brentq

    full, centre, reach = torch.ones_like(like), float(like.mean()), 1.0

    def miss(value: float) -> float:
        return mean(value * full) - target

    while miss(centre - reach) * miss(centre + reach) > 0:
        reach *= 2
        if reach > 1e6:
            raise ModelError("no linear predictor has the mean of the responses.")
    return brentq(miss, centre - reach, centre + reach, xtol=1e-12) * full
