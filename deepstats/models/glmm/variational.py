"""Variational inference for generalised linear mixed models with crossed effects.

The posterior of the random effects is taken as normal and partially factorised, as in
`mixed/variational.py`. With m and v the mean and variance of a row's linear predictor
under q, what has to be known of the family is the expected log-density E(m, v):

- Poisson counts at the log link: ``y m - exp(m + v / 2)``, in closed form;
- any other family: Gauss-Hermite quadrature, one dimension a row;
- on request, for binomial responses at the logit link: the bound of Jaakkola & Jordan
  (2000), which Polya-Gamma augmentation gives too (Durante & Rigon 2019), in closed
  form and below the expectation itself.

At its best q solves the linear model's equations with weights ``-2 dE/dv`` and scores
``dE/dm`` (Opper & Archambeau 2009): the step from weights to weights is Newton's in the
means, and a natural-gradient step in q. It is shortened where the bound would fall.
Covariance parameters follow by Newton's method on the bound so maximised, whose
gradient is that at fixed weights. The coefficients of the mean are parameters, solved
with the means; those of other predictors take Newton steps of their own.

References
----------
Jaakkola & Jordan (2000), Statistics and Computing 10. Opper & Archambeau (2009), The
variational Gaussian approximation revisited, Neural Computation 21. Durante & Rigon
(2019), Conditionally conjugate mean-field variational Bayes for logistic models,
Statistical Science 34. Goplerud, Papaspiliopoulos & Zanella (2024), arXiv 2312.13148.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError
from ...families import Binomial, Poisson
from ..mixed.criterion import Point
from ..mixed.importance import deviations
from ..mixed.variational import Bound, Crossed, CrossedRows, Equations, equations
from .forecast import nodes_and_weights
from .rows import RowDensity

__all__ = [
    "EXPECTATIONS", "LOOSE", "NOISE", "TIGHT", "Expectation", "Expected", "GLMBound",
    "GLMPoint", "State", "expectation",
]  # fmt: skip

#: Points of Gauss-Hermite quadrature of a row's expected log-density.
_NODES = 11
#: The search for q ends where a step of the predictors is this short, in units of their
#: weights: root of the sum of squares.
TIGHT, LOOSE = 1e-7, 1e-4
_STEPS, _HALVINGS = 500, 25
#: Solutions are so much nearer.
_SHARE = 1e-2
#: What that leaves unknown of the bound, as a share of it.
NOISE = 1e-11
#: Coefficients of other predictors stay where a step promises less than this share.
_NOTHING = 1e-13
#: Means beyond exp of this are infinite for all that a fit can do with them.
_MOST = 300.0
#: Draws at a time.
_BATCH = 50

#: Ways of finding the expected log-density.
EXPECTATIONS = ("auto", "polya-gamma", "quadrature")


@dataclass(frozen=True, eq=False)
class Expected:
    """The expected log-density of rows.

    Attributes
    ----------
    value : float
        Sum over rows.
    slope : Tensor, shape (n,)
        Derivative in the mean of a row's linear predictor.
    weight : Tensor, shape (n,)
        Minus twice the derivative in its variance.
    """

    value: float
    slope: Tensor
    weight: Tensor


class Expectation(ABC):
    """The expected log-density where the first linear predictor is normal.

    Parameters
    ----------
    density : RowDensity
    """

    #: As printed.
    name: str

    def __init__(self, density: RowDensity) -> None:
        self.density = density
        times = density._times()
        self.times = torch.ones_like(density.y) if times is None else times

    @abstractmethod
    def at(self, m: Tensor, v: Tensor, others: tuple[Tensor, ...]) -> Expected:
        """Evaluate at means and variances, each (n,), and other predictors."""


class PolyaGamma(Expectation):
    """Proportions at the logit link: a lower bound, quadratic in the predictor."""

    name = "Polya-Gamma"

    def at(self, m: Tensor, v: Tensor, others: tuple[Tensor, ...]) -> Expected:
        """Evaluate where the bound touches, ``xi^2 = m^2 + v``."""
        xi = (m.square() + v).sqrt()
        half = xi / 2
        small = half < 1e-4
        ratio = torch.where(small, 0.5 - half**2 / 6, half.tanh() / (2 * half))
        weight = self.times * torch.where(small, ratio / 2, ratio / 2)
        shifted = self.times * (self.density.y - 0.5)
        value = shifted * m - self.times * (half + (-xi).exp().log1p())
        if self.density._free is not None:
            value = value + self.density._free
        return Expected(float(value.sum()), shifted - weight * m, weight)


class PoissonLog(Expectation):
    """Counts at the log link."""

    name = "closed form"

    def at(self, m: Tensor, v: Tensor, others: tuple[Tensor, ...]) -> Expected:
        """Evaluate."""
        y = self.density.y
        mean = (m + v / 2).clamp_max(_MOST).exp()
        value = self.times * (y * m - mean - (y + 1).lgamma())
        weight = self.times * mean
        return Expected(float(value.sum()), self.times * (y - mean), weight)


class Hermite(Expectation):
    """Any family, by Gauss-Hermite quadrature."""

    name = f"quadrature, {_NODES} points"

    def __init__(self, density: RowDensity) -> None:
        super().__init__(density)
        self.points, self.weights = nodes_and_weights(_NODES)

    def at(self, m: Tensor, v: Tensor, others: tuple[Tensor, ...]) -> Expected:
        """Evaluate; the derivative in v is half the expected second derivative."""
        spread, total = v.clamp_min(0.0).sqrt(), 0.0
        slope, weight = torch.zeros_like(m), torch.zeros_like(m)
        for x, w in zip(self.points.tolist(), self.weights.tolist(), strict=True):
            found = self.density.slopes((m + x * spread, *others), expected=False)
            total += w * float(found.value.sum())
            slope += w * found.first
            weight += w * found.weight
        return Expected(total, slope, weight)


def expectation(density: RowDensity, how: str = "auto") -> Expectation:
    """Choose how the expected log-density is found.

    Parameters
    ----------
    density : RowDensity
    how : {"auto", "polya-gamma", "quadrature"}
        "auto" is quadrature, but for Poisson counts, whose expectation has a closed
        form. The Polya-Gamma bound is looser: on VerbAgg it loses 41 of the
        log-likelihood and 6% of the standard deviations where quadrature loses 0.5 and
        nothing.

    Raises
    ------
    ModelError
        For "polya-gamma" with anything but proportions at the logit link.
    """
    if how not in EXPECTATIONS:
        raise ValueError(
            f"expectation must be one of {', '.join(EXPECTATIONS)}; not {how!r}."
        )
    family = density.family
    link = family.links[0].name
    logit = isinstance(family, Binomial) and link == "logit"
    if how == "polya-gamma" and not logit:
        raise ModelError(
            f"the Polya-Gamma bound is for binomial responses at the logit link, not "
            f"for {family.name} ({link}); use expectation='quadrature'."
        )
    if how == "polya-gamma":
        return PolyaGamma(density)
    if how == "auto" and isinstance(family, Poisson) and link == "log":
        return PoissonLog(density)
    return Hermite(density)


# -- q at given covariance parameters --------------------------------------------------


@dataclass(frozen=True, eq=False)
class State:
    """A variational posterior and the coefficients.

    Attributes
    ----------
    effects, dual : list of Tensor, each (K, m)
        Means of the random effects by factor, and ``V^-1`` times them.
    beta : Tensor, shape (p,)
        Of the orthonormal columns of the mean's fixed part.
    others : tuple of Tensor
        Coefficients of the other predictors.
    weights : Tensor, shape (n,)
        Of the equations that are q's precision.
    equations : Equations
    m, v : Tensor, shape (n,)
        Mean and variance of the first linear predictor.
    expected : Expected
    value : float
        Minus twice the bound.
    """

    effects: list[Tensor]
    dual: list[Tensor]
    beta: Tensor
    others: tuple[Tensor, ...]
    weights: Tensor
    equations: Equations
    m: Tensor
    v: Tensor
    expected: Expected
    value: float


@dataclass(eq=False)
class GLMPoint(Point):
    """The bound at one value of the covariance parameters, and its q."""

    state: State

    @cached_property
    def information(self) -> np.ndarray:
        """Average information, no less than the expected one by effect.

        Where a variance is much too large the former is too small by far, and steps
        would end at zero. With T the sum over levels of ``Z'PZ`` the expected
        information is about ``tr(T D T D) / m`` in the direction D of V.
        """
        out = super().information
        bend = self.structure.curvature(self.x, self.slopes)
        traces = [t.cpu().numpy() for t in self.factorisation.traces(False)]
        for j, (number, D) in enumerate(self.structure.directions(self.x)):
            TD = traces[number] @ D
            expected = float((TD * TD.T).sum()) / self.structure.factors[number].m
            out[j, j] += max(expected - (out[j, j] - bend[j, j]), 0.0)
        return out


class GLMBound(Bound):
    """Minus twice the bound, with q and the coefficients at their best.

    Parameters
    ----------
    rows : CrossedRows
    expectation : Expectation
    X : tuple of Tensor, each (n, p_j)
        Matrix of every linear predictor; the first has the random effects.
    offset : Tensor or None
    gamma : ndarray
        Coefficients of all linear predictors to begin from.

    Attributes
    ----------
    tight : float
        How near to the best q evaluations are.
    """

    def __init__(
        self, rows: CrossedRows, expectation: Expectation, X: tuple[Tensor, ...],
        offset: Tensor | None, gamma: np.ndarray,
    ) -> None:  # fmt: skip
        self.rows, self.expectation, self.X = rows, expectation, X
        n = rows.n
        self.offset = rows.zeros(n) if offset is None else offset
        parts = torch.split(
            torch.from_numpy(gamma).to(self.offset), [x.shape[1] for x in X]
        )
        self._first = torch.linalg.solve(rows.turn, parts[0]), tuple(parts[1:])
        m = self.offset + rows.X @ self._first[0]
        found = expectation.at(m, torch.zeros_like(m), self.predictors(parts[1:]))
        weights = _positive(found.weight)
        super().__init__(rows.crossed(weights, found.slope), False, 1.0)
        self._weights = weights
        self._last: State | None = None
        self.tight = TIGHT

    def __call__(self, x: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        roots = self.products.structure.roots(x)
        state = self._begin(roots)
        if state is None:
            return Point(x, np.inf, None, self)
        for _ in range(_STEPS):
            state, after = self._step(state, roots), state
            moved = self._length(state, after)
            # Quadrature's slopes are those of the integral, not of its sum: below some
            # length steps gain nothing.
            gained = after.value - state.value > NOISE * (1 + abs(state.value))
            if moved <= self.tight or (moved <= LOOSE and not gained):
                break
        # A trial step too long leaves nothing to begin from.
        if self._last is None or state.value <= self._last.value:
            self._last = state
        return GLMPoint(x, state.value, state.equations, self, state)

    def predictors(self, others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Linear predictors besides the first."""
        return tuple(x @ b for x, b in zip(self.X[1:], others, strict=True))

    def _begin(self, roots: list[np.ndarray]) -> State | None:
        """Return the last q under another covariance, or none of it known."""
        last = self._last
        if last is None:
            dual = [self.rows.zeros(f.k, f.m) for f in self.products.structure.factors]
            (beta, others), weights = self._first, self._weights
        else:
            dual, beta, others = last.dual, last.beta, last.others
            weights = last.weights
        V = [torch.from_numpy(r @ r.T).to(beta) for r in roots]
        for d in (dual, [torch.zeros_like(c) for c in dual]):
            effects = [a @ c for a, c in zip(V, d, strict=True)]
            f = self._equations(weights, torch.zeros_like(weights), roots)
            if f is None:
                return None
            found = self._state(effects, d, beta, others, weights, f)
            if np.isfinite(found.value):
                return found
        if last is None:
            family = self.expectation.density.family
            raise ModelError(
                f"{family.name} responses at the {family.links[0].name} link have no "
                "expected log-density: a normal linear predictor takes values that no "
                "mean belongs to. Use link='log', or Laplace's method."
            )
        return None

    def _equations(
        self, weights: Tensor, response: Tensor, roots: list[np.ndarray]
    ) -> Equations | None:
        products = self.rows.crossed(weights, response)
        found = equations(products, roots, self._held, self.tight * _SHARE)
        if found is not None and np.isfinite(found.logdet):
            self._held = found.total
            return found
        return None

    def _state(
        self, effects: list[Tensor], dual: list[Tensor], beta: Tensor,
        others: tuple[Tensor, ...], weights: Tensor, f: Equations,
    ) -> State:  # fmt: skip
        m = self.offset + self.rows.X @ beta + self.rows.combine(effects)
        v = self.rows.variances(f)
        found = self.expectation.at(m, v, self.predictors(others))
        penalty = sum(float((b * c).sum()) for b, c in zip(effects, dual, strict=True))
        value = -2 * found.value + penalty - float(weights.dot(v)) + f.logdet
        return State(effects, dual, beta, others, weights, f, m, v, found, value)

    def _step(self, state: State, roots: list[np.ndarray]) -> State:
        """Take new weights and means, and coefficients of the other predictors."""
        found = self._natural(state, roots)
        return self._others(found) if self.X[1:] else found

    def _natural(self, state: State, roots: list[np.ndarray]) -> State:
        """Natural-gradient step, halved until the bound does not fall."""
        for weights in (state.expected.weight, _positive(state.expected.weight)):
            response = weights * (state.m - self.offset) + state.expected.slope
            f = self._equations(weights, response, roots)
            if f is not None:
                break
        else:
            return state
        solution = f.solution
        effects = [p[:, :, 0] for p in f.products.by_factor(solution)]
        dual = [p[:, :, 0] for p in f.products.by_factor(f.residual)]
        beta = solution.X[:, 0]
        length, slack = 1.0, NOISE * (1 + abs(state.value))
        for _ in range(_HALVINGS):
            if length < 1:
                between = torch.lerp(state.weights, weights, length)
                f = self._equations(between, response, roots)
            else:
                between = weights
            if f is not None:
                after = self._state(
                    _between(state.effects, effects, length),
                    _between(state.dual, dual, length),
                    torch.lerp(state.beta, beta, length), state.others, between, f,
                )  # fmt: skip
                if after.value <= state.value + slack:
                    return after
            length /= 2
        return state

    def _others(self, state: State) -> State:
        """Newton's step in the coefficients of the other predictors."""
        gamma = torch.cat(state.others)
        value, slope, H = self.other_slopes(state, gamma)
        values, vectors = torch.linalg.eigh(H)
        values = values.abs().clamp_min(1e-10 * float(values.abs().max()))
        step = vectors @ ((vectors.T @ slope) / values)
        if float(slope.dot(step)) <= _NOTHING * (1 + abs(value)):
            return state
        step *= min(1.0, 2.0 / float(step.abs().max().clamp_min(1e-300)))
        sizes = [len(b) for b in state.others]
        for _ in range(_HALVINGS):
            others = tuple(torch.split(gamma + step, sizes))
            found = self.expectation.at(state.m, state.v, self.predictors(others))
            if found.value >= value - 1e-13 * (1 + abs(value)):
                changed = state.value - 2 * (found.value - state.expected.value)
                return replace(state, others=others, expected=found, value=changed)
            step = step / 2
        return state

    def other_slopes(self, state: State, gamma: Tensor) -> tuple[float, Tensor, Tensor]:
        """Differentiate the expected log-density in other predictors' coefficients.

        Returns
        -------
        value : float
        slope : Tensor, shape (d,)
        information : Tensor, shape (d, d)
            Minus the second derivatives.
        """
        points, weights = nodes_and_weights(_NODES)
        points, weights = points.to(gamma), weights.to(gamma)
        first = state.m[:, None] + state.v.clamp_min(0).sqrt()[:, None] * points
        sizes = [x.shape[1] for x in self.X[1:]]

        def value(g: Tensor) -> Tensor:
            etas = self.predictors(tuple(torch.split(g, sizes)))
            density = self.expectation.density
            found = density.log_prob_of(first, *(e[:, None] for e in etas))
            return (found @ weights).sum()

        given = gamma.detach().requires_grad_()
        with torch.enable_grad():
            total = value(given)
            (slope,) = torch.autograd.grad(total, given, create_graph=True)
            rows = [torch.autograd.grad(s, given, retain_graph=True)[0] for s in slope]
        H = -torch.stack(rows)
        return float(total.detach()), slope.detach(), (H + H.T) / 2

    @staticmethod
    def _length(one: State, two: State) -> float:
        """How far the predictors have moved, and their variances."""
        w = one.weights.abs()
        step = float(w.dot((one.m - two.m).square())) ** 0.5
        return max(step, float(w.dot((one.v - two.v).abs())))

    # -- what follows from the optimum -------------------------------------------------

    def alone(self, state: State) -> Equations:
        """Equations of the random effects alone, the coefficients taken as known."""
        response = (
            state.weights * (state.m - self.offset - self.rows.X @ state.beta)
            + state.expected.slope
        )
        products: Crossed = self.rows.crossed(state.weights, response, fixed=False)
        roots = [r.cpu().numpy() for r in state.equations.roots]
        found = equations(products, roots, None)
        assert found is not None
        return found

    def log_weights(self, state: State, draws: int, seed: int | None) -> np.ndarray:
        """Logarithms of ``p(y, b) / q(b)`` of draws of the random effects, (draws,).

        All densities are of the spherical effects that the factors of the covariances
        turn into the random effects, so that singular covariances do no harm.
        """
        generator, out = np.random.default_rng(seed), []
        for start in range(0, draws, _BATCH):
            count = min(_BATCH, draws - start)
            out.append(self._weights_of(state, count, generator))
        return np.concatenate(out)

    def _weights_of(
        self, state: State, count: int, generator: np.random.Generator
    ) -> np.ndarray:
        f, products = state.equations, state.equations.products
        moved, spherical, squares = deviations(f.own, count, generator)
        noise = torch.from_numpy(generator.standard_normal((products.q, count)))
        noise = noise.to(squares)
        squares = squares + (noise**2).sum(0)
        if products.q:
            s = torch.linalg.solve_triangular(f.rest.L[0].mT, noise, upper=True)
            r = f.rest.scale(s[None])[0]
        else:
            s = r = noise
        drawn: list[Tensor] = [noise] * len(products.structure.factors)
        length = -squares
        shifts = f.shifts(False)
        for number, j in enumerate(products.stage_factors):
            root, Q = f.roots[j], f.dual[number][:, :, : shifts[number].shape[2]]
            u = r[: shifts[number].shape[2]]
            center = root.T @ state.dual[j]
            pull = torch.einsum("ab,amc->bmc", root, Q @ u)
            sphere = center[:, :, None] + spherical[number] - pull
            length = length + (sphere**2).sum((0, 1))
            drawn[j] = state.effects[j][:, :, None] + moved[number] - shifts[number] @ u
        for number, j in enumerate(products.rest_factors):
            at, k = products.rest_at(number), products.structure.factors[j].k
            own = s[at].reshape(-1, k, count).transpose(0, 1)
            sphere = (f.roots[j].T @ state.dual[j])[:, :, None] + own
            length = length + (sphere**2).sum((0, 1))
            part = r[at].reshape(-1, k, count).transpose(0, 1)
            drawn[j] = state.effects[j][:, :, None] + part
        fixed = self.offset + self.rows.X @ state.beta
        others = self.predictors(state.others)
        log_density = [
            float(
                self.expectation.density.log_prob(
                    fixed + self.rows.combine([d[:, :, c] for d in drawn]), *others
                ).sum()
            )
            for c in range(count)
        ]
        half = 0.5 * (length.cpu().numpy() + f.logdet)
        return np.asarray(log_density) - half


def _between(one: list[Tensor], two: list[Tensor], share: float) -> list[Tensor]:
    return [torch.lerp(a, b, share) for a, b in zip(one, two, strict=True)]


def _positive(weights: Tensor) -> Tensor:
    """Weights that leave the equations positive definite."""
    return weights.clamp_min(1e-10 * float(weights.abs().max()))
