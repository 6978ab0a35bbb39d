"""Variational fits of generalised linear mixed models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import one_thread
from ...errors import ConvergenceWarning, MeanFieldWarning, ModelError, caution
from ...inference import Covariance
from ...results import Fit
from ...summary import Notes, Summary
from ..mixed.criterion import Point
from ..mixed.elimination import Factorisation
from ..mixed.forecast import INTERVALS, _Error
from ..mixed.importance import Corrected, checked_draws, corrected
from ..mixed.model import parameters_of
from ..mixed.page import _random_table
from ..mixed.search import Found as MixedFound
from ..mixed.search import newton
from ..mixed.structure import Structure
from ..mixed.variational import Bound, CrossedRows, VariationalFitted
from ..mixed.variational_results import (
    Bounded,
    chosen,
    header,
    mean_field_caution,
    variational_notes,
)
from .cautions import cautions_of
from .forecast import Linear, _function
from .page import _coefficient_table, family_text
from .results import MixedGLMResults
from .rows import RowDensity
from .variational import (
    LOOSE,
    NOISE,
    TIGHT,
    GLMBound,
    GLMPoint,
    State,
    expectation,
)

if TYPE_CHECKING:
    from .model import MixedGLM

__all__ = ["VariationalGLMResults", "fit_variational"]

#: Relative variance of every standardised effect where the search begins.
_START = 0.5
#: Steps shorter than this, in standard errors, are taken with the bound found tightly.
_FAR = 1e-2
#: What is not known of the bound till then, as a share of it.
_ROUGH = 1e-10


@dataclass(frozen=True, eq=False)
class _Modes:
    """Means of the random effects under q, as Laplace's modes are read.

    Attributes
    ----------
    effects, dual : list of Tensor, each (K, m)
    etas : tuple of Tensor, each (n,)
    factorisation : Factorisation
        Of the equations without fixed effects.
    converged : bool
    """

    effects: list[Tensor]
    dual: list[Tensor]
    etas: tuple[Tensor, ...]
    factorisation: Factorisation
    converged: bool


@dataclass(frozen=True, eq=False)
class _Found:
    """Where the search ended, as that of Laplace's method is read.

    Attributes
    ----------
    point : SimpleNamespace
        x, gamma, value, modes and laplace: the bound.
    free : ndarray of bool
        Parameters that have standard errors: the coefficients.
    converged : bool
    iterations, evaluations : int
    decrement : float
    message : str
    reml : bool
    """

    point: SimpleNamespace
    free: np.ndarray
    converged: bool
    iterations: int
    evaluations: int
    decrement: float
    message: str
    reml: bool = False


class VariationalGLMResults(Bounded, MixedGLMResults):
    """Estimates of a generalised linear mixed model by variational inference.

    Random effects are means under q, conditional standard deviations those of q. What
    needs the likelihood raises an error.

    Attributes
    ----------
    state : State
        The variational posterior.
    """

    model: MixedGLM
    state: State

    def __init__(
        self, model: MixedGLM, fit: Fit, found: Any, cov: np.ndarray,
        covariance: Covariance | None = None, state: State | None = None,
    ) -> None:  # fmt: skip
        assert state is not None
        bound: GLMBound = found.point.laplace
        mean_field = bound.products.mean_field
        name = "mean field" if mean_field else "variational"
        self.state, self._steps, self._bound = state, bound.history, bound
        super().__init__(
            model, fit, found, cov,
            covariance or Covariance(fit.bread, "nonrobust", name),
        )  # fmt: skip
        f = found.point.modes.factorisation
        self.mixed = self._fitted(f)

    def _fitted(self, f: Any) -> VariationalFitted:
        """Return the working linear mixed model of some equations."""
        found, bound = self.found, Bound(f.products, False, 1.0)
        at = Point(found.point.x, found.point.value, f, bound)
        return VariationalFitted(
            MixedFound(at, found.converged, found.iterations, found.evaluations,
                       found.decrement, found.message),
            bound, self.model.compute,
        )  # fmt: skip

    @property
    def expectation(self) -> str:
        """How the expected log-density was found, as printed."""
        return self._bound.expectation.name

    @one_thread()
    def llf_corrected(self, draws: int = 1000, seed: int | None = None) -> Corrected:
        """Estimate the log-likelihood by importance sampling; see `importance`.

        Parameters
        ----------
        draws : int, default 1000
        seed : int, optional

        Returns
        -------
        Corrected
            With its Monte-Carlo error, the effective number of draws and Pareto's k.
        """
        weights = self._bound.log_weights(self.state, checked_draws(draws), seed)
        return corrected(self.elbo, weights)

    @property
    def nagq(self) -> NoReturn:
        """Not here: `expectation` says how rows are integrated."""
        self._refuse("points of adaptive quadrature", "expectation")

    def ranef(self, cond_var: bool | str = False) -> dict[str, pd.DataFrame]:
        """Return the means of the random effects under q.

        Parameters
        ----------
        cond_var : bool, default False
            Add a column ``<name>.sd`` of standard deviations under q.
        """
        if cond_var == "joint":
            self._refuse("covariance of all parameters", "cond_var=True")
        return super().ranef(cond_var)

    def conf_int(
        self, alpha: float = 0.05, method: str = "wald", **options: Any
    ) -> pd.DataFrame:
        """Return Wald intervals of level ``1 - alpha``."""
        if method != "wald":
            self._refuse(f"{method} intervals", "method='wald'")
        return super().conf_int(alpha, **options)

    def refit(self, y: Any = None, *, reml: bool | None = None) -> NoReturn:
        """Not here: fit a model to a frame with the other response."""
        self._refuse("refits", "a new model")

    def get_robustcov_results(
        self, cov_type: str = "nonrobust", use_t: bool | None = None, **cov_kwds: Any
    ) -> VariationalGLMResults:
        """Only "nonrobust", with z tests."""
        if cov_type == "nonrobust" and not use_t and not cov_kwds:
            return self
        self._refuse("cluster-robust errors")

    def marginal_means(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: use `predict`."""
        self._refuse("marginal means", "predict(newdata, marginal=True)")

    @one_thread()
    def predict(
        self, newdata: Any = None, *, which: str = "response", re_form: Any = None,
        marginal: bool = False, allow_new_levels: bool = False,
        interval: str | None = None, level: float = 0.95, offset: Any = None,
        exposure: Any = None, size: Any = None, seed: int | None = None,
    ) -> pd.Series | pd.DataFrame:  # fmt: skip
        """Predict; as `MixedGLMResults.predict`, with fewer intervals.

        Parameters
        ----------
        newdata, which, re_form, marginal, allow_new_levels, offset, exposure
            See `forecast.predict`.
        interval : {"confidence"}, optional
            With which="response" or "link" and marginal=False: limits from the
            variance of the linear predictor under q, coefficients included, carried
            through the link.
        level : float, default 0.95
        size, seed
            Of prediction intervals, which are not here.
        """
        if interval is None:
            return super().predict(
                newdata, which=which, re_form=re_form, marginal=marginal,
                allow_new_levels=allow_new_levels, offset=offset, exposure=exposure,
            )  # fmt: skip
        if interval != "confidence" or marginal or which not in ("response", "link"):
            self._refuse(
                f"{interval} interval of that kind",
                "interval='confidence' with which='response' or 'link'",
            )
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, not {level!r}.")
        linear = Linear.read(
            self, newdata, re_form, False, allow_new_levels, offset, exposure
        )
        return self._confidence(linear, which, level)

    def _confidence(self, linear: Linear, which: str, level: float) -> pd.DataFrame:
        from scipy.special import ndtri

        joint = self._fitted(self.state.equations)
        error = _Error.build(joint, linear.data, linear.keep, False)
        se = torch.from_numpy(np.sqrt(error.variance(joint.point)))
        function = _function(self.model.family, which)
        first, q = linear.etas[0], float(ndtri(0.5 + level / 2))
        value = function(*linear.etas)
        ends = [function(first + s * q * se, *linear.etas[1:]) for s in (-1.0, 1.0)]
        given = first.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(given, *linear.etas[1:]).sum(), given)
        parts = [linear.data.label(value, "mean")]
        found = [slope.abs() * se, torch.minimum(*ends), torch.maximum(*ends)]
        for name, values in zip(INTERVALS["confidence"], found, strict=True):
            parts.append(linear.data.label(values, name))
        return pd.concat(parts, axis=1)

    def _extra_glance(self) -> dict[str, Any]:
        return {
            "singular": self.singular, **super()._extra_glance(),
            **{f"n_{name}": m for name, m in self.ngroups.items()},
        }  # fmt: skip

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        name = "Mean-field" if self.mean_field else "Variational"
        left = [
            ("Family", family_text(self)),
            ("Method", f"{name}, {self.expectation}"),
        ]
        blocks = (
            header(self, left), _random_table(self, residual=False),
            _coefficient_table(self, alpha), Notes(tuple(variational_notes(self))),
        )  # fmt: skip
        return Summary(self.model_name, self.formula_text, blocks)


