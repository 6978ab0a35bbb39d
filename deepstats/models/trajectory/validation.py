"""Cross-validation over units: each is predicted by a fit that has not seen it.

A fit without a unit, or without a fold of them, is the same data with weights of zero:
all such fits are replicates of one tensor, begun at the solution of all units, from
which a single Newton step of one unit's score is nearly all there is to go.

References
----------
Nielsen, Rosenthal, Sun, Day, Bevc & Duchesne (2014), Group-based criminal trajectory
analysis using cross-validation criteria (the R package crimCV).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...batched import inverses
from .densities import Observed
from .fitted import Fitted
from .replicates import batches, refit

if TYPE_CHECKING:
    from .results import TrajectoryResults

__all__ = ["CrossValidation", "cross_validate"]

GIVEN = ("history", "nothing")


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Errors of units that were predicted by fits without them.

    Attributes
    ----------
    units : DataFrame, one row for each unit
        fold; n: rows; mae: mean absolute error over its rows (with several outcomes a
        column for each, ``mae:name``; none for categories); log_density of all its
        responses; converged: whether the fit without it has converged.
    folds : int
    weights : ndarray, shape (units,)
        Sampling weights; ones without.
    """

    units: pd.DataFrame
    folds: int
    weights: np.ndarray

    @property
    def mae(self) -> float | pd.Series:
        """Mean over units of their mean absolute error; with several outcomes each."""
        names = [c for c in self.units if c == "mae" or c.startswith("mae:")]
        found = {}
        for name in names:
            values = self.units[name].to_numpy()
            there = np.isfinite(values)
            found[name] = float(np.average(values[there], weights=self.weights[there]))
        if names == ["mae"]:
            return found["mae"]
        return pd.Series({k.removeprefix("mae:"): v for k, v in found.items()})

    @property
    def log_density(self) -> float:
        """Log-density of all units, each from the fit without it."""
        return float(self.weights @ self.units["log_density"])

    @property
    def failed(self) -> int:
        """Folds whose fit has not converged; their units are counted all the same."""
        return int(self.units.loc[~self.units["converged"], "fold"].nunique())

    def __repr__(self) -> str:
        mae = self.mae
        text = f"{mae:.5g}" if isinstance(mae, float) else mae.round(5).to_dict()
        return (
            f"<{self.folds} folds of {len(self.units)} units: mean absolute error "
            f"{text}, log-density {self.log_density:.6g}, {self.failed} not converged>"
        )


def cross_validate(
    results: TrajectoryResults,
    folds: int | None = None,
    *,
    seed: int = 0,
    given: str = "history",
    exact: bool = True,
) -> CrossValidation:
    """Refit without each unit, or each fold of units, and predict what was left out.

    Parameters
    ----------
    results : TrajectoryResults
    folds : int, optional
        Number of folds that units are put in at random; by default every unit is left
        out by itself.
    seed : int, default 0
        Of the random division into folds.
    given : {"history", "nothing"}, default "history"
        What is known of the unit that is predicted. "history": the expected curves of
        the groups, weighted by its posterior probabilities given its responses, as in
        Nielsen et al. (2014); "nothing": weighted by the prior probabilities at its
        risk factors.
    exact : bool, default True
        Search the maximum without each unit; if not, one Newton step from that of all
        units is taken, whose error is of second order in the share left out. Exact fits
        without each of N units take time in proportion to N squared: a second for
        hundreds of units, minutes for ten thousand, where folds or steps serve better.

    Returns
    -------
    CrossValidation

    Notes
    -----
    The error is the mean over units of the mean over a unit's occasions of
    ``|y - expected y|``. Fits begin at the solution of all units: they are those of
    the same maximum.
    """
    if given not in GIVEN:
        raise ValueError(f"given must be one of {GIVEN}, not {given!r}.")
    found = results.traj
    N = len(found.study.units)
    if folds is None:
        fold_of = torch.arange(N)
    elif int(folds) != folds or not 2 <= folds <= N:
        raise ValueError(
            f"folds must be a whole number from 2 to the {N} units, not {folds!r}."
        )
    else:
        order = np.random.default_rng(seed).permutation(N)
        fold_of = torch.empty(N, dtype=torch.long)
        fold_of[torch.from_numpy(order)] = torch.arange(N) % int(folds)
    count = int(fold_of.max()) + 1
    left = _Left(found, fold_of, given, exact)
    parts = [left.out(batch) for batch in batches(count, found.assembled.mixture)]
    frame = pd.concat(parts).loc[np.arange(N)]
    frame.insert(0, "fold", fold_of.numpy() + 1)
    frame.insert(1, "n", _rows(found))
    frame.index = found.study.units.labels
    weights = found.study.units.weights
    w = np.ones(N) if weights is None else weights.cpu().numpy()
    return CrossValidation(frame, count, w)


