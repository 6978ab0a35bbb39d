"""Dual trajectories: likelihood, derivatives, probabilities, starts, the edge."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from deepstats.errors import BoundaryWarning, DesignError, ModelError
from deepstats.models.trajectory import Trajectory

T = 5
CALL = "traj(y ~ t, visits ~ 1, groups=(3, 2), id=pid{})"
FAMILIES = ["gaussian", "poisson"]
LEVELS, SLOPES, RATES = np.array([0, 2, 4.0]), np.array([0.5, 0, -0.3]), (0.0, 1.0)
JOINT = np.array([[0.30, 0.05], [0.10, 0.25], [0.05, 0.25]])
PAIRS = [f"g{a}g{b}" for a, b in product((1, 2, 3), (1, 2))]


def panel(seed: int = 0, units: int = 150, joint: np.ndarray = JOINT) -> pd.DataFrame:
    """Three groups of a normal response and two of a count."""
    rng = np.random.default_rng(seed)
    pair = rng.choice(joint.size, units, p=joint.ravel())
    a, b = np.divmod(pair, joint.shape[1])
    unit = np.repeat(np.arange(units), T)
    t = np.tile(np.arange(T, dtype=float), units)
    frame = pd.DataFrame(
        {
            "pid": unit,
            "t": t,
            "x": rng.normal(size=units)[unit],
            "w": rng.uniform(0.5, 2.0, units)[unit],
            "y": LEVELS[a][unit] + SLOPES[a][unit] * t + rng.normal(size=len(t)),
            "visits": rng.poisson(np.exp(np.take(RATES, b)[unit])).astype(float),
        }
    )
    frame.loc[rng.random(len(t)) < 0.1, "y"] = np.nan
    frame.loc[rng.random(len(t)) < 0.1, "visits"] = np.nan
    return frame


def brute(p: dict[str, float], data: pd.DataFrame, reference: str = "g1g1") -> float:
    """Log-likelihood by its definition, every combination written out."""
    x = data.groupby("pid").x.first().to_numpy()
    logits, parts = [], []
    for name in PAIRS:
        first, second = name[:2], name[2:]
        mean = p[f"{first}:y:Intercept"] + p[f"{first}:y:t"] * data.t
        rate = np.exp(p[f"{second}:visits:Intercept"])
        y = stats.norm.logpdf(data.y, mean, p["y:sigma"])
        visits = stats.poisson.logpmf(data.visits.fillna(0), rate)
        rows = np.where(data.y.isna(), 0.0, y)
        rows += np.where(data.visits.isna(), 0.0, visits)
        parts.append(np.bincount(data.pid, rows))
        logit = np.zeros(len(x))
        if name != reference:
            slope = p.get(f"{name}:membership:x", 0.0)
            logit = p[f"{name}:membership:Intercept"] + slope * x
        logits.append(logit)
    shares = np.array(logits) - special.logsumexp(logits, axis=0)
    return special.logsumexp(np.array(parts) + shares, axis=0).sum()


@pytest.fixture(scope="module")
def data():
    return panel()


@pytest.fixture(scope="module")
def fit(data):
    return Trajectory(CALL.format(""), data, family=FAMILIES).fit()


@pytest.fixture(scope="module")
def risky(data):
    return Trajectory(
        CALL.format(", risk=~ x, reference=4"), data, family=FAMILIES
    ).fit(starts=16)  # fmt: skip


# -- the likelihood --------------------------------------------------------------------


def test_labels(fit):
    assert list(fit.params.index) == [
        "g1:y:Intercept", "g1:y:t", "g2:y:Intercept", "g2:y:t", "g3:y:Intercept",
        "g3:y:t", "y:sigma", "g1:visits:Intercept", "g2:visits:Intercept",
        *(f"{name}:membership:Intercept" for name in PAIRS[1:]),
    ]  # fmt: skip
    assert fit.model.groups == 6 and list(fit.posterior) == PAIRS


def test_the_likelihood_is_that_of_its_definition(fit, data):
    assert fit.llf == pytest.approx(brute(fit.params.to_dict(), data), rel=1e-11)


@pytest.mark.parametrize("which", ["fit", "risky"])
def test_derivatives_anywhere(which, data, request):
    """At a random point the gradient is that of the definition's differences."""
    results = request.getfixturevalue(which)
    reference = PAIRS[results.model.study.plan.reference - 1]
    parameters = results.model.parameters
    x = results.fit_info.x.numpy()
    x = x + 0.1 * np.random.default_rng(1).normal(size=len(x))

    def value(at: np.ndarray) -> float:
        reported = parameters.reported(torch.from_numpy(at)).tolist()
        named = dict(zip(parameters.labels, reported, strict=True))
        return brute(named, data, reference)

    found = results.likelihood.derivatives(torch.from_numpy(x))
    assert found.value == pytest.approx(value(x), rel=1e-11)
    for j in range(len(x)):
        e = 1e-5 * (np.arange(len(x)) == j)
        slope = (value(x + e) - value(x - e)) / 2e-5
        assert float(found.gradient[j]) == pytest.approx(slope, rel=1e-6, abs=1e-5)


