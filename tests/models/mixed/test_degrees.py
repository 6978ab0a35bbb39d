"""Degrees of freedom against dense algebra, lmerTest and pbkrtest."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepstats.errors import ModelError, SingularFitWarning
from deepstats.models.mixed import LinearMixed, information
from deepstats.models.mixed.degrees import kenward_roger, satterthwaite
from deepstats.models.mixed.fitted import Fitted
from deepstats.models.mixed.information import Curvature
from deepstats.models.mixed.search import Found

from .data import CASES, INFERENCE, fit, formula_of, load, name_of

TABLES = [name for name, stored in INFERENCE.items() if "satterthwaite" in stored]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Unbalanced rows with three factors, two slopes and weights."""
    rng = np.random.default_rng(0)
    n = 110
    d = pd.DataFrame(
        {"a": rng.integers(0, 6, n), "b": rng.integers(0, 5, n),
         "c": rng.integers(0, 10, n), "x": rng.normal(size=n) + 1,
         "z": rng.normal(size=n), "w": rng.uniform(0.5, 2, n)}
    )  # fmt: skip
    d["y"] = 3 + d.x + rng.normal(size=n) / np.sqrt(d.w)
    for name in "abc":
        b, code = rng.normal(size=(10, 3)), d[name].to_numpy()
        d["y"] += b[code, 0] + 0.8 * b[code, 1] * d.x + b[code, 2] * d.z
    return d


FORMULAS = (
    "y ~ x + z + (1 | a)",
    "y ~ x + z + (x | c)",
    "y ~ x + z + (x || c)",
    "y ~ x + z + (1 | a) + (1 | b)",
    "y ~ x + (1 | a/b)",
    "y ~ x + z + (x | c) + (1 | a) + (0 + z | b)",
)


