"""Profile likelihoods against lme4, and against the dense normal density."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from deepstats.errors import SingularFitWarning
from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.constrained import Block, Coordinates, Deviance
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.profile import profile

from .data import INFERENCE, formula_of, load

Z95 = float(norm.ppf(0.975))


@pytest.fixture(scope="module")
def groups() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    n = 150
    d = pd.DataFrame(
        {
            "a": rng.integers(0, 9, n), "b": rng.integers(0, 5, n),
            "c": rng.integers(0, 3, n), "x": rng.normal(size=n) + 1,
            "z": rng.normal(size=n), "w": rng.uniform(0.5, 2, n),
        }
    )  # fmt: skip
    effects = rng.normal(size=9)[d.a] + rng.normal(size=9)[d.a] * d.x
    d["y"] = 10 + d.x + effects + rng.normal(size=5)[d.b] + rng.normal(size=n)
    return d


def quietly(formula, data, reml=False, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return LinearMixed(formula, data, **options).fit(reml=reml)


# -- lme4 ----------------------------------------------------------------------------

# Interpolated limits of lme4 agree to 1e-3 of the interval's width, except these, which
# its own deviance contradicts: see test_correlation_limit_of_machines.
OFF = {"machines_vec": 0.03}
SLOW = ("ham_crossed",)
CASES = [k for k, v in INFERENCE.items() if "profile_ci_ML" in v and k not in SLOW]


@lru_cache
def reference_fit(case: str):
    stored = INFERENCE[case]
    return quietly(formula_of(stored), load(stored["dataset"]), reml=True)


@pytest.mark.parametrize("case", CASES)
def test_intervals_match_lme4(case):
    stored = INFERENCE[case]["profile_ci_ML"]
    want = np.array([[row["2.5 %"], row["97.5 %"]] for row in stored])
    found = reference_fit(case).profile(steps=2).conf_int()
    assert len(found) == len(want)
    width = want[:, 1:] - want[:, :1]
    worst = (np.abs(found.to_numpy() - want) / width).max()
    assert worst < OFF.get(case, 1e-3)


def test_sleepstudy_profile_of_mixedmodels():
    # MixedModels.jl, test/pls.jl, "profile"; the lower limit of its second SD: lme4.
    found = reference_fit("sleepstudy_slope").profile().conf_int().round(3)
    assert found.loc["Intercept"].tolist() == pytest.approx(
        [237.681, 265.130], abs=2e-3
    )
    assert found.loc["Days"].tolist() == pytest.approx([7.359, 13.576], abs=2e-3)
    assert found.loc["sigma"].tolist() == pytest.approx([22.898, 28.858], abs=2e-3)
    sd = found.loc["sd(Intercept)|Subject"].tolist()
    assert sd == pytest.approx([14.381, 37.718], abs=3e-3)
    assert found.loc["sd(Days)|Subject"].tolist() == pytest.approx(
        [3.801, 8.753], abs=2e-3
    )


# -- the dense normal density --------------------------------------------------------


class Dense:
    """The deviance of one correlated term (and a scalar one) by n x n matrices."""

    def __init__(self, results):
        design = results.model.design
        cpu = results.model.compute.on_cpu()
        self.X = design.X.to_dense(cpu).numpy()
        self.y = np.asarray(design.y, dtype=float)
        self.n = len(self.y)
        self.w = np.ones(self.n) if design.weights is None else design.weights
        self.Z = [t.Z.to_dense(cpu).numpy() for t in design.random]
        self.same = [
            t.grouping.codes[:, None] == t.grouping.codes for t in design.random
        ]
        self.sizes = [z.shape[1] * (z.shape[1] + 1) // 2 for z in self.Z]

    def covariances(self, t):
        out, start = [], 1
        for z, size in zip(self.Z, self.sizes, strict=True):
            L = np.zeros((z.shape[1],) * 2)
            L[np.tril_indices(len(L))] = t[start : start + size]
            out.append(L @ L.T)
            start += size
        return out

    def __call__(self, t, beta=None):
        S = np.diag(np.exp(2 * t[0]) / self.w)
        for z, same, V in zip(self.Z, self.same, self.covariances(t), strict=True):
            S = S + (z @ V @ z.T) * same
        Si = np.linalg.inv(S)
        X, y = self.X, self.y
        if beta is not None:
            j, b = beta
            X, y = np.delete(X, j, axis=1), y - X[:, j] * b
        r = y - X @ np.linalg.solve(X.T @ Si @ X, X.T @ Si @ y)
        return np.linalg.slogdet(S)[1] + r @ Si @ r + self.n * np.log(2 * np.pi)

    def start(self, results):
        parts = [[np.log(results.sigma)]]
        for V in results.mixed.covariances:
            L = np.linalg.cholesky(V + 1e-12 * np.eye(len(V)))
            parts.append(L[np.tril_indices(len(L))])
        return np.concatenate(parts)

    def least(self, start, value=None, at=None, beta=None):
        """Minimise, perhaps with a function of the parameters at a value."""
        held = [] if value is None else [{"type": "eq", "fun": lambda t: value(t) - at}]
        found = minimize(
            lambda t: self(t, beta), start, method="SLSQP", constraints=held,
            options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        if value is not None:
            assert abs(value(found.x) - at) < 1e-6
        return found.fun


def functions(label, dense):
    """How a parameter follows from the dense deviance's."""
    if label == "sigma":
        return lambda t: np.exp(t[0])
    term = 0 if label.endswith("|a") else 1
    names = ["Intercept", "x"]
    inside = label[label.index("(") + 1 : label.index(")")].split(",")
    at = [names.index(n) for n in inside]
    if label.startswith("sd"):
        return lambda t: np.sqrt(dense.covariances(t)[term][at[0], at[0]])

    def correlation(t):
        V = dense.covariances(t)[term]
        return V[at[0], at[1]] / np.sqrt(V[at[0], at[0]] * V[at[1], at[1]])

    return correlation


