"""From terms and their factors to the columns of a model matrix."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .columns import Categorical
from .formula import Term
from .matrix import DENSE_LEVELS, Coded, Column, Source

__all__ = ["codings", "encode"]


def codings(
    terms: Sequence[Term], factors: Mapping[str, Any]
) -> list[tuple[tuple[str, bool], ...]]:
    """Decide which factors are coded in full so that no column is redundant.

    A term with categorical factors C spans the products over C of (1, contrasts); what
    an earlier term with the same numeric part spans already is left out, and what is
    left is put together again into as few codings as possible (the rule of S, as
    described in the patsy documentation, "Redundancy and categorical factors").

    Returns
    -------
    list of tuple of (expression, full)
        For each coding, its factors in order and whether all levels get a column.
    """
    spanned: dict[frozenset[str], set[frozenset[str]]] = {}
    out = []
    for term in terms:
        groups = [e for e in term.factors if isinstance(factors[e], Categorical)]
        numeric = frozenset(e for e in term.factors if e not in groups)
        seen = spanned.setdefault(numeric, set())
        subsets = [
            frozenset(s)
            for size in range(len(groups) + 1)
            for s in itertools.combinations(groups, size)
        ]
        new = [(s, frozenset()) for s in subsets if s not in seen]
        seen.update(subsets)
        for reduced, full in _merge(new):
            out.append(
                tuple(
                    (e, e in full)
                    for e in term.factors
                    if e in numeric or e in reduced or e in full
                )
            )
    return out


def _merge(
    codings: list[tuple[frozenset[str], frozenset[str]]],
) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Join a coding with the same one plus a reduced factor: that factor in full."""
    codings = list(codings)
    merged = True
    while merged:
        merged = False
        for (i, (r1, f1)), (j, (r2, f2)) in itertools.permutations(
            enumerate(codings), 2
        ):
            extra = r2 - r1
            if f1 == f2 and r1 < r2 and len(extra) == 1:
                codings[j] = (r1, f1 | extra)
                del codings[i]
                merged = True
                break
    return codings


def encode(
    coding: tuple[tuple[str, bool], ...],
    factors: Mapping[str, Any],
    n: int,
    names: list[str],
    dense: list[tuple[Column, int]],
    coded: list[tuple[Coded, list[int]]],
) -> None:
    """Append one coding's columns; the first factor varies fastest, as in R."""
    choices: list[list[tuple[str, Any]]] = []
    tables: dict[str, np.ndarray] = {}
    for expression, full in coding:
        factor = factors[expression]
        if isinstance(factor, Categorical):
            tables[expression] = factor.contrast.matrix(factor.levels, not full)
            suffixes = factor.contrast.names(factor.levels, not full)
            choices.append(
                [(expression + s, (expression, j)) for j, s in enumerate(suffixes)]
            )
        elif isinstance(factor, (Source, tuple)):
            choices.append([(expression, factor)])
        elif factor.values.ndim == 1:
            choices.append([(expression, Source(factor.values))])
        else:
            choices.append(
                [
                    (expression + s, Source(factor.values[:, j]))
                    for j, s in enumerate(factor.names)
                ]
            )
    start = len(names)
    products = [p[::-1] for p in itertools.product(*reversed(choices))]
    names.extend(":".join(label for label, _ in p) or "Intercept" for p in products)
    numerics = [[s for _, f in p for s in _sources(f)] for p in products]
    same = all(len(c) == 1 for c in choices if _sources(c[0][1]))
    if tables:
        codes = _joint_codes(tables, factors)
        if same and len(products) > DENSE_LEVELS:
            table = _kronecker(list(tables.values()))
            at = list(range(start, start + len(products)))
            coded.append((Coded(codes, table, tuple(numerics[0])), at))
            return
        for number, product in enumerate(products):
            values = _kronecker(
                [
                    tables[s[0]][:, s[1] : s[1] + 1]
                    for _, s in product
                    if not _sources(s)
                ]
            )[:, 0]
            column = Column(
                tuple(numerics[number]), codes, np.ascontiguousarray(values)
            )
            dense.append((column, start + number))
        return
    for number in range(len(products)):
        dense.append((Column(tuple(numerics[number])), start + number))


def _sources(factor: Any) -> tuple[Source, ...]:
    """Numeric sources of a factor's column; none for a level of a categorical."""
    if isinstance(factor, Source):
        return (factor,)
    is_power = isinstance(factor, tuple) and isinstance(factor[0], Source)
    return factor if is_power else ()


def _joint_codes(
    tables: Mapping[str, np.ndarray], factors: Mapping[str, Any]
) -> Source:
    """Codes of the combination of several factors, the first varying fastest."""
    sizes = [len(t) for t in tables.values()]
    total: np.ndarray | None = None
    stride = 1
    for expression, size in zip(tables, sizes, strict=True):
        codes = factors[expression].codes
        total = codes if total is None else total + stride * codes.astype(np.int32)
        stride *= size
    return Source(total)


def _kronecker(tables: list[np.ndarray]) -> np.ndarray:
    """Coding of combined levels, the first factor varying fastest in both axes."""
    out = tables[0]
    for table in tables[1:]:
        out = np.kron(table, out)
    return out
