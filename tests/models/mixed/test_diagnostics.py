"""Leverage, influence, explained variance and convergence against lme4 and algebra."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import ConvergenceWarning, DesignError, SingularFitWarning
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.diagnostics import (
    GroupInfluence,
    _penalty,
    check_convergence,
    principal_components,
)
from deepstats.models.mixed.fitted import Fitted
from deepstats.models.mixed.search import Found

from .brute import Brute
from .data import CASES, fit, load, sleepstudy_weights


@pytest.fixture(scope="module")
def slope():
    return fit("sleepstudy_slope_REML")


def quiet(formula, data, reml=True, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return LinearMixed(formula, data, **options).fit(reml)


# -- rows ----------------------------------------------------------------------------

# MixedModels.jl's test/pls.jl prints the first two; the others are lme4's hatvalues.
LEVERAGES = {
    "dyestuff_ML": (0.15650534, 4.69516026),
    "sleepstudy_slope_ML": (None, 28.6116533053),
    "sleepstudy_slope_REML": (None, 29.0221239506),
    "penicillin_crossed_REML": (0.1907802734, 27.4723593656),
    "pastes_nested_REML": (0.483419447, 29.0051668188),
}


@pytest.mark.parametrize("case", LEVERAGES)
def test_leverage_of_lme4(case):
    """Peers stop short of the optimum, which moves leverages by up to 1e-5."""
    first, total = LEVERAGES[case]
    h = fit(case).leverage
    assert h.sum() == pytest.approx(total, rel=1e-5)
    if first is not None:
        assert h.iloc[0] == pytest.approx(first, rel=2e-5)


def test_leverage_is_the_diagonal_of_the_hat_matrix():
    """``I - P / w`` (Demidenko & Stukel 2005), with weights and crossed slopes."""
    data = sleepstudy_weights().assign(half=np.tile([0, 1], 90))
    r = quiet("Reaction ~ Days + (Days | Subject) + (1 | half)", data, weights="w")
    brute = Brute(r.model, r.mixed.criterion, r.mixed.x)
    expected = 1 - np.diag(brute.P) / brute.w
    np.testing.assert_allclose(r.leverage, expected, rtol=1e-9)


def test_leverage_is_the_derivative_of_the_fit(slope):
    data = load("sleepstudy")
    x = slope.mixed.x

    def fitted_at(y):
        model = LinearMixed(
            "Reaction ~ Days + (Days | Subject)", data.assign(Reaction=y)
        )
        model.prepare()
        return Brute(model, slope.mixed.criterion, x)

    y = data["Reaction"].to_numpy(dtype=float)
    for row in (0, 77, 179):
        b = fitted_at(y + 10.0 * (np.arange(180) == row))
        a = fitted_at(y)
        moved = b.y - b.P @ b.y - (a.y - a.P @ a.y)
        assert moved[row] / 10 == pytest.approx(slope.leverage.iloc[row], rel=1e-8)


def test_cooks_distance_of_lme4():
    """MixedModels' test/pls.jl holds them to 1e-5; lme4 1.1-31 printed these."""
    found = fit("sleepstudy_intercept_ML").cooks_distance
    first = [
        0.12707143, 0.12678051, 0.24309599, 0.00024371, 0.03145029, 0.29540519,
        0.04550505, 0.35527233, 0.19848059, 0.45188048,
    ]  # fmt: skip
    np.testing.assert_allclose(found[:10], first, atol=1e-7)
    assert found.sum() == pytest.approx(10.12598964, abs=1e-6)
    assert found.max() == pytest.approx(1.05538314, abs=1e-6)
    assert found.iloc[-1] == pytest.approx(0.00001511, abs=1e-7)


# -- groups --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def influence(slope):
    return slope.influence("Subject")


def test_influence_of_lme4(influence):
    """Refits of lme4 1.1-31 without subjects 308, 335 and 372.

    Its theta stops up to 3e-4 short, at a likelihood lower than ours by 5e-9.
    """
    assert isinstance(influence, GroupInfluence)
    frame = influence.frame.set_axis(influence.frame.index.map(str))
    rows = frame.loc[["308", "335", "372"]]
    expected = [
        [251.8293658, 9.80273205, 1.1141258410, 0.01307065242, 0.2330811830, 23.647010],
        [250.7210114, 11.25248125, 0.9696692564, 0.02996863760, 0.1908399801, 26.18850],
        [250.4851228, 10.41841611, 0.9640831177, 0.01331373070, 0.2329225567, 26.19116],
    ]
    found = rows.drop(columns="converged").to_numpy(dtype=float)
    np.testing.assert_allclose(found[:, :2], np.array(expected)[:, :2], rtol=1e-7)
    np.testing.assert_allclose(found[:, 2:], np.array(expected)[:, 2:], rtol=5e-4)
    assert influence.converged.all()


def test_dfbetas_and_cook_of_lme4(influence):
    """Its signs are the other way round, and its distance has (m - p) / m more."""
    expected = [[0.0587248823, -0.4489274387], [0.4108749216, 0.3098968980]]
    np.testing.assert_allclose(-influence.dfbetas[:2], expected, rtol=1e-4)
    theirs = influence.cooks_distance * (18 - 2) / 18
    np.testing.assert_allclose(
        theirs[:3], [0.08214840507, 0.13202079796, 0.09824074429], rtol=1e-4
    )


