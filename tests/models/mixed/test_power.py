"""Power by simulation against closed forms of balanced designs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepstats.errors import DesignError
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.degrees import contrast_test
from deepstats.models.mixed.power import power
from deepstats.models.mixed.together import Together

from .data import load

SEEDS = np.random.SeedSequence(2024).generate_state(10)


def crossover(groups: int = 6, each: int = 2) -> pd.DataFrame:
    """Three treatments in every group, and a covariate between groups."""
    frame = pd.DataFrame(
        {"g": np.repeat(np.arange(groups), 3 * each),
         "a": np.tile(np.repeat(["u", "v", "w"], each), groups)}
    )  # fmt: skip
    return frame.assign(z=(frame["g"] % 2).astype(float))


def within(found: float, expected: float, count: int) -> bool:
    """Whether a share is within 3.5 of its standard errors."""
    return abs(found - expected) <= 3.5 * np.sqrt(expected * (1 - expected) / count)


def truth(**more):
    return {"random": {"sd(Intercept)|g": 2.0}, "sigma": 1.0, "along": "g", **more}


def test_power_of_a_within_group_term_is_that_of_the_noncentral_f():
    count = 2000
    table = power(
        "y ~ a + (1 | g)", crossover(), test="a", n_sim=count, sizes=[6, 10],
        effect={"a[T.v]": 0.5, "a[T.w]": 0.9}, seed=int(SEEDS[0]), **truth(),
    )  # fmt: skip
    assert list(table["g"]) == [6, 10]
    means = np.array([0.0, 0.5, 0.9])
    for row in table.itertuples():
        ncp = 2 * row.g * ((means - means.mean()) ** 2).sum()
        df = row.n - row.g - 2
        expected = stats.ncf.sf(stats.f.isf(0.05, 2, df), 2, df, ncp)
        assert within(row.power, expected, count)
        assert row.power_low < row.power < row.power_high
        assert row.failed == 0 and row.singular < 0.01


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_power_of_a_between_group_effect_is_that_of_the_noncentral_t(ddf):
    count = 2000
    effect, groups = 2.5, 10
    table = power(
        "y ~ z + (1 | g)", crossover(), test="z", effect=effect, n_sim=count,
        sizes=[groups], ddf=ddf, seed=int(SEEDS[1]), **truth(),
    )  # fmt: skip
    se = np.sqrt((4 + 1 / 6) * (4 / groups))
    df = groups - 2
    t = stats.t.isf(0.025, df)
    expected = stats.nct.sf(t, df, effect / se) + stats.nct.cdf(-t, df, effect / se)
    assert within(table["power"].item(), expected, count)
    # The mean of the estimated standard error: of a chi with df degrees of freedom.
    mean_se = se * stats.chi.mean(df) / np.sqrt(df)
    assert table["mean_se"].item() == pytest.approx(mean_se, rel=0.03)


@pytest.mark.parametrize("term", ["a", "z"])
def test_without_an_effect_power_is_alpha(term):
    count = 2000
    for alpha in (0.05, 0.2):
        table = power(
            "y ~ a + z + (1 | g)", crossover(), test=term, n_sim=count, alpha=alpha,
            sizes=[8], seed=int(SEEDS[2]), **truth(),
        )  # fmt: skip
        assert within(table["power"].item(), alpha, count)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_tests_of_all_replicates_are_those_of_each(ddf):
    data = crossover().assign(x=np.tile(np.arange(6.0), 6))
    options = dict(
        test="a", effect={"a[T.v]": 0.3}, sizes=[6], n_sim=20, seed=5, ddf=ddf,
        random={"sd(Intercept)|g": 0.5, "sd(x)|g": 0.3}, sigma=1.0, along="g",
    )  # fmt: skip
    formula = "y ~ a + x + (x || g)"
    batched = power(formula, data, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Together, "pays", staticmethod(lambda products: False))
        apart = power(formula, data, **options)
    pd.testing.assert_frame_equal(batched, apart, rtol=1e-6)


def test_a_fit_lends_its_estimates():
    fit = LinearMixed("Reaction ~ Days + (Days | Subject)", load("sleepstudy")).fit()
    table = power(
        fit, test="Days", effect=3.0, along="Subject", sizes=[18], rows=[5, 10],
        n_sim=300, seed=3,
    )  # fmt: skip
    assert list(table["rows"]) == [5, 10] and list(table["n"]) == [90, 180]
    assert table["mean_se"].iloc[1] == pytest.approx(fit.bse["Days"], rel=0.05)
    expected = stats.nct.sf(stats.t.isf(0.025, 17), 17, 3.0 / fit.bse["Days"])
    assert within(table["power"].iloc[1], expected, 300)
    assert table["power"].iloc[0] < table["power"].iloc[1] + 0.05
    whole = power(fit, test="Days", n_sim=50, seed=3)
    assert whole["power"].item() == 1.0 and whole["n"].item() == 180
    test = contrast_test(fit, np.array([[0.0, 1.0]]), np.zeros(1), True)
    assert test.pvalue < 1e-4


def test_nested_levels_and_weights_are_extended():
    data = load("Pastes")
    rng = np.random.default_rng(0)
    data["x"], data["w"] = rng.normal(size=len(data)), rng.uniform(1, 2, len(data))
    model = LinearMixed("strength ~ x + (1 | batch) + (1 | sample)", data, weights="w")
    table = power(model.fit(), test="x", along="batch", sizes=[15], n_sim=20, seed=0)
    assert table["n"].item() == 90
    assert table["batch"].item() == 15


def test_what_cannot_be_simulated_is_said():
    data = crossover()
    with pytest.raises(ValueError, match="neither a coefficient"):
        power("y ~ a + (1 | g)", data, test="b", sizes=[6], **truth())
    with pytest.raises(ValueError, match="as a mapping"):
        power("y ~ a + (1 | g)", data, test="a", effect=1.0, **truth())
    with pytest.raises(ValueError, match="lacks"):
        power("y ~ a + (a | g)", data, test="a", **truth())
    with pytest.raises(ValueError, match="give data="):
        power("y ~ a + (1 | g)", data, test="a", sigma=1.0)
    with pytest.raises(ValueError, match="go with along"):
        power("y ~ a + (1 | g)", data, test="a", sizes=[3], sigma=1.0, theta=[1.0])
    with pytest.raises(ValueError, match="no coefficients"):
        power("y ~ a + (1 | g)", data, test="a", beta={"b": 1.0}, **truth())
    with pytest.raises(DesignError, match="no column of a grouping factor"):
        power("y ~ a + z + (1 | g)", data, test="a", **truth(along="z"))
    with pytest.raises(DesignError, match="no column the formula uses"):
        power("y ~ a + (1 | g)", data, test="a", **truth(along="h"))
