"""Special functions against arithmetic with 60 digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepstats.families.special import (
    log1mexp,
    log1p_ratio,
    log_ndtr,
    log_rising,
    relative_log1p,
    stirling_error,
    trigamma,
)

mpmath = pytest.importorskip("mpmath")


def derivatives(function, x: float) -> tuple[float, float, float]:
    """Value and first two derivatives by autograd."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value: Tensor = function(at)
    (first,) = torch.autograd.grad(value, at, create_graph=True)
    (second,) = torch.autograd.grad(first, at)
    return float(value.detach()), float(first.detach()), float(second)


def exact(function, x: float) -> list[float]:
    """Value and first two derivatives with many digits."""
    with mpmath.workdps(60):
        return [float(mpmath.diff(function, mpmath.mpf(x), k)) for k in range(3)]


@pytest.mark.parametrize("t", [1e-12, 1e-4, 0.0199, 0.0201, 0.5, 0.7, 3.0, 40.0])
def test_log1mexp(t):
    def reference(s):
        return mpmath.log(-mpmath.expm1(-s))

    assert derivatives(log1mexp, t) == pytest.approx(exact(reference, t), rel=1e-12)


@pytest.mark.parametrize("x", [-300.0, -40.0, -5.0, -1.0001, -0.9999, 0.0, 3.0, 20.0])
def test_log_ndtr(x):
    with mpmath.workdps(600):
        at = mpmath.mpf(x)
        below = mpmath.erfc(-at / mpmath.sqrt(2)) / 2
        hazard = mpmath.npdf(at) / below
        want = [mpmath.log(below), hazard, -hazard * (at + hazard)]
        want = [float(number) for number in want]
    # Far left the second derivative is -1 up to eps x^2.
    assert derivatives(log_ndtr, x) == pytest.approx(want, rel=1e-14 * max(10, x**4))


@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.049, 0.051, 1.0, 1e3, 1e8])
def test_relative_log1p(x):
    def reference(s):
        return mpmath.log1p(s) / s - 1

    assert derivatives(relative_log1p, x) == pytest.approx(exact(reference, x), 1e-11)


@pytest.mark.parametrize("x", [1e-5, 0.1, 1.0, 2.0, 9.99, 10.01, 1e2, 1e6])
def test_stirling_error(x):
    def reference(u):
        z = 1 / u
        half_log = mpmath.log(2 * mpmath.pi) / 2
        return mpmath.loggamma(z) - (z - 0.5) * mpmath.log(z) + z - half_log

    got, want = derivatives(stirling_error, 1 / x), exact(reference, 1 / x)
    # Below 10 the value is a difference of terms of size 20: 1e-14, not 1e-16; the
    # series has lost some 1e-10 of its second derivative at 10.
    assert got == pytest.approx(want, rel=1e-9, abs=2e-14)


@pytest.mark.parametrize("y", [0, 1, 2, 7, 100, 10**5])
@pytest.mark.parametrize("a", [1e-8, 1e-5, 1e-3, 0.099, 0.101, 1.0, 30.0, 1e3])
def test_log_rising_and_its_derivatives(y, a):
    def reference(s):
        z = 1 / s
        return mpmath.loggamma(y + z) - mpmath.loggamma(z) + y * mpmath.log(s)

    count = torch.tensor(float(y), dtype=torch.float64)
    got = derivatives(lambda s: log_rising(count, s), a)
    want = exact(reference, a)
    # Of the terms of size y that cancel when a y is small, 1e-15 each remains.
    scale = [a * y, y, y * (1 + y)]
    for order in range(3):
        slack = 1e-12 * scale[order] + 1e-30
        assert got[order] == pytest.approx(want[order], rel=1e-10, abs=slack), order


@pytest.mark.parametrize("x", [1e-12, 1e-3, 0.0499, 0.0501, 0.8, 30.0])
def test_log1p_ratio(x):
    def reference(s):
        return mpmath.log1p(s) / s

    assert derivatives(log1p_ratio, x) == pytest.approx(exact(reference, x), rel=1e-10)


def test_log1p_ratio_far_out():
    got = log1p_ratio(torch.tensor(1e40, dtype=torch.float64))
    assert float(got) == pytest.approx(float(mpmath.log1p(1e40) / 1e40), rel=1e-14)


@pytest.mark.parametrize("x", [1e-30, 1e-3, 0.4, 1.0, 7.7, 31.0, 1e4, 1e15])
def test_trigamma(x):
    got = float(trigamma(torch.tensor(x, dtype=torch.float64)))
    with mpmath.workdps(60):
        want = float(mpmath.psi(1, mpmath.mpf(x)))
    assert got == pytest.approx(want, rel=2e-15)
