"""Many fits of one model as one tensor: Newton's method on replicates, simulations.

A replicate is a row of weights, or of responses, on the same columns. Linear predictors
of all replicates are one matrix product, their information matrices another (with the
products of columns), and Newton's steps are solved as a batch; rows and replicates are
cut into pieces that fit the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compute import Compute, default_compute
from .design import Batch
from .families import ExponentialFamily, Family, NegativeBinomial, get_family
from .families.special import relative_log1p
from .likelihood import Point, exponential_point, pointwise

__all__ = [
    "BatchOptimum",
    "PointFunction",
    "Replicates",
    "SimulatedFits",
    "batched_newton",
    "inverses",
    "point_of_family",
    "simulate_fits",
    "solves",
]

# Elements of one piece of the linear predictors on a CPU: it stays near the cache.
_PIECE = 1 << 18
# Powers of one less the leverage that divide squared scores.
_POWERS = {"nonrobust": None, "HC0": 0, "HC1": 0, "HC2": 1, "HC3": 2}

PointFunction = Callable[[Batch, tuple[Tensor, ...], int, str], Point]


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


# -- Newton's method, all replicates at once -------------------------------------------


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
    return solves(information, gradient)


def solves(information: Tensor, gradient: Tensor) -> Tensor:
    """Solve for many steps (A, p), matrices made positive definite if need be."""
    d = information.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
    scaled = information * d[:, :, None] * d[:, None, :]
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if bool(failed.any()):
        return (inverses(information) @ gradient[:, :, None])[:, :, 0]
    return torch.cholesky_solve((gradient * d)[:, :, None], factor)[:, :, 0] * d


def inverses(information: Tensor) -> Tensor:
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


# -- simulation studies ----------------------------------------------------------------


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
    if cov_type not in _POWERS:
        raise ValueError(f"cov_type must be one of {tuple(_POWERS)}, not {cov_type!r}.")
    found_family = get_family(family) if isinstance(family, str) else family
    if not isinstance(found_family, Family):
        raise ValueError(f"{family!r} is a model of categories, which this cannot do.")
    family = found_family
    _check_kinds(family, cov_type, information)
    problem = _problem(
        family, X, Y, weights, offset, size, compute or default_compute()
    )
    start = _starts(family, problem)
    found = batched_newton(
        lambda x, which: problem.derivatives(x, which, "observed"), start
    )
    df = problem.X[0].shape[0] - start.shape[1]
    everything = torch.arange(len(start), device=start.device)
    scale = _scales(family, problem, found.x, everything, df)
    cov = _covariances(problem, found.x, scale, df, cov_type, information)
    bse = cov.diagonal(dim1=1, dim2=2).sqrt()
    return SimulatedFits(found.x, bse, found.converged, scale, df)


def _check_kinds(family: Family, cov_type: str, information: str) -> None:
    """Refuse what needs expected information of a family that has none."""
    simple = isinstance(family, ExponentialFamily)
    known = ("observed", "expected") if simple else ("observed",)
    if information not in known:
        raise ValueError(
            f"information={information!r} is not known for {family.name}; use "
            "'observed'."
        )
    if _POWERS[cov_type] and not simple:
        raise ValueError(f"{cov_type} needs leverages: exponential families only.")


def _covariances(
    problem: Replicates,
    x: Tensor,
    scale: Tensor,
    df: int,
    cov_type: str,
    information: str,
) -> Tensor:
    """Covariance matrices at the estimates, shape (R, p, p)."""
    everything = torch.arange(len(x), device=x.device)
    bread = inverses(problem.derivatives(x, everything, information)[2])
    power = _POWERS[cov_type]
    if power is None:
        return bread * scale[:, None, None]
    inner = bread
    if power and information == "observed":
        # A leverage is of the expected information, whatever the bread is.
        inner = inverses(problem.derivatives(x, everything, "expected")[2])
    cov = bread @ problem.meat(x, everything, inner, power) @ bread
    return cov * (problem.X[0].shape[0] / df) if cov_type == "HC1" else cov


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
    return point_of_family(family)


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
    out[:, : sizes[0]] = (inverses(gram) @ moment[:, :, None])[:, :, 0]
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


def point_of_family(family: Family) -> PointFunction:
    """Point-wise derivatives of a family, by autograd where there is no closed form."""
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
