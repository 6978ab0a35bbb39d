"""What a fit gives back: tables, scores, predictions, maps, files."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import CoordinateError, DesignError, ModelError
from deepstats.models.rtm import PointLayer, grid
from deepstats.models.rtm.choosing import choose as choose_by

from .data import BANDS, DISTANCES, city

plt = pytest.importorskip("matplotlib.pyplot")

TEXT = "rtm(crimes ~ alcohol + metro + trees + wealth, id=id)"
SIZES = {"distances": DISTANCES, "bandwidths": BANDS}


@pytest.fixture(scope="module")
def fitted():
    units, layers = city(1)
    return ds.rtm(TEXT, units, layers, family="poisson", **SIZES).fit()


def test_what_is_true_is_chosen(fitted):
    table = fitted.risk_table()
    assert list(table.index) == ["alcohol_within_200", "metro_within_400"]
    truth = [np.log(3), np.log(2)]
    assert (np.abs(table["coef"] - truth) < 3 * table["std_error"]).all()
    np.testing.assert_allclose(table["rrv"], np.exp(table["coef"]))
    np.testing.assert_allclose(
        np.log(table["conf_low"]), table["coef"] - 1.959964 * table["std_error"]
    )


def test_the_fit_is_the_regression_of_the_chosen_columns(fitted):
    units, layers = city(1)
    near = {
        name: np.hypot(
            *(units[["x", "y"]].to_numpy()[:, None] - layers[name].to_numpy())
            .transpose(2, 0, 1)
        ).min(axis=1)
        for name in ("alcohol", "metro")
    }  # fmt: skip
    frame = units.assign(
        a=(near["alcohol"] <= 200).astype(float), m=(near["metro"] <= 400).astype(float)
    )
    plain = ds.glm("crimes ~ wealth + a + m", frame, family="poisson").fit()
    np.testing.assert_allclose(fitted.params, plain.params, rtol=1e-10)
    np.testing.assert_allclose(fitted.bse, plain.bse, rtol=1e-10)
    assert fitted.llf == pytest.approx(plain.llf) and fitted.bic == pytest.approx(
        plain.bic
    )
    robust = fitted.get_robustcov_results("cluster", groups="zone")
    theirs = plain.get_robustcov_results("cluster", groups=frame["zone"])
    np.testing.assert_allclose(robust.bse, theirs.bse, rtol=1e-10)
    assert (robust.risk_table()["std_error"] != fitted.risk_table()["std_error"]).all()
    again = ds.rtm(TEXT, units, layers, family="poisson", **SIZES).fit("HC1")
    np.testing.assert_allclose(again.bse, plain.get_robustcov_results("HC1").bse)


def test_one_call_and_keywords_and_fit_are_the_same(fitted):
    units, layers = city(1)
    inside = (
        "rtm(crimes ~ alcohol + metro + trees + wealth, id=id, family='poisson', "
        f"distances={DISTANCES}, bandwidths={BANDS})"
    )
    one = ds.rtm(inside, units, layers).fit()
    two = ds.fit(inside, units, layers=layers)
    three = ds.fit(TEXT, units, layers=layers, family="poisson", **SIZES)
    plain = "crimes ~ alcohol + metro + trees + wealth"
    four = ds.rtm(plain, units, layers, id="id", family="poisson", **SIZES).fit()
    for other in (one, two, three, four):
        pd.testing.assert_series_equal(other.params, fitted.params)


def test_scores_multiply_the_risks_that_are_there(fitted):
    scores = fitted.scores()
    rrv = fitted.risk_table()["rrv"]
    expected = np.prod([rrv[n] ** scores[n] for n in rrv.index], axis=0)
    np.testing.assert_allclose(scores["relative_risk"], expected)
    assert scores["relative_risk"].min() == 1.0
    assert scores.index.tolist() == list(range(1000, 1900))
    # With an intercept, Poisson fits add up.
    assert scores["expected"].sum() == pytest.approx(scores["observed"].sum())
    pd.testing.assert_series_equal(
        fitted.predict(which="relative_risk"), scores["relative_risk"]
    )


def test_predictions_at_the_same_units_are_the_fitted_values(fitted):
    units, layers = city(1)
    pd.testing.assert_series_equal(fitted.predict(units), fitted.predict())
    pd.testing.assert_series_equal(
        fitted.predict(layers=layers), fitted.predict(), check_exact=False
    )
    for which in ("mean", "relative_risk"):
        np.testing.assert_allclose(
            fitted.predict(units.iloc[::-1], which=which)[::-1],
            fitted.predict(which=which),
        )


def test_new_units_and_new_layers(fitted):
    units, layers = city(2, 200)
    relative = fitted.predict(units, layers, which="relative_risk")
    near = {
        name: np.hypot(
            *(units[["x", "y"]].to_numpy()[:, None] - layers[name].to_numpy())
            .transpose(2, 0, 1)
        ).min(axis=1)
        for name in ("alcohol", "metro")
    }  # fmt: skip
    rrv = fitted.risk_table()["rrv"]
    expected = rrv["alcohol_within_200"] ** (near["alcohol"] <= 200)
    expected = expected * rrv["metro_within_400"] ** (near["metro"] <= 400)
    np.testing.assert_allclose(relative, expected)
    mean = np.exp(
        fitted.params["Intercept"] + fitted.params["wealth"] * units["wealth"]
    )
    np.testing.assert_allclose(fitted.predict(units, layers), mean * expected)
    one = fitted.predict(units, {"alcohol": layers["alcohol"]}, which="relative_risk")
    assert (one != relative).any()  # the metro stays where it was


def test_densities_are_high_where_they_were_in_the_fit():
    units, layers = city(1)
    results = ds.rtm(
        "rtm(crimes ~ alcohol)", units, {"alcohol": layers["alcohol"]},
        bandwidths=(300.0,), family="poisson",
    ).fit()  # fmt: skip
    few = units.iloc[:30]
    pd.testing.assert_series_equal(
        results.predict(few, which="relative_risk"),
        results.predict(which="relative_risk").iloc[:30],
    )


def test_exposure_goes_with_new_units():
    units, layers = city(1)
    options = {"family": "poisson", "distances": DISTANCES}
    layers = {"alcohol": layers["alcohol"]}
    by_name = ds.rtm("rtm(crimes ~ alcohol, exposure=area)", units, layers, **options)
    by_values = ds.rtm(
        "rtm(crimes ~ alcohol)", units, layers, exposure=units["area"], **options
    )
    named, valued = by_name.fit(), by_values.fit()
    np.testing.assert_allclose(named.params, valued.params)
    twice = units.assign(area=2 * units["area"])
    np.testing.assert_allclose(named.predict(twice), 2 * named.predict())
    np.testing.assert_allclose(
        valued.predict(units, exposure=twice["area"]), 2 * named.predict()
    )
    valued.split_sample()  # takes its part of the values


def test_candidates_families_and_models(fitted):
    units, layers = city(1)
    table = fitted.candidates()
    assert len(table) == 3 * 6 and (table["left_out"] == "").all()
    chosen = table.index[table["chosen"]]
    assert set(chosen) == {"alcohol_within_200", "metro_within_400"}
    one = table.loc["alcohol_within_200"]
    column = fitted.column(fitted.rules[0])
    assert one["share"] == column.mean() and one["crimes"] == units["crimes"][
        column
    ].sum()  # fmt: skip
    frame = units.assign(c=column.astype(float))
    alone = ds.glm("crimes ~ wealth + c", frame, family="poisson").fit()
    assert one["alone"] == pytest.approx(alone.bic, abs=1e-6)
    assert one["rrv_alone"] == pytest.approx(np.exp(alone.params["c"]))
    assert one["best"] == pytest.approx(fitted.bic, abs=1e-6)
    models = fitted.models(5)
    assert models["bic"].is_monotonic_increasing and models["weight"].sum() <= 1
    assert models.loc[0, "bic"] == pytest.approx(fitted.bic, abs=1e-6)
    assert models.loc[0, ["alcohol", "metro", "trees"]].tolist() == [*chosen, ""]
    every = ds.rtm(TEXT, units, layers, **SIZES).fit()
    families = every.families()
    assert list(families.index) == ["poisson", "nb1", "nb2"]
    assert families["bic"].idxmin() == every.family
    assert families["difference"].min() == 0


def test_ready_made_columns_are_candidates():
    """The seed's input: sets of dummy columns."""
    units, _ = city(1)
    rng = np.random.default_rng(0)
    true = rng.random(900) < 0.3
    units["crimes"] = rng.poisson(np.where(true, 3, 1))
    units["near"], units["far"] = true.astype(int), rng.random(900) < 0.3
    results = ds.rtm(
        "rtm(crimes ~ bars)", units, {"bars": ["far", "near"]}, family="poisson"
    ).fit()
    assert [r.name for r in results.rules] == ["near"]
    assert results.predict(units.iloc[:5]).to_numpy() == pytest.approx(
        results.predict().iloc[:5].to_numpy()
    )
    assert "bars: near" in str(results.summary())
    with pytest.raises(DesignError, match="no column 'near'"):
        results.predict(units.drop(columns="near"))


