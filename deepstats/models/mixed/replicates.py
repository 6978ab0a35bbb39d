"""One mixed model fitted to many responses.

Where the factor with most effects leaves few columns behind, all replicates take their
Newton steps together. Larger models are fitted one after the other, but share their
first step: at the common start one factorisation has a right-hand side for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from .criterion import Criterion, Point
from .elimination import factorise
from .products import Products, Vector
from .responses import Responses
from .search import bounded_step, minimise
from .structure import Structure
from .together import Points, Together, curvatures, gradients, term_root

__all__ = ["Refitted", "at_once", "refit_many", "singular"]

# Replicates fitted at once, and the elements of their largest arrays in all.
_AT_ONCE = 250
_ELEMENTS = 20_000_000
_HALVINGS = 30
# Steps all replicates take together; what is left then is searched alone.
_STEPS = 25
# A replicate this near its optimum, in standard errors, has converged: where V loses a
# dimension its triangle has a flat ridge, along which steps never get quite to the end.
_NEAR = 1e-3
_EDGE = 1e-4
# Slopes out of a corner that count, over the largest.
_DOWNHILL = 1e-6


@dataclass(frozen=True, eq=False)
class Refitted:
    """Estimates from many responses.

    Attributes
    ----------
    x : ndarray, shape (R, k)
        Covariance parameters of the search.
    value : ndarray, shape (R,)
        Criteria.
    variance : ndarray, shape (R,)
        Residual variances.
    beta : ndarray, shape (R, p)
    cov_beta : ndarray, shape (R, p, p)
    converged, singular : ndarray of bool, shape (R,)
    """

    x: np.ndarray
    value: np.ndarray
    variance: np.ndarray
    beta: np.ndarray
    cov_beta: np.ndarray
    converged: np.ndarray
    singular: np.ndarray

    @classmethod
    def empty(cls, count: int, k: int, p: int) -> Refitted:
        """Room for `count` fits."""
        return cls(
            np.full((count, k), np.nan), np.full(count, np.nan),
            np.full(count, np.nan), np.full((count, p), np.nan),
            np.full((count, p, p), np.nan), np.zeros(count, bool),
            np.zeros(count, bool),
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: list[Refitted]) -> Refitted:
        """All of several."""
        names = ("x", "value", "variance", "beta", "cov_beta", "converged", "singular")
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))

    def store(self, number: int, point: Point, converged: bool) -> None:
        """Keep what a search of one replicate found."""
        f = point.factorisation
        self.x[number], self.value[number] = point.x, point.value
        self.variance[number], self.beta[number] = point.variance, f.beta.cpu().numpy()
        self.cov_beta[number] = point.variance * f.cov_beta.cpu().numpy()
        self.converged[number] = converged


def singular(structure: Structure, x: np.ndarray) -> np.ndarray:
    """Which parameters, (R, k), lie on the edge of their range; shape (R,)."""
    out = np.zeros(len(x), bool)
    for term in structure.terms:
        if (own := term.covariance) is not None:
            out |= [bool(own.edges(one)) for one in x[:, term.params]]
            continue
        if term.variances:
            sizes = np.sqrt(np.maximum(x[:, term.params], 0.0))
        else:
            sizes = np.linalg.svd(term_root(term, x), compute_uv=False)
        out |= sizes.min(1) <= _EDGE * np.maximum(1.0, sizes.max(1))
    return out


def at_once(products: Products, compute: Compute) -> int:
    """Replicates to work on at once, by the memory they take.

    Parameters
    ----------
    products : Products
    compute : Compute
    """
    factors = products.structure.factors
    effects = sum(f.q for f in factors)
    each = 4 * products.n + (8 + 3 * products.structure.size) * effects
    if Together.pays(products):
        left = effects - factors[0].q + products.p
        size = max(left**2, factors[0].q * factors[0].k)
        most = min(_AT_ONCE, _ELEMENTS // size)
        each += 12 * size
    else:
        most = _AT_ONCE
    return int(np.clip(compute.memory // (32 * each), 1, max(most, 1)))


def refit_many(
    products: Products,
    responses: Responses,
    reml: bool,
    sigma: float | None,
    start: np.ndarray,
    maxiter: int = 100,
    tol: float = 1e-6,
) -> Refitted:
    """Fit one model to many responses.

    Parameters
    ----------
    products : Products
    responses : Responses
    reml : bool
    sigma : float or None
        Residual standard deviation, where it is known.
    start : ndarray, shape (k,)
    maxiter : int
    tol : float
        See `search.minimise`.
    """
    if Together.pays(products):
        return _fit_together(
            Together(products, responses, reml, sigma), start, maxiter, tol
        )
    return _fit_apart(products, responses, reml, sigma, start, maxiter, tol)


def _fit_apart(
    products: Products, responses: Responses, reml: bool, sigma: float | None,
    start: np.ndarray, maxiter: int, tol: float,
) -> Refitted:  # fmt: skip
    """Fit replicates one after the other from a first step taken together."""
    out = Refitted.empty(len(responses), len(start), products.p)
    first = _first_steps(products, responses, reml, sigma, start)
    for number, x in enumerate(first):
        criterion = Criterion(responses.products(products, number), reml, sigma)
        found = minimise(criterion, x, maxiter, tol)
        if not (found.converged or found.decrement <= _NEAR):
            found = minimise(criterion, start, maxiter, tol)
        out.store(number, found.point, found.converged or found.decrement <= _NEAR)
    out.singular[:] = singular(products.structure, out.x)
    return out


def _first_steps(
    products: Products, responses: Responses, reml: bool, sigma: float | None,
    start: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Newton step of every replicate from the start, with one factorisation."""
    structure = products.structure
    f = factorise(products, structure.roots(start))
    count, k, df = len(responses), len(start), products.n - products.p * reml
    if f is None or not k:
        return np.tile(start, (count, 1))
    right = responses.vector
    solved = f.solve(right)
    left = products.by_factor(right.minus(products.multiply(solved)))
    r = [part.cpu().numpy() for part in left]
    explained = _diagonal_gram(right, solved)
    rss = (responses.squares - explained).cpu().numpy()
    s2 = rss / df if sigma is None else np.full(count, sigma**2)
    traces = [t.cpu().numpy() for t in f.traces(reml)]
    slopes = [
        t - np.einsum("amr,bmr->rab", part, part) / s2[:, None, None]
        for t, part in zip(traces, r, strict=True)
    ]
    gradient = gradients(structure, np.tile(start, (count, 1)), slopes)
    directions = structure.directions(start)
    parts = [np.zeros((g.k, g.m, count, k)) for g in structure.factors]
    quadratic = np.empty((count, k))
    for number, (j, D) in enumerate(directions):
        moved = np.tensordot(D, r[j], 1)
        parts[j][:, :, :, number] = moved
        quadratic[:, number] = (r[j] * moved).sum((0, 1))
    device = products.G.device
    U = products.from_factors(
        [torch.from_numpy(p.reshape(*p.shape[:2], -1)).to(device) for p in parts],
        products.G.new_zeros(products.p, count * k),
    )
    AU = products.multiply(U)
    form = _block_gram(U, AU, count) - _block_gram(AU, f.solve(AU), count)
    H = form.cpu().numpy() / s2[:, None, None]
    if sigma is None:
        q = quadratic / s2[:, None]
        H = H - q[:, :, None] * q[:, None, :] / df
    x = np.tile(start, (count, 1))
    H = H + curvatures(structure, x, slopes)
    step, _ = _steps(x, gradient, H, structure.lower)
    return np.maximum(x - step, structure.lower)


