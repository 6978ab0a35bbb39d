"""Fair losses on the NIJ challenge and COMPAS, beside fairlearn and the seed's loss.

    python benchmarks/fairness.py                     # everything; some minutes
    python benchmarks/fairness.py --ways nij --update # some of it, the rest as stored
    python benchmarks/fairness.py --render            # the table again

The data lie in ../shared/reference/data (`--data` says where else). NIJ: the
challenge's own split, 25 covariates, race among them; COMPAS: black and white
defendants, 10 covariates without race, split 3 to 1 by a stored seed. Every way is a
fresh process on one thread that fits to the training rows; all figures are of the test
rows, counted. The seed's loss is written anew from its description: flags by ``>``,
false positives over flagged rows, 500 steps of Adam from the Brier fit. fairlearn
returns classes, which have no Brier score; its threshold optimizer reads the group of
the rows it predicts. Prints a table and writes it, with the raw numbers, to
`benchmarks/results/fairness.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import HERE, digits, machine, run_process, table, write_results, yes

CASES = {"NIJ low": 0.25, "NIJ": 0.5, "COMPAS": 0.5}
#: Test score that is to be reached, and that of the Brier loss alone.
BARS = {"NIJ low": (0.785, 0.750), "NIJ": (0.796, 0.793), "COMPAS": (0.715, 0.675)}
WAYS = {
    "brier": "deepstats, Brier",
    "seed": "the seed's loss (no gradient)",
    "nij": "deepstats, `nij`",
    "group": "deepstats, `nij`, the group a covariate",
    "additive": "deepstats, `fair(weight=0.5)`",
    "odds": "deepstats, `fair(measure='odds', weight=0.5)`",
    "capped": "deepstats, `capped`, 90% of the least FPR of Brier",
    "threshold": "fairlearn ThresholdOptimizer",
    "reduction": "fairlearn ExponentiatedGradient(0.01)",
}
#: fairlearn optimises accuracy, which is that at one half.
AT_HALF = ("threshold", "reduction")
PATIENCE = 300.0
SHARED = HERE.parents[1] / "shared" / "reference" / "data"

Result = dict[str, Any]


# -- data ------------------------------------------------------------------------------


def nij(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, str, list[str], str]:
    """Train and test rows, outcome, covariates and group."""
    data, y = pd.read_csv(folder / "reg_nij.csv"), "Recidivism_Arrest_Year1"
    names = [c for c in data if c not in (y, "Training_Sample")]
    inside = data["Training_Sample"] == 1
    return data[inside], data[~inside], y, names, "Race"


def compas(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, str, list[str], str]:
    data = pd.read_csv(folder / "reg_compas.csv")
    data = data[data["race"].isin(["African-American", "Caucasian"])]
    data = data.assign(
        male=(data["sex"] == "Male") * 1, felony=(data["c_charge_degree"] == "F") * 1
    ).rename(columns=lambda name: name.replace(".", ""))
    names = [
        "CompScore1", "CompScore2", "CompScore3", "juv_fel_count", "juv_misd_count",
        "juv_other_count", "priors_count", "YearsScreening", "male", "felony",
    ]  # fmt: skip
    data = data.dropna(subset=[*names, "Recid30"])
    inside = np.random.default_rng(10).random(len(data)) < 0.75
    return data[inside], data[~inside], "Recid30", names, "race"


# -- one process -----------------------------------------------------------------------


def ours(way: str, train: Any, text: str, group: str, t: float) -> Any:
    """Fit one of our losses."""
    import deepstats as ds

    f = ds.fairness
    if way == "brier":
        loss: Any = "brier"
    elif way == "capped":
        plain = ds.lossreg(text, train, loss="brier").fit("none")
        y = train[text.split(" ~ ")[0]]
        rates = ds.fairness_table(y, plain.predict(train), train[group], t, reps=2)
        groups = rates.loc["fpr"].drop("all")["estimate"]
        cap = 0.9 * float(groups[~groups.index.astype(str).str.contains(" - ")].min())
        loss = f.capped(group, round(cap, 3), t)
    else:
        loss = {
            "nij": lambda: f.nij(group, t),
            "group": lambda: f.nij(group, t),
            "additive": lambda: f.fair(group, t, weight=0.5),
            "odds": lambda: f.fair(group, t, measure="odds", weight=0.5),
        }[way]()
    if way == "group":
        text += f" + {group}"
    return ds.lossreg(text, train, loss=loss).fit("none")


def seed(train: Any, test: Any, text: str, y: str, names: list[str], group: str,
         t: float) -> np.ndarray:  # fmt: skip
    """Predictions of test rows after steps of Adam on the seed's own loss."""
    import torch

    import deepstats as ds

    start = ds.lossreg(text, train, loss="brier").fit("none").params.to_numpy()
    mean, sd = train[names].mean(), train[names].std(ddof=0)

    def matrix(rows: Any) -> torch.Tensor:
        Z = ((rows[names] - mean) / sd).to_numpy()
        return torch.tensor(np.c_[np.ones(len(Z)), Z])

    X, outcome = matrix(train), torch.tensor(train[y].to_numpy(dtype=float))
    codes = torch.tensor((train[group] == sorted(train[group].unique())[0]).to_numpy())
    minority = codes.double()
    b = np.r_[start[0] + start[1:] @ mean.to_numpy(), start[1:] * sd.to_numpy()]
    b = torch.tensor(b).requires_grad_()
    optimizer = torch.optim.Adam([b], lr=0.01)
    for _ in range(500):
        optimizer.zero_grad()
        p = torch.sigmoid(X @ b)
        over = 1.0 * (p > t)
        wrong = over * (outcome == 0)
        first = (wrong * minority).sum() / (over * minority).sum().clamp(1)
        other = 1 - minority
        second = (wrong * other).sum() / (over * other).sum().clamp(1)
        brier = ((p - outcome) ** 2).mean()
        (-(1 - brier) * (1 - (first - second).abs())).backward()
        optimizer.step()
    return torch.sigmoid(matrix(test) @ b.detach()).numpy()


