"""Every reference case by default settings; `python -m` prints the worst differences.

``PYTHONPATH=tests/models python -m trajectory.test_reference`` prints, for every case,
the worst difference of every quantity, and what other programs reached.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pandas as pd
import pytest

from .data import CASES, PROGRAMS, fit

#: A better optimum than the record was found: nothing else can be compared.
BETTER = {"paquid.MMSE.g5": 0.2624}
#: Complete separation in one group: its coefficients have no finite values.
SEPARATED = ("logit2gr", "logit2gr.risk")
PLAIN = [name for name in CASES if "zipt" not in name]
TAU = [name for name in CASES if "zipt" in name]
COMPARED = [name for name in PLAIN if name not in BETTER]


def matched(name: str) -> list[int]:
    """Return the record's group for each of ours."""
    case, ours = CASES[name], fit(name).traj.coefficients(0).numpy()
    p = case["deg"] + 1
    table = dict(zip(case["names"], case["coef"], strict=True))
    theirs = np.array(
        [[table[f"beta{k + 1}.{j}"] for j in range(p)] for k in range(case["K"])]
    )
    scale = np.abs(theirs).max(0)
    return list(
        min(
            itertools.permutations(range(case["K"])),
            key=lambda order: (np.abs(theirs[list(order)] - ours[:, :p]) / scale).sum(),
        )
    )


def record(name: str, what: str) -> pd.Series:
    """Values of a record under our names, on the working scale, without membership."""
    case = CASES[name]
    table = dict(zip(case["names"], case[what], strict=True))
    results = fit(name)
    K, p = case["K"], case["deg"] + 1
    columns = results.model.study.outcomes[0].columns
    found = {}
    for k, theirs in enumerate(matched(name)):
        own = f"g{k + 1}:" if K > 1 else ""
        for j in range(p):
            found[own + columns[0][j]] = table[f"beta{theirs + 1}.{j}"]
        for key, label in (("ln_sigma", "sigma"), ("ln_alpha", "alpha")):
            if f"{key}{theirs + 1}" in table:
                shared = case["common_sigma"] or K == 1
                found[label if shared else own + label] = table[f"{key}{theirs + 1}"]
        if f"gamma{theirs + 1}.0" in table:
            if case["family"] == "beta":
                found[f"{own}phi"] = table[f"gamma{theirs + 1}.0"]
            else:
                for j, column in enumerate(columns[1]):
                    found[f"{own}inflate:{column}"] = table[f"gamma{theirs + 1}.{j}"]
    return pd.Series(found)


def working(name: str) -> pd.Series:
    """Estimates on the working scale: scales as logarithms."""
    results = fit(name)
    return pd.Series(results.fit_info.x.numpy(), results.names)


def working_se(name: str, kind: str) -> pd.Series:
    """Standard errors on the working scale."""
    results = fit(name)
    if kind != "nonrobust":
        results = results.get_robustcov_results(kind)
    return pd.Series(np.sqrt(np.diag(results.covariance.matrix.numpy())), results.names)


def shares(name: str) -> np.ndarray:
    """Average prior probability of our groups."""
    return fit(name).traj.shares().mean(0).numpy()


@pytest.mark.parametrize("name", PLAIN)
def test_log_likelihood_of_the_best_known_optimum(name: str) -> None:
    gain = fit(name).llf - CASES[name]["loglik"]
    assert gain == pytest.approx(BETTER.get(name, 0.0), abs=1e-4 if name in BETTER else
                                 1e-9 * abs(CASES[name]["loglik"]))  # fmt: skip


@pytest.mark.parametrize("name", TAU)
def test_log_likelihood_of_zip_with_tau(name: str) -> None:
    # The optimum is at tau -> 0, where the record stopped some 1e-7 short or beyond.
    assert fit(name).llf == pytest.approx(CASES[name]["loglik"], rel=1e-9)


@pytest.mark.parametrize("name", [n for n in COMPARED if n not in SEPARATED])
def test_coefficients(name: str) -> None:
    theirs = record(name, "coef")
    se = working_se(name, "nonrobust")[theirs.index]
    assert ((working(name)[theirs.index] - theirs).abs() / se).max() < 1e-6


@pytest.mark.parametrize(
    ("kind", "key"), [("nonrobust", "se"), ("opg", "se_opg"), ("HC0", "se_robust")]
)
@pytest.mark.parametrize("name", [n for n in COMPARED if n not in SEPARATED])
def test_standard_errors(name: str, kind: str, key: str) -> None:
    if key not in CASES[name]:
        pytest.skip(f"no {key} in the record")
    theirs = record(name, key)
    ours = working_se(name, kind)[theirs.index]
    # A group of one unit has no spread of scores: theirs is rounding.
    none = theirs < 1e-12
    assert kind != "opg" or ours[none].isna().all()
    np.testing.assert_allclose(ours[~none], theirs[~none], rtol=1e-6)
    np.testing.assert_allclose(ours[none].fillna(0), 0, atol=1e-12)


