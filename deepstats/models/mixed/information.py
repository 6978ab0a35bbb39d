"""Second derivatives at the optimum: what degrees of freedom and their like rest on.

In the covariances V of the factors everything is linear, ``Sigma = W^-1 + Z V Z'``, and
with ``G_a = Z D_a Z'`` for a direction D_a of V

    -2 log-likelihood'' = -tr(P G_a P G_b) + 2 y'P G_a P G_b P y / sigma^2,

P being the inverse of Sigma in the trace for maximum likelihood. Quadratic forms cost a
solution each. The traces have a closed form with one grouping factor; otherwise they
are differences of ``tr(P G_a)``, which the factorisation gives exactly: two more
factorisations for each parameter, and nothing that grows with the square of q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .blocks import apply, multiply
from .criterion import Point
from .elimination import Factorisation, factorise, identity_plus_minus
from .light import DenseCriterion, LazyPoint, LightPoint
from .products import Products
from .structure import Structure, lower_factor

__all__ = ["Curvature", "Direction", "pseudo_inverse"]

# Up to this many effects Z'PZ is quicker written down than differenced.
_FEW = 250
# Differences step this far, in standard errors of the parameter: with an error of the
# second order on both sides, of the third on one.
_STEP = 3e-4
_ONE_SIDED = 1e-3
# From so many columns on sums over four of them take too much memory.
_WIDE = 12
# Eigenvalues below this share of the largest (of a scaled matrix) count as zero.
_ZERO = 1e-9

Direction = tuple[int, np.ndarray]
"""A factor, and a symmetric direction of its standardised V."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Derivatives of criterion and covariance of the fixed effects at a point.

    Parameters of the criterion are those of the search and, unless it is known, the
    logarithm of the residual variance; only the fixed effects are profiled out.

    Attributes
    ----------
    point : Point
    """

    point: Point

    @property
    def factorisation(self) -> Factorisation:
        """The equations at the point."""
        return self.point.factorisation

    @property
    def products(self) -> Products:
        """Cross-products of the data."""
        return self.point.criterion.products

    @cached_property
    def _dense(self) -> LightPoint | None:
        """The point in one dense matrix, where it was found so."""
        light = self.point.light if isinstance(self.point, LazyPoint) else None
        return light if light and isinstance(light.criterion, DenseCriterion) else None

    @property
    def structure(self) -> Structure:
        """The random effects."""
        return self.products.structure

    @property
    def reml(self) -> bool:
        """Whether the criterion is restricted."""
        return self.point.criterion.reml

    # -- directions ------------------------------------------------------------------

    @cached_property
    def directions(self) -> list[Direction]:
        """Derivative of V in each parameter."""
        return self.structure.directions(self.point.x)

    @cached_property
    def free(self) -> np.ndarray:
        """Parameters not at their bound, nor without meaning at another's."""
        return self.structure.determined(self.point.x)

    @cached_property
    def linear(self) -> list[Direction]:
        """Positive semi-definite directions that span all of V.

        Rank one, ``d d'``, so that V can move along each of them even from the edge of
        its range; columns are scaled by their variances, so that sums of two of them
        are about both.
        """
        scales = [self._scales(j) for j in range(len(self.structure.factors))]
        out = []
        for term in self.structure.terms:
            k, s = self.structure.factors[term.factor].k, scales[term.factor]
            for r, c in zip(*term.triangle, strict=True):
                if term.variances and r != c:
                    continue
                d = np.zeros(k)
                for place in {int(r), int(c)}:
                    d[term.at.start + place] = s[term.at.start + place]
                out.append((term.factor, np.outer(d, d)))
        return out

    def _scales(self, j: int) -> np.ndarray:
        root, modes = self.point.structure.roots(self.point.x)[j], self.point.modes[j]
        variances = (root**2).sum(1)
        # Where a variance is zero, what it could be: that of a mode under the data.
        floor = 1e-3 / np.maximum((modes**2).mean(1) / self.point.variance, 1e-12)
        return np.sqrt(np.where(variances > 1e-8, variances, np.minimum(floor, 1.0)))

    # -- fixed effects ---------------------------------------------------------------

    @cached_property
    def weights(self) -> tuple[list[np.ndarray], np.ndarray]:
        """``Z'Sigma^-1 X C`` by factor, each (K, m, p), and ``C = (X'Sigma^-1 X)^-1``.

        Of the columns of the design. Solving the penalised equations for unit fixed
        effects gives ``b = -V Z'Sigma^-1 X C``, and from their rows for Z
        ``-V^-1 b = Z'WZ b + Z'WX C``, which needs no inverse of V.
        """
        found, C = self._weights
        R = self.products.R.cpu().numpy()
        return [part @ R.T for part in found], R @ C @ R.T

    @cached_property
    def _weights(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The same for the orthonormal columns."""
        if self._dense is not None:
            return self._dense.criterion.weights(self._dense)
        products, device = self.products, self.products.G.device
        if self._one:
            return self._weights_of_one()
        eye = torch.eye(products.p, dtype=torch.float64, device=device)
        empty = [
            torch.zeros(f.k, f.m, products.p, dtype=torch.float64, device=device)
            for f in self.structure.factors
        ]
        solution = self.factorisation.solve(products.from_factors(empty, eye))
        found = products.by_factor(products.multiply(solution))
        return [part.cpu().numpy() for part in found], solution.X.cpu().numpy()

    def _weights_of_one(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Weights of one grouping factor, level by level."""
        p, stage = self.products.p, self.factorisation.stages[0]
        X = stage.XY[:, :, :p].contiguous()
        WX = apply(stage.W, X)
        M = (X - apply(stage.D, WX)).cpu().numpy()
        S = self.products.G[:p, :p] - X.flatten(0, 1).T @ WX.flatten(0, 1)
        C = np.linalg.inv(S.cpu().numpy())
        return [M @ C], C

    def covariance_slopes(self, directions: Sequence[Direction]) -> np.ndarray:
        """Differentiate ``(X'Sigma^-1 X)^-1`` in each direction; (count, p, p)."""
        parts, _ = self.weights
        p = self.products.p
        out = np.empty((len(directions), p, p))
        for j, part in enumerate(parts):
            rows = [a for a, (f, _) in enumerate(directions) if f == j]
            if rows and len(part) > _WIDE:
                D = np.stack([directions[a][1] for a in rows])
                moved = np.einsum("ars,smp->armp", D, part)
                out[rows] = np.einsum("rmq,armp->aqp", part, moved)
            elif rows:
                k = len(part)
                gram = _gram(part).transpose(0, 2, 1, 3).reshape(k * k, p * p)
                D = np.stack([directions[a][1].ravel() for a in rows])
                out[rows] = (D @ gram).reshape(len(rows), p, p)
        return out

    @cached_property
    def free_slopes(self) -> np.ndarray:
        """Derivative of ``(X'Sigma^-1 X)^-1`` in each free parameter; (count, p, p)."""
        return self.covariance_slopes(
            [self.directions[a] for a in np.flatnonzero(self.free)]
        )

    # -- second derivatives ----------------------------------------------------------

    def quadratic(self, directions: Sequence[Direction]) -> np.ndarray:
        """``y'P G_a P G_b P y / sigma^2``; (count, count)."""
        modes = self.point.modes
        parts = [np.zeros((f.k, f.m, len(directions))) for f in self.structure.factors]
        for number, (j, D) in enumerate(directions):
            parts[j][:, :, number] = D @ modes[j]
        return self.project(parts) / self.point.variance

    def project(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """``U'Z'PZ U`` of columns given by factor, each (K, m, c)."""
        if self._one:
            N, C = self._weights
            HU = np.einsum("rsm,smc->rmc", self._own, parts[0])
            U, HU, M = (_flat(part) for part in (parts[0], HU, N[0]))
            MU = np.linalg.solve(C, M.T @ U)
            return U.T @ HU - MU.T @ C @ MU
        if self._few:
            U = np.concatenate([_flat(part) for part in parts])
            return U.T @ self._whole @ U
        return self._project(parts)

    def _project(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Project by a solution for each column."""
        device, c = self.products.G.device, parts[0].shape[2]
        U = self.products.from_factors(
            [torch.from_numpy(part).to(device) for part in parts],
            torch.zeros(self.products.p, c, dtype=torch.float64, device=device),
        )
        return self.factorisation.project(U)[1].cpu().numpy()

    @property
    def _one(self) -> bool:
        """Whether all is level by level."""
        return self._dense is None and len(self.structure.factors) == 1

    @property
    def _few(self) -> bool:
        """Whether all of ``Z'PZ`` is small."""
        return sum(f.q for f in self.structure.factors) <= _FEW

    @cached_property
    def _own(self) -> np.ndarray:
        """Blocks of ``Z'Sigma^-1 Z`` of one grouping factor; (K, K, m)."""
        stage = self.factorisation.stages[0]
        return multiply(stage.D, identity_plus_minus(stage)).cpu().numpy()

    @cached_property
    def _whole(self) -> np.ndarray:
        """``Z'PZ`` of few effects, by factor and in it by column and level."""
        if self._dense is not None:
            return self._dense.criterion.whole(self._dense)
        factors = self.structure.factors
        eye = np.eye(sum(f.q for f in factors))
        return self._project(
            [
                eye[at].reshape(f.k, f.m, -1)
                for at, f in zip(self._places, factors, strict=True)
            ]
        )

    @property
    def _places(self) -> list[slice]:
        """Where the effects of each factor are among all."""
        ends = np.cumsum([f.q for f in self.structure.factors]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]

    def slopes(self, directions: Sequence[Direction]) -> np.ndarray:
        """``y'P G_a P y / sigma^2``."""
        modes = self.point.modes
        forms = [(modes[j] * (D @ modes[j])).sum() for j, D in directions]
        return np.array(forms) / self.point.variance

    def traces(self, directions: Sequence[Direction]) -> np.ndarray:
        """``tr(P G_a)``, of the criterion's P."""
        return _contract(self.factorisation.traces(self.reml), directions)

    def information(self, directions: Sequence[Direction]) -> np.ndarray:
        """``tr(P G_a P G_b)``: twice the expected information; (count, count)."""
        if not directions:
            return np.zeros((0, 0))
        if self._one:
            return self._closed(directions)
        if self._dense is not None:
            self._dense.slopes  # noqa: B018 -- what the next line needs of them
            return self._dense.criterion._squares(self._dense, directions)
        if self._few:
            return self._written_down(directions)
        at = [j for j, _ in directions]
        squared = self.factorisation.squared_traces(self.reml, set(at))
        if squared is not None:
            scale = np.array([D[0, 0] for _, D in directions])
            return squared[np.ix_(at, at)] * scale[:, None] * scale
        if self.structure.structured:
            return self._by_parameters(directions)
        return self._differences(directions)

    def _closed(self, directions: Sequence[Direction]) -> np.ndarray:
        """Of one grouping factor, level by level."""
        k = len(self._own)
        if k > _WIDE:
            return self._by_direction(np.stack([d for _, d in directions]))
        flat = self._own.reshape(k * k, -1)
        four = flat @ flat.T
        D = np.stack([d for _, d in directions])
        rest = np.zeros((len(D), len(D)))
        if self.reml:
            parts, C = self._weights
            N = parts[0]
            S = np.linalg.inv(C)
            B = ((N @ S)[:, None] * N).sum(3).reshape(k * k, -1)
            cross = flat @ B.T
            four = four - cross - cross.T
            p = len(C)
            gram = _gram(N).transpose(0, 2, 1, 3).reshape(k * k, p * p)
            T = (D.reshape(len(D), k * k) @ gram).reshape(len(D), p, p) @ S
            turned = T.transpose(0, 2, 1).reshape(len(D), p * p)
            rest = T.reshape(len(D), p * p) @ turned.T
        # D_a[r, s] H[s, t] D_b[t, u] H[u, r]
        middle = four.reshape(k, k, k, k).transpose(3, 0, 1, 2).reshape(k * k, k * k)
        D = D.reshape(len(D), k * k)
        return D @ middle @ D.T + rest

    def _by_direction(self, D: np.ndarray) -> np.ndarray:
        """Of one grouping factor with many columns, one direction after another."""
        count, H = len(D), self._own
        own = np.einsum("rsm,asc->arcm", H, D)
        turned = own.transpose(0, 2, 1, 3).reshape(count, -1)
        out = own.reshape(count, -1) @ turned.T
        if self.reml:
            parts, C = self._weights
            N, S = parts[0], np.linalg.inv(C)
            B = np.einsum("rmp,smp->rsm", N @ S, N)
            cross = np.einsum("rsm,asc->arcm", B, D).reshape(count, -1) @ turned.T
            DN = np.einsum("ars,smp->armp", D, N)
            T = np.einsum("rmq,armp->aqp", N, DN) @ S
            out = out - cross - cross.T
            out += T.reshape(count, -1) @ T.transpose(0, 2, 1).reshape(count, -1).T
        return (out + out.T) / 2

    def _written_down(self, directions: Sequence[Direction]) -> np.ndarray:
        """Of few effects, from all of ``Z'PZ``."""
        factors, places, H = self.structure.factors, self._places, self._whole
        if not self.reml:
            parts, C = self._weights
            N = np.concatenate([_flat(part) for part in parts])
            H = H + N @ np.linalg.solve(C, N.T)
        out = np.zeros((len(directions), len(directions)))
        for i, one in enumerate(factors):
            for j, two in enumerate(factors):
                rows = [a for a, (f, _) in enumerate(directions) if f == i]
                columns = [b for b, (f, _) in enumerate(directions) if f == j]
                if not rows or not columns:
                    continue
                X = H[places[i], places[j]].reshape(one.k, one.m, two.k, two.m)
                X = X.transpose(0, 2, 1, 3).reshape(one.k * two.k, -1)
                # D_a[r, s] H[s, t] D_b[t, u] H[u, r]
                four = (X @ X.T).reshape(one.k, two.k, one.k, two.k)
                four = four.transpose(2, 0, 1, 3).reshape(one.k**2, two.k**2)
                A = np.stack([directions[a][1].ravel() for a in rows])
                B = np.stack([directions[b][1].ravel() for b in columns])
                out[np.ix_(rows, columns)] = A @ four @ B.T
        return out

    def _differences(self, directions: Sequence[Direction]) -> np.ndarray:
        """Of any structure: ``-d tr(P G_a) / dV_b``, in directions V can move along."""
        basis = self.linear
        to_basis = self._in_basis(directions)
        needed = np.abs(to_basis).max(0) > 0
        steps = 1 / np.sqrt(np.maximum(np.diag(self.quadratic(basis)) / 2, 1e-300))
        rows = np.zeros((len(basis), len(directions)))
        for b in np.flatnonzero(needed):
            rows[b] = -self._slope(basis[b], min(steps[b], 1.0), directions)
        out = to_basis @ rows
        return (out + out.T) / 2

    def _by_parameters(self, directions: Sequence[Direction]) -> np.ndarray:
        """Of any structure, along the free parameters, whose directions are given."""
        x, at = self.point.x, np.flatnonzero(self.free)
        assert len(at) == len(directions)
        forms = np.maximum(np.diag(self.quadratic(directions)) / 2, 1e-300)
        lower = self.structure.lower

        def traces(j: int, h: float) -> np.ndarray:
            moved = x.copy()
            moved[j] += h
            found = factorise(self.products, self.structure.roots(moved))
            if found is None:
                raise ArithmeticError("the model's equations are singular.")
            return _contract(found.traces(self.reml), directions)

        out = np.empty((len(at), len(at)))
        for row, (j, form) in enumerate(zip(at, forms, strict=True)):
            h = min(_STEP / np.sqrt(form), (x[j] - lower[j]) / 2, 1e-2)
            out[row] = (traces(j, -h) - traces(j, h)) / (2 * h)
        return (out + out.T) / 2

    def _slope(
        self, along: Direction, step: float, directions: Sequence[Direction]
    ) -> np.ndarray:
        """Differentiate the traces along a positive semi-definite direction."""

        def at(t: float) -> np.ndarray:
            moved = list(roots)
            moved[j] = lower_factor(roots[j] @ roots[j].T + t * D)
            found = factorise(self.products, moved)
            if found is None:
                raise ArithmeticError("the model's equations are singular.")
            return _contract(found.traces(self.reml), directions)

        j, D = along
        roots = self.structure.roots(self.point.x)
        h = _STEP * step
        least = np.linalg.eigvalsh(roots[j] @ roots[j].T - h * D)[0]
        if least > 0:
            return (at(h) - at(-h)) / (2 * h)
        h = _ONE_SIDED * step
        here = self.traces(directions)
        return (18 * at(h) - 9 * at(2 * h) + 2 * at(3 * h) - 11 * here) / (6 * h)

    def _in_basis(self, directions: Sequence[Direction]) -> np.ndarray:
        """Directions as combinations of those of the basis."""
        out = np.zeros((len(directions), len(self.linear)))
        for j in range(len(self.structure.factors)):
            columns = [b for b, (f, _) in enumerate(self.linear) if f == j]
            rows = [a for a, (f, _) in enumerate(directions) if f == j]
            if not rows:
                continue
            A = np.stack([self.linear[b][1].ravel() for b in columns], axis=1)
            size = np.linalg.norm(A, axis=0)
            Y = np.stack([directions[a][1].ravel() for a in rows], axis=1)
            found = np.linalg.lstsq(A / size, Y, rcond=None)[0] / size[:, None]
            found[np.abs(found) < 1e-13 * np.abs(found).max(initial=0.0)] = 0.0
            out[np.ix_(rows, columns)] = found.T
        return out

    @cached_property
    def hessian(self) -> np.ndarray:
        """Of the criterion, in free parameters and the log residual variance."""
        criterion, at = self.point.criterion, np.flatnonzero(self.free)
        directions = [self.directions[a] for a in at]
        if self._dense is not None:
            inner = self._dense.unprofiled[np.ix_(at, at)]
        else:
            inner = self.structure.curvature(self.point.x, self.point.slopes)
            inner = inner[np.ix_(at, at)]
            if directions:
                inner += 2 * self.quadratic(directions) - self.information(directions)
        if criterion.sigma is not None:
            return inner
        out = np.empty((len(at) + 1,) * 2)
        out[:-1, :-1] = inner
        out[-1, :-1] = out[:-1, -1] = self.slopes(directions)
        out[-1, -1] = criterion.df
        return out

    @cached_property
    def covariance(self) -> np.ndarray:
        """Asymptotic covariance of those parameters."""
        return 2 * pseudo_inverse(self.hessian)


def pseudo_inverse(H: np.ndarray) -> np.ndarray:
    """Inverse on the directions of positive curvature, as lmerTest and pbkrtest do."""
    if not len(H):
        return H
    d = 1 / np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    values, vectors = np.linalg.eigh(H * d[:, None] * d)
    keep = values > _ZERO * max(values[-1], 1e-300)
    half = vectors[:, keep] * d[:, None]
    return (half / values[keep]) @ half.T


def _flat(part: np.ndarray) -> np.ndarray:
    """Levels below one another: (K, m, c) gives (K m, c), also without columns."""
    k, m, c = part.shape
    return part.reshape(k * m, c)


def _gram(part: np.ndarray) -> np.ndarray:
    """``sum_i N_i[r] N_i[s]'`` over levels; (K, p, K, p)."""
    k, m, p = part.shape
    flat = part.transpose(1, 0, 2).reshape(m, k * p)
    return (flat.T @ flat).reshape(k, p, k, p)


def _contract(
    traces: Sequence[torch.Tensor], directions: Sequence[Direction]
) -> np.ndarray:
    found = [t.cpu().numpy() for t in traces]
    return np.array([(found[j] * D).sum() for j, D in directions])
