"""Cluster-robust errors against scores by differences, and by simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import deepstats as ds
from deepstats.errors import ModelError, SingularFitWarning
from deepstats.models.glmm import MixedGLM
from deepstats.models.glmm.sandwich import cluster_scores
from deepstats.models.mixed.robust import clusters_of

from .data import fit, load
from .panels import panel


def nested(n: int = 180) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    a, b = np.repeat(np.arange(9), n // 9), np.arange(n) % 3
    x = rng.normal(size=n)
    u, v = 0.6 * rng.normal(size=(9, 2)), 0.6 * rng.normal(size=(9, 3))
    eta = 0.5 + 0.3 * x + u[a, 0] + u[a, 1] * x + v[a, b]
    y, z = rng.negative_binomial(3, 3 / (3 + np.exp(eta))), rng.random(n)
    yes = (z < 1 / (1 + np.exp(-eta))) * 1
    return pd.DataFrame({"y": y, "yes": yes, "x": x, "a": a, "b": b, "big": a // 2})


CASES = {
    "vectors, nested": ("y ~ x + (x | a) + (1 | a:b)", {"family": "nb2"}, 1),
    "two random effects": ("y ~ x + (1 | a) + (0 + x | a)", {"family": "poisson"}, 1),
    "probit, expected": (
        "yes ~ x + (1 | a)",
        {"family": "binomial", "link": "probit", "information": "expected"}, 1,
    ),
    "zero part": (
        "y ~ x + (1 | a)", {"family": "zip", "zi_formula": "~ x"}, 1,
    ),
    "quadrature": ("yes ~ x + (1 | a)", {"family": "binomial"}, 7),
    "quadrature, vectors": ("y ~ x + (x | a)", {"family": "poisson"}, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_derivatives_of_what_clusters_add(name):
    """The criterion of the rows of one cluster alone, by central differences."""
    formula, options, nagq = CASES[name]
    data = nested()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        results = MixedGLM(formula, data, **options).fit(nagq=nagq)
    clusters = clusters_of(results, None)
    scores = cluster_scores(results, clusters)
    point = results.found.point
    laplace, k = point.laplace, len(point.x)
    np.testing.assert_allclose(
        scores.sum(0)[results.found.free], 0, atol=1e-4 * np.abs(scores).max()
    )
    z = np.concatenate([point.x, point.gamma])
    for code in (0, 4, 8):
        # Rows of other clusters count with weight zero: they add nothing.
        weights = torch.from_numpy((np.asarray(clusters.codes) == code) * 1.0)
        model = MixedGLM(formula, data, **options)
        alone = model.laplace(nagq)
        alone.density.weights = weights
        alone.density._closed = None  # By autograd: of the weighted log-density.
        for j in range(len(z)):
            up, down = z.copy(), z.copy()
            # A zero variance is at its edge.
            step = 1e-5 if j >= k or z[j] > 1e-4 else 0.0
            up[j] += step
            down[j] -= step
            if step == 0:
                continue
            high, low = (alone(v[:k], v[k:]).value for v in (up, down))
            # Minus half the derivative of minus twice the log-likelihood.
            assert scores[code, j] == pytest.approx(
                -(high - low) / (4e-5), abs=2e-5 * np.abs(scores).max()
            )
    assert laplace is point.laplace


def test_the_sandwich_is_made_of_them():
    results = fit("lme4.cbpp_laplace")
    clusters = clusters_of(results, "herd")
    half = cluster_scores(results, clusters) @ results.joint_cov
    robust = results.get_robustcov_results("CR0")
    np.testing.assert_allclose(robust.joint_cov, half.T @ half)
    np.testing.assert_allclose(robust.bse, np.sqrt(np.diag(half.T @ half))[1:])
    corrected = results.get_robustcov_results("cluster", groups="herd")
    np.testing.assert_allclose(corrected.bse, robust.bse * np.sqrt(15 / 14))
    assert "cluster by herd (15)" in str(corrected.summary())
    back = corrected.get_robustcov_results("nonrobust")
    np.testing.assert_allclose(back.bse, results.bse)
    sd = robust.random_params()["std_error"][0]
    assert sd != pytest.approx(results.random_params()["std_error"][0], rel=1e-3)


def test_fit_takes_it():
    results = fit("lme4.cbpp_laplace")
    formula = "cbind(incidence, size - incidence) ~ period + (1 | herd)"
    model = MixedGLM(formula, load("cbpp"), family="binomial")
    found = model.fit(cov_type="cluster", cov_kwds={"groups": "herd"})
    expected = results.get_robustcov_results("cluster")
    np.testing.assert_allclose(found.bse, expected.bse, rtol=1e-5)


def test_without_random_variance_it_is_that_of_the_plain_model():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"x": rng.normal(size=120)})
    data["y"] = rng.poisson(np.exp(0.5 + 0.3 * data["x"]))
    # Dealt like cards, so that groups are more alike than by chance.
    data["g"] = np.argsort(np.argsort(data["y"])) % 12
    with pytest.warns(SingularFitWarning):
        mixed = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit()
    assert mixed.varcorr["vcov"][0] == 0
    plain = ds.glm("y ~ x", data, family="poisson").fit(
        cov_type="cluster", cov_kwds={"groups": "g", "use_correction": False}
    )
    robust = mixed.get_robustcov_results("CR0")
    # The Hessian is by differences that reach a share of 1e-4.
    np.testing.assert_allclose(robust.bse, plain.bse, rtol=2e-4)


def test_clusters_that_share_effects_are_refused():
    crossed = MixedGLM("y ~ x + (1 | g) + (1 | h)", panel(), family="poisson").fit()
    with pytest.raises(ModelError, match="Crossed random effects have no independent"):
        crossed.get_robustcov_results("cluster")
    results = MixedGLM("y ~ x + (1 | a/b)", nested(), family="poisson").fit()
    coarse = results.get_robustcov_results("CR0", groups="big")
    assert coarse.covariance.groups == (5,)
    with pytest.raises(ModelError, match="in more than one cluster"):
        results.get_robustcov_results("CR0", groups="b")
    with pytest.raises(ModelError, match="'cluster'"):
        results.get_robustcov_results("HC1")
    with pytest.raises(ModelError, match="t tests"):
        results.get_robustcov_results("CR0", use_t=True)
    with pytest.raises(ValueError, match="maxlags do not go"):
        results.get_robustcov_results("CR0", maxlags=2)


def test_intervals_cover_where_the_variance_is_misspecified():
    """Slopes that vary, left out: model-based errors of the slope are too small."""
    rng = np.random.default_rng(12)
    inside, count, groups = np.zeros(2), 40, 50
    for _ in range(count):
        g, x = np.repeat(np.arange(groups), 6), np.tile(np.linspace(-1, 1, 6), groups)
        b = rng.normal(size=(groups, 2)) * [0.5, 0.6]
        y = rng.poisson(np.exp(1.0 + 0.4 * x + b[g, 0] + b[g, 1] * x))
        data = pd.DataFrame({"y": y, "x": x, "g": g})
        results = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit()
        robust = results.get_robustcov_results("cluster")
        for j, r in enumerate((results, robust)):
            # log E(y) is 0.4 x and a square, which is orthogonal to x.
            inside[j] += abs(r.params["x"] - 0.4) < 1.959964 * r.bse["x"]
    model_based, robust_share = inside / count
    assert model_based < 0.8
    assert robust_share > 0.95 - 3.2 * np.sqrt(0.05 * 0.95 / count)
