"""How well units fall into groups: shares, posterior probabilities, entropies.

With p_ik the posterior probability of group k for unit i, and unit i assigned to the
group of its largest one:

- APP of group k: mean of p_ik over the units assigned to k;
- OCC of group k: ``APP / (1 - APP)`` over ``pi / (1 - pi)``, pi the model's share;
- mismatch of group k: the model's share less the share of units assigned to k;
- entropy: ``E = - sum_ik p_ik log p_ik``; relative entropy ``1 - E / (N log K)``.

Sampling weights count wherever there is a mean or a sum over units.

References
----------
Nagin (2005), Group-based modeling of development, ch. 5; Ramaswamy, DeSarbo, Reibstein
& Robinson (1993), on relative entropy; Klijn, Weijenberg, Lemmens, van den Brandt &
Lima Passos (2017), Introducing the fit-criteria assessment plot; Biernacki, Celeux &
Govaert (2000), on ICL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from ...errors import ModelError

if TYPE_CHECKING:
    from .fitted import Fitted
    from .results import TrajectoryResults

__all__ = [
    "Sorting",
    "adequacy_table",
    "classification_table",
    "mean_shares",
    "rules_table",
    "share_table",
]

#: What is asked of a solution: name, limit, whether above it, source.
_RULES = (
    ("smallest APP", 0.7, True, "Nagin 2005"),
    ("smallest OCC", 5.0, True, "Nagin 2005"),
    ("largest mismatch", 0.05, False, "close to zero: Nagin 2005; 0.05 is ours"),
    ("relative entropy", 0.5, True, "Klijn et al. 2017"),
    ("smallest share", 0.05, True, "Klijn et al. 2017"),
)


@dataclass(frozen=True, eq=False)
class Sorting:
    """Units by group: posterior probabilities and what is counted of them.

    Attributes
    ----------
    posterior : ndarray, shape (N, K)
    weights : ndarray, shape (N,)
        Sampling weights; ones without.
    """

    posterior: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, found: Fitted) -> Sorting:
        """Take them from a fit."""
        w, p = found.study.units.weights, found.posterior
        return cls(p, np.ones(len(p)) if w is None else w.cpu().numpy())

    @property
    def groups(self) -> int:
        """Number of groups, K."""
        return self.posterior.shape[1]

    @cached_property
    def best(self) -> np.ndarray:
        """Most probable group of every unit, from 0; (N,)."""
        return np.argmax(self.posterior, axis=1)

    @cached_property
    def hard(self) -> np.ndarray:
        """Weights of units in the column of their most probable group; (N, K)."""
        return (self.best[:, None] == np.arange(self.groups)) * self.weights[:, None]

    @cached_property
    def counts(self) -> np.ndarray:
        """Units assigned to each group, without weights; (K,)."""
        return np.bincount(self.best, minlength=self.groups)

    @cached_property
    def assigned(self) -> np.ndarray:
        """Share of the units assigned to each group; (K,)."""
        return self.hard.sum(0) / self.weights.sum()

    @cached_property
    def means(self) -> np.ndarray:
        """Mean posterior probability of group j among those assigned to k; (K, K)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.hard.T @ self.posterior / self.hard.sum(0)[:, None]

    @cached_property
    def spread(self) -> np.ndarray:
        """Standard deviation of p_ik among those assigned to k; (K,)."""
        squares = self.hard.T @ self.posterior**2
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.diag(squares) / self.hard.sum(0)
            return np.sqrt(np.maximum(mean - np.diag(self.means) ** 2, 0.0))

    @cached_property
    def allotted(self) -> np.ndarray:
        """Probability that a unit of group k is assigned to j; (K, K)."""
        weighted = self.posterior * self.weights[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.posterior.T @ self.hard) / weighted.sum(0)[:, None]

    @property
    def app(self) -> np.ndarray:
        """Average posterior probability of each group; NaN without units; (K,)."""
        return np.diag(self.means).copy()

    def occ(self, shares: np.ndarray) -> np.ndarray:
        """Odds of correct classification at the model's shares; (K,)."""
        if self.groups == 1:
            return np.full(1, np.nan)
        app = self.app
        with np.errstate(divide="ignore", invalid="ignore"):
            return (app / (1 - app)) / (shares / (1 - shares))

    @cached_property
    def entropy(self) -> float:
        """Entropy of the posterior probabilities, weighted."""
        return float(self.weights @ special.entr(self.posterior).sum(1))

    @property
    def relative_entropy(self) -> float:
        """One where every unit's group is certain, zero where none is known."""
        if self.groups == 1:
            return 1.0
        return 1 - self.entropy / (self.weights.sum() * np.log(self.groups))


# -- shares ----------------------------------------------------------------------------


