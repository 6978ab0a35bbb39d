"""The printed page of generalised linear mixed models."""

from __future__ import annotations

import re

import pytest

from deepstats.models.glmm.page import family_text
from deepstats.summary import Table

from .data import fit
from .panels import fitted


@pytest.fixture(scope="module")
def cbpp():
    return fit("glmmTMB.cbpp_binomial")


def in_order(text, *parts):
    """Whether parts stand in a text one after the other."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
    return True


def test_a_page_is_laid_out_as_glmmtmb_does(cbpp):
    text = cbpp.summary().as_text()
    assert max(map(len, text.splitlines())) <= 78
    assert in_order(
        text, "Generalised linear mixed model", "cbind(incidence", "binomial (logit)",
        "Random effects", "Variance", "herd", "Fixed effects", "period[T.4]",
    )  # fmt: skip
    assert re.search(r"AIC +194\.05", text)
    assert re.search(r"Groups: herd +15", text)
    assert re.search(r"Trials +2 to 34", text)
    assert re.search(r"herd +Intercept +0\.4125 +0\.6423", text)
    assert re.search(r"period\[T\.4\] +-1\.5803 +0\.4274 +-3\.697 +0\.000", text)
    assert "Residual" not in text


def test_every_part_has_its_block():
    results = fitted("zip")
    text = results.summary().as_text()
    assert in_order(
        text, "zero-inflated Poisson (log)", "Offset", "Corr",
        "Conditional model (log)",
        "Zero-inflation part: probability of an excess zero (logit)",
    )  # fmt: skip
    assert "inflate:" not in text
    hurdle = fit("glmmTMB.salamanders_hurdle_poisson").summary().as_text()
    assert "Hurdle part: probability of a positive count (logit)" in hurdle
    assert max(map(len, hurdle.splitlines())) <= 78
    spread = fit("glmmTMB.sleepstudy_disp").summary().as_text()
    assert "Dispersion part: sigma (log)" in spread


def test_a_dispersion_has_no_test():
    results = fitted("nb2")
    assert family_text(results) == "negative binomial 2 (log)"
    table = next(
        b for b in results.summary().blocks
        if isinstance(b, Table) and "coef" in b.frame
    ).frame  # fmt: skip
    assert list(table.loc["alpha", ["z", "P>|z|"]]) == ["", ""]
    assert float(table.loc["alpha", "coef"]) == pytest.approx(
        results.params["alpha"], abs=1e-4
    )
    assert table.loc["x", "z"] != ""


def test_how_it_was_fitted_is_said(cbpp):
    assert "ML, Laplace" in cbpp.summary().as_text()
    assert "9 points" in fit("lme4.cbpp_agq9").summary().as_text()
    assert "ML, Laplace (expected)" in fitted("cloglog").summary().as_text()


def test_correlations_stand_beside_their_variances():
    results = fitted("zip")
    correlation = results.varcorr.query("var2 == 'x'")["sdcor"].iloc[0]
    assert f"{correlation:.3f}" in results.summary().as_text()


def test_other_renderings_hold_the_same(cbpp):
    page = cbpp.summary(alpha=0.1)
    assert "[0.05" in page.as_text()
    for text in (page.as_html(), page.as_latex()):
        assert "Random effects" in text
        assert "0.6423" in text
    assert cbpp._repr_html_() == cbpp.summary().as_html()


def test_singular_fits_are_noted():
    results = fit("glmmTMB.epil2_nbinom2")
    text = results.summary().as_text()
    assert re.search(r"Singular +YES", text)
    assert "singular fit" in text
