"""Linear mixed models beside the libraries people use.

    python benchmarks/mixed.py                         # every case: hours
    python benchmarks/mixed.py --quick                 # up to 100,000 rows
    python benchmarks/mixed.py --growth --update       # growth curves, added to these

Prints a table and writes it, with the raw numbers, to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mixed_cases
from harness import (
    HERE,
    absence,
    least,
    limit_memory,
    machine,
    measure_floor,
    r_absence,
    r_output,
    r_versions,
    run_patiently,
    write_results,
)
from mixed_cases import CASES, GROWTH, QUICK, Case
from mixed_libraries import LIBRARIES
from mixed_report import OURS, markdown

PACKAGES = (
    "deepstats", "torch", "numpy", "scipy", "pandas", "formulaic", "glmm", "mixedlm",
    "gpboost", "statsmodels",
)  # fmt: skip
# deepstats is let finish where it is slow; a peer may take `--timeout` seconds.
PATIENCE = 3

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the report and write it."""
    options = _parser().parse_args(arguments)
    if options.render is not None:
        text = markdown(json.loads(options.render.read_text()))
        options.render.with_suffix(".md").write_text(text)
        print(text)
        return
    usual = HERE / "results" / ("mixed-quick" if options.quick else "mixed")
    out = options.out or usual
    libraries = _available(options.libraries)
    found = {
        "machine": machine(PACKAGES) | _about_r(libraries),
        "floor": asdict(measure_floor()),
        "settings": {"repeats": options.repeat, "timeout": options.timeout},
        "cells": [],
    }
    if options.update:
        before = json.loads(out.with_suffix(".json").read_text())
        found["cells"] = before["cells"]
    limit_memory()
    for case in _chosen(options):
        found["cells"] = _merged(found["cells"], _run_case(case, libraries, options))
        write_results(found, markdown(found), out)
    print(out.with_suffix(".md").read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--cases", nargs="+", choices=[*CASES, *GROWTH], default=None, metavar="CASE",
        help=f"of {', '.join(CASES)}")  # fmt: skip
    add("--quick", action="store_true", help="up to 100,000 rows only")
    add("--growth", action="store_true",
        help="crossed factors, with more and more rows and levels")  # fmt: skip
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add("--threads", type=int, nargs="+", default=None,
        help="one, and two where the bar is of two cores, unless given")  # fmt: skip
    add(
        "--repeat", type=int, default=3, help="fresh processes a cell; the least counts"
    )
    patience = f"seconds a process of a peer; deepstats has {PATIENCE} times as many"
    add("--timeout", type=float, default=200.0, help=patience)
    add("--out", type=Path, default=None,
        help="results go to OUT.json and OUT.md")  # fmt: skip
    add("--update", action="store_true",
        help="keep the other cases of OUT.json")  # fmt: skip
    add(
        "--temporary", type=Path, default=None, help="where the data are kept meanwhile"
    )
    add("--render", type=Path, default=None, help="print the table of a JSON again")
    return parser


def _chosen(options: argparse.Namespace) -> list[Case]:
    """Cases asked for; all but the growth curves if none is."""
    names = [*(options.cases or []), *(QUICK if options.quick else [])]
    names += GROWTH if options.growth else []
    names = names or list(CASES)
    return [mixed_cases.find(name) for name in dict.fromkeys(names)]


def _merged(before: list[Result], cells: list[Result]) -> list[Result]:
    """Replace a case: its libraries are compared within one run only."""
    ran = {cell["case"] for cell in cells}
    return [cell for cell in before if cell["case"] not in ran] + cells


# -- cells -----------------------------------------------------------------------------


def _run_case(
    case: Case, libraries: Sequence[str], options: argparse.Namespace
) -> list[Result]:
    """Libraries and numbers of threads take turns: they share the machine's noise."""
    threads = options.threads or case.threads
    keys = [(name, number) for number in threads for name in libraries]
    refused = {name: LIBRARIES[name].refuses(case) for name in libraries}
    repeats: dict[tuple[str, int], list[Result]] = {key: [] for key in keys}
    with tempfile.TemporaryDirectory(
        prefix="deepstats-bench-", dir=options.temporary
    ) as place:
        folder = Path(place)
        mixed_cases.write(case.rows(), folder / "rows")
        mixed_cases.write(case.warm(), folder / "warm")
        for _ in range(options.repeat):
            for name, number in keys:
                found = repeats[name, number]
                failed = found and "error" in found[-1]
                if refused[name] is None and not failed:
                    result = _run(name, case, number, folder, options.timeout)
                    found.append(result)
    base = _base(repeats)
    return [
        {"library": name, "case": case.name, "threads": number}
        | _summary(repeats[name, number], refused[name], base)
        for name, number in keys
    ]


