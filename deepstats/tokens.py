"""A formula cut into tokens, its brackets paired."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from .errors import FormulaError

__all__ = ["Token", "Tokens", "scan"]

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
class Token:
    """A piece of a text, its kind and its place."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def is_operand_end(self) -> bool:
        """Whether an operand may end here."""
        return self.kind in ("name", "quoted", "number", "string", "close")

    @property
    def is_operand_start(self) -> bool:
        """Whether an operand may start here."""
        return self.kind in ("name", "quoted", "number", "string", "open")


def scan(text: str) -> tuple[list[Token], dict[int, int]]:
    """Cut the text into tokens and pair its brackets by token index."""
    tokens: list[Token] = []
    partner: dict[int, int] = {}
    opened: list[int] = []
    position = 0
    while position < len(text):
        match = _SCAN.match(text, position)
        if match is None:
            _refuse_character(text, position)
        kind = match.lastgroup or ""
        token = Token(kind, match.group(), position, match.end())
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
    tokens: list[Token],
    partner: dict[int, int],
    opened: list[int],
    token: Token,
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


def _check_letters(text: str, token: Token) -> None:
    """Refuse symbols such as a typographic minus, which are no part of a name."""
    for offset, character in enumerate(token.text):
        if character.isascii() or unicodedata.category(character)[0] in "LMN":
            continue
        plain = character.translate(_LOOKALIKES)
        hint = f": write `{plain}`" if plain != character else ""
        raise FormulaError(
            f"unexpected character {character!r}{hint}", text, token.start + offset
        )


class Tokens:
    """The tokens of a text; every method takes token indices ``[lo, hi)``.

    Attributes
    ----------
    text : str
    tokens : list of Token
    partner : dict of int to int
        Of each bracket, the index of the one that it pairs with.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens, self.partner = scan(text)

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
