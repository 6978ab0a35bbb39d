"""Continuous families whose spread has a predictor of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.exponential import InverseGaussian
from deepstats.families.links import (
    IDENTITY,
    INVERSE_SQUARED,
    LOG,
    POSITIVE,
    REAL,
    Link,
)
from deepstats.families.special import (
    HALF_LOG_2PI,
    log_rising,
    relative_log1p,
    stirling_error,
)

__all__ = ["GammaML", "GaussianML", "InverseGaussianML", "StudentT"]


@dataclass(frozen=True)
class GaussianML(Family):
    """Normal response with predictors for its mean and its standard deviation.

    Parameters
    ----------
    link, sigma_link : Link or str
        Links of the mean and of the standard deviation.
    """

    name: ClassVar[str] = "gaussianml"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "sigma")
    domains: ClassVar = (REAL, POSITIVE)
    has_expected: ClassVar[bool] = True
    link: Link = IDENTITY
    sigma_link: Link = LOG

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        mu, _ = self.parameters(*etas)
        log_sigma = self.sigma_link.log_inverse(etas[1])
        z = (y - mu) * torch.exp(-log_sigma)
        return -0.5 * z * z - log_sigma - HALF_LOG_2PI

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu."""
        return self.link.inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return sigma^2."""
        self._expect(etas, size)
        return self.sigma_link.inverse(etas[1]) ** 2

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw normal responses."""
        self._expect(etas, size)
        mu, sigma = torch.broadcast_tensors(*self.parameters(*etas))
        return mu + sigma * base.normal(mu, generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse missing and infinite responses."""
        self._refuse_size(size)
        base.check_real(y, self.name)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Mean and standard deviation of the response."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        sigma = math.sqrt(variance) or 1.0
        spread = torch.tensor(sigma, dtype=torch.float64)
        first = base.linked(self.link, mean, self.link.domain)
        return first, float(self.sigma_link.link(spread))


@dataclass(frozen=True)
class GammaML(Family):
    """Gamma response with predictors for its mean and its shape.

    Parameters
    ----------
    link, shape_link : Link or str
        Links of the mean and of the shape; the variance is ``mu^2 / shape``.
    """

    name: ClassVar[str] = "gammaml"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "shape")
    domains: ClassVar = (POSITIVE, POSITIVE)
    has_expected: ClassVar[bool] = True
    link: Link = LOG
    shape_link: Link = LOG

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        log_y, log_k = torch.log(y), self.shape_link.log_inverse(etas[1])
        log_ratio = log_y - self.link.log_inverse(etas[0])
        fit = torch.exp(log_k) * (log_ratio - torch.expm1(log_ratio))
        error = stirling_error(torch.exp(-log_k))
        return fit + 0.5 * log_k - HALF_LOG_2PI - error - log_y

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu."""
        return self.link.inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return mu^2 / shape."""
        self._expect(etas, size)
        mu, shape = self.parameters(*etas)
        return mu * mu / shape

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw gamma responses."""
        self._expect(etas, size)
        mu, shape = torch.broadcast_tensors(*self.parameters(*etas))
        tiny = torch.finfo(mu.dtype).tiny
        return (base.gamma(shape, generator) * (mu / shape)).clamp(min=tiny)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse responses that are not positive."""
        self._refuse_size(size)
        base.check_real(y, self.name)
        advice = "responses must be positive; tweedie allows exact zeros"
        base.refuse(y <= 0, y, self.name, "zero or negative", advice)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Mean and shape by moments."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        values = (mean, mean * mean / max(variance, 1e-8 * mean * mean))
        tensors = (torch.tensor(value, dtype=torch.float64) for value in values)
        pairs = zip(self.links, tensors, strict=True)
        return tuple(float(link.link(value)) for link, value in pairs)


@dataclass(frozen=True)
class InverseGaussianML(Family):
    """Inverse Gaussian response with predictors for its mean and its dispersion.

    Parameters
    ----------
    link, phi_link : Link or str
        Links of the mean and of the dispersion; the variance is ``phi mu^3``.
    """

    name: ClassVar[str] = "inversegaussianml"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "phi")
    domains: ClassVar = (POSITIVE, POSITIVE)
    has_expected: ClassVar[bool] = True
    link: Link = INVERSE_SQUARED
    phi_link: Link = LOG

    @property
    def at_one(self) -> InverseGaussian:
        """The family of generalised linear models."""
        return InverseGaussian(self.link)

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        log_phi = self.phi_link.log_inverse(etas[1])
        kernel = self.at_one.kernel(y, etas[0]) * torch.exp(-log_phi)
        return kernel - 0.5 * log_phi - 1.5 * torch.log(y) - HALF_LOG_2PI

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu."""
        return self.link.inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return phi mu^3."""
        self._expect(etas, size)
        mu, phi = self.parameters(*etas)
        return phi * mu**3

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw inverse Gaussian responses."""
        self._expect(etas, size)
        mu, phi = torch.broadcast_tensors(*self.parameters(*etas))
        return self.at_one._draw(mu, phi, None, generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse responses that are not positive."""
        self.at_one.check(y, size)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Mean and dispersion by moments."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        values = (mean, max(variance, 1e-8 * mean * mean) / mean**3)
        tensors = (torch.tensor(value, dtype=torch.float64) for value in values)
        pairs = zip(self.links, tensors, strict=True)
        return tuple(float(link.link(value)) for link, value in pairs)


@dataclass(frozen=True)
class StudentT(Family):
    """Student's t response with predictors for location, scale and degrees of freedom.

    Parameters
    ----------
    link, sigma_link, nu_link : Link or str
        Links of the location, the scale and the degrees of freedom.
    nu : float, optional
        Degrees of freedom where they are known; by default they are estimated.

    References
    ----------
    Lange, K., Little, R. and Taylor, J. (1989). Robust statistical modeling using the t
    distribution. Journal of the American Statistical Association 84, 881-896.
    """

    name: ClassVar[str] = "studentt"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "sigma", "nu")
    domains: ClassVar = (REAL, POSITIVE, POSITIVE)
    link: Link = IDENTITY
    sigma_link: Link = LOG
    nu_link: Link = LOG
    nu: float | None = None

    def __post_init__(self) -> None:
        """Check the links; known degrees of freedom have no predictor."""
        super().__post_init__()
        if self.nu is not None:
            self._hold("nu")

    def parameters(self, *etas: Tensor) -> tuple[Tensor, ...]:
        """Location, scale and degrees of freedom."""
        found = super().parameters(*etas)
        if self.nu is None:
            return found
        return (*found, torch.full_like(found[1], self.nu))

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        mu, sigma, nu = self.parameters(*etas)
        z2 = ((y - mu) / sigma) ** 2
        x = z2 / nu
        # Both parts tend to the normal's as nu grows, without cancellation.
        fit = 0.5 * z2 * (1 + relative_log1p(x)) + 0.5 * torch.log1p(x)
        constant = log_rising(torch.full_like(nu, 0.5), 2 / nu) - HALF_LOG_2PI
        return constant - self.sigma_link.log_inverse(etas[1]) - fit

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu, or NaN where nu <= 1 and there is no mean."""
        mu, _, nu = self.parameters(*etas)
        return torch.where(nu > 1, mu, math.nan)

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return sigma^2 nu / (nu - 2), infinite where nu <= 2."""
        self._expect(etas, size)
        _, sigma, nu = self.parameters(*etas)
        finite = nu > 2
        excess = torch.where(finite, nu - 2, 1.0)
        return torch.where(finite, sigma * sigma * (nu / excess), math.inf)

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw a normal over the root of a scaled gamma."""
        self._expect(etas, size)
        mu, sigma, nu = torch.broadcast_tensors(*self.parameters(*etas))
        chi2 = base.gamma(nu / 2, generator) / (nu / 2)
        return mu + sigma * base.normal(mu, generator) / chi2.sqrt()

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse missing and infinite responses."""
        self._refuse_size(size)
        base.check_real(y, self.name)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Mean and spread of the response, with eight degrees of freedom."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        nu = self.nu or 8.0
        excess = 1 - 2 / nu if nu > 3 else 1 / 3
        values = ((math.sqrt(variance) or 1.0) * math.sqrt(excess), nu)
        tensors = (torch.tensor(value, dtype=torch.float64) for value in values)
        pairs = zip(self.links[1:], tensors, strict=False)
        rest = tuple(float(link.link(value)) for link, value in pairs)
        return (base.linked(self.link, mean, self.link.domain), *rest)
