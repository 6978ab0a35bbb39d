"""Expressions of a formula as text: names, quoting, and the columns they mention."""

from __future__ import annotations

import ast
import keyword
import re
from functools import lru_cache

from .contrasts import PATSY_CONTRASTS
from .errors import DesignError

__all__ = [
    "CONSTANTS",
    "column_name",
    "demangle",
    "expression_variables",
    "is_plain_name",
    "mangle",
    "parse_expression",
    "quote_name",
    "text_of",
]

CONSTANTS = frozenset({"True", "False", "None"})


_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]+)`""")


_MANGLED = re.compile(r"\b_bq([0-9a-f]+)_\b")


def is_plain_name(name: str) -> bool:
    """Whether a column name can stand in an expression without backticks.

    Python rewrites non-ASCII identifiers to their NFKC form, so that a column called
    with the micro sign would be looked up under the Greek letter: those are quoted.
    """
    return (
        name.isascii()
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith(("__", "_bq"))
    )


def quote_name(name: str) -> str:
    """Write a column name as it must stand in an expression.

    Parameters
    ----------
    name : str
        A column name.

    Returns
    -------
    str
        The name itself where it is a plain identifier, else the name in backticks.

    Examples
    --------
    >>> quote_name("x"), quote_name("my column"), quote_name("a.b")
    ('x', '`my column`', '`a.b`')
    """
    return name if is_plain_name(name) else f"`{name}`"


def mangle(name: str) -> str:
    """Encode any column name as an ASCII identifier."""
    return name if is_plain_name(name) else f"_bq{name.encode().hex()}_"


def demangle(text: str) -> str:
    """Put the backticked names back into a text made with `mangle`."""
    return _MANGLED.sub(lambda m: f"`{bytes.fromhex(m[1]).decode()}`", text)


def column_name(identifier: str) -> str:
    """Return the column that an identifier of a parsed expression stands for."""
    return demangle(identifier).strip("`") if "_bq" in identifier else identifier


@lru_cache(maxsize=4096)
def parse_expression(expression: str) -> ast.expr:
    """Parse a canonical expression, in which odd column names stand in backticks.

    Parameters
    ----------
    expression : str
        One factor of a formula, such as ``"poly(x, 2)"`` or ``"`my column`"``.

    Returns
    -------
    ast.expr
        The tree; nothing is checked or run.

    Raises
    ------
    DesignError
        If the text is not a Python expression.
    """
    source = _QUOTED.sub(lambda m: m[1] or mangle(m[2]), expression)
    try:
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DesignError(f"cannot read the expression `{expression}`") from error


@lru_cache(maxsize=4096)
def expression_variables(expression: str) -> tuple[str, ...]:
    """List the columns an expression mentions, in order, without functions.

    Examples
    --------
    >>> expression_variables("poly(x, 2) * log(`my column`)")
    ('x', 'my column')
    """
    found: dict[str, None] = {}
    _collect_variables(parse_expression(expression), found)
    return tuple(found)


def _collect_variables(node: ast.AST, found: dict[str, None]) -> None:
    if isinstance(node, ast.Name):
        found[column_name(node.id)] = None
    elif isinstance(node, ast.Attribute):
        return
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "Q" and node.args and isinstance(node.args[0], ast.Constant):
            found[str(node.args[0].value)] = None
            return
        for index, argument in enumerate([*node.args, *node.keywords]):
            if not (name == "C" and index and _is_contrast(argument)):
                _collect_variables(argument, found)
    else:
        for child in ast.iter_child_nodes(node):
            _collect_variables(child, found)


def _is_contrast(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.keyword) else node
    return isinstance(value, ast.Name) and value.id in PATSY_CONTRASTS


def text_of(node: ast.AST) -> str:
    """Write a tree as text, its odd column names in backticks."""
    return demangle(ast.unparse(node))