def test_crimes_that_are_points_are_counted():
    units, layers = city(1, 400)
    rng = np.random.default_rng(3)
    cells = grid(units, 500.0)
    crimes = np.concatenate([
        layers["metro"].to_numpy().repeat(30, 0) + rng.normal(0, 60, (360, 2)),
        rng.uniform(400_000, 405_000, (300, 2)),
    ])  # fmt: skip
    results = ds.rtm(
        "rtm(crimes ~ metro, id=id)", cells,
        {"crimes": crimes, "metro": layers["metro"]}, distances=(250, 500),
    ).fit()  # fmt: skip
    assert results.rules[0].factor == "metro"
    assert results.scores()["observed"].sum() + results.model.uncounted == 660
    page = str(results.summary())
    assert ("inside no unit" in page) == (results.model.uncounted > 0)
    same = results.evaluate(pd.DataFrame(crimes, columns=["x", "y"]))
    own = results.evaluate()
    np.testing.assert_allclose(same["pai"], own["pai"])
    assert "rri" in same and "rri" not in own


def test_evaluate_and_conjunctive_add_up(fitted):
    rng = np.random.default_rng(1)
    new = rng.poisson(fitted.fittedvalues)
    table = fitted.conjunctive(new)
    assert table["units"].sum() == 900 and table["new"].sum() == new.sum()
    assert table["relative_risk"].is_monotonic_decreasing
    np.testing.assert_allclose(
        table["expected"].sum(), fitted.scores()["observed"].sum()
    )
    found = fitted.evaluate(new, shares=(0.1, 1.0), area="area")
    assert found["pai"].iloc[0] > 1.3 and found["pai"].iloc[1] == pytest.approx(1)
    assert (found["pei"] <= 1 + 1e-12).all()


