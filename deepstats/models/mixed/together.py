"""The criteria of one model for many responses, evaluated at once.

What the levels of the factor with most effects leave of the equations is linear in the
entries of their W: one matrix product for all replicates, each at parameters of its
own. What is left is factorised as a batch of small matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import log, pi

import numpy as np
import torch
from torch import Tensor

from .blocks import identity_plus, inverse, multiply, multiply_transposed
from .products import Products, Vector
from .responses import Responses
from .structure import Structure, Term

__all__ = [
    "Evaluation",
    "Points",
    "Together",
    "curvatures",
    "gradients",
    "term_root",
]

# Up to this many products of columns (entries of W by pairs of columns left) are held.
_MOST_SHARED = 20_000_000


def term_root(term: Term, x: np.ndarray) -> np.ndarray:
    """Lower factors of a term's standardised covariance; (R, K, K)."""
    part = x[:, term.params]
    if term.covariance is not None:
        return np.stack([term.covariance.root(one) for one in part])
    out = np.zeros((len(x), term.k, term.k))
    if term.variances:
        at = np.arange(term.k)
        out[:, at, at] = np.sqrt(np.maximum(part, 0.0))
    else:
        out[:, *term.triangle] = part
    return out


def gradients(
    structure: Structure, x: np.ndarray, slopes: list[np.ndarray]
) -> np.ndarray:
    """`Structure.gradient` of many replicates; (R, k)."""
    out = np.zeros_like(x)
    for term in structure.terms:
        part = slopes[term.factor][:, term.at, term.at]
        if (own := term.covariance) is not None:
            pairs = zip(x[:, term.params], part, strict=True)
            out[:, term.params] = [own.gradient(one, G) for one, G in pairs]
        elif term.variances:
            out[:, term.params] = np.einsum("raa->ra", part)
        else:
            out[:, term.params] = (2 * part @ term_root(term, x))[:, *term.triangle]
    return out


def curvatures(
    structure: Structure, x: np.ndarray, slopes: list[np.ndarray]
) -> np.ndarray:
    """`Structure.curvature` of many replicates; (R, k, k)."""
    out = np.zeros((len(slopes[0]), structure.size, structure.size))
    for term in structure.terms:
        part = slopes[term.factor][:, term.at, term.at]
        if (own := term.covariance) is not None:
            pairs = zip(x[:, term.params], part, strict=True)
            bends = np.array([own.curvature(one, G) for one, G in pairs])
            out[:, term.params, term.params] = bends
        elif not term.variances:
            rows, columns = term.triangle
            part = 2 * part[:, rows[:, None], rows]
            out[:, term.params, term.params] = part * (columns[:, None] == columns)
    return out


@dataclass(eq=False)
class Points:
    """The criterion of some replicates, each at its own parameters.

    Attributes
    ----------
    value, variance : ndarray, shape (A,)
        Criterion and residual variance.
    gradient : ndarray, shape (A, k)
    information : ndarray, shape (A, k, k)
    beta : ndarray, shape (A, p)
    cov_beta : ndarray, shape (A, p, p)
    slopes : ndarray, shape (A, sum of K * K)
        Derivatives in the standardised V of all factors, laid flat.
    """

    value: np.ndarray
    variance: np.ndarray
    gradient: np.ndarray
    information: np.ndarray
    beta: np.ndarray
    cov_beta: np.ndarray
    slopes: np.ndarray


