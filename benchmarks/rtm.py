"""Risk terrain models: a choice among all models beside 20,000 steps of Adam.

    python benchmarks/rtm.py                      # everything; some minutes
    python benchmarks/rtm.py --ways best --update # some of it, the rest as stored
    python benchmarks/rtm.py --render             # the table again

The data are the DC street units of ../shared/reference/data, with 36 ready 0/1 columns
of three factors (`--data` says where else). The seed is A. Wheeler's deep learning RTM,
written anew from its description: a linear predictor of free coefficients and ReLU
effects; in 10,000 steps of Adam one column of each factor, drawn at random, then the
largest effect of each factor in 10,000 more. Gradients start from zero at each step,
which the loop in print leaves out. Every way is a fresh process on one thread, from a
frame of columns (`points`: from layers) to a table of relative risks. Prints a table
and writes it, with the raw numbers, to `benchmarks/results/rtm.md` and `.json`.
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

SIZES = (50, 100, 200, 300, 400, 500, 600, 700, 800)
FACTORS = {"alc": "TotalLic", "c1": "CFS1", "c2": "CFS2"}
SEEDS = (10, 11, 12)
WAYS = ("seed", "poisson", "best", "points", "dropout", "bootstrap")
#: Ways that draw random numbers, and run once for each seed.
DRAWN = ("seed", "dropout")
TITLES = {
    "seed": "the seed: 10,000 + 10,000 steps of Adam",
    "poisson": "deepstats: all 1,900 Poisson models, and the fit",
    "best": "deepstats: all under Poisson, NB1, NB2",
    "points": "deepstats: the same as `poisson`, from points",
    "dropout": "deepstats: `choose='dropout'`, 10,000 steps on patterns",
    "bootstrap": "deepstats: `poisson`, then 100 bootstrap replicates",
}
REPEAT = 3
STEPS = 10_000
PATIENCE = 1800.0
SHARED = HERE.parents[1] / "shared" / "reference" / "data" / "reg_dc_streetunits.csv"

Result = dict[str, Any]


def units_of(path: Path) -> pd.DataFrame:
    """Street units; half of their crimes, drawn as in the stored reference."""
    units = pd.read_csv(path)
    first = np.random.default_rng(1).binomial(units["TotalCrime"], 0.5)
    return units.assign(crimes=first)


def layers_of(units: pd.DataFrame) -> dict[str, Any]:
    """Return the three layers of points, distances for the licences only."""
    from deepstats.models.rtm import PointLayer

    return {
        name: PointLayer(
            units, weight=column, distances=SIZES if name == "alc" else (),
            bandwidths=SIZES,
        )
        for name, column in FACTORS.items()
    }  # fmt: skip


def from_points(units: pd.DataFrame, **options: Any) -> Any:
    import deepstats as ds

    text = "rtm(crimes ~ alc + c1 + c2, x=XMeters, y=YMeters)"
    return ds.rtm(text, units, layers_of(units), **options)


def ready(units: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return the units with their 0/1 columns, and the names by factor."""
    terrain = from_points(units).terrain
    names: dict[str, list[str]] = {}
    columns = {}
    for factor, group in zip(terrain.factors, terrain.candidates, strict=True):
        names[factor] = [c.rule.name for c in group]
        columns |= {c.rule.name: c.column.astype(int) for c in group}
    return units.assign(**columns), names


# -- the seed --------------------------------------------------------------------------


def adam(frame: pd.DataFrame, names: dict[str, list[str]], seed: int) -> list[str]:
    """Fit by random dropout and pruning; return the columns with an effect."""
    import torch

    torch.manual_seed(seed)
    sets = list(names.values())
    X = torch.tensor(
        frame[[n for s in sets for n in s]].to_numpy(), dtype=torch.float64
    )
    y = torch.tensor(frame["crimes"].to_numpy(), dtype=torch.float64)
    constant = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    effects = (0.1 * torch.rand(X.shape[1], dtype=torch.float64)).requires_grad_()
    loss = torch.nn.PoissonNLLLoss(log_input=True, reduction="mean")
    optimizer = torch.optim.Adam([constant, effects], lr=0.001)
    starts = np.cumsum([0, *map(len, sets)])

    def step(mask: torch.Tensor) -> None:
        optimizer.zero_grad()
        predictor = constant + X @ (torch.relu(effects) * mask)
        loss(predictor, y).backward()
        optimizer.step()

    for _ in range(STEPS):
        mask = torch.zeros(X.shape[1], dtype=torch.float64)
        for start, columns in zip(starts, sets, strict=False):
            mask[start + torch.randint(len(columns), (1,))] = 1.0
        step(mask)
    kept = torch.zeros(X.shape[1], dtype=torch.float64)
    for start, columns in zip(starts, sets, strict=False):
        part = effects.detach()[start : start + len(columns)]
        kept[start + int(part.argmax())] = 1.0
    for _ in range(STEPS):
        step(kept)
    left = (torch.relu(effects.detach()) * kept > 0).nonzero().flatten()
    flat = [n for s in sets for n in s]
    return [flat[int(j)] for j in left]


