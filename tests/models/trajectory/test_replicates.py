"""Replicates as one tensor: each is the fit that it would be by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import deepstats as ds
from deepstats.errors import DesignError, ModelError
from deepstats.models.trajectory import Trajectory
from deepstats.models.trajectory.fitted import permuted
from deepstats.models.trajectory.replicates import (
    Redrawn,
    batches,
    chosen,
    covariances,
    draw,
    refit,
    refit_matched,
    simulate_fits,
)

from .simulated import crossing


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    frame = crossing()
    rng = np.random.default_rng(0)
    frame["some"] = rng.binomial(4, 1 / (1 + np.exp(-(frame["y"] - 1.5))))
    frame["rest"] = 4 - frame["some"]
    return frame


TRUTH = {
    "gaussian": [2.5, -0.4, 0.5, 1.0, 1.0, -0.2],
    "poisson": [1.3, -0.3, 0.1, 0.5, -0.2],
    "zip": [1.3, -0.3, 0.1, 0.5, -1.0, -1.5, -0.2],
    "nb": [1.3, -0.3, 0.1, 0.5, 0.4, -0.2],
    "binomial": [1.3, -0.6, -1.2, 0.7, -0.2],
}
CALLS = {
    "gaussian": "y", "poisson": "count", "zip": "count", "nb": "count",
    "binomial": "cbind(some, rest)",
}  # fmt: skip


def model_of(family: str, data: pd.DataFrame) -> Trajectory:
    return ds.traj(f"traj({CALLS[family]} ~ t, groups=2, id=id)", data, family=family)


@pytest.mark.parametrize("family", TRUTH)
def test_drawn_data_sets_are_fitted_as_by_themselves(family, data):
    """The batch against `Trajectory.fit` on a frame with the drawn responses."""
    model = model_of(family, data)
    x = model.parameters.working(torch.tensor(TRUTH[family]).double())
    generator = torch.Generator().manual_seed(4)
    drawn = draw(model.study, model.assembled, x, 3, generator)
    redrawn = Redrawn(model.study, model.assembled)
    assert redrawn.together == (family != "nb")
    batch = [slice(0, 3)] if redrawn.together else [slice(s, s + 1) for s in range(3)]
    start = model.assembled.to_mixture(x)
    for rows in batch:
        mixture = redrawn.mixture([y[rows] for y in drawn.responses])
        count = rows.stop - rows.start
        found = refit(mixture, start.expand(count, -1))
        assert bool(found.converged.all())
        for s in range(count):
            frame, y = data.copy(), drawn.responses[0][rows.start + s].numpy()
            if family == "binomial":
                frame["some"] = np.round(4 * y)
                frame["rest"] = 4 - frame["some"]
            else:
                frame[CALLS[family]] = y
            alone = model_of(family, frame).fit(
                start=TRUTH[family], tol=1e-8, order="found"
            )
            user = model.assembled.to_user(found.x[s])
            np.testing.assert_allclose(
                model.parameters.reported(user), alone.params, rtol=1e-7, atol=1e-8
            )
            assert float(found.value[s]) == pytest.approx(alone.llf, rel=1e-10)


def test_a_replicate_of_weights_is_a_fit_with_weights(data):
    model = model_of("poisson", data)
    fit = model.fit()
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.2, 3.0, (4, len(model.study.units)))
    mixture = replace(model.assembled.mixture, weights=torch.from_numpy(weights))
    found = refit_matched(
        model.assembled, mixture, fit.traj.solution.x.expand(4, -1),
        torch.from_numpy(fit.traj.posterior.T.copy()),
    )  # fmt: skip
    cov, regular = covariances(model.assembled, found)
    assert bool(found.good.all()) and bool(regular.all())
    for s in range(4):
        frame = data.assign(w=weights[s][data["id"].to_numpy()])
        alone = ds.traj(
            "traj(count ~ t, groups=2, id=id, weights=w)", frame, family="poisson"
        ).fit(start=fit.params, tol=1e-8)
        user = model.assembled.to_user(found.x[s]).numpy()
        np.testing.assert_allclose(user, alone.params, rtol=1e-7, atol=1e-8)
        # Louis' information of a weighted sample, on both ways.
        np.testing.assert_allclose(
            cov[s].diagonal().sqrt().numpy(), alone.bse, rtol=1e-6
        )


def test_groups_get_the_numbers_of_the_reference(data):
    """A search that begins with the groups exchanged comes back with them matched."""
    model = model_of("gaussian", data)
    fit = model.fit()
    x = fit.traj.solution.x
    turned = permuted(model.assembled, x, [1, 0])
    weights = torch.ones(2, len(model.study.units), dtype=torch.float64)
    mixture = replace(model.assembled.mixture, weights=weights)
    found = refit_matched(
        model.assembled, mixture, torch.stack([x, turned]),
        torch.from_numpy(fit.traj.posterior.T.copy()),
    )  # fmt: skip
    np.testing.assert_allclose(found.x[1].numpy(), found.x[0].numpy(), atol=1e-7)
    np.testing.assert_allclose(
        found.information[1].numpy(), found.information[0].numpy(), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(found.agreement.numpy(), 1.0)


def test_chosen_replicates(data):
    mixture = model_of("gaussian", data).assembled.mixture
    which = torch.tensor([2, 0, 2])
    assert chosen(mixture, which) is mixture
    weighted = replace(mixture, weights=torch.rand(3, mixture.units).double())
    assert chosen(weighted, torch.arange(3)) is weighted
    some = chosen(weighted, which)
    assert torch.equal(some.weights, weighted.weights[which])


def test_batches_cover_all_replicates(data):
    mixture = model_of("gaussian", data).assembled.mixture
    found = [i for batch in batches(150, mixture) for i in batch]
    assert found == list(range(150))
    assert all(len(batch) == 1 for batch in batches(5, mixture, together=False))


def test_shares_and_responses_are_those_drawn_from(data):
    model = model_of("poisson", data)
    x = model.parameters.working(torch.tensor(TRUTH["poisson"]).double())
    generator = torch.Generator().manual_seed(0)
    drawn = draw(model.study, model.assembled, x, 2_000, generator)
    share = 1 / (1 + np.exp(0.2))
    assert float(drawn.groups.double().mean()) == pytest.approx(share, abs=0.005)
    outcome = model.study.outcomes[0]
    own = drawn.groups[:, outcome.unit]
    t = data["t"].to_numpy()
    for k, (a, b) in enumerate([(1.3, -0.3), (0.1, 0.5)]):
        mean = drawn.responses[0][own == k].mean()
        expected = np.exp(a + b * t)
        assert float(mean) == pytest.approx(expected.mean(), rel=0.01)


def test_the_same_seed_draws_the_same(data):
    model = model_of("poisson", data)
    one, two = (simulate_fits(model, TRUTH["poisson"], 5, seed=9) for _ in range(2))
    pd.testing.assert_frame_equal(one.params, two.params)
    other = simulate_fits(model, TRUTH["poisson"], 5, seed=10)
    assert not np.allclose(one.params, other.params)


def test_truth_by_name_and_what_is_wrong_with_it(data):
    model = model_of("poisson", data)
    names = list(model.parameters.labels)
    named = pd.Series(TRUTH["poisson"], index=names)[::-1]
    one = simulate_fits(model, named, 3)
    pd.testing.assert_frame_equal(
        one.params, simulate_fits(model, TRUTH["poisson"], 3).params
    )
    with pytest.raises(DesignError, match="no value for g1:t"):
        simulate_fits(model, named.drop("g1:t"), 3)
    with pytest.raises(DesignError, match="give 5 numbers"):
        simulate_fits(model, [1.0], 3)


def test_random_effects_are_drawn(data):
    """Rows of a unit share its effects: the covariance matrix is Z B Z' + sigma^2 I."""
    model = ds.traj("traj(y ~ t, groups=2, id=id, random=~ 1 + t)", data)
    emission = model.assembled.mixture.emissions[0]
    x = torch.zeros(len(model.parameters), dtype=torch.float64)
    x[model.parameters.labels.index("sigma")] = np.log(0.6)
    L = torch.tensor([[0.8, 0.0], [0.3, 0.5]]).double()
    x[emission.slots.index[0, -3:]] = torch.tensor([0.8, 0.3, 0.5]).double()
    torch.testing.assert_close(emission.factor(emission.slots.spread(x[None])[0, 0]), L)
    generator = torch.Generator().manual_seed(1)
    drawn = draw(model.study, model.assembled, x, 5_000, generator)
    outcome = model.study.outcomes[0]
    own = torch.nonzero(outcome.unit == 2).flatten()
    values = drawn.responses[0][:, own][drawn.groups[:, 2] == 1].numpy()
    Z = outcome.effects.Z[own].numpy()
    expected = Z @ (L @ L.T).numpy() @ Z.T + 0.36 * np.eye(len(own))
    np.testing.assert_allclose(np.cov(values.T), expected, rtol=0.12)


def test_growth_replicates_one_by_one(data):
    fit = ds.traj("traj(y ~ t, groups=2, id=id, random=~ 1)", data).fit(starts=6)
    found = fit.bootstrap("parametric", 30, seed=1)
    assert len(found.params) >= 25


def test_those_who_drop_out_are_not_drawn(data):
    model = ds.traj("traj(y ~ t, groups=1, id=id, dropout=~ 1)", data)
    with pytest.raises(ModelError, match="resample units"):
        simulate_fits(model, np.ones(len(model.parameters)), 2)
