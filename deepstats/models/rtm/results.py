"""What a risk terrain model gives back: tables of risk, maps, predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import DesignError, ModelError
from ...expressions import quote_name
from ...results import Results
from ...summary import Summary
from .choosing import Choice, alone
from .evaluation import accuracy, conjunctive, hit_curve
from .features import Rule
from .layers import PointLayer, Units, counted_in, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .model import RiskTerrain
    from .stability import BootstrapChoice, SplitSample

__all__ = ["RiskTerrainResults", "risk_table"]


def risk_table(
    final: Results, rules: Sequence[Rule], alpha: float = 0.05
) -> pd.DataFrame:
    """Lay out relative risk values.

    Parameters
    ----------
    final : Results
        Of a model with the columns of the rules.
    rules : sequence of Rule
    alpha : float, default 0.05

    Returns
    -------
    DataFrame
        By name of the column: factor, kind, size, coef, std_error, z, p_value, rrv
        (relative risk value, ``exp(coef)``), and its limits conf_low and conf_high;
        the largest first.
    """
    names, labels = [r.name for r in rules], [r.label for r in rules]
    limits = np.exp(final.conf_int(alpha).loc[labels].to_numpy()).reshape(-1, 2)
    frame = pd.DataFrame(
        {
            "factor": [r.factor for r in rules], "kind": [r.kind for r in rules],
            "size": [r.size for r in rules],
            "coef": final.params[labels].to_numpy(),
            "std_error": final.bse[labels].to_numpy(),
            "z": final.tvalues[labels].to_numpy(),
            "p_value": final.pvalues[labels].to_numpy(),
            "rrv": np.exp(final.params[labels].to_numpy()),
            "conf_low": limits[:, 0], "conf_high": limits[:, 1],
        },
        index=pd.Index(names, name="risk factor"),
    )  # fmt: skip
    return frame.sort_values("rrv", ascending=False)


class RiskTerrainResults:
    """A risk terrain model that was chosen and estimated.

    Attributes
    ----------
    model : RiskTerrain
    choices : dict of str to Choice
        By family: what was chosen under it.
    family : str
        The family of the fit.
    final : Results
        The count regression of what was chosen: everything that `Results` can do.
    rules : tuple of Rule
        What was chosen, in the order of the formula.
    """

    def __init__(
        self,
        model: RiskTerrain,
        choices: dict[str, Choice],
        family: str,
        final: Results,
    ) -> None:
        self.model, self.choices, self.family = model, choices, family
        self.final = final
        self.rules = model.rules(choices[family].best)

    # -- the regression ----------------------------------------------------------------

    @property
    def params(self) -> pd.Series:
        """Coefficients, and the overdispersion of a negative binomial."""
        return self.final.params

    @property
    def bse(self) -> pd.Series:
        """Standard errors, the choice taken for given."""
        return self.final.bse

    @property
    def tvalues(self) -> pd.Series:
        """Estimates over standard errors."""
        return self.final.tvalues

    @property
    def pvalues(self) -> pd.Series:
        """P-values, the choice taken for given."""
        return self.final.pvalues

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Confidence limits of the coefficients."""
        return self.final.conf_int(alpha)

    def cov_params(self) -> pd.DataFrame:
        """Covariance matrix of the coefficients."""
        return self.final.cov_params()

    @property
    def llf(self) -> float:
        """Log-likelihood."""
        return self.final.llf

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return self.final.aic

    @property
    def bic(self) -> float:
        """Schwarz's criterion."""
        return self.final.bic

    @property
    def nobs(self) -> float:
        """Number of units used."""
        return self.final.nobs

    @property
    def fittedvalues(self) -> pd.Series:
        """Expected crimes of each unit used."""
        return self._labelled(self.final.fittedvalues.to_numpy(), "expected")

    @property
    def converged(self) -> bool:
        """Whether the regression converged."""
        return self.final.converged

    def tidy(self, conf_level: float = 0.95) -> pd.DataFrame:
        """One row for each parameter; see `Results.tidy`."""
        return self.final.tidy(conf_level)

    def glance(self) -> pd.DataFrame:
        """Figures of the fit in one row."""
        return self.final.glance().assign(family=self.family, factors=len(self.rules))

    def get_robustcov_results(
        self, cov_type: str, **cov_kwds: Any
    ) -> RiskTerrainResults:
        """Return the same fit with other standard errors.

        Parameters
        ----------
        cov_type, **cov_kwds
            See `Results.get_robustcov_results`.
        """
        final = self.final.get_robustcov_results(cov_type, **cov_kwds)
        return RiskTerrainResults(self.model, self.choices, self.family, final)

    # -- what was chosen ---------------------------------------------------------------

    def column(self, rule: Rule) -> np.ndarray:
        """Return what a candidate says of the units used, bool of shape (n,)."""
        for group in self.model.terrain.candidates:
            for candidate in group:
                if candidate.rule is rule:
                    return candidate.column
        raise KeyError(rule.name)

    def risk_table(self, alpha: float = 0.05) -> pd.DataFrame:
        """Relative risk values of what was chosen; see `risk_table`."""
        return risk_table(self.final, self.rules, alpha)

    def families(self) -> pd.DataFrame:
        """Best model under each family that was tried: factors, llf, criterion."""
        name = self.model.plan.criterion
        rows = []
        for family, choice in self.choices.items():
            best = choice.scored.best
            rules = [r.name for r in self.model.rules(choice.best)]
            rows.append({
                "family": family, "risk factors": ", ".join(rules),
                "llf": choice.scored.llf[best], name: choice.criterion,
            })  # fmt: skip
        frame = pd.DataFrame(rows).set_index("family")
        return frame.assign(difference=frame[name] - frame[name].min())

    def models(self, limit: int = 10) -> pd.DataFrame:
        """Return the best models that were fitted under the family of the fit.

        Parameters
        ----------
        limit : int, default 10

        Returns
        -------
        DataFrame
            A column for each factor, llf, the criterion, its difference from the best,
            and weight: ``exp(-difference / 2)`` over the sum of all that were fitted.
        """
        scored, name = self.choices[self.family].scored, self.model.plan.criterion
        order = np.argsort(scored.criterion, kind="stable")
        order = order[np.isfinite(scored.criterion[order])][:limit]
        difference = scored.criterion - scored.criterion.min()
        weight = np.exp(-difference / 2)
        columns = {
            factor: [_name(group, c) for c in scored.choices[order, f]]
            for f, (factor, group) in enumerate(
                zip(self.model.plan.factors, self.model.terrain.candidates, strict=True)
            )
        }
        return pd.DataFrame({
            **columns, "llf": scored.llf[order], name: scored.criterion[order],
            "difference": difference[order], "weight": (weight / weight.sum())[order],
        })  # fmt: skip

    def candidates(self) -> pd.DataFrame:
        """Return every candidate, and how it fared under the family of the fit.

        Returns
        -------
        DataFrame
            By name: factor, kind, size, threshold, share (of units), crimes (there),
            rrv_alone and alone (effect and criterion of a model with nothing else;
            the latter infinite where the effect is negative), best (criterion of the
            best model with it; NaN where a stepwise search or random dropout fitted
            none), chosen, and why one was left out.
        """
        scored = self.choices[self.family].scored
        chosen = {r.name for r in self.rules}
        single = alone(self.model.terrain, self.family, self.model.plan.criterion)
        rows: list[dict[str, Any]] = []
        for f, group in enumerate(self.model.terrain.candidates):
            for number, c in enumerate(group, 1):
                here = (scored.choices[:, f] == number) & scored.allowed
                own = len(rows)
                rows.append({
                    **_facts(c.rule), "share": c.column.mean(),
                    "crimes": self.model.terrain.y[c.column].sum(),
                    "rrv_alone": np.exp(single.slopes[own].sum()),
                    "alone": single.criterion[own],
                    "best": scored.criterion[here].min() if here.any() else np.nan,
                    "chosen": c.rule.name in chosen, "left_out": "",
                })  # fmt: skip
        for name, reason in self.model.left_out.items():
            rows.append({"name": name, "chosen": False, "left_out": reason})
        return pd.DataFrame(rows).set_index("name")

    # -- risk --------------------------------------------------------------------------

    def predict(
        self,
        units: Any = None,
        layers: Mapping[str, Any] | None = None,
        *,
        which: str = "mean",
        **options: Any,
    ) -> pd.Series:
        """Predict at other units, or with other layers.

        Parameters
        ----------
        units : frame or mapping, optional
            With coordinates and the covariates of the formula; those of the fit when
            None.
        layers : mapping of str to layer, optional
            Factors whose points have changed, next year's say. A density is high where
            it is above the threshold of the fit.
        which : {"mean", "relative_risk"}, default "mean"
            Expected crimes; or the relative risk score, the product of the relative
            risk values of the factors that are present: 1 where none is.
        **options
            offset, exposure: of units other than those of the fit, if these were given
            as values.

        Returns
        -------
        pandas.Series
            By the id of the units.

        Raises
        ------
        CoordinateError, DesignError
            As the model itself.
        """
        if which not in ("mean", "relative_risk"):
            raise ValueError(f"which={which!r} must be 'mean' or 'relative_risk'.")
        if units is None and layers is None:
            if options:
                raise ValueError("offset and exposure go with new units.")
            if which == "mean":
                return self.fittedvalues
            columns = {r.name: self.column(r) for r in self.rules}
            return self._labelled(self._score(columns), "relative_risk")
        new, columns = self.model.says(self.rules, units, layers)
        if which == "relative_risk":
            return pd.Series(self._score(columns), _index(new), name="relative_risk")
        frame = {**self.model.frame, **new.frame} if units is None else dict(new.frame)
        values = self.final.predict({**frame, **columns}, **options)
        return pd.Series(values.to_numpy(), _index(new), name="expected")

    def _score(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Relative risk score of units whose columns these are."""
        slopes = [float(self.params[quote_name(name)]) for name in columns]
        size = len(next(iter(columns.values()))) if columns else self.model.terrain.n
        eta = np.zeros(size)
        for slope, column in zip(slopes, columns.values(), strict=True):
            eta += slope * column
        return np.exp(eta)

    def scores(self) -> pd.DataFrame:
        """Return the map as a table.

        Returns
        -------
        DataFrame
            By the id of the units used: x, y, a column of 0 and 1 for each risk factor,
            relative_risk, expected and observed crimes.
        """
        model, terrain = self.model, self.model.terrain
        columns = {r.name: self.column(r).astype(int) for r in self.rules}
        xy = model.units.xy[model.rows]
        return pd.DataFrame(
            {
                "x": xy[:, 0], "y": xy[:, 1], **columns,
                "relative_risk": self._score(columns),
                "expected": self.final.fittedvalues.to_numpy(),
                "observed": terrain.y,
            },
            index=_index(model.units)[model.rows],
        )  # fmt: skip

    def evaluate(
        self,
        crimes: Any = None,
        *,
        shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
        area: Any = None,
    ) -> pd.DataFrame:
        """Measure how well the map finds crime: that of the next period, best.

        Parameters
        ----------
        crimes : str, array_like, PointLayer or frame, optional
            Counts by unit: a column of the units or values; or places of crimes, which
            are counted. Those of the fit when None.
        shares : sequence of float
            Of the area: how much of it is watched.
        area : str or array_like, optional
            Size of units; without it all are the same.

        Returns
        -------
        DataFrame
            See `evaluation.accuracy`. Units are taken by expected crimes for each unit
            of area, the riskiest first.
        """
        for share in shares:
            if not 0 < share <= 1:
                raise ValueError(f"shares={shares!r} must lie between 0 and 1.")
        size = self._area(area)
        earlier = None if crimes is None else self.model.terrain.y
        return accuracy(
            self._density(size), self._counts(crimes), size, shares, earlier
        )

    def hit_curve(self, crimes: Any = None, *, area: Any = None) -> pd.DataFrame:
        """Hit rate over the share of the area; see `evaluation.hit_curve`."""
        size = self._area(area)
        return hit_curve(self._density(size), self._counts(crimes), size)

    def conjunctive(self, crimes: Any = None) -> pd.DataFrame:
        """Table of overlapping risk factors: units, risk, expected and observed crimes.

        Parameters
        ----------
        crimes : optional
            Of another period, as in `evaluate`: a further column, ``new``.

        Returns
        -------
        DataFrame
            See `evaluation.conjunctive`.
        """
        if not self.rules:
            raise ModelError("no risk factor was chosen: there are no overlaps.")
        columns = {r.name: self.column(r) for r in self.rules}
        sums = {
            "expected": self.final.fittedvalues.to_numpy(),
            "observed": self.model.terrain.y,
        }
        if crimes is not None:
            sums["new"] = self._counts(crimes)
        return conjunctive(columns, sums, self._score(columns))

    def _density(self, area: np.ndarray) -> np.ndarray:
        return self.final.fittedvalues.to_numpy() / area

    def _area(self, area: Any) -> np.ndarray:
        n = self.model.terrain.n
        values = np.ones(n) if area is None else self._values(area, "area")
        if not (np.isfinite(values) & (values > 0)).all():
            raise DesignError("area= must be finite and above zero at every unit.")
        return values

    def _counts(self, crimes: Any) -> np.ndarray:
        if crimes is None:
            return self.model.terrain.y
        if isinstance(crimes, PointLayer | pd.DataFrame):
            plan = self.model.plan
            points = points_of("crimes", crimes, plan.x, plan.y, plan.projected)
            values = counted_in(points, self.model.units)[0][self.model.rows]
        else:
            values = self._values(crimes, "crimes")
        if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
            raise DesignError("crimes= must be counts, and not all of them zero.")
        return values

    def _values(self, given: Any, what: str) -> np.ndarray:
        """Read numbers of the units used: a column, or values."""
        if isinstance(given, str):
            if given not in self.model.frame:
                raise DesignError(f"{what}={given!r} is no column of the units.")
            given = self.model.frame[given]
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise DesignError(f"{what}= is not made of numbers.") from None
        return self.model.design.values(values, what)

    def _labelled(self, values: np.ndarray, name: str) -> pd.Series:
        index = _index(self.model.units)[self.model.rows]
        return pd.Series(values, index, name=name)

    # -- the choice and its standard errors --------------------------------------------

    def split_sample(
        self,
        share: float = 0.5,
        seed: int = 0,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        groups: str | None = None,
    ) -> SplitSample:
        """Choose on some units, estimate on others; see `stability.split_sample`."""
        from .stability import split_sample

        return split_sample(self, share, seed, cov_type, cov_kwds, groups)

    def bootstrap(
        self,
        reps: int = 200,
        seed: int = 0,
        groups: str | None = None,
        alpha: float = 0.05,
    ) -> BootstrapChoice:
        """Choose anew on units drawn again; see `stability.bootstrap`."""
        from .stability import bootstrap

        return bootstrap(self, reps, seed, groups, alpha)

    # -- out ---------------------------------------------------------------------------

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import terrain_summary

        return terrain_summary(self, alpha)

    def plot_map(
        self, values: Any = "relative_risk", ax: Axes | None = None, **options: Any
    ) -> Axes:
        """Draw units coloured by risk; see `pictures.plot_map`."""
        from .pictures import plot_map

        return plot_map(self, values, ax, **options)

    def plot_hits(
        self, crimes: Any = None, *, area: Any = None, ax: Axes | None = None
    ) -> Axes:
        """Draw the hit rate over the share of the area; see `pictures.plot_hits`."""
        from .pictures import plot_hits

        return plot_hits(self.hit_curve(crimes, area=area), ax)

    def to_geojson(
        self, path: str | Path | None = None, crs: str | None = None
    ) -> dict[str, Any]:
        """Return the map as a GeoJSON FeatureCollection, and write it to a file.

        Parameters
        ----------
        path : str or Path, optional
        crs : str, optional
            Name of the projection, such as "EPSG:26985", which is written down as GIS
            programs read it. Coordinates stay as they are.

        Returns
        -------
        dict
            Geometries are those of the units, or points. Properties: the id and the
            columns of `scores`.
        """
        scores, units = self.scores(), self.model.units
        collection: dict[str, Any] = {"type": "FeatureCollection"}
        if crs is not None:
            collection["crs"] = {"type": "name", "properties": {"name": crs}}
        facts = scores.drop(columns=["x", "y"]).to_dict("records")
        shapes = [
            {"type": "Point", "coordinates": [float(v) for v in units.xy[row]]}
            if units.shapes is None
            else dict(units.shapes[row])
            for row in self.model.rows
        ]
        collection["features"] = [
            {
                "type": "Feature", "geometry": shape,
                "properties": {"id": _plain(label), **fact},
            }
            for shape, fact, label in zip(shapes, facts, scores.index, strict=True)
        ]  # fmt: skip
        if path is not None:
            Path(path).write_text(json.dumps(collection), encoding="utf-8")
        return collection

    def save(self, path: str | Path) -> Path:
        """Refuse: a map is of its units and layers, which a file of a fit has not.

        Raises
        ------
        ModelError
            Always; it says what can be saved.
        """
        raise ModelError(
            "a risk terrain model cannot be saved, since it predicts from its layers; "
            "save the regression by results.final.save(path), and the map by "
            "results.to_geojson(path)."
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.model.title}, {self.model.plan.text}>"

    def _repr_html_(self) -> str:
        return self.summary().as_html()


def _name(group: Any, number: int) -> str:
    return group[number - 1].rule.name if number else ""


def _facts(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name, "factor": rule.factor, "kind": rule.kind,
        "size": rule.size, "threshold": rule.threshold,
    }  # fmt: skip


def _index(units: Units) -> pd.Index:
    return pd.Index(units.labels)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
