"""The grid of groups and orders: what is fitted, what is said of it, what is chosen."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import DesignError, ModelError
from deepstats.models.trajectory.selection import Selection

from .simulated import crossing


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return crossing(150)


@pytest.fixture(scope="module")
def plain(data) -> Selection:
    return ds.traj_select(
        "traj(y ~ poly(t, 2), id=id)", data, range(1, 4), starts=12, cv=5
    )


def test_the_true_number_of_groups_is_chosen(plain):
    assert plain.table["groups"].tolist() == [1, 2, 3]
    assert plain.best.traj.groups == 2
    assert plain.best is plain.results[2] is plain.results[2, None]
    assert plain.table["usable"].all()


@pytest.mark.filterwarnings("ignore::deepstats.errors.NonuniqueWarning")
def test_each_row_is_the_fit_that_it_names(data, plain):
    """The same as fitting by hand: the data are read once, and regrouped."""
    for groups in (1, 2, 3):
        alone = ds.traj("traj(y ~ poly(t, 2), id=id)", data, groups=groups).fit(
            starts=12
        )
        row = plain.table.set_index("groups").loc[groups]
        fit = plain.results[groups]
        np.testing.assert_allclose(fit.params, alone.params, rtol=1e-6, atol=1e-8)
        assert list(fit.params.index) == list(alone.params.index)
        assert row["llf"] == pytest.approx(alone.llf, rel=1e-10)
        assert row["parameters"] == len(alone.params)
        for name in ("aic", "bic_units", "bic_rows", "caic", "sabic", "icl"):
            assert row[name] == pytest.approx(getattr(alone, name))
        N, n = data["id"].nunique(), len(data)
        penalty = row["parameters"] * np.log([N, n])
        assert row["bic_units"] == pytest.approx(-2 * row["llf"] + penalty[0])
        assert row["bic_rows"] == pytest.approx(-2 * row["llf"] + penalty[1])
        assert row["min_app"] == pytest.approx(alone.adequacy()["app"].min())
        assert row["cv_error"] == pytest.approx(alone.cross_validate(5).mae, rel=1e-6)


def test_chosen_by_another_criterion(data, plain):
    by_aic = ds.traj_select(
        "traj(y ~ poly(t, 2), id=id)", data, (1, 2), starts=12, criterion="aic"
    )
    assert by_aic.best.traj.groups == 2
    assert by_aic.table["cv_error"].isna().all()
    by_cv = ds.traj_select(
        "traj(y ~ t, id=id)", data, (1, 2), starts=8, criterion="cv_error", cv="units"
    )
    expected = by_cv.results[2].cross_validate().mae
    row = by_cv.table.set_index("groups").loc[2]
    assert row["cv_error"] == pytest.approx(expected)
    assert by_cv.best.traj.groups == 2


def test_all_orders(data):
    found = ds.traj_select(
        "traj(y ~ poly(t, 2), id=id)", data, (1, 2), orders="all", starts=12
    )
    assert found.table["orders"].tolist() == [
        (2,), (1,), (0,), (2, 2), (2, 1), (2, 0), (1, 1), (1, 0), (0, 0),
    ]  # fmt: skip
    # Lines generated these data, in both groups.
    assert found.best.model.study.plan.outcomes[0].orders == (1, 1)
    llf = found.table.set_index("orders")["llf"]
    # A model within another has the smaller likelihood: no search fell short.
    for small, large in (
        ((1, 1), (2, 1)), ((2, 1), (2, 2)), ((1, 0), (1, 1)), ((1, 0), (2, 0)),
        ((0, 0), (1, 0)), ((1,), (2,)),
    ):  # fmt: skip
        assert llf[small] <= llf[large] + 1e-6
    assert found.results[2] is found.results[2, (1, 1)]


def test_orders_are_reduced_while_the_highest_is_not_significant(data):
    found = ds.traj_select(
        "traj(y ~ poly(t, 3), id=id)", data, 2, orders="reduce", starts=12
    )
    orders = found.table["orders"].tolist()
    assert orders[0] == (3, 3) and orders[-1] == (1, 1)
    last = found.results[2, (1, 1)]
    assert (last.pvalues[["g1:poly(t, 3)[1]", "g2:poly(t, 3)[1]"]] < 0.05).all()
    full = found.results[2, (3, 3)]
    assert (full.pvalues[["g1:poly(t, 3)[3]", "g2:poly(t, 3)[3]"]] > 0.05).any()


def test_listed_orders(data):
    found = ds.traj_select(
        "traj(y ~ poly(t, 2), id=id)", data, (1, 2), orders=[1, (2, 0)], starts=8
    )
    assert set(found.results) == {(1, (1,)), (2, (1, 1)), (2, (2, 0))}
    with pytest.raises(ModelError, match="are for 3 groups"):
        ds.traj_select("traj(y ~ t, id=id)", data, (1, 2), orders=[(1, 1, 0)])
    with pytest.raises(ModelError, match="has degree 1"):
        ds.traj_select("traj(y ~ t, id=id)", data, 2, orders=[2])
    with pytest.raises(ModelError, match="give 'all'"):
        ds.traj_select("traj(y ~ t, id=id)", data, 2, orders="some")


def test_options_and_several_outcomes(data):
    found = ds.traj_select(
        "traj(y ~ t, count ~ t, id=id, risk=~ weight)", data, (1, 2), starts=8,
        family=["gaussian", "poisson"], variance="group", cv=4,
    )  # fmt: skip
    assert found.best.traj.groups == 2
    assert "g2:membership:weight" in found.best.params
    assert "g1:y:sigma" in found.best.params
    errors = found.best.cross_validate(4).mae
    row = found.table.set_index("groups").loc[2]
    assert row["cv_error"] == pytest.approx(errors.mean())
    with pytest.raises(ModelError, match="one outcome"):
        ds.traj_select("traj(y ~ t, count ~ t, id=id)", data, 2, orders="all")


def test_common_effects_stay_common(data):
    found = ds.traj_select(
        "traj(y ~ t, id=id, common=~ weight)", data, (1, 2, 3), starts=8
    )
    for groups in (1, 2, 3):
        assert "weight" in found.results[groups].params
        assert len(found.results[groups].params) == 3 * groups + 1


def test_what_cannot_be_fitted_is_said_in_the_table():
    few = crossing(12)
    found = ds.traj_select("traj(y ~ t, id=id)", few, range(1, 6), starts=4)
    last = found.table.iloc[-1]
    assert not last["usable"] and "cannot determine" in last["warnings"]
    assert (5, None) not in found.results
    with pytest.raises(KeyError, match="no such fit"):
        found.results[5]
    with pytest.raises(DesignError, match="cannot determine"):
        ds.traj_select("traj(y ~ t, id=id)", few, 6)


def test_warnings_stand_in_the_table(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ds.traj_select(
            "traj(count ~ t, id=id)", data, (2, 5), family="poisson", starts=6
        )
    for key, text in zip(found._keys(), found.table["warnings"], strict=True):
        assert text == " ".join(found.results[key].fit_info.notes)


def test_the_page(plain):
    text = repr(plain)
    assert "Selection of trajectory groups" in text and "2 groups" in text
    assert "nan" not in text
    starred = [line for line in text.splitlines() if line.startswith("*")]
    assert len(starred) == 1 and f"{plain.best.llf:.2f}" in starred[0]
    assert "<table" in plain.as_html() and plain._repr_html_() == plain.as_html()
    assert r"\begin{tabular}" in plain.as_latex()
    assert "|" in plain.as_markdown()


def test_tests_of_the_number_of_groups(plain):
    table = plain.blrt(59, seed=1)
    assert table.index.tolist() == [2, 3]
    assert table.loc[2, "p_value"] == 1 / 60 and table.loc[3, "p_value"] > 0.05
    vuong = plain.vlmr()
    assert vuong.loc[2, "adjusted_p"] < 1e-3
    assert vuong.loc[2, "adjusted"] < vuong.loc[2, "statistic"]
    np.testing.assert_allclose(table["statistic"], vuong["statistic"])


def test_pictures(plain):
    plt = pytest.importorskip("matplotlib.pyplot")
    ax = plain.plot()
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), plain.table["bic_units"])
    assert plain.plot("icl") is not ax
    assert plain.plot_alluvial().get_figure() is not None
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"criterion": "best"}, ValueError, "criterion must be one of"),
        ({"criterion": "cv_error"}, ValueError, "needs cv="),
        ({"groups": 0}, ModelError, "whole numbers from 1"),
        ({"groups": ()}, ModelError, "whole numbers from 1"),
        ({"starts": 0}, ValueError, "starts must be"),
        ({"cv": "all"}, ValueError, "cv must be"),
        ({"nonsense": 1}, TypeError, "no option nonsense"),
        ({"orders": "reduce", "level": 2.0}, ValueError, "between 0 and 1"),
    ],
)
def test_what_cannot_be_asked(data, options, error, text):
    with pytest.raises(error, match=text):
        ds.traj_select("traj(y ~ t, id=id)", data, **{"groups": 2, **options})


def test_groups_belong_to_the_call(data):
    with pytest.raises(ModelError, match="goes through these"):
        ds.traj_select("traj(y ~ t, groups=2, id=id)", data)


def test_a_grid_too_large(data):
    with pytest.raises(ModelError, match="makes .* models"):
        ds.traj_select("traj(y ~ poly(t, 4), id=id)", data, range(1, 7), orders="all")
