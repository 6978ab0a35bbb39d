"""Whole-number points of a logistic model: local search, then branch and bound.

A model is ``sigmoid(a + m * (X z))`` with whole numbers z, an intercept a, and a
multiplier m that is free (and not negative) or given. For given points the rest is a
smooth convex problem of one or two numbers; with only some of them given, real numbers
in place of the others make a convex problem too, whose optimum is a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .lattice import Found, subsets

__all__ = ["Patterns", "Score", "ScoreSearch"]

Array = np.ndarray

# Numbers of a block of designs: what stays in the cache.
_BLOCK = 500_000
# Log-losses nearer than this are the same.
_SAME = 1e-10


@dataclass(frozen=True, eq=False)
class Patterns:
    """Distinct rows of a sample with their totals.

    Attributes
    ----------
    X : ndarray, shape (P, p)
    total, events : ndarray, shape (P,)
        Sums of weights, and of weights of rows with outcome one, over their total.
    """

    X: Array
    total: Array
    events: Array

    @classmethod
    def of(cls, X: Array, y: Array, weights: Array | None = None) -> Patterns:
        """Collect the distinct rows of a sample."""
        w = np.ones(len(y)) if weights is None else weights
        return cls(X, w / w.sum(), w * y / w.sum()).only(slice(None))

    def only(self, columns: Array | slice) -> Patterns:
        """Return the distinct rows of some columns."""
        rows, code = np.unique(self.X[:, columns], axis=0, return_inverse=True)
        code = code.ravel()
        return Patterns(
            rows, np.bincount(code, self.total), np.bincount(code, self.events)
        )

    def losses(self, eta: Array) -> Array:
        """Mean log-loss of linear predictors (B, P); shape (B,)."""
        softplus = np.maximum(eta, 0.0) + np.log1p(np.exp(-np.abs(eta)))
        return softplus @ self.total - eta @ self.events

    @property
    def null(self) -> float:
        """Logit of the share of events: the best constant."""
        share = self.events.sum() / self.total.sum()
        return float(np.log(share) - np.log1p(-share))


@dataclass(frozen=True, eq=False)
class Score:
    """Some vectors of points with the best of the rest.

    Attributes
    ----------
    value, intercept, multiplier : ndarray, shape (B,)
        Mean log-loss; multiplier zero where the points are of no use.
    """

    value: Array
    intercept: Array
    multiplier: Array


def newton(
    A: Array, patterns: Patterns, offset: Array | float = 0.0, iterations: int = 40
) -> tuple[Array, Array, Array]:
    """Fit many logistic models at once.

    Parameters
    ----------
    A : ndarray, shape (B, P, d)
    patterns : Patterns
    offset : ndarray, shape (B, P), or float
    iterations : int, default 40

    Returns
    -------
    coef : ndarray, shape (B, d)
    value : ndarray, shape (B,)
        Mean log-loss at `coef`.
    bound : ndarray, shape (B,)
        Nothing is below it: zero where Newton's method did not converge, as under
        separation.
    """
    B, _, d = A.shape
    coef, eta = np.zeros((B, d)), np.zeros(A.shape[:2]) + offset
    value, bound = patterns.losses(eta), np.zeros(B)
    open_ = np.arange(B)
    for _ in range(iterations):
        part = A if len(open_) == B else A[open_]
        p = 1.0 / (1.0 + np.exp(-np.clip(eta[open_], -700, 700)))
        g = np.matmul((patterns.events - patterns.total * p)[:, None], part)[:, 0]
        W = patterns.total * p * (1.0 - p)
        H = np.matmul((part * W[:, :, None]).transpose(0, 2, 1), part)
        at = np.arange(d)
        H[:, at, at] = H[:, at, at] * (1.0 + 1e-11) + 1e-13
        step = np.linalg.solve(H, g[..., None])[..., 0]
        decrement = np.einsum("bd,bd->b", g, step)
        move = np.matmul(part, step[..., None])[..., 0]
        size = np.ones(len(open_))
        for _ in range(12):
            tried = patterns.losses(eta[open_] + size[:, None] * move)
            worse = tried > value[open_] + 1e-14
            if not worse.any():
                break
            size[worse] /= 2
        else:
            size[worse], tried[worse] = 0.0, value[open_][worse]
        coef[open_] += size[:, None] * step
        eta[open_] += size[:, None] * move
        value[open_] = tried
        done = decrement < 1e-13
        bound[open_[done]] = np.maximum(tried[done] - 1e-12, 0.0)
        open_ = open_[~done]
        if not len(open_):
            break
    return coef, value, bound


class ScoreSearch:
    """The best points of a logistic model.

    Parameters
    ----------
    patterns : Patterns
    low, high : ndarray of int, shape (p,)
    step : float or None
        The multiplier; None where it is free.
    whole : bool
        Whether the intercept too is a whole number of multipliers.
    terms : int
        Most points that are not zero.
    """

    def __init__(
        self,
        patterns: Patterns,
        low: Array,
        high: Array,
        *,
        step: float | None,
        whole: bool,
        terms: int,
    ) -> None:
        self.patterns, self.low, self.high = patterns, low, high
        self.step, self.whole, self.terms = step, whole, terms
        self.p = patterns.X.shape[1]

    # -- models whose points are all given ---------------------------------------------

    def evaluate(self, Z: Array, patterns: Patterns | None = None) -> Score:
        """Intercept, multiplier and loss of vectors of points (B, p)."""
        patterns = self.patterns if patterns is None else patterns
        size = max(1, _BLOCK // len(patterns.total))
        parts = [
            self._evaluate(Z[at : at + size] @ patterns.X.T, patterns)
            for at in range(0, len(Z), size)
        ]
        return Score(
            np.concatenate([s.value for s in parts]),
            np.concatenate([s.intercept for s in parts]),
            np.concatenate([s.multiplier for s in parts]),
        )

    def _evaluate(self, s: Array, patterns: Patterns) -> Score:
        if self.step is not None:
            ones = np.ones((*s.shape, 1))
            coef, value, _ = newton(ones, patterns, self.step * s)
            a = coef[:, 0]
            if self.whole:
                value, a = self._whole_at_step(self.step * s, a, self.step, patterns)
            return Score(value, a, np.full(len(s), self.step))
        coef, value, _ = newton(np.stack([np.ones_like(s), s], axis=2), patterns)
        a, m = coef[:, 0].copy(), coef[:, 1].copy()
        if self.whole:
            a, m, value = self._whole_at_any(s, a, m, patterns)
        useless = m <= 0
        null = np.array([[patterns.null]]) + np.zeros((1, len(patterns.total)))
        value = np.where(useless, patterns.losses(null)[0], value)
        return Score(
            value, np.where(useless, patterns.null, a), np.where(useless, 0.0, m)
        )

    def _whole_at_step(
        self, offset: Array, a: Array, step: float, patterns: Patterns
    ) -> tuple[Array, Array]:
        """Round the intercept: the loss is convex, the best is next to the real one."""
        near = [step * np.floor(a / step), step * np.ceil(a / step)]
        values = [patterns.losses(offset + v[:, None]) for v in near]
        first = values[0] <= values[1]
        return np.where(first, *values), np.where(first, *near)

    def _whole_at_any(
        self, s: Array, a: Array, m: Array, patterns: Patterns
    ) -> tuple[Array, Array, Array]:
        """Round a / m: the least loss is quasi-convex in it."""
        ratio = np.where(m > 0, a / np.where(m > 0, m, 1.0), 0.0)
        best = None
        for z in (np.floor(ratio), np.ceil(ratio)):
            coef, value, _ = newton((z[:, None] + s)[:, :, None], patterns)
            k = coef[:, 0]
            value = np.where(k > 0, value, np.inf)
            if best is None:
                best = (z * k, k, value)
            else:
                less = value < best[2]
                now = (z * k, k, value)
                best = tuple(
                    np.where(less, x, y) for x, y in zip(now, best, strict=True)
                )
        assert best is not None
        return np.where(m > 0, best[0], a), np.where(m > 0, best[1], m), best[2]

    # -- local search ------------------------------------------------------------------

    def _near(self, z: Array) -> Array:
        """One point changed, or one moved to another column."""
        found, used = [], np.flatnonzero(z)
        for j in range(self.p):
            values = self._values(j, int(z[j]))
            if z[j] == 0 and len(used) >= self.terms:
                for other in used:
                    base = z.copy()
                    base[other] = 0
                    found.append(_with(base, j, values[values != 0]))
            else:
                found.append(_with(z, j, values))
        return np.concatenate(found)

    def _values(self, j: int, now: int) -> Array:
        """Other values of a point: all, or steps where there are many."""
        if self.high[j] - self.low[j] <= 40:
            values = np.arange(self.low[j], self.high[j] + 1)
        else:
            steps = np.array([-20, -10, -5, -3, -2, -1, 1, 2, 3, 5, 10, 20])
            values = np.unique(np.r_[0, now + steps])
            values = values[(values >= self.low[j]) & (values <= self.high[j])]
        return values[values != now]

    def improve(self, z: Array, value: float) -> tuple[Array, float]:
        """Go to the best neighbour until none is better."""
        while True:
            near = self._near(z)
            if not len(near):
                return z, value
            values = self.evaluate(near).value
            best = int(np.argmin(values))
            if not values[best] < value - _SAME:
                return z, value
            z, value = near[best], float(values[best])

    def restarted(
        self, z: Array, value: float, restarts: int, seed: int
    ) -> tuple[Array, float]:
        """Change two points at random and improve, again and again."""
        rng = np.random.default_rng(seed)
        for _ in range(restarts):
            other = z.copy()
            used = np.flatnonzero(z)
            if len(used) >= self.terms:
                other[rng.choice(used, min(2, len(used)), replace=False)] = 0
            free = max(1, self.terms - int((other != 0).sum()))
            for j in rng.choice(self.p, min(2, free, self.p), replace=False):
                other[j] = rng.integers(self.low[j], self.high[j] + 1)
            found, loss = self.improve(
                other, float(self.evaluate(other[None]).value[0])
            )
            if loss < value - _SAME:
                z, value = found, loss
        return z, value

    def rounded(self, w: Array) -> Array:
        """Whole numbers along a ray of coefficients (p,), or next to its one point."""
        if self.step is not None:
            return np.clip(np.round(w / self.step), self.low, self.high)[None]
        reach = np.where(w > 0, self.high, -self.low) / np.maximum(np.abs(w), 1e-300)
        reach = reach[(w != 0) & (reach > 0)]
        if not len(reach):
            return np.zeros((1, self.p))
        scales = np.linspace(0.02, 1.1, 55)[:, None] * reach.min()
        return np.unique(np.clip(np.round(scales * w), self.low, self.high), axis=0)

    # -- bounds ------------------------------------------------------------------------

    def floors(self, sets: Array) -> tuple[Array, Array]:
        """Real coefficients of subsets of columns, and bounds of the loss there.

        Parameters
        ----------
        sets : ndarray of int, shape (sets, k)

        Returns
        -------
        W : ndarray, shape (sets, k)
        bound : ndarray, shape (sets,)
        """
        X, n = self.patterns.X, len(self.patterns.total)
        size = max(1, _BLOCK // (n * (sets.shape[1] + 1)))
        W, bounds = [], []
        for at in range(0, len(sets), size):
            part = sets[at : at + size]
            A = np.ones((len(part), n, sets.shape[1] + 1))
            A[:, :, 1:] = X[:, part].transpose(1, 0, 2)
            coef, _, bound = newton(A, self.patterns)
            W.append(coef[:, 1:])
            bounds.append(bound)
        return np.concatenate(W), np.concatenate(bounds)

    def _relaxed(self, fixed: Array, patterns: Patterns) -> Array:
        """Bounds with the first points given and real numbers for the others."""
        j, n = fixed.shape[1], len(patterns.total)
        size = max(1, _BLOCK // (n * (patterns.X.shape[1] - j + 2)))
        found = []
        for at in range(0, len(fixed), size):
            s = fixed[at : at + size] @ patterns.X[:, :j].T
            rest = np.ones((len(s), n, patterns.X.shape[1] - j + 1))
            rest[:, :, 1:] = patterns.X[:, j:]
            if self.step is not None:
                found.append(newton(rest, patterns, self.step * s)[2])
                continue
            coef, _, bound = newton(np.concatenate([rest, s[..., None]], 2), patterns)
            wrong = coef[:, -1] < 0  # then the best multiplier of these is zero
            if wrong.any():
                bound[wrong] = newton(rest[:1], patterns)[2]
            found.append(bound)
        return np.concatenate(found)

    def branch(
        self, at: Array, w: Array, z: Array, value: float, limit: int
    ) -> tuple[Array, float, float, int]:
        """Search the points of some columns, the others zero.

        Parameters
        ----------
        at : ndarray of int, shape (k,)
        w : ndarray, shape (k,)
            Their real coefficients.
        z, value : ndarray of int (p,), float
            The best so far.
        limit : int
            Most nodes.

        Returns
        -------
        z, value : as above
        bound : float
            Of what was left out for the limit; infinite if nothing was.
        nodes : int
        """
        spread = np.abs(w) * self.patterns.X[:, at].std(axis=0)
        at = at[np.argsort(-spread, kind="stable")]
        patterns, k, nodes = self.patterns.only(at), len(at), 0
        levels: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(k)]
        levels[0].append((0.0, ()))
        while deep := [d for d in range(k) if levels[d]]:
            depth = deep[-1]
            levels[depth].sort(reverse=True)
            batch = [levels[depth].pop() for _ in range(min(32, len(levels[depth])))]
            batch = [node for node in batch if node[0] < value - _SAME]
            if not batch:
                levels[depth] = []
                continue
            if nodes >= limit:
                left = [*batch, *(node for level in levels for node in level)]
                return z, value, min(node[0] for node in left), nodes
            values = np.arange(self.low[at[depth]], self.high[at[depth]] + 1)
            fixed = np.array([(*head, v) for _, head in batch for v in values])
            nodes += len(fixed)
            if depth == k - 1:
                values_ = self.evaluate(fixed, patterns).value
                best = int(np.argmin(values_))
                if values_[best] < value - _SAME:
                    z, value = np.zeros(self.p, dtype=np.int64), float(values_[best])
                    z[at] = fixed[best]
                continue
            bounds = self._relaxed(fixed, patterns)
            keep = np.flatnonzero(bounds < value - _SAME)
            levels[depth + 1] += [
                (float(bounds[i]), tuple(int(v) for v in fixed[i])) for i in keep
            ]
        return z, value, math.inf, nodes

    # -- all of it ---------------------------------------------------------------------

    def run(self, restarts: int, seed: int, limit: int, most: int = 20_000) -> Found:
        """Search locally, then exhaustively as far as the limits go.

        Parameters
        ----------
        restarts : int
        seed : int
        limit : int
            Most nodes of branch and bound.
        most : int, default 20000
            Most subsets of the columns that are gone through.

        Returns
        -------
        Found
        """
        everything = np.arange(self.p)
        listed = math.comb(self.p, self.terms) <= most
        sets = subsets(everything, self.terms) if listed else everything[None]
        W, floors = self.floors(sets)
        order = np.argsort(floors, kind="stable")
        z = np.clip(np.zeros(self.p, dtype=np.int64), self.low, self.high)
        value = float(self.evaluate(z[None]).value[0])
        if listed:
            z, value = self._best_of(
                np.concatenate([
                    self.rounded(_spread(W[i], sets[i], self.p)) for i in order[:10]
                ]), z, value,
            )  # fmt: skip
        z, value = self.improve(z, value)
        nodes, bound = 0, math.inf
        if not listed:
            order, bound = order[:0], float(floors[0])
        for i in order:
            if floors[i] >= value - _SAME:
                break
            if nodes >= limit:
                bound = min(bound, float(floors[i]))
                break
            z, value, left, more = self.branch(sets[i], W[i], z, value, limit - nodes)
            nodes, bound = nodes + more, min(bound, max(left, float(floors[i])))
        if bound < value - _SAME:
            z, value = self.restarted(z, value, restarts, seed)
        return Found(z, value, min(bound, value), nodes)

    def _best_of(self, Z: Array, z: Array, value: float) -> tuple[Array, float]:
        values = self.evaluate(Z).value
        best = int(np.argmin(values))
        if values[best] < value:
            return Z[best].astype(np.int64), float(values[best])
        return z, value


def _with(z: Array, j: int, values: Array) -> Array:
    found = np.repeat(z[None], len(values), axis=0)
    found[:, j] = values
    return found


def _spread(w: Array, at: Array, p: int) -> Array:
    found = np.zeros(p)
    found[at] = w
    return found
