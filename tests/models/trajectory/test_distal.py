"""Distal outcomes: brute force, theory, StepMix's numbers, and simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import optimize, stats

from deepstats.errors import (
    ConvergenceWarning,
    DesignError,
    MissingDataWarning,
    ModelError,
    SeparationWarning,
)
from deepstats.models.trajectory import Trajectory
from deepstats.models.trajectory.distal import classification

SHARES = [0.3, 0.4, 0.3]
LEVELS = np.array([-1.0, 0.0, 1.0])


def cohort(seed: int, units: int = 600, family: str = "gaussian", noise: float = 1.3):
    """Long data, one row a unit of the outcome z and covariate x, true groups."""
    rng = np.random.default_rng(seed)
    k, t = rng.choice(3, units, p=SHARES), np.arange(4.0)
    slope = np.array([0.3, 0.0, -0.3])[k][:, None]
    y = 1.2 * LEVELS[k][:, None] + slope * (t - 1.5)
    y = y + noise * rng.normal(size=(units, 4))
    x = rng.normal(size=units)
    eta = LEVELS[k] + 0.5 * x
    z = {
        "gaussian": lambda: eta + rng.normal(size=units),
        "binomial": lambda: (rng.random(units) < 1 / (1 + np.exp(-eta))) * 1.0,
        "poisson": lambda: rng.poisson(np.exp(eta)) * 1.0,
    }[family]()
    data = pd.DataFrame(
        {"id": np.repeat(np.arange(units), 4), "t": np.tile(t, units), "y": y.ravel()}
    )
    return data, pd.DataFrame({"id": np.arange(units), "z": z, "x": x}), k


def fitted(data: pd.DataFrame, start=None, **options):
    model = Trajectory("traj(y ~ t, groups=3, id=id)", data, **options)
    if start is not None:
        return model.fit(start=start + 1)
    return model.fit(starts=10)


@pytest.fixture(scope="module")
def case():
    data, units, k = cohort(0)
    return fitted(data, k), units


@pytest.fixture(scope="module")
def yes():
    data, units, k = cohort(1, family="binomial")
    return fitted(data, k), units


def hot(results) -> np.ndarray:
    return np.eye(3)[results.posterior.to_numpy().argmax(1)]


def errors(results, assigned) -> np.ndarray:
    P = results.posterior.to_numpy()
    return (P.T @ assigned) / P.sum(0)[:, None]


def test_classification_is_a_table_of_conditional_probabilities(case):
    results, units = case
    found = results.distal("z ~ 1", units).classification
    assert found.sum(axis=1).to_numpy() == pytest.approx(np.ones(3))
    assert found.to_numpy() == pytest.approx(errors(results, hot(results)))
    w = torch.rand(600, generator=torch.Generator().manual_seed(0)).double()
    P, A = torch.tensor(results.posterior.to_numpy()), torch.tensor(hot(results))
    weighted = classification(P, A, w).numpy()
    mass = P.numpy() * w.numpy()[:, None]
    assert weighted == pytest.approx(mass.T @ A.numpy() / mass.sum(0)[:, None])


@pytest.mark.parametrize("assignment", ["modal", "proportional"])
def test_bch_means_and_sandwich_by_hand(case, assignment):
    results, units = case
    found = results.distal("z ~ 1", units, assignment=assignment, first_step=False)
    A = hot(results) if assignment == "modal" else results.posterior.to_numpy()
    W = A @ np.linalg.inv(errors(results, A))
    z = units["z"].to_numpy()
    means = (W * z[:, None]).sum(0) / W.sum(0)
    assert found.means["estimate"].to_numpy() == pytest.approx(means, abs=1e-8)
    s2 = (W * (z[:, None] - means) ** 2).sum() / W.sum()
    assert found.params["sigma"] == pytest.approx(np.sqrt(s2), abs=1e-8)
    influence = W * (z[:, None] - means) / W.sum(0)
    assert found.means_cov == pytest.approx(influence.T @ influence, rel=1e-6)
    R = np.array([[-1, 1, 0], [-1, 0, 1]])
    d, V = R @ means, R @ found.means_cov @ R.T
    assert found.equality.statistic == pytest.approx(d @ np.linalg.solve(V, d))
    pair = found.pairs.loc["g3 - g1"]
    assert pair["estimate"] == pytest.approx(means[2] - means[0])
    assert pair["p_value"] == pytest.approx(2 * stats.norm.sf(abs(pair["z"])))


@pytest.mark.parametrize("method", ["modal", "three-step"])
def test_methods_without_correction_are_weighted_regressions(yes, method):
    results, units = yes
    found = results.distal("z ~ x", units, family="binomial", method=method)
    W = hot(results) if method == "modal" else results.posterior.to_numpy()
    X = np.concatenate([np.eye(3)[[k] * 600] for k in range(3)])
    X = np.column_stack([X, np.tile(units["x"], 3)])
    w, z = W.T.ravel(), np.tile(units["z"], 3)

    def minus(b):
        eta = X @ b
        return -(w * (z * eta - np.logaddexp(0, eta))).sum()

    best = optimize.minimize(minus, np.zeros(4), tol=1e-12).x
    assert found.params.to_numpy() == pytest.approx(best, abs=1e-4)
    mu = 1 / (1 + np.exp(-X @ found.params.to_numpy()))
    A = X.T @ (X * (w * mu * (1 - mu))[:, None])
    s = (X * (w * (z - mu))[:, None]).reshape(3, 600, 4).sum(0)
    plain = results.distal(
        "z ~ x", units, family="binomial", method=method, first_step=False
    )
    wanted = np.linalg.inv(A) @ (s.T @ s) @ np.linalg.inv(A)
    assert plain.cov.to_numpy() == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    assert (found.bse >= plain.bse - 1e-12).all()


def test_maximum_likelihood_by_brute_force(case):
    results, units = case
    found = results.distal("z ~ x", units, method="ml", first_step=False)
    D, A = errors(results, hot(results)), hot(results).argmax(1)
    z, x = units["z"].to_numpy(), units["x"].to_numpy()

    def minus(b):
        logits = np.array([0.0, b[5], b[6]])
        pi = np.exp(logits - np.logaddexp.reduce(logits))
        f = stats.norm.pdf(z[:, None], b[:3] + b[3] * x[:, None], np.exp(b[4]))
        return -np.log((pi * D[:, A].T * f).sum(1)).sum()

    start = found.params.to_numpy().copy()
    start[4] = np.log(start[4])
    assert found.llf == pytest.approx(-minus(start), abs=1e-8)
    slopes = optimize.approx_fprime(start, minus, 1e-6)
    assert np.abs(slopes).max() < 5e-3
    other = optimize.minimize(minus, start + 0.05, tol=1e-10)
    assert -other.fun <= found.llf + 1e-6


def test_saturated_corrections_agree(yes):
    """With no covariates and as many means as groups, ML solves BCH's equations."""
    results, units = yes
    for assignment in ("modal", "proportional"):
        one, two = (
            results.distal(
                "z ~ 1", units, family="binomial", method=m, assignment=assignment
            ).means["estimate"]
            for m in ("bch", "ml")
        )
        assert one.to_numpy() == pytest.approx(two.to_numpy(), abs=1e-5)


