"""Profile likelihoods of generalised linear mixed models.

All parameters stand side by side, those of one term in the coordinates of
`mixed.constrained`, in which a standard deviation or correlation is one of them:
whatever is held, one Newton's method serves, with the exact gradient of the
log-likelihood (Laplace's or by quadrature) and each point begun from its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf
from typing import TYPE_CHECKING

import numpy as np

from ...compute import one_thread
from ...errors import BoundaryWarning, ModelError, SeparationWarning, caution
from ..mixed.constrained import Coordinates, Held
from ..mixed.profile import (
    Curve,
    Knot,
    Profile,
    estimate_knot,
    profiled,
    random_blocks,
)
from ..mixed.structure import fresh_label
from .laplace import TIGHT, Laplace, Point
from .search import LONGEST_ETA, hessian, reachable

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = ["JointCurve", "JointDeviance", "profile"]

#: Where a coefficient has moved a linear predictor by so much (root of the mean square
#: over rows), or a standard deviation is so large, they are as good as infinite:
#: exp(-30) is 1e-13. A dispersion is at its edge with a logarithm so far from zero.
_ENDLESS, _GONE = 30.0, 15.0
#: Links under which that holds; others have predictors in units of the response.
_CURVED = ("logit", "probit", "cloglog", "loglog", "cauchit", "log")
#: Standard errors, in units of the linear predictor, from which on an estimate is where
#: the search stopped on its way to infinity.
_WIDE = 20.0


@dataclass(frozen=True, eq=False)
class JointDeviance:
    """Minus twice the log-likelihood in covariance coordinates and coefficients.

    Attributes
    ----------
    laplace : Laplace
        With the coordinates in place of its structure's parameters.
    coordinates : Coordinates
    origin : ndarray
        Where the estimate is.
    """

    laplace: Laplace
    coordinates: Coordinates
    origin: np.ndarray

    @cached_property
    def curvature(self) -> np.ndarray:
        """Exact Hessian at the estimate."""
        k = self.coordinates.size
        return hessian(self.laplace(self.origin[:k], self.origin[k:]))

    @classmethod
    def build(cls, point: Point, coordinates: Coordinates) -> JointDeviance:
        """Put coordinates in the place of the parameters that a point has.

        Parameters
        ----------
        point : Point
        coordinates : Coordinates
        """
        laplace = copy.copy(point.laplace)
        laplace.structure = coordinates
        laplace.tight = TIGHT
        laplace.begin_at(point)
        origin = np.append(coordinates.of(point.x), point.gamma)
        return cls(laplace, coordinates, origin)

    @property
    def size(self) -> int:
        """Number of all coordinates."""
        return self.coordinates.size + sum(self.laplace.sizes)

    def share(self, state: JointState, step: np.ndarray) -> float:
        """Share of a step within which derivatives say something."""
        return reachable(self.laplace, state.w[: self.coordinates.size], step)

    def __call__(self, w: np.ndarray) -> JointState:
        """Evaluate."""
        k = self.coordinates.size
        try:
            point = self.laplace(w[:k], w[k:])
        except FloatingPointError:
            return JointState(w, self, None)
        return JointState(w, self, point if point.modes.converged else None)


@dataclass(eq=False)
class JointState:
    """The deviance at one point.

    Attributes
    ----------
    w : ndarray
    deviance : JointDeviance
    point : Point or None
        None where the modes could not be found.
    """

    w: np.ndarray
    deviance: JointDeviance
    point: Point | None

    @property
    def value(self) -> float:
        """Minus twice the log-likelihood; infinite where it cannot be computed."""
        return inf if self.point is None else self.point.value

    @cached_property
    def gradient(self) -> np.ndarray:
        """Derivative in all coordinates."""
        if self.point is None:
            raise FloatingPointError("the modes of the random effects were not found")
        return np.concatenate(self.point.gradient)

    @property
    def hessian(self) -> np.ndarray:
        """Hessian at the estimate; what it misses here `Held` learns on the way."""
        return self.deviance.curvature


@dataclass(frozen=True, eq=False)
class JointCurve(Curve):
    """Profile of one parameter of a generalised linear mixed model.

    Attributes
    ----------
    edges : tuple of float
        Coordinates beyond which the parameter counts as infinite (a positive one below:
        as zero).
    positive : bool
        Whether the coordinate is a logarithm.
    adrift : bool
        Whether the estimate itself is on its way to infinity.
    """

    edges: tuple[float, float] = (-inf, inf)
    positive: bool = False
    adrift: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """Edges of the coordinate's range."""
        return super().range if self.kind == "cor" else self.edges

    def value(self, u: float) -> float:
        """Return the parameter at a coordinate."""
        return exp(u) if self.positive else super().value(u)

    def at(self, u: float, knots: Sequence[Knot], best: Knot, *tol: float) -> Knot:
        """Return the constrained optimum at `u`, started from what `knots` foretell."""
        try:
            return super().at(u, knots, best, *tol)
        except FloatingPointError:
            # Foretold too far: begin at the nearest of them instead.
            near = min(knots, key=lambda knot: abs(knot.u - u))
            alone = Knot(near.u, near.zeta, near.deviance, near.slope, near.w)
        try:
            return super().at(u, [alone], best, *tol)
        except FloatingPointError:
            raise ModelError(
                f"the profile of {self.label} cannot be followed to "
                f"{self.value(u):.4g}: there the modes of the random effects were not "
                "found. Profile other parameters, or use bootstrap()."
            ) from None

    def _say(self, u: float, rise: float, converged: bool) -> None:
        # Towards infinity the deviance falls below that of the estimate for ever.
        super()._say(u, max(rise, 0.0) if self.adrift else rise, converged)

    def _limit(self, last: Knot) -> float:
        return super()._limit(last) if self.kind in ("sd", "cor") else self.reach

    def _end(self, u: float, side: int) -> float:
        """Limit where the deviance does not rise enough: infinity, with a warning."""
        if self.kind == "cor" or (self.kind == "sd" and side < 0):
            return self.value(u)
        end = side * inf if side > 0 or not self.positive else 0.0
        category = BoundaryWarning if self.positive else SeparationWarning
        caution(
            f"the profile of {self.label} is flat {'above' if side > 0 else 'below'} "
            f"its estimate: the likelihood does not fall enough up to "
            f"{self.value(u):.3g}, and the limit is {end:g}.",
            category,
        )
        return end


