"""Deviance of a linear mixed model: value, exact gradient, average information.

The criterion is minus twice the (restricted) log-likelihood with the fixed effects and,
unless it is given, the residual variance profiled out (Bates, Mächler, Bolker & Walker
2015). The average information (Gilmour, Thompson & Cullis 1995) is the Hessian with its
traces replaced by quadratic forms that cost a solution each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf, log, nan, pi

import numpy as np
import torch

from .elimination import Factorisation, factorise
from .products import Products
from .structure import Structure

__all__ = ["Criterion", "Point"]


@dataclass(eq=False)
class Point:
    """The criterion at one value of the parameters.

    Attributes
    ----------
    x : ndarray
    value : float
        Minus twice the log-likelihood; infinite where it cannot be computed.
    factorisation : Factorisation or None
    criterion : Criterion
    """

    x: np.ndarray
    value: float
    factorisation: Factorisation | None
    criterion: Criterion

    @property
    def variance(self) -> float:
        """Residual variance at these parameters."""
        return self.criterion.variance(self.factorisation)

    @cached_property
    def modes(self) -> list[np.ndarray]:
        """``Z'Py`` of every factor, standardised; each (K, m)."""
        f = self.factorisation
        return [
            part[:, :, 0].cpu().numpy() for part in f.products.by_factor(f.residual)
        ]

    @cached_property
    def slopes(self) -> list[np.ndarray]:
        """Derivative in the standardised V of each factor; each (K, K), symmetric."""
        criterion = self.criterion
        traces = self.factorisation.traces(criterion.reml, criterion.exact)
        s2 = self.variance
        return [
            t.cpu().numpy() - (r @ r.T) / s2
            for t, r in zip(traces, self.modes, strict=True)
        ]

    @cached_property
    def gradient(self) -> np.ndarray:
        """Derivative in the parameters."""
        return self.structure.gradient(self.x, self.slopes)

    @property
    def structure(self) -> Structure:
        """The random effects."""
        return self.factorisation.products.structure

    @cached_property
    def information(self) -> np.ndarray:
        """Average information plus the bend of V: an approximate Hessian."""
        f, products = self.factorisation, self.factorisation.products
        directions = self.structure.directions(self.x)
        count, s2 = len(directions), self.variance
        parts = [np.zeros((g.k, g.m, count)) for g in products.structure.factors]
        quadratic = np.empty(count)
        for number, (j, D) in enumerate(directions):
            r = self.modes[j]
            parts[j][:, :, number] = D @ r
            quadratic[number] = (r * (D @ r)).sum()
        device = f.L.device
        U = products.from_factors(
            [torch.from_numpy(part).to(device) for part in parts],
            torch.zeros(products.p, count, dtype=torch.float64, device=device),
        )
        _, form = f.project(U)
        out = form.cpu().numpy() / s2
        if self.criterion.sigma is None:
            q = quadratic / s2
            out = out - np.outer(q, q) / self.criterion.df
        return out + self.structure.curvature(self.x, self.slopes)


@dataclass(eq=False)
class Criterion:
    """Minus twice the log-likelihood as a function of the covariance parameters.

    Attributes
    ----------
    products : Products
    reml : bool
    sigma : float or None
        Residual standard deviation, where it is known.
    exact : bool, default True
        False lets a sparse rest estimate the gradient's traces: for the way there.
    """

    products: Products
    reml: bool
    sigma: float | None = None
    exact: bool = True
    evaluations: int = 0

    @property
    def df(self) -> int:
        """Observations, less fixed effects for REML."""
        return self.products.n - (self.products.p if self.reml else 0)

    def variance(self, f: Factorisation) -> float:
        """Residual variance."""
        return f.rss / self.df if self.sigma is None else self.sigma**2

    def __call__(self, x: np.ndarray) -> Point:
        """Evaluate."""
        self.evaluations += 1
        f = factorise(self.products, self.products.structure.roots(x))
        return Point(x, inf if f is None else self.value(f), f, self)

    def value(self, f: Factorisation) -> float:
        """Minus twice the log-likelihood of a factorisation."""
        s2 = self.variance(f)
        if not s2 > 0:
            return nan
        fit = self.df if self.sigma is None else f.rss / s2
        return (
            f.logdet
            - self.products.log_weights
            + (f.logdet_x if self.reml else 0.0)
            + self.df * log(2 * pi * s2)
            + fit
        )
