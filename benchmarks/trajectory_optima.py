"""How often the best of a likelihood's many maxima is found: overlapping groups.

    python benchmarks/trajectory_optima.py                        # 50 replicates each
    python benchmarks/trajectory_optima.py --libraries flexmix --replicates 5 --update
    python benchmarks/trajectory_optima.py --render               # the table again

Every program is asked for its answer, which Newton's method then takes to the maximum
it belongs to: what counts is whether that is the best that anybody found, and not how
tightly a program converges. flexmix takes hours for all replicates; `--update` adds
searches to those that have been run. Prints a table and writes it, with the raw
numbers, to `benchmarks/results/trajectory_optima.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import HERE, machine, r_absence, r_versions, run_process

UNITS, OCCASIONS = 200, 5
#: A planned occasion is kept with this probability, and moved by at most this much.
KEPT, MOVED = 0.85, 0.4
#: stepFlexmix(nrep = TRIES), so many times; the best of all is nrep = RUNS * TRIES.
RUNS, TRIES = 4, 10
#: Seeds of the default search, and of the one that says what there is to be found.
SEEDS, MANY, MANY_SEEDS = (0, 1, 2), 400, (100, 101)
STARTS = (10, 20, 80)
#: Log-likelihoods that differ by less, relative to their size, are of one maximum.
SAME = 1e-6
LIBRARIES = ("deepstats", "flexmix", "gridsearch")
#: Draws of lcmm's gridsearch, as its manual has them.
DRAWS = 30
#: Seconds a process of R may take.
PATIENCE = 3000.0

Result = dict[str, Any]


@dataclass(frozen=True)
class Design:
    """Groups to be found.

    Attributes
    ----------
    family : str
    shares : tuple of float
    curves : tuple of tuple of float
        Coefficients of 1, t, t^2 ... of the linear predictor in every group; t runs
        from -2 to 2.
    sd : float
        Of a normal response.
    """

    family: str
    shares: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    sd: float = 1.0

    @property
    def formula(self) -> str:
        """Right-hand side, as both programs read it."""
        powers = [f"I(t^{j})" for j in range(2, len(self.curves[0]))]
        return " + ".join(["t", *powers])


FIVE = (0.35, 0.28, 0.2, 0.12, 0.05)
DESIGNS = {
    "gaussian": Design(
        "gaussian", FIVE,
        ((0, 0, 0), (0.8, 0.6, -0.1), (1.2, -0.6, 0.2), (2.2, 0.3, -0.5),
         (-0.8, 0.9, 0.5)), sd=1.5,
    ),
    "poisson": Design(
        "poisson", FIVE,
        ((-0.3, 0, 0), (0.2, 0.4, -0.1), (0.5, -0.4, 0.1), (-0.5, 0.5, 0.3),
         (1.1, 0.1, -0.2)),
    ),
    "logit": Design(
        "binomial", (0.4, 0.3, 0.2, 0.1), ((-2, 0.5), (0, -1), (0.8, 1.2), (2.5, 0))
    ),
}  # fmt: skip


def simulate(name: str, replicate: int) -> pd.DataFrame:
    """Draw a replicate: rows of id, t and y, sorted by id; no unit is without rows."""
    design = DESIGNS[name]
    rng = np.random.default_rng([replicate, list(DESIGNS).index(name)])
    group = rng.choice(len(design.shares), UNITS, p=design.shares)
    t = np.linspace(-2, 2, OCCASIONS)
    t = t + rng.uniform(-MOVED, MOVED, (UNITS, OCCASIONS))
    there = rng.random(t.shape) < KEPT
    there[~there.any(1)] = True
    curves = np.array(design.curves, dtype=float)
    powers = t[:, :, None] ** np.arange(curves.shape[1])
    eta = (powers * curves[group][:, None, :]).sum(2)
    if design.family == "gaussian":
        y = eta + design.sd * rng.standard_normal(eta.shape)
    elif design.family == "poisson":
        y = rng.poisson(np.exp(eta))
    else:
        y = rng.random(eta.shape) < 1 / (1 + np.exp(-eta))
    ids = np.broadcast_to(np.arange(UNITS)[:, None], t.shape)
    columns = {"id": ids[there], "t": t[there], "y": y[there].astype(float)}
    return pd.DataFrame(columns)


# -- the searches ----------------------------------------------------------------------


def search(
    name: str, replicates: Sequence[int], libraries: Sequence[str]
) -> list[Result]:
    """Run every search of some libraries on some replicates of a design."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found, design = [], DESIGNS[name]
    data = {replicate: simulate(name, replicate) for replicate in replicates}
    with tempfile.TemporaryDirectory(prefix="deepstats-bench-") as place:
        folder = Path(place)
        if "flexmix" in libraries:
            _flexmix(design, data, folder)
        for replicate, frame in data.items():
            arms = _arms(design, frame) if "deepstats" in libraries else {}
            if "gridsearch" in libraries and design.family == "gaussian":
                arms |= _drawn(design, frame, replicate)
            if "flexmix" in libraries:
                arms |= _polished(design, frame, folder, replicate)
            found.append({"design": name, "replicate": replicate, "arms": arms})
    return found


