"""Profile likelihoods: how the deviance rises as one parameter leaves its estimate.

``zeta = sign * sqrt(deviance - its minimum)``, the deviance of maximum likelihood
minimised over all other parameters, is a standard normal deviate where the estimate is
normal, and its inverse gives intervals that know of skewness and of the edges of the
range (Bates, Mächler, Bolker & Walker 2015, section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp, inf, pi, sin, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...compute import one_thread
from ...errors import ConvergenceWarning, ProfileWarning, caution, listed
from .constrained import Block, Coordinates, Deviance, Held, State, settle
from .structure import Structure, Term, fresh_label

if TYPE_CHECKING:
    from .criterion import Point
    from .results import MixedResults

__all__ = [
    "Curve",
    "Knot",
    "Profile",
    "estimate_knot",
    "profile",
    "profiled",
    "random_blocks",
]

# Length of a last Newton step in standard errors: the deviance is exact to about half
# its square. Points of a curve, and limits.
_ROUGH, _EXACT = 1e-4, 1e-5
# Of zeta, for a last step towards a limit.
_NEAR = 3e-5
# A residual standard deviation this much below its estimate counts as zero: nearer, as
# effects that follow every row allow, the deviance is lost to rounding.
_LEAST_SIGMA = 2 * np.log(1e-3)
# Radians that a correlation's angle moves at most.
_TURN = 0.6
# Rises of the deviance below this are not worth a look for another optimum.
_CHEAP = 0.1
_GROWTH, _MOST_KNOTS = 2.5, 60

_RANDOM = ("sd", "cor", "sigma")
#: Kinds of the parameters that a name stands for.
_GROUPS = {
    "random": _RANDOM, "theta": _RANDOM, "theta_": _RANDOM,
    "fixed": ("fixed",), "beta": ("fixed",), "beta_": ("fixed",),
    "family": ("family",),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Knot:
    """A point of a profile.

    Attributes
    ----------
    u : float
        The coordinate held.
    zeta, deviance : float
    slope : float
        Derivative of zeta in `u`.
    w : ndarray
        All coordinates at the constrained optimum.
    drift : ndarray or None
        Derivative of `w` in `u`, about; known at the estimate.
    """

    u: float
    zeta: float
    deviance: float
    slope: float
    w: np.ndarray = field(repr=False)
    drift: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Curve:
    """Profile of one parameter.

    Attributes
    ----------
    label : str
    kind : {"sd", "cor", "sigma", "fixed"}
    held : Held
        The deviance with this parameter held.
    scale : float
        Of the coordinate: a standard deviation is `scale` times it.
    reach : float
        How far a step may go where the deviance is flat.
    knots : tuple of Knot
        In increasing order.
    """

    label: str
    kind: str
    held: Held
    scale: float
    reach: float
    knots: tuple[Knot, ...] = ()

    @property
    def range(self) -> tuple[float, float]:
        """Edges of the coordinate's range."""
        return {
            "sd": (0.0, inf), "cor": (-pi / 2, pi / 2), "sigma": (_LEAST_SIGMA, inf),
            "fixed": (-inf, inf),
        }[self.kind]  # fmt: skip

    def value(self, u: float) -> float:
        """Return the parameter at a coordinate."""
        if self.kind == "cor":
            return sin(u)
        if self.kind == "sigma":
            return 0.0 if u <= _LEAST_SIGMA else self.scale * exp(u / 2)
        return self.scale * u

    @cached_property
    def _collapsed(self) -> list[State]:
        """Optima without one or the other of two correlated effects, once needed."""
        return []

    @cached_property
    def best(self) -> Knot:
        """The estimate."""
        return min(self.knots, key=lambda knot: abs(knot.zeta))

    # -- points ----------------------------------------------------------------------

    def at(
        self, u: float, knots: Sequence[Knot], best: Knot, tol: float = _ROUGH
    ) -> Knot:
        """Return the constrained optimum at `u`, started from what `knots` foretell.

        Its deviance is infinite where rounding makes it impossible.
        """
        w = _foretell(u, knots)
        w[self.held.index] = u
        state, converged = settle(self.held, w, tol)
        if state.value == inf:
            # What knots foretell may be far off: the nearest of them is not.
            w = min(knots, key=lambda knot: abs(knot.u - u)).w.copy()
            w[self.held.index] = u
            state, converged = settle(self.held, w, tol)
            if state.value == inf:
                return Knot(u, float(np.sign(u - best.u)) * inf, inf, 0.0, w)
        if self.kind == "cor":
            state, converged = self._elsewhere(state, converged, best, tol)
        rise = state.value - best.deviance
        self._say(u, rise, converged)
        zeta = float(np.sign(u - best.u)) * sqrt(max(rise, 0.0))
        slope = 0.5 * float(state.gradient[self.held.index])
        return Knot(u, zeta, state.value, slope / zeta if zeta else 0.0, state.w)

    def _say(self, u: float, rise: float, converged: bool) -> None:
        """Warn where the constrained optimum is none, or better than the estimate."""
        if not converged:
            caution(
                f"the profile of {self.label} did not converge at "
                f"{self.value(u):.4g}; its intervals may be off.",
                ConvergenceWarning,
            )
        if rise < -1e-6:
            caution(
                f"the profile of {self.label} found a deviance lower than that of the "
                f"fit by {-rise:.2g}, at {self.value(u):.4g}: the fit is a local "
                "optimum. Refit with another start=.",
                ConvergenceWarning,
            )

    def _elsewhere(
        self, state: State, converged: bool, best: Knot, tol: float
    ) -> tuple[State, bool]:
        """Look for a lower deviance where one of the two effects hardly varies.

        A correlation far from its estimate may be had at the price of a standard
        deviation of zero, which is another local optimum: no correlation can raise the
        deviance more than the cheaper of the two does.
        """
        rise = state.value - best.deviance
        if rise < _CHEAP:
            return state, converged
        if not self._collapsed:
            start = self.held.index - 2
            for at in (start, start + 1):
                w = best.w.copy()
                w[at] = 0.0
                pinned = Held(
                    self.held.deviance, self.held.index, self.held.known, (at,)
                )
                self._collapsed.append(settle(pinned, w, _ROUGH)[0])
        for other in self._collapsed:
            if rise > 0.25 * (other.value - best.deviance):
                w = other.w.copy()
                w[self.held.index] = state.w[self.held.index]
                found, fine = settle(self.held, w, tol)
                if found.value < state.value:
                    state, converged = found, fine
        return state, converged

    def walk(
        self, knots: Sequence[Knot], best: Knot, side: int, goal: float, pace: float
    ) -> list[Knot]:
        """Step outwards until ``|zeta|`` passes `goal` or the range ends.

        Parameters
        ----------
        knots : sequence of Knot
            Those on this side so far, the estimate first.
        best : Knot
        side : {-1, 1}
        goal : float
        pace : float
            Wanted rise of ``|zeta|`` in a step.
        """
        edge, out = self.range[side > 0], list(knots)
        while abs(out[-1].zeta) < goal and out[-1].u != edge and len(out) < _MOST_KNOTS:
            last = out[-1]
            step = pace / last.slope if last.slope > 0 else inf
            most = _GROWTH * abs(last.u - out[-2].u) if len(out) > 1 else inf
            step = min(step, max(most, 1e-3 * self.reach), self._limit(last))
            u = last.u + side * step
            # A last crumb before the edge is not worth a point.
            if side * (edge - u) < 0.2 * step:
                u = edge
            knot = self.at(u, out, best)
            if knot.deviance == inf:
                break
            out.append(knot)
        return out

    def _limit(self, last: Knot) -> float:
        if self.kind == "fixed":
            return inf
        return _TURN if self.kind == "cor" else max(self.reach, abs(last.u))

    # -- limits ----------------------------------------------------------------------

    def limit(self, side: int, goal: float) -> float:
        """Where zeta is ``side * goal``; the edge of the range if it never is."""
        best = self.best
        mine = [k for k in self.knots if side * (k.u - best.u) >= 0][:: side or 1]
        pace = max(goal / 4, goal - abs(mine[-1].zeta))
        mine = self.walk(mine, best, side, goal, pace)
        outer = next((j for j, k in enumerate(mine) if abs(k.zeta) >= goal), None)
        if outer is None:
            return self._end(mine[-1].u, side)
        return self.value(self._solve(mine, outer, best, side * goal))

    def _end(self, u: float, side: int) -> float:
        """Limit where the deviance does not rise enough up to a coordinate."""
        return self.value(u)

    def _solve(self, knots: list[Knot], outer: int, best: Knot, target: float) -> float:
        """Newton's method on zeta, kept between two knots."""
        inside, outside = knots[outer - 1], knots[outer]
        known, width = list(knots), abs(outside.u - inside.u)
        u = _inverse(inside, outside, target)
        for _ in range(40):
            low, high = sorted((inside.u, outside.u))
            if not low < u < high:
                u = (low + high) / 2
            knot = self.at(u, known, best, _EXACT)
            miss = target - knot.zeta
            step = miss / knot.slope if knot.slope > 0 else inf
            # A last Newton step squares what is missing.
            if abs(miss) <= _NEAR and abs(step) <= 1e-3 * width:
                return min(max(u + step, low), high)
            if high - low <= 1e-13 * max(abs(low), abs(high)):
                break
            if abs(knot.zeta) < abs(target):
                inside = knot
            else:
                outside = knot
            known.append(knot)
            u = u + step
        return u


