"""Group-based trajectory models beside the programs people use.

    python benchmarks/trajectory.py                    # every case: most of an hour
    python benchmarks/trajectory.py --quick            # up to 5,000 units
    python benchmarks/trajectory.py --cases paquid-g3 --update

Prints a table and writes it, with the raw numbers, to `benchmarks/results`. Programs
that are not to be had here (lcmm, trajeR, crimCV, gbtmkit) are shown as recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from harness import (
    HERE,
    available,
    least,
    limit_memory,
    machine,
    measure_floor,
    r_versions,
    run_patiently,
    write_results,
)
from mixed_cases import write
from trajectory_cases import CASES, QUICK, REAL, REFERENCE, WARM_UNITS, Case
from trajectory_libraries import LIBRARIES, OURS
from trajectory_report import markdown

PACKAGES = ("deepstats", "torch", "numpy", "scipy", "pandas", "formulaic", "stepmix")

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the report and write it."""
    options = _parser().parse_args(arguments)
    if options.render is not None:
        text = markdown(json.loads(options.render.read_text()))
        options.render.with_suffix(".md").write_text(text)
        print(text)
        return
    usual = "trajectory-quick" if options.quick else "trajectory"
    out = options.out or HERE / "results" / usual
    libraries = _available(options.libraries)
    found = {
        "machine": machine(PACKAGES) | _about_r(libraries),
        "floor": asdict(measure_floor()),
        "settings": {"repeats": options.repeat, "timeout": options.timeout},
        "cells": [],
    }
    if options.update:
        found["cells"] = json.loads(out.with_suffix(".json").read_text())["cells"]
    limit_memory()
    for case in _chosen(options):
        cells = _run_case(case, libraries, options)
        ran = {(cell["case"], cell["library"]) for cell in cells}
        kept = [c for c in found["cells"] if (c["case"], c["library"]) not in ran]
        found["cells"] = kept + cells
        write_results(found, markdown(found), out)
    print(out.with_suffix(".md").read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=None, metavar="CASE",
        help=f"of {', '.join(CASES)}")  # fmt: skip
    add("--quick", action="store_true", help="up to 5,000 units only")
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add(
        "--repeat", type=int, default=3, help="fresh processes a cell; the least counts"
    )
    add("--timeout", type=float, default=200.0, help="seconds a process")
    add("--out", type=Path, default=None,
        help="results go to OUT.json and OUT.md")  # fmt: skip
    add("--update", action="store_true",
        help="keep the other cells of OUT.json")  # fmt: skip
    add(
        "--temporary", type=Path, default=None, help="where the data are kept meanwhile"
    )
    add("--render", type=Path, default=None, help="print the table of a JSON again")
    return parser


def _chosen(options: argparse.Namespace) -> list[Case]:
    names = options.cases or (QUICK if options.quick else CASES)
    absent = [n for n in names if n in REAL and not REFERENCE.exists()]
    for name in absent:
        print(f"left out: {name}: no data in ../shared/reference", file=sys.stderr)
    return [CASES[name] for name in names if name not in absent]


# -- cells -----------------------------------------------------------------------------


def _run_case(
    case: Case, libraries: Sequence[str], options: argparse.Namespace
) -> list[Result]:
    """Programs take turns: they share the machine's noise."""
    names = [name for name in libraries if name == OURS or name in case.peers]
    repeats: dict[str, list[Result]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(
        prefix="deepstats-bench-", dir=options.temporary
    ) as place:
        folder = Path(place)
        _lay_out(case, None, folder / "rows")
        _lay_out(case, WARM_UNITS, folder / "warm")
        for _ in range(options.repeat):
            for name in names:
                found = repeats[name]
                if not (found and "error" in found[-1]):
                    found.append(_run(name, case, folder, options.timeout))
    return [
        {"library": name, "case": case.name, "threads": case.threads}
        | _summary(repeats[name])
        for name in names
    ]


def _lay_out(case: Case, units: int | None, folder: Path) -> None:
    """Write rows, and the labels of a start, if there is one."""
    frame, labels = case.draw(units)
    write(frame, folder)
    if labels is not None:
        ids = frame["id"].unique()
        write(pd.DataFrame({"id": ids, "label": labels}), folder / "units")


def _run(library: str, case: Case, folder: Path, timeout: float) -> Result:
    """Run a cell in a process of its own; an "error" entry where it failed."""
    spec = {"library": library, "case": case.name, "folder": str(folder)}
    command = [sys.executable, str(HERE / "trajectory_cell.py"), json.dumps(spec)]
    if library.startswith("R "):
        script = str(HERE / "trajectory_cell.R")
        given = (case.r_formula, case.family, case.groups, case.peers[library], folder)
        command = ["Rscript", "--vanilla", script, *map(str, given)]
    start = time.perf_counter()
    result = run_patiently(command, case.threads, timeout)
    _say(library, case, result, time.perf_counter() - start)
    return result


def _summary(repeats: list[Result]) -> Result:
    good = [r for r in repeats if "error" not in r]
    if not good:
        failed = repeats[-1]
        limit = {"limit": failed["limit"]} if "limit" in failed else {}
        return {"skipped": failed["error"]} | limit
    kept = ("loglik", "beta", "errors")
    return {
        "frame": least(good, "frame"),
        **{key: good[0][key] for key in kept},
        "repeats": [r["frame"] for r in good],
    }


def _say(library: str, case: Case, result: Result, seconds: float) -> None:
    text = result.get("error")
    if text is None:
        took = result["frame"]
        text = (
            f"{took['cpu']:.4f} s cpu {took['wall']:.4f} s wall "
            f"{took['extra'] / 1e6:.0f} MB  log L {result['loglik']:.4f}"
        )
    print(
        f"{case.name:32s} {library:12s} {text}  [{seconds:.1f} s]",
        file=sys.stderr,
        flush=True,
    )


# -- the rest --------------------------------------------------------------------------


def _available(names: Sequence[str]) -> list[str]:
    return available({name: LIBRARIES[name].package for name in names})


def _about_r(libraries: Sequence[str]) -> Result:
    used = [LIBRARIES[name].package for name in libraries if name.startswith("R ")]
    return r_versions(used) if used else {}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
