"""Influence against R's influence.measures, statsmodels, and fits without the row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats import GLM, OLS
from deepstats.datasets import load_docvisits
from deepstats.errors import ModelError

sm = pytest.importorskip("statsmodels.api")
smf = pytest.importorskip("statsmodels.formula.api")

REGRESSORS = "private + medicaid + age + educ + actlim + chronic"

LONGLEY = ["GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR"]


@pytest.fixture(scope="module")
def visits():
    return load_docvisits()


@pytest.fixture(scope="module")
def longley():
    return sm.datasets.longley.load_pandas().data


def assert_close(a, b, rtol=1e-8):
    b = np.asarray(b)
    np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=rtol * np.abs(b).max())


def exact_measures(columns, response, residuals=None, weights=1.0, counts=1.0):
    """Measures of deleting a row in 60 digits, from the double-precision data.

    Without `residuals` those of weighted least squares, found here; else the Pearson
    residuals of a GLM of unit scale, whose weights in the information are `weights`.
    """
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        X = mpmath.matrix(np.column_stack([np.ones(len(columns)), columns]).tolist())
        n, p = X.rows, X.cols
        w, f = (
            [mpmath.mpf(float(v)) for v in np.broadcast_to(v, n)]
            for v in (weights, counts)
        )
        WX = mpmath.matrix([[w[i] * f[i] * v for v in X[i, :]] for i in range(n)])
        inverse = (X.T * WX) ** -1
        if residuals is None:
            y = mpmath.matrix([float(v) for v in response])
            raw = y - X * (inverse * (WX.T * y))
            e = [mpmath.sqrt(w[i]) * raw[i] for i in range(n)]
            left = sum(f) - p
            scale = sum(f[i] * e[i] ** 2 for i in range(n)) / left
        else:
            e, scale, left = [mpmath.mpf(float(v)) for v in residuals], 1, None
        rows = []
        for i in range(n):
            pull = inverse * X[i, :].T
            h = w[i] * (X[i, :] * pull)[0]
            own = 1 - h
            without = scale
            if left is not None:
                without = (left * scale - e[i] ** 2 / own) / (left - 1)
            change = [v * mpmath.sqrt(w[i]) * e[i] / own for v in pull]
            rows.append(
                {
                    "hat_matrix_diag": [h],
                    "resid_studentized_internal": [e[i] / mpmath.sqrt(scale * own)],
                    "resid_studentized_external": [e[i] / mpmath.sqrt(without * own)],
                    "cooks_distance": [e[i] ** 2 * h / (own**2 * scale * p)],
                    "dffits": [e[i] * mpmath.sqrt(h / without) / own],
                    "dfbeta": change,
                    "dfbetas": [
                        v / mpmath.sqrt(without * inverse[j, j])
                        for j, v in enumerate(change)
                    ],
                    "cov_ratio": [(without / scale) ** p / own],
                }
            )
        return {
            name: np.squeeze([[float(v) for v in row[name]] for row in rows])
            for name in rows[0]
        }


def measure(found, name):
    value = getattr(found, name)
    return value[0] if isinstance(value, tuple) else value


def test_longley_matches_r_in_every_cell(longley, reference):
    """R is right to 7e-12 here; ours have the rounding of y - Xb, see below."""
    stored = reference["longley_influence"]
    found = OLS(f"TOTEMP ~ {' + '.join(LONGLEY)}", longley).fit().get_influence()
    ours = np.column_stack(
        [found.dfbetas, found.dffits[0], found.cov_ratio, found.cooks_distance[0],
         found.hat_matrix_diag]
    )  # fmt: skip
    np.testing.assert_allclose(ours, stored["m"], rtol=1e-9)
    student = found.resid_studentized_external
    np.testing.assert_allclose(student, stored["rstudent"], rtol=1e-9)


@pytest.mark.parametrize("kind", [None, "weights", "freq_weights"])
def test_longley_is_exact_to_nine_digits(longley, kind):
    """Longley's columns, scaled, have a condition number of 4e4.

    Leverages made of the inverse of X'X would be right to 1e-8 only. What is left,
    beyond them, is of the residuals: the terms of Xb, 3.5e6, add up to 6e4, and their
    rounding is up to 2e-10 of the least residual.
    """
    given = np.arange(16) % 3 + 1.0
    options = {} if kind is None else {kind: given}
    fit = OLS(f"TOTEMP ~ {' + '.join(LONGLEY)}", longley, **options).fit()
    found = fit.get_influence()
    chosen = {"weights": "weights", "freq_weights": "counts"}
    options = {} if kind is None else {chosen[kind]: given}
    exact = exact_measures(longley[LONGLEY], longley["TOTEMP"], **options)
    np.testing.assert_allclose(
        found.hat_matrix_diag, exact["hat_matrix_diag"], rtol=2e-11
    )
    for name, values in exact.items():
        # A change of the intercept that is 2e-4 of the largest has fewer digits.
        ours, largest = measure(found, name), np.abs(values).max(0)
        np.testing.assert_allclose(
            ours / largest, values / largest, rtol=1e-9, atol=1e-11, err_msg=name
        )


def test_leverages_of_a_glm_of_nearly_collinear_columns(longley):
    """Poisson: exact for the weights, the means, of the fit."""
    formula = f"np.round(TOTEMP / 100) ~ {' + '.join(LONGLEY)}"
    fit = GLM(formula, longley, family="poisson").fit()
    found = fit.get_influence()
    exact = exact_measures(longley[LONGLEY], None, fit.resid_pearson, fit.fittedvalues)
    for name in ("hat_matrix_diag", "dfbeta", "dfbetas", "cooks_distance"):
        np.testing.assert_allclose(
            measure(found, name), exact[name], rtol=1e-9, err_msg=name
        )


def test_leverages_of_columns_on_the_edge_of_aliasing():
    """Powers with a condition number of 5e7: their cross-products say nothing."""
    x = np.linspace(1, 2, 60)
    powers = pd.DataFrame({f"x{k}": x**k for k in range(1, 8)})
    frame = powers.assign(y=np.sin(5 * x))
    fit = OLS(f"y ~ {' + '.join(powers)}", frame).fit()
    assert fit.condition_number > 1e7
    found = fit.get_influence().hat_matrix_diag
    exact = exact_measures(powers, frame["y"])["hat_matrix_diag"]
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_ols_matches_statsmodels(visits):
    ours = OLS(f"drvisits ~ {REGRESSORS}", visits).fit().get_influence()
    theirs = smf.ols(f"drvisits ~ {REGRESSORS}", visits).fit().get_influence()
    for name in ("hat_matrix_diag", "resid_studentized_internal",
                 "resid_studentized_external", "dfbetas", "cov_ratio"):  # fmt: skip
        assert_close(getattr(ours, name), getattr(theirs, name))
    for name in ("cooks_distance", "dffits", "dffits_internal"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert_close(mine[0], other[0])
        assert_close(mine[1], other[1])
    frame, other = ours.summary_frame(), theirs.summary_frame()
    assert list(frame.columns) == [*other.columns, "cov_ratio"]
    assert_close(frame[other.columns], other)


def test_poisson_matches_statsmodels(visits):
    formula = f"drvisits ~ {REGRESSORS}"
    ours = GLM(formula, visits, family="poisson").fit().get_influence()
    fit = smf.glm(formula, visits, family=sm.families.Poisson()).fit(tol=1e-13)
    theirs = fit.get_influence()
    assert_close(ours.hat_matrix_diag, theirs.hat_matrix_diag)
    assert_close(ours.resid_studentized_internal, theirs.resid_studentized)
    assert_close(ours.dfbetas, theirs.dfbetas)
    assert_close(ours.dfbeta, theirs.d_params)
    assert_close(ours.cooks_distance[0], theirs.cooks_distance[0])


def test_gamma_uses_its_dispersion(longley):
    formula = "TOTEMP ~ ARMED + POP"
    ours = GLM(formula, longley, family="gamma", link="log").fit().get_influence()
    family = sm.families.Gamma(sm.families.links.Log())
    fit = smf.glm(formula, longley, family=family).fit(tol=1e-13)
    # R's leverage, and ours, is of the expected information: statsmodels' default is
    # the observed one.
    theirs = fit.get_influence(observed=False)
    assert_close(ours.cooks_distance[0], theirs.cooks_distance[0], 1e-6)
    assert_close(ours.resid_studentized_internal, theirs.resid_studentized, 1e-6)


def test_weighted_least_squares_matches_fits_without_the_row(longley):
    w = np.linspace(0.5, 2, len(longley))
    formula = "TOTEMP ~ ARMED + UNEMP"
    fit = OLS(formula, longley, weights=w).fit()
    found = fit.get_influence()
    for i in (0, 7, 15):
        keep = np.arange(len(longley)) != i
        other = OLS(formula, longley[keep], weights=w[keep]).fit()
        change = fit.params - other.params
        assert_close(found.dfbeta[i], change, 1e-7)
        assert_close(found.scale_not_obsi[i], other.scale)
        scaled = change / np.sqrt(np.diag(fit.cov_params()) / fit.scale * other.scale)
        assert_close(found.dfbetas[i], scaled, 1e-7)
        quadratic = change @ np.linalg.solve(fit.cov_params(), change) / 3
        assert_close(found.cooks_distance[0][i], quadratic, 1e-6)
        ratio = np.linalg.det(other.cov_params()) / np.linalg.det(fit.cov_params())
        assert_close(found.cov_ratio[i], ratio, 1e-6)


def test_frequency_weights_stand_for_rows(longley):
    f = np.tile([1, 3], 8)
    long = longley.loc[longley.index.repeat(f)]
    formula = "TOTEMP ~ ARMED + UNEMP"
    short = OLS(formula, longley, freq_weights=f).fit().get_influence()
    whole = OLS(formula, long).fit().get_influence()
    at = np.append(0, np.cumsum(f)[:-1])
    assert_close(short.hat_matrix_diag, whole.hat_matrix_diag[at])
    assert_close(short.dfbetas, whole.dfbetas[at])
    assert_close(short.cooks_distance[0], whole.cooks_distance[0][at])


def test_probit_leverage_does_not_depend_on_the_information_reported(visits):
    data = visits.assign(any_=(visits["drvisits"] > 0).astype(float))
    fits = [
        GLM("any_ ~ age + educ", data, family="binomial", link="probit").fit(
            information=which
        )
        for which in ("expected", "observed")
    ]
    a, b = (f.get_influence().hat_matrix_diag for f in fits)
    assert_close(a, b)
    assert a.sum() == pytest.approx(3, rel=1e-8)


def test_augment_has_brooms_columns(visits):
    fit = OLS(f"drvisits ~ {REGRESSORS}", visits).fit()
    frame, found = fit.augment(), fit.get_influence()
    assert_close(frame[".hat"], found.hat_matrix_diag)
    assert_close(frame[".cooksd"], found.cooks_distance[0])
    assert_close(frame[".std_resid"], found.resid_studentized_internal)


def test_a_row_that_fits_itself_has_no_studentised_residual():
    data = pd.DataFrame({"y": [1.0, 2, 4, 3, 9], "d": [0.0, 0, 0, 0, 1]})
    found = OLS("y ~ d", data).fit().get_influence()
    assert found.hat_matrix_diag[-1] == pytest.approx(1)
    assert np.isnan(found.cooks_distance[0][-1])
    assert np.isfinite(found.cooks_distance[0][:-1]).all()


def test_a_quantity_of_one_scale_only():
    class Other:
        layout = (0, 0)

    class Fake:
        model, model_name = Other(), "Beta regression"

    from deepstats.influence import influence

    with pytest.raises(ModelError, match="has no leverages"):
        influence(Fake())
