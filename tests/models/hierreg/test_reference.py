"""The documented objective of hierreg on its own example, and penalties chosen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import deepstats as ds

from .data import SCOTS, STORED, scots

NORMS = [key for key in STORED if key.startswith("norm")]
SQUARES = [key for key in STORED if key.startswith("squared")]
NAMES = {"Intercept": "Intercept", "VRQ": "verbal", "SEX": "girl", "SC": "social"}
SHARED = Path(__file__).parents[4] / "shared" / "reference" / "regression.json"


def error(fit, test):
    """Mean squared error in the test rows."""
    return float(np.mean((test["attain"] - fit.predict(test)) ** 2))


@pytest.mark.parametrize("key", NORMS)
def test_norms_match_the_reference(key):
    train, test = scots()
    stored = STORED[key]
    fit = ds.hierreg(SCOTS, train, penalty=stored["l2_reg"]).fit()
    assert fit.objective == pytest.approx(stored["objective"], rel=1e-12)
    assert fit.kkt_residual < 1e-10
    assert fit.penalty_max == pytest.approx(stored["lambda_max"], rel=1e-10)
    assert fit.mu == pytest.approx(stored["equivalent_ridge_mu"], rel=1e-8)
    for theirs, value in stored["coef"].items():
        assert fit.params[NAMES[theirs]] == pytest.approx(value, rel=1e-8)
    assert error(fit, test) == pytest.approx(stored["test_mse"], rel=1e-9)
    primary = fit.deviations.loc["primary", "Intercept"]
    order = sorted(primary.index, key=lambda level: str(float(level)))
    first = primary[order[:10]].to_numpy()
    assert first == pytest.approx(np.array(stored["v_first10"]), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("key", SQUARES)
def test_squares_match_the_reference(key):
    train, test = scots()
    stored = STORED[key]
    model = ds.hierreg(SCOTS, train, penalty=stored["l2_reg"], form="squared")
    fit = model.fit()
    assert fit.objective == pytest.approx(stored["objective"], rel=1e-11)
    assert fit.kkt_residual < 1e-10
    for theirs, value in stored["coef"].items():
        assert fit.params[NAMES[theirs]] == pytest.approx(value, rel=1e-7)
    assert error(fit, test) == pytest.approx(stored["test_mse"], rel=1e-9)


def test_above_the_largest_penalty_there_are_no_deviations():
    train, test = scots()
    fit = ds.hierreg(SCOTS, train, penalty=1e4).fit()
    assert (fit.deviations.to_numpy() == 0).all()
    ols = ds.ols("attain ~ verbal + girl + social", train).fit()
    assert fit.params.to_numpy() == pytest.approx(ols.params.to_numpy(), rel=1e-12)
    assert error(fit, test) == pytest.approx(4.43586, abs=5e-6)
    # Not above what a conic solver found, which stops 1e-9 higher.
    assert fit.objective <= STORED["clarabel_l2_10000"]


def test_the_stored_facts_are_those_of_the_shared_file():
    if not SHARED.exists():
        pytest.skip("regression.json is only in ../shared/reference, not here")
    theirs = json.loads(SHARED.read_text())["block_hierreg"]
    for key in (*NORMS, *SQUARES):
        assert {k: theirs[key][k] for k in STORED[key]} == STORED[key]


@pytest.mark.parametrize("form", ["norm", "squared"])
def test_gcv_on_the_example_of_hierreg(form):
    train, test = scots()
    model = ds.hierreg(SCOTS, train, penalty="gcv", group_weights="sd", form=form)
    fit = model.fit()
    assert error(fit, test) <= 4.370
    stored = STORED["penalty_choice"]["equal x sd(X_j)"]
    assert fit.mu == pytest.approx(stored["gcv_mu"], rel=0.3)  # theirs is of a grid
    assert fit.kkt_residual < 1e-10


def test_reml_on_the_example_of_hierreg():
    train, test = scots()
    fit = ds.hierreg(SCOTS, train, penalty="reml").fit()
    assert error(fit, test) <= 4.354
    assert fit.kkt_residual < 1e-10
    stored = STORED["penalty_choice"]["reml"]
    order = [
        f"{c} | {g}"
        for c in ("Intercept", "verbal", "girl", "social")
        for g in ("primary", "second")
    ]
    # L-BFGS of the reference stops at small variances where Newton's method finds 0.
    ratios = fit.choice["ratio"][order].to_numpy()
    assert ratios == pytest.approx(np.array(stored["ratios"]), abs=5e-5)
    assert fit.params.to_numpy() == pytest.approx(np.array(stored["coef"]), rel=1e-3)
