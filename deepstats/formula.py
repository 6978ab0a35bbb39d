"""The formula language: from text to terms, without touching data.

The text is scanned once; group terms ``(x | g)``, offsets and model calls are taken
out, R spellings are rewritten, and formulaic expands the rest (``a*b``, ``a/b``,
``(a + b)^2``). Every error points at the character that is wrong.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from .errors import FormulaError
from .expressions import expression_variables
from .grammar import MODEL_CALLS, R_FUNCTIONS, TERM_CALLS, TermReader
from .transforms import TRANSFORMS

__all__ = [
    "PLACES",
    "STRUCTURES",
    "Call",
    "Formula",
    "GroupTerm",
    "Name",
    "Response",
    "Rhs",
    "Term",
]

STRUCTURES = (
    "us",
    "diag",
    "homdiag",
    "cs",
    "hcs",
    "homcs",
    "ar1",
    "hetar1",
    "ou",
    "toep",
    "homtoep",
    "exp",
    "gau",
    "mat",
    "rr",
)
"""Covariance structures that may stand before a group term: ``ar1(0 + t | g)``."""

PLACES = ("ou", "exp", "gau", "mat")
"""Those of them before whose bar stand coordinates: ``exp(x + y | g)``."""


# --------------------------------------------------------------------------------------
# What a formula is
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A column name given as an option: the ``pid`` of ``id=pid``."""

    name: str


@dataclass(frozen=True)
class Term:
    """A product of factors.

    Parameters
    ----------
    factors : tuple of str
        Canonical Python expressions; ``()`` is the intercept.
    """

    factors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that results print: ``"a:C(b, contr.sum)"``, ``"Intercept"``."""
        return ":".join(map(_without_ticks, self.factors)) or "Intercept"

    @property
    def degree(self) -> int:
        """The number of factors."""
        return len(self.factors)

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns mentioned, in order."""
        return _variables(self.factors)

    def __str__(self) -> str:
        return ":".join(self.factors) or "1"


@dataclass(frozen=True)
class GroupTerm:
    """Effects that vary between groups: ``(1 + x | g)``.

    Parameters
    ----------
    terms : tuple of Term
        What varies, the intercept included unless the text says ``0 +`` or ``- 1``.
    factors : tuple of str
        The grouping factors; several form one interaction (``a:b``).
    correlated : bool
        False for ``||``.
    structure : str
        One of `STRUCTURES`.
    text, position : str, int
        As written, and where; not part of equality.
    options : tuple of (str, object)
        Further arguments of the structure, as in ``rr(0 + x | g, d=2)``.
    """

    terms: tuple[Term, ...]
    factors: tuple[str, ...]
    correlated: bool = True
    structure: str = "us"
    text: str = field(default="", compare=False)
    position: int = field(default=0, compare=False)
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The grouping factor as results print it: ``"a:b"``."""
        return ":".join(map(_without_ticks, self.factors))

    @property
    def intercept(self) -> bool:
        """Whether the intercept varies."""
        return Term() in self.terms

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns mentioned, in order."""
        effects = [factor for term in self.terms for factor in term.factors]
        return _variables([*effects, *self.factors])

    def __str__(self) -> str:
        effects = " + ".join(map(str, self.terms))
        if not self.intercept:
            effects = f"0 + {effects}"
        bar = "|" if self.correlated else "||"
        prefix = "" if self.structure == "us" else self.structure
        options = "".join(f", {key}={value!r}" for key, value in self.options)
        return f"{prefix}({effects} {bar} {':'.join(self.factors)}{options})"


