"""Predictions and simulations of generalised linear mixed models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, linalg, stats

from deepstats.errors import BoundaryWarning, DesignError, ModelError
from deepstats.models.glmm import MixedGLM, MixedGLMResults

from .data import fit, load
from .panels import fitted, panel
from .recorded import recorded

Z = stats.norm.ppf(0.975)


@pytest.fixture(scope="module")
def cbpp():
    return fit("glmmTMB.cbpp_binomial")


def dense(results):
    """Return columns of all random effects, their covariance, in the data's units."""
    design, structure = results.model.design, results.mixed.structure
    columns, blocks = [], []
    for j in range(len(structure.factors)):
        factor = structure.factors[j]
        own = np.eye(factor.m)[factor.codes]
        for term in structure.of(j):
            Zt = design.random[term.order].Z.to_dense().numpy()
            columns.append((own[:, :, None] * Zt[:, None]).reshape(design.n, -1))
            own_V = results.mixed.covariances[term.order]
            blocks.append(np.kron(np.eye(factor.m), own_V))
    return np.concatenate(columns, axis=1), linalg.block_diag(*blocks)


def numeric(function, results):
    """Central differences of a function of (x, gamma)."""
    point = results.found.point
    at, k = np.concatenate([point.x, point.gamma]), len(point.x)
    out = []
    for j in range(len(at)):
        h = 1e-4 * max(abs(at[j]), 0.1)
        step = h * (np.arange(len(at)) == j)
        up, down = at + step, at - step
        out.append((function(up[:k], up[k:]) - function(down[:k], down[k:])) / (2 * h))
    return np.stack(out, axis=1)


# -- points ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip", "poisson", "nb2", "logit"])
def test_predictions_of_the_data_are_fitted_values(name):
    results = fitted(name)
    np.testing.assert_allclose(results.predict(), results.fittedvalues, rtol=1e-9)
    again = results.predict(panel())
    np.testing.assert_allclose(again, results.fittedvalues, rtol=1e-9)
    eta = results.predict(which="link")
    np.testing.assert_allclose(eta, results.linear_predictor, atol=1e-9)


def test_predictions_of_lme4(cbpp):
    """glmer's default optimum is 1e-3 from the polished one: so are its predictions."""
    record = recorded("lme4", "inference", "predict_cbpp")
    np.testing.assert_allclose(
        cbpp.predict(which="link")[:5], record["link_first5"], atol=1e-3
    )
    np.testing.assert_allclose(cbpp.predict()[:5], record["response_first5"], atol=2e-4)
    np.testing.assert_allclose(
        cbpp.predict(re_form="none")[:5],
        record["population_response_first5"],
        atol=2e-4,
    )


def test_parts_of_a_zero_inflated_mean():
    results = fitted("zip")
    b = results.params
    x = panel()["x"]
    zero = 1 / (1 + np.exp(-(b["inflate:Intercept"] + b["inflate:x"] * x)))
    np.testing.assert_allclose(results.predict(which="zero"), zero)
    mu = results.predict(which="conditional")
    np.testing.assert_allclose(mu, np.exp(results.linear_predictor))
    np.testing.assert_allclose(results.predict(), (1 - zero) * mu)
    with pytest.raises(ModelError, match="allowed: response, link, conditional, zero"):
        results.predict(which="dispersion")


def test_a_hurdle_and_a_dispersion_are_predicted():
    results = fit("glmmTMB.salamanders_hurdle_poisson")
    eta = results.found.point.modes.etas[1].numpy()
    np.testing.assert_allclose(results.predict(which="zero"), 1 / (1 + np.exp(eta)))
    spread = fit("glmmTMB.sleepstudy_disp")
    b, days = spread.params, load("sleepstudy")["Days"]
    sigma = np.exp(b["sigma:Intercept"] + b["sigma:Days"] * days)
    np.testing.assert_allclose(spread.predict(which="dispersion"), sigma)
    np.testing.assert_allclose(spread.predict(which="sigma"), sigma)


