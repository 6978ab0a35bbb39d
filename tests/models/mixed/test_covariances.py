"""Structured covariances: their derivatives, their likelihood, and glmmTMB."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import special
from scipy.linalg import toeplitz
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

import deepstats as ds
from deepstats.errors import (
    DesignError,
    ModelError,
    ProfileWarning,
    SingularFitWarning,
)
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.covariances import KINDS, Covariance, covariance_of
from deepstats.models.mixed.criterion import Criterion

from .structures import REFERENCE, frame, places, series

SIZE = 5
SPACE = ("exp", "gau", "mat")


def covariance(kind: str) -> Covariance:
    """One with five columns; places are scattered in the plane, times unevenly."""
    rng = np.random.default_rng(3)
    names = tuple("abcde")
    if kind in SPACE:
        names = tuple(f"p[{a!r};{b!r}]" for a, b in rng.normal(size=(SIZE, 2)).tolist())
    if kind == "ou":
        names = tuple(f"p[{a!r}]" for a in rng.normal(size=SIZE).tolist())
    return covariance_of(kind, names, kind, "f")


def parameters(own: Covariance, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=own.size)
    x[: own.scales] = 0.3 + np.abs(x[: own.scales])
    return x


def slopes(function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences; parameters last."""
    found = [
        (function(x + step * e) - function(x - step * e)) / (2 * step)
        for e in np.eye(len(x))
    ]
    return np.moveaxis(np.array(found), 0, -1)


# -- matrices ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_the_matrix(kind):
    own = covariance(kind)
    x = parameters(own)
    G = np.random.default_rng(1).normal(size=(SIZE, SIZE))
    G = G + G.T
    want = slopes(own.matrix, x)
    np.testing.assert_allclose(
        np.stack(own.directions(x), axis=2), want, rtol=1e-7, atol=1e-8
    )
    np.testing.assert_allclose(
        own.gradient(x, G), np.einsum("ab,abp->p", G, want), rtol=1e-6, atol=1e-8
    )
    bend = slopes(lambda z: own.gradient(z, G), x)
    np.testing.assert_allclose(own.curvature(x, G), bend, rtol=1e-6, atol=1e-7)
    if own.correlation.names:
        np.testing.assert_allclose(
            own.shape_slopes(x), slopes(own.shape_values, x), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_is_definite_and_its_parameters_come_back(kind):
    own = covariance(kind)
    for seed in range(20):
        x = parameters(own, seed)
        V, U = own.matrix(x), 1.7 * np.eye(SIZE)
        assert np.linalg.eigvalsh(V)[0] > -1e-12
        np.testing.assert_allclose(own.root(x) @ own.root(x).T, V, atol=1e-10)
        back = own.parameters(own.natural(x, U), U)
        np.testing.assert_allclose(back, x, rtol=1e-7, atol=1e-9)


def test_what_the_kinds_are():
    lags = np.arange(SIZE)
    for kind, sd, shape, R in [
        ("homdiag", [2.0], [], np.eye(SIZE)),
        ("homcs", [2.0], [0.3], np.where(np.eye(SIZE) > 0, 1, 0.3)),
        ("cs", [1.0, 2, 3, 4, 5], [-0.2], np.where(np.eye(SIZE) > 0, 1, -0.2)),
        ("ar1", [2.0], [-0.4], toeplitz((-0.4) ** lags)),
        ("hetar1", [1.0, 2, 3, 4, 5], [0.4], toeplitz(0.4**lags)),
        ("homtoep", [2.0], [0.5, 0.4, 0.1, 0.0], toeplitz([1, 0.5, 0.4, 0.1, 0.0])),
    ]:
        own = covariance(kind)
        x = own.parameters([*sd, *shape], np.eye(SIZE))
        D = np.diag(np.broadcast_to(sd, SIZE))
        np.testing.assert_allclose(own.matrix(x), D @ R @ D, atol=1e-12)


@pytest.mark.parametrize("kind", ("ou", *SPACE))
def test_kernels(kind):
    own = covariance(kind)
    x = own.parameters([2.0, 0.7, *([1.3] if kind == "mat" else [])], np.eye(SIZE))
    names = [n[2:-1].split(";") for n in own.names]
    where = np.array(names, dtype=float)
    z = np.linalg.norm(where[:, None] - where, axis=2) / 0.7
    if kind == "gau":
        R = np.exp(-(z**2))
    elif kind == "mat":
        np.fill_diagonal(z, 1.0)
        R = 2**-0.3 / special.gamma(1.3) * z**1.3 * special.kv(1.3, z)
        np.fill_diagonal(R, 1.0)
    else:
        R = np.exp(-z)
    np.testing.assert_allclose(own.matrix(x), 4 * R, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "natural"),
    [
        ("ar1", [1.0, 1.0]), ("ar1", [-1.0, 0.5]), ("homcs", [1.0, -0.3]),
        ("homtoep", [1.0, 0.9, -0.9, 0.0, 0.0]), ("mat", [1.0, 1.0, 30.0]),
        ("exp", [1.0, -1.0]),
    ],
)  # fmt: skip
def test_parameters_out_of_range(kind, natural):
    with pytest.raises(ValueError, match="must|definite|between"):
        covariance(kind).parameters(natural, np.eye(SIZE))


