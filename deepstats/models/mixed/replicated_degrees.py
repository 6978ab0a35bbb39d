"""Degrees of freedom of many replicates of one model, as tensors.

What `degrees` and `information` do for one fit, replicates along the first axis. With
the stage eliminated, L the columns left and Sigma_1 the covariance without them,
everything rests on the small matrices

    S = L'Sigma_1^-1 L   and   T_a = L'Sigma_1^-1 G_a Sigma_1^-1 L,   G_a = Z D_a Z',

for the entries D_a of the covariances of the stage, and on M, the inverse of the
equations of the columns left:

    P = Sigma_1^-1 - Sigma_1^-1 L M L'Sigma_1^-1.

For a factor among the columns left ``G_a = L E_a L'`` with a matrix E_a of blocks.
Sums over the levels of the stage are products with the shared matrix of `Together`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .blocks import multiply
from .degrees import approximate_f
from .information import pseudo_inverse
from .structure import Structure
from .together import Evaluation, Together, curvatures, term_root

__all__ = ["KenwardRogers", "kenward_rogers", "satterthwaites"]

# Elements of the largest arrays of the replicates worked on at once.
_ELEMENTS = 10_000_000


# -- Kenward & Roger ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KenwardRogers:
    """`degrees.KenwardRoger` of many replicates.

    Attributes
    ----------
    plain, covariance : ndarray, shape (R, p, p)
        Covariance of the fixed effects as estimated, and adjusted for its bias.
    slopes : ndarray, shape (R, count, p, p)
        Derivatives of the plain covariance in the covariance parameters.
    W : ndarray, shape (R, count, count)
        Asymptotic covariance of the covariance parameters.
    """

    plain: np.ndarray
    covariance: np.ndarray
    slopes: np.ndarray
    W: np.ndarray

    def moments(self, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Denominator degrees of freedom and scales of ``F`` for ``R beta``.

        Parameters
        ----------
        R : ndarray, shape (q, p)
            Of rank q.

        Returns
        -------
        df, scale : ndarray, shape (R,)
            As of `degrees.KenwardRoger.moments`.
        """
        q = len(R)
        middle = np.linalg.inv(R @ self.plain @ R.T)
        U = middle[:, None] @ (R @ self.slopes @ R.T)
        t = np.einsum("raii->ra", U)
        A1 = np.einsum("ra,rab,rb->r", t, self.W, t)
        A2 = np.einsum("rab,raij,rbji->r", self.W, U, U, optimize=True)
        pairs = zip(A1.tolist(), A2.tolist(), strict=True)
        found = np.array([approximate_f(*pair, q) for pair in pairs]).reshape(-1, 2)
        return found[:, 0], found[:, 1]


def kenward_rogers(
    problem: Together, x: np.ndarray, which: np.ndarray
) -> KenwardRogers:
    """Adjust the covariance of the fixed effects of every replicate.

    Parameters
    ----------
    problem : Together
        By REML.
    x : ndarray, shape (R, k)
        Optima of these replicates.
    which : ndarray of int, shape (R,)
        Their numbers.

    References
    ----------
    See `degrees.kenward_roger`.
    """
    parts = [_adjusted(moved) for moved in _pieces(problem, x, which)]
    return KenwardRogers(
        *(np.concatenate([getattr(part, name) for part in parts])
          for name in ("plain", "covariance", "slopes", "W"))
    )  # fmt: skip


def _adjusted(moved: _Moved) -> KenwardRogers:
    problem, e = moved.problem, len(moved.entries)
    information, C = moved.information, moved.covariance
    slopes = moved.covariance_slopes
    if problem.sigma is None:
        every = np.empty((len(C), e + 1, e + 1))
        every[:, :e, :e] = information
        every[:, :e, e] = every[:, e, :e] = moved.traces
        every[:, e, e] = problem.df
        information = every
        slopes = np.concatenate([slopes, C[:, None]], axis=1)
    W = 2 * np.stack([pseudo_inverse(one) for one in information])
    bias = moved.bias(torch.from_numpy(W[:, :e, :e].copy()).to(moved.device))
    s2 = moved.at.s2.cpu().numpy()[:, None, None]
    return KenwardRogers(s2 * C, s2 * (C + 2 * bias), s2[:, None] * slopes, W)


# -- Satterthwaite --------------------------------------------------------------------


