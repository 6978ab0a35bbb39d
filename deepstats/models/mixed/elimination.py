"""Eliminating the random effects: determinants, solutions and the inverse's blocks.

With ``A = [Z X]'W[Z X]`` and relative covariance V, everything a mixed model needs is
in ``Omega = L'AL + I`` (L the factor of V, zero rows for X). Stages are eliminated
level by level in closed form, then one dense Cholesky factor takes the rest with the
fixed effects and the response appended, from which determinants, coefficients and the
residual sum of squares fall out (Bates & DebRoy 2004; Henderson's equations). Written
with ``W = L (I + L'DL)^-1 L'`` nothing divides by a variance: all holds at zero.

The gradient needs the blocks of the inverse where A has entries; they follow from the
last block backwards (Takahashi, Fagan & Chin 1973).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .blocks import (
    apply,
    apply_transposed,
    congruence,
    identity_plus,
    inverse,
    multiply,
    multiply_transposed,
)
from .coupling import Coupling, Dense
from .dense import mirror, product
from .products import Products, Vector
from .rest import Rest, RestInverse, factorise_rest
from .scalars import ScalarSolver, eliminate_scalars, takes
from .sparse import SparseLayout, SparseRest, factorise_sparse

__all__ = ["Blocks", "Factorisation", "factorise"]

# Below this standardised standard deviation dividing by it would lose digits: by its
# square for a scalar, by its fourth power for the least dimension of a vector.
_SMALL, _SMALL_OF_VECTOR = 1e-3, 3e-2
# What is not exact in a derivative may be this share of it: as little as rounding in
# the first, which ends the search, and nothing that shows in the second.
_FIRST, _SECOND = 1e-13, 1e-10


@dataclass(eq=False)
class _Eliminated:
    """A stage at the moment of its elimination."""

    D: Tensor
    E: dict[int, Tensor]
    parent: dict[int, Tensor]
    C: Coupling | None
    XY: Tensor
    W: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of the inverse where the equations have entries.

    Attributes
    ----------
    diagonal, Q, inner
        See `Factorisation.blocks`.
    between : dict of (int, int) to Tensor, each (K, K_l, m)
        Of two stages, by level of the first; of a stage with itself.
    to_rest : dict of int to Tensor, each (K, m, q)
        Of a stage and the rest; of the first stage only where `known` is asked for it.
    """

    diagonal: list[Tensor]
    Q: list[Tensor | None]
    inner: RestInverse
    between: dict[tuple[int, int], Tensor]
    to_rest: dict[int, Tensor]


