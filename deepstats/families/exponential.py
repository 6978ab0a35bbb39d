"""Exponential dispersion families: the distributions of generalised linear models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.families import base
from deepstats.families.base import ExponentialFamily
from deepstats.families.links import (
    IDENTITY,
    INVERSE,
    INVERSE_SQUARED,
    LOG,
    LOGIT,
    POSITIVE,
    REAL,
    UNIT,
    Link,
    Power,
    get_link,
)
from deepstats.families.special import (
    HALF_LOG_2PI,
    log_binomial,
    log_rising,
    relative_log1p,
    stirling_error,
    x_log_ratio,
)
from deepstats.families.tweedie import (
    check_tweedie,
    draw_tweedie,
    tweedie_kernel,
    tweedie_normaliser,
)

__all__ = [
    "Binomial",
    "Gamma",
    "Gaussian",
    "InverseGaussian",
    "NegativeBinomialFixed",
    "Poisson",
    "Quasi",
    "QuasiBinomial",
    "QuasiPoisson",
    "Tweedie",
]


@dataclass(frozen=True)
class Gaussian(ExponentialFamily):
    """Normal response; the scale is its variance."""

    name: ClassVar[str] = "gaussian"
    domains: ClassVar = (REAL,)
    scale: ClassVar[str] = "estimated"
    link: Link = IDENTITY

    @property
    def canonical_link(self) -> Link:
        """Identity."""
        return IDENTITY

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(mu)

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(mu)

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return -(y - mu)^2 / 2."""
        return -0.5 * (y - self.link.inverse(eta)) ** 2

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        return -0.5 * torch.log(scale) - HALF_LOG_2PI

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        return (y - mu) ** 2

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return y, moved inside the domain of the link."""
        low, high = self.link.domain
        if (low, high) == UNIT:
            return y.clamp(0.05, 0.95)
        return y if low == -math.inf else y.clamp(min=low + 0.1)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse missing and infinite responses."""
        self._refuse_size(size)
        base.check_real(y, self.name)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        return mu + phi.sqrt() * base.normal(mu, generator)


