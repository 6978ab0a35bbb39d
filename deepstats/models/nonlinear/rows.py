"""The rows of a nonlinear model: parameters of the curve, its values and slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .expression import Expression

__all__ = ["Rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Responses, covariates and the designs of the curve's parameters.

    Attributes
    ----------
    y : Tensor, shape (n,)
    weights : Tensor or None, shape (n,)
        The residual variance of a row is ``sigma^2 / weight``.
    expression : Expression
    columns : mapping of str to Tensor, each (n,)
        Covariates of the curve.
    parameters : tuple of str
        Parameters of the curve, in the order of phi.
    X : tuple of Tensor, each (n, p_j)
        Fixed part of each parameter.
    """

    y: Tensor
    weights: Tensor | None
    expression: Expression
    columns: Mapping[str, Tensor]
    parameters: tuple[str, ...]
    X: tuple[Tensor, ...]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.y)

    @cached_property
    def w(self) -> Tensor:
        """Weights, of ones where none are given."""
        return torch.ones_like(self.y) if self.weights is None else self.weights

    @cached_property
    def log_weights(self) -> float:
        """Sum of the logarithms of the weights."""
        return 0.0 if self.weights is None else float(self.weights.log().sum())

    @property
    def sizes(self) -> list[int]:
        """Coefficients of each parameter."""
        return [x.shape[1] for x in self.X]

    def fixed(self, beta: Tensor) -> Tensor:
        """Parameters of every row without random effects; (n, P)."""
        parts = torch.split(beta, self.sizes)
        return torch.stack([x @ b for x, b in zip(self.X, parts, strict=True)], dim=1)

    def mean(self, phi: Tensor, repeats: int = 1) -> Tensor:
        """Value of the curve.

        Parameters
        ----------
        phi : Tensor, shape (n * repeats, P)
            Parameters; the repeats of a row stand together.
        repeats : int, default 1
        """
        columns: Mapping[str, Tensor] = self.columns
        if repeats > 1:
            columns = {k: v.repeat_interleave(repeats) for k, v in columns.items()}
        return self.expression(
            {**columns, **dict(zip(self.parameters, phi.unbind(1), strict=True))}
        )

    def slopes(self, phi: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
        """Values and their derivatives in the parameters; (n,) and (n, P).

        With `graph` both can be differentiated further.
        """
        with torch.enable_grad():
            leaves = self._leaves(phi, graph)
            value = self.mean(torch.stack(leaves, dim=1))
            D = _gradient(value, leaves, graph)
        return (value, D) if graph else (value.detach(), D.detach())

    def bends(self, phi: Tensor, graph: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Values, first and second derivatives; (n,), (n, P), (n, P, P)."""
        with torch.enable_grad():
            leaves = self._leaves(phi, graph)
            value = self.mean(torch.stack(leaves, dim=1))
            D = _gradient(value, leaves, True)
            F = torch.stack([_gradient(d, leaves, graph) for d in D.unbind(1)], dim=1)
        return (value, D, F) if graph else (value.detach(), D.detach(), F.detach())

    def _leaves(self, phi: Tensor, graph: bool) -> list[Tensor]:
        if graph and phi.requires_grad:
            return list(phi.unbind(1))
        return [p.detach().clone().requires_grad_() for p in phi.unbind(1)]

    def design(self, D: Tensor) -> Tensor:
        """Return derivatives of the curve in the coefficients; (n, p)."""
        parts = [D[:, j : j + 1] * x for j, x in enumerate(self.X)]
        return torch.cat(parts, dim=1)


def _gradient(value: Tensor, leaves: Sequence[Tensor], graph: bool) -> Tensor:
    """Differentiate rows in the leaves, (n, P); zero where they are not in it."""
    if not value.requires_grad:
        return torch.zeros(len(value), len(leaves), dtype=torch.float64)
    found = torch.autograd.grad(
        value.sum(), leaves, create_graph=graph, retain_graph=True, allow_unused=True
    )
    return torch.stack(
        [torch.zeros_like(v) if g is None else g
         for g, v in zip(found, leaves, strict=True)], dim=1,
    )  # fmt: skip
