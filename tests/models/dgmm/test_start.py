"""State 0 is the mixed model: its likelihood, its predictions, in any units."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import deepstats as ds
from deepstats.models.dgmm import dgmm, net

from .worlds import linear, mixed_model, small_model, two_outcomes


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return linear()


@pytest.fixture(scope="module")
def start(data):
    return small_model(data).fit(epochs=0)


def test_likelihood_is_that_of_lmer(data, start):
    found = start.loglik()
    assert found.value == pytest.approx(mixed_model(data).llf, abs=1e-6)
    assert found.error == 0
    assert found.by_subject["loglik"].sum() == pytest.approx(found.value)


def test_likelihood_with_missing_responses_and_irregular_times(data):
    rng = np.random.default_rng(3)
    times = data["t"] + rng.uniform(0, 1, len(data))
    holes = data.assign(
        t=times, y=data["y"].where(rng.uniform(size=len(data)) > 0.3), w=data["age"]
    )
    holes.loc[holes["id"] == 3, "y"] = np.nan  # no outcome at all
    holes.loc[(holes["id"] == 4) & (holes["t"] > holes["t"].min()), "y"] = np.nan
    model = dgmm("y ~ t * sex + age + w", holes, group="id", random="1 + t")
    with pytest.warns(UserWarning, match="w"):  # a column that another determines
        fit = model.fit(epochs=0)
    with pytest.warns(UserWarning, match="w"):
        lmer = ds.lmer("y ~ t * sex + age + w + (1 + t | id)", holes).fit(reml=False)
    assert fit.loglik().value == pytest.approx(lmer.llf, abs=1e-6)
    assert fit.loglik().by_subject.loc[3, "loglik"] == pytest.approx(0, abs=1e-12)


def test_subject_curves_are_those_of_lmer(data, start):
    lmer = mixed_model(data)
    found = start.predict()["y"]
    assert np.allclose(found, lmer.fittedvalues, atol=1e-8)
    population = start.predict(type="population")["y"]
    assert np.allclose(population, lmer.predict(re_form="none"), atol=1e-8)


def test_dynamic_prediction_is_the_conditional_normal(data, start):
    new = linear(n=3, seed=50)
    new["id"] += 1000
    found = start.dynamic_predict(new, landmark=4, times=[5.0, 9.0], n=20000)
    lmer = mixed_model(data)
    V, s2 = lmer.mixed.covariances[0], lmer.mixed.sigma**2
    for subject in (1000, 1002):
        past = new[(new["id"] == subject) & (new["t"] <= 4)]
        ahead = past.iloc[[-1, -1]].assign(t=[5.0, 9.0])
        Z, A = (np.column_stack([np.ones(len(d)), d["t"]]) for d in (past, ahead))
        gain = A @ V @ Z.T @ np.linalg.inv(Z @ V @ Z.T + s2 * np.eye(len(Z)))
        resid = past["y"] - lmer.predict(past, re_form="none")
        mean = lmer.predict(ahead, re_form="none") + gain @ resid
        sd = np.sqrt(np.diag(A @ V @ A.T - gain @ Z @ V @ A.T) + s2)
        rows = found[found["id"] == subject]
        assert np.allclose(rows["mean"], mean, atol=1e-8)
        assert np.allclose(rows["upper"], mean + norm.ppf(0.975) * sd, atol=0.06)
        assert np.allclose(rows["lower"], mean - norm.ppf(0.975) * sd, atol=0.06)


def test_glmer_start_has_the_likelihood_of_quadrature():
    data = two_outcomes()
    fit = dgmm("z ~ t", data, group="id", family="bernoulli").fit(epochs=0)
    glmer = ds.glmer("z ~ t + (1 | id)", data, family="binomial").fit()
    sd = glmer.mixed.covariances[0][0, 0] ** 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eta = glmer.predict(which="link", re_form="none").to_numpy()[:, None] + sd * nodes
    terms = data["z"].to_numpy()[:, None] * eta - np.logaddexp(0, eta)
    by_subject = pd.DataFrame(terms).groupby(data["id"].to_numpy()).sum().to_numpy()
    expected = np.log(np.exp(by_subject) @ weights / weights.sum()).sum()
    found = fit.loglik(n=2000)
    assert 0 < found.error < 0.3
    assert found.value == pytest.approx(expected, abs=4 * found.error)
    assert found.by_subject["ess"].min() > 0.5


def test_poisson_start_has_the_modes_of_glmer():
    data = linear().assign(n=lambda d: np.floor(np.exp(0.3 * d["y"])))
    fit = dgmm("n ~ t", data, group="id", family="poisson").fit(epochs=0)
    glmer = ds.glmer("n ~ t + (1 | id)", data, family="poisson").fit()
    sd = glmer.mixed.covariances[0][0, 0] ** 0.5
    assert np.allclose(
        sd * fit.ranef()["b1"], glmer.ranef()["id"].iloc[:, 0], atol=1e-5
    )


def test_several_outcomes_start_at_the_sum_of_their_models():
    data = two_outcomes()
    data.loc[data["id"] == 5, "z"] = np.nan  # never observed for this subject
    model = dgmm(
        {"y": "y ~ t", "level": "log(exp(y)) ~ sex"}, data, group="id", time="t"
    )
    expected = (
        ds.lmer("y ~ t + (1 | id)", data).fit(reml=False).llf
        + ds.lmer("y ~ sex + (1 | id)", data).fit(reml=False).llf
    )
    assert model.fit(epochs=0).loglik().value == pytest.approx(expected, abs=1e-6)
    mixed = dgmm(
        {"y": "y ~ t", "z": "z ~ t"}, data, group="id",
        family={"y": "gaussian", "z": "bernoulli"},
    ).fit(epochs=0)  # fmt: skip
    alone = dgmm("z ~ t", data, group="id", family="bernoulli").fit(epochs=0)
    first = ds.lmer("y ~ t + (1 | id)", data).fit(reml=False).llf
    together, rest = mixed.loglik(n=2000), alone.loglik(n=2000)
    assert together.value == pytest.approx(
        first + rest.value, abs=4 * np.hypot(together.error, rest.error)
    )


def test_prior_network_of_new_subjects_is_read(data, start):
    new = linear(n=4, seed=9)
    found = start.loglik(new)
    assert found.by_subject.shape == (4, 3)
    V, s2 = mixed_model(data).mixed.covariances[0], mixed_model(data).mixed.sigma ** 2
    one = new[new["id"] == 2]
    Z = np.column_stack([np.ones(len(one)), one["t"]])
    S = Z @ V @ Z.T + s2 * np.eye(len(one))
    e = (one["y"] - mixed_model(data).predict(one, re_form="none")).to_numpy()
    logdet = np.linalg.slogdet(2 * np.pi * S)[1]
    expected = -0.5 * (logdet + e @ np.linalg.solve(S, e))
    assert found.by_subject.loc[2, "loglik"] == pytest.approx(expected, abs=1e-6)


def test_outputs_of_all_networks_are_zero_at_the_start(start):
    branches = [start.decoder.g, start.decoder.outcomes[0].m1]
    branches.append(start.decoder.outcomes[0].m2)
    assert all(b.is_zero for b in branches)
    assert all(bool(b.weights[0].any()) for b in branches)


def test_net_keeps_what_is_declared():
    assert net("x", [4, 2]).layers == (4, 2)
