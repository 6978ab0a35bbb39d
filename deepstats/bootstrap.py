"""The bootstrap, and simulated fits: many replicates as one tensor.

A replicate is a row of weights, or of responses, on the same columns. Linear predictors
of all replicates are one matrix product, their information matrices another (with the
products of columns), and Newton's steps are solved as a batch; rows and replicates are
cut into pieces that fit the memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from .compute import Compute, default_compute
from .design import Batch
from .errors import ConvergenceWarning, ModelError
from .families import ExponentialFamily, Family, NegativeBinomial, get_family
from .families.special import relative_log1p
from .likelihood import Point, exponential_point, pointwise

if TYPE_CHECKING:
    from .results import Results

__all__ = [
    "BatchOptimum",
    "BootstrapResults",
    "Replicates",
    "SimulatedFits",
    "batched_newton",
    "bootstrap",
    "simulate_fits",
]

_KINDS = ("pairs", "cluster", "parametric", "residual")
_METHODS = ("percentile", "basic", "normal", "bca")
# Elements of one piece of the linear predictors on a CPU: it stays near the cache.
_PIECE = 1 << 18

# A replicate's variance, over that of the fit, from which it has no maximum.
_BEYOND = 1e5

PointFunction = Callable[[Batch, tuple[Tensor, ...], int, str], Point]


# -- many likelihoods on the same columns ---------------------------------------------


@dataclass(frozen=True, eq=False)
class Replicates:
    """Likelihoods of R replicates: the same columns, other responses or weights.

    Attributes
    ----------
    point : callable
        Point-wise log-density and derivatives, as ``RegressionModel.point``.
    X : tuple of Tensor, each (n, k)
        Columns of each linear predictor.
    y : Tensor, shape (n,) or (R, n)
    weights : Tensor, shape (n,) or (R, n), optional
    offset : Tensor, shape (n,), optional
        Of the first predictor.
    size : Tensor, shape (n,), optional
        Trials.
    compute : Compute
    """

    point: PointFunction
    X: tuple[Tensor, ...]
    y: Tensor
    weights: Tensor | None = None
    offset: Tensor | None = None
    size: Tensor | None = None
    compute: Compute = field(default_factory=default_compute)

    def points(self, x: Tensor, which: Tensor, order: int, information: str) -> Any:
        """Yield rows, point-wise derivatives (A, rows) and weights, piece by piece."""
        parts = torch.split(x, [X.shape[1] for X in self.X], dim=1)
        n, on_gpu = self.X[0].shape[0], self.compute.on_gpu
        limit = int(self.compute.memory or 0) // 400 if on_gpu else _PIECE
        rows = max(64, limit // max(len(which), 1))
        for start in range(0, n, rows):
            at = slice(start, min(start + rows, n))
            etas = [b @ X[at].T for b, X in zip(parts, self.X, strict=True)]
            if self.offset is not None:
                etas[0] = etas[0] + self.offset[at]
            found = self._point(at, tuple(etas), which, order, information)
            yield at, found, self._weight(at, which)

    def _point(
        self,
        at: slice,
        etas: tuple[Tensor, ...],
        which: Tensor,
        order: int,
        information: str,
    ) -> Point:
        """Differentiate at the rows of replicates, to `point` one long column."""
        shape = etas[0].shape
        y = self.y[at] if self.y.ndim == 1 else self.y[which][:, at]
        size = None if self.size is None else self.size[at].expand(shape).reshape(-1)
        long = Batch(
            y.expand(shape).reshape(-1),
            (),
            (None,),
            None,
            None,
            size,
            slice(0, y.numel()),
        )
        found = self.point(long, tuple(e.reshape(-1) for e in etas), order, information)
        return Point(
            found.value.reshape(shape),
            tuple(u.reshape(shape) for u in found.first),
            {key: d.reshape(shape) for key, d in found.second.items()},
        )

    def _weight(self, at: slice, which: Tensor) -> Tensor | None:
        if self.weights is None or self.weights.ndim == 1:
            return None if self.weights is None else self.weights[at]
        return self.weights[which][:, at]

    def derivatives(
        self, x: Tensor, which: Tensor, information: str = "observed"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (A,), gradients (A, p) and information (A, p, p) of some replicates.

        Parameters
        ----------
        x : Tensor, shape (A, p)
        which : Tensor of int, shape (A,)
            Which replicates these are.
        information : {"observed", "expected"}
        """
        sizes = [X.shape[1] for X in self.X]
        value = x.new_zeros(len(which))
        gradients = [x.new_zeros(len(which), k) for k in sizes]
        pairs: dict[tuple[int, int], Tensor] = {}
        for at, found, w in self.points(x, which, 2, information):
            value += (found.value if w is None else found.value * w).sum(1)
            for j, u in enumerate(found.first):
                gradients[j] += (u if w is None else u * w) @ self.X[j][at]
            for (j, k), d in found.second.items():
                block = (d if w is None else d * w) @ self._products(j, k, at)
                pairs[j, k] = pairs[j, k] + block if (j, k) in pairs else block
        return value, torch.cat(gradients, dim=1), self._assemble(pairs, x)

    def meat(self, x: Tensor, which: Tensor, inverse: Tensor, power: float) -> Tensor:
        """Score times score', over ``(1 - h)**power``, summed; shape (A, p, p)."""
        sizes = [X.shape[1] for X in self.X]
        pairs: dict[tuple[int, int], Tensor] = {}
        for at, found, w in self.points(x, which, 2, "expected"):
            scale = (
                torch.ones_like(found.value) if w is None else w.expand_as(found.value)
            )
            if power:
                h = self._leverages(found, scale, at, inverse, sizes)
                scale = scale * (1 - h).pow(-power / 2)
            for j, u in enumerate(found.first):
                for k in range(j, len(found.first)):
                    block = (u * found.first[k] * scale**2) @ self._products(j, k, at)
                    pairs[j, k] = pairs[j, k] + block if (j, k) in pairs else block
        return self._assemble(pairs, x)

    def _leverages(
        self, found: Point, w: Tensor, at: slice, inverse: Tensor, sizes: list[int]
    ) -> Tensor:
        starts = np.cumsum([0, *sizes])
        total = torch.zeros_like(w)
        for (j, k), d in found.second.items():
            rows, columns = (slice(starts[i], starts[i + 1]) for i in (j, k))
            middle = inverse[:, rows, columns].reshape(len(w), -1)
            h = d * (middle @ self._products(j, k, at).T)
            total += h if j == k else 2 * h
        return total * w

    def _products(self, j: int, k: int, at: slice) -> Tensor:
        """Products of every two columns of two predictors, shape (rows, k_j k_k)."""
        one, other = self.X[j][at], self.X[k][at]
        return (one[:, :, None] * other[:, None, :]).reshape(len(one), -1)

    def _assemble(self, pairs: dict[tuple[int, int], Tensor], x: Tensor) -> Tensor:
        sizes = [X.shape[1] for X in self.X]
        starts = np.cumsum([0, *sizes])
        out = x.new_zeros(len(x), sum(sizes), sum(sizes))
        for (j, k), block in pairs.items():
            block = block.reshape(len(x), sizes[j], sizes[k])
            rows, columns = (slice(starts[i], starts[i + 1]) for i in (j, k))
            out[:, rows, columns] = block
            out[:, columns, rows] = block.transpose(1, 2)
        return out


