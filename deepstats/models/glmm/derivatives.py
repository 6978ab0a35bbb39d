"""Derivatives of log-densities in closed form, for the families fitted most.

What Laplace's method asks of a row is the log-density F, its first three derivatives in
the predictor with random effects (eta_0), and for every other predictor eta_j the
derivatives ``F_j``, ``F_0j`` and ``F_00j``. Automatic differentiation gives them for
any family; for counts and proportions, formulas take a tenth of the time.

They are written once, in parameters that suit them: logarithms of means, shapes and
dispersions, log odds. Other links follow by the chain rule, from derivatives that links
know of themselves (`families.links`), and so do zero-inflated and truncated counts,
functions of a count's log-density and of its value at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...families import (
    Binomial,
    CumulativeLink,
    Family,
    GammaML,
    GaussianML,
    HurdleNegativeBinomial,
    HurdlePoisson,
    InverseGaussianML,
    Link,
    NegativeBinomial,
    Poisson,
    StudentT,
    TweedieML,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
)
from ...families.special import HALF_LOG_2PI, log1mexp, log_rising, stirling_error
from ...families.tweedie import tweedie_normaliser
from .cumulative import Cumulative
from .jets import (
    Density,
    Jet,
    Map,
    Other,
    chained,
    linked,
    log_map,
    mapped,
    odds_map,
    real_map,
)

__all__ = ["closed_form"]

#: Means beyond exp of this are infinite for all that a fit can do with them.
_MOST = 300.0
#: Counts beyond this have their log-density from its largest value downwards.
_LARGE = 1e4
#: Polygamma functions are shifted by so much before their series are used.
_SHIFT = 10


def closed_form(family: Family, y: Tensor) -> Density | None:
    """Return the derivatives of a family at responses; None where there is no formula.

    Of proportions they are those of one trial, without what is free of predictors.

    Parameters
    ----------
    family : Family
        At any links.
    y : Tensor, shape (n,)
    """
    links = family.links
    if isinstance(family, Binomial):
        return _Logit(y) if links[0].name == "logit" else _Proportion(y, links[0])
    if isinstance(family, CumulativeLink):
        return Cumulative(family, y)
    if isinstance(family, GaussianML):
        return linked(_Gaussian(y), [real_map(links[0]), log_map(links[1])])
    if isinstance(family, StudentT):
        maps = [real_map(links[0]), *map(log_map, links[1:])]
        return linked(_StudentT(y, family.nu), maps)
    if isinstance(family, GammaML):
        return linked(_Gamma(y), [*map(log_map, links)])
    if isinstance(family, InverseGaussianML):
        return linked(_InverseGaussian(y), [*map(log_map, links)])
    if isinstance(family, TweedieML):
        maps = [*map(log_map, links[:2]), *map(real_map, links[2:])]
        return linked(_Tweedie(y, family.power), maps)
    if isinstance(family, ZeroInflatedPoisson | ZeroInflatedNegativeBinomial):
        return linked(_ZeroInflated(_count(family.count, y)), _zero_part(links))
    if isinstance(family, HurdlePoisson | HurdleNegativeBinomial):
        return linked(_Hurdle(_count(family.count.count, y)), _zero_part(links))
    if isinstance(family, ZeroTruncatedPoisson | ZeroTruncatedNegativeBinomial):
        return _Truncated(_count(family.count, y))
    if isinstance(family, Poisson | NegativeBinomial):
        return _count(family, y)
    return None


def _count(family: Poisson | NegativeBinomial, y: Tensor) -> _Count:
    found: _Count
    if isinstance(family, Poisson):
        found = _Poisson(y)
    else:
        found = _NB2(y) if family.loglike == "nb2" else _NB1(y)
    maps = [*map(log_map, family.links)]
    return found if maps == [None] * len(maps) else _LinkedCount(found, maps)


def _zero_part(links: Sequence[Link]) -> list[Map | None]:
    """Map the predictors of a zero part; the counts have maps of their own."""
    return [odds_map(link) if j == 1 else None for j, link in enumerate(links)]


# -- proportions -----------------------------------------------------------------------


class _Logit:
    """Proportions at a logit link."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        (eta,) = etas
        # All from one exponential: of minus the size, which cannot overflow.
        e = eta.abs().neg_().exp_()
        inverse = (1 + e).reciprocal_()
        positive = eta > 0
        mu = torch.where(positive, inverse, e * inverse)
        value = self.y * eta - (eta.clamp_min(0) + e.log1p())
        weight = e * inverse.square_()
        two = -weight
        return Jet(
            value, self.y - mu, two, two * (1 - 2 * mu) if third else None
        )  # fmt: skip


