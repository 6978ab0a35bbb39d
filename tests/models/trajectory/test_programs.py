"""Records of other programs on models that the reference optima do not have.

Ours must never be lower, and equal where a program reached the maximum.

>>> round(program("crimCV.wheeler.zip.g2"), 4)
-5966.5285
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deepstats.families.categorical import Ordinal
from deepstats.models.trajectory import Trajectory, TrajectoryResults

from .data import PROGRAMS, load

#: lcmm holds 2 pi in single precision: what each normal response loses by it.
SINGLE_PRECISION = 1.3913767388936676e-08


def program(name: str) -> float:
    """Log-likelihood that a program reached."""
    return PROGRAMS[name]["loglik"]


def fitted(
    formula: str, data: pd.DataFrame, starts: int = 100, **options: Any
) -> TrajectoryResults:
    """Fit by default settings, without cautions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trajectory(formula, data, **options).fit(starts=starts)


def by_first(rows: np.ndarray) -> np.ndarray:
    """Sort groups by their first coefficient."""
    return rows[np.argsort(rows[:, 0])]


def groups_of(results: TrajectoryResults, *terms: str) -> np.ndarray:
    """Estimates of two groups, (2, terms), ordered by the first term."""
    return by_first(
        np.array([[results.params[f"g{k}:{t}"] for t in terms] for k in (1, 2)])
    )


def test_trajer_zip_with_zeros_that_change_in_time() -> None:
    results = fitted(
        "traj(y ~ t + I(t^2), groups=2, id=id, zero=~ t)",
        load("zip2gr"),
        family="zip",
    )
    assert results.llf == pytest.approx(program("trajeR.zip2gr.nu1.L"), abs=1e-6)
    estimate = np.array(PROGRAMS["trajeR.zip2gr.nu1.L"]["estimate"])
    counts, zeros = estimate[:6].reshape(2, 3), estimate[6:10].reshape(2, 2)
    theirs = np.hstack([counts, zeros])
    ours = groups_of(
        results, "Intercept", "t", "I(t ** 2)", "inflate:Intercept", "inflate:t"
    )
    # Their search stops at a gradient of 1e-5 or so.
    np.testing.assert_allclose(ours, by_first(theirs), rtol=2e-3)
    assert results.group_probs["share"].max() == pytest.approx(
        1 / (1 + np.exp(-estimate[11])), abs=1e-4
    )


def test_crimcv_zip_of_two_groups() -> None:
    results = fitted(
        "traj(y ~ t + I(t^2), groups=2, id=id, zero=~ t)",
        load("wheeler_zip"),
        family="zip",
    )
    assert results.llf == pytest.approx(program("crimCV.wheeler.zip.g2"), abs=1e-6)


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_flexmix_where_a_group_has_its_own_standard_deviation(family: str) -> None:
    if family == "gaussian":
        results = fitted("traj(y ~ t + I(t^2), groups=2, id=id, variance='group')",
                         load("cnorm2gr"), family=family)  # fmt: skip
        # flexmix divides by fewer than n: it ends below the maximum.
        assert 0.009 < results.llf - program("flexmix.cnorm2gr.g2") < 0.01
    else:
        results = fitted(
            "traj(y ~ t, groups=2, id=id)", load("logit2gr"), family=family
        )
        assert results.llf == pytest.approx(program("flexmix.logit2gr.g2"), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "formula", "data"),
    [
        ("flexmix.pois2gr.g2", "traj(y ~ t + I(t^2), groups=2, id=id)", "pois2gr"),
        ("flexmix.epil.pois.g2", "traj(y ~ t, groups=2, id=id)", "epil"),
        ("flexmix.epil.pois.g3", "traj(y ~ t, groups=3, id=id)", "epil"),
        (
            "flexmix.wheeler.pois.g3",
            "traj(y ~ t + I(t^2), groups=3, id=id)",
            "wheeler_zip",
        ),
    ],
)
def test_flexmix_of_counts(name: str, formula: str, data: str) -> None:
    results = fitted(formula, load(data), family="poisson")
    assert results.llf == pytest.approx(program(name), abs=1e-5)
    assert results.llf > program(name) - 1e-8


def test_mpjlcmm_of_two_normal_outcomes() -> None:
    name = "mpjlcmm.paquid.MMSE_IST.g2"
    data = load("paquid").dropna(subset=["MMSE", "IST"])
    results = fitted(
        "traj(MMSE ~ t, IST ~ t, groups=2, id=id)", data, family="gaussian"
    )
    assert len(results.posterior) == PROGRAMS[name]["n_ids"]
    loss = 2 * len(data) * SINGLE_PRECISION
    assert results.llf == pytest.approx(program(name) + loss, abs=1e-6)
    theirs = PROGRAMS[name]["coef"]
    # Their names repeat: class 1 is ".1" of the first outcome, ".2" of the second.
    lines = {
        "MMSE": [("intercept class1.1", "a class1"), ("intercept class2", "a class2")],
        "IST": [
            ("intercept class1.2", "a class1.1"),
            ("intercept class2.1", "a class2.1"),
        ],
    }
    for outcome, keys in lines.items():
        expected = np.array([[theirs[key] for key in line] for line in keys])
        ours = groups_of(results, f"{outcome}:Intercept", f"{outcome}:t")
        np.testing.assert_allclose(ours, by_first(expected), rtol=1e-4)
    for outcome, key in (("MMSE", "stderr"), ("IST", "stderr.1")):
        sigma = results.params[f"{outcome}:sigma"]
        assert sigma == pytest.approx(theirs[key], rel=1e-4)


def test_lcmm_of_an_ordinal_outcome() -> None:
    name = "lcmm.hads2.thresholds.g2"
    results = fitted(
        "traj(hads_2 ~ time, groups=2, id=id)",
        load("simdataHADS"),
        starts=5,  # the probit's derivatives are slow
        family=Ordinal(4, link="probit"),
    )
    assert program(name) < results.llf < program(name) + 1e-6
    theirs, ours = PROGRAMS[name]["coef"], results.params
    # Their class 1, whose level is zero, is our second; gaps of theirs are squares.
    pairs = {
        "g1:time": theirs["time class2"],
        "g2:time": theirs["time class1"],
        "step2": theirs["thresh. parm2"] ** 2,
        "step3": theirs["thresh. parm3"] ** 2,
        "g2:Intercept": -theirs["thresh. parm1"],
        "g2:membership:Intercept": theirs["intercept class1"],
    }
    for label, value in pairs.items():
        assert ours[label] == pytest.approx(value, abs=1e-5)
    apart = ours["g1:Intercept"] - ours["g2:Intercept"]
    assert apart == pytest.approx(theirs["intercept class2"], abs=1e-4)
