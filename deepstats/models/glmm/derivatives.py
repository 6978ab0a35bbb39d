"""Derivatives of log-densities in closed form, for the families fitted most.

What Laplace's method asks of a row is the log-density F, its first three derivatives in
the predictor with random effects (eta_0), and for every other predictor eta_j the
derivatives ``F_j``, ``F_0j`` and ``F_00j``. Automatic differentiation gives them for
any family; for counts and proportions, formulas take a tenth of the time.

Zero-inflated and truncated counts are functions of a count's log-density and of its
value at zero, so that their derivatives follow by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...families import (
    Binomial,
    Family,
    GammaML,
    GaussianML,
    HurdleNegativeBinomial,
    HurdlePoisson,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from ...families.special import HALF_LOG_2PI, log1mexp, log_rising, stirling_error

__all__ = ["Jet", "Other", "closed_form"]

#: Means beyond exp of this are infinite for all that a fit can do with them.
_MOST = 300.0
#: Counts beyond this have their log-density from its largest value downwards.
_LARGE = 1e4
#: Polygamma functions are shifted by so much before their series are used.
_SHIFT = 10


@dataclass(frozen=True, eq=False)
class Other:
    """Derivatives in another predictor eta_j; each (n,).

    Attributes
    ----------
    one : Tensor
        ``F_j``.
    two : Tensor
        ``F_0j``.
    three : Tensor
        ``F_00j``.
    """

    one: Tensor
    two: Tensor
    three: Tensor


@dataclass(frozen=True, eq=False)
class Jet:
    """A log-density and its derivatives; each (n,).

    Attributes
    ----------
    value, one, two : Tensor
        F, ``F_0``, ``F_00``.
    three : Tensor or None
        ``F_000``; None, with no `others`, where only curvatures are asked for.
    others : tuple of Other
        By predictor, without the first.
    """

    value: Tensor
    one: Tensor
    two: Tensor
    three: Tensor | None = None
    others: tuple[Other, ...] = ()

    def times(self, factor: Tensor) -> Jet:
        """Return the derivatives of a multiple."""
        return Jet(
            self.value * factor,
            self.one * factor,
            self.two * factor,
            None if self.three is None else self.three * factor,
            tuple(
                Other(o.one * factor, o.two * factor, o.three * factor)
                for o in self.others
            ),
        )


#: Of the predictors, and whether third derivatives are wanted.
Density = Callable[[tuple[Tensor, ...], bool], Jet]


def closed_form(family: Family, y: Tensor) -> Density | None:
    """Return the derivatives of a family at responses; None where there is no formula.

    Of proportions they are those of one trial, without what is free of predictors.
    """
    links = [link.name for link in family.links]
    if isinstance(family, Binomial):
        return _Logit(y) if links == ["logit"] else None
    if isinstance(family, GaussianML):
        return _Gaussian(y) if links == ["identity", "log"] else None
    if isinstance(family, GammaML):
        return _Gamma(y) if links == ["log", "log"] else None
    if isinstance(family, ZeroInflatedPoisson | ZeroInflatedNegativeBinomial):
        wanted = ["log", "logit", "log"][: len(links)]
        return _ZeroInflated(_count(family.count, y)) if links == wanted else None
    if isinstance(family, HurdlePoisson | HurdleNegativeBinomial):
        wanted = ["log", "logit", "log"][: len(links)]
        return _Hurdle(_count(family.count.count, y)) if links == wanted else None
    if isinstance(family, Poisson | NegativeBinomial):
        return _count(family, y) if set(links) == {"log"} else None
    return None


def _count(family: Poisson | NegativeBinomial, y: Tensor) -> _Count:
    if isinstance(family, Poisson):
        return _Poisson(y)
    return _NB2(y) if family.loglike == "nb2" else _NB1(y)


def _mean(eta: Tensor) -> Tensor:
    return eta.clamp_max(_MOST).exp()


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


# -- counts ----------------------------------------------------------------------------


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


class _Hurdle:
    """``log(1 - pi)`` of a zero, ``log pi + log P(y) - log(1 - P(0))`` of others."""

    def __init__(self, count: _Count) -> None:
        self.count = count
        self.positive = (~count.zero).to(count.y.dtype)

    def __call__(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        counts, zeta = (etas[0], *etas[2:]), etas[1]
        jet, none = self.count(counts, third), self.count.at_zero(counts, third)
        logit = torch.nn.functional.logsigmoid
        part = torch.where(self.count.zero, logit(-zeta), logit(zeta))
        u = 1 / torch.expm1(-none.value)
        v = u * (1 + u)
        square = none.one.square()
        value = jet.value - log1mexp(-none.value)
        one = jet.one + u * none.one
        two = jet.two + v * square + u * none.two
        if not third:
            found = Jet(value, one, two).times(self.positive)
            return replace(found, value=found.value + part)
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
        found = Jet(value, one, two, three, rest).times(self.positive)
        nothing = torch.zeros_like(zeta)
        hurdle = Other(self.positive - torch.sigmoid(zeta), nothing, nothing)
        return replace(found, value=found.value + part, others=(hurdle, *found.others))
