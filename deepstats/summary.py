"""Printed pages: blocks of rows rendered as text, HTML, LaTeX and Markdown."""

from __future__ import annotations

import json
import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tabulate import tabulate

__all__ = [
    "Block",
    "Comparison",
    "Etable",
    "Notes",
    "Pairs",
    "Summary",
    "Table",
    "choose_terms",
    "coefficient_table",
    "compare",
    "etable",
]

Output = Literal["text", "html", "latex", "markdown", "frame"]


# ---------------------------------------------------------------- numbers


def _number(value: float, decimals: int = 4) -> str:
    """Write a float with fixed decimals, scientifically where those would mislead."""
    if not math.isfinite(value):
        return str(float(value))
    if value == 0 or 10.0 ** (1 - decimals) <= abs(value) < 1e7:
        return f"{value:.{decimals}f}"
    return f"{value:.{decimals - 1}e}"


def _value(value: object) -> str:
    """Write the value of a header pair: counts plain, criteria to two decimals."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return _number(number, 2 if abs(number) >= 100 else 4)
    return str(value)


def _cell(value: object, spec: str | None = None) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, (float, np.floating)):
        finite = math.isfinite(value)
        return format(value, spec) if spec and finite else _number(float(value))
    if spec and isinstance(value, (int, np.integer)):
        return format(value, spec)
    return _value(value)


# ----------------------------------------------------------------- blocks


@dataclass(frozen=True)
class _Grid:
    """What every renderer reads: strings in a rectangle, and how to set them.

    `align` has one letter per column: l, r, c, or d (aligned on the decimal point, so
    that brackets and stars hang). `head` has one tuple per line of heads. `sections`
    are (row, heading): a rule, and the heading if there is one, before that row. `foot`
    are rows below a last rule, centred where the rows are aligned on the point.
    """

    rows: tuple[tuple[str, ...], ...]
    align: str
    head: tuple[tuple[str, ...], ...] = ()
    foot: tuple[tuple[str, ...], ...] = ()
    sections: tuple[tuple[int, str], ...] = ()
    caption: str = ""
    pairs: bool = False
    stub: bool = True

    def parts(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Split the rows at the sections: (heading, rows) in order."""
        starts = [(0, "")] if not self.sections or self.sections[0][0] > 0 else []
        starts += list(self.sections)
        stops = [start for start, _ in starts[1:]] + [len(self.rows)]
        return [
            (heading, list(self.rows[start:stop]))
            for (start, heading), stop in zip(starts, stops, strict=True)
        ]


