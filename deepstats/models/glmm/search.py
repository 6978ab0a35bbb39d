"""From a generalised linear model to the optimum of a mixed one.

Steps are Newton's with an approximate Hessian (the linear model's information at the
weights of the point), corrected by what gradients have shown on the way. At the
optimum the exact Hessian, by differences of the exact gradient, takes over: it is what
standard errors need anyway.

References
----------
Gilmour, Thompson & Cullis (1995), Average information REML; Nocedal & Wright (2006),
Numerical Optimization, section 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise

import numpy as np
import torch

from ...families import CumulativeLink
from ...likelihood import pointwise
from ..mixed.search import bounded_step, corrected
from .laplace import TIGHT, Laplace, Point
from .starts import starting

__all__ = [
    "LONGEST_ETA",
    "Found",
    "approximate",
    "hessian",
    "minimise",
    "reachable",
]

#: Steps shorter than this, in standard errors, are taken with the exact Hessian.
_NEAR = 1e-3
#: The Hessian is made anew where the point has moved further since it was made.
_MOVED = 1e-3
#: A standardised variance that falls below this is tried at zero.
_ZERO = 1e-8
#: Differences of gradients reach this far, in units of 1 / sqrt(curvature).
_STEP = 1e-4
_FINEST = 1e-10
#: They change covariance parameters by this share at most, small ones as one so large.
_SHARE, _SMALL = 1e-3, 0.03
#: Steps longer than this, in standard errors, are followed by a new approximate Hessian
#: and need the modes no nearer than so; the gradient's change corrects it after others.
_FAR, _LOOSE = 0.5, 1e-5
#: Differences of gradients need them so near.
_CLOSE = 1e-7
#: Steps of scoring without random effects.
_SCORING = 8
#: An approximate Hessian that is nearer to singular, its diagonal scaled to one, is
#: taken without what covariances and coefficients have in common.
_REGULAR = 0.1
#: A parameter at its bound with a smaller gradient may leave it, and a curvature (the
#: diagonal scaled to one) below minus this is one of a saddle.
_LEVEL, _CURVED = 1e-6, 1e-3
#: Covariances worse conditioned than this (by standard deviations) are as singular.
_SINGULAR = 1e4
_HALVINGS = 30
#: A step that gains a smaller share of what H promised has shown H wrong: beside a
#: singular covariance the approximation lacks most of the curvature.
_KEPT = 0.1
#: A gain below this share of the value is none: the exact Hessian is needed.
_GAIN = 1e-8
#: Longest step: of a covariance parameter, and of a linear predictor (mean square).
_LONGEST, LONGEST_ETA = 1.0, 3.0
#: A step of which no more than this share can be taken is cut in what makes it long.
_STUMP = 0.01


@dataclass(eq=False)
class _Joint:
    """Both kinds of parameters side by side, as `bounded_step` reads a point."""

    point: Point

    @property
    def x(self) -> np.ndarray:
        return np.concatenate([self.point.x, self.point.gamma])

    @property
    def gradient(self) -> np.ndarray:
        return np.concatenate(self.point.gradient)


@dataclass(frozen=True, eq=False)
class Found:
    """Where the search ended.

    Attributes
    ----------
    point : Point
    hessian : ndarray
        Exact second derivatives of minus twice the log-likelihood, in the covariance
        parameters and the coefficients.
    free : ndarray of bool
        Parameters that are not at their bound.
    converged : bool
    iterations, evaluations : int
    decrement : float
        Length of the last step, in standard errors.
    message : str
    reml : bool
        Whether the mean's coefficients were integrated out of the criterion.
    """

    point: Point
    hessian: np.ndarray
    free: np.ndarray
    converged: bool
    iterations: int
    evaluations: int
    decrement: float
    message: str
    reml: bool = False


def minimise(
    laplace: Laplace, x: np.ndarray | None, gamma: np.ndarray, *,
    tolerance: float = 1e-5, max_iterations: int = 100, scored: bool = True,
    unit: float = 1.0,
) -> Found:  # fmt: skip
    """Minimise minus twice the log-likelihood.

    Parameters
    ----------
    laplace : Laplace
    x, gamma : ndarray
        Where to begin: covariance parameters (None: see `starts`) and coefficients.
    tolerance : float, default 1e-5
        On the length of the last Newton step, in standard errors.
    max_iterations : int, default 100
    scored : bool, default True
        Whether the coefficients are first estimated without random effects; not where
        they come from a fit with.
    unit : float, default 1
        See `starts.starting`.

    Returns
    -------
    Found
    """
    gamma = _scored(laplace, gamma) if scored else gamma
    if x is None:
        x, gamma = starting(laplace, gamma, unit)
    k = len(x)
    lower = np.concatenate([laplace.structure.lower, np.full(len(gamma), -np.inf)])
    laplace.tight = _LOOSE
    now = _Joint(laplace(x, gamma))
    H, made, exact = approximate(now.point), None, None
    message, converged, length, stalled = "", False, np.inf, False
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        step, length = _step(now, H, lower)
        if made is None and (length < _NEAR or stalled):
            now = _tightened(laplace, now)
            exact = H = hessian(now.point, H)
            made = now.x
            step, length = _step(now, H, lower)
        if length < tolerance and made is not None:
            beyond = _escape(laplace, now, H, lower)
            if beyond is None:
                converged, message = True, "converged"
                break
            now, made = beyond, None
            H = approximate(now.point)
            continue
        laplace.tight = _LOOSE if length > _FAR else TIGHT
        step = _shortened(laplace, now, step)
        after = _line(laplace, now, step, lower, k)
        if after is None:
            if made is None:
                now = _tightened(laplace, now)
                exact = H = hessian(now.point, H)
                made = now.x
                continue
            converged = length < 1e-2
            message = "converged to rounding" if converged else "no step descends"
            break
        if made is not None and length > _NEAR and not _convex(H):
            # A saddle, as beside a singular covariance: far from what H says.
            made = None
        gain = now.point.value - after.point.value
        stalled = gain < _GAIN * abs(now.point.value)
        promised = -float(step @ now.gradient) - float(step @ H @ step) / 2
        change, turn = after.x - now.x, after.gradient - now.gradient
        now = after
        kept = gain > _KEPT * promised
        if made is None and kept and (length > _FAR or not _convex(H)):
            # Gradients bend: what they have shown on the way is of no use here.
            H = approximate(now.point)
        else:
            H = corrected(H, change, turn)
    else:
        message = f"not converged in {max_iterations} iterations"
    now = _tightened(laplace, now)
    # Not H: corrections by short steps show the gradient's rounding.
    if made is None or exact is None or _distance(now.x - made, exact) > _MOVED:
        exact = hessian(now.point, H)
    free = ~((now.x <= lower) & (now.gradient >= 0))
    # Correlations of what does not vary mean nothing.
    free[:k] &= laplace.structure.determined(now.x[:k]) | np.isfinite(lower[:k])
    return Found(
        now.point, exact, free, converged, iteration, laplace.evaluations, length,
        message,
    )  # fmt: skip


def _convex(H: np.ndarray) -> bool:
    """Whether a Hessian is positive definite."""
    return bool(np.linalg.eigvalsh(H)[0] > 0)


def _escape(
    laplace: Laplace, now: _Joint, H: np.ndarray, lower: np.ndarray
) -> _Joint | None:
    """Leave a saddle, as where a root is zero; None at a minimum."""
    k, z = len(now.point.x), now.x
    free = np.flatnonzero((z > lower) | (now.gradient <= _LEVEL))
    d = np.sqrt(np.maximum(np.abs(np.diag(H)[free]), 1e-300))
    values, vectors = np.linalg.eigh(H[np.ix_(free, free)] / d[:, None] / d)
    if not values[0] < -_CURVED:
        return None
    way = np.zeros_like(z)
    way[free] = vectors[:, 0] / d * np.sqrt(2 / -values[0])
    for length in (1.0, -1.0, 0.3, -0.3, 0.1, -0.1):
        at = np.maximum(z + _shortened(laplace, now, length * way), lower)
        laplace.begin_at(now.point)
        after = laplace(at[:k], at[k:])
        if after.value < now.point.value - _GAIN * (1 + abs(now.point.value)):
            return _Joint(after)
    laplace.begin_at(now.point)
    return None


def _scored(laplace: Laplace, gamma: np.ndarray) -> np.ndarray:
    """Coefficients without random effects, for families with one predictor."""
    if len(laplace.X) > 1:
        return gamma
    (X,), density = laplace.X, laplace.density
    value = -np.inf
    best = gamma
    for _ in range(_SCORING):
        slopes = density.slopes(laplace.predictors(gamma))
        found = float(slopes.value.sum())
        if not found >= value:
            break
        step = _solved(X, slopes.positive, slopes.first)
        best, gain, value = gamma, found - value, found
        if gain < _GAIN * abs(value) or not np.isfinite(step).all():
            break
        gamma = gamma + step
    return best


def _solved(X: torch.Tensor, weights: torch.Tensor, first: torch.Tensor) -> np.ndarray:
    information = (X.T @ (weights[:, None] * X)).cpu().numpy()
    return np.linalg.lstsq(information, (X.T @ first).cpu().numpy(), rcond=1e-14)[0]


def _tightened(laplace: Laplace, now: _Joint) -> _Joint:
    """Evaluate a point again whose modes are not as near as they can be."""
    if laplace.tight == TIGHT:
        return now
    laplace.tight = TIGHT
    return _Joint(laplace(now.point.x, now.point.gamma))


def _step(now: _Joint, H: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, float]:
    step, length = bounded_step(now, H, lower)
    return -step, length


def _shortened(laplace: Laplace, now: _Joint, step: np.ndarray) -> np.ndarray:
    """Shorten a step that leaves the range in which derivatives say something."""
    share = reachable(laplace, now.point.x, step)
    if share < _STUMP:
        # Of a flat covariance parameter, which is not to keep all others in place.
        room, cut = _room(now.point.x), step.copy()
        cut[: len(room)] = cut[: len(room)].clip(-room, room)
        if cut @ now.gradient < 0:
            step, share = cut, reachable(laplace, now.point.x, cut)
    return share * step


def _room(x: np.ndarray) -> np.ndarray:
    """How far covariance parameters may move at once."""
    return _LONGEST * np.maximum(np.abs(x), 1.0)


def reachable(laplace: Laplace, x: np.ndarray, step: np.ndarray) -> float:
    """Share of a step within the range in which derivatives say something.

    Parameters
    ----------
    laplace : Laplace
    x : ndarray
        Covariance parameters.
    step : ndarray
        Of them and of all coefficients.
    """
    k, limits = len(x), [1.0]
    if k:
        size = np.maximum(np.abs(step[:k]), 1e-300)
        limits.append(float((_room(x) / size).min()))
    place = k
    for X in laplace.X:
        part = torch.from_numpy(step[place : place + X.shape[1]]).to(X)
        length = float((X @ part).square().mean().sqrt())
        limits.append(LONGEST_ETA / max(length, 1e-300))
        place += X.shape[1]
    return min(limits)


def _distance(step: np.ndarray, H: np.ndarray) -> float:
    """Length of a step in standard errors."""
    return float(np.sqrt(max(step @ H @ step / 2, 0.0)))


def _line(
    laplace: Laplace, now: _Joint, step: np.ndarray, lower: np.ndarray, k: int
) -> _Joint | None:
    """Halve a step until the value falls."""
    slope, noise = float(step @ now.gradient), 1e-12 * (1 + abs(now.point.value))
    length = 1.0
    for _ in range(_HALVINGS):
        x = np.maximum(now.x + length * step, lower)
        variance = np.isfinite(lower) & (x < _ZERO)
        x[variance] = 0.0
        try:
            after = laplace(x[:k], x[k:])
        except FloatingPointError:
            after = None
        if (
            after is not None
            and after.value <= now.point.value + 1e-4 * length * slope + noise
        ):
            return _Joint(after)
        laplace.begin_at(now.point)
        length /= 2
    return None


@singledispatch
def approximate(point: Point) -> np.ndarray:
    """Return the linear model's information at a point: a first Hessian."""
    laplace, modes = point.laplace, point.modes
    structure, f = laplace.structure, modes.factorisation
    products = f.products
    directions = structure.directions(point.x)
    count = len(directions)
    score = [s.cpu().numpy() for s in laplace.rows.gather(modes.slopes.first)]
    parts = [np.zeros((g.k, g.m, count)) for g in structure.factors]
    for number, (j, D) in enumerate(directions):
        parts[j][:, :, number] = D @ score[j]
    device = f.L.device
    U = products.from_factors(
        [torch.from_numpy(p).to(device) for p in parts],
        torch.zeros(0, count, dtype=torch.float64, device=device),
    )
    AU = products.multiply(U)
    moved = U.minus(f.solve(AU))
    k, total = len(point.x), sum(laplace.sizes)
    H = np.eye(k + total)
    H[:k, :k] = AU.gram(moved).cpu().numpy()
    edges = np.cumsum([k, *laplace.sizes])
    at = [np.arange(*pair) for pair in pairwise(edges)]
    random = np.concatenate([at[p] for p in laplace.rows.parts])
    H[np.ix_(random, random)] = 2 * _marginal(laplace, point)
    for j in set(range(len(at))) - set(laplace.rows.parts):
        H[np.ix_(at[j], at[j])] = 2 * _plain(point, j)
    if isinstance(laplace.density.family, CumulativeLink):
        found = _joint(point)
        H[k:, k:] = H[k:, k:] if found is None else 2 * found
    across = _coupled(point, directions, products.by_factor(moved))
    full = H.copy()
    full[k:, :k], full[:k, k:] = across, across.T
    d = np.sqrt(np.abs(np.diag(H)).clip(1e-300))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = full / d[:, None] / d
    if not np.isfinite(scaled).all():
        return H
    return full if np.linalg.eigvalsh(scaled)[0] > _REGULAR else H