@dataclass(eq=False)
class Together:
    """The criteria of many responses, evaluated at once.

    With stage the factor with most effects and *left* all other columns, fixed effects
    last, ``A = [D F; F' N]``. Arrays of replicates have their number in front, those of
    the stage its levels last.

    Attributes
    ----------
    products : Products
    responses : Responses
    reml : bool
    sigma : float or None
    """

    products: Products
    responses: Responses
    reml: bool
    sigma: float | None = None
    structure: Structure = field(init=False)

    @staticmethod
    def pays(products: Products) -> bool:
        """Whether what replicates share is small enough, and V a plain one."""
        if products.structure.structured:
            return False
        first, *others = products.structure.factors
        left = sum(f.q for f in others) + products.p
        return first.m * first.k**2 * left**2 <= _MOST_SHARED

    def __post_init__(self) -> None:
        products = self.products
        self.structure = products.structure
        first, *others = self.structure.factors
        self.q = sum(f.q for f in others)
        self.size = self.q + products.p
        self.df = products.n - (products.p if self.reml else 0)
        eye = torch.eye(self.size, dtype=torch.float64, device=products.G.device)
        none = eye.new_zeros(first.k, first.m, self.size)
        AU = products.multiply(self._vector(none, eye))
        self.D = products.stages[0].D
        self.F, self.N = self._split(AU)
        u, t = self._split(self.responses.vector)
        self.u, self.t = u.transpose(1, 2), t.T
        k, m = first.k, first.m
        pairs = self.F[:, None, :, :, None] * self.F[None, :, :, None, :]
        self.P = pairs.reshape(k * k * m, self.size**2)
        self.logdet_r = float(products.R.diagonal().log().sum())

    def _vector(self, stage: Tensor, left: Tensor) -> Vector:
        """Join the stage's effects and those of the columns left."""
        parts, start = [stage], 0
        for f in self.structure.factors[1:]:
            part = left[start : start + f.q]
            parts.append(part.reshape(f.m, f.k, -1).transpose(0, 1))
            start += f.q
        return self.products.from_factors(parts, left[start:])

    def _split(self, vector: Vector) -> tuple[Tensor, Tensor]:
        """Undo `_vector`."""
        first, *others = self.products.by_factor(vector)
        left = [p.transpose(0, 1).flatten(0, 1) for p in others]
        return first, torch.cat([*left, vector.X])

    # -- arithmetic of replicates -----------------------------------------------------

    def _times(self, V: Tensor) -> Tensor:
        """``F V`` of the columns left: (A, c, size) gives (K, A, c, m)."""
        return torch.stack([V @ F.T for F in self.F])

    def _transposed(self, V: Tensor) -> Tensor:
        """``F' V``: (K, A, c, m) gives (A, c, size)."""
        out = V[0] @ self.F[0]
        for v, F in zip(V[1:], self.F[1:], strict=True):
            out = out + v @ F
        return out

    def _scaled(self, roots: list[Tensor], V: Tensor, transposed: bool) -> Tensor:
        """Multiply rows of the columns left, (A, size, c), by the factors of V."""
        out, start = [], 0
        for f, root in zip(self.structure.factors[1:], roots[1:], strict=True):
            part = V[:, start : start + f.q]
            if f.k == 1:
                out.append(part * root)
            else:
                L = root.transpose(1, 2) if transposed else root
                part = part.reshape(len(V), f.m, f.k, -1)
                out.append((L[:, None] @ part).reshape(len(V), f.q, -1))
            start += f.q
        return torch.cat([*out, V[:, start:]], dim=1)

    def _roots(self, x: np.ndarray) -> list[Tensor]:
        """Lower factors of every grouping factor; each (A, K, K)."""
        out = [np.zeros((len(x), f.k, f.k)) for f in self.structure.factors]
        for term in self.structure.terms:
            out[term.factor][:, term.at, term.at] = term_root(term, x)
        return [torch.from_numpy(r).to(self.D.device) for r in out]

    def __call__(self, x: np.ndarray, which: np.ndarray) -> Points:
        """Evaluate the criteria of replicates `which` at parameters x, (A, k)."""
        return Evaluation(self, x, which).points()