@dataclass(frozen=True)
class Pairs:
    """A header of labels and values, filled down the columns.

    Parameters
    ----------
    items : tuple of (str, object)
        Label and value; a value None leaves its place empty.
    columns : int, default 3
        Pairs side by side; text output uses fewer where they would not fit.
    """

    items: tuple[tuple[str, object], ...]
    columns: int = 3

    def _grid(self, width: int | None = None) -> _Grid:
        grid = self._arranged(self.columns)
        for columns in range(self.columns - 1, 0, -1):
            if width is None or _natural_width(grid) <= width:
                break
            grid = self._arranged(columns)
        return grid

    def _arranged(self, columns: int) -> _Grid:
        height = max(1, -(-len(self.items) // columns))
        groups = [
            self.items[start : start + height]
            for start in range(0, len(self.items), height)
        ]
        rows, align = [], ""
        for group in groups:
            present = [value for _, value in group if value is not None]
            numbers = all(
                isinstance(v, (int, float, np.number)) and not isinstance(v, bool)
                for v in present
            )
            align += "lr" if numbers else "ll"
        for i in range(height):
            cells: list[str] = []
            for group in groups:
                label, value = group[i] if i < len(group) else ("", None)
                cells += [label, _value(value)]
            rows.append(tuple(cells))
        return _Grid(tuple(rows), align, pairs=True, stub=False)


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a frame: heads, rows, and rules or sub-headings between rows.

    Parameters
    ----------
    frame : DataFrame
        Its column names are the heads (a MultiIndex gives several lines of them); its
        index, if `index`, the row labels.
    formats : dict of str to str, optional
        Format specification of a column's numbers, e.g. ``{"z": ".3f"}``. Other floats
        get four decimals, or scientific notation where these would mislead.
    caption : str, optional
        One line above the heads.
    index : bool, default True
        Whether the index is printed.
    sections : tuple of (int, str), optional
        A rule before the row of that number, with a heading if the text is not empty.
    align : str, optional
        One letter per frame column: l, r, c, or d (on the decimal point, for numbers
        with brackets or stars). By default numbers go right, text left.
    footer : int, default 0
        How many of the last rows stand below a rule as the foot of the table.

    Raises
    ------
    ValueError
        If a format names no column, `align` has the wrong letters, or `footer` is too
        large.
    """

    frame: pd.DataFrame
    formats: dict[str, str] | None = None
    caption: str | None = None
    index: bool = True
    sections: tuple[tuple[int, str], ...] = ()
    align: str | None = None
    footer: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats or ()) - set(map(str, self.frame.columns)))
        if unknown:
            raise ValueError(
                f"formats for columns that are not in the table: {unknown}; "
                f"the table has {list(self.frame.columns)}"
            )
        columns = self.frame.shape[1]
        if self.align is not None and not re.fullmatch(
            f"[lrcd]{{{columns}}}", self.align
        ):
            raise ValueError(
                f"align={self.align!r} must be {columns} letters out of l, r, c, d"
            )
        if not 0 <= self.footer <= len(self.frame):
            raise ValueError(
                f"footer={self.footer} must lie between 0 and {len(self.frame)} rows"
            )

    def _grid(self, width: int | None = None) -> _Grid:
        formats = self.formats or {}
        frame = self.frame
        columns = [
            [_cell(v, formats.get(str(name))) for v in frame.iloc[:, j]]
            for j, name in enumerate(frame.columns)
        ]
        heads = [list(map(str, line)) for line in _head_lines(frame.columns)]
        align = self.align or "".join(
            "r" if _is_numeric(frame.iloc[:, j]) else "l" for j in range(len(columns))
        )
        if self.index:
            columns.insert(0, [_label(entry) for entry in frame.index])
            for line, name in zip(heads, _stub_heads(frame), strict=True):
                line.insert(0, name)
            align = "l" + align
        rows = tuple(zip(*columns, strict=True))
        return _Grid(
            rows=rows[: len(rows) - self.footer],
            foot=rows[len(rows) - self.footer :],
            align=align,
            head=tuple(map(tuple, heads)),
            sections=tuple(sorted(self.sections)),
            caption=self.caption or "",
            stub=self.index,
        )


@dataclass(frozen=True)
class Notes:
    """Lines of plain text, wrapped to the page.

    Parameters
    ----------
    lines : tuple of str
        One note each.
    """

    lines: tuple[str, ...]


Block = Pairs | Table | Notes


def _head_lines(columns: pd.Index) -> list[tuple[object, ...]]:
    if isinstance(columns, pd.MultiIndex):
        return [tuple(columns.get_level_values(i)) for i in range(columns.nlevels)]
    return [tuple(columns)]


def _stub_heads(frame: pd.DataFrame) -> list[str]:
    """Heads over the row labels: names of the column levels, else of the index."""
    names = list(frame.columns.names)
    if names == [None]:
        names = [frame.index.name]
    return ["" if name is None else str(name) for name in names]


def _label(entry: object) -> str:
    if isinstance(entry, tuple):
        return ", ".join(str(part) for part in entry if part != "")
    return str(entry)


def _is_numeric(column: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column):
        return False
    if pd.api.types.is_numeric_dtype(column):
        return True
    present = [v for v in column if v is not None and v is not pd.NA]
    return bool(present) and all(
        isinstance(v, (int, float, np.number)) and not isinstance(v, (bool, np.bool_))
        for v in present
    )


# ------------------------------------------------------------------- text

_NUMERIC = re.compile(
    r"([(\[]?[-+]?\d+(?:,\d{3})*)"  # up to the decimal point
    r"(\.\d.*|e[-+].*|,\s.*|[^\w\s]*)"
)


def _split_point(cell: str) -> tuple[str, str] | None:
    """Split '(1.23**' before its decimal point; None for a cell that is no number."""
    match = _NUMERIC.fullmatch(cell)
    return (match[1], match[2]) if match else None


def _point_room(grid: _Grid) -> list[tuple[int, int]]:
    """Characters before and after the decimal point of each column, else 0."""
    room = []
    for j, letter in enumerate(grid.align):
        cells = [_split_point(row[j]) for row in grid.rows] if letter == "d" else []
        splits = [split for split in cells if split]
        sizes = [(len(before), len(after)) for before, after in splits] or [(0, 0)]
        room.append((max(b for b, _ in sizes), max(a for _, a in sizes)))
    return room


def _pad_points(grid: _Grid) -> _Grid:
    """Pad the numbers of d-columns to one width with their points in one place."""
    room = _point_room(grid)

    def padded(cell: str, letter: str, before: int, after: int) -> str:
        split = _split_point(cell) if letter == "d" else None
        return split[0].rjust(before) + split[1].ljust(after) if split else cell

    rows = tuple(
        tuple(
            padded(cell, letter, *size)
            for cell, letter, size in zip(row, grid.align, room, strict=True)
        )
        for row in grid.rows
    )
    return replace(grid, rows=rows, align=grid.align.replace("d", "c"))


def _column_widths(grid: _Grid) -> list[int]:
    lines = [*grid.rows, *grid.head, *grid.foot]
    return [max(len(line[j]) for line in lines) for j in range(len(grid.align))]


def _natural_width(grid: _Grid) -> int:
    widths = _column_widths(grid)
    if grid.pairs:
        pairs = len(widths) // 2
        return sum(widths) + 2 * pairs + 3 * (pairs - 1)
    return sum(widths) + 2 * (len(widths) - 1)


def _gaps(grid: _Grid, widths: list[int], width: int) -> list[int]:
    """Spaces before each column, spreading what the page has left over."""
    count = len(widths)
    slack = width - sum(widths)
    if grid.pairs:
        pairs = count // 2
        slack -= 2 * pairs
        between = min(12, max(3, slack // max(1, pairs - 1)))
        return [0, 2, *[between, 2] * (pairs - 1)]
    if count == 1:
        return [0]
    gap = min(6, max(2, slack // (count - 1)))
    gaps = [0] + [gap] * (count - 1)
    if grid.stub:
        gaps[1] += max(0, slack - gap * (count - 1))
    return gaps


def _text_lines(grid: _Grid, width: int) -> list[str]:
    grid = _pad_points(grid)
    widths = _column_widths(grid)
    gaps = _gaps(grid, widths, width)

    def line(cells: tuple[str, ...]) -> str:
        out = ""
        for cell, letter, gap, size in zip(
            cells, grid.align, gaps, widths, strict=True
        ):
            adjust = {"l": cell.ljust, "r": cell.rjust, "c": cell.center}[letter]
            out += " " * gap + adjust(size)
        return out.rstrip()

    lines = [grid.caption] if grid.caption else []
    lines += [line(heads) for heads in grid.head]
    for number, (heading, rows) in enumerate(grid.parts()):
        if number > 0 or grid.sections[:1] == ((0, heading),):
            lines.append("-" * width)
        lines += [heading] if heading else []
        lines += [line(row) for row in rows]
    lines += ["-" * width, *map(line, grid.foot)] if grid.foot else []
    return lines


def _text_title(title: str, formula: str, width: int) -> list[str]:
    if not title and not formula:
        return []
    if len(title) + 3 + len(formula) <= width:
        return [(title + formula.rjust(width - len(title))).rstrip()]
    wrapped = textwrap.wrap(
        _unbreakable_brackets(formula),
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [title, *(line.replace("\x00", " ") for line in wrapped)]


def _unbreakable_brackets(formula: str) -> str:
    """Put NUL for blanks within brackets, where a line should not break."""
    depth, out = 0, ""
    for character in formula:
        depth += (character in "([{") - (character in ")]}")
        out += "\x00" if character == " " and depth > 0 else character
    return out


def _note_lines(notes: Notes, width: int) -> list[str]:
    """Wrap notes; a no-break space holds 'p < 0.05' together."""
    lines = []
    for line in notes.lines:
        pieces = textwrap.wrap(
            line, max(width, 40), break_long_words=False, break_on_hyphens=False
        )
        lines += [piece.replace("\xa0", " ") for piece in pieces] or [""]
    return lines


# ------------------------------------------------------------------- HTML

# currentColor and transparent grounds read well in light and in dark notebooks; the
# selectors are long because Jupyter's own table style must yield.
_CSS = (
    ".deepstats{display:inline-block;max-width:100%;overflow-x:auto}"
    ".deepstats table.ds{border-collapse:collapse;width:100%;margin:0;"
    "border:0;font-variant-numeric:tabular-nums;font-size:13px;color:inherit}"
    ".deepstats table.ds caption{text-align:left;color:inherit;padding:4px 8px;"
    "font-weight:600;white-space:nowrap}"
    ".deepstats table.ds caption code{font-weight:400;margin-left:2em;"
    "background:transparent;color:inherit}"
    ".deepstats table.ds tr:nth-child(n){background:transparent}"
    ".deepstats table.ds tr th,.deepstats table.ds tr td{padding:2px 8px;border:0;"
    "font-weight:400;text-align:left;white-space:nowrap;line-height:1.45}"
    ".deepstats table.ds tr .r{text-align:right}"
    ".deepstats table.ds tr .c{text-align:center}"
    ".deepstats table.ds thead tr th{font-weight:600}"
    ".deepstats table.ds thead tr:last-child th{border-bottom:1px solid}"
    ".deepstats table.ds tbody+tbody tr:first-child>*{border-top:1px solid}"
    ".deepstats table.ds tfoot tr:first-child>*{border-top:1px solid}"
    ".deepstats table.ds tr th.s{font-weight:600;font-style:italic}"
    ".deepstats table.ds tr th.k{opacity:.75}"
    ".deepstats table.ds tr td.v{padding-right:2.2em}"
    ".deepstats table.ds{border-top:1px solid}"
    ".deepstats table.ds:first-of-type{border-top:2px solid}"
    ".deepstats table.ds:last-of-type{border-bottom:2px solid}"
    ".deepstats table.ds td span{display:inline-block;text-align:left}"
    ".deepstats table.ds td span:first-child{text-align:right}"
    ".deepstats p{margin:3px 8px;font-size:12px;opacity:.85}"
)


def _html_cell(
    cell: str,
    letter: str,
    tag: str = "td",
    kind: str = "",
    room: tuple[int, int] = (0, 0),
) -> str:
    content = escape(cell)
    split = _split_point(cell) if letter == "d" else None
    if split:
        content = "".join(
            f'<span style="width:{size}ch">{escape(text)}</span>'
            for text, size in zip(split, room, strict=True)
        )
    align = {"d": "c", "l": ""}.get(letter, letter)
    names = " ".join(name for name in (kind, align) if name)
    attributes = f' class="{names}"' if names else ""
    if tag == "th":
        attributes = f' scope="{"row" if kind else "col"}"' + attributes
    return f"<{tag}{attributes}>{content}</{tag}>"


def _html_row(row: tuple[str, ...], grid: _Grid, room: list[tuple[int, int]]) -> str:
    cells = []
    for j, (cell, letter) in enumerate(zip(row, grid.align, strict=True)):
        if grid.pairs:
            tag, kind = ("th", "k") if j % 2 == 0 else ("td", "v")
        else:
            tag, kind = ("th", "n") if grid.stub and j == 0 else ("td", "")
        cells.append(_html_cell(cell, letter, tag, kind, room[j]))
    return f"<tr>{''.join(cells)}</tr>"


def _html_table(grid: _Grid, caption: str = "") -> str:
    """One semantic table; `caption` is HTML and comes before the grid's own."""
    caption = caption or escape(grid.caption)
    lines = ['<table class="ds">']
    lines += [f"<caption>{caption}</caption>"] if caption else []
    if grid.head:
        lines.append("<thead>")
        for line in grid.head:
            cells = (
                _html_cell(cell, letter.replace("d", "c"), "th")
                for cell, letter in zip(line, grid.align, strict=True)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        lines.append("</thead>")
    room = _point_room(grid)
    for heading, rows in grid.parts():
        lines.append("<tbody>")
        if heading:
            lines.append(
                f'<tr><th class="s" colspan="{len(grid.align)}">'
                f"{escape(heading)}</th></tr>"
            )
        lines += [_html_row(row, grid, room) for row in rows]
        lines.append("</tbody>")
    if grid.foot:
        foot = replace(grid, align=grid.align.replace("d", "c"))
        lines.append("<tfoot>")
        lines += [_html_row(row, foot, room) for row in grid.foot]
        lines.append("</tfoot>")
    return "\n".join([*lines, "</table>"])


# ------------------------------------------------------------------ LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"$\sim$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl is missing from the default OT1 fonts
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "\xa0": "~",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "²": "$^{2}$",
    "³": "$^{3}$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
}
_LATIN_CAPITALS = frozenset(
    ("ALPHA", "BETA", "EPSILON", "ZETA", "ETA", "IOTA", "KAPPA", "MU", "NU", "RHO")
) | {"TAU", "CHI"}


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    match = re.fullmatch(
        r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, "")
    )
    if not match or match[2] == "OMICRON":
        return character
    name = match[2].replace("LAMDA", "LAMBDA").lower()
    if match[1] == "SMALL":
        return f"$\\{name}$"
    return name[0].upper() if match[2] in _LATIN_CAPITALS else f"$\\{name.title()}$"


def _latex_escape(text: str) -> str:
    """Escape text for pdflatex; Greek letters become mathematics."""
    return "".join(map(_latex_character, text))


def _latex_number(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=[\d.i])", "$-$", text)


def _latex_cell(cell: str, letter: str) -> str:
    """One cell; a d-column is two LaTeX columns that meet at the decimal point."""
    content = _latex_escape(cell)
    if letter != "d":
        return _latex_number(content) if letter == "r" else content
    split = _split_point(cell)
    if split is None:
        return rf"\multicolumn{{2}}{{c}}{{{content}}}"
    before, after = (_latex_number(_latex_escape(part)) for part in split)
    return f"{before} & {_latex_stars(after)}"


def _latex_stars(escaped: str) -> str:
    """Raise asterisks that end a number or stand alone; a ** b stays as it is."""
    return re.sub(
        r"(?:(?<=\d)|(?<=\))|(?<![^ ]))((?:\{\*\})+)(?=~|$)",
        lambda match: f"$^{{{match[1].replace('{*}', '*')}}}$",
        escaped,
    )


def _latex_row(row: tuple[str, ...], align: str) -> str:
    cells = (_latex_cell(c, letter) for c, letter in zip(row, align, strict=True))
    return " & ".join(cells) + r" \\"


def _latex_centred(row: tuple[str, ...], align: str) -> str:
    """Write a row of heads or of the foot, centred over the d-columns."""
    cells = (
        rf"\multicolumn{{2}}{{c}}{{{_latex_number(_latex_escape(cell))}}}"
        if letter == "d"
        else _latex_cell(cell, letter)
        for cell, letter in zip(row, align, strict=True)
    )
    return " & ".join(cells) + r" \\"


def _latex_heading(text: str, columns: int) -> str:
    return rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{_latex_escape(text)}}}}} \\"