def test_some_effects_may_be_kept():
    results, data = fitted("zip"), panel()
    b = results.params
    u = results.ranef()["g"].loc[data["g"]].to_numpy()
    fixed = b["Intercept"] + b["x"] * data["x"] + np.log(data["t"])
    only = results.predict(data, which="link", re_form="~ (1 | g)")
    np.testing.assert_allclose(only, fixed + u[:, 0])
    both = results.predict(data, which="link", re_form="~ (1 + x | g)")
    np.testing.assert_allclose(both, fixed + u[:, 0] + u[:, 1] * data["x"])


def test_new_levels_are_refused_unless_allowed(cbpp):
    new = pd.DataFrame({"herd": ["1", "new"], "period": ["1", "2"]})
    with pytest.raises(DesignError, match="new"):
        cbpp.predict(new)
    allowed = cbpp.predict(new, allow_new_levels=True, which="link")
    assert allowed[1] == pytest.approx(cbpp.params.iloc[0] + cbpp.params.iloc[1])
    frame = cbpp.predict(
        new, allow_new_levels=True, which="link", interval="confidence"
    )
    population = cbpp.predict(new, re_form="none", which="link", interval="confidence")
    variance = frame["mean_se"][1] ** 2 - population["mean_se"][1] ** 2
    assert variance == pytest.approx(cbpp.varcorr["vcov"].iloc[0])


def test_population_predictions_need_no_groups_and_missing_rows_get_nan(cbpp):
    new = pd.DataFrame({"period": ["1", None, "4"]}, index=["a", "b", "c"])
    found = cbpp.predict(new, re_form="none", marginal=True, interval="confidence")
    assert list(found.index) == ["a", "b", "c"]
    assert found.loc["b"].isna().all()
    assert found.loc[["a", "c"]].notna().all(axis=None)


def test_rows_left_out_of_the_fit_are_left_out_of_what_follows():
    data = panel()
    data.loc[[3, 50], "x"] = np.nan
    results = MixedGLM("y ~ x + f + (1 | g)", data, family="nb2").fit()
    kept = data.dropna()
    for values in (
        results.fittedvalues, results.resid_quantile(1), results.simulate(1, seed=1),
        results.resid_pearson, results.augment(),
    ):  # fmt: skip
        assert list(values.index) == list(kept.index)
    found = results.predict(data)
    assert list(found.index[found.isna()]) == [3, 50]
    np.testing.assert_allclose(found.dropna(), results.fittedvalues)
    at_mean = results.marginal_means("f").frame["link"]
    given = results.marginal_means("f", at={"x": kept["x"].mean()}).frame["link"]
    np.testing.assert_allclose(at_mean, given)


def test_offset_and_exposure_of_new_data():
    results, data = fitted("poisson"), panel()
    twice = results.predict(data, exposure=2 * data["t"])
    np.testing.assert_allclose(twice, 2 * results.fittedvalues)
    with pytest.raises(ValueError, match="goes with new data"):
        results.predict(exposure=2.0)
    given = MixedGLM(
        "y ~ x + (1 | g)", data, family="poisson", offset=np.log(data["t"])
    ).fit()
    with pytest.raises(DesignError, match="offset"):
        given.predict(data)
    np.testing.assert_allclose(
        given.predict(data, offset=0.0), given.fittedvalues / data["t"]
    )


# -- standard errors -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip", "nb2", "logit", "cloglog"])
def test_errors_of_the_link_by_dense_matrices(name):
    """``z'H^-1 z + J V J'``, with H dense and J by differences of modes found anew."""
    results = fitted(name)
    point = results.found.point
    columns, V = dense(results)
    w = point.modes.slopes.weight.numpy()
    H = (columns * w[:, None]).T @ columns + np.linalg.inv(V)
    conditional = np.einsum("ij,jk,ik->i", columns, np.linalg.inv(H), columns)

    def eta(x, gamma):
        return point.laplace.modes(x, gamma).etas[0].numpy()

    J = numeric(eta, results)
    expected = conditional + np.einsum("ij,jk,ik->i", J, results.joint_cov, J)
    found = results.predict(which="link", interval="confidence")
    np.testing.assert_allclose(found["mean_se"] ** 2, expected, rtol=1e-4)
    again = results.predict(panel(), which="link", interval="confidence")
    np.testing.assert_allclose(again["mean_se"], found["mean_se"], rtol=1e-10)
    np.testing.assert_allclose(
        found["mean_ci_upper"], found["mean"] + Z * found["mean_se"]
    )