def test_numbers_of_stepmix():
    """StepMix 3.0.0, gaussian_spherical measurement, gaussian_diag and bernoulli.

    Its first step stops about 1e-5 short of the optimum. Its ML keeps the group shares
    of the first step, so that only its BCH and uncorrected steps are compared.
    """
    rng = np.random.default_rng(3)
    units = 500
    k = rng.choice(3, units, p=SHARES)
    means = np.array([[-1.5, -1, -0.5, 0], [0, 0.2, 0.4, 0.2], [1.0, 1.4, 1.8, 1.5]])
    y = means[k] + rng.normal(size=(units, 4)) * 1.2
    z = LEVELS[k] + rng.normal(size=units)
    b = (rng.random(units) < np.array([0.2, 0.5, 0.8])[k]) * 1.0
    data = pd.DataFrame(
        {"id": np.repeat(np.arange(units), 4), "t": np.tile(np.arange(4), units),
         "y": y.ravel()}
    )  # fmt: skip
    of_units = pd.DataFrame({"id": np.arange(units), "z": z, "b": b})
    results = Trajectory("traj(y ~ C(t), groups=3, id=id)", data, variance="group").fit(
        starts=20
    )
    wanted = {
        ("bch", "modal"): [-0.97440242, 0.35101868, 0.8789994],
        ("bch", "proportional"): [-0.96127196, 0.31520894, 0.91978055],
        ("modal", "modal"): [-0.77737356, 0.2193618, 0.7866415],
        ("three-step", "modal"): [-0.68405164, 0.14640625, 0.75430555],
    }
    for (method, assignment), values in wanted.items():
        found = results.distal(
            "z ~ 1", of_units, method=method, assignment=assignment, variance="group"
        )
        assert found.means["estimate"].to_numpy() == pytest.approx(values, abs=5e-5)
    found = results.distal("b ~ 1", of_units, family="binomial")
    assert found.means["estimate"].to_numpy() == pytest.approx(
        [0.24554367, 0.57197737, 0.77045027], abs=5e-5
    )


