"""The bootstrap of a trajectory model: units or clusters drawn again, or responses.

Every replicate begins at the estimates and keeps their numbers of the groups: after
the fit groups are matched to those of the data, so that labels do not switch.

References
----------
Efron & Tibshirani (1993), An introduction to the bootstrap; O'Hagan, Murphy, Scrucca &
Gormley (2019), Investigation of parameter uncertainty in clustering using a Gaussian
mixture model via jackknife, bootstrap and weighted likelihood bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ...bootstrap import BootstrapResults, collected, skewed, tallies
from ...errors import ModelError
from .covariances import unit_values
from .mixture import Mixture
from .replicates import Redrawn, batches, covariances, draw, refit_matched

if TYPE_CHECKING:
    from .results import TrajectoryResults

__all__ = ["bootstrap"]

KINDS = ("units", "cluster", "parametric")

# A replicate's variance, over that of the fit, from which it has no maximum.
_BEYOND = 1e5


def bootstrap(
    results: TrajectoryResults,
    kind: str = "units",
    replications: int = 999,
    *,
    groups: Any = None,
    seed: int | None = None,
    statistic: Callable[[pd.Series], Any] | None = None,
) -> BootstrapResults:
    """Fit the model to many resampled data sets at once.

    Parameters
    ----------
    results : TrajectoryResults
    kind : {"units", "cluster", "parametric"}, default "units"
        Units drawn with replacement, each with all its occasions; whole clusters of
        units; groups and responses drawn from the fitted model, at the units, times
        and factors of the data.
    replications : int, default 999
    groups : optional
        Clusters: a column that is constant in units, or values for rows or units; by
        default the model's ``cluster=``.
    seed : int, optional
        The same seed gives the same replicates on the same machine.
    statistic : callable, optional
        From a Series of parameters to a number or a Series, in place of the parameters.

    Returns
    -------
    BootstrapResults

    Raises
    ------
    ModelError
        For clusters that are not known, and parametric replicates of a dropout model.

    Warns
    -----
    ConvergenceWarning
        With the number of replicates left out because their fit did not converge, or
        a group of theirs was empty.

    Notes
    -----
    Replicates are searched from the estimates: they say how the maximum that was found
    moves from sample to sample, not whether another one overtakes it.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}.")
    if int(replications) != replications or replications < 2:
        raise ValueError(f"replications must be 2 or more, not {replications!r}.")
    if kind != "cluster" and groups is not None:
        raise ValueError("groups= goes with kind='cluster'.")
    plan = _Plan.of(results, kind, groups)
    generator = Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    values = torch.full(
        (replications, len(results.names)), torch.nan, dtype=torch.float64
    )
    assembled, start = results.traj.assembled, results.traj.solution.x
    for batch in batches(replications, assembled.mixture, plan.together):
        mixture, reference = plan.draw(len(batch), generator)
        begin = start.expand(len(batch), -1)
        found = refit_matched(assembled, mixture, begin, reference)
        spread, _ = covariances(assembled, found)
        good = (found.good & ~plan.unbounded(spread)).cpu()
        rows = torch.tensor(batch)[good]
        values[rows] = assembled.to_user(found.x).cpu().double()[good]
    reported = results.model.parameters.reported(values).numpy()
    frame = pd.DataFrame(reported, columns=results.names)
    frame = frame[np.isfinite(reported).all(axis=1)]
    return collected(results, kind, plan.acceleration, frame, replications, statistic)


@dataclass(frozen=True, eq=False)
class _Plan:
    """How replicates are drawn.

    Attributes
    ----------
    results : TrajectoryResults
    kind : str
    codes : Tensor of int, shape (N,)
        Cluster of each unit; units are clusters of their own.
    clusters : int
    redrawn : Redrawn or None
        For responses that are drawn.
    """

    results: TrajectoryResults
    kind: str
    codes: Tensor
    clusters: int
    redrawn: Redrawn | None

    @classmethod
    def of(cls, results: TrajectoryResults, kind: str, groups: Any) -> _Plan:
        study = results.traj.study
        codes = torch.arange(len(study.units))
        redrawn = None
        if kind == "parametric":
            redrawn = Redrawn(study, results.traj.assembled)
        elif kind == "cluster" and groups is not None:
            values = unit_values(study, groups, "the cluster")
            codes = torch.from_numpy(pd.factorize(values)[0].astype(np.int64))
        elif kind == "cluster":
            if study.units.clusters is None:
                raise ModelError(
                    "kind='cluster' needs groups=: a column that is constant in units; "
                    "or give cluster= to the model."
                )
            codes = study.units.clusters.cpu()
        clusters = int(codes.max()) + 1
        if clusters < 2:
            raise ModelError("the cluster bootstrap needs two clusters or more.")
        return cls(results, kind, codes, clusters, redrawn)

    @property
    def together(self) -> bool:
        """Whether replicates can be worked on together."""
        return self.redrawn is None or self.redrawn.together

    def draw(self, count: int, generator: Generator) -> tuple[Mixture, Tensor]:
        """Return replicates, and where their units belong: (K, N) or (K, count, N)."""
        found = self.results.traj
        mixture = found.assembled.mixture
        if self.redrawn is None:
            drawn = tallies(self.clusters, self.clusters, count, generator)
            weights = mixture.compute.tensor(drawn[:, self.codes])
            if mixture.weights is not None:
                weights = weights * mixture.weights
            posterior = mixture.compute.tensor(found.posterior.T)
            return replace(mixture, weights=weights), posterior
        new = draw(found.study, found.assembled, found.x, count, generator)
        kinds = torch.arange(mixture.groups)[:, None, None]
        reference = mixture.compute.tensor((new.groups == kinds).double())
        return self.redrawn.mixture(new.responses), reference

    def unbounded(self, cov: Tensor) -> Tensor:
        """Replicates whose likelihood has no maximum: variances beyond comparison."""
        usual = torch.nan_to_num(self.results.fit_info.bread.diagonal(), nan=torch.inf)
        spread = cov.diagonal(dim1=1, dim2=2)
        return (spread > _BEYOND * usual.to(spread)).any(dim=1)

    def acceleration(self, gradient: np.ndarray) -> np.ndarray | None:
        """Skewness of the influence of units or clusters, over six.

        `gradient`, (q, P), is that of the statistics in the parameters.
        """
        if self.kind == "parametric":
            return None
        results, x = self.results, self.results.fit_info.x
        scores = results.likelihood.group_scores(x, self.codes, self.clusters).cpu()
        bread = torch.nan_to_num(results.fit_info.bread).cpu()
        scale = results.model.parameters.scale(x).cpu()
        change = torch.from_numpy(np.asarray(gradient)) @ (scale[:, None] * bread)
        return skewed(scores @ change.T)
