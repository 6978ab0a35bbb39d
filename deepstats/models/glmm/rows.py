"""The log-density of rows and its derivatives in their linear predictors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...families import ExponentialFamily, Family
from .derivatives import closed_form
from .jets import Jet, Other

__all__ = ["RowDensity", "Slopes", "Turns"]

#: Weights below this share of the largest are lifted to it: the equations stay regular.
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Slopes:
    """Log-density of rows at their linear predictors.

    Attributes
    ----------
    value : Tensor, shape (n,)
    first : Tensor, shape (n,)
        Derivative in the predictor that has random effects.
    weight : Tensor, shape (n,)
        Minus the second derivative, or its expectation; negative in some rows where
        the density is not log-concave (excess zeros).
    """

    value: Tensor
    first: Tensor
    weight: Tensor

    @property
    def positive(self) -> Tensor:
        """Weights that leave the equations positive definite; for steps only."""
        return self.weight.abs().clamp_min(_LEAST * float(self.weight.abs().max()))


@dataclass(frozen=True, eq=False)
class Turns:
    """How slopes and weights of rows change with every linear predictor.

    Attributes
    ----------
    first : tuple of Tensor, each (n,)
        Derivatives ``F_j`` of the log-density.
    second : tuple of Tensor, each (n,)
        Derivatives ``F_0j`` of its slope in the first predictor.
    weight : tuple of Tensor, each (n,)
        Derivatives ``D_j`` of the weight.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]


class RowDensity:
    """The log-density of the responses, row by row.

    Parameters
    ----------
    family : Family
        With its own predictors; the first has the random effects.
    y, size, weights : Tensor or None, shape (n,)
        Responses, trials, prior weights.
    expected : bool
        Whether weights are expected information (lme4) or observed (TMB).
    """

    def __init__(
        self, family: Family, y: Tensor, size: Tensor | None, weights: Tensor | None,
        expected: bool = False,
    ) -> None:  # fmt: skip
        self.family, self.y, self.size, self.weights = family, y, size, weights
        canonical = isinstance(family, ExponentialFamily) and family.canonical
        # At a canonical link the two are one.
        self.expected = expected and not canonical
        self._closed = None if self.expected else closed_form(family, y)
        self._free = self._normaliser()

    def _normaliser(self) -> Tensor | None:
        """Return what the density of proportions has besides trials times one's."""
        if self._closed is None or self.size is None:
            return None
        middle = self.family.links[0].link(torch.full_like(self.y, 0.5))
        one = self._closed((middle,), False).value
        value = self.log_prob(middle)
        times = self._times()
        return value - (one if times is None else one * times)

    def log_prob(self, *etas: Tensor) -> Tensor:
        """Log-density of every row, prior weights included; (n,)."""
        options = {} if self.size is None else {"size": self.size}
        value = self.family.log_prob(self.y, *etas, **options)
        return value if self.weights is None else value * self.weights

    def log_prob_of(self, *etas: Tensor) -> Tensor:
        """Log-density of every row at several predictors each, (n, M)."""
        options = {} if self.size is None else {"size": self.size[:, None]}
        value = self.family.log_prob(self.y[:, None], *etas, **options)
        return value if self.weights is None else value * self.weights[:, None]

    def slopes(self, etas: tuple[Tensor, ...], expected: bool | None = None) -> Slopes:
        """Value, slope and weight at linear predictors."""
        expected = self.expected if expected is None else expected
        if self._closed is not None:
            jet = self._jet(etas, False)
            return Slopes(jet.value, jet.one, -jet.two)
        eta = etas[0].detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_prob(eta, *etas[1:])
            (first,) = torch.autograd.grad(value.sum(), eta, create_graph=not expected)
            if expected:
                weight = self._expected_weight(etas)
            else:
                (second,) = torch.autograd.grad(first.sum(), eta)
                weight = -second
        return Slopes(value.detach(), first.detach(), weight.detach())

    def turns(self, etas: tuple[Tensor, ...]) -> Turns:
        """Differentiate value, slope and weight in every linear predictor."""
        if self._closed is not None:
            jet = self._jet(etas, True)
            assert jet.three is not None
            others: tuple[Other, ...] = jet.others
            return Turns(
                (jet.one, *(o.one for o in others)),
                (jet.two, *(o.two for o in others)),
                (-jet.three, *(-o.three for o in others)),
            )
        given = tuple(e.detach().requires_grad_() for e in etas)
        with torch.enable_grad():
            first = self._partials(self.log_prob(*given), given, True)
            second = self._partials(first[0], given, True)
            if self.expected:
                bent = self._partials(self._expected_weight(given), given, False)
            else:
                bent = self._partials(-second[0], given, False)
        return Turns(
            tuple(f.detach() for f in first), tuple(s.detach() for s in second), bent
        )

    def curvature(self, etas: tuple[Tensor, ...], j: int) -> Tensor:
        """Minus the second derivative in another predictor; (n,)."""
        eta = etas[j].detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_prob(*etas[:j], eta, *etas[j + 1 :])
            (first,) = torch.autograd.grad(value.sum(), eta, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), eta)
        return -second.detach()

    @staticmethod
    def _partials(
        values: Tensor, given: tuple[Tensor, ...], further: bool
    ) -> tuple[Tensor, ...]:
        """Differentiate every row's value in its own predictors."""
        if not values.requires_grad:
            return tuple(torch.zeros_like(e) for e in given)
        found = torch.autograd.grad(
            values.sum(), given, create_graph=further, allow_unused=True
        )
        return tuple(
            torch.zeros_like(e) if f is None else f
            for e, f in zip(given, found, strict=True)
        )

    def _jet(self, etas: tuple[Tensor, ...], third: bool) -> Jet:
        assert self._closed is not None
        with torch.no_grad():
            jet, times = self._closed(etas, third), self._times()
            if times is not None:
                jet = jet.times(times)
            if self._free is not None:
                jet = Jet(
                    jet.value + self._free, jet.one, jet.two, jet.three, jet.others
                )
        return jet

    def _expected_weight(self, etas: tuple[Tensor, ...]) -> Tensor:
        weight, times = self.family.expected_information(*etas), self._times()
        return weight if times is None else weight * times

    def _times(self) -> Tensor | None:
        if self.size is None or self.weights is None:
            return self.size if self.weights is None else self.weights
        return self.size * self.weights
