"""The log-density of rows several of whose predictors have random effects.

Laplace's method then asks for derivatives in all of these predictors together: with p
and q two that have random effects, the slopes ``F_p``, the weights ``D_pq = -F_pq``
and, for every predictor j, ``F_pj`` and ``-F_pqj``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...families import Family
from .expansions import expansion_of
from .rows import _LEAST, RowDensity, Slopes, Turns
from .taylor import Taylor

__all__ = ["JointDensity", "JointSlopes"]


@dataclass(frozen=True, eq=False)
class JointSlopes(Slopes):
    """Log-density of rows at their linear predictors.

    Attributes
    ----------
    value : Tensor, shape (n,)
    first : Tensor, shape (r, n)
        Derivatives in the predictors that have random effects.
    weight : Tensor, shape (r, r, n)
        Minus the second derivatives.
    """

    @property
    def positive(self) -> Tensor:
        """Weights whose matrix is positive definite in every row; for steps only."""
        values, vectors = torch.linalg.eigh(self.weight.permute(2, 0, 1))
        sizes = values.abs()
        sizes = sizes.clamp_min(_LEAST * float(sizes.max()))
        return ((vectors * sizes[:, None]) @ vectors.mT).permute(1, 2, 0).contiguous()


class JointDensity(RowDensity):
    """The log-density of the responses, differentiated in several predictors.

    Parameters
    ----------
    family : Family
    y, size, weights : Tensor or None, shape (n,)
    parts : tuple of int
        Predictors with random effects.
    """

    def __init__(
        self, family: Family, y: Tensor, size: Tensor | None, weights: Tensor | None,
        parts: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__(family, y, size, weights)
        self.parts = parts
        self._expansion = expansion_of(family, y, size)

    def slopes(self, etas: tuple[Tensor, ...], expected: bool | None = None) -> Slopes:
        """Value, slopes and weights at linear predictors."""
        if self._expansion is not None:
            found, parts = self._expanded(etas, 2, self.parts), self.parts
            first = torch.stack([found.at((p,)) for p in parts])
            second = [found.at((p, q)) for p in parts for q in parts]
            return JointSlopes(found.value, first, -self._squared(second))
        given = self._given(etas)
        at = [given[p] for p in self.parts]
        with torch.enable_grad():
            value = self.log_prob(*given)
            slopes = self._derive(value, at, True)
            curves = [c for f in slopes for c in self._derive(f, at, False)]
        first = torch.stack([f.detach() for f in slopes])
        return JointSlopes(value.detach(), first, -self._squared(curves))

    def turns(self, etas: tuple[Tensor, ...]) -> Turns:
        """Differentiate value, slopes and weights in every linear predictor.

        Returns
        -------
        Turns
            Of `first` each (n,), of `second` each (r, n), of `weight` each (r, r, n).
        """
        every, parts = range(len(etas)), self.parts
        if self._expansion is not None:
            found = self._expanded(etas, 3, every)
            return Turns(
                tuple(found.at((j,)) for j in every),
                tuple(torch.stack([found.at((p, j)) for p in parts]) for j in every),
                tuple(
                    -self._squared([found.at((p, q, j)) for p in parts for q in parts])
                    for j in every
                ),
            )
        given = self._given(etas)
        with torch.enable_grad():
            first = self._derive(self.log_prob(*given), given, True)
            second = [self._derive(first[p], given, True) for p in parts]
            third = [self._derive(s[q], given, False) for s in second for q in parts]
        return Turns(
            tuple(f.detach() for f in first),
            tuple(torch.stack([s[j].detach() for s in second]) for j in every),
            tuple(-self._squared([t[j] for t in third]) for j in every),
        )

    def _expanded(
        self, etas: tuple[Tensor, ...], order: int, variables: Sequence[int]
    ) -> Taylor:
        """Expand in some of the predictors, prior weights included."""
        assert self._expansion is not None
        with torch.no_grad():
            found = self._expansion([
                Taylor.variable(eta, j, order) if j in variables
                else Taylor(eta, order, {})
                for j, eta in enumerate(etas)
            ])  # fmt: skip
            return found if self.weights is None else found.scaled(self.weights)

    def _squared(self, values: list[Tensor]) -> Tensor:
        """Matrices of rows from their entries, (r, r, n)."""
        r = len(self.parts)
        return torch.stack(values).view(r, r, -1)

    @staticmethod
    def _given(etas: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(e.detach().requires_grad_() for e in etas)

    @staticmethod
    def _derive(
        values: Tensor, at: Sequence[Tensor], further: bool
    ) -> tuple[Tensor, ...]:
        """Differentiate every row's value; what led to it is kept for the next."""
        if not values.requires_grad:
            return tuple(torch.zeros_like(e) for e in at)
        return torch.autograd.grad(
            values.sum(), at, create_graph=further, retain_graph=True,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
