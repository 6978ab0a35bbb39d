"""Value, gradient, information and scores of a model on a design, block by block.

Two routes with one face. A model given by the point-wise log-density of its linear
predictors has scores ``X_j' u_j`` and information ``X_j' diag(d_jl) X_l`` with
``u = d log f / d eta``: cross-products of thin matrices, whatever the family. Any other
model gives the log-likelihood of its units as a function of its parameters, and
torch.func supplies the derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .compute import Compute
from .design import Batch, Design
from .families import ExponentialFamily
from .matrix import Scratch
from .optimize import Derivatives
from .parameters import Parameters

__all__ = [
    "Likelihood",
    "Point",
    "PredictorLikelihood",
    "UnitLikelihood",
    "exponential_point",
    "has_simple_scores",
    "pointwise",
]

Weighting = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """Log-density and its derivatives in the linear predictors, row by row.

    Attributes
    ----------
    value : Tensor, shape (rows,)
    first : tuple of Tensor, each (rows,)
    second : dict of (j, l) with j <= l to Tensor (rows,)
        *Minus* the second derivatives, or their expectations.
    """

    value: Tensor
    first: tuple[Tensor, ...]
    second: dict[tuple[int, int], Tensor]


def pointwise(
    log_prob: Callable[..., Tensor], etas: tuple[Tensor, ...], order: int = 2
) -> Point:
    """Differentiate a point-wise log-density in its linear predictors."""
    etas = tuple(e.detach().requires_grad_() for e in etas)
    with torch.enable_grad():
        value = log_prob(*etas)
        first = torch.autograd.grad(value.sum(), etas, create_graph=order > 1)
        second = {}
        for j, slope in enumerate(first if order > 1 else ()):
            if not slope.requires_grad:
                found: tuple = (None,) * (len(etas) - j)
            else:
                found = torch.autograd.grad(
                    slope.sum(), etas[j:], retain_graph=True, allow_unused=True
                )
            for step, h in enumerate(found):
                if h is not None:
                    second[j, j + step] = -h.detach()
    return Point(value.detach(), tuple(g.detach() for g in first), second)


def exponential_point(
    family: ExponentialFamily,
    batch: Batch,
    etas: tuple[Tensor, ...],
    order: int,
    information: str,
) -> Point:
    """Quasi-log-likelihood of an exponential family and its derivatives.

    References
    ----------
    McCullagh & Nelder (1989), Generalized Linear Models, section 2.5.
    """
    (eta,), y, link = etas, batch.y, family.link
    mu = link.inverse(eta)
    value = family.kernel(y, eta)
    if has_simple_scores(family):
        first, weight = y - mu, family.unit_variance(mu)
    else:
        slope, V = link.derivative(eta), family.unit_variance(mu)
        first, weight = (y - mu) * slope / V, family.expected_weight(eta)
        if order > 1 and information == "observed":
            curve = link.second_derivative(eta) / V
            curve = curve - slope**2 * family.unit_variance_derivative(mu) / V**2
            weight = weight - (y - mu) * curve
    if batch.size is not None:
        value, first, weight = (t * batch.size for t in (value, first, weight))
    return Point(value, (first,), {(0, 0): weight} if order > 1 else {})


def has_simple_scores(family: ExponentialFamily) -> bool:
    """Whether scores are y - mu, and both informations V: mu' = V at this link.

    That is so at canonical links, but for those of 1 / mu and 1 / mu^2, whose
    derivative is V times a constant.
    """
    names = ("gaussian", "binomial", "poisson", "quasibinomial", "quasipoisson")
    canonical = family.canonical and family.link == family.canonical_link
    return canonical and family.name in names


class Likelihood(Protocol):
    """What inference asks of a likelihood."""

    parameters: Parameters
    design: Design
    compute: Compute

    def derivatives(self, x: Tensor, information: str = "observed") -> Derivatives:
        """Value, gradient and information matrix at `x`."""

    def score_gram(
        self, x: Tensor, leverage: Tensor | None = None, power: int = 0
    ) -> Tensor:
        """Sum over units of score times score', each over ``(1 - h)**power``."""

    def group_scores(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Sum of scores in each group, shape (groups, p)."""

    def group_gram(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Cross-products of the groups' summed scores, shape (p, p)."""

    def scores(self, x: Tensor) -> Tensor:
        """Score of each unit, shape (units, p)."""


class PredictorModel(Protocol):
    """A regression given by a log-density in linear predictors."""

    parameters: Parameters
    layout: tuple[int, ...]

    def point(
        self, batch: Batch, etas: tuple[Tensor, ...], order: int, information: str
    ) -> Point:
        """Log-density and derivatives in the linear predictors."""


class _Worker:
    """What one worker needs: scratch memory, accumulators, room for a cached batch."""

    def __init__(self, scratches: tuple[Scratch, ...], sums: dict) -> None:
        self.scratches, self.sums = scratches, sums


class PredictorLikelihood:
    """Likelihood of a model whose density depends on linear predictors.

    Parameters
    ----------
    model : PredictorModel
        ``layout[j]`` is the number, in `design.matrices`, of predictor j's matrix.
    design : Design
    compute : Compute
    """

    def __init__(self, model: PredictorModel, design: Design, compute: Compute) -> None:
        self.model, self.design, self.compute = model, design, compute
        self.parameters: Parameters = model.parameters
        self.matrices = design.matrices
        self.layout = model.layout
        self.rows = compute.block_rows(design.widest(), design.n)

    # -- sums over blocks ---------------------------------------------------------

    def derivatives(
        self, x: Tensor, information: str = "observed", rows: slice | None = None
    ) -> Derivatives:
        """Value, gradient and information at `x` (of every `rows.step`-th block)."""
        x = x.to(self.compute.device)
        raw = self._raw(x)

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            weight = _weight(batch)
            point = self.model.point(batch, self._etas(batch, raw), 2, information)
            worker.sums["value"] += _dot(point.value, weight)
            for j, u in enumerate(point.first):
                block = batch.blocks[self.layout[j]]
                worker.sums["first", j] += block.moments(_times(u, weight)).double()
            self._add_pairs(batch, point.second, weight, worker)

        total = self._sum(body, second=True)
        gradient = torch.cat(
            [
                self.matrices[m].from_raw(total["first", j])
                for j, m in enumerate(self.layout)
            ]
        )
        return Derivatives(
            float(total["value"]), gradient.cpu(), self._assemble(total).cpu()
        )

    def score_gram(
        self, x: Tensor, leverage: Tensor | None = None, power: int = 0
    ) -> Tensor:
        """Sum of score times score' over rows; see `Likelihood`.

        `leverage` is the inverse information, from which each row's leverage is made.
        """
        x = x.to(self.compute.device)
        raw = self._raw(x)
        middle = None if leverage is None else self.raw_middle(leverage)

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            order = 1 if middle is None else 2
            point = self.model.point(batch, self._etas(batch, raw), order, "expected")
            weight = None if batch.freq_weights is None else batch.freq_weights
            scale = batch.weights
            if middle is not None:
                h = self._leverages(batch, point, middle)
                own = 1.0 - h
                shrink = torch.where(own > 1e-10, own, torch.nan).pow(-power / 2)
                scale = shrink if scale is None else scale * shrink
            first = [_times(u, scale) for u in point.first]
            pairs = {
                (j, k): first[j] * first[k]
                for j in range(len(first))
                for k in range(j, len(first))
            }
            self._add_pairs(batch, pairs, weight, worker)

        return self._assemble(self._sum(body, second=True)).cpu()

    def leverages(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Leverage of each row, shape (n,): x' I^-1 x times its information."""
        raw = self._raw(x.to(self.compute.device))
        middle = self.raw_middle(inverse)
        out = torch.empty(self.design.n, dtype=torch.float64)

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            point = self.model.point(batch, self._etas(batch, raw), 2, "expected")
            out[start:stop] = self._leverages(batch, point, middle).cpu()

        self._sum(body)
        return out

    def group_scores(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Sum of scores in each group; see `Likelihood`."""
        sums = self._group_sums(x, codes, groups)
        parts = zip(self.layout, sums, strict=True)
        return torch.cat(
            [self.matrices[m].from_raw(s.T) for m, s in parts], dim=1
        ).cpu()

    def group_gram(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Cross-products of the groups' scores, shape (p, p)."""
        sums = self._group_sums(x, codes, groups)
        total = {
            ("second", j, k): sums[j] @ sums[k].T
            for j in range(len(sums))
            for k in range(j, len(sums))
        }
        return self._assemble(total).cpu()

    def _group_sums(self, x: Tensor, codes: Tensor, groups: int) -> list[Tensor]:
        """Return sums of scores, (raw coordinates, groups) for each predictor."""
        raw = self._raw(x.to(self.compute.device))
        codes = codes.to(self.compute.device)
        wide = sum(self.matrices[m].raw for m in self.layout)
        self.compute.require(
            groups * wide,
            f"sums of scores in {groups:,} clusters",
            "raise the budget with set_default_device(memory=...).",
        )

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            point = self.model.point(batch, self._etas(batch, raw), 1, "expected")
            weight = _weight(batch)
            for j, u in enumerate(point.first):
                batch.blocks[self.layout[j]].add_group_sums(
                    worker.sums["group", j], codes[start:stop], _times(u, weight)
                )

        total = self._sum(body, groups=groups)
        return [total["group", j] for j in range(len(self.layout))]

    def scores(self, x: Tensor) -> Tensor:
        """Score of each row, shape (n, p)."""
        raw = self._raw(x.to(self.compute.device))
        out = torch.empty(self.design.n, len(self.parameters), dtype=torch.float64)

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            point = self.model.point(batch, self._etas(batch, raw), 1, "expected")
            parts = [
                batch.blocks[self.layout[j]].columns()
                * _times(u, _weight(batch))[:, None]
                for j, u in enumerate(point.first)
            ]
            out[start:stop] = torch.cat(parts, dim=1).cpu()

        self._sum(body)
        return out

    def reduce(
        self, x: Tensor, statistic: Callable[[Batch, tuple[Tensor, ...]], Tensor]
    ) -> Tensor:
        """Sum over blocks of a vector-valued statistic of a batch and its etas."""
        raw = self._raw(x.to(self.compute.device))

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            found = statistic(batch, self._etas(batch, raw)).double()
            worker.sums["sum"] = worker.sums.get("sum", 0.0) + found

        return torch.as_tensor(self._sum(body)["sum"]).cpu()

    def map(
        self,
        x: Tensor,
        function: Callable[[Batch, tuple[Tensor, ...]], Tensor],
        columns: int | None = None,
    ) -> Tensor:
        """Values of a function of a batch and its etas, row by row."""
        raw = self._raw(x.to(self.compute.device))
        shape = (self.design.n,) if columns is None else (self.design.n, columns)
        out = torch.empty(shape, dtype=torch.float64)

        def body(start: int, stop: int, worker: _Worker) -> None:
            batch = self._batch(start, stop, worker)
            out[start:stop] = function(batch, self._etas(batch, raw)).cpu()

        self._sum(body)
        return out

    # -- pieces -------------------------------------------------------------------

    def _batch(self, start: int, stop: int, worker: _Worker) -> Batch:
        return self.design.batch(start, stop, worker.scratches, self.compute)

    def _etas(self, batch: Batch, raw: list[Tensor]) -> tuple[Tensor, ...]:
        out = []
        for j, m in enumerate(self.layout):
            eta = batch.blocks[m].eta(raw[j])
            offset = batch.offset[0] if j == 0 else None
            out.append(eta if offset is None else eta + offset)
        return tuple(out)

    def _raw(self, x: Tensor) -> list[Tensor]:
        sizes = [self.matrices[m].k for m in self.layout]
        parts = torch.split(x.to(self.compute.dtype), sizes)
        return [
            self.matrices[m].to_raw(p) for m, p in zip(self.layout, parts, strict=True)
        ]

    def raw_middle(self, inverse: Tensor) -> dict[tuple[int, int], Tensor]:
        """T_j M_jl T_l' for every pair of predictors."""
        inverse = inverse.to(self.compute.device)
        sizes = [self.matrices[m].k for m in self.layout]
        rows = torch.split(inverse, sizes)
        out = {}
        for j, part in enumerate(rows):
            for k, block in enumerate(torch.split(part, sizes, dim=1)):
                left, right = (
                    self.matrices[self.layout[j]],
                    self.matrices[self.layout[k]],
                )
                block = block if left.plain else left.coding.to(block) @ block
                block = block if right.plain else block @ right.coding.to(block).T
                out[j, k] = block.to(self.compute.dtype)
        return out

    def _leverages(
        self, batch: Batch, point: Point, middle: dict[tuple[int, int], Tensor]
    ) -> Tensor:
        total = torch.zeros_like(point.value)
        for (j, k), d in point.second.items():
            one = batch.blocks[self.layout[j]]
            other = batch.blocks[self.layout[k]]
            h = d * one.bilinear(middle[j, k], other)
            total += h if j == k else 2.0 * h
        return _times(total, batch.weights)

    def _add_pairs(
        self,
        batch: Batch,
        pairs: dict[tuple[int, int], Tensor],
        weight: Tensor | None,
        worker: _Worker,
    ) -> None:
        for (j, k), d in pairs.items():
            one = batch.blocks[self.layout[j]]
            other = batch.blocks[self.layout[k]]
            one.add_cross(worker.sums["second", j, k], other, _times(d, weight))

    def _assemble(self, total: dict) -> Tensor:
        """Information matrix from the raw sums of its blocks."""
        size = len(self.layout)
        grid: list[list[Tensor | None]] = [[None] * size for _ in range(size)]
        for j, m in enumerate(self.layout):
            for k in range(j, size):
                raw = total["second", j, k]
                if self.layout[k] == m:
                    raw = self.matrices[m].symmetric(raw)
                block = self.matrices[m].sandwich(raw, self.matrices[self.layout[k]])
                grid[j][k], grid[k][j] = block, block.T
        full = torch.cat([torch.cat(row, dim=1) for row in grid])
        return (full + full.T) / 2

    def _sum(
        self,
        body: Callable[[int, int, _Worker], None],
        *,
        second: bool = False,
        groups: int = 0,
    ) -> dict:
        device = self.compute.device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        def prepare() -> _Worker:
            sums: dict = {"value": zeros(())}
            sizes = [self.matrices[m].raw for m in self.layout]
            for j, size in enumerate(sizes):
                sums["first", j] = zeros(size)
                if groups:
                    sums["group", j] = zeros(size, groups)
                for k in range(j, len(sizes)) if second else ():
                    sums["second", j, k] = zeros(size, sizes[k])
            return _Worker(self.design.scratches(self.rows, self.compute), sums)

        def merge(into: _Worker, other: _Worker) -> None:
            for key, value in other.sums.items():
                into.sums[key] = into.sums.get(key, 0.0) + value

        with torch.no_grad():
            worker = self.compute.sum_blocks(
                self.design.n, self.rows, prepare, body, merge
            )
        return worker.sums


class UnitLikelihood:
    """Likelihood of any model: ``loglik(params, batch)`` of each unit, by torch.func.

    Parameters
    ----------
    model : Model
        With `parameters` and `loglik`.
    design : Design
    compute : Compute
    """

    def __init__(self, model: object, design: Design, compute: Compute) -> None:
        self.model, self.design, self.compute = model, design, compute
        self.parameters: Parameters = model.parameters
        width = max(1, design.widest()) * max(1, len(self.parameters))
        self.rows = compute.block_rows(width)

    def derivatives(self, x: Tensor, information: str = "observed") -> Derivatives:
        """Value, gradient and minus the Hessian at `x`."""
        if information != "observed":
            raise ValueError(
                "this model has no closed-form expected information; use 'observed'."
            )
        total = None
        for batch in self._batches():
            value = self._units(x, batch).sum()
            gradient = torch.func.grad(lambda t, b=batch: self._units(t, b).sum())(x)
            hessian = torch.func.hessian(lambda t, b=batch: self._units(t, b).sum())(x)
            found = [value.double(), gradient.double(), -hessian.double()]
            total = (
                found
                if total is None
                else [a + b for a, b in zip(total, found, strict=True)]
            )
        return Derivatives(float(total[0]), total[1].cpu(), total[2].cpu())

    def score_gram(
        self, x: Tensor, leverage: Tensor | None = None, power: int = 0
    ) -> Tensor:
        """Sum of score times score' over units."""
        if power:
            raise ValueError(
                "HC2 and HC3 need a regression's leverages; use HC0 or HC1."
            )
        return sum((s.T @ s for s in self._scores(x)), torch.zeros(()))

    def group_scores(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Sum of scores in each group, shape (groups, p)."""
        scores = self.scores(x)
        return (
            torch.zeros(groups, scores.shape[1]).double().index_add_(0, codes, scores)
        )

    def group_gram(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        """Cross-products of the groups' scores, shape (p, p)."""
        sums = self.group_scores(x, codes, groups)
        return sums.T @ sums

    def scores(self, x: Tensor) -> Tensor:
        """Score of each unit, shape (units, p)."""
        return torch.cat(list(self._scores(x)))

    def _scores(self, x: Tensor) -> list[Tensor]:
        return [
            torch.func.jacfwd(lambda t, b=batch: self._units(t, b))(x).detach().cpu()
            for batch in self._batches()
        ]

    def _units(self, x: Tensor, batch: Batch) -> Tensor:
        value = self.model.loglik(self.parameters.split(x), batch)
        weight = _weight(batch)
        return value if weight is None else value * weight

    def _batches(self) -> list[Batch]:
        scratches = self.design.scratches(self.rows, self.compute)
        return (
            self.design.batch(
                start, min(start + self.rows, self.design.n), scratches, self.compute
            )
            for start in range(0, self.design.n, self.rows)
        )


def _weight(batch: Batch) -> Tensor | None:
    if batch.weights is None or batch.freq_weights is None:
        return batch.freq_weights if batch.weights is None else batch.weights
    return batch.weights * batch.freq_weights


def _times(value: Tensor, weight: Tensor | None) -> Tensor:
    return value if weight is None else value * weight


def _dot(value: Tensor, weight: Tensor | None) -> Tensor:
    return (value if weight is None else value * weight).sum().double()
