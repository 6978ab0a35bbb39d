"""The deviance as a function of every parameter, and its optimum with one held.

`Criterion` profiles residual variance and fixed effects out, which is quickest for a
fit. A profile likelihood holds one standard deviation, correlation or coefficient, and
for that all parameters stand side by side here: the entries of the covariances in
units of the response, the logarithm of the residual variance, and one fixed effect.
Whatever is held is one coordinate, so that one Newton's method serves them all.

With one fixed effect held at b the residual sum of squares is ``y'Py + d^2 / c``, d
the distance of b from its estimate at these variances and c its variance over
sigma^2: no row or cross-product changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, log, pi

import numpy as np
import torch

from .elimination import Factorisation, factorise
from .products import Products, Vector
from .structure import Factor, Structure, Term

__all__ = ["Block", "Coordinates", "Deviance", "Held", "State", "settle"]

_HALVINGS = 40
# A column of a triangle this short is a saddle of its entries; searches start off it.
_OFF_SADDLE = 1e-3


@dataclass(frozen=True, eq=False)
class Block:
    """The effects among which a standard deviation or correlation is held.

    The covariance over the fit's sigma^2 is ``M M'`` with M lower triangular and the
    effects in such an order that what is held is one coordinate: the corner of M for
    the first effect's standard deviation; for the first two's correlation the angle
    of M's second row ``t (sin a, cos a)``, smooth up to correlations of one.

    Attributes
    ----------
    term : Term
    order : tuple of int
        Effects of the term, those in question first.
    angle : bool
        Whether the correlation is held.
    """

    term: Term
    order: tuple[int, ...]
    angle: bool

    @property
    def k(self) -> int:
        """Number of effects."""
        return len(self.order)

    @cached_property
    def entries(self) -> list[tuple[int, int]]:
        """Rows and columns of the triangle, the first row first."""
        return [(r, c) for r in range(self.k) for c in range(r + 1)]

    @property
    def held(self) -> int:
        """Which entry is held: the corner, or the angle in place of the third."""
        return 2 if self.angle else 0

    @property
    def at(self) -> np.ndarray:
        """Columns of the factor, in this order."""
        return self.term.at.start + np.array(self.order)

    @property
    def U(self) -> np.ndarray:
        """From the data's units to the standardised ones, all effects of the term."""
        return np.linalg.inv(self.term.U)[:, list(self.order)]

    def triangle(self, part: np.ndarray) -> np.ndarray:
        """M."""
        M = np.zeros((self.k, self.k))
        for value, (r, c) in zip(part, self.entries, strict=True):
            M[r, c] = value
        if self.angle:
            t, a = part[1], part[2]
            M[1, 0], M[1, 1] = t * np.sin(a), t * np.cos(a)
        return M

    def coordinates(self, root: np.ndarray) -> np.ndarray:
        """Coordinates of a factor of the covariance, effects as in the term."""
        M = _lower(root[list(self.order)])
        part = np.array([M[r, c] for r, c in self.entries])
        if self.angle:
            t = np.hypot(M[1, 0], M[1, 1])
            # A correlation with an effect that does not vary can be anything: zero.
            known = M[0, 0] > 0 and t > 0
            part[1:3] = t, np.arctan2(M[1, 0], M[1, 1]) if known else 0.0
        return part

    def slopes(self, part: np.ndarray) -> list[np.ndarray]:
        """Return the derivatives of M."""
        out = []
        for r, c in self.entries:
            D = np.zeros((self.k, self.k))
            D[r, c] = 1.0
            out.append(D)
        if self.angle:
            t, a = part[1], part[2]
            out[1], out[2] = np.zeros_like(out[1]), np.zeros_like(out[2])
            out[1][1, :2] = np.sin(a), np.cos(a)
            out[2][1, :2] = t * np.cos(a), -t * np.sin(a)
        return out

    def bend(self, part: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
        """Second derivatives of M that are not zero."""
        if not self.angle:
            return {}
        t, a = part[1], part[2]
        mixed, double = np.zeros((self.k, self.k)), np.zeros((self.k, self.k))
        mixed[1, :2] = np.cos(a), -np.sin(a)
        double[1, :2] = -t * np.sin(a), -t * np.cos(a)
        return {(1, 2): mixed, (2, 1): mixed, (2, 2): double}


@dataclass(frozen=True, eq=False)
class Coordinates:
    """All covariance parameters, those of one block in a form that lets one be held.

    The others are the parameters of `Structure`, over the fit's sigma^2.

    Attributes
    ----------
    structure : Structure
    block : Block or None
    """

    structure: Structure
    block: Block | None

    @cached_property
    def others(self) -> np.ndarray:
        """Parameters of the structure that are not the block's."""
        keep = np.ones(self.structure.size, dtype=bool)
        if self.block is not None:
            params, term = self.block.term.params, self.block.term
            keep[params] = False
            if term.variances and term.k > 1:
                keep[params] = np.arange(term.k) != self.block.order[0]
        return np.flatnonzero(keep)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Grouping factors."""
        return self.structure.factors

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.others) + (0 if self.block is None else len(self.block.entries))

    @cached_property
    def lower(self) -> np.ndarray:
        """Lower bounds."""
        out = np.full(self.size, -inf)
        out[: len(self.others)] = self.structure.lower[self.others]
        if self.block is not None and self.block.angle:
            out[len(self.others) : len(self.others) + 2] = 0.0
        return out

    def of(self, x: np.ndarray) -> np.ndarray:
        """Coordinates of parameters of the structure."""
        if self.block is None:
            return x.copy()
        term = self.block.term
        root = term.U @ term.root(x)
        if term.variances:
            j = self.block.order[0]
            return np.append(x[self.others], root[j, j])
        return np.append(x[self.others], self.block.coordinates(root))

    def roots(self, w: np.ndarray) -> list[np.ndarray]:
        """Lower factors of each grouping factor's standardised covariance."""
        x = np.zeros(self.structure.size)
        x[self.others] = w[: len(self.others)]
        out = self.structure.roots(x)
        if self.block is not None:
            term = self.block.term
            half = self._embedding @ self.block.triangle(w[len(self.others) :])
            if term.variances:
                place = term.at.start + self.block.order[0]
                out[term.factor][place, place] = abs(half[place, 0])
            else:
                out[term.factor][term.at, term.at] = _lower(half[term.at])
        return out

    @cached_property
    def _embedding(self) -> np.ndarray:
        """From the block's effects to the columns of its factor, standardised."""
        term = self.block.term
        out = np.zeros((self.structure.factors[term.factor].k, self.block.k))
        if term.variances:
            j = self.block.order[0]
            out[term.at.start + j, 0] = 1 / term.U[j, j]
        else:
            out[term.at] = self.block.U
        return out

    def directions(self, w: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Factor and derivative of its standardised covariance, by coordinate."""
        x = np.zeros(self.structure.size)
        x[self.others] = w[: len(self.others)]
        every = self.structure.directions(x)
        out = [every[j] for j in self.others]
        if self.block is not None:
            part, E = w[len(self.others) :], self._embedding
            M = self.block.triangle(part)
            for D in self.block.slopes(part):
                half = E @ D @ M.T @ E.T
                out.append((self.block.term.factor, half + half.T))
        return out

    def gradient(self, w: np.ndarray, G: Sequence[np.ndarray]) -> np.ndarray:
        """Gradient in the coordinates from that in each factor's standardised V."""
        return np.array([(G[j] * D).sum() for j, D in self.directions(w)])

    def curvature(self, w: np.ndarray, G: Sequence[np.ndarray]) -> np.ndarray:
        """Sum of ``G d2V``: what the bend of the covariance adds to the Hessian."""
        n, size = len(self.others), self.size
        x = np.zeros(self.structure.size)
        x[self.others] = w[:n]
        out = np.zeros((size, size))
        every = self.structure.curvature(x, G)
        out[:n, :n] = every[np.ix_(self.others, self.others)]
        if self.block is not None:
            part, E = w[n:], self._embedding
            inner = E.T @ G[self.block.term.factor] @ E
            M, slopes = self.block.triangle(part), self.block.slopes(part)
            for i, A in enumerate(slopes):
                for j, B in enumerate(slopes):
                    out[n + i, n + j] = 2 * (inner * (A @ B.T)).sum()
            for (i, j), D in self.block.bend(part).items():
                out[n + i, n + j] += 2 * (inner * (D @ M.T)).sum()
        return out

    def off_saddles(self, w: np.ndarray) -> np.ndarray:
        """Lengthen the columns of triangles whose gradient vanishes by symmetry."""
        out, full = w.copy(), np.full(self.structure.size, np.nan)
        full[self.others] = np.arange(len(self.others))
        for term in self.structure.terms:
            if not term.by_triangle or np.isnan(full[term.params]).any():
                continue
            rows, columns = term.triangle
            place = full[term.params].astype(int)
            _lengthen(out, place, rows, columns)
        if self.block is not None and not self.block.term.variances:
            rows, columns = np.array(self.block.entries).T
            place = len(self.others) + np.arange(len(rows))
            free = np.ones(len(rows), dtype=bool)
            free[[0, 1, 2] if self.block.angle else [0]] = False
            _lengthen(out, place[free], rows[free], columns[free])
        return out


def _lengthen(
    w: np.ndarray, place: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> None:
    scale = max(np.abs(w[place]).max(initial=0.0), _OFF_SADDLE)
    for j in place[rows == columns]:
        if abs(w[j]) < _OFF_SADDLE * scale:
            w[j] = _OFF_SADDLE * scale


def _lower(half: np.ndarray) -> np.ndarray:
    """Lower-triangular L, its diagonal not negative, with ``L L' = half half'``."""
    R = np.linalg.qr(half.T, mode="r")
    return (R * np.where(np.diag(R) < 0, -1.0, 1.0)[:, None]).T


@dataclass(frozen=True, eq=False)
class Deviance:
    """Minus twice the log-likelihood in all coordinates.

    They are those of `Coordinates`, then the logarithm of the residual variance over
    that of the fit and, where `fixed` is given, that fixed effect.

    Attributes
    ----------
    products : Products
    coordinates : Coordinates
    sigma : float
        Residual standard deviation of the fit.
    fixed : int or None
        Which fixed effect is a coordinate; all others are profiled out.
    """

    products: Products
    coordinates: Coordinates
    sigma: float
    fixed: int | None = None

    @property
    def size(self) -> int:
        """Number of all coordinates."""
        return self.coordinates.size + 1 + (self.fixed is not None)

    def share(self, state: State, step: np.ndarray) -> float:
        """Share of a step that may be taken at once: here all of it."""
        return 1.0

    def __call__(self, w: np.ndarray) -> State:
        """Evaluate."""
        size = self.coordinates.size
        scale = exp(-0.5 * w[size])
        roots = [scale * root for root in self.coordinates.roots(w[:size])]
        return State(w, self, factorise(self.products, roots))


@dataclass(eq=False)
class State:
    """The deviance at one point.

    Attributes
    ----------
    w : ndarray
    deviance : Deviance
    factorisation : Factorisation or None
        None where rounding made it impossible.
    """

    w: np.ndarray
    deviance: Deviance
    factorisation: Factorisation | None

    @property
    def _products(self) -> Products:
        return self.deviance.products

    @property
    def variance(self) -> float:
        """Residual variance."""
        size = self.deviance.coordinates.size
        return self.deviance.sigma**2 * exp(self.w[size])

    @cached_property
    def _pull(self) -> tuple[float, float, list[np.ndarray]]:
        """Distance of the fixed effect, its variance, and ``Z'Sigma^-1 X`` of it."""
        f, products, j = self.factorisation, self._products, self.deviance.fixed
        row = products.R[j]
        unit = Vector(
            [torch.zeros_like(s.XY[:, :, :1]) for s in products.stages],
            torch.zeros_like(products.BXY[:, :1]), row[:, None],
        )  # fmt: skip
        solved = f.solve(unit)
        variance = float(row @ solved.X[:, 0])
        net = (self.w[-1] - float(products.center[j])) - float(row @ f.solution.X[:, 0])
        parts = products.by_factor(products.multiply(solved))
        return net, variance, [part[:, :, 0].cpu().numpy() for part in parts]

    @cached_property
    def rss(self) -> float:
        """Penalised residual sum of squares."""
        if self.deviance.fixed is None:
            return self.factorisation.rss
        net, variance, _ = self._pull
        return self.factorisation.rss + net**2 / variance

    @cached_property
    def value(self) -> float:
        """Minus twice the log-likelihood; infinite where it cannot be computed."""
        f, n = self.factorisation, self._products.n
        if f is None or not 0 < self.variance < inf:
            return inf
        s2 = self.variance
        logs = f.logdet - self._products.log_weights + n * log(2 * pi * s2)
        return logs + self.rss / s2

    @cached_property
    def modes(self) -> list[np.ndarray]:
        """``Z'`` times Sigma^-1 times the residuals, by factor; each (K, m)."""
        f = self.factorisation
        found = [p[:, :, 0].cpu().numpy() for p in self._products.by_factor(f.residual)]
        if self.deviance.fixed is None:
            return found
        net, variance, across = self._pull
        return [r - h * (net / variance) for r, h in zip(found, across, strict=True)]

    @cached_property
    def slopes(self) -> list[np.ndarray]:
        """Derivative in the relative V of each factor; each (K, K), symmetric."""
        traces, s2 = self.factorisation.traces(with_x=False), self.variance
        return [
            t.cpu().numpy() - (r @ r.T) / s2
            for t, r in zip(traces, self.modes, strict=True)
        ]

    @cached_property
    def directions(self) -> list[tuple[int, np.ndarray]]:
        """Derivatives of the relative V by covariance coordinate."""
        coordinates = self.deviance.coordinates
        shrink = exp(-self.w[coordinates.size])
        found = coordinates.directions(self.w[: coordinates.size])
        return [(j, shrink * D) for j, D in found]

    @cached_property
    def covariances(self) -> list[np.ndarray]:
        """Relative V of each factor."""
        return [(r @ r.T).cpu().numpy() for r in self.factorisation.roots]

    @cached_property
    def gradient(self) -> np.ndarray:
        """Derivative in all coordinates."""
        G, s2 = self.slopes, self.variance
        out = [float((G[j] * D).sum()) for j, D in self.directions]
        shift = sum(
            float((g * V).sum()) for g, V in zip(G, self.covariances, strict=True)
        )
        out.append(self._products.n - self.rss / s2 - shift)
        if self.deviance.fixed is not None:
            net, variance, _ = self._pull
            out.append(2 * net / (variance * s2))
        return np.array(out)

    @cached_property
    def hessian(self) -> np.ndarray:
        """Average information in all coordinates, and the bend of V.

        Covariances are directions of V; the residual variance is one in which V
        shrinks as the scale grows.
        """
        s2, size = self.variance, len(self.directions)
        parts, quadratic = self._scores()
        device = self.factorisation.L.device
        U = self._products.from_factors(
            [torch.from_numpy(part).to(device) for part in parts],
            torch.zeros(self._products.p, size + 1, dtype=torch.float64, device=device),
        )
        form = self.factorisation.project(U)[1].cpu().numpy()
        total = size + 1 + (self.deviance.fixed is not None)
        out = np.zeros((total, total))
        out[: size + 1, : size + 1] = form / s2
        out[: size + 1, size] += quadratic / s2
        out[size, : size + 1] += quadratic / s2
        out[size, size] += self.rss / s2
        self._add_bend(out, size)
        if self.deviance.fixed is not None:
            net, variance, across = self._pull
            along = sum(
                np.einsum("km,kmc->c", h, part)
                for h, part in zip(across, parts, strict=True)
            )
            out[: size + 1, : size + 1] += np.outer(along, along) / (variance * s2)
            along[size] -= net
            out[-1, :-1] = out[:-1, -1] = 2 * along / (variance * s2)
            out[-1, -1] = 2 / (variance * s2)
        return out

    def _scores(self) -> tuple[list[np.ndarray], np.ndarray]:
        """``dV r`` by factor and coordinate, and the forms ``r' dV r``."""
        factors, size = self._products.structure.factors, len(self.directions)
        parts = [np.zeros((f.k, f.m, size + 1)) for f in factors]
        quadratic = np.zeros(size + 1)
        for number, (j, D) in enumerate(self.directions):
            parts[j][:, :, number] = D @ self.modes[j]
        for part, V, r in zip(parts, self.covariances, self.modes, strict=True):
            part[:, :, size] = -V @ r
            quadratic += np.einsum("km,kmc->c", r, part)
        return parts, quadratic

    def _add_bend(self, out: np.ndarray, size: int) -> None:
        coordinates, G = self.deviance.coordinates, self.slopes
        shrink = exp(-self.w[size])
        bend = coordinates.curvature(self.w[:size], G)
        out[:size, :size] += shrink * bend
        for number, (j, D) in enumerate(self.directions):
            mixed = float((G[j] * D).sum())
            out[number, size] -= mixed
            out[size, number] -= mixed
        out[size, size] += sum(
            float((g * V).sum()) for g, V in zip(G, self.covariances, strict=True)
        )


@dataclass(eq=False)
class Held:
    """The deviance with one coordinate held, and perhaps the residual variance known.

    Along a profile the difference between the Hessian and the average information
    changes little, and the gradients of one point after another tell it: a symmetric
    rank-one update at every step (Nocedal & Wright 2006, section 6.2) of what is added.

    Attributes
    ----------
    deviance : Deviance
    index : int
        The coordinate that is held.
    known : bool
        Whether the residual variance is not estimated.
    pinned : tuple of int
        More coordinates that stay as they are.
    """

    deviance: Deviance
    index: int
    known: bool
    pinned: tuple[int, ...] = ()

    @cached_property
    def free(self) -> np.ndarray:
        """Coordinates that move."""
        size = self.deviance.coordinates.size
        keep = np.ones(self.deviance.size, dtype=bool)
        keep[[self.index, *self.pinned]] = False
        if self.known:
            keep[size] = False
        return np.flatnonzero(keep)

    @cached_property
    def missing(self) -> np.ndarray:
        """What the average information misses of the Hessian, as far as learnt."""
        return np.zeros((self.deviance.size, self.deviance.size))

    def learn(self, old: State, new: State) -> None:
        """Take what two gradients tell of the Hessian."""
        at = self.free
        inside = np.ix_(at, at)
        H, step = new.hessian[inside], (new.w - old.w)[at]
        gap = (new.gradient - old.gradient)[at] - (H + self.missing[inside]) @ step
        scale = np.sqrt(np.abs(np.diag(H)))
        scale = np.maximum(scale, 1e-8 * scale.max(initial=1e-300))
        size = np.linalg.norm(scale * step) * np.linalg.norm(gap / scale)
        inner = float(gap @ step)
        if abs(inner) > 1e-6 * size:
            self.missing[inside] += np.outer(gap, gap) / inner

    @cached_property
    def lower(self) -> np.ndarray:
        """Lower bounds of the coordinates that move."""
        out = np.full(self.free.max(initial=-1) + 1, -inf)
        bounds = self.deviance.coordinates.lower
        at = self.free[self.free < len(bounds)]
        out[at] = bounds[at]
        return out[self.free]


def settle(
    held: Held, start: np.ndarray, tol: float, maxiter: int = 60
) -> tuple[State, bool]:
    """Newton's method over all coordinates but the one held.

    Parameters
    ----------
    held : Held
    start : ndarray
        All coordinates; that held stays as it is.
    tol : float
        On the length of a step in standard errors. The value is then within about the
        square of it.
    maxiter : int

    Returns
    -------
    State
        The start where the deviance cannot be computed there.
    converged : bool
    """
    free, lower = held.free, held.lower
    w = held.deviance.coordinates.off_saddles(start[: held.deviance.coordinates.size])
    w = np.append(w, start[len(w) :])
    w[free] = np.maximum(w[free], lower)
    state = held.deviance(w)
    if state.value == inf:
        return state, False
    for _ in range(maxiter):
        H = state.hessian[np.ix_(free, free)]
        step, decrement = _step(state, H, free, lower)
        if decrement <= tol:
            return state, True
        learnt, _ = _step(state, H + held.missing[np.ix_(free, free)], free, lower)
        moved = _try(held.deviance, state, free, lower, learnt, 1)
        if moved is None:
            held.missing[:] = 0.0
            moved = _try(held.deviance, state, free, lower, step, _HALVINGS)
        if moved is None:
            return state, decrement <= 1e3 * tol
        held.learn(state, moved)
        state = moved
    return state, False


def _step(
    state: State, H: np.ndarray, free: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, float]:
    """Projected Newton step over the free coordinates, and its length."""
    x, g = state.w[free], state.gradient[free]
    moving = (x > lower) | (g < 0)
    step = np.zeros_like(x)
    while moving.any():
        at = np.flatnonzero(moving)
        step[:] = 0.0
        step[at] = _solve(H[np.ix_(at, at)], g[at])
        stuck = moving & (x <= lower) & (step > 0)
        if not stuck.any():
            taken = x - np.maximum(x - step, lower)
            return step, float(np.sqrt(max(taken @ g, 0.0)))
        moving &= ~stuck
    return np.zeros_like(x), 0.0


def _solve(H: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``|H|^-1 g``, with directions of no curvature damped."""
    d = np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    values, vectors = np.linalg.eigh(H / d[:, None] / d)
    values = np.maximum(np.abs(values), 1e-8 * max(np.abs(values).max(), 1e-300))
    return (vectors @ ((vectors.T @ (g / d)) / values)) / d


def _try(
    deviance: Deviance, state: State, free: np.ndarray, lower: np.ndarray,
    step: np.ndarray, halvings: int,
) -> State | None:  # fmt: skip
    """Halve a step until the value does not rise (to rounding)."""
    whole = np.zeros_like(state.w)
    whole[free] = step
    slack, length = 1e-13 * abs(state.value), deviance.share(state, whole)
    for _ in range(halvings):
        w = state.w.copy()
        w[free] = np.maximum(w[free] - length * step, lower)
        new = deviance(w)
        if new.value <= state.value + slack:
            return new
        length /= 2
    return None
