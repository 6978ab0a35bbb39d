"""What cannot be mapped: errors that say what was given and what to do."""

import warnings

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import (
    CoordinateError,
    DesignError,
    FormulaError,
    ModelError,
    SelectionWarning,
)
from deepstats.models.rtm import PointLayer

from .data import city

TEXT = "rtm(crimes ~ alcohol, distances=(200,))"


@pytest.fixture
def scene():
    units, layers = city(1, 300)
    return units, {"alcohol": layers["alcohol"]}


def degrees(frame):
    return frame.assign(
        x=-77 + (frame["x"] - 4e5) / 86_000, y=38.9 + (frame["y"] - 4e5) / 111_000
    )


def test_layers_in_degrees(scene):
    units, layers = scene
    with pytest.raises(CoordinateError, match=r"layer 'alcohol' look like degrees"):
        ds.rtm(TEXT, units, {"alcohol": degrees(layers["alcohol"])})


def test_units_in_degrees(scene):
    units, layers = scene
    with pytest.raises(CoordinateError, match=r"the units look like degrees"):
        ds.rtm(TEXT, degrees(units), layers)


def test_kilometres_are_no_degrees_if_told_so(scene):
    units, layers = scene
    places = {"alcohol": layers["alcohol"]}
    metres = ds.rtm(TEXT, units, places, family="poisson").fit()
    near = {k: f.assign(x=(f["x"] - 4e5) / 1000, y=(f["y"] - 4e5) / 1000)
            for k, f in {"units": units, **places}.items()}  # fmt: skip
    text = "rtm(crimes ~ alcohol, distances=(0.2,), projected=True, family='poisson')"
    kilometres = ds.rtm(text, near["units"], {"alcohol": near["alcohol"]}).fit()
    np.testing.assert_allclose(kilometres.params, metres.params)


def test_a_layer_in_another_projection(scene):
    units, layers = scene
    feet = layers["alcohol"] * 3.28084
    with pytest.raises(CoordinateError, match="same projection"):
        ds.rtm(TEXT, units, {"alcohol": feet})


@pytest.mark.parametrize(
    "layer",
    [
        pd.DataFrame({"x": [], "y": []}),
        np.empty((0, 2)),
        PointLayer({"x": [4e5], "y": [4e5], "w": [0.0]}, weight="w"),
    ],
)
def test_an_empty_layer(scene, layer):
    with pytest.raises(DesignError, match=r"layer 'alcohol' is empty"):
        ds.rtm(TEXT, scene[0], {"alcohol": layer})


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda u: u.iloc[:1], DesignError, "there is one unit"),
        (lambda u: u.iloc[:0], DesignError, "there are no units"),
        (lambda u: u.assign(crimes=0), DesignError, "crimes is zero at all 300 units"),
        (lambda u: u.assign(crimes=-1), ValueError, "negative"),
        (lambda u: u.assign(crimes=u["crimes"] + 0.5), ValueError, "count"),
        (lambda u: u.assign(crimes="many"), DesignError, "many"),
        (lambda u: u.assign(id=7), DesignError, "units twice: 7"),
        (lambda u: u.assign(x="east"), CoordinateError, "column x are not numbers"),
        (lambda u: u.assign(y=np.nan), CoordinateError, "300 of 300 places without"),
        (lambda u: u.drop(columns="x"), DesignError, "no columns 'x' and 'y'"),
        (lambda u: u.drop(columns="id"), DesignError, "id='id' is no column"),
        (lambda u: u.drop(columns="crimes"), DesignError, "crimes"),
        (lambda u: u.assign(alcohol_within_200=1), DesignError, "that of two columns"),
    ],
)
def test_units_that_cannot_be_used(scene, change, error, message):
    units, layers = scene
    with pytest.raises(error, match=message):
        ds.rtm("rtm(crimes ~ alcohol, distances=(200,), id=id)", change(units), layers)


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (pd.DataFrame({"x": ["a"], "y": [1.0]}), CoordinateError, "not numbers"),
        (pd.DataFrame({"x": [4e5], "y": [np.inf]}), CoordinateError, "1 of 1 places"),
        (pd.DataFrame({"east": [4e5], "y": [4e5]}), DesignError, "no column 'x'"),
        (np.zeros((3, 3)), DesignError, r"shape \(3, 3\)"),
        (PointLayer({"x": [4e5], "y": [4e5]}, weight="w"), DesignError, "column 'w'"),
        (PointLayer({"x": [4e5], "y": [4e5], "w": [-1.0]}, weight="w"), DesignError,
         "negative in 1 rows"),
        (PointLayer({"x": [4e5], "y": [4e5], "w": ["a"]}, weight="w"), DesignError,
         "are not numbers"),
        (PointLayer([[4e5, 4e5]], weight="w"), DesignError, "this is an array"),
        (PointLayer([[4e5, 4e5]], distances=()), DesignError, "no distances and no"),
        (["nowhere"], DesignError, "no column 'nowhere'"),
        (["wealth"], DesignError, "yes .1. or no .0."),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_used(scene, layer, error, message):
    with pytest.raises(error, match=message):
        ds.rtm(TEXT, scene[0], {"alcohol": layer})


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("rtm(crimes ~ wealth)", {}, "names none of the layers"),
        ("rtm(crimes ~ alcohol:wealth)", {}, "by its name alone"),
        ("rtm(crimes ~ 0 + alcohol)", {}, "has an intercept"),
        ("rtm(crimes ~ alcohol + (1 | zone))", {}, "no random effects"),
        ("rtm(crimes ~ alcohol | zone)", {}, "nothing after"),
        ("rtm(~ alcohol)", {}, "needs one response"),
        ("rtm(crimes ~ alcohol, crimes ~ wealth)", {}, "one formula"),
        ("traj(crimes ~ alcohol, groups=2)", {}, "one formula"),
        (TEXT, {"distances": (100,)}, "in the call and"),
        (TEXT, {"bandwith": 3}, "did you mean bandwidths="),
        (TEXT, {"family": "gamma"}, "family='gamma' is not one of"),
        (TEXT, {"choose": "lasso"}, "choose='lasso' is not one of"),
        (TEXT, {"kernel": "cone"}, "kernel='cone' is not one of"),
        (TEXT, {"criterion": "r2"}, "criterion='r2' is not one of"),
        (TEXT, {"bandwidths": (100, -1)}, "must be lengths above zero"),
        (TEXT, {"bandwidths": "wide"}, "must be lengths above zero"),
        (TEXT, {"block": 0}, "must be a number above zero"),
        (TEXT, {"blocks": 2}, "give their length too"),
        (TEXT, {"limit": 0}, "whole number from 1"),
        (TEXT, {"x": 3}, "names a column"),
        (TEXT, {"projected": 1.5}, "projected=1.5"),
    ],
)
def test_calls_that_cannot_be_used(scene, text, options, message):
    with pytest.raises(ModelError, match=message):
        ds.rtm(text, *scene, **options)


