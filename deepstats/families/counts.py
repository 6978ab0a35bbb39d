"""Count families fitted by joint maximum likelihood: negative binomial, truncated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.exponential import Poisson
from deepstats.families.links import LOG, POSITIVE, Link
from deepstats.families.special import log1mexp, log1p_ratio, log_rising

__all__ = [
    "NegativeBinomial",
    "ZeroTruncatedNegativeBinomial",
    "ZeroTruncatedPoisson",
]


def check_loglike(family: str, loglike: str) -> None:
    """Refuse a negative binomial other than nb1 and nb2."""
    if loglike not in ("nb2", "nb1"):
        raise ValueError(f"{family} has loglike 'nb2' or 'nb1', got {loglike!r}")


def start_alpha(mean: float, variance: float, loglike: str) -> float:
    """Moment estimate of the overdispersion, kept between 0.05 and 20."""
    mean = max(mean, 1e-8)
    excess = variance / mean - 1
    alpha = excess / mean if loglike == "nb2" else excess
    return min(max(alpha, 0.05), 20.0)


@dataclass(frozen=True)
class NegativeBinomial(Family):
    """Counts with a mean and an estimated overdispersion.

    Parameters
    ----------
    link, alpha_link : Link or str
        Links of the mean and of the overdispersion.
    loglike : {"nb2", "nb1"}
        Variance mu + alpha mu^2 ("nb2") or mu + alpha mu ("nb1").

    References
    ----------
    Cameron, A. and Trivedi, P. (2013). Regression analysis of count data, 2nd ed., 3.3.
    """

    name: ClassVar[str] = "negativebinomial"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "alpha")
    domains: ClassVar = (POSITIVE, POSITIVE)
    link: Link = LOG
    alpha_link: Link = LOG
    loglike: str = "nb2"

    def __post_init__(self) -> None:
        """Check the links and the kind of variance."""
        super().__post_init__()
        check_loglike(self.name, self.loglike)

    @property
    def has_expected(self) -> bool:  # type: ignore[override]
        """Whether the variance is nb2's: nb1 is no exponential family in its mean."""
        return self.loglike == "nb2"

    def _shape(self, *etas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, squared coefficient of variation a of the mixing gamma, and a mu."""
        mu, alpha = self.parameters(*etas)
        if self.loglike == "nb2":
            return mu, alpha, alpha * mu
        return mu, alpha / mu, alpha

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        mu, a, x = self._shape(*etas)
        log_mu = self.links[0].log_inverse(etas[0])
        rising = log_rising(y, a) - torch.lgamma(y + 1)
        log_odds = y * (log_mu - torch.log1p(x))
        return rising + log_odds - mu * log1p_ratio(x)

    def zero_exponent(self, *etas: Tensor) -> Tensor:
        """Return -log P(y = 0)."""
        mu, _, x = self._shape(*etas)
        return mu * log1p_ratio(x)

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu."""
        return self.links[0].inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return mu (1 + alpha mu) or mu (1 + alpha)."""
        self._expect(etas, size)
        mu, _, x = self._shape(*etas)
        return mu * (1 + x)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw counts as a gamma mixture of Poissons."""
        self._expect(etas, size)
        _, a, x = torch.broadcast_tensors(*self._shape(*etas))
        rate = base.gamma(1 / a, generator) * x
        return torch.poisson(rate, generator=generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse what is not a count."""
        self._refuse_size(size)
        base.check_counts(y, self.name)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Weighted mean, and the overdispersion by moments."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        alpha = start_alpha(mean, variance, self.loglike)
        first = base.linked(self.link, mean, POSITIVE)
        return first, base.linked(self.alpha_link, alpha, POSITIVE)


CountFamily = Poisson | NegativeBinomial


def truncated_poisson_mean(mean: float) -> float:
    """Return the mu at which a Poisson without its zeros has the given mean."""
    if mean <= 1 + 1e-6:
        return 1e-2
    mu = mean
    for _ in range(200):
        mu = mean * -math.expm1(-mu)
    return max(mu, 1e-2)


class ZeroTruncated(Family):
    """A count family without its zeros: P(y) / (1 - P(0)) for y >= 1."""

    @property
    def count(self) -> CountFamily:
        """Family of the counts before truncation."""
        raise NotImplementedError

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        # P(y > 0) = 1 - exp(-t)
        t = self.count.zero_exponent(*etas)
        return self.count.log_prob(y, *etas) - log1mexp(t)

    def _positive_probability(self, *etas: Tensor) -> Tensor:
        t = self.count.zero_exponent(*etas)
        return -torch.expm1(-t)

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu / P(y > 0)."""
        return self.count.mean(*etas) / self._positive_probability(*etas)

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Variance of the positive counts."""
        self._expect(etas, size)
        mu, mean = self.count.mean(*etas), self.mean(*etas)
        return mean * (self.count.variance(*etas) / mu + mu - mean)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse what is not a count of at least one."""
        self._refuse_size(size)
        base.check_counts(y, self.name)
        advice = "a zero-truncated count is at least 1; hurdle families allow zeros"
        base.refuse(y == 0, y, self.name, "zero", advice)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Start at the untruncated mean that gives the mean of the response."""
        self._refuse_size(size)
        mean, _ = base.moments(y, weights)
        values = (truncated_poisson_mean(mean), 0.5)
        pairs = zip(self.links, values, strict=False)
        return tuple(base.linked(link, value, POSITIVE) for link, value in pairs)


def _poisson_after_first(exponent: Tensor, generator: Generator | None) -> Tensor:
    """Time left on (0, exponent) after the first event, given that there is one."""
    u = base.uniform(exponent, generator)
    return exponent + torch.log1p(u * torch.expm1(-exponent))


@dataclass(frozen=True)
class ZeroTruncatedPoisson(ZeroTruncated):
    """Poisson counts given that they are positive; mu is the mean before truncation."""

    name: ClassVar[str] = "zerotruncatedpoisson"
    predictors: ClassVar[tuple[str, ...]] = ("mu",)
    domains: ClassVar = (POSITIVE,)
    link: Link = LOG

    @property
    def count(self) -> Poisson:
        """Poisson."""
        return Poisson(self.link)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw the first event of a Poisson process, then those that follow it."""
        self._expect(etas, size)
        rest = _poisson_after_first(self.count.mean(*etas), generator)
        return 1 + torch.poisson(rest.clamp(min=0), generator=generator)


@dataclass(frozen=True)
class ZeroTruncatedNegativeBinomial(ZeroTruncated):
    """Negative binomial counts given that they are positive.

    Parameters
    ----------
    link, alpha_link : Link or str
        Links of the mean before truncation and of the overdispersion.
    loglike : {"nb2", "nb1"}
        Variance before truncation, as in `NegativeBinomial`.
    """

    name: ClassVar[str] = "zerotruncatednegativebinomial"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "alpha")
    domains: ClassVar = (POSITIVE, POSITIVE)
    link: Link = LOG
    alpha_link: Link = LOG
    loglike: str = "nb2"

    def __post_init__(self) -> None:
        """Check the links and the kind of variance."""
        super().__post_init__()
        check_loglike(self.name, self.loglike)

    @property
    def count(self) -> NegativeBinomial:
        """Negative binomial."""
        return NegativeBinomial(self.link, self.alpha_link, self.loglike)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw from the counts as a Poisson number of logarithmic clusters.

        The first cluster is logarithmic; those after it add up to a negative binomial
        of smaller shape. No draw is rejected, however rare positive counts are.

        References
        ----------
        Kemp, A. (1981). Efficient generation of logarithmically distributed
        pseudo-random variables. Applied Statistics 30, 249-253.
        """
        self._expect(etas, size)
        _, a, x = torch.broadcast_tensors(*self.count._shape(*etas))
        log_odds = torch.log1p(x)
        rest = _poisson_after_first(log_odds / a, generator).clamp(min=0)
        q = -torch.expm1(-log_odds * base.uniform(a, generator))
        first = torch.floor(1 + torch.log(base.uniform(a, generator)) / torch.log(q))
        tiny = torch.finfo(a.dtype).tiny
        rate = base.gamma((rest / log_odds).clamp(min=tiny), generator) * x
        return first.clamp(min=1) + torch.poisson(rate, generator=generator)
