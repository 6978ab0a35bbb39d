"""Taylor expansions of rows in several variables, to third order.

The densities of mixed models are short compositions of few functions. Carried through
them, expansions give all partial derivatives at the cost of the functions' own, which
for those with polygammas is a small part of what automatic differentiation takes.

References
----------
Griewank & Walther (2008), Evaluating Derivatives, chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations_with_replacement

import torch
from torch import Tensor

__all__ = ["Taylor"]

_Place = tuple[int, ...]


class Taylor:
    """A function of several variables at the rows' values of these.

    Parameters
    ----------
    value : Tensor, shape (n,)
    order : int
        How many derivatives are carried: 2 or 3.
    partials : dict of tuple of int to Tensor, each (n,)
        Partial derivatives by the variables' numbers in ascending order: ``(0, 0, 1)``;
        those that are not there are zero.
    """

    __slots__ = ("order", "partials", "value")

    def __init__(
        self, value: Tensor, order: int, partials: dict[_Place, Tensor]
    ) -> None:
        self.value, self.order, self.partials = value, order, partials

    @classmethod
    def variable(cls, value: Tensor, number: int, order: int) -> Taylor:
        """Return a variable itself."""
        return cls(value, order, {(number,): torch.ones_like(value)})

    @property
    def variables(self) -> list[int]:
        """Numbers of the variables it depends on."""
        return sorted(place[0] for place in self.partials if len(place) == 1)

    def _places(self, variables: Iterable[int]) -> Iterable[_Place]:
        variables = list(variables)
        for size in range(1, self.order + 1):
            yield from combinations_with_replacement(variables, size)

    def __add__(self, other: Taylor | Tensor | float) -> Taylor:
        if not isinstance(other, Taylor):
            return Taylor(self.value + other, self.order, self.partials)
        out = dict(self.partials)
        for place, part in other.partials.items():
            out[place] = out[place] + part if place in out else part
        return Taylor(self.value + other.value, self.order, out)

    def __neg__(self) -> Taylor:
        return self.scaled(-1.0)

    def __sub__(self, other: Taylor | Tensor | float) -> Taylor:
        return self + -other

    def __radd__(self, other: Tensor | float) -> Taylor:
        return self + other

    def __rsub__(self, other: Tensor | float) -> Taylor:
        return -self + other

    def scaled(self, factor: Tensor | float) -> Taylor:
        """Return a multiple by what depends on no variable."""
        return Taylor(
            self.value * factor, self.order,
            {place: part * factor for place, part in self.partials.items()},
        )  # fmt: skip

    def __mul__(self, other: Taylor) -> Taylor:
        out: dict[_Place, Tensor] = {}
        one, two = dict(self.partials), dict(other.partials)
        one[()], two[()] = self.value, other.value
        for place in self._places({*self.variables, *other.variables}):
            total = None
            for chosen in range(2 ** len(place)):
                left = tuple(v for i, v in enumerate(place) if chosen >> i & 1)
                right = tuple(v for i, v in enumerate(place) if not chosen >> i & 1)
                if left in one and right in two:
                    part = one[left] * two[right]
                    total = part if total is None else total + part
            if total is not None:
                out[place] = total
        return Taylor(self.value * other.value, self.order, out)

    def of(self, *derivatives: Tensor) -> Taylor:
        """Return a function of this one.

        Parameters
        ----------
        *derivatives : Tensor, each (n,)
            Its value and its derivatives, `order` of them at least.
        """
        value, one, two = derivatives[:3]
        u, out = self.partials, {}
        for place in self._places(self.variables):
            parts = [one * u[place]] if place in u else []
            if len(place) == 2:
                i, j = place
                parts.append(two * u[i,] * u[j,])
            if len(place) == 3:
                i, j, k = place
                parts += [
                    two * u[a,] * u[pair]
                    for a, pair in ((i, (j, k)), (j, (i, k)), (k, (i, j)))
                    if pair in u
                ]
                parts.append(derivatives[3] * u[i,] * u[j,] * u[k,])
            if parts:
                out[place] = sum(parts[1:], parts[0])
        return Taylor(value, self.order, out)

    def exp(self) -> Taylor:
        """Return its exponential."""
        e = self.value.exp()
        return self.of(e, e, e, e)

    def at(self, place: Iterable[int]) -> Tensor:
        """Return a partial derivative, in any order of the variables."""
        found = self.partials.get(tuple(sorted(place)))
        return torch.zeros_like(self.value) if found is None else found
