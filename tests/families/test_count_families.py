"""Negative binomial, truncated, zero-inflated and hurdle counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from deepstats.errors import DesignError
from deepstats.families import get_family

mpmath = pytest.importorskip("mpmath")


def tensor(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


FAMILIES = [
    get_family(name)
    for name in (
        "nb2",
        "nb1",
        "zip",
        "ziptau",
        "zinb",
        "zinb1",
        "hurdlepoisson",
        "hurdlenb",
        "hurdlenb1",
        "ztp",
        "ztnb",
        "ztnb1",
    )
]


def name(family):
    return family.name + getattr(family, "loglike", "")


def etas(family, mu=1.7, alpha=0.6, zero=-0.4):
    values = {"mu": math.log(mu), "alpha": math.log(alpha)}
    return [tensor(values.get(p, zero)) for p in family.predictors]


# -------------------------------------------------------- negative binomial


@pytest.mark.parametrize("loglike", ["nb2", "nb1"])
@pytest.mark.parametrize("alpha", [1e-2, 0.5, 40.0])
@pytest.mark.parametrize("mu", [1e-3, 0.8, 300.0])
def test_negative_binomial_matches_scipy(loglike, alpha, mu):
    family, y = get_family(loglike), tensor([0.0, 1.0, 4.0, 77.0, 3000.0])
    got = family.log_prob(y, tensor(mu).log(), tensor(alpha).log())
    shape = 1 / alpha if loglike == "nb2" else mu / alpha
    want = stats.nbinom.logpmf(y, shape, shape / (shape + mu))
    assert np.allclose(got, want, rtol=1e-9, atol=1e-11)


def nb_log_prob(y, mu, alpha, loglike):
    r = 1 / alpha if loglike == "nb2" else mu / alpha
    binomial = mpmath.loggamma(y + r) - mpmath.loggamma(r) - mpmath.loggamma(y + 1)
    return binomial + r * mpmath.log(r / (r + mu)) + y * mpmath.log(mu / (r + mu))


@pytest.mark.parametrize("loglike", ["nb2", "nb1"])
@pytest.mark.parametrize("alpha", [1e-8, 1e-5, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize(("y", "mu"), [(0, 0.3), (1, 2.0), (3, 3.5), (100_000, 9e4)])
def test_negative_binomial_with_fifty_digits(loglike, alpha, y, mu):
    """Value, and gradient and Hessian in the two parameters, near Poisson and far."""
    family = get_family(loglike, "identity", alpha_link="identity")
    count, at = tensor(float(y)), tensor([mu, alpha])

    def ours(point):
        return family.log_prob(count, point[0], point[1])

    def theirs(a, b):
        return nb_log_prob(y, a, b, loglike)

    with mpmath.workdps(80):
        point = (mpmath.mpf(mu), mpmath.mpf(alpha))
        orders = [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
        want = [float(mpmath.diff(theirs, point, k)) for k in orders]
    value = float(ours(at))
    gradient = torch.autograd.functional.jacobian(ours, at)
    hessian = torch.autograd.functional.hessian(ours, at)
    got = [value, *gradient.tolist()]
    got += [float(hessian[0, 0]), float(hessian[0, 1]), float(hessian[1, 1])]
    # What the sums of terms of size y^(order + 1) leave at 1e-15 each, at most.
    slack = [0, 0, y * y, 0, y, y**3]
    for mine, exact, size in zip(got, want, slack, strict=True):
        assert mine == pytest.approx(exact, rel=1e-8, abs=1e-10 + 1e-14 * size)


def test_negative_binomial_tends_to_poisson():
    y, eta = tensor([0.0, 2.0, 9.0, 500.0]), tensor([0.1, 1.0, 2.0, 6.2])
    poisson = get_family("poisson").log_prob(y, eta)
    for loglike in ("nb2", "nb1"):
        got = get_family(loglike).log_prob(y, eta, torch.full_like(eta, -40.0))
        assert torch.allclose(got, poisson, rtol=1e-12)


def test_known_and_estimated_alpha_agree():
    y, eta = tensor([0.0, 2.0, 9.0]), tensor([0.1, 1.0, 2.0])
    known = get_family("nb2", alpha=0.4).log_prob(y, eta)
    estimated = get_family("nb2").log_prob(y, eta, torch.full_like(eta, 0.4).log())
    assert torch.allclose(known, estimated, rtol=1e-14)


# -------------------------------------------------------------- all families


@pytest.mark.parametrize("family", FAMILIES, ids=name)
@pytest.mark.parametrize(("mu", "alpha"), [(1.7, 0.6), (0.01, 2.0), (6.0, 0.05)])
def test_mass_is_one_with_the_stated_moments(family, mu, alpha):
    predictors = etas(family, mu, alpha)
    low = 1 if "truncated" in family.name else 0
    y = torch.arange(low, 2000, dtype=torch.float64)
    mass = family.log_prob(y, *predictors).exp()
    assert float(mass.sum()) == pytest.approx(1, rel=1e-10)
    mean = float((mass * y).sum())
    assert float(family.mean(*predictors)) == pytest.approx(mean, rel=1e-10)
    variance = float((mass * (y - mean) ** 2).sum())
    assert float(family.variance(*predictors)) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=name)
@pytest.mark.parametrize(("mu", "alpha"), [(1.7, 0.6), (0.05, 3.0)])
def test_draws_have_the_stated_frequencies(family, mu, alpha):
    n = 40_000
    predictors = [eta.expand(n) for eta in etas(family, mu, alpha)]
    y = family.sample(*predictors, generator=torch.Generator().manual_seed(5))
    family.check(y)
    error = math.sqrt(float(family.variance(*predictors)[0]) / n)
    assert abs(float(y.mean()) - float(family.mean(*predictors)[0])) < 4 * error
    low = 1 if "truncated" in family.name else 0
    for k in range(low, low + 5):
        p = float(family.log_prob(tensor(float(k)), *etas(family, mu, alpha)).exp())
        error = math.sqrt(p * (1 - p) / n) + 1 / n
        assert abs(float((y == k).double().mean()) - p) < 4 * error


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_derivatives_match_finite_differences(family):
    y = tensor([1.0 if "truncated" in family.name else 0.0, 1.0, 3.0, 9.0])
    at = torch.stack(etas(family))

    def total(point):
        return family.log_prob(y, *point).sum()

    gradient = torch.func.grad(total)
    hessian = torch.autograd.functional.hessian(total, at)
    step, weights = 2e-3, {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}  # sixth order
    for k in range(len(at)):
        move = torch.zeros_like(at)
        move[k] = step
        points = [(w, at + m * move, at - m * move) for m, w in weights.items()]
        slope = sum(w * (total(up) - total(down)) for w, up, down in points) / step
        assert float(gradient(at)[k]) == pytest.approx(float(slope), rel=1e-8)
        bend = sum(w * (gradient(up) - gradient(down)) for w, up, down in points) / step
        assert torch.allclose(hessian[k], bend, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_extreme_predictors_stay_finite_with_their_derivatives(family):
    y = tensor([1.0, 30.0]) if "truncated" in family.name else tensor([0.0, 30.0])
    for mu, zero, alpha in [
        (-40, -40, -20),
        (8, 40, 10),
        (-20, 300, 5),
        (3, -300, -30),
    ]:
        values = {"mu": mu, "alpha": alpha}
        at = tensor([float(values.get(p, zero)) for p in family.predictors])

        def total(point):
            return family.log_prob(y, *point).sum()

        assert torch.isfinite(total(at))
        assert torch.isfinite(torch.autograd.functional.jacobian(total, at)).all()
        assert torch.isfinite(torch.autograd.functional.hessian(total, at)).all()


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_start_is_near_the_truth(family):
    n, truth = 20_000, etas(family)
    y = family.sample(*(eta.expand(n) for eta in truth), generator=torch.manual_seed(2))
    start = family.start(y, torch.ones(n))
    assert len(start) == len(truth)
    assert all(abs(a - float(b)) < 1.6 for a, b in zip(start, truth, strict=True))
    zeros = torch.ones(4) if "truncated" in family.name else torch.zeros(4)
    assert all(math.isfinite(value) for value in family.start(zeros))


def test_zero_inflation_and_hurdle_conventions():
    """The inflate part is P(certain zero); the zero part is P(y > 0), as in pscl."""
    mu, zero = 1.3, 0.7
    predictors = tensor(math.log(mu)), tensor(zero)
    pi = special.expit(zero)
    y = tensor([0.0, 2.0])
    got = get_family("zip").log_prob(y, *predictors).exp()
    want = [pi + (1 - pi) * math.exp(-mu), (1 - pi) * stats.poisson.pmf(2, mu)]
    assert np.allclose(got, want, rtol=1e-13)
    got = get_family("hurdle").log_prob(y, *predictors).exp()
    want = [1 - pi, pi * stats.poisson.pmf(2, mu) / -math.expm1(-mu)]
    assert np.allclose(got, want, rtol=1e-13)


def test_zeros_tied_to_the_mean():
    """The log odds of a certain zero are -tau log(mu), as in crimCV."""
    eta, tau = tensor([-0.5, 0.9]), 0.7
    zeta = torch.full_like(eta, math.log(tau))
    y = tensor([0.0, 3.0])
    got = get_family("ziptau").log_prob(y, eta, zeta)
    want = get_family("zip").log_prob(y, eta, -tau * eta)
    assert torch.allclose(got, want, rtol=1e-14)
    with pytest.raises(ValueError, match="log link only, got sqrt"):
        get_family("ziptau", "sqrt")


def test_huge_overdispersion_keeps_the_zeros():
    """-log P(0) is log(1 + alpha mu) / alpha, however large alpha mu is."""
    exponent = get_family("nb2").zero_exponent(tensor(50.0), tensor(50.0))
    assert float(exponent) == pytest.approx(100 * math.exp(-50), rel=1e-14)


def test_rare_positive_counts_keep_their_digits():
    got = get_family("ztp").log_prob(tensor([1.0, 2.0]), tensor([-30.0, -30.0]))
    assert got.tolist() == pytest.approx([-math.exp(-30) / 2, -30 - math.log(2)], 1e-13)


@pytest.mark.parametrize(
    ("family", "y", "message"),
    [
        ("zip", [0.5], "not whole"),
        ("hurdle", [-1.0], "negative"),
        ("nb2", [2.0, math.nan], "missing.*row 1"),
        ("ztp", [1.0, 0.0], r"1 of 2 responses are zero, the first at row 1.*hurdle"),
    ],
)
def test_check_names_the_rows(family, y, message):
    with pytest.raises(DesignError, match=message):
        get_family(family).check(tensor(y))
