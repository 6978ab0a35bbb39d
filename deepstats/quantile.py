"""Linear quantile regression, solved exactly to a vertex of its linear program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DesignError

__all__ = ["QuantileFit", "check_loss", "fit_quantile"]

Array = NDArray[np.floating[Any]]

_RANK_TOLERANCE = 1e-12
ZERO = 1e-12  # residuals below this fraction of the scale of y are zero
_DUAL_TOLERANCE = 1e-9
_SUBSAMPLE_ABOVE = 20_000


@dataclass(frozen=True)
class QuantileFit:
    """The minimiser of a weighted check loss.

    Attributes
    ----------
    params : ndarray, shape (k,)
        Coefficients; they interpolate the rows in `basis`.
    objective : float
        Sum of (weighted) check losses at `params`.
    basis : ndarray of int, shape (k,)
        Rows of the data with residual zero that define the vertex.
    dual_ok : bool
        The subgradient condition holds: `params` is a global minimum.
    nonunique : bool
        Other coefficients give the same objective.
    iterations : int
        Interior-point iterations plus simplex steps.
    gap : float
        Primal minus dual objective, relative to ``1 + objective``.
    converged : bool
        The vertex is optimal (`dual_ok`, and the gap is rounding error).
    message : str
        One sentence on how the fit ended.
    """

    params: Array
    objective: float
    basis: NDArray[np.intp]
    dual_ok: bool
    nonunique: bool
    iterations: int
    gap: float
    converged: bool
    message: str


@dataclass(frozen=True)
class _Vertex:
    """A basis, the side of every other row, and how it was reached."""

    basis: NDArray[np.intp]
    side: Array  # (n,) +1 above, -1 below
    center: Array  # (k,) interior point, in the middle of the optimal face
    iterations: int


def check_loss(residual: ArrayLike, q: float) -> Array:
    """Return the check loss ``residual * (q - 1[residual < 0])``.

    Parameters
    ----------
    residual : array_like
        Residuals.
    q : float
        Quantile level.

    Returns
    -------
    ndarray
        Losses, of the shape of `residual`.
    """
    residual = np.asarray(residual, dtype=float)
    return np.where(residual < 0, q - 1.0, q) * residual


def fit_quantile(
    X: ArrayLike, y: ArrayLike, q: float, weights: ArrayLike | None = None
) -> QuantileFit:
    """Fit a linear quantile regression exactly.

    An interior-point method [1]_ finds the neighbourhood of the solution, simplex
    steps along the edges of the polyhedron [2]_ finish at a vertex whose subgradient
    is checked. With many rows, those far from the fit are summed into two
    pseudo-rows and the signs of their residuals verified afterwards [1]_.

    Parameters
    ----------
    X : array_like, shape (n, k)
        Design of full column rank.
    y : array_like, shape (n,)
        Response.
    q : float
        Quantile level, strictly between 0 and 1.
    weights : array_like, shape (n,), optional
        Non-negative weights of the check losses.

    Returns
    -------
    QuantileFit
        Coefficients and the certificate of their optimality.

    Raises
    ------
    DesignError
        If shapes disagree, values are not finite, weights are negative or the
        columns of `X` are linearly dependent.
    ValueError
        If `q` is not strictly between 0 and 1.

    References
    ----------
    .. [1] Portnoy and Koenker (1997), The Gaussian hare and the Laplacian tortoise,
       Statistical Science 12(4).
    .. [2] Koenker and d'Orey (1987), Computing regression quantiles, Applied
       Statistics 36(3).
    """
    X, y, q = checked(X, y, q)
    kept, A, b = weighted_rows(X, y, weights)
    Z, T = _orthonormal(A)
    unit = float(np.abs(b).max()) or 1.0
    vertex = _solve(Z, b / unit, q)
    center = T @ vertex.center * unit
    return _certify(A, b, q, replace(vertex, center=center), kept)


def checked(X: ArrayLike, y: ArrayLike, q: float) -> tuple[Array, Array, float]:
    """Check shapes, levels and values."""
    X, y = np.asarray(X, dtype=float), np.asarray(y, dtype=float)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise DesignError(
            f"X must be (n, k) and y (n,); got X {X.shape} and y {y.shape}"
        )
    if not 0.0 < q < 1.0:
        raise ValueError(f"q must be strictly between 0 and 1, got {q!r}")
    if not (np.isfinite(X).all() and np.isfinite(y).all()):
        raise DesignError("X and y must be finite: drop missing or infinite rows")
    return X, y, float(q)


def weighted_rows(
    X: Array, y: Array, weights: ArrayLike | None
) -> tuple[NDArray[np.intp], Array, Array]:
    """Rows with positive weight, multiplied by it: rho is positively homogeneous."""
    if weights is None:
        return np.arange(len(y)), X, y
    w = np.asarray(weights, dtype=float)
    if w.shape != y.shape or not np.isfinite(w).all() or (w < 0).any():
        raise DesignError("weights must be (n,), finite and not negative")
    kept = np.flatnonzero(w > 0)
    return kept, X[kept] * w[kept, None], y[kept] * w[kept]


def _orthonormal(X: Array) -> tuple[Array, Array]:
    """Return ``X T`` with columns of length sqrt(n), orthogonal, and T."""
    from scipy.linalg import qr, solve_triangular

    n, k = X.shape
    if k == 0:
        raise DesignError("X has no columns: a quantile regression needs at least one")
    if n < k:
        raise DesignError(f"{k} columns need at least {k} rows, got {n}")
    scale = np.abs(X).max(axis=0)
    scale[scale == 0] = 1.0
    R = triangle(X / scale)
    _, pivoted, order = qr(R, pivoting=True)
    size = np.abs(np.diag(pivoted))
    dependent = order[size <= _RANK_TOLERANCE * size[0]]
    if size[0] == 0 or len(dependent):
        raise DesignError(
            f"X has rank {k - len(dependent)} with {k} columns: drop column(s) "
            f"{sorted(map(int, dependent))}, which depend linearly on the others"
        )
    # R belongs to the scaled columns, so the scale divides the rows of its inverse.
    T = solve_triangular(R, np.eye(k)) * np.sqrt(n) / scale[:, None]
    return X @ T, T


def triangle(X: Array) -> Array:
    """Return R of the QR factorisation, by row blocks that stay in the cache."""
    n, k = X.shape
    rows = max(8192, 4 * k)
    blocks = [np.linalg.qr(X[i : i + rows], mode="r") for i in range(0, n, rows)]
    R: Any = np.linalg.qr(np.concatenate(blocks), mode="r")
    return R


def _solve(X: Array, y: Array, q: float) -> _Vertex:
    """Return an optimal vertex for a well-conditioned design."""
    n, k = X.shape
    if n > _SUBSAMPLE_ABOVE and n > 50 * k:
        vertex = _solve_globbed(X, y, q)
        if vertex is not None:
            return vertex
    beta, iterations = _interior_point(X, y, q)
    vertex = _finish(X, y, q, beta)
    return replace(vertex, iterations=vertex.iterations + iterations)


def _glob(
    X: Array, y: Array, residual: Array, work: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Return the working rows followed by the sums of those above and below."""
    signs = [~work & (residual >= 0), ~work & (residual < 0)]
    sums_X = np.array([s.astype(float) @ X for s in signs])
    sums_y = np.array([s.astype(float) @ y for s in signs])
    return np.concatenate([X[work], sums_X]), np.concatenate([y[work], sums_y])


