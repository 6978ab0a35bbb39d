"""Optimisers: functions that take an objective and a start and return an Optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Derivatives", "Optimum", "newton", "solve_information"]


@dataclass(frozen=True)
class Derivatives:
    """An objective to be maximised, at a point.

    Attributes
    ----------
    value : float
    gradient : Tensor, shape (p,)
    information : Tensor, shape (p, p)
        Minus the Hessian, or its expectation.
    """

    value: float
    gradient: Tensor
    information: Tensor


@dataclass(frozen=True)
class Optimum:
    """Where an optimiser stopped, and why.

    Attributes
    ----------
    x : Tensor, shape (p,)
    value : float
        Of the objective at `x` (predicted to second order after a last short step).
    gradient_norm : float
        Largest absolute element of the last gradient computed.
    information : Tensor, shape (p, p)
    converged : bool
    iterations : int
    message : str
    at_bound : tuple of int
        Parameters that stopped at the edge of their range.
    history : tuple of (float, float)
        Value and Newton decrement at each iteration.
    """

    x: Tensor
    value: float
    gradient_norm: float
    information: Tensor
    converged: bool
    iterations: int
    message: str
    at_bound: tuple[int, ...] = ()
    history: tuple[tuple[float, float], ...] = field(default=(), repr=False)


def newton(
    objective: Callable[[Tensor], Derivatives],
    start: Tensor,
    *,
    lower: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    reevaluate: bool = True,
) -> Optimum:
    """Maximise a smooth function by Newton or Fisher-scoring steps.

    A step solves with the information matrix, lifted to positive definite where the
    function is not concave, and is halved until the value does not fall. The measure
    of distance is the Newton decrement, ``sqrt(g' I^-1 g)``: the length of the step in
    standard errors. When it is below `tolerance` the step is still taken, which leaves
    a distance of the order of its square.

    Parameters
    ----------
    objective : callable
        Derivatives at a point.
    start : Tensor, shape (p,)
    lower : Tensor, shape (p,), optional
        Parameters that pass their bound are fixed there and reported.
    max_iterations : int, default 100
    tolerance : float, default 1e-6
        On the Newton decrement, in standard errors.
    reevaluate : bool, default True
        Whether value and information are computed once more at the solution. Without
        it they are those of the last point before a step shorter than `tolerance`.

    Returns
    -------
    Optimum

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, algorithms 3.2 and 3.3;
    Boyd & Vandenberghe (2004), Convex Optimization, section 9.5.
    """
    x, now = start, objective(start)
    free = torch.ones_like(start, dtype=torch.bool)
    history, stalled = [], 0
    for iteration in range(1, max_iterations + 1):
        if not _usable(now):
            return _stop(
                x, now, free, False, iteration, "the value is not finite", history
            )
        step = torch.zeros_like(x)
        step[free] = solve_information(now.information, free) @ now.gradient[free]
        slope = float(now.gradient @ step)
        decrement = max(slope, 0.0) ** 0.5
        history.append((now.value, decrement))
        if decrement < tolerance:
            x = x + step
            if reevaluate:
                final = objective(x)
                now = final if _usable(final) else now
            else:
                now = Derivatives(now.value + slope / 2, now.gradient, now.information)
            return _stop(x, now, free, True, iteration, "converged", history)
        found = _search(objective, x, now, step, slope)
        if found is None:
            # Rounding: the value cannot rise although a short step is left.
            flat = decrement < 1e-3
            text = "converged to rounding" if flat else "no step raises the value"
            return _stop(x, now, free, flat, iteration, text, history)
        x, after = found
        gain = after.value - now.value
        stalled = stalled + 1 if gain <= 1e-14 * abs(now.value) else 0
        now = after
        if lower is not None and bool((passed := free & (x < lower)).any()):
            x = torch.where(passed, lower.to(x), x)
            free &= ~passed
            now = objective(x)
        elif stalled >= 5 and decrement < 1e-4:
            return _stop(
                x, now, free, True, iteration, "converged to rounding", history
            )
    text = f"not converged in {max_iterations} iterations"
    return _stop(x, now, free, False, max_iterations, text, history)


def solve_information(information: Tensor, free: Tensor | None = None) -> Tensor:
    """Return the inverse of an information matrix, made positive definite if need be.

    Parameters
    ----------
    information : Tensor, shape (p, p)
    free : Tensor of bool, shape (p,), optional
        The rows and columns to use.
    """
    if free is not None and not bool(free.all()):
        information = information[free][:, free]
    d = information.diagonal().abs().clamp_min(1e-300).rsqrt()
    scaled = information * d[:, None] * d
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if int(failed) == 0:
        return torch.cholesky_inverse(factor) * d[:, None] * d
    values, vectors = torch.linalg.eigh(scaled)
    values = values.abs().clamp_min(1e-8 * float(values.abs().max()))
    return ((vectors / values) @ vectors.T) * d[:, None] * d


def _usable(d: Derivatives) -> bool:
    finite = torch.isfinite(d.gradient).all() and torch.isfinite(d.information).all()
    return bool(finite) and d.value == d.value and abs(d.value) < float("inf")


def _search(
    objective: Callable[[Tensor], Derivatives],
    x: Tensor,
    now: Derivatives,
    step: Tensor,
    slope: float,
) -> tuple[Tensor, Derivatives] | None:
    """Halve the step until the value does not fall (to rounding)."""
    length, slack = 1.0, 1e-13 * (1.0 + abs(now.value))
    for _ in range(40):
        trial = x + length * step
        after = objective(trial)
        if _usable(after) and after.value >= now.value + 1e-4 * length * slope - slack:
            return trial, after
        length /= 2
    return None


def _stop(
    x: Tensor,
    now: Derivatives,
    free: Tensor,
    converged: bool,
    iterations: int,
    message: str,
    history: list[tuple[float, float]],
) -> Optimum:
    size = float(now.gradient[free].abs().max()) if bool(free.any()) else 0.0
    bound = tuple(int(i) for i in torch.nonzero(~free).flatten())
    return Optimum(
        x, now.value, size, now.information, converged, iterations, message, bound,
        tuple(history),
    )  # fmt: skip
