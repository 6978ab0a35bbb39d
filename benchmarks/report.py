"""The tables of a benchmark: times, ratios, memory, threads, agreement, floor, bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness import COLUMNS, LEVELS, Floor, digits, table, yes
from libraries import LIBRARIES

OURS = "deepstats"
TITLES = {
    "ols_hc1": "OLS, HC1", "ols_cluster": "OLS, 5,000 clusters", "poisson": "Poisson",
    "logit": "Logit", "nb2": "NB2",
}  # fmt: skip
KINDS = {"fit": "the fit alone", "frame": "frame and formula in, table out"}

# How many times as fast as the fastest peer deepstats has to be.
BARS = {
    "ols_hc1": {1_000_000: 2.0, 5_000_000: 4.0},
    "ols_cluster": {1_000_000: 2.0, 5_000_000: 4.0},
    "poisson": {1_000_000: 1.0, 5_000_000: 1.5},
    "logit": {1_000_000: 1.0, 5_000_000: 1.5},
}
MEMORY_BAR, MEMORY_FROM = 0.15, 1_000_000
# Two runs of one thing differ by this much on shared cores.
NOISE = 1.05
# Fewest passes over the data: cross-products and meat; for the others two Newton steps
# from a subsample's estimates and the information at the end.
PASSES = {"ols_hc1": 2, "ols_cluster": 2, "poisson": 3, "logit": 3}
COARSE = {"slopes": 1e-6, "errors": 1e-4}

Row = dict[str, Any]


class Cells:
    """The measured cells, found by what they are."""

    def __init__(self, cells: Iterable[Row]) -> None:
        self.cells = list(cells)
        self.libraries = [
            name for name in LIBRARIES if any(c["library"] == name for c in self.cells)
        ]
        self.threads = sorted({c["threads"] for c in self.cells})
        self._found = {
            (c["library"], c["task"], c["design"], c["n"], c["threads"]): c
            for c in self.cells
        }

    def rows(self) -> list[tuple[str, str, int]]:
        """Task, design and size of every row of a table, in the order they ran."""
        keys = dict.fromkeys((c["task"], c["design"], c["n"]) for c in self.cells)
        order = list(TITLES)
        return sorted(keys, key=lambda key: (order.index(key[0]), key[1], key[2]))

    def get(
        self, library: str, row: tuple[str, str, int], threads: int, kind: str
    ) -> Row | None:
        """What a cell took, if it ran and has this kind."""
        return self._found.get((library, *row, threads), {}).get(kind)

    def fastest(
        self, row: tuple[str, str, int], threads: int, kind: str
    ) -> tuple[str, float] | None:
        """Return the peer with standard errors that used least processor time."""
        found = [
            (took["cpu"], name)
            for name in self.libraries
            if name != OURS and not LIBRARIES[name].reference_only
            if (took := self.get(name, row, threads, kind))
        ]
        return min(found)[::-1] if found else None


def markdown(found: Row) -> str:
    """Set a benchmark's results as Markdown."""
    cells = Cells(found["cells"])
    parts = ["# Benchmark: regression", _machine(found)]
    for threads in cells.threads:
        for kind, words in KINDS.items():
            word = "thread" if threads == 1 else "threads"
            parts.append(f"## Processor seconds, {words}, {threads} {word}")
            parts.append(_times(cells, threads, kind))
    parts += ["## Peak extra memory, MB", _memory(cells)]
    if len(cells.threads) > 1:
        parts += [
            "## Two threads against one, wall seconds",
            _threads(cells),
        ]
    parts += ["## Agreement with deepstats", _agreement(cells)]
    parts += ["## Distance to the floor", _floor(cells, Floor(**found["floor"]))]
    if found.get("small"):
        parts += ["## Small data and imports", _small(found)]
    parts += ["## Not run", _skipped(cells)]
    return "\n\n".join(parts) + "\n"