@one_thread()
def profile(
    results: MixedGLMResults,
    parameters: str | Sequence[str] | None = None,
    *,
    alpha: float = 0.01,
    steps: int = 4,
) -> Profile:
    """Profile the likelihood in chosen parameters.

    Parameters
    ----------
    results : MixedGLMResults
    parameters : str or sequence of str, optional
        Labels such as "sd(Days)|Subject", "cor(Days,Intercept)|Subject" and those of
        `params`; "random" (or "theta") for all standard deviations and correlations,
        "fixed" (or "beta") for the coefficients of the mean, "family" for those of the
        zero part and of the dispersion. All by default.
    alpha : float, default 0.01
        The profiles reach to the limits of intervals of level ``1 - alpha``; intervals
        beyond extend them when asked for.
    steps : int, default 4
        Points on each side of the estimate, about. Intervals do not depend on it.

    Returns
    -------
    Profile
        Its intervals end at infinity, with a warning, where the likelihood does not
        fall enough: where responses are separated, or a dispersion runs to its edge.

    Warns
    -----
    SeparationWarning, BoundaryWarning, ConvergenceWarning
    ProfileWarning
        Parameters of structured covariances are left out: the others are profiled over
        them.
    """
    ml = results.refit(reml=False) if results.reml else results
    point = ml.found.point
    return profiled(
        lambda: _curves(ml), lambda curve: _estimate(curve, point), parameters,
        point.value, alpha, steps, results.reml, point.laplace.structure,
    )  # fmt: skip


def _estimate(curve: Curve, point: Point) -> Knot:
    return estimate_knot(curve.held, curve.held.deviance.origin, point.value)


def _curves(results: MixedGLMResults) -> list[JointCurve]:
    """Everything that can be profiled, in lme4's order, without points yet."""
    point, family = results.found.point, results.model.family
    structure, out = point.laplace.structure, list[JointCurve]()
    curved = [link.name in _CURVED for link in family.links]
    for label, kind, block, reach in random_blocks(structure):
        coordinates = Coordinates(structure, block)
        held = Held(
            JointDeviance.build(point, coordinates),
            len(coordinates.others) + block.held, False,
        )  # fmt: skip
        most = inf
        if all(curved):
            start = coordinates.of(point.x)[held.index]
            most = max(_ENDLESS * reach, 10 * abs(float(start)))
        name = fresh_label({c.label for c in out}, label)
        out.append(JointCurve(name, kind, held, 1.0, reach, edges=(0.0, most)))
    coordinates = Coordinates(structure, None)
    deviance = JointDeviance.build(point, coordinates)
    labels, place = iter(results.names), 0
    widths = np.sqrt(np.maximum(np.diag(results.joint_cov)[structure.size :], 0.0))
    for j, (X, block) in enumerate(
        zip(deviance.laplace.X, results.model.parameters.blocks, strict=True)
    ):
        kind = "family" if j else "fixed"
        for size in X.square().mean(0).sqrt().cpu().tolist():
            best, width = float(point.gamma[place]), float(widths[place]) * size
            far = _ENDLESS / size if curved[j] else inf
            edges = (best - far, best + far)
            if block.positive:
                # From an estimate that is at its edge the other one is further away.
                edges = (min(best, 0.0) - _GONE, max(best, 0.0) + _GONE)
            curve = JointCurve(
                next(labels), kind, Held(deviance, structure.size + place, False), 1.0,
                LONGEST_ETA / size, edges=edges,
                positive=block.positive, adrift=not width < _WIDE,
            )  # fmt: skip
            out.append(curve)
            place += 1
    return out