def fit_variational(
    model: MixedGLM, mean_field: bool = False,
    unfactorised: int | str | Sequence[str] | None = None, how: str = "auto", *,
    start: Any = None, maxiter: int = 100, tol: float = 1e-5, disp: bool = False,
) -> VariationalGLMResults:  # fmt: skip
    """Maximise the bound of a generalised linear mixed model.

    Parameters
    ----------
    model : MixedGLM
    mean_field : bool, default False
    unfactorised : int, str, sequence of str or None
        See `mixed.variational.small_factors`.
    how : str, default "auto"
        See `variational.expectation`.
    start, maxiter, tol, disp
        As `MixedGLM.fit` takes them.
    """
    if any(r.part for r in model.design.random):
        raise ModelError(
            "variational inference has random effects of the mean only; fit those of "
            "the zero part and of the dispersion by Laplace's method."
        )
    gamma = model._fixed()
    pieces = model.pieces()
    structure = pieces.structure
    small = chosen(structure, mean_field, unfactorised)
    density = RowDensity(*pieces.given)
    rows = CrossedRows(
        model.design, structure, model.compute, pieces.X[0], small, mean_field
    )
    bound = GLMBound(
        rows, expectation(density, how), pieces.X, pieces.offsets[0], gamma
    )
    x = _start(structure) if start is None else parameters_of(structure, start)
    # Far from the optimum q need not be found to its last digits.
    bound.tight = LOOSE
    first = newton(bound, x, maxiter, max(_FAR, tol), bound.watch, _ROUGH)
    bound.history.pop()  # Found once more, tightly.
    bound.tight = TIGHT
    found = newton(bound, first.point.x, maxiter, tol, bound.watch, NOISE)
    found = replace(found, iterations=first.iterations + found.iterations - 1)
    if not isinstance(found.point, GLMPoint):
        raise FloatingPointError("the equations of the model cannot be factorised.")
    bound.finish(found.point)
    if disp:
        print(
            f"{model.title}: {found.message} after {found.iterations} steps, "
            f"{found.evaluations} evaluations."
        )
    results = _labelled(model, bound, found)
    if mean_field:
        model.caution(mean_field_caution(), MeanFieldWarning)
    for text, category in cautions_of(results, results.found):
        if category is ConvergenceWarning:
            caution(text, category)
        else:
            model.caution(text, category)
    return _labelled(model, bound, found)


