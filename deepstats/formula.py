"""The formula language: from text to terms, without touching data.

The text is scanned once; group terms ``(x | g)``, offsets and model calls are taken
out, R spellings are rewritten, and formulaic expands the rest (``a*b``, ``a/b``,
``(a + b)^2``). Every error points at the character that is wrong.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NoReturn

from formulaic.parser import DefaultFormulaParser

from deepstats.errors import FormulaError
from deepstats.transforms import (
    CONSTANTS,
    CONTRASTS,
    PATSY_CONTRASTS,
    TRANSFORMS,
    demangle,
    expression_variables,
    is_plain_name,
    mangle,
    parse_expression,
)

__all__ = [
    "MODEL_CALLS",
    "STRUCTURES",
    "TERM_CALLS",
    "Call",
    "Formula",
    "GroupTerm",
    "Name",
    "Response",
    "Rhs",
    "Term",
    "check_expression",
]

STRUCTURES = (
    "us",
    "diag",
    "homdiag",
    "cs",
    "hcs",
    "ar1",
    "ou",
    "toep",
    "exp",
    "gau",
    "mat",
    "rr",
)
"""Covariance structures that may stand before a group term: ``ar1(0 + t | g)``."""

MODEL_CALLS = ("traj",)
"""Models written as one call around their formulas: ``traj(y ~ t, groups=3, id=g)``."""

TERM_CALLS = ("nn",)
"""Model parts that may be added to a right-hand side: ``y ~ x + nn(z1, z2)``."""

MAX_TERMS = 10_000
"""A formula that would expand to more terms than this is refused."""


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
# Scanning
# --------------------------------------------------------------------------------------

_SCAN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?L?)
  | (?P<name>\.?(?:[^\W\d]|[^\x00-\x7f])(?:[\w.]|[^\x00-\x7f])*)
  | (?P<quoted>`[^`]*`)
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<operator>%[^%\s]*%|\*\*|\|\||&&|==|!=|<=|>=|:=|//|[-+*/:^~|&<>=!,.%@$;?])
  | (?P<open>[(\[{])
  | (?P<close>[)\]}])
    """,
    re.VERBOSE,
)
_CLOSER = {"(": ")", "[": "]", "{": "}"}
_LOOKALIKES = str.maketrans("−–—×÷∼“”‘’", "---*/~\"\"''")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int

    @property
    def is_operand_end(self) -> bool:
        return self.kind in ("name", "quoted", "number", "string", "close")

    @property
    def is_operand_start(self) -> bool:
        return self.kind in ("name", "quoted", "number", "string", "open")


def _scan(text: str) -> tuple[list[_Token], dict[int, int]]:
    """Cut the text into tokens and pair its brackets by token index."""
    tokens: list[_Token] = []
    partner: dict[int, int] = {}
    opened: list[int] = []
    position = 0
    while position < len(text):
        match = _SCAN.match(text, position)
        if match is None:
            _refuse_character(text, position)
        kind = match.lastgroup or ""
        token = _Token(kind, match.group(), position, match.end())
        position = match.end()
        if kind == "space":
            continue
        if kind == "name" and not token.text.isascii():
            _check_letters(text, token)
        if kind == "open":
            opened.append(len(tokens))
        elif kind == "close":
            _pair(text, tokens, partner, opened, token)
        tokens.append(token)
    if opened:
        bracket = tokens[opened[-1]]
        raise FormulaError(
            f"`{bracket.text}` is never closed: expected `{_CLOSER[bracket.text]}`",
            text,
            bracket.start,
        )
    return tokens, partner


def _pair(
    text: str,
    tokens: list[_Token],
    partner: dict[int, int],
    opened: list[int],
    token: _Token,
) -> None:
    if not opened:
        raise FormulaError(f"`{token.text}` closes nothing", text, token.start)
    expected = _CLOSER[tokens[opened[-1]].text]
    if token.text != expected:
        raise FormulaError(
            f"expected `{expected}` here, not `{token.text}`", text, token.start
        )
    index = opened.pop()
    partner[index], partner[len(tokens)] = len(tokens), index


