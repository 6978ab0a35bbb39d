"""Kernels whose density splits into features of the data and terms of predictors.

Sums over rows touch the features once, and everything that changes from step to step
happens on the cells of a grid. Terms, slopes and derivatives are written out; shapes
are (..., cells), and a predictor that is one number may have a last dimension of one
or stride zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...families import Family
from ...families.special import HALF_LOG_2PI, stirling_error, trigamma
from .density_kernel import (
    PAIRS,
    Derived,
    FeatureKernel,
    Observed,
    full,
    log_odds,
    powered,
)

__all__ = [
    "BetaKernel",
    "BinomialKernel",
    "GammaKernel",
    "GaussianKernel",
    "PoissonKernel",
    "ZeroInflatedKernel",
    "ZeroInflatedTauKernel",
]


def _zero(like: Tensor) -> Tensor:
    return like.new_zeros(()).expand_as(like)


def _one(like: Tensor) -> Tensor:
    return like.new_ones(()).expand_as(like)


class GaussianKernel(FeatureKernel):
    """Normal response: identity of the mean, log of the standard deviation.

    Parameters
    ----------
    family : GaussianML
    centre : float, default 0
        Features are powers of y - centre; see `prepared`.
    """

    def __init__(self, family: Family, centre: float = 0.0) -> None:
        super().__init__(family)
        self.centre = centre

    def prepared(self, y: Tensor, size: Tensor | None = None) -> GaussianKernel:
        """Centre the features at the mean response, so that squares do not cancel."""
        centre = float(y.double().mean()) if y.numel() else 0.0
        return GaussianKernel(self.family, centre)

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Squares, responses (both from the centre) and ones."""
        apart = y - self.centre
        return torch.stack([apart * apart, apart, torch.ones_like(y)])

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Minus half the logarithm of 2 pi."""
        return torch.full_like(y, -HALF_LOG_2PI)

    def _parts(self, etas: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Mean from the centre, and precision."""
        mu, zeta = etas
        return (mu - self.centre if self.centre else mu), powered(-2.0 * zeta)

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """-tau / 2, tau m and -tau m^2 / 2 - log sigma; tau is the precision."""
        m, tau = self._parts(etas)
        slope = tau * m
        return full(-0.5 * tau, slope, -0.5 * slope * m - etas[1])

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives of the three terms."""
        m, tau = self._parts(etas)
        tau, slope = full(tau, tau * m)
        return (_zero(tau), tau), (tau, -2.0 * slope), (-slope, slope * m - 1.0)

    def _residual(
        self, etas: tuple[Tensor, ...], weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Precision, sum of residuals and sum of squares, both times the precision."""
        squares, sums, count = weights
        m, tau = self._parts(etas)
        m, *_ = full(m, *etas, *weights)
        fitted = count * m
        # The sum of squares is squares - m sums - m (sums - fitted).
        residual = sums - fitted
        square = torch.addcmul(squares, m, sums + residual, value=-1.0).mul_(tau)
        return tau, residual.mul_(tau), square

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        tau, residual, square = self._residual(etas, weights)
        curve, cross, spread = full(weights[2] * tau, 2.0 * residual, 2.0 * square)
        return full(residual, square - weights[2]), {
            (0, 0): curve,
            (0, 1): cross,
            (1, 1): spread,
        }

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Block diagonal, as expected; log sigma takes no step longer than one.

        The curvature in log sigma is the mean of its expected and observed values,
        w + z^2: at the optimum it is the expected one, 2 w.
        """
        tau, residual, square = self._residual(etas, weights)
        spread = square.clamp(min=0.0) + weights[2]
        curve, spread = full(weights[2] * tau, spread)
        return full(residual, square - weights[2]), {(0, 0): curve, (1, 1): spread}


class PoissonKernel(FeatureKernel):
    """Counts with a log link."""

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return counts and ones."""
        return torch.stack([y, torch.ones_like(y)])

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Minus log y!."""
        return -torch.lgamma(y + 1)

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log mean, and minus the mean."""
        return full(etas[0], powered(etas[0]).neg_())

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """One, and minus the mean."""
        minus = powered(etas[0]).neg_().expand_as(etas[0])
        return (_one(minus),), (minus,)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Residual, and expected count; observed and expected curvature agree."""
        fitted = weights[1] * powered(etas[0])
        first, fitted = full(weights[0] - fitted, fitted)
        return (first,), {(0, 0): fitted}


class BinomialKernel(FeatureKernel):
    """Successes in a number of trials, with a logit link."""

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Numbers of successes and of failures."""
        both = torch.stack([y, 1.0 - y])
        return both if size is None else both * size

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Logarithm of the binomial coefficient; zero for single trials."""
        one = torch.ones((), dtype=y.dtype, device=y.device)
        return self.family._normaliser(y, size, one)

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log probability of a success and of a failure, exact in both tails."""
        yes, no = log_odds(etas[0])
        return yes.expand_as(etas[0]), no.expand_as(etas[0])

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Probability of a failure, and minus that of a success."""
        return (torch.sigmoid(-etas[0]),), (torch.sigmoid(etas[0]).neg_(),)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Residual, and binomial variance; observed and expected curvature agree."""
        p, q = torch.sigmoid(etas[0]), torch.sigmoid(-etas[0])
        yes, no = weights
        first, second = full(yes * q - no * p, (yes + no) * (p * q))
        return (first,), {(0, 0): second}


