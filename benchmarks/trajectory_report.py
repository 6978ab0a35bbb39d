"""The tables of the trajectory benchmark: times, optima, bars, memory, agreement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness import Floor, digits, table, yes
from trajectory_cases import CASES, LARGE, REAL, Case, Recorded
from trajectory_libraries import LIBRARIES, OURS

# How many times as fast as a program deepstats has to be, in processor seconds, with
# standard errors. "any": as the fastest of those that fit the model.
_COMMON = {"lcmm": 100.0, "R flexmix": 100.0, "gbtmkit": 100.0}
BARS = {
    "gaussian-g3-5000-near": _COMMON,
    "gaussian-g3-5000-near-unique": {"R flexmix": 10.0, "lcmm": 50.0},
    **{f"poisson-g4-{n}-near": {"any": 20.0} for n in (500, 5_000, 50_000)},
    **{name: {"any": 20.0} for name in ("wheeler-zip0", "wheeler-zip1", "to1adj-tau")},
}
LARGE_SECONDS = 120.0

# Beyond these a difference is marked: in standard errors, and relative.
COARSE = {"beta": 1e-2, "errors": 1e-2}
# Another optimum: estimates are not compared.
APART = 0.5
# log L is a sum of many terms: below this, relative to its size, it is rounding.
ROUNDING = 1e-6

Row = dict[str, Any]


class Cells:
    """The measured cells, found by case and program."""

    def __init__(self, cells: Iterable[Row]) -> None:
        self.cells = [c for c in cells if c["case"] in CASES]
        ran = {c["library"] for c in self.cells}
        self.libraries = [name for name in LIBRARIES if name in ran]
        self.peers = [name for name in self.libraries if name != OURS]
        self._found = {(c["case"], c["library"]): c for c in self.cells}

    def cases(self, names: Iterable[str] | None = None) -> list[Case]:
        """Cases that were run, in their order."""
        ran = {c["case"] for c in self.cells}
        return [CASES[n] for n in (names or CASES) if n in ran]

    def cell(self, case: Case, library: str) -> Row:
        return self._found.get((case.name, library), {})

    def took(self, case: Case, library: str) -> Row | None:
        return self.cell(case, library).get("frame")

    def ratio(self, case: Case, peer: str) -> tuple[float, bool] | None:
        """Processor seconds of a peer over ours; or a bound, where it was stopped."""
        ours, theirs = self.took(case, OURS), self.took(case, peer)
        if ours is None:
            return None
        if theirs is not None:
            return theirs["cpu"] / ours["cpu"], True
        if "limit" in (stopped := self.cell(case, peer)):
            return stopped["limit"] / ours["cpu"], False
        return None

    def recorded_ratio(self, case: Case, record: Recorded) -> tuple[float, bool] | None:
        """Seconds recorded of a program over ours."""
        ours = self.took(case, OURS)
        return None if ours is None else (record.cpu / ours["cpu"], not record.bound)


def markdown(found: Row) -> str:
    """Set a benchmark's results as Markdown."""
    cells = Cells(found["cells"])
    simulated = [c for c in cells.cases() if c.name not in (*REAL, LARGE)]
    near = [c for c in simulated if not c.starts]
    cold = [c for c in simulated if c.starts]
    parts = [
        "# Benchmark: group-based trajectory models",
        _machine(found),
        _calls(cells),
        "## From one start near the truth",
        "True labels with 35% drawn anew; deepstats and flexmix begin from the same "
        "ones. Processor seconds, wall seconds beside, standard errors in.",
        _times(cells, near, starts=False),
        "## From cold",
        "Every program's own starts, as many as the number beside its seconds.",
        _times(cells, cold, starts=True),
        "## Programs that were not run here",
        _recorded(cells),
        "## Log-likelihood reached",
        _reached(cells),
        "## Bars",
        _bars(cells),
        "## A million units",
        _large(cells),
        "## Peak extra memory, MB",
        _memory(cells),
        "## Agreement with deepstats",
        _agreement(cells),
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
        r = f"; {r}, {packages}"
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['system']}; Python {about['python']}; {versions}{r}. "
        f"BLAS of NumPy and SciPy: {', '.join(about['blas'])}. "
        f"Load average before the run: {about['load_before'][0]}. One core reads "
        f"{floor.bandwidth / 1e9:.1f} GB/s and multiplies matrices at "
        f"{floor.multiply / 1e9:.0f} GFLOP/s.\n\n"
        "A formula and a long data frame in, the table of coefficients with standard "
        "errors out (StepMix has none); ten occasions for each unit, trajectories "
        "quadratic. Every number is the least of "
        f"{found['settings']['repeats']} fresh processes, of up to three calls each "
        f"after one on a small problem. A process was stopped after "
        f"{found['settings']['timeout']:g} s. One thread."
    )


