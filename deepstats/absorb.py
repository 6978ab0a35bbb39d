"""Absorption of high-dimensional fixed effects without dummy columns.

The normal equations of the effects are sparse counts: a diagonal block per factor and,
for each pair of factors, one number per cell that occurs. The largest factor is
eliminated exactly; conjugate gradients solve the Schur complement of the others for
all columns at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from deepstats.errors import ConvergenceWarning, DesignError, ModelError

__all__ = [
    "DOF_RULES",
    "Absorber",
    "components",
    "degrees_of_freedom",
    "nested",
    "recover",
    "singletons",
]

Codes = NDArray[np.integer[Any]]
Array = NDArray[np.floating[Any]]

DOF_RULES = ("nested", "full", "none")
_PATIENCE = 100  # iterations before the preconditioner is strengthened
_COLLINEAR = 1e-10  # within-group slope norms below this fraction are collinear


class Absorber:
    """The weighted projection on the dummies of several factors.

    Parameters
    ----------
    codes : sequence of ndarray of int, shape (n,)
        One array of level codes 0, 1, ... per factor.
    n_levels : sequence of int
        Number of levels of each factor. Levels without rows are allowed.
    weights : array_like, shape (n,), optional
        Non-negative weights. Rows of weight zero do not influence the projection; the
        effect of a level whose weights are all zero is taken as zero.
    slopes : sequence, optional
        One entry per factor: None for intercepts only, or an (n,) or (n, d) array of
        variables whose slopes vary by level beside the intercept.
    device : str or torch.device
        Where the products are computed: "cpu" (scipy) or a torch device.
    tolerance : float
        Convergence is a residual whose level means, in the norm of the weights, are
        below this fraction of the norm of the column.
    max_iterations : int
        Limit on conjugate-gradient iterations.

    Attributes
    ----------
    iterations : int
        Conjugate-gradient iterations of the last solve (0: it was direct).
    converged : bool
        Whether the last solve met the tolerance.

    Raises
    ------
    DesignError
        If shapes disagree, codes are out of range or weights are negative.

    References
    ----------
    .. [1] Guimaraes and Portugal (2010), A simple feasible procedure to fit models
       with high-dimensional fixed effects, Stata Journal 10(4).
    .. [2] Correia (2017), Linear models with high-dimensional fixed effects: an
       efficient and feasible estimator.
    """

    def __init__(
        self,
        codes: Sequence[ArrayLike],
        n_levels: Sequence[int],
        weights: ArrayLike | None = None,
        slopes: Sequence[ArrayLike | None] | None = None,
        *,
        device: str | torch.device = "cpu",
        tolerance: float = 1e-10,
        max_iterations: int = 5000,
    ):
        self.codes = _checked_codes(codes, n_levels)
        self.n_levels = tuple(int(size) for size in n_levels)
        self.n_rows = len(self.codes[0])
        self.weights = _checked_weights(weights, self.n_rows)
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.device = torch.device(device)
        self.has_slopes = slopes is not None and any(s is not None for s in slopes)
        self.iterations, self.converged = 0, True
        self._order = sorted(
            range(len(self.codes)), key=lambda f: -self.n_levels[f]
        )  # the factor eliminated comes first
        self._assemble(slopes)

    def _assemble(self, slopes: Sequence[ArrayLike | None] | None) -> None:
        """Build the sparse blocks of the normal equations."""
        if slopes is not None and len(slopes) != len(self.codes):
            raise DesignError(
                f"slopes must have one entry per factor: {len(self.codes)} factors, "
                f"{len(slopes)} entries"
            )
        designs = []
        for f in self._order:
            z = None if slopes is None else slopes[f]
            designs.append(
                _indicators(self.codes[f], self.n_levels[f])
                if z is None
                else _sloped(self.codes[f], self.n_levels[f], z, self.weights)
            )
        blocks = _NormalEquations(designs, self.weights)
        self._blocks = blocks if self.device.type == "cpu" else blocks.to(self.device)

    def demean(self, M: Any) -> Any:
        """Return the residuals of the columns of M on all effects.

        Parameters
        ----------
        M : ndarray or Tensor, shape (n,) or (n, m)
            Columns to project, all in one solve.

        Returns
        -------
        ndarray or Tensor
            Residuals, of the shape, type and device of `M`.

        Warns
        -----
        ConvergenceWarning
            If the tolerance is not met.
        """
        columns, restore = self._columns(M)
        return restore(self._solve(columns)[1])

    def recover(self, target: ArrayLike) -> list[Array]:
        """Return effects whose sum fits `target` best, normalised.

        Parameters
        ----------
        target : array_like, shape (n,)
            What the effects should explain, e.g. ``y - X @ beta``.

        Returns
        -------
        list of ndarray, shape (n_levels,)
            One vector per factor. In each connected component of the first factor and
            a further one, the first level of the further factor has effect zero.
            Levels without (weighted) rows are NaN.

        Raises
        ------
        ModelError
            If slopes vary by level.
        """
        if self.has_slopes:
            raise ModelError("recover() gives intercepts only: fit without slopes")
        columns, _ = self._columns(np.asarray(target, dtype=float))
        stacked, _ = self._solve(columns)
        values = np.asarray(_to_numpy(stacked))[:, 0]
        cuts = np.cumsum([self.n_levels[f] for f in self._order])[:-1]
        effects: list[Array] = [np.empty(0)] * len(self.codes)
        for f, effect in zip(self._order, np.split(values, cuts), strict=True):
            effects[f] = effect.copy()
        return _normalised(self.codes, self.n_levels, self.weights, effects)

    def _columns(self, M: Any) -> tuple[Any, Any]:
        """Return M as (n, m) float64 on the device and the way back."""
        shape, tensor = tuple(M.shape), isinstance(M, torch.Tensor)
        if shape[:1] != (self.n_rows,) or len(shape) > 2:
            raise DesignError(
                f"expected ({self.n_rows},) or ({self.n_rows}, m), got {shape}"
            )
        home = M.device if tensor else None
        if self.device.type == "cpu":
            array = M.detach().cpu().numpy() if tensor else np.asarray(M)
            columns: Any = np.asarray(array, dtype=float).reshape(self.n_rows, -1)
            finite = bool(np.isfinite(columns.sum(axis=0)).all())
        else:
            columns = torch.as_tensor(M, dtype=torch.float64, device=self.device)
            columns = columns.reshape(self.n_rows, -1)
            finite = bool(torch.isfinite(columns.sum(0)).all())
        if not finite:
            raise DesignError("columns to demean must be finite")

        def restore(R: Any) -> Any:
            R = R.reshape(shape)
            if tensor:
                return torch.as_tensor(R, device=home)
            return _to_numpy(R)

        return columns, restore

    def _solve(self, M: Any) -> tuple[Any, Any]:
        """Return stacked effects and residuals, with the check at the end."""
        blocks = self._blocks
        norm = blocks.norm(M)
        goal = self.tolerance * norm
        effects, iterations = blocks.solve(M, 0.1 * goal, self.max_iterations)
        residual = M - blocks.expand(effects)
        for _ in range(3):  # rounding of large effects: correct from the residual
            self.converged = bool((blocks.violation(residual) <= goal).all())
            if self.converged or iterations >= self.max_iterations:
                break
            more, steps = blocks.solve(
                residual, 0.1 * goal, self.max_iterations - iterations
            )
            effects, iterations = effects + more, iterations + steps
            residual = M - blocks.expand(effects)
        self.iterations = iterations
        if not self.converged:
            worst = float((blocks.violation(residual) / (norm + 1e-300)).max())
            warnings.warn(
                f"fixed effects not absorbed to {self.tolerance:g} after {iterations} "
                f"iterations (level means {worst:.1e} of the norm): raise "
                "max_iterations or drop a nearly nested factor",
                ConvergenceWarning,
                stacklevel=3,
            )
        return effects, residual


class _NormalEquations:
    """Blocks of D'WD and the solver, for scipy or torch sparse matrices alike.

    D1 belongs to the eliminated factor, D2 to all others side by side. All columns of
    one factor are orthogonal, so its own block is diagonal: ``inverse1`` for D1 and
    ``counts2`` for D2. ``others`` holds the products between the factors in D2, None
    if there is but one.
    """

    def __init__(self, designs: Sequence[Any], weights: Array | None):
        import scipy.sparse as sp

        self.w: Any = None if weights is None else weights[:, None]
        first = designs[0]
        self.D1, self.D1t = first, first.T
        self.inverse1 = _inverse(_diagonal(first, weights))[:, None]
        self.paired = len(designs) > 1
        if not self.paired:
            return
        W1t = self.D1t if weights is None else self.D1t * weights[None, :]
        self.N12 = sp.hstack([(W1t @ D).tocsr() for D in designs[1:]], format="csr")
        self.N21 = self.N12.T
        self.D2, self.D2t = list(designs[1:]), [D.T for D in designs[1:]]
        self.cuts = np.cumsum([0] + [D.shape[1] for D in designs[1:]])
        self.counts2 = np.concatenate([_diagonal(D, weights) for D in designs[1:]])
        self.others = self._offdiagonal(designs[1:], weights)
        squares = self.N12.multiply(self.N12).T @ self.inverse1[:, 0]
        schur = self.counts2 - squares
        # A level that is a union of levels of the first factor has no row of its own.
        schur[schur <= 1e-10 * self.counts2] = 0.0
        self.jacobi = _inverse(schur)[:, None]
        self.factor: Any = None
        self.tried = False
        parts = _Schur(self.N12, self.inverse1[:, 0], self.counts2, self.others)
        self.explicit = parts
        self.counts2 = self.counts2[:, None]
        self.inverse2 = _inverse(self.counts2)

    @staticmethod
    def _offdiagonal(designs: Sequence[Any], weights: Array | None) -> Any:
        """Return the cross-products between the factors that are not eliminated."""
        import scipy.sparse as sp

        if len(designs) == 1:
            return None
        rows: list[list[Any]] = [[None] * len(designs) for _ in designs]
        for i, left in enumerate(designs):
            rows[i][i] = sp.csr_array((left.shape[1], left.shape[1]))
            Lt = left.T if weights is None else left.T * weights[None, :]
            for j in range(i + 1, len(designs)):
                rows[i][j] = (Lt @ designs[j]).tocsr()
                rows[j][i] = rows[i][j].T.tocsr()
        return sp.block_array(rows, format="csr")

    def to(self, device: torch.device) -> _NormalEquations:
        """Return the same blocks as torch tensors on a device."""
        moved = object.__new__(_NormalEquations)
        for name, value in vars(self).items():
            if isinstance(value, list):
                value = [_sparse_tensor(item, device) for item in value]
            elif isinstance(value, np.ndarray) and name != "cuts":
                value = torch.as_tensor(value, device=device)
            elif hasattr(value, "tocsr"):
                value = _sparse_tensor(value, device)
            setattr(moved, name, value)
        return moved

    def expand(self, effects: Any) -> Any:
        """Return D times the stacked effects."""
        size = self.D1.shape[1]
        total = self.D1 @ effects[:size]
        if self.paired:
            rest = effects[size:]
            for D, start, stop in zip(self.D2, self.cuts, self.cuts[1:], strict=False):
                total = total + D @ rest[start:stop]
        return total

    def sums(self, M: Any) -> tuple[Any, Any]:
        """Return D1'WM and D2'WM."""
        WM = M if self.w is None else self.w * M
        one = self.D1t @ WM
        if not self.paired:
            return one, None
        return one, _stack([Dt @ WM for Dt in self.D2t])

    def norm(self, M: Any) -> Any:
        """Return the weighted norms of the columns."""
        return ((M * M if self.w is None else self.w * M * M).sum(0)) ** 0.5

    def violation(self, residual: Any) -> Any:
        """Return the norm of the level means of the residuals, factors together."""
        one, two = self.sums(residual)
        total = (one * one * self.inverse1).sum(0)
        if self.paired:
            total = total + (two * two * self.inverse2).sum(0)
        return total**0.5

    def schur(self, V: Any) -> Any:
        """Return the Schur complement of the eliminated factor times V."""
        product = self.counts2 * V - self.N21 @ (self.inverse1 * (self.N12 @ V))
        return product if self.others is None else product + self.others @ V

    def solve(self, M: Any, goal: Any, limit: int) -> tuple[Any, int]:
        """Return stacked effects of the columns of M, and iterations."""
        one, two = self.sums(M)
        if not self.paired:
            return self.inverse1 * one, 0
        rhs = two - self.N21 @ (self.inverse1 * one)
        V, iterations = self._conjugate_gradients(rhs, goal, min(limit, _PATIENCE))
        if iterations == _PATIENCE < limit:
            self.factorise()
            rest = rhs - self.schur(V)
            more, steps = self._conjugate_gradients(rest, goal, limit - iterations)
            V, iterations = V + more, iterations + steps
        return _stack([self.inverse1 * (one - self.N12 @ V), V]), iterations

    def factorise(self) -> None:
        """Precondition by a sparse factorisation of the Schur complement, if small.

        Graphs on which Jacobi is slow are those with few bridges (firms that exchange
        workers with neighbours only), and their factors have little fill-in.
        """
        if self.factor is None and not self.tried:
            self.tried = True
            self.factor = _sparse_factor(self.explicit)

    def precondition(self, r: Any) -> Any:
        """Return an approximate solution of the Schur system."""
        if self.factor is None:
            return self.jacobi * r
        if isinstance(r, torch.Tensor):
            return torch.as_tensor(self.factor.solve(_to_numpy(r)), device=r.device)
        return self.factor.solve(r)

    def _conjugate_gradients(self, r: Any, goal: Any, limit: int) -> tuple[Any, int]:
        """Solve for all columns at once; finished columns take steps of length 0."""
        V, z = 0.0 * r, self.precondition(r)
        p, rho, iteration = z, (r * z).sum(0), 0
        while iteration < limit:
            open_ = (r * r * self.inverse2).sum(0) ** 0.5 > goal
            if not bool(open_.any()):
                break
            Sp = self.schur(p)
            curvature = (p * Sp).sum(0)
            open_ = open_ & (curvature > 0)
            if not bool(open_.any()):
                break
            alpha = open_ * rho / (curvature + ~open_)
            V, r = V + alpha * p, r - alpha * Sp
            z = self.precondition(r)
            new = (r * z).sum(0)
            p = z + (new / (rho + (rho == 0))) * p
            rho, iteration = new, iteration + 1
        return V, iteration


@dataclass(frozen=True)
class _Schur:
    """What the explicit Schur complement is made of, on the CPU."""

    N12: Any
    inverse1: Array
    counts2: Array
    others: Any


def _sparse_factor(parts: _Schur) -> Any:
    """Return a sparse factorisation of the Schur complement, None if it fills in."""
    import scipy.sparse as sp
    from scipy.sparse.linalg import spilu, splu

    size = parts.N12.shape[1]
    work = float((np.diff(parts.N12.indptr).astype(float) ** 2).sum())
    if size > 100_000 or work > 5e7:
        return None
    scaled = sp.diags_array(parts.inverse1) @ parts.N12
    S = sp.diags_array(parts.counts2) - parts.N12.T @ scaled
    if parts.others is not None:
        S = S + parts.others
    # The ridge replaces the zero eigenvalue that every component has.
    S = (S + sp.diags_array(1e-9 * parts.counts2 + (parts.counts2 == 0))).tocsc()
    options = {
        "diag_pivot_thresh": 0.0,
        "permc_spec": "MMD_AT_PLUS_A",
        "options": {"SymmetricMode": True},
    }
    fill = max(20.0, min(4e6, size**2 / 2) / S.nnz)
    probe = S @ np.random.default_rng(0).normal(size=size)
    try:
        # Only this routine has a limit on fill-in; if it lost nothing to the limit,
        # the exact one below needs no more room.
        trial = spilu(S, drop_tol=1e-12, fill_factor=fill, **options)
        if np.abs(S @ trial.solve(probe) - probe).max() > 1e-8 * np.abs(probe).max():
            return None
        return splu(S, **options)
    except RuntimeError:  # an exactly singular pivot
        return None


def _checked_codes(codes: Sequence[ArrayLike], n_levels: Sequence[int]) -> list[Codes]:
    arrays = [np.asarray(c) for c in codes]
    if not arrays or len(arrays) != len(n_levels):
        raise DesignError(
            f"one n_levels per factor is needed: {len(arrays)} factors, "
            f"{len(n_levels)} n_levels"
        )
    for f, (c, size) in enumerate(zip(arrays, n_levels, strict=True)):
        if c.ndim != 1 or c.dtype.kind not in "iu" or len(c) != len(arrays[0]):
            raise DesignError(
                f"codes of factor {f} must be ({len(arrays[0])},) integers, got "
                f"{c.shape} {c.dtype}"
            )
        if len(c) and (c.min() < 0 or c.max() >= size):
            raise DesignError(
                f"codes of factor {f} run from {c.min()} to {c.max()}; they must lie "
                f"in 0..{size - 1} (drop rows with missing levels first)"
            )
    return arrays


def _checked_weights(weights: ArrayLike | None, n: int) -> Array | None:
    if weights is None:
        return None
    w = np.asarray(weights, dtype=float)
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any():
        raise DesignError(f"weights must be ({n},), finite and not negative")
    return w


def _indicators(codes: Codes, size: int, values: Array | None = None) -> Any:
    """Return the (n, size) sparse matrix with one entry per row."""
    import scipy.sparse as sp

    n = len(codes)
    kind = np.int32 if max(n, size) < 2**31 else np.int64
    data = np.ones(n) if values is None else values
    rows = np.arange(n + 1, dtype=kind)
    return sp.csr_array((data, codes.astype(kind), rows), shape=(n, size))


def _sloped(codes: Codes, size: int, z: ArrayLike, weights: Array | None) -> Any:
    """Return intercepts and slopes by level, orthogonal within each level."""
    import scipy.sparse as sp

    Z = np.asarray(z, dtype=float).reshape(len(codes), -1)
    if not np.isfinite(Z).all():
        raise DesignError("slope variables must be finite")
    w = np.ones(len(codes)) if weights is None else weights
    basis = [np.ones(len(codes))]
    for column in Z.T:
        length = np.bincount(codes, w * column**2, size)
        v = column.copy()
        for _ in range(2):  # twice is enough for Gram-Schmidt
            for u in basis:
                inverse = _inverse(np.bincount(codes, w * u * u, size))
                v -= (np.bincount(codes, w * u * v, size) * inverse)[codes] * u
        left = np.bincount(codes, w * v**2, size)
        v[(left <= _COLLINEAR**2 * length)[codes]] = 0.0
        basis.append(v)
    return sp.hstack([_indicators(codes, size, v) for v in basis], format="csr")


def _diagonal(D: Any, weights: Array | None) -> Array:
    squared = D.multiply(D)
    return squared.T @ (np.ones(D.shape[0]) if weights is None else weights)


def _inverse(values: NDArray[Any]) -> Array:
    """Return the pseudo-inverse of a diagonal."""
    return np.where(values > 0, 1.0 / np.where(values > 0, values, 1.0), 0.0)


def _stack(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return np.concatenate(parts)


def _to_numpy(values: Any) -> Array:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def _sparse_tensor(matrix: Any, device: torch.device) -> torch.Tensor:
    csr = matrix.tocsr()
    with warnings.catch_warnings():
        # torch announces that its CSR support is in beta; products are all we use.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        return torch.sparse_csr_tensor(
            torch.as_tensor(csr.indptr.astype(np.int64)),
            torch.as_tensor(csr.indices.astype(np.int64)),
            torch.as_tensor(csr.data),
            size=csr.shape,
            device=device,
        )


def components(first: ArrayLike, second: ArrayLike) -> tuple[int, Codes, Codes]:
    """Return the connected components of the graph that two factors form.

    Parameters
    ----------
    first, second : array_like of int, shape (n,)
        Codes; each row is an edge between a level of one and a level of the other.

    Returns
    -------
    count : int
        Number of components that contain rows.
    of_first, of_second : ndarray of int
        Component of every level. Levels without rows get labels of their own, from
        `count` on.
    """
    import scipy.sparse as sp
    from scipy.sparse.csgraph import connected_components

    a, b = np.asarray(first), np.asarray(second)
    size_a, size_b = _size(a), _size(b)
    edges = (np.ones(len(a), dtype=np.int8), (a, b.astype(np.int64) + size_a))
    graph = sp.coo_array(edges, shape=(size_a + size_b,) * 2)
    total, label = connected_components(graph.tocsr(), directed=False)
    used = np.zeros(total, dtype=bool)
    used[label[a]] = True
    rank = np.argsort(np.argsort(~used, kind="stable"), kind="stable")
    label = rank[label]
    return int(used.sum()), label[:size_a], label[size_a:]


def _size(codes: Codes) -> int:
    return int(codes.max()) + 1 if len(codes) else 0


def singletons(codes: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    """Return the rows to drop because a level has no other row, iteratively.

    Dropping one row may leave another level with a single row; that row is dropped
    too, until none is left. The order does not matter.

    Parameters
    ----------
    codes : sequence of array_like of int, shape (n,)
        One array per factor.

    Returns
    -------
    ndarray of bool, shape (n,)
        True for rows to drop.

    References
    ----------
    .. [1] Correia (2015), Singletons, cluster-robust standard errors and fixed
       effects: a bad mix.
    """
    arrays = _checked_codes(codes, [_size(np.asarray(c)) for c in codes])
    n = len(arrays[0])
    dropped = np.zeros(n, dtype=bool)
    counts = [np.bincount(c, minlength=_size(c)) for c in arrays]
    # The sum of the row numbers of a level is the row itself once one is left.
    rows_of = [np.zeros(len(c), dtype=np.int64) for c in counts]
    for total, c in zip(rows_of, arrays, strict=True):
        np.add.at(total, c, np.arange(n))
    alone = [r[k == 1] for r, k in zip(rows_of, counts, strict=True)]
    while any(len(r) for r in alone):
        rows = np.unique(np.concatenate(alone))
        dropped[rows] = True
        alone = []
        for c, k, r in zip(arrays, counts, rows_of, strict=True):
            np.subtract.at(k, c[rows], 1)
            np.subtract.at(r, c[rows], rows)
            touched = np.unique(c[rows])
            alone.append(r[touched[k[touched] == 1]])
    return dropped


def nested(codes: ArrayLike, cluster: ArrayLike) -> bool:
    """Tell whether every level of a factor lies within one cluster.

    Parameters
    ----------
    codes, cluster : array_like of int, shape (n,)
        Codes of the factor and of the cluster variable.

    Returns
    -------
    bool
        True when no level has rows in two clusters.
    """
    c, g = np.asarray(codes), np.asarray(cluster)
    of_level = np.zeros(_size(c), dtype=g.dtype)
    of_level[c] = g
    return bool((of_level[c] == g).all())


def degrees_of_freedom(
    codes: Sequence[ArrayLike],
    cluster: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    rule: str = "nested",
    exact: bool = True,
) -> int:
    """Return the number of parameters that the fixed effects count for.

    With L levels that occur in each of F factors:

    * ``rule="full"``: all independent dummies. One factor: L. Two: L1 + L2 minus the
      number of connected components. More: sum(L) - (F - 1), an upper bound.
    * ``rule="nested"``: as "full", less L - 1 for every factor nested in a cluster
      variable, so that a constant is still counted. Without clusters it is "full".
    * ``rule="none"``: 0.

    These are the rules of fixest's ``ssc(fixef.K = "nested" | "full" | "none")``,
    reghdfe's being "nested" too. With ``cluster.adj=TRUE, adj=TRUE`` the cluster
    covariance is multiplied by ``G / (G - 1) * (n - 1) / (n - K)``, K being this number
    plus the number of other coefficients. fixest takes sum(L) - (F - 1) for two
    factors also (its ``fixef.force_exact=FALSE``): that is ``exact=False``.

    Parameters
    ----------
    codes : sequence of array_like of int, shape (n,)
        One array per factor.
    cluster : array_like or sequence of array_like, optional
        Cluster codes, one array or several.
    rule : {"nested", "full", "none"}
        Which effects count.
    exact : bool
        Count connected components of two factors.

    Returns
    -------
    int
        Degrees of freedom, the constant included.

    Raises
    ------
    ModelError
        If the rule is unknown.
    """
    if rule not in DOF_RULES:
        raise ModelError(f"rule {rule!r} is not one of {', '.join(DOF_RULES)}")
    arrays = [np.asarray(c) for c in codes]
    if rule == "none" or not arrays:
        return 0
    levels = [int(np.count_nonzero(np.bincount(c))) for c in arrays]
    redundant = len(arrays) - 1
    if exact and len(arrays) == 2:
        redundant = components(*arrays)[0]
    total = sum(levels) - redundant
    if rule == "nested" and cluster is not None:
        clusters = _cluster_list(cluster)
        for c, size in zip(arrays, levels, strict=True):
            if any(nested(c, g) for g in clusters):
                total -= size - 1
    return max(total, 1)


def _cluster_list(cluster: Any) -> list[Codes]:
    if isinstance(cluster, (list, tuple)) and len(cluster) and np.ndim(cluster[0]):
        return [np.asarray(g) for g in cluster]
    return [np.asarray(cluster)]


def recover(
    codes: Sequence[ArrayLike],
    residual_target: ArrayLike,
    weights: ArrayLike | None = None,
) -> list[Array]:
    """Return estimated fixed effects, for prediction.

    Parameters
    ----------
    codes : sequence of array_like of int, shape (n,)
        One array per factor.
    residual_target : array_like, shape (n,)
        What the effects explain: ``y - X @ beta``.
    weights : array_like, shape (n,), optional
        Weights of the fit.

    Returns
    -------
    list of ndarray
        One vector per factor, normalised as in `Absorber.recover`.
    """
    arrays = [np.asarray(c) for c in codes]
    absorber = Absorber(arrays, [_size(c) for c in arrays], weights)
    return absorber.recover(residual_target)


def _normalised(
    codes: Sequence[Codes],
    n_levels: Sequence[int],
    weights: Array | None,
    effects: list[Array],
) -> list[Array]:
    """Move constants so that first levels of further factors are zero."""
    kept = slice(None) if weights is None else weights > 0
    for f in range(1, len(codes)):
        first, further = codes[0][kept], codes[f][kept]
        count, of_first, of_further = components(first, further)
        start = np.full(len(of_further) + count + len(of_first), len(of_further))
        np.minimum.at(start, of_further, np.arange(len(of_further)))
        live = of_further < count
        shift = effects[f][start[:count]]
        effects[f][: len(of_further)][live] -= shift[of_further[live]]
        live = of_first < count
        effects[0][: len(of_first)][live] += shift[of_first[live]]
    for f, size in enumerate(n_levels):
        present = np.bincount(codes[f][kept], minlength=size) > 0
        effects[f][~present] = np.nan
    return effects