def satterthwaites(
    problem: Together, x: np.ndarray, which: np.ndarray, R: np.ndarray
) -> np.ndarray:
    """`degrees.satterthwaite` of every replicate.

    Parameters
    ----------
    problem : Together
    x : ndarray, shape (R, k)
        Optima of these replicates.
    which : ndarray of int, shape (R,)
        Their numbers.
    R : ndarray, shape (R, q, p) or (q, p)
        Contrasts, of each replicate or of all.

    Returns
    -------
    ndarray, shape (R, q)
    """
    R = np.broadcast_to(R, (len(x), *R.shape[-2:]))
    out = np.empty(R.shape[:2])
    start = 0
    for moved in _pieces(problem, x, which):
        at = slice(start, start + len(moved.x))
        out[at] = _contrast_df(moved, R[at])
        start = at.stop
    return out


def _contrast_df(moved: _Moved, R: np.ndarray) -> np.ndarray:
    problem, structure, x = moved.problem, moved.structure, moved.x
    k = structure.size
    J = _jacobians(structure, x)
    free = x > structure.lower
    forms, across = moved.at.forms()
    size = k + (problem.sigma is None)
    H = np.zeros((len(x), size, size))
    H[:, :k, :k] = curvatures(structure, x, moved.at.slopes()) + 2 * forms
    H[:, :k, :k] -= J @ moved.information @ J.transpose(0, 2, 1)
    if problem.sigma is None:
        H[:, :k, k] = H[:, k, :k] = across
        H[:, k, k] = problem.df
        free = np.column_stack([free, np.ones(len(x), bool)])
    covariance = np.zeros_like(H)
    for here, one, kept in zip(covariance, H, free, strict=True):
        at = np.ix_(kept, kept)
        here[at] = 2 * pseudo_inverse(one[at])
    v = np.einsum("rqi,rij,rqj->rq", R, moved.covariance, R, optimize=True)
    g = np.zeros((*v.shape, size))
    slopes = np.einsum("rpe,reij->rpij", J, moved.covariance_slopes)
    g[:, :, :k] = np.einsum("rqi,raij,rqj->rqa", R, slopes, R, optimize=True)
    if problem.sigma is None:
        g[:, :, k] = v
    spread = np.einsum("rqa,rab,rqb->rq", g, covariance, g, optimize=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, 2 * v**2 / spread, np.inf)


def _jacobians(structure: Structure, x: np.ndarray) -> np.ndarray:
    """Differentiate V in the parameters, as combinations of its entries; (R, k, k)."""
    out = np.zeros((len(x), structure.size, structure.size))
    for term in structure.terms:
        start = term.params.start
        if term.variances:
            at = np.arange(start, term.params.stop)
            out[:, at, at] = 1.0
            continue
        root, pairs = term_root(term, x), list(zip(*term.triangle, strict=True))
        place = {pair: start + number for number, pair in enumerate(pairs)}
        for (r, c), row in place.items():
            for j in range(term.k):
                entry = place[max(r, j), min(r, j)]
                out[:, row, entry] += (1 + (j == r)) * root[:, j, c]
    return out


# -- what both rest on ----------------------------------------------------------------


