"""Minimise a loss with penalties and constraints, to conditions that are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import DesignError, ModelError
from ...quantile import fit_quantile
from .boxed import solve_boxed
from .constraints import Constraints
from .groupwise import solve_groups
from .objective import Objective, Slopes
from .penalties import Penalty
from .plq import Kinks, kkt, solve_plq

__all__ = ["Problem", "Solution", "data_kinks", "feasible", "minimise"]

Array = np.ndarray

#: Coefficients from which `minimise` stores no Hessian, unless told.
_MANY = 1500


@dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised.

    Attributes
    ----------
    objective : Objective
    penalty : Penalty
    constraints : Constraints
    """

    objective: Objective
    penalty: Penalty
    constraints: Constraints

    def value(self, b: Array) -> float:
        """Mean loss plus penalty."""
        return self.objective.value(b) + self.penalty.value(b)

    def smooth_value(self, b: Array) -> float:
        """Mean loss plus the smooth part of the penalty."""
        return self.objective.value(b) + self.penalty.smooth_value(b)

    def slopes(self, b: Array, order: int = 2) -> Slopes:
        """Return derivatives of the smooth part."""
        found = self.objective.at(b, order)
        gradient, hessian = self.penalty.derivatives(b)
        return replace(
            found, gradient=found.gradient + gradient,
            hessian=None if found.hessian is None else found.hessian + hessian,
        )  # fmt: skip

    def kinks(self, b: Array) -> Kinks:
        """Piecewise linear terms: l1 penalty (about `b`, if integer), constraints."""
        near, c = self.penalty.centred(b), self.constraints
        return Kinks.absolute(near.l1, near.centre).plus(
            Kinks.constrained(c.A, c.c, c.E, c.d)
        )

    def residual(self, b: Array, found: Slopes | None = None) -> float:
        """Largest violation of the conditions of Karush, Kuhn and Tucker.

        Each element of the gradient over the root mean square of its column and of
        the rows' derivatives: without units, like a correlation.
        """
        loss = self.objective.composite.loss
        if loss.slopes is not None and self.objective.composite.convex:
            return self._residual_of_pieces(b)
        found = found or self.slopes(b, 1)
        scale = self.objective.scale * max(found.size, 1e-8 * self._reference)
        gradient = found.gradient
        if not self.penalty.groups:
            return kkt(gradient, self.kinks(b), b, scale)[0]
        return _group_residual(gradient, self.penalty, b, scale)

    @property
    def _reference(self) -> float:
        """Size of the rows' derivatives at zero; one where they vanish."""
        size = self.objective.at(np.zeros(self.objective.k), 1).size
        return size if size > 0 else 1.0

    def _residual_of_pieces(self, b: Array) -> float:
        gradient, _ = self.penalty.derivatives(b)
        found = self.objective.at(b, 1)
        rows = data_kinks(self.objective)
        scale = self.objective.scale * max(found.size, 1e-300)
        return kkt(gradient, rows.plus(self.kinks(b)), b, scale)[0]


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the search ended.

    Attributes
    ----------
    b : ndarray, shape (k,)
    value : float
        Mean loss plus penalty.
    residual : float
        See `Problem.residual`.
    converged : bool
    iterations : int
    message : str
    stopped : bool
        The watcher asked to stop.
    """

    b: Array
    value: float
    residual: float
    converged: bool
    iterations: int
    message: str
    stopped: bool = field(default=False)


Watch = Callable[[Array], bool]


def minimise(
    problem: Problem,
    start: Array,
    *,
    maxiter: int = 100,
    tol: float = 1e-9,
    method: str | None = None,
    watch: Watch | None = None,
) -> Solution:
    """Minimise mean loss plus penalty under constraints.

    Piecewise linear losses are solved as linear or quadratic programs. For the others
    each step minimises the quadratic model of the smooth part plus everything that
    has kinks, under the constraints (proximal Newton), and is halved until the
    objective falls enough; the Hessian is made positive definite where the loss is
    not convex. Integer penalties are minimised from above, by l1 penalties about the
    nearest integers.

    Parameters
    ----------
    problem : Problem
    start : ndarray, shape (k,)
    maxiter : int, default 100
    tol : float, default 1e-9
        On `Problem.residual`.
    method : {"newton", "lbfgs"}, optional
        L-BFGS stores no Hessian; it takes bounds, but no penalty with kinks. By
        default it is used where there are very many coefficients.
    watch : callable, optional
        Called with the coefficients of each iteration; true stops there.

    Returns
    -------
    Solution

    References
    ----------
    Lee, Sun & Saunders (2014), Proximal Newton-type methods for minimizing composite
    functions, SIAM J. Optimization 24(3).
    """
    composite = problem.objective.composite
    if composite.loss.slopes is not None and composite.convex:
        return _minimise_pieces(problem, start, tol, watch)
    if method == "lbfgs" or (method is None and _too_many(problem)):
        return _lbfgs(problem, start, maxiter, tol, watch)
    return _proximal_newton(problem, start, maxiter, tol, watch)


def _too_many(problem: Problem) -> bool:
    rough = not problem.penalty.smooth
    return (
        problem.objective.k > _MANY
        and not rough
        and problem.constraints.box is not None
    )


# -- smooth losses ---------------------------------------------------------------------


def _proximal_newton(
    problem: Problem, start: Array, maxiter: int, tol: float, watch: Watch | None
) -> Solution:
    b = feasible(problem, start)
    message, residual, stopped = f"not converged in {maxiter} iterations", np.inf, False
    value, steps, stalled = problem.value(b), 0, 0
    for steps in range(maxiter + 1):
        found = problem.slopes(b)
        residual = problem.residual(b, found)
        if watch is not None and watch(b):
            message, stopped = "stopped early", True
            break
        if residual <= tol:
            # One step more: near the optimum its error is squared.
            b, value, residual = _last_step(problem, b, found, value, residual)
            message = "converged"
            break
        if steps == maxiter:
            break
        assert found.hessian is not None
        target, predicted = _model_step(problem, b, found)
        b_new, value_new = _line_search(problem, b, value, target, predicted)
        gain = value - value_new
        stalled = stalled + 1 if gain <= 1e-15 * abs(value) else 0
        if b_new is b or stalled > 3:
            message = "no step lowers the objective further (rounding)"
            break
        b, value = b_new, value_new
    good = residual <= tol or (residual <= 1e-7 and not stopped)
    return Solution(b, value, residual, good, steps, message, stopped)


def _last_step(
    problem: Problem, b: Array, found: Slopes, value: float, residual: float
) -> tuple[Array, float, float]:
    """Take a step from where the conditions hold already, if they then hold better."""
    target, _ = _model_step(problem, b, found)
    after = problem.value(target)
    if not after <= value + 1e-14 * abs(value):
        return b, value, residual
    closer = problem.residual(target)
    return (target, after, closer) if closer < residual else (b, value, residual)


def _model_step(problem: Problem, b: Array, found: Slopes) -> tuple[Array, float]:
    """Minimiser of the model about `b`, and by how much the model falls (negative)."""
    H = _definite(found.hessian, problem.objective.scale)
    penalty = problem.penalty
    r = H @ b - found.gradient
    if penalty.groups:
        target = solve_groups(H, r, penalty, b)
    else:
        target = _piecewise_step(H, r, problem, b)
    move = target - b
    kinks = problem.kinks(b)
    fall = float(found.gradient @ move) + float(move @ H @ move) / 2
    fall += kinks.value(target) - kinks.value(b)
    if penalty.groups:
        fall += penalty.rough_value(target) - penalty.rough_value(b)
    return target, fall


def _piecewise_step(H: Array, r: Array, problem: Problem, b: Array) -> Array:
    """Minimise the quadratic with kinks: by an active set where all are on the axes."""
    near, box = problem.penalty.centred(b), problem.constraints.box
    if box is None:
        return solve_plq(H, -r, problem.kinks(b), b).b
    c = near.centre
    found = solve_boxed(H, r - H @ c, near.l1, b - c, box[0] - c, box[1] - c)
    at_zero = (found == 0) & (near.l1 > 0)
    return np.clip(np.where(at_zero, c, found + c), *box)


def _definite(H: Array | None, scale: Array) -> Array:
    """Return the Hessian, its negative curvature turned positive."""
    assert H is not None
    scaled = H / scale[:, None] / scale
    values, vectors = np.linalg.eigh(scaled)
    least = 1e-12 * max(float(np.abs(values).max()), 1e-300)
    if values[0] > least:
        return H
    floor = 1e-6 * max(float(np.abs(values).max()), 1e-300)
    lifted = np.maximum(np.abs(values), floor)
    found = (vectors * lifted) @ vectors.T
    return found * scale[:, None] * scale


def _line_search(
    problem: Problem, b: Array, value: float, target: Array, predicted: float
) -> tuple[Array, float]:
    """Halve the step until the objective falls by a share of what the model says."""
    if not np.isfinite(target).all():
        return b, value
    slack, length = 1e-14 * (1e-300 + abs(value)), 1.0
    for _ in range(50):
        # The whole step lands on its kinks and bounds exactly.
        trial = target if length == 1.0 else b + length * (target - b)
        after = problem.value(trial)
        if after <= value + 1e-4 * length * min(predicted, 0.0) + slack:
            return trial, after
        length /= 2
    return b, value


def feasible(problem: Problem, start: Array) -> Array:
    """Return the feasible point nearest to `start`, in units of the columns."""
    c = problem.constraints
    if c.empty or c.violation(start) == 0:
        return start.copy()
    Q = np.diag(problem.objective.scale**2)
    kinks = Kinks.constrained(c.A, c.c, c.E, c.d)
    found = solve_plq(Q, -Q @ start, kinks, start).b
    return found if c.box is None else np.clip(found, *c.box)


def _lbfgs(
    problem: Problem, start: Array, maxiter: int, tol: float, watch: Watch | None
) -> Solution:
    from scipy.optimize import minimize

    box = problem.constraints.box
    if box is None or not problem.penalty.smooth:
        raise ModelError(
            "method='lbfgs' takes bounds, but no other constraints and no penalty "
            "with kinks (lasso, group, integer); use method='newton'."
        )
    scale = problem.objective.scale

    def both(x: Array) -> tuple[float, Array]:
        found = problem.slopes(x / scale, 1)
        value = found.value + problem.penalty.smooth_value(x / scale)
        return value, found.gradient / scale

    stopped = False

    def each(x: Array) -> None:
        nonlocal stopped
        if watch is not None and watch(x / scale):
            stopped = True
            raise StopIteration

    found = minimize(
        both, np.clip(start, *box) * scale, jac=True, method="L-BFGS-B",
        bounds=list(zip(box[0] * scale, box[1] * scale, strict=True)), callback=each,
        options={"maxiter": 50 * maxiter, "maxfun": 100 * maxiter, "ftol": 0.0,
                 "gtol": 0.0, "maxcor": 20},
    )  # fmt: skip
    b = found.x / scale
    residual = problem.residual(b)
    # The line search of L-BFGS ends where rounding of the objective hides its fall.
    good = residual <= max(tol, 1e-6)
    message = (
        "stopped early" if stopped else ("converged" if good else str(found.message))
    )
    return Solution(
        b, problem.value(b), residual, good, int(found.nit), message, stopped
    )


# -- piecewise linear losses -----------------------------------------------------------


def data_kinks(objective: Objective) -> Kinks:
    """Rows of an absolute or quantile loss as terms of a piecewise linear function."""
    slopes = objective.composite.loss.slopes
    assert slopes is not None
    y = objective.y if objective.offset is None else objective.y - objective.offset
    n = len(y)
    w = np.ones(n) if objective.weights is None else objective.weights.cpu().numpy()
    on = w > 0
    share = w[on] / objective.total
    return Kinks(
        objective.X.cpu().numpy()[on], y.cpu().numpy()[on], slopes[0] * share,
        slopes[1] * share,
    )  # fmt: skip


def _minimise_pieces(
    problem: Problem, start: Array, tol: float, watch: Watch | None
) -> Solution:
    penalty = problem.penalty
    if penalty.groups or penalty.function is not None:
        raise ModelError(
            f"the loss {problem.objective.composite.loss.name} goes with ridge, lasso, "
            "elastic net and integer penalties; for a group or callable penalty use "
            "huber(delta) with a small delta."
        )
    if watch is None and penalty.empty and problem.constraints.empty:
        found = _vertex(problem, tol)
        if found is not None:
            return found
    rows, b = data_kinks(problem.objective), start
    steps = 0
    for _ in range(50):
        terms = rows.plus(problem.kinks(b))
        found = solve_plq(np.diag(penalty.l2), np.zeros(len(b)), terms, b, watch)
        steps += found.iterations
        before, b = b, found.b
        if not penalty.integer or np.array_equal(before, b):
            break
        if problem.value(b) >= problem.value(before) - 1e-15:
            break
    if watch is not None:
        watch(b)
    residual = problem.residual(b)
    good = residual <= max(tol, 1e-7)
    message = "converged" if good else "the linear program was not solved to rounding"
    return Solution(b, problem.value(b), residual, good, steps, message)


def _vertex(problem: Problem, tol: float) -> Solution | None:
    """Solve without penalty and constraints; None where columns are dependent."""
    objective = problem.objective
    slopes = objective.composite.loss.slopes
    assert slopes is not None
    y = objective.y if objective.offset is None else objective.y - objective.offset
    w = None if objective.weights is None else objective.weights.cpu().numpy()
    q = slopes[0] / (slopes[0] + slopes[1])
    try:
        found = fit_quantile(objective.X.cpu().numpy(), y.cpu().numpy(), q, w)
    except DesignError:
        return None
    residual = problem.residual(found.params)
    good = residual <= max(tol, 1e-7)
    return Solution(
        found.params, problem.value(found.params), residual, good, found.iterations,
        found.message,
    )  # fmt: skip


def _group_residual(gradient: Array, penalty: Penalty, b: Array, scale: Array) -> float:
    """Conditions of a group lasso (and l1 terms elsewhere)."""
    left, worst = gradient.copy(), 0.0
    for group in penalty.groups:
        at, s = group.at, group.scale
        length = float(np.linalg.norm(s * b[at]))
        if length > 0:
            left[at] += group.weight * s**2 * b[at] / length
            continue
        force = float(np.linalg.norm(gradient[at] / s))
        worst = max(worst, (force - group.weight) / float((scale[at] / s).max()))
        left[at] = 0.0
    return max(worst, float(np.abs(left / scale).max(initial=0.0)))
