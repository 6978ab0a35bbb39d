"""Log-densities expanded in all their predictors, for the families fitted most.

Where several predictors have random effects Laplace's method needs derivatives in all
of them together; `derivatives` has those of the mean's alone. Parameters are those that
suit the formulas: logarithms of means, shapes and dispersions, log odds; links lead
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import torch
from torch import Tensor

from ...families import (
    Beta,
    BetaBinomial,
    Family,
    GammaML,
    GaussianML,
    HurdleNegativeBinomial,
    HurdlePoisson,
    Link,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    ZeroTruncatedNegativeBinomial,
)
from ...families.special import (
    HALF_LOG_2PI,
    log1mexp,
    log_binomial,
    log_rising,
    stirling_error,
)
from .derivatives import _polygammas
from .taylor import Taylor

__all__ = ["Expansion", "expansion_of"]

#: Means beyond exp of this are infinite for all that a fit can do with them.
_MOST = 300.0
#: Counts beyond this have their log-density from its largest value downwards.
_LARGE = 1e4

#: Of the linear predictors.
Expansion = Callable[[Sequence[Taylor]], Taylor]


def expansion_of(family: Family, y: Tensor, size: Tensor | None) -> Expansion | None:
    """Return the expansion of a family's log-density; None where there is no formula.

    Parameters
    ----------
    family : Family
        At any links.
    y : Tensor, shape (n,)
    size : Tensor or None, shape (n,)
        Trials.
    """
    if isinstance(family, GaussianML):
        return _Gaussian(family, y)
    if isinstance(family, StudentT):
        return _StudentT(family, y)
    if isinstance(family, GammaML):
        return _Gamma(family, y)
    if isinstance(family, Beta):
        return _Beta(family, y)
    if isinstance(family, BetaBinomial) and size is not None:
        return _BetaBinomial(family, y, size)
    if isinstance(family, ZeroInflatedPoisson | ZeroInflatedNegativeBinomial):
        return _ZeroInflated(family, _count(family.count, y))
    if isinstance(family, HurdlePoisson | HurdleNegativeBinomial):
        return _Hurdle(family, _count(family.count.count, y))
    if isinstance(family, ZeroTruncatedNegativeBinomial):
        return _Truncated(_count(family.count, y))
    if isinstance(family, NegativeBinomial):
        return _count(family, y)
    return None


def _count(family: Poisson | NegativeBinomial, y: Tensor) -> _Count:
    if isinstance(family, Poisson):
        return _Poisson(family, y)
    return (_NB2 if family.loglike == "nb2" else _NB1)(family, y)


# -- links and functions ---------------------------------------------------------------


def _log(link: Link, eta: Taylor) -> Taylor:
    """Logarithm of a parameter."""
    if link.name == "log":
        return eta
    return eta.of(link.log_inverse(eta.value), *link.log_derivatives(eta.value))


def _real(link: Link, eta: Taylor) -> Taylor:
    """Parameter itself."""
    if link.name == "identity":
        return eta
    return eta.of(
        link.inverse(eta.value), link.derivative(eta.value),
        link.second_derivative(eta.value), link.third_derivative(eta.value),
    )  # fmt: skip


def _sides(link: Link, eta: Taylor) -> tuple[Taylor, Taylor]:
    """Logarithms of a probability and of its complement."""
    at = eta.value
    return (
        eta.of(link.log_inverse(at), *link.log_derivatives(at)),
        eta.of(link.log_complement(at), *link.complement_derivatives(at)),
    )


def _log1p_exp(u: Taylor) -> Taylor:
    """``log(1 + exp(u))``."""
    p = torch.sigmoid(u.value)
    bend = p * torch.sigmoid(-u.value)
    value = torch.nn.functional.softplus(u.value, threshold=700)
    return u.of(value, p, bend, bend * (1 - 2 * p))


def _rising(y: Tensor, t: Taylor) -> Taylor:
    """``log Gamma(y + r) - log Gamma(r) - y log r`` of ``t = log r``."""
    r = t.value.exp()
    if not t.partials:
        return Taylor(log_rising(y, 1 / r), t.order, {})
    top = y + r
    tops, bottoms = _polygammas(top, t.order), _polygammas(r, t.order)
    # Differences of polygammas at y + r and r, their leading terms in closed form.
    one = r * ((y / r).log1p() + (tops[0] - bottoms[0]))
    two = r * r * (tops[1] - bottoms[1]) - y * r / top
    found = [log_rising(y, 1 / r), one - y, one + two]
    if t.order > 2:
        leading = y * r * (r + top) / top.square()
        found.append(one + 3 * two + r**3 * (tops[2] - bottoms[2]) + leading)
    return t.of(*found)


def _normaliser(t: Taylor) -> Taylor:
    """``r log r - r - log Gamma(r)`` of ``t = log r``."""
    r = t.value.exp()
    value = 0.5 * t.value - HALF_LOG_2PI - stirling_error(1 / r)
    if not t.partials:
        return Taylor(value, t.order, {})
    near = _polygammas(r, t.order)
    one, two = r * near[0], r * r * near[1]
    found = [value, -one, -one - two]
    if t.order > 2:
        found.append(-one - 3 * two - r**3 * near[2])
    return t.of(*found)


# -- continuous responses --------------------------------------------------------------


class _Gaussian:
    def __init__(self, family: GaussianML, y: Tensor) -> None:
        self.links, self.y = family.links, y

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        e = self.y - _real(self.links[0], etas[0])
        log_sigma = _log(self.links[1], etas[1])
        squares = (e * e) * log_sigma.scaled(-2.0).exp()
        return squares.scaled(-0.5) - log_sigma - HALF_LOG_2PI


class _StudentT:
    def __init__(self, family: StudentT, y: Tensor) -> None:
        self.links, self.y, self.nu = family.links, y, family.nu

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        e = self.y - _real(self.links[0], etas[0])
        log_sigma = _log(self.links[1], etas[1])
        if self.nu is None:
            log_nu = _log(self.links[2], etas[2])
        else:
            log_nu = Taylor(torch.full_like(self.y, self.nu).log(), e.order, {})
        ratio = (e * e) * (log_sigma.scaled(-2.0) - log_nu).exp()
        inverse = 1 / (1 + ratio.value)
        log_ratio = ratio.of(
            ratio.value.log1p(), inverse, -inverse.square(), 2 * inverse**3
        )
        half = torch.full_like(self.y, 0.5)
        constant = _rising(half, log_nu - log(2.0))
        kernel = (log_nu.exp() + 1.0) * log_ratio
        return constant - log_sigma - kernel.scaled(0.5) - HALF_LOG_2PI


class _Gamma:
    def __init__(self, family: GammaML, y: Tensor) -> None:
        self.links, self.log_y = family.links, y.log()

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        log_ratio = self.log_y - _log(self.links[0], etas[0])
        log_k = _log(self.links[1], etas[1])
        e = log_ratio.value.exp()
        # log(y / mu) - (y / mu - 1), which is zero where y is the mean.
        rest = log_ratio.value - torch.expm1(log_ratio.value)
        fit = log_ratio.of(rest, 1 - e, -e, -e)
        return log_k.exp() * fit + _normaliser(log_k) - self.log_y


class _Beta:
    def __init__(self, family: Beta, y: Tensor) -> None:
        self.links, self.log_y, self.log_z = family.links, y.log(), torch.log1p(-y)

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        log_mu, log_nu = _sides(self.links[0], etas[0])
        log_phi = _log(self.links[1], etas[1])
        log_a, log_b = log_phi + log_mu, log_phi + log_nu
        # Stirling's formula leaves differences of logarithms where phi is large.
        fit = log_a.exp() * (self.log_y - log_mu) + log_b.exp() * (self.log_z - log_nu)
        found = _normaliser(log_a) + _normaliser(log_b) - _normaliser(log_phi)
        return fit + found - self.log_y - self.log_z


class _BetaBinomial:
    def __init__(self, family: BetaBinomial, y: Tensor, size: Tensor) -> None:
        self.links, self.size = family.links, size
        self.yes = (y * size).round()
        self.constant = log_binomial(size, self.yes)

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        log_mu, log_nu = _sides(self.links[0], etas[0])
        log_phi = _log(self.links[1], etas[1])
        yes, no = self.yes, self.size - self.yes
        mixed = _rising(yes, log_phi + log_mu) + _rising(no, log_phi + log_nu)
        fit = log_mu.scaled(yes) + log_nu.scaled(no)
        return mixed - _rising(self.size, log_phi) + fit + self.constant


# -- counts ----------------------------------------------------------------------------


class _Count:
    """A count, with its overdispersion if there is one."""

    def __init__(self, family: Poisson | NegativeBinomial, y: Tensor) -> None:
        self.links, self.y = family.links, y
        self.zero = (y == 0).to(y.dtype)
        self.constant = -torch.lgamma(y + 1)

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        return self.density(*map(_log, self.links, etas))

    def none(self, etas: Sequence[Taylor]) -> Taylor:
        """Logarithm of the probability of a zero."""
        return self.at_zero(*map(_log, self.links, etas))

    def density(self, *parameters: Taylor) -> Taylor:
        raise NotImplementedError

    def at_zero(self, *parameters: Taylor) -> Taylor:
        raise NotImplementedError


def _exp(t: Taylor) -> Taylor:
    e = t.value.clamp_max(_MOST).exp()
    return t.of(e, e, e, e)


class _Poisson(_Count):
    def density(self, *parameters: Taylor) -> Taylor:
        (log_mu,), y = parameters, self.y
        mu = log_mu.value.clamp_max(_MOST).exp()
        value = y * log_mu.value - mu + self.constant
        if bool((y > _LARGE).any()):
            # Terms of the size of y that cancel would leave the search no digits.
            positive = y.clamp_min(1.0)
            d = log_mu.value - positive.log()
            most = -stirling_error(1 / positive) - HALF_LOG_2PI - 0.5 * positive.log()
            near = most + y * (d - d.clamp_max(_MOST).expm1())
            value = torch.where(y == 0, -mu, near)
        return log_mu.of(value, y - mu, -mu, -mu)

    def at_zero(self, *parameters: Taylor) -> Taylor:
        return -_exp(parameters[0])


class _NB2(_Count):
    """Variance mu + alpha mu^2."""

    def density(self, *parameters: Taylor) -> Taylor:
        log_mu, log_alpha = parameters
        found = _rising(self.y, -log_alpha) + log_mu.scaled(self.y) + self.constant
        grown = _log1p_exp(log_mu + log_alpha)
        return found - grown.scaled(self.y) + self._at_zero(grown, log_alpha)

    def at_zero(self, *parameters: Taylor) -> Taylor:
        log_mu, log_alpha = parameters
        return self._at_zero(_log1p_exp(log_mu + log_alpha), log_alpha)

    @staticmethod
    def _at_zero(grown: Taylor, log_alpha: Taylor) -> Taylor:
        return -(grown * (-log_alpha).exp())


class _NB1(_Count):
    """Variance (1 + alpha) mu."""

    def density(self, *parameters: Taylor) -> Taylor:
        log_mu, log_alpha = parameters
        found = _rising(self.y, log_mu - log_alpha) + log_mu.scaled(self.y)
        rest = _log1p_exp(log_alpha).scaled(self.y)
        return found - rest + self.at_zero(*parameters) + self.constant

    def at_zero(self, *parameters: Taylor) -> Taylor:
        log_mu, log_alpha = parameters
        return -(_exp(log_mu - log_alpha) * _log1p_exp(log_alpha))


class _Truncated:
    """Counts above zero."""

    def __init__(self, count: _Count) -> None:
        self.count = count

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        none = self.count.none(etas)
        u = 1 / torch.expm1(-none.value)
        v = u * (1 + u)
        left = none.of(log1mexp(-none.value), -u, -v, -v * (1 + 2 * u))
        return self.count(etas) - left


class _ZeroInflated:
    """``log(pi [y = 0] + (1 - pi) P(y))``."""

    def __init__(self, family: Family, count: _Count) -> None:
        self.link, self.count = family.links[1], count

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        log_pi, log_rest = _sides(self.link, etas[1])
        counts = log_rest + self.count((etas[0], *etas[2:]))
        # Of a zero: the logarithm of a sum of two probabilities.
        return counts + _log1p_exp(log_pi - counts).scaled(self.count.zero)


class _Hurdle:
    """``log(1 - pi)`` of a zero, ``log pi`` and truncated counts of others."""

    def __init__(self, family: Family, count: _Count) -> None:
        self.link, self.zero, self.counts = (
            family.links[1],
            count.zero,
            _Truncated(count),
        )

    def __call__(self, etas: Sequence[Taylor]) -> Taylor:
        log_pi, log_rest = _sides(self.link, etas[1])
        above = log_pi + self.counts((etas[0], *etas[2:]))
        return above.scaled(1 - self.zero) + log_rest.scaled(self.zero)