# -- the likelihood ------------------------------------------------------------------

TIMES = np.array([0.0, 0.5, 1.3, 2.9, 4.0])
FORMULAS = {
    **{k: f"y ~ x + {k}(0 + f | g)" for k in KINDS if k not in ("ou", *SPACE)},
    "ou": "y ~ x + ou(t | g)",
    "crossed": "y ~ x + ar1(0 + f | g) + (1 | h)",
    "twice": "y ~ x + hetar1(0 + f | g) + (1 | g)",
    **{k: f"y ~ x + {k}(north + east | one)" for k in SPACE},
}


def model(name: str) -> LinearMixed:
    rng = np.random.default_rng(5)
    if name in SPACE:
        return LinearMixed(FORMULAS[name], places(rng, 8, 3.0))
    V = 0.8 * toeplitz(0.6 ** np.arange(SIZE))
    data = series(rng, 12, TIMES, V)
    data["h"] = [f"h{j}" for j in rng.integers(0, 7, len(data))]
    return LinearMixed(FORMULAS[name], data)


def dense(model: LinearMixed, x: np.ndarray, reml: bool) -> float:
    """Minus twice the log-likelihood by the density of all rows."""
    structure, _ = model.prepare()
    design = model.design
    X, y, n = design.X.to_dense().numpy(), np.asarray(design.y), design.n
    Sigma = np.eye(n)
    for term, root, random in zip(
        structure.terms, structure.raw_roots(x), design.random, strict=True
    ):
        Z = random.Z.to_dense().numpy()
        same = random.grouping.codes[:, None] == random.grouping.codes
        Sigma += same * (Z @ root @ root.T @ Z.T)
        assert term.k == Z.shape[1]
    inverse = np.linalg.inv(Sigma)
    information = X.T @ inverse @ X
    beta = np.linalg.solve(information, X.T @ inverse @ y)
    r, p = y - X @ beta, X.shape[1]
    s2 = float(r @ inverse @ r) / (n - p * reml)
    value = -2 * multivariate_normal(np.zeros(n), s2 * Sigma).logpdf(r)
    if reml:
        value += np.linalg.slogdet(information)[1] - p * np.log(2 * np.pi * s2)
    return float(value)


@pytest.mark.parametrize("reml", (False, True))
@pytest.mark.parametrize("name", list(FORMULAS))
def test_criterion_is_the_normal_density(name, reml):
    one = model(name)
    structure, products = one.prepare()
    x = np.random.default_rng(2).uniform(0.2, 0.9, structure.size)
    point = Criterion(products, reml)(x)
    assert point.value == pytest.approx(dense(one, x, reml), abs=1e-8)
    numeric = slopes(lambda z: np.array(dense(one, z, reml)), x, 1e-4)
    np.testing.assert_allclose(point.gradient, numeric, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ("ar1", "toep", "crossed", "ou", "mat"))
