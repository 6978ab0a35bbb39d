"""Normal responses: a unit is its cross-products, whatever its times.

With e = y - X b, the log-density of a unit is linear in n, y'y, X'y and X'X. These few
numbers of each unit stand for its rows: an EM step is two products of matrices, also
where no two rows are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .cells import Dense
from .emission import Position, Scratch, _Summed, free_step, own_steps
from .slots import Slots

__all__ = ["QuadraticEmission", "unit_products"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def unit_products(X: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Return n, y'y, X'y and the upper triangle of X'X of every unit.

    Parameters
    ----------
    X : Tensor, shape (n, p)
    y : Tensor, shape (n,)
    start : Tensor of int, shape (N + 1,)
        Where each unit's rows begin; units may have none.

    Returns
    -------
    Tensor, shape (N, 2 + p + p (p + 1) / 2)
    """
    counts = start.diff()
    a, v = X.cpu().numpy(), y.cpu().numpy()
    p = a.shape[1]
    some = (counts > 0).cpu().numpy()
    begin = start[:-1].cpu().numpy()[some]
    upper = [(i, j) for i in range(p) for j in range(i, p)]
    found = np.zeros((len(counts), 2 + p + len(upper)))
    found[:, 0] = counts.cpu().numpy()

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, begin) if len(begin) else values[:0]

    found[some, 1] = total(v * v)
    for j in range(p):
        found[some, 2 + j] = total(a[:, j] * v)
    for place, (i, j) in enumerate(upper, start=2 + p):
        found[some, place] = total(a[:, i] * a[:, j])
    return torch.from_numpy(found).to(X)