def _solve_globbed(X: Array, y: Array, q: float) -> _Vertex | None:
    """Fit a subsample, sum the rows far from it, solve, verify their signs."""
    n, k = X.shape
    m = int(2 * (k * n) ** (2 / 3))
    if m > n // 3:
        return None
    rows = np.sort(np.random.default_rng(n).choice(n, m, replace=False))
    if np.linalg.matrix_rank(X[rows]) < k:
        return None
    beta, iterations = _interior_point(X[rows], y[rows], q)
    # The columns are orthonormal, so a row's leverage is its length.
    residual = y - X @ beta
    distance = np.abs(residual) / np.sqrt(np.einsum("ij,ij->i", X, X) + 1e-300)
    cut = np.partition(distance, m)[m]
    work = distance <= cut
    if work.sum() > n // 2:
        return None
    for _ in range(8):
        vertex = _sub_vertex(X, y, q, residual, work)
        iterations += vertex.iterations
        wrong = _wrong_signs(X, y, residual, work, vertex.basis)
        if wrong is None or wrong.sum() > m:
            return None
        if not wrong.any():
            return replace(vertex, iterations=iterations)
        work |= wrong
    return None


def _sub_vertex(
    X: Array, y: Array, q: float, residual: Array, work: NDArray[np.bool_]
) -> _Vertex:
    """Solve the working rows plus pseudo-rows; express the answer in all rows."""
    A, b = _glob(X, y, residual, work)
    beta, steps = _interior_point(A, b, q)
    inner = _finish(A, b, q, beta)
    rows = np.append(np.flatnonzero(work), [-1, -1])
    side = np.where(residual >= 0, 1.0, -1.0)
    side[work] = inner.side[:-2]
    return _Vertex(rows[inner.basis], side, inner.center, inner.iterations + steps)


