"""From moments to the optimum: start, Newton's method, and the test at the boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.optimize import nnls

from .coupling import Coupling
from .criterion import Criterion, Point
from .light import LazyPoint, LightCriterion, LightPoint, light
from .products import Products, Vector
from .small import LEAST_START, small_of, solve_moments
from .sparse import SparseLayout
from .structure import Term, lower_factor

__all__ = [
    "Found", "bounded_step", "corrected", "definite", "determined", "minimise",
    "moments", "moments_of_scores", "starting",
]  # fmt: skip

# A standardised standard deviation below this counts as zero.
_ZERO = 1e-6
_HALVINGS = 40
# After a step this short, in standard errors, the exact Hessian is the better guide.
_CLOSE = 0.3
# Where it costs as much as it saves, only once so many steps were not enough.
_MOST_AVERAGE = 6
# Steps shorter than this (in standard errors) may be on the way into a saddle.
_NEAR = 0.1
# After so many steps the average information is too far from the Hessian.
_PATIENCE = 12


@dataclass(frozen=True, eq=False)
class Found:
    """Where the search ended.

    Attributes
    ----------
    point : Point
    converged : bool
    iterations, evaluations : int
    decrement : float
        Length of the last Newton step, in standard errors of the parameters.
    message : str
    """

    point: Point
    converged: bool
    iterations: int
    evaluations: int
    decrement: float
    message: str


def moments(products: Products) -> np.ndarray:
    """Relative variances of the factors by the method of moments.

    Haseman & Elston (1972): the least-squares regression of products of residuals on
    the covariances that each factor would give them, here from cross-products alone.
    Vectors of effects are taken as uncorrelated with one variance, which is that of
    their standardised columns.
    """
    factors, p = products.structure.factors, products.p
    k, df = len(factors), products.n - p
    XY = products.by_factor(_all_fixed(products))
    onto = [x[:, :, :p] for x in XY]
    e = [x[:, :, p] for x in XY]
    grams = [a.flatten(0, 1).T @ a.flatten(0, 1) for a in onto]
    A, c = np.empty((k + 1, k + 1)), np.empty(k + 1)
    norms = _norms(products)
    trace = _traces(products)
    for j in range(k):
        c[j] = float((e[j] ** 2).sum())
        A[j, k] = A[k, j] = trace[j] - float(grams[j].diagonal().sum())
        parts = [torch.zeros_like(a) for a in onto]
        parts[j] = onto[j]
        product = products.multiply(
            products.from_factors(parts, onto[j].new_zeros(p, p))
        )
        for i, found in enumerate(products.by_factor(product)):
            crossed = float((found * onto[i]).sum())
            A[i, j] = norms[i, j] - 2 * crossed + float((grams[i] * grams[j]).sum())
    A[k, k], c[k] = df, float(products.G[-1, -1])
    v, rest = solve_moments(A, c, df)
    return np.clip(v / rest, LEAST_START, 1e6) if rest > 0 else np.ones(k)


def moments_of_scores(products: Products) -> np.ndarray:
    """Variances of the factors where that of the rows is known; no fixed part.

    Of scores s with information W, ``E (Z_j's)^2 = tr(Z_j'WZ_j) + sum_k v_k
    ||Z_j'WZ_k||^2`` to first order: equations of the method of moments.

    Parameters
    ----------
    products : Products
        Under weights W, with s in place of the weighted response.
    """
    scores = products.by_factor(products.response)
    A = _norms(products)
    c = np.array([float((s**2).sum()) for s in scores]) - _traces(products)
    scale = 1 / np.sqrt(A.diagonal().clip(1e-300))
    if not (np.isfinite(A).all() and np.isfinite(c).all()):
        return np.full(len(c), np.nan)
    return nnls(A * scale[:, None] * scale, c * scale)[0] * scale


def determined(products: Products) -> list[int]:
    """Factors whose effects the fixed effects already span: ``Z'PZ`` is zero."""
    if (small := small_of(products)) is not None:
        return np.flatnonzero(small.unexplained() <= 1e-10).tolist()
    p, total = products.p, _traces(products)
    out = []
    for j, part in enumerate(products.by_factor(_all_fixed(products))):
        explained = float((part[:, :, :p] ** 2).sum())
        if total[j] - explained <= 1e-10 * total[j]:
            out.append(j)
    return out


