"""`ds.simple_weights` from the frame to the score card."""

from __future__ import annotations

import sqlite3

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import DesignError, InfeasibleError, ModelError

from .data import VISITS, compas, doctor_visits

SEED = 3


def frame(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(SEED)
    data = pd.DataFrame({
        "a": rng.integers(0, 2, n), "b": rng.uniform(size=n),
        "g": rng.choice(["low", "it's", "high"], n), "f": rng.uniform(size=n) < 0.4,
        "w": rng.integers(1, 4, n),
    })  # fmt: skip
    eta = 2.3 * data["a"] - 1.4 * data["b"] + 1.2 * (data["g"] == "low") + data["f"]
    data["y"] = eta + rng.normal(size=n)
    data["event"] = (rng.uniform(size=n) < 1 / (1 + np.exp(1 - eta))).astype(int)
    return data


FORMULA = "y ~ a + b + C(g) + f"


def test_doctor_visits():
    """Near-integer weights from a warm start are the rounded OLS; so is the best."""
    data = doctor_visits()
    text = "drvisits ~ " + " + ".join(VISITS)
    found = ds.simple_weights(text, data)
    ols = np.round(ds.ols(text, data).fit().params[list(VISITS)])
    table = found.comparison()
    near = table.loc["near-integer penalty, rounded", list(VISITS)]
    np.testing.assert_array_equal(near.astype(float), ols)
    penalised = table.loc["near-integer penalty", list(VISITS)].astype(float)
    np.testing.assert_allclose(penalised, ols, atol=1e-6)
    assert found.optimal and found.loss_value == pytest.approx(41.695, abs=5e-4)
    assert found.loss_value <= table.loc["round and refit", "loss"] + 1e-12
    np.testing.assert_array_equal(found.points, ols)


def test_correlated_columns_where_rounding_is_far_off():
    """Means of ten samples of the notes' design: 10 columns correlated .9."""
    rng, excess = np.random.default_rng(0), []
    p = 10
    root = np.linalg.cholesky(0.9 * np.ones((p, p)) + 0.1 * np.eye(p))
    for _ in range(10):
        X = rng.normal(size=(500, p)) @ root.T
        y = X @ rng.uniform(-2, 2, p) + rng.normal(size=500)
        data = pd.DataFrame(X, columns=[f"x{j}" for j in range(p)]).assign(y=y)
        found = ds.simple_weights("y ~ " + " + ".join(data.columns[:-1]), data)
        assert found.optimal
        table = found.comparison()["excess"]
        excess.append((table["best points"], table["round and refit"]))
    best, rounded = np.mean(excess, axis=0)
    assert 0 < best < rounded / 3


def test_compas_five_terms():
    data, columns = compas()
    text = "y ~ " + " + ".join(columns)
    found = ds.simple_weights(text, data, loss="logloss", max_terms=5)
    assert found.terms == 5 and found.optimal
    assert found.loss_value <= 0.54813
    p = found.predict()
    loss = -np.mean(np.where(data["y"] == 1, np.log(p), np.log1p(-p)))
    assert found.loss_value == pytest.approx(loss, rel=1e-10)
    assert found.points.abs().max() <= 5 and found.step > 0


def test_loss_is_that_of_the_predictions():
    data = frame()
    for options in ({}, {"intercept": "integer"}, {"step": 0.5, "max_terms": 2}):
        found = ds.simple_weights(FORMULA, data, **options)
        assert found.loss_value == pytest.approx(
            np.mean((data["y"] - found.predict()) ** 2), rel=1e-10
        )
        assert found.optimal and found.gap == pytest.approx(0.0, abs=1e-9)
        assert found.terms <= options.get("max_terms", 5)
        rows = found.comparison()
        mine = rows["step"] == found.step
        whole = rows.index != "real coefficients"
        whole &= rows.index != "near-integer penalty"
        assert (rows.loc[mine & whole, "loss"] >= found.loss_value - 1e-10).all()
    assert found.step == 0.5
    whole = ds.simple_weights(FORMULA, data, intercept="integer")
    assert whole.intercept == round(whole.intercept)
    free = ds.simple_weights(FORMULA, data)
    assert free.loss_value <= whole.loss_value


def test_logistic_options():
    data = frame()
    free = ds.simple_weights("event ~ a + b + C(g) + f", data, loss="logloss")
    fixed = ds.simple_weights("event ~ a + b + C(g) + f", data, loss="logloss", step=1)
    whole = ds.simple_weights(
        "event ~ a + b + C(g) + f", data, loss="logloss", intercept="integer"
    )
    assert free.loss_value <= min(fixed.loss_value, whole.loss_value) + 1e-12
    assert fixed.step == 1
    ratio = whole.intercept / whole.step
    assert ratio == pytest.approx(round(ratio), abs=1e-9)
    for found in (free, fixed, whole):
        p = found.predict()
        y = data["event"]
        loss = -np.mean(np.where(y == 1, np.log(p), np.log1p(-p)))
        assert found.optimal and found.loss_value == pytest.approx(loss, rel=1e-9)


def test_points_of_a_free_multiplier_have_no_common_divisor():
    data = frame()
    found = ds.simple_weights("event ~ a", data, loss="logloss")
    assert found.points["a"] == 1


def test_outcome_that_no_column_explains():
    y = [0, 1] * 20
    data = {"y": y, "x": [0, 0, 1, 1] * 10}
    found = ds.simple_weights("y ~ x", data, loss="logloss")
    assert found.terms == 0 and found.loss_value == pytest.approx(np.log(2))
    assert found.to_sql("score") == "0"
    assert "No points: x" in str(found.summary())


def test_bounds_by_column():
    data = frame()
    found = ds.simple_weights(FORMULA, data, bounds={"a": (0, 1), "b": (-1, 0.5)})
    assert 0 <= found.points["a"] <= 1 and -1 <= found.points["b"] <= 0
    assert found.loss_value > ds.simple_weights(FORMULA, data).loss_value
    positive = ds.simple_weights(
        "event ~ a + b + f", data, loss="logloss", bounds=(0, 3)
    )
    assert (positive.points >= 0).all() and positive.optimal


@pytest.mark.parametrize("loss", ["squared", "logloss"])
def test_weights_are_repeated_rows(loss):
    data = frame()
    y = "y" if loss == "squared" else "event"
    text = f"{y} ~ a + b + f"
    weighted = ds.simple_weights(text, data, loss=loss, weights="w")
    rows = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    repeated = ds.simple_weights(text, rows, loss=loss)
    pd.testing.assert_series_equal(weighted.points, repeated.points)
    assert weighted.loss_value == pytest.approx(repeated.loss_value, rel=1e-10)
    assert weighted.intercept == pytest.approx(repeated.intercept, rel=1e-7)
    assert weighted.risk_table()["observed"].mean() == pytest.approx(
        repeated.risk_table()["observed"].mean(), rel=0.2
    )


def test_new_data():
    data = frame()
    found = ds.simple_weights(FORMULA, data)
    new = data.iloc[:5].copy()
    new.loc[2, "b"] = np.nan
    score = found.score(new)
    assert np.isnan(score[2]) and score.drop(2).equals(found.score().iloc[[0, 1, 3, 4]])
    linear = found.params["Intercept"] + found.step * score
    np.testing.assert_allclose(found.predict(new), linear)
    logistic = ds.simple_weights("event ~ a + f", data, loss="logloss")
    np.testing.assert_allclose(
        logistic.predict(new), 1 / (1 + np.exp(-logistic.predict(new, "linear")))
    )
    with pytest.raises(ValueError, match="which must be"):
        found.predict(new, "median")


def test_sql_computes_the_same():
    data = frame().assign(**{"odd name": lambda d: d["b"] + d["a"]})
    found = ds.simple_weights("y ~ a + `odd name` + g + f + a:b", data)
    with sqlite3.connect(":memory:") as db:
        data.to_sql("t", db, index=False)
        got = db.execute(f"select {found.to_sql()} from t").fetchall()
        score = db.execute(f"select {found.to_sql('score')} from t").fetchall()
        db.execute("update t set g = null, a = 0, b = 0")
        missing = db.execute(f"select {found.to_sql()} from t").fetchone()
    db.close()
    np.testing.assert_allclose(np.ravel(got), found.predict(), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(score), found.score(), rtol=1e-12)
    assert missing == (None,)
    logistic = ds.simple_weights("event ~ a + f", data, loss="logloss")
    text = logistic.to_sql()
    assert text.startswith("1.0 / (1.0 + EXP(-(") and '"a"' in text


def test_sql_refuses_what_python_computes():
    found = ds.simple_weights("y ~ a + exp(b)", frame())
    with pytest.raises(ModelError, match="is computed, and cannot be written"):
        found.to_sql()
    with pytest.raises(ValueError, match="which must be"):
        found.to_sql("html")


def test_card_and_page():
    data = frame()
    found = ds.simple_weights("event ~ a + C(g) + f", data, loss="logloss")
    card = found.score_card()
    used = found.points[found.points != 0]
    assert card.points["points"].to_dict() == used.to_dict()
    assert card.risks["rows"].sum() == len(data)
    total = card.risks["predicted"] @ card.risks["rows"]
    assert total == pytest.approx(found.predict().sum())
    assert card.risks["predicted"].is_monotonic_increasing
    observed = card.risks["observed"] @ card.risks["rows"]
    assert observed == pytest.approx(data["event"].sum())
    html = card.as_html()
    assert "<table" in html and "What a total means" in html
    assert card._repr_html_() == html and "Points" in str(card)
    page = str(found.summary())
    assert "best points" in page and "log-loss" in page and "Optimal" in page
    assert "<table" in found._repr_html_() and "a: " in repr(found)
    grouped = ds.simple_weights("y ~ a + b", data).risk_table(most=5)
    assert len(grouped) <= 5 and grouped["rows"].sum() == len(data)
    with pytest.raises(ValueError, match="most must be"):
        found.risk_table(1)


def test_search_cut_short_says_so():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(80, 8)) + 3 * rng.normal(size=(80, 1))
    data = pd.DataFrame(X, columns=list("abcdefgh"))
    data["y"] = X @ rng.uniform(-2, 2, 8) + rng.normal(size=80)
    text = "y ~ " + " + ".join("abcdefgh")
    cut = ds.simple_weights(text, data, max_nodes=3)
    best = ds.simple_weights(text, data)
    assert not cut.optimal and cut.gap > 0
    assert cut.bound <= best.loss_value <= cut.loss_value
    assert "not proven" in str(cut.summary()) and "max_nodes" in str(cut.summary())


