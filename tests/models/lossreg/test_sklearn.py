"""Estimators that scikit-learn's own checks pass."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from .data import sample

pytest.importorskip("sklearn")

from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import deepstats as ds
from deepstats.sklearn import LossClassifier, LossRegressor

ESTIMATORS = [
    LossRegressor(),
    LossRegressor("huber", penalty="lasso"),
    LossRegressor("absolute"),
    LossClassifier(),
    LossClassifier("brier"),
]
# Medians of few rows are not unique: equal weights may end at another minimiser.
EXPECTED = {"absolute": {"check_sample_weight_equivalence_on_dense_data": "not unique"}}


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_check_estimator(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the checks try on purpose
        check_estimator(
            estimator, expected_failed_checks=EXPECTED.get(estimator.loss, {})
        )


def test_the_same_coefficients_as_by_formula():
    frame = sample(400)
    X = frame[["x", "z", "v"]]
    options = {"penalty": "elasticnet", "lam": 0.05, "constraints": {"z": "nonneg"}}
    by_formula = ds.lossreg("y ~ x + z + v", frame, **options).fit()
    found = LossRegressor(**options).fit(X, frame["y"])
    np.testing.assert_allclose(
        [found.intercept_, *found.coef_], by_formula.params, atol=1e-10
    )
    assert found.kkt_residual_ < 1e-9
    brier = ds.lossreg("hit ~ x + z + v", frame, loss="brier").fit()
    model = LossClassifier("brier", penalty=None).fit(X, frame["hit"])
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], brier.predict(), atol=1e-8)


def test_in_a_pipeline():
    frame = sample(300)
    model = make_pipeline(StandardScaler(), LossClassifier("focal(2)"))
    scores = cross_val_score(model, frame[["x", "z"]], frame["group"], cv=3)
    assert scores.shape == (3,)
    assert ds.sklearn.LossClassifier is LossClassifier