def _all_fixed(products: Products) -> Vector:
    return Vector([s.XY for s in products.stages], products.BXY, products.G[:-1])


def _traces(products: Products) -> np.ndarray:
    """Trace of ``Z'WZ`` of every factor."""
    out = np.zeros(len(products.structure.factors))
    for stage, j in zip(products.stages, products.stage_factors, strict=True):
        out[j] = float(stage.D.diagonal().sum())
    diagonal = products.layout.diagonal(products.B)
    for number, j in enumerate(products.rest_factors):
        out[j] = float(diagonal[products.rest_at(number)].sum())
    return out


def _norms(products: Products) -> np.ndarray:
    """Squared Frobenius norms of the cross-products of every two factors."""
    k = len(products.structure.factors)
    out = np.zeros((k, k))
    order = products.stage_factors
    for number, stage in enumerate(products.stages):
        i = order[number]
        out[i, i] = float((stage.D**2).sum())
        for later, E in stage.E.items():
            out[i, order[later]] = out[order[later], i] = float((E**2).sum())
        for other, j in enumerate(products.rest_factors):
            if isinstance(stage.C, Coupling):
                value = stage.C.norms(products.rest_at(other))
                out[i, j] = out[j, i] = value
    for (i, j), value in products.cut_norms().items():
        out[i, j] = out[j, i] = value
    if products.rest_factors:
        owner = products.B.new_zeros(products.q, len(products.rest_factors))
        for number in range(len(products.rest_factors)):
            owner[products.rest_at(number), number] = 1.0
        squares = products.layout.norms(products.B, owner)
        at = np.asarray(products.rest_factors)
        out[at[:, None], at] = squares.cpu().numpy()
    return out


def starting(products: Products) -> np.ndarray:
    """Parameters to start from."""
    structure, df = products.structure, products.n - products.p
    x = np.zeros(structure.size)
    if (small := small_of(products)) is not None:
        for term, V in zip(
            structure.terms, small.covariances(structure, df), strict=True
        ):
            if term.covariance is not None:
                x[term.params] = term.covariance.starts(float(np.diag(V).mean()))[0]
            elif term.variances:
                x[term.params] = np.diag(V)
            else:
                x[term.params] = lower_factor(V)[term.triangle]
        return x
    v = moments(products)
    for term in structure.terms:
        if term.covariance is not None:
            x[term.params] = term.covariance.starts(v[term.factor])[0]
        elif term.variances:
            x[term.params] = v[term.factor]
        else:
            root = np.sqrt(v[term.factor]) * np.eye(term.k)
            x[term.params] = root[term.triangle]
    return x


def minimise(
    criterion: Criterion, start: np.ndarray, maxiter: int = 100, tol: float = 1e-6
) -> Found:
    """Find the optimum, by the quickest form of the criterion; see `newton`."""
    quick = light(criterion)
    if quick is not criterion:
        found = newton(quick, start, maxiter, tol)
        if np.isfinite(found.point.value):
            return replace(found, point=LazyPoint(found.point, criterion))
        return replace(found, point=criterion(found.point.x))
    if isinstance(criterion.products.layout, SparseLayout):
        start = newton(replace(criterion, exact=False), start, 8, 0.3).point.x
    return newton(criterion, start, maxiter, tol)


