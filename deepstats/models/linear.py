"""Ordinary and weighted least squares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import log, nan, pi
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..compute import one_thread
from ..design import Batch
from ..errors import BoundaryWarning
from ..families import get_family
from ..inference import HypothesisTest
from ..leastsquares import least_squares
from ..likelihood import Point, PredictorLikelihood
from ..results import Fit, Results, whole
from .base import RegressionModel

__all__ = ["OLS", "OLSResults"]


class OLSResults(Results):
    """Estimates by least squares; adds R-squared, F and sums of squares."""

    @property
    def cov_description(self) -> str:
        """What the standard errors are, as printed."""
        kind = self.covariance.kind
        return "classical" if kind == "nonrobust" else self.covariance.description

    def _has_constant(self) -> bool:
        return self.fit_info.facts["constant"] > 0

    @property
    def df_model(self) -> float:
        """Columns besides the constant."""
        return float(len(self.names)) - self._has_constant()

    @property
    def ssr(self) -> float:
        """Sum of squared residuals (weighted)."""
        return self.fit_info.facts["ssr"]

    @property
    def centered_tss(self) -> float:
        """Sum of squares of the response about its (weighted) mean."""
        return self.fit_info.facts["centered_tss"]

    @property
    def uncentered_tss(self) -> float:
        """Sum of squares of the response."""
        return self.fit_info.facts["uncentered_tss"]

    @property
    def ess(self) -> float:
        """Explained sum of squares."""
        return self._tss - self.ssr

    @property
    def _tss(self) -> float:
        return self.centered_tss if self._has_constant() else self.uncentered_tss

    @property
    def rsquared(self) -> float:
        """R-squared; about zero when there is no constant."""
        return 1 - self.ssr / self._tss

    @property
    def rsquared_adj(self) -> float:
        """R-squared adjusted for degrees of freedom."""
        if self.df_resid <= 0:
            return nan
        lost = self.nobs - self._has_constant()
        return 1 - lost / self.df_resid * (1 - self.rsquared)

    @property
    def mse_resid(self) -> float:
        """Residual variance."""
        return self.ssr / self.df_resid if self.df_resid > 0 else nan

    @property
    def mse_model(self) -> float:
        """Explained sum of squares a degree of freedom."""
        return self.ess / self.df_model

    @property
    def mse_total(self) -> float:
        """Total sum of squares a degree of freedom."""
        return self._tss / (self.df_resid + self.df_model)

    @cached_property
    def _overall(self) -> HypothesisTest | None:
        """F test of all that is not the constant."""
        k = len(self.names)
        if not self._has_constant():
            return self.f_test(np.eye(k))
        if "Intercept" in self.names:
            R = np.delete(np.eye(k), self.names.index("Intercept"), axis=0)
        else:
            R = self._off_constant()
        return self.f_test(R) if len(R) else None

    def _off_constant(self) -> np.ndarray:
        """Restrictions that leave only the constant, where it is a sum of columns."""
        X = self.model.design.X

        def ones(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            total = torch.ones_like(etas[0])
            for weight in (batch.weights, batch.freq_weights):
                total = total if weight is None else total * weight
            return batch.blocks[0].moments(total)

        moments = X.from_raw(self.likelihood.reduce(self.fit_info.x, ones))
        constant = (self.fit_info.bread @ moments).numpy()
        return np.linalg.svd(constant[None, :])[2][1:]

    @property
    def fvalue(self) -> float:
        """F of all slopes, with the covariance in use."""
        return nan if self._overall is None else self._overall.statistic

    @property
    def f_pvalue(self) -> float:
        """P-value of `fvalue`."""
        return nan if self._overall is None else self._overall.pvalue

    @property
    def condition_number(self) -> float:
        """Condition number of the column-scaled design."""
        return self.fit_info.facts["condition"]

    def _se(self, kind: str) -> pd.Series:
        return self.get_robustcov_results(kind).bse

    @property
    def HC0_se(self) -> pd.Series:
        """White's standard errors."""
        return self._se("HC0")

    @property
    def HC1_se(self) -> pd.Series:
        """White's standard errors times sqrt(n / (n - k))."""
        return self._se("HC1")

    @property
    def HC2_se(self) -> pd.Series:
        """Standard errors of MacKinnon and White's second kind."""
        return self._se("HC2")

    @property
    def HC3_se(self) -> pd.Series:
        """Standard errors of MacKinnon and White's third kind."""
        return self._se("HC3")

    def compare_f_test(self, restricted: OLSResults) -> HypothesisTest:
        """F test against a nested model fitted to the same rows."""
        from scipy import stats

        df = restricted.df_resid - self.df_resid
        if restricted.nobs != self.nobs or df <= 0:
            raise ValueError("the model given must be nested in this one, on its rows.")
        value = (restricted.ssr - self.ssr) / df / self.mse_resid
        p = float(stats.f.sf(value, df, self.df_resid))
        return HypothesisTest(value, df, self.df_resid, p, "F", "nested models")

    @property
    def resid_pearson(self) -> pd.Series:
        """Residuals over the residual standard deviation (rows weighted)."""
        return self._weighted_resid() / self.mse_resid**0.5

    def _weighted_resid(self) -> pd.Series:
        w = self.model.design.weights
        resid = self.resid_response
        return resid if w is None else resid * np.sqrt(w)

    @property
    def wresid(self) -> pd.Series:
        """Residuals times the square roots of the weights."""
        return self._weighted_resid()

    def _new_variance(self) -> float:
        return self.mse_resid

    def _extra_glance(self) -> dict[str, float]:
        return {
            "rsquared": self.rsquared, "rsquared_adj": self.rsquared_adj,
            "fvalue": self.fvalue, "f_pvalue": self.f_pvalue, "sigma": self.scale**0.5,
        }  # fmt: skip

    def _header(self) -> list[tuple[str, Any]]:
        weighted = self.model.design.weights is not None
        return [
            ("Response", self.response_name),
            ("Method", "weighted least squares" if weighted else "least squares"),
            ("SE", self.cov_description), ("Log-likelihood", self.llf),
            ("Observations", whole(self.nobs)), ("Df residuals", whole(self.df_resid)),
            ("F", self.fvalue), ("Prob (F)", self.f_pvalue),
            ("R-squared", self.rsquared), ("Adj. R-squared", self.rsquared_adj),
            ("AIC", self.aic), ("BIC", self.bic),
        ]  # fmt: skip

    def _notes(self) -> list[str]:
        out = super()._notes()
        if self.condition_number > 1e8:
            out.append(
                f"The columns, scaled, have condition number "
                f"{self.condition_number:.1e}: digits are lost; centre or "
                "rescale the variables."
            )
        return out