def test_the_information_is_the_slope_of_the_gradient(risky):
    x = risky.fit_info.x
    here = risky.likelihood.derivatives(x)
    e = torch.zeros_like(x)
    for j in range(len(x)):
        e[j] = 1e-5
        up, down = (risky.likelihood.derivatives(x + s * e).gradient for s in (1, -1))
        e[j] = 0.0
        slope = (down - up) / 2e-5
        assert torch.allclose(slope, here.information[j], rtol=1e-5, atol=1e-3)


def test_one_group_of_an_outcome(data):
    """With one group of the counts the model is that of the other outcome alone."""
    call = "traj(y ~ t, visits ~ 1, groups=(3, 1), id=pid)"
    dual = Trajectory(call, data, family=FAMILIES).fit(starts=12)
    alone = Trajectory("traj(y ~ t, groups=3, id=pid)", data).fit(starts=12)
    counts = data.visits.dropna()
    rest = stats.poisson.logpmf(counts, counts.mean()).sum()
    assert dual.llf == pytest.approx(alone.llf + rest, rel=1e-9)
    with pytest.raises(ModelError, match="independent of all others"):
        dual.independence_test()


def test_weights(data):
    """Weights of two are every unit twice."""
    twice = pd.concat([data, data.assign(pid=data.pid + 1000)])
    call = CALL.format("")
    weighted = Trajectory(call, data.assign(w=2.0), family=FAMILIES, weights="w")
    one, two = weighted.fit(starts=8), Trajectory(call, twice, family=FAMILIES).fit(
        starts=8)  # fmt: skip
    assert one.llf == pytest.approx(two.llf, rel=1e-9)
    np.testing.assert_allclose(one.joint_probs(), two.joint_probs(), rtol=1e-5)


# -- the search ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no unit is in the combination")
@pytest.mark.parametrize("seed", range(3))
def test_default_starts_find_the_optimum(seed):
    """Nothing better is found from the truth or from many more starts."""
    data = panel(seed + 10, 80)
    model = Trajectory(CALL.format(""), data, family=FAMILIES)
    found = model.fit()
    assert model.fit(starts=150, seed=5).llf <= found.llf + 1e-6


def test_starts_are_reproducible(fit, data):
    again = Trajectory(CALL.format(""), data, family=FAMILIES).fit()
    pd.testing.assert_series_equal(again.params, fit.params)


def test_groups_are_ordered_within_each_outcome(data):
    """Labels do not depend on where the search began."""
    flipped = data.assign(visits=20 - data.visits)
    call = "traj(y ~ t, visits ~ 1, groups=(3, 2), id=pid)"
    found = Trajectory(call, flipped, family=["gaussian", "gaussian"]).fit(starts=12)
    levels = found.params[[f"g{k}:visits:Intercept" for k in (1, 2)]]
    assert levels.is_monotonic_increasing
    means = [
        found.params[f"g{k}:y:Intercept"] + 2 * found.params[f"g{k}:y:t"]
        for k in (1, 2, 3)
    ]
    assert means == sorted(means)
    # Those of few visits are now the second group.
    joint = found.joint_probs()["probability"].to_numpy().reshape(3, 2)
    assert np.abs(joint[:, ::-1] - JOINT).max() < 0.12
    bigger = Trajectory(call, flipped, family=["gaussian", "gaussian"]).fit(
        starts=12, order="size"
    )
    shares = bigger.outcome_probs()["share"]
    assert shares["y"].is_monotonic_decreasing
    assert shares["visits"].is_monotonic_decreasing
    assert bigger.llf == pytest.approx(found.llf, rel=1e-9)


