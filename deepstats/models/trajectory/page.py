"""The printed page of a trajectory model: fit, groups, a block for each group."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...results import counted
from ...summary import Notes, Pairs, Summary, Table, coefficient_table
from .hypotheses import Place, places
from .reading import named

if TYPE_CHECKING:
    from .results import TrajectoryResults

__all__ = ["coefficient_frame", "trajectory_summary"]

#: Other maxima that are named.
_OTHERS = 3


def trajectory_summary(results: TrajectoryResults, alpha: float = 0.05) -> Summary:
    """Lay out a fit: header, groups, coefficients by group, membership, notes.

    Parameters
    ----------
    results : TrajectoryResults
    alpha : float, default 0.05
        Of the confidence limits.

    Returns
    -------
    Summary
    """
    blocks: list[Any] = [Pairs(tuple(_header(results)), columns=2)]
    if results.model.groups > 1:
        blocks.append(_group_table(results, alpha))
    blocks.append(_coefficients(results, alpha))
    if notes := list(results._notes()):
        blocks.append(Notes(tuple(notes)))
    return Summary(results.model_name, results.formula_text, tuple(blocks))


# -- header ----------------------------------------------------------------------------


def _header(results: TrajectoryResults) -> list[tuple[str, Any]]:
    """Tell what was fitted on the left, and how well on the right."""
    K, grouping = results.model.groups, results.model.study.plan.grouping
    left: list[tuple[str, Any]] = [
        ("Family", family_text(results)),
        ("Groups", " x ".join(map(str, grouping)) if grouping else str(K)),
        ("Units", str(results.n_units)),
        ("Rows", str(int(results.nobs))),
        ("Starts", _starts(results)),
        ("SE", results.cov_description),
        ("Converged", "yes" if results.converged else "NO"),
    ]
    right: list[tuple[str, Any]] = [
        ("Log-likelihood", results.llf),
        ("Parameters", str(int(results.df_model))),
        ("AIC", results.aic),
        ("BIC (units)", results.bic_units),
        ("BIC (rows)", results.bic_rows),
        ("ICL", results.icl if K > 1 else None),
        ("Relative entropy", results.entropy if K > 1 else None),
    ]
    return [*left, *((k if v is not None else "", v) for k, v in right)]


def _starts(results: TrajectoryResults) -> str:
    """Say how many starts there were, and how often the best was reached."""
    if not results.traj.solution.reached:
        return f"{results.traj.optima.starts} (best by exchange of groups)"
    reached = counted(results.traj.solution.reached, "time")
    return f"{results.traj.optima.starts} (best reached {reached})"


def family_text(results: TrajectoryResults) -> str:
    """Name the family and its link; of several outcomes each."""
    outcomes, kernels = results.model.study.outcomes, results.traj.assembled.kernels
    texts = [
        f"{named(o.family)} ({k.links[0]})"
        for o, k in zip(outcomes, kernels, strict=True)
    ]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


# -- groups ----------------------------------------------------------------------------


def _group_table(results: TrajectoryResults, alpha: float) -> Table:
    shares = results.shares(alpha)
    adequacy = results.adequacy()
    tail = alpha / 2
    columns = {
        "share": [_percent(v) for v in shares["share"]],
        "std err": [_percent(v) for v in shares["std_error"]],
        f"[{tail:.4g}": [_percent(v) for v in shares["conf_low"]],
        f"{1 - tail:.4g}]": [_percent(v) for v in shares["conf_high"]],
        "assigned": [_percent(v) for v in shares["assigned"]],
        "units": [str(n) for n in shares["n"]],
        "APP": [_blank(v, ".3f") for v in adequacy["app"]],
        "OCC": [_blank(v, ".1f" if v < 1e4 else ".2g") for v in adequacy["occ"]],
    }
    dual = results.model.study.plan.grouping is not None
    index = [_named(results, k) for k in range(1, len(shares) + 1)]
    frame = pd.DataFrame(columns, index=index)
    caption = "Groups of " + " and ".join(results.model.study.plan.names)
    return Table(frame, align="r" * len(columns), caption=caption if dual else "Groups")


def _named(results: TrajectoryResults, number: int) -> str:
    """Name a group; a combination of groups goes by its label."""
    if results.model.study.plan.grouping is None:
        return f"Group {number}"
    return results.traj.names[number - 1]


def _percent(value: float) -> str:
    return _blank(100 * value, ".1f", "%")


def _blank(value: float, spec: str, unit: str = "") -> str:
    """Write a number; nothing where there is none."""
    return "" if np.isnan(value) else f"{value:{spec}}{unit}"


# -- coefficients ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A parameter on the page: its number, its section and its label there."""

    index: int
    section: str
    label: str
    tested: bool = True


