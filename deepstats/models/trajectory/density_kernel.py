"""What a kernel is: the density of one response, over batches of cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ...errors import ModelError
from ...families import Family, Multinomial, Ordinal

__all__ = [
    "PAIRS",
    "Censoring",
    "Derived",
    "FeatureKernel",
    "Kernel",
    "Observed",
    "full",
    "log_odds",
    "powered",
    "slim",
]

Second = dict[tuple[int, int], Tensor]
#: Keys of the second derivatives in two predictors.
PAIRS = ((0, 0), (0, 1), (1, 1))
Derived = tuple[tuple[Tensor, ...], Second]

# Exponentials stop here: squares of them, times any number of rows, are finite.
_LARGEST = 150.0


class Censoring(NamedTuple):
    """Where the responses of a censored family stand.

    Attributes
    ----------
    point : Tensor, shape (cells,)
        Responses moved to the limit they are at or beyond.
    at : Tensor of long, shape (censored,)
        Cells at a limit.
    sign : Tensor, shape (censored,)
        1 at a lower limit, -1 at an upper one.
    """

    point: Tensor
    at: Tensor
    sign: Tensor


@dataclass(frozen=True, eq=False)
class Observed:
    """Data of some cells, for kernels that need each response.

    Attributes
    ----------
    y : Tensor, shape (cells,)
    size : Tensor, shape (cells,), optional
        Numbers of trials.
    lower, upper : Tensor, shape (cells,), optional
        Limits of censoring; infinite where there is none.

    Notes
    -----
    What follows from the data alone is kept, so that an instance made once for a block
    of cells serves all iterations.
    """

    y: Tensor
    size: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None

    @cached_property
    def counts(self) -> Tensor:
        """Responses as whole numbers, for tables of functions of a count."""
        return self.y.long()

    @cached_property
    def top(self) -> int:
        """Largest response as a whole number; zero where there are no cells."""
        return int(self.counts.max()) if self.counts.numel() else 0

    @cached_property
    def zeros(self) -> Tensor:
        """Whether each response is zero."""
        return self.y == 0

    @cached_property
    def censoring(self) -> Censoring:
        """Which cells are at a limit, and at which one."""
        none = torch.zeros_like(self.y, dtype=torch.bool)
        low = none if self.lower is None else self.y <= self.lower
        high = none if self.upper is None else (self.y >= self.upper) & ~low
        point = self.y
        if self.lower is not None:
            point = torch.maximum(point, self.lower)
        if self.upper is not None:
            point = torch.where(low, point, torch.minimum(point, self.upper))
        at = (low | high).nonzero().squeeze(-1)
        return Censoring(point, at, 1.0 - 2.0 * high[at].to(self.y.dtype))


def full(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return views of the tensors in their common shape; no memory is taken."""
    return tuple(torch.broadcast_tensors(*tensors))


def powered(eta: Tensor) -> Tensor:
    """Return exp(eta), held where squares and sums would leave float64."""
    return slim(eta).clamp(-_LARGEST, _LARGEST).exp_()


def slim(eta: Tensor) -> Tensor:
    """One number in place of an expanded last dimension."""
    return eta[..., :1] if eta.shape[-1] > 1 and eta.stride(-1) == 0 else eta


