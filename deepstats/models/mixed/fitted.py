"""What a fit of a linear mixed model leaves behind, in the units of the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from ...compute import Compute
from ...errors import ConvergenceWarning, caution
from .criterion import Criterion, Point
from .elimination import Factorisation
from .information import Curvature
from .light import LazyPoint
from .products import Products
from .rest import Rest
from .search import Found, minimise
from .structure import Structure

if TYPE_CHECKING:
    from .degrees import KenwardRoger
    from .rowvariance import Inverse

__all__ = ["Fitted"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """The optimum, and what follows from its equations.

    Attributes
    ----------
    found : Found
        Where the search ended.
    criterion : Criterion
        The deviance as a function of the parameters.
    compute : Compute
    """

    found: Found
    criterion: Criterion
    compute: Compute

    #: Parameters of the residuals' covariance: none.
    residual_size: ClassVar[int] = 0

    def with_residuals(
        self, H: np.ndarray, g: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the residuals' parameters, here none, to a Hessian and a gradient."""
        return H, g

    @property
    def point(self) -> Point:
        """The optimum."""
        return self.found.point

    @property
    def factorisation(self) -> Factorisation:
        """The equations at the optimum."""
        return self.point.factorisation

    @property
    def products(self) -> Products:
        """Cross-products of the data."""
        return self.criterion.products

    @cached_property
    def by_ml(self) -> Fitted:
        """The fit by maximum likelihood: this one, or a refit from its optimum."""
        if not self.reml:
            return self
        criterion = Criterion(self.products, False, self.criterion.sigma)
        found = minimise(criterion, self.x)
        if not found.converged:
            caution(
                f"the refit by maximum likelihood did not converge: {found.message}.",
                ConvergenceWarning,
            )
        return Fitted(found, criterion, self.compute)

    @property
    def structure(self) -> Structure:
        """The random effects."""
        return self.products.structure

    @property
    def reml(self) -> bool:
        """Whether the criterion is restricted."""
        return self.criterion.reml

    @property
    def x(self) -> np.ndarray:
        """Covariance parameters of the search (standardised; see `Structure`)."""
        return self.point.x

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        return self.point.variance**0.5

    @cached_property
    def roots(self) -> list[np.ndarray]:
        """Lower factor of each term's covariance over sigma^2, in the data's units."""
        return self.structure.raw_roots(self.x)

    @cached_property
    def covariances(self) -> list[np.ndarray]:
        """Covariance of the effects of each term; (K, K)."""
        return [self.sigma**2 * root @ root.T for root in self.roots]

    @property
    def beta(self) -> np.ndarray:
        """Fixed effects."""
        if isinstance(self.point, LazyPoint):
            return self.point.light.beta
        return self.factorisation.beta.cpu().numpy()

    @cached_property
    def cov_beta(self) -> np.ndarray:
        """Covariance of the fixed effects."""
        if isinstance(self.point, LazyPoint):
            return self.sigma**2 * self.point.light.cov_beta
        return self.sigma**2 * self.factorisation.cov_beta.cpu().numpy()

    @cached_property
    def units(self) -> list[np.ndarray]:
        """Standardisation of each factor's columns: ``b = U b~``."""
        return [
            torch.block_diag(
                *(torch.from_numpy(t.U) for t in self.structure.of(j))
            ).numpy()
            for j in range(len(self.structure.factors))
        ]

    @cached_property
    def modes(self) -> list[np.ndarray]:
        """Conditional modes of each factor's effects; (m, K)."""
        parts = self.products.by_factor(self.factorisation.solution)
        return [
            (U @ part[:, :, 0].cpu().numpy()).T
            for U, part in zip(self.units, parts, strict=True)
        ]

    @cached_property
    def mode_variances(self) -> list[np.ndarray]:
        """Conditional variances of each factor's effects; (m, K, K).

        The fixed effects are taken as known, as in lme4.
        """
        diagonal, _, _ = self.factorisation.blocks(with_x=False)
        return [
            self.sigma**2
            * np.einsum("ab,bcm,dc->mad", U, part.cpu().numpy(), U, optimize=True)
            for U, part in zip(self.units, diagonal, strict=True)
        ]

    @cached_property
    def inverse(self) -> Inverse:
        """The inverse of Henderson's equations, for variances of rows."""
        from .rowvariance import Inverse

        if not isinstance(self.factorisation.rest, Rest):
            self.factorisation.rest.inverse(True)  # Says why there is none.
        return Inverse(self.factorisation)

    def by_term(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Columns of each term, in the order of the formula, from those of factors."""
        return [parts[t.factor][:, t.at] for t in self.structure.terms]

    @cached_property
    def term_modes(self) -> list[np.ndarray]:
        """Conditional modes of each term, in the order of the formula; (m, K)."""
        return self.by_term(self.modes)

    @cached_property
    def curvature(self) -> Curvature:
        """Second derivatives at the optimum."""
        return Curvature(self.point)

    @cached_property
    def kenward_roger(self) -> KenwardRoger:
        """Small-sample covariance of the fixed effects (REML)."""
        from .degrees import adjusted

        return adjusted(self)

    def on_edge(self, j: int) -> np.ndarray:
        """Which effects of term j have a variance of zero or a singular covariance."""
        term = self.structure.terms[j]
        if term.covariance is not None:
            return term.covariance.zeros(self.x[term.params])
        scaled = np.linalg.solve(term.U, self.roots[j])
        sizes = np.linalg.svd(scaled, compute_uv=False)
        small = 1e-4 * max(1.0, sizes.max())
        if term.variances:
            return np.abs(np.diag(scaled)) <= small
        return np.full(term.k, sizes.min() <= small)

    @cached_property
    def singular(self) -> list[str]:
        """Terms whose covariance is singular, and how, in words."""
        out = []
        for term in self.structure.terms:
            if term.covariance is not None:
                edges = term.covariance.edges(self.x[term.params])
                out += [f"{text} in {term.text}" for text in edges]
                continue
            scaled = term.root(self.x)
            sizes = (
                np.abs(np.diag(scaled))
                if term.variances
                else np.linalg.svd(scaled, compute_uv=False)
            )
            small = 1e-4 * max(1.0, sizes.max())
            if term.variances:
                for name, size in zip(term.names, np.diag(scaled), strict=True):
                    if abs(size) <= small:
                        out.append(f"the variance of {name} in {term.text} is zero")
            elif sizes.min() <= small:
                rank = int((sizes > small).sum())
                out.append(
                    f"the {term.k} effects of {term.text} vary in {rank} "
                    f"dimension{'' if rank == 1 else 's'} only"
                    if rank
                    else f"all variances of {term.text} are zero"
                )
        return out