class _Proportion:
    """Proportions at any link."""

    def __init__(self, y: Tensor, link: Link) -> None:
        self.y, self.link = y, link

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        (eta,), y, no = etas, self.y, 1 - self.y
        value = y * self.link.log_inverse(eta) + no * self.link.log_complement(eta)
        up, down = self.link.log_derivatives(eta), self.link.complement_derivatives(eta)
        one, two, three = (y * a + no * b for a, b in zip(up, down, strict=True))
        return Jet(value, one, two, three if third else None)


# -- continuous responses --------------------------------------------------------------


class _Gaussian:
    """Normal responses: mean, logarithm of the standard deviation."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        precision = (-2 * etas[1]).exp()
        e = self.y - etas[0]
        one = e * precision
        square = e * one
        value = -0.5 * square - etas[1] - HALF_LOG_2PI
        if not third:
            return Jet(value, one, -precision)
        other = Other(square - 1, -2 * one, 2 * precision)
        return Jet(value, one, -precision, torch.zeros_like(e), (other,))


class _Gamma:
    """Gamma responses: logarithms of mean and shape."""

    def __init__(self, y: Tensor) -> None:
        self.log_y = y.log()

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        k = etas[1].exp()
        log_ratio = self.log_y - etas[0]
        rest = log_ratio.expm1()
        fit, one = k * (log_ratio - rest), k * rest
        value = fit + 0.5 * etas[1] - HALF_LOG_2PI - stirling_error(1 / k) - self.log_y
        two = -(one + k)
        if not third:
            return Jet(value, one, two)
        (digamma,) = _polygammas(k, 1)
        return Jet(value, one, two, -two, (Other(fit - k * digamma, one, two),))


class _InverseGaussian:
    """Inverse Gaussian responses: logarithms of mean and dispersion."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.log_y = y, y.log()

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        log_ratio = self.log_y - etas[0]
        ratio, rest = log_ratio.exp(), log_ratio.expm1()
        scale = (-etas[1]).exp() / self.y
        kernel, one = -0.5 * rest.square() * scale, ratio * rest * scale
        value = kernel - 0.5 * etas[1] - 1.5 * self.log_y - HALF_LOG_2PI
        two = ratio * (1 - 2 * ratio) * scale
        if not third:
            return Jet(value, one, two)
        three = ratio * (4 * ratio - 1) * scale
        return Jet(value, one, two, three, (Other(-0.5 - kernel, -one, -two),))


class _Tweedie:
    """Tweedie responses: logarithms of mean and dispersion, the power."""

    def __init__(self, y: Tensor, power: float | None) -> None:
        self.y, self.power = y, power
        self._at: tuple[Tensor, ...] = ()
        self._free: tuple[Tensor, ...] = ()

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        eta, log_phi = etas[:2]
        p = etas[2] if self.power is None else torch.full_like(eta, self.power)
        free = self._normaliser(etas[1:], third)
        q, r = 1 - p, 2 - p
        a = self.y * torch.exp(q * eta - log_phi)
        b = torch.exp(r * eta - log_phi)
        kernel, one, two = a / q - b / r, a - b, q * a - r * b
        value = kernel + free[0]
        if not third:
            return Jet(value, one, two)
        others = [Other(free[1] - kernel, -one, -two)]
        if self.power is None:
            by_power = a / q**2 - b / r**2 - eta * kernel
            others.append(
                Other(by_power + free[2], -eta * one, b - a - eta * two)
            )  # fmt: skip
        return Jet(value, one, two, q * q * a - r * r * b, tuple(others))

    def _normaliser(self, others: tuple[Tensor, ...], slopes: bool) -> tuple:
        """Series of the density, and its slopes in further predictors.

        Free of the mean: summed once while random effects are looked for.
        """
        same = len(self._at) and all(
            a is b for a, b in zip(self._at, others, strict=True)
        )
        if not same or (slopes and len(self._free) == 1):
            self._at, self._free = others, self._summed(others, slopes)
        return self._free

    def _summed(self, others: tuple[Tensor, ...], slopes: bool) -> tuple:
        given = tuple(o.detach().clone().requires_grad_(slopes) for o in others)
        with torch.set_grad_enabled(slopes):
            power = given[1] if self.power is None else self.power
            value = tweedie_normaliser(self.y, given[0].exp(), power)
            if not slopes:
                return (value,)
            found = torch.autograd.grad(value.sum(), given)
        return (value.detach(), *found)


