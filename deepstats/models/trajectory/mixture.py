"""The mixture: posterior probabilities, EM steps, exact derivatives, by blocks.

References
----------
Dempster, Laird & Rubin (1977); Louis (1982), Finding the observed information matrix
when using the EM algorithm; Nagin (2005), Group-based modeling of development.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...compute import Compute
from .emission import Emission, Position, Scratch
from .membership import Membership

__all__ = ["Curvature", "Mixture", "Step"]

#: Numbers that one block's tables may hold: they stay in a core's cache.
_BLOCK = 200_000


@dataclass(frozen=True, eq=False)
class Step:
    """One EM step: the log-likelihood before it, and the parameters after.

    Attributes
    ----------
    llf : Tensor, shape (S,)
    x : Tensor, shape (S, P)
    mass : Tensor, shape (K, S)
        Weighted sums of posterior probabilities.
    """

    llf: Tensor
    x: Tensor
    mass: Tensor


@dataclass(frozen=True, eq=False)
class Curvature:
    """Exact derivatives of the log-likelihood.

    Attributes
    ----------
    value : Tensor, shape (S,)
    gradient : Tensor, shape (S, P)
    information : Tensor, shape (S, P, P)
        Minus the Hessian.
    meat : Tensor, shape (S, P, P)
        Sum over units of outer products of scores, weights included.
    """

    value: Tensor
    gradient: Tensor
    information: Tensor
    meat: Tensor


class _Sums:
    """What one worker gathers over its blocks."""

    def __init__(self, emissions: int, exact: bool) -> None:
        self.scratches = [Scratch(exact) for _ in range(emissions)]
        self.own = Scratch()
        self.membership = Scratch()

    def merge(self, other: _Sums) -> None:
        self.own.merge(other.own)
        self.membership.merge(other.membership)
        for mine, theirs in zip(self.scratches, other.scratches, strict=True):
            mine.merge(theirs)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Units in latent groups; the group of a unit is one for all its outcomes.

    Attributes
    ----------
    emissions : tuple of Emission
    membership : Membership
    units : int
    weights : Tensor or None, shape (N,) or (S, N)
        Of the units' log-likelihoods; by replicate with a leading axis.
    compute : Compute
    groups_of : tuple of (tuple of int or None)
        For each emission the number of its own group in each class of the mixture;
        None where they are the same.
    rows : Tensor or None, shape (N,)
        Rows of every unit, over all outcomes.
    """

    emissions: tuple[Emission, ...]
    membership: Membership
    units: int
    weights: Tensor | None
    compute: Compute
    groups_of: tuple[tuple[int, ...] | None, ...] = ()
    rows: Tensor | None = None

    # -- parameters ------------------------------------------------------------------

    @property
    def groups(self) -> int:
        """Number of classes, K."""
        return self.membership.groups

    @property
    def sizes(self) -> list[int]:
        """Free parameters of each emission, then of the membership."""
        return [*(e.slots.count for e in self.emissions), self.membership.count]

    @property
    def count(self) -> int:
        """Number of free parameters, P."""
        return sum(self.sizes)

    @property
    def lower(self) -> Tensor:
        """Least value of each free parameter."""
        low = [e.lower for e in self.emissions]
        return torch.cat([*low, low[0].new_full((self.membership.count,), -torch.inf)])

    @property
    def floors(self) -> Tensor:
        """Parameters whose least value is that of a standard deviation; (P,)."""
        found = [e.floors for e in self.emissions]
        return torch.cat([*found, found[0].new_zeros(self.membership.count)])

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of each emission, then of the membership."""
        return torch.split(x, self.sizes, dim=1)

    def begin(self, count: int) -> Tensor:
        """Parameters at which all groups are alike; (S, P)."""
        parts = [e.begin(count) for e in self.emissions]
        return torch.cat([*parts, self.membership.start(count, parts[0])], dim=1)

    # -- passes over the units -------------------------------------------------------

    def _blocks(self, S: int, per_unit: float) -> int:
        return max(
            32, min(self.units, int(_BLOCK / max(S * self.groups * per_unit, 1)))
        )

    def _sum(
        self,
        S: int,
        body: Callable[[slice, _Sums], None],
        *,
        exact: bool = False,
        per_unit: float = 0.0,
    ) -> _Sums:
        need = per_unit + max(e.rows_per_unit for e in self.emissions)

        def work(start: int, stop: int, sums: _Sums) -> None:
            body(slice(start, stop), sums)

        return self.compute.sum_blocks(
            self.units, self._blocks(S, need),
            lambda: _Sums(len(self.emissions), exact), work, _Sums.merge,
        )  # fmt: skip

    def spread(self, number: int, table: Tensor) -> Tensor:
        """Spread the table of an emission's own groups over the classes."""
        groups = self.groups_of[number] if self.groups_of else None
        return table if groups is None else table[list(groups)]

    def _own(self, number: int, R: Tensor) -> Tensor:
        """Sum weights of classes over an emission's own groups."""
        groups = self.groups_of[number] if self.groups_of else None
        if groups is None:
            return R
        own = R.new_zeros(max(groups) + 1, *R.shape[1:])
        return own.index_add_(0, torch.tensor(groups, device=R.device), R)

    def _weights(self, block: slice) -> Tensor | None:
        return None if self.weights is None else self.weights[..., block]

    def _joint(
        self, at: Sequence[Position], free: Tensor, block: slice, sums: _Sums
    ) -> tuple[Tensor, Tensor]:
        """Logarithms of shares times densities (K, S, B), and those of the shares."""
        shares = self.membership.logits(free, block)
        joint: Tensor | None = None
        for number, (emission, position) in enumerate(
            zip(self.emissions, at, strict=True)
        ):
            table = emission.table(position, block, sums.scratches[number])
            table = self.spread(number, table)
            joint = table if joint is None else joint + table
        assert joint is not None
        return joint + shares, shares

    def _constant(self, block: slice) -> Tensor | float:
        parts = [e.constant(block) for e in self.emissions]
        return sum((p for p in parts if p is not None), 0.0)

    def _posterior(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior probabilities (K, S, B), and log-likelihoods (S, B)."""
        top = joint.amax(0)
        top = torch.where(torch.isfinite(top), top, 0.0)
        R = (joint - top).exp_()
        total = R.sum(0)
        return R.div_(total), total.log() + top

    # -- EM --------------------------------------------------------------------------

    def step(self, x: Tensor) -> Step:
        """Take one EM step at parameters (S, P)."""
        *free, theta = self.split(x)
        at = [e.at(f) for e, f in zip(self.emissions, free, strict=True)]

        def body(block: slice, sums: _Sums) -> None:
            joint, shares = self._joint(at, theta, block, sums)
            R, llf = self._posterior(joint)
            llf = llf + self._constant(block)
            w = self._weights(block)
            if w is not None:
                R, llf = R * w, llf * w
            sums.own.add(llf.sum(1))
            self._gather(at, shares, R, w, block, sums)

        sums = self._sum(len(x), body)
        return Step(sums.own.sums[0], self._improved(at, theta, sums),
                    sums.membership.sums[0])  # fmt: skip

    def _gather(
        self, at: Sequence[Position], shares: Tensor, R: Tensor, w: Tensor | None,
        block: slice, sums: _Sums,
    ) -> None:  # fmt: skip
        sums.membership.add(*self.membership.collect(shares, R, w, block))
        for number, emission in enumerate(self.emissions):
            weights = self._own(number, R)
            emission.collect(at[number], block, weights, sums.scratches[number])

    def _improved(
        self, at: Sequence[Position], theta: Tensor, sums: _Sums, **inner: int
    ) -> Tensor:
        parts = [
            e.improve(p, s, **inner)
            for e, p, s in zip(self.emissions, at, sums.scratches, strict=True)
        ]
        theta = self.membership.improve(theta, sums.membership.sums)
        return torch.cat([*parts, theta], dim=1)

    def from_labels(self, labels: Tensor, rounds: int = 6) -> Tensor:
        """Parameters of groups that are given: where a search begins.

        Parameters
        ----------
        labels : Tensor of int, shape (S, N)
            Group of every unit; -1 for units that take no part.
        rounds : int, default 6
            Newton steps from groups that are alike.

        Returns
        -------
        Tensor, shape (S, P)
        """
        K, S = self.groups, len(labels)
        kinds = torch.arange(K, device=labels.device)[:, None, None]

        def hard(block: slice) -> Tensor:
            part = labels[:, block]
            mixed = 0.95 * (part == kinds) + 0.05 / K
            return torch.where(part < 0, 0.0, mixed.to(self.weights_like()))

        return self._from_posterior(S, hard, rounds)

    def from_posterior(self, posterior: Tensor, rounds: int = 6) -> Tensor:
        """Parameters at given posterior probabilities (S, N, K)."""
        return self._from_posterior(
            len(posterior), lambda b: posterior[:, b].permute(2, 0, 1), rounds
        )

    def weights_like(self) -> Tensor:
        """Return a tensor whose type and device are the parameters'."""
        return self.emissions[0].lower

    def _from_posterior(
        self, S: int, posterior: Callable[[slice], Tensor], rounds: int
    ) -> Tensor:
        x = self.begin(S)
        reusable = all(e.reusable for e in self.emissions) and self.membership.W is None
        for _ in range(1 if reusable else rounds):
            *free, theta = self.split(x)
            at = [e.at(f) for e, f in zip(self.emissions, free, strict=True)]

            def body(block: slice, sums: _Sums) -> None:
                R, w = posterior(block).contiguous(), self._weights(block)
                if w is not None:
                    R = R * w
                shares = self.membership.logits(theta, block)  # noqa: B023
                self._gather(at, shares, R, w, block, sums)  # noqa: B023

            sums = self._sum(S, body)
            inner = {"inner": rounds + 2} if reusable else {}
            x = self._improved(at, theta, sums, **inner)
        return x

    # -- derivatives -----------------------------------------------------------------

    def derivatives(self, x: Tensor) -> Curvature:
        """Value, gradient, information and meat at parameters (S, P).

        The information is Louis' identity: the expected curvature of the complete
        data less the variance of its score, given what was observed.
        """
        S, P = x.shape
        *free, theta = self.split(x)
        at = [e.at(f) for e, f in zip(self.emissions, free, strict=True)]

        def body(block: slice, sums: _Sums) -> None:
            joint, shares = self._joint(at, theta, block, sums)
            R, llf = self._posterior(joint)
            w = self._weights(block)
            llf = llf + self._constant(block)
            weighted = R if w is None else R * w
            total, outer = x.new_zeros(S, P, R.shape[2]), x.new_zeros(S, P, P)
            for k, (at_k, U) in enumerate(self._scores(at, shares, block, sums)):
                mine = U * R[k][:, None]
                scaled = mine if w is None else mine * _middle(w)
                outer[:, at_k[:, None], at_k] += scaled @ U.transpose(1, 2)
                total[:, at_k] += mine
            scaled = total if w is None else total * _middle(w)
            meat = scaled @ scaled.transpose(1, 2)
            outer -= scaled @ total.transpose(1, 2)
            llf = llf if w is None else llf * w
            sums.own.add(llf.sum(1), scaled.sum(2), outer, meat)
            self._collect_square(at, shares, weighted, w, block, sums)

        widest = sum(e.slots.width for e in self.emissions)
        # A block pays for a call of each of many operations: it may leave the cache.
        sums = self._sum(S, body, exact=True, per_unit=0.25 * (P + 2.0 * widest))
        value, gradient, outer, meat = sums.own.sums
        information = self._information(at, sums, x) - outer
        return Curvature(value, gradient, information, meat)

    def _collect_square(
        self, at: Sequence[Position], shares: Tensor, R: Tensor, w: Tensor | None,
        block: slice, sums: _Sums,
    ) -> None:  # fmt: skip
        """Gather what the complete data's curvature needs."""
        for number, emission in enumerate(self.emissions):
            weights = self._own(number, R)
            emission.collect(at[number], block, weights, sums.scratches[number])
        if self.groups == 1:
            return
        pi = shares.exp()
        if self.membership.W is not None:
            W = self.membership.W[block]
        else:
            W = pi.new_ones(R.shape[2], 1)
        pi = pi.expand_as(R)
        weighted = pi if w is None else pi * w
        sums.membership.add(self.membership.square(pi, weighted, W))

    def _information(self, at: Sequence[Position], sums: _Sums, x: Tensor) -> Tensor:
        """Curvature of the complete data, (S, P, P)."""
        S, P = x.shape
        found, start = x.new_zeros(S, P, P), 0
        for emission, position, scratch in zip(
            self.emissions, at, sums.scratches, strict=True
        ):
            part = slice(start, start + emission.slots.count)
            square = emission.curvature(position, scratch)
            found[:, part, part] = emission.slots.gather_square(square)
            start = part.stop
        if self.groups > 1:
            found[:, start:, start:] = self.membership.flat(sums.membership.sums[0])
        return found

    def _scores(
        self, at: Sequence[Position], shares: Tensor, block: slice, sums: _Sums
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores of the parameters that each class has: numbers (p,), and (S, p, B)."""
        own = [
            e.scores(p, block, s)
            for e, p, s in zip(self.emissions, at, sums.scratches, strict=True)
        ]
        theta = self.membership.scores(shares.exp(), block)
        for k in range(self.groups):
            numbers, parts, start = [], [], 0
            for number, (emission, scores) in enumerate(
                zip(self.emissions, own, strict=True)
            ):
                j = self.groups_of[number][k] if self.groups_of else k
                columns, selection = emission.slots.touched[j]
                part = scores[j]
                if selection is not None:
                    part = selection.to(part).T @ part
                numbers.append(columns + start)
                parts.append(part)
                start += emission.slots.count
            numbers.append(torch.arange(start, self.count))
            columns = torch.cat(numbers).to(theta.device)
            yield columns, torch.cat([*parts, theta[k]], dim=1)

    # -- unit by unit ----------------------------------------------------------------

    def each(
        self, x: Tensor, function: Callable[[Tensor, Tensor, slice], Tensor]
    ) -> Tensor:
        """Compute a value for every unit, block by block, at one set of parameters.

        Parameters
        ----------
        x : Tensor, shape (P,)
        function : callable
            From posterior probabilities (K, B), log-likelihoods (B,) and the block to
            a tensor whose last axis is the units'.
        """
        *free, theta = self.split(x[None])
        at = [e.at(f) for e, f in zip(self.emissions, free, strict=True)]
        size = self._blocks(1, max(e.rows_per_unit for e in self.emissions))
        sums = _Sums(len(self.emissions), False)
        parts = []
        for start in range(0, self.units, size):
            block = slice(start, min(start + size, self.units))
            joint, _ = self._joint(at, theta, block, sums)
            R, llf = self._posterior(joint)
            parts.append(function(R[:, 0], (llf + self._constant(block))[0], block))
        return torch.cat(parts, dim=-1)

    def posterior(self, x: Tensor) -> Tensor:
        """Probability of every group for every unit; (N, K)."""
        return self.each(x, lambda R, llf, block: R).T

    def loglik(self, x: Tensor) -> Tensor:
        """Log-likelihood of every unit, without weights; (N,)."""
        return self.each(x, lambda R, llf, block: llf)

    def posteriors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior probabilities (K, S, N) and log-likelihoods (S, N) of the units.

        Without weights, at several sets of parameters (S, P); those of replicates that
        have data of their own.
        """
        *free, theta = self.split(x)
        at = [e.at(f) for e, f in zip(self.emissions, free, strict=True)]
        need = max(e.rows_per_unit for e in self.emissions)
        size, parts = self._blocks(len(x), need), []
        sums = _Sums(len(self.emissions), False)
        for start in range(0, self.units, size):
            block = slice(start, min(start + size, self.units))
            R, llf = self._posterior(self._joint(at, theta, block, sums)[0])
            parts.append((R, llf + self._constant(block)))
        return (
            torch.cat([R for R, _ in parts], dim=2),
            torch.cat([llf for _, llf in parts], dim=1),
        )

    def scores(self, x: Tensor) -> Tensor:
        """Score of every unit, times its weight; (N, P)."""
        *free, theta = self.split(x[None])
        at = [e.at(f) for e, f in zip(self.emissions, free, strict=True)]
        need = self.count + max(e.rows_per_unit for e in self.emissions)
        size, parts = self._blocks(1, need), []
        sums = _Sums(len(self.emissions), False)
        for start in range(0, self.units, size):
            block = slice(start, min(start + size, self.units))
            joint, shares = self._joint(at, theta, block, sums)
            R, _ = self._posterior(joint)
            total = x.new_zeros(self.count, block.stop - block.start)
            for k, (at_k, U) in enumerate(self._scores(at, shares, block, sums)):
                total[at_k] += U[0] * R[k]
            w = self._weights(block)
            parts.append(total if w is None else total * w)
        return torch.cat(parts, dim=1).T

    def select(self, units: Tensor) -> Mixture:
        """Return the mixture of some units."""
        weights = None if self.weights is None else self.weights[..., units]
        return replace(
            self,
            emissions=tuple(e.select(units) for e in self.emissions),
            membership=self.membership.select(units),
            units=len(units),
            weights=weights,
            rows=None if self.rows is None else self.rows[units],
        )

    def own(self, classes: Tensor) -> tuple[Tensor, ...]:
        """Sum values of classes (K, ...) over every emission's own groups."""
        return tuple(self._own(j, classes) for j in range(len(self.emissions)))

    def alone(self, number: int) -> Mixture:
        """Return the mixture of one emission and its own groups, all of equal size."""
        emission = self.emissions[number]
        return replace(
            self, emissions=(emission,), groups_of=(),
            membership=Membership(None, emission.slots.groups),
        )  # fmt: skip

    @property
    def exchangeable(self) -> bool:
        """Whether groups differ in nothing but their numbers."""
        return not self.groups_of and all(e.slots.exchangeable for e in self.emissions)

    def with_groups(self, groups: int) -> Mixture:
        """Return the mixture of fewer groups, where they are exchangeable."""
        return replace(
            self,
            emissions=tuple(e.with_groups(groups) for e in self.emissions),
            membership=replace(self.membership, groups=groups, reference=0),
        )


def _middle(w: Tensor) -> Tensor:
    """Weights (B,) or (S, B) beside scores (S, P, B)."""
    return w if w.ndim == 1 else w[:, None]
