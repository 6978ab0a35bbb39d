"""The compound Poisson-gamma (Tweedie) distribution, its power known or estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.links import LOG, POSITIVE, Interval, Link

__all__ = [
    "TweedieML",
    "check_tweedie",
    "draw_tweedie",
    "tweedie_cdf",
    "tweedie_kernel",
    "tweedie_normaliser",
]

_SERIES_ELEMENTS = 4_000_000
#: Of an estimated power: beyond, the responses are as good as Poisson's multiples or
#: gamma's, and the terms of the series without end.
_POWERS = (1.01, 1.99)
_POWER_LOGIT = Interval(*_POWERS)


def tweedie_kernel(y: Tensor, log_mu: Tensor, power: Tensor | float) -> Tensor:
    """Return y mu^(1-p) / (1-p) - mu^(2-p) / (2-p)."""
    left = y * torch.exp((1 - power) * log_mu) / (1 - power)
    return left - torch.exp((2 - power) * log_mu) / (2 - power)


def tweedie_normaliser(y: Tensor, phi: Tensor, power: Tensor | float) -> Tensor:
    """Logarithm of a(y, phi, p), zero where y is; differentiable in phi and p.

    The density is ``a(y, phi, p) exp(kernel / phi)``; a is the series of Dunn & Smyth
    (2005), summed around its largest term.

    Parameters
    ----------
    y : Tensor
        Not negative.
    phi : Tensor
        Dispersion.
    power : Tensor or float
        Between 1 and 2.

    Returns
    -------
    Tensor
        Of the shape that the three broadcast to.
    """
    p = torch.as_tensor(power, dtype=phi.dtype, device=phi.device)
    y, phi, p = torch.broadcast_tensors(y, phi, p)
    positive = y > 0
    series = _log_series(torch.where(positive, y, 1.0), phi, p)
    return torch.where(positive, series, 0.0)


def _log_series(y: Tensor, phi: Tensor, p: Tensor) -> Tensor:
    """Logarithm of a(y, phi, p), in blocks of rows that bound the memory."""
    centre = (y ** (2 - p) / (phi * (2 - p))).detach()
    spread = torch.sqrt(centre * (p - 1)).detach()
    # The terms are a smooth function of j, a Poisson's or narrower: sums at steps of
    # half a standard deviation are the whole sum to rounding (Euler-Maclaurin), and
    # 10 of them with a floor of 30 terms leave out less than 1e-17 of it.
    step = (spread / 2).floor().clamp(min=1)
    reach = (10 * spread + 30) / step
    terms = 2 * math.ceil(float(reach.max()) if reach.numel() else 0.0)
    rows = max(1, _SERIES_ELEMENTS // max(terms, 1))
    flat = [t.reshape(-1).split(rows) for t in (y, phi, p, centre, step)]
    blocks = [
        _series_block(a, b, c, d, e, terms) for a, b, c, d, e in zip(*flat, strict=True)
    ]
    return torch.cat(blocks).reshape(y.shape)


def _series_block(
    y: Tensor, phi: Tensor, p: Tensor, centre: Tensor, step: Tensor, terms: int
) -> Tensor:
    shape = (2 - p) / (p - 1)  # of the gamma sizes
    first = (centre.floor() - step * (terms // 2)).clamp(min=1)
    j = torch.arange(terms, dtype=y.dtype, device=y.device)
    j = first[:, None] + step[:, None] * j
    log_z = (
        shape * (torch.log(y) - torch.log(p - 1))
        - (1 + shape) * torch.log(phi)
        - torch.log(2 - p)
    )
    sizes = torch.lgamma(shape[:, None] * j)
    log_w = j * log_z[:, None] - torch.lgamma(1 + j) - sizes
    return torch.logsumexp(log_w, dim=-1) + torch.log(step) - torch.log(y)


def check_tweedie(y: Tensor, name: str) -> None:
    """Refuse negative responses."""
    base.check_real(y, name)
    advice = "responses must be zero or positive"
    base.refuse(y < 0, y, name, "negative", advice)


def draw_tweedie(
    mu: Tensor, phi: Tensor, power: Tensor | float, generator: Generator | None
) -> Tensor:
    """Draw a Poisson number of gamma sizes, and add them up."""
    p = power
    jumps = torch.poisson(mu ** (2 - p) / (phi * (2 - p)), generator=generator)
    shape = jumps * (2 - p) / (p - 1)
    sizes = base.gamma(torch.where(jumps > 0, shape, 1.0), generator)
    sizes = sizes * (phi * (p - 1) * mu ** (p - 1))
    return torch.where(jumps > 0, sizes, 0.0)


def tweedie_cdf(
    y: Tensor, mu: Tensor, phi: Tensor, power: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Probability of less than y, and of no more: they differ at zero.

    Parameters
    ----------
    y, mu, phi : Tensor
    power : Tensor or float

    Returns
    -------
    below, at : Tensor
    """
    p = torch.as_tensor(power, dtype=mu.dtype)
    y, mu, phi, p = torch.broadcast_tensors(y, mu, phi, p)
    rate = mu ** (2 - p) / (phi * (2 - p))
    at = torch.exp(-rate)
    reach = float(rate.max())
    first = max(1, math.floor(float(rate.min()) - 10 * math.sqrt(reach)) - 30)
    last = math.ceil(reach + 10 * math.sqrt(reach)) + 30
    scaled = y / (phi * (p - 1) * mu ** (p - 1))
    shape = (2 - p) / (p - 1)
    for j in range(first, last + 1):
        weight = torch.exp(j * torch.log(rate) - rate - math.lgamma(j + 1))
        at = at + weight * torch.special.gammainc(j * shape, scaled)
    at = at.clamp(max=1.0)
    return torch.where(y > 0, at, 0.0), at


