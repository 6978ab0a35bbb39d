"""Adequacy of classification by loops over units, and the records; the checklist."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import deepstats
from deepstats.errors import ModelError
from deepstats.models.trajectory import Trajectory, TrajectoryResults

from .data import CASES, fit
from .test_reference import COMPARED, SEPARATED, matched
from .test_results import counts, several, simulated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    "name", [n for n in COMPARED if "app" in CASES[n] and CASES[n]["K"] > 1]
)
def test_recorded_app_and_entropy(name: str) -> None:
    case, results = CASES[name], fit(name)
    assert results.entropy == pytest.approx(case["entropy"], abs=1e-6)
    expected = np.array(case["app"], dtype=float)[matched(name)]
    np.testing.assert_allclose(results.adequacy()["app"], expected, rtol=1e-6)


def by_hand(results: TrajectoryResults) -> pd.DataFrame:
    """Adequacy, unit by unit."""
    units = results.model.study.units
    w = np.ones(len(units)) if units.weights is None else units.weights.numpy()
    p = results.posterior.to_numpy()
    rows = []
    for k in range(p.shape[1]):
        mine = [i for i in range(len(p)) if p[i].argmax() == k]
        total = sum(w[i] for i in mine)
        app = sum(w[i] * p[i, k] for i in mine) / total
        variance = sum(w[i] * (p[i, k] - app) ** 2 for i in mine) / total
        share = float(np.average(results.traj.shares().numpy()[:, k], weights=w))
        rows.append(
            {
                "n": len(mine), "share": share, "assigned": total / w.sum(),
                "mismatch": share - total / w.sum(), "app": app,
                "occ": app / (1 - app) / (share / (1 - share)),
                "sd": np.sqrt(variance),
            }
        )  # fmt: skip
    return pd.DataFrame(rows, index=pd.Index(["g1", "g2"], name="group"))


@pytest.mark.parametrize("build", [counts, several])
def test_adequacy_by_hand(build) -> None:
    results = build()
    pd.testing.assert_frame_equal(results.adequacy(), by_hand(results), rtol=1e-9)


def test_classification_tables() -> None:
    results = several()
    p, w = results.posterior.to_numpy(), results._sorting.weights
    best = p.argmax(1)
    assigned, group = results.classification(), results.classification("group")
    for k in range(2):
        mine = best == k
        np.testing.assert_allclose(
            assigned.iloc[k], np.average(p[mine], axis=0, weights=w[mine])
        )
        mass = w * p[:, k]
        np.testing.assert_allclose(
            group.iloc[k], [mass[best == j].sum() / mass.sum() for j in range(2)]
        )
    np.testing.assert_allclose(np.diag(assigned), results.adequacy()["app"])
    assert (assigned.index.name, assigned.columns.name) == ("assigned", "group")
    assert (group.index.name, group.columns.name) == ("group", "assigned")
    with pytest.raises(ValueError, match="'assigned' or 'group'"):
        results.classification("rows")


def test_certain_groups_have_infinite_odds() -> None:
    table = fit(SEPARATED[0]).adequacy()
    np.testing.assert_allclose(table["app"], 1.0)
    assert (table["occ"] > 1e6).all()


def test_rules_of_thumb() -> None:
    results = counts()
    rules, table = results.adequacy_rules(), results.adequacy()
    value = rules["value"]
    assert value["smallest APP"] == table["app"].min()
    assert value["smallest OCC"] == table["occ"].min()
    assert value["largest mismatch"] == table["mismatch"].abs().max()
    assert value["relative entropy"] == results.entropy
    assert value["smallest share"] == table["share"].min()
    limits = {"smallest APP": 0.7, "smallest OCC": 5, "relative entropy": 0.5,
              "smallest share": 0.05}  # fmt: skip
    for name, limit in limits.items():
        assert rules.loc[name, "met"] == (value[name] >= limit)
    assert not fit("wheeler.zip0.g5").adequacy_rules().loc["smallest share", "met"]


def test_a_group_that_no_unit_is_assigned_to() -> None:
    # Two groups too many: they get no unit, and one cannot be told from another.
    text = "traj(n ~ 1, groups=4, id=id)"
    results = Trajectory(text, simulated(), family="poisson").fit(starts=12)
    table, rules = results.adequacy(), results.adequacy_rules()
    empty = table["n"] == 0
    assert empty.any() and table.loc[empty, ["app", "occ", "sd"]].isna().all(axis=None)
    assert rules.loc["smallest APP", "value"] == 0
    assert not rules.loc[
        ["smallest APP", "smallest OCC", "smallest share"], "met"
    ].any()
    assert "not available" in str(results.grolts())
    page = results.summary().as_text()
    assert not re.search(r"\bnan\b", page)


def test_one_group_has_nothing_to_classify() -> None:
    one = Trajectory("traj(y ~ t, groups=1, id=id)", simulated()).fit()
    assert one.adequacy().loc["g1", ["app", "assigned", "mismatch"]].tolist() == [
        1,
        1,
        0,
    ]
    with pytest.raises(ModelError, match="one group"):
        one.adequacy_rules()


# -- GRoLTS ----------------------------------------------------------------------------


def test_checklist_has_all_items_in_order() -> None:
    frame = counts().grolts().frame
    expected = ["1", "2", "3a", "3b", "3c", "4", "5", "6a", "6b", "7", "8", "9", "10",
                "11", "12", "13", "14a", "14b", "14c", "15", "16"]  # fmt: skip
    assert frame.index.tolist() == expected


def test_checklist_says_what_the_fit_does_not_know() -> None:
    frame = counts().grolts().frame
    silent = frame.index[frame["status"] == "for the author"]
    assert silent.tolist() == ["3a", "3b", "11", "14a", "14b", "14c"]
    assert (frame.loc[silent, "answer"] == "").all()
    assert (frame.loc[frame["status"] != "reported", "author"] != "").all()


def test_checklist_reports_the_figures_of_the_fit() -> None:
    results = counts()
    answer = results.grolts().frame["answer"]
    assert answer["1"] == "n: `t`, from 0 to 5, 6 distinct values."
    times = simulated().assign(n=1.0)
    assert "| 3 | " in answer["2"] and times["t"].nunique() == 6
    assert "528 rows used, 12 left out" in answer["3c"]
    n = results.augment()["n"]
    assert f"| n | 528 | {n.mean():.4g} | {n.std():.4g} |" in answer["4"]
    assert f"{np.mean(n == 0):.1%}" in answer["4"]
    assert f"deepstats {deepstats.__version__}" in answer["5"]
    assert "no random effects" in answer["6a"]
    assert "| n | 2 | mean | I(t ** 2) |" in answer["7"]
    assert "`~ x`" in answer["8"] and "reference group 1" in answer["8"]
    assert answer["9"].startswith("12 starts; ") and f"{results.llf:.4f}" in answer["9"]
    assert f"BIC by units {results.bic:.2f}" in answer["10"]
    sizes = results.group_probs["n"]
    assert f"| g1 | {sizes['g1']} | " in answer["12"]
    assert f"Relative entropy {results.entropy:.4f}" in answer["13"]
    assert f"| g2:t | {results.params['g2:t']:.4g} |" in answer["15"]
    assert results.formula_text in answer["16"]


def test_occasions_are_counted_within_units() -> None:
    data = simulated()
    data = data[(data["id"] % 2 == 0) | (data["t"] > 0)]  # odd units start at one
    results = Trajectory("traj(y ~ t, groups=2, id=id)", data).fit(starts=8)
    first = next(line for line in results.grolts().frame.loc["2", "answer"].split("\n")
                 if line.startswith("| 1 |"))  # fmt: skip
    start = np.repeat([0.0, 1.0], 45)
    assert first == f"| 1 | 90 | {start.mean():.4g} | {start.var(ddof=1):.4g} |"


def test_checklist_is_markdown() -> None:
    checklist = counts().grolts()
    text = str(checklist)
    assert text == checklist._repr_markdown_()
    assert text.startswith("# GRoLTS checklist\n")
    assert "**14a. " in text and "*For the author:*" in text
    tables = [line for line in text.split("\n") if line.startswith("|")]
    assert tables and all(line.endswith("|") for line in tables)


def test_checklist_of_a_model_of_dropping_out() -> None:
    data = simulated()
    data = data[~((data["id"] % 3 == 0) & (data["t"] > 3))]
    results = Trajectory("traj(y ~ t, groups=2, id=id)", data, dropout=1).fit(starts=8)
    frame = results.grolts().frame
    assert frame.loc["3a", "status"] == "in part"
    assert "dropout" not in frame.loc[["1", "2", "4"], "answer"].str.cat()
    assert results.test_orders()["outcome"].tolist() == ["y", "y"]
    assert results.nobs == len(data) == len(results.augment())
