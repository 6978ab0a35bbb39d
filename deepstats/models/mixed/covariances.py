"""Structured covariances of random effects: few parameters, many columns.

A covariance is ``V = D R D``, D the standard deviations and R a correlation matrix that
depends on one or few shapes. A homogeneous kind has one variance, which V is linear in,
bounded by zero; a heterogeneous one a standard deviation for each column, bounded by
zero too. Shapes are unconstrained: a correlation is ``t / sqrt(1 + t^2)``, a range
``exp(t)``. The correlations of a kind take few distinct values (one a lag, one a
distance), and these are differentiated, not the matrix.

References
----------
Brooks et al. (2017), glmmTMB balances speed and flexibility among packages for
zero-inflated generalized linear mixed modeling, The R Journal 9(2). Barndorff-Nielsen &
Schou (1973), On the parametrization of autoregressive models by partial
autocorrelations. Stein (1999), Interpolation of spatial data, for the Matérn class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy import special
from scipy.spatial.distance import cdist

from ...errors import ModelError
from ...formula import PLACES

__all__ = ["KINDS", "POSITIVE", "Covariance", "covariance_of", "lower_factor"]

_HETEROGENEOUS = ("cs", "hcs", "hetar1", "toep")
#: Shapes beyond these are as good as infinite.
_FARTHEST_COR, _FARTHEST_LOG = 1e8, 30.0
#: Matérn's smoothness stays below this: beyond, the covariance is the gaussian one.
_SMOOTHEST = 25.0
#: Correlations that searches are begun with.
_BEGINNINGS = (0.2, 0.6, 0.9, -0.3)
#: Distance of the points of Matérn's integral: errors are below rounding.
_STEP = 0.1
#: Correlations this near to the edge of their range are on it.
_EDGE = 1e-6
#: Standardised standard deviations below this count as zero.
_ZERO = 1e-4


# -- correlations ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Jet:
    """Values with their first and second derivatives in the shapes.

    Attributes
    ----------
    value : ndarray, shape (U,)
    first : ndarray, shape (U, P)
    second : ndarray, shape (U, P, P)
    """

    value: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of_one(cls, value: np.ndarray, first: np.ndarray, second: np.ndarray) -> _Jet:
        """Of one shape; each (U,)."""
        return cls(value, first[:, None], second[:, None, None])

    @property
    def after_one(self) -> _Jet:
        """The same with a one before it: the correlation of a column with itself."""
        return _Jet(
            np.append(1.0, self.value),
            np.concatenate([np.zeros_like(self.first[:1]), self.first]),
            np.concatenate([np.zeros_like(self.second[:1]), self.second]),
        )

    def __add__(self, other: _Jet) -> _Jet:
        return _Jet(
            self.value + other.value, self.first + other.first,
            self.second + other.second,
        )  # fmt: skip

    def __sub__(self, other: _Jet) -> _Jet:
        return _Jet(
            self.value - other.value, self.first - other.first,
            self.second - other.second,
        )  # fmt: skip

    def __mul__(self, other: _Jet) -> _Jet:
        cross = self.first[:, :, None] * other.first[:, None]
        return _Jet(
            self.value * other.value,
            self.first * other.value[:, None] + self.value[:, None] * other.first,
            self.second * other.value[:, None, None]
            + self.value[:, None, None] * other.second
            + cross + cross.transpose(0, 2, 1),
        )  # fmt: skip

    def __getitem__(self, at: slice) -> _Jet:
        return _Jet(self.value[at], self.first[at], self.second[at])


class _Correlation(ABC):
    """A correlation matrix as a function of its shapes.

    Attributes
    ----------
    at : ndarray of int, shape (K, K)
        Which of the distinct values each entry is; 0 is one, on the diagonal.
    names : tuple of str
        What its parameters are called.
    scales : tuple of {"cor", "positive"}
        Where intervals of them are made: on Fisher's scale or on that of logarithms.
    """

    at: np.ndarray
    names: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()

    @abstractmethod
    def values(self, t: np.ndarray) -> _Jet:
        """Return the distinct values, the first of them one."""

    @abstractmethod
    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the parameters that are printed, and their derivative; (P, P)."""

    @abstractmethod
    def shapes(self, natural: np.ndarray) -> np.ndarray:
        """Return the shapes of printed parameters."""

    @abstractmethod
    def starts(self) -> list[np.ndarray]:
        """Return shapes to begin from."""

    def check(self, natural: np.ndarray) -> None:
        """Refuse printed parameters outside their range."""
        for name, scale, value in zip(self.names, self.scales, natural, strict=True):
            inside = abs(value) < 1 if scale == "cor" else 0 < value < np.inf
            if not inside:
                limits = "between -1 and 1" if scale == "cor" else "positive"
                raise ValueError(f"{name} must be {limits}, not {value!r}.")

    def edge(self, values: np.ndarray) -> str | None:
        """Say which edge of their range the correlations are on, if any.

        Parameters
        ----------
        values : ndarray, shape (U,)
            The distinct values but the first.
        """
        if np.abs(values).max() >= 1 - _EDGE:
            return "a correlation is at the edge of its range"
        return None


