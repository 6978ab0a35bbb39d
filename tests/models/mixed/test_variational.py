"""Variational linear mixed models against dense matrices and exact fits."""

from __future__ import annotations

import warnings
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import MeanFieldWarning, ModelError, SingularFitWarning
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.importance import corrected, deviations, pareto_k
from deepstats.models.mixed.variational import (
    Bound,
    VariationalFitted,
    crossed_products,
    equations,
    small_factors,
)
from deepstats.models.mixed.variational_results import VariationalResults

from .brute import Brute
from .data import load

CROSSED = "y ~ x + (1 | a) + (1 | b) + (1 | c)"
FORMULAS = [
    CROSSED,
    "y ~ x + (x | a) + (1 | b) + (1 | c)",
    "y ~ x + (1 | a) + (x || b) + (1 | c)",
    "y ~ x + (1 | a / c) + (1 | b)",
    "y ~ 0 + (1 | a) + (1 | b)",
]


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng, n = np.random.default_rng(1), 300
    frame = pd.DataFrame({
        "a": rng.integers(0, 20, n), "b": rng.integers(0, 15, n),
        "c": rng.integers(0, 4, n), "x": rng.normal(size=n),
        "w": rng.uniform(0.5, 2, n),
    })  # fmt: skip
    a, b, c = (rng.normal(size=m) for m in (20, 15, 4))
    frame["y"] = 1 + 0.5 * frame["x"] + a[frame["a"]] + 0.7 * b[frame["b"]]
    frame["y"] += 0.5 * c[frame["c"]] + rng.normal(size=n) / np.sqrt(frame["w"])
    return frame


def bound(
    model: LinearMixed, unfactorised: int, reml: bool, mean_field: bool = False
) -> Bound:
    fixed, structure = model.foundation()
    small = [] if mean_field else small_factors(structure, unfactorised)
    products = crossed_products(
        model.design, structure, fixed, model.compute, small, mean_field
    )
    return Bound(products, reml, model.sigma)


def parameters(size: int) -> np.ndarray:
    return np.linspace(0.9, 0.4, size)


class Dense:
    """The variational posterior by matrices over all effects.

    Effects stand factor by factor, by effect, then level; fixed effects last.
    """

    def __init__(self, model: LinearMixed, criterion: Bound, x: np.ndarray) -> None:
        self.brute = Brute(model, Criterion(model.prepare()[1], criterion.reml), x)
        products = criterion.products
        Z, X, w = self.brute.Z, self.brute.X, self.brute.w
        C = np.concatenate([Z, X], axis=1)
        self.P = C.T @ (w[:, None] * C)
        q = Z.shape[1]
        self.P[:q, :q] += np.linalg.inv(self.brute.V)
        self.q, self.p = q, X.shape[1]
        self.rhs = C.T @ (w * self.brute.y)
        self.mean = np.linalg.solve(self.P, self.rhs)
        ends = np.cumsum([0, *(f.q for f in products.structure.factors)])
        self.at = [np.arange(i, j) for i, j in pairwise(ends)]
        self.cut = self.P.copy()
        for a, b in products.crossings:
            i, j = (self.at[products.stage_factors[k]] for k in (a, b))
            self.cut[np.ix_(i, j)] = self.cut[np.ix_(j, i)] = 0.0
        self.large = np.concatenate([self.at[j] for j in products.stage_factors])
        self.u = np.setdiff1d(np.arange(q), self.large)

    def covariance(self, with_x: bool) -> np.ndarray:
        """Covariance of all effects under q: ``q(u) q(b | u)``; over sigma^2."""
        u = np.concatenate([self.u, self.q + np.arange(self.p)]) if with_x else self.u
        b, P = self.large, self.P
        M = np.linalg.solve(P[np.ix_(b, b)], P[np.ix_(b, u)])
        K = np.linalg.inv(P[np.ix_(u, u)] - P[np.ix_(u, b)] @ M)
        size = self.q + self.p
        out = np.zeros((size, size))
        out[np.ix_(b, b)] = np.linalg.inv(self.cut[np.ix_(b, b)]) + M @ K @ M.T
        out[np.ix_(b, u)] = -M @ K
        out[np.ix_(u, b)] = out[np.ix_(b, u)].T
        out[np.ix_(u, u)] = K
        return out

    def elbo(self, reml: bool, sigma: float) -> float:
        """Expected log joint density plus entropy, term by term."""
        brute, q = self.brute, self.q
        S = sigma**2 * self.covariance(reml)
        C = np.concatenate([brute.Z, brute.X], axis=1)
        e = brute.y - C @ self.mean
        w = brute.w
        spread = np.einsum("ij,jk,ik->i", C, S, C)
        n = len(e)
        value = -0.5 * n * np.log(2 * np.pi * sigma**2) + 0.5 * np.log(w).sum()
        value -= 0.5 * (w * (e**2 + spread)).sum() / sigma**2
        V, b = sigma**2 * brute.V, self.mean[:q]
        value -= 0.5 * (q * np.log(2 * np.pi) + np.linalg.slogdet(V)[1])
        value -= 0.5 * np.trace(np.linalg.solve(V, S[:q, :q] + np.outer(b, b)))
        k = q + self.p if reml else q
        entropy = 0.5 * (k * np.log(2 * np.pi * np.e))
        return value + entropy + 0.5 * np.linalg.slogdet(S[:k, :k])[1]


