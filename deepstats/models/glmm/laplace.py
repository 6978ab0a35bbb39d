"""Minus twice the log-likelihood by Laplace's method, with its exact gradient.

At given parameters the modes b of the random effects maximise the joint density:
Newton's method on the linear model's equations, with the weights of the rows' log
density. The integral is then approximated by that of a normal density with the same
mode and curvature.

The gradient is exact: the modes move with the parameters, and so do the weights in the
determinant. With D the weights, h_i the leverages ``z_i'(Z'DZ + V^-1)^-1 z_i``,
``g = h dD/d eta``, ``a = Z (Z'DZ + V^-1)^-1 Z'g`` and s = Z'F_0 the modes' scores,

    d(-2 log L) / d eta_j = -2 F_j + h D_j + a F_0j          (row by row)
    d(-2 log L) / dV      = sum over levels of Z'Sigma^-1 Z - s s' + (c s' + s c') / 2

where c is what Z'g leaves: ``Z'g - Z'DZ (Z'DZ + V^-1)^-1 Z'g``.

Where several predictors p, q, ... have random effects (`mixed.parted`), a row has a
matrix of weights ``D_pq`` and one of leverages ``h_pq = z_p' (...) z_q``; products of
the two are summed over all entries, and products with a and g over the predictors.

References
----------
Breslow & Clayton (1993); Skaug & Fournier (2006), Automatic approximation of the
marginal likelihood in non-Gaussian hierarchical models; Kristensen et al. (2016), TMB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..mixed.elimination import Factorisation, factorise
from ..mixed.reweighted import Reweighted
from .rows import RowDensity, Slopes, Turns

__all__ = ["TIGHT", "Laplace", "Modes", "Point"]

#: The search for the modes ends where a step is this short, in standard deviations.
TIGHT = 1e-10
_STEPS, _HALVINGS = 100, 30
#: From this weight of a row on, rounding of its slope is seen in gradients; covariances
#: worse conditioned than so are left alone.
_HEAVY, _SINGULAR = 1e5, 1e4
#: Steps with equations that are held go on where each is shorter than the last by this
#: share at least, and as long as so many more of them are enough.
_CONTRACTS, _MORE = 0.3, 5
#: They are not tried where a step is longer than this, in mean squares.
_NEAR = 1.0


@dataclass(eq=False)
class Modes:
    """Modes of the random effects at given parameters.

    Attributes
    ----------
    effects : list of Tensor, each (K, m)
        By factor, of the standardised columns.
    dual : list of Tensor, each (K, m)
        ``V^-1`` times the effects, which are there also where V is singular.
    etas : tuple of Tensor, each (n,)
    slopes : Slopes
    penalty : float
        ``b'V^-1 b``.
    factorisation : Factorisation
        Of the equations at the modes.
    weights : Tensor, shape (n,) or (r, r, n)
        Of the equations; a matrix a row where r predictors have random effects.
    steps : int
    converged : bool
    """

    effects: list[Tensor]
    dual: list[Tensor]
    etas: tuple[Tensor, ...]
    slopes: Slopes
    penalty: float
    factorisation: Factorisation
    weights: Tensor
    steps: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _State:
    """Effects on the way to their modes."""

    effects: list[Tensor]
    dual: list[Tensor]
    etas: tuple[Tensor, ...]
    slopes: Slopes
    penalty: float

    @cached_property
    def value(self) -> float:
        """Minus the logarithm of the joint density."""
        return -float(self.slopes.value.sum()) + self.penalty / 2


@dataclass(frozen=True, eq=False)
class _Equations:
    """Factorised equations of the effects, and the weights they were made with.

    They are Newton's, whose steps get ever shorter, unless weights are expected ones or
    were made positive.
    """

    factorisation: Factorisation
    weights: Tensor
    newton: bool


@dataclass(frozen=True, eq=False)
class Pieces:
    """What a gradient is summed from.

    Attributes
    ----------
    along : list of Tensor, each (n,)
        Derivative in every linear predictor, row by row.
    score : list of Tensor, each (K, m)
        ``Z'F_0`` by factor.
    left : list of Tensor, each (K, m)
        What ``Z'g`` leaves.
    """

    along: list[Tensor]
    score: list[Tensor]
    left: list[Tensor]


@dataclass(eq=False)
class Point:
    """The criterion at given parameters.

    Attributes
    ----------
    x : ndarray
        Covariance parameters (see `mixed.structure`).
    gamma : ndarray
        Coefficients of all linear predictors.
    value : float
        Minus twice the log-likelihood.
    modes : Modes
    laplace : Laplace
    """

    x: np.ndarray
    gamma: np.ndarray
    value: float
    modes: Modes
    laplace: Laplace = field(repr=False)

    @cached_property
    def gradient(self) -> tuple[np.ndarray, np.ndarray]:
        """Derivative in the covariance parameters and in the coefficients."""
        return self.laplace.gradient(self)

    @property
    def leverages(self) -> Tensor:
        """``z_i'(Z'DZ + V^-1)^-1 z_i`` of every row: variances given the parameters."""
        return self.inverse[0]

    @cached_property
    def turns(self) -> Turns:
        """How slopes and weights of rows change with the linear predictors."""
        return self.laplace.density.turns(self.modes.etas)

    @cached_property
    def inverse(self) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
        """Leverages, traces and blocks by level; see `Reweighted.leverages`."""
        return self.laplace.rows.leverages(self.modes.factorisation)


class Laplace:
    """The criterion as a function of the parameters.

    Parameters
    ----------
    rows : Reweighted
    density : RowDensity
    X : tuple of Tensor, each (n, p_j)
        Matrix of every linear predictor; ``rows.parts`` have random effects.
    offsets : tuple of Tensor or None, each (n,)

    Attributes
    ----------
    tight : float
        How near to the modes evaluations are, in standard deviations.
    evaluations, factorisations : int
        How many there were.
    """

    def __init__(
        self, rows: Reweighted, density: RowDensity, X: tuple[Tensor, ...],
        offsets: tuple[Tensor | None, ...],
    ) -> None:  # fmt: skip
        self.rows, self.density, self.X, self.offsets = rows, density, X, offsets
        self.structure = rows.structure
        self.evaluations = 0
        self.factorisations = 0
        self.tight = TIGHT
        self._held: Modes | None = None

    @property
    def sizes(self) -> list[int]:
        """Coefficients of every linear predictor."""
        return [x.shape[1] for x in self.X]

    def predictors(self, gamma: np.ndarray) -> tuple[Tensor, ...]:
        """Linear predictors without random effects, each (n,)."""
        values = torch.from_numpy(np.asarray(gamma)).to(self.X[0])
        parts = torch.split(values, self.sizes)
        found = []
        for x, b, offset in zip(self.X, parts, self.offsets, strict=True):
            eta = x @ b
            found.append(eta if offset is None else eta + offset)
        return tuple(found)

    def __call__(self, x: np.ndarray, gamma: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        modes = self.modes(x, gamma)
        value = (
            -2 * float(modes.slopes.value.sum())
            + modes.penalty
            + modes.factorisation.logdet
        )
        return Point(np.array(x), np.array(gamma), value, modes, self)

    def begin_at(self, point: Point) -> None:
        """Look for the modes of the next call near those of a point."""
        self._held = point.modes

    # -- modes -------------------------------------------------------------------------

    def modes(self, x: np.ndarray, gamma: np.ndarray) -> Modes:
        """Find the modes, from those of the last call.

        Newton's steps take new equations each. Near the modes steps with the equations
        at hand, which cost a pass over the rows only, get as far; at the end the
        equations are made once more, where the determinant is wanted.
        """
        roots = self.structure.roots(x)
        device = self.X[0].device
        covariances = [torch.from_numpy(r @ r.T).to(device) for r in roots]
        fixed = self.predictors(gamma)
        state, settled = self._first(fixed, covariances), False
        if self._held is not None:
            held = _Equations(
                self._held.factorisation, self._held.weights, not self.density.expected
            )
            state, settled = self._chords(fixed, state, held, covariances)
        converged = False
        step = 0
        while step < _STEPS:
            step += 1
            equations = self._equations(state, fixed, roots)
            if settled:
                converged = True
                break
            found, decrement = self._newton(fixed, state, equations)
            if decrement <= self.tight**2:
                converged = True
                break
            if found is None:
                # Rounding: the joint density cannot rise although a step is left.
                converged = decrement < 1e-8 * (1 + abs(state.value))
                break
            state = found
            if decrement < 1:
                state, settled = self._chords(
                    fixed, state, equations, distance=float(np.sqrt(decrement))
                )
        self._held = Modes(
            state.effects, state.dual, state.etas, state.slopes, state.penalty,
            equations.factorisation, equations.weights, step, converged,
        )  # fmt: skip
        return self._held

    def _first(self, fixed: tuple[Tensor, ...], covariances: list[Tensor]) -> _State:
        """State to begin from: the last modes, or none."""
        zeros = [self.rows.zeros(f.k, f.m) for f in self.structure.factors]
        if self._held is None:
            return self._state(fixed, covariances, zeros)
        state = self._state(fixed, covariances, self._held.dual)
        if np.isfinite(state.value):
            return state
        return self._state(fixed, covariances, zeros)

    def _state(
        self, fixed: tuple[Tensor, ...], covariances: list[Tensor], dual: list[Tensor]
    ) -> _State:
        effects = [V @ c for V, c in zip(covariances, dual, strict=True)]
        return self._at(fixed, effects, dual, self.rows.combine(effects))

    def _at(
        self, fixed: tuple[Tensor, ...], effects: list[Tensor], dual: list[Tensor],
        random: Tensor,
    ) -> _State:  # fmt: skip
        etas = list(fixed)
        for p, part in zip(self.rows.parts, self.rows.split(random), strict=True):
            etas[p] = fixed[p] + part
        return _State(
            effects, dual, tuple(etas), self.density.slopes(tuple(etas)),
            _inner(effects, dual),
        )  # fmt: skip

    def _random(self, state: _State, fixed: tuple[Tensor, ...]) -> Tensor:
        """Return what random effects add to the predictors that have them."""
        return self.rows.stack([state.etas[p] - fixed[p] for p in self.rows.parts])

    def _chords(
        self, fixed: tuple[Tensor, ...], state: _State, held: _Equations,
        covariances: list[Tensor] | None = None, distance: float = 0.0,
    ) -> tuple[_State, bool]:  # fmt: skip
        """Newton's steps with equations made elsewhere, as long as they get shorter.

        With s = Z'F_0 the modes solve ``b = V s``. Steps are in ``c = V^-1 b``, which
        a singular V leaves defined; with K the inverse and D the weights of the
        equations that are held,

            change of c = (s - c) - Z'D Z K (s - c).

        Parameters
        ----------
        fixed : tuple of Tensor
        state : _State
        held : _Equations
        covariances : list of Tensor, optional
            V, where the equations are of another one.
        distance : float
            From where the equations were made, if that is known.

        Returns
        -------
        state : _State
        settled : bool
            Whether it is as near to the modes as asked.
        """
        last, wide = np.inf, _NEAR * np.sqrt(sum(f.q for f in self.structure.factors))
        for _ in range(_STEPS):
            score = self.rows.gather(state.slopes.first)
            left = [s - c for s, c in zip(score, state.dual, strict=True)]
            change = self.solve(held.factorisation, left)
            length = float(np.sqrt(abs(_inner(left, change))))
            share = length / last
            shorter = length <= wide and share <= _CONTRACTS
            if not (shorter or length <= self.tight):
                break
            along = self.rows.combine(change)
            turn = self.rows.gather(self.rows.times(held.weights, along))
            dual = [s - t for s, t in zip(score, turn, strict=True)]
            if covariances is not None:
                after = self._state(fixed, covariances, dual)
            else:
                # Not V times the new c: where rows say much, rounding of c is no small
                # one of the effects.
                effects = [b + d for b, d in zip(state.effects, change, strict=True)]
                random = self._random(state, fixed) + along
                after = self._at(fixed, effects, dual, random)
            if not after.value <= state.value + 1e-9 * (1 + abs(state.value)):
                break
            state = after
            # Shares get worse: at first steps mend what parameters have changed.
            known = np.isfinite(last)
            first = min(10 * max(length, distance), 1.0) if held.newton else 1.0
            rest = length * (np.sqrt(share) if known else first)
            if rest <= self.tight:
                return state, True
            if known and np.log(self.tight / rest) < _MORE * np.log(share):
                break
            last = length
        return state, False

    @staticmethod
    def solve(f: Factorisation, parts: list[Tensor]) -> list[Tensor]:
        """Apply the inverse of equations to one vector, by factor."""
        return f.solve_one(parts)

    def _equations(
        self, state: _State, fixed: tuple[Tensor, ...], roots: list[np.ndarray]
    ) -> _Equations:
        """Factorise at the weights of a state, for the next modes."""
        slopes, random = state.slopes, self._random(state, fixed)
        for name in ("weight", "positive"):
            weights = getattr(slopes, name)
            response = self.rows.times(weights, random) + slopes.first
            found = self._factorise(weights, response, roots)
            if found is not None:
                newton = name == "weight" and not self.density.expected
                return _Equations(found, weights, newton)
        raise FloatingPointError("the equations of the modes cannot be factorised")

    def _newton(
        self, fixed: tuple[Tensor, ...], state: _State, equations: _Equations
    ) -> tuple[_State | None, float]:
        """Newton's step from a state, and twice what it promises.

        The step is halved until the joint density rises; None where it does not.
        """
        f, w = equations.factorisation, equations.weights
        pulled = f.products.by_factor(f.products.response)
        b = self.solve(f, [p[:, :, 0] for p in pulled])
        change = [n - o for n, o in zip(b, state.effects, strict=True)]
        random = self._random(state, fixed)
        along = self.rows.combine(change)
        pull = self.rows.times(w, along)
        dual = self.rows.gather(state.slopes.first - pull)
        turn = [n - o for n, o in zip(dual, state.dual, strict=True)]
        decrement = float(torch.vdot(pull.view(-1), along.view(-1)))
        decrement += _inner(turn, change)
        if decrement <= self.tight**2:
            return None, decrement
        length, slack = 1.0, 1e-13 * (1 + abs(state.value))
        for _ in range(_HALVINGS):
            after = self._at(
                fixed,
                [b + length * d for b, d in zip(state.effects, change, strict=True)],
                [c + length * d for c, d in zip(state.dual, turn, strict=True)],
                random + length * along,
            )
            if after.value <= state.value - 1e-4 * length * decrement + slack:
                return after, decrement
            length /= 2
        return None, decrement

    def factorise(
        self, weights: Tensor, response: Tensor, roots: list[np.ndarray]
    ) -> Factorisation:
        """Factorise the equations under weights."""
        found = self._factorise(weights, response, roots)
        if found is None:
            raise FloatingPointError("the equations of the modes cannot be factorised")
        return found

    def _factorise(
        self, weights: Tensor, response: Tensor, roots: list[np.ndarray]
    ) -> Factorisation | None:
        """Factorise; None where the equations are not positive definite."""
        self.factorisations += 1
        if not bool(torch.isfinite(response).all()):
            return None
        found = factorise(self.rows.at(weights, response), roots)
        return found if found is not None and np.isfinite(found.logdet) else None

    # -- derivatives -------------------------------------------------------------------

    def gradient(self, point: Point) -> tuple[np.ndarray, np.ndarray]:
        """Exact derivative in the covariance parameters and in the coefficients."""
        h, traces, _ = point.inverse
        pieces = self.pieces(point, h, lambda g: self.through(point, g))
        return self.summed(point, pieces, traces)

    def through(self, point: Point, values: Tensor) -> Tensor:
        """``Z H^-1 Z'`` times values of rows, H the curvature that moves the modes."""
        solved = self.solve(self._observed(point), self.rows.gather(values))
        return self.rows.combine(solved)

    def pieces(
        self, point: Point, h: Tensor, through: Callable[[Tensor], Tensor]
    ) -> Pieces:
        """Find what rows and levels add to the gradient.

        Parameters
        ----------
        point : Point
        h : Tensor, shape (n,)
            Leverages.
        through : callable
            From values of rows to what they move the linear predictor by.
        """
        turns, rows = point.turns, self.rows
        slopes, score = turns.first, point.modes.slopes.first
        shift = self._rounding(point)
        if shift is not None:
            slopes = tuple(
                f + shift * s for f, s in zip(slopes, turns.second, strict=True)
            )
            score = slopes[rows.parts[0]]
        bends = [rows.total(h * w) for w in turns.weight]
        g = rows.stack([bends[p] for p in rows.parts])
        a = through(g)
        # What Z'g leaves; minus F_00 are the weights by which the modes move.
        moved = [
            turns.second[p] * part
            for p, part in zip(rows.parts, rows.split(a), strict=True)
        ]
        along = [
            bend + rows.total(a * second) - 2 * first
            for first, second, bend in zip(slopes, turns.second, bends, strict=True)
        ]
        return Pieces(along, rows.gather(score), rows.gather(g + sum(moved)))

    def _rounding(self, point: Point) -> Tensor | None:
        """How far linear predictors are from the modes, for rounding; (n,).

        Counts of 1e7 and more have slopes ``y - mu`` of which rounding leaves nine
        digits, and sums of them, small as the effects' duals, fewer. The effects
        themselves have all: ``Z'F_0 = V^-1 b`` says by how much slopes are off. None
        where weights are not so large, or where V is near singular.
        """
        weights, roots = point.modes.weights, self.structure.roots(point.x)
        if weights.dim() > 1 or self.density.expected:
            return None
        if not float(weights.max()) > _HEAVY:
            return None
        if any(np.linalg.cond(root) > _SINGULAR for root in roots):
            return None
        score = self.rows.gather(point.modes.slopes.first)
        left = []
        for s, b, root in zip(score, point.modes.effects, roots, strict=True):
            V = torch.from_numpy(root @ root.T).to(b)
            left.append(s - torch.linalg.solve(V, b))
        return self.rows.combine(self.solve(point.modes.factorisation, left))

    def summed(
        self, point: Point, pieces: Pieces, traces: list[Tensor], skip: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add up the pieces of a gradient.

        Parameters
        ----------
        point : Point
        pieces : Pieces
        traces : list of Tensor, each (K, K)
            What the determinant adds to the derivative in each factor's covariance.
        skip : int, default 0
            Linear predictors whose coefficients are left out.
        """
        G = []
        for trace, s, one in zip(traces, pieces.score, pieces.left, strict=True):
            cross = one @ s.T
            G.append((trace - s @ s.T + (cross + cross.T) / 2).cpu().numpy())
        coefficients = [
            (x.T @ along).cpu().numpy()
            for x, along in zip(self.X[skip:], pieces.along[skip:], strict=True)
        ]
        by_x = self.structure.gradient(point.x, G)
        return by_x, np.concatenate([np.zeros(0), *coefficients])

    def _observed(self, point: Point) -> Factorisation:
        """Equations with observed weights: those by which the modes move."""
        modes = point.modes
        if not self.density.expected:
            return modes.factorisation
        slopes = self.density.slopes(modes.etas, expected=False)
        return self.factorise(
            slopes.weight, slopes.first, self.structure.roots(point.x)
        )


def _inner(one: list[Tensor], two: list[Tensor]) -> float:
    """Sum of products of two vectors by factor."""
    return sum(
        float(a.reshape(-1).dot(b.reshape(-1))) for a, b in zip(one, two, strict=True)
    )
