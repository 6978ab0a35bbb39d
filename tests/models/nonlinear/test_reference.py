"""Published analyses against R: nls, nlme and nlmer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.models.mixed import LinearMixed

from .data import CASES, CURVES, REFERENCE, fit, load, model

NLME = [name for name in CASES if f"{name}_ML" in REFERENCE["nlme"]]
#: R's own searches end with relative errors of about this size.
LLF = 2e-8


def deviations(results) -> np.ndarray:
    """Standard deviations of all random effects, in the order of the formula."""
    return np.concatenate([np.sqrt(np.diag(V)) for V in results.mixed.covariances])


def correlations(results) -> np.ndarray:
    frame = results.varcorr
    return frame.loc[frame["var2"].notna(), "sdcor"].to_numpy()


@pytest.mark.parametrize("name", CURVES)
def test_curves_start_themselves_and_reach_the_least_squares_of_nls(name):
    formula, data, rows = CURVES[name]
    stored = REFERENCE["nls"][name]
    results = ds.nls(formula, load(data).query(rows)).fit()
    se = np.array(stored["se"])
    assert results.names == stored["names"]
    # nls is content with a relative offset of 1e-5 or so.
    np.testing.assert_allclose(results.params, stored["coef"], atol=2e-4 * se.min())
    np.testing.assert_allclose(results.bse, se, rtol=1e-3)
    assert results.sigma == pytest.approx(stored["sigma"], rel=1e-7)
    assert results.llf == pytest.approx(stored["llf"], rel=1e-8)


@pytest.mark.parametrize("name", NLME)
def test_alternation_has_the_estimates_of_nlme(name):
    stored = REFERENCE["nlme"][f"{name}_ML"]
    results = fit(name, "lindstrom-bates")
    assert results.converged
    assert results.approximation == "ML, Lindstrom-Bates (linearised)"
    se = np.array(stored["se"])
    assert np.abs((results.params - stored["fixef"]) / se).max() < 1e-5
    assert results.llf == pytest.approx(stored["llf"], rel=LLF)
    np.testing.assert_allclose(results.bse, se, rtol=1e-5)
    assert results.sigma == pytest.approx(stored["sigma"], rel=1e-5)
    np.testing.assert_allclose(deviations(results), stored["sd"], rtol=1e-4)
    if np.any(stored["cor"]):
        np.testing.assert_allclose(correlations(results), stored["cor"], atol=1e-4)


@pytest.mark.parametrize("name", REFERENCE["reml"])
def test_reml_is_the_fixed_point_of_the_alternation_with_lme(name):
    stored = REFERENCE["reml"][name]
    results = fit(name, "lindstrom-bates", reml=True)
    se = np.array(stored["se"])
    assert np.abs((results.params - stored["fixef"]) / se).max() < 1e-5
    assert results.llf == pytest.approx(stored["llf"], rel=LLF)
    np.testing.assert_allclose(results.bse, se, rtol=1e-4)
    np.testing.assert_allclose(deviations(results), stored["sd"], rtol=1e-4)
    assert results.sigma == pytest.approx(stored["sigma"], rel=1e-5)


@pytest.mark.parametrize("name", NLME)
def test_restricted_likelihood_is_no_lower_than_that_of_nlme(name):
    """nlme 3.1-162 keeps the variance ratios of ML: the likelihood can be higher."""
    ml, reml = (REFERENCE["nlme"][f"{name}_{kind}"] for kind in ("ML", "REML"))
    ratios = np.array(reml["sd"]) / reml["sigma"]
    np.testing.assert_allclose(ratios, np.array(ml["sd"]) / ml["sigma"], rtol=0.2)
    results = fit(name, "lindstrom-bates", reml=True)
    assert results.llf > reml["llf"] - 1e-6
    assert np.abs((results.params - reml["fixef"]) / reml["se"]).max() < 0.15


def test_reml_solves_the_linear_model_next_to_it():
    """The estimates are those of ds.lmer on the derivatives at the estimates."""
    results = fit("theoph", "lindstrom-bates", reml=True, tol=1e-9)
    rows, phi = results.model.rows, results._phi()
    f, D = rows.slopes(phi)
    frame = pd.DataFrame(D.numpy(), columns=["k1", "k2", "k3"])
    frame["w"] = (rows.y - f + (D * phi).sum(1)).numpy()
    frame["g"] = load("Theoph")["Subject"]
    linear = LinearMixed("w ~ 0 + k1 + k2 + k3 + (0 + k2 + k3 || g)", frame).fit()
    np.testing.assert_allclose(linear.params, results.params, rtol=1e-5)
    assert linear.llf == pytest.approx(results.llf, rel=1e-9)
    np.testing.assert_allclose(
        linear.ranef()["g"].to_numpy(), results.ranef()["Subject"].to_numpy(), atol=1e-5
    )


@pytest.mark.parametrize("name", REFERENCE["laplace"])
def test_laplace_has_the_optimum_of_an_independent_program(name):
    stored = REFERENCE["laplace"][name]
    results = fit(name)
    assert results.converged
    assert results.approximation == "ML, Laplace (expected)"
    se = np.array(stored["se"])
    assert results.llf == pytest.approx(stored["llf"], rel=1e-9)
    assert np.abs((results.params - stored["fixef"]) / se).max() < 1e-4
    # The Hessian there is of differences of the deviance.
    np.testing.assert_allclose(results.bse, se, rtol=1e-3)
    k = len(results.mixed.roots[0])
    root = np.reshape(stored["root"], (k, k)).T
    np.testing.assert_allclose(results.mixed.roots[0], root, atol=1e-4 * root.max())


@pytest.mark.parametrize("name", REFERENCE["nlmer"])
def test_laplace_is_no_lower_than_nlmer(name):
    """nlmer's deviance is rough by about 1e-4: it stops short of its optimum."""
    stored = REFERENCE["nlmer"][name]
    results = fit(name)
    assert stored["llf"] - 1e-5 < results.llf < stored["llf"] + 5e-4
    assert np.abs((results.params - stored["fixef"]) / results.bse).max() < 0.02
    np.testing.assert_allclose(deviations(results), stored["sd"], rtol=0.02)
    assert results.sigma == pytest.approx(stored["sigma"], rel=1e-3)


def test_the_two_approximations_are_near_one_another():
    for name in ("orange", "loblolly", "theoph"):
        one, two = fit(name), fit(name, "lindstrom-bates")
        assert np.abs((one.params - two.params) / one.bse).max() < 0.5
        assert one.llf != two.llf


def test_model_is_read_once_for_all_methods():
    assert fit("orange").model is fit("orange", "lindstrom-bates").model
    assert model("wafer").labels == ("A", "S", "B", "w")