def _model(design: Design, frame: pd.DataFrame) -> Any:
    from deepstats.models.trajectory import Trajectory

    text = f"traj(y ~ {design.formula}, groups={len(design.shares)}, id=id)"
    return Trajectory(text, frame, family=design.family)


def _timed(fit: Callable[[], Any]) -> Result:
    """Log-likelihood and processor seconds of a fit; -inf where it is degenerate."""
    start = time.process_time()
    results = fit()
    cpu = time.process_time() - start
    bad = results.traj.solution.degenerate
    return {"llf": None if bad else float(results.llf), "cpu": cpu}


def _arms(design: Design, frame: pd.DataFrame) -> Result:
    """Run the searches of deepstats."""
    model = _model(design, frame)
    arms = {f"default, seed {s}": _timed(partial(model.fit, seed=s)) for s in SEEDS}
    for starts in STARTS:
        arms[f"starts={starts}"] = _timed(partial(model.fit, starts=starts))
    for s in MANY_SEEDS:
        arms[f"starts={MANY}, seed {s}"] = _timed(
            partial(model.fit, starts=MANY, seed=s)
        )
    mean = frame.groupby("id").y.mean()
    rank = mean.rank(method="first") - 1
    labels = (rank * len(design.shares) // len(rank)).astype(int)
    arms["quantiles of the means"] = _timed(partial(model.fit, start=labels))
    return arms


def _drawn(design: Design, frame: pd.DataFrame, replicate: int) -> Result:
    """Search as lcmm's gridsearch does, by this package's steps.

    Coefficients of every group are drawn from the asymptotic distribution of those of
    the model with one group. lcmm takes the best draw after a few steps to its maximum;
    here all are taken there and the best counts, which cannot be less often the best.
    """
    model, groups = _model(design, frame), len(design.shares)
    X = np.vander(frame.t, len(design.curves[0]), increasing=True)
    y = frame.y.to_numpy()
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    variance = float(((y - X @ beta) ** 2).sum()) / (len(y) - len(beta))
    rng = np.random.default_rng([replicate, 1])
    draws = rng.multivariate_normal(beta, variance * inverse, (DRAWS, groups))
    ids = frame["id"].to_numpy()
    found = []
    for coefficients in draws:
        left = y[:, None] - X @ coefficients.T
        density = np.zeros((ids[-1] + 1, groups))
        np.add.at(density, ids, -(left**2) / (2 * variance))
        weights = np.exp(density - density.max(1, keepdims=True))
        start = weights / weights.sum(1, keepdims=True)
        found.append(_timed(partial(model.fit, start=start)))
    reached = [a["llf"] for a in found if a["llf"] is not None]
    best = {"llf": max(reached, default=None), "cpu": sum(a["cpu"] for a in found)}
    return {f"gridsearch, {DRAWS} draws": best}


def _flexmix(design: Design, data: dict[int, pd.DataFrame], folder: Path) -> None:
    """Let R leave posterior probabilities and times in a folder."""
    for replicate, frame in data.items():
        frame.to_csv(folder / f"{replicate}.csv", index=False)
    response = "cbind(y, failures)" if design.family == "binomial" else "y"
    arguments = [
        folder, len(design.shares), f"{response} ~ {design.formula} | id",
        design.family, RUNS, TRIES, *data,
    ]  # fmt: skip
    script = HERE / "trajectory_optima.R"
    command = ["Rscript", "--vanilla", str(script), *map(str, arguments)]
    done = run_process(command, 1, PATIENCE)
    if "error" in done:
        raise RuntimeError(f"flexmix: {done['error']}")


def _polished(
    design: Design, frame: pd.DataFrame, folder: Path, replicate: int
) -> Result:
    """Take what flexmix found to the maximum it belongs to."""
    model, arms = _model(design, frame), {}
    for run in range(1, RUNS + 1):
        name = folder / f"{replicate}-{run}"
        posterior, llf = name.with_suffix(".posterior"), None
        if posterior.exists():
            start = pd.read_csv(posterior).to_numpy()
            llf = _timed(partial(model.fit, start=start))["llf"]
        cpu = float(name.with_suffix(".cpu").read_text())
        arms[f"flexmix nrep={TRIES}, run {run}"] = {"llf": llf, "cpu": cpu}
    whole = list(arms.values())
    reached = [a["llf"] for a in whole if a["llf"] is not None]
    arms[f"flexmix nrep={RUNS * TRIES}"] = {
        "llf": max(reached, default=None), "cpu": sum(a["cpu"] for a in whole)
    }  # fmt: skip
    return arms


# -- the report ------------------------------------------------------------------------


def table(found: Result) -> pd.DataFrame:
    """Share of hits and seconds of every search, by design."""
    rows = []
    for cell in found["cells"]:
        reached = [a["llf"] for a in cell["arms"].values() if a["llf"] is not None]
        best = max(reached)
        for key, arm in cell["arms"].items():
            llf = -np.inf if arm["llf"] is None else arm["llf"]
            rows.append(
                {"design": cell["design"], "search": key.split(", ")[0],
                 "replicate": cell["replicate"], "cpu": arm["cpu"],
                 "hit": best - llf <= SAME * (1 + abs(best))}
            )  # fmt: skip
    by = pd.DataFrame(rows).groupby(["design", "search"], sort=False)
    return by.agg(
        replicates=("replicate", "nunique"), fits=("hit", "size"), hits=("hit", "sum"),
        share=("hit", "mean"), cpu=("cpu", "mean"),
    ).reset_index()  # fmt: skip


def markdown(found: Result) -> str:
    """Set the table."""
    lines = [
        "# The best maximum: how often it is found", "",
        f"{UNITS} units at up to {OCCASIONS} occasions, {1 - KEPT:.0%} of them "
        "missing, no two times the same. Groups overlap; the smallest has 5% of the "
        "units (logit: 10%). A search has hit where the maximum it ends at is the best "
        f"of all searches of that replicate, to {SAME:g} of the log-likelihood. CPU: "
        "seconds of one fit, with standard errors (flexmix: without).", "",
    ]  # fmt: skip
    for name, rows in table(found).groupby("design", sort=False):
        design = DESIGNS[name]
        lines += [
            f"## {design.family}, {len(design.shares)} groups", "",
            "| search | replicates | fits | found the best | share | CPU s |",
            "|---|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        lines += [
            f"| {_title(row.search)} | {row.replicates} | {row.fits} | {row.hits} | "
            f"{row.share:.0%} | {row.cpu:.2f} |"
            for row in rows.itertuples()
        ]
        lines.append("")
    known = found["machine"]
    versions = known["versions"] | known.get("r_packages", {})
    told = ", ".join(f"{package} {version}" for package, version in versions.items())
    lines += [
        "lcmm is not among Debian's packages and was not run here; it fits no Poisson "
        "and no logit model. The starts of its gridsearch, and quantiles of the means, "
        "which are the start of Stata's traj and of trajeR, are run with this "
        f"package's EM and Newton steps: of the gridsearch the best of all {DRAWS} "
        "draws, each taken to its maximum.", "",
        f"{known['processor']}, {told}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _title(search: str) -> str:
    if search == "gridsearch":
        return f"lcmm's gridsearch, {DRAWS} draws, by deepstats' steps"
    return search if "flexmix" in search else f"deepstats, {search}"


# -- the command -----------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the table and write it."""
    options = _parser().parse_args(arguments)
    out = options.out
    if options.render:
        found = json.loads(out.with_suffix(".json").read_text())
        _write(found, out)
        print(markdown(found))
        return
    libraries, reason = options.libraries, r_absence("flexmix")
    if "flexmix" in libraries and reason is not None:
        print(f"left out: flexmix: {reason}", file=sys.stderr)
        libraries = [name for name in libraries if name != "flexmix"]
    packages = ("deepstats", "torch", "numpy", "pandas")
    about = machine(packages) | ({} if reason else r_versions(["flexmix"]))
    cells: dict[tuple[str, int], Result] = {}
    if options.update:
        before = json.loads(out.with_suffix(".json").read_text())["cells"]
        cells = {(c["design"], c["replicate"]): c["arms"] for c in before}
    tasks = [
        (name, list(range(first, min(first + options.chunk, options.replicates))))
        for first in range(0, options.replicates, options.chunk)
        for name in options.designs
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        for future in [pool.submit(search, *task, libraries) for task in tasks]:
            for cell in future.result():
                key = cell["design"], cell["replicate"]
                cells[key] = cells.get(key, {}) | cell["arms"]
            print(*key, file=sys.stderr, flush=True)
            found = {"machine": about, "cells": _listed(cells)}
            _write(found, out)
    print(markdown(found))


def _listed(cells: dict[tuple[str, int], Result]) -> list[Result]:
    """Return cells as they are written, in the order of designs and replicates."""
    names = list(DESIGNS)
    keys = sorted(cells, key=lambda key: (names.index(key[0]), key[1]))
    return [{"design": n, "replicate": r, "arms": cells[n, r]} for n, r in keys]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add("--replicates", type=int, default=50)
    add("--jobs", type=int, default=1, help="processes side by side")
    add("--chunk", type=int, default=5, help="replicates that share a process of R")
    add("--out", type=Path, default=HERE / "results" / "trajectory_optima",
        help="results go to OUT.json and OUT.md")  # fmt: skip
    add("--update", action="store_true", help="add to what is in OUT.json")
    add("--render", action="store_true", help="print the table of OUT.json again")
    return parser


def _write(found: Result, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(found))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