def _joint(point: Point) -> np.ndarray | None:
    """Information of the coefficients of all predictors, the modes moving along.

    Thresholds and locations have so much in common, and thresholds with the random
    effects, that their own curvatures say little. None where it is not positive.
    """
    laplace, f = point.laplace, point.modes.factorisation
    X, rows = laplace.X, laplace.rows
    found = pointwise(laplace.density.log_prob, point.modes.etas).second
    zero = torch.zeros_like(point.modes.etas[0])

    def weights(i: int, j: int) -> torch.Tensor:
        return found.get((min(i, j), max(i, j)), zero)

    columns = [rows.gather(weights(0, j) * x) for j, part in enumerate(X)
               for x in part.T]  # fmt: skip
    stacked = [torch.stack(c, dim=2) for c in zip(*columns, strict=True)]
    U = f.products.from_factors(stacked, f.L.new_zeros(0, len(columns)))
    blocks = [
        [one.T @ (weights(i, j)[:, None] * two) for j, two in enumerate(X)]
        for i, one in enumerate(X)
    ]
    out = torch.cat([torch.cat(row, dim=1) for row in blocks]) - U.gram(f.solve(U))
    return out.cpu().numpy() if bool(torch.linalg.eigvalsh(out)[0] > 0) else None


def _coupled(
    point: Point, directions: list[tuple[int, np.ndarray]], moved: list[torch.Tensor]
) -> np.ndarray:
    """How the gradient in the coefficients moves with the covariance parameters.

    Parameters
    ----------
    point : Point
    directions : list of (int, ndarray)
        For each parameter the factor, and the derivative of its covariance.
    moved : list of Tensor, each (K, m, parameters)
        How the modes move, by factor.
    """
    laplace, turns, f = point.laplace, point.turns, point.modes.factorisation
    rows = laplace.rows
    spread = [_spread(point, j, D) for j, D in directions]
    pulled = [
        rows.gather(rows.stack([rows.total(h * turns.weight[p]) for p in rows.parts]))
        for h in spread
    ]
    stacked = [torch.stack(parts, dim=2) for parts in zip(*pulled, strict=True)]
    empty = f.L.new_zeros(0, len(directions))
    solved = f.products.by_factor(f.solve(f.products.from_factors(stacked, empty)))
    out = []
    for number, h in enumerate(spread):
        a = rows.combine([p[:, :, number] for p in solved])
        eta = rows.combine([p[:, :, number] for p in moved])
        column = []
        for i, X in enumerate(laplace.X):
            # The modes' own move counts on average only where it meets another part.
            through = a if i in rows.parts else a - 2 * eta
            change = rows.total(h * turns.weight[i])
            change = change + rows.total(through * turns.second[i])
            column.append((X.T @ change).cpu().numpy())
        out.append(np.concatenate(column))
    return np.stack(out, axis=1)


