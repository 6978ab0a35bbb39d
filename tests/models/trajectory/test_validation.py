"""Cross-validation against fits that really leave units out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.models.trajectory import TrajectoryResults

from .simulated import crossing

CASES = {
    "gaussian": ("traj(y ~ t, groups=2, id=id)", {}),
    "poisson": ("traj(count ~ t, groups=2, id=id, risk=~ weight)", {}),
    "cnorm": ("traj(y ~ t, groups=2, id=id, lower=-1, upper=3.5)", {}),
}


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    frame = crossing(60)
    frame["y"] = frame["y"].clip(-1, 3.5)
    return frame


def fit_of(family: str, data: pd.DataFrame, **options) -> TrajectoryResults:
    formula, more = CASES[family]
    return ds.traj(formula, data, family=family, **more).fit(**options)


@pytest.mark.parametrize("family", CASES)
def test_leaving_out_each_unit_is_refitting_without_it(family, data):
    full = fit_of(family, data, starts=10)
    found = full.cross_validate()
    assert found.folds == 60 and found.failed == 0
    for unit in (0, 7, 31, 59):
        own = data["id"] == unit
        alone = fit_of(family, data[~own], start=full.params, tol=1e-9)
        rows = data[own]
        y = rows["count" if family == "poisson" else "y"]
        error = (y - alone.predict(rows, which="mean")).abs().mean()
        assert found.units.loc[unit, "mae"] == pytest.approx(error, rel=1e-6)
        density = log_density(alone, family, data, unit)
        assert found.units.loc[unit, "log_density"] == pytest.approx(density, rel=1e-6)


def log_density(fit: TrajectoryResults, family: str, data, unit: int) -> float:
    """Log-density of a unit at another fit's parameters."""
    formula, more = CASES[family]
    model = ds.traj(formula, data, family=family, **more)
    x = model.assembled.to_mixture(fit.fit_info.x)
    at = model.study.units.labels.get_loc(unit)
    return float(model.assembled.mixture.loglik(x)[at])


def test_one_newton_step_is_nearly_all(data):
    full = fit_of("poisson", data, starts=10)
    exact, near = (full.cross_validate(exact=flag) for flag in (True, False))
    assert near.mae == pytest.approx(exact.mae, rel=2e-3)
    assert near.log_density == pytest.approx(exact.log_density, rel=1e-3)
    # Units are not known to fits without them.
    assert exact.log_density < full.llf


def test_folds_are_refits_too(data):
    full = fit_of("gaussian", data, starts=10)
    found = full.cross_validate(5, seed=2)
    assert found.units["fold"].value_counts().tolist() == [12] * 5
    fold = found.units["fold"] == 3
    out = data["id"].isin(found.units.index[fold])
    alone = fit_of("gaussian", data[~out], start=full.params, tol=1e-9)
    rows = data[out]
    error = (
        (rows["y"] - alone.predict(rows, which="mean")).abs().groupby(rows["id"]).mean()
    )
    np.testing.assert_allclose(found.units.loc[fold, "mae"], error, rtol=1e-6)
    other = full.cross_validate(5, seed=3)
    assert not found.units["fold"].equals(other.units["fold"])


def test_without_history_units_get_the_average_curve(data):
    full = fit_of("gaussian", data, starts=10)
    known, unknown = (full.cross_validate(given=g) for g in ("history", "nothing"))
    assert known.mae < 0.95 * unknown.mae
    unit = data["id"] == 10
    alone = fit_of("gaussian", data[~unit], start=full.params, tol=1e-9)
    curves = alone.predict(data[unit], which="by_group")
    mean = curves @ alone.traj.shares()[0].numpy()
    error = (data.loc[unit, "y"] - mean).abs().mean()
    assert unknown.units.loc[10, "mae"] == pytest.approx(error, rel=1e-6)


def test_several_outcomes_and_weights(data):
    fit = ds.traj(
        "traj(y ~ t, count ~ t, groups=2, id=id, weights=weight)", data,
        family=["gaussian", "poisson"],
    ).fit(starts=8)  # fmt: skip
    found = fit.cross_validate(6)
    assert list(found.mae.index) == ["y", "count"]
    weights = data.groupby("id")["weight"].first()
    expected = np.average(found.units["mae:count"], weights=weights)
    assert found.mae["count"] == pytest.approx(expected)
    assert "mean absolute error" in repr(found)


def test_the_right_number_of_groups_predicts_better():
    frame = crossing(150, seed=8)
    errors = [
        ds.traj("traj(y ~ t, id=id)", frame, groups=k).fit(starts=10).cross_validate()
        for k in (1, 2)
    ]
    assert errors[1].mae < 0.95 * errors[0].mae
    assert errors[1].log_density > errors[0].log_density + 20


def test_what_cannot_be_asked(data):
    full = fit_of("gaussian", data, starts=4)
    with pytest.raises(ValueError, match="from 2 to the 60 units"):
        full.cross_validate(61)
    with pytest.raises(ValueError, match="given must be one of"):
        full.cross_validate(given="all")
