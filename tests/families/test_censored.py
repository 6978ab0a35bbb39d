"""The censored normal family: density, moments, draws and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from deepstats.errors import DesignError
from deepstats.families import CensoredNormal, get_family

LIMITS = [(-0.5, 1.2), (0.0, math.inf), (-math.inf, 0.3), (-math.inf, math.inf)]


def tensor(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def test_names():
    for name in ("cnorm", "tobit", "censorednormal", "censored.normal"):
        assert get_family(name, lower=0) == CensoredNormal(lower=0.0)
    assert get_family("cnorm").predictors == ("mu", "sigma")


@pytest.mark.parametrize("sigma", [1e-3, 0.8, 40.0])
@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_density_matches_scipy(low, high, sigma):
    y = tensor([-3.0, -0.5, 0.0, 0.2, 0.3, 1.2, 8.0])
    mu = tensor([0.3, -1.0, 0.5, 0.2, 2.0, 0.0, 1.0])
    zeta = torch.full_like(mu, sigma).log()
    got = CensoredNormal(lower=low, upper=high).log_prob(y, mu, zeta)
    inside = stats.norm.logpdf(y, mu, sigma)
    below = stats.norm.logcdf(low, mu, sigma)
    above = stats.norm.logsf(high, mu, sigma)
    want = np.where(y <= low, below, np.where(y >= high, above, inside))
    assert np.allclose(got, want, rtol=1e-11)
    rows = torch.full_like(y, low), torch.full_like(y, high)
    by_row = CensoredNormal().log_prob(y, mu, zeta, lower=rows[0], upper=rows[1])
    assert torch.equal(by_row, got)


def test_limits_of_rows_take_the_place_of_the_familys():
    family = CensoredNormal(lower=0.0)
    y, mu, zeta = tensor([-1.0, -1.0]), tensor([0.2, 0.2]), tensor([0.1, 0.1])
    got = family.log_prob(y, mu, zeta, lower=tensor([-math.inf, 0.0]))
    sigma = math.exp(0.1)
    want = [stats.norm.logpdf(-1, 0.2, sigma), stats.norm.logcdf(0, 0.2, sigma)]
    assert np.allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize(("low", "high"), LIMITS)
@pytest.mark.parametrize(("mu", "sigma"), [(0.4, 0.7), (-2.0, 1.3), (3.0, 0.5)])
def test_moments_match_integrals(low, high, mu, sigma):
    family = CensoredNormal(lower=low, upper=high)
    etas = tensor(mu), tensor(math.log(sigma))

    def moment(power):
        def integrand(z):
            y = min(max(mu + sigma * z, low), high)
            return y**power * stats.norm.pdf(z)

        ends = [(x - mu) / sigma for x in (low, high) if math.isfinite(x)]
        points = [e for e in ends if abs(e) < 12] or None
        return integrate.quad(integrand, -12, 12, points=points, epsabs=1e-12)[0]

    mean = moment(1)
    assert float(family.mean(*etas)) == pytest.approx(mean, rel=1e-8, abs=1e-10)
    variance = moment(2) - mean**2
    got = float(family.variance(*etas))
    assert got == pytest.approx(variance, rel=1e-6, abs=1e-9)
    assert float(family.latent_mean(*etas)) == mu


@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_draws_and_starts(low, high):
    n, family = 40_000, CensoredNormal(lower=low, upper=high)
    etas = [tensor(v).expand(n) for v in (0.4, -0.3)]
    y = family.sample(*etas, generator=torch.Generator().manual_seed(3))
    family.check(y)
    assert float(y.min()) >= low and float(y.max()) <= high
    error = math.sqrt(float(family.variance(*etas)[0]) / n)
    assert abs(float(y.mean() - family.mean(*etas)[0])) < 4 * error
    assert np.allclose(family.start(y, torch.ones(n)), (0.4, -0.3), atol=0.15)


def test_starts_where_all_responses_are_censored():
    start = CensoredNormal(lower=0.0).start(tensor([0.0, 0.0, -1.0]))
    assert start == (0.0, 0.0)


def test_derivatives_match_finite_differences():
    family, at = CensoredNormal(lower=-0.5, upper=1.2), tensor([0.4, -0.3])
    y = tensor([-0.5, 0.1, 1.2])

    def total(point):
        return family.log_prob(y, *point).sum()

    gradient = torch.func.grad(total)
    hessian = torch.autograd.functional.hessian(total, at)
    step, weights = 2e-3, {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    for k in range(2):
        move = torch.zeros_like(at)
        move[k] = step
        points = [(w, at + m * move, at - m * move) for m, w in weights.items()]
        slope = sum(w * (total(up) - total(down)) for w, up, down in points) / step
        assert float(gradient(at)[k]) == pytest.approx(float(slope), rel=1e-8)
        bend = sum(w * (gradient(up) - gradient(down)) for w, up, down in points) / step
        assert torch.allclose(hessian[k], bend, rtol=1e-8, atol=1e-10)


def test_bad_limits_and_responses():
    with pytest.raises(ValueError, match="lower < upper, got lower=2 and upper=1"):
        CensoredNormal(lower=2, upper=1)
    with pytest.raises(DesignError, match="missing or infinite"):
        CensoredNormal().check(tensor([0.0, math.nan]))
    limits = {"lower": tensor([0.0, 2.0, math.nan]), "upper": tensor(1.0)}
    message = r"2 of 3 rows have limits.*row 1 \(lower, upper: 2, 1\)"
    with pytest.raises(DesignError, match=message):
        CensoredNormal().check(tensor([0.0, 0.5, 1.0]), **limits)
    with pytest.raises(ValueError, match="takes no number of trials"):
        CensoredNormal().log_prob(*(tensor([0.0]),) * 3, size=tensor([1.0]))