class OLS(RegressionModel):
    """Linear regression by least squares.

    Parameters
    ----------
    formula, data, **options
        See `RegressionModel`; `weights` makes it weighted least squares.
    """

    title = "Ordinary least squares"
    information = "expected"
    t_by_default: ClassVar[bool] = True
    results_class = OLSResults
    family = get_family("gaussian")

    def _has_expected(self) -> bool:
        return True

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Half the squared residual and its derivatives."""
        r = batch.y - etas[0]
        second = {(0, 0): torch.ones_like(r)} if order > 1 else {}
        return Point(-0.5 * r * r, (r,), second)

    @one_thread()
    def fit(
        self,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        use_t: bool | None = None,
        disp: bool | int = False,
    ) -> OLSResults:
        """Solve the least-squares problem.

        Parameters
        ----------
        cov_type, cov_kwds, use_t
            As in `RegressionModel.fit`. With use_t None tests use Student's t for
            non-robust standard errors and the normal for all others, as statsmodels.
        disp : bool, default False
            Print how the problem was solved.

        Returns
        -------
        OLSResults
        """
        self.cautions = ()
        solution = least_squares(self.design, self.compute)
        if len(solution.kept) < self.design.X.k:
            names = self.design.X.names
            gone = [names[j] for j in range(len(names)) if j not in solution.kept]
            self.note_dropped(gone)
            self.design = self.design.select_columns(solution.kept)
        design = self.design
        nobs = float(design.n)
        if design.freq_weights is not None:
            nobs = float(design.freq_weights.sum())
        df_resid = nobs - design.X.k
        if df_resid <= 0:
            self.caution(
                f"{design.X.k} coefficients fit {nobs:g} observations exactly: "
                "standard errors are undefined.",
                BoundaryWarning,
            )
        if disp:
            print(f"{self.title}: {solution.method}.")
        likelihood = PredictorLikelihood(self, design, self.compute)
        fit = Fit(
            x=solution.params, bread=solution.inverse, information="expected",
            scale=solution.ssr / df_resid if df_resid > 0 else nan, nobs=nobs,
            df_resid=df_resid, facts=self._facts(likelihood, solution, nobs),
            message=solution.method, notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        return OLSResults(self, fit, likelihood, cov_type, cov_kwds, use_t)

    def _given_offset(self) -> np.ndarray | None:
        """Offset of the user, which is taken from the response."""
        return self.design.offset

    def _facts(
        self, likelihood: PredictorLikelihood, solution: Any, nobs: float
    ) -> dict[str, float]:
        design = self.design
        y = np.asarray(design.y, dtype=np.float64)
        offset = self._given_offset()
        y = y if offset is None else y - offset
        f, w = design.freq_weights, design.weights
        both = f if w is None else w if f is None else w * f
        mean = float(y.mean() if both is None else (both * y).sum() / both.sum())
        uncentred, centred = _squares(y, both, 0.0), _squares(y, both, mean)
        logs = 0.0
        if w is not None:
            logs = 0.5 * float((np.log(w) * (1.0 if f is None else f)).sum())
        ssr = solution.ssr
        llf = (
            -nobs / 2 * (log(2 * pi * ssr / nobs) + 1) + logs
            if ssr > 0
            else float("inf")
        )
        return {
            "llf": llf,
            "ssr": ssr,
            "centered_tss": centred,
            "uncentered_tss": uncentred,
            "condition": solution.condition,
            "constant": float(design.has_constant),
        }


def _squares(y: np.ndarray, w: np.ndarray | None, centre: float) -> float:
    """Sum of squares about a centre, a block at a time: no array of the length of y."""
    total, size = 0.0, 65536
    for start in range(0, len(y), size):
        d = y[start : start + size] - centre
        # Not a dot product: BLAS would wake its threads for it.
        total += float((d * d if w is None else w[start : start + size] * d * d).sum())
    return total
