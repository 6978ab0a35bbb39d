"""Estimated marginal means of the fixed part, and their contrasts.

Means over a grid of all levels of the factors, with equal weights, and covariates at
their averages: what the model says of a balanced population (Searle, Speed & Milliken
1980; Lenth's emmeans). Random effects are zero: these are means of typical groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ...columns import Categorical
from ...errors import ModelError
from ...expressions import expression_variables
from ...families import CumulativeLink
from ...families.links import IDENTITY
from ...summary import Summary, Table
from ..mixed.terms import _factors

if TYPE_CHECKING:
    from ...families import Link
    from .results import MixedGLMResults

__all__ = ["MarginalMeans", "marginal_means"]

_ADJUSTMENTS = ("tukey", "bonferroni", "holm", "none")
#: Links whose differences are logarithms of a ratio that has a name.
_RATIOS = {"log": "ratio", "logit": "odds ratio"}
_MOST = 100_000


@dataclass(frozen=True, eq=False)
class MarginalMeans:
    """Estimated marginal means and, where asked for, their differences.

    Attributes
    ----------
    frame : DataFrame
        A row for each combination of levels: link and link_se; mean, std_error,
        conf_low and conf_high on the scale of the response.
    contrasts : DataFrame or None
        A row for each pair: estimate, std_error, z, p_value, conf_low, conf_high of
        the difference on the link scale; effect, effect_low, effect_high what it is
        for the response, as `effect` says.
    covariance : ndarray
        Of the means on the link scale.
    effect : str
        "ratio" for a log link, "odds ratio" for the logit, "link" for others, whose
        differences stay on the link's scale.
    adjust : str
        How p-values and limits take account of their number.
    conf_level : float
    """

    frame: pd.DataFrame
    contrasts: pd.DataFrame | None
    covariance: np.ndarray
    effect: str
    adjust: str
    conf_level: float

    def summary(self) -> Summary:
        """Return the printed tables: means, and differences with what they are."""
        tail = (1 - self.conf_level) / 2
        heads = {
            "link_se": "std err", "std_error": "std err", "p_value": "P>|z|",
            "conf_low": f"[{tail:.4g}", "conf_high": f"{1 - tail:.4g}]",
        }  # fmt: skip
        means = self.frame.drop(columns="link_se").rename(columns=heads)
        blocks = [Table(means, caption="Means of the response", index=False)]
        if self.contrasts is not None:
            columns = ["contrast", "estimate", "std_error", "z", "p_value"]
            if self.effect != "link":
                columns.append("effect")
            frame = self.contrasts[columns].rename(
                columns={**heads, "effect": self.effect}
            )
            caption = f"Differences on the link scale (adjustment: {self.adjust})"
            formats = {"z": ".3f", "P>|z|": ".4f"}
            blocks.append(Table(frame, formats, caption=caption, index=False))
        return Summary("Estimated marginal means", "", tuple(blocks))

    def __repr__(self) -> str:
        return self.summary().as_text()


def marginal_means(
    results: MixedGLMResults,
    term: str | Sequence[str],
    *,
    pairs: bool = False,
    at: Mapping[str, Any] | None = None,
    adjust: str = "tukey",
    alpha: float = 0.05,
    offset: float | None = None,
) -> MarginalMeans:
    """Estimate marginal means of the mean's linear predictor.

    Parameters
    ----------
    results : MixedGLMResults
    term : str or sequence of str
        Variables whose combinations get a mean: ``"mined"``, ``"mined:spp"``,
        ``["mined", "spp"]``.
    pairs : bool, default False
        Whether to compare all pairs of means.
    at : mapping, optional
        Values of variables, one or several, in place of all levels of a factor or the
        average of a covariate. A covariate in `term` needs them.
    adjust : {"tukey", "bonferroni", "holm", "none"}
        For the number of pairs: p-values and, but for holm, limits.
    alpha : float, default 0.05
    offset : float, optional
        Added to the linear predictor; by default the mean of that of the fit.

    Returns
    -------
    MarginalMeans

    Notes
    -----
    Means of the response are the link's inverse of those of the linear predictor, with
    limits carried through it and standard errors by the delta method: of typical
    groups, and of the conditional part where there are excess zeros. Ordinal responses
    have no mean: there it is the location that thresholds cut.

    References
    ----------
    Searle, Speed & Milliken (1980), Population marginal means in the linear model, The
    American Statistician 34.
    """
    if adjust not in _ADJUSTMENTS:
        raise ValueError(f"adjust must be one of {_ADJUSTMENTS}, not {adjust!r}.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
    values = _values(results, dict(at or {}))
    focal = term.split(":") if isinstance(term, str) else list(term)
    _check_focal(focal, values, dict(at or {}))
    rows, L = _averages(results, values, focal)
    beta = results.fe_params.to_numpy()
    p = len(beta)
    if offset is None:
        given = results.model.design.offset
        offset = 0.0 if given is None else float(np.mean(given))
    link_scale = L @ beta + offset
    covariance = L @ results._cov[:p, :p] @ L.T
    link = results.model.family.links[0]
    ordinal = isinstance(results.model.family, CumulativeLink)
    frame = _means_frame(
        rows, link_scale, covariance, IDENTITY if ordinal else link, alpha
    )
    contrasts = None
    effect = _RATIOS.get(link.name, "link")
    if pairs:
        if len(rows) < 2:
            raise ModelError(f"{':'.join(focal)} has one mean: there are no pairs.")
        contrasts = _pairs(rows, link_scale, covariance, effect, adjust, alpha)
    return MarginalMeans(frame, contrasts, covariance, effect, adjust, 1 - alpha)


# -- the grid --------------------------------------------------------------------------


def _values(results: MixedGLMResults, at: dict[str, Any]) -> dict[str, list]:
    """Values of every variable of the fixed part on the grid."""
    design = results.model.design
    _, factors = _factors(design)
    table = design.spec.table
    assert table is not None
    out: dict[str, list] = {}
    discrete: set[str] = set()
    for expression, values in factors.items():
        names = expression_variables(expression)
        for name in names:
            out.setdefault(name, [])
            if isinstance(values, Categorical):
                discrete.add(name)
    unknown = [name for name in at if name not in out]
    if unknown:
        raise ModelError(
            f"at: {', '.join(unknown)} is not in the fixed part, whose variables are "
            f"{', '.join(out)}."
        )
    for name in out:
        column = pd.Series(table.full(name))
        if design.rows is not None:
            column = column.iloc[design.rows]
        if name in at:
            given = at[name]
            one = isinstance(given, str) or not isinstance(given, Sequence | np.ndarray)
            out[name] = [given] if one else list(given)
        elif name in discrete:
            out[name] = _levels(column)
        else:
            out[name] = [float(column.astype(float).mean())]
    return out


def _levels(column: pd.Series) -> list:
    if isinstance(column.dtype, pd.CategoricalDtype):
        present = set(column.unique())
        return [level for level in column.cat.categories if level in present]
    return sorted(column.unique())


def _check_focal(focal: list[str], values: dict[str, list], at: dict[str, Any]) -> None:
    unknown = [name for name in focal if name not in values]
    if unknown or not focal:
        raise ModelError(
            f"{', '.join(unknown) or 'nothing'} is no variable of the fixed part; its "
            f"variables are {', '.join(values) or 'none'}."
        )
    single = [name for name in focal if len(values[name]) < 2 and name not in at]
    if single:
        raise ModelError(
            f"{', '.join(single)} is a covariate: give its values, "
            f"at={{{single[0]!r}: [...]}}."
        )


def _averages(
    results: MixedGLMResults, values: dict[str, list], focal: list[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Cross the focal levels, and average the rows of the grid in each."""
    others = [name for name in values if name not in focal]
    names = [*focal, *others]
    count = int(np.prod([float(len(values[name])) for name in names]))
    if count > _MOST:
        raise ModelError(
            f"the grid of all levels has {count:,} rows; fix some variables with at=."
        )
    cells = list(itertools.product(*(values[name] for name in names)))
    grid = pd.DataFrame(cells, columns=names)
    X = _columns(results, grid)
    inner = int(np.prod([len(values[name]) for name in others], dtype=int))
    L = X.reshape(-1, inner, X.shape[1]).mean(axis=1)
    return grid.loc[::inner, focal].reset_index(drop=True), L


