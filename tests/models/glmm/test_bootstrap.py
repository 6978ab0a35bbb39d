"""Fits to other responses, and the parametric bootstrap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import (
    ConvergenceWarning,
    DesignError,
    ModelError,
    SingularFitWarning,
)
from deepstats.models.glmm import MixedGLM

from .data import fit, load
from .panels import fitted, panel


@pytest.fixture(scope="module")
def counts():
    return MixedGLM("y ~ x + (1 | g)", panel(), family="poisson").fit()


@pytest.fixture(scope="module")
def boot(counts):
    return counts.bootstrap(60, seed=4)


# -- refit -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip", "nb2", "logit"])
def test_refit_is_a_fit_to_the_new_response(name):
    results = fitted(name)
    y = results.simulate(1, seed=2)["sim_1"]
    again = results.refit(y)
    model = results.model
    column = model.design.y_name
    formula = model.design.spec.formula.text
    options = {"family": "binomial" if name == "logit" else name}
    if name == "zip":
        options["zi_formula"] = "~ x"
    fresh = MixedGLM(formula, panel().assign(**{column: y}), **options).fit()
    assert again.llf == pytest.approx(fresh.llf, abs=1e-6)
    np.testing.assert_allclose(again.params, fresh.params, atol=1e-3 * fresh.bse.max())
    np.testing.assert_allclose(again.bse, fresh.bse, rtol=1e-2)
    # The fit at hand is left as it was.
    assert results.model is model and model.design.y is not again.model.design.y


def test_refit_to_its_own_response_changes_nothing(counts):
    again = counts.refit()
    assert again.llf == pytest.approx(counts.llf, abs=1e-9)
    np.testing.assert_allclose(again.params, counts.params, atol=1e-6)


def test_refit_takes_proportions_of_the_trials_at_hand():
    results = fit("glmmTMB.cbpp_binomial")
    y = results.simulate(1, seed=1)["sim_1"]
    data = load("cbpp").assign(incidence=lambda d: (y * d["size"]).round())
    fresh = MixedGLM(
        "cbind(incidence, size - incidence) ~ period + (1 | herd)", data,
        family="binomial",
    ).fit()  # fmt: skip
    assert results.refit(y).llf == pytest.approx(fresh.llf, abs=1e-7)


def test_refit_keeps_quadrature():
    results = fit("lme4.cbpp_agq9")
    assert results.refit(results.simulate(1, seed=3)["sim_1"]).nagq == 9


def test_refit_refuses_what_is_no_response(counts):
    y = counts.simulate(1, seed=1)["sim_1"]
    with pytest.raises(DesignError, match="y has 3 values"):
        counts.refit(y[:3])
    with pytest.raises(DesignError, match="one column of numbers"):
        counts.refit(np.full(len(y), "a"))
    with pytest.raises(DesignError, match="poisson"):
        counts.refit(y - 5)
    with pytest.raises(DesignError, match="constant"):
        counts.refit(0 * y)


# -- the bootstrap ---------------------------------------------------------------------


def test_replicates_are_refits_to_simulated_responses(counts, boot):
    from deepstats.models.glmm.forecast import simulated

    draws = simulated(counts, 2, np.random.default_rng(4))
    for number, y in enumerate(draws):
        again = counts.refit(y)
        row = boot.frame.iloc[number]
        np.testing.assert_allclose(row[["Intercept", "x"]], again.params, atol=1e-4)
        sd = again.varcorr["sdcor"][0]
        assert row["sd(Intercept)|g"] == pytest.approx(sd, abs=1e-4)


def test_replicates_spread_as_the_standard_errors_say(counts, boot):
    assert (boot.replications, boot.failed) == (60, 0)
    assert list(boot.frame) == ["sd(Intercept)|g", "Intercept", "x"]
    assert boot.estimate["x"] == counts.params["x"]
    noise = 3.5 / np.sqrt(2 * 60)
    ratio = boot.bse[["Intercept", "x"]] / counts.bse
    assert (np.abs(ratio - 1) < noise).all()
    # Few groups: the variance is underestimated.
    assert boot.bias["sd(Intercept)|g"] < 0


def test_intervals_of_every_kind(counts, boot):
    frame = boot.frame
    quantiles = frame.quantile([0.05, 0.95]).T.to_numpy()
    np.testing.assert_allclose(boot.conf_int(0.1), quantiles)
    center = boot.estimate.to_numpy()[:, None]
    np.testing.assert_allclose(
        boot.conf_int(0.1, "basic"), 2 * center - quantiles[:, ::-1]
    )
    normal = boot.conf_int(0.1, "normal")
    np.testing.assert_allclose(normal.mean(axis=1), 2 * boot.estimate - frame.mean())
    found = counts.conf_int(0.1, "boot", replications=6, seed=4)
    pd.testing.assert_frame_equal(found, counts.bootstrap(6, seed=4).conf_int(0.1))
    with pytest.raises(ValueError, match="kind must be"):
        boot.conf_int(kind="bca")


def test_a_statistic_and_effects_that_are_kept(counts):
    found = counts.bootstrap(
        20, seed=1, statistic=lambda r: r.predict(marginal=True).mean(), re_form=None
    )
    assert found.frame.shape == (20, 1)
    drawn = counts.bootstrap(20, seed=1)
    kept = counts.bootstrap(20, seed=1, re_form=None)
    # The modes vary less than effects that are drawn.
    assert kept.bse["Intercept"] < 0.7 * drawn.bse["Intercept"]


def test_restricted_fits_are_refitted_so():
    results = MixedGLM("y ~ x + (1 | g)", panel(), family="poisson").fit(reml=True)
    ml = results.refit(reml=False)
    restricted = results.bootstrap(15, seed=2).frame["sd(Intercept)|g"]
    y = results.simulate(1, seed=9)["sim_1"]
    assert results.refit(y).reml
    assert restricted.mean() > ml.bootstrap(15, seed=2).frame["sd(Intercept)|g"].mean()


def test_failures_are_counted():
    """Few binary responses: some replicates are separated, or all alike."""
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": np.repeat(np.arange(6), 3), "z": np.tile([0, 0, 1], 6)})
    data["y"] = rng.binomial(1, 0.15 + 0.5 * data["z"])
    with pytest.warns(SingularFitWarning):
        results = MixedGLM("y ~ z + (1 | g)", data, family="binomial").fit()
    with pytest.warns(ConvergenceWarning, match="did not converge and are left out"):
        found = results.bootstrap(12, seed=1)
    assert 0 < found.failed < 12 and len(found.frame) == 12 - found.failed
    assert np.isfinite(found.frame["z"]).all()


def test_bad_input_and_weights(counts):
    with pytest.raises(ValueError, match="replications must be 2"):
        counts.bootstrap(1)
    data = panel().assign(w=np.linspace(0.5, 2, 360))
    weighted = MixedGLM("y ~ x + (1 | g)", data, family="poisson", weights="w").fit()
    with pytest.raises(ModelError, match="no distribution to draw"):
        weighted.bootstrap(5)
