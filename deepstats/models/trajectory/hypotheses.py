"""Wald tests of groups: hypotheses by name, equal trajectories, highest powers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...inference import HypothesisTest, linear_hypotheses, wald
from .labels import class_names, prefix
from .reading import is_scale, is_zero, polynomial

if TYPE_CHECKING:
    from .results import TrajectoryResults
    from .study import Study

__all__ = [
    "PARTS",
    "Place",
    "group_equality",
    "highest_powers",
    "pairs_of_groups",
    "places",
    "restrictions",
]

#: What two groups may be compared in.
PARTS = ("mean", "zero", "scale", "all", "membership")


@dataclass(frozen=True)
class Place:
    """A coefficient of one group and where it stands in the flat vector.

    Attributes
    ----------
    group : int
        From 1.
    outcome : str
        The response; empty for the membership.
    predictor : str
        "mu", "sigma", "inflate" ... or "membership".
    column : str
    names : tuple of str
        Names it goes by: as labelled, and with ``poly2`` for the second power.
    index : int or None
        Its parameter; None where it is zero by `orders` or as the reference.
    """

    group: int
    outcome: str
    predictor: str
    column: str
    names: tuple[str, ...]
    index: int | None

    @property
    def part(self) -> str:
        """Which of `PARTS` it belongs to."""
        if self.predictor == "membership":
            return "membership"
        if is_zero(self.predictor):
            return "zero"
        return "scale" if is_scale(self.predictor) else "mean"


def places(study: Study, labels: Sequence[str]) -> list[Place]:
    """Return every coefficient of every group, shared and absent ones too.

    Parameters
    ----------
    study : Study
    labels : sequence of str
        Of the parameters.
    """
    number = {label: i for i, label in enumerate(labels)}
    found = [
        place
        for n, outcome in enumerate(study.outcomes)
        for j in range(len(outcome.predictors))
        for place in _of_predictor(study, n, j, number)
    ]
    for k, of_class in enumerate(class_names(study.plan), start=1):
        for column in study.units.columns:
            name = f"{of_class}:membership:{column}"
            index = number.get(name)
            found.append(Place(k, "", "membership", column, (name,), index))
    return found


def _of_predictor(
    study: Study, n: int, j: int, number: Mapping[str, int]
) -> Iterator[Place]:
    outcome = study.outcomes[n]
    pattern, predictor = outcome.patterns[j], outcome.predictors[j]
    degrees = {c: d for d, c in enumerate(ladder(study, n, j), start=1)}
    middle = prefix(study, outcome) + (f"{predictor}:" if j else "")
    for k, row in enumerate(pattern, start=1):
        for column, place in zip(outcome.columns[j], row, strict=True):
            ends = [middle + column]
            if column in degrees:
                ends.append(f"{middle}poly{degrees[column]}")
            if j and column == "Intercept":
                ends.append(middle[:-1])
            names = [f"g{k}:{end}" for end in ends]
            # What groups share is labelled without one.
            known = [number[name] for name in (*names, *ends) if name in number]
            index = known[0] if place >= 0 else None
            yield Place(k, outcome.name, predictor, column, tuple(names), index)


def ladder(study: Study, number: int, j: int) -> tuple[str, ...]:
    """Columns of the polynomial in a predictor of an outcome, by degree from 1."""
    outcome, asked = study.outcomes[number], study.plan.outcomes[number]
    part = outcome.predictors[j]
    if is_scale(part) or number >= len(study.measured):
        return ()
    rhs = asked.zero if is_zero(part) else asked.formula.rhs
    columns = set(outcome.columns[j])
    return tuple(c for c in polynomial(rhs) if c in columns)


# -- hypotheses by name ----------------------------------------------------------------


def _vocabulary(study: Study, labels: Sequence[str]) -> dict[str, int | None]:
    """Names that a hypothesis may use, and the parameter of each."""
    known: dict[str, int | None] = {label: i for i, label in enumerate(labels)}
    for place in places(study, labels):
        for name in place.names:
            known.setdefault(name, place.index)
    for name, index in list(known.items()):
        known.setdefault("".join(name.split()), index)
    return known


def restrictions(
    study: Study, labels: Sequence[str], hypotheses: Any
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read linear hypotheses that may use short names.

    Parameters
    ----------
    study : Study
    labels : sequence of str
        Of the parameters.
    hypotheses : str, sequence of str, array_like or (R, q)
        As `inference.linear_hypotheses` reads them. ``g1:poly2`` is group 1's
        coefficient of the second power, however the formula writes it:
        ``poly(t, 2)[2]``, ``I(t ** 2)``. Names may be written without their spaces,
        ``g1:sigma`` is the common ``sigma`` where groups share it, and a coefficient
        that a group lacks (`orders`, the reference group's membership) is zero.

    Returns
    -------
    R : ndarray, shape (restrictions, P)
    q : ndarray, shape (restrictions,)
    labels : tuple of str

    Raises
    ------
    ValueError
        For a name that is not known, or a hypothesis in which no parameter is left.
    """
    if not _is_text(hypotheses):
        return linear_hypotheses(hypotheses, labels)
    known = _vocabulary(study, labels)
    R, q, texts = linear_hypotheses(hypotheses, list(known))
    fold = np.zeros((len(known), len(labels)))
    for row, index in enumerate(known.values()):
        if index is not None:
            fold[row, index] = 1.0
    found = R @ fold
    for row, text in zip(found, texts, strict=True):
        if not row.any():
            raise ValueError(
                f"the hypothesis {text!r} restricts nothing: its coefficients are the "
                "same parameter, or zero by orders= or as the reference group's."
            )
    return found, q, texts


