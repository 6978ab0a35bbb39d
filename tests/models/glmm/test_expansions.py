"""Tests of expansions in all predictors: against automatic differentiation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from deepstats import families
from deepstats.families import Family
from deepstats.models.glmm.joint import JointDensity
from deepstats.models.glmm.taylor import Taylor

N = 200
FAMILIES = [
    families.GaussianML(),
    families.GaussianML("log"),
    families.StudentT(),
    families.StudentT(nu=4.0),
    families.GammaML("log"),
    families.GammaML("inverse"),
    families.Beta(),
    families.Beta("probit"),
    families.BetaBinomial(),
    families.BetaBinomial("cloglog"),
    families.NegativeBinomial(),
    families.NegativeBinomial(loglike="nb1"),
    families.ZeroInflatedPoisson(),
    families.ZeroInflatedPoisson(inflate_link="probit"),
    families.ZeroInflatedNegativeBinomial(),
    families.ZeroInflatedNegativeBinomial(loglike="nb1"),
    families.HurdlePoisson(),
    families.HurdlePoisson(zero_link="cloglog"),
    families.HurdleNegativeBinomial(),
    families.HurdleNegativeBinomial(loglike="nb1"),
    families.ZeroTruncatedNegativeBinomial(),
]


def _name(family: Family) -> str:
    kind = getattr(family, "loglike", "")
    return f"{family.name} {kind} {' '.join(link.name for link in family.links)}"


def _rows(family: Family) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Responses drawn from the family, predictors, and trials."""
    generator = torch.Generator().manual_seed(3)
    etas = tuple(
        0.5 * torch.randn(N, generator=generator, dtype=torch.float64)
        for _ in family.predictors
    )
    if family.links[0].name == "inverse":
        etas = (etas[0].abs() + 0.3, *etas[1:])
    if family.name == "studentt":  # tails in which log_prob keeps its digits
        etas = (*etas[:2], *(e.abs() + 1 for e in etas[2:]))
    size = None
    if family.sized:
        size = torch.randint(1, 9, (N,), generator=generator).double()
    options = {} if size is None else {"size": size}
    return family.sample(*etas, generator=generator, **options), etas, size


def _near(one: Tensor, two: Tensor, digits: float) -> None:
    assert float(((one - two).abs() / (1 + two.abs())).max()) < digits


@pytest.mark.parametrize("family", FAMILIES, ids=_name)
def test_derivatives(family: Family) -> None:
    """Values, slopes, weights and how they turn are those of autograd."""
    y, etas, size = _rows(family)
    weights = torch.linspace(0.5, 2, N, dtype=torch.float64)
    every = range(len(etas))
    for parts in itertools.combinations(every, 2):
        density = JointDensity(family, y, size, weights, parts)
        assert density._expansion is not None
        ours, turns = density.slopes(etas), density.turns(etas)
        density._expansion = None
        theirs, wanted = density.slopes(etas), density.turns(etas)
        _near(ours.value, theirs.value, 1e-12)
        _near(ours.first, theirs.first, 1e-11)
        _near(ours.weight, theirs.weight, 1e-10)
        for one, two in (
            (turns.first, wanted.first), (turns.second, wanted.second),
            (turns.weight, wanted.weight),
        ):  # fmt: skip
            assert len(one) == len(two) == len(etas)
            for a, b in zip(one, two, strict=True):
                assert a.shape == b.shape
                _near(a, b, 1e-9)


def test_counts_with_huge_means() -> None:
    """Values keep their digits where terms of the size of the count cancel."""
    y = torch.tensor([0.0, 1e6, 1e6, 3e8], dtype=torch.float64)
    eta = torch.tensor([1.0, 13.8, 13.82, 19.5], dtype=torch.float64)
    family = families.ZeroInflatedPoisson()
    density = JointDensity(family, y, None, None, (0, 1))
    found = density.slopes((eta, -torch.ones(4, dtype=torch.float64)))
    exact = torch.distributions.Poisson(eta.exp()).log_prob(y)
    rest = torch.log(1 / (1 + torch.exp(torch.tensor(-1.0, dtype=torch.float64))))
    assert torch.allclose(found.value[1:], exact[1:] + rest, rtol=1e-8, atol=1e-6)
    assert bool(torch.isfinite(found.weight).all())


def test_poisson_limit_of_overdispersion() -> None:
    """With alpha near zero derivatives are those of the Poisson family."""
    y = torch.arange(8, dtype=torch.float64)
    eta, tiny = torch.linspace(-1, 2, 8, dtype=torch.float64), torch.full((8,), -25.0)
    family = families.NegativeBinomial()
    density = JointDensity(family, y, None, None, (0, 1))
    found = density.slopes((eta, tiny.double()))
    mu = eta.exp()
    assert torch.allclose(found.first[0], y - mu, rtol=0, atol=1e-7)
    assert torch.allclose(found.weight[0, 0], mu, rtol=0, atol=1e-7)
    assert float(found.first[1].abs().max()) < 1e-7


def test_products_and_functions() -> None:
    """Rules of products and compositions, by autograd of the same function."""
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3)]

    def function(a, b, c):
        return (a * b + c.scaled(2.0)).exp() * (b - 0.5) - (a * a) * (c * b)

    def plain(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.exp(a * b + 2 * c) * (b - 0.5) - a * a * c * b

    found = function(*(Taylor.variable(v, j, 3) for j, v in enumerate(x)))
    given = [v.clone().requires_grad_() for v in x]
    assert torch.allclose(found.value, plain(*x))
    for i, j, k in itertools.product(range(3), repeat=3):
        one = torch.autograd.grad(plain(*given).sum(), given[i], create_graph=True)[0]
        two = torch.autograd.grad(one.sum(), given[j], create_graph=True)[0]
        three = torch.autograd.grad(two.sum(), given[k])[0]
        assert torch.allclose(found.at((i,)), one)
        assert torch.allclose(found.at((i, j)), two)
        assert torch.allclose(found.at((i, j, k)), three)
