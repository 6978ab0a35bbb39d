"""Dropout by group: rows at risk, likelihood, derivatives, probabilities, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from deepstats.errors import DesignError, ModelError, SeparationWarning
from deepstats.models.trajectory import Trajectory

T = 5
CALL = "traj(y ~ t, groups=2, id=pid{})"
LEAVES = {"g1": (-1.8, -0.4), "g2": (-2.5, 0.4)}


def panel(seed: int = 0, units: int = 150, gaps: float = 0.1) -> pd.DataFrame:
    """Two groups that leave by what they said last; some occasions are missing."""
    rng = np.random.default_rng(seed)
    high = rng.random(units) < 0.4
    times = np.arange(T, dtype=float)
    y = np.where(high, 3.0, 0.0)[:, None] + np.where(high, -0.3, 0.4)[:, None] * times
    y = y + rng.normal(size=y.shape)
    inside, rows = np.ones(units, dtype=bool), []
    x, z = rng.normal(size=units), rng.normal(size=(units, T))
    for t in range(T):
        if t:
            a, b = np.where(high[:, None], LEAVES["g2"], LEAVES["g1"]).T
            inside &= rng.random(units) > special.expit(a + b * y[:, t - 1])
        seen = np.flatnonzero(inside & ((rng.random(units) >= gaps) | (t == 0)))
        rows += [(i, 2.0 * t, y[i, t], x[i], z[i, t]) for i in seen]
    frame = pd.DataFrame(rows, columns=["pid", "t", "y", "x", "z"])
    return frame.sample(frac=1.0, random_state=seed)


def risks(data: pd.DataFrame, lags: int) -> pd.DataFrame:
    """Rows at risk by their definition, one unit and occasion after the other."""
    grid, rows = sorted(data.t.unique()), []
    for pid, own in data.sort_values("t").groupby("pid"):
        for t in grid:
            if t <= own.t.min() or not (own.t >= grid[grid.index(t) - 1]).any():
                continue
            before = own.y[own.t < t].to_numpy()[::-1]
            if len(before) >= lags:
                gone = float(own.t.max() < t)
                rows.append((pid, t, gone, own.x.iloc[0], *before[:lags]))
    names = ["lag(y)", "lag(y, 2)"][:lags]
    return pd.DataFrame(rows, columns=["pid", "t", "gone", "x", *names])


def brute(
    p: dict[str, float], data: pd.DataFrame, at_risk: pd.DataFrame, columns: list[str]
) -> float:
    """Log-likelihood by its definition."""
    parts = []
    for g in ("g1", "g2"):
        mean = p[f"{g}:Intercept"] + p[f"{g}:t"] * data.t
        rows = stats.norm.logpdf(data.y, mean, p["sigma"])
        total = np.bincount(data.pid, rows)
        eta = p[f"{g}:dropout:Intercept"] + sum(
            p[f"{g}:dropout:{c}"] * at_risk[c] for c in columns
        )
        chance = special.expit(eta + np.zeros(len(at_risk)))
        rows = stats.bernoulli.logpmf(at_risk.gone, chance)
        parts.append(total + np.bincount(at_risk.pid, rows, minlength=len(total)))
    eta = p["g2:membership:Intercept"]
    return np.logaddexp(
        parts[0] + special.log_expit(-eta), parts[1] + special.log_expit(eta)
    ).sum()


ASKED = {
    ", dropout=0": (0, []),
    ", dropout=1": (1, ["lag(y)"]),
    ", dropout=2": (2, ["lag(y)", "lag(y, 2)"]),
    ", dropout=~ t + x + lag(y)": (1, ["t", "x", "lag(y)"]),
}


@pytest.fixture(scope="module")
def data():
    return panel()


@pytest.fixture(scope="module")
def fit(data):
    return Trajectory(CALL.format(", dropout=1"), data).fit(starts=12)


# -- rows and likelihood ---------------------------------------------------------------


@pytest.mark.parametrize("option", ASKED)
def test_rows_at_risk(option, data):
    lags, columns = ASKED[option]
    study = Trajectory(CALL.format(option), data).study
    found, expected = study.outcomes[-1], risks(data, lags)
    assert found.name == "dropout" and found.columns[0] == ("Intercept", *columns)
    frame = pd.DataFrame(
        {"pid": study.units.labels[found.unit], "gone": found.y.numpy(),
         "t": study.attendance.grid[study.attendance.occasion]}
    )  # fmt: skip
    for j, name in enumerate(columns, start=1):
        frame[name] = found.X[0][:, j].numpy()
    frame = frame.sort_values(["pid", "t"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, expected[list(frame)])
    whole = risks(data, 0)
    notes = "".join(study.notes)
    if left := len(whole) - len(expected):
        assert f"{left} of {len(whole)} occasions at risk lack earlier" in notes
    else:
        assert "at risk" not in notes


@pytest.mark.parametrize("option", ASKED)
def test_the_likelihood_and_derivatives(option, data):
    """At the estimates and at a random point, as the definition says."""
    lags, columns = ASKED[option]
    fit = Trajectory(CALL.format(option), data).fit(starts=8)
    at_risk, parameters = risks(data, lags), fit.model.parameters

    def value(at: np.ndarray) -> float:
        reported = parameters.reported(torch.from_numpy(at)).tolist()
        named = dict(zip(parameters.labels, reported, strict=True))
        return brute(named, data, at_risk, columns)

    x = fit.fit_info.x.numpy()
    assert fit.llf == pytest.approx(value(x), rel=1e-11)
    x = x + 0.1 * np.random.default_rng(1).normal(size=len(x))
    found = fit.likelihood.derivatives(torch.from_numpy(x))
    assert found.value == pytest.approx(value(x), rel=1e-11)
    for j in range(len(x)):
        e = 1e-5 * (np.arange(len(x)) == j)
        slope = (value(x + e) - value(x - e)) / 2e-5
        assert float(found.gradient[j]) == pytest.approx(slope, rel=1e-6, abs=1e-5)


def test_labels(fit):
    assert list(fit.params.index) == [
        "g1:Intercept", "g1:t", "g2:Intercept", "g2:t", "sigma",
        "g1:dropout:Intercept", "g1:dropout:lag(y)", "g2:dropout:Intercept",
        "g2:dropout:lag(y)", "g2:membership:Intercept",
    ]  # fmt: skip


def test_a_number_is_short_for_a_formula(fit, data):
    written = Trajectory(CALL.format(", dropout=~ lag(y)"), data).fit(starts=12)
    pd.testing.assert_series_equal(written.params, fit.params)


def test_lags_may_name_how_far_back(data):
    one, two = (
        Trajectory(CALL.format(f", dropout=~ {text}"), data).study.outcomes[-1]
        for text in ("lag(y, k=2)", "lag(y, 2)")
    )
    assert one.columns == two.columns == (("Intercept", "lag(y, 2)"),)
    assert torch.equal(one.X[0], two.X[0])


def test_functions_go_around_lags(data):
    option = ", dropout=~ log(exp(lag(y)) + 1) + poly(t, 2)"
    study = Trajectory(CALL.format(option), data).study
    found, expected = study.outcomes[-1], risks(data, 1)
    assert found.columns[0][1] == "log(exp(lag(y)) + 1)"
    np.testing.assert_allclose(
        np.sort(found.X[0][:, 1]), np.sort(np.logaddexp(expected["lag(y)"], 0))
    )


def test_lags_of_other_columns(data):
    found = Trajectory(CALL.format(", dropout=~ lag(z)"), data).study.outcomes[-1]
    assert found.columns[0] == ("Intercept", "lag(z)")
    expected = []
    for _, own in data.sort_values("t").groupby("pid"):
        expected += own.z.to_list() if own.t.max() < 8 else own.z.to_list()[:-1]
    assert set(np.round(found.X[0][:, 1].numpy(), 12)) == set(np.round(expected, 12))


def test_rows_without_a_response_are_not_seen(fit, data):
    """Rows may be there with the response missing: nothing changes."""
    full = pd.MultiIndex.from_product([range(150), 2.0 * np.arange(T)])
    wide = data.set_index(["pid", "t"]).reindex(full).rename_axis(["pid", "t"])
    again = Trajectory(CALL.format(", dropout=1"), wide.reset_index()).fit(starts=12)
    assert again.llf == pytest.approx(fit.llf, rel=1e-12)


def test_several_outcomes(data):
    """A unit is in where any outcome is observed."""
    both = data.assign(v=np.where(data.z > 0, np.nan, data.z))
    call = "traj(y ~ t, v ~ t, groups=2, id=pid, dropout=~ lag(y))"
    two = Trajectory(call, both).study
    one = Trajectory(CALL.format(", dropout=1"), data).study
    assert [o.name for o in two.outcomes] == ["y", "v", "dropout"]
    assert torch.equal(two.outcomes[2].y, one.outcomes[1].y)
    with pytest.raises(ModelError, match=r"dropout=~ lag\(column\)"):
        Trajectory(call.replace("~ lag(y)", "1"), both)


# -- what follows ----------------------------------------------------------------------


def test_probabilities(fit, data):
    """Means over those at risk, weighted by the posterior; errors by differences."""
    table, at_risk = fit.dropout_probs(), risks(data, 1)
    p, V = fit.params, fit._cov
    names = list(p.index)
    for g in ("g1", "g2"):
        r = fit.posterior[g].reindex(at_risk.pid).to_numpy()
        cols = [names.index(f"{g}:dropout:{c}") for c in ("Intercept", "lag(y)")]
        X = np.column_stack([np.ones(len(r)), at_risk["lag(y)"]])
        chance = special.expit(X @ p.iloc[cols])
        for t in (2.0, 4.0, 6.0, 8.0):
            now = (at_risk.t == t).to_numpy()
            row, w = table.loc[(g, t)], r[now]
            assert row["at_risk"] == pytest.approx(w.sum(), rel=1e-9)
            assert row["dropped"] == pytest.approx(w @ at_risk.gone[now], rel=1e-9)
            mean = w @ chance[now] / w.sum()
            assert row["probability"] == pytest.approx(mean, rel=1e-9)
            slope = (w * chance[now] * (1 - chance[now])) @ X[now] / w.sum()
            se = np.sqrt(slope @ V[np.ix_(cols, cols)] @ slope)
            assert row["std_error"] == pytest.approx(se, rel=1e-9)
            assert row["conf_low"] < mean < row["conf_high"]
        stays = np.cumprod(1 - table.loc[g, "probability"].iloc[1:])
        np.testing.assert_allclose(table.loc[g, "remaining"].iloc[1:], stays)
    shares = table["share"].groupby(level="t").sum()
    np.testing.assert_allclose(shares, 1.0)
    last = data.groupby("pid").t.max()
    inside = fit.posterior.loc[last[last == 8.0].index].sum()
    share = (inside / inside.sum())["g2"]
    assert table.loc[("g2", 8.0), "share"] == pytest.approx(share, rel=1e-9)
    with pytest.raises(ModelError, match="no dropout part"):
        Trajectory(CALL.format(""), data).fit(starts=2).dropout_probs()


def test_a_rate_for_all_occasions(data):
    """With dropout=0 a group's probability is its share of events."""
    fit = Trajectory(CALL.format(", dropout=0"), data).fit(starts=12)
    table = fit.dropout_probs()
    totals = table.groupby(level="group")[["at_risk", "dropped"]].sum()
    expected = totals.dropped / totals.at_risk
    for g in ("g1", "g2"):
        own = table.loc[g, "probability"].iloc[1:]
        np.testing.assert_allclose(own, expected[g], rtol=1e-6)