def classes(
    way: str, train: Any, test: Any, y: str, names: list[str], group: str
) -> Any:
    """Classes that fairlearn predicts for test rows."""
    from fairlearn.postprocessing import ThresholdOptimizer
    from fairlearn.reductions import ExponentiatedGradient, FalsePositiveRateParity
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(train[names])
    X, X_test = scale.transform(train[names]), scale.transform(test[names])
    base = LogisticRegression(C=1e6, max_iter=1000)
    if way == "threshold":
        model = ThresholdOptimizer(
            estimator=base, constraints="false_positive_rate_parity", prefit=False,
            predict_method="predict_proba",
        )  # fmt: skip
        model.fit(X, train[y], sensitive_features=train[group])
        return model.predict(X_test, sensitive_features=test[group], random_state=0)
    model = ExponentiatedGradient(base, FalsePositiveRateParity(difference_bound=0.01))
    model.fit(X, train[y], sensitive_features=train[group])
    return model.predict(X_test, random_state=0)


def cell(way: str, case: str, folder: Path) -> Result:
    """Run one way; seconds are without imports and reading."""
    import deepstats as ds

    train, test, y, names, group = (nij if case != "COMPAS" else compas)(folder)
    t, text = CASES[case], f"{y} ~ {' + '.join(names)}"
    ds.lossreg(text, train[:500], loss="brier").fit("none")  # what a first call sets up
    wall, cpu = time.perf_counter(), time.process_time()
    found: Result = {}
    if way in AT_HALF:
        p = classes(way, train, test, y, names, group).astype(float)
    elif way == "seed":
        p = seed(train, test, text, y, names, group, t)
    else:
        fit = ours(way, train, text, group, t)
        p = np.asarray(fit.predict(test))
        found["residual"] = fit.kkt_residual
    found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    rates = ds.fairness_table(test[y], p, test[group], t)
    low = rates.index.get_level_values("group") == "all"
    for measure, row in rates[low].reset_index("group").iterrows():
        found[str(measure)] = row["estimate"]
        if measure in ("gap_fpr", "nij"):
            found[f"{measure}_interval"] = [row["low"], row["high"]]
    if way not in AT_HALF:
        found["apart"] = against_fairlearn(rates, test[y], p >= t, test[group])
    else:  # of classes there is no Brier score, nor what follows from one
        for key in ("brier", "nij", "nij_interval"):
            found.pop(key)
    return found


def against_fairlearn(rates: Any, y: Any, flag: Any, group: Any) -> float | None:
    """Return the largest difference between its measures and ours."""
    try:
        from fairlearn import metrics
    except ImportError:
        return None
    theirs = {
        "gap_fpr": metrics.false_positive_rate_difference,
        "gap_tpr": metrics.true_positive_rate_difference,
        "gap_odds": metrics.equalized_odds_difference,
        "gap_parity": metrics.demographic_parity_difference,
    }
    gaps = [
        abs(f(y, flag, sensitive_features=group) - rates.loc[(k, "all"), "estimate"])
        for k, f in theirs.items()
    ]
    return float(max(gaps))


