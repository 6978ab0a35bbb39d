"""What the tests of lme4, MixedModels.jl and glmmTMB expect of linear mixed models.

Values are facts from those tests, with their own tolerances where they name one, else
half a unit of the last digit they give. Their searches, without gradients, stop up to
1e-5 short of the optimum in theta: there our deviance is the lower one.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import DesignError, RankWarning, SingularFitWarning
from deepstats.models.mixed import LinearMixed, MixedResults
from deepstats.models.mixed.model import parameters_of

from .data import fit, load


def deviance(result: MixedResults, theta: list[float]) -> float:
    """Return the criterion at relative factors in lme4's order."""
    return result.mixed.criterion(parameters_of(result.mixed.structure, theta)).value


def assert_no_worse(result: MixedResults, theirs: float) -> None:
    """Compare deviances: at most rounding above, at most a peer's tolerance below."""
    assert -1e-6 <= -2 * result.llf - theirs <= 1e-13 * theirs + 1e-9


# Of a peer's theta, for the reason above.
THETA = 2e-5


def sleep(formula: str, reml: bool = False) -> MixedResults:
    return LinearMixed(formula, load("sleepstudy")).fit(reml)


# -- MixedModels.jl, test/pls.jl -----------------------------------------------------


def test_dyestuff():
    result = fit("dyestuff_ML")
    assert_no_worse(result, 327.32705988112673)
    assert result.theta.iloc[0] == pytest.approx(0.7525806540074477, abs=1e-7)
    assert result.sigma == pytest.approx(49.5101003, abs=1e-6)
    assert result.bse.iloc[0] == pytest.approx(17.6945529, abs=1e-6)
    assert deviance(result, [0.713]) == pytest.approx(327.34216280954615, abs=1e-9)
    assert result.leverage.iloc[0] == pytest.approx(0.15650534, abs=1e-8)
    assert result.leverage.sum() == pytest.approx(4.69516026, abs=2e-7)
    assert_no_worse(fit("dyestuff_REML"), 319.6542768422576)


def test_dyestuff2_is_singular():
    result = fit("dyestuff2_singular_ML")
    assert result.theta.iloc[0] == 0.0
    assert result.singular
    assert_no_worse(result, 162.87303665382575)
    assert result.sigma == pytest.approx(3.6532313513746537, rel=1e-12)
    assert result.bse.iloc[0] == pytest.approx(0.6669857396443264, rel=1e-12)


def test_dyestuff2_warns():
    model = LinearMixed("Yield ~ 1 + (1 | Batch)", load("Dyestuff2"))
    with pytest.warns(SingularFitWarning, match="the variance of Intercept in .* zero"):
        model.fit()


def test_penicillin():
    result = fit("penicillin_crossed_ML")
    assert_no_worse(result, 332.1883486700085)
    np.testing.assert_allclose(result.theta, [1.53759390, 3.21979219], rtol=THETA)
    assert result.bse.iloc[0] == pytest.approx(0.74460378, rel=THETA)
    variances = result.cond_var()
    assert variances["plate"][0, 0, 0] == pytest.approx(0.0733135691, rel=THETA)
    assert variances["sample"][-1, 0, 0] == pytest.approx(0.0405159172, rel=THETA)
    last = result.ranef()["sample"]["Intercept"].iloc[-1]
    assert last == pytest.approx(-3.00182414, rel=1e-6)


def test_pastes():
    result = fit("pastes_nested_ML")
    assert_no_worse(result, 247.9944658624955)
    np.testing.assert_allclose(result.theta, [3.52690293, 1.32991374], rtol=THETA)
    assert result.bse.iloc[0] == pytest.approx(0.64213558, rel=1e-6)