def test_leaving_tells_groups_apart():
    """Posterior odds change by the probabilities of staying and leaving."""
    data = panel(2, 400, 0.0)
    fit = Trajectory(CALL.format(", dropout=1"), data).fit(starts=8)
    p, at_risk = fit.params, risks(data, 1)
    odds = np.zeros(400)
    for g, sign in (("g1", -1), ("g2", 1)):
        mean = p[f"{g}:Intercept"] + p[f"{g}:t"] * data.t
        rows = stats.norm.logpdf(data.y, mean, p["sigma"])
        odds += sign * np.bincount(data.pid, rows)
        eta = p[f"{g}:dropout:Intercept"]
        eta = eta + p[f"{g}:dropout:lag(y)"] * at_risk["lag(y)"]
        rows = stats.bernoulli.logpmf(at_risk.gone, special.expit(eta))
        odds += sign * np.bincount(at_risk.pid, rows, minlength=400)
    expected = special.expit(odds + p["g2:membership:Intercept"])
    np.testing.assert_allclose(fit.posterior["g2"], expected, rtol=1e-8)
    without = Trajectory(CALL.format(""), data).fit(starts=8)
    assert (fit.posterior - without.posterior).abs().max().max() > 0.05


def test_new_units_are_read_as_those_of_the_fit(fit, data):
    again = fit.predict(data)
    pd.testing.assert_frame_equal(again, fit.posterior, rtol=1e-9, check_names=False)


