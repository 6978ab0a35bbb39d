"""What a fit returns: labelled estimates, tests, predictions, tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .compute import one_thread
from .errors import ModelError
from .inference import (
    Covariance,
    HypothesisTest,
    canonical,
    covariance,
    delta_method,
    likelihood_ratio,
    linear_hypotheses,
    wald,
)
from .likelihood import PredictorLikelihood
from .optimize import solve_information
from .prediction import (
    ContrastResults,
    PredictionResults,
    delta_variance,
    row_labels,
    slopes,
)
from .summary import Notes, Pairs, Summary, coefficient_table

if TYPE_CHECKING:
    from .bootstrap import BootstrapResults
    from .effects import MarginalEffects
    from .influence import Influence
    from .models.base import RegressionModel

__all__ = ["Fit", "NullComparison", "Results", "whole"]


@dataclass(frozen=True)
class Fit:
    """What an estimation leaves behind, before it is labelled.

    Attributes
    ----------
    x : Tensor, shape (p,)
        Estimates, on the optimiser's scale.
    bread : Tensor, shape (p, p)
        Inverse information at dispersion one.
    information : {"observed", "expected"}
    scale : float
        Dispersion.
    nobs, df_resid : float
    facts : dict of str to float
        "llf" and what else the model computed while it had the data.
    converged : bool
    iterations : int
    gradient_norm : float
    message : str
    at_bound : tuple of int
        Parameters at the edge of their range.
    notes : tuple of str
        What was warned of while fitting; printed below the estimates.
    """

    x: Tensor
    bread: Tensor
    information: str
    scale: float
    nobs: float
    df_resid: float
    facts: dict[str, float] = field(default_factory=dict)
    converged: bool = True
    iterations: int = 1
    gradient_norm: float = 0.0
    message: str = "converged"
    at_bound: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


class Results:
    """Estimates of a model and what follows from them.

    The names are those of statsmodels. Everything that needs a covariance uses the
    one chosen by ``fit(cov_type=...)``; `get_robustcov_results` gives the same fit with
    another one.

    Attributes
    ----------
    params, bse, tvalues, pvalues : pandas.Series
        Estimates, standard errors, t or z statistics, two-sided p-values.
    llf, aic, bic : float
    nobs, df_model, df_resid, scale : float
    cov_type, cov_description : str
    use_t : bool
        Whether tests use Student's t (with `df_inference`) or the normal.
    converged : bool
    """

    def __init__(
        self,
        model: RegressionModel,
        fit: Fit,
        likelihood: PredictorLikelihood | None,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        use_t: bool | None = None,
        cov: Covariance | None = None,
    ) -> None:
        self.model, self.fit_info, self._likelihood = model, fit, likelihood
        self.covariance = cov or self._covariance(cov_type, cov_kwds)
        if use_t is None:
            use_t = model.t_by_default and self.covariance.kind == "nonrobust"
        self.use_t = bool(use_t)

    @classmethod
    def from_saved(
        cls,
        model: RegressionModel,
        fit: Mapping[str, Any],
        cov: Covariance,
        use_t: bool,
        kept: Mapping[str, Any],
    ) -> Results:
        """Return the results of a file: the fields of `Fit`, and attributes kept."""
        results = cls(model, Fit(**fit), None, cov=cov, use_t=use_t)
        vars(results).update(kept)
        return results

    # -- the data, while there are any ------------------------------------------------

    @property
    def likelihood(self) -> PredictorLikelihood:
        """Likelihood on the data of the fit.

        Raises
        ------
        ModelError
            After loading from a file, which holds no data.
        """
        if self._likelihood is None:
            raise ModelError(
                "these results were loaded from a file, which holds no data; fit the "
                "model again for what needs the rows."
            )
        return self._likelihood

    def _covariance(
        self, cov_type: str, cov_kwds: Mapping[str, Any] | None
    ) -> Covariance:
        fit, options = self.fit_info, dict(cov_kwds or {})
        kind = canonical(cov_type)
        if kind == "cluster":
            options["groups"] = self.likelihood.design.groupings(options.get("groups"))
        if kind == "eim" and not self.model._has_expected():
            raise ModelError(
                f"{self.model.title} has no closed-form expected information; "
                "use 'oim'."
            )
        hat_bread = None
        if kind in ("HC2", "HC3") and fit.information == "observed":
            hat_bread = self._expected_bread()
        return covariance(
            self.likelihood, fit.x, fit.bread, kind, scale=fit.scale, nobs=fit.nobs,
            df_resid=fit.df_resid, information=fit.information, hat_bread=hat_bread,
            options=options,
        )  # fmt: skip

    def _expected_bread(self) -> Tensor | None:
        """Inverse expected information, where the model has it apart."""
        if not (self.model._has_expected() and self.model._needs_polish()):
            return None
        found = self.likelihood.derivatives(self.fit_info.x, "expected")
        return solve_information(found.information)

    @one_thread()
    def get_robustcov_results(
        self,
        cov_type: str = "HC1",
        use_t: bool | None = None,
        **cov_kwds: Any,
    ) -> Results:
        """Return the same fit with other standard errors; nothing is refitted.

        Parameters
        ----------
        cov_type : str, default "HC1"
        use_t : bool, optional
            By default as these results, which is what statsmodels does: after
            ``ols(...).fit()`` tests stay t, while ``fit(cov_type="HC1")`` gives z.
        **cov_kwds
            Options of the covariance, e.g. ``groups="firm"``.
        """
        use_t = self.use_t if use_t is None else use_t
        return type(self)(
            self.model, self.fit_info, self._likelihood, cov_type, cov_kwds, use_t
        )

    # -- estimates --------------------------------------------------------------------

    @cached_property
    def names(self) -> list[str]:
        """Labels of the parameters."""
        return list(self.model.parameters.labels)

    @cached_property
    def params(self) -> pd.Series:
        """Estimates."""
        values = self.model.parameters.reported(self.fit_info.x)
        return pd.Series(values.numpy(), index=self.names, name="coef")

    @cached_property
    def _cov(self) -> np.ndarray:
        scale = self.model.parameters.scale(self.fit_info.x)
        return (self.covariance.matrix * scale[:, None] * scale).numpy()

    def cov_params(self) -> pd.DataFrame:
        """Return the covariance matrix of the estimates."""
        return pd.DataFrame(self._cov, index=self.names, columns=self.names)

    @cached_property
    def bse(self) -> pd.Series:
        """Standard errors."""
        with np.errstate(invalid="ignore"):
            return pd.Series(np.sqrt(np.diag(self._cov)), self.names, name="std err")

    @property
    def tvalues(self) -> pd.Series:
        """Estimates over their standard errors."""
        return (self.params / self.bse).rename("t" if self.use_t else "z")

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values."""
        return (2 * self._survival(self.tvalues.abs())).rename("pvalue")

    @property
    def df_inference(self) -> float:
        """Degrees of freedom of t and F: residual, or clusters less one."""
        df = self.covariance.df
        return self.df_resid if df is None else df

    def _survival(self, statistic: pd.Series) -> pd.Series:
        from scipy import special

        values = statistic.to_numpy()
        p = (
            special.stdtr(self.df_inference, -values)
            if self.use_t
            else special.ndtr(-values)
        )
        return pd.Series(p, statistic.index)

    def _quantile(self, alpha: float) -> float:
        from scipy import special

        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
        if self.use_t:
            return float(special.stdtrit(self.df_inference, 1 - alpha / 2))
        return float(special.ndtri(1 - alpha / 2))

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Return confidence intervals of level ``1 - alpha``; columns 0 and 1."""
        half = self._quantile(alpha) * self.bse
        return pd.DataFrame({0: self.params - half, 1: self.params + half})

    # -- figures of the fit -----------------------------------------------------------

    @property
    def llf(self) -> float:
        """Log-likelihood."""
        return self.fit_info.facts["llf"]

    @property
    def nobs(self) -> float:
        """Observations: rows, or the sum of frequency weights."""
        return self.fit_info.nobs

    @property
    def df_resid(self) -> float:
        """Observations less parameters."""
        return self.fit_info.df_resid

    @property
    def df_model(self) -> float:
        """Parameters that are not intercepts."""
        return float(sum(not n.endswith("Intercept") for n in self.names))

    @property
    def scale(self) -> float:
        """Dispersion."""
        return self.fit_info.scale

    @property
    def _counted(self) -> float:
        """Parameters that information criteria count."""
        return float(len(self.names))

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return -2 * self.llf + 2 * self._counted

    @property
    def bic(self) -> float:
        """Schwarz's information criterion."""
        return -2 * self.llf + float(np.log(self.nobs)) * self._counted

    @property
    def converged(self) -> bool:
        """Whether the optimiser met its criterion."""
        return self.fit_info.converged

    @property
    def mle_retvals(self) -> dict[str, Any]:
        """How the optimiser ended."""
        f = self.fit_info
        return {
            "converged": f.converged, "iterations": f.iterations, "message": f.message,
            "gradient_norm": f.gradient_norm,
        }  # fmt: skip

    @property
    def cov_type(self) -> str:
        """Kind of the standard errors."""
        return self.covariance.kind

    @property
    def cov_description(self) -> str:
        """What the standard errors are, as printed."""
        return self.covariance.description

    @property
    def cov_kwds(self) -> dict[str, Any]:
        """Options the covariance was made with."""
        return dict(self.covariance.options or {})

    @property
    def model_name(self) -> str:
        """Name of the model, as printed."""
        return self.model.title

    @property
    def formula_text(self) -> str:
        """The formula."""
        return self.model.design.spec.formula.text

    @property
    def response_name(self) -> str:
        """Name of the response."""
        return self.model.design.y_name

    # -- rows -------------------------------------------------------------------------

    def _series(self, values: Tensor, name: str) -> pd.Series:
        return pd.Series(values.numpy(), index=self.model.design.index, name=name)

    @cached_property
    def fittedvalues(self) -> pd.Series:
        """Fitted means."""
        values = self.likelihood.map(self.fit_info.x, lambda b, e: self.model.mean(*e))
        return self._series(values, "fittedvalues")

    @property
    def resid_response(self) -> pd.Series:
        """Response less fitted mean."""
        y = np.asarray(self.model.design.y, dtype=np.float64)
        return (y - self.fittedvalues).rename("resid")

    @property
    def resid(self) -> pd.Series:
        """Response residuals."""
        return self.resid_response

    @property
    def resid_pearson(self) -> pd.Series:
        """Response residuals over the standard deviation the model gives each row."""

        def pearson(batch: Any, etas: tuple[Tensor, ...]) -> Tensor:
            family = self.model.family
            size = {} if batch.size is None else {"size": batch.size}
            variance = family.variance(*etas, **size)
            value = (batch.y - family.mean(*etas)) / variance.sqrt()
            return value if batch.weights is None else value * batch.weights.sqrt()

        return self._series(
            self.likelihood.map(self.fit_info.x, pearson), "resid_pearson"
        )

    # -- prediction -------------------------------------------------------------------

    def predict(
        self,
        exog: Any = None,
        *,
        which: str = "mean",
        offset: Any = None,
        exposure: Any = None,
    ) -> pd.Series:
        """Predict the response of new data.

        Parameters
        ----------
        exog : frame or mapping, optional
            New data; those of the fit when None. Columns, levels, knots and scaling
            are those of the fit. Rows with missing values get NaN.
        which : str, default "mean"
            "mean", "linear" (predictor of the mean), or one of the model's own: see
            its class.
        offset, exposure : optional
            In place of those of the fit.

        Returns
        -------
        pandas.Series
            Indexed as the data.

        Raises
        ------
        DesignError
            For a column or a level that is not known.
        ValueError
            For an unknown `which`.
        """
        functions = self.model.predictions()
        if which not in functions:
            known = ", ".join((*functions, *self._more_predictions))
            raise ValueError(f"which={which!r} is not known here; allowed: {known}.")
        found, scatter = self._new(exog, offset, exposure)
        values = found.map(self.fit_info.x, lambda b, e: functions[which](*e))
        return scatter(values, "predicted")

    def _predicted_frame(
        self,
        function: Callable[..., Tensor],
        columns: list[Any],
        exog: Any,
        offset: Any,
        exposure: Any,
    ) -> pd.DataFrame:
        """Return a frame of a matrix-valued function of the linear predictors."""
        found, scatter = self._new(exog, offset, exposure)
        table = found.map(self.fit_info.x, lambda b, e: function(*e), len(columns))
        parts = [scatter(c.contiguous(), "p") for c in table.T]
        frame = pd.concat(parts, axis=1)
        frame.columns = pd.Index(columns)
        return frame

    def get_prediction(
        self, exog: Any = None, *, offset: Any = None, exposure: Any = None
    ) -> PredictionResults:
        """Predict with standard errors and intervals.

        Parameters
        ----------
        exog, offset, exposure
            As in `predict`.

        Returns
        -------
        PredictionResults
        """
        found, scatter = self._new(exog, offset, exposure)
        middle = found.raw_middle(self.covariance.matrix)
        x = self.fit_info.x

        def both(batch: Any, etas: tuple[Tensor, ...]) -> Tensor:
            mean, change = slopes(self.model.mean, etas)
            linear = batch.blocks[0].bilinear(middle[0, 0], batch.blocks[0])
            total = delta_variance(batch, found.layout, middle, change)
            return torch.stack([mean, total.sqrt(), etas[0], linear.sqrt()], dim=1)

        columns = found.map(x, both, 4).T
        names = ("mean", "mean_se", "linear", "linear_se")
        frame = pd.concat(
            [scatter(c.contiguous(), n) for c, n in zip(columns, names, strict=True)],
            axis=1,
        )
        return PredictionResults(self, frame)

    def _new(
        self, data: Any, offset: Any, exposure: Any
    ) -> tuple[PredictorLikelihood, Callable[[Tensor, str], pd.Series]]:
        """Likelihood on new data, and how to label its rows."""
        if data is None:
            if offset is not None or exposure is not None:
                raise ValueError("offset and exposure go with new data.")
            return self.likelihood, self._series
        design = self.model.design.spec.rebuild(data, offset=offset, exposure=exposure)
        found = PredictorLikelihood(self.model, design, self.model.compute)
        return found, row_labels(design, data)

    # -- tests ------------------------------------------------------------------------

    def wald_test(
        self, hypotheses: Any, *, use_f: bool | None = None
    ) -> HypothesisTest:
        """Test linear hypotheses jointly.

        Parameters
        ----------
        hypotheses : str, sequence of str or array_like
            ``"x1 = x2, x3 = 0"`` or a matrix; see `inference.linear_hypotheses`.
        use_f : bool, optional
            F instead of chi-squared; by default as the tests of coefficients.
        """
        R, q, _ = linear_hypotheses(hypotheses, self.names)
        use_f = self.use_t if use_f is None else use_f
        df = self.df_inference if use_f else None
        return wald(self.params.to_numpy(), self._cov, R, q, df)

    def f_test(self, hypotheses: Any) -> HypothesisTest:
        """Test linear hypotheses jointly by F; see `wald_test`."""
        return self.wald_test(hypotheses, use_f=True)

    def t_test(self, hypotheses: Any, *, alpha: float = 0.05) -> ContrastResults:
        """Estimate and test linear combinations one by one.

        Parameters
        ----------
        hypotheses : str, sequence of str or array_like
            ``"x1 - x2"`` or ``"x1 = x2"``.
        alpha : float, default 0.05
        """
        R, q, labels = linear_hypotheses(hypotheses, self.names)
        estimate = pd.Series(R @ self.params.to_numpy(), list(labels))
        se = pd.Series(np.sqrt(np.diag(R @ self._cov @ R.T)), list(labels))
        statistic = (estimate - q) / se
        p = 2 * self._survival(statistic.abs())
        half = self._quantile(alpha) * se
        frame = pd.DataFrame(
            {"coef": estimate, "std err": se, "t" if self.use_t else "z": statistic,
             "pvalue": p, "lower": estimate - half, "upper": estimate + half}
        )  # fmt: skip
        return ContrastResults(frame, self.use_t, 1 - alpha)

    def wald_test_terms(self, *, use_f: bool | None = None) -> pd.DataFrame:
        """Test every term of the formula: all its columns at zero."""
        rows = {}
        for term, at in self._term_columns().items():
            R = np.eye(len(self.names))[at]
            test = self.wald_test(R, use_f=use_f)
            rows[term] = (test.statistic, test.df_num, test.pvalue)
        use_f = self.use_t if use_f is None else use_f
        head = "F" if use_f else "chi2"
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=[head, "df", "pvalue"]
        )

    def _term_columns(self) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        terms = sorted(
            (t for t in self.model.design.spec.formula.rhs.terms if t.factors),
            key=lambda t: -len(t.factors),
        )
        for j, name in enumerate(self.model.design.X.names):
            for term in terms:
                parts = _split_name(name)
                if len(parts) == len(term.factors) and all(
                    p == f or p.startswith(f"{f}[")
                    for p, f in zip(parts, term.factors, strict=True)
                ):
                    out.setdefault(term.name, []).append(j)
                    break
        return out

    def compare_lr_test(self, restricted: Results) -> HypothesisTest:
        """Likelihood-ratio test against a nested model fitted to the same rows.

        Raises
        ------
        ValueError
            If the other model has other rows, or not fewer parameters.
        """
        if restricted.nobs != self.nobs:
            raise ValueError(
                f"the models use {self.nobs:g} and {restricted.nobs:g} observations; a "
                "likelihood-ratio test needs the same rows."
            )
        if restricted.response_name != self.response_name:
            raise ValueError(
                f"the models explain {self.response_name} and "
                f"{restricted.response_name}; their likelihoods cannot be compared."
            )
        df = restricted.df_resid - self.df_resid
        if df <= 0:
            raise ValueError(
                "the model given must have fewer parameters than this one."
            )
        return likelihood_ratio(self.llf, restricted.llf, df)

    def lr_test(self, hypotheses: Any) -> HypothesisTest:
        """Likelihood-ratio test of linear hypotheses; see `anova.lr_test`."""
        from .anova import lr_test

        return lr_test(self, hypotheses)

    def score_test(
        self, hypotheses: Any, *, information: str | None = None
    ) -> HypothesisTest:
        """Rao's score test of linear hypotheses; see `anova.score_test`."""
        from .anova import score_test

        return score_test(self, hypotheses, information=information)

    def delta_method(
        self, function: Callable[[Tensor], Tensor], labels: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Estimate a smooth function of the parameters with its standard error.

        Parameters
        ----------
        function : callable
            From the vector of `params` (a tensor) to a number or a vector, in torch.
        labels : sequence of str, optional
        """
        value, cov = delta_method(
            function, torch.tensor(self.params.to_numpy()), torch.tensor(self._cov)
        )
        estimate, se = value.numpy(), cov.diagonal().sqrt().numpy()
        half = self._quantile(0.05) * se
        return pd.DataFrame(
            {"estimate": estimate, "std_error": se, "conf_low": estimate - half,
             "conf_high": estimate + half},
            index=list(labels) if labels is not None else None,
        )  # fmt: skip

    def get_margeff(
        self,
        at: str = "overall",
        method: str = "dydx",
        *,
        dummy: bool = False,
        count: bool = False,
    ) -> MarginalEffects:
        """Effects of the design's columns on the mean; see `effects.margeff`."""
        from .effects import margeff

        return margeff(self, at, method, dummy=dummy, count=count)

    def marginal_effects(
        self,
        variables: str | Sequence[str] | None = None,
        newdata: Any = None,
        *,
        conf_level: float = 0.95,
    ) -> pd.DataFrame:
        """Average effects of the variables; see `effects.marginal_effects`."""
        from .effects import marginal_effects

        return marginal_effects(self, variables, newdata, conf_level=conf_level)

    def bootstrap(
        self,
        kind: str = "pairs",
        replications: int = 999,
        *,
        groups: Any = None,
        seed: int | None = None,
        statistic: Callable[[pd.Series], Any] | None = None,
    ) -> BootstrapResults:
        """Fit to many resampled data sets at once; see `bootstrap.bootstrap`."""
        from .bootstrap import bootstrap

        return bootstrap(
            self, kind, replications, groups=groups, seed=seed, statistic=statistic
        )

    def get_influence(self) -> Influence:
        """Return leverages, studentised residuals, Cook's distances and dfbetas.

        Raises
        ------
        ModelError
            For models other than least squares and GLMs.
        """
        from .influence import influence

        return influence(self)

    # -- tables -----------------------------------------------------------------------

    def tidy(self, conf_level: float = 0.95) -> pd.DataFrame:
        """Return one row for each parameter, with broom's columns."""
        ci = self.conf_int(1 - conf_level)
        return pd.DataFrame(
            {
                "term": self.names,
                "estimate": self.params.to_numpy(),
                "std_error": self.bse.to_numpy(),
                "statistic": self.tvalues.to_numpy(),
                "p_value": self.pvalues.to_numpy(),
                "conf_low": ci[0].to_numpy(),
                "conf_high": ci[1].to_numpy(),
                "component": list(self.model.parameters.components),
            }
        )

    def glance(self) -> pd.DataFrame:
        """Return the figures of the fit in one row."""
        row = {
            "nobs": self.nobs, "df_model": self.df_model, "df_resid": self.df_resid,
            "llf": self.llf, "aic": self.aic, "bic": self.bic, "scale": self.scale,
            "converged": self.converged,
        }  # fmt: skip
        return pd.DataFrame([{**row, **self._extra_glance()}])

    _more_predictions: tuple[str, ...] = ()

    def _new_variance(self) -> float | None:
        """Variance of a new observation about its mean, where it is constant."""
        return None

    def _extra_glance(self) -> dict[str, float]:
        return {}

    def augment(self) -> pd.DataFrame:
        """Return the rows used with fitted values and residuals, as broom does."""
        frame = pd.DataFrame(
            {".fitted": self.fittedvalues, ".resid": self.resid_response}
        )
        frame.insert(0, self.response_name, self._observed())
        return frame.assign(**self._extra_augment())

    def _observed(self) -> np.ndarray:
        return np.asarray(self.model.design.y)

    def _extra_augment(self) -> dict[str, Any]:
        from .influence import augment_columns

        return augment_columns(self)

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        table = coefficient_table(
            self.params, self.bse, self.tvalues, self.pvalues, self.conf_int(alpha),
            self.use_t, conf_level=1 - alpha, **self._sections(),
        )  # fmt: skip
        blocks: list[Any] = [Pairs(tuple(self._header())), table]
        if notes := self._notes():
            blocks.append(Notes(tuple(notes)))
        return Summary(self.model_name, self.formula_text, tuple(blocks))

    def _sections(self) -> dict[str, Any]:
        components = self.model.parameters.components
        return {"component": components} if any(components) else {}

    def _header(self) -> list[tuple[str, Any]]:
        steps = f"Newton, {counted(self.fit_info.iterations, 'step')}"
        return [
            ("Family", self._family_text()), ("Method", steps),
            ("SE", self.cov_description), ("Observations", whole(self.nobs)),
            ("Df residuals", whole(self.df_resid)),
            ("Converged", "yes" if self.converged else "NO"),
            ("Log-likelihood", self.llf), ("AIC", self.aic), ("BIC", self.bic),
        ]  # fmt: skip

    def _family_text(self) -> str:
        family = self.model.family
        return f"{family.name} ({family.links[0].name})"

    def _notes(self) -> list[str]:
        design, out = self.model.design, []
        if design.n_missing:
            rows = counted(design.n_missing, "row")
            out.append(f"Left out: {rows} with missing values.")
        if design.n_zero_weight:
            rows = counted(design.n_zero_weight, "row")
            out.append(f"Left out: {rows} of weight zero.")
        if not self.converged:
            out.append(f"NOT CONVERGED: {self.fit_info.message}.")
        return [*out, *self.fit_info.notes]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.model_name}, {self.formula_text}>"

    def _repr_html_(self) -> str:
        return self.summary().as_html()

    def save(self, path: str | Path) -> Path:
        """Write the fit, without the data, to a file; see `persist.save`."""
        from .persist import save

        return save(self, path)

    @property
    def __maketables_coef_table__(self) -> pd.DataFrame:
        from .adapters import maketables_table

        return maketables_table(self)

    def __maketables_stat__(self, key: str) -> Any:
        from .adapters import maketables_statistic

        return maketables_statistic(self, key)

    @property
    def __maketables_depvar__(self) -> str:
        return self.response_name

    @property
    def __maketables_vcov_info__(self) -> dict[str, Any]:
        return {"vcov_type": self.cov_type, "se_type": self.cov_description}

    def compare(self, other: Any, **options: Any) -> Any:
        """Set these estimates beside another program's; see `summary.compare`."""
        from .summary import compare

        return compare(self, other, **options)


