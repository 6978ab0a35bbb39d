"""Predictions of a linear mixed model with their uncertainty, and simulated responses.

The prediction of a row is ``x'beta^ + z'b^`` over the random effects that `re_form`
keeps. Its error has the variance ``sigma^2 a'Ka`` with ``a = (x, z)`` and K the inverse
of Henderson's equations, in which fixed and random effects are uncertain together
(Henderson 1975; Robinson 1991); see `rowvariance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import one_thread
from ...design import Design, RandomTerm, varying
from ...errors import DesignError, ModelError, listed
from ...formula import Formula, GroupTerm, Rhs, Term
from ...matrix import ModelMatrix
from ...prediction import row_labels
from ...results import _split_name
from .criterion import Point
from .fitted import Fitted
from .rows import fixed_part, random_part
from .rowvariance import Inverse, Rows, degrees_of_freedom

if TYPE_CHECKING:
    from .results import MixedResults

__all__ = ["kept_effects", "predict", "simulate"]

INTERVALS = {
    "confidence": ("mean_se", "mean_ci_lower", "mean_ci_upper"),
    "prediction": ("obs_se", "obs_ci_lower", "obs_ci_upper"),
}


def predict(
    results: MixedResults,
    exog: Any = None,
    re_form: Any = None,
    allow_new_levels: bool = False,
    interval: str | None = None,
    level: float = 0.95,
    offset: Any = None,
) -> pd.Series | pd.DataFrame:
    """Predict the response of rows of data.

    Parameters
    ----------
    results : MixedResults
    exog : frame or mapping, optional
        New data; those of the fit when None. Rows with missing values get NaN.
        Grouping factors that `re_form` leaves out need not be there.
    re_form : None, str, Rhs or Formula, optional
        None for all random effects; ``"none"``, ``"~0"``, False or a missing value for
        none of them, which predicts for the population; a formula of those to keep,
        ``"~ (1 | g)"``. A term of it may have some of the columns of a term of the
        model.
    allow_new_levels : bool, default False
        Whether levels that were not in the data may occur; their effects are
        predicted as zero.
    interval : {"confidence", "prediction"}, optional
        "confidence" is for ``x'beta + z'b`` over the effects kept: those of known
        levels are estimates, uncertain together with the fixed effects; those of new
        levels are draws from their distribution and add ``z'Vz``; those left out are
        set to zero, the value of a typical group, and add nothing. "prediction" is for
        a new observation: random effects that are left out add ``z'Vz`` as those of a
        new group, and the residual adds sigma^2 (over the row's weight for the data of
        the fit; new rows have weight 1).
    level : float, default 0.95
    offset : optional
        In place of that of the fit.

    Returns
    -------
    Series or DataFrame
        With an interval: columns mean, mean_se, mean_ci_lower, mean_ci_upper, or
        mean, obs_se, obs_ci_lower, obs_ci_upper.

    Raises
    ------
    DesignError
        For levels that were not in the data, unless they are allowed.
    ModelError
        For a `re_form` that is not part of the model.

    Notes
    -----
    With the degrees of freedom ``ddf="satterthwaite"`` or "kenward-roger" quantiles are
    of t, with Satterthwaite's degrees of freedom for the variance of each row. They
    cost two factorisations and two passes over the rows for each covariance parameter;
    ``results.with_ddf("normal")`` predicts without. The estimated covariance
    parameters stand in for the true ones in the variance itself. Population
    predictions take the covariance of the fixed effects from the results, thus also a
    robust or Kenward-Roger one; conditional predictions take that of the model.

    References
    ----------
    Henderson (1975), Best linear unbiased estimation and prediction under a selection
    model, Biometrics 31. Robinson (1991), That BLUP is a good thing, Statistical
    Science 6. Satterthwaite (1946), Biometrics Bulletin 2.
    """
    if interval is not None and interval not in INTERVALS:
        raise ValueError(
            f"interval must be None, 'confidence' or 'prediction', not {interval!r}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level!r}.")
    keep = kept_effects(results, re_form)
    data = _Data.read(results, exog, offset, keep, interval == "prediction")
    if not allow_new_levels:
        _refuse_new_levels(data.random)
    fitted, compute = results.mixed, results.model.compute
    mean = fixed_part(data.design, fitted.beta, compute)
    modes = [
        None if r is None else b * k
        for r, b, k in zip(data.random, fitted.term_modes, keep, strict=True)
    ]
    used = [r for r in data.random if r is not None]
    mean += random_part(
        replace(data.design, random=tuple(used)),
        [b for b in modes if b is not None], compute,
    )  # fmt: skip
    mean_series = data.label(torch.from_numpy(mean), "predicted")
    if interval is None:
        return mean_series
    parts = [mean_series.rename("mean")]
    found = _interval(results, data, keep, interval == "prediction", level, mean)
    for name, values in zip(INTERVALS[interval], found, strict=True):
        parts.append(data.label(torch.from_numpy(values), name))
    return pd.concat(parts, axis=1)


@one_thread()
def _interval(
    results: MixedResults, data: _Data, keep: list[np.ndarray], new_row: bool,
    level: float, mean: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Find standard errors and limits."""
    error = _Error.build(results.mixed, data, keep, new_row)
    se = np.sqrt(error.at_optimum(results))
    half = _quantile(results, error, level) * se
    return se, mean - half, mean + half


