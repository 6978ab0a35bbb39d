"""What is minimised, and how: by the secular equation, or by Newton's method.

The objectives of n rows, deviations v with weights W and ``u = W v``:

========  ===============================  ================================
form      gaussian                         binomial
========  ===============================  ================================
norm      ``|r| / sqrt(n) + lam |u|``      ``mean log-loss + lam |u|``
squared   ``|r|^2 / n + lam |u|^2``        ``mean log-loss + lam |u|^2``
========  ===============================  ================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit

from ...errors import DesignError, ModelError
from .equations import Equations, Factored
from .sample import Sample
from .secular import solve_norm

__all__ = ["FORMS", "Gaussian", "Logistic", "Solution", "problem_of"]

Array = np.ndarray

FORMS = ("norm", "squared")
#: Decades of strengths of a path, from where deviations are all but gone.
_DECADES = 8.0
_STEPS = 100
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Solution:
    """A minimum.

    Attributes
    ----------
    penalty : float
        lam of the objective.
    mu : float
        Strength of the ridge equations that it solves; infinite without deviations.
    w : ndarray, shape (p,)
    u : ndarray, shape (q,)
        Deviations times their weights.
    loss, objective : float
        Root mean square or mean square of the residuals, or mean log-loss; with the
        penalty.
    residual : float
        How far the conditions of a minimum are from holding, without units.
    iterations : int
    factored : Factored or None
        The equations at mu; None without deviations.
    """

    penalty: float
    mu: float
    w: Array
    u: Array
    loss: float
    objective: float
    residual: float
    iterations: int
    factored: Factored | None

    @cached_property
    def df(self) -> float:
        """Effective number of parameters."""
        return len(self.w) if self.factored is None else self.factored.df()


def problem_of(sample: Sample, family: str) -> Gaussian | Logistic:
    """Return the problem of a family's name."""
    return Gaussian(sample) if family == "gaussian" else Logistic(sample)


