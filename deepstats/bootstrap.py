"""The bootstrap of a fit: how replicates are drawn, and what they say.

All replicates are fitted together, by `batched`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from .batched import (
    BatchOptimum,
    PointFunction,
    Replicates,
    batched_newton,
    inverses,
    point_of_family,
)
from .errors import ConvergenceWarning, ModelError
from .families import ExponentialFamily

if TYPE_CHECKING:
    from .results import Results

__all__ = [
    "BootstrapResults",
    "bootstrap",
    "collected",
    "replicate_interval",
    "replicate_summary",
    "skewed",
    "tallies",
]

_KINDS = ("pairs", "cluster", "parametric", "residual")
_METHODS = ("percentile", "basic", "normal", "bca")

# A replicate's variance, over that of the fit, from which it has no maximum.
_BEYOND = 1e5


@dataclass(frozen=True, eq=False)
class BootstrapResults:
    """Replicates of estimates, and what they say of the uncertainty.

    Attributes
    ----------
    params : DataFrame, shape (replicates that converged, p)
        Estimates (or the statistic) of each replicate.
    estimate : Series
        Of the data.
    kind : str
    replications : int
        Asked for.
    failed : int
        Replicates that did not converge; they are left out.
    acceleration : Series or None
        Of the BCa interval; None where it is not defined.
    """

    params: pd.DataFrame
    estimate: pd.Series
    kind: str
    replications: int
    failed: int
    acceleration: pd.Series | None = None

    @property
    def bse(self) -> pd.Series:
        """Standard deviations of the replicates."""
        return self.params.std().rename("std err")

    @property
    def bias(self) -> pd.Series:
        """Mean of the replicates less the estimate."""
        return (self.params.mean() - self.estimate).rename("bias")

    def cov(self) -> pd.DataFrame:
        """Return the covariance matrix of the replicates."""
        return self.params.cov()

    def conf_int(self, alpha: float = 0.05, method: str = "percentile") -> pd.DataFrame:
        """Return confidence intervals; columns 0 and 1.

        Parameters
        ----------
        alpha : float, default 0.05
        method : {"percentile", "basic", "normal", "bca"}, default "percentile"
            Quantiles of the replicates; those reflected at the estimate; the estimate
            and normal quantiles times `bse`; quantiles corrected for bias and for a
            standard error that depends on the parameter.

        References
        ----------
        Davison, A. and Hinkley, D. (1997). Bootstrap methods and their application,
        chapter 5.
        """
        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, not {method!r}.")
        if method != "bca":
            return replicate_interval(self.params, self.estimate, alpha, method)
        _check_alpha(alpha)
        levels = np.array([alpha / 2, 1 - alpha / 2])
        found = self._bca(self.params.to_numpy(), levels)
        return pd.DataFrame(found.T, index=self.params.columns)

    def _bca(self, values: np.ndarray, levels: np.ndarray) -> np.ndarray:
        from scipy import special

        if self.acceleration is None:
            raise ValueError(
                "bca intervals need resampled rows or clusters, not "
                f"kind={self.kind!r}; use method='percentile', 'basic' or 'normal'."
            )
        below = (values < self.estimate.to_numpy()).mean(axis=0)
        below = np.clip(below, 1 / (len(values) + 1), len(values) / (len(values) + 1))
        z0, z = special.ndtri(below), special.ndtri(levels)[:, None]
        shifted = z0 + (z0 + z) / (1 - self.acceleration.to_numpy() * (z0 + z))
        at = special.ndtr(shifted)
        pairs = zip(values.T, at.T, strict=True)
        return np.stack([np.quantile(v, q) for v, q in pairs], axis=1)

    def summary_frame(
        self, alpha: float = 0.05, method: str = "percentile"
    ) -> pd.DataFrame:
        """Return estimate, bias, standard error and interval of each parameter."""
        return replicate_summary(self, self.conf_int(alpha, method))

    def __repr__(self) -> str:
        return (
            f"<{self.kind} bootstrap: {len(self.params)} of {self.replications} "
            f"replicates>\n{self.summary_frame()}"
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")


def replicate_interval(
    frame: pd.DataFrame, center: pd.Series, alpha: float, method: str
) -> pd.DataFrame:
    """Intervals from replicates; columns 0 and 1.

    Parameters
    ----------
    frame : DataFrame, shape (replicates, p)
        What is not defined in a replicate, NaN, is left out.
    center : Series
        What replicates are reflected at, or what normal intervals are about.
    alpha : float
    method : {"percentile", "basic", "normal"}
    """
    from scipy import special

    _check_alpha(alpha)
    if method == "normal":
        half = float(special.ndtri(1 - alpha / 2)) * frame.std()
        return pd.DataFrame({0: center - half, 1: center + half})
    found = frame.quantile([alpha / 2, 1 - alpha / 2]).to_numpy()
    if method == "basic":
        found = 2 * center.to_numpy() - found[::-1]
    return pd.DataFrame(found.T, index=frame.columns)


def replicate_summary(results: Any, interval: pd.DataFrame) -> pd.DataFrame:
    """Estimate, bias, standard error and interval of each parameter."""
    return pd.DataFrame(
        {"estimate": results.estimate, "bias": results.bias, "std_error": results.bse,
         "conf_low": interval[0], "conf_high": interval[1]}
    )  # fmt: skip


def bootstrap(
    results: Results,
    kind: str = "pairs",
    replications: int = 999,
    *,
    groups: Any = None,
    seed: int | None = None,
    statistic: Callable[[pd.Series], Any] | None = None,
) -> BootstrapResults:
    """Fit a model to many resampled data sets at once.

    Parameters
    ----------
    results : Results
    kind : {"pairs", "cluster", "parametric", "residual"}, default "pairs"
        Rows drawn with replacement; whole clusters; responses drawn from the fitted
        distribution; residuals of least squares, over ``sqrt(1 - h)`` and centred,
        drawn with replacement and added to the fitted values.
    replications : int, default 999
    groups : optional
        Clusters: a column's name or values.
    seed : int, optional
        The same seed gives the same replicates on the same machine.
    statistic : callable, optional
        From a Series of parameters to a number or a Series, in place of the parameters.

    Returns
    -------
    BootstrapResults

    Raises
    ------
    ModelError
        For a model without a smooth likelihood, or a kind that does not go with it.

    Warns
    -----
    ConvergenceWarning
        With the number of replicates left out because their fit did not converge.

    Notes
    -----
    With frequency weights observations are drawn, not rows. The columns of the design
    (knots, levels, scaling) are those of the fit in all replicates.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_KINDS}, not {kind!r}.")
    if int(replications) != replications or replications < 2:
        raise ValueError(f"replications must be 2 or more, not {replications!r}.")
    if (kind == "cluster") != (groups is not None):
        raise ValueError("groups= goes with kind='cluster', and is needed there.")
    plan = _Plan.of(results, kind, groups)
    generator = Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    lower, p = results.likelihood.parameters.lower(), len(results.names)
    values = torch.full((replications, p), torch.nan, dtype=torch.float64)
    for start in range(0, replications, plan.batch):
        count = min(plan.batch, replications - start)
        problem = plan.draw(count, generator)
        begin = results.fit_info.x.to(problem.y).expand(count, p)
        found = batched_newton(problem.derivatives, begin, lower=lower.to(problem.y))
        good = found.converged & ~_unbounded(results, found)
        values[start : start + count][good.cpu()] = found.x[good].double().cpu()
    reported = results.model.parameters.reported(values).numpy()
    frame = pd.DataFrame(reported, columns=results.names)
    frame = frame[np.isfinite(reported).all(axis=1)]
    return collected(results, kind, plan.acceleration, frame, replications, statistic)


