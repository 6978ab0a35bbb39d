"""Other packages' tables and effects of our fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats import GLM, OLS
from deepstats.adapters import for_marginaleffects
from deepstats.models.categorical import MultinomialModel
from deepstats.models.counts import NegativeBinomialModel

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def package():
    return pytest.importorskip("marginaleffects")


@pytest.mark.parametrize(
    ("fit", "levels"),
    [
        (
            lambda d: GLM("count ~ poly(x, 2) * z", d, family="poisson").fit("HC1"),
            False,
        ),
        (lambda d: OLS("y ~ x * z", d).fit("HC3"), False),
        (lambda d: NegativeBinomialModel("count ~ x + z", d).fit(), False),
        (lambda d: GLM("count ~ ns(x, 3) * a", d, family="poisson").fit("HC1"), True),
        (lambda d: NegativeBinomialModel("count ~ x + C(a)", d).fit(), True),
    ],
)
def test_slopes_are_our_marginal_effects(small, package, fit, levels):
    if levels and int(pytest.importorskip("polars").__version__.split(".")[0]) > 1:
        pytest.skip("marginaleffects 0.6 cannot read levels from polars 2")
    results = fit(small)
    found = package.avg_slopes(for_marginaleffects(results)).to_pandas()
    theirs = found.set_index(["term", "contrast"])
    ours = results.marginal_effects()
    assert len(theirs) == len(ours)
    for _, row in ours.iterrows():
        label = "dY/dX" if row["contrast"] == "dY/dX" else row["contrast"]
        other = theirs.loc[(row["variable"], label)]
        # marginaleffects differentiates numerically, with steps of its own
        assert other["estimate"] == pytest.approx(row["effect"], rel=1e-3, abs=1e-5)
        assert other["std_error"] == pytest.approx(row["std_error"], rel=1e-3)


def test_predictions_and_their_errors(small, package):
    results = GLM("hit ~ x + a", small, family="binomial").fit()
    model = for_marginaleffects(results)
    found = package.predictions(model, vcov="HC1").to_pandas()
    robust = results.get_robustcov_results("HC1").get_prediction()
    np.testing.assert_allclose(found["estimate"], robust.predicted_mean, rtol=1e-10)
    np.testing.assert_allclose(found["std_error"], robust.se_mean, rtol=1e-4)


def test_levels_are_groups(small, package):
    results = MultinomialModel("a ~ x", small).fit()
    found = package.avg_slopes(for_marginaleffects(results)).to_pandas()
    ours = results.marginal_effects()
    theirs = found.set_index("group").loc[ours["outcome"]]
    np.testing.assert_allclose(theirs["estimate"], ours["effect"], rtol=1e-3)
    np.testing.assert_allclose(theirs["std_error"], ours["std_error"], rtol=1e-3)
    assert abs(ours["effect"].sum()) < 1e-10


def test_maketables_sets_a_table(small):
    maketables = pytest.importorskip("maketables")
    fits = [OLS("y ~ x", small).fit("HC1"), OLS("y ~ x + z", small).fit()]
    table = maketables.ETable(fits)
    text = table.make(type="tex")
    assert f"{fits[1].params['z']:.3f}" in str(text)
    frame = fits[0].__maketables_coef_table__
    assert list(frame.columns[:4]) == ["b", "se", "t", "p"]
    pd.testing.assert_series_equal(
        frame["se"], fits[0].bse, check_names=False, check_index=False
    )
    assert fits[0].__maketables_stat__("N") == len(small)
    assert fits[0].__maketables_stat__("r2") == fits[0].rsquared
    assert fits[0].__maketables_stat__("unknown") is None
