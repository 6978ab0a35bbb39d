"""The restricted likelihood against lmer, glmmTMB and a dense Laplace approximation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

import deepstats as ds
from deepstats import datasets
from deepstats.errors import ModelError
from deepstats.models.glmm import MixedGLM
from deepstats.models.glmm.restricted import Restricted

from .data import fit, load
from .panels import panel
from .small import DESIGNS, dense_z

CBPP = "cbind(incidence, size - incidence) ~ period + (1 | herd)"
# R 4.2.2, glmmTMB 1.1.5, REML = TRUE.
GLMMTMB = {
    "cbpp": {
        "value": 186.398134202, "sd": 0.68186728,
        "coef": [-1.36701519, -0.96934829, -1.10445412, -1.55188627],
        "se": [0.23763973, 0.30550177, 0.32547873, 0.42648682],
    },
    "epil": {
        "value": 1317.87366044, "sd": 0.93492715,
        "coef": [1.82255996, -0.28181333, -0.10988914],
        "se": [0.186547094, 0.257176449, 0.086841285],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GLMMTMB)
def test_optimum_is_that_of_glmmtmb(name):
    if name == "cbpp":
        found = MixedGLM(CBPP, load("cbpp"), family="binomial").fit(reml=True)
    else:
        model = ds.glmer("y ~ trt + V4 + (1 | subject)", datasets.load("epil"),
                         family="nb2")  # fmt: skip
        found = model.fit(reml=True)
        # theta = 1 / alpha, and its logarithm's standard error.
        assert 1 / found.params["alpha"] == pytest.approx(7.34803589, rel=1e-4)
        assert found.joint_cov[-1, -1] ** 0.5 == pytest.approx(0.235743612, rel=1e-3)
    stored = GLMMTMB[name]
    assert -2 * found.llf == pytest.approx(stored["value"], abs=1e-5)
    # glmmTMB stops where its gradient is 1e-3.
    np.testing.assert_allclose(found.fe_params, stored["coef"], rtol=1e-4)
    np.testing.assert_allclose(found.bse[: len(stored["se"])], stored["se"], rtol=1e-3)
    assert found.varcorr["sdcor"][0] == pytest.approx(stored["sd"], rel=1e-4)
    assert found.reml and "REML, Laplace" in str(found.summary())


def test_normal_responses_are_those_of_lmer():
    """There Laplace's method is exact."""
    formula, data = "Reaction ~ Days + (Days | Subject)", load("sleepstudy")
    found = ds.glmer(formula, data, family="gaussian").fit(reml=True)
    other = ds.lmer(formula, data).fit()
    assert found.llf == pytest.approx(other.llf, abs=1e-8)
    np.testing.assert_allclose(found.fe_params, other.params, rtol=1e-6)
    np.testing.assert_allclose(found.bse[:2], other.bse, rtol=1e-5)
    assert found.params["sigma"] == pytest.approx(other.sigma, rel=1e-5)


@pytest.mark.parametrize("design", [d for d in DESIGNS if "expected" not in d.name],
                         ids=lambda d: d.name)  # fmt: skip
def test_gradient_equals_differences(design):
    laplace, x, gamma = design.criterion()
    p, k = laplace.sizes[0], len(x)
    restricted = Restricted(laplace, gamma[:p])
    z = np.concatenate([x, gamma[p:]])
    exact = np.concatenate(restricted(x, gamma[p:]).gradient)
    for j in range(len(z)):
        up, down = z.copy(), z.copy()
        up[j] += 1e-5
        down[j] -= 1e-5
        high, low = (restricted(v[:k], v[k:]).value for v in (up, down))
        assert exact[j] == pytest.approx(
            (high - low) / 2e-5, abs=1e-6 * (1 + np.abs(exact).max())
        )


