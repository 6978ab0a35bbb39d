"""Estimated marginal means of generalised linear mixed models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from deepstats.errors import ModelError
from deepstats.models.glmm import MixedGLM

from .data import fit
from .panels import fitted, panel

Z = stats.norm.ppf(0.975)


@pytest.fixture(scope="module")
def cbpp():
    return fit("glmmTMB.cbpp_binomial")


def test_means_of_one_factor(cbpp):
    found = cbpp.marginal_means("period")
    L = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    eta = L @ cbpp.params.to_numpy()
    se = np.sqrt(np.diag(L @ cbpp.cov_params().to_numpy() @ L.T))
    p = 1 / (1 + np.exp(-eta))
    assert list(found.frame["period"]) == ["1", "2", "3", "4"]
    np.testing.assert_allclose(found.frame["link"], eta)
    np.testing.assert_allclose(found.frame["link_se"], se)
    np.testing.assert_allclose(found.frame["mean"], p)
    np.testing.assert_allclose(found.frame["std_error"], p * (1 - p) * se)
    np.testing.assert_allclose(
        found.frame["conf_high"], 1 / (1 + np.exp(-eta - Z * se))
    )
    assert found.contrasts is None


def test_pairs_are_odds_ratios(cbpp):
    found = cbpp.marginal_means("period", pairs=True, adjust="none")
    frame = found.contrasts.set_index("contrast")
    row = frame.loc["2 - 3"]
    same = cbpp.t_test("period[T.2] - period[T.3]").frame.iloc[0]
    assert row["estimate"] == pytest.approx(same["coef"])
    assert row["std_error"] == pytest.approx(same["std err"])
    assert row["p_value"] == pytest.approx(same["pvalue"])
    assert row["conf_low"] == pytest.approx(same["lower"])
    assert row["effect_high"] == pytest.approx(np.exp(same["upper"]))
    assert found.effect == "odds ratio"
    assert len(frame) == 6


def test_adjustments_for_the_number_of_pairs(cbpp):
    plain = cbpp.marginal_means("period", pairs=True, adjust="none").contrasts
    z = plain["z"].abs().to_numpy()

    def below(q, means=4):
        """Distribution of the range of independent normals."""
        value, _ = integrate.quad(
            lambda t: stats.norm.pdf(t)
            * (stats.norm.cdf(t) - stats.norm.cdf(t - q)) ** (means - 1),
            -10, 10 + q,
        )  # fmt: skip
        return means * value

    tukey = cbpp.marginal_means("period", pairs=True).contrasts
    expected = [1 - below(np.sqrt(2) * v) for v in z]
    np.testing.assert_allclose(tukey["p_value"], expected, atol=1e-6)
    half = (tukey["conf_high"] - tukey["conf_low"]) / 2 / tukey["std_error"]
    assert below(np.sqrt(2) * half[0]) == pytest.approx(0.95, abs=1e-6)
    bonferroni = cbpp.marginal_means("period", pairs=True, adjust="bonferroni")
    np.testing.assert_allclose(
        bonferroni.contrasts["p_value"], np.minimum(6 * plain["p_value"], 1)
    )
    holm = cbpp.marginal_means("period", pairs=True, adjust="holm").contrasts
    order = np.argsort(plain["p_value"].to_numpy())
    steps = np.maximum.accumulate(
        plain["p_value"].to_numpy()[order] * np.arange(6, 0, -1)
    )
    np.testing.assert_allclose(holm["p_value"].to_numpy()[order], np.minimum(steps, 1))


def test_other_factors_are_averaged_and_covariates_at_their_mean():
    data = panel().assign(u=np.where(np.arange(360) % 3, "low", "high"))
    results = MixedGLM(
        "y ~ f * u + x + (1 | g)", data, family="poisson", exposure="t"
    ).fit()
    found = results.marginal_means("f").frame
    b = results.params
    offset = float(np.log(data["t"]).mean())
    base = b["Intercept"] + b["x"] * data["x"].mean() + offset
    for level, row in found.set_index("f").iterrows():
        own = 0.0 if level == "a" else b[f"f[T.{level}]"]
        crossed = 0.0 if level == "a" else b[f"f[T.{level}]:u[T.low]"]
        expected = base + own + (b["u[T.low]"] + crossed) / 2
        assert row["link"] == pytest.approx(expected)
        assert row["mean"] == pytest.approx(np.exp(expected))
    cells = results.marginal_means("f:u", offset=0.0)
    assert len(cells.frame) == 6
    average = cells.frame.groupby("f")["link"].mean() + offset
    np.testing.assert_allclose(average, found["link"])
    only = results.marginal_means("f", at={"u": "low"}).frame
    cell = cells.frame.query("u == 'low'")["link"] + offset
    np.testing.assert_allclose(only["link"], cell)


def test_a_covariate_needs_values():
    results = fitted("nb2")
    with pytest.raises(ModelError, match="give its values"):
        results.marginal_means("x")
    found = results.marginal_means("x", at={"x": [0.0, 1.0]}, pairs=True)
    row = found.contrasts.iloc[0]
    assert row["effect"] == pytest.approx(np.exp(-results.params["x"]))
    assert found.effect == "ratio"
    # Two means have one difference: Tukey's is the plain test.
    assert row["p_value"] == pytest.approx(results.pvalues["x"])


def test_a_link_without_ratios_keeps_its_scale():
    found = fitted("cloglog").marginal_means("x", at={"x": [0.0, 1.0]}, pairs=True)
    assert found.effect == "link"
    assert found.contrasts["effect"][0] == found.contrasts["estimate"][0]


def test_the_zero_part_has_no_part_in_it():
    results = fitted("zip")
    found = results.marginal_means("x", at={"x": [0.5]}, offset=0.0).frame
    assert found["link"][0] == pytest.approx(results.params[:2] @ [1, 0.5])


@pytest.mark.parametrize(
    ("term", "options", "error", "match"),
    [
        ("herd", {}, ModelError, "no variable of the fixed part"),
        ("period", {"at": {"size": 3}}, ModelError, "not in the fixed part"),
        ("period", {"adjust": "scheffe"}, ValueError, "adjust must be"),
        ("period", {"alpha": 0}, ValueError, "alpha"),
        ("period", {"at": {"period": "1"}, "pairs": True}, ModelError, "no pairs"),
    ],
)
def test_bad_requests_are_refused(cbpp, term, options, error, match):
    with pytest.raises(error, match=match):
        cbpp.marginal_means(term, **options)


def test_the_page_fits(cbpp):
    found = cbpp.marginal_means("period", pairs=True)
    text = repr(found)
    assert max(map(len, text.splitlines())) <= 78
    assert "odds ratio" in text
    assert "adjustment: tukey" in text
