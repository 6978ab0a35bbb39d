"""Responses as numbers: levels, and what a family or a limit refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...columns import align
from ...design import Design
from ...errors import DesignError, listed
from ...families import Multinomial, Ordinal
from .reading import named

if TYPE_CHECKING:
    from .study import Outcome

__all__ = ["check_limits", "check_varies", "response_of", "with_levels"]

_MOST_LEVELS = 50


def response_of(
    design: Design, family: Any, known: Outcome | None
) -> tuple[np.ndarray, tuple | None]:
    """Response as numbers, and the levels that codes stand for."""
    y, levels, name = design.y, design.y_levels, design.y_name
    if isinstance(family, str | Ordinal | Multinomial):
        return _coded(y, levels, name, family, known and known.levels)
    if design.size is not None and not family.sized:
        raise DesignError(
            f"cbind(successes, failures) needs a binomial family, not {named(family)}."
        )
    if levels is not None and set(levels) <= {False, True}:
        # True and false are numbers, whichever of them occur.
        y, levels = np.asarray(levels, dtype=np.float64)[y], None
    if known is not None and (levels is None) != (known.levels is None):
        was = "numbers" if known.levels is None else f"levels {listed(known.levels)}"
        raise DesignError(f"the response {name} had {was} in the data of the fit.")
    if levels is None:
        return np.asarray(y, dtype=np.float64), None
    if known is not None:
        levels, y = known.levels, align(y, levels, list(known.levels), name)
    elif not family.sized or len(levels) != 2:
        raise DesignError(
            f"the response {name} is categorical, with levels {listed(levels, 6)}; "
            f"{named(family)} needs numbers"
            + (" or exactly two levels." if family.sized else ".")
        )
    return y.astype(np.float64), levels


def _coded(
    y: np.ndarray, levels: tuple | None, name: str, family: Any, known: tuple | None
) -> tuple[np.ndarray, tuple]:
    """Codes 0 .. L - 1 of a categorical response, and the levels they stand for."""
    if levels is None:
        values = np.asarray(y, dtype=np.float64)
        broken = int((values != np.round(values)).sum())
        if broken:
            raise DesignError(
                f"the response {name} is not categorical: {broken} values are not "
                "whole numbers. Cut it into categories first."
            )
        found, y = np.unique(values, return_inverse=True)
        levels = tuple(int(v) for v in found)
    wanted = None if isinstance(family, str) else family.levels
    if known is None and wanted is not None:
        # A family of so many levels may be told by codes of which some do not occur.
        known = levels if len(levels) == wanted else tuple(range(wanted))
    if known is not None:
        return align(y, levels, list(known), name).astype(np.float64), known
    if not 2 <= len(levels) <= _MOST_LEVELS:
        raise DesignError(
            f"the response {name} has {len(levels)} levels; between 2 and "
            f"{_MOST_LEVELS} are understood."
        )
    return y.astype(np.float64), levels


def with_levels(family: Any, levels: tuple | None) -> Any:
    """Return a family that knows its number of levels."""
    if not isinstance(family, str):
        return family
    return (Ordinal if family == "ordinal" else Multinomial)(len(levels))


def check_varies(name: str, family: Any, y: np.ndarray) -> None:
    """Refuse responses that say nothing of groups."""
    if not len(y):
        raise DesignError(f"the units that can be used have no {name}.")
    low, high = float(y.min()), float(y.max())
    if low != high:
        return
    if high == 0 and any(word in family.name for word in ("poisson", "binomial")):
        raise DesignError(
            f"the counts {name} are all zero: no rate can be estimated from them."
        )
    raise DesignError(
        f"the response {name} is constant ({low:g}): there is nothing to group by."
    )


def check_limits(
    name: str, y: np.ndarray, lower: np.ndarray | None, upper: np.ndarray | None
) -> None:
    """Refuse limits that are not in order, and responses beyond them."""
    if lower is not None and upper is not None and (lower >= upper).any():
        raise DesignError(
            f"lower= is not below upper= in {(lower >= upper).sum()} rows of {name}."
        )
    for limit, side, beyond in (
        (lower, "lower", np.less),
        (upper, "upper", np.greater),
    ):
        outside = None if limit is None else beyond(y, limit)
        if outside is not None and outside.any():
            raise DesignError(
                f"{name} is beyond its {side} limit in {outside.sum()} rows (the "
                f"value {y[outside][0]:g}); a censored value is given as the limit."
            )
