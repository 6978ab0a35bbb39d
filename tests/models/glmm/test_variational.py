"""Variational generalised linear mixed models against integrals and Laplace's."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit

import deepstats as ds
from deepstats.errors import MeanFieldWarning, ModelError
from deepstats.families import get_family
from deepstats.models.glmm.rows import RowDensity
from deepstats.models.glmm.variational import GLMPoint, expectation
from deepstats.models.glmm.variational_results import VariationalGLMResults

from .data import load

CROSSED = "~ x + (1 | a) + (1 | b)"


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng, n = np.random.default_rng(0), 240
    frame = pd.DataFrame({
        "a": rng.integers(0, 20, n), "b": rng.integers(0, 15, n),
        "x": rng.normal(size=n),
    })  # fmt: skip
    a, b = 0.6 * rng.normal(size=20), 0.5 * rng.normal(size=15)
    eta = 0.3 + 0.4 * frame["x"] + a[frame["a"]] + b[frame["b"]]
    mu, p = np.exp(eta), expit(eta)
    frame["count"] = rng.poisson(mu)
    frame["more"] = rng.negative_binomial(2, 2 / (2 + mu))
    frame["few"] = frame["count"] * (rng.uniform(size=n) > 0.25)
    frame["time"] = rng.gamma(2, mu / 2)
    frame["yes"] = rng.binomial(6, p)
    frame["no"] = 6 - frame["yes"]
    frame["one"] = rng.binomial(1, p)
    frame["normal"] = eta + 0.6 * rng.normal(size=n)
    return frame


# -- expected log-densities ------------------------------------------------------------


def density(family: str, y: np.ndarray, size: np.ndarray | None = None) -> RowDensity:
    trials = None if size is None else torch.from_numpy(size)
    return RowDensity(get_family(family), torch.from_numpy(y), trials, None)


@pytest.mark.parametrize(
    ("family", "y", "size"),
    [
        ("poisson", np.array([0.0, 3.0, 20.0]), None),
        ("binomial", np.array([0.0, 0.25, 1.0]), np.array([1.0, 8.0, 5.0])),
    ],
)
def test_expectations_are_integrals(
    family: str, y: np.ndarray, size: np.ndarray | None
) -> None:
    m, v = (
        torch.tensor([-0.5, 0.3, 2.0]).double(),
        torch.tensor([0.3, 1.0, 2.0]).double(),
    )
    rows = density(family, y, size)
    found = expectation(rows).at(m, v, ())

    def integrand(t: float, j: int) -> float:
        eta = m.clone()
        eta[j] = m[j] + t * v[j].sqrt()
        return float(rows.log_prob(eta)[j]) * stats.norm.pdf(t)

    expected = sum(integrate.quad(integrand, -12, 12, (j,))[0] for j in range(3))
    assert found.value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("how", ["auto", "polya-gamma"])
def test_slopes_and_weights_are_derivatives(how: str) -> None:
    rows = density("binomial", np.array([0.0, 0.25, 1.0]), np.array([1.0, 8.0, 5.0]))
    e = expectation(rows, how)
    m, v = (
        torch.tensor([-0.5, 0.3, 2.0]).double(),
        torch.tensor([0.3, 1.0, 1.5]).double(),
    )
    found, step = e.at(m, v, ()), 1e-5
    for j in range(3):
        d = torch.zeros(3).double()
        d[j] = step
        slope = (e.at(m + d, v, ()).value - e.at(m - d, v, ()).value) / (2 * step)
        by_v = (e.at(m, v + d, ()).value - e.at(m, v - d, ()).value) / (2 * step)
        assert float(found.slope[j]) == pytest.approx(slope, abs=2e-4)
        assert float(found.weight[j]) == pytest.approx(-2 * by_v, abs=2e-3)


def test_polya_gamma_is_below_the_expectation() -> None:
    rows = density("binomial", np.array([0.0, 0.25, 1.0]), np.array([1.0, 8.0, 5.0]))
    for scale in (0.1, 1.0, 5.0):
        m = torch.tensor([-0.5, 0.3, 2.0]).double()
        v = scale * torch.ones(3).double()
        bound = expectation(rows, "polya-gamma").at(m, v, ()).value
        assert bound < expectation(rows, "quadrature").at(m, v, ()).value
    tiny = torch.zeros(3).double()
    touching = expectation(rows, "polya-gamma").at(tiny, tiny, ()).value
    assert touching == pytest.approx(float(rows.log_prob(tiny).sum()), abs=1e-12)


# -- the bound -------------------------------------------------------------------------


def test_normal_responses_are_exact(data: pd.DataFrame) -> None:
    formula = f"normal {CROSSED}"
    exact = ds.lmer(formula, data).fit(False, ddf="normal")
    fit = ds.glmer(formula, data, family="gaussian").fit(method="vi")
    assert fit.elbo == pytest.approx(exact.llf, abs=1e-5)
    np.testing.assert_allclose(
        fit.varcorr["sdcor"], exact.varcorr["sdcor"][:2], rtol=1e-3
    )
    np.testing.assert_allclose(fit.bse.iloc[:2], exact.bse, rtol=1e-3)
    frames = [f.ranef(cond_var=True)["a"] for f in (fit, exact)]
    np.testing.assert_allclose(*frames, rtol=2e-3, atol=2e-3)
    one = fit.predict(interval="confidence")
    two = exact.predict(interval="confidence")
    np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-3)


def test_below_the_likelihood_by_brute_force() -> None:
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(6), 5)
    y = rng.binomial(1, expit(0.4 + rng.normal(size=6)[g]))
    frame = pd.DataFrame({"g": g, "y": y})
    fit = ds.glmer("y ~ 1 + (1 | g)", frame, family="binomial").fit(method="vi")
    sd, beta = fit.varcorr["sdcor"].iloc[0], fit.params.iloc[0]

    def one(k: int) -> float:
        def inside(b: float) -> float:
            p = expit(beta + sd * b)
            return float(np.prod(np.where(y[g == k], p, 1 - p)) * stats.norm.pdf(b))

        return integrate.quad(inside, -9, 9)[0]

    exact = sum(np.log(one(k)) for k in range(6))
    assert fit.elbo < exact < fit.elbo + 0.1
    found = fit.llf_corrected(20_000, seed=1)
    assert found.reliable
    assert found.value == pytest.approx(exact, abs=5 * found.std_error + 1e-4)
    loose = ds.glmer("y ~ 1 + (1 | g)", frame, family="binomial").fit(
        method="vi", expectation="polya-gamma"
    )
    assert loose.elbo < fit.elbo
    assert "Polya-Gamma" in str(loose.summary())


CASES = {
    "poisson": ("count", "poisson", {}),
    "nb2": ("more", "nb2", {}),
    "zip": ("few", "zip", {}),
    "gamma": ("time", "gamma", {"link": "log"}),
    "binomial": ("cbind(yes, no)", "binomial", {}),
    "bernoulli": ("one", "binomial", {}),
    "probit": ("one", "binomial", {"link": "probit"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("unfactorised", [0, 20])
def test_agrees_with_laplace(data: pd.DataFrame, case: str, unfactorised: int) -> None:
    response, family, options = CASES[case]
    model = ds.glmer(f"{response} {CROSSED}", data, family=family, **options)
    laplace = model.fit()
    fit = model.fit(method="vi", unfactorised=unfactorised)
    assert fit.converged
    assert (fit.history["gain"].dropna() >= -1e-6).all()
    corrected = fit.llf_corrected(2000, seed=1)
    # Laplace's own value is off by about so much.
    assert corrected.value == pytest.approx(laplace.llf, abs=0.9)
    assert fit.elbo < corrected.value + 3 * corrected.std_error
    np.testing.assert_allclose(
        fit.varcorr["sdcor"], laplace.varcorr["sdcor"], atol=0.04
    )
    close = np.abs(fit.fe_params - laplace.fe_params) / laplace.bse[:2]
    assert (close < 0.1).all()
    np.testing.assert_allclose(fit.bse[:2], laplace.bse[:2], rtol=0.1)
    for name, frame in laplace.ranef().items():
        pair = np.corrcoef(frame["Intercept"], fit.ranef()[name]["Intercept"])
        assert pair[0, 1] > 0.995


@pytest.mark.parametrize("case", ["poisson", "zip", "bernoulli"])
def test_gradient_is_that_of_differences(data: pd.DataFrame, case: str) -> None:
    response, family, options = CASES[case]
    formula = f"{response} ~ x + (x | a) + (1 | b)"
    model = ds.glmer(formula, data, family=family, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bound = model.fit(method="vi", unfactorised=0)._bound
    x = np.array([0.6, 0.1, 0.3, 0.2])
    point = bound(x)
    assert isinstance(point, GLMPoint)
    steps = 1e-4 * np.eye(4)
    numeric = [(bound(x + e).value - bound(x - e).value) / 2e-4 for e in steps]
    np.testing.assert_allclose(point.gradient, numeric, rtol=2e-3, atol=2e-3)


def test_no_other_q_has_a_higher_bound(data: pd.DataFrame) -> None:
    fit = ds.glmer(f"count {CROSSED}", data, family="poisson").fit(method="vi")
    bound, state = fit._bound, fit.state
    rng = np.random.default_rng(1)
    for size in (0.03, 0.3):
        weights = state.weights * torch.from_numpy(
            np.exp(size * rng.normal(size=len(state.weights)))
        )
        roots = [r.numpy() for r in state.equations.roots]
        f = bound._equations(weights, torch.zeros_like(weights), roots)
        moved = bound._state(
            state.effects, state.dual, state.beta, state.others, weights, f
        )
        assert moved.value > state.value - 1e-7
        shifted = bound._state(
            state.effects, state.dual, state.beta + size, state.others,
            state.weights, state.equations,
        )  # fmt: skip
        assert shifted.value > state.value


def test_bias_of_a_poisson_variance() -> None:
    rng, found = np.random.default_rng(5), []
    g, h = np.repeat(np.arange(40), 15), np.tile(np.arange(15), 40)
    for _ in range(15):
        eta = 0.5 + 0.6 * rng.normal(size=40)[g] + 0.4 * rng.normal(size=15)[h]
        frame = pd.DataFrame({"g": g, "h": h, "y": rng.poisson(np.exp(eta))})
        fit = ds.glmer("y ~ 1 + (1 | g) + (1 | h)", frame, family="poisson").fit(
            method="vi"
        )
        found.append([*fit.varcorr["vcov"], fit.params.iloc[0]])
    mean, spread = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(15)
    # Maximum likelihood divides by the levels, not one fewer.
    expected = [0.36, 0.16 * 14 / 15, 0.5]
    assert (np.abs(mean - expected) < 4 * spread).all()


def test_verbagg_agrees_with_laplace() -> None:
    formula = "r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)"
    model = ds.glmer(formula, load("VerbAgg"), family="binomial")
    laplace, fit = model.fit(), model.fit(method="vi")
    np.testing.assert_allclose(
        fit.varcorr["sdcor"], laplace.varcorr["sdcor"], rtol=8e-3
    )
    assert (np.abs(fit.params - laplace.params) < 0.02 * laplace.bse).all()
    np.testing.assert_allclose(fit.bse, laplace.bse, rtol=8e-3)
    found = fit.llf_corrected(1000, seed=1)
    assert found.reliable and found.gap < 1
    assert laplace.llf < fit.elbo


# -- results ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(data: pd.DataFrame) -> VariationalGLMResults:
    return ds.glmer(f"count {CROSSED}", data, family="poisson").fit(
        method="vi", unfactorised=["b"]
    )


def test_results_have_the_usual_methods(
    fitted: VariationalGLMResults, data: pd.DataFrame
) -> None:
    text = str(fitted.summary())
    assert "ELBO" in text and "Log-likelihood" not in text
    assert fitted.unfactorised == ["b"]
    effects = fitted.ranef(cond_var=True)["a"]
    new = pd.DataFrame({"x": [0.5], "a": [3], "b": [2]})
    eta = fitted.params["Intercept"] + 0.5 * fitted.params["x"]
    eta += effects.loc[3, "Intercept"] + fitted.ranef()["b"].loc[2, "Intercept"]
    assert fitted.predict(new, which="link").iloc[0] == pytest.approx(eta)
    frame = fitted.predict(new, interval="confidence")
    assert frame["mean"].iloc[0] == pytest.approx(np.exp(eta))
    link = fitted.predict(new, which="link", interval="confidence")
    np.testing.assert_allclose(
        frame["mean_ci_upper"], np.exp(link["mean_ci_upper"]), rtol=1e-12
    )
    assert link["mean_se"].iloc[0] > effects.loc[3, "Intercept.sd"] * 0.5
    marginal = fitted.predict(new, re_form="none", marginal=True).iloc[0]
    v = fitted.varcorr["vcov"].sum()
    fixed = fitted.params["Intercept"] + 0.5 * fitted.params["x"]
    assert marginal == pytest.approx(np.exp(fixed + v / 2), rel=1e-6)
    assert fitted.simulate(2, seed=1).shape == (len(data), 2)
    assert fitted.coef()["a"].shape == (20, 2)
    assert list(fitted.glance()["elbo"]) == [fitted.elbo]
    assert fitted.resid_pearson.std() == pytest.approx(1, abs=0.3)
    assert fitted.anova().loc["x"].iloc[-1] < 0.05
    assert fitted.icc().loc["all"].notna().all()
    assert fitted.plot_history().get_ylabel().startswith("Below")
    quantiles = fitted.resid_quantile(1)
    assert abs(quantiles.mean()) < 0.3


REFUSED = {
    "llf": lambda f: f.llf,
    "aic": lambda f: f.aic,
    "nagq": lambda f: f.nagq,
    "lr_test": lambda f: f.lr_test("x"),
    "compare_lr_test": lambda f: f.compare_lr_test(f),
    "profile": lambda f: f.profile(),
    "bootstrap": lambda f: f.bootstrap(),
    "conf_int": lambda f: f.conf_int(method="boot"),
    "random_params": lambda f: f.random_params(),
    "joint": lambda f: f.ranef(cond_var="joint"),
    "refit": lambda f: f.refit(),
    "robust": lambda f: f.get_robustcov_results("CR0"),
    "marginal_means": lambda f: f.marginal_means("x"),
    "prediction": lambda f: f.predict(interval="prediction"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_the_likelihood_is_refused(
    fitted: VariationalGLMResults, what: str
) -> None:
    with pytest.raises(ModelError, match="variational fit"):
        REFUSED[what](fitted)


def test_mean_field_warns(data: pd.DataFrame) -> None:
    model = ds.glmer(f"count {CROSSED}", data, family="poisson")
    exact = model.fit()
    with pytest.warns(MeanFieldWarning, match="standard errors"):
        fit = model.fit(method="mf-vi")
    assert fit.bse["Intercept"] < 0.6 * exact.bse["Intercept"]
    assert fit.elbo < exact.llf


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "advi"}, ValueError, "laplace, vi or mf-vi"),
        ({"method": "vi", "nagq": 5}, ModelError, "takes no nagq"),
        ({"method": "vi", "reml": True}, ModelError, "takes no nagq"),
        ({"unfactorised": 5}, ValueError, 'go with method="vi"'),
        ({"expectation": "quadrature"}, ValueError, 'go with method="vi"'),
        ({"method": "vi", "expectation": "exact"}, ValueError, "must be one of"),
        ({"method": "vi", "expectation": "polya-gamma"}, ModelError, "logit"),
    ],
)
def test_bad_options(
    data: pd.DataFrame, options: dict, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ds.glmer(f"count {CROSSED}", data, family="poisson").fit(**options)


def test_links_without_an_expectation_are_refused(data: pd.DataFrame) -> None:
    model = ds.glmer(f"time {CROSSED}", data, family="gamma", link="inverse")
    with pytest.raises(ModelError, match="no expected log-density"):
        model.fit(method="vi")


def test_random_effects_of_other_parts_are_refused(data: pd.DataFrame) -> None:
    model = ds.glmer(f"few {CROSSED}", data, family="zip", zi_formula="~ 1 + (1 | a)")
    with pytest.raises(ModelError, match="of the mean only"):
        model.fit(method="vi")