def _columns(results: MixedGLMResults, grid: pd.DataFrame) -> np.ndarray:
    """Columns of the fixed part on a grid."""
    spec = results.model.design.spec
    rhs = replace(spec.formula.rhs, groups=(), offsets=())
    narrowed = replace(
        spec, formula=replace(spec.formula, rhs=rhs), parts=(), offset=None,
        exposure=None, by_value=(), kept={j: k for j, k in spec.kept.items() if j == 0},
    )  # fmt: skip
    design = narrowed.rebuild(grid)
    return design.X.to_dense(results.model.compute.on_cpu()).numpy()


# -- tables ----------------------------------------------------------------------------


def _means_frame(
    rows: pd.DataFrame, eta: np.ndarray, covariance: np.ndarray, link: Link,
    alpha: float,
) -> pd.DataFrame:  # fmt: skip
    from scipy.special import ndtri

    se = np.sqrt(np.diag(covariance))
    half = float(ndtri(1 - alpha / 2)) * se

    def response(values: np.ndarray) -> np.ndarray:
        return link.inverse(torch.from_numpy(values)).numpy()

    slope = link.derivative(torch.from_numpy(eta)).numpy()
    ends = np.sort([response(eta - half), response(eta + half)], axis=0)
    return rows.assign(
        link=eta, link_se=se, mean=response(eta), std_error=np.abs(slope) * se,
        conf_low=ends[0], conf_high=ends[1],
    )  # fmt: skip


