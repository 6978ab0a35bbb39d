"""The likelihood against brute force, its gradient against differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp

import deepstats as ds
from deepstats.errors import ModelError
from deepstats.models.nonlinear.laplace import Laplace
from deepstats.models.nonlinear.quadrature import Quadrature
from deepstats.models.nonlinear.search import minimise

from .data import fit, load, model, simulated

CRITERIA = {
    "expected": lambda linear: Laplace(linear, True),
    "observed": lambda linear: Laplace(linear, False),
    "quadrature": lambda linear: Quadrature(linear, True, 4),
}


def vector(results) -> np.ndarray:
    """Parameters of a criterion, a little off those of a fit."""
    x, beta = results.mixed.x, results.params.to_numpy()
    return np.concatenate([1.1 * x, beta + 0.3 * results.bse, [np.log(results.sigma)]])


def joint(results, tree: pd.DataFrame, effect: np.ndarray) -> np.ndarray:
    """Log-density of a tree's rows and of effects of its asymptote."""
    Asym, xmid, scal = results.params
    s, sd = results.sigma, results.varcorr["sdcor"].iloc[0]
    age, y = tree["age"].to_numpy()[:, None], tree["circumference"].to_numpy()[:, None]
    mean = (Asym + effect) / (1 + np.exp((xmid - age) / scal))
    rows = -0.5 * ((y - mean) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
    prior = -0.5 * (effect / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    return rows.sum(0) + prior


@pytest.mark.parametrize("kind", CRITERIA)
@pytest.mark.parametrize("name", ["orange_two", "theoph_correlated", "dnase"])
def test_gradient_is_that_of_differences(name, kind):
    results = fit(name)
    criterion = CRITERIA[kind](model(name).linear)
    z = vector(results)
    gradient = criterion(z).gradient
    k = len(results.mixed.x)
    scale = np.concatenate([0.1 * np.maximum(abs(z[:k]), 0.1), results.bse, [0.05]])
    for j, size in enumerate(scale):
        ends = []
        for sign in (1, -1):
            at = z.copy()
            at[j] += sign * 1e-4 * size
            ends.append(criterion(at).value)
        numeric = (ends[0] - ends[1]) / 2e-4
        assert gradient[j] * size == pytest.approx(numeric, abs=1e-5, rel=1e-6)


def test_gradient_of_nested_and_weighted_models():
    data = simulated(5, groups=12)
    data["h"] = data["g"] // 3
    data["w"] = np.linspace(0.5, 2.0, len(data))
    nested = ds.nlmer(
        "y ~ SSlogis(x, Asym, xmid, scal)", data, random=["Asym ~ 1 | h/g"], weights="w"
    )
    results = nested.fit()
    for expected in (True, False):
        criterion = Laplace(nested.linear, expected)
        z = vector(results)
        gradient = criterion(z).gradient
        for j in range(len(z)):
            reach = 1e-5 * max(abs(z[j]), 0.1)
            ends = []
            for sign in (1, -1):
                at = z.copy()
                at[j] += sign * reach
                ends.append(criterion(at).value)
            numeric = (ends[0] - ends[1]) / (2 * reach)
            assert gradient[j] == pytest.approx(numeric, rel=1e-5, abs=1e-4)


def test_quadrature_is_the_integral_of_one_effect():
    results = fit("orange", nagq=9)
    sd = results.varcorr["sdcor"].iloc[0]
    grid = np.linspace(-8 * sd, 8 * sd, 20_001)
    total = sum(
        logsumexp(joint(results, tree, grid)) + np.log(grid[1] - grid[0])
        for _, tree in load("Orange").groupby("Tree")
    )
    assert results.llf == pytest.approx(total, abs=1e-8)
    assert results.approximation == "ML, adaptive quadrature, 9 points"


def test_quadrature_converges_to_the_integral_of_a_bent_effect():
    """The middle bends: Laplace's method is off, and more points get nearer."""
    data = simulated(3, groups=4, rows=5, sigma=1.0)
    text = "y ~ 10 / (1 + exp((mid - x) / 1.2))"
    mixed = ds.nlmer(text, data, random="mid ~ 1 | g", start={"mid": 4.0})
    x, sigma = 1.3, 0.9
    grid = np.linspace(-14, 14, 40_001)
    sd, total = None, 0.0
    values = []
    for nagq in (1, 3, 7, 15, 31):
        linear = mixed.linear
        criterion = (
            Laplace(linear, True) if nagq == 1 else Quadrature(linear, True, nagq)
        )
        z = np.array([x, 4.2, np.log(sigma)])
        values.append(-0.5 * criterion(z).value)
        sd = sigma * abs(linear.structure.raw_roots(np.array([x]))[0][0, 0])
    for _, group in data.groupby("g"):
        at, y = group["x"].to_numpy()[:, None], group["y"].to_numpy()[:, None]
        mean = 10 / (1 + np.exp((4.2 + grid - at) / 1.2))
        rows = -0.5 * ((y - mean) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
        prior = -0.5 * (grid / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
        total += logsumexp(rows.sum(0) + prior) + np.log(grid[1] - grid[0])
    off = np.abs(np.array(values) - total)
    assert off[0] > 1e-3
    assert (np.diff(off) < 0).all()
    assert off[-1] < 1e-6


def test_quadrature_is_the_integral_of_two_effects():
    results = fit("dnase", nagq=9)
    V, sigma = results.mixed.covariances[0], results.sigma
    L = np.linalg.cholesky(V)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    u = np.stack(np.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1)
    Asym, xmid, scal = results.params
    modes, spread = results.ranef()["Run"], results.cond_var()["Run"]
    data, total = load("DNase"), 0.0
    for level, (name, run) in enumerate(data.groupby("Run", sort=False)):
        # Quadrature about the mode with the linearised spread, many points.
        C = np.linalg.cholesky(spread[list(modes.index).index(name)]) * 1.3
        b = modes.loc[name].to_numpy()[:, None] + C @ u
        x, y = (
            np.log(run["conc"].to_numpy())[:, None],
            run["density"].to_numpy()[:, None],
        )
        mean = (Asym + b[0]) / (1 + np.exp((xmid + b[1] - x) / scal))
        rows = -0.5 * ((y - mean) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
        prior = -0.5 * (np.linalg.solve(L, b) ** 2).sum(0) - np.log(2 * np.pi)
        log_w = np.log(np.outer(weights, weights).ravel()) + 0.5 * (u**2).sum(0)
        total += logsumexp(rows.sum(0) + prior + log_w)
        total += np.log(np.diag(C)).sum() - np.log(np.diag(L)).sum()
        assert level >= 0
    assert results.llf == pytest.approx(total, abs=2e-5)


def test_both_informations_are_one_where_effects_are_linear():
    one, two = fit("orange"), fit("orange", information="observed")
    assert one.llf == pytest.approx(two.llf, rel=1e-10)
    bent = fit("theoph"), fit("theoph", information="observed")
    assert abs(bent[0].llf - bent[1].llf) > 0.1
    near = fit("theoph", nagq=9).llf
    assert abs(bent[1].llf - near) < abs(bent[0].llf - near)


@pytest.mark.parametrize(
    ("random", "groups"),
    [
        ("a ~ 1 | g", "(1 | g)"),
        ("a + b ~ 1 | g", "(1 + x | g)"),
        (["a ~ 1 | g", "b ~ 1 | g"], "(1 | g) + (0 + x | g)"),
        ("a ~ 1 | h/g", "(1 | h/g)"),
        (["a ~ 1 | g", "a ~ 1 | k"], "(1 | g) + (1 | k)"),
    ],
)
def test_a_linear_curve_is_the_linear_mixed_model(random, groups):
    data = simulated(11, groups=12)
    data["h"], data["k"] = data["g"] // 3, np.arange(len(data)) % 5
    data["y"] += 0.5 * np.random.default_rng(2).standard_normal(5)[data["k"]]
    slopes = np.random.default_rng(3).standard_normal(12)
    data["y"] += 0.3 * slopes[data["g"]] * data["x"]
    data["y"] += 2 * np.random.default_rng(4).standard_normal(4)[data["h"]]
    linear = ds.lmer(f"y ~ x + {groups}", data).fit(reml=False)
    mixed = ds.nlmer("y ~ a + b * x", data, random=random, start={"a": 1, "b": 1})
    for results in (mixed.fit(), mixed.fit("lindstrom-bates"), mixed.fit(nagq=1)):
        assert results.llf == pytest.approx(linear.llf, rel=1e-9)
        np.testing.assert_allclose(results.params, linear.params, rtol=1e-5)
        assert results.sigma == pytest.approx(linear.sigma, rel=1e-4)
        for name, effects in linear.ranef().items():
            ours = results.ranef()[name].to_numpy()
            np.testing.assert_allclose(ours, effects.to_numpy(), atol=1e-3)
    reml = mixed.fit("lindstrom-bates", reml=True)
    restricted = ds.lmer(f"y ~ x + {groups}", data).fit()
    assert reml.llf == pytest.approx(restricted.llf, rel=1e-9)


def test_quadrature_is_for_one_factor():
    data = simulated(1)
    data["h"] = data["g"] // 3
    mixed = ds.nlmer("y ~ SSlogis(x, Asym, xmid, scal)", data, random="Asym ~ 1 | h/g")
    with pytest.raises(ModelError, match="one grouping factor"):
        mixed.fit(nagq=3)


def test_modes_minimise_the_penalised_sum_of_squares():
    criterion = Laplace(model("theoph_correlated").linear, True)
    results = fit("theoph_correlated")
    z = vector(results)
    modes = criterion(z).modes
    x, beta, _ = criterion.parts(z)
    V = criterion.effects.covariance(criterion.covariances(x))
    b = modes.b.clone().requires_grad_()
    rows = criterion.rows
    f = rows.mean(rows.fixed(beta) + criterion.effects.move(b))
    penalty = (b * torch.linalg.solve(V, b[:, :, None])[:, :, 0]).sum()
    value = (rows.y - f).square().sum() + penalty
    (gradient,) = torch.autograd.grad(value, b)
    assert float(gradient.abs().max()) < 1e-6
    assert modes.penalised == pytest.approx(value.item(), rel=1e-10)


@pytest.mark.parametrize("x", [[1.0, 1.0], [0.0, 5.0], [20.0, 0.01]])
def test_search_gets_out_of_where_the_likelihood_is_not_convex(x):
    """Far from the optimum the Hessian is indefinite; it is mended on the way."""
    results = fit("orange_two")
    criterion = Laplace(results.model.linear, True)
    z = np.concatenate([x, results.params, [np.log(results.sigma)]])
    scale = np.concatenate([0.1 * np.maximum(x, 0.1), results.bse, [0.05]])
    found = minimise(criterion, z, scale)
    assert found.converged
    assert found.point.value == pytest.approx(-2 * results.llf, abs=1e-8)
