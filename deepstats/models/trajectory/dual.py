"""Dual trajectories: every outcome has groups of its own, related by joint shares.

The classes of the mixture are the combinations of the outcomes' groups. What is asked
of such a model are the shares of combinations, of the groups of each outcome, and of
the groups of one outcome given those of another.

References
----------
Nagin & Tremblay (2001), Analyzing developmental trajectories of distinct but related
behaviors: a group-based method, Psychological Methods 6; Jones & Nagin (2007), Advances
in group-based trajectory modeling and an SAS procedure for estimating them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import linalg, special

from ...errors import DesignError, ModelError
from ...inference import HypothesisTest, likelihood_ratio, wald
from .adequacy import Sorting, mean_shares
from .dropout import standard_errors
from .fitted import Fitted, fitted
from .labels import group_names
from .membership import Membership
from .search import EMPTY, Schedule, search

if TYPE_CHECKING:
    from .reading import Plan
    from .results import TrajectoryResults

__all__ = [
    "class_codes",
    "conditional_table",
    "empty_classes",
    "independence",
    "joint_table",
    "own_assignment",
    "own_posterior",
    "own_shares",
    "rereferenced",
]

#: Shares below this are zero, at the edge, and have no standard error.
_ZERO = 1e-6


def _plan(results: TrajectoryResults) -> Plan:
    """Return the plan, where outcomes have groups of their own."""
    plan = results.model.study.plan
    if plan.grouping is None:
        raise ModelError(
            "the outcomes share one grouping; groups=(3, 2) gives every outcome groups "
            "of its own."
        )
    return plan


def _number(plan: Plan, outcome: str) -> int:
    if outcome not in plan.names:
        raise ValueError(f"outcome {outcome!r} must be one of {list(plan.names)}.")
    return plan.names.index(outcome)


def _sums(plan: Plan, numbers: Sequence[int]) -> tuple[np.ndarray, pd.Index]:
    """Zeros and ones that sum classes over all but some outcomes, and their labels.

    Returns
    -------
    sums : ndarray, shape (combinations of these outcomes' groups, K)
    labels : Index
    """
    own = [group_names(plan.own_groups[j]) for j in numbers]
    names = [plan.names[j] for j in numbers]
    if len(numbers) == 1:
        labels: pd.Index = pd.Index(own[0], name=names[0])
    else:
        labels = pd.MultiIndex.from_product(own, names=names)
    place = np.zeros(len(plan.combinations), dtype=np.int64)
    for j in numbers:
        place = place * plan.own_groups[j] + [c[j] for c in plan.combinations]
    return (place == np.arange(len(labels))[:, None]).astype(np.float64), labels


def _table(
    results: TrajectoryResults, above: np.ndarray, below: np.ndarray, labels: pd.Index,
    alpha: float,
) -> pd.DataFrame:  # fmt: skip
    """Ratios of sums of class shares, their standard errors by the delta method."""
    found = results.traj
    share, jacobian = mean_shares(found, Sorting.of(found).weights)
    top, bottom = above @ share, below @ share
    value = top / bottom
    slope = (above - value[:, None] * below) @ jacobian / bottom[:, None]
    count = jacobian.shape[1]
    V = results.covariance.matrix.cpu().numpy()[-count:, -count:] if count else (
        np.zeros((0, 0)))  # fmt: skip
    edge = (value < _ZERO) | (bottom < _ZERO) | (value > 1 - _ZERO)
    se = np.where(edge & (count > 0), np.nan, standard_errors(slope, V))
    with np.errstate(invalid="ignore", divide="ignore"):
        half = results._quantile(alpha) * se / (value * (1 - value))
        odds = special.logit(value)
    return pd.DataFrame(
        {"probability": value, "std_error": se, "conf_low": special.expit(odds - half),
         "conf_high": special.expit(odds + half)},
        index=labels,
    )  # fmt: skip


def class_codes(grouping: Sequence[int], groups: np.ndarray, units: int) -> np.ndarray:
    """Return the class of every unit, from 0, of its groups in all outcomes, from 1.

    Parameters
    ----------
    grouping : sequence of int
        Number of groups of each outcome.
    groups : ndarray of int, shape (units, outcomes)
    units : int
    """
    low, high = np.ones(len(grouping)), np.array(grouping)
    fits = groups.shape == (units, len(grouping))
    if not fits or (groups < low).any() or (groups > high).any():
        raise DesignError(
            f"start gives every unit its group in each outcome: ({units}, "
            f"{len(grouping)}) numbers from 1 to {', '.join(map(str, grouping))}; this "
            f"one has shape {groups.shape}."
        )
    return np.ravel_multi_index(tuple(groups.T - 1), tuple(grouping))


# -- the reference ---------------------------------------------------------------------


def empty_classes(found: Fitted) -> list[int]:
    """Return the combinations of groups that no unit is in, from 0."""
    if found.study.plan.grouping is None:
        return []
    return torch.nonzero(found.solution.mass < EMPTY).flatten().tolist()


def rereferenced(found: Fitted) -> Fitted:
    """Relate membership to the largest class, where the reference is empty.

    Log odds against a class without units are infinite, whatever they are of.
    """
    empty, plan = empty_classes(found), found.study.plan
    if plan.reference - 1 not in empty or found.solution.degenerate:
        return found
    largest = int(found.solution.mass.argmax())
    study = replace(found.study, plan=replace(plan, reference=largest + 1))
    old = found.assembled.mixture
    mixture = replace(old, membership=replace(old.membership, reference=largest))
    assembled = replace(found.assembled, mixture=mixture)
    solutions = []
    for solution in found.optima.solutions:
        *free, theta = old.split(solution.x[None])
        full = old.membership.full(theta)
        full = (full - full[largest])[mixture.membership.others]
        x = torch.cat([*free, full.permute(1, 0, 2).reshape(1, -1)], dim=1)
        at = mixture.derivatives(x)
        solutions.append(
            replace(solution, x=x[0], gradient=at.gradient[0],
                    information=at.information[0], meat=at.meat[0])
        )  # fmt: skip
    optima = replace(found.optima, solutions=tuple(solutions))
    return fitted(study, assembled, optima, found.order)


# -- shares ----------------------------------------------------------------------------


def joint_table(results: TrajectoryResults, alpha: float = 0.05) -> pd.DataFrame:
    """Estimate the joint probabilities of the outcomes' groups.

    Parameters
    ----------
    results : TrajectoryResults
    alpha : float, default 0.05
        Of the limits, Wald on the log odds.

    Returns
    -------
    DataFrame
        probability, std_error, conf_low, conf_high, indexed by the group of each
        outcome. With risk factors a probability is the mean over units. No standard
        error is given for a probability of zero: it is at the edge.
    """
    plan = _plan(results)
    sums, labels = _sums(plan, range(len(plan.outcomes)))
    return _table(results, sums, np.ones_like(sums), labels, alpha)


def own_shares(results: TrajectoryResults, alpha: float = 0.05) -> pd.DataFrame:
    """Estimate the shares of each outcome's groups, with who is assigned to them.

    Parameters
    ----------
    results : TrajectoryResults
    alpha : float, default 0.05

    Returns
    -------
    DataFrame
        share, std_error, conf_low, conf_high, assigned, n, indexed by outcome and
        group.
    """
    plan, weights = _plan(results), Sorting.of(results.traj).weights
    frames = []
    for j, name in enumerate(plan.names):
        sums, labels = _sums(plan, [j])
        frame = _table(results, sums, np.ones_like(sums), labels, alpha)
        best = own_posterior(results, name).to_numpy().argmax(1)
        frame["assigned"] = np.bincount(best, weights, len(labels)) / weights.sum()
        frame["n"] = np.bincount(best, minlength=len(labels))
        frames.append(frame.rename(columns={"probability": "share"}))
    return pd.concat(frames, keys=plan.names, names=["outcome", "group"])


def conditional_table(
    results: TrajectoryResults,
    given: str | Sequence[str],
    of: str | Sequence[str] | None = None,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Estimate the probabilities of groups given the groups of other outcomes.

    Parameters
    ----------
    results : TrajectoryResults
    given : str or sequence of str
        Outcomes whose groups are known.
    of : str or sequence of str, optional
        Outcomes whose groups are asked for; by default all others.
    alpha : float, default 0.05

    Returns
    -------
    DataFrame
        probability, std_error, conf_low, conf_high, indexed by the groups given, then
        those asked for; probabilities sum to one over the latter.
    """
    plan = _plan(results)
    known = [_number(plan, n) for n in ([given] if isinstance(given, str) else given)]
    rest = [n for j, n in enumerate(plan.names) if j not in known]
    asked = [_number(plan, n) for n in (
        rest if of is None else [of] if isinstance(of, str) else of)]  # fmt: skip
    if not known or not asked or set(known) & set(asked):
        raise ValueError(
            f"given={given!r} and of={of!r} must name different outcomes of "
            f"{list(plan.names)}."
        )
    above, labels = _sums(plan, [*known, *asked])
    below, _ = _sums(plan, known)
    repeat = len(above) // len(below)
    return _table(results, above, np.repeat(below, repeat, axis=0), labels, alpha)


# -- units -----------------------------------------------------------------------------


def own_posterior(results: TrajectoryResults, outcome: str) -> pd.DataFrame:
    """Posterior probabilities of the groups of one outcome, given all outcomes.

    Parameters
    ----------
    results : TrajectoryResults
    outcome : str

    Returns
    -------
    DataFrame, shape (units, groups of the outcome)
    """
    plan = _plan(results)
    sums, labels = _sums(plan, [_number(plan, outcome)])
    posterior = results.traj.posterior @ sums.T
    return pd.DataFrame(
        posterior, index=results.model.study.units.labels,
        columns=pd.Index(labels.tolist()),
    )  # fmt: skip


def own_assignment(results: TrajectoryResults) -> pd.DataFrame:
    """Return the most probable group of every unit in each outcome, from 1."""
    plan = _plan(results)
    return pd.DataFrame(
        {
            name: own_posterior(results, name).to_numpy().argmax(1) + 1
            for name in plan.names
        },
        index=results.model.study.units.labels,
    )


# -- independence ----------------------------------------------------------------------


def independence(
    results: TrajectoryResults, test: str = "wald", starts: int = 20, seed: int = 0
) -> HypothesisTest:
    """Test that the groups of the outcomes are independent (given the risk factors).

    Parameters
    ----------
    results : TrajectoryResults
    test : {"wald", "lr"}, default "wald"
        Wald: all interactions in the log joint probabilities are zero. Likelihood
        ratio: under independence the log-likelihood is the sum of those of the outcomes
        alone, which are fitted here.
    starts : int, default 20
        Starts of each of these fits, besides the groups of this one.
    seed : int, default 0

    Returns
    -------
    HypothesisTest
        Chi-squared, for two outcomes without risk factors with (K1 - 1)(K2 - 1) degrees
        of freedom.

    Raises
    ------
    ModelError
        For the Wald test where a combination is empty: its logarithm has no estimate.
        For the likelihood ratio with sampling weights.
    """
    plan = _plan(results)
    if test == "wald":
        return _wald(results, plan)
    if test == "lr":
        return _likelihood_ratio(results, plan, starts, seed)
    raise ValueError(f"test must be 'wald' or 'lr', not {test!r}.")


def _contrasts(plan: Plan) -> np.ndarray:
    """Interactions of the outcomes' groups: rows orthogonal to all main effects."""
    K = len(plan.combinations)
    main = [np.ones((1, K)), *(_sums(plan, [j])[0] for j in range(len(plan.outcomes)))]
    return linalg.null_space(np.concatenate(main)).T


def _wald(results: TrajectoryResults, plan: Plan) -> HypothesisTest:
    membership = results.traj.assembled.mixture.membership
    contrasts = _contrasts(plan)[:, membership.others]
    if not len(contrasts):
        raise ModelError("an outcome of one group is independent of all others.")
    q, P = membership.q, len(results.params)
    R = np.zeros((len(contrasts) * q, P))
    R[:, P - membership.count :] = np.kron(contrasts, np.eye(q))
    used = np.flatnonzero(R.any(0))
    if not np.isfinite(results._cov[used, used]).all():
        raise ModelError(
            "a combination of groups is empty, so its log odds have no standard error; "
            "use test='lr'."
        )
    cov = np.nan_to_num(results._cov)
    return wald(results.params.to_numpy(), cov, R, np.zeros(len(R)))


def _likelihood_ratio(
    results: TrajectoryResults, plan: Plan, starts: int, seed: int
) -> HypothesisTest:
    mixture = results.traj.assembled.mixture
    if mixture.weights is not None:
        raise ModelError(
            "with sampling weights twice the difference of the log-likelihoods is not "
            "chi-squared; use test='wald' with robust standard errors."
        )
    if min(plan.own_groups) == 1 and sum(k > 1 for k in plan.own_groups) < 2:
        raise ModelError("an outcome of one group is independent of all others.")
    restricted, count = 0.0, 0
    for j, groups in enumerate(plan.own_groups):
        W = mixture.membership.W
        alone = replace(mixture.alone(j), membership=Membership(W, groups))
        own = own_posterior(results, plan.names[j]).to_numpy().argmax(1)
        generator = torch.Generator().manual_seed(seed)
        best = search(
            alone, starts, generator, Schedule(), also=torch.from_numpy(own)[None]
        ).best
        restricted += best.llf
        count += alone.membership.count
    df = mixture.membership.count - count
    return likelihood_ratio(results.llf, restricted, df)