@pytest.mark.parametrize(
    ("formula", "options", "error", "words"),
    [
        ("y ~ a", {"loss": "poisson"}, ModelError, "use one of"),
        ("y ~ a", {"loss": "logloss"}, DesignError, r"\[0, 1\]"),
        ("w ~ a", {"loss": "logloss", "bounds": (0, 2)}, DesignError, r"\[0, 1\]"),
        ("b ~ a", {"loss": "logloss"}, DesignError, "two values"),
        ("y ~ a", {"bounds": (0.2, 0.8)}, InfeasibleError, "no whole number"),
        ("y ~ a", {"bounds": (3, 1)}, InfeasibleError, "no whole number"),
        ("y ~ a", {"bounds": 5}, ValueError, "must be a pair"),
        ("y ~ a", {"bounds": {"z": (0, 1)}}, ValueError, "not there"),
        ("y ~ a + b", {"bounds": (1, 3), "max_terms": 1}, InfeasibleError, "widen"),
        ("y ~ a", {"max_terms": 0}, ValueError, "1 or more"),
        ("y ~ a", {"max_terms": 1.5}, ValueError, "1 or more"),
        ("y ~ a", {"step": 0}, ValueError, "positive"),
        ("y ~ a", {"intercept": "none"}, ValueError, "'free' or 'integer'"),
        ("y ~ a", {"max_nodes": 0}, ValueError, "max_nodes"),
        ("y ~ a", {"restarts": -1}, ValueError, "restarts"),
        ("y ~ 0 + a", {}, ModelError, "intercept"),
        ("y ~ 1", {}, ModelError, "no columns"),
        ("y ~ a + b + I(a + b)", {}, ModelError, "leave them out"),
        (
            "event ~ a", {"loss": "logloss", "bounds": (0, np.inf)},
            ModelError, "finite bounds",
        ),
    ],
)  # fmt: skip
def test_bad_calls(formula, options, error, words):
    with pytest.raises(error, match=words):
        ds.simple_weights(formula, frame(), **options)


