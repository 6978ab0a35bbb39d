"""One group more or not: likelihood-ratio tests of the number of groups.

The ratio of K to K - 1 groups has no chi-squared distribution: under K - 1 groups the
share of the one more is at the edge of its range, and its parameters are not
identified. The bootstrap draws the ratio's distribution; Vuong's theorem approximates
it, on conditions that do not hold here.

References
----------
McLachlan (1987), On bootstrapping the likelihood ratio test statistic for the number of
components in a normal mixture; Besag & Clifford (1991), Sequential Monte Carlo
p-values; Vuong (1989), Likelihood ratio tests for model selection and non-nested
hypotheses; Lo, Mendell & Rubin (2001), Testing the number of components in a normal
mixture; Jeffries (2003), A note on 'Testing the number of components in a normal
mixture'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ...errors import ModelError
from . import starts as rules
from .mixture import Mixture
from .reading import Plan
from .replicates import Redrawn, batches, chosen, draw, refit

if TYPE_CHECKING:
    from .results import TrajectoryResults

__all__ = ["BootstrapRatio", "VuongRatio", "blrt", "fewer", "vlmr", "weighted_tail"]

#: EM steps of the starts, and how many of each replicate's go on after them.
_ROUNDS = ((10, 4), (25, 2))
#: Starts of the smaller model in each replicate, besides the parameters drawn from.
_OTHERS = 4


# -- the smaller model -----------------------------------------------------------------


def fewer(plan: Plan) -> Plan:
    """Return the plan of one group less.

    Raises
    ------
    ModelError
        Where groups have different orders, so that it is not clear which one goes.
    """
    if plan.grouping is not None:
        raise ModelError(
            "where outcomes have groups of their own there are several smaller models; "
            "test the number of groups of each outcome alone."
        )
    if plan.groups < 2:
        raise ModelError("a model of one group has no smaller one to be held against.")
    outcomes = []
    for asked in plan.outcomes:
        kept = {}
        for key in ("orders", "zero_orders"):
            orders = getattr(asked, key)
            if orders is not None and len(set(orders)) > 1:
                raise ModelError(
                    f"{key}={orders} differ between groups, and which of them the "
                    "smaller model has is for you to say: fit it, and give it as null=."
                )
            kept[key] = None if orders is None else orders[:-1]
        outcomes.append(replace(asked, **kept))
    groups = plan.groups - 1
    return replace(
        plan, groups=groups, outcomes=tuple(outcomes),
        reference=min(plan.reference, groups),
    )  # fmt: skip


def smaller(
    results: TrajectoryResults, null: TrajectoryResults | None, starts: int, seed: int
) -> TrajectoryResults:
    """Return the fit of one group less: the one given, checked, or one made here."""
    study = results.traj.study
    if study.units.weights is not None:
        raise ModelError(
            "with sampling weights the log-likelihood is a pseudo-likelihood, and its "
            "ratios are no test of the number of groups; compare held-out errors "
            "(cross_validate) instead."
        )
    if study.plan.grouping:
        raise ModelError("tests of the number of groups are for one grouping only.")
    if null is None:
        plan = fewer(study.plan)
        model = type(results.model).of_study(study.replanned(plan))
        return model.fit(starts=starts, seed=seed)
    if null.traj.groups != results.traj.groups - 1:
        raise ModelError(
            f"null= has {null.traj.groups} groups; it must have one less than the "
            f"{results.traj.groups} of this model."
        )
    before, now = null.traj.study, study
    same = len(before.outcomes) == len(now.outcomes) and (
        before.units.labels.equals(now.units.labels)
    )
    for a, b in zip(before.outcomes, now.outcomes, strict=False):
        same &= a.name == b.name and torch.equal(a.unit, b.unit)
        same = same and torch.equal(a.y, b.y)
    if not same:
        raise ModelError("null= was fitted to other data than this model.")
    return null


# -- the bootstrap ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BootstrapRatio:
    """Bootstrap likelihood-ratio test of K - 1 against K groups.

    Attributes
    ----------
    groups : int
        K.
    statistic : float
        Twice the difference of the log-likelihoods.
    replicates : ndarray, shape (drawn,)
        The same in data drawn from the model of K - 1 groups.
    pvalue : float
    stopped : bool
        Whether drawing ended before all replicates were drawn.
    """

    groups: int
    statistic: float
    replicates: np.ndarray
    pvalue: float
    stopped: bool

    def __repr__(self) -> str:
        early = ", stopped early" if self.stopped else ""
        return (
            f"<{self.groups - 1} against {self.groups} groups: 2 x difference of llf "
            f"{self.statistic:.4g}, p = {self.pvalue:.4g} "
            f"({len(self.replicates)} replicates{early})>"
        )


def blrt(
    results: TrajectoryResults,
    n: int = 99,
    *,
    null: TrajectoryResults | None = None,
    starts: int = 20,
    seed: int = 0,
    stop: int | None = None,
) -> BootstrapRatio:
    """Bootstrap likelihood-ratio test of one group less.

    Data are drawn from the fitted model of K - 1 groups; in each replicate K - 1 and K
    groups are fitted, from several starts, all as one tensor.

    Parameters
    ----------
    results : TrajectoryResults
        Of K groups.
    n : int, default 99
        Replicates.
    null : TrajectoryResults, optional
        The fit of K - 1 groups; by default it is made here, with the number of starts
        that the K groups had.
    starts : int, default 20
        Starts of the K groups in each replicate: two thirds add a group to the
        replicate's solution of K - 1. With few starts a replicate's ratio falls short
        of its maximum, and the p-value is too small.
    seed : int, default 0
    stop : int, optional
        End after so many replicates at or above the statistic: the p-value is then
        their number over that of the replicates drawn.

    Returns
    -------
    BootstrapRatio
        The p-value is ``(1 + count) / (1 + n)``, count being the replicates at or above
        the statistic.

    References
    ----------
    McLachlan (1987); Besag & Clifford (1991); Nylund, Asparouhov & Muthen (2007),
    Deciding on the number of classes in latent class analysis and growth mixture
    modeling.
    """
    if int(n) != n or n < 1 or int(starts) != starts or starts < 1:
        raise ValueError("n and starts must be whole numbers >= 1.")
    if stop is not None and (int(stop) != stop or stop < 1):
        raise ValueError(f"stop must be a whole number >= 1, not {stop!r}.")
    optima = results.traj.optima
    small = smaller(results, null, max(optima.starts, starts), seed)
    statistic = 2 * (results.llf - small.llf)
    pair = _Pair(small, results, starts, Generator().manual_seed(seed))
    drawn: list[float] = []
    for batch in batches(
        n, results.traj.assembled.mixture, pair.together, copies=starts
    ):
        for ratio in pair.ratios(len(batch)).tolist():
            drawn.append(ratio)
            above = sum(r >= statistic for r in drawn)
            if stop is not None and above >= stop:
                found = np.array(drawn)
                return BootstrapRatio(
                    results.traj.groups, statistic, found, above / len(found),
                    len(found) < n,
                )  # fmt: skip
    found = np.array(drawn)
    p = (1 + int((found >= statistic).sum())) / (1 + len(found))
    return BootstrapRatio(results.traj.groups, statistic, found, p, False)


class _Pair:
    """A model and the one of one group less, fitted to data drawn from the latter."""

    def __init__(
        self, small: TrajectoryResults, large: TrajectoryResults, starts: int,
        generator: Generator,
    ) -> None:  # fmt: skip
        self.small, self.large = small.traj, large.traj
        self.starts, self.generator = starts, generator
        self.redrawn = tuple(
            Redrawn(f.study, f.assembled) for f in (self.small, self.large)
        )
        self.together = all(r.together for r in self.redrawn)
        for redrawn in self.redrawn:
            redrawn.together = self.together

    def ratios(self, count: int) -> Tensor:
        """Draw data sets and return twice the differences of log-likelihoods."""
        found = self.small
        new = draw(found.study, found.assembled, found.x, count, self.generator)
        low, high = (r.mixture(new.responses) for r in self.redrawn)
        x, before = self._null(low, count)
        after = best_of(high, self._labels(low, x), count)[1]
        return (2 * (after - before)).clamp_min(0.0).cpu()

    def _null(self, low: Mixture, count: int) -> tuple[Tensor, Tensor]:
        first = self.small.solution.x.expand(count, -1)
        x, llf = _finished(low, first)
        if low.groups == 1:
            return x, llf
        labels = torch.stack(
            [rules.subsets(low.units, low.groups, _OTHERS, self.generator)
             for _ in range(count)]
        )  # fmt: skip
        others, values = best_of(low, labels, count)
        better = values > llf
        return torch.where(better[:, None], others, x), torch.maximum(values, llf)

    def _labels(self, low: Mixture, x: Tensor) -> Tensor:
        """Return groupings that the larger model begins from; (R, starts, N)."""
        R, llf = low.posteriors(x)
        fit = llf if low.rows is None else llf / low.rows.clamp_min(1)
        added = max(1, 2 * self.starts // 3)
        found = []
        for s in range(len(x)):
            parts = [rules.insertions(R[:, s].T.cpu(), fit[s].cpu(), added,
                                      self.generator)]  # fmt: skip
            if self.starts > added:
                parts.append(
                    rules.subsets(low.units, low.groups + 1, self.starts - added,
                                  self.generator)
                )  # fmt: skip
            found.append(torch.cat(parts))
        return torch.stack(found)


def best_of(mixture: Mixture, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Fit replicates from several starts each and keep the best.

    Parameters
    ----------
    mixture : Mixture
        Of `count` replicates; or of one, without an axis of them.
    labels : Tensor of int, shape (count, S, N)
        Group of every unit in every start; -1 for units that take no part.
    count : int

    Returns
    -------
    x : Tensor, shape (count, P)
    llf : Tensor, shape (count,)
    """
    S = labels.shape[1]
    device = mixture.weights_like().device
    part = chosen(mixture, _owners(count, S, device))
    x = part.from_labels(labels.reshape(count * S, -1).to(device))
    for steps, kept in _ROUNDS:
        for _ in range(steps):
            x = part.step(x).x
        if kept < S:
            llf = torch.nan_to_num(part.step(x).llf, nan=-torch.inf)
            top = llf.reshape(count, S).topk(kept, dim=1).indices
            x = x[(top + S * torch.arange(count, device=device)[:, None]).flatten()]
            S = kept
            part = chosen(mixture, _owners(count, S, device))
    x, llf = _finished(part, x)
    at = llf.reshape(count, S).argmax(1)
    rows = torch.arange(count, device=device) * S + at
    return x[rows], llf[rows]