class _Zeros(NamedTuple):
    """Pieces of a zero-inflated Poisson that its derivatives share."""

    mu: Tensor
    pi: Tensor
    rest: Tensor
    count: Tensor  # probability that a zero is a count
    certain: Tensor  # and that it is not


def _zeros(eta: Tensor, odds: Tensor) -> _Zeros:
    # P(count | y = 0) = exp(-mu) / (exp(odds) + exp(-mu))
    mu = powered(eta)
    balance = odds + mu
    return _Zeros(
        mu,
        torch.sigmoid(odds),
        torch.sigmoid(-odds),
        torch.sigmoid(-balance),
        torch.sigmoid(balance),
    )


class ZeroInflatedKernel(FeatureKernel):
    """Zero-inflated Poisson counts: log mean, log odds of a certain zero.

    References
    ----------
    Lambert (1992), Technometrics 34, 1-14; Louis (1982), Finding the observed
    information matrix when using the EM algorithm, JRSS B 44, 226-233.
    """

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Whether y is zero, whether it is positive, and y."""
        zero = (y == 0).to(y.dtype)
        return torch.stack([zero, 1.0 - zero, y])

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Minus log y!."""
        return -torch.lgamma(y + 1)

    def _odds(self, etas: tuple[Tensor, ...]) -> Tensor:
        """Log odds of a certain zero."""
        return etas[1]

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log probability of a zero, of a count less its power, and log mean."""
        odds, mu = self._odds(etas), powered(etas[0])
        log_pi, log_rest = log_odds(odds)
        beyond = log_rest - mu
        rest = (odds + mu).abs_().neg_().exp_().log1p_()
        return full(torch.maximum(log_pi, beyond).add_(rest), beyond, etas[0])

    def _slopes(self, z: _Zeros) -> tuple[tuple[Tensor, ...], ...]:
        """Differentiate the terms in log mean and log odds."""
        pairs = (
            full(-z.count * z.mu, z.certain - z.pi),
            full(-z.mu, -z.pi),
        )
        one = _one(pairs[0][0])
        return *pairs, (one, _zero(one))

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives of the three terms."""
        return self._slopes(_zeros(etas[0], self._odds(etas)))

    @staticmethod
    def _first(z: _Zeros, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        zero, positive, total = weights
        counts = positive + zero * z.count
        return total - counts * z.mu, zero * z.certain - (zero + positive) * z.pi

    @staticmethod
    def _complete(z: _Zeros, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Curvatures if it were known which zeros are certain."""
        zero, positive, _ = weights
        counts = positive + zero * z.count
        return counts * z.mu, (zero + positive) * (z.pi * z.rest)

    def _second(
        self, z: _Zeros, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Curvatures, the complete ones less what is not known (Louis)."""
        rate, odds = self._complete(z, weights)
        missing = weights[0] * (z.count * z.certain)
        cross = missing * z.mu
        return rate - cross * z.mu, -cross, odds - missing

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        z = _zeros(etas[0], self._odds(etas))
        found = full(*self._first(z, weights), *self._second(z, weights))
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Curvature of the EM algorithm's M-step: no cross term, never negative."""
        z = _zeros(etas[0], self._odds(etas))
        found = full(*self._first(z, weights), *self._complete(z, weights))
        return found[:2], {(0, 0): found[2], (1, 1): found[3]}


class ZeroInflatedTauKernel(ZeroInflatedKernel):
    """Zero-inflated Poisson whose log odds of a certain zero are -tau log mu.

    The predictors are log mu and log tau.
    """

    def _tau(self, etas: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Slope of the log odds in log mu, and the log odds."""
        tau = powered(etas[1])
        return -tau, -tau * etas[0]

    def _odds(self, etas: tuple[Tensor, ...]) -> Tensor:
        return self._tau(etas)[1]

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives of the three terms."""
        turn, odds = self._tau(etas)
        pairs = self._slopes(_zeros(etas[0], odds))
        return tuple(full(a + b * turn, b * odds) for a, b in pairs)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives, by the chain rule."""
        turn, odds = self._tau(etas)
        z = _zeros(etas[0], odds)
        a, b = self._first(z, weights)
        aa, ab, bb = self._second(z, weights)
        along, slope = bb * odds, b * odds
        found = full(
            a + b * turn,
            slope,
            aa + turn * (2.0 * ab + turn * bb),
            ab * odds + turn * along - b * turn,
            along * odds - slope,
        )
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Curvature of the M-step in log mu and log odds, carried over."""
        turn, odds = self._tau(etas)
        z = _zeros(etas[0], odds)
        a, b = self._first(z, weights)
        aa, bb = self._complete(z, weights)
        along = bb * odds
        found = full(
            a + b * turn,
            b * odds,
            aa + turn * (turn * bb),
            turn * along,
            along * odds,
        )
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))


class GammaKernel(FeatureKernel):
    """Positive response: log of the mean, log of the shape."""

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Responses, their logarithms and ones."""
        return torch.stack([y, torch.log(y), torch.ones_like(y)])

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Minus log y."""
        return -torch.log(y)

    @staticmethod
    def _parts(etas: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Shape k, and k over the mean."""
        k = powered(etas[1])
        return k, k * powered(-etas[0])

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """-k / mu, k, and k log(k / mu) - log Gamma(k) by Stirling's formula."""
        k, rate = self._parts(etas)
        own = k + (0.5 * etas[1] - HALF_LOG_2PI) - stirling_error(1.0 / k)
        return full(-rate, k, own - k * etas[0])

    @staticmethod
    def _own(k: Tensor, log_k: Tensor) -> Tensor:
        """Return the derivative in log k of k log k - log Gamma(k)."""
        return k * (log_k + 1.0 - torch.digamma(k))

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives of the three terms."""
        k, rate = self._parts(etas)
        own = self._own(k, etas[1]) - k * etas[0]
        k, rate, own = full(k, rate, own)
        return (rate, -rate), (_zero(k), k), (-k, own)

    def _first(
        self, etas: tuple[Tensor, ...], weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slopes, the shape, and the sum of k y / mu."""
        total, logs, count = weights
        k, rate = self._parts(etas)
        ratio = total * rate
        own = count * (self._own(k, etas[1]) - k * etas[0])
        return ratio - count * k, own + logs * k - ratio, k, ratio

    @staticmethod
    def _spread(k: Tensor) -> Tensor:
        """Information of log k, k^2 trigamma(k) - k, which is above one half."""
        return (k * (k * trigamma(k) - 1.0)).clamp(min=0.5)

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        a, b, k, ratio = self._first(etas, weights)
        found = full(a, b, ratio, -a, weights[2] * self._spread(k) - b)
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Observed curvature of the mean, expected one of the shape."""
        a, b, k, ratio = self._first(etas, weights)
        found = full(a, b, ratio, weights[2] * self._spread(k))
        return found[:2], {(0, 0): found[2], (1, 1): found[3]}


class BetaKernel(FeatureKernel):
    """Proportion inside (0, 1): logit of the mean, log of the precision.

    References
    ----------
    Ferrari, S. and Cribari-Neto, F. (2004), Journal of Applied Statistics 31, 799-815.
    """

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Return log y, log(1 - y) and ones."""
        return torch.stack([torch.log(y), torch.log1p(-y), torch.ones_like(y)])

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Minus log y (1 - y)."""
        return -torch.log(y) - torch.log1p(-y)

    @staticmethod
    def _shapes(etas: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Precision, and the shapes mu phi and (1 - mu) phi."""
        phi = powered(etas[1])
        return phi, phi * torch.sigmoid(etas[0]), phi * torch.sigmoid(-etas[0])

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Both shapes, and minus the logarithm of the beta function."""
        phi, a, b = self._shapes(etas)
        return full(a, b, torch.lgamma(phi) - torch.lgamma(a) - torch.lgamma(b))

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives of the three terms."""
        phi, a, b = self._shapes(etas)
        c = a * torch.sigmoid(-etas[0])
        da, db = torch.digamma(a), torch.digamma(b)
        own = phi * torch.digamma(phi) - a * da - b * db
        a, b, c, lean, own = full(a, b, c, c * (db - da), own)
        return (c, a), (-c, b), (lean, own)

    def _first(
        self, etas: tuple[Tensor, ...], weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Slopes; then precision, shapes and d a / d eta."""
        yes, no, count = weights
        phi, a, b = self._shapes(etas)
        c = a * torch.sigmoid(-etas[0])
        u, v = yes - count * torch.digamma(a), no - count * torch.digamma(b)
        own = count * (phi * torch.digamma(phi))
        return c * (u - v), a * u + b * v + own, phi, a, b, c

    @staticmethod
    def _information(
        phi: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fisher information of one observation."""
        pa, pb = trigamma(a), trigamma(b)
        own = phi * (phi * trigamma(phi))
        ra, rb = a * pa, b * pb
        return c * (c * (pa + pb)), c * (ra - rb), a * ra + b * rb - own

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        lean, own, *shapes = self._first(etas, weights)
        ee, ez, zz = (weights[2] * part for part in self._information(*shapes))
        turn = torch.tanh(0.5 * etas[0])
        found = full(lean, own, ee + turn * lean, ez - lean, zz - own)
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Fisher information."""
        lean, own, *shapes = self._first(etas, weights)
        parts = (weights[2] * part for part in self._information(*shapes))
        found = full(lean, own, *parts)
        return found[:2], dict(zip(PAIRS, found[2:], strict=True))
