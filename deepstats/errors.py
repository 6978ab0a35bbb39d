"""Errors and warnings, each with a name that can be caught or filtered."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

__all__ = [
    "BoundaryWarning",
    "ContrastWarning",
    "ConvergenceWarning",
    "CoordinateError",
    "DesignError",
    "FormulaError",
    "GradientWarning",
    "InfeasibleError",
    "LossError",
    "MeanFieldWarning",
    "MissingDataWarning",
    "ModelError",
    "NonuniqueWarning",
    "ProfileWarning",
    "RankWarning",
    "SelectionWarning",
    "SeparationWarning",
    "SingularFitWarning",
    "caution",
    "listed",
]


class FormulaError(ValueError):
    """A formula that cannot be read.

    Parameters
    ----------
    message : str
        What is wrong and what was expected.
    text : str, optional
        The whole formula.
    position : int, optional
        Zero-based index in `text` of the character that is wrong.
    """

    def __init__(self, message: str, text: str = "", position: int | None = None):
        self.message, self.text, self.position = message, text, position
        if text and position is not None:
            message = f"{message}\n    {text}\n    {' ' * position}^"
        elif text:
            message = f"{message}\n    {text}"
        super().__init__(message)


class DesignError(ValueError):
    """Data that a formula or a family cannot take."""


class CoordinateError(DesignError):
    """Coordinates in which distances cannot be measured, such as degrees."""


class ModelError(ValueError):
    """An option, or a combination of options, that a model does not support."""


class LossError(ModelError):
    """A loss that cannot be minimised: NaN, a wrong shape, no gradient."""


class InfeasibleError(ModelError):
    """Constraints that no coefficients satisfy."""


class GradientWarning(UserWarning):
    """Part of a loss is cut off its gradient, so that no optimiser sees it."""


class ContrastWarning(UserWarning):
    """Hypotheses whose meaning depends on a coding that does not sum to zero."""


class ConvergenceWarning(UserWarning):
    """The optimiser stopped before its criterion was met."""


class SelectionWarning(UserWarning):
    """A variable was not, or could not be, chosen."""


class SeparationWarning(UserWarning):
    """The likelihood has no maximum: some outcomes are predicted perfectly."""


class ProfileWarning(UserWarning):
    """Parameters have no profile here, and are left out of those asked for."""


class RankWarning(UserWarning):
    """Columns of the design are linear combinations of earlier ones."""


class NonuniqueWarning(UserWarning):
    """Other estimates attain the same optimum as those reported."""


class BoundaryWarning(UserWarning):
    """A parameter is at the edge of its range, where Wald inference fails."""


class SingularFitWarning(BoundaryWarning):
    """An estimated random-effects covariance is singular."""


class MeanFieldWarning(UserWarning):
    """A posterior in which nothing depends on anything: its spread is too small."""


class MissingDataWarning(UserWarning):
    """A transform produced missing values in rows where the data had none."""


def listed(values: Iterable[Any], limit: int = 10) -> str:
    """Write the first values of a message, and how many there are in all."""
    values = list(values)
    shown = ", ".join(repr(value) for value in values[:limit])
    return shown + (f", ... ({len(values)} in all)" if len(values) > limit else "")


def caution(text: str, category: type[Warning]) -> None:
    """Warn at the line of the caller's own code, however deep in the package we are."""
    own = (__name__.partition(".")[0], "contextlib")  # contexts stand around fits
    level, frame = 2, sys._getframe(1)
    while (
        frame is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in own
    ):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(text, category, stacklevel=level)
