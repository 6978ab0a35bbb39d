"""A sample and a loss as what is asked of points: their loss, the best ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from .lattice import Found, best_points
from .logistic import Patterns, ScoreSearch, newton

__all__ = ["ScoreTask", "SquaredTask", "Task", "Valued"]

Array = np.ndarray


@dataclass(frozen=True)
class Valued:
    """Given points with the best of the rest.

    Attributes
    ----------
    loss, intercept : float
    step : float
        What the points are multiplied by.
    """

    loss: float
    intercept: float
    step: float


class Task(Protocol):
    """What the exact search and its rivals know of a sample.

    Attributes
    ----------
    low, high : ndarray, shape (p,)
        Bounds of the points.
    step : float or None
        None where the multiplier is free.
    terms : int
        Most points that are not zero.
    spread : ndarray, shape (p,)
        Standard deviations of the columns.
    """

    low: Array
    high: Array
    step: float | None
    terms: int
    spread: Array

    def real(self, at: Array) -> tuple[Array, float, float]:
        """Best real coefficients of some columns, their intercept and loss."""
        ...

    def evaluate(self, z: Array, free: bool = False) -> Valued:
        """Loss of points (p,); with `free` by the best multiplier."""
        ...

    def solve(self, restarts: int, seed: int, limit: int | None) -> Found:
        """Return the best points; their value is the mean loss."""
        ...


@dataclass(eq=False)
class SquaredTask:
    """Mean squared error of ``a + step * X z``; see `Task`.

    Parameters
    ----------
    X : ndarray, shape (n, p)
    y : ndarray, shape (n,)
    weights : ndarray, shape (n,)
        With sum one.
    low, high : ndarray, shape (p,)
    step : float
    whole : bool
        Whether the intercept is a multiple of the step.
    terms : int
    """

    X: Array
    y: Array
    weights: Array
    low: Array
    high: Array
    step: float
    whole: bool
    terms: int

    def __post_init__(self) -> None:
        self.mean, self.y_mean = self.weights @ self.X, float(self.weights @ self.y)
        root = np.sqrt(self.weights)
        self.centred = (self.X - self.mean) * root[:, None]
        self.right = (self.y - self.y_mean) * root
        self.spread = np.linalg.norm(self.centred, axis=0)

    @cached_property
    def _factor(self) -> tuple[Array, Array, float]:
        """R, Q'y and the residual sum of squares of the centred sample."""
        Q, R = np.linalg.qr(self.centred)
        c = Q.T @ self.right
        return R, c, float(np.sum((self.right - Q @ c) ** 2))

    def real(self, at: Array) -> tuple[Array, float, float]:
        """Least squares."""
        R, c, rest = self._factor
        b = np.linalg.lstsq(R[:, at], c, rcond=None)[0]
        loss = rest + float(np.sum((c - R[:, at] @ b) ** 2))
        return b, self.y_mean - float(self.mean[at] @ b), loss

    def evaluate(self, z: Array, free: bool = False) -> Valued:
        """Return the loss of points."""
        R, c, rest = self._factor
        s = R @ z
        size = float(s @ s)
        step = self.step
        if free and size > 0:
            step = float(s @ c) / size
        intercept = self.y_mean - step * float(self.mean @ z)
        extra = 0.0
        if self.whole and step != 0:
            near = step * round(intercept / step)
            intercept, extra = near, (near - intercept) ** 2
        loss = rest + float(np.sum((c - step * s) ** 2)) + extra
        return Valued(loss, intercept, step)

    def solve(self, restarts: int, seed: int, limit: int | None) -> Found:
        """Search the lattice; it needs no restarts."""
        R, c, rest = self._factor
        p, on = len(self.low), None
        A, low, high = self.step * R, self.low, self.high
        t = np.linalg.solve(A, c)
        if self.whole:
            # The constant's column, decided with the others: |a - y + mean'b| is
            # the last row.
            A = np.zeros((p + 1, p + 1))
            A[:p, :p] = self.step * R
            A[p] = self.step * np.r_[self.mean, 1.0]
            t = np.linalg.solve(A, np.r_[c, self.y_mean])
            low, high = np.r_[low, -np.inf], np.r_[high, np.inf]
            on = np.arange(p + 1) < p
        found = best_points(
            A, t, low, high, terms=None if self.terms >= p else self.terms,
            counted=on, starts=[self._start(t)],
            limit=1_000_000 if limit is None else limit,
        )  # fmt: skip
        return Found(found.z[:p], found.value + rest, found.bound + rest, found.nodes)

    def _start(self, t: Array) -> Array:
        """Round coefficients, of the largest effects only where terms are few."""
        p = len(self.low)
        at = np.argsort(-np.abs(t[:p]) * self.spread, kind="stable")[: self.terms]
        z = np.zeros(p)
        z[at] = np.round(self.real(at)[0] / self.step)
        z = np.clip(z, self.low, self.high)
        if not self.whole:
            return z
        return np.r_[z, round(self.evaluate(z).intercept / self.step)]


@dataclass(eq=False)
class ScoreTask:
    """Mean log-loss of ``sigmoid(a + m * X z)``; see `Task`.

    Parameters
    ----------
    patterns : Patterns
    low, high : ndarray of int, shape (p,)
    step : float or None
    whole : bool
    terms : int
    """

    patterns: Patterns
    low: Array
    high: Array
    step: float | None
    whole: bool
    terms: int

    def __post_init__(self) -> None:
        X, w = self.patterns.X, self.patterns.total
        self.spread = np.sqrt(w @ (X - w @ X) ** 2)

    def _search(self, step: float | None) -> ScoreSearch:
        return ScoreSearch(
            self.patterns, self.low, self.high, step=step, whole=self.whole,
            terms=self.terms,
        )  # fmt: skip

    def real(self, at: Array) -> tuple[Array, float, float]:
        """Logistic regression."""
        X = self.patterns.X[:, at]
        A = np.column_stack([np.ones(len(X)), X])[None]
        coef, value, _ = newton(A, self.patterns)
        return coef[0, 1:], float(coef[0, 0]), float(value[0])

    def evaluate(self, z: Array, free: bool = False) -> Valued:
        """Return the loss of points."""
        found = self._search(None if free else self.step).evaluate(
            z[None].astype(float)
        )
        return Valued(
            float(found.value[0]), float(found.intercept[0]), float(found.multiplier[0])
        )

    def solve(self, restarts: int, seed: int, limit: int | None) -> Found:
        """Search locally, then by branch and bound."""
        if limit is None:
            # As many nodes as a second or two can look at.
            size = len(self.patterns.total) * (len(self.low) + 1)
            limit = max(1000, min(200_000, math.ceil(1e8 / size)))
        return self._search(self.step).run(restarts, seed, limit)