def test_pastes_without_batches():
    """Theirs is the p-value of chi-squared on one degree, without the mixture."""
    casks = LinearMixed("strength ~ 1 + (1 | batch:cask)", load("pastes")).fit(False)
    test = fit("pastes_nested_ML").compare_lr_test(casks)
    assert test.naive_pvalue == pytest.approx(0.5233767966, abs=1e-7)
    assert test.pvalue == pytest.approx(0.5233767966 / 2, abs=1e-7)


def test_insteval():
    result = fit("insteval_3re_ML")
    assert_no_worse(result, 237721.76877450474)
    # A Float64 optimum of a derivative-free search: six digits.
    assert result.fittedvalues.iloc[0] == pytest.approx(3.1787619027, abs=1e-6)
    crossed = fit("insteval_2re_dept_service_ML")
    assert_no_worse(crossed, 237585.5534151695)


def test_sleepstudy_vector():
    result = fit("sleepstudy_slope_ML")
    assert_no_worse(result, 1751.9393444636682)
    np.testing.assert_allclose(
        result.theta, [0.9292297167, 0.0181646650, 0.2226460113], rtol=THETA, atol=2e-6
    )
    np.testing.assert_allclose(result.bse, [6.63229531, 1.50223879], rtol=THETA)
    assert result.leverage.sum() == pytest.approx(28.6116533053, abs=1e-4)
    variance = result.cond_var()["Subject"][0]
    expected = [[140.96755256, -20.60454420], [-20.60454420, 5.15779480]]
    np.testing.assert_allclose(variance, expected, rtol=2e-5)


def test_sleepstudy_zero_correlation():
    for formula in (
        "Reaction ~ Days + (Days || Subject)",
        "Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)",
    ):
        result = sleep(formula)
        assert_no_worse(result, 1752.003255140962)
        np.testing.assert_allclose(
            result.theta, [0.9458043022, 0.2269274100], rtol=THETA
        )
        np.testing.assert_allclose(result.bse, [6.70764651, 1.51931125], rtol=THETA)


def test_sleepstudy_slope_only():
    result = sleep("Reaction ~ Days + (0 + Days | Subject)")
    assert_no_worse(result, 1774.080315280526)
    assert result.theta.iloc[0] == pytest.approx(0.24353985601, rel=THETA)


def test_profile_intervals():
    """The lower end of the slopes' is lme4's; MixedModels.jl stops at zero."""
    ends = fit("sleepstudy_slope_ML").conf_int(method="profile")
    expected = {
        "Intercept": (237.681, 265.130),
        "Days": (7.359, 13.576),
        "sigma": (22.898, 28.858),
        "sd(Intercept)|Subject": (14.381, 37.718),
        "sd(Days)|Subject": (3.801, 8.753),
    }
    for name, wanted in expected.items():
        # 14.3814, 37.7160 in lme4, too: the printed 37.718 is an interpolation.
        np.testing.assert_allclose(ends.loc[name], wanted, atol=2.5e-3)


COOKS = [
    0.1270714, 0.1267805, 0.243096, 0.0002437091, 0.03145029, 0.2954052, 0.04550505,
    0.3552723, 0.1984806, 0.4518805, 0.1683441, 0.02902698, 0.004232616, 1.734029e-05,
    0.003816645, 0.00623334, 0.03219321, 0.05429389, 0.07319191, 0.06649928,
]  # fmt: skip


def test_cooks_distance():
    """Twenty of 180 values; also R's ``cooks.distance`` of lme4 1.1-31."""
    distances = fit("sleepstudy_intercept_ML").cooks_distance
    np.testing.assert_allclose(distances.iloc[:20], COOKS, atol=1e-5)


# -- MixedModels.jl, test/likelihoodratiotest.jl, test/sigma.jl ----------------------


def test_likelihood_ratio():
    full = fit("sleepstudy_slope_ML")
    test = full.compare_lr_test(sleep("Reaction ~ 1 + (Days | Subject)"))
    assert test.statistic == pytest.approx(23.5365, abs=5e-5)
    assert test.df_num == 1


