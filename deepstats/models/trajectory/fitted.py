"""The optimum in the user's parameters, groups in their order; what is not identified.

A search numbers groups as it finds them. Here they are ordered by a stated rule, so
that labels do not change from run to run, and parameters go from the basis that the
search works in to that of the user's columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...families import Multinomial
from .assemble import Assembled
from .growth import GrowthEmission
from .labels import class_names
from .search import Optima, Solution

if TYPE_CHECKING:
    from .study import Outcome, Study

__all__ = ["Fitted", "fitted", "group_order", "permuted"]

#: Rows that the mean level of a group is taken over.
_ROWS = 20_000
#: Information of a parameter below which its standard error is no number: columns have
#: mean square one, so this is a standard error of a thousand on a log or logit scale.
FLAT = 1e-6
#: Eigenvalue of the scaled information below which a direction is not identified.
_NULL = 1e-10


@dataclass(frozen=True, eq=False)
class Fitted:
    """A solution as the user reads it.

    Attributes
    ----------
    study : Study
    assembled : Assembled
    optima : Optima
        All that the search found, in the mixture's parameters, groups as found.
    solution : Solution
        The one reported, groups ordered; in the mixture's parameters.
    order : str
        Rule of the groups' order.
    x : Tensor, shape (P,)
        The user's parameters (scales as logarithms).
    bread : Tensor, shape (P, P)
        Inverse of the observed information; NaN for parameters not identified.
    unidentified : tuple of int
        The user's parameters without a standard error.
    inner : Tensor, shape (P, P)
        Inverse of the observed information of the mixture's parameters; zero for
        those in `flat`.
    flat : tuple of int
        The mixture's parameters that the data do not determine.
    """

    study: Study
    assembled: Assembled
    optima: Optima
    solution: Solution
    order: str
    x: Tensor
    bread: Tensor
    unidentified: tuple[int, ...]
    inner: Tensor
    flat: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Number of groups, K."""
        return self.assembled.mixture.groups

    @cached_property
    def posterior(self) -> np.ndarray:
        """Probability of every group for every unit; (N, K)."""
        return self.assembled.mixture.posterior(self.solution.x).cpu().numpy()

    def coefficients(self, number: int = 0, x: Tensor | None = None) -> Tensor:
        """User's coefficients of an outcome, (K, C); zero where absent.

        Where outcomes have groups of their own, those of each class: see
        `own_coefficients`.

        Parameters
        ----------
        number : int, default 0
            Which outcome.
        x : Tensor, shape (P,), optional
            The user's parameters; by default the estimates.
        """
        own = self.own_coefficients(number, x)
        return self.assembled.mixture.spread(number, own)

    def own_coefficients(self, number: int = 0, x: Tensor | None = None) -> Tensor:
        """User's coefficients of an outcome's own groups, (groups, C)."""
        x = self.x if x is None else x
        mixture = self.assembled.mixture
        part = mixture.split(x[None])[number]
        return mixture.emissions[number].slots.spread(part)[:, 0]

    @property
    def names(self) -> list[str]:
        """Names of the groups; of the combinations, in a dual model."""
        return class_names(self.study.plan)

    def membership(self, x: Tensor | None = None) -> Tensor:
        """User's coefficients of the membership, (K, q); zeros for the reference."""
        x = self.x if x is None else x
        mixture = self.assembled.mixture
        return mixture.membership.full(mixture.split(x[None])[-1])[:, 0]

    def of_membership(self, groups: Sequence[int]) -> set[int]:
        """Places of the membership coefficients of some groups, from 0, in `x`."""
        membership = self.assembled.mixture.membership
        start, q = len(self.x) - membership.count, membership.q
        at = [membership.others.index(k) for k in groups if k in membership.others]
        return {start + q * i + c for i in at for c in range(q)}

    def shares(self, x: Tensor | None = None, W: Tensor | None = None) -> Tensor:
        """Prior probabilities of units, (N, K), at their risk factors."""
        W = self.study.units.W if W is None else W
        return torch.softmax(W.double() @ self.membership(x).T, dim=1)


