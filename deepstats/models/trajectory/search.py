"""Many starts at once: short EM runs, the best go on, the last are polished.

The log-likelihood of a mixture has many maxima. Starts are run as one tensor; after a
few EM steps most have fallen behind and are dropped, equal ones are counted as one.
Those that are left are taken to their maxima by Newton's method with the exact Hessian.

References
----------
Biernacki, Celeux & Govaert (2003), Choosing starting values for the EM algorithm;
Li, Jamieson et al. (2018), Hyperband (successive halving).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Generator, Tensor

from ...batched import BatchOptimum, batched_newton
from . import starts as rules
from .membership import Membership
from .mixture import Mixture

__all__ = ["Optima", "Schedule", "Solution", "climb", "polish", "rounds_of", "search"]

#: Solutions whose log-likelihoods differ by less, relative to their size, are one.
_SAME = 1e-6
#: EM steps that change no log-likelihood by more, relative to its size, are the last:
#: Newton's method is quicker from there.
_STILL = 1e-7
#: EM steps of the last round, after which Newton's method takes those that still move.
_PATIENCE = 10
#: Its tolerance there, in standard errors: only the order of the starts is wanted.
_NEAR = 1e-2
#: Units that the short runs of large data are made on.
_SAMPLE = 4_000
#: Fewer starts than this are run without solutions of fewer groups.
_CHAINED = 8
#: One of so many starts adds a group to a solution with one group less.
_ADDED = 5
#: In a round of exchanges there is one for each so many starts.
_ANEW = 3
#: Solutions with fewer groups that are built upon.
_BASES = 3
#: Share of the starts that go on after the last round, and the least number of them.
_SHARE, _LAST = 0.05, 5
#: Starts of large data that are taken to their maxima on all units.
_FULL = 3
#: Least joint share of two groups that a search begins with.
_LEAST = 1e-3
#: A group of less than so many units (by posterior weight) is empty.
EMPTY = 1e-2


def rounds_of(em_steps: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Share of the starts that go on after each of some rounds: the same cut in each.

    Measured on reference data with maxima that few starts lead to (paquid and to1adj
    with four groups): one start in twenty does, is among the best third after ten steps
    and the best of all after 35. Many starts, soon cut to a few, find them for less
    than fewer starts kept longer.
    """
    shares = (_SHARE ** ((j + 1) / len(em_steps)) for j in range(len(em_steps)))
    return tuple(zip(em_steps, shares, strict=True))


@dataclass(frozen=True)
class Schedule:
    """How many EM steps the starts get, and how many go on.

    Attributes
    ----------
    rounds : tuple of (int, float)
        EM steps, and the share of the starts that go on after them. In the last round
        Newton's method takes over from EM where that is slow.
    exchanges : int
        Rounds in which groups of the best solution are dissolved and others split.
    tolerance : float
        On the Newton decrement, in standard errors.
    steps : int
        Largest number of Newton steps.
    """

    rounds: tuple[tuple[int, float], ...] = rounds_of((10, 25, 60))
    exchanges: int = 3
    tolerance: float = 1e-6
    steps: int = 100


@dataclass(frozen=True, eq=False)
class Solution:
    """One maximum of the log-likelihood.

    Attributes
    ----------
    x : Tensor, shape (P,)
    llf : float
    gradient, information, meat : Tensor
    converged : bool
    at_bound : tuple of int
        Parameters at the edge of their range.
    floored : tuple of int
        Those of them that are standard deviations: the likelihood has no bound there.
    mass : Tensor, shape (K,)
        Units in every group, by posterior probability.
    smallest : float
        Units in the smallest group; in the smallest of any outcome, where every
        outcome has groups of its own.
    reached : int
        Starts that ended here; zero where only an exchange of groups led here.
    steps : int
        Newton steps.
    """

    x: Tensor
    llf: float
    gradient: Tensor
    information: Tensor
    meat: Tensor
    converged: bool
    at_bound: tuple[int, ...]
    floored: tuple[int, ...]
    mass: Tensor
    smallest: float
    reached: int = 1
    steps: int = 0

    @property
    def degenerate(self) -> str:
        """Why this is no solution; empty where it is one."""
        if self.smallest < EMPTY:
            return "a group is empty"
        return "a variance is at its floor" if self.floored else ""


@dataclass(frozen=True, eq=False)
class Optima:
    """What a search found.

    Attributes
    ----------
    solutions : tuple of Solution
        The best first; degenerate ones last.
    starts : int
        Starts that were run.
    finished : int
        Starts that were run to a maximum, equal ones counted.
    interrupted : bool
    """

    solutions: tuple[Solution, ...]
    starts: int
    finished: int
    interrupted: bool = False

    @property
    def best(self) -> Solution:
        """The best solution."""
        return self.solutions[0]


