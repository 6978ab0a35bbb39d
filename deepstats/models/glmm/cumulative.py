"""Derivatives of cumulative link models: of logarithms of intervals' probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ...families import CumulativeLink, Link
from ...families.links import CLOGLOG
from ...families.special import HALF_LOG_2PI, log1mexp
from .jets import Jet, Other

__all__ = ["Cumulative"]

#: Exponentials stay finite: beyond, probabilities are zero or one.
_MOST = 300.0


class Cumulative:
    """Levels of a cumulative link model: location, thresholds.

    With ``G = log(F(u) - F(l))`` of the limits ``u, l = threshold - location`` of a row
    and S the derivative as both move, ``F_0 = -S G`` and so on.
    """

    def __init__(self, family: CumulativeLink, y: Tensor) -> None:
        self.family, self.link, self.code = family, family.link, y.long()
        last = family.levels - 1
        self.first, self.last = self.code == 0, self.code == last
        self.at = [(self.code == k, self.code == k + 1) for k in range(last)]
        self._of: tuple[Tensor, ...] = ()
        self._limits = y, y

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        """Differentiate, at the location and the thresholds of every row."""
        thresholds = etas[1:]
        if not self._of or any(
            a is not b for a, b in zip(self._of, thresholds, strict=True)
        ):
            # Free of the location: found once while random effects are looked for.
            self._of = thresholds
            self._limits = self.family.limits(self.code, thresholds)
        low, high = (limit - etas[0] for limit in self._limits)
        value = self.family.ordinal.log_interval(self.code, low, high)
        # Rows at an end get any ordered pair: that branch is not taken there.
        inner = ~(self.first | self.last)
        low = torch.where(self.first, high - 1, low)
        high = torch.where(self.last, low + 1, high)
        between = _between(self.link, low, high)
        down = self.link.log_derivatives(high)
        up = self.link.complement_derivatives(low)
        upper = [
            torch.where(inner, b, torch.where(self.first, d, 0.0))
            for b, d in zip(between[0], down, strict=True)
        ]
        lower = [
            torch.where(inner, b, torch.where(self.last, d, 0.0))
            for b, d in zip(between[1], up, strict=True)
        ]
        s1, s2, s3 = (
            torch.where(inner, b, u + d)
            for b, u, d in zip(between[2], upper, lower, strict=True)
        )
        if not third:
            return Jet(value, -s1, s2)
        others = tuple(
            Other(
                upper[0] * high_at + lower[0] * low_at,
                -(upper[1] * high_at + lower[1] * low_at),
                upper[2] * high_at + lower[2] * low_at,
            )
            for high_at, low_at in self.at
        )
        return Jet(value, -s1, s2, -s3, others)


_Triple = tuple[Tensor, Tensor, Tensor]


def _between(link: Link, low: Tensor, high: Tensor) -> tuple[_Triple, _Triple, _Triple]:
    """Differentiate G of `Cumulative`: ``S^k G_u``, ``S^k G_l``, ``S^(k + 1) G``.

    Parameters
    ----------
    link : Link
    low, high : Tensor
        Limits l < u.
    """
    gap = high - low
    if link.name == "logit":
        a, b = link.log_derivatives(high), link.complement_derivatives(low)
        spread = 1 / torch.expm1(gap)
        together = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
        return (a[0] + spread, *a[1:]), (b[0] - spread, *b[1:]), together
    if link.name == "cloglog":
        return _between_minima(low, high)
    if link.name == "loglog":
        lower, upper, together = _between_minima(-high, -low)
        return _turned(upper), _turned(lower), _turned(together)
    # Symmetric links: in the left tail, where logarithms keep their digits.
    flip = low + high > 0
    u, v, w = _between_left(
        link, torch.where(flip, -high, low), torch.where(flip, -low, high)
    )
    turned = (_turned(v), _turned(u), _turned(w))
    upper, lower, together = (
        tuple(torch.where(flip, a, b) for a, b in zip(left, right, strict=True))
        for left, right in zip(turned, (u, v, w), strict=True)
    )
    return upper, lower, together


def _between_left(
    link: Link, low: Tensor, high: Tensor
) -> tuple[_Triple, _Triple, _Triple]:
    """Differentiate by densities over the probability, or by logarithms of F.

    Densities lose digits where they bend much within the interval; there one end has
    nearly all of it, ``G = A(u) + log(1 - exp(-T))`` with A = log F, T = A(u) - A(l).
    """
    size = link.log_difference(low, high)
    a, b = _shares(link, high, size), _shares(link, low, size)
    s0, s1, s2 = (p - q for p, q in zip(a, b, strict=True))
    together = (s0, s1 - s0 * s0, s2 - 3 * s0 * s1 + 2 * s0**3)
    upper, lower = (
        (p[0], p[1] - p[0] * s0, p[2] - 2 * p[1] * s0 - p[0] * (s1 - 2 * s0 * s0))
        for p in (a, b)
    )
    T = link.log_inverse(high) - link.log_inverse(low)
    far = T > 1
    if not bool(far.any()):
        return upper, _negative(lower), together
    e = 1 / torch.expm1(torch.where(far, T, 1.0))
    f = -e * (1 + e)
    g = -f * (1 + 2 * e)
    A, B = link.log_derivatives(high), link.log_derivatives(low)
    t0, t1, t2 = (p - q for p, q in zip(A, B, strict=True))
    # Derivatives of exp(-T) / (1 - exp(-T)) as both limits move.
    e1, e2 = f * t0, g * t0 * t0 + f * t1
    ends = [
        (p[0] * c, p[1] * c + p[0] * e1, p[2] * c + 2 * p[1] * e1 + p[0] * e2)
        for p, c in ((A, 1 + e), (B, e))
    ]
    both = (
        A[0] + e * t0, A[1] + e * t1 + e1 * t0,
        A[2] + e * t2 + 2 * e1 * t1 + e2 * t0,
    )  # fmt: skip
    found = [
        tuple(torch.where(far, p, q) for p, q in zip(left, right, strict=True))
        for left, right in zip((*ends, both), (upper, lower, together), strict=True)
    ]
    return found[0], _negative(found[1]), found[2]


def _between_minima(low: Tensor, high: Tensor) -> tuple[_Triple, _Triple, _Triple]:
    """Differentiate ``-e^l + log(1 - exp(-w))``, ``w = e^u - e^l``: S w is w."""
    gap, below = high - low, torch.exp(low.clamp_max(_MOST))
    # The complementary log-log link at log w is log(1 - exp(-w)).
    todd = CLOGLOG.log_derivatives(high + log1mexp(gap))
    share, rest = -1 / torch.expm1(-gap), 1 / torch.expm1(gap)
    a, b, c = todd
    return (
        (share * a, share * b, share * c),
        (-below - rest * a, -below - rest * b, -below - rest * c),
        (a - below, b - below, c - below),
    )


def _negative(derivatives: _Triple) -> _Triple:
    return -derivatives[0], -derivatives[1], -derivatives[2]


def _turned(derivatives: _Triple) -> _Triple:
    return -derivatives[0], derivatives[1], -derivatives[2]


def _shares(link: Link, x: Tensor, log_size: Tensor) -> _Triple:
    """Density and its first two derivatives, over the probability of an interval."""
    if link.name == "probit":
        f = torch.exp(-0.5 * x * x - HALF_LOG_2PI - log_size)
        return f, -x * f, (x * x - 1) * f
    size = torch.exp(-log_size)
    return (
        link.derivative(x) * size, link.second_derivative(x) * size,
        link.third_derivative(x) * size,
    )  # fmt: skip