def _spread(point: Point, j: int, D: np.ndarray) -> torch.Tensor:
    """How leverages move with a factor's covariance: what a level's block says."""
    diagonal, rows = point.inverse[2], point.laplace.rows
    root = point.laplace.structure.roots(point.x)[j]
    if diagonal is None or not np.linalg.cond(root) < _SINGULAR:
        return torch.zeros_like(point.leverages)
    K, inverse = diagonal[j], np.linalg.inv(root @ root.T)
    outer = torch.from_numpy(inverse @ D @ inverse).to(K)
    if len(root) == 1:
        return rows.form(j, K * K * outer)
    return rows.form(j, torch.einsum("abm,bc,cdm->adm", K, outer, K))


def _marginal(laplace: Laplace, point: Point) -> np.ndarray:
    """``X'Sigma^-1 X`` of the working model, of the predictors with random effects."""
    rows, w = laplace.rows, point.modes.slopes.weight
    f = point.modes.factorisation
    products = f.products
    X = [laplace.X[p] for p in rows.parts]
    weights = rows.split(w)
    columns = [
        rows.gather(own * x) for own, part in zip(weights, X, strict=True)
        for x in part.T
    ]  # fmt: skip
    if not columns:
        return np.zeros((0, 0))
    stacked = [torch.stack(c, dim=2) for c in zip(*columns, strict=True)]
    U = products.from_factors(stacked, f.L.new_zeros(0, len(columns)))
    outer = [
        torch.cat([
            one.T @ (part[:, None] * two)
            for one, part in zip(X, rows.split(own), strict=True)
        ])
        for own, two in zip(weights, X, strict=True)
    ]  # fmt: skip
    return (torch.cat(outer, dim=1) - U.gram(f.solve(U))).cpu().numpy()


