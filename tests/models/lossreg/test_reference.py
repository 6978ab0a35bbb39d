"""Objectives of glmnet, quantreg and Newton's method, reached and checked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats.models.lossreg import lossreg

from .data import STORED, glmnet_objective

DOCVISITS = (
    "private", "medicaid", "age", "educ", "actlim", "chronic", "male", "married",
    "afam", "income", "employed",
)  # fmt: skip
AFFAIRS = ("rate_marriage", "age", "yrs_married", "children", "religious", "educ")
#: Family, share of l1, standardised, constraints.
PATHS = {
    "glmnet_gauss_lasso": ("gaussian", 1.0, True, None),
    "glmnet_gauss_en05": ("gaussian", 0.5, True, None),
    "glmnet_gauss_ridge": ("gaussian", 0.0, True, None),
    "glmnet_gauss_lasso_nostd": ("gaussian", 1.0, False, None),
    "glmnet_pois_lasso": ("poisson", 1.0, True, None),
    "glmnet_pois_en05_nonneg": ("poisson", 0.5, True, "nonneg"),
    "glmnet_binom_lasso": ("binomial", 1.0, True, None),
}
LOSSES = {"gaussian": "squared", "poisson": "poisson", "binomial": "logloss"}


@pytest.fixture(scope="module")
def frames(docvisits, statsmodels_data) -> dict:
    fair = statsmodels_data("fair")
    fair = fair.assign(affair=(fair["affairs"] > 0).astype(float))
    return {
        "docvisits": (docvisits, "drvisits", DOCVISITS),
        "affairs": (fair, "affair", AFFAIRS),
    }


def case(name: str, frames: dict):
    """Return model, strengths in our units, and what glmnet's objective needs."""
    family, alpha, standardise, constraints = PATHS[name]
    frame, outcome, columns = frames["affairs" if family == "binomial" else "docvisits"]
    y, X = frame[outcome].to_numpy(float), frame[list(columns)].to_numpy(float)
    lams = np.array(STORED[name]["lambda"])
    # The squared loss is twice glmnet's; its l2 part is over the sd of the outcome.
    l1, l2 = lams * alpha, lams * (1 - alpha)
    if family == "gaussian":
        l1, l2 = 2 * l1, 2 * l2 / y.std()
    ratio = float((l1 / (l1 + l2))[0])
    model = lossreg(
        f"{outcome} ~ {' + '.join(columns)}", frame, loss=LOSSES[family],
        penalty="elasticnet", lam=1.0, l1_ratio=ratio, standardize=standardise,
        constraints=constraints,
    )  # fmt: skip
    scale = X.std(0) if standardise else np.ones(X.shape[1])
    return model, l1 + l2, (family, X, y, alpha, scale, columns)


@pytest.mark.parametrize("name", PATHS)
def test_paths_reach_the_objective_of_glmnet(name, frames):
    model, lams, (family, X, y, alpha, scale, columns) = case(name, frames)
    path = model.path(lams, tol=1e-9)
    np.testing.assert_array_equal(path.params.index, lams)
    stored = STORED[name]
    for i, lam in enumerate(stored["lambda"]):
        ours, row = path.coefs[i], stored["beta"][i]
        theirs = np.array([row[c] for c in columns])
        found = glmnet_objective(family, X, y, ours[0], ours[1:], lam, alpha, scale)
        bar = glmnet_objective(family, X, y, stored["a0"][i], theirs, lam, alpha, scale)
        assert found <= bar + 1e-12 * abs(bar)
        if max(abs(theirs)) < 1e-30:  # glmnet's first ridge is at an infinite lambda
            continue
        assert found == pytest.approx(bar, rel=1e-8)
    assert path.residuals.max() < 1e-9


@pytest.mark.parametrize("name", STORED["polished"])
def test_coefficients_of_the_polished_paths(name, frames):
    model, lams, (*_, columns) = case(name, frames)
    order = {lam: i for i, lam in enumerate(STORED[name]["lambda"])}
    path = model.path(lams, tol=1e-10)
    for row in STORED["polished"][name]:
        i = min(order.items(), key=lambda item: abs(item[0] - row["lam"]))[1]
        expected = [row["a0"], *(row["beta"][c] for c in columns)]
        np.testing.assert_allclose(path.coefs[i], expected, rtol=0, atol=2e-9)
        zero = [value == 0 for value in expected]
        np.testing.assert_array_equal(path.coefs[i] == 0, zero)


@pytest.mark.parametrize("name", ["glmnet_pois_lasso", "glmnet_pois_en05_nonneg"])
def test_a_single_fit_is_a_point_of_the_path(name, frames):
    model, lams, _ = case(name, frames)
    path = model.path(lams[:7], tol=1e-10)
    model.lam = float(lams[6])
    result = model.fit()
    np.testing.assert_allclose(result.params, path.coefs[6], rtol=0, atol=1e-9)
    assert result.kkt_residual < 1e-9 and result.converged