def _foretell(u: float, knots: Sequence[Knot]) -> np.ndarray:
    """Coordinates at `u`: the polynomial through the nearest three knots."""
    near = sorted(knots, key=lambda k: abs(k.u - u))[:3]
    if len(near) == 1 and near[0].drift is not None:
        return near[0].w + (u - near[0].u) * near[0].drift
    out = np.zeros_like(near[0].w)
    for j, one in enumerate(near):
        weight = 1.0
        for i, other in enumerate(near):
            if i != j:
                weight *= (u - other.u) / (one.u - other.u)
        out += weight * one.w
    return out


def _inverse(inside: Knot, outside: Knot, target: float) -> float:
    """Interpolate the coordinate at a zeta, from values and slopes of two knots.

    The slope at the estimate is that of the average information, which is near but not
    right: there the value alone is used.
    """
    h = outside.zeta - inside.zeta
    t, rise = (target - inside.zeta) / h, outside.u - inside.u
    if outside.slope <= 0:
        return inside.u + t * rise
    end = h / outside.slope
    if inside.zeta == 0 or inside.slope <= 0:
        return inside.u + t * rise + t * (t - 1) * (end - rise)
    start = h / inside.slope
    bend = t * (t - 1) * ((t - 1) * (start - rise) + t * (end - rise))
    return inside.u + t * rise + bend