class Dense:
    """The same model with matrices of n rows and n columns."""

    def __init__(self, results) -> None:
        model, self.fitted = results.model, results.mixed
        design = model.design
        self.sigma_known = model.sigma is not None
        self.X, self.y = design.X.to_dense().numpy(), np.asarray(design.y, float)
        self.n, self.p = self.X.shape
        w = np.ones(self.n) if design.weights is None else design.weights
        self.Winv = np.diag(1 / w)
        self.Z, self.same = [], []
        for random in design.random:
            codes = random.grouping.codes
            self.Z.append(random.Z.to_dense().numpy())
            self.same.append(codes[:, None] == codes)
        self.terms = self.fitted.structure.terms

    def sigma_of(self, roots) -> np.ndarray:
        out = self.Winv.copy()
        for Z, same, root in zip(self.Z, self.same, roots, strict=True):
            out = out + (Z @ root @ root.T @ Z.T) * same
        return out

    def unpack(self, theta: np.ndarray) -> list[np.ndarray]:
        """Entries of the relative triangles, term by term; diagonal ones by `diag`."""
        out, place = [], 0
        for term in self.terms:
            root = np.zeros((term.k, term.k))
            size = term.params.stop - term.params.start
            at = np.diag_indices(term.k) if term.kind == "diag" else term.triangle
            root[at] = theta[place : place + size]
            place += size
            out.append(root)
        return out

    @property
    def theta(self) -> np.ndarray:
        return np.concatenate(
            [
                np.diag(root) if term.kind == "diag" else root[term.triangle]
                for term, root in zip(self.terms, self.fitted.roots, strict=True)
            ]
        )

    @property
    def at(self) -> np.ndarray:
        """Theta and, unless it is known, sigma: lmerTest's parameters."""
        sigma = [] if self.sigma_known else [self.fitted.sigma]
        return np.concatenate([self.theta, sigma])

    def split(self, par: np.ndarray) -> tuple[np.ndarray, float]:
        if self.sigma_known:
            return self.sigma_of(self.unpack(par)), self.fitted.sigma**2
        return self.sigma_of(self.unpack(par[:-1])), par[-1] ** 2

    def covariance(self, par: np.ndarray) -> np.ndarray:
        Sigma, s2 = self.split(par)
        return s2 * np.linalg.inv(self.X.T @ np.linalg.solve(Sigma, self.X))

    def deviance(self, par: np.ndarray) -> float:
        Sigma, s2 = self.split(par)
        inverse = np.linalg.inv(Sigma)
        S = self.X.T @ inverse @ self.X
        r = self.y - self.X @ np.linalg.solve(S, self.X.T @ inverse @ self.y)
        out = np.linalg.slogdet(Sigma)[1] + self.n * np.log(s2) + r @ inverse @ r / s2
        if self.fitted.reml:
            out += np.linalg.slogdet(S)[1] - self.p * np.log(s2)
        return float(out)

    def satterthwaite(self, R: np.ndarray, free: np.ndarray) -> np.ndarray:
        """By differences of the deviance in lmerTest's parameters, extrapolated."""
        H = _hessian(self.deviance, self.at)[np.ix_(free, free)]
        A = 2 * np.linalg.inv(H)
        J = _jacobian(self.covariance, self.at)[free]
        g = np.einsum("ci,aij,cj->ca", R, J, R)
        C = np.einsum("ci,ij,cj->c", R, self.covariance(self.at), R)
        return 2 * C**2 / np.einsum("ca,ab,cb->c", g, A, g)

    def kenward_roger(self):
        """Adjusted covariance, W and P of pbkrtest's ``vcovAdj``, line by line."""
        Sigma, s2 = self.split(self.at)
        inverse = np.linalg.inv(s2 * Sigma)
        Gs = [] if self.sigma_known else [self.Winv]
        for term, Z, same in zip(self.terms, self.Z, self.same, strict=True):
            for r in range(term.k):
                for c in range(r + 1):
                    if term.kind == "diag" and r != c:
                        continue
                    E = np.zeros((term.k, term.k))
                    E[r, c] = E[c, r] = 1
                    Gs.append((Z @ E @ Z.T) * same)
        X = self.X
        Phi = np.linalg.inv(X.T @ inverse @ X)
        P = [-X.T @ inverse @ G @ inverse @ X for G in Gs]
        Q = [[X.T @ inverse @ G @ inverse @ H @ inverse @ X for H in Gs] for G in Gs]
        count = range(len(Gs))
        IE = np.array(
            [
                [
                    np.trace(inverse @ Gs[i] @ inverse @ Gs[j])
                    - 2 * np.trace(Phi @ Q[i][j])
                    + np.trace(Phi @ P[i] @ Phi @ P[j])
                    for j in count
                ]
                for i in count
            ]
        )
        W = 2 * np.linalg.inv(IE)
        U = sum(W[i, j] * (Q[i][j] - P[i] @ Phi @ P[j]) for i in count for j in count)
        return Phi, Phi + 2 * Phi @ U @ Phi, W, P


def _kr_moments(R, Phi, W, P) -> tuple[float, float]:
    """``Lb_ddf`` and the scale of ``KRmodcomp``, as pbkrtest writes them."""
    Theta = R.T @ np.linalg.solve(R @ Phi @ R.T, R)
    U = [Theta @ Phi @ p @ Phi for p in P]
    A1 = sum(
        W[i, j] * np.trace(u) * np.trace(v)
        for i, u in enumerate(U)
        for j, v in enumerate(U)
    )
    A2 = sum(
        W[i, j] * np.trace(u @ v) for i, u in enumerate(U) for j, v in enumerate(U)
    )
    q = len(R)
    B = (A1 + 6 * A2) / (2 * q)
    g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
    c1, c2, c3 = (v / (3 * q + 2 * (1 - g)) for v in (g, q - g, q + 2 - g))
    rho = ((1 - A2 / q) / (1 - c2 * B)) ** 2 * (1 + c1 * B) / (1 - c3 * B) / q
    df = 4 + (q + 2) / (q * rho - 1)
    return df, df * (1 - A2 / q) / (df - 2)


def _jacobian(function, x) -> np.ndarray:
    out = []
    for j in range(len(x)):
        h = np.zeros(len(x))
        h[j] = 1e-3 * max(abs(x[j]), 0.1)
        d = [
            (function(x + k * h) - function(x - k * h)) / (2 * k * h[j]) for k in (1, 2)
        ]
        out.append((4 * d[0] - d[1]) / 3)
    return np.array(out)


def _hessian(function, x) -> np.ndarray:
    H = _jacobian(lambda u: _jacobian(function, u), x)
    return (H + H.T) / 2


