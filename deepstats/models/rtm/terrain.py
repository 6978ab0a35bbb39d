"""What a search for risk factors works on: counts, covariates and candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .features import Candidate
from .likelihood import FAMILIES, TOLERANCE, CountModels, constant, fit_many
from .tables import Patterns, Tallies, cell_tallies, intersections

__all__ = ["Scored", "Search", "Terrain"]

#: Effects beyond are infinite: there is no crime without the factor.
_LARGEST = 12.0
#: Elements of one batch of models, and of the table of all intersections.
_BATCH, _TABLE = 3_000_000, 50_000_000


@dataclass(frozen=True, eq=False)
class Terrain:
    """Units as arrays.

    Attributes
    ----------
    y : ndarray, shape (n,)
        Crimes.
    covariates : ndarray, shape (n, q)
        The intercept, and what is forced in.
    offset : ndarray, shape (n,)
    factors : tuple of str
    candidates : tuple of tuple of Candidate
        Of each factor, those that vary and differ from one another.
    """

    y: np.ndarray
    covariates: np.ndarray
    offset: np.ndarray
    factors: tuple[str, ...]
    candidates: tuple[tuple[Candidate, ...], ...]

    @property
    def n(self) -> int:
        """Number of units."""
        return len(self.y)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Candidates of each factor."""
        return tuple(map(len, self.candidates))

    @property
    def combinations(self) -> int:
        """Number of models with at most one candidate of each factor."""
        out = 1
        for size in self.sizes:
            out *= size + 1
        return out

    @cached_property
    def columns(self) -> np.ndarray:
        """All candidates, shape (n, C)."""
        found = [c.column for group in self.candidates for c in group]
        return np.column_stack([np.zeros((self.n, 0), dtype=bool), *found])

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the candidates of each factor begin among `columns`."""
        return np.cumsum([0, *self.sizes])[:-1]

    @cached_property
    def exposed(self) -> Patterns:
        """Patterns for Poisson models, whose offset is an exposure that adds up."""
        return Patterns.build(self.columns, self.covariates, np.zeros(self.n))

    @cached_property
    def patterns(self) -> Patterns:
        """Patterns for models that tell offsets apart."""
        if not self.offset.any():
            return self.exposed
        return Patterns.build(self.columns, self.covariates, self.offset)

    def subset(self, rows: np.ndarray) -> Terrain:
        """Return some units, with all candidates as they are."""
        groups = tuple(
            tuple(Candidate(c.rule, c.column[rows]) for c in group)
            for group in self.candidates
        )
        return Terrain(
            self.y[rows], self.covariates[rows], self.offset[rows], self.factors, groups
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """Models and how good they are.

    Attributes
    ----------
    choices : ndarray of int, shape (A, F)
        Candidate of each factor, from 1; 0 leaves the factor out.
    llf : ndarray, shape (A,)
    criterion : ndarray, shape (A,)
        BIC or AIC; infinite where an effect is negative or infinite.
    slopes : ndarray, shape (A, F)
        Effects; zero of a factor that is left out.
    allowed : ndarray of bool, shape (A,)
        Whether all effects are finite and none is negative.
    x : Tensor, shape (A, p)
        All parameters, for later starts; slopes in the order of the factors.
    """

    choices: np.ndarray
    llf: np.ndarray
    criterion: np.ndarray
    slopes: np.ndarray
    allowed: np.ndarray
    x: Tensor = field(repr=False)

    @property
    def best(self) -> int:
        """Number of the best model."""
        return int(np.argmin(self.criterion))

    @property
    def choice(self) -> np.ndarray:
        """The best model, shape (F,)."""
        return self.choices[self.best]


class Search:
    """Fits any models of one terrain by one family.

    Parameters
    ----------
    terrain : Terrain
    family : {"poisson", "nb1", "nb2"}
    criterion : {"bic", "aic"}
    weights : ndarray, shape (n,), optional
        How often each unit counts; the number of units stays that of the terrain.
    """

    def __init__(
        self,
        terrain: Terrain,
        family: str,
        criterion: str = "bic",
        weights: np.ndarray | None = None,
    ) -> None:
        self.terrain, self.family, self.weights = terrain, family, weights
        self.penalty = 2.0 if criterion == "aic" else float(np.log(terrain.n))
        poisson = family == "poisson"
        self.patterns = terrain.exposed if poisson else terrain.patterns
        exposure = np.exp(terrain.offset) if poisson and terrain.offset.any() else None
        self.sums = self.patterns.sums(terrain.y, not poisson, weights, exposure)
        w = None if weights is None else torch.as_tensor(weights)
        self.constant = constant(torch.as_tensor(terrain.y), w)
        if exposure is not None:
            own = terrain.y * terrain.offset
            self.constant += float(own.sum() if weights is None else own @ weights)

    # -- fitting models ----------------------------------------------------------------

    def fit(
        self,
        choices: np.ndarray,
        start: Tensor | None = None,
        tolerance: float = TOLERANCE,
    ) -> Scored:
        """Fit models.

        Parameters
        ----------
        choices : ndarray of int, shape (A, F)
        start : Tensor, shape (A, p), optional
            As `Scored.x` of the same models.
        tolerance : float, default 1e-4
            In standard errors; criteria are off by its third power.

        Returns
        -------
        Scored
        """
        size = max(1, _BATCH // self._width(choices.shape[1]))
        parts = []
        for at in range(0, len(choices), size):
            part = slice(at, at + size)
            models = self._models(torch.as_tensor(choices[part]))
            first = self._start(len(choices[part])) if start is None else start[part]
            parts.append(fit_many(models, first, tolerance))
        x = torch.cat([p.x for p in parts])
        value = torch.cat([p.value for p in parts])
        converged = torch.cat([p.converged for p in parts])
        return self._scored(choices, x, value.numpy(), converged.numpy())

    def _scored(
        self, choices: np.ndarray, x: Tensor, value: np.ndarray, converged: np.ndarray
    ) -> Scored:
        q = self.terrain.covariates.shape[1]
        slopes = x[:, q : q + choices.shape[1]].numpy()
        slopes = np.where(choices > 0, slopes, 0.0)
        bounded = ((slopes >= 0) & (slopes <= _LARGEST)).all(axis=1)
        allowed = bounded & np.isfinite(value) & converged
        llf = value + self.constant
        count = (choices > 0).sum(axis=1) + q + FAMILIES[self.family]
        criterion = np.where(allowed, -2 * llf + count * self.penalty, np.inf)
        return Scored(choices, llf, criterion, slopes, allowed, x)

    def _cells(self, factors: int) -> int:
        return self.patterns.strata * 2**factors

    @cached_property
    def _by_cells(self) -> bool:
        """Whether models are tables of a few cells, whose sums fit into memory."""
        t = self.terrain
        cells = self._cells(len(t.factors))
        table = t.combinations * self.patterns.strata * self.sums.shape[1]
        return cells <= max(len(self.patterns) // 2, 8) and table <= _TABLE

    def _width(self, factors: int) -> int:
        """Elements that one model takes."""
        k = self.terrain.covariates.shape[1] + factors
        if self._by_cells:
            return self._cells(factors) * max(k * k, self.sums.shape[1])
        if self.family == "nb1":
            return max(len(self.patterns) * k, len(self._sparse[1][0]))
        return len(self.patterns) * k

    @cached_property
    def _intersections(self) -> Tensor:
        ones = np.ones((len(self.patterns), 1), dtype=bool)
        starts, sizes = self.terrain.starts, self.terrain.sizes
        groups = [
            np.column_stack([ones, self.patterns.columns[:, a : a + s]])
            for a, s in zip(starts, sizes, strict=True)
        ]
        return intersections(
            groups, self.sums, self.patterns.stratum, self.patterns.strata
        )

    @cached_property
    def _sparse(self) -> tuple[Tallies, tuple[Tensor, Tensor]]:
        return Tallies.split(torch.as_tensor(self.sums)).sparse()

    def _models(self, choices: Tensor) -> CountModels:
        q = self.terrain.covariates.shape[1]
        forced = torch.ones(len(choices), q, dtype=torch.bool)
        present = torch.cat([forced, choices > 0], 1)
        build = self._tables if self._by_cells else self._rows
        return build(choices, present)

    def _tables(self, choices: Tensor, present: Tensor) -> CountModels:
        """Build models whose rows are cells of a table: the same columns in all."""
        F, p = choices.shape[1], self.patterns
        first = np.unique(p.stratum, return_index=True)[1]
        base = torch.as_tensor(np.column_stack([p.covariates, p.offset])[first])
        bits = (torch.arange(2**F)[:, None] >> torch.arange(F - 1, -1, -1)) & 1
        X = torch.cat(
            [base[:, :-1].repeat_interleave(2**F, 0), bits.repeat(len(base), 1)], 1
        )
        tallies = Tallies.split(cell_tallies(self._intersections, choices))
        offset = base[:, -1].repeat_interleave(2**F)
        return CountModels(self.family, X, tallies, offset, present)

    def _rows(self, choices: Tensor, present: Tensor) -> CountModels:
        """Build models whose rows are patterns: columns of each model's own."""
        p = self.patterns
        with_none = torch.as_tensor(
            np.column_stack([np.zeros(len(p)), p.columns]), dtype=torch.float64
        )
        starts = torch.as_tensor(self.terrain.starts)
        at = torch.where(choices > 0, starts + choices, 0)
        columns = with_none.T[at].transpose(1, 2)
        Z = torch.as_tensor(p.covariates).expand(len(choices), -1, -1)
        X = torch.cat([Z, columns], 2)
        offset = torch.as_tensor(p.offset)
        if self.family == "poisson":
            tallies, steps = Tallies.split(torch.as_tensor(self.sums)), None
        else:
            tallies, steps = self._sparse
        return CountModels(self.family, X, tallies, offset, present, steps)

    def _start(self, count: int) -> Tensor:
        """Return the model without factors, once it is known, for many models."""
        if count < 2:
            return self._moments()
        return self._without.expand(count, -1).clone()

    @cached_property
    def _without(self) -> Tensor:
        """Parameters of the model of what is forced in, slopes zero; (1, p)."""
        none = torch.zeros(1, len(self.terrain.factors), dtype=torch.int64)
        return fit_many(self._models(none), self._moments()).x

    def _moments(self) -> Tensor:
        """Return the rate of all units, slopes zero; overdispersion by moments."""
        t, extra = self.terrain, FAMILIES[self.family]
        q = t.covariates.shape[1]
        x = torch.zeros(1, q + len(t.factors) + extra, dtype=torch.float64)
        w = np.ones(t.n) if self.weights is None else self.weights
        expected = w * np.exp(t.offset)
        rate = (w * t.y).sum() / expected.sum()
        constant_column = np.flatnonzero((t.covariates == 1).all(axis=0))
        if len(constant_column):
            x[:, constant_column[0]] = np.log(rate)
        if extra:
            mu = rate * np.exp(t.offset)
            power = mu**2 if self.family == "nb2" else mu
            excess = (w * ((t.y - mu) ** 2 - mu)).sum() / (w * power).sum()
            x[:, -1] = float(np.log(np.clip(excess, 0.02, 20.0)))
        return x