def test_optimum_and_curvature(name):
    one = model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        results = one.fit()
    fitted = results.mixed
    assert results.converged
    x, criterion = fitted.x, fitted.criterion
    free = fitted.curvature.free
    np.testing.assert_allclose(
        criterion(x).gradient[free] / np.sqrt(np.abs(np.diag(fitted.curvature.hessian))
                                              [: free.sum()]), 0, atol=1e-5
    )  # fmt: skip
    # The Hessian has log sigma^2 last; what profiling it takes is a product of slopes.
    H = fitted.curvature.hessian
    inner = H[:-1, :-1] - np.outer(H[-1, :-1], H[-1, :-1]) / H[-1, -1]
    numeric = slopes(lambda z: criterion(z).gradient, x, 1e-4)[np.ix_(free, free)]
    np.testing.assert_allclose(inner, numeric, rtol=1e-3, atol=1e-3)


def test_many_columns_take_other_ways():
    """From a dozen columns on sums go direction by direction: they are the same."""
    rng = np.random.default_rng(6)
    V = toeplitz(0.7 ** np.arange(14))
    data = series(rng, 20, np.arange(14.0), V)
    results = LinearMixed("y ~ x + ar1(0 + f | g)", data).fit()
    curvature, x = results.mixed.curvature, results.mixed.x
    criterion = results.mixed.criterion
    H = curvature.hessian
    inner = H[:-1, :-1] - np.outer(H[-1, :-1], H[-1, :-1]) / H[-1, -1]
    numeric = slopes(lambda z: criterion(z).gradient, x, 1e-4)
    np.testing.assert_allclose(inner, numeric, rtol=1e-4, atol=1e-3)
    moved = slopes(
        lambda z: criterion(z).factorisation.cov_beta.numpy(), x, 1e-4
    ).transpose(2, 0, 1)
    np.testing.assert_allclose(curvature.free_slopes, moved, rtol=1e-5, atol=1e-9)


# -- against glmmTMB -----------------------------------------------------------------

TMB = {
    "cs": ("Machines", "score ~ Machine + cs(0 + Machine | Worker)"),
    "toep": ("Machines", "score ~ Machine + toep(0 + Machine | Worker)"),
    "diag": ("Machines", "score ~ Machine + diag(0 + Machine | Worker)"),
    "ar1": ("Orthodont", "distance ~ age + ar1(0 + C(age) | Subject)"),
    "ou": ("Orthodont", "distance ~ age + ou(age | Subject)"),
    "exp": ("Wheat2", "`yield` ~ 1 + exp(latitude + longitude | one)"),
}


@pytest.mark.parametrize("name", list(TMB))
def test_against_glmmtmb(name):
    dataset, formula = TMB[name]
    want = REFERENCE["glmmTMB"][name]
    results = ds.lmer(formula, frame(dataset)).fit(reml=False)
    assert -2 * results.llf == pytest.approx(-2 * want["logLik"], abs=1e-5)
    error = np.abs(results.params - want["coef"]) / np.atleast_1d(want["se"])
    assert (error < 1e-3).all()
    V = results.mixed.covariances[0]
    np.testing.assert_allclose(np.sqrt(np.diag(V)), want["sd"], rtol=1e-3)
    cor = V / np.sqrt(np.outer(np.diag(V), np.diag(V)))
    if name == "exp":  # Places are in another order there.
        assert np.abs(cor - want["cor"][1]).min() < 1e-6
    else:
        np.testing.assert_allclose(cor[0], want["cor"], atol=1e-3)
    assert results.sigma == pytest.approx(want["sigma"], rel=1e-3)


# -- recovery ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("ar1", "ou"))
def test_recovery(kind):
    """Estimates of many data sets are about the truth; their errors are right."""
    rng = np.random.default_rng(11)
    times = np.arange(6.0) if kind == "ar1" else np.array([0, 0.5, 1.3, 2.9, 4.0, 7.5])
    distance = np.abs(times[:, None] - times)
    V = 0.7**distance if kind == "ar1" else np.exp(-distance / 2.5)
    formula = f"y ~ x + {'ar1(0 + f | g)' if kind == 'ar1' else 'ou(t | g)'}"
    truth = np.array([1.0, 0.7 if kind == "ar1" else 2.5, 0.5])
    estimates, errors = [], []
    for _ in range(60):
        found = LinearMixed(formula, series(rng, 40, times, V)).fit().random_params()
        estimates.append(found["estimate"])
        errors.append(found["std_error"])
    off = np.mean(estimates, 0) - truth
    spread = np.std(estimates, 0)
    # Means of 60 are off by a few of their own standard errors at most; a range, whose
    # distribution is skew, also by its bias.
    assert (np.abs(off) < np.array([4, 5, 4]) * spread / np.sqrt(60)).all()
    np.testing.assert_allclose(np.mean(errors, 0), spread, rtol=0.35)


