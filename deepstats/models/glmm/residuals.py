"""Residuals of a generalised linear mixed model, and tests by simulation.

Randomised quantile residuals are normal where the model holds, whatever the family: the
distribution function at the response, with a jump of it filled by a uniform number
(Dunn & Smyth 1996). With random effects left out the distribution function is that of
a new group, integrated over their distribution, as unconditional simulations of DHARMa
approximate it.

References
----------
Dunn & Smyth (1996), Randomized quantile residuals, Journal of Computational and
Graphical Statistics 5. Hartig (2022), DHARMa: residual diagnostics for hierarchical
(multi-level/mixed) regression models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import one_thread
from ...errors import ModelError
from ...families import (
    Beta,
    CumulativeLink,
    ExponentialFamily,
    Family,
    Gamma,
    GammaML,
    Gaussian,
    GaussianML,
    InverseGaussian,
    InverseGaussianML,
    NegativeBinomial,
    NegativeBinomialFixed,
    Poisson,
    StudentT,
    Tweedie,
    TweedieML,
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
)
from ...families.mixtures import TwoPart
from ...families.tweedie import tweedie_cdf
from .forecast import (
    Linear,
    blocks,
    integrated,
    marginal_moments,
    predict,
    simulated,
    trials,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import MixedGLMResults

__all__ = [
    "SimulatedTest",
    "deviance_residuals",
    "discrete",
    "dispersion_test",
    "distribution",
    "draw_against",
    "pearson_residuals",
    "plot_residuals",
    "predicted",
    "quantile_residuals",
    "zero_inflation_test",
]

_COUNTS = (
    Poisson, NegativeBinomial, NegativeBinomialFixed, TwoPart, ZeroTruncatedPoisson,
    ZeroTruncatedNegativeBinomial, CumulativeLink,
)  # fmt: skip
_TRUNCATED = (ZeroTruncatedPoisson, ZeroTruncatedNegativeBinomial)
#: Families whose dispersion is estimated, and what they are at dispersion one.
_DEVIANCES: dict[type, type[ExponentialFamily]] = {
    GaussianML: Gaussian, GammaML: Gamma, InverseGaussianML: InverseGaussian,
}  # fmt: skip
#: Larger counts are summed for too long; simulation takes their place.
_MOST = 20_000
#: Probabilities are kept this far from zero and one: normal quantiles stay finite.
_EDGE = 1e-15


# -- residuals at the modes ------------------------------------------------------------


def pearson_residuals(results: MixedGLMResults) -> np.ndarray:
    """Responses less fitted means, over standard deviations given the modes; (n,).

    Parameters
    ----------
    results : MixedGLMResults
        Prior weights divide the variance.
    """
    design, family = results.model.design, results.model.family
    etas = [e.cpu() for e in results.found.point.modes.etas]
    size = None if design.size is None else torch.from_numpy(np.array(design.size))
    options = {} if size is None else {"size": size}
    if size is None and family.sized:
        options["size"] = torch.ones_like(etas[0])
    sd = family.variance(*etas, **options).sqrt().numpy()
    out = results.resid_response.to_numpy() / sd
    return out if design.weights is None else out * np.sqrt(design.weights)


def deviance_residuals(results: MixedGLMResults) -> np.ndarray:
    """Signed roots of the deviance of each row at the modes; (n,).

    Parameters
    ----------
    results : MixedGLMResults

    Raises
    ------
    ModelError
        For families without a deviance: those that are not exponential families at
        any dispersion.
    """
    design, family = results.model.design, results.model.family
    if isinstance(family, TweedieML):
        etas = [e.cpu() for e in results.found.point.modes.etas]
        power = family.parameters(*etas)[2]
        if not bool((power == power[0]).all()):
            raise ModelError("a power that varies by row has no deviance here.")
        family = Tweedie(family.links[0], float(power[0]))
    elif type(family) in _DEVIANCES:
        family = _DEVIANCES[type(family)](family.links[0])
    if not isinstance(family, ExponentialFamily):
        raise ModelError(
            f"{results.model.given} has no deviance; use resid_pearson or "
            "resid_quantile()."
        )
    y = torch.from_numpy(np.array(design.y, dtype=np.float64))
    mu = torch.from_numpy(results.fittedvalues.to_numpy(copy=True))
    size = None if design.size is None else torch.from_numpy(np.array(design.size))
    deviance = family.deviance(y, mu, size=size).numpy()
    if design.weights is not None:
        deviance = deviance * design.weights
    return np.sign((y - mu).numpy()) * np.sqrt(deviance)


# -- distribution functions ------------------------------------------------------------


def discrete(family: Family) -> bool:
    """Whether responses are counts or proportions of trials.

    Parameters
    ----------
    family : Family
    """
    return family.sized or isinstance(family, _COUNTS)


def distribution(
    family: Family, y: Tensor, etas: tuple[Tensor, ...], size: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Probability of less than a response, and of no more.

    Parameters
    ----------
    family : Family
    y : Tensor
    etas : tuple of Tensor
        Of shapes that broadcast with y.
    size : Tensor, optional
        Trials.

    Returns
    -------
    below, at : Tensor
        Equal for continuous families, but for a tweedie's zeros.

    Raises
    ------
    ModelError
        For a family whose distribution function is not known here.
    """
    if discrete(family):
        return _summed(family, y, etas, size)
    if isinstance(family, TweedieML):
        return tweedie_cdf(y, *family.parameters(*etas))
    found = _continuous(family, y, etas)
    return found, found