def test_limits_against_the_dense_density(groups):
    fit = quietly("y ~ x + z + (x | a) + (1 | b)", groups, weights="w")
    dense = Dense(fit)
    start = dense.start(fit)
    least = fit.mixed.point.value
    assert dense(start) == pytest.approx(least, abs=1e-6)
    limits = fit.profile(steps=2).conf_int()
    assert list(limits.index) == [
        "sd(Intercept)|a", "cor(x,Intercept)|a", "sd(x)|a", "sd(Intercept)|b", "sigma",
        "Intercept", "x", "z",
    ]  # fmt: skip
    for label, row in limits.iterrows():
        for limit in row:
            if label in fit.names:
                beta = (list(fit.names).index(label), limit)
                rise = dense.least(start, beta=beta) - least
            else:
                rise = dense.least(start, functions(label, dense), limit) - least
            # SLSQP's minimum is a few 1e-6 above the true one.
            assert rise == pytest.approx(Z95**2, abs=2e-5), label


def test_correlation_limit_of_machines():
    # lme4 says 0.9341 for the upper limit of cor(C, B), where zeta is 1.531 only; the
    # dense deviance has its 1.960 where ours is.
    found = reference_fit("machines_vec").profile("cor(Machine[C],Machine[B])|Worker")
    d = load("Machines")
    Z = pd.get_dummies(d["Machine"]).to_numpy(float)
    X = np.column_stack([np.ones(len(d)), Z[:, 1:]])
    y, who = d["score"].to_numpy(float), d["Worker"].astype(str).to_numpy()
    same = who[:, None] == who

    def deviance(t, rho):
        B, C = np.exp(t[1:3])
        L = np.array(
            [[B, 0, 0], [C * rho, C * np.sqrt(1 - rho**2), 0], [t[3], t[4], t[5]]]
        )
        V = (L @ L.T)[np.ix_([2, 0, 1], [2, 0, 1])]
        S = np.exp(t[0]) * np.eye(len(y)) + (Z @ V @ Z.T) * same
        Si = np.linalg.inv(S)
        r = y - X @ np.linalg.solve(X.T @ Si @ X, X.T @ Si @ y)
        return np.linalg.slogdet(S)[1] + r @ Si @ r + len(y) * np.log(2 * np.pi)

    limit, start = found.conf_int().iloc[0, 1], [0.0, 2.0, 1.4, 3.0, 1.0, 1.0]
    best = {
        rho: minimize(deviance, start, args=(rho,), method="BFGS").fun - found.deviance
        for rho in (0.934131354294094, limit)
    }
    assert best[limit] == pytest.approx(Z95**2, abs=1e-4)
    assert best[0.934131354294094] == pytest.approx(2.345, abs=1e-2)


