"""Cumulative link mixed models: ordered responses with random effects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ...errors import DesignError
from ...families import CumulativeLink, Family, Ordinal
from ...formula import Formula
from ...parameters import Block, Parameters
from ..base import INTERCEPT
from ..levels import ALIASED, coded, cuts, with_constant, without_constant, without_rows
from .levels import MixedOrdinalResults
from .model import MixedGLM

__all__ = ["MixedOrdinal", "mixed_glm"]


class MixedOrdinal(MixedGLM):
    """Cumulative link mixed model: P(y <= k) = F(threshold_k - x'beta - z'b).

    There is no intercept: the thresholds, which are free but for their order, take its
    place, whether or not the formula has one. A positive coefficient moves the response
    to higher levels.

    Parameters
    ----------
    formula, data, **options
        See `MixedGLM`. The response is an ordered categorical, taken in its order, or
        numbers or strings, taken in sorted order; the summary shows it.
    family : "ordinal" or Ordinal, optional
        Of an instance the link is taken; the levels are those of the data.
    link : {"logit", "probit", "cloglog", "loglog", "cauchit"}, optional
        As in MASS::polr, cloglog has F(q) = 1 - exp(-exp(q)), loglog exp(-exp(-q)). By
        default the family's, logit.

    References
    ----------
    Agresti & Natarajan (2001), Modeling clustered ordered categorical data; Christensen
    (2019), the R package ordinal.
    """

    title: ClassVar[str] = "Cumulative link mixed model"
    results_class = MixedOrdinalResults
    family: CumulativeLink
    levels: tuple[Any, ...]
    unused: tuple[Any, ...] = ()

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        family: str | Family | Ordinal = "ordinal",
        link: Any = None,
        **options: Any,
    ) -> None:
        if isinstance(family, Ordinal | CumulativeLink):
            if link is not None:
                raise ValueError(
                    "ordinal was given as an instance; set its link there."
                )
            link = family.link
        # The number of levels is the data's; two stand for them until these are read.
        given = CumulativeLink("logit" if link is None else link, 2)
        if isinstance(formula, str):
            formula = Formula.parse(formula, tuple(options.get("context") or ()))
        super().__init__(with_constant(formula), data, family=given, **options)

    @property
    def _dispersion(self) -> None:
        """None: thresholds are no dispersion."""
        return

    @property
    def parameters(self) -> Parameters:
        """Coefficients, then thresholds, a block each: they are predictors."""
        names, labels = self.family.predictors[1:], cuts(self.levels)
        return Parameters(
            (
                Block("beta", self.design.X.names),
                *(
                    Block(name, (label,), component="Thresholds")
                    for name, label in zip(names, labels, strict=True)
                ),
            )
        )

    def notes(self) -> list[str]:
        """Say which levels do not occur."""
        return without_rows(self.design.y_name, self.unused)

    def mean(self, *etas: Tensor) -> Tensor:
        """Refuse: a category has no mean."""
        return self.family.mean(*etas)

    def _check_response(self) -> None:
        design = self.design
        if design.size is not None or design.y.ndim != 1:
            raise DesignError(
                f"{self.title} has one response, a column of categories; "
                f"{design.y_name} is several."
            )
        codes, self.levels, self.unused = coded(design)
        self.family = CumulativeLink(self.family.link, len(self.levels))
        keep, gone = without_constant(design, self.compute)
        if gone:
            self.note_dropped(gone, ALIASED)
        thresholds = len(self.levels) - 1
        design = replace(design.select_columns(keep), y=codes, has_constant=False)
        # A constant for each threshold; new data are read against the same.
        self._parts = [INTERCEPT] * thresholds
        design.spec.parts = tuple(self._parts)
        self.design = replace(design, parts=design.parts * thresholds)
        if design.n < len(self.parameters):
            raise DesignError(
                f"{design.n} rows cannot determine {len(self.parameters)} parameters; "
                "use fewer terms or merge levels."
            )

    def check_drawn(self) -> None:
        """Check codes of the levels of the fit, which must all occur."""
        empty = set(range(len(self.levels))) - set(self.design.y.tolist())
        if empty:
            names = ", ".join(str(self.levels[k]) for k in sorted(empty))
            raise DesignError(
                f"no response is {names}: the thresholds beside it have no estimate."
            )


def mixed_glm(
    formula: str | Formula, data: Any, *, family: Any = "binomial", **options: Any
) -> MixedGLM:
    """Return the mixed model of a family.

    Parameters
    ----------
    formula, data, **options
        See `MixedGLM`.
    family : str, Family or Ordinal

    Returns
    -------
    MixedGLM
        `MixedOrdinal` for ordinal responses.
    """
    name = getattr(family, "name", family)
    if isinstance(name, str) and name.lower() == "ordinal":
        return MixedOrdinal(formula, data, family=family, **options)
    return MixedGLM(formula, data, family=family, **options)
