"""Structured covariances of responses that are not normal; glmmTMB's values."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from mixed.structures import REFERENCE, frame, places, series
from scipy.linalg import toeplitz

import deepstats as ds
from deepstats.errors import ProfileWarning, SingularFitWarning

TMB = {
    "ar1": ("Orthodont", "distance ~ age + ar1(0 + C(age) | Subject)", "gaussian"),
    "ou": ("Orthodont", "distance ~ age + ou(age | Subject)", "gaussian"),
    "cs": ("Machines", "score ~ Machine + cs(0 + Machine | Worker)", "gaussian"),
    "toep": ("Machines", "score ~ Machine + toep(0 + Machine | Worker)", "gaussian"),
    "diag": ("Machines", "score ~ Machine + diag(0 + Machine | Worker)", "gaussian"),
    "ar1 poisson": (
        "epil",
        "y ~ lbase + trt + ar1(0 + C(period) | subject)",
        "poisson",
    ),
    "cs poisson": (
        "epil",
        "y ~ lbase + trt + cs(0 + C(period) | subject)",
        "poisson",
    ),
}


@pytest.mark.parametrize("name", list(TMB))
def test_against_glmmtmb(name):
    dataset, formula, family = TMB[name]
    want = REFERENCE["glmmTMB"][name]
    results = ds.glmer(formula, frame(dataset), family=family).fit()
    assert results.converged
    assert -2 * results.llf == pytest.approx(-2 * want["logLik"], abs=1e-5)
    p = len(want["coef"])
    mine, se = results.params.to_numpy()[:p], results.bse.to_numpy()[:p]
    assert (np.abs(mine - want["coef"]) / want["se"] < 1e-3).all()
    np.testing.assert_allclose(se, want["se"], rtol=1e-3)
    V = results.mixed.covariances[0]
    np.testing.assert_allclose(np.sqrt(np.diag(V)), want["sd"], rtol=1e-3)
    cor = V[0] / np.sqrt(V[0, 0] * np.diag(V))
    np.testing.assert_allclose(cor, want["cor"], atol=1e-3)


def counts(seed: int = 3, groups: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    times = np.array([0.0, 0.5, 1.3, 2.9, 4.0])
    data = series(rng, groups, times, 0.8 * toeplitz(0.6 ** np.arange(5)))
    data["n"] = rng.poisson(np.exp(0.3 * data["eta"]))
    data["b"] = (rng.random(len(data)) < 1 / (1 + np.exp(-data["eta"]))).astype(int)
    data["h"] = [f"h{j}" for j in rng.integers(0, 6, len(data))]
    return data


GRADIENTS = {
    "ar1": ("n ~ x + ar1(0 + f | g)", "poisson"),
    "cs": ("n ~ x + cs(0 + f | g)", "nb2"),
    "homtoep": ("b ~ x + homtoep(0 + f | g)", "binomial"),
    "ou": ("b ~ x + ou(t | g)", "binomial"),
    "crossed": ("n ~ x + hetar1(0 + f | g) + (1 | h)", "poisson"),
}


@pytest.mark.parametrize("name", list(GRADIENTS))
def test_gradient_is_that_of_the_value(name):
    formula, family = GRADIENTS[name]
    from deepstats.models.glmm import mixed_glm

    model = mixed_glm(formula, counts(), family=family)
    laplace, gamma = model.laplace(), model._fixed()
    rng = np.random.default_rng(1)
    x = rng.uniform(0.3, 0.9, laplace.structure.size)
    gamma = gamma + 0.1 * rng.standard_normal(len(gamma))
    point = laplace(x, gamma)
    by_x, by_gamma = point.gradient
    at, step = np.append(x, gamma), 1e-5
    numeric = [
        (laplace(*np.split(at + e, [len(x)])).value
         - laplace(*np.split(at - e, [len(x)])).value) / (2 * step)
        for e in step * np.eye(len(at))
    ]  # fmt: skip
    np.testing.assert_allclose(np.append(by_x, by_gamma), numeric, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("term", "same"),
    [
        ("cs(1 + x | g)", "(1 + x | g)"),
        ("homdiag(0 + f | g)", "(1 | g:f)"),
        ("us(1 + x | g)", "(x | g)"),
        ("diag(1 + x | g)", "(x || g)"),
    ],
)
def test_kinds_that_are_one_model(term, same):
    data = counts()
    one = ds.glmer(f"n ~ x + {term}", data, family="poisson")
    two = ds.glmer(f"n ~ x + {same}", data, family="poisson")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        assert one.fit().llf == pytest.approx(two.fit().llf, abs=1e-6)


def test_normal_responses_are_those_of_the_linear_model():
    rng = np.random.default_rng(2)
    data = places(rng, 30, 3.0)
    formula = "y ~ x + exp(north + east | one)"
    linear = ds.lmer(formula, data).fit(reml=False)
    general = ds.glmer(formula, data, family="gaussian").fit()
    assert general.llf == pytest.approx(linear.llf, abs=1e-6)
    np.testing.assert_allclose(general.fe_params, linear.params, rtol=1e-4)
    scaled = linear.theta.to_numpy() * np.array([linear.sigma, 1])
    np.testing.assert_allclose(general.theta, scaled, rtol=2e-3)


@pytest.mark.parametrize("seed", [0, 3, 5, 9])
def test_few_places(seed):
    """Thirty places say little of Matérn's two shapes; 3, 5, 9: the smoothest there is.

    Begun from one shape alone such fits stopped far below the linear model's.
    """
    data = places(np.random.default_rng(seed), 30, 3.0)
    formula = "y ~ x + mat(north + east | one)"
    linear = ds.lmer(formula, data).fit(reml=False)
    general = ds.glmer(formula, data, family="gaussian").fit()
    assert general.converged
    assert general.llf == pytest.approx(linear.llf, abs=1e-6)
    np.testing.assert_allclose(general.fe_params, linear.params, rtol=1e-4)


@pytest.mark.parametrize("formula", [
    "distance ~ age + ou(age | Subject)",
    "distance ~ age * Sex + ou(age | Subject)",
    "distance ~ age + mat(age | Subject)",
])  # fmt: skip
def test_few_times(formula):
    """Four times a child, of which ou's range is hardly known."""
    data = frame("Orthodont")
    linear = ds.lmer(formula, data).fit(reml=False)
    general = ds.glmer(formula, data, family="gaussian").fit()
    assert general.converged
    assert general.llf == pytest.approx(linear.llf, abs=1e-6)


