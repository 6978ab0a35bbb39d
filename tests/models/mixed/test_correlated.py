"""Correlated residuals and unequal variances: nlme, dense matrices, simulation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import deepstats as ds
from deepstats.errors import ConvergenceWarning, DesignError, ModelError
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.correlated import CorrelatedResults, Whitened

from .structures import REFERENCE, frame

_TWO_PI = repr(2 * np.pi)
_OVARY = f"follicles ~ sin({_TWO_PI} * Time) + cos({_TWO_PI} * Time) + (1 | Mare)"
_GROWTH = "distance ~ age * Sex + (1 | Subject)"
#: Data, formula and residuals of nlme's fits.
NLME = {
    "ovary ar1": ("Ovary", _OVARY, {"correlation": "ar1(1 | Mare)"}),
    "ovary car1": ("Ovary", _OVARY, {"correlation": "ou(Time | Mare)"}),
    "orthodont ident": ("Orthodont", _GROWTH, {"variance": "ident(Sex)"}),
    "orthodont power": ("Orthodont", _GROWTH, {"variance": "power(age)"}),
    "orthodont exp": ("Orthodont", _GROWTH, {"variance": "exp(age)"}),
    "orthodont both": (
        "Orthodont", _GROWTH,
        {"correlation": "ar1(1 | Subject)", "variance": "ident(Sex)"},
    ),
    "bodyweight": (
        "BodyWeight", "weight ~ Time * Diet + (1 | Rat)",
        {"correlation": "ou(Time | Rat)", "variance": "power(Time)"},
    ),
    "bodyweight cs": (
        "BodyWeight", "weight ~ Time * Diet + (0 + Time | Rat)",
        {"correlation": "cs(1 | Rat)"},
    ),
}  # fmt: skip


@lru_cache
def fit(name: str, reml: bool) -> CorrelatedResults:
    dataset, formula, options = NLME[name]
    return ds.lmer(formula, frame(dataset), **options).fit(reml)


def printed(results: CorrelatedResults) -> np.ndarray:
    """Parameters as nlme has them: a range as the correlation at distance one."""
    found = results.residual_params()
    values = found["estimate"].to_numpy()
    return np.where(found["parameter"] == "range", np.exp(-1 / values), values)


# -- nlme ----------------------------------------------------------------------------


@pytest.mark.parametrize("reml", (False, True))
@pytest.mark.parametrize("name", list(NLME))
def test_against_nlme(name, reml):
    want = REFERENCE["nlme"][f"{name} {'REML' if reml else 'ML'}"]
    results = fit(name, reml)
    assert results.converged
    assert -2 * results.llf == pytest.approx(-2 * want["logLik"], abs=1e-5)
    assert (np.abs(results.params - want["coef"]) / want["se"] < 1e-3).all()
    np.testing.assert_allclose(results.bse, want["se"], rtol=1e-3)
    np.testing.assert_allclose(printed(results), want["residuals"], atol=1e-3)
    shown = results.varcorr
    sds = shown[shown["var2"].isna()]["sdcor"]
    np.testing.assert_allclose(sds, np.atleast_1d(want["sd"]), rtol=1e-3)
    if name != "bodyweight cs":  # There another root whitens.
        np.testing.assert_allclose(
            results.resid_normalized[:6], want["normalized"], atol=1e-3
        )


# -- dense matrices ------------------------------------------------------------------


def rows(seed: int = 0, groups: int = 25, size: int = 7) -> pd.DataFrame:
    """Unevenly timed rows of groups of unequal sizes, in no order."""
    rng = np.random.default_rng(seed)
    out = []
    for g in range(groups):
        m = int(rng.integers(2, size + 1))
        days = np.sort(rng.choice(10, m, replace=False))
        b, c = 1.5 * rng.standard_normal(2)
        times = days + rng.uniform(0, 0.5, m)
        out += [
            {"g": f"g{g}", "day": int(d), "time": t, "x": rng.standard_normal(),
             "sex": "ab"[g % 2], "b": b, "c": c}
            for d, t in zip(days, times, strict=True)
        ]  # fmt: skip
    data = pd.DataFrame(out)
    noise = rng.standard_normal(len(data)) * (1 + data.day / 9)
    data["y"] = 1 + data.b + (1 + data.c) * data.x + noise
    data["w"] = rng.uniform(0.5, 2, len(data))
    return data.sample(frac=1, random_state=1, ignore_index=True)


OPTIONS = {
    "ar1": {"correlation": "ar1(day | g)"},
    "ou": {"correlation": "ou(time | g)"},
    "cs": {"correlation": "cs(1 | g)"},
    "ident": {"variance": "ident(sex)"},
    "power": {"variance": "power(I(1 + day))"},
    "all": {"correlation": "ou(time | g)", "variance": "ident(sex) * exp(day)",
            "weights": "w"},
}  # fmt: skip


def formula(name: str) -> str:
    return "y ~ x + (0 + x | g)" if name == "cs" else "y ~ x + (1 | g)"


def covariance(name: str, data: pd.DataFrame, problem: Whitened, phi) -> np.ndarray:
    """``D R D`` of all rows, written down."""
    R = np.eye(len(data))
    same = data.g.to_numpy()[:, None] == data.g.to_numpy()
    options, values = OPTIONS[name], problem.residuals.natural(phi)
    if "correlation" in options:
        kind, value = options["correlation"][:2], values[0][2]
        column = "day" if kind == "ar" else "time"
        gap = np.abs(data[column].to_numpy()[:, None] - data[column].to_numpy())
        R = {
            "ar": lambda: value**gap, "ou": lambda: np.exp(-gap / value),
            "cs": lambda: np.where(gap == 0, 1.0, value),
        }[kind]() * same  # fmt: skip
        values = values[1:]
    sd = 1 / np.sqrt(data.w) if "weights" in options else np.ones(len(data))
    for _, label, value, _, _ in values:
        if "sex" in label:
            sd = sd * np.where(data.sex == "b", value, 1.0)
        else:
            exact = label.startswith("power")
            sd = sd * ((1.0 + data.day) ** value if exact else np.exp(value * data.day))
    sd = np.asarray(sd)
    return sd[:, None] * R * sd


def dense(
    name: str, data: pd.DataFrame, problem: Whitened, phi, x, reml: bool
) -> tuple[float, np.ndarray]:
    """Minus twice the log-likelihood, and ``(X'Sigma^-1 X)^-1``."""
    (root,) = problem.structure.raw_roots(x)
    X = np.column_stack([np.ones(len(data)), data.x])
    z = data.x.to_numpy() if name == "cs" else np.ones(len(data))
    same = data.g.to_numpy()[:, None] == data.g.to_numpy()
    Sigma = covariance(name, data, problem, phi)
    Sigma = Sigma + same * np.outer(z, z) * root[0, 0] ** 2
    inverse = np.linalg.inv(Sigma)
    cov = np.linalg.inv(X.T @ inverse @ X)
    r = data.y - X @ (cov @ X.T @ inverse @ data.y)
    n, p = X.shape
    s2 = float(r @ inverse @ r) / (n - p * reml)
    value = -2 * multivariate_normal(np.zeros(n), s2 * Sigma).logpdf(r)
    if reml:
        value -= np.linalg.slogdet(cov)[1] + p * np.log(2 * np.pi * s2)
    return float(value), cov


@pytest.mark.parametrize("reml", (False, True))
@pytest.mark.parametrize("name", list(OPTIONS))
def test_criterion_is_the_normal_density(name, reml):
    data = rows()
    model = LinearMixed(formula(name), data, **OPTIONS[name])
    problem = Whitened(model, reml)
    rng = np.random.default_rng(3)
    for _ in range(3):
        phi = rng.uniform(-0.4, 0.4, problem.residuals.size)
        x = rng.uniform(0.2, 2, problem.structure.size)
        found = problem.criterion(phi)(x)
        value, cov = dense(name, data, problem, phi, x, reml)
        assert found.value == pytest.approx(value, abs=1e-8)
        np.testing.assert_allclose(found.factorisation.cov_beta.numpy(), cov, rtol=1e-8)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_derivatives_at_the_optimum(name):
    """Joint Hessian and its inverse's parts against differences of dense values."""
    data = rows()
    results = LinearMixed(formula(name), data, **OPTIONS[name]).fit()
    fitted = results.mixed
    problem, d, k = fitted.problem, len(fitted.phi), len(fitted.x)
    assert results.converged
    at = np.concatenate([fitted.x, fitted.phi])

    def value(z: np.ndarray) -> float:
        return dense(name, data, problem, z[k:], z[:k], True)[0]

    step = 1e-3
    eye = step * np.eye(k + d)
    gradient = [(value(at + e) - value(at - e)) / (2 * step) for e in eye]
    H = np.array(
        [
            [
                (value(at + a + b) - value(at + a - b) - value(at - a + b)
                 + value(at - a - b)) / (4 * step**2)
                for b in eye
            ]
            for a in eye
        ]
    )  # fmt: skip
    scale = np.sqrt(np.diag(H))
    np.testing.assert_allclose(gradient / scale, 0, atol=1e-4)
    np.testing.assert_allclose(
        fitted.joint.hessian / np.outer(scale, scale), H / np.outer(scale, scale),
        atol=1e-3,
    )  # fmt: skip
    moved = [
        (dense(name, data, problem, (at + e)[k:], (at + e)[:k], True)[1]
         - dense(name, data, problem, (at - e)[k:], (at - e)[:k], True)[1]) / (2 * step)
        for e in eye
    ]  # fmt: skip
    size = np.abs(np.array(moved)).max()
    np.testing.assert_allclose(
        fitted.curvature.free_slopes, moved, atol=1e-3 * size, rtol=1e-3
    )


@pytest.mark.parametrize("name", list(OPTIONS))
def test_whitening(name):
    data = rows()
    problem = Whitened(LinearMixed(formula(name), data, **OPTIONS[name]), True)
    phi = np.full(problem.residuals.size, 0.3)
    Lambda = covariance(name, data, problem, phi)
    eye = np.eye(len(data))
    W, C = (getattr(problem.residuals, f)(phi, eye) for f in ("whiten", "color"))
    np.testing.assert_allclose(W @ Lambda @ W.T, eye, atol=1e-10)
    np.testing.assert_allclose(C @ C.T, Lambda, atol=1e-10)
    assert problem.residuals.logdet(phi) == pytest.approx(np.linalg.slogdet(Lambda)[1])


# -- simulation ----------------------------------------------------------------------


def test_recovery():
    """Estimates of data drawn from a fit are about it, and as spread as it says."""
    rng = np.random.default_rng(4)
    data = rows(5, groups=150, size=9)
    data["y"] = 1 + 0.5 * data.x + rng.standard_normal(len(data))
    options = {"correlation": "ar1(day | g)", "variance": "ident(sex)"}
    model = LinearMixed("y ~ x + (1 | g)", data, **options)
    problem = Whitened(model, True)
    truth = np.array([0.6, 1.5])
    phi = np.array([0.75, np.log(1.5)])  # t / sqrt(1 + t^2) = 0.6
    codes = model.design.random[0].grouping.codes
    estimates, errors, slopes = [], [], []
    for _ in range(40):
        noise = problem.residuals.color(phi, rng.standard_normal((len(data), 1)))[:, 0]
        effects = rng.standard_normal(150)
        again = data.assign(y=1 + 0.5 * data.x + effects[codes] + noise)
        found = LinearMixed("y ~ x + (1 | g)", again, **options).fit()
        own = found.residual_params()
        estimates.append(own["estimate"])
        errors.append(own["std_error"])
        slopes.append((found.params["x"] - 0.5) / found.bse["x"])
    spread = np.std(estimates, 0)
    assert (np.abs(np.mean(estimates, 0) - truth) < 4 * spread / np.sqrt(40)).all()
    np.testing.assert_allclose(np.mean(errors, 0), spread, rtol=0.4)
    assert np.std(slopes) == pytest.approx(1, abs=0.4)


def test_simulated_responses_are_correlated():
    results = fit("ovary ar1", True)
    drawn = results.simulate(400, seed=2, re_form=None)
    again = results.simulate(400, seed=2, re_form=None)
    pd.testing.assert_frame_equal(drawn, again)
    noise = drawn.to_numpy() - results.fittedvalues.to_numpy()[:, None]
    mare = frame("Ovary")["Mare"].to_numpy()
    follows = np.flatnonzero(mare[1:] == mare[:-1])
    cor = np.corrcoef(noise[follows].ravel(), noise[follows + 1].ravel())[0, 1]
    assert cor == pytest.approx(printed(results)[0], abs=0.02)
    assert noise.std() == pytest.approx(results.sigma, rel=0.02)


# -- results -------------------------------------------------------------------------


def test_residuals():
    results = fit("orthodont ident", True)
    data, raw = frame("Orthodont"), results.resid_response
    ratio = printed(results)[0]
    scaled = raw / np.where(data["Sex"] == "Female", ratio, 1.0)
    np.testing.assert_allclose(results.resid_pearson, scaled)
    np.testing.assert_allclose(results.resid_normalized, scaled / results.sigma)


def test_comparisons_count_the_residuals_parameters():
    plain = ds.lmer(_OVARY, frame("Ovary")).fit()
    results = fit("ovary ar1", True)
    assert results._counted == plain._counted + 1
    assert results.df_resid == plain.df_resid - 1
    test = results.compare_lr_test(plain)
    assert test.df_num == 1
    assert test.statistic == pytest.approx(2 * (results.llf - plain.llf))
    with pytest.raises(ValueError, match=r"must have fewer|not nested"):
        plain.compare_lr_test(results)
    dropped = results.drop1()
    assert dropped["npar"].tolist()[1:] == [1, 1]


def test_degrees_of_freedom_know_the_residuals():
    """Satterthwaite's formula with all parameters, the residuals' among them."""
    results = fit("orthodont ident", True)
    fitted = results.mixed
    C, A = fitted.curvature.weights[1], fitted.curvature.covariance
    g = np.column_stack(
        [np.einsum("aii->ia", fitted.curvature.free_slopes), np.diag(C)]
    )
    assert g.shape[1] == len(fitted.x) + len(fitted.phi) + 1 == len(A)
    want = 2 * np.diag(C) ** 2 / np.einsum("ia,ab,ib->i", g, A, g)
    np.testing.assert_allclose(results.df_coefficients, want)
    assert (results.with_ddf("residual").df_coefficients == 104).all()


def test_page_and_frames():
    results = fit("bodyweight", True)
    page = str(results.summary())
    assert "Residual covariance" in page
    assert "ou(Time | Rat)" in page
    assert "power(Time)" in page
    found = results.residual_params()
    assert found["parameter"].tolist() == ["range", "power(Time)"]
    assert (found["conf_low"] < found["estimate"]).all()
    assert (found["estimate"] < found["conf_high"]).all()
    assert np.isfinite(results.random_params()["std_error"]).all()
    assert results.ranef(cond_var=True)["Rat"].shape == (16, 2)
    again = results.refit(reml=False)
    assert again.llf == pytest.approx(fit("bodyweight", False).llf, abs=1e-6)


def test_predictions():
    results, data = fit("ovary ar1", True), frame("Ovary")
    np.testing.assert_allclose(results.predict(data), results.fittedvalues)
    band = results.with_ddf("normal").predict(
        data.head(4), re_form="none", interval="confidence"
    )
    X = results.model.design.X.to_dense().numpy()[:4]
    want = np.sqrt(np.diag(X @ results.cov_params().to_numpy() @ X.T))
    np.testing.assert_allclose(band["mean_se"], want)
    with pytest.raises(ModelError, match="with_ddf"):
        results.predict(interval="confidence")
    unequal = fit("orthodont ident", True).with_ddf("normal")
    with pytest.raises(ModelError, match="residuals of one variance"):
        unequal.predict(interval="prediction")


def test_convergence_is_checked_in_the_residuals_parameters():
    found = fit("ovary ar1", True).check_convergence()
    assert found.ok
    assert 0 < found.smallest_curvature < 1
    data = rows(3)
    model = LinearMixed("y ~ x + (1 | g)", data, correlation="ar1(day | g)")
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        early = model.fit(maxiter=1, tol=1e-9)
    assert not early.check_convergence().ok


def test_nested_residual_covariances_are_compared():
    data = rows(3)

    def results(**options):
        return LinearMixed("y ~ x + (1 | g)", data, **options).fit()

    small = results(variance="ident(sex)", correlation="ar1(day|g)")
    large = results(variance="exp(x) * ident( sex )", correlation="ar1(day | g)")
    test = large.compare_lr_test(small)
    assert test.df_num == 1
    assert test.statistic == pytest.approx(2 * (large.llf - small.llf))
    with pytest.raises(ValueError, match="not nested"):
        large.compare_lr_test(results(variance="ident(C(day))"))


def test_variables_far_from_zero_are_refused():
    """Their factor is one only far outside the data; the advice works."""
    data = rows(3)
    data["year"] = 2000.0 + data["day"]
    formula = "y ~ x + (1 | g)"
    for variance in ("exp(year)", "power(year)"):
        with pytest.raises(DesignError, match="far from where") as caught:
            LinearMixed(formula, data, variance=variance).fit()
        instead = str(caught.value).rpartition("write ")[2].rstrip(".")
        assert LinearMixed(formula, data, variance=instead).fit().converged


def test_missing_values_of_the_residuals_variables_are_dropped():
    data = rows()
    data.loc[3, "day"] = np.nan
    results = LinearMixed("y ~ x + (1 | g)", data, correlation="ar1(day | g)").fit()
    assert results.nobs == len(data) - 1


@pytest.mark.parametrize(
    "what",
    ("profile", "bootstrap", "influence", "cross_validate", "refit_many",
     "get_robustcov_results", "leverage", "cooks_distance", "caic"),
)  # fmt: skip
def test_what_is_for_independent_residuals(what):
    results = fit("ovary ar1", True)
    with pytest.raises(ModelError, match="independent residuals"):
        attribute = getattr(results, what)
        attribute("Mare") if what == "influence" else attribute()
    with pytest.raises(ModelError, match="satterthwaite"):
        results.with_ddf("kenward-roger")
    with pytest.raises(ModelError, match="exact method"):
        results.model.fit(method="vi")
    with pytest.raises(ModelError, match="independent residuals"):
        ds.power(results, test="Time", along="Mare", sizes=[20], n_sim=2)
    with pytest.raises(ModelError, match="no likelihood row by row"):
        results.get_margeff()
    assert results.get_robustcov_results("nonrobust") is results


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"correlation": "foo(1 | g)"}, ModelError, "correlation= is one of"),
        ({"correlation": "ar1"}, ModelError, "correlation= is one of"),
        ({"correlation": "ou(1 | g)"}, ModelError, "ou needs times"),
        ({"correlation": "cs(day | g)"}, ModelError, "knows no order"),
        ({"correlation": "ar1(x + day | g)"}, ModelError, "One time"),
        ({"correlation": 3}, ModelError, "correlation= is one of"),
        ({"correlation": "ar1(time | g)"}, DesignError, "whole numbers"),
        ({"correlation": "ar1(one | g)"}, DesignError, "times repeat"),
        ({"correlation": "cs(1 | g)"}, DesignError, "says the same as"),
        ({"correlation": "ar1(1 | sex)"}, DesignError, "must be in one level of g"),
        ({"correlation": "ar1(1 | gg)"}, DesignError, "no column 'gg'"),
        ({"correlation": "ar1(1 | row)"}, DesignError, "every group has one row"),
        ({"variance": "power"}, ModelError, "variance= is"),
        ({"variance": "power(day | g)"}, ModelError, "no bar"),
        ({"variance": "ident(day)"}, DesignError, r"ident\(C\(x\)\)"),
        ({"variance": "power(day)"}, DesignError, "never zero"),
        ({"variance": "exp(one)"}, DesignError, "constant or determine"),
        ({"variance": "exp(day) * exp(day)"}, DesignError, "constant or determine"),
        ({"variance": "power(sex)"}, DesignError, "one column of numbers"),
    ],
)
def test_bad_input(options, error, message):
    data = rows()
    data["one"], data["row"] = 1, [f"r{j}" for j in range(len(data))]
    data.loc[0, "day"] = 0
    with pytest.raises(error, match=message):
        LinearMixed("y ~ x + (1 | g)", data, **options).fit()
