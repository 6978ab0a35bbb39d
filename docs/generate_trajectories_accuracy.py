"""Write docs/trajectories_accuracy.md: trajectory models beside reference optima.

PYTHONPATH=tests/models python docs/generate_trajectories_accuracy.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

from trajectory import test_reference as reference  # noqa: E402

HEAD = """# Accuracy of trajectory models

{count} fits to data that others publish, by default settings, beside the best optima
known: of many starts, polished in double precision by Newton's method with Hessians by
automatic differentiation, a program of its own. This page is written by
`docs/generate_trajectories_accuracy.py`; `tests/models/trajectory/test_reference.py`
holds every case to it.

| quantity | worst difference | case |
|---|---:|---|
"""

MIDDLE = """
Beyond the record: {better}.
Everything else is compared where the optimum is the same.
Coefficients are compared in units of their standard error, standard errors by their
ratio. In {separated} one group is separated completely;
its coefficients have no finite values, and no standard errors are given. The ZIP(tau)
cases lie on a boundary and are compared by log-likelihood only. A group of one unit
(epil with four groups) has no spread of scores, and no standard errors by them.

## Other programs on the same data

How far each ended below the maximum reached here; within 1e-4 it is the same maximum.
Seconds are of its own run, as recorded, on the same type of machine.

| program | cases | worst deficit | in | at the maximum | CPU s |
|---|---:|---:|---|---:|---:|
"""

TAIL = """
| record | log-likelihood | short by | CPU s |
|---|---:|---:|---:|
{rows}

`tests/models/trajectory/test_programs.py` holds, besides, lcmm's two normal outcomes that
share groups (paquid) and its ordinal probit (simdataHADS), trajeR's ZIP with zeros that
change in time and crimCV's ZIP of two groups: all at the same maximum as ours.

hlme is lcmm's; its log-likelihood holds 2 pi in single precision, which takes 1.4e-8
off for each row. flexmix divides the variance of a normal group by fewer than n rows,
so that it does not end at the maximum. trajeR's normal model of `norm01` empties a
group by its method L.

## Standard errors of other programs

Against those of the exact observed information at the same optimum.

| program | standard errors |
|---|---|
| lcmm 2.2.1 | within 0.25% (finite differences) |
| trajeR 0.11.1, method L | 0.1% to 7% off (the optimiser's approximation of the Hessian); of a shared sigma 42% too large |
| trajeR 0.11.1, method EM | ZIP slopes 13% to 19% too small; sigma of censored data 3.3 times too large; others up to 10% off |
| flexmix 2.3.18 | `refit` within 0.4% for counts and 0/1; of normal responses to four digits, at another optimum than the fit's |
| crimCV 1.0.0 | not reported |
| gbtmkit 0.4.0 | not compared |
| gbmt 0.1.4 | of a regression in each group, as if groups were known |
"""  # noqa: E501

QUANTITIES = {
    "llf": "log-likelihood, relative",
    "coef/se": "coefficients, in standard errors",
    "se": "standard errors, observed information",
    "se_opg": "standard errors, outer products of scores",
    "se_robust": "standard errors, sandwich",
}
#: Below so much, in log-likelihood, is the same maximum.
SAME = 1e-4


def quantities() -> tuple[str, int]:
    """Return lines of the worst differences, and the number of cases."""
    found = reference._differences()
    size = pd.Series({n: abs(reference.CASES[n]["loglik"]) for n in found.index})
    same = found.index.difference(list(reference.BETTER))
    found["llf"] = (found["llf gain"].abs() / size)[same]
    lines = []
    for key, title in QUANTITIES.items():
        worst = found[key].idxmax()
        lines.append(f"| {title} | {found[key].max():.1e} | {worst} |")
    return "\n".join(lines) + "\n", len(found)


def peers(found: pd.DataFrame) -> str:
    """Return lines of programs: worst deficit, and how often it was the maximum."""
    lines = []
    for program, rows in found.groupby("program", sort=False):
        worst = rows.loc[rows["short by"].idxmax()]
        reached = int((rows["short by"] < SAME).sum())
        lines.append(
            f"| {program} {_version(program)} | {len(rows)} | {worst['short by']:.2g} |"
            f" {worst['case']} | {reached} | {rows['their CPU s'].sum():.1f} |"
        )
    return "\n".join(lines) + "\n"


def _version(program: str) -> str:
    """Version of a program, as its records say."""
    records = reference.PROGRAMS.items()
    told = next(found["program"] for key, found in records
                if key.startswith(program + "."))  # fmt: skip
    return told.split()[1]


def optima() -> str:
    """Return how often the best maximum is found, as its benchmark printed it."""
    printed = (ROOT / "benchmarks" / "results" / "trajectory_optima.md").read_text()
    body = printed.partition("\n")[2].replace("\n## ", "\n### ")
    return f"\n## The best maximum: how often it is found\n{body}"


def main() -> None:
    """Write the page."""
    lines, count = quantities()
    found = reference._programs().reset_index()
    rows = "\n".join(
        f"| {row['record']} | {row['llf']:.6f} | "
        f"{row['short by']:.2g} | {row['their CPU s']:.2f} |"
        for _, row in found.iterrows()
    )
    better = ", ".join(
        f"{name}, by {gain:.4f} in log-likelihood"
        for name, gain in reference.BETTER.items()
    )
    separated = " and ".join(reference.SEPARATED)
    text = HEAD.format(count=count) + lines
    text += MIDDLE.format(better=better, separated=separated)
    text += peers(found) + TAIL.format(rows=rows) + optima()
    (ROOT / "docs" / "trajectories_accuracy.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