@dataclass(eq=False)
class Factorisation:
    """The model's equations at one relative covariance, factorised.

    Attributes
    ----------
    products : Products
    roots : list of Tensor, each (K, K)
        Lower factors of the standardised V, by factor.
    stages : list of _Eliminated
    rest : Rest
        What remained after the stages, factorised.
    logdet : float
        Logarithm of the determinant of Omega without the fixed effects.
    logdet_x : float
        That of the fixed effects, ``X'Sigma^-1 X`` (of the columns of the design).
    rss : float
        Penalised residual sum of squares, ``y'Py``.
    """

    products: Products
    roots: list[Tensor]
    stages: list[_Eliminated]
    rest: Rest | SparseRest
    logdet: float
    logdet_x: float
    rss: float

    @property
    def L(self) -> Tensor:
        """Cholesky factors of the rest."""
        return self.rest.L

    # -- solving ---------------------------------------------------------------------

    def solve(self, rhs: Vector) -> Vector:
        """Apply the inverse of the penalised equations (zero where V is zero).

        For the response this gives the conditional modes and the fixed effects.
        """
        kept, parts = [], list(rhs.stages)
        rest, X = rhs.rest, rhs.X
        fixed = len(X) > 0
        for number, stage in enumerate(self.stages):
            here = parts[number]
            kept.append(here)
            t = apply(stage.W, here)
            for later, E in stage.E.items():
                below = apply_transposed(E, t)
                parts[later] = parts[later].index_add(
                    1, stage.parent[later], below, alpha=-1
                )
            if stage.C is not None:
                rest = rest - stage.C.transposed(t)
            if fixed:
                XY = stage.XY[:, :, :-1].flatten(0, 1)
                X = X - XY.T @ t.flatten(0, 1)
        if fixed or len(rest):
            rest, X = self.rest.solve(rest, X)
        for number in range(len(self.stages) - 1, -1, -1):
            stage = self.stages[number]
            here = kept[number]
            if fixed:
                here = here - stage.XY[:, :, :-1] @ X
            if stage.C is not None:
                here = here - stage.C.times(rest)
            for later, E in stage.E.items():
                above = parts[later].index_select(1, stage.parent[later])
                here = here - apply(E, above)
            parts[number] = apply(stage.W, here)
        return Vector(parts, rest, X)

    def solve_one(self, parts: list[Tensor]) -> list[Tensor]:
        """Apply the inverse of equations without fixed effects to one vector.

        Parameters
        ----------
        parts : list of Tensor, each (K, m)
            By factor of the structure.
        """
        if self._scalars is not None:
            found = self._scalars([part[0].numpy() for part in parts])
            return [torch.from_numpy(part)[None] for part in found]
        products = self.products
        rhs = products.from_factors(
            [part[:, :, None] for part in parts], self.L.new_zeros(0, 1)
        )
        return [part[:, :, 0] for part in products.by_factor(self.solve(rhs))]

    @cached_property
    def _scalars(self) -> ScalarSolver | None:
        return ScalarSolver.of(self)

    @cached_property
    def solution(self) -> Vector:
        """Conditional modes (standardised) and fixed effects (orthonormal columns)."""
        return self.solve(self.products.response)

    @cached_property
    def residual(self) -> Vector:
        """``[Z X]'W`` times the conditional residuals: ``Z'Py`` and zero for X."""
        products = self.products
        return products.response.minus(products.multiply(self.solution))

    def project(self, U: Vector) -> tuple[Vector, Tensor]:
        """``[Z X]'WZ U`` and the quadratic form ``U'Z'PZU``."""
        AU = self.products.multiply(U)
        return AU, U.gram(AU) - AU.gram(self.solve(AU))

    @property
    def beta(self) -> Tensor:
        """Fixed effects of the columns of the design."""
        return self.products.center + self.products.R @ self.solution.X[:, 0]

    @cached_property
    def cov_beta(self) -> Tensor:
        """``(X'Sigma^-1 X)^-1``: the covariance of the fixed effects over sigma^2."""
        p = self.products.p
        half = torch.linalg.solve_triangular(
            self.rest.corner[:p, :p], self.products.R.T.contiguous(), upper=False
        )
        return half.T @ half

    # -- blocks of the inverse -------------------------------------------------------

    def inverse_rest(self, with_x: bool) -> Tensor:
        """Inverse for the rest and, with `with_x`, the fixed effects; one matrix."""
        return self.rest.inverse(with_x).whole()

    def blocks(
        self, with_x: bool, whole: bool = True
    ) -> tuple[list[Tensor], list[Tensor | None], RestInverse]:
        """Blocks of the inverse by level of each factor.

        Parameters
        ----------
        with_x : bool
            Whether the fixed effects are among what was eliminated (REML) or known.
        whole : bool, default True
            False leaves out what belongs to the first stage alone, if it can.

        Returns
        -------
        diagonal : list of Tensor, each (K, K, m)
            By factor of the structure: conditional variances over sigma^2,
            standardised.
        Q : list of Tensor, each (K, K, m)
            By stage: what elimination took through all later blocks.
        inner : RestInverse
            Inverse of the rest (and fixed effects).
        """
        found = self.known(with_x, whole)
        return found.diagonal, found.Q, found.inner

    def known(self, with_x: bool, whole: bool = True, across: bool = False) -> Blocks:
        """Blocks of the inverse by level of each factor, and between factors.

        Parameters
        ----------
        with_x, whole
            See `blocks`.
        across : bool, default False
            Whether those of the first stage and the rest are wanted; its coupling is
            dense then.
        """
        products = self.products
        inner = self.rest.inverse(with_x, full=whole or self._reads_all())
        diagonal: list[Tensor | None] = [None] * len(self.roots)
        for number, j in enumerate(products.rest_factors):
            diagonal[j] = self._diagonal(inner, number)
        Qs: list[Tensor | None] = [None] * len(self.stages)
        pattern: dict[tuple[int, int], Tensor] = {}
        to_rest: dict[int, Tensor] = {}
        for number in range(len(self.stages) - 1, -1, -1):
            stage, last = self.stages[number], number == 0
            if last and not stage.E and not whole:
                break
            X = stage.XY[:, :, :-1] if with_x else stage.XY[:, :, :0]
            if last and not stage.E and not across:
                Q = self._through_rest(stage, X, inner)
            else:
                Q = self._through_chain(
                    number, stage, X, inner.whole(), pattern, to_rest
                )
            K = stage.W + multiply(multiply(stage.W, Q), stage.W)
            Qs[number] = Q
            pattern[number, number] = K
            diagonal[products.stage_factors[number]] = K
        return Blocks(diagonal, Qs, inner, pattern, to_rest)

    def _diagonal(self, inner: RestInverse, number: int) -> Tensor:
        """Diagonal blocks of the inverse for a factor of the rest."""
        f = self.products.structure.factors[self.products.rest_factors[number]]
        flat, layout = inner.zz.reshape(-1), self.products.layout
        steps = torch.arange(f.m, device=flat.device) * f.k
        steps = steps + self.products.offsets[number]
        out = flat.new_empty(f.k, f.k, f.m)
        for a in range(f.k):
            for b in range(f.k):
                out[a, b] = flat[layout.cells(steps + a, steps + b)]
        return out

    def _through_rest(
        self, stage: _Eliminated, X: Tensor, inner: RestInverse
    ) -> Tensor:
        """Q of the first stage, where only the rest and X come later."""
        k, m = stage.W.shape[0], stage.W.shape[2]
        out = X.new_zeros(k, k, m)
        if stage.C is not None:
            out = out + stage.C.quadratic(inner.zz)
        if X.shape[2]:
            product = X @ inner.xx
            if stage.C is not None:
                product = product + 2 * stage.C.times(inner.zx)
            cross = _outer(product, X)
            out = out + (cross + cross.transpose(0, 1)) / 2
        return out

    def _reads_all(self) -> bool:
        """Whether `traces` needs the whole inverse, not its lower half."""
        first = self.stages[0]
        if len(self.stages) > 1 or (first.C is not None and first.C.needs_full):
            return True
        small = (self.roots[j] for j in self.products.rest_factors)
        return any(
            len(root) > 1 or float(root.diagonal().abs().min()) <= _SMALL
            for root in small
        )

    def _trace_through_rest(
        self,
        stage: _Eliminated,
        inner: RestInverse,
        F: Tensor,
        with_x: bool,
        slack: float,
    ) -> Tensor:
        """``sum_i F_i'Q_iF_i`` of the first stage, off by `slack` at most."""
        out = F.new_zeros(len(F), len(F))
        if stage.C is not None:
            out = stage.C.trace(inner.zz, F, slack)
        if with_x:
            X = stage.XY[:, :, :-1]
            product = X @ inner.xx
            if stage.C is not None:
                product = product + 2 * stage.C.times(inner.zx)
            one, two = apply_transposed(F, product), apply_transposed(F, X)
            cross = one.reshape(len(F), -1) @ two.reshape(len(F), -1).T
            out = out + (cross + cross.T) / 2
        return out

    def _through_chain(
        self,
        number: int,
        stage: _Eliminated,
        X: Tensor,
        inner: Tensor,
        pattern: dict[tuple[int, int], Tensor],
        to_rest: dict[int, Tensor],
    ) -> Tensor:
        """Q of a stage, and its blocks of the inverse with all later ones."""
        C = X if stage.C is None else stage.C.C
        if stage.C is not None and X.shape[2]:
            C = torch.cat([C, X], dim=2)
        to = C @ inner
        for later, E in stage.E.items():
            above = to_rest[later].index_select(1, stage.parent[later])
            to = to + apply(E, above)
        Q = _outer(to, C)
        for later, E in stage.E.items():
            parent = stage.parent[later]
            across = _outer(C, to_rest[later].index_select(1, parent))
            for other, E2 in stage.E.items():
                block = self._between(pattern, other, later, stage)
                across = across + multiply(E2, block)
            Q = Q + multiply(across, E.transpose(0, 1))
            pattern[number, later] = -multiply(stage.W, across)
        to_rest[number] = -apply(stage.W, to)
        return Q

    def _between(self, pattern: dict, one: int, two: int, stage: _Eliminated) -> Tensor:
        """Block of the inverse between two stages above, for each level of a stage."""
        low, high = min(one, two), max(one, two)
        block = pattern[low, high].index_select(2, stage.parent[low])
        return block if (low, high) == (one, two) else block.transpose(0, 1)

    def traces(
        self, with_x: bool, exact: bool = True, blocks: Blocks | None = None
    ) -> list[Tensor]:
        """``sum_i Z_i'PZ_i`` of every factor, (K, K): the determinants' derivative.

        Parameters
        ----------
        with_x : bool
            P net of the fixed effects (REML), or the inverse of Sigma (ML).
        exact : bool, default True
            False lets a sparse rest estimate them.
        blocks : Blocks, optional
            What `known` gave, where it was asked before.
        """
        if isinstance(self.rest, SparseRest):
            return self._sparse_traces(with_x, exact)
        blocks = blocks or self.known(with_x, whole=False)
        diagonal, Qs, inner = blocks.diagonal, blocks.Q, blocks.inner
        out: list[Tensor | None] = [None] * len(self.roots)
        for number, stage in enumerate(self.stages):
            F, Q = identity_plus_minus(stage), Qs[number]
            H = multiply(stage.D, F).sum(2)
            if Q is None:
                slack = _FIRST * float(H.diagonal().sum())
                H = H - self._trace_through_rest(stage, inner, F, with_x, slack)
            else:
                H = H - multiply(multiply_transposed(F, Q), F).sum(2)
            out[self.products.stage_factors[number]] = H
        for number, j in enumerate(self.products.rest_factors):
            root = self.roots[j]
            if not _nearly_singular(root):
                m = diagonal[j].shape[2]
                half = torch.linalg.solve_triangular(
                    root, diagonal[j].sum(2), upper=False
                )
                half = torch.linalg.solve_triangular(root, half.T, upper=False)
                eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
                middle = m * eye - half
                half = torch.linalg.solve_triangular(root.T, middle, upper=True)
                out[j] = torch.linalg.solve_triangular(root.T, half.T, upper=True)
            else:
                out[j] = self._trace_near_zero(number, inner, with_x)
        return out

    def squared_traces(self, with_x: bool, wanted: set[int]) -> np.ndarray | None:
        """``||Z_a'PZ_b||^2`` of every two wanted factors of scalar effects; else None.

        With K the inverse of the rest (and X), ``Z_r'PZ_s = V^-1 - V^-1 K V^-1``, and
        for the stage ``Z_1'PZ_r = F C K_r / v_r``: one product of dense matrices gives
        all. None for vectors of effects, chains, components, and where the variance of
        a wanted factor is near zero.
        """
        products, roots = self.products, self.roots
        v = [float(root[0, 0]) ** 2 for root in roots]
        below = [
            (number, j) for number, j in enumerate(products.rest_factors) if j in wanted
        ]
        if (
            any(len(root) > 1 for root in roots)
            or len(self.stages) > 1
            or not (below and isinstance(self.rest, Rest) and products.layout.whole)
            or min(v[j] for _, j in below) <= _SMALL**2
        ):
            return None
        (stage,), q = self.stages, products.q
        f = identity_plus_minus(stage)
        h = stage.D * f
        inner = self.rest.inverse(with_x)
        K = inner.whole()
        X = stage.XY[:, :, : K.shape[0] - q]
        FX = apply(f * f, X)
        T = torch.empty_like(K)
        T[:q, :q] = stage.C.schur(f * f, _SECOND)[0]
        mirror(T[:q, :q])
        T[:q, q:] = stage.C.transposed(FX)
        T[q:, :q] = T[:q, q:].T
        T[q:, q:] = X[0].T @ FX[0]
        TK = product(T, K)
        size = len(roots)
        out = np.full((size, size), np.nan)
        (first,) = products.stage_factors
        own = float((h**2).sum())
        mixed = self._trace_through_rest(
            stage, inner, f * h.sqrt(), with_x, _SECOND * own
        )
        through = torch.vdot(TK.T.reshape(-1), TK.view(-1))
        out[first, first] = own - 2 * float(mixed) + float(through)
        squares = (TK * K).sum(0)
        for one, i in below:
            rows = products.rest_at(one)
            out[first, i] = out[i, first] = float(squares[rows].sum()) / v[i] ** 2
            for two, j in below:
                block = K[rows, products.rest_at(two)] / (v[i] * v[j])
                if i == j:
                    block.diagonal().sub_(1 / v[i])
                out[i, j] = float((block**2).sum())
        return out

    def _sparse_traces(self, with_x: bool, exact: bool) -> list[Tensor]:
        """`traces` where the rest is sparse: no inverse, one trace a direction."""
        products, rest = self.products, self.rest
        out = [torch.zeros_like(root) for root in self.roots]
        (stage,), (first,) = self.stages, products.stage_factors
        F = identity_plus_minus(stage)
        out[first] = multiply(stage.D, F).sum(2)
        for a, b, E in _directions(len(F)):
            change = multiply(F, E[:, :, None].expand(F.shape))
            change = multiply(change, F.transpose(0, 1))
            taken = rest.trace(rest.scaled(-stage.C.schur(change)), exact)
            out[first][a, b] += taken if a == b else taken / 2
            if a != b:
                out[first][b, a] = out[first][a, b]
        for number, j in enumerate(products.rest_factors):
            at, m = products.rest_at(number), products.structure.factors[j].m
            out[j] = rest.own_trace(self.roots[j].numpy(), at, m, exact)
        if with_x:
            for total, taken in zip(out, self._fixed_traces(), strict=True):
                total -= taken
        return out

    def _fixed_traces(self) -> list[Tensor]:
        """Return what the fixed effects take of the traces, by factor."""
        products, p = self.products, self.products.p
        corner = self.rest.corner[:p, :p]
        eye = torch.eye(p, dtype=corner.dtype, device=corner.device)
        zeros = [s.XY.new_zeros(*s.XY.shape[:2], p) for s in products.stages]
        zeros_rest = corner.new_zeros(products.q, p)
        unit = products.multiply(self.solve(Vector(zeros, zeros_rest, eye)))
        parts = [part @ corner for part in products.by_factor(unit)]
        return [torch.einsum("amp,bmp->ab", part, part) for part in parts]

    def _trace_near_zero(self, number: int, inner: RestInverse, with_x: bool) -> Tensor:
        """``sum_i Z_i'PZ_i`` of a factor whose covariance is singular or nearly so."""
        f = self.products.structure.factors[self.products.rest_factors[number]]
        start = self.products.offsets[number]
        steps = start + f.k * torch.arange(f.m, device=self.L.device)
        rows = [steps + a for a in range(f.k)]
        layout = self.products.layout
        if layout.whole:
            zz, border = self._schur_rows(self.products.rest_at(number), with_x)
            product = zz @ inner.zz[0] + border @ inner.zx.T
            across = zz @ inner.zx + border @ inner.xx
            at = [torch.arange(f.m, device=steps.device) * f.k + a for a in range(f.k)]
        else:
            S, border = self._schur_rows(slice(0, layout.q), with_x)
            zx = layout.gather(inner.zx)
            product = S @ inner.zz + layout.gather(border) @ zx.mT
            across = layout.scatter(S @ zx) + border @ inner.xx
            product, zz = (
                t.reshape(-1, layout.width)[layout.place] for t in (product, S)
            )
            at = rows
        out = product.new_empty(f.k, f.k)
        for a in range(f.k):
            for b in range(f.k):
                taken = (product[at[a]] * zz[at[b]]).sum()
                taken = taken + (across[at[a]] * border[at[b]]).sum()
                own = self._own(zz, rows[b], at[a])
                out[a, b] = own - taken
        return out

    def _own(self, zz: Tensor, columns: Tensor, at: Tensor) -> Tensor:
        """Sum of the entries that rows of levels have in their own columns."""
        layout = self.products.layout
        places = columns if layout.whole else layout.place[columns] % layout.width
        return zz[at, places].sum()

    def _schur_rows(self, at: slice, with_x: bool) -> tuple[Tensor, Tensor]:
        """Rest (rows `at`, where it is whole) and its border, net of the stages."""
        products = self.products
        p, layout = products.p if with_x else 0, products.layout
        border = products.BXY[at, :p].clone()
        zz = products.B[0, at].clone() if layout.whole else products.B.clone()
        for stage in self.stages:
            if stage.C is None:
                continue
            if p:
                weighted = apply(stage.W, stage.XY[:, :, :p])
                border -= stage.C.transposed(weighted)[at]
            if not layout.whole:
                S = stage.C.schur(stage.W)
                zz -= S.tril() + S.tril(-1).mT
                continue
            unit = zz.new_zeros(layout.q, at.stop - at.start)
            unit[at] = torch.eye(at.stop - at.start, dtype=zz.dtype, device=zz.device)
            zz -= stage.C.transposed(apply(stage.W, stage.C.times(unit))).T
        return zz, border


