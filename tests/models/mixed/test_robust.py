"""Cluster-robust standard errors against clubSandwich and the published formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepstats.errors import ModelError
from deepstats.models.mixed import LinearMixed, robust

from .data import load

# R 4.2.2, lme4 1.1-31 (bobyqa), clubSandwich 0.5.8: coef_test(test = "Satterthwaite")
# and Wald_test(test = "HTZ") of all coefficients but the intercept. Rows are dropped
# so that designs are unbalanced.
CLUBSANDWICH = {
    "sleepstudy": {
        "formula": "Reaction ~ Days + (Days | Subject)", "drop": [], "joint": [0, 1],
        "CR0": ([6.63227680702, 1.50223678231], [17, 17],
                [747.364551720, 16.0, 1.58294962823e-16]),
        "CR2": ([6.82455653207, 1.54578889629], [17, 17],
                [705.844298847, 16.0, 2.48823808495e-16]),
    },
    "Pastes": {
        "formula": "strength ~ 1 + (1 | batch/cask)", "drop": [], "joint": None,
        "CR0": ([0.642135326686], [9], None),
        "CR2": ([0.676870066128], [9], None),
    },
    "Machines": {
        "formula": "score ~ Machine + (1 | Worker/Machine)",
        "drop": [0, 1, 4, 29, 30, 31, 39], "joint": [1, 2],
        "CR0": ([1.53959391063, 2.24535817522, 1.37998867071],
                [4.99980360918, 4.99955097974, 4.99963408286],
                [40.64842890290896, 3.99968520036639, 0.00219987463222]),
        "CR2": ([1.68654747143, 2.46097613527, 1.51204421466],
                [4.99972002554, 4.99936048745, 4.99947751794],
                [33.85948453729184, 3.99955174656124, 0.00311200984646]),
    },
    "Orthodont": {
        "formula": "distance ~ age * Sex + (age | Subject)",
        "drop": [2, 6, 19, 49, 50, 79], "joint": [1, 2, 3],
        "CR0": ([1.260146711811, 0.104151306104, 1.475347154811, 0.123963980262],
                [14.9165497345, 14.7795198435, 21.7061733163, 21.4312895319],
                [41.2075884582, 17.8866205126, 3.06307154561e-08]),
        "CR2": ([1.301005352036, 0.107552009487, 1.530242852828, 0.128725883873],
                [14.9105327096, 14.7641798840, 21.4639498120, 21.1623032690],
                [37.9501491560, 17.8188218945, 5.99870610397e-08]),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["CR0", "CR2"])
@pytest.mark.parametrize("name", CLUBSANDWICH)
def test_clubsandwich(name, kind):
    stored = CLUBSANDWICH[name]
    d = load(name)
    d = d.drop(index=d.index[stored["drop"]])
    results = LinearMixed(stored["formula"], d).fit(tol=1e-9)
    found = results.get_robustcov_results(kind)
    se, df, joint = stored[kind]
    # lmer's optimum, even by bobyqa with tight tolerances, is off by about 1e-9.
    np.testing.assert_allclose(found.bse, se, rtol=1e-8)
    np.testing.assert_allclose(found.df_coefficients, df, rtol=1e-8)
    if joint is None:
        return
    F, df_denom, p = joint
    test = found.wald_test(np.eye(len(se))[stored["joint"]])
    assert test.statistic == pytest.approx(F, rel=1e-7)
    assert test.df_denom == pytest.approx(df_denom, rel=1e-8)
    assert test.pvalue == pytest.approx(p, rel=1e-6)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Eight clusters of unequal size, levels inside them, weights."""
    rng = np.random.default_rng(0)
    n = 120
    d = pd.DataFrame(
        {"g": rng.choice(8, n, p=np.arange(1, 9) / 36), "h": rng.integers(0, 3, n),
         "x": rng.normal(size=n), "w": rng.uniform(0.4, 2.5, n)}
    )  # fmt: skip
    d["z"] = rng.normal(size=8)[d.g]
    level, slope = 2 * rng.normal(size=8)[d.g], rng.normal(size=8)[d.g]
    inner = rng.normal(size=(8, 3))[d.g, d.h]
    d["y"] = level + slope * d.x + inner + rng.normal(size=n) / np.sqrt(d.w)
    return d


class Dense:
    """The published formulas with n x n matrices."""

    def __init__(self, results, kind: str) -> None:
        design, fitted = results.model.design, results.mixed
        self.X = X = design.X.to_dense().numpy()
        w = np.ones(len(X)) if design.weights is None else design.weights
        Phi = np.diag(1 / w)
        for random, root in zip(design.random, fitted.roots, strict=True):
            z, codes = random.Z.to_dense().numpy() @ root, random.grouping.codes
            Phi = Phi + (z @ z.T) * (codes[:, None] == codes)
        W = np.linalg.inv(Phi)
        self.M = M = np.linalg.inv(X.T @ W @ X)
        e = np.asarray(design.y) - X @ results.params.to_numpy()
        self.residual = Phi - X @ M @ X.T
        self.left, codes = [], design.groupings("g")[0].codes
        for i in range(codes.max() + 1):
            at = np.flatnonzero(codes == i)
            block = np.ix_(at, at)
            A = np.eye(len(at))
            if kind == "CR2":
                # The symmetric solution, here from symmetric roots.
                half = _power(Phi[block], 0.5)
                A = half @ _power(half @ self.residual[block] @ half, -0.5) @ half
            wide = np.zeros((len(M), len(X)))
            wide[:, at] = M @ X[at].T @ W[block] @ A
            self.left.append(wide)
        scores = np.array([wide @ e for wide in self.left])
        self.covariance = scores.T @ scores

    def wishart(self, R: np.ndarray) -> float:
        """Degrees of freedom from the variance of every entry of ``R V R'``."""
        S = self.residual
        mean = sum(R @ b @ S @ b.T @ R.T for b in self.left)
        turn = _power(mean, -0.5) @ R
        a = np.array([turn @ b for b in self.left])
        cov = np.einsum("isn,nm,jtm->istj", a, S, a, optimize=True)
        one = np.einsum("issj,ittj->st", cov, cov)
        two = np.einsum("istj,itsj->st", cov, cov)
        k = len(R)
        return k * (k + 1) / (one + two).sum()


