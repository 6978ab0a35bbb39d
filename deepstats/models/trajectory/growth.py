"""Growth mixture models: normal responses with random effects within the group.

In group k a unit's responses are N(X_i b_k, s_k^2 I + Z_i B_k Z_i'). With e = y - X b
and B = L L', the density needs the cross-products of each unit only, and solves of
q x q systems M_i = s^2 I + L' Z_i'Z_i L (Woodbury): no matrix of the size of a unit's
rows. Units of the same Z_i'Z_i (common occasions) share theirs.

References
----------
Laird & Ware (1982), Random-effects models for longitudinal data; Verbeke & Lesaffre
(1996), A linear mixed-effects model with heterogeneity in the random-effects
population; Muthen & Shedden (1999); Proust-Lima, Philipps & Liquet (2017), Estimation
of extended mixed models using latent classes (lcmm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .emission import Position, Scratch, free_step
from .quadratic import unit_products
from .slots import Slots

__all__ = ["GrowthEmission", "Products"]

_LOG_2PI = math.log(2 * math.pi)
#: Distinct Z'Z for which tables are made once for all units; else block by block.
_KINDS = 256
#: Where a search begins, the residual variance is three quarters: half its logarithm.
_RESIDUAL = 0.5 * math.log(0.75)
#: A standard deviation of this size, relative to the residual one, is zero.
_ZERO = 1e-5


# --------------------------------------------------------------------------------------
# Small matrices, units last
# --------------------------------------------------------------------------------------


def _product(A: Tensor, B: Tensor) -> Tensor:
    """Products of matrices (..., a, b, units) and (..., b, c, units)."""
    parts = [A[..., :, j, None, :] * B[..., None, j, :, :] for j in range(A.shape[-2])]
    return sum(parts[1:], parts[0])


def _applied(A: Tensor, v: Tensor) -> Tensor:
    """Products of matrices (..., a, b, units) and vectors (..., b, units)."""
    parts = [A[..., :, j, :] * v[..., None, j, :] for j in range(A.shape[-2])]
    return sum(parts[1:], parts[0])


def _turned(A: Tensor) -> Tensor:
    return A.transpose(-3, -2)


def _inverted(A: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of positive definite matrices (..., q, q, units), and log determinants.

    Gauss-Jordan elimination on the diagonal: these matrices are s^2 I plus a positive
    semidefinite one, and need no pivots.
    """
    q = A.shape[-2]
    A = A.clone()
    logs = torch.zeros_like(A[..., 0, 0, :])
    for j in range(q):
        pivot = A[..., j, j, :].clone()
        logs = logs + pivot.log()
        row, column = A[..., j, :, :] / pivot[..., None, :], A[..., :, j, :].clone()
        A = A - column[..., :, None, :] * row[..., None, :, :]
        A[..., j, :, :] = row
        A[..., :, j, :] = -column / pivot[..., None, :]
        A[..., j, j, :] = 1 / pivot
    return A, logs


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u[..., :, None, :] * v[..., None, :, :]


def _trace(A: Tensor, B: Tensor) -> Tensor:
    """Traces of A B, the second symmetric: (..., units)."""
    return (A * B).sum((-3, -2))