# -- Newton's method, all replicates at once ------------------------------------------


@dataclass(frozen=True, eq=False)
class BatchOptimum:
    """Where every replicate's search stopped.

    Attributes
    ----------
    x : Tensor, shape (R, p)
    value : Tensor, shape (R,)
    information : Tensor, shape (R, p, p)
    converged : Tensor of bool, shape (R,)
    free : Tensor of bool, shape (R, p)
        Which parameters are not at their bound.
    iterations : int
    """

    x: Tensor
    value: Tensor
    information: Tensor
    converged: Tensor
    free: Tensor
    iterations: int


def batched_newton(
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    start: Tensor,
    *,
    lower: Tensor | None = None,
    max_iterations: int = 50,
    tolerance: float = 1e-7,
) -> BatchOptimum:
    """Maximise many smooth functions of as many vectors, each by its own Newton steps.

    The rules are those of `optimize.newton`: steps are halved until the value does not
    fall, the criterion is the Newton decrement, and the last short step is taken.
    Replicates that are done leave the batch.

    Parameters
    ----------
    objective : callable
        From points (A, p) and the numbers (A,) of the replicates they belong to, to
        values (A,), gradients (A, p) and information matrices (A, p, p): for example
        ``Replicates.derivatives``.
    start : Tensor, shape (R, p)
    lower : Tensor, shape (p,), optional
        Parameters that pass their bound are fixed there.
    max_iterations : int, default 50
    tolerance : float, default 1e-7
        On the Newton decrement, in standard errors.

    Returns
    -------
    BatchOptimum
    """
    count = len(start)
    x = start.clone()
    active = torch.arange(count, device=start.device)
    value, gradient, information = objective(x, active)
    free = torch.ones_like(x, dtype=torch.bool)
    converged = torch.zeros(count, dtype=torch.bool, device=start.device)
    iterations = 0
    while len(active) and iterations < max_iterations:
        iterations += 1
        step = _steps(information[active], gradient[active], free[active])
        slope = (gradient[active] * step).sum(1)
        usable = torch.isfinite(slope) & torch.isfinite(value[active])
        active, step, slope = active[usable], step[usable], slope[usable]
        done = slope.clamp_min(0).sqrt() < tolerance
        x[active[done]] += step[done]
        value[active[done]] += slope[done] / 2
        converged[active[done]] = True
        active, step, slope = active[~done], step[~done], slope[~done]
        if not len(active):
            break
        failed = _search(
            objective, x, (value, gradient, information), active, step, slope
        )
        # Rounding: a short step is left and the value cannot rise.
        converged[active[failed & (slope < 1e-6)]] = True
        active = active[~failed]
        if lower is not None and len(active):
            passed = free[active] & (x[active] < lower)
            moved = passed.any(1)
            if bool(moved.any()):
                x[active] = torch.where(passed, lower.to(x), x[active])
                free[active] &= ~passed
                again = active[moved]
                for old, new in zip(
                    (value, gradient, information),
                    objective(x[again], again),
                    strict=True,
                ):
                    old[again] = new
    return BatchOptimum(x, value, information, converged, free, iterations)