# -- results -------------------------------------------------------------------------


def of_ar1():
    V = toeplitz(0.7 ** np.arange(6))
    return series(np.random.default_rng(8), 25, np.arange(6.0), V)


@pytest.fixture(scope="module")
def ar1():
    return LinearMixed("y ~ x + ar1(0 + f | g)", of_ar1()).fit()


def test_frames_of_a_homogeneous_kind(ar1):
    shown = ar1.varcorr
    assert shown["grp"].tolist() == ["g", "g", "Residual"]
    assert shown["var1"].tolist()[:2] == ["f", "f"]
    assert shown["var2"].tolist()[1] == "cor"
    theta = ar1.theta
    assert theta.index.tolist() == ["g.sd(f)", "g.cor"]
    assert shown["sdcor"][0] == pytest.approx(ar1.sigma * theta["g.sd(f)"])
    assert shown["sdcor"][1] == pytest.approx(theta["g.cor"])
    assert "cor (ar1)" in str(ar1.summary())


def test_starts_are_read(ar1):
    again = ar1.model.fit(start=ar1.theta)
    assert again.llf == pytest.approx(ar1.llf, abs=1e-9)
    assert again.fit_info.iterations <= 2
    with pytest.raises(ValueError, match="between -1 and 1"):
        ar1.model.fit(start=[1.0, 2.0])


def test_standard_errors_of_parameters(ar1):
    """By the delta method from the curvature in other coordinates."""
    found = ar1.random_params()
    fitted = ar1.mixed
    cov = fitted.curvature.covariance
    own, U = fitted.structure.terms[0].covariance, fitted.structure.terms[0].U

    def printed(z: np.ndarray) -> np.ndarray:
        sigma = fitted.sigma * np.exp(z[-1] / 2)
        values = own.natural(z[:-1], U)
        return np.array([sigma * values[0], values[1], sigma])

    J = slopes(printed, np.append(fitted.x, 0.0))
    want = np.sqrt(np.diag(J @ cov @ J.T))
    np.testing.assert_allclose(found["std_error"], want, rtol=1e-6)
    inside = (found["conf_low"] < found["estimate"]) & (
        found["estimate"] < found["conf_high"]
    )
    assert inside.all()


def test_bootstrap_knows_the_parameters(ar1):
    found = ar1.bootstrap(40, seed=1)
    assert {"sd(f)|g", "cor|g", "sigma", "x"} <= set(found.estimate.index)
    assert found.estimate["cor|g"] == pytest.approx(ar1.theta["g.cor"])
    # Forty replicates tell a standard error to about a ninth.
    own = ar1.random_params()["std_error"].iloc[1]
    assert found.frame["cor|g"].std() == pytest.approx(own, rel=0.4)


def test_profile_is_of_the_other_parameters(ar1):
    with pytest.warns(ProfileWarning, match=r"ar1\(0 \+ f \| g\) have no profile"):
        found = ar1.profile().conf_int()
    assert found.index.tolist() == ["sigma", "Intercept", "x"]
    wald = ar1.refit(reml=False).conf_int().loc["x"]
    np.testing.assert_allclose(found.loc["x"], wald, rtol=0.02)


def test_profile_of_a_residual_that_may_be_none():
    """Where effects follow every row, sigma goes to zero and the deviance stays low."""
    rng = np.random.default_rng(3)
    times = [np.sort(rng.choice(12, 6, replace=False)) for _ in range(25)]
    data = pd.DataFrame({
        "g": np.repeat(np.arange(25), 6), "time": np.concatenate(times),
        "x": rng.standard_normal(150),
    })  # fmt: skip
    lags = np.abs(np.subtract.outer(data.time.to_numpy(), data.time.to_numpy()))
    same = np.equal.outer(data.g.to_numpy(), data.g.to_numpy())
    V = np.where(same, 2 * np.exp(-lags / 2), 0.0) + 0.2 * np.eye(150)
    data["y"] = 0.5 * data.x + np.linalg.cholesky(V) @ rng.standard_normal(150)
    results = ds.lmer("y ~ x + ou(time | g)", data).fit()
    with pytest.warns(ProfileWarning, match="ou"):
        low, high = results.profile().conf_int().loc["sigma"]
    assert results.sigma < high < data.y.std()

    def without(w: np.ndarray) -> float:
        """Deviance with the process alone."""
        process = np.where(same, np.exp(w[0] - lags * np.exp(-w[1])), 0.0)
        return -2 * multivariate_normal(w[2] + w[3] * data.x, process).logpdf(data.y)

    rise = minimize(without, [0, 0, 0, 0.5]).fun + 2 * results.refit(reml=False).llf
    assert 0 < rise < 3.84
    assert low == 0