def _machine(found: Row) -> str:
    about, floor = found["machine"], Floor(**found["floor"])
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    r = about.get("r", "")
    if r:
        r = f"; {r}, " + ", ".join(f"{k} {v}" for k, v in about["r_packages"].items())
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['system']}; Python {about['python']}; {versions}{r}. "
        f"BLAS of NumPy and SciPy: {', '.join(about['blas'])}. "
        f"Load average before the run: {about['load_before'][0]}.\n\n"
        f"One core reads {floor.bandwidth / 1e9:.1f} GB/s, multiplies matrices at "
        f"{floor.multiply / 1e9:.0f} GFLOP/s, takes {floor.exponential / 1e6:.0f} "
        f"million exponentials a second.\n\n"
        f"Design A is {COLUMNS} numeric columns and an intercept, design B adds a "
        "factor of 100 levels. Every number is the least of "
        f"{found['settings']['repeats']} fresh processes, of up to three calls each; "
        "seconds are of the processor, over all threads, with wall seconds beside. "
        "`ratio` is the fastest peer with standard errors over deepstats. Peers in "
        "italics give no standard errors and are not raced."
    )


def _times(cells: Cells, threads: int, kind: str) -> str:
    libraries = [
        name for name in cells.libraries if getattr(LIBRARIES[name], f"has_{kind}")
    ]
    head = ["task", "design", "n", *map(_italic, libraries), "ratio", "bar", "met"]
    rows = []
    for row in cells.rows():
        ours = cells.get(OURS, row, threads, kind)
        peer = cells.fastest(row, threads, kind)
        times = [_time(cells.get(name, row, threads, kind)) for name in libraries]
        bar = BARS.get(row[0], {}).get(row[2])
        if all(t == "–" for t in times):
            continue
        ratio = peer[1] / ours["cpu"] if ours and peer else None
        shown = "–" if ratio is None else f"{ratio:.2f} ({peer[0]})"
        rows.append([*_label(row), *times, shown, _bar(bar), _verdict(ratio, bar)])
    return table(head, rows)


def _memory(cells: Cells) -> str:
    head = ["task", "design", "n", "kind", "threads", *map(_italic, cells.libraries)]
    rows = []
    for row in cells.rows():
        design = 8 * _width(row[1]) * row[2]
        for kind in KINDS:
            for threads in cells.threads:
                took = [cells.get(n, row, threads, kind) for n in cells.libraries]
                if not any(took):
                    continue
                shown = ["–" if t is None else f"{t['extra'] / 1e6:.0f}" for t in took]
                ours = cells.get(OURS, row, threads, kind)
                share = ours["extra"] / design if ours else None
                judged = share is not None and row[2] >= MEMORY_FROM
                met = "–" if not judged else yes(share <= MEMORY_BAR)
                percent = "–" if share is None else f"{share:.1%}"
                rows.append([*_label(row), kind, threads, *shown, percent, met])
    text = table([*head, "share", "met"], rows)
    return (
        f"{text}\n\n`share` is deepstats' over the float64 design matrix of the task: "
        f"{_width('A')} columns in A, {_width('B')} in B, its dummies among them; the "
        f"bar is {MEMORY_BAR:.0%}, from {MEMORY_FROM:,} rows on "
        "(below, what does not depend on the rows decides)."
    )


def _width(design: str) -> int:
    """Columns of the matrix a textbook would form."""
    return COLUMNS + 1 + (LEVELS - 1 if design == "B" else 0)


def _threads(cells: Cells) -> str:
    first, last = cells.threads[0], cells.threads[-1]
    rows = []
    for row in cells.rows():
        for kind in KINDS:
            one, two = (cells.get(OURS, row, t, kind) for t in (first, last))
            if one and two:
                ratio = one["wall"] / two["wall"]
                met = yes(two["wall"] <= NOISE * one["wall"])
                walls = [f"{one['wall']:.3f}", f"{two['wall']:.3f}", f"{ratio:.2f}"]
                rows.append([*_label(row), kind, *walls, met])
    head = ["task", "design", "n", "kind", f"{first} thread", f"{last} threads"]
    text = table([*head, "speed-up", "met"], rows)
    return (
        f"{text}\n\ndeepstats alone. Met when no slower than one thread, within "
        f"{NOISE - 1:.0%} of noise."
    )