def _nearly_singular(root: Tensor) -> bool:
    if len(root) == 1:
        return abs(float(root)) <= _SMALL
    return float(torch.linalg.svdvals(root).min()) <= _SMALL_OF_VECTOR


def identity_plus_minus(stage: _Eliminated) -> Tensor:
    """``(I + V D)^-1 = I - W D``, by level."""
    return identity_plus(-multiply(stage.W, stage.D))


def _outer(A: Tensor, B: Tensor) -> Tensor:
    """``A_i B_i'`` of rows by level: (a, m, c) and (b, m, c) give (a, b, m)."""
    return torch.linalg.vecdot(A[:, None], B[None])


def factorise(products: Products, roots: list[np.ndarray]) -> Factorisation | None:
    """Factorise at given standardised roots; None where rounding made it impossible.

    Parameters
    ----------
    products : Products
    roots : list of ndarray, each (K, K)
        Lower factors of the relative covariance, by factor of the structure.
    """
    device = products.G.device
    factors = [torch.from_numpy(np.ascontiguousarray(r)).to(device) for r in roots]
    p = products.p
    S, border = products.B.clone(), products.BXY.clone()
    G = products.G.clone()
    stages = [
        _Eliminated(s.D, dict(s.E), s.parent, s.C, s.XY, s.D) for s in products.stages
    ]
    logdet = 0.0
    for stage, j in zip(stages, products.stage_factors, strict=True):
        logdet += _eliminate(stage, factors[j], stages, S, border, G)
    below = [factors[j] for j in products.rest_factors]
    rest: Rest | SparseRest | None
    if isinstance(products.layout, SparseLayout):
        levels = [products.structure.factors[j].m for j in products.rest_factors]
        rest = factorise_sparse(products.layout, S, border, G, below, levels)
    else:
        rest = factorise_rest(products.layout, S, border, G, below, products.positions)
    if rest is None:
        return None
    d = rest.corner.diagonal()
    parts = torch.stack([d[:p].log().sum(), d[-1] ** 2]).tolist()
    logdet_r = float(products.R.diagonal().log().sum())
    return Factorisation(
        products, factors, stages, rest, float(logdet) + rest.logdet,
        2 * parts[0] - 2 * logdet_r, parts[1],
    )  # fmt: skip