def test_a_start_of_your_own(fit, data):
    start = fit.outcome_assign()
    model = Trajectory(CALL.format(""), data, family=FAMILIES)
    assert model.fit(start=start).llf == pytest.approx(fit.llf, rel=1e-9)
    assert model.fit(start=fit.params.to_numpy()).llf == pytest.approx(fit.llf)
    with pytest.raises(DesignError, match="numbers from 1 to 3, 2"):
        model.fit(start=start + 1)
    with pytest.raises(DesignError, match="group in each outcome"):
        model.fit(start=start["y"])


# -- probabilities ---------------------------------------------------------------------


def test_joint_and_conditional_probabilities(fit):
    theta = np.r_[0, fit.params.filter(like="membership")]
    pi = special.softmax(theta).reshape(3, 2)
    np.testing.assert_allclose(fit.joint_probs()["probability"], pi.ravel(), rtol=1e-10)
    given_y = fit.conditional_probs(given="y")
    np.testing.assert_allclose(
        given_y["probability"], (pi / pi.sum(1, keepdims=True)).ravel(), rtol=1e-10
    )
    given_visits = fit.conditional_probs(given="visits")
    np.testing.assert_allclose(
        given_visits["probability"], (pi / pi.sum(0)).T.ravel(), rtol=1e-10
    )
    assert given_y.index.names == ["y", "visits"]
    assert given_visits.index.names == ["visits", "y"]
    shares = fit.outcome_probs()["share"]
    np.testing.assert_allclose(shares["y"], pi.sum(1), rtol=1e-10)
    np.testing.assert_allclose(shares["visits"], pi.sum(0), rtol=1e-10)
    for table in (fit.joint_probs(), given_y, given_visits):
        inside = (table.conf_low < table.probability) & (
            table.probability < table.conf_high
        )
        assert inside.all()


def test_shares_are_means_of_posteriors(fit):
    """At the optimum the joint shares are the mean posterior probabilities."""
    mean = fit.posterior.mean()
    np.testing.assert_allclose(fit.joint_probs()["probability"], mean, rtol=1e-6)
    own = fit.outcome_posterior("visits")
    np.testing.assert_allclose(
        own["g2"], fit.posterior[["g1g2", "g2g2", "g3g2"]].sum(axis=1), rtol=1e-12
    )
    assert (fit.outcome_assign()["visits"] == 1 + (own["g2"] > 0.5)).all()


@pytest.mark.parametrize("which", ["fit", "risky"])
@pytest.mark.parametrize("given", [None, "y", "visits"])
def test_standard_errors_by_differences(which, given, request):
    results = request.getfixturevalue(which)
    study, V = results.model.study, results._cov
    W = study.units.W.numpy()

    def probabilities(params: np.ndarray) -> np.ndarray:
        free = params[9:].reshape(5, -1)
        full = np.insert(free, study.plan.reference - 1, 0.0, axis=0)
        pi = special.softmax(W @ full.T, axis=1).mean(0).reshape(3, 2)
        if given is None:
            return pi.ravel()
        if given == "y":
            return (pi / pi.sum(1, keepdims=True)).ravel()
        return (pi / pi.sum(0)).T.ravel()

    x = results.params.to_numpy()
    steps = 1e-6 * np.eye(len(x))
    J = np.array([
        (probabilities(x + e) - probabilities(x - e)) / 2e-6 for e in steps
    ]).T  # fmt: skip
    table = results.joint_probs() if given is None else results.conditional_probs(given)
    np.testing.assert_allclose(table["probability"], probabilities(x), rtol=1e-9)
    expected = np.sqrt(np.einsum("ij,jk,ik->i", J, V, J))
    np.testing.assert_allclose(table["std_error"], expected, rtol=1e-5)


