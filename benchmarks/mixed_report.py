"""The tables of the mixed-model benchmark: times, bars, memory, agreement, growth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from harness import Floor, digits, table, yes
from mixed_cases import CASES, GROWTH, SMALL, find
from mixed_libraries import LIBRARIES

OURS = "deepstats"
PEERS = tuple(name for name in LIBRARIES if name != OURS)

# How many times as fast as a peer deepstats has to be, in processor seconds.
_INSTEVAL = {"glmm": 1.5, "R lme4": 4.0, "gpboost": 15.0}
BARS = {name: _INSTEVAL for name in CASES if name.startswith("insteval")} | {
    "crossed-1000000-10000x1000": {"glmm": 4.0},
    "slopes": {"glmm": 1.0},
}
LARGE = "crossed-1000000-100000x10000"
LARGE_SECONDS, LARGE_BYTES = 120.0, 8e9
SMALL_SECONDS, SMALL_AIM = 3e-3, 1e-3

# Beyond these a difference is marked.
COARSE = {"criterion": 1e-4, "beta": 1e-3, "errors": 1e-3, "spreads": 1e-3}
# -2 log L is a sum of many terms: below this it is rounding.
ROUNDING = 1e-6

Row = dict[str, Any]
Key = tuple[str, int]


class Cells:
    """The measured cells, found by case, threads and library."""

    def __init__(self, cells: Iterable[Row]) -> None:
        self.cells = list(cells)
        ran = {c["library"] for c in self.cells}
        self.libraries = [name for name in LIBRARIES if name in ran]
        self.peers = [name for name in self.libraries if name != OURS]
        self._found = {(c["case"], c["threads"], c["library"]): c for c in self.cells}

    def models(self, names: Iterable[str] | None = None) -> list[Key]:
        """Case and threads of every row of a table, in the order of the cases."""
        found = dict.fromkeys((c["case"], c["threads"]) for c in self.cells)
        order = {name: i for i, name in enumerate([*CASES, *GROWTH])}
        chosen = [k for k in found if names is None or k[0] in set(names)]
        return sorted(chosen, key=lambda key: (order[key[0]], key[1]))

    def cell(self, key: Key, library: str) -> Row:
        return self._found.get((*key, library), {})

    def took(self, key: Key, library: str) -> Row | None:
        return self.cell(key, library).get("frame")

    def ratio(self, key: Key, peer: str) -> tuple[float, bool] | None:
        """Processor seconds of a peer over ours; or a bound, where it was stopped."""
        ours, theirs = self.took(key, OURS), self.took(key, peer)
        if ours is None:
            return None
        if theirs is not None:
            return theirs["cpu"] / ours["cpu"], True
        if "limit" in (stopped := self.cell(key, peer)):
            return stopped["limit"] / ours["cpu"], False
        return None


def markdown(found: Row) -> str:
    """Set a benchmark's results as Markdown."""
    cells = Cells(found["cells"])
    curves = _growth(cells)
    parts = [
        "# Benchmark: linear mixed models",
        _machine(found),
        _calls(cells),
        "## Processor seconds",
        _times(cells, [name for name in CASES if name not in SMALL], 1.0),
        "## Small models, processor milliseconds a call",
        _times(cells, SMALL, 1e-3),
        "## How many times as fast as each peer",
        _ratios(cells),
        "## Bars",
        _bars(cells),
        "## Peak extra memory, MB",
        _memory(cells),
        "## Agreement with deepstats",
        _agreement(cells),
        *(["## Growth", curves] if curves else []),
        "## Not run",
        _skipped(cells),
    ]
    return "\n\n".join(parts) + "\n"


def _machine(found: Row) -> str:
    about, floor = found["machine"], Floor(**found["floor"])
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    r = about.get("r", "")
    if r:
        packages = ", ".join(f"{k} {v}" for k, v in about["r_packages"].items())
        r = f"; {r} on {about['r_blas']}, {packages}"
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['system']}; Python {about['python']}; {versions}{r}. "
        f"BLAS of NumPy and SciPy: {', '.join(about['blas'])}. "
        f"Load average before the run: {about['load_before'][0]}. One core reads "
        f"{floor.bandwidth / 1e9:.1f} GB/s and multiplies matrices at "
        f"{floor.multiply / 1e9:.0f} GFLOP/s.\n\n"
        "A formula and a data frame in, the table of fixed effects out. Every number "
        f"is the least of {found['settings']['repeats']} fresh processes, of up to "
        "three calls each after one on a small problem; calls of less than 0.1 s are "
        "timed in batches of ten. Seconds are of the processor, over all threads, with "
        "wall seconds beside. A peer was stopped after "
        f"{found['settings']['timeout']:g} s a process."
    )


