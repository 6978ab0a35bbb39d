"""Generalised linear mixed models beside the libraries people use.

    python benchmarks/glmms.py                         # every case: hours
    python benchmarks/glmms.py --quick                 # up to 100,000 rows
    python benchmarks/glmms.py --cases cbpp --update   # one case, added to the others

Prints a table and writes it, with the raw numbers, to `benchmarks/results/glmm`. (This
file is not called glmm.py: that would hide the library of this name.)
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

import mixed_cases
from glmms_cases import CASES, QUICK, Case
from glmms_libraries import LIBRARIES, OURS
from glmms_report import markdown
from harness import (
    HERE,
    available,
    least,
    limit_memory,
    machine,
    measure_floor,
    r_output,
    r_versions,
    run_patiently,
    write_results,
)

PACKAGES = (
    "deepstats", "torch", "numpy", "scipy", "pandas", "glmm", "mixedlm", "gpboost",
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
    libraries = _available(options.libraries)
    found = {
        "machine": machine(PACKAGES) | _about_r(libraries),
        "floor": asdict(measure_floor()),
        "settings": {"repeats": options.repeat, "timeout": options.timeout},
        "cells": [],
    }
    if options.update:
        before = json.loads(options.out.with_suffix(".json").read_text())
        found["cells"] = before["cells"]
    limit_memory()
    names = options.cases or (QUICK if options.quick else CASES)
    for case in (CASES[name] for name in dict.fromkeys(names)):
        cells = _run_case(case, libraries, options)
        # A case is replaced: its libraries are compared within one run only.
        kept = [c for c in found["cells"] if c["case"] != case.name]
        found["cells"] = kept + cells
        write_results(found, markdown(found), options.out)
    print(options.out.with_suffix(".md").read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=None, metavar="CASE",
        help=f"of {', '.join(CASES)}")  # fmt: skip
    add("--quick", action="store_true", help="up to 100,000 rows only")
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add(
        "--repeat", type=int, default=3, help="fresh processes a cell; the least counts"
    )
    patience = f"seconds a process of a peer; deepstats has {PATIENCE} times as many"
    add("--timeout", type=float, default=200.0, help=patience)
    add("--out", type=Path, default=HERE / "results" / "glmm",
        help="results go to OUT.json and OUT.md")  # fmt: skip
    add("--update", action="store_true",
        help="keep the other cases of OUT.json")  # fmt: skip
    add("--render", type=Path, default=None, help="print the table of a JSON again")
    return parser


# -- cells -----------------------------------------------------------------------------


def _run_case(
    case: Case, libraries: Sequence[str], options: argparse.Namespace
) -> list[Result]:
    """Libraries take turns: they share the machine's noise."""
    refused = {name: LIBRARIES[name].refuses(case) for name in libraries}
    repeats: dict[str, list[Result]] = {name: [] for name in libraries}
    with tempfile.TemporaryDirectory(prefix="deepstats-bench-") as place:
        folder = Path(place)
        mixed_cases.write(case.rows(), folder / "rows")
        mixed_cases.write(case.warm(), folder / "warm")
        for _ in range(options.repeat):
            for name, found in repeats.items():
                failed = found and "error" in found[-1]
                if refused[name] is None and not failed:
                    found.append(_run(name, case, folder, options.timeout))
    base = next((r for r in repeats.get(OURS, []) if "error" not in r), None)
    return [
        {"library": name, "case": case.name, "repeated": len(found)}
        | _summary(found, refused[name], base)
        for name, found in repeats.items()
    ]


def _run(library: str, case: Case, folder: Path, timeout: float) -> Result:
    """Run a cell in a process of its own; an "error" entry where it failed."""
    spec = {"library": library, "case": case.name, "folder": str(folder)}
    command = [sys.executable, str(HERE / "glmms_cell.py"), json.dumps(spec)]
    if library.startswith("R "):
        package = LIBRARIES[library].package
        command = ["Rscript", "--vanilla", str(HERE / "glmms_cell.R"), package]
        command += [case.formula, case.family, case.zero, str(folder)]
    start = time.perf_counter()
    patience = timeout * (PATIENCE if library == OURS else 1)
    result = run_patiently(command, 1, patience)
    _say(library, case, result, time.perf_counter() - start)
    return result


def _summary(repeats: list[Result], refused: str | None, base: Result | None) -> Result:
    if refused is not None:
        return {"skipped": refused}
    good = [r for r in repeats if "error" not in r]
    if not good:
        failed = repeats[-1]
        limit = {"limit": failed["limit"]} if "limit" in failed else {}
        return {"skipped": failed["error"]} | limit
    first = good[0]
    return {
        "frame": least(good, "frame"),
        **{key: first[key] for key in ("loglik", "beta", "errors")},
        "differences": None if base is None else _differences(first, base),
    }


def _differences(found: Result, base: Result) -> dict[str, float]:
    """Compare a library's numbers with deepstats'.

    The criterion is -2 log L, the library's less ours: below zero it found the better
    optimum. Coefficients differ in units of our standard errors, these relatively;
    levels come in different orders, so that the intercept stands for no one else.
    """
    pairs = zip(found["beta"], base["beta"], base["errors"], strict=True)
    errors = zip(found["errors"], base["errors"], strict=True)
    return {
        "criterion": -2 * (found["loglik"] - base["loglik"]),
        "beta": max(abs(theirs - ours) / error for theirs, ours, error in pairs),
        "errors": max(abs(theirs / ours - 1) for theirs, ours in errors),
    }


def _say(library: str, case: Case, result: Result, seconds: float) -> None:
    text = result.get("error")
    if text is None:
        took = result["frame"]
        text = (
            f"{took['cpu']:.4f} s cpu {took['wall']:.4f} s wall "
            f"{took['extra'] / 1e6:.0f} MB  -2 log L {-2 * result['loglik']:.6f}"
        )
    print(
        f"{case.name:26s} {library:12s} {text}  [{seconds:.1f} s]",
        file=sys.stderr,
        flush=True,
    )


# -- the rest --------------------------------------------------------------------------


def _available(names: Sequence[str]) -> list[str]:
    return available({name: LIBRARIES[name].package for name in names})


def _about_r(libraries: Sequence[str]) -> Result:
    used = [LIBRARIES[name].package for name in libraries if name.startswith("R ")]
    if not used:
        return {}
    code = 'cat(basename(dirname(normalizePath(extSoftVersion()[["BLAS"]]))))'
    return r_versions([*used, "Matrix"]) | {"r_blas": r_output(code)}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