def _refuse_character(text: str, position: int) -> NoReturn:
    character = text[position]
    if character in "\"'`":
        message = f"{character} is never closed"
    elif character == "\\":
        message = "a backslash has no meaning here"
    else:
        message = f"unexpected character {character!r}"
    raise FormulaError(message, text, position)


def _check_letters(text: str, token: _Token) -> None:
    """Refuse symbols such as a typographic minus, which are no part of a name."""
    for offset, character in enumerate(token.text):
        if character.isascii() or unicodedata.category(character)[0] in "LMN":
            continue
        plain = character.translate(_LOOKALIKES)
        hint = f": write `{plain}`" if plain != character else ""
        raise FormulaError(
            f"unexpected character {character!r}{hint}", text, token.start + offset
        )


# --------------------------------------------------------------------------------------
# Expressions
# --------------------------------------------------------------------------------------

_R_FUNCTIONS = {
    "factor": "C",
    "as.factor": "C",
    "ifelse": "where",
    "pmin": "minimum",
    "pmax": "maximum",
    "ceiling": "ceil",
    "plogis": "expit",
    "qlogis": "logit",
}
_R_CONSTANTS = {"TRUE": "True", "FALSE": "False", "NULL": "None"}
_R_OPERATORS = {
    "^": "**",
    # R's & and | bind less tightly than comparisons; Python's `and` and `or` do too
    "&": " and ",
    "|": " or ",
    "!": " not ",
    "~": " not ",
    "%%": "%",
    "%/%": "//",
    "%in%": " in ",
}
_PLAIN_OPERATORS = frozenset(
    ["+", "-", "*", "/", "//", "**", "%", "==", "!=", "<", "<=", ">", ">=", ","]
)
_WORD_OPERATORS = frozenset(["and", "or", "not", "in"])
_ALLOWED_NODES = (
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.BoolOp,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
    ast.keyword,
)
_FORBIDDEN_OPERATORS = (ast.MatMult, ast.LShift, ast.RShift, ast.BitXor)
_REFUSED = " is not allowed in a formula"
_NODE_NAMES = {
    "Attribute": "attribute access (`x.y`)",
    "Subscript": "a subscript (`x[...]`)",
    "Lambda": "a lambda",
    "NamedExpr": "an assignment (`:=`)",
    "JoinedStr": "an f-string",
    "IfExp": "if/else (use where(condition, yes, no))",
    "Starred": "a `*` argument",
    "Await": "await",
    "Yield": "yield",
    "Set": "a set",
}


def check_expression(expression: str, functions: Iterable[str] = ()) -> None:
    """Check that an expression uses only what a formula may use; run nothing.

    Allowed are names, constants, arithmetic, comparisons, and/or/not, lists, tuples
    and dictionaries of constants, and calls of functions in `TRANSFORMS`, in
    `functions`, or ``contr.<name>``.

    Parameters
    ----------
    expression : str
        A canonical Python expression; odd column names stand in backticks.
    functions : iterable of str, optional
        Further function names.

    Raises
    ------
    FormulaError
        Naming the first thing that is not allowed.
    """
    try:
        tree = parse_expression(expression)
    except ValueError as error:
        raise FormulaError(str(error)) from error
    found = _violation(tree, frozenset(functions))
    if found is not None:
        raise FormulaError(found[0], expression)