@dataclass(frozen=True)
class TweedieML(Family):
    """Tweedie response with predictors for its mean, its dispersion and its power.

    Parameters
    ----------
    link, phi_link, power_link : Link or str
        Links of the mean, the dispersion and the power; the variance is
        ``phi mu^power``. An estimated power is between 1.01 and 1.99, and its link, by
        default, the logit of its place between them.
    power : float, optional
        The power where it is known, between 1 and 2; by default it is estimated.

    References
    ----------
    Dunn, P. and Smyth, G. (2005). Series evaluation of Tweedie exponential dispersion
    model densities. Statistics and Computing 15, 267-280.
    """

    name: ClassVar[str] = "tweedieml"
    predictors: ClassVar[tuple[str, ...]] = ("mu", "phi", "power")
    domains: ClassVar = (POSITIVE, POSITIVE, _POWERS)
    has_expected: ClassVar[bool] = True
    link: Link = LOG
    phi_link: Link = LOG
    power_link: Link = _POWER_LOGIT
    power: float | None = None

    def __post_init__(self) -> None:
        """Check the links; a known power has no predictor."""
        super().__post_init__()
        if self.power is not None:
            self._hold("power", (1.0, 2.0))

    def parameters(self, *etas: Tensor) -> tuple[Tensor, ...]:
        """Mean, dispersion and power."""
        found = super().parameters(*etas)
        if self.power is None:
            return found
        return (*found, torch.full_like(found[1], self.power))

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        _, phi, p = self.parameters(*etas)
        kernel = tweedie_kernel(y, self.link.log_inverse(etas[0]), p)
        return kernel / phi + tweedie_normaliser(y, phi, p)

    def mean(self, *etas: Tensor) -> Tensor:
        """Return mu."""
        return self.link.inverse(etas[0])

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Return phi mu^power."""
        self._expect(etas, size)
        mu, phi, p = self.parameters(*etas)
        return phi * mu**p

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw compound Poisson-gamma responses."""
        self._expect(etas, size)
        mu, phi, p = torch.broadcast_tensors(*self.parameters(*etas))
        return draw_tweedie(mu, phi, p, generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse negative responses."""
        self._refuse_size(size)
        check_tweedie(y, self.name)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Mean and dispersion by moments, at a power of 1.5."""
        self._refuse_size(size)
        mean, variance = base.moments(y, weights)
        power = 1.5 if self.power is None else self.power
        phi = max(variance, 1e-8 * mean * mean) / mean**power
        tensors = (torch.tensor(v, dtype=torch.float64) for v in (mean, phi, power))
        pairs = zip(self.links, tensors, strict=False)
        return tuple(float(link.link(value)) for link, value in pairs)
