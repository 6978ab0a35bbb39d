"""Categories: cumulative link models for ordered ones, multinomial logit for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..design import Batch, Design
from ..errors import DesignError, ModelError, SeparationWarning
from ..families import Multinomial, Ordinal
from ..formula import Formula
from ..likelihood import Point, PredictorLikelihood, pointwise
from ..parameters import Block, Parameters
from ..prediction import delta_variance, slopes
from ..results import Results
from .base import INTERCEPT
from .levels import (
    ALIASED,
    coded,
    cuts,
    ordered,
    with_constant,
    without_constant,
    without_rows,
)
from .multipart import MultiPartModel, MultiPartResults

__all__ = [
    "CategoricalResults",
    "MultinomialModel",
    "OrdinalModel",
    "mnlogit",
    "ordinal",
]


class CategoricalResults(MultiPartResults):
    """Estimates of a model of categories; predicts their probabilities."""

    model: CategoricalModel

    def predict(
        self,
        exog: Any = None,
        *,
        which: str = "prob",
        offset: Any = None,
        exposure: Any = None,
    ) -> pd.Series | pd.DataFrame:
        """Predict the category of new data.

        Parameters
        ----------
        exog : frame or mapping, optional
            New data; those of the fit when None. Rows with missing values get NaN.
        which : {"prob", "class", "linear"}, default "prob"
            A frame of probabilities, one column for each level; the most probable
            level; the linear predictor (a frame of log odds for multinomial logit).
        offset, exposure : optional
            In place of those of the fit.

        Returns
        -------
        pandas.DataFrame or pandas.Series
            Indexed as the data.

        Raises
        ------
        ValueError
            For another `which`; a category has no mean.
        """
        if which not in ("prob", "class", "linear"):
            reason = " (a category has no mean)" if which == "mean" else ""
            raise ValueError(
                f"which={which!r} is not known here{reason}; "
                "allowed: prob, class, linear."
            )
        if which == "linear":
            labels = self.model.linear_labels()
            given = (labels, exog, offset, exposure)
            frame = self._predicted_frame(self.model.linear, *given)
            return frame if len(labels) > 1 else frame.iloc[:, 0].rename("predicted")
        levels = list(self.model.levels)
        frame = self._predicted_frame(
            self.model.probabilities, levels, exog, offset, exposure
        )
        if which == "prob":
            return frame
        known = frame.notna().all(axis=1).to_numpy()
        found = np.full(len(frame), None, dtype=object)
        best = np.nan_to_num(frame.to_numpy()).argmax(axis=1)
        found[known] = [levels[k] for k in best[known]]
        return pd.Series(found, frame.index, name="predicted").infer_objects()

    @property
    def fittedvalues(self) -> pd.DataFrame:
        """Fitted probabilities, one column for each level."""
        return self.predict()

    @property
    def resid_response(self) -> pd.DataFrame:
        """Indicators of the levels less their fitted probabilities."""
        fitted = self.predict()
        codes = np.asarray(self.model.design.y, dtype=int)
        return np.eye(len(self.model.levels))[codes] - fitted

    @property
    def resid_pearson(self) -> pd.DataFrame:
        """Indicators less probabilities, over the root of p (1 - p)."""
        fitted, w = self.predict(), self.model.design.weights
        found = self.resid_response / np.sqrt(fitted * (1 - fitted))
        return found if w is None else found.mul(np.sqrt(w), axis=0)

    def get_prediction(
        self, exog: Any = None, *, offset: Any = None, exposure: Any = None
    ) -> CategoricalPrediction:
        """Predict probabilities with standard errors and intervals.

        Parameters
        ----------
        exog, offset, exposure
            As in `predict`.

        Returns
        -------
        CategoricalPrediction
        """
        found, _ = self._new(exog, offset, exposure)
        middle = found.raw_middle(self.covariance.matrix)
        levels = list(self.model.levels)

        def errors(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            by_level = [
                slopes(lambda *e, k=k: self.model.probabilities(*e)[:, k], etas)[1]
                for k in range(len(levels))
            ]
            change = [torch.stack(of_level) for of_level in zip(*by_level, strict=True)]
            variance = delta_variance(batch, found.layout, middle, change)
            return variance.T.clamp_min(0).sqrt()

        se = found.map(self.fit_info.x, errors, len(levels)).numpy()
        mean = self.predict(exog, offset=offset, exposure=exposure)
        frame = pd.DataFrame(np.nan, mean.index, mean.columns)
        rows = found.design.rows
        new = exog is not None and rows is not None
        frame.iloc[rows if new else slice(None)] = se
        return CategoricalPrediction(self, mean, frame)

    def augment(self) -> pd.DataFrame:
        """Return the rows used with the most probable level and all probabilities."""
        prob = self.predict()
        frame = pd.DataFrame({self.response_name: self._observed()}, prob.index)
        frame[".fitted"] = self.predict(which="class")
        return frame.join(prob.add_prefix(".prob_"))

    def _observed(self) -> np.ndarray:
        levels = pd.Index(self.model.levels)
        return levels.to_numpy()[np.asarray(self.model.design.y, dtype=int)]


class MultinomialResults(CategoricalResults):
    """Estimates of a multinomial logit; terms are tested in all levels together."""

    def _term_columns(self) -> dict[str, list[int]]:
        one, k = super()._term_columns(), self.model.design.X.k
        shifts = range(0, len(self.names), k)
        return {t: [s + j for s in shifts for j in at] for t, at in one.items()}


class CategoricalPrediction:
    """Predicted probabilities with standard errors by the delta method.

    Attributes
    ----------
    predicted_mean, se_mean : DataFrame
        One column for each level.
    """

    def __init__(self, results: Results, mean: pd.DataFrame, se: pd.DataFrame) -> None:
        self.results, self.predicted_mean, self.se_mean = results, mean, se

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """Return one row for each row of the data and level.

        Parameters
        ----------
        alpha : float, default 0.05

        Returns
        -------
        DataFrame
            Columns mean, mean_se, mean_ci_lower, mean_ci_upper (cut at 0 and 1).
        """
        half = self.results._quantile(alpha) * self.se_mean
        columns = {
            "mean": self.predicted_mean,
            "mean_se": self.se_mean,
            "mean_ci_lower": (self.predicted_mean - half).clip(lower=0),
            "mean_ci_upper": (self.predicted_mean + half).clip(upper=1),
        }
        index = pd.MultiIndex.from_product(
            [self.se_mean.index, self.se_mean.columns], names=[None, "level"]
        )
        return pd.DataFrame(
            {k: v.to_numpy().reshape(-1) for k, v in columns.items()}, index
        )


class CategoricalModel(MultiPartModel):
    """A regression of a categorical response: codes, levels, probabilities."""

    results_class: ClassVar[type[Results]] = CategoricalResults
    levels: tuple[Any, ...]
    unused: tuple[Any, ...] = ()

    def _takes_parts(self) -> bool:
        return False

    def probabilities(self, *etas: Tensor) -> Tensor:
        """Probability of every level, shape (rows, K)."""
        raise NotImplementedError

    def linear(self, *etas: Tensor) -> Tensor:
        """Linear predictors, a column for each of `linear_labels`."""
        raise NotImplementedError

    def linear_labels(self) -> list[Any]:
        """Names of the columns of `linear`."""
        raise NotImplementedError

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Nothing that is one number for a row; see `CategoricalResults.predict`."""
        return {}

    def mean(self, *etas: Tensor) -> Tensor:
        """Refuse: a category has no mean.

        Raises
        ------
        ModelError
        """
        raise ModelError(
            f"{self.title} predicts probabilities of {len(self.levels)} levels, not a "
            "mean; use predict(which='prob')."
        )

    def notes(self) -> list[str]:
        """Say which levels do not occur."""
        return without_rows(self.design.y_name, self.unused)

    def _runaway_text(self, names: str) -> tuple[str, type[Warning]]:
        return (
            f"the response is predicted perfectly in some rows: the estimates of "
            f"{names} are infinite and what is printed is where the search stopped. "
            "Leave those terms out, merge levels, or penalise.",
            SeparationWarning,
        )

    def _check_response(self) -> None:
        design = self.design
        if design.size is not None or design.y.ndim != 1:
            raise DesignError(
                f"{self.title} has one response, a column of categories; "
                f"{design.y_name} is several."
            )
        codes, levels, self.unused = coded(design)
        self.design = self._arranged(replace(design, y=codes), levels)
        if design.n < len(self.parameters):
            raise DesignError(
                f"{design.n} rows cannot determine {len(self.parameters)} parameters; "
                "use fewer terms or merge levels."
            )

    def _arranged(self, design: Design, levels: tuple[Any, ...]) -> Design:
        raise NotImplementedError

    def _start_weights(self, design: Design) -> Tensor | None:
        given = [w for w in (design.weights, design.freq_weights) if w is not None]
        return torch.tensor(np.prod(given, axis=0)) if given else None


