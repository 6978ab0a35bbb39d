"""Covariances of quantile regression, which need the density at the quantile."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ModelError
from .quantile import (
    ZERO,
    Array,
    checked,
    fit_quantile,
    subgradient,
    triangle,
    weighted_rows,
)

__all__ = [
    "BANDWIDTHS",
    "COVARIANCES",
    "KERNELS",
    "hall_sheather",
    "kernel_sparsity",
    "quantile_covariance",
]

COVARIANCES = ("iid", "nid", "ker", "robust")


BANDWIDTHS = ("hsheather", "bofinger", "chamberlain")


KERNELS = ("epa", "biw", "cos", "gau", "par")


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
    X, y, q = checked(X, y, q)
    _, X, y = weighted_rows(X, y, weights)
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
    inverse = np.linalg.inv(triangle(X))
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
    tied = np.abs(residual) <= ZERO * (np.abs(X) @ np.abs(beta)).max()
    above = (residual > 0) & ~tied
    rows = np.flatnonzero(tied)
    if len(rows) == X.shape[1] and np.linalg.matrix_rank(X[rows]) == len(rows):
        side = np.where(above, 1.0, -1.0)
        above[rows] = subgradient(X, q, rows, side, np.linalg.inv(X[rows])) > 0
    return above