@pytest.fixture(scope="module")
def fits(frame):
    """Fits by formula and criterion, with weights."""
    kept = {}

    def get(formula, reml=True):
        if (formula, reml) not in kept:
            model = LinearMixed(formula, frame, weights="w")
            kept[formula, reml] = model.fit(reml, tol=1e-9)
        return kept[formula, reml]

    return get


# -- against dense algebra ------------------------------------------------------------


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("formula", FORMULAS)
def test_satterthwaite_is_that_of_dense_differences(fits, formula, reml):
    results = fits(formula, reml)
    assert not results.singular
    dense = Dense(results)
    R = np.vstack([np.eye(dense.p), np.arange(1, dense.p + 1)])
    expected = dense.satterthwaite(R, np.full(len(dense.at), True))
    # The dense Hessian is made of differences of differences of a deviance.
    np.testing.assert_allclose(satterthwaite(results.mixed, R), expected, rtol=2e-5)
    assert np.isfinite(expected).all()


@pytest.fixture(params=["few", "many"])
def route(request, monkeypatch):
    """Take every model of several factors for one of few, or of many effects."""
    monkeypatch.setattr(information, "_FEW", 250 if request.param == "few" else 0)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("formula", FORMULAS)
def test_kenward_roger_is_that_of_dense_algebra(fits, formula):
    fitted = fits(formula)
    anew = Fitted(fitted.mixed.found, fitted.mixed.criterion, fitted.mixed.compute)
    results = fitted.model.results(anew, "kenward-roger")
    dense = Dense(results)
    Phi, adjusted, W, P = dense.kenward_roger()
    np.testing.assert_allclose(results._cov, adjusted, rtol=1e-6, atol=1e-9)
    assert np.abs(adjusted / Phi - 1).max() > 1e-4
    expected = [_kr_moments(r[None], Phi, W, P)[0] for r in np.eye(dense.p)]
    np.testing.assert_allclose(results.df_coefficients, expected, rtol=1e-6)
    R = np.eye(dense.p)[1:]
    df, scale = _kr_moments(R, Phi, W, P)
    b = results.params.to_numpy()[1:]
    F = scale * b @ np.linalg.solve(adjusted[1:, 1:], b) / len(b)
    test = results.wald_test(R)
    np.testing.assert_allclose([test.statistic, test.df_denom], [F, df], rtol=1e-6)
    assert test.pvalue == pytest.approx(stats.f.sf(F, len(b), df), rel=1e-5)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("formula", FORMULAS)
def test_every_route_to_the_traces_gives_the_same(fits, formula, reml):
    curvature = Curvature(fits(formula, reml).mixed.point)
    for directions in (curvature.directions, curvature.linear):
        written = curvature._written_down(directions)
        differences = curvature._differences(directions)
        scale = np.sqrt(np.diag(written))
        scale = scale[:, None] * scale
        np.testing.assert_allclose(differences / scale, written / scale, atol=1e-7)
        if len(curvature.structure.factors) == 1:
            closed = curvature._closed(directions)
            np.testing.assert_allclose(closed, written, rtol=1e-9)


