"""The normal family seen between two limits: the tobit model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.errors import DesignError
from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.links import IDENTITY, LOG, POSITIVE, REAL, Link
from deepstats.families.special import HALF_LOG_2PI, log_ndtr

__all__ = ["CensoredNormal"]

# Rounds of the EM algorithm that make a start; it halves the distance in each.
_ROUNDS = 8


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _beyond(x: Tensor) -> Tensor:
    """Probability that a standard normal is beyond x."""
    return 0.5 * torch.erfc(x * math.sqrt(0.5))


def _excess(x: Tensor) -> Tensor:
    """Return E max(Z - x, 0) for a standard normal Z; zero at infinity."""
    inside = torch.where(x == math.inf, 0.0, x)
    return torch.where(x == math.inf, 0.0, _density(x) - inside * _beyond(inside))


def _lost(x: Tensor) -> Tensor:
    """Return E (x^2 - Z^2) over Z > x, for a standard normal Z; zero at infinity."""
    inside = torch.where(x == math.inf, 0.0, x)
    lost = (inside * inside - 1) * _beyond(inside) - inside * _density(inside)
    return torch.where(x == math.inf, 0.0, lost)


@dataclass(frozen=True)
class CensoredNormal(Family):
    """Normal response of which only the part between two limits is seen.

    A response at or below the lower limit a has probability ``Phi((a - mu) / sigma)``,
    one at or above the upper limit b has ``Phi((mu - b) / sigma)``, and one between
    them the normal density.

    Parameters
    ----------
    link, sigma_link : Link or str
        Links of the mean and the standard deviation of the latent response.
    lower, upper : float, default none
        Limits of all rows. Every method takes `lower` and `upper` as tensors too, one
        number for each row, in place of these.

    References
    ----------
    Tobin, J. (1958). Estimation of relationships for limited dependent variables.
    Econometrica 26, 24-36.
    """

    name: ClassVar[str] = "censorednormal"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "sigma")
    domains: ClassVar = (REAL, POSITIVE)
    link: Link = IDENTITY
    sigma_link: Link = LOG
    lower: float = -math.inf
    upper: float = math.inf

    def __post_init__(self) -> None:
        """Check the links and the order of the limits."""
        super().__post_init__()
        object.__setattr__(self, "lower", float(self.lower))
        object.__setattr__(self, "upper", float(self.upper))
        if not self.lower < self.upper:
            raise ValueError(
                f"{self.name} needs lower < upper, got lower={self.lower:g} and "
                f"upper={self.upper:g}"
            )

    def limits(
        self, like: Tensor, lower: Tensor | None, upper: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both limits as tensors: those given, or the family's own."""
        low: Tensor | float = self.lower if lower is None else lower
        high: Tensor | float = self.upper if upper is None else upper
        dtype, device = like.dtype, like.device
        return (
            torch.as_tensor(low, dtype=dtype, device=device),
            torch.as_tensor(high, dtype=dtype, device=device),
        )

    def log_prob(
        self,
        y: Tensor,
        *etas: Tensor,
        size: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> Tensor:
        """Point-wise log density between the limits, log probability at them.

        Parameters
        ----------
        y : Tensor
            Responses; one beyond a limit counts as being at it.
        *etas : Tensor
            Linear predictors of mu and sigma.
        size : None
            Not taken.
        lower, upper : Tensor, optional
            Limits of the rows; the family's own if not given.

        Returns
        -------
        Tensor
        """
        self._expect(etas, size)
        y = y.to(etas[0].dtype)
        a, b = self.limits(etas[0], lower, upper)
        low = y <= a
        high = (y >= b) & ~low
        point = torch.where(low, a, torch.where(high, b, y))
        log_sigma = self.sigma_link.log_inverse(etas[1])
        z = (point - self.link.inverse(etas[0])) * torch.exp(-log_sigma)
        # Rows between the limits get a number whose derivatives are finite.
        at_limit = torch.where(low, z, torch.where(high, -z, 0.0))
        density = -0.5 * z * z - log_sigma - HALF_LOG_2PI
        return torch.where(low | high, log_ndtr(at_limit), density)

    def latent_mean(self, *etas: Tensor) -> Tensor:
        """Mean of the response without limits, mu."""
        return self.link.inverse(etas[0])

    def _standard(
        self, etas: tuple[Tensor, ...], lower: Tensor | None, upper: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return mu, sigma, both limits, and how far mu is inside each, in sigmas."""
        mu, sigma = self.parameters(*etas)
        a, b = self.limits(mu, lower, upper)
        return mu, sigma, a, b, (mu - a) / sigma, (b - mu) / sigma

    def mean(
        self, *etas: Tensor, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Tensor:
        """Mean of the response as it is seen, every value moved to its limit."""
        mu, sigma, a, b, below, above = self._standard(etas, lower, upper)
        mean = mu + sigma * (_excess(below) - _excess(above))
        return torch.minimum(torch.maximum(mean, a), b)

    def variance(
        self,
        *etas: Tensor,
        size: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> Tensor:
        """Variance of the response as it is seen."""
        self._expect(etas, size)
        _, sigma, _, _, below, above = self._standard(etas, lower, upper)
        square = 1 + _lost(below) + _lost(above)
        shift = _excess(below) - _excess(above)
        return sigma * sigma * (square - shift * shift).clamp(min=0)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> Tensor:
        """Draw normal responses, and move those beyond a limit to it."""
        self._expect(etas, size)
        mu, sigma = torch.broadcast_tensors(*self.parameters(*etas))
        a, b = self.limits(mu, lower, upper)
        y = mu + sigma * base.normal(mu, generator)
        return torch.minimum(torch.maximum(y, a), b)

    def check(
        self,
        y: Tensor,
        size: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> None:
        """Refuse missing and infinite responses, and limits that are out of order.

        Raises
        ------
        DesignError
        """
        self._refuse_size(size)
        base.check_real(y, self.name)
        a, b = (t.expand(y.shape) for t in self.limits(y, lower, upper))
        bad = ~(a < b)
        if bool(bad.any()):
            row = int(bad.reshape(-1).nonzero()[0])
            first = (float(t.reshape(-1)[row]) for t in (a, b))
            raise DesignError(
                f"{self.name}: {int(bad.sum())} of {y.numel()} rows have limits that "
                f"are missing or not in order, the first at row {row} (lower, upper: "
                f"{', '.join(f'{value:g}' for value in first)}); give lower < upper, "
                "and -inf or inf where there is no limit"
            )

    def start(
        self,
        y: Tensor,
        weights: Tensor | None = None,
        size: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> tuple[float, ...]:
        """Mean and standard deviation of the latent response, by a few rounds of EM."""
        self._refuse_size(size)
        y = y.to(torch.float64)
        a, b = (t.expand(y.shape) for t in self.limits(y, lower, upper))
        low, high = y <= a, (y >= b) & (y > a)
        at = low | high
        sign = torch.where(low, 1.0, -1.0).to(y)[at]
        limit = torch.where(low, a, b)[at]
        seen = torch.where(at, torch.where(low, a, b), y)
        mean, variance = base.moments(seen, weights)
        sigma = math.sqrt(variance) or 1.0
        # All responses at their limits: there is no spread to learn from.
        for _ in range(_ROUNDS if at.any() and not at.all() else 0):
            v = sign * (limit - mean) / sigma
            ratio = torch.exp(-0.5 * v * v - HALF_LOG_2PI - log_ndtr(v))
            latent = seen.clone()
            latent[at] = mean - sign * sigma * ratio
            extra = torch.zeros_like(seen)
            extra[at] = (1 - ratio * (v + ratio)).clamp(0, 1) * sigma**2
            mean, variance = base.moments(latent, weights)
            sigma = math.sqrt(variance + base.moments(extra, weights)[0])
        spread = torch.tensor(sigma, dtype=torch.float64)
        first = base.linked(self.link, mean, self.link.domain)
        return first, float(self.sigma_link.link(spread))