def test_a_history_so_far_is_no_dropout(fit, data):
    """Units of data that end early are not taken to be gone."""
    early = data[(data.t <= 2.0)]
    study = fit.model.study.renew(early)
    gone = study.outcomes[-1].y.numpy()
    last = early.groupby("pid").t.max()
    assert gone.sum() == (last == 0.0).sum()
    with pytest.raises(DesignError, match="none of the occasions of the fit"):
        fit.model.study.renew(data.assign(t=data.t + 0.5))


def test_curves_and_tables(fit, data):
    curves = fit.trajectories()
    assert "outcome" not in curves and len(curves) == 2 * T
    assert fit.nobs == len(data) and fit.response_name == "y"
    assert len(fit.augment()) == len(data)
    assert "dropout" in str(fit.summary())
    assert fit.wald_equal().df_num == 2
    drawn = fit.simulate(seed=1)
    assert ".dropout" not in drawn.frames[0]


def test_recovery():
    fit = Trajectory(CALL.format(", dropout=1"), panel(5, 1500)).fit(starts=8)
    z = {}
    for g, (a, b) in LEAVES.items():
        for name, true in (("Intercept", a), ("lag(y)", b)):
            label = f"{g}:dropout:{name}"
            z[label] = (fit.params[label] - true) / fit.bse[label]
    for label, true in {"g1:t": 0.2, "g2:t": -0.15, "sigma": 1.0}.items():
        z[label] = (fit.params[label] - true) / fit.bse[label]
    # Gaps of one occasion in ten blur the last value and when a unit left.
    gaps = Trajectory(CALL.format(", dropout=1"), panel(5, 1500, 0.0)).fit(starts=8)
    for g, (a, b) in LEAVES.items():
        for name, true in (("Intercept", a), ("lag(y)", b)):
            label = f"{g}:dropout:{name}"
            z[label] = (gaps.params[label] - true) / gaps.bse[label]
    assert max(map(abs, z.values())) < 3.5


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dropout=3", "0 to 2"),
        ("dropout=~ lag(y, 0)", "write lag"),
        ("dropout=~ lag(log(y))", "functions go around it"),
        ("dropout=~ lag(y, 1, k=2)", "write lag"),
        ("risk=~ lag(y)", "belongs to dropout"),
    ],
)
def test_bad_calls(option, message, data):
    with pytest.raises(ModelError, match=message):
        Trajectory(CALL.format(f", {option}"), data)