def _power(A: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(A)
    keep = values > 1e-12 * values[-1]
    raised = np.where(keep, np.where(keep, values, 1.0) ** power, 0.0)
    return (vectors * raised) @ vectors.T


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("kind", ["CR0", "CR2"])
@pytest.mark.parametrize(
    "formula", ["y ~ x + z + (x | g)", "y ~ x + z + (1 | g/h)", "y ~ x + (x || g)"]
)
@pytest.mark.parametrize("large", [1000, 4])
def test_published_formulas(frame, formula, kind, weights, large, monkeypatch):
    """In both forms: all rows of a cluster, and the span of its effects."""
    monkeypatch.setattr(robust, "_LARGE", large)
    results = LinearMixed(formula, frame, weights=weights).fit()
    found = results.get_robustcov_results(kind, groups="g")
    dense = Dense(results, kind)
    np.testing.assert_allclose(found._cov, dense.covariance, rtol=1e-7, atol=1e-10)
    p = len(found.names)
    expected = [dense.wishart(r[None]) for r in np.eye(p)]
    np.testing.assert_allclose(found.df_coefficients, expected, rtol=1e-7)
    if p > 2:
        R = np.eye(p)[1:]
        eta = dense.wishart(R)
        b = R @ found.params.to_numpy()
        Q = b @ np.linalg.solve(R @ dense.covariance @ R.T, b)
        test = found.wald_test(R)
        assert test.df_denom == pytest.approx(eta - 1, rel=1e-6)
        assert test.statistic == pytest.approx(Q * (eta - 1) / (2 * eta), rel=1e-6)


def test_cr2_is_unbiased_where_the_model_holds(frame):
    """Its mean under the model is the model's covariance; that of CR0 is smaller."""
    results = LinearMixed("y ~ x + z + (x | g)", frame).fit()
    exact = results.mixed.factorisation.cov_beta.numpy()
    for kind, unbiased in (("CR0", False), ("CR2", True)):
        cov = results.get_robustcov_results(kind).covariance
        _, mean = robust._wishart(cov, np.eye(3))
        assert np.allclose(np.diag(mean), np.diag(exact), rtol=1e-8) == unbiased
        assert (np.diag(mean) <= np.diag(exact) * (1 + 1e-8)).all()


def test_clusters_by_default_and_by_name(frame):
    results = LinearMixed("y ~ x + (1 | g/h)", frame).fit()
    found = results.get_robustcov_results("CR2")
    assert found.cov_type == "CR2"
    assert found.cov_description == "CR2 cluster by g (8)"
    named = results.get_robustcov_results("CR2", groups=frame["g"].to_numpy())
    np.testing.assert_array_equal(found._cov, named._cov)
    coarse = results.get_robustcov_results("CR0", groups=frame["g"].to_numpy() % 4)
    assert coarse.covariance.groups == (4,)
    assert results.get_robustcov_results("nonrobust").bse.equals(results.bse)


def test_normal_and_chi_squared(frame):
    results = LinearMixed("y ~ x + z + (x | g)", frame).fit()
    found = results.get_robustcov_results("CR2", use_t=False)
    np.testing.assert_allclose(
        found.pvalues, 2 * stats.norm.sf(np.abs(found.tvalues)), rtol=1e-10
    )
    assert found.wald_test("x = 0, z = 0").distribution == "chi2"


def test_crossed_effects_have_no_clusters():
    results = LinearMixed(
        "diameter ~ 1 + (1 | plate) + (1 | sample)", load("Penicillin")
    ).fit()
    with pytest.raises(ModelError, match=r"levels of plate .* sample.*no independent"):
        results.get_robustcov_results("CR2")


def test_clusters_finer_than_the_random_effects(frame):
    results = LinearMixed("y ~ x + (1 | g)", frame).fit()
    with pytest.raises(ModelError, match="levels of g are in more than one cluster"):
        results.get_robustcov_results("CR0", groups="h")
    with pytest.raises(ModelError, match="one dimension"):
        results.get_robustcov_results("CR0", groups=["g", "h"])


def test_one_cluster(frame):
    results = LinearMixed("y ~ x + (1 | g)", frame).fit()
    with pytest.raises(ModelError, match="at least two clusters"):
        results.get_robustcov_results("CR0", groups=np.zeros(len(frame), dtype=int))


@pytest.mark.parametrize("kind", ["HC1", "cluster", "CR1"])
def test_other_kinds_are_refused(frame, kind):
    results = LinearMixed("y ~ x + (1 | g)", frame).fit()
    with pytest.raises(ValueError, match="nonrobust, CR0 or CR2"):
        results.get_robustcov_results(kind)


def test_too_few_clusters_for_a_joint_test(frame):
    results = LinearMixed("y ~ x + z + (1 | g)", frame).fit()
    found = results.get_robustcov_results("CR2", groups=frame["g"].to_numpy() % 3)
    test = found.wald_test(np.eye(3))
    assert np.isnan(test.pvalue)
    assert test.df_num == 3
    assert found.df_coefficients.between(0, 3).all()
