"""Profile likelihoods against lme4 and against constrained optima found otherwise."""

from __future__ import annotations

import warnings

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from deepstats.errors import BoundaryWarning, SeparationWarning, SingularFitWarning
from deepstats.models.glmm import MixedGLM
from deepstats.models.glmm.profile import JointDeviance
from deepstats.models.mixed.constrained import Coordinates
from deepstats.models.mixed.profile import random_blocks

from .data import fit
from .panels import panel

Z95 = norm.ppf(0.975)

# R 4.2.2, lme4 1.1-31, bobyqa with rhoend = 1e-9: confint(method = "profile", devtol =
# 1e-6). Its limits are interpolated.
LME4 = {
    "lme4.cbpp_laplace": [
        [0.34607319, 1.09997479], [-1.90121202, -0.94775398],
        [-1.61678327, -0.40776305], [-1.80102439, -0.51153605],
        [-2.50075047, -0.80075536],
    ],
    "lme4.cbpp_agq9": [
        [0.34880155, 1.11129206], [-1.90468293, -0.94621347],
        [-1.61608393, -0.40661098], [-1.80040819, -0.51045024],
        [-2.50019234, -0.79959225],
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LME4)
def test_limits_are_those_of_lme4(name):
    found = fit(name).conf_int(method="profile", steps=2)
    assert list(found.index) == [
        "sd(Intercept)|herd", "Intercept", "period[T.2]", "period[T.3]", "period[T.4]",
    ]  # fmt: skip
    np.testing.assert_allclose(found, LME4[name], atol=1e-4)


def vectors(n: int = 240) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    g, x = np.repeat(np.arange(30), n // 30), rng.normal(size=n)
    b = rng.normal(size=(30, 2)) @ np.array([[0.7, 0.2], [0.0, 0.6]])
    mean = np.exp(0.8 + 0.4 * x + b[g, 0] + b[g, 1] * x)
    y = rng.poisson(mean * rng.gamma(4, 0.25, n))
    return pd.DataFrame({"y": y, "x": x, "g": g})


@pytest.fixture(scope="module")
def slopes():
    return MixedGLM("y ~ x + (x | g)", vectors(), family="nb2").fit()


def test_limits_are_where_the_constrained_deviance_says(slopes):
    """The criterion minimised by SLSQP, with the parameter held by a constraint."""
    point, structure = slopes.found.point, slopes.found.point.laplace.structure
    k = len(point.x)

    def covariance(z):
        root = structure.raw_roots(z[:k])[0]
        return root @ root.T

    held = {
        "sd(Intercept)|g": lambda z: np.sqrt(covariance(z)[0, 0]),
        "cor(x,Intercept)|g": lambda z: (
            covariance(z)[1, 0] / np.sqrt(np.diag(covariance(z)).prod())
        ),
        "alpha": lambda z: np.exp(z[-1]),
    }  # fmt: skip
    limits = slopes.profile(list(held), steps=2).conf_int()
    start, laplace = np.concatenate([point.x, point.gamma]), slopes.model.laplace()

    def value(z):
        return laplace(z[:k], z[k:]).value

    def slope(z):
        return np.concatenate(laplace(z[:k], z[k:]).gradient)

    assert limits.loc["cor(x,Intercept)|g"].abs().max() < 1
    for label, function in held.items():
        for limit in limits.loc[label]:

            def apart(z, function=function, limit=limit):
                return function(z) - limit

            constraint = {"type": "eq", "fun": apart}
            found = minimize(
                value, start, jac=slope, method="SLSQP", constraints=[constraint],
                options={"ftol": 1e-10, "maxiter": 200},
            )  # fmt: skip
            assert abs(apart(found.x)) < 1e-5
            # SLSQP's minimum is up to 1e-5 above the true one.
            assert found.fun - point.value == pytest.approx(Z95**2, abs=1e-4), label


@pytest.mark.parametrize("nagq", [1, 5])
def test_gradient_in_all_coordinates(nagq):
    data = vectors()
    for formula in ("y ~ x + (x | g)", "y ~ x + (x || g)"):
        results = MixedGLM(formula, data, family="poisson").fit(nagq=nagq)
        point = results.found.point
        structure, rng = point.laplace.structure, np.random.default_rng(1)
        for _, _, block, _ in random_blocks(structure):
            coordinates = Coordinates(structure, block)
            deviance = JointDeviance.build(point, coordinates)
            w = deviance.origin
            assert deviance(w).value == pytest.approx(point.value, rel=1e-11)
            w = w + rng.uniform(0, 0.1, len(w))
            steps = 1e-5 * np.eye(len(w))
            numeric = [
                (deviance(w + e).value - deviance(w - e).value) / 2e-5 for e in steps
            ]
            found = deviance(w).gradient
            np.testing.assert_allclose(found, numeric, atol=1e-5 * np.abs(found).max())


def test_zeta_rises_through_the_estimate(slopes):
    found = slopes.profile(["x", "sd(x)|g"], steps=3)
    for label, part in found.frame.groupby("parameter"):
        assert (np.diff(part["value"]) > 0).all()
        assert (np.diff(part["zeta"]) > 0).all(), label
        middle = part.loc[part["zeta"] == 0, "value"].item()
        assert middle == pytest.approx(found.estimates[label])
    axes = found.plot()
    assert [ax.get_xlabel() for ax in axes] == ["sd(x)|g", "x"]
    matplotlib.pyplot.close("all")


# -- edges -----------------------------------------------------------------------------


def groups(seed: int = 3) -> tuple[np.random.Generator, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(12), 10)
    x, z = rng.normal(size=120), (np.arange(120) % 4 == 0) * 1.0
    return rng, pd.DataFrame({"g": g, "x": x, "z": z})


def test_variance_at_zero_has_a_limit_of_zero():
    rng, data = groups()
    data["y"] = rng.poisson(np.exp(0.5 + 0.3 * data["x"]))
    # Dealt like cards, so that groups are more alike than by chance.
    data["g"] = np.argsort(np.argsort(data["y"])) % 12
    with pytest.warns(SingularFitWarning):
        results = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit()
    found = results.profile("random")
    assert found.estimates["sd(Intercept)|g"] == 0
    low, high = found.conf_int().loc["sd(Intercept)|g"]
    assert low == 0
    laplace, point = results.model.laplace(), results.found.point
    x = np.array([(high / laplace.structure.terms[0].U[0, 0]) ** 2])
    best = minimize(lambda c: laplace(x, c).value, point.gamma, tol=1e-9)
    assert best.fun - point.value == pytest.approx(Z95**2, abs=1e-4)


def test_separated_responses_have_an_infinite_limit():
    rng, data = groups()
    chance = 1 / (1 + np.exp(-(0.3 * data["x"] + 0.8 * rng.normal(size=12)[data["g"]])))
    data["y"] = np.where(data["z"] == 1, 1, rng.binomial(1, chance))
    with pytest.warns(SeparationWarning):
        results = MixedGLM("y ~ x + z + (1 | g)", data, family="binomial").fit()
    with pytest.warns(SeparationWarning, match="profile of z is flat above"):
        low, high = results.conf_int(method="profile", parameters="z").loc["z"]
    assert high == np.inf and 2 < low < 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Others are as ever.
        others = results.conf_int(method="profile", parameters=["x"])
    assert np.isfinite(others.to_numpy()).all()


def test_no_overdispersion_is_within_the_interval():
    rng, data = groups()
    data["y"] = rng.poisson(np.exp(0.5 + 0.5 * rng.normal(size=12)[data["g"]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = MixedGLM("y ~ x + (1 | g)", data, family="nb2").fit()
    with pytest.warns(BoundaryWarning, match="profile of alpha is flat below"):
        low, high = results.profile("family", steps=1).conf_int().loc["alpha"]
    assert low == 0 and 0 < high < 1


# -- what is asked ---------------------------------------------------------------------


def test_selection_and_bad_input():
    results = MixedGLM("y ~ x + (1 | g)", panel(), family="zip").fit()
    every = ["sd(Intercept)|g", "Intercept", "x", "inflate:Intercept"]
    chosen = {"random": every[:1], "fixed": every[1:3], "family": every[3:]}
    for name, labels in chosen.items():
        assert results.profile(name, steps=1, alpha=0.5).labels == labels
    with pytest.raises(ValueError, match="'gamma' is not a parameter"):
        results.profile("gamma")
    with pytest.raises(ValueError, match="alpha must be between"):
        results.profile(alpha=0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        results.profile(steps=0)
    with pytest.raises(ValueError, match="wald, profile or boot"):
        results.conf_int(method="exact")
    with pytest.raises(TypeError, match="takes no steps"):
        results.conf_int(steps=2)


def test_a_restricted_fit_is_profiled_by_its_refit():
    model = MixedGLM("y ~ x + (1 | g)", panel(), family="poisson")
    one = model.fit(reml=True).profile("x", steps=1)
    two = model.fit().profile("x", steps=1)
    np.testing.assert_allclose(one.conf_int(), two.conf_int(), rtol=1e-5)
    assert "REML" in one.note and two.note == ""
