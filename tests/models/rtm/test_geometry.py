"""Shapes, grids, and counting points in units."""

import json

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import CoordinateError, DesignError
from deepstats.models.rtm import grid, read_geojson
from deepstats.models.rtm.geometry import centroid, inside
from deepstats.models.rtm.layers import Points, counted_in, units_of

L_SHAPE = [[0, 0], [4, 0], [4, 1], [1, 1], [1, 3], [0, 3], [0, 0]]
HOLED = {
    "type": "Polygon",
    "coordinates": [
        [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]],
        [[2, 2], [2, 4], [4, 4], [4, 2], [2, 2]],
    ],
}


def test_centroid_of_an_l_is_that_of_its_two_boxes():
    # 4 x 1 about (2, .5) and 1 x 2 about (.5, 2)
    expected = (4 * 2 + 2 * 0.5) / 6, (4 * 0.5 + 2 * 2) / 6
    for ring in (L_SHAPE, L_SHAPE[::-1]):
        shape = {"type": "Polygon", "coordinates": [ring]}
        assert centroid(shape) == pytest.approx(expected)


def test_a_hole_pushes_the_centroid_away():
    expected = (100 * 5 - 4 * 3) / 96
    assert centroid(HOLED) == pytest.approx((expected, expected))


def test_centroids_far_from_the_origin_keep_their_digits():
    ring = (np.array(L_SHAPE) + 5e6).tolist()
    found = centroid({"type": "MultiPolygon", "coordinates": [[ring]]})
    assert found == pytest.approx((5e6 + 1.5, 5e6 + 1), rel=1e-14)


@pytest.mark.parametrize(
    "shape, place",
    [
        ({"type": "Point", "coordinates": [3, 4]}, (3, 4)),
        ({"type": "MultiPoint", "coordinates": [[0, 0], [2, 4]]}, (1, 2)),
        ({"type": "LineString", "coordinates": [[0, 0], [2, 0]]}, (1, 0)),
        (
            {"type": "MultiLineString",
             "coordinates": [[[0, 0], [2, 0]], [[0, 6], [6, 6]]]},
            (2.5, 4.5),
        ),
    ],
)  # fmt: skip
def test_centroids_of_points_and_lines(shape, place):
    assert centroid(shape) == pytest.approx(place)


def test_inside_agrees_with_matplotlib(rng):
    path = pytest.importorskip("matplotlib.path").Path
    points = rng.uniform(-1, 5, (2000, 2))
    found = inside(points, {"type": "Polygon", "coordinates": [L_SHAPE]})
    np.testing.assert_array_equal(found, path(L_SHAPE).contains_points(points))
    assert 0 < found.mean() < 1


def test_a_hole_is_outside():
    assert inside(np.array([[3.0, 3.0], [5.0, 5.0]]), HOLED).tolist() == [False, True]


def test_grid_covers_every_point_once(rng):
    points = 4e5 + rng.uniform(0, 1234, (500, 2))
    cells = grid(points, 100)
    counts, out = counted_in(Points(points, np.ones(500)), units_of(cells, "x", "y"))
    assert out == 0 and counts.sum() == 500
    corner = cells[["x", "y"]].min().to_numpy() - 50
    place = np.floor((points - corner) / 100).astype(int)
    own = np.floor((cells[["x", "y"]].to_numpy() - corner) / 100).astype(int)
    expected = [(place == cell).all(axis=1).sum() for cell in own]
    np.testing.assert_array_equal(counts, expected)


def test_grid_within_a_boundary():
    cells = grid([[0, 0], [3.9, 2.9]], 1, within={
        "type": "Polygon", "coordinates": [L_SHAPE]
    })  # fmt: skip
    assert len(cells) == 6


def test_points_go_to_the_nearest_unit_that_has_no_area(rng):
    at = 4e5 + rng.uniform(0, 1000, (50, 2))
    points = 4e5 + rng.uniform(0, 1000, (400, 2))
    units = units_of({"x": at[:, 0], "y": at[:, 1]}, "x", "y")
    weight = rng.uniform(1, 2, 400)
    nearest = ((points[:, None] - at) ** 2).sum(axis=2).argmin(axis=1)
    expected = np.bincount(nearest, weight, 50)
    np.testing.assert_allclose(counted_in(Points(points, weight), units)[0], expected)


def test_geojson_of_a_grid_reads_back():
    cells = grid([[4e5, 1e5], [4.003e5, 1.001e5]], 100)
    features = [
        {"type": "Feature", "properties": {"id": int(i)}, "geometry": g}
        for i, g in zip(cells["id"], cells["geometry"], strict=True)
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    found = read_geojson(json.loads(text))
    pd.testing.assert_frame_equal(found[["id", "x", "y"]], cells[["id", "x", "y"]])


def test_what_has_a_geo_interface_is_a_geometry():
    class Shape:
        __geo_interface__ = HOLED

    units = units_of({"geometry": [Shape(), Shape()]}, "x", "y", projected=True)
    assert units.xy == pytest.approx(np.full((2, 2), 488 / 96))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: grid([[0, 0], [1, np.nan]], 1), CoordinateError, "1 of 2 places"),
        (lambda: grid([["a", "b"]], 1), CoordinateError, "not numbers"),
        (lambda: grid([[0, 0], [9, 9]], -1), DesignError, "positive length"),
        (lambda: grid([[0, 0], [1e9, 1e9]], 1), DesignError, "cells; is it in the"),
        (lambda: read_geojson({}), DesignError, "FeatureCollection"),
        (
            lambda: centroid({"type": "Polygon", "coordinates": [[[1, 1], [1, 1]]]}),
            CoordinateError, "no size",
        ),
        (
            lambda: units_of({"geometry": [{"type": "Circle"}] * 2}, "x", "y"),
            DesignError, "'Circle'",
        ),
        (
            lambda: grid([[0, 0], [5, 5]], 1, within={
                "type": "Polygon", "coordinates": [[[9, 9], [10, 9], [10, 10]]]}),
            DesignError, "inside within",
        ),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_used(call, error, message):
    with pytest.raises(error, match=message):
        call()