@pytest.mark.parametrize("reml", [True, False])
def test_influence_is_a_refit(reml):
    """By a column that is no grouping factor, with weights, crossed and nested."""
    rng, n = np.random.default_rng(4), 160
    data = pd.DataFrame({
        "x": rng.normal(size=n), "w": rng.uniform(0.5, 2, n),
        "g": rng.integers(0, 12, n), "h": rng.integers(0, 9, n),
        "site": rng.integers(0, 4, n),
    })  # fmt: skip
    slopes = rng.normal(size=(12, 2)) * [1.0, 0.7]
    data["y"] = slopes[data.g, 0] + slopes[data.g, 1] * data.x
    data["y"] += rng.normal(size=9)[data.h] + rng.normal(size=n) / np.sqrt(data.w)
    formula = "y ~ x + (x | g) + (1 | h)"
    r = quiet(formula, data, reml, weights="w")
    for group in ("site", "h"):
        found = r.influence(group)
        assert list(found.frame.index) == sorted(data[group].unique())
        for level in (0, 3):
            kept = data[data[group] != level]
            again = quiet(formula, kept, reml, weights="w")
            row = found.frame.loc[level]
            np.testing.assert_allclose(
                row[["Intercept", "x"]].astype(float), again.params, rtol=1e-6
            )
            np.testing.assert_allclose(
                row[list(again.theta.index)].astype(float), again.theta, atol=1e-5
            )
            assert row["sigma"] == pytest.approx(again.sigma, rel=1e-6)
            np.testing.assert_allclose(
                found.std_errors.loc[level], again.bse, rtol=1e-5
            )


def test_influence_of_a_level_that_alone_tells_of_an_effect():
    rng = np.random.default_rng(6)
    data = pd.DataFrame({"g": np.repeat(np.arange(8), 10)})
    data["only"] = (data.g == 3) * rng.normal(size=80)
    data["y"] = rng.normal(size=8)[data.g] + rng.normal(size=80)
    r = quiet("y ~ only + (1 | g)", data)
    found = r.influence("g")
    assert found.frame["only"].isna().tolist() == [g == 3 for g in range(8)]
    assert found.frame["Intercept"].notna().all()
    assert list(r.model.design.X.names) == ["Intercept", "only"]
    assert r.model.design.spec.kept == {}


def test_influence_needs_a_column(slope):
    with pytest.raises(DesignError, match="Subjekt"):
        slope.influence("Subjekt")


# -- how much is explained -----------------------------------------------------------


def test_r_squared_and_icc_by_their_formulas(slope):
    """By MuMIn's formulas (Johnson 2014), written out for this model."""
    days = np.tile(np.arange(10.0), 18)
    V = slope.mixed.covariances[0]
    Z = np.column_stack([np.ones(180), days])
    F = np.var(slope.params["Days"] * days, ddof=1)
    R = np.trace(Z @ V @ Z.T) / 180
    E = slope.sigma**2
    r2 = slope.r2()
    assert r2["marginal"] == pytest.approx(F / (F + R + E), rel=1e-10)
    assert r2["conditional"] == pytest.approx((F + R) / (F + R + E), rel=1e-10)
    icc = slope.icc()
    assert icc.loc["Subject", "adjusted"] == pytest.approx(R / (R + E), rel=1e-10)
    assert icc.loc["all", "unadjusted"] == pytest.approx(R / (F + R + E), rel=1e-10)


def test_icc_by_factor():
    r = fit("penicillin_crossed_REML")
    V = r.varcorr.set_index("grp")["vcov"]
    expected = V / V.sum()
    icc = r.icc()
    for name in ("plate", "sample"):
        assert icc.loc[name, "adjusted"] == pytest.approx(expected[name], rel=1e-10)
        assert icc.loc[name, "unadjusted"] == pytest.approx(expected[name], rel=1e-10)
    assert icc.loc["all", "adjusted"] == pytest.approx(1 - expected["Residual"])


def test_offset_is_not_explained():
    data = load("sleepstudy").assign(off=np.linspace(0, 1000, 180))
    data["Reaction"] += data["off"]
    r = LinearMixed("Reaction ~ Days + (1 | Subject)", data, offset="off").fit()
    expected = fit("sleepstudy_intercept_REML").r2()
    np.testing.assert_allclose(r.r2(), expected, rtol=1e-5)


