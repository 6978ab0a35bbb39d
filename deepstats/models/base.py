"""What every regression shares: from formula and data to a fit and its Results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..compute import Compute, default_compute, one_thread
from ..design import Batch, Design
from ..errors import (
    BoundaryWarning,
    ConvergenceWarning,
    DesignError,
    ModelError,
    RankWarning,
    caution,
)
from ..families import ExponentialFamily, Family
from ..formula import Formula, Rhs
from ..leastsquares import aliased_columns, triangle
from ..likelihood import Point, PredictorLikelihood, pointwise
from ..optimize import Derivatives, Optimum, newton, solve_information
from ..parameters import Block, Parameters
from ..results import Fit, Results

__all__ = ["INTERCEPT", "RegressionModel", "zero_probability"]

#: Right-hand side of a parameter that is one number.
INTERCEPT = Rhs.parse("~ 1")

# From this many numbers on, Newton starts at the estimates of a subsample: a pass over
# a twentieth of the rows costs a twentieth, and saves two or three full passes.
_SUBSAMPLE = 1_000_000
_STEP = 20
_PIVOT = 1e-8
# Rows of the response that are checked at once.
_CHECKED = 100_000
#: Share of it below which the cross-products have lost half their digits or more.
_LOST = 1e-11
# Scoring converges linearly where it differs from Newton's method: it brings the
# estimate this near, in standard errors, and Newton's method does the rest.
_SCORING = 0.1


class RegressionModel:
    """A model whose log-density depends on linear predictors.

    Subclasses declare `title`, `family` and, where there is more than one linear
    predictor, `layout` and `parameters`; the rest follows.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    weights : str or array_like, optional
        Precision (prior, variance) weights: column, expression or values.
    freq_weights : str or array_like, optional
        Number of observations that a row stands for.
    offset, exposure : str or array_like, optional
        Added to the linear predictor; exposure as its logarithm.
    na_action : {"drop", "raise"}, default "drop"
    context : mapping of str to callable, optional
        Functions the formula may call besides the documented ones.
    device, dtype : optional
        See `Compute`.
    """

    title: ClassVar[str] = "Regression"
    information: ClassVar[str] = "observed"
    t_by_default: ClassVar[bool] = False
    results_class: ClassVar[type[Results]] = Results

    family: Family
    design: Design
    #: What the last fit warned of, and the columns left out of all: for the page.
    cautions: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        weights: Any = None,
        freq_weights: Any = None,
        offset: Any = None,
        exposure: Any = None,
        parts: Sequence[Rhs] = (),
        absorb: bool = False,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        self.compute: Compute = default_compute(device, dtype)
        if isinstance(formula, str):
            formula = Formula.parse(formula, tuple(context or ()))
        self._refuse(formula, absorb)
        self.design = Design.build(
            formula, data, weights=weights, freq_weights=freq_weights, offset=offset,
            exposure=exposure, parts=parts, absorb=absorb, na_action=na_action,
            context=context, compute=self.compute,
        )  # fmt: skip
        self._check_response()

    # -- what subclasses declare ----------------------------------------------------

    @property
    def options(self) -> dict[str, Any]:
        """What, besides formula and data, makes this model; plain values.

        Arguments of the constructor as numbers and names (links by their names). Every
        attribute that a constructor sets is such a value too, or a family or a link, so
        that `persist.save` can write the model down and `from_saved` make it again.
        """
        return {}

    @classmethod
    def from_saved(
        cls, attributes: Mapping[str, Any], design: Design
    ) -> RegressionModel:
        """Return the model of a file: its own attributes, and a design without rows.

        A model can be saved when its attributes, besides design and compute, are plain
        values, families and links; see `persist`.

        Raises
        ------
        ValueError
            For an attribute that would hide a method.
        """
        model = cls.__new__(cls)
        for name, value in attributes.items():
            own = getattr(cls, name, None)
            if callable(own) or isinstance(own, property) or name.startswith("__"):
                raise ValueError(
                    f"the file sets {name!r}, which is no attribute of a model."
                )
            setattr(model, name, value)
        model.design, model.compute = design, default_compute()
        return model

    @property
    def layout(self) -> tuple[int, ...]:
        """Number of the matrix of each linear predictor."""
        return (0,)

    @property
    def parameters(self) -> Parameters:
        """Blocks of parameters."""
        return Parameters((Block("beta", self.design.X.names),))

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-density of rows and its derivatives in the linear predictors."""
        del information
        y, size = batch.y, batch.size
        if size is None:
            return pointwise(lambda *e: self.family.log_prob(y, *e), etas, order)
        return pointwise(lambda *e: self.family.log_prob(y, *e, size=size), etas, order)

    def loglik(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """Log-likelihood of each row."""
        etas = self.etas(params, batch)
        if batch.size is None:
            return self.family.log_prob(batch.y, *etas)
        return self.family.log_prob(batch.y, *etas, size=batch.size)

    def etas(self, params: dict[str, Tensor], batch: Batch) -> tuple[Tensor, ...]:
        """Linear predictors of a batch."""
        out = []
        values = torch.split(
            self.parameters.join(params),
            [self.design.matrices[m].k for m in self.layout],
        )
        for number, (m, beta) in enumerate(zip(self.layout, values, strict=True)):
            eta = batch.blocks[m].columns() @ beta
            offset = batch.offset[0] if number == 0 else None
            out.append(eta if offset is None else eta + offset)
        return tuple(out)

    def mean(self, *etas: Tensor) -> Tensor:
        """Mean of the response."""
        return self.family.mean(*etas)

    def predictions(self) -> dict[str, Callable[..., Tensor]]:
        """Functions of the linear predictors, by the name `predict(which=)` takes."""
        return {"mean": self.mean, "linear": _first}

    def start(self, likelihood: PredictorLikelihood) -> Tensor:
        """Return where Newton begins: intercepts from moments, slopes zero."""
        design, x = likelihood.design, torch.zeros(len(self.parameters)).double()
        intercepts = self.family.start(
            _tensor(design.y),
            _tensor(design.weights),
        )
        place = 0
        for m, value in zip(self.layout, intercepts, strict=True):
            names = design.matrices[m].names
            if "Intercept" in names:
                x[place + names.index("Intercept")] = value
            place += len(names)
        return x

    def scale(
        self, likelihood: PredictorLikelihood, x: Tensor, df_resid: float
    ) -> float:
        """Dispersion; one unless the family estimates it."""
        return 1.0

    def facts(
        self, likelihood: PredictorLikelihood, x: Tensor, scale: float, value: float
    ) -> dict[str, float]:
        """Figures of the fit besides the estimates: at least the log-likelihood."""
        return {"llf": value}

    def _refuse(self, formula: Formula, absorb: bool) -> None:
        """Raise for parts of a formula that this model has no use for."""
        if formula.call is not None:
            raise ModelError(
                f"{formula.call.name}(...) is a model of its own; use "
                f"ds.fit({formula.text!r}, data)."
            )
        if formula.rhs.groups:
            raise ModelError(
                f"{self.title} has no random effects such as "
                f"{formula.rhs.groups[0].text}; use ds.fit, which chooses the "
                "model from the formula."
            )
        if formula.rhs.calls:
            raise ModelError(f"{self.title} cannot use {formula.rhs.calls[0].text}.")
        if formula.parts and not absorb and not self._takes_parts():
            raise ModelError(f"{self.title} has no use for what follows '|'.")

    def _takes_parts(self) -> bool:
        """Whether what follows ``|`` in a formula is a part of this model."""
        return False

    def _check_response(self) -> None:
        design = self.design
        if design.y.ndim != 1:
            raise DesignError(
                f"{self.title} has one response; {design.y_name} is several."
            )
        if design.size is not None and not self.family.sized:
            raise DesignError(
                f"cbind(successes, failures) needs a binomial family, not "
                f"{self.family.name}."
            )
        self._check_levels()
        _check_rows(self.family, design.y, design.size)
        if design.n < design.X.k:
            raise DesignError(
                f"{design.n} rows cannot determine {design.X.k} coefficients; use "
                "fewer terms, or a penalised or random-effects model."
            )
        low, high = float(design.y.min()), float(design.y.max())
        if low == high and "Intercept" in design.X.names and design.n > 1:
            raise DesignError(
                f"the response {design.y_name} is constant ({low:g}); there is nothing "
                "to explain."
            )

    def _check_levels(self) -> None:
        design = self.design
        if design.y_levels is None:
            return
        if design.y_levels == (False, True):
            return
        if not self.family.sized or len(design.y_levels) != 2:
            raise DesignError(
                f"the response {design.y_name} is categorical, with levels "
                f"{list(design.y_levels)[:6]}; {self.title.lower()} needs numbers"
                + (" or exactly two levels." if self.family.sized else ".")
            )

    # -- fitting ----------------------------------------------------------------------

    @one_thread()
    def fit(
        self,
        cov_type: str = "nonrobust",
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        use_t: bool | None = None,
        start_params: Sequence[float] | None = None,
        maxiter: int = 100,
        tol: float = 1e-6,
        information: str | None = None,
        disp: bool | int = False,
    ) -> Results:
        """Estimate by maximum likelihood.

        Parameters
        ----------
        cov_type : str, default "nonrobust"
            See `inference.covariance`. Can be changed after the fit by
            `Results.get_robustcov_results`.
        cov_kwds : mapping, optional
            Options of the covariance; clusters as ``{"groups": ...}``: a column's
            name, values, a list of two names or a frame of two columns.
        use_t : bool, optional
            Whether tests use Student's t and F; by default only for least squares
            with non-robust standard errors, as in statsmodels.
        start_params : sequence of float, optional
            Start, in the order and on the scale of the parameters reported.
        maxiter : int, default 100
        tol : float, default 1e-6
            On the Newton decrement: the length of the last step in standard errors.
        information : {"observed", "expected"}, optional
            Which information "nonrobust" inverts; printed in the summary.
        disp : bool, default False
            Print how the optimiser ended.

        Returns
        -------
        Results
        """
        self.cautions = ()
        which = self._which_information(information)
        likelihood = PredictorLikelihood(self, self.design, self.compute)
        start = self._starting(likelihood, start_params, which, maxiter)
        given = start_params is not None
        start, first, likelihood = self._full_rank(likelihood, start, given)
        optimum = self._maximise(likelihood, start, first, which, maxiter, tol)
        if disp:
            print(
                f"{self.title}: {optimum.message} after {optimum.iterations} steps; "
                f"largest gradient {optimum.gradient_norm:.2g}."
            )
        self._warn(optimum, likelihood)
        return self._results(likelihood, optimum, which, cov_type, cov_kwds, use_t)

    def _which_information(self, information: str | None) -> str:
        which = information or self.information
        if which not in ("observed", "expected"):
            raise ValueError(
                f"information must be 'observed' or 'expected', not {which!r}."
            )
        if which == "expected" and not self._has_expected():
            raise ModelError(
                f"{self.title} has no closed-form expected information; use 'observed'."
            )
        return which

    def _has_expected(self) -> bool:
        return False

    def _scoring_is_newton(self) -> bool:
        """Whether expected and observed information are the same at every point."""
        return False

    def _starting(
        self,
        likelihood: PredictorLikelihood,
        given: Sequence[float] | None,
        information: str,
        maxiter: int,
    ) -> Tensor:
        if given is not None:
            x = torch.tensor(np.asarray(given, dtype=np.float64))
            if x.shape != (len(self.parameters),):
                raise ValueError(
                    f"start_params needs {len(self.parameters)} values, in the order "
                    f"{list(self.parameters.labels)}."
                )
            return self.parameters.working(x)
        design = likelihood.design
        if design.n * design.widest() < _SUBSAMPLE:
            return self.start(likelihood)
        part = PredictorLikelihood(self, design.every(_STEP), self.compute)
        found = newton(
            lambda x: part.derivatives(x, information),
            self.start(part),
            lower=self.parameters.lower(),
            max_iterations=maxiter,
            tolerance=1e-2,
            reevaluate=False,
        )
        return found.x if found.converged else self.start(likelihood)

    def _full_rank(
        self, likelihood: PredictorLikelihood, start: Tensor, given: bool
    ) -> tuple[Tensor, Derivatives, PredictorLikelihood]:
        """Drop aliased columns, with a warning that names them."""
        which = "expected" if self._has_expected() else "observed"
        first = likelihood.derivatives(start, which)
        place, keep, suspects = 0, [], set()
        for m in self.layout:
            k = self.design.matrices[m].k
            if (
                _least_pivot(first.information[place : place + k, place : place + k])
                < _PIVOT
            ):
                suspects.add(m)
            place += k
        design, dropped = self.design, {}
        for m in sorted(suspects):
            only = design.only(m)
            found = aliased_columns(*triangle(only, self.compute))
            if found:
                names = [design.matrices[m].names[j] for j in found]
                self.note_dropped(names)
                dropped[m] = found
                kept = [j for j in range(design.matrices[m].k) if j not in found]
                design = design.select_columns(kept, m)
        if not dropped:
            return start, first, likelihood
        place = 0
        for m in self.layout:
            k = self.design.matrices[m].k
            keep += [place + j for j in range(k) if j not in dropped.get(m, ())]
            place += k
        self.design = design
        likelihood = PredictorLikelihood(self, design, self.compute)
        start = start[keep] if given else self.start(likelihood)
        return start, likelihood.derivatives(start, which), likelihood

    def _maximise(
        self,
        likelihood: PredictorLikelihood,
        start: Tensor,
        first: Derivatives,
        information: str,
        maxiter: int,
        tol: float,
    ) -> Optimum:
        """Newton's method; Fisher scoring first where there is expected information."""
        lower = self.parameters.lower()
        small = likelihood.design.n * likelihood.design.widest() < _SUBSAMPLE
        scoring = self._has_expected()
        if scoring and self._needs_polish():
            rough = newton(
                _remembering(likelihood, "expected", start, first), start, lower=lower,
                max_iterations=maxiter, tolerance=_SCORING, reevaluate=False,
            )  # fmt: skip
            found = newton(
                _remembering(likelihood, "observed"), rough.x, lower=lower,
                max_iterations=max(1, maxiter - rough.iterations), tolerance=tol,
                reevaluate=small,
            )  # fmt: skip
            steps = rough.iterations + found.iterations
            found = replace(found, iterations=steps)
            if information == "observed":
                return found
            matrix = likelihood.derivatives(found.x, "expected").information
            return replace(found, information=matrix)
        objective = _remembering(
            likelihood, "expected" if scoring else information, start, first
        )
        return newton(
            objective, start, lower=lower, max_iterations=maxiter, tolerance=tol,
            reevaluate=small,
        )  # fmt: skip

    def _needs_polish(self) -> bool:
        """Whether expected and observed information differ."""
        return False

    def caution(self, text: str, category: type[Warning]) -> None:
        """Warn, and keep the text for the printed page of this fit."""
        self.cautions = (*self.cautions, text)
        caution(text, category)

    def note_dropped(self, names: Sequence[str], why: str = "") -> None:
        """Warn of columns dropped, and keep the text for every later page."""
        why = why or "linear combinations of earlier columns, dropped."
        text = f"{', '.join(names)}: {why}"
        self.dropped = (*self.dropped, text)
        caution(text, RankWarning)

    def _warn(self, optimum: Optimum, likelihood: PredictorLikelihood) -> None:
        if not optimum.converged:
            caution(
                f"{self.title} did not converge: {optimum.message} (largest gradient "
                f"{optimum.gradient_norm:.2g}). Rescale the variables, give "
                "start_params=, or raise maxiter=.",
                ConvergenceWarning,
            )
        free = [j for j in range(len(self.parameters)) if j not in optimum.at_bound]
        if optimum.converged and _least_pivot(optimum.information[free][:, free]) < (
            _LOST
        ):
            self.caution(
                "the columns are nearly collinear, or their values far from zero for "
                "how little they vary: digits of the estimates are lost. Centre the "
                "variables (center(x)) or leave some out.",
                RankWarning,
            )
        for j in optimum.at_bound:
            self.caution(
                f"{self.parameters.labels[j]} is at the edge of its range: the data "
                "do not support it. Its standard error is undefined; fit the simpler "
                "model.",
                BoundaryWarning,
            )

    def _results(
        self,
        likelihood: PredictorLikelihood,
        optimum: Optimum,
        information: str,
        cov_type: str,
        cov_kwds: Mapping[str, Any] | None,
        use_t: bool | None,
    ) -> Results:
        design, p = self.design, len(self.parameters)
        nobs = float(design.n)
        if design.freq_weights is not None:
            nobs = float(design.freq_weights.sum())
        free = torch.ones(p, dtype=torch.bool)
        free[list(optimum.at_bound)] = False
        bread = torch.full((p, p), torch.nan, dtype=torch.float64)
        inner = solve_information(optimum.information, free)
        bread[free.nonzero(), free.nonzero().T] = inner
        df_resid = nobs - p
        scale = self.scale(likelihood, optimum.x, df_resid)
        facts = self.facts(likelihood, optimum.x, scale, optimum.value)
        fit = Fit(
            x=optimum.x, bread=bread, information=information, scale=scale, nobs=nobs,
            df_resid=df_resid, facts=facts, converged=optimum.converged,
            iterations=optimum.iterations, gradient_norm=optimum.gradient_norm,
            message=optimum.message, at_bound=optimum.at_bound,
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        return self.results_class(self, fit, likelihood, cov_type, cov_kwds, use_t)


def _check_rows(family: Family, y: np.ndarray, size: np.ndarray | None) -> None:
    """Let a family check the response, exponential families a part at a time.

    Their rules are about single rows, and a part needs little memory; the message of a
    part that fails is made from all rows.
    """

    def check(part: slice) -> None:
        given = [_tensor(y[part])] + ([] if size is None else [_tensor(size[part])])
        family.check(*given)

    if isinstance(family, ExponentialFamily):
        try:
            for start in range(0, len(y), _CHECKED):
                check(slice(start, start + _CHECKED))
            return
        except DesignError:
            pass
    check(slice(None))


def _first(*etas: Tensor) -> Tensor:
    return etas[0]


def zero_probability(family: Family) -> dict[str, Callable[..., Tensor]]:
    """P(y = 0) as a function of the linear predictors, under its name."""

    def zero(*etas: Tensor) -> Tensor:
        return family.log_prob(torch.zeros_like(etas[0]), *etas).exp()

    return {"prob-zero": zero}


def _remembering(
    likelihood: PredictorLikelihood,
    information: str,
    at: Tensor | None = None,
    found: Derivatives | None = None,
) -> Callable[[Tensor], Derivatives]:
    """Objective of a likelihood that knows its derivatives at one point already."""
    known = [found] if found is not None else []

    def objective(x: Tensor) -> Derivatives:
        if known and torch.equal(x, at):
            return known.pop()
        return likelihood.derivatives(x, information)

    return objective


def _least_pivot(information: Tensor) -> float:
    """Smallest share of a column's own length in a Gram matrix, by Cholesky."""
    if not information.numel():
        return 1.0
    d = information.diagonal()
    if not bool(torch.isfinite(information).all()) or bool((d <= 0).any()):
        return 0.0
    scaled = information * d.rsqrt()[:, None] * d.rsqrt()
    factor, failed = torch.linalg.cholesky_ex(scaled)
    return 0.0 if int(failed) else float(factor.diagonal().min() ** 2)


def _tensor(values: np.ndarray | None) -> Tensor | None:
    """Return an array as a float64 tensor; a copy only where torch needs one."""
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64)
    if not array.flags.writeable or any(s < 0 for s in array.strides):
        array = array.copy()
    return torch.from_numpy(array)