def _diagonal_gram(one: Vector, two: Vector) -> Tensor:
    """Inner products of the columns of two vectors, each with its own."""
    out = (one.rest * two.rest).sum(0) + (one.X * two.X).sum(0)
    for a, b in zip(one.stages, two.stages, strict=True):
        out = out + (a * b).sum((0, 1))
    return out


def _block_gram(one: Vector, two: Vector, count: int) -> Tensor:
    """Inner products of the columns of each replicate; (count, k, k)."""
    out: Tensor | float = 0.0
    for a, b in [
        *zip(one.stages, two.stages, strict=True), (one.rest, two.rest), (one.X, two.X)
    ]:  # fmt: skip
        a, b = (v.reshape(-1, count, v.shape[-1] // count) for v in (a, b))
        out = out + torch.einsum("irk,irl->rkl", a, b)
    return out


# -- all at once ----------------------------------------------------------------------


def _fit_together(
    problem: Together, start: np.ndarray, maxiter: int, tol: float
) -> Refitted:
    """Newton's method of `search.minimise`, all replicates in step."""
    count, k = len(problem.responses), len(start)
    out = Refitted.empty(count, k, problem.products.p)
    lower = problem.structure.lower
    x = np.tile(np.maximum(start, lower), (count, 1))
    active = np.arange(count)
    point = problem(x, active)
    for _ in range(min(maxiter, _STEPS)):
        step, decrement = _steps(x[active], point.gradient, point.information, lower)
        done = (decrement <= tol) & np.isfinite(point.value)
        _keep(problem, out, active[done], x, _some(point, done))
        going = ~done & np.isfinite(point.value)
        if not going.any():
            break
        active, step, point = active[going], step[going], _some(point, going)
        moved, point, stuck = _descend(problem, x[active], active, step, point, lower)
        x[active] = moved
        # Rounding hides what is left to gain.
        near = stuck & (decrement[going] <= 1e3 * tol)
        _keep(problem, out, active[near], x, _some(point, near))
        active, point = active[~stuck], _some(point, ~stuck)
        if not len(active):
            break
    else:
        _, decrement = _steps(x[active], point.gradient, point.information, lower)
        near = decrement <= _NEAR
        _keep(problem, out, active[near], x, _some(point, near))
    _finish(problem, out, start, x, maxiter, tol)
    return out


def _some(point: Points, which: np.ndarray) -> Points:
    return Points(*(getattr(point, name)[which] for name in vars(point)))


def _keep(
    problem: Together, out: Refitted, at: np.ndarray, x: np.ndarray, point: Points
) -> None:
    """Keep what has converged, but for those that a saddle holds."""
    good = ~_in_corner(problem.structure, x[at], point.slopes)
    at = at[good]
    out.x[at], out.converged[at] = x[at], True
    for name in ("value", "variance", "beta", "cov_beta"):
        getattr(out, name)[at] = getattr(point, name)[good]


def _in_corner(structure: Structure, x: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Which points may be saddles where V is singular: see `search`."""
    out, start, at = np.zeros(len(x), bool), 0, []
    for f in structure.factors:
        at.append(slice(start, start + f.k**2))
        start += f.k**2
    for term in structure.terms:
        if not term.by_triangle:
            continue
        k = structure.factors[term.factor].k
        G = slopes[:, at[term.factor]].reshape(-1, k, k)[:, term.at, term.at]
        left, sizes, _ = np.linalg.svd(term_root(term, x))
        lost = sizes <= _EDGE * np.maximum(sizes.max(1), 1.0)[:, None]
        for number in np.flatnonzero(lost.any(1)):
            null = left[number][:, lost[number]]
            least = np.linalg.eigvalsh(null.T @ G[number] @ null)[0]
            size = max(np.abs(np.diag(G[number])).max(), 1.0)
            out[number] |= least < -_DOWNHILL * size
    return out


def _descend(
    problem: Together, x: np.ndarray, active: np.ndarray, step: np.ndarray,
    before: Points, lower: np.ndarray,
) -> tuple[np.ndarray, Points, np.ndarray]:  # fmt: skip
    """Halve steps until no criterion rises; which found no step is the last result."""
    noise = 1e-13 * np.abs(before.value)
    length = np.ones(len(x))
    moved = np.maximum(x - step, lower)
    point = problem(moved, active)
    for _ in range(_HALVINGS):
        bad = np.flatnonzero(~(point.value <= before.value + noise))
        if not len(bad):
            break
        length[bad] /= 2
        moved[bad] = np.maximum(x[bad] - length[bad, None] * step[bad], lower)
        again = problem(moved[bad], active[bad])
        for name, values in vars(again).items():
            getattr(point, name)[bad] = values
    stuck = ~(point.value <= before.value + noise)
    moved[stuck] = x[stuck]
    for name, values in vars(before).items():
        getattr(point, name)[stuck] = values[stuck]
    return moved, point, stuck


def _finish(
    problem: Together, out: Refitted, start: np.ndarray, x: np.ndarray, maxiter: int,
    tol: float,
) -> None:  # fmt: skip
    """Search on alone where a step failed, or where V may leave a corner."""
    for number in np.flatnonzero(~out.converged):
        products = problem.responses.products(problem.products, number)
        criterion = Criterion(products, problem.reml, problem.sigma)
        found = minimise(criterion, x[number], maxiter, tol)
        if not (found.converged or found.decrement <= _NEAR):
            found = minimise(criterion, start, maxiter, tol)
        if np.isfinite(found.point.value):
            near = found.converged or found.decrement <= _NEAR
            out.store(number, found.point, near)
    out.singular[:] = singular(problem.structure, np.nan_to_num(out.x))


def _steps(
    x: np.ndarray, g: np.ndarray, H: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps and their lengths in standard errors, as `search` takes them."""
    d = np.sqrt(np.maximum(np.abs(np.einsum("raa->ra", H)), 1e-300))
    scaled = np.nan_to_num(H / d[:, :, None] / d[:, None, :])
    values, vectors = np.linalg.eigh(scaled)
    values = np.abs(values)
    values = np.maximum(values, 1e-8 * values.max(1, keepdims=True).clip(1e-300))
    across = np.einsum("rab,ra->rb", vectors, g / d) / values
    step = np.einsum("rab,rb->ra", vectors, across) / d
    length = np.sqrt(np.maximum((step * g).sum(1), 0.0))
    # Where the step would leave the range, the bounds take part.
    for number in np.flatnonzero((x - step < lower).any(1) & np.isfinite(g).all(1)):
        at = SimpleNamespace(x=x[number], gradient=g[number])
        step[number], length[number] = bounded_step(at, H[number], lower)
    return step, length
