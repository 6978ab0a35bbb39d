"""Plan and data to arrays: order, patterns, missing rows, new units, bad data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from deepstats.compute import Compute
from deepstats.design import Design
from deepstats.errors import (
    DesignError,
    MissingDataWarning,
    ModelError,
    RankWarning,
)
from deepstats.families import CensoredNormal, Multinomial, Ordinal
from deepstats.models.trajectory.reading import read
from deepstats.models.trajectory.study import Study

N, T = 60, 5
_SHARED = Path(__file__).parents[4] / "shared" / "reference"


def panel(seed: int = 0) -> pd.DataFrame:
    """Sixty units on five occasions, with an outcome of every kind."""
    rng = np.random.default_rng(seed)
    each = np.repeat(np.arange(N), T)
    t = np.tile(np.arange(T, dtype=float), N)
    return pd.DataFrame(
        {
            "pid": each * 3 + 7,
            "t": t,
            "y": rng.normal(size=N * T) + t,
            "count": rng.poisson(2.0, N * T),
            "yes": rng.integers(0, 4, N * T),
            "no": rng.integers(1, 4, N * T),
            "flag": rng.integers(0, 2, N * T).astype(bool),
            "z": rng.normal(size=N * T),
            "grade": rng.choice(["low", "mid", "top"], N * T),
            "x1": rng.normal(size=N)[each],
            "place": rng.choice(["a", "b", "c"], N)[each],
            "w": rng.uniform(0.5, 2.0, N)[each],
            "hours": rng.uniform(1.0, 2.0, N * T),
        }
    )


def study(options: str = "", data=None, formula: str = "y ~ poly(t, 2)", **keywords):
    text = f"traj({formula}, groups=3, id=pid{', ' * bool(options)}{options})"
    return Study.build(read(text, **keywords), panel() if data is None else data)


def only(*args, **keywords):
    (outcome,) = study(*args, **keywords).outcomes
    return outcome


def changed(name: str, rows, value) -> pd.DataFrame:
    data = panel()
    if isinstance(value, float):
        data[name] = data[name].astype(float)
    data.loc[rows, name] = value
    return data


def same(one: Study, two: Study) -> None:
    """Every number of two studies agrees."""
    assert one.units.labels.tolist() == two.units.labels.tolist()
    assert torch.equal(one.units.W, two.units.W)
    for a, b in zip(one.outcomes, two.outcomes, strict=True):
        assert torch.equal(a.unit, b.unit)
        assert torch.allclose(a.y, b.y, equal_nan=True)
        for x, z in zip(a.X, b.X, strict=True):
            assert torch.allclose(x, z, rtol=1e-13, atol=1e-13)


# -- the arrays ------------------------------------------------------------------------


def test_one_outcome():
    data = panel()
    found = study()
    (o,) = found.outcomes
    assert (o.name, o.predictors) == ("y", ("mu", "sigma"))
    assert o.columns[0] == ("Intercept", "poly(t, 2)[1]", "poly(t, 2)[2]")
    expected = Design.build("y ~ poly(t, 2)", data).X.to_dense()
    assert torch.equal(o.X[0], expected)
    assert o.X[0].stride() == (1, N * T)
    assert o.X[1].shape == (N * T, 1) and o.X[1].stride(0) == 0
    assert o.unit.tolist() == np.repeat(np.arange(N), T).tolist()
    np.testing.assert_array_equal(o.y, data.y)
    assert o.size is o.lower is o.upper is None and o.offsets == (None, None)
    assert found.units.labels.tolist() == data.pid.unique().tolist()
    assert found.units.W.tolist() == [[1.0]] * N
    assert found.units.columns == ("Intercept",)
    assert found.free == 3 * 3 + 1 + 2


def test_sorted_rows_stay_where_they_are():
    outcome = only()
    assert outcome.order is None
    assert outcome.index.equals(panel().index)


@pytest.mark.parametrize(
    "ids", ["numbers", "text", "categories", "floats", "mixed", "nullable"]
)
def test_rows_in_any_order(ids):
    data = panel()
    if ids == "text":
        data["pid"] = [f"u{k:04d}" for k in data.pid]
    elif ids == "categories":
        data["pid"] = pd.Categorical(
            [f"u{k:04d}" for k in data.pid],
            [*(f"u{k:04d}" for k in data.pid.unique()), "never"],
        )
    elif ids == "floats":
        data["pid"] = data.pid / 7
    elif ids == "mixed":
        data["pid"] = data.pid.astype(object)
    elif ids == "nullable":
        data["pid"] = data.pid.astype("Int64")
    options = "risk=~ x1 + place, weights=w"
    first = study(options, data)
    shuffled = data.sample(frac=1, random_state=3)
    # Within a unit the order of the data stays.
    shuffled = shuffled.sort_values("t", kind="stable")
    second = study(options, shuffled)
    same(first, second)
    assert torch.equal(first.units.weights, second.units.weights)
    assert second.outcomes[0].index.tolist() == first.outcomes[0].index.tolist()
    assert second.units.labels.tolist() == sorted(data.pid.unique())


def test_the_order_within_a_unit_is_that_of_the_data():
    data = panel().iloc[::-1]
    outcome = only(data=data)
    assert outcome.index[:T].tolist() == [4, 3, 2, 1, 0]
    np.testing.assert_array_equal(outcome.y[:T], data.y.to_numpy()[-T:])
    np.testing.assert_array_equal(outcome.design.y[outcome.order], outcome.y)


def test_unbalanced_data():
    data = panel().sample(frac=0.6, random_state=1)
    found = study(data=data)
    counts = torch.bincount(found.outcomes[0].unit)
    expected = data.groupby("pid").size()
    assert counts.tolist() == expected.tolist()
    assert found.units.labels.tolist() == expected.index.tolist()


@pytest.mark.parametrize("kind", ["polars", "mapping"])
def test_other_frames(kind):
    data = panel()
    other = pl.from_pandas(data) if kind == "polars" else data.to_dict("list")
    options = "risk=~ x1 + place, weights=w, orders=(2, 1, 0)"
    same(study(options, data), study(options, other))


def test_arrays_are_of_the_device_and_in_float64():
    found = Study.build(
        read("y ~ t", groups=2, id="pid", risk="~ x1", weights="w"),
        panel().astype({"y": np.float32}),
        Compute("cpu"),
    )
    (o,) = found.outcomes
    tensors = [o.y, *o.X, found.units.W, found.units.weights]
    assert {v.dtype for v in tensors} == {torch.float64}
    assert o.unit.dtype == torch.long


# -- patterns --------------------------------------------------------------------------


def patterns(options: str, formula: str = "y ~ poly(t, 2)", **keywords):
    outcome = only(options, formula=formula, **keywords)
    return {
        name: pattern.tolist()
        for name, pattern in zip(outcome.predictors, outcome.patterns, strict=True)
    }


def test_groups_have_their_own_coefficients_and_share_the_scale():
    found = patterns("")
    assert found == {
        "mu": [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        "sigma": [[0], [0], [0]],
    }
    assert patterns("variance='group'")["sigma"] == [[0], [1], [2]]


def test_orders_leave_columns_out():
    expected = [[0, 1, 2], [3, 4, -1], [5, -1, -1]]
    assert patterns("orders=(2, 1, 0)")["mu"] == expected
    for powers in ("y ~ t + I(t^2)", "y ~ poly(t, 2, raw=True)"):
        assert patterns("orders=(2, 1, 0)", powers)["mu"] == expected
    crossed = patterns("orders=(0, 2, 1)", "y ~ z + t + I(t^2)")["mu"]
    assert crossed == [[0, 1, -1, -1], [2, 3, 4, 5], [6, 7, 8, -1]]


def test_common_columns_come_last_and_are_shared():
    outcome = only("common=~ z + place, orders=(1, 1, 0)", formula="y ~ t")
    assert outcome.columns[0] == ("Intercept", "t", "z", "place[T.b]", "place[T.c]")
    assert outcome.patterns[0].tolist() == [
        [0, 1, 5, 6, 7],
        [2, 3, 5, 6, 7],
        [4, -1, 5, 6, 7],
    ]
    assert outcome.design.parts == ()
    data = panel()
    np.testing.assert_array_equal(outcome.X[0][:, 2], data.z)
    np.testing.assert_array_equal(outcome.X[0][:, 4], data.place == "c")


def test_common_levels_are_coded_as_beside_an_intercept():
    outcome = only("common=~ 0 + place", formula="y ~ t")
    assert outcome.columns[0] == ("Intercept", "t", "place[T.b]", "place[T.c]")


def test_the_zero_part():
    zip_ = "count ~ poly(t, 2)"
    found = only("family=zip, zero=~ t, zero_orders=(1, 0, 0)", formula=zip_)
    assert found.predictors == ("mu", "inflate")
    assert found.columns[1] == ("Intercept", "t")
    assert found.patterns[1].tolist() == [[0, 1], [2, -1], [3, -1]]
    np.testing.assert_array_equal(found.X[1][:, 1], panel().t)
    assert patterns("family=zip", zip_)["inflate"] == [[0], [1], [2]]
    assert patterns("family=zip, zero='shared'", zip_)["inflate"] == [[0], [0], [0]]
    assert patterns("family=zip, zero='tau'", zip_)["tau"] == [[0], [1], [2]]
    assert patterns("family=hurdle", zip_)["zero"] == [[0], [1], [2]]


def test_the_scale_has_columns_of_its_own():
    found = only("disp=~ z")
    assert found.columns[1] == ("Intercept", "z")
    assert found.patterns[1].tolist() == [[0, 1]] * 3
    group = only("disp=~ z, variance='group'", formula="count ~ t", family="zinb")
    assert group.predictors == ("mu", "inflate", "alpha")
    assert group.columns[1:] == (("Intercept",), ("Intercept", "z"))
    assert group.patterns[2].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_zero_and_scale_parts_are_not_mixed_up():
    found = only("zero=~ t, disp=~ z", formula="count ~ t", family="zinb")
    assert found.columns == (("Intercept", "t"), ("Intercept", "t"), ("Intercept", "z"))
    np.testing.assert_array_equal(found.X[2][:, 1], panel().z)


def test_student_t_has_one_scale_with_columns():
    found = only("disp=~ z", family="t")
    assert found.predictors == ("mu", "sigma", "nu")
    assert found.columns[1:] == (("Intercept", "z"), ("Intercept",))


def test_bases_and_levels_are_read_as_everywhere():
    data = panel()
    formula = "y ~ bs(t, df=4) + place * z"
    outcome = only(formula=formula)
    expected = Design.build(formula, data)
    assert outcome.columns[0] == expected.X.names
    assert torch.equal(outcome.X[0], expected.X.to_dense())


def test_factors_of_many_levels_are_laid_out():
    data = panel().assign(day=lambda d: (d.z * 1000).astype(int) % 20)
    data = data.sample(frac=1, random_state=0)
    text = "traj(y ~ C(day) + C(day):z, groups=1, id=pid)"
    outcome = Study.build(read(text), data).outcomes[0]
    expected = Design.build("y ~ C(day) + C(day):z", data)
    assert expected.X.coded
    assert torch.equal(outcome.X[0], expected.X.to_dense()[outcome.order])


# -- responses -------------------------------------------------------------------------


def test_offset_and_exposure():
    data = panel()
    text = "family=poisson, offset=z, exposure=hours"
    found = only(text, formula="count ~ t + offset(x1)")
    expected = data.z + np.log(data.hours) + data.x1
    np.testing.assert_allclose(found.offsets[0], expected, rtol=1e-14)
    shuffled = data.sample(frac=1, random_state=0)
    again = only(
        "family=zip", shuffled, "count ~ t", exposure=shuffled.hours.to_numpy()
    )
    expected = np.log(shuffled.hours.loc[again.index])
    np.testing.assert_array_equal(again.offsets[0], expected)
    assert again.offsets[1] is None
    number = only("family=poisson, offset=2", formula="count ~ t")
    assert number.offsets[0].unique().tolist() == [2.0]


def test_counts_of_trials():
    data = panel()
    found = only("family=binomial", formula="cbind(yes, no) ~ t")
    assert found.name == "cbind(yes, no)"
    np.testing.assert_array_equal(found.size, data.yes + data.no)
    np.testing.assert_allclose(found.y * found.size, data.yes)


@pytest.mark.parametrize(
    "values", [panel().flag, panel().flag.map({True: "yes", False: "no"}),
               panel().flag.astype(int)], ids=["bool", "text", "number"],
)  # fmt: skip
def test_two_valued_responses(values):
    data = panel().assign(flag=values)
    found = study("family=logit", data, "flag ~ t")
    np.testing.assert_array_equal(found.outcomes[0].y, panel().flag)
    # New units may show one of the values alone.
    one = data[data.pid.isin([7, 10]) & panel().flag]
    np.testing.assert_array_equal(found.renew(one).outcomes[0].y, np.ones(len(one)))


def test_numbers_and_levels_are_not_mixed_up_in_new_data():
    data = panel()
    text = data.assign(flag=np.where(data.flag, "yes", "no"))
    numbers = data.assign(flag=data.flag * 1)
    by_number = study("family=logit", numbers, "flag ~ t")
    assert by_number.renew(data).outcomes[0].y.tolist() == numbers.flag.tolist()
    with pytest.raises(DesignError, match="flag had numbers in the data of the fit"):
        by_number.renew(text)
    by_text = study("family=logit", text, "flag ~ t")
    assert by_text.outcomes[0].levels == ("no", "yes")
    with pytest.raises(DesignError, match="flag had levels 'no', 'yes'"):
        by_text.renew(numbers)


def test_levels_become_codes():
    data = panel()
    found = only(family="ordinal", formula="grade ~ t")
    assert found.family == Ordinal(3)
    assert found.levels == ("low", "mid", "top")
    np.testing.assert_array_equal(found.y, pd.Categorical(data.grade).codes)
    assert found.predictors[0] == "mu" and len(found.predictors) == 2
    several = only(family="multinomial", formula="grade ~ t")
    assert several.family == Multinomial(3)
    assert several.patterns[1].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert several.columns[1] == ("Intercept", "t")
    numbers = only(family="ordinal", formula="yes ~ t", data=data.assign(yes=data.no))
    assert numbers.levels == (1, 2, 3)
    np.testing.assert_array_equal(numbers.y, data.no - 1)


def test_codes_of_a_family_with_levels_that_do_not_occur():
    data = panel().assign(yes=panel().yes.clip(0, 2))
    found = only(family=Ordinal(4), formula="yes ~ t", data=data)
    assert found.levels == (0, 1, 2, 3)
    with pytest.raises(DesignError, match="not among its levels: 3"):
        only(family=Ordinal(3), formula="yes ~ t")


def test_limits():
    data = panel()
    data["y"] = data.y.clip(0, 4)
    found = only("lower=0, upper=4", data)
    assert isinstance(found.family, CensoredNormal)
    assert found.lower.stride() == (0,)
    assert (found.lower[0], found.upper[-1]) == (0.0, 4.0)
    data["lod"] = np.where(data.t > 2, 0.0, -np.inf)
    shuffled = data.sample(frac=1, random_state=2)
    by_column = only("family=cnorm, lower=lod", shuffled)
    np.testing.assert_array_equal(by_column.lower, shuffled.lod.loc[by_column.index])
    assert by_column.upper is None
    by_value = only("", shuffled, lower=shuffled.lod.to_numpy())
    assert torch.equal(by_value.lower, by_column.lower)
    missing = changed("y", [3, 11], float("nan"))
    limits = np.full(N * T, -100.0)
    limits[4] = -50.0
    assert only("", missing, lower=limits).lower[3] == -50.0


# -- units -----------------------------------------------------------------------------


def test_risk_factors_are_read_once_for_each_unit():
    data = panel()
    found = study("risk=~ x1 * place + poly(w, 2), reference=2", data).units
    units = data.drop_duplicates("pid")
    expected = Design.build("w ~ x1 * place + poly(w, 2)", units)
    assert found.columns == expected.X.names
    assert torch.equal(found.W, expected.X.to_dense())
    assert found.W.shape[0] == N


def test_a_risk_factor_may_be_missing_on_some_occasions():
    full = study("risk=~ x1 + place")
    gaps = panel()
    gaps.loc[gaps.t > 0, "x1"] = np.nan
    gaps.loc[gaps.t != 2, "place"] = None
    same(full, study("risk=~ x1 + place", gaps))


def test_units_without_a_risk_factor_are_left_out_with_their_ids():
    data = changed("x1", slice(5, 9), float("nan"))
    with pytest.warns(MissingDataWarning, match=r"1 of 60 .*risk factor.*\(10\)"):
        found = study("risk=~ x1", data)
    assert found.units.dropped == (10,)
    assert len(found.units) == N - 1 == len(found.units.W)
    assert 10 not in found.units.labels
    (o,) = found.outcomes
    assert o.n == (N - 1) * T and int(o.unit.max()) == N - 2
    np.testing.assert_array_equal(o.y, data.y.drop(index=range(5, 10)))
    assert found.notes and "left out" in found.notes[0]


def test_units_without_outcome_are_left_out_with_their_ids():
    data = changed("y", slice(5, 9), float("nan"))
    with pytest.warns(MissingDataWarning, match=r"no occasion without.*\(10\)"):
        found = study("weights=w", data)
    assert found.units.dropped == (10,)
    expected = data.drop_duplicates("pid").w.drop(index=5)
    np.testing.assert_array_equal(found.units.weights, expected)


def test_missing_occasions():
    data = changed("y", [0, 1, 7], float("nan"))
    data.loc[20, "t"] = np.nan
    outcome = only(data=data)
    kept = data.dropna(subset=["y", "t"])
    assert outcome.index.tolist() == kept.index.tolist()
    assert torch.bincount(outcome.unit)[:5].tolist() == [3, 4, 5, 5, 4]
    shuffled = only(data=data.sample(frac=1, random_state=5).sort_values("t"))
    assert torch.equal(shuffled.y, outcome.y)


def test_sampling_weights():
    data = panel()
    units = data.drop_duplicates("pid")
    for given in ("w", "1 / w", data.w.to_numpy(), 1 / data.w):
        found = study("", data, weights=given).units.weights
        inverse = isinstance(given, pd.Series) or str(given) == "1 / w"
        expected = 1 / units.w if inverse else units.w
        np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_clusters_are_of_units():
    data = panel()
    found = study("cluster=place", data).units.clusters
    codes = pd.factorize(data.drop_duplicates("pid").place, sort=True)[0]
    np.testing.assert_array_equal(found, codes)


# -- several outcomes ------------------------------------------------------------------


def test_outcomes_keep_their_own_rows():
    data = changed("y", [0, 1, 7], float("nan"))
    data["count"] = data["count"].astype(float)
    data.loc[[2, 3, 4], "count"] = np.nan
    formula = "y ~ poly(t, 2), count ~ t"
    found = study("family=('gaussian', 'poisson')", data, formula)
    one, two = found.outcomes
    assert (one.n, two.n) == (N * T - 3, N * T - 3)
    assert one.index[:3].tolist() == [2, 3, 4] and two.index[:3].tolist() == [0, 1, 5]
    assert found.units.labels.tolist() == data.pid.unique().tolist()
    assert found.free == 9 + 1 + 6 + 2


def test_a_unit_is_left_out_only_if_it_has_no_outcome_at_all():
    data = changed("y", slice(0, 9), float("nan"))
    data["count"] = data["count"].astype(float)
    data.loc[5:9, "count"] = np.nan
    with pytest.warns(MissingDataWarning, match=r"1 of 60.*\(10\)"):
        found = study("family=('gaussian', 'poisson')", data, "y ~ t, count ~ t")
    assert found.units.labels[0] == 7
    assert found.outcomes[0].unit[0] == 1 and found.outcomes[1].unit[0] == 0


# -- new units -------------------------------------------------------------------------

FULL = "risk=~ x1 + place, weights=w, common=~ z, orders=(2, 1, 0)"


def test_the_same_data_give_the_same_study():
    data = panel()
    first = study(FULL, data)
    again = first.renew(data.sample(frac=1, random_state=0).sort_values("t"))
    same(first, again)
    assert torch.equal(first.units.weights, again.units.weights)
    for a, b in zip(first.outcomes, again.outcomes, strict=True):
        assert a.patterns is b.patterns and a.columns == b.columns
        assert a.family == b.family


def test_new_units_have_the_bases_of_the_fit():
    data = panel()
    first = study(FULL, data)
    part = data[data.pid.isin([7, 40]) & (data.t > 0)].assign(pid=lambda d: d.pid + 1)
    new = first.renew(part.drop(columns="w"), responses=False)
    assert new.units.labels.tolist() == [8, 41]
    rows = [1, 2, 3, 4, 56, 57, 58, 59]
    assert torch.allclose(new.outcomes[0].X[0], first.outcomes[0].X[0][rows])
    assert torch.equal(new.units.W, first.units.W[[0, 11]])


def test_new_units_need_no_response_where_none_is_asked_for():
    first = study("", None, "count ~ t, cbind(yes, no) ~ t, grade ~ t",
                  family=["poisson", "binomial", "ordinal"])  # fmt: skip
    bare = panel()[["pid", "t"]].iloc[: 2 * T]
    new = first.renew(bare, responses=False)
    assert [bool(o.y.isnan().all()) for o in new.outcomes] == [True] * 3
    assert [o.n for o in new.outcomes] == [2 * T] * 3
    with pytest.raises(DesignError, match="no column 'count'"):
        first.renew(bare)


def test_new_rows_need_predictors_and_a_response():
    first = study()
    new = panel(1).iloc[: 2 * T].copy()
    new.loc[1, "y"] = np.nan
    new.loc[[2, 7], "t"] = np.nan
    found = first.renew(new).outcomes[0]
    assert found.index.tolist() == [0, 3, 4, 5, 6, 8, 9]
    np.testing.assert_array_equal(found.y, new.y.loc[found.index])
    assert first.renew(new, responses=False).outcomes[0].n == 2 * T - 2
    only_t = new.assign(y=1.0)
    assert first.renew(only_t).outcomes[0].index.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]


def test_new_units_may_lack_an_outcome():
    first = study("family=('gaussian', 'poisson')", None, "y ~ t, count ~ t")
    new = panel().iloc[: 2 * T].assign(count=np.nan)
    found = first.renew(new)
    assert [o.n for o in found.outcomes] == [2 * T, 0]
    assert found.outcomes[1].X[0].shape == (0, 2)
    assert len(found.units) == 2
    with pytest.raises(DesignError, match="no unit can be used: no occasion"):
        first.renew(new.assign(y=np.nan))


def test_new_units_need_no_weights():
    first = study("weights=w")
    new = panel().iloc[: 2 * T]
    assert first.renew(new).units.weights.tolist() == new.w.unique().tolist()
    assert first.renew(new.drop(columns="w")).units.weights is None
    given = first.renew(new, weights=np.repeat([2.0, 3.0], T)).units.weights
    assert given.tolist() == [2.0, 3.0]
    by_value = study("", None, weights=panel().w.to_numpy())
    assert by_value.renew(new).units.weights is None


def test_levels_of_new_responses_are_those_of_the_fit():
    first = study("", None, "grade ~ t", family="ordinal")
    new = panel().assign(grade="top").iloc[:T]
    assert first.renew(new).outcomes[0].y.tolist() == [2.0] * T
    with pytest.raises(DesignError, match="not among its levels: 'best'"):
        first.renew(new.assign(grade="best"))


def test_levels_that_the_fit_did_not_see_are_refused():
    first = study("risk=~ place", None, "y ~ t + grade")
    new = panel().iloc[: 2 * T]
    with pytest.raises(DesignError, match="not among its levels: 'd'"):
        first.renew(new.assign(place="d"))
    with pytest.raises(DesignError, match="not among its levels: 'best'"):
        first.renew(new.assign(grade="best"), responses=False)


def test_values_beside_the_data_are_given_anew():
    data = panel()
    first = study("family=poisson", data, "count ~ t", exposure=data.hours)
    new = data.iloc[:T]
    with pytest.raises(DesignError, match="fitted with exposure= given as values"):
        first.renew(new)
    found = first.renew(new, exposure=np.full(T, 2.0)).outcomes[0]
    np.testing.assert_allclose(found.offsets[0], np.log(2.0))
    number = study("family=poisson, offset=2", data, "count ~ t").renew(new)
    assert number.outcomes[0].offsets[0].tolist() == [2.0] * T
    with pytest.raises(TypeError, match="renew takes offset, .*not limits"):
        first.renew(new, limits=3)


def test_limits_of_new_rows():
    data = panel().assign(lod=-9.0)
    first = study("lower=lod, upper=30", data)
    new = data.iloc[:T].assign(lod=-7.0)
    found = first.renew(new).outcomes[0]
    assert found.lower.tolist() == [-7.0] * T and found.upper[0] == 30.0
    bare = first.renew(new[["pid", "t"]], responses=False).outcomes[0]
    assert bare.lower is None and bare.upper[0] == 30.0
    by_value = study("", data, lower=data.lod.to_numpy())
    given = by_value.renew(new, lower=np.full(T, -8.0)).outcomes[0]
    assert given.lower.tolist() == [-8.0] * T
    with pytest.raises(DesignError, match="fitted with lower= given as values"):
        by_value.renew(new)


# -- rank ------------------------------------------------------------------------------


def test_columns_that_others_determine_are_dropped():
    with pytest.warns(RankWarning, match=r"I\(2 \* t\) \(y\): linear comb"):
        found = study(formula="y ~ t + I(2 * t) + z")
    (o,) = found.outcomes
    assert o.columns[0] == ("Intercept", "t", "z")
    assert o.patterns[0].shape == (3, 3) and o.X[0].shape == (N * T, 3)
    assert found.renew(panel().iloc[:T]).outcomes[0].X[0].shape == (T, 3)
    with pytest.warns(RankWarning, match=r"I\(x1 \+ 1\) \(risk\)"):
        risky = study("risk=~ x1 + I(x1 + 1)")
    assert risky.units.columns == ("Intercept", "x1")
    assert risky.renew(panel().iloc[:T]).units.W.shape == (1, 2)
    with pytest.warns(RankWarning, match="place"):
        twice = study("common=~ place", formula="y ~ t + I((place == 'b') * 1)")
    assert twice.outcomes[0].columns[0][-1] == "place[T.c]"
    assert twice.outcomes[0].patterns[0][:, -1].tolist() == [9, 9, 9]


def test_years_are_not_mistaken_for_a_constant():
    data = panel().assign(t=lambda d: d.t + 2010)
    assert len(only(data=data, formula="y ~ t + I(t^2)").columns[0]) == 3


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ("", {"pid": None}, "id=pid: there is no such column"),
        ("", {"pid": ("some", np.nan)}, "id=pid is missing in 3 rows"),
        ("", {"pid": np.arange(N * T)}, "every pid has one occasion"),
        ("", {"pid": np.arange(N * T) // (N * T // 8)}, "cannot determine 12 param"),
        ("", {"y": 1.0}, "y is constant"),
        ("", {"y": np.nan}, "no row is complete"),
        ("", {"y": ("some", np.inf)}, "column 'y' is infinite in 3 rows"),
        ("", {"t": ("some", np.inf)}, "column 't' is infinite"),
        ("", {"t": list("abcde") * N}, "column 't' is not numeric"),
        ("", {"y": "text"}, "the response y is categorical"),
        ("lower=0, upper=0", {}, "lower= is not below upper= in 300 rows"),
        ("lower=3", {}, "y is beyond its lower limit in"),
        ("upper=1", {}, "y is beyond its upper limit in"),
        ("lower=place", {}, "lower=place: the column is not numeric"),
        ("lower=nothing", {}, "lower=nothing: no such column"),
        ("lower=z", {"z": ("some", np.nan)}, "lower= is missing in 3 rows"),
        ("weights=z", {}, "sampling weight z varies within pid 7, and in 60 units"),
        ("weights=w", {"w": -1.0}, "weights must be finite and not negative"),
        ("weights=w", {"w": ("unit", 0.0)}, "sampling weight is zero for 1 units"),
        ("weights=w", {"w": ("unit", np.nan)}, "weight w is missing for the units 7"),
        ("weights=w", {"w": ("unit", np.inf)}, "infinite|finite"),
        ("weights=nothing", {}, "sampling weight nothing: there is no such column"),
        ("risk=~ z", {}, "the risk factor z varies within pid 7"),
        ("risk=~ grade", {}, "the risk factor grade varies within pid"),
        ("risk=~ nothing", {}, "the risk factor nothing: there is no such column"),
        ("risk=~ place", {"place": "a"}, "place has one level"),
        ("cluster=z", {}, "the cluster z varies within pid"),
        ("cluster=place", {"place": ("unit", None)}, "place is missing for 1 units"),
        ("exposure=z", {}, "exposure must be positive"),
        ("common=~ nothing", {}, "there is no column 'nothing'"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(options, change, message):
    data = panel()
    for name, value in change.items():
        if value is None:
            data = data.drop(columns=name)
        elif isinstance(value, tuple):
            rows = range(3) if value[0] == "some" else range(T)
            if isinstance(value[1], float):
                data[name] = data[name].astype(float)
            data.loc[rows, name] = value[1]
        else:
            data[name] = value
    with pytest.raises(DesignError, match=message):
        study(options, data)


@pytest.mark.parametrize(
    ("family", "formula", "message"),
    [
        ("poisson", "y ~ t", "poisson: .* responses are negative, the first at row"),
        ("poisson", "hours ~ t", "responses are not whole"),
        ("zip", "zeros ~ t", "the counts zeros are all zero"),
        ("nb", "zeros ~ t", "the counts zeros are all zero"),
        ("beta", "y ~ t", "outside \\(0, 1\\)"),
        ("gamma", "y ~ t", "zero or negative"),
        ("logit", "y ~ t", "outside \\[0, 1\\]"),
        ("logit", "grade ~ t", "needs numbers or exactly two levels"),
        ("gaussian", "cbind(yes, no) ~ t", "needs a binomial family, not gaussian\\."),
        ("ordinal", "y ~ t", "is not categorical"),
        ("ordinal", "zeros ~ t", "has 1 levels"),
        ("betabinomial", "yes ~ t", "number of trials"),
    ],
)
def test_responses_a_family_cannot_have(family, formula, message):
    with pytest.raises(DesignError, match=message):
        study("", panel().assign(zeros=0), formula, family=family)


def test_quasi_families_have_no_likelihood():
    with pytest.raises(ModelError, match="has no likelihood"):
        study(formula="count ~ t", family="quasipoisson")


def test_the_row_of_a_wrong_response_is_that_of_the_data():
    data = panel().sample(frac=1, random_state=0)
    data["count"] = data["count"].astype(float)
    data.iloc[17, data.columns.get_loc("count")] = -1.0
    with pytest.raises(DesignError, match="first at row 17 "):
        study("", data, "count ~ t", family="poisson")


def test_more_groups_than_histories():
    up = panel().assign(y=lambda d: np.where(d.pid % 2, d.t, 1 - d.t))
    with pytest.raises(DesignError, match="3 groups and only 2 distinct histories"):
        study("", up)
    # The same responses at other times are other histories.
    later = up.assign(t=lambda d: d.t + (d.pid % 5 == 0))
    assert study("", later).groups == 3


def test_histories_do_not_depend_on_the_order_of_occasions():
    up = panel().assign(y=lambda d: np.where(d.pid % 2, d.t, 1 - d.t))
    with pytest.raises(DesignError, match="only 2 distinct histories"):
        study("", up.sample(frac=1, random_state=1))


def test_data_without_rows_and_strange_data():
    with pytest.raises(DesignError, match="no rows"):
        study("", panel().iloc[:0])
    with pytest.raises(DesignError, match="data must be"):
        study("", 3)


def test_missing_rows_may_be_refused():
    with pytest.raises(DesignError, match="1 rows have missing values, in y"):
        study("", changed("y", 4, float("nan")), na_action="raise")
    with pytest.raises(DesignError, match="missing values, in x1"):
        data = changed("x1", slice(0, 4), float("nan"))
        study("risk=~ x1", data, na_action="raise")


# -- reference data --------------------------------------------------------------------

_FAMILIES = {"cnorm": dict(family="cnorm", lower="low", upper="high")}


def _cases() -> dict[str, dict]:
    path = _SHARED / "gbtm.json"
    if not path.exists():
        return {}
    cases = json.loads(path.read_text())["cases"]
    # Of one data set and family one case; paquid has several outcomes in one file.
    lab = {n: c for n, c in cases.items() if n.startswith("lab.") and "n_ids" in c}
    found = {(c["data"], c["family"]): n for n, c in lab.items()}
    return {name: cases[name] for name in found.values()}


@pytest.mark.parametrize("name", _cases() or ["none"])
def test_reference_data_have_the_units_and_rows_of_the_reference(name):
    if not _cases():
        pytest.skip("the reference data are only in ../shared, not here")
    case = _cases()[name]
    data = pd.read_csv(_SHARED / "data" / f"gbtm_{case['data']}.csv")
    columns = {"data_hlme": ("Y", "Time"), "paquid": ("MMSE", "age"),
               "to1adj": ("count", "t")}  # fmt: skip
    y, t = columns.get(case["data"], ("y", "t"))
    data = data.assign(low=data[y].min(), high=data[y].max())
    options = _FAMILIES.get(case["family"], dict(family=case["family"]))
    plan = read(
        f"{y} ~ poly({t}, {case['deg']})", groups=2, id="id", zero=None, **options
    )
    found = Study.build(plan, data.sample(frac=1, random_state=0))
    assert found.outcomes[0].n == case["n_obs"]
    assert len(found.units) == case["n_ids"]


# -- speed -----------------------------------------------------------------------------


def test_small_studies_are_read_in_milliseconds():
    rng = np.random.default_rng(0)
    data = pd.DataFrame(
        {
            "pid": np.repeat(np.arange(500), 10),
            "t": np.tile(np.arange(10.0), 500),
            "y": rng.normal(size=5000),
            "x": np.repeat(rng.normal(size=500), 10),
        }
    )
    plan = read("traj(y ~ poly(t, 2), groups=3, id=pid, risk=~ x, orders=(2, 1, 0))")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        Study.build(plan, data)
        times.append(time.perf_counter() - start)
    # About 2 ms; the limit leaves room for a machine that is shared.
    assert min(times) < 0.015
