"""Frames to the tensors of a loss: outcome, further columns, validation data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design
from ...errors import DesignError
from ...formula import Rhs
from ...frame import Table
from .losses import Composite, Loss
from .objective import Objective

__all__ = ["check_outcome", "extra_columns", "make_objective", "validation"]


def check_outcome(loss: Loss, design: Design) -> None:
    """Raise `DesignError` for outcomes that a loss is not made for."""
    y, name = design.y, design.y_name
    if y is None or y.ndim != 1:
        raise DesignError("a loss has one outcome; write it left of ~.")
    if design.size is not None:
        raise DesignError("cbind(successes, failures) is not an outcome of a loss.")
    levels = design.y_levels
    two = levels is not None and len(levels) == 2
    coded = levels is None or levels == (False, True)
    if not coded and not (two and loss.outcomes == "unit"):
        raise DesignError(
            f"the outcome {name} is categorical, with levels {list(levels)[:6]}; "
            f"the loss {loss.name} needs numbers."
        )
    if len(y) == 0:
        raise DesignError("there are no rows.")
    low, high = float(np.min(y)), float(np.max(y))
    if not np.isfinite([low, high]).all():
        raise DesignError(f"the outcome {name} is not finite in some rows.")
    if loss.outcomes == "unit" and not (low >= 0 and high <= 1):
        raise DesignError(
            f"the loss {loss.name} needs outcomes in [0, 1]; {name} runs from {low:g} "
            f"to {high:g}."
        )
    if loss.outcomes == "counts" and low < 0:
        raise DesignError(
            f"the loss {loss.name} needs outcomes that are not negative; the least of "
            f"{name} is {low:g}."
        )


def extra_columns(
    design: Design,
    table: Table,
    columns: Mapping[str, str],
    levels: Mapping[str, tuple] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
    """Read the columns a loss takes, for the rows of a design.

    Parameters
    ----------
    design : Design
        Of these rows.
    table : Table
    columns : mapping of str to str
        Column of the data by argument of the loss.
    levels : mapping of str to tuple, optional
        Levels of columns that are not numbers; by default those of these data.

    Returns
    -------
    values : dict of str to ndarray, shape (n,)
        Numbers, or codes of the sorted levels.
    levels : dict of str to tuple

    Raises
    ------
    DesignError
        For a column that is not there, a missing value or an unknown level.
    """
    values, found = {}, {}
    for argument, name in columns.items():
        try:
            series = pd.Series(np.asarray(table.full(name), dtype=object))
        except KeyError:
            raise DesignError(
                f"the loss asks for the column {name!r}, which is not in the data: "
                f"{list(table.columns)}. Name it by loss_columns={{{argument!r}: "
                "'column'}}."
            ) from None
        series = series.infer_objects()
        part = pd.Series(design.values(series.to_numpy(), name)).infer_objects()
        if part.isna().any():
            raise DesignError(
                f"the column {name} of the loss is missing in {int(part.isna().sum())} "
                "of the rows used; drop those rows."
            )
        if pd.api.types.is_bool_dtype(part) or pd.api.types.is_numeric_dtype(part):
            values[argument] = part.to_numpy(dtype=np.float64)
            continue
        known = (levels or {}).get(argument) or tuple(sorted(set(part), key=str))
        codes = pd.Categorical(part, categories=list(known)).codes
        if (codes < 0).any():
            unknown = sorted(set(part) - set(known), key=str)[:6]
            raise DesignError(
                f"the column {name} has levels {unknown} that the data of the fit do "
                f"not have: {list(known)[:10]}."
            )
        values[argument], found[argument] = codes.astype(np.int64), known
    return values, found


def make_objective(
    design: Design,
    composite: Composite,
    columns: Mapping[str, np.ndarray],
    compute: Compute,
    y: np.ndarray | None = None,
) -> Objective:
    """Return the mean loss of the rows of a design, as one block of tensors."""
    compute.require(
        3 * design.n * max(design.X.k, 1),
        f"the whole design of {design.n:,} rows",
        "a loss is minimised on all rows at once: raise the budget with "
        "set_default_device(memory=...).",
    )

    def tensor(values: np.ndarray | None) -> Tensor | None:
        if values is None:
            return None
        dtype = np.int64 if values.dtype.kind in "iu" else np.float64
        return torch.from_numpy(np.array(values, dtype=dtype)).to(compute.device)

    outcome = tensor(np.asarray(design.y if y is None else y, dtype=np.float64))
    assert outcome is not None
    X = design.X.to_dense(compute).double()
    extra = {n: t for n, v in columns.items() if (t := tensor(v)) is not None}
    return Objective(
        X, outcome, composite, weights=tensor(design.weights),
        offset=tensor(design.offset), columns=extra,
    )  # fmt: skip


def validation(
    design: Design,
    data: Any,
    composite: Composite,
    columns: Mapping[str, str],
    levels: Mapping[str, tuple],
    compute: Compute,
) -> Objective:
    """Mean loss of other data, with the columns and levels of the design.

    Raises
    ------
    DesignError
        If the outcome or a column is missing, or has other levels.
    """
    spec = design.spec
    found = spec.rebuild(data)
    formula = replace(spec.formula, rhs=Rhs.parse("~ 1"), parts=())
    outcome = Design.build(formula, data, context=spec.context, compute=compute)
    if outcome.y_levels != design.y_levels:
        raise DesignError(
            f"the outcome has levels {design.y_levels} in the data of the fit and "
            f"{outcome.y_levels} in eval_data."
        )
    n = found.n_given
    here = np.arange(n) if found.rows is None else np.asarray(found.rows)
    there = np.arange(n) if outcome.rows is None else np.asarray(outcome.rows)
    both = np.intersect1d(here, there)
    if not len(both):
        raise DesignError("eval_data has no complete row.")
    values, _ = extra_columns(found, Table(data), columns, levels)
    at = np.searchsorted(here, both)
    y = np.full(n, np.nan)
    y[there] = outcome.y
    whole = make_objective(found, composite, values, compute, y=y[here])
    return whole if len(both) == len(here) else whole.subset(at)
