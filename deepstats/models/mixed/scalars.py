"""Scalar effects eliminated, and solved for, in few NumPy calls.

Most models have random intercepts only: every block is a number. A generalised linear
model solves its equations a hundred times at new weights, and where effects are a few
hundred or thousand the bookkeeping of small matrices would take most of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from .coupling import Dense
from .rest import Rest

if TYPE_CHECKING:
    from .elimination import Factorisation

__all__ = ["ScalarSolver", "eliminate_scalars", "takes"]


@dataclass(frozen=True, eq=False)
class _Stage:
    """A stage's numbers, (m,) each.

    Attributes
    ----------
    W : ndarray
    above : list of (int, ndarray, ndarray, int)
        Of each later stage that this one is nested in: its number, its level of each
        level, the coupling with it, and its levels.
    C : ndarray or None, shape (m, q)
        Coupling with the rest.
    """

    W: np.ndarray
    above: list[tuple[int, np.ndarray, np.ndarray, int]]
    C: np.ndarray | None


class ScalarSolver:
    """Solutions of factorised equations for one right-hand side after another.

    Parameters
    ----------
    f : Factorisation
        One that `of` takes.
    """

    def __init__(self, f: Factorisation) -> None:
        products, rest = f.products, f.rest
        assert isinstance(rest, Rest)
        self.stage_factors = products.stage_factors
        self.rest_factors = products.rest_factors
        self.offsets = products.offsets
        self.stages = []
        for stage in f.stages:
            above = [
                (later, stage.parent[later].numpy(), E[0, 0].numpy(),
                 f.stages[later].W.shape[2])
                for later, E in stage.E.items()
            ]  # fmt: skip
            C = stage.C.flat.numpy() if isinstance(stage.C, Dense) else None
            self.stages.append(_Stage(stage.W[0, 0].numpy(), above, C))
        self.L = rest.L[0].numpy().T if products.q else None
        self.scale = None if rest.vector is None else rest.vector[0].numpy()

    @classmethod
    def of(cls, f: Factorisation) -> ScalarSolver | None:
        """Return a solver of equations of scalar effects on a CPU; else None."""
        fits = (
            f.products.G.is_cpu
            and f.products.p == 0
            and all(len(root) == 1 for root in f.roots)
            and isinstance(f.rest, Rest)
            and f.rest.layout.whole
            and all(
                s.C is None or (isinstance(s.C, Dense) and not s.C.sparse)
                for s in f.stages
            )
        )
        return cls(f) if fits else None

    def __call__(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Apply the inverse to a vector, by factor; each (m,)."""
        here = [parts[j] for j in self.stage_factors]
        rest = [parts[j] for j in self.rest_factors]
        left = np.concatenate(rest) if rest else None
        for number, stage in enumerate(self.stages):
            t = stage.W * here[number]
            for later, parent, E, m in stage.above:
                here[later] = here[later] - np.bincount(parent, E * t, m)
            if stage.C is not None:
                left = left - t @ stage.C
        if left is not None:
            left, _ = lapack.dpotrs(self.L, left * self.scale, lower=0)
            left = left * self.scale
        for number in range(len(self.stages) - 1, -1, -1):
            stage = self.stages[number]
            own = here[number]
            if stage.C is not None:
                own = own - stage.C @ left
            for later, parent, E, _ in stage.above:
                own = own - E * here[later][parent]
            here[number] = stage.W * own
        out: list[np.ndarray] = [np.empty(0)] * len(parts)
        for number, j in enumerate(self.stage_factors):
            out[j] = here[number]
        for number, j in enumerate(self.rest_factors):
            assert left is not None
            out[j] = left[self.offsets[number] : self.offsets[number + 1]]
        return out


def takes(D: Tensor, E: dict[int, Tensor], XY: Tensor) -> bool:
    """Whether a stage is for `eliminate_scalars`."""
    scalar = len(D) == 1 and all(e.shape[1] == 1 for e in E.values())
    return D.is_cpu and scalar and XY.shape[2] == 1


def eliminate_scalars(
    D: Tensor, root: Tensor, E: dict[int, Tensor], parent: dict[int, Tensor],
    levels: dict[int, int], XY: Tensor,
) -> tuple[Tensor, float, dict[int, Tensor], dict[int, Tensor], dict]:  # fmt: skip
    """Eliminate a stage of scalar effects and one right-hand side.

    Parameters
    ----------
    D : Tensor, shape (1, 1, m)
    root : Tensor, shape (1, 1)
    E, parent, levels : dict
        Of each later stage that this one is nested in: coupling (1, 1, m), its level
        of each level (m,), and how many it has.
    XY : Tensor, shape (1, m, 1)

    Returns
    -------
    W : Tensor, shape (1, 1, m)
    logdet : float
    less_D, less_XY : dict of int to Tensor
        What later stages lose: (1, 1, m') and (1, m', 1).
    less_E : dict of (int, int) to Tensor
        What the coupling of two of them loses, by level of the first.
    """
    variance = float(root[0, 0]) ** 2
    inner = 1 + variance * D[0, 0].numpy()
    W = variance / inner
    y = W * XY[0, :, 0].numpy()
    less_D, less_XY, less_E = {}, {}, {}
    for later, coupling in E.items():
        e, at = coupling[0, 0].numpy(), parent[later].numpy()
        We = W * e
        m = levels[later]
        less_D[later] = torch.from_numpy(np.bincount(at, We * e, m))[None, None]
        less_XY[later] = torch.from_numpy(np.bincount(at, y * e, m))[None, :, None]
        for last, other in E.items():
            if last > later:
                lost = np.bincount(at, We * other[0, 0].numpy(), m)
                less_E[later, last] = torch.from_numpy(lost)[None, None]
    with np.errstate(invalid="ignore"):  # NaN: the equations are not positive definite
        logdet = float(np.log(inner).sum())
    return torch.from_numpy(W)[None, None], logdet, less_D, less_XY, less_E