def _quantile(results: MixedResults, error: _Error, level: float) -> Any:
    from scipy.special import ndtri, stdtrit

    upper, fitted = 0.5 + level / 2, results.mixed
    if results.ddf == "normal":
        return ndtri(upper)
    if results.ddf == "residual":
        return stdtrit(fitted.products.n - fitted.products.p, upper)
    df = degrees_of_freedom(fitted, error.variance)
    finite = np.isfinite(df)
    return np.where(finite, stdtrit(np.where(finite, df, 1.0), upper), ndtri(upper))


# -- the rows ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Data:
    """Rows to predict.

    Attributes
    ----------
    design : Design
    label : callable
        From values and a name to a Series.
    random : list of RandomTerm or None
        By term of the model; None for one of which nothing is kept.
    columns : list of ModelMatrix or None
        By term of the model, where they are needed.
    noise : ndarray, shape (n,)
        Residual variance over sigma^2.
    """

    design: Design
    label: Callable[[Tensor, str], pd.Series]
    random: list[RandomTerm | None]
    columns: list[ModelMatrix | None]
    noise: np.ndarray

    @classmethod
    def read(
        cls, results: MixedResults, exog: Any, offset: Any, keep: list[np.ndarray],
        all_columns: bool, exposure: Any = None,
    ) -> _Data:  # fmt: skip
        """Read data against the model, as far as they are needed."""
        design = results.model.design
        kept = [bool(k.any()) for k in keep]
        if exog is None:
            if offset is not None or exposure is not None:
                raise ValueError("offset goes with new data, and so does exposure.")
            random = [
                r if k else None for r, k in zip(design.random, kept, strict=True)
            ]
            w = design.weights
            noise = np.ones(design.n) if w is None else 1 / w
            columns = [r.Z for r in design.random]
            return cls(design, _labels(design), random, columns, noise)
        spec = design.spec
        flags, used, others = iter(kept), [], []
        for rhs in (spec.formula.rhs, *spec.parts):
            here = [(g, next(flags)) for g in rhs.groups]
            used.append(replace(rhs, groups=tuple(g for g, k in here if k)))
            others += [g for g, k in here if not k]
        # Effects left out are read as further matrices: without their grouping factor.
        parts = tuple(Rhs(varying(g), text=g.text) for g in others if all_columns)
        narrowed = replace(
            spec, formula=replace(spec.formula, rhs=used[0]), parts=(*used[1:], *parts)
        )
        new = narrowed.rebuild(exog, offset=offset, exposure=exposure, random=True)
        terms, matrices = iter(new.random), iter(new.parts[len(spec.parts) :])
        random = [next(terms) if k else None for k in kept]
        columns = [
            r.Z if r is not None else next(matrices) if all_columns else None
            for r in random
        ]
        return cls(new, row_labels(new, exog), random, columns, np.ones(new.n))


def _labels(design: Design) -> Callable[[Tensor, str], pd.Series]:
    def label(values: Tensor, name: str) -> pd.Series:
        return pd.Series(values.numpy(), design.index, name=name)

    return label


def _refuse_new_levels(random: Sequence[RandomTerm | None]) -> None:
    for term in random:
        if term is not None and term.grouping.unseen:
            grouping = term.grouping
            raise DesignError(
                f"{grouping.name} has levels that were not in the data of the fit: "
                f"{listed(grouping.unseen)}. Use allow_new_levels=True to predict them "
                "with random effects of zero, or leave these effects out with re_form."
            )