def _plain(point: Point, j: int) -> np.ndarray:
    """Information of the coefficients of another predictor, the first held."""
    laplace = point.laplace
    X, w = laplace.X[j], laplace.density.curvature(point.modes.etas, j)
    found = X.T @ (w[:, None] * X)
    scale = X.T @ X
    # Far from the optimum the curvature may be negative: then as much as one per row.
    low = float(torch.linalg.eigvalsh(found).min())
    return (found if low > 0 else scale).cpu().numpy()


def hessian(point: Point, near: np.ndarray | None = None) -> np.ndarray:
    """Second derivatives by differences of the exact gradient.

    They reach so little far that they are as good as central ones: relative errors are
    of the size of `_STEP`.

    Parameters
    ----------
    point : Point
    near : ndarray, optional
        A Hessian that says how far is far.
    """
    laplace, at = point.laplace, _Joint(point)
    z, k = at.x, len(point.x)
    about = approximate(point) if near is None else near
    scale = np.sqrt(np.maximum(np.abs(np.diag(about)), 1e-8))
    # Never so little that rounding is all there is.
    reach = np.maximum(_STEP / scale, _FINEST * np.maximum(np.abs(z), 1.0))
    # Where a covariance is singular the approximation knows no curvature.
    reach[:k] = np.minimum(reach[:k], _SHARE * np.maximum(np.abs(point.x), _SMALL))
    H = np.empty((len(z), len(z)))
    start, tight = at.gradient, laplace.tight
    # Scoring converges linearly: its last step says less of how near the modes are.
    laplace.tight = TIGHT if laplace.density.expected else _CLOSE
    for j in range(len(z)):
        up = z.copy()
        up[j] += reach[j]
        laplace.begin_at(point)
        high = np.concatenate(laplace(up[:k], up[k:]).gradient)
        H[:, j] = (high - start) / (up[j] - z[j])
    laplace.tight = tight
    laplace.begin_at(point)
    return (H + H.T) / 2
