"""Curves at new data, with their uncertainty, and simulated responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from ...design import Design
from ...errors import DesignError, ModelError, listed
from ...prediction import row_labels
from .base import CurveResults
from .reading import numbers

if TYPE_CHECKING:
    from .results import NonlinearMixedResults

__all__ = ["predict", "predict_fixed", "simulate"]

Label = Callable[[Tensor, str], pd.Series]
_COLUMNS = ("mean", "mean_se", "mean_ci_lower", "mean_ci_upper")


def predict(
    results: NonlinearMixedResults, newdata: Any, re_form: Any, allow_new_levels: bool,
    interval: str | None, level: float,
) -> pd.Series | pd.DataFrame:  # fmt: skip
    """Predict the curve of rows; see `NonlinearMixedResults.predict`.

    Raises
    ------
    DesignError
        For levels that were not in the data, unless they are allowed.
    ModelError
        For a `re_form` that names no grouping factor, and for intervals of curves with
        random effects.
    """
    keep = kept_factors(results, re_form)
    if not keep:
        return predict_fixed(results, newdata, interval, level)
    if interval is not None:
        raise ModelError(
            "intervals are for the curve of a typical group: predict(newdata, "
            "re_form='none', interval='confidence')."
        )
    design, label = _design(results, newdata, keep)
    phi = results.model.reading.rows(design).fixed(results.solved.beta)
    phi = phi + _moved(results, design, keep, allow_new_levels)
    return label(results.model.reading.rows(design).mean(phi), "predicted")


def predict_fixed(
    results: CurveResults, newdata: Any, interval: str | None, level: float
) -> pd.Series | pd.DataFrame:
    """Predict without random effects; an interval is by the delta method.

    Parameters
    ----------
    results : CurveResults
    newdata : frame or mapping, or None
    interval : {"confidence"} or None
    level : float
    """
    if interval not in (None, "confidence"):
        raise ValueError(f"interval must be None or 'confidence', not {interval!r}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level!r}.")
    design, label = _design(results, newdata, [])
    rows = results.model.reading.rows(design)
    mean, D = rows.slopes(rows.fixed(_beta(results)))
    if interval is None:
        return label(mean, "predicted")
    J = numbers(rows.design(D))
    se = np.sqrt(np.einsum("ij,jk,ik->i", J, results._cov, J).clip(0))
    upper = 0.5 + level / 2
    half = se * (stdtrit(results.df_resid, upper) if results.use_t else ndtri(upper))
    values = (numbers(mean), se, numbers(mean) - half, numbers(mean) + half)
    parts = [
        label(torch.from_numpy(v), n) for v, n in zip(values, _COLUMNS, strict=True)
    ]
    return pd.concat(parts, axis=1)


def _beta(results: CurveResults) -> Tensor:
    return torch.from_numpy(results.params.to_numpy(copy=True))


def kept_factors(results: NonlinearMixedResults, re_form: Any) -> list[str]:
    """Names of the grouping factors whose effects are kept."""
    names = [f.name for f in results.mixed.structure.factors]
    if re_form is None or re_form is True:
        return names
    if re_form is False or (
        isinstance(re_form, str) and re_form.strip().lower() in ("none", "~0", "~ 0")
    ):
        return []
    wanted = [re_form] if isinstance(re_form, str) else list(re_form)
    wrong = [w for w in wanted if w not in names]
    if wrong:
        raise ModelError(
            f"re_form={re_form!r}: use None for all random effects, 'none' for none, "
            f"or names of grouping factors, which are {', '.join(names)}."
        )
    return [str(w) for w in wanted]


def _design(
    results: CurveResults, newdata: Any, keep: list[str]
) -> tuple[Design, Label]:
    """Design of rows, and how their values are labelled."""
    design = results.model.design
    if newdata is None:
        return design, lambda values, name: pd.Series(
            numbers(values), design.index, name=name
        )
    spec, random = design.spec, design.random
    groups = tuple(
        g for g, r in zip(spec.formula.rhs.groups, random, strict=True)
        if r.grouping.name in keep
    )  # fmt: skip
    rhs = replace(spec.formula.rhs, groups=groups)
    narrowed = replace(spec, formula=replace(spec.formula, rhs=rhs))
    new = narrowed.rebuild(newdata, random=bool(groups))
    return new, row_labels(new, newdata)


def _moved(
    results: NonlinearMixedResults, design: Design, keep: list[str], new: bool
) -> Tensor:
    """How far the modes of factors move the parameters of rows; (n, P)."""
    reading, fitted = results.model.reading, results.mixed
    terms = [
        (r, names, number)
        for number, (r, names) in enumerate(
            zip(reading.design.random, reading.moved, strict=True)
        )
        if r.grouping.name in keep
    ]
    given = design.random
    if design is reading.design:
        given = tuple(r for r, _, _ in terms)
    chosen = replace(reading, moved=tuple(names for _, names, _ in terms))
    out = np.zeros((design.n, len(reading.parameters)))
    for effect, (_, _, number) in zip(chosen.effects(given), terms, strict=True):
        grouping = effect.random.grouping
        if grouping.unseen and not new:
            raise DesignError(
                f"{grouping.name} has levels that were not in the data of the fit: "
                f"{listed(grouping.unseen)}. Use allow_new_levels=True to predict them "
                "with random effects of zero, or re_form='none'."
            )
        known = grouping.codes >= 0
        values = fitted.term_modes[number][grouping.codes] * effect.columns
        for column, owner in enumerate(effect.owner):
            out[:, owner] += np.where(known, values[:, column], 0.0)
    return torch.from_numpy(out)


def simulate(
    results: NonlinearMixedResults, nsim: int, seed: int | None, re_form: Any
) -> pd.DataFrame:
    """Draw responses; see `NonlinearMixedResults.simulate`."""
    if nsim < 1:
        raise ValueError(f"nsim must be at least 1, not {nsim!r}.")
    keep = kept_factors(results, re_form)
    model, fitted, rng = results.model, results.mixed, np.random.default_rng(seed)
    rows, effects = model.rows, model.linear.effects
    fixed, roots = rows.fixed(results.solved.beta), fitted.structure.roots(fitted.x)
    modes = effects.by_factor(results.solved.b)
    spread = fitted.sigma / numbers(rows.w.sqrt())
    out = np.empty((rows.n, nsim))
    for column in range(nsim):
        parts = []
        factors = fitted.structure.factors
        for factor, root, mode in zip(factors, roots, modes, strict=True):
            draw = rng.standard_normal((factor.m, factor.k)) @ root.T * fitted.sigma
            parts.append(mode if factor.name in keep else torch.from_numpy(draw))
        phi = fixed + effects.move(effects.from_factors(parts))
        out[:, column] = numbers(rows.mean(phi)) + spread * rng.standard_normal(rows.n)
    names = [f"sim_{j + 1}" for j in range(nsim)]
    return pd.DataFrame(out, model.design.index, names)
