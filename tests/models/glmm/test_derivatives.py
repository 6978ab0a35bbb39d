"""Closed forms of densities at every link: automatic derivatives, and tails."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import pytest
import torch
from torch import Tensor

from deepstats.families import (
    CumulativeLink,
    Family,
    GammaML,
    GaussianML,
    InverseGaussianML,
    StudentT,
    TweedieML,
    get_family,
)
from deepstats.models.glmm.derivatives import closed_form
from deepstats.models.glmm.jets import Jet

ROWS = 60
UNIT = ("logit", "probit", "cloglog", "loglog", "cauchit")
POSITIVE = ("log", "identity", "sqrt", "inverse", "inverse-squared", "power(0.3)")
REAL = ("identity", "log", "inverse", "probit")
COUNTS = (
    "poisson", "nb2", "nb1", "zip", "zinb2", "zinb1", "hurdle", "hurdlenb", "ztp",
    "ztnb2", "ztnb1",
)  # fmt: skip

CASES: dict[str, Family] = {
    **{f"binomial {n}": get_family("binomial", link=n) for n in (*UNIT, "log")},
    **{f"{f} {n}": get_family(f, link=n) for f in COUNTS for n in POSITIVE},
    **{f"gamma {n}": GammaML(n) for n in POSITIVE},
    **{f"inversegaussian {n}": InverseGaussianML(n) for n in POSITIVE},
    **{f"tweedie {n}": TweedieML(n) for n in POSITIVE},
    **{f"gaussian {n}": GaussianML(n) for n in REAL},
    **{f"t {n}": StudentT(n) for n in REAL},
    **{f"ordinal {n}": CumulativeLink(n, 4) for n in UNIT},
    "two levels": CumulativeLink("probit", 2),
    "t, known nu": StudentT(nu=4.0),
    "tweedie, known power": TweedieML(power=1.3),
    "gamma, shape sqrt": GammaML("log", "sqrt"),
    "nb2, alpha identity": replace(get_family("nb2"), alpha_link="identity"),
    "gaussian, sigma inverse": GaussianML("identity", "inverse"),
    "zip, cloglog": replace(get_family("zip"), inflate_link="cloglog"),
    "hurdle, probit": replace(get_family("hurdlenb"), zero_link="probit"),
}  # fmt: skip


def drawn(name: str) -> tuple[Family, Tensor, tuple[Tensor, ...]]:
    """A family, responses it can have and predictors inside its links' ranges."""
    family = CASES[name]
    torch.manual_seed(len(name))
    y = torch.poisson(torch.full((ROWS,), 2.0)).double()
    if family.name == "binomial":
        y = (y / 5).clamp(max=1)
    elif family.name == "ordinal":
        y = y.clamp(max=family.levels - 1)
    elif family.name.startswith("zerotruncated"):
        y = y + 1
    elif family.name in ("gammaml", "inversegaussianml"):
        y = y + 0.3
    elif family.name == "tweedieml":
        y = y * torch.rand(ROWS).double()
    etas = []
    for j, link in enumerate(family.links):
        eta = 0.7 * torch.randn(ROWS).double()
        if link.domain == (0, math.inf) and link.name != "log":
            eta = eta.abs() + 0.6
        if name == "binomial log" or (
            link.name == "identity" and j == 0 and family.domains[0] == (0, math.inf)
        ):
            eta = eta.abs() + 0.3
        etas.append(-eta if name == "binomial log" else eta)
    if family.name == "ordinal":
        cuts = torch.linspace(-1, 1.5, family.levels - 1).double()
        etas[1:] = [cut + 0.1 * eta for cut, eta in zip(cuts, etas[1:], strict=True)]
    if name == "nb2, alpha identity":
        etas[1] = etas[1].abs() + 0.2
    return family, y, tuple(etas)


def automatic(family: Family, y: Tensor, etas: tuple[Tensor, ...]) -> Jet:
    """Value and derivatives by automatic differentiation, as lists by predictor."""
    given = tuple(e.clone().requires_grad_() for e in etas)

    def partials(values: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            values.sum(), given, create_graph=True, materialize_grads=True
        )

    value = family.log_prob(y, *given)
    first = partials(value)
    second = partials(first[0])
    third = partials(second[0])
    return Jet(value, first, second, third)


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_are_automatic_derivatives(name: str) -> None:
    family, y, etas = drawn(name)
    density = closed_form(family, y)
    assert density is not None
    found, wanted = density(etas, True), automatic(family, y, etas)
    shift = found.value - wanted.value.detach()  # free of the predictors
    assert float((shift - shift.mean()).abs().max()) < 1e-10 * (1 + shift.abs().max())
    pairs = [
        (found.one, wanted.one[0]), (found.two, wanted.two[0]),
        (found.three, wanted.three[0]),
    ]  # fmt: skip
    for j, other in enumerate(found.others, start=1):
        pairs += [
            (other.one, wanted.one[j]), (other.two, wanted.two[j]),
            (other.three, wanted.three[j]),
        ]  # fmt: skip
    assert len(found.others) == len(etas) - 1
    for one, other in pairs:
        torch.testing.assert_close(one, other.detach(), rtol=1e-9, atol=1e-9)
    short = density(etas, False)
    torch.testing.assert_close(short.two, found.two, rtol=1e-14, atol=0)
    assert short.three is None