@dataclass(frozen=True)
class Binomial(ExponentialFamily):
    """Proportion of successes in `size` trials; zero or one without a size."""

    name: ClassVar[str] = "binomial"
    domains: ClassVar = (UNIT,)
    sized: ClassVar[bool] = True
    link: Link = LOGIT

    @property
    def canonical_link(self) -> Link:
        """Logit."""
        return LOGIT

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return mu (1 - mu)."""
        return mu * (1 - mu)

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return 1 - 2 mu."""
        return 1 - 2 * mu

    def expected_weight(self, eta: Tensor) -> Tensor:
        """Fisher information of eta for one trial, zero far in the tails."""
        slope = self.link.derivative(eta)
        log_variance = self.link.log_inverse(eta) + self.link.log_complement(eta)
        variance = torch.exp(log_variance)
        tail = variance == 0
        return torch.where(
            tail, 0.0, slope * (slope / torch.where(tail, 1.0, variance))
        )

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return y log(mu) + (1 - y) log(1 - mu)."""
        yes, no = self.link.log_inverse(eta), self.link.log_complement(eta)
        return y * yes + (1 - y) * no

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        if size is None:
            return torch.zeros_like(y)
        return log_binomial(size.to(y.dtype), (y * size).round())

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        return 2 * (x_log_ratio(y, mu) + x_log_ratio(1 - y, 1 - mu))

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return (size y + 1/2) / (size + 1)."""
        trials = 1.0 if size is None else size
        return (trials * y + 0.5) / (trials + 1)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse proportions outside [0, 1] and impossible numbers of trials."""
        base.check_proportions(y, size, self.name)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        if size is None:
            return (base.uniform(mu, generator) <= mu).to(mu.dtype)
        trials = size.to(mu).expand_as(mu).contiguous()
        return torch.binomial(trials, mu.contiguous(), generator=generator) / trials


@dataclass(frozen=True)
class Poisson(ExponentialFamily):
    """Counts whose variance is their mean."""

    name: ClassVar[str] = "poisson"
    domains: ClassVar = (POSITIVE,)
    link: Link = LOG

    @property
    def canonical_link(self) -> Link:
        """Log."""
        return LOG

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return mu."""
        return mu

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(mu)

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return y log(mu) - mu."""
        return y * self.link.log_inverse(eta) - self.link.inverse(eta)

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        return -torch.lgamma(y + 1)

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        return 2 * (x_log_ratio(y, mu) - (y - mu))

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return y + 0.1."""
        return y + 0.1

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse what is not a count."""
        self._refuse_size(size)
        base.check_counts(y, self.name)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        return torch.poisson(mu, generator=generator)

    def zero_exponent(self, *etas: Tensor) -> Tensor:
        """Return -log P(y = 0)."""
        return self.mean(*etas)


@dataclass(frozen=True)
class NegativeBinomialFixed(ExponentialFamily):
    """Counts with variance mu + alpha mu^2, for a known alpha.

    Parameters
    ----------
    link : Link or str
        Link of the mean.
    alpha : float
        Overdispersion; as it goes to zero the family becomes Poisson.
    """

    name: ClassVar[str] = "negativebinomial"
    domains: ClassVar = (POSITIVE,)
    link: Link = LOG
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an alpha that is not positive."""
        super().__post_init__()
        if not (0 < self.alpha < math.inf):
            raise ValueError(
                f"negativebinomial needs a finite alpha > 0, got {self.alpha!r}; "
                "at alpha = 0 use poisson"
            )

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return mu + alpha mu^2."""
        return mu + self.alpha * mu * mu

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return 1 + 2 alpha mu."""
        return 1 + 2 * self.alpha * mu

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return y log(mu / (1 + alpha mu)) - log(1 + alpha mu) / alpha."""
        mu = self.link.inverse(eta)
        x = self.alpha * mu
        log_odds = self.link.log_inverse(eta) - torch.log1p(x)
        return y * log_odds - mu * (1 + relative_log1p(x))

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        return log_rising(y, torch.full_like(y, self.alpha)) - torch.lgamma(y + 1)

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        u, v = self.alpha * y, self.alpha * mu
        # (y + 1/alpha) log((1 + u) / (1 + v)) without a division by alpha
        gap = y * (torch.log1p(u) - torch.log1p(v))
        gap = gap + (y - mu) + y * relative_log1p(u) - mu * relative_log1p(v)
        return 2 * (x_log_ratio(y, mu) - gap)

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return y + 0.1."""
        return y + 0.1

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse what is not a count."""
        self._refuse_size(size)
        base.check_counts(y, self.name)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        shape = torch.full_like(mu, 1 / self.alpha)
        rate = base.gamma(shape, generator) * (self.alpha * mu)
        return torch.poisson(rate, generator=generator)


def _check_positive(family: ExponentialFamily, y: Tensor, size: Tensor | None) -> None:
    family._refuse_size(size)
    base.check_real(y, family.name)
    advice = "responses must be positive; tweedie allows exact zeros"
    base.refuse(y <= 0, y, family.name, "zero or negative", advice)


@dataclass(frozen=True)
class Gamma(ExponentialFamily):
    """Positive response with variance scale * mu^2; its shape is 1 / scale."""

    name: ClassVar[str] = "gamma"
    domains: ClassVar = (POSITIVE,)
    scale: ClassVar[str] = "estimated"
    link: Link = INVERSE

    @property
    def canonical_link(self) -> Link:
        """Inverse."""
        return INVERSE

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return mu^2."""
        return mu * mu

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return 2 mu."""
        return 2 * mu

    def expected_weight(self, eta: Tensor) -> Tensor:
        """Return (d log mu / d eta)^2."""
        return (self.link.derivative(eta) / self.link.inverse(eta)) ** 2

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return 1 - y / mu + log(y / mu): minus half the deviance."""
        # Written with log(y), a constant, so that a small scale costs no digits.
        log_ratio = torch.log(y) - self.link.log_inverse(eta)
        return log_ratio - torch.expm1(log_ratio)

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        # log density at mu = y, by Stirling's formula with its error
        constant = -0.5 * torch.log(scale) - HALF_LOG_2PI - stirling_error(scale)
        return constant - torch.log(y)

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        ratio = y / mu
        return 2 * (ratio - 1 - torch.log(ratio))

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return y."""
        return y

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse responses that are not positive."""
        _check_positive(self, y, size)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        tiny = torch.finfo(mu.dtype).tiny
        return (base.gamma(1 / phi, generator) * (mu * phi)).clamp(min=tiny)


