"""Families for categories: cumulative link models and multinomial logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from deepstats.families import base
from deepstats.families.base import Family
from deepstats.families.links import (
    IDENTITY,
    LOGIT,
    REAL,
    UNIT,
    Link,
    get_link,
    link_names,
)

__all__ = ["CumulativeLink", "Multinomial", "Ordinal"]


def _check_levels(name: str, levels: int) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"{name} needs a whole number of levels >= 2, got {levels!r}")


def _check_codes(y: Tensor, levels: int, name: str) -> None:
    base.check_real(y.to(torch.float64), name)
    advice = f"codes must be whole numbers from 0 to {levels - 1}"
    bad = (y < 0) | (y >= levels) | (y != y.to(torch.float64).round())
    base.refuse(bad, y, name, "not codes of a level", advice)


def _shares(y: Tensor, weights: Tensor | None, levels: int) -> Tensor:
    """Weighted share of each level, with half an observation added to each."""
    w = torch.ones(y.shape, dtype=torch.float64, device=y.device)
    w = w if weights is None else weights.to(w)
    total = torch.zeros(levels, dtype=torch.float64, device=y.device)
    total = total.index_add(0, y.long(), w) + 0.5
    return total / total.sum()


def _draw(probabilities: Tensor, generator: Generator | None) -> Tensor:
    """Codes drawn by inverting the distribution function of each row."""
    u = base.uniform(probabilities[..., :1], generator)
    below = probabilities.cumsum(-1)[..., :-1] < u
    return below.sum(-1)


@dataclass(frozen=True)
class Ordinal:
    """Cumulative link model: P(y <= k) = F(threshold_k - eta).

    Parameters
    ----------
    levels : int
        Number of ordered levels K, coded 0 .. K - 1.
    link : Link or str
        Link whose inverse is F: logit, probit, cloglog, loglog or cauchit. As in
        MASS::polr, cloglog has F(q) = 1 - exp(-exp(q)), loglog exp(-exp(-q)).

    References
    ----------
    McCullagh, P. (1980). Regression models for ordinal data. Journal of the Royal
    Statistical Society B 42, 109-142.
    """

    name: ClassVar[str] = "ordinal"
    predictors: ClassVar[tuple[str, ...]] = ("mu",)
    sized: ClassVar[bool] = False
    levels: int
    link: Link = LOGIT

    def __post_init__(self) -> None:
        """Check the number of levels and the link."""
        _check_levels(self.name, self.levels)
        link = get_link(self.link)
        if link.domain != UNIT:
            names = [n for n in link_names(UNIT).split(", ") if n in _CUMULATIVE]
            raise ValueError(
                f"ordinal cannot use the {link.name} link; allowed: {', '.join(names)}"
            )
        object.__setattr__(self, "link", link)

    @property
    def links(self) -> tuple[Link, ...]:
        """The link of the cumulative probabilities."""
        return (self.link,)

    def log_prob(self, y: Tensor, eta: Tensor, thresholds: Tensor) -> Tensor:
        """Point-wise log probability of the observed levels.

        Parameters
        ----------
        y : Tensor
            Codes 0 .. K - 1, shape (n,).
        eta : Tensor
            Linear predictors without an intercept, shape (..., n).
        thresholds : Tensor
            Increasing thresholds, shape (..., K - 1). Where two of them are not in
            order the result is NaN.

        Returns
        -------
        Tensor
            Shape (..., n).
        """
        code, last = y.long(), self.levels - 1
        upper = thresholds[..., code.clamp(max=last - 1)] - eta
        lower = thresholds[..., (code - 1).clamp(min=0)] - eta
        return self.log_interval(code, lower, upper)

    def log_interval(self, code: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Log probability of falling between two limits; one for the end levels."""
        last = self.levels - 1
        inner = (code > 0) & (code < last)
        # Rows at an end get any ordered pair: that branch is not taken there.
        gap = self.link.log_difference(torch.where(inner, lower, upper - 1), upper)
        ends = torch.where(
            code == 0, self.link.log_inverse(upper), self.link.log_complement(lower)
        )
        return torch.where(inner, gap, ends)

    def limits(
        self, code: Tensor, thresholds: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper threshold of each row's level; a neighbour's at the ends.

        Parameters
        ----------
        code : Tensor
        thresholds : tuple of Tensor
            K - 1, each of a shape that broadcasts with `code`.
        """
        code, *each = torch.broadcast_tensors(code, *thresholds)
        table = torch.stack(each, dim=-1)
        low = table.gather(-1, (code - 1).clamp(min=0)[..., None])
        high = table.gather(-1, code.clamp(max=self.levels - 2)[..., None])
        return low[..., 0], high[..., 0]

    def log_prob_at(self, y: Tensor, *etas: Tensor) -> Tensor:
        """Point-wise log probability with a predictor for every threshold.

        Parameters
        ----------
        y : Tensor
            Codes.
        *etas : Tensor
            The location, then K - 1 thresholds.
        """
        code = y.long()
        low, high = (t - etas[0] for t in self.limits(code, etas[1:]))
        return self.log_interval(code, low, high)

    def probabilities_at(self, *etas: Tensor) -> Tensor:
        """Probability of every level, (..., K), with a predictor for every threshold.

        Parameters
        ----------
        *etas : Tensor
            The location, then K - 1 thresholds.
        """
        codes = [torch.full_like(etas[0], k) for k in range(self.levels)]
        return torch.stack([self.log_prob_at(y, *etas) for y in codes], dim=-1).exp()

    def log_probabilities(self, eta: Tensor, thresholds: Tensor) -> Tensor:
        """Log probability of every level, shape (..., n, K)."""
        q = thresholds[..., None, :] - eta[..., None]
        first = self.link.log_inverse(q[..., :1])
        inner = self.link.log_difference(q[..., :-1], q[..., 1:])
        last = self.link.log_complement(q[..., -1:])
        return torch.cat([first, inner, last], dim=-1)

    def probabilities(self, eta: Tensor, thresholds: Tensor) -> Tensor:
        """Probability of every level, shape (..., n, K)."""
        return torch.exp(self.log_probabilities(eta, thresholds))

    def sample(
        self, eta: Tensor, thresholds: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Draw one code for each linear predictor."""
        return _draw(self.probabilities(eta, thresholds), generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse codes outside 0 .. K - 1."""
        if size is not None:
            raise ValueError("ordinal takes no number of trials (size)")
        _check_codes(y, self.levels, self.name)

    def start(self, y: Tensor, weights: Tensor | None = None) -> tuple[float, ...]:
        """Thresholds of the model without predictors, K - 1 increasing numbers."""
        below = _shares(y, weights, self.levels).cumsum(0)[:-1]
        return tuple(self.link.link(below).tolist())


@dataclass(frozen=True)
class CumulativeLink(Family):
    """Cumulative link model whose thresholds are predictors: what `Ordinal` is.

    For models that see predictors and not thresholds: ``P(y <= k) = F(eta_(k + 1) -
    eta_0)`` with eta_0 the location.

    Parameters
    ----------
    link : Link or str
    levels : int
        Number of ordered levels K, coded 0 .. K - 1.
    """

    name: ClassVar[str] = "ordinal"
    has_expected: ClassVar[bool] = True
    link: Link = LOGIT
    levels: int = 2

    def __post_init__(self) -> None:
        """Check the number of levels and the link."""
        object.__setattr__(self, "link", self.ordinal.link)
        names = [f"threshold{k}" for k in range(1, self.levels)]
        object.__setattr__(self, "predictors", ("mu", *names))
        object.__setattr__(self, "domains", (REAL,) * self.levels)

    @property
    def ordinal(self) -> Ordinal:
        """The family of models without random effects."""
        return Ordinal(self.levels, self.link)

    @property
    def links(self) -> tuple[Link, ...]:
        """Link of the cumulative probabilities; thresholds are as they are."""
        return (self.link, *(IDENTITY for _ in range(self.levels - 1)))

    def limits(
        self, code: Tensor, thresholds: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return `Ordinal.limits`."""
        return self.ordinal.limits(code, thresholds)

    def _log_prob(self, y: Tensor, *etas: Tensor) -> Tensor:
        return self.ordinal.log_prob_at(y, *etas)

    def probabilities(self, *etas: Tensor) -> Tensor:
        """Probability of every level, shape (..., K)."""
        return self.ordinal.probabilities_at(*etas)

    def expected_information(self, *etas: Tensor) -> Tensor:
        """Fisher information of the location."""
        total = torch.zeros_like(etas[0])
        cuts = [self.link.derivative(t - etas[0]) for t in etas[1:]]
        ends = [torch.zeros_like(total), *cuts, torch.zeros_like(total)]
        p = self.probabilities(*etas).unbind(-1)
        for low, high, share in zip(ends[:-1], ends[1:], p, strict=True):
            safe = torch.where(share > 0, share, 1.0)
            total = total + torch.where(share > 0, (high - low) ** 2 / safe, 0.0)
        return total

    def mean(self, *etas: Tensor) -> Tensor:
        """Refuse: a category has no mean."""
        raise ValueError("ordinal: a category has no mean")

    def variance(self, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Refuse: a category has no variance."""
        raise ValueError("ordinal: a category has no variance")

    def sample(
        self,
        *etas: Tensor,
        generator: Generator | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Draw one code for each location."""
        self._expect(etas, size)
        etas = torch.broadcast_tensors(*etas)
        return _draw(self.probabilities(*etas), generator).to(etas[0].dtype)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse codes outside 0 .. K - 1."""
        self.ordinal.check(y, size)

    def start(
        self, y: Tensor, weights: Tensor | None = None, size: Tensor | None = None
    ) -> tuple[float, ...]:
        """Zero, and thresholds of the observed shares."""
        self._refuse_size(size)
        return (0.0, *self.ordinal.start(y, weights))


_CUMULATIVE = ("logit", "probit", "cloglog", "loglog", "cauchit")


@dataclass(frozen=True)
class Multinomial:
    """Multinomial logit against the first level.

    Parameters
    ----------
    levels : int
        Number of levels K, coded 0 .. K - 1; level k has log odds eta_k against
        level 0, for k = 1 .. K - 1.

    References
    ----------
    McFadden, D. (1974). Conditional logit analysis of qualitative choice behavior. In
    Zarembka, P. (ed.), Frontiers in econometrics, 105-142.
    """

    name: ClassVar[str] = "multinomial"
    sized: ClassVar[bool] = False
    levels: int

    def __post_init__(self) -> None:
        """Check the number of levels."""
        _check_levels(self.name, self.levels)

    @property
    def predictors(self) -> tuple[str, ...]:
        """Names of the K - 1 linear predictors: "1", "2", and so on."""
        return tuple(str(k) for k in range(1, self.levels))

    @property
    def links(self) -> tuple[Link, ...]:
        """Logit against the first level, once for each linear predictor."""
        return (LOGIT,) * (self.levels - 1)

    def log_prob(self, y: Tensor, *etas: Tensor, size: Tensor | None = None) -> Tensor:
        """Point-wise log probability of the observed levels.

        Parameters
        ----------
        y : Tensor
            Codes 0 .. K - 1, shape (n,).
        *etas : Tensor
            K - 1 linear predictors, each of shape (..., n).
        size : None
            Not taken.

        Returns
        -------
        Tensor
            Shape (..., n).
        """
        if size is not None:
            raise ValueError("multinomial takes no number of trials (size)")
        table = self.log_probabilities(*etas)
        code = y.long().expand(table.shape[:-1])
        return table.gather(-1, code[..., None]).squeeze(-1)

    def log_probabilities(self, *etas: Tensor) -> Tensor:
        """Log probability of every level, shape (..., n, K)."""
        if len(etas) != self.levels - 1:
            raise ValueError(
                f"multinomial with {self.levels} levels needs {self.levels - 1} linear "
                f"predictors, got {len(etas)}"
            )
        etas = torch.broadcast_tensors(*etas)
        return torch.stack([torch.zeros_like(etas[0]), *etas], -1).log_softmax(-1)

    def probabilities(self, *etas: Tensor) -> Tensor:
        """Probability of every level, shape (..., n, K)."""
        return torch.exp(self.log_probabilities(*etas))

    def sample(self, *etas: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one code for each row of the linear predictors."""
        return _draw(self.probabilities(*etas), generator)

    def check(self, y: Tensor, size: Tensor | None = None) -> None:
        """Refuse codes outside 0 .. K - 1."""
        if size is not None:
            raise ValueError("multinomial takes no number of trials (size)")
        _check_codes(y, self.levels, self.name)

    def start(self, y: Tensor, weights: Tensor | None = None) -> tuple[float, ...]:
        """Log odds of each level against the first."""
        shares = _shares(y, weights, self.levels)
        return tuple(torch.log(shares[1:] / shares[0]).tolist())
