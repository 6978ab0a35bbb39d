"""Accuracy of maps against sums by hand and over all orders of ties."""

import itertools

import numpy as np
import pytest

from deepstats.models.rtm.evaluation import accuracy, captured, conjunctive, hit_curve


def by_orders(score, crimes, area, share):
    """Mean over all orders of tied units of what is within the share."""
    room, totals = share * area.sum(), []
    for order in itertools.permutations(range(len(score))):
        if (np.diff(score[list(order)]) > 0).any():
            continue
        left, total = room, 0.0
        for i in order:
            part = min(1.0, max(0.0, left / area[i]))
            total += part * crimes[i]
            left -= area[i]
        totals.append(total)
    return np.mean(totals)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_ties_give_the_mean_over_their_orders(share):
    score = np.array([3.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    crimes = np.array([4.0, 5.0, 0.0, 1.0, 2.0, 0.0])
    area = np.ones(6)
    assert captured(score, crimes, area, share) == pytest.approx(
        by_orders(score, crimes, area, share)
    )


def test_pai_pei_and_rri_by_hand():
    score = np.array([4.0, 3.0, 2.0, 1.0])
    crimes = np.array([2.0, 6.0, 1.0, 1.0])
    earlier = np.array([8.0, 2.0, 5.0, 5.0])
    area = np.array([1.0, 1.0, 1.0, 1.0])
    row = accuracy(score, crimes, area, [0.5], earlier).iloc[0]
    assert row["hit_rate"] == 0.8 and row["pai"] == 1.6
    assert row["pei"] == 1.0  # the two best units are the two riskiest
    assert row["rri"] == pytest.approx(0.8 / 0.5)
    first = accuracy(score, crimes, area, [0.25]).iloc[0]
    assert first["pai"] == 0.8 and first["pei"] == pytest.approx(2 / 6)
    assert "rri" not in first


def test_area_is_what_is_shared():
    """A large unit takes its room, and the best map is that of crime for area."""
    score, crimes = np.array([2.0, 1.0]), np.array([6.0, 4.0])
    row = accuracy(score, crimes, np.array([3.0, 1.0]), [0.25]).iloc[0]
    assert row["crimes"] == pytest.approx(2.0)
    assert row["pai"] == pytest.approx(0.8) and row["pei"] == pytest.approx(0.5)


def test_hit_curve_ends_at_one_below_the_best(rng):
    score, crimes = rng.normal(size=50), rng.poisson(2, 50).astype(float)
    frame = hit_curve(score, crimes, np.ones(50), points=21)
    assert frame.iloc[0].tolist() == [0, 0, 0]
    assert frame.iloc[-1].tolist() == [1, 1, 1]
    assert (frame["best"] >= frame["hit_rate"] - 1e-12).all()
    assert (np.diff(frame["best"], 2) < 1e-12).all()


def test_overlaps_add_up():
    a, b = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 0, 1])
    crimes = np.array([5.0, 3.0, 1.0, 0.0, 4.0])
    table = conjunctive({"a": a, "b": b}, {"observed": crimes}, 2.0**a * 3.0**b)
    assert table.to_dict("list") == {
        "a": [1, 1, 0], "b": [1, 0, 0], "overlaps": [2, 1, 0], "units": [2, 1, 2],
        "relative_risk": [6, 2, 1], "observed": [9, 3, 1],
    }  # fmt: skip
