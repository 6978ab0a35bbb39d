"""Risk terrain models: from layers and units to candidates, a choice, and a fit."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ...compute import default_compute, one_thread
from ...design import Design
from ...errors import CoordinateError, DesignError, SelectionWarning, caution
from ...families import NegativeBinomial
from ...formula import Formula
from ...leastsquares import aliased_columns, triangle
from ...results import Results
from ..counts import NegativeBinomialModel
from ..glm import GLM
from .choosing import Choice, alone, choose, method_for
from .features import Candidate, Rule, applied, distances, operationalise
from .layers import Units, counted_in, points_of, units_of
from .reading import bare_name, read
from .results import RiskTerrainResults
from .terrain import Terrain

__all__ = ["RiskTerrain"]


class RiskTerrain:
    """A risk terrain model: counts at units, explained by what is near them.

    Every layer of points becomes candidates, yes or no at each unit: within a distance
    of a point, or where their density is above the mean by two standard deviations. At
    most one candidate of each layer enters the model, with an effect that is not
    negative.

    Parameters
    ----------
    formula : str or Formula
        ``"rtm(crimes ~ alcohol + metro, block=100)"``: names of layers are factors to
        choose from, columns of the units are forced in. Options stand in the call or
        are keywords.
    units : frame or mapping
        One row a unit (a cell, a street, an area): counts of crimes, covariates, and
        projected coordinates, or a column ``geometry`` whose centroids are taken.
    layers : mapping of str to layer
        Points as a frame with coordinates, an array (points, 2) or a `PointLayer`; or
        names of 0/1 columns of the units, as a list. The response too may be a layer:
        its points are counted, in the polygon they are in or else at the nearest unit.
    x, y : str, default "x", "y"
        Columns of the coordinates.
    id : str, optional
        Column that identifies units.
    distances, bandwidths : sequence of float, optional
        Candidates of each layer, in the units of the coordinates.
    block, blocks : float, int, optional
        In place of these: half a block to `blocks` (4) blocks, by half blocks.
    kernel : {"quartic", "gaussian", "uniform"}, default "quartic"
        Of densities; see `features.densities`.
    dense : float, default 2
        Standard deviations above the mean from which a density is high.
    family : {"best", "poisson", "nb1", "nb2"}, default "best"
        Of the counts; "best" chooses under each, and keeps the one whose model has the
        lowest criterion. "nb1" has variance mu + alpha mu, "nb2" mu + alpha mu^2.
    choose : {"auto", "exhaustive", "stepwise", "dropout"}, default "auto"
        All models; an elastic net, then steps from none in both directions; or random
        dropout, then pruning. "auto" fits all if there are at most `limit` (where
        covariates tell all units apart, if units times models are at most 1e8).
    criterion : {"bic", "aic"}, default "bic"
    limit : int, default 100000
    exposure, offset : str or array_like, optional
        As in a generalised linear model.
    projected : bool, default False
        Says that coordinates which could be degrees are none.
    na_action : {"drop", "raise"}, default "drop"

    Raises
    ------
    CoordinateError
        For degrees, coordinates that are not numbers, and layers far from all units.
    DesignError, FormulaError, ModelError
        For empty layers, identifiers given twice, one unit, no crimes, and options
        that cannot be used.

    References
    ----------
    Caplan, J. and Kennedy, L. (2016). Risk terrain modeling. University of California
    Press.
    """

    title = "Risk terrain model"

    def __init__(
        self,
        formula: str | Formula,
        units: Any,
        layers: Mapping[str, Any],
        *,
        na_action: str = "drop",
        **options: Any,
    ) -> None:
        plan = self.plan = read(formula, layers, **options)
        self.compute = default_compute()
        self.na_action = na_action
        self.layers = dict(layers)
        self.units = units_of(units, plan.x, plan.y, plan.id, plan.projected)
        self.uncounted = 0
        self.frame = self._with_response(self.units, layers)
        self.design = Design.build(
            plan.formula, self.frame, offset=plan.offset, exposure=plan.exposure,
            na_action=na_action, compute=self.compute,
        )  # fmt: skip
        self._check_response()
        self.points = {
            name: points_of(name, layers[name], plan.x, plan.y, plan.projected)
            for name in plan.factors
            if not _names_columns(layers[name])
        }
        found = {name: self._candidates(name) for name in plan.factors}
        self._check_names(found)
        self.left_out, kept = _different(found, self.rows)
        self._columns = {
            c.rule.name: c.column for group in kept.values() for c in group
        }
        self.terrain = self._terrain(kept)

    @property
    def rows(self) -> np.ndarray:
        """Positions of the units used, shape (n,)."""
        if self.design.rows is None:
            return np.arange(self.design.n)
        return np.asarray(self.design.rows)

    # -- from data to candidates -------------------------------------------------------

    def _with_response(self, units: Units, layers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of the units; crimes counted if they are a layer."""
        plan = self.plan
        name = bare_name(plan.formula.response.expressions[0])
        if name is None or name not in layers:
            return dict(units.frame)
        if _names_columns(layers[name]):
            raise DesignError(
                f"the response {name} is a column: leave it out of layers."
            )
        points = points_of(name, layers[name], plan.x, plan.y, plan.projected)
        counts, self.uncounted = counted_in(points, units)
        return {**units.frame, name: counts}

    def _check_response(self) -> None:
        design = self.design
        if design.y_levels not in (None, (False, True)) or design.y.ndim != 1:
            raise DesignError(
                f"the response {design.y_name} is not a count of crimes; it has levels "
                f"{list(design.y_levels or ())[:6]}."
            )
        NegativeBinomial().check(torch.as_tensor(np.array(design.y, dtype=float)))
        if not (design.y > 0).any():
            raise DesignError(
                f"the response {design.y_name} is zero at all {design.n} units: "
                "without crimes there is no risk to be mapped."
            )

    def _candidates(self, name: str) -> list[Candidate]:
        """Return the candidates of one layer, at all units."""
        plan, layer = self.plan, self.layers[name]
        if _names_columns(layer):
            return [self._column(name, column) for column in layer]
        sizes = plan.sizes(layer)
        if not (sizes["distance"] or sizes["density"]):
            raise DesignError(
                f"the layer {name!r} has no distances and no bandwidths to be made "
                "into candidates: give block=, distances= or bandwidths=."
            )
        self._check_reach(name, max(map(max, filter(None, sizes.values()))))
        return operationalise(
            name, self.points[name], self.units.xy, sizes, plan.kernel, plan.dense,
            self.rows,
        )  # fmt: skip

    def _column(self, factor: str, column: str) -> Candidate:
        """Read a candidate that the data have already."""
        rule = Rule(factor, "column", float("nan"), float("nan"), column)
        return Candidate(rule, _yes_or_no(self.frame, column))

    def _check_reach(self, name: str, reach: float) -> None:
        nearest = float(distances(self.points[name].xy, self.units.xy).min())
        if nearest > reach:
            raise CoordinateError(
                f"no point of the layer {name!r} is within {reach:g} of a unit; the "
                f"nearest is {nearest:g} away. Are both in the same projection and "
                "unit of length?"
            )

    def _check_names(self, found: dict[str, list[Candidate]]) -> None:
        """Refuse a column that is given twice, or has the name of a candidate."""
        seen: set[str] = set()
        for rule in (c.rule for group in found.values() for c in group):
            taken = rule.kind != "column" and rule.name in self.frame
            if taken or rule.name in seen:
                raise DesignError(
                    f"the name {rule.name!r} is that of two columns: rename the "
                    "column of the units, or the layer."
                )
            seen.add(rule.name)

    def _terrain(self, kept: dict[str, list[Candidate]]) -> Terrain:
        """Put the units used into arrays."""
        design, rows = self.design, self.rows
        X = design.X.to_dense(self.compute.on_cpu()).numpy()
        aliased = aliased_columns(*triangle(design, self.compute))
        X = np.delete(X, aliased, axis=1)
        offset = np.zeros(design.n) if design.offset is None else design.offset
        groups = tuple(
            tuple(Candidate(c.rule, c.column[rows]) for c in kept[name])
            for name in self.plan.factors
        )
        return Terrain(
            np.array(design.y, dtype=np.float64), X, np.array(offset, dtype=np.float64),
            self.plan.factors, groups,
        )  # fmt: skip

    # -- fitting -----------------------------------------------------------------------

    @one_thread()
    def fit(
        self,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        steps: int = 10_000,
        seed: int = 0,
    ) -> RiskTerrainResults:
        """Choose the candidates and estimate the model.

        Parameters
        ----------
        cov_type, cov_kwds
            Standard errors; see `Results.get_robustcov_results`. They take the choice
            for given: `RiskTerrainResults.split_sample` and ``bootstrap`` do not.
        steps : int, default 10000
            Of random dropout.
        seed : int, default 0
            Of random dropout, and of the folds of the elastic net.

        Returns
        -------
        RiskTerrainResults
        """
        if isinstance(steps, bool) or not (isinstance(steps, Integral) and steps > 0):
            raise ValueError(f"steps must be a whole number from 1, not {steps!r}.")
        choices = self.choose(
            self.terrain, self.plan.families, steps=int(steps), seed=seed
        )
        best = min(choices, key=lambda family: choices[family].criterion)
        rules = self.rules(choices[best].best)
        self._say(choices[best])
        final = self.estimate(best, rules, cov_type, cov_kwds)
        return RiskTerrainResults(self, choices, best, final)

    def choose(
        self, terrain: Terrain, families: tuple[str, ...], **options: Any
    ) -> dict[str, Choice]:
        """Choose under each family; the elastic net, if it is needed, is one for all.

        Parameters
        ----------
        terrain : Terrain
            That of this model, or some units of it.
        families : tuple of str
        **options
            See `choosing.choose`.

        Returns
        -------
        dict of str to Choice
        """
        method = method_for(terrain, self.plan.choose, self.plan.limit)
        found: dict[str, Choice] = {}
        screen = None
        for family in families:
            found[family] = choose(
                terrain, family, method, self.plan.criterion, screen=screen, **options
            )
            screen = found[family].screen
        return found

    def rules(self, choice: np.ndarray) -> tuple[Rule, ...]:
        """Return what was chosen of each factor that has an effect."""
        return tuple(
            group[c - 1].rule
            for group, c in zip(self.terrain.candidates, choice, strict=True)
            if c
        )

    def estimate(
        self,
        family: str,
        rules: tuple[Rule, ...],
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        rows: np.ndarray | None = None,
    ) -> Results:
        """Fit the count regression of some rules, at all units or at some.

        Parameters
        ----------
        family : {"poisson", "nb1", "nb2"}
        rules : tuple of Rule
        cov_type, cov_kwds
            See `fit`.
        rows : ndarray of int, optional
            Positions among the units given.

        Returns
        -------
        Results
            Of `GLM` or `NegativeBinomialModel`.
        """
        chosen = {r.name: self._columns[r.name].astype(float) for r in rules}
        frame = {**self.frame, **chosen}
        given = {"offset": self.plan.offset, "exposure": self.plan.exposure}
        if rows is not None:
            frame = {k: _some(v, rows) for k, v in frame.items()}
            given = {
                k: v if v is None or isinstance(v, str) else _some(v, rows)
                for k, v in given.items()
            }
        text = " + ".join([self.plan.formula.text, *(f"`{r.name}`" for r in rules)])
        options = {"na_action": self.na_action, **given}
        model = (
            GLM(text, frame, family="poisson", **options)
            if family == "poisson"
            else NegativeBinomialModel(text, frame, loglike=family, **options)
        )
        return model.fit(cov_type, cov_kwds)

    def _say(self, choice: Choice) -> None:
        """Warn of factors that can have no positive effect, and if none was chosen."""
        for factor, reason in self.hopeless(choice).items():
            caution(f"{factor} was not chosen: {reason}.", SelectionWarning)
        if not choice.best.any():
            caution(
                "no factor was chosen: no model with one has a lower "
                f"{self.plan.criterion.upper()} than the model without any.",
                SelectionWarning,
            )

    def hopeless(self, choice: Choice) -> dict[str, str]:
        """Return the factors that no data like these could choose, and why.

        Parameters
        ----------
        choice : Choice
        """
        found = {}
        scored, sizes, starts = choice.scored, self.terrain.sizes, self.terrain.starts
        if choice.method != "exhaustive":
            single = alone(self.terrain, choice.family, self.plan.criterion)
        for f, factor in enumerate(self.plan.factors):
            if not sizes[f]:
                found[factor] = "none of its operationalisations varies between units"
                continue
            if choice.method == "exhaustive":
                able = scored.allowed[scored.choices[:, f] > 0].any()
            else:
                own = slice(starts[f], starts[f] + sizes[f])
                able = single.allowed[own].any()
            if not able:
                together = " alone" if choice.method != "exhaustive" else ""
                found[factor] = (
                    f"none of its operationalisations{together} has a nonnegative "
                    "effect; near it there is less crime"
                )
        return found

    # -- other units -------------------------------------------------------------------

    def says(
        self, rules: tuple[Rule, ...], units: Any, layers: Mapping[str, Any] | None
    ) -> tuple[Units, dict[str, np.ndarray]]:
        """Return other units, and what rules say of them.

        Parameters
        ----------
        rules : tuple of Rule
        units : frame or mapping, optional
            Those of the fit when None.
        layers : mapping of str to layer, optional
            Of the factors that have changed; the others are those of the fit.

        Returns
        -------
        Units
        dict of str to ndarray of float
            Columns by name of the rule.
        """
        plan, given = self.plan, dict(layers or {})
        unknown = [name for name in given if name not in plan.factors]
        if unknown:
            raise DesignError(
                f"layers= has {unknown[0]!r}, which is no factor of the model; there "
                f"are {', '.join(plan.factors)}."
            )
        new = (
            self.units
            if units is None
            else units_of(units, plan.x, plan.y, plan.id, plan.projected)
        )
        columns = {}
        for rule in rules:
            if rule.kind == "column":
                columns[rule.name] = _yes_or_no(new.frame, rule.name).astype(float)
                continue
            layer = given.get(rule.factor)
            points = (
                self.points[rule.factor]
                if layer is None
                else points_of(rule.factor, layer, plan.x, plan.y, plan.projected)
            )
            columns[rule.name] = applied(rule, points, new.xy, plan.kernel).astype(
                float
            )
        return new, columns