@pytest.mark.parametrize("sigma", (1.0, 3.14))
def test_residual_standard_deviation_can_be_fixed(sigma):
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.arange(40), "y": rng.normal(size=40)})
    data["w"] = rng.uniform(0.5, 2.0, 40)
    model = LinearMixed("y ~ 1 + (1 | g)", data, weights="w", sigma=sigma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        assert model.fit(reml=False).sigma == sigma


def test_meta_analysis_is_that_of_the_textbook():
    """BCG trials (Colditz et al. 1994): metafor's REML estimates.

    Thirteen log risk ratios y with sampling variances v; ``rma(yi, vi)`` of metafor
    gives mu = -0.7145, standard error 0.1798, tau^2 = 0.3132.
    """
    y = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120,
         -0.4694, -1.3713, -0.3394, 0.4459, -0.0173]  # fmt: skip
    v = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564,
         0.0730, 0.0124, 0.5325, 0.0714]  # fmt: skip
    data = pd.DataFrame({"y": y, "w": 1 / np.array(v), "trial": range(13)})
    model = LinearMixed("y ~ 1 + (1 | trial)", data, weights="w", sigma=1.0)
    result = model.fit()
    assert result.params.iloc[0] == pytest.approx(-0.7145, abs=1e-4)
    assert result.bse.iloc[0] == pytest.approx(0.1798, abs=1e-4)
    assert result.varcorr["vcov"].iloc[0] == pytest.approx(0.3132, abs=1e-3)


# -- lme4, tests/testthat ------------------------------------------------------------


def test_deviance_function():
    """test-lmer.R."""
    result = fit("dyestuff_REML")
    assert deviance(result, [1.0]) == pytest.approx(319.792389042002, abs=1e-10)
    assert deviance(result, [0.0]) == pytest.approx(326.023232155879, abs=1e-10)
    assert_no_worse(result, 319.654276842342)
    variance = result.cov_params().iloc[0, 0]
    assert variance == pytest.approx(375.714676744, rel=1e-5)
    # Balanced: the mean square between batches over all rows.
    data = load("dyestuff")
    means = data.groupby("Batch", observed=True)["Yield"].mean()
    assert variance == pytest.approx(means.var() / 6, rel=1e-9)


# test-predict.R: Days, Subject, then predictions with all random effects, none, slopes
# only, intercepts only.
PREDICTED = [
    (0, 308, 253.663652396798, 251.405104848485, 251.405104848485, 253.663652396798),
    (9, 308, 430.66001930835, 345.610678484848, 428.401471760037, 347.869226033161),
    (0, 309, 211.006415533628, 251.405104848485, 251.405104848485, 211.006415533628),
    (9, 309, 227.634788908917, 345.610678484848, 268.033478223774, 305.211989169991),
    (0, 310, 212.444742696829, 251.405104848485, 251.405104848485, 212.444742696829),
    (9, 310, 257.61053840953, 345.610678484848, 296.570900561186, 306.650316333193),
]


@pytest.mark.parametrize(
    ("column", "form"),
    [(2, None), (3, "none"), (4, "~ (0 + Days | Subject)"), (5, "~ (1 | Subject)")],
)
def test_predictions_with_some_random_effects(column, form):
    frame = pd.DataFrame([row[:2] for row in PREDICTED], columns=["Days", "Subject"])
    found = fit("sleepstudy_slope_REML").predict(frame, re_form=form)
    wanted = np.array([row[column] for row in PREDICTED])
    # As testthat's expect_equal: mean difference over mean value.
    assert np.abs(found - wanted).mean() <= 5e-7 * np.abs(wanted).mean()


def test_predictions_of_a_crossed_model():
    result = fit("penicillin_crossed_REML")
    found = result.predict().iloc[:6].round(4)
    assert found.tolist() == [25.9638, 22.7663, 25.7147, 23.6799, 23.7629, 20.773]
    alone = result.predict(re_form="none").unique()
    np.testing.assert_allclose(alone, 22.9722222222251, rtol=1e-8)
    both = result.predict(re_form="~ (1 | plate) + (1 | sample)")
    swapped = result.predict(re_form="~ (1 | sample) + (1 | plate)")
    np.testing.assert_allclose(both, result.predict(), rtol=1e-14)
    np.testing.assert_allclose(swapped, both, rtol=1e-14)