def test_missing_rows_are_left_out_of_everything():
    units, layers = city(1)
    units.loc[[3, 500], "wealth"] = np.nan
    results = ds.rtm(TEXT, units, layers, family="poisson", **SIZES).fit()
    whole = ds.rtm(TEXT, units.drop([3, 500]), layers, family="poisson", **SIZES).fit()
    np.testing.assert_allclose(results.params, whole.params, rtol=1e-10)
    assert results.nobs == len(results.scores()) == len(results.predict()) == 898
    assert 1003 not in results.scores().index
    assert results.evaluate("crimes")["crimes"].iloc[-1] > 0
    assert "2 rows with missing" in str(results.summary())
    assert results.predict(units).isna().sum() == 2
    with pytest.raises(DesignError, match="missing"):
        ds.rtm(TEXT, units, layers, na_action="raise", **SIZES)


def test_split_sample_estimates_on_what_the_choice_has_not_seen(fitted):
    split = fitted.split_sample(seed=4)
    assert split.chosen_on + split.estimated_on == 900
    assert {r.factor for r in split.rules} >= {"alcohol"}
    assert split.final.nobs == split.estimated_on == 450
    larger = split.table["std_error"] > fitted.risk_table()["std_error"]
    assert larger.reindex(split.table.index)[larger.index[0]]
    zones = fitted.split_sample(groups="zone")
    assert zones.estimated_on == 450  # 15 of 30 zones of 30 units
    assert "chosen on" in repr(zones)


def test_bootstrap_counts_choices(fitted):
    found = fitted.bootstrap(30, seed=1)
    assert found.draws.shape == found.choices.shape == (30, 3)
    factors = found.factors
    assert factors.loc["alcohol", "frequency"] == 1.0
    assert factors.loc["trees", "frequency"] < 0.7
    by_factor = found.candidates.groupby("factor")["frequency"].sum()
    np.testing.assert_allclose(by_factor[factors.index], factors["frequency"])
    np.testing.assert_allclose(factors["std_error"], found.draws.std(axis=0, ddof=1))
    ratio = factors.loc["alcohol", "std_error"] / fitted.bse["alcohol_within_200"]
    assert 0.6 < ratio < 2.5
    again = fitted.bootstrap(30, seed=1)
    np.testing.assert_array_equal(found.draws, again.draws)
    zones = fitted.bootstrap(10, groups="zone")
    assert (zones.draws != found.draws[:10]).any()


