"""Links: round trips, derivatives and tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from deepstats.families import Identity, Power, get_link

NAMES = [
    "identity",
    "log",
    "logit",
    "probit",
    "cloglog",
    "loglog",
    "cauchit",
    "inverse",
    "inverse-squared",
    "sqrt",
    "power(0.25)",
    "power(-3)",
]
UNIT = ["logit", "probit", "cloglog", "loglog", "cauchit"]
# The inverse as somebody else wrote it.
CDF = {
    "logit": special.expit,
    "probit": stats.norm.cdf,
    "cloglog": stats.gumbel_l.cdf,
    "loglog": stats.gumbel_r.cdf,
    "cauchit": stats.cauchy.cdf,
}
LOG_CDF = {
    "logit": stats.logistic.logcdf,
    "probit": special.log_ndtr,
    "cloglog": stats.gumbel_l.logcdf,
    "loglog": stats.gumbel_r.logcdf,
    "cauchit": lambda x: np.log(np.arctan2(1, -x) / np.pi),
}


def tensor(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def predictors(name):
    if name in UNIT or name in ("identity", "log"):
        return torch.linspace(-3, 3, 25, dtype=torch.float64)
    return torch.linspace(0.1, 4, 25, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    link, eta = get_link(name), predictors(name)
    if name == "cloglog":
        eta = eta[eta < 1.5]  # beyond, a mean near one cannot carry the digits
    assert torch.allclose(link.link(link.inverse(eta)), eta, rtol=1e-11, atol=1e-12)
    assert torch.equal(link(link.inverse(eta)), link.link(link.inverse(eta)))
    assert get_link(link.name) == link
    assert get_link(link) is link


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_match_autograd(name):
    link, eta = get_link(name), predictors(name).requires_grad_()
    mu = link.inverse(eta)
    (slope,) = torch.autograd.grad(mu.sum(), eta, create_graph=True)
    assert torch.allclose(link.derivative(eta), slope, rtol=1e-9, atol=1e-13)
    second = torch.zeros_like(eta)
    if slope.requires_grad:
        (second,) = torch.autograd.grad(slope.sum(), eta, allow_unused=True)
    second = torch.zeros_like(eta) if second is None else second
    assert torch.allclose(link.second_derivative(eta), second, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_log_inverse_is_the_log_of_the_inverse(name):
    link, eta = get_link(name), predictors(name)
    eta = eta[link.inverse(eta) > 0]
    mu = link.inverse(eta)
    assert torch.allclose(link.log_inverse(eta), mu.log(), rtol=1e-10, atol=1e-12)
    inside = mu < 0.99
    got = link.log_complement(eta)[inside]
    assert torch.allclose(got, torch.log1p(-mu[inside]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", UNIT)
def test_distribution_functions_match_scipy(name):
    link, eta = get_link(name), torch.linspace(-6, 6, 49, dtype=torch.float64)
    assert np.allclose(link.inverse(eta), CDF[name](eta.numpy()), rtol=1e-12, atol=0)
    wide = torch.linspace(-40, 40, 81, dtype=torch.float64)
    if name in ("cloglog", "loglog"):
        wide = wide[wide.abs() <= 30]
    want = LOG_CDF[name](wide.numpy())
    keep = want != 0
    got = link.log_inverse(wide).numpy()[keep]
    assert np.allclose(got, want[keep], rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("name", ["log", *UNIT])
@pytest.mark.parametrize("size", [40.0, 300.0, 700.0])
def test_extreme_predictors_are_finite_with_their_derivatives(name, size):
    link = get_link(name)
    eta = tensor([-size, size], requires_grad=True)
    functions = [link.inverse, link.log_inverse]
    if name != "log":
        functions += [link.log_complement, link.derivative, link.second_derivative]
    for function in functions:
        value = function(eta)
        (slope,) = torch.autograd.grad(value.sum(), eta, create_graph=True)
        assert torch.isfinite(value).all()
        assert torch.isfinite(slope).all()
        if slope.requires_grad:
            (second,) = torch.autograd.grad(slope.sum(), eta)
            assert torch.isfinite(second).all()


@pytest.mark.parametrize("name", UNIT)
@pytest.mark.parametrize(
    ("lower", "upper"),
    [(-1.0, 0.5), (-30.0, -29.0), (4.0, 5.0), (0.3, 0.3 + 1e-9), (9.0, 9.004)],
)
def test_log_difference_matches_high_precision(name, lower, upper):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        cdf = {
            "logit": lambda x: 1 / (1 + mpmath.exp(-x)),
            "probit": mpmath.ncdf,
            "cloglog": lambda x: 1 - mpmath.exp(-mpmath.exp(x)),
            "loglog": lambda x: mpmath.exp(-mpmath.exp(-x)),
            "cauchit": lambda x: mpmath.atan(x) / mpmath.pi + mpmath.mpf(1) / 2,
        }[name]
        gap = cdf(mpmath.mpf(upper)) - cdf(mpmath.mpf(lower))
        want = float(mpmath.log(gap)) if gap > mpmath.mpf(10) ** -55 else None
    got = float(get_link(name).log_difference(tensor(lower), tensor(upper)))
    if want is not None:
        assert got == pytest.approx(want, rel=1e-11)
    assert math.isfinite(got)


def test_names_and_aliases():
    assert get_link("Inverse_Squared") == get_link("1/mu^2") == Power(-2)
    assert get_link("logistic") == get_link("LOGIT")
    assert get_link("cauchy") == get_link("cauchit")
    assert get_link("power(1)") == Identity()
    assert get_link("power(1/3)").exponent == pytest.approx(1 / 3)
    assert Power(0.5).name == "sqrt"
    assert Power(0.3).name == "power(0.3)"


@pytest.mark.parametrize("bad", ["softplus", "power(x)", "", 3, None])
def test_unknown_link_lists_what_is_allowed(bad):
    with pytest.raises(ValueError, match=r"unknown link .*cloglog.*power\(p\)"):
        get_link(bad)


def test_power_zero_points_to_log():
    with pytest.raises(ValueError, match="'log' link"):
        get_link("power(0)")


# torch 2.13 warns about its own use of torch.jit at the first jvp.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_leading_dimensions_and_vmap():
    eta = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.manual_seed(1))
    for name in UNIT:
        link = get_link(name)
        whole = link.log_inverse(eta)
        assert torch.equal(torch.vmap(link.log_inverse)(eta), whole)
        tangent = torch.func.jvp(link.log_inverse, (eta,), (torch.ones_like(eta),))[1]
        want = link.derivative(eta) / link.inverse(eta)
        assert torch.allclose(tangent, want, rtol=1e-10)
