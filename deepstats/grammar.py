"""Expressions and terms of the formula language, read from its tokens.

R spellings are rewritten to Python, what a formula may not use is refused where it
stands, and formulaic expands the algebra (``a*b``, ``a/b``, ``(a + b)^2``): this is the
only module that knows its parser.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NoReturn

from formulaic.parser import DefaultFormulaParser

from .contrasts import CONTRASTS, PATSY_CONTRASTS
from .errors import FormulaError
from .expressions import (
    CONSTANTS,
    demangle,
    expression_variables,
    is_plain_name,
    mangle,
    parse_expression,
)
from .tokens import Tokens
from .transforms import TRANSFORMS

__all__ = [
    "MAX_TERMS",
    "MODEL_CALLS",
    "R_FUNCTIONS",
    "TERM_CALLS",
    "TermReader",
    "check_expression",
]

MODEL_CALLS = ("traj", "rtm")
"""Models written as one call around their formulas: ``traj(y ~ t, groups=3, id=g)``."""


TERM_CALLS = ("nn",)
"""Model parts that may be added to a right-hand side: ``y ~ x + nn(z1, z2)``."""


MAX_TERMS = 10_000
"""A formula that would expand to more terms than this is refused."""

R_FUNCTIONS = {
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


_TERM_OPERATORS = frozenset(["+", "-", "*", "/", ":", "**"])


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
        name.rsplit(".", 1)[-1], [*known, *R_FUNCTIONS, *TERM_CALLS], n=1, cutoff=0.6
    )
    hint = f"did you mean `{close[0]}`?" if close else "it can use " + ", ".join(known)
    return (
        f"unknown function `{name}`{extra}: {hint} "
        "(pass functions of your own with context={...})"
    )


# -- the algebra of terms ------------------------------------------------------------

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


class TermReader(Tokens):
    """Reads expressions and terms from ranges of one token list.

    Attributes
    ----------
    functions : frozenset of str
        What may be called besides `TRANSFORMS`.
    in_part : bool
        After a ``|``, ``a^b`` means ``a:b``.
    """

    def __init__(self, text: str, functions: frozenset[str]) -> None:
        super().__init__(text)
        self.functions = functions
        self.in_part = False

    # -- ordinary terms

    def factors(self, indices: list[int]) -> tuple[tuple[str, ...], ...]:
        """Check operands and operators, then expand to the factors of each term."""
        atoms: dict[str, int] = {}
        skeleton = self.skeleton(indices, atoms)
        expressions = list(atoms)
        return tuple(
            tuple(expressions[int(placeholder[1:])] for placeholder in factors)
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
        name = R_FUNCTIONS.get(name, name)
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


def _string_value(literal: str) -> str:
    """Read a quoted text as R and Python agree to: a backslash protects one sign."""
    escapes = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda m: escapes.get(m[1], m[1]), literal[1:-1])
