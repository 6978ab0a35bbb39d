"""The self-starting curves of R's stats package, and where their fits begin.

A start needs no method of its own for each curve. Given the parameters that enter in a
nonlinear way the others are found by least squares; the former are tried on a grid that
the covariate's range suggests, and the best few are where Gauss and Newton take over
(Golub & Pereyra 1973 call this separable least squares).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

__all__ = ["CURVES", "Curve"]

#: Where a covariate's quantiles are tried as the middle of a curve.
_PLACES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
#: Rates that are tried, over the range of the covariate.
_RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
#: Scales that are tried, as shares of it.
_SCALES = (0.03, 0.06, 0.12, 0.25, 0.5)
_POWERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)

Values = dict[str, float]


@dataclass(frozen=True)
class Curve:
    """A curve that can tell where its parameters are to be looked for.

    Attributes
    ----------
    name : str
    covariates : tuple of str
        First arguments; the last of them is the one that the curve runs along.
    parameters : tuple of str
        Arguments that follow.
    function : callable
    linear : tuple of str
        Parameters in which the curve is linear, given the others.
    grid : callable
        From the covariate to values of the other parameters.
    scaled_by : str
        A parameter whose minus exponential the whole curve is proportional to; such a
        curve has no linear ones.
    """

    name: str
    covariates: tuple[str, ...]
    parameters: tuple[str, ...]
    function: Callable[..., Tensor]
    linear: tuple[str, ...]
    grid: Callable[[np.ndarray], Iterator[Values]]
    scaled_by: str = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """All arguments in their order."""
        return (*self.covariates, *self.parameters)

    def starts(
        self, covariates: tuple[Tensor, ...], y: Tensor, count: int = 3
    ) -> list[Values]:
        """Find where to begin, the best first.

        Parameters
        ----------
        covariates : tuple of Tensor, each (n,)
        y : Tensor, shape (n,)
        count : int, default 3
            How many to return.

        Returns
        -------
        list of dict
            A value for every parameter.
        """
        found: list[tuple[float, int, Values]] = []
        x = covariates[-1].numpy()
        for number, given in enumerate(self.grid(x)):
            one = self._completed(covariates, y, given)
            if one is not None:
                found.append((one[0], number, one[1]))
        return [values for _, _, values in sorted(found)[:count]]

    def _completed(
        self, covariates: tuple[Tensor, ...], y: Tensor, given: Values
    ) -> tuple[float, Values] | None:
        """Find sum of squares and all parameters where some are given, if defined."""
        solved = self.linear or (self.scaled_by,)
        columns = []
        for name in solved:
            others = {n: float(n == name) for n in self.linear}
            zero = {self.scaled_by: 0.0} if self.scaled_by else {}
            columns.append(self.function(*covariates, **given, **others, **zero))
        X = torch.stack(columns, dim=1).numpy()
        if not np.isfinite(X).all():
            return None
        values, _, rank, _ = np.linalg.lstsq(X, y.numpy(), rcond=1e-10)
        if rank < len(solved) or (self.scaled_by and values[0] <= 0):
            return None
        rss = float(np.square(y.numpy() - X @ values).sum())
        if self.scaled_by:
            values = -np.log(values)
        named = dict(zip(solved, map(float, values), strict=True))
        return rss, {n: (given | named)[n] for n in self.parameters}


# -- the curves ------------------------------------------------------------------------


def logistic(x: Tensor, Asym: Tensor, xmid: Tensor, scal: Tensor) -> Tensor:
    """``Asym / (1 + exp((xmid - x) / scal))``."""
    return Asym * torch.sigmoid((x - xmid) / scal)


def four_parameter_logistic(
    x: Tensor, A: Tensor, B: Tensor, xmid: Tensor, scal: Tensor
) -> Tensor:
    """Evaluate ``A + (B - A) / (1 + exp((xmid - x) / scal))``."""
    return A + (B - A) * torch.sigmoid((x - xmid) / scal)


def asymptotic(x: Tensor, Asym: Tensor, R0: Tensor, lrc: Tensor) -> Tensor:
    """``Asym + (R0 - Asym) exp(-exp(lrc) x)``."""
    return Asym + (R0 - Asym) * torch.exp(-_exp(lrc) * x)


def asymptotic_with_offset(x: Tensor, Asym: Tensor, lrc: Tensor, c0: Tensor) -> Tensor:
    """``Asym (1 - exp(-exp(lrc) (x - c0)))``."""
    return -Asym * torch.expm1(-_exp(lrc) * (x - c0))


def asymptotic_from_origin(x: Tensor, Asym: Tensor, lrc: Tensor) -> Tensor:
    """``Asym (1 - exp(-exp(lrc) x))``."""
    return -Asym * torch.expm1(-_exp(lrc) * x)


def biexponential(
    x: Tensor, A1: Tensor, lrc1: Tensor, A2: Tensor, lrc2: Tensor
) -> Tensor:
    """``A1 exp(-exp(lrc1) x) + A2 exp(-exp(lrc2) x)``."""
    return A1 * torch.exp(-_exp(lrc1) * x) + A2 * torch.exp(-_exp(lrc2) * x)


def gompertz(x: Tensor, Asym: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    """``Asym exp(-b2 b3^x)``."""
    return Asym * torch.exp(-b2 * b3**x)


def michaelis_menten(x: Tensor, Vm: Tensor, K: Tensor) -> Tensor:
    """``Vm x / (K + x)``."""
    return Vm * x / (K + x)


def weibull(x: Tensor, Asym: Tensor, Drop: Tensor, lrc: Tensor, pwr: Tensor) -> Tensor:
    """``Asym - Drop exp(-exp(lrc) x^pwr)``."""
    # The logarithm in the derivative of a power has no value at zero.
    positive = x > 0
    power = torch.where(positive, torch.where(positive, x, 1.0) ** pwr, 0.0)
    return Asym - Drop * torch.exp(-_exp(lrc) * power)


def first_order(
    Dose: Tensor, x: Tensor, lKe: Tensor, lKa: Tensor, lCl: Tensor
) -> Tensor:
    """``Dose exp(lKe + lKa - lCl) (e^{-Ke x} - e^{-Ka x}) / (Ka - Ke)``."""
    Ke, Ka = _exp(lKe), _exp(lKa)
    share = (torch.exp(-Ke * x) - torch.exp(-Ka * x)) / (Ka - Ke)
    return Dose * Ke * Ka / _exp(lCl) * share


def _exp(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).exp()


# -- where nonlinear parameters are looked for -----------------------------------------


def _span(x: np.ndarray) -> float:
    return float(np.ptp(x)) or 1.0


def _middles(x: np.ndarray) -> list[float]:
    low, high, half = float(x.min()), float(x.max()), _span(x) / 2
    return [low - half, *np.quantile(np.unique(x), _PLACES).tolist(), high + half]


def _sigmoid_grid(x: np.ndarray) -> Iterator[Values]:
    for middle, share, sign in itertools.product(_middles(x), _SCALES, (1, -1)):
        yield {"xmid": middle, "scal": sign * share * _span(x)}


def _rising_grid(x: np.ndarray) -> Iterator[Values]:
    # With the ends swapped a negative scale is the same curve.
    return (values for values in _sigmoid_grid(x) if values["scal"] > 0)


def _log_rates(x: np.ndarray) -> list[float]:
    return [float(np.log(r / _span(x))) for r in _RATES]


def _rate_grid(x: np.ndarray) -> Iterator[Values]:
    for rate in _log_rates(x):
        yield {"lrc": rate}


def _offset_grid(x: np.ndarray) -> Iterator[Values]:
    for rate, start in itertools.product(_log_rates(x), _middles(x)):
        yield {"lrc": rate, "c0": start}


def _two_rates_grid(x: np.ndarray) -> Iterator[Values]:
    for slow, fast in itertools.combinations(_log_rates(x), 2):
        yield {"lrc1": fast, "lrc2": slow}


def _gompertz_grid(x: np.ndarray) -> Iterator[Values]:
    for rate, middle in itertools.product(_RATES, _middles(x)):
        for speed in (rate / _span(x), -rate / _span(x)):
            exponent = speed * middle
            if abs(exponent) < 30:
                yield {"b2": float(np.exp(exponent)), "b3": float(np.exp(-speed))}


def _half_grid(x: np.ndarray) -> Iterator[Values]:
    for rate in _RATES:
        yield {"K": rate * _span(x) / 10}


def _weibull_grid(x: np.ndarray) -> Iterator[Values]:
    places = np.quantile(np.unique(x[x > 0]), _PLACES) if (x > 0).any() else [1.0]
    for place, power in itertools.product(places, _POWERS):
        yield {"lrc": float(np.log(np.log(2.0) / place**power)), "pwr": power}


def _absorption_grid(x: np.ndarray) -> Iterator[Values]:
    for slow, fast in itertools.combinations(_log_rates(x), 2):
        yield {"lKe": slow, "lKa": fast}


def _curve(
    name: str, function: Callable[..., Tensor], linear: str, grid: Callable,
    scaled_by: str = "", covariates: int = 1,
) -> Curve:  # fmt: skip
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    return Curve(
        name, names[:covariates], names[covariates:], function, tuple(linear.split()),
        grid, scaled_by,
    )  # fmt: skip


#: Curves by the names that R gives them.
CURVES: Mapping[str, Curve] = MappingProxyType(
    {
        curve.name: curve
        for curve in (
            _curve("SSlogis", logistic, "Asym", _sigmoid_grid),
            _curve("SSfpl", four_parameter_logistic, "A B", _rising_grid),
            _curve("SSasymp", asymptotic, "Asym R0", _rate_grid),
            _curve("SSasympOff", asymptotic_with_offset, "Asym", _offset_grid),
            _curve("SSasympOrig", asymptotic_from_origin, "Asym", _rate_grid),
            _curve("SSbiexp", biexponential, "A1 A2", _two_rates_grid),
            _curve("SSgompertz", gompertz, "Asym", _gompertz_grid),
            _curve("SSmicmen", michaelis_menten, "Vm", _half_grid),
            _curve("SSweibull", weibull, "Asym Drop", _weibull_grid),
            _curve("SSfol", first_order, "", _absorption_grid, "lCl", 2),
        )
    }
)
