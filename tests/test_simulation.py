"""Coverage of 95% intervals over 2,000 data sets, fitted together as one tensor."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import deepstats as ds
from deepstats.batched import SimulatedFits, simulate_fits
from deepstats.families import get_family

REPLICATES, ROWS, CHECKED = 2000, 500, 3
BETA = torch.tensor([0.3, 0.5, -0.4]).double()
ALPHA = 0.7
OPTIONS = {
    "ols": ("gaussian", "HC3"),
    "logit": ("binomial", "nonrobust"),
    "poisson": ("poisson", "nonrobust"),
    "nb2": ("negativebinomial", "nonrobust"),
}


@pytest.fixture(scope="module")
def X() -> Tensor:
    """A constant, a normal and a binary regressor."""
    generator = torch.Generator().manual_seed(20240611)
    x = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    b = (torch.rand(ROWS, dtype=torch.float64, generator=generator) < 0.4).double()
    return torch.stack([torch.ones_like(x), x, b], dim=1)


def responses(name: str, X: Tensor) -> Tensor:
    """Draw from the model; the errors of least squares are heteroskedastic."""
    generator = torch.Generator().manual_seed(1 + list(OPTIONS).index(name))
    eta = (X @ BETA).expand(REPLICATES, -1)
    if name == "ols":
        noise = torch.randn(eta.shape, dtype=torch.float64, generator=generator)
        return eta + (0.5 + 0.5 * X[:, 1].abs()) * noise
    etas = (eta, torch.full_like(eta, np.log(ALPHA))) if name == "nb2" else (eta,)
    return get_family(OPTIONS[name][0]).sample(*etas, generator=generator)


def one_by_one(name: str, X: Tensor, y: Tensor):
    data = pd.DataFrame({"x": X[:, 1].numpy(), "b": X[:, 2].numpy(), "y": y.numpy()})
    if name == "ols":
        return ds.OLS("y ~ x + b", data).fit("HC3")
    if name == "nb2":
        return ds.negativebinomial("y ~ x + b", data).fit()
    return ds.GLM("y ~ x + b", data, family=OPTIONS[name][0]).fit()


def assert_same(fits: SimulatedFits, number: int, wanted) -> None:
    """Compare coefficients; alpha is on the log scale in simulated fits."""
    beta = slice(0, len(BETA))
    np.testing.assert_allclose(
        fits.params[number, beta], wanted.params.iloc[beta], rtol=1e-7
    )
    np.testing.assert_allclose(fits.bse[number, beta], wanted.bse.iloc[beta], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_coverage(name, X):
    family, cov_type = OPTIONS[name]
    Y = responses(name, X)
    fits = simulate_fits(family, X, Y, cov_type=cov_type)
    assert bool(fits.converged.all())
    for number in range(CHECKED):
        assert_same(fits, number, one_by_one(name, X, Y[number]))
    truth = torch.cat([BETA, torch.tensor([np.log(ALPHA)])[: name == "nb2"]])
    z = 1.959963984540054
    covered = ((fits.params - truth).abs() <= z * fits.bse).double().mean(0)
    assert covered.min() >= 0.935, covered
    assert covered.max() <= 0.965, covered
    # The standard error is on average the spread of the estimates.
    ratio = fits.bse.mean(0) / fits.params.std(0)
    np.testing.assert_allclose(ratio, 1.0, atol=0.06)
