"""Adaptive Gauss-Hermite quadrature for one grouping factor, all its levels at once.

Points are placed around the modes of the effects, as far apart as the curvature there
says; one point is Laplace's method. See `glmm.quadrature`, whose rows have one linear
predictor in place of a curve with several parameters.

References
----------
Pinheiro & Bates (1995); Liu & Pierce (1994), A note on Gauss-Hermite quadrature.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError
from .laplace import Laplace, Modes, Point, _times
from .linearised import Linearised
from .reading import numbers

__all__ = ["Quadrature"]

#: Points of all effects of a level together, and of all rows.
_MOST, _MOST_ROWS = 20_000, 20_000_000


class Quadrature(Laplace):
    """The criterion by adaptive quadrature.

    Parameters
    ----------
    linear, expected
        As `Laplace`; the determinant says how far apart points are.
    nagq : int
        Points for each effect.

    Raises
    ------
    ModelError
        For more than one grouping factor, or too many points.
    """

    def __init__(self, linear: Linearised, expected: bool, nagq: int) -> None:
        super().__init__(linear, expected)
        factors = self.structure.factors
        if len(factors) != 1:
            names = ", ".join(f.name for f in factors)
            raise ModelError(
                f"nagq={nagq}: quadrature is for one grouping factor, and the model "
                f"has {len(factors)} ({names}); use nagq=1, Laplace's method."
            )
        count = nagq ** factors[0].k
        if count > _MOST or count * self.rows.n > _MOST_ROWS:
            raise ModelError(
                f"nagq={nagq} with {factors[0].k} effects a level takes {count:,} "
                f"points for each of {self.rows.n:,} rows; use fewer."
            )
        nodes, weights = np.polynomial.hermite.hermgauss(nagq)
        grid = np.array(list(itertools.product(range(nagq), repeat=factors[0].k)))
        self.nodes = torch.from_numpy(nodes[grid])  # (M, K)
        logs = np.log(weights) + nodes**2
        self.log_weights = torch.from_numpy(logs[grid].sum(1))

    def _root(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.structure.roots(x)[0]))

    def __call__(self, z: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        x, beta, log_sigma = self.parts(z)
        modes = self.modes(self.effects.covariance(self.covariances(x)), beta)
        if modes is None:
            return Point(np.array(z), math.inf, None, self)
        with torch.no_grad():
            scale = torch.tensor(log_sigma, dtype=torch.float64)
            value = float(self._integral(modes, self._root(x), beta, scale))
        return Point(np.array(z), value if value == value else math.inf, modes, self)

    def gradient(self, point: Point) -> np.ndarray:
        """Exact derivative in all parameters."""
        if point.modes is None:
            raise ArithmeticError("the criterion is undefined here.")
        x, beta, log_sigma = self.parts(point.z)
        root, beta = self._root(x).requires_grad_(), beta.clone().requires_grad_()
        scale = torch.tensor(log_sigma, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            value = self._integral(point.modes, root, beta, scale)
            found = torch.autograd.grad(value, (root, beta, scale))
        chained = self._chained(point, numbers(found[0]))
        return np.concatenate([chained, numbers(found[1]), [float(found[2])]])

    def _chained(self, point: Point, by_root: np.ndarray) -> np.ndarray:
        """Turn the derivative in the root into that in the covariance parameters."""
        x, out = self.parts(point.z)[0], np.empty(self.structure.size)
        for j in range(len(x)):
            if x[j] <= self.structure.lower[j]:
                # A root of zero has no derivative; there Laplace's is the integral's.
                out[j] = super().gradient(point)[j]
                continue
            reach = 1e-6 * max(abs(x[j]), 1e-3)
            if np.isfinite(self.structure.lower[j]):
                reach = min(reach, (x[j] - self.structure.lower[j]) / 2)
            up, down = x.copy(), x.copy()
            up[j] += reach
            down[j] -= reach
            high, low = self.structure.roots(up)[0], self.structure.roots(down)[0]
            out[j] = (by_root * (high - low)).sum() / (2 * reach)
        return out

    def _integral(
        self, modes: Modes, root: Tensor, beta: Tensor, log_sigma: Tensor
    ) -> Tensor:
        """Minus twice the log-likelihood, differentiable in root and parameters."""
        rows, effects = self.rows, self.effects
        m, K = modes.b.shape
        fixed, points = rows.fixed(beta), len(self.nodes)
        wide = root.expand(m, K, K)
        u = _times(wide.detach().transpose(1, 2), modes.c)  # b = root u
        if torch.is_grad_enabled():
            u = self._stepped(modes, u, wide, fixed)
        H = self._information(fixed, _times(wide, u))
        inner = torch.eye(K, dtype=torch.float64) + wide.transpose(1, 2) @ H @ wide
        L, failed = torch.linalg.cholesky_ex(inner)
        if bool(failed.any()):
            return torch.full_like(log_sigma, math.nan)
        spread = torch.linalg.solve_triangular(
            L.transpose(1, 2),
            self.nodes.T.expand(m, K, points).contiguous(),
            upper=True,
        )
        sigma = torch.exp(log_sigma)
        at = u[:, :, None] + math.sqrt(2) * sigma * spread  # (m, K, M)
        moved = torch.einsum("npk,nkM->nMp", effects.spread,
                             (wide @ at)[effects.cluster])  # fmt: skip
        phi = (fixed[:, None, :] + moved).reshape(rows.n * points, -1)
        f = rows.mean(phi, points).view(rows.n, points)
        squares = rows.w[:, None] * (rows.y[:, None] - f).square()
        total = torch.zeros(m, points, dtype=torch.float64)
        total = total.index_add(0, effects.cluster, squares) + at.square().sum(1)
        joint = self.log_weights - total / (2 * sigma**2)
        logs = torch.logsumexp(joint, 1) - L.diagonal(dim1=1, dim2=2).log().sum(1)
        # (2 pi sigma^2)^(-K/2) of the density, (2 sigma^2)^(K/2) of the new scale.
        constant = rows.n * (math.log(2 * math.pi) + 2 * log_sigma) - rows.log_weights
        return constant - 2 * (logs.sum() - 0.5 * m * K * math.log(math.pi))

    def _stepped(self, modes: Modes, u: Tensor, wide: Tensor, fixed: Tensor) -> Tensor:
        """Take the differentiable Newton step from the modes found."""
        rows, effects = self.rows, self.effects
        f, D = rows.slopes(fixed + effects.move(_times(wide, u)), True)
        weighted = rows.w * (rows.y - f)
        score = effects.gather(weighted[:, None] * effects.columns(D))
        fixed_root = wide.detach()
        eye = torch.eye(u.shape[1], dtype=torch.float64)
        left = eye + fixed_root.transpose(1, 2) @ modes.H @ fixed_root
        right = _times(wide.transpose(1, 2), score) - u
        return u + torch.linalg.solve(left, right[:, :, None])[:, :, 0]
