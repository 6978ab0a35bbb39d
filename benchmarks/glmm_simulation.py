"""Bias and coverage of generalised linear mixed models over simulated data sets.

    python benchmarks/glmm_simulation.py                      # 1,000 replicates each
    python benchmarks/glmm_simulation.py --replicates 100 --studies poisson
    python benchmarks/glmm_simulation.py --render             # the table again

Sixty groups of eight rows: x varies within groups, t between them. A small seeded
version runs with the tests. Prints a table and writes it, with the numbers behind it,
to `benchmarks/results/glmm_simulation.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import HERE, machine

GROUPS, SIZE, SEED = 60, 8, 1
LABELS = ("Intercept", "x", "t")
#: Of the normal distribution, for intervals of 95%.
Z95 = 1.959964

Result = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A family, the true coefficients of ``1 + x + t``, and a standard deviation.

    Attributes
    ----------
    family : str
    nagq : int
        Points of quadrature; 1 is Laplace's method.
    beta : tuple of float
    sd : float
        Of the random intercepts.
    """

    family: str
    nagq: int
    beta: tuple[float, float, float]
    sd: float

    def draw(self, rng: np.random.Generator) -> pd.DataFrame:
        """Draw a data set: new random intercepts, new responses."""
        g = np.repeat(np.arange(GROUPS), SIZE)
        x, t = np.tile(np.linspace(-1, 1, SIZE), GROUPS), g % 2
        b = self.sd * rng.normal(size=GROUPS)
        eta = self.beta[0] + self.beta[1] * x + self.beta[2] * t + b[g]
        if self.family == "binomial":
            y = rng.binomial(1, 1 / (1 + np.exp(-eta)))
        else:
            y = rng.poisson(np.exp(eta))
        return pd.DataFrame({"y": y, "x": x, "t": t, "g": g})


STUDIES = {
    "binomial": Study("binomial", 9, (-0.5, 1.0, 0.6), 1.0),
    "poisson": Study("poisson", 1, (0.3, 0.4, -0.3), 0.6),
}


def run(name: str, replicates: int) -> Result:
    """Fit every replicate of a study; sums of what they give.

    Parameters
    ----------
    name : str
    replicates : int
    """
    import deepstats as ds
    from deepstats.errors import SingularFitWarning

    study, rng = STUDIES[name], np.random.default_rng(SEED)
    estimates, model_based, robust, deviations, failed = [], [], [], [], 0
    for _ in range(replicates):
        model = ds.glmer("y ~ x + t + (1 | g)", study.draw(rng), family=study.family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularFitWarning)
            fit = model.fit(nagq=study.nagq)
        if not fit.converged:
            failed += 1
            continue
        estimates.append(fit.params.to_numpy())
        model_based.append(fit.bse.to_numpy())
        robust.append(fit.get_robustcov_results("cluster").bse.to_numpy())
        deviations.append(float(fit.varcorr["sdcor"].iloc[0]))
    found = np.array(estimates)
    miss = np.abs(found - study.beta)
    return {
        "study": name, "replicates": replicates, "failed": failed,
        "bias": (found.mean(0) - study.beta).tolist(),
        "noise": (found.std(0, ddof=1) / np.sqrt(len(found))).tolist(),
        "spread": found.std(0, ddof=1).tolist(),
        "standard_error": np.sqrt(np.square(model_based).mean(0)).tolist(),
        "coverage": (miss <= Z95 * np.array(model_based)).mean(0).tolist(),
        "robust_coverage": (miss <= Z95 * np.array(robust)).mean(0).tolist(),
        "sd": float(np.mean(deviations)),
    }  # fmt: skip


def markdown(found: Result) -> str:
    """Lay out the table.

    Parameters
    ----------
    found : dict
        What the file of results holds.
    """
    lines = [
        "# Bias and coverage of generalised linear mixed models", "",
        f"{GROUPS} groups of {SIZE} rows. Coverage is that of 95% Wald intervals, with "
        "errors from the observed information and robust by cluster; bias with its "
        "Monte-Carlo standard error.", "",
    ]  # fmt: skip
    for cell in found["studies"]:
        study = STUDIES[cell["study"]]
        how = "Laplace" if study.nagq == 1 else f"quadrature, {study.nagq} points"
        noise = 100 * np.sqrt(0.95 * 0.05 / (cell["replicates"] - cell["failed"]))
        lines += [
            f"## {cell['study']} ({how})", "",
            f"{cell['replicates']:,} replicates, {cell['failed']} not converged; a "
            f"coverage is known to {noise:.1f} points. Standard deviation of the "
            f"intercepts: {study.sd:g}, on average estimated as {cell['sd']:.3f}.", "",
            "| coefficient | truth | bias | spread | mean standard error | coverage "
            "| robust |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for j, label in enumerate(LABELS):
            lines.append(
                f"| {label} | {study.beta[j]:g} | {cell['bias'][j]:+.4f} ± "
                f"{cell['noise'][j]:.4f} | {cell['spread'][j]:.4f} | "
                f"{cell['standard_error'][j]:.4f} | {100 * cell['coverage'][j]:.1f}% | "
                f"{100 * cell['robust_coverage'][j]:.1f}% |"
            )
        lines.append("")
    about = ", ".join(f"{k} {v}" for k, v in found["machine"].items())
    return "\n".join([*lines, about, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    add("--replicates", type=int, default=1000)
    add("--out", type=Path, default=HERE / "results" / "glmm_simulation",
        help="results go to OUT.json and OUT.md")  # fmt: skip
    add("--render", action="store_true", help="print the table of OUT.json again")
    options = parser.parse_args(arguments)
    out = options.out
    if options.render:
        found = json.loads(out.with_suffix(".json").read_text())
    else:
        found = {
            "machine": machine(("deepstats", "torch", "numpy")),
            "studies": [run(name, options.replicates) for name in options.studies],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