# -- one process -----------------------------------------------------------------------


def cell(way: str, seed: int, path: Path) -> Result:
    """Run one way; seconds are without imports and reading."""
    import deepstats as ds

    units = units_of(path)
    frame, names = ready(units)
    text = "rtm(crimes ~ alc + c1 + c2)"
    place = {"x": "XMeters", "y": "YMeters"}

    def ours(**options: Any) -> Any:
        return ds.rtm(text, frame, names, **place, **options).fit(seed=seed)

    def resampled() -> Any:
        results = ours(family="poisson")
        results.bootstrap(100)
        return results

    runs: dict[str, Callable[[], Any]] = {
        "seed": lambda: adam(frame, names, seed),
        "poisson": lambda: ours(family="poisson"),
        "best": lambda: ours(family="best"),
        "points": lambda: from_points(units, family="poisson").fit(),
        "dropout": lambda: ours(family="poisson", choose="dropout"),
        "bootstrap": resampled,
    }
    if way != "seed":
        ours(family="poisson").risk_table()  # what a library sets up at its first call
    wall, cpu = time.perf_counter(), time.process_time()
    found = runs[way]()
    chosen = found if way == "seed" else list(found.risk_table().index)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    columns = " + ".join(sorted(chosen))
    poisson = ds.glm(f"crimes ~ {columns}", frame, family="poisson").fit()
    return {
        "cpu": cpu, "wall": wall, "chosen": sorted(chosen), "poisson_bic": poisson.bic,
        "family": "poisson" if way == "seed" else found.family,
        "bic": poisson.bic if way == "seed" else found.bic,
    }  # fmt: skip


# -- all of them -----------------------------------------------------------------------


def collected(ways: list[str], path: Path) -> list[Result]:
    """Run every way in processes of its own; the least time of several counts."""
    cells = []
    for way in ways:
        for seed in SEEDS if way in DRAWN else SEEDS[:1]:
            command = [sys.executable, __file__, "--cell", way, "--seed", str(seed)]
            command += ["--data", str(path)]
            count = 1 if way in DRAWN else REPEAT
            results = [run_process(command, 1, PATIENCE) for _ in range(count)]
            failed = [r for r in results if "error" in r]
            best = failed[0] if failed else min(results, key=lambda r: r["cpu"])
            cells.append({"way": way, "seed": seed, **best})
            print(cells[-1], file=sys.stderr)
    return cells


def table(stored: Result) -> str:
    """Set the results as Markdown."""
    cells = stored["cells"]
    seeds = [c["cpu"] for c in cells if c["way"] == "seed" and "cpu" in c]
    lines = [
        "# Risk terrain models",
        "",
        "20,319 street units of Washington, three factors, 36 candidates. Seconds of "
        "processor time on one thread. Times: the least of the seed's over that of the "
        "row. BIC: of a Poisson model of the columns chosen, 65193.47 being the least "
        "that there is; a row under NB chooses others.",
        "",
        "| way | seed | chosen | BIC (Poisson) | CPU s | times |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for c in cells:
        seed = str(c["seed"]) if c["way"] in DRAWN else ""
        if "error" in c:
            lines.append(f"| {TITLES[c['way']]} | {seed} | {c['error']} | | | |")
            continue
        ratio = f"{min(seeds) / c['cpu']:.1f}" if seeds and c["way"] != "seed" else ""
        family = "" if c["family"] == "poisson" else f" ({c['family']})"
        lines.append(
            f"| {TITLES[c['way']]} | {seed} | {', '.join(c['chosen'])}{family} | "
            f"{c['poisson_bic']:.2f} | {c['cpu']:.3f} | {ratio} |"
        )
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
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rtm")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--cell", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=SEEDS[0], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(cell(given.cell, given.seed, given.data)))
        return
    path = given.out.with_suffix(".json")
    if given.render:
        stored = json.loads(path.read_text(encoding="utf-8"))
    else:
        about = machine(["deepstats", "torch", "numpy", "scipy"])
        cells = collected(given.ways, given.data)
        if given.update:
            old = json.loads(path.read_text(encoding="utf-8"))["cells"]
            cells += [c for c in old if c["way"] not in given.ways]
            cells.sort(key=lambda c: (WAYS.index(c["way"]), c["seed"]))
        stored = {"machine": about, "cells": cells}
        path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = table(stored)
    given.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
