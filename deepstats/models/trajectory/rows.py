"""Rows of the data: where they stand, their fitted means, and frames of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ...families import Multinomial
from .densities import Observed
from .fitted import outcome_etas

if TYPE_CHECKING:
    from .fitted import Fitted
    from .results import TrajectoryResults
    from .study import Outcome

__all__ = ["augmented", "by_row", "data_rows", "fitted_means"]

#: Numbers that the means of a block of rows in all groups may take.
_BLOCK = 2_000_000


def data_rows(outcome: Outcome) -> np.ndarray:
    """Positions of an outcome's rows in the data, in the order of the units; (n,)."""
    order = np.arange(outcome.n) if outcome.order is None else outcome.order
    rows = outcome.design.rows
    return order if rows is None else np.asarray(rows)[order]


def fitted_means(found: Fitted, number: int) -> np.ndarray:
    """Average the groups' means of an outcome's rows by posterior probability; (n,).

    Parameters
    ----------
    found : Fitted
    number : int
        Which outcome.

    Raises
    ------
    ModelError
        For levels that have no order, and so no mean.
    """
    outcome, kernel = found.study.outcomes[number], found.assembled.kernels[number]
    b, p = found.coefficients(number), torch.from_numpy(found.posterior)
    size, parts = max(1, _BLOCK // len(b)), []
    for start in range(0, outcome.n, size):
        block = slice(start, min(start + size, outcome.n))
        limits = [
            None if v is None else v[block] for v in (outcome.lower, outcome.upper)
        ]
        data = Observed(outcome.y[block], None, *limits)
        mean = kernel.mean(outcome_etas(outcome, b, block), data)
        weights = p[outcome.unit[block].cpu()].T
        parts.append((mean.cpu() * weights).sum(0))
    return torch.cat(parts).numpy()


def by_row(outcomes: list[Outcome], columns: list[np.ndarray], name: str) -> pd.Series:
    """Label values of rows, in the order of the data.

    Parameters
    ----------
    outcomes : list of Outcome
    columns : list of ndarray, each (n,)
        Values of the outcomes' rows.
    name : str

    Returns
    -------
    Series or DataFrame
        A Series for one outcome; for several a DataFrame with a column for each, NaN
        where an outcome is missing.
    """
    if len(outcomes) == 1:
        order = np.argsort(data_rows(outcomes[0]), kind="stable")
        return pd.Series(columns[0][order], outcomes[0].index[order], name=name)
    at, labels = _positions(outcomes)
    frame = {}
    for outcome, values in zip(outcomes, columns, strict=True):
        column = np.full(len(at), np.nan)
        column[np.searchsorted(at, data_rows(outcome))] = values
        frame[outcome.name] = column
    return pd.DataFrame(frame, index=labels)


def _positions(outcomes: list[Outcome]) -> tuple[np.ndarray, pd.Index]:
    """Positions in the data of rows that any outcome uses, and their labels."""
    rows = np.concatenate([data_rows(o) for o in outcomes])
    at, first = np.unique(rows, return_index=True)
    labels = outcomes[0].index
    for outcome in outcomes[1:]:
        labels = labels.append(outcome.index)
    return at, labels[first]


def augmented(results: TrajectoryResults) -> pd.DataFrame:
    """Return the rows used, with what the fit says of them and of their units.

    Parameters
    ----------
    results : TrajectoryResults

    Returns
    -------
    DataFrame, one row for each row used, in the order of the data
        The id; the response, ``.fitted`` and ``.resid`` (for several outcomes
        ``.fitted_<name>`` and ``.resid_<name>``; none for levels without an order);
        ``.group``, the most probable one; ``.posterior_g1`` ...
    """
    found, study = results.traj, results.model.study
    outcomes = list(study.measured)
    fits = [
        # Levels without an order have no mean.
        None if isinstance(o.family, Multinomial) else fitted_means(found, j)
        for j, o in enumerate(outcomes)
    ]
    at, labels = _positions(outcomes)
    unit = np.empty(len(at), dtype=np.int64)
    columns: dict[str, np.ndarray] = {}
    for outcome, fitted in zip(outcomes, fits, strict=True):
        place = np.searchsorted(at, data_rows(outcome))
        unit[place] = outcome.unit.cpu().numpy()
        y = outcome.y.double().cpu().numpy()
        end = f"_{outcome.name}" if len(outcomes) > 1 else ""
        of_outcome = {outcome.name: y}
        if fitted is not None:
            of_outcome |= {f".fitted{end}": fitted, f".resid{end}": y - fitted}
        for name, values in of_outcome.items():
            columns[name] = np.full(len(at), np.nan)
            columns[name][place] = values
    posterior = found.posterior[unit]
    frame = pd.DataFrame(
        {study.plan.id: study.units.labels[unit].to_numpy(), **columns}, index=labels
    )
    frame[".group"] = np.argmax(posterior, axis=1) + 1
    for k, name in enumerate(found.names):
        frame[f".posterior_{name}"] = posterior[:, k]
    return frame
