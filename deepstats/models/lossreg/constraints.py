"""Constraints on coefficients by declaration, as linear inequalities and equations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...errors import InfeasibleError, ModelError
from ...inference import linear_hypotheses

__all__ = ["Constraints", "read_constraints"]

Array = np.ndarray

_WORDS = ("nonneg", "nonpos", "increasing", "decreasing")


@dataclass(frozen=True, eq=False)
class Constraints:
    """``A b >= c`` and ``E b = d``.

    Attributes
    ----------
    A : ndarray, shape (m, k)
    c : ndarray, shape (m,)
    E : ndarray, shape (q, k)
    d : ndarray, shape (q,)
    labels : tuple of str
        Of the inequalities, then of the equations, as printed.
    """

    A: Array
    c: Array
    E: Array
    d: Array
    labels: tuple[str, ...] = ()

    @classmethod
    def none(cls, k: int) -> Constraints:
        """Return no constraints on `k` coefficients."""
        return cls(np.zeros((0, k)), np.zeros(0), np.zeros((0, k)), np.zeros(0))

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return len(self.A) + len(self.E) == 0

    @property
    def box(self) -> tuple[Array, Array] | None:
        """Lowest and highest value of each coefficient, if that says it all."""
        if len(self.E) or bool(((self.A != 0).sum(1) != 1).any()):
            return None
        k = self.A.shape[1]
        low, high = np.full(k, -np.inf), np.full(k, np.inf)
        for row, bound in zip(self.A, self.c, strict=True):
            j = int(np.flatnonzero(row)[0])
            if row[j] > 0:
                low[j] = max(low[j], bound / row[j])
            else:
                high[j] = min(high[j], bound / row[j])
        return low, high

    def violation(self, b: Array) -> float:
        """Largest amount by which coefficients break a constraint."""
        gaps = [0.0, *(self.c - self.A @ b), *np.abs(self.E @ b - self.d)]
        return float(max(gaps))

    def active(self, b: Array, tolerance: float = 1e-7) -> Array:
        """Whether each inequality holds with equality; shape (m,)."""
        size = 1.0 + np.abs(self.A) @ np.abs(b) + np.abs(self.c)
        return np.abs(self.A @ b - self.c) <= tolerance * size

    def check(self) -> None:
        """Raise `InfeasibleError` if no coefficients satisfy all constraints."""
        if self.empty:
            return
        from scipy.optimize import linprog

        # The least common slack t for which A b + t >= c, E b = d has a solution.
        k, m = self.A.shape[1], len(self.A)
        found = linprog(
            np.r_[np.zeros(k), 1.0],
            A_ub=np.hstack([-self.A, -np.ones((m, 1))]) if m else None,
            b_ub=-self.c if m else None,
            A_eq=np.hstack([self.E, np.zeros((len(self.E), 1))])
            if len(self.E)
            else None,
            b_eq=self.d if len(self.E) else None,
            bounds=[(None, None)] * k + [(0, None)],
        )
        size = 1.0 + float(np.abs(np.r_[self.c, self.d]).max(initial=0.0))
        if found.status == 2 or (found.status == 0 and found.fun > 1e-7 * size):
            raise InfeasibleError(
                f"no coefficients satisfy all of: {'; '.join(self.labels)}. Drop or "
                "relax one of these constraints."
            )


@dataclass
class _Rows:
    """Rows of constraints as they are read."""

    k: int
    A: list[tuple[Array, float, str]]
    E: list[tuple[Array, float, str]]

    def at_least(self, row: Array, bound: float, label: str) -> None:
        self.A.append((row, bound, label))

    def equal(self, row: Array, value: float, label: str) -> None:
        self.E.append((row, value, label))

    def unit(self, j: int, sign: float = 1.0) -> Array:
        row = np.zeros(self.k)
        row[j] = sign
        return row


def read_constraints(
    given: Any,
    names: Sequence[str],
    terms: Mapping[str, Sequence[int]],
    ladders: Mapping[str, Sequence[int | None]],
) -> Constraints:
    """Read constraints as they are declared.

    Parameters
    ----------
    given : str, mapping, sequence or None
        ``"nonneg"`` or ``"nonpos"`` for all slopes; a mapping from columns or terms to
        "nonneg", "nonpos", "increasing", "decreasing" (across the levels of a factor),
        a pair of bounds (None is no bound) or a number the coefficient is held at;
        equations and inequalities as text, ``"x1 = x2"``, ``"x1 + x2 <= 1"``; or a
        sequence of these.
    names : sequence of str
        Columns.
    terms : mapping of str to sequence of int
        Columns of each term.
    ladders : mapping of str to sequence of (int or None)
        For factors in treatment coding: the column of each level in the order of the
        levels, None for the reference level.

    Raises
    ------
    ModelError
        For what cannot be read.
    InfeasibleError
        If no coefficients satisfy them all.
    """
    rows = _Rows(len(names), [], [])
    for part in _parts(given):
        if isinstance(part, str):
            _read_text(part, names, rows)
        else:
            for name, rule in part.items():
                _read_rule(str(name), rule, names, terms, ladders, rows)
    k = len(names)
    found = Constraints(
        np.array([r for r, _, _ in rows.A]).reshape(-1, k),
        np.array([c for _, c, _ in rows.A]),
        np.array([r for r, _, _ in rows.E]).reshape(-1, k),
        np.array([d for _, d, _ in rows.E]),
        tuple(label for _, _, label in (*rows.A, *rows.E)),
    )
    found.check()
    return found


def _parts(given: Any) -> list[Any]:
    if given is None:
        return []
    if isinstance(given, str | Mapping):
        return [given]
    if isinstance(given, Sequence) and all(isinstance(g, str | Mapping) for g in given):
        return list(given)
    raise ModelError(
        "constraints must be text, a mapping of columns or terms to rules, or a list "
        f"of these, not {given!r}."
    )


def _read_text(text: str, names: Sequence[str], rows: _Rows) -> None:
    if text in ("nonneg", "nonpos"):
        sign = 1.0 if text == "nonneg" else -1.0
        for j, name in enumerate(names):
            if name != "Intercept":
                rows.at_least(rows.unit(j, sign), 0.0, f"{name} {text}")
        return
    for piece in text.split(","):
        found = re.split(r"(<=|>=|==|=)", piece)
        if len(found) != 3:
            raise ModelError(
                f"the constraint {piece.strip()!r} is not read: write 'nonneg', "
                "'nonpos', or one comparison such as 'x1 = x2' or 'x1 + x2 <= 1'."
            )
        left, sign, right = found
        try:
            R, q, _ = linear_hypotheses([f"{left} = {right}"], names)
        except ValueError as error:
            raise ModelError(f"the constraint {piece.strip()!r}: {error}") from None
        label = piece.strip()
        if sign in ("=", "=="):
            rows.equal(R[0], float(q[0]), label)
        else:
            turn = 1.0 if sign == ">=" else -1.0
            rows.at_least(turn * R[0], turn * float(q[0]), label)


def _read_rule(
    name: str,
    rule: Any,
    names: Sequence[str],
    terms: Mapping[str, Sequence[int]],
    ladders: Mapping[str, Sequence[int | None]],
    rows: _Rows,
) -> None:
    if rule in ("increasing", "decreasing"):
        _read_ladder(name, rule, names, ladders, rows)
        return
    at = [list(names).index(name)] if name in names else list(terms.get(name, ()))
    if not at:
        raise ModelError(
            f"constraints name {name!r}, which is no column and no term; the columns "
            f"are {list(names)}, the terms {list(terms)}."
        )
    for j in at:
        if rule in ("nonneg", "nonpos"):
            sign = 1.0 if rule == "nonneg" else -1.0
            rows.at_least(rows.unit(j, sign), 0.0, f"{names[j]} {rule}")
        elif isinstance(rule, int | float) and not isinstance(rule, bool):
            rows.equal(rows.unit(j), float(rule), f"{names[j]} = {rule:g}")
        elif isinstance(rule, tuple | list) and len(rule) == 2:
            _read_bounds(names[j], j, rule, rows)
        else:
            raise ModelError(
                f"the rule {rule!r} of {name} is not read: use one of {_WORDS}, a pair "
                "(low, high) or a number."
            )


def _read_bounds(name: str, j: int, rule: Sequence[Any], rows: _Rows) -> None:
    low, high = rule
    for bound, sign, word in ((low, 1.0, ">="), (high, -1.0, "<=")):
        if bound is None or abs(float(bound)) == np.inf:
            continue
        if np.isnan(float(bound)):
            raise ModelError(f"a bound of {name} is NaN; use None for no bound.")
        rows.at_least(
            rows.unit(j, sign), sign * float(bound), f"{name} {word} {bound:g}"
        )


def _read_ladder(
    name: str,
    rule: str,
    names: Sequence[str],
    ladders: Mapping[str, Sequence[int | None]],
    rows: _Rows,
) -> None:
    if name not in ladders:
        raise ModelError(
            f"{rule!r} needs a factor in treatment coding; {name!r} is none. Factors "
            f"here: {list(ladders)}. For a numeric column use 'nonneg' or 'nonpos'."
        )
    sign = 1.0 if rule == "increasing" else -1.0
    steps = list(ladders[name])
    for before, after in pairwise(steps):
        row = np.zeros(rows.k)
        if after is not None:
            row[after] += sign
        if before is not None:
            row[before] -= sign
        ends = ["0" if j is None else names[j] for j in (after, before)]
        label = f"{ends[0]} {'>=' if sign > 0 else '<='} {ends[1]}"
        rows.at_least(row, 0.0, label)
