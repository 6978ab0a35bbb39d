"""The linear mixed model that a nonlinear one is like, next to given parameters.

To first order the curve is ``f + X (beta - beta0) + Z (b - b0)``, with its derivatives
as columns: a linear mixed model of the working response ``y - f + X beta0 + Z b0``,
which is that of `mixed`, with its cross-products, its criterion and its search.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from ...errors import ModelError
from ...leastsquares import least_squares
from ..mixed.criterion import Criterion
from ..mixed.model import check_columns, check_distinct
from ..mixed.products import Products, cross_products
from ..mixed.search import starting
from ..mixed.small import is_small, small_fixed, small_products
from ..mixed.structure import Structure
from .effects import Effects
from .reading import Effect, Reading, matrix_of, numbers
from .rows import Rows

__all__ = ["Linearised"]


class Linearised:
    """Linear mixed models of a nonlinear one.

    Parameters
    ----------
    reading : Reading
    rows : Rows
    beta : Tensor, shape (p,)
        Where the random effects are standardised.
    compute : Compute

    Attributes
    ----------
    structure : Structure
    effects : Effects
    """

    def __init__(
        self, reading: Reading, rows: Rows, beta: Tensor, compute: Compute
    ) -> None:
        self.reading, self.rows, self.compute = reading, rows, compute
        self.terms: list[Effect] = reading.effects(reading.design.random)
        check_distinct([e.random for e in self.terms])
        self.names = [name for labels in reading.labels for name in labels]
        _, D = rows.slopes(rows.fixed(beta))
        w, grams = numbers(rows.w), []
        for effect, columns in zip(self.terms, self._columns(D), strict=True):
            gram = columns.T @ (columns * w[:, None]) / rows.n
            check_columns(effect.random, gram)
            grams.append(gram)
        self.structure = Structure.build([e.random for e in self.terms], grams)
        self.effects = Effects(
            self.structure, self.terms, len(reading.parameters), compute
        )

    def _columns(self, D: Tensor) -> list[np.ndarray]:
        """Return derivatives in the effects of every term; each (n, K)."""
        slopes = numbers(D)
        return [slopes[:, e.owner] * e.columns for e in self.terms]

    def at(self, beta: Tensor, b: Tensor, fixed: bool = True) -> Products:
        """Return all cross-products of the model linearised at given values.

        Parameters
        ----------
        beta : Tensor, shape (p,)
        b : Tensor, shape (clusters, size)
            Standardised effects; see `Effects`.
        fixed : bool, default True
            Whether fixed effects are columns of the model; where they are not, the
            response is net of them.

        Raises
        ------
        ModelError
            Where derivatives in some coefficients determine others.
        """
        rows = self.rows
        f, D = rows.slopes(rows.fixed(beta) + self.effects.move(b))
        own = (self.effects.columns(D) * b.reshape(-1)[self.effects._flat]).sum(1)
        response = rows.y - f + own
        columns = numbers(rows.design(D)) if fixed else np.zeros((rows.n, 0))
        if fixed:
            response = response + rows.design(D) @ beta
        random = [
            replace(e.random, Z=matrix_of(Z, e.random.Z.names))
            for e, Z in zip(self.terms, self._columns(D), strict=True)
        ]
        design = replace(
            self.reading.design, y=numbers(response), parts=(), random=tuple(random),
            X=matrix_of(columns, self.names if fixed else ()), offset=None,
        )  # fmt: skip
        structure = self._with(random)
        few = None
        if fixed and is_small(design, self.compute):
            few = small_fixed(design, self.compute)
        if few is not None:
            return small_products(design, structure, *few, self.compute)
        found = least_squares(design, self.compute, extended=False)
        if len(found.kept) < design.X.k:
            gone = [n for j, n in enumerate(design.X.names) if j not in found.kept]
            raise ModelError(
                f"singular gradient: the derivative of the curve in {', '.join(gone)} "
                "is zero or determined by the others'. Give other start= values, or a "
                "curve with fewer parameters."
            )
        return cross_products(design, structure, found, self.compute)

    def _with(self, random: list) -> Structure:
        """Return the structure with the columns of other derivatives."""
        factors = []
        for j, factor in enumerate(self.structure.factors):
            matrices = tuple(random[t.order].Z for t in self.structure.of(j))
            factors.append(replace(factor, matrices=matrices))
        return replace(self.structure, factors=tuple(factors))

    def first(self, beta: Tensor, reml: bool) -> np.ndarray:
        """Return covariance parameters to start from."""
        return starting(Criterion(self.at(beta, self.effects.zeros()), reml).products)

    def covariances(self, x: np.ndarray) -> list[Tensor]:
        """Standardised relative covariance of the effects of every factor."""
        return [torch.from_numpy(r @ r.T) for r in self.structure.roots(x)]