def newton(
    criterion: Criterion | LightCriterion,
    start: np.ndarray,
    maxiter: int = 100,
    tol: float = 1e-6,
    watch: Callable[[Point], None] | None = None,
    noise: float = 1e-13,
) -> Found:
    """Newton's method with the average information, projected on variances >= 0.

    Parameters
    ----------
    criterion : Criterion
    start : ndarray
    maxiter : int
    tol : float
        On the length of a step in standard errors of the parameters.
    watch : callable, optional
        Called with every point where a step begins.
    noise : float, default 1e-13
        Share of the value that is not known of it.
    """
    lower = criterion.products.structure.lower
    point = criterion(np.maximum(start, lower))
    decrement, message = np.inf, "no more steps were allowed"
    converged = False
    iteration = 0
    while iteration < maxiter:
        iteration += 1
        if watch is not None:
            watch(point)
        H = _curvature(criterion, point, iteration, decrement)
        step, decrement = bounded_step(point, H, lower)
        if decrement <= _NEAR:
            # Next to a saddle steps are slow: it is left before it is reached.
            away = _out_of_corner(criterion, point)
            if away is not None:
                point = away
                continue
        if decrement <= tol:
            converged, message = True, "converged"
            break
        moved = _line_search(criterion, point, step, lower, noise)
        if moved is None:
            # Rounding hides what is left to gain.
            converged = decrement <= 1e3 * tol
            message = "converged to rounding" if converged else "no step lowers it"
            break
        point = moved
    return Found(point, converged, iteration, criterion.evaluations, decrement, message)


def _curvature(
    criterion: Criterion | LightCriterion,
    point: Point | LightPoint,
    iteration: int,
    decrement: float,
) -> np.ndarray:
    """Hessian for a step: an approximation first, exact where it is cheap or needed.

    Far from the optimum the average information, which is positive, leads better.
    """
    if isinstance(point, LightPoint):
        late = point.criterion.exact_pays or iteration > _MOST_AVERAGE
        exact = (decrement <= _CLOSE and late) or iteration > _PATIENCE
        return point.hessian if exact else point.information
    if iteration <= _PATIENCE:
        return point.information
    return _differences(criterion, point)


def _differences(
    criterion: Criterion | LightCriterion, point: Point | LightPoint
) -> np.ndarray:
    """Hessian by differences of the gradient."""
    x, g = point.x, point.gradient
    out = np.empty((len(x), len(x)))
    for j in range(len(x)):
        step = 1e-5 * max(abs(x[j]), 1.0)
        moved = x.copy()
        moved[j] += step
        out[j] = (criterion(moved).gradient - g) / step
    return (out + out.T) / 2


def bounded_step(
    point: Point | LightPoint, H: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, float]:
    """Newton step within the bounds, and its length in standard errors.

    The quadratic model is minimised over what the bounds allow, by an active set: the
    unbounded step, cut off at the bounds, can point uphill.
    """
    x, g = point.x, point.gradient
    room = lower - x
    if (room < 0).all():
        s = _solved(H, g)
        if (s >= room).all():
            return -s, float(np.sqrt(max(-(s @ g), 0.0)))
    H = definite(H)
    held = (room >= 0) & (g >= 0)
    s = np.zeros_like(x)
    for _ in range(4 * len(x) + 4):
        free = np.flatnonzero(~held)
        to = np.where(held, room, 0.0)
        if len(free):
            pull = g[free] + H[free] @ to
            to[free] = -np.linalg.solve(H[np.ix_(free, free)], pull)
        over = ~held & (to < room)
        if over.any():
            share = np.where(over, (room - s) / np.where(over, to - s, 1.0), np.inf)
            first = int(np.argmin(share))
            s = s + max(share[first], 0.0) * (to - s)
            held[first], s[first] = True, room[first]
            continue
        s = to
        slope = np.where(held, g + H @ s, 0.0)
        worst = int(np.argmin(slope)) if held.any() else 0
        if not slope[worst] < 0:
            break
        held[worst] = False
    return -s, float(np.sqrt(max(-(s @ g), 0.0)))


