"""The printed page and tidy frame of mixed models: every number in lme4's place."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import deepstats as ds
from deepstats.errors import ConvergenceWarning, RankWarning, SingularFitWarning
from deepstats.models.mixed.page import (
    _correlation,
    _random_table,
    abbreviated,
    scaled_residuals,
)
from deepstats.summary import Notes, Table
from deepstats.summary.etable import _random_parameters

from .data import load

TIDY = ["term", "estimate", "std_error", "statistic", "df", "p_value", "conf_low",
        "conf_high", "component"]  # fmt: skip


@pytest.fixture(scope="module")
def sleep():
    return load("sleepstudy")


@pytest.fixture(scope="module")
def slopes(sleep):
    return ds.lmer("Reaction ~ Days + (Days | Subject)", sleep).fit()


@pytest.fixture(scope="module")
def panel():
    """Return 20 groups of 12 rows, three effects that vary, weights and an offset."""
    rng = np.random.default_rng(7)
    g, n = np.repeat(np.arange(20), 12), 240
    x, z = rng.normal(size=(2, n))
    effects = rng.normal(size=(20, 3)) @ np.array(
        [[1, 0.4, 0], [0, 0.8, 0.3], [0, 0, 1]]
    )
    w, o = rng.uniform(0.5, 2, n), rng.normal(size=n)
    mean = 1 + x - 0.5 * z + o
    mean += (effects[g] * np.column_stack([np.ones(n), x, z])).sum(axis=1)
    y = mean + rng.normal(size=n) / np.sqrt(w)
    return pd.DataFrame({"y": y, "x": x, "z": z, "g": g, "w": w, "o": o})


def table(page, caption):
    return next(
        b for b in page.blocks if isinstance(b, Table) and b.caption == caption
    ).frame


def header(page):
    return {label: value for label, value in page.blocks[0].items if label}


def notes(page):
    return [line for b in page.blocks if isinstance(b, Notes) for line in b.lines]


def correlation_tables(page):
    """Return the table of correlations and the panels that continue it."""
    tables = [b for b in page.blocks if isinstance(b, Table)]
    at = [t.caption for t in tables].index("Correlation of fixed effects")
    return tables[at:]


# lme4 1.1-31 prints for summary(lmer(Reaction ~ Days + (Days | Subject), sleepstudy)):
# the residuals below, Variance 612.10, 35.07, 654.94, Std.Dev. 24.741, 5.922, 25.592,
# Corr 0.07, correlation of fixed effects -0.138; lmerTest 17 degrees of freedom.
SLEEP_PAGE = """\
Scaled residuals
    Min           1Q      Median          3Q         Max
-3.9536      -0.4634      0.0231      0.4634      5.1793
------------------------------------------------------------------------------
Random effects
Groups        Name           Variance      Std. Dev.       Corr
Subject       Intercept      612.0899        24.7405
              Days            35.0717         5.9221      0.066
Residual                     654.9410        25.5918
------------------------------------------------------------------------------
Fixed effects
                 coef   std err      df        t   P>|t|     [0.025     0.975]
Intercept    251.4051    6.8246   17.00   36.838   0.000   237.0065   265.8037
Days          10.4673    1.5458   17.00    6.771   0.000     7.2060    13.7286
------------------------------------------------------------------------------
Correlation of fixed effects
      Intrcp