@pytest.mark.parametrize("kind", ["mat", "exp"])
def test_few_places_of_counts(kind):
    """No start that a user could give finds a better fit."""
    rng = np.random.default_rng(8)
    data = places(rng, 30, 3.0)
    data["n"] = rng.poisson(np.exp(data["y"]))
    model = ds.glmer(
        f"n ~ x + {kind}(north + east | one)", data, family="poisson"
    )  # fmt: skip
    results = model.fit()
    assert results.converged
    for reach in (0.5, 5.0):
        start = [1.0, reach] if kind == "exp" else [1.0, reach, 0.7]
        assert model.fit(start=start).llf < results.llf + 1e-5


def test_many_places_and_rows_of_one_only_meet_their_own():
    """Shortcuts for columns of which a row has one: as without them."""
    from deepstats.models.glmm import mixed_glm

    model = mixed_glm("n ~ x + ar1(0 + f | g)", counts(), family="poisson")
    laplace, gamma = model.laplace(), model._fixed()
    x = np.array([0.7, 0.4])
    quick = laplace(x, gamma)
    assert laplace.rows.alone[0] is not None
    slow = model.laplace()
    slow.rows.alone = [None]
    other = slow(x, gamma)
    assert quick.value == pytest.approx(other.value, abs=1e-9)
    for a, b in zip(quick.gradient, other.gradient, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_results_of_a_structured_fit():
    data = counts()
    results = ds.glmer("n ~ x + ar1(0 + f | g)", data, family="poisson").fit()
    shown = results.random_params()
    assert shown["var2"].tolist()[1] == "cor"
    assert np.isfinite(shown["std_error"]).all()
    assert results.theta.index.tolist() == ["g.sd(f)", "g.cor"]
    assert "cor (ar1)" in str(results.summary())
    again = results.model.fit(start=results.theta)
    assert again.llf == pytest.approx(results.llf, abs=1e-7)
    np.testing.assert_allclose(
        results.predict(data.head(5)), results.fittedvalues.head(5), rtol=1e-8
    )
    assert results.ranef(cond_var=True)["g"].shape == (30, 10)
    assert results.simulate(2, seed=1).shape == (len(data), 2)


def test_profiles_leave_structured_covariances_out():
    """They say so, but not where none was asked for."""
    data = counts()
    results = ds.glmer("n ~ x + ar1(0 + f | g)", data, family="poisson").fit()
    assert results.profile("fixed").conf_int().index.tolist() == ["Intercept", "x"]
    with pytest.warns(ProfileWarning, match=r"ar1\(0 \+ f \| g\) have no profile"):
        assert results.profile("random").frame.empty


def test_no_variance_leaves_the_coefficients_errors():
    rng = np.random.default_rng(6)
    data = counts()
    for _ in range(20):
        data["n"] = rng.poisson(2.0, len(data))
        model = ds.glmer("n ~ x + ar1(0 + f | g)", data, family="poisson")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularFitWarning)
            results = model.fit()
        if results.theta["g.sd(f)"] == 0:
            break
    assert results.theta["g.sd(f)"] == 0
    plain = ds.glm("n ~ x", data, family="poisson").fit()
    np.testing.assert_allclose(results.bse, plain.bse, rtol=1e-5)
    assert np.isnan(results.random_params()["std_error"]).all()


def test_recovery():
    """Correlation and variance of counts in many data sets."""
    estimates = []
    for seed in range(25):
        data = counts(seed + 100, 60)
        fit = ds.glmer("n ~ x + ar1(0 + f | g)", data, family="poisson").fit()
        estimates.append(fit.theta.to_numpy())
    spread = np.std(estimates, 0)
    truth = np.array([0.3 * np.sqrt(0.8), 0.6])
    # Laplace's method is a little off for counts this small.
    assert (np.abs(np.mean(estimates, 0) - truth) < 5 * spread / np.sqrt(25)).all()