def _owners(count: int, starts: int, device: torch.device) -> Tensor:
    """Replicate of each of the starts."""
    return torch.arange(count, device=device).repeat_interleave(starts)


def _finished(mixture: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima and log-likelihoods; minus infinity where a variance is at its floor.

    A variance at its floor belongs to a group of units that the model fits exactly:
    the likelihood has no bound there.
    """
    found = refit(mixture, x)
    llf = torch.nan_to_num(found.value, nan=-torch.inf)
    floored = (~found.free & mixture.floors.to(found.free.device)).any(1)
    return found.x, torch.where(floored, -torch.inf, llf)


# -- Vuong's theorem -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class VuongRatio:
    """Vuong-Lo-Mendell-Rubin test of K - 1 against K groups.

    Attributes
    ----------
    groups : int
        K.
    statistic : float
        Twice the difference of the log-likelihoods.
    pvalue : float
    adjusted : float
        The statistic with the ad hoc adjustment of Lo, Mendell & Rubin.
    adjusted_pvalue : float
    weights : ndarray
        Of the chi-squared variables (one degree of freedom) in the reference
        distribution.
    """

    groups: int
    statistic: float
    pvalue: float
    adjusted: float
    adjusted_pvalue: float
    weights: np.ndarray

    def __repr__(self) -> str:
        return (
            f"<{self.groups - 1} against {self.groups} groups: 2 x difference of llf "
            f"{self.statistic:.4g}, p = {self.pvalue:.4g}; adjusted "
            f"{self.adjusted:.4g}, p = {self.adjusted_pvalue:.4g}>"
        )


def vlmr(
    results: TrajectoryResults, *, null: TrajectoryResults | None = None, seed: int = 0
) -> VuongRatio:
    """Vuong-Lo-Mendell-Rubin likelihood-ratio test of one group less.

    Parameters
    ----------
    results : TrajectoryResults
        Of K groups.
    null : TrajectoryResults, optional
        The fit of K - 1 groups; by default it is made here, with as many starts.
    seed : int, default 0
        Of that fit.

    Returns
    -------
    VuongRatio

    Notes
    -----
    The ratio is held against a sum of chi-squared variables whose weights are
    eigenvalues made of both models' information and cross-products of scores (Vuong
    1989). The adjustment divides it by ``1 + 1 / ((P_K - P_{K-1}) log N)`` (Lo, Mendell
    & Rubin 2001).

    Jeffries (2003) showed that the theorem's conditions do not hold when the smaller
    model is true: its parameters are then at the edge of, or not identified in, the
    larger one. The p-value is a convention, kept because programs report it; `blrt`
    does what it is meant to, and in simulations does better (Nylund, Asparouhov &
    Muthen 2007).

    References
    ----------
    Vuong (1989); Lo, Mendell & Rubin (2001); Jeffries (2003).
    """
    small = smaller(results, null, results.traj.optima.starts, seed)
    statistic = 2 * (results.llf - small.llf)
    weights = _weights(results, small)
    difference = len(results.traj.x) - len(small.traj.x)
    if difference < 1:
        raise ModelError("null= has as many parameters as this model, or more.")
    N = len(results.traj.study.units)
    adjusted = statistic / (1 + 1 / (difference * np.log(N)))
    return VuongRatio(
        results.traj.groups, statistic, weighted_tail(statistic, weights), adjusted,
        weighted_tail(adjusted, weights), weights,
    )  # fmt: skip


def _weights(large: TrajectoryResults, small: TrajectoryResults) -> np.ndarray:
    """Eigenvalues that weigh the chi-squared variables, by size."""
    scores, breads = [], []
    for found in (large.traj, small.traj):
        solution = found.solution
        free = [j for j in range(len(found.x)) if j not in set(solution.at_bound)]
        U = found.assembled.mixture.scores(solution.x)[:, free].cpu()
        scores.append(U)
        breads.append(torch.linalg.pinv(solution.information[free][:, free].cpu(),
                                        hermitian=True))  # fmt: skip
    (f, g), (F, G) = scores, breads
    W = torch.cat(
        [torch.cat([f.T @ f @ F, f.T @ g @ G], dim=1),
         torch.cat([-g.T @ f @ F, -g.T @ g @ G], dim=1)]
    )  # fmt: skip
    values = np.linalg.eigvals(W.numpy()).real
    values = values[np.argsort(-np.abs(values))]
    return values[np.abs(values) > 1e-8 * np.abs(values).max()]


def weighted_tail(value: float, weights: np.ndarray) -> float:
    """Probability that a weighted sum of chi-squared variables is above a value.

    Each has one degree of freedom; weights may be negative. The inversion integral of
    the moment-generating function is taken along a curve through the saddlepoint that
    bends around the singularities, where its integrand does not oscillate and falls
    faster than any power.

    Parameters
    ----------
    value : float
        Above zero; at or below it the answer is 1, as for a ratio that cannot be
        negative.
    weights : ndarray

    References
    ----------
    Rice (1980), Distribution of quadratic forms in normal random variables: evaluation
    by numerical integration.
    """
    from scipy import integrate, optimize

    w = np.asarray(weights, dtype=np.float64)
    w = w[w != 0]
    if value <= 0 or not len(w):
        return 1.0 if value <= 0 else 0.0
    if w.max() <= 0:
        return 0.0
    end = 0.5 / w.max()

    def slope(s: float) -> float:
        return float((w / (1 - 2 * w * s)).sum() - value - 1 / s)

    c = optimize.brentq(slope, 1e-14 * end, (1 - 1e-14) * end, xtol=1e-16 * end)

    def exponent(s: complex) -> complex:
        return -0.5 * np.log(1 - 2 * w * s).sum() - s * value - np.log(s)

    top = exponent(complex(c)).real

    def integrand(u: float) -> float:
        s = complex(c + 0.5 * u * u / end, u)
        return float((np.exp(exponent(s) - top) * complex(u / end, 1.0)).imag)

    # The factor exp(-u^2 value / (2 end)) is 1e-17 here.
    last = np.sqrt(80 * end / value)
    total = sum(
        integrate.quad(integrand, a, b, limit=200, epsabs=0.0, epsrel=1e-10)[0]
        for a, b in pairwise([0.0, *(last * 2.0 ** np.arange(-12, 1))])
    )
    return float(np.clip(np.exp(top) * total / np.pi, 0.0, 1.0))


def ratio_table(tests: list[BootstrapRatio | VuongRatio]) -> pd.DataFrame:
    """Tabulate tests by the number of groups."""
    rows = []
    for test in tests:
        row = {"groups": test.groups, "statistic": test.statistic,
               "p_value": test.pvalue}  # fmt: skip
        if isinstance(test, BootstrapRatio):
            row["replicates"] = len(test.replicates)
        else:
            row |= {"adjusted": test.adjusted, "adjusted_p": test.adjusted_pvalue}
        rows.append(row)
    return pd.DataFrame(rows).set_index("groups")