@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("unfactorised", [0, 10])
def test_bound_is_the_elbo_of_dense_matrices(
    data: pd.DataFrame, formula: str, unfactorised: int, reml: bool
) -> None:
    model = LinearMixed(formula, data, weights="w")
    criterion = bound(model, unfactorised, reml)
    x = parameters(criterion.products.structure.size)
    point = criterion(x)
    dense = Dense(model, criterion, x)
    elbo = dense.elbo(reml, point.variance**0.5)
    assert -0.5 * point.value == pytest.approx(elbo, abs=1e-7)
    exact = Criterion(model.prepare()[1], reml)(x).value
    assert point.value >= exact - 1e-8
    if not criterion.products.crossings:
        assert point.value == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("formula", FORMULAS)
def test_posterior_is_that_of_dense_matrices(data: pd.DataFrame, formula: str) -> None:
    model = LinearMixed(formula, data, weights="w")
    criterion = bound(model, 10, False)
    x = parameters(criterion.products.structure.size)
    f = criterion(x).factorisation
    dense = Dense(model, criterion, x)
    products = criterion.products
    means = [p[:, :, 0].flatten().numpy() for p in products.by_factor(f.solution)]
    np.testing.assert_allclose(np.concatenate(means), dense.mean[: dense.q], atol=1e-8)
    np.testing.assert_allclose(f.beta.numpy(), dense.mean[dense.q :], atol=1e-8)
    for with_x in (False, True):
        S = dense.covariance(with_x)
        diagonal = f.blocks(with_x)[0]
        for factor, at, part in zip(
            products.structure.factors, dense.at, diagonal, strict=True
        ):
            k, m = factor.k, factor.m
            expected = S[np.ix_(at, at)].reshape(k, m, k, m)
            expected = np.einsum("amcm->acm", expected)
            np.testing.assert_allclose(part.numpy(), expected, atol=1e-8)
    x0 = dense.q + np.arange(dense.p)
    np.testing.assert_allclose(
        f.cov_beta.numpy(), np.linalg.inv(dense.P)[np.ix_(x0, x0)], atol=1e-8
    )  # fmt: skip


@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("mean_field", [False, True])
@pytest.mark.parametrize("formula", FORMULAS[:4])
def test_gradient_is_that_of_differences(
    data: pd.DataFrame, formula: str, reml: bool, mean_field: bool
) -> None:
    criterion = bound(LinearMixed(formula, data), 10, reml, mean_field)
    x = parameters(criterion.products.structure.size)
    steps = 1e-5 * np.eye(len(x))
    numeric = [(criterion(x + e).value - criterion(x - e).value) / 2e-5 for e in steps]
    np.testing.assert_allclose(criterion(x).gradient, numeric, rtol=1e-5, atol=1e-4)


