"""Which rows decide a fit: leverage, studentised residuals, Cook's distance."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .design import Batch
from .errors import ModelError
from .families import ExponentialFamily
from .optimize import solve_information

if TYPE_CHECKING:
    from .results import Results

__all__ = ["Influence", "influence"]

# x' I^-1 x loses as many digits as I, scaled, has in its condition number; the length
# of x' L, where L L' = I^-1, half as many, but needs all columns of x, of factors too.
# To here (a calendar year beside an intercept) the first is good to 1e-10.
_CONDITION = 4e6
# Eigenvalues below this share of the largest are rounding, and are raised to it.
_ROUNDING = 1e-14
_PASSES = 6


class Influence:
    """Diagnostics of leaving one observation out, for least squares and GLMs.

    For least squares they are exact; for a GLM one Newton step away from the
    estimates, as in statsmodels and R. With frequency weights they are those of one of
    the observations that a row stands for; with precision weights residuals are
    multiplied by the weights' square roots.

    Attributes
    ----------
    hat_matrix_diag : ndarray, shape (n,)
        Leverage: diagonal of ``W^(1/2) X (X'WX)^-1 X' W^(1/2)``.
    resid_studentized_internal : ndarray, shape (n,)
        (Pearson) residual over ``sqrt(scale (1 - h))``.
    resid_studentized_external : ndarray, shape (n,)
        The same with the scale estimated without the row. For a GLM R's ``rstudent``:
        the deviance residual and the Pearson residual together, after Williams (1987).
    cooks_distance : tuple of two ndarrays
        Distances, and their p-values in F(p, df_resid).
    dffits : tuple of (ndarray, float)
        Change of the fitted value in standard errors, and 2 sqrt(p / n) to hold it
        against.
    dffits_internal : tuple of (ndarray, float)
        The same from `resid_studentized_internal`.
    dfbeta : ndarray, shape (n, p)
        Change of the estimates.
    dfbetas : ndarray, shape (n, p)
        Change in standard errors; for least squares with the scale estimated without
        the row.
    cov_ratio : ndarray, shape (n,)
        Ratio of the determinants of the covariance without and with the row.

    References
    ----------
    Belsley, Kuh & Welsch (1980), Regression Diagnostics; Cook & Weisberg (1982),
    Residuals and Influence in Regression; Williams (1987), Generalized linear model
    diagnostics using the deviance and single case deletions, Applied Statistics 36;
    Yamamoto, Nakatsukasa, Yanagisawa & Fukaya (2015), Roundoff error analysis of the
    CholeskyQR2 algorithm, ETNA 44 (leverages of nearly collinear columns).
    """

    def __init__(self, results: Results) -> None:
        family = getattr(results.model, "family", None)
        if not isinstance(family, ExponentialFamily) or len(results.model.layout) != 1:
            raise ModelError(
                f"{results.model_name} has no leverages: influence is for least "
                "squares and generalised linear models."
            )
        self.results, self._likelihood = results, results.likelihood
        self._linear = "ssr" in results.fit_info.facts
        self._p = len(results.names)
        self._known = not self._linear and family.scale == "one"

    @cached_property
    def _bread(self) -> Tensor:
        """Inverse expected information, whichever the fit reports."""
        fit = self.results.fit_info
        if fit.information == "expected":
            return fit.bread
        found = self._likelihood.derivatives(fit.x, "expected")
        return solve_information(found.information)

    @cached_property
    def _root(self) -> Tensor | None:
        """L with L L' the inverse information; None where that itself is as good.

        The columns of ``W^(1/2) X L`` are orthonormal but for what the rounding of the
        inverse took: their own cross-products say what, and L is mended by them.
        """
        lengths = self._bread.diagonal().sqrt()
        scaled = self._bread / lengths[:, None] / lengths
        if not bool(scaled.isfinite().all()):
            return None
        values, vectors = torch.linalg.eigh(scaled)
        if float(values[-1]) <= _CONDITION * float(values[0]):
            return None
        floor = _ROUNDING * float(values[-1])
        root = vectors * values.clamp_min(floor).sqrt() * lengths[:, None]
        for _ in range(_PASSES):
            gram = self._gram(root)
            values, vectors = torch.linalg.eigh(gram)
            floor = _ROUNDING * float(values[-1])
            root = root @ (vectors / values.clamp_min(floor).sqrt())
            if float(values[-1]) <= 2 * float(values[0]):
                break
        return root

    def _gram(self, root: Tensor) -> Tensor:
        """Sum over rows of ``w (x' L)' (x' L)``, shape (p, p)."""

        def products(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            rows = batch.X @ root.to(batch.X)
            weight = self._row_information(batch, etas)
            if batch.freq_weights is not None:
                weight = weight * batch.freq_weights
            return (rows * weight[:, None]).T.double() @ rows.double()

        return self._likelihood.reduce(self.results.fit_info.x, products)

    def _row_information(self, batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
        """Weight of x x' in the expected information of one observation."""
        weight = self.results.model.point(batch, etas, 2, "expected").second[0, 0]
        return weight if batch.weights is None else weight * batch.weights

    @cached_property
    def hat_matrix_diag(self) -> np.ndarray:
        """Leverage of each row."""
        likelihood, x, root = self._likelihood, self.results.fit_info.x, self._root
        if root is None:
            return likelihood.leverages(x, self._bread).numpy()

        def length(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            rows = batch.X @ root.to(batch.X)
            return self._row_information(batch, etas) * rows.square().sum(1)

        return likelihood.map(x, length).numpy()

    @cached_property
    def _own(self) -> np.ndarray:
        """Share of a row's fit that others decide: 1 - h, NaN where nothing is left."""
        own = 1 - self.hat_matrix_diag
        return np.where(own > 1e-10, own, np.nan)

    @cached_property
    def _resid(self) -> np.ndarray:
        """Residuals, weighted: of least squares, or Pearson's."""
        results: Any = self.results
        return (results.wresid if self._linear else results.resid_pearson).to_numpy()

    @cached_property
    def _deviance_resid(self) -> np.ndarray:
        results: Any = self.results
        return self._resid if self._linear else results.resid_deviance.to_numpy()

    @cached_property
    def scale_not_obsi(self) -> np.ndarray:
        """Scale estimated without the row (from deviances, for a GLM, as in R)."""
        if self._known:
            return np.ones(len(self._own))
        results: Any = self.results
        total = results.ssr if self._linear else results.deviance
        left = total - self._deviance_resid**2 / self._own
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.maximum(left, 0.0) / (results.df_resid - 1)

    @cached_property
    def resid_studentized_internal(self) -> np.ndarray:
        """Residuals over their standard errors."""
        return self._resid / np.sqrt(self.results.scale * self._own)

    @cached_property
    def resid_studentized_external(self) -> np.ndarray:
        """Residuals over standard errors that do not use the row."""
        h, own, d = self.hat_matrix_diag, self._own, self._deviance_resid
        if self._linear:
            return d / np.sqrt(self.scale_not_obsi * own)
        both = d**2 + h * self._resid**2 / own
        return np.sign(d) * np.sqrt(both / self.scale_not_obsi)

    @cached_property
    def cooks_distance(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance of all estimates with and without the row, and p-values."""
        from scipy import stats

        odds = self.hat_matrix_diag / self._own
        distance = self.resid_studentized_internal**2 * odds / self._p
        return distance, stats.f.sf(distance, self._p, self.results.df_resid)

    def _dffits(self, studentized: np.ndarray) -> tuple[np.ndarray, float]:
        odds = np.sqrt(self.hat_matrix_diag / self._own)
        return studentized * odds, 2 * float(np.sqrt(self._p / self.results.nobs))

    @property
    def dffits(self) -> tuple[np.ndarray, float]:
        """Change of the fitted value, in standard errors, and a threshold."""
        return self._dffits(self.resid_studentized_external)

    @property
    def dffits_internal(self) -> tuple[np.ndarray, float]:
        """`dffits` with the scale of all rows."""
        return self._dffits(self.resid_studentized_internal)

    @cached_property
    def dfbeta(self) -> np.ndarray:
        """Estimates less those without the row: ``(X'WX)^-1 x w r / (1 - h)``."""
        likelihood, x = self._likelihood, self.results.fit_info.x
        likelihood.compute.require(
            2 * likelihood.design.n * self._p,
            f"the change of {self._p} estimates for {likelihood.design.n:,} rows",
            "raise the budget with set_default_device(memory=...), or use "
            "cooks_distance, which is one number a row.",
        )
        bread, root = self._bread, self._root

        def change(batch: Batch, etas: tuple[Tensor, ...]) -> Tensor:
            point = self.results.model.point(batch, etas, 1, "expected")
            u = point.first[0]
            u = u if batch.weights is None else u * batch.weights
            if root is None:
                return (batch.X @ bread.to(u)) * u[:, None]
            return (batch.X @ root.to(u)) @ root.T.to(u) * u[:, None]

        return likelihood.map(x, change, self._p).numpy() / self._own[:, None]

    @cached_property
    def dfbetas(self) -> np.ndarray:
        """Changes of the estimates in standard errors."""
        scale = self.scale_not_obsi[:, None] if self._linear else self.results.scale
        root = self._root
        own = self._bread.diagonal() if root is None else root.square().sum(1)
        return self.dfbeta / np.sqrt(scale * own.numpy())

    @cached_property
    def cov_ratio(self) -> np.ndarray:
        """Determinant of the covariance without the row, over that with it."""
        ratio = 1.0 if self._known else self.scale_not_obsi / self.results.scale
        return ratio**self._p / self._own

    @property
    def resid_standardized_deviance(self) -> np.ndarray:
        """Deviance residuals over their standard errors: R's ``rstandard``."""
        return self._deviance_resid / np.sqrt(self.results.scale * self._own)

    def summary_frame(self) -> pd.DataFrame:
        """Return all diagnostics, a row each, with statsmodels' column names."""
        columns = [f"dfb_{name}" for name in self.results.names]
        frame = pd.DataFrame(self.dfbetas, self.results.model.design.index, columns)
        return frame.assign(
            cooks_d=self.cooks_distance[0],
            standard_resid=self.resid_studentized_internal,
            hat_diag=self.hat_matrix_diag,
            dffits_internal=self.dffits_internal[0],
            student_resid=self.resid_studentized_external,
            dffits=self.dffits[0],
            cov_ratio=self.cov_ratio,
        )


def influence(results: Results) -> Influence:
    """Return the influence diagnostics of a fit.

    Parameters
    ----------
    results : Results
        Of least squares or of a generalised linear model.

    Returns
    -------
    Influence

    Raises
    ------
    ModelError
        For another model, or after loading from a file.
    """
    return Influence(results)


def augment_columns(results: Results) -> dict[str, Any]:
    """Columns that broom's ``augment`` adds: .hat, .cooksd, .std_resid.

    Models without leverages get their Pearson residuals as ``.std_resid``.
    """
    try:
        found = Influence(results)
    except ModelError:
        return {".std_resid": results.resid_pearson}
    return {
        ".hat": found.hat_matrix_diag,
        ".cooksd": found.cooks_distance[0],
        ".std_resid": found.resid_standardized_deviance,
    }
