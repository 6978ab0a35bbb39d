"""Linear mixed models whose residuals are correlated or of unequal variance.

At given parameters of the residuals' covariance rows are whitened (`residuals`), and
what is left is a linear mixed model like any other. Its optimum, as a function of these
parameters, is found by Newton's method: derivatives in them are differences of the
criterion at fixed variances, exact to the fourth order, and all other ones are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
from scipy import special

from ...compute import one_thread
from ...design import Design
from ...errors import DesignError, ModelError
from ...inference import Covariance
from ...leastsquares import least_squares
from ...matrix import Column, ModelMatrix, Source
from ...results import Fit
from .criterion import Criterion, Point
from .fitted import Fitted
from .information import Curvature, pseudo_inverse
from .light import light
from .model import parameters_of
from .products import Products, cross_products
from .residuals import Residuals
from .results import MixedResults
from .rows import fixed_part, random_columns, random_part
from .search import Found, minimise, starting
from .small import is_small, small_fixed, small_products
from .structure import Structure

if TYPE_CHECKING:
    from .model import LinearMixed

__all__ = ["CorrelatedFitted", "CorrelatedResults", "fit_correlated"]

#: Differences reach this far, in standard errors.
_REACH = 1e-2
#: Longest step, in units of `Residuals.scales`.
_LONGEST = 1.5
_HALVINGS = 20
#: A step this short is converged where rounding hides what is left to gain.
_ROUNDED = 1e-3


@dataclass(eq=False)
class _At:
    """The criterion at parameters of the residuals and covariance parameters.

    Attributes
    ----------
    value : float
    gradient : ndarray
        In the covariance parameters.
    log_variance : float
        Logarithm of the residual variance.
    """

    value: float
    gradient: np.ndarray
    log_variance: float


class Whitened:
    """A model's rows, whitened on demand.

    Parameters
    ----------
    model : LinearMixed
    reml : bool
    """

    def __init__(self, model: LinearMixed, reml: bool) -> None:
        self.model, self.reml = model, reml
        _, structure = model.foundation()
        self.design: Design = model.design
        self.residuals = Residuals.build(
            self.design, model.correlation_term, model.variance_terms
        )
        self.structure = structure
        design = self.design
        y = np.asarray(design.y, dtype=np.float64)
        self.y = y if design.offset is None else y - design.offset
        self.X = design.X.to_dense(model.compute.on_cpu()).numpy()
        self.Z = random_columns(design, model.compute)

    def products(self, phi: np.ndarray) -> Products:
        """Cross-products of the whitened rows."""
        p = self.X.shape[1]
        widths = [p + 1, *(z.shape[1] for z in self.Z)]
        joined = np.concatenate([self.X, self.y[:, None], *self.Z], axis=1)
        parts = np.split(
            self.residuals.whiten(phi, joined), np.cumsum(widths)[:-1], axis=1
        )
        design = self.design
        random = tuple(
            replace(r, Z=_matrix(z, r.Z.names))
            for r, z in zip(design.random, parts[1:], strict=True)
        )
        white = replace(
            design, y=np.ascontiguousarray(parts[0][:, p]),
            X=_matrix(parts[0][:, :p], design.X.names), parts=(), random=random,
            offset=None, weights=None,
        )  # fmt: skip
        structure = self._structure(random)
        compute = self.model.compute
        few = small_fixed(white, compute) if is_small(white, compute) else None
        if few is not None:
            out: Products = small_products(white, structure, *few, compute)
        else:
            fixed = least_squares(white, compute, extended=False)
            out = cross_products(white, structure, fixed, compute)
        out.log_weights = -self.residuals.logdet(phi)
        return out

    def _structure(self, random: Sequence[Any]) -> Structure:
        """Return the random effects with other columns, standardised as before."""
        matrices: dict[int, list[ModelMatrix]] = {}
        for term in self.structure.terms:
            matrices.setdefault(term.factor, []).append(random[term.order].Z)
        factors = tuple(
            replace(f, matrices=tuple(matrices[j]))
            for j, f in enumerate(self.structure.factors)
        )
        return replace(self.structure, factors=factors)

    def criterion(self, phi: np.ndarray) -> Criterion:
        """Return the criterion in the covariance parameters."""
        return Criterion(self.products(phi), self.reml, self.model.sigma)

    def at(self, phi: np.ndarray, x: np.ndarray) -> _At:
        """Evaluate."""
        point = light(self.criterion(phi))(x)
        if not np.isfinite(point.value):
            return _At(np.inf, np.full(len(x), np.nan), np.nan)
        return _At(point.value, point.gradient, float(np.log(point.variance)))


def _matrix(values: np.ndarray, names: tuple[str, ...]) -> ModelMatrix:
    """Numbers as a matrix; a column that was the intercept is none any more."""
    columns = tuple(Column((Source(np.ascontiguousarray(v)),)) for v in values.T)
    names = tuple(f"white:{name}" for name in names)
    return ModelMatrix(len(values), names, columns, list(range(len(names))))


# -- derivatives -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Joint:
    """Derivatives in free covariance parameters x, residuals' phi and log sigma^2.

    Attributes
    ----------
    gradient : ndarray, shape (d,)
        In phi, at the optimum in all others.
    hessian : ndarray
        In (x, phi), sigma^2 profiled out.
    cross : ndarray
        Derivative of the criterion in (x, phi) and log sigma^2.
    """

    gradient: np.ndarray
    hessian: np.ndarray
    cross: np.ndarray

    @property
    def profiled(self) -> np.ndarray:
        """Second derivative in phi, x at its optimum."""
        d = len(self.gradient)
        k = len(self.hessian) - d
        inner, across = self.hessian[:k, :k], self.hessian[:k, k:]
        return self.hessian[k:, k:] - across.T @ pseudo_inverse(inner) @ across


def _joint(
    problem: Whitened, phi: np.ndarray, point: Point, reach: np.ndarray
) -> _Joint:
    """Differentiate at the optimum in x for given phi."""
    curvature = Curvature(point)
    free = np.flatnonzero(curvature.free)
    k, d, df = len(free), len(phi), point.criterion.df
    known = problem.model.sigma is not None
    full = curvature.hessian
    cross = np.zeros(k + d)
    H = np.zeros((k + d, k + d))
    H[:k, :k] = full if known else full[:-1, :-1]
    if not known:
        cross[:k] = full[-1, :-1]
        H[:k, :k] -= np.outer(cross[:k], cross[:k]) / df
    gradient, x = np.empty(d), point.x
    near: dict[tuple[int, int], _At] = {}
    for j in range(d):
        step = np.zeros(d)
        step[j] = reach[j]
        far = {t: problem.at(phi + t * step, x) for t in (-2, -1, 1, 2)}
        near[j, 1], near[j, -1] = far[1], far[-1]

        def slope(name: str, far: dict[int, _At] = far, h: float = reach[j]) -> Any:
            value = {t: getattr(a, name) for t, a in far.items()}
            return (8 * (value[1] - value[-1]) - (value[2] - value[-2])) / (12 * h)

        gradient[j] = slope("value")
        H[:k, k + j] = H[k + j, :k] = slope("gradient")[free]
        if not known:
            cross[k + j] = -df * slope("log_variance")
        value = {t: a.value for t, a in far.items()}
        bend = 16 * (value[1] + value[-1]) - (value[2] + value[-2]) - 30 * point.value
        H[k + j, k + j] = bend / (12 * reach[j] ** 2)
    for i in range(d):
        for j in range(i):
            corners = {
                (s, t): problem.at(phi + _corner(d, i, j, s, t, reach), x).value
                for s in (-1, 1) for t in (-1, 1)
            }  # fmt: skip
            mixed = sum(s * t * v for (s, t), v in corners.items())
            H[k + i, k + j] = H[k + j, k + i] = mixed / (4 * reach[i] * reach[j])
    return _Joint(gradient, H, cross)


def _corner(d: int, i: int, j: int, s: int, t: int, reach: np.ndarray) -> np.ndarray:
    out = np.zeros(d)
    out[i], out[j] = s * reach[i], t * reach[j]
    return out


def _reach(hessian: np.ndarray | None, problem: Whitened) -> np.ndarray:
    """How far differences go: a share of a standard error."""
    scales = problem.residuals.scales
    least = 2 / len(problem.y) ** 0.5 * scales
    if hessian is None:
        return _REACH * np.minimum(least, 0.1 * scales)
    bend = np.diag(hessian)
    errors = np.sqrt(2 / np.where(bend > 0, bend, np.inf))
    return _REACH * np.clip(np.where(errors > 0, errors, least), 1e-2 * least, scales)


# -- the search ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CorrelatedFitted(Fitted):
    """The optimum, with the parameters of the residuals' covariance.

    Attributes
    ----------
    problem : Whitened
    phi : ndarray
        Parameters of the residuals' covariance.
    joint : _Joint
    """

    problem: Whitened
    phi: np.ndarray
    joint: _Joint

    @property
    def residual_size(self) -> int:
        """Parameters of the residuals' covariance."""
        return len(self.phi)

    def with_residuals(
        self, H: np.ndarray, g: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hessian and gradient of all free parameters."""
        g = self.point.gradient[self.curvature.free]
        return self.joint.hessian, np.append(g, self.joint.gradient)

    @cached_property
    def by_ml(self) -> CorrelatedFitted:
        """The fit by maximum likelihood: this one, or a refit from its optimum."""
        if not self.reml:
            return self
        return _search(Whitened(self.problem.model, False), self.phi, self.x, 100, 1e-6)

    @cached_property
    def curvature(self) -> CorrelatedCurvature:
        """Second derivatives at the optimum."""
        return CorrelatedCurvature(self.point, self)


@dataclass(frozen=True, eq=False)
class CorrelatedCurvature(Curvature):
    """Second derivatives that know of the residuals' parameters.

    They stand between the covariance parameters and the residual variance.

    Attributes
    ----------
    fitted : CorrelatedFitted
    """

    fitted: CorrelatedFitted

    @cached_property
    def covariance(self) -> np.ndarray:
        """Asymptotic covariance of all of them."""
        joint = self.fitted.joint
        if self.fitted.criterion.sigma is not None:
            return 2 * pseudo_inverse(joint.hessian)
        df, c = self.fitted.criterion.df, joint.cross
        H = np.zeros((len(c) + 1,) * 2)
        H[:-1, :-1] = joint.hessian + np.outer(c, c) / df
        H[-1, :-1] = H[:-1, -1] = c
        H[-1, -1] = df
        return 2 * pseudo_inverse(H)

    @property
    def of_effects(self) -> np.ndarray:
        """Covariance of covariance parameters and log residual variance alone."""
        k, d = int(self.free.sum()), len(self.fitted.phi)
        keep = np.delete(np.arange(len(self.covariance)), np.arange(k, k + d))
        return self.covariance[np.ix_(keep, keep)]

    @property
    def of_residuals(self) -> np.ndarray:
        """Covariance of the residuals' parameters."""
        k, d = int(self.free.sum()), len(self.fitted.phi)
        return self.covariance[k : k + d, k : k + d]

    @cached_property
    def free_slopes(self) -> np.ndarray:
        """Derivative of ``(X'Sigma^-1 X)^-1`` in all but the residual variance."""
        problem, phi = self.fitted.problem, self.fitted.phi
        reach, out = _reach(self.fitted.joint.profiled, problem), []
        for j in range(len(phi)):
            step = np.zeros(len(phi))
            step[j] = reach[j]
            ends = [
                problem.criterion(phi + side * step)(self.point.x).factorisation
                for side in (1, -1)
            ]
            high, low = (f.cov_beta.cpu().numpy() for f in ends)
            out.append((high - low) / (2 * reach[j]))
        return np.concatenate([super().free_slopes, np.array(out)])


def _search(
    problem: Whitened, phi: np.ndarray, x: np.ndarray, maxiter: int, tol: float
) -> CorrelatedFitted:
    """Newton's method in the residuals' parameters, all others at their optimum."""
    inner = minimise(problem.criterion(phi), x, maxiter, tol)
    joint: _Joint | None = None
    message, converged, length = "no more steps were allowed", False, np.inf
    scales, evaluations = problem.residuals.scales, inner.evaluations
    step_number = 0
    while step_number < maxiter:
        step_number += 1
        H = None if joint is None else joint.profiled
        joint = _joint(problem, phi, inner.point, _reach(H, problem))
        step, length = _newton(joint, scales)
        if length <= tol:
            converged, message = True, "converged"
            break
        moved = _line(problem, phi, inner, step, maxiter, tol)
        if moved is None:
            converged = length <= _ROUNDED
            message = "converged to rounding" if converged else "no step lowers it"
            break
        phi, inner = moved
        evaluations += inner.evaluations
    else:
        joint = _joint(problem, phi, inner.point, _reach(None, problem))
    assert joint is not None
    found = Found(
        inner.point, converged and inner.converged, step_number, evaluations,
        max(length, inner.decrement), message if inner.converged else inner.message,
    )  # fmt: skip
    criterion = inner.point.criterion
    return CorrelatedFitted(
        found, criterion, problem.model.compute, problem, phi, joint
    )


def _newton(joint: _Joint, scales: np.ndarray) -> tuple[np.ndarray, float]:
    """Newton's step, cut off, and its length in standard errors."""
    S = joint.profiled * scales[:, None] * scales
    g = joint.gradient * scales
    values, vectors = np.linalg.eigh(S)
    floor = 1e-8 * max(float(np.abs(values).max()), 1e-300)
    across = (vectors.T @ g) / np.maximum(np.abs(values), floor)
    step = -vectors @ across
    length = float(np.sqrt(max(-(step @ g), 0.0)))
    return step * min(1.0, _LONGEST / max(np.abs(step).max(), 1e-300)) * scales, length


def _line(
    problem: Whitened, phi: np.ndarray, inner: Found, step: np.ndarray, maxiter: int,
    tol: float,
) -> tuple[np.ndarray, Found] | None:  # fmt: skip
    """Halve a step until the criterion falls."""
    noise, length = 1e-12 * abs(inner.point.value), 1.0
    for _ in range(_HALVINGS):
        after = phi + length * step
        with np.errstate(all="ignore"):
            found = minimise(problem.criterion(after), inner.point.x, maxiter, tol)
        if found.point.value <= inner.point.value + noise:
            return after, found
        length /= 2
    return None


@one_thread()
def fit_correlated(
    model: LinearMixed,
    reml: bool,
    *,
    ddf: str,
    start: Mapping[str, float] | Sequence[float] | None,
    maxiter: int,
    tol: float,
    disp: bool,
) -> MixedResults:
    """Fit a model with correlated residuals or unequal variances.

    Parameters
    ----------
    model : LinearMixed
    reml : bool
    ddf, start, maxiter, tol, disp
        See `LinearMixed.fit`; `start` is of the random effects.
    """
    problem = Whitened(model, reml)
    if reml and problem.design.n <= problem.X.shape[1]:
        raise DesignError("REML needs more rows than fixed effects.")
    best = None
    for phi in problem.residuals.starts():
        criterion = problem.criterion(phi)
        if start is not None:
            x = parameters_of(problem.structure, start)
        else:
            own = starting(criterion.products)
            x = problem.structure.begun(own, lambda x, c=criterion: c(x).value)
        value = criterion(x).value
        if best is None or value < best[0]:
            best = value, phi, x
    assert best is not None
    fitted = _search(problem, best[1], best[2], maxiter, tol)
    if disp:
        found = fitted.found
        print(f"{model.title}: {found.message} after {found.iterations} steps.")
    model._warn_of(fitted)
    return model.results(fitted, ddf)


# -- results ---------------------------------------------------------------------------


class CorrelatedResults(MixedResults):
    """Estimates of a linear mixed model with correlated residuals.

    As `MixedResults`; besides

    Attributes
    ----------
    residual_params : DataFrame
        Correlation, range, ratios of standard deviations ... of the residuals.
    resid_normalized : Series
        Residuals that are independent with variance one where the model holds.
    """

    mixed: CorrelatedFitted

    @staticmethod
    def _model_covariance(fit: Fit, fitted: Fitted, ddf: str) -> Covariance:
        if ddf == "kenward-roger":
            raise ModelError(
                "Kenward-Roger degrees of freedom are for independent residuals; use "
                "ddf='satterthwaite'."
            )
        return Covariance(fit.bread * fit.scale, "nonrobust", "model-based")

    def with_ddf(self, ddf: str) -> CorrelatedResults:
        """Return the same fit with other degrees of freedom.

        Parameters
        ----------
        ddf : {"satterthwaite", "residual", "normal"}
        """
        from .degrees import DDF

        if ddf not in DDF:
            raise ValueError(f"ddf must be one of {', '.join(DDF)}; not {ddf!r}.")
        return CorrelatedResults(self.model, self.fit_info, self.mixed, ddf)

    @property
    def _counted(self) -> float:
        return super()._counted + len(self.mixed.phi)

    @property
    def residuals_model(self) -> Residuals:
        """The residuals' covariance as a function of its parameters."""
        return self.mixed.problem.residuals

    def residual_params(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate the parameters of the residuals' covariance.

        Parameters
        ----------
        alpha : float, default 0.05
            Of the Wald intervals, made on Fisher's scale for a correlation, on that
            of logarithms for a range or a ratio.

        Returns
        -------
        DataFrame
            Columns part, parameter, estimate, std_error, conf_low, conf_high.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
        z = special.ndtri(1 - alpha / 2)
        errors = np.sqrt(np.maximum(np.diag(self.mixed.curvature.of_residuals), 0.0))
        rows = []
        for (part, name, value, slope, scale), error in zip(
            self.residuals_model.natural(self.mixed.phi), errors, strict=True
        ):
            se = abs(slope) * error
            if scale == "cor":
                half = z * se / (1 - value**2)
                low, high = np.tanh(np.arctanh(value) + np.array([-half, half]))
            elif scale == "positive":
                low, high = value * np.exp(np.array([-z, z]) * se / value)
            else:
                low, high = value - z * se, value + z * se
            rows.append((part, name, value, se, low, high))
        columns = ["part", "parameter", "estimate", "std_error", "conf_low",
                   "conf_high"]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def random_params(self, alpha: float = 0.05) -> pd.DataFrame:
        """Estimate standard deviations and correlations with standard errors.

        Parameters
        ----------
        alpha : float, default 0.05
            See `MixedResults.random_params`; the residual standard deviation is that
            of a row whose variance has no factor.
        """
        from .degrees import random_parameters

        return random_parameters(self.mixed, alpha, self.mixed.curvature.of_effects)

    # -- rows --------------------------------------------------------------------------

    @property
    def resid_pearson(self) -> pd.Series:
        """Conditional residuals over the relative standard deviation of each row."""
        log_sd = self.residuals_model.log_sd(self.mixed.phi)
        return (self.resid_response * np.exp(-log_sd)).rename("resid_pearson")

    @property
    def resid_normalized(self) -> pd.Series:
        """Residuals, whitened and over sigma: nlme's ``type = "normalized"``."""
        raw = self.resid_response.to_numpy()[:, None]
        values = self.residuals_model.whiten(self.mixed.phi, raw)[:, 0] / self.sigma
        return pd.Series(values, self.model.design.index, name="resid_normalized")

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
        """Predict as `MixedResults.predict`: neighbours in time are not used.

        Intervals take z or n - p degrees of freedom, and those of new observations
        need residuals of one variance.
        """
        if interval is not None and self.ddf == "satterthwaite":
            raise ModelError(
                "Satterthwaite's degrees of freedom of predictions are for independent "
                "residuals; use results.with_ddf('normal') or 'residual'."
            )
        if interval == "prediction" and self.residuals_model.labels:
            raise ModelError(
                "intervals of new observations are for residuals of one variance; take "
                "interval='confidence', and add the variance of the row."
            )
        return super().predict(
            exog, re_form=re_form, allow_new_levels=allow_new_levels,
            interval=interval, level=level, offset=offset,
        )  # fmt: skip

    def simulate(
        self, nsim: int = 1, *, seed: int | None = None, re_form: Any = "none"
    ) -> pd.DataFrame:
        """Draw responses from the fitted model, residuals as they are correlated.

        Parameters
        ----------
        nsim, seed, re_form
            See `MixedResults.simulate`.
        """
        from .bootstrap import kept_terms

        if nsim < 1:
            raise ValueError(f"nsim must be at least 1, not {nsim!r}.")
        generator, design = np.random.default_rng(seed), self.model.design
        compute, fitted = self.model.compute, self.mixed
        keep = kept_terms(self, re_form)
        held = [m if k else None for m, k in zip(fitted.term_modes, keep, strict=True)]
        mean = fixed_part(design, fitted.beta, compute)
        mean += random_part(design, held, compute)
        columns, out = random_columns(design, compute), np.empty((design.n, nsim))
        for number in range(nsim):
            values = mean.copy()
            for term, Z, root, k in zip(
                design.random, columns, fitted.roots, keep, strict=True
            ):
                if not k:
                    codes = term.grouping.codes
                    drawn = generator.standard_normal((len(term.grouping), len(root)))
                    values += (Z * (fitted.sigma * drawn @ root.T)[codes]).sum(1)
            noise = generator.standard_normal((design.n, 1))
            colored = self.residuals_model.color(fitted.phi, noise)[:, 0]
            out[:, number] = values + fitted.sigma * colored
        names = [f"sim_{j + 1}" for j in range(nsim)]
        return pd.DataFrame(out, index=design.index, columns=names)

    def _extra_augment(self) -> dict[str, Any]:
        design, compute = self.model.design, self.model.compute
        return {".fixed": fixed_part(design, self.mixed.beta, compute)}

    def summary(self, alpha: float = 0.05) -> Any:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import mixed_summary, residual_table

        page = mixed_summary(self, alpha)
        blocks = list(page.blocks)
        blocks.insert(3, residual_table(self, alpha))
        return replace(page, blocks=tuple(blocks))

    # -- what is for independent residuals ---------------------------------------------

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise ModelError(
            f"{what} is for independent residuals of one variance; {instead}."
        )

    def get_robustcov_results(self, cov_type: str = "CR2", *a: Any, **k: Any) -> Any:
        """Only "nonrobust"."""
        if cov_type == "nonrobust":
            return self
        self._refuse("get_robustcov_results", "the model's own errors know of both")

    def profile(self, *a: Any, **k: Any) -> NoReturn:
        """Not here: see `random_params` and `residual_params`."""
        self._refuse("profile", "use random_params and residual_params")

    def bootstrap(self, *a: Any, **k: Any) -> NoReturn:
        """Not here: simulate, and fit again."""
        self._refuse("bootstrap", "simulate, and fit the model to what comes")

    def refit(self, y: Any = None, *, reml: bool | None = None) -> Any:
        """Fit the same model by the other criterion.

        Parameters
        ----------
        y : None
            Other responses are for a new model.
        reml : bool, optional
        """
        if y is not None:
            self._refuse("refit to another response", "make the model with it anew")
        reml = self.reml if reml is None else bool(reml)
        if reml == self.reml:
            return self
        problem = Whitened(self.model, reml)
        fitted = _search(problem, self.mixed.phi, self.mixed.x, 100, 1e-6)
        self.model._warn_of(fitted)
        return self.model.results(fitted, self.ddf)

    def refit_many(self, *a: Any, **k: Any) -> NoReturn:
        """Not here: simulate, and fit again."""
        self._refuse("refit_many", "make the model with each response")

    def influence(self, *a: Any, **k: Any) -> NoReturn:
        """Not here."""
        self._refuse("influence", "leave a group out, and fit again")

    @property
    def leverage(self) -> NoReturn:
        """Not here."""
        self._refuse("leverage", "look at resid_normalized")

    @property
    def cooks_distance(self) -> NoReturn:
        """Not here."""
        self._refuse("cooks_distance", "look at resid_normalized")

    @property
    def caic(self) -> NoReturn:
        """Not here."""
        self._refuse("caic", "compare by aic")

    def cross_validate(self, *a: Any, **k: Any) -> NoReturn:
        """Not here."""
        self._refuse("cross_validate", "compare by aic")

    def r2(self) -> pd.Series:
        """Return marginal and conditional R-squared, for residuals of one variance."""
        if self.residuals_model.labels:
            self._refuse("r2", "there is one for every variance")
        return super().r2()

    def icc(self) -> pd.DataFrame:
        """Return shares of the variance, for residuals of one variance."""
        if self.residuals_model.labels:
            self._refuse("icc", "there is one for every variance")
        return super().icc()