# -- the variance of the error -------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Error:
    """Variance of the error of each prediction, at any covariance parameters.

    Attributes
    ----------
    fitted : Fitted
    X : ndarray, shape (n, p)
    rows : Rows or None
        Effects that are estimated; None when these are the fixed effects only.
    drawn : list of ndarray or None, each (n, K)
        By term, columns of the effects that are drawn anew.
    noise : ndarray or None, shape (n,)
        Residual variance over sigma^2.
    """

    fitted: Fitted
    X: np.ndarray
    rows: Rows | None
    drawn: list[np.ndarray | None]
    noise: np.ndarray | None

    @classmethod
    def build(
        cls, fitted: Fitted, data: _Data, keep: list[np.ndarray], new_row: bool
    ) -> _Error:
        cpu = fitted.compute.on_cpu()
        estimated: list[np.ndarray | None] = []
        codes: list[np.ndarray | None] = []
        drawn: list[np.ndarray | None] = []
        for random, matrix, kept in zip(data.random, data.columns, keep, strict=True):
            Z = None if matrix is None else matrix.to_dense(cpu).numpy()
            if random is None:
                estimated.append(None)
                codes.append(None)
                drawn.append(Z if new_row else None)
                continue
            code = random.grouping.codes
            known = (code >= 0)[:, None]
            estimated.append(Z * kept)
            codes.append(code)
            wanted = ~(known & kept) if new_row else kept & ~known
            drawn.append(Z * wanted if wanted.any() else None)
        rows = None
        if any(e is not None for e in estimated):
            rows = Rows.build(fitted, data.design, estimated, codes)
        X = data.design.X.to_dense(cpu).numpy()
        return cls(fitted, X, rows, drawn, data.noise if new_row else None)

    def variance(self, point: Point) -> np.ndarray:
        """Variance at a point of the criterion; shape (n,)."""
        f = point.factorisation
        if self.rows is None:
            cov = f.cov_beta.cpu().numpy()
            fixed = np.einsum("ij,jk,ik->i", self.X, cov, self.X, optimize=True)
        else:
            at_optimum = point is self.fitted.point
            inverse = self.fitted.inverse if at_optimum else Inverse(f)
            fixed = inverse.quadratic(self.rows).cpu().numpy()
        return point.variance * (fixed + self._others(point))

    def at_optimum(self, results: MixedResults) -> np.ndarray:
        """Variance at the estimates, with the covariance that the results have."""
        point = self.fitted.point
        if self.rows is not None:
            return self.variance(point)
        fixed = np.einsum("ij,jk,ik->i", self.X, results._cov, self.X, optimize=True)
        return fixed + point.variance * self._others(point)

    def _others(self, point: Point) -> np.ndarray:
        """Over sigma^2: effects that are drawn anew, and the residual."""
        out = np.zeros(len(self.X)) if self.noise is None else self.noise.copy()
        roots = self.fitted.structure.raw_roots(point.x)
        for Z, root in zip(self.drawn, roots, strict=True):
            if Z is not None:
                out += ((Z @ root) ** 2).sum(1)
        return out


# -- which effects -------------------------------------------------------------------


def kept_effects(results: MixedResults, re_form: Any) -> list[np.ndarray]:
    """Columns of each random-effects term that a `re_form` keeps.

    Parameters
    ----------
    results : MixedResults
    re_form : None, str, Rhs or Formula
        See `predict`.

    Returns
    -------
    list of ndarray of bool, each (K,)
    """
    random = results.model.design.random
    if re_form is None or re_form is True:
        return [np.ones(r.Z.k, dtype=bool) for r in random]
    keep = [np.zeros(r.Z.k, dtype=bool) for r in random]
    rhs = _parsed(re_form)
    if rhs is None:
        return keep
    for group in rhs.groups:
        _keep_in_parts(group, random, keep)
    return keep


def _keep_in_parts(
    group: GroupTerm, random: Sequence[RandomTerm], keep: list[np.ndarray]
) -> None:
    """Mark the columns of one term of a `re_form` in every predictor that has it."""
    errors, parts = [], sorted({r.part for r in random})
    for part in parts:
        at = [j for j, r in enumerate(random) if r.part == part]
        marked = [keep[j].copy() for j in at]
        try:
            _keep_group(group, [random[j] for j in at], marked)
        except ModelError as error:
            errors.append(error)
            continue
        for j, columns in zip(at, marked, strict=True):
            keep[j] = columns
    if len(errors) == len(parts):
        raise errors[0]


