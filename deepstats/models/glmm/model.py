"""Generalised linear mixed models: reading, checks, the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...compute import one_thread
from ...design import RandomTerm
from ...errors import ConvergenceWarning, DesignError, ModelError, caution
from ...families import (
    ExponentialFamily,
    Family,
    Gamma,
    GammaML,
    Gaussian,
    GaussianML,
    get_family,
)
from ...formula import Formula, Rhs
from ...likelihood import PredictorLikelihood
from ...optimize import newton
from ...parameters import Block, Parameters
from ...results import Fit
from ..base import INTERCEPT, RegressionModel
from ..mixed.model import (
    check_columns,
    check_distinct,
    parameters_of,
    without_groups,
)
from ..mixed.reweighted import Reweighted
from ..mixed.rows import random_columns
from ..mixed.structure import Structure
from .cautions import cautions_of
from .laplace import Laplace
from .quadrature import Quadrature
from .results import MixedGLMResults
from .rows import RowDensity
from .search import Found, minimise

__all__ = ["MixedGLM"]

#: Relative variance of every standardised effect where the search begins.
_START = 0.5
#: Parameters that are about zeros.
_ZERO = ("inflate", "zero")
#: What to fit in place of a family without a likelihood.
_INSTEAD = {"quasipoisson": "nb1 or nb2", "quasibinomial": "betabinomial"}
#: Families of categories, by name: they would ask for a number of levels first.
_CATEGORICAL = ("ordinal", "multinomial", "mnlogit")


class MixedGLM(RegressionModel):
    """Generalised linear mixed model, by Laplace's method.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x + (1 + x | g)"``, ``"cbind(successes, failures) ~ x + (1 | g)"``; any
        number of random-effects terms, nested or crossed.
    data : frame or mapping
    family : str or Family, default "binomial"
        "binomial", "poisson", "nb2", "nb1", "gamma", "beta", "betabinomial", "zip",
        "zinb", "hurdle", "hurdlenb", "t", "gaussian" ...
    link : str or Link, optional
    zi_formula : str, optional
        Right-hand side of the zero part of zero-inflated and hurdle families, by
        default ``"~ 1"``.
    disp_formula : str, optional
        Right-hand side of the dispersion's predictor (its logarithm), by default
        ``"~ 1"``.
    information : {"observed", "expected"}, default "observed"
        Which information stands in Laplace's determinant: observed as in TMB, expected
        as in lme4. They are one for canonical links.
    weights, offset, exposure, na_action, context, device, dtype
        See `models.base.RegressionModel`.

    References
    ----------
    Breslow & Clayton (1993); Bates et al. (2015), lme4; Brooks et al. (2017), glmmTMB.
    """

    title: ClassVar[str] = "Generalised linear mixed model"
    results_class = MixedGLMResults

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        family: str | Family = "binomial",
        link: Any = None,
        zi_formula: str | None = None,
        disp_formula: str | None = None,
        information: str = "observed",
        weights: Any = None,
        offset: Any = None,
        exposure: Any = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        self.given, self.family = _families(family, link)
        self.expected = self._reads(information)
        self._check_parts(zi_formula, disp_formula)
        functions = tuple(context or ())
        parts = [
            self._part(name, zi_formula, disp_formula, functions)
            for name in self.family.predictors[1:]
        ]
        super().__init__(
            formula, data, weights=weights, offset=offset, exposure=exposure,
            parts=parts, na_action=na_action, context=context, device=device,
            dtype=dtype,
        )  # fmt: skip
        if self.compute.dtype != torch.float64:
            raise ModelError("mixed models are computed in float64.")
        self._check_groups()

    # -- what it is --------------------------------------------------------------------

    def _reads(self, information: str) -> bool:
        if information not in ("observed", "expected"):
            raise ValueError(
                f"information must be 'observed' or 'expected', not {information!r}."
            )
        if information == "expected" and not isinstance(self.family, ExponentialFamily):
            raise ModelError(
                f"{self.given} has no closed-form expected information here; use "
                "'observed'."
            )
        return information == "expected"

    def _check_parts(self, zi: str | None, disp: str | None) -> None:
        """Refuse the formula of a part that the family does not have."""
        others = self.family.predictors[1:]
        if zi is not None and not any(n in _ZERO for n in others):
            raise ModelError(
                f"zi_formula={zi!r}: {self.given} has no part for zeros; zip, zinb, "
                "hurdle and hurdlenb have."
            )
        if disp is not None and self._dispersion is None:
            raise ModelError(
                f"disp_formula={disp!r}: {self.given} has no dispersion to estimate."
            )

    @property
    def _dispersion(self) -> str | None:
        """Parameter that `disp_formula` is for; degrees of freedom are not."""
        others = [n for n in self.family.predictors[1:] if n not in (*_ZERO, "tau")]
        return others[0] if others else None

    def _part(
        self, name: str, zi: str | None, disp: str | None, functions: tuple[str, ...]
    ) -> Rhs:
        given = zi if name in _ZERO else disp if name == self._dispersion else None
        if given is None:
            return INTERCEPT
        part = Rhs.parse(given, functions)
        if part.groups:
            raise ModelError(
                f"{given!r}: random effects of the zero part or of the dispersion are "
                "not in this version; leave (… | …) out."
            )
        if part.calls or part.offsets or not part.terms:
            raise ModelError(f"{given!r} takes plain terms only.")
        return part

    def _refuse(self, formula: Formula, absorb: bool) -> None:
        if not formula.rhs.groups and formula.call is None:
            raise ModelError(
                f"{formula.text!r} has no random effects such as (1 | g); use ds.glm "
                "for a model without."
            )
        if formula.call is not None or formula.rhs.calls or formula.parts:
            super()._refuse(without_groups(formula), absorb)

    def _check_response(self) -> None:
        try:
            super()._check_response()
        except DesignError as error:
            # "gammaml" is a name for those who write families.
            text, own = str(error), f"{self.family.name}:"
            if not text.startswith(own):
                raise
            raise DesignError(f"{self.given}:{text.removeprefix(own)}") from None
        y = self.design.y
        edges = (0.0, 1.0) if self.family.sized else (0.0,)
        if (y == y[0]).all() and float(y[0]) in edges:
            raise DesignError(
                f"every response {self.design.y_name} is {y[0]:g}; there is nothing to "
                "explain."
            )

    def _check_groups(self) -> None:
        check_distinct(self.design.random)
        for random in self.design.random:
            if len(random.grouping) < 2:
                raise DesignError(
                    f"{random.grouping.name} in {random.term.text} has one level; its "
                    "variance cannot be estimated."
                )
            if isinstance(self.family, GaussianML) and (
                len(random.grouping) >= self.design.n
            ):
                raise DesignError(
                    f"{random.grouping.name} in {random.term.text} has as many levels "
                    "as the data have rows: its variance cannot be told from the "
                    "residual's; leave the term out."
                )

    @property
    def layout(self) -> tuple[int, ...]:
        """Number of the matrix of each linear predictor."""
        return tuple(range(len(self.family.predictors)))

    @property
    def parameters(self) -> Parameters:
        """Blocks of coefficients: of the mean, of the zero part, of the dispersion."""
        blocks = [Block("beta", self.design.X.names)]
        names = self.family.predictors[1:]
        links = self.family.links[1:]
        for name, link, part in zip(names, links, self.design.parts, strict=True):
            alone = part.names == ("Intercept",) and link.name == "log"
            if alone and name not in _ZERO:
                blocks.append(Block(name, (name,), positive=True))
            else:
                labels = tuple(f"{name}:{c}" for c in part.names)
                blocks.append(Block(name, labels, component=name))
        return Parameters(tuple(blocks))

    # -- fitting -----------------------------------------------------------------------

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """Return where the fit without random effects begins."""
        design = likelihood.design

        def tensor(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(np.array(values))

        y = tensor(design.y)
        assert y is not None
        intercepts = self.family.start(y, tensor(design.weights), tensor(design.size))
        x, place = torch.zeros(len(self.parameters)).double(), 0
        for m, value in zip(self.layout, intercepts, strict=True):
            names = design.matrices[m].names
            if "Intercept" in names:
                x[place + names.index("Intercept")] = value
            place += len(names)
        return x

    @one_thread()
    def fit(
        self,
        *,
        nagq: int = 1,
        start: Mapping[str, float] | Sequence[float] | None = None,
        maxiter: int = 100,
        tol: float = 1e-5,
        disp: bool | int = False,
    ) -> MixedGLMResults:
        """Estimate by maximum likelihood.

        Parameters
        ----------
        nagq : int, default 1
            Points of adaptive Gauss-Hermite quadrature; 1 is Laplace's method.
        start : sequence of float or mapping, optional
            Relative covariance parameters to begin from, as `theta`.
        maxiter : int, default 100
        tol : float, default 1e-5
            On the length of the last step in standard errors.
        disp : bool, default False
            Print how the search ended.

        Returns
        -------
        MixedGLMResults

        Warns
        -----
        SingularFitWarning, SeparationWarning, BoundaryWarning, ConvergenceWarning
        """
        if isinstance(nagq, bool) or not (isinstance(nagq, Integral) and nagq >= 1):
            raise ValueError(f"nagq must be a whole number >= 1, not {nagq!r}.")
        if not (isinstance(maxiter, Integral) and maxiter > 0):
            raise ValueError(f"maxiter must be a positive integer; not {maxiter!r}.")
        if not (isinstance(tol, Real) and 0 < tol < np.inf):
            raise ValueError(f"tol must be a positive number; not {tol!r}.")
        self.cautions = ()
        gamma = self._fixed()
        laplace = self.laplace(int(nagq))
        x = self._start(laplace.structure, start)
        found = minimise(laplace, x, gamma, tolerance=tol, max_iterations=maxiter)
        if disp:
            print(
                f"{self.title}: {found.message} after {found.iterations} steps, "
                f"{found.evaluations} evaluations."
            )
        for text, category in cautions_of(self.results(found), found):
            if category is ConvergenceWarning:
                caution(text, category)
            else:
                self.caution(text, category)
        return self.results(found)

    def _fixed(self) -> np.ndarray:
        """Estimates without random effects; drops aliased columns."""
        likelihood = PredictorLikelihood(self, self.design, self.compute)
        start = self.start(likelihood)
        start, _, likelihood = self._full_rank(likelihood, start, False)
        if len(self.layout) == 1:
            return start.cpu().numpy()  # The search scores from there.
        found = newton(
            lambda x: likelihood.derivatives(x, "observed"), start,
            lower=self.parameters.lower(), max_iterations=25, tolerance=1e-2,
        )  # fmt: skip
        x = found.x if bool(torch.isfinite(found.x).all()) else start
        return x.cpu().numpy().clip(-15, 15) if not found.converged else x.cpu().numpy()

    def laplace(self, nagq: int = 1) -> Laplace:
        """Return the criterion: by quadrature where `nagq` is more than one."""
        compute, design = self.compute, self.design

        def tensor(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else compute.tensor(np.array(values))

        structure = Structure.build(
            design.random, [self._gram(r) for r in design.random]
        )
        rows = Reweighted(design, structure, compute)
        y = tensor(design.y)
        assert y is not None
        density = RowDensity(
            self.family, y, tensor(design.size), tensor(design.weights), self.expected
        )
        X = tuple(m.to_dense(compute) for m in design.matrices)
        offsets = (tensor(design.offset), *(None for _ in design.parts))
        if nagq > 1:
            return Quadrature(rows, density, X, offsets, nagq)
        return Laplace(rows, density, X, offsets)

    @cached_property
    def _columns(self) -> list[np.ndarray]:
        return random_columns(self.design, self.compute)

    def _gram(self, random: RandomTerm) -> np.ndarray:
        """Mean cross-product of a term's columns, with a check of their rank."""
        number = next(j for j, r in enumerate(self.design.random) if r is random)
        columns = self._columns[number]
        gram = columns.T @ columns / self.design.n
        check_columns(random, gram)
        return gram

    def _start(self, structure: Structure, start: Any) -> np.ndarray:
        if start is not None:
            return parameters_of(structure, start)
        x = np.zeros(structure.size)
        for term in structure.terms:
            if term.variances:
                x[term.params] = _START
            else:
                r, c = term.triangle
                x[term.params] = np.where(r == c, np.sqrt(_START), 0.0)
        return x

    def results(self, found: Found) -> MixedGLMResults:
        """Label a fit."""
        design, k = self.design, len(found.point.x)
        free = np.flatnonzero(found.free)
        cov = np.full(found.hessian.shape, np.nan)
        cov[np.ix_(free, free)] = 2 * _inverse(found.hessian[np.ix_(free, free)])
        fit = Fit(
            x=torch.from_numpy(found.point.gamma), bread=torch.from_numpy(cov[k:, k:]),
            information="observed", scale=1.0, nobs=float(design.n),
            df_resid=float(design.n - len(found.point.gamma) - k),
            facts={"llf": -0.5 * found.point.value}, converged=found.converged,
            iterations=found.iterations, gradient_norm=found.decrement,
            message=found.message, notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        return MixedGLMResults(self, fit, found, cov)


def _inverse(H: np.ndarray) -> np.ndarray:
    """Inverse of a Hessian; NaN where it is not positive definite."""
    d = np.sqrt(np.abs(np.diag(H)).clip(1e-300))
    try:
        np.linalg.cholesky(H / d[:, None] / d)
    except np.linalg.LinAlgError:
        return np.full_like(H, np.nan)
    return np.linalg.inv(H / d[:, None] / d) / d[:, None] / d


def _families(family: str | Family, link: Any) -> tuple[str, Family]:
    """Name of the family asked for, and the one whose every parameter is estimated."""
    if isinstance(family, str) and family.lower() in _CATEGORICAL:
        raise ModelError(f"{family} mixed models are not in this version.")
    found = get_family(family, link=link)
    if not isinstance(found, Family):
        raise ModelError(f"{found.name} mixed models are not in this version.")
    name = found.name
    if isinstance(found, Gaussian):
        return name, GaussianML(found.link)
    if isinstance(found, Gamma):
        return name, GammaML(found.link)
    if isinstance(found, ExponentialFamily):
        if not found.has_likelihood:
            raise ModelError(
                f"{name} has no likelihood, which random effects need; use "
                f"{_INSTEAD.get(name, 'a family that has one')}."
            )
        if found.scale != "one":
            raise ModelError(f"{name} mixed models are not in this version.")
    return name, found