def _violation(node: ast.AST, functions: frozenset[str]) -> tuple[str, ast.AST] | None:
    """Return what is wrong first in a tree, and the node that is wrong."""
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Name):
        if node.id.startswith("__"):
            return f"names with two leading underscores (`{node.id}`) are refused", node
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, (int, float, str, bool, type(None))):
            return f"the constant {node.value!r} is not allowed", node
    elif isinstance(node, ast.Attribute):
        if not _is_contrast(node):
            return _NODE_NAMES["Attribute"] + _REFUSED, node
        children = ()
    elif isinstance(node, ast.Call):
        message = _call_violation(node, functions)
        if message:
            return message, node
        children = [*node.args, *node.keywords]
    elif isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
        if any(isinstance(n, (ast.Name, ast.Call)) for n in ast.walk(node)):
            return "a list may hold constants only, not columns or calls", node
        if isinstance(node, ast.Dict) and None in node.keys:
            return "`**` arguments are not allowed in a formula", node
    elif isinstance(node, _FORBIDDEN_OPERATORS) or not isinstance(node, _ALLOWED_NODES):
        kind = type(node).__name__
        default = f"a {kind.replace('Comp', ' comprehension').lower()}"
        return _NODE_NAMES.get(kind, default) + _REFUSED, node
    elif isinstance(node, ast.keyword) and node.arg is None:
        return "`**` arguments are not allowed in a formula", node
    for child in children:
        found = _violation(child, functions)
        if found is not None:
            where = found[1] if hasattr(found[1], "col_offset") else node
            return found[0], where
    return None


def _is_contrast(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "contr"
        and node.attr in CONTRASTS
    )


def _call_violation(node: ast.Call, functions: frozenset[str]) -> str | None:
    if _is_contrast(node.func):
        return None
    if not isinstance(node.func, ast.Name):
        return "only functions called by name are allowed in a formula"
    name = node.func.id
    if name in TRANSFORMS or name in functions:
        return None
    return _unknown_function(name, functions)


def _unknown_function(name: str, functions: Iterable[str], extra: str = "") -> str:
    if name == "cbind":
        return "cbind(...) is only allowed as the whole left-hand side"
    known = sorted(({*TRANSFORMS} - {*PATSY_CONTRASTS}) | {*functions})
    close = difflib.get_close_matches(
        name.rsplit(".", 1)[-1], [*known, *_R_FUNCTIONS, *TERM_CALLS], n=1, cutoff=0.6
    )
    hint = f"did you mean `{close[0]}`?" if close else "it can use " + ", ".join(known)
    return (
        f"unknown function `{name}`{extra}: {hint} "
        "(pass functions of your own with context={...})"
    )


def _string_value(literal: str) -> str:
    """Read a quoted text as R and Python agree to: a backslash protects one sign."""
    escapes = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda m: escapes.get(m[1], m[1]), literal[1:-1])


# --------------------------------------------------------------------------------------
# Term algebra: the only place that knows formulaic's parser
# --------------------------------------------------------------------------------------

_FORMULAIC = DefaultFormulaParser(include_intercept=True)


@lru_cache(maxsize=4096)
def _expand(skeleton: str) -> tuple[tuple[str, ...], ...]:
    """Expand ``"v0 * v1"`` to its terms, by degree, the intercept first."""
    terms = _FORMULAIC.get_terms(skeleton)
    found = dict.fromkeys(
        tuple(factor.expr for factor in term.factors if factor.expr != "1")
        for term in terms
    )
    return tuple(sorted(found, key=len))


# --------------------------------------------------------------------------------------
# The parser
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


