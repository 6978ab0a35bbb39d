"""The bootstrap of trajectory models, and tests of the number of groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import deepstats as ds
from deepstats.errors import ModelError
from deepstats.models.trajectory import Trajectory, TrajectoryResults
from deepstats.models.trajectory.ratio import weighted_tail
from deepstats.models.trajectory.replicates import draw

from .simulated import crossing


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return crossing(300)


@pytest.fixture(scope="module")
def two(data) -> TrajectoryResults:
    return ds.traj("traj(y ~ t, groups=2, id=id)", data).fit(starts=12)


@pytest.fixture(scope="module")
def one(data) -> TrajectoryResults:
    return ds.traj("traj(y ~ t, groups=1, id=id)", data).fit()


# -- bootstrap -------------------------------------------------------------------------


def test_units_give_the_sandwich(two):
    found = two.bootstrap("units", 600, seed=1)
    robust = two.get_robustcov_results("HC0").bse
    # 600 replicates tell a standard error to 3%; the sandwich is a large-sample one.
    assert found.failed == 0
    assert ((found.bse / robust - 1).abs() < 0.12).all()
    assert (found.bias.abs() < 0.2 * robust).all()


def test_parametric_replicates_give_the_information(two):
    found = two.bootstrap("parametric", 600, seed=2)
    assert ((found.bse / two.bse - 1).abs() < 0.12).all()


def test_clusters_are_drawn_whole(data, two):
    """With every unit five times over, clusters know that there are fewer."""
    copies = [data.assign(id=data["id"] + 1_000 * k, pair=data["id"]) for k in range(5)]
    many = ds.traj("traj(y ~ t, groups=2, id=id, cluster=pair)", pd.concat(copies))
    fit = many.fit(start=two.params)
    clustered = fit.bootstrap("cluster", 300, seed=3)
    np.testing.assert_allclose(fit.params, two.params, atol=1e-5)
    ratio = clustered.bse / two.bootstrap("units", 300, seed=3).bse
    assert ((ratio - 1).abs() < 0.02).all()
    assert (fit.bootstrap("units", 200, seed=4).bse < 0.6 * clustered.bse).all()
    by_name = fit.bootstrap("cluster", 20, groups="pair", seed=5)
    pd.testing.assert_frame_equal(
        by_name.params, fit.bootstrap("cluster", 20, seed=5).params
    )


def test_the_same_seed_gives_the_same_and_intervals_are_about_the_estimates(two):
    first, again = (two.bootstrap(replications=50, seed=7) for _ in range(2))
    pd.testing.assert_frame_equal(first.params, again.params)
    for method in ("percentile", "basic", "normal", "bca"):
        limits = first.conf_int(method=method)
        assert (limits[0] < two.params).all() and (two.params < limits[1]).all()


def test_a_statistic(two):
    def crossing_time(params: pd.Series) -> float:
        gap = params["g2:Intercept"] - params["g1:Intercept"]
        return float(-gap / (params["g2:t"] - params["g1:t"]))

    found = two.bootstrap(replications=200, seed=1, statistic=crossing_time)
    assert found.estimate["statistic"] == pytest.approx(crossing_time(two.params))
    limits = found.conf_int(method="bca").loc["statistic"]
    assert limits[0] < 2 / 1.4 < limits[1]


def test_families_whose_replicates_are_drawn_one_by_one(data):
    clipped = data.assign(y=data["y"].clip(0))
    model = ds.traj("traj(y ~ t, groups=2, id=id, lower=0)", clipped, family="cnorm")
    fit = model.fit(starts=8)
    found = fit.bootstrap("parametric", 40, seed=1)
    assert found.failed == 0
    assert ((found.bse / fit.bse).between(0.6, 1.5)).all()


def test_what_cannot_be_drawn(two):
    with pytest.raises(ValueError, match="kind must be one of"):
        two.bootstrap("pairs")
    with pytest.raises(ValueError, match="2 or more"):
        two.bootstrap(replications=1)
    with pytest.raises(ValueError, match="goes with kind='cluster'"):
        two.bootstrap(groups="site")
    with pytest.raises(ModelError, match="needs groups="):
        two.bootstrap("cluster", 10)


# -- likelihood-ratio tests ------------------------------------------------------------


def test_two_groups_are_found_where_there_are_two(two, one):
    found = two.blrt(39, seed=1)
    assert found.statistic == pytest.approx(2 * (two.llf - one.llf), rel=1e-8)
    assert found.pvalue == 1 / 40
    assert len(found.replicates) == 39 and (found.replicates >= 0).all()
    assert two.vlmr(null=one).adjusted_pvalue < 1e-4


@pytest.mark.filterwarnings("ignore::deepstats.errors.NonuniqueWarning")
@pytest.mark.filterwarnings("ignore::deepstats.errors.SeparationWarning")
def test_the_level_of_the_test_where_one_group_is_true():
    """Under one group p-values are spread evenly, and one in ten is below 0.1."""
    frame = crossing(60)
    model = Trajectory("traj(y ~ t, groups=1, id=id)", frame)
    truth = model.parameters.working(torch.tensor([1.0, 0.2, 1.0]).double())
    generator = torch.Generator().manual_seed(5)
    drawn = draw(model.study, model.assembled, truth, 20, generator).responses[0]
    pvalues = []
    for y in drawn.numpy():
        again = frame.assign(y=y)
        null = ds.traj("traj(y ~ t, groups=1, id=id)", again).fit()
        fit = ds.traj("traj(y ~ t, groups=2, id=id)", again).fit(starts=8)
        pvalues.append(fit.blrt(19, null=null, seed=1, starts=8).pvalue)
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01
    assert np.mean(np.array(pvalues) <= 0.1) < 0.3


def test_a_third_group_is_not_found(data, two):
    three = ds.traj("traj(y ~ t, groups=3, id=id)", data).fit(starts=12)
    found = three.blrt(39, null=two, seed=1)
    assert found.pvalue > 0.05
    early = three.blrt(39, null=two, seed=1, stop=3)
    assert early.stopped and len(early.replicates) < 39
    assert early.pvalue == pytest.approx(3 / len(early.replicates))
    assert early.replicates == pytest.approx(found.replicates[: len(early.replicates)])


def test_null_must_be_the_model_of_one_group_less(data, two, one):
    other = ds.traj("traj(y ~ t, groups=1, id=id)", data.iloc[:600]).fit()
    with pytest.raises(ModelError, match="other data"):
        two.blrt(5, null=other)
    with pytest.raises(ModelError, match="one less"):
        two.vlmr(null=two)
    with pytest.raises(ModelError, match="no smaller one"):
        one.blrt(5)
    weighted = ds.traj("traj(y ~ t, groups=2, id=id, weights=weight)", data)
    with pytest.raises(ModelError, match="pseudo-likelihood"):
        weighted.fit(starts=8).blrt(5)


def test_orders_that_differ_need_a_null(data, two):
    fit = ds.traj("traj(y ~ t, groups=2, id=id, orders=(1, 0))", data).fit(starts=8)
    with pytest.raises(ModelError, match="give it as null="):
        fit.vlmr()


@pytest.mark.parametrize("df", [1, 2, 5, 30])
@pytest.mark.parametrize("value", [1e-3, 1.0, 20.0, 200.0])
def test_tail_of_chi_squared(df, value):
    expected = stats.chi2.sf(value, df)
    assert weighted_tail(value, np.ones(df)) == pytest.approx(expected, rel=1e-8)
    assert weighted_tail(3 * value, np.full(df, 3.0)) == pytest.approx(
        expected, rel=1e-8
    )


def test_tail_with_weights_of_both_signs():
    """Differences of two exponentials are Laplace: the tail is known."""
    for value in (0.1, 1.0, 6.0):
        found = weighted_tail(value, np.array([1.0, 1.0, -1.0, -1.0]))
        assert found == pytest.approx(0.5 * np.exp(-value / 2), rel=1e-8)
    assert weighted_tail(0.0, np.array([1.0, -1.0])) == 1.0
    assert weighted_tail(1.0, np.array([-1.0])) == 0.0
