"""Plots: what is drawn, where, and the frames behind it."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from deepstats import plots  # noqa: E402


class FakeResults:
    """Least squares by hand, with the protocol that plots use."""

    def __init__(self, n=60, seed=1, extra=False):
        rng = np.random.default_rng(seed)
        X = np.column_stack([np.ones(n), rng.normal(size=(n, 1 + extra))])
        y = X @ np.arange(1, X.shape[1] + 1) + rng.normal(size=n)
        Q, R = np.linalg.qr(X)
        self.beta = np.linalg.solve(R, Q.T @ y)
        self.terms = ["Intercept", "x", "z"][: X.shape[1]]
        self.fitted, self.hat = X @ self.beta, (Q**2).sum(axis=1)
        self.resid = y - self.fitted
        self.s = np.sqrt(self.resid @ self.resid / (n - X.shape[1]))
        self.se = self.s * np.sqrt(np.diag(np.linalg.inv(X.T @ X)))
        self.resid_pearson = self.resid / self.s

    def tidy(self, conf_level=0.95):
        from scipy.stats import norm

        half = norm.ppf(0.5 + conf_level / 2) * self.se
        limits = {"conf_low": self.beta - half, "conf_high": self.beta + half}
        return pd.DataFrame({"term": self.terms, "estimate": self.beta, **limits})

    def augment(self):
        standard = self.resid / (self.s * np.sqrt(1 - self.hat))
        cook = standard**2 * self.hat / (1 - self.hat) / len(self.beta)
        return pd.DataFrame(
            {
                ".fitted": self.fitted,
                ".resid": self.resid,
                ".std_resid": standard,
                ".hat": self.hat,
                ".cooksd": cook,
            },
            index=[f"row{i}" for i in range(len(self.fitted))],
        )


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def small():
    return FakeResults()


@pytest.fixture(scope="module")
def large():
    return FakeResults(seed=2, extra=True)


def test_coefplot_frame(small, large):
    frame = plots.coefplot_frame(small, large, names=["A", "B"], labels={"z": "Zeta"})
    assert list(frame["model"]) == ["A", "B", "B"]
    assert list(frame["label"]) == ["x", "x", "Zeta"]
    np.testing.assert_allclose(frame["estimate"][1:], large.beta[1:])
    kept = plots.coefplot_frame(large, keep="z|Inter", intercept=True)
    assert list(kept["term"]) == ["Intercept", "z"]


def test_coefplot_positions(small, large):
    ax = plots.coefplot(small, large, names=["A", "B"], conf_level=0.9)
    assert len(ax.containers) == 2
    points = [container.lines[0] for container in ax.containers]
    np.testing.assert_allclose(points[0].get_xdata(), small.beta[1:])
    np.testing.assert_allclose(points[0].get_ydata(), [-0.1])
    np.testing.assert_allclose(points[1].get_ydata(), [0.1, 1.1])
    bar = ax.containers[1].lines[2][0].get_segments()[1]
    low, high = large.tidy(0.9).loc[2, ["conf_low", "conf_high"]]
    np.testing.assert_allclose(bar[:, 0], [low, high])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "z"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A", "B"]
    assert ax.get_xlabel() == "Estimate and 90% confidence interval"
    assert ax.yaxis_inverted()


def test_one_model_needs_no_legend_and_takes_axes(small):
    _, given = plt.subplots()
    ax = plots.coefplot(small, ax=given)
    assert ax is given
    assert ax.get_legend() is None


def test_terms_of_several_components_are_told_apart(small):
    frame = small.tidy()
    both = pd.concat([frame.assign(component="count"), frame.assign(component="zero")])
    results = SimpleNamespace(tidy=lambda conf_level: both)
    assert list(plots.coefplot_frame(results)["label"]) == ["count: x", "zero: x"]


def test_residual_plot(small):
    ax = plots.residual_plot(small)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.c_[small.fitted, small.resid_pearson])
    smooth = ax.lines[1]
    assert 2 <= len(smooth.get_xdata()) <= 20
    assert ax.get_ylabel() == "Pearson residual"
    response = plots.residual_frame(small, "response")
    np.testing.assert_allclose(response["resid"], small.resid)


def test_binned_means_keep_the_mean_and_ties():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 3, 400).astype(float), rng.normal(size=400)
    means, heights = plots._binned_means(x, y)
    np.testing.assert_allclose(means, [0, 1, 2])
    np.testing.assert_allclose(heights, [y[x == v].mean() for v in range(3)])
    constant, _ = plots._binned_means(np.ones(50), np.ones(50))
    np.testing.assert_allclose(constant, [1])


def test_qq(small):
    frame = plots.qq_frame(small)
    standard = small.augment()[".std_resid"]
    np.testing.assert_allclose(frame["sample"], np.sort(standard))
    assert list(frame.index) == list(standard.sort_values().index)
    assert (frame["band_low"] < frame["theoretical"]).all()
    assert (frame["theoretical"] < frame["band_high"]).all()
    # symmetric about zero, as normal quantiles are
    np.testing.assert_allclose(frame["theoretical"], -frame["theoretical"][::-1].values)
    ax = plots.qqplot(small)
    np.testing.assert_allclose(ax.collections[1].get_offsets()[:, 1], frame["sample"])
    assert ax.get_xlabel() == "Normal quantile"


def test_qq_band_covers_a_normal_sample():
    """Pointwise coverage: 95% within four standard errors over 400 samples."""
    rng = np.random.default_rng(5)
    draws = np.sort(rng.normal(size=(400, 25)), axis=1)
    empty = pd.DataFrame({".std_resid": draws[0]})
    frame = plots.qq_frame(SimpleNamespace(augment=lambda: empty))
    low, high = frame["band_low"].to_numpy(), frame["band_high"].to_numpy()
    covered = ((draws > low) & (draws < high)).mean(axis=0)
    assert np.abs(covered - 0.95).max() < 4 * np.sqrt(0.95 * 0.05 / 400)


def test_influence_plot(small):
    ax = plots.influence_plot(small, label=2)
    frame = plots.influence_frame(small)
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), frame[[".hat", ".std_resid"]])
    sizes = points.get_sizes()
    assert sizes.argmax() == frame[".cooksd"].to_numpy().argmax()
    labelled = {text.get_text() for text in ax.texts}
    assert labelled == set(frame[".cooksd"].nlargest(2).index)
    again = plots.influence_plot(frame, label=0)
    assert len(again.texts) == 0


def test_effects_plot():
    frame = pd.DataFrame(
        {
            "variable": ["age", "sex"],
            "effect": [0.1, -0.2],
            "conf_low": [0.0, -0.4],
            "conf_high": [0.2, 0.0],
        },
        index=[5, 9],
    )
    ax = plots.effects_plot(frame)
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xdata(), [0.1, -0.2])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["age", "sex"]
    frame = frame.assign(contrast=["dY/dX", "f - m"], outcome=["low", "high"])
    labels = [label.get_text() for label in plots.effects_plot(frame).get_yticklabels()]
    assert labels == ["age, P(low)", "sex: f - m, P(high)"]
    with pytest.raises(ValueError, match="conf_low"):
        plots.effects_plot(frame.drop(columns="conf_low"))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: plots.coefplot(), "at least one"),
        (lambda r: plots.coefplot(r, names=["a", "b"]), "1 names"),
        (lambda r: plots.coefplot(r, conf_level=95), "between 0 and 1"),
        (lambda r: plots.coefplot(r, keep="nothing"), "leave no term"),
        (lambda r: plots.residual_plot(r, "quantile"), "response.*pearson"),
        (lambda r: plots.qqplot(r, conf_level=0), "between 0 and 1"),
    ],
)
def test_wrong_options_are_refused(small, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(small)


def test_missing_matplotlib_says_what_to_install(small, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install deepstats\[plots\]"):
        plots.qqplot(small)


def test_saves_in_print_formats(small, tmp_path):
    for suffix in ("png", "pdf", "svg"):
        path = tmp_path / f"plot.{suffix}"
        plots.coefplot(small).figure.savefig(path)
        assert path.stat().st_size > 1000


def test_categories_have_no_residual_plot():
    import deepstats as ds

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=90), "c": rng.choice(list("uvw"), 90)})
    with pytest.raises(ValueError, match="categories, which have no residuals"):
        plots.residual_plot(ds.mnlogit("c ~ x", frame).fit())
