"""Results of trajectory models against formulas written out, and the records."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from deepstats.errors import DesignError, ModelError
from deepstats.models.trajectory import Trajectory, TrajectoryResults

from .data import CASES, fit
from .test_reference import COMPARED, SEPARATED, matched

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def simulated(seed: int = 3, units: int = 90) -> pd.DataFrame:
    """Two groups of Poisson counts and a normal response, rows in no order."""
    rng = np.random.default_rng(seed)
    x, firm = rng.normal(size=units), np.arange(units) % 12
    group = rng.uniform(size=units) < special.expit(0.3 + 0.8 * x)
    frame = pd.DataFrame({"id": np.repeat(np.arange(units), 6)})
    frame["t"] = np.tile(np.arange(6.0), units)
    frame["x"], frame["firm"] = x[frame.id], firm[frame.id]
    g, t = group[frame.id], frame.t
    frame["n"] = rng.poisson(np.exp(np.where(g, 1.6 - 0.1 * t, 0.2 + 0.15 * t)))
    frame["y"] = np.where(g, 3 - t, t - 1) + rng.normal(size=len(frame))
    frame["w"] = rng.uniform(0.5, 2, size=units)[frame.id]
    return frame.sample(frac=1, random_state=seed)


@lru_cache
def counts() -> TrajectoryResults:
    """Poisson, two groups, a risk factor; a dozen rows without a response."""
    data = simulated()
    data = data.assign(n=data.n.astype(float))
    data.iloc[::45, data.columns.get_loc("n")] = np.nan
    text = "traj(n ~ t + I(t**2), groups=2, id=id, risk=~ x)"
    return Trajectory(text, data, family="poisson").fit(starts=12)


@lru_cache
def several() -> TrajectoryResults:
    """Return two outcomes, one of them missing in some rows; weights; clusters."""
    data = simulated(5)
    data.iloc[::7, data.columns.get_loc("y")] = np.nan
    return Trajectory(
        "traj(y ~ t, n ~ t, groups=2, id=id)", data, family=["gaussian", "poisson"],
        weights="w", cluster="firm",
    ).fit(starts=12)  # fmt: skip


def prior(results: TrajectoryResults, theta: np.ndarray) -> np.ndarray:
    """Mean shares of two groups at membership coefficients, weighted."""
    units = results.model.study.units
    w = np.ones(len(units)) if units.weights is None else units.weights.numpy()
    second = special.expit(units.W.numpy() @ theta)
    share = (w @ second) / w.sum()
    return np.array([1 - share, share])


# -- shares ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in COMPARED if "se_pi" in CASES[n] and n not in SEPARATED]
)
def test_shares_have_the_recorded_standard_errors(name: str) -> None:
    case, order = CASES[name], matched(name)
    found = fit(name).group_probs
    np.testing.assert_allclose(found["share"], np.array(case["pi"])[order], rtol=1e-6)
    np.testing.assert_allclose(
        found["std_error"], np.array(case["se_pi"])[order], rtol=1e-6
    )


@pytest.mark.parametrize("build", [counts, several])
def test_shares_by_finite_differences(build) -> None:
    results = build()
    q = results.model.study.units.W.shape[1]
    theta, V = results.params.to_numpy()[-q:], results.cov_params().to_numpy()[-q:, -q:]
    steps = 1e-5 * np.eye(q)
    jacobian = np.column_stack(
        [(prior(results, theta + h) - prior(results, theta - h)) / 2e-5 for h in steps]
    )
    found = results.group_probs
    np.testing.assert_allclose(found["share"], prior(results, theta), rtol=1e-12)
    se = np.sqrt(np.diag(jacobian @ V @ jacobian.T))
    np.testing.assert_allclose(found["std_error"], se, rtol=1e-8)


def test_limits_of_shares_are_made_on_the_log_odds() -> None:
    results = counts()
    found = results.shares(alpha=0.1)
    p, se = found["share"], found["std_error"]
    half = stats.norm.ppf(0.95) * se / (p * (1 - p))
    np.testing.assert_allclose(
        found["conf_low"], special.expit(special.logit(p) - half)
    )
    np.testing.assert_allclose(
        found["conf_high"], special.expit(special.logit(p) + half)
    )
    assert found["n"].sum() == results.n_units
    np.testing.assert_allclose(found["assigned"], found["n"] / results.n_units)


def test_mean_share_is_the_mean_posterior_at_the_optimum() -> None:
    # The score of the membership's intercept says so, weights included.
    for results in (counts(), several()):
        weights = results._sorting.weights
        mean = np.average(results.posterior, axis=0, weights=weights)
        np.testing.assert_allclose(results.group_probs["share"], mean, rtol=1e-7)


def test_one_group_has_a_share_of_one() -> None:
    results = Trajectory("traj(n ~ t, groups=1, id=id)", simulated(),
                         family="poisson").fit()  # fmt: skip
    found = results.group_probs.loc["g1"]
    assert found[["share", "std_error", "conf_low", "conf_high"]].tolist() == [
        1,
        0,
        1,
        1,
    ]
    assert results.entropy == 1.0 and results.icl == results.bic


def test_assign_leaves_out_units_below_the_threshold() -> None:
    results = counts()
    top = results.posterior.max(axis=1)
    limit = float(top.quantile(0.3))
    found = results.assign(threshold=limit)
    assert found.isna().tolist() == (top < limit).tolist()
    assert (found.dropna() == results.assign()[found.notna()]).all()
    with pytest.raises(ValueError, match="from 0 to 1"):
        results.assign(1.5)


# -- figures ---------------------------------------------------------------------------


def test_information_criteria_and_entropy() -> None:
    for results in (counts(), several()):
        P, N, llf = len(results.params), results.n_units, results.llf
        rows = results.nobs
        p = results.posterior.to_numpy()
        w = results._sorting.weights
        E = -sum(w[i] * v * np.log(v) for i, row in enumerate(p) for v in row if v > 0)
        assert results.df_model == P and results.df_resid == rows - P
        assert results.aic == pytest.approx(-2 * llf + 2 * P)
        assert (
            results.bic == results.bic_units == pytest.approx(-2 * llf + P * np.log(N))
        )
        assert results.bic_rows == pytest.approx(-2 * llf + P * np.log(rows))
        assert results.caic == pytest.approx(-2 * llf + P * (np.log(N) + 1))
        assert results.sabic == pytest.approx(-2 * llf + P * np.log((N + 2) / 24))
        assert results.entropy_raw == pytest.approx(E, rel=1e-10)
        assert results.entropy == pytest.approx(1 - E / (w.sum() * np.log(2)))
        assert results.icl == pytest.approx(results.bic + 2 * E)
    assert counts().nobs == 90 * 6 - 12
    glance = counts().glance().iloc[0]
    assert glance["n_units"] == 90 and glance["bic_rows"] == counts().bic_rows
    assert glance["smallest_share"] == counts().group_probs["share"].min()


def test_working_scale_is_the_logarithm_of_a_scale() -> None:
    results = several()
    working = results.working()
    sigma = results.params["y:sigma"]
    assert working.loc["log(y:sigma)", "coef"] == pytest.approx(np.log(sigma))
    assert results.bse["y:sigma"] == pytest.approx(
        sigma * working.loc["log(y:sigma)", "std_error"]
    )


# -- rows ------------------------------------------------------------------------------


def test_fitted_values_written_out() -> None:
    results = counts()
    data = results.model.study.table
    t, unit = np.asarray(data.numeric("t")), np.asarray(data.numeric("id")).astype(int)
    n = np.asarray(data.numeric("n"), dtype=float)
    b = results.params.to_numpy()[:6].reshape(2, 3)
    X = np.column_stack([np.ones(len(t)), t, t**2])
    weights = results.posterior.to_numpy()[unit]
    expected = (weights * np.exp(X @ b.T)).sum(1)
    used = ~np.isnan(n)
    np.testing.assert_allclose(results.fittedvalues, expected[used], rtol=1e-12)
    np.testing.assert_allclose(results.resid, (n - expected)[used], atol=1e-12)
    labels = simulated().index[used]
    assert results.fittedvalues.index.tolist() == labels.tolist()
    frame = results.augment()
    assert frame.index.tolist() == labels.tolist()
    assert frame["id"].tolist() == unit[used].tolist()
    np.testing.assert_allclose(frame[".fitted"] + frame[".resid"], frame["n"])
    assert (frame[".group"] == results.assign().loc[frame["id"]].to_numpy()).all()
    np.testing.assert_allclose(
        frame[[".posterior_g1", ".posterior_g2"]], weights[used], rtol=1e-14
    )


def test_fitted_values_of_zero_inflated_and_censored_responses() -> None:
    results = fit("zip2gr")
    study = results.model.study
    outcome, b = study.outcomes[0], results.traj.coefficients(0).numpy()
    p = outcome.X[0].shape[1]
    mu = np.exp(b[:, :p] @ outcome.X[0].numpy().T)
    zero = special.expit(b[:, p:] @ outcome.X[1].numpy().T)
    weights = results.posterior.to_numpy()[outcome.unit.numpy()].T
    expected = (weights * (1 - zero) * mu).sum(0)
    np.testing.assert_allclose(results.fittedvalues, expected, rtol=1e-10)

    censored = fit("cnorm2gr.cens")
    low, high = CASES["cnorm2gr.cens"]["clip"]
    outcome, b = censored.model.study.outcomes[0], censored.traj.coefficients(0).numpy()
    weights = censored.posterior.to_numpy()[outcome.unit.numpy()].T
    mean = np.empty_like(weights)
    for k in range(2):
        eta, s = outcome.X[0].numpy() @ b[k, :-1], np.exp(b[k, -1])
        a, c = (low - eta) / s, (high - eta) / s
        inside = stats.norm.cdf(c) - stats.norm.cdf(a)
        mean[k] = (
            low * stats.norm.cdf(a) + high * stats.norm.sf(c) + eta * inside
            + s * (stats.norm.pdf(a) - stats.norm.pdf(c))
        )  # fmt: skip
    np.testing.assert_allclose(
        censored.fittedvalues, (weights * mean).sum(0), rtol=1e-8
    )


def test_rows_of_several_outcomes_stand_side_by_side() -> None:
    results = several()
    frame, fitted = results.augment(), results.fittedvalues
    assert list(fitted.columns) == ["y", "n"] and len(fitted) == 540
    gone = np.zeros(540, dtype=bool)
    gone[::7] = True
    assert fitted["y"].isna().tolist() == gone.tolist()
    assert fitted["n"].notna().all()
    np.testing.assert_allclose(frame[".fitted_y"], fitted["y"])
    np.testing.assert_allclose(frame[".resid_n"], results.resid["n"])
    assert results.nobs == 2 * 540 - gone.sum()


# -- covariances -----------------------------------------------------------------------


@lru_cache
def derivatives() -> tuple[np.ndarray, np.ndarray]:
    """Scores of units and information by differences of the log-likelihoods."""
    results = several()
    assembled, x = results.traj.assembled, results.fit_info.x
    w = results.model.study.units.weights

    def each(v: np.ndarray) -> np.ndarray:
        at = assembled.to_mixture(torch.from_numpy(v))
        return (assembled.mixture.loglik(at) * w).numpy()

    P, h = len(x), 2e-4
    E, x0 = h * np.eye(P), x.numpy()
    scores = np.column_stack([(each(x0 + e) - each(x0 - e)) / (2 * h) for e in E])
    hessian = np.empty((P, P))
    for i in range(P):
        for j in range(P):
            corners = (each(x0 + E[i] + E[j]) - each(x0 + E[i] - E[j])
                       - each(x0 - E[i] + E[j]) + each(x0 - E[i] - E[j]))  # fmt: skip
            hessian[i, j] = corners.sum() / (4 * h * h)
    return scores, -hessian


@pytest.mark.parametrize("kind", ["nonrobust", "opg", "HC0", "HC1", "cluster"])
def test_covariances_by_finite_differences(kind: str) -> None:
    S, information = derivatives()
    N, P = S.shape
    bread = np.linalg.inv(information)
    firm = simulated(5).groupby("id")["firm"].first().to_numpy()
    summed = np.array([S[firm == g].sum(0) for g in range(12)])
    expected = {
        "nonrobust": bread,
        "opg": np.linalg.inv(S.T @ S),
        "HC0": bread @ S.T @ S @ bread,
        "HC1": bread @ S.T @ S @ bread * N / (N - P),
        "cluster": bread @ summed.T @ summed @ bread * 12 / 11 * (N - 1) / (N - P),
    }[kind]
    found = several().get_robustcov_results(kind)
    np.testing.assert_allclose(
        found.working()["std_error"], np.sqrt(np.diag(expected)), rtol=2e-5
    )
    assert found.cov_type == kind


def test_clusters_by_column_rows_units_and_model() -> None:
    results, data = several(), simulated(5)
    by_model = results.get_robustcov_results("cluster").bse
    units = data.groupby("id")["firm"].first()
    for groups in ("firm", data["firm"], data["firm"].to_numpy(), units):
        by_value = results.get_robustcov_results("cluster", groups=groups)
        pd.testing.assert_series_equal(by_value.bse, by_model)
    assert "firm (12)" in results.get_robustcov_results("cluster").cov_description


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("t", "varies within id"),
        ("nothing", "no such column"),
        (np.arange(7), "7 values"),
        (None, "needs groups="),
    ],
)
def test_clusters_that_cannot_be(groups, message: str) -> None:
    with pytest.raises((DesignError, ModelError), match=message):
        counts().get_robustcov_results("cluster", groups=groups)


def test_clusters_may_not_be_missing() -> None:
    data = simulated(5)
    groups = data["firm"].astype(float).mask(data["id"] == 3)
    with pytest.raises(DesignError, match=r"missing for the units 3"):
        several().get_robustcov_results("cluster", groups=groups)


def test_robust_errors_where_some_parameters_are_not_identified() -> None:
    # Groups are nearly certain (posteriors to some 1e-5): group 2 is a logit of its own
    # units, and the log odds of the groups have the binomial's variance.
    results = fit("logit2gr")
    outcome, own = results.model.study.outcomes[0], ["g2:Intercept", "g2:t"]
    share = results.group_probs["share"].to_numpy()
    unit = outcome.unit.numpy()
    member = results.assign().to_numpy()[unit] == 2
    X, y, unit = outcome.X[0].numpy()[member], outcome.y.numpy()[member], unit[member]
    p = special.expit(X @ results.params[own].to_numpy())
    bread = np.linalg.inv((X * (p * (1 - p))[:, None]).T @ X)
    sums = np.array([((y - p)[:, None] * X)[unit == i].sum(0) for i in np.unique(unit)])
    expected = {
        "nonrobust": bread, "opg": np.linalg.inv(sums.T @ sums),
        "HC0": bread @ sums.T @ sums @ bread,
    }  # fmt: skip
    for kind, matrix in expected.items():
        bse = results.get_robustcov_results(kind).bse
        assert bse["g2:membership:Intercept"] == pytest.approx(
            np.sqrt(1 / (50 * share.prod())), rel=1e-4
        )
        np.testing.assert_allclose(bse[own], np.sqrt(np.diag(matrix)), rtol=1e-4)
        assert bse[["g1:Intercept", "g1:t"]].isna().all()


# -- tables and what there is not ------------------------------------------------------


def test_coefficients_by_group() -> None:
    results = several()
    table = results.coef_table()
    sections = table.index.get_level_values("section").unique().tolist()
    assert sections == [
        "Group 1, y", "Group 1, n", "Group 2, y", "Group 2, n", "All groups, y",
        "Membership (log odds against group 1)",
    ]  # fmt: skip
    assert table.loc[("Group 2, n", "t"), "coef"] == results.params["g2:n:t"]
    assert table.loc[("Group 2, n", "t"), "pvalue"] == results.pvalues["g2:n:t"]
    assert np.isnan(table.loc[("All groups, y", "sigma"), "z"])
    assert sorted(table["coef"]) == sorted(results.params)
    assert len(results.tidy()) == len(results.params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.f_test("g1:t = 0"), "no t or F"),
        (lambda r: r.wald_test("g1:t = 0", use_f=True), "no t or F"),
        (lambda r: r.get_robustcov_results("HC0", use_t=True), "no t or F"),
        (lambda r: r.get_robustcov_results("HC3"), "no HC3"),
        (lambda r: r.get_robustcov_results("HAC", maxlags=2), "no HAC"),
        (lambda r: r.get_robustcov_results("eim"), "no eim"),
        (lambda r: r.wald_test_terms(), "wald_groups"),
        (lambda r: r.lr_test("g1:t = 0"), "compare_lr_test"),
        (lambda r: r.score_test("g1:t = 0"), "wald_test"),
        (lambda r: r.get_prediction(), "trajectories"),
        (lambda r: r.get_margeff(), "differs by group"),
        (lambda r: r.marginal_effects(), "differs by group"),
        (lambda r: r.get_influence(), "no leverages"),
        (lambda r: r.resid_pearson, "resid"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call(counts())


def test_saving_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="cannot be saved"):
        counts().save(tmp_path / "fit.zip")
    assert not (tmp_path / "fit.zip").exists()


def test_likelihood_ratio_needs_as_many_groups() -> None:
    data = simulated()
    one = Trajectory("traj(y ~ t, groups=2, id=id)", data).fit(starts=8)
    own = Trajectory("traj(y ~ t, groups=2, id=id)", data, variance="group").fit(
        starts=8
    )
    test = own.compare_lr_test(one)
    assert test.df_num == 1
    assert test.statistic == pytest.approx(2 * (own.llf - one.llf))
    three = Trajectory("traj(y ~ t, groups=3, id=id)", data).fit(starts=8)
    with pytest.raises(ModelError, match="different numbers of groups"):
        three.compare_lr_test(one)


def test_delta_method_and_maketables_work() -> None:
    results = counts()
    found = results.delta_method(lambda b: b[1] - b[4])
    R = np.zeros(len(results.params))
    R[[1, 4]] = 1, -1
    se = np.sqrt(R @ results.cov_params().to_numpy() @ R)
    assert found["std_error"].item() == pytest.approx(se)
    table = results.__maketables_coef_table__
    assert table["b"].tolist() == results.params.tolist()
    assert results.__maketables_stat__("N") == results.nobs