def _steps(information: Tensor, gradient: Tensor, free: Tensor) -> Tensor:
    """Newton steps, each in the parameters that are free."""
    keep = free[:, :, None] & free[:, None, :]
    eye = torch.eye(free.shape[1], dtype=gradient.dtype, device=gradient.device)
    information = torch.where(keep, information, eye)
    gradient = torch.where(free, gradient, 0.0)
    return (_inverses(information) @ gradient[:, :, None])[:, :, 0]


def _inverses(information: Tensor) -> Tensor:
    """Inverses of many information matrices, made positive definite if need be."""
    d = information.diagonal(dim1=1, dim2=2).abs().clamp_min(1e-300).rsqrt()
    scaled = information * d[:, :, None] * d[:, None, :]
    finite = torch.isfinite(scaled).all(dim=2).all(dim=1)
    eye = torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device)
    scaled = torch.where(finite[:, None, None], scaled, eye)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    bad = failed > 0
    factor[bad] = eye
    inverse = torch.cholesky_inverse(factor)
    if bool(bad.any()):
        values, vectors = torch.linalg.eigh(scaled[bad])
        values = values.abs()
        values = torch.maximum(values, 1e-8 * values.amax(dim=1, keepdim=True))
        inverse[bad] = (vectors / values[:, None, :]) @ vectors.transpose(1, 2)
    inverse = torch.where(finite[:, None, None], inverse, torch.nan)
    return inverse * d[:, :, None] * d[:, None, :]


def _search(
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    x: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    active: Tensor,
    step: Tensor,
    slope: Tensor,
) -> Tensor:
    """Take steps, halved where the value falls; return which replicates found none."""
    left = torch.arange(len(active), device=active.device)
    length = 1.0
    value = state[0]
    for _ in range(30):
        which = active[left]
        trial = x[which] + length * step[left]
        found = objective(trial, which)
        slack = 1e-13 * (1 + value[which].abs())
        rises = found[0] >= value[which] + 1e-4 * length * slope[left] - slack
        for part in found:
            rises &= torch.isfinite(part).reshape(len(which), -1).all(dim=1)
        x[which[rises]] = trial[rises]
        for old, new in zip(state, found, strict=True):
            old[which[rises]] = new[rises]
        left = left[~rises]
        if not len(left):
            break
        length /= 2
    failed = torch.zeros(len(active), dtype=torch.bool, device=active.device)
    failed[left] = True
    return failed


