"""Beta, beta-binomial, and continuous families with a predictor for their spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deepstats.errors import DesignError
from deepstats.families import get_family


def tensor(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog", "loglog", "cauchit"])
@pytest.mark.parametrize("phi", [0.3, 2.0, 50.0, 1e5])
def test_beta_matches_scipy(link, phi):
    family = get_family("beta", link)
    y, eta = tensor([1e-6, 0.2, 0.5, 0.999]), tensor([-1.5, -0.4, 0.2, 1.2])
    got = family.log_prob(y, eta, torch.full_like(eta, phi).log())
    mu = family.mean(eta, eta).numpy()
    want = stats.beta.logpdf(y, mu * phi, (1 - mu) * phi)
    assert np.allclose(got, want, rtol=1e-10)


def test_beta_of_huge_precision_keeps_its_digits():
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        mu, phi, y = mpmath.mpf(0.25), mpmath.mpf(1e12), mpmath.mpf(0.250001)
        a, b = mu * phi, (1 - mu) * phi
        want = (a - 1) * mpmath.log(y) + (b - 1) * mpmath.log1p(-y)
        want += mpmath.loggamma(phi) - mpmath.loggamma(a) - mpmath.loggamma(b)
    family = get_family("beta", phi_link="identity")
    eta = family.link(tensor(0.25))
    got = family.log_prob(tensor(0.250001), eta, tensor(1e12))
    # The rounding of eta itself moves the value by 1e-4.
    assert float(got) == pytest.approx(float(want), abs=1e-3)


@pytest.mark.parametrize("phi", [0.5, 3.0, 200.0])
def test_beta_binomial_matches_scipy(phi):
    family, n = get_family("betabinomial"), tensor([1.0, 5.0, 40.0, 40.0])
    k, eta = tensor([1.0, 0.0, 13.0, 40.0]), tensor([-1.0, 0.5, 0.0, 2.0])
    got = family.log_prob(k / n, eta, torch.full_like(eta, phi).log(), size=n)
    mu = torch.sigmoid(eta).numpy()
    want = stats.betabinom.logpmf(k, n, mu * phi, (1 - mu) * phi)
    assert np.allclose(got, want, rtol=1e-10)


def test_beta_binomial_tends_to_the_binomial():
    n, eta = tensor([5.0, 40.0]), tensor([0.5, -1.0])
    y = tensor([0.4, 0.25])
    binomial = get_family("binomial").log_prob(y, eta, size=n)
    got = get_family("betabinomial").log_prob(y, eta, tensor([30.0, 30.0]), size=n)
    assert torch.allclose(got, binomial, rtol=1e-11)


@pytest.mark.parametrize("shape", [1e-3, 0.7, 4.0, 1e6])
def test_gamma_matches_scipy(shape):
    y, eta = tensor([0.5, 1.0, 30.0]), tensor([-0.6, 0.1, 3.3])
    got = get_family("gammaml").log_prob(y, eta, torch.full_like(eta, shape).log())
    want = stats.gamma.logpdf(y, shape, scale=np.exp(eta.numpy()) / shape)
    assert np.allclose(got, want, rtol=1e-10, atol=1e-13 * shape)


def test_gaussian_matches_scipy():
    y, eta, spread = tensor([0.5, -9.0]), tensor([0.1, 0.4]), tensor([-1.0, 2.0])
    got = get_family("gaussianml").log_prob(y, eta, spread)
    assert np.allclose(got, stats.norm.logpdf(y, eta, spread.exp().numpy()), rtol=1e-13)


@pytest.mark.parametrize("nu", [0.5, 3.0, 40.0])
def test_student_matches_scipy_and_tends_to_the_normal(nu):
    y, eta, spread = tensor([0.5, -9.0]), tensor([0.1, 0.4]), tensor([-1.0, 2.0])
    family = get_family("studentt")
    got = family.log_prob(y, eta, spread, torch.full_like(eta, nu).log())
    want = stats.t.logpdf(y, nu, eta, spread.exp().numpy())
    assert np.allclose(got, want, rtol=1e-11)
    limit = family.log_prob(y, eta, spread, torch.full_like(eta, 40.0))
    normal = get_family("gaussianml").log_prob(y, eta, spread)
    assert torch.allclose(limit, normal, rtol=1e-13)


CASES = [
    ("beta", [0.4, 1.5], None),
    ("betabinomial", [0.4, 0.7], 6.0),
    ("gaussianml", [0.4, -0.3], None),
    ("gammaml", [0.4, 1.2], None),
    ("studentt", [0.4, -0.3, 2.5], None),
]


def _support(family, size):
    if size is not None:
        return torch.arange(size + 1, dtype=torch.float64) / size, 1.0
    low, high = {"beta": (0, 1), "gammaml": (0, 40)}.get(family.name, (-200, 200))
    edges = torch.linspace(low, high, 400_001, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])


@pytest.mark.parametrize(("name", "etas", "size"), CASES)
def test_mass_is_one_with_the_stated_moments(name, etas, size):
    family, etas = get_family(name), tensor(etas)
    options = {} if size is None else {"size": tensor(size)}
    y, width = _support(family, size)
    mass = family.log_prob(y, *etas, **options).exp() * width
    # Student's tails beyond 200 hold 1e-8 of the variance with 12 degrees of freedom.
    assert float(mass.sum()) == pytest.approx(1, abs=1e-7)
    mean = float((mass * y).sum())
    assert float(family.mean(*etas)) == pytest.approx(mean, abs=1e-7)
    variance = float((mass * (y - mean) ** 2).sum())
    got = float(family.variance(*etas, **options))
    assert got == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize(("name", "etas", "size"), CASES)
def test_draws_starts_and_checks(name, etas, size):
    n, family, etas = 40_000, get_family(name), tensor(etas)
    options = {} if size is None else {"size": tensor(size).expand(n)}
    rows = [eta.expand(n) for eta in etas]
    y = family.sample(*rows, generator=torch.Generator().manual_seed(3), **options)
    family.check(y, **options)
    variance = float(family.variance(*rows, **options)[0])
    mean = float(family.mean(*etas))
    assert abs(float(y.mean()) - mean) < 4 * math.sqrt(variance / n)
    spread = (y - mean) ** 2
    error = float(spread.std()) / math.sqrt(n)
    assert abs(float(spread.mean()) - variance) < 4 * error
    start = family.start(y, torch.ones(n), **options)
    assert np.allclose(start, etas, atol=0.5)


@pytest.mark.parametrize(("name", "etas", "size"), CASES)
def test_derivatives_match_finite_differences(name, etas, size):
    family, at = get_family(name), tensor(etas)
    options = {} if size is None else {"size": tensor(size)}
    y = tensor([0.5, 1 / 3, 5 / 6])

    def total(point):
        return family.log_prob(y, *point, **options).sum()

    gradient = torch.func.grad(total)
    hessian = torch.autograd.functional.hessian(total, at)
    step, weights = 2e-3, {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    for k in range(len(at)):
        move = torch.zeros_like(at)
        move[k] = step
        points = [(w, at + m * move, at - m * move) for m, w in weights.items()]
        slope = sum(w * (total(up) - total(down)) for w, up, down in points) / step
        assert float(gradient(at)[k]) == pytest.approx(
            float(slope), rel=1e-8, abs=1e-10
        )
        bend = sum(w * (gradient(up) - gradient(down)) for w, up, down in points) / step
        assert torch.allclose(hessian[k], bend, rtol=1e-8, atol=1e-10)


def test_student_without_moments():
    family, zero = get_family("studentt"), tensor(0.0)
    assert math.isnan(float(family.mean(zero, zero, tensor(-0.1))))
    assert math.isinf(float(family.variance(zero, zero, tensor(0.5))))


@pytest.mark.parametrize(
    ("family", "y", "message"),
    [
        (
            "beta",
            [0.5, 0.0, 1.0],
            r"2 of 3 .*exactly 0 or 1.*row 1.*squeeze",
        ),
        ("beta", [0.5, 1.2], r"outside \(0, 1\).*row 1"),
        ("betabinomial", [0.5], "number of trials"),
        ("gammaml", [0.0], "zero or negative"),
        ("studentt", [math.nan], "missing"),
    ],
)
def test_check_names_the_rows(family, y, message):
    with pytest.raises(DesignError, match=message):
        get_family(family).check(tensor(y))