def test_corrections_remove_the_bias_of_assignment():
    estimates, inside = {m: [] for m in ("bch", "ml", "modal")}, []
    for seed in range(20):
        data, units, k = cohort(50 + seed)
        results = fitted(data, k)
        for method, found in estimates.items():
            fit = results.distal("z ~ x", units, method=method)
            found.append(fit.params.to_numpy()[:4])
            if method == "bch":
                off = np.abs(found[-1] - [-1, 0, 1, 0.5])
                inside.append(off < 1.96 * fit.bse.to_numpy()[:4])
    truth = np.array([-1, 0, 1, 0.5])
    bias = {m: np.mean(v, 0) - truth for m, v in estimates.items()}
    error = {m: np.std(v, 0) / np.sqrt(20) for m, v in estimates.items()}
    for method in ("bch", "ml"):
        assert (np.abs(bias[method]) < 3.5 * error[method]).all(), bias
    assert bias["modal"][0] > 0.1 > -0.1 > bias["modal"][2]
    assert np.mean(inside) > 0.85


def test_first_step_uncertainty_is_a_derivative(case):
    """What is added is J S J', J the change of the estimates with the first step."""
    results, units = case
    full = results.distal("z ~ 1", units)
    plain = results.distal("z ~ 1", units, first_step=False)
    fit, assembled = results.fit_info, results.traj.assembled
    A, z = hot(results), units["z"].to_numpy()

    def means(x):
        P = assembled.mixture.posterior(assembled.to_mixture(x)).numpy()
        W = A @ np.linalg.inv((P.T @ A) / P.sum(0)[:, None])
        return (W * z[:, None]).sum(0) / W.sum(0)

    columns = []
    for j in range(len(fit.x)):
        step = torch.zeros_like(fit.x)
        step[j] = 1e-4
        columns.append((means(fit.x + step) - means(fit.x - step)) / 2e-4)
    J = np.column_stack(columns)
    added = J @ results.covariance.matrix.numpy() @ J.T
    assert full.means_cov - plain.means_cov == pytest.approx(added, rel=1e-3, abs=1e-8)


