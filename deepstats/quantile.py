"""Linear quantile regression, solved exactly to a vertex of its linear program."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepstats.errors import DesignError, ModelError

__all__ = [
    "BANDWIDTHS",
    "COVARIANCES",
    "KERNELS",
    "QuantileFit",
    "check_loss",
    "fit_quantile",
    "hall_sheather",
    "kernel_sparsity",
    "quantile_covariance",
]

Array = NDArray[np.floating[Any]]

COVARIANCES = ("iid", "nid", "ker", "robust")
BANDWIDTHS = ("hsheather", "bofinger", "chamberlain")
KERNELS = ("epa", "biw", "cos", "gau", "par")

_RANK_TOLERANCE = 1e-12
_ZERO = 1e-12  # residuals below this fraction of the scale of y are zero
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
    X, y, q = _checked(X, y, q)
    kept, A, b = _weighted_rows(X, y, weights)
    Z, T = _orthonormal(A)
    unit = float(np.abs(b).max()) or 1.0
    vertex = _solve(Z, b / unit, q)
    center = T @ vertex.center * unit
    return _certify(A, b, q, replace(vertex, center=center), kept)


def _checked(X: ArrayLike, y: ArrayLike, q: float) -> tuple[Array, Array, float]:
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


def _weighted_rows(
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
    R = _triangle(X / scale)
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


def _triangle(X: Array) -> Array:
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
    return ~work & (signed < -_ZERO * _size(X, y, beta))


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
        clear = np.abs(residual) > _ZERO * scale
        side = np.where(clear, np.sign(residual), side)
        residual[~clear] = 0.0
        a = _subgradient(X, q, basis, side, B)
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


def _subgradient(
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
    tied = np.abs(residual) <= _ZERO * (np.abs(y) + np.abs(X) @ spread)
    side = np.where(tied, vertex.side, np.sign(residual))
    a = _subgradient(X, q, basis, side, B)
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


def hall_sheather(n: int, q: float, alpha: float = 0.05) -> float:
    """Return the Hall-Sheather bandwidth on the probability scale.

    Parameters
    ----------
    n : int
        Number of observations.
    q : float
        Quantile level.
    alpha : float
        One minus the confidence level the bandwidth is tuned to.

    Returns
    -------
    float
        Bandwidth h; the sparsity is estimated between quantiles q - h and q + h.

    References
    ----------
    .. [1] Hall and Sheather (1988), On the distribution of a studentized quantile,
       JRSS B 50(3).
    """
    from scipy.stats import norm

    x = norm.ppf(q)
    ratio = 1.5 * norm.pdf(x) ** 2 / (2 * x**2 + 1)
    return float((norm.ppf(1 - alpha / 2) ** 2 * ratio / n) ** (1 / 3))


def _bandwidth(n: int, q: float, kind: str) -> float:
    """Return one of the three classical bandwidths (Koenker 2005, section 3.4)."""
    from scipy.stats import norm

    x = norm.ppf(q)
    if kind == "hsheather":
        return hall_sheather(n, q)
    if kind == "chamberlain":
        return float(norm.ppf(0.975) * np.sqrt(q * (1 - q) / n))
    # statsmodels evaluates the density at 2x; Bofinger's formula has x.
    density = norm.pdf(2 * x)
    return float((4.5 * density**4 / (2 * x**2 + 1) ** 2 / n) ** 0.2)


def quantile_covariance(
    X: ArrayLike,
    y: ArrayLike,
    params: ArrayLike,
    q: float,
    kind: str = "nid",
    *,
    weights: ArrayLike | None = None,
    hs: bool | None = None,
    kernel: str | None = None,
    bandwidth: str | None = None,
) -> Array:
    """Return the covariance of quantile-regression coefficients.

    Parameters
    ----------
    X : array_like, shape (n, k)
        Design.
    y : array_like, shape (n,)
        Response.
    params : array_like, shape (k,)
        Coefficients, as from `fit_quantile`.
    q : float
        Quantile level.
    kind : {"nid", "iid", "ker", "robust"}
        ``"iid"``: one sparsity for all rows, from the residuals near zero;
        ``"nid"``: Hendricks and Koenker's difference of neighbouring fits [1]_;
        ``"ker"``: Powell's kernel sandwich [2]_ (these three as R's quantreg);
        ``"robust"``: the default of statsmodels' and Stata's quantile regression.
    weights : array_like, shape (n,), optional
        Weights of the check losses; X, y and the residuals are multiplied by them.
    hs : bool, optional
        For "iid", "nid" and "ker": Hall-Sheather (default) or Bofinger bandwidth.
    kernel : {"epa", "biw", "cos", "gau", "par"}, optional
        For "robust" only; Epanechnikov by default.
    bandwidth : {"hsheather", "bofinger", "chamberlain"}, optional
        For "robust" only; Hall-Sheather by default.

    Returns
    -------
    ndarray, shape (k, k)
        Covariance matrix.

    Raises
    ------
    ModelError
        If the kind or an option is unknown, an option does not belong to the kind,
        or the data are too few or too tied for the density to be estimated.

    References
    ----------
    .. [1] Hendricks and Koenker (1992), Hierarchical spline models for conditional
       quantiles, JASA 87(417).
    .. [2] Powell (1991), Estimation of monotonic regression models under quantile
       restrictions.
    """
    X, y, q = _checked(X, y, q)
    _, X, y = _weighted_rows(X, y, weights)
    beta = np.asarray(params, dtype=float)
    residual = y - X @ beta
    if kind not in COVARIANCES:
        raise ModelError(f"covariance {kind!r} is not one of {', '.join(COVARIANCES)}")
    if kind == "robust":
        if hs is not None:
            raise ModelError('hs= does not apply to "robust": use bandwidth=')
        return _robust(X, y, beta, q, kernel or "epa", bandwidth or "hsheather")
    if kernel is not None or bandwidth is not None:
        raise ModelError(f'kernel= and bandwidth= apply to "robust", not to {kind!r}')
    h = _quantreg_bandwidth(len(y), q, True if hs is None else hs)
    if kind == "iid":
        return _iid(X, residual, q, h)
    h = _inside(h, q)
    if kind == "nid":
        density = _difference_density(X, y, q, h)
    else:
        density = _kernel_density(residual, q, h)
    return _sandwich(X, density, q)


def _quantreg_bandwidth(n: int, q: float, hs: bool) -> float:
    from scipy.stats import norm

    if hs:
        return hall_sheather(n, q)
    x = norm.ppf(q)
    return float((4.5 * norm.pdf(x) ** 4 / (2 * x**2 + 1) ** 2 / n) ** 0.2)


def _inside(h: float, q: float) -> float:
    """Halve the bandwidth until q - h and q + h are levels."""
    while q - h < 0 or q + h > 1:
        h /= 2
    return h


def _bread(X: Array) -> Array:
    """Return the inverse of X'X through a QR factorisation."""
    inverse = np.linalg.inv(_triangle(X))
    return inverse @ inverse.T