def _parsed(re_form: Any) -> Rhs | None:
    """Right-hand side of a `re_form`; None for no random effects."""
    if re_form is False or (np.isscalar(re_form) and pd.isna(re_form)):
        return None
    if re_form is pd.NA:
        return None
    if isinstance(re_form, str):
        if re_form.strip().lower() == "none":
            return None
        re_form = Rhs.parse(re_form)
    if isinstance(re_form, Formula):
        re_form = re_form.rhs
    if not isinstance(re_form, Rhs):
        raise ModelError(
            f"re_form must be None (all random effects), 'none', or a formula such as "
            f"'~ (1 | g)', not {re_form!r}."
        )
    fixed = [str(t) for t in re_form.terms if t.factors]
    if fixed or (not re_form.groups and re_form.intercept):
        raise ModelError(
            f"re_form={re_form.text or str(re_form)!r} is to name random effects, such "
            f"as '~ (1 | g)'; {', '.join(fixed) or 'an intercept'} is none. Use 'none' "
            "to predict for the population."
        )
    return re_form


def _keep_group(
    group: GroupTerm, random: Sequence[RandomTerm], keep: list[np.ndarray]
) -> None:
    """Mark the columns of one term of a `re_form`."""
    own = [
        j for j, r in enumerate(random)
        if frozenset(r.term.factors) == frozenset(group.factors)
    ]  # fmt: skip
    for j in own:
        if set(random[j].term.terms) == set(group.terms):
            keep[j][:] = True
            return
    for wanted in group.terms:
        for j in own:
            if wanted in random[j].term.terms:
                columns = _columns_of(wanted, random[j])
                _check_coding(wanted, group, random[j], columns)
                keep[j][columns] = True
                break
        else:
            has = ", ".join(r.term.text or str(r.term) for r in random)
            what = str(wanted) if wanted.factors else "an intercept"
            raise ModelError(
                f"re_form: the model has no random effect of {what} by {group.name}; "
                f"its random effects are {has}."
            )


def _columns_of(term: Term, random: RandomTerm) -> list[int]:
    """Columns of one term before the bar."""
    if not term.factors:
        return [j for j, name in enumerate(random.Z.names) if name == "Intercept"]
    return [
        j
        for j, name in enumerate(random.Z.names)
        if len(parts := _split_name(name)) == len(term.factors)
        and all(
            p == f or p.startswith(f"{f}[")
            for p, f in zip(parts, term.factors, strict=True)
        )
    ]


def _check_coding(
    wanted: Term, group: GroupTerm, random: RandomTerm, columns: list[int]
) -> None:
    """Refuse contrasts without what they are contrasts to."""
    coded = any("[" in random.Z.names[j] for j in columns)
    lower = [
        t for t in random.term.terms
        if set(t.factors) < set(wanted.factors) and t not in group.terms
    ]  # fmt: skip
    if coded and lower:
        missing = ", ".join(str(t) for t in lower)
        raise ModelError(
            f"re_form: in {random.term.text} the columns of {wanted} are differences "
            f"from a reference level; keep {missing} too."
        )


# -- simulation ----------------------------------------------------------------------


def simulate(
    results: MixedResults, nsim: int = 1, seed: int | None = None, re_form: Any = "none"
) -> pd.DataFrame:
    """Draw responses from the fitted model.

    Parameters
    ----------
    results : MixedResults
    nsim : int, default 1
    seed : int, optional
    re_form : optional
        Random effects that keep their predicted values, as in `predict`, in whole
        terms; all others are drawn anew.

    Returns
    -------
    DataFrame, shape (n, nsim)
        Columns sim_1, sim_2, ...; indexed as the rows used.
    """
    from .bootstrap import draw, kept_terms

    if nsim < 1:
        raise ValueError(f"nsim must be at least 1, not {nsim!r}.")
    generator = np.random.default_rng(seed)
    values = draw(results, nsim, generator, kept_terms(results, re_form))
    names = [f"sim_{j + 1}" for j in range(nsim)]
    return pd.DataFrame(values, index=results.model.design.index, columns=names)