def _wrong_signs(
    X: Array,
    y: Array,
    residual: Array,
    work: NDArray[np.bool_],
    basis: NDArray[np.intp],
) -> NDArray[np.bool_] | None:
    """Return summed rows on the wrong side of the vertex (None: a sum is in it)."""
    if (basis < 0).any():
        return None
    beta = np.linalg.solve(X[basis], y[basis])
    signed = np.where(residual >= 0, 1.0, -1.0) * (y - X @ beta)
    return ~work & (signed < -ZERO * _size(X, y, beta))


def _size(X: Array, y: Array, beta: Array) -> Array:
    """Return what the rounding error of each residual is proportional to.

    By row, because the pseudo-rows are larger than the rest by orders of magnitude.
    """
    return np.abs(y) + np.abs(X).sum(axis=1) * np.abs(beta).max() + 1e-30


def _interior_point(X: Array, y: Array, q: float) -> tuple[Array, int]:
    """Frisch-Newton predictor-corrector for the bounded dual program.

    ``min -y'a  s.t.  X'a = (1 - q) X'1,  0 <= a <= 1``; beta is the multiplier.
    Symbols: a (primal), s = 1 - a, z and w their multipliers (Portnoy and Koenker
    1997, section 4).
    """
    n, k = X.shape
    beta = np.linalg.lstsq(X, y, rcond=None)[0]
    if n == k:
        return beta, 0
    residual = y - X @ beta
    size = float(_size(X, y, beta).sum())
    delta = max(float(np.abs(residual).mean()), 1e-10 * size / n) * 0.1
    a, s = np.full(n, 1 - q), np.full(n, q)
    z, w = np.maximum(-residual, 0) + delta, np.maximum(residual, 0) + delta
    small = 1e-11 * float(np.abs(residual).sum()) + 1e-14 * size
    iteration = 0
    while iteration < 60:
        iteration += 1
        gap = float(a @ z + s @ w)
        if gap <= small:
            break
        try:
            step = _newton_step(X, a, s, z, w, gap, target=(1 - q) * X.sum(axis=0))
        except np.linalg.LinAlgError:
            break
        da, dz, dw, db, forward, backward = step
        if not np.isfinite(db).all():
            break
        a, s = a + forward * da, s - forward * da
        z, w, beta = z + backward * dz, w + backward * dw, beta + backward * db
        if max(forward, backward) < 1e-8:
            break
    return beta, iteration


def _newton_step(
    X: Array, a: Array, s: Array, z: Array, w: Array, gap: float, target: Array
) -> tuple[Array, Array, Array, Array, float, float]:
    """Return the Mehrotra step and its two lengths.

    Dual feasibility ``X beta - z + w = y`` is kept by every step, so the right-hand
    side holds only complementarity and the drift in ``X'a = target``.
    """
    D = 1.0 / (z / a + w / s)
    factor = np.linalg.cholesky((X * D[:, None]).T @ X)
    drift = target - X.T @ a

    def direction(az: Array, sw: Array) -> tuple[Array, Array, Array, Array]:
        # az, sw: what a dz + z da and s dw + w ds should come to.
        xi = az / a - sw / s
        db = np.linalg.solve(factor.T, np.linalg.solve(factor, X.T @ (D * xi) - drift))
        da = D * (xi - X @ db)
        return da, (az - z * da) / a, (sw + w * da) / s, db

    def lengths(da: Array, dz: Array, dw: Array) -> tuple[float, float]:
        forward = max(float(np.max(-da / a)), float(np.max(da / s)))
        backward = max(float(np.max(-dz / z)), float(np.max(-dw / w)))
        return min(1.0, 0.99995 / max(forward, 1e-300)), min(
            1.0, 0.99995 / max(backward, 1e-300)
        )

    da, dz, dw, db = direction(-a * z, -s * w)
    forward, backward = lengths(da, dz, dw)
    if min(forward, backward) < 1.0:
        ahead = float(
            (a + forward * da) @ (z + backward * dz)
            + (s - forward * da) @ (w + backward * dw)
        )
        mu = (ahead / gap) ** 2 * ahead / (2 * len(a))
        da, dz, dw, db = direction(mu - a * z - da * dz, mu - s * w + da * dw)
        forward, backward = lengths(da, dz, dw)
    return da, dz, dw, db, forward, backward