def test_bad_data():
    data = frame()
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(150, 101)))
    wide.columns = [f"x{j}" for j in range(101)]
    text = "y ~ " + " + ".join(wide.columns)
    with pytest.raises(ModelError, match="too many.*lasso"):
        ds.simple_weights(text, wide.assign(y=1.0))
    with pytest.raises(ModelError, match="rows cannot determine"):
        ds.simple_weights("y ~ a + b", data.iloc[:2])
    data.loc[3, "b"] = np.nan
    assert "Left out: 1 row" in str(ds.simple_weights("y ~ a + b", data).summary())
    with pytest.raises(DesignError):
        ds.simple_weights("y ~ a + b", data, na_action="raise")
    data.loc[5, "y"] = np.inf
    with pytest.raises(DesignError, match="finite"):
        ds.simple_weights("y ~ a + b", data)
    data["event"] = 1
    with pytest.raises(DesignError, match="two values"):
        ds.simple_weights("event ~ a", data, loss="logloss")


def test_integer_intercept_is_searched_with_the_points():
    """All points near the optimum, the intercept among them, on columns off centre."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(40, 2)) + rng.normal(size=(40, 1)) + 3
    y = X @ [1.45, -0.55] + 0.5 + rng.normal(size=40)
    data = pd.DataFrame(X, columns=["u", "v"]).assign(y=y)
    found = ds.simple_weights("y ~ u + v", data, intercept="integer", bounds=(-4, 4))
    grid = np.stack(np.meshgrid(*3 * [np.arange(-9, 10)]), axis=-1).reshape(-1, 3)
    grid = grid[(np.abs(grid[:, 1:]) <= 4).all(axis=1)]
    fitted = grid @ np.column_stack([np.ones(40), X]).T
    losses = ((y - fitted) ** 2).mean(axis=1)
    best = grid[np.argmin(losses)]
    assert found.loss_value == pytest.approx(losses.min(), rel=1e-12)
    assert found.params.tolist() == best.tolist() and found.optimal