@dataclass(frozen=True)
class InverseGaussian(ExponentialFamily):
    """Positive response with variance scale * mu^3."""

    name: ClassVar[str] = "inversegaussian"
    domains: ClassVar = (POSITIVE,)
    scale: ClassVar[str] = "estimated"
    link: Link = INVERSE_SQUARED

    @property
    def canonical_link(self) -> Link:
        """Inverse squared."""
        return INVERSE_SQUARED

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return mu^3."""
        return mu**3

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return 3 mu^2."""
        return 3 * mu * mu

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return -(y / mu - 1)^2 / (2 y): minus half the deviance."""
        log_ratio = torch.log(y) - self.link.log_inverse(eta)
        return -0.5 * torch.expm1(log_ratio) ** 2 / y

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        return -0.5 * torch.log(scale) - 1.5 * torch.log(y) - HALF_LOG_2PI

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        return (y / mu - 1) ** 2 / y

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return y."""
        return y

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse responses that are not positive."""
        _check_positive(self, y, size)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        # Michael, Schucany and Haas (1976); the smaller root in a form that
        # does not cancel when the dispersion is large.
        c = 0.5 * phi * mu * base.normal(mu, generator) ** 2
        root = mu / (1 + c + torch.sqrt(c * (c + 2)))
        keep = base.uniform(mu, generator) * (mu + root) <= mu
        return torch.where(keep, root, mu * (mu / root))


@dataclass(frozen=True)
class Tweedie(ExponentialFamily):
    """Compound Poisson-gamma response: zero or positive, variance scale * mu^power.

    Parameters
    ----------
    link : Link or str
        Link of the mean.
    power : float
        Between 1 and 2. For powers 0, 1, 2 and 3 `get_family` gives the Gaussian,
        Poisson, gamma and inverse Gaussian families.

    References
    ----------
    Dunn, P. and Smyth, G. (2005). Series evaluation of Tweedie exponential dispersion
    model densities. Statistics and Computing 15, 267-280.
    """

    name: ClassVar[str] = "tweedie"
    domains: ClassVar = (POSITIVE,)
    scale: ClassVar[str] = "estimated"
    link: Link = LOG
    power: float = 1.5

    def __post_init__(self) -> None:
        """Refuse a power outside (1, 2)."""
        super().__post_init__()
        if not 1 < self.power < 2:
            raise ValueError(
                f"tweedie needs a power between 1 and 2, got {self.power!r}; use "
                "gaussian (0), poisson (1), gamma (2) or inversegaussian (3)"
            )

    @property
    def canonical_link(self) -> Link:
        """Power 1 - p."""
        return Power(1 - self.power)

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return mu^power."""
        return mu**self.power

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return power mu^(power - 1)."""
        return self.power * mu ** (self.power - 1)

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Return y mu^(1-p) / (1-p) - mu^(2-p) / (2-p)."""
        return tweedie_kernel(y, self.link.log_inverse(eta), self.power)

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        return tweedie_normaliser(y, scale, self.power)

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        p = self.power
        saturated = y ** (2 - p) / ((1 - p) * (2 - p))
        fitted = y * mu ** (1 - p) / (1 - p) - mu ** (2 - p) / (2 - p)
        return 2 * (saturated - fitted)

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return y, with zeros raised to 0.1."""
        return torch.where(y > 0, y, 0.1)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse negative responses."""
        self._refuse_size(size)
        check_tweedie(y, self.name)

    def _draw(
        self, mu: Tensor, phi: Tensor, size: Tensor | None, generator: Generator | None
    ) -> Tensor:
        return draw_tweedie(mu, phi, self.power, generator)


# --------------------------------------------------------------------- quasi

_VARIANCES: dict[str, ExponentialFamily] = {
    "constant": Gaussian(),
    "mu": Poisson(),
    "mu^2": Gamma(),
    "mu^3": InverseGaussian(),
    "mu(1-mu)": Binomial(),
}


def _variance_key(variance: str) -> str:
    key = str(variance).lower().replace(" ", "").replace("**", "^").replace("*", "")
    if key not in _VARIANCES:
        allowed = ", ".join(_VARIANCES)
        raise ValueError(f"unknown variance {variance!r} for quasi; allowed: {allowed}")
    return key