class _Parser:
    """Reads ranges of one token list; every method takes token indices [lo, hi)."""

    def __init__(self, text: str, functions: frozenset[str]):
        self.text, self.functions = text, functions
        self.tokens, self.partner = _scan(text)
        self.in_part = False

    # -- helpers

    def fail(self, message: str, index: int) -> NoReturn:
        """Raise at a token, or at the end of the text."""
        at_end = index >= len(self.tokens)
        position = len(self.text) if at_end else self.tokens[index].start
        raise FormulaError(message, self.text, position)

    def slice(self, lo: int, hi: int) -> str:
        """Return the text of a range as it was written."""
        return self.text[self.tokens[lo].start : self.tokens[hi - 1].end]

    def top(self, lo: int, hi: int) -> Iterator[int]:
        """Yield the indices of a range that are not inside brackets."""
        index = lo
        while index < hi:
            yield index
            index = self.partner[index] if self.tokens[index].kind == "open" else index
            index += 1

    def find(self, lo: int, hi: int, *operators: str) -> list[int]:
        """Return the indices of top-level operators."""
        return [
            i
            for i in self.top(lo, hi)
            if self.tokens[i].kind == "operator" and self.tokens[i].text in operators
        ]

    def split(self, lo: int, hi: int, operator: str) -> list[tuple[int, int]]:
        """Cut a range at top-level operators."""
        cuts = self.find(lo, hi, operator)
        return list(zip([lo, *(c + 1 for c in cuts)], [*cuts, hi], strict=True))

    def is_call(self, index: int, hi: int) -> bool:
        """Whether a name token is directly followed by its arguments."""
        return (
            index + 1 < hi
            and self.tokens[index].kind == "name"
            and self.tokens[index + 1].text == "("
        )

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
        name = _R_FUNCTIONS.get(token.text, token.text)
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

    # -- ordinary terms

    def terms(self, indices: list[int]) -> tuple[Term, ...]:
        """Check the order of operands and operators, then expand to terms."""
        atoms: dict[str, int] = {}
        skeleton = self.skeleton(indices, atoms)
        expressions = list(atoms)
        return tuple(
            Term(tuple(expressions[int(placeholder[1:])] for placeholder in factors))
            for factors in _expand(skeleton)
        )

    def skeleton(self, indices: list[int], atoms: dict[str, int]) -> str:
        """Write the terms with v0, v1, ... in place of columns and calls."""
        pieces: list[str] = []
        budget = _Budget()
        depth = at = 0
        while at < len(indices):
            index = indices[at]
            token = self.tokens[index]
            last = pieces[-1] if pieces else "("
            operand_next = last == "(" or last in _TERM_OPERATORS
            if token.kind == "operator":
                piece = self.term_operator(index, last, operand_next)
                pieces.append(piece)
                if piece == "**":
                    at += 1
                    following = indices[at] if at < len(indices) else index
                    pieces.append(self.exponent(index, following, budget))
            elif token.text == ")":
                if operand_next:
                    self.fail("expected a term before `)`", index)
                depth -= 1
                pieces.append(")")
            elif not operand_next:
                self.fail_operand(index)
            elif token.text == "(":
                depth += 1
                pieces.append("(")
            elif token.kind == "number":
                pieces.append(self.number(indices, at, depth))
            else:
                expression, at = self.atom(indices, at)
                pieces.append(f"v{atoms.setdefault(expression, len(atoms))}")
                budget.atoms += 1
            at += 1
        if pieces and (pieces[-1] in _TERM_OPERATORS):
            operator = self.tokens[indices[-1]]
            self.fail(
                f"nothing follows `{operator.text}`: expected a term", indices[-1]
            )
        if budget.exceeded(pieces):
            self.fail(f"this expands to more than {MAX_TERMS} terms", indices[0])
        return " ".join(pieces) or "1"

    def fail_operand(self, index: int) -> NoReturn:
        """Raise where an operand follows an operand."""
        token, before = self.tokens[index], self.tokens[index - 1]
        if token.start == before.end:
            if token.text.startswith("."):
                self.fail(_NODE_NAMES["Attribute"] + _REFUSED, index)
            if token.text == "[":
                self.fail(_NODE_NAMES["Subscript"] + _REFUSED, index)
        self.fail("expected an operator such as `+` before this", index)

    def term_operator(self, index: int, last: str, operand_next: bool) -> str:
        """Check an operator between terms and return formulaic's spelling of it."""
        text = self.tokens[index].text
        if text == ".":
            self.fail(
                "`.` (all other columns) is not supported, because a formula is read "
                "without the data: name the columns",
                index,
            )
        # a %in% b and a:b have the same model matrix in R
        operator = {"^": "**", "%in%": ":"}.get(text, text)
        following = self.tokens[min(index + 1, len(self.tokens) - 1)]
        if text == "^" and self.in_part and following.kind in ("name", "quoted"):
            operator = ":"
        if operator == ",":
            self.fail("unexpected `,`: join terms with `+`", index)
        if text in "@$;?" or text in ("=", ":=", "&&", "~"):
            self.fail(f"unexpected `{text}` between terms", index)
        if operator not in _TERM_OPERATORS:
            self.fail(f"`{text}` is not a formula operator: wrap it in I(...)", index)
        signed = operator in "+-" and (last == "(" or last in ("+", "-"))
        if operand_next and not signed:
            self.fail(f"expected a term before `{text}`", index)
        return operator

    def exponent(self, operator: int, index: int, budget: _Budget) -> str:
        """Read the whole number after ``^``."""
        token = self.tokens[index]
        value = token.text.removesuffix("L")
        if index == operator or not value.isdigit() or int(value) < 1:
            at = operator if index == operator else index
            self.fail(
                "expected a whole number after `^`, as in (a + b)^2; "
                "for the power of a column write I(x^2)",
                at,
            )
        budget.exponents.append(int(value))
        return value

    def number(self, indices: list[int], at: int, depth: int) -> str:
        """Accept 0 and 1 as summands of their own, outside parentheses."""
        index = indices[at]
        value = self.tokens[index].text
        if value not in ("0", "1"):
            self.fail(
                f"the number {value} is not a term: only 0 and 1 (the intercept) are; "
                f"for arithmetic write I({value} * x)",
                index,
            )
        around = [indices[i] for i in (at - 1, at + 1) if 0 <= i < len(indices)]
        if depth or any(self.tokens[i].text not in ("+", "-") for i in around):
            self.fail(
                f"{value} stands for the intercept and can only be added or "
                "subtracted, outside parentheses",
                index,
            )
        return value

    def atom(self, indices: list[int], at: int) -> tuple[str, int]:
        """Read a column, a call or ``{expression}``; return its last index too."""
        index = indices[at]
        token = self.tokens[index]
        if token.kind == "string":
            self.fail("text in quotes is not a term", index)
        if token.text == "[":
            self.fail("`[` is not allowed here", index)
        if token.text == "{":
            end = self.partner[index]
            if end == index + 1:
                self.fail("expected an expression between { and }", end)
            inner = self.expression(index + 1, end)
            named = is_plain_name(inner) or inner.startswith("`")
            expression = inner if named else f"I({inner})"
            return self.depends(expression, index), at + end - index
        if self.is_call(index, len(self.tokens)):
            end = self.partner[index + 1]
            expression = self.expression(index, end + 1)
            return self.depends(expression, index), at + end - index
        expression = self.expression(index, index + 1)
        if expression in CONSTANTS:
            self.fail(f"the constant {token.text} is not a term", index)
        return expression, at

    def depends(self, expression: str, index: int) -> str:
        """Refuse a term that no column enters."""
        if not expression_variables(expression):
            self.fail("this term is a constant: a term must mention a column", index)
        return expression

    # -- expressions

    def expression(self, lo: int, hi: int) -> str:
        """Rewrite R spellings, check, and return the canonical Python expression."""
        if lo >= hi:
            self.fail("expected an expression here", lo)
        if hi == lo + 1 and self.tokens[lo].kind in ("name", "quoted"):
            return demangle(self.word(lo, hi))
        return self.python(lo, hi)

    def python(self, lo: int, hi: int) -> str:
        """Build the Python source of a range, remembering where each piece was."""
        source, origins = "", []
        for index in range(lo, hi):
            piece = self.piece(index, lo, hi)
            origins.append((len(source), self.tokens[index].start))
            source += piece + " "
        try:
            tree = ast.parse(source.strip(), mode="eval").body
        except SyntaxError as error:
            position = _origin(origins, source, (error.offset or 1) - 1)
            shown = self.slice(lo, hi)
            raise FormulaError(
                f"`{shown}` is not a complete expression", self.text, position
            ) from None
        except (ValueError, MemoryError):
            self.fail("this expression is nested too deeply", lo)
        found = _violation(tree, self.functions)
        if found is not None:
            column = len(source.encode()[: found[1].col_offset].decode())  # type: ignore[attr-defined]
            position = _origin(origins, source, column)
            raise FormulaError(found[0], self.text, position)
        return demangle(ast.unparse(tree))

    def piece(self, index: int, lo: int, hi: int) -> str:
        """Translate one token of an expression to Python."""
        token = self.tokens[index]
        if index > lo and token.is_operand_start:
            self.check_neighbour(index)
        if token.kind in ("name", "quoted"):
            return self.word(index, hi)
        if token.kind == "number":
            return token.text.removesuffix("L")
        if token.kind == "string":
            return repr(_string_value(token.text))
        if token.kind == "operator":
            return self.expression_operator(index, lo)
        brackets = index if token.kind == "open" else self.partner[index]
        if brackets > lo and self.is_vector(brackets - 1):
            return "[" if token.kind == "open" else "]"
        return token.text

    def is_vector(self, index: int) -> bool:
        """Whether a token is the c of R's ``c(1, 2)``."""
        return self.tokens[index].text == "c" and self.is_call(index, len(self.tokens))

    def check_neighbour(self, index: int) -> None:
        """Refuse two operands side by side, subscripts and attributes."""
        token, before = self.tokens[index], self.tokens[index - 1]
        if not before.is_operand_end or before.text in _WORD_OPERATORS:
            return
        if token.text == "[":
            self.fail(_NODE_NAMES["Subscript"] + _REFUSED, index)
        if token.text == "(":
            if before.kind == "name":
                return
            self.fail("only functions called by name are allowed in a formula", index)
        if token.text.startswith(".") and token.start == before.end:
            self.fail(_NODE_NAMES["Attribute"] + _REFUSED, index)
        if token.text in _WORD_OPERATORS:
            return
        if before.kind == "name" and token.kind == "string":
            self.fail(f"`{before.text}` cannot stand before text in quotes", index)
        if keyword.iskeyword(before.text):
            self.fail(_keyword_message(before.text), index - 1)
        if keyword.iskeyword(token.text):
            self.fail(_keyword_message(token.text), index)
        self.fail("expected an operator before this", index)

    def word(self, index: int, hi: int) -> str:
        """Translate a name: a column, a function, a constant or a keyword argument."""
        token = self.tokens[index]
        if token.kind == "quoted":
            name = token.text[1:-1]
            if not name.strip():
                self.fail("expected a column name between the backticks", index)
            return mangle(name)
        name = token.text
        if "__" in name and (name.startswith("__") or ".__" in name):
            self.fail(
                f"names with two leading underscores are refused (`{name}`); "
                "put a column name in backticks",
                index,
            )
        if self.is_call(index, hi):
            return self.function(index)
        if name in _R_CONSTANTS or name in CONSTANTS:
            return _R_CONSTANTS.get(name, name)
        if index + 1 < hi and self.tokens[index + 1].text == "=":
            return name if name.isascii() and "." not in name else _argument(name)
        if name.startswith("contr."):
            self.check_contrast(index)
            return name
        if name in _WORD_OPERATORS and hi - index > 1:
            return f" {name} "
        if keyword.iskeyword(name):
            self.fail(_keyword_message(name), index)
        return mangle(name)

    def function(self, index: int) -> str:
        """Translate the name of a function and check that it may be called."""
        name = self.tokens[index].text
        if name in self.functions and name.isascii():
            return name
        if name == "c":
            return ""
        if name.startswith("contr."):
            self.check_contrast(index)
            return name
        if name in _WORD_OPERATORS:
            return f" {name} "
        if keyword.iskeyword(name):
            self.fail(_keyword_message(name), index)
        name = _R_FUNCTIONS.get(name, name)
        # As statsmodels' users write it; still only the functions of our own list.
        module, _, plain = name.rpartition(".")
        if module in ("np", "numpy") and plain in TRANSFORMS:
            return plain
        if name in TRANSFORMS:
            return name
        if name in (*TERM_CALLS, *MODEL_CALLS, "offset"):
            self.fail(f"`{name}(...)` can only be a summand of its own", index)
        extra = ""
        bare = name.rsplit(".", 1)[-1]
        if "." in name and bare in TRANSFORMS:
            extra = f" (write {bare}(...) without `{name[: -len(bare)]}`)"
        self.fail(_unknown_function(name, self.functions, extra), index)

    def check_contrast(self, index: int) -> None:
        """Refuse a contrast that does not exist."""
        name = self.tokens[index].text.removeprefix("contr.")
        if name not in CONTRASTS:
            close = difflib.get_close_matches(name, CONTRASTS, n=1, cutoff=0.5)
            allowed = ", ".join(f"contr.{contrast}" for contrast in CONTRASTS)
            hint = f": did you mean `contr.{close[0]}`?" if close else ""
            self.fail(
                f"unknown contrast `contr.{name}`{hint} (there are {allowed})", index
            )

    def expression_operator(self, index: int, lo: int) -> str:
        """Translate an operator inside an expression."""
        text = self.tokens[index].text
        if text in _PLAIN_OPERATORS:
            return text
        if text == "=":
            before = self.tokens[index - 1] if index > lo else None
            if before is None or before.kind != "name" or not self.in_call(index, lo):
                self.fail("unexpected `=`: to compare, write `==`", index)
            return "="
        if text == ":" and self.enclosing(index, lo) == "{":
            return ":"
        if text == "~" and index > lo and self.tokens[index - 1].is_operand_end:
            self.fail("unexpected `~` inside an expression", index)
        if text in _R_OPERATORS:
            return _R_OPERATORS[text]
        hints = {
            "&&": "write `&`",
            "||": "write `|`",
            ":=": "nothing can be assigned in a formula",
            ":": "write an interaction outside of calls, and a sequence as c(1, 2, 3)",
            ".": "attribute access (`x.y`) is not allowed in a formula",
        }
        hint = f": {hints[text]}" if text in hints else ""
        self.fail(f"unexpected `{text}` in an expression{hint}", index)

    def in_call(self, index: int, lo: int) -> bool:
        """Whether a token is directly inside the parentheses of a call."""
        opening = self.opening(index, lo)
        return (
            opening is not None
            and opening > lo
            and self.is_call(opening - 1, len(self.tokens))
        )

    def enclosing(self, index: int, lo: int) -> str:
        """Return the bracket that a token is directly inside of."""
        opening = self.opening(index, lo)
        return "" if opening is None else self.tokens[opening].text

    def opening(self, index: int, lo: int) -> int | None:
        """Return the index of the bracket that a token is directly inside of."""
        index -= 1
        while index >= lo:
            if self.tokens[index].kind == "open":
                return index
            if self.tokens[index].kind == "close":
                index = self.partner[index]
            index -= 1
        return None


