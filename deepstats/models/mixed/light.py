"""The deviance again, for models whose equations are small: NumPy, few calls.

A search visits a few parameter values; where all random effects together are a hundred
or so, or where there is one grouping factor, each visit is microseconds of arithmetic
that the general elimination would bury under its bookkeeping. These criteria give the
same values, gradients and average information; the optimum itself is then evaluated by
`Criterion`, which everything after the fit uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf, log, nan, pi
from typing import ClassVar

import numpy as np
from scipy.linalg import lapack

from .coupling import Dense, Pairs
from .criterion import Criterion, Point
from .elimination import Factorisation
from .products import Products
from .small import MOST_EFFECTS, small_of, squared_traces
from .structure import Structure

__all__ = ["DenseCriterion", "LazyPoint", "OneFactorCriterion", "light"]

# Below this standardised standard deviation dividing by it would lose digits.
_SMALL = 0.03


def light(criterion: Criterion) -> Criterion | LightCriterion:
    """Return the quickest criterion for a model on a CPU; the one given if none is."""
    products = criterion.products
    if not products.G.is_cpu:
        return criterion
    factors = products.structure.factors
    if sum(f.q for f in factors) + products.p <= MOST_EFFECTS:
        return DenseCriterion(criterion)
    if len(factors) == 1 and factors[0].k <= 4:
        return OneFactorCriterion(criterion)
    return criterion


class LightCriterion(ABC):
    """Minus twice the log-likelihood of a small model.

    Attributes
    ----------
    exact_pays : bool
        Whether the exact Hessian saves more steps than it costs.
    """

    exact_pays: ClassVar[bool] = True

    def __init__(self, criterion: Criterion) -> None:
        self.products, self.reml = criterion.products, criterion.reml
        self.sigma, self.df = criterion.sigma, criterion.df
        self.structure: Structure = self.products.structure
        self.evaluations = 0
        constant = -self.products.log_weights
        if self.reml:
            constant -= 2 * float(self.products.R.diagonal().log().sum())
        self._constant = constant

    def __call__(self, x: np.ndarray) -> LightPoint:
        """Evaluate."""
        self.evaluations += 1
        roots = self.structure.roots(x)
        found = self._factorise(roots)
        if found is None:
            return LightPoint(x, inf, nan, roots, None, self)
        logdet, logdet_x, rss, state = found
        s2 = rss / self.df if self.sigma is None else self.sigma**2
        if not s2 > 0:
            return LightPoint(x, nan, s2, roots, state, self)
        value = logdet + self._constant + self.df * log(2 * pi * s2) + rss / s2
        if self.reml:
            value += logdet_x
        return LightPoint(x, value, s2, roots, state, self)

    @abstractmethod
    def _factorise(self, roots: list[np.ndarray]) -> tuple | None:
        """Log-determinants of random and fixed effects, y'Py, and what follows."""

    @abstractmethod
    def _corner(self, point: LightPoint) -> np.ndarray:
        """Cholesky factor of fixed effects and response, net of the random ones."""

    @abstractmethod
    def _modes(self, point: LightPoint) -> list[np.ndarray]:
        """``Z'Py`` by factor; each (K, m)."""

    @abstractmethod
    def _traces(self, point: LightPoint) -> list[np.ndarray]:
        """``sum_i Z_i'PZ_i`` by factor; each (K, K)."""

    @abstractmethod
    def _squares(
        self, point: LightPoint, directions: list[tuple[int, np.ndarray]]
    ) -> np.ndarray:
        """``tr(P G_a P G_b)``."""

    @abstractmethod
    def _project(self, point: LightPoint, U: list[np.ndarray]) -> np.ndarray:
        """``U'Z'PZU`` of parts by factor; each (K, m, c)."""


