"""Printed pages: blocks of rows rendered as text, HTML, LaTeX and Markdown."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

import numpy as np
import pandas as pd
from tabulate import tabulate

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
    spread: bool = True

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
    spread : bool, default True
        Whether plain text sets the columns apart to fill the page.

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
    spread: bool = True

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
            spread=self.spread,
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
    if count == 1 or not grid.spread:
        return [0] + [2] * (count - 1)
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
