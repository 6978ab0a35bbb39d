"""Regression by any loss: the call, its checks and the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...compute import one_thread
from ...design import Batch
from ...errors import (
    ConvergenceWarning,
    LossError,
    ModelError,
    caution,
)
from ...families import get_family
from ...formula import Formula
from ...leastsquares import aliased_columns, triangle
from ...likelihood import Point, PredictorLikelihood
from ...results import Fit, _split_name
from ..base import RegressionModel
from .constraints import Constraints, read_constraints
from .losses import (
    LINKS,
    LOSSES,
    Composite,
    FinalLink,
    Loss,
    check_loss_function,
    get_link,
    get_loss,
)
from .objective import Objective
from .path import LossPath, fit_path
from .penalties import Penalty, make_penalty
from .results import LossResults
from .sample import check_outcome, extra_columns, make_objective, validation
from .solvers import Problem, Solution, minimise

__all__ = ["LossRegression", "lossreg"]

Array = np.ndarray

_CHOICES = ("cv", "1se", "gcv")
_STARTS = ("auto", "zero", "ols", "logit")


@dataclass
class _Monitor:
    """Losses at each iteration, and when to stop early.

    Attributes
    ----------
    problem : Problem
    outside : Objective or None
        Validation data.
    patience : int or None
        Iterations without a lower loss outside before the search stops.
    """

    problem: Problem
    outside: Objective | None
    patience: int | None
    stage: str = ""
    rows: dict[str, list[Any]] = field(default_factory=dict)
    best: tuple[float, Array] | None = None
    waited: int = 0
    count: int = 0

    def begin(self, stage: str, problem: Problem, outside: Objective | None) -> None:
        """Start a stage, whose losses are those of its own loss."""
        self.stage, self.problem, self.outside = stage, problem, outside
        self.best, self.waited, self.count = None, 0, 0

    def __call__(self, b: Array) -> bool:
        """Note the losses at `b`; whether to stop."""
        inside = self.problem.objective.value(b)
        row = {
            "stage": self.stage, "iteration": self.count, "in_sample": inside,
            "objective": inside + self.problem.penalty.value(b),
        }  # fmt: skip
        if self.outside is not None:
            row["out_of_sample"] = self.outside.value(b)
        for key, value in row.items():
            self.rows.setdefault(key, []).append(value)
        self.count += 1
        if self.patience is None or self.outside is None:
            return False
        loss = row["out_of_sample"]
        if self.best is None or loss < self.best[0]:
            self.best, self.waited = (loss, b.copy()), 0
            return False
        self.waited += 1
        return self.waited >= self.patience


class LossRegression(RegressionModel):
    """Linear predictor, final link and any loss, with penalties and constraints.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
    loss : str, callable or Loss, default "squared"
        See `losses.get_loss`: "logloss", "brier", "poisson", "squared", "absolute",
        "huber(1.345)", "quantile(0.9)", "focal(2)", or a torch function
        ``f(prediction, y, **columns)`` to one value for each row, or to one number for
        the whole sample.
    link : str or callable, optional
        From the linear predictor to the prediction: "sigmoid", "clamp", "identity",
        "exp" or a torch function; by default the loss's own.
    penalty : str, callable or Penalty, optional
        "ridge", "lasso", "elasticnet", "group", "integer", or a torch function of the
        coefficients. The objective is mean loss plus ``lam`` times: half the sum of
        squares (ridge), the sum of absolute values (lasso), both in shares (elastic
        net), norms of groups times the root of their size, distances to the nearest
        multiple of `step`. The intercept is left out.
    lam : float or {"cv", "1se", "gcv"}, optional
        Strength of the penalty, or how to choose it; needed with a penalty.
    l1_ratio : float, default 0.5
        Share of the l1 part of an elastic net.
    groups : mapping of str to sequence of str, optional
        Columns or terms of each group of a group lasso; by default the terms.
    penalty_factor : mapping of str to float, optional
        Multiplies the penalty of a column; zero leaves it out.
    step : float, default 1
        Of the integer penalty.
    standardize : bool, default True
        Coefficients are penalised in units of their columns' standard deviations
        (not by the integer penalty).
    constraints : str, mapping or sequence, optional
        See `constraints.read_constraints`.
    loss_columns : mapping of str to str, optional
        Column of the data by argument of the loss; without it arguments have the
        names of their columns.
    weights : str or array_like, optional
        Of the rows in the mean loss.
    offset, exposure, na_action, context, device, dtype : optional
        See `RegressionModel`. Computation is in float64.

    Raises
    ------
    LossError, InfeasibleError, ModelError, DesignError
        For a loss that cannot be minimised, constraints that contradict one another,
        and combinations that are not supported; the message says what to do.
    """

    title = "Regression by loss"
    results_class = LossResults
    # Only its identity link is used, and only by what predictions inherit.
    family = get_family("gaussian")
    link_function: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        loss: Any = "squared",
        link: Any = None,
        penalty: Any = None,
        lam: float | str | None = None,
        l1_ratio: float = 0.5,
        groups: Mapping[str, Sequence[str]] | None = None,
        penalty_factor: Mapping[str, float] | None = None,
        step: float = 1.0,
        standardize: bool = True,
        constraints: Any = None,
        loss_columns: Mapping[str, str] | None = None,
        weights: Any = None,
        offset: Any = None,
        exposure: Any = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        chosen = get_loss(loss, loss_columns)
        final = get_link(chosen.link if link is None else link)
        _check_pair(chosen, final)
        self._parts: dict[str, Any] = {"loss": chosen, "penalty": penalty}
        self.loss_name, self.link_name = chosen.name, final.name
        self.link_function = None if LINKS.get(final.name) is final else final.function
        self.loss_columns = {c: (loss_columns or {}).get(c, c) for c in chosen.columns}
        super().__init__(
            formula, data, weights=weights, offset=offset, exposure=exposure,
            na_action=na_action, context=context, device=device, dtype=dtype,
        )  # fmt: skip
        self.column_levels: dict[str, tuple] = {}
        self.lam, self.l1_ratio, self.step = lam, float(l1_ratio), float(step)
        self.standardize = bool(standardize)
        self.penalty_factor = dict(penalty_factor or {})
        self._check_strength(penalty, lam)
        if penalty is None:
            self._drop_aliased()
        table = self.design.spec.table
        assert table is not None
        values, self.column_levels = extra_columns(
            self.design, table, self.loss_columns
        )
        self._parts["values"] = values
        self._parts["loss"] = chosen.knowing(self.column_levels)
        self._parts["groups"] = self._positions(groups) if penalty == "group" else None
        self._parts["constraints"] = read_constraints(
            constraints, self.design.X.names, self._terms(), self._ladders()
        )
        self._check_combination()

    # -- what was asked for ------------------------------------------------------------

    @property
    def loss(self) -> Loss:
        """The loss."""
        if hasattr(self, "_parts"):
            return self._parts["loss"]
        if self.loss_name.partition("(")[0] in LOSSES:
            return get_loss(self.loss_name)
        raise LossError(
            f"these results were loaded from a file, and the loss {self.loss_name} was "
            "a function, which a file cannot hold."
        )

    @property
    def final(self) -> FinalLink:
        """The final link."""
        if self.link_function is None:
            return get_link(self.link_name)
        return FinalLink(self.link_name, self.link_function)

    @property
    def composite(self) -> Composite:
        """The loss after the link."""
        return Composite(self.loss, self.final)

    @property
    def constraints(self) -> Constraints:
        """The constraints."""
        return self._parts["constraints"]

    @cached_property
    def _known(self) -> dict[str, Objective]:
        """Arrays of the data, made once."""
        return {
            "objective": make_objective(
                self.design, self.composite, self._parts["values"], self.compute
            )
        }

    @property
    def objective(self) -> Objective:
        """Mean loss of the data."""
        return self._known["objective"]

    def column_scale(self) -> Array:
        """Return the deviations of the columns, or ones if not standardised."""
        X = self.objective.X
        if not self.standardize:
            return np.ones(X.shape[1])
        if not self.design.has_constant:
            return self.objective.scale
        w = self.objective.weights
        total = float(len(X) if w is None else w.sum())
        weight = torch.ones_like(X[:, 0]) if w is None else w
        centre = weight @ X / total
        squares = torch.zeros_like(centre)
        for start in range(0, len(X), 4096):
            part = slice(start, start + 4096)
            squares += weight[part] @ (X[part] - centre) ** 2
        sd = (squares / total).sqrt().cpu().numpy()
        return np.where(sd > 0, sd, 1.0)

    def penalty(self, lam: float | None = None) -> Penalty:
        """Return the penalty at a strength; by default that of the model."""
        lam = self.lam if lam is None else lam
        strength = 0.0 if lam is None or isinstance(lam, str) else float(lam)
        return make_penalty(
            self._parts["penalty"], strength, self.design.X.names, self.column_scale(),
            l1_ratio=self.l1_ratio, groups=self._parts["groups"],
            factor=self.penalty_factor, step=self.step,
        )  # fmt: skip

    def problem(self, lam: float | None = None) -> Problem:
        """Return what is minimised: mean loss, penalty, constraints."""
        return Problem(self.objective, self.penalty(lam), self.constraints)

    # -- checks ------------------------------------------------------------------------

    def _check_response(self) -> None:
        check_outcome(self.loss, self.design)
        free = self._parts["penalty"] is None
        if free and self.design.n < self.design.X.k:
            raise ModelError(
                f"{self.design.n} rows cannot determine {self.design.X.k} "
                "coefficients; use fewer terms or a penalty."
            )

    def _check_strength(self, penalty: Any, lam: Any) -> None:
        if penalty is None and lam is not None:
            raise ModelError(f"lam={lam!r} needs a penalty=.")
        if penalty is None or isinstance(penalty, Penalty):
            return
        if lam is None:
            raise ModelError(
                "say how strong the penalty is: lam=0.1, or lam='cv' (also '1se', "
                "'gcv') to choose it."
            )
        if isinstance(lam, str) and lam not in _CHOICES:
            raise ValueError(
                f"lam={lam!r} is not known: a number or one of {_CHOICES}."
            )
        if isinstance(lam, str) and (callable(penalty) or penalty == "integer"):
            raise ModelError(
                f"lam={lam!r} chooses among ridge, lasso, elastic net and group lasso; "
                "give a number for this penalty."
            )

    def _check_combination(self) -> None:
        if self._parts["penalty"] == "group" and not self.constraints.empty:
            raise ModelError(
                "a group lasso takes no constraints here; use penalty='lasso' or "
                "'elasticnet' with them."
            )

    def _drop_aliased(self) -> None:
        gone = aliased_columns(*triangle(self.design, self.compute))
        if gone:
            names = self.design.X.names
            self.note_dropped([names[j] for j in gone])
            kept = [j for j in range(len(names)) if j not in gone]
            self.design = self.design.select_columns(kept)

    def _terms(self) -> dict[str, list[int]]:
        """Columns of each term."""
        out: dict[str, list[int]] = {}
        terms = [t for t in self.design.spec.formula.rhs.terms if t.factors]
        for j, name in enumerate(self.design.X.names):
            parts = _split_name(name)
            for term in terms:
                if len(parts) == len(term.factors) and all(
                    p == f or p.startswith(f"{f}[")
                    for p, f in zip(parts, term.factors, strict=True)
                ):
                    out.setdefault(term.name, []).append(j)
                    break
        return out

    def _ladders(self) -> dict[str, list[int | None]]:
        """Column of each level of factors in treatment coding; None: reference."""
        out, names = {}, list(self.design.X.names)
        for name, state in self.design.spec.states.items():
            levels = (state.get("state") or {}).get(name, {}).get("levels")
            if state.get("kind") != "categorical" or not levels:
                continue
            labels = [f"{name}[T.{level}]" for level in levels]
            steps = [names.index(t) if t in names else None for t in labels]
            if sum(s is None for s in steps) == 1:
                out[name] = steps
        return out

    def _positions(
        self, groups: Mapping[str, Sequence[str]] | None
    ) -> dict[str, list[int]]:
        """Positions of the columns of each group."""
        terms, names = self._terms(), list(self.design.X.names)
        if groups is None:
            return terms
        out: dict[str, list[int]] = {}
        for group, members in groups.items():
            at: list[int] = []
            for member in [members] if isinstance(members, str) else members:
                if member not in names and member not in terms:
                    raise ModelError(
                        f"groups names {member!r}, which is no column and no term: "
                        f"{names}."
                    )
                at += [names.index(member)] if member in names else terms[member]
            out[str(group)] = at
        used = [j for at in out.values() for j in at]
        if len(used) != len(set(used)):
            raise ModelError("a column is in two groups; groups must not overlap.")
        return out

    # -- what Results asks for ---------------------------------------------------------

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Minus the loss of rows, with its derivatives in the linear predictor."""
        del order, information
        if not self.objective.composite.loss.decomposable:
            raise ModelError(
                f"the loss {self.loss_name} is of the whole sample, and has no score "
                "of a row; use cov_type='bootstrap'."
            )
        if not self.objective._by_rows:  # one number, of independent rows
            first = self._row_scores(etas[0], batch.rows)
            return Point(torch.zeros_like(first), (-first,), {(0, 0): first * 0})
        columns = {n: v[batch.rows] for n, v in self.objective.columns.items()}
        y = batch.y.to(etas[0])
        rows = self.composite.rows(etas[0], y, columns)
        return Point(-rows.value, (-rows.first,), {(0, 0): rows.second})

    def _row_scores(self, eta: Tensor, rows: slice) -> Tensor:
        """Slopes of rows, for a function that returns their mean or sum.

        No row heeds another, so that the other rows' predictors may be anything.
        """
        every = torch.zeros(len(self.objective.y)).to(eta)
        every[rows] = eta.detach()
        return self.objective.slopes_of(every)[rows] * self.objective.total

    def mean(self, *etas: Tensor) -> Tensor:
        """Prediction."""
        return self.final.function(etas[0])

    # -- fitting -----------------------------------------------------------------------

    @one_thread()
    def fit(
        self,
        cov_type: str | None = None,
        cov_kwds: Mapping[str, Any] | None = None,
        *,
        start: Any = "auto",
        stages: Sequence[Any] | None = None,
        eval_data: Any = None,
        early_stopping: int | None = None,
        folds: int = 10,
        seed: int = 0,
        maxiter: int = 100,
        tol: float = 1e-9,
        method: str | None = None,
        use_t: bool | None = None,
    ) -> LossResults:
        """Minimise the mean loss plus the penalty under the constraints.

        Parameters
        ----------
        cov_type : str, optional
            "HC0" (the M-estimation sandwich; default for smooth losses), "HC1",
            "cluster", "HAC", "bootstrap" (default for other losses) or "none" (default
            with l1, group and integer penalties, after which Wald inference fails).
        cov_kwds : mapping, optional
            Options of the covariance; of "bootstrap": reps (200), seed (0), groups.
        start : {"auto", "zero", "ols", "logit"}, array_like or Results
            Where the search begins. "auto": least squares or a logit where a loss is
            not convex, else the best constant.
        stages : sequence of loss, or of (loss, iterations)
            Losses minimised first, each from where the last ended (burn-in); by
            default those the loss itself asks for, as a fair one does.
        eval_data : frame or mapping, optional
            Validation data, whose loss is computed at each iteration.
        early_stopping : int, optional
            Stop after that many iterations without a lower loss in `eval_data`, and
            go back to the best.
        folds, seed : int
            Of cross-validation, where lam is "cv" or "1se".
        maxiter : int, default 100
        tol : float, default 1e-9
            On the residual of the conditions of a minimum, which has no units.
        method : {"newton", "lbfgs"}, optional
            See `solvers.minimise`.
        use_t : bool, optional

        Returns
        -------
        LossResults

        Raises
        ------
        LossError
            If the loss is NaN, of a wrong shape, or has no gradient.

        Warns
        -----
        GradientWarning
            If part of the loss has no gradient.
        ConvergenceWarning
            If the conditions of a minimum are not met.
        """
        self.cautions = ()
        if early_stopping is not None and eval_data is None:
            raise ModelError("early_stopping= needs eval_data=.")
        if early_stopping is not None and early_stopping < 1:
            raise ValueError("early_stopping must be 1 or more iterations.")
        if method not in (None, "newton", "lbfgs"):
            raise ValueError(f"method must be 'newton' or 'lbfgs', not {method!r}.")
        b = self._start(start)
        self._check_function(b)
        lam, choice = self._strength(folds, seed)
        monitor = _Monitor(self.problem(lam), None, early_stopping)
        first = self.loss.stages if stages is None else stages
        b = self._burn_in(b, first, lam, eval_data, monitor, maxiter, tol, method)
        problem = self.problem(lam)
        outside = self._outside(eval_data, self.composite)
        monitor.begin(self.loss_name, problem, outside)
        found = minimise(
            problem, b, maxiter=maxiter, tol=tol, method=method, watch=monitor
        )
        if found.stopped and monitor.best is not None:
            found = self._restored(found, problem, monitor.best[1])
        if not found.converged and not found.stopped:
            caution(
                f"{self.title} ({self.loss_name}) did not converge: {found.message}; "
                f"residual of the conditions of a minimum {found.residual:.2g}. Give "
                "start= or stages=, rescale the variables, or raise maxiter=.",
                ConvergenceWarning,
            )
        return self._labelled(
            problem, found, lam, choice, monitor, cov_type, cov_kwds, use_t
        )

    def path(
        self,
        lams: Sequence[float] | None = None,
        *,
        count: int = 100,
        least: float | None = None,
        tol: float = 1e-7,
    ) -> LossPath:
        """Minimise at a whole sequence of strengths of the penalty.

        Parameters
        ----------
        lams : sequence of float, optional
            By default `count` values, evenly spaced in logarithms, from the least at
            which all penalised coefficients are zero.
        count : int, default 100
        least : float, optional
            Last over first; by default 1e-4, or 1e-2 with fewer rows than columns.
        tol : float, default 1e-7
            On the residual of the conditions of a minimum.

        Returns
        -------
        LossPath
        """
        if self._parts["penalty"] not in ("ridge", "lasso", "elasticnet", "group"):
            raise ModelError(
                "a path needs penalty='ridge', 'lasso', 'elasticnet' or 'group'."
            )
        with one_thread():
            self._check_function(np.zeros(self.design.X.k))
            return fit_path(self, lams, count=count, least=least, tol=tol)

    def _strength(
        self, folds: int, seed: int
    ) -> tuple[float | None, dict[str, Any] | None]:
        """Strength of the penalty, chosen if it is to be, and how."""
        if not isinstance(self.lam, str):
            return self.lam, None
        path = fit_path(self)
        if self.lam == "gcv":
            table, lam = path.gcv(), path.choose("gcv")
        else:
            table = path.cross_validate(folds, seed)
            lam = path.choose(self.lam, folds, seed)
        return lam, {"rule": self.lam, "table": table.to_dict("list")}

    def _start(self, start: Any) -> Array:
        k = self.design.X.k
        if hasattr(start, "params"):
            names = list(self.design.X.names)
            return start.params.reindex(names).fillna(0.0).to_numpy(dtype=float)
        if not isinstance(start, str):
            b = np.array(start, dtype=np.float64)
            if b.shape != (k,) or not np.isfinite(b).all():
                raise ValueError(
                    f"start needs {k} finite numbers, in the order "
                    f"{list(self.design.X.names)}."
                )
            return b
        if start not in _STARTS:
            raise ValueError(f"start must be one of {_STARTS}, values or results.")
        if start == "auto":
            start = self._automatic()
        if start == "zero":
            return np.zeros(k)
        loss = "squared" if start == "ols" else "logloss"
        if start == "constant":
            return self._constant()
        return self._warm(loss)

    def _automatic(self) -> str:
        if self.composite.convex:
            return "constant"
        y = self.objective.y
        unit = bool((y >= 0).all() and (y <= 1).all())
        return "logit" if unit and self.link_name == "sigmoid" else "ols"

    def _warm(self, loss: str) -> Array:
        """Minimise a convex loss to start from; a little ridge keeps a logit finite."""
        chosen = get_loss(loss)
        check_outcome(chosen, self.design)
        objective = self.objective.with_loss(Composite(chosen, get_link(chosen.link)))
        scale = objective.scale
        zero = Penalty.none(len(scale))
        ridge = make_penalty(
            "ridge", 1e-6, self.design.X.names, scale
        )  # separation has no finite logit
        problem = Problem(
            objective, ridge if loss == "logloss" else zero, self.constraints
        )
        return minimise(problem, np.zeros(len(scale)), tol=1e-6).b

    def _constant(self) -> Array:
        b, names = np.zeros(self.design.X.k), self.design.X.names
        if "Intercept" not in names:
            return b
        o = self.objective
        mean = float(
            o.y.mean() if o.weights is None else (o.y * o.weights).sum() / o.total
        )
        if self.link_name == "sigmoid":
            mean = min(max(mean, 1e-6), 1 - 1e-6)
            mean = float(np.log(mean / (1 - mean)))
        elif self.link_name == "exp":
            base = 0.0
            if o.offset is not None:
                base = float(o.offset.exp().mean().log())
            mean = float(np.log(max(mean, 1e-8))) - base
        b[list(names).index("Intercept")] = mean
        return b

    def _check_function(self, b: Array) -> None:
        """Try a user's loss, and learn whether it is a mean over rows."""
        loss = self.loss
        if self._parts.get("checked") or loss.name.partition("(")[0] in LOSSES:
            return
        o = self.objective
        found = check_loss_function(self.composite, o.eta(b), o.y, o.columns)
        if o.weights is not None and not (loss.weighted or found.loss.by_rows):
            raise ModelError(
                f"the loss {loss.name} returns one number and takes no weights: "
                "return one value for each row, or take weights= (of mean one)."
            )
        self._parts["loss"] = found.loss
        self._parts["checked"] = True
        self._known["objective"] = o.with_loss(found)

    def _outside(self, data: Any, composite: Composite) -> Objective | None:
        if data is None:
            return None
        return validation(
            self.design, data, composite, self.loss_columns, self.column_levels,
            self.compute,
        )  # fmt: skip

    def _burn_in(
        self, b: Array, stages: Sequence[Any], lam: float | None, eval_data: Any,
        monitor: _Monitor, maxiter: int, tol: float, method: str | None,
    ) -> Array:  # fmt: skip
        """Minimise the losses of the first stages, one after another."""
        for stage in stages:
            given, limit = stage if isinstance(stage, tuple) else (stage, maxiter)
            loss = get_loss(given).knowing(self.column_levels)
            if unknown := set(loss.columns) - set(self.loss_columns):
                raise ModelError(
                    f"the stage {loss.name} asks for the columns {sorted(unknown)}; "
                    "name them by loss_columns= of the model."
                )
            _check_pair(loss, self.final)
            check_outcome(loss, self.design)
            composite = Composite(loss, self.final)
            o = self.objective
            if loss.name.partition("(")[0] not in LOSSES:
                composite = check_loss_function(composite, o.eta(b), o.y, o.columns)
            objective = o.with_loss(composite)
            objective.columns = {n: o.columns[n] for n in loss.columns}
            problem = Problem(objective, self.penalty(lam), self.constraints)
            monitor.begin(loss.name, problem, self._outside(eval_data, composite))
            found = minimise(
                problem, b, maxiter=limit, tol=tol, method=method, watch=monitor
            )
            best = monitor.best
            b = best[1] if found.stopped and best is not None else found.b
        return b

    def _restored(self, found: Solution, problem: Problem, b: Array) -> Solution:
        message = "stopped early, at the lowest loss in eval_data"
        return Solution(
            b, problem.value(b), problem.residual(b), False, found.iterations, message,
            True,
        )  # fmt: skip

    def _labelled(
        self, problem: Problem, found: Solution, lam: float | None,
        choice: dict[str, Any] | None, monitor: _Monitor, cov_type: str | None,
        cov_kwds: Mapping[str, Any] | None, use_t: bool | None,
    ) -> LossResults:  # fmt: skip
        design, b = self.design, found.b
        nobs, held = float(design.n), self._held(problem, b)
        smooth = problem.objective.composite.loss.smooth and problem.penalty.smooth
        bread = np.full((len(b), len(b)), np.nan)
        if smooth and not found.stopped:
            bread = _face_inverse(problem, b)
        facts: dict[str, Any] = {
            "loss": problem.objective.value(b), "objective": found.value,
            "residual": found.residual, "lam": lam, "penalty": problem.penalty.text,
            "convex": self.composite.convex, "history": monitor.rows,
            "choice": choice, "stopped": found.stopped,
            "constraints": list(self.constraints.labels),
            "bars": [bool(v) for v in self.constraints.active(b)],
        }  # fmt: skip
        fit = Fit(
            x=torch.from_numpy(b.copy()), bread=torch.from_numpy(bread),
            information="observed", scale=1.0, nobs=nobs, df_resid=nobs - len(b),
            facts=facts, converged=found.converged or found.stopped,
            iterations=found.iterations, gradient_norm=found.residual,
            message=found.message, at_bound=tuple(int(j) for j in np.flatnonzero(held)),
            notes=(*self.dropped, *self.cautions),
        )  # fmt: skip
        likelihood = PredictorLikelihood(self, design, self.compute)
        if cov_type is None:
            cov_type = self._usual_errors(problem, found)
        return LossResults(self, fit, likelihood, cov_type, cov_kwds, use_t)

    def _usual_errors(self, problem: Problem, found: Solution) -> str:
        if found.stopped or not problem.penalty.smooth:
            return "none"
        loss = problem.objective.composite.loss
        return "HC0" if loss.smooth and loss.decomposable else "bootstrap"

    def _held(self, problem: Problem, b: Array) -> Array:
        """Coefficients at a bound of their own, where Wald inference fails."""
        held = np.zeros(len(b), dtype=bool)
        c = self.constraints
        for row, active in zip(c.A, c.active(b), strict=True):
            if active and (row != 0).sum() == 1:
                held |= row != 0
        return held