def test_errors_of_the_population():
    results = fitted("logit")
    X = results.model.design.X.to_dense().numpy()
    variance = np.einsum("ij,jk,ik->i", X, results.cov_params().to_numpy(), X)
    link = results.predict(re_form="none", which="link", interval="confidence")
    np.testing.assert_allclose(link["mean_se"], np.sqrt(variance))
    mean = results.predict(re_form="none", interval="confidence")
    p = mean["mean"]
    np.testing.assert_allclose(mean["mean_se"], p * (1 - p) * link["mean_se"])
    np.testing.assert_allclose(
        mean["mean_ci_lower"], 1 / (1 + np.exp(-link["mean_ci_lower"]))
    )


def test_errors_of_a_mean_of_two_predictors():
    """The mean of zero-inflated counts by differences in all parameters."""
    results = fitted("zip")
    found = results.predict(re_form="none", interval="confidence")
    data, k = panel(), len(results.found.point.x)

    def mean(x, gamma):
        eta = gamma[0] + gamma[1] * data["x"] + np.log(data["t"])
        return np.exp(eta) / (1 + np.exp(gamma[2] + gamma[3] * data["x"]))

    J = numeric(mean, results)
    np.testing.assert_allclose(J[:, :k], 0, atol=1e-12)
    variance = np.einsum("ij,jk,ik->i", J, results.joint_cov, J)
    np.testing.assert_allclose(found["mean_se"], np.sqrt(variance), rtol=1e-6)
    np.testing.assert_allclose(
        found["mean_ci_upper"], found["mean"] + Z * found["mean_se"]
    )


def test_predictions_and_errors_of_glmmtmb(cbpp):
    """Of ``predict(se.fit = TRUE)`` of glmmTMB 1.1.5, whose optimum has four digits."""
    link = cbpp.predict(which="link", interval="confidence")["mean_se"]
    np.testing.assert_allclose(
        link[:4], [0.37833013, 0.43020006, 0.44951077, 0.53248750], rtol=2e-4
    )
    mean = cbpp.predict(interval="confidence")["mean_se"]
    np.testing.assert_allclose(
        mean[:4], [0.08066592, 0.05233629, 0.04948767, 0.04098446], rtol=2e-4
    )
    new = pd.DataFrame({"herd": ["new"], "period": ["2"]})
    found = cbpp.predict(
        new, which="link", interval="confidence", allow_new_levels=True
    )
    assert found["mean_se"][0] == pytest.approx(0.71325505, rel=2e-4)
    formula = "count ~ mined + (1 | site)"
    records = {
        "zip": {
            "link": ([0.0386570, 0.4806568, -0.1380438],
                     [0.3070488, 0.1920779, 0.4490400]),
            "response": ([0.2520039, 0.3920716, 0.2111870],
                         [0.0691906, 0.0968448, 0.0805964]),
            "conditional": ([1.0394139, 1.6171362, 0.8710605],
                            [0.3191508, 0.3106161, 0.3911410]),
            "zero": ([0.7575519] * 3, [0.0431778] * 3),
        },
        "hurdle": {
            "response": ([0.2760326, 0.3033797, 0.2867982],
                         [0.0491790, 0.0514751, 0.0550975]),
            "conditional": ([1.7350656, 1.9069621, 1.8027355],
                            [0.2095118, 0.2056268, 0.2533194]),
            "zero": ([0.8409094] * 3, [0.0208411] * 3),
        },
    }  # fmt: skip
    for family, record in records.items():
        results = MixedGLM(
            formula, load("Salamanders"), family=family, zi_formula="~ mined"
        ).fit()
        for which, (values, errors) in record.items():
            found = results.predict(which=which, interval="confidence")[:3]
            np.testing.assert_allclose(found["mean"], values, rtol=1e-4)
            np.testing.assert_allclose(found["mean_se"], errors, rtol=2e-4)


