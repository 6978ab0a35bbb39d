"""Results of a nonlinear mixed model: methods that call its neighbours."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...inference import Covariance
from ...results import Fit
from ..mixed.fitted import Fitted
from .base import CurveResults

if TYPE_CHECKING:
    from .model import NonlinearMixed, Solved

__all__ = ["NonlinearMixedResults"]


class NonlinearMixedResults(CurveResults):
    """Estimates of a nonlinear mixed model.

    `params` are the coefficients of the curve's parameters; tests are z and
    chi-squared. Besides what all `Results` have:

    Attributes
    ----------
    method : {"laplace", "lindstrom-bates"}
    approximation : str
        How the likelihood was approximated, in words.
    sigma : float
        Residual standard deviation.
    theta : pandas.Series
        Relative covariance factors, in lme4's order.
    varcorr : pandas.DataFrame
        Variances, standard deviations and correlations of the random effects.
    singular : bool
        Whether a covariance is on the edge of its range.
    joint_cov : ndarray or None
        Covariance of covariance parameters, coefficients and the logarithm of sigma;
        None for "lindstrom-bates", whose linear mixed model takes them apart.
    """

    model: NonlinearMixed

    def __init__(self, model: NonlinearMixed, fit: Fit, solved: Solved) -> None:
        self.solved = solved
        kind = (
            "observed information" if solved.joint is not None else "linearised model"
        )
        super().__init__(
            model, fit, None, use_t=False,
            cov=Covariance(torch.from_numpy(solved.cov), "nonrobust", kind),
        )  # fmt: skip

    # -- estimates -------------------------------------------------------------------

    @property
    def mixed(self) -> Fitted:
        """The linear mixed model next to the estimates."""
        return self.solved.mixed

    @property
    def method(self) -> str:
        """How the estimates were found."""
        return self.solved.method

    @property
    def reml(self) -> bool:
        """Whether the likelihood is the restricted one."""
        return self.solved.reml

    @property
    def nagq(self) -> int:
        """Points of adaptive quadrature for each effect; 1 for Laplace's method."""
        return self.solved.nagq

    @property
    def information(self) -> str:
        """Which second derivatives Laplace's determinant has."""
        return self.solved.information

    @property
    def approximation(self) -> str:
        """How the likelihood was approximated."""
        if self.method == "lindstrom-bates":
            return f"{'REML' if self.reml else 'ML'}, Lindstrom-Bates (linearised)"
        if self.nagq > 1:
            return f"ML, adaptive quadrature, {self.nagq} points"
        return f"ML, Laplace ({self.information})"

    @property
    def joint_cov(self) -> np.ndarray | None:
        """Covariance of covariance parameters, coefficients and log sigma."""
        return self.solved.joint

    @property
    def fe_params(self) -> pd.Series:
        """Fixed effects; the same as `params`."""
        return self.params

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
        from ..mixed.modes import varcorr_frame

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
            As `MixedResults.random_params`.
        """
        from ..mixed.degrees import random_parameters

        joint = self.joint_cov
        if joint is None:
            return random_parameters(self.mixed, alpha)
        at = [*np.flatnonzero(self.mixed.curvature.free), len(joint) - 1]
        # Of the logarithm of the residual variance, not of its root.
        scale = np.ones(len(at))
        scale[-1] = 2.0
        covariance = joint[np.ix_(at, at)] * scale[:, None] * scale
        return random_parameters(self.mixed, alpha, covariance)

    @property
    def ngroups(self) -> dict[str, int]:
        """Levels of each grouping factor."""
        factors = sorted(self.mixed.structure.factors, key=lambda f: -f.m)
        return {f.name: f.m for f in factors}

    def ranef(self, cond_var: bool = False) -> dict[str, pd.DataFrame]:
        """Predict the random effects (conditional modes).

        Parameters
        ----------
        cond_var : bool, default False
            Add a column ``<name>.sd`` of conditional standard deviations, of the
            linearised model with the parameters taken as known.

        Returns
        -------
        dict of str to DataFrame
            By grouping factor; one row a level, one column an effect.
        """
        from ..mixed.modes import effects_frames

        return effects_frames(self.mixed, cond_var)

    def cond_var(self) -> dict[str, np.ndarray]:
        """Return conditional covariances of the effects; (levels, K, K) by factor."""
        names = [f.name for f in self.mixed.structure.factors]
        return dict(zip(names, self.mixed.mode_variances, strict=True))

    def coef(self) -> dict[str, pd.DataFrame]:
        """Return the coefficients plus the random effects of each level."""
        from ..mixed.modes import coefficient_frames

        return coefficient_frames(self.mixed, self.params)

    @property
    def _counted(self) -> float:
        """Coefficients, covariance parameters and the residual variance."""
        return float(len(self.names) + self.mixed.structure.size + 1)

    @property
    def df_model(self) -> float:
        """Coefficients of covariates."""
        alone = {
            name for part in self.model.reading.labels for name in part
            if ":" not in name or name.endswith(":Intercept")
        }  # fmt: skip
        return float(len(self.names) - len(alone))

    # -- rows --------------------------------------------------------------------------

    def _phi(self) -> Tensor:
        fixed = self.model.rows.fixed(self.solved.beta)
        return fixed + self.model.linear.effects.move(self.solved.b)

    def curve_parameters(self) -> pd.DataFrame:
        """Return the curve's parameters in every row, random effects included."""
        names = list(self.model.reading.parameters)
        return pd.DataFrame(self._phi().numpy(), self.model.design.index, names)

    def predict(
        self, newdata: Any = None, *, re_form: Any = None,
        allow_new_levels: bool = False, interval: str | None = None,
        level: float = 0.95,
    ) -> pd.Series | pd.DataFrame:  # fmt: skip
        """Predict the curve; see `forecast.predict`.

        Parameters
        ----------
        newdata : frame or mapping, optional
            New data; those of the fit when None.
        re_form : None, str or sequence of str, optional
            None for all random effects; "none" (or ``"~0"``) for none, which gives the
            curve of a typical group; names of the grouping factors whose effects are
            kept.
        allow_new_levels : bool, default False
            Whether levels that were not in the data get random effects of zero.
        interval : {"confidence"}, optional
            Return a frame of the mean, its standard error and limits; of the typical
            group's curve, ``re_form="none"``.
        level : float, default 0.95
        """
        from .forecast import predict

        return predict(self, newdata, re_form, allow_new_levels, interval, level)

    def simulate(
        self, nsim: int = 1, *, seed: int | None = None, re_form: Any = "none"
    ) -> pd.DataFrame:
        """Draw responses from the fitted model.

        Parameters
        ----------
        nsim : int, default 1
        seed : int, optional
        re_form : optional
            Random effects that keep their modes, as in `predict`; all others are drawn
            anew.

        Returns
        -------
        DataFrame, shape (n, nsim)
        """
        from .forecast import simulate

        return simulate(self, nsim, seed, re_form)

    @property
    def plot(self) -> Any:
        """Pictures: ``.plot.curves()``, ``.caterpillar()``, ``.residuals()`` ..."""
        from .pictures import Pictures

        return Pictures(self)

    def _extra_glance(self) -> dict[str, Any]:
        return {
            "sigma": self.sigma, "reml": self.reml, "singular": self.singular,
            "approximation": self.approximation,
            **{f"n_{name}": m for name, m in self.ngroups.items()},
        }  # fmt: skip
