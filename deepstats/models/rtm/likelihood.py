"""Poisson, NB1 and NB2 log-likelihoods of tallies, for many models at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...batched import BatchOptimum, batched_newton
from ...families.special import log1p_ratio, relative_log1p
from .tables import Tallies

__all__ = ["FAMILIES", "TOLERANCE", "CountModels", "constant", "fit_many"]

#: Families, as results name them, and how many parameters they have besides slopes.
FAMILIES = {"poisson": 0, "nb1": 1, "nb2": 1}
#: Logarithm of the overdispersion below which there is none; as `NegativeBinomial`.
_LOWEST = -18.0
_STEPS = 60
#: Newton decrement, in standard errors, below which a search is over: the last step is
#: taken and its gain counted, so that log-likelihoods are off by its third power.
TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class CountModels:
    """Log-likelihoods of A models, up to the constant of the data.

    Attributes
    ----------
    family : {"poisson", "nb1", "nb2"}
    X : Tensor, shape (rows, k) or (A, rows, k)
        The same columns in all models, or those of each.
    tallies : Tallies
        Of the rows: (rows,) or (A, rows).
    offset : Tensor, shape (rows,)
    present : Tensor of bool, shape (A, k)
        Which coefficients a model has; the others stay zero.
    steps : tuple of Tensor of int, or None
        Rows and numbers j, each (L,), of those units beyond j that are not none, where
        `tallies.beyond` has only these: (L,).
    """

    family: str
    X: Tensor
    tallies: Tallies
    offset: Tensor
    present: Tensor
    steps: tuple[Tensor, Tensor] | None = None

    def derivatives(self, x: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (a,), gradients (a, p) and information (a, p, p) of some models."""
        k = self.present.shape[1]
        X = self.X if self.X.ndim == 2 else self.X[which]
        eta = (X @ x[:, :k, None])[..., 0] if X.ndim == 3 else x[:, :k] @ X.T
        eta = eta + self.offset
        shape = self.tallies.units.ndim == 2
        N, S, T = (
            t[which] if shape else t
            for t in (self.tallies.units, self.tallies.crimes, self.tallies.beyond)
        )
        if self.family == "poisson":
            mu = N * eta.exp()
            value, first, second = (S * eta - mu).sum(1), (S - mu,), (mu,)
        else:
            point = _nb2 if self.family == "nb2" else _nb1
            value, first, second = point(N, S, T, self.steps, eta, x[:, k])
        return self._assembled(X, value, first, second, which)

    def _assembled(
        self,
        X: Tensor,
        value: Tensor,
        first: tuple[Tensor, ...],
        second: tuple[Tensor, ...],
        which: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Carry derivatives in eta and the overdispersion to the coefficients."""
        present = self.present[which]
        k = present.shape[1]
        if X.ndim == 2:
            gradient = first[0] @ X
            products = (X[:, :, None] * X[:, None, :]).reshape(len(X), -1)
            H = (second[0] @ products).reshape(-1, k, k)
        else:
            gradient = (first[0][:, None, :] @ X)[:, 0]
            H = (X * second[0][:, :, None]).transpose(1, 2) @ X
        gradient = torch.where(present, gradient, 0.0)
        both = present[:, :, None] & present[:, None, :]
        H = torch.where(both, H, torch.eye(k, dtype=H.dtype))
        if len(first) == 1:
            return value, gradient, H
        mixed = second[1] @ X if X.ndim == 2 else (second[1][:, None, :] @ X)[:, 0]
        mixed = torch.where(present, mixed, 0.0)
        H = torch.cat([H, mixed[:, None, :]], 1)
        last = torch.cat([mixed, second[2][:, None]], 1)
        H = torch.cat([H, last[:, :, None]], 2)
        return value, torch.cat([gradient, first[1][:, None]], 1), H


Steps = tuple[Tensor, Tensor] | None


def _nb2(
    N: Tensor, S: Tensor, T: Tensor, steps: Steps, eta: Tensor, theta: Tensor
) -> tuple:
    """NB2: the sums over j are those of all units together.

    As `countpoints.count_point`, summed over the units of a row.
    """
    alpha = theta.exp()
    J = T.shape[-1] if steps is None else int(steps[1].max()) + 1
    j = alpha[:, None] * torch.arange(J, dtype=eta.dtype)
    share = j / (1 + j)
    every = T.new_zeros(J)
    total = T.sum(-2) if steps is None else every.index_add_(0, steps[1], T)
    rising, first_sum, second_sum = (
        (total * s).sum(-1) for s in (torch.log1p(j), share, share / (1 + j))
    )
    mu = eta.exp()
    x = alpha[:, None] * mu
    rel, inverse = relative_log1p(x), 1 / (1 + x)
    part = x * inverse
    resid, mass = (S - N * mu) * inverse, N * mu
    # A far start may have an x at which 1 + rel has no digits left.
    value = rising + (S * (eta - torch.log1p(x)) - mass * log1p_ratio(x)).sum(1)
    slope = first_sum + (mass * rel - (S - mass) * part).sum(1)
    curve = (mass * (part + rel) + resid * part).sum(1) - second_sum
    second = ((mass + S * x) * inverse * inverse, resid * part, curve)
    return value, (resid, slope), second


def _nb1(
    N: Tensor, S: Tensor, T: Tensor, steps: Steps, eta: Tensor, theta: Tensor
) -> tuple:
    """NB1: the sums over j are those of each row."""
    ratio = (theta[:, None] - eta).exp()
    if steps is None:
        aj = ratio[..., None] * torch.arange(T.shape[-1], dtype=eta.dtype)
    else:
        aj = ratio[:, steps[0]] * steps[1]

    def total(terms: Tensor) -> Tensor:
        if steps is None:
            return (T * terms).sum(-1)
        return torch.zeros_like(eta).index_add_(1, steps[0], T * terms)

    share = aj / (1 + aj)
    rising, first_sum, second_sum = (
        total(terms) for terms in (torch.log1p(aj), share, share / (1 + aj))
    )
    mu, alpha = eta.exp(), theta.exp()[:, None]
    rel, p = relative_log1p(alpha), alpha / (1 + alpha)
    mass = N * mu
    value = rising + S * (eta - torch.log1p(alpha)) - mass * log1p_ratio(alpha)
    slope = first_sum - S * p + mass * (p + rel)
    inner = p * (1 - p)
    curve = S * inner - second_sum - mass * (inner - p - rel)
    second = (
        mass * (1 + rel) - second_sum,
        second_sum - mass * (p + rel),
        curve.sum(1),
    )
    return value.sum(1), (S - mass * (1 + rel) - first_sum, slope.sum(1)), second


def fit_many(
    models: CountModels, start: Tensor, tolerance: float = TOLERANCE
) -> BatchOptimum:
    """Maximise every model's likelihood.

    Parameters
    ----------
    models : CountModels
    start : Tensor, shape (A, p)
        Coefficients and, of negative binomials, the log of the overdispersion.
    tolerance : float, default 1e-4
        On the Newton decrement, in standard errors.

    Returns
    -------
    BatchOptimum
    """
    lower = torch.full((start.shape[1],), -torch.inf, dtype=start.dtype)
    if models.family != "poisson":
        lower[-1] = _LOWEST
    return batched_newton(
        models.derivatives, start, lower=lower, max_iterations=_STEPS,
        tolerance=tolerance,
    )  # fmt: skip


def constant(y: Tensor, weights: Tensor | None = None) -> float:
    """Return what a log-likelihood of counts has besides: minus the sum of log y!."""
    logs = torch.lgamma(y + 1)
    return -float((logs if weights is None else logs * weights).sum())
