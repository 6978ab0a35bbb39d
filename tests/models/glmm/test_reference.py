"""Every reference case; ``python -m`` prints the differences.

``PYTHONPATH=tests/models python -m glmm.test_reference`` prints, for every case, the
difference of minus twice the log-likelihood, of coefficients in standard errors, of
standard errors and of standard deviations of random effects.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from .data import CASES, fit, load

#: lme4's quadrature is relative to the saturated model.
_RELATIVE = {name for name, case in CASES.items() if case["nagq"] > 1}


def reference(name: str) -> float:
    """Minus twice the log-likelihood of the record."""
    case = CASES[name]
    if "polished" in case:
        return case["polished"]["objective"]
    return -2 * case["logLik"]


def coefficients(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and standard errors of the record: mean, then zero part."""
    case = CASES[name]
    if "polished" in case:
        polished = case["polished"]
        names = [row["term"] for row in case["fixef"]]
        # Where lme4 could not make the Hessian exact, what it gives are its default's.
        se = polished["se_from_full_hessian"] if polished.get("hessian_exact") else {}
        return (
            np.array([polished["par"][n] for n in names]),
            np.array([se.get(n, np.nan) for n in names]),
        )
    rows = [*case["cond"], *(case.get("zi") or [])]
    # A hurdle's zero part is for zeros in glmmTMB, for its being cleared here (pscl).
    sign = -1.0 if case["asked"]["family"].startswith("hurdle") else 1.0
    signs = np.array(
        [1.0] * len(case["cond"]) + [sign] * (len(rows) - len(case["cond"]))
    )
    return (
        signs * np.array([row["Estimate"] for row in rows]),
        np.array([row["Std. Error"] for row in rows]),
    )


def ours(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and standard errors of the same coefficients."""
    results = fit(name)
    keep = [
        label for label, component in zip(
            results.names, results.model.parameters.components, strict=True
        ) if component in ("", "inflate", "zero")
        and label not in ("sigma", "alpha", "phi", "shape")
    ]  # fmt: skip
    return results.params[keep].to_numpy(), results.bse[keep].to_numpy()


def deviations(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of random effects, or lme4's theta: theirs and ours."""
    case, results = CASES[name], fit(name)
    if "varcorr_cond" in case:
        terms = [*case["varcorr_cond"], *(case.get("varcorr_zi") or [])]
        theirs = [v for term in terms for v in term["stddev"].values()]
        frame = results.varcorr
        mine = frame[frame["var2"].isna()]["sdcor"].to_numpy()
    else:
        theirs = [v for n, v in case["polished"]["par"].items() if "." in n]
        mine = results.theta.to_numpy()
    return np.sort(np.abs(np.array(theirs, dtype=float))), np.sort(np.abs(mine))


@pytest.mark.parametrize("name", [n for n in CASES if n not in _RELATIVE])
def test_log_likelihood(name: str) -> None:
    assert -2 * fit(name).llf == pytest.approx(reference(name), abs=1e-5)


def saturated(name: str) -> float:
    """Log-likelihood of a model with a mean for every row."""
    case = CASES[name]
    data = load(case["dataset"])
    if case["family"] == "poisson":
        return float(stats.poisson.logpmf(data.y, data.y).sum())
    if case["dataset"] == "bacteria":  # 0/1: every row certain
        return 0.0
    y, size = data["incidence"], data["size"]
    return float(stats.binom.logpmf(y, size, y / size).sum())


@pytest.mark.parametrize("name", sorted(_RELATIVE))
def test_quadrature_up_to_the_saturated_model(name: str) -> None:
    ours = -2 * (fit(name).llf - saturated(name))
    assert ours == pytest.approx(reference(name), abs=1e-5)


@pytest.mark.parametrize("name", list(CASES))
def test_coefficients(name: str) -> None:
    theirs, se = coefficients(name)
    mine, my_se = ours(name)
    assert len(mine) == len(theirs)
    np.testing.assert_array_less(np.abs(mine - theirs) / my_se, 1e-3)
    # Owls: lme4's Hessian is off by that much from differences of our gradient.
    rtol = 2e-3 if name == "lme4.owls_poisson_offset" else 1e-3
    known = np.isfinite(se)
    np.testing.assert_allclose(my_se[known], se[known], rtol=rtol)


@pytest.mark.parametrize("name", list(CASES))
def test_standard_deviations_of_random_effects(name: str) -> None:
    theirs, mine = deviations(name)
    assert len(mine) == len(theirs) > 0
    # glmmTMB's logarithm of a standard deviation stops short of zero.
    atol = 1e-3 if name == "glmmTMB.cbpp_betabinomial" else 1e-5
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=atol)


def _differences() -> pd.DataFrame:
    rows = []
    for name in CASES:
        theirs, se = coefficients(name)
        mine, my_se = ours(name)
        sds, my_sds = deviations(name)
        rows.append(
            {
                "case": name,
                "-2 log L": -2 * fit(name).llf - reference(name),
                "coef/se": np.abs((mine - theirs) / my_se).max(),
                "se": np.nanmax(np.abs(my_se / se - 1), initial=0),
                "sd": np.abs(my_sds - sds).max(initial=0),
            }
        )
    return pd.DataFrame(rows).set_index("case")


if __name__ == "__main__":
    with pd.option_context("display.width", 120, "display.max_rows", 100):
        sys.stdout.write(f"{_differences()}\n")