def coefficient_frame(results: TrajectoryResults, alpha: float = 0.05) -> pd.DataFrame:
    """Return the coefficients in the order of the page, by section and term.

    Parameters
    ----------
    results : TrajectoryResults
    alpha : float, default 0.05

    Returns
    -------
    DataFrame
        coef, std_error, z, pvalue, conf_low, conf_high. A scale has no test of zero;
        a parameter that the data do not determine has an estimate only.
    """
    rows = _rows(results)
    at = [r.index for r in rows]
    limits = results.conf_int(alpha).to_numpy()[at]
    untested = np.array([not r.tested for r in rows])
    frame = pd.DataFrame(
        {
            "coef": results.params.to_numpy()[at],
            "std_error": results.bse.to_numpy()[at],
            "z": np.where(untested, np.nan, results.tvalues.to_numpy()[at]),
            "pvalue": np.where(untested, np.nan, results.pvalues.to_numpy()[at]),
            "conf_low": limits[:, 0], "conf_high": limits[:, 1],
        }
    )  # fmt: skip
    frame.index = pd.MultiIndex.from_tuples(
        [(r.section, r.label) for r in rows], names=["section", "term"]
    )
    return frame


def _coefficients(results: TrajectoryResults, alpha: float) -> Table:
    frame = coefficient_frame(results, alpha)
    shares = results.group_probs["share"]
    # A group of one outcome has its share in its heading.
    titles = {f"Group {k}": f"Group {k} ({v:.1%})" for k, v in enumerate(shares, 1)}
    sections = [titles.get(s, s) for s in frame.index.get_level_values("section")]
    frame = frame.droplevel("section").rename_axis(None)
    table = coefficient_table(
        frame["coef"], frame["std_error"], frame["z"], frame["pvalue"],
        frame[["conf_low", "conf_high"]], False, conf_level=1 - alpha,
        component=sections,
    )  # fmt: skip
    return replace(table, frame=table.frame.replace("nan", ""))


def _rows(results: TrajectoryResults) -> list[_Row]:
    """Lay out the parameters: group by group, then what they share, then membership."""
    positive = [b.positive for b in results.model.parameters.blocks for _ in b.labels]
    every = places(results.model.study, results.names)
    uses: dict[int, list[Place]] = {}
    for place in every:
        if place.index is not None:
            uses.setdefault(place.index, []).append(place)
    sections = _Sections(results)
    rows = []
    for i, (place, *others) in uses.items():
        label = sections.label(place, positive[i])
        rows.append(_Row(i, sections.of(place, bool(others)), label, not positive[i]))
    for i, component in enumerate(results.model.parameters.components):
        if i not in uses:  # random effects
            label = re.sub(r"^g\d+:", "", results.names[i])
            rows.append(_Row(i, component or "Others", label, tested=False))
    return _in_order(rows, results)


def _in_order(rows: list[_Row], results: TrajectoryResults) -> list[_Row]:
    """Bring sections together: groups first, membership last."""
    K = results.model.groups

    def rank(row: _Row) -> int:
        head = row.section.split(",")[0]
        if head.startswith("Membership"):
            return K + 3
        words = head.split()
        if words[0] == "Group" and words[-1].isdigit():
            return int(words[-1])
        return K + 1 if words[0] == "All" else K + 2

    firsts: dict[str, int] = {}
    for n, row in enumerate(rows):
        firsts.setdefault(row.section, n)
    return sorted(rows, key=lambda r: (rank(r), firsts[r.section]))