# --------------------------------------------------------------------------------------
# What is known of a unit
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Products:
    """Cross-products of each unit's rows, units last.

    Attributes
    ----------
    n, yy : Tensor, shape (N,)
    Xy : Tensor, shape (p, N)
    XX : Tensor, shape (p, p, N)
    Zy : Tensor, shape (q, N)
    ZX : Tensor, shape (q, p, N)
    ZZ : Tensor, shape (q, q, kinds)
        The distinct Z'Z.
    kind : Tensor of int, shape (N,)
        Which of them a unit has.
    """

    n: Tensor
    yy: Tensor
    Xy: Tensor
    XX: Tensor
    Zy: Tensor
    ZX: Tensor
    ZZ: Tensor
    kind: Tensor

    @classmethod
    def of(cls, X: Tensor, Z: Tensor, y: Tensor, start: Tensor) -> Products:
        """Sum over the rows of units; ``start`` (N + 1,) says where each begins."""
        p, both = X.shape[1], torch.cat([X, Z], dim=1)
        found = unit_products(both, y, start).T.contiguous()
        width, N = both.shape[1], found.shape[1]
        i, j = torch.triu_indices(width, width)
        square = found.new_zeros(width, width, N)
        square[i, j] = square[j, i] = found[2 + width :]
        ZZ, kind = torch.unique(
            square[p:, p:].reshape(-1, N), dim=1, return_inverse=True
        )
        q = width - p
        return cls(
            found[0], found[1], found[2 : 2 + p], square[:p, :p].contiguous(),
            found[2 + p : 2 + width], square[p:, :p].contiguous(),
            ZZ.reshape(q, q, -1), kind,
        )  # fmt: skip

    def take(self, units: slice | Tensor) -> Products:
        """Return those of some units; the kinds stay."""
        own = ("n", "yy", "Xy", "XX", "Zy", "ZX", "kind")
        return replace(self, **{name: getattr(self, name)[..., units] for name in own})

    def to(self, like: Any) -> Products:
        """Move to the device of a `Compute`."""
        moved = {k: like.tensor(v) for k, v in vars(self).items() if k != "kind"}
        return Products(**moved, kind=self.kind.to(moved["n"].device))


@dataclass(frozen=True, eq=False)
class _Place(Position):
    """A position with the factor of B, and tables by kind where kinds are few.

    Attributes
    ----------
    L : Tensor, shape (K, S, q, q)
    H : Tensor or None, shape (K, S, q, q, kinds)
        L M^-1 L'.
    log_det : Tensor or None, shape (K, S, kinds)
        Of M.
    """

    L: Tensor | None = None
    H: Tensor | None = None
    log_det: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _State:
    """A block of units at a position; tau is 1 / s^2, Q is s^2 V^-1.

    Attributes
    ----------
    own : Products
    tau, log_sigma : Tensor, shape (K, S, 1)
    L : Tensor, shape (K, S, q, q, 1)
    G : Tensor, shape (q, q, B)
        Z'Z.
    H : Tensor, shape (K, S, q, q, B)
    log_det : Tensor, shape (K, S, B)
    Xe, Ze, ee : Tensor, shapes (K, S, p, B), (K, S, q, B), (K, S, B)
        X'e, Z'e and e'e.
    """

    own: Products
    tau: Tensor
    log_sigma: Tensor
    L: Tensor
    G: Tensor
    H: Tensor
    log_det: Tensor
    Xe: Tensor
    Ze: Tensor
    ee: Tensor

    @cached_property
    def b(self) -> Tensor:
        """Expected random effects given the responses; (K, S, q, B)."""
        return _applied(self.H, self.Ze)

    @cached_property
    def GH(self) -> Tensor:
        """Z'Z H; (K, S, q, q, B)."""
        return _product(self.G, self.H)

    @cached_property
    def ZQe(self) -> Tensor:
        """Z'Q e; (K, S, q, B)."""
        return self.Ze - _applied(self.G, self.b)

    @cached_property
    def eQQe(self) -> Tensor:
        """Squared residuals e'Q Q e at the expected random effects; (K, S, B)."""
        return self.ee - (self.b * (self.Ze + self.ZQe)).sum(-2)

    @cached_property
    def ZQZ(self) -> Tensor:
        """Z'Q Z; (K, S, q, q, B)."""
        return self.G - _product(self.GH, self.G)

    @cached_property
    def XQe(self) -> Tensor:
        """X'Q e; (K, S, p, B)."""
        return self.Xe - self.across(self.b)

    @property
    def trace(self) -> Tensor:
        """Trace of Q; (K, S, B)."""
        return self.own.n - self.GH.diagonal(dim1=-3, dim2=-2).sum(-1)

    def across(self, v: Tensor) -> Tensor:
        """X'Z v of vectors (K, S, q, B): (K, S, p, B)."""
        parts = [v[..., a, None, :] * zx for a, zx in enumerate(self.own.ZX)]
        return sum(parts[1:], parts[0])