class _Identity(_Correlation):
    """No correlation."""

    def __init__(self, k: int) -> None:
        self.at = 1 - np.eye(k, dtype=int)

    def values(self, t: np.ndarray) -> _Jet:
        return _Jet(np.array([1.0, 0.0]), np.zeros((2, 0)), np.zeros((2, 0, 0)))

    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return t, np.zeros((0, 0))

    def shapes(self, natural: np.ndarray) -> np.ndarray:
        return natural

    def starts(self) -> list[np.ndarray]:
        return [np.zeros(0)]

    def edge(self, values: np.ndarray) -> str | None:
        return None


class _Exchangeable(_Correlation):
    """One correlation between every two columns, above ``-1 / (K - 1)``."""

    names, scales = ("cor",), ("cor",)

    def __init__(self, k: int) -> None:
        self.at = 1 - np.eye(k, dtype=int)
        self.least = -1 / (k - 1)

    def values(self, t: np.ndarray) -> _Jet:
        p, width = special.expit(t), 1 - self.least
        slope = width * p * (1 - p)
        rho = self.least + width * p
        return _Jet.of_one(rho, slope, slope * (1 - 2 * p)).after_one

    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        jet = self.values(t)[1:]
        return jet.value, jet.first

    def shapes(self, natural: np.ndarray) -> np.ndarray:
        return special.logit((natural - self.least) / (1 - self.least))

    def check(self, natural: np.ndarray) -> None:
        if not self.least < natural[0] < 1:
            raise ValueError(
                f"cor must be between {self.least:.4g} and 1, not {natural[0]!r}."
            )

    def starts(self) -> list[np.ndarray]:
        return [self.shapes(np.array([r])) for r in (0.1, 0.5, 0.9)]

    def edge(self, values: np.ndarray) -> str | None:
        if values[0] <= self.least + _EDGE or values[0] >= 1 - _EDGE:
            return f"the correlation is at the edge of its range, {values[0]:.4g}"
        return None


class _Autoregressive(_Correlation):
    """A power of one correlation for each step between two columns."""

    names, scales = ("cor",), ("cor",)

    def __init__(self, k: int) -> None:
        self.at = _lags(k)
        self.k = k

    def values(self, t: np.ndarray) -> _Jet:
        rho, lag = _bounded(t), np.arange(1.0, self.k)
        power = rho.value ** np.append(np.arange(self.k), 0)
        bent = lag * power[:-2] * rho.second[0, 0]
        # The power before the first has a factor of zero.
        bent = bent + lag * (lag - 1) * power[lag.astype(int) - 2] * rho.first[0] ** 2
        return _Jet.of_one(power[1:-1], lag * power[:-2] * rho.first[0], bent).after_one

    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rho = _bounded(t)
        return rho.value, rho.first

    def shapes(self, natural: np.ndarray) -> np.ndarray:
        return natural / np.sqrt(1 - natural**2)

    def starts(self) -> list[np.ndarray]:
        return [self.shapes(np.array([r])) for r in _BEGINNINGS]