def _eliminate(
    stage: _Eliminated,
    root: Tensor,
    stages: list[_Eliminated],
    S: Tensor,
    border: Tensor,
    G: Tensor,
) -> Tensor:
    """Eliminate a stage from all that comes later; return its log-determinant."""
    if takes(stage.D, stage.E, stage.XY) and not (stage.E and stage.C is not None):
        return _eliminate_scalars(stage, root, stages, S, border, G)
    inner, logs = inverse(identity_plus(congruence(root, stage.D)))
    stage.W = congruence(root.T, inner)
    for later, E in stage.E.items():
        parent, above = stage.parent[later], stages[later]
        WE = multiply(stage.W, E)
        above.D = above.D.index_add(2, parent, multiply_transposed(E, WE), alpha=-1)
        for last, E2 in stage.E.items():
            if last > later:
                below = multiply_transposed(WE, E2)
                above.E[last] = above.E[last].index_add(2, parent, below, alpha=-1)
        if stage.C is not None:
            below = apply_transposed(WE, stage.C.C)
            above.C = Dense(above.C.C.index_add(1, parent, below, alpha=-1))
        below = apply_transposed(WE, stage.XY)
        above.XY = above.XY.index_add(1, parent, below, alpha=-1)
    WX = apply(stage.W, stage.XY)
    flat = stage.XY.reshape(-1, stage.XY.shape[2])
    G -= flat.T @ WX.reshape(flat.shape)
    if stage.C is not None:
        S -= stage.C.schur(stage.W)
        border -= stage.C.transposed(WX)
    return logs.sum()