def test_singular_variances_do_no_harm(data: pd.DataFrame) -> None:
    model = LinearMixed(CROSSED, data)
    criterion = bound(model, 10, False)
    at_zero = criterion(np.array([0.0, 0.5, 0.0])).value
    nearby = criterion(np.array([1e-12, 0.5, 1e-12])).value
    assert at_zero == pytest.approx(nearby, abs=1e-6)
    exact = Criterion(model.prepare()[1], False)(np.array([0.0, 0.5, 0.0])).value
    # One large factor has a variance: what is cut is empty.
    assert at_zero == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("formula", FORMULAS[:4])
def test_elbo_rises_and_stays_below_the_likelihood(
    data: pd.DataFrame, formula: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        exact = ds.lmer(formula, data).fit(False, ddf="normal")
        fit = ds.lmer(formula, data).fit(False, method="vi", unfactorised=10)
    assert fit.converged and fit.elbo <= exact.llf
    assert (fit.history["gain"].dropna() >= -1e-9).all()
    assert fit.history["elbo"].iloc[-1] == fit.elbo
    assert len(fit.history) > 2 and fit.history["gain"].iloc[1] > 1e-3
    # The optimum: no parameter is better elsewhere.
    criterion, x = fit.mixed.criterion, fit.mixed.x
    for step in 1e-2 * np.eye(len(x)):
        for sign in (-1, 1):
            moved = np.maximum(x + sign * step, criterion.products.structure.lower)
            assert criterion(moved).value >= fit.mixed.point.value - 1e-9


def test_one_large_factor_is_exact(data: pd.DataFrame) -> None:
    formula = "y ~ x + (1 | a) + (1 | c)"
    for reml in (False, True):
        exact = ds.lmer(formula, data).fit(reml, ddf="normal")
        fit = ds.lmer(formula, data).fit(reml, method="vi")
        assert fit.elbo == pytest.approx(exact.llf, abs=1e-7)
        np.testing.assert_allclose(fit.bse, exact.bse, rtol=1e-5)
        np.testing.assert_allclose(fit.theta, exact.theta, atol=1e-4)
        assert "nothing is cut" in str(fit.summary())
        for interval in ("confidence", "prediction"):
            one, two = (f.predict(interval=interval) for f in (fit, exact))
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["vi", "mf-vi"])
@pytest.mark.parametrize("reml", [False, True])
def test_importance_sampling_finds_the_likelihood(
    data: pd.DataFrame, method: str, reml: bool
) -> None:
    unfactorised = 10 if method == "vi" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        fit = ds.lmer(CROSSED, data).fit(reml, method=method, unfactorised=unfactorised)
    model = LinearMixed(CROSSED, data)
    exact = -0.5 * Criterion(model.prepare()[1], reml)(fit.mixed.x).value
    found = fit.llf_corrected(20_000, seed=1)
    assert found.elbo == fit.elbo < exact
    assert found.gap > 0.5 * (exact - fit.elbo)
    if found.reliable:
        assert abs(found.value - exact) < 5 * found.std_error + 0.02
    assert 1 <= found.ess <= 20_000
    assert str(round(found.value, 3)) in repr(found)


def test_draws_have_the_covariance_of_q(data: pd.DataFrame) -> None:
    criterion = bound(LinearMixed("y ~ x + (x | a / c) + (1 | b)", data), 0, False)
    x = parameters(criterion.products.structure.size)
    f = equations(criterion.products, criterion.products.structure.roots(x))
    assert f is not None
    effects, spherical, squares = deviations(f.own, 40_000, np.random.default_rng(0))
    blocks = f.own.known(False, True)
    assert len(blocks.between) > len(effects)
    for (a, b), block in blocks.between.items():
        parent = f.own.stages[a].parent.get(b)
        other = effects[b] if a == b else effects[b].index_select(1, parent)
        found = np.einsum("amd,bmd->abm", effects[a].numpy(), other.numpy()) / 40_000
        scale = float(block.abs().max())
        np.testing.assert_allclose(found, block.numpy(), atol=0.05 * scale)
    for number, j in enumerate(f.products.stage_factors):
        rebuilt = np.einsum("ab,bmd->amd", f.roots[j].numpy(), spherical[number])
        np.testing.assert_allclose(rebuilt, effects[number], atol=1e-12)
    assert float(squares.mean()) == pytest.approx(
        sum(e[:, :, 0].numel() for e in effects), rel=0.01
    )  # fmt: skip