def test_known_residual_variance_is_no_parameter(frame):
    model = LinearMixed("y ~ x + (1 | a)", frame, weights="w", sigma=1.1)
    results = model.fit(tol=1e-9)
    dense = Dense(results)
    assert len(dense.at) == 1
    found = satterthwaite(results.mixed, np.eye(2))
    np.testing.assert_allclose(
        found, dense.satterthwaite(np.eye(2), np.array([True])), rtol=1e-5
    )
    Phi, adjusted, W, P = dense.kenward_roger()
    kr = results.with_ddf("kenward-roger")
    np.testing.assert_allclose(kr._cov, adjusted, rtol=1e-8)
    np.testing.assert_allclose(
        kr.df_coefficients,
        [_kr_moments(r[None], Phi, W, P)[0] for r in np.eye(2)],
        rtol=1e-8,
    )


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    "formula", ["y ~ x + (1 | a) + (1 | c)", "y ~ x + (1 | c) + (1 | a) + (1 | b)"]
)
def test_variance_at_zero_is_known_to_satterthwaite_not_to_kenward_roger(formula):
    rng = np.random.default_rng(3)
    n = 80
    d = pd.DataFrame(
        {"a": np.arange(n) % 5, "c": rng.integers(0, 8, n), "b": rng.integers(0, 4, n),
         "x": rng.normal(size=n)}
    )  # fmt: skip
    # Effects of a sum to zero within it: its variance is zero.
    e = rng.normal(size=n)
    e -= pd.Series(e).groupby(d.a).transform("mean").to_numpy()
    d["y"] = d.x + e + rng.normal(size=8)[d.c]
    d[["x", "y"]] -= d[["x", "y"]].groupby(d.a).transform("mean")
    with pytest.warns(SingularFitWarning):
        results = LinearMixed(formula, d).fit(tol=1e-9)
    dense = Dense(results)
    zero = dense.theta == 0
    assert zero.any()
    found = satterthwaite(results.mixed, np.eye(2))
    free = np.append(~zero, True)
    np.testing.assert_allclose(found, dense.satterthwaite(np.eye(2), free), rtol=2e-5)
    Phi, adjusted, W, P = dense.kenward_roger()
    kr = results.with_ddf("kenward-roger")
    np.testing.assert_allclose(kr._cov, adjusted, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        kr.df_coefficients,
        [_kr_moments(r[None], Phi, W, P)[0] for r in np.eye(2)],
        rtol=1e-5,
    )
    table = results.random_params()
    at_zero = table["vcov"] == 0
    assert at_zero.sum() == zero.sum()
    assert table.loc[at_zero, "std_error"].isna().all()
    assert table.loc[~at_zero, "std_error"].notna().all()


@pytest.mark.usefixtures("route")
def test_singular_vector_term(frame):
    d = frame.copy()
    rng = np.random.default_rng(11)
    d["y"] = d.x + rng.normal(size=10)[d.c] * (1 + d.x) + 0.5 * rng.normal(size=len(d))
    with pytest.warns(SingularFitWarning):
        results = LinearMixed("y ~ x + (x | c) + (1 | b)", d).fit(tol=1e-9)
    dense = Dense(results)
    Phi, adjusted, W, P = dense.kenward_roger()
    kr = results.with_ddf("kenward-roger")
    np.testing.assert_allclose(kr._cov, adjusted, rtol=1e-5, atol=1e-7)
    expected = [_kr_moments(r[None], Phi, W, P)[0] for r in np.eye(2)]
    np.testing.assert_allclose(kr.df_coefficients, expected, rtol=1e-4)
    # The entry of theta at zero is no parameter: nothing changes with its sign.
    expected = dense.satterthwaite(np.eye(2), np.abs(dense.at) > 1e-5)
    np.testing.assert_allclose(results.df_coefficients, expected, rtol=2e-5)
    table = results.random_params()
    assert table["std_error"].isna()[:3].all()
    assert np.isfinite(table["std_error"].iloc[-1])


# -- against lmerTest and pbkrtest ----------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_lmertest(name):
    """lmer stops up to 1e-4 short of its optimum, which is where tolerances are from.

    Degrees of freedom are flat there, standard errors are not.
    """
    stored = INFERENCE[name]
    results = fit(f"{name}_REML")
    for ddf, key in (
        ("satterthwaite", "satterthwaite"), ("kenward-roger", "kenward_roger"),
    ):  # fmt: skip
        table = results.with_ddf(ddf)
        rows = {row["term"]: row for row in stored[key]}
        theirs = [rows[name_of(n)] for n in table.names]
        se = np.array([row["Std. Error"] for row in theirs])
        np.testing.assert_allclose(table.bse, se, rtol=5e-4)
        df = [row["df"] for row in theirs]
        np.testing.assert_allclose(table.df_coefficients, df, rtol=1e-3)
        t = np.array([row["t value"] for row in theirs])
        np.testing.assert_allclose(table.tvalues, t, rtol=5e-4, atol=1e-9)
        p = [row["Pr(>|t|)"] for row in theirs]
        np.testing.assert_allclose(table.pvalues, p, rtol=2e-2)