def _pairs(
    rows: pd.DataFrame, eta: np.ndarray, covariance: np.ndarray, effect: str,
    adjust: str, alpha: float,
) -> pd.DataFrame:  # fmt: skip
    """Differences of all pairs, adjusted for their number."""
    names = [" ".join(str(v) for v in row) for row in rows.itertuples(index=False)]
    first, second = np.triu_indices(len(eta), 1)
    estimate = eta[first] - eta[second]
    spread = np.diag(covariance)
    variance = spread[first] + spread[second] - 2 * covariance[first, second]
    se = np.sqrt(np.maximum(variance, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = estimate / se
    p, q = _adjusted(np.abs(z), len(eta), adjust, alpha)
    low, high = estimate - q * se, estimate + q * se
    carry = (lambda v: v) if effect == "link" else np.exp
    return pd.DataFrame(
        {
            "contrast": [f"{names[i]} - {names[j]}" for i, j in zip(first, second,
                                                                    strict=True)],
            "estimate": estimate, "std_error": se, "z": z, "p_value": p,
            "conf_low": low, "conf_high": high, "effect": carry(estimate),
            "effect_low": carry(low), "effect_high": carry(high),
        }
    )  # fmt: skip


def _adjusted(
    z: np.ndarray, means: int, adjust: str, alpha: float
) -> tuple[np.ndarray, float]:
    """P-values for the number of comparisons, and the quantile of the limits."""
    from scipy.special import ndtr, ndtri

    plain, count = 2 * ndtr(-z), len(z)
    if adjust == "tukey" and means > 2:
        from scipy.stats import studentized_range

        # With 100,000 degrees of freedom and more scipy takes the limit.
        p = studentized_range.sf(np.sqrt(2) * z, means, np.inf)
        q = studentized_range.ppf(1 - alpha, means, np.inf) / np.sqrt(2)
        return np.clip(p, 0.0, 1.0), float(q)
    if adjust == "bonferroni":
        return np.minimum(count * plain, 1.0), float(ndtri(1 - alpha / (2 * count)))
    q = float(ndtri(1 - alpha / 2))
    if adjust == "holm":
        order = np.argsort(plain)
        steps = np.maximum.accumulate((count - np.arange(count)) * plain[order])
        out = np.empty(count)
        out[order] = np.minimum(steps, 1.0)
        return out, q
    return plain, q
