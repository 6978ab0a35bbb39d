"""Results of a linear mixed model: methods that call its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch

from ...errors import ModelError
from ...inference import Covariance, HypothesisTest, linear_hypotheses
from ...prediction import ContrastResults
from ...results import Fit, Results
from ...summary import Summary
from .fitted import Fitted
from .rows import fixed_part, random_part

if TYPE_CHECKING:
    from .bootstrap import MixedBootstrap
    from .diagnostics import Convergence, GroupInfluence
    from .model import LinearMixed
    from .profile import Profile
    from .refits import Refits

__all__ = ["MixedResults"]


class MixedResults(Results):
    """Estimates of a linear mixed model.

    Besides what all `Results` have:

    Attributes
    ----------
    fe_params : pandas.Series
        Fixed effects; the same as `params`.
    sigma : float
        Residual standard deviation.
    theta : pandas.Series
        Relative covariance factors, in lme4's order.
    varcorr : pandas.DataFrame
        Variances, standard deviations and correlations of the random effects.
    reml : bool
    singular : bool
        Whether a covariance is on the edge of its range.
    ddf : str
        How degrees of freedom of fixed effects are found.
    """

    model: LinearMixed

    def __init__(
        self,
        model: LinearMixed,
        fit: Fit,
        fitted: Fitted,
        ddf: str = "satterthwaite",
        cov: Covariance | None = None,
    ) -> None:
        self.mixed, self.ddf = fitted, ddf
        super().__init__(
            model, fit, None, cov=cov or self._model_covariance(fit, fitted, ddf),
            use_t=ddf != "normal",
        )  # fmt: skip

    @staticmethod
    def _model_covariance(fit: Fit, fitted: Fitted, ddf: str) -> Covariance:
        matrix = fit.bread * fit.scale
        if ddf == "kenward-roger":
            from .degrees import kenward_roger

            matrix = torch.from_numpy(kenward_roger(fitted).covariance)
            return Covariance(matrix, "nonrobust", "Kenward-Roger")
        return Covariance(matrix, "nonrobust", "model-based")

    def with_ddf(self, ddf: str) -> MixedResults:
        """Return the same fit with other degrees of freedom.

        Parameters
        ----------
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            "kenward-roger" changes the standard errors too, and needs a REML fit.
        """
        from .degrees import DDF

        if ddf not in DDF:
            raise ValueError(f"ddf must be one of {', '.join(DDF)}; not {ddf!r}.")
        if ddf != "kenward-roger" and self.cov_type != "nonrobust":
            return MixedResults(
                self.model, self.fit_info, self.mixed, ddf, self.covariance
            )
        return MixedResults(self.model, self.fit_info, self.mixed, ddf)

    def get_robustcov_results(
        self, cov_type: str = "CR2", use_t: bool | None = None, **cov_kwds: Any
    ) -> MixedResults:
        """Return the same fit with cluster-robust standard errors of fixed effects.

        Parameters
        ----------
        cov_type : {"CR0", "CR2", "nonrobust"}
        use_t : bool, optional
            False for z instead of t.
        **cov_kwds
            ``groups="g"``: clusters, within which all random effects must lie; by
            default the coarsest grouping factor that has this property.
        """
        from .robust import cluster_covariance

        if str(cov_type) == "nonrobust":
            return MixedResults(self.model, self.fit_info, self.mixed, self.ddf)
        cov = cluster_covariance(self, str(cov_type), **cov_kwds)
        ddf = "normal" if use_t is False else self.ddf
        return MixedResults(self.model, self.fit_info, self.mixed, ddf, cov)

    # -- estimates -------------------------------------------------------------------

    @property
    def fe_params(self) -> pd.Series:
        """Fixed effects."""
        return self.params

    @property
    def reml(self) -> bool:
        """Whether the fit is by restricted maximum likelihood."""
        return self.mixed.reml

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        return self.mixed.sigma

    @property
    def theta(self) -> pd.Series:
        """Entries of the relative covariance factors, in lme4's order."""
        return pd.Series(self.mixed.structure.theta(self.mixed.x), name="theta")

    @property
    def singular(self) -> bool:
        """Whether a covariance is on the edge of its range."""
        return bool(self.mixed.singular)

    @cached_property
    def varcorr(self) -> pd.DataFrame:
        """Variances and covariances of the random effects, as lme4 lays them out.

        Columns grp, var1, var2, vcov, sdcor: a variance and its standard deviation
        where var2 is missing, else a covariance and its correlation.
        """
        from .modes import varcorr_frame

        return varcorr_frame(self.mixed)

    def random_params(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate standard deviations and correlations with standard errors.

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
        from .degrees import random_parameters

        return random_parameters(self.mixed, alpha)

    @property
    def ngroups(self) -> dict[str, int]:
        """Levels of each grouping factor."""
        factors = sorted(self.mixed.structure.factors, key=lambda f: -f.m)
        return {f.name: f.m for f in factors}

    def ranef(self, cond_var: bool = False) -> dict[str, pd.DataFrame]:
        """Predict the random effects (conditional modes, BLUPs).

        Parameters
        ----------
        cond_var : bool, default False
            Add a column ``<name>.sd`` of conditional standard deviations for each
            effect; `cond_var` has the covariances.

        Returns
        -------
        dict of str to DataFrame
            By grouping factor; one row a level, one column an effect.
        """
        from .modes import effects_frames

        return effects_frames(self.mixed, cond_var)

    def cond_var(self) -> dict[str, np.ndarray]:
        """Return conditional covariances of the effects; (levels, K, K) by factor."""
        names = [f.name for f in self.mixed.structure.factors]
        return dict(zip(names, self.mixed.mode_variances, strict=True))

    def coef(self) -> dict[str, pd.DataFrame]:
        """Return the fixed effects plus the random effects of each level."""
        from .modes import coefficient_frames

        return coefficient_frames(self.mixed, self.params)

    # -- degrees of freedom and tests ------------------------------------------------

    @cached_property
    def df_coefficients(self) -> pd.Series:
        """Degrees of freedom of each coefficient's t."""
        return pd.Series(self.df_inference, self.names, name="df")

    @cached_property
    def df_inference(self) -> Any:
        """Degrees of freedom, one for each coefficient."""
        from .degrees import coefficient_df

        return coefficient_df(self)

    def _quantile(self, alpha: float) -> Any:
        from scipy import special

        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
        if self.use_t:
            return special.stdtrit(self.df_inference, 1 - alpha / 2)
        return float(special.ndtri(1 - alpha / 2))

    def wald_test(
        self, hypotheses: Any, *, use_f: bool | None = None
    ) -> HypothesisTest:
        """Test linear hypotheses on fixed effects jointly.

        Parameters
        ----------
        hypotheses : str, sequence of str or array_like
            See `inference.linear_hypotheses`.
        use_f : bool, optional
            F with the denominator degrees of freedom of `ddf`; False for chi-squared.
        """
        from .degrees import contrast_test

        self._check_fixed()
        R, q, _ = linear_hypotheses(hypotheses, self.names)
        return contrast_test(self, R, q, self.use_t if use_f is None else use_f)

    def t_test(self, hypotheses: Any, *, alpha: float = 0.05) -> ContrastResults:
        """Estimate and test linear combinations of fixed effects one by one."""
        from .degrees import contrast_table

        self._check_fixed()
        R, q, labels = linear_hypotheses(hypotheses, self.names)
        return contrast_table(self, R, q, list(labels), alpha)

    def _check_fixed(self) -> None:
        if not self.names:
            raise ModelError(
                "the fixed part is empty: the model has no coefficients to test."
            )

    def anova(self, type: int | str = 3) -> pd.DataFrame:
        """Test the terms of the fixed part, with the degrees of freedom of `ddf`.

        Parameters
        ----------
        type : {1, 2, 3}
            Sequential, each after all that do not contain it, or marginal.
        """
        from .terms import anova_table

        return anova_table(self, type)

    def drop1(self, test: str = "lrt") -> pd.DataFrame:
        """Leave out each term of the fixed part that no other contains.

        Parameters
        ----------
        test : {"lrt", "f"}
            By refitting (maximum likelihood), or by F.
        """
        from .terms import drop1

        return drop1(self, test)

    def compare_lr_test(self, restricted: Results) -> HypothesisTest:
        """Likelihood-ratio test against a nested model on the same rows.

        REML fits that differ in their fixed effects are refitted by maximum
        likelihood, and the test's title says so. One variance at zero under the null
        gives the p-value of the mixture of chi-squared distributions (Self & Liang
        1987; Stram & Lee 1994).
        """
        from .comparison import likelihood_ratio_test

        return likelihood_ratio_test(self, restricted)

    def _compare(self, fits: Sequence[Results]) -> pd.DataFrame:
        """Table of several fits, for `anova`."""
        from .comparison import compare_models

        return compare_models(*fits)

    # -- intervals -------------------------------------------------------------------

    def conf_int(
        self, alpha: float = 0.05, method: str = "wald", **options: Any
    ) -> pd.DataFrame:
        """Return confidence intervals of level ``1 - alpha``; columns 0 and 1.

        Parameters
        ----------
        alpha : float, default 0.05
        method : {"wald", "profile", "boot"}
            "wald" for the fixed effects, with t of `ddf`; "profile" and "boot"
            (parametric) for all parameters, random effects as standard deviations
            and correlations.
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
        self, parameters: Sequence[str] | None = None, **options: Any
    ) -> Profile:
        """Profile the likelihood in each parameter; see `profile.profile`."""
        from .profile import profile

        return profile(self, parameters, **options)

    def bootstrap(
        self,
        replications: int = 1000,
        *,
        seed: int | None = None,
        statistic: Callable[[MixedResults], Any] | None = None,
        re_form: Any = "none",
    ) -> MixedBootstrap:
        """Refit to data simulated from the fit; see `bootstrap.parametric`."""
        from .bootstrap import parametric

        return parametric(
            self, replications, seed=seed, statistic=statistic, re_form=re_form
        )

    # -- rows ------------------------------------------------------------------------

    @cached_property
    def fittedvalues(self) -> pd.Series:
        """Conditional means: fixed and random effects."""
        design, compute = self.model.design, self.model.compute
        values = fixed_part(design, self.mixed.beta, compute)
        values += random_part(design, self.mixed.term_modes, compute)
        return pd.Series(values, design.index, name="fittedvalues")

    @property
    def resid_pearson(self) -> pd.Series:
        """Conditional residuals times the square roots of the weights."""
        w = self.model.design.weights
        r = self.resid_response
        return (r if w is None else r * np.sqrt(w)).rename("resid_pearson")

    def predict(
        self,
        exog: Any = None,
        *,
        re_form: Any = None,
        allow_new_levels: bool = False,
        interval: str | None = None,
        level: float = 0.95,
        offset: Any = None,
    ) -> pd.Series | pd.DataFrame:
        """Predict; see `forecast.predict`.

        Parameters
        ----------
        exog : frame or mapping, optional
            New data; those of the fit when None.
        re_form : optional
            None for all random effects, "none" (or ``"~0"``) for none, or a formula
            of those to keep: ``"~ (1 | g)"``.
        allow_new_levels : bool, default False
            Whether levels that were not in the data get random effects of zero.
        interval : {"confidence", "prediction"}, optional
            Return a frame of mean, its standard error and limits.
        level : float, default 0.95
        offset : optional
            In place of that of the fit.
        """
        from .forecast import predict

        return predict(self, exog, re_form, allow_new_levels, interval, level, offset)

    def simulate(
        self, nsim: int = 1, *, seed: int | None = None, re_form: Any = "none"
    ) -> pd.DataFrame:
        """Draw responses from the fitted model.

        Parameters
        ----------
        nsim : int, default 1
        seed : int, optional
        re_form : optional
            Random effects that keep their predicted values, as in `predict`; all
            others are drawn anew.

        Returns
        -------
        DataFrame, shape (n, nsim)
        """
        from .forecast import simulate

        return simulate(self, nsim, seed, re_form)

    def refit(self, y: Any = None, *, reml: bool | None = None) -> MixedResults:
        """Fit the same model to another response, or by the other criterion.

        Parameters
        ----------
        y : array_like, shape (n,), optional
            One value for each row used; that of the fit when None.
        reml : bool, optional
        """
        from .bootstrap import refit

        return refit(self, y, self.reml if reml is None else reml)

    def refit_many(self, Y: Any, *, reml: bool | None = None) -> Refits:
        """Fit the same model to many responses at once; see `refits.refits`.

        Parameters
        ----------
        Y : array_like, shape (n, R)
            A column for each response, as `simulate` gives them.
        reml : bool, optional
        """
        from .refits import refits

        return refits(self, Y, reml)

    # -- diagnostics -----------------------------------------------------------------

    @cached_property
    def leverage(self) -> pd.Series:
        """Diagonal of the hat matrix of fixed and random effects together."""
        from .diagnostics import leverages

        return pd.Series(leverages(self), self.model.design.index, name="leverage")

    @cached_property
    def cooks_distance(self) -> pd.Series:
        """Cook's distance of each row, as lme4 and MixedModels define it."""
        from .diagnostics import cooks

        return pd.Series(cooks(self), self.model.design.index, name="cooks_distance")

    def influence(self, group: str) -> GroupInfluence:
        """Refit without each level of a factor: what it does to the estimates."""
        from .diagnostics import group_influence

        return group_influence(self, group)

    def r2(self) -> pd.Series:
        """Return marginal and conditional R-squared (Nakagawa & Schielzeth 2013)."""
        from .diagnostics import r_squared

        return r_squared(self)

    def icc(self) -> pd.DataFrame:
        """Return each grouping factor's share of the variance; see `intraclass`."""
        from .diagnostics import intraclass

        return intraclass(self)

    @property
    def caic(self) -> float:
        """Conditional Akaike criterion (Vaida & Blanchard 2005)."""
        from .diagnostics import conditional_aic

        return conditional_aic(self)

    def pca(self) -> dict[str, pd.DataFrame]:
        """Return the principal components of each term's covariance."""
        from .diagnostics import principal_components

        return principal_components(self.mixed)

    def check_convergence(self) -> Convergence:
        """Verify the optimum: gradient, curvature, and the edge of the range."""
        from .diagnostics import check_convergence

        return check_convergence(self.mixed)

    def cross_validate(
        self, folds: int = 10, *, groups: str | None = None, seed: int | None = None
    ) -> pd.DataFrame:
        """Refit without each fold and predict it; see `validation.cross_validate`."""
        from .validation import cross_validate

        return cross_validate(self, folds, groups, seed)

    # -- what the model has not ------------------------------------------------------

    @property
    def likelihood(self) -> NoReturn:
        """Not here: rows are not independent; `llf` has the value."""
        raise ModelError(
            "linear mixed models have no likelihood row by row, nor marginal effects: "
            "these are the coefficients. Use llf, params, t_test and predict."
        )

    def get_prediction(self, exog: Any = None, **options: Any) -> Any:
        """Use ``predict(..., interval=)`` instead."""
        raise ModelError(
            "mixed models predict with intervals by "
            "predict(exog, interval='confidence' or 'prediction')."
        )

    def lr_test(self, hypotheses: Any) -> HypothesisTest:
        """Not here: compare two fits with `compare_lr_test`."""
        raise ModelError("fit the smaller model too and use compare_lr_test.")

    def score_test(self, hypotheses: Any, **options: Any) -> HypothesisTest:
        """Not here: use `wald_test` or `compare_lr_test`."""
        raise ModelError("mixed models have wald_test and compare_lr_test.")

    def get_influence(self) -> Any:
        """Use `leverage`, `cooks_distance` and `influence` instead."""
        raise ModelError(
            "mixed models have .leverage, .cooks_distance and .influence(group)."
        )

    # -- tables ----------------------------------------------------------------------

    @property
    def _counted(self) -> float:
        """Fixed effects, covariance parameters and residual variance."""
        size = self.mixed.structure.size
        return float(len(self.names) + size + (self.model.sigma is None))

    @property
    def cov_description(self) -> str:
        """What the standard errors are, as printed."""
        return self.covariance.description

    def tidy(self, conf_level: float = 0.95) -> pd.DataFrame:
        """Return fixed effects with broom's columns; aliased ones as NaN."""
        from .page import tidy_frame

        return tidy_frame(self, conf_level)

    def _extra_glance(self) -> dict[str, float]:
        return {
            "sigma": self.sigma, "reml": self.reml, "singular": self.singular,
            **{f"n_{name}": m for name, m in self.ngroups.items()},
        }  # fmt: skip

    def _extra_augment(self) -> dict[str, Any]:
        design, compute = self.model.design, self.model.compute
        return {
            ".fixed": fixed_part(design, self.mixed.beta, compute),
            ".hat": self.leverage.to_numpy(),
            ".cooksd": self.cooks_distance.to_numpy(),
        }

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import mixed_summary

        return mixed_summary(self, alpha)

    @property
    def plot(self) -> Any:
        """Pictures: ``.plot.caterpillar()``, ``.residuals()``, ``.qq()`` ..."""
        from .pictures import Pictures

        return Pictures(self)
