"""The printed page of a hierarchical regression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...results import counted, whole
from ...summary import Notes, Pairs, Summary, Table

if TYPE_CHECKING:
    from .results import HierarchicalResults

__all__ = ["hierarchical_summary"]

_OBJECTIVES = {
    ("gaussian", "norm"): "|r|/sqrt(n) + penalty |Wv|",
    ("gaussian", "squared"): "|r|²/n + penalty |Wv|²",
    ("binomial", "norm"): "log-loss + penalty |Wv|",
    ("binomial", "squared"): "log-loss + penalty |Wv|²",
}
_LOSSES = {
    ("gaussian", "norm"): "Root mean square",
    ("gaussian", "squared"): "Mean square",
}
_RULES = {
    "cv": "cross-validation",
    "1se": "cross-validation, one standard error",
    "gcv": "generalised cross-validation",
    "reml": "restricted likelihood",
}
_WEIGHTS = {
    "size": "one over the rows of the group, summing to one",
    "equal": "equal",
    "sd": "standard deviations of the columns",
    "given": "given by block",
}


def hierarchical_summary(results: HierarchicalResults) -> Summary:
    """Lay out a fit: header, coefficients, deviations, notes.

    Parameters
    ----------
    results : HierarchicalResults

    Returns
    -------
    Summary
    """
    blocks: list[Any] = [Pairs(tuple(_header(results)), columns=2)]
    if len(results.params):
        frame = pd.DataFrame({"coef": results.params.to_numpy()}, results.params.index)
        for g in results.problem.sample.groups:
            sd = results.blocks["sd"].to_numpy()
            place = list(results.blocks.index)
            frame[f"sd by {g.name}"] = [
                sd[place.index(label)] if label in place else np.nan
                for label in (f"{name} | {g.name}" for name in frame.index)
            ]
        text = "Population, and standard deviations of the deviations by group"
        blocks.append(Table(frame.astype(object).where(frame.notna(), ""),
                            caption=text, align="r" * frame.shape[1]))  # fmt: skip
    blocks += [
        Table(results.blocks, {"levels": "d"}, caption="Deviations"),
        Notes(tuple(_notes(results))),
    ]
    model = results.model
    return Summary(model.title, model.design.spec.formula.text, tuple(blocks))


def _header(results: HierarchicalResults) -> Iterator[tuple[str, Any]]:
    model = results.model
    kind = model.family_name, model.form
    levels = ", ".join(
        f"{g.name} {len(g.levels)}" for g in results.problem.sample.groups
    )
    yield "Family", model.family_name
    yield "Objective", _OBJECTIVES[kind]
    yield "Penalty", results.penalty
    yield "Chosen by", _RULES[results.rule] if results.rule else "given"
    yield "Ridge strength", results.mu
    yield "Effective df", results.df
    yield "Observations", whole(results.nobs)
    yield "Groups", levels
    yield _LOSSES.get(kind, "Mean log-loss"), results.loss_value
    yield "Objective value", results.objective
    yield "KKT residual", f"{results.kkt_residual:.1e}"
    yield "Converged", "yes" if results.converged else "NO"


def _notes(results: HierarchicalResults) -> Iterator[str]:
    model = results.model
    if model.penalty == "reml":
        yield "Weights: roots of residual variance over that of the deviations."
        none = [b for b, w in results.blocks["weight"].items() if np.isinf(w)]
        if none:
            yield f"No deviations, their variance being zero: {', '.join(none)}."
    else:
        kind = model.group_weights if isinstance(model.group_weights, str) else "given"
        yield f"Weights of the deviations: {_WEIGHTS[kind]}."
    if model.form == "norm":
        ends = f"From a penalty of {results.penalty_max:.6g} on there are no deviations"
        yield ends + (": as here." if not results.solution.u.any() else ".")
    yield "Penalised coefficients have no standard errors; ds.lmer and ds.glmer do."
    if model.design.n_missing:
        yield f"Left out for missing values: {counted(model.design.n_missing, 'row')}."
    yield from model.dropped