class _StudentT:
    """Student's t: location, logarithms of scale and degrees of freedom."""

    def __init__(self, y: Tensor, nu: float | None) -> None:
        self.y, self.nu = y, nu

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        e, log_sigma = self.y - etas[0], etas[1]
        log_nu = etas[2] if self.nu is None else torch.full_like(e, self.nu).log()
        nu = log_nu.exp()
        spread = (2 * log_sigma + log_nu).exp()
        square = e * e
        total = square + spread
        ratio = square / spread
        log_ratio = ratio.log1p()
        half = torch.full_like(e, 0.5)
        value = (
            log_rising(half, 2 / nu) - HALF_LOG_2PI - log_sigma
            - 0.5 * (nu + 1) * log_ratio
        )  # fmt: skip
        a, share = (nu + 1) / total, spread / total
        one, two = a * e, a * (square - spread) / total
        if not third:
            return Jet(value, one, two)
        three = 2 * a * e * (square - 3 * spread) / total.square()
        by_spread = -one * share, -a * share * (3 * square - spread) / total
        others = [Other(a * square - 1, 2 * by_spread[0], 2 * by_spread[1])]
        if self.nu is None:
            (top,), (bottom,) = (_polygammas((nu + j) / 2, 1) for j in (1, 0))
            constant = 0.5 * nu * (top - bottom + (1 / nu).log1p()) - 0.5
            by_nu = constant - 0.5 * nu * log_ratio + 0.5 * a * square
            share = nu / (nu + 1)
            others.append(
                Other(by_nu, share * one + by_spread[0], share * two + by_spread[1])
            )  # fmt: skip
        return Jet(value, one, two, three, tuple(others))


# -- counts ----------------------------------------------------------------------------


def _mean(eta: Tensor) -> Tensor:
    return eta.clamp_max(_MOST).exp()