def _unbounded(results: Results, found: BatchOptimum) -> Tensor:
    """Replicates whose likelihood has no maximum: variances beyond all comparison."""
    usual = torch.nan_to_num(results.fit_info.bread.diagonal(), nan=torch.inf)
    keep = found.free[:, :, None] & found.free[:, None, :]
    eye = torch.eye(found.free.shape[1]).to(found.x)
    variances = inverses(torch.where(keep, found.information, eye))
    variances = variances.diagonal(dim1=1, dim2=2)
    return ((variances > _BEYOND * usual.to(found.x)) & found.free).any(dim=1)


def collected(
    results: Results,
    kind: str,
    acceleration: Callable[[np.ndarray], np.ndarray | None],
    frame: pd.DataFrame,
    replications: int,
    statistic: Callable[[pd.Series], Any] | None,
) -> BootstrapResults:
    """Say how many replicates failed, and gather what the others estimate.

    Parameters
    ----------
    results : Results
    kind : str
    acceleration : callable
        From the gradient of statistics in the parameters, (q, p), to their
        accelerations (q,); None where they are not defined.
    frame : DataFrame
        Estimates of the replicates that converged.
    replications : int
        Asked for.
    statistic : callable, optional
        See `bootstrap`.
    """
    failed = replications - len(frame)
    if failed:
        warnings.warn(
            f"{failed} of {replications} replicates did not converge and are left out: "
            "the sample may be too small for the model (separation, empty levels).",
            ConvergenceWarning,
            stacklevel=4,
        )
    if len(frame) < 2:
        raise ModelError("hardly any replicate converged; use a simpler model.")
    found = acceleration(np.eye(len(results.names)))
    estimate: pd.Series = results.params
    if statistic is not None:
        estimate = _as_series(statistic(results.params))
        found = acceleration(_gradient(statistic, results))
        rows = [_as_series(statistic(row)) for _, row in frame.iterrows()]
        frame = pd.DataFrame(rows).reset_index(drop=True)
    series = None if found is None else pd.Series(found, index=estimate.index)
    return BootstrapResults(
        frame.reset_index(drop=True), estimate, kind, replications, failed, series
    )