def _calls(cells: Cells) -> str:
    return "\n".join(f"- {name}: {LIBRARIES[name].call}" for name in cells.libraries)


def _times(cells: Cells, names: Iterable[str], unit: float) -> str:
    rows = []
    for key in cells.models(names):
        shown = [_time(cells.took(key, name), unit) for name in cells.libraries]
        rows.append([*_label(key), *shown])
    return table(["model", "threads", *cells.libraries], rows) if rows else "Not run."


def _ratios(cells: Cells) -> str:
    rows, behind = [], []
    for key in cells.models(CASES):
        shown = []
        for peer in cells.peers:
            ratio = cells.ratio(key, peer)
            shown.append("–" if ratio is None else _ratio(*ratio))
            if ratio is not None and ratio[1] and ratio[0] < 1:
                behind.append(
                    f"- {peer}, {find(key[0]).title}: deepstats takes "
                    f"{1 / ratio[0]:.2f} times as long."
                )
        rows.append([*_label(key), *shown])
    text = table(["model", "threads", *cells.peers], rows)
    ahead = "\n".join(behind) or "None, in what was run."
    return (
        f"{text}\n\nProcessor seconds of the peer over deepstats'. `>` where the peer "
        "was stopped: those of its process by then.\n\n"
        f"Where a peer is ahead:\n\n{ahead}"
    )


def _bars(cells: Cells) -> str:
    rows = []
    for key in cells.models(CASES):
        for peer, bar in BARS.get(key[0], {}).items():
            if LIBRARIES[peer].refuses(find(key[0])) is None:
                ratio = cells.ratio(key, peer)
                shown = "–" if ratio is None else _ratio(*ratio)
                rows.append(
                    [*_label(key), f"≥ {bar:g} × {peer}", shown, _met(ratio, bar)]
                )
        rows += [[*_label(key), *row] for row in _own_bars(key, cells.took(key, OURS))]
    return table(["model", "threads", "bar", "measured", "met"], rows)


def _own_bars(key: Key, took: Row | None) -> list[list[str]]:
    """Bars in seconds and bytes: what, measured, met."""
    name, threads = key
    if name in SMALL:
        words = f"≤ {SMALL_SECONDS * 1e3:g} ms (aim {SMALL_AIM * 1e3:g})"
        if took is None:
            return [[words, "–", "–"]]
        met = yes(took["cpu"] <= SMALL_SECONDS)
        return [[words, f"{took['cpu'] * 1e3:.2f} ms", met]]
    if (name, threads) != (LARGE, 2):
        return []
    seconds, memory = f"≤ {LARGE_SECONDS:g} s wall", f"≤ {LARGE_BYTES / 1e9:g} GB"
    if took is None:
        return [[seconds, "–", "–"], [memory, "–", "–"]]
    return [
        [seconds, f"{took['wall']:.1f} s", yes(took["wall"] <= LARGE_SECONDS)],
        [memory, f"{took['extra'] / 1e9:.2f} GB", yes(took["extra"] <= LARGE_BYTES)],
    ]


def _memory(cells: Cells) -> str:
    rows = []
    for key in cells.models(CASES):
        took = [cells.took(key, name) for name in cells.libraries]
        shown = ["–" if t is None else f"{t['extra'] / 1e6:.0f}" for t in took]
        rows.append([*_label(key), *shown])
    return table(["model", "threads", *cells.libraries], rows)