@dataclass(frozen=True, init=False)
class Quasi(ExponentialFamily):
    """Quasi-likelihood: a mean, a variance function and an estimated dispersion.

    Parameters
    ----------
    link : Link or str, optional
        By default the canonical link of the variance function.
    variance : {"constant", "mu", "mu^2", "mu^3", "mu(1-mu)"}
        Variance function.

    Notes
    -----
    `log_prob` is the quasi-likelihood over the scale, not a density;
    `has_likelihood` is False, and there is nothing to draw from.

    References
    ----------
    Wedderburn, R. (1974). Quasi-likelihood functions, generalized linear models, and
    the Gauss-Newton method. Biometrika 61, 439-447.
    """

    name: ClassVar[str] = "quasi"
    scale: ClassVar[str] = "estimated"
    has_likelihood: ClassVar[bool] = False
    link: Link = None  # type: ignore[assignment]
    variance_function: str = "constant"
    like: ExponentialFamily = field(init=False, repr=False, compare=False)

    def __init__(
        self, link: Link | str | None = None, variance: str = "constant"
    ) -> None:
        """Bind the variance function and the link."""
        key = _variance_key(variance)
        like = _VARIANCES[key]
        try:
            like = like if link is None else replace(like, link=get_link(link))
        except ValueError as error:
            message = str(error).replace(like.name, f"{self.name} ({key})", 1)
            raise ValueError(message) from None
        object.__setattr__(self, "variance_function", key)
        object.__setattr__(self, "like", like)
        object.__setattr__(self, "link", like.link)

    @property
    def domains(self) -> tuple[tuple[float, float], ...]:  # type: ignore[override]
        """Open interval of the means."""
        return self.like.domains

    @property
    def sized(self) -> bool:  # type: ignore[override]
        """Whether the responses are proportions."""
        return self.like.sized

    @property
    def canonical_link(self) -> Link | None:
        """Canonical link of the variance function."""
        return self.like.canonical_link

    def unit_variance(self, mu: Tensor) -> Tensor:
        """Return the variance function."""
        return self.like.unit_variance(mu)

    def unit_variance_derivative(self, mu: Tensor) -> Tensor:
        """Return the derivative of the variance function."""
        return self.like.unit_variance_derivative(mu)

    def expected_weight(self, eta: Tensor) -> Tensor:
        """Quasi-information of eta at dispersion one."""
        return self.like.expected_weight(eta)

    def kernel(self, y: Tensor, eta: Tensor) -> Tensor:
        """Quasi-likelihood at dispersion one."""
        return self.like.kernel(y, eta)

    def _normaliser(self, y: Tensor, size: Tensor | None, scale: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def _unit_deviance(self, y: Tensor, mu: Tensor) -> Tensor:
        return self.like._unit_deviance(y, mu)

    def start_mu(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Fitted means to start from."""
        return self.like.start_mu(y, size)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse responses outside the closure of the mean's domain."""
        self._refuse_size(size)
        base.check_real(y, self.name)
        if self.variance_function == "mu(1-mu)":
            base.check_proportions(y, None, self.name)
        elif self.variance_function == "mu":
            advice = "responses must be zero or positive"
            base.refuse(y < 0, y, self.name, "negative", advice)
        elif self.variance_function != "constant":
            advice = f"variance {self.variance_function} needs positive responses"
            base.refuse(y <= 0, y, self.name, "zero or negative", advice)

    def sample(self, *etas: Tensor, **options: object) -> Tensor:
        """Refuse: a quasi-likelihood is no distribution."""
        raise ValueError(
            f"{self.name} is no distribution and cannot be sampled; "
            f"use {self.like.name} or another family with a likelihood"
        )


class QuasiPoisson(Quasi):
    """Quasi-likelihood with variance scale * mu, for amounts that are not negative."""

    name: ClassVar[str] = "quasipoisson"

    def __init__(self, link: Link | str | None = None) -> None:
        """Bind the link, log by default."""
        super().__init__(link, "mu")


class QuasiBinomial(Quasi):
    """Quasi-likelihood with variance scale * mu (1 - mu), for proportions."""

    name: ClassVar[str] = "quasibinomial"

    def __init__(self, link: Link | str | None = None) -> None:
        """Bind the link, logit by default."""
        super().__init__(link, "mu(1-mu)")
