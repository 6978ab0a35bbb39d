"""The demeaned design of models with absorbed effects, and the effects themselves.

Rows that say nothing (alone in a level, or without variation) are left out first; the
columns are demeaned by the fit, in its weights; the effects are found again from what
the columns as given leave of the linear predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..absorb import Absorber, degrees_of_freedom, singletons
from ..compute import Compute
from ..design import Design, Grouping
from ..errors import DesignError, ModelError
from ..matrix import Column, ModelMatrix, Source

__all__ = ["TOLERANCE", "AbsorbingModel", "Array", "norms_of"]

Array = np.ndarray

# A column is a combination of fixed effects when this share of its length, or less, is
# left; demeaning is exact to 1e-10.
_WITHIN = 1e-6
# Likewise for the squared share that is not in the span of earlier demeaned columns.
_PIVOT = 1e-11
TOLERANCE = 1e-10


class AbsorbingModel:
    """The part of both models that deals with the effects."""

    compute: Compute
    design: Design
    dispersed: bool

    def _prepare(self, singles: str) -> None:
        """Keep the rows that say something, and the columns that are not constant."""
        if singles not in ("drop", "keep"):
            raise ValueError(f"singletons must be 'drop' or 'keep', not {singles!r}.")
        design = self.design
        if len(design.spec.formula.parts) != 1 or not design.absorbed:
            raise ModelError(
                "fixed effects to absorb are written once, as in y ~ x | firm + year; "
                f"got {design.spec.formula.text!r}."
            )
        for g in design.absorbed:
            _check_effect(g)
        drop, self.n_singletons, self.n_separated = self._uninformative(singles)
        if drop.all():
            names = " and ".join(g.name for g in design.absorbed)
            raise DesignError(
                f"no row is left: each is alone in its level of {names}, or all "
                "outcomes of its level are at the edge of their range. Merge levels, "
                "or make the effects random: (1 | g)."
            )
        names = design.X.names
        columns = [j for j, name in enumerate(names) if name != "Intercept"]
        if not columns:
            raise ModelError(
                "there is nothing to estimate besides the fixed effects; add a term, "
                "or write them as C(...)."
            )
        self._kept = columns
        kept = np.flatnonzero(~drop)
        self.design = _rows(design, kept if drop.any() else None, columns)
        # The columns as given, with which fixed effects are found after the fit; the
        # design's own are demeaned by the fit.
        self._given = self.design
        if self.design.n <= len(columns):
            raise DesignError(
                f"{self.design.n} rows are left for {len(columns)} columns."
            )

    def _uninformative(self, singles: str) -> tuple[Array, int, int]:
        """Rows to drop: singletons and levels without variation, until none is left."""
        design = self.design
        codes = [g.codes for g in design.absorbed]
        drop, n_single, n_separated = np.zeros(design.n, dtype=bool), 0, 0
        while not drop.all():
            kept = np.flatnonzero(~drop)
            found = np.zeros(len(kept), dtype=bool)
            if singles == "drop":
                found = _singletons([c[kept] for c in codes], design.freq_weights, kept)
            n_single += int(found.sum())
            drop[kept[found]] = True
            kept = kept[~found]
            flat = self._separated([c[kept] for c in codes], kept)
            n_separated += int(flat.sum())
            drop[kept[flat]] = True
            if not flat.any():
                break
        return drop, n_single, n_separated

    def _separated(self, codes: list[Array], kept: Array) -> Array:
        return np.zeros(len(kept), dtype=bool)

    def effects_df(
        self, clusters: Sequence[Array] | None, rule: str, exact: bool
    ) -> int:
        """Return how many parameters the fixed effects count for; see `absorb`."""
        codes = [g.codes for g in self.design.absorbed]
        return degrees_of_freedom(codes, clusters, rule=rule, exact=exact)

    def _absorber(self, weights: Array | None, tolerance: float) -> Absorber:
        groups = self.design.absorbed
        device = self.compute.device
        return Absorber(
            [g.codes for g in groups], [len(g) for g in groups], weights,
            device=device, tolerance=tolerance,
        )  # fmt: skip

    def _prior(self) -> Array | None:
        """Product of the weights given, None when there are none."""
        given = [
            w for w in (self.design.weights, self.design.freq_weights) if w is not None
        ]
        return np.prod(given, axis=0) if given else None

    def _columns(self) -> tuple[Array, Array]:
        """Columns of the design less their means, and their norms."""
        design = self._given
        rows = self.compute.block_rows(design.X.k)
        self.compute.require(
            3 * design.n * (design.X.k + 1),
            f"demeaned columns of {design.n:,} rows",
            "raise the budget with set_default_device(memory=...).",
        )
        out = np.empty((design.n, design.X.k + 1), order="F")
        space = design.X.scratch(rows, replace(self.compute, device="cpu"))
        for start in range(0, design.n, rows):
            stop = min(start + rows, design.n)
            out[start:stop, 1:] = space.block(start, stop).columns().numpy()
        w = self._prior()
        X = out[:, 1:]
        X -= X.mean(axis=0) if w is None else (w @ X) / w.sum()
        return out, norms_of(X, w)

    def _independent(self, M: Array, norms: Array, w: Array | None) -> Array:
        """Drop columns that the effects, or earlier columns, determine."""
        X = M[:, 1:]
        weighted = X if w is None else X * w[:, None]
        gram = weighted.T @ X
        left = np.sqrt(np.diag(gram))
        names = self._given.X.names
        varies = [int(j) for j in np.flatnonzero(left > _WITHIN * norms)]
        if not varies:
            raise DesignError(
                "every column is determined by the fixed effects: nothing varies "
                "within their levels."
            )
        aliased = [varies[i] for i in _aliased(gram[np.ix_(varies, varies)])]
        constant = [j for j in range(len(names)) if j not in varies]
        for which, why in (
            (constant, "determined by the fixed effects, dropped."),
            (
                aliased,
                "linear combinations of earlier columns and the fixed effects, "
                "dropped.",
            ),
        ):
            if which:
                self.note_dropped([names[j] for j in which], why)
        kept = [j for j in varies if j not in aliased]
        if len(kept) == len(names):
            return M
        self._kept = [self._kept[j] for j in kept]
        self._given = replace(self._given, X=self._given.X.select(kept))
        return np.asfortranarray(M[:, [0, *(j + 1 for j in kept)]])

    def _demeaned(self, M: Array, fitted_effects: Array) -> None:
        """Make the design of demeaned columns, the effects as its offset."""
        self.design.spec.kept[0] = list(self._kept)
        self.design = replace(
            self._given,
            X=_matrix(M[:, 1:], self._given.X.names),
            offset=fitted_effects,
            has_constant=True,
        )

    def recovered(self, x: Tensor) -> list[Array]:
        """Return the fixed effects of each factor at the coefficients of the fit."""
        effects = _effect_sums(self._given, self.design, x, self.compute)
        weights = self._final_weights
        if self.design.offset is not None and self._given.offset is not None:
            effects = effects - self._given.offset
        return self._absorber(weights, TOLERANCE).recover(effects)

    def linear_of(
        self, data: Any, x: Tensor, offset: Any, exposure: Any
    ) -> tuple[Design, Tensor]:
        """Linear predictor of new data."""
        design = self.design.spec.rebuild(
            data, offset=offset, exposure=exposure, absorb=True
        )
        eta = _times(design.X, x, self.compute)
        if design.offset is not None:
            eta = eta + design.offset
        fitted = zip(self.design.absorbed, self.recovered(x), strict=True)
        known = {g.name: (g.levels, effects) for g, effects in fitted}
        for group in design.absorbed:
            levels, effects = known[group.name]
            place = {level: i for i, level in enumerate(levels)}
            at = np.array([place.get(level, -1) for level in group.levels], dtype=int)
            unseen = [level for level, i in zip(group.levels, at, strict=True) if i < 0]
            if unseen:
                shown = ", ".join(map(repr, unseen[:6])) + ", ..." * (len(unseen) > 6)
                raise DesignError(
                    f"{group.name} has {len(unseen)} levels without an estimated "
                    f"effect ({shown}): they were not in the rows of the fit. Leave "
                    "those rows out, or make the effect random: (1 | g)."
                )
            eta = eta + effects[at][group.codes]
        return design, torch.from_numpy(eta)


# -- functions that never touch a model -----------------------------------------------


def _check_effect(group: Grouping) -> None:
    if len(group) < 2:
        raise DesignError(
            f"the fixed effect {group.name} has one level in the rows used: it is the "
            "intercept; leave it out."
        )


def _singletons(codes: list[Array], freq: Array | None, kept: Array) -> Array:
    """Rows alone in a level; a row that stands for several is not alone."""
    if freq is None or not len(kept):
        return singletons(codes)
    more = freq[kept] > 1
    return singletons([np.concatenate([c, c[more]]) for c in codes])[: len(kept)]


def _rows(design: Design, kept: Array | None, columns: list[int]) -> Design:
    """Return some rows and columns of a design, with the levels that are left."""
    X = design.X.select(columns)
    if kept is None:
        return replace(design, X=X)

    def part(values: Array | None) -> Array | None:
        return None if values is None else values[kept]

    return replace(
        design, n=len(kept), y=design.y[kept], X=_row_matrix(X, kept),
        absorbed=tuple(_present(g, kept) for g in design.absorbed),
        offset=part(design.offset), weights=part(design.weights),
        freq_weights=part(design.freq_weights), size=part(design.size),
        index=design.index[kept],
        rows=kept if design.rows is None else design.rows[kept],
    )  # fmt: skip


def _row_matrix(X: ModelMatrix, kept: Array) -> ModelMatrix:
    """Return the matrix of some rows, as views of the caller's data."""
    composed: dict[int, Array] = {}

    def source(s: Source) -> Source:
        if s.rows is None:
            return Source(s.array, kept)
        rows = composed.setdefault(id(s.rows), s.rows[kept])
        return Source(s.array, rows)

    dense = tuple(
        replace(
            c,
            numerics=tuple(map(source, c.numerics)),
            codes=None if c.codes is None else source(c.codes),
        )
        for c in X.dense
    )
    coded = tuple(
        replace(c, codes=source(c.codes), numerics=tuple(map(source, c.numerics)))
        for c in X.coded
    )
    return ModelMatrix(len(kept), X.names, dense, X.dense_at, coded, X.coded_at)


