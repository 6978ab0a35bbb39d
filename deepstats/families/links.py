"""Link functions between the mean of a response and its linear predictor."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from deepstats.families.special import horner, log1mexp, log_ndtr

__all__ = [
    "CLogLog",
    "Cauchit",
    "Identity",
    "Interval",
    "Link",
    "Log",
    "LogLog",
    "Logit",
    "Power",
    "Probit",
    "get_link",
]

REAL = (-math.inf, math.inf)
POSITIVE = (0.0, math.inf)
UNIT = (0.0, 1.0)


Triple = tuple[Tensor, Tensor, Tensor]


def _of_logarithm(value: Tensor, derivatives: Triple) -> Triple:
    """Differentiate the logarithm of a function with these derivatives."""
    r, s, t = (d / value for d in derivatives)
    return r, s - r * r, t - 3 * r * s + 2 * r**3


def _mirrored(derivatives: Triple) -> Triple:
    """Differentiate a function of minus its argument."""
    one, two, three = derivatives
    return -one, two, -three


@dataclass(frozen=True)
class Link:
    """A smooth monotone function eta = g(mu).

    Every method works elementwise on tensors of any shape. A value outside the
    range of the link gives NaN in `log_inverse`, which an optimiser takes as a
    step to refuse.
    """

    @property
    def name(self) -> str:
        """Name of the link, as `get_link` reads it."""
        return type(self).__name__.lower()

    @property
    def domain(self) -> tuple[float, float]:
        """Open interval of the means that the link takes."""
        return UNIT

    def link(self, mu: Tensor) -> Tensor:
        """Linear predictor of a mean, g(mu)."""
        raise NotImplementedError

    def __call__(self, mu: Tensor) -> Tensor:
        """Linear predictor of a mean, as `link`."""
        return self.link(mu)

    def inverse(self, eta: Tensor) -> Tensor:
        """Mean at a linear predictor."""
        raise NotImplementedError

    def derivative(self, eta: Tensor) -> Tensor:
        """First derivative of the mean in the linear predictor, d mu / d eta."""
        raise NotImplementedError

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Second derivative of the mean in the linear predictor."""
        raise NotImplementedError

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Third derivative of the mean in the linear predictor."""
        raise NotImplementedError

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Logarithm of the mean, accurate in both tails."""
        return torch.log(self.inverse(eta))

    def log_complement(self, eta: Tensor) -> Tensor:
        """Logarithm of one minus the mean, accurate in both tails."""
        return torch.log1p(-self.inverse(eta))

    def log_derivatives(self, eta: Tensor) -> Triple:
        """First three derivatives of `log_inverse`, accurate in both tails."""
        return _of_logarithm(self.inverse(eta), self._derivatives(eta))

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """First three derivatives of `log_complement`, accurate in both tails."""
        one, two, three = self._derivatives(eta)
        return _of_logarithm(1 - self.inverse(eta), (-one, -two, -three))

    def _derivatives(self, eta: Tensor) -> Triple:
        return (
            self.derivative(eta), self.second_derivative(eta),
            self.third_derivative(eta),
        )  # fmt: skip

    def log_difference(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Logarithm of F(upper) - F(lower) where F is the inverse of the link.

        Parameters
        ----------
        lower, upper : Tensor
            Linear predictors with ``lower < upper`` elementwise.

        Returns
        -------
        Tensor
            Computed in the tail where the difference loses fewer digits.
        """
        log_upper, log_lower = self.log_inverse(upper), self.log_inverse(lower)
        survive_upper = self.log_complement(upper)
        survive_lower = self.log_complement(lower)
        right = survive_lower < log_upper
        big = torch.where(right, survive_lower, log_upper)
        small = torch.where(right, survive_upper, log_lower)
        return big + log1mexp(big - small)


@dataclass(frozen=True)
class Identity(Link):
    """The mean itself, eta = mu."""

    @property
    def domain(self) -> tuple[float, float]:
        """The whole real line."""
        return REAL

    def link(self, mu: Tensor) -> Tensor:
        """Return the mean."""
        return mu

    def inverse(self, eta: Tensor) -> Tensor:
        """Return the linear predictor."""
        return eta

    def derivative(self, eta: Tensor) -> Tensor:
        """One everywhere."""
        return torch.ones_like(eta)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Zero everywhere."""
        return torch.zeros_like(eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Zero everywhere."""
        return torch.zeros_like(eta)


@dataclass(frozen=True)
class Log(Link):
    """Logarithm, eta = log(mu)."""

    @property
    def domain(self) -> tuple[float, float]:
        """The positive numbers."""
        return POSITIVE

    def link(self, mu: Tensor) -> Tensor:
        """Return log(mu)."""
        return torch.log(mu)

    def inverse(self, eta: Tensor) -> Tensor:
        """Return exp(eta)."""
        return torch.exp(eta)

    def derivative(self, eta: Tensor) -> Tensor:
        """Return exp(eta)."""
        return torch.exp(eta)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return exp(eta)."""
        return torch.exp(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Return eta."""
        return eta

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return log(1 - exp(eta)), for eta < 0."""
        return log1mexp(-eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return exp(eta)."""
        return torch.exp(eta)

    def log_derivatives(self, eta: Tensor) -> Triple:
        """One, zero and zero."""
        zero = torch.zeros_like(eta)
        return torch.ones_like(eta), zero, zero

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """Return the derivatives of log(1 - exp(eta))."""
        odds = 1 / torch.expm1(-eta)
        two = -odds * (1 + odds)
        return -odds, two, two * (1 + 2 * odds)


@dataclass(frozen=True)
class Power(Link):
    """Power, eta = mu ** exponent, for positive linear predictors.

    Parameters
    ----------
    exponent : float
        Any number but zero (use the log link); -1 is "inverse", -2 is
        "inverse-squared" and 0.5 is "sqrt".
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an exponent of zero, which is no link."""
        object.__setattr__(self, "exponent", float(self.exponent))
        if self.exponent == 0 or not math.isfinite(self.exponent):
            raise ValueError(
                f"power({self.exponent:g}) is not a link: the exponent must be finite "
                "and not zero; the limit at zero is the 'log' link"
            )

    @property
    def name(self) -> str:
        """Name, with the usual word where the exponent has one."""
        named = {-1.0: "inverse", -2.0: "inverse-squared", 0.5: "sqrt"}
        return named.get(self.exponent, f"power({self.exponent:g})")

    @property
    def domain(self) -> tuple[float, float]:
        """The positive numbers."""
        return POSITIVE

    def link(self, mu: Tensor) -> Tensor:
        """Return mu ** exponent."""
        return mu**self.exponent

    def inverse(self, eta: Tensor) -> Tensor:
        """Return eta ** (1 / exponent)."""
        return eta ** (1 / self.exponent)

    def derivative(self, eta: Tensor) -> Tensor:
        """Return eta ** (1 / exponent - 1) / exponent."""
        q = 1 / self.exponent
        return q * eta ** (q - 1)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return the second derivative of eta ** (1 / exponent)."""
        q = 1 / self.exponent
        return q * (q - 1) * eta ** (q - 2)

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Return log(eta) / exponent."""
        return torch.log(eta) / self.exponent

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return the third derivative of eta ** (1 / exponent)."""
        q = 1 / self.exponent
        return q * (q - 1) * (q - 2) * eta ** (q - 3)

    def log_derivatives(self, eta: Tensor) -> Triple:
        """Return the derivatives of log(eta) / exponent."""
        one = 1 / (self.exponent * eta)
        return one, -one / eta, 2 * one / (eta * eta)


@dataclass(frozen=True)
class Interval(Link):
    """Log odds of a parameter's place in an interval.

    Parameters
    ----------
    low, high : float
        Its ends.
    """

    low: float = 0.0
    high: float = 1.0

    @property
    def name(self) -> str:
        """Name with the ends of the interval."""
        return f"interval({self.low:g}, {self.high:g})"

    @property
    def domain(self) -> tuple[float, float]:
        """The interval."""
        return self.low, self.high

    def link(self, mu: Tensor) -> Tensor:
        """Return log((mu - low) / (high - mu))."""
        return torch.log(mu - self.low) - torch.log(self.high - mu)

    def inverse(self, eta: Tensor) -> Tensor:
        """Return a point inside the interval."""
        return self.low + (self.high - self.low) * torch.sigmoid(eta)

    def derivative(self, eta: Tensor) -> Tensor:
        """Return the logistic density times the width."""
        return (self.high - self.low) * LOGIT.derivative(eta)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return its derivative."""
        return (self.high - self.low) * LOGIT.second_derivative(eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return its second derivative."""
        return (self.high - self.low) * LOGIT.third_derivative(eta)


@dataclass(frozen=True)
class Logit(Link):
    """Log odds, eta = log(mu / (1 - mu))."""

    def link(self, mu: Tensor) -> Tensor:
        """Return log(mu / (1 - mu))."""
        return torch.log(mu) - torch.log1p(-mu)

    def inverse(self, eta: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-eta))."""
        return torch.sigmoid(eta)

    def derivative(self, eta: Tensor) -> Tensor:
        """Return mu (1 - mu)."""
        return torch.sigmoid(eta) * torch.sigmoid(-eta)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return mu (1 - mu) (1 - 2 mu)."""
        return -self.derivative(eta) * torch.tanh(eta / 2)

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Return -log(1 + exp(-eta))."""
        return torch.nn.functional.logsigmoid(eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return -log(1 + exp(eta))."""
        return torch.nn.functional.logsigmoid(-eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return mu (1 - mu) (1 - 6 mu (1 - mu))."""
        variance = self.derivative(eta)
        return variance * (1 - 6 * variance)

    def log_derivatives(self, eta: Tensor) -> Triple:
        """Return 1 - mu, -mu (1 - mu) and its derivative."""
        return torch.sigmoid(-eta), -self.derivative(eta), -self.second_derivative(eta)

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """Return -mu, -mu (1 - mu) and its derivative."""
        return -torch.sigmoid(eta), -self.derivative(eta), -self.second_derivative(eta)

    def log_difference(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Logarithm of F(upper) - F(lower), free of cancellation."""
        gap = log1mexp(upper - lower)
        return self.log_inverse(upper) + self.log_complement(lower) + gap


@dataclass(frozen=True)
class Probit(Link):
    """Standard normal quantile."""

    def link(self, mu: Tensor) -> Tensor:
        """Return the standard normal quantile of mu."""
        return torch.special.ndtri(mu)

    def inverse(self, eta: Tensor) -> Tensor:
        """Return the standard normal distribution function."""
        return 0.5 * torch.erfc(-eta * math.sqrt(0.5))

    def derivative(self, eta: Tensor) -> Tensor:
        """Return the standard normal density."""
        return torch.exp(-0.5 * eta * eta) / math.sqrt(2 * math.pi)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return minus eta times the standard normal density."""
        return -eta * self.derivative(eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return eta^2 - 1 times the standard normal density."""
        return (eta * eta - 1) * self.derivative(eta)

    def log_derivatives(self, eta: Tensor) -> Triple:
        """Differentiate the logarithm of the normal distribution function.

        References
        ----------
        Abramowitz, M. and Stegun, I. (1964). Handbook of mathematical functions,
        26.2.12, whose logarithm's series is used far to the left.
        """
        far = eta < _FAR_LEFT
        x = torch.where(far, 0.0, eta)
        h = _inverse_mills(x)
        d = x + h
        near = h, -h * d, h * (d * (d + h) - 1)
        if not bool(far.any()):
            return near
        t = -torch.where(far, eta, _FAR_LEFT)
        v = 1 / (t * t)
        one, two, three = (horner(v, c) for c in _MILLS)
        tail = t + (1 + one) / t, (1 + two) * v - 1, (2 + three) * v / t
        return (
            torch.where(far, tail[0], near[0]), torch.where(far, tail[1], near[1]),
            torch.where(far, tail[2], near[2]),
        )  # fmt: skip

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """Return the derivatives at minus eta, mirrored."""
        return _mirrored(self.log_derivatives(-eta))

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Return the logarithm of the normal distribution function."""
        return log_ndtr(eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return the logarithm of the normal survival function."""
        return log_ndtr(-eta)

    def log_difference(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Logarithm of F(upper) - F(lower), by Taylor's series where they are close."""
        middle, width = 0.5 * (lower + upper), upper - lower
        close = (width > 0) & (width * (1 + middle.abs()) < 0.05)
        m2 = torch.where(close, middle, 0.0) ** 2
        w = torch.where(close, width, 1.0)
        series = w**2 * (m2 - 1) / 24 + w**4 * (m2 * m2 - 6 * m2 + 3) / 1920
        density = torch.log(w) - 0.5 * (m2 + math.log(2 * math.pi))
        apart = super().log_difference(torch.where(close, upper - 1, lower), upper)
        return torch.where(close, density + torch.log1p(series), apart)


#: Where the asymptotic series of the normal tail takes over ...
_FAR_LEFT = -20.0
#: ... with log(-x Phi(x) / phi(x)) = sum of c_k / x^2k, and this series' derivatives.
_C = (
    -1, 5 / 2, -37 / 3, 353 / 4, -4081 / 5, 55205 / 6, -854197 / 7, 14876033 / 8,
    -288018721 / 9, 1227782785 / 2,
)  # fmt: skip
_MILLS = tuple(
    (0.0, *(c * factor(2 * k) for k, c in enumerate(_C, start=1)))
    for factor in (
        lambda m: m, lambda m: m * (m + 1), lambda m: m * (m + 1) * (m + 2),
    )
)  # fmt: skip


def _inverse_mills(x: Tensor) -> Tensor:
    """Divide the normal density by the distribution function, for x > -20 or so."""
    left = x < -1
    z = torch.where(left, x, -1.0) * -math.sqrt(0.5)
    lower = math.sqrt(2 / math.pi) / torch.special.erfcx(z)
    right = torch.where(left, 0.0, x)
    upper = torch.exp(-0.5 * right * right) / torch.erfc(-right * math.sqrt(0.5))
    return torch.where(left, lower, math.sqrt(2 / math.pi) * upper)


def _exp(eta: Tensor) -> Tensor:
    # Beyond exp(200) the mean is one to the last digit; powers of a larger number
    # would overflow in derivatives that are zero there.
    return torch.exp(eta.clamp(max=200.0))


#: Bernoulli numbers over factorials: w / (exp(w) - 1) as a series in w.
_TODD = (
    1.0, -1 / 2, 1 / 12, 0.0, -1 / 720, 0.0, 1 / 30240, 0.0, -1 / 1209600, 0.0,
    1 / 47900160, 0.0, -691 / 1307674368000,
)  # fmt: skip


def _todd(w: Tensor) -> Triple:
    """Return w / (exp(w) - 1) and its derivatives in log(w), w > 0."""
    small = w < 0.3
    x = torch.where(small, 1.0, w)
    h = x / torch.expm1(x)
    two = h * (1 - x - h)
    three = two * (1 - x - 2 * h) - x * h
    x = torch.where(small, w, 0.0)
    series = (
        horner(x, tuple(c * k**power for k, c in enumerate(_TODD)))
        for power in range(3)
    )
    pairs = zip(series, (h, two, three), strict=True)
    one, two, three = (torch.where(small, near, far) for near, far in pairs)
    return one, two, three


@dataclass(frozen=True)
class CLogLog(Link):
    """Complementary log-log, eta = log(-log(1 - mu))."""

    def link(self, mu: Tensor) -> Tensor:
        """Return log(-log(1 - mu))."""
        return torch.log(-torch.log1p(-mu))

    def inverse(self, eta: Tensor) -> Tensor:
        """Return 1 - exp(-exp(eta))."""
        return -torch.expm1(-_exp(eta))

    def derivative(self, eta: Tensor) -> Tensor:
        """Return exp(eta - exp(eta))."""
        return torch.exp(eta - _exp(eta))

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return (1 - exp(eta)) exp(eta - exp(eta))."""
        return (1 - _exp(eta)) * self.derivative(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Return log(1 - exp(-exp(eta)))."""
        return log1mexp(_exp(eta), log_t=eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return -exp(eta)."""
        return -torch.exp(eta.clamp(max=709.0))

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return (1 - 3 exp(eta) + exp(2 eta)) exp(eta - exp(eta))."""
        w = _exp(eta)
        return (1 + w * (w - 3)) * self.derivative(eta)

    def log_derivatives(self, eta: Tensor) -> Triple:
        """Return w / (exp(w) - 1) and its derivatives, w = exp(eta)."""
        return _todd(_exp(eta))

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """Return -exp(eta), three times."""
        found = self.log_complement(eta)
        return found, found, found

    def log_difference(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Logarithm of F(upper) - F(lower), free of cancellation."""
        gap = upper - lower
        # log(exp(upper) - exp(lower)) = upper + log(1 - exp(-gap))
        log_t = upper + log1mexp(gap)
        return self.log_complement(lower) + log1mexp(_exp(log_t), log_t=log_t)


@dataclass(frozen=True)
class LogLog(Link):
    """Log-log, eta = -log(-log(mu)): the mirror image of `CLogLog`."""

    def link(self, mu: Tensor) -> Tensor:
        """Return -log(-log(mu))."""
        return -torch.log(-torch.log(mu))

    def inverse(self, eta: Tensor) -> Tensor:
        """Return exp(-exp(-eta))."""
        return torch.exp(-_exp(-eta))

    def derivative(self, eta: Tensor) -> Tensor:
        """Return exp(-eta - exp(-eta))."""
        return CLogLog().derivative(-eta)

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return (exp(-eta) - 1) exp(-eta - exp(-eta))."""
        return -CLogLog().second_derivative(-eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Return -exp(-eta)."""
        return CLogLog().log_complement(-eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return log(1 - exp(-exp(-eta)))."""
        return CLogLog().log_inverse(-eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return the third derivative of exp(-exp(-eta))."""
        return CLogLog().third_derivative(-eta)

    def log_derivatives(self, eta: Tensor) -> Triple:
        """Return the derivatives of -exp(-eta)."""
        return _mirrored(CLogLog().complement_derivatives(-eta))

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """Return the derivatives of log(1 - exp(-exp(-eta)))."""
        return _mirrored(CLogLog().log_derivatives(-eta))

    def log_difference(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Logarithm of F(upper) - F(lower), free of cancellation."""
        return CLogLog().log_difference(-upper, -lower)


@dataclass(frozen=True)
class Cauchit(Link):
    """Standard Cauchy quantile, eta = tan(pi (mu - 1/2))."""

    def link(self, mu: Tensor) -> Tensor:
        """Return the standard Cauchy quantile of mu."""
        return -torch.cos(math.pi * mu) / torch.sin(math.pi * mu)

    def inverse(self, eta: Tensor) -> Tensor:
        """Return 1/2 + atan(eta) / pi."""
        return torch.atan2(torch.ones_like(eta), -eta) / math.pi

    def derivative(self, eta: Tensor) -> Tensor:
        """Return the standard Cauchy density."""
        return 1 / (math.pi * (1 + eta * eta))

    def second_derivative(self, eta: Tensor) -> Tensor:
        """Return the derivative of the standard Cauchy density."""
        return -2 * eta / (math.pi * (1 + eta * eta) ** 2)

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return the logarithm of the Cauchy survival function."""
        return self.log_inverse(-eta)

    def third_derivative(self, eta: Tensor) -> Tensor:
        """Return the second derivative of the standard Cauchy density."""
        square = eta * eta
        return (6 * square - 2) / (math.pi * (1 + square) ** 3)

    def complement_derivatives(self, eta: Tensor) -> Triple:
        """Return the derivatives at minus eta, mirrored."""
        return _mirrored(self.log_derivatives(-eta))

    def log_difference(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Logarithm of F(upper) - F(lower), free of cancellation."""
        angle = torch.atan2(upper - lower, 1 + upper * lower)
        return torch.log(angle / math.pi)


IDENTITY, LOG, LOGIT, CLOGLOG = Identity(), Log(), Logit(), CLogLog()
INVERSE, INVERSE_SQUARED = Power(-1.0), Power(-2.0)

_LINKS: dict[str, Link] = {
    "identity": IDENTITY,
    "log": LOG,
    "logit": LOGIT,
    "probit": Probit(),
    "cloglog": CLOGLOG,
    "loglog": LogLog(),
    "cauchit": Cauchit(),
    "inverse": INVERSE,
    "inverse-squared": INVERSE_SQUARED,
    "sqrt": Power(0.5),
}
_ALIASES = {
    "logistic": "logit",
    "cauchy": "cauchit",
    "normal": "probit",
    "inversesquared": "inverse-squared",
    "inversesquare": "inverse-squared",
    "inversepower": "inverse",
    "reciprocal": "inverse",
    "1/mu": "inverse",
    "1/mu^2": "inverse-squared",
    "squareroot": "sqrt",
}
_POWER = re.compile(r"power\(?([-+.0-9e/]+)\)?")


def get_link(link: str | Link) -> Link:
    """Link of a name; an instance is returned as it is.

    Parameters
    ----------
    link : str or Link
        "identity", "log", "logit", "probit", "cloglog", "loglog", "cauchit",
        "inverse", "inverse-squared", "sqrt" or "power(p)". Case, blanks, hyphens
        and underscores do not matter; "logistic", "cauchy" and "1/mu^2" are
        understood.

    Returns
    -------
    Link

    Raises
    ------
    ValueError
        If there is no such link.

    Examples
    --------
    >>> get_link("1/mu^2").name
    'inverse-squared'
    >>> get_link("power(0.25)")
    Power(exponent=0.25)
    """
    if isinstance(link, Link):
        return link
    if isinstance(link, str):
        text = re.sub(r"\s", "", link.lower())
        plain = re.sub(r"[-_]", "", text)
        key = _ALIASES.get(text, _ALIASES.get(plain, plain))
        if key in _LINKS:
            return _LINKS[key]
        match = _POWER.fullmatch(text)
        exponent = _number(match.group(1)) if match else None
        if exponent is not None:
            return Identity() if exponent == 1 else Power(exponent)
    raise ValueError(
        f"unknown link {link!r}; allowed: {', '.join(_LINKS)}, power(p), "
        "or an instance of deepstats.families.Link"
    )


def link_names(domain: tuple[float, float]) -> str:
    """Names of the built-in links for a parameter that lives in `domain`."""
    names = [name for name, link in _LINKS.items() if covers(link.domain, domain)]
    return ", ".join([*names, "power(p)"] if covers(POSITIVE, domain) else names)


def covers(outer: tuple[float, float], inner: tuple[float, float]) -> bool:
    """Whether the interval `outer` contains `inner`."""
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _number(text: str) -> float | None:
    """Read a decimal number or a fraction such as 1/3."""
    try:
        top, _, bottom = text.partition("/")
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None
