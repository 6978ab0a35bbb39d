"""Results of a generalised linear mixed model: methods that call its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch

from ...errors import ModelError
from ...inference import Covariance, HypothesisTest
from ...results import Fit, Results
from ...summary import Summary
from ..mixed.criterion import Criterion, Point
from ..mixed.fitted import Fitted
from ..mixed.rows import fixed_part
from ..mixed.search import Found as MixedFound
from .quadrature import Quadrature
from .search import Found

if TYPE_CHECKING:
    from ..mixed.bootstrap import MixedBootstrap
    from ..mixed.profile import Profile
    from .effects import MarginalMeans
    from .model import MixedGLM
    from .residuals import SimulatedTest
    from .tails import TailTest

__all__ = ["MixedGLMResults"]


class MixedGLMResults(Results):
    """Estimates of a generalised linear mixed model.

    `params` are the coefficients of all linear predictors: of the mean, of the zero
    part, of the dispersion; a dispersion without predictors is on its own scale. Tests
    of one coefficient are z tests, of several chi-squared. Besides what all `Results`
    have:

    Attributes
    ----------
    fe_params : pandas.Series
        Coefficients of the mean's linear predictor.
    theta : pandas.Series
        Entries of the covariance factors, in lme4's order.
    varcorr : pandas.DataFrame
        Variances, standard deviations and correlations of the random effects.
    singular : bool
        Whether a covariance is on the edge of its range.
    nagq : int
        Points of adaptive quadrature; 1 for Laplace's method.
    joint_cov : ndarray, shape (T, T)
        Covariance of the search's covariance parameters and of all coefficients; NaN
        for those on the edge.
    """

    model: MixedGLM

    def __init__(
        self, model: MixedGLM, fit: Fit, found: Found, cov: np.ndarray,
        covariance: Covariance | None = None,
    ) -> None:  # fmt: skip
        self.found, self.joint_cov = found, cov
        super().__init__(
            model, fit, None, use_t=False,
            cov=covariance
            or Covariance(fit.bread, "nonrobust", "observed information"),
        )  # fmt: skip

    @cached_property
    def mixed(self) -> Fitted:
        """The working linear mixed model at the optimum: modes and variances."""
        point, f = self.found.point, self.found.point.modes.factorisation
        criterion = Criterion(f.products, False, 1.0)
        at = Point(point.x, point.value, f, criterion)
        found = MixedFound(
            at, self.found.converged, self.found.iterations, self.found.evaluations,
            self.found.decrement, self.found.message,
        )  # fmt: skip
        return Fitted(found, criterion, self.model.compute)

    # -- estimates -------------------------------------------------------------------

    @property
    def fe_params(self) -> pd.Series:
        """Coefficients of the mean's linear predictor."""
        return self.params[: self.model.design.X.k]

    @property
    def theta(self) -> pd.Series:
        """Entries of the covariance factors, in lme4's order."""
        return pd.Series(self.mixed.structure.theta(self.mixed.x), name="theta")

    @property
    def singular(self) -> bool:
        """Whether a covariance is on the edge of its range."""
        return bool(self.mixed.singular)

    @property
    def reml(self) -> bool:
        """Whether the coefficients of the mean were integrated out."""
        return self.found.reml

    @property
    def nagq(self) -> int:
        """Points of adaptive quadrature for each effect; 1 for Laplace's method."""
        laplace = self.found.point.laplace
        if not isinstance(laplace, Quadrature):
            return 1
        points, effects = laplace.nodes.shape
        return round(points ** (1 / effects))

    @cached_property
    def varcorr(self) -> pd.DataFrame:
        """Variances and covariances of the random effects, as lme4 lays them out.

        Columns grp, var1, var2, vcov, sdcor: a variance and its standard deviation
        where var2 is missing, else a covariance and its correlation.
        """
        from ..mixed.modes import varcorr_frame

        return _without_residual(varcorr_frame(self.mixed))

    def random_params(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate standard deviations and correlations with standard errors.

        By the delta method from `joint_cov`, so that the coefficients are uncertain
        too.

        Parameters
        ----------
        alpha : float, default 0.05
            Of the Wald intervals, made on the scales of logarithms and Fisher's z.

        Returns
        -------
        DataFrame
            Columns grp, var1, var2, estimate, std_error, conf_low, conf_high (on the
            scale of standard deviations and correlations), vcov, vcov_std_error. On
            the edge of the range standard errors are NaN.
        """
        from ..mixed.degrees import random_parameters

        at = np.flatnonzero(self.mixed.curvature.free)
        covariance = self.joint_cov[np.ix_(at, at)]
        return _without_residual(random_parameters(self.mixed, alpha, covariance))

    @property
    def ngroups(self) -> dict[str, int]:
        """Levels of each grouping factor."""
        factors = sorted(self.mixed.structure.factors, key=lambda f: -f.m)
        return {f.name: f.m for f in factors}

    def ranef(self, cond_var: bool | str = False) -> dict[str, pd.DataFrame]:
        """Predict the random effects (conditional modes).

        Parameters
        ----------
        cond_var : bool or "joint", default False
            Add a column ``<name>.sd`` of conditional standard deviations: True with
            the parameters taken as known, as in lme4 (`cond_var` has the covariances);
            "joint" with their uncertainty too, as in glmmTMB.

        Returns
        -------
        dict of str to DataFrame
            By grouping factor; one row a level, one column an effect.
        """
        from ..mixed.modes import effects_frames

        if cond_var not in (True, False, "joint"):
            raise ValueError(
                f"cond_var must be True, False or 'joint', not {cond_var!r}."
            )
        frames = effects_frames(self.mixed, bool(cond_var))
        if cond_var == "joint":
            from .uncertainty import add_movement

            add_movement(self, frames)
        return frames

    def cond_var(self) -> dict[str, np.ndarray]:
        """Return conditional covariances of the effects; (levels, K, K) by factor."""
        names = [f.name for f in self.mixed.structure.factors]
        return dict(zip(names, self.mixed.mode_variances, strict=True))

    def coef(self) -> dict[str, pd.DataFrame]:
        """Return the fixed effects plus the random effects of each level."""
        from ..mixed.modes import coefficient_frames

        varying = {0, *(r.part for r in self.model.design.random)}
        blocks = enumerate(self.model.parameters.blocks)
        labels = [n for j, block in blocks if j in varying for n in block.labels]
        return coefficient_frames(self.mixed, self.params[labels])

    def pca(self) -> dict[str, pd.DataFrame]:
        """Return the principal components of each factor's covariance."""
        from ..mixed.diagnostics import principal_components

        return principal_components(self.mixed)

    # -- figures of the fit ----------------------------------------------------------

    @property
    def _counted(self) -> float:
        """Coefficients of all predictors and covariance parameters."""
        return float(len(self.found.point.gamma) + len(self.found.point.x))

    @property
    def df_model(self) -> float:
        """Coefficients that are neither intercepts nor a single dispersion."""
        blocks = self.model.parameters.blocks
        return float(
            sum(
                not label.endswith("Intercept")
                for block in blocks
                for label in block.labels
                if not block.positive
            )
        )

    def compare_lr_test(self, restricted: Results) -> HypothesisTest:
        """Likelihood-ratio test against a nested model on the same rows.

        Parameters
        ----------
        restricted : Results
            Another generalised linear mixed model, or a model without random effects:
            `glm`, a count model. One variance, or the overdispersion or excess zeros
            of the family, at zero under the null gives the p-value of a mixture of
            chi-squared distributions (Self & Liang 1987; Stram & Lee 1994).
        """
        from .comparison import likelihood_ratio_test

        return likelihood_ratio_test(self, restricted)

    def _compare(self, fits: Sequence[Results]) -> pd.DataFrame:
        """Table of several fits, for `anova`."""
        from .comparison import compare_models

        return compare_models(fits)

    def anova(self, type: int | str = 3) -> pd.DataFrame:
        """Test the terms of the mean's fixed part by Wald's chi-squared.

        Parameters
        ----------
        type : {1, 2, 3}
            Sequential, each after all that do not contain it, or marginal.
        """
        from .comparison import anova_table

        return anova_table(self, type)

    def drop1(self) -> pd.DataFrame:
        """Leave out each term of the mean's fixed part that no other contains.

        By likelihood-ratio tests of refits; a fit with ``reml=True`` is refitted by
        maximum likelihood first.
        """
        from .comparison import drop1

        return drop1(self)

    def r2(self, method: str | None = None) -> pd.Series:
        """Return marginal and conditional R-squared (Nakagawa & Schielzeth 2013).

        Parameters
        ----------
        method : {"theoretical", "lognormal", "delta", "trigamma"}, optional
            The residual variance; see `diagnostics.residual_variance`.
        """
        from .diagnostics import explained

        return explained(self, method)

    def icc(self, method: str | None = None) -> pd.DataFrame:
        """Return each grouping factor's share of the variance, adjusted and not.

        Parameters
        ----------
        method : {"theoretical", "lognormal", "delta", "trigamma"}, optional
            The residual variance; see `diagnostics.residual_variance`.
        """
        from .diagnostics import shares

        return shares(self, method)

    def get_robustcov_results(
        self, cov_type: str = "cluster", use_t: bool | None = None, **cov_kwds: Any
    ) -> MixedGLMResults:
        """Return the same fit with cluster-robust standard errors of all parameters.

        Parameters
        ----------
        cov_type : {"cluster", "CR0", "robust", "nonrobust"}
            "cluster" multiplies the sandwich by G / (G - 1), G the number of clusters;
            "CR0", also called "robust", does not.
        use_t : bool, optional
            Nothing but False: tests are z tests.
        **cov_kwds
            ``groups="g"``: clusters, within which all random effects must lie; by
            default the coarsest grouping factor that has this property.
        """
        if use_t:
            _refuse("t tests", "z tests, or bootstrap()")
        if unknown := set(cov_kwds) - {"groups"}:
            raise ValueError(
                f"{', '.join(sorted(unknown))} do not go with cov_type={cov_type!r}; "
                "it takes groups=."
            )
        if cov_type == "nonrobust":
            if cov_kwds:
                raise ValueError("cov_type='nonrobust' takes no groups.")
            if self.cov_type == "nonrobust":
                return self
            again = self.model.results(self.found)
            return MixedGLMResults(
                self.model, self.fit_info, self.found, again.joint_cov
            )
        from .sandwich import robust

        model_based = self.get_robustcov_results("nonrobust")
        return robust(model_based, cov_type, **cov_kwds)

    # -- intervals -------------------------------------------------------------------

    def conf_int(
        self, alpha: float = 0.05, method: str = "wald", **options: Any
    ) -> pd.DataFrame:
        """Return confidence intervals of level ``1 - alpha``; columns 0 and 1.

        Parameters
        ----------
        alpha : float, default 0.05
        method : {"wald", "profile", "boot"}
            "wald" for the coefficients; "profile" and "boot" (parametric) for all
            parameters, random effects as standard deviations and correlations.
        **options
            Of `profile` or `bootstrap`.
        """
        if method == "wald":
            if options:
                raise TypeError(f"method='wald' takes no {', '.join(options)}.")
            return super().conf_int(alpha)
        if method == "profile":
            return self.profile(**options).conf_int(alpha)
        if method == "boot":
            return self.bootstrap(**options).conf_int(alpha)
        raise ValueError(f"method must be wald, profile or boot; not {method!r}.")

    def profile(
        self, parameters: str | Sequence[str] | None = None, **options: Any
    ) -> Profile:
        """Profile the likelihood in each parameter; see `profile.profile`."""
        from .profile import profile

        return profile(self, parameters, **options)

    def bootstrap(
        self,
        replications: int = 1000,
        *,
        seed: int | None = None,
        statistic: Callable[[MixedGLMResults], Any] | None = None,
        re_form: Any = "none",
    ) -> MixedBootstrap:
        """Refit to data simulated from the fit; see `bootstrap.parametric`."""
        from .bootstrap import parametric

        return parametric(self, replications, seed, statistic, re_form)

    def read_response(self, y: Any) -> np.ndarray:
        """Read another response for the rows used; (n,).

        Parameters
        ----------
        y : array_like
            One value for each row used, or for each row of the data.
        """
        from ..mixed.bootstrap import new_response

        return new_response(self, y)

    def refit(self, y: Any = None, *, reml: bool | None = None) -> MixedGLMResults:
        """Fit the same model to another response, or by the other criterion.

        Parameters
        ----------
        y : array_like, shape (n,), optional
            One value for each row used, as `simulate` gives them: proportions where
            the response is one. That of the fit when None.
        reml : bool, optional
        """
        from .bootstrap import refit

        return refit(self, y, reml)

    # -- rows ------------------------------------------------------------------------

    @cached_property
    def linear_predictor(self) -> np.ndarray:
        """Linear predictor of the mean at the modes; (n,)."""
        eta: torch.Tensor = self.found.point.modes.etas[0]
        return eta.cpu().numpy()

    @cached_property
    def fittedvalues(self) -> pd.Series:
        """Means of the responses at the modes of the random effects."""
        etas = [e.cpu() for e in self.found.point.modes.etas]
        return self._series(self.model.mean(*etas), "fittedvalues")

    @property
    def resid_pearson(self) -> pd.Series:
        """Response residuals over the standard deviation given the modes."""
        from .residuals import pearson_residuals

        return self._rows(pearson_residuals(self), "resid_pearson")

    @property
    def resid_deviance(self) -> pd.Series:
        """Deviance residuals at the modes, for families that have a deviance."""
        from .residuals import deviance_residuals

        return self._rows(deviance_residuals(self), "resid_deviance")

    def resid_quantile(
        self,
        seed: int | None = None,
        *,
        re_form: Any = "none",
        method: str = "exact",
        nsim: int = 1000,
        scale: str = "normal",
    ) -> pd.Series:
        """Find randomised quantile residuals, standard normal where the model holds.

        Parameters
        ----------
        seed : int, optional
            Of the uniform numbers that fill the jumps of discrete distributions.
        re_form : optional
            Random effects held at their modes, as in `predict`; by default none: the
            distribution is that of a new group. Modes have been fitted to the
            responses, so that residuals given them vary less than normal ones.
        method : {"exact", "simulation"}
            By the family's distribution function, integrated over the random effects,
            or by the rank among simulated responses.
        nsim : int, default 1000
            Responses simulated for each row.
        scale : {"normal", "uniform"}
            "uniform" are DHARMa's.
        """
        from .residuals import quantile_residuals

        values = quantile_residuals(self, seed, re_form, method, nsim, scale)
        return self._rows(values, "resid_quantile")

    def plot_residuals(self, seed: int | None = None, **options: Any) -> np.ndarray:
        """Draw quantile residuals against normal quantiles and against predictions.

        Parameters
        ----------
        seed : int, optional
        **options
            See `residuals.plot_residuals`.

        Returns
        -------
        ndarray of Axes, shape (2,)
        """
        from .residuals import plot_residuals

        return plot_residuals(self, seed, **options)

    @property
    def plot(self) -> Any:
        """Pictures: ``.plot.caterpillar()``, ``.residuals()``, ``.qq()`` ..."""
        from .pictures import Pictures

        return Pictures(self)

    def dispersion_test(
        self, nsim: int = 500, *, seed: int | None = None, re_form: Any = "none",
        alternative: str = "two-sided",
    ) -> SimulatedTest:  # fmt: skip
        """Test for over- or underdispersion by simulation.

        Parameters
        ----------
        nsim : int, default 500
        seed, re_form, alternative
            See `residuals.dispersion_test`.
        """
        from .residuals import dispersion_test

        return dispersion_test(self, nsim, seed, re_form, alternative)

    def zero_inflation_test(
        self, nsim: int = 500, *, seed: int | None = None, re_form: Any = "none",
        alternative: str = "two-sided",
    ) -> SimulatedTest:  # fmt: skip
        """Test whether there are more, or fewer, zeros than the model has.

        Parameters
        ----------
        nsim : int, default 500
        seed, re_form, alternative
            See `residuals.zero_inflation_test`.
        """
        from .residuals import zero_inflation_test

        return zero_inflation_test(self, nsim, seed, re_form, alternative)

    def heavy_tails(
        self, factor: str | None = None, nsim: int = 200, *, seed: int | None = None
    ) -> TailTest:
        """Test whether random effects have heavier tails than normal ones.

        Parameters
        ----------
        factor : str, optional
            Grouping factor; by default the one with most levels.
        nsim : int, default 200
        seed : int, optional
            See `tails.heavy_tails`.
        """
        from .tails import heavy_tails

        return heavy_tails(self, factor, nsim, seed)

    def _rows(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(values, self.model.design.index, name=name)

    # -- prediction ------------------------------------------------------------------

    def predict(
        self,
        newdata: Any = None,
        *,
        which: str = "response",
        re_form: Any = None,
        marginal: bool = False,
        allow_new_levels: bool = False,
        interval: str | None = None,
        level: float = 0.95,
        offset: Any = None,
        exposure: Any = None,
        size: Any = None,
        seed: int | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Predict; see `forecast.predict`.

        Parameters
        ----------
        newdata : frame or mapping, optional
            New data; those of the fit when None.
        which : str, default "response"
            "response" the mean, "link" its linear predictor, "conditional" the mean
            of the count part (without excess zeros, or of positive counts), "zero"
            the probability of a zero from the part for zeros, "dispersion" the
            family's dispersion parameter.
        re_form : optional
            None for all random effects, "none" (or ``"~0"``) for none, or a formula
            of those to keep: ``"~ (1 | g)"``.
        marginal : bool, default False
            Integrate over the random effects that are left out (over all, when
            `re_form` is None) instead of setting them to zero.
        allow_new_levels : bool, default False
            Whether levels that were not in the data get random effects of zero.
        interval : {"confidence", "prediction"}, optional
            Return a frame of mean, its standard error and limits.
        level : float, default 0.95
        offset, exposure : optional
            In place of those of the fit, for new data.
        size : optional
            Trials of new rows, for prediction intervals of proportions.
        seed : int, optional
            Of the draws behind prediction intervals.
        """
        from .forecast import predict

        return predict(
            self, newdata, which, re_form, marginal, allow_new_levels, interval, level,
            offset, exposure, size, seed,
        )  # fmt: skip

    def simulate(
        self, nsim: int = 1, *, seed: int | None = None, re_form: Any = "none"
    ) -> pd.DataFrame:
        """Draw responses from the fitted model.

        Parameters
        ----------
        nsim : int, default 1
        seed : int, optional
        re_form : optional
            Random effects that keep their modes, as in `predict`, in whole terms; all
            others are drawn anew.

        Returns
        -------
        DataFrame, shape (n, nsim)
        """
        from .forecast import simulate

        return simulate(self, nsim, seed, re_form)

    def marginal_means(
        self,
        term: str | Sequence[str],
        *,
        pairs: bool = False,
        at: Mapping[str, Any] | None = None,
        adjust: str = "tukey",
        alpha: float = 0.05,
        offset: float | None = None,
    ) -> MarginalMeans:
        """Estimate marginal means and their contrasts; see `effects.marginal_means`.

        Parameters
        ----------
        term : str or sequence of str
            Variables whose combinations get a mean: ``"mined:spp"``.
        pairs : bool, default False
            Whether to compare all pairs of means.
        at : mapping, optional
            Values of variables in place of all levels or the average.
        adjust : {"tukey", "bonferroni", "holm", "none"}
            For the number of pairs.
        alpha : float, default 0.05
        offset : float, optional
            By default the mean of that of the fit.
        """
        from .effects import marginal_means

        return marginal_means(
            self, term, pairs=pairs, at=at, adjust=adjust, alpha=alpha, offset=offset
        )

    # -- what the model has not ------------------------------------------------------

    @property
    def likelihood(self) -> Any:
        """Not here: the likelihood is an integral, no sum over rows."""
        raise ModelError(
            "the likelihood of a mixed model is an integral over its random effects, "
            "not a sum over rows: what needs the scores of rows is not to be had."
        )

    def f_test(self, hypotheses: Any) -> HypothesisTest:
        """Not here: no F distribution is known; use `wald_test`."""
        _refuse("F tests", "wald_test, which is chi-squared")

    def wald_test(
        self, hypotheses: Any, *, use_f: bool | None = None
    ) -> HypothesisTest:
        """Test linear hypotheses on coefficients jointly, by chi-squared.

        Parameters
        ----------
        hypotheses : str, sequence of str or array_like
            See `inference.linear_hypotheses`.
        use_f : bool, optional
            Nothing but False: no F distribution is known for these models.
        """
        if use_f:
            _refuse("F tests", "wald_test, which is chi-squared")
        return super().wald_test(hypotheses, use_f=False)

    def get_prediction(self, exog: Any = None, **options: Any) -> NoReturn:
        """Use ``predict(..., interval=)`` instead."""
        _refuse("get_prediction", "predict(newdata, interval='confidence')")

    def lr_test(self, hypotheses: Any) -> NoReturn:
        """Not here: compare two fits with `compare_lr_test`."""
        _refuse("lr_test", "a fit of the smaller model and compare_lr_test")

    def score_test(self, hypotheses: Any, **options: Any) -> NoReturn:
        """Not here: use `wald_test` or `compare_lr_test`."""
        _refuse("score_test", "wald_test or compare_lr_test")

    def get_influence(self) -> NoReturn:
        """Not here: look at `resid_quantile` and `plot_residuals`."""
        _refuse("get_influence", "resid_quantile and plot_residuals")

    def get_margeff(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: use `marginal_means`, or `predict` at two values."""
        _refuse("get_margeff", "marginal_means, or predict(newdata, marginal=True)")

    def marginal_effects(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: use `marginal_means`, or `predict` at two values."""
        _refuse(
            "marginal_effects", "marginal_means, or predict(newdata, marginal=True)"
        )

    # -- tables ----------------------------------------------------------------------

    def _extra_glance(self) -> dict[str, float]:
        return {
            "singular": self.singular, "nagq": self.nagq,
            **{f"n_{name}": m for name, m in self.ngroups.items()},
        }  # fmt: skip

    def _extra_augment(self) -> dict[str, Any]:
        design, compute = self.model.design, self.model.compute
        beta = self.fe_params.to_numpy(copy=True)
        return {
            ".eta": self.linear_predictor,
            ".fixed": fixed_part(design, beta, compute),
            ".pearson": self.resid_pearson.to_numpy(),
        }

    def _family_text(self) -> str:
        from .page import family_text

        return family_text(self)

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import glmm_summary

        return glmm_summary(self, alpha)


def _without_residual(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["grp"] != "Residual"].reset_index(drop=True)


def _refuse(what: str, instead: str) -> NoReturn:
    raise ModelError(
        f"generalised linear mixed models have no {what} here; use {instead}."
    )