def _penalty(form: str, u: Array) -> float:
    return float(np.linalg.norm(u)) if form == "norm" else float(u @ u)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Least squares.

    Attributes
    ----------
    sample : Sample
    """

    sample: Sample

    @cached_property
    def equations(self) -> Equations:
        """Cross-products, made once for all strengths."""
        return Equations.build(self.sample)

    @cached_property
    def _start(self) -> tuple[Array, Array]:
        """Least squares without deviations: coefficients and residuals."""
        s, eq = self.sample, self.equations
        y = s.y if s.offset is None else s.y - s.offset
        w, r = np.zeros(s.p), y
        for _ in range(2):  # the second step regains what squaring columns lost
            w = w + eq.population(s.X.T @ r)
            r = y - s.X @ w
        if float(r @ r) <= 1e-24 * max(float(y @ y), 1e-300):
            raise DesignError(
                "the population coefficients fit the response exactly; nothing is "
                "left for deviations by group."
            )
        return w, r

    @cached_property
    def _right(self) -> tuple[Array, Array]:
        """Right-hand sides of the residuals without deviations."""
        x, u = self.sample.adjoint(self._start[1])
        return u, x

    @property
    def _rss(self) -> float:
        return float(self._start[1] @ self._start[1])

    @property
    def penalty_max(self) -> float:
        """Least strength of the norm at which there are no deviations."""
        size = float(np.linalg.norm(self._right[0]))
        return size / float(np.sqrt(self.sample.n * self._rss))

    def solve(
        self, penalty: float, form: str, start: Solution | None = None
    ) -> Solution:
        """Minimise the objective; `start` is not needed."""
        if form == "squared":
            return self.ridge(self.sample.n * penalty, penalty)
        target = penalty * np.sqrt(self.sample.n)
        root = solve_norm(self.equations, self._right, target, self._rss)
        w = self._start[0] + root.w
        return self._finished(penalty, form, root.mu, w, root.u, root.factored)

    def ridge(self, mu: float, penalty: float) -> Solution:
        """Minimise the squared objective, ``|r|^2 + mu |u|^2``."""
        factored = self.equations.factored(mu)
        u, w = factored.solve(*self._right)
        return self._finished(penalty, "squared", mu, self._start[0] + w, u, factored)

    def _residuals(self, w: Array, u: Array) -> Array:
        s = self.sample
        r = s.y - s.linear(w, u)
        return r if s.offset is None else r - s.offset

    def _finished(
        self, penalty: float, form: str, mu: float, w: Array, u: Array,
        factored: Factored | None,
    ) -> Solution:  # fmt: skip
        """Correct by the residuals of the rows, and evaluate."""
        s = self.sample
        r = self._residuals(w, u)
        x, b = s.adjoint(r)
        if factored is not None:
            change, moved = factored.solve(b - mu * u, x)
            w, u = w + moved, u + change
            r = self._residuals(w, u)
            x, b = s.adjoint(r)
        squares = float(r @ r)
        loss = np.sqrt(squares / s.n) if form == "norm" else squares / s.n
        lengths = np.sqrt(self.equations.rest.diagonal()[-s.p :]) if s.p else x
        residual = float((np.abs(x) / lengths).max(initial=0.0)) / np.sqrt(squares)
        if form == "norm":
            b = b / np.sqrt(s.n * squares)
            own = _norm_residual(b, penalty, u)
        else:
            own = _ridge_residual(b, mu, u)
        return Solution(
            penalty, mu, w, u, float(loss), float(loss) + penalty * _penalty(form, u),
            max(residual, own), 1, factored,
        )  # fmt: skip

    def grid(self, form: str, size: int) -> Array:
        """Strengths of a path, the strongest first."""
        top = self.equations.top
        mus = np.geomspace(10 * top, 10 * top * 10**-_DECADES, size)
        if form == "squared":
            return mus / self.sample.n
        strengths = [self.penalty_max, *(self.norm_strength(mu) for mu in mus[1:])]
        return np.minimum.accumulate(strengths)

    def norm_strength(self, mu: float) -> float:
        """Return the penalty on the norm that has the ridge solution at mu."""
        u, w = self.equations.factored(mu).solve(*self._right)
        r = self._start[1] - self.sample.linear(w, u)
        length = float(np.linalg.norm(r)) * np.sqrt(self.sample.n)
        return mu * float(np.linalg.norm(u)) / length

    def gcv(self, solution: Solution) -> float:
        """Return the generalised cross-validation of mean squares."""
        n = self.sample.n
        r = self._residuals(solution.w, solution.u)
        return float(n * (r @ r) / max(n - solution.df, 1e-300) ** 2)

    @staticmethod
    def loss_of(sample: Sample, eta: Array) -> Array:
        """Squared error of each row."""
        return (sample.y - eta) ** 2


@dataclass(frozen=True, eq=False)
class Logistic:
    """Logistic regression.

    Attributes
    ----------
    sample : Sample
    """

    sample: Sample

    def _eta(self, w: Array, u: Array) -> Array:
        eta = self.sample.linear(w, u)
        return eta if self.sample.offset is None else eta + self.sample.offset

    @cached_property
    def population(self) -> Array:
        """Coefficients without deviations."""
        s, w = self.sample, np.zeros(self.sample.p)
        if not s.p:
            return w
        value = self._loss(w, np.zeros(s.q))
        for _ in range(_STEPS):
            p = expit(self._eta(w, np.zeros(s.q)))
            information = (s.X * (p * (1 - p))[:, None]).T @ s.X
            gradient = s.X.T @ (s.y - p)
            try:
                step = np.linalg.solve(information, gradient)
            except np.linalg.LinAlgError:
                raise self._diverged() from None
            size, gain = 1.0, float(gradient @ step) / s.n
            while size > 1e-10:
                tried = self._loss(w + size * step, np.zeros(s.q))
                if tried <= value - 1e-4 * size * gain or gain < 1e-14:
                    break
                size /= 2
            w, value = w + size * step, self._loss(w + size * step, np.zeros(s.q))
            if gain < 1e-20:
                return w
        raise self._diverged()

    @staticmethod
    def _diverged() -> ModelError:
        return ModelError(
            "the population coefficients of the logistic regression do not converge: "
            "some columns tell the outcomes apart perfectly. Leave them out, or let "
            "them deviate by group only."
        )

    def _loss(self, w: Array, u: Array) -> float:
        return float(self.loss_of(self.sample, self._eta(w, u)).mean())

    @staticmethod
    def loss_of(sample: Sample, eta: Array) -> Array:
        """Log-loss of each row."""
        return np.logaddexp(0.0, eta) - sample.y * eta

    @cached_property
    def penalty_max(self) -> float:
        """Least strength of the norm at which there are no deviations."""
        s = self.sample
        p = expit(self._eta(self.population, np.zeros(s.q)))
        return float(np.linalg.norm(s.adjoint(s.y - p)[1])) / s.n

    def solve(
        self, penalty: float, form: str, start: Solution | None = None
    ) -> Solution:
        """Minimise by proximal Newton steps: each is a quadratic, solved exactly.

        Parameters
        ----------
        penalty : float
        form : {"norm", "squared"}
        start : Solution, optional
            A solution nearby.
        """
        w = self.population if start is None else start.w
        u = np.zeros(self.sample.q) if start is None else start.u
        value = self._loss(w, u) + penalty * _penalty(form, u)
        steps, residual = 0, np.inf
        while steps < _STEPS:
            steps += 1
            p = expit(self._eta(w, u))
            weights, gap = p * (1 - p), self.sample.y - p
            mu, factored, new_w, new_u = self._quadratic(
                penalty, form, w, u, weights, gap
            )
            promised = self._promised(penalty, form, gap, (w, u), (new_w, new_u))
            size = 1.0
            while size > 1e-10:
                tried = w + size * (new_w - w), u + size * (new_u - u)
                found = self._loss(*tried) + penalty * _penalty(form, tried[1])
                if found <= value + 1e-4 * size * promised or promised > -1e-13:
                    break
                size /= 2
            (w, u), value = tried, found
            residual = self.residual(penalty, form, w, u)
            if (promised > -1e-13 and residual < _TOLERANCE) or size <= 1e-10:
                break
        loss = self._loss(w, u)
        objective = loss + penalty * _penalty(form, u)
        return Solution(penalty, mu, w, u, loss, objective, residual, steps, factored)

    def _quadratic(
        self, penalty: float, form: str, w: Array, u: Array, weights: Array, gap: Array
    ) -> tuple[float, Factored | None, Array, Array]:
        """Minimise the second-order expansion of the loss plus the penalty."""
        s = self.sample
        equations = Equations.build(s, weights)
        x, b = s.adjoint(weights * s.linear(w, u) + gap)
        if form == "norm":
            root = solve_norm(equations, (b, x), s.n * penalty)
            return root.mu, root.factored, root.w, root.u
        mu = 2 * s.n * penalty
        factored = equations.factored(mu)
        new_u, new_w = factored.solve(b, x)
        return mu, factored, new_w, new_u

    def _promised(
        self, penalty: float, form: str, gap: Array, old: tuple[Array, Array],
        new: tuple[Array, Array],
    ) -> float:  # fmt: skip
        """First-order change of the objective along a step."""
        s = self.sample
        slope = -float(gap @ s.linear(new[0] - old[0], new[1] - old[1])) / s.n
        if form == "norm":
            return slope + penalty * (_penalty(form, new[1]) - _penalty(form, old[1]))
        return slope + 2 * penalty * float(old[1] @ (new[1] - old[1]))

    def residual(self, penalty: float, form: str, w: Array, u: Array) -> float:
        """How far the conditions of a minimum are from holding, without units."""
        s = self.sample
        gap = s.y - expit(self._eta(w, u))
        x, b = s.adjoint(gap)
        lengths = np.sqrt((s.X**2).sum(0)) * np.linalg.norm(gap)
        own = (
            _norm_residual(b / s.n, penalty, u)
            if form == "norm"
            else _ridge_residual(b, 2 * s.n * penalty, u)
        )
        return max(float((np.abs(x) / lengths).max(initial=0.0)), own)

    def grid(self, form: str, size: int) -> Array:
        """Strengths of a path, the strongest first."""
        if form == "norm":
            return np.geomspace(self.penalty_max, 1e-3 * self.penalty_max, size)
        s = self.sample
        p = expit(self._eta(self.population, np.zeros(s.q)))
        top = Equations.build(s, p * (1 - p)).top
        return np.geomspace(10 * top, 1e-5 * top, size) / (2 * s.n)


def _norm_residual(b: Array, penalty: float, u: Array) -> float:
    """Of the condition ``b = lam u / |u|``, or ``|b| <= lam`` where u is zero."""
    size = float(np.linalg.norm(u))
    if size == 0:
        return max(float(np.linalg.norm(b)) / penalty - 1, 0.0)
    return float(np.linalg.norm(b - penalty * u / size)) / penalty


def _ridge_residual(b: Array, mu: float, u: Array) -> float:
    """Of the condition ``b = mu u``."""
    size = float(np.linalg.norm(b)) + mu * float(np.linalg.norm(u))
    return float(np.linalg.norm(b - mu * u)) / size if size else 0.0