@dataclass(frozen=True, eq=False)
class Profile:
    """Profile likelihoods of parameters of a mixed model.

    Attributes
    ----------
    curves : tuple of Curve
        Random effects first, then sigma, then the fixed effects.
    deviance : float
        Minus twice the log-likelihood at the maximum.
    note : str
        What was profiled; not empty for a REML fit.
    """

    curves: tuple[Curve, ...]
    deviance: float
    note: str = ""

    @property
    def labels(self) -> list[str]:
        """Names of the parameters."""
        return [curve.label for curve in self.curves]

    @cached_property
    def estimates(self) -> pd.Series:
        """Maximum-likelihood estimates."""
        values = [curve.value(curve.best.u) for curve in self.curves]
        return pd.Series(values, self.labels, name="estimate")

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Points of the profiles: parameter, value, zeta, deviance."""
        rows = [
            (curve.label, curve.value(knot.u), knot.zeta, knot.deviance)
            for curve in self.curves
            for knot in curve.knots
        ]
        out = pd.DataFrame(rows, columns=["parameter", "value", "zeta", "deviance"])
        out.attrs["note"] = self.note
        return out

    @one_thread()
    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Return intervals of level ``1 - alpha``.

        Limits solve ``zeta = +-z``, each by fits with the parameter held, so they are
        exact and not those of an interpolated curve, as lme4's are (to about 1e-3 of
        the interval's width). Where the deviance does not rise enough before the
        parameter's range ends, the limit is that end: 0 for a standard deviation, -1
        or 1 for a correlation.

        Parameters
        ----------
        alpha : float, default 0.05

        Returns
        -------
        DataFrame
            Columns 0 and 1.
        """
        from scipy.special import ndtri

        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
        goal = float(ndtri(1 - alpha / 2))
        limits = [
            [curve.limit(side, goal) for side in (-1, 1)] for curve in self.curves
        ]
        out = pd.DataFrame(limits, index=self.labels, columns=[0, 1], dtype=np.float64)
        out.attrs["note"] = self.note
        return out

    def plot(self) -> Any:
        """Draw zeta against each parameter, with lines at the usual intervals."""
        from .pictures import zeta

        return zeta(self)

    def __repr__(self) -> str:
        text = f"Profile of {listed(self.labels)}"
        return text + (f"\n({self.note})" if self.note else "")


