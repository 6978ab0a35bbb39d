"""Whole paths of the lasso, 100,000 rows of 100 columns, beside glmnet and others.

    python benchmarks/lossreg.py                    # minutes
    python benchmarks/lossreg.py --repeats 1 --libraries deepstats

Every library gets the matrix in memory, as it likes it best, and the same hundred
strengths. Each runs in a process of its own, on one thread. Of the coefficients it
returns the largest violation of the conditions of a minimum is computed here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    HERE,
    available,
    digits,
    machine,
    r_versions,
    run_patiently,
    table,
    write_results,
)

ROWS, COLUMNS, STRENGTHS, LEAST = 100_000, 100, 100, 1e-4
FAMILIES = ("gaussian", "poisson", "binomial")
#: Tolerances as each library calls them: its own default, and a tight one.
LIBRARIES: dict[str, tuple[str, tuple[float, float]]] = {
    "deepstats": ("deepstats", (1e-5, 1e-7)),
    "R glmnet": ("glmnet", (1e-7, 1e-12)),
    "celer": ("celer", (1e-4, 1e-8)),
    "scikit-learn": ("scikit-learn", (1e-4, 1e-8)),
    "glum": ("glum", (1e-4, 1e-8)),
}
PACKAGES = ("deepstats", "torch", "numpy", "scipy", "celer", "scikit-learn", "glum")

_R = """
suppressMessages(library(glmnet)); a <- commandArgs(TRUE); folder <- a[1]
n <- as.integer(a[4]); p <- as.integer(a[5]); th <- as.numeric(a[3])
f <- function(x) file.path(folder, x)
X <- matrix(readBin(f("X.bin"), "double", n * p), n, p)
y <- readBin(f(paste0(a[2], ".bin")), "double", n)
l <- readBin(f(paste0(a[2], "_lams.bin")), "double", 10000)
glmnet.control(fdev = 0, devmax = 1)
invisible(glmnet(X[1:2000, ], y[1:2000], family = a[2], nlambda = 5))
t <- proc.time()
m <- glmnet(X, y, family = a[2], lambda = l, thresh = th)
t <- proc.time() - t
writeBin(as.double(rbind(m$a0, as.matrix(m$beta))), f("found.bin"))
cat(sprintf('{"cpu": %f, "wall": %f, "count": %d}', t[[1]] + t[[2]], t[[3]],
            length(m$lambda)))