def search(
    mixture: Mixture,
    starts: int,
    generator: Generator,
    schedule: Schedule | None = None,
    *,
    also: Tensor | None = None,
    progress: Callable[[], None] | None = None,
) -> Optima:
    """Run starts to their maxima.

    A fifth of the starts add a group to a solution with one group less, where groups
    are exchangeable; the others are random subsets and random partitions. Where every
    outcome has groups of its own, starts are made of each outcome's own.

    Parameters
    ----------
    mixture : Mixture
    starts : int
    generator : torch.Generator
    schedule : Schedule, optional
    also : Tensor of int, shape (S, N), optional
        Groups of the units in further starts.
    progress : callable, optional
        Called after every EM step.

    Returns
    -------
    Optima
    """
    schedule = schedule or Schedule()
    small = _sample(mixture)
    if mixture.groups_of and mixture.groups > 1:
        x = _side_by_side(small, starts, generator, schedule)
        if also is not None:
            some = _sampled(mixture)
            more = also if some is None else also[:, some]
            x = torch.cat([x, small.from_labels(more.to(x.device))])
        return _race(mixture, small, x, generator, schedule, progress)
    if mixture.groups == 1:
        labels = torch.zeros(1, small.units, dtype=torch.long)
    else:
        labels = _labels(small, starts, generator, schedule)
        if also is not None:
            some = _sampled(mixture)
            labels = torch.cat([labels, also if some is None else also[:, some]])
    return search_from(mixture, small, labels, generator, schedule, progress)


def search_from(
    mixture: Mixture,
    small: Mixture,
    labels: Tensor,
    generator: Generator,
    schedule: Schedule,
    progress: Callable[[], None] | None = None,
) -> Optima:
    """Run starts that are given to their maxima.

    Parameters
    ----------
    mixture, small : Mixture
        All units, and those that the short runs are made on.
    labels : Tensor of int, shape (S, units of small)
        Group of every unit in every start; -1 for units that take no part.
    generator : torch.Generator
    schedule : Schedule
    progress : callable, optional
    """
    device = mixture.weights_like().device
    x = small.from_labels(labels.to(device))
    return _race(mixture, small, x, generator, schedule, progress)


def _labels(
    small: Mixture, starts: int, generator: Generator, schedule: Schedule
) -> Tensor:
    """Return groupings to begin from."""
    N, K = small.units, small.groups
    added = starts // _ADDED if small.exchangeable and starts >= _CHAINED else 0
    half = (starts - added + 1) // 2
    parts = [
        rules.subsets(N, K, half, generator),
        rules.partitions(N, K, starts - added - half, generator),
    ]
    if added:
        parts += _added(small, starts, added, generator, schedule)
    return torch.cat(parts)


def _count(starts: int, share: float) -> int:
    return max(round(starts * share), min(starts, _LAST))