def _calls(cells: Cells) -> str:
    return "\n".join(f"- {name}: {LIBRARIES[name].call}" for name in cells.libraries)


def _times(cells: Cells, cases: list[Case], starts: bool) -> str:
    if not cases:
        return "Not run."
    fit = [p for p in cells.peers if any(p in c.peers for c in cases)]
    rows = []
    for case in cases:
        shown = [_time(cells.took(case, OURS), case.starts if starts else 0)]
        for peer in fit:
            took = cells.took(case, peer)
            shown.append(_time(took, case.peers.get(peer, 0)))
        for peer in fit:
            ratio = cells.ratio(case, peer) if peer in case.peers else None
            shown.append("–" if ratio is None else _ratio(*ratio))
        rows.append([case.title, *shown])
    head = ["model", OURS, *fit, *(f"{peer} / {OURS}" for peer in fit)]
    return table(head, rows)


def _recorded(cells: Cells) -> str:
    rows = []
    for case in cells.cases():
        for record in case.recorded:
            ratio = cells.recorded_ratio(case, record)
            shown = "–" if ratio is None else _ratio(*ratio)
            ours = cells.cell(case, OURS).get("loglik")
            rows.append(
                [case.title, record.program, record.starts, _seconds(record),
                 _time(cells.took(case, OURS), case.starts), shown,
                 _gain(ours, record.loglik)]
            )  # fmt: skip
    head = ["model", "program", "from", "recorded CPU s", OURS, "ratio"]
    text = table([*head, "log L of deepstats, above it by"], rows)
    return (
        f"{text}\n\n**Recorded, not run**: lcmm 2.2.1, trajeR 0.11.1, crimCV 1.0.0 and "
        "gbtmkit 0.4.0 are not to be had where this benchmark runs. Their processor "
        "seconds were taken once on a machine of this type, of simulated models on "
        "data of the same shape (10 occasions, quadratic) that are not the ones here, "
        "each program at its own tolerance; `>` where it was stopped. lcmm has one "
        "residual variance, deepstats and flexmix one for each group in the simulated "
        "models. Of deepstats the number of starts stands beside its seconds, none "
        "where it had the labels."
    )


def _reached(cells: Cells) -> str:
    rows = []
    for case in cells.cases():
        ours = cells.cell(case, OURS)
        if "loglik" not in ours:
            continue
        others = []
        for peer in cells.peers:
            found = cells.cell(case, peer).get("loglik")
            others.append(_gain(ours["loglik"], found))
        rows.append(
            [case.title, case.starts or "labels", f"{ours['loglik']:.4f}", *others,
             _gain(ours["loglik"], case.best_loglik)]
        )  # fmt: skip
    above = [f"above {name} by" for name in (*cells.peers, "the best known")]
    text = table(["model", "starts", "deepstats", *above], rows)
    return (
        f"{text}\n\nA **negative** number: the other found the better optimum. flexmix "
        "divides residual sums of squares by n less the rank, and so stays short of "
        "the maximum by a little. The best known are those of `gbtm.json`."
    )


def _bars(cells: Cells) -> str:
    rows = []
    for case in cells.cases():
        found = _ratios(cells, case)
        for peer, bar in BARS.get(case.name, {}).items():
            name, ratio = peer, found.get(peer)
            if peer == "any":
                exact = {p: r for p, r in found.items() if r[1]} or found
                if not exact:
                    continue
                name = min(exact, key=lambda p: exact[p][0])
                ratio = exact[name]
            shown = "–" if ratio is None else _ratio(*ratio)
            rows.append([case.title, f"≥ {bar:g} × {name}", shown, _met(ratio, bar)])
    large = cells.took(CASES[LARGE], OURS)
    if large is not None:
        met = yes(large["wall"] <= LARGE_SECONDS)
        rows.append(
            [CASES[LARGE].title, f"≤ {LARGE_SECONDS:g} s wall, two threads",
             f"{large['wall']:.1f} s", met]
        )  # fmt: skip
    return table(["model", "bar", "measured", "met"], rows)