"""


def make(folder: Path) -> None:
    """Write correlated columns and three outcomes, with the strengths of each."""
    rng = np.random.default_rng(1)
    at = np.arange(COLUMNS)
    root = np.linalg.cholesky(0.5 ** np.abs(at[:, None] - at))
    X = rng.normal(size=(ROWS, COLUMNS)) @ root.T
    slopes = np.zeros(COLUMNS)
    slopes[:20] = rng.normal(size=20) * 0.3
    eta = X @ slopes
    outcomes = {
        "gaussian": eta + 2 * rng.normal(size=ROWS),
        "poisson": rng.poisson(np.exp(eta / 2 - 0.5)).astype(float),
        "binomial": (rng.uniform(size=ROWS) < 1 / (1 + np.exp(-eta))).astype(float),
    }
    np.save(folder / "X.npy", X)
    X.T.tofile(folder / "X.bin")
    sd = X.std(0)
    for family, y in outcomes.items():
        y.tofile(folder / f"{family}.bin")
        top = np.abs((X - X.mean(0)).T @ (y - y.mean()) / ROWS / sd).max()
        lams = np.geomspace(top, top * LEAST, STRENGTHS)
        lams.tofile(folder / f"{family}_lams.bin")


def violation(X: np.ndarray, y: np.ndarray, family: str, path: np.ndarray,
              lams: np.ndarray) -> float:  # fmt: skip
    """Largest violation of the conditions of a minimum, as a correlation."""
    sd, centre, worst = X.std(0), X.mean(0), 0.0
    for b, lam in zip(path, lams, strict=True):
        eta = b[0] + X @ b[1:]
        mean = {"gaussian": eta, "poisson": None, "binomial": None}[family]
        if family == "poisson":
            mean = np.exp(eta)
        elif family == "binomial":
            mean = 1 / (1 + np.exp(-eta))
        gap = mean - y
        slope = ((gap @ X) - gap.sum() * centre) / ROWS / sd
        size = np.sqrt((gap**2).mean())
        on = b[1:] != 0
        left = np.where(
            on, np.abs(slope + lam * np.sign(b[1:])), np.maximum(np.abs(slope) - lam, 0)
        )
        worst = max(worst, float(left.max() / size), abs(float(gap.mean())) / size)
    return worst


# -- one library, in a process of its own ----------------------------------------------


def deepstats(X: np.ndarray, y: np.ndarray, family: str, lams: np.ndarray,
              tol: float) -> Callable[[], np.ndarray]:  # fmt: skip
    import torch

    from deepstats.models.lossreg.losses import Composite, get_link, get_loss
    from deepstats.models.lossreg.objective import Objective
    from deepstats.models.lossreg.path import elastic_path

    name = {"gaussian": "squared", "poisson": "poisson", "binomial": "logloss"}[family]
    loss = get_loss(name)
    columns = np.hstack([np.ones((len(X), 1)), X])
    double = 2.0 if family == "gaussian" else 1.0  # our loss has no half

    def run() -> np.ndarray:
        objective = Objective(
            torch.from_numpy(columns), torch.from_numpy(y),
            Composite(loss, get_link(loss.link)),
        )  # fmt: skip
        centre = columns.mean(0)
        sd = np.sqrt(np.maximum(objective.scale**2 - centre**2, 0.0))
        return elastic_path(objective, sd, 0 * sd, double * lams, tol)[0]

    return run


def celer(X: np.ndarray, y: np.ndarray, family: str, lams: np.ndarray,
          tol: float) -> Callable[[], np.ndarray] | None:  # fmt: skip
    if family == "poisson":
        return None
    from celer import celer_path

    def run() -> np.ndarray:
        centre, sd = X.mean(0), X.std(0)
        Z = np.asfortranarray((X - centre) / sd)
        right = y - y.mean()
        _, coefs, _ = celer_path(Z, right, "lasso", alphas=lams, tol=tol)
        slopes = coefs.T / sd
        return np.column_stack([y.mean() - slopes @ centre, slopes])

    return run if family == "gaussian" else None


def sklearn(X: np.ndarray, y: np.ndarray, family: str, lams: np.ndarray,
            tol: float) -> Callable[[], np.ndarray] | None:  # fmt: skip
    if family != "gaussian":
        return None
    from sklearn.linear_model import lasso_path

    def run() -> np.ndarray:
        centre, sd = X.mean(0), X.std(0)
        Z = np.asfortranarray((X - centre) / sd)
        gram = Z.T @ Z
        right = y - y.mean()
        _, coefs, _ = lasso_path(
            Z, right, alphas=lams, tol=tol, precompute=gram, max_iter=100_000
        )
        slopes = coefs.T / sd
        return np.column_stack([y.mean() - slopes @ centre, slopes])

    return run


def glum(X: np.ndarray, y: np.ndarray, family: str, lams: np.ndarray,
         tol: float) -> Callable[[], np.ndarray]:  # fmt: skip
    from glum import GeneralizedLinearRegressor

    def run() -> np.ndarray:
        sd = X.std(0)
        model = GeneralizedLinearRegressor(
            family=family, l1_ratio=1.0, alpha=list(lams), alpha_search=True,
            P1=sd, gradient_tol=tol, scale_predictors=False, max_iter=1000,
        )  # fmt: skip
        model.fit(X, y)
        return np.column_stack([model.intercept_path_, model.coef_path_])

    return run


RUNNERS = {
    "deepstats": deepstats,
    "celer": celer,
    "scikit-learn": sklearn,
    "glum": glum,
}


def cell(library: str, family: str, tol: float, folder: Path) -> dict[str, Any]:
    """Time one path; the coefficients go to a file."""
    X = np.load(folder / "X.npy")
    y = np.fromfile(folder / f"{family}.bin")
    lams = np.fromfile(folder / f"{family}_lams.bin")
    warm = RUNNERS[library](X[:2000].copy(), y[:2000].copy(), family, lams[:3], tol)
    if warm is None:
        return {"absent": True}
    warm()
    run = RUNNERS[library](X, y, family, lams, tol)
    assert run is not None
    cpu, wall = time.process_time(), time.perf_counter()
    path = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    np.ascontiguousarray(path).tofile(folder / "found.bin")
    return {"cpu": cpu, "wall": wall, "count": len(path)}


# -- all of them -----------------------------------------------------------------------


def measure(library: str, family: str, tol: float, folder: Path, repeats: int,
            patience: float) -> dict[str, Any]:  # fmt: skip
    """Run a cell several times; the least of its seconds, and how exact it is."""
    runs: list[dict[str, Any]] = []
    script = folder / "path.R"
    script.write_text(_R)
    for _ in range(repeats):
        if library.startswith("R "):
            command = ["Rscript", "--vanilla", str(script), str(folder), family,
                       repr(tol), str(ROWS), str(COLUMNS)]  # fmt: skip
        else:
            spec = json.dumps([library, family, tol, str(folder)])
            command = [sys.executable, str(HERE / "lossreg.py"), "--cell", spec]
        found = run_patiently(command, 1, patience)
        if "cpu" not in found:
            return found
        runs.append(found)
    path = np.fromfile(folder / "found.bin").reshape(-1, COLUMNS + 1)
    X, y = np.load(folder / "X.npy"), np.fromfile(folder / f"{family}.bin")
    lams = np.fromfile(folder / f"{family}_lams.bin")[: len(path)]
    return {
        "cpu": min(r["cpu"] for r in runs), "wall": min(r["wall"] for r in runs),
        "count": len(path), "violation": violation(X, y, family, path, lams),
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """Set what was measured as a page."""
    about = found["machine"]
    names = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    rows = []
    for r in found["cells"]:
        if "cpu" in r:
            rows.append(
                [r["family"], r["library"], f"{r['tol']:g}", digits(r["cpu"]),
                 digits(r["wall"]), r["count"], f"{r['violation']:.1e}"]
            )  # fmt: skip
        elif not r.get("absent"):
            reason = r.get("error", "failed")
            rows.append(
                [r["family"], r["library"], f"{r['tol']:g}", reason, "", "", ""]
            )
    head = ["loss", "library", "tolerance", "processor s", "wall s", "strengths",
            "violation"]  # fmt: skip
    return (
        "# Benchmark: paths of the lasso\n\n"
        f"{about['processor']}, {about['cores']} cores; Python {about['python']}; "
        f"{names}; {about['r']}, glmnet {about['r_packages']['glmnet']}. Load average "
        f"before the run: {about['load_before'][0]}.\n\n"
        f"{ROWS:,} rows, {COLUMNS} columns correlated .5 between neighbours, "
        f"{STRENGTHS} strengths down to {LEAST:g} of the first. Arrays in, "
        "coefficients out, standardisation included; one thread, the least of "
        f"{found['repeats']} fresh processes. Violation is the largest of the "
        "conditions of a minimum over the path, as a correlation of a column with the "
        "rows' derivatives: libraries mean different things by a tolerance.\n\n"
        + table(head, rows) + "\n"
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lossreg")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        library, family, tol, folder = json.loads(options.cell)
        print(json.dumps(cell(library, family, tol, Path(folder))))
        return
    names = available({n: LIBRARIES[n][0] for n in options.libraries})
    about = machine(PACKAGES) | r_versions(["glmnet"])
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        for family in FAMILIES:
            for library in names:
                for tol in LIBRARIES[library][1]:
                    found = measure(
                        library, family, tol, folder, options.repeats, options.timeout
                    )
                    print(family, library, tol, found, file=sys.stderr)
                    labels = {"family": family, "library": library, "tol": tol}
                    cells.append(labels | found)
                    # After every cell: a run that is stopped leaves what it measured.
                    whole = {
                        "machine": about, "repeats": options.repeats, "cells": cells,
                    }  # fmt: skip
                    write_results(whole, markdown(whole), options.out)
    print(markdown(whole))


if __name__ == "__main__":
    main()
