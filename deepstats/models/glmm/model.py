"""Generalised linear mixed models: reading, checks, the fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

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
    Interval,
    InverseGaussian,
    InverseGaussianML,
    StudentT,
    Tweedie,
    TweedieML,
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
    check_structure,
    parameters_of,
    without_groups,
)
from ..mixed.parted import Parted
from ..mixed.reweighted import Reweighted
from ..mixed.rows import random_columns
from ..mixed.structure import Structure
from ..mixed.variational import METHODS
from .cautions import cautions_of
from .joint import JointDensity
from .laplace import Laplace
from .quadrature import Quadrature
from .restricted import find
from .results import MixedGLMResults
from .rows import RowDensity
from .search import Found

__all__ = ["MixedGLM"]

#: Columns of unit length are plainly not aliased where the least eigenvalue of their
#: cross-products is above this.
_PLAINLY = 1e-3
#: Parameters that are about zeros.
_ZERO = ("inflate", "zero")
#: What to fit in place of a family without a likelihood.
_INSTEAD = {"quasipoisson": "nb1 or nb2", "quasibinomial": "betabinomial"}
#: Families whose dispersion is estimated, as those that estimate it by likelihood.
_ESTIMATED: dict[type, Any] = {
    Gaussian: GaussianML, Gamma: GammaML, InverseGaussian: InverseGaussianML,
}  # fmt: skip
#: Families of categories, by name: they would ask for a number of levels first.
_CATEGORICAL = ("ordinal", "multinomial", "mnlogit")


class Pieces(NamedTuple):
    """What a criterion is made of.

    Attributes
    ----------
    structure : Structure
    given : tuple
        Family, responses, trials, prior weights.
    X : tuple of Tensor, each (n, p_j)
        Matrix of every linear predictor.
    offsets : tuple of Tensor or None
    """

    structure: Structure
    given: tuple[Family, Tensor, Tensor | None, Tensor | None]
    X: tuple[Tensor, ...]
    offsets: tuple[Tensor | None, ...]


class MixedGLM(RegressionModel):
    """Generalised linear mixed model, by Laplace's method.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x + (1 + x | g)"``, ``"cbind(successes, failures) ~ x + (1 | g)"``; any
        number of random-effects terms, nested or crossed.
    data : frame or mapping
    family : str or Family, default "binomial"
        "binomial", "poisson", "nb2", "nb1", "gamma", "inversegaussian", "tweedie",
        "beta", "betabinomial", "zip", "zinb", "hurdle", "hurdlenb", "t", "gaussian"
        ... Known parameters as fields: ``get_family("t", nu=4)``.
    link : str or Link, optional
    zi_formula : str, optional
        Right-hand side of the zero part of zero-inflated and hurdle families, by
        default ``"~ 1"``; it may have random effects of its own, ``"~ x + (1 | g)"``.
    disp_formula : str, optional
        Right-hand side of the dispersion's predictor (its logarithm), by default
        ``"~ 1"``; it too may have random effects. They are independent of the mean's.
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
        self._parts = [
            self._part(name, zi_formula, disp_formula, functions)
            for name in self.family.predictors[1:]
        ]
        super().__init__(
            formula, data, weights=weights, offset=offset, exposure=exposure,
            parts=self._parts, na_action=na_action, context=context, device=device,
            dtype=dtype,
        )  # fmt: skip
        if self.compute.dtype != torch.float64:
            raise ModelError("mixed models are computed in float64.")
        self.design = replace(self.design, random=tuple(self._labelled()))
        self._check_groups()

    # -- what it is --------------------------------------------------------------------

    def _reads(self, information: str) -> bool:
        if information not in ("observed", "expected"):
            raise ValueError(
                f"information must be 'observed' or 'expected', not {information!r}."
            )
        if information == "expected" and not self.family.has_expected:
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
        if part.calls or part.offsets or not part.terms:
            raise ModelError(
                f"{given!r} takes plain terms and random effects, (1 | g), only; an "
                "intercept at least."
            )
        return part

    def _refuse(self, formula: Formula, absorb: bool) -> None:
        random = formula.rhs.groups or any(p.groups for p in self._parts)
        if not random and formula.call is None:
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

    def check_drawn(self) -> None:
        """Check a response that has taken the place of that of the data."""
        self._check_response()

    def _labelled(self) -> Iterator[RandomTerm]:
        """Name random effects of further predictors by the parameter they are of."""
        names = self.family.predictors
        for random in self.design.random:
            label = names[random.part] if random.part else ""
            yield replace(random, label=label)

    def _check_groups(self) -> None:
        every = self.design.random
        for part in self.layout:
            check_distinct([r for r in every if r.part == part])
        for random in every:
            check_structure(random, self.compute)
            plain = random.term.structure in ("us", "diag")
            if len(random.grouping) < 2 and plain:
                raise DesignError(
                    f"{random.grouping.name} in {random.term.text} has one level; its "
                    "variance cannot be estimated."
                )
            if (
                isinstance(self.family, GaussianML)
                and random.part == 0
                and len(random.grouping) >= self.design.n
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
        random = {r.label for r in self.design.random}
        for name, link, part in zip(names, links, self.design.parts, strict=True):
            alone = part.names == ("Intercept",) and link.name == "log"
            alone = alone and name not in random
            if alone and name not in _ZERO:
                blocks.append(Block(name, (name,), positive=True))
            elif isinstance(link, Interval) and part.names == ("Intercept",):
                blocks.append(Block(name, (name,), interval=link.domain))
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
        reml: bool = False,
        method: str = "laplace",
        unfactorised: int | str | Sequence[str] | None = None,
        expectation: str = "auto",
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
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
        reml : bool, default False
            Integrate the mean's coefficients out too, by Laplace's method, as
            glmmTMB's REML: variances are less biased in small samples.
        method : {"laplace", "vi", "mf-vi"}
            "vi" is partially factorised variational inference, for crossed factors
            with very many levels; "mf-vi" mean field, whose standard errors are wrong.
            See `variational`.
        unfactorised : int, str or sequence of str, optional
            With "vi", the most effects of small factors that are kept together with the
            fixed effects (100), or the names of these factors.
        expectation : {"auto", "polya-gamma", "quadrature"}
            Of variational methods: how rows' log-densities are averaged over the random
            effects; see `variational.expectation`.
        cov_type, cov_kwds
            Of the standard errors; see `MixedGLMResults.get_robustcov_results`.
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
            A `VariationalGLMResults` where the method is variational.

        Warns
        -----
        SingularFitWarning, SeparationWarning, BoundaryWarning, ConvergenceWarning,
        MeanFieldWarning
        """
        if isinstance(nagq, bool) or not (isinstance(nagq, Integral) and nagq >= 1):
            raise ValueError(f"nagq must be a whole number >= 1, not {nagq!r}.")
        if not (isinstance(maxiter, Integral) and maxiter > 0):
            raise ValueError(f"maxiter must be a positive integer; not {maxiter!r}.")
        if not (isinstance(tol, Real) and 0 < tol < np.inf):
            raise ValueError(f"tol must be a positive number; not {tol!r}.")
        self.cautions = ()
        if method not in ("laplace", *METHODS):
            raise ValueError(
                f"method must be laplace, {' or '.join(METHODS)}; not {method!r}."
            )
        if method != "laplace":
            if nagq > 1 or reml or cov_type != "nonrobust" or cov_kwds:
                raise ModelError(
                    f"method={method!r} takes no nagq=, reml= or cov_type=: it has a "
                    "bound of the likelihood, not the likelihood."
                )
            return self._variational(
                METHODS[method], unfactorised, expectation, start, maxiter, tol, disp
            )
        if unfactorised is not None or expectation != "auto":
            raise ValueError('unfactorised= and expectation= go with method="vi".')
        gamma = self._fixed()
        laplace = self.laplace(int(nagq))
        x = None if start is None else parameters_of(laplace.structure, start)
        found = find(
            laplace, x, gamma, reml=bool(reml), tolerance=tol, max_iterations=maxiter,
            unit=self._variance(laplace, gamma),
        )  # fmt: skip
        if disp:
            print(
                f"{self.title}: {found.message} after {found.iterations} steps, "
                f"{found.evaluations} evaluations."
            )
        results = self.reported(found)
        if cov_type == "nonrobust" and not cov_kwds:
            return results
        return results.get_robustcov_results(cov_type, **(cov_kwds or {}))

    def _variational(
        self, mean_field: bool, unfactorised: Any, expectation: str, start: Any,
        maxiter: int, tol: float, disp: bool | int,
    ) -> MixedGLMResults:  # fmt: skip
        """Maximise a bound in place of the likelihood."""
        from .variational_results import fit_variational

        return fit_variational(
            self, mean_field, unfactorised, expectation, start=start,
            maxiter=maxiter, tol=tol, disp=bool(disp),
        )  # fmt: skip

    def reported(self, found: Found) -> MixedGLMResults:
        """Label a fit, and warn of what it has to be warned of."""
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
        if len(self.layout) > 1 or not self._regular():
            start, _, likelihood = self._full_rank(likelihood, start, False)
        if len(self.layout) == 1:
            return start.cpu().numpy()  # The search scores from there.
        found = newton(
            lambda x: likelihood.derivatives(x, "observed"), start,
            lower=self.parameters.lower(), max_iterations=25, tolerance=1e-2,
        )  # fmt: skip
        x = found.x if bool(torch.isfinite(found.x).all()) else start
        return x.cpu().numpy().clip(-15, 15) if not found.converged else x.cpu().numpy()

    def _regular(self) -> bool:
        """Whether the columns are so far from aliased that a glance tells."""
        X = self.design.X.to_dense(self.compute).cpu().numpy()
        length = np.sqrt((X**2).sum(0))
        if not (np.isfinite(length).all() and (length > 0).all()):
            return False
        X = X / length
        return not X.shape[1] or bool(np.linalg.eigvalsh(X.T @ X)[0] > _PLAINLY)

    def pieces(self) -> Pieces:
        """Return what every criterion is made of."""
        compute, design = self.compute, self.design

        def tensor(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else compute.tensor(np.array(values))

        structure = Structure.build(
            design.random, [self._gram(r) for r in design.random]
        )
        y = tensor(design.y)
        assert y is not None
        given = (self.family, y, tensor(design.size), tensor(design.weights))
        X = tuple(m.to_dense(compute) for m in design.matrices)
        offsets = (tensor(design.offset), *(None for _ in design.parts))
        return Pieces(structure, given, X, offsets)

    def laplace(self, nagq: int = 1) -> Laplace:
        """Return the criterion: by quadrature where `nagq` is more than one."""
        compute, design = self.compute, self.design
        structure, given, X, offsets = self.pieces()
        if any(r.part for r in design.random):
            rows: Reweighted = Parted(design, structure, compute)
            density: RowDensity = JointDensity(*given, rows.parts)
        else:
            rows = Reweighted(design, structure, compute)
            density = RowDensity(*given, self.expected)
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

    def _variance(self, laplace: Laplace, gamma: np.ndarray) -> float:
        """Return what a unit of variance is.

        That of the rows where the mean is on its own scale, that of a logarithm's unit
        where a positive mean has another link; else one.
        """
        etas, link = laplace.predictors(gamma), self.family.links[0]
        if isinstance(self.family, GaussianML | StudentT) and link.name == "identity":
            return float(torch.exp(2 * etas[1].mean()))
        if self.family.domains[0] != (0.0, np.inf) or link.name == "log":
            return 1.0
        slopes = link.log_derivatives(etas[0])[0]
        found = float(slopes.square().reciprocal().nanmedian())
        return found if 0 < found < np.inf else 1.0

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
        return self.results_class(self, fit, found, cov)


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
        raise ModelError(_of_categories(family.lower()))
    found = get_family(family, link=link)
    if not isinstance(found, Family):
        raise ModelError(_of_categories(found.name))
    name = found.name
    if isinstance(found, Tweedie):
        # A name says nothing of the power; an instance has one.
        power = None if isinstance(family, str) else found.power
        return name, TweedieML(found.link, power=power)
    if type(found) in _ESTIMATED:
        return name, _ESTIMATED[type(found)](found.link)
    if isinstance(found, ExponentialFamily) and not found.has_likelihood:
        raise ModelError(
            f"{name} has no likelihood, which random effects need; use "
            f"{_INSTEAD.get(name, 'a family that has one')}."
        )
    return name, found


def _of_categories(name: str) -> str:
    if name == "ordinal":
        return "for ordinal responses use ds.glmer, or MixedOrdinal."
    return f"{name} mixed models are not in this version."
