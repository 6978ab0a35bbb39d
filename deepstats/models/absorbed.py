"""Regressions whose fixed effects are absorbed: ``y ~ x | firm + year``.

By Frisch, Waugh and Lovell the estimates, their information and their scores are those
of the columns *demeaned*: residuals on the effects, in the weights of the fit. The
design of these models holds the demeaned columns, and the effects (with the caller's
offset) as the offset of each row, so that linear predictors, and all that is made from
them, are those of the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from ..absorb import DOF_RULES
from ..compute import one_thread
from ..errors import (
    ConvergenceWarning,
    DesignError,
    ModelError,
    SeparationWarning,
    caution,
)
from ..families import get_family
from ..formula import Formula
from ..inference import Covariance, HypothesisTest, canonical, covariance
from ..leastsquares import least_squares
from ..likelihood import PredictorLikelihood
from ..optimize import solve_information
from ..prediction import PredictionResults, row_labels
from ..results import Fit, counted
from .demeaned import TOLERANCE, AbsorbingModel, Array, norms_of
from .glm import GLM, GLMResults
from .linear import OLS, OLSResults

if TYPE_CHECKING:
    from ..results import Results as _Mixed
else:
    _Mixed = object

__all__ = [
    "AbsorbedGLM",
    "AbsorbedGLMResults",
    "AbsorbedOLS",
    "AbsorbedOLSResults",
    "absorbed_glm",
    "absorbed_ols",
]


_ROUGH = 1e-6  # while scoring is far from the solution
_COV_TYPES = ("nonrobust", "HC0", "HC1", "cluster", "HAC")
_BINARY = ("binomial", "quasibinomial")
_COUNTS = ("poisson", "quasipoisson", "negativebinomial")
_MOVING, _SHORT = 0.1, 0.01
_COUNTED = {
    "nested": "fixed effects nested in clusters not counted",
    "full": "all fixed effects counted",
    "none": "no fixed effects counted",
}


# -- results --------------------------------------------------------------------------


class _Absorbed(_Mixed):
    """What results of models with absorbed effects add to those of their kind."""

    def _covariance(
        self, cov_type: str, cov_kwds: Mapping[str, Any] | None
    ) -> Covariance:
        kind, options = canonical(cov_type), dict(cov_kwds or {})
        if kind not in _COV_TYPES:
            raise ModelError(
                f"{kind} standard errors are not defined with absorbed fixed effects"
                + (
                    " (leverages need the effects' covariance)"
                    * (kind in ("HC2", "HC3"))
                )
                + f"; use one of {', '.join(_COV_TYPES)}."
            )
        rule = options.pop("fixef_k", "nested")
        exact = bool(options.pop("fixef_exact", True))
        if rule not in DOF_RULES:
            raise ValueError(f"fixef_k must be one of {DOF_RULES}, not {rule!r}.")
        clusters = None
        if kind == "cluster":
            groups = self.likelihood.design.groupings(options.get("groups"))
            clusters = [g.codes for g in groups]
            options = {"ssc": "min", **options, "groups": groups}
        fit = self.fit_info
        effects = self.model.effects_df(clusters, rule, exact)
        counted = len(fit.x) + effects
        df_resid = fit.nobs - counted
        if kind == "cluster":
            options["parameters"] = counted
        # The dispersion of the fit was made with all effects counted.
        scale = fit.scale
        if kind == "nonrobust" and self.model.dispersed:
            scale = scale * fit.df_resid / df_resid
        found = covariance(
            self.likelihood, fit.x, fit.bread, kind, scale=scale, nobs=fit.nobs,
            df_resid=df_resid, information=fit.information, options=options,
        )  # fmt: skip
        matrix = found.matrix
        if kind == "nonrobust" and not self.model.dispersed:
            matrix = matrix * (fit.nobs - 1) / df_resid
        told = {**(found.options or {}), "fixef_k": rule, "fixef_exact": exact}
        told["parameters"] = counted
        df = found.df if kind == "cluster" else df_resid
        return replace(found, matrix=matrix, options=told, df=df)

    def get_robustcov_results(
        self, cov_type: str = "HC1", use_t: bool | None = None, **cov_kwds: Any
    ) -> _Absorbed:
        """Return the same fit with other standard errors; nothing is refitted.

        Parameters
        ----------
        cov_type : str, default "HC1"
        use_t : bool, optional
            As in the fit by default.
        **cov_kwds
            Options of the covariance, e.g. ``groups="firm"``.
        """
        use_t = self.use_t if use_t is None else use_t
        return super().get_robustcov_results(cov_type, use_t, **cov_kwds)

    def fixef(self) -> dict[str, pd.Series]:
        """Return the estimated fixed effects by factor, indexed by level.

        Only sums of effects are identified: within each connected component of the
        first factor and a further one, the first level of the further factor is zero.

        Returns
        -------
        dict of str to Series
        """
        groups = self.model.design.absorbed
        found = self.model.recovered(self.fit_info.x)
        return {
            g.name: pd.Series(values, index=pd.Index(g.levels), name=g.name)
            for g, values in zip(groups, found, strict=True)
        }

    def predict(
        self,
        exog: Any = None,
        *,
        which: str = "mean",
        offset: Any = None,
        exposure: Any = None,
    ) -> pd.Series:
        """Predict the response of new data with the estimated fixed effects.

        Parameters
        ----------
        exog, which, offset, exposure
            As in `Results.predict`.

        Raises
        ------
        DesignError
            For a level of a fixed effect that has no estimate.
        """
        if exog is None:
            return super().predict(None, which=which, offset=offset, exposure=exposure)
        if which not in ("mean", "linear"):
            raise ValueError(f"which must be 'mean' or 'linear', not {which!r}.")
        design, eta = self.model.linear_of(exog, self.fit_info.x, offset, exposure)
        value = self.model.mean(eta) if which == "mean" else eta
        return row_labels(design, exog)(value, "predicted")

    def get_prediction(
        self, exog: Any = None, *, offset: Any = None, exposure: Any = None
    ) -> PredictionResults:
        """Not available: raises `ModelError`. Use `predict` for the means alone."""
        raise ModelError(
            "standard errors of predictions need the covariance of the fixed effects, "
            "which absorbing them avoids; use predict(), or write effects as C(...)."
        )

    @property
    def df_model(self) -> float:
        """Parameters besides a constant: coefficients and fixed effects less one."""
        return self.nobs - self.df_resid - 1

    @property
    def _counted(self) -> float:
        return self.nobs - self.df_resid

    def _header(self) -> list[tuple[str, Any]]:
        out = super()._header()
        effects = ", ".join(f"{g.name} ({len(g)})" for g in self.model.design.absorbed)
        return [*out, ("Fixed effects", effects)]

    def _notes(self) -> list[str]:
        out = super()._notes()
        facts, options = self.fit_info.facts, self.cov_kwds
        if facts["singletons"]:
            out.append(
                f"{int(facts['singletons'])} rows alone in a level of a fixed effect "
                "(singletons) were left out."
            )
        if facts["separated"]:
            out.append(
                f"{int(facts['separated'])} rows in levels whose outcomes are all at "
                "the edge of their range were left out: those effects are infinite."
            )
        if self.cov_type == "HC0":
            return out
        counted = int(options["parameters"])
        rule = _COUNTED[options["fixef_k"] if self.cov_type == "cluster" else "full"]
        if options["fixef_k"] == "none":
            rule = _COUNTED["none"]
        text = f"Small-sample factor as in fixest: K = {counted}, {rule}"
        if self.cov_type == "cluster":
            text += f"; (n - 1)/(n - K) and {options['ssc']} G/(G - 1)"
        elif self.cov_type == "nonrobust" and not self.model.dispersed:
            text += "; (n - 1)/(n - K)"
        else:
            text += "; n - K degrees of freedom"
        return [*out, text + "."]


class AbsorbedOLSResults(_Absorbed, OLSResults):
    """Least squares with absorbed effects; adds the within R-squared."""

    def _has_constant(self) -> bool:
        return True

    @cached_property
    def _overall(self) -> HypothesisTest:
        """F test of all columns; the fixed effects are not tested."""
        return self.f_test(np.eye(len(self.names)))

    @property
    def rsquared_within(self) -> float:
        """Share of the variance left by the fixed effects that x explains."""
        return 1 - self.ssr / self.fit_info.facts["within_tss"]

    @property
    def rsquared_adj_within(self) -> float:
        """Within R-squared adjusted for degrees of freedom."""
        lost = self.df_resid + len(self.names)
        return 1 - (1 - self.rsquared_within) * lost / self.df_resid

    def _extra_glance(self) -> dict[str, float]:
        return {**super()._extra_glance(), "rsquared_within": self.rsquared_within}

    def _header(self) -> list[tuple[str, Any]]:
        return [*super()._header(), ("Within R-squared", self.rsquared_within)]


class AbsorbedGLMResults(_Absorbed, GLMResults):
    """A generalised linear model with absorbed effects."""

    def _header(self) -> list[tuple[str, Any]]:
        steps = f"Fisher scoring, {counted(self.fit_info.iterations, 'step')}"
        return [(k, steps if k == "Method" else v) for k, v in super()._header()]


# -- models ---------------------------------------------------------------------------


class AbsorbedOLS(AbsorbingModel, OLS):
    """Least squares with absorbed fixed effects.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x | firm + year"``; ``firm:year`` (or fixest's ``firm^year``) is one
        effect for each combination.
    data : frame or mapping
    singletons : {"drop", "keep"}, default "drop"
        Rows that are alone in a level say nothing about x and make cluster-robust
        standard errors too small [1]_; counted in the summary.
    **options
        See `RegressionModel`.

    References
    ----------
    .. [1] Correia (2015), Singletons, cluster-robust standard errors and fixed
       effects: a bad mix.
    """

    title = "Least squares, absorbed effects"
    results_class = AbsorbedOLSResults
    dispersed = True

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        singletons: str = "drop",
        **options: Any,
    ) -> None:
        super().__init__(formula, data, absorb=True, **options)
        self._prepare(singletons)

    @one_thread()
    def fit(
        self,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        use_t: bool | None = None,
    ) -> AbsorbedOLSResults:
        """Demean, then solve the least-squares problem.

        Parameters
        ----------
        cov_type : {"nonrobust", "HC0", "HC1", "cluster", "HAC"}
        cov_kwds : mapping, optional
            As in `inference.covariance`, and ``fixef_k``: "nested" (default; effects
            nested in a cluster are not counted), "full" or "none"; ``fixef_exact``:
            whether two factors' redundant levels are counted exactly (default), not
            as one. Two-way clusters take the smaller G (``ssc="min"``). These are
            fixest's defaults but for ``fixef_exact``.
        use_t : bool, optional
            By default Student's t for every kind, as fixest: n - K degrees of freedom,
            or the smallest number of clusters less one.

        Returns
        -------
        AbsorbedOLSResults
        """
        M, norms = self._columns()
        y = np.array(self._given.y, dtype=np.float64)
        given = y if self._given.offset is None else y - self._given.offset
        w = self._prior()
        mean = given.mean() if w is None else (w @ given) / w.sum()
        M[:, 0] = given - mean
        M = self._absorber(w, TOLERANCE).demean(M)
        within = float(norms_of(M[:, :1], w)[0] ** 2)
        if within <= (1e-10 * max(np.abs(y).max(), 1e-300)) ** 2 * len(y):
            raise DesignError(
                f"the response {self._given.y_name} is constant within the fixed "
                "effects; there is nothing to explain."
            )
        M = self._independent(M, norms, w)
        self._final_weights = w
        # y less this offset is the demeaned response.
        self._demeaned(M, y - M[:, 0])
        return self._solved(within, cov_type, cov_kwds, use_t)

    def _given_offset(self) -> np.ndarray | None:
        return self._given.offset

    def _solved(
        self,
        within: float,
        cov_type: str,
        cov_kwds: Mapping[str, Any] | None,
        use_t: bool | None,
    ) -> AbsorbedOLSResults:
        design = self.design
        solution = least_squares(design, self.compute)
        f = design.freq_weights
        nobs = float(design.n if f is None else f.sum())
        df_resid = nobs - design.X.k - self.effects_df(None, "full", True)
        likelihood = PredictorLikelihood(self, design, self.compute)
        facts = self._facts(likelihood, solution, nobs)
        facts.update(
            constant=1.0, within_tss=within, singletons=float(self.n_singletons),
            separated=0.0,
        )  # fmt: skip
        if df_resid <= 0:
            raise DesignError(
                f"{design.X.k} coefficients and the fixed effects fit the {nobs:g} "
                "observations exactly."
            )
        fit = Fit(
            x=solution.params, bread=solution.inverse, information="expected",
            scale=solution.ssr / df_resid if df_resid > 0 else nan, nobs=nobs,
            df_resid=df_resid, facts=facts, message=solution.method,
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        use_t = True if use_t is None else use_t
        return AbsorbedOLSResults(self, fit, likelihood, cov_type, cov_kwds, use_t)


class AbsorbedGLM(AbsorbingModel, GLM):
    """Generalised linear model with absorbed fixed effects.

    Fisher scoring, each step a least-squares problem demeaned in its own weights
    [1]_ [2]_. With few rows a level, effects of a logit or probit model bias the
    coefficients (incidental parameters); a Poisson model has no such bias with one
    effect.

    Parameters
    ----------
    formula, data, singletons
        As in `AbsorbedOLS`. Levels whose outcomes are all zero (counts), or all zero
        or all one (binary), have infinite effects; their rows are left out and counted.
    family, link, scale, **options
        See `GLM`.

    References
    ----------
    .. [1] Stammann (2018), Fast and feasible estimation of generalized linear models
       with high-dimensional k-way fixed effects, arXiv:1707.01815.
    .. [2] Correia, Guimarães & Zylkin (2020), Fast Poisson estimation with
       high-dimensional fixed effects, Stata Journal 20(1).
    """

    results_class: ClassVar[type] = AbsorbedGLMResults

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        singletons: str = "drop",
        **options: Any,
    ) -> None:
        title = options.pop("title", None)
        super().__init__(formula, data, absorb=True, **options)
        self.title = f"{title or self.title}, absorbed effects"
        self._prepare(singletons)

    @property
    def dispersed(self) -> bool:
        """Whether the family has a dispersion that is estimated."""
        return self.family.scale != "one"

    def _separated(self, codes: list[Array], kept: Array) -> Array:
        name = self.family.name
        binary, counts = name in _BINARY, name in _COUNTS
        out = np.zeros(len(kept), dtype=bool)
        if not (binary or counts) or not len(kept):
            return out
        y = np.asarray(self.design.y, dtype=np.float64)[kept]
        for c in codes:
            rows = np.bincount(c)
            at_edge = np.bincount(c, y != 0) == 0
            if binary:
                at_edge |= np.bincount(c, y != 1) == 0
            out |= (at_edge & (rows > 0))[c]
        return out

    @one_thread()
    def fit(
        self,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        use_t: bool | None = None,
        maxiter: int = 100,
        tol: float = 1e-6,
        information: str | None = None,
    ) -> AbsorbedGLMResults:
        """Estimate by Fisher scoring.

        Parameters
        ----------
        cov_type, cov_kwds
            As in `AbsorbedOLS.fit`. "nonrobust" of a family without a dispersion is
            multiplied by (n - 1)/(n - K), as fixest does.
        use_t : bool, optional
            By default the normal for families without a dispersion, else Student's t.
        maxiter : int, default 100
        tol : float, default 1e-6
            On the length of the last step of all parameters, in standard errors.
        information : {"expected", "observed"}, optional
            In whose weights columns are finally demeaned; the same with a canonical
            link.

        Returns
        -------
        AbsorbedGLMResults
        """
        which = self._which_information(information)
        state = self._score(maxiter, tol)
        M = state.M
        if which == "observed" and not self._scoring_is_newton():
            _, _, weight = self._point(state.eta, "observed")
            self._final_weights = weight
            if (weight <= 0).any():
                raise ModelError(
                    "the observed information is not positive in every row; use "
                    "information='expected'."
                )
            M = self._absorber(weight, TOLERANCE).demean(M)
        self._demeaned(M, state.eta - M[:, 1:] @ state.beta)
        self._warn_of(state)
        return self._labelled(state, which, cov_type, cov_kwds, use_t)

    def _labelled(
        self,
        state: _State,
        information: str,
        cov_type: str,
        cov_kwds: Mapping[str, Any] | None,
        use_t: bool | None,
    ) -> AbsorbedGLMResults:
        design = self.design
        likelihood = PredictorLikelihood(self, design, self.compute)
        x = torch.from_numpy(state.beta)
        found = likelihood.derivatives(x, information)
        f = design.freq_weights
        nobs = float(design.n if f is None else f.sum())
        df_resid = nobs - design.X.k - self.effects_df(None, "full", True)
        scale = self.scale(likelihood, x, df_resid)
        facts = self.facts(likelihood, x, scale, found.value)
        facts.update(
            singletons=float(self.n_singletons), separated=float(self.n_separated)
        )
        fit = Fit(
            x=x, bread=solve_information(found.information), information=information,
            scale=scale, nobs=nobs, df_resid=df_resid, facts=facts,
            converged=state.converged, iterations=state.iterations,
            gradient_norm=float(found.gradient.abs().max()), message=state.message,
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        use_t = self.dispersed if use_t is None else use_t
        return AbsorbedGLMResults(self, fit, likelihood, cov_type, cov_kwds, use_t)

    def _point(
        self, eta: Array, information: str = "expected"
    ) -> tuple[float, Array, Array]:
        """Value, working residual and weight of every row at linear predictors."""
        batch, prior = self._full_batch, self._prior()
        point = self.point(batch, (torch.from_numpy(eta),), 2, information)
        u, weight = point.first[0].numpy(), point.second[0, 0].numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            residual = np.where(weight != 0, u / weight, 0.0)
        if prior is None:
            return float(point.value.sum()), residual, weight
        return float(prior @ point.value.numpy()), residual, prior * weight

    @cached_property
    def _full_batch(self) -> Any:
        """Responses and sizes of all rows; the columns are not asked for."""
        from types import SimpleNamespace

        y = torch.from_numpy(np.array(self._given.y, dtype=np.float64))
        size = self._given.size
        return SimpleNamespace(y=y, size=None if size is None else torch.tensor(size))

    def _first_eta(self) -> Array:
        batch, family = self._full_batch, self.family
        size = () if batch.size is None else (batch.size,)
        return family.link(family.start_mu(batch.y, *size)).numpy().copy()

    def _score(self, maxiter: int, tol: float) -> _State:
        """Fisher scoring: weighted least squares of the working response, demeaned."""
        M, norms = self._columns()
        offset = 0.0 if self._given.offset is None else self._given.offset
        eta = self._first_eta()
        value, residual, w = self._point(eta)
        decrement, message, converged, checked = np.inf, "", False, False
        for iteration in range(1, maxiter + 1):
            M[:, 0] = eta - offset + residual
            rough = decrement > 1.0
            # A column that was demeaned in other weights differs from the one given
            # by effects only, and is shorter: its residual is more accurate.
            demeaned = self._absorber(w, _ROUGH if rough else TOLERANCE).demean(M)
            M = np.asfortranarray(demeaned)
            if not checked:
                M, checked = self._independent(M, norms, w), True
            beta = _weighted_solution(M, w)
            error = M[:, 0] - M[:, 1:] @ beta
            step = residual - error
            decrement = float(np.sqrt(w @ step**2))
            self._final_weights = w
            if decrement < tol and not rough:
                eta, converged, message = eta + step, True, "converged"
                break
            # The first predictors are near the data and not in the model's span.
            found = self._search(eta, value if iteration > 1 else -np.inf, step)
            if found is None:
                converged = decrement < 1e-3
                message = "converged to rounding" if converged else "no step helps"
                break
            eta, (value, residual, w) = found
        else:
            message = f"not converged in {maxiter} iterations"
        moved = float(np.abs(step).max())
        return _State(M, beta, eta, converged, iteration, decrement, moved, message)

    def _search(
        self, eta: Array, value: float, step: Array
    ) -> tuple[Array, tuple[float, Array, Array]] | None:
        """Halve the step until the value does not fall."""
        length = 1.0
        least = value - 1e-12 * (1.0 + abs(value)) if np.isfinite(value) else value
        for _ in range(30):
            trial = eta + length * step
            after = self._point(trial)
            finite = np.isfinite(after[0]) and np.isfinite(after[2]).all()
            if finite and (after[2] >= 0).all() and after[0] >= least:
                return trial, after
            length /= 2
        return None

    def _warn_of(self, state: _State) -> None:
        # Where the likelihood has a maximum, a step that is short in standard errors
        # is short in every row; on the way to infinity some rows move by one a step.
        infinite = state.moved > _MOVING and state.decrement < _SHORT
        if self.family.name in _BINARY + _COUNTS and infinite:
            self.caution(
                "fitted means run to the edge of their range: outcomes are predicted "
                "perfectly by x and the fixed effects together, and some estimates are "
                "infinite. Leave terms out or merge levels.",
                SeparationWarning,
            )
        elif not state.converged:
            caution(
                f"{self.title} did not converge: {state.message} (last step "
                f"{state.decrement:.2g} standard errors). Rescale the variables or "
                "raise maxiter=.",
                ConvergenceWarning,
            )

    def null_figures(self, likelihood: PredictorLikelihood) -> tuple[float, float]:
        """Log-likelihood and deviance of a constant alone, without fixed effects."""
        design = replace(likelihood.design, offset=self._given.offset)
        return super().null_figures(PredictorLikelihood(self, design, self.compute))


@dataclass(frozen=True)
class _State:
    """Where scoring stopped.

    Attributes
    ----------
    M : ndarray, shape (n, 1 + k)
        Demeaned working response and columns.
    beta : ndarray, shape (k,)
    eta : ndarray, shape (n,)
    converged : bool
    iterations : int
    decrement : float
        Length of the last step, in standard errors.
    moved : float
        Largest change of a linear predictor in it.
    message : str
    """

    M: Array
    beta: Array
    eta: Array
    converged: bool
    iterations: int
    decrement: float
    moved: float
    message: str


# -- functions that never touch a model -----------------------------------------------


def _weighted_solution(M: Array, w: Array) -> Array:
    """Regress the first column on the others."""
    X = M[:, 1:]
    weighted = X * w[:, None]
    gram = torch.from_numpy(weighted.T @ X)
    beta = solve_information(gram).numpy() @ (weighted.T @ M[:, 0])
    correction = weighted.T @ (M[:, 0] - X @ beta)
    return beta + solve_information(gram).numpy() @ correction


def absorbed_ols(formula: str | Formula, data: Any, **options: Any) -> AbsorbedOLS:
    """Least squares with absorbed fixed effects, ``"y ~ x | firm + year"``.

    Parameters
    ----------
    formula, data, **options
        See `AbsorbedOLS`.

    Returns
    -------
    AbsorbedOLS
        Call ``.fit(cov_type="cluster", cov_kwds={"groups": "firm"})`` on it.
    """
    return AbsorbedOLS(formula, data, **options)


def absorbed_glm(
    formula: str | Formula,
    data: Any,
    *,
    family: Any = "gaussian",
    link: Any = None,
    **options: Any,
) -> AbsorbedGLM:
    """Generalised linear model with absorbed fixed effects, ``"y ~ x | firm"``.

    Parameters
    ----------
    formula, data, family, link, **options
        See `AbsorbedGLM`.

    Returns
    -------
    AbsorbedGLM
    """
    return AbsorbedGLM(formula, data, family=get_family(family, link=link), **options)
