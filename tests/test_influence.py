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

# R 4.2.2 influence.measures and rstudent of lm on longley (employed, all regressors):
# rows 1, 5 and 16: seven dfbetas, dffit, cov.r, cook.d, hat, rstudent.
LONGLEY = {
    0: [
        -0.0164061989561821,
        -0.234565947330914,
        -0.0450945415085895,
        -0.121512991803374,
        -0.149026064283226,
        0.211057162495354,
        0.0133884622452721,
        1.01447180539633,
        1.28645492817955,
        0.140840156507828,
        0.424536930626531,
        1.18111170245073,
    ],
    4: [
        1.87126012490235,
        -0.219351447549147,
        1.61141803619143,
        1.56152040085646,
        1.16933725090417,
        -1.08151289621319,
        -1.86418565035354,
        2.33315310267792,
        0.497008648704309,
        0.613916838192151,
        0.615511094174135,
        1.84402668842846,
    ],
    15: [
        -0.538322630429123,
        0.432004348971638,
        -0.261262239451455,
        -0.143444084103442,
        -0.360889856449899,
        -0.467296062190209,
        0.552421025599041,
        -1.86386859393581,
        2.08797459730039,
        0.466682597016338,
        0.688614601693894,
        -1.25336135110137,
    ],
}


@pytest.fixture(scope="module")
def visits():
    return load_docvisits()


@pytest.fixture(scope="module")
def longley():
    return sm.datasets.longley.load_pandas().data


def assert_close(a, b, rtol=1e-8):
    b = np.asarray(b)
    np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("row", LONGLEY)
def test_longley_matches_r(longley, row):
    names = "GNPDEFL + GNP + UNEMP + ARMED + POP + YEAR"
    found = OLS(f"TOTEMP ~ {names}", longley).fit().get_influence()
    ours = [
        *found.dfbetas[row], found.dffits[0][row], found.cov_ratio[row],
        found.cooks_distance[0][row], found.hat_matrix_diag[row],
        found.resid_studentized_external[row],
    ]  # fmt: skip
    np.testing.assert_allclose(ours, LONGLEY[row], rtol=1e-8)


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
