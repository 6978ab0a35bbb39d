"""Simple weights: the exact search beside Adam on a near-integer penalty, FasterRisk.

    python benchmarks/simple_weights.py                        # everything; a minute
    python benchmarks/simple_weights.py --ways score --update  # some of it
    python benchmarks/simple_weights.py --render               # the table again
    python benchmarks/simple_weights.py --peer ENV/bin/python  # FasterRisk's Python

Data: doctor visits and COMPAS of ../shared/reference/data (`--data` says where else),
and samples whose columns are correlated .9. The seed is A. Wheeler's: mean squared
error plus .4 times the distances to the nearest whole numbers, 20,000 steps of Adam,
from random numbers or from least squares. Every way is a fresh process on one thread,
from a frame (FasterRisk: an array) to points; a first call of the same kind is not
counted. Prints a table and writes it, with the raw numbers, to
`results/simple_weights.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import HERE, machine, run_process

VISITS = ["private", "medicaid", "age", "educ", "actlim", "chronic"]
WAYS = (
    "visits", "seed_ols", "seed_random", "lattice10", "lattice20", "score",
    "fasterrisk", "score_all", "fasterrisk_all",
)  # fmt: skip
TITLES = {
    "visits": "doctor visits, 6 columns: deepstats",
    "seed_ols": "the seed: 20,000 steps of Adam from least squares",
    "seed_random": "the seed, from random numbers",
    "lattice10": "500 rows, 10 columns correlated .9, one of 20: deepstats",
    "lattice20": "500 rows, 20 columns correlated .9, one of 5: deepstats",
    "score": "COMPAS, 13 columns, at most 5 terms: deepstats",
    "fasterrisk": "the same: FasterRisk",
    "score_all": "COMPAS, all 13 columns: deepstats",
    "fasterrisk_all": "the same: FasterRisk",
}
PEER = ("fasterrisk", "fasterrisk_all")
STEPS, STRENGTH = 20_000, 0.4
REPEAT = 3
PATIENCE = 300.0
SHARED = HERE.parents[1] / "shared" / "reference" / "data"

Result = dict[str, Any]


def visits(path: Path) -> pd.DataFrame:
    """Doctor visits, the six columns between zero and one."""
    frame = pd.read_csv(path / "reg_docvisits_nmes1988.csv")
    X = frame[VISITS]
    frame[VISITS] = (X - X.min()) / (X.max() - X.min())
    return frame


def compas(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Thirteen columns of yes and no, and arrest within 30 days."""
    c = pd.read_csv(path / "reg_compas.csv", low_memory=False)
    jail = pd.to_numeric(c["JailDays"], errors="coerce")
    columns = {
        "age_lt25": c["YearsScreening"] < 25,
        "age_25_45": c["YearsScreening"].between(25, 45),
        "male": c["sex"] == "Male", "felony": c["c_charge_degree"] == "F",
        **{f"priors_ge{k}": c["priors_count"] >= k for k in (1, 2, 5, 10)},
        "juvfel": c["juv_fel_count"] > 0, "juvmis": c["juv_misd_count"] > 0,
        "juvoth": c["juv_other_count"] > 0, "single": c["marital_status"] == "Single",
        "jail_ge30": jail >= 30,
    }  # fmt: skip
    frame = pd.DataFrame(columns).astype(int)
    return frame.assign(y=c["Recid30"].astype(int)), list(columns)


def correlated(columns: int, count: int) -> list[pd.DataFrame]:
    """Samples where rounding one coefficient at a time is far off."""
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(0.9 * np.ones((columns, columns)) + 0.1 * np.eye(columns))
    frames = []
    for _ in range(count):
        X = rng.normal(size=(500, columns)) @ root.T
        y = X @ rng.uniform(-2, 2, columns) + rng.normal(size=500)
        names = [f"x{j}" for j in range(columns)]
        frames.append(pd.DataFrame(X, columns=names).assign(y=y))
    return frames


# -- ways ------------------------------------------------------------------------------