@dataclass(frozen=True, eq=False)
class QuadraticEmission(_Summed):
    """Normal responses with one residual variance for each group, or for all.

    Attributes
    ----------
    incidence : Dense
        `unit_products` of every unit, of y less `centre`.
    slots : Slots
        The last coefficient of a group is the logarithm of its standard deviation.
    centre : Tensor, shape (p,)
        Coefficients of a constant that was taken from y, which keeps the sums of
        squares from cancelling; zeros where the columns hold no constant.
    mean, spread : float
        Of the response: where a search begins.
    lower : Tensor, shape (P,)
    """

    incidence: Dense
    slots: Slots
    centre: Tensor
    mean: float
    spread: float
    lower: Tensor
    normaliser: Tensor | None = None

    @property
    def _p(self) -> int:
        return self.slots.width - 1

    def _parts(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients from the centre (K, S, p), and precisions (K, S, 1)."""
        return b[:, :, :-1] - self.centre, torch.exp(-2 * b[:, :, -1:])

    def at(self, free: Tensor) -> Position:
        """Prepare tables at free parameters (S, P)."""
        b = self.slots.spread(free)
        beta, tau = self._parts(b)
        i, j = torch.triu_indices(self._p, self._p)
        double = torch.where(i == j, 1.0, 2.0).to(b)
        terms = torch.cat(
            [
                -b[:, :, -1:] - _HALF_LOG_2PI,
                -0.5 * tau,
                tau * beta,
                -0.5 * tau * double * beta[:, :, i] * beta[:, :, j],
            ],
            dim=2,
        )
        return Position(free, b, terms)

    def _sums(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """n, y'y, X'y and X'X of summed products (..., features)."""
        p = self._p
        i, j = torch.triu_indices(p, p)
        XX = sums.new_zeros(*sums.shape[:-1], p, p)
        XX[..., i, j] = sums[..., 2 + p :]
        XX[..., j, i] = sums[..., 2 + p :]
        return sums[..., 0], sums[..., 1], sums[..., 2 : 2 + p], XX

    def _squares(self, beta: Tensor, sums: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """X'e and e'e at coefficients (K, S, p)."""
        _, yy, Xy, XX = sums
        Xe = Xy - (XX @ beta[..., None])[..., 0]
        return Xe, yy - (beta * (Xy + Xe)).sum(-1)

    def improve(self, at: Position, scratch: Scratch, inner: int = 1) -> Tensor:
        """Maximise the expected log-density: coefficients, then variances.

        One round is exact but where groups with variances of their own share
        coefficients.
        """
        sums = self._sums(scratch.sums[0])
        if self._separate:
            return self._improve_separate(at, sums)
        free, slots = at.free, self.slots
        for _ in range(inner):
            beta, tau = self._parts(slots.spread(free))
            Xe, _ = self._squares(beta, sums)
            K, S, p = beta.shape
            gradient = torch.cat([tau * Xe, Xe.new_zeros(K, S, 1)], dim=2)
            square = Xe.new_zeros(K, S, p + 1, p + 1)
            square[:, :, :p, :p] = tau[..., None] * sums[3]
            square[:, :, p, p] = 1.0
            free = free + free_step(
                slots, gradient, square, torch.full_like(self.lower, torch.inf)
            )
            beta, _ = self._parts(slots.spread(free))
            free = self._variances(free, beta, sums)
        return free

    @cached_property
    def _separate(self) -> bool:
        """Whether groups share no coefficients: variances do not matter to these."""
        return self.slots.separate(self._p)

    def _improve_separate(self, at: Position, sums: tuple[Tensor, ...]) -> Tensor:
        """Maximise in one round where groups share no coefficients."""
        beta = at.coefficients[:, :, :-1] - self.centre
        _, _, Xy, XX = sums
        step = own_steps(Xy - (XX @ beta[..., None])[..., 0], XX)
        change = self.slots.gather(torch.nn.functional.pad(step, (0, 1)))
        return self._variances(at.free + change, beta + step, sums)

    def _variances(
        self, free: Tensor, beta: Tensor, sums: tuple[Tensor, ...]
    ) -> Tensor:
        """Put the variances where they are best, given the coefficients."""
        _, ee = self._squares(beta, sums)
        place = self.slots.selection[:, -1]
        total, rows = ee.clamp_min(0).T @ place, sums[0].T @ place
        log_sigma = 0.5 * torch.log(total.clamp_min(1e-300) / rows.clamp_min(1e-12))
        return torch.where(rows > 1e-8, torch.maximum(log_sigma, self.lower), free)

    def score_terms(self, at: Position) -> Tensor:
        """Differentiate the terms in the coefficients; (K, C, S, features)."""
        beta, tau = self._parts(at.coefficients)
        K, S, p = beta.shape
        assert at.terms is not None
        F = at.terms.shape[2]
        i, j = torch.triu_indices(p, p)
        found = beta.new_zeros(K, p + 1, S, F)
        for c in range(p):
            found[:, c, :, 2 + c] = tau[:, :, 0]
            # X'X beta: feature (i, j) gives beta_j to row i, and beta_i to row j.
            row = (i == c) * beta[:, :, j] + ((j == c) & (i != j)) * beta[:, :, i]
            found[:, c, :, 2 + p :] = -tau * row
        # In ln sigma: e'e / sigma^2 - n, where e'e is -2 / tau times all later terms.
        found[:, p] = -2 * at.terms
        found[:, p, :, 0] = -1.0
        return found

    def curvature(self, at: Position, scratch: Scratch) -> Tensor:
        """Minus the second derivatives of what was collected."""
        sums = self._sums(scratch.sums[0])
        beta, tau = self._parts(at.coefficients)
        K, S, p = beta.shape
        Xe, ee = self._squares(beta, sums)
        square = beta.new_zeros(K, S, p + 1, p + 1)
        square[:, :, :p, :p] = tau[..., None] * sums[3]
        square[:, :, p, :p] = square[:, :, :p, p] = 2 * tau * Xe
        square[:, :, p, p] = 2 * tau[..., 0] * ee
        return square

    def begin(self, count: int) -> Tensor:
        """Parameters of one group without trends."""
        coefficients = torch.cat([self.centre, self.centre.new_zeros(1)])
        coefficients[-1] = math.log(self.spread)
        free = self.centre.new_zeros(self.slots.count)
        for row in self.slots.index:
            free[row[row >= 0]] = coefficients[row >= 0]
        return free.expand(count, -1).clone()

    def select(self, units: Tensor) -> QuadraticEmission:
        """Return the emission of some units."""
        return replace(self, incidence=self.incidence.select(units))

    @property
    def floors(self) -> Tensor:
        """Parameters whose least value is that of a standard deviation; (P,)."""
        return torch.isfinite(self.lower)

    def with_groups(self, groups: int) -> QuadraticEmission:
        """Return the emission of the first groups only."""
        slots, kept = self.slots.first(groups)
        return replace(self, slots=slots, lower=self.lower[kept])