class CountPredictions:
    """Adds probabilities of counts to `Results.predict`."""

    _more_predictions = ("prob",)

    def predict(
        self,
        exog: Any = None,
        *,
        which: str = "mean",
        offset: Any = None,
        exposure: Any = None,
        y_values: Sequence[int] | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Predict the response of new data.

        Parameters
        ----------
        exog : frame or mapping, optional
            New data; those of the fit when None. Rows with missing values get NaN.
        which : str, default "mean"
            "mean" E(y); "linear" the predictor of the count part's mean; "var" the
            variance of y; "prob-zero" P(y = 0); "prob" a frame with P(y = k) in column
            k. Zero-inflated models also have "mean-main", the mean of their count
            part, and "prob-inflate", the probability of a certain zero; hurdle models
            "mean-main", the mean before truncation, "mean-nonzero" E(y | y > 0) and
            "prob-nonzero" P(y > 0).
        offset, exposure : optional
            In place of those of the fit.
        y_values : sequence of int, optional
            The counts k of ``which="prob"``; by default 0 to the largest observed.

        Returns
        -------
        pandas.Series or pandas.DataFrame
            Indexed as the data.
        """
        if which != "prob":
            if y_values is not None:
                raise ValueError("y_values goes with which='prob'.")
            return super().predict(exog, which=which, offset=offset, exposure=exposure)
        if y_values is None:
            y_values = range(int(self.model.design.y.max()) + 1)
        counts = torch.tensor([int(k) for k in y_values], dtype=torch.float64)
        self.model.family.check(counts)

        def table(*etas: Tensor) -> Tensor:
            wide = [e[:, None] for e in etas]
            return self.model.family.log_prob(counts.to(etas[0]), *wide).exp()

        columns = [int(k) for k in y_values]
        return self._predicted_frame(table, columns, exog, offset, exposure)


class NullComparison:
    """What results add that know `llnull`, the likelihood of the constant alone."""

    llf: float
    llnull: float
    df_model: float

    @property
    def prsquared(self) -> float:
        """McFadden's pseudo R-squared."""
        return 1 - self.llf / self.llnull

    @property
    def llr(self) -> float:
        """Likelihood-ratio statistic of all slopes."""
        return 2 * (self.llf - self.llnull)

    @property
    def llr_pvalue(self) -> float:
        """P-value of `llr`."""
        from scipy import stats

        return float(stats.chi2.sf(self.llr, self.df_model))


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: one step, two steps."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def whole(value: float) -> float | int:
    """Return an integer where the value is one, so that it prints as one."""
    return int(value) if float(value).is_integer() else value


def _split_name(name: str) -> list[str]:
    """Split a column's name at the colons that are not inside brackets."""
    out, depth, start = [], 0, 0
    for i, character in enumerate(name):
        depth += (character in "([") - (character in ")]")
        if character == ":" and depth == 0:
            out.append(name[start:i])
            start = i + 1
    return [*out, name[start:]]
