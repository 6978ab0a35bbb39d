"""Which candidate of each factor: all models, steps, or random dropout."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from .dropout import dropped_out
from .likelihood import TOLERANCE
from .screening import Screen, screened
from .terrain import Scored, Search, Terrain

__all__ = ["METHODS", "Choice", "alone", "choose", "every_choice", "method_for"]

#: Units times models that "auto" fits where every unit is a row of its own.
_MOST_WORK = 100_000_000

METHODS = ("auto", "exhaustive", "stepwise", "dropout")


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen under one family.

    Attributes
    ----------
    family : str
    method : {"exhaustive", "stepwise", "dropout"}
    scored : Scored
        All models that were fitted.
    screen : Screen or None
        Of a stepwise choice.
    steps : tuple of ndarray
        The models a stepwise search went through.
    draws : int
        Steps of random dropout.
    """

    family: str
    method: str
    scored: Scored = field(repr=False)
    screen: Screen | None = None
    steps: tuple[np.ndarray, ...] = ()
    draws: int = 0

    @property
    def best(self) -> np.ndarray:
        """Candidate of each factor, from 1; 0 for none."""
        return self.scored.choice

    @property
    def criterion(self) -> float:
        """Of the best model."""
        return float(self.scored.criterion[self.scored.best])


def method_for(terrain: Terrain, method: str, limit: int) -> str:
    """Return the method that "auto" stands for: all models where they are few.

    Without candidates there is one model, whatever the method.
    """
    if terrain.combinations == 1:
        return "exhaustive"
    if method != "auto":
        return method
    p = terrain.patterns
    # Covariates that tell all units apart leave tables of units, not of a few cells.
    work = terrain.combinations * len(p) if p.strata == len(p) else 0
    few = terrain.combinations <= limit and work <= _MOST_WORK
    return "exhaustive" if few else "stepwise"


def every_choice(terrain: Terrain) -> np.ndarray:
    """All models with at most one candidate of each factor, shape (A, F)."""
    ranges = (range(size + 1) for size in terrain.sizes)
    return np.array(list(product(*ranges)), dtype=np.int64).reshape(
        terrain.combinations, len(terrain.sizes)
    )


def alone(terrain: Terrain, family: str, criterion: str) -> Scored:
    """Fit the model of every candidate with nothing else, in their order.

    Parameters
    ----------
    terrain : Terrain
    family : {"poisson", "nb1", "nb2"}
    criterion : {"bic", "aic"}

    Returns
    -------
    Scored
        Where the effect is negative the criterion is infinite.
    """
    choices = np.zeros((sum(terrain.sizes), len(terrain.sizes)), dtype=np.int64)
    for f, (start, size) in enumerate(zip(terrain.starts, terrain.sizes, strict=True)):
        choices[start : start + size, f] = range(1, size + 1)
    return Search(terrain, family, criterion).fit(choices)


def choose(
    terrain: Terrain,
    family: str,
    method: str,
    criterion: str,
    *,
    screen: Screen | None = None,
    steps: int = 10_000,
    seed: int = 0,
    weights: np.ndarray | None = None,
    start: Scored | None = None,
    tolerance: float = TOLERANCE,
) -> Choice:
    """Choose the candidates.

    Parameters
    ----------
    terrain : Terrain
    family : {"poisson", "nb1", "nb2"}
    method : {"exhaustive", "stepwise", "dropout"}
    criterion : {"bic", "aic"}
    screen : Screen, optional
        For a stepwise choice, in place of a new one.
    steps, seed
        Of random dropout, and of the folds of the screen.
    weights : ndarray, shape (n,), optional
        How often each unit counts.
    start : Scored, optional
        All models of the same terrain, to start from.
    tolerance : float, default 1e-4
        Of an exhaustive search; see `Search.fit`.

    Returns
    -------
    Choice
    """
    search = Search(terrain, family, criterion, weights)
    if method == "exhaustive":
        x = None if start is None else start.x
        return Choice(family, method, search.fit(every_choice(terrain), x, tolerance))
    if method == "stepwise":
        if screen is None:
            screen = screened(terrain, seed=seed, weights=weights)
        path = _stepwise(search, screen.keep)
        return Choice(
            family, method, path[-1], screen, tuple(scored.choice for scored in path)
        )
    picked = dropped_out(terrain, steps, seed=seed, weights=weights)
    return Choice(family, method, _pruned(search, picked), draws=steps)


def _stepwise(search: Search, keep: np.ndarray) -> list[Scored]:
    """Add, leave out or exchange one candidate at a time, from none, while it helps."""
    sizes, starts = search.terrain.sizes, search.terrain.starts
    kept = [
        [c + 1 for c in range(size) if keep[start + c]]
        for start, size in zip(starts, sizes, strict=True)
    ]
    now = search.fit(np.zeros((1, len(sizes)), dtype=np.int64))
    path = [now]
    while True:
        current = path[-1].choice
        moves = []
        for f, candidates in enumerate(kept):
            for c in [0, *candidates]:
                if c != current[f]:
                    moves.append(np.where(np.arange(len(sizes)) == f, c, current))
        if not moves:
            return path
        found = search.fit(np.array(moves))
        if not found.criterion.min() < path[-1].criterion.min() - 1e-9:
            return path
        path.append(found)


def _pruned(search: Search, picked: np.ndarray) -> Scored:
    """Fit the model of what was picked; leave out effects that turn out negative."""
    scored = search.fit(picked[None])
    while not scored.allowed[0] and picked.any():
        worst = int(scored.slopes[0].argmin())
        if scored.slopes[0, worst] >= 0:
            break
        picked = np.where(np.arange(len(picked)) == worst, 0, picked)
        scored = search.fit(picked[None])
    return scored