class _Toeplitz(_Correlation):
    """One correlation a lag, by partial autocorrelations: all that are definite."""

    def __init__(self, k: int) -> None:
        self.at = _lags(k)
        self.names = tuple(f"cor(lag {j})" for j in range(1, k))
        self.scales = ("cor",) * (k - 1)

    def values(self, t: np.ndarray) -> _Jet:
        partial, size = _bounded(t), len(t)
        one = _Jet(np.ones(1), np.zeros((1, size)), np.zeros((1, size, size)))
        out, weights, spread = one, one[:0], one
        for j in range(size):
            # Durbin's recursion, read backwards: from partial to plain correlations.
            here = partial[j : j + 1]
            through = weights * out[:0:-1]
            through = _Jet(
                through.value.sum(keepdims=True),
                through.first.sum(0, keepdims=True),
                through.second.sum(0, keepdims=True),
            )
            out = _joined(out, through + here * spread)
            weights = _joined(weights - here * weights[::-1], here)
            spread = spread - spread * here * here
        return out

    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        jet = self.values(t)[1:]
        return jet.value, jet.first

    def shapes(self, natural: np.ndarray) -> np.ndarray:
        partial, weights, spread = np.empty(len(natural)), np.zeros(0), 1.0
        for j, r in enumerate(natural):
            partial[j] = (r - weights @ natural[:j][::-1]) / spread
            if not abs(partial[j]) < 1:
                raise ValueError("these correlations by lag are not positive definite.")
            weights = np.append(weights - partial[j] * weights[::-1], partial[j])
            spread *= 1 - partial[j] ** 2
        return partial / np.sqrt(1 - partial**2)

    def starts(self) -> list[np.ndarray]:
        out = []
        for rho in _BEGINNINGS:
            start = np.zeros(len(self.names))
            start[0] = rho / np.sqrt(1 - rho**2)
            out.append(start)
        return out


class _ByDistance(_Correlation):
    """Correlations that fall with the distance between places.

    Parameters
    ----------
    places : ndarray, shape (K, coordinates)
    """

    names: tuple[str, ...] = ("range",)
    scales: tuple[str, ...] = ("positive",)

    def __init__(self, places: np.ndarray) -> None:
        distances = cdist(places, places)
        rows, columns = np.tril_indices(len(places), -1)
        found, inverse = np.unique(distances[rows, columns], return_inverse=True)
        self.at = np.zeros(distances.shape, dtype=int)
        self.at[rows, columns] = self.at[columns, rows] = inverse + 1
        self.unit = float(np.median(distances[rows, columns]))
        self.distances = found / self.unit

    def values(self, t: np.ndarray) -> _Jet:
        return self.kernel(self.distances / _range(t), t).after_one

    @abstractmethod
    def kernel(self, z: np.ndarray, t: np.ndarray) -> _Jet:
        """Return the correlation at distances over the range."""

    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = self.unit * np.array([_range(t)])
        return value, value[:, None]

    def shapes(self, natural: np.ndarray) -> np.ndarray:
        return np.log(natural[:1] / self.unit)

    def starts(self) -> list[np.ndarray]:
        return [np.log([share]) for share in (0.1, 0.3, 1.0, 3.0, 10.0)]

    def edge(self, values: np.ndarray) -> str | None:
        if values.max() <= _EDGE:
            return "the range is shorter than the least distance"
        if values.min() >= 1 - 1e-3:
            return "the range is far longer than the greatest distance"
        return None