def _rows(found: Fitted) -> np.ndarray:
    counts = [
        torch.bincount(o.unit.cpu(), minlength=len(found.study.units))
        for o in found.study.outcomes
    ]
    return sum(counts[1:], counts[0]).numpy()


class _Left:
    """Fits without some folds, and what they say of the units left out."""

    def __init__(self, found: Fitted, fold_of: Tensor, given: str, exact: bool) -> None:
        self.found, self.fold_of, self.given, self.exact = found, fold_of, given, exact
        mixture, solution = found.assembled.mixture, found.solution
        self.scores = mixture.scores(solution.x)
        free = torch.ones(len(solution.x), dtype=torch.bool)
        free[list(solution.at_bound)] = False
        keep = (free[:, None] & free).to(solution.x.device)
        eye = torch.eye(len(free)).to(solution.x)
        information = torch.where(keep, solution.information, eye)
        self.inverse = torch.where(keep, inverses(information[None])[0], 0.0)

    def out(self, batch: range) -> pd.DataFrame:
        """Judge the units of some folds; a frame by the units' numbers."""
        mixture = self.found.assembled.mixture
        which = torch.tensor(batch)
        gone = self.fold_of == which[:, None]
        base = mixture.weights
        base = mixture.weights_like().new_ones(mixture.units) if base is None else base
        weights = torch.where(gone.to(base.device), 0.0, base)
        x = self.found.solution.x - (gone.to(self.scores) @ self.scores) @ self.inverse
        converged = torch.ones(len(batch), dtype=torch.bool)
        if self.exact:
            optimum = refit(replace(mixture, weights=weights), x, warm=0)
            x, converged = optimum.x, optimum.converged.cpu()
        units = torch.nonzero(gone.any(0)).flatten()
        place = self.fold_of[units] - batch.start
        at = torch.arange(len(units))
        R, llf = mixture.select(units.to(x.device)).posteriors(x)
        posterior, llf = R.cpu()[:, place, at], llf.cpu()[place, at]
        user = self.found.assembled.to_user(x).cpu()
        if self.given == "nothing":
            posterior = self._prior(user, units, place)
        frame: dict[str, np.ndarray] = self._errors(user, units, place, posterior)
        frame["log_density"] = llf.numpy()
        frame["converged"] = converged[place].numpy()
        return pd.DataFrame(frame, index=units.numpy())

    def _prior(self, user: Tensor, units: Tensor, place: Tensor) -> Tensor:
        mixture = self.found.assembled.mixture
        full = mixture.membership.full(mixture.split(user)[-1])[:, place]
        W = self.found.study.units.W.cpu().double()[units]
        return torch.softmax((full * W).sum(2), dim=0)

    def _errors(
        self, user: Tensor, units: Tensor, place: Tensor, posterior: Tensor
    ) -> dict[str, np.ndarray]:
        """Mean absolute errors of the units, by outcome."""
        study, mixture = self.found.study, self.found.assembled.mixture
        number = torch.full((mixture.units,), -1)
        number[units] = torch.arange(len(units))
        several, out = len(study.outcomes) > 1, {}
        for j, (outcome, kernel) in enumerate(
            zip(study.outcomes, self.found.assembled.kernels, strict=True)
        ):
            own = number[outcome.unit.cpu()]
            rows = torch.nonzero(own >= 0).flatten()
            own = own[rows]
            b = mixture.emissions[j].slots.spread(mixture.split(user)[j])
            of_class = mixture.groups_of[j] if mixture.groups_of else None
            b = b if of_class is None else b[list(of_class)]
            b, etas, start = b[:, place[own]], [], 0
            for X, offset in zip(outcome.X, outcome.offsets, strict=True):
                part = X[rows.to(X.device)].cpu().double()
                eta = (b[:, :, start : start + X.shape[1]] * part).sum(2)
                if offset is not None:
                    eta = eta + offset[rows.to(offset.device)].cpu()
                etas.append(eta)
                start += X.shape[1]
            y, size, lower, upper = (
                None if v is None else v[rows.to(v.device)].cpu()
                for v in (outcome.y, outcome.size, outcome.lower, outcome.upper)
            )
            assert y is not None
            mean = kernel.mean(tuple(etas), Observed(y, size, lower, upper))
            if mean.shape != etas[0].shape:
                continue  # Categories have no mean to be wrong by.
            error = (y - (posterior[:, own] * mean).sum(0)).abs()
            total = error.new_zeros(len(units)).index_add_(0, own, error)
            counts = torch.bincount(own, minlength=len(units))
            name = f"mae:{outcome.name}" if several else "mae"
            out[name] = (total / counts).numpy()
        return out