def _iid(X: Array, residual: Array, q: float, h: float) -> Array:
    """Sparsity: slope of the ordered residuals next to zero (Koenker 2005, 3.4)."""
    n, k = X.shape
    width = max(k + 1, int(np.ceil(n * h)))
    zeros = int((np.abs(residual) < np.finfo(float).eps ** 0.5).sum())
    if zeros + width + 1 > n:
        raise ModelError(
            f"{n} rows, {zeros} of them with residual zero, are too few for the "
            f'{width + 1} neighbours of "iid" standard errors: use bootstrap'
        )
    near = np.argsort(np.abs(residual), kind="stable")[zeros : zeros + width + 1]
    rank = np.arange(zeros + 1, zeros + width + 2) / (n - k)
    line = np.column_stack([np.ones(width + 1), rank])
    sparsity = fit_quantile(line, np.sort(residual[near]), 0.5).params[1]
    return sparsity**2 * q * (1 - q) * _bread(X)


def _difference_density(X: Array, y: Array, q: float, h: float) -> Array:
    """Row densities from the fits at q - h and q + h."""
    if q - h <= 0 or q + h >= 1:
        raise ModelError(f"q = {q} is too extreme for a bandwidth of {h:.3g}")
    above, below = fit_quantile(X, y, q + h).params, fit_quantile(X, y, q - h).params
    spread = X @ (above - below)
    crossed = int((spread <= 0).sum())
    if crossed:
        warnings.warn(
            f"{crossed} of {len(y)} rows have crossing quantiles at {q - h:.3f} and "
            f"{q + h:.3f}; their density is taken as zero",
            UserWarning,
            stacklevel=3,
        )
    distance = spread - np.finfo(float).eps ** 0.5
    return np.where(distance > 0, 2 * h / np.where(distance > 0, distance, 1.0), 0.0)