def test_conditional_variances():
    """test-ranef.R, at its tolerance of 1e-3 and 1e-5."""
    variance = fit("dyestuff_ML").cond_var()["Batch"]
    np.testing.assert_allclose(variance, 362.3583, rtol=1e-3)
    variance = fit("sleepstudy_slope_REML").cond_var()["Subject"][0]
    expected = [[145.71273, -21.440414], [-21.440414, 5.310927]]
    np.testing.assert_allclose(variance, expected, rtol=1e-3)
    first = fit("sleepstudy_uncorr_REML").ranef(cond_var=True)["Subject"].iloc[0]
    # lme4's optimum there is 1.5e-4 off in theta: 1.5116973 for 1.512697.
    assert first["Intercept"] == pytest.approx(1.5116973008, rel=1e-3)
    assert first["Intercept.sd"] == pytest.approx(12.238845590, rel=1e-5)


def test_diagonal_covariance_of_glmmtmb():
    """glmmTMB test-basics.R, whose sleepstudy ``diag`` model is fitted by ML."""
    result = fit("sleepstudy_uncorr_ML")
    np.testing.assert_allclose(
        result.varcorr["vcov"].iloc[:2], [584.247907378, 33.6332741780], rtol=1e-5
    )


# -- mlmRev ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reml", "value"), [(False, 141685.5602141), (True, 141696.98814931)]
)
def test_chem97(reml, value):
    data = load("chem97")
    model = LinearMixed("score ~ gcsecnt + (1 | lea) + (1 | school)", data)
    assert -2 * model.fit(reml).llf == pytest.approx(value, abs=1e-6)


# -- rank, and what is refused --------------------------------------------------------


def test_rank_deficient_fixed_part():
    """MixedModels.jl pls.jl "Rank deficient", lme4 test-rank.R: x and 1.5 x."""
    rng = np.random.default_rng(0)
    x, g = rng.uniform(size=100), np.repeat(np.arange(20), 5)
    data = pd.DataFrame({"x": x, "x2": 1.5 * x, "z": rng.uniform(size=100), "g": g})
    data["y"] = rng.uniform(size=100) + 0.3 * rng.normal(size=20)[g]
    with pytest.warns(RankWarning, match="x2"):
        deficient = LinearMixed("y ~ x + x2 + z + (1 | g)", data).fit()
    plain = LinearMixed("y ~ x + z + (1 | g)", data).fit()
    assert list(deficient.params.index) == ["Intercept", "x", "z"]
    np.testing.assert_allclose(deficient.params, plain.params, rtol=1e-10)
    assert deficient.llf == pytest.approx(plain.llf, abs=1e-10)
    row = deficient.tidy().set_index("term").loc["x2"]
    assert np.isnan(row["estimate"])
    np.testing.assert_allclose(deficient.predict(data), plain.predict(data), rtol=1e-10)


def test_as_many_effects_as_rows():
    """lme4 test-lmer.R: 36 random effects, 36 rows."""
    data = load("ergoStool")
    with pytest.raises(DesignError, match="36 random effects and the data 36 rows"):
        LinearMixed("effort ~ 1 + (Type | Subject)", data)


def test_one_level():
    data = load("sleepstudy").assign(one="a")
    with pytest.raises(DesignError, match="one level"):
        LinearMixed("Reaction ~ Days + (1 | one)", data)


def test_constant_response():
    """MixedModels.jl refuses it too."""
    data = load("sleepstudy").assign(Reaction=1.0)
    with pytest.raises(DesignError):
        LinearMixed("Reaction ~ Days + (1 | Subject)", data).fit()
