"""Counts with a part of their own for zeros: zero-inflated and hurdle families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.counts import (
    CountFamily,
    NegativeBinomial,
    ZeroTruncated,
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
    check_loglike,
    start_alpha,
    truncated_poisson_mean,
)
from deepstats.families.exponential import Poisson
from deepstats.families.links import LOG, LOGIT, POSITIVE, UNIT, Link
from deepstats.families.special import log_add

__all__ = [
    "HurdleNegativeBinomial",
    "HurdlePoisson",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "ZeroInflatedPoissonTau",
]


def _positive_part(y: Tensor, weights: Tensor | None) -> tuple[float, float, float]:
    """Share of positive counts, and the mean and variance of the positive ones."""
    share, _ = base.moments((y > 0).to(torch.float64), weights)
    if share == 0:
        return 0.0, 1.0, 0.0
    keep = (y > 0).to(torch.float64)
    mean, variance = base.moments(y, keep if weights is None else keep * weights)
    return share, mean, variance


class TwoPart(Family):
    """A count family with a second predictor that concerns the zeros alone."""

    @property
    def zero_part(self) -> Link:
        """Link of the predictor of the zeros that `split` gives."""
        return self.links[1]

    def split(self, etas: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Predictor of the zeros, and those of the count part."""
        return etas[1], (etas[0], *etas[2:])

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse what is not a count."""
        self._refuse_size(size)
        base.check_counts(y, self.name)

    def _zero_start(self, share: float, mu: float) -> float:
        raise NotImplementedError

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Start from a Poisson for the positive counts and the share of zeros."""
        self._refuse_size(size)
        share, mean, variance = _positive_part(y, weights)
        mu = truncated_poisson_mean(mean)
        alpha = start_alpha(mu, variance, getattr(self, "loglike", "nb2"))
        values = (mu, self._zero_start(share, mu), alpha)
        fields = zip(self.links, values, self.domains, strict=False)
        return tuple(base.linked(*field) for field in fields)


class ZeroInflated(TwoPart):
    """A mixture of certain zeros, with probability pi, and a count family.

    References
    ----------
    Lambert, D. (1992). Zero-inflated Poisson regression, with an application to defects
    in manufacturing. Technometrics 34, 1-14.
    """

    @property
    def count(self) -> CountFamily:
        """Family of the count part."""
        raise NotImplementedError

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        inflate, counts = self.split(etas)
        log_pi = self.zero_part.log_inverse(inflate)
        log_rest = self.zero_part.log_complement(inflate)
        t = self.count.zero_exponent(*counts)
        zero = log_add(log_pi, log_rest - t)
        return torch.where(y == 0, zero, log_rest + self.count.log_prob(y, *counts))

    def mean(self, *etas: Tensor) -> Tensor:
        """Return (1 - pi) mu."""
        inflate, counts = self.split(etas)
        rest = torch.exp(self.zero_part.log_complement(inflate))
        return rest * self.count.mean(*counts)

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Variance of the mixture."""
        self._expect(etas, size)
        inflate, counts = self.split(etas)
        pi, mean = self.zero_part.inverse(inflate), self.mean(*etas)
        within = mean * self.count.variance(*counts) / self.count.mean(*counts)
        return within + mean * pi * self.count.mean(*counts)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw from the count part, then the certain zeros."""
        self._expect(etas, size)
        inflate, counts = self.split(torch.broadcast_tensors(*etas))
        y = self.count.sample(*counts, generator=generator)
        keep = base.uniform(y, generator) > self.zero_part.inverse(inflate)
        return y * keep

    def _zero_start(self, share: float, mu: float) -> float:
        positive = -float(torch.expm1(torch.tensor(-mu, dtype=torch.float64)))
        return 1 - share / positive


class Hurdle(TwoPart):
    """A binary part for y > 0 and a zero-truncated family for the positive counts.

    References
    ----------
    Mullahy, J. (1986). Specification and testing of some modified count data models.
    Journal of Econometrics 33, 341-365.
    """

    @property
    def count(self) -> ZeroTruncated:
        """Zero-truncated family of the positive counts."""
        raise NotImplementedError

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        zero, counts = self.split(etas)
        log_zero = self.zero_part.log_complement(zero)
        log_positive = self.zero_part.log_inverse(zero)
        # Zeros are moved to one so that the branch not taken stays finite.
        positive = self.count.log_prob(y.clamp(min=1), *counts)
        return torch.where(y == 0, log_zero, log_positive + positive)

    def mean(self, *etas: Tensor) -> Tensor:
        """Return P(y > 0) E(y | y > 0)."""
        zero, counts = self.split(etas)
        return self.zero_part.inverse(zero) * self.count.mean(*counts)

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Variance of both parts together."""
        self._expect(etas, size)
        zero, counts = self.split(etas)
        positive = self.zero_part.inverse(zero)
        absent = torch.exp(self.zero_part.log_complement(zero))
        within = positive * self.count.variance(*counts)
        return within + positive * absent * self.count.mean(*counts) ** 2

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw the hurdle, then the positive counts."""
        self._expect(etas, size)
        zero, counts = self.split(torch.broadcast_tensors(*etas))
        y = self.count.sample(*counts, generator=generator)
        return y * (base.uniform(y, generator) <= self.zero_part.inverse(zero))

    def _zero_start(self, share: float, mu: float) -> float:
        return share