def _as_series(value: Any) -> pd.Series:
    if isinstance(value, pd.Series):
        return value.astype(float)
    values = np.atleast_1d(np.asarray(value, dtype=float))
    names = (
        ["statistic"]
        if len(values) == 1
        else [f"statistic[{j}]" for j in range(len(values))]
    )
    return pd.Series(values, index=names)


def _gradient(statistic: Callable[[pd.Series], Any], results: Results) -> np.ndarray:
    """Differentiate a statistic in the parameters reported, (q, p), numerically."""
    columns, params = [], results.params
    for name, se in zip(results.names, results.bse, strict=True):
        h = 1e-4 * (se if np.isfinite(se) and se > 0 else abs(params[name]) or 1.0)
        ends = []
        for sign in (1, -1):
            moved = params.copy()
            moved[name] += sign * h
            ends.append(_as_series(statistic(moved)).to_numpy())
        columns.append((ends[0] - ends[1]) / (2 * h))
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class _Plan:
    """How replicates are drawn.

    Attributes
    ----------
    results : Results
    kind : str
    base : Replicates
        Without what is drawn.
    batch : int
        Replicates worked on at once.
    codes : Tensor or None
        Cluster of each row.
    clusters : int
    freq : Tensor or None
        Frequency weights.
    fitted, scale : Tensor or None
        For residuals: fitted values and what residuals are multiplied by.
    residuals : Tensor or None
    """

    results: Results
    kind: str
    base: Replicates
    batch: int
    codes: Tensor | None = None
    clusters: int = 0
    freq: Tensor | None = None
    fitted: Tensor | None = None
    residuals: Tensor | None = None

    @classmethod
    def of(cls, results: Results, kind: str, groups: Any) -> _Plan:
        likelihood, model = results.likelihood, results.model
        design, compute = likelihood.design, likelihood.compute
        if design.absorbed or design.random:
            raise ModelError(
                f"the bootstrap of {results.model_name} is not supported: its effects "
                "are not among its columns. Write them as C(factor), or use "
                "cluster-robust standard errors."
            )
        columns = sum(design.matrices[m].k for m in model.layout)
        compute.require(
            design.n * columns,
            f"the {columns} dense columns of {design.n:,} rows",
            "raise the budget with set_default_device(memory=...).",
        )
        dense = [m.to_dense(compute) for m in design.matrices]

        def tensor(values: np.ndarray | None) -> Tensor | None:
            if values is None:
                return None
            return compute.tensor(np.array(values, dtype=np.float64))

        y = tensor(design.y)
        assert y is not None
        base = Replicates(
            _point_of(model), tuple(dense[m] for m in model.layout), y,
            tensor(design.weights), tensor(design.offset), tensor(design.size), compute,
        )  # fmt: skip
        fits = max(1, int(compute.memory or 0) // (48 * 8 * design.n))
        extra: dict[str, Any] = {"freq": tensor(design.freq_weights)}
        if kind == "cluster":
            grouping = design.grouping(groups)
            if len(grouping) < 2:
                raise ModelError("the cluster bootstrap needs two clusters or more.")
            extra["codes"] = torch.from_numpy(grouping.codes.astype(np.int64))
            extra["clusters"] = len(grouping)
        elif kind in ("parametric", "residual"):
            extra |= _fitted(results, kind)
        return cls(results, kind, base, min(int(fits), 1000), **extra)

    def draw(self, count: int, generator: Generator) -> Replicates:
        """Return `count` replicates."""
        if self.kind in ("pairs", "cluster"):
            return replace(self.base, weights=self._counts(count, generator))
        if self.kind == "residual":
            return replace(self.base, y=self._resampled(count, generator))
        return replace(self.base, y=self._sampled(count, generator))

    def _counts(self, count: int, generator: Generator) -> Tensor:
        """How often each row is in each replicate, times its weights; (count, n)."""
        n = len(self.base.y)
        if self.kind == "cluster":
            assert self.codes is not None
            drawn = tallies(self.clusters, self.clusters, count, generator)
            drawn = drawn[:, self.codes]
            if self.freq is not None:
                drawn = drawn * self.freq.cpu()
        elif self.freq is None:
            drawn = tallies(n, n, count, generator)
        else:
            ends = self.freq.cpu().cumsum(0)
            total = int(ends[-1])
            at = torch.randint(total, (count, total), generator=generator)
            rows = torch.searchsorted(ends, at.double(), right=True)
            drawn = torch.zeros(count, n, dtype=torch.float64)
            drawn.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        drawn = drawn.to(self.base.y)
        return drawn if self.base.weights is None else drawn * self.base.weights

    def _resampled(self, count: int, generator: Generator) -> Tensor:
        assert self.fitted is not None and self.residuals is not None
        n = len(self.fitted)
        at = torch.randint(n, (count, n), generator=generator)
        drawn = self.residuals[at]
        if self.base.weights is not None:
            drawn = drawn / self.base.weights.cpu().sqrt()
        return (self.fitted + drawn).to(self.base.y)

    def _sampled(self, count: int, generator: Generator) -> Tensor:
        """Responses from the fitted distribution, shape (count, n)."""
        model: Any = self.results.model
        likelihood, x = self.results.likelihood, self.results.fit_info.x
        etas = likelihood.map(
            x, lambda b, e: torch.stack(e, dim=1), len(model.layout)
        ).T
        if hasattr(model, "probabilities"):
            cut = model.probabilities(*etas).cumsum(1)
            u = torch.rand(count, len(cut), dtype=torch.float64, generator=generator)
            codes = (u[:, :, None] > cut[:, :-1]).sum(2)
            return codes.to(self.base.y)
        options: dict[str, Any] = {}
        if self.base.size is not None:
            options["size"] = self.base.size.cpu().expand(count, -1).reshape(-1)
        family = model.family
        if getattr(family, "scale", "one") == "estimated":
            w = self.base.weights
            phi = torch.full((etas.shape[1],), self.results.scale, dtype=torch.float64)
            phi = phi if w is None else phi / w.cpu()
            options["scale"] = phi.expand(count, -1).reshape(-1)
        long = [e.expand(count, -1).reshape(-1) for e in etas]
        drawn = family.sample(*long, generator=generator, **options)
        return drawn.reshape(count, -1).to(self.base.y)

    def acceleration(self, gradient: np.ndarray) -> np.ndarray | None:
        """Skewness of the influence of rows or clusters, over six.

        Parameters
        ----------
        gradient : ndarray, shape (q, p)
            Of the statistics in the parameters.
        """
        if self.kind not in ("pairs", "cluster"):
            return None
        results = self.results
        x = results.fit_info.x
        scores = results.likelihood.scores(x)
        f = torch.ones(len(scores), dtype=torch.float64)
        if self.kind == "cluster":
            assert self.codes is not None
            sums = torch.zeros(self.clusters, scores.shape[1], dtype=torch.float64)
            scores = sums.index_add_(0, self.codes, scores)
            f = torch.ones(self.clusters, dtype=torch.float64)
        elif self.freq is not None:
            f = self.freq.cpu().double()
            scores = scores / f[:, None]
        scale = results.model.parameters.scale(x)
        change = torch.from_numpy(np.asarray(gradient)) @ (
            scale[:, None] * _bread(results)
        )
        influence = scores @ change.T
        return skewed(influence, f)


def skewed(influence: Tensor, f: Tensor | None = None) -> np.ndarray:
    """Skewness of the influence of rows, units or clusters (m, q), over six.

    `f`, (m,), says how often each is there; by default once.
    """
    f = torch.ones(len(influence), dtype=torch.float64) if f is None else f
    cubes = (f[:, None] * influence**3).sum(0)
    squares = (f[:, None] * influence**2).sum(0)
    # What nothing influences (a parameter at the edge of its range) has none.
    return torch.nan_to_num(cubes / (6 * squares**1.5), nan=0.0).numpy()


def _bread(results: Results) -> Tensor:
    """Inverse information, zero for parameters at the edge of their range."""
    return torch.nan_to_num(results.fit_info.bread)


def tallies(levels: int, draws: int, count: int, generator: Generator) -> Tensor:
    """Draw counts of `draws` draws among levels of equal chance; (count, levels)."""
    at = torch.randint(levels, (count, draws), generator=generator)
    out = torch.zeros(count, levels, dtype=torch.float64)
    return out.scatter_add_(1, at, torch.ones_like(at, dtype=torch.float64))


def _fitted(results: Results, kind: str) -> dict[str, Any]:
    """Check that responses can be drawn, and prepare residuals."""
    design = results.likelihood.design
    if design.freq_weights is not None:
        raise ModelError(
            f"the {kind} bootstrap draws a response for each row, and a row with a "
            "frequency weight is several: repeat the rows."
        )
    if kind == "parametric":
        family: Any = results.model.family
        free = getattr(family, "scale", "one") == "estimated"
        if design.weights is not None and not free:
            raise ModelError(
                f"{results.model_name} with precision weights is no distribution to "
                "draw from; use kind='pairs' or 'cluster'."
            )
        if not getattr(family, "has_likelihood", True):
            raise ModelError(
                f"{family.name} is a quasi-likelihood, no distribution to draw from; "
                "use kind='pairs' or 'cluster'."
            )
        return {}
    if "ssr" not in results.fit_info.facts:
        raise ModelError(
            "the residual bootstrap is for least squares; use kind='parametric'."
        )
    linear: Any = results
    h = results.likelihood.leverages(results.fit_info.x, results.fit_info.bread).numpy()
    modified = linear.wresid.to_numpy() / np.sqrt(np.maximum(1 - h, 1e-10))
    return {
        "fitted": torch.from_numpy(results.fittedvalues.to_numpy().copy()),
        "residuals": torch.from_numpy(modified - modified.mean()),
    }


def _point_of(model: Any) -> PointFunction:
    """Point-wise derivatives that may be given rows of many replicates.

    A model's own may take for granted that a parameter is one number in all rows, which
    it is not here; those of GLMs and of categories do not.
    """
    if isinstance(model.family, ExponentialFamily) or hasattr(model, "probabilities"):
        return model.point
    return point_of_family(model.family)