def _latex_tabular(grid: _Grid) -> str:
    columns = grid.align.replace("d", "r@{}l")
    count = len(grid.align) + grid.align.count("d")
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_heading(grid.caption, count)] if grid.caption else []
    lines += [_latex_centred(line, grid.align) for line in grid.head]
    for number, (heading, rows) in enumerate(grid.parts()):
        if number > 0 or grid.head:
            lines.append(r"\midrule")
        lines += [_latex_heading(heading, count)] if heading else []
        lines += [_latex_row(row, grid.align) for row in rows]
    lines += [r"\midrule"] if grid.foot else []
    lines += [_latex_centred(row, grid.align) for row in grid.foot]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


# --------------------------------------------------------------- Markdown


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\|*_<`\[\]])", r"\\\1", text)


def _markdown_table(grid: _Grid) -> str:
    width = len(grid.align)
    rows = [list(map(_markdown_escape, line)) for line in grid.head[1:]]
    for heading, part in grid.parts():
        if heading:
            rows.append([f"**{_markdown_escape(heading)}**"] + [""] * (width - 1))
        rows += [[_markdown_escape(cell) for cell in row] for row in part]
    rows += [list(map(_markdown_escape, row)) for row in grid.foot]
    words = {"l": "left", "r": "right", "c": "center", "d": "right"}
    text = tabulate(
        rows,
        headers=list(
            map(_markdown_escape, grid.head[0] if grid.head else [""] * width)
        ),
        tablefmt="pipe",
        disable_numparse=True,
        colalign=[words[letter] for letter in grid.align] if rows else None,
    )
    return f"**{_markdown_escape(grid.caption)}**\n\n{text}" if grid.caption else text


# ---------------------------------------------------------------- Summary


@dataclass(frozen=True, eq=False)
class Summary:
    """A printed page: a title, and blocks that are rendered in four ways.

    Parameters
    ----------
    title : str
        What was fitted.
    formula : str
        The model formula, set opposite the title.
    blocks : tuple of Pairs, Table or Notes
        From top to bottom.
    """

    title: str
    formula: str
    blocks: tuple[Block, ...]

    def as_text(self, width: int = 78) -> str:
        """Render as plain text.

        Parameters
        ----------
        width : int, default 78
            Columns of the page; a table that needs more widens the page.

        Returns
        -------
        str
            Lines without a final newline.
        """
        grids = [
            None if isinstance(block, Notes) else block._grid(width)
            for block in self.blocks
        ]
        needed = [
            _natural_width(_pad_points(grid)) for grid in grids if grid is not None
        ]
        width = max([width, *needed])
        lines = [*_text_title(self.title, self.formula, width), "=" * width]
        trailing = len(self.blocks)
        while trailing and isinstance(self.blocks[trailing - 1], Notes):
            trailing -= 1
        for i, (block, grid) in enumerate(zip(self.blocks, grids, strict=True)):
            if i == trailing:
                lines.append("=" * width)
            elif 0 < i < trailing:
                lines.append("-" * width)
            if isinstance(block, Notes):
                lines += _note_lines(block, width)
            elif grid is not None:
                lines += _text_lines(grid, width)
        if trailing == len(self.blocks):
            lines.append("=" * width)
        return "\n".join(lines)

    def as_html(self) -> str:
        """Render as HTML tables with a small style sheet of their own.

        Returns
        -------
        str
            One ``<div class="deepstats">``; every cell is escaped.
        """
        lines = ['<div class="deepstats">', f"<style>{_CSS}</style>"]
        caption = escape(self.title)
        if self.formula:
            caption += f"<code>{escape(self.formula)}</code>"
        for block in self.blocks:
            if isinstance(block, Notes):
                lines += [f"<p>{escape(line)}</p>" for line in block.lines]
                continue
            grid = block._grid()
            own = escape(grid.caption)
            joined = f"{caption}<br>{own}" if caption and own else caption or own
            lines.append(_html_table(grid, joined))
            caption = ""
        return "\n".join([*lines, "</div>"])

    def as_latex(self) -> str:
        r"""Render as LaTeX with booktabs rules.

        Returns
        -------
        str
            A ``table`` environment with a caption if there is a title, otherwise bare
            ``tabular`` environments. The document needs ``\usepackage{booktabs}``.
        """
        pieces = []
        for block in self.blocks:
            if isinstance(block, Notes):
                lines = (_latex_stars(_latex_escape(line)) for line in block.lines)
                notes = " \\\\\n".join(lines)
                pieces.append(
                    "\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright\n"
                    f"{notes}\n\\end{{minipage}}"
                )
            else:
                pieces.append(_latex_tabular(block._grid()))
        body = "\n\n\\smallskip\n".join(pieces)
        if not self.title:
            return "% \\usepackage{booktabs}\n" + body
        caption = _latex_escape(self.title)
        if self.formula:
            caption += rf": \texttt{{{_latex_escape(self.formula)}}}"
        return (
            "% \\usepackage{booktabs}\n\\begin{table}[htbp]\n\\centering\n"
            f"\\caption{{{caption}}}\n{body}\n\\end{{table}}"
        )

    def as_markdown(self) -> str:
        """Render as Markdown pipe tables.

        Returns
        -------
        str
            The title in bold, the formula as code, one table per block.
        """
        pieces = []
        if self.title:
            pieces.append(f"**{_markdown_escape(self.title)}**")
        if self.formula:
            pieces[-1:] = [" ".join([*pieces[-1:], f"`{self.formula}`"])]
        for block in self.blocks:
            if isinstance(block, Notes):
                lines = (line.replace("\xa0", " ") for line in block.lines)
                pieces += [_markdown_escape(line) for line in lines]
            else:
                pieces.append(_markdown_table(block._grid()))
        return "\n\n".join(pieces)

    def __str__(self) -> str:
        return self.as_text()

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        return self.as_html()


# ----------------------------------------------------- coefficient tables


def coefficient_table(
    params: pd.Series,
    bse: pd.Series,
    stat: pd.Series,
    pvalues: pd.Series,
    conf_int: pd.DataFrame | np.ndarray,
    use_t: bool,
    conf_level: float = 0.95,
    *,
    component: Sequence[str] | None = None,
    caption: str | None = None,
) -> Table:
    """Build the coefficient block of a summary.

    Parameters
    ----------
    params, bse, stat, pvalues : Series
        Estimates, standard errors, test statistics and p-values, labelled by term.
    conf_int : DataFrame or array, shape (terms, 2)
        Lower and upper limits.
    use_t : bool
        Whether the statistic is compared with Student's t (head ``t``) or with the
        normal distribution (head ``z``).
    conf_level : float, default 0.95
        The level of `conf_int`; it sets the heads ``[0.025`` and ``0.975]``.
    component : sequence of str, optional
        The part of the model each term belongs to; every part gets a sub-heading.
    caption : str, optional
        One line above the heads.

    Returns
    -------
    Table
        With statsmodels' heads. A row is written with four decimals as long as these
        show two digits of its standard error, otherwise scientifically. A parameter
        that is not tested (its statistic is NaN) has blanks for statistic and p-value.

    Raises
    ------
    ValueError
        If lengths differ or `conf_level` is not between 0 and 1.
    """
    if not 0 < conf_level < 1:
        raise ValueError(f"conf_level={conf_level} must lie between 0 and 1")
    columns = [np.asarray(a, dtype=float) for a in (params, bse, stat, pvalues)]
    limits = np.asarray(conf_int, dtype=float)
    n = len(columns[0])
    if any(len(c) != n for c in columns) or limits.shape != (n, 2):
        raise ValueError(
            f"{n} estimates need as many standard errors, statistics, p-values and "
            f"pairs of limits; got {[len(c) for c in columns[1:]]} and {limits.shape}"
        )
    if component is not None and len(component) != n:
        raise ValueError(f"{len(component)} components given for {n} estimates")
    rows = [
        _coefficient_row(*values, *limits[i])
        for i, values in enumerate(zip(*columns, strict=True))
    ]
    letter, tail = ("t" if use_t else "z"), (1 - conf_level) / 2
    heads = ["coef", "std err", letter, f"P>|{letter}|"]
    heads += [f"[{tail:.4g}", f"{1 - tail:.4g}]"]
    frame = pd.DataFrame(rows, index=list(params.index), columns=heads)
    sections = _section_starts(component) if component is not None else ()
    return Table(frame, caption=caption, sections=sections, align="r" * 6)


def _coefficient_row(
    estimate: float, error: float, statistic: float, p: float, low: float, high: float
) -> list[str]:
    scale = error if math.isfinite(error) and error > 0 else abs(estimate)
    largest = max((abs(v) for v in (estimate, scale) if math.isfinite(v)), default=0)
    fixed = (scale >= 1e-3 or scale == 0) and largest < 1e7
    outcome = [
        f"{v:.4f}" if fixed and math.isfinite(v) else f"{v:.3e}"
        for v in (estimate, error, low, high)
    ]
    test = f"{statistic:.3f}" if abs(statistic) < 1e6 else f"{statistic:.3e}"
    tests = ["", ""] if math.isnan(statistic) else [test, f"{p:.3f}"]
    return [*outcome[:2], *tests, *outcome[2:]]


def _section_starts(names: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Where a run of equal names begins; a single run needs no heading."""
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    return tuple((i, str(names[i])) for i in starts) if len(starts) > 1 else ()


# ----------------------------------------------------- models side by side

_STATISTICS = {
    "nobs": "Observations",
    "rsquared": "R²",
    "rsquared_adj": "Adjusted R²",
    "rsquared_within": "Within R²",
    "rsquared_pseudo": "Pseudo R²",
    "prsquared": "Pseudo R²",
    "llf": "Log-likelihood",
    "aic": "AIC",
    "bic": "BIC",
    "sigma": "Residual std. dev.",
    "scale": "Dispersion",
    "deviance": "Deviance",
    "df_resid": "Residual d.f.",
    "df_model": "Model d.f.",
    "fvalue": "F",
}
_STARS = {0.001: "***", 0.01: "**", 0.05: "*"}
_BELOW = {
    "se": "Standard errors",
    "t": "Test statistics",
    "p": "p-values",
    "ci": "confidence intervals",
}
# Parts of a model that line up with the coefficients of a model with one part only.
_MAIN = {"", "mu", "mean", "count", "location", "conditional", "fixed", "beta"}


@dataclass(frozen=True, eq=False, repr=False)
class Etable(Summary):
    """Models side by side, as `etable` returns them.

    Parameters
    ----------
    title, formula, blocks
        As in `Summary`.
    frame : DataFrame
        The printed cells, indexed by part, term and row (``estimate``, ``se`` ...).
    output : str
        The rendering that ``str`` and ``print`` give.
    """

    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    output: Output = "text"

    def render(self, output: Output | None = None) -> str:
        """Render in the format asked for.

        Parameters
        ----------
        output : {"text", "html", "latex", "markdown", "frame"}, optional
            By default the one given to `etable`; "frame" is the frame as CSV.

        Returns
        -------
        str
            The table.
        """
        renderings: dict[str, Callable[[], str]] = {
            "text": self.as_text,
            "html": self.as_html,
            "latex": self.as_latex,
            "markdown": self.as_markdown,
            "frame": self.frame.to_csv,
        }
        return renderings[output or self.output]()

    def as_text(self, width: int = 0) -> str:
        """Render as plain text, by default as narrow as the columns allow.

        Parameters
        ----------
        width : int, default 0
            The least width of the page.

        Returns
        -------
        str
            Lines without a final newline.
        """
        return super().as_text(width)

    def __str__(self) -> str:
        return self.frame.to_string() if self.output == "frame" else self.render()


@dataclass(frozen=True)
class _Column:
    """One model of an etable: cells by (part, term), and its statistics."""

    rows: pd.DataFrame
    glance: pd.DataFrame
    results: Any

    def statistic(self, name: str) -> float | int | str | None:
        if name in self.glance.columns:
            value = self.glance[name].iloc[0]
        else:
            try:
                value = getattr(self.results, name, None)
            except ValueError:  # a statistic this model refuses to give
                return None
        if value is None or callable(value) or np.ndim(value) or pd.isna(value):
            return None
        return value


def etable(
    *results: Any,
    headers: Sequence[str] | None = None,
    stats: Sequence[str] = ("nobs", "rsquared", "llf", "aic", "bic"),
    se: Literal["se", "t", "p", "ci"] = "se",
    stars: bool | Mapping[float, str] = True,
    digits: int = 3,
    keep: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    order: str | Sequence[str] | None = None,
    output: Output | None = None,
    notes: bool | str | Sequence[str] = True,
    filename: str | Path | None = None,
    conf_level: float = 0.95,
) -> Etable:
    """Set models side by side, estimates above their standard errors.

    Parameters
    ----------
    *results : Results
        Fitted models, one column each.
    headers : sequence of str, optional
        Column heads; ``(1)``, ``(2)`` ... by default.
    stats : sequence of str
        Statistics below the coefficients: columns of ``glance()`` or attributes of the
        results. A model without one is left blank; a row without any is left out.
    se : {"se", "t", "p", "ci"}, default "se"
        What stands below an estimate: standard error, test statistic, p-value or
        confidence interval.
    stars : bool or dict of float to str, default True
        Significance marks; True means ``{0.001: "***", 0.01: "**", 0.05: "*"}``.
    digits : int, default 3
        Least number of decimals; a smaller standard error gets as many as show two of
        its digits.
    keep, drop : str or sequence of str, optional
        Regular expressions over term names: which terms to print or leave out.
    labels : dict of str to str, optional
        New names of terms, responses and statistics.
    order : str or sequence of str, optional
        Regular expressions: terms that match the first come first; the rest follow.
    output : {"text", "html", "latex", "markdown", "frame"}, optional
        What ``print`` gives and `filename` receives ("frame": CSV). By default the
        suffix of `filename` decides, otherwise text.
    notes : bool or str or sequence of str, default True
        Whether to explain brackets and stars; text replaces the explanation.
    filename : path, optional
        Where to write the table.
    conf_level : float, default 0.95
        Level of the intervals for ``se="ci"``.

    Returns
    -------
    Etable
        With ``frame``, ``as_text()``, ``as_html()``, ``as_latex()``, ``as_markdown()``.

    Raises
    ------
    ValueError
        For an option that is not allowed, a statistic that no model has, or a `keep`
        that leaves no term.
    """
    output = _output(output, filename)
    marks = _marks(stars)
    _check_etable(results, headers, se, digits)
    labels = dict(labels or {})
    columns = [_column(r, conf_level) for r in results]
    keys = _chosen(_aligned(columns), keep, drop, order)
    body = _coefficient_cells(columns, keys, se, marks, digits, labels)
    foot = _statistic_cells(columns, stats, digits, labels)
    frame, table = _assemble(columns, headers, body, foot, labels)
    lines = _etable_notes(notes, se, marks, conf_level)
    blocks = (table, Notes(lines)) if lines else (table,)
    page = Etable("", "", blocks, frame=frame, output=output)
    if filename is not None:
        Path(filename).write_text(page.render() + "\n", encoding="utf-8")
    return page


def _output(output: str | None, filename: str | Path | None) -> Output:
    suffixes = {".html": "html", ".tex": "latex", ".md": "markdown", ".csv": "frame"}
    if output is None:
        output = suffixes.get(Path(filename or "").suffix.lower(), "text")
    if output not in ("text", "html", "latex", "markdown", "frame"):
        raise ValueError(
            f"output={output!r} must be text, html, latex, markdown or frame"
        )
    return output  # type: ignore[return-value]


def _marks(stars: bool | Mapping[float, str]) -> dict[float, str]:
    if isinstance(stars, (bool, np.bool_)):
        return dict(_STARS) if stars else {}
    if not isinstance(stars, Mapping) or any(not 0 < float(t) < 1 for t in stars):
        raise ValueError(
            f"stars={stars!r} must be True, False or a dict of p-values between 0 "
            'and 1 to marks, e.g. {0.01: "**", 0.05: "*"}'
        )
    return {float(t): str(stars[t]) for t in sorted(stars)}


def _check_etable(
    results: tuple[Any, ...], headers: Sequence[str] | None, se: str, digits: int
) -> None:
    if not results:
        raise ValueError("etable needs at least one fitted model")
    for r in results:
        if not hasattr(r, "tidy"):
            raise ValueError(
                f"etable takes results of deepstats models, not {type(r).__name__}; "
                "use compare(results, other) for other packages"
            )
    if headers is not None and (
        isinstance(headers, str) or len(headers) != len(results)
    ):
        raise ValueError(f"headers={headers!r} must be a list of {len(results)} names")
    if se not in _BELOW:
        raise ValueError(f"se={se!r} must be one of {list(_BELOW)}")
    if not isinstance(digits, (int, np.integer)) or not 0 <= digits <= 10:
        raise ValueError(f"digits={digits!r} must be an integer from 0 to 10")


def _column(results: Any, conf_level: float) -> _Column:
    rows = results.tidy(conf_level=conf_level).reset_index(drop=True)
    part = rows["component"] if "component" in rows else pd.Series("", rows.index)
    rows["component"] = part.fillna("").astype(str)
    keys = pd.MultiIndex.from_arrays([rows["component"], rows["term"].astype(str)])
    if keys.has_duplicates:
        repeated = sorted({f"{c} {t}".strip() for c, t in keys[keys.duplicated()]})
        raise ValueError(f"terms occur twice in one model: {repeated}")
    return _Column(rows.set_index(keys), results.glance(), results)


def _aligned(columns: list[_Column]) -> dict[tuple[str, str], list[tuple | None]]:
    """Line terms up over models: (heading, term) to each model's key or None.

    The main part of a model with several parts stands with the only part of the others.
    """
    parts = [list(dict.fromkeys(c.rows["component"])) for c in columns]
    merge = any(p == [""] for p in parts)
    aligned: dict[tuple[str, str], list[tuple | None]] = {}
    for j, column in enumerate(columns):
        for part, term in column.rows.index:
            heading = "" if merge and part in _MAIN else part
            row = aligned.setdefault((heading, term), [None] * len(columns))
            row[j] = (part, term)
    headings = list(dict.fromkeys(heading for heading, _ in aligned))
    return {
        key: aligned[key]
        for key in sorted(aligned, key=lambda key: headings.index(key[0]))
    }


def _patterns(option: str, given: str | Sequence[str] | None) -> list[re.Pattern[str]]:
    try:
        return [
            re.compile(p) for p in ([given] if isinstance(given, str) else given or [])
        ]
    except re.error as error:
        raise ValueError(
            f"{option}={given!r} is not a regular expression: {error}; "
            "write a literal bracket or plus as \\( or \\+"
        ) from None


def choose_terms(
    terms: Iterable[str],
    keep: str | Sequence[str] | None,
    drop: str | Sequence[str] | None,
    order: str | Sequence[str] | None = None,
) -> list[str]:
    """Apply the options keep, drop and order to names.

    Parameters
    ----------
    terms : iterable of str
        Names; repeated ones count once.
    keep, drop, order : str or sequence of str, optional
        Regular expressions, as in `etable`.

    Returns
    -------
    list of str
        The names chosen, in order.

    Raises
    ------
    ValueError
        If nothing is left, or an expression cannot be read.
    """
    terms = list(dict.fromkeys(terms))
    keeps, drops = _patterns("keep", keep), _patterns("drop", drop)
    orders = _patterns("order", order)
    chosen = [
        term
        for term in terms
        if (keep is None or any(p.search(term) for p in keeps))
        and not any(p.search(term) for p in drops)
    ]
    if not chosen:
        raise ValueError(
            f"keep={keep!r} and drop={drop!r} leave no term; the models have {terms}"
        )

    def rank(term: str) -> int:
        hits = (i for i, p in enumerate(orders) if p.search(term))
        return next(hits, len(orders))

    return sorted(chosen, key=rank)


def _chosen(
    aligned: dict[tuple[str, str], list[tuple | None]],
    keep: str | Sequence[str] | None,
    drop: str | Sequence[str] | None,
    order: str | Sequence[str] | None,
) -> dict[tuple[str, str], list[tuple | None]]:
    terms = choose_terms((term for _, term in aligned), keep, drop, order)
    rank = {term: i for i, term in enumerate(terms)}
    headings = list(dict.fromkeys(heading for heading, _ in aligned))
    keys = [key for key in aligned if key[1] in rank]
    if order is not None:
        keys.sort(key=lambda key: (headings.index(key[0]), rank[key[1]]))
    return {key: aligned[key] for key in keys}


def _decimals(scale: float, digits: int) -> int:
    """Decimals that show two digits of a standard error, and at least `digits`."""
    if not math.isfinite(scale) or scale <= 0:
        return digits
    return max(digits, 1 - math.floor(math.log10(scale)))


def _fixed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "" if math.isnan(value) else str(value)
    if decimals > 7 or abs(value) >= 1e9:
        return f"{value:.2e}"
    return f"{value:.{decimals}f}"


def _estimate_cells(
    row: pd.Series, se: str, marks: dict[float, str], digits: int
) -> tuple[str, str]:
    decimals = _decimals(row["std_error"], digits)
    p = row["p_value"]
    mark = next((mark for limit, mark in marks.items() if p < limit), "")
    upper = _fixed(row["estimate"], decimals) + mark
    if se == "ci":
        low, high = (_fixed(row[c], decimals) for c in ("conf_low", "conf_high"))
        return upper, f"[{low}, {high}]" if low and high else ""
    column = {"se": "std_error", "t": "statistic", "p": "p_value"}[se]
    lower = _fixed(row[column], decimals if se == "se" else digits)
    return upper, f"({lower})" if lower else ""


def _coefficient_cells(
    columns: list[_Column],
    keys: dict[tuple[str, str], list[tuple | None]],
    se: str,
    marks: dict[float, str],
    digits: int,
    labels: dict[str, str],
) -> list[tuple[tuple[str, str, str], list[str]]]:
    """Two rows per term, as ((part, label, row), one cell per model)."""
    body = []
    for (heading, term), places in keys.items():
        pairs = [
            ("", "")
            if place is None
            else _estimate_cells(column.rows.loc[place], se, marks, digits)
            for column, place in zip(columns, places, strict=True)
        ]
        label = labels.get(term, term)
        body.append(((heading, label, "estimate"), [upper for upper, _ in pairs]))
        body.append(((heading, label, se), [lower for _, lower in pairs]))
    return body


def _statistic_cells(
    columns: list[_Column], stats: Sequence[str], digits: int, labels: dict[str, str]
) -> list[tuple[tuple[str, str, str], list[str]]]:
    if isinstance(stats, str):
        raise ValueError(f"stats={stats!r} must be a list of names, e.g. [{stats!r}]")
    kinds = [str(getattr(c.results, "cov_description", "")) for c in columns]
    foot = []
    if any(kinds):
        label = labels.get("cov_type", "Std. errors")
        foot.append((("statistics", label, "cov_type"), kinds))
    for name in stats:
        values = [column.statistic(name) for column in columns]
        if all(value is None for value in values):
            if name not in _STATISTICS:
                raise ValueError(
                    f"no model has the statistic {name!r}; glance() of the first has "
                    f"{list(columns[0].glance.columns)}"
                )
            continue
        label = labels.get(name, _STATISTICS.get(name, name))
        cells = [_statistic_cell(value, digits) for value in values]
        foot.append((("statistics", label, name), cells))
    return foot


def _statistic_cell(value: float | int | str | None, digits: int) -> str:
    if value is None or isinstance(value, (str, bool, np.bool_)):
        return _value(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.{min(digits, 1)}f}"
    return _fixed(float(value), digits)


def _assemble(
    columns: list[_Column],
    headers: Sequence[str] | None,
    body: list[tuple[tuple[str, str, str], list[str]]],
    foot: list[tuple[tuple[str, str, str], list[str]]],
    labels: dict[str, str],
) -> tuple[pd.DataFrame, Table]:
    """Turn rows of cells into the labelled frame and the table that is printed."""
    heads = [f"({j + 1})" for j in range(len(columns))]
    heads = list(headers) if headers is not None else heads
    names = [str(getattr(c.results, "response_name", "") or "") for c in columns]
    names = [labels.get(name, name) for name in names]
    rows = [*body, *foot]
    frame = pd.DataFrame(
        [cells for _, cells in rows],
        index=pd.MultiIndex.from_tuples(
            [key for key, _ in rows], names=["part", "term", "row"]
        ),
        columns=pd.MultiIndex.from_arrays([heads, names], names=["", "Response"]),
    )
    if not any(names):
        frame.columns = pd.Index(heads)
    stub = [label if key not in _BELOW else "" for (_, label, key), _ in rows]
    printed = frame.set_axis(pd.Index(stub), axis=0)
    sections = _section_starts([part for (part, _, _), _ in body]) or ((0, ""),)
    align = "d" * len(columns)
    return frame, Table(printed, sections=sections, align=align, footer=len(foot))


def _etable_notes(
    notes: bool | str | Sequence[str],
    se: str,
    marks: dict[float, str],
    conf_level: float,
) -> tuple[str, ...]:
    if not isinstance(notes, bool):
        return (notes,) if isinstance(notes, str) else tuple(notes)
    if not notes:
        return ()
    below = f"{_BELOW[se]} in parentheses."
    if se == "ci":
        below = f"{100 * conf_level:g}% confidence intervals in brackets."
    marked = [f"{mark}\xa0p\xa0<\xa0{limit:g}" for limit, mark in sorted(marks.items())]
    return (f"{below} {', '.join(marked)}.",) if marked else (below,)


# ------------------------------------------------------------- comparison


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Summary):
    """Estimates beside those of another fit, as `compare` returns them.

    Parameters
    ----------
    title, formula, blocks
        As in `Summary`.
    frame : DataFrame
        Indexed by term (with ``Log-likelihood`` last if both have one): estimate,
        other, diff, rel_diff and the same for standard errors. Differences are
        absolute; relative ones are relative to the other fit.
    max_rel : dict of str to float
        The largest relative difference of ``coef``, ``se`` and ``llf``, where compared.
    unmatched : dict of str to tuple of str
        Terms of ``results`` and of ``other`` that the other side does not have.
    tolerance : float or None
        The largest relative difference allowed.
    """

    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    max_rel: dict[str, float] = field(default_factory=dict)
    unmatched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tolerance: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether every term is matched and every difference within the tolerance.

        Raises
        ------
        ValueError
            If no tolerance was given.
        """
        if self.tolerance is None:
            raise ValueError("give compare(..., tolerance=) to ask whether fits agree")
        close = all(value <= self.tolerance for value in self.max_rel.values())
        return close and not any(self.unmatched.values())


@dataclass(frozen=True)
class _Reference:
    """Reference values: estimates and standard errors by name, log-likelihood."""

    source: str
    coef: pd.Series
    se: pd.Series | None
    llf: float | None
    se_source: str


def compare(
    results: Any,
    other: Any,
    tolerance: float | None = None,
    *,
    se: str | None = None,
) -> Comparison:
    """Compare estimates with those of another fit or with reference values.

    Parameters
    ----------
    results : Results
        A fitted deepstats model.
    other : Results, statsmodels results, dict, or path
        Another fit; or ``{"coef": {name: value}, "se": {...}, "llf": value}``; or a
        ``.json`` file of that form; or a ``.csv`` file with columns ``term``,
        ``estimate`` and ``std_error`` (or broom's ``std.error``). Names agree over
        packages: ``(Intercept)``, ``const`` and ``Intercept``; ``C(x)[T.b]``,
        ``x[T.b]`` and ``xb``; ``a:b`` and ``b:a``.
    tolerance : float, optional
        The largest relative difference allowed; see `Comparison.agrees`.
    se : str, optional
        Which entry of a dict or JSON file holds the standard errors. By default the one
        named after the covariance of `results` (``HC1``, ``se_hc1``), else ``se``,
        ``std_error`` or, for model-based errors, ``se_oim``.

    Returns
    -------
    Comparison
        Prints itself; ``frame``, ``max_rel``, ``unmatched`` and ``agrees`` hold the
        numbers.

    Raises
    ------
    ValueError
        If nothing matches, `other` cannot be read, or `se` names no entry.
    """
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance!r} must be positive")
    own = _column(results, 0.95)
    reference = _reference(other, results, se)
    pairs = _match_terms(list(own.rows.index), list(reference.coef.index))
    if not pairs:
        raise ValueError(
            f"no term matches: results have {[t for _, t in own.rows.index]}, "
            f"the other has {list(reference.coef.index)}"
        )
    frame = _comparison_frame(own, reference, pairs)
    missing = {
        "results": tuple(_full_name(k) for k in own.rows.index if k not in pairs),
        "other": tuple(n for n in reference.coef.index if n not in pairs.values()),
    }
    return _comparison_page(results, reference, frame, missing, tolerance)


def _reference(other: Any, results: Any, se: str | None) -> _Reference:
    if isinstance(other, (str, Path)):
        return _reference_file(Path(other), results, se)
    if isinstance(other, Mapping):
        return _reference_dict(other, results, se, "reference values")
    if se is not None:
        raise ValueError("se= chooses an entry of a dict or JSON file only")
    if hasattr(other, "tidy") and hasattr(other, "glance"):
        column = _column(other, 0.95)
        names = [_full_name(key) for key in column.rows.index]
        llf = column.statistic("llf")
        return _Reference(
            str(getattr(other, "model_name", "other model")),
            pd.Series(column.rows["estimate"].to_numpy(float), names),
            pd.Series(column.rows["std_error"].to_numpy(float), names),
            None if llf is None else float(llf),
            str(getattr(other, "cov_description", "")),
        )
    if hasattr(other, "params") and hasattr(other, "bse"):
        return _reference_statsmodels(other)
    raise ValueError(
        f"cannot compare with {type(other).__name__}: give deepstats or statsmodels "
        "results, a dict with 'coef', or the path of a JSON or CSV file"
    )


def _reference_statsmodels(other: Any) -> _Reference:
    params = other.params
    if np.ndim(params) != 1:
        raise ValueError(
            "parameters of the other fit are a matrix; give a dict "
            '{"coef": {name: value}, "se": {name: value}} instead'
        )
    labelled = isinstance(params, pd.Series)
    names = list(params.index if labelled else other.model.exog_names)
    if len(names) != len(params):
        raise ValueError(f"{len(params)} parameters have {len(names)} names: {names}")
    llf = getattr(other, "llf", None)
    return _Reference(
        f"statsmodels {type(getattr(other, 'model', other)).__name__}",
        pd.Series(np.asarray(params, float), [str(name) for name in names]),
        pd.Series(np.asarray(other.bse, float), [str(name) for name in names]),
        None if llf is None else float(llf),
        str(getattr(other, "cov_type", "")),
    )


def _reference_file(path: Path, results: Any, se: str | None) -> _Reference:
    if path.suffix.lower() == ".json":
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise ValueError(f"{path} holds a {type(entry).__name__}, not an object")
        return _reference_dict(entry, results, se, path.name)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{path} must end in .json or .csv")
    if se is not None:
        raise ValueError("se= chooses an entry of a dict or JSON file only")
    frame = pd.read_csv(path).rename(columns={"std.error": "std_error"})
    if not {"term", "estimate"} <= set(frame.columns):
        raise ValueError(
            f"{path} must have columns term, estimate and std_error; "
            f"it has {list(frame.columns)}"
        )
    names = frame["term"].astype(str).to_list()
    errors = None
    if "std_error" in frame:
        errors = pd.Series(frame["std_error"].to_numpy(float), names)
    estimates = pd.Series(frame["estimate"].to_numpy(float), names)
    return _Reference(path.name, estimates, errors, None, "std_error")


def _reference_dict(
    entry: Mapping[str, Any], results: Any, se: str | None, source: str
) -> _Reference:
    coef = entry.get("coef")
    if not isinstance(coef, (Mapping, pd.Series)):
        raise ValueError(
            f'{source}: expected {{"coef": {{name: value}}, ...}}; the keys are '
            f"{list(entry)[:10]}. If one of them is the fit, pass that entry"
        )
    key = _error_key(entry, results, se)
    errors = pd.Series(dict(entry[key]), dtype=float) if key else None
    llf = entry.get("llf")
    return _Reference(
        source,
        pd.Series(dict(coef), dtype=float),
        errors,
        None if llf is None else float(llf),
        key or "",
    )


def _error_key(entry: Mapping[str, Any], results: Any, se: str | None) -> str | None:
    """Choose the standard errors of the same kind as those of `results`."""
    tables = [k for k, v in entry.items() if isinstance(v, (Mapping, pd.Series))]
    tables = [k for k in tables if k != "coef"]
    if se is not None:
        if se not in tables:
            raise ValueError(f"se={se!r} is not among the entries {tables}")
        return se
    kind = str(getattr(results, "cov_type", "nonrobust")).lower()
    wanted = [kind, f"se_{kind}", "se", "std_error", "bse"]
    if kind in {"nonrobust", "oim", "observed", "hessian", "classical", "iid"}:
        wanted.append("se_oim")
    lowered = {k.lower(): k for k in reversed(tables)}
    return next((lowered[name] for name in wanted if name in lowered), None)


def _full_name(key: tuple[str, str]) -> str:
    part, term = key
    return term if part in _MAIN or part == term else f"{part}_{term}"


def _plain(name: str) -> str:
    return name


def _canonical(name: str) -> str:
    """Write a term as all of patsy, formulaic and R could agree to write it."""
    name = re.sub(r"\s+", "", name).replace("^", "**")
    name = re.sub(r"\b(np|numpy)\.", "", name).replace("(phi)", "phi")
    name = re.sub(r"^inflate_", "zero_", name)
    name = re.sub(r"(^|[_:])(\(Intercept\)|const|_cons)$", r"\1Intercept", name)
    name = re.sub(r"\b(?:C|factor)\((\w+)(?:,[^\[]*)?\)(?=\[|\w)", r"\1", name)
    return ":".join(sorted(name.split(":")))


def _loose(name: str) -> str:
    """Join factor and level as R does: x[T.b] becomes xb."""
    name = re.sub(r"\[(?:T\.)?([^\]]*)\]", r"\1", _canonical(name))
    return ":".join(sorted(name.split(":"))).replace("True", "TRUE")


def _match_terms(
    own: list[tuple[str, str]], names: list[str]
) -> dict[tuple[str, str], str]:
    """Pair terms with names of another package, the strictest reading first.

    A reading counts only where it is unique on both sides. Terms lose their part only
    in blocks such as thresholds: a slope of the zero part is not one of the mean.
    """
    regressions = {part for part, term in own if term == "Intercept"}
    spellings: tuple[Callable[[tuple[str, str]], str], ...] = (
        _full_name,
        lambda key: f"{key[0]}_{key[1]}",
        lambda key: f"{key[0]}:{key[1]}",
        lambda key: _full_name(key) if key[0] in regressions else key[1],
    )
    pairs: dict[tuple[str, str], str] = {}
    for reading in (_plain, _canonical, _loose):
        for spelling in spellings:
            free = [key for key in own if key not in pairs]
            left = [name for name in names if name not in pairs.values()]
            ours = _unique({key: reading(spelling(key)) for key in free})
            theirs = _unique({name: reading(name) for name in left})
            found = {ours[text]: theirs[text] for text in ours if text in theirs}
            pairs.update(found)
    return {key: pairs[key] for key in own if key in pairs}


def _unique(texts: Mapping[Any, str]) -> dict[str, Any]:
    """Invert a mapping, leaving out texts that occur twice."""
    counts = pd.Series(list(texts.values()), dtype=object).value_counts()
    return {text: key for key, text in texts.items() if counts[text] == 1}


def _differences(a: float, b: float) -> tuple[float, float]:
    """Absolute difference, and relative to b (0 when both are equal)."""
    difference = abs(a - b)
    if difference == 0:
        return 0.0, 0.0
    return difference, difference / abs(b) if b != 0 else math.inf


def _comparison_frame(
    own: _Column, reference: _Reference, pairs: dict[tuple[str, str], str]
) -> pd.DataFrame:
    records: dict[str, list[float]] = {}
    for key, name in pairs.items():
        row = own.rows.loc[key]
        a, b = float(row["estimate"]), float(reference.coef[name])
        record = [a, b, *_differences(a, b)]
        if reference.se is not None:
            a = float(row["std_error"])
            b = float(reference.se.get(name, math.nan))
            record += [a, b, *_differences(a, b)]
        records[_full_name(key)] = record
    columns = ["estimate", "other", "diff", "rel_diff"]
    columns += [f"se_{c}" for c in columns] if reference.se is not None else []
    llf = own.statistic("llf")
    if llf is not None and reference.llf is not None:
        a, b = float(llf), reference.llf
        line = [a, b, *_differences(a, b)]
        records["Log-likelihood"] = line + [math.nan] * (len(columns) - 4)
    frame = pd.DataFrame.from_dict(records, orient="index", columns=columns)
    return frame.rename_axis("term").rename(
        columns={"se_estimate": "std_error", "se_other": "other_std_error"}
    )


def _comparison_page(
    results: Any,
    reference: _Reference,
    frame: pd.DataFrame,
    missing: dict[str, tuple[str, ...]],
    tolerance: float | None,
) -> Comparison:
    terms = frame.drop(index="Log-likelihood", errors="ignore")
    max_rel = {"coef": float(terms["rel_diff"].max())}
    tables = [_comparison_table(frame, ["estimate", "other", "diff", "rel_diff"])]
    if "std_error" in frame and terms["se_rel_diff"].notna().any():
        max_rel["se"] = float(terms["se_rel_diff"].max())
        columns = ["std_error", "other_std_error", "se_diff", "se_rel_diff"]
        kind = str(getattr(results, "cov_description", ""))
        if reference.se_source and reference.se_source != kind:
            kind = f"{kind}; other: {reference.se_source}".removeprefix("; ")
        caption = f"Standard errors ({kind})" if kind else "Standard errors"
        tables.append(_comparison_table(terms, columns, caption))
    if "Log-likelihood" in frame.index:
        max_rel["llf"] = float(frame.loc["Log-likelihood", "rel_diff"])
    lines = _comparison_notes(max_rel, missing, tolerance, "se" in max_rel)
    name = str(getattr(results, "model_name", "deepstats"))
    return Comparison(
        f"{name} against {reference.source}",
        str(getattr(results, "formula_text", "")),
        (*tables, Notes(lines)),
        frame=frame,
        max_rel=max_rel,
        unmatched=missing,
        tolerance=tolerance,
    )


def _comparison_table(
    frame: pd.DataFrame, columns: list[str], caption: str | None = None
) -> Table:
    cells = {
        head: [f"{v:{'.7g' if j < 2 else '.1e'}}" if v else "0" for v in frame[name]]
        for j, (head, name) in enumerate(
            zip(["deepstats", "other", "abs diff", "rel diff"], columns, strict=True)
        )
    }
    last = len(frame) - 1
    with_llf = frame.index[-1] == "Log-likelihood" and last > 0
    return Table(
        pd.DataFrame(cells, index=list(frame.index)),
        caption=caption,
        sections=((last, ""),) if with_llf else (),
        align="rrrr",
    )


def _comparison_notes(
    max_rel: dict[str, float],
    missing: dict[str, tuple[str, ...]],
    tolerance: float | None,
    errors: bool,
) -> tuple[str, ...]:
    words = {"coef": "estimates", "se": "standard errors", "llf": "log-likelihood"}
    largest = [f"{words[k]} {value:.1e}" for k, value in max_rel.items()]
    lines = [f"Largest relative difference: {', '.join(largest)}."]
    if tolerance is not None:
        far = [words[k] for k, value in max_rel.items() if not value <= tolerance]
        verdict = f"{', '.join(far)} differ by more than" if far else "All within"
        lines.append(f"{verdict[0].upper()}{verdict[1:]} the tolerance {tolerance:g}.")
    if not errors:
        lines.append("The other has no standard errors of the same kind.")
    for side, where in (("results", "deepstats"), ("other", "the other")):
        if missing[side]:
            lines.append(f"Only in {where}: {', '.join(missing[side])}.")
    return tuple(lines)
