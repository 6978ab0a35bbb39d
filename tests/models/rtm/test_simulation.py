"""Cities whose risk is known: what is chosen, and whether intervals hold it."""

import warnings

import numpy as np
import pytest

import deepstats as ds
from deepstats.errors import SelectionWarning

from .data import BANDS, DISTANCES, TRUE, city

TEXT = "rtm(crimes ~ alcohol + metro + trees)"
OPTIONS = {"distances": DISTANCES, "bandwidths": BANDS}


@pytest.fixture(autouse=True)
def quiet():
    """A layer without any effect is often left out with a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SelectionWarning)
        yield


@pytest.mark.parametrize(
    "alpha, family", [(0.0, "poisson"), (0.6, "nb2")], ids=["poisson", "nb2"]
)
def test_true_factors_are_found_at_their_true_distance(alpha, family):
    right, families, trees = 0, 0, 0
    for seed in range(12):
        units, layers = city(seed, 900, alpha, wealth_effect=0)
        results = ds.rtm(TEXT, units, layers, **OPTIONS).fit()
        found = {r.factor: (r.kind, r.size) for r in results.rules}
        trees += "trees" in found
        families += results.family == family
        right += all(found.get(k) == ("distance", d) for k, (d, _) in TRUE.items())
    assert right >= 11
    assert families >= 11
    assert trees <= 4  # of six candidates, each lets one pass in a hundred by BIC


def test_intervals_of_split_samples_hold_the_truth_as_often_as_they_say():
    """200 intervals of 95%: between 90% and 99% but for one time in a hundred."""
    inside, total = 0, 0
    for seed in range(100):
        units, layers = city(1000 + seed, 800, wealth_effect=0)
        results = ds.rtm(TEXT, units, layers, family="poisson", **OPTIONS).fit()
        table = results.split_sample(seed=seed).table
        for factor, (distance, effect) in TRUE.items():
            name = f"{factor}_within_{distance:g}"
            if name in table.index:
                low, high = np.log(table.loc[name, ["conf_low", "conf_high"]].tolist())
                inside += low <= effect <= high
                total += 1
    assert total >= 185
    assert 0.90 <= inside / total <= 0.99


def test_effects_of_noise_are_too_large_where_chosen_and_right_when_held_out():
    """Chosen among twelve candidates without effect, the largest looks like one."""
    naive, held_out = [], []
    for seed in range(100):
        units, layers = city(seed, 400)
        rng = np.random.default_rng(seed)
        units["crimes"] = rng.poisson(1.0, 400)
        results = ds.rtm(
            "rtm(crimes ~ alcohol + metro + trees)", units, layers, criterion="aic",
            family="poisson", **OPTIONS,
        ).fit()  # fmt: skip
        naive += results.risk_table()["z"].tolist()
        try:
            held_out += results.split_sample(seed=seed).table["z"].tolist()
        except ds.errors.ModelError:
            continue  # so rare that none is held out
    assert len(naive) > 60 and len(held_out) > 60
    assert np.mean(naive) > 1.5
    assert abs(np.mean(held_out)) < 4 / np.sqrt(len(held_out))
    assert np.mean(np.abs(held_out) > 1.96) < 0.12
    assert np.mean(np.abs(naive) > 1.96) > 0.3


def test_the_bootstrap_says_how_sure_the_choice_is():
    units, layers = city(7, 900, wealth_effect=0)
    results = ds.rtm(TEXT, units, layers, family="poisson", **OPTIONS).fit()
    sure = results.bootstrap(60).factors
    assert sure.loc[["alcohol", "metro"], "frequency"].min() == 1.0
    assert sure.loc["trees", "frequency"] < 0.8
    for factor, (_, effect) in TRUE.items():
        low, high = sure.loc[factor, ["conf_low", "conf_high"]]
        assert low < np.exp(effect) * 1.2 and high > np.exp(effect) / 1.2
