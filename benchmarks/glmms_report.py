"""The tables of the generalised mixed-model benchmark."""

from __future__ import annotations

from typing import Any

from glmms_cases import CASES, FAMILIES, MILLION, SHAPES, SMALL
from glmms_libraries import LIBRARIES, OURS
from harness import Floor, digits, table, yes

# How many times as fast as a peer deepstats has to be, in processor seconds.
BARS = {
    "verbagg": {"glmm": 1.0, "R glmmTMB": 10.0},
    **{name: {"glmm": 3.0} for name in MILLION},
}
SMALL_SECONDS = 0.05
# -2 log L is a sum of many terms: below this it is rounding.
ROUNDING = 1e-6

Row = dict[str, Any]


class Cells:
    """The measured cells, found by case and library."""

    def __init__(self, cells: list[Row]) -> None:
        ran = {c["library"] for c in cells}
        self.libraries = [name for name in LIBRARIES if name in ran]
        self.peers = [name for name in self.libraries if name != OURS]
        self.cases = [n for n in CASES if n in {c["case"] for c in cells}]
        self._found = {(c["case"], c["library"]): c for c in cells}

    def cell(self, case: str, library: str) -> Row:
        return self._found.get((case, library), {})

    def took(self, case: str, library: str) -> Row | None:
        return self.cell(case, library).get("frame")

    def ratio(self, case: str, peer: str) -> tuple[float, bool] | None:
        """Processor seconds of a peer over ours; or a bound, where it was stopped."""
        ours, theirs = self.took(case, OURS), self.took(case, peer)
        if ours is None:
            return None
        if theirs is not None:
            return theirs["cpu"] / ours["cpu"], True
        if "limit" in (stopped := self.cell(case, peer)):
            return stopped["limit"] / ours["cpu"], False
        return None


def markdown(found: Row) -> str:
    """Set a benchmark's results as Markdown."""
    cells = Cells(found["cells"])
    parts = [
        "# Benchmark: generalised linear mixed models",
        _machine(found),
        "\n".join(f"- {name}: {LIBRARIES[name].call}" for name in cells.libraries),
        "## Processor seconds",
        _each(cells, lambda case, name: _time(cells.took(case, name))),
        "## How many times as fast as each peer",
        _each(cells, lambda case, name: _ratio(cells.ratio(case, name)), True),
        "Processor seconds of the peer over deepstats'. `>` where the peer was "
        "stopped: those of its process by then.",
        "## Bars",
        _bars(cells),
        "## Growth: microseconds a row",
        _growth(cells),
        "Processor microseconds for each row of the crossed models, rows and levels "
        "growing together.",
        "## Peak extra memory, MB",
        _each(cells, lambda case, name: _memory(cells.took(case, name))),
        "## -2 log L: the library's less deepstats'",
        _each(cells, lambda case, name: _value(cells, case, name)),
        "Of deepstats the value itself. lme4's default tolerances stop short of the "
        "optimum; gpboost maximises an approximation of its own.",
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
    repeats = sorted({c.get("repeated", 0) for c in found["cells"] if "frame" in c})
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['system']}; Python {about['python']}; {versions}{r}. "
        f"BLAS of NumPy and SciPy: {', '.join(about['blas'])}. "
        f"Load average before the run: {about['load_before'][0]}. One core reads "
        f"{floor.bandwidth / 1e9:.1f} GB/s and multiplies matrices at "
        f"{floor.multiply / 1e9:.0f} GFLOP/s.\n\n"
        "A formula and a data frame in, the table of coefficients with standard errors "
        "out. Every number is the least of "
        f"{' or '.join(map(str, repeats))} fresh processes, of up to three calls each "
        "after one on a small problem; calls of less than 0.1 s are timed in batches "
        "of ten. Seconds are of the processor, on one thread, with wall seconds "
        f"beside. A peer was stopped after {found['settings']['timeout']:g} s."
    )


def _each(cells: Cells, show: Any, peers: bool = False) -> str:
    """A table with a row for each case and a column for each library."""
    names = cells.peers if peers else cells.libraries
    rows = [[CASES[c].title, *(show(c, name) for name in names)] for c in cells.cases]
    return table(["model", *names], rows)


def _growth(cells: Cells) -> str:
    """Set the time of each row, by rows and family."""
    rows = []
    for family in FAMILIES:
        for n, g, h in SHAPES:
            shown = [family, f"{n:,}", f"{g:,} × {h:,}"]
            for name in cells.libraries:
                took = cells.took(f"crossed-{family}-{n}", name)
                shown.append("–" if took is None else digits(took["cpu"] / n * 1e6))
            rows.append(shown)
    return table(["family", "rows", "levels", *cells.libraries], rows)


def _time(took: Row | None) -> str:
    return "–" if took is None else f"{digits(took['cpu'])} ({digits(took['wall'])})"


def _memory(took: Row | None) -> str:
    return "–" if took is None else f"{took['extra'] / 1e6:.0f}"


def _ratio(found: tuple[float, bool] | None) -> str:
    if found is None:
        return "–"
    return f"{'' if found[1] else '> '}{found[0]:.2g}"


def _value(cells: Cells, case: str, name: str) -> str:
    cell = cells.cell(case, name)
    if "loglik" not in cell:
        return "–"
    if name == OURS or not cell["differences"]:
        return f"{-2 * cell['loglik']:.6f}"
    found = cell["differences"]["criterion"]
    size = ROUNDING * max(1.0, 1e-4 * abs(cell["loglik"]))
    return "0" if abs(found) < size else f"{found:.1e}"


def _bars(cells: Cells) -> str:
    rows = []
    for case in cells.cases:
        for peer, bar in BARS.get(case, {}).items():
            ratio = cells.ratio(case, peer)
            if ratio is None:
                met = "–"
            elif ratio[0] >= bar:
                met = yes(True)
            else:
                met = yes(False) if ratio[1] else "open"
            rows.append([CASES[case].title, f"≥ {bar:g} × {peer}", _ratio(ratio), met])
        if case in SMALL and (took := cells.took(case, OURS)) is not None:
            shown = f"{took['cpu'] * 1e3:.1f} ms"
            met = yes(took["cpu"] <= SMALL_SECONDS)
            rows.append(
                [CASES[case].title, f"≤ {SMALL_SECONDS * 1e3:g} ms", shown, met]
            )
    return table(["model", "bar", "measured", "met"], rows)


def _skipped(cells: Cells) -> str:
    rows = [
        [CASES[case].title, name, cells.cell(case, name)["skipped"]]
        for case in cells.cases
        for name in cells.libraries
        if "skipped" in cells.cell(case, name)
    ]
    return table(["model", "library", "why"], rows) if rows else "None."