def _agreement(cells: Cells) -> str:
    peers = [name for name in cells.libraries if name != OURS]
    rows = []
    for task, design in dict.fromkeys(key[:2] for key in cells.rows()):
        shown = []
        for name in peers:
            found = [
                c["differences"]
                for c in cells.cells
                if (c["library"], c["task"], c["design"]) == (name, task, design)
                and "differences" in c
            ]
            shown.append(
                " / ".join(_difference(found, key) for key in COARSE) if found else "–"
            )
        rows.append([TITLES[task], design, *shown])
    return (
        table(["task", "design", *map(_italic, peers)], rows)
        + "\n\nLargest relative difference, over all sizes and slopes, of the "
        "coefficients / of the standard errors. A `!` marks more than "
        f"{COARSE['slopes']:g} or {COARSE['errors']:g}. Small-sample factors are set "
        "alike: pyfixest's `iid` errors and glum's without their n/(n-k)."
    )


def _floor(cells: Cells, floor: Floor) -> str:
    rows = []
    for row in cells.rows():
        task, _, n = row
        took = cells.get(OURS, row, 1, "fit")
        if took is None or task not in PASSES:
            continue
        one = floor.seconds(n, COLUMNS, 0 if task.startswith("ols") else 1)
        needed = PASSES[task] * one
        rows.append(
            [*_label(row), f"{one * 1e3:.2f}", f"{needed:.4f}", f"{took['cpu']:.4f}",
             f"{took['cpu'] / needed:.1f}"]
        )  # fmt: skip
    head = ["task", "design", "n", "ms a pass", "floor, s", "deepstats, s", "distance"]
    return (
        "A pass reads 21 columns and forms X'WX; memory and arithmetic fully "
        "overlapped, the factor free. The floor is 2 passes for least squares "
        "(cross-products; meat), 3 for the others (two Newton steps from a subsample's "
        "estimates, the information at the end), one thread, the fit alone.\n\n"
        + table(head, rows)
    )


def _small(found: Row) -> str:
    small, imports = found["small"], found.get("imports", {})
    tasks = list(next(iter(small.values())))
    rows = [
        [name, *(f"{times[t]:.1f}" if t in times else "–" for t in tasks)]
        for name, times in small.items()
    ]
    text = table(["doctor visits, 4,406 x 7: ms of processor a call", *tasks], rows)
    times = ", ".join(f"{name} {value:.2f}" for name, value in imports.items())
    return f"{text}\n\nImport, processor seconds: {times}."


def _skipped(cells: Cells) -> str:
    """List what was not run and why, the threads and sizes of one reason together."""
    found: dict[tuple, list[str]] = {}
    for c in cells.cells:
        if "skipped" in c:
            key = (c["library"], TITLES[c["task"]], c["design"], c["skipped"])
            found.setdefault(key, []).append(f"{c['n']:,}")
    lines = [
        f"- {library}, {task}, design {design}, n = {', '.join(dict.fromkeys(sizes))}: "
        f"{reason}"
        for (library, task, design, reason), sizes in found.items()
    ]
    return "\n".join(lines) or "Everything asked for was run."


# -- pieces ----------------------------------------------------------------------------


def _label(row: tuple[str, str, int]) -> list[str]:
    task, design, n = row
    return [TITLES[task], design, f"{n:,}"]


def _italic(library: str) -> str:
    return f"*{library}*" if LIBRARIES[library].reference_only else library


def _time(took: Row | None) -> str:
    return "–" if took is None else f"{digits(took['cpu'])} ({digits(took['wall'])})"


def _difference(found: list[Row], key: str) -> str:
    values = [f[key] for f in found if f[key] is not None]
    if not values:
        return "–"
    return f"{max(values):.0e}{'!' if max(values) > COARSE[key] else ''}"


def _bar(bar: float | None) -> str:
    return "–" if bar is None else f"{bar:g}"


def _verdict(ratio: float | None, bar: float | None) -> str:
    return "–" if ratio is None or bar is None else yes(ratio >= bar)