def test_conditions_of_a_nonnegative_poisson_lasso(frames):
    # Written out here, for standardised columns, as the issue asks: below 1e-6.
    frame, outcome, columns = frames["docvisits"]
    text = f"{outcome} ~ {' + '.join(columns)}"
    lam = 0.02
    fit = lossreg(
        text, frame, loss="poisson", penalty="lasso", lam=lam, constraints="nonneg"
    ).fit()
    X, y = frame[list(columns)].to_numpy(float), frame[outcome].to_numpy(float)
    b, sd = fit.params.to_numpy(), X.std(0)
    mean = np.exp(b[0] + X @ b[1:])
    slope = ((X - X.mean(0)) / sd).T @ (mean - y) / len(y)
    on = b[1:] > 0
    assert 0 < on.sum() < len(on)
    assert (mean - y).mean() == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(slope[on], -lam, atol=1e-8)
    assert (slope[~on] >= -lam - 1e-8).all()


@pytest.mark.parametrize("q", [0.25, 0.5, 0.75])
def test_quantiles_of_engel(q, statsmodels_data):
    stored = STORED[f"quantile_engel_{q}"]
    model = lossreg(
        "foodexp ~ income", statsmodels_data("engel"), loss=f"quantile({q})"
    )
    fit = model.fit(cov_type="none")
    np.testing.assert_allclose(fit.params, list(stored["coef"].values()), rtol=1e-10)
    assert fit.loss_value * fit.nobs == pytest.approx(stored["objective"], rel=1e-12)
    assert fit.kkt_residual < 1e-12


def test_ridge_poisson_and_its_sandwich(docvisits):
    stored = STORED["ridge_poisson_docvisits"]
    columns = list(DOCVISITS[:6])
    z = (docvisits[columns] - docvisits[columns].mean()) / docvisits[columns].std(
        ddof=0
    )
    frame = z.assign(drvisits=docvisits["drvisits"])
    fit = lossreg(
        f"drvisits ~ {' + '.join(columns)}", frame, loss="poisson", penalty="ridge",
        lam=0.1,
    ).fit()  # fmt: skip
    np.testing.assert_allclose(fit.params, stored["coef_std"], rtol=1e-8)
    np.testing.assert_allclose(fit.bse, stored["se_sandwich"], rtol=1e-6)


def test_logit_of_recidivism_with_sandwich_errors(shared_data):
    stored, frame = STORED["nij_logit"], shared_data("reg_nij.csv")
    train = frame[frame["Training_Sample"] == 1]
    columns = list(stored["coef"])[1:]
    z = (train[columns] - train[columns].mean()) / train[columns].std(ddof=0)
    z = z.assign(again=train["Recidivism_Arrest_Year1"].astype(float))
    fit = lossreg(f"again ~ {' + '.join(columns)}", z, loss="logloss").fit()
    np.testing.assert_allclose(fit.params, pd.Series(stored["coef"]), rtol=1e-8)
    np.testing.assert_allclose(fit.bse, pd.Series(stored["se_sandwich"]), rtol=1e-6)
    assert fit.loss_value == pytest.approx(stored["mean_loss"], rel=1e-12)


#: Mean losses that notes/regression.md records for the same rows and columns.
NIJ_LOSSES = {"brier": 0.1879326238, "focal(2)": 0.1416184428}


@pytest.mark.parametrize("loss", NIJ_LOSSES)
def test_other_losses_of_recidivism(loss, shared_data):
    frame = shared_data("reg_nij.csv")
    train = frame[frame["Training_Sample"] == 1]
    columns = list(STORED["nij_logit"]["coef"])[1:]
    z = (train[columns] - train[columns].mean()) / train[columns].std(ddof=0)
    z = z.assign(again=train["Recidivism_Arrest_Year1"].astype(float))
    fit = lossreg(f"again ~ {' + '.join(columns)}", z, loss=loss).fit()
    assert fit.loss_value == pytest.approx(NIJ_LOSSES[loss], abs=6e-11)
    assert fit.kkt_residual < 1e-9


def test_near_integer_weights_of_doctor_visits(docvisits):
    # The seed's penalty from its OLS start ends at the rounded OLS weights.
    columns = list(DOCVISITS[:6])
    x = docvisits[columns]
    frame = ((x - x.min()) / (x.max() - x.min())).assign(drvisits=docvisits["drvisits"])
    text = f"drvisits ~ {' + '.join(columns)}"
    ols = lossreg(text, frame).fit()
    stored = STORED["simple"]
    np.testing.assert_allclose(
        ols.params, list(stored["ols"]["coef"].values()), rtol=1e-9
    )
    assert ols.loss_value == pytest.approx(stored["ols"]["mse"], rel=1e-12)
    fit = lossreg(text, frame, penalty="integer", lam=0.4).fit(start=ols)
    np.testing.assert_allclose(fit.params.iloc[1:], stored["round_ols"]["coef"])
    assert fit.loss_value == pytest.approx(stored["round_ols"]["mse"], rel=1e-12)
    assert fit.kkt_residual < 1e-9