# -- all of them -----------------------------------------------------------------------


def collected(
    cases: list[str], ways: list[str], folder: Path, repeat: int
) -> list[Result]:
    """Run every way in processes of its own; the least time of several counts."""
    cells = []
    for case in cases:
        for way in ways:
            if way in AT_HALF and CASES[case] != 0.5:
                continue
            if way == "group" and case != "COMPAS":  # the others have it anyway
                continue
            command = [sys.executable, __file__, "--cell", way, "--case", case]
            command += ["--data", str(folder)]
            results = [run_process(command, 1, PATIENCE) for _ in range(repeat)]
            failed = [r for r in results if "error" in r]
            best = failed[0] if failed else min(results, key=lambda r: r["cpu"])
            cells.append({"case": case, "threshold": CASES[case], "way": way, **best})
            print(cells[-1], file=sys.stderr)
    return cells


def merged(old: list[Result], new: list[Result]) -> list[Result]:
    """Return the new cells, and the old ones that were not run again, in order."""
    cells = {(c["case"], c["way"]): c for c in [*old, *new]}
    order = [(case, way) for case in CASES for way in WAYS]
    return [cells[key] for key in order if key in cells]


def rendered(stored: Result) -> str:
    """Set the results as Markdown."""
    lines = []
    for c in stored["cells"]:
        head = [f"{c['case'].split()[0]} {c['threshold']}", WAYS[c["way"]]]
        if "error" in c:
            lines.append([*head, c["error"], *[""] * 6])
            continue
        figures = [
            "" if key not in c else f"{c[key]:.4f}"
            for key in ("nij", "brier", "gap_fpr", "gap_odds", "gap_parity", "accuracy")
        ]
        lines.append([*head, *figures, digits(c["cpu"])])
    bars = []
    for case, (bar, brier) in BARS.items():
        by_way = {c["way"]: c for c in stored["cells"] if c["case"] == case}
        fair, plain = by_way.get("nij", {}), by_way.get("brier", {})
        if "nij" in fair and "nij" in plain:
            bars.append([
                f"{case.split()[0]} {CASES[case]}", f"{fair['nij']:.4f}", bar,
                f"{plain['nij']:.4f} ({brier})",
                f"{fair['brier'] - plain['brier']:+.4f}",
                "{:.3f} to {:.3f}".format(*fair["gap_fpr_interval"]),
                f"{fair['residual']:.0e}", yes(fair["nij"] >= bar and fair["cpu"] < 2),
            ])  # fmt: skip
    apart = [c["apart"] for c in stored["cells"] if c.get("apart") is not None]
    agreement = "fairlearn was not installed."
    if apart:
        agreement = f"Our gaps less fairlearn's metrics: at most {max(apart):.1e}."
    about = stored["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return "\n".join([
        "# Fair losses", "",
        "Of test rows, at the threshold beside the data. NIJ score: (1 - Brier)(1 - "
        "difference of false-positive rates); odds: the larger difference of false- "
        "and true-positive rates; parity: of flagged rows.", "",
        table(["data", "way", "NIJ score", "Brier", "FPR gap", "odds gap", "parity gap",
               "accuracy", "CPU s"], lines), "",
        "Bars: the score of `nij`, in less than two seconds.", "",
        table(["data", "NIJ score", "bar", "Brier alone (stored)", "Brier cost",
               "FPR gap, 95%", "residual", "met"], bars), "",
        agreement, "",
        f"{about['processor']}, {about['cores']} cores, load before "
        f"{about['load_before']}; Python {about['python']}, {versions}.", "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fairness")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--cell", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(cell(given.cell, given.case, given.data)))
        return
    path = given.out.with_suffix(".json")
    if given.render or given.update:
        stored = json.loads(path.read_text(encoding="utf-8"))
    else:
        stored = {"cells": []}
    if not given.render:
        stored["machine"] = machine(
            ["deepstats", "torch", "numpy", "scikit-learn", "fairlearn"]
        )
        found = collected(given.cases, given.ways, given.data, given.repeat)
        stored["cells"] = merged(stored["cells"], found)
    text = rendered(stored)
    write_results(stored, text, given.out)
    print(text)


if __name__ == "__main__":
    main()