class Evaluation:
    """One evaluation of some replicates; names as in `elimination`.

    Attributes
    ----------
    W : Tensor, shape (K, K, A, m)
        What elimination of the stage applies to its levels.
    S : Tensor, shape (A, size, size)
        Cross-products of the columns left, net of the stage.
    inner, traced : Tensor, shape (A, size, size)
        Inverse of the penalised S, and that of which the criterion's traces are: for
        maximum likelihood that without the fixed effects.
    s2 : Tensor, shape (A,)
        Residual variances.
    """

    def __init__(self, problem: Together, x: np.ndarray, which: np.ndarray) -> None:
        self.problem, self.x, self.A = problem, x, len(x)
        at = torch.from_numpy(which).to(problem.D.device)
        self.u = problem.u[:, at][:, :, None]
        self.t = problem.t[at][:, None]
        self.squares = problem.responses.squares[at]
        self.center = problem.responses.center[:, at].T
        self.roots = problem._roots(x)
        self._eliminate()
        self._factorise()
        self._solve_response()

    def _eliminate(self) -> None:
        problem, A = self.problem, self.A
        k, _, m = problem.D.shape
        root = self.roots[0].permute(1, 2, 0).repeat_interleave(m, dim=2)
        D = problem.D.repeat(1, 1, A)
        inner, logs = inverse(
            identity_plus(multiply_transposed(root, multiply(D, root)))
        )
        W = multiply(multiply(root, inner), root.transpose(0, 1))
        self.flat_W, self.flat_D = W, D
        self.W = W.reshape(k, k, A, m)
        self.logdet = logs.reshape(A, m).sum(1)
        shared = self.W.permute(2, 0, 1, 3).reshape(A, -1) @ problem.P
        self.S = problem.N - shared.reshape(A, problem.size, problem.size)

    def _apply(self, V: Tensor) -> Tensor:
        """``W V``: (K, A, c, m)."""
        out = [
            sum(w[:, None] * v for w, v in zip(row, V, strict=True)) for row in self.W
        ]
        return torch.stack(out)

    def _factorise(self) -> None:
        problem, q = self.problem, self.problem.q
        M = problem._scaled(self.roots, self.S, True)
        M = problem._scaled(self.roots, M.transpose(1, 2), True)
        M = M.clone()
        M.diagonal(dim1=1, dim2=2)[:, :q].add_(1.0)
        L, info = torch.linalg.cholesky_ex(M)
        self.failed = info != 0
        if bool(self.failed.any()):
            L[self.failed] = torch.eye(len(M[0]), dtype=M.dtype, device=M.device)
        logs = L.diagonal(dim1=1, dim2=2).log()
        self.logdet = self.logdet + 2 * logs[:, :q].sum(1)
        self.logdet_x = 2 * logs[:, q:].sum(1) - 2 * problem.logdet_r
        self.inner = self._unscaled(torch.cholesky_inverse(L))
        if problem.reml:
            self.traced = self.inner
        else:
            self.traced = torch.zeros_like(self.inner)
            if q:
                part = torch.zeros_like(self.inner)
                part[:, :q, :q] = torch.cholesky_inverse(L[:, :q, :q])
                self.traced = self._unscaled(part)

    def _unscaled(self, M: Tensor) -> Tensor:
        M = self.problem._scaled(self.roots, M, False)
        return self.problem._scaled(self.roots, M.transpose(1, 2), False)

    def _solve(self, V: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse of the penalised equations to stage and columns left."""
        WV = self._apply(V)
        left = (left - self.problem._transposed(WV)) @ self.inner
        return WV - self._apply(self.problem._times(left)), left

    def _multiply(self, V: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply by the cross-products of all effects."""
        problem = self.problem
        stage = [sum(d * v for d, v in zip(row, V, strict=True)) for row in problem.D]
        stage = torch.stack(stage) + problem._times(left)
        return stage, problem._transposed(V) + left @ problem.N

    def _solve_response(self) -> None:
        problem = self.problem
        b, left = self._solve(self.u, self.t)
        explained = (b * self.u).sum((0, 2, 3)) + (left * self.t).sum((1, 2))
        self.rss = self.squares - explained
        if problem.sigma is None:
            self.s2 = self.rss / problem.df
        else:
            self.s2 = torch.full_like(self.rss, problem.sigma**2)
        Ab, Aleft = self._multiply(b, left)
        self.r = self._by_factor(self.u - Ab, self.t - Aleft)
        self.beta = self.center + left[:, 0, problem.q :] @ problem.products.R.T

    def _by_factor(self, stage: Tensor, left: Tensor) -> list[Tensor]:
        """Parts of one column by factor; each (A, K, m)."""
        out, start = [stage[:, :, 0].transpose(0, 1)], 0
        for f in self.problem.structure.factors[1:]:
            part = left[:, 0, start : start + f.q].reshape(self.A, f.m, f.k)
            out.append(part.transpose(1, 2))
            start += f.q
        return out

    def points(self) -> Points:
        """Return what Newton's method needs."""
        problem = self.problem
        fit = problem.df if problem.sigma is None else self.rss / self.s2
        value = (
            self.logdet - problem.products.log_weights + fit
            + problem.df * (log(2 * pi) + self.s2.clamp_min(1e-300).log())
        )  # fmt: skip
        if problem.reml:
            value = value + self.logdet_x
        value[self.failed | ~(self.s2 > 0)] = torch.inf
        slopes = self.slopes()
        R, q = problem.products.R, problem.q
        cov = self.s2[:, None, None] * (R @ self.inner[:, q:, q:] @ R.T)
        return Points(
            value.cpu().numpy(), self.s2.cpu().numpy(),
            gradients(problem.structure, self.x, slopes), self._information(slopes),
            self.beta.cpu().numpy(), cov.cpu().numpy(),
            np.concatenate([g.reshape(self.A, -1) for g in slopes], axis=1),
        )  # fmt: skip

    def slopes(self) -> list[np.ndarray]:
        """Differentiate in the standardised V of each factor; (A, K, K)."""
        found = []
        for trace, r in zip(self.traces, self.r, strict=True):
            found.append(trace - r @ r.transpose(1, 2) / self.s2[:, None, None])
        return [slope.cpu().numpy() for slope in found]

    @cached_property
    def K(self) -> Tensor:
        """``I - W D`` of the stage; (K, K, A m)."""
        return identity_plus(-multiply(self.flat_W, self.flat_D))

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Blocks of ``Z'PZ`` of the stage: with no columns left, and what these take.

        Each (K, K, A m).
        """
        problem, A, K = self.problem, self.A, self.K
        k, _, m = problem.D.shape
        Q = self.traced.reshape(A, -1) @ problem.P.T
        Q = Q.reshape(A, k, k, m).permute(1, 2, 0, 3).reshape(k, k, A * m)
        taken = multiply(multiply_transposed(K, Q), K)
        return multiply(self.flat_D, K), taken

    @cached_property
    def traces(self) -> list[Tensor]:
        """``sum_i Z_i'PZ_i`` of each factor; (A, K, K)."""
        problem, A = self.problem, self.A
        k, _, m = problem.D.shape
        alone, taken = self.own
        out = [(alone - taken).reshape(k, k, A, m).sum(3).permute(2, 0, 1)]
        if not problem.q:
            return out
        S = self.S[:, : problem.q]
        product, start = S @ self.traced, 0
        for f in problem.structure.factors[1:]:
            at = slice(start, start + f.q)
            one = product[:, at].reshape(A, f.m, f.k, -1)
            two = S[:, at].reshape(A, f.m, f.k, -1)
            own = S[:, at, at].reshape(A, f.m, f.k, f.m, f.k)
            part = torch.einsum("riaib->rab", own)
            out.append(part - torch.einsum("riac,ribc->rab", one, two))
            start += f.q
        return out

    def _information(self, slopes: list[np.ndarray]) -> np.ndarray:
        """Average information plus the bend of V; (A, k, k)."""
        forms, q = self.forms()
        if self.problem.sigma is None:
            forms = forms - q[:, :, None] * q[:, None, :] / self.problem.df
        return forms + curvatures(self.problem.structure, self.x, slopes)

    def forms(self) -> tuple[np.ndarray, np.ndarray]:
        """``y'P G_a P G_b P y / sigma^2``, (A, k, k), and ``y'P G_a P y / sigma^2``."""
        V, left, quadratic = self._moved()
        AV, Aleft = self._multiply(V, left)
        solved, solved_left = self._solve(AV, Aleft)
        form = torch.einsum("karm,kasm->ars", V, AV) + left @ Aleft.transpose(1, 2)
        form -= torch.einsum("karm,kasm->ars", AV, solved)
        form -= Aleft @ solved_left.transpose(1, 2)
        form = form / self.s2[:, None, None]
        return form.cpu().numpy(), (quadratic / self.s2[:, None]).cpu().numpy()

    def _moved(self) -> tuple[Tensor, Tensor, Tensor]:
        """``dV Z'Py`` for every parameter: stage, columns left, and with ``Z'Py``."""
        structure, A = self.problem.structure, self.A
        k, _, m = self.problem.D.shape
        size = structure.size
        V = self.S.new_zeros(k, A, size, m)
        left = self.S.new_zeros(A, size, self.problem.size)
        quadratic = self.S.new_zeros(A, size)
        starts = np.cumsum([0, 0, *(f.q for f in structure.factors[1:])])
        for term in structure.terms:
            f, r = structure.factors[term.factor], self.r[term.factor]
            moved = self._directions(term, r)
            at = range(term.params.start, term.params.stop)
            for number, part in zip(at, moved, strict=True):
                quadratic[:, number] = (part * r).sum((1, 2))
                if term.factor == 0:
                    V[:, :, number] = part.transpose(0, 1)
                else:
                    place = slice(starts[term.factor], starts[term.factor] + f.q)
                    left[:, number, place] = part.transpose(1, 2).reshape(A, f.q)
        return V, left, quadratic

    def _directions(self, term: Term, r: Tensor) -> list[Tensor]:
        """``dV r`` of the parameters of a term; each (A, K, m)."""
        out, start = [], term.at.start
        if term.variances:
            for a in range(term.k):
                part = torch.zeros_like(r)
                part[:, start + a] = r[:, start + a]
                out.append(part)
            return out
        root = self.roots[term.factor][:, term.at, term.at]
        for row, column in zip(*term.triangle, strict=True):
            part = torch.zeros_like(r)
            across = root[:, :, column, None]
            part[:, start + row] += (across * r[:, term.at]).sum(1)
            part[:, term.at] += across * r[:, start + row, None]
            out.append(part)
        return out