class _Sections:
    """Headings of the coefficients, and their labels below these."""

    def __init__(self, results: TrajectoryResults) -> None:
        self.study = results.model.study
        self.links = {
            (o.name, p): link
            for o, kernel in zip(
                self.study.outcomes, results.traj.assembled.kernels, strict=True
            )
            for p, link in zip(kernel.predictors, kernel.links, strict=True)
        }
        self.several = len(self.study.outcomes) > 1
        self.alone, self.results = results.model.groups == 1, results
        # A predictor that is one number stands with the mean; others apart, and so do
        # those of levels without an order.
        self.apart = {
            (o.name, p)
            for o in self.study.outcomes
            for p, columns in zip(o.predictors, o.columns, strict=True)
            if p.isdigit() or (p != o.predictors[0] and columns != ("Intercept",))
        }

    def of(self, place: Place, shared: bool) -> str:
        if place.part == "membership":
            reference = _named(self.results, self.study.plan.reference).lower()
            if self.study.plan.risk is None:
                return f"Membership (log odds against {reference})"
            group = _named(self.results, place.group).lower()
            return f"Membership of {group} (against {reference})"
        everyone = shared or self.alone
        parts = ["All groups" if everyone else f"Group {place.group}"]
        if self.several:
            parts.append(place.outcome)
        if (place.outcome, place.predictor) in self.apart:
            parts.append(self._predictor(place))
        return ", ".join(parts)

    def _predictor(self, place: Place) -> str:
        """Name a predictor that stands apart: a level, or a part with its link."""
        if place.predictor.isdigit():
            outcome = next(o for o in self.study.outcomes if o.name == place.outcome)
            levels = outcome.levels or tuple(range(len(outcome.predictors) + 1))
            return f"{levels[int(place.predictor)]} against {levels[0]} (logit)"
        return f"{place.predictor} ({self.links[place.outcome, place.predictor]})"

    def label(self, place: Place, positive: bool) -> str:
        if place.part == "membership":
            plain = self.study.plan.risk is None
            return _named(self.results, place.group) if plain else place.column
        key = (place.outcome, place.predictor)
        outcome = next(o for o in self.study.outcomes if o.name == place.outcome)
        if place.predictor == outcome.predictors[0] or key in self.apart:
            return place.column
        if positive:
            return place.predictor
        return f"{place.predictor} ({self.links[key]})"


# -- notes -----------------------------------------------------------------------------


def trajectory_notes(results: TrajectoryResults) -> Iterator[str]:
    """Say what a reader must know of a fit: rows, other maxima, cautions.

    Parameters
    ----------
    results : TrajectoryResults
    """
    study, found = results.model.study, results.traj
    for outcome in study.outcomes:
        if outcome.design.n_missing:
            rows = counted(outcome.design.n_missing, "row")
            of = f" of {outcome.name}" if len(study.outcomes) > 1 else ""
            yield f"Left out: {rows}{of} with missing values."
    others = found.optima.solutions[1:]
    if others:
        shown = ", ".join(
            f"{s.llf:.2f} ({counted(s.reached, 'start')}"
            + (f"; {s.degenerate}" if s.degenerate else "")
            + ")"
            for s in others[:_OTHERS]
        )
        more = len(others) - _OTHERS
        yield f"Other maxima: {shown}{f', and {more} more' if more > 0 else ''}."
    if study.units.weights is not None and results.cov_type in ("nonrobust", "oim"):
        yield (
            "Standard errors take the sampling weights for counts of units; "
            "cov_type='HC0' does not."
        )
    if not results.converged:
        yield f"NOT CONVERGED: {results.fit_info.message}."
    for text in dict.fromkeys(results.fit_info.notes):
        yield f"T{text[1:]}" if text.startswith("the ") else text
