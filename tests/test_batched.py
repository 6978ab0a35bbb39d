"""Fits of many responses at once against fits one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from deepstats import GLM, OLS
from deepstats.batched import batched_newton, simulate_fits
from deepstats.families import get_family
from deepstats.models.counts import NegativeBinomialModel


@pytest.mark.parametrize("family", ["gaussian", "binomial", "poisson", "gamma", "nb2"])
@pytest.mark.parametrize("cov_type", ["nonrobust", "HC0", "HC1", "HC3"])
def test_simulated_fits_are_fits(rng, family, cov_type):
    n = 150
    x = rng.normal(size=n)
    mu = np.exp(0.5 + 0.3 * x)
    Y = {
        "gaussian": lambda: mu + rng.normal(size=(3, n)),
        "binomial": lambda: (rng.random((3, n)) < mu / (1 + mu)).astype(float),
        "poisson": lambda: rng.poisson(mu, (3, n)).astype(float),
        "gamma": lambda: rng.gamma(3, mu / 3, (3, n)),
        "nb2": lambda: rng.poisson(mu * rng.gamma(2, 0.5, (3, n))).astype(float),
    }[family]()
    if family == "nb2" and cov_type == "HC3":
        with pytest.raises(ValueError, match="leverages"):
            simulate_fits(family, np.column_stack([np.ones(n), x]), Y, cov_type="HC3")
        return
    which = get_family("gamma", link="log") if family == "gamma" else family
    # a leverage is of the expected information
    information = "expected" if (family, cov_type) == ("gamma", "HC3") else "observed"
    X = np.column_stack([np.ones(n), x])
    found = simulate_fits(which, X, Y, cov_type=cov_type, information=information)
    assert bool(found.converged.all())
    for r in range(3):
        data = pd.DataFrame({"y": Y[r], "x": x})
        if family == "gaussian":
            fit = OLS("y ~ x", data).fit(cov_type)
        elif family == "nb2":
            fit = NegativeBinomialModel("y ~ x", data).fit(cov_type)
        else:
            model = GLM("y ~ x", data, family=which)
            fit = model.fit(cov_type, information=information)
        params = fit.fit_info.x.numpy()
        np.testing.assert_allclose(found.params[r], params, rtol=1e-7, atol=1e-9)
        se = fit.covariance.matrix.diagonal().sqrt()
        np.testing.assert_allclose(found.bse[r], se, rtol=1e-5)


def test_batched_newton_finds_every_maximum():
    centre = torch.tensor([[1.0, -2.0], [0.0, 3.0], [5.0, 5.0]]).double()

    def objective(x, which):
        d = x - centre[which]
        # not concave far from the maximum
        value = -torch.log1p((d**2).sum(1))
        q = 1 + (d**2).sum(1)
        gradient = -2 * d / q[:, None]
        eye = torch.eye(2).double()
        outer = d[:, :, None] * d[:, None, :]
        information = 2 * eye / q[:, None, None] - 4 * outer / q[:, None, None] ** 2
        return value, gradient, information

    found = batched_newton(objective, torch.zeros(3, 2).double())
    assert bool(found.converged.all())
    np.testing.assert_allclose(found.x, centre, atol=1e-7)