# -- the bootstrap of a fit -----------------------------------------------------------


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
        from scipy import special

        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, not {method!r}.")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
        if method == "normal":
            half = float(special.ndtri(1 - alpha / 2)) * self.bse
            return pd.DataFrame({0: self.estimate - half, 1: self.estimate + half})
        levels = np.array([alpha / 2, 1 - alpha / 2])
        values = self.params.to_numpy()
        if method == "bca":
            found = self._bca(values, levels)
        else:
            found = np.quantile(values, levels, axis=0)
            if method == "basic":
                found = 2 * self.estimate.to_numpy() - found[::-1]
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
        interval = self.conf_int(alpha, method)
        return pd.DataFrame(
            {"estimate": self.estimate, "bias": self.bias, "std_error": self.bse,
             "conf_low": interval[0], "conf_high": interval[1]}
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"<{self.kind} bootstrap: {len(self.params)} of {self.replications} "
            f"replicates>\n{self.summary_frame()}"
        )


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
    return _finish(results, plan, frame, replications, statistic)


def _unbounded(results: Results, found: BatchOptimum) -> Tensor:
    """Replicates whose likelihood has no maximum: variances beyond all comparison."""
    usual = torch.nan_to_num(results.fit_info.bread.diagonal(), nan=torch.inf)
    keep = found.free[:, :, None] & found.free[:, None, :]
    eye = torch.eye(found.free.shape[1]).to(found.x)
    variances = _inverses(torch.where(keep, found.information, eye))
    variances = variances.diagonal(dim1=1, dim2=2)
    return ((variances > _BEYOND * usual.to(found.x)) & found.free).any(dim=1)


def _finish(
    results: Results,
    plan: _Plan,
    frame: pd.DataFrame,
    replications: int,
    statistic: Callable[[pd.Series], Any] | None,
) -> BootstrapResults:
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
    acceleration = plan.acceleration(np.eye(len(results.names)))
    estimate: pd.Series = results.params
    if statistic is not None:
        estimate = _as_series(statistic(results.params))
        gradient = _gradient(statistic, results)
        acceleration = plan.acceleration(gradient)
        rows = [_as_series(statistic(row)) for _, row in frame.iterrows()]
        frame = pd.DataFrame(rows).reset_index(drop=True)
    if acceleration is not None:
        acceleration = pd.Series(acceleration, index=estimate.index)
    return BootstrapResults(
        frame.reset_index(drop=True), estimate, plan.kind, replications, failed,
        acceleration,
    )  # fmt: skip


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
            drawn = _tallies(self.clusters, self.clusters, count, generator)
            drawn = drawn[:, self.codes]
            if self.freq is not None:
                drawn = drawn * self.freq.cpu()
        elif self.freq is None:
            drawn = _tallies(n, n, count, generator)
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
        cubes = (f[:, None] * influence**3).sum(0)
        squares = (f[:, None] * influence**2).sum(0)
        return (cubes / (6 * squares.clamp_min(1e-300) ** 1.5)).numpy()


def _bread(results: Results) -> Tensor:
    """Inverse information, zero for parameters at the edge of their range."""
    return torch.nan_to_num(results.fit_info.bread)


def _tallies(levels: int, draws: int, count: int, generator: Generator) -> Tensor:
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
    return _point_of_family(model.family)


