"""The few things that still need the rows after the fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...compute import Compute
from ...design import Design

__all__ = ["fixed_part", "random_columns", "random_part"]


def fixed_part(design: Design, beta: np.ndarray, compute: Compute) -> np.ndarray:
    """``X beta`` plus the offset; shape (n,).

    Parameters
    ----------
    design : Design
    beta : ndarray, shape (p,)
    compute : Compute
    """
    cpu = compute.on_cpu()
    rows = min(cpu.block_rows(design.widest()), max(design.n, 1))
    raw = design.X.to_raw(torch.from_numpy(np.ascontiguousarray(beta)))
    out = np.zeros(design.n)

    def body(start: int, stop: int, scratches: tuple) -> None:
        batch = design.batch(start, stop, scratches, cpu)
        out[start:stop] = batch.blocks[0].eta(raw).numpy()

    cpu.sum_blocks(design.n, rows, lambda: design.scratches(rows, cpu), body, _nothing)
    return out if design.offset is None else out + design.offset


def _nothing(into: tuple, other: tuple) -> None:
    """Merge workers that have written into one array, each its own rows."""


def random_part(
    design: Design, modes: Sequence[np.ndarray | None], compute: Compute
) -> np.ndarray:
    """Sum of ``z_i'b`` over terms; shape (n,).

    Parameters
    ----------
    design : Design
    modes : sequence of ndarray or None, each (levels, K)
        Effects of each random term of the design; None leaves a term out. Rows whose
        level is unknown (code -1) get zero from that term.
    compute : Compute
    """
    out = np.zeros(design.n)
    for term, b in zip(design.random, modes, strict=True):
        if b is None:
            continue
        codes, known = term.grouping.codes, term.grouping.codes >= 0
        if term.Z.names == ("Intercept",):
            part = b[:, 0][codes]
        else:
            Z = term.Z.to_dense(compute.on_cpu()).numpy()
            part = np.einsum("ij,ij->i", Z, b[codes])
        out += part if known.all() else np.where(known, part, 0.0)
    return out


def random_columns(design: Design, compute: Compute) -> list[np.ndarray]:
    """Columns of every random term, dense; each (n, K)."""
    return [t.Z.to_dense(compute.on_cpu()).numpy() for t in design.random]
