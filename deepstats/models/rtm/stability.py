"""What a choice does to standard errors: split samples and the bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...results import Results
from .choosing import choose
from .features import Rule

if TYPE_CHECKING:
    from .results import RiskTerrainResults

#: In standard errors: what is left of a replicate's search is a millionth of one.
_TOLERANCE = 1e-3

__all__ = ["BootstrapChoice", "SplitSample", "bootstrap", "split_sample"]


@dataclass(frozen=True, eq=False)
class SplitSample:
    """Candidates chosen on some units, their effects estimated on the others.

    The estimates do not know of the choice, so that their standard errors are those of
    a model that was given.

    Attributes
    ----------
    rules : tuple of Rule
        What was chosen.
    family : str
    final : Results
        The fit on the units that were held out.
    chosen_on, estimated_on : int
        Numbers of units.
    table : DataFrame
        As `RiskTerrainResults.risk_table`, of the units held out.
    """

    rules: tuple[Rule, ...]
    family: str
    final: Results
    chosen_on: int
    estimated_on: int
    table: pd.DataFrame

    def __repr__(self) -> str:
        return (
            f"<SplitSample: chosen on {self.chosen_on} units, estimated on "
            f"{self.estimated_on}>\n{self.table.to_string()}"
        )


def split_sample(
    results: RiskTerrainResults,
    share: float = 0.5,
    seed: int = 0,
    cov_type: str = "nonrobust",
    cov_kwds: Mapping[str, Any] | None = None,
    groups: str | None = None,
) -> SplitSample:
    """Choose on a random share of the units and estimate on the rest.

    Parameters
    ----------
    results : RiskTerrainResults
    share : float, default 0.5
        Of the units that the choice sees.
    seed : int, default 0
    cov_type, cov_kwds
        Of the estimates.
    groups : str, optional
        Column of areas that are not to be torn apart.

    Returns
    -------
    SplitSample

    Raises
    ------
    ValueError
        For a share that leaves nothing on one side.
    ModelError
        If a chosen candidate is the same at all units held out.
    """
    from .results import risk_table

    model, n = results.model, results.model.terrain.n
    codes = _groups(results, groups)
    labels = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    cut = round(share * len(labels))
    if not 0 < share < 1 or not 0 < cut < len(labels):
        raise ValueError(f"share={share!r} leaves no units on one side; try 0.5.")
    first = np.isin(codes, labels[:cut])
    inside, outside = np.flatnonzero(first), np.flatnonzero(~first)
    part = model.terrain.subset(inside)
    families = model.plan.families
    draws = results.choices[results.family].draws
    choices = model.choose(part, families, steps=draws, seed=seed)
    family = min(choices, key=lambda name: choices[name].criterion)
    rules = model.rules(choices[family].best)
    for rule in rules:
        column = results.column(rule)[outside]
        if column.all() or not column.any():
            raise ModelError(
                f"{rule.name} was chosen and says the same of all {len(outside)} units "
                "held out; use a smaller share= or another seed=."
            )
    final = model.estimate(family, rules, cov_type, cov_kwds, model.rows[outside])
    return SplitSample(
        rules, family, final, len(inside), n - len(inside), risk_table(final, rules)
    )


@dataclass(frozen=True, eq=False)
class BootstrapChoice:
    """How often each candidate was chosen when units were drawn anew.

    Attributes
    ----------
    reps : int
    candidates : DataFrame
        By name of the candidate: factor, kind, size, frequency.
    factors : DataFrame
        By factor: frequency (of any candidate), agreement (of the candidate of the
        fit), coef (of the fit), std_error (standard deviation over the replicates, the
        effect being zero where the factor was left out), and the limits of the relative
        risk: conf_low, conf_high, by percentiles.
    draws : ndarray, shape (reps, F)
        Effects by factor.
    choices : ndarray of int, shape (reps, F)
    """

    reps: int
    candidates: pd.DataFrame
    factors: pd.DataFrame
    draws: np.ndarray
    choices: np.ndarray

    def __repr__(self) -> str:
        return f"<BootstrapChoice: {self.reps} replicates>\n{self.factors.to_string()}"


def bootstrap(
    results: RiskTerrainResults,
    reps: int = 200,
    seed: int = 0,
    groups: str | None = None,
    alpha: float = 0.05,
) -> BootstrapChoice:
    """Draw units with replacement, and choose and estimate anew each time.

    Parameters
    ----------
    results : RiskTerrainResults
    reps : int, default 200
    seed : int, default 0
    groups : str, optional
        Column of areas that are drawn whole: neighbours are not independent.
    alpha : float, default 0.05

    Returns
    -------
    BootstrapChoice

    Notes
    -----
    The family is that of the fit, the screen or random dropout that of the units drawn.
    Thresholds of densities stay.
    """
    if reps < 2:
        raise ValueError(f"reps={reps} must be at least 2.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1.")
    model, terrain = results.model, results.model.terrain
    codes = _groups(results, groups)
    size = int(codes.max()) + 1
    given = results.choices[results.family]
    options: dict[str, Any] = {"steps": given.draws}
    if given.method == "exhaustive":
        options = {"start": given.scored, "tolerance": _TOLERANCE}
    generator = np.random.default_rng(seed)
    draws = np.zeros((reps, len(terrain.factors)))
    picked = np.zeros((reps, len(terrain.factors)), dtype=np.int64)
    for r in range(reps):
        drawn = np.bincount(generator.integers(size, size=size), minlength=size)
        found = choose(
            terrain, results.family, given.method, model.plan.criterion,
            weights=drawn[codes].astype(np.float64), seed=seed + r, **options,
        )  # fmt: skip
        draws[r], picked[r] = found.scored.slopes[found.scored.best], found.best
    return BootstrapChoice(
        reps, _frequencies(results, picked),
        _by_factor(results, given.best, picked, draws, alpha), draws, picked,
    )  # fmt: skip


def _groups(results: RiskTerrainResults, groups: str | None) -> np.ndarray:
    """Codes of what is drawn whole, or of units."""
    if groups is None:
        return np.arange(results.model.terrain.n)
    return np.asarray(results.model.design.grouping(groups).codes)


def _frequencies(results: RiskTerrainResults, picked: np.ndarray) -> pd.DataFrame:
    rows = [
        {
            "name": c.rule.name, "factor": c.rule.factor, "kind": c.rule.kind,
            "size": c.rule.size, "frequency": float((picked[:, f] == number).mean()),
        }
        for f, group in enumerate(results.model.terrain.candidates)
        for number, c in enumerate(group, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("name")


def _by_factor(
    results: RiskTerrainResults,
    best: np.ndarray,
    picked: np.ndarray,
    draws: np.ndarray,
    alpha: float,
) -> pd.DataFrame:
    scored = results.choices[results.family].scored
    limits = np.exp(np.quantile(draws, [alpha / 2, 1 - alpha / 2], axis=0))
    return pd.DataFrame(
        {
            "frequency": (picked > 0).mean(axis=0),
            "agreement": (picked == best).mean(axis=0),
            "coef": scored.slopes[scored.best],
            "std_error": draws.std(axis=0, ddof=1),
            "conf_low": limits[0], "conf_high": limits[1],
        },
        index=pd.Index(results.model.terrain.factors, name="factor"),
    )  # fmt: skip
