"""Random effects within groups, as a user reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from ...errors import ModelError
from .fitted import Fitted
from .growth import GrowthEmission
from .labels import group_names, prefix

if TYPE_CHECKING:
    from .results import TrajectoryResults
    from .study import Outcome

__all__ = ["covariances_of", "effects_table", "predicted_effects"]

_ROWS = 20_000


def _outcomes(found: Fitted) -> list[tuple[int, Outcome]]:
    """Outcomes with random effects, and their numbers."""
    outcomes = [
        (j, o) for j, o in enumerate(found.study.outcomes) if o.effects is not None
    ]
    if not outcomes:
        raise ModelError(
            "the model has no random effects within groups; ask for them with "
            "random=~ 1 + t."
        )
    return outcomes


def _emission(found: Fitted, number: int) -> GrowthEmission:
    emission = found.assembled.mixture.emissions[number]
    assert isinstance(emission, GrowthEmission)
    return emission


def covariances_of(found: Fitted, number: int = 0, x: Tensor | None = None) -> Tensor:
    """Covariance matrices of an outcome's random effects in every group; (K, q, q).

    Parameters
    ----------
    found : Fitted
    number : int, default 0
        Which outcome.
    x : Tensor, shape (P,), optional
        The user's parameters; by default the estimates.
    """
    L = _emission(found, number).factor(found.coefficients(number, x))
    return L @ L.transpose(1, 2)


def effects_table(results: TrajectoryResults, alpha: float) -> pd.DataFrame:
    """Estimate standard deviations and correlations; see `random_effects`."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
    frames = [
        _of_outcome(results, number, outcome, float(special.ndtri(1 - alpha / 2)))
        for number, outcome in _outcomes(results.traj)
    ]
    return pd.concat(frames, ignore_index=True)


def _of_outcome(
    results: TrajectoryResults, number: int, outcome: Outcome, z: float
) -> pd.DataFrame:
    found, effects = results.traj, outcome.effects
    assert effects is not None
    q, columns = len(effects.columns), effects.columns
    groups = [0] if effects.cov == "shared" else list(range(found.groups))
    i, j = torch.tril_indices(q, q)
    order = torch.argsort((i != j).long(), stable=True)
    i, j = i[order], j[order]

    def values(x: Tensor) -> Tensor:
        """Variances and covariances, then deviations and correlations; (2, G, r)."""
        B = covariances_of(found, number, x)[groups]
        # On the edge a derivative is no number, and nor is its standard error.
        sd = B.diagonal(dim1=1, dim2=2).sqrt()
        ratio = torch.where(i == j, sd[:, i], B[:, i, j] / (sd[:, i] * sd[:, j]))
        return torch.stack([B[:, i, j], ratio])

    estimate, errors = _with_errors(results, values)
    names = ["all"] if effects.cov == "shared" else group_names(found.groups)
    frame = pd.DataFrame(
        {
            "outcome": outcome.name,
            "group": np.repeat(names, len(i)),
            "var1": [columns[b] for b in j] * len(groups),
            "var2": [None if a == b else columns[a] for a, b in zip(i, j, strict=True)]
            * len(groups),
            "estimate": estimate[1].ravel(),
            "std_error": errors[1].ravel(),
            "vcov": estimate[0].ravel(),
            "vcov_std_error": errors[0].ravel(),
        }
    )
    low, high = _interval(frame, z)
    frame.insert(6, "conf_low", low)
    frame.insert(7, "conf_high", high)
    return frame


def _with_errors(
    results: TrajectoryResults, function: object
) -> tuple[np.ndarray, np.ndarray]:
    """Values at the estimates, and standard errors by the delta method."""
    assert callable(function)
    x, matrix = results.fit_info.x, results.covariance.matrix
    value = function(x)
    slopes = torch.func.jacrev(function)(x)
    lost = ~torch.isfinite(matrix.diagonal())
    kept = torch.where(lost[:, None] | lost, 0.0, matrix)
    safe = torch.nan_to_num(slopes)
    variance = torch.einsum("...a,ab,...b->...", safe, kept, safe)
    bad = ~torch.isfinite(slopes).all(-1) | (safe[..., lost] != 0).any(-1)
    bad |= variance <= 0
    errors = torch.where(bad, torch.nan, variance.clamp_min(0).sqrt())
    return value.numpy(), errors.numpy()


def _interval(frame: pd.DataFrame, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Limits on the scales of logarithms and of Fisher's z."""
    estimate, se = frame["estimate"].to_numpy(), frame["std_error"].to_numpy()
    is_sd = frame["var2"].isna().to_numpy()
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        fisher, width = np.arctanh(estimate), z * se / (1 - estimate**2)
        factor = np.exp(z * se / estimate)
        low = np.where(is_sd, estimate / factor, np.tanh(fisher - width))
        high = np.where(is_sd, estimate * factor, np.tanh(fisher + width))
    return low, high


def predicted_effects(found: Fitted, by_group: bool) -> pd.DataFrame:
    """Predict the random effects of units; see `TrajectoryResults.ranef`."""
    frames = [_predicted(found, j, o, by_group) for j, o in _outcomes(found)]
    return pd.concat(frames, axis=1)


def _predicted(
    found: Fitted, number: int, outcome: Outcome, by_group: bool
) -> pd.DataFrame:
    mixture, emission = found.assembled.mixture, _emission(found, number)
    assert outcome.effects is not None
    free = mixture.split(found.solution.x[None])[number][0]
    blocks = [
        emission.predicted(free, slice(low, min(low + _ROWS, mixture.units)))[0]
        for low in range(0, mixture.units, _ROWS)
    ]
    b = torch.cat(blocks, dim=2) / emission.scales[:, None]
    before = prefix(found.study, outcome)
    names = [f"{before}{c}" for c in outcome.effects.columns]
    labels = found.study.units.labels
    if not by_group:
        weighted = np.einsum("kqn,nk->nq", b.cpu().numpy(), found.posterior)
        return pd.DataFrame(weighted, index=labels, columns=names)
    columns = pd.MultiIndex.from_product(
        [group_names(found.groups), names], names=["group", "effect"]
    )
    table = b.permute(2, 0, 1).reshape(mixture.units, -1).cpu().numpy()
    return pd.DataFrame(table, index=labels, columns=columns)