def test_layers_must_be_named_and_used(scene):
    units, layers = scene
    with pytest.raises(ModelError, match="maps the names"):
        ds.rtm(TEXT, units, layers["alcohol"].to_numpy())
    with pytest.raises(ModelError, match="'metro', which the formula does not"):
        ds.rtm(TEXT, units, {**layers, "metro": [[4e5, 4e5]]})
    with pytest.raises(ModelError, match="layers= is missing"):
        ds.fit(TEXT, units)
    with pytest.raises(ModelError, match="log link"):
        ds.fit(TEXT, units, layers=layers, link="identity")
    with pytest.raises(FormulaError, match="nothing may follow"):
        ds.rtm(TEXT + " + 1", units, layers)


def shy(units, layers):
    """Crimes that keep away from the layer."""
    near = np.hypot(
        *(units[["x", "y"]].to_numpy()[:, None] - layers["alcohol"].to_numpy())
        .transpose(2, 0, 1)
    ).min(axis=1)  # fmt: skip
    rng = np.random.default_rng(0)
    return units.assign(crimes=rng.poisson(np.where(near < 800, 0.5, 4)))


@pytest.mark.parametrize("choose", ["exhaustive", "stepwise", "dropout"])
def test_a_factor_without_a_nonnegative_effect(scene, choose):
    units, layers = scene
    built = ds.rtm(
        "rtm(crimes ~ alcohol, distances=(200, 400))", shy(units, layers), layers,
        choose=choose, family="poisson",
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = built.fit(steps=200)
    said = [str(w.message) for w in caught if w.category is SelectionWarning]
    assert len(said) == 2
    assert "alcohol was not chosen" in said[0] and "nonnegative effect" in said[0]
    assert said[1].startswith("no factor was chosen")
    assert results.rules == () and list(results.params.index) == ["Intercept"]
    assert (results.predict(which="relative_risk") == 1).all()
    assert "Not chosen: alcohol" in str(results.summary())
    assert len(results.risk_table()) == 0
    with pytest.raises(ModelError, match="no overlaps"):
        results.conjunctive()
    assert results.evaluate()["pai"].to_numpy() == pytest.approx(1)


def test_a_factor_that_is_everywhere(scene):
    units, layers = scene
    layers = {**layers, "air": units[["x", "y"]]}
    built = ds.rtm("rtm(crimes ~ alcohol + air, distances=(200, 400))", units, layers)
    with pytest.warns(SelectionWarning, match="air was not chosen: none of its oper"):
        results = built.fit()
    assert results.candidates().loc["air_within_200", "left_out"] == "yes at all units"
    assert "2 candidates the same at all" in str(results.summary())


def test_a_column_that_is_forced_in_twice_is_left_out(scene):
    """The search and the regression drop the same columns."""
    units, layers = scene
    units["again"] = 2 * units["wealth"] + 1
    text = "rtm(crimes ~ alcohol + wealth + again, distances=(200,))"
    with pytest.warns(ds.errors.RankWarning):
        results = ds.rtm(text, units, layers, family="poisson").fit()
    best = results.choices["poisson"].criterion
    assert best == pytest.approx(results.bic, abs=1e-6)
