"""Fits by loss: errors, stages, monitoring, constraints, penalties, saved files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import deepstats as ds
from deepstats.errors import ConvergenceWarning, ModelError, RankWarning
from deepstats.models.lossreg import lossreg

from .data import sample


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return sample(600)


def smooth_absolute(prediction, y):
    return torch.sqrt((prediction - y) ** 2 + 0.01)


def mean_of_rows(prediction, y):
    return torch.nn.functional.binary_cross_entropy(prediction, y)


def gap_between_groups(prediction, y, group):
    first, second = prediction[group == 0].mean(), prediction[group == 1].mean()
    return ((prediction - y) ** 2).mean() + 5 * (first - second) ** 2


TEXT = "hit ~ x + z + grade"


def test_log_loss_is_the_logit_with_robust_errors(frame):
    ours = lossreg(TEXT, frame, loss="logloss").fit()
    logit = ds.logit(TEXT, frame).fit("HC0")
    np.testing.assert_allclose(ours.params, logit.params, rtol=1e-9)
    np.testing.assert_allclose(ours.bse, logit.bse, rtol=1e-8)
    assert ours.loss_value == pytest.approx(-logit.llf / logit.nobs, rel=1e-12)
    groups = {"groups": "group"}
    clustered = ours.get_robustcov_results("cluster", **groups)
    expected = logit.get_robustcov_results("cluster", **groups)
    np.testing.assert_allclose(clustered.bse, expected.bse, rtol=1e-7)


@pytest.mark.parametrize("loss", ["poisson", "squared"])
def test_weights_and_offset_as_in_a_glm(loss, frame):
    outcome = "count" if loss == "poisson" else "y"
    text = f"{outcome} ~ x + z + offset(0.3 * v)"
    ours = lossreg(text, frame, loss=loss, weights="w").fit()
    family = "poisson" if loss == "poisson" else "gaussian"
    glm = ds.glm(text, frame, family=family, weights="w").fit("HC0")
    np.testing.assert_allclose(ours.params, glm.params, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.bse, glm.bse, rtol=1e-7)


def test_own_function_gives_what_the_built_in_loss_gives(frame):
    def brier(prediction, y):
        return (prediction - y) ** 2

    own = lossreg(TEXT, frame, loss=brier, link="sigmoid").fit()
    built_in = lossreg(TEXT, frame, loss="brier").fit()
    np.testing.assert_allclose(own.params, built_in.params, rtol=1e-7)
    np.testing.assert_allclose(own.bse, built_in.bse, rtol=1e-6)


def test_a_mean_of_rows_has_scores_of_rows(frame):
    own = lossreg(TEXT, frame, loss=mean_of_rows, link="sigmoid").fit()
    logit = ds.logit(TEXT, frame).fit("HC0")
    assert own.cov_type == "HC0"
    np.testing.assert_allclose(own.params, logit.params, rtol=1e-7)
    np.testing.assert_allclose(own.bse, logit.bse, rtol=1e-6)


def test_a_loss_of_the_whole_sample_with_its_column(frame):
    text, kind = "hit ~ x + z + group", {"cov_type": "none"}
    plain = lossreg(text, frame, loss="brier").fit(**kind)
    model = lossreg(text, frame, loss=gap_between_groups, link="sigmoid")
    fair = model.fit(**kind)
    assert model.column_levels == {"group": ("u", "v")}
    assert not model.objective.composite.loss.decomposable
    assert fair.kkt_residual < 1e-9
    p, q = plain.predict(frame), fair.predict(frame)
    on = frame["group"] == "u"
    before = abs(p[on].mean() - p[~on].mean())
    assert abs(q[on].mean() - q[~on].mean()) < before
    with pytest.raises(ModelError, match="whole sample"):
        model.fit("HC0")


def test_derivatives_of_a_whole_sample_loss(frame):
    model = lossreg(TEXT, frame, loss=gap_between_groups, link="sigmoid",
                    loss_columns={"group": "group"})  # fmt: skip
    model.fit(cov_type="none")
    b = np.full(6, 0.1)
    found, h = model.objective.at(b), 1e-5
    for j in range(6):
        e = np.eye(6)[j] * h
        up, down = model.objective.at(b + e), model.objective.at(b - e)
        slope = (up.value - down.value) / (2 * h)
        assert found.gradient[j] == pytest.approx(slope, abs=1e-9)
        bend = (up.gradient - down.gradient) / (2 * h)
        np.testing.assert_allclose(found.hessian[j], bend, atol=1e-8)


def test_stages_history_and_picture(frame):
    train, test = frame[:400], frame[400:]
    fit = lossreg(TEXT, train, loss="focal(2)").fit(
        stages=["logloss", ("brier", 2)], start="zero", eval_data=test
    )
    history = fit.loss_history
    assert list(dict.fromkeys(history["stage"])) == ["logloss", "brier", "focal(2)"]
    assert (history["stage"] == "brier").sum() <= 3
    last = history[history["stage"] == "focal(2)"]
    assert (np.diff(last["objective"]) <= 1e-12).all()
    p = fit.predict(test)
    y = test["hit"]
    outside = np.where(y == 1, -((1 - p) ** 2) * np.log(p), -(p**2) * np.log(1 - p))
    assert last["out_of_sample"].iloc[-1] == pytest.approx(outside.mean(), rel=1e-9)
    ax = fit.plot_loss()
    assert len(ax.lines) == 2 and ax.get_legend() is not None
    shown = fit.plot_loss(skip=1).lines[0].get_xdata()
    assert min(shown) == 1
    with pytest.raises(ValueError, match="leaves none"):
        fit.plot_loss(skip=1000)


def test_early_stopping_returns_the_best_outside():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 12))
    data = pd.DataFrame(X, columns=[f"x{j}" for j in range(12)])
    data["hit"] = (rng.uniform(size=60) < 1 / (1 + np.exp(-X[:, 0]))).astype(int)
    other = data.assign(hit=rng.permutation(data["hit"]))
    text = "hit ~ " + " + ".join(data.columns[:-1])
    model = lossreg(text, data, loss="logloss")
    fit = model.fit(start="zero", eval_data=other, early_stopping=1)
    history = fit.loss_history
    best = history["out_of_sample"].min()
    assert model._outside(other, model.composite).value(
        fit.params.to_numpy()
    ) == pytest.approx(best)
    assert fit.fit_info.facts["stopped"] and fit.cov_type == "none"
    assert "Stopped early" in fit.summary().as_text()
    with pytest.raises(ModelError, match="eval_data"):
        model.fit(early_stopping=1)


@pytest.mark.parametrize("loss", ["logloss", "absolute"])
def test_constraints_hold_and_multipliers_are_checked(loss, frame):
    outcome = "hit" if loss == "logloss" else "y"
    fit = lossreg(
        f"{outcome} ~ x + z + v + grade", frame, loss=loss,
        constraints=[{"z": "nonneg", "grade": "decreasing", "v": (-0.1, 0.1)},
                     "x <= 0.5"],
    ).fit(cov_type="none")  # fmt: skip
    b = fit.params
    ladder = [0.0, *(b[f"grade[T.{g}]"] for g in "bcd")]
    assert (np.diff(ladder) <= 1e-12).all()
    assert b["z"] == 0.0 and b["x"] == pytest.approx(0.5) and abs(b["v"]) <= 0.1
    assert fit.kkt_residual < 1e-9
    assert "z nonneg" in fit.active_constraints


def test_constrained_optimum_beside_a_general_solver(frame):
    from scipy.optimize import minimize

    model = lossreg(
        "count ~ x + z + v", frame, loss="poisson", penalty="ridge", lam=0.1,
        constraints=["x + z = 0.5", "v >= 0.2", "x - v >= 0.1"],
    )  # fmt: skip
    fit = model.fit()
    problem = model.problem()
    found = minimize(
        problem.value, np.array([0.0, 0.4, 0.1, 0.2]), method="SLSQP",
        constraints=[
            {"type": "eq", "fun": lambda b: b[1] + b[2] - 0.5},
            {"type": "ineq", "fun": lambda b: [b[3] - 0.2, b[1] - b[3] - 0.1]},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert fit.objective <= found.fun + 1e-10
    np.testing.assert_allclose(fit.params, found.x, atol=1e-5)
    # On the face of the constraints: what the equation ties moves together.
    if "x + z = 0.5" in fit.fit_info.facts["constraints"]:
        assert fit.bse["x"] == pytest.approx(fit.bse["z"])


def test_group_lasso_conditions(frame):
    lam = 0.03
    model = lossreg(
        "hit ~ x + z + v + grade", frame, loss="logloss", penalty="group", lam=lam,
        standardize=False,
    )  # fmt: skip
    fit = model.fit()
    X, y = model.objective.X.numpy(), frame["hit"].to_numpy()
    b = fit.params.to_numpy()
    slope = X.T @ (1 / (1 + np.exp(-X @ b)) - y) / len(y)
    terms = model._terms()
    zero = 0
    for at in terms.values():
        length, root = np.linalg.norm(b[at]), lam * np.sqrt(len(at))
        if length == 0:
            zero += 1
            assert np.linalg.norm(slope[at]) <= root + 1e-10
        else:
            np.testing.assert_allclose(slope[at], -root * b[at] / length, atol=1e-9)
    assert 0 < zero < len(terms)


def test_callable_penalty_and_lbfgs(frame):
    def quartic(b):
        return (b[1:] ** 4).sum()

    model = lossreg(TEXT, frame, loss="logloss", penalty=quartic, lam=0.1)
    newton, lbfgs = model.fit(), model.fit(method="lbfgs")
    assert newton.kkt_residual < 1e-9 and lbfgs.kkt_residual < 1e-6
    assert newton.objective == pytest.approx(lbfgs.objective, rel=1e-9)
    ours = newton.objective - newton.loss_value
    assert ours == pytest.approx(0.1 * (newton.params.iloc[1:] ** 4).sum())


def test_bootstrap_of_a_median(frame):
    fit = lossreg("y ~ x", frame, loss="absolute").fit(cov_kwds={"reps": 60})
    assert fit.cov_type == "bootstrap"
    boot = fit.bootstrap(replications=60, seed=0)
    np.testing.assert_allclose(boot.bse, fit.bse)
    robust = ds.quantreg("y ~ x", frame).fit(0.5).bse
    assert ((fit.bse / robust) - 1).abs().max() < 0.4
    clusters = fit.bootstrap("cluster", 20, groups="grade", seed=1)
    assert clusters.params.shape == (20, 2)


def test_cross_validation_and_gcv(frame):
    text = "y ~ x + z + v + grade"
    model = lossreg(text, frame, penalty="lasso", lam="cv")
    fit = model.fit(folds=5, seed=3)
    path = model.path()
    table = path.cross_validate(5, 3)
    assert fit.lam == pytest.approx(table["lam"][table["loss"].idxmin()])
    assert path.choose("1se", 5, 3) >= path.choose("cv", 5, 3)
    assert list(fit.choice.columns) == ["lam", "loss", "std_error"]
    ridge = lossreg(text, frame, penalty="ridge", lam="gcv").fit()
    m = lossreg(text, frame, penalty="ridge", lam=ridge.lam)
    X, y = m.objective.X.numpy(), frame["y"].to_numpy()
    D = np.diag(m.penalty().l2)
    hat = X @ np.linalg.solve(2 * X.T @ X / len(y) + D, 2 * X.T / len(y))
    score = ((y - hat @ y) ** 2).mean() / (1 - np.trace(hat) / len(y)) ** 2
    assert ridge.choice["gcv"].min() == pytest.approx(score, rel=1e-9)
    assert len(path.plot().lines) >= 6
    assert path.table()["nonzero"].is_monotonic_increasing


def test_paths_of_other_losses_are_warm_started_fits(frame):
    for loss, penalty in (
        ("huber", "lasso"),
        ("logloss", "group"),
        ("absolute", "lasso"),
    ):
        outcome = "hit" if loss == "logloss" else "y"
        model = lossreg(
            f"{outcome} ~ x + z + v", frame, loss=loss, penalty=penalty, lam=0.1
        )
        path = model.path(count=8)
        assert path.residuals.max() < 1e-6
        # At the first strength itself a linear program may have many minimisers.
        above = model.path([1.001 * path.lams[0]])
        np.testing.assert_allclose(above.coefs[0][1:], 0, atol=1e-9)
        model.lam = float(path.lams[4])
        single = model.fit(cov_type="none")
        np.testing.assert_allclose(path.coefs[4], single.params, atol=1e-5)


def test_saved_and_loaded(frame, tmp_path):
    fit = lossreg(
        TEXT, frame, loss="brier", penalty="ridge", lam=0.01,
        constraints={"grade": "increasing"},
    ).fit(eval_data=frame[:50])  # fmt: skip
    again = ds.load(fit.save(tmp_path / "brier.ds"))
    pd.testing.assert_series_equal(again.params, fit.params)
    pd.testing.assert_frame_equal(again.loss_history, fit.loss_history)
    pd.testing.assert_series_equal(again.predict(frame), fit.predict(frame))
    assert again.summary().as_text() == fit.summary().as_text()
    own = lossreg("y ~ x", frame, loss=smooth_absolute).fit()
    loaded = ds.load(own.save(tmp_path / "own.ds"))
    pd.testing.assert_series_equal(loaded.predict(frame), own.predict(frame))
    with pytest.raises(ModelError, match="cannot be saved"):
        lossreg(TEXT, frame, loss="brier", link=torch.special.ndtr).fit().save(
            tmp_path / "link.ds"
        )


def test_what_a_loss_does_not_have(frame):
    fit = lossreg(TEXT, frame, loss="brier").fit()
    for name in ("llf", "aic", "bic", "resid_pearson"):
        with pytest.raises(ModelError, match="no likelihood"):
            getattr(fit, name)
    with pytest.raises(ModelError, match="HC0"):
        fit.get_robustcov_results("oim")


def test_starts(frame):
    model = lossreg(TEXT, frame, loss="brier")
    best = model.fit().objective
    previous = lossreg("hit ~ x", frame, loss="logloss").fit()
    for start in ("zero", "ols", "logit", previous, np.zeros(6)):
        assert model.fit(start=start).objective == pytest.approx(best, rel=1e-10)
    with pytest.raises(ValueError, match="start needs 6"):
        model.fit(start=[1.0, 2.0])


def test_no_convergence_is_said(frame):
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        fit = lossreg("count ~ x + z", frame, loss="poisson").fit(maxiter=1)
    assert not fit.converged and fit.kkt_residual > 1e-9
    assert "NOT CONVERGED" in fit.summary().as_text()


def test_aliased_columns_are_dropped_only_without_a_penalty(frame):
    with pytest.warns(RankWarning, match="twice"):
        fit = lossreg("y ~ x + twice", frame.assign(twice=2 * frame["x"])).fit()
    assert list(fit.params.index) == ["Intercept", "x"]
    ridge = lossreg(
        "y ~ x + twice", frame.assign(twice=2 * frame["x"]), penalty="ridge", lam=0.1
    ).fit()
    assert ridge.params["x"] == pytest.approx(2 * ridge.params["twice"])