def _eliminate_scalars(
    stage: _Eliminated,
    root: Tensor,
    stages: list[_Eliminated],
    S: Tensor,
    border: Tensor,
    G: Tensor,
) -> Tensor:
    """Do the same for scalar effects and no fixed part."""
    levels = {later: stages[later].D.shape[2] for later in stage.E}
    stage.W, logdet, less_D, less_XY, less_E = eliminate_scalars(
        stage.D, root, stage.E, stage.parent, levels, stage.XY
    )
    for later in stage.E:
        above = stages[later]
        above.D, above.XY = above.D - less_D[later], above.XY - less_XY[later]
    for (later, last), less in less_E.items():
        stages[later].E[last] = stages[later].E[last] - less
    WX = apply(stage.W, stage.XY)
    G -= torch.vdot(stage.XY[0, :, 0], WX[0, :, 0])
    if stage.C is not None:
        S -= stage.C.schur(stage.W)
        border -= stage.C.transposed(WX)
    return S.new_tensor(logdet)


def _directions(k: int) -> list[tuple[int, int, Tensor]]:
    """Symmetric matrices with one or two entries of one, and where these are."""
    out = []
    for a in range(k):
        for b in range(a + 1):
            E = torch.zeros(k, k, dtype=torch.float64)
            E[a, b] = E[b, a] = 1.0
            out.append((a, b, E))
    return out