def _summed(
    family: Family, y: Tensor, etas: tuple[Tensor, ...], size: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sum the probabilities of all counts up to each response."""
    count = y if size is None else (y * size).round()
    highest = int(count.max())
    if highest > _MOST:
        raise ModelError(
            f"a count of {highest:,} is too large to sum probabilities up to it; use "
            "method='simulation'."
        )
    # The largest counts first: the others are done with when k has reached them.
    order = count.reshape(len(count), -1)[:, 0].argsort(descending=True)
    count, y = count[order], y[order]
    size = None if size is None else size[order]
    etas = tuple(e[order] if len(e) == len(order) else e for e in etas)
    shape = torch.broadcast_shapes(y.shape, *(e.shape for e in etas))
    sums = y.new_zeros(2, *shape)
    for k in range(int(isinstance(family, _TRUNCATED)), highest + 1):
        rows = slice(int((count.reshape(len(count), -1)[:, 0] >= k).sum()))
        here = tuple(e[rows] if len(e) == len(order) else e for e in etas)
        value = torch.full_like(y[rows], float(k))
        if size is None:
            p = family.log_prob(value, *here).exp()
        else:
            share = (value / size[rows]).clamp_max(1.0)
            p = family.log_prob(share, *here, size=size[rows]).exp()
        sums[1, rows] += p
        sums[0, rows] += torch.where(count[rows] > k, p, 0.0)
    below, at = sums[:, order.argsort()].clamp(0, 1)
    return below, at


def _continuous(family: Family, y: Tensor, etas: tuple[Tensor, ...]) -> Tensor:
    from scipy import special

    if isinstance(family, StudentT):
        mu, sigma, nu = (p.numpy() for p in family.parameters(*etas))
        return torch.as_tensor(special.stdtr(nu, (y.numpy() - mu) / sigma))
    mu, v = family.mean(*etas).numpy(), family.variance(*etas).numpy()
    at = y.numpy()
    if isinstance(family, GaussianML):
        return torch.as_tensor(special.ndtr((at - mu) / np.sqrt(v)))
    if isinstance(family, GammaML):
        return torch.as_tensor(special.gammainc(mu**2 / v, at * mu / v))
    if isinstance(family, InverseGaussianML):
        root = np.sqrt(mu**3 / v / at)
        far = 2 * mu**2 / v + special.log_ndtr(-root * (at / mu + 1))
        return torch.as_tensor(special.ndtr(root * (at / mu - 1)) + np.exp(far))
    if isinstance(family, Beta):
        phi = mu * (1 - mu) / v - 1
        return torch.as_tensor(special.betainc(mu * phi, (1 - mu) * phi, at))
    raise ModelError(
        f"the distribution function of {family.name} is not known here; use "
        "method='simulation'."
    )


# -- randomised quantile residuals -----------------------------------------------------


@one_thread()
def quantile_residuals(
    results: MixedGLMResults, seed: int | None = None, re_form: Any = "none",
    method: str = "exact", nsim: int = 1000, scale: str = "normal",
) -> np.ndarray:  # fmt: skip
    """Find randomised quantile residuals; see `MixedGLMResults.resid_quantile`.

    Parameters
    ----------
    results : MixedGLMResults
    seed : int, optional
    re_form : optional
        Random effects that are held at their modes.
    method : {"exact", "simulation"}
    nsim : int
        Responses simulated for each row.
    scale : {"normal", "uniform"}

    Returns
    -------
    ndarray, shape (n,)
    """
    from scipy.special import ndtri

    if method not in ("exact", "simulation"):
        raise ValueError(f"method must be 'exact' or 'simulation', not {method!r}.")
    if scale not in ("normal", "uniform"):
        raise ValueError(f"scale must be 'normal' or 'uniform', not {scale!r}.")
    generator = np.random.default_rng(seed)
    if method == "exact":
        below, at = _probabilities(results, re_form)
    else:
        below, at = _simulated_probabilities(results, re_form, nsim, generator)
    u = below + generator.uniform(size=len(at)) * (at - below)
    return u if scale == "uniform" else ndtri(u.clip(_EDGE, 1 - _EDGE))


def _probabilities(
    results: MixedGLMResults, re_form: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of less than each response and of no more."""
    family, size = results.model.family, trials(results)
    y = torch.from_numpy(np.array(results.model.design.y, dtype=np.float64))[:, None]
    given = None if size is None else torch.from_numpy(np.array(size, float))[:, None]
    linear = Linear.read(results, None, re_form)
    v, found = torch.from_numpy(linear.drawn), []
    for rows in blocks(v):
        trials_of = None if given is None else given[rows]
        etas = tuple(e[rows] for e in linear.etas)
        found.append(integrated(_both(family, y[rows], trials_of), etas, v[:, rows]))
    below, at = torch.cat(found, dim=1).numpy()
    if np.isnan(at).any():
        raise ModelError(
            f"random effects take the linear predictor of {int(np.isnan(at).sum())} "
            f"rows out of the range of the {family.links[0].name} link, and the "
            "distribution over them does not exist: use re_form=None, for residuals "
            "given the modes."
        )
    return below, at


def _both(family: Family, y: Tensor, size: Tensor | None) -> Callable[..., Tensor]:
    """Probabilities of less than a response and of no more, side by side."""

    def both(*etas: Tensor) -> Tensor:
        return torch.stack(distribution(family, y, etas, size))

    return both


def _simulated_probabilities(
    results: MixedGLMResults, re_form: Any, nsim: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Find the same from simulated responses, of which the observed one is one more."""
    if nsim < 20:
        raise ValueError(f"nsim must be at least 20, not {nsim!r}.")
    y = np.asarray(results.model.design.y, dtype=np.float64)
    tie = 1e-9 * (1 + np.abs(y))
    below, equal = np.zeros(len(y)), np.ones(len(y))
    for draw in simulated(results, nsim, generator, re_form):
        below += draw < y - tie
        equal += np.abs(draw - y) <= tie
    return below / (nsim + 1), (below + equal) / (nsim + 1)


# -- tests by simulation ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SimulatedTest:
    """A statistic of the data beside its values in data simulated from the fit.

    Attributes
    ----------
    name : str
    statistic : float
        Of the data.
    expected : float
        Mean of the simulated ones.
    ratio : float
        One over the other: above one for more than the model has.
    pvalue : float
        Share of the simulated statistics as extreme, the data's own among them.
    alternative : {"two-sided", "greater", "less"}
    simulated : ndarray, shape (nsim,)
    """

    name: str
    statistic: float
    expected: float
    ratio: float
    pvalue: float
    alternative: str
    simulated: np.ndarray

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {self.statistic:.6g}, expected {self.expected:.6g}, "
            f"ratio {self.ratio:.4g}, p = {self.pvalue:.4g} ({self.alternative}, "
            f"{len(self.simulated)} simulations)>"
        )


def _test(
    name: str, statistic: float, draws: np.ndarray, alternative: str
) -> SimulatedTest:
    n = len(draws) + 1
    slack = 1e-9 * (1 + abs(statistic))
    high = ((draws >= statistic - slack).sum() + 1) / n
    low = ((draws <= statistic + slack).sum() + 1) / n
    p = {"greater": high, "less": low, "two-sided": min(1.0, 2 * min(high, low))}
    expected = float(draws.mean())
    ratio = statistic / expected if expected else np.nan
    return SimulatedTest(
        name, statistic, expected, ratio, float(p[alternative]), alternative, draws
    )


def _check_test(alternative: str, nsim: int) -> None:
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(
            "alternative must be 'two-sided', 'greater' or 'less', not "
            f"{alternative!r}."
        )
    if nsim < 20:
        raise ValueError(f"nsim must be at least 20, not {nsim!r}.")


@one_thread()
def dispersion_test(
    results: MixedGLMResults, nsim: int = 500, seed: int | None = None,
    re_form: Any = "none", alternative: str = "two-sided",
) -> SimulatedTest:  # fmt: skip
    """Compare the spread of the responses with that of simulated ones.

    The statistic is the mean of ``(y - m)^2 / v`` with the mean m and variance v that
    the model gives each row: of a new group, or given the modes of the effects that
    `re_form` keeps. Kept modes have been fitted to the responses, which are then closer
    to their means than simulated ones.

    Parameters
    ----------
    results : MixedGLMResults
    nsim : int, default 500
    seed : int, optional
    re_form : optional
    alternative : {"two-sided", "greater", "less"}

    Returns
    -------
    SimulatedTest
    """
    _check_test(alternative, nsim)
    size = trials(results)
    given = None if size is None else torch.from_numpy(np.array(size, float))
    linear = Linear.read(results, None, re_form)
    v = torch.from_numpy(linear.drawn)
    mean, variance = marginal_moments(results.model.family, linear.etas, v, given)
    m, spread = mean.numpy(), variance.numpy()

    def squares(y: np.ndarray) -> float:
        return float(((y - m) ** 2 / spread).mean())

    draws = simulated(results, nsim, np.random.default_rng(seed), re_form)
    return _test(
        "dispersion", squares(np.asarray(results.model.design.y, dtype=np.float64)),
        np.array([squares(draw) for draw in draws]), alternative,
    )  # fmt: skip


@one_thread()
def zero_inflation_test(
    results: MixedGLMResults, nsim: int = 500, seed: int | None = None,
    re_form: Any = "none", alternative: str = "two-sided",
) -> SimulatedTest:  # fmt: skip
    """Compare the number of zeros with that of simulated responses.

    Parameters
    ----------
    results : MixedGLMResults
    nsim : int, default 500
    seed : int, optional
    re_form : optional
    alternative : {"two-sided", "greater", "less"}

    Returns
    -------
    SimulatedTest

    Raises
    ------
    ModelError
        For a family without zeros.
    """
    _check_test(alternative, nsim)
    family = results.model.family
    zeros = discrete(family) or isinstance(family, TweedieML)
    if not zeros or isinstance(family, _TRUNCATED):
        raise ModelError(f"{results.model.given} responses are never exactly zero.")
    draws = simulated(results, nsim, np.random.default_rng(seed), re_form)
    zeros = float((np.asarray(results.model.design.y) == 0).sum())
    counts = np.array([float((draw == 0).sum()) for draw in draws])
    return _test("zeros", zeros, counts, alternative)


# -- pictures --------------------------------------------------------------------------


def plot_residuals(
    results: MixedGLMResults, seed: int | None = None, re_form: Any = "none",
    level: float = 0.95, axes: Any = None, **options: Any,
) -> np.ndarray:  # fmt: skip
    """Draw quantile residuals: against normal quantiles, and against predictions.

    Parameters
    ----------
    results : MixedGLMResults
    seed : int, optional
    re_form : optional
        Random effects held at their modes, in residuals and predictions.
    level : float, default 0.95
        Of the band for each point.
    axes : sequence of two Axes, optional
    **options
        ``method=`` and ``nsim=`` of `quantile_residuals`.

    Returns
    -------
    ndarray of Axes, shape (2,)
    """
    from ...plots import _draw_quantiles, _order_statistics, _pyplot

    if axes is None:
        _, axes = _pyplot().subplots(
            1, 2, figsize=(9.2, 3.9), layout="constrained", squeeze=False
        )
        axes = axes[0]
    values = quantile_residuals(results, seed, re_form, **options)
    sample = pd.Series(values, results.model.design.index)
    label = "Quantile residual"
    _draw_quantiles(_order_statistics(sample, level), label, level, axes[0])
    axes[0].set_title("Quantiles", loc="left")
    draw_against(axes[1], predicted(results, re_form), values, results)
    return np.asarray(axes, dtype=object)


def predicted(results: MixedGLMResults, re_form: Any = "none") -> np.ndarray:
    """Predict what residuals are drawn against: means, or ordered levels' location.

    Parameters
    ----------
    results : MixedGLMResults
    re_form : optional
        Random effects held at their modes; means are over the others.
    """
    if isinstance(results.model.family, CumulativeLink):
        found = predict(results, which="link", re_form=re_form)
    else:
        kept = None if re_form == "none" else re_form
        found = predict(results, re_form=kept, marginal=re_form is not None)
    assert isinstance(found, pd.Series)
    return found.to_numpy()


def draw_against(
    ax: Axes, fitted: np.ndarray, values: np.ndarray, results: MixedGLMResults
) -> Axes:
    """Draw residuals against predictions, with means of neighbours.

    Parameters
    ----------
    ax : Axes
    fitted, values : ndarray, shape (n,)
    results : MixedGLMResults

    Returns
    -------
    Axes
    """
    from ...plots import _GREY, OKABE_ITO, _axes, _binned_means, _scatter

    ax = _axes(ax, (4.6, 3.9))
    ax.axhline(values.mean(), color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    _scatter(ax, fitted, values)
    ax.plot(
        *_binned_means(fitted, values), color=OKABE_ITO[1], linewidth=1.8,
        label="mean by prediction",
    )  # fmt: skip
    ax.set_xlabel(f"Predicted {results.response_name}")
    ax.set_ylabel("Quantile residual")
    ax.set_title("Against predictions", loc="left")
    ax.legend(frameon=False, loc="best", fontsize=9)
    return ax