class OrdinalModel(CategoricalModel):
    """Cumulative link model: P(y <= k) = F(threshold_k - x'beta).

    There is no intercept: the thresholds take its place, whether or not the formula
    has one. A positive coefficient moves the response to higher levels.

    Parameters
    ----------
    formula, data, **options
        See `RegressionModel`. The response is an ordered categorical, taken in its
        order, or numbers or strings, taken in sorted order; the summary shows it.
    link : {"logit", "probit", "cloglog", "loglog", "cauchit"}, default "logit"
        As in MASS::polr, cloglog has F(q) = 1 - exp(-exp(q)), loglog exp(-exp(-q)).

    References
    ----------
    McCullagh, P. (1980). Regression models for ordinal data. Journal of the Royal
    Statistical Society B 42, 109-142.
    """

    title = "Ordinal regression"
    unbounded = (0,)
    family: Ordinal

    def __init__(
        self, formula: str | Formula, data: Any, *, link: Any = "logit", **options: Any
    ) -> None:
        Ordinal(2, link)
        self._link = link
        functions = tuple(options.get("context") or ())
        if isinstance(formula, str):
            formula = Formula.parse(formula, functions)
        self._refuse(formula, False)
        super().__init__(with_constant(formula), data, parts=(INTERCEPT,), **options)

    @property
    def options(self) -> dict[str, Any]:
        """What makes this model besides formula and data."""
        return {"link": self.family.link.name}

    @property
    def layout(self) -> tuple[int, ...]:
        """Predictor of the location, then a constant for each threshold."""
        return (0, *(1 for _ in self.levels[1:]))

    @property
    def parameters(self) -> Parameters:
        """Coefficients, then thresholds."""
        return Parameters(
            (
                Block("beta", self.design.X.names),
                Block("thresholds", cuts(self.levels), component="Thresholds"),
            )
        )

    def _arranged(self, design: Design, levels: tuple[Any, ...]) -> Design:
        self.levels, self.family = levels, Ordinal(len(levels), self._link)
        keep, gone = without_constant(design, self.compute)
        if gone:
            self.note_dropped(gone, ALIASED)
        return replace(design.select_columns(keep), has_constant=False)

    def headline(self) -> tuple[str, Any]:
        """Return the order of the levels."""
        return ("Levels", ordered(self.levels))

    def family_text(self) -> str:
        """Return the link."""
        return f"cumulative {self.family.link.name}"

    def extremity(self, number: int, etas: tuple[Tensor, ...]) -> Tensor:
        """Distance to the nearest threshold: the location alone has no origin."""
        return (torch.stack(etas[1:], dim=1) - etas[0][:, None]).abs().amin(dim=1)

    def linear(self, *etas: Tensor) -> Tensor:
        """Return the predictor of the location, without thresholds."""
        return etas[0][:, None]

    def linear_labels(self) -> list[Any]:
        """One column."""
        return ["linear"]

    def probabilities(self, *etas: Tensor) -> Tensor:
        """Probability of every level, shape (rows, K)."""
        return self.family.probabilities_at(*etas)

    def loglik(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """Log-likelihood of each row."""
        etas = self.etas(params, batch)
        return self.family.log_prob_at(batch.y, *etas)

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-probability and derivatives, by those in the two limits of each row."""
        del information
        code, last = batch.y.long(), len(self.levels) - 1
        low, high = self.family.limits(code, etas[1:])
        limits = (low - etas[0], high - etas[0])

        def interval(low: Tensor, high: Tensor) -> Tensor:
            return self.family.log_interval(code, low, high)

        found = pointwise(interval, limits, order)
        low, high = found.first
        at = [(code == k + 1, code == k) for k in range(last)]
        first = [-(low + high)] + [low * a + high * b for a, b in at]
        if order < 2:
            return Point(found.value, tuple(first), {})
        zero = torch.zeros_like(low)
        ll, lh, hh = (found.second.get(p, zero) for p in ((0, 0), (0, 1), (1, 1)))
        second = {(0, 0): ll + 2 * lh + hh}
        for k, (a, b) in enumerate(at, start=1):
            second[0, k] = -((ll + lh) * a + (lh + hh) * b)
            second[k, k] = ll * a + hh * b
            if k < last:
                # Both limits of a row at level k: thresholds k and k + 1.
                second[k, k + 1] = lh * a
        return Point(found.value, tuple(first), second)

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """Thresholds of the observed shares; coefficients zero."""
        design = likelihood.design
        shift = 0.0 if design.offset is None else float(design.offset.mean())
        y = torch.tensor(np.asarray(design.y, dtype=np.float64))
        thresholds = self.family.start(y, self._start_weights(design))
        values = [0.0] * design.X.k + [t + shift for t in thresholds]
        return torch.tensor(values, dtype=torch.float64)

    def null_size(self) -> int:
        """Thresholds."""
        return len(self.levels) - 1

    def null_design(self, design: Design) -> Design:
        """Design without columns."""
        return replace(design, X=design.X.select([]))


class MultinomialModel(CategoricalModel):
    """Multinomial logit: log odds of every level against a base level.

    Parameters
    ----------
    formula, data, **options
        See `RegressionModel`. The response is categorical, strings or whole numbers.
        Offset and exposure are not taken: there is one predictor for each level.
    base : optional
        Level the others are set against; the first by default.

    References
    ----------
    McFadden, D. (1974). Conditional logit analysis of qualitative choice behavior. In
    Zarembka, P. (ed.), Frontiers in econometrics, 105-142.
    """

    title = "Multinomial logit"
    results_class: ClassVar[type[Results]] = MultinomialResults
    family: Multinomial

    def __init__(
        self, formula: str | Formula, data: Any, *, base: Any = None, **options: Any
    ) -> None:
        self._base = base
        super().__init__(formula, data, **options)
        if self.design.offset is not None:
            raise ModelError(
                "multinomial logit takes no offset or exposure: it has a linear "
                "predictor for each level and an offset belongs to one."
            )

    @property
    def options(self) -> dict[str, Any]:
        """What makes this model besides formula and data."""
        return {"base": self.levels[0]}

    @property
    def unbounded(self) -> tuple[int, ...]:
        """Every predictor can run to infinity."""
        return tuple(range(len(self.levels) - 1))

    @property
    def layout(self) -> tuple[int, ...]:
        """One predictor for each level but the base, all of the same columns."""
        return (0,) * (len(self.levels) - 1)

    @property
    def parameters(self) -> Parameters:
        """Coefficients of each level against the base."""
        names = self.design.X.names
        return Parameters(
            tuple(
                Block(
                    f"beta_{k}",
                    tuple(f"{level}:{name}" for name in names),
                    component=f"{self.design.y_name} = {level}",
                )
                for k, level in enumerate(self.levels[1:], start=1)
            )
        )

    def _arranged(self, design: Design, levels: tuple[Any, ...]) -> Design:
        at = 0
        if self._base is not None:
            if self._base not in levels:
                raise ModelError(
                    f"base={self._base!r} is not a level of {design.y_name}: "
                    f"{list(levels)}."
                )
            at = levels.index(self._base)
        order = [at, *(k for k in range(len(levels)) if k != at)]
        place = np.empty(len(levels))
        place[order] = np.arange(len(levels))
        self.levels = tuple(levels[k] for k in order)
        self.family = Multinomial(len(levels))
        return replace(design, y=place[design.y.astype(int)])

    def headline(self) -> tuple[str, Any]:
        """Return the base level."""
        return ("Base level", str(self.levels[0]))

    def family_text(self) -> str:
        """Return family and link."""
        return "multinomial (logit)"

    def linear(self, *etas: Tensor) -> Tensor:
        """Log odds against the base level."""
        return torch.stack(etas, dim=1)

    def linear_labels(self) -> list[Any]:
        """Levels but the base."""
        return list(self.levels[1:])

    def probabilities(self, *etas: Tensor) -> Tensor:
        """Probability of every level, shape (rows, K)."""
        return self.family.probabilities(*etas)

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-probability and its derivatives in closed form."""
        del information
        table = self.family.log_probabilities(*etas)
        code = batch.y.long()
        value = table.gather(1, code[:, None])[:, 0]
        p = table[:, 1:].exp().unbind(1)
        first = tuple((code == k + 1).to(q) - q for k, q in enumerate(p))
        if order < 2:
            return Point(value, first, {})
        second = {
            (j, k): p[j] * (1 - p[j]) if j == k else -p[j] * p[k]
            for j in range(len(p))
            for k in range(j, len(p))
        }
        return Point(value, first, second)

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """Log odds of the observed shares; slopes zero."""
        design = likelihood.design
        names = design.X.names
        x = torch.zeros(len(self.levels) - 1, len(names), dtype=torch.float64)
        if "Intercept" in names:
            y = torch.tensor(np.asarray(design.y, dtype=np.float64))
            odds = self.family.start(y, self._start_weights(design))
            x[:, names.index("Intercept")] = torch.tensor(odds, dtype=torch.float64)
        return x.reshape(-1)


def ordinal(
    formula: str | Formula, data: Any, *, link: Any = "logit", **options: Any
) -> OrdinalModel:
    """Cumulative link model of an ordered response; see `OrdinalModel`.

    Parameters
    ----------
    formula : str or Formula
        An intercept in it is left out: the thresholds take its place.
    data : frame or mapping
    link : {"logit", "probit", "cloglog", "loglog", "cauchit"}, default "logit"
    **options
        weights, freq_weights, offset, exposure ...; see `RegressionModel`.

    Returns
    -------
    OrdinalModel
        Call `fit`.
    """
    return OrdinalModel(formula, data, link=link, **options)


def mnlogit(
    formula: str | Formula, data: Any, *, base: Any = None, **options: Any
) -> MultinomialModel:
    """Multinomial logit; see `MultinomialModel`.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
    base : optional
        Level the others are set against; the first by default.
    **options
        weights, freq_weights ...; see `RegressionModel`.

    Returns
    -------
    MultinomialModel
        Call `fit`.
    """
    return MultinomialModel(formula, data, base=base, **options)