class _Exponential(_ByDistance):
    """``exp(-d / range)``; over times, the Ornstein-Uhlenbeck process."""

    def kernel(self, z: np.ndarray, t: np.ndarray) -> _Jet:
        r = np.exp(-z)
        return _Jet.of_one(r, z * r, (z * z - z) * r)


class _Gaussian(_ByDistance):
    """``exp(-(d / range)^2)``."""

    def kernel(self, z: np.ndarray, t: np.ndarray) -> _Jet:
        square = z * z
        r = np.exp(-square)
        return _Jet.of_one(r, 2 * square * r, 4 * (square * square - square) * r)


class _Matern(_ByDistance):
    """``2^(1-s) / Gamma(s) (d/range)^s K_s(d/range)``, s the smoothness."""

    names, scales = ("range", "smoothness"), ("positive", "positive")
    #: Values worked on at a time.
    block: ClassVar[int] = 4096

    @staticmethod
    def _smoothness(t: np.ndarray) -> tuple[float, float, float]:
        """Smoothness, one where the shape is zero, and its two derivatives."""
        p = float(special.expit(t[1] - math.log(_SMOOTHEST - 1)))
        slope = _SMOOTHEST * p * (1 - p)
        return _SMOOTHEST * p, slope, slope * (1 - 2 * p)

    def kernel(self, z: np.ndarray, t: np.ndarray) -> _Jet:
        s, slope, bend = self._smoothness(t)
        parts = [
            _matern(z[start : start + self.block], s)
            for start in range(0, len(z), self.block)
        ]
        r, by_log, by_s, log_log, log_s, s_s = np.concatenate(parts, axis=1)
        # Of the logarithm, in the logarithm of the range and in the second shape.
        one, two = -by_log, by_s * slope
        second = np.empty((len(z), 2, 2))
        second[:, 0, 0] = log_log + one * one
        second[:, 1, 1] = s_s * slope**2 + by_s * bend + two * two
        second[:, 0, 1] = second[:, 1, 0] = one * two - log_s * slope
        first = np.stack([one, two], axis=1)
        return _Jet(r, r[:, None] * first, r[:, None, None] * second)

    def natural(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, slope, _ = self._smoothness(t)
        reach = self.unit * _range(t)
        return np.array([reach, s]), np.diag([reach, slope])

    def shapes(self, natural: np.ndarray) -> np.ndarray:
        share = natural[1] / _SMOOTHEST
        if not 0 < share < 1:
            raise ValueError(f"smoothness must be between 0 and {_SMOOTHEST:g}.")
        logit = special.logit(share) + math.log(_SMOOTHEST - 1)
        return np.append(super().shapes(natural), logit)

    def starts(self) -> list[np.ndarray]:
        return [
            self.shapes(np.array([share * self.unit, s]))
            for s in (0.5, 1.5) for share in (0.1, 0.3, 1.0)
        ]  # fmt: skip


def _matern(z: np.ndarray, s: float) -> np.ndarray:
    """Matérn's correlation r, and five derivatives of its logarithm.

    By ``K_s(z) = int_0^inf exp(-z cosh u) cosh(s u) du``, where the trapezoid rule
    converges geometrically since the integrand falls as a double exponential; what
    derivatives need are means under it.

    Returns
    -------
    ndarray, shape (6, len(z))
        r; the derivatives of log r in log z, in s, twice in log z, in both, twice in s.
    """
    z = np.clip(z, 1e-10, 700.0)
    end = math.asinh(80 * (1 + s) / float(z.min()))
    u = np.arange(0.0, end + _STEP, _STEP)
    rise = np.cosh(u) - 1
    exponent = s * u + np.log1p(np.exp(-2 * s * u)) - math.log(2) - z[:, None] * rise
    exponent[:, 0] -= math.log(2)
    top = exponent.max(1, keepdims=True)
    weight = np.exp(exponent - top)
    total = weight.sum(1, keepdims=True)
    weight /= total
    lean = u * np.tanh(s * u)
    mean_rise, mean_lean = weight @ rise, weight @ lean
    spread = np.maximum(weight @ rise**2 - mean_rise**2, 0.0)
    together = weight @ (rise * lean) - mean_rise * mean_lean
    by_z = -(1 + mean_rise)
    log_bessel = (top + np.log(total))[:, 0] + math.log(_STEP) - z
    log_r = (1 - s) * math.log(2) - special.gammaln(s) + s * np.log(z) + log_bessel
    return np.stack(
        [
            np.exp(np.minimum(log_r, 0.0)), s + z * by_z,
            np.log(z) - math.log(2) - special.digamma(s) + mean_lean,
            z * by_z + z * z * spread, 1 - z * together,
            weight @ u**2 - mean_lean**2 - special.polygamma(1, s),
        ]
    )  # fmt: skip


def _lags(k: int) -> np.ndarray:
    place = np.arange(k)
    return np.abs(place[:, None] - place)


def _bounded(t: np.ndarray) -> _Jet:
    """Numbers between minus one and one, each of its own shape."""
    t = np.clip(t, -_FARTHEST_COR, _FARTHEST_COR)
    size, at = 1 + t * t, np.arange(len(t))
    first, second = np.zeros((len(t),) * 2), np.zeros((len(t),) * 3)
    first[at, at] = size**-1.5
    second[at, at, at] = -3 * t * size**-2.5
    return _Jet(t / np.sqrt(size), first, second)


def _joined(one: _Jet, two: _Jet) -> _Jet:
    return _Jet(
        np.concatenate([one.value, two.value]),
        np.concatenate([one.first, two.first]),
        np.concatenate([one.second, two.second]),
    )


def _range(t: np.ndarray) -> float:
    return math.exp(min(max(float(t[0]), -_FARTHEST_LOG), _FARTHEST_LOG))


# -- covariances -----------------------------------------------------------------------


@dataclass(eq=False)
class Covariance:
    """A structured covariance of the effects of one term.

    Attributes
    ----------
    kind : str
        As written: ``"ar1"``.
    names : tuple of str
        Columns that vary.
    label : str
        What stands before the bar.
    heterogeneous : bool
        Whether every column has a standard deviation of its own.
    correlation : _Correlation
    """

    kind: str
    names: tuple[str, ...]
    label: str
    heterogeneous: bool
    correlation: _Correlation
    _held: tuple[bytes, _Jet] | None = field(default=None, repr=False, init=False)

    @property
    def k(self) -> int:
        """Number of columns."""
        return len(self.names)

    @property
    def scales(self) -> int:
        """How many parameters are of size: one, or one a column."""
        return self.k if self.heterogeneous else 1

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.scales + len(self.correlation.names)

    @cached_property
    def lower(self) -> np.ndarray:
        """Lower bounds of the parameters."""
        out = np.full(self.size, -np.inf)
        out[: self.scales] = 0.0
        return out

    # -- the matrix and its derivatives ------------------------------------------------

    def matrix(self, x: np.ndarray) -> np.ndarray:
        """V, (K, K)."""
        return self._outer(x) * self._correlations(x).value

    def root(self, x: np.ndarray) -> np.ndarray:
        """Lower-triangular factor of V."""
        V = self.matrix(x)
        if not np.isfinite(V).all():
            return np.full_like(V, np.nan)
        try:
            return np.linalg.cholesky(V)
        except np.linalg.LinAlgError:
            return lower_factor(V)

    def directions(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the derivative of V in each parameter."""
        jet, outer = self._correlations(x), self._outer(x)
        R = jet.value
        out = []
        if self.heterogeneous:
            for a, row in enumerate(R * x[: self.k]):
                D = np.zeros_like(R)
                D[a] += row
                D[:, a] += row
                out.append(D)
        else:
            out.append(R.copy())
        return out + [outer * dR for dR in np.moveaxis(jet.first, 2, 0)]

    def gradient(self, x: np.ndarray, G: np.ndarray) -> np.ndarray:
        """Return the derivative in the parameters, from that in V."""
        jet = self._correlations(x)
        R = jet.value
        shapes = np.einsum("ab,abp->p", G * self._outer(x), jet.first)
        if self.heterogeneous:
            return np.append(2 * (G * R) @ x[: self.k], shapes)
        return np.append((G * R).sum(), shapes)

    def curvature(self, x: np.ndarray, G: np.ndarray) -> np.ndarray:
        """Sum of ``G d2V``."""
        jet, s = self._correlations(x), self.scales
        R, first = jet.value, jet.first
        out = np.zeros((self.size, self.size))
        out[s:, s:] = np.einsum("ab,abpq->pq", G * self._outer(x), jet.second)
        if self.heterogeneous:
            out[:s, :s] = 2 * G * R
            out[:s, s:] = 2 * np.einsum("ab,abp,b->ap", G, first, x[:s])
        else:
            out[:s, s:] = np.einsum("ab,abp->p", G, first)
        out[s:, :s] = out[:s, s:].T
        return out

    def _outer(self, x: np.ndarray) -> Any:
        sd = x[: self.scales]
        return np.outer(sd, sd) if self.heterogeneous else sd[0]

    def _correlations(self, x: np.ndarray) -> _Jet:
        """R and its derivatives in the shapes: (K, K), (K, K, P), (K, K, P, P)."""
        t = np.ascontiguousarray(x[self.scales :], dtype=float)
        key = t.tobytes()
        if self._held is None or self._held[0] != key:
            jet, at = self.correlation.values(t), self.correlation.at
            self._held = key, _Jet(jet.value[at], jet.first[at], jet.second[at])
        return self._held[1]

    # -- what users see ----------------------------------------------------------------

    @cached_property
    def labels(self) -> list[str]:
        """Names of the printed parameters: standard deviations, then the shapes'."""
        sds = list(self.names) if self.heterogeneous else [self.label]
        return [*(f"sd({n})" for n in sds), *self.correlation.names]

    def natural(self, x: np.ndarray, U: np.ndarray) -> np.ndarray:
        """Return what is printed: standard deviations over sigma, correlation or range.

        Parameters
        ----------
        x : ndarray, shape (size,)
        U : ndarray, shape (K, K)
            Standardisation of the columns, diagonal.
        """
        scale = np.diag(U)[: self.scales]
        sd = x[: self.scales] if self.heterogeneous else np.sqrt(x[:1])
        return np.append(scale * sd, self.shape_values(x))

    def shape_values(self, x: np.ndarray) -> np.ndarray:
        """Return the printed parameters of the correlation."""
        return self.correlation.natural(x[self.scales :])[0]

    def shape_slopes(self, x: np.ndarray) -> np.ndarray:
        """Differentiate `shape_values` in the parameters; (shapes, size)."""
        out = np.zeros((len(self.correlation.names), self.size))
        out[:, self.scales :] = self.correlation.natural(x[self.scales :])[1]
        return out

    def parameters(self, natural: Sequence[float], U: np.ndarray) -> np.ndarray:
        """Return the parameters of printed ones; see `natural`."""
        values = np.asarray(natural, dtype=float)
        sd = values[: self.scales] / np.diag(U)[: self.scales]
        if (sd < 0).any():
            raise ValueError(f"standard deviations of {self.label} must not be < 0.")
        shapes = values[self.scales :]
        if len(shapes):
            self.correlation.check(shapes)
            shapes = self.correlation.shapes(shapes)
        return np.concatenate([sd if self.heterogeneous else sd**2, shapes])

    def starts(self, variance: float) -> list[np.ndarray]:
        """Parameters to begin from, given the variance of a standardised column."""
        size = math.sqrt(variance) if self.heterogeneous else variance
        return [
            np.append(np.full(self.scales, size), shape)
            for shape in self.correlation.starts()
        ]

    # -- edges of the range ------------------------------------------------------------

    def sizes(self, x: np.ndarray) -> np.ndarray:
        """Standardised standard deviations, one or one a column."""
        part = x[: self.scales]
        return part if self.heterogeneous else np.sqrt(np.maximum(part, 0.0))

    def zeros(self, x: np.ndarray) -> np.ndarray:
        """Which standard deviations, (K,), count as zero."""
        sizes = self.sizes(x)
        zero = sizes <= _ZERO * max(1.0, sizes.max())
        return zero if self.heterogeneous else np.full(self.k, zero[0])

    def determined(self, x: np.ndarray) -> np.ndarray:
        """Which parameters mean something: not shapes where nothing varies."""
        out = x > self.lower
        if not self.correlation.names:
            return out
        least = 2 if self.heterogeneous else 1
        out[self.scales :] = (x[: self.scales] > 0).sum() >= least
        return out

    def edges(self, x: np.ndarray) -> list[str]:
        """Say where the covariance is on the edge of its range, if it is."""
        zero = self.zeros(x)
        if zero.all():
            return [f"the variance of {self.label} is zero"]
        out = [
            f"the variance of {name} is zero"
            for name, none in zip(self.names, zero, strict=True) if none
        ]  # fmt: skip
        R = self._correlations(x).value
        at_edge = self.correlation.edge(R[np.tril_indices(self.k, -1)])
        return out if at_edge is None else [*out, at_edge]


def lower_factor(V: np.ndarray) -> np.ndarray:
    """Lower-triangular factor of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(V)
    half = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    R = np.linalg.qr(half, mode="r")
    signs = np.where(np.diag(R) < 0, -1.0, 1.0)
    return (R * signs[:, None]).T


# -- from a term to its covariance -----------------------------------------------------

_CORRELATIONS: dict[str, type[Any]] = {
    "homdiag": _Identity, "cs": _Exchangeable, "hcs": _Exchangeable,
    "homcs": _Exchangeable, "ar1": _Autoregressive, "hetar1": _Autoregressive,
    "toep": _Toeplitz, "homtoep": _Toeplitz, "ou": _Exponential, "exp": _Exponential,
    "gau": _Gaussian, "mat": _Matern,
}  # fmt: skip
#: Kinds of structured covariances.
KINDS = tuple(_CORRELATIONS)
#: Names of parameters that are positive numbers; all others are correlations.
POSITIVE = ("range", "smoothness")
_SERIES = ("ar1", "hetar1", "toep", "homtoep")


def covariance_of(
    kind: str, names: tuple[str, ...], text: str, label: str
) -> Covariance:
    """Return the covariance of a term.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    names : tuple of str
        Columns that vary; those of places end with their coordinates in brackets.
    text : str
        The term as written, for messages.
    label : str
        What stands before the bar.

    Raises
    ------
    ModelError
        For columns that the kind has no meaning for.
    """
    if len(names) < 2:
        raise ModelError(
            f"{text}: a covariance between columns needs at least two, and there is "
            f"{names[0]} alone; write C(...) where a number stands for levels."
        )
    if kind in _SERIES and "Intercept" in names:
        raise ModelError(
            f"{text}: {kind} needs the levels of a factor in order, without an "
            f"intercept: {kind}(0 + C(time) | g)."
        )
    build = _CORRELATIONS[kind]
    argument: Any = _coordinates(names) if kind in PLACES else len(names)
    return Covariance(kind, names, label, kind in _HETEROGENEOUS, build(argument))


def _coordinates(names: tuple[str, ...]) -> np.ndarray:
    """Coordinates of places, from the names of their columns: ``points(x)[1.5]``."""
    inner = [name[name.rindex("[") + 1 : -1] for name in names]
    return np.array([[float(v) for v in text.split(";")] for text in inner])