def _point_of_family(family: Family) -> PointFunction:
    links = [link.name for link in family.links]
    fast = (
        isinstance(family, NegativeBinomial)
        and family.loglike == "nb2"
        and links == ["log", "log"]
    )

    def point(
        batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        if fast and order > 1 and (found := _nb2_point(batch.y, *etas)) is not None:
            return found
        options = {} if batch.size is None else {"size": batch.size}
        y = batch.y
        return pointwise(lambda *e: family.log_prob(y, *e, **options), etas, order)

    return point


def _nb2_point(y: Tensor, eta: Tensor, theta: Tensor) -> Point | None:
    """NB2 log-density in log mu and log alpha, alpha constant over runs of rows.

    Sums over j < y of functions of alpha j come from a table for each run: no gamma
    functions. None where the table would be larger than the rows.
    """
    values, run = torch.unique_consecutive(theta, return_inverse=True)
    top = int(y.max())
    if len(values) * (top + 1) > 4 * len(y) + 10_000:
        return None
    alpha = values.exp()[:, None]
    j = alpha * torch.arange(top, dtype=y.dtype, device=y.device)
    share = j / (1 + j)
    place = run * (top + 1) + y.long()

    def below(terms: Tensor) -> Tensor:
        """Sum of the terms before y."""
        return torch.nn.functional.pad(terms.cumsum(1), (1, 0)).reshape(-1)[place]

    mu = eta.exp()
    x = alpha[:, 0][run] * mu
    rel, shrink = relative_log1p(x), 1 / (1 + x)
    part, resid = x * shrink, (y - mu) * shrink
    value = below(torch.log1p(j)) - torch.lgamma(y + 1)
    value = value + y * eta - (y * x + mu) * (1 + rel)
    first = (resid, below(share) + mu * rel - (y - mu) * part)
    second = {
        (0, 0): (mu + y * x) * shrink * shrink,
        (0, 1): resid * part,
        (1, 1): mu * (part + rel) + resid * part - below(share * (1 - share)),
    }
    return Point(value, first, second)


# -- simulation studies ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SimulatedFits:
    """Fits of one model to many simulated responses.

    Attributes
    ----------
    params, bse : Tensor, shape (R, p)
        Coefficients of all linear predictors in turn (NB2: ..., log alpha), and their
        standard errors.
    converged : Tensor of bool, shape (R,)
    scale : Tensor, shape (R,)
        Dispersions; ones where the family has none.
    df_resid : int
    """

    params: Tensor
    bse: Tensor
    converged: Tensor
    scale: Tensor
    df_resid: int


def simulate_fits(
    family: str | Family,
    X: Tensor | np.ndarray | Sequence[Any],
    Y: Tensor | np.ndarray,
    *,
    cov_type: str = "nonrobust",
    information: str = "observed",
    weights: Any = None,
    offset: Any = None,
    size: Any = None,
    compute: Compute | None = None,
) -> SimulatedFits:
    """Fit one model to many responses on the same columns: for simulation studies.

    Parameters
    ----------
    family : str or Family
        "gaussian" is least squares. Families with further parameters ("nb2") get a
        constant for each, unless `X` says more.
    X : array, shape (n, k), or sequence of such
        Columns, with a constant where one is wanted; several for several predictors.
    Y : array, shape (R, n)
        One row for each data set.
    cov_type : {"nonrobust", "HC0", "HC1", "HC2", "HC3"}, default "nonrobust"
    information : {"observed", "expected"}, default "observed"
        What "nonrobust" inverts; "expected" for exponential families only. HC
        sandwiches use the same bread.
    weights, offset, size : array, shape (n,), optional
    compute : Compute, optional

    Returns
    -------
    SimulatedFits

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = np.column_stack([np.ones(200), rng.normal(size=200)])
    >>> Y = rng.poisson(np.exp(X @ [0.5, 0.3]), size=(100, 200))
    >>> fits = simulate_fits("poisson", X, Y)
    >>> fits.params.shape, bool(fits.converged.all())
    (torch.Size([100, 2]), True)
    """
    powers = {"nonrobust": None, "HC0": 0, "HC1": 0, "HC2": 1, "HC3": 2}
    if cov_type not in powers:
        raise ValueError(f"cov_type must be one of {tuple(powers)}, not {cov_type!r}.")
    found_family = get_family(family) if isinstance(family, str) else family
    if not isinstance(found_family, Family):
        raise ValueError(f"{family!r} is a model of categories, which this cannot do.")
    family = found_family
    compute = compute or default_compute()
    problem = _problem(family, X, Y, weights, offset, size, compute)
    start = _starts(family, problem)
    found = batched_newton(
        lambda x, which: problem.derivatives(x, which, "observed"), start
    )
    everything = torch.arange(len(start), device=start.device)
    simple = isinstance(family, ExponentialFamily)
    if information not in ("observed", "expected") or (
        information == "expected" and not simple
    ):
        raise ValueError(
            f"information={information!r} is not known for {family.name}; use "
            "'observed'."
        )
    _, _, matrix = problem.derivatives(found.x, everything, information)
    bread = _inverses(matrix)
    df = problem.X[0].shape[0] - start.shape[1]
    scale = _scales(family, problem, found.x, everything, df)
    power = powers[cov_type]
    if power is None:
        cov = bread * scale[:, None, None]
    else:
        if power and not simple:
            raise ValueError(f"{cov_type} needs leverages: exponential families only.")
        inner = bread
        if power and information == "observed":
            # A leverage is of the expected information, whatever the bread is.
            expected = problem.derivatives(found.x, everything, "expected")[2]
            inner = _inverses(expected)
        middle = problem.meat(found.x, everything, inner, power)
        cov = bread @ middle @ bread
        if cov_type == "HC1":
            cov = cov * (problem.X[0].shape[0] / df)
    bse = cov.diagonal(dim1=1, dim2=2).sqrt()
    return SimulatedFits(found.x, bse, found.converged, scale, df)


def _problem(
    family: Family,
    X: Any,
    Y: Any,
    weights: Any,
    offset: Any,
    size: Any,
    compute: Compute,
) -> Replicates:
    def tensor(values: Any) -> Tensor | None:
        return None if values is None else compute.tensor(values)

    given = list(X) if isinstance(X, list | tuple) else [X]
    columns = [compute.tensor(x) for x in given]
    n = columns[0].shape[0]
    columns += [columns[0].new_ones(n, 1)] * (len(family.predictors) - len(columns))
    responses = compute.tensor(Y)
    if (
        responses.ndim != 2
        or responses.shape[1] != n
        or any(len(c) != n for c in columns)
    ):
        raise ValueError(
            f"Y must have shape (replicates, {n}) and every X {n} rows; got "
            f"{tuple(responses.shape)} and {[tuple(c.shape) for c in columns]}."
        )
    return Replicates(
        _simulation_point(family), tuple(columns), responses, tensor(weights),
        tensor(offset), tensor(size), compute,
    )  # fmt: skip


def _simulation_point(family: Family) -> PointFunction:
    if isinstance(family, ExponentialFamily):
        return partial(exponential_point, family)
    return _point_of_family(family)


def _starts(family: Family, problem: Replicates) -> Tensor:
    """Return starts (R, p): the first step of scoring, or constants by moments."""
    sizes = [x.shape[1] for x in problem.X]
    first, y = problem.X[0], problem.y
    link = family.links[0]
    out = y.new_zeros(len(y), sum(sizes))
    if isinstance(family, ExponentialFamily):
        size = problem.size
        mu = (
            family.start_mu(y)
            if size is None
            else family.start_mu(y, size.expand_as(y))
        )
        eta = link(mu)
        w = link.derivative(eta) ** 2 / family.unit_variance(mu)
    else:
        mean = y.mean(dim=1, keepdim=True)
        mu = (y + mean) / 2
        eta, w = link(mu), torch.ones_like(y)
        values = [family.start(row.cpu()) for row in y[:1]]
        for j, value in enumerate(values[0][1:], start=1):
            out[:, sum(sizes[:j])] = value
    for extra in (problem.weights, problem.size):
        w = w if extra is None else w * extra
    z = eta if problem.offset is None else eta - problem.offset
    products = (first[:, :, None] * first[:, None, :]).reshape(len(first), -1)
    gram = (w @ products).reshape(len(y), sizes[0], sizes[0])
    moment = (w * z) @ first
    out[:, : sizes[0]] = (_inverses(gram) @ moment[:, :, None])[:, :, 0]
    return out


def _scales(
    family: Family, problem: Replicates, x: Tensor, which: Tensor, df: int
) -> Tensor:
    """Pearson's dispersions, where the family has one."""
    out = x.new_ones(len(which))
    if getattr(family, "scale", "one") == "one":
        return out
    assert isinstance(family, ExponentialFamily)
    n = problem.X[0].shape[0]
    out.zero_()
    rows = max(64, _PIECE // len(which))
    for start in range(0, n, rows):
        at = slice(start, min(start + rows, n))
        eta = x @ problem.X[0][at].T
        eta = eta if problem.offset is None else eta + problem.offset[at]
        mu = family.mean(eta)
        value = (problem.y[:, at] - mu) ** 2 / family.unit_variance(mu)
        for w in (problem.weights, problem.size):
            value = value if w is None else value * w[at]
        out += value.sum(1)
    return out / df