def test_lags_have_no_place_in_trajectories(data):
    with pytest.raises(ModelError, match="belongs to dropout"):
        Trajectory("traj(y ~ t + lag(y), groups=2, id=pid)", data)


@pytest.mark.parametrize(
    ("change", "option", "message"),
    [
        (lambda d: d.assign(t=d.t + 0.01 * d.z), "dropout=1", "occasions that units"),
        (lambda d: pd.concat([d, d[:3]]), "dropout=1", "3 rows repeat"),
        (lambda d: d[d.groupby("pid").t.transform("max") == 8], "dropout=0", "nobody"),
        (lambda d: d, "dropout=~ z", r"write lag\(z\)"),
        (lambda d: d, "dropout=~ lag(place)", "is not there"),
        (lambda d: d.assign(place="a"), "dropout=~ lag(place)", "not numeric"),
        (lambda d: d, "dropout=~ place", "no column place"),
        (lambda d: d, "dropout=1, time=wave", "is not there"),
    ],
)
def test_bad_data(change, option, message, data):
    with pytest.raises(DesignError, match=message):
        Trajectory(CALL.format(f", {option}"), change(data))


def test_the_time_column(data):
    call = "traj(y ~ t + x, groups=2, id=pid, dropout=0{})"
    with pytest.raises(ModelError, match="say which with time="):
        Trajectory(call.format(""), data)
    named = Trajectory(call.format(", time=t"), data).study
    assert named.attendance.grid.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    curve = "traj(y ~ poly(t, 2) + x, groups=2, id=pid, dropout=0)"
    assert len(Trajectory(curve, data).study.attendance.grid) == T
    with pytest.raises(ModelError, match="named 'dropout'"):
        Trajectory(
            "traj(dropout ~ t, groups=2, id=pid, dropout=0)",
            data.rename(columns={"y": "dropout"}),
        )


def test_a_group_that_nobody_leaves(data):
    """Its logit has no estimate: no standard error, and the rest is untouched."""
    high = data.groupby("pid").y.transform("mean") >= 1.5
    stays = data.groupby("pid").t.transform("max") == 8.0
    apart = data.assign(y=data.y + 20 * high)[stays | ~high]
    with pytest.warns(SeparationWarning, match="g2:dropout:Intercept"):
        fit = Trajectory(CALL.format(", dropout=0"), apart).fit(starts=8)
    table = fit.dropout_probs()
    assert table.loc["g2", "dropped"].sum() < 1e-9
    assert np.isnan(fit.bse["g2:dropout:Intercept"])
    assert fit.bse.drop("g2:dropout:Intercept").notna().all()
    assert (table.loc["g1", "std_error"].iloc[1:] > 0).all()
    # At the edge the probability is zero, and what moves it moves nothing.
    assert table.loc["g2", "probability"].iloc[1:].max() < 1e-6
