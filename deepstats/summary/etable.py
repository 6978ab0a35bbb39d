"""Several models side by side, as a paper prints them."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from .coefficients import _section_starts
from .page import Notes, Output, Summary, Table, _value

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
# Sections below the coefficients of mixed models.
_RANDOM = ("Random effects: std. dev.", "Random effects: correlation", "Groups")
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
    random: bool = True,
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
    random : bool, default True
        Whether the standard deviations and correlations of random effects, and the
        numbers of groups, stand below the coefficients of mixed models.

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
    body += _random_cells(columns, digits, labels) if random else []
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


def _random_cells(
    columns: list[_Column], digits: int, labels: dict[str, str]
) -> list[tuple[tuple[str, str, str], list[str]]]:
    """Rows of what varies between groups, for models that have it."""
    found = [_random_parameters(c.results, digits, labels) for c in columns]
    keys = list(dict.fromkeys(key for cells in found for key in cells))
    keys.sort(key=lambda key: (_RANDOM.index(key[0]), key[1] == "Residual"))
    return [((*key, "random"), [cells.get(key, "") for cells in found]) for key in keys]


def _random_parameters(
    results: Any, digits: int, labels: dict[str, str]
) -> dict[tuple[str, str], str]:
    """Cells by (part, label), from the frame `varcorr` and the counts `ngroups`."""
    frame = getattr(results, "varcorr", None)
    cells: dict[tuple[str, str], str] = {}
    if not isinstance(frame, pd.DataFrame):
        return cells
    columns = frame[["grp", "var1", "var2", "sdcor"]]
    for group, *pair, value in columns.itertuples(index=False, name=None):
        names = [labels.get(n, n) for n in pair if isinstance(n, str)]
        own = [", ".join(names)] if names else []
        label = " | ".join([*own, labels.get(group, group)])
        part, number, text = _RANDOM[len(names) > 1], 1, label
        while (part, text) in cells:  # two terms may share an effect
            number += 1
            text = f"{label} ({number})"
        cells[part, text] = _fixed(float(value), digits)
    for group, count in getattr(results, "ngroups", {}).items():
        cells[_RANDOM[2], labels.get(group, group)] = f"{count:,}"
    return cells


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
    lines = [*body, *(line for row in foot for line in _wrapped(*row))]
    stub = [label if key not in _BELOW else "" for (_, label, key), _ in lines]
    cells = [cells for _, cells in lines]
    printed = pd.DataFrame(cells, pd.Index(stub), frame.columns)
    sections = _section_starts([part for (part, _, _), _ in body]) or ((0, ""),)
    align = "d" * len(columns)
    return frame, Table(
        printed, sections=sections, align=align, footer=len(lines) - len(body)
    )


def _wrapped(
    key: tuple[str, str, str], cells: list[str]
) -> list[tuple[tuple[str, str, str], list[str]]]:
    """Set words on several lines, so that they are not what makes columns wide."""
    part, label, name = key
    if name != "cov_type":
        return [(key, cells)]
    # "state (48)" stays together.
    texts = [re.sub(r" \((?=\d)", "\xa0(", cell) for cell in cells]
    columns = [_lines(t) for t in texts]
    rows = zip_longest(*columns, fillvalue="")
    return [
        ((part, label if i == 0 else "", name), list(row)) for i, row in enumerate(rows)
    ]


def _lines(text: str, width: int = 16) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


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
