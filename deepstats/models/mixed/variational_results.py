"""Variational fits of linear mixed models, and what all variational results share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch

from ...compute import one_thread
from ...errors import DesignError, MeanFieldWarning, ModelError
from ...inference import Covariance
from ...plots import _axes
from ...results import Fit, counted, whole
from ...summary import Notes, Pairs, Summary
from .importance import Corrected, checked_draws, corrected, gaussian_weights
from .model import parameters_of
from .results import MixedResults
from .rows import fixed_part
from .search import Found, newton, starting
from .structure import Structure
from .variational import Bound, VariationalFitted, crossed_products, small_factors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .model import LinearMixed

__all__ = [
    "Bounded", "VariationalResults", "fit_variational", "header",
    "mean_field_caution", "variational_notes",
]  # fmt: skip


def mean_field_caution() -> str:
    """Say what a mean-field fit is warned of."""
    return (
        "mean-field variational inference: the standard errors of fixed and random "
        "effects are too small, often several times, and variances of factors with few "
        'levels can vanish. Use method="vi", which keeps what belongs together.'
    )


class Bounded:
    """What the results of a variational fit have in common.

    Attributes
    ----------
    elbo : float
        The evidence lower bound at the estimates.
    history : DataFrame
        The bound at every step of the search.
    """

    model: Any
    fit_info: Fit
    mixed: VariationalFitted
    _steps: list[float]

    @property
    def elbo(self) -> float:
        """Evidence lower bound: no more than the log-likelihood."""
        return self.fit_info.facts["elbo"]

    @property
    def history(self) -> pd.DataFrame:
        """The bound by step: columns elbo and gain; index step."""
        values = np.array(self._steps)
        gain = np.diff(values, prepend=np.nan)
        return pd.DataFrame(
            {"elbo": values, "gain": gain},
            index=pd.RangeIndex(len(values), name="step"),
        )

    def plot_history(self, ax: Axes | None = None) -> Axes:
        """Draw what the bound still had to gain at every step, on a log scale.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        Axes
        """
        ax = _axes(ax, (5.2, 3.4))
        left = self.elbo - self.history["elbo"].to_numpy()
        shown = left > 0
        ax.semilogy(np.flatnonzero(shown), left[shown], marker="o", color="#0072B2")
        ax.set_xlabel("Step")
        ax.set_ylabel("Below the last bound")
        ax.set_title("Evidence lower bound", loc="left")
        return ax

    @property
    def unfactorised(self) -> list[str]:
        """Grouping factors that are taken together with the fixed effects."""
        products = self.mixed.products
        return [products.structure.factors[j].name for j in products.rest_factors]

    @property
    def mean_field(self) -> bool:
        """Whether everything is independent under q."""
        return bool(self.mixed.products.mean_field)

    def _refuse(self, what: str, instead: str = "the exact fit") -> NoReturn:
        raise ModelError(
            f"a variational fit has a bound of the log-likelihood, and no {what}; use "
            f"{instead}."
        )

    @property
    def llf(self) -> NoReturn:
        """Not here: see `elbo` and `llf_corrected`."""
        self._refuse("log-likelihood", "elbo, or llf_corrected() for an estimate")

    @property
    def aic(self) -> NoReturn:
        """Not here: it needs the log-likelihood."""
        self._refuse("information criteria", "the exact fit, or llf_corrected()")

    @property
    def bic(self) -> NoReturn:
        """Not here: it needs the log-likelihood."""
        self._refuse("information criteria", "the exact fit, or llf_corrected()")

    def compare_lr_test(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: bounds of two models are off by different amounts."""
        self._refuse(
            "likelihood-ratio tests", "wald_test, or exact fits of both models"
        )

    def _compare(self, fits: Sequence[Any]) -> NoReturn:
        self._refuse("likelihood-ratio tests", "wald_test, or exact fits of all models")

    def lr_test(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: use `wald_test`."""
        self._refuse("likelihood-ratio tests", "wald_test")

    def score_test(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: use `wald_test`."""
        self._refuse("score tests", "wald_test")

    def drop1(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: use `anova`."""
        self._refuse("likelihood-ratio tests of terms", "anova()")

    def profile(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: profiles are of the likelihood."""
        self._refuse("profiles")

    def bootstrap(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: refit to the columns of `simulate`."""
        self._refuse("bootstrap", "fits to the responses that simulate() draws")

    def random_params(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: `varcorr` has the estimates."""
        self._refuse(
            "standard errors of variances",
            "varcorr for the estimates, or the exact fit",
        )

    def glance(self) -> pd.DataFrame:
        """Return the figures of the fit in one row."""
        row = {
            "nobs": self.fit_info.nobs, "df_resid": self.fit_info.df_resid,
            "elbo": self.elbo, "scale": self.fit_info.scale,
            "converged": self.fit_info.converged, **self._extra_glance(),
        }  # fmt: skip
        return pd.DataFrame([row])

    def _extra_glance(self) -> dict[str, Any]:
        return {"mean_field": self.mean_field}


def variational_notes(results: Any) -> list[str]:
    """Say below the coefficients what is approximated."""
    products, out = results.mixed.products, list(results._notes())
    names = [products.structure.factors[j].name for j in products.stage_factors]
    if results.mean_field:
        return out
    together = ", ".join(["fixed effects", *results.unfactorised])
    if not products.crossings:
        alone = f"given these, {names[0]} stands alone: nothing is cut."
        return [f"Unfactorised: {together}; {alone}", *out]
    return [
        f"Unfactorised: {together}; given these, independent: {', '.join(names)}.",
        *out,
    ]


def header(results: Any, left: list[tuple[str, Any]]) -> Pairs:
    """Lay out what was fitted beside how well."""
    left = [
        *left,
        ("SE", results.cov_description),
        ("Observations", str(whole(results.nobs))),
        *((f"Groups: {name}", str(m)) for name, m in results.ngroups.items()),
    ]
    steps = counted(results.fit_info.iterations, "step")
    right: list[tuple[str, Any]] = [
        ("ELBO", results.elbo),
        ("Df residuals", str(whole(results.df_resid))),
        ("Converged", f"{'yes' if results.converged else 'NO'}, {steps}"),
        ("Singular", "YES" if results.singular else "no"),
    ]
    short = len(right) - len(left)
    pairs = [*left, *[("", None)] * short, *right, *[("", None)] * -short]
    return Pairs(tuple(pairs), columns=2)


class VariationalResults(Bounded, MixedResults):
    """Estimates of a linear mixed model by variational inference.

    Means, the fixed effects' standard errors and the unfactorised effects are exact at
    the estimated variances; conditional standard deviations of the large factors are
    those of q. What needs the likelihood raises an error.
    """

    mixed: VariationalFitted

    def __init__(
        self, model: LinearMixed, fit: Fit, fitted: VariationalFitted,
        ddf: str = "normal", cov: Covariance | None = None,
    ) -> None:  # fmt: skip
        if ddf != "normal":
            raise ModelError(
                f"ddf={ddf!r}: variational fits have z tests, ddf='normal'; degrees of "
                "freedom need the likelihood's curvature."
            )
        name = "mean field" if fitted.products.mean_field else "variational"
        matrix = fit.bread * fit.scale
        super().__init__(
            model, fit, fitted, ddf, cov or Covariance(matrix, "nonrobust", name)
        )
        assert isinstance(fitted.criterion, Bound)
        self._steps = fitted.criterion.history

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
        weights = gaussian_weights(
            self.mixed.factorisation, self.elbo, checked_draws(draws), self.reml, seed
        )
        return corrected(self.elbo, weights)

    def with_ddf(self, ddf: str) -> VariationalResults:
        """Only "normal": see the class."""
        return VariationalResults(self.model, self.fit_info, self.mixed, ddf)

    def get_robustcov_results(
        self, cov_type: str = "CR2", use_t: bool | None = None, **cov_kwds: Any
    ) -> VariationalResults:
        """Only "nonrobust"."""
        if cov_type == "nonrobust":
            return self
        self._refuse("cluster-robust errors")

    def conf_int(
        self, alpha: float = 0.05, method: str = "wald", **options: Any
    ) -> pd.DataFrame:
        """Return Wald intervals of the fixed effects of level ``1 - alpha``."""
        if method != "wald":
            self._refuse(f"{method} intervals", "method='wald'")
        return super().conf_int(alpha, **options)

    def refit(self, y: Any = None, *, reml: bool | None = None) -> NoReturn:
        """Not here: fit a model to a frame with the other response."""
        self._refuse("refits", "a new model")

    def refit_many(self, Y: Any, *, reml: bool | None = None) -> NoReturn:
        """Not here."""
        self._refuse("refits", "a new model for each response")

    @property
    def leverage(self) -> NoReturn:
        """Not here."""
        self._refuse("leverages")

    @property
    def cooks_distance(self) -> NoReturn:
        """Not here."""
        self._refuse("Cook's distances")

    def influence(self, group: str) -> NoReturn:
        """Not here."""
        self._refuse("influence of groups")

    @property
    def caic(self) -> NoReturn:
        """Not here."""
        self._refuse("information criteria")

    def check_convergence(self) -> NoReturn:
        """Not here: see `history`."""
        self._refuse("check of the likelihood's optimum", "history and converged")

    def cross_validate(self, *args: Any, **options: Any) -> NoReturn:
        """Not here."""
        self._refuse("cross-validation")

    def _extra_glance(self) -> dict[str, Any]:
        return {
            "sigma": self.sigma, "reml": self.reml, "singular": self.singular,
            **super()._extra_glance(),
            **{f"n_{name}": m for name, m in self.ngroups.items()},
        }  # fmt: skip

    def _extra_augment(self) -> dict[str, Any]:
        design, compute = self.model.design, self.model.compute
        return {".fixed": fixed_part(design, self.mixed.beta, compute)}

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed page: text, HTML (in notebooks), LaTeX."""
        from .page import _fixed_table, _random_table, _residual_table

        name = "Mean-field" if self.mean_field else "Variational"
        kind = "REML" if self.reml else "maximum likelihood"
        left = [("Response", self.response_name), ("Method", f"{name} {kind}")]
        blocks: list[Any] = [
            header(self, left), _residual_table(self), _random_table(self)
        ]  # fmt: skip
        if self.names:
            blocks.append(_fixed_table(self, alpha))
        blocks.append(Notes(tuple(variational_notes(self))))
        return Summary(self.model_name, self.formula_text, tuple(blocks))


def fit_variational(
    model: LinearMixed, reml: bool, mean_field: bool = False, unfactorised: Any = None,
    *, ddf: str = "normal", start: Any = None, maxiter: int = 100, tol: float = 1e-6,
    disp: bool = False,
) -> VariationalResults:  # fmt: skip
    """Maximise the bound of a linear mixed model.

    Parameters
    ----------
    model : LinearMixed
    reml : bool
        Whether the fixed effects are integrated over.
    mean_field : bool, default False
    unfactorised : int, str, sequence of str or None
        See `variational.small_factors`.
    ddf, start, maxiter, tol, disp
        As `LinearMixed.fit` takes them.
    """
    fixed, structure = model.foundation()
    small = chosen(structure, mean_field, unfactorised)
    products = crossed_products(
        model.design, structure, fixed, model.compute, small, mean_field
    )
    model.check_determined(structure, products)
    if reml and products.n <= products.p:
        raise DesignError("REML needs more rows than fixed effects.")
    bound = Bound(products, reml, model.sigma)
    if start is None:
        x = structure.begun(starting(products), lambda x: bound(x).value)
    else:
        x = parameters_of(structure, start)
    found = newton(bound, x, maxiter, tol, bound.watch)
    bound.finish(found.point)
    fitted = VariationalFitted(found, bound, model.compute)
    if disp:
        print(
            f"{model.title}: {found.message} after {found.iterations} steps, "
            f"{found.evaluations} evaluations."
        )
    if mean_field:
        model.caution(mean_field_caution(), MeanFieldWarning)
    model._warn_of(fitted)
    return _labelled(model, fitted, found, ddf)


def chosen(structure: Structure, mean_field: bool, unfactorised: Any) -> list[int]:
    """Factors that are unfactorised."""
    if not mean_field:
        return small_factors(structure, unfactorised)
    if unfactorised is not None:
        raise ModelError("mean field leaves nothing unfactorised; drop unfactorised=.")
    return []


def _labelled(
    model: LinearMixed, fitted: VariationalFitted, found: Found, ddf: str
) -> VariationalResults:
    n, p = fitted.products.n, fitted.products.p
    fit = Fit(
        x=torch.from_numpy(fitted.beta),
        bread=torch.from_numpy(fitted.cov_beta / fitted.sigma**2),
        information="expected", scale=fitted.sigma**2, nobs=float(n),
        df_resid=float(n - p - fitted.structure.size - (model.sigma is None)),
        facts={"elbo": -0.5 * found.point.value, "reml": float(fitted.reml)},
        converged=found.converged, iterations=found.iterations,
        gradient_norm=found.decrement, message=found.message,
        notes=(*model.dropped, *model.cautions),
    )  # fmt: skip
    return VariationalResults(model, fit, fitted, ddf)