def _agreement(cells: Cells) -> str:
    rows = []
    for key in cells.models():
        for peer in cells.peers:
            cell = cells.cell(key, peer)
            if found := cell.get("differences"):
                shown = [_difference(name, found[name]) for name in COARSE]
                if not cell["exact"]:
                    shown[0] = f"≈ {found['criterion']:.1g}"
                rows.append([*_label(key), peer, *shown])
    head = ["model", "threads", "library", "Δ criterion", "fixed effects"]
    text = table([*head, "standard errors", "SDs, correlations"], rows)
    limits = ", ".join(f"{limit:g}" for limit in COARSE.values())
    return (
        f"{text}\n\n`Δ criterion` is -2 log L (REML: the REML criterion) of the "
        "library less deepstats': above zero its optimum is the worse, and **below** "
        f"zero, by more than {ROUNDING:g}, ours is; ≈ where the library's own value is "
        "an estimate from random vectors, and judges neither. Fixed effects: largest "
        "difference in standard errors. Standard errors: largest relative difference. "
        "SDs: largest relative difference, with those below a hundredth of the "
        "residual SD in units of that; correlations: difference. A `!` marks more than "
        f"{limits}."
    )


def _growth(cells: Cells) -> str:
    """Times against rows and against levels, one thread."""
    names = dict.fromkeys([*GROWTH, *CASES])
    crossed = {name: _shape(name) for name in names if name.startswith("crossed")}
    keys = [key for key in cells.models(crossed) if key[1] == 1]
    fixed = {g for n, g, _ in map(_shape, GROWTH) if n < max(_rows())}
    rows = [key for key in keys if _shape(key[0])[1] in fixed]
    levels = [key for key in keys if _shape(key[0])[0] == max(_rows())]
    parts = []
    if len(rows) > 1:
        text = _curve(cells, rows, lambda shape: shape[0], "rows")
        parts.append(f"With the rows, levels as they are:\n\n{text}")
    if len(levels) > 1:
        text = _curve(cells, levels, lambda shape: shape[2], "levels")
        parts.append(f"With the levels, {max(_rows()):,} rows:\n\n{text}")
    return "\n\n".join(parts)


def _rows() -> list[int]:
    return [_shape(name)[0] for name in GROWTH]


def _shape(name: str) -> tuple[int, int, int]:
    """Rows and levels of a crossed case."""
    _, n, levels = name.split("-")
    first, second = levels.split("x")
    return int(n), int(first), int(second)


def _curve(cells: Cells, keys: list[Key], size: Any, word: str) -> str:
    keys = sorted(keys, key=lambda key: size(_shape(key[0])))
    ran = [n for n in cells.libraries if any(cells.took(key, n) for key in keys)]
    rows: list[list[Any]] = []
    for key in keys:
        n, g, h = _shape(key[0])
        shown = [_time(cells.took(key, name), 1.0) for name in ran]
        rows.append([f"{n:,}", f"{g:,} × {h:,}", *shown])
    exponents = []
    for name in ran:
        found = [
            (size(_shape(key[0])), took["cpu"])
            for key in keys
            if (took := cells.took(key, name))
        ]
        exponents.append(_exponent(found))
    rows.append([f"power of the {word}", "last two", *exponents])
    return table(["rows", "levels", *ran], rows)


def _exponent(points: list[tuple[int, float]]) -> str:
    if len(points) < 2:
        return "–"
    (x0, y0), (x1, y1) = points[-2:]
    return f"{math.log(y1 / y0) / math.log(x1 / x0):.2f}"


def _skipped(cells: Cells) -> str:
    """List what was not run and why, the models of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for c in cells.cells:
        if "skipped" in c:
            title = f"{find(c['case']).title} ({c['threads']} thr)"
            found.setdefault((c["library"], c["skipped"]), []).append(title)
    lines = [
        f"- {library}: {'; '.join(titles)}: {reason}"
        for (library, reason), titles in found.items()
    ]
    return "\n".join(lines) or "Everything asked for was run."


# -- pieces ----------------------------------------------------------------------------


def _label(key: Key) -> list[Any]:
    return [find(key[0]).title, key[1]]


def _time(took: Row | None, unit: float) -> str:
    if took is None:
        return "–"
    return f"{digits(took['cpu'] / unit)} ({digits(took['wall'] / unit)})"


def _ratio(ratio: float, exact: bool) -> str:
    return f"{ratio:.2f}" if exact else f"> {ratio:.1f}"


def _met(ratio: tuple[float, bool] | None, bar: float) -> str:
    if ratio is None:
        return "–"
    value, exact = ratio
    return yes(value >= bar) if exact or value >= bar else "not known"


def _difference(name: str, value: float | None) -> str:
    if not value:
        return "–" if value is None else "0"
    text = f"{value:.0e}{'!' if abs(value) > COARSE[name] else ''}"
    return f"**{text}**" if name == "criterion" and value < -ROUNDING else text
