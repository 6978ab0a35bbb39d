"""Quantile regression: exact vertices and standard errors against R and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from deepstats.errors import DesignError, ModelError
from deepstats.quantile import check_loss, fit_quantile
from deepstats.quantile_errors import COVARIANCES, hall_sheather, quantile_covariance

# quantreg 5.94 (R 4.2.2) and statsmodels 0.15 on Engel's food expenditure;
# coefficients are the exact vertices of shared/reference/regression.json.
ENGEL = {
    0.25: {
        "coef": [95.48353963455293, 0.47410320819331014],
        "objective": 7082.315898974879,
        "iid": [15.8619076503776, 0.0142806983773879],
        "nid": [21.3923697518315, 0.0290552734827612],
        "ker": [24.1639194918595, 0.0295488223199409],
        "robust": [18.471148601330533, 0.01736017619249777],
    },
    0.5: {
        "coef": [81.4822474169361, 0.5601805512094196],
        "objective": 8779.966323812847,
        "iid": [13.2390797180804, 0.0119193295292952],
        "nid": [19.250660252106, 0.0282772096838577],
        "ker": [30.2153158527793, 0.0373170354527435],
        "robust": [14.634474227276431, 0.013175622816489457],
    },
    0.75: {
        "coef": [62.39658552896458, 0.6440141393686898],
        "objective": 6529.250283893929,
        "iid": [10.6710638049329, 0.00960730871235901],
        "nid": [16.3053766028159, 0.0232391681319687],
        "ker": [29.1187560218802, 0.0362160653555735],
        "robust": [12.507762936895176, 0.01096504040684418],
    },
}
# the same with hs=FALSE
BOFINGER = {
    "iid": [16.4081921768287700, 0.0147725260139141],
    "nid": [21.9616084840808483, 0.0292964623933349],
    "ker": [28.3424707002663645, 0.0338566476142187],
}


@pytest.fixture(scope="module")
def engel():
    datasets = pytest.importorskip("statsmodels.datasets")
    data = datasets.engel.load_pandas().data
    X = np.column_stack([np.ones(len(data)), data["income"].to_numpy()])
    return X, data["foodexp"].to_numpy()


def linear_program(X, y, q, weights=None):
    """The smallest objective, by HiGHS."""
    n, k = X.shape
    w = np.ones(n) if weights is None else weights
    solved = linprog(
        np.concatenate([np.zeros(k), q * w, (1 - q) * w]),
        A_eq=np.hstack([X, np.eye(n), -np.eye(n)]),
        b_eq=y,
        bounds=[(None, None)] * k + [(0, None)] * (2 * n),
        method="highs",
    )
    return solved.fun


def assert_optimal(X, y, q, weights=None):
    fit = fit_quantile(X, y, q, weights)
    best = linear_program(X, y, q, weights)
    assert fit.dual_ok
    assert fit.converged
    assert abs(fit.gap) < 1e-12
    # HiGHS stops at feasibility 1e-7; the gap above is the sharp check
    assert fit.objective == pytest.approx(best, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(y[fit.basis], X[fit.basis] @ fit.params, atol=1e-9)
    w = 1.0 if weights is None else weights
    total = (w * check_loss(y - X @ fit.params, q)).sum()
    assert total == pytest.approx(fit.objective, rel=1e-9, abs=1e-9)
    return fit


@pytest.mark.parametrize("q", ENGEL)
def test_engel_vertex(engel, q):
    fit = fit_quantile(*engel, q)
    np.testing.assert_allclose(fit.params, ENGEL[q]["coef"], rtol=1e-12)
    assert fit.objective == pytest.approx(ENGEL[q]["objective"], rel=1e-12)
    assert fit.dual_ok
    assert not fit.nonunique


@pytest.mark.parametrize("kind", COVARIANCES)
@pytest.mark.parametrize("q", ENGEL)
def test_engel_standard_errors(engel, q, kind):
    fit = fit_quantile(*engel, q)
    se = np.sqrt(np.diag(quantile_covariance(*engel, fit.params, q, kind)))
    # statsmodels' coefficients are good to 3e-8, R's are exact
    rtol = 1e-7 if kind == "robust" else 1e-11
    np.testing.assert_allclose(se, ENGEL[q][kind], rtol=rtol)


@pytest.mark.parametrize("kind", BOFINGER)
def test_engel_bofinger_bandwidth(engel, kind):
    fit = fit_quantile(*engel, 0.25)
    V = quantile_covariance(*engel, fit.params, 0.25, kind, hs=False)
    np.testing.assert_allclose(np.sqrt(np.diag(V)), BOFINGER[kind], rtol=1e-11)


@pytest.mark.parametrize("kernel", ["epa", "biw", "cos", "gau", "par"])
@pytest.mark.parametrize("bandwidth", ["hsheather", "bofinger", "chamberlain"])
def test_robust_matches_statsmodels(engel, kernel, bandwidth):
    model = pytest.importorskip("statsmodels.api").QuantReg(engel[1], engel[0])
    peer = model.fit(q=0.4, kernel=kernel, bandwidth=bandwidth)
    fit = fit_quantile(*engel, 0.4)
    V = quantile_covariance(
        *engel, fit.params, 0.4, "robust", kernel=kernel, bandwidth=bandwidth
    )
    np.testing.assert_allclose(V, peer.cov_params(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_random_problems_against_highs(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(6, 80)), int(rng.integers(1, 6))
    q = rng.choice([0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
    X = rng.normal(size=(n, k))
    if seed % 2:  # repeated rows
        X = rng.integers(0, 3, (n, k)) + 0.0
        X[:, 0] = 1.0
        X[:k] = np.tril(np.ones((k, k)))
    y = X.sum(axis=1) + rng.standard_t(2, n)
    if seed % 4 > 1:  # ties
        y = rng.integers(0, 4, n) + 0.0
    weights = rng.integers(1, 4, n) + 0.0 if seed % 3 == 0 else None
    assert_optimal(X, y, q, weights)


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    w = rng.integers(0, 4, 40)
    fit = fit_quantile(X, y, 0.3, w)
    repeated = fit_quantile(np.repeat(X, w, axis=0), np.repeat(y, w), 0.3)
    np.testing.assert_allclose(fit.params, repeated.params, rtol=1e-12)
    assert (w[fit.basis] > 0).all()


def test_intercept_only_is_a_quantile():
    y = np.random.default_rng(2).normal(size=101)
    for q in (0.01, 0.25, 0.5, 0.99):
        fit = fit_quantile(np.ones((101, 1)), y, q)
        assert fit.params[0] == np.quantile(y, q, method="inverted_cdf")
        assert not fit.nonunique


@pytest.mark.parametrize(("q", "n"), [(0.5, 10), (0.25, 12), (0.1, 10), (0.99, 100)])
def test_ties_between_quantiles_are_reported(q, n):
    y = np.arange(n) ** 1.1
    fit = assert_optimal(np.ones((n, 1)), y, q)
    assert fit.nonunique
    assert "one of several" in fit.message


def flat_width(X, y, q, best):
    """How far coefficients can move at the same objective, by HiGHS."""
    n, k = X.shape
    cost = np.concatenate([np.zeros(k), np.full(n, q), np.full(n, 1 - q)])
    width = 0.0
    for j in range(k):
        ends = []
        for sign in (1.0, -1.0):
            c = np.zeros(k + 2 * n)
            c[j] = sign
            solved = linprog(
                c,
                A_eq=np.hstack([X, np.eye(n), -np.eye(n)]),
                b_eq=y,
                A_ub=cost[None],
                b_ub=[best + 1e-9],
                bounds=[(None, None)] * k + [(0, None)] * (2 * n),
            )
            ends.append(sign * solved.fun)
        width = max(width, ends[1] - ends[0])
    return width


@pytest.mark.parametrize("seed", range(30))
def test_nonuniqueness_in_degenerate_problems(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 24))
    X = np.column_stack([np.ones(n), rng.integers(0, 3, n), rng.integers(0, 2, n)])
    X[:3] = [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    y = rng.integers(0, 4, n) + 0.0
    fit = fit_quantile(X, y, 0.5)
    assert fit.dual_ok
    assert fit.nonunique == (flat_width(X + 0.0, y, 0.5, fit.objective) > 1e-4)


def test_square_and_exact_fits():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(4, 4))
    y = rng.normal(size=4)
    fit = fit_quantile(X, y, 0.2)
    np.testing.assert_allclose(fit.params, np.linalg.solve(X, y), rtol=1e-9)
    X = rng.normal(size=(50, 3))
    fit = fit_quantile(X, X @ [1.0, 2.0, 3.0], 0.7)
    np.testing.assert_allclose(fit.params, [1, 2, 3], rtol=1e-12)
    assert fit.objective < 1e-12
    fit = fit_quantile(X, np.zeros(50), 0.7)
    np.testing.assert_allclose(fit.params, 0.0, atol=1e-14)


def test_badly_scaled_columns():
    rng = np.random.default_rng(4)
    Z = np.column_stack([np.ones(200), rng.normal(size=(200, 2))])
    y = Z.sum(axis=1) + rng.normal(size=200)
    scale = np.array([1e-6, 1e8, 1.0])
    plain, scaled = fit_quantile(Z, y, 0.3), fit_quantile(Z * scale, y, 0.3)
    np.testing.assert_allclose(scaled.params * scale, plain.params, rtol=1e-9)
    years = Z + np.array([0.0, 2000.0, 0.0])
    shifted = fit_quantile(years, y, 0.3)
    np.testing.assert_allclose(shifted.params[1:], plain.params[1:], rtol=1e-9)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("discrete", [False, True])
def test_many_rows(q, discrete):
    """The subsample and the summed rows lead to a certified optimum."""
    rng = np.random.default_rng(5)
    n = 60_000
    X = np.column_stack([np.ones(n), rng.integers(0, 3, n), rng.normal(size=n)])
    y = X.sum(axis=1) + rng.standard_t(3, n) * (1 + 0.3 * X[:, 1])
    if discrete:
        X[:, 2] = np.round(X[:, 2])
        y = rng.poisson(np.exp(0.3 * X[:, 1])) + 0.0
    fit = fit_quantile(X, y, q)
    assert fit.dual_ok
    assert abs(fit.gap) < 1e-12
    residual = y - X @ fit.params
    below, above = (residual < -1e-9).mean(), (residual > 1e-9).mean()
    assert below <= q
    assert above <= 1 - q


def test_design_errors():
    X = np.ones((5, 2))
    with pytest.raises(DesignError, match=r"rank 1 with 2 columns.*\[1\]"):
        fit_quantile(X, np.arange(5), 0.5)
    with pytest.raises(DesignError, match="at least 2 rows"):
        fit_quantile(np.ones((1, 2)), [1.0], 0.5)
    with pytest.raises(DesignError, match="finite"):
        fit_quantile(np.ones((3, 1)), [1, np.nan, 2], 0.5)
    with pytest.raises(DesignError, match="X must be"):
        fit_quantile(np.ones((3, 1)), [1.0, 2.0], 0.5)
    with pytest.raises(DesignError, match="not negative"):
        fit_quantile(np.ones((3, 1)), [1.0, 2.0, 3.0], 0.5, [1, -1, 1])
    for q in (0.0, 1.0, -0.5, np.nan):
        with pytest.raises(ValueError, match="strictly between"):
            fit_quantile(np.ones((3, 1)), [1.0, 2.0, 3.0], q)


def test_covariance_errors(engel):
    beta = np.array([80.0, 0.5])
    with pytest.raises(ModelError, match="not one of iid, nid, ker, robust"):
        quantile_covariance(*engel, beta, 0.5, "rank")
    with pytest.raises(ModelError, match="apply to"):
        quantile_covariance(*engel, beta, 0.5, "nid", kernel="epa")
    with pytest.raises(ModelError, match="use bandwidth"):
        quantile_covariance(*engel, beta, 0.5, "robust", hs=True)
    with pytest.raises(ModelError, match="kernel 'box'"):
        quantile_covariance(*engel, beta, 0.5, "robust", kernel="box")
    with pytest.raises(ModelError, match="bandwidth 'silverman'"):
        quantile_covariance(*engel, beta, 0.5, "robust", bandwidth="silverman")
    few = engel[0][:6], engel[1][:6]
    with pytest.raises(ModelError, match="too few"):
        quantile_covariance(*few, fit_quantile(*few, 0.5).params, 0.5, "iid")


def test_tied_data_have_no_density():
    rng = np.random.default_rng(7)
    X = np.column_stack([np.ones(400), rng.integers(0, 2, 400)])
    y = np.minimum(rng.poisson(0.1, 400), 1) + 0.0
    beta = fit_quantile(X, y, 0.5).params
    with (
        pytest.warns(UserWarning, match="crossing quantiles"),
        pytest.raises(ModelError, match="densities are zero"),
    ):
        quantile_covariance(X, y, beta, 0.5, "nid")
    for kind in ("ker", "robust"):
        with pytest.raises(ModelError, match="half of the residuals"):
            quantile_covariance(X, y, beta, 0.5, kind)
    with pytest.raises(ModelError, match="too few"):
        quantile_covariance(X, y, beta, 0.5, "iid")


def test_covariance_weights_are_multiplied_in(engel):
    X, y = engel
    w = np.random.default_rng(6).uniform(0.5, 2.0, len(y))
    fit = fit_quantile(X, y, 0.5, w)
    for kind in COVARIANCES:
        V = quantile_covariance(X, y, fit.params, 0.5, kind, weights=w)
        scaled = quantile_covariance(X * w[:, None], y * w, fit.params, 0.5, kind)
        np.testing.assert_array_equal(V, scaled)


def test_hall_sheather_bandwidth():
    # quantreg::bandwidth.rq(.25, 235)
    assert hall_sheather(235, 0.25) == pytest.approx(0.109040112954657, rel=1e-12)
