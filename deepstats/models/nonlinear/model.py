"""Nonlinear mixed models: the call and the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...compute import one_thread
from ...errors import ConvergenceWarning, ModelError, SingularFitWarning, caution
from ...results import Fit
from ..mixed.criterion import Criterion, Point
from ..mixed.elimination import factorise
from ..mixed.fitted import Fitted
from ..mixed.search import Found as MixedFound
from .alternating import Alternated, alternate, fixed_covariance
from .base import CurveModel
from .laplace import Laplace
from .linearised import Linearised
from .quadrature import Quadrature
from .reading import numbers
from .results import NonlinearMixedResults
from .search import Found, minimise

__all__ = ["METHODS", "NonlinearMixed", "Solved"]

METHODS = ("laplace", "lindstrom-bates")
#: Where the search for Laplace's optimum may begin, although the alternation goes on.
_ENOUGH = 50


@dataclass(frozen=True, eq=False)
class Solved:
    """Estimates, however they were found.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    reml : bool
    nagq : int
        Points of quadrature; 1 for Laplace's method.
    information : {"expected", "observed"}
    beta : Tensor, shape (p,)
    b : Tensor, shape (clusters, size)
        Modes of the standardised random effects.
    llf : float
    mixed : Fitted
        The linear mixed model next to the estimates.
    cov : ndarray, shape (p, p)
        Covariance of the coefficients.
    joint : ndarray or None
        Of covariance parameters, coefficients and the logarithm of sigma.
    converged : bool
    iterations : int
    change : float
    message : str
    """

    method: str
    reml: bool
    nagq: int
    information: str
    beta: Tensor
    b: Tensor
    llf: float
    mixed: Fitted
    cov: np.ndarray
    joint: np.ndarray | None
    converged: bool
    iterations: int
    change: float
    message: str


@dataclass
class _Known(Criterion):
    """The deviance of a linear model whose residual variance is found elsewhere."""

    estimate: float = 1.0

    def variance(self, f: Any) -> float:
        """Residual variance."""
        return self.estimate


class NonlinearMixed(CurveModel):
    """Nonlinear mixed model: ``y = f(x, phi) + e``, parameters phi with random effects.

    Parameters
    ----------
    formula : str
        ``"y ~ SSlogis(x, Asym, xmid, scal)"``, or a response and any expression of
        columns and parameters. Its functions are `expression.FUNCTIONS`, the curves of
        `curves.CURVES` and those of `context`.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    random : str or sequence of str
        ``"Asym ~ 1 | g"``, ``"Asym + xmid ~ 1 | g"`` with a full covariance,
        ``"Asym + xmid ~ 1 || g"`` uncorrelated, ``"Asym ~ 1 | g/h"`` nested; several
        terms as a list.
    fixed : str, sequence of str or mapping, optional
        Covariates of parameters: ``"Asym ~ treatment"`` or ``{"Asym": "~ treatment"}``;
        parameters that are not named are one number.
    start : mapping, optional
        Start values by parameter (an average) or by coefficient. Self-starting curves
        need none.
    weights, na_action, context
        See `base.CurveModel`.

    References
    ----------
    Lindstrom & Bates (1990), Biometrics 46; Pinheiro & Bates (1995, 2000); Bates et al.
    (2015), lme4.
    """

    title: ClassVar[str] = "Nonlinear mixed model"
    results_class = NonlinearMixedResults

    def __init__(
        self, formula: str, data: Any, *, random: Any, fixed: Any = None,
        start: Mapping[str, float] | None = None, weights: Any = None,
        na_action: str = "drop", context: Mapping[str, Callable] | None = None,
    ) -> None:  # fmt: skip
        if not random:
            raise ModelError(
                "a nonlinear mixed model needs random effects, such as "
                "random='Asym ~ 1 | g'; use ds.nls for a model without."
            )
        super().__init__(
            formula, data, fixed=fixed, random=random, start=start, weights=weights,
            na_action=na_action, context=context,
        )  # fmt: skip

    @cached_property
    def linear(self) -> Linearised:
        """Linear mixed models next to any estimates."""
        return Linearised(self.reading, self.rows, self._begin, self.compute)

    @cached_property
    def _begin(self) -> Tensor:
        return self.starts()

    @one_thread()
    def fit(
        self, method: str = "laplace", *, reml: bool = False, nagq: int = 1,
        information: str = "expected", maxiter: int = 200, tol: float = 1e-6,
        disp: bool | int = False,
    ) -> NonlinearMixedResults:  # fmt: skip
        """Estimate.

        Parameters
        ----------
        method : {"laplace", "lindstrom-bates"}
            "laplace" maximises the likelihood, its integral approximated by Laplace's
            method or by quadrature, as lme4's nlmer. "lindstrom-bates" alternates
            between penalised least squares and a linear mixed model, as nlme.
        reml : bool, default False
            Restricted maximum likelihood of the linear mixed model; for
            "lindstrom-bates".
        nagq : int, default 1
            Points of adaptive Gauss-Hermite quadrature for each effect, for one
            grouping factor; 1 is Laplace's method.
        information : {"expected", "observed"}
            Whether second derivatives of the curve are left out of Laplace's
            determinant, as in nlmer, or not, as in TMB.
        maxiter : int, default 200
        tol : float, default 1e-6
            On the length of the last step, in standard errors.
        disp : bool, default False
            Print how the search ended.

        Returns
        -------
        NonlinearMixedResults

        Raises
        ------
        ModelError
            For start values from which there is no way, and singular gradients.

        Warns
        -----
        SingularFitWarning, ConvergenceWarning
        """
        _check_options(method, reml, nagq, information, maxiter, tol)
        self.cautions = ()
        try:
            solved = self._solve(
                method, bool(reml), int(nagq), information, int(maxiter), float(tol)
            )
        except (ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError) as e:
            raise ModelError(
                f"the search broke down ({e}); give other start= values, or fewer "
                "random effects."
            ) from e
        if disp:
            print(f"{self.title}: {solved.message} after {solved.iterations} steps.")
        self._warn_of(solved)
        return self.results(solved)

    def _solve(
        self, method: str, reml: bool, nagq: int, information: str, maxiter: int,
        tol: float,
    ) -> Solved:  # fmt: skip
        linear, beta = self.linear, self._begin
        if method == "lindstrom-bates":
            found = alternate(
                linear, beta, reml=reml, max_iterations=maxiter, tolerance=tol
            )
            self.check_residuals(found.found.point.variance)
            return self._alternated(found)
        near = alternate(
            linear, beta, reml=False, max_iterations=min(_ENOUGH, maxiter),
            tolerance=max(tol, 1e-3),
        )  # fmt: skip
        self.check_residuals(near.found.point.variance)
        expected = information == "expected"
        criterion = (
            Laplace(linear, expected)
            if nagq == 1
            else Quadrature(linear, expected, nagq)
        )
        x, log_sigma = near.found.point.x, np.log(near.found.point.variance) / 2
        start = np.concatenate([x, numbers(near.beta), [log_sigma]])
        se = np.sqrt(np.diag(fixed_covariance(near.found)))
        small = 1 / np.sqrt(2 * self.rows.n)
        scale = np.concatenate([0.1 * np.maximum(np.abs(x), 0.1), se, [small]])
        best = minimise(criterion, start, scale, tolerance=tol, max_iterations=maxiter)
        return self._integrated(best, criterion, nagq, information)

    # -- what was found ----------------------------------------------------------------

    def _alternated(self, a: Alternated) -> Solved:
        message = (
            "converged" if a.converged else f"not converged in {a.iterations} turns"
        )
        return Solved(
            "lindstrom-bates", a.criterion.reml, 1, "expected", a.beta, a.b,
            -0.5 * a.found.point.value, Fitted(a.found, a.criterion, self.compute),
            fixed_covariance(a.found), None, a.converged, a.iterations, a.change,
            message,
        )  # fmt: skip

    def _integrated(
        self, found: Found, criterion: Laplace, nagq: int, information: str
    ) -> Solved:
        x, beta, log_sigma = criterion.parts(found.point.z)
        assert found.point.modes is not None
        b = found.point.modes.b
        products = self.linear.at(beta, b, fixed=False)
        known = _Known(products, False, None, estimate=float(np.exp(2 * log_sigma)))
        f = factorise(products, self.linear.structure.roots(x))
        if f is None:
            raise ArithmeticError("the equations of the modes cannot be factorised")
        at = Point(x, found.point.value, f, known)
        mixed = MixedFound(
            at, found.converged, found.iterations, found.evaluations, found.decrement,
            found.message,
        )  # fmt: skip
        free = np.flatnonzero(found.free)
        joint = np.full(found.hessian.shape, np.nan)
        joint[np.ix_(free, free)] = 2 * _inverse(found.hessian[np.ix_(free, free)])
        k = len(x)
        return Solved(
            "laplace", False, nagq, information, beta, b, -0.5 * found.point.value,
            Fitted(mixed, known, self.compute), joint[k:-1, k:-1], joint,
            found.converged, found.iterations, found.decrement, found.message,
        )  # fmt: skip

    def results(self, solved: Solved) -> NonlinearMixedResults:
        """Label a fit."""
        p, size = len(self.labels), self.linear.structure.size
        fit = Fit(
            x=solved.beta, bread=torch.from_numpy(solved.cov / solved.mixed.sigma**2),
            information="observed" if solved.joint is not None else "expected",
            scale=solved.mixed.sigma**2, nobs=float(self.design.n),
            df_resid=float(self.design.n - p - size - 1),
            facts={"llf": solved.llf, "reml": float(solved.reml)},
            converged=solved.converged, iterations=solved.iterations,
            gradient_norm=solved.change, message=solved.message,
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        return NonlinearMixedResults(self, fit, solved)

    def _warn_of(self, solved: Solved) -> None:
        if solved.mixed.singular:
            self.caution(
                f"singular fit: {'; '.join(solved.mixed.singular)}. The estimate is at "
                "the edge of its range, not a failure: leave the effect out, simplify "
                "the term (|| for |), or report it as it is.",
                SingularFitWarning,
            )
        if not solved.converged:
            caution(
                f"{self.title} did not converge: {solved.message} (the last step was "
                f"{solved.change:.2g}). Give start= values, raise maxiter=, or "
                "simplify the random effects.",
                ConvergenceWarning,
            )
        elif not np.isfinite(solved.cov).all():
            self.caution(
                "the log-likelihood is not concave at the estimates: standard errors "
                "are undefined. Simplify the random effects or the curve.",
                ConvergenceWarning,
            )


def _check_options(
    method: str, reml: bool, nagq: int, information: str, maxiter: int, tol: float
) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; not {method!r}.")
    if information not in ("expected", "observed"):
        raise ValueError(
            f"information must be 'expected' or 'observed', not {information!r}."
        )
    if isinstance(nagq, bool) or not (isinstance(nagq, Integral) and nagq >= 1):
        raise ValueError(f"nagq must be a whole number >= 1, not {nagq!r}.")
    if not (isinstance(maxiter, Integral) and maxiter > 0):
        raise ValueError(f"maxiter must be a positive integer; not {maxiter!r}.")
    if not (isinstance(tol, Real) and 0 < tol < np.inf):
        raise ValueError(f"tol must be a positive number; not {tol!r}.")
    if method == "laplace" and reml:
        raise ModelError(
            "reml=True: only method='lindstrom-bates' has a restricted likelihood."
        )
    if method != "laplace" and (nagq != 1 or information != "expected"):
        raise ModelError("nagq= and information= go with method='laplace'.")


def _inverse(H: np.ndarray) -> np.ndarray:
    """Inverse of a Hessian; NaN where it is not positive definite."""
    d = np.sqrt(np.abs(np.diag(H)).clip(1e-300))
    try:
        np.linalg.cholesky(H / d[:, None] / d)
    except np.linalg.LinAlgError:
        return np.full_like(H, np.nan)
    return np.linalg.inv(H / d[:, None] / d) / d[:, None] / d
