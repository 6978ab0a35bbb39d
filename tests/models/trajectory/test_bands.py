"""Trajectories: grids, standard errors by the delta method, bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, ndtri
from scipy.stats import norm

from deepstats.errors import DesignError, SeparationWarning
from deepstats.models.trajectory import Trajectory
from deepstats.models.trajectory.results import TrajectoryResults

from .panels import fit, panel

T = np.arange(5.0)
Q = float(ndtri(0.975))


@pytest.fixture(scope="module")
def gaussian():
    return fit("y ~ t + I(t**2) + z", risk="~ x")


@pytest.fixture(scope="module")
def poisson():
    return fit("count ~ t", family="poisson")


@pytest.fixture(scope="module")
def zip_():
    return fit("excess ~ t", family="zip", zero="~ t")


@pytest.fixture(scope="module")
def several():
    return fit("traj(y ~ t, count ~ t)", family=["gaussian", "poisson"])


def brute(results, curve):
    """Value and standard error of a curve of the reported parameters, numerically."""
    params, cov = results.params, results.cov_params().to_numpy()
    jacobian = np.empty((len(curve(params)), len(params)))
    for j, name in enumerate(params.index):
        step = 1e-5 * max(1.0, abs(params.iloc[j]))
        up, down = params.copy(), params.copy()
        up[name], down[name] = up[name] + step, down[name] - step
        jacobian[:, j] = (curve(up) - curve(down)) / (2 * step)
    variance = np.einsum("ij,jk,ik->i", jacobian, cov, jacobian)
    return curve(params), np.sqrt(variance)


def check(frame, results, curve):
    value, error = brute(results, curve)
    np.testing.assert_allclose(frame["estimate"], value, rtol=1e-9)
    np.testing.assert_allclose(frame["std_err"], error, rtol=1e-5)


def line(p, group, t=T, part=""):
    return p[f"g{group}:{part}Intercept"] + p[f"g{group}:{part}t"] * t


# -- standard errors -------------------------------------------------------------------


@pytest.mark.parametrize("cov_type", ["nonrobust", "HC0"])
@pytest.mark.parametrize("group", [1, 2])
def test_gaussian_at_the_mean_of_a_covariate(gaussian, group, cov_type):
    results = gaussian.get_robustcov_results(cov_type)
    z = panel()["z"].mean()

    def curve(p):
        square = p[f"g{group}:I(t ** 2)"] * T**2
        return line(p, group) + square + p[f"g{group}:z"] * z

    frame = results.trajectories().query("group == @group")
    check(frame, results, curve)
    assert frame["t"].tolist() == T.tolist()
    np.testing.assert_allclose(frame["z"], z)
    half = Q * frame["std_err"]
    np.testing.assert_allclose(frame["upper"], frame["estimate"] + half)
    np.testing.assert_allclose(frame["lower"], frame["estimate"] - half)


def test_counts_get_limits_through_the_link(poisson):
    frame = poisson.trajectories(level=0.9).query("group == 2")
    check(frame, poisson, lambda p: np.exp(line(p, 2)))
    linear = poisson.trajectories(scale="linear", level=0.9).query("group == 2")
    check(linear, poisson, lambda p: line(p, 2))
    for end in ("lower", "upper"):
        np.testing.assert_allclose(frame[end], np.exp(linear[end]))
    width = 2 * float(ndtri(0.95)) * linear["std_err"]
    np.testing.assert_allclose(linear["upper"] - linear["lower"], width)


def test_excess_zeros_change_the_mean_and_its_error(zip_):
    def curve(p):
        zero = p["g1:inflate:Intercept"] + p["g1:inflate:t"] * T
        return (1 - expit(zero)) * np.exp(line(p, 1))

    frame = zip_.trajectories().query("group == 1")
    check(frame, zip_, curve)
    _, error = brute(zip_, lambda p: np.log(curve(p)))
    np.testing.assert_allclose(
        np.log(frame["upper"] / frame["estimate"]), Q * error, rtol=1e-5
    )
    np.testing.assert_allclose(
        np.log(frame["estimate"] / frame["lower"]), Q * error, rtol=1e-5
    )


def test_censored_means_stay_within_their_limits():
    results = fit("seen ~ t", family="cnorm", lower=-1.0, upper=5.0, variance="group")

    def curve(p, group=2):
        mu, sigma = line(p, group), p[f"g{group}:sigma"]
        a, b = (-1.0 - mu) / sigma, (5.0 - mu) / sigma
        inside = mu * (norm.cdf(b) - norm.cdf(a)) - sigma * (norm.pdf(b) - norm.pdf(a))
        return inside - norm.cdf(a) + 5.0 * norm.sf(b)

    frame = results.trajectories(level=0.999).query("group == 2")
    check(frame, results, curve)
    assert (frame["lower"] > -1.0).all() and (frame["upper"] < 5.0).all()
    assert (frame["lower"] < frame["estimate"]).all()
    assert (frame["upper"] > frame["estimate"]).all()
    latent = results.trajectories(scale="linear").query("group == 2")
    check(latent, results, lambda p: line(p, 2))


def test_ordinal_levels_count_as_the_numbers_they_are():
    results = fit("grade ~ t", family="ordinal")
    assert {"step2", "step3"} < set(results.params.index)

    def curve(p):
        # The first threshold is zero, each other one a step above.
        heights = np.cumsum([0.0, p["step2"], p["step3"]])
        above = expit(line(p, 1)[:, None] - heights)
        return 1 + above.sum(1)

    frame = results.trajectories().query("group == 1")
    check(frame, results, curve)
    assert frame["lower"].gt(1.0).all() and frame["upper"].lt(4.0).all()


def test_multinomial_levels_have_a_curve_each():
    data = panel()
    data["grade"] = data["grade"].clip(upper=3)
    model = Trajectory("grade ~ t", data, family="multinomial", groups=2, id="pid")
    results = model.fit(starts=6, order="size")
    frame = results.trajectories()
    assert frame["level"].unique().tolist() == [1, 2, 3]
    total = frame.groupby(["group", "t"])["estimate"].sum()
    np.testing.assert_allclose(total, 1.0)
    assert frame["lower"].gt(0).all() and frame["upper"].lt(1).all()
    linear = results.trajectories(scale="linear")
    assert linear["level"].unique().tolist() == [2, 3]
    odds = frame.set_index(["group", "level", "t"])["estimate"]
    wanted = np.log(odds.xs(3, level="level") / odds.xs(1, level="level"))
    found = linear.query("level == 3").set_index(["group", "t"])["estimate"]
    pd.testing.assert_series_equal(found, wanted)


def test_several_outcomes_use_their_own_parameters(several):
    frame = several.trajectories()
    assert frame.columns[:2].tolist() == ["group", "outcome"]
    one = frame.query("outcome == 'y' and group == 2")
    check(one, several, lambda p: line(p, 2, part="y:"))
    other = frame.query("outcome == 'count' and group == 2")
    check(other, several, lambda p: np.exp(line(p, 2, part="count:")))
    only = several.trajectories(outcome="count")
    assert only["outcome"].unique().tolist() == ["count"]
    with pytest.raises(ValueError, match="must be one of"):
        several.trajectories(outcome="counts")


def test_what_has_no_variance_has_no_band():
    data = panel()
    data["sure"] = np.where(data["truth"] == 2, 1, data["yes"] > 2).astype(int)
    with pytest.warns(SeparationWarning, match="do not determine"):
        results = fit("sure ~ t", data, family="binomial")
    with pytest.warns(SeparationWarning, match="bands are missing"):
        frame = results.trajectories(interval="simultaneous")
    ends = ["std_err", "lower", "upper"]
    assert frame.query("group == 2")[ends].isna().all().all()
    assert frame.query("group == 1")[ends].notna().all().all()
    assert frame["estimate"].notna().all()


def test_an_inflation_that_is_not_there_costs_no_band():
    data = panel()
    data["count"] = data["count"] + 1
    plain = fit("count ~ t", data, family="poisson")
    with pytest.warns(SeparationWarning, match="inflate"):
        inflated = fit("count ~ t", data, family="zip")
    with pytest.warns(SeparationWarning, match="bands are missing"):
        frame = inflated.trajectories()
    np.testing.assert_allclose(
        frame["std_err"], plain.trajectories()["std_err"], rtol=1e-3
    )


# -- simultaneous bands ----------------------------------------------------------------


def critical(frame):
    """Number of standard errors of limits on the linear scale; (rows,)."""
    return ((frame["upper"] - frame["estimate"]) / frame["std_err"]).to_numpy()


def test_simultaneous_bands_cover_whole_curves(gaussian):
    """Draw the parameters anew: 95 of 100 curves are inside at all points at once."""
    frame = gaussian.trajectories(interval="simultaneous").query("group == 1")
    point = gaussian.trajectories().query("group == 1")
    assert (frame["lower"] < point["lower"]).all()
    assert (frame["upper"] > point["upper"]).all()
    names = ["g1:Intercept", "g1:t", "g1:I(t ** 2)", "g1:z"]
    cov = gaussian.cov_params().loc[names, names]
    X = np.column_stack([np.ones(5), T, T**2, np.full(5, panel()["z"].mean())])
    rng = np.random.default_rng(5)
    draws = rng.multivariate_normal(gaussian.params[names], cov, 40_000) @ X.T

    def coverage(band):
        low, high = band["lower"].to_numpy(), band["upper"].to_numpy()
        return float(((draws > low) & (draws < high)).all(1).mean())

    assert abs(coverage(frame) - 0.95) < 0.006
    assert coverage(point) < 0.92


def test_bands_over_all_groups_are_wider_and_seeded(gaussian):
    each = gaussian.trajectories(interval="simultaneous")
    both = gaussian.trajectories(interval="simultaneous", over="all")
    assert np.ptp(critical(both)) < 1e-9
    assert critical(each).max() < critical(both).min() < float(ndtri(1 - 0.025 / 10))
    again = gaussian.trajectories(interval="simultaneous", over="all")
    pd.testing.assert_frame_equal(both, again)
    other = gaussian.trajectories(interval="simultaneous", over="all", seed=1)
    assert 0 < abs(critical(other)[0] - critical(both)[0]) < 0.05


def test_one_point_needs_no_more_than_a_pointwise_band(gaussian):
    row = {"t": [2.0], "z": [0.0]}
    frame = gaussian.trajectories(row, interval="simultaneous")
    np.testing.assert_allclose(critical(frame), Q, atol=0.05)


def test_without_an_interval_there_are_no_limits(gaussian):
    frame = gaussian.trajectories(interval=None)
    assert frame.columns.tolist() == ["group", "t", "z", "estimate", "std_err"]


# -- new data --------------------------------------------------------------------------


def test_rows_of_new_data(gaussian):
    new = pd.DataFrame({"t": [1.5, np.nan, 3.0], "z": 0.0}, index=[4, 7, 9])
    frame = gaussian.trajectories(new)
    assert len(frame) == 6
    assert frame["estimate"].isna().tolist() == [False, True, False] * 2
    p = gaussian.params
    wanted = line(p, 1, 1.5) + p["g1:I(t ** 2)"] * 1.5**2
    np.testing.assert_allclose(frame["estimate"][0], wanted)
    with pytest.raises(DesignError, match="needs the columns 'z'"):
        gaussian.trajectories({"t": [1.0]})


def test_levels_that_were_not_there_are_refused():
    results = fit("y ~ t", common="~ place")
    frame = results.trajectories({"t": [1.0, 1.0], "place": ["a", "c"]})
    step = frame["estimate"].diff()[1]
    np.testing.assert_allclose(step, results.params["place[T.c]"])
    with pytest.raises(DesignError, match="place"):
        results.trajectories({"t": [1.0], "place": ["q"]})
    # Where nothing is said, the most frequent level.
    usual = results.trajectories()["place"].unique().tolist()
    assert usual == [panel()["place"].mode()[0]]


def test_columns_named_as_ours_are_renamed():
    data = panel().rename(columns={"z": "group"})
    frame = fit("y ~ t + group", data).trajectories()
    assert frame.columns[:3].tolist() == ["group", "t", "group.data"]
    np.testing.assert_allclose(frame["group.data"], data["group"].mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": "joint"}, "interval='joint'"),
        ({"scale": "log"}, "scale='log'"),
        ({"over": "both"}, "over='both'"),
        ({"level": 95}, "between 0 and 1"),
    ],
)
def test_unknown_options(gaussian, options, message):
    with pytest.raises(ValueError, match=message):
        gaussian.trajectories(**options)


# -- grids -----------------------------------------------------------------------------


def test_a_column_of_squares_moves_with_time():
    results = fit("y ~ t + square")
    frame = results.trajectories(smooth=True).query("group == 1")
    assert len(frame) > 50
    np.testing.assert_allclose(frame["square"], frame["t"] ** 2)


def test_functions_of_time_move_along_at_observed_times():
    data = panel()
    data["late"] = np.where(data["t"] > 2, "late", "early")
    frame = fit("y ~ t + late", data).trajectories(smooth=True).query("group == 1")
    assert frame["t"].tolist() == T.tolist()
    assert frame["late"].tolist() == ["early"] * 3 + ["late"] * 2


def test_times_as_levels_are_shown_where_they_are():
    frame = fit("y ~ C(t)").trajectories(smooth=True).query("group == 1")
    assert frame["t"].tolist() == T.tolist()


def test_many_times_are_thinned_and_another_column_may_move():
    data = panel()
    data["age"] = data["t"] + np.random.default_rng(0).random(len(data))
    results = fit("y ~ age + z", data)
    frame = results.trajectories().query("group == 1")
    assert len(frame) == 50
    assert frame["age"].iloc[[0, -1]].tolist() == [data["age"].min(), data["age"].max()]
    moved = results.trajectories(time="z").query("group == 1")
    np.testing.assert_allclose(moved["age"], data["age"].mean())
    assert moved["z"].iloc[-1] == data["z"].max()
    with pytest.raises(DesignError, match="numeric column"):
        results.trajectories(time="place")
    data.loc[3, "w"] = np.nan
    with pytest.raises(DesignError, match="missing in rows"):
        fit("y ~ age", data).trajectories(time="w")


def test_exposure_is_held_at_its_mean():
    column = fit("calls ~ t", family="poisson", exposure="hours")
    frame = column.trajectories().query("group == 1")
    mean = panel()["hours"].mean()
    check(frame, column, lambda p: mean * np.exp(line(p, 1)))
    values = fit("calls ~ t", family="poisson", exposure=panel()["hours"].to_numpy())
    again = values.trajectories().query("group == 1")
    np.testing.assert_allclose(again["estimate"], frame["estimate"], rtol=1e-6)
    with pytest.raises(DesignError, match="exposure"):
        values.trajectories({"t": [1.0]})
    one = values.trajectories({"t": [1.0]}, exposure=1.0)
    np.testing.assert_allclose(
        one["estimate"][0], np.exp(line(values.params, 1, 1.0)), rtol=1e-12
    )


def test_covariances_of_the_results_are_used(poisson):
    """Four times the covariance, twice the standard errors."""
    cov = poisson.covariance
    wide = replace(cov, matrix=4.0 * cov.matrix)
    twice = TrajectoryResults(
        poisson.model, poisson.fit_info, poisson._likelihood, poisson.traj, cov=wide
    )
    ours, theirs = poisson.trajectories(), twice.trajectories()
    np.testing.assert_allclose(theirs["std_err"], 2 * ours["std_err"])