def test_pareto_k_finds_the_shape() -> None:
    rng = np.random.default_rng(3)
    for k in (0.2, 0.7, 1.2):
        weights = (rng.uniform(size=200_000) ** -k - 1) / k
        assert pareto_k(np.log(weights)) == pytest.approx(k, abs=0.1)
    assert pareto_k(np.zeros(100)) == -np.inf


def test_corrected_averages_weights() -> None:
    found = corrected(-3.0, np.log(np.array([1.0, 3.0] * 50)))
    assert found.value == pytest.approx(np.log(2.0))
    assert found.ess == pytest.approx(80.0)
    assert found.std_error == pytest.approx(0.1 / 2, rel=0.02)
    assert found.gap == pytest.approx(np.log(2.0) + 3)


def test_mean_field_warns_and_is_too_sure(data: pd.DataFrame) -> None:
    exact = ds.lmer(CROSSED, data).fit(False, ddf="normal")
    with pytest.warns(MeanFieldWarning, match="standard errors"):
        fit = ds.lmer(CROSSED, data).fit(False, method="mf-vi")
    assert fit.mean_field and fit.unfactorised == []
    assert fit.bse["Intercept"] < 0.5 * exact.bse["Intercept"]
    assert "mean-field" in str(fit.summary()) and "MeanField" not in str(fit.summary())


def test_results_have_the_usual_methods(data: pd.DataFrame) -> None:
    fit = ds.lmer(CROSSED, data).fit(False, method="vi", unfactorised=["c"])
    assert isinstance(fit, VariationalResults)
    assert isinstance(fit.mixed, VariationalFitted)
    assert fit.unfactorised == ["c"]
    text = str(fit.summary())
    assert "ELBO" in text and "Log-likelihood" not in text and "Unfactorised" in text
    assert set(fit.ranef(cond_var=True)["a"]) == {"Intercept", "Intercept.sd"}
    assert fit.varcorr["grp"].tolist() == ["a", "b", "c", "Residual"]
    new = pd.DataFrame({"x": [0.0, 1.0], "a": [0, 3], "b": [1, 2], "c": [0, 1]})
    expected = fit.params["Intercept"] + sum(
        fit.ranef()[g]["Intercept"].loc[0 if g != "b" else 1] for g in "abc"
    )
    assert fit.predict(new).iloc[0] == pytest.approx(expected)
    frame = fit.predict(new, interval="prediction")
    assert (frame["obs_ci_lower"] < frame["mean"]).all()
    assert fit.simulate(3, seed=1).shape == (300, 3)
    assert list(fit.glance()["elbo"]) == [fit.elbo]
    assert ".fixed" in fit.augment()
    assert fit.anova().loc["x"].iloc[-1] < 0.05
    assert fit.plot_history().get_xlabel() == "Step"
    assert fit.conf_int().shape == (2, 2)


REFUSED = {
    "llf": lambda f: f.llf,
    "aic": lambda f: f.aic,
    "bic": lambda f: f.bic,
    "caic": lambda f: f.caic,
    "lr_test": lambda f: f.lr_test("x"),
    "compare_lr_test": lambda f: f.compare_lr_test(f),
    "score_test": lambda f: f.score_test("x"),
    "profile": lambda f: f.profile(),
    "bootstrap": lambda f: f.bootstrap(),
    "conf_int": lambda f: f.conf_int(method="profile"),
    "random_params": lambda f: f.random_params(),
    "drop1": lambda f: f.drop1(),
    "refit": lambda f: f.refit(),
    "refit_many": lambda f: f.refit_many(np.zeros((300, 2))),
    "leverage": lambda f: f.leverage,
    "cooks_distance": lambda f: f.cooks_distance,
    "influence": lambda f: f.influence("a"),
    "check_convergence": lambda f: f.check_convergence(),
    "cross_validate": lambda f: f.cross_validate(),
    "robust": lambda f: f.get_robustcov_results("CR2"),
    "ddf": lambda f: f.with_ddf("satterthwaite"),
}