def _solved(H: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``-|H|^-1 g``; see `definite`."""
    d = np.sqrt(np.maximum(np.abs(H.diagonal()), 1e-300))
    scaled = H / d[:, None] / d
    factor, info = lapack.dpotrf(scaled, lower=1)
    if not info and factor.diagonal().min() > 1e-3:
        return -lapack.dpotrs(factor, g / d, lower=1)[0].ravel() / d
    return -np.linalg.solve(definite(H), g)


def definite(H: np.ndarray) -> np.ndarray:
    """``|H|``, with directions of no curvature damped."""
    d = np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    values, vectors = np.linalg.eigh(H / d[:, None] / d)
    values = np.maximum(np.abs(values), 1e-8 * max(abs(values).max(), 1e-300))
    return (vectors * values) @ vectors.T * d[:, None] * d


def corrected(H: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Make a Hessian agree with the last change of the gradient (BFGS, damped)."""
    if not np.isfinite(y).all():
        return H
    if not s @ H @ s > 0:
        # What the step was made with; kept as it was, H would never be corrected.
        H = definite(H)
    Hs = H @ s
    sHs, sy = float(s @ Hs), float(s @ y)
    if not sHs > 0:
        return H
    share = 1.0 if sy >= 0.2 * sHs else 0.8 * sHs / (sHs - sy)
    y = share * y + (1 - share) * Hs
    return H - np.outer(Hs, Hs) / sHs + np.outer(y, y) / float(s @ y)


def _line_search(
    criterion: Criterion, point: Point, step: np.ndarray, lower: np.ndarray,
    noise: float,
) -> Point | None:  # fmt: skip
    noise = noise * abs(point.value)
    length = 1.0
    for _ in range(_HALVINGS):
        new = criterion(np.maximum(point.x - length * step, lower))
        if new.value <= point.value + noise:
            return new
        length /= 2
    return None


def _out_of_corner(criterion: Criterion, point: Point) -> Point | None:
    """Find a better point where a singular covariance is a saddle, else None.

    The gradient in a triangle's entries vanishes where a column of it is zero. There
    the derivative in V must be non-negative along what V leaves out; if it is not, V
    grows in that direction.
    """
    structure = point.structure
    for term in structure.terms:
        if term.covariance is not None:
            if term.covariance.zeros(point.x[term.params]).all():
                grown = _grown(criterion, point, term)
                if grown is not None:
                    return grown
            continue
        if term.variances:
            continue
        root = term.root(point.x)
        # A triangle is singular where its diagonal has a zero.
        if np.abs(root.diagonal()).min() > 1e-2 * max(np.abs(root).max(), 1.0):
            continue
        G = point.slopes[term.factor][term.at, term.at]
        left, sizes, _ = np.linalg.svd(root)
        null = left[:, sizes <= 1e-4 * max(sizes.max(), 1.0)]
        if not null.shape[1]:
            continue
        values, vectors = np.linalg.eigh(null.T @ G @ null)
        scale = max(np.abs(np.diag(G)).max(), 1e-300)
        if values[0] >= -1e-6 * max(scale, 1.0):
            continue
        direction = null @ vectors[:, 0]
        for size in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
            V = root @ root.T + size * np.outer(direction, direction)
            x = point.x.copy()
            grown = lower_factor(V)
            x[term.params] = grown[term.triangle]
            new = criterion(x)
            if new.value < point.value - 1e-9:
                return new
    return None


def _grown(criterion: Criterion, point: Point, term: Term) -> Point | None:
    """Find a better point where no effect of a structured covariance varies.

    There its shapes have no gradient; that in its size depends on them.
    """
    own = term.covariance
    assert own is not None
    G = point.slopes[term.factor][term.at, term.at]
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for start in own.starts(size):
            if (G * own.matrix(start)).sum() >= 0:
                continue
            x = point.x.copy()
            x[term.params] = start
            new = criterion(x)
            if new.value < point.value - 1e-9:
                return new
    return None
