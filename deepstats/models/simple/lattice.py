"""The lattice point nearest to a target, inside a box and with few nonzero elements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

import numpy as np

__all__ = ["Found", "best_points", "closest_point", "subsets"]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """The best integers of a search, and what is certain of them.

    Attributes
    ----------
    z : ndarray of int, shape (p,)
    value : float
        Of these.
    bound : float
        No integers have a value below it; `value` itself when the search was
        exhaustive.
    nodes : int
        Partial choices looked at.
    """

    z: Array
    value: float
    bound: float
    nodes: int


@dataclass(eq=False)
class _Search:
    """A depth-first search from the last element to the first.

    At each level candidates come in order of their distance (Schnorr and Euchner), so
    that the first one beyond the best point found ends the level.
    """

    R: list[list[float]]
    t: list[float]
    low: list[float]
    high: list[float]
    counted: list[bool]
    value: float
    limit: int
    best: list[int] | None = None
    nodes: int = 0
    z: list[int] = field(default_factory=list)

    def run(self, k: int, distance: float, terms: int) -> float:
        """Search below a node; returns a bound of what is left out for the limit."""
        if k < 0:
            self.value, self.best = distance, self.z.copy()
            return math.inf
        row, z, t = self.R[k], self.z, self.t
        shift = sum(row[j] * (z[j] - t[j]) for j in range(k + 1, len(t)))
        centre = t[k] - shift / row[k]
        left_out, weight, counted = math.inf, row[k] ** 2, self.counted[k]
        values: Iterator[int] = (
            iter((0,))
            if counted and not terms
            else _outward(centre, self.low[k], self.high[k])
        )
        for v in values:
            here = distance + weight * (v - centre) ** 2
            if here >= self.value:
                break
            if self.nodes >= self.limit:
                return min(left_out, here)
            self.nodes += 1
            z[k] = v
            spent = 1 if counted and v else 0
            left_out = min(left_out, self.run(k - 1, here, terms - spent))
        return left_out


def _outward(centre: float, low: float, high: float) -> Iterator[int]:
    """Whole numbers in [low, high], the nearest to the centre first."""
    first = round(min(max(centre, low), high))
    yield first
    down, up = first - 1, first + 1
    while down >= low or up <= high:
        if up > high or (down >= low and centre - down < up - centre):
            yield down
            down -= 1
        else:
            yield up
            up += 1


def closest_point(
    R: Array,
    t: Array,
    low: Array,
    high: Array,
    *,
    terms: int | None = None,
    counted: Array | None = None,
    value: float = math.inf,
    limit: int = 1_000_000,
) -> Found | None:
    """Minimise ``|R (z - t)|**2`` over whole numbers z in a box.

    Parameters
    ----------
    R : ndarray, shape (p, p)
        Upper triangular, of full rank.
    t : ndarray, shape (p,)
    low, high : ndarray, shape (p,)
        Whole numbers or infinite.
    terms : int, optional
        Most elements that are not zero, of those `counted` (all by default).
    counted : ndarray of bool, shape (p,), optional
    value : float, default infinity
        Only points below it are looked for.
    limit : int, default 1000000
        Most nodes.

    Returns
    -------
    Found or None
        None where no point below `value` was found; the bound is infinite then if
        there is none.
    """
    p = len(t)
    on = np.ones(p, dtype=bool) if counted is None else counted
    search = _Search(
        R.tolist(), t.tolist(), low.tolist(), high.tolist(), on.tolist(), value, limit,
        z=[0] * p,
    )  # fmt: skip
    left_out = search.run(p - 1, 0.0, p if terms is None else terms)
    if search.best is None:
        return (
            None
            if math.isinf(left_out)
            else Found(np.zeros(0, dtype=np.int64), math.inf, left_out, search.nodes)
        )
    z = np.array(search.best, dtype=np.int64)
    return Found(z, search.value, min(search.value, left_out), search.nodes)


def best_points(
    R: Array,
    t: Array,
    low: Array,
    high: Array,
    *,
    terms: int | None = None,
    counted: Array | None = None,
    starts: Sequence[Array] = (),
    limit: int = 1_000_000,
    most: int = 50_000,
) -> Found:
    """Minimise ``|R (z - t)|**2`` as `closest_point` does, by the best order.

    With at most `terms` nonzero elements each subset of that many columns is searched
    by itself, in the order of what real coefficients reach there, which is a bound;
    with more than `most` subsets, all in one search.

    Parameters
    ----------
    R, t, low, high, terms, counted, limit
        See `closest_point`; R need not be triangular.
    starts : sequence of ndarray of int, shape (p,)
        Points known already, such as rounded targets.
    most : int, default 50000

    Returns
    -------
    Found
    """
    p = len(t)
    on = np.ones(p, dtype=bool) if counted is None else counted
    size = lambda z: float(np.sum((R @ (z - t)) ** 2))  # noqa: E731
    points = [np.asarray(z, dtype=np.int64) for z in starts]
    z = min(points, key=size) if points else None
    value = math.inf if z is None else size(z)
    k = int(on.sum())
    full = terms is None or terms >= k
    enumerated = not full and math.comb(k, terms or 0) <= most
    if full or not enumerated:
        sets, floors = [np.arange(p)], np.zeros(1)
    else:
        assert terms is not None
        always = np.flatnonzero(~on)
        sets = [np.r_[always, s] for s in subsets(np.flatnonzero(on), terms)]
        floors = _floors(R, t, np.array(sets))
        order = np.argsort(floors, kind="stable")
        sets, floors = [sets[i] for i in order], floors[order]
    nodes, bound = 0, math.inf
    for at, floor in zip(sets, floors, strict=True):
        if floor >= value:
            break
        if nodes >= limit:
            bound = min(bound, float(floor))
            break
        found = _within(
            R, t, low, high, at, None if full or enumerated else terms, on, value,
            limit - nodes,
        )  # fmt: skip
        if found is None:
            continue
        inner, point = found
        nodes, bound = nodes + inner.nodes, min(bound, inner.bound)
        if point is not None and inner.value < value:
            z, value = point, inner.value
    assert z is not None, "a box of whole numbers is never empty"
    return Found(z, value, min(bound, value), nodes)


def _within(
    R: Array, t: Array, low: Array, high: Array, at: Array, terms: int | None,
    on: Array, value: float, limit: int,
) -> tuple[Found, Array | None] | None:  # fmt: skip
    """Search one subset of the columns, the others zero."""
    at = at[_sorted(R[:, at])]
    Q, inner = np.linalg.qr(R[:, at])
    right = R @ t
    target = np.linalg.solve(inner, Q.T @ right)
    base = float(np.sum((right - Q @ (Q.T @ right)) ** 2))
    if len(at) == len(t):
        target, base = t[at], 0.0
    found = closest_point(
        inner, target, low[at], high[at], terms=terms, counted=on[at],
        value=value - base, limit=limit,
    )  # fmt: skip
    if found is None:
        return None
    whole = Found(found.z, found.value + base, found.bound + base, found.nodes)
    if not len(found.z):
        return whole, None
    point = np.zeros(len(t), dtype=np.int64)
    point[at] = found.z
    return whole, point


def _sorted(R: Array) -> Array:
    """Order of the columns in which those that say most are decided first.

    Small remaining norms go to the front: a large last diagonal element leaves few
    candidates at the first levels of the search.
    """
    rest, order, left = R.copy(), [], list(range(R.shape[1]))
    while left:
        norms = (rest[:, left] ** 2).sum(axis=0)
        j = left.pop(int(np.argmin(norms)))
        order.append(j)
        length = np.linalg.norm(rest[:, j])
        q = rest[:, j] / length if length > 0 else rest[:, j]
        rest[:, left] -= np.outer(q, q @ rest[:, left])
    return np.array(order)


def _floors(R: Array, t: Array, sets: Array) -> Array:
    """Least ``|R (b - t)|**2`` of real b in each subset, less rounding errors."""
    G, g = R.T @ R, R.T @ (R @ t)
    inner = G[sets[:, :, None], sets[:, None, :]]
    right = g[sets]
    explained = np.einsum(
        "bi,bi->b", right, np.linalg.solve(inner, right[..., None])[..., 0]
    )
    total = float(np.sum((R @ t) ** 2))
    return np.maximum(total - explained - 1e-11 * total, 0.0)


def subsets(columns: Array, size: int) -> Array:
    """All subsets of so many columns; shape (subsets, size)."""
    count = math.comb(len(columns), size)
    flat = chain.from_iterable(combinations(range(len(columns)), size))
    at = np.fromiter(flat, dtype=np.int64, count=count * size).reshape(count, size)
    return np.asarray(columns)[at]
