"""Posteriors of any unit, curves given a history, and simulated data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, softmax

from deepstats.errors import DesignError, MissingDataWarning, ModelError
from deepstats.models.trajectory import Trajectory

from .panels import UNITS, fit, panel


@pytest.fixture(scope="module")
def gaussian():
    return fit("y ~ t + z", panel(missing=True), risk="~ x", variance="group")


@pytest.fixture(scope="module")
def poisson():
    return fit("count ~ t", family="poisson")


def line(p, k, t, part=""):
    return p[f"g{k}:{part}Intercept"] + p[f"g{k}:{part}t"] * t


def prior(p, data):
    """Log-odds of group 2 by its risk factor, where there is one."""
    odds = p["g2:membership:Intercept"]
    x = data.groupby("pid")["x"].first()
    odds = odds + p.get("g2:membership:x", 0.0) * x
    return pd.DataFrame({"g1": -np.logaddexp(0, odds), "g2": -np.logaddexp(0, -odds)})


def brute(results, data, density):
    """Posterior by densities of rows in each group: ``density(params, k, data)``."""
    p = results.params
    rows = pd.DataFrame({f"g{k}": density(p, k, data) for k in (1, 2)}, data.index)
    joint = prior(p, data) + rows.groupby(data["pid"]).sum()
    return pd.DataFrame(softmax(joint.to_numpy(), axis=1), joint.index, joint.columns)


def normal(p, k, d):
    mean = line(p, k, d["t"]) + p[f"g{k}:z"] * d["z"]
    return np.nan_to_num(stats.norm.logpdf(d["y"], mean, p[f"g{k}:sigma"]))


def counts(p, k, d, name="count"):
    return stats.poisson.logpmf(d[name], np.exp(line(p, k, d["t"])))


def excess(p, k, d):
    zero = expit(p[f"g{k}:inflate:Intercept"] + p[f"g{k}:inflate:t"] * d["t"])
    part = (1 - zero) * np.exp(counts(p, k, d, "excess"))
    return np.log(np.where(d["excess"] == 0, zero, 0.0) + part)


def successes(p, k, d):
    return stats.binom.logpmf(d["yes"], d["yes"] + d["no"], expit(line(p, k, d["t"])))


def tobit(p, k, d):
    mu, s, y = line(p, k, d["t"]), p["sigma"], d["seen"]
    low, high = stats.norm.logcdf(-1.0, mu, s), stats.norm.logsf(5.0, mu, s)
    inside = stats.norm.logpdf(y, mu, s)
    return np.where(y <= -1, low, np.where(y >= 5, high, inside))


CASES = {
    "gaussian": ("y ~ t + z", normal, {"risk": "~ x", "variance": "group"}),
    "poisson": ("count ~ t", counts, {"family": "poisson"}),
    "zip": ("excess ~ t", excess, {"family": "zip", "zero": "~ t"}),
    "binomial": ("cbind(yes, no) ~ t", successes, {"family": "binomial"}),
    "cnorm": ("seen ~ t", tobit, {"family": "cnorm", "lower": -1.0, "upper": 5.0}),
}


# -- posteriors ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_posteriors_are_those_of_the_densities(case):
    formula, density, options = CASES[case]
    data = panel(missing=case == "gaussian")
    results = fit(formula, data, **options)
    wanted = brute(results, data, density)
    found = results.predict(data)
    pd.testing.assert_frame_equal(found, wanted, check_names=False, rtol=1e-9)
    # The units of the fit have the posterior that the fit has.
    own = results.posterior
    assert np.abs(found.loc[own.index] - own).max().max() < 1e-12
    assert np.abs(results.predict().loc[own.index] - own).max().max() < 1e-12
    # New units, rows in any order, and some responses missing.
    new = data[data["pid"] < 140].sample(frac=1.0, random_state=3)
    columns = [c for c in ("y", "count", "excess", "yes", "no", "seen") if c in formula]
    new[columns] = new[columns].where(new["t"] < 3)
    shown = new[new["t"] < 3]
    wanted = brute(results, shown, density)
    pd.testing.assert_frame_equal(
        results.predict(new), wanted, check_names=False, rtol=1e-9
    )
    group = results.predict(new, "group")
    assert (group == wanted.to_numpy().argmax(1) + 1).all()


def test_units_without_a_history_get_the_prior(gaussian):
    data = panel(missing=True)
    assert 103 not in gaussian.posterior.index
    shares = np.exp(prior(gaussian.params, data))
    found = gaussian.predict(data).loc[103]
    np.testing.assert_allclose(found, shares.loc[103])
    bare = data.drop(columns="y")
    for options in ({}, {"responses": False}):
        pd.testing.assert_frame_equal(
            gaussian.predict(bare, **options), shares, check_names=False
        )
    pd.testing.assert_frame_equal(
        gaussian.predict(data, responses=False), shares, check_names=False
    )
    with pytest.raises(DesignError, match="needs the columns 'y'"):
        gaussian.predict(bare, responses=True)


def test_ids_only_tell_new_units_apart(gaussian):
    new = panel().query("pid == 101").assign(pid="somebody")
    other = panel().query("pid == 110").assign(pid="nobody")
    found = gaussian.predict(pd.concat([new, other]))
    assert found.index.tolist() == ["nobody", "somebody"]
    np.testing.assert_allclose(
        found.loc["somebody"], gaussian.predict(panel()).loc[101], rtol=1e-12
    )


def test_units_that_cannot_be_placed_are_named(gaussian):
    new = panel().query("pid < 104").copy()
    new.loc[new["pid"] == 102, "x"] = np.nan
    with pytest.warns(MissingDataWarning, match="102"):
        found = gaussian.predict(new)
    assert found.index.tolist() == [100, 101, 103]
    with pytest.warns(MissingDataWarning, match="102"):
        mean = gaussian.predict(new, "mean")
    assert mean.isna().tolist() == (new["pid"] == 102).tolist()


def test_what_is_not_known_is_refused(gaussian):
    with pytest.raises(ValueError, match="which='curve'"):
        gaussian.predict(panel(), "curve")
    with pytest.raises(TypeError, match="not weight"):
        gaussian.predict(panel(), weight=1)
    with pytest.raises(ValueError, match="offset go with new data"):
        gaussian.predict(offset=1.0)
    with pytest.raises(DesignError, match="z"):
        gaussian.predict(panel().drop(columns="z"))
    results = fit("y ~ t", risk="~ place")
    with pytest.raises(DesignError, match="place"):
        results.predict(panel().assign(place="q"))


def test_limits_and_exposure_of_new_rows():
    data = panel()
    data["low"] = -1.0
    by_row = fit("seen ~ t", data, family="cnorm", lower="low", upper=5.0)
    fixed = fit("seen ~ t", data, family="cnorm", lower=-1.0, upper=5.0)
    new = data.query("pid < 110")
    pd.testing.assert_frame_equal(by_row.predict(new), fixed.predict(new), rtol=1e-6)
    hours = data["hours"].to_numpy()
    given = fit("calls ~ t", data, family="poisson", exposure=hours)
    named = fit("calls ~ t", data, family="poisson", exposure="hours")
    part = given.predict(new, exposure=hours[: len(new)])
    pd.testing.assert_frame_equal(part, named.predict(new), rtol=1e-6)
    np.testing.assert_allclose(given.predict(), given.posterior, atol=1e-12)
    with pytest.raises(DesignError, match="exposure"):
        given.predict(new)


# -- curves ----------------------------------------------------------------------------


def test_the_expected_course_given_a_history(gaussian):
    new = panel().query("pid < 110").copy()
    new.loc[new["t"] > 1, "y"] = np.nan
    new.loc[new.index[2], "z"] = np.nan
    p, posterior = gaussian.params, gaussian.predict(new)
    curves = pd.DataFrame(
        {f"g{k}": line(p, k, new["t"]) + p[f"g{k}:z"] * new["z"] for k in (1, 2)}
    )
    by_group = gaussian.predict(new, "by_group")
    pd.testing.assert_frame_equal(by_group, curves)
    pd.testing.assert_frame_equal(gaussian.predict(new, "linear"), curves)
    weights = posterior.loc[new["pid"]].to_numpy()
    wanted = pd.Series((weights * curves).sum(axis=1, skipna=False), new.index)
    found = gaussian.predict(new, "mean")
    pd.testing.assert_series_equal(found, wanted, check_names=False)
    assert found.isna().sum() == 1


def test_means_of_counts_and_the_predictor_behind_them(poisson):
    new = panel().query("pid < 105")
    means, linear = (poisson.predict(new, w) for w in ("by_group", "linear"))
    np.testing.assert_allclose(means, np.exp(linear))
    np.testing.assert_allclose(linear["g2"], line(poisson.params, 2, new["t"]))


def test_several_outcomes_share_their_history():
    data = panel(missing=True)
    results = fit("traj(y ~ t, count ~ t)", data, family=["gaussian", "poisson"])

    def density(p, k, d):
        mean, rate = line(p, k, d["t"], "y:"), np.exp(line(p, k, d["t"], "count:"))
        y = np.nan_to_num(stats.norm.logpdf(d["y"], mean, p["y:sigma"]))
        return y + np.nan_to_num(stats.poisson.logpmf(d["count"], rate))

    new = data.copy()
    new.loc[new["t"] > 2, "count"] = np.nan
    wanted = brute(results, new, density)
    pd.testing.assert_frame_equal(
        results.predict(new), wanted, check_names=False, rtol=1e-9
    )
    only = results.predict(new.drop(columns="y"))
    wanted = brute(results, new.assign(y=np.nan), density)
    pd.testing.assert_frame_equal(only, wanted, check_names=False, rtol=1e-9)
    mean = results.predict(new, "mean")
    assert mean.columns.tolist() == ["y", "count"] and mean.notna().all().all()
    both = results.predict(new, "by_group")
    assert both.columns.tolist() == [
        (o, g) for o in ("y", "count") for g in ("g1", "g2")
    ]


def test_sequential_posteriors_go_by_time(gaussian):
    data = panel(missing=True).query("pid < 112")
    shuffled = data.sample(frac=1.0, random_state=1)
    found = gaussian.predict(shuffled, "sequential")
    assert found.index.equals(shuffled.index)
    for t in range(5):
        seen = data[data["t"] <= t]
        wanted = gaussian.predict(seen).loc[data["pid"].unique()]
        at = found.loc[data.index[data["t"] == t]]
        np.testing.assert_allclose(at, wanted, atol=1e-13)
    last = found.loc[data.index[data["t"] == 4]].to_numpy()
    np.testing.assert_allclose(last, gaussian.predict(data), atol=1e-13)
    # Another column may say what comes first.
    back = gaussian.predict(data.assign(turn=-data["t"]), "sequential", time="turn")
    late = gaussian.predict(data[data["t"] > 2]).loc[data["pid"].unique()]
    np.testing.assert_allclose(back.loc[data.index[data["t"] == 3]], late, atol=1e-13)
    with pytest.raises(DesignError, match="no numeric column turn"):
        gaussian.predict(data, "sequential", time="turn")


# -- random effects, groups of each outcome, dropping out ------------------------------


@pytest.fixture(scope="module")
def growth():
    data = panel(missing=True)
    rng = np.random.default_rng(2)
    u = rng.normal(size=(UNITS, 2))[data["pid"] - 100] * [1.2, 0.4]
    data["y"] += u[:, 0] + u[:, 1] * data["t"]
    return data, fit("y ~ t", data, random="~ 1 + t", random_cov="group")


def moments(results, k, d):
    """Mean, covariance of rows, and covariance of effects with rows; in group k."""
    Z = np.column_stack([np.ones(len(d)), d["t"]])
    table = results.random_effects().query("group == @k or group == 'all'")
    entry = {(r.var1, r.var2): r.vcov for r in table.itertuples()}
    first, second, cross = entry.values()
    B = np.array([[first, cross], [cross, second]])
    noise = results.params["sigma"] ** 2 * np.eye(len(d))
    mean = line(results.params, int(k[1]), d["t"].to_numpy())
    return mean, Z @ B @ Z.T + noise, B @ Z.T


def test_histories_with_random_effects(growth):
    data, results = growth
    assert results.random_effects()["var2"].isna().sum() == 4
    new = data.query("pid < 108").sample(frac=1.0, random_state=4)
    posterior = results.predict(new)
    shares = prior(results.params, data)
    rows = []
    for pid, d in new[new["y"].notna()].groupby("pid"):
        density = []
        for k in ("g1", "g2"):
            mean, V, _ = moments(results, k, d)
            density.append(stats.multivariate_normal.logpdf(d["y"], mean, V))
        rows.append(softmax(shares.loc[pid] + np.array(density)))
    wanted = np.delete(posterior.to_numpy(), 3, axis=0)
    np.testing.assert_allclose(wanted, rows, rtol=1e-8)
    np.testing.assert_allclose(posterior.loc[103], np.exp(shares.loc[103]))
    own = results.posterior
    assert np.abs(results.predict(data).loc[own.index] - own).max().max() < 1e-12


def test_forecasts_with_random_effects(growth):
    """Expected effects move the curve; without a history there are none."""
    data, results = growth
    new = data.query("pid < 106").copy()
    new.loc[new["t"] > 2, "y"] = np.nan
    found = results.predict(new, "mean")
    posterior = results.predict(new)
    for pid, d in new.groupby("pid"):
        seen = d[d["y"].notna()]
        Z = np.column_stack([np.ones(len(d)), d["t"]])
        total = np.zeros(len(d))
        for k in ("g1", "g2"):
            mean, V, C = moments(results, k, seen)
            u = C @ np.linalg.solve(V, seen["y"] - mean) if len(seen) else np.zeros(2)
            curve = line(results.params, int(k[1]), d["t"].to_numpy())
            total += posterior.loc[pid, k] * (curve + Z @ u)
        np.testing.assert_allclose(found[d.index], total, rtol=1e-8)
    means = results.trajectories().query("group == 2")["estimate"]
    np.testing.assert_allclose(means, line(results.params, 2, np.arange(5.0)))
    step = results.predict(data, "sequential")
    for t in (0, 2, 4):
        at = data[(data["t"] == t) & (data["pid"] != 103)]
        seen = results.predict(data[(data["t"] <= t)])
        np.testing.assert_allclose(
            step.loc[at.index], seen.loc[at["pid"]], rtol=1e-9, atol=1e-13
        )
    bare = results.predict(new.drop(columns="y"), "mean")
    curves = results.predict(new, "by_group").to_numpy()
    shares = np.exp(prior(results.params, data).loc[new["pid"]].to_numpy())
    np.testing.assert_allclose(bare, (curves * shares).sum(1))


def test_simulated_units_have_their_own_effects(growth):
    data, results = growth
    simulated = results.simulate(300, seed=7)
    own = data[(data["pid"] == 101)]
    own = own[own["y"].notna()]
    groups = simulated.groups.loc[101].to_numpy()
    y = np.column_stack([f.loc[own.index, "y"] for f in simulated.frames])
    for k in (1, 2):
        part = y[:, groups == k]
        mean, V, _ = moments(results, f"g{k}", own)
        n = part.shape[1]
        assert n > 60
        z = (part.mean(axis=1) - mean) / np.sqrt(np.diag(V) / n)
        assert np.abs(z).max() < 4
        spread = np.sqrt((V**2 + np.outer(np.diag(V), np.diag(V))) / n)
        assert (np.abs(np.cov(part) - V) < 5 * spread).all()


def test_outcomes_with_groups_of_their_own():
    data = panel()
    # Counts of other units: the groups of the outcomes have little to do with another.
    data["count"] = np.roll(data["count"], 5 * 7)
    results = fit(
        "traj(y ~ t, count ~ t)", data, family=["gaussian", "poisson"], groups=(2, 2)
    )
    found = results.predict(data)
    assert found.columns.tolist() == ["g1g1", "g1g2", "g2g1", "g2g2"]
    np.testing.assert_allclose(found, results.posterior, atol=1e-12)
    frame = results.trajectories()
    assert frame.groupby("outcome")["group"].nunique().tolist() == [2, 2]
    top = frame.query("outcome == 'y' and group == 2")
    np.testing.assert_allclose(
        top["estimate"], line(results.params, 2, np.arange(5.0), "y:")
    )
    curves = results.predict(data, "by_group")["count"]
    np.testing.assert_allclose(curves["g1g2"], curves["g2g2"])
    np.testing.assert_allclose(
        curves["g1g2"], np.exp(line(results.params, 2, data["t"], "count:"))
    )
    assert results.simulate(seed=1).groups["sim_1"].max() == 4


def test_dropping_out_is_part_of_a_history():
    data = panel()
    rng = np.random.default_rng(0)
    stay = rng.geometric(np.where(data.groupby("pid")["truth"].first() == 1, 0.08, 0.3))
    data = data[data["t"] < np.maximum(stay, 2)[data["pid"] - 100]]
    results = fit("y ~ t", data, dropout="~ 1")
    assert results.trajectories().columns.tolist()[:2] == ["group", "t"]
    np.testing.assert_allclose(results.predict(data), results.posterior, atol=1e-12)
    assert results.predict(data, "mean").notna().all()
    with pytest.raises(ModelError, match="dropped out"):
        results.predict(data, "sequential")


# -- simulation ------------------------------------------------------------------------


def test_simulated_responses_have_the_model_s_means(gaussian):
    data = panel(missing=True)
    simulated = gaussian.simulate(400, seed=1)
    frame, groups = simulated.frame, simulated.groups
    assert groups.shape == (UNITS - 1, 400) and len(simulated.frames) == 400
    assert frame.index.equals(data.index)
    assert frame["y"].isna().equals(data["y"].isna())
    pd.testing.assert_frame_equal(frame.drop(columns="y"), data.drop(columns="y"))
    shares = np.exp(prior(gaussian.params, data)).loc[groups.index, "g2"]
    error = np.sqrt(shares * (1 - shares) / 400)
    assert (np.abs((groups == 2).mean(axis=1) - shares) < 4.5 * error).all()
    # In the group drawn, responses are normal about the group's curve.
    curves = gaussian.predict(data, "by_group").to_numpy()
    used = data["y"].notna().to_numpy()
    place = groups.index.get_indexer(data["pid"])[used]
    drawn = groups.to_numpy()[place]
    y = np.column_stack([f["y"] for f in simulated.frames])[used]
    mean = np.where(drawn == 1, curves[used, :1], curves[used, 1:])
    sigma = np.where(drawn == 1, *(gaussian.params[f"g{k}:sigma"] for k in (1, 2)))
    z = (y - mean) / sigma
    assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.var() - 1) < 6 / z.size**0.5
    assert np.abs(z.mean(axis=1)).max() < 5 / np.sqrt(400)


def test_simulated_counts_and_the_groups_they_come_from(poisson):
    simulated = poisson.simulate(300, seed=2)
    curves = poisson.predict(panel(), "by_group")
    shares = np.exp(prior(poisson.params, panel())).loc[panel()["pid"]].to_numpy()
    expected = (curves.to_numpy() * shares).sum(1)
    y = np.column_stack([f["count"] for f in simulated.frames])
    assert (y == np.round(y)).all() and y.min() >= 0
    spread = y.std(axis=1) / np.sqrt(300)
    assert (np.abs(y.mean(axis=1) - expected) < 5 * spread).all()


def test_seeds_and_new_rows(poisson):
    one, two = poisson.simulate(2, seed=3), poisson.simulate(2, seed=3)
    pd.testing.assert_frame_equal(one.frames[1], two.frames[1])
    pd.testing.assert_frame_equal(one.groups, two.groups)
    assert not one.frames[0]["count"].equals(one.frames[1]["count"])
    new = {"pid": [1, 1, 2], "t": [0.0, 5.0, 9.0]}
    drawn = poisson.simulate(seed=1, newdata=new)
    assert drawn.frame.columns.tolist() == ["pid", "t", "count"]
    assert drawn.frame["count"].notna().all() and drawn.groups.index.tolist() == [1, 2]
    with pytest.raises(ValueError, match="nsim"):
        poisson.simulate(0)


def test_simulated_data_can_be_fitted_again():
    """Trials are kept, and levels are those of the data."""
    data = panel()
    results = fit("cbind(yes, trials - yes) ~ t", data, family="binomial")
    frame = results.simulate(seed=4).frame
    assert frame["trials"].equals(data["trials"])
    assert frame["yes"].between(0, frame["trials"]).all()
    again = fit("cbind(yes, trials - yes) ~ t", frame, family="binomial")
    z = (again.params - results.params) / results.bse
    assert np.abs(z).max() < 5
    both = fit("cbind(yes, no) ~ t", data, family="binomial").simulate(seed=4).frame
    assert ((both["yes"] + both["no"]) == data["trials"]).all()
    names = {1: "none", 2: "some", 3: "much", 4: "most"}
    levels = pd.CategoricalDtype(list(names.values()), ordered=True)
    data["grade"] = data["grade"].map(names).astype(levels)
    graded = fit("grade ~ t", data, family="ordinal").simulate(seed=5).frame["grade"]
    assert graded.dtype == levels and graded.nunique() == 4


def test_simulated_responses_stay_within_limits():
    results = fit("seen ~ t", family="cnorm", lower=-1.0, upper=5.0)
    y = results.simulate(seed=6).frame["seen"]
    assert y.min() == -1.0 and y.max() == 5.0
    observed = panel()["seen"]
    assert abs((y == -1).mean() - (observed == -1).mean()) < 0.06


def test_expressions_cannot_be_put_back():
    results = fit("log(count + 1) ~ t")
    with pytest.raises(ModelError, match="expression"):
        results.simulate()


def test_multinomial_means_are_probabilities():
    data = panel().assign(grade=lambda d: d["grade"].clip(upper=3))
    model = Trajectory("grade ~ t", data, family="multinomial", groups=2, id="pid")
    results = model.fit(starts=6, order="size")
    mean = results.predict(data, "mean")
    assert mean.columns.tolist() == [("grade", 1), ("grade", 2), ("grade", 3)]
    np.testing.assert_allclose(mean.sum(axis=1), 1.0)
    np.testing.assert_allclose(results.predict(data), results.posterior, atol=1e-12)
    assert set(results.simulate(seed=1).frame["grade"].unique()) == {1, 2, 3}