def test_long_data_and_other_orders_say_the_same(case):
    results, units = case
    one = results.distal("z ~ x", units, method="ml")
    long = units.loc[units.index.repeat(3)].sample(frac=1, random_state=0)
    two = results.distal("z ~ x", long, method="ml")
    assert two.params.to_numpy() == pytest.approx(one.params.to_numpy(), abs=1e-9)
    assert two.cov.to_numpy() == pytest.approx(one.cov.to_numpy(), rel=1e-6)
    long["z"] = np.arange(len(long))
    with pytest.raises(DesignError, match="one value for each unit"):
        results.distal("z ~ x", long)


def test_missing_and_unknown_units_are_left_out_and_said(case):
    results, units = case
    part = units.assign(z=units["z"].where(units["id"] >= 20))
    part.loc[part.index[-1], "id"] = 10_000
    with pytest.warns(MissingDataWarning) as caught:
        found = results.distal("z ~ 1", part)
    texts = " ".join(str(w.message) for w in caught)
    assert "20 ids of the data have missing values" in texts
    assert "1 ids of the data are not units of the fit" in texts
    assert found.nobs == 579
    assert found.notes


def test_covariates_by_group_and_other_families(case):
    results, units = case
    found = results.distal("z ~ x", units, interact=True, variance="group")
    assert "g2:x" in found.params.index
    assert "g3:sigma" in found.params.index
    count = units.assign(z=np.floor(np.exp(units["z"])))
    for method in ("bch", "ml"):
        fit = results.distal("z ~ x", count, family="nb", method=method)
        assert (fit.means["estimate"].diff().dropna() > 0).all()


def test_weights_and_clusters_of_the_fit_are_used():
    data, units, k = cohort(7, 400)
    data["w"] = 1.0 + (data["id"] % 2)
    data["village"] = data["id"] // 10
    plain = fitted(data, k)
    weighted = fitted(data, k, weights="w", cluster="village")
    w = np.where(np.arange(400) % 2, 2.0, 1.0)
    P, A = weighted.posterior.to_numpy(), hot(weighted)
    D = (P * w[:, None]).T @ A / (P * w[:, None]).sum(0)[:, None]
    W = A @ np.linalg.inv(D) * w[:, None]
    z = units["z"].to_numpy()
    means = (W * z[:, None]).sum(0) / W.sum(0)
    found = weighted.distal("z ~ 1", units, first_step=False)
    assert found.means["estimate"].to_numpy() == pytest.approx(means, abs=1e-8)
    influence = (W * (z[:, None] - means) / W.sum(0)).reshape(40, 10, 3).sum(1)
    assert found.means_cov == pytest.approx(influence.T @ influence, rel=1e-6)
    assert plain.distal("z ~ 1", units).nobs == 400


def test_membership_with_risk_factors_by_brute_force():
    data, units, k = cohort(8)
    data["x"] = np.repeat(units["x"].to_numpy(), 4)
    results = fitted(data, k, risk="~ x", reference=2)
    found = results.distal("z ~ x", units, method="ml", first_step=False)
    assert found.params.index.tolist()[5:] == [
        "g1:membership:Intercept", "g1:membership:x", "g3:membership:Intercept",
        "g3:membership:x",
    ]  # fmt: skip
    D, A = errors(results, hot(results)), hot(results).argmax(1)
    z, x = units["z"].to_numpy(), units["x"].to_numpy()

    def minus(b):
        logits = np.column_stack([b[5] + b[6] * x, 0 * x, b[7] + b[8] * x])
        pi = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        f = stats.norm.pdf(z[:, None], b[:3] + b[3] * x[:, None], np.exp(b[4]))
        return -np.log((pi * D[:, A].T * f).sum(1)).sum()

    at = found.params.to_numpy().copy()
    at[4] = np.log(at[4])
    assert found.llf == pytest.approx(-minus(at), abs=1e-8)
    assert np.abs(optimize.approx_fprime(at, minus, 1e-6)).max() < 5e-3
    # The sandwich, from scores and curvature by differences.
    h = 1e-4

    def each(b):
        logits = np.column_stack([b[5] + b[6] * x, 0 * x, b[7] + b[8] * x])
        pi = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        f = stats.norm.pdf(z[:, None], b[:3] + b[3] * x[:, None], np.exp(b[4]))
        return np.log((pi * D[:, A].T * f).sum(1))

    E = np.eye(9) * h
    scores = np.column_stack([(each(at + e) - each(at - e)) / (2 * h) for e in E])
    H = np.array(
        [[(minus(at + e + g) - minus(at + e - g) - minus(at - e + g)
           + minus(at - e - g)) / (4 * h * h) for g in E] for e in E]
    )  # fmt: skip
    V = np.linalg.inv(H) @ scores.T @ scores @ np.linalg.inv(H)
    scale = np.ones(9)
    scale[4] = np.exp(at[4])
    se = np.sqrt(np.diag(V)) * scale
    assert found.bse.to_numpy() == pytest.approx(se, rel=1e-3)


