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
            value = self._value(modes, self._root(x), modes.etas, 0.0)
        return Point(np.array(x), np.array(gamma), float(value), modes, self)

    def _root(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(self.structure.roots(x)[0]).to(self.X[0])

    def gradient(self, point: Point) -> tuple[np.ndarray, np.ndarray]:
        """Exact derivative in the covariance parameters and in the coefficients."""
        root = self._root(point.x).requires_grad_()
        values = torch.from_numpy(point.gamma).to(self.X[0]).requires_grad_()
        with torch.enable_grad():
            parts = torch.split(values, self.sizes)
            fixed = [
                x @ b if offset is None else x @ b + offset
                for x, b, offset in zip(self.X, parts, self.offsets, strict=True)
            ]
            value = self._value(point.modes, root, None, fixed)
            by_root, by_gamma = torch.autograd.grad(value, (root, values))
        return self._chain(point, by_root.cpu().numpy()), by_gamma.cpu().numpy()

    def _chain(self, point: Point, by_root: np.ndarray) -> np.ndarray:
        """Turn the derivative in the root into that in the covariance parameters."""
        x, out = point.x, np.empty(len(point.x))
        for j in range(len(x)):
            if x[j] == 0 and self.structure.lower[j] == 0:
                # A root of zero has no derivative; at zero all points coincide, and
                # Laplace's is that of the integral.
                out[j] = super().gradient(point)[0][j]
                continue
            reach = 1e-6 * max(abs(x[j]), 1e-3)
            up, down = x.copy(), x.copy()
            up[j] += reach
            down[j] -= reach
            high, low = self.structure.roots(up)[0], self.structure.roots(down)[0]
            out[j] = (by_root * (high - low)).sum() / (2 * reach)
        return out

    def _value(
        self, modes: Modes, root: Tensor, etas: tuple[Tensor, ...] | None,
        fixed: list[Tensor] | float,
    ) -> Tensor:  # fmt: skip
        """Minus twice the log-likelihood, differentiable in root and predictors."""
        Z, codes = self.rows.Z[0], self.rows.codes[0]
        m, K = self.structure.factors[0].m, len(root)
        u = (root.detach().T @ modes.dual[0]).T  # (m, K): standard normal effects
        if isinstance(fixed, float):
            assert etas is not None
            random = self.rows.combine(modes.effects)
            fixed = [etas[0] - random, *etas[1:]]
        W = (root.T @ Z).T  # (n, K): columns of the standard normal effects
        first, weight = self._derivatives(fixed, (W * u[codes]).sum(1))
        score = W.new_zeros(m, K).index_add(0, codes, W * first[:, None])
        H = torch.eye(K).to(W) + W.new_zeros(m, K, K).index_add(
            0, codes, weight[:, None, None] * W[:, :, None] * W[:, None, :]
        )
        step = torch.linalg.solve(H.detach(), (score - u)[:, :, None])[:, :, 0]
        u = u + step
        if torch.is_grad_enabled():
            _, weight = self._derivatives(fixed, (W * u[codes]).sum(1))
            H = torch.eye(K).to(W) + W.new_zeros(m, K, K).index_add(
                0, codes, weight[:, None, None] * W[:, :, None] * W[:, None, :]
            )
        # Points u + sqrt(2) L'^-1 z, with H = L L'.
        L = torch.linalg.cholesky(H)
        spread = torch.linalg.solve_triangular(
            L.transpose(1, 2), self.nodes.T.expand(m, -1, -1).contiguous(), upper=True
        )
        points = u[:, :, None] + math.sqrt(2) * spread  # (m, K, M)
        eta = fixed[0][:, None] + (W[:, :, None] * points[codes]).sum(1)
        others = [f[:, None] for f in fixed[1:]]
        rows = self.density.log_prob_of(eta, *others)
        joint = rows.new_zeros(m, rows.shape[1]).index_add(0, codes, rows)
        joint = joint - 0.5 * points.square().sum(1) + self.log_weights
        logs = torch.logsumexp(joint, 1)
        logs = logs - L.diagonal(dim1=1, dim2=2).log().sum(1)
        # (2 pi)^(-K/2) of the normal density, 2^(K/2) of the change of variables.
        return -2 * (logs.sum() - 0.5 * m * K * math.log(math.pi))

    def _derivatives(
        self, fixed: list[Tensor], random: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slope and weight of rows, differentiable where gradients are asked for."""
        if not torch.is_grad_enabled():
            found = self.density.slopes((fixed[0] + random, *fixed[1:]))
            return found.first, found.weight
        eta = fixed[0] + random
        value = self.density.log_prob(eta, *fixed[1:])
        (first,) = torch.autograd.grad(value.sum(), eta, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), eta, create_graph=True)
        return first, -second
