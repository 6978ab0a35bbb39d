"""Poisson elastic net with effects that are not negative: a screen of candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

from .terrain import Terrain

__all__ = ["Screen", "elastic_net", "screened"]

#: Penalties of a path, and the ratio of the last to the first.
_PENALTIES, _SMALLEST = 25, 1e-3
_STEPS, _TOLERANCE = 100, 1e-10


@dataclass(frozen=True, eq=False)
class Screen:
    """What an elastic net keeps.

    Attributes
    ----------
    penalties : ndarray, shape (L,)
    deviance : ndarray, shape (L,)
        Of the units left out, over all folds, up to a constant.
    chosen : int
        Number of the penalty with the least deviance.
    coefficients : ndarray, shape (L, C)
    keep : ndarray of bool, shape (C,)
        Candidates whose effect is not zero at that penalty.
    """

    penalties: np.ndarray
    deviance: np.ndarray
    chosen: int
    coefficients: np.ndarray
    keep: np.ndarray


def elastic_net(
    Z: np.ndarray,
    X: np.ndarray,
    units: np.ndarray,
    crimes: np.ndarray,
    offset: np.ndarray,
    penalties: np.ndarray,
    share: float = 0.5,
) -> np.ndarray:
    """Minimise the Poisson elastic net at each penalty, effects of X not negative.

    ``sum(units exp(eta) - crimes eta) / sum(units) + penalty * (share sum(b) +
    (1 - share) / 2 sum(b^2))``; the coefficients of Z are free. Columns are not
    standardised.

    Parameters
    ----------
    Z, X : ndarray, shape (U, q) and (U, C)
    units, crimes, offset : ndarray, shape (U,)
    penalties : ndarray, shape (L,)
        From the largest on: each solution starts the next.
    share : float, default 0.5
        Of the absolute values.

    Returns
    -------
    ndarray, shape (L, q + C)

    Notes
    -----
    Newton's method; each quadratic problem is solved exactly as nonnegative least
    squares, the free coefficients eliminated (Lawson and Hanson 1974, chapter 23).
    """
    q, n = Z.shape[1], units.sum()
    both = np.column_stack([Z, X]).astype(np.float64)
    theta = np.zeros(both.shape[1])
    theta[:q] = _without(Z, units, crimes, offset)
    found = []
    for penalty in penalties:
        value, before = np.inf, theta
        for _ in range(_STEPS):
            eta = both @ theta + offset
            mu = units * np.exp(eta)
            now = _objective(theta, q, (mu.sum() - crimes @ eta) / n, penalty, share)
            if now > value + 1e-12 * abs(value):  # a step too long
                theta = (theta + before) / 2
                continue
            before, value = theta, now
            H = (both * mu[:, None]).T @ both / n
            g = both.T @ (mu - crimes) / n
            theta = _quadratic(H, H @ theta - g, q, penalty, share)
            if np.abs(theta - before).max() < _TOLERANCE:
                break
        found.append(theta)
    return np.array(found)


def _objective(
    theta: np.ndarray, q: int, loss: float, penalty: float, share: float
) -> float:
    b = theta[q:]
    return loss + penalty * (share * b.sum() + (1 - share) / 2 * (b @ b))


def _without(
    Z: np.ndarray, units: np.ndarray, crimes: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Coefficients of Z alone, by Newton's method from the common rate."""
    target = np.log(crimes.sum() / (units @ np.exp(offset)))
    theta = np.linalg.lstsq(Z, np.full(len(Z), target), rcond=None)[0]
    for _ in range(_STEPS):
        mu = units * np.exp(Z @ theta + offset)
        H = (Z * mu[:, None]).T @ Z
        step = np.linalg.lstsq(H, Z.T @ (crimes - mu), rcond=None)[0]
        theta = theta + np.clip(step, -2, 2)
        if np.abs(step).max() < _TOLERANCE:
            break
    return theta


def _quadratic(
    H: np.ndarray, r: np.ndarray, q: int, penalty: float, share: float
) -> np.ndarray:
    """Minimise theta' H theta / 2 - r' theta and the penalty, theta[q:] >= 0."""
    free = cho_factor(H[:q, :q])
    through = cho_solve(free, H[:q, q:])
    size = H.shape[0] - q
    G = H[q:, q:] - H[q:, :q] @ through + penalty * (1 - share) * np.eye(size)
    c = r[q:] - through.T @ r[:q] - penalty * share
    # A candidate that others add up to is kept apart by rounding's worth of ridge.
    L = np.linalg.cholesky(G + 1e-13 * np.trace(G) * np.eye(size))
    b, _ = nnls(L.T, np.linalg.solve(L, c))
    return np.concatenate([cho_solve(free, r[:q] - H[:q, q:] @ b), b])


def screened(
    terrain: Terrain, folds: int = 5, share: float = 0.5, seed: int = 0,
    weights: np.ndarray | None = None,
) -> Screen:  # fmt: skip
    """Choose the penalty by cross-validation, and say what it keeps.

    Parameters
    ----------
    terrain : Terrain
    folds : int, default 5
    share : float, default 0.5
        Of the absolute values in the penalty.
    seed : int, default 0
        Of the folds.
    weights : ndarray, shape (n,), optional
        How often each unit counts; all its copies are in one fold.

    Returns
    -------
    Screen
    """
    p, exposure = terrain.exposed, np.exp(terrain.offset)
    Z, X, none = p.covariates, p.columns.astype(np.float64), np.zeros(len(p))
    fold = np.random.default_rng(seed).permutation(terrain.n) % folds
    w = np.ones(terrain.n) if weights is None else weights
    everyone = p.sums(terrain.y, False, w, exposure)
    penalties = _path(Z, X, everyone, share)

    def path(sums: np.ndarray) -> np.ndarray:
        return elastic_net(Z, X, sums[:, 0], sums[:, 1], none, penalties, share)

    deviance = np.zeros(len(penalties))
    both = np.column_stack([Z, X])
    for k in range(folds):
        left_out = p.sums(terrain.y, False, w * (fold == k), exposure)
        eta = both @ path(everyone - left_out).T
        deviance += 2 * (left_out[:, 0] @ np.exp(eta) - left_out[:, 1] @ eta)
    coefficients = path(everyone)[:, Z.shape[1] :]
    chosen = int(deviance.argmin())
    return Screen(
        penalties, deviance, chosen, coefficients, coefficients[chosen] > 1e-9
    )


def _path(Z: np.ndarray, X: np.ndarray, sums: np.ndarray, share: float) -> np.ndarray:
    """Penalties from the least that keeps nothing down."""
    units, crimes = sums[:, 0], sums[:, 1]
    theta = _without(Z, units, crimes, np.zeros(len(Z)))
    score = X.T @ (crimes - units * np.exp(Z @ theta)) / units.sum()
    largest = max(float(score.max()), 1e-12) / max(share, 1e-3)
    return largest * np.logspace(0, np.log10(_SMALLEST), _PENALTIES)