@pytest.mark.parametrize("method", ["ml", "modal"])
def test_an_outcome_that_is_certain_has_no_standard_error(case, method):
    results, units = case
    sure = units.assign(z=(results.assign().to_numpy() == 3) * 1.0)
    with pytest.warns(SeparationWarning, match="certain in a group"):
        found = results.distal("z ~ 1", sure, family="binomial", method=method)
    assert found.means["estimate"].to_numpy() == pytest.approx([0, 0, 1], abs=1e-6)
    assert found.means["std_error"].isna().all()
    assert found.bse.iloc[:3].isna().all()
    assert np.isnan(found.equality.statistic)


def test_bch_without_a_solution_is_said(case):
    """Corrected means can lie beyond zero and one, where no logit is."""
    results, units = case
    sure = units.assign(z=(results.assign().to_numpy() == 3) * 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeparationWarning)
        with pytest.warns(ConvergenceWarning, match="use method='ml'"):
            results.distal("z ~ 1", sure, family="binomial")


def test_frames_of_other_kinds_and_levels(case):
    results, units = case
    named = units.assign(
        s=np.where(units["z"] > 0, "yes", "no"), c=[*"abc"] * 200, b=units["z"] > 0
    )
    one = results.distal("b ~ c", named, family="binomial", method="ml")
    two = results.distal("s ~ c", pl.from_pandas(named), family="binomial", method="ml")
    assert one.params.to_numpy() == pytest.approx(two.params.to_numpy(), abs=1e-9)
    assert "c[T.b]" in one.params.index


def test_the_page_shows_means_differences_and_classification(case):
    results, units = case
    page = results.distal("z ~ x", units, method="ml").summary()
    for text in (page.as_text(), page.as_html(), page.as_latex()):
        for word in ("Means by group", "g3 - g1", "Differences"):
            assert word in text


@pytest.mark.parametrize(("formula", "options", "text"), [
    ("z ~ 1", {"method": "lanza"}, "method= is one of"),
    ("z ~ 1", {"assignment": "soft"}, "assignment="),
    ("z ~ 0 + x", {}, "every group has an intercept"),
    ("~ x", {}, "a distal outcome is"),
    ("z ~ 1", {"family": "ordinal"}, "no mean by group"),
])  # fmt: skip
def test_what_cannot_be_is_refused(case, formula, options, text):
    results, units = case
    with pytest.raises(ModelError, match=text):
        results.distal(formula, units, **options)


def test_data_that_do_not_fit_are_refused(case):
    results, units = case
    with pytest.raises(DesignError, match="no column 'q'"):
        results.distal("q ~ 1", units)
    with pytest.raises(DesignError, match="is a unit of the fit"):
        results.distal("z ~ 1", units.assign(id=units["id"] + 10_000))
    one = Trajectory("traj(y ~ t, groups=1, id=id)", cohort(0)[0]).fit()
    with pytest.raises(ModelError, match="one group"):
        one.distal("z ~ 1", units)