_TERM_OPERATORS = frozenset(["+", "-", "*", "/", ":", "**"])


class _Special:
    """The summands that formulaic does not know."""

    def __init__(self) -> None:
        self.groups: list[GroupTerm] = []
        self.offsets: list[str] = []
        self.calls: list[Call] = []


class _Budget:
    """An upper bound on the work that expanding a formula takes."""

    def __init__(self) -> None:
        self.atoms = 0
        self.exponents: list[int] = []

    def exceeded(self, pieces: list[str]) -> bool:
        """Whether the expansion could pass `MAX_TERMS`."""
        crossings = sum(piece == "*" for piece in pieces)
        if crossings > 12 and 2 ** (crossings + 1) > MAX_TERMS:
            return True
        power = 1
        for exponent in self.exponents:
            power *= exponent
        if power == 1:
            return False
        # formulaic forms all products of `power` operands before it removes repeats
        count = max(self.atoms, 1) * 2 ** min(crossings, 13)
        return power > 64 or count**power > MAX_TERMS * 10


def _unknown_structure(name: str) -> str:
    close = difflib.get_close_matches(name, STRUCTURES, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return (
        f"unknown covariance structure `{name}`: {hint}"
        f"(there are {', '.join(STRUCTURES)})"
    )


def _keyword_message(name: str) -> str:
    return (
        f"Python's `{name}` is not allowed in a formula "
        "(put a column of that name in backticks)"
    )


def _argument(name: str) -> str:
    """Spell an R argument such as ``Boundary.knots`` as Python does."""
    return name.replace(".", "_").lower()


def _origin(origins: list[tuple[int, int]], source: str, column: int) -> int:
    """Return where in the formula a column of the Python source came from."""
    position = origins[0][1]
    for start, origin in origins:
        if start > column:
            break
        position = origin
    return position


def _freeze(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, (dict, set)):
        raise ValueError("not hashable")
    return value