def clocked(function: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return value, time.process_time() - cpu, time.perf_counter() - wall


def search(frame: pd.DataFrame, y: str, names: list[str], **options: Any) -> Result:
    """Run the exact search alone: the table of other ways is not counted."""
    from deepstats.models.simple import SimpleWeights

    text = f"{y} ~ {' + '.join(names)}"
    options = {"loss": "squared", **options}

    def solve() -> Any:
        model = SimpleWeights(text, frame, **options)
        return model, model.task.solve(5, 0, None)

    solve()
    (model, found), cpu, wall = clocked(solve)
    results = model.fit()
    table = results.comparison()["loss"]
    return {
        "cpu": cpu, "wall": wall, "loss": results.loss_value, "gap": results.gap,
        "nodes": found.nodes, "points": [int(v) for v in results.points],
        "rounded": float(table["round and refit"]),
        "real": float(table["real coefficients"]),
    }  # fmt: skip


def lattice(columns: int, count: int) -> Result:
    """Return means over samples."""
    found = [
        search(frame, "y", list(frame.columns[:-1]))
        for frame in correlated(columns, count)
    ]
    keys = ("cpu", "wall", "loss", "nodes", "rounded", "real")
    means = {k: float(np.mean([f[k] for f in found])) for k in keys}
    return {
        **means, "gap": max(f["gap"] for f in found), "points": [],
        "slowest": max(f["cpu"] for f in found),
    }  # fmt: skip


def adam(frame: pd.DataFrame, warm: bool) -> Result:
    """Minimise the seed's objective its way; the weights are rounded afterwards."""
    import torch

    X, y = frame[VISITS].to_numpy(), frame["drvisits"].to_numpy(dtype=float)
    A = np.column_stack([np.ones(len(y)), X])
    b = np.linalg.lstsq(A, y, rcond=None)[0]

    def fit() -> np.ndarray:
        torch.manual_seed(10)
        model = torch.nn.Linear(X.shape[1], 1)
        if warm:
            with torch.no_grad():
                model.weight.copy_(torch.tensor(b[None, 1:]))
                model.bias.copy_(torch.tensor(b[:1]))
        x, target = torch.tensor(X).float(), torch.tensor(y[:, None]).float()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4 if warm else 1e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            w = model.weight
            away = (w - torch.round(w)).abs().sum()
            (((model(x) - target) ** 2).mean() + STRENGTH * away).backward()
            optimizer.step()
        return model.weight.detach().numpy()[0]

    w, cpu, wall = clocked(fit)
    z = np.round(w)
    rest = y - X @ z
    return {
        "cpu": cpu, "wall": wall, "loss": float(rest.var()), "gap": None, "nodes": None,
        "points": [int(v) for v in z],
    }  # fmt: skip


def fasterrisk(path: Path, terms: int) -> Result:
    """Run FasterRisk with its defaults, points from -5 to 5."""
    from fasterrisk.fasterrisk import RiskScoreOptimizer

    frame, names = compas(path)
    X, y = frame[names].to_numpy(dtype=float), frame["y"].to_numpy()

    def solve() -> Any:
        model = RiskScoreOptimizer(X=X, y=2.0 * y - 1, k=terms, lb=-5, ub=5)
        model.optimize()
        return model.get_models(model_index=0)

    (multiplier, intercept, w), cpu, wall = clocked(solve)
    eta = (float(np.ravel(intercept)[0]) + X @ np.ravel(w)) / multiplier
    loss = float(np.mean(np.logaddexp(0.0, eta) - y * eta))
    return {
        "cpu": cpu, "wall": wall, "loss": loss, "gap": None, "nodes": None,
        "points": [int(v) for v in np.ravel(w)],
    }  # fmt: skip


def cell(way: str, path: Path) -> Result:
    """Run one way in this process."""
    if way in PEER:
        return fasterrisk(path, 5 if way == "fasterrisk" else 13)
    if way.startswith("lattice"):
        columns = int(way.removeprefix("lattice"))
        return lattice(columns, 20 if columns == 10 else 5)
    if way.startswith("seed"):
        return adam(visits(path), way == "seed_ols")
    if way == "visits":
        return search(visits(path), "drvisits", VISITS)
    frame, names = compas(path)
    terms = 5 if way == "score" else None
    return search(frame, "y", names, loss="logloss", max_terms=terms)


# -- all of them -----------------------------------------------------------------------


def collected(ways: list[str], path: Path, peer: str) -> list[Result]:
    """Run every way in processes of its own; the least time of several counts."""
    cells = []
    for way in ways:
        python = peer if way in PEER else sys.executable
        command = [python, __file__, "--cell", way, "--data", str(path)]
        count = REPEAT if way in ("visits", "score", "score_all") else 1
        results = [run_process(command, 1, PATIENCE) for _ in range(count)]
        failed = [r for r in results if "error" in r]
        best = failed[0] if failed else min(results, key=lambda r: r["cpu"])
        cells.append({"way": way, **best})
        print(cells[-1], file=sys.stderr)
    return cells


def table(stored: Result) -> str:
    """Set the results as Markdown."""
    lines = [
        "# Simple weights",
        "",
        "Best whole-number coefficients: mean squared error (doctor visits, "
        "correlated columns) and log-loss with points from -5 to 5 (COMPAS). A gap of "
        "0 is a proof that no other points are better; Adam and FasterRisk give none. "
        "FasterRisk's intercept is whole, ours is free. Processor seconds on one "
        "thread, from frame to points.",
        "",
        "| way | loss | gap | rounded | real coefficients | nodes | CPU s | wall s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in stored["cells"]:
        title = TITLES[c["way"]]
        if "error" in c:
            lines.append(f"| {title} | {c['error']} | | | | | | |")
            continue
        numbers = [
            "" if c.get(k) is None else f"{c[k]:{spec}}"
            for k, spec in (
                ("loss", ".5f"), ("gap", ".2g"), ("rounded", ".5f"), ("real", ".5f"),
                ("nodes", ".0f"), ("cpu", ".4f"), ("wall", ".4f"),
            )
        ]  # fmt: skip
        lines.append(f"| {title} | {' | '.join(numbers)} |")
    about = stored["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines += [
        "",
        f"{about['processor']}, {about['cores']} cores, load before "
        f"{about['load_before']}; Python {about['python']}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "simple_weights")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--cell", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(cell(given.cell, given.data)))
        return
    path = given.out.with_suffix(".json")
    if given.render:
        stored = json.loads(path.read_text(encoding="utf-8"))
    else:
        about = machine(["deepstats", "torch", "numpy", "scipy"])
        cells = collected(given.ways, given.data, given.peer)
        if given.update:
            old = json.loads(path.read_text(encoding="utf-8"))["cells"]
            cells += [c for c in old if c["way"] not in given.ways]
            cells.sort(key=lambda c: WAYS.index(c["way"]))
        stored = {"machine": about, "cells": cells}
        path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = table(stored)
    given.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