def log_odds(eta: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the inverse logit and of its complement."""
    eta = slim(eta)
    rest = eta.abs().neg_().exp_().log1p_()
    return eta.clamp(max=0.0).sub_(rest), eta.clamp(min=0.0).add_(rest).neg_()


class Kernel:
    """Density of one response given its linear predictors, over batches of cells.

    ``log f(y | etas) = sum_m phi_m(y) g_m(etas) + constant(y)``. M is the number of
    features; J, the number of predictors. Predictors are J tensors that broadcast to
    (..., cells); answers have the broadcast shape and may be views: change none in
    place.

    Parameters
    ----------
    family : Family, Ordinal or Multinomial
        Checks, draws, means and starts come from it.
    """

    #: Whether `terms` and derivatives need the responses (`data`) of the cells.
    needs_y: bool = True
    #: Whether responses may have limits.
    censored: bool = False

    def __init__(self, family: Family | Ordinal | Multinomial) -> None:
        self.family = family

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.family!r})"

    @property
    def predictors(self) -> tuple[str, ...]:
        """Name of each linear predictor."""
        return self.family.predictors

    @property
    def links(self) -> tuple[str, ...]:
        """Name of each predictor's link."""
        return tuple(link.name for link in self.family.links)

    def prepared(self, y: Tensor, size: Tensor | None = None) -> Kernel:
        """Return the kernel whose features keep most digits for these responses."""
        return self

    def features(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Functions of the data, shape (M, n)."""
        raise NotImplementedError

    def constant(self, y: Tensor, size: Tensor | None = None) -> Tensor:
        """Terms of the log-density without predictors, shape (n,)."""
        raise NotImplementedError

    def terms(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[Tensor, ...]:
        """Return the M functions of the predictors, each (..., cells)."""
        raise NotImplementedError

    def slopes(
        self, etas: tuple[Tensor, ...], data: Observed | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Return the slope of term m in predictor j, ``[m][j]``, each (..., cells)."""
        raise NotImplementedError

    def derivatives(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """Differentiate ``sum_m weights[m] g_m(etas)`` cell by cell.

        Parameters
        ----------
        etas : tuple of Tensor
            J linear predictors.
        weights : tuple of Tensor
            M weights, broadcast with the predictors.
        data : Observed, optional
            Responses of the cells, where `needs_y`.

        Returns
        -------
        first : tuple of Tensor
            Slope in each predictor.
        second : dict of (j, l) with j <= l to Tensor
            *Minus* the second derivatives; those that are not there are zero.
        """
        raise NotImplementedError

    def scoring(
        self,
        etas: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        data: Observed | None = None,
    ) -> Derived:
        """As `derivatives`, with a curvature for steps far from the optimum.

        Where the kernel has a cheap expected, complete-data or Gauss-Newton form the
        curvature is positive semidefinite at weights that are not negative; elsewhere
        it is that of `derivatives`.
        """
        return self.derivatives(etas, weights, data)

    def _limits(self, lower: Tensor | None, upper: Tensor | None) -> dict[str, Tensor]:
        """Limits of the responses, as options of the family's methods."""
        named = (("lower", lower), ("upper", upper))
        given = {name: limit for name, limit in named if limit is not None}
        if given and not self.censored:
            raise ModelError(
                f"{self.family.name} takes no limits (lower, upper); the censored "
                'normal family does: family="cnorm"'
            )
        return given

    def _options(self, data: Observed | None) -> dict[str, Tensor]:
        return {} if data is None else self._limits(data.lower, data.upper)

    def mean(self, etas: tuple[Tensor, ...], data: Observed | None = None) -> Tensor:
        """Return the expected response; within the limits, where `data` has some."""
        return self.family.mean(*full(*etas), **self._options(data))

    def sample(
        self,
        etas: tuple[Tensor, ...],
        generator: Generator | None = None,
        data: Observed | None = None,
    ) -> Tensor:
        """Draw one response for each cell; `data` gives sizes and limits."""
        options = self._options(data)
        if data is not None and data.size is not None:
            options["size"] = data.size
        return self.family.sample(*full(*etas), generator=generator, **options)

    def start(
        self,
        y: Tensor,
        size: Tensor | None = None,
        weights: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> tuple[float, ...]:
        """Return intercepts to start from, one per predictor."""
        return self.family.start(y, weights, size, **self._limits(lower, upper))

    def check(
        self,
        y: Tensor,
        size: Tensor | None = None,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> None:
        """Refuse responses that the family cannot produce, with a DesignError."""
        self.family.check(y, size, **self._limits(lower, upper))


class FeatureKernel(Kernel):
    """A kernel whose terms do not need the responses."""

    needs_y = False
