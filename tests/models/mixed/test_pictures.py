"""Pictures of mixed models: what is drawn, and where."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import deepstats as ds
from deepstats.errors import SingularFitWarning
from deepstats.models.mixed.page import scaled_residuals

from .data import load

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from deepstats.models.mixed.pictures import zeta  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def slopes():
    data = load("sleepstudy")
    return ds.lmer("Reaction ~ Days + (Days | Subject)", data).fit(ddf="normal")


@pytest.fixture(scope="module")
def many():
    """Return a fit with 200 levels of one factor and 8 of another."""
    rng = np.random.default_rng(3)
    g, h = np.arange(1200) % 200, rng.integers(0, 8, 1200)
    y = rng.normal(size=200)[g] + rng.normal(size=8)[h] + rng.normal(size=1200)
    data = pd.DataFrame({"y": y, "g": g, "h": h, "w": rng.uniform(0.5, 2, 1200)})
    return ds.lmer("y ~ 1 + (1 | g) + (1 | h)", data, weights="w").fit(ddf="normal")


@pytest.fixture(scope="module")
def singular():
    with pytest.warns(SingularFitWarning):
        return ds.lmer("Yield ~ 1 + (1 | Batch)", load("Dyestuff2")).fit(ddf="normal")


def segments(ax):
    return np.array(ax.collections[0].get_segments())


def points(ax):
    return ax.lines[1].get_xdata(), ax.lines[1].get_ydata()


def overlapping(ax):
    """Tick labels of the level axis that touch their neighbours."""
    ax.figure.canvas.draw()
    boxes = sorted(
        (t.get_window_extent() for t in ax.get_yticklabels() if t.get_text()),
        key=lambda box: box.y0,
    )
    return [a for a, b in pairwise(boxes) if a.y1 > b.y0]


def test_caterpillar_of_two_effects(slopes):
    first, second = slopes.plot.caterpillar()
    frame = slopes.ranef(cond_var=True)["Subject"].sort_values("Intercept")
    for ax, name in ((first, "Intercept"), (second, "Days")):
        x, y = points(ax)
        np.testing.assert_allclose(x, frame[name])
        np.testing.assert_array_equal(y, np.arange(18))
        half = stats.norm.ppf(0.975) * frame[f"{name}.sd"]
        np.testing.assert_allclose(segments(ax)[:, 0, 0], frame[name] - half)
        np.testing.assert_allclose(segments(ax)[:, 1, 0], frame[name] + half)
        assert ax.get_title(loc="left") == f"{name} | Subject"
        assert ax.get_xlabel() == "Effect on Reaction, 95% interval"
    names = [t.get_text() for t in first.get_yticklabels()]
    assert names == [str(level) for level in frame.index]
    assert first.get_ylabel() == "Subject"
    assert not overlapping(first)


def test_caterpillar_of_the_largest_in_the_order_of_levels(slopes):
    _, given = plt.subplots()
    ax = slopes.plot.caterpillar(term="Days", top=5, order=False, level=0.5, ax=given)
    assert ax is given
    effects = slopes.ranef()["Subject"]["Days"]
    largest = effects.abs().nlargest(5).index
    shown = [t.get_text() for t in ax.get_yticklabels()][::-1]
    assert shown == [str(level) for level in effects.index if level in set(largest)]
    assert ax.get_ylabel() == "5 of 18 levels of Subject"
    assert ax.get_xlabel().endswith("50% interval")


def test_caterpillar_of_many_levels_names_none(many):
    ax = many.plot.caterpillar()
    assert len(segments(ax)) == 200
    assert len(ax.get_yticks()) == 0
    assert ax.get_ylabel() == "200 levels of g, by size"
    assert (np.diff(points(ax)[0]) >= 0).all()
    assert not overlapping(many.plot.caterpillar(top=60))
    assert len(points(many.plot.caterpillar("h"))[0]) == 8


def test_residuals(many):
    ax = many.plot.residuals()
    drawn = ax.collections[0].get_offsets()
    np.testing.assert_allclose(drawn, np.c_[many.fittedvalues, many.resid_pearson])
    assert 2 <= len(ax.lines[1].get_xdata()) <= 20
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Fitted y", "Residual × √weight (y)")
    spread = many.plot.residuals(scale_location=True)
    heights = spread.collections[0].get_offsets()[:, 1]
    np.testing.assert_allclose(heights, np.sqrt(np.abs(scaled_residuals(many))))
    assert spread.get_title(loc="left") == "Scale and location"


def test_qq_of_residuals(slopes):
    ax = slopes.plot.qq()
    drawn = ax.collections[1].get_offsets()
    r = np.sort(slopes.resid_pearson)
    np.testing.assert_allclose(drawn[:, 1], (r - r.mean()) / r.std(ddof=1))
    i = np.arange(1, 181)
    median = stats.norm.ppf(stats.beta.ppf(0.5, i, 181 - i))
    np.testing.assert_allclose(drawn[:, 0], median)


def test_qq_of_random_effects_has_unit_variance(many):
    """Modes of groups with few rows shrink more; standardised they are alike."""
    ax = many.plot.qq("ranef")
    drawn = np.asarray(ax.collections[1].get_offsets())[:, 1]
    assert len(drawn) == 200
    # The standard error of the standard deviation of 200 normals is 0.05.
    assert drawn.std() == pytest.approx(1, abs=0.15)
    frame = many.ranef(cond_var=True)["g"]
    variance = many.varcorr.loc[0, "vcov"] - frame["Intercept.sd"] ** 2
    np.testing.assert_allclose(drawn, np.sort(frame["Intercept"] / np.sqrt(variance)))
    assert ax.get_title(loc="left") == "Intercept | g"


def test_panels(slopes, singular):
    axes = slopes.plot.panels()
    assert [ax.get_title(loc="left") for ax in axes.flat] == [
        "Residuals", "Residuals", "Scale and location", "Intercept | Subject"
    ]  # fmt: skip
    last = singular.plot.panels()[1, 1]
    assert "zero" in last.texts[0].get_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.caterpillar("Subjekt"), "must be one of \\['Subject'\\]"),
        (lambda p: p.caterpillar(term="Day"), "are \\['Intercept', 'Days'\\]"),
        (lambda p: p.caterpillar(top=0), "at least 1"),
        (lambda p: p.caterpillar(level=95), "between 0 and 1"),
        (lambda p: p.caterpillar(ax=plt.gca()), "room for one effect"),
        (lambda p: p.qq("random"), "'residuals' or 'ranef'"),
    ],
)
def test_wrong_arguments_are_explained(slopes, call, message):
    with pytest.raises(ValueError, match=message):
        call(slopes.plot)


def test_zero_variance_has_no_quantiles(singular):
    with pytest.raises(ValueError, match=r"variance of Intercept \| Batch is zero"):
        singular.plot.qq("ranef")


# ---------------------------------------------------------------------- zeta


def made_profile(names):
    """A profile whose curve is known: zeta = (value - 3) / 2."""
    value = np.linspace(-3, 9, 9)
    frame = pd.concat(
        pd.DataFrame({"parameter": n, "value": value, "zeta": (value - 3) / 2})
        for n in names
    )
    return SimpleNamespace(frame=frame)


def test_zeta_of_a_straight_profile():
    (ax,) = zeta(made_profile(["b"]))
    curve, estimate = ax.lines[1], ax.lines[-1]
    np.testing.assert_allclose(curve.get_ydata(), (curve.get_xdata() - 3) / 2)
    assert estimate.get_xdata()[0] == pytest.approx(3)
    limits = sorted(line.get_xdata()[0] for line in ax.lines[2:-1])
    levels = np.array([0.5, 0.8, 0.9, 0.95, 0.99])
    z = stats.norm.ppf(0.5 + levels / 2)
    np.testing.assert_allclose(limits, np.sort(np.r_[3 - 2 * z, 3 + 2 * z]))


def test_zeta_chooses_and_lays_out():
    profile = made_profile(["a", "b", "c", "d"])
    assert [ax.get_xlabel() for ax in zeta(profile)] == ["a", "b", "c", "d"]
    assert [ax.get_xlabel() for ax in zeta(profile, ["d", "a"])] == ["d", "a"]
    with pytest.raises(ValueError, match=r"\['e'\] are not profiled"):
        zeta(profile, ["e"])
    short = SimpleNamespace(frame=profile.frame.iloc[:1])
    with pytest.raises(ValueError, match="1 points"):
        zeta(short)


def test_zeta_of_a_fit(slopes):
    profile = slopes.profile(["sigma"])
    (ax,) = profile.plot()
    limits = profile.conf_int(0.05).to_numpy()[0]
    drawn = np.array([line.get_xdata()[0] for line in ax.lines[2:-1]])
    width = limits[1] - limits[0]
    for limit in limits:
        assert np.abs(drawn - limit).min() < 0.01 * width
