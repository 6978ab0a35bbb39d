"""What regressions with several linear predictors share: parts, null fits, results."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..design import Batch, Design
from ..errors import BoundaryWarning, ModelError
from ..formula import Formula, Rhs, Term
from ..leastsquares import triangle
from ..likelihood import PredictorLikelihood
from ..matrix import intercept_matrix
from ..optimize import Derivatives, Optimum, solve_information
from ..results import NullComparison, Results
from .base import RegressionModel

__all__ = ["MultiPartModel", "MultiPartResults", "second_part", "slopes_only"]

# Log odds from which a probability counts as zero or one, and the standard error of
# a coefficient, in units of its column, that says there is no maximum.
_EXTREME_ETA = 14.0
_EXTREME_SE = 1e3


def second_part(
    formula: str | Formula,
    given: str | None,
    keyword: str,
    default: Rhs,
    functions: tuple[str, ...] = (),
) -> tuple[Formula, Rhs]:
    """Read the second part of a formula, or the keyword in its place.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | z"`` or ``"y ~ x"``.
    given : str or None
        One-sided formula given as a keyword: ``"~ z"``.
    keyword : str
        Its name, for errors.
    default : Rhs
        What applies when there is neither.
    functions : tuple of str
        Functions the formula may call besides the documented ones.

    Returns
    -------
    formula : Formula
        With the second part in its text, so that it says all.
    part : Rhs

    Raises
    ------
    ModelError
        If both are given, there is a third part, or the part has an offset, a
        random effect, a model call, or no columns.
    """
    if isinstance(formula, str):
        formula = Formula.parse(formula, functions)
    if formula.parts and given is not None:
        raise ModelError(
            f"the formula {formula.text!r} has a part after '|' and "
            f"{keyword}={given!r} is given too; give one of them."
        )
    if given is not None:
        if not isinstance(given, str):
            raise ModelError(
                f'{keyword} is a one-sided formula such as "~ z", not {given!r}.'
            )
        Rhs.parse(given, functions)
        tail = given.strip().removeprefix("~").strip()
        formula = Formula.parse(f"{formula.text.strip()} | {tail}", functions)
    if len(formula.parts) > 1:
        raise ModelError(
            f"{formula.text!r} has {len(formula.parts) + 1} parts; this model has two: "
            "y ~ x | z."
        )
    part = formula.parts[0] if formula.parts else default
    if part.groups or part.calls or part.offsets:
        raise ModelError(
            f"the part {part.text!r} ({keyword}) takes plain terms only: no offset(), "
            "no (1 | g), no model calls. Offset and exposure belong to the mean."
        )
    if not part.terms:
        raise ModelError(f"the part {part.text!r} ({keyword}) has no columns; use '1'.")
    return formula, part


def slopes_only(rhs: Rhs) -> Rhs:
    """Return the terms of a right-hand side, with an intercept and without offsets."""
    terms = tuple(t for t in rhs.terms if t.factors)
    return Rhs((Term(()), *terms), text=rhs.text)


class MultiPartResults(NullComparison, Results):
    """Estimates of a regression with several linear predictors.

    Adds the constant-only fit: `llnull`, `prsquared`, `llr`, `llr_pvalue`.
    """

    model: MultiPartModel

    @property
    def df_model(self) -> float:
        """Slopes of all parts: parameters that the constant-only model lacks."""
        return float(len(self.names) - self.model.null_size())

    @cached_property
    def llnull(self) -> float:
        """Log-likelihood with a constant alone in every part (offset kept)."""
        return self.model.null_llf(self.likelihood)

    def _header(self) -> list[tuple[str, Any]]:
        first, extra = super()._header(), self.model.headline()
        null: list[tuple[str, Any]] = [("", None), ("", None)]
        # A fit loaded from a file has no data to fit the constant to.
        if self._likelihood is not None:
            null = [
                ("Pseudo R-squared", self.prsquared),
                ("LR p-value", self.llr_pvalue),
            ]
            null = null if self.df_model > 0 else [("", None), ("", None)]
        blocks = zip((first[:3], first[3:6], first[6:]), (extra, *null), strict=True)
        return [row for block, last in blocks for row in (*block, last)]

    def _family_text(self) -> str:
        return self.model.family_text()

    def _notes(self) -> list[str]:
        return [*super()._notes(), *self.model.notes()]


class MultiPartModel(RegressionModel):
    """A regression with several linear predictors.

    Subclasses give `_start`, and may name the predictors whose coefficients can run
    to infinity (`unbounded`), further starts and a line for the summary.
    """

    results_class: ClassVar[type[Results]] = MultiPartResults
    unbounded: ClassVar[tuple[int, ...]] = ()

    def _takes_parts(self) -> bool:
        return True

    def family_text(self) -> str:
        """Return family and link, as printed."""
        return f"{self.family.name} ({self.family.links[0].name})"

    def headline(self) -> tuple[str, Any]:
        """Return a line of the summary that is the model's own."""
        return ("", None)

    def notes(self) -> list[str]:
        """Sentences under the table."""
        return []

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Functions of the linear predictors, by the name `predict(which=)` takes."""
        return {"mean": self.mean, "linear": _first, "var": self.family.variance}

    def other_starts(self, likelihood: PredictorLikelihood) -> list[Tensor]:
        """Where else to begin when the first search fails."""
        return []

    # -- the constant-only model ------------------------------------------------------

    def null_size(self) -> int:
        """Parameters of the constant-only model."""
        return len(self.layout)

    def null_design(self, design: Design) -> Design:
        """Design with a constant alone in every part."""
        one = intercept_matrix(design.n)
        return replace(design, X=one, parts=tuple(one for _ in design.parts))

    def null_llf(self, likelihood: PredictorLikelihood) -> float:
        """Log-likelihood of the constant-only model."""
        null = copy(self)
        null.design = self.null_design(likelihood.design)
        part = PredictorLikelihood(null, null.design, self.compute)
        return null._climb(part, null.start(part)).value

    # -- the search -------------------------------------------------------------------

    def _climb(self, likelihood: PredictorLikelihood, start: Tensor) -> Optimum:
        """Newton from a start, then from other ones until one converges."""
        first = self._first(likelihood, start)
        return self._maximise(likelihood, start, first, "observed", 100, 1e-6)

    def _maximise(
        self,
        likelihood: PredictorLikelihood,
        start: Tensor,
        first: Derivatives,
        information: str,
        maxiter: int,
        tol: float,
    ) -> Optimum:
        best = super()._maximise(likelihood, start, first, information, maxiter, tol)
        if best.converged or maxiter < 2:
            return best
        for other in self.other_starts(likelihood):
            first = self._first(likelihood, other)
            found = super()._maximise(
                likelihood, other, first, information, maxiter, tol
            )
            if (found.converged, found.value) > (best.converged, best.value):
                best = found
        return best

    def _first(self, likelihood: PredictorLikelihood, start: Tensor) -> Derivatives:
        """Return the derivatives that a search begins with."""
        which = "expected" if self._has_expected() else "observed"
        return likelihood.derivatives(start, which)

    # -- estimates without a maximum --------------------------------------------------

    def _warn(self, optimum: Optimum, likelihood: PredictorLikelihood) -> None:
        runaway = self._runaway(optimum, likelihood)
        if runaway:
            names = ", ".join(self.parameters.labels[j] for j in runaway)
            message, category = self._runaway_text(names)
            self.caution(message, category)
        if not runaway or optimum.at_bound:
            super()._warn(optimum, likelihood)

    def _runaway_text(self, names: str) -> tuple[str, type[Warning]]:
        return (
            f"the likelihood has no maximum in {names}: what is printed is where the "
            "search stopped. Leave those terms out, merge levels, or fit the simpler "
            "model.",
            BoundaryWarning,
        )

    def extremity(self, number: int, etas: tuple[Tensor, ...]) -> Tensor:
        """How far from even odds a predictor puts each row."""
        return etas[number].abs()

    def _runaway(self, optimum: Optimum, likelihood: PredictorLikelihood) -> list[int]:
        """Coefficients with a fitted probability of 0 or 1 and no curvature left."""
        watched = [j for j in self.unbounded if j < len(self.layout)]
        if not watched or not bool(optimum.x.isfinite().all()):
            return []

        def extreme(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            sizes = [self.extremity(j, etas) for j in watched]
            return torch.stack([(size > _EXTREME_ETA).sum() for size in sizes])

        counts = likelihood.reduce(optimum.x, extreme)
        free = torch.ones(len(optimum.x), dtype=torch.bool)
        free[list(optimum.at_bound)] = False
        se = torch.zeros_like(optimum.x)
        se[free] = solve_information(optimum.information, free).diagonal().sqrt()
        sizes = [self.design.matrices[m].k for m in self.layout]
        starts = np.cumsum([0, *sizes])
        found = []
        for j, count in zip(watched, counts, strict=True):
            if not float(count):
                continue
            lengths = _root_mean_squares(self, likelihood, self.layout[j])
            places = range(starts[j], starts[j] + sizes[j])
            found += [
                p
                for p, s in zip(places, lengths, strict=True)
                if se[p] * s > _EXTREME_SE
            ]
        return found


def _root_mean_squares(
    model: RegressionModel, likelihood: PredictorLikelihood, number: int
) -> np.ndarray:
    """Root mean square of each column of one matrix (weighted)."""
    step = max(1, likelihood.design.n // 20_000)
    design = likelihood.design.every(step).only(number)
    _, lengths = triangle(design, model.compute)
    weight = float(design.n)
    for w in (design.weights, design.freq_weights):
        weight = weight if w is None else weight * float(np.mean(w))
    return np.asarray(lengths, dtype=float) / max(weight, 1.0) ** 0.5


def _first(*etas: Tensor) -> Tensor:
    return etas[0]
