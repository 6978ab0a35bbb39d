"""Wald tests of groups against the quadratic form written out."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy import stats

from deepstats.errors import ModelError
from deepstats.models.trajectory import Trajectory, TrajectoryResults

from .data import fit
from .test_results import counts, several, simulated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@lru_cache
def orders() -> TrajectoryResults:
    """Orders that differ, one zero part for both groups, group 2 as reference."""
    return Trajectory(
        "traj(n ~ poly(t, 2), groups=2, id=id, orders=(2, 1), risk=~ x, reference=2)",
        simulated(), family="poisson",
    ).fit(starts=12)  # fmt: skip


def form(results: TrajectoryResults, rows: list[dict[str, float]]) -> float:
    """Wald statistic of rows of coefficients by name."""
    R = np.zeros((len(rows), len(results.params)))
    for i, row in enumerate(rows):
        for name, value in row.items():
            R[i, results.names.index(name)] = value
    b, V = results.params.to_numpy(), results.cov_params().to_numpy()
    return float((R @ b) @ np.linalg.solve(R @ V @ R.T, R @ b))


P1, P2 = "poly(t, 2)[1]", "poly(t, 2)[2]"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("g1:poly1 = g2:poly1", [{f"g1:{P1}": 1, f"g2:{P1}": -1}]),
        (f"g1:{P1} = g2:{P1}", [{f"g1:{P1}": 1, f"g2:{P1}": -1}]),
        ("g1:poly(t,2)[1] - g2:poly1", [{f"g1:{P1}": 1, f"g2:{P1}": -1}]),
        # Group 2 has no square, and its membership is the reference: zeros.
        ("g1:poly2 = g2:poly2", [{f"g1:{P2}": 1}]),
        ("g1:membership:x = g2:membership:x", [{"g1:membership:x": 1}]),
        ("g1:poly1 = 0, g1:poly2 = 0", [{f"g1:{P1}": 1}, {f"g1:{P2}": 1}]),
        (["g1:Intercept = g2:Intercept", "2 * g1:poly1 = g2:poly1"],
         [{"g1:Intercept": 1, "g2:Intercept": -1}, {f"g1:{P1}": 2, f"g2:{P1}": -1}]),
    ],
)  # fmt: skip
def test_hypotheses_by_name(text, rows) -> None:
    test = orders().wald_test(text)
    assert test.statistic == pytest.approx(form(orders(), rows), rel=1e-9)
    assert test.df_num == len(rows) and test.distribution == "chi2"
    assert test.pvalue == pytest.approx(stats.chi2.sf(test.statistic, len(rows)))


def test_powers_have_the_same_short_names() -> None:
    results = counts()
    expected = form(results, [{"g1:I(t ** 2)": 1, "g2:I(t ** 2)": -1}])
    assert results.wald_test("g1:poly2 = g2:poly2").statistic == pytest.approx(expected)
    expected = form(results, [{"g1:t": 1, "g2:t": -1}])
    assert results.wald_test("g1:poly1 = g2:poly1").statistic == pytest.approx(expected)


def test_names_of_several_outcomes_and_of_the_zero_part() -> None:
    results = several()
    expected = form(results, [{"g1:n:t": 1, "g2:n:t": -1}])
    assert results.wald_test("g1:n:poly1 = g2:n:t").statistic == pytest.approx(expected)
    zero = fit("wheeler.zip1.g3")
    expected = form(zero, [{"g1:inflate:t": 1, "g3:inflate:t": -1}])
    found = zero.wald_test("g1:inflate:poly1 = g3:inflate:poly1")
    assert found.statistic == pytest.approx(expected)


def test_what_groups_share_has_their_names_too() -> None:
    results = several()
    shared = results.wald_test("g1:y:sigma = 1").statistic
    assert shared == results.wald_test("y:sigma = 1").statistic
    alone = Trajectory("traj(y ~ t, groups=1, id=id)", simulated()).fit()
    assert alone.wald_test("g1:poly1").statistic == pytest.approx(
        alone.tvalues["t"] ** 2
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g3:poly1 = 0", "is not a parameter"),
        ("g1:poly3 = 0", "is not a parameter"),
        ("g2:poly2 = 0", "restricts nothing"),
        ("g1:poly1 = g1:poly(t, 2)[1]", "restricts nothing"),
        ("g2:membership:x", "restricts nothing"),
    ],
)
def test_hypotheses_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orders().wald_test(text)


def test_matrices_and_single_contrasts() -> None:
    results = orders()
    R = np.zeros((1, len(results.params)))
    R[0, [1, 4]] = 1, -1
    by_matrix = results.wald_test(R)
    assert by_matrix.statistic == pytest.approx(
        results.wald_test("g1:poly1 = g2:poly1").statistic
    )
    found = results.t_test("g1:poly1 = g2:poly1")
    row = found.frame.loc["g1:poly1 = g2:poly1"]
    assert row["coef"] == pytest.approx((R @ results.params)[0])
    assert row["z"] ** 2 == pytest.approx(by_matrix.statistic)


# -- equality --------------------------------------------------------------------------


def test_equal_trajectories_written_out() -> None:
    rows = [
        {"g1:Intercept": 1, "g2:Intercept": -1},
        {f"g1:{P1}": 1, f"g2:{P1}": -1},
        {f"g1:{P2}": 1},
    ]
    found = orders().wald_equal((1, 2))
    assert found.df_num == 3
    assert found.statistic == pytest.approx(form(orders(), rows), rel=1e-9)
    assert orders().wald_equal().statistic == found.statistic


def test_equality_of_three_groups_and_of_each_pair() -> None:
    results = fit("wheeler.zip1.g3")
    columns = results.model.study.outcomes[0].columns
    mean = [{f"g{a}:{c}": 1, f"g{a + 1}:{c}": -1} for a in (1, 2) for c in columns[0]]
    found = results.wald_equal()
    assert found.df_num == len(mean)
    assert found.statistic == pytest.approx(form(results, mean), rel=1e-7)
    pairs = results.wald_groups("zero")
    assert pairs.index.tolist() == [(1, 2), (1, 3), (2, 3)]
    for a, b in pairs.index:
        rows = [{f"g{a}:inflate:{c}": 1, f"g{b}:inflate:{c}": -1} for c in columns[1]]
        assert pairs.loc[(a, b), "chi2"] == pytest.approx(form(results, rows), rel=1e-8)
        assert pairs.loc[(a, b), "pvalue"] == stats.chi2.sf(
            pairs.loc[(a, b), "chi2"], 2
        )
    everything = results.wald_equal((1, 3), what="all")
    assert everything.df_num == len(columns[0]) + len(columns[1])


def test_equality_of_scales_and_of_membership() -> None:
    own = fit("cnorm2gr.gauss")
    expected = form(own, [{"g1:sigma": 1, "g2:sigma": -1}])
    assert own.wald_equal(what="scale").statistic == pytest.approx(expected)
    found = orders().wald_equal(what="membership")
    assert found.df_num == 1
    assert found.statistic == pytest.approx(form(orders(), [{"g1:membership:x": 1}]))
    both = several().wald_equal()
    assert both.df_num == 4  # lines of two outcomes; sigma is shared


def test_robust_errors_are_used() -> None:
    robust = orders().get_robustcov_results("HC0")
    assert robust.wald_equal().statistic != orders().wald_equal().statistic
    rows = [{"g1:Intercept": 1, "g2:Intercept": -1},
            {f"g1:{P1}": 1, f"g2:{P1}": -1}, {f"g1:{P2}": 1}]  # fmt: skip
    assert robust.wald_equal().statistic == pytest.approx(form(robust, rows), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.wald_equal((1, 1)), "two or more different"),
        (lambda r: r.wald_equal((1, 3)), "from 1 to 2"),
        (lambda r: r.wald_equal(what="trend"), "must be one of"),
        (lambda r: r.wald_equal(what="zero"), "nothing to test"),
        (lambda r: r.wald_equal(what="scale"), "nothing to test"),
    ],
)
def test_comparisons_that_cannot_be(call, message: str) -> None:
    with pytest.raises((ValueError, ModelError), match=message):
        call(several())


def test_one_group_has_no_other() -> None:
    one = Trajectory("traj(y ~ t, groups=1, id=id)", simulated()).fit()
    with pytest.raises(ModelError, match="no other"):
        one.wald_groups()


# -- orders ----------------------------------------------------------------------------


def test_highest_powers() -> None:
    results = orders()
    table = results.test_orders().set_index("group")
    assert table["order"].tolist() == [2, 1]
    assert table["term"].tolist() == [P2, P1]
    for group, name in ((1, f"g1:{P2}"), (2, f"g2:{P1}")):
        assert table.loc[group, "coef"] == results.params[name]
        assert table.loc[group, "pvalue"] == results.pvalues[name]


def test_orders_of_zero_and_of_several_parts() -> None:
    flat = Trajectory(
        "traj(y ~ t + I(t**2), groups=2, id=id, orders=(0, 2))", simulated()
    ).fit(starts=8)
    table = flat.test_orders().set_index("group")
    assert table.loc[1, "order"] == 0 and np.isnan(table.loc[1, "coef"])
    assert table.loc[2, "coef"] == flat.params["g2:I(t ** 2)"]
    zero = fit("wheeler.zip1.g3").test_orders()
    assert zero.groupby("part")["order"].agg(list).to_dict() == {
        "mean": [2, 2, 2], "zero": [1, 1, 1]
    }  # fmt: skip
    outcomes = several().test_orders()
    assert outcomes["outcome"].tolist() == ["y", "y", "n", "n"]


def test_orders_need_a_polynomial() -> None:
    flat = Trajectory("traj(y ~ C(firm), groups=2, id=id)", simulated()).fit(starts=8)
    with pytest.raises(ModelError, match="no formula has one polynomial"):
        flat.test_orders()