Days  -0.138
=============================================================================="""


def test_golden_page(slopes):
    text = slopes.summary().as_text()
    assert text[text.index("Scaled residuals") :] == SLEEP_PAGE
    assert max(map(len, text.splitlines())) == 78


def test_header_of_reml(slopes):
    found = header(slopes.summary())
    assert found["Method"] == "REML"
    assert found["Response"] == "Reaction"
    assert found["REML criterion"] == pytest.approx(1743.628, abs=1e-3)
    assert found["Log-likelihood"] == pytest.approx(-871.814, abs=1e-3)
    assert found["AIC"] == pytest.approx(1755.628, abs=1e-3)
    assert found["BIC"] == pytest.approx(1774.786, abs=1e-3)
    assert (found["Observations"], found["Groups: Subject"]) == ("180", "18")
    assert found["Df method"] == "Satterthwaite"
    assert found["Converged"].startswith("yes, ")
    assert found["Singular"] == "no"
    assert "-2 log-likelihood" not in found


def test_maximum_likelihood_and_uncorrelated_effects(sleep):
    fit = ds.lmer("Reaction ~ Days + (Days || Subject)", sleep).fit(
        reml=False, ddf="normal"
    )
    page = fit.summary()
    found = header(page)
    assert found["Method"] == "maximum likelihood"
    assert found["-2 log-likelihood"] == pytest.approx(1752.003255140962, abs=1e-6)
    assert "REML criterion" not in found
    assert "Corr" not in table(page, "Random effects")
    heads = list(table(page, "Fixed effects"))
    assert heads[2:4] == ["z", "P>|z|"]
    assert "df" not in heads
    assert max(map(len, page.as_text().splitlines())) == 78


def test_terms_by_decreasing_levels():
    page = ds.lmer("strength ~ 1 + (1 | batch/cask)", load("Pastes")).fit().summary()
    random = table(page, "Random effects")
    assert list(random["Groups"]) == ["batch:cask", "batch", "Residual"]
    # lme4: 8.434, 1.657, 0.678.
    np.testing.assert_allclose(random["Variance"], [8.434, 1.657, 0.678], atol=5e-4)
    groups = [label for label in header(page) if label.startswith("Groups")]
    assert groups == ["Groups: batch:cask", "Groups: batch"]
    assert not any(
        isinstance(b, Table) and "Correlation" in (b.caption or "") for b in page.blocks
    )


def test_correlations_of_random_effects_are_a_triangle(panel):
    fit = ds.lmer("y ~ x + z + (x + z | g)", panel).fit(ddf="normal")
    random = table(fit.summary(), "Random effects")
    V = fit.mixed.covariances[0]
    R = V / np.sqrt(np.outer(np.diag(V), np.diag(V)))
    cells = random.iloc[:, 4:].to_numpy()
    assert cells.shape == (4, 2)
    expected = [["", ""], [R[1, 0], ""], [R[2, 0], R[2, 1]], ["", ""]]
    for row, wanted in zip(cells, expected, strict=True):
        assert list(row) == [c if c == "" else f"{c:.3f}" for c in wanted]
    assert list(random["Groups"]) == ["g", "", "", "Residual"]
    np.testing.assert_allclose(random["Std. Dev."][:3], np.sqrt(np.diag(V)))


def test_each_term_of_a_factor_has_its_own_correlations(panel):
    fit = ds.lmer("y ~ x + z + (1 | g) + (0 + x + z | g)", panel).fit(ddf="normal")
    random = table(fit.summary(), "Random effects")
    assert list(random["Groups"]) == ["g", "g", "", "Residual"]
    assert list(random["Name"]) == ["Intercept", "x", "z", ""]
    assert [cell != "" for cell in random["Corr"]] == [False, False, True, False]


def test_weights_and_offset(panel):
    fit = ds.lmer("y ~ x + (1 | g)", panel, weights="w", offset="o").fit(ddf="normal")
    found = header(fit.summary())
    assert found["Prior weights"] == f"{panel.w.min():.4g} to {panel.w.max():.4g}"
    assert found["Offset"] == f"{panel.o.min():.4g} to {panel.o.max():.4g}"
    effects = fit.ranef()["g"]["Intercept"].to_numpy()[panel["g"]]
    mean = fit.params["Intercept"] + fit.params["x"] * panel.x + effects + panel.o
    by_hand = np.sqrt(panel.w) * (panel.y - mean) / fit.sigma
    np.testing.assert_allclose(scaled_residuals(fit), by_hand, atol=1e-10)
    shown = table(fit.summary(), "Scaled residuals").to_numpy()[0]
    np.testing.assert_allclose(shown, np.quantile(by_hand, [0, 0.25, 0.5, 0.75, 1]))


def test_known_sigma(panel):
    random = table(
        ds.lmer("y ~ x + (1 | g)", panel, sigma=1.5).fit(ddf="normal").summary(),
        "Random effects",
    )
    assert random.iloc[-1].to_list() == ["Residual", "(known)", 2.25, 1.5]


def test_singular_fit():
    with pytest.warns(SingularFitWarning):
        fit = ds.lmer("Yield ~ 1 + (1 | Batch)", load("Dyestuff2")).fit()
    page = fit.summary()
    assert header(page)["Singular"] == "YES"
    assert table(page, "Random effects")["Variance"].iloc[0] == 0
    assert any("singular fit" in line for line in notes(page))


def test_undefined_correlation_is_nan(slopes):
    flat = SimpleNamespace(
        structure=slopes.mixed.structure, covariances=[np.diag([0.0, 4.0])], sigma=1.0
    )
    random = _random_table(SimpleNamespace(mixed=flat, model=slopes.model)).frame
    assert random["Corr"].to_list() == ["", "NaN", ""]
    assert random["Std. Dev."].to_list() == [0.0, 2.0, 1.0]


def test_a_correlation_that_rounds_to_nothing_has_no_sign():
    assert [_correlation(v) for v in (-0.0004, -0.0006, 1.0)] == [
        "0.000", "-0.001", "1.000"
    ]  # fmt: skip


def test_fit_that_did_not_converge(panel):
    with pytest.warns(ConvergenceWarning):
        fit = ds.lmer("y ~ x + z + (x + z | g)", panel).fit(maxiter=1, ddf="normal")
    page = fit.summary()
    assert header(page)["Converged"] == "NO, 1 Newton step"
    assert any(line.startswith("NOT CONVERGED") for line in notes(page))


@pytest.fixture(scope="module")
def aliased(panel):
    data = panel.assign(twice=2 * panel.x + 1)
    data.loc[5, "z"] = np.nan
    with pytest.warns(RankWarning):
        return ds.lmer("y ~ x + twice + z + (1 | g)", data).fit()


def test_aliased_column_keeps_its_place(aliased):
    page, frame = aliased.summary(), aliased.tidy()
    assert list(frame["term"]) == ["Intercept", "x", "twice", "z"]
    numbers = frame.set_index("term")[TIDY[1:8]]
    assert numbers.loc["twice"].isna().all()
    assert numbers.drop("twice").notna().all().all()
    assert table(page, "Fixed effects").loc["twice"].to_list() == [
        "nan", "nan", "", "", "", "nan", "nan"
    ]  # fmt: skip
    assert list(correlation_tables(page)[0].frame.index) == ["x", "z"]
    assert any("twice" in line and "dropped" in line for line in notes(page))
    assert "Left out: 1 row with missing values." in notes(page)


def test_compare_does_not_call_an_aliased_term_equal(aliased, panel):
    other = ds.lmer("y ~ x + z + (1 | g)", panel.drop(index=5)).fit()
    found = aliased.compare(other, tolerance=1e-6)
    assert found.agrees
    found = aliased.compare({"coef": {"Intercept": 1.0, "twice": 1.0}}, tolerance=1e9)
    assert found.unmatched["other"] == ("twice",)
    assert not found.agrees


def test_tidy_frame(slopes):
    frame = slopes.tidy(conf_level=0.9)
    assert list(frame) == TIDY
    half = stats.t.ppf(0.95, frame["df"]) * frame["std_error"]
    np.testing.assert_allclose(frame["conf_high"] - frame["estimate"], half)
    np.testing.assert_allclose(
        frame["p_value"], 2 * stats.t.sf(frame["statistic"].abs(), frame["df"])
    )
    normal = slopes.with_ddf("normal").tidy()
    assert np.isinf(normal["df"]).all()
    np.testing.assert_allclose(normal["p_value"], 2 * stats.norm.sf(normal.statistic))


def test_kenward_roger_is_said(slopes):
    page = slopes.with_ddf("kenward-roger").summary(alpha=0.1)
    assert header(page)["Df method"] == header(page)["SE"] == "Kenward-Roger"
    assert list(table(page, "Fixed effects"))[-2:] == ["[0.05", "0.95]"]


def test_correlations_are_all_there_in_panels_of_a_page():
    fit = ds.lmer(
        "angle ~ recipe * C(temperature) + (1 | recipe:replicate)",
        load("cake").astype({"temperature": str}),
    ).fit(ddf="normal")
    page = fit.summary()
    V = fit.cov_params().to_numpy()
    R = V / np.sqrt(np.outer(np.diag(V), np.diag(V)))
    panels = correlation_tables(page)
    assert len(panels) > 1
    found = {}
    names, column = abbreviated(fit.names, 11), 0
    for panel in panels:
        for j in range(panel.frame.shape[1]):
            for label, cell in zip(
                panel.frame.index, panel.frame.iloc[:, j], strict=True
            ):
                if cell:
                    found[names.index(label), column] = float(cell)
            column += 1
    assert set(found) == {(i, j) for i in range(18) for j in range(i)}
    for (i, j), value in found.items():
        assert value == pytest.approx(R[i, j], abs=6e-4)
    lines = page.as_text().splitlines()
    start = lines.index("Correlation of fixed effects")
    ruled = [line for line in lines[start:] if not set(line) <= set("-=")]
    assert max(map(len, ruled)) <= 78


def test_many_fixed_effects_have_no_correlations(panel):
    data = panel.assign(f=np.arange(240) % 21)
    page = ds.lmer("y ~ C(f) + (1 | g)", data).fit(ddf="normal").summary()
    assert "Correlation" not in page.as_text()


@pytest.mark.parametrize(
    ("name", "length", "short"),
    [
        ("Days", 6, "Days"),
        ("Intercept", 6, "Intrcp"),
        ("recipe[T.B]", 6, "recipB"),
        ("recipe[T.B]:temperature[T.185]", 11, "rcpB:tmp185"),
        ("ABCDEFGHIJKLM", 6, "ABCDEFGHIJ"),
    ],
)
def test_abbreviated(name, length, short):
    assert abbreviated([name], length) == [short]


def test_abbreviations_stay_apart():
    names = ["temperature1", "temperature2", "temperatures", "temporature1", "xx"]
    for length in (2, 4, 6):
        assert len(set(abbreviated(names, length))) == len(names)


def test_html_latex_and_markdown_hold_the_same_cells(slopes):
    page = slopes.summary()
    html, latex, markdown = page.as_html(), page.as_latex(), page.as_markdown()
    for cell in ("612.0899", "24.7405", "0.066", "251.4051", "17.00", "5.1793"):
        assert f">{cell}<" in html
        assert re.search(rf"(^|& ){cell} (&|\\\\)", latex, re.MULTILINE)
        assert re.search(rf"\| *{cell} *\|", markdown)
    assert html.count("<table") == latex.count(r"\begin{tabular}") == 5
    assert "Scaled residuals" in html


# -------------------------------------------------------------------- etable


def test_etable_beside_least_squares(slopes, sleep):
    ols = ds.ols("Reaction ~ Days", sleep).fit()
    frame = ds.etable(slopes, ols).frame
    part = frame.loc["Random effects: std. dev."]
    assert list(part.index.get_level_values("term")) == [
        "Intercept | Subject", "Days | Subject", "Residual"
    ]  # fmt: skip
    assert part.iloc[:, 0].to_list() == ["24.740", "5.922", "25.592"]
    assert (part.iloc[:, 1] == "").all()
    correlation = frame.loc["Random effects: correlation"]
    assert correlation.iloc[0, 0] == "0.066"
    assert frame.loc["Groups"].iloc[0, 0] == "18"
    text = ds.etable(slopes, ols, labels={"Days": "Day"}).as_text()
    assert "Day | Subject" in text
    without = ds.etable(slopes, ols, random=False).frame
    assert not any("Random" in part for part, *_ in without.index)


def test_etable_stars_use_each_coefficients_degrees_of_freedom():
    """A covariate of six groups has four degrees of freedom, not hundreds."""
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(6), 30)
    level = np.array([-2.0, -1, 0, 0, 1, 2])
    effect = 0.9 * level + np.array([1.3, -1.2, 0.4, -0.9, -0.6, 1.0])
    data = pd.DataFrame({"g": g, "level": level[g]})
    data["y"] = effect[g] + rng.normal(size=180)
    fit = ds.lmer("y ~ level + (1 | g)", data).fit()
    p, z = fit.pvalues["level"], fit.with_ddf("normal").pvalues["level"]
    assert z < 0.01 < p < 0.05  # or the test would say nothing
    cell = ds.etable(fit).frame.xs("level", level="term").iloc[0, 0]
    assert cell.endswith("*")
    assert not cell.endswith("**")


def test_etable_numbers_an_effect_that_two_terms_share():
    rows = [("g", "x", None, 1.0), ("g", "x", None, 2.0), ("Residual", None, None, 3.0)]
    frame = pd.DataFrame(rows, columns=["grp", "var1", "var2", "sdcor"])
    found = _random_parameters(SimpleNamespace(varcorr=frame), 1, {"x": "dose"})
    assert {label: cell for (_, label), cell in found.items()} == {
        "dose | g": "1.0", "dose | g (2)": "2.0", "Residual": "3.0"
    }  # fmt: skip