# --------------------------------------------------------------------------------------
# The emission
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GrowthEmission:
    """Normal responses with random effects, their covariances by group.

    The coefficients of a group are those of X, the logarithm of the residual standard
    deviation, and the rows of the lower triangle of L. The diagonal of L may have any
    sign: at a variance of zero the likelihood is then smooth, and has its maximum
    inside. Where covariances are proportional, L is ``c * L0``, with c in place of L0's
    first entry, which is one: the standard deviation of the first effect, and the rest
    of the factor relative to it.

    Attributes
    ----------
    products : Products
        Of y less `centre`.
    slots : Slots
    centre : Tensor, shape (p,)
        Coefficients of a constant that was taken from y.
    spread : float
        Standard deviation of the response: where a search begins.
    scaled : bool
        Whether covariances are proportional.
    scales : Tensor, shape (q,)
        What the columns of Z were divided by.
    lower : Tensor, shape (P,)
    """

    products: Products
    slots: Slots
    centre: Tensor
    spread: float
    scaled: bool
    scales: Tensor
    lower: Tensor
    reusable = False

    @property
    def _p(self) -> int:
        return self.products.Xy.shape[0]

    @property
    def q(self) -> int:
        """Number of random effects."""
        return self.products.Zy.shape[0]

    @cached_property
    def _lower_triangle(self) -> tuple[Tensor, Tensor]:
        i, j = torch.tril_indices(self.q, self.q)
        return i, j

    @property
    def rows_per_unit(self) -> float:
        """Numbers worked on for a unit, group and set of parameters."""
        return 4.0 * (self._p + 3 * self.q**2)

    def constant(self, block: slice) -> Tensor | None:
        """Return nothing: the table is the whole log-density."""
        return None

    @property
    def floors(self) -> Tensor:
        """Which least values are floors of residual standard deviations; (P,)."""
        found = torch.zeros_like(self.lower, dtype=torch.bool)
        place = self.slots.index[:, self._p]
        found[place[place >= 0]] = True
        return found

    # -- where it is asked ---------------------------------------------------------

    def factor(self, coefficients: Tensor) -> Tensor:
        """Return L, (..., q, q), of coefficients (..., C)."""
        i, j = self._lower_triangle
        entries = coefficients[..., self._p + 1 :]
        if self.scaled:
            size = entries[..., :1]
            entries = torch.cat([size, size * entries[..., 1:]], dim=-1)
        L = entries.new_zeros(*entries.shape[:-1], self.q, self.q)
        L[..., i, j] = entries
        return L

    def _entries(self, L: Tensor) -> Tensor:
        """Coefficients of a factor: the inverse of `factor`; (..., C - p - 1)."""
        i, j = self._lower_triangle
        entries = L[..., i, j]
        if not self.scaled:
            return entries
        size = entries[..., :1]
        return torch.cat([size, entries[..., 1:] / size], dim=-1)

    def _solved(self, at: Tensor, L: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        """H and log determinants of M for some Z'Z."""
        L = L[..., None]
        variance = (2 * at[:, :, self._p]).exp()
        eye = torch.eye(self.q, dtype=G.dtype, device=G.device)[..., None]
        M = _product(_product(_turned(L), G), L) + variance[..., None, None, None] * eye
        inverse, logs = _inverted(M)
        return _product(_product(L, inverse), _turned(L)), logs

    def at(self, free: Tensor) -> _Place:
        """Prepare tables at free parameters (S, P)."""
        b = self.slots.spread(free)
        L = self.factor(b)
        if self.products.ZZ.shape[-1] > _KINDS:
            return _Place(free, b, L=L)
        return _Place(free, b, None, L, *self._solved(b, L, self.products.ZZ))

    def _state(self, at: Position, block: slice, scratch: Scratch) -> _State:
        if scratch.block is not None and scratch.block[0] == (block, id(at)):
            return scratch.block[1]
        assert isinstance(at, _Place) and at.L is not None
        own, coefficients = self.products.take(block), at.coefficients
        G = own.ZZ[..., own.kind]
        if at.H is None:
            H, logs = self._solved(coefficients, at.L, G)
        else:
            assert at.log_det is not None
            H, logs = at.H[..., own.kind], at.log_det[..., own.kind]
        beta = coefficients[..., : self._p] - self.centre
        log_sigma = coefficients[..., self._p, None]
        Xe = own.Xy - torch.tensordot(beta, own.XX, dims=([2], [1]))
        Ze = own.Zy - torch.tensordot(beta, own.ZX, dims=([2], [1]))
        ee = own.yy - (beta[..., None] * (own.Xy + Xe)).sum(2)
        found = _State(
            own, (-2 * log_sigma).exp(), log_sigma, at.L[..., None], G, H, logs,
            Xe, Ze, ee,
        )  # fmt: skip
        scratch.block = ((block, id(at)), found)
        return found

    def table(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Log-density of units in each group; (K, S, B)."""
        s = self._state(at, block, scratch)
        quadratic = s.tau * (s.ee - (s.b * s.Ze).sum(-2))
        n = s.own.n
        return -0.5 * (
            n * _LOG_2PI + 2 * (n - self.q) * s.log_sigma + s.log_det + quadratic
        )

    # -- M-steps -------------------------------------------------------------------

    def collect(
        self, at: Position, block: slice, weights: Tensor, scratch: Scratch
    ) -> None:
        """Gather what an M-step, or `curvature`, needs; weights (K, S, B)."""
        s = self._state(at, block, scratch)
        if scratch.exact:
            scratch.add(*self._second_order(s, weights))
            return
        own = s.own
        # Units without a row say nothing of the random effects.
        seen = torch.where(own.n > 0, weights, 0.0)
        gradient = s.tau * (s.XQe * weights[:, :, None]).sum(-1)
        variance = s.H / s.tau[..., None, None]
        moment = (seen[:, :, None, None] * (_outer(s.b, s.b) + variance)).sum(-1)
        squares = s.eQQe + _trace(s.G, variance)
        scratch.add(
            gradient, s.tau[..., None] * self._gram(s, weights), moment, seen.sum(-1),
            (weights * squares).sum(-1), (weights * own.n).sum(-1),
        )  # fmt: skip

    def _gram(self, s: _State, weights: Tensor) -> Tensor:
        """Weighted sums of X'Q X; (K, S, p, p)."""
        total = torch.tensordot(weights, s.own.XX, dims=([2], [2]))
        for a in range(self.q):
            for c in range(a + 1):
                pairs = s.own.ZX[a][:, None] * s.own.ZX[c]
                part = torch.tensordot(
                    weights * s.H[:, :, a, c], pairs, dims=([2], [2])
                )
                total = total - (part if a == c else part + part.transpose(2, 3))
        return total

    def improve(self, at: Position, scratch: Scratch, inner: int = 1) -> Tensor:
        """Generalised least squares for the trend, EM for the variances."""
        gradient, gram, moment, mass, squares, count = scratch.sums
        K, S, p = gradient.shape
        C, free, slots = self.slots.width, at.free, self.slots
        wide = gradient.new_zeros(K, S, C)
        wide[..., :p] = gradient
        square = torch.eye(C, dtype=gram.dtype, device=gram.device).repeat(K, S, 1, 1)
        square[..., :p, :p] = gram
        free = free + free_step(
            slots, wide, square, torch.full_like(self.lower, torch.inf)
        )
        sums = gradient.new_zeros(2, K, S, C)
        sums[0, ..., p], sums[1, ..., p] = squares, count
        total, rows = slots.gather(sums[0]), slots.gather(sums[1])
        log_sigma = 0.5 * (total.clamp_min(1e-300) / rows.clamp_min(1e-12)).log()
        free = torch.where(rows > 1e-8, log_sigma, free)
        return torch.maximum(self._with_factor(free, at, moment, mass), self.lower)

    def _with_factor(
        self, free: Tensor, at: Position, moment: Tensor, mass: Tensor
    ) -> Tensor:
        """Put the factor of the expected second moments among the parameters."""
        place = self.slots.index[:, self._p + 1 :]
        count = mass[..., None, None]
        if self.scaled:
            size = at.coefficients[..., self._p + 1].square()[..., None, None]
            shape = (moment / size).sum(0) / count.sum(0)
            mean = torch.linalg.solve(_firm(shape), moment / count.clamp_min(1e-12))
            size = mean.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
            B = size * shape
        elif len(torch.unique(place[:, 0])) == 1:
            B = (moment.sum(0) / count.sum(0)).expand_as(moment)
        else:
            B = moment / count.clamp_min(1e-12)
        L = torch.linalg.cholesky_ex(_firm(B))[0]
        entries = self._entries(L)
        known = (mass > 1e-8)[..., None] & torch.isfinite(entries)
        old = at.coefficients[..., self._p + 1 :]
        entries = torch.where(known, entries, old)
        free = free.clone()
        for k, row in enumerate(place):
            free[:, row] = entries[k]
        return free

    # -- derivatives ---------------------------------------------------------------

    def scores(self, at: Position, block: slice, scratch: Scratch) -> Tensor:
        """Return derivatives of `table` in the coefficients; (K, S, C, B)."""
        s = self._state(at, block, scratch)
        of_factor = self._factor_scores(s)
        if self.scaled:
            of_factor = torch.einsum(
                "kscd,kscb->ksdb", self._jacobian(at.coefficients), of_factor
            )
        return torch.cat([self._other_scores(s), of_factor], dim=2)

    def _other_scores(self, s: _State) -> Tensor:
        """Scores of the trend and of ln sigma; (K, S, p + 1, B)."""
        of_sigma = s.tau * s.eQQe - s.trace
        return torch.cat([s.tau[..., None] * s.XQe, of_sigma[:, :, None]], dim=2)

    def _factor_scores(self, s: _State) -> Tensor:
        """Scores of the entries of L: ``(a a' - A) L``, A = Z'V^-1 Z, a = Z'V^-1 e."""
        a = s.tau[..., None] * s.ZQe
        A = s.tau[..., None, None] * s.ZQZ
        i, j = self._lower_triangle
        return _product(_outer(a, a) - A, s.L)[:, :, i, j]

    def _jacobian(self, coefficients: Tensor) -> Tensor:
        """Return derivatives of L's entries in the coefficients: (K, S, r, r)."""
        i, j = self._lower_triangle
        entries = self.factor(coefficients)[..., i, j]
        found = torch.diag_embed(entries[..., :1].expand_as(entries))
        found[..., 0] = coefficients[..., self._p + 1 :]
        found[..., 0, 0] = 1.0
        return found

    def _second_order(self, s: _State, w: Tensor) -> tuple[Tensor, Tensor]:
        """Sum scores of L, and minus the second derivatives in b, ln s and L."""
        p, C = self._p, self.slots.width
        a, A = s.tau[..., None] * s.ZQe, s.tau[..., None, None] * s.ZQZ
        v = _applied(_turned(s.L), a)
        J = -s.GH
        J.diagonal(dim1=-3, dim2=-2).add_(1.0)
        found = w.new_zeros(*w.shape[:2], C, C)
        found[..., :p, :p] = s.tau[..., None] * self._gram(s, w)
        twice = s.XQe - s.across(_applied(s.H, s.ZQe))
        found[..., p, :p] = 2 * s.tau * (twice * w[:, :, None]).sum(-1)
        found[..., p, p] = (w * self._of_sigma(s)).sum(-1)
        for place, u in enumerate(self._turns(s.L, a, v), start=p + 1):
            turned = w[:, :, None] * _applied(_turned(J), u)
            for c in range(self.q):
                found[..., place, :p] += s.tau * (turned[:, :, c] @ s.own.ZX[c].T)
        of_factor = self._of_factor(s, a, A, v)
        found[..., p + 1 :, p] = (w[:, :, None] * self._of_both(s, a, v, J)).sum(-1)
        for (one, two), part in of_factor.items():
            found[..., p + 1 + one, p + 1 + two] = (w * part).sum(-1)
        gradient = (w[:, :, None] * self._factor_scores(s)).sum(-1)
        return gradient, found.tril() + found.tril(-1).transpose(2, 3)

    def _turns(self, L: Tensor, a: Tensor, v: Tensor) -> list[Tensor]:
        """Return ``D a`` for the change D of B with each entry of L; (K, S, q, B)."""
        found = []
        for r, c in zip(*self._lower_triangle, strict=True):
            u = L[:, :, :, c] * a[:, :, r, None]
            u[:, :, r] += v[:, :, c]
            found.append(u)
        return found

    def _of_sigma(self, s: _State) -> Tensor:
        """Minus the second derivative in ln sigma; (K, S, B)."""
        squares = s.own.n - 2 * (s.own.n - s.trace) + _trace(s.GH, _turned(s.GH))
        cubes = s.eQQe - (s.ZQe * _applied(s.H, s.ZQe)).sum(-2)
        return 2 * (s.trace - squares) + s.tau * (4 * cubes - 2 * s.eQQe)

    def _of_both(self, s: _State, a: Tensor, v: Tensor, J: Tensor) -> Tensor:
        """Minus the second derivatives in ln sigma and L; (K, S, r, B)."""
        i, j = self._lower_triangle
        a2 = s.tau[..., None] * _applied(J, s.ZQe)
        A2 = s.tau[..., None, None] * _product(J, s.ZQZ)
        v2 = _applied(_turned(s.L), a2)
        found = _outer(a2, v) + _outer(a, v2) - _product(A2, s.L)
        return 2 * found[:, :, i, j]

    def _of_factor(
        self, s: _State, a: Tensor, A: Tensor, v: Tensor
    ) -> dict[tuple[int, int], Tensor]:
        """Minus the second derivatives in pairs of entries of L; each (K, S, B)."""
        AL = _product(A, s.L)
        LAL = _product(_turned(s.L), AL)
        entries = list(zip(*(x.tolist() for x in self._lower_triangle), strict=True))
        found = {}
        for one, (r, c) in enumerate(entries):
            for two, (r2, c2) in enumerate(entries[: one + 1]):
                far, near = AL[:, :, r, c2], AL[:, :, r2, c]
                a1, a2, v1, v2 = a[:, :, r], a[:, :, r2], v[:, :, c], v[:, :, c2]
                part = (v1 * v2 - LAL[:, :, c, c2]) * A[:, :, r, r2] - far * near
                part = part + v1 * a2 * far + a1 * v2 * near
                part = part + a1 * a2 * LAL[:, :, c, c2]
                if c == c2:
                    part = part + A[:, :, r, r2] - a1 * a2
                found[one, two] = part
        return found

    def curvature(self, at: Position, scratch: Scratch) -> Tensor:
        """Minus the second derivatives of what was collected; (K, S, C, C)."""
        gradient, square = scratch.sums
        if not self.scaled:
            return square
        p, K, S = self._p, *square.shape[:2]
        inner = self._jacobian(at.coefficients)
        change = torch.eye(self.slots.width).to(square).repeat(K, S, 1, 1)
        change[..., p + 1 :, p + 1 :] = inner
        found = change.transpose(2, 3) @ square @ change
        # The change is not linear: an entry is one coefficient times another.
        found[..., p + 1, p + 2 :] -= gradient[..., 1:]
        found[..., p + 2 :, p + 1] -= gradient[..., 1:]
        return found

    # -- the rest of what a mixture asks ---------------------------------------------

    def begin(self, count: int) -> Tensor:
        """Parameters of one group without trends, a quarter of the variance between."""
        like = self.products
        rows = torch.bincount(like.kind, minlength=like.ZZ.shape[-1]).to(like.n)
        mean = (like.ZZ * rows).sum(-1) / like.n.sum().clamp_min(1.0)
        size = 0.25 * self.spread**2 / self.q
        L = torch.linalg.cholesky_ex(size * torch.linalg.pinv(_firm(mean)))[0]
        sigma = self.centre.new_tensor([math.log(self.spread) + _RESIDUAL])
        one = torch.cat([self.centre, sigma, self._entries(torch.nan_to_num(L))])
        free = self.centre.new_zeros(self.slots.count)
        for row in self.slots.index:
            free[row[row >= 0]] = one[row >= 0]
        return free.expand(count, -1).clone()

    def select(self, units: Tensor) -> GrowthEmission:
        """Return the emission of some units."""
        return replace(self, products=self.products.take(units))

    def with_groups(self, groups: int) -> GrowthEmission:
        """Return the emission of the first groups only."""
        slots, kept = self.slots.first(groups)
        return replace(self, slots=slots, lower=self.lower[kept])

    # -- random effects ------------------------------------------------------------

    def predicted(self, free: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Predict effects (K, q, B), and their covariances (K, q, q, B), by group."""
        s = self._state(self.at(free[None]), block, Scratch())
        return s.b[:, 0], (s.H / s.tau[..., None, None])[:, 0]

    def settled(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors that have a diagonal of no negative numbers.

        Parameters
        ----------
        free : Tensor, shape (P,)

        Returns
        -------
        Tensor, shape (P,)
            The same covariances.
        Tensor of bool, shape (P,)
            Which parameters are on the edge of their range: the columns of a factor
            whose diagonal is zero.
        """
        coefficients = self.slots.spread(free[None])[:, 0]
        L = self.factor(coefficients)
        least = (_ZERO * coefficients[:, self._p].exp()) ** 2
        found, zero = _semidefinite_factor(L @ L.transpose(1, 2), least)
        _, column = self._lower_triangle
        entries, gone = self._entries(found), zero[:, column]
        if self.scaled:
            # What groups share is read from the group where it is largest.
            own = found[:, 0, 0].argmax()
            gone = gone[own].expand_as(gone).clone()
            gone[:, 0] = zero[:, 0]
            shared = torch.nan_to_num(entries[own]).expand_as(entries)
            entries = torch.cat([entries[:, :1], shared[:, 1:]], dim=1)
        free, edge = free.clone(), torch.zeros_like(free, dtype=torch.bool)
        for row, values, flags in zip(
            self.slots.index[:, self._p + 1 :], entries, gone, strict=True
        ):
            free[row], edge[row] = values, flags
        return free, edge


def _semidefinite_factor(B: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors of (K, q, q), pivots below `least` (K,) and columns under zero.

    Returns the factors and which columns are zero, (K, q).
    """
    L, q = torch.zeros_like(B), B.shape[-1]
    zero = torch.zeros(B.shape[:2], dtype=torch.bool, device=B.device)
    for j in range(q):
        rest = B[:, j:, j] - (L[:, j:, :j] * L[:, j, None, :j]).sum(-1)
        zero[:, j] = rest[:, 0] <= least
        root = rest[:, :1].clamp_min(1e-300).sqrt()
        L[:, j:, j] = torch.where(zero[:, j, None], 0.0, rest / root)
    return L, zero


def _firm(B: Tensor) -> Tensor:
    """Add a trifle to the diagonal, so that a factor exists; (..., q, q)."""
    B = 0.5 * (B + B.transpose(-2, -1))
    size = B.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
    eye = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)
    return B + 1e-12 * size[..., None, None] * eye