def test_predictions_of_places():
    rng = np.random.default_rng(4)
    data = places(rng, 25, 3.0)
    results = LinearMixed("y ~ x + exp(north + east | one)", data).fit()
    np.testing.assert_allclose(results.predict(data), results.fittedvalues)
    whole = results.predict(data.head(3), re_form="none", interval="prediction")
    V = results.mixed.covariances[0][0, 0] + results.sigma**2
    assert (whole["obs_se"] ** 2 > V).all()
    moved = data.head(3).assign(north=99.0)
    with pytest.raises(DesignError, match="not among its levels"):
        results.predict(moved)


def test_no_variance_is_said():
    rng = np.random.default_rng(25)
    data = series(rng, 15, np.arange(4.0), 1e-12 * np.eye(4))
    with pytest.warns(SingularFitWarning, match="the variance of f is zero"):
        results = LinearMixed("y ~ x + ar1(0 + f | g)", data).fit()
    assert results.theta["g.sd(f)"] == pytest.approx(0, abs=1e-3)
    assert results.bse.notna().all()
    assert np.isnan(results.random_params()["std_error"].iloc[0])


# -- what has no meaning -------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "error", "message"),
    [
        ("ar1(0 + t | g)", ModelError, r"at least two.*C\(\.\.\.\)"),
        ("ar1(f | g)", ModelError, r"without an intercept"),
        ("ar1(0 + f || g)", ModelError, r"write \| for \|\|"),
        ("toep(0 + f | g, d=2)", ModelError, "takes no d="),
        ("rr(0 + f | g, d=2)", ModelError, "do not have the structure rr"),
        ("ou(1 | g)", DesignError, "coordinates, columns of numbers"),
        ("exp(t:x | g)", DesignError, "coordinates, columns of numbers"),
        ("ou(f | g)", DesignError, "not numeric"),
    ],
)
def test_terms_without_meaning(term, error, message):
    data = series(np.random.default_rng(0), 5, np.arange(3.0), np.eye(3))
    with pytest.raises(error, match=message):
        LinearMixed(f"y ~ x + {term}", data)


def test_what_needs_a_linear_covariance(ar1):
    with pytest.raises(ModelError, match=r"linear in their parameters.*ar1"):
        ar1.with_ddf("kenward-roger")
    with pytest.raises(ModelError, match=r"linear in their parameters.*ar1"):
        ar1.refit_many(ar1.simulate(2, seed=1)).inference("kenward-roger")


def test_many_responses(ar1):
    Y = ar1.simulate(3, seed=1)
    many = ar1.refit_many(Y)
    one = LinearMixed("y ~ x + ar1(0 + f | g)", of_ar1().assign(y=Y["sim_2"])).fit()
    np.testing.assert_allclose(many.params.iloc[1], one.params, rtol=1e-6)
    found = many.inference()
    np.testing.assert_allclose(found.df.iloc[1], one.df_coefficients, rtol=1e-3)


def test_too_many_places_for_the_memory():
    rng = np.random.default_rng(1)
    data = series(rng, 4, np.arange(300.0), np.eye(300))
    with pytest.raises(MemoryError, match="round times or places"):
        check_with_little_memory(data)


def check_with_little_memory(data):
    from dataclasses import replace

    from deepstats.compute import default_compute
    from deepstats.models.mixed.model import check_structure

    small = LinearMixed("y ~ x + ou(t | g)", data)
    check_structure(small.design.random[0], replace(default_compute(), memory=10**6))