def _run(
    library: str, case: Case, threads: int, folder: Path, timeout: float
) -> Result:
    """Run a cell in a process of its own; an "error" entry where it failed."""
    spec = {"library": library, "case": case.name, "folder": str(folder)}
    command = [sys.executable, str(HERE / "mixed_cell.py"), json.dumps(spec)]
    if library.startswith("R "):
        script = str(HERE / "mixed_cell.R")
        command = ["Rscript", "--vanilla", script, case.formula, str(case.reml)]
        command.append(str(folder))
    patience = timeout * (PATIENCE if library == OURS else 1)
    start = time.perf_counter()
    result = run_patiently(command, threads, patience)
    _say(library, case, threads, result, time.perf_counter() - start)
    return result


def _base(repeats: dict[tuple[str, int], list[Result]]) -> Result | None:
    """Return deepstats' numbers, to compare the others with."""
    ours = (r for (name, _), found in repeats.items() if name == OURS for r in found)
    return next((r for r in ours if "error" not in r), None)


def _summary(repeats: list[Result], refused: str | None, base: Result | None) -> Result:
    if refused is not None:
        return {"skipped": refused}
    good = [r for r in repeats if "error" not in r]
    if not good:
        failed = repeats[-1]
        limit = {"limit": failed["limit"]} if "limit" in failed else {}
        return {"skipped": failed["error"]} | limit
    first = good[0]
    kept = ("loglik", "beta", "errors", "spreads", "iterations")
    return {
        "frame": least(good, "frame"),
        **{key: first[key] for key in kept},
        "exact": first.get("exact", True),
        "differences": None if base is None else _differences(first, base),
        "repeats": [r["frame"] for r in good],
    }


def _differences(found: Result, base: Result) -> dict[str, float | None]:
    """Compare a library's numbers with deepstats'.

    The criterion is -2 log L, the library's less ours: below zero it found the better
    optimum. Fixed effects differ in units of our standard errors; standard errors
    relatively; standard deviations relatively, those below a hundredth of the residual
    one in units of that hundredth; correlations by themselves.
    """
    floor = 0.01 * base["spreads"]["sigma"]
    spreads = []
    for name, ours in base["spreads"].items():
        theirs = found["spreads"].get(name, math.nan)
        scale = 1.0 if "," in name else max(abs(ours), floor)
        spreads.append(abs(theirs - ours) / scale)
    pairs = list(zip(found["beta"], base["beta"], base["errors"], strict=True))
    errors = list(zip(found["errors"], base["errors"], strict=True))
    out = {
        "criterion": -2 * (found["loglik"] - base["loglik"]),
        "beta": max(abs(theirs - ours) / error for theirs, ours, error in pairs),
        "errors": max(abs(theirs / ours - 1) for theirs, ours in errors),
        "spreads": max(spreads),
    }
    return {key: value if math.isfinite(value) else None for key, value in out.items()}


def _say(
    library: str, case: Case, threads: int, result: Result, seconds: float
) -> None:
    text = result.get("error")
    if text is None:
        took = result["frame"]
        text = (
            f"{took['cpu']:.4f} s cpu {took['wall']:.4f} s wall "
            f"{took['extra'] / 1e6:.0f} MB  -2 log L {-2 * result['loglik']:.6f}"
        )
    print(
        f"{case.name:26s} {threads} thr {library:12s} {text}  [{seconds:.1f} s]",
        file=sys.stderr,
        flush=True,
    )


# -- the rest --------------------------------------------------------------------------


def _available(names: Sequence[str]) -> list[str]:
    reasons = {name: _explain_absence(name) for name in names}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"left out: {name}: {reason}", file=sys.stderr)
    return [name for name, reason in reasons.items() if reason is None]


def _explain_absence(name: str) -> str | None:
    package = LIBRARIES[name].package
    if name.startswith("R "):
        return r_absence(package)
    reason = absence(package)
    if reason is None and name == OURS:
        found = hasattr(importlib.import_module(package), "lmer")
        return None if found else "this deepstats has no lmer"
    return reason


def _about_r(libraries: Sequence[str]) -> Result:
    used = [LIBRARIES[name].package for name in libraries if name.startswith("R ")]
    if not used:
        return {}
    # Reference BLAS makes lme4 three to four times as slow on crossed factors.
    code = 'cat(basename(dirname(normalizePath(extSoftVersion()[["BLAS"]]))))'
    blas = r_output(code)
    if "openblas" not in blas.lower():
        print(f"R's BLAS is not OpenBLAS but {blas!r}: lme4 is slow", file=sys.stderr)
    return r_versions([*used, "Matrix"]) | {"r_blas": blas}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
