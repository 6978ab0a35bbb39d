"""Coverage of 95% intervals over 2,000 data sets, fitted together as one tensor."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import deepstats as ds
from deepstats.families import get_family
from deepstats.likelihood import pointwise

REPLICATES, ROWS, CHECKED = 2000, 250, 3
BETA = torch.tensor([0.3, 0.5, -0.4]).double()
ALPHA = 0.7


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
    """Designs of shape (replicates, rows, 3) and a response for each model."""
    generator = torch.Generator().manual_seed(20240611)
    shape = (REPLICATES, ROWS)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    b = (torch.rand(shape, dtype=torch.float64, generator=generator) < 0.4).double()
    X = torch.stack([torch.ones_like(x), x, b], dim=-1)
    eta = X @ BETA
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    zero = torch.full_like(eta, np.log(ALPHA))
    draws = {
        "ols": eta + (0.5 + 0.5 * x.abs()) * noise,
        "logit": get_family("binomial").sample(eta, generator=generator),
        "poisson": get_family("poisson").sample(eta, generator=generator),
        "nb2": get_family("negativebinomial").sample(eta, zero, generator=generator),
    }
    return {"X": X, **draws}


def inverse(A: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(A))


def least_squares_hc3(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates and HC3 standard errors of every data set."""
    bread = inverse(X.mT @ X)
    beta = (bread @ (X.mT @ y[..., None]))[..., 0]
    h = ((X @ bread) * X).sum(-1)
    u = (y - (X @ beta[..., None])[..., 0]) / (1 - h)
    A = X * u[..., None]
    return beta, (bread @ (A.mT @ A) @ bread).diagonal(dim1=-2, dim2=-1).sqrt()


def lifted_inverse(information: Tensor) -> Tensor:
    """Inverse after negative curvature is turned round (far from the maximum)."""
    values, vectors = torch.linalg.eigh(information)
    values = values.abs().clamp_min(1e-3)
    return (vectors / values[:, None, :]) @ vectors.mT


def newton(X: Tensor, y: Tensor, family, start: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum likelihood of every data set by Newton's steps on the family's log_prob.

    The first three parameters are the coefficients; a fourth, if there is one, is the
    second linear predictor's only coefficient.
    """
    theta = start.expand(len(X), -1).clone()
    before, value = theta.clone(), theta.new_full((len(X),), -torch.inf)
    se, left = torch.empty_like(theta), torch.arange(len(X))
    for _ in range(40):
        now, g, information = derivatives(X[left], y[left], family, theta[left])
        fell = now < value[left] - 1e-9
        theta[left[fell]] = (theta[left[fell]] + before[left[fell]]) / 2
        left, g, information = left[~fell], g[~fell], information[~fell]
        value[left], before[left] = now[~fell], theta[left]
        cov = lifted_inverse(information)
        step = (cov @ g[..., None])[..., 0]
        theta[left] += step / step.abs().amax(1, keepdim=True).clamp_min(1.0)
        se[left] = cov.diagonal(dim1=-2, dim2=-1).sqrt()
        moved = torch.ones(len(X), dtype=torch.bool)
        moved[left] = step.abs().amax(1) >= 1e-7
        left = torch.nonzero(moved & ((theta - before).abs().amax(1) >= 1e-7))[:, 0]
        if not len(left):
            return theta, se
    raise AssertionError(f"{len(left)} data sets have no estimates")


def derivatives(X: Tensor, y: Tensor, family, theta: Tensor) -> tuple[Tensor, ...]:
    """Log-likelihood, score and information of every data set."""
    eta = (X @ theta[:, :3, None])[..., 0]
    etas = (eta,) if theta.shape[1] == 3 else (eta, theta[:, 3:].expand_as(eta))
    found = pointwise(lambda *e: family.log_prob(y, *e), etas)
    A = [X, torch.ones_like(X[..., :1])][: len(etas)]
    scores = [
        (a.mT @ u[..., None])[..., 0] for a, u in zip(A, found.first, strict=True)
    ]
    places = range(len(etas))
    rows = [
        [
            A[j].mT @ (found.second[min(j, k), max(j, k)][..., None] * A[k])
            for k in places
        ]
        for j in places
    ]
    information = torch.cat([torch.cat(row, dim=-1) for row in rows], dim=-2)
    return found.value.sum(1), torch.cat(scores, 1), information


def frame(data: dict[str, Tensor], number: int) -> pd.DataFrame:
    columns = {k: v[number].numpy() for k, v in data.items() if k != "X"}
    return pd.DataFrame({**columns, "x": data["X"][number, :, 1].numpy(),
                         "b": data["X"][number, :, 2].numpy()})  # fmt: skip


@pytest.fixture(scope="module")
def fits(data):
    def fit(name):
        X, y = data["X"], data[name]
        if name == "ols":
            return least_squares_hc3(X, y)
        start = torch.tensor(
            [0.1, 0.0, 0.0, -0.5][: 4 if name == "nb2" else 3]
        ).double()
        families = {
            "logit": "binomial",
            "poisson": "poisson",
            "nb2": "negativebinomial",
        }
        return newton(X, y, get_family(families[name]), start)

    return fit


def one_by_one(name: str, data: pd.DataFrame):
    if name == "ols":
        return ds.OLS("ols ~ x + b", data).fit("HC3")
    if name == "nb2":
        return ds.negativebinomial("nb2 ~ x + b", data).fit()
    family = {"logit": "binomial", "poisson": "poisson"}[name]
    return ds.GLM(f"{name} ~ x + b", data, family=family).fit()


@pytest.mark.parametrize("name", ("ols", "logit", "poisson", "nb2"))
def test_coverage(name, data, fits):
    theta, se = fits(name)
    for number in range(CHECKED):
        wanted = one_by_one(name, frame(data, number))
        np.testing.assert_allclose(theta[number, :3], wanted.params.iloc[:3], rtol=1e-7)
        np.testing.assert_allclose(se[number, :3], wanted.bse.iloc[:3], rtol=1e-6)
    z = 1.959963984540054
    covered = ((theta[:, :3] - BETA).abs() <= z * se[:, :3]).double().mean(0)
    assert covered.min() >= 0.935, covered
    assert covered.max() <= 0.965, covered
    # The standard error is on average the spread of the estimates.
    ratio = se[:, :3].mean(0) / theta[:, :3].std(0)
    np.testing.assert_allclose(ratio, 1.0, atol=0.06)
