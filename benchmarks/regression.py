"""Least squares, Poisson, logit and NB2 beside the libraries people use.

    python benchmarks/regression.py            # everything: hours
    python benchmarks/regression.py --quick    # 100,000 rows only

Prints a table and writes it, with the raw numbers, to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    HERE,
    Cell,
    absence,
    least,
    machine,
    measure_floor,
    r_absence,
    r_versions,
    run_cell,
    run_process,
    write_data,
)
from libraries import LIBRARIES, Task
from report import markdown

SIZES = (100_000, 1_000_000, 5_000_000)
TASKS = ("ols_hc1", "ols_cluster", "poisson", "logit", "nb2")
NB2_ROWS = 100_000
IMPORTS = ("deepstats", "torch", "statsmodels.formula.api", "glum")
PACKAGES = (
    "deepstats", "torch", "numpy", "scipy", "pandas", "formulaic", "statsmodels",
    "pyfixest", "glum", "tabmat", "scikit-learn",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the report and write it."""
    options = _parser().parse_args(arguments)
    sizes = options.sizes or (SIZES[:1] if options.quick else SIZES)
    if options.render is not None:
        found = json.loads(options.render.read_text())
        text = markdown(found)
        options.render.with_suffix(".md").write_text(text)
        print(text)
        return
    libraries = [name for name in options.libraries if _explain_absence(name) is None]
    for name in set(options.libraries) - set(libraries):
        print(f"left out: {name}: {_explain_absence(name)}", file=sys.stderr)
    found = {
        "machine": machine(PACKAGES) | _r_versions(libraries),
        "floor": asdict(measure_floor()),
        "settings": {"repeats": options.repeat, "threads": options.threads},
        "cells": [],
    }
    out = options.out or HERE / "results" / ("quick" if options.quick else "regression")
    folder = Path(tempfile.mkdtemp(prefix="deepstats-bench-", dir=options.temporary))
    try:
        for n in sizes:
            write_data(folder / str(n), n)
            for task in _tasks(n, options):
                found["cells"] += _run_task(n, task, libraries, folder, options)
                _write(found, out)
            shutil.rmtree(folder / str(n))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.small:
        found["small"] = _small(libraries, options.timeout)
        found["imports"] = _imports()
    _write(found, out)
    print(out.with_suffix(".md").read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="100,000 rows only")
    add("--sizes", type=_rows, nargs="+", default=None, metavar="N")
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--designs", nargs="+", choices=("A", "B"), default=["A", "B"])
    add("--threads", type=int, nargs="+", default=[1, 2])
    add(
        "--repeat", type=int, default=3, help="fresh processes a cell; the least counts"
    )
    add("--timeout", type=float, default=600.0, help="seconds a process")
    add("--out", type=Path, default=None, help="results go to OUT.json and OUT.md")
    add(
        "--temporary", type=Path, default=None, help="where the data are kept meanwhile"
    )
    add("--no-small", dest="small", action="store_false",
        help="leave out the small data and the import times")  # fmt: skip
    add("--render", type=Path, default=None, help="print the table of a JSON again")
    return parser


def _rows(text: str) -> int:
    return int(float(text))


# -- cells -----------------------------------------------------------------------------


def _tasks(n: int, options: argparse.Namespace) -> list[Task]:
    tasks = [Task(t, d) for t in options.tasks for d in options.designs]
    return [t for t in tasks if t.name != "nb2" or (n, t.design) == (NB2_ROWS, "A")]


def _run_task(
    n: int,
    task: Task,
    libraries: Sequence[str],
    folder: Path,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Libraries and numbers of threads take turns: they share the machine's noise."""
    cells = [
        Cell(name, task.name, task.design, n, threads)
        for threads in options.threads
        for name in libraries
    ]
    refused = {name: LIBRARIES[name].refuses(task, n) for name in libraries}
    repeats: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for _ in range(options.repeat):
        for cell in cells:
            failed = repeats[cell] and "error" in repeats[cell][-1]
            if refused[cell.library] is None and not failed:
                start = time.perf_counter()
                result = run_cell(cell, folder / str(n), options.timeout)
                repeats[cell].append(result)
                _say(cell, result, time.perf_counter() - start)
    ours = [r for c in cells if c.library == "deepstats" for r in _good(repeats[c])]
    base = ours[0] if ours else None
    return [
        asdict(cell) | _summary(repeats[cell], refused[cell.library], base)
        for cell in cells
    ]


def _good(repeats: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in repeats if "error" not in r]


def _summary(
    repeats: list[dict[str, Any]], refused: str | None, base: dict[str, Any] | None
) -> dict[str, Any]:
    good = _good(repeats)
    if refused is not None or not good:
        return {"skipped": refused or repeats[-1]["error"]}
    return {
        "fit": least(good, "fit"),
        "frame": least(good, "frame"),
        "iterations": good[0]["iterations"],
        "differences": _differences(good[0], base),
        "repeats": [{k: r[k] for k in ("fit", "frame") if k in r} for r in good],
    }


def _differences(
    found: dict[str, Any], base: dict[str, Any] | None
) -> dict[str, float | None]:
    """Largest relative difference of slopes and of standard errors from deepstats."""
    if base is None:
        return {"slopes": None, "errors": None}
    return {
        key: None
        if found[key] is None or base[key] is None
        else float(np.max(np.abs(np.divide(found[key], base[key]) - 1)))
        for key in ("slopes", "errors")
    }


def _say(cell: Cell, result: dict[str, Any], seconds: float) -> None:
    text = result.get("error") or "  ".join(
        f"{kind} {result[kind]['cpu']:.3f} s cpu {result[kind]['wall']:.3f} s wall "
        f"{result[kind]['extra'] / 1e6:.0f} MB"
        for kind in ("fit", "frame")
        if kind in result
    )
    print(
        f"{cell.n:>9,} {cell.task:11s} {cell.design} {cell.threads} thr "
        f"{cell.library:13s} {text}  [{seconds:.1f} s]",
        file=sys.stderr,
        flush=True,
    )


# -- the rest --------------------------------------------------------------------------


def _small(libraries: Sequence[str], timeout: float) -> dict[str, Any]:
    import small

    out: dict[str, Any] = {}
    for name in small.LIBRARIES:
        if name in libraries:
            command = [sys.executable, str(HERE / "small.py"), name]
            out[name] = run_process(command, 1, timeout)
    return out


def _imports(repeats: int = 5) -> dict[str, float]:
    """Least processor seconds to start Python and import each module, less Python's."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    modules = [m for m in IMPORTS if importlib.util.find_spec(m.split(".")[0])]
    times: dict[str, list[float]] = {m: [] for m in ("", *modules)}
    for _ in range(repeats):
        for module in times:
            times[module].append(seconds(f"import {module}" if module else ""))
    empty = min(times.pop(""))
    return {module: min(found) - empty for module, found in times.items()}


def _explain_absence(name: str) -> str | None:
    package = LIBRARIES[name].package
    return r_absence(package) if name.startswith("R ") else absence(package)


def _r_versions(libraries: Sequence[str]) -> dict[str, Any]:
    used = [LIBRARIES[name].package for name in libraries if name.startswith("R ")]
    return r_versions(used) if used else {}


def _write(found: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(found))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
