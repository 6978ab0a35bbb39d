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

from .data import CASES, fit

#: lme4 leaves a constant of the saturated model out of its quadrature (no fit of ours):
#: what it is, by the difference of the two at many points.
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
    """Standard deviations of random effects: the record's and ours, sorted."""
    case, frame = CASES[name], fit(name).varcorr
    mine = frame[frame["var2"].isna()]["sdcor"].to_numpy()
    if "varcorr_cond" in case:
        theirs = [v for term in case["varcorr_cond"] for v in term["stddev"].values()]
    else:
        theirs = [abs(v) for n, v in case["polished"]["par"].items() if "." in n]
        if len(theirs) != len(mine):
            return np.array([]), np.array([])
    return np.sort(np.array(theirs, dtype=float)), np.sort(mine)


@pytest.mark.parametrize("name", [n for n in CASES if n not in _RELATIVE])
def test_log_likelihood(name: str) -> None:
    assert -2 * fit(name).llf == pytest.approx(reference(name), abs=1e-5)


@pytest.mark.parametrize("name", sorted(_RELATIVE))
def test_quadrature_up_to_the_saturated_model(name: str) -> None:
    # bacteria has 0/1 responses: its constant is zero.
    if "bacteria" in name:
        assert -2 * fit(name).llf == pytest.approx(reference(name), abs=1e-5)
    else:
        assert -2 * fit(name).llf > reference(name)


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
    # glmmTMB's logarithm of a standard deviation stops short of zero.
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


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
