"""Kernels of categories: one feature and one term for each level."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Generator, Tensor

from ...errors import ModelError
from ...families import Multinomial, Ordinal
from ...families import base as draws
from ...likelihood import pointwise
from .density_kernel import Derived, FeatureKernel, Observed, full

__all__ = ["MultinomialKernel", "OrdinalKernel"]


class CategoryKernel(FeatureKernel):
    """A response with few levels: one feature and one term for each level."""

    family: Ordinal | Multinomial

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Whether y is each of the levels, shape (levels, n)."""
        levels = torch.arange(self.family.levels, dtype=y.dtype, device=y.device)
        return (y == levels[:, None]).to(torch.float64)

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros_like(y, dtype=torch.float64)

    def probabilities(self, etas: tuple[Tensor, ...]) -> Tensor:
        """Probability of each level, shape (..., cells, levels)."""
        return torch.stack(self.terms(etas), -1).exp_()

    def sample(
        self,
        etas: tuple[Tensor, ...],
        generator: Generator | None = None,
        data: Observed | None = None,
    ) -> Tensor:
        """Draw one code for each cell."""
        self._options(data)
        below = self.probabilities(etas).cumsum(-1)[..., :-1]
        u = draws.uniform(below[..., :1], generator)
        return (below < u).sum(-1).to(below.dtype)

    def start(
        self,
        y: Tensor,
        size: Tensor | None = None,
        weights: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> tuple[float, ...]:
        """Predictors at the shares of the levels."""
        if size is not None:
            raise ModelError(f"{self.family.name} takes no number of trials (size)")
        self._limits(lower, upper)
        return self._from_shares(self.family.start(y, weights))

    def _from_shares(self, start: tuple[float, ...]) -> tuple[float, ...]:
        return start


class MultinomialKernel(CategoryKernel):
    """Multinomial logit against the first level."""

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log probability of each level."""
        return self.family.log_probabilities(*etas).unbind(-1)

    def mean(self, etas: tuple[Tensor, ...], data: Observed | None = None) -> Tensor:
        """Refuse: levels without an order have no mean."""
        raise ModelError(
            "multinomial levels have no mean; ask for their probabilities instead"
        )

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Whether the level is the predictor's, less its probability."""
        p = self.probabilities(etas).unbind(-1)
        levels = range(self.family.levels)
        return tuple(
            tuple((1.0 if m == j else 0.0) - p[j] for j in levels[1:]) for m in levels
        )

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Residuals and covariances of the levels: expected and observed agree."""
        p = self.probabilities(etas).unbind(-1)
        total = torch.stack(full(*weights)).sum(0)
        fitted = [total * share for share in p]
        first = [w - f for w, f in zip(weights[1:], fitted[1:], strict=True)]
        second = {
            (j - 1, k - 1): fitted[j] * (1.0 - p[j] if j == k else -p[k])
            for j in range(1, len(p))
            for k in range(j, len(p))
        }
        return full(*first), second


class OrdinalKernel(CategoryKernel):
    """Cumulative link model: P(y <= k) = F(threshold_k - eta).

    The first threshold is zero, so that the predictor keeps its intercept; each other
    is the one before it plus the exponential of a predictor of its own.
    """

    @property
    def predictors(self) -> tuple[str, ...]:
        """Mu, then a step for each threshold after the first."""
        return ("mu", *(f"step{k}" for k in range(2, self.family.levels)))

    @property
    def links(self) -> tuple[str, ...]:
        """Identity of mu, log of the steps."""
        return ("identity", *("log",) * (self.family.levels - 2))

    def _log_probabilities(self, *etas: Tensor) -> Tensor:
        """Log probability of each level, levels first."""
        link, (eta, *steps) = self.family.link, etas
        limits, height = [-eta], torch.zeros_like(eta)
        for step in steps:
            # A level too narrow for float64 keeps a width, and a finite logarithm.
            least = 1e-8 * (1.0 + height + eta.abs()).detach()
            height = height + torch.maximum(step.clamp(max=100.0).exp(), least)
            limits.append(height - eta)
        ends = link.log_inverse(limits[0]), link.log_complement(limits[-1])
        inner = [link.log_difference(*pair) for pair in pairwise(limits)]
        return torch.stack([ends[0], *inner, ends[1]])

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Log probability of each level."""
        return self._log_probabilities(*full(*etas)).unbind(0)

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the derivatives of the log probabilities."""
        etas = full(*etas)
        return tuple(
            pointwise(lambda *e, k=k: self._log_probabilities(*e)[k], etas, 1).first
            for k in range(self.family.levels)
        )

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Exact derivatives."""
        found = full(*etas, *weights)
        etas, weight = found[: len(etas)], torch.stack(found[len(etas) :])

        def total(*at: Tensor) -> Tensor:
            return (weight * self._log_probabilities(*at)).sum(0)

        point = pointwise(total, etas)
        return point.first, point.second

    def mean(self, etas: tuple[Tensor, ...], data: Observed | None = None) -> Tensor:
        """Return the expected code of the level, counted from zero."""
        self._options(data)
        p = self.probabilities(etas)
        return p @ torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)

    def _from_shares(self, start: tuple[float, ...]) -> tuple[float, ...]:
        thresholds = torch.tensor(start, dtype=torch.float64)
        steps = torch.log(thresholds.diff()).tolist()
        return -start[0], *steps