@pytest.mark.parametrize("reml", [True, False])
def test_penalty_of_conditional_aic_is_unbiased(reml):
    """K is half the mean optimism of the log-density of new responses of the groups.

    The covariance over sigma^2 is known and sigma is estimated, as in the theorem of
    Vaida & Blanchard (2005).
    """
    rng, groups, size = np.random.default_rng(8), 6, 4
    n, p = groups * size, 2
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    Z = np.kron(np.eye(groups), np.ones((size, 1)))
    Sigma = np.eye(n) + 1.5 * Z @ Z.T
    inverse = np.linalg.inv(Sigma)
    half = inverse @ X
    P = inverse - half @ np.linalg.solve(X.T @ half, half.T)
    H = np.eye(n) - P
    count = 200_000
    b = np.sqrt(1.5) * rng.normal(size=(groups, count))
    mean = Z @ b
    y = mean + rng.normal(size=(n, count))
    new = mean + rng.normal(size=(n, count))
    s2 = (y * (P @ y)).sum(0) / (n - p if reml else n)
    fitted = H @ y
    optimism = (((new - fitted) ** 2 - (y - fitted) ** 2).sum(0)) / s2
    error = optimism.std() / np.sqrt(count)
    expected = 2 * _penalty(np.trace(H), n, p, reml, None)
    assert abs(optimism.mean() - expected) < 4 * error
    assert error < 0.005 * expected
    known = ((new - fitted) ** 2 - (y - fitted) ** 2).sum(0).mean()
    assert known == pytest.approx(2 * _penalty(np.trace(H), n, p, reml, 1.0), rel=0.01)


def test_conditional_aic_of_a_fit():
    """The log-density itself, with weights."""
    data = sleepstudy_weights()
    r = quiet("Reaction ~ Days + (Days | Subject)", data, weights="w")
    from scipy.stats import norm

    density = norm.logpdf(
        data["Reaction"], r.fittedvalues, r.sigma / np.sqrt(data["w"])
    ).sum()
    K = _penalty(r.leverage.sum(), 180, 2, True, None)
    assert r.caic == pytest.approx(-2 * density + 2 * K, rel=1e-10)


def test_principal_components_of_lme4(slope):
    """Of rePCA: standard deviations and rotation, up to the sign of a component."""
    found = principal_components(slope.mixed)["Subject"]
    np.testing.assert_allclose(found["sd"], [0.9668680, 0.2308798], rtol=1e-4)
    np.testing.assert_allclose(found["proportion"], [0.9460, 0.05395], atol=1e-4)
    loadings = found[["Intercept", "Days"]].abs()
    np.testing.assert_allclose(
        loadings, [[0.99986158, 0.01663769], [0.01663769, 0.99986158]], rtol=1e-4
    )


def test_principal_components_of_terms_on_one_factor():
    found = fit("sleepstudy_uncorr_REML").pca()["Subject"]
    sd = np.sort(fit("sleepstudy_uncorr_REML").theta)[::-1]
    np.testing.assert_allclose(found["sd"], sd, rtol=1e-10)
    assert found["cumulative"].iloc[-1] == pytest.approx(1)


# -- the optimum ---------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if "insteval" not in c])
def test_no_false_alarms(case):
    found = check_convergence(fit(case).mixed)
    assert found.ok, str(found)
    assert found.decrement < 1e-5
    assert bool(found.singular) == ("singular" in case)


def test_no_false_alarms_at_the_edge():
    """Correlated slopes that are not there, in units a thousand times too large."""
    rng = np.random.default_rng(9)
    singular = 0
    for _ in range(25):
        data = pd.DataFrame({"g": np.repeat(np.arange(8), 5), "x": rng.normal(size=40)})
        data["z"] = 1e6 * rng.normal(size=40)
        data["y"] = 0.3 * rng.normal(size=8)[data.g] + rng.normal(size=40)
        r = quiet("y ~ x + (x + z | g)", data)
        found = r.check_convergence()
        singular += bool(found.singular)
        assert found.ok, str(found)
    assert singular > 5


def moved(results, x):
    """The same fit, stopped elsewhere."""
    fitted = results.mixed
    found = Found(fitted.criterion(x), True, 1, 1, 0.0, "said to have converged")
    return Fitted(found, fitted.criterion, fitted.compute)


def test_alarm_away_from_the_optimum(slope):
    x = slope.mixed.x
    found = check_convergence(moved(slope, x * 1.1))
    assert not found.ok
    assert found.decrement > 0.1
    assert "still falls" in str(found)
    near = check_convergence(moved(slope, x * (1 + 1e-5)))
    assert near.ok


def test_alarm_on_a_wrong_edge():
    r = fit("dyestuff_REML")
    found = check_convergence(moved(r, np.zeros(1)))
    assert not found.ok
    assert "the estimate on the edge is not the optimum" in found.messages[0]
    assert np.isnan(found.smallest_curvature)


def test_alarm_on_a_saddle(slope):
    """No slope variance at all: stationary in the triangle, and no optimum."""
    intercept = fit("sleepstudy_intercept_REML")
    root = np.diag([intercept.theta.iloc[0], 0.0])
    x = slope.mixed.structure.from_raw_roots([root])
    fitted = moved(slope, x)
    found = check_convergence(fitted)
    assert not found.ok
    assert any("edge" in m or "saddle" in m for m in found.messages)


def test_alarm_after_too_few_steps():
    data = load("sleepstudy")
    model = LinearMixed("Reaction ~ Days + (Days | Subject)", data)
    with pytest.warns(ConvergenceWarning):
        r = model.fit(maxiter=1, start=[5.0, 3.0, 4.0])
    assert not r.check_convergence().ok