def test_independence(fit, data):
    """Under independence the likelihood is that of the outcomes one by one."""
    lr, wald = fit.independence_test("lr"), fit.independence_test()
    alone = [
        Trajectory(call, data, family=family).fit(starts=16).llf
        for call, family in (
            ("traj(y ~ t, groups=3, id=pid)", "gaussian"),
            ("traj(visits ~ 1, groups=2, id=pid)", "poisson"),
        )
    ]
    assert lr.statistic == pytest.approx(2 * (fit.llf - sum(alone)), rel=1e-7)
    assert lr.df_num == wald.df_num == 2
    assert wald.pvalue < 1e-4 and lr.pvalue < 1e-4
    # The Wald test is that of all log odds ratios.
    names = "g{}g2:membership:Intercept - g{}g1:membership:Intercept"
    first = "g1g2:membership:Intercept"
    by_name = fit.wald_test([f"{names.format(k, k)} - {first} = 0" for k in (2, 3)])
    assert wald.statistic == pytest.approx(by_name.statistic, rel=1e-9)


def test_the_size_of_the_tests_of_independence():
    """Independent groups: p-values are uniform."""
    joint = np.outer([0.4, 0.6], [0.5, 0.5])
    call, values = "traj(y ~ 1, visits ~ 1, groups=(2, 2), id=pid)", []
    for seed in range(25):
        data = panel(seed, 120, joint)
        fit = Trajectory(call, data, family=FAMILIES).fit(starts=2, em_steps=(20,))
        values.append((fit.independence_test().pvalue,
                       fit.independence_test("lr", starts=1).pvalue))  # fmt: skip
    for found in np.array(values).T:
        assert stats.kstest(found, "uniform").pvalue > 0.01


def test_independence_with_risk_factors(risky):
    wald = risky.independence_test()
    assert wald.df_num == risky.independence_test("lr", starts=8).df_num == 4


def test_three_outcomes():
    rng = np.random.default_rng(2)
    units = 200
    kinds = rng.integers(0, 2, (units, 3))
    kinds[:, 2] = np.where(rng.random(units) < 0.8, kinds[:, 0], 1 - kinds[:, 0])
    unit = np.repeat(np.arange(units), T)
    data = pd.DataFrame({"pid": unit, "t": np.tile(np.arange(T), units)})
    for j, name in enumerate("abc"):
        data[name] = 3 * kinds[unit, j] + rng.normal(size=len(unit))
    call = "traj(a ~ 1, b ~ 1, c ~ 1, groups=(2, 2, 2), id=pid)"
    fit = Trajectory(call, data).fit(starts=12)
    counts = np.zeros((2, 2, 2))
    np.add.at(counts, tuple(kinds.T), 1 / units)
    joint = fit.joint_probs()["probability"].to_numpy().reshape(2, 2, 2)
    assert np.abs(joint - counts).max() < 0.03
    pairs = fit.conditional_probs(given="a", of="c")["probability"]
    expected = joint.sum(1) / joint.sum((1, 2))[:, None]
    np.testing.assert_allclose(pairs, expected.ravel(), rtol=1e-10)
    both = fit.conditional_probs(given=["a", "b"])
    assert both.index.names == ["a", "b", "c"]
    assert fit.independence_test("lr", starts=6).df_num == 4
    assert (fit.outcome_assign().to_numpy() - 1 == kinds).mean() > 0.97


def test_recovery():
    """Estimates of many units are near the truth, by their own standard errors."""
    fit = Trajectory(CALL.format(""), panel(3, 1500), family=FAMILIES).fit(starts=12)
    table = fit.joint_probs()
    z = (table["probability"] - JOINT.ravel()) / table["std_error"]
    assert z.abs().max() < 3.5
    z = [
        (fit.params[f"g{k + 1}:y:{name}"] - true[k]) / fit.bse[f"g{k + 1}:y:{name}"]
        for name, true in (("Intercept", LEVELS), ("t", SLOPES)) for k in range(3)
    ]  # fmt: skip
    assert np.abs(z).max() < 3.5


# -- the edge --------------------------------------------------------------------------