@dataclass(eq=False)
class LightPoint:
    """A value of the parameters; as `criterion.Point`."""

    x: np.ndarray
    value: float
    variance: float
    roots: list[np.ndarray]
    state: tuple | None
    criterion: LightCriterion
    unscaled: np.ndarray | None = None

    @property
    def structure(self) -> Structure:
        """The random effects."""
        return self.criterion.structure

    @property
    def rss(self) -> float:
        """Penalised residual sum of squares."""
        return float(self.criterion._corner(self)[-1, -1] ** 2)

    @property
    def beta(self) -> np.ndarray:
        """Fixed effects of the columns of the design."""
        products = self.criterion.products
        corner = self.criterion._corner(self)
        p = len(corner) - 1
        own = _solved(corner[:p, :p], corner[p, :p], trans=1)
        return products.center.numpy() + products.R.numpy() @ own

    @property
    def cov_beta(self) -> np.ndarray:
        """``(X'Sigma^-1 X)^-1`` of the columns of the design."""
        corner, R = self.criterion._corner(self), self.criterion.products.R.numpy()
        p = len(R)
        half = _solved(corner[:p, :p], R.T)
        return half.T @ half

    @cached_property
    def modes(self) -> list[np.ndarray]:
        """``Z'Py`` by factor, standardised; each (K, m)."""
        return self.criterion._modes(self)

    @cached_property
    def slopes(self) -> list[np.ndarray]:
        """Derivative in the standardised V of each factor."""
        return [
            t - (r @ r.T) / self.variance
            for t, r in zip(self.criterion._traces(self), self.modes, strict=True)
        ]

    @cached_property
    def gradient(self) -> np.ndarray:
        """Derivative in the parameters."""
        return self.structure.gradient(self.x, self.slopes)

    @cached_property
    def information(self) -> np.ndarray:
        """Average information plus the bend of V."""
        return self._forms + self._bend

    @cached_property
    def hessian(self) -> np.ndarray:
        """Exact second derivative in the parameters."""
        bend = self._bend  # Made from the slopes, whose traces the next line needs.
        traces = self.criterion._squares(self, self._directions)
        return 2 * self._forms - traces + bend + self._profiled

    @property
    def unprofiled(self) -> np.ndarray:
        """Second derivative in the parameters with the residual variance held."""
        return self.hessian + self._profiled

    @cached_property
    def _directions(self) -> list[tuple[int, np.ndarray]]:
        return self.structure.directions(self.x)

    @cached_property
    def _bend(self) -> np.ndarray:
        return self.structure.curvature(self.x, self.slopes)

    @cached_property
    def _profiled(self) -> np.ndarray:
        """What profiling the residual variance took from the forms."""
        if self.criterion.sigma is not None:
            return np.zeros((len(self._directions),) * 2)
        q = np.array(
            [np.vdot(self.modes[j], D @ self.modes[j]) for j, D in self._directions]
        )
        return np.outer(q, q) / (self.variance**2 * self.criterion.df)

    @cached_property
    def _forms(self) -> np.ndarray:
        """``y'P G_a P G_b P y / sigma^2``, sigma profiled."""
        directions = self._directions
        count, s2, modes = len(directions), self.variance, self.modes
        U = [np.zeros((*r.shape, count)) for r in modes]
        for number, (j, D) in enumerate(directions):
            U[j][:, :, number] = D @ modes[j]
        return self.criterion._project(self, U) / s2 - self._profiled


