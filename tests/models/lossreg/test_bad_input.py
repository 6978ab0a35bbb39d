"""What a user may get wrong, and what is said of it."""

from __future__ import annotations

import warnings

import pytest
import torch

from deepstats.errors import (
    ConvergenceWarning,
    DesignError,
    GradientWarning,
    InfeasibleError,
    LossError,
    ModelError,
)
from deepstats.models.lossreg import get_loss, lossreg

from .data import sample


@pytest.fixture(scope="module")
def frame():
    return sample(300)


def seed_fair_loss(prediction, y, group):
    """Return the seed's loss: its fairness term has no gradient through ``>``."""
    over = 1.0 * (prediction > 0.5)
    first = (over * (y == 0) * group).sum() / (over * group).sum().clamp(1)
    second = (over * (y == 0) * (1 - group)).sum() / (over * (1 - group)).sum().clamp(1)
    return -(1 - ((prediction - y) ** 2).mean()) * (1 - (first - second).abs())


def test_part_of_a_loss_without_gradient(frame):
    model = lossreg("hit ~ x + z", frame, loss=seed_fair_loss, link="sigmoid")
    # The search ends at a jump it does not see, and says so too.
    with (
        pytest.warns(ConvergenceWarning),
        pytest.warns(GradientWarning, match=r"no gradient \(cut by gt"),
    ):
        model.fit(cov_type="none")


def huber_by_where(prediction, y):
    gap = (prediction - y).abs()
    return torch.where(gap > 1, gap - 0.5, gap**2 / 2)


def test_pieces_that_join_are_no_cut(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = lossreg("y ~ x + z", frame, loss=huber_by_where).fit()
    expected = lossreg("y ~ x + z", frame, loss="huber(1)").fit()
    assert own.params.to_numpy() == pytest.approx(expected.params.to_numpy(), rel=1e-8)


BROKEN = {
    "NaN": (lambda p, y: torch.log(p - 10) + y, "NaN"),
    "no gradient": (lambda p, y: 1.0 * (p > 0.5) + y, "no gradient: cut by gt"),
    "not of the prediction": (lambda p, y: y**2, "does not depend"),
    "shape": (lambda p, y: p[:3], r"shape \(3,\)"),
    "number": (lambda p, y: 3.0, "float, not a tensor"),
    "raises": (lambda p, y: p @ torch.ones(3), "raised RuntimeError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_losses(kind, frame):
    loss, message = BROKEN[kind]
    with pytest.raises(LossError, match=message):
        lossreg("hit ~ x + z", frame, loss=loss, link="sigmoid").fit()


def late_nan(prediction, y):
    return torch.where(prediction > 0.1, prediction * torch.nan, (prediction - y) ** 2)


def test_a_loss_that_becomes_nan_keeps_to_where_it_is_a_number(frame):
    small = frame.assign(hit=0.05, x=frame["x"] / 100)
    fit = lossreg("y ~ 1", small.assign(y=0.05), loss=late_nan)
    with pytest.raises(LossError, match="NaN"):
        fit.fit(start=[5.0])


@pytest.mark.parametrize(
    "constraints",
    [["x >= 1", "x <= 0"], {"x": (2, 1)}, ["x + z = 1", "x <= 0", "z <= 0"]],
)
def test_constraints_that_contradict(constraints, frame):
    with pytest.raises(InfeasibleError, match="no coefficients satisfy"):
        lossreg("y ~ x + z", frame, constraints=constraints)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"q": "nonneg"}, "no column and no term"),
        ({"x": "increasing"}, "treatment coding"),
        ({"x": "up"}, "not read"),
        ("x < 1 < 2", "not read"),
        (["x = q"], "constraint"),
        (3, "must be text"),
    ],
)
def test_constraints_that_cannot_be_read(constraints, message, frame):
    with pytest.raises(ModelError, match=message):
        lossreg("y ~ x + grade", frame, constraints=constraints)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "not known"),
        ({"loss": "quantile(2)"}, "strictly between"),
        ({"loss": "brier(2)"}, "takes no option"),
        ({"link": "cube"}, "not known"),
        ({"penalty": "lasso"}, "how strong"),
        ({"lam": 1.0}, "needs a penalty"),
        ({"penalty": "lasso", "lam": -1.0}, "not negative"),
        ({"penalty": "lasso", "lam": "best"}, "not known"),
        ({"penalty": "bridge", "lam": 1.0}, "not known"),
        ({"penalty": "elasticnet", "lam": 1.0, "l1_ratio": 2}, "l1_ratio"),
        ({"penalty": "group", "lam": 1.0, "constraints": "nonneg"}, "no constraints"),
        ({"penalty": "lasso", "lam": 1.0, "penalty_factor": {"q": 1}}, "no column"),
        ({"loss": "absolute", "penalty": "group", "lam": 0.1}, "huber"),
    ],
)
def test_options(options, message, frame):
    with pytest.raises(ValueError, match=message):
        lossreg("y ~ x + z", frame, **options).fit()


def test_outcomes_and_columns(frame):
    with pytest.raises(DesignError, match=r"in \[0, 1\]"):
        lossreg("y ~ x", frame, loss="logloss")
    with pytest.raises(DesignError, match="not negative"):
        lossreg("y ~ x", frame, loss="poisson")
    with pytest.raises(DesignError, match="categorical"):
        lossreg("grade ~ x", frame)
    with pytest.raises(ModelError, match="infinite at predictions"):
        lossreg("hit ~ x", frame, loss="logloss", link="clamp")
    with pytest.raises(DesignError, match="not in the data"):
        lossreg("hit ~ x", frame, loss=lambda p, y, race: (p - y) ** 2)
    with pytest.raises(DesignError, match="missing in 300"):
        lossreg(
            "hit ~ x", frame.assign(race=None), loss=lambda p, y, race: (p - y) ** 2
        )
    with pytest.raises(ModelError, match="no argument"):
        get_loss(lambda p, y: (p - y) ** 2, {"race": "group"})
    with pytest.raises(ModelError, match="no weights"):
        lossreg(
            "hit ~ x", frame, loss=lambda p, y: ((p - y) ** 2).mean(), weights="w"
        ).fit()
    two = lossreg("group ~ x", frame, loss="logloss").fit()
    assert two.converged
    with pytest.raises(DesignError, match="levels"):
        lossreg("group ~ x", frame, loss="logloss").fit(
            eval_data=frame.assign(group="q")
        )