def _some(values: Any, rows: np.ndarray) -> Any:
    """Return some rows of a column, its type kept."""
    if hasattr(values, "iloc"):
        return values.iloc[rows].reset_index(drop=True)
    return np.asarray(values)[rows]


def _names_columns(layer: Any) -> bool:
    """Whether a layer is a list of names of columns."""
    return (
        isinstance(layer, list | tuple)
        and bool(layer)
        and all(isinstance(v, str) for v in layer)
    )


def _yes_or_no(frame: Mapping[str, Any], column: str) -> np.ndarray:
    """Read a column of noughts and ones."""
    if column not in frame:
        raise DesignError(
            f"units have no column {column!r}, which a layer names; there are "
            f"{', '.join(map(str, frame))}."
        )
    values = np.asarray(frame[column])
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise DesignError(
            f"the column {column!r} is to say yes (1) or no (0) of each unit, and has "
            "other or missing values."
        )
    return values.astype(bool)


def _different(
    found: dict[str, list[Candidate]], rows: np.ndarray
) -> tuple[dict[str, str], dict[str, list[Candidate]]]:
    """Leave out candidates that say the same of all units, or the same as another."""
    left_out: dict[str, str] = {}
    kept: dict[str, list[Candidate]] = {}
    for factor, candidates in found.items():
        seen: dict[bytes, str] = {}
        kept[factor] = []
        for candidate in candidates:
            column, name = candidate.column[rows], candidate.rule.name
            if column.all() or not column.any():
                left_out[name] = f"{'yes' if column.all() else 'no'} at all units"
                continue
            key = np.packbits(column).tobytes()
            if key in seen:
                left_out[name] = f"the same units as {seen[key]}"
                continue
            seen[key] = name
            kept[factor].append(candidate)
    return left_out, kept