def fitted(study: Study, assembled: Assembled, optima: Optima, order: str) -> Fitted:
    """Order the groups of the best solution and put it in the user's parameters."""
    solution = optima.best
    mixture = assembled.mixture
    ranks = _all_ranks(study, assembled, solution, order)
    if ranks:
        *own, classes = ranks
        x = permuted(assembled, solution.x, classes, own)
        again = mixture.derivatives(x[None])
        edge = x <= mixture.lower + 1e-12
        solution = replace(
            solution, x=x, gradient=again.gradient[0],
            information=again.information[0], meat=again.meat[0],
            mass=solution.mass[torch.as_tensor(classes, device=x.device)],
            at_bound=_places(edge), floored=_places(edge & mixture.floors),
        )  # fmt: skip
    solution = _settled(assembled, solution)
    bread, flat = _inverse(assembled, solution)
    change = assembled.change.to(bread)
    user = change @ bread @ change.T
    lost = torch.nonzero((change[:, flat] != 0).any(1)).flatten()
    user[lost] = user[:, lost] = torch.nan
    return Fitted(
        study, assembled, optima, solution, order, assembled.to_user(solution.x), user,
        tuple(lost.tolist()), bread, tuple(flat),
    )  # fmt: skip


def _all_ranks(
    study: Study, assembled: Assembled, solution: Solution, rule: str
) -> list[list[int]]:
    """Order of each outcome's groups, then of the classes; nothing where they stay."""
    mixture, plan = assembled.mixture, study.plan
    if mixture.groups == 1 or rule == "found":
        return []
    if not mixture.groups_of:
        if not mixture.exchangeable:
            return []
        ranks = group_order(study, assembled, solution, rule)
        return [ranks] * (len(mixture.emissions) + 1)
    own = [
        group_order(study, assembled, solution, rule, j)
        if e.slots.exchangeable else list(range(e.slots.groups))
        for j, e in enumerate(mixture.emissions)
    ]  # fmt: skip
    place = {combination: c for c, combination in enumerate(plan.combinations)}
    classes = [
        place[tuple(ranks[k] for ranks, k in zip(own, combination, strict=True))]
        for combination in plan.combinations
    ]
    return [*own, classes]


def _settled(assembled: Assembled, solution: Solution) -> Solution:
    """Bring factors of random effects to their standard form, edges marked."""
    mixture = assembled.mixture
    if not any(isinstance(e, GrowthEmission) for e in mixture.emissions):
        return solution
    *free, theta = mixture.split(solution.x[None])
    parts, edges = [], []
    for emission, part in zip(mixture.emissions, free, strict=True):
        x, edge = part[0], torch.zeros_like(part[0], dtype=torch.bool)
        if isinstance(emission, GrowthEmission):
            x, edge = emission.settled(x)
        parts.append(x)
        edges.append(edge)
    x = torch.cat([*parts, theta[0]])
    edge = torch.cat([*edges, torch.zeros_like(theta[0], dtype=torch.bool)])
    again = mixture.derivatives(x[None])
    return replace(
        solution, x=x, gradient=again.gradient[0], information=again.information[0],
        meat=again.meat[0],
        at_bound=tuple(sorted({*solution.at_bound, *_places(edge)})),
    )  # fmt: skip


def _places(flags: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(flags).flatten().tolist())


