"""The printed page of simple weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...results import counted
from ...summary import Notes, Pairs, Summary, Table

if TYPE_CHECKING:
    from .results import SimpleWeightsResults

__all__ = ["simple_summary"]

_LOSSES = {"squared": "mean squared error", "logloss": "log-loss"}


def simple_summary(results: SimpleWeightsResults) -> Summary:
    """Lay out header, points, other ways, notes.

    Parameters
    ----------
    results : SimpleWeightsResults

    Returns
    -------
    Summary
    """
    model = results.model
    header = [
        ("Loss", _LOSSES[model.loss]),
        ("Rows", str(model.regression.design.n)),
        ("Columns", f"{results.terms} of {len(results.points)}"),
        ("Mean loss", f"{results.loss_value:.6g}"),
        ("Lower bound", f"{results.bound:.6g}"),
        ("Optimal", "yes" if results.optimal else "not proven"),
        ("Intercept", f"{results.intercept:.6g}"),
        ("Step", f"{results.step:.6g}"),
        ("Nodes", str(results.nodes)),
    ]
    others = results.comparison()[["loss", "excess", "terms", "step"]]
    others.index.name = None
    formats = {"loss": ".6g", "excess": ".3g", "step": ".4g"}
    blocks = (
        Pairs(tuple(header)),
        Table(
            results._points_table(), {"from": "g", "to": "g"},
            caption="Points, and the range of the columns",
        ),
        Table(others, formats, caption="Other ways to these coefficients"),
        Notes(tuple(_notes(results))),
    )  # fmt: skip
    return Summary(model.title, model.formula_text, blocks)


def _notes(results: SimpleWeightsResults) -> Iterator[str]:
    yield f"Predicted: {results._equation('points')}."
    zero = [name for name, v in results.points.items() if v == 0]
    if zero:
        yield f"No points: {', '.join(map(str, zero))}."
    if not results.optimal:
        yield (
            f"The search ended at its limit of nodes, {results.gap:.3g} from the "
            "bound; raise max_nodes=, or give max_terms= or narrower bounds="
        )
    missing = results.model.regression.design.n_missing
    if missing:
        yield f"Left out: {counted(missing, 'row')} with missing values."
    yield from results.model.regression.cautions
