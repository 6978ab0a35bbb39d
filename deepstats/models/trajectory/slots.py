"""Which free parameter each coefficient of each group is, and the basis they live in.

A group has one coefficient for every column of every linear predictor. Some are absent
(a lower polynomial order), some are the same number in several groups (common effects,
a shared variance). What is estimated are the distinct ones: the free parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

__all__ = ["Basis", "Slots", "free_basis"]

#: Rows that a basis is made from: it serves the condition of the problem only.
_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class Slots:
    """The place of every coefficient among the free parameters.

    Attributes
    ----------
    index : Tensor of int, shape (K, C)
        Number of the free parameter; -1 where the coefficient is absent (zero).
    count : int
        Number of free parameters, P.
    """

    index: Tensor
    count: int

    @classmethod
    def of(cls, patterns: Sequence[np.ndarray]) -> Slots:
        """Join the patterns of several predictors, each numbered from zero.

        Parameters
        ----------
        patterns : sequence of ndarray of int, each of shape (K, p_j)
        """
        parts, count = [], 0
        for pattern in patterns:
            found = np.asarray(pattern, dtype=np.int64)
            parts.append(np.where(found < 0, -1, found + count))
            count += int(found.max(initial=-1)) + 1
        return cls(torch.from_numpy(np.concatenate(parts, axis=1)), count)

    def first(self, groups: int) -> tuple[Slots, Tensor]:
        """Return the slots of the first groups, and which parameters they keep."""
        index = self.index[:groups]
        kept = torch.unique(index[index >= 0])
        number = torch.full((self.count + 1,), -1)
        number[kept] = torch.arange(len(kept))
        return Slots(number[index], len(kept)), kept

    @cached_property
    def exchangeable(self) -> bool:
        """Whether groups differ in nothing but their numbers."""
        same = bool(((self.index < 0) == (self.index[:1] < 0)).all())
        shared = (self.index == self.index[:1]).all(0)
        own = torch.tensor(
            [len(torch.unique(c)) == len(c) for c in self.index.T], dtype=torch.bool
        )
        return same and bool((shared | own).all())

    def separate(self, width: int | None = None) -> bool:
        """Whether each of the first coefficients is a parameter of its own."""
        index = self.index[:, :width]
        return bool((index >= 0).all()) and len(torch.unique(index)) == index.numel()

    @cached_property
    def all_separate(self) -> bool:
        """Whether every coefficient is a parameter of its own."""
        return self.separate()

    @property
    def groups(self) -> int:
        """Number of groups, K."""
        return self.index.shape[0]

    @property
    def width(self) -> int:
        """Coefficients of one group, C."""
        return self.index.shape[1]

    @cached_property
    def selection(self) -> Tensor:
        """Zeros and ones that take free parameters to coefficients; (K, C, P)."""
        table = torch.zeros(self.groups, self.width, self.count + 1).double()
        place = torch.where(self.index < 0, self.count, self.index)
        table.scatter_(2, place[:, :, None], 1.0)
        return table[:, :, :-1].contiguous()

    @cached_property
    def touched(self) -> list[tuple[Tensor, Tensor | None]]:
        """Free parameters of each group, and what takes coefficients to them.

        The matrix (C, parameters) is None where coefficients are these parameters.
        """
        found: list[tuple[Tensor, Tensor | None]] = []
        for row, selection in zip(self.index, self.selection, strict=True):
            columns = torch.unique(row[row >= 0])
            same = len(columns) == len(row) and bool((columns == row).all())
            found.append((columns, None if same else selection[:, columns]))
        return found

    def spread(self, free: Tensor) -> Tensor:
        """Return the coefficients (K, S, C) of free parameters (S, P)."""
        padded = torch.nn.functional.pad(free, (0, 1))
        place = torch.where(self.index < 0, self.count, self.index)
        return padded[:, place].permute(1, 0, 2)

    def gather(self, coefficients: Tensor) -> Tensor:
        """Sum what belongs to each free parameter: (K, S, C) to (S, P)."""
        K, S, C = coefficients.shape
        flat = coefficients.permute(1, 0, 2).reshape(S, K * C)
        return flat @ self.selection.reshape(K * C, self.count)

    def gather_square(self, matrices: Tensor) -> Tensor:
        """Sum matrices of the groups: (K, S, C, C) to (S, P, P)."""
        half = matrices @ self.selection[:, None]
        return (self.selection[:, None].transpose(2, 3) @ half).sum(0)


@dataclass(frozen=True, eq=False)
class Basis:
    """A change of columns: ``X @ change`` are orthogonal as far as patterns allow.

    Attributes
    ----------
    change : Tensor, shape (p, p)
        Upper triangular; coefficients of X are ``change @ those of the new columns``.
    """

    change: Tensor

    @classmethod
    def of(cls, X: Tensor, pattern: np.ndarray) -> Basis:
        """Find the basis of the columns of one predictor.

        A column may borrow from an earlier one only where every group that has the
        first has the second too, and shares it with the same groups: else the model in
        the new columns would be another one.
        """
        step = max(1, len(X) // _ROWS)
        A = X[::step].double().cpu().numpy()
        change = np.eye(A.shape[1])
        new = A.copy()
        for j in range(A.shape[1]):
            before = [i for i in range(j) if _may_borrow(pattern, i, j)]
            for _ in range(2 if before else 0):
                part = np.linalg.lstsq(new[:, before], new[:, j], rcond=1e-10)[0]
                new[:, j] -= new[:, before] @ part
                change[:, j] -= change[:, before] @ part
            size = np.sqrt(np.mean(new[:, j] ** 2))
            size = size if size > 1e-10 * np.sqrt(np.mean(A[:, j] ** 2)) else 1.0
            new[:, j] /= size
            change[:, j] /= size
        return cls(torch.from_numpy(change))


def _may_borrow(pattern: np.ndarray, i: int, j: int) -> bool:
    present = pattern[:, j] >= 0
    if (pattern[present, i] < 0).any():
        return False
    # One parameter of column j must stand beside one parameter of column i.
    pairs = set(zip(pattern[present, j], pattern[present, i], strict=True))
    return len(pairs) == len({a for a, _ in pairs})


def free_basis(
    bases: Sequence[Basis], patterns: Sequence[np.ndarray], count: int
) -> Tensor:
    """Return the change of free parameters that changes of columns bring; (P, P).

    User's free parameters are ``matrix @ internal ones``.
    """
    matrix, start = torch.zeros(count, count).double(), 0
    for basis, pattern in zip(bases, patterns, strict=True):
        for row in np.asarray(pattern):
            at = np.flatnonzero(row >= 0)
            place = torch.from_numpy(row[at] + start)
            part = basis.change[at][:, at].to(matrix)
            matrix[place[:, None], place[None, :]] = part
        start += int(np.max(pattern, initial=-1)) + 1
    return matrix