def _is_text(hypotheses: Any) -> bool:
    if isinstance(hypotheses, str):
        return True
    several = isinstance(hypotheses, (list, tuple)) and len(hypotheses) > 0
    return several and all(isinstance(h, str) for h in hypotheses)


# -- groups beside groups --------------------------------------------------------------


def group_equality(
    results: TrajectoryResults, groups: Sequence[int] | None, what: str
) -> HypothesisTest:
    """Test that groups are equal in all coefficients of a part of the model.

    Parameters
    ----------
    results : TrajectoryResults
    groups : sequence of int, or None
        Numbers of two or more groups, from 1; None for all.
    what : {"mean", "zero", "scale", "all", "membership"}

    Returns
    -------
    HypothesisTest
        Chi-squared; NaN where a coefficient has no standard error.
    """
    R = _differences(results, _checked(results, groups), what)
    return wald(results.params.to_numpy(), results._cov, R, np.zeros(len(R)))


def pairs_of_groups(results: TrajectoryResults, what: str) -> pd.DataFrame:
    """Test every pair of groups for equality; columns chi2, df, pvalue."""
    pairs = list(combinations(range(1, results.model.groups + 1), 2))
    if not pairs:
        raise ModelError("one group has no other to be compared with.")
    tests = [group_equality(results, pair, what) for pair in pairs]
    return pd.DataFrame(
        {
            "chi2": [t.statistic for t in tests], "df": [t.df_num for t in tests],
            "pvalue": [t.pvalue for t in tests],
        },
        index=pd.MultiIndex.from_tuples(pairs, names=["group", "other"]),
    )  # fmt: skip


def _checked(results: TrajectoryResults, groups: Sequence[int] | None) -> list[int]:
    K = results.model.groups
    if results.model.study.plan.grouping is not None:
        raise ModelError(
            "the outcomes have groups of their own; compare those of one outcome by "
            "name, wald_test('g1:y:poly1 = g2:y:poly1')."
        )
    chosen = list(range(1, K + 1)) if groups is None else [int(k) for k in groups]
    if len(set(chosen)) < 2 or not set(chosen) <= set(range(1, K + 1)):
        raise ValueError(
            f"groups={groups!r}: give two or more different numbers from 1 to {K}."
        )
    return chosen


def _differences(
    results: TrajectoryResults, groups: Sequence[int], what: str
) -> np.ndarray:
    """Rows that are zero where neighbours among the groups have equal coefficients."""
    if what not in PARTS:
        raise ValueError(f"what must be one of {', '.join(PARTS)}; not {what!r}.")
    chosen: dict[tuple[str, str, str], dict[int, int | None]] = {}
    measured = {"", *(o.name for o in results.model.study.measured)}
    for p in places(results.model.study, results.names):
        if p.outcome not in measured and what != "all":
            continue
        outcomes = what == "all" and p.part != "membership"
        # Intercepts of the membership are the groups' sizes, not effects.
        effect = p.part != "membership" or p.column != "Intercept"
        if outcomes or (p.part == what and effect):
            chosen.setdefault((p.outcome, p.predictor, p.column), {})[p.group] = p.index
    count = len(results.names)
    eye = np.vstack([np.eye(count), np.zeros(count)])  # the last row: no parameter
    rows = []
    for places_of in chosen.values():
        for one, other in pairwise(groups):
            a, b = (count if (i := places_of[k]) is None else i for k in (one, other))
            if a != b:
                rows.append(eye[a] - eye[b])
    if not rows:
        raise ModelError(
            f"what={what!r}: the groups have no coefficients of their own there, so "
            "there is nothing to test."
        )
    return np.array(rows)


# -- polynomial orders -----------------------------------------------------------------


def highest_powers(results: TrajectoryResults) -> pd.DataFrame:
    """Test the highest polynomial term of every group at zero.

    Parameters
    ----------
    results : TrajectoryResults

    Returns
    -------
    DataFrame
        One row for each group (and outcome, and zero part, that has a polynomial):
        outcome, group, part, order, term, coef, std_error, z, pvalue. A group of
        order zero has no term.

    Raises
    ------
    ModelError
        Where no formula has a polynomial.
    """
    study, rows = results.model.study, []
    every = places(study, results.names)
    for number, outcome in enumerate(study.measured):
        for j, predictor in enumerate(outcome.predictors):
            columns = ladder(study, number, j)
            of = [p for p in every if (p.outcome, p.predictor)
                  == (outcome.name, predictor)]  # fmt: skip
            for k in range(1, len(outcome.patterns[j]) + 1) if columns else ():
                own = {p.column: p for p in of if p.group == k}
                rows.append(_highest(results, [own[c] for c in columns], k))
    if not rows:
        raise ModelError(
            "no formula has one polynomial, as poly(t, 2) or t + I(t**2): there is no "
            "order to test."
        )
    return pd.DataFrame(rows)


def _highest(
    results: TrajectoryResults, powers: Sequence[Place], group: int
) -> dict[str, Any]:
    at = [d for d, p in enumerate(powers, start=1) if p.index is not None]
    order = max(at, default=0)
    place = powers[order - 1] if order else powers[0]
    # Levels without an order have a polynomial each.
    part = place.predictor if place.predictor.isdigit() else place.part
    row = {"outcome": place.outcome, "group": group, "part": part, "order": order}
    if not order or place.index is None:
        blank = dict.fromkeys(("coef", "std_error", "z", "pvalue"), np.nan)
        return {**row, "term": "", **blank}
    i = place.index
    return {
        **row, "term": place.column, "coef": results.params.iloc[i],
        "std_error": results.bse.iloc[i], "z": results.tvalues.iloc[i],
        "pvalue": results.pvalues.iloc[i],
    }  # fmt: skip