@pytest.mark.parametrize("risk", ["", ", risk=~ x"])
@pytest.mark.parametrize("empty", [0, 3])
def test_an_empty_combination(empty, risk):
    """Its probability is zero, said so, and does not spoil the others' errors."""
    joint = np.array([0.3, 0.3, 0.2, 0.2])
    joint[empty] = 0.0
    data = panel(1, 150, (joint / joint.sum()).reshape(2, 2))
    rng = np.random.default_rng(3)
    # Counts tell the groups apart for certain.
    kinds = data.groupby("pid").visits.transform("mean") > 1.7
    data["z"] = np.where(kinds, 9.0, 0.0) + rng.normal(size=len(data))
    sure = data.groupby("pid").y.transform("mean") > 2
    data["u"] = np.where(sure, 9.0, 0.0) + rng.normal(size=len(data))
    gone = (sure == bool(empty // 2)) & (kinds == bool(empty % 2))
    data = data[~gone]
    call = f"traj(u ~ 1, z ~ 1, groups=(2, 2), id=pid{risk})"
    name = ("g1g1", "g1g2", "g2g1", "g2g2")[empty]
    with pytest.warns(BoundaryWarning, match=f"combination {name}: its probability"):
        fit = Trajectory(call, data).fit(starts=12)
    table = fit.joint_probs().reset_index(drop=True)
    assert table["probability"][empty] < 1e-9 and np.isnan(table["std_error"][empty])
    others = table.drop(index=empty)
    p, n = others["probability"], fit.n_units
    if not risk:
        expected = np.sqrt(p * (1 - p) / n)
        np.testing.assert_allclose(others["std_error"], expected, rtol=1e-3)
    assert others["std_error"].notna().all() and fit.converged
    assert fit.model.study.plan.reference != empty + 1
    with pytest.raises(ModelError, match="test='lr'"):
        fit.independence_test()
    assert fit.independence_test("lr", starts=4).pvalue < 0.01


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("traj(y ~ t, groups=(3, 2), id=pid)", "there is one outcome: y"),
        ("traj(y ~ t, visits ~ 1, groups=(3, 2, 2), id=pid)", "there are 2 outcomes"),
        ("traj(y ~ t, visits ~ 1, groups=(3, 0), id=pid)", "at least 1"),
        ("traj(y ~ t, visits ~ 1, groups=(2, 2), id=pid, reference=5)", "1 to 4"),
        ("traj(y ~ t, visits ~ 1, groups=(2, 2), id=pid, dropout=0)", "one grouping"),
        (
            "traj(y ~ t, visits ~ t, groups=(3, 2), id=pid, orders=(1, 0))",
            "2 entries and there are 3 groups",
        ),
    ],
)
def test_bad_calls(call, message, data):
    with pytest.raises(ModelError, match=message):
        Trajectory(call, data, family=FAMILIES)


def test_orders_of_each_outcome(data):
    call = "traj(y ~ t, visits ~ t, groups=(3, 2), id=pid, orders=((1, 0, 1), (0, 1)))"
    found = Trajectory(call, data, family=FAMILIES).fit(starts=6)
    names = set(found.params.index)
    assert {"g1:y:t", "g3:y:t", "g2:visits:t"} <= names
    assert not {"g2:y:t", "g1:visits:t"} & names


def test_questions_that_need_a_dual_model(data):
    fit = Trajectory("traj(y ~ t, groups=2, id=pid)", data).fit(starts=4)
    for ask in (fit.joint_probs, fit.independence_test, fit.outcome_assign):
        with pytest.raises(ModelError, match="share one grouping"):
            ask()


def test_questions_that_make_no_sense(fit):
    with pytest.raises(ValueError, match="different outcomes"):
        fit.conditional_probs(given="y", of="y")
    with pytest.raises(ValueError, match="must be one of"):
        fit.conditional_probs(given="calls")
    with pytest.raises(ValueError, match="'wald' or 'lr'"):
        fit.independence_test("score")
    with pytest.raises(ModelError, match="compare those of one outcome by name"):
        fit.wald_equal()


def test_what_follows_works(fit, data):
    """Curves are those of each outcome's own groups, predictions those of the fit."""
    curves = fit.trajectories()
    counts = curves.groupby("outcome")["group"].nunique()
    assert counts.to_dict() == {"visits": 2, "y": 3}
    at = curves[(curves.outcome == "y") & (curves.t == 3)].set_index("group")
    p = fit.params
    for k in (1, 2, 3):
        expected = p[f"g{k}:y:Intercept"] + 3 * p[f"g{k}:y:t"]
        assert at.loc[k, "estimate"] == pytest.approx(expected, rel=1e-9)
    again = fit.predict(data)
    np.testing.assert_allclose(again, fit.posterior, rtol=1e-8, atol=1e-12)
    assert "3 x 2" in str(fit.summary())