def _added(
    small: Mixture, starts: int, added: int, generator: Generator, schedule: Schedule
) -> list[Tensor]:
    """Return groupings from the best solutions with one group less."""
    before = small.with_groups(small.groups - 1)
    found = _chained(before, max(starts // _ADDED, _CHAINED), generator, schedule)
    parts = []
    for number, x in enumerate(found[:added]):
        posterior, llf = before.posterior(x), before.loglik(x)
        fit = llf if small.rows is None else llf / small.rows.clamp_min(1)
        count = (added + number) // min(len(found), added)
        parts.append(rules.insertions(posterior.cpu(), fit.cpu(), count, generator))
    return parts


def _chained(
    small: Mixture, starts: int, generator: Generator, schedule: Schedule
) -> Tensor:
    """Return the best few solutions with fewer groups, by EM steps only; (S, P)."""
    if small.groups == 1:
        x = small.from_labels(torch.zeros(1, small.units, dtype=torch.long))
        return small.step(x).x
    x = small.from_labels(_labels(small, starts, generator, schedule))
    reached = torch.ones(len(x), dtype=torch.long)
    return _rounds(small, x, reached, schedule)[0][:_BASES]


def _side_by_side(
    small: Mixture, starts: int, generator: Generator, schedule: Schedule
) -> Tensor:
    """Return parameters to begin from, where outcomes have groups of their own; (S, P).

    First the best solutions of each outcome alone, every one with every other, at the
    joint shares that their posteriors give; then starts of each outcome alone, side by
    side, all shares equal.
    """
    alone = [small.alone(j) for j in range(len(small.emissions))]
    solved = [_chained(a, max(starts // 2, _CHAINED), generator, schedule)
              for a in alone]  # fmt: skip
    posteriors = [
        [a.posterior(x) for x in xs] for a, xs in zip(alone, solved, strict=True)
    ]
    choices = sorted(product(*(range(len(xs)) for xs in solved)), key=sum)
    found = []
    for choice in choices[: (starts + 1) // 2]:
        table = small.weights_like().new_ones(small.units, 1)
        for j, i in enumerate(choice):
            own = posteriors[j][i]
            table = (table[:, :, None] * own[:, None, :]).flatten(1)
        theta = _of_shares(small.membership, table.mean(0))
        parts = [alone[j].split(solved[j][i][None])[0] for j, i in enumerate(choice)]
        found.append(torch.cat([*parts, theta], dim=1))
    if count := starts - len(found):
        parts = []
        for a in alone:
            x = a.from_labels(_anew(a, count, generator).to(found[0].device))
            parts.append(a.split(x)[0])
        parts.append(small.membership.start(count, parts[0]))
        found.append(torch.cat(parts, dim=1))
    return torch.cat(found)


def _anew(mixture: Mixture, count: int, generator: Generator) -> Tensor:
    """Return random groupings, half of them of a few units only; (count, N)."""
    N, K, half = mixture.units, mixture.groups, (count + 1) // 2
    return torch.cat(
        [rules.subsets(N, K, half, generator),
         rules.partitions(N, K, count - half, generator)]
    )  # fmt: skip


def _of_shares(membership: Membership, shares: Tensor) -> Tensor:
    """Coefficients (1, P) at which all units have the same shares (K,)."""
    logs = (shares / shares.sum()).clamp_min(_LEAST).log()
    theta = membership.start(1, shares).reshape(membership.groups - 1, membership.q)
    theta[:, 0] = (logs - logs[membership.reference])[membership.others]
    return theta.reshape(1, -1)


def _race(
    mixture: Mixture, small: Mixture, x: Tensor, generator: Generator,
    schedule: Schedule, progress: Callable[[], None] | None,
) -> Optima:  # fmt: skip
    starts, interrupted = len(x), False
    reached = torch.ones(starts, dtype=torch.long)
    try:
        x, reached = _rounds(small, x, reached, schedule, progress)
        _, share = schedule.rounds[-1]
        for _ in range(schedule.exchanges if starts >= _CHAINED else 0):
            more = _exchanged(small, x[0], starts, generator, schedule, progress)
            best = float(small.step(x[:1]).llf)
            both = torch.cat([x, more])
            # Exchanges are no starts: what only they find was reached by none.
            counts = torch.cat([reached, reached.new_zeros(len(more))])
            x, reached = _run(small, both, counts, 1, _count(starts, share), progress)
            after = float(small.step(x[:1]).llf)
            if after - best <= _SAME * (1 + abs(best)):
                break
        if small is not mixture:
            # Near their maxima already, but for the sample's error: Newton's method
            # goes on from there.
            x, reached = _best(mixture, x, reached, _FULL)
    except KeyboardInterrupt:
        interrupted = True
        x, reached = x[:1], reached[:1]
    found = polish(mixture, x, reached, schedule)
    finished = int(sum(s.reached for s in found))
    return Optima(tuple(found), starts, finished, interrupted)


def _rounds(
    model: Mixture, x: Tensor, reached: Tensor, schedule: Schedule,
    progress: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run all rounds; the starts that are left are close to their maxima."""
    starts = len(x)
    *short, (steps, share) = schedule.rounds
    for number, kept in short:
        x, reached = _run(model, x, reached, number, _count(starts, kept), progress)
    x, rests = climb(model, x, min(steps, _PATIENCE), progress)
    if steps > _PATIENCE and not rests:
        x = _newton(model, x, steps, _NEAR).x
    return _best(model, x, reached, _count(starts, share))


def _run(
    model: Mixture, x: Tensor, reached: Tensor, steps: int, keep: int,
    progress: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take EM steps, and keep the best."""
    return _best(model, climb(model, x, steps, progress)[0], reached, keep)


def _best(
    model: Mixture, x: Tensor, reached: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """Keep the best starts by their log-likelihoods."""
    llf = torch.nan_to_num(model.step(x).llf, nan=-torch.inf)
    return _keep(x, llf, reached, keep)


def _still(llf: Tensor, before: Tensor) -> bool:
    """Whether an EM step has left all log-likelihoods where they were."""
    return bool(((llf - before).abs() <= _STILL * (1 + before.abs())).all())


def climb(
    model: Mixture, x: Tensor, steps: int, progress: Callable[[], None] | None = None
) -> tuple[Tensor, bool]:
    """Take EM steps from parameters (S, P); fewer, and true, where none moves more."""
    before: Tensor | None = None
    for _ in range(steps):
        taken = model.step(x)
        x = taken.x
        if progress is not None:
            progress()
        if before is not None and _still(taken.llf, before):
            return x, True
        before = taken.llf
    return x, False


def _newton(model: Mixture, x: Tensor, steps: int, tolerance: float) -> BatchOptimum:
    """Climb by Newton's method from parameters (S, P)."""

    def objective(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        del which
        found = model.derivatives(points)
        return found.value, found.gradient, found.information

    return batched_newton(
        objective, x, lower=model.lower, max_iterations=steps, tolerance=tolerance
    )


def _exchanged(
    small: Mixture, x: Tensor, starts: int, generator: Generator, schedule: Schedule,
    progress: Callable[[], None] | None,
) -> Tensor:  # fmt: skip
    """Return solutions found from a solution by dissolving and splitting groups."""
    count = max(starts // _ANEW, _CHAINED)
    labels = _exchanges(small, small.posterior(x).cpu(), count, generator)
    more = small.from_labels(labels.to(x.device))
    reached = torch.ones(count, dtype=torch.long)
    return _rounds(small, more, reached, schedule, progress)[0]


def _exchanges(
    small: Mixture, posterior: Tensor, count: int, generator: Generator
) -> Tensor:
    """Dissolve and split groups; those of one outcome where they have their own."""
    if not small.groups_of:
        return rules.exchanges(posterior, count, generator)
    own = [part.T for part in small.own(posterior.T)]
    several = [j for j, part in enumerate(own) if part.shape[1] > 1]
    pick = torch.randint(len(several), (count,), generator=generator)
    total = torch.zeros(count, len(posterior), dtype=torch.long)
    for j, part in enumerate(own):
        labels = part.argmax(1).repeat(count, 1)
        if j in several:
            rows = torch.nonzero(pick == several.index(j)).flatten()
            labels[rows] = rules.exchanges(part, len(rows), generator)
        total = total * part.shape[1] + labels
    return total


def _sample(mixture: Mixture) -> Mixture:
    """Take every so many units of large data, for the short runs."""
    some = _sampled(mixture)
    return mixture if some is None else mixture.select(some)


def _sampled(mixture: Mixture) -> Tensor | None:
    if mixture.units <= 2 * _SAMPLE:
        return None
    device = mixture.weights_like().device
    return torch.linspace(0, mixture.units - 1, _SAMPLE, device=device).long()


def _keep(x: Tensor, llf: Tensor, reached: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Keep the best starts, those that have met counted as one."""
    order = torch.argsort(llf, descending=True).tolist()
    kept: list[int] = []
    counts: list[int] = []
    values = llf.tolist()
    for i in order:
        if values[i] == -torch.inf:
            break
        same = [
            j for j, k in enumerate(kept)
            if abs(values[i] - values[k]) <= _SAME * (1 + abs(values[k]))
        ]  # fmt: skip
        if same:
            counts[same[0]] += int(reached[i])
        elif len(kept) < keep:
            kept.append(i)
            counts.append(int(reached[i]))
    kept, counts = kept or [order[0]], counts or [1]
    return x[torch.tensor(kept, device=x.device)], torch.tensor(counts)


def polish(
    mixture: Mixture, x: Tensor, reached: Tensor, schedule: Schedule
) -> list[Solution]:
    """Take parameters (S, P) to their maxima; the best first, equal ones as one."""
    optimum = _newton(mixture, x, schedule.steps, schedule.tolerance)
    llf = torch.nan_to_num(optimum.value, nan=-torch.inf)
    order = torch.argsort(llf, descending=True).tolist()
    kept: dict[int, int] = {}
    for i in order:
        same = [k for k in kept if abs(llf[i] - llf[k]) <= _SAME * (1 + abs(llf[k]))]
        if same:
            kept[same[0]] += int(reached[i])
        else:
            kept[i] = int(reached[i])
    at = torch.tensor(list(kept), device=x.device)
    final = mixture.derivatives(optimum.x[at])
    mass = mixture.step(optimum.x[at]).mass
    found = [
        Solution(
            optimum.x[i], float(final.value[n]), final.gradient[n],
            final.information[n], final.meat[n], bool(optimum.converged[i]),
            _places(~optimum.free[i]), _places(~optimum.free[i] & mixture.floors),
            mass[:, n], _smallest(mixture, mass[:, n]), count, optimum.iterations,
        )
        for n, (i, count) in enumerate(kept.items())
    ]  # fmt: skip
    return sorted(found, key=lambda s: (bool(s.degenerate), -s.llf))


def _smallest(mixture: Mixture, mass: Tensor) -> float:
    """Units in the smallest group, of any outcome where these have their own."""
    return min(float(own.min()) for own in mixture.own(mass))


def _places(flags: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(flags).flatten().tolist())