@dataclass(frozen=True)
class Call:
    """A model, or a part of one, written as a call.

    Parameters
    ----------
    name : str
        One of `MODEL_CALLS` or `TERM_CALLS`.
    arguments : tuple of str or Formula
        The positional arguments: expressions and formulas.
    options : tuple of (str, object)
        The keyword arguments: a literal (lists become tuples), a `Name`, or an `Rhs`.
    text, position : str, int
        As written, and where; not part of equality.
    """

    name: str
    arguments: tuple[str | Formula, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    text: str = field(default="", compare=False)
    position: int = field(default=0, compare=False)

    @property
    def formulas(self) -> tuple[Formula, ...]:
        """The arguments that are formulas."""
        return tuple(a for a in self.arguments if isinstance(a, Formula))

    @property
    def formula(self) -> Formula | None:
        """The first argument that is a formula."""
        return self.formulas[0] if self.formulas else None

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns mentioned, in order."""
        found: list[str] = []
        for value in (*self.arguments, *(value for _, value in self.options)):
            if isinstance(value, (Formula, Rhs)):
                found += value.variables
            elif isinstance(value, Name):
                found.append(value.name)
        expressions = [a for a in self.arguments if isinstance(a, str)]
        return _unique([*_variables(expressions), *found])

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Rhs:
    """A right-hand side.

    Parameters
    ----------
    terms : tuple of Term
        The fixed terms, the intercept first, then by degree.
    groups : tuple of GroupTerm
    offsets : tuple of str
        The expressions inside ``offset()``.
    calls : tuple of Call
    text : str
        As written; not part of equality.
    """

    terms: tuple[Term, ...]
    groups: tuple[GroupTerm, ...] = ()
    offsets: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str, functions: Iterable[str] = ()) -> Rhs:
        """Read one-sided text such as ``"~ x + z"`` or ``"x + z"``.

        Parameters
        ----------
        text : str
        functions : iterable of str, optional
            Further function names that the text may call.

        Returns
        -------
        Rhs

        Raises
        ------
        FormulaError
            If the text cannot be read, or has a response or several parts.
        """
        formula = Formula.parse(text, functions)
        if formula.response is not None or formula.parts or formula.call is not None:
            raise FormulaError(
                "expected a one-sided formula such as `~ x + z`", formula.text, 0
            )
        return formula.rhs

    @property
    def intercept(self) -> bool:
        """Whether the intercept is among the terms."""
        return Term() in self.terms

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns mentioned: terms, groups, offsets, calls."""
        found = [name for term in self.terms for name in term.variables]
        found += [name for group in self.groups for name in group.variables]
        found += _variables(self.offsets)
        return _unique([*found, *(n for call in self.calls for n in call.variables)])

    def without_groups(self) -> Rhs:
        """Return the same right-hand side with fixed terms only."""
        return Rhs(self.terms, (), self.offsets, self.calls, self.text)

    def __str__(self) -> str:
        fixed = [str(term) for term in self.terms if term.factors]
        pieces = ["1" if self.intercept else "0", *fixed, *map(str, self.groups)]
        pieces += [f"offset({expression})" for expression in self.offsets]
        return " + ".join([*pieces, *map(str, self.calls)])


@dataclass(frozen=True)
class Response:
    """A left-hand side.

    Parameters
    ----------
    kind : {"single", "cbind", "multiple"}
        One expression; ``cbind(successes, failures)``; or several, ``y1 + y2``.
    expressions : tuple of str
    text : str
        As written; not part of equality.
    """

    kind: Literal["single", "cbind", "multiple"]
    expressions: tuple[str, ...]
    text: str = field(default="", compare=False)

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns mentioned, in order."""
        return _variables(self.expressions)

    def __str__(self) -> str:
        if self.kind == "cbind":
            return f"cbind({', '.join(self.expressions)})"
        return " + ".join(self.expressions)


@dataclass(frozen=True)
class Formula:
    """A formula.

    Parameters
    ----------
    text : str
        As written; not part of equality.
    response : Response or None
    rhs : Rhs
    parts : tuple of Rhs
        What follows each top-level ``|``: ``y ~ x | firm + year``.
    call : Call or None
        Set when the whole text is a model call such as ``traj(y ~ t, groups=3)``;
        `response`, `rhs` and `parts` are then those of its first formula.
    """

    text: str = field(compare=False)
    response: Response | None
    rhs: Rhs
    parts: tuple[Rhs, ...] = ()
    call: Call | None = None

    @classmethod
    def parse(cls, text: str, functions: Iterable[str] = ()) -> Formula:
        """Read a formula.

        Parameters
        ----------
        text : str
            Such as ``"y ~ x * z + offset(log(e)) + (1 + x | g)"``. R spellings
            (``I(x^2)``, ``factor(g)``, ``c(1, 2)``, ``TRUE``, names with dots)
            are understood.
        functions : iterable of str, optional
            Names of functions that the formula may call besides `TRANSFORMS`.

        Returns
        -------
        Formula

        Raises
        ------
        FormulaError
            If the text cannot be read; its `position` is where.

        Examples
        --------
        >>> formula = Formula.parse("y ~ a * b + (1 | g)")
        >>> [term.name for term in formula.rhs.terms]
        ['Intercept', 'a', 'b', 'a:b']
        >>> formula.rhs.groups[0].factors
        ('g',)
        >>> formula.variables
        ('y', 'a', 'b', 'g')
        """
        if not isinstance(text, str):
            raise FormulaError(f"a formula is text, not {type(text).__name__}")
        return _parse(text, frozenset(functions))

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns mentioned: response, right-hand side, parts, call."""
        left = () if self.response is None else self.response.variables
        right = [name for rhs in (self.rhs, *self.parts) for name in rhs.variables]
        inside = () if self.call is None else self.call.variables
        return _unique([*left, *right, *inside])

    def __str__(self) -> str:
        return self.text.strip()


def _without_ticks(factor: str) -> str:
    bare = factor.startswith("`") and factor.find("`", 1) == len(factor) - 1
    return factor[1:-1] if bare else factor


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _variables(expressions: Iterable[str]) -> tuple[str, ...]:
    return _unique(name for e in expressions for name in expression_variables(e))


# --------------------------------------------------------------------------------------
# Reading it from the tokens
# --------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _parse(text: str, functions: frozenset[str]) -> Formula:
    text = re.sub(r"\s", " ", text)
    if not text.strip():
        raise FormulaError("the formula is empty: expected `y ~ x`", text, 0)
    try:
        parser = _Parser(text, functions)
        return parser.whole()
    except RecursionError:
        raise FormulaError("the formula is nested too deeply", text, 0) from None


class _Parser(TermReader):
    """Reads formulas: what stands around the terms."""

    # -- formulas

    def whole(self) -> Formula:
        """Read all the text."""
        hi = len(self.tokens)
        if self.is_call(0, hi) and self.tokens[0].text in MODEL_CALLS:
            return self.model()
        return self.formula(0, hi, self.text)

    def model(self) -> Formula:
        """Read a model call that is the whole text."""
        end = self.partner[1]
        if end + 1 < len(self.tokens):
            self.fail(f"nothing may follow {self.tokens[0].text}(...)", end + 1)
        call = self.call(0)
        first = call.formula
        if first is None:
            self.fail(f"{call.name}(...) needs a formula: {call.name}(y ~ x, ...)", end)
        return Formula(self.text, first.response, first.rhs, first.parts, call)

    def formula(self, lo: int, hi: int, text: str) -> Formula:
        """Read ``response ~ rhs | part | part``."""
        tildes = self.find(lo, hi, "~")
        if len(tildes) > 1:
            self.fail("a formula has one `~`, and this is the second", tildes[1])
        response = None
        start = lo
        if tildes:
            start = tildes[0] + 1
            if tildes[0] > lo:
                response = self.response(lo, tildes[0])
            if start == hi:
                position = self.tokens[tildes[0]].start
                raise FormulaError(
                    "nothing follows `~`: expected terms, or 1 for an intercept alone",
                    self.text,
                    position,
                )
        double = self.find(start, hi, "||")
        if double:
            self.fail("`||` belongs inside a group term: (x || g)", double[0])
        sections = self.split(start, hi, "|")
        for section_lo, section_hi in sections:
            if section_lo == section_hi:
                self.fail(
                    "expected terms on both sides of `|`", min(section_lo, hi - 1)
                )
        rhs, *parts = [self.rhs(lo, hi, i > 0) for i, (lo, hi) in enumerate(sections)]
        return Formula(text, response, rhs, tuple(parts))

    def response(self, lo: int, hi: int) -> Response:
        """Read a left-hand side."""
        text = self.slice(lo, hi)
        if self.is_call(lo, hi) and self.partner[lo + 1] == hi - 1:
            if self.tokens[lo].text == "cbind":
                return self.cbind(lo, hi)
            if self.tokens[lo].text in (*TERM_CALLS, *MODEL_CALLS):
                self.fail(f"`{self.tokens[lo].text}` cannot be a response", lo)
        bars = self.find(lo, hi, "|", "||")
        if bars:
            self.fail("`|` has no meaning on the left-hand side", bars[0])
        pieces = self.split(lo, hi, "+")
        for piece_lo, piece_hi in pieces:
            if piece_lo == piece_hi:
                self.fail("expected a response on both sides of `+`", min(piece_lo, hi))
        expressions = tuple(self.response_expression(*piece) for piece in pieces)
        kind: Literal["single", "multiple"] = (
            "single" if len(pieces) == 1 else "multiple"
        )
        return Response(kind, expressions, text)

    def cbind(self, lo: int, hi: int) -> Response:
        """Read ``cbind(successes, failures)``."""
        pieces = self.arguments(lo)
        if len(pieces) < 2:
            self.fail("cbind needs two columns or more: cbind(successes, failures)", lo)
        expressions = tuple(self.response_expression(*piece) for piece in pieces)
        return Response("cbind", expressions, self.slice(lo, hi))

    def response_expression(self, lo: int, hi: int) -> str:
        """Read one response, which must mention a column."""
        expression = self.expression(lo, hi)
        if not expression_variables(expression):
            self.fail("the response must be a column, not a constant", lo)
        return expression

    def rhs(self, lo: int, hi: int, part: bool = False) -> Rhs:
        """Read a right-hand side; in a part, after ``|``, ``a^b`` means ``a:b``."""
        if lo >= hi:
            self.fail("expected terms here", lo)
        self.in_part = part
        special = _Special()
        kept = self.take_special(lo, hi, special)
        return Rhs(
            self.terms(kept),
            tuple(special.groups),
            tuple(special.offsets),
            tuple(special.calls),
            self.slice(lo, hi),
        )

    # -- what formulaic does not know

    def take_special(self, lo: int, hi: int, special: _Special) -> list[int]:
        """Read group terms, offsets and calls; return the other token indices."""
        kept: list[int] = []
        index = lo
        while index < hi:
            end = self.special_end(index, hi)
            if end is None:
                stop = index
                if self.is_call(index, hi):
                    stop = self.partner[index + 1]
                elif self.tokens[index].kind == "open":
                    stop = self.partner[index]
                kept.extend(range(index, stop + 1))
                index = stop + 1
                continue
            self.check_added(index, end, lo, hi)
            while kept and self.tokens[kept[-1]].text == "+":
                kept.pop()
            self.read_special(index, end, special, kept)
            index = end
        return kept

    def special_end(self, index: int, hi: int) -> int | None:
        """Return where a special summand that starts here ends, or None."""
        token = self.tokens[index]
        if token.text == "(":
            end = self.partner[index]
            return end + 1 if self.holds_special(index + 1, end) else None
        if not self.is_call(index, hi):
            return None
        end = self.partner[index + 1] + 1
        if token.text in MODEL_CALLS:
            self.fail(f"{token.text}(...) must be the whole formula", index)
        if token.text == "offset" or token.text in TERM_CALLS:
            return end
        if not self.find(index + 2, end - 1, "|", "||"):
            if token.text in STRUCTURES and token.text not in TRANSFORMS:
                self.fail(f"expected a group term, as in {token.text}(x | g)", end - 1)
            return None
        if token.text in STRUCTURES:
            return end
        name = R_FUNCTIONS.get(token.text, token.text)
        if name not in TRANSFORMS and name not in self.functions:
            if self.tokens[index + 1].start > token.end:
                self.fail("expected `+` before a group term", index + 1)
            self.fail(_unknown_structure(token.text), index)
        return None

    def holds_special(self, lo: int, hi: int) -> bool:
        """Whether parentheses hold a group term, an offset or a call."""
        if self.find(lo, hi, "|", "||"):
            return True
        return any(
            self.special_end(i, hi) is not None for i in self.top_operands(lo, hi)
        )

    def top_operands(self, lo: int, hi: int) -> Iterator[int]:
        """Yield where each operand of a range starts, skipping call arguments."""
        index = lo
        while index < hi:
            yield index
            if self.is_call(index, hi):
                index = self.partner[index + 1]
            elif self.tokens[index].kind == "open":
                index = self.partner[index]
            index += 1

    def check_added(self, index: int, end: int, lo: int, hi: int) -> None:
        """Refuse a special summand that is not simply added."""
        what = f"`{self.slice(index, end)}`"
        before = index - 1
        while before >= lo and self.tokens[before].text in ("+", "-"):
            if self.tokens[before].text == "-":
                self.fail(f"{what} cannot be subtracted: leave it out", before)
            before -= 1
        for neighbour, alone in ((index - 1, index == lo), (end, end == hi)):
            if not alone and self.tokens[neighbour].text not in ("+", "-"):
                operand = self.tokens[neighbour].is_operand_end
                position = index if neighbour < index and operand else neighbour
                self.fail(f"{what} can only be added: expected `+` here", position)
        if end < hi and end + 1 == hi:
            self.fail(f"nothing follows `{self.tokens[end].text}`", end)

    def read_special(
        self, index: int, end: int, special: _Special, kept: list[int]
    ) -> None:
        """Read one special summand into its list."""
        token = self.tokens[index]
        if token.text == "(":
            if self.find(index + 1, end - 1, "|", "||"):
                special.groups += self.group(index, index, end)
                return
            inner = self.take_special(index + 1, end - 1, special)
            if inner:
                plus = [index - 1] if kept else []
                kept += [*plus, index, *inner, end - 1]
        elif token.text == "offset":
            pieces = self.arguments(index)
            if len(pieces) != 1:
                self.fail("offset() takes one expression", index)
            special.offsets.append(self.expression(*pieces[0]))
        elif token.text in TERM_CALLS:
            special.calls.append(self.call(index))
        else:
            special.groups += self.group(index, index + 1, end)

    def group(self, start: int, opening: int, end: int) -> list[GroupTerm]:
        """Read ``(terms | factors)``, expanding nested and crossed factors."""
        lo, hi = opening + 1, end - 1
        structure = self.tokens[start].text if start < opening else "us"
        (lo, hi), *extra = self.split(lo, hi, ",")
        if extra and structure == "us":
            self.fail("unexpected `,` in a group term", hi)
        bar, *others = self.find(lo, hi, "|", "||") or [hi]
        if bar == hi:
            self.fail("expected `|` before the `,`", hi)
        if others:
            self.fail("a group term has one bar: (x | g)", others[0])
        if bar == lo:
            self.fail("expected what varies before the bar: (1 | g)", bar)
        if bar + 1 == hi:
            self.fail("expected a grouping factor after the bar: (1 | g)", hi)
        terms = self.terms(self.plain(lo, bar))
        if not terms:
            self.fail("nothing varies in this group term: write (1 | g)", lo)
        factors = [t.factors for t in self.terms(self.plain(bar + 1, hi)) if t.factors]
        if not factors:
            self.fail("expected a grouping factor after the bar: (1 | g)", bar + 1)
        correlated = self.tokens[bar].text == "|"
        options = tuple(self.option(*piece) for piece in extra)
        text, position = self.slice(start, end), self.tokens[start].start
        return [
            GroupTerm(terms, f, correlated, structure, text, position, options)
            for f in factors
        ]

    def terms(self, indices: list[int]) -> tuple[Term, ...]:
        """Expand ordinary summands."""
        return tuple(map(Term, self.factors(indices)))

    def plain(self, lo: int, hi: int) -> list[int]:
        """Refuse offsets, calls and groups inside a group term."""
        for index in self.top_operands(lo, hi):
            if self.special_end(index, hi) is not None:
                self.fail("only ordinary terms can stand inside a group term", index)
        return list(range(lo, hi))

    # -- calls and their options

    def arguments(self, index: int) -> list[tuple[int, int]]:
        """Cut the arguments of a call, none of which may be empty."""
        lo, hi = index + 2, self.partner[index + 1]
        if lo == hi:
            self.fail(f"{self.tokens[index].text}() needs arguments", hi)
        pieces = self.split(lo, hi, ",")
        for piece_lo, piece_hi in pieces:
            if piece_lo == piece_hi:
                self.fail("expected an argument here", piece_hi)
        return pieces

    def call(self, index: int) -> Call:
        """Read a model call or a term call."""
        arguments: list[str | Formula] = []
        options: dict[str, Any] = {}
        for lo, hi in self.arguments(index):
            if lo + 1 < hi and self.tokens[lo + 1].text == "=":
                key, value = self.option(lo, hi)
                if key in options:
                    self.fail(f"the option `{key}` is given twice", lo)
                options[key] = value
            elif options:
                self.fail("a formula or column must come before the options", lo)
            elif self.find(lo, hi, "~"):
                arguments.append(self.formula(lo, hi, self.slice(lo, hi)))
            else:
                arguments.append(self.expression(lo, hi))
        end = self.partner[index + 1] + 1
        return Call(
            self.tokens[index].text,
            tuple(arguments),
            tuple(options.items()),
            self.slice(index, end),
            self.tokens[index].start,
        )

    def option(self, lo: int, hi: int) -> tuple[str, Any]:
        """Read ``name=value``: a literal, a column, or ``~ rhs``."""
        named = lo + 1 < hi and self.tokens[lo + 1].text == "="
        if not named or self.tokens[lo].kind != "name":
            self.fail("expected an option, name=value", lo)
        key = self.tokens[lo].text
        lo += 2
        if lo == hi:
            self.fail(f"expected a value after `{key}=`", hi)
        if self.tokens[lo].text == "~":
            if lo + 1 == hi:
                self.fail("nothing follows `~`: expected terms", lo)
            return key, self.rhs(lo + 1, hi)
        expression = self.expression(lo, hi)
        try:
            return key, _freeze(ast.literal_eval(expression))
        except (ValueError, SyntaxError):
            pass
        if hi == lo + 1:
            return key, Name(expression_variables(expression)[0])
        self.fail(f"`{key}=` takes a constant, a column name, or a `~` formula", lo)


class _Special:
    """The summands that formulaic does not know."""

    def __init__(self) -> None:
        self.groups: list[GroupTerm] = []
        self.offsets: list[str] = []
        self.calls: list[Call] = []


def _unknown_structure(name: str) -> str:
    close = difflib.get_close_matches(name, STRUCTURES, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return (
        f"unknown covariance structure `{name}`: {hint}"
        f"(there are {', '.join(STRUCTURES)})"
    )


def _freeze(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, (dict, set)):
        raise ValueError("not hashable")
    return value