def test_a_replicate_of_the_bootstrap_is_a_fit_of_repeated_units(fitted):
    """The first draw of the generator, fitted from scratch by the model itself."""
    drawn = np.random.default_rng(5).integers(900, size=900)
    found = fitted.bootstrap(2, seed=5)
    terrain = fitted.model.terrain.subset(drawn)
    choice = fitted.model.choose(terrain, ("poisson",))["poisson"]
    np.testing.assert_array_equal(found.choices[0], choice.best)
    np.testing.assert_allclose(
        found.draws[0], choice.scored.slopes[choice.scored.best], atol=1e-6
    )


@pytest.mark.parametrize("choose", ["stepwise", "dropout"])
def test_the_bootstrap_repeats_the_whole_choice(choose):
    """Screen and dropout are of the units drawn, with the steps of the fit."""
    units, layers = city(2, 300)
    built = ds.rtm(
        "rtm(crimes ~ alcohol + metro, distances=(200, 400))", units,
        {name: layers[name] for name in ("alcohol", "metro")},
        choose=choose, family="poisson",
    )  # fmt: skip
    found = built.fit(steps=150).bootstrap(2, seed=5)
    rng = np.random.default_rng(5)
    for r in range(2):
        w = np.bincount(rng.integers(300, size=300), minlength=300).astype(float)
        choice = choose_by(
            built.terrain, "poisson", choose, "bic", steps=150, seed=5 + r, weights=w
        )
        np.testing.assert_array_equal(found.choices[r], choice.best)
        effects = choice.scored.slopes[choice.scored.best]
        np.testing.assert_allclose(found.draws[r], effects)


def test_names_that_are_no_identifiers():
    """Half a block may be 12.5 metres; layers may have names of two words."""
    units, layers = city(1, 500)
    named = {"wine bars": layers["alcohol"], "metro": layers["metro"]}
    results = ds.rtm(
        "rtm(crimes ~ `wine bars` + metro, distances=(200, 412.5))", units, named,
        family="poisson",
    ).fit()  # fmt: skip
    table = results.risk_table()
    assert set(table.index) == {"wine bars_within_200", "metro_within_412.5"}
    effects = results.params.drop("Intercept").to_numpy()
    np.testing.assert_allclose(np.sort(table["coef"]), np.sort(effects))
    both = np.exp(table["coef"].sum())
    assert results.scores()["relative_risk"].max() == pytest.approx(both)
    page = str(results.summary())
    assert "wine bars" in page and "412.5" in page and "`" not in page.split("\n", 1)[1]
    np.testing.assert_allclose(results.predict(units), results.fittedvalues)
    assert results.split_sample().table.shape == table.shape
    assert "wine bars" in results.bootstrap(2).factors.index


def test_the_page(fitted):
    page = str(fitted.summary())
    for text in (
        "Risk terrain model", "Chosen by   exhaustive, BIC",
        "wealth", "Not chosen: trees", "split_sample()", "Poisson (log)",
    ):  # fmt: skip
        assert text in page, page
    assert re.search(r"^alcohol +within +200 +1\.1", page, re.M)
    assert max(map(len, page.splitlines()[2:])) <= 78
    assert "<table" in fitted._repr_html_() and "tabular" in fitted.summary().as_latex()
    assert repr(fitted).startswith("<RiskTerrainResults")
    assert fitted.glance().loc[0, "factors"] == 2
    assert set(fitted.tidy()["term"]) == set(fitted.params.index)


def test_geojson_is_what_scores_say(fitted, tmp_path):
    path = tmp_path / "risk.geojson"
    fitted.to_geojson(path, crs="EPSG:26985")
    read = json.loads(path.read_text())
    assert read["crs"]["properties"]["name"] == "EPSG:26985"
    scores = fitted.scores()
    assert len(read["features"]) == 900
    first = read["features"][7]
    assert first["geometry"] == {
        "type": "Point", "coordinates": scores[["x", "y"]].iloc[7].tolist()
    }  # fmt: skip
    facts = first["properties"]
    assert facts.pop("id") == 1007
    assert facts == scores.drop(columns=["x", "y"]).iloc[7].to_dict()


def cells_fit():
    units, layers = city(1)
    cells = grid(units, 250.0)
    layers = {"crimes": units.loc[units["crimes"] > 1, ["x", "y"]], **layers}
    return ds.rtm(
        "rtm(crimes ~ alcohol + metro)", cells,
        {k: layers[k] for k in ("crimes", "alcohol", "metro")}, distances=(250, 500),
        family="poisson",
    ).fit()  # fmt: skip


