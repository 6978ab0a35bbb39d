"""Distances, densities and thresholds against sums over all pairs."""

import numpy as np
import pytest

from deepstats.models.rtm.features import (
    KERNELS,
    applied,
    densities,
    distances,
    operationalise,
)
from deepstats.models.rtm.layers import Points
from deepstats.models.rtm.model import _different


@pytest.fixture
def scene(rng):
    at = rng.uniform(0, 1000, (300, 2))
    points = Points(rng.uniform(0, 1000, (90, 2)), rng.uniform(0.5, 3, 90))
    return at, points


def pairs(at, points):
    return np.sqrt(((at[:, None] - points.xy) ** 2).sum(axis=2))


def test_distances_are_to_the_nearest_of_all(scene):
    at, points = scene
    np.testing.assert_allclose(
        distances(points.xy, at), pairs(at, points).min(axis=1), rtol=1e-14
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_densities_are_sums_over_all_pairs(scene, kernel):
    at, points = scene
    sizes = (30.0, 120.0, 250.0)
    d = pairs(at, points)
    for b, found in zip(sizes, densities(points, at, sizes, kernel).T, strict=True):
        u = d / b
        k = {
            "quartic": np.where(u < 1, 3 / np.pi * (1 - u**2) ** 2, 0),
            "uniform": np.where(u <= 1, 1 / np.pi, 0),
            "gaussian": np.exp(-(u**2) / 2) / (2 * np.pi) * (u <= 5),
        }[kernel]
        np.testing.assert_allclose(found, k @ points.weight / b**2, rtol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_density_adds_up_to_the_weights(kernel):
    """On a fine lattice over the plane, a density is a density."""
    step, b = 2.0, 50.0
    line = np.arange(-300, 300, step)
    lattice = np.stack(np.meshgrid(line, line), axis=2).reshape(-1, 2)
    points = Points(np.array([[3.3, -7.1], [40.0, 5.0]]), np.array([1.0, 2.5]))
    total = densities(points, lattice, [b], kernel).sum() * step**2
    # The edge of a uniform kernel cuts cells of the lattice; others end in nothing.
    assert total == pytest.approx(3.5, rel=5e-3 if kernel == "uniform" else 1e-5)


def test_pieces_of_units_give_the_same(scene, monkeypatch):
    at, points = scene
    whole = densities(points, at, (100.0, 200.0))
    monkeypatch.setattr("deepstats.models.rtm.features._PAIRS", 50)
    np.testing.assert_array_equal(densities(points, at, (100.0, 200.0)), whole)


def test_candidates_are_within_a_distance_or_two_deviations_up(scene):
    at, points = scene
    sizes = {"distance": (50.0, 100.0), "density": (150.0,)}
    found = operationalise("bar", points, at, sizes, "quartic", 2.0)
    names = ["bar_within_50", "bar_within_100", "bar_dense_150"]
    assert [c.rule.name for c in found] == names
    d = pairs(at, points)
    for c, size in zip(found, sizes["distance"], strict=False):
        np.testing.assert_array_equal(c.column, d.min(axis=1) <= size)
    values = densities(points, at, [150.0])[:, 0]
    z = (values - values.mean()) / values.std()
    np.testing.assert_array_equal(found[2].column, z > 2)
    assert found[2].rule.threshold == pytest.approx(values.mean() + 2 * values.std())


def test_a_threshold_is_of_the_units_used_and_stays(scene):
    at, points = scene
    used = np.arange(100)
    sizes = {"distance": (), "density": (150.0,)}
    rule = operationalise("bar", points, at, sizes, used=used)[0].rule
    first = densities(points, at[used], [150.0])
    assert rule.threshold == pytest.approx(first.mean() + 2 * first.std())
    new = densities(points, at[150:], [150.0])[:, 0]
    np.testing.assert_array_equal(
        applied(rule, points, at[150:], "quartic"), new > rule.threshold
    )


def test_candidates_that_say_the_same_are_left_out(scene):
    at, points = scene
    sizes = {"distance": (100.0, 100.00001, 5000.0), "density": ()}
    found = {"bar": operationalise("bar", points, at, sizes)}
    left_out, kept = _different(found, np.arange(300))
    assert [c.rule.name for c in kept["bar"]] == ["bar_within_100"]
    assert sorted(left_out.values()) == [
        "the same units as bar_within_100", "yes at all units"
    ]  # fmt: skip