@pytest.fixture(scope="module")
def fitted(data: pd.DataFrame) -> VariationalResults:
    return ds.lmer(CROSSED, data).fit(False, method="vi", unfactorised=10)


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_the_likelihood_is_refused(
    fitted: VariationalResults, what: str
) -> None:
    with pytest.raises(ModelError, match="variational fit"):
        REFUSED[what](fitted)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "advi"}, ValueError, "exact, vi or mf-vi"),
        ({"unfactorised": 5}, ValueError, 'goes with method="vi"'),
        ({"method": "vi", "unfactorised": "z"}, ModelError, "no grouping factor"),
        ({"method": "vi", "unfactorised": -1}, ModelError, "0 or more"),
        (
            {"method": "vi", "unfactorised": ["a", "b", "c"]},
            ModelError,
            "nothing is left to approximate",
        ),
        ({"method": "mf-vi", "unfactorised": 5}, ModelError, "nothing unfactorised"),
        ({"method": "vi", "ddf": "kenward-roger"}, ModelError, "z tests"),
    ],
)
def test_bad_options(
    data: pd.DataFrame, options: dict, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match), warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldWarning)
        ds.lmer(CROSSED, data).fit(**options)


def test_draws_must_be_many(fitted: VariationalResults) -> None:
    with pytest.raises(ValueError, match="whole number"):
        fitted.llf_corrected(3)


def test_insteval_agrees_with_the_exact_fit() -> None:
    data = load("insteval")
    data = data.astype(dict.fromkeys(["s", "d", "dept", "service"], "category"))
    formula = "y ~ service + (1 | s) + (1 | d) + (1 | dept)"
    exact = ds.lmer(formula, data).fit(False, ddf="normal")
    fit = ds.lmer(formula, data).fit(False, method="vi")
    assert fit.unfactorised == ["dept"]
    np.testing.assert_allclose(fit.varcorr["sdcor"], exact.varcorr["sdcor"], rtol=5e-3)
    np.testing.assert_allclose(fit.bse, exact.bse, rtol=2e-3)
    assert fit.elbo < exact.llf < fit.elbo + 15
    for name, frame in exact.ranef().items():
        pair = np.corrcoef(frame["Intercept"], fit.ranef()[name]["Intercept"])
        assert pair[0, 1] > 0.99999
    with pytest.warns(MeanFieldWarning), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SingularFitWarning)
        lost = ds.lmer(formula, data).fit(False, method="mf-vi")
    assert lost.varcorr["sdcor"].iloc[2] < 1e-6


def test_small_bias_over_simulated_data() -> None:
    rng, sd = np.random.default_rng(7), []
    g, h = np.repeat(np.arange(40), 30), np.tile(np.arange(30), 40)
    for _ in range(40):
        y = 0.8 * rng.normal(size=40)[g] + 0.5 * rng.normal(size=30)[h]
        frame = pd.DataFrame({"g": g, "h": h, "y": y + rng.normal(size=len(g))})
        fit = ds.lmer("y ~ 1 + (1 | g) + (1 | h)", frame).fit(
            True, method="vi", unfactorised=0
        )
        sd.append(fit.varcorr["vcov"].to_numpy())
    found, spread = np.mean(sd, axis=0), np.std(sd, axis=0) / np.sqrt(40)
    assert (np.abs(found - [0.64, 0.25, 1.0]) < 4 * spread).all()


def test_partition_prefers_small_factors(data: pd.DataFrame) -> None:
    _, structure = LinearMixed(CROSSED, data).foundation()
    names = [f.name for f in structure.factors]
    chosen = {
        most: [names[j] for j in small_factors(structure, most)]
        for most in (0, 4, 18, 19, 1000)
    }
    assert chosen == {0: [], 4: ["c"], 18: ["c"], 19: ["b", "c"], 1000: ["b", "c"]}
    assert [names[j] for j in small_factors(structure)] == ["b", "c"]
    for one, two in combinations(names, 2):
        picked = {names[j] for j in small_factors(structure, [one, two])}
        assert picked == {one, two}
