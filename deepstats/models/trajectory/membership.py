"""Which group a unit belongs to: shares, or a multinomial logit of risk factors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...batched import inverses

__all__ = ["Membership"]

#: Longest change of a coefficient in one step, in standard deviations of its column.
_LONGEST = 2.0
#: Least share of a group in an M-step: an empty group stays empty, but finite.
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Membership:
    """Multinomial logit of the group; one intercept for each group without factors.

    Attributes
    ----------
    W : Tensor or None, shape (N, q)
        Risk factors in the internal basis; None where shares are the same for all.
    groups : int
    reference : int
        Group whose coefficients are zero, from 0.
    """

    W: Tensor | None
    groups: int
    reference: int = 0

    @property
    def q(self) -> int:
        """Number of columns."""
        return 1 if self.W is None else self.W.shape[1]

    @property
    def count(self) -> int:
        """Number of free parameters."""
        return (self.groups - 1) * self.q

    @property
    def others(self) -> list[int]:
        """Groups other than the reference."""
        return [k for k in range(self.groups) if k != self.reference]

    def full(self, free: Tensor) -> Tensor:
        """Coefficients of all groups, (K, S, q), of free parameters (S, P)."""
        part = free.reshape(len(free), self.groups - 1, self.q).permute(1, 0, 2)
        zero = part.new_zeros(1, len(free), self.q)
        r = self.reference
        return torch.cat([part[:r], zero, part[r:]])

    def logits(self, free: Tensor, block: slice) -> Tensor:
        """Logarithms of group shares, (K, S, B); (K, S, 1) without factors."""
        full = self.full(free)
        eta = full if self.W is None else full @ self.W[block].T
        return torch.log_softmax(eta, dim=0)

    def collect(
        self, log_shares: Tensor, R: Tensor, w: Tensor | None, block: slice
    ) -> tuple[Tensor, ...]:
        """Return what an M-step needs: mass; with factors gradient and curvature too.

        Parameters
        ----------
        log_shares : Tensor, shape (K, S, B) or (K, S, 1)
        R : Tensor, shape (K, S, B)
            Posterior probabilities times weights.
        w : Tensor or None, shape (B,) or (S, B)
        block : slice
        """
        mass = R.sum(2)
        if self.W is None:
            return (mass,)
        W, pi = self.W[block], log_shares.exp()
        weighted = pi if w is None else pi * w
        gradient = (R - weighted) @ W
        return mass, gradient, self.square(pi, weighted, W)

    def square(self, pi: Tensor, weighted: Tensor, W: Tensor) -> Tensor:
        """Information of the coefficients: (S, K, K, q, q)."""
        K, S = pi.shape[:2]
        q = W.shape[1]
        products = (W[:, :, None] * W[:, None, :]).reshape(len(W), q * q)
        found = pi.new_zeros(S, K, K, q * q)
        for k in range(K):
            for j in range(k + 1):
                cross = -(weighted[k] * pi[j]) @ products
                if j == k:
                    cross = cross + weighted[k] @ products
                found[:, k, j] = found[:, j, k] = cross
        return found.reshape(S, K, K, q, q)

    def improve(self, free: Tensor, sums: tuple[Tensor, ...]) -> Tensor:
        """M-step: logarithms of shares, or one Newton step."""
        mass = sums[0]
        if self.groups == 1:
            return free
        if self.W is None:
            shares = mass / mass.sum(0).clamp_min(1e-300)
            log_shares = shares.clamp_min(_LEAST).log()
            found = log_shares - log_shares[self.reference]
            return found[self.others].T.contiguous()
        gradient, square = sums[1], self.flat(sums[2])
        g = gradient[self.others].permute(1, 0, 2).reshape(len(free), self.count)
        d = square.diagonal(dim1=1, dim2=2)
        d.add_(1e-10 * d.amax(dim=1, keepdim=True) + 1e-100)
        step = (inverses(square) @ g[:, :, None])[:, :, 0]
        return free + torch.nan_to_num(step).clamp(-_LONGEST, _LONGEST)

    def flat(self, square: Tensor) -> Tensor:
        """Information of the free parameters, (S, P, P), from that of all groups."""
        part = square[:, self.others][:, :, self.others]
        S = len(part)
        return part.permute(0, 1, 3, 2, 4).reshape(S, self.count, self.count)

    def scores(self, pi: Tensor, block: slice) -> Tensor:
        """Scores of the free parameters in each group; (K, S, P, B)."""
        K, S, B = self.groups, pi.shape[1], block.stop - block.start
        pi = pi.expand(K, S, B)[self.others]
        eye = torch.eye(K, dtype=pi.dtype, device=pi.device)[:, self.others]
        difference = eye[:, None, :, None] - pi.permute(1, 0, 2)[None]
        if self.W is None:
            return difference
        W = self.W[block].T
        return (difference[:, :, :, None, :] * W).reshape(K, S, self.count, B)

    def start(self, count: int, like: Tensor) -> Tensor:
        """Equal shares; (S, P)."""
        return like.new_zeros(count, self.count)

    def select(self, units: Tensor) -> Membership:
        """Return the membership of some units."""
        return self if self.W is None else replace(self, W=self.W[units])
