"""Data drawn from known groups: bias, coverage of 95% intervals, recovery of labels.

A thousand data sets of each design are drawn and fitted together, from the truth.
"""

from __future__ import annotations

import numpy as np
import pytest

from deepstats.models.trajectory import Trajectory
from deepstats.models.trajectory.replicates import SimulatedTrajectories, simulate_fits

REPLICATES = 1_000

# Family: units, occasions, intercepts and slopes of the groups, further parameters,
# and the share of units that the most probable group is right for, at least.
DESIGNS = {
    ("gaussian", 3): (300, 8, [(0, 0.5), (2, 0.0), (3, -1.0)], [1.0], 0.95),
    ("poisson", 3): (300, 8, [(-0.5, 0.5), (0.7, 0.0), (1.8, -0.5)], [], 0.97),
    ("zip", 3): (
        400, 8, [(0.5, 0.5), (1.4, 0.2), (2.3, -0.5)], [-0.5, -0.5, -1.0], 0.94,
    ),
    ("logit", 3): (500, 10, [(-1.8, 0.5), (0.0, 1.2), (1.9, -0.5)], [], 0.90),
    ("gaussian", 5): (
        500, 8, [(-2, 0), (0, 1.5), (0, -1.5), (2, 0.5), (4, -0.5)], [1.0], 0.95,
    ),
    ("poisson", 5): (
        500, 10, [(-1, 0.2), (0.3, 0.9), (0.3, -0.9), (1.5, 0), (2.4, 0.3)], [], 0.93,
    ),
    ("zip", 5): (
        500, 10, [(0.2, 0.2), (1.0, 0.9), (1.0, -0.9), (2.0, 0), (2.9, 0.3)],
        [-1.0, -0.5, -0.5, -1.0, -1.0], 0.94,
    ),
    ("logit", 5): (
        600, 20, [(-2.2, 0.2), (0, 2.2), (0, -2.2), (0.3, 0.2), (2.2, 0.3)], [], 0.90,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=DESIGNS, ids=lambda p: f"{p[0]}{p[1]}")
def simulated(request) -> tuple[SimulatedTrajectories, float, tuple[str, int]]:
    family, groups = request.param
    units, times, lines, further, accuracy = DESIGNS[request.param]
    # Responses that fits of the design itself would need; none is looked at.
    y = np.random.default_rng(0).integers(0, 2, units * times)
    data = {
        "id": np.repeat(np.arange(units), times),
        "t": np.tile(np.linspace(-1, 1, times), units),
        "y": y,
    }
    model = Trajectory(f"traj(y ~ t, groups={groups}, id=id)", data, family=family)
    truth = [value for line in lines for value in line] + further
    truth += list(np.linspace(-0.3, 0.3, groups - 1))
    return simulate_fits(model, truth, REPLICATES, seed=1), accuracy, request.param


def kinds(names: list[str]) -> dict[str, list[str]]:
    """Names of parameters by what they are."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(":")
        kind = parts[1] if len(parts) > 2 else parts[-1]
        found.setdefault(kind, []).append(name)
    return found


def test_intervals_hold_the_truth(simulated):
    fits, _, _ = simulated
    coverage = fits.coverage()
    for kind, names in kinds(list(coverage.index)).items():
        # Of one parameter alone 1,000 replicates tell 0.95 to 0.007.
        assert abs(coverage[names].mean() - 0.95) < 0.015, kind


def test_estimates_are_where_the_truth_is(simulated):
    """Maximum likelihood is biased in the order of 1 / n: a small part of its error."""
    fits, _, _ = simulated
    table = fits.bias()
    error = (fits.params - fits.truth)[fits.converged].std()
    assert (table["bias"].abs() < 3.5 * table["mc_error"] + 0.12 * error).all()
    assert ((table["se_ratio"] > 0.93) & (table["se_ratio"] < 1.07)).all()


def test_units_find_their_groups(simulated):
    fits, least, _ = simulated
    assert fits.converged.mean() > 0.99
    assert fits.accuracy[fits.converged].mean() > least
