"""Linear mixed models: from formula and data to the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch

from ...compute import Compute, one_thread
from ...design import RandomTerm
from ...errors import (
    ConvergenceWarning,
    DesignError,
    ModelError,
    SingularFitWarning,
    caution,
)
from ...families import get_family
from ...formula import Formula, GroupTerm, Rhs
from ...leastsquares import LeastSquares, least_squares
from ...results import Fit
from ..base import RegressionModel
from .covariances import KINDS
from .criterion import Criterion
from .degrees import DDF
from .fitted import Fitted
from .products import Products, cross_products
from .residuals import Variance, correlation_term, variance_terms
from .results import MixedResults
from .search import determined, minimise, starting
from .small import is_small, small_fixed, small_products
from .structure import Structure, kind_of, structured
from .variational import METHODS

__all__ = [
    "LinearMixed", "check_columns", "check_distinct", "check_structure",
    "parameters_of", "without_groups",
]  # fmt: skip


class LinearMixed(RegressionModel):
    """Linear mixed model: ``y = X beta + Z b + e``, b and e normal.

    Parameters
    ----------
    formula : str or Formula
        With random effects: ``(1 | g)``, ``(x | g)``, ``(x || g)``, ``(1 | a/b)``.
    data : frame or mapping
    weights : str or array_like, optional
        Prior weights: the residual variance of a row is ``sigma^2 / weight``.
    offset : str or array_like, optional
    sigma : float, optional
        Residual standard deviation, where it is known: with sampling variances v of
        a meta-analysis, ``sigma=1, weights=1/v``.
    correlation : str, optional
        How residuals of a group are correlated: ``"ar1(time | id)"`` by whole steps of
        time, ``"ar1(1 | id)"`` by rows, ``"ou(time | id)"`` in continuous time
        (``exp(-distance / range)``), ``"cs(1 | id)"`` all alike.
    variance : str, optional
        What the residual standard deviation is proportional to: ``"ident(f)"`` one
        ratio a level of f, ``"power(x)"`` for ``|x|^d``, ``"exp(x)"`` for
        ``exp(d x)``, or a product such as ``"ident(f) * power(x)"``.
    na_action, context, device, dtype
        See `RegressionModel`.

    References
    ----------
    Bates, Mächler, Bolker & Walker (2015), Fitting linear mixed-effects models using
    lme4, Journal of Statistical Software 67(1).
    """

    title: ClassVar[str] = "Linear mixed model"
    t_by_default: ClassVar[bool] = True
    results_class = MixedResults
    family = get_family("gaussian")

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        weights: Any = None,
        offset: Any = None,
        sigma: float | None = None,
        correlation: str | None = None,
        variance: str | None = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        if sigma is not None and not (isinstance(sigma, Real) and 0 < sigma < np.inf):
            raise ValueError(f"sigma must be a positive number, not {sigma!r}.")
        self.sigma = None if sigma is None else float(sigma)
        self.correlation, self.variance = correlation, variance
        self.functions = tuple(context or ())
        super().__init__(
            formula, data, weights=weights, offset=offset,
            parts=self._residual_parts(), na_action=na_action, context=context,
            device=device, dtype=dtype,
        )  # fmt: skip
        if self.compute.dtype != torch.float64:
            raise ModelError(
                "linear mixed models are computed in float64: cross-products in "
                "float32 have too few digits."
            )
        self._check_groups()
        self._prepared: tuple[Structure, Products] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What, besides formula and data, makes this model."""
        return {
            "sigma": self.sigma, "correlation": self.correlation,
            "variance": self.variance,
        }  # fmt: skip

    @property
    def correlation_term(self) -> GroupTerm | None:
        """Correlation of the residuals, read."""
        if self.correlation is None:
            return None
        return correlation_term(self.correlation, self.functions)

    @property
    def variance_terms(self) -> tuple[Variance, ...]:
        """Factors of the residuals' standard deviation, read."""
        if self.variance is None:
            return ()
        return variance_terms(self.variance, self.functions)

    def _residual_parts(self) -> list[Rhs]:
        """Variables of the residuals' covariance: time, then those of the variance."""
        term, out = self.correlation_term, []
        if term is not None and any(t.factors for t in term.terms):
            (time,) = (t for t in term.terms if t.factors)
            out.append(Rhs((time,), text=term.text))
        return out + [v.rhs for v in self.variance_terms]

    def _refuse(self, formula: Formula, absorb: bool) -> None:
        if not formula.rhs.groups and formula.call is None:
            raise ModelError(
                f"{formula.text!r} has no random effects such as (1 | g); use ds.ols "
                "for a linear model without."
            )
        if formula.call is not None or formula.rhs.calls or formula.parts:
            super()._refuse(without_groups(formula), absorb)

    def _check_groups(self) -> None:
        design = self.design
        if design.n_zero_weight:
            raise DesignError(
                f"{design.n_zero_weight} weights are zero: such rows say nothing; "
                "leave them out."
            )
        check_distinct(design.random)
        for random in design.random:
            levels = len(random.grouping)
            # Uncorrelated effects are terms of their own, as in lme4.
            q = levels * (random.Z.k if kind_of(random) == "us" else 1)
            text = random.term.text or str(random.term)
            check_structure(random, self.compute)
            if self.sigma is None and levels >= design.n:
                raise DesignError(
                    f"{random.grouping.name} in {text} has as many levels as the data "
                    f"have rows ({design.n}): its variance cannot be told from the "
                    "residual's. Leave the term out, or give a known sigma=."
                )
            if self.sigma is None and q >= design.n:
                raise DesignError(
                    f"{text} has {q} random effects and the data {design.n} rows: "
                    "variances and residual variance cannot be told apart. Use fewer "
                    "columns before the bar."
                )

    # -- fitting -------------------------------------------------------------------

    @one_thread()
    def prepare(self) -> tuple[Structure, Products]:
        """Return the random effects and all cross-products; rows are read once."""
        if self._prepared is None:
            fixed, structure, rows = self._foundation()
            if rows is None:
                products = cross_products(self.design, structure, fixed, self.compute)
            else:
                products = small_products(
                    self.design, structure, fixed, rows, self.compute
                )
            self.check_determined(structure, products)
            self._prepared = structure, products
        return self._prepared

    def foundation(self) -> tuple[LeastSquares, Structure]:
        """Return the fit without random effects, and the random effects."""
        return self._foundation()[:2]

    def _foundation(self) -> tuple[LeastSquares, Structure, Any]:
        """Return the same, and the rows of a small model; drop aliased columns."""
        few = small_fixed(self.design, self.compute) if self._is_small() else None
        if few is None:
            fixed, rows = least_squares(self.design, self.compute, extended=False), None
        else:
            fixed, rows = few
        names = self.design.X.names
        if len(fixed.kept) < len(names):
            gone = [n for j, n in enumerate(names) if j not in fixed.kept]
            self.aliased = tuple(gone)
            self.note_dropped(gone)
            self.design = self.design.select_columns(fixed.kept)
        self._check_scale(fixed)
        if fixed.ssr <= 1e-24 * max(float(np.square(self.design.y).sum()), 1e-300):
            what = "fixed effects fit" if names else "offset fits"
            raise DesignError(
                f"the {what} the response exactly; there is nothing left for "
                "random effects."
            )
        grams = [self._gram(r) for r in self.design.random]
        return fixed, Structure.build(self.design.random, grams), rows

    def _is_small(self) -> bool:
        return is_small(self.design, self.compute)

    def _check_scale(self, fixed: LeastSquares) -> None:
        """Refuse numbers whose squares are beyond float64."""
        size = float(np.abs(self.design.y).max())
        if not 1e-140 < size < 1e140:
            raise DesignError(
                f"the response is of size {size:.1e}, beyond what can be squared; "
                "rescale it."
            )
        inverse = fixed.inverse.diagonal().cpu().numpy()
        outside = ~((inverse > 1e-280) & (inverse < 1e280))
        if outside.any():
            name = self.design.X.names[int(np.argmax(outside))]
            raise DesignError(
                f"the values of {name} are too large or too small to be squared; "
                "rescale it."
            )

    #: Columns of the fixed part that others determine; NaN in the printed table.
    aliased: tuple[str, ...] = ()

    def _gram(self, random: RandomTerm) -> np.ndarray:
        """Mean cross-product of a term's columns, with a check of their rank."""
        design, Z = self.design, random.Z
        w = design.weights
        if Z.names == ("Intercept",):
            return np.array([[1.0 if w is None else float(w.mean())]])
        columns = Z.to_dense(self.compute.on_cpu()).numpy()
        gram = columns.T @ (columns if w is None else columns * w[:, None]) / design.n
        check_columns(random, gram)
        return gram

    @one_thread()
    def fit(
        self,
        reml: bool = True,
        *,
        method: str = "exact",
        unfactorised: int | str | Sequence[str] | None = None,
        ddf: str | None = None,
        start: Mapping[str, float] | Sequence[float] | None = None,
        maxiter: int = 100,
        tol: float = 1e-6,
        disp: bool | int = False,
    ) -> MixedResults:
        """Estimate by restricted or full maximum likelihood.

        Parameters
        ----------
        reml : bool, default True
            Restricted maximum likelihood; False for maximum likelihood.
        method : {"exact", "vi", "mf-vi"}
            "vi" is partially factorised variational inference, for crossed factors
            with very many levels; "mf-vi" mean field, whose standard errors are wrong.
            See `variational`.
        unfactorised : int, str or sequence of str, optional
            With "vi", the most effects of small factors that are kept together with the
            fixed effects (100), or the names of these factors.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}, optional
            Degrees of freedom of t and F for fixed effects; can be changed after the
            fit by `MixedResults.with_ddf`. "residual" takes n - p, "normal" gives z.
            "satterthwaite" by default, for variational fits "normal", all they have.
        start : sequence of float, optional
            Relative covariance parameters to start from, as `MixedResults.theta`.
        maxiter : int, default 100
        tol : float, default 1e-6
            On the length of a Newton step in standard errors of the parameters.
        disp : bool, default False
            Print how the search ended.

        Returns
        -------
        MixedResults
            A `VariationalResults` where the method is variational.

        Warns
        -----
        SingularFitWarning
            Where a covariance is estimated on the edge of its range.
        MeanFieldWarning, ConvergenceWarning
        """
        if method not in ("exact", *METHODS):
            raise ValueError(
                f"method must be exact, {' or '.join(METHODS)}; not {method!r}."
            )
        if method == "exact" and unfactorised is not None:
            raise ValueError('unfactorised= goes with method="vi".')
        if ddf is None:
            ddf = "satterthwaite" if method == "exact" else "normal"
        if ddf not in DDF:
            raise ValueError(f"ddf must be one of {', '.join(DDF)}; not {ddf!r}.")
        if not (isinstance(maxiter, Integral) and maxiter > 0):
            raise ValueError(f"maxiter must be a positive integer; not {maxiter!r}.")
        if not (isinstance(tol, Real) and 0 < tol < np.inf):
            raise ValueError(f"tol must be a positive number; not {tol!r}.")
        self.cautions = ()
        if method != "exact" and (self.correlation or self.variance):
            raise ModelError(
                f"method={method!r} is for independent residuals of one variance; use "
                "the exact method."
            )
        if method != "exact":
            return self._variational(
                bool(reml),
                METHODS[method],
                unfactorised,
                ddf,
                start,
                maxiter,
                tol,
                disp,
            )
        if self.correlation is not None or self.variance is not None:
            from .correlated import fit_correlated

            return fit_correlated(
                self, bool(reml), ddf=ddf, start=start, maxiter=maxiter, tol=tol,
                disp=bool(disp),
            )  # fmt: skip
        structure, products = self.prepare()
        if reml and products.n <= products.p:
            raise DesignError("REML needs more rows than fixed effects.")
        criterion = Criterion(products, bool(reml), self.sigma)
        if start is None:
            x = structure.begun(starting(products), lambda x: criterion(x).value)
        else:
            x = parameters_of(structure, start)
        found = minimise(criterion, x, maxiter, tol)
        fitted = Fitted(found, criterion, self.compute)
        if disp:
            print(
                f"{self.title}: {found.message} after {found.iterations} steps, "
                f"{found.evaluations} evaluations."
            )
        self._warn_of(fitted)
        return self.results(fitted, ddf)

    def _variational(
        self, reml: bool, mean_field: bool, unfactorised: Any, ddf: str, start: Any,
        maxiter: int, tol: float, disp: bool | int,
    ) -> MixedResults:  # fmt: skip
        """Maximise a bound in place of the likelihood."""
        from .variational_results import fit_variational

        return fit_variational(
            self, reml, mean_field, unfactorised, ddf=ddf, start=start,
            maxiter=maxiter, tol=tol, disp=bool(disp),
        )  # fmt: skip

    def results(self, fitted: Fitted, ddf: str = "satterthwaite") -> MixedResults:
        """Label a fit."""
        found, n, p = fitted.found, fitted.products.n, fitted.products.p
        size = fitted.structure.size + fitted.residual_size + (self.sigma is None)
        fit = Fit(
            x=torch.from_numpy(fitted.beta),
            bread=torch.from_numpy(fitted.cov_beta / fitted.sigma**2),
            information="expected", scale=fitted.sigma**2, nobs=float(n),
            df_resid=float(n - p - size),
            facts={"llf": -0.5 * found.point.value, "reml": float(fitted.reml)},
            converged=found.converged, iterations=found.iterations,
            gradient_norm=found.decrement, message=found.message,
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        if not fitted.residual_size:
            return MixedResults(self, fit, fitted, ddf)
        from .correlated import CorrelatedResults

        return CorrelatedResults(self, fit, fitted, ddf)

    @staticmethod
    def check_determined(structure: Structure, products: Products) -> None:
        """Refuse a factor whose levels the fixed effects tell apart."""
        for j in determined(products):
            name, first = structure.factors[j].name, structure.of(j)[0]
            raise DesignError(
                f"the fixed effects already tell the levels of {name} apart, and leave "
                f"nothing to {first.text}; leave one of them out."
            )

    def _warn_of(self, fitted: Fitted) -> None:
        if fitted.singular:
            self.caution(
                f"singular fit: {'; '.join(fitted.singular)}. The estimate is at the "
                "edge of its range, not a failure: leave the term out, simplify it "
                "(|| for |), or report it as it is.",
                SingularFitWarning,
            )
        if not fitted.found.converged:
            caution(
                f"{self.title} did not converge: {fitted.found.message} (the last "
                f"step was {fitted.found.decrement:.2g} standard errors long). Raise "
                "maxiter=, simplify the random effects, or rescale the variables.",
                ConvergenceWarning,
            )


def without_groups(formula: Formula) -> Formula:
    """Return a formula without its random effects."""
    from dataclasses import replace

    return replace(formula, rhs=replace(formula.rhs, groups=()))


def _text(random: RandomTerm) -> str:
    return random.term.text or str(random.term)


def check_distinct(terms: Sequence[RandomTerm]) -> None:
    """Refuse terms that let the same columns vary over the same groups of rows.

    Parameters
    ----------
    terms : sequence of RandomTerm

    Raises
    ------
    DesignError
    """
    for one, two in combinations(terms, 2):
        if _alike(one, two):
            raise DesignError(
                f"{_text(one)} and {_text(two)} group the rows alike: only the sum "
                "of their variances is determined. Leave one of them out."
            )


def check_structure(random: RandomTerm, compute: Compute) -> None:
    """Refuse a structured covariance that its columns have no meaning for.

    Parameters
    ----------
    random : RandomTerm
    compute : Compute

    Raises
    ------
    ModelError
    MemoryError
        For more columns and levels than there is memory for.
    """
    if structured(random) is None:
        return
    text, k, m = _text(random), random.Z.k, len(random.grouping)
    compute.require(
        6 * m * k**2, f"{text} with {k:,} columns for each of {m:,} levels",
        "round times or places so that there are fewer of them, or, for normal "
        'responses, correlate the residuals: ds.lmer(..., correlation="ou(time | g)").',
    )  # fmt: skip


def check_columns(random: RandomTerm, gram: np.ndarray) -> None:
    """Refuse columns before the bar that are zero or determine one another.

    Parameters
    ----------
    random : RandomTerm
    gram : ndarray, shape (K, K)
        Mean cross-product of its columns.

    Raises
    ------
    DesignError
    """
    Z, text = random.Z, _text(random)
    d = np.sqrt(np.diag(gram))
    if (d == 0).any():
        name = Z.names[int(np.argmin(d))]
        raise DesignError(
            f"{name} in {text} is zero in every row, or too small to be squared; "
            "leave it out or rescale it."
        )
    values, vectors = np.linalg.eigh(gram / d[:, None] / d)
    if values[0] <= 1e-12 * values[-1]:
        at = np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3)
        names = [Z.names[j] for j in at if Z.names[j] != "Intercept"]
        constant = len(at) == 2 and len(names) == 1
        raise DesignError(
            f"{text}: {names[0]} is constant, so its slope cannot be told from the "
            "intercept; leave it out, or write (0 + ... | g)."
            if constant
            else f"{text}: {', '.join(Z.names[j] for j in at)} determine one "
            "another; leave one out before the bar."
        )