# -- marginal means --------------------------------------------------------------------


def test_marginal_means_are_integrals():
    results, data = fitted("logit"), panel()
    X = results.model.design.X.to_dense().numpy()
    sd = np.sqrt(results.varcorr["vcov"].sum())
    found = results.predict(marginal=True)
    for row in range(3):
        eta = X[row] @ results.params.to_numpy()
        expected, _ = integrate.quad(
            lambda b, e=eta: stats.norm.pdf(b, scale=sd) / (1 + np.exp(-e - b)), -20, 20
        )
        assert found.iloc[row] == pytest.approx(expected, rel=1e-9)
    again = results.predict(data.drop(columns=["g", "h"]), marginal=True)
    np.testing.assert_allclose(again, found)


def test_marginal_means_of_a_log_link_are_in_closed_form():
    """``exp(x'b + z'Vz / 2)``, and its derivatives for the standard error."""
    results, data = fitted("poisson"), panel()
    point = results.found.point
    X = results.model.design.X.to_dense().numpy()
    found = results.predict(marginal=True, interval="confidence")

    def mean(x, gamma):
        variance = (results.mixed.structure.raw_roots(x)[0] ** 2)[0, 0]
        return np.exp(X @ gamma + np.log(data["t"].to_numpy()) + variance / 2)

    np.testing.assert_allclose(found["mean"], mean(point.x, point.gamma), rtol=1e-10)
    J = numeric(mean, results)
    variance = np.einsum("ij,jk,ik->i", J, results.joint_cov, J)
    np.testing.assert_allclose(found["mean_se"], np.sqrt(variance), rtol=1e-5)
    np.testing.assert_allclose(
        np.log(found["mean_ci_upper"] / found["mean"]),
        Z * found["mean_se"] / found["mean"],
    )  # fmt: skip


def test_marginal_over_some_effects_with_slopes():
    """``z'Vz`` of the terms left out, the modes of the others kept."""
    results, data = fitted("zip"), panel()
    kept = results.predict(re_form="~ (1 | h)", which="conditional")
    found = results.predict(re_form="~ (1 | h)", which="conditional", marginal=True)
    z = np.column_stack([np.ones(len(data)), data["x"]])
    variance = np.einsum("ij,jk,ik->i", z, results.mixed.covariances[0], z)
    np.testing.assert_allclose(found, kept * np.exp(variance / 2), rtol=1e-8)


# -- new observations and simulations --------------------------------------------------


def test_prediction_intervals_cover_new_responses():
    results = fitted("zip")
    found = results.predict(re_form="none", interval="prediction", seed=3, level=0.9)
    draws = results.simulate(200, seed=4)
    inside = draws.ge(found["obs_ci_lower"], axis=0) & draws.le(
        found["obs_ci_upper"], axis=0
    )
    # Counts: at least the level; a little more for the uncertain estimates.
    assert 0.89 < inside.to_numpy().mean() < 0.99
    same = results.predict(re_form="none", interval="prediction", seed=3, level=0.9)
    pd.testing.assert_frame_equal(found, same)


def test_prediction_intervals_take_trials(cbpp):
    new = pd.DataFrame({"period": ["1", "1"]})
    options = {"re_form": "none", "interval": "prediction", "seed": 1}
    few = cbpp.predict(new, size=2, **options)
    many = cbpp.predict(new, size=[200, 200], **options)
    assert set(few["obs_ci_upper"]) <= {0.0, 0.5, 1.0}
    assert (many["obs_se"] < few["obs_se"]).all()
    with pytest.raises(ValueError, match="whole numbers"):
        cbpp.predict(new, size=0.5, **options)
    with pytest.raises(ValueError, match="no trials"):
        fitted("nb2").predict(interval="prediction", size=3)


