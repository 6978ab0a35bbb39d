"""The printed page of a mixed model, laid out as lme4's, and its tidy frame."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from ...results import counted, whole
from ...summary import Notes, Pairs, Summary, Table, coefficient_table
from .modes import structured_values

if TYPE_CHECKING:
    from .correlated import CorrelatedResults
    from .fitted import Fitted
    from .results import MixedResults
    from .structure import Term

__all__ = ["mixed_summary", "scaled_residuals", "tidy_frame"]

# Beyond so many fixed effects lme4 leaves their correlations out.
_MOST_CORRELATIONS = 20
_PAGE = 78
_DEGREES = {
    "satterthwaite": "Satterthwaite",
    "kenward-roger": "Kenward-Roger",
    "residual": "n - p",
    "normal": "none (z tests)",
}


def mixed_summary(results: MixedResults, alpha: float = 0.05) -> Summary:
    """Lay out a fit as lme4 does: criterion, residuals, random and fixed effects.

    Parameters
    ----------
    results : MixedResults
    alpha : float, default 0.05
        Of the confidence limits.

    Returns
    -------
    Summary
    """
    blocks: list[Any] = [
        Pairs(tuple(_header(results)), columns=2),
        _residual_table(results),
        _random_table(results),
    ]
    notes = list(results._notes())
    if _all_columns(results):
        blocks += [_fixed_table(results, alpha), *_correlation_tables(results)]
    else:
        mean = "zero" if results.model.design.offset is None else "the offset"
        notes.insert(0, f"No fixed effects: the mean is {mean}.")
    if notes:
        blocks.append(Notes(tuple(notes)))
    return Summary(results.model_name, results.formula_text, tuple(blocks))


_TIDY = ("estimate", "std_error", "statistic", "df", "p_value", "conf_low",
         "conf_high")  # fmt: skip


def tidy_frame(results: MixedResults, conf_level: float = 0.95) -> pd.DataFrame:
    """Return one row for each column of the fixed part, with broom.mixed's columns.

    Parameters
    ----------
    results : MixedResults
    conf_level : float, default 0.95

    Returns
    -------
    DataFrame
        term, estimate, std_error, statistic, df, p_value, conf_low, conf_high,
        component. A column that others determine has NaN; z tests have infinite df.
    """
    names, columns = results.names, _all_columns(results)
    at = (
        slice(None)
        if len(columns) == len(names)
        else [j for j, name in enumerate(columns) if name in set(names)]
    )
    half = results._quantile(1 - conf_level)
    found = np.full((7, len(columns)), np.nan)
    estimate = results.mixed.beta
    found[0, at], found[1, at] = estimate, np.sqrt(np.diag(results._cov))
    with np.errstate(divide="ignore", invalid="ignore"):
        found[2] = found[0] / found[1]
    found[3, at] = results.df_inference if results.use_t else np.inf
    tail = np.abs(found[2])
    found[4] = 2 * (special.stdtr(found[3], -tail) if results.use_t
                    else special.ndtr(-tail))  # fmt: skip
    found[5, at] = estimate - half * found[1, at]
    found[6, at] = estimate + half * found[1, at]
    return pd.DataFrame(
        {"term": columns, **dict(zip(_TIDY, found, strict=True)),
         "component": [""] * len(columns)}
    )  # fmt: skip


def scaled_residuals(results: MixedResults) -> np.ndarray:
    """Conditional Pearson residuals over the residual standard deviation; (n,)."""
    return results.resid_pearson.to_numpy() / results.sigma


def _all_columns(results: MixedResults) -> list[str]:
    """Columns of the fixed part as the formula gives them, aliased ones in place."""
    design, aliased = results.model.design, iter(results.model.aliased)
    names, total = iter(results.names), len(results.names) + len(results.model.aliased)
    kept = set(design.spec.kept.get(0, range(total)))
    return [next(names) if j in kept else next(aliased) for j in range(total)]


# ------------------------------------------------------------------ header


def _header(results: MixedResults) -> Iterable[tuple[str, Any]]:
    """Tell what was fitted on the left, and how well on the right."""
    design = results.model.design
    steps = counted(results.fit_info.iterations, "Newton step")
    method = "REML" if results.reml else "maximum likelihood"
    left: list[tuple[str, Any]] = [
        ("Response", results.response_name),
        ("Method", method),
        ("Df method", _DEGREES[results.ddf]),
        ("SE", results.cov_description),
        ("Observations", str(whole(results.nobs))),
    ]
    left += [(f"Groups: {name}", str(m)) for name, m in results.ngroups.items()]
    if design.weights is not None:
        left.append(("Prior weights", _extent(design.weights)))
    if design.offset is not None:
        left.append(("Offset", _extent(design.offset)))
    criterion = "REML criterion" if results.reml else "-2 log-likelihood"
    right: list[tuple[str, Any]] = [
        (criterion, results.mixed.point.value),
        ("Log-likelihood", results.llf), ("AIC", results.aic), ("BIC", results.bic),
        ("Df residuals", str(whole(results.df_resid))),
        ("Converged", f"{'yes' if results.converged else 'NO'}, {steps}"),
        ("Singular", "YES" if results.singular else "no"),
    ]  # fmt: skip
    short = len(right) - len(left)
    return [*left, *[("", None)] * short, *right, *[("", None)] * -short]


def _extent(values: np.ndarray) -> str:
    return f"{values.min():.4g} to {values.max():.4g}"


# ------------------------------------------------------------------ blocks


def _residual_table(results: MixedResults) -> Table:
    quantiles = np.quantile(scaled_residuals(results), [0, 0.25, 0.5, 0.75, 1])
    frame = pd.DataFrame([quantiles], columns=["Min", "1Q", "Median", "3Q", "Max"])
    formats = dict.fromkeys(frame.columns, ".4f")
    return Table(frame, formats, caption="Scaled residuals", index=False)


def _random_table(results: MixedResults, residual: bool = True) -> Table:
    """Variances of each term, with its correlations as a triangle beside them."""
    fitted, rows = results.mixed, []
    for j in fitted.structure.order:
        term, V = fitted.structure.terms[j], fitted.covariances[j]
        label, sd = fitted.structure.factors[term.factor].name, np.sqrt(np.diag(V))
        if term.covariance is not None:
            rows += _structured_rows(fitted, term, label)
            continue
        for a, name in enumerate(term.names):
            earlier = range(a if term.kind == "us" else 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                correlations = [
                    _correlation(V[a, b] / (sd[a] * sd[b])) for b in earlier
                ]
            rows.append([label if a == 0 else "", name, V[a, a], sd[a], *correlations])
    if residual:
        known = "" if results.model.sigma is None else "(known)"
        rows.append(["Residual", known, fitted.sigma**2, fitted.sigma])
    widest = max(len(row) for row in rows)
    heads = ["Groups", "Name", "Variance", "Std. Dev.", "Corr", *[""] * widest][:widest]
    frame = pd.DataFrame([row + [""] * (widest - len(row)) for row in rows])
    return Table(
        frame.set_axis(heads, axis=1), caption="Random effects", index=False,
        align="llrr" + "r" * (widest - 4),
    )  # fmt: skip


def _structured_rows(fitted: Fitted, term: Term, label: str) -> list[list[Any]]:
    """Rows of a structured covariance: standard deviations, then its parameters."""
    deviations, shapes = structured_values(fitted, term)
    rows: list[list[Any]] = [["", name, sd**2, sd] for name, sd in deviations]
    rows[0][0] = label
    for name, scale, value in shapes:
        shown = _correlation(value) if scale == "cor" else f"{value:.4g}"
        rows.append(["", f"{name} ({term.kind})", "", "", shown])
    return rows


def residual_table(results: CorrelatedResults, alpha: float = 0.05) -> Table:
    """Parameters of the residuals' covariance.

    Parameters
    ----------
    results : CorrelatedResults
    alpha : float, default 0.05
    """
    frame = results.residual_params(alpha)
    low, high = f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"
    frame.columns = ["Residuals", "Parameter", "Estimate", "Std. Err.", low, high]
    return Table(
        frame, dict.fromkeys(frame.columns[2:], ".4f"), caption="Residual covariance",
        index=False, align="llrrrr",
    )  # fmt: skip


def _correlation(value: float) -> str:
    # Adding zero takes the sign from what rounds to nothing.
    return "NaN" if np.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def _fixed_table(results: MixedResults, alpha: float) -> Table:
    frame = tidy_frame(results, 1 - alpha).set_index("term")
    return coefficient_table(
        frame["estimate"], frame["std_error"], frame["statistic"], frame["p_value"],
        frame[["conf_low", "conf_high"]], results.use_t, conf_level=1 - alpha,
        df=frame["df"].to_numpy() if results.use_t else None, caption="Fixed effects",
    )  # fmt: skip


# ------------------------------------------- correlation of fixed effects


def _correlation_tables(results: MixedResults) -> list[Table]:
    """Correlations of the fixed effects below the diagonal, in panels of a page."""
    p = len(results.names)
    if not 2 <= p <= _MOST_CORRELATIONS:
        return []
    V = results.cov_params().to_numpy()
    d = np.sqrt(np.diag(V))
    cells = V / d[:, None] / d
    rows, heads = abbreviated(results.names, 11), abbreviated(results.names, 6)
    stub = max(map(len, rows))
    tables: list[Table] = []
    start = 0
    while start < p - 1:
        stop, width = start, stub
        while stop < p - 1:
            width += 2 + max(len(heads[stop]), 6)
            if width > _PAGE and stop > start:
                break
            stop += 1
        lower = [
            [_correlation(cells[i, j]) if i > j else "" for j in range(start, stop)]
            for i in range(start + 1, p)
        ]
        frame = pd.DataFrame(lower, rows[start + 1 :], heads[start:stop])
        caption = "Correlation of fixed effects" if start == 0 else None
        align = "r" * (stop - start)
        tables.append(Table(frame, caption=caption, align=align, spread=False))
        start = stop
    return tables


def abbreviated(names: list[str], length: int) -> list[str]:
    """Shorten names as R does, to about `length` characters, keeping them apart.

    Lower-case vowels go first, from the right; then other lower-case letters; a word
    keeps its first. Names that would be the same are left longer.
    """
    plain = [re.sub(r"\[(?:T\.)?([^\]]*)\]", r"\1", name) for name in names]
    if len(set(plain)) < len(plain):
        plain = list(names)
    sizes = [length] * len(plain)
    while True:
        short = [_shortened(n, size) for n, size in zip(plain, sizes, strict=True)]
        same = [j for j, name in enumerate(short) if short.count(name) > 1]
        if not same:
            return short
        for j in same:
            sizes[j] += 1


def _shortened(name: str, length: int) -> str:
    droppable: tuple[Callable[[str], bool], ...] = (
        lambda letter: letter in "aeiou",
        str.islower,
        lambda letter: not letter.isalnum(),
    )
    letters = list(name)
    for test in droppable:
        for i in range(len(letters) - 1, 0, -1):
            if len(letters) <= length:
                return "".join(letters)
            if test(letters[i]) and letters[i - 1].isalnum():
                del letters[i]
    return "".join(letters) if len(letters) <= length + 4 else name[: length + 4]
