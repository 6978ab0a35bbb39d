"""Minus twice the log-likelihood by Laplace's method, and its exact gradient.

With random effects b of covariance ``sigma^2 V``, their modes minimise the penalised
sum of squares ``P(b) = sum w (y - f)^2 + b'V^-1 b``, and

    -2 log L = n log(2 pi sigma^2) + P / sigma^2 + log |I + V H| - sum log w

where H is half the second derivative of the sum of squares: with its second derivatives
of the curve (information "observed", as in TMB), or without (Gauss and Newton's, as in
lme4's nlmer). Effects are written ``b = V c``, so that a singular V is none.

Gradients are automatic. The modes move with the parameters: a last Newton step from the
modes found, which changes nothing, is differentiated with the rest.

References
----------
Pinheiro & Bates (1995), Approximations to the log-likelihood function in the nonlinear
mixed-effects model; Wolfinger (1993), Laplace's approximation for nonlinear mixed
models, Biometrika 80.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .effects import Effects
from .linearised import Linearised
from .reading import numbers
from .rows import Rows

__all__ = ["Laplace", "Modes", "Point"]

_STEPS, _HALVINGS = 200, 30
#: Modes are found to steps this short, in residual standard deviations (squared).
_TIGHT = 1e-20
#: Steps shorter than this are Newton's, longer ones Gauss-Newton's.
_NEAR = 1e-2
#: One of Newton's that is this short leaves the square of it.
_LAST = 1e-10


@dataclass(eq=False)
class Modes:
    """Modes of the random effects at given parameters.

    Attributes
    ----------
    b, c : Tensor, shape (clusters, size)
        Standardised effects, ``b = V c``.
    penalised : float
        Sum of squares and penalty.
    H : Tensor, shape (clusters, size, size)
        Half the second derivative of the sum of squares, exact.
    steps : int
    converged : bool
    """

    b: Tensor
    c: Tensor
    penalised: float
    H: Tensor
    steps: int
    converged: bool


@dataclass(eq=False)
class Point:
    """The criterion at given parameters.

    Attributes
    ----------
    z : ndarray
        Covariance parameters, coefficients, logarithm of sigma.
    value : float
        Minus twice the log-likelihood; infinite where it is undefined.
    modes : Modes or None
    criterion : Laplace
    """

    z: np.ndarray
    value: float
    modes: Modes | None
    criterion: Laplace = field(repr=False)

    @property
    def x(self) -> np.ndarray:
        """All parameters, as `mixed.search.bounded_step` reads a point."""
        return self.z

    @cached_property
    def gradient(self) -> np.ndarray:
        """Derivative in all parameters."""
        return self.criterion.gradient(self)


class Laplace:
    """The criterion as a function of the parameters.

    Parameters
    ----------
    linear : Linearised
    expected : bool
        Whether second derivatives of the curve are left out of the determinant.

    Attributes
    ----------
    evaluations : int
    """

    def __init__(self, linear: Linearised, expected: bool) -> None:
        self.rows: Rows = linear.rows
        self.effects: Effects = linear.effects
        self.structure, self.expected = linear.structure, expected
        self.evaluations = 0
        self._held: Tensor | None = None

    @property
    def lower(self) -> np.ndarray:
        """Lower bounds of the parameters."""
        free = sum(self.rows.sizes) + 1
        return np.concatenate([self.structure.lower, np.full(free, -np.inf)])

    def parts(self, z: np.ndarray) -> tuple[np.ndarray, Tensor, float]:
        """Covariance parameters, coefficients, logarithm of sigma."""
        k = self.structure.size
        beta = torch.from_numpy(np.ascontiguousarray(z[k:-1]))
        return z[:k], beta, float(z[-1])

    def hold(self, modes: Modes | None) -> None:
        """Look for the next modes near these."""
        self._held = None if modes is None else modes.c

    def covariances(self, x: np.ndarray) -> list[Tensor]:
        """Standardised relative covariance of the effects of every factor."""
        return [torch.from_numpy(r @ r.T) for r in self.structure.roots(x)]

    def __call__(self, z: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        x, beta, log_sigma = self.parts(z)
        V = self.covariances(x)
        modes = self.modes(self.effects.covariance(V), beta)
        if modes is None:
            return Point(np.array(z), math.inf, None, self)
        with torch.no_grad():
            scale = torch.tensor(log_sigma, dtype=torch.float64)
            value = float(self._value(modes, V, beta, scale))
        return Point(np.array(z), value if value == value else math.inf, modes, self)

    # -- modes -------------------------------------------------------------------------

    def modes(self, V: Tensor, beta: Tensor) -> Modes | None:
        """Minimise the penalised sum of squares of every cluster; None if undefined.

        Parameters
        ----------
        V : Tensor, shape (clusters, size, size)
        beta : Tensor, shape (p,)
        """
        fixed, effects = self.rows.fixed(beta), self.effects
        c = effects.zeros() if self._held is None else self._held
        b = _times(V, c)
        value = self._penalised(fixed, b, c)
        if not bool(torch.isfinite(value).all()):
            c = b = effects.zeros()
            value = self._penalised(fixed, b, c)
            if not bool(torch.isfinite(value).all()):
                return None
        # Near the last modes steps are Newton's from the first.
        size = math.inf if self._held is None else 0.0
        converged, step = False, 0
        eye = torch.eye(effects.size, dtype=torch.float64)
        while step < _STEPS:
            step += 1
            scale = float(value.sum()) / self.rows.n
            near = size < _NEAR * scale
            score, A, H = self._second(fixed, b, near)
            change, turn, length = _newton(V, H, score, b, c, eye)
            if near and bool((length < 0).any()):
                near = False
                change, turn, length = _newton(V, A, score, b, c, eye)
            size = float(length.max())
            if not size < math.inf:
                return None
            if size <= (_LAST if near else _TIGHT) * scale:
                b, c = b + change, c + turn
                value, converged = self._penalised(fixed, b, c), True
                break
            moved = self._line(fixed, (b, c, value), (change, turn))
            if moved is None:
                converged = size < 1e-6 * scale
                break
            b, c, value = moved
        if not (converged and near):
            _, _, H = self._second(fixed, b, True)
        self._held = c
        return Modes(b, c, float(value.sum()), H, step, converged)

    def _line(
        self, fixed: Tensor, at: tuple[Tensor, Tensor, Tensor],
        step: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
        """Halve the steps of the clusters whose penalised sum of squares would rise."""
        (b, c, value), (change, turn) = at, step
        share, slack = torch.ones_like(value), 1e-13 * value.sum()
        for _ in range(_HALVINGS):
            after_b, after_c = b + share[:, None] * change, c + share[:, None] * turn
            after = self._penalised(fixed, after_b, after_c)
            worse = ~(after <= value + slack)
            if not bool(worse.any()):
                return after_b, after_c, after
            share = torch.where(worse, share / 2, share)
        return None

    def _penalised(self, fixed: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Sum of squares and penalty of every cluster."""
        rows = self.rows
        f = rows.mean(fixed + self.effects.move(b))
        return self.effects.sums(rows.w * (rows.y - f).square()) + (b * c).sum(1)

    def _second(
        self, fixed: Tensor, b: Tensor, exact: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Half the derivatives of the sum of squares: first (negative), second.

        Returns
        -------
        score : Tensor, shape (clusters, size)
        A, H : Tensor, shape (clusters, size, size)
            Without second derivatives of the curve, and with them if asked for.
        """
        rows, effects = self.rows, self.effects
        phi = fixed + effects.move(b)
        if exact:
            f, D, F = rows.bends(phi)
        else:
            f, D = rows.slopes(phi)
        weighted = rows.w * (rows.y - f)
        Z = effects.columns(D)
        A = effects.matrices(rows.w[:, None, None] * Z[:, :, None] * Z[:, None, :])
        score = effects.gather(weighted[:, None] * Z)
        return score, A, A - self._bend(weighted, F) if exact else A

    def _bend(self, weighted: Tensor, F: Tensor) -> Tensor:
        """Second derivatives of the curve, times the residuals, in the effects."""
        spread = self.effects.spread
        half = torch.einsum("npq,nqk->npk", weighted[:, None, None] * F, spread)
        return self.effects.matrices(torch.einsum("npk,npl->nkl", spread, half))

    # -- value and gradient ------------------------------------------------------------

    def _value(
        self, modes: Modes, V: list[Tensor], beta: Tensor, log_sigma: Tensor
    ) -> Tensor:
        """Minus twice the log-likelihood, differentiable in all that is given."""
        rows, effects = self.rows, self.effects
        wide = effects.covariance(V)
        fixed = rows.fixed(beta)
        moved, penalised = self._moved(modes, wide, fixed)
        eye = torch.eye(effects.size, dtype=torch.float64)
        H = self._information(fixed, moved)
        sign, logdet = torch.linalg.slogdet(eye + wide @ H)
        if not bool((sign > 0).all()):
            return torch.full_like(log_sigma, math.nan)
        return (
            rows.n * (math.log(2 * math.pi) + 2 * log_sigma)
            - rows.log_weights
            + penalised * torch.exp(-2 * log_sigma)
            + logdet.sum()
        )

    def _information(self, fixed: Tensor, b: Tensor) -> Tensor:
        """Half the second derivative of the squares, as the determinant has it."""
        rows, effects = self.rows, self.effects
        graph = torch.is_grad_enabled()
        phi = fixed + effects.move(b)
        if self.expected:
            f, D = rows.slopes(phi, graph)
        else:
            f, D, F = rows.bends(phi, graph)
        Z = effects.columns(D)
        H = effects.matrices(rows.w[:, None, None] * Z[:, :, None] * Z[:, None, :])
        return H if self.expected else H - self._bend(rows.w * (rows.y - f), F)

    def _moved(self, modes: Modes, V: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Modes and penalised sum of squares as functions of the parameters."""
        rows, effects = self.rows, self.effects
        if not torch.is_grad_enabled():
            penalised = torch.tensor(modes.penalised, dtype=torch.float64)
            return modes.b, penalised
        f, D = rows.slopes(fixed + effects.move(modes.b), True)
        weighted = rows.w * (rows.y - f)
        score = effects.gather(weighted[:, None] * effects.columns(D))
        eye = torch.eye(effects.size, dtype=torch.float64)
        left = (eye + V @ modes.H).detach()
        step = torch.linalg.solve(left, (_times(V, score) - modes.b)[:, :, None])
        # The penalty's derivative in V, with the modes held, is -c c'.
        c = modes.c
        penalty = 2 * (modes.b * c).sum() - (c * _times(V, c)).sum()
        penalised = (weighted * (rows.y - f)).sum() + penalty
        return modes.b + step[:, :, 0], penalised

    def gradient(self, point: Point) -> np.ndarray:
        """Exact derivative in all parameters."""
        if point.modes is None:
            raise ArithmeticError("the criterion is undefined here.")
        x, beta, log_sigma = self.parts(point.z)
        V = [v.requires_grad_() for v in self.covariances(x)]
        beta = beta.clone().requires_grad_()
        scale = torch.tensor(log_sigma, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            value = self._value(point.modes, V, beta, scale)
            *by_V, by_beta, by_scale = torch.autograd.grad(value, (*V, beta, scale))
        G = [numbers((g + g.T) / 2) for g in by_V]
        return np.concatenate(
            [self.structure.gradient(x, G), numbers(by_beta), [float(by_scale)]]
        )


def _times(V: Tensor, c: Tensor) -> Tensor:
    return torch.einsum("cij,cj->ci", V, c)


def _newton(
    V: Tensor, H: Tensor, score: Tensor, b: Tensor, c: Tensor, eye: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Step in b and c of every cluster, and its squared length."""
    right = (_times(V, score) - b)[:, :, None]
    change = torch.linalg.solve(eye + V @ H, right)[:, :, 0]
    along = _times(H, change)
    turn = score - along - c
    return change, turn, (change * (turn + along)).sum(1)