def _finish(X: Array, y: Array, q: float, beta: Array) -> _Vertex:
    """Walk from an interior point to a vertex over the rows nearest to it."""
    n, k = X.shape
    residual = y - X @ beta
    m = 20 * k + 100
    iterations = 0
    while m < n // 2:
        work = np.abs(residual) <= np.partition(np.abs(residual), m)[m]
        if work.sum() >= n // 2 or np.linalg.matrix_rank(X[work]) < k:
            break
        A, b = _glob(X, y, residual, work)
        inner = _simplex(A, b, q, beta)
        iterations += inner.iterations
        rows = np.append(np.flatnonzero(work), [-1, -1])
        wrong = _wrong_signs(X, y, residual, work, rows[inner.basis])
        if wrong is not None and not wrong.any():
            side = np.where(residual >= 0, 1.0, -1.0)
            side[work] = inner.side[:-2]
            return _Vertex(rows[inner.basis], side, beta, iterations)
        m *= 8
    vertex = _simplex(X, y, q, beta)
    return replace(vertex, iterations=vertex.iterations + iterations)


def _starting_basis(X: Array, residual: Array) -> NDArray[np.intp]:
    """Choose k independent rows, the smallest residuals first."""
    k = X.shape[1]
    length = np.linalg.norm(X, axis=1)
    chosen: list[int] = []
    Q = np.zeros((k, k))
    for floor in (1e-3, 1e-6, 1e-10):
        for i in np.argsort(np.abs(residual), kind="stable"):
            if length[i] == 0 or i in chosen:
                continue
            rest = X[i] / length[i]
            for _ in range(2):
                rest = rest - Q.T @ (Q @ rest)
            size = np.linalg.norm(rest)
            if size > floor:
                Q[len(chosen)] = rest / size
                chosen.append(int(i))
                if len(chosen) == k:
                    return np.array(chosen)
    raise DesignError("no k independent rows found: X is numerically rank deficient")


def _simplex(X: Array, y: Array, q: float, beta: Array) -> _Vertex:
    """Pivot to an optimal basis; ties are broken by a perturbation of y.

    A degenerate vertex (more than k zero residuals) can make the simplex cycle. The
    perturbed problem has none; its optimal basis and sides are then continued with
    the unperturbed y, where zero residuals may keep either side.
    """
    scale = _size(X, y, beta)
    basis = _starting_basis(X, y - X @ beta)
    side = np.where(y - X @ beta >= 0, 1.0, -1.0)
    basis, side, steps, done = _pivot(X, y, q, basis, side, scale, stop_at_tie=True)
    rng = np.random.default_rng(0)
    for size in (1e-7, 1e-9, 1e-10):
        if done:
            break
        noise = size * scale * rng.uniform(-1.0, 1.0, len(y))
        basis, side, more, _ = _pivot(X, y + noise, q, basis, side, scale)
        basis, side, last, done = _pivot(X, y, q, basis, side, scale, stop_at_tie=True)
        steps += more + last
    return _Vertex(basis, side, beta, steps)