# -- what to profile -------------------------------------------------------------------


@one_thread()
def profile(
    results: MixedResults,
    parameters: str | Sequence[str] | None = None,
    *,
    alpha: float = 0.01,
    steps: int = 4,
) -> Profile:
    """Profile the likelihood in chosen parameters.

    Always that of maximum likelihood, as in lme4: a REML fit is refitted by maximum
    likelihood first, and the result's `note` says so.

    Parameters
    ----------
    results : MixedResults
    parameters : str or sequence of str, optional
        Labels such as "sd(Days)|Subject", "cor(Days,Intercept)|Subject", "sigma" and
        the names of fixed effects; "random" (or "theta") for all of the first three,
        "fixed" (or "beta") for all fixed effects. All by default.
    alpha : float, default 0.01
        The profiles reach to the limits of intervals of level ``1 - alpha``; intervals
        beyond extend them when asked for.
    steps : int, default 4
        Points on each side of the estimate, about. Intervals do not depend on it.

    Returns
    -------
    Profile

    Warns
    -----
    ConvergenceWarning
    ProfileWarning
        Parameters of structured covariances are left out: the others are profiled over
        them.
    """
    point = results.mixed.by_ml.point
    return profiled(
        lambda: _curves(results, point), lambda curve: _estimate(curve, point),
        parameters, point.value, alpha, steps, results.reml, point.structure,
    )  # fmt: skip


def profiled(
    curves: Callable[[], Sequence[Curve]],
    estimate: Callable[[Curve], Knot],
    parameters: str | Sequence[str] | None,
    deviance: float,
    alpha: float,
    steps: int,
    refitted: bool,
    structure: Structure,
) -> Profile:
    """Walk along the curves that were asked for.

    Parameters
    ----------
    curves : callable
        Gives everything that can be profiled, without points yet.
    estimate : callable
        From a curve to the knot of the estimate.
    parameters : str or sequence of str, optional
        See `profile`.
    deviance : float
        Minus twice the log-likelihood at the maximum.
    alpha : float
    steps : int
    refitted : bool
        Whether the fit was by REML.
    structure : Structure

    Returns
    -------
    Profile

    Warns
    -----
    ProfileWarning
        Where all random effects were asked for, and some are of structured covariances.
    """
    from scipy.special import ndtri

    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps!r}.")
    _warn_of_structured(structure, parameters)
    goal, found = float(ndtri(1 - alpha / 2)), []
    for curve in _chosen(list(curves()), parameters):
        best = estimate(curve)
        sides = [
            curve.walk([best], best, side, goal, goal / steps)[1:] for side in (-1, 1)
        ]
        found.append(replace(curve, knots=(*sides[0][::-1], best, *sides[1])))
    note = (
        "The profile is that of the model refitted by maximum likelihood; the fit was "
        "by REML."
        if refitted
        else ""
    )
    return Profile(tuple(found), deviance, note)


def _warn_of_structured(
    structure: Structure, parameters: str | Sequence[str] | None
) -> None:
    """Say which parameters of covariances have no profile."""
    texts = ", ".join(term.text for term in structure.structured)
    asked = [parameters] if isinstance(parameters, str) else parameters or ["random"]
    if texts and {"random", "theta"} & set(asked):
        caution(
            f"the standard deviations, correlations and ranges of {texts} have no "
            "profile; all others are profiled over them. For intervals use "
            "random_params() or bootstrap().",
            ProfileWarning,
        )