class DenseCriterion(LightCriterion):
    """All effects in one dense matrix."""

    exact_pays: ClassVar[bool] = False

    def __init__(self, criterion: Criterion) -> None:
        super().__init__(criterion)
        factors, p = self.structure.factors, self.products.p
        edges = np.cumsum([0, *(f.q for f in factors)]).tolist()
        self.at = [slice(a, b) for a, b in pairwise(edges)]
        self.q, self.d = edges[-1], edges[-1] + p
        small = small_of(self.products)
        self.A = _assemble(self.products, edges) if small is None else small.A
        self.own = [
            np.einsum("iaib->ab", self._by_level(self.A[at, at], j))
            for j, at in enumerate(self.at)
        ]

    def _by_level(self, block: np.ndarray, j: int) -> np.ndarray:
        f = self.structure.factors[j]
        return block.reshape(f.m, f.k, f.m, f.k)

    def _rows(self, roots: list[np.ndarray], V: np.ndarray) -> np.ndarray:
        """Multiply the rows of every level by a matrix of each factor."""
        out = V.copy()
        for root, at in zip(roots, self.at, strict=True):
            k = len(root)
            if k == 1:
                out[at] *= root[0, 0]
            else:
                part = V[at].reshape(len(out[at]) // k, k, -1)
                out[at] = (root @ part).reshape(out[at].shape)
        return out

    def _both(self, roots: list[np.ndarray], A: np.ndarray) -> np.ndarray:
        return self._rows(roots, self._rows(roots, A).T)

    def _factorise(self, roots: list[np.ndarray]) -> tuple | None:
        S = self._both([r.T for r in roots], self.A)
        S.flat[: self.q * (len(S) + 1) : len(S) + 1] += 1.0
        L, info = lapack.dpotrf(S, lower=1, clean=1)
        if info:
            return None
        logs = np.log(L.diagonal()[: self.d])
        rss = float(L[-1, -1] ** 2)
        return 2 * logs[: self.q].sum(), 2 * logs[self.q :].sum(), rss, (L,)

    def _corner(self, point: LightPoint) -> np.ndarray:
        return point.state[0][self.q :, self.q :]

    def weights(self, point: LightPoint) -> tuple[list[np.ndarray], np.ndarray]:
        """``Z'Sigma^-1 X C`` by factor, (K, m, p), and ``C = (X'Sigma^-1 X)^-1``.

        Of the orthonormal columns; see `information.Curvature.weights`.
        """
        q, d = self.q, self.d
        L = np.asfortranarray(point.state[0][:d, :d])
        unit = np.zeros((d, d - q))
        unit[q:] = np.eye(d - q)
        back = _solved(L, _solved(L, unit), trans=1)
        solution = self._rows(point.roots, back)
        found = self.A[:q, :d] @ solution
        parts = [
            found[at].reshape(f.m, f.k, -1).transpose(1, 0, 2)
            for at, f in zip(self.at, self.structure.factors, strict=True)
        ]
        return parts, solution[q:]

    def whole(self, point: LightPoint) -> np.ndarray:
        """``Z'PZ``, factor by factor, in them by effect and level."""
        d, q = self.d, self.q
        known = len(point.unscaled) == d if point.unscaled is not None else False
        inner = point.unscaled if known else _inverse_from(point.state[0], d)
        A = self.A[:q, :d]
        H = self.A[:q, :q] - A @ self._both(point.roots, inner) @ A.T
        order = np.concatenate([
            (at.start + f.k * np.arange(f.m)[None] + np.arange(f.k)[:, None]).ravel()
            for at, f in zip(self.at, self.structure.factors, strict=True)
        ])  # fmt: skip
        return H[order[:, None], order]

    def _modes(self, point: LightPoint) -> list[np.ndarray]:
        (L,), d = point.state, self.d
        inner = np.asfortranarray(L[:d, :d])
        coefficients, _ = lapack.dtrtrs(inner, L[d, :d], lower=1, trans=1)
        coefficients = self._rows(point.roots, coefficients.reshape(-1, 1))[:, 0]
        r = self.A[: self.q, d] - self.A[: self.q, :d] @ coefficients
        return [
            r[at].reshape(-1, f.k).T
            for at, f in zip(self.at, self.structure.factors, strict=True)
        ]

    def _traces(self, point: LightPoint) -> list[np.ndarray]:
        size = self.d if self.reml else self.q
        inner = _inverse_from(point.state[0], size)
        point.unscaled = inner
        backs = [_regular_inverse(root) for root in point.roots]
        if any(back is None for back in backs):
            return self._singular_traces(point)
        return [self._regular_trace(inner, back, j) for j, back in enumerate(backs)]

    def _regular_trace(self, inner: np.ndarray, back: np.ndarray, j: int) -> np.ndarray:
        """``L^-T (m I - sum of the inverse's blocks) L^-1``."""
        f, at = self.structure.factors[j], self.at[j]
        if f.k == 1:
            taken = inner.diagonal()[at].sum()
            return (f.m - taken) * back**2
        taken = np.einsum("iaib->ab", self._by_level(inner[at, at], j))
        return back.T @ (f.m * np.eye(f.k) - taken) @ back

    def _singular_traces(self, point: LightPoint) -> list[np.ndarray]:
        """Find the traces without a division by a variance."""
        size = len(point.unscaled)
        A = self.A[: self.q, :size]
        AK = A @ self._both(point.roots, point.unscaled)
        out = []
        for own, at, f in zip(self.own, self.at, self.structure.factors, strict=True):
            one = AK[at].reshape(f.m, f.k, -1)
            two = A[at].reshape(f.m, f.k, -1)
            out.append(own - np.tensordot(one, two, axes=([0, 2], [0, 2])))
        return out

    def _squares(
        self, point: LightPoint, directions: list[tuple[int, np.ndarray]]
    ) -> np.ndarray:
        A, q = self.A, self.q
        AK = A[:q, : len(point.unscaled)] @ self._both(point.roots, point.unscaled)
        H = A[:q, :q] - AK @ A[:q, : len(point.unscaled)].T
        return squared_traces(H, self.at, directions)

    def _project(self, point: LightPoint, U: list[np.ndarray]) -> np.ndarray:
        (L,), d = point.state, self.d
        flat = np.concatenate([u.transpose(1, 0, 2).reshape(-1, u.shape[2]) for u in U])
        AU = self.A[:d, : self.q] @ flat
        scaled = self._rows([r.T for r in point.roots], AU)
        half, _ = lapack.dtrtrs(np.asfortranarray(L[:d, :d]), scaled, lower=1)
        return flat.T @ AU[: self.q] - half.T @ half


def _assemble(products: Products, edges: list[int]) -> np.ndarray:
    """All cross-products as one matrix, factors in the order of the structure."""
    factors, p = products.structure.factors, products.p
    q = edges[-1]
    A = np.zeros((q + p + 1, q + p + 1))
    rows = [
        edges[j] + f.k * np.arange(f.m)[None] + np.arange(f.k)[:, None]
        for j, f in enumerate(factors)
    ]
    order = products.stage_factors
    rest = [rows[j].T.ravel() for j in products.rest_factors]
    rest_at = np.concatenate(rest) if rest else np.zeros(0, dtype=int)
    for stage, j in zip(products.stages, order, strict=True):
        here = rows[j]
        A[here[:, None], here[None]] = stage.D.numpy()
        for later, E in stage.E.items():
            above = rows[order[later]][:, stage.parent[later].numpy()]
            A[above[None], here[:, None]] = E.numpy()
        if isinstance(stage.C, Dense):
            A[rest_at[:, None, None], here] = stage.C.C.numpy().transpose(2, 0, 1)
        elif isinstance(stage.C, Pairs):
            for at, part in zip(here, stage.C.parts, strict=True):
                A[rest_at[:, None], at] = part.toarray().T
        A[q:, here.ravel()] = stage.XY.numpy().reshape(-1, p + 1).T
    A[rest_at[:, None], rest_at] = products.whole_rest().numpy()
    A[q:, rest_at] = products.BXY.numpy().T
    A[q:, q:] = products.G.numpy()
    # One of each pair of mirror images is filled; both are in blocks of one factor.
    return np.where(A != 0, A, A.T)


class OneFactorCriterion(LightCriterion):
    """One grouping factor: every level by itself."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__(criterion)
        stage = self.products.stages[0]
        self.D, self.XY = stage.D.numpy(), stage.XY.numpy()
        self.X = self.XY[:, :, :-1]
        self.G = self.products.G.numpy()
        self.k, _, self.m = self.D.shape

    def _factorise(self, roots: list[np.ndarray]) -> tuple | None:
        (root,) = roots
        inner, logdet = _inverse(_congruence(root, self.D))
        W = _congruence(root.T, inner)
        flat = self.XY.reshape(self.k * self.m, -1)
        S = self.G - flat.T @ _apply(W, self.XY).reshape(flat.shape)
        L, info = lapack.dpotrf(S, lower=1, clean=1)
        if info:
            return None
        logdet_x = 2 * np.log(L.diagonal()[:-1]).sum()
        return logdet, logdet_x, float(L[-1, -1] ** 2), (W, L)

    def _corner(self, point: LightPoint) -> np.ndarray:
        return point.state[1]

    def _modes(self, point: LightPoint) -> list[np.ndarray]:
        L = point.state[1]
        p = len(L) - 1
        r = self.XY[:, :, -1] - self.X @ _solved(L[:p, :p], L[p, :p], trans=1)
        F = self._inner(point)[0]
        return [_apply(F.transpose(1, 0, 2), r[:, :, None])[:, :, 0]]

    def _inner(self, point: LightPoint) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``F = (I + VD)^-1``, ``H = DF`` by level, and ``F'X``."""
        if len(point.state) == 2:
            F = -_multiply(point.state[0], self.D)
            F[np.arange(self.k), np.arange(self.k)] += 1.0
            H = _multiply(self.D, F)
            FX = _apply(F.transpose(1, 0, 2), self.X)
            point.state = (*point.state, F, H, FX)
        return point.state[2:]

    def _cov_x(self, point: LightPoint) -> np.ndarray:
        p = self.X.shape[2]
        return _inverse_from(point.state[1], p) if p else np.zeros((0, 0))

    def _traces(self, point: LightPoint) -> list[np.ndarray]:
        _, H, FX = self._inner(point)
        out = H.sum(axis=2)
        if self.reml:
            product = FX @ self._cov_x(point)
            out = out - np.tensordot(product, FX, axes=([1, 2], [1, 2]))
        return [(out + out.T) / 2]

    def _squares(
        self, point: LightPoint, directions: list[tuple[int, np.ndarray]]
    ) -> np.ndarray:
        _, H, FX = self._inner(point)
        count, k = len(directions), self.k
        D = np.stack([d for _, d in directions])
        own = np.einsum("abm,xbc->xacm", H, D).reshape(count, k, k, -1)
        turned = own.transpose(0, 2, 1, 3).reshape(count, -1)
        out = own.reshape(count, -1) @ turned.T
        if self.reml:
            cov = self._cov_x(point)
            B = np.einsum("amp,bmp->abm", FX @ cov, FX)
            across = np.einsum("abm,xbc->xacm", B, D).reshape(count, -1)
            cross = across @ turned.T
            DX = np.einsum("xab,bmp->xamp", D, FX)
            T = np.einsum("amp,xamr->xpr", FX, DX) @ cov
            out = out - cross - cross.T
            out += T.reshape(count, -1) @ T.transpose(0, 2, 1).reshape(count, -1).T
        return (out + out.T) / 2

    def _project(self, point: LightPoint, U: list[np.ndarray]) -> np.ndarray:
        _, H, FX = self._inner(point)
        (u,) = U
        flat = u.reshape(self.k * self.m, -1)
        cross = flat.T @ FX.reshape(self.k * self.m, -1)
        gram = flat.T @ _apply(H, u).reshape(flat.shape)
        return gram - cross @ self._cov_x(point) @ cross.T


def _regular_inverse(root: np.ndarray) -> np.ndarray | None:
    """Inverse of a factor of V; None where dividing by it would lose digits."""
    if np.abs(root.diagonal()).min() <= _SMALL:
        return None
    back = np.linalg.inv(root) if len(root) > 1 else 1 / root
    return back if np.abs(back).max() < 1 / _SMALL else None


def _solved(L: np.ndarray, b: np.ndarray, trans: int = 0) -> np.ndarray:
    """``L^-1 b``, or with the transpose of L; of no rows where there are none."""
    if not b.size:
        return np.zeros(b.shape)
    found, _ = lapack.dtrtrs(np.asfortranarray(L), b, lower=1, trans=trans)
    return found.reshape(b.shape)


def _inverse_from(L: np.ndarray, size: int) -> np.ndarray:
    """Inverse of the leading part of a matrix by its Cholesky factor."""
    inner, _ = lapack.dpotri(np.asfortranarray(L[:size, :size]), lower=1)
    # LAPACK fills the lower triangle; above it the factor has zeros.
    inner = inner + inner.T
    inner.flat[:: size + 1] /= 2
    return inner


def _congruence(L: np.ndarray, A: np.ndarray) -> np.ndarray:
    """``L' A_i L``; levels along the last axis."""
    k, _, m = A.shape
    if k == 1:
        return A * L[0, 0] ** 2
    both = (L.T[:, None, :, None] * L.T[None, :, None]).reshape(k * k, k * k)
    return (both @ A.reshape(k * k, m)).reshape(k, k, m)


def _multiply(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    return A * B if len(A) == 1 else np.einsum("abm,bcm->acm", A, B)


def _apply(A: np.ndarray, V: np.ndarray) -> np.ndarray:
    if len(A) == 1:
        return A[0, 0][:, None] * V
    return np.einsum("abm,bmc->amc", A, V)


def _inverse(A: np.ndarray) -> tuple[np.ndarray, float]:
    """Inverse of every ``I + A_i``, and the sum of logarithms of determinants."""
    k = len(A)
    A = A.copy()
    A[np.arange(k), np.arange(k)] += 1.0
    logdet = 0.0
    for j in range(k):
        pivot = A[j, j].copy()
        logdet += np.log(pivot).sum()
        row, column = A[j] / pivot, A[:, j].copy()
        A -= column[:, None] * row
        A[j], A[:, j] = row, -column / pivot
        A[j, j] = 1 / pivot
    return A, float(logdet)


class LazyPoint(Point):
    """An optimum found by a light criterion; its equations are factorised on demand.

    Attributes
    ----------
    light : LightPoint
    """

    def __init__(self, light: LightPoint, criterion: Criterion) -> None:
        vars(self).update(
            x=light.x, value=light.value, light=light, criterion=criterion,
            modes=light.modes, slopes=light.slopes,
        )  # fmt: skip

    @cached_property
    def factorisation(self) -> Factorisation:
        """The equations at the optimum."""
        found = self.criterion(self.x).factorisation
        if found is None:
            raise ArithmeticError("the model's equations are singular.")
        return found

    @property
    def variance(self) -> float:
        """Residual variance."""
        return self.light.variance

    @property
    def structure(self) -> Structure:
        """The random effects."""
        return self.light.structure
