"""Shapes of units: GeoJSON in and out, centroids, cells of a grid, points inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ...errors import CoordinateError, DesignError

__all__ = [
    "as_shape",
    "centroid",
    "grid",
    "inside",
    "lines_of",
    "numbers",
    "read_geojson",
    "rings_of",
]

Shape = Mapping[str, Any]

_POLYGONS = ("Polygon", "MultiPolygon")
_LINES = ("LineString", "MultiLineString")
_POINTS = ("Point", "MultiPoint")
#: Cells that a grid may have; more are a cell size in the wrong unit of measurement.
_MOST_CELLS = 20_000_000


def numbers(values: Any, what: str) -> np.ndarray:
    """Return coordinates as an array.

    Parameters
    ----------
    values : array_like, shape (n,) or (n, 2)
    what : str
        Named in the error.

    Returns
    -------
    ndarray of float

    Raises
    ------
    CoordinateError
        If a value is missing, infinite or not a number.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise CoordinateError(
            f"the coordinates of {what} are not numbers; convert them first (text such "
            "as '399587.8' too)."
        ) from None
    wrong = ~np.isfinite(array)
    if wrong.any():
        rows = int(wrong.reshape(len(array), -1).any(axis=1).sum())
        raise CoordinateError(
            f"{what} has {rows} of {len(array)} places without finite coordinates; "
            "leave those rows out, or geocode them."
        )
    return array


def as_shape(value: Any) -> Shape:
    """Read one geometry: a GeoJSON mapping, or what has ``__geo_interface__``.

    Raises
    ------
    DesignError
        For anything that is not a point, a line or a polygon.
    """
    shape = getattr(value, "__geo_interface__", value)
    if isinstance(shape, Mapping) and shape.get("type") == "Feature":
        shape = shape["geometry"]
    kind = shape.get("type") if isinstance(shape, Mapping) else type(value).__name__
    if kind not in (*_POLYGONS, *_LINES, *_POINTS):
        raise DesignError(
            f"a unit's geometry is a GeoJSON Point, LineString or Polygon (or Multi... "
            f"of these), or has __geo_interface__; not {kind!r}."
        )
    return shape


def read_geojson(collection: Mapping[str, Any]) -> pd.DataFrame:
    """Return the features of a GeoJSON collection as a frame of units.

    Parameters
    ----------
    collection : mapping
        A FeatureCollection as ``json.load`` gives it, in projected coordinates.

    Returns
    -------
    DataFrame
        The properties, and x, y (the centroid) and geometry.

    Raises
    ------
    DesignError
        If it is not a collection of features.

    Examples
    --------
    >>> square = [[[0, 0], [200, 0], [200, 200], [0, 200], [0, 0]]]
    >>> units = read_geojson({"type": "FeatureCollection", "features": [
    ...     {"type": "Feature", "properties": {"crimes": 3},
    ...      "geometry": {"type": "Polygon", "coordinates": square}}]})
    >>> units[["crimes", "x", "y"]].values.tolist()
    [[3.0, 100.0, 100.0]]
    """
    features = collection.get("features") if isinstance(collection, Mapping) else None
    if not features:
        raise DesignError(
            "expected a GeoJSON FeatureCollection with features; json.load the file "
            "first."
        )
    frame = pd.DataFrame([dict(f.get("properties") or {}) for f in features])
    shapes = [as_shape(f["geometry"]) for f in features]
    places = np.array([centroid(s) for s in shapes])
    return frame.assign(x=places[:, 0], y=places[:, 1], geometry=shapes)


def grid(
    points: Any, cell: float, *, within: Any = None, x: str = "x", y: str = "y"
) -> pd.DataFrame:
    """Lay square cells over points.

    Parameters
    ----------
    points : frame, mapping or array_like of shape (n, 2)
        What the grid has to cover.
    cell : float
        Length of a side, in the units of the coordinates.
    within : geometry, optional
        Only cells whose centre is inside this polygon (see `as_shape`).
    x, y : str
        Columns of the coordinates.

    Returns
    -------
    DataFrame
        id, x and y (the centre), and geometry.

    Raises
    ------
    CoordinateError, DesignError
        For coordinates or a size that cannot be used.

    Examples
    --------
    >>> grid([[0, 0], [290, 90]], cell=100)[["x", "y"]].values.tolist()
    [[50.0, 50.0], [150.0, 50.0], [250.0, 50.0]]
    """
    at = numbers(
        np.column_stack([points[x], points[y]]) if hasattr(points, "keys") else points,
        "the points of the grid",
    )
    if not np.isfinite(cell) or cell <= 0:
        raise DesignError(f"cell={cell!r}: the side of a cell is a positive length.")
    low, high = at.min(axis=0), at.max(axis=0)
    # One more than would do, so that a point on the last border is inside a cell.
    counts = np.floor((high - low) / cell).astype(np.int64) + 1
    if counts.prod() > _MOST_CELLS:
        raise DesignError(
            f"cell={cell:g} makes {counts.prod():,} cells; is it in the units of the "
            "coordinates?"
        )
    centres = [low[k] + cell * (np.arange(counts[k]) + 0.5) for k in (0, 1)]
    columns, rows = np.meshgrid(*centres)
    places = np.column_stack([columns.ravel(), rows.ravel()])
    if within is not None:
        places = places[inside(places, as_shape(within))]
    if not len(places):
        raise DesignError("no cell's centre is inside within=; are both projected?")
    half = cell / 2
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    squares = places[:, None, :] + corners
    return pd.DataFrame({
        "id": np.arange(len(places)), "x": places[:, 0], "y": places[:, 1],
        "geometry": [
            {"type": "Polygon", "coordinates": [square.tolist()]} for square in squares
        ],
    })  # fmt: skip