@pytest.mark.parametrize("name", SEPARATED)
def test_separated_group_has_no_standard_errors(name: str) -> None:
    theirs, ours = record(name, "se"), working_se(name, "nonrobust")
    regular = theirs.index[theirs < 100]
    np.testing.assert_allclose(ours[regular], theirs[regular], rtol=1e-6)
    assert ours[theirs.index.difference(regular)].isna().all()


@pytest.mark.parametrize("name", [n for n in COMPARED if CASES[n]["K"] > 1])
def test_shares_and_posteriors(name: str) -> None:
    case, order = CASES[name], matched(name)
    results = fit(name)
    if "class_covariates" not in case:
        np.testing.assert_allclose(shares(name), np.array(case["pi"])[order], rtol=1e-6)
    labels = results.posterior.index.astype(str)
    ours = results.posterior.set_axis(labels).loc[case["ids10"]].to_numpy()
    np.testing.assert_allclose(ours, np.array(case["post10"])[:, order], atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_information_criteria(name: str) -> None:
    case, results = CASES[name], fit(name)
    gain = -2 * (results.llf - case["loglik"])
    assert results.aic == pytest.approx(case["AIC"] + gain, abs=1e-5)
    p = len(results.params)
    for n, key in ((case["n_ids"], "BIC_ids"), (case["n_obs"], "BIC_obs")):
        expected = -2 * results.llf + p * np.log(n)
        assert expected == pytest.approx(case[key] + gain, abs=1e-5)


def _differences() -> pd.DataFrame:
    rows = []
    for name in PLAIN:
        case, row = CASES[name], {"case": name}
        row["llf gain"] = fit(name).llf - case["loglik"]
        if name in COMPARED and name not in SEPARATED:
            se = working_se(name, "nonrobust")
            theirs = record(name, "coef")
            row["coef/se"] = ((working(name)[theirs.index] - theirs) / se).abs().max()
            for kind, key in (("nonrobust", "se"), ("opg", "se_opg"),
                              ("HC0", "se_robust")):  # fmt: skip
                if key in case:
                    theirs = record(name, key)
                    # A group of one unit: rounding, as above.
                    theirs = theirs[theirs > 1e-9]
                    ratio = working_se(name, kind)[theirs.index] / theirs - 1
                    row[key] = ratio.abs().max()
        row["starts"] = int(fit(name).optima["starts"].iloc[0])
        rows.append(row)
    return pd.DataFrame(rows).set_index("case")


def _programs() -> pd.DataFrame:
    """What other programs reached on the cases that both have."""
    same = {"MMSE.classmb": "MMSE.classmb"}
    rows = []
    for key, found in PROGRAMS.items():
        program, _, rest = key.partition(".")
        names = [n for n in CASES if n == rest or n == same.get(rest)]
        names = names or [n for n in _ALIASES.get(key, ()) if n in CASES]
        if names:
            rows.append(
                {"record": key, "program": program, "case": names[0],
                 "llf": found["loglik"],
                 "short by": fit(names[0]).llf - found["loglik"],
                 "their CPU s": found.get("cpu")}
            )  # fmt: skip
    return pd.DataFrame(rows).set_index(["program", "case"])


_ALIASES = {
    "crimCV.wheeler.zip.g3": ("wheeler.zip1.g3",),
    "crimCV.to1adj.zipt.g3": ("to1adj.zipt.g3",),
    "flexmix.pois2gr.g2": ("pois2gr",),
    "flexmix.logit2gr.g2": ("logit2gr",),
    "flexmix.cnorm2gr.g2": ("cnorm2gr.gauss",),
    "trajeR.cnorm2gr.uncens.L": ("cnorm2gr.gauss",),
    "trajeR.cnorm2gr.uncens.EM": ("cnorm2gr.gauss",),
    "trajeR.cnorm2gr.uncens.common.L": ("cnorm2gr.gauss.common",),
    "trajeR.cnorm2gr.cens.L": ("cnorm2gr.cens",),
    "trajeR.cnorm2gr.cens.EM": ("cnorm2gr.cens",),
    "trajeR.cnorm2gr.cens.common.L": ("cnorm2gr.cens.common",),
    "trajeR.cnorm2gr.uncens.risk.L": ("cnorm2gr.gauss.risk",),
    "trajeR.cnorm2gr_na.L": ("cnorm2gr_na",),
    "trajeR.logit2gr.L": ("logit2gr",),
    "trajeR.logit2gr.risk.L": ("logit2gr.risk",),
    "trajeR.pois2gr.L.nohess": ("pois2gr",),
    "trajeR.zip2gr.L": ("zip2gr",),
    "trajeR.zip2gr.EM": ("zip2gr",),
    "trajeR.beta2gr.L": ("beta2gr",),
    "trajeR.norm01.L": ("norm01.g3",),
    "trajeR.wheeler_zip.g3.L": ("wheeler.zip0.g3",),
}


if __name__ == "__main__":
    with pd.option_context("display.width", 120, "display.max_rows", 100):
        sys.stdout.write(f"{_differences()}\n\n{_programs()}\n")
