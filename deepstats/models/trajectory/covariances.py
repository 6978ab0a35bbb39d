"""Covariances of a trajectory model's estimates: information, OPG, sandwich, clusters.

The units are what is independent: scores are theirs, small-sample factors count them,
and clusters are clusters of units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...design import Grouping
from ...errors import DesignError, ModelError, listed
from ...inference import Covariance, canonical, covariance
from .gathering import Gatherer

if TYPE_CHECKING:
    from ...results import Fit
    from .fitted import Fitted
    from .likelihood import TrajectoryLikelihood
    from .study import Study

__all__ = ["KINDS", "fit_covariance", "unit_values"]

#: Variance of a score, relative to the information's, that is only rounding.
_NO_SPREAD = 1e-12
#: Covariances that a mixture has.
KINDS = ("nonrobust", "oim", "opg", "HC0", "HC1", "cluster")


def fit_covariance(
    fit: Fit,
    found: Fitted,
    likelihood: TrajectoryLikelihood,
    cov_type: str,
    cov_kwds: Mapping[str, Any] | None = None,
) -> Covariance:
    """Covariance of the user's parameters (scales as logarithms).

    Parameters
    ----------
    fit : Fit
    found : Fitted
    likelihood : TrajectoryLikelihood
    cov_type : str
        "nonrobust" (also "oim"): observed information; "opg"; "HC0", "HC1": sandwich
        of the units' scores; "cluster". See `inference.covariance`.
    cov_kwds : mapping, optional
        For "cluster": `groups`, a column that is constant in units, a list of such
        columns, or values for rows or units (default: the model's ``cluster=``);
        `use_correction`, `df_correction`, `ssc`, `parameters`.

    Returns
    -------
    Covariance
        NaN for parameters that the data do not determine.

    Raises
    ------
    ModelError
        For a kind that a mixture does not have.
    DesignError
        For clusters that vary within a unit.
    """
    kind, options = canonical(cov_type), dict(cov_kwds or {})
    if kind not in KINDS:
        raise ModelError(
            f"trajectory models have no {kind} standard errors; use one of "
            f"{', '.join(KINDS)}."
        )
    if kind == "cluster":
        options["groups"] = _clusters(found.study, options.get("groups"))
    common: dict[str, Any] = dict(
        nobs=fit.nobs, df_resid=fit.df_resid, options=options,
    )  # fmt: skip
    silent = _silent(found, likelihood, fit.x) if kind == "opg" else set()
    if not found.flat and not silent:
        return covariance(likelihood, fit.x, fit.bread, kind, **common)
    return _of_identified(found, likelihood, fit, kind, common, silent)


class _Identified:
    """The scores of the mixture's parameters that the data determine."""

    def __init__(self, likelihood: TrajectoryLikelihood, change: Tensor) -> None:
        self.likelihood, self.change = likelihood, change

    def score_gram(
        self, x: Tensor, leverage: Tensor | None = None, power: int = 0
    ) -> Tensor:
        gram = self.likelihood.score_gram(x, leverage, power)
        return self.change.T @ gram @ self.change

    def group_gram(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        gram = self.likelihood.group_gram(x, codes, groups)
        return self.change.T @ gram @ self.change


def _silent(found: Fitted, likelihood: TrajectoryLikelihood, x: Tensor) -> set[int]:
    """Parameters of the mixture whose scores are rounding: those of a lone unit."""
    change = found.assembled.change.to(found.inner)
    spread = (change.T @ likelihood.score_gram(x) @ change).diagonal()
    none = spread * found.inner.diagonal() < _NO_SPREAD
    return set(torch.nonzero(none).flatten().tolist())


def _of_identified(
    found: Fitted, likelihood: TrajectoryLikelihood, fit: Fit, kind: str,
    common: dict[str, Any], silent: set[int],
) -> Covariance:  # fmt: skip
    """Covariance where some directions are not identified: they are held fixed."""
    flat = set(found.flat) | silent
    kept = [j for j in range(len(found.inner)) if j not in flat]
    change = found.assembled.change.to(found.inner)[:, kept]
    bread = found.inner[kept][:, kept]
    part: Any = _Identified(likelihood, change)
    inner = covariance(part, fit.x, bread, kind, **common)
    matrix = change @ inner.matrix @ change.T
    touched = found.assembled.change[:, sorted(silent)].abs().sum(1)
    lost = [*found.unidentified, *torch.nonzero(touched).flatten().tolist()]
    matrix[lost] = matrix[:, lost] = torch.nan
    return Covariance(
        matrix, inner.kind, inner.description, inner.df, inner.groups, inner.options
    )


# -- clusters --------------------------------------------------------------------------


def _clusters(study: Study, groups: Any) -> tuple[Grouping, ...]:
    """Clusters of the units, in one or more ways."""
    if groups is None:
        codes = study.units.clusters
        if codes is None:
            raise ModelError(
                "cluster needs groups=: a column that is constant in units; or give "
                "cluster= to the model."
            )
        levels = tuple(range(int(codes.max()) + 1))
        return (Grouping(str(study.plan.cluster), codes.cpu().numpy(), levels),)
    several = isinstance(groups, (list, tuple)) and all(
        isinstance(g, str) for g in groups
    )
    return tuple(_cluster(study, g) for g in (groups if several else [groups]))


def _cluster(study: Study, given: Any) -> Grouping:
    name = given if isinstance(given, str) else getattr(given, "name", None)
    values = unit_values(study, given, "the cluster")
    codes, levels = pd.factorize(values.to_numpy(), sort=True)
    return Grouping(str(name or "groups"), codes.astype(np.int64), tuple(levels))


def unit_values(study: Study, given: Any, what: str) -> pd.Series:
    """Return what is constant in units: one value for each unit of the fit.

    Parameters
    ----------
    study : Study
    given : str or array_like
        A column of the data; or values, one for each of its rows, or one for each
        unit in the order of `units`.
    what : str
        What it is, for messages.

    Returns
    -------
    Series
        By the units' labels.

    Raises
    ------
    DesignError
        Where there is no such column, it varies within a unit, or a unit has none.
    """
    units, rows = study.units.labels, study.table.n
    if not isinstance(given, str) and len(given) not in (rows, len(units)):
        raise DesignError(
            f"{what} has {len(given)} values; give one for each of the {rows} rows or "
            f"of the {len(units)} units."
        )
    if not isinstance(given, str) and len(given) == len(units) != rows:
        values = pd.Series(np.asarray(given), units)
    else:
        everyone = Gatherer(study.plan, study.table, study.compute)
        if not isinstance(given, str):
            column = pd.Series(np.asarray(given))
            found = everyone.of_units.values(column, "groups", what)
        elif given in study.table.columns:
            found = everyone.of_units.column(given, what)
        else:
            raise DesignError(
                f"{what} {given}: there is no such column; the data have "
                f"{listed(study.table.columns, 20)}."
            )
        values = pd.Series(np.asarray(found), everyone.labels).loc[units]
    missing = values.isna().to_numpy()
    if missing.any():
        raise DesignError(
            f"{what} is missing for the units {listed(units[missing].tolist())}."
        )
    return values