@pytest.mark.parametrize(
    "formula",
    ["y ~ x + (x + z | a)", "y ~ x + (x || a) + (1 | b)", "y ~ x + (x | a/c)"],
)
def test_gradient_in_all_coordinates(groups, formula):
    model = LinearMixed(formula, groups, weights="w")
    structure, products = model.prepare()
    rng = np.random.default_rng(2)
    for term in structure.terms:
        orders = [(j, *(i for i in range(term.k) if i != j)) for j in range(term.k)]
        blocks = [None, *(Block(term, o, False) for o in orders)]
        if term.variances:
            blocks = [None, *(Block(term, (j,), False) for j in range(term.k))]
        else:
            blocks += [Block(term, o, True) for o in orders]
        for block in blocks:
            coordinates = Coordinates(structure, block)
            x = rng.uniform(0.4, 1.5, structure.size)
            whole = Criterion(products, False)(x)
            deviance = Deviance(products, coordinates, whole.variance**0.5, fixed=1)
            beta = float(whole.factorisation.beta[1])
            w = np.concatenate([coordinates.of(x), [0.0, beta]])
            assert deviance(w).value == pytest.approx(whole.value, rel=1e-12)
            w = w + rng.uniform(0, 0.1, len(w))
            step = 1e-5 * np.eye(len(w))
            slopes = [
                (deviance(w + e).value - deviance(w - e).value) / 2e-5 for e in step
            ]
            gradient = deviance(w).gradient
            assert np.abs(gradient - slopes).max() < 1e-6 * np.abs(gradient).max()


# -- shape and edges -----------------------------------------------------------------


def test_zeta_rises_and_is_zero_at_the_estimate():
    found = reference_fit("sleepstudy_slope").profile()
    for label, part in found.frame.groupby("parameter"):
        assert (np.diff(part["value"]) > 0).all()
        assert (np.diff(part["zeta"]) > 0).all(), label
        assert part["zeta"].abs().max() >= norm.ppf(0.995)
        middle = part.loc[part["zeta"] == 0]
        assert middle["value"].item() == pytest.approx(found.estimates[label])
        rise = np.square(part["zeta"]) + found.deviance
        np.testing.assert_allclose(rise, part["deviance"], rtol=1e-12)


def test_reml_is_profiled_by_its_ml_refit():
    ml = quietly("Reaction ~ Days + (Days | Subject)", load("sleepstudy"))
    by_reml = reference_fit("sleepstudy_slope").profile(["sigma", "Days"], steps=2)
    by_ml = ml.profile(["sigma", "Days"], steps=2)
    np.testing.assert_allclose(by_reml.conf_int(), by_ml.conf_int(), rtol=1e-6)
    assert "REML" in by_reml.note and "REML" in repr(by_reml)
    assert (
        by_reml.conf_int().attrs["note"] == by_reml.note == by_reml.frame.attrs["note"]
    )
    assert by_ml.note == ""
    assert by_ml.estimates["sigma"] == pytest.approx(ml.sigma, rel=1e-12)


def test_limits_do_not_depend_on_the_points(groups):
    fit = quietly("y ~ x + (x | a) + (1 | b)", groups)
    few, many = (fit.profile(steps=s).conf_int(0.1) for s in (1, 6))
    np.testing.assert_allclose(few, many, rtol=1e-6)


def test_intervals_beyond_the_points_are_found(groups):
    fit = quietly("y ~ x + (1 | b)", groups)
    short = fit.profile("sigma", alpha=0.3).conf_int(0.001)
    long = fit.profile("sigma", alpha=0.001).conf_int(0.001)
    np.testing.assert_allclose(short, long, rtol=1e-7)


def test_variance_at_zero():
    fit = quietly("Yield ~ 1 + (1 | Batch)", load("Dyestuff2"))
    found = fit.profile()
    sd = "sd(Intercept)|Batch"
    assert found.estimates[sd] == 0
    low, high = found.conf_int().loc[sd]
    assert low == 0
    dense = Dense(fit)
    start = np.array([np.log(fit.sigma), high])
    rise = dense.least(start, lambda t: abs(t[1]), high) - found.deviance
    assert rise == pytest.approx(Z95**2, abs=1e-5)
    assert found.frame.query("parameter == @sd")["zeta"].min() == 0


