"""From the call to arrays: the curve, its parameters' designs, the random effects."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from ...design import Design, RandomTerm, Table
from ...errors import DesignError, FormulaError, ModelError, listed
from ...expressions import quote_name
from ...formula import Formula, GroupTerm, Rhs
from ...matrix import Column, ModelMatrix, Source
from .expression import Expression, check_rowwise
from .rows import Rows

__all__ = ["Effect", "Reading", "matrix_of", "read"]


@dataclass(frozen=True, eq=False)
class Effect:
    """One random-effects term, spread over the parameters that it moves.

    Attributes
    ----------
    random : RandomTerm
        Its Z has a column for each parameter and each column of the data.
    owner : ndarray of int, shape (K,)
        Which parameter each column moves.
    columns : ndarray, shape (n, K)
        By how much in each row.
    """

    random: RandomTerm
    owner: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True, eq=False)
class Reading:
    """A nonlinear model, read.

    Attributes
    ----------
    text : str
        Formula, fixed and random parts, as printed.
    expression : Expression
    parameters : tuple of str
        Of the curve.
    covariates : tuple of str
        Columns of the data in the curve.
    moved : tuple of tuple of str
        Parameters that each random term of the design moves.
    design : Design
        Its parts are the fixed parts of the parameters, then the covariates.
    """

    text: str
    expression: Expression
    parameters: tuple[str, ...]
    covariates: tuple[str, ...]
    moved: tuple[tuple[str, ...], ...]
    design: Design

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """Labels of the coefficients of each parameter."""
        parts = self.design.parts[: len(self.parameters)]
        return [
            (p,)
            if part.names == ("Intercept",)
            else tuple(f"{p}:{c}" for c in part.names)
            for p, part in zip(self.parameters, parts, strict=True)
        ]

    def rows(self, design: Design | None = None) -> Rows:
        """Return the rows of the design, or of new data."""
        given, count = design or self.design, len(self.parameters)
        columns = {
            name: part.to_dense()[:, 0].clone()
            for name, part in zip(self.covariates, given.parts[count:], strict=True)
        }
        y = np.zeros(given.n) if given.y is None else given.y
        w = given.weights
        return Rows(
            torch.from_numpy(np.array(y, dtype=np.float64)),
            None if w is None else torch.from_numpy(np.array(w, dtype=np.float64)),
            self.expression, columns, self.parameters,
            tuple(part.to_dense().clone() for part in given.parts[:count]),
        )  # fmt: skip

    def effects(self, random: Sequence[RandomTerm]) -> list[Effect]:
        """Spread random terms, of the design or of new data, over their parameters."""
        fixed = dict(zip(self.parameters, self.labels, strict=True))
        out = []
        for term, parameters in zip(random, self.moved, strict=True):
            Z = term.Z.to_dense().numpy()
            names = [
                p if c == "Intercept" and fixed[p] == (p,) else f"{p}:{c}"
                for p in parameters for c in term.Z.names
            ]  # fmt: skip
            owner = [self.parameters.index(p) for p in parameters for _ in term.Z.names]
            columns = np.tile(Z, (1, len(parameters)))
            matrix = matrix_of(columns, names)
            out.append(Effect(replace(term, Z=matrix), np.array(owner), columns))
        return out


def matrix_of(columns: np.ndarray, names: Sequence[str]) -> ModelMatrix:
    """Return a model matrix of given columns, (n, k)."""
    held = [np.ascontiguousarray(c) for c in columns.T]
    return ModelMatrix(
        len(columns), tuple(names), tuple(Column((Source(c),)) for c in held),
        list(range(len(held))),
    )  # fmt: skip


def read(
    formula: str, data: Any, *, fixed: Any, random: Any, start: Any, weights: Any,
    na_action: str, context: Mapping | None, compute: Compute,
) -> Reading:  # fmt: skip
    """Read a nonlinear model; see `NonlinearMixed` for the arguments."""
    response, curve = _split(formula)
    expression = Expression.parse(curve, context)
    table = Table(data)
    terms = _random_terms(random, response)
    given = _fixed_parts(fixed)
    declared = [*given, *(p for names, _ in terms for p in names), *_started(start)]
    parameters = _parameters(expression, table, declared)
    for name in declared:
        if name.partition(":")[0] not in parameters:
            raise ModelError(
                f"{name!r} is not a parameter of {expression.text!r}; its parameters "
                f"are {', '.join(parameters)}."
            )
    covariates = tuple(n for n in expression.names if n not in parameters)
    parts = [given.get(p, Rhs.parse("~ 1")) for p in parameters]
    parts += [Rhs.parse(f"~ 0 + {quote_name(c)}") for c in covariates]
    base = Formula.parse(f"{response} ~ 1")
    groups = tuple(group for _, group in terms)
    design = Design.build(
        replace(base, rhs=replace(base.rhs, groups=groups)), data, weights=weights,
        parts=parts, na_action=na_action, compute=compute,
    )  # fmt: skip
    reading = Reading(
        _text(formula, given, terms), expression, parameters, covariates,
        tuple(names for names, _ in terms), design,
    )  # fmt: skip
    _check(reading)
    return reading


def _text(formula: str, fixed: Mapping[str, Rhs], terms: Sequence[tuple]) -> str:
    parts = [" ".join(formula.split())]
    parts += [f"{p} ~ {r.text.strip().lstrip('~ ')}" for p, r in fixed.items()]
    parts += dict.fromkeys(group.text for _, group in terms)
    return "; ".join(parts)


# -- text ------------------------------------------------------------------------------


def _split(formula: str) -> tuple[str, str]:
    if not isinstance(formula, str):
        raise FormulaError(f"a formula is text, not {type(formula).__name__}")
    # What stands in backticks is the name of a column.
    sides = re.split(r"~(?=(?:[^`]*`[^`]*`)*[^`]*$)", formula)
    if len(sides) == 3 and "|" in sides[2]:
        raise FormulaError(
            "random effects are an argument of their own, such as "
            "random='Asym ~ 1 | g'", formula, formula.rindex("~"),
        )  # fmt: skip
    if len(sides) != 2 or not all(s.strip() for s in sides):
        raise FormulaError(
            "expected a response, `~` and a curve, such as "
            "`y ~ SSlogis(x, Asym, xmid, scal)`", formula, 0,
        )  # fmt: skip
    return sides[0].strip(), sides[1].strip()


def _names(left: str, what: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in left.split("+"))
    if not all(n.isidentifier() for n in names) or len(set(names)) < len(names):
        raise ModelError(
            f"{what}: expected parameters of the curve before the `~`, such as "
            f"'Asym + xmid ~ ...', not {left.strip()!r}."
        )
    return names


def _fixed_parts(fixed: Any) -> dict[str, Rhs]:
    """Right-hand side of each parameter that has covariates."""
    if fixed is None:
        return {}
    if isinstance(fixed, Mapping):
        pairs = [((str(k),), str(v)) for k, v in fixed.items()]
    else:
        pairs = []
        for text in [fixed] if isinstance(fixed, str) else list(fixed):
            left, tilde, right = str(text).partition("~")
            if not tilde:
                raise ModelError(
                    f"fixed={text!r}: expected 'Asym ~ treatment' or "
                    "{'Asym': '~ treatment'}."
                )
            pairs.append((_names(left, "fixed"), right))
    out: dict[str, Rhs] = {}
    for names, right in pairs:
        text = right if right.strip().startswith("~") else f"~ {right.strip()}"
        rhs = Rhs.parse(text)
        if rhs.groups or rhs.calls or rhs.offsets or not rhs.terms:
            raise ModelError(
                f"fixed={right.strip()!r} takes plain terms only; random effects go to "
                "random='Asym ~ 1 | g'."
            )
        for name in names:
            if name in out:
                raise ModelError(f"fixed= has two formulas for {name}.")
            out[name] = rhs
    return out


def _random_terms(
    random: Any, response: str
) -> list[tuple[tuple[str, ...], GroupTerm]]:
    """Parameters and grouping of every random term; nested factors are several."""
    out: list[tuple[tuple[str, ...], GroupTerm]] = []
    if random is None:
        return out
    for text in [random] if isinstance(random, str) else list(random):
        left, tilde, right = str(text).partition("~")
        if not tilde or "|" not in right:
            raise ModelError(
                f"random={text!r}: expected parameters, `~`, what varies and a "
                "grouping factor, such as 'Asym + xmid ~ 1 | g'."
            )
        names = _names(left, "random")
        parsed = Formula.parse(f"{response} ~ 1 + ({right.strip()})").rhs
        for group in parsed.groups:
            bar = "|" if group.correlated else "||"
            terms = " + ".join(map(str, group.terms))
            shown = f"{' + '.join(names)} ~ {terms} {bar} {group.name}"
            out.append((names, replace(group, text=shown)))
    return out


def _started(start: Any) -> list[str]:
    if start is None:
        return []
    if not isinstance(start, Mapping):
        raise ModelError(
            "start= takes values by name, such as {'Asym': 200, 'xmid': 700}."
        )
    return [str(name) for name in start]


# -- names -----------------------------------------------------------------------------


def _parameters(
    expression: Expression, table: Table, declared: Sequence[str]
) -> tuple[str, ...]:
    """Parameters of the curve, in its order."""
    columns = set(table.columns)
    curve = expression.curve
    ours = {name.partition(":")[0] for name in declared}
    if curve is not None:
        arguments = expression.arguments()
        ours |= {
            arguments[p].id for p in curve.parameters
            if isinstance(arguments[p], ast.Name)
        }  # fmt: skip
    for name in expression.names:
        if name in ours and name in columns:
            raise ModelError(
                f"{name!r} is a parameter of the curve and a column of the data; "
                "rename one of them."
            )
    for name in expression.constants:
        if name in columns:
            raise ModelError(
                f"{name!r} is a number in a curve, and a column of the data; rename "
                "the column."
            )
    found = tuple(n for n in expression.names if n in ours or n not in columns)
    if not found:
        raise ModelError(f"{expression.text!r} has no parameters: all are columns.")
    unknown = [n for n in found if n not in ours]
    if unknown:
        raise ModelError(
            f"{', '.join(unknown)}: neither columns of the data (which are "
            f"{listed(table.columns)}) nor parameters with a start value; give "
            f"start={{{', '.join(f'{n!r}: ...' for n in unknown)}}}."
        )
    return found


def _check(reading: Reading) -> None:
    """Refuse what a curve cannot be fitted to."""
    design, count = reading.design, len(reading.parameters)
    if design.y.ndim != 1 or design.y_levels is not None or design.size is not None:
        raise DesignError(f"the response {design.y_name} must be one numeric column.")
    for name, part in zip(reading.covariates, design.parts[count:], strict=True):
        state = design.spec.states.get(quote_name(name), {})
        if part.k != 1 or "levels" in state or "[" in part.names[0]:
            raise DesignError(
                f"{name} is categorical, and stands in the curve, which takes numbers; "
                f"let a parameter depend on it: fixed='{reading.parameters[0]} ~ "
                f"{name}'."
            )
    if design.n_zero_weight:
        raise DesignError(
            f"{design.n_zero_weight} weights are zero: such rows say nothing; leave "
            "them out."
        )
    total = sum(len(labels) for labels in reading.labels)
    if design.n <= total:
        raise DesignError(
            f"{design.n} rows cannot determine {total} coefficients and a variance."
        )
    _check_random(reading)
    rows = reading.rows()
    trial = [torch.full((rows.n,), 0.5 + 0.1 * j).double() for j in range(count)]
    check_rowwise(reading.expression, rows.columns, trial, reading.parameters)


def _check_random(reading: Reading) -> None:
    seen: set[tuple[str, str]] = set()
    for effect in reading.effects(reading.design.random):
        grouping = effect.random.grouping
        if len(grouping) >= reading.design.n:
            raise DesignError(
                f"{grouping.name} has as many levels as the data have rows: its "
                "variance cannot be told from the residual's."
            )
        for name in effect.random.Z.names:
            if (grouping.name, name) in seen:
                raise ModelError(f"{name} varies over {grouping.name} in two terms.")
            seen.add((grouping.name, name))


def numbers(values: Tensor) -> np.ndarray:
    """Return a tensor as an array."""
    return values.detach().cpu().numpy()