def _inverse(assembled: Assembled, solution: Solution) -> tuple[Tensor, list[int]]:
    """Inverse information of the mixture's parameters, and those it has none for."""
    information = solution.information
    flat = set(solution.at_bound) | _flat(assembled, information)
    keep = torch.tensor([j not in flat for j in range(len(information))])
    kept = torch.nonzero(keep).flatten()
    part = information[kept][:, kept]
    d = part.diagonal().abs().clamp_min(1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(part * d[:, None] * d)
    null = values < _NULL * values.abs().amax()
    loose = (vectors[:, null].abs() > 1e-3).any(1)
    flat |= set(kept[loose].tolist())
    safe = torch.where(null, torch.inf, values)
    inverse = ((vectors / safe) @ vectors.T) * d[:, None] * d
    bread = torch.zeros_like(information)
    bread[kept[:, None], kept[None]] = inverse
    return bread, sorted(flat)


def _flat(assembled: Assembled, information: Tensor) -> set[int]:
    """Parameters of log and logit predictors with hardly any information."""
    mixture, start, found = assembled.mixture, 0, set()
    d = information.diagonal()
    for emission, kernel in zip(mixture.emissions, assembled.kernels, strict=True):
        count = emission.slots.count
        names = kernel.predictors
        if kernel.links[0] != "identity" or len(names) > 2:
            low = torch.nonzero(d[start : start + count] < FLAT).flatten()
            found |= {start + int(j) for j in low}
        start += count
    if mixture.groups_of:
        # Two groups of different outcomes need not have a unit in common.
        low = torch.nonzero(d[start:] < FLAT).flatten()
        found |= {start + int(j) for j in low}
    return found


def group_order(
    study: Study, assembled: Assembled, solution: Solution, rule: str, number: int = 0
) -> list[int]:
    """Return the groups in their order.

    Parameters
    ----------
    study, assembled, solution
    rule : {"mean", "size"}
        Ascending by the expected response over the rows of the outcome, or descending
        by size.
    number : int, default 0
        Which outcome.
    """
    if rule == "size":
        mass = assembled.mixture.own(solution.mass)[number]
        return torch.argsort(mass, descending=True).tolist()
    if rule != "mean":
        raise ValueError(f"order must be 'mean', 'size' or 'found'; not {rule!r}.")
    mixture = assembled.mixture
    user = assembled.to_user(solution.x)
    part = mixture.split(user[None])[number]
    b = mixture.emissions[number].slots.spread(part)[:, 0]
    outcome, kernel = study.outcomes[number], assembled.kernels[number]
    step = max(1, len(outcome.y) // _ROWS)
    etas = outcome_etas(outcome, b, slice(None, None, step))
    # Levels without an order have no mean: by the log odds of the second level.
    several = isinstance(outcome.family, Multinomial)
    mean = etas[0] if several else kernel.mean(etas)
    return torch.argsort(mean.reshape(len(b), -1).mean(1), stable=True).tolist()


def outcome_etas(
    outcome: Outcome, b: Tensor, rows: slice = slice(None)
) -> tuple[Tensor, ...]:
    """Linear predictors of rows at the user's coefficients (K, C): each (K, rows)."""
    found, start = [], 0
    for x, offset in zip(outcome.X, outcome.offsets, strict=True):
        part = b[:, start : start + x.shape[1]]
        eta = part @ x[rows].to(b).T
        found.append(eta if offset is None else eta + offset[rows].to(b))
        start += x.shape[1]
    return tuple(found)


def permuted(
    assembled: Assembled,
    x: Tensor,
    ranks: list[int],
    own: list[list[int]] | None = None,
) -> Tensor:
    """Renumber the groups of the mixture's parameters (P,).

    Parameters
    ----------
    assembled : Assembled
    x : Tensor, shape (P,)
    ranks : list of int
        Former numbers of the classes in their new order.
    own : list of list of int, optional
        Former numbers of each outcome's groups, where these are not the classes.
    """
    mixture = assembled.mixture
    *free, theta = mixture.split(x[None])
    own = own or [ranks] * len(free)
    parts = []
    for emission, part, order in zip(mixture.emissions, free, own, strict=True):
        slots = emission.slots
        b = slots.spread(part)[order, 0]
        new = torch.zeros_like(part[0])
        at = slots.index >= 0
        new[slots.index[at]] = b[at]
        parts.append(new)
    full = mixture.membership.full(theta)[ranks, 0]
    full = full - full[mixture.membership.reference]
    parts.append(full[mixture.membership.others].reshape(-1))
    return torch.cat(parts)
