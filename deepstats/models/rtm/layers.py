"""Point layers and units as coordinates: frames and shapes end here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from ...errors import CoordinateError, DesignError, listed
from ...frame import Table
from .geometry import Shape, as_shape, centroid, inside, numbers

__all__ = ["PointLayer", "Points", "Units", "counted_in", "points_of", "units_of"]


@dataclass(frozen=True, eq=False)
class PointLayer:
    """Places of one kind, and how they are made into risk factors.

    Parameters
    ----------
    data : frame, mapping or array_like of shape (points, 2)
        Projected coordinates (metres or feet, not degrees).
    x, y : str, optional
        Columns of the coordinates; those of the model unless given.
    weight : str, optional
        Column of how many things stand at a place; places of weight zero are left
        out. Distances go to the nearest place, densities add the weights up.
    distances, bandwidths : sequence of float, optional
        In place of the model's; ``()`` for none.
    """

    data: Any
    x: str | None = None
    y: str | None = None
    weight: str | None = None
    distances: Sequence[float] | None = None
    bandwidths: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class Points:
    """A layer as arrays.

    Attributes
    ----------
    xy : ndarray, shape (points, 2)
    weight : ndarray, shape (points,)
    """

    xy: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Units:
    """The places that risk is estimated for.

    Attributes
    ----------
    frame : mapping of str to Series or ndarray
        Columns of the units that formulas read.
    xy : ndarray, shape (n, 2)
        Where they are; of lines and polygons the centroid.
    shapes : tuple of mapping, or None
        Their geometry.
    labels : ndarray, shape (n,)
        What they are called: the id column, or the index of the frame.
    """

    frame: Mapping[str, Any]
    xy: np.ndarray
    shapes: tuple[Shape, ...] | None = field(repr=False)
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.xy)


def check_projected(xy: np.ndarray, what: str) -> None:
    """Refuse what looks like longitude and latitude.

    Raises
    ------
    CoordinateError
        If all places are within the range of degrees.
    """
    if len(xy) and (np.abs(xy[:, 0]) <= 180).all() and (np.abs(xy[:, 1]) <= 90).all():
        raise CoordinateError(
            f"the coordinates of {what} look like degrees of longitude and latitude "
            f"({xy[0, 0]:g}, {xy[0, 1]:g}), in which distances have no meaning. "
            "Project them first (a state plane or UTM zone; geopandas: to_crs). If "
            "they are projected, in kilometres say, tell so by projected=True."
        )


def units_of(
    data: Any, x: str, y: str, unit: str | None = None, projected: bool = False
) -> Units:
    """Read units from a frame with coordinates, or with a column ``geometry``.

    Parameters
    ----------
    data : frame or mapping
    x, y : str
        Columns of the coordinates; without them the centroid of the geometry.
    unit : str, optional
        Column of identifiers.
    projected : bool, default False
        Whether the coordinates are known not to be degrees.

    Returns
    -------
    Units

    Raises
    ------
    CoordinateError, DesignError
        For coordinates, geometries or identifiers that cannot be used.
    """
    table = Table(data)
    shapes = None
    if "geometry" in table.columns:
        shapes = tuple(as_shape(g) for g in table.full("geometry"))
    if x in table.columns and y in table.columns:
        xy = np.column_stack(
            [numbers(table.full(c), f"units, column {c}") for c in (x, y)]
        )
    elif shapes is not None:
        xy = np.array([centroid(s) for s in shapes]).reshape(-1, 2)
    else:
        raise DesignError(
            f"units have no columns {x!r} and {y!r} and no geometry: name the columns "
            f"of their projected coordinates by x= and y=; there are "
            f"{listed(table.columns)}."
        )
    if len(xy) < 2:
        raise DesignError(
            f"there {'is one unit' if len(xy) else 'are no units'}: risk is compared "
            "between units; give at least two, and many more for an estimate."
        )
    if not projected:
        check_projected(xy, "the units")
    names = [c for c in table.columns if c != "geometry"]
    frame = {name: table.full(name) for name in names}
    return Units(frame, xy, shapes, _labels(table, unit, len(xy)))


def _labels(table: Table, unit: str | None, n: int) -> np.ndarray:
    """Return identifiers, each of one unit."""
    if unit is None:
        return np.arange(n) if table.index is None else np.asarray(table.index)
    if unit not in table.columns:
        raise DesignError(f"id={unit!r} is no column; there are {table.columns}.")
    labels = pd.Series(np.asarray(table.full(unit)))
    twice = labels[labels.duplicated()].unique().tolist()
    if len(twice):
        raise DesignError(
            f"id={unit!r} has units twice: {listed(twice, 5)}. One row "
            "is one unit: add rows of a unit up, or leave the copies out."
        )
    return labels.to_numpy()


def points_of(name: str, given: Any, x: str, y: str, projected: bool = False) -> Points:
    """Read one layer.

    Parameters
    ----------
    name : str
        Named in errors.
    given : PointLayer, frame, mapping or array_like of shape (points, 2)
    x, y : str
        Columns of the coordinates unless the layer names its own.
    projected : bool, default False

    Returns
    -------
    Points

    Raises
    ------
    CoordinateError, DesignError
        For an empty layer, coordinates in degrees or that are not numbers, and
        weights that are negative or not numbers.
    """
    layer = given if isinstance(given, PointLayer) else PointLayer(given)
    data, what = layer.data, f"the layer {name!r}"
    if hasattr(data, "keys") or hasattr(data, "columns"):
        table = Table(data)
        at = [layer.x or x, layer.y or y]
        missing = [c for c in at if c not in table.columns]
        if missing:
            raise DesignError(
                f"{what} has no column {missing[0]!r} (there are "
                f"{listed(table.columns)}); name its coordinates: "
                "PointLayer(data, x=..., y=...)."
            )
        xy = np.column_stack([numbers(table.full(c), what) for c in at])
        weight = _weights(table, layer.weight, what, len(xy))
    else:
        xy = numbers(data, what)
        if xy.size and (xy.ndim != 2 or xy.shape[1] != 2):
            raise DesignError(f"{what} has shape {xy.shape}; points are (number, 2).")
        if layer.weight is not None:
            raise DesignError(f"{what}: weight= names a column, and this is an array.")
        xy = xy.reshape(-1, 2)
        weight = np.ones(len(xy))
    used = weight > 0
    if not used.any():
        raise DesignError(
            f"{what} is empty: it has no point"
            + (" of positive weight" if len(xy) else "")
            + ". Leave it out of the formula, or check the filter that made it."
        )
    if not projected:
        check_projected(xy, what)
    return Points(xy[used], weight[used])


def _weights(table: Table, column: str | None, what: str, n: int) -> np.ndarray:
    if column is None:
        return np.ones(n)
    if column not in table.columns:
        raise DesignError(
            f"{what} has no column {column!r} for weight=; there are {table.columns}."
        )
    weight = table.numeric(column)
    if weight is None:
        raise DesignError(f"{what}: the weights {column!r} are not numbers.")
    weight = np.asarray(weight, dtype=np.float64)
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise DesignError(
            f"{what}: the weights {column!r} are missing, infinite or negative in "
            f"{int((~np.isfinite(weight) | (weight < 0)).sum())} rows."
        )
    return weight


def counted_in(points: Points, units: Units) -> tuple[np.ndarray, int]:
    """Count points by unit: inside a polygon, else at the nearest unit.

    Parameters
    ----------
    points : Points
    units : Units

    Returns
    -------
    ndarray, shape (n,)
        Sum of the weights of the points of each unit. A point on a border that two
        polygons share is counted once, for the first of them.
    int
        Points inside no polygon, which are not counted.
    """
    polygons = units.shapes is not None and all(
        s["type"].endswith("Polygon") for s in units.shapes
    )
    if not polygons:
        nearest = cKDTree(units.xy).query(points.xy)[1]
        return np.bincount(nearest, points.weight, len(units)), 0
    counts = np.zeros(len(units))
    free = np.ones(len(points.xy), dtype=bool)
    tree = cKDTree(points.xy)
    for number, shape in enumerate(units.shapes):
        corners = np.concatenate(_corners(shape))
        centre = (corners.min(axis=0) + corners.max(axis=0)) / 2
        reach = np.hypot(*(corners - centre).T).max()
        near = np.array(tree.query_ball_point(centre, reach * 1.000001), dtype=int)
        near = near[free[near]] if len(near) else near
        if len(near):
            found = near[inside(points.xy[near], shape)]
            counts[number] = points.weight[found].sum()
            free[found] = False
    return counts, int(free.sum())


def _corners(shape: Shape) -> list[np.ndarray]:
    from .geometry import rings_of

    return [rings[0] for rings in rings_of(shape)]
