"""Cross-validation against fits of the remaining rows and dense normal densities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepstats.errors import DesignError
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.validation import cross_validate

from .data import load

SLEEP = "Reaction ~ Days + (Days | Subject)"


def dense_prediction(fit, train, new):
    """Mean and covariance of new responses by the algebra of the whole data."""
    every = pd.concat([train, new])
    X = np.column_stack([np.ones(len(every)), every["Days"]])
    same = every["Subject"].to_numpy()[:, None] == every["Subject"].to_numpy()
    V = fit.mixed.covariances[0]
    noise = 1 / every["w"].to_numpy() if "w" in every else np.ones(len(every))
    S = (X @ V @ X.T) * same + fit.sigma**2 * np.diag(noise)
    n = len(train)
    A, B, C = S[:n, :n], S[n:, :n], S[n:, n:]
    Xt, Xn = X[:n], X[n:]
    inverse = np.linalg.inv(A)
    cov = np.linalg.inv(Xt.T @ inverse @ Xt)
    beta = cov @ Xt.T @ inverse @ train["Reaction"].to_numpy()
    mean = Xn @ beta + B @ inverse @ (train["Reaction"].to_numpy() - Xt @ beta)
    G = Xn - B @ inverse @ Xt
    return mean, C - B @ inverse @ B.T + G @ cov @ G.T


def folds_of(units, folds, seed):
    order = np.random.default_rng(seed).permutation(units)
    out = np.empty(units, dtype=int)
    out[order] = np.arange(units) % folds
    return out


@pytest.mark.parametrize("weights", [None, "w"])
def test_folds_of_rows_match_refits_and_dense_densities(weights):
    data = load("sleepstudy").reset_index(drop=True)
    if weights:
        data["w"] = np.random.default_rng(0).uniform(0.7, 1.4, len(data))
    results = LinearMixed(SLEEP, data, weights=weights).fit()
    table = results.cross_validate(4, seed=3)
    fold_of = folds_of(len(data), 4, 3)
    for fold in range(4):
        train, new = data[fold_of != fold], data[fold_of == fold]
        fit = LinearMixed(SLEEP, train, weights=weights).fit()
        mean, cov = dense_prediction(fit, train, new)
        error = new["Reaction"].to_numpy() - mean
        row = table.loc[fold + 1]
        assert row["n"] == len(new)
        assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
        assert row["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
        density = stats.norm.logpdf(error, scale=np.sqrt(np.diag(cov))).mean()
        assert row["log_density"] == pytest.approx(density, rel=1e-6)
    assert table["converged"].all()
    total = np.average(table["rmse"] ** 2, weights=table["n"]) ** 0.5
    assert table.attrs["rmse"] == pytest.approx(total)


def test_whole_groups_have_joint_densities_at_the_population_value():
    data = load("sleepstudy").reset_index(drop=True)
    results = LinearMixed(SLEEP, data).fit()
    table = cross_validate(results, 9, "Subject", seed=1)
    assert (table["levels"] == 2).all()
    codes, levels = pd.factorize(data["Subject"], sort=True)
    fold_of = folds_of(len(levels), 9, 1)[codes]
    for fold in (0, 5):
        train, new = data[fold_of != fold], data[fold_of == fold]
        fit = LinearMixed(SLEEP, train).fit()
        density = 0.0
        for _, rows in new.groupby("Subject", observed=True):
            mean, cov = dense_prediction(fit, train, rows)
            population = fit.params["Intercept"] + fit.params["Days"] * rows["Days"]
            np.testing.assert_allclose(mean, population)
            density += stats.multivariate_normal.logpdf(rows["Reaction"], mean, cov)
        found = table.loc[fold + 1, "log_density"]
        assert found == pytest.approx(density / len(new), rel=1e-6)


def test_crossed_groups_keep_what_others_tell():
    data = load("Penicillin")
    results = LinearMixed("diameter ~ 1 + (1 | plate) + (1 | sample)", data).fit()
    table = cross_validate(results, 24, "plate", seed=0)
    # The samples' effects are known, the plates' are not: errors are those of plates.
    sd = results.varcorr.set_index("grp")["sdcor"]
    expected = np.hypot(sd["plate"], sd["Residual"])
    assert table.attrs["rmse"] == pytest.approx(expected, rel=0.1)
    rows = cross_validate(results, 10, seed=0)
    assert rows.attrs["rmse"] < 0.8 * expected
    assert "levels" not in rows


def test_weights_and_offsets_enter_predictions():
    rng = np.random.default_rng(0)
    n = 200
    data = pd.DataFrame({"g": rng.integers(0, 10, n), "w": rng.uniform(0.2, 5, n)})
    data["o"] = rng.normal(size=n) * 50
    data["y"] = data["o"] + rng.normal(size=10)[data["g"]]
    data["y"] += rng.normal(size=n) / np.sqrt(data["w"])
    fit = LinearMixed("y ~ 1 + (1 | g)", data, weights="w", offset="o").fit()
    table = fit.cross_validate(5, seed=0)
    assert table.attrs["rmse"] < 2
    # Densities are calibrated: the mean log-density is near its expectation.
    plain = LinearMixed("y ~ 1 + offset(o) + (1 | g)", data).fit()
    assert (
        table.attrs["log_density"]
        > plain.cross_validate(5, seed=0).attrs["log_density"]
    )


def test_bad_folds_are_refused():
    fit = LinearMixed(SLEEP, load("sleepstudy")).fit()
    with pytest.raises(ValueError, match="180 rows"):
        fit.cross_validate(181)
    with pytest.raises(ValueError, match="18 levels of Subject"):
        fit.cross_validate(19, groups="Subject")
    with pytest.raises(ValueError, match="from 2"):
        fit.cross_validate(1)
    data = load("sleepstudy").assign(rare=0.0)
    data.loc[data.index[3], "rare"] = 1.0
    fit = LinearMixed("Reaction ~ Days + rare + (1 | Subject)", data).fit()
    with pytest.raises(DesignError, match="'rare' cannot be"):
        fit.cross_validate(10, seed=0)
