"""Training: when the mixed model is left, and what happens when it goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.errors import ConvergenceWarning
from deepstats.models.dgmm import dgmm, net

from .worlds import growth, linear, mixed_model, small_model, two_outcomes


def deep_growth(data):
    return dgmm(
        "y ~ ns(t, 3) * sex + age", data, group="id", time="t", random="1 + ns(t, 3)",
        deep_fixed=net("sex + age + poly(t, 3)", (16, 16)),
        deep_random=net("poly(t, 3)", (16,)), deep_prior=net("sex + age", (8,)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def left():
    return deep_growth(growth(300)).fit(epochs=60, batch=50, rate=0.01, validation=0.25)


def test_leaves_the_mixed_model_where_it_is_wrong(left):
    assert left.left_start
    gain, error = left.held_out_gain
    assert gain > error > 0
    fresh = growth(200, seed=77)
    start = deep_growth(growth(300)).fit(epochs=0)
    deep, mixed = left.loglik(fresh), start.loglik(fresh)
    assert (deep.value - mixed.value) / 200 > 0.1
    assert mixed.error == 0 < deep.error < 2
    assert left.diagnostics()["ess_min"] > 0.2


def test_prediction_of_the_future_has_its_level(left):
    fresh = growth(200, seed=78)
    found = left.dynamic_predict(fresh, landmark=5, n=400)
    truth = fresh[fresh["t"] > 5].sort_values(["id", "t"])
    assert (found["t"].to_numpy() == truth["t"].to_numpy()).all()
    inside = (found["lower"].to_numpy() < truth["y"]) & (
        truth["y"] < found["upper"].to_numpy()
    )
    assert 0.91 < inside.mean() < 0.98


def test_stays_within_a_hundredth_where_the_mixed_model_is_true():
    fresh = linear(n=300, seed=90)
    data = linear(n=150, seed=4)
    fit = small_model(data).fit(epochs=60, validation=0.2)
    start = small_model(data).fit(epochs=0)
    deep, mixed = fit.loglik(fresh), start.loglik(fresh)
    assert len(fit.history) >= 60  # it did look
    assert (deep.value - mixed.value) / 300 > -0.01
    assert np.isclose(mixed_model(data).llf, start.loglik().value, atol=1e-6)


def test_same_seed_same_fit():
    data = linear(n=80)
    runs = [
        small_model(data).fit(epochs=6, every=2, margin=0, seed=s) for s in (1, 1, 2)
    ]
    assert runs[0].history.equals(runs[1].history)
    assert not runs[0].history.equals(runs[2].history)
    assert runs[0].predict().equals(runs[1].predict())


def test_units_of_the_data_do_not_matter():
    data = linear(n=80)
    scaled = data.assign(y=1e4 * data["y"] + 7, age=data["age"] / 1e3, t=data["t"] * 60)
    histories = [
        small_model(d).fit(epochs=4, every=2).history["training"].to_numpy()
        for d in (data, scaled)
    ]
    rows = len(data) / 80 * np.log(1e4)
    assert np.allclose(histories[0] - rows, histories[1], atol=1e-3)


def test_outcomes_learn_of_each_other():
    data = two_outcomes(n=200)
    model = dgmm(
        {"y": "y ~ t", "z": "z ~ t"}, data, group="id", time="t",
        family={"y": "gaussian", "z": "bernoulli"},
    )  # fmt: skip
    start = model.fit(epochs=0)
    fit = model.fit(epochs=60, rate=0.02, validation=0.25, patience=20)
    assert fit.left_start
    fresh = two_outcomes(n=150, seed=40)
    gain = fit.loglik(fresh).value - start.loglik(fresh).value
    assert gain / 150 > 0.2
    only_y = fresh.drop(columns="z")
    ahead = fit.dynamic_predict(only_y, landmark=6, times=[8.0])
    risk = ahead[ahead["outcome"] == "z"].set_index("id")["mean"]
    level = fresh[fresh["t"] <= 6].groupby("id")["y"].mean()
    assert np.corrcoef(risk, level)[0, 1] > 0.9
    before = start.dynamic_predict(only_y, landmark=6, times=[8.0])
    assert before.loc[before["outcome"] == "z", "mean"].std() < 0.01 * risk.std()


def test_an_exploding_bound_stops_with_the_last_good_state():
    data = linear(n=80).assign(n=lambda d: np.floor(np.exp(0.3 * d["y"])))
    model = dgmm(
        "n ~ t", data, group="id", family="poisson", deep_fixed=net("poly(t, 2)", (8,))
    )
    with pytest.warns(ConvergenceWarning, match="not finite"):
        fit = model.fit(epochs=20, rate=1e4, validation=0.2)
    assert all(bool(torch.isfinite(p).all()) for p in fit.decoder.parameters())
    assert np.isfinite(fit.loglik().value)
    assert "last good state" in fit.summary().as_text()


def test_history_tells_of_both_runs():
    fit = small_model(linear(n=80)).fit(epochs=4, every=2, margin=0, rate=1e-3)
    history = fit.history
    assert list(history.columns) == ["run", "epoch", "training", "held_out"]
    looks = history.loc[history["run"] == "choose", "held_out"].notna()
    assert looks.tolist() == [False, True, False, True]
    assert (history["run"] == "refit").sum() == fit.chosen.epoch


def test_a_bar_counts_the_epochs_and_changes_nothing(capsys):
    pytest.importorskip("tqdm")
    options = {"epochs": 2, "every": 1, "refit": False}
    silent = small_model(linear(n=80)).fit(**options)
    assert capsys.readouterr().err == ""
    shown = small_model(linear(n=80)).fit(progress=True, **options)
    assert "epochs" in capsys.readouterr().err
    assert shown.history.equals(silent.history)