@dataclass(frozen=True)
class ZeroInflatedPoisson(ZeroInflated):
    """Poisson counts with extra zeros.

    Parameters
    ----------
    link, inflate_link : Link or str
        Links of the Poisson mean and of the probability of a certain zero.
    """

    name: ClassVar[str] = "zeroinflatedpoisson"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "inflate")
    domains: ClassVar = (POSITIVE, UNIT)
    link: Link = LOG
    inflate_link: Link = LOGIT

    @property
    def count(self) -> Poisson:
        """Poisson."""
        return Poisson(self.link)


@dataclass(frozen=True)
class ZeroInflatedPoissonTau(ZeroInflated):
    """Poisson counts whose extra zeros follow from the mean: ZIP(tau).

    The log odds of a certain zero are ``-tau log(mu)``: the higher the counts, the
    fewer the certain zeros.

    Parameters
    ----------
    link, tau_link : Link or str
        Links of the Poisson mean, which is log, and of tau, which is positive.

    References
    ----------
    Lambert (1992), Technometrics 34, 1-14; Nielsen, J., Rosenthal, J., Sun, Y., Day,
    D., Bevc, I. and Duchesne, T. (2014). Group-based criminal trajectory analysis using
    cross-validation criteria. Communications in Statistics - Theory and Methods 43,
    4337-4356.
    """

    name: ClassVar[str] = "zeroinflatedpoissontau"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "tau")
    domains: ClassVar = (POSITIVE, POSITIVE)
    link: Link = LOG
    tau_link: Link = LOG

    def __post_init__(self) -> None:
        """Check the links: the zeros are tied to the logarithm of the mean."""
        super().__post_init__()
        if self.link.name != "log":
            raise ValueError(
                f"{self.name} ties the zeros to log(mu) and takes the log link only, "
                f"got {self.link.name}; zeroinflatedpoisson takes others"
            )

    @property
    def count(self) -> Poisson:
        """Poisson."""
        return Poisson(self.link)

    @property
    def zero_part(self) -> Link:
        """Logit."""
        return LOGIT

    def split(self, etas: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Log odds of a certain zero, and the predictor of the count part."""
        # Squares of tau are finite, and log odds of zero times an infinity are none.
        tau = self.tau_link.inverse(etas[1]).clamp(max=1e60)
        return -tau * etas[0], (etas[0],)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Start as a ZIP; tau turns its log mean into its log odds, if a tau can."""
        log_mu, odds = ZeroInflatedPoisson().start(y, weights, size)
        tau = -odds / log_mu if log_mu * odds < 0 else 0.5
        return log_mu, base.linked(self.tau_link, min(max(tau, 0.05), 5.0), POSITIVE)


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(ZeroInflated):
    """Negative binomial counts with extra zeros.

    Parameters
    ----------
    link, inflate_link, alpha_link : Link or str
        Links of the mean of the count part, of the probability of a certain zero, and
        of the overdispersion.
    loglike : {"nb2", "nb1"}
        Variance of the count part, as in `NegativeBinomial`.
    """

    name: ClassVar[str] = "zeroinflatednegativebinomial"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "inflate", "alpha")
    domains: ClassVar = (POSITIVE, UNIT, POSITIVE)
    link: Link = LOG
    inflate_link: Link = LOGIT
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


@dataclass(frozen=True)
class HurdlePoisson(Hurdle):
    """Zero-truncated Poisson counts behind a hurdle.

    Parameters
    ----------
    link, zero_link : Link or str
        Links of the Poisson mean before truncation and of P(y > 0).
    """

    name: ClassVar[str] = "hurdlepoisson"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "zero")
    domains: ClassVar = (POSITIVE, UNIT)
    link: Link = LOG
    zero_link: Link = LOGIT

    @property
    def count(self) -> ZeroTruncatedPoisson:
        """Zero-truncated Poisson."""
        return ZeroTruncatedPoisson(self.link)


@dataclass(frozen=True)
class HurdleNegativeBinomial(Hurdle):
    """Zero-truncated negative binomial counts behind a hurdle.

    Parameters
    ----------
    link, zero_link, alpha_link : Link or str
        Links of the mean before truncation, of P(y > 0), and of the overdispersion.
    loglike : {"nb2", "nb1"}
        Variance before truncation, as in `NegativeBinomial`.
    """

    name: ClassVar[str] = "hurdlenegativebinomial"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "zero", "alpha")
    domains: ClassVar = (POSITIVE, UNIT, POSITIVE)
    link: Link = LOG
    zero_link: Link = LOGIT
    alpha_link: Link = LOG
    loglike: str = "nb2"

    def __post_init__(self) -> None:
        """Check the links and the kind of variance."""
        super().__post_init__()
        check_loglike(self.name, self.loglike)

    @property
    def count(self) -> ZeroTruncatedNegativeBinomial:
        """Zero-truncated negative binomial."""
        return ZeroTruncatedNegativeBinomial(self.link, self.alpha_link, self.loglike)