def test_value_is_the_laplace_approximation_of_coefficients_and_effects_together():
    """All of it dense: Poisson, two crossed factors, the mode by BFGS."""
    design = next(d for d in DESIGNS if d.name == "three crossed")
    laplace, x, gamma = design.criterion()
    found = Restricted(laplace, gamma)(x, np.zeros(0))
    X, y = laplace.X[0].numpy(), laplace.density.y.numpy()
    roots = laplace.structure.roots(x)
    scale = np.concatenate(
        [np.repeat(r[0, 0], f.m) for r, f in zip(roots, laplace.structure.factors,
                                                 strict=True)]
    )  # fmt: skip
    W = np.hstack([dense_z(laplace).numpy() * scale, X])
    q, p = len(scale), X.shape[1]

    def negative(v):
        eta = W @ v
        return np.exp(eta).sum() - y @ eta + v[:q] @ v[:q] / 2

    def slope(v):
        return W.T @ (np.exp(W @ v) - y) + np.r_[v[:q], np.zeros(p)]

    mode = minimize(
        negative, np.r_[np.zeros(q), gamma], jac=slope, options={"gtol": 1e-9}
    ).x
    H = W.T @ (np.exp(W @ mode)[:, None] * W) + np.diag(np.r_[np.ones(q), np.zeros(p)])
    from scipy.special import gammaln

    value = 2 * (negative(mode) + gammaln(y + 1).sum())
    value += np.linalg.slogdet(H)[1] - p * np.log(2 * np.pi)
    assert found.value == pytest.approx(value, abs=1e-8)
    np.testing.assert_allclose(found.inner.gamma, mode[q:], atol=1e-7)


def test_variances_are_larger_than_by_maximum_likelihood():
    ml = fit("glmmTMB.cbpp_binomial")
    reml = ml.refit(reml=True)
    assert reml.varcorr["vcov"][0] > 1.05 * ml.varcorr["vcov"][0]
    back = reml.refit(reml=False)
    assert back.llf == pytest.approx(ml.llf, abs=1e-8)
    assert not back.reml


def test_what_does_not_go_with_it_is_refused():
    model = MixedGLM(CBPP, load("cbpp"), family="binomial")
    with pytest.raises(ModelError, match="use nagq=1"):
        model.fit(reml=True, nagq=5)
    other = MixedGLM(
        CBPP, load("cbpp"), family="binomial", link="probit", information="expected"
    )
    with pytest.raises(ModelError, match="observed information"):
        other.fit(reml=True)
    zeros = MixedGLM(
        "y ~ x + (1 | g)", panel(), family="zip", zi_formula="~ 1 + (1 | h)"
    )
    with pytest.raises(ModelError, match="all in the mean"):
        zeros.fit(reml=True)
    with pytest.raises(ModelError, match="no sum over clusters"):
        model.fit(reml=True, cov_type="cluster")


def test_fits_with_other_fixed_parts_are_not_compared():
    data = panel()
    big = MixedGLM("y ~ x + f + (1 | g)", data, family="poisson")
    small = MixedGLM("y ~ x + (1 | g)", data, family="poisson")
    reml = big.fit(reml=True)
    with pytest.raises(ModelError, match="same fixed part only"):
        reml.compare_lr_test(small.fit(reml=True))
    with pytest.raises(ModelError, match="same fixed part only"):
        reml.compare_lr_test(small.fit())
    with pytest.raises(ModelError, match="same fixed part only"):
        ds.anova(reml, small.fit(reml=True))
    more = MixedGLM("y ~ x + f + (1 | g) + (1 | h)", data, family="poisson")
    test = more.fit(reml=True).compare_lr_test(reml)
    assert test.variances == 1 and test.pvalue < 0.5
    # Left out term by term by maximum likelihood.
    dropped = reml.drop1()
    expected = big.fit().compare_lr_test(small.fit())
    assert dropped.loc["f", "LRT"] == pytest.approx(expected.statistic, abs=1e-5)
    assert dropped.loc["f", "Pr(Chi)"] == pytest.approx(expected.pvalue, abs=1e-6)