def test_simulated_responses_have_the_marginal_moments():
    results = fitted("poisson")
    draws = results.simulate(3000, seed=9).to_numpy()
    mean = results.predict(marginal=True).to_numpy()
    v = float(results.varcorr["vcov"].iloc[0])
    variance = mean + mean**2 * np.expm1(v)
    z = (draws.mean(1) - mean) / np.sqrt(variance / 3000)
    assert abs(z).max() < 5
    np.testing.assert_allclose(draws.var(1).mean(), variance.mean(), rtol=0.1)


def test_simulations_are_reproducible_and_may_keep_modes():
    results = fitted("poisson")
    one, two = results.simulate(2, seed=1), results.simulate(2, seed=1)
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(results.simulate(2, seed=2))
    kept = results.simulate(400, seed=1, re_form=None).to_numpy()
    mean = results.fittedvalues.to_numpy()
    assert abs((kept.mean(1) - mean) / np.sqrt(mean / 400)).max() < 5
    with pytest.raises(ValueError, match="nsim"):
        results.simulate(0)


def test_simulated_proportions_are_of_their_trials(cbpp):
    draws = (
        cbpp.simulate(5, seed=1).to_numpy() * load("cbpp")["size"].to_numpy()[:, None]
    )
    np.testing.assert_allclose(draws, draws.round(), atol=1e-9)


def test_prior_weights_have_no_distribution():
    data = panel().assign(w=1.5)
    results = MixedGLM("y ~ x + (1 | g)", data, family="poisson", weights="w").fit()
    with pytest.raises(ModelError, match="prior weights"):
        results.simulate(seed=1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"interval": "both"}, ValueError, "interval must be"),
        ({"level": 1.5}, ValueError, "level must be"),
        ({"which": "median"}, ModelError, "not known"),
        ({"which": "link", "marginal": True}, ValueError, "marginal=True averages"),
        ({"which": "link", "interval": "prediction"}, ValueError, "is of the response"),
        ({"re_form": "~ (1 | k)"}, ModelError, "k"),
    ],
)
def test_bad_requests_are_refused(cbpp, options, error, match):
    with pytest.raises(error, match=match):
        cbpp.predict(**options)


# -- links with a limited range --------------------------------------------------------


def _limited(link: str) -> MixedGLMResults:
    """A fit to gamma responses whose predictor is often near the end of its range."""
    rng = np.random.default_rng(2)
    g, x = np.repeat(np.arange(30), 12), rng.uniform(-1, 1, 360)
    eta = 1.0 + 0.4 * x + rng.normal(0, 0.3, 30).clip(-0.5, 0.5)[g]
    mu = 1 / eta if link == "inverse" else eta
    data = pd.DataFrame({"y": rng.gamma(4, mu / 4), "x": x, "g": g})
    return MixedGLM("y ~ x + (1 | g)", data, family="gamma", link=link).fit()


@pytest.mark.parametrize("link", ["inverse", "identity"])
def test_predictors_beyond_the_range_of_a_link(link: str) -> None:
    """Errors and warnings, no NaN and no negative means of positive responses."""
    results = _limited(link)
    with pytest.raises(ModelError, match=f"range of the {link} link"):
        results.simulate(200, seed=1)
    if link == "inverse":
        with pytest.raises(ModelError, match="does not exist"):
            results.predict(marginal=True)
    else:
        # Of a linear mean the average is that at effects of zero.
        np.testing.assert_allclose(
            results.predict(marginal=True), results.predict(re_form="none"), rtol=1e-9
        )
    with pytest.raises(ModelError, match="re_form=None"):
        results.resid_quantile(seed=1)
    assert np.isfinite(results.resid_quantile(seed=1, re_form=None)).all()
    far = pd.DataFrame({"x": [0.0, -9.0], "g": [1, 1]})
    with pytest.warns(BoundaryWarning, match="1 of 2 rows is out of the range"):
        results.predict(far)
    assert (results.predict() > 0).all()
