"""Families for proportions: beta and beta-binomial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.errors import DesignError
from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.links import LOG, LOGIT, POSITIVE, UNIT, Link
from deepstats.families.special import (
    HALF_LOG_2PI,
    log_binomial,
    log_rising,
    stirling_error,
)

__all__ = ["Beta", "BetaBinomial"]


def _start_phi(mean: float, variance: float) -> float:
    """Precision by moments, kept between 0.5 and 1e4."""
    return min(max(mean * (1 - mean) / max(variance, 1e-12) - 1, 0.5), 1e4)


@dataclass(frozen=True)
class Beta(Family):
    """Proportion strictly between zero and one, with a mean and a precision.

    Parameters
    ----------
    link, phi_link : Link or str
        Links of the mean and of the precision phi; the variance is
        ``mu (1 - mu) / (1 + phi)``, the shapes are ``mu phi`` and ``(1 - mu) phi``.

    References
    ----------
    Ferrari, S. and Cribari-Neto, F. (2004). Beta regression for modelling rates and
    proportions. Journal of Applied Statistics 31, 799-815.
    """

    name: ClassVar[str] = "beta"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "phi")
    domains: ClassVar = (UNIT, POSITIVE)
    link: Link = LOGIT
    phi_link: Link = LOG

    def _log_means(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        return self.link.log_inverse(eta), self.link.log_complement(eta)

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        log_mu, log_nu = self._log_means(etas[0])
        phi = self.phi_link.inverse(etas[1])
        a, b = phi * torch.exp(log_mu), phi * torch.exp(log_nu)
        log_y, log_z = torch.log(y), torch.log1p(-y)
        # Stirling's formula with its error: only differences of logarithms remain
        # when phi is large, where the log-gammas themselves would cancel.
        fit = a * (log_y - log_mu) + b * (log_z - log_nu)
        width = 0.5 * (torch.log(phi) + log_mu + log_nu) - HALF_LOG_2PI
        errors = stirling_error(1 / phi) - stirling_error(1 / a) - stirling_error(1 / b)
        return fit + width + errors - log_y - log_z

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu."""
        return self.link.inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return mu (1 - mu) / (1 + phi)."""
        self._expect(etas, size)
        log_mu, log_nu = self._log_means(etas[0])
        return torch.exp(log_mu + log_nu) / (1 + self.phi_link.inverse(etas[1]))

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw proportions as a ratio of gammas."""
        self._expect(etas, size)
        eta, eta_phi = torch.broadcast_tensors(*etas)
        log_mu, log_nu = self._log_means(eta)
        phi = self.phi_link.inverse(eta_phi)
        return base.beta(phi * torch.exp(log_mu), phi * torch.exp(log_nu), generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse proportions that are not strictly between zero and one."""
        self._refuse_size(size)
        base.check_real(y, self.name)
        advice = "responses must be strictly between 0 and 1"
        base.refuse((y < 0) | (y > 1), y, self.name, "outside (0, 1)", advice)
        advice = (
            "the beta density needs 0 < y < 1: squeeze the response, "
            "(y * (n - 1) + 0.5) / n with n rows, or model zeros and ones apart"
        )
        base.refuse((y == 0) | (y == 1), y, self.name, "exactly 0 or 1", advice)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Mean and precision by moments."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        phi = _start_phi(mean, variance)
        first = base.linked(self.link, mean, UNIT)
        return first, base.linked(self.phi_link, phi, POSITIVE)


@dataclass(frozen=True)
class BetaBinomial(Family):
    """Proportion of successes in `size` trials whose probability is beta distributed.

    Parameters
    ----------
    link, phi_link : Link or str
        Links of the mean and of the precision phi; the family tends to the binomial
        as phi grows, and the correlation of two trials is 1 / (1 + phi).
    """

    name: ClassVar[str] = "betabinomial"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "phi")
    domains: ClassVar = (UNIT, POSITIVE)
    sized: ClassVar[bool] = True
    link: Link = LOGIT
    phi_link: Link = LOG

    def log_prob(self, y: Tensor, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Point-wise log probability of the number of successes.

        Parameters
        ----------
        y : Tensor
            Proportions of successes.
        *etas : Tensor
            Linear predictors of mu and phi.
        size : Tensor
            Numbers of trials; required.

        Returns
        -------
        Tensor
        """
        self._expect(etas, size)
        n = self._trials(size).to(etas[0])
        yes = (y.to(n.dtype) * n).round()
        no = n - yes
        log_mu = self.link.log_inverse(etas[0])
        log_nu = self.link.log_complement(etas[0])
        # Reciprocals of the shapes vanish in the binomial limit.
        u = 1 / self.phi_link.inverse(etas[1])
        mixed = log_rising(yes, u * torch.exp(-log_mu))
        mixed = mixed + log_rising(no, u * torch.exp(-log_nu)) - log_rising(n, u)
        return log_binomial(n, yes) + yes * log_mu + no * log_nu + mixed

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu, the mean of the proportion."""
        return self.link.inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Variance of the proportion, mu (1 - mu) (1 + (n - 1) / (1 + phi)) / n."""
        self._expect(etas, size)
        n = self._trials(size).to(etas[0])
        log_mu = self.link.log_inverse(etas[0])
        log_nu = self.link.log_complement(etas[0])
        inflation = 1 + (n - 1) / (1 + self.phi_link.inverse(etas[1]))
        return torch.exp(log_mu + log_nu) * inflation / n

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw probabilities, then proportions of successes."""
        self._expect(etas, size)
        p = Beta(self.link, self.phi_link).sample(*etas, generator=generator)
        n = self._trials(size).to(p).expand_as(p).contiguous()
        return torch.binomial(n, p, generator=generator) / n

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse proportions without sizes, and sizes or successes that are not whole.

        Raises
        ------
        DesignError
        """
        base.check_proportions(y, self._trials(size), self.name)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Weighted mean proportion, and the precision by moments."""
        trials = self._trials(size)
        mean, _ = base.moments(y, trials if weights is None else trials * weights)
        _, variance = base.moments(y, weights)
        n, _ = base.moments(trials, weights)
        # variance / (mean (1 - mean)) = 1/n + (1 - 1/n) / (1 + phi)
        ratio = variance / max(mean * (1 - mean), 1e-12)
        share = (ratio - 1 / n) / max(1 - 1 / n, 1e-12)
        phi = 1 / min(max(share, 1e-3), 0.9) - 1
        first = base.linked(self.link, mean, UNIT)
        return first, base.linked(self.phi_link, phi, POSITIVE)

    def _trials(self, size: Tensor | None) -> Tensor:
        if size is None:
            raise DesignError(
                f"{self.name} needs the number of trials of each row (size), "
                "for instance cbind(yes, no) ~ x; for 0/1 responses use binomial"
            )
        return torch.as_tensor(size)
