"""Rows of the outcomes as tensors, each with the number of its subject."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Rows", "Sample"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one outcome.

    Attributes
    ----------
    y : Tensor, shape (n,)
        Responses; NaN in rows that are only predicted.
    subject : Tensor of int, shape (n,)
        Whose row it is: a number below that of the subjects.
    F, Z : Tensor, shapes (n, p) and (n, q)
        Columns of the linear part: fixed, and those whose effects vary by subject.
    fixed, random : Tensor, shapes (n, inputs)
        Inputs of the networks of both parts.
    """

    y: Tensor
    subject: Tensor
    F: Tensor
    Z: Tensor
    fixed: Tensor
    random: Tensor

    def take(self, keep: Tensor, subject: Tensor) -> Rows:
        """Return some rows, with the new numbers of their subjects."""
        return Rows(
            self.y[keep], subject, self.F[keep], self.Z[keep], self.fixed[keep],
            self.random[keep],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of every outcome, of the same subjects.

    Attributes
    ----------
    rows : tuple of Rows
        By outcome; a subject may have none in any of them.
    prior : Tensor, shape (subjects, inputs)
        Inputs of the network of the latent effects' mean.
    n : int
        Number of subjects.
    """

    rows: tuple[Rows, ...]
    prior: Tensor
    n: int

    def subjects(self, which: Tensor) -> Sample:
        """Return the sample of some subjects, numbered as in `which`."""
        place = torch.full((self.n,), -1, dtype=torch.int64)
        place[which] = torch.arange(len(which))
        parts = []
        for rows in self.rows:
            subject = place[rows.subject]
            keep = torch.nonzero(subject >= 0)[:, 0]
            parts.append(rows.take(keep, subject[keep]))
        return Sample(tuple(parts), self.prior[which], len(which))

    def observed(self) -> Sample:
        """Return the sample of the rows whose response is known."""
        parts = []
        for rows in self.rows:
            keep = torch.nonzero(~torch.isnan(rows.y))[:, 0]
            parts.append(rows.take(keep, rows.subject[keep]))
        return replace(self, rows=tuple(parts))
