"""Where a search begins: groupings of the units, many at once.

Measured on 23 problems (docs/trajectories.md): random subsets and random partitions are
as good as anything, quantiles of the means (the default of Stata's traj and of trajeR)
are the worst, and where the winning group is tiny only an insertion finds it.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

__all__ = ["exchanges", "insertions", "partitions", "subsets"]

#: Units a group begins with in a random subset: at least, at most.
_SUBSET = (3, 12)


def partitions(units: int, groups: int, count: int, generator: Generator) -> Tensor:
    """Assign every unit to a group at random; (count, N)."""
    return torch.randint(groups, (count, units), generator=generator)


def subsets(units: int, groups: int, count: int, generator: Generator) -> Tensor:
    """Begin every group with a few random units, the others with none; (count, N)."""
    labels = torch.full((count, units), -1)
    for row in labels:
        low, high = _SUBSET
        sizes = torch.randint(low, high + 1, (groups,), generator=generator)
        sizes = sizes.clamp_max(max(units // groups, 1))
        chosen = torch.randperm(units, generator=generator)[: int(sizes.sum())]
        row[chosen] = torch.repeat_interleave(torch.arange(groups), sizes)
    return labels


def insertions(
    posterior: Tensor, fit: Tensor, count: int, generator: Generator
) -> Tensor:
    """Add a group to a solution with one group less.

    In turn the new group is one unit, the worst fitted first; a badly fitted one and a
    few more of its group; half of a group at random; one unit, the others being
    begun anew from random subsets.

    Parameters
    ----------
    posterior : Tensor, shape (N, K - 1)
    fit : Tensor, shape (N,)
        Log-likelihood of every unit for each of its rows.
    count : int
    generator : Generator

    Returns
    -------
    Tensor of int, shape (count, N)
    """
    units, before = posterior.shape
    labels = posterior.argmax(1).repeat(count, 1)
    worst = torch.argsort(fit)[: max(units // 20, min(units, 5 * count))]
    sizes = torch.bincount(labels[0], minlength=before).double()
    for number, row in enumerate(labels):
        kind, unit = number % 4, worst[number // 4 % len(worst)]
        if kind == 0:
            row[unit] = before
        elif kind == 1:
            seed = worst[torch.randint(len(worst), (1,), generator=generator)]
            own = torch.nonzero(row == row[seed]).flatten()
            poor = own[torch.argsort(fit[own])][: max(len(own) // 5, 1)]
            more = int(torch.randint(1, 5, (1,), generator=generator))
            picks = torch.randint(len(poor), (more,), generator=generator)
            row[poor[picks]] = before
            row[seed] = before
        elif kind == 2:
            group = torch.multinomial(sizes, 1, generator=generator)
            own = torch.nonzero(row == group).flatten()
            half = torch.rand(len(own), generator=generator) < 0.5
            row[own[half]] = before
        else:
            row[:] = subsets(units, before, 1, generator)[0]
            row[worst[number // 8 % len(worst)]] = before
    return labels


def exchanges(posterior: Tensor, count: int, generator: Generator) -> Tensor:
    """Dissolve one group of a solution and split another; (count, N).

    Units of the group that is dissolved go where they fit next best. A way out of
    maxima at which two groups share what is one, and one holds what are two.

    Parameters
    ----------
    posterior : Tensor, shape (N, K)
    count : int
    generator : Generator

    References
    ----------
    Ueda, Nakano, Ghahramani & Hinton (2000), SMEM algorithm for mixture models.
    """
    groups = posterior.shape[1]
    labels = posterior.argmax(1).repeat(count, 1)
    for row in labels:
        gone = int(torch.randint(groups, (1,), generator=generator))
        others = posterior.clone()
        others[:, gone] = -1.0
        row[row == gone] = others.argmax(1)[row == gone]
        sizes = torch.bincount(row, minlength=groups).double()
        split = int(torch.multinomial(sizes, 1, generator=generator))
        own = torch.nonzero(row == split).flatten()
        few = torch.randint(1, max(len(own) // 2, 1) + 1, (1,), generator=generator)
        picks = torch.randperm(len(own), generator=generator)[: int(few)]
        row[own[picks]] = gone
    return labels