def _start(structure: Structure) -> np.ndarray:
    """Return one half of the identity for every standardised covariance."""
    x = np.zeros(structure.size)
    for term in structure.terms:
        if term.covariance is not None:
            raise ModelError(
                f"{term.text}: variational inference has unstructured and diagonal "
                "covariances for responses that are not normal; fit structured ones "
                "by Laplace's method."
            )
        if term.variances:
            x[term.params] = _START
        else:
            r, c = term.triangle
            x[term.params] = np.where(r == c, np.sqrt(_START), 0.0)
    return x


def _labelled(
    model: MixedGLM, bound: GLMBound, found: MixedFound
) -> VariationalGLMResults:
    point = found.point
    assert isinstance(point, GLMPoint)
    state = point.state
    beta = bound.rows.turn @ state.beta
    gamma = torch.cat([beta, *state.others]).cpu().numpy()
    p, k = len(beta), len(point.x)
    cov = np.full((k + len(gamma), k + len(gamma)), np.nan)
    cov[k:, k:] = 0.0
    cov[k : k + p, k : k + p] = state.equations.cov_beta.cpu().numpy()
    if state.others:
        _, _, H = bound.other_slopes(state, torch.cat(state.others))
        cov[k + p :, k + p :] = _inverse(H).cpu().numpy()
    etas = (state.m, *bound.predictors(state.others))
    modes = _Modes(state.effects, state.dual, etas, bound.alone(state), True)
    free = np.arange(k + len(gamma)) >= k
    at = SimpleNamespace(
        x=point.x, gamma=gamma, value=point.value, modes=modes, laplace=bound
    )
    where = _Found(
        at, free, found.converged, found.iterations, found.evaluations,
        found.decrement, found.message,
    )  # fmt: skip
    n = model.design.n
    fit = Fit(
        x=torch.from_numpy(gamma), bread=torch.from_numpy(cov[k:, k:]),
        information="expected", scale=1.0, nobs=float(n),
        df_resid=float(n - len(gamma) - k), facts={"elbo": -0.5 * point.value},
        converged=found.converged, iterations=found.iterations,
        gradient_norm=found.decrement, message=found.message,
        notes=(*model.dropped, *model.cautions),
    )  # fmt: skip
    return VariationalGLMResults(model, fit, where, cov, state=state)


def _inverse(H: Tensor) -> Tensor:
    """Inverse of an information; NaN where it is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(H)
    if int(info):
        return torch.full_like(H, float("nan"))
    return torch.cholesky_inverse(factor)