def _ratios(cells: Cells, case: Case) -> dict[str, tuple[float, bool]]:
    """Ratios to every program that was run, or recorded, at a case."""
    found = {p: cells.ratio(case, p) for p in cells.peers}
    found |= {r.program: cells.recorded_ratio(case, r) for r in case.recorded}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def _large(cells: Cells) -> str:
    case = CASES[LARGE]
    took = cells.took(case, OURS)
    if took is None:
        return "Not run."
    cell = cells.cell(case, OURS)
    return (
        f"{case.title}, 10 million rows, {case.starts} starts, two threads: "
        f"{took['wall']:.1f} s wall, {took['cpu']:.1f} s of the processors, "
        f"{took['extra'] / 1e9:.2f} GB beside the frame; log-likelihood "
        f"{cell['loglik']:.2f}."
    )


def _memory(cells: Cells) -> str:
    rows = []
    for case in cells.cases():
        took = [cells.took(case, name) for name in cells.libraries]
        shown = ["–" if t is None else f"{t['extra'] / 1e6:.0f}" for t in took]
        rows.append([_label(case), *shown])
    return table(["model", *cells.libraries], rows)


def _agreement(cells: Cells) -> str:
    rows = []
    for case in cells.cases():
        ours = cells.cell(case, OURS)
        for peer in cells.peers:
            cell = cells.cell(case, peer)
            if not cell.get("beta") or "loglik" not in ours:
                continue
            if abs(cell["loglik"] - ours["loglik"]) > APART:
                rows.append([_label(case), peer, "another optimum", ""])
                continue
            found = _differences(cell, ours)
            rows.append(
                [_label(case), peer, *(_difference(n, found[n]) for n in COARSE)]
            )
    limits = ", ".join(f"{limit:g}" for limit in COARSE.values())
    text = table(["model", "program", "coefficients", "standard errors"], rows)
    return (
        f"{text}\n\nCoefficients: largest difference in standard errors. Standard "
        f"errors: largest relative difference. A `!` marks more than {limits}. "
        "flexmix's Hessian is numerical, and its EM stops by the change of the "
        "log-likelihood."
    )


def _differences(found: Row, ours: Row) -> dict[str, float | None]:
    pairs = list(zip(found["beta"], ours["beta"], ours["errors"], strict=True))
    errors = list(zip(found["errors"], ours["errors"], strict=True))
    if any(theirs is None for theirs, _ in errors):
        return {"beta": None, "errors": None}
    return {
        "beta": max(abs(theirs - own) / error for theirs, own, error in pairs),
        "errors": max(abs(theirs / own - 1) for theirs, own in errors),
    }


def _skipped(cells: Cells) -> str:
    lines = [
        f"- {c['library']}: {_label(CASES[c['case']])}: {c['skipped']}"
        for c in cells.cells
        if "skipped" in c
    ]
    lines += [
        f"- {peer}: {_label(case)}: not asked for in this run"
        for case in cells.cases()
        for peer in case.peers
        if not cells.cell(case, peer)
    ]
    lines += [
        "- ZIP: flexmix's `FLXMRziglm` makes the zeros a class of units, which is "
        "another model; no program that can be had here fits it.",
        "- StepMix has no regression on time; it is run on the free means only. It "
        "takes no labels as a start and gives no standard errors.",
    ]
    return "\n".join(lines)


# -- pieces ----------------------------------------------------------------------------


def _label(case: Case) -> str:
    return f"{case.title}, {case.starts} starts" if case.starts else case.title


def _time(took: Row | None, starts: int) -> str:
    if took is None:
        return "–"
    text = f"{digits(took['cpu'])} ({digits(took['wall'])})"
    return f"{text}, {starts} starts" if starts else text


def _seconds(record: Recorded) -> str:
    return f"> {record.cpu:g}" if record.bound else f"{record.cpu:g}"


def _ratio(ratio: float, exact: bool) -> str:
    return f"{ratio:.1f}" if exact else f"> {ratio:.0f}"


def _met(ratio: tuple[float, bool] | None, bar: float) -> str:
    if ratio is None:
        return "–"
    value, exact = ratio
    return yes(value >= bar) if exact or value >= bar else "not known"


def _gain(ours: float | None, theirs: float | None) -> str:
    if ours is None or theirs is None:
        return "–"
    gain = ours - theirs
    if abs(gain) <= ROUNDING * (1 + abs(ours)):
        return f"{gain:.0e}" if gain else "0"
    return f"{gain:.3f}" if gain > 0 else f"**{gain:.3f}**"


def _difference(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0e}{'!' if value > COARSE[name] else ''}"