def test_maps_colour_units_by_risk(fitted):
    ax = fitted.plot_map()
    points = ax.collections[0]
    risk = fitted.scores()["relative_risk"].to_numpy()
    assert len(points.get_offsets()) == 900
    np.testing.assert_allclose(points.get_array(), np.sort(risk))
    assert points.get_cmap().name == "cividis"
    own = {
        tuple(p): v
        for p, v in zip(points.get_offsets(), points.get_array(), strict=True)
    }
    where = fitted.model.units.xy
    assert all(own[tuple(where[i])] == risk[i] for i in range(900))
    results = cells_fit()
    _, axes = plt.subplots()
    assert results.plot_map("expected", axes) is axes
    assert len(axes.collections[0].get_paths()) == len(results.scores())
    geometry = results.to_geojson()["features"][0]["geometry"]
    assert geometry["type"] == "Polygon"
    curve = fitted.plot_hits().lines[-1]
    assert curve.get_ydata()[-1] == pytest.approx(1)
    with pytest.raises(ValueError, match="missing"):
        fitted.plot_map("nonsense")
    with pytest.raises(ValueError, match="900 units"):
        fitted.plot_map([1.0, 2.0])
    plt.close("all")


def test_streets_are_drawn_as_lines():
    units, layers = city(1, 100)
    lines = [
        {"type": "LineString", "coordinates": [[x - 30, y], [x + 30, y]]}
        for x, y in units[["x", "y"]].to_numpy()
    ]
    units = units.drop(columns=["x", "y"]).assign(geometry=lines)
    results = ds.rtm(
        "rtm(crimes ~ alcohol)", units, {"alcohol": layers["alcohol"]},
        distances=(200,), family="poisson",
    ).fit()  # fmt: skip
    drawn = results.plot_map().collections[0]
    assert type(drawn).__name__ == "LineCollection" and len(drawn.get_paths()) == 100
    plt.close("all")


def test_a_map_cannot_be_saved_but_its_regression_can(fitted, tmp_path):
    with pytest.raises(ModelError, match=r"results\.final\.save"):
        fitted.save(tmp_path / "map.ds")
    path = fitted.final.save(tmp_path / "fit.ds")
    pd.testing.assert_series_equal(ds.load(path).params, fitted.params)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: r.predict(which="nonsense"), "'mean' or 'relative_risk'"),
        (lambda r: r.predict(exposure=[1]), "go with new units"),
        (lambda r: r.predict(layers={"bars": [[1, 2]]}), "no factor of the model"),
        (lambda r: r.predict(layers={"metro": pd.DataFrame({"x": [], "y": []})}),
         "is empty"),
        (lambda r: r.evaluate(shares=(0, 0.1)), "between 0 and 1"),
        (lambda r: r.evaluate("nonsense"), "no column"),
        (lambda r: r.evaluate(np.zeros(900)), "not all of them zero"),
        (lambda r: r.evaluate([1, 2]), "2 values"),
        (lambda r: r.evaluate(area=np.zeros(900)), "above zero"),
        (lambda r: r.evaluate("block"), "not made of numbers"),
        (lambda r: r.split_sample(1.0), "leaves no units"),
        (lambda r: r.bootstrap(1), "at least 2"),
        (lambda r: r.bootstrap(5, alpha=2), "between 0 and 1"),
        (lambda r: r.bootstrap(5, groups="nonsense"), "nonsense"),
    ],
)  # fmt: skip
def test_questions_that_have_no_answer(fitted, call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted)


def test_point_layers_have_columns_and_weights_of_their_own():
    units, layers = city(1)
    bars = layers["alcohol"].rename(columns={"x": "east", "y": "north"})
    bars["seats"] = np.where(np.arange(40) < 20, 0, 1.5)
    layer = PointLayer(bars, "east", "north", "seats", distances=(200,), bandwidths=())
    built = ds.rtm("rtm(crimes ~ alcohol, block=100)", units, {"alcohol": layer})
    half = layers["alcohol"].iloc[20:]
    other = ds.rtm("crimes ~ alcohol", units, {"alcohol": half}, distances=(200,))
    np.testing.assert_array_equal(built.terrain.columns, other.terrain.columns)
    assert built.terrain.columns.shape == (900, 1)


def test_blocks_go_by_halves():
    units, layers = city(1)
    plan = ds.rtm("crimes ~ metro", units, {"metro": layers["metro"]}, block=200).plan
    assert plan.distances == plan.bandwidths == tuple(100.0 * k for k in range(1, 9))
    text = "rtm(crimes ~ metro, block=200, blocks=2, bandwidths=())"
    plan = ds.rtm(text, units, {"metro": layers["metro"]}).plan
    assert plan.distances == (100, 200, 300, 400) and plan.bandwidths == ()


def test_errors_of_coordinates_are_errors_of_the_design():
    assert issubclass(CoordinateError, DesignError)