def share_table(results: TrajectoryResults, alpha: float = 0.05) -> pd.DataFrame:
    """Shares of the groups, with standard errors by the delta method.

    Parameters
    ----------
    results : TrajectoryResults
    alpha : float, default 0.05
        Of the limits.

    Returns
    -------
    DataFrame, one row for each group
        share: with risk factors the mean of the units' prior probabilities, their
        standard errors given the risk factors as they are; std_error; conf_low,
        conf_high: Wald on the log odds, so that they stay between 0 and 1; assigned:
        share of the units whose most probable group it is; n: their number.
    """
    found = results.traj
    sorting = Sorting.of(found)
    share, jacobian = mean_shares(found, sorting.weights)
    count = jacobian.shape[1]
    P = len(found.x)
    V = results.covariance.matrix.cpu().numpy()[P - count :, P - count :]
    with np.errstate(invalid="ignore", divide="ignore"):
        se = np.sqrt(np.einsum("kp,pq,kq->k", jacobian, V, jacobian))
        half = results._quantile(alpha) * se / (share * (1 - share))
    half = np.where(se == 0, 0.0, half)
    odds = special.logit(share)
    return pd.DataFrame(
        {
            "share": share, "std_error": se, "conf_low": special.expit(odds - half),
            "conf_high": special.expit(odds + half), "assigned": sorting.assigned,
            "n": sorting.counts,
        },
        index=pd.Index(found.names, name="group"),
    )  # fmt: skip


def mean_shares(found: Fitted, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean prior probabilities and their slopes in the membership coefficients.

    Parameters
    ----------
    found : Fitted
    weights : ndarray, shape (N,)

    Returns
    -------
    share : ndarray, shape (K,)
    jacobian : ndarray, shape (K, free coefficients)
        Groups but the reference, each with all columns.
    """
    units, membership = found.study.units, found.assembled.mixture.membership
    W, w = units.W.double().cpu().numpy(), weights / weights.sum()
    pi = found.shares().cpu().numpy()
    share, K = weights @ pi / weights.sum(), found.groups
    parts = [
        ((w * pi[:, j])[:, None] * ((np.arange(K) == j) - pi)).T @ W
        for j in membership.others
    ]
    jacobian = np.concatenate(parts, axis=1) if parts else np.zeros((K, 0))
    return share, jacobian


# -- tables ----------------------------------------------------------------------------


def adequacy_table(results: TrajectoryResults) -> pd.DataFrame:
    """Adequacy of the classification, group by group.

    Parameters
    ----------
    results : TrajectoryResults

    Returns
    -------
    DataFrame, one row for each group
        n: units assigned; share: the model's; assigned: share of units assigned;
        mismatch: share less assigned; app, occ; sd: standard deviation of the
        posterior probabilities that app is the mean of.
    """
    sorting, shares = Sorting.of(results.traj), results.group_probs["share"]
    pi = shares.to_numpy()
    return pd.DataFrame(
        {
            "n": sorting.counts, "share": pi, "assigned": sorting.assigned,
            "mismatch": pi - sorting.assigned, "app": sorting.app,
            "occ": sorting.occ(pi), "sd": sorting.spread,
        },
        index=shares.index,
    )  # fmt: skip


def rules_table(results: TrajectoryResults) -> pd.DataFrame:
    """Hold the adequacy of a fit against rules of thumb.

    Parameters
    ----------
    results : TrajectoryResults

    Returns
    -------
    DataFrame
        value, rule, met, source; one row for each criterion. The rules are
        conventions, not tests: a solution may be of use though it misses one.

    Raises
    ------
    ModelError
        For one group, where nothing is classified.
    """
    if results.traj.groups == 1:
        raise ModelError("with one group there is nothing to classify.")
    table = adequacy_table(results)
    # An empty group has no APP, and that is the worst there can be.
    app, occ = (table[c].fillna(0.0).min() for c in ("app", "occ"))
    values = (app, occ, table["mismatch"].abs().max(), results.entropy,
              table["share"].min())  # fmt: skip
    rows = {
        name: (float(value), f"{'>=' if above else '<='} {limit:g}",
               bool(value >= limit if above else value <= limit), source)
        for (name, limit, above, source), value in zip(_RULES, values, strict=True)
    }  # fmt: skip
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["value", "rule", "met", "source"]
    )


def classification_table(
    results: TrajectoryResults, given: str = "assigned"
) -> pd.DataFrame:
    """Cross groups that units are assigned to with groups they may belong to.

    Parameters
    ----------
    results : TrajectoryResults
    given : {"assigned", "group"}, default "assigned"
        "assigned": rows are groups assigned, columns mean posterior probabilities; the
        diagonal is APP. "group": rows are groups, columns the probabilities that their
        members are assigned to each; three-step methods correct by these.

    Returns
    -------
    DataFrame, shape (K, K)
        Rows sum to one; NaN for a group without units.
    """
    sorting, names = Sorting.of(results.traj), results.traj.names
    tables = {"assigned": "means", "group": "allotted"}
    if given not in tables:
        raise ValueError(f"given must be 'assigned' or 'group', not {given!r}.")
    other = "group" if given == "assigned" else "assigned"
    return pd.DataFrame(
        getattr(sorting, tables[given]), index=pd.Index(names, name=given),
        columns=pd.Index(names, name=other),
    )  # fmt: skip