@pytest.mark.parametrize("name", TABLES)
def test_kenward_roger_at_the_theta_of_lme4(name):
    """At lme4's own estimates nothing is left but rounding and differences."""
    kr = at_theta(f"{name}_REML").with_ddf("kenward-roger")
    rows = {row["term"]: row for row in INFERENCE[name]["kenward_roger"]}
    theirs = pd.DataFrame([rows[name_of(n)] for n in kr.names])
    np.testing.assert_allclose(kr.df_coefficients, theirs["df"], rtol=1e-8)
    np.testing.assert_allclose(kr.bse, theirs["Std. Error"], rtol=1e-10)
    np.testing.assert_allclose(kr.tvalues, theirs["t value"], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(kr.pvalues, theirs["Pr(>|t|)"], rtol=1e-6)
    stored = np.array(INFERENCE[name]["vcov_kr"])
    np.testing.assert_allclose(kr._cov, stored, atol=1e-10 * np.abs(stored).max())


@pytest.mark.parametrize("name", TABLES)
def test_satterthwaite_at_the_theta_of_lme4(name):
    """Where lme4's gradient is not zero, ours (in variances) is another Hessian.

    Penicillin is farthest from its optimum, 3e-5 here; lmerTest's own differences are
    good to 1e-8.
    """
    results = at_theta(f"{name}_REML")
    rows = {row["term"]: row for row in INFERENCE[name]["satterthwaite"]}
    theirs = pd.DataFrame([rows[name_of(n)] for n in results.names])
    np.testing.assert_allclose(results.df_coefficients, theirs["df"], rtol=5e-5)
    np.testing.assert_allclose(results.pvalues, theirs["Pr(>|t|)"], rtol=5e-4)


@pytest.mark.parametrize("name", TABLES)
def test_joint_tests_of_lmertest(name):
    stored = INFERENCE[name]
    results = fit(f"{name}_REML")
    for ddf, key in (
        ("satterthwaite", "anova_type3_satterthwaite"),
        ("kenward-roger", "anova_type3_kr"),
    ):
        # Terms all of whose contrasts sum to zero over levels need the marginal
        # hypotheses of `anova`; a term that no other contains is its own columns.
        for row in stored.get(key) or []:
            columns = _columns(results.names, row["term"], stored)
            if columns is None:
                continue
            test = results.with_ddf(ddf).wald_test(np.eye(len(results.names))[columns])
            assert test.df_num == row["NumDF"]
            np.testing.assert_allclose(test.df_denom, row["DenDF"], rtol=2e-3)
            np.testing.assert_allclose(test.statistic, row["F value"], rtol=1e-3)


def _columns(names: list[str], term: str, stored: dict) -> list[int] | None:
    """Columns of a term that is in no interaction."""
    fixed = stored["formula"].split("~")[1].split("(")[0]
    if re.search(r"[*:]", fixed) and ":" not in term:
        return None
    factors = term.split(":")
    out = []
    for j, name in enumerate(names):
        parts = name_of(name).split(":")
        if len(parts) == len(factors) and all(
            p.startswith(f) for p, f in zip(parts, factors, strict=True)
        ):
            out.append(j)
    return out


def at_theta(name: str):
    """Return the equations at lme4's own estimates."""
    stored = CASES[name]
    model = LinearMixed(formula_of(stored), load(stored["dataset"]))
    best = fit(name).mixed
    dense = Dense(fit(name))
    theta, names = stored["theta"], list(best.structure.theta(best.x))
    values = dict(zip(names, theta.values(), strict=True))
    from deepstats.models.mixed.model import parameters_of

    point = best.criterion(parameters_of(best.structure, values))
    found = Found(point, True, 0, 0, 0.0, "given")
    assert dense.n == stored["nobs"]
    return model.results(Fitted(found, best.criterion, best.compute))


# -- the interface --------------------------------------------------------------------


def test_kinds_of_degrees_of_freedom(fits):
    results = fits("y ~ x + z + (x | c)")
    n, p = 110, 3
    assert (results.with_ddf("residual").df_coefficients == n - p).all()
    normal = results.with_ddf("normal")
    assert np.isinf(normal.df_coefficients).all()
    np.testing.assert_allclose(
        normal.pvalues, 2 * stats.norm.sf(np.abs(normal.tvalues)), rtol=1e-12
    )
    assert normal.wald_test("x = 0, z = 0").distribution == "chi2"
    assert results.wald_test("x = 0, z = 0", use_f=False).distribution == "chi2"
    residual = results.with_ddf("residual").wald_test("x = 0, z = 0")
    assert residual.df_denom == n - p


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
def test_one_restriction_is_the_square_of_t(fits, ddf):
    results = fits("y ~ x + z + (x | c)").with_ddf(ddf)
    table, test = results.t_test("x - z = 0.3"), results.wald_test("x - z = 0.3")
    assert test.statistic == pytest.approx(table.tvalue[0] ** 2, rel=1e-9)
    assert test.df_denom == pytest.approx(table.frame["df"].iloc[0], rel=1e-9)
    assert test.pvalue == pytest.approx(table.pvalue[0], rel=1e-8)
    half = stats.t.ppf(0.975, test.df_denom) * table.sd[0]
    np.testing.assert_allclose(
        table.conf_int()[0], [table.effect[0] - half, table.effect[0] + half]
    )


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_repeated_restrictions_count_once(fits, ddf):
    results = fits("y ~ x + z + (x | c)").with_ddf(ddf)
    once = results.wald_test("x = 0, z = 0")
    twice = results.wald_test("x = 0, z = 0, x + z = 0")
    assert twice.df_num == once.df_num == 2
    assert twice.statistic == pytest.approx(once.statistic, rel=1e-9)


def test_kenward_roger_needs_reml(fits):
    results = fits("y ~ x + z + (1 | a)", False)
    with pytest.raises(ModelError, match="need a REML fit"):
        results.with_ddf("kenward-roger")
    with pytest.raises(ModelError, match="refit"):
        kenward_roger(results.mixed)


def test_degrees_of_freedom_do_not_depend_on_units(frame):
    """Ten thousandfold units of a slope's column and of the response."""
    big = frame.assign(x=frame.x * 1e4, y=frame.y * 1e4)
    for ddf in ("satterthwaite", "kenward-roger"):
        one, other = (
            LinearMixed("y ~ x + (x | c) + (1 | a)", d).fit(ddf=ddf, tol=1e-9)
            for d in (frame, big)
        )
        np.testing.assert_allclose(
            one.df_coefficients, other.df_coefficients, rtol=1e-6
        )


# -- standard errors of variances -----------------------------------------------------


@pytest.mark.parametrize("reml", [True, False])
def test_random_parameters_are_those_of_the_dense_hessian(fits, reml):
    results = fits("y ~ x + z + (x | c)", reml)
    dense = Dense(results)
    A = 2 * np.linalg.inv(_hessian(dense.deviance, dense.at))

    def reported(par):
        root = dense.unpack(par[:-1])[0]
        V = par[-1] ** 2 * root @ root.T
        sd = np.sqrt(np.diag(V))
        return np.array([*sd, V[0, 1] / sd.prod(), par[-1], *np.diag(V), V[0, 1]])

    J = _jacobian(reported, dense.at)
    se = np.sqrt(np.diag(J.T @ A @ J))
    table = results.random_params(alpha=0.1)
    np.testing.assert_allclose(table["estimate"], reported(dense.at)[:4], rtol=1e-9)
    np.testing.assert_allclose(table["std_error"], se[:4], rtol=1e-5)
    np.testing.assert_allclose(table["vcov_std_error"].iloc[:3], se[4:], rtol=1e-5)
    z = stats.norm.ppf(0.95)
    sd, cor = table["estimate"].iloc[0], table["estimate"].iloc[2]
    assert table["conf_high"].iloc[0] == pytest.approx(
        sd * np.exp(z * se[0] / sd), rel=1e-5
    )
    low = np.tanh(np.arctanh(cor) - z * se[2] / (1 - cor**2))
    assert table["conf_low"].iloc[2] == pytest.approx(low, rel=1e-4)


def test_known_sigma_has_no_standard_error(frame):
    table = LinearMixed("y ~ x + (1 | a)", frame, sigma=1.0).fit().random_params()
    assert np.isnan(table["std_error"].iloc[-1])
    assert np.isfinite(table["std_error"].iloc[0])


def test_alpha_is_checked(fits):
    with pytest.raises(ValueError, match="alpha must be between"):
        fits("y ~ x + z + (1 | a)").random_params(alpha=5)
    with pytest.raises(ValueError, match="alpha must be between"):
        fits("y ~ x + z + (1 | a)").t_test("x = 0", alpha=0)