def _pieces(problem: Together, x: np.ndarray, which: np.ndarray) -> Iterator[_Moved]:
    """Replicates in numbers that fit the memory."""
    k, _, m = problem.D.shape
    count = max(problem.structure.size, 1)
    each = count * problem.size**2 + (count + 4) * k * k * m
    step = max(1, _ELEMENTS // max(each, 1))
    for start in range(0, len(x), step):
        at = slice(start, start + step)
        yield _Moved(problem, x[at], which[at])


@dataclass(eq=False)
class _Moved:
    """Derivatives of Sigma in every entry of V, at the optima of some replicates.

    Attributes
    ----------
    problem : Together
    x : ndarray, shape (A, k)
    which : ndarray of int, shape (A,)
    """

    problem: Together
    x: np.ndarray
    which: np.ndarray

    def __post_init__(self) -> None:
        self.at = Evaluation(self.problem, self.x, self.which)
        self.structure, self.A = self.problem.structure, len(self.x)
        self.device, self.q = self.problem.D.device, self.problem.q
        self.entries = self.structure.entries
        self.D = [torch.from_numpy(D).to(self.device) for _, D in self.entries]
        self.stage = [a for a, (j, _) in enumerate(self.entries) if j == 0]
        self.rest = [a for a, (j, _) in enumerate(self.entries) if j > 0]

    @cached_property
    def places(self) -> list[slice]:
        """Columns left of each factor; none of the stage."""
        ends = np.cumsum([0, *(f.q for f in self.structure.factors[1:])]).tolist()
        return [slice(0, 0), *(slice(a, b) for a, b in pairwise(ends))]

    def _levels(self, V: Tensor, a: int) -> Tensor:
        """Rows of the columns left of an entry's factor by level: (..., m, K, c)."""
        j = self.entries[a][0]
        f = self.structure.factors[j]
        return V[..., self.places[j], :].unflatten(-2, (f.m, f.k))

    # -- fixed effects ---------------------------------------------------------------

    @cached_property
    def _fixed(self) -> Tensor:
        """``M`` of the columns left and the fixed effects: ``L Mx = X C + Z b``."""
        return self.at.inner[:, :, self.q :]

    @cached_property
    def _weights(self) -> Tensor:
        """``L'Sigma^-1 X C``; (A, size, p)."""
        return self.at.S @ self._fixed

    @cached_property
    def T(self) -> Tensor:
        """``T_a`` of the entries of the stage; (A, count, size, size)."""
        K, out = self.at.K, []
        for a in self.stage:
            inner = multiply(multiply(K, self.D[a][:, :, None]), K.transpose(0, 1))
            out.append(self._summed(inner))
        return torch.stack(out, dim=1)

    def _summed(self, inner: Tensor) -> Tensor:
        """``sum_i F_i' inner_i F_i`` over levels of the stage; (A, size, size)."""
        problem = self.problem
        k, _, m = problem.D.shape
        flat = inner.reshape(k, k, self.A, m).permute(2, 0, 1, 3).reshape(self.A, -1)
        return (flat @ problem.P).reshape(self.A, problem.size, problem.size)

    @cached_property
    def _moved_weights(self) -> dict[int, Tensor]:
        """``E_a L'Sigma^-1 X C`` of entries of the columns left; (A, size, p)."""
        out = {}
        for a in self.rest:
            moved = torch.zeros_like(self._weights)
            part = self.D[a] @ self._levels(self._weights, a)
            moved[:, self.places[self.entries[a][0]]] = part.flatten(1, 2)
            out[a] = moved
        return out

    @cached_property
    def _slopes(self) -> Tensor:
        """``L'Sigma_1^-1 G_a Sigma^-1 X C`` of every entry; (A, count, size, p)."""
        out = [self.at.S.new_zeros(0)] * len(self.entries)
        for number, a in enumerate(self.stage):
            out[a] = self.T[:, number] @ self._fixed
        for a in self.rest:
            out[a] = self.at.S @ self._moved_weights[a]
        return torch.stack(out, dim=1)

    @property
    def covariance(self) -> np.ndarray:
        """``(X'Sigma^-1 X)^-1`` of the columns of the design; (A, p, p)."""
        return self._of_design(self.at.inner[:, self.q :, self.q :])

    @cached_property
    def covariance_slopes(self) -> np.ndarray:
        """Its derivative in every entry; (A, count, p, p)."""
        return self._of_design(self._fixed.transpose(1, 2)[:, None] @ self._slopes)

    def _of_design(self, C: Tensor) -> np.ndarray:
        R = self.problem.products.R
        return (R @ C @ R.T).cpu().numpy()

    # -- traces ----------------------------------------------------------------------

    @cached_property
    def traces(self) -> np.ndarray:
        """``tr(P G_a)``; (A, count)."""
        found = self.at.traces
        out = [(found[j] * D).sum((1, 2)) for (j, _), D in self._directions]
        return torch.stack(out, dim=1).cpu().numpy()

    @property
    def _directions(self) -> list[tuple[tuple[int, np.ndarray], Tensor]]:
        return list(zip(self.entries, self.D, strict=True))

    @cached_property
    def information(self) -> np.ndarray:
        """``tr(P G_a P G_b)``, of the criterion's P; (A, count, count)."""
        count = len(self.entries)
        out = self.at.S.new_zeros(self.A, count, count)
        self._within_stage(out)
        if self.rest:
            self._stage_and_rest(out)
            self._within_rest(out)
        return out.cpu().numpy()

    def _stacked(self, chosen: list[int]) -> Tensor:
        """Entries laid flat; (count, K * K)."""
        return torch.stack([self.D[a].reshape(-1) for a in chosen])

    def _within_stage(self, out: Tensor) -> None:
        k, _, m = self.problem.D.shape
        alone, taken = (
            H.reshape(k * k, self.A, m).transpose(0, 1) for H in self.at.own
        )
        cross = alone @ taken.transpose(1, 2)
        four = alone @ alone.transpose(1, 2) - cross - cross.transpose(1, 2)
        # D_a[r, s] H[s, t] D_b[t, u] H[u, r]
        middle = four.reshape(-1, k, k, k, k).permute(0, 4, 1, 2, 3)
        D, MT = self._stacked(self.stage), self.at.traced[:, None] @ self.T
        found = D @ middle.reshape(-1, k * k, k * k) @ D.T
        found = found + torch.einsum("raij,rbji->rab", MT, MT)
        at = torch.tensor(self.stage, device=self.device)
        out[:, at[:, None], at] = found

    @cached_property
    def _off(self) -> Tensor:
        """``I - M S``, by which P differs from Sigma_1^-1; (A, size, q)."""
        out = -(self.at.traced @ self.at.S[:, :, : self.q])
        out[:, : self.q].diagonal(dim1=1, dim2=2).add_(1.0)
        return out

    def _stage_and_rest(self, out: Tensor) -> None:
        off = self._off.transpose(1, 2)
        for number, a in enumerate(self.stage):
            moved = (self.T[:, number] @ self._off).transpose(1, 2)
            for b in self.rest:
                one, two = self._levels(off, b), self._levels(moved, b)
                block = torch.einsum("rmkc,rmlc->rkl", one, two)
                out[:, a, b] = out[:, b, a] = (block * self.D[b]).sum((1, 2))

    def _within_rest(self, out: Tensor) -> None:
        H = (self.at.S @ self._off)[:, : self.q]
        for i, one in enumerate(self.structure.factors):
            for j, two in enumerate(self.structure.factors):
                rows = [a for a in self.rest if self.entries[a][0] == i]
                columns = [b for b in self.rest if self.entries[b][0] == j]
                if not (rows and columns):
                    continue
                X = H[:, self.places[i], self.places[j]]
                X = X.reshape(-1, one.m, one.k, two.m, two.k).permute(0, 2, 4, 1, 3)
                X = X.reshape(self.A, one.k * two.k, -1)
                four = (X @ X.transpose(1, 2)).reshape(-1, one.k, two.k, one.k, two.k)
                four = four.permute(0, 3, 1, 2, 4).reshape(-1, one.k**2, two.k**2)
                found = self._stacked(rows) @ four @ self._stacked(columns).T
                at = torch.tensor(rows, device=self.device)[:, None]
                out[:, at, torch.tensor(columns, device=self.device)] = found

    # -- bias ------------------------------------------------------------------------

    def bias(self, W: Tensor) -> np.ndarray:
        """``sum_ab W_ab C X'Sigma^-1 G_a P G_b Sigma^-1 X C``; (A, p, p).

        Parameters
        ----------
        W : Tensor, shape (A, count, count)
        """
        Y = self._slopes
        weighted = torch.einsum("rab,rbsp->rasp", W, Y)
        taken = Y.transpose(2, 3) @ (self.at.inner[:, None] @ weighted)
        out = self._stage_bias(W) - taken.sum(1)
        for b in self.rest:
            moved = self._moved_weights[b].transpose(1, 2)
            # The stage with columns left, twice, and these among themselves.
            for a in range(len(self.entries)):
                cross = W[:, a, b, None, None] * (moved @ Y[:, a])
                times = 1.0 if a in self.stage else 0.5
                out = out + times * (cross + cross.transpose(1, 2))
        return self._of_design(out)

    def _stage_bias(self, W: Tensor) -> Tensor:
        """Of the stage with itself, without the columns left."""
        k, _, m = self.problem.D.shape
        at = torch.tensor(self.stage, device=self.device)
        D = torch.stack([self.D[a] for a in self.stage])
        # W_ab D_a[r, s] H[s, t] D_b[t, u]
        four = torch.einsum("xab,ars,btu->xrust", W[:, at[:, None], at], D, D)
        alone = self.at.own[0].reshape(k * k, self.A, m).transpose(0, 1)
        inner = four.reshape(-1, k * k, k * k) @ alone
        inner = inner.transpose(0, 1).reshape(k, k, self.A * m)
        K = self.at.K
        summed = self._summed(multiply(multiply(K, inner), K.transpose(0, 1)))
        return self._fixed.transpose(1, 2) @ summed @ self._fixed
