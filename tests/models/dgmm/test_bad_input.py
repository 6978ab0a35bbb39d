"""What is refused, and that the message says what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.errors import DesignError, ModelError
from deepstats.models.dgmm import dgmm, net

from .worlds import linear, small_model


@pytest.fixture(scope="module")
def data():
    return linear(n=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formula": "y ~ t + (1 | id)"}, "random="),
        ({"formula": "cbind(y, t) ~ t"}, "one column"),
        ({"formula": "y ~ t + offset(age)"}, "offsets"),
        ({"formula": {}}, "no outcome"),
        ({"family": "gamma"}, "gaussian, bernoulli and poisson"),
        ({"family": {"x": "gaussian"}}, "outcomes are y"),
        ({"deep_fixed": torch.nn.Linear(1, 1)}, "ds.net"),
    ],
)
def test_models_that_are_not_in_this_version(data, options, message):
    formula = options.pop("formula", "y ~ t")
    with pytest.raises(ModelError, match=message):
        dgmm(formula, data, group="id", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "who"}, "who"),
        ({"time": "when"}, "when"),
        ({"deep_prior": net("t", (4,))}, "varies within subjects"),
        ({"deep_fixed": net("one", (4,))}, "no input that varies"),
    ],
)
def test_data_that_cannot_be_used(data, options, message):
    with pytest.raises(DesignError, match=message):
        dgmm("y ~ t", data.assign(one=1.0), **({"group": "id"} | options))


def test_a_constant_outcome_is_named(data):
    model = dgmm({"flat": "w ~ t"}, data.assign(w=2.0), group="id")
    with pytest.raises(DesignError, match="outcome flat"):
        model.fit(epochs=0)


def test_one_occasion_each_is_refused_by_the_mixed_model(data):
    once = data.drop_duplicates("id")
    with pytest.raises(DesignError, match="outcome y"):
        dgmm("y ~ sex", once, group="id").fit(epochs=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inference": "amortized"}, ModelError, "vlap"),
        ({"missing": "impute"}, ModelError, "ignore"),
        ({"epochs": -1}, ValueError, "epochs"),
        ({"draws": 3}, ValueError, "pairs"),
        ({"rate": 0}, ValueError, "rate"),
        ({"decay": -1}, ValueError, "decay"),
        ({"batch": 1.5}, ValueError, "batch"),
        ({"validation": 1.0}, ValueError, "validation"),
        ({"validation": 0.1}, DesignError, "at least 10"),
    ],
)
def test_options_of_the_fit(data, options, error, message):
    with pytest.raises(error, match=message):
        small_model(data).fit(**options)


def test_requests_of_results(data, tmp_path):
    fit = dgmm("y ~ t", data, group="id").fit(epochs=0)
    with pytest.raises(ModelError, match="time="):
        fit.dynamic_predict(data)
    with pytest.raises(ModelError, match="cannot be saved"):
        fit.save(tmp_path / "fit")
    with pytest.raises(ModelError, match="anchors"):
        fit.cov_params()
    with pytest.raises(ValueError, match="even"):
        fit.loglik(n=3)
    with pytest.raises(ValueError, match="type"):
        fit.predict(type="both")
    with pytest.raises(ValueError, match="interval"):
        fit.predict(interval="both")
    with pytest.raises(ValueError, match="level"):
        fit.predict(level=95)
    timed = dgmm("y ~ t", data, group="id", time="t").fit(epochs=0)
    with pytest.raises(DesignError, match="after the landmark"):
        timed.dynamic_predict(data, landmark=99)
    with pytest.raises(ValueError, match="finite"):
        timed.dynamic_predict(data, times=[np.nan])


def test_rows_with_missing_covariates_are_not_predicted(data):
    fit = dgmm("y ~ t + age", data, group="id").fit(epochs=0)
    holes = data.head(6).assign(age=[np.nan, 1, 2, 3, 4, np.nan])
    found = fit.predict(holes, interval="confidence")
    assert found["y", "mean"].isna().tolist() == [True, *[False] * 4, True]
    assert (found["y", "lower"] < found["y", "upper"]).sum() == 4


@pytest.mark.parametrize("layers", [(), (0,), (2.5,), "32"])
def test_layers(layers):
    with pytest.raises(ValueError, match="layers"):
        net("x", layers)


def test_networks_take_columns_only():
    with pytest.raises(ModelError, match="columns only"):
        net("x + (1 | g)")
    with pytest.raises(ModelError, match="modules"):
        net("x", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="activation"):
        net("x", activation="relu")