def _curves(results: MixedResults, point: Point) -> list[Curve]:
    """Everything that can be profiled, in lme4's order, without points yet."""
    structure, products = point.structure, point.criterion.products
    sigma, known = sqrt(point.variance), point.criterion.sigma is not None
    out: list[Curve] = []

    def add(
        label: str, kind: str, block: Block | None, fixed: int | None, reach: float
    ) -> None:
        coordinates = Coordinates(structure, block)
        index = coordinates.size + (kind == "fixed")
        if block is not None:
            index = len(coordinates.others) + block.held
        held = Held(Deviance(products, coordinates, sigma, fixed), index, known)
        scale = 1.0 if kind in ("cor", "fixed") else sigma
        out.append(
            Curve(fresh_label({c.label for c in out}, label), kind, held, scale, reach)
        )

    for label, kind, block, reach in random_blocks(structure):
        add(label, kind, block, None, reach)
    if not known:
        add("sigma", "sigma", None, None, 1.0)
    for j, label in enumerate(results.names):
        add(label, "fixed", None, j, 0.0)
    return out


def random_blocks(structure: Structure) -> Iterator[tuple[str, str, Block, float]]:
    """Go through standard deviations and correlations in lme4's order.

    Those of structured covariances are left out: the others are profiled over them.

    Parameters
    ----------
    structure : Structure

    Yields
    ------
    label : str
    kind : {"sd", "cor"}
    block : Block
        In which it is one coordinate.
    reach : float
        Of a step along a flat profile.
    """
    for j in structure.order:
        term = structure.terms[j]
        if term.covariance is not None:
            continue  # Its parameters are not entries of a covariance.
        name = structure.factors[term.factor].name
        for a, b in _pairs(term):
            block = _block(term, a, b)
            if a == b:
                label, reach = f"sd({term.names[a]})|{name}", float(term.U[a, a])
                yield label, "sd", block, reach
            else:
                label = f"cor({term.names[a]},{term.names[b]})|{name}"
                yield label, "cor", block, _TURN


def _pairs(term: Term) -> list[tuple[int, int]]:
    """Effects of each parameter, in lme4's order: standard deviations have a = b."""
    if term.variances:
        return [(a, a) for a in range(term.k)]
    return [(int(a), int(b)) for a, b in zip(*term.triangle, strict=True)]


def _block(term: Term, a: int, b: int) -> Block:
    if term.variances:
        return Block(term, (a,), False)
    first = (a,) if a == b else (b, a)
    rest = tuple(j for j in range(term.k) if j not in first)
    return Block(term, (*first, *rest), a != b)


def _chosen(curves: list[Curve], parameters: str | Sequence[str] | None) -> list[Curve]:
    if parameters is None:
        return curves
    asked = [parameters] if isinstance(parameters, str) else list(parameters)
    labels, keep = [c.label for c in curves], set()
    for name in asked:
        group = {c.label for c in curves if c.kind in _GROUPS.get(name, ())}
        if name in labels:
            keep.add(name)
        elif group or (name in _GROUPS and name != "family"):
            keep |= group
        else:
            raise ValueError(
                f"{name!r} is not a parameter of this model; give some of "
                f"{listed(labels, 30)}, or 'random' or 'fixed'."
            )
    return [c for c in curves if c.label in keep]


def _estimate(curve: Curve, point: Point) -> Knot:
    """Make the knot of the maximum-likelihood estimate."""
    deviance = curve.held.deviance
    w = np.append(deviance.coordinates.of(point.x), 0.0)
    if deviance.fixed is not None:
        w = np.append(w, float(point.factorisation.beta[deviance.fixed]))
    return estimate_knot(curve.held, w, point.value)


def estimate_knot(held: Held, w: np.ndarray, value: float) -> Knot:
    """Make the knot of an estimate, with how the other coordinates follow that held.

    Parameters
    ----------
    held : Held
    w : ndarray
        All coordinates of the estimate.
    value : float
        Minus twice the log-likelihood there.
    """
    state = held.deviance(w)
    H, free, at = state.hessian, held.free, held.index
    inner = H[np.ix_(free, free)]
    scale = 1 / np.sqrt(np.maximum(np.diag(inner), 1e-300))
    across = np.linalg.lstsq(
        inner * scale[:, None] * scale, H[free, at] * scale, rcond=1e-10
    )[0]
    bend = max(H[at, at] - float(across @ (H[free, at] * scale)), 0.0)
    drift = np.zeros_like(w)
    drift[free] = -scale * across
    return Knot(float(w[at]), 0.0, value, sqrt(bend / 2), w, drift)
