"""Hierarchical L2 regression: the call, its checks and the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from ...compute import one_thread
from ...design import Design
from ...errors import ConvergenceWarning, DesignError, ModelError, caution, listed
from ...families import get_family
from ...formula import Formula, GroupTerm
from ...leastsquares import aliased_columns, triangle
from ..base import RegressionModel
from ..mixed import LinearMixed
from ..mixed.model import check_distinct, without_groups
from .choice import RULES, Choice, by_folds, by_gcv, variance_ratios
from .problems import FORMS, Gaussian, Logistic, Solution, problem_of
from .results import HierarchicalResults
from .sample import Grouped, Sample

__all__ = ["WEIGHTS", "HierarchicalRegression", "hierreg"]

Array = np.ndarray

FAMILIES = ("gaussian", "binomial")
WEIGHTS = ("size", "equal", "sd")
#: Conditions of a minimum that are further from holding than this are warned of.
_EXACT = 1e-6


@dataclass(frozen=True)
class _Place:
    """Where a term of the formula stands: its grouping factor and columns there."""

    group: int
    columns: slice


class HierarchicalRegression(RegressionModel):
    """Coefficients of the population, and deviations by group that are penalised.

    ``y = X w + Z v + e``, where v holds a deviation for every column and group of terms
    such as ``(1 + x || g)``, and the minimised objective, with weights W of the
    deviations, is

    ===========  ====================================  =============================
    family       ``form="norm"``                       ``form="squared"``
    ===========  ====================================  =============================
    "gaussian"   ``|r| / sqrt(n) + penalty |W v|``     ``|r|^2 / n + penalty |W v|^2``
    "binomial"   ``log-loss + penalty |W v|``          ``log-loss + penalty |W v|^2``
    ===========  ====================================  =============================

    with residuals r and the mean log-loss of the rows. The norm over all deviations is
    one: from `HierarchicalResults.penalty_max` on every deviation is exactly zero.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x1 + x2 + (1 + x1 || g) + (1 || h)"``; several groupings, nested or
        crossed. Deviations are penalised one by one: ``||``, not ``|``.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    penalty : float or {"cv", "1se", "gcv", "reml"}
        Strength of the penalty, or how it is chosen: cross-validation over rows (the
        least loss, or the strongest penalty within a standard error of it), generalised
        cross-validation (gaussian), or the variance ratios of the mixed model with the
        same formula by restricted maximum likelihood (gaussian, squared), whose best
        linear unbiased predictions the deviations then are.
    form : {"norm", "squared"}, optional
        "norm" by default; "squared" with ``penalty="reml"``.
    family : {"gaussian", "binomial"}, default "gaussian"
        Least squares, or logistic regression of a 0/1 or two-level response.
    group_weights : {"size", "equal", "sd"} or mapping, optional
        W. "size", the default: inversely proportional to the rows of the group, all
        together summing to one. "equal": ones. "sd": the standard deviation of the
        column, so that its units do not matter. Or a number for each block, as
        ``{"Intercept | g": 1, "x1 | g": 2.5}``.
    offset, na_action, context, device : optional
        See `RegressionModel`. Computation is in float64 on the processor.

    Raises
    ------
    ModelError, DesignError, ValueError
        For options, formulas and data that cannot be used.

    References
    ----------
    Evgeniou, Pontil & Toubia (2007), A convex optimization approach to modeling
    consumer heterogeneity in conjoint estimation, Marketing Science 26(6). The
    objective with norms is that of the Python package hierreg.
    """

    title = "Hierarchical regression"
    results_class = HierarchicalResults

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        penalty: float | str,
        form: str | None = None,
        family: str = "gaussian",
        group_weights: str | Mapping[str, float] | None = None,
        offset: Any = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        _one_of("family", family, FAMILIES)
        self.family, self.family_name = get_family(family), family
        self.penalty = _strength(penalty)
        self.form = form or ("squared" if penalty == "reml" else "norm")
        _one_of("form", self.form, FORMS)
        self._check_options(group_weights)
        self.group_weights: Any = group_weights or "size"
        super().__init__(
            formula, data, offset=offset, na_action=na_action, context=context,
            device=device,
        )  # fmt: skip
        check_distinct(self.design.random)
        self._check_groups()
        self._drop_aliased()
        # The rows as arrays, so that what is wrong with them is said here.
        _ = self.sample
        self.mixed = None
        if penalty == "reml":
            self.mixed = LinearMixed(
                formula, data, offset=offset, na_action=na_action, context=context
            )

    # -- checks ------------------------------------------------------------------------

    def _check_options(self, group_weights: Any) -> None:
        if isinstance(group_weights, str):
            _one_of("group_weights", group_weights, WEIGHTS)
        elif group_weights is not None and not isinstance(group_weights, Mapping):
            raise ValueError(
                f"group_weights must be one of {', '.join(WEIGHTS)} or a mapping of "
                f"blocks to numbers, not {group_weights!r}."
            )
        rule = self.penalty
        if rule in ("gcv", "reml") and self.family_name != "gaussian":
            raise ModelError(
                f"penalty={rule!r} is for family='gaussian'; use penalty='cv' for a "
                "binomial response, or ds.glmer."
            )
        if rule == "reml" and self.form != "squared":
            raise ModelError(
                "penalty='reml' needs form='squared': variance ratios are the weights "
                "of squared deviations."
            )
        if rule == "reml" and group_weights is not None:
            raise ModelError(
                "penalty='reml' estimates the weights of the deviations; leave out "
                "group_weights=."
            )

    def _refuse(self, formula: Formula, absorb: bool) -> None:
        if formula.call is None and not formula.rhs.groups:
            raise ModelError(
                f"{formula.text!r} has no deviations by group such as (1 + x || g); "
                "use ds.ols or ds.logit without."
            )
        for term in formula.rhs.groups:
            if term.structure not in ("us", "diag"):
                raise ModelError(
                    f"{term.text}: deviations have no covariance structure here; write "
                    "(... || g), or use ds.lmer."
                )
            if term.structure == "us" and term.correlated and len(term.terms) > 1:
                raise ModelError(
                    f"{term.text} has correlated effects; here deviations are "
                    f"penalised one by one: write {_two_bars(term)}, or use ds.lmer."
                )
        super()._refuse(without_groups(formula), absorb)

    def _check_response(self) -> None:
        super()._check_response()
        if self.design.size is not None:
            raise DesignError(
                "cbind(successes, failures) is not supported; give one row a trial."
            )
        y = self.design.y
        if self.family_name == "binomial" and not np.isin(y, (0, 1)).all():
            raise DesignError(
                f"the response {self.design.y_name} must be 0 or 1 in every row."
            )

    def _check_groups(self) -> None:
        for term in self.design.random:
            name, levels = term.grouping.name, len(term.grouping)
            if levels >= self.design.n:
                raise DesignError(
                    f"every level of {name} has one row: a deviation would be told by "
                    "one outcome. Leave the term out."
                )

    def _drop_aliased(self) -> None:
        gone = aliased_columns(*triangle(self.design, self.compute))
        if gone:
            names = self.design.X.names
            self.note_dropped([names[j] for j in gone])
            kept = [j for j in range(len(names)) if j not in gone]
            self.design = self.design.select_columns(kept)

    # -- frames to arrays --------------------------------------------------------------

    @cached_property
    def _layout(self) -> tuple[tuple[str, ...], tuple[_Place, ...]]:
        """Grouping factors in their order, and the place of each term."""
        names: list[str] = []
        widths: list[int] = []
        places = []
        for term in self.design.random:
            if term.grouping.name not in names:
                names.append(term.grouping.name)
                widths.append(0)
            j = names.index(term.grouping.name)
            places.append(_Place(j, slice(widths[j], widths[j] + term.Z.k)))
            widths[j] += term.Z.k
        return tuple(names), tuple(places)

    @cached_property
    def sample(self) -> Sample:
        """The rows as arrays, with the weights of the deviations."""
        design, cpu = self.design, self.compute.on_cpu()
        names, places = self._layout
        bare = []
        for j, name in enumerate(names):
            terms = [
                t for t, p in zip(design.random, places, strict=True) if p.group == j
            ]
            columns = tuple(c for t in terms for c in t.names)
            if len(set(columns)) < len(columns):
                raise DesignError(
                    f"a column deviates twice by {name}: {listed(columns)}. Write one "
                    "term for each grouping."
                )
            Z = np.hstack([t.Z.to_dense(cpu).double().numpy() for t in terms])
            grouping = terms[0].grouping
            codes = np.asarray(grouping.codes, dtype=np.intp)
            shape = len(grouping), len(columns)
            bare.append(
                Grouped(name, grouping.levels, columns, codes, Z, np.ones(shape))
            )
        self._require_memory(bare)
        X = design.X.to_dense(cpu).double().numpy()
        y = np.array(design.y, dtype=np.float64)
        offset = None if design.offset is None else np.array(design.offset, dtype=float)
        sample = Sample(y, X, tuple(bare), offset)
        return sample.scaled([1 / w for w in self._weights(bare)])

    def _require_memory(self, groups: list[Grouped]) -> None:
        sizes = sorted(g.q for g in groups)
        rest = sum(sizes[:-1]) + self.design.X.k
        self.compute.require(
            3 * (sizes[-1] + rest) * rest, "the cross-products of the groupings",
            "use one grouping, or fewer columns that deviate.",
        )  # fmt: skip

    def _weights(self, groups: list[Grouped]) -> list[Array]:
        """Weights of the deviations, an array (m, k) for each grouping."""
        kind = self.group_weights
        if isinstance(kind, Mapping):
            return _given(kind, groups)
        if kind == "equal" or self.penalty == "reml":
            return [np.ones(g.scale.shape) for g in groups]
        if kind == "sd":
            out = []
            for g in groups:
                sd = g.Z.std(0)
                # A column of ones has no spread; its unit is that of y.
                sd[sd <= 1e-12 * np.abs(g.Z).max(0)] = 1.0
                out.append(np.broadcast_to(sd, g.scale.shape))
            return out
        inverse = [np.repeat(1 / g.counts[:, None], len(g.columns), 1) for g in groups]
        total = sum(float(w.sum()) for w in inverse)
        return [w / total for w in inverse]

    def problem(self) -> Gaussian | Logistic:
        """Return what is minimised, without its penalty."""
        return problem_of(self.sample, self.family_name)

    # -- fitting -----------------------------------------------------------------------

    @one_thread()
    def fit(
        self,
        *,
        strengths: int = 50,
        folds: int | None = None,
        seed: int | None = None,
    ) -> HierarchicalResults:
        """Choose the penalty if it is to be chosen, and minimise the objective.

        Parameters
        ----------
        strengths : int, default 50
            Number of penalties of the path, and of those to choose among.
        folds : int, optional
            For "cv" and "1se": 5 by default.
        seed : int, optional
            Of the folds; 0 by default.

        Returns
        -------
        HierarchicalResults

        Warns
        -----
        ConvergenceWarning
            If the conditions of a minimum hold to less than 1e-6.
        """
        self._check_fit(strengths, folds, seed)
        sample, choice = self.sample, None
        if self.penalty == "reml":
            sample, choice = self._by_reml()
        problem = problem_of(sample, self.family_name)
        if self.penalty == "gcv":
            choice = by_gcv(problem, self.form, strengths)
        elif choice is None and isinstance(self.penalty, str):
            choice = by_folds(
                sample, self.family_name, self.form,
                problem.grid(self.form, strengths), self.penalty, folds or 5, seed or 0,
            )  # fmt: skip
        chosen = self.penalty if choice is None else choice.penalty
        solution = problem.solve(float(chosen), self.form)
        self._warn_of(solution)
        return HierarchicalResults(self, problem, solution, choice, strengths)

    def _check_fit(self, strengths: Any, folds: Any, seed: Any) -> None:
        if not isinstance(strengths, Integral) or strengths < 3:
            raise ValueError(f"strengths must be 3 or more, not {strengths!r}.")
        if self.penalty not in ("cv", "1se"):
            if folds is not None or seed is not None:
                raise ValueError("folds= and seed= go with penalty='cv' or '1se'.")
            return
        n = self.design.n
        if folds is not None and not (isinstance(folds, Integral) and 2 <= folds <= n):
            raise ValueError(f"folds must be from 2 to {n}, the rows; not {folds!r}.")

    def _by_reml(self) -> tuple[Sample, Choice]:
        """Weights from the variance ratios of the mixed model."""
        ratios = variance_ratios(self.mixed)
        places = self._layout[1]
        scales = [np.zeros(g.scale.shape) for g in self.sample.groups]
        for place, ratio in zip(places, ratios, strict=True):
            scales[place.group][:, place.columns] = np.sqrt(ratio)
        if not any(s.any() for s in scales):
            raise ModelError(
                "REML estimates every variance of deviations as zero: the groups do "
                "not differ. Use ds.ols, or penalty='gcv'."
            )
        import pandas as pd

        labels = [label for g in self.sample.groups for label in g.labels]
        table = pd.DataFrame(
            {"ratio": np.concatenate([s[0] ** 2 for s in scales])},
            index=pd.Index(labels, name="block"),
        )
        return self.sample.scaled(scales), Choice("reml", 1 / self.sample.n, table)

    def _warn_of(self, solution: Solution) -> None:
        if not solution.residual < _EXACT:
            caution(
                "the conditions of a minimum hold only to "
                f"{solution.residual:.1e}: rescale the columns, or give a larger "
                "penalty.",
                ConvergenceWarning,
            )

    def by_term(self, deviations: list[Array]) -> list[Array]:
        """Deviations of groupings as arrays of the terms of the formula."""
        return [deviations[p.group][:, p.columns] for p in self._layout[1]]

    def new_design(self, data: Any, offset: Any, population: bool) -> Design:
        """Read other data: levels that were not in those of the fit have code -1."""
        from dataclasses import replace

        spec = self.design.spec
        if population:
            spec = replace(spec, formula=without_groups(spec.formula))
        return spec.rebuild(data, offset=offset, random=not population)


def _one_of(name: str, given: Any, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {given!r}.")


def _strength(penalty: Any) -> float | str:
    if isinstance(penalty, str):
        if penalty not in RULES:
            raise ValueError(
                f"penalty={penalty!r} is not known: a number or one of "
                f"{', '.join(RULES)}."
            )
        return penalty
    number = isinstance(penalty, Real) and not isinstance(penalty, bool)
    if not number or not 0 < float(penalty) < np.inf:
        raise ValueError(
            f"penalty must be a positive number or one of {', '.join(RULES)}, not "
            f"{penalty!r}. Without a penalty use ds.ols with interactions."
        )
    return float(penalty)


def _two_bars(term: GroupTerm) -> str:
    return "(" + term.text.strip("()").replace("|", "||", 1) + ")"


def _given(weights: Mapping[str, float], groups: list[Grouped]) -> list[Array]:
    known = [label for g in groups for label in g.labels]
    if set(weights) != set(known):
        raise ValueError(
            f"group_weights needs a number for each of {listed(known)}; it has "
            f"{listed(weights)}."
        )
    wrong = [
        k for k, v in weights.items()
        if not isinstance(v, Real) or not 0 < float(v) < np.inf
    ]  # fmt: skip
    if wrong:
        raise ValueError(f"group_weights must be positive numbers: see {wrong[0]!r}.")
    return [
        np.tile([float(weights[label]) for label in g.labels], (len(g.levels), 1))
        for g in groups
    ]


def hierreg(
    formula: str | Formula, data: Any, *, penalty: float | str, **options: Any
) -> HierarchicalRegression:
    """Regression whose coefficients deviate by group, the deviations penalised.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x1 + x2 + (1 + x1 + x2 || g)"``.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    penalty : float or {"cv", "1se", "gcv", "reml"}
    **options
        form, family, group_weights, offset, na_action, context, device: see
        `HierarchicalRegression`.

    Returns
    -------
    HierarchicalRegression
        Call ``.fit()`` on it.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 1.4, 3.1, 2.9, 2.2, 1.9, 4.0, 4.4],
    ...         "g": ["a", "a", "b", "b", "c", "c", "d", "d"]}
    >>> fit = ds.hierreg("y ~ 1 + (1 | g)", data, penalty=1.0).fit()
    >>> fit.params.round(3).to_dict(), fit.deviations["Intercept"].round(3).tolist()
    ({'Intercept': 2.612}, [-1.29, 0.354, -0.514, 1.45])
    """
    return HierarchicalRegression(formula, data, penalty=penalty, **options)