def test_correlation_of_one_and_of_nothing():
    rng = np.random.default_rng(3)
    n = 120
    g, x, u = np.repeat(np.arange(12), 10), rng.normal(size=n), rng.normal(size=12)
    data = pd.DataFrame({"g": g, "x": x})
    data["y"] = 1 + x + u[g] * (1 + x) + 0.5 * rng.normal(size=n)
    together = quietly("y ~ x + (x | g)", data).profile(["cor(x,Intercept)|g"])
    low, high = together.conf_int().iloc[0]
    assert high == 1 and 0.9 < low < 1
    data["y"] = 1 + x + 0.5 * rng.normal(size=n)
    nothing = quietly("y ~ x + (x | g)", data).profile("random").conf_int()
    assert nothing.loc["cor(x,Intercept)|g"].tolist() == [-1, 1]
    assert (nothing.loc[["sd(Intercept)|g", "sd(x)|g"], 0] == 0).all()


def test_correlation_is_no_dearer_than_a_variance_of_zero():
    # Leaving the slope's variance out raises the deviance by less than 3.84: then no
    # correlation can be ruled out, though each has a local optimum that rises further.
    low, high = reference_fit("orthodont_slope").profile(
        "cor(age,Intercept)|Subject"
    ).conf_int().iloc[0]  # fmt: skip
    assert (low, high) == (-1, 1)


def test_known_residual_has_no_profile():
    rng = np.random.default_rng(5)
    v = rng.uniform(0.1, 0.5, 15)
    y = 2 * rng.normal(size=15) + np.sqrt(v) * rng.normal(size=15)
    data = pd.DataFrame({"y": y, "study": np.arange(15).astype(str), "w": 1 / v})
    fit = quietly("y ~ 1 + (1 | study)", data, sigma=1.0, weights="w")
    limits = fit.profile().conf_int()
    assert list(limits.index) == ["sd(Intercept)|study", "Intercept"]

    def deviance(mu, tau):
        return (np.log(v + tau**2) + (y - mu) ** 2 / (v + tau**2)).sum()

    def rise(tau=None, mu=None):
        if tau is not None:
            s = v + tau**2
            return deviance((y / s).sum() / (1 / s).sum(), tau) - least
        return minimize(lambda t: deviance(mu, t[0]), [2.0], tol=1e-10).fun - least

    least = 0.0
    least = minimize(lambda t: rise(tau=t[0]), [2.0], tol=1e-10).fun
    for tau in limits.iloc[0]:
        assert rise(tau=tau) == pytest.approx(Z95**2, abs=1e-6)
    for mu in limits.iloc[1]:
        assert rise(mu=mu) == pytest.approx(Z95**2, abs=1e-6)


def test_far_columns_and_offsets_change_nothing(groups):
    fit = quietly("y ~ x + (x | a)", groups)
    moved = groups.assign(year=2000 + groups["x"], known=100.0, far=groups["y"] + 100)
    other = quietly("far ~ year + (year | a)", moved, offset="known")
    one = fit.profile(["sigma", "x", "sd(x)|a"]).conf_int()
    two = other.profile(["sigma", "year", "sd(year)|a"]).conf_int()
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_selection_and_bad_input(groups):
    fit = quietly("y ~ x + (x || a)", groups)
    assert fit.profile("fixed", steps=1).labels == ["Intercept", "x"]
    random = ["sd(Intercept)|a", "sd(x)|a", "sigma"]
    assert fit.profile("random", steps=1).labels == random
    assert fit.profile(["x", "sigma"], steps=1).labels == ["sigma", "x"]
    with pytest.raises(ValueError, match="'gamma' is not a parameter"):
        fit.profile("gamma")
    with pytest.raises(ValueError, match="alpha must be between"):
        fit.profile(alpha=0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        fit.profile(steps=0)
    with pytest.raises(ValueError, match="alpha must be between"):
        profile(fit, "sigma", steps=1).conf_int(2)


def test_conf_int_of_results_is_the_profile(groups):
    fit = quietly("y ~ x + (1 | b)", groups)
    found = fit.conf_int(0.1, method="profile", parameters="fixed")
    pd.testing.assert_frame_equal(found, fit.profile("fixed").conf_int(0.1))