def _present(group: Grouping, kept: Array) -> Grouping:
    """Return the grouping of some rows, without the levels that lost theirs."""
    codes = group.codes[kept]
    present = np.bincount(codes, minlength=len(group)) > 0
    if present.all():
        return Grouping(group.name, codes, group.levels)
    new = np.cumsum(present, dtype=np.int32) - 1
    levels = tuple(group.levels[i] for i in np.flatnonzero(present))
    return Grouping(group.name, new[codes].astype(np.int32), levels)


def _matrix(columns: Array, names: tuple[str, ...]) -> ModelMatrix:
    """Wrap plain columns as a model matrix."""
    dense = tuple(Column((Source(columns[:, j]),)) for j in range(columns.shape[1]))
    return ModelMatrix(len(columns), names, dense, list(range(len(names))))


def norms_of(X: Array, w: Array | None) -> Array:
    """Weighted norms of columns, without an array of their size."""
    return np.array([
        np.sqrt(c @ c if w is None else (w * c) @ c) for c in X.T
    ])  # fmt: skip


def _aliased(gram: Array) -> list[int]:
    """Columns that earlier ones determine, by Cholesky of the scaled Gram matrix."""
    d = np.sqrt(np.diag(gram))
    A = gram / np.outer(d, d) if len(d) else gram
    found = []
    for j in range(len(A)):
        if A[j, j] <= _PIVOT:
            found.append(j)
            continue
        A = A - np.outer(A[:, j], A[j]) / A[j, j]
    return found


def _times(X: ModelMatrix, beta: Tensor, compute: Compute) -> Array:
    """X beta, in blocks."""
    cpu = compute.on_cpu()
    raw, rows = X.to_raw(beta), cpu.block_rows(max(len(X.dense), 1))
    out, space = np.empty(X.n), X.scratch(rows, cpu)
    for start in range(0, X.n, rows):
        stop = min(start + rows, X.n)
        out[start:stop] = space.block(start, stop).eta(raw).numpy()
    return out


def _effect_sums(given: Design, demeaned: Design, x: Tensor, compute: Compute) -> Array:
    """Linear predictor less what the columns as given contribute."""
    eta = _times(demeaned.X, x, compute) + demeaned.offset
    return eta - _times(given.X, x, compute)
