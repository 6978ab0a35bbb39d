"""Nonlinear least squares: the model without random effects."""

from __future__ import annotations

from functools import cached_property
from math import log, pi
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import one_thread
from ...errors import ConvergenceWarning, ModelError, caution
from ...inference import Covariance
from ...results import Fit
from .base import CurveModel, CurveResults
from .reading import numbers
from .squares import least_squares

__all__ = ["NonlinearRegression", "NonlinearRegressionResults"]


class NonlinearRegressionResults(CurveResults):
    """Estimates of a nonlinear regression; tests are t and F with n - p.

    Besides what all `Results` have:

    Attributes
    ----------
    sigma : float
        Residual standard deviation, with n - p degrees of freedom.
    """

    model: NonlinearRegression

    def __init__(self, model: NonlinearRegression, fit: Fit) -> None:
        cov = Covariance(fit.bread * fit.scale, "nonrobust", "linearised model")
        super().__init__(model, fit, None, cov=cov, use_t=True)

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        return self.fit_info.scale**0.5

    def _phi(self) -> Tensor:
        return self.model.rows.fixed(self.fit_info.x)

    @property
    def approximation(self) -> str:
        """How the estimates were found."""
        return "least squares (Gauss-Newton)"

    @property
    def _counted(self) -> float:
        """Coefficients and the residual variance, as R counts them."""
        return float(len(self.names) + 1)

    def predict(
        self, newdata: Any = None, *, interval: str | None = None, level: float = 0.95
    ) -> pd.Series | pd.DataFrame:
        """Predict the curve.

        Parameters
        ----------
        newdata : frame or mapping, optional
            New data; those of the fit when None.
        interval : {"confidence"}, optional
            Return a frame of the mean, its standard error and limits, by the delta
            method.
        level : float, default 0.95
        """
        from .forecast import predict_fixed

        return predict_fixed(self, newdata, interval, level)

    def simulate(self, nsim: int = 1, *, seed: int | None = None) -> pd.DataFrame:
        """Draw responses from the fitted model.

        Parameters
        ----------
        nsim : int, default 1
        seed : int, optional

        Returns
        -------
        DataFrame, shape (n, nsim)
        """
        if nsim < 1:
            raise ValueError(f"nsim must be at least 1, not {nsim!r}.")
        rng, rows = np.random.default_rng(seed), self.model.rows
        spread = self.sigma / numbers(rows.w.sqrt())
        noise = rng.standard_normal((nsim, rows.n)).T * spread[:, None]
        names = [f"sim_{j + 1}" for j in range(nsim)]
        values = self.fittedvalues.to_numpy()[:, None] + noise
        return pd.DataFrame(values, self.model.design.index, names)

    def _extra_glance(self) -> dict[str, Any]:
        return {"sigma": self.sigma}


class NonlinearRegression(CurveModel):
    """Nonlinear regression by least squares.

    Parameters
    ----------
    formula, data, fixed, start, weights, na_action, context
        See `base.CurveModel`.

    References
    ----------
    Bates & Watts (1988), Nonlinear regression analysis and its applications.
    """

    title: ClassVar[str] = "Nonlinear regression"
    t_by_default: ClassVar[bool] = True
    results_class = NonlinearRegressionResults

    @cached_property
    def _begin(self) -> Tensor:
        return self.starts()

    @one_thread()
    def fit(
        self, *, maxiter: int = 200, tol: float = 1e-8, disp: bool | int = False
    ) -> NonlinearRegressionResults:
        """Estimate by least squares.

        Parameters
        ----------
        maxiter : int, default 200
        tol : float, default 1e-8
            On the relative offset: what the tangent plane still explains of the
            residuals, in their standard deviations.
        disp : bool, default False
            Print how the search ended.

        Returns
        -------
        NonlinearRegressionResults

        Raises
        ------
        ModelError
            For a singular gradient.

        Warns
        -----
        ConvergenceWarning
        """
        if not (isinstance(maxiter, int) and maxiter > 0):
            raise ValueError(f"maxiter must be a positive integer; not {maxiter!r}.")
        if not 0 < tol < np.inf:
            raise ValueError(f"tol must be a positive number; not {tol!r}.")
        self.cautions = ()
        found = least_squares(self.rows, self._begin, tol, maxiter)
        assert found is not None  # The start is finite.
        if found.singular:
            raise ModelError(
                "singular gradient: the derivatives of the curve in the coefficients "
                "determine one another where the search ended. Give other start= "
                "values, or a curve with fewer parameters."
            )
        n, p = found.gradient.shape
        self.check_residuals(found.rss / n)
        message = (
            "converged" if found.converged
            else f"not converged in {found.iterations} iterations"
        )  # fmt: skip
        if disp:
            print(f"{self.title}: {message} after {found.iterations} steps.")
        if not found.converged:
            caution(
                f"{self.title} did not converge: the tangent plane still explains "
                f"{found.offset:.2g} of a residual standard deviation. Give start= "
                "values or raise maxiter=.",
                ConvergenceWarning,
            )
        llf = -0.5 * (n * (log(2 * pi * found.rss / n) + 1) - self.rows.log_weights)
        R = torch.linalg.qr(found.gradient, mode="r")[1]
        inverse = torch.linalg.solve_triangular(
            R, torch.eye(p, dtype=torch.float64), upper=True
        )
        fit = Fit(
            x=found.beta, bread=inverse @ inverse.T, information="expected",
            scale=found.rss / (n - p), nobs=float(n), df_resid=float(n - p),
            facts={"llf": llf, "ssr": found.rss}, converged=found.converged,
            iterations=found.iterations, gradient_norm=found.offset, message=message,
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        return NonlinearRegressionResults(self, fit)
