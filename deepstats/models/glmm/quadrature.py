"""Adaptive Gauss-Hermite quadrature for one grouping factor, all groups at once.

The integral over the effects of a group is a weighted sum over points placed around
their mode, as far apart as the curvature there says; one point is Laplace's method.
The gradient is exact: points move with the parameters, which a differentiable Newton
step from the modes found takes into account.

References
----------
Pinheiro & Bates (1995), Approximations to the log-likelihood function in the nonlinear
mixed-effects model; Liu & Pierce (1994), A note on Gauss-Hermite quadrature.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError
from ..mixed.reweighted import Reweighted
from .laplace import Laplace, Modes, Point
from .rows import RowDensity

__all__ = ["Quadrature"]

#: Points of all effects together: more are too many for one group.
_MOST = 20_000


class Quadrature(Laplace):
    """The criterion by adaptive quadrature.

    Parameters
    ----------
    rows, density, X, offsets
        As `Laplace`.
    nagq : int
        Points for each effect of a group.

    Raises
    ------
    ModelError
        For more than one grouping factor, or too many points.
    """

    def __init__(
        self, rows: Reweighted, density: RowDensity, X: tuple[Tensor, ...],
        offsets: tuple[Tensor | None, ...], nagq: int,
    ) -> None:  # fmt: skip
        super().__init__(rows, density, X, offsets)
        factors = self.structure.factors
        if len(factors) != 1:
            names = ", ".join(f.name for f in factors)
            raise ModelError(
                f"nagq={nagq}: quadrature is for one grouping factor, and the model "
                f"has {len(factors)} ({names}); use nagq=1, Laplace's method."
            )
        K = factors[0].k
        if nagq**K > _MOST:
            raise ModelError(
                f"nagq={nagq} with {K} effects a group takes {nagq**K:,} points; use "
                "fewer."
            )
        nodes, weights = np.polynomial.hermite.hermgauss(nagq)
        grid = list(itertools.product(range(nagq), repeat=K))
        like = X[0]
        self.nodes = torch.tensor([[nodes[j] for j in g] for g in grid]).to(like)
        log_weights = [[math.log(weights[j]) + nodes[j] ** 2 for j in g] for g in grid]
        self.log_weights = torch.tensor(log_weights).to(like).sum(1)

    def __call__(self, x: np.ndarray, gamma: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        modes = self.modes(x, gamma)
        with torch.no_grad():
            root, fixed = self._root(x), list(modes.etas)
            random = self.rows.split(self.rows.combine(modes.effects))
            for p, part in zip(self.rows.parts, random, strict=True):
                fixed[p] = fixed[p] - part
            value = self._value(modes, root, self._standard(root), fixed)
        return Point(np.array(x), np.array(gamma), float(value), modes, self)

    def _root(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(self.structure.roots(x)[0]).to(self.X[0])

    def gradient(self, point: Point) -> tuple[np.ndarray, np.ndarray]:
        """Exact derivative in the covariance parameters and in the coefficients."""
        along, by_W = self.row_slopes(point)
        by_root = sum(Z @ by for Z, by in zip(self.rows.columns(0), by_W, strict=True))
        assert isinstance(by_root, Tensor)
        by_gamma = [(X.T @ a).cpu().numpy() for X, a in zip(self.X, along, strict=True)]
        return self._chain(point, by_root.cpu().numpy()), np.concatenate(by_gamma)

    def row_slopes(self, point: Point) -> tuple[list[Tensor], list[Tensor]]:
        """Differentiate the criterion row by row.

        Parameters
        ----------
        point : Point

        Returns
        -------
        along : list of Tensor, each (n,)
            In every linear predictor.
        by_W : list of Tensor, each (n, K)
            In the columns of the standard normal effects, by predictor that has them.
        """
        root = self._root(point.x)
        W = [columns.requires_grad_() for columns in self._standard(root)]
        fixed = [eta.detach().requires_grad_() for eta in self.predictors(point.gamma)]
        with torch.enable_grad():
            value = self._value(point.modes, root, W, fixed)
            found = torch.autograd.grad(value, [*fixed, *W])
        return list(found[: len(fixed)]), list(found[len(fixed) :])

    def _standard(self, root: Tensor) -> list[Tensor]:
        """Columns of the standard normal effects by predictor, each (n, K)."""
        return [(root.T @ Z).T for Z in self.rows.columns(0)]

    def _chain(self, point: Point, by_root: np.ndarray) -> np.ndarray:
        """Turn the derivative in the root into that in the covariance parameters."""
        slopes = self.root_slopes(point.x)
        # A root of zero has no derivative; at zero all points coincide, and Laplace's
        # is that of the integral.
        edge = [s is None for s in slopes]
        laplace = super().gradient(point)[0] if any(edge) else None
        return np.array([
            laplace[j] if slope is None else (by_root * slope).sum()
            for j, slope in enumerate(slopes)
        ])  # fmt: skip

    def root_slopes(self, x: np.ndarray) -> list[np.ndarray | None]:
        """Differentiate the root in each covariance parameter; None where it is zero.

        Parameters
        ----------
        x : ndarray
        """
        out: list[np.ndarray | None] = []
        for j in range(len(x)):
            if x[j] == 0 and self.structure.lower[j] == 0:
                out.append(None)
                continue
            reach = 1e-6 * max(abs(x[j]), 1e-3)
            up, down = x.copy(), x.copy()
            up[j] += reach
            down[j] -= reach
            high, low = self.structure.roots(up)[0], self.structure.roots(down)[0]
            out.append((high - low) / (2 * reach))
        return out

    def _value(
        self, modes: Modes, root: Tensor, W: list[Tensor], fixed: list[Tensor]
    ) -> Tensor:
        """Minus twice the log-likelihood, differentiable in columns and predictors."""
        codes, m, K = self.rows.codes[0], self.structure.factors[0].m, len(root)
        u = (root.T @ modes.dual[0]).T  # (m, K): standard normal effects
        first, weight = self._derivatives(self._moved(fixed, W, u[codes]))
        score = u.new_zeros(m, K)
        for columns, slope in zip(W, first, strict=True):
            score = score.index_add(0, codes, columns * slope[:, None])
        H = self._curvature(W, weight)
        step = torch.linalg.solve(H.detach(), (score - u)[:, :, None])[:, :, 0]
        u = u + step
        if torch.is_grad_enabled():
            _, weight = self._derivatives(self._moved(fixed, W, u[codes]))
            H = self._curvature(W, weight)
        # Points u + sqrt(2) L'^-1 z, with H = L L'.
        L = torch.linalg.cholesky(H)
        spread = torch.linalg.solve_triangular(
            L.transpose(1, 2), self.nodes.T.expand(m, -1, -1).contiguous(), upper=True
        )
        points = u[:, :, None] + math.sqrt(2) * spread  # (m, K, M)
        at = self._moved([f[:, None] for f in fixed], W, points[codes])
        values = self.density.log_prob_of(*at)
        joint = values.new_zeros(m, values.shape[1]).index_add(0, codes, values)
        joint = joint - 0.5 * points.square().sum(1) + self.log_weights
        logs = torch.logsumexp(joint, 1)
        logs = logs - L.diagonal(dim1=1, dim2=2).log().sum(1)
        # (2 pi)^(-K/2) of the normal density, 2^(K/2) of the change of variables.
        return -2 * (logs.sum() - 0.5 * m * K * math.log(math.pi))

    def _moved(
        self, fixed: list[Tensor], W: list[Tensor], effects: Tensor
    ) -> list[Tensor]:
        """Predictors with random effects, rows' (n, K) or (n, K, points), added."""
        out = list(fixed)
        for p, columns in zip(self.rows.parts, W, strict=True):
            part = columns if effects.dim() == 2 else columns[:, :, None]
            out[p] = fixed[p] + (part * effects).sum(1)
        return out

    def _curvature(self, W: list[Tensor], weight: list[list[Tensor]]) -> Tensor:
        """Minus the second derivatives of each group's joint density, (m, K, K)."""
        codes, m, K = self.rows.codes[0], self.structure.factors[0].m, W[0].shape[1]
        H = torch.eye(K).to(W[0]).expand(m, K, K)
        for one, row in zip(W, weight, strict=True):
            for two, w in zip(W, row, strict=True):
                outer = w[:, None, None] * one[:, :, None] * two[:, None, :]
                H = H.index_add(0, codes, outer)
        return H

    def _derivatives(
        self, etas: list[Tensor]
    ) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
        """Slopes and weights of rows, differentiable where gradients are asked for."""
        split = self.rows.split
        if not torch.is_grad_enabled():
            found = self.density.slopes(tuple(etas))
            return split(found.first), [split(w) for w in split(found.weight)]
        at = [etas[p] for p in self.rows.parts]
        value = self.density.log_prob(*etas)
        first = torch.autograd.grad(value.sum(), at, create_graph=True)
        weight = [
            tuple(
                -s for s in torch.autograd.grad(
                    f.sum(), at, create_graph=True, materialize_grads=True
                )
            )
            for f in first
        ]  # fmt: skip
        return first, weight
