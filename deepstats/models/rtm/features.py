"""Distances and densities of point layers at units, made into yes or no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ...expressions import quote_name
from .layers import Points

__all__ = ["KERNELS", "Candidate", "Rule", "densities", "distances", "operationalise"]

#: Where kernels end, in bandwidths; beyond five a normal one is 4e-6 of its middle.
KERNELS = {"quartic": 1.0, "gaussian": 5.0, "uniform": 1.0}
#: Pairs of a unit and a point that are worked on at once.
_PAIRS = 2_000_000


@dataclass(frozen=True)
class Rule:
    """How a layer becomes a yes or no at a unit.

    Attributes
    ----------
    factor : str
        Name of the layer.
    kind : {"distance", "density", "column"}
        Within `size` of a point; density above a threshold; or as the data have it.
    size : float
        Distance or bandwidth; NaN of a column.
    threshold : float
        Of a density: mean and so many standard deviations of the units of the fit.
    name : str
        Of the column that results print.
    """

    factor: str
    kind: str
    size: float
    threshold: float
    name: str

    @property
    def label(self) -> str:
        """Name of its coefficient: in backticks where it is no identifier."""
        return quote_name(self.name)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A rule and what it says of the units.

    Attributes
    ----------
    rule : Rule
    column : ndarray of bool, shape (n,)
    """

    rule: Rule
    column: np.ndarray


def distances(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Distance of each place to the nearest point, shape (n,).

    Parameters
    ----------
    points : ndarray, shape (points, 2)
    at : ndarray, shape (n, 2)
    """
    return cKDTree(points).query(at)[0]


def densities(
    points: Points,
    at: np.ndarray,
    bandwidths: Sequence[float],
    kernel: str = "quartic",
) -> np.ndarray:
    """Kernel densities of points at places, a column for each bandwidth.

    Parameters
    ----------
    points : Points
    at : ndarray, shape (n, 2)
    bandwidths : sequence of float
    kernel : {"quartic", "gaussian", "uniform"}
        Silverman (1986), equation 4.5: the quartic one is
        ``3 / (pi b^2) (1 - d^2 / b^2)^2`` within the bandwidth b. A normal one ends at
        five bandwidths.

    Returns
    -------
    ndarray, shape (n, bandwidths)
        Points (their weights) for each unit of area.

    Examples
    --------
    >>> points = Points(np.zeros((1, 2)), np.ones(1))
    >>> places = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    >>> (np.pi / 3 * densities(points, places, [2.0])).round(4).ravel().tolist()
    [0.25, 0.1406, 0.0]
    """
    out = np.zeros((len(at), len(bandwidths)))
    reach = KERNELS[kernel] * max(bandwidths)
    tree = cKDTree(points.xy)
    near = cKDTree(at).count_neighbors(tree, reach)
    size = max(1, int(len(at) / max(1, near / _PAIRS)))
    for start in range(0, len(at), size):
        part = cKDTree(at[start : start + size])
        pairs = part.sparse_distance_matrix(tree, reach, output_type="ndarray")
        squares, weight = pairs["v"] ** 2, points.weight[pairs["j"]]
        for k, b in enumerate(bandwidths):
            used = _kernel(squares / b**2, kernel) * weight
            out[start : start + size, k] = np.bincount(pairs["i"], used, part.n) / b**2
    return out


def _kernel(u: np.ndarray, kernel: str) -> np.ndarray:
    """Kernel at squared distances in bandwidths."""
    if kernel == "quartic":
        return 3 / np.pi * np.maximum(1 - u, 0) ** 2
    if kernel == "uniform":
        return (u <= 1) / np.pi
    return np.where(u <= KERNELS[kernel] ** 2, np.exp(-u / 2), 0) / (2 * np.pi)


def operationalise(
    factor: str,
    points: Points,
    at: np.ndarray,
    sizes: Mapping[str, Sequence[float]],
    kernel: str = "quartic",
    above: float = 2.0,
    used: np.ndarray | slice = slice(None),
) -> list[Candidate]:
    """Return every yes or no that a layer is made into.

    Parameters
    ----------
    factor : str
    points : Points
    at : ndarray, shape (n, 2)
        The units.
    sizes : mapping
        Distances under "distance", bandwidths under "density".
    kernel : str, default "quartic"
    above : float, default 2
        How many standard deviations above the mean of the units a density is high.
    used : ndarray of int or slice, optional
        Units that mean and standard deviation are of; all by default.

    Returns
    -------
    list of Candidate
    """
    found = []
    if sizes["distance"]:
        d = distances(points.xy, at)
        for size in sizes["distance"]:
            rule = Rule(factor, "distance", size, size, f"{factor}_within_{size:g}")
            found.append(Candidate(rule, d <= size))
    if sizes["density"]:
        columns = densities(points, at, sizes["density"], kernel).T
        for size, values in zip(sizes["density"], columns, strict=True):
            limit = float(values[used].mean() + above * values[used].std())
            rule = Rule(factor, "density", size, limit, f"{factor}_dense_{size:g}")
            found.append(Candidate(rule, values > limit))
    return found


def applied(rule: Rule, points: Points, at: np.ndarray, kernel: str) -> np.ndarray:
    """Say which places a rule of a fit holds at; shape (n,).

    A density is high where it was in the fit: the threshold stays.
    """
    if rule.kind == "distance":
        return distances(points.xy, at) <= rule.size
    return densities(points, at, [rule.size], kernel)[:, 0] > rule.threshold
