"""Kernels that need each response: their density does not split into features.

A table kernel has one feature, which is one, and its only term is the log-density of
the cell's own response. The censored normal and the NB2 families have written
derivatives; the others are differentiated automatically, cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from ...errors import ModelError
from ...families import (
    Beta,
    BetaBinomial,
    CensoredNormal,
    ExponentialFamily,
    NegativeBinomial,
    Tweedie,
)
from ...families import base as draws
from ...families.special import HALF_LOG_2PI
from ...likelihood import pointwise
from .density_kernel import (
    PAIRS,
    Censoring,
    Derived,
    Kernel,
    Observed,
    full,
    log_odds,
    powered,
    slim,
)

__all__ = [
    "CensoredNormalKernel",
    "NegativeBinomialKernel",
    "ScaledKernel",
    "TableKernel",
    "ZeroInflatedNegativeBinomialKernel",
]

# Sums over j < y come from a table when it has no more numbers than this.
_LARGEST_TABLE = 4_000_000
# Log dispersion of Tweedie responses below which the series for their density would
# have millions of terms.
_LEAST_TWEEDIE = -15.0


class TableKernel(Kernel):
    """Any family, by automatic differentiation of its log-density."""

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Ones, shape (1, n)."""
        return torch.ones_like(y)[None]

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Zeros: the term is the whole log-density."""
        return torch.zeros_like(y)

    def _log_prob(self, data: Observed, *etas: Tensor) -> Tensor:
        options = {} if data.size is None else {"size": data.size}
        if isinstance(self.family, Beta | BetaBinomial):
            etas = (self._inside(etas[0]), *etas[1:])
        return self.family.log_prob(data.y, *etas, **options)

    def _inside(self, eta: Tensor) -> Tensor:
        """Hold a mean where the shapes of a beta distribution have reciprocals."""
        ends = torch.tensor([1e-25, 1 - 1e-15], dtype=eta.dtype)
        low, high = self.family.links[0].link(ends).tolist()
        return eta.clamp(low, high)

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log-density of each cell's response."""
        data = self._given(data)
        return (full(self._log_prob(data, *full(*etas)), *etas)[0],)

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Its derivatives in the predictors."""
        data = self._given(data)
        etas = full(*etas, data.y)[:-1]
        return (pointwise(partial(self._log_prob, data), etas, order=1).first,)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        data = self._given(data)
        *etas, weight, _ = full(*etas, weights[0], data.y)
        point = pointwise(partial(self._log_prob, data), tuple(etas))
        first = tuple(weight * slope for slope in point.first)
        return first, {pair: weight * h for pair, h in point.second.items()}

    def _given(self, data: Observed | None) -> Observed:
        if data is None:
            raise ModelError(
                f"the density of {self.family.name} needs the responses of the cells "
                "(data)"
            )
        return data


class ScaledKernel(TableKernel):
    """Exponential family whose dispersion phi has a predictor of its own, its log."""

    family: ExponentialFamily

    @property
    def predictors(self) -> tuple[str, ...]:
        """The mean's predictor, and the dispersion's."""
        return (*self.family.predictors, "phi")

    @property
    def links(self) -> tuple[str, ...]:
        """The family's link, and log."""
        return (*super().links, "log")

    def _log_prob(self, data: Observed, *etas: Tensor) -> Tensor:
        zeta = etas[1]
        if isinstance(self.family, Tweedie):
            zeta = zeta.clamp(min=_LEAST_TWEEDIE)
        return self.family.log_prob(data.y, etas[0], scale=torch.exp(zeta))

    def mean(self, etas: tuple[Tensor, ...], data: Observed | None = None) -> Tensor:
        """Return the mean."""
        return self.family.mean(full(*etas)[0], **self._options(data))

    def sample(
        self,
        etas: tuple[Tensor, ...],
        generator: Generator | None = None,
        data: Observed | None = None,
    ) -> Tensor:
        """Draw one response for each cell."""
        eta, zeta = full(*etas)
        options = self._options(data)
        phi = torch.exp(zeta)
        return self.family.sample(eta, generator=generator, scale=phi, **options)

    def start(
        self,
        y: Tensor,
        size: Tensor | None = None,
        weights: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> tuple[float, ...]:
        """Mean, and the dispersion by moments."""
        (eta,) = super().start(y, size, weights, lower, upper)
        at = torch.tensor(eta, dtype=torch.float64)
        unit = self.family.unit_variance(self.family.mean(at))
        _, variance = draws.moments(y, weights)
        phi = variance / unit
        return eta, float(phi.clamp(min=1e-8).log())


# -------------------------------------------------------------- censored normal


def _tail(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log Phi(v); its derivative, the ratio lambda; lambda (v + lambda)."""
    half = 0.5 * v * v
    scaled = torch.special.erfcx(v.abs() * 0.5**0.5)
    height = torch.exp(-half)
    left = v < 0
    beyond = 0.5 * scaled * height
    log_cdf = torch.where(
        left, torch.log(0.5 * scaled) - half, torch.log1p(-beyond.clamp(max=0.5))
    )
    root = (2 / torch.pi) ** 0.5
    ratio = root * torch.where(left, 1 / scaled, 0.5 * height / (1 - beyond))
    # Far left v + lambda cancels, and the series in 1 / v^2 has all its digits.
    far = v < -200.0
    u = torch.where(far, v, 1.0).pow(-2)
    series = 1 - u * (1 - u * (6 - 50 * u))
    return log_cdf, ratio, torch.where(far, series, ratio * (v + ratio))


class CensoredNormalKernel(TableKernel):
    """Normal response between limits: identity of the mean, log of sigma.

    Limits come with the cells (`Observed.lower`, `upper`); where they do not, the
    family's own hold.
    """

    censored = True
    family: CensoredNormal

    def _own_limits(self, data: Observed | None) -> Observed:
        """Add the family's limits to the data, where the cells bring none."""
        data = self._given(data)
        limits = {
            name: torch.full_like(data.y, getattr(self.family, name))
            for name in ("lower", "upper")
            if getattr(data, name) is None
            and abs(getattr(self.family, name)) != float("inf")
        }
        return replace(data, **limits) if limits else data

    def latent_mean(self, etas: tuple[Tensor, ...]) -> Tensor:
        """Mean of the response before it is censored."""
        return self.family.latent_mean(*full(*etas))

    def _log_prob(self, data: Observed, *etas: Tensor) -> Tensor:
        limits = self._options(data)
        return self.family.log_prob(data.y, *etas, **limits)

    @property
    def _written(self) -> bool:
        return self.links == ("identity", "log")

    def _standard(
        self, etas: tuple[Tensor, ...], data: Observed
    ) -> tuple[Tensor, Tensor, Censoring]:
        """Standardised responses, 1 / sigma, and what is censored."""
        seen = data.censoring
        rate = powered(-etas[1])
        return (seen.point - etas[0]) * rate, rate, seen

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log-density of each cell's response, or log probability of its limit."""
        if not self._written:
            return super().terms(etas, data)
        z, _, seen = self._standard(etas, self._own_limits(data))
        value = (z * z).mul_(-0.5).sub_(slim(etas[1]) + HALF_LOG_2PI)
        if len(seen.at):
            value[..., seen.at] = _tail(z[..., seen.at] * seen.sign)[0]
        return (value,)

    def _first(
        self, z: Tensor, rate: Tensor, seen: Censoring
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Slopes; then v, lambda and lambda (v + lambda) of the censored cells."""
        slope, spread = z.clone(), z * z - 1.0
        v = z[..., seen.at] * seen.sign
        _, ratio, curve = _tail(v)
        slope[..., seen.at] = -seen.sign * ratio
        spread[..., seen.at] = -ratio * v
        return slope.mul_(rate), spread, v, ratio, curve

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives in mu and log sigma."""
        if not self._written:
            return super().slopes(etas, data)
        z, rate, seen = self._standard(etas, self._own_limits(data))
        return (self._first(z, rate, seen)[:2],)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        if not self._written:
            return super().derivatives(etas, weights, data)
        z, rate, seen = self._standard(etas, self._own_limits(data))
        slope, spread, v, ratio, curve = self._first(z, rate, seen)
        bend, cross, own = torch.ones_like(z), 2.0 * z, 2.0 * (z * z)
        bend[..., seen.at] = curve
        cross[..., seen.at] = seen.sign * (curve * v - ratio)
        own[..., seen.at] = v * (curve * v - ratio)
        return self._weighted(weights[0], rate, slope, spread, bend, cross, own)

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Positive curvature: as the normal kernel's, Gauss-Newton at the limits.

        log Phi(v) is concave in v; the part of the curvature that comes from v not
        being linear in log sigma is kept where it is positive.
        """
        if not self._written:
            return super().scoring(etas, weights, data)
        z, rate, seen = self._standard(etas, self._own_limits(data))
        slope, spread, v, ratio, curve = self._first(z, rate, seen)
        bend, cross, own = torch.ones_like(z), torch.zeros_like(z), z * z + 1.0
        bend[..., seen.at] = curve
        cross[..., seen.at] = seen.sign * (curve * v)
        own[..., seen.at] = curve * v * v - ratio * v.clamp(max=0.0)
        return self._weighted(weights[0], rate, slope, spread, bend, cross, own)

    @staticmethod
    def _weighted(
        weight: Tensor,
        rate: Tensor,
        slope: Tensor,
        spread: Tensor,
        bend: Tensor,
        cross: Tensor,
        own: Tensor,
    ) -> Derived:
        """Multiply by the weights, and by 1 / sigma for each derivative in mu."""
        scaled = weight * rate
        found = full(
            slope * weight,
            spread * weight,
            bend * (scaled * rate),
            cross * scaled,
            own * weight,
        )
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))


# ------------------------------------------------------------ negative binomial


class NegativeBinomialKernel(TableKernel):
    """Counts with variance mu + alpha mu^2: log mean, log alpha.

    Where alpha is one number for all cells, sums over j < y of functions of alpha j
    come from a table; otherwise derivatives are automatic.

    References
    ----------
    Cameron and Trivedi (2013), Regression analysis of count data, 2nd ed., 3.3.
    """

    family: NegativeBinomial

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Minus log y!."""
        return -torch.lgamma(y + 1)

    def _log_prob(self, data: Observed, *etas: Tensor) -> Tensor:
        return super()._log_prob(data, *etas) + torch.lgamma(data.y + 1)

    @staticmethod
    def _tabled(zeta: Tensor, data: Observed) -> bool:
        zeta = slim(zeta)
        return zeta.shape[-1] == 1 and zeta.numel() * (data.top + 1) <= _LARGEST_TABLE

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log-density of each cell's count, but for its factorial."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return super().terms(etas, data)
        return full(_Counts(etas[0], etas[-1], data).value(), etas[0])[:1]

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives in log mu and log alpha."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return super().slopes(etas, data)
        return (full(*_Counts(etas[0], etas[-1], data).first()),)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return super().derivatives(etas, weights, data)
        counts = _Counts(etas[0], etas[-1], data)
        parts = (*counts.first(), *counts.second())
        found = full(*(weights[0] * part for part in parts))
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Return expected curvature of log mu, the positive part of log alpha's."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            first, second = super().derivatives(etas, weights, data)
            mu, alpha = powered(etas[0]), powered(etas[-1])
            mean = weights[0] * (mu / (1.0 + alpha * mu))
            own = second[1, 1].clamp(min=0.0)
            return first, {(0, 0): full(mean, own)[0], (1, 1): own}
        counts = _Counts(etas[0], etas[-1], data)
        parts = (*counts.first(), counts.expected(), counts.second()[2].clamp_(min=0.0))
        found = full(*(weights[0] * part for part in parts))
        return found[:2], {(0, 0): found[2], (1, 1): found[3]}


class _Counts:
    """NB2 counts at one alpha: the pieces of value and derivatives, cell by cell."""

    def __init__(self, eta: Tensor, zeta: Tensor, data: Observed) -> None:
        self.eta, self.data, self.y = eta, data, data.y
        self.alpha = powered(slim(zeta))
        self.mu = powered(eta)
        x = self.alpha * self.mu
        self.inverse = 1.0 / (1.0 + x)
        self.part = x * self.inverse
        self.log = torch.log1p(x)
        # -log P(y = 0)
        self.exponent = self.log / self.alpha
        self.j = self.alpha * torch.arange(
            data.top, dtype=self.y.dtype, device=self.y.device
        )

    def _below(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum of a function of alpha j over j < y, for the count of each cell."""
        sums = function(self.j).cumsum(-1)
        table = torch.cat([torch.zeros_like(self.alpha), sums], dim=-1)
        return table[..., self.data.counts]

    def value(self) -> Tensor:
        """Log-density, but for the factorial."""
        odds = self.y * (self.eta - self.log)
        return self._below(torch.log1p) + odds - self.exponent

    def first(self) -> tuple[Tensor, Tensor]:
        """Slopes in log mu and log alpha."""
        sums = self._below(lambda j: j / (1.0 + j))
        spread = sums + self.exponent - self.y * self.part - self.mu * self.inverse
        return (self.y - self.mu) * self.inverse, spread

    def second(self) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the second derivatives."""
        sums = self._below(lambda j: j / (1.0 + j) / (1.0 + j))
        mean = self.mu * self.inverse
        resid = self.y * self.inverse - mean
        cross = resid * self.part
        own = self.exponent - mean + cross - sums
        return self.inverse * (mean + self.y * self.part), cross, own

    def expected(self) -> Tensor:
        """Return the expected curvature of log mu."""
        return self.mu * self.inverse


class ZeroInflatedNegativeBinomialKernel(NegativeBinomialKernel):
    """Zero-inflated NB2 counts: log mean, log odds of a certain zero, log alpha.

    References
    ----------
    Louis (1982), Finding the observed information matrix when using the EM algorithm,
    JRSS B 44, 226-233.
    """

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log-density of each cell's count, but for its factorial."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return TableKernel.terms(self, etas, data)
        counts = _Counts(etas[0], etas[2], data)
        log_pi, log_rest = log_odds(etas[1])
        balance = slim(etas[1]) + counts.exponent
        rest = balance.abs().neg_().exp_().log1p_()
        zero = torch.maximum(log_pi, log_rest - counts.exponent) + rest
        value = torch.where(data.zeros, zero, counts.value() + log_rest)
        return full(value, *etas)[:1]

    def _mixed(
        self, counts: _Counts, odds: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor, Tensor]:
        """Slopes in the three predictors; P(count), its spread, pi (1 - pi), slopes."""
        odds = slim(odds)
        balance = odds + counts.exponent
        zeros = counts.data.zeros
        keep = torch.where(zeros, torch.sigmoid(-balance), 1.0)
        certain = torch.where(zeros, torch.sigmoid(balance), 0.0)
        pi = torch.sigmoid(odds)
        u, v = counts.first()
        first = (keep * u, certain - pi, keep * v)
        return first, keep, keep * certain, pi * torch.sigmoid(-odds), (u, v)

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives in log mu, log odds and log alpha."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return TableKernel.slopes(self, etas, data)
        return (full(*self._mixed(_Counts(etas[0], etas[2], data), etas[1])[0]),)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives: what is known of complete data, less what is missing."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return TableKernel.derivatives(self, etas, weights, data)
        counts = _Counts(etas[0], etas[2], data)
        first, keep, missing, own, (u, v) = self._mixed(counts, etas[1])
        uu, uv, vv = counts.second()
        mu, mv = missing * u, missing * v
        parts = {
            (0, 0): keep * uu - mu * u,
            (0, 1): mu,
            (0, 2): keep * uv - mu * v,
            (1, 1): own - missing,
            (1, 2): mv,
            (2, 2): keep * vv - mv * v,
        }
        return _times(weights[0], first, parts)

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Curvature of the M-step of the EM algorithm, positive."""
        data = self._given(data)
        if not self._tabled(etas[-1], data):
            return TableKernel.derivatives(self, etas, weights, data)
        counts = _Counts(etas[0], etas[2], data)
        first, keep, _, own, _ = self._mixed(counts, etas[1])
        parts = {
            (0, 0): keep * counts.expected(),
            (1, 1): own,
            (2, 2): keep * counts.second()[2].clamp_(min=0.0),
        }
        return _times(weights[0], first, parts)


def _times(
    weight: Tensor,
    first: tuple[Tensor, ...],
    second: dict[tuple[int, int], Tensor],
) -> Derived:
    found = full(*(weight * part for part in (*first, *second.values())))
    return found[: len(first)], dict(zip(second, found[len(first) :], strict=True))