# -- parts of shapes -------------------------------------------------------------------


def rings_of(shape: Shape) -> Iterator[list[np.ndarray]]:
    """Yield the rings of each polygon of a shape, the outer one first."""
    if shape["type"] in _POLYGONS:
        alone = shape["type"] == "Polygon"
        for polygon in [shape["coordinates"]] if alone else shape["coordinates"]:
            yield [_path(ring) for ring in polygon]


def lines_of(shape: Shape) -> Iterator[np.ndarray]:
    """Yield the lines of a shape, each of shape (points, 2)."""
    if shape["type"] in _LINES:
        alone = shape["type"] == "LineString"
        for line in [shape["coordinates"]] if alone else shape["coordinates"]:
            yield _path(line)


def _path(points: Sequence[Any]) -> np.ndarray:
    return numbers([p[:2] for p in points], "a geometry")


def centroid(shape: Shape) -> tuple[float, float]:
    """Return the centroid of a shape: of its area, its length, or its points.

    Examples
    --------
    >>> centroid({"type": "LineString", "coordinates": [[0, 0], [4, 0], [4, 2]]})
    (2.6666666666666665, 0.3333333333333333)
    """
    parts = [_ring_moments(r) for p in rings_of(shape) for r in _oriented(p)]
    parts += [_line_moments(line) for line in lines_of(shape)]
    if shape["type"] in _POINTS:
        alone = shape["type"] == "Point"
        points = [shape["coordinates"]] if alone else shape["coordinates"]
        parts = [(1.0, point) for point in _path(points)]
    size = sum(s for s, _ in parts)
    if not parts or size == 0:
        raise CoordinateError(f"a {shape['type']} of no size has no centroid.")
    place = sum(s * m for s, m in parts) / size
    return float(place[0]), float(place[1])


def _oriented(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Turn the outer ring counter-clockwise and holes clockwise."""
    turned = []
    for number, ring in enumerate(rings):
        outer = _ring_moments(ring)[0] > 0
        turned.append(ring if outer == (number == 0) else ring[::-1])
    return turned


def _ring_moments(ring: np.ndarray) -> tuple[float, np.ndarray]:
    """Signed area and centroid of a ring; about its first point, for the digits."""
    origin = ring[0]
    a, b = ring - origin, np.roll(ring, -1, axis=0) - origin
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    area = cross.sum() / 2
    if area == 0:
        return 0.0, origin
    return float(area), origin + ((a + b) * cross[:, None]).sum(axis=0) / (6 * area)


def _line_moments(line: np.ndarray) -> tuple[float, np.ndarray]:
    """Length and centroid of a line."""
    length = np.hypot(*np.diff(line, axis=0).T)
    middle = (line[1:] + line[:-1]) / 2
    if length.sum() == 0:
        return 0.0, line[0]
    return float(length.sum()), length @ middle / length.sum()


def inside(points: np.ndarray, shape: Shape) -> np.ndarray:
    """Say which points are inside a polygon, by the even-odd rule; shape (n,).

    Parameters
    ----------
    points : ndarray, shape (n, 2)
    shape : mapping
        A Polygon or MultiPolygon; any other shape has no inside.
    """
    odd = np.zeros(len(points), dtype=bool)
    for ring in (r for rings in rings_of(shape) for r in rings):
        low, high = ring.min(axis=0), ring.max(axis=0)
        near = ((points >= low) & (points <= high)).all(axis=1)
        if near.any():
            odd[near] ^= _inside_ring(points[near], ring)
    return odd


def _inside_ring(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Count the edges that a ray to the right crosses, one edge at a time."""
    x, y = points.T
    odd = np.zeros(len(points), dtype=bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        crosses = (y1 > y) != (y2 > y)
        if crosses.any():
            odd[crosses] ^= x[crosses] < x1 + (y[crosses] - y1) / (y2 - y1) * (x2 - x1)
    return odd