class _Count:
    """A count at a log link, with its overdispersion's logarithm if there is one."""

    def __init__(self, y: Tensor) -> None:
        self.y = y
        self.zero = y == 0
        self.log_factorial = torch.lgamma(y + 1)

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        raise NotImplementedError

    def at_zero(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        """Differentiate the logarithm of the probability of a zero."""
        raise NotImplementedError


class _Poisson(_Count):
    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.large = bool((y > _LARGE).any())
        if self.large:
            self.log_y = y.clamp_min(1.0).log()
            # The log-density where the mean is the count itself.
            error = stirling_error(1 / y.clamp_min(1.0))
            self.most = -error - HALF_LOG_2PI - 0.5 * self.log_y

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        mu = _mean(etas[0])
        two = -mu
        if self.large:
            # Terms of the size of y that cancel would leave the search no digits.
            d = etas[0] - self.log_y
            near = self.most + self.y * (d - d.clamp_max(_MOST).expm1())
            value = torch.where(self.zero, two, near)
        else:
            value = self.y * etas[0] - mu - self.log_factorial
        return Jet(value, self.y - mu, two, two if third else None)

    def at_zero(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        value = -_mean(etas[0])
        return Jet(value, value, value, value if third else None)


class _LinkedCount(_Count):
    """A count at other links."""

    def __init__(self, count: _Count, maps: list[Map | None]) -> None:
        self.count, self.maps = count, maps
        self.y, self.zero = count.y, count.zero

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        jet = self.count(mapped(etas, self.maps), third)
        return chained(jet, etas, self.maps, third)

    def at_zero(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        jet = self.count.at_zero(mapped(etas, self.maps), third)
        return chained(jet, etas, self.maps, third)


class _NB2(_Count):
    """Variance mu + alpha mu^2."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self._at: Tensor | None = None
        self._rising = y

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        eta, log_alpha = etas
        alpha = log_alpha.exp()
        if log_alpha is not self._at:
            # Free of the mean: formed once while random effects are looked for.
            self._rising = log_rising(self.y, alpha) - self.log_factorial
            self._at = log_alpha
        found = self._of(self.y, eta, alpha, third)
        found = replace(found, value=found.value + self._rising + self.y * eta)
        if not third:
            return found
        r = 1 / alpha
        (tops,), (bottoms,) = _polygammas(self.y + r, 1), _polygammas(r, 1)
        rising = self.y - r * ((self.y * alpha).log1p() + (tops - bottoms))
        other = found.others[0]
        return replace(found, others=(replace(other, one=other.one + rising),))

    def at_zero(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        return self._of(torch.zeros_like(self.y), etas[0], etas[1].exp(), third)

    @staticmethod
    def _of(y: Tensor, eta: Tensor, alpha: Tensor, third: bool) -> Jet:
        """Differentiate all but the rising factorial."""
        mu = _mean(eta)
        x = alpha * mu
        log_x, inverse = x.log1p(), 1 / (1 + x)
        log_ratio = log_x / alpha
        value = -y * log_x - log_ratio
        one = (y - mu) * inverse
        ay = alpha * y
        two = -mu * (1 + ay) * inverse.square()
        if not third:
            return Jet(value, one, two)
        three = two * (1 - x) * inverse
        other = Other(
            log_ratio - (mu + y * x) * inverse,
            -x * one * inverse,
            mu * (x * (2 + ay) - ay) * inverse**3,
        )
        return Jet(value, one, two, three, (other,))


class _NB1(_Count):
    """Variance (1 + alpha) mu; r = mu / alpha."""

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        y, (eta, log_alpha) = self.y, etas
        alpha, mu = log_alpha.exp(), _mean(eta)
        log_one, r = alpha.log1p(), mu / alpha
        rising = log_rising(y, 1 / r)
        value = rising - self.log_factorial + y * (eta - log_one) - r * log_one
        top, orders = y + r, 3 if third else 2
        tops, bottoms = _polygammas(top, orders), _polygammas(r, orders)
        # Differences of polygammas at y + r and r, their leading terms in closed form.
        first = r * ((y / r).log1p() + (tops[0] - bottoms[0]) - log_one)
        second = r * r * (tops[1] - bottoms[1]) - y * r / top
        two = first + second
        if not third:
            return Jet(value, first, two)
        leading = y * r * (r + top) / top.square()
        last = r**3 * (tops[2] - bottoms[2]) + leading
        three = first + 3 * second + last
        share = alpha / (1 + alpha)
        bent = r * share
        other = Other(y - top * share - first, -two - bent, -three - bent)
        return Jet(value, first, two, three, (other,))

    def at_zero(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        alpha = etas[1].exp()
        r = _mean(etas[0]) / alpha
        value = -r * alpha.log1p()
        if not third:
            return Jet(value, value, value)
        turn = -value - r * alpha / (1 + alpha)
        return Jet(value, value, value, value, (Other(turn, turn, turn),))


def _polygammas(x: Tensor, count: int) -> list[Tensor]:
    """Digamma less ``log x``, trigamma less ``1 / x``, tetragamma plus ``1 / x^2``.

    What is left keeps its digits for large x, where differences would lose theirs.

    References
    ----------
    Abramowitz, M. and Stegun, I. (1964). Handbook of mathematical functions, 6.4.
    """
    steps = torch.arange(_SHIFT, dtype=x.dtype, device=x.device)
    near = 1 / (x + steps.view(-1, *([1] * x.dim())))
    u = 1 / (x + _SHIFT)
    s = u * u
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    out = [(_SHIFT / x).log1p() - 0.5 * u - series - near.sum(0)]
    if count > 1:
        series = 1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - s * 5 / 66)))
        out.append(u + 0.5 * s + u * s * series + near.square().sum(0) - 1 / x)
    if count > 2:
        series = 0.5 - s * (1 / 6 - s * (1 / 6 - s * (3 / 10 - s * 5 / 6)))
        far = s + u * s + s * s * series
        out.append(x.pow(-2) - far - 2 * near.pow(3).sum(0))
    return out


# -- counts with a part of their own for zeros -----------------------------------------


class _ZeroInflated:
    """``log(pi [y = 0] + (1 - pi) P(y))``, pi at a logit link."""

    def __init__(self, count: _Count) -> None:
        self.count = count

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        zero, zeta = self.count.zero, etas[1]
        jet = self.count((etas[0], *etas[2:]), third)
        # Probability that a zero is one of the count's.
        p = torch.where(zero, torch.sigmoid(jet.value - zeta), 1.0)
        q = torch.where(zero, p * torch.sigmoid(zeta - jet.value), 0.0)
        softplus = torch.nn.functional.softplus
        extra = torch.where(zero, softplus(zeta - jet.value, threshold=700), 0.0)
        value = jet.value + extra - softplus(zeta, threshold=700)
        square = jet.one.square()
        one, two = p * jet.one, q * square + p * jet.two
        if not third:
            return Jet(value, one, two)
        assert jet.three is not None
        bend = q * (1 - 2 * p)
        three = bend * square * jet.one + 3 * q * jet.one * jet.two + p * jet.three
        inflate = Other(
            1 - p - torch.sigmoid(zeta), -q * jet.one, -bend * square - q * jet.two
        )
        rest = tuple(
            Other(
                p * o.one,
                q * o.one * jet.one + p * o.two,
                bend * o.one * square
                + 2 * q * jet.one * o.two
                + q * o.one * jet.two
                + p * o.three,
            )
            for o in jet.others
        )
        return Jet(value, one, two, three, (inflate, *rest))


class _Truncated:
    """``log P(y) - log(1 - P(0))`` of counts above zero."""

    def __init__(self, count: _Count) -> None:
        self.count = count

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        jet, none = self.count(etas, third), self.count.at_zero(etas, third)
        u = 1 / torch.expm1(-none.value)
        v = u * (1 + u)
        square = none.one.square()
        value = jet.value - log1mexp(-none.value)
        one = jet.one + u * none.one
        two = jet.two + v * square + u * none.two
        if not third:
            return Jet(value, one, two)
        assert jet.three is not None and none.three is not None
        w = v * (1 + 2 * u)
        three = (
            jet.three + w * square * none.one + 3 * v * none.one * none.two
            + u * none.three
        )  # fmt: skip
        rest = tuple(
            Other(
                o.one + u * z.one,
                o.two + v * z.one * none.one + u * z.two,
                o.three
                + w * z.one * square
                + 2 * v * none.one * z.two
                + v * z.one * none.two
                + u * z.three,
            )
            for o, z in zip(jet.others, none.others, strict=True)
        )
        return Jet(value, one, two, three, rest)


class _Hurdle:
    """``log(1 - pi)`` of a zero, ``log pi`` and truncated counts of others."""

    def __init__(self, count: _Count) -> None:
        self.zero, self.counts = count.zero, _Truncated(count)
        self.positive = (~count.zero).to(count.y.dtype)

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        zeta = etas[1]
        found = self.counts((etas[0], *etas[2:]), third).times(self.positive)
        logit = torch.nn.functional.logsigmoid
        part = torch.where(self.zero, logit(-zeta), logit(zeta))
        found = replace(found, value=found.value + part)
        if not third:
            return found
        nothing = torch.zeros_like(zeta)
        hurdle = Other(self.positive - torch.sigmoid(zeta), nothing, nothing)
        return replace(found, others=(hurdle, *found.others))
