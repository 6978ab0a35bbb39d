"""Pictures of trajectory models: what is drawn, and where."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from deepstats.plots import OKABE_ITO

from .panels import UNITS, fit, panel

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

from deepstats.models.trajectory import Trajectory  # noqa: E402
from deepstats.models.trajectory.pictures import (  # noqa: E402
    _apart,
    plot_alluvial,
    plot_selection,
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def poisson():
    return fit("count ~ t", family="poisson")


@pytest.fixture(scope="module")
def weighted():
    return fit("y ~ t", panel(missing=True), weights="w")


@pytest.fixture(scope="module")
def several():
    return fit("traj(y ~ t, count ~ t)", family=["gaussian", "poisson"])


def curves(ax):
    """Lines without markers, by colour."""
    lines = [line for line in ax.lines if line.get_marker() == "None"]
    return {to_hex(line.get_color()): line for line in lines}


def overlapping(ax):
    """Pairs of texts of a picture that lie over each other."""
    figure = ax.figure
    figure.canvas.draw()
    texts = []
    for one in figure.axes:
        texts += [*one.texts, one.title, one._left_title, one._right_title]
        texts += one.get_legend().get_texts() if one.get_legend() else []
        for axis in (one.xaxis, one.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            # Axes that are off have no ticks to see.
            texts += [axis.label, *(t.label1 for t in ticks)] if one.axison else []
    boxes = [
        (t.get_text(), t.get_window_extent()) for t in texts if t.get_text().strip()
    ]
    return [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if one.overlaps(other)
    ]


# -- trajectories ----------------------------------------------------------------------


def test_curves_bands_and_shares(poisson):
    ax = poisson.plot()
    frame = poisson.trajectories(smooth=True)
    drawn = curves(ax)
    assert list(drawn) == [c.lower() for c in OKABE_ITO[:2]]
    for k, line in enumerate(drawn.values(), 1):
        own = frame.query("group == @k")
        np.testing.assert_allclose(line.get_xdata(), own["t"])
        np.testing.assert_allclose(line.get_ydata(), own["estimate"])
        band = ax.collections[k - 1].get_paths()[0].vertices
        assert band[:, 1].min() == pytest.approx(own["lower"].min())
        assert band[:, 1].max() == pytest.approx(own["upper"].max())
    shares = 100 * poisson.group_probs["share"]
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == [f"Group {k} ({s:.1f}%)" for k, s in enumerate(shares, 1)]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("t", "count")
    assert not overlapping(ax)


def test_means_are_weighted_by_posterior_and_weight(weighted):
    ax = weighted.plot("means")
    data = panel(missing=True).dropna(subset="y")
    posterior = weighted.posterior.loc[data["pid"]]
    points = [line for line in ax.lines if line.get_marker() != "None"]
    for k, line in enumerate(points, 1):
        w = posterior[f"g{k}"].to_numpy() * data["w"]
        wanted = (w * data["y"]).groupby(data["t"]).sum() / w.groupby(data["t"]).sum()
        np.testing.assert_allclose(line.get_xdata(), wanted.index)
        np.testing.assert_allclose(line.get_ydata(), wanted)


def test_means_of_proportions_pool_trials():
    results = fit("cbind(yes, no) ~ t", family="binomial")
    line = next(line for line in results.plot().lines if line.get_marker() != "None")
    data = panel()
    w = results.posterior.loc[data["pid"], "g1"].to_numpy()
    sums = (data[["yes", "trials"]].mul(w, axis=0)).groupby(data["t"]).sum()
    np.testing.assert_allclose(line.get_ydata(), sums["yes"] / sums["trials"])


def test_many_times_are_put_into_bins():
    data = panel()
    data["age"] = data["t"] + np.random.default_rng(0).random(len(data))
    results = fit("y ~ age", data)
    line = next(line for line in results.plot().lines if line.get_marker() != "None")
    assert len(line.get_xdata()) == 12
    assert (np.diff(line.get_xdata()) > 0).all()


def test_lines_of_units_have_the_colour_of_their_group(weighted):
    ax = weighted.plot("spaghetti", interval=None)
    assigned = weighted.assign()
    data = panel(missing=True).dropna(subset="y").set_index("pid")
    for k, lines in enumerate(ax.collections, 1):
        assert to_hex(lines.get_colors()[0]) == OKABE_ITO[k - 1].lower()
        drawn = lines.get_segments()
        own = assigned.index[assigned == k]
        assert len(drawn) == len(own)
        wanted = data.loc[own[0], ["t", "y"]].to_numpy()
        np.testing.assert_allclose(drawn[0], wanted)
    few = weighted.plot("spaghetti", interval=None, most=20)
    assert sum(len(lines.get_segments()) for lines in few.collections) == 20
    assert not overlapping(ax)


def test_several_outcomes_have_axes_of_their_own(several):
    axes = several.plot(None, interval="simultaneous")
    assert [ax.get_title(loc="left") for ax in axes] == ["y", "count"]
    assert [ax.get_legend() is None for ax in axes] == [True, False]
    assert not overlapping(axes[0])
    _, ax = plt.subplots()
    assert several.plot(outcome="count", ax=ax) is ax
    with pytest.raises(ValueError, match="room for one panel"):
        several.plot(ax=ax)


def test_ordinal_means_are_on_the_scale_of_the_curves():
    results = fit("grade ~ t", family="ordinal")
    ax = results.plot()
    points = [line for line in ax.lines if line.get_marker() != "None"]
    frame = results.trajectories()
    assert len(points) == 2
    for line, (_, own) in zip(points, frame.groupby("group"), strict=True):
        assert np.abs(line.get_ydata() - own["estimate"]).max() < 0.3


def test_what_cannot_be_drawn_is_refused(poisson):
    with pytest.raises(ValueError, match="data='points'"):
        poisson.plot("points")
    with pytest.raises(ValueError, match="most=0"):
        poisson.plot("spaghetti", most=0)
    flat = fit("y ~ 1")
    with pytest.raises(ValueError, match="time="):
        flat.plot()
    ax = flat.plot(time="t")
    for line in curves(ax).values():
        assert np.ptp(line.get_ydata()) == 0


# -- posterior probabilities -----------------------------------------------------------


def test_histograms_of_the_assigned_group(poisson):
    axes = poisson.plot_posterior()
    assigned, top = poisson.assign(), poisson.posterior.max(axis=1)
    for k, ax in enumerate(axes, 1):
        own = top[assigned == k]
        heights = [bar.get_height() for bar in ax.patches]
        assert sum(heights) == len(own)
        assert heights[-1] == (own >= 0.95).sum()
        title = f"Group {k}: {len(own)} units, mean {own.mean():.2f}"
        assert ax.get_title(loc="left") == title
    assert not overlapping(axes[0])


# -- selection -------------------------------------------------------------------------


def test_the_lowest_criterion_is_marked():
    table = pd.DataFrame(
        {"groups": [1, 2, 2, 3, 4], "bic": [90.0, 60.0, 65.0, 50.0, np.nan]}
    )
    ax = plot_selection(table, "bic")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 90], [2, 60], [3, 50]])
    assert ax.collections[0].get_offsets().shape == (4, 2)
    np.testing.assert_allclose(ax.collections[1].get_offsets(), [[3, 50]])
    assert ax.get_legend().get_texts()[0].get_text() == "lowest BIC: 3 groups"
    assert ax.get_ylabel() == "BIC"
    again = plot_selection(table.set_index("groups"), "bic")
    np.testing.assert_allclose(again.lines[0].get_xydata(), ax.lines[0].get_xydata())
    with pytest.raises(ValueError, match="bic_units"):
        plot_selection(table)
    with pytest.raises(ValueError, match="no finite value"):
        plot_selection(table.assign(bic=np.nan), "bic")


# -- assignments -----------------------------------------------------------------------


def test_levels_of_a_multinomial_response_have_axes_of_their_own():
    data = panel().assign(grade=lambda d: d["grade"].clip(upper=3))
    model = Trajectory("grade ~ t", data, family="multinomial", groups=2, id="pid")
    results = model.fit(starts=6, order="size")
    axes = results.plot()
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["grade: 1", "grade: 2", "grade: 3"]
    w = results.posterior.loc[data["pid"], "g1"].to_numpy()
    line = next(line for line in axes[1].lines if line.get_marker() != "None")
    wanted = (w * (data["grade"] == 2)).groupby(data["t"]).sum()
    total = pd.Series(w).groupby(data["t"]).sum()
    np.testing.assert_allclose(line.get_ydata(), wanted / total)


def test_groups_of_each_outcome_have_shares_of_their_own():
    data = panel()
    data["count"] = np.roll(data["count"], 5 * 7)
    results = fit(
        "traj(y ~ t, count ~ t)", data, family=["gaussian", "poisson"], groups=(2, 2)
    )
    axes = results.plot("spaghetti")
    for ax, name in zip(axes, ("y", "count"), strict=True):
        shares = results.outcome_posterior(name).mean()
        labels = [t.get_text() for t in ax.get_legend().get_texts()]
        assert labels == [
            f"Group {k} ({100 * s:.1f}%)" for k, s in enumerate(shares, 1)
        ]
        lines = sum(len(c.get_segments()) for c in ax.collections[:2])
        assert lines == UNITS
    assert not overlapping(axes[0])


def assigned(groups, count):
    """Stand in for results: assignments and the number of groups."""
    series = pd.Series(groups, name="group")
    return SimpleNamespace(assign=lambda: series, traj=SimpleNamespace(groups=count))


def test_ribbons_hold_as_many_units_as_change_groups():
    one = np.repeat([1, 2], [60, 40])
    two = np.repeat([1, 3, 2, 3], [50, 10, 30, 10])
    ax = plot_alluvial(assigned(one, 2), assigned(two, 3))
    bars = [patch.get_height() for patch in ax.patches]
    np.testing.assert_allclose(bars, [0.6, 0.4, 0.5, 0.3, 0.2])
    widths, colours = [], []
    for ribbon in ax.collections:
        xy = ribbon.get_paths()[0].vertices
        left = xy[np.isclose(xy[:, 0], xy[:, 0].min())][:, 1]
        widths.append(np.ptp(left))
        colours.append(to_hex(ribbon.get_facecolor()[0]))
    np.testing.assert_allclose(sorted(widths), [0.1, 0.1, 0.3, 0.5])
    assert colours.count(OKABE_ITO[0].lower()) == 2
    texts = [t.get_text() for t in ax.texts]
    assert {"Group 1: 60", "Group 3: 20", "2 groups", "3 groups"} <= set(texts)
    assert not overlapping(ax)


def test_labels_of_tiny_groups_do_not_collide():
    one = np.repeat([1, 2], [60, 40])
    many = np.repeat(np.arange(1, 8), [30, 1, 1, 27, 1, 39, 1])
    ax = plot_alluvial(assigned(one, 2), assigned(many, 7))
    assert not overlapping(ax)
    y = np.array([0.1, 0.11, 0.5, 0.9])
    np.testing.assert_allclose(_apart(y, 0.05), [0.08, 0.13, 0.5, 0.9])


def test_fits_of_one_and_two_groups(poisson):
    one = fit("count ~ t", family="poisson", groups=1)
    ax = plot_alluvial(one, poisson)
    sizes = poisson.assign().value_counts(sort=False).sort_index().to_numpy() / UNITS
    np.testing.assert_allclose([p.get_height() for p in ax.patches], [1.0, *sizes])
    with pytest.raises(ValueError, match="two fits"):
        plot_alluvial(poisson)
    other = panel().assign(pid=lambda d: d["pid"] + 1000)
    with pytest.raises(ValueError, match="no units in common"):
        plot_alluvial(poisson, fit("count ~ t", other, family="poisson"))