def _alike(one: RandomTerm, two: RandomTerm) -> bool:
    """Whether two terms let the same columns vary over the same groups of rows."""
    m, kinds = len(one.grouping), {one.term.structure, two.term.structure}
    if len(kinds) > 1 and kinds & set(KINDS):
        return False
    if one.Z.names != two.Z.names or len(two.grouping) != m:
        return False
    pairs = one.grouping.codes.astype(np.int64) * m + two.grouping.codes
    return len(np.unique(pairs)) == m


def parameters_of(
    structure: Structure, start: Mapping[str, float] | Sequence[float]
) -> np.ndarray:
    """Parameters of a start in the order of `theta`."""
    labels = list(structure.theta(np.ones(structure.size)))
    if isinstance(start, Mapping):
        missing = [n for n in labels if n not in start]
        if missing:
            raise ValueError(f"start lacks {', '.join(missing)}.")
        values: list[Any] = [start[n] for n in labels]
    else:
        values = [start] if np.ndim(start) == 0 else list(start)
    if len(values) != len(labels):
        raise ValueError(f"start needs {len(labels)} values: {', '.join(labels)}.")
    if not all(isinstance(v, Real) and abs(v) < 1e10 for v in values):
        raise ValueError(f"start must be numbers of ordinary size; not {start!r}.")
    return structure.from_theta(values)