# -- tails -----------------------------------------------------------------------------

#: Distribution functions and their complements, to as many digits as are asked for.
_CDF = {
    "logit": (lambda x: 1 / (1 + mpmath.exp(-x)), lambda x: 1 / (1 + mpmath.exp(x))),
    "probit": (
        lambda x: mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
        lambda x: mpmath.erfc(x / mpmath.sqrt(2)) / 2,
    ),
    "cloglog": (
        lambda x: -mpmath.expm1(-mpmath.exp(x)), lambda x: mpmath.exp(-mpmath.exp(x)),
    ),
    "loglog": (
        lambda x: mpmath.exp(-mpmath.exp(-x)),
        lambda x: -mpmath.expm1(-mpmath.exp(-x)),
    ),
    "cauchit": (
        lambda x: mpmath.atan2(1, -x) / mpmath.pi,
        lambda x: mpmath.atan2(1, x) / mpmath.pi,
    ),
}  # fmt: skip
_TAILS = (-300.0, -30.0, -20.1, -19.9, -8.0, -1.01, -0.99, 0.0, 3.0, 5.0, 6.5)


@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("eta", _TAILS)
@pytest.mark.parametrize("link", UNIT)
def test_proportions_in_the_tails(link: str, eta: float, success: bool) -> None:
    """Derivatives of log(mu) and log(1 - mu) in many digits."""
    if not success and link != "loglog":
        eta = -eta
    if (link == "loglog" and success) or (link == "cloglog" and not success):
        eta = max(min(eta, 6.0), -6.0)  # beyond, an exponential and nothing else
    y = torch.tensor([float(success)], dtype=torch.float64)
    jet = closed_form(get_family("binomial", link=link), y)(
        (torch.tensor([eta], dtype=torch.float64),), True
    )
    with mpmath.workdps(60):

        def f(x):
            return mpmath.log(_CDF[link][0 if success else 1](x))

        wanted = [float(mpmath.diff(f, mpmath.mpf(eta), k)) for k in (1, 2, 3)]
    found = [float(t) for t in (jet.one, jet.two, jet.three)]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("shift", [-35.0, -6.0, 0.0, 6.0, 30.0])
@pytest.mark.parametrize("link", UNIT)
def test_levels_in_the_tails(link: str, shift: float) -> None:
    """Derivatives of log(F(u) - F(l)), far from the thresholds as well."""
    if link in ("cloglog", "loglog"):
        shift = max(min(shift, 5.0), -5.0)
    cuts = (-0.7, 0.4, 1.1)
    etas = tuple(torch.tensor([v], dtype=torch.float64) for v in (shift, *cuts))
    y = torch.tensor([1.0], dtype=torch.float64)
    jet = closed_form(CumulativeLink(link, 4), y)(etas, True)
    below = shift > 0  # the limits are left of zero
    with mpmath.workdps(80):

        def f(x, low, high):
            F = _CDF[link][0 if below else 1]
            return mpmath.log(abs(F(high - x) - F(low - x)))

        at = tuple(mpmath.mpf(v) for v in (shift, *cuts[:2]))
        orders = [(1, 0, 0), (2, 0, 0), (3, 0, 0), (0, 1, 0), (1, 1, 0), (2, 1, 0),
                  (0, 0, 1), (1, 0, 1), (2, 0, 1)]  # fmt: skip
        wanted = [float(mpmath.diff(f, at, n)) for n in orders]
    low, high, none = jet.others
    found = [jet.one, jet.two, jet.three, low.one, low.two, low.three, high.one,
             high.two, high.three]  # fmt: skip
    for one, other in zip(found, wanted, strict=True):
        assert float(one) == pytest.approx(other, rel=1e-8, abs=1e-9)
    assert float(none.one) == float(none.two) == float(none.three) == 0.0


@pytest.mark.parametrize("name", ["nb2", "gamma", "tweedie", "inversegaussian"])
def test_extreme_predictors_are_finite(name: str) -> None:
    """No NaN at means of 1e-13 and 1e13: the search may pass there."""
    family = {"nb2": get_family("nb2"), "gamma": GammaML(), "tweedie": TweedieML(),
              "inversegaussian": InverseGaussianML("log")}[name]  # fmt: skip
    for eta in (-30.0, 30.0):
        y = torch.tensor([1.0, 3.0]).double()
        etas = (
            torch.full((2,), eta).double(),
            *(torch.zeros(2).double() for _ in family.predictors[1:]),
        )
        jet = closed_form(family, y)(etas, True)
        values = [jet.value, jet.one, jet.two, jet.three]
        values += [v for o in jet.others for v in (o.one, o.two, o.three)]
        assert all(bool(torch.isfinite(v).all()) for v in values)
