"""A log-density and its derivatives, and other links by the chain rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...families import Link

__all__ = [
    "Density",
    "Jet",
    "Map",
    "Other",
    "chained",
    "linked",
    "log_map",
    "mapped",
    "odds_map",
    "real_map",
]


@dataclass(frozen=True, eq=False)
class Other:
    """Derivatives in another predictor eta_j; each (n,).

    Attributes
    ----------
    one : Tensor
        ``F_j``.
    two : Tensor
        ``F_0j``.
    three : Tensor
        ``F_00j``.
    """

    one: Tensor
    two: Tensor
    three: Tensor


@dataclass(frozen=True, eq=False)
class Jet:
    """A log-density and its derivatives; each (n,).

    Attributes
    ----------
    value, one, two : Tensor
        F, ``F_0``, ``F_00``.
    three : Tensor or None
        ``F_000``; None, with no `others`, where only curvatures are asked for.
    others : tuple of Other
        By predictor, without the first.
    """

    value: Tensor
    one: Tensor
    two: Tensor
    three: Tensor | None = None
    others: tuple[Other, ...] = ()

    def times(self, factor: Tensor) -> Jet:
        """Return the derivatives of a multiple."""
        return Jet(
            self.value * factor,
            self.one * factor,
            self.two * factor,
            None if self.three is None else self.three * factor,
            tuple(
                Other(o.one * factor, o.two * factor, o.three * factor)
                for o in self.others
            ),
        )


#: Of the predictors, and whether third derivatives are wanted.
Density = Callable[[tuple[Tensor, ...], bool], Jet]


# -- other links -----------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """From a linear predictor to the parameter that formulas are written in.

    Attributes
    ----------
    value : callable
    derivatives : callable
        The first three.
    """

    value: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def log_map(link: Link) -> Map | None:
    """Map to the logarithm of a parameter; None where the predictor is that."""
    if link.name == "log":
        return None
    return Map(link.log_inverse, link.log_derivatives)


def real_map(link: Link) -> Map | None:
    """Map to a parameter itself."""
    if link.name == "identity":
        return None

    def derivatives(eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            link.derivative(eta), link.second_derivative(eta),
            link.third_derivative(eta),
        )  # fmt: skip

    return Map(link.inverse, derivatives)


def odds_map(link: Link) -> Map | None:
    """Map to log odds."""
    if link.name == "logit":
        return None

    def value(eta: Tensor) -> Tensor:
        return link.log_inverse(eta) - link.log_complement(eta)

    def derivatives(eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        yes, no = link.log_derivatives(eta), link.complement_derivatives(eta)
        return yes[0] - no[0], yes[1] - no[1], yes[2] - no[2]

    return Map(value, derivatives)


def linked(density: Density, maps: Sequence[Map | None]) -> Density:
    """Return a density as a function of linear predictors at other links."""
    if all(m is None for m in maps):
        return density

    def composed(etas: tuple[Tensor, ...], third: bool) -> Jet:
        return chained(density(mapped(etas, maps), third), etas, maps, third)

    return composed


def mapped(etas: tuple[Tensor, ...], maps: Sequence[Map | None]) -> tuple[Tensor, ...]:
    """Map linear predictors to a formula's parameters; None leaves one as it is."""
    return tuple(
        eta if m is None else m.value(eta) for eta, m in zip(etas, maps, strict=True)
    )


def chained(
    jet: Jet, etas: tuple[Tensor, ...], maps: Sequence[Map | None], third: bool
) -> Jet:
    """Turn derivatives in mapped predictors into those in the predictors."""
    one, two, three, others = jet.one, jet.two, jet.three, jet.others
    if (first := maps[0]) is not None:
        a, b, c = first.derivatives(etas[0])
        square = a * a
        if three is not None:
            three = three * square * a + 3 * two * a * b + one * c
        others = tuple(
            Other(o.one, o.two * a, o.three * square + o.two * b) for o in others
        )
        one, two = one * a, two * square + one * b
    if third:
        pairs = zip(others, maps[1:], etas[1:], strict=True)
        others = tuple(o if m is None else _scaled(o, m, eta) for o, m, eta in pairs)
    return Jet(jet.value, one, two, three, others)


def _scaled(other: Other, m: Map, eta: Tensor) -> Other:
    a = m.derivatives(eta)[0]
    return Other(other.one * a, other.two * a, other.three * a)
