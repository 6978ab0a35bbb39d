"""Tests of terms against lmerTest 3.1-3 and lme4 1.1-31.

Constants are from R 4.2.2::

    options(contrasts = c("contr.treatment", "contr.treatment"))
    cake$temperature <- factor(as.character(cake$temperature), ordered = FALSE)
    i <- seq_len(nrow(cake))
    u <- cake[i %% 7 != 0 & !(i %% 5 == 1 & cake$recipe == "B"), ]
    e <- u[!(u$recipe == "A" & u$temperature == "195"), ]
    control <- lmerControl(optCtrl = list(maxfun=1e6, xtol_abs=1e-12, ftol_abs=1e-12))
    m <- lmer(angle ~ recipe * temperature + (1 | recipe:replicate), u)
    anova(m, type = 2); drop1(m); drop1(lme4::lmer(..., REML = FALSE), test = "Chisq")
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import ModelError, RankWarning
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.terms import anova_table, drop1, term_contrasts

from .data import INFERENCE, formula_of, load

COLUMNS = ["Sum Sq", "Mean Sq", "NumDF", "DenDF", "F value", "Pr(>F)"]
RANDOM = "(1 | recipe:replicate)"

# Sum Sq, NumDF, DenDF, F, p of each term.
FACTORS = {
    1: [(6.5258309770, 2, 41.8392465138, 0.1590355956, 0.8534791805),
        (1891.205958, 5, 155.7501446, 18.43560257, 2.346307089e-14),
        (170.8065219776, 10, 155.9599193682, 0.8325167187, 0.5979628283)],
    2: [(6.9638924864, 2, 41.8430366786, 0.1697112281, 0.8444864431),
        (1891.205958, 5, 155.7501446, 18.43560257, 2.346307089e-14),
        (170.8065219776, 10, 155.9710336126, 0.8325167187, 0.5979627667)],
    3: [(7.0199058800, 2, 41.8545166354, 0.1710762839, 0.8433435986),
        (1897.349007, 5, 156.1205971, 18.49548543, 2.108083014e-14),
        (170.8065219776, 10, 155.9710336126, 0.8325167187, 0.5979627667)],
}  # fmt: skip
EMPTY_CELL = {
    1: [(10.4787319315, 2, 42.0659611763, 0.2537579512, 0.7770586971),
        (1899.330755, 5, 144.0615578, 18.39803840, 4.228417302e-14),
        (146.0133880070, 9, 144.2338435553, 0.7857621288, 0.6298541816)],
    2: [(11.0370833911, 2, 42.3436337895, 0.2672792555, 0.7667409989),
        (1899.330755, 5, 144.0615578, 18.39803840, 4.228417302e-14),
        (146.0133880070, 9, 144.2407154144, 0.7857621288, 0.6298541698)],
    3: [(11.2968635979, 2, 42.3620378524, 0.2735702164, 0.7619924809),
        (1906.390712, 5, 144.3908585, 18.46642530, 3.761856934e-14),
        (146.0133880070, 9, 144.2407154144, 0.7857621288, 0.6298541698)],
}  # fmt: skip
COVARIATE = {
    1: [(6.7143967936, 2, 41.9157038048, 0.1588517240, 0.8536340122),
        (1707.795210, 1, 166.9908562, 80.80732246, 5.206417530e-16),
        (16.1030949701, 2, 167.0326944349, 0.3809730757, 0.6837883940)],
    2: [(16.0057120249, 2, 189.3982843458, 0.3786691534, 0.6852893768),
        (1707.795210, 1, 166.9908562, 80.80732246, 5.206417530e-16),
        (16.1030949701, 2, 167.0328668565, 0.3809730757, 0.6837883934)],
    3: [(16.0057120249, 2, 189.3982843458, 0.3786691534, 0.6852893768),
        (1719.467806, 1, 167.0501659, 81.35963179, 4.304549077e-16),
        (16.1030949701, 2, 167.0328668565, 0.3809730757, 0.6837883934)],
}  # fmt: skip
KENWARD_ROGER = [
    (15.9992441741, 2, 189.4145388175, 0.3785156235, 0.6853941340),
    (1707.155862, 1, 167.0578005, 80.77707056, 5.248014280e-16),
    (16.0959619285, 2, 167.0996894421, 0.3808043167, 0.6839030386),
]


def unbalanced() -> pd.DataFrame:
    data = load("cake").reset_index(drop=True)
    i = np.arange(1, len(data) + 1)
    return data[(i % 7 != 0) & ~((i % 5 == 1) & (data["recipe"] == "B").to_numpy())]


def check(table: pd.DataFrame, expected: list, rtol: float = 2e-5) -> None:
    assert list(table.columns) == COLUMNS
    found = table[["Sum Sq", "NumDF", "DenDF", "F value", "Pr(>F)"]].to_numpy()
    # Degrees of freedom of lmerTest come from numerical second derivatives, and tails
    # of p magnify the last digits of F.
    np.testing.assert_allclose(found[:, :4], np.array(expected)[:, :4], rtol=rtol)
    np.testing.assert_allclose(found[:, 4], np.array(expected)[:, 4], rtol=1e-3)
    np.testing.assert_allclose(table["Mean Sq"], table["Sum Sq"] / table["NumDF"])


@pytest.mark.parametrize("type", [1, 2, 3])
@pytest.mark.parametrize(
    "coding", ["temperature", "C(temperature, contr.sum)", "C(temperature, contr.poly)"]
)
def test_unbalanced_factors_match_lmertest_in_any_coding(type, coding):
    fit = LinearMixed(f"angle ~ recipe * {coding} + {RANDOM}", unbalanced()).fit()
    table = anova_table(fit, type)
    assert list(table.index) == ["recipe", coding, f"recipe:{coding}"]
    check(table, FACTORS[type])


@pytest.mark.parametrize("type", [1, 2, 3])
def test_an_empty_cell_matches_lmertest(type):
    data = unbalanced()
    empty = (data["recipe"] == "A") & (data["temperature"].astype(str) == "195")
    with pytest.warns(RankWarning):
        fit = LinearMixed(
            f"angle ~ recipe * temperature + {RANDOM}", data[~empty]
        ).fit()
    # Which contrasts stand for a hypothesis moves its degrees of freedom a little, and
    # of an empty cell lmerTest's are not quite ours: they differ by 9e-5, F by nothing.
    check(anova_table(fit, type), EMPTY_CELL[type], 2e-4 if type == 3 else 2e-5)


@pytest.mark.parametrize("type", [1, 2, 3])
def test_covariate_by_factor_matches_lmertest(type):
    fit = LinearMixed(f"angle ~ recipe * temp + {RANDOM}", unbalanced()).fit()
    check(anova_table(fit, type), COVARIATE[type])


def test_kenward_roger_scales_f_but_not_sums_of_squares():
    fit = LinearMixed(f"angle ~ recipe * temp + {RANDOM}", unbalanced()).fit()
    check(anova_table(fit.with_ddf("kenward-roger"), "II"), KENWARD_ROGER)


@pytest.mark.parametrize("case", ["cake_full", "cake_add", "ergostool", "machines_int"])
@pytest.mark.parametrize(
    ("ddf", "key"), [("satterthwaite", "satterthwaite"), ("kenward-roger", "kr")]
)
def test_balanced_designs_match_the_reference(case, ddf, key):
    stored = INFERENCE[case]
    expected = stored[f"anova_type3_{key}"]
    data = load(stored["dataset"])
    table = anova_table(LinearMixed(formula_of(stored), data).fit(ddf=ddf), 3)
    rows = [tuple(row[c] for c in COLUMNS if c != "Mean Sq") for row in expected]
    check(table, rows, 1e-6)


def test_terms_of_one_coefficient_are_its_squared_t():
    fit = LinearMixed("Reaction ~ Days + (Days | Subject)", load("sleepstudy")).fit()
    row = fit.anova().loc["Days"]
    assert row["F value"] == pytest.approx(fit.tvalues["Days"] ** 2, rel=1e-9)
    assert row["Pr(>F)"] == pytest.approx(fit.pvalues["Days"], rel=1e-7)
    normal = fit.with_ddf("normal").anova().loc["Days"]
    assert normal["F value"] == pytest.approx(row["F value"], rel=1e-9)
    assert normal["DenDF"] == np.inf


def test_sequential_hypotheses_are_those_of_least_squares():
    data = unbalanced()
    fit = LinearMixed(f"angle ~ temp + recipe + {RANDOM}", data).fit()
    R = term_contrasts(fit, 1)["temp"]
    X = fit.model.design.X.to_dense().numpy()
    # The coefficient of temp alone, as a function of the larger model's.
    first = np.linalg.lstsq(X[:, [0, list(fit.names).index("temp")]], X, rcond=None)[0]
    np.testing.assert_allclose(R / R[0, np.abs(R[0]).argmax()],
                               first[1:] / first[1, np.abs(R[0]).argmax()],
                               atol=1e-10)  # fmt: skip


def test_drop1_by_likelihood_matches_lme4():
    for intercept in ("", "0 + "):
        formula = f"angle ~ {intercept}recipe + temperature + {RANDOM}"
        table = drop1(LinearMixed(formula, unbalanced()).fit(reml=True))
        assert list(table.columns) == ["npar", "AIC", "LRT", "Pr(Chi)"]
        assert list(table.index) == ["<none>", "recipe", "temperature"]
        expected = [1374.230621, 1370.5912539474, 1440.418549]
        np.testing.assert_allclose(table["AIC"], expected, rtol=1e-8)
        np.testing.assert_allclose(table["npar"].iloc[1:], [2, 5])
        lrt = [0.3606331726, 76.18792850]
        np.testing.assert_allclose(table["LRT"].iloc[1:], lrt, rtol=1e-5)
        p = [0.8350058182, 5.255760623e-15]
        np.testing.assert_allclose(table["Pr(Chi)"].iloc[1:], p, rtol=1e-5)


def test_drop1_by_f_matches_lmertest():
    fit = LinearMixed(f"angle ~ recipe + temperature + {RANDOM}", unbalanced()).fit()
    check(fit.drop1("f"), [
        (6.8514051599, 2, 41.9183564430, 0.1687651774, 0.8452783084),
        (1896.715446, 5, 165.6476498, 18.68810916, 1.054708258e-14),
    ])  # fmt: skip
    fit = LinearMixed(f"angle ~ recipe * temp + {RANDOM}", unbalanced()).fit()
    table = fit.drop1("f")
    assert list(table.index) == ["recipe:temp"]
    check(table, [(16.1030949701, 2, 167.0328668565, 0.3809730757, 0.6837883934)])


def test_what_cannot_be_tested_is_said():
    fit = LinearMixed("Reaction ~ 1 + (1 | Subject)", load("sleepstudy")).fit()
    assert anova_table(fit, 3).empty
    with pytest.raises(ModelError, match="no term"):
        drop1(fit)
    with pytest.raises(ValueError, match="type must be"):
        anova_table(fit, 4)
    with pytest.raises(ValueError, match="test must be"):
        drop1(fit, "wald")
