"""Cumulative link and multinomial logit families."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from deepstats.errors import DesignError
from deepstats.families import Multinomial, Ordinal, get_family

LINKS = {
    "logit": special.expit,
    "probit": stats.norm.cdf,
    "cloglog": lambda q: -np.expm1(-np.exp(q)),
    "loglog": lambda q: np.exp(-np.exp(-q)),
    "cauchit": stats.cauchy.cdf,
}


def tensor(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


THRESHOLDS = tensor([-1.2, 0.1, 1.7])


@pytest.mark.parametrize("link", LINKS)
def test_ordinal_matches_differences_of_distribution_functions(link):
    family = get_family("ordinal", link, levels=4)
    eta = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)
    cdf = LINKS[link](THRESHOLDS.numpy() - eta.numpy()[:, None])
    want = np.diff(np.c_[np.zeros(9), cdf, np.ones(9)], axis=1)
    # The differences themselves carry 1e-16, however small they are.
    got = family.probabilities(eta, THRESHOLDS)
    assert np.allclose(got, want, rtol=1e-12, atol=5e-16)
    for code in range(4):
        log_prob = family.log_prob(torch.full((9,), code), eta, THRESHOLDS)
        assert torch.allclose(log_prob, got[:, code].log(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("levels", [2, 4])
def test_ordinal_in_the_tails_is_finite_with_its_derivatives(link, levels):
    family = Ordinal(levels, link)
    size = 30.0 if link in ("cloglog", "loglog") else 300.0
    y = torch.arange(levels).repeat(2)
    eta = tensor([-size] * levels + [size] * levels)
    thresholds = THRESHOLDS[: levels - 1]

    def total(shift, cuts):
        return family.log_prob(y, eta + shift, cuts).sum()

    at = (tensor(0.0), thresholds)
    assert torch.isfinite(total(*at))
    for block in torch.autograd.functional.jacobian(total, at):
        assert torch.isfinite(block).all()
    for row in torch.autograd.functional.hessian(total, at):
        assert all(torch.isfinite(block).all() for block in row)


@pytest.mark.parametrize("link", LINKS)
def test_ordinal_derivatives_match_finite_differences(link):
    family, y = Ordinal(4, link), torch.tensor([0, 1, 2, 3, 1])
    eta = tensor([0.3, -0.4, 0.9, 1.1, 0.0])

    def total(cuts):
        return family.log_prob(y, eta, cuts).sum()

    gradient = torch.func.grad(total)
    hessian = torch.autograd.functional.hessian(total, THRESHOLDS)
    step, weights = 2e-3, {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    for k in range(3):
        move = torch.zeros(3, dtype=torch.float64)
        move[k] = step
        points = [
            (w, THRESHOLDS + m * move, THRESHOLDS - m * move)
            for m, w in weights.items()
        ]
        slope = sum(w * (total(up) - total(down)) for w, up, down in points) / step
        assert float(gradient(THRESHOLDS)[k]) == pytest.approx(float(slope), rel=1e-9)
        bend = sum(w * (gradient(up) - gradient(down)) for w, up, down in points) / step
        assert torch.allclose(hessian[k], bend, rtol=1e-8, atol=1e-9)


def test_binary_ordinal_is_binomial():
    eta, cut = tensor([-0.3, 0.8]), tensor([0.4])
    for link in LINKS:
        got = Ordinal(2, link).log_prob(torch.tensor([0, 0]), eta, cut)
        want = get_family("binomial", link).log_prob(torch.ones(2), cut - eta)
        assert torch.equal(got, want)


def test_thresholds_out_of_order_are_nan():
    cuts = tensor([0.5, 0.1, 1.0])
    for link in LINKS:
        got = Ordinal(4, link).log_prob(torch.tensor([1]), tensor([0.0]), cuts)
        assert torch.isnan(got).all()


def test_ordinal_broadcasts_over_draws():
    family, y = Ordinal(4, "probit"), torch.tensor([0, 1, 2, 3, 1])
    eta = torch.randn(6, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    cuts = THRESHOLDS + torch.arange(6, dtype=torch.float64)[:, None] / 10
    whole = family.log_prob(y, eta, cuts)
    rows = [family.log_prob(y, eta[i], cuts[i]) for i in range(6)]
    assert torch.equal(whole, torch.stack(rows))
    each = torch.vmap(lambda e, c: family.log_prob(y, e, c))(eta, cuts)
    assert torch.allclose(whole, each, rtol=1e-14)
    assert family.probabilities(eta, cuts).shape == (6, 5, 4)


def test_multinomial_matches_softmax():
    family = get_family("multinomial", levels=3)
    etas = tensor([0.2, -700.0, 40.0]), tensor([1.0, 700.0, -40.0])
    table = np.c_[np.zeros(3), etas[0], etas[1]]
    want = special.log_softmax(table, axis=1)
    y = torch.tensor([2, 0, 1])
    got = family.log_prob(y, *etas)
    assert np.allclose(got, want[np.arange(3), y], rtol=1e-13)
    total = family.probabilities(*etas).sum(-1)
    assert torch.allclose(total, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["ordinal", "multinomial"])
def test_start_and_draws(kind):
    n = 40_000
    if kind == "ordinal":
        family, arguments = (
            Ordinal(4),
            (torch.zeros(n, dtype=torch.float64), THRESHOLDS),
        )
        truth = THRESHOLDS.tolist()
    else:
        truth = [0.5, -1.0, 0.2]
        family = Multinomial(4)
        arguments = tuple(tensor(value).expand(n) for value in truth)
    y = family.sample(*arguments, generator=torch.Generator().manual_seed(8))
    family.check(y)
    p = family.probabilities(*arguments)[0]
    share = torch.bincount(y, minlength=4) / n
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    assert np.allclose(family.start(y, torch.ones(n)), truth, atol=0.06)
    assert all(math.isfinite(v) for v in family.start(torch.zeros(3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ordinal(1), "levels >= 2"),
        (lambda: Ordinal(3, "log"), "ordinal cannot use the log link; allowed: logit"),
        (lambda: Multinomial(2.5), "levels >= 2"),
        (lambda: get_family("multinomial", "probit", levels=3), "logit link"),
        (lambda: get_family("multinomial"), "levels=K"),
        (lambda: Multinomial(3).log_prob(tensor([0]), tensor([0])), "needs 2 linear"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_check_names_the_rows():
    with pytest.raises(DesignError, match=r"2 of 3 .*row 1.*from 0 to 2"):
        get_family("ordinal", levels=3).check(torch.tensor([0, 3, -1]))