def _face_inverse(problem: Problem, b: Array) -> Array:
    """Inverse of the Hessian of the total on the face of active constraints."""
    from scipy.linalg import null_space

    c, k = problem.constraints, len(b)
    rows = np.vstack([c.A[c.active(b)], c.E])
    hessian = problem.slopes(b).hessian
    assert hessian is not None
    total = hessian * problem.objective.total
    Z = null_space(rows) if len(rows) else np.eye(k)
    inner = Z.T @ total @ Z
    scale = 1.0 / np.sqrt(np.maximum(np.abs(inner.diagonal()), 1e-300))
    root = Z * scale
    return root @ np.linalg.pinv(inner * scale[:, None] * scale) @ root.T


def _check_pair(loss: Loss, link: FinalLink) -> None:
    """Raise for a loss that is infinite at predictions the link can make."""
    if link is not LINKS.get(link.name):
        return  # the range of a user's link is theirs to mind
    name = loss.name.partition("(")[0]
    if name in ("logloss", "focal") and link.name != "sigmoid":
        raise ModelError(
            f"the loss {name} is infinite at predictions of 0 and 1, which "
            f"link={link.name!r} makes; use link='sigmoid' or loss='brier'."
        )
    if name == "poisson" and link.name not in ("exp", "sigmoid"):
        raise ModelError(
            f"the Poisson loss needs positive predictions; use link='exp', not "
            f"{link.name!r}."
        )


def lossreg(formula: str | Formula, data: Any, **options: Any) -> LossRegression:
    """Regression by any loss, with penalties and constraints.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x1 + C(g)"``.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    **options
        loss, link, penalty, lam, l1_ratio, groups, penalty_factor, step, standardize,
        constraints, loss_columns, weights, offset, exposure, na_action, context,
        device, dtype: see `LossRegression`.

    Returns
    -------
    LossRegression
        Call ``.fit()`` on it, or ``.path()`` for all strengths of a penalty.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 2.0, 4.0, 4.0, 9.0], "x": [0.0, 1.0, 2.5, 3.0, 4.1]}
    >>> ds.lossreg("y ~ x", data, loss="huber(1)").fit().params.round(3).to_dict()
    {'Intercept': 0.516, 'x': 1.558}
    """
    return LossRegression(formula, data, **options)