def _kernel_density(residual: Array, q: float, h: float) -> Array:
    """Row densities at zero by a Gaussian kernel (Powell 1991)."""
    from scipy.stats import norm

    quartiles = np.quantile(residual, [0.25, 0.75])
    spread = min(residual.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34)
    if not spread > 0:
        raise ModelError("half of the residuals are equal: no density can be estimated")
    width = (norm.ppf(q + h) - norm.ppf(q - h)) * spread
    return norm.pdf(residual / width) / width


def _sandwich(X: Array, density: Array, q: float) -> Array:
    if np.linalg.matrix_rank(np.sqrt(density)[:, None] * X) < X.shape[1]:
        raise ModelError(
            "the estimated densities are zero for too many rows (tied or few data): "
            'use "iid" or bootstrap standard errors'
        )
    bread = _bread(np.sqrt(density)[:, None] * X)
    return q * (1 - q) * bread @ (X.T @ X) @ bread


def _kernel(u: Array, kind: str) -> Array:
    """Second-order kernels with support [-1, 1] ("gau": the real line)."""
    size = np.abs(u)
    inside = size <= 1
    if kind == "gau":
        return np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    if kind == "epa":
        return np.where(inside, 0.75 * (1 - u**2), 0.0)
    if kind == "biw":
        return np.where(inside, 15 / 16 * (1 - u**2) ** 2, 0.0)
    if kind == "cos":
        return np.where(size <= 0.5, 1 + np.cos(2 * np.pi * u), 0.0)
    inner = 4 / 3 - 8 * u**2 + 8 * size**3
    return np.where(inside, np.where(size <= 0.5, inner, 8 / 3 * (1 - size) ** 3), 0.0)


def kernel_sparsity(
    y: ArrayLike,
    residual: ArrayLike,
    q: float,
    kernel: str = "epa",
    bandwidth: str = "hsheather",
) -> tuple[float, float]:
    """Return the sparsity by a kernel density of the residuals at zero.

    Parameters
    ----------
    y, residual : array_like, shape (n,)
        Response and residuals.
    q : float
        Quantile level.
    kernel, bandwidth : str
        As in `quantile_covariance`.

    Returns
    -------
    sparsity : float
        One over the density, as statsmodels' attribute of that name.
    width : float
        Bandwidth on the scale of the residuals.

    Raises
    ------
    ModelError
        If an option is unknown or half of the residuals are equal.
    """
    from scipy.stats import norm

    if kernel not in KERNELS:
        raise ModelError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    if bandwidth not in BANDWIDTHS:
        raise ModelError(
            f"bandwidth {bandwidth!r} is not one of {', '.join(BANDWIDTHS)}"
        )
    y, residual = np.asarray(y, dtype=float), np.asarray(residual, dtype=float)
    n = len(y)
    h = _inside(_bandwidth(n, q, bandwidth), q)
    quartiles = np.quantile(residual, [0.25, 0.75])
    spread = min(y.std(), (quartiles[1] - quartiles[0]) / 1.34)
    if not spread > 0:
        raise ModelError("half of the residuals are equal: no density can be estimated")
    width = float(spread * (norm.ppf(q + h) - norm.ppf(q - h)))
    return float(n * width / _kernel(residual / width, kernel).sum()), width


def _robust(
    X: Array, y: Array, beta: Array, q: float, kernel: str, bandwidth: str
) -> Array:
    """Greene's sandwich: one density, squared subgradients in the middle.

    An interpolated row counts as above the fit where its dual value is positive:
    the side on which the reweighted least squares of statsmodels leaves it. Where
    more rows than k are interpolated, they count as not above.
    """
    residual = y - X @ beta
    sparsity, _ = kernel_sparsity(y, residual, q, kernel, bandwidth)
    above = _above(X, beta, residual, q)
    psi = np.where(above, q, 1 - q) * sparsity
    bread = _bread(X)
    return bread @ ((X * psi[:, None] ** 2).T @ X) @ bread


def _above(X: Array, beta: Array, residual: Array, q: float) -> NDArray[np.bool_]:
    tied = np.abs(residual) <= _ZERO * (np.abs(X) @ np.abs(beta)).max()
    above = (residual > 0) & ~tied
    rows = np.flatnonzero(tied)
    if len(rows) == X.shape[1] and np.linalg.matrix_rank(X[rows]) == len(rows):
        side = np.where(above, 1.0, -1.0)
        above[rows] = _subgradient(X, q, rows, side, np.linalg.inv(X[rows])) > 0
    return above
