"""Special functions whose values and derivatives keep their digits in the limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "HALF_LOG_2PI",
    "horner",
    "log1mexp",
    "log1p_ratio",
    "log_add",
    "log_binomial",
    "log_ndtr",
    "log_rising",
    "relative_log1p",
    "stirling_error",
    "trigamma",
    "x_log_ratio",
]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

# B_2k / (2k (2k - 1)), the coefficients of Stirling's series
_STIRLING = (
    1 / 12,
    -1 / 360,
    1 / 1260,
    -1 / 1680,
    1 / 1188,
    -691 / 360360,
    1 / 156,
    -3617 / 122400,
)
_SHIFT = 10


def horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Polynomial with the given coefficients, constant first."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def log1mexp(t: Tensor, log_t: Tensor | None = None) -> Tensor:
    """Logarithm of 1 - exp(-t) for t > 0.

    Parameters
    ----------
    t : Tensor
        Positive numbers; a negative one gives NaN.
    log_t : Tensor, optional
        Logarithm of `t`, where the caller knows it better than ``t.log()`` does.

    Returns
    -------
    Tensor

    References
    ----------
    Maechler, M. (2012). Accurately computing log(1 - exp(-|a|)). R package Rmpfr.
    """
    tiny, large = t < 0.02, t > math.log(2)
    log_t = torch.log(t) if log_t is None else log_t
    s = torch.where(tiny, t, 0.01)
    series = log_t - 0.5 * s + horner(s * s, (0.0, 1 / 24, -1 / 2880, 1 / 181440))
    middle = torch.log(-torch.expm1(-torch.where(tiny | large, 0.3, t)))
    right = torch.log1p(-torch.exp(-torch.where(large, t, 1.0)))
    return torch.where(tiny, series, torch.where(large, right, middle))


def relative_log1p(x: Tensor) -> Tensor:
    """Return log(1 + x) / x - 1 for x >= 0, with exact derivatives at zero."""
    small = x < 0.05
    coefficients = tuple((-1.0) ** k / (k + 1) if k else 0.0 for k in range(15))
    series = horner(torch.where(small, x, 0.0), coefficients)
    y = torch.where(small, 1.0, x)
    return torch.where(small, series, torch.log1p(y) / y - 1)


def log1p_ratio(x: Tensor) -> Tensor:
    """Return log(1 + x) / x for x >= 0, with exact derivatives at zero.

    Where x is large this keeps the digits that one plus `relative_log1p` loses.
    """
    small = x < 0.05
    series = 1 + relative_log1p(torch.where(small, x, 0.0))
    y = torch.where(small, 1.0, x)
    return torch.where(small, series, torch.log1p(y) / y)


def log_ndtr(x: Tensor) -> Tensor:
    """Logarithm of the standard normal distribution function.

    In place of ``torch.special.log_ndtr``, which has no rule for vmap.
    """
    left = x < -1
    z = torch.where(left, x, -1.0) * -math.sqrt(0.5)
    lower = torch.log(0.5 * torch.special.erfcx(z)) - z * z
    upper = torch.erfc(torch.where(left, 0.0, x) * math.sqrt(0.5))
    return torch.where(left, lower, torch.log1p(-0.5 * upper))


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """Logarithm of exp(a) + exp(b).

    In place of ``torch.logaddexp``, whose second derivative is NaN where one of the
    two is beyond the other by more than 700.
    """
    first = a > b
    high, low = torch.where(first, a, b), torch.where(first, b, a)
    return high - torch.nn.functional.logsigmoid(high - low)


def stirling_error(u: Tensor) -> Tensor:
    """Error of Stirling's formula for log Gamma at 1/u.

    Parameters
    ----------
    u : Tensor
        Reciprocal of a positive argument x. The reciprocal, because the limit of
        large x then is a polynomial at zero, and is differentiable there.

    Returns
    -------
    Tensor
        S(x) in log Gamma(x) = (x - 1/2) log x - x + log(2 pi) / 2 + S(x).

    References
    ----------
    Abramowitz, M. and Stegun, I. (1964). Handbook of mathematical functions, 6.1.41.
    """
    far = u <= 1 / _SHIFT
    x = 1 / torch.where(far, 1.0, u)
    product = x
    for j in range(1, _SHIFT):
        product = product * (x + j)
    shifted = x + _SHIFT
    # log Gamma(x) = log Gamma(x + 10) - log x (x + 1) ... (x + 9)
    near = (
        (shifted - 0.5) * torch.log(shifted)
        - (x - 0.5) * torch.log(x)
        - torch.log(product)
        - _SHIFT
    )
    v = torch.where(far, u, 1 / shifted)
    tail = v * horner(v * v, _STIRLING)
    return torch.where(far, tail, near + tail)


# Bernoulli numbers B_2k, the coefficients of the trigamma function's series
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)


def trigamma(x: Tensor) -> Tensor:
    """Second derivative of log Gamma for x > 0, to full accuracy.

    ``torch.polygamma`` has nine digits, and ``torch.special.zeta`` takes twenty times
    as long.

    References
    ----------
    Abramowitz, M. and Stegun, I. (1964). Handbook of mathematical functions, 6.4.6 and
    6.4.12.
    """
    total = torch.zeros_like(x)
    for j in range(_SHIFT):
        total += (x + j).pow_(-2)
    u = 1 / (x + _SHIFT)
    square = u * u
    return total + u + 0.5 * square + u * square * horner(square, _BERNOULLI)


def log_rising(y: Tensor, a: Tensor) -> Tensor:
    """Return log Gamma(y + 1/a) - log Gamma(1/a) + y log a.

    For whole y this is the sum of log(1 + a j) over j = 0 .. y - 1. It tends to
    zero with a, where the difference of log-gammas would lose all its digits.

    Parameters
    ----------
    y : Tensor
        Numbers that are not negative.
    a : Tensor
        Positive numbers.

    Returns
    -------
    Tensor
        Broadcast of `y` and `a`; value and first two derivatives keep their digits
        for every a.
    """
    x = a * y
    correction = stirling_error(a / (1 + x)) - stirling_error(a)
    return (y - 0.5) * torch.log1p(x) + y * relative_log1p(x) + correction


def log_binomial(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient n over k."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def x_log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """Return x log(x / y), and zero where x is zero."""
    positive = x > 0
    ratio = torch.where(positive, x, 1.0) / torch.where(positive, y, 1.0)
    return x * torch.log(ratio)
