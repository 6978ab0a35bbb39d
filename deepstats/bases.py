"""Bases of one column: polynomials and splines, with R's columns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from formulaic.transforms import TRANSFORMS as _FORMULAIC
from formulaic.transforms import poly as _formulaic_poly

from .columns import Numeric
from .errors import DesignError, listed

__all__ = ["bs", "cubic", "ns", "numbered", "poly", "whole_number"]


def _on_observed(
    x: np.ndarray, basis: Callable[[np.ndarray], tuple[np.ndarray, tuple[str, ...]]]
) -> Numeric:
    """Compute a basis from the finite rows; the other rows are NaN."""
    if x.ndim != 1:
        raise DesignError("a basis is made from one column, not from several")
    finite = np.isfinite(x)
    if not finite.any():
        raise DesignError("no row has a finite value")
    values, names = basis(x[finite])
    if finite.all():
        return Numeric(values, names)
    filled = np.full((x.size, values.shape[1]), np.nan)
    filled[finite] = values
    return Numeric(filled, names)


def numbered(count: int) -> tuple[str, ...]:
    """Return the suffixes ``"[1]"``, ``"[2]"``, ... of as many columns."""
    return tuple(f"[{index}]" for index in range(1, count + 1))


def poly(
    x: np.ndarray, degree: int = 1, raw: bool = False, *, state: dict[str, Any]
) -> Numeric:
    """Orthogonal polynomials as R's `poly`, or plain powers with `raw=True`."""
    degree = whole_number("degree", degree, 1)

    def basis(x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        names = numbered(degree)
        if raw:
            return np.stack([x**k for k in range(1, degree + 1)], axis=1), names
        if "alpha" not in state:
            distinct = np.unique(x).size
            if distinct <= degree:
                raise DesignError(
                    f"a polynomial of degree {degree} needs more than {degree} "
                    f"distinct values, and there are {distinct}: lower the degree"
                )
            saved: dict[str, Any] = {}
        else:
            saved = {k: dict(enumerate(state[k])) for k in ("alpha", "norms2")}
        values = np.asarray(_formulaic_poly(x, degree, _state=saved))
        for key in ("alpha", "norms2"):
            state[key] = [float(saved[key][k]) for k in range(len(saved[key]))]
        return values, names

    return _on_observed(x, basis)


def bs(
    x: np.ndarray,
    df: int | None = None,
    knots: Any = None,
    degree: int = 3,
    include_intercept: bool = False,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
    extrapolation: str = "raise",
    boundary_knots: Any = None,
    intercept: bool = False,
    *,
    state: dict[str, Any],
) -> Numeric:
    """B-splines as R's and patsy's `bs`."""
    if boundary_knots is not None:
        lower_bound, upper_bound = boundary_knots
    return _formulaic_basis(
        "bs",
        x,
        state,
        df,
        knots,
        degree=whole_number("degree", degree, 0),
        include_intercept=bool(include_intercept or intercept),
        lower_bound=lower_bound,
        upper_bound=upper_bound,
        extrapolation=extrapolation,
    )


def cubic(name: str) -> Callable[..., Numeric]:
    """Return a cubic regression spline of formulaic: natural "cr" or cyclic "cc"."""

    def spline(
        x: np.ndarray,
        df: int | None = None,
        knots: Any = None,
        lower_bound: float | None = None,
        upper_bound: float | None = None,
        constraints: Any = None,
        extrapolation: str = "extend",
        *,
        state: dict[str, Any],
    ) -> Numeric:
        return _formulaic_basis(
            name,
            x,
            state,
            df,
            knots,
            lower_bound=lower_bound,
            upper_bound=upper_bound,
            constraints=constraints,
            extrapolation=extrapolation,
        )

    return spline


def _formulaic_basis(
    name: str,
    x: np.ndarray,
    state: dict[str, Any],
    df: int | None,
    knots: Any,
    **options: Any,
) -> Numeric:
    """Call one of formulaic's stateful spline bases and stack its columns."""
    options["df"] = None if df is None else whole_number("df", df, 1)
    options["knots"] = None if knots is None else np.atleast_1d(knots).tolist()

    def basis(x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        if state.get("constraints") is not None:
            state["constraints"] = np.asarray(state["constraints"])
        columns = _FORMULAIC[name](x, _state=state, **options)
        if state.get("constraints") is not None:
            state["constraints"] = state["constraints"].tolist()
        values = np.column_stack([columns[key] for key in columns])
        return values, tuple(f"[{key}]" for key in columns)

    return _on_observed(x, basis)


def ns(
    x: np.ndarray,
    df: int | None = None,
    knots: Any = None,
    intercept: bool = False,
    boundary_knots: Any = None,
    *,
    state: dict[str, Any],
) -> Numeric:
    """Natural cubic splines with the columns of R's `splines::ns`.

    Cubic B-splines are projected on the null space of their second derivatives at
    the two boundary knots; outside the boundary knots they are straight lines.
    """

    def basis(x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        if "knots" not in state:
            state.update(_ns_knots(x, df, knots, intercept, boundary_knots))
        values = _ns_basis(x, state["knots"], state["boundary"], intercept)
        return values, numbered(values.shape[1])

    return _on_observed(x, basis)


def _ns_knots(
    x: np.ndarray, df: int | None, knots: Any, intercept: bool, boundary_knots: Any
) -> dict[str, Any]:
    if df is not None and knots is not None:
        raise DesignError("give either df or knots, not both")
    if boundary_knots is None:
        boundary_knots = (x.min(), x.max())
    low, high = sorted(float(knot) for knot in boundary_knots)
    if knots is None:
        count = whole_number("df", 1 if df is None else df, 1) - 1 - bool(intercept)
        if df is None:
            count = 0
        if count < 0:
            raise DesignError("ns with intercept=True needs a df of 2 or more")
        inside = x[(x >= low) & (x <= high)]
        knots = np.quantile(inside, np.linspace(0, 1, count + 2)[1:-1])
    knots = sorted(float(knot) for knot in np.atleast_1d(knots))
    bounds = [low, *knots, high]
    if any(b <= a for a, b in pairwise(bounds)):
        raise DesignError(
            f"the knots {listed(knots)} must be distinct and lie between the boundary "
            f"knots {low!r} and {high!r}: lower df, or name the knots"
        )
    return {"knots": knots, "boundary": [low, high]}


def _ns_basis(
    x: np.ndarray, knots: list[float], boundary: list[float], intercept: bool
) -> np.ndarray:
    from scipy.interpolate import BSpline

    low, high = boundary
    t = np.array([low] * 4 + list(knots) + [high] * 4)
    splines = BSpline(t, np.eye(t.size - 4), 3)
    slopes = splines.derivative()
    B = splines(np.clip(x, low, high))
    for edge, outside in ((low, x < low), (high, x > high)):
        if outside.any():
            B[outside] += (x[outside, None] - edge) * slopes(edge)
    curvature = splines.derivative(2)(np.array(boundary))
    first = 0 if intercept else 1
    Q, _ = np.linalg.qr(curvature[:, first:].T, mode="complete")
    return B[:, first:] @ Q[:, 2:]


def whole_number(name: str, value: Any, least: int) -> int:
    """Check that an argument is a whole number, and not too small."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise DesignError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise DesignError(f"{name} must be at least {least}, not {value}")
    return int(value)
