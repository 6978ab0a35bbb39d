"""From frames to designs: kinds of frames, missing rows, levels, new data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats import coding
from deepstats.compute import Compute
from deepstats.design import Design
from deepstats.errors import DesignError, RankWarning

RHS = "x + z*a + C(c) + log(w)"


@pytest.fixture
def wanted(small):
    design = Design.build(f"y ~ {RHS}", small)
    return design.X.names, design.X.to_dense().numpy(), np.asarray(design.y)


def same(design, wanted) -> None:
    names, X, y = wanted
    assert design.X.names == names
    np.testing.assert_allclose(design.X.to_dense(), X, rtol=1e-15)
    np.testing.assert_allclose(design.y, y, rtol=1e-15)


KINDS = {
    "pandas": lambda d: d,
    "nullable": lambda d: d.convert_dtypes(),
    "categorical": lambda d: d.assign(a=d["a"].astype("category")),
    "object": lambda d: d.assign(a=d["a"].astype(object)),
    "float32 index": lambda d: d.set_index(np.linspace(0, 1, len(d))),
    "mapping of arrays": lambda d: {c: d[c].to_numpy() for c in d},
    "mapping of lists": lambda d: {c: d[c].tolist() for c in d},
    "mapping of series": lambda d: {c: d[c] for c in d},
    "reversed view": lambda d: d.iloc[::-1].iloc[::-1],
    "fortran": lambda d: d.copy(),
    "extra columns": lambda d: d.assign(unused=[object()] * len(d)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_frames(kind, small, wanted):
    same(Design.build(f"y ~ {RHS}", KINDS[kind](small)), wanted)


def test_polars(small, wanted):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(small.to_dict("list"))
    same(Design.build(f"y ~ {RHS}", frame), wanted)
    frame = frame.with_columns(polars.col("a").cast(polars.Categorical))
    same(Design.build(f"y ~ {RHS}", frame), wanted)
    enum = frame.with_columns(polars.col("a").cast(polars.Enum(["w", "u", "v"])))
    assert Design.build("y ~ a", enum).X.names == ("Intercept", "a[T.u]", "a[T.v]")


def test_pyarrow(small, wanted):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(small.to_dict("list"))
    same(Design.build(f"y ~ {RHS}", table), wanted)


def test_pyarrow_dtypes_of_pandas(small, wanted):
    pytest.importorskip("pyarrow")
    same(
        Design.build(f"y ~ {RHS}", small.convert_dtypes(dtype_backend="pyarrow")),
        wanted,
    )


def test_polars_with_nulls(small):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(small.to_dict("list")).with_columns(
        polars.when(polars.col("c") == 2)
        .then(None)
        .otherwise(polars.col("x"))
        .alias("x")
    )
    design = Design.build("y ~ x + a", frame)
    keep = small["c"] != 2
    assert design.n == keep.sum()
    np.testing.assert_allclose(design.X.to_dense()[:, 1], small.loc[keep, "x"])


@pytest.mark.parametrize("dtype", ("int8", "int64", "uint8", "bool", "float32"))
def test_dtypes_of_numbers(dtype, small):
    values = (small["c"] > 2).astype(dtype)
    found = ds.OLS("y ~ x + v", small.assign(v=values)).fit().params.to_numpy()
    wanted = ds.OLS("y ~ x + v", small.assign(v=values.astype(float))).fit().params
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_missing_rows_are_dropped_jointly(small):
    holes = small.convert_dtypes()
    holes.loc[3, "y"] = pd.NA
    holes.loc[[3, 7], "x"] = pd.NA
    holes.loc[11, "a"] = pd.NA
    weights = np.ones(len(small))
    weights[20] = np.nan
    offset = np.zeros(len(small))
    offset[21] = np.nan
    design = Design.build("y ~ x + a", holes, weights=weights, offset=offset)
    gone = [3, 7, 11, 20, 21]
    assert design.n_missing == 5
    assert design.rows.tolist() == [i for i in range(120) if i not in gone]
    assert (
        len(design.y) == len(design.weights) == len(design.offset) == design.X.n == 115
    )
    assert design.index.tolist() == design.rows.tolist()


def test_level_lost_with_missing_rows(small):
    """A level that only incomplete rows have gets no column."""
    data = small.copy()
    data.loc[data["a"] == "w", "x"] = np.nan
    assert Design.build("y ~ x + a", data).X.names == ("Intercept", "x", "a[T.v]")


def test_category_that_does_not_occur(small):
    a = pd.Categorical(small["a"], ["u", "q", "v", "w"])
    names = Design.build("y ~ a", small.assign(a=a)).X.names
    assert "a[T.q]" not in names


def test_order_of_categories(small):
    a = pd.Categorical(small["a"], ["w", "u", "v"])
    design = Design.build("y ~ a", small.assign(a=a))
    assert design.X.names == ("Intercept", "a[T.u]", "a[T.v]")


# -- factors held as codes -------------------------------------------------------------

WIDE = (
    "C(lev)",
    "0 + C(lev)",
    "x + C(lev)",
    "x*C(lev)",
    "0 + C(lev):x",
    "a:C(lev)",
    "a*C(lev)",
    "C(lev, contr.sum)",
    "C(lev, contr.sum)*x",
    "C(lev) + C(col)",
    "C(lev):x:z + a",
)


@pytest.mark.parametrize("rhs", WIDE)
def test_codes_equal_dense_columns(rhs, small, monkeypatch):
    i = np.arange(3 * len(small))
    data = pd.concat([small] * 3, ignore_index=True).assign(lev=i * 7 % 19, col=i % 18)
    held = Design.build(f"y ~ {rhs}", data).X
    monkeypatch.setattr(coding, "DENSE_LEVELS", 10**6)
    dense = Design.build(f"y ~ {rhs}", data).X
    assert held.coded
    assert not dense.coded
    assert held.names == dense.names
    np.testing.assert_allclose(held.to_dense(), dense.to_dense(), rtol=1e-14)


@pytest.mark.parametrize(
    "kind", ("nonrobust", "HC0", "HC1", "HC2", "HC3", "cluster", "HAC")
)
@pytest.mark.parametrize(
    "rhs", ("x + C(lev)", "x*C(lev)", "C(lev, contr.sum) + C(col)")
)
def test_fits_with_codes_equal_dense_fits(rhs, kind, small, monkeypatch):
    rng = np.random.default_rng(2)
    i = np.arange(5 * len(small))
    data = pd.concat([small] * 5, ignore_index=True)
    data = data.assign(lev=i * 7 % 19, col=rng.integers(0, 18, len(i)))
    data["y"] += rng.normal(size=len(i))
    kwds = {"cluster": {"groups": "g"}, "HAC": {"maxlags": 3}}.get(kind)
    fits = []
    for limit in (16, 10**6):
        monkeypatch.setattr(coding, "DENSE_LEVELS", limit)
        for model in (
            ds.OLS(f"y ~ {rhs}", data),
            ds.GLM(f"count ~ {rhs}", data, family="poisson"),
        ):
            assert bool(model.design.X.coded) == (limit == 16)
            fits.append(model.fit(kind, kwds))
    for coded, dense in ((fits[0], fits[2]), (fits[1], fits[3])):
        np.testing.assert_allclose(coded.params, dense.params, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(coded.bse, dense.bse, rtol=1e-8)
        assert coded.llf == pytest.approx(dense.llf, rel=1e-12)


def test_too_many_columns_are_refused(small):
    data = small.assign(lev=np.arange(len(small)))
    with pytest.raises(MemoryError, match=r"120 columns.*absorb it"):
        Design.build("y ~ C(lev)", data, compute=Compute("cpu", memory="100KB"))


# -- new data --------------------------------------------------------------------------

TEXTS = ("x + z", "a*x", "C(c)", "poly(x, 3)", "scale(x) + center(z)", "bs(x, df=5):a",
         "cr(z, df=4)", "I(x**2) + I(x**3):a", "C(a, contr.helmert)")  # fmt: skip


@pytest.mark.parametrize("rhs", TEXTS)
def test_rebuild(rhs, small):
    design = Design.build(f"y ~ {rhs}", small)
    rows = [8, 3, 99]
    again = design.spec.rebuild(small.iloc[rows].drop(columns="y"))
    assert again.X.names == design.X.names
    np.testing.assert_allclose(
        again.X.to_dense(), design.X.to_dense()[rows], rtol=1e-13
    )


def test_rebuild_leaves_holes_out(small):
    design = Design.build("y ~ x + a", small)
    new = small.iloc[:5].copy()
    new.loc[1, "x"] = np.nan
    again = design.spec.rebuild(new)
    assert again.rows.tolist() == [0, 2, 3, 4]
    assert again.n_given == 5


def test_rebuild_with_aliased_columns(small):
    data = small.assign(same=small["x"] * 2)
    with pytest.warns(RankWarning):
        result = ds.OLS("y ~ x + same + z", data).fit()
    again = result.model.design.spec.rebuild(data.iloc[:4])
    assert again.X.names == ("Intercept", "x", "z")


def test_powers_are_products(small):
    """Whole powers are kept as products: exact where there is more than float64."""
    X = Design.build("y ~ I(x**5)", small).X
    assert len(X.dense[1].numerics) == 5
    exact = small["x"].to_numpy().astype(np.longdouble) ** 5
    np.testing.assert_allclose(
        X.extended(0, 120)[:, 1].astype(np.longdouble), exact, rtol=1e-17
    )
    np.testing.assert_allclose(X.to_dense()[:, 1], small["x"] ** 5, rtol=1e-14)


@pytest.mark.parametrize("text", ("I(x**2)", "I(x**3):a", "I(x**2)*z", "I(c**4)"))
def test_powers_equal_numpys(text, small):
    X = Design.build(f"y ~ {text}", small).X
    other = text.replace("I(x**2)", "q").replace("I(x**3)", "q").replace("I(c**4)", "q")
    power = {"I(x**2)": small["x"] ** 2, "I(x**3):a": small["x"] ** 3}
    power = power | {"I(x**2)*z": small["x"] ** 2, "I(c**4)": small["c"] ** 4.0}
    Z = Design.build(f"y ~ {other}", small.assign(q=power[text])).X
    np.testing.assert_allclose(X.to_dense(), Z.to_dense(), rtol=1e-14)


def test_columns_are_views_of_the_data(small):
    """Numeric columns are not copied."""
    frame = pd.DataFrame({"y": small["y"].to_numpy(), "x": small["x"].to_numpy()})
    X = Design.build("y ~ x", frame).X
    assert np.shares_memory(X.dense[1].numerics[0].array, frame["x"].to_numpy())


def test_groupings(small):
    design = Design.build("y ~ x", small)
    by_name = design.groupings("a")[0]
    assert by_name.levels == ("u", "v", "w")
    by_value = design.groupings(small["a"])[0]
    np.testing.assert_array_equal(by_name.codes, by_value.codes)
    for given in (["a", "b"], small[["a", "b"]], small[["a", "b"]].to_numpy()):
        assert [len(g) for g in design.groupings(given)] == [3, 2]


def test_groupings_after_rows_were_dropped(small):
    data = small.copy()
    data.loc[[0, 5], "x"] = np.nan
    design = Design.build("y ~ x", data)
    for given in ("g", data["g"], data["g"].drop([0, 5]).to_numpy()):
        np.testing.assert_array_equal(
            design.groupings(given)[0].codes, data["g"].drop([0, 5])
        )


def test_random_terms(small):
    design = Design.build("y ~ x + (1 + x | g) + (1 | a:b)", small)
    first, second = design.random
    assert first.Z.names == ("Intercept", "x")
    assert len(first.grouping) == 15
    assert second.grouping.name == "a:b"
    assert len(second.grouping) == 6
    levels = np.array(second.grouping.levels)[second.grouping.codes]
    np.testing.assert_array_equal(levels, small["a"] + ":" + small["b"])


def test_grouping_with_one_level(small):
    with pytest.raises(DesignError, match="one level"):
        Design.build("y ~ x + (1 | k)", small.assign(k=1))


def test_context(small):
    design = Design.build("y ~ half(x)", small, context={"half": lambda v: v / 2})
    np.testing.assert_allclose(design.X.to_dense()[:, 1], small["x"] / 2)
    again = design.spec.rebuild(small.iloc[:3])
    np.testing.assert_allclose(again.X.to_dense()[:, 1], small["x"].iloc[:3] / 2)


def test_names_in_backticks(small):
    data = small.rename(columns={"x": "my x", "a": "the a"})
    design = Design.build("y ~ `my x` + `the a`", data)
    wanted = Design.build("y ~ x + a", small)
    np.testing.assert_allclose(design.X.to_dense(), wanted.X.to_dense())


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, 1, 2, 3, 1]),
        np.array([5, -2, 5, 0, -2]),
        np.array([200, 100, 201, 200], dtype=np.uint8),
        np.array([10**12, 5, 10**12, 7]),
    ],
    ids=["dense", "gaps", "uint8", "wide"],
)
def test_integer_clusters_are_coded_as_any_other(values):
    frame = pd.DataFrame({"y": np.arange(len(values)) ** 2.0, "g": values})
    grouping = Design.build("y ~ 1", frame).grouping("g")
    levels, codes = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(grouping.codes, codes)
    np.testing.assert_array_equal(np.array(grouping.levels), levels)