def _pivot(
    X: Array,
    y: Array,
    q: float,
    basis: NDArray[np.intp],
    side: Array,
    scale: Array,
    *,
    stop_at_tie: bool = False,
) -> tuple[NDArray[np.intp], Array, int, bool]:
    """Simplex steps along edges until no edge goes down (or a step has length 0)."""
    n, k = X.shape
    basis = basis.copy()
    for steps in range(50 * (n + k) + 1):
        B = np.linalg.inv(X[basis])
        residual = y - X @ (B @ y[basis])
        clear = np.abs(residual) > ZERO * scale
        side = np.where(clear, np.sign(residual), side)
        residual[~clear] = 0.0
        a = subgradient(X, q, basis, side, B)
        excess = np.maximum(a - q, q - 1 - a)
        j = int(np.argmax(excess))
        if excess[j] <= _DUAL_TOLERANCE:
            return basis, side, steps, True
        direction = 1.0 if a[j] < q - 1 else -1.0
        enter, crossed, length = _line_search(
            X @ (direction * B[:, j]), residual, side, basis, excess[j]
        )
        if enter < 0 or (stop_at_tie and length <= 0):
            return basis, side, steps, False
        side[crossed] *= -1.0
        side[basis[j]] = -direction
        basis[j] = enter
    return basis, side, steps, False


def subgradient(
    X: Array, q: float, basis: NDArray[np.intp], side: Array, B: Array
) -> Array:
    """Return the k dual values that make the subgradient zero."""
    psi = np.where(side > 0, q, q - 1.0)
    psi[basis] = 0.0
    return -(psi @ X) @ B


def _line_search(
    change: Array, residual: Array, side: Array, basis: NDArray[np.intp], excess: float
) -> tuple[int, NDArray[np.intp], float]:
    """Pass breakpoints until the slope, ``-excess`` at first, is no longer negative."""
    rising = side * change > 1e-11 * np.abs(change).max()
    rising[basis] = False
    rows = np.flatnonzero(rising)
    t = residual[rows] / change[rows]
    weight = np.abs(change[rows])
    order = np.lexsort((-weight, t))
    slope = np.cumsum(weight[order]) - excess
    stop = int(np.searchsorted(slope, -1e-12 * excess))
    if stop >= len(rows):
        return -1, rows, 0.0
    passed = rows[order[: stop + 1]]
    return int(passed[-1]), passed[:-1], float(t[order[stop]])


def _certify(
    X: Array, y: Array, q: float, vertex: _Vertex, kept: NDArray[np.intp]
) -> QuantileFit:
    """Recompute the vertex from the data as given and check its optimality."""
    basis = np.sort(vertex.basis)
    beta = np.linalg.solve(X[basis], y[basis])
    beta = beta + np.linalg.solve(X[basis], y[basis] - X[basis] @ beta)
    residual = y - X @ beta
    residual[basis] = 0.0
    B = np.linalg.inv(X[basis])
    spread = np.abs(B) @ (np.abs(y[basis]) + np.abs(X[basis]) @ np.abs(beta))
    tied = np.abs(residual) <= ZERO * (np.abs(y) + np.abs(X) @ spread)
    side = np.where(tied, vertex.side, np.sign(residual))
    a = subgradient(X, q, basis, side, B)
    slack = 1e-8 + 1e-13 * np.abs(X @ B).sum(axis=0)
    dual_ok = bool(((a <= q + slack) & (a >= q - 1 - slack)).all())
    psi = np.where(side > 0, q, q - 1.0)
    psi[basis] = a
    objective = float(check_loss(residual, q).sum())
    gap = (objective - float(psi @ y)) / (1.0 + objective)
    edges = np.concatenate([B, -B], axis=1).T
    away = vertex.center - beta
    if np.abs(X[basis] @ away).max() > 0:
        edges = np.vstack([edges, away / np.abs(X[basis] @ away).max()])
    nonunique = dual_ok and _flat_direction(X, residual, tied, q, edges, slack.max())
    message = (
        "optimal vertex, one of several"
        if nonunique
        else ("optimal vertex" if dual_ok else "no optimal vertex found")
    )
    return QuantileFit(
        beta, objective, kept[basis], dual_ok, nonunique, vertex.iterations,
        gap, dual_ok, message,
    )  # fmt: skip


def _flat_direction(
    X: Array,
    residual: Array,
    tied: NDArray[np.bool_],
    q: float,
    edges: Array,
    tolerance: float,
) -> bool:
    """Tell whether the loss is constant along an edge or towards the center.

    The interior point lies within the optimal face when that has a dimension.
    """
    change = X @ edges.T
    psi = np.where(tied, 0.0, np.where(residual > 0, q, q - 1.0))
    slope = -(psi @ change) + check_loss(-change[tied], q).sum(axis=0)
    return bool((slope <= tolerance).any())
