"""Tests of random effects in the zero part and in the dispersion."""

from __future__ import annotations

import itertools
import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from deepstats import datasets
from deepstats.errors import (
    DesignError,
    ModelError,
    SingularFitWarning,
)
from deepstats.models.glmm import MixedGLM, MixedGLMResults
from deepstats.models.glmm.forecast import Linear
from deepstats.models.glmm.joint import JointDensity
from deepstats.models.glmm.laplace import Laplace
from deepstats.models.glmm.sandwich import cluster_scores
from deepstats.models.mixed.parted import Parted

from .data import fit as fit_of
from .data import load
from .recorded import recorded
from .small import Small

_PARTS = json.loads(
    (Path(__file__).parents[2] / "reference" / "parts.json").read_text()
)

DESIGNS = (
    Small("one factor", "y ~ x + (1 | g)", "zip", {"zi_formula": "~ x + (1 | g)"}),
    Small("another factor", "y ~ x + (1 | g)", "zip", {"zi_formula": "~ (1 | h)"}),
    Small("vectors", "y ~ x + (1 + x | g)", "zip",
          {"zi_formula": "~ x + (1 + x | g) + (1 | h)"}),
    Small("nested", "y ~ x + (1 | a/b)", "zip", {"zi_formula": "~ (1 | a)"}),
    Small("nested below", "y ~ x + (1 | a)", "zip", {"zi_formula": "~ (1 | a:b)"}),
    Small("crossed", "y ~ x + (1 | g) + (1 | h)", "zip",
          {"zi_formula": "~ x + (0 + x | g) + (1 | h)"}),
    Small("three parts", "y ~ x + (1 | g)", "zinb2",
          {"zi_formula": "~ (1 | g)", "disp_formula": "~ x + (1 | h)"}),
    Small("zero part only", "y ~ x", "zip", {"zi_formula": "~ x + (1 | g)"}),
    Small("hurdle", "y ~ x + (1 | g)", "hurdle", {"zi_formula": "~ x + (1 | g)"}),
    Small("nb2", "y ~ x + (1 | g)", "nb2", {"disp_formula": "~ (1 | h)"}),
    Small("gaussian", "y ~ x + (1 | g)", "gaussian",
          {"disp_formula": "~ x + (1 | g)", "weights": "w"}),
    Small("gamma", "y ~ x + offset(t) + (1 | g)", "gamma",
          {"link": "log", "disp_formula": "~ (1 | h)"}),
    Small("betabinomial", "cbind(y, no) ~ x + (1 | g)", "betabinomial",
          {"disp_formula": "~ (1 | h)"}),
)  # fmt: skip
each = pytest.mark.parametrize("small", DESIGNS, ids=lambda s: s.name)


def _dense(laplace: Laplace) -> list[Tensor]:
    """The matrix of all random effects by predictor, (n, q)."""
    rows, out = laplace.rows, []
    for place in range(len(rows.parts)):
        parts = []
        for z, codes, factor, owners in zip(
            rows.Z, rows.codes, laplace.structure.factors, rows.owners, strict=True
        ):
            part = torch.zeros(rows.n, factor.m, factor.k).double()
            mine = torch.tensor([float(o == place) for o in owners])
            part[torch.arange(rows.n), codes] = z.T * mine
            parts.append(part.flatten(1))
        out.append(torch.cat(parts, dim=1))
    return out


def _brute(
    laplace: Laplace, x: np.ndarray, gamma: np.ndarray
) -> tuple[float, Tensor, Tensor]:
    """Minus twice the log-likelihood by Laplace's method, modes and inverse, densely.

    Only values of the log-density are used, and automatic derivatives of their sum.
    """
    Z, fixed = _dense(laplace), laplace.predictors(gamma)
    roots = laplace.structure.roots(x)
    V = torch.block_diag(*(
        torch.block_diag(*([torch.from_numpy(r @ r.T)] * f.m))
        for r, f in zip(roots, laplace.structure.factors, strict=True)
    ))  # fmt: skip
    precision, density = torch.linalg.inv(V), laplace.density

    def joint(b: Tensor) -> Tensor:
        etas = list(fixed)
        for p, columns in zip(laplace.rows.parts, Z, strict=True):
            etas[p] = fixed[p] + columns @ b
        return b @ precision @ b / 2 - density.log_prob(*etas).sum()

    b = torch.zeros(len(V)).double()
    for _ in range(60):
        at = b.clone().requires_grad_()
        (g,) = torch.autograd.grad(joint(at), at)
        H = torch.autograd.functional.hessian(joint, b)
        values, vectors = torch.linalg.eigh(H)
        step, length = vectors @ ((vectors.T @ g) / values.abs()), 1.0
        while joint(b - length * step) > joint(b) + 1e-9 and length > 1e-8:
            length /= 2
        b = b - length * step
        if float(step.abs().max()) < 1e-11:
            break
    H = torch.autograd.functional.hessian(joint, b)
    value = 2 * joint(b) + torch.linalg.slogdet(V)[1] + torch.linalg.slogdet(H)[1]
    return float(value), b, torch.linalg.inv(H)


@each
def test_value_and_modes(small: Small) -> None:
    """Value and modes are those of dense matrices and automatic derivatives."""
    laplace, x, gamma = small.criterion()
    value, b, inverse = _brute(laplace, x, gamma)
    for _ in range(2):  # From no modes at all, and from those of the first call.
        point = laplace(x, gamma)
        assert point.modes.converged
        assert point.value == pytest.approx(value, abs=1e-8)
        effects = torch.cat([e.T.reshape(-1) for e in point.modes.effects])
        assert float((effects - b).abs().max()) < 1e-8
    Z = _dense(laplace)
    for p, one in enumerate(Z):
        for q, two in enumerate(Z):
            found = ((one @ inverse) * two).sum(1)
            assert torch.allclose(point.leverages[p, q], found, rtol=0, atol=1e-10)


@each
def test_gradient(small: Small) -> None:
    """The gradient is that of differences."""
    laplace, x, gamma = small.criterion()
    exact = np.concatenate(laplace(x, gamma).gradient)
    z, k = np.concatenate([x, gamma]), len(x)
    found, reach = np.empty_like(z), 1e-4
    for j in range(len(z)):
        values = []
        for step in (-2, -1, 1, 2):
            at = z.copy()
            at[j] += step * reach
            values.append(laplace(at[:k], at[k:]).value)
        low2, low, high, high2 = values
        found[j] = (low2 - 8 * low + 8 * high - high2) / (12 * reach)
    np.testing.assert_allclose(exact, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("small", DESIGNS[3:7], ids=lambda s: s.name)
def test_sparse_coupling(small: Small) -> None:
    """Sums of sparse designs, added up under one weight after another, are the same."""
    laplace, x, gamma = small.criterion()
    dense = laplace(x, gamma)
    other, _, _ = small.criterion()
    other.rows._dense = False
    sparse = other(x, gamma)
    assert sparse.value == pytest.approx(dense.value, abs=1e-9)
    assert torch.allclose(sparse.leverages, dense.leverages, rtol=0, atol=1e-10)
    for one, two in zip(sparse.gradient, dense.gradient, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8)


def test_steps_where_rows_are_not_concave() -> None:
    """Weights for steps are positive definite in every row; such rows keep theirs."""
    laplace, x, gamma = DESIGNS[0].criterion()
    slopes = laplace.density.slopes(tuple(
        e + 2 * torch.randn(len(e), generator=torch.Generator().manual_seed(1))
        for e in laplace.predictors(gamma)
    ))  # fmt: skip
    blocks = slopes.weight.permute(2, 0, 1)
    lifted = slopes.positive.permute(2, 0, 1)
    sizes = torch.linalg.eigvalsh(blocks)
    assert bool((sizes[:, 0] < 0).any())
    assert bool((torch.linalg.eigvalsh(lifted)[:, 0] > 0).all())
    fine = sizes[:, 0] > 1e-6
    assert torch.allclose(lifted[fine], blocks[fine], rtol=0, atol=1e-12)
    point = laplace(x, gamma + np.linspace(-2, 2, len(gamma)))
    assert point.modes.converged


# -- quadrature ------------------------------------------------------------------------

ONE_FACTOR = [d for d in DESIGNS if d.name in ("one factor", "gaussian", "hurdle")]


def _integral(laplace: Laplace, x: np.ndarray, gamma: np.ndarray) -> float:
    """Minus twice the log-likelihood by a dense grid over the effects of a group."""
    root = torch.from_numpy(laplace.structure.roots(x)[0])
    line = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(line.tolist(), repeat=2)))
    grid = grid.to(torch.float64)
    weight = 2 * (line[1] - line[0]).log() - grid.square().sum(1) / 2
    weight = weight - np.log(2 * np.pi)
    rows, fixed, total = laplace.rows, laplace.predictors(gamma), 0.0
    etas = [f[:, None] for f in fixed]
    for place, p in enumerate(rows.parts):
        mine = torch.tensor([float(o == place) for o in rows.owners[0]])
        etas[p] = etas[p] + (root.T @ (rows.Z[0] * mine[:, None])).T @ grid.T
    values = laplace.density.log_prob_of(*etas)
    for level in range(laplace.structure.factors[0].m):
        inside = values[rows.codes[0] == level].sum(0)
        total += float(torch.logsumexp(inside + weight, 0))
    return -2 * total


@pytest.mark.parametrize("small", ONE_FACTOR, ids=lambda s: s.name)
def test_quadrature_converges_to_the_integral(small: Small) -> None:
    """Over the effects of all parts of a group together."""
    laplace, x, gamma = small.criterion()
    exact = _integral(laplace, x, gamma)
    off = [abs(laplace(x, gamma).value - exact)]
    for nagq in (9, 25):
        quadrature, _, _ = small.criterion(nagq)
        off.append(abs(quadrature(x, gamma).value - exact))
    assert off[2] < 1e-5 < off[0]
    assert off[2] < off[1] < off[0]


def test_gradient_of_quadrature() -> None:
    """The gradient is that of differences."""
    quadrature, x, gamma = ONE_FACTOR[0].criterion(5)
    exact = np.concatenate(quadrature(x, gamma).gradient)
    z, k, reach = np.concatenate([x, gamma]), len(x), 1e-5
    for j in range(len(z)):
        up, down = z.copy(), z.copy()
        up[j] += reach
        down[j] -= reach
        high, low = quadrature(up[:k], up[k:]), quadrature(down[:k], down[k:])
        found = (high.value - low.value) / (2 * reach)
        assert exact[j] == pytest.approx(found, rel=1e-5, abs=1e-5)


# -- references ------------------------------------------------------------------------


def _tmb(name: str) -> MixedGLMResults:
    if name == "sleepstudy":
        return MixedGLM(
            "Reaction ~ Days + (1 | Subject)", load("sleepstudy"), family="gaussian",
            disp_formula="~ Days + (1 | Subject)",
        ).fit()  # fmt: skip
    return MixedGLM(
        "y ~ trt + V4 + (1 | subject)", datasets.load("epil"), family="nb2",
        disp_formula="~ (1 | subject)",
    ).fit()  # fmt: skip


@pytest.mark.parametrize("name", ["sleepstudy", "epil"])
def test_dispersion_as_tmb(name: str) -> None:
    """Likelihood, estimates, errors and modes are those of TMB."""
    record, results = _PARTS[name], _tmb(name)
    assert -2 * results.llf == pytest.approx(record["objective"], abs=1e-5)
    theirs, errors = np.array(record["par"]), np.array(record["se"])
    np.testing.assert_array_less(
        np.abs(results.params.to_numpy() - theirs[:-2]) / errors[:-2], 1e-3
    )
    np.testing.assert_allclose(results.bse, errors[:-2], rtol=1e-3)
    random = results.random_params()
    np.testing.assert_allclose(random["estimate"], np.exp(theirs[-2:]), rtol=1e-3)
    np.testing.assert_allclose(
        random["std_error"] / random["estimate"], errors[-2:], rtol=1e-3
    )
    (effects,) = results.ranef().values()
    head = effects.head(5).to_numpy()
    np.testing.assert_allclose(head[:, 0], record["mean_effects"], rtol=1e-4)
    np.testing.assert_allclose(
        head[:, 1], record["dispersion_effects"], rtol=1e-4, atol=1e-5
    )


ZI = "glmmTMB.salamanders_zip_ranef_zi"


def test_zero_part_as_glmmtmb() -> None:
    """Modes, their errors and predictions; the rest is in `test_reference`."""
    record = recorded("glmmTMB", "salamanders_zip_ranef_zi")
    results = fit_of(ZI)
    frame = results.ranef(cond_var="joint")["site"]
    for part, name in zip(
        record["ranef_first5"], ["Intercept", "inflate:Intercept"], strict=True
    ):
        own = frame.loc[part["level"]]
        np.testing.assert_allclose(own[name], part["condval"], atol=2e-5)
        np.testing.assert_allclose(own[f"{name}.sd"], part["condsd"], rtol=1e-4)
    first = results.fittedvalues[:5]
    np.testing.assert_allclose(first, record["fitted_first5"], rtol=1e-4)


# -- results ---------------------------------------------------------------------------


@lru_cache
def _both() -> MixedGLMResults:
    """A fit with effects in mean, zero part and dispersion, of simulated counts."""
    rng = np.random.default_rng(4)
    g, h = np.repeat(np.arange(40), 15), np.tile(np.arange(15), 40)
    x = rng.standard_normal(600)
    mu = np.exp(2.5 + 0.3 * x + 0.5 * rng.standard_normal(40)[g])
    alpha = np.exp(-1 + rng.standard_normal(15)[h])
    zero = 1 / (1 + np.exp(1 - 0.5 * x - 0.9 * rng.standard_normal(40)[g]))
    y = rng.negative_binomial(1 / alpha, 1 / (1 + alpha * mu))
    y = y * (rng.random(600) > zero)
    data = pd.DataFrame({"y": y, "x": x, "g": g.astype(str), "h": h.astype(str)})
    return MixedGLM(
        "y ~ x + (1 | g)", data, family="zinb2", zi_formula="~ x + (1 | g)",
        disp_formula="~ (1 | h)",
    ).fit()  # fmt: skip


def test_names_say_the_part() -> None:
    """Everywhere a random effect has a name, its parameter stands before it."""
    results = _both()
    assert list(results.theta.index) == [
        "g.Intercept", "g.inflate:Intercept", "h.alpha:Intercept",
    ]  # fmt: skip
    assert list(results.varcorr["var1"]) == [
        "Intercept", "inflate:Intercept", "alpha:Intercept",
    ]  # fmt: skip
    assert list(results.ranef()["g"]) == ["Intercept", "inflate:Intercept"]
    # A dispersion that varies is on its logarithm's scale.
    assert list(results.params.index) == [
        "Intercept", "x", "inflate:Intercept", "inflate:x", "alpha:Intercept",
    ]  # fmt: skip
    page = results.summary().as_text()
    assert "inflate:Intercept" in page
    assert "alpha:Intercept" in page
    assert results._counted == 8


def test_coefficients_by_level() -> None:
    """Fixed effects plus modes, in each predictor."""
    results = _both()
    coef, effects = results.coef()["g"], results.ranef()["g"]
    for name in ("Intercept", "inflate:Intercept"):
        np.testing.assert_allclose(coef[name], results.params[name] + effects[name])
    assert (coef["inflate:x"] == results.params["inflate:x"]).all()


def test_predictors_move_as_their_derivatives_say() -> None:
    """Variances of predictors: the dense inverse, and derivatives by differences."""
    results = _both()
    point = results.found.point
    laplace, k = point.laplace, len(point.x)
    linear = Linear.read(results)
    parts = linear.parts(False)
    for eta, own in zip(linear.etas, point.modes.etas, strict=True):
        assert torch.allclose(eta, own, rtol=0, atol=1e-8)
    _, _, inverse = _brute(laplace, point.x, point.gamma)
    Z = _dense(laplace)
    for p, one in zip(laplace.rows.parts, Z, strict=True):
        for q, two in zip(laplace.rows.parts, Z, strict=True):
            found = ((one @ inverse) * two).sum(1).numpy()
            np.testing.assert_allclose(parts.extra[:, p, q], found, atol=1e-9)
    z, reach = np.concatenate([point.x, point.gamma]), 1e-5
    for j in range(len(z)):
        up, down = z.copy(), z.copy()
        up[j] += reach
        down[j] -= reach
        high = laplace.modes(up[:k], up[k:]).etas
        low = laplace.modes(down[:k], down[k:]).etas
        for jacobian, one, two in zip(parts.jacobians, high, low, strict=True):
            slope = ((one - two) / (2 * reach)).numpy()
            np.testing.assert_allclose(jacobian[:, j], slope, rtol=1e-5, atol=1e-6)


def test_marginal_means_integrate_all_parts() -> None:
    """Over the effects of mean, zero part and dispersion together."""
    results = _both()
    new = results.model.design.spec.table
    assert new is not None
    rows = pd.DataFrame({n: new.full(n)[:3] for n in ("x", "g", "h")})
    found = results.predict(rows, re_form="none", marginal=True).to_numpy()
    etas = Linear.read(results, rows, "none").etas
    sds = results.varcorr["sdcor"].to_numpy()
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((3, 400_000)) * sds[:, None]
    family = results.model.family
    mean = family.mean(*(
        e[:, None] + torch.from_numpy(d) for e, d in zip(etas, draws, strict=True)
    ))  # fmt: skip
    error = mean.std(dim=1).numpy() / np.sqrt(draws.shape[1])
    np.testing.assert_array_less(np.abs(found - mean.mean(1).numpy()), 4 * error)
    band = results.predict(rows, re_form="none", marginal=True, interval="confidence")
    np.testing.assert_allclose(band["mean"], found)
    assert (band["mean_se"] > 0).all()


def test_error_of_a_marginal_mean() -> None:
    """By the delta method: derivatives in all parameters by differences."""
    results = _both()
    rows = pd.DataFrame({"x": [0.5], "g": ["0"], "h": ["0"]})
    options = {"re_form": "none", "marginal": True}
    se = float(results.predict(rows, interval="confidence", **options)["mean_se"][0])
    found, reach = results.found, 1e-5
    z, k = np.concatenate([found.point.x, found.point.gamma]), len(found.point.x)
    slope = np.empty_like(z)
    for j in range(len(z)):
        values = []
        for step in (-reach, reach):
            at = z.copy()
            at[j] += step
            moved = found.point.laplace(at[:k], at[k:])
            other = results.model.results(_replaced(found, moved))
            values.append(float(other.predict(rows, **options)[0]))
        slope[j] = (values[1] - values[0]) / (2 * reach)
    assert se == pytest.approx(np.sqrt(slope @ results.joint_cov @ slope), rel=1e-4)


def _replaced(found: Any, point: Any) -> Any:
    from dataclasses import replace

    return replace(found, point=point)


def test_re_form() -> None:
    """A formula keeps effects of a group in every predictor that has them."""
    results = _both()
    table = results.model.design.spec.table
    assert table is not None
    rows = pd.DataFrame({n: table.full(n)[:20] for n in ("x", "g", "h")})
    etas = {
        form: Linear.read(results, rows, form).etas
        for form in (None, "none", "~ (1 | g)", "~ (1 | h)")
    }
    for j, form in ((0, "~ (1 | g)"), (1, "~ (1 | g)"), (2, "~ (1 | h)")):
        assert torch.equal(etas[form][j], etas[None][j])
        assert not torch.equal(etas[None][j], etas["none"][j])
        other = "~ (1 | h)" if "g" in form else "~ (1 | g)"
        assert torch.equal(etas[other][j], etas["none"][j])
    with pytest.raises(ModelError, match="no random effect"):
        results.predict(rows, re_form="~ (0 + x | g)")


def test_new_levels() -> None:
    """Levels that were not there are refused, or add their variance in every part."""
    results = _both()
    rows = pd.DataFrame({"x": [0.0, 0.0], "g": ["0", "new"], "h": ["0", "0"]})
    with pytest.raises(DesignError, match="levels that were not"):
        results.predict(rows)
    linear = Linear.read(results, rows, allow_new_levels=True)
    extra = linear.parts(False).extra[1]
    variances = results.varcorr["vcov"].to_numpy()
    np.testing.assert_allclose(np.diag(extra)[:2], variances[:2], rtol=1e-9)
    assert 0 < extra[2, 2] < variances[2]
    assert abs(extra[0, 1]) < 1e-9
    assert float(linear.etas[1][1]) == pytest.approx(
        results.params["inflate:Intercept"], abs=1e-12
    )
    for which in ("response", "zero", "alpha", "link"):
        band = results.predict(
            rows, which=which, allow_new_levels=True, interval="confidence"
        )
        assert band["mean_se"][1] > 0
        assert np.isfinite(band).all().all()


def test_simulations_draw_all_parts() -> None:
    """Simulated responses have the marginal mean and share of zeros, and vary by it."""
    results = _both()
    draws = results.simulate(400, seed=1).to_numpy()
    mean = results.predict(marginal=True).to_numpy().mean()
    spread = draws.mean(0).std(ddof=1) / np.sqrt(draws.shape[1])
    assert abs(draws.mean() - mean) < 4 * spread
    # Zeros cluster: between groups their share varies by more than chance.
    zeros = (draws == 0).reshape(40, 15, -1).mean(1)
    share = zeros.mean()
    assert zeros.var(0).mean() > 2 * share * (1 - share) / 15
    kept = results.simulate(400, seed=1, re_form="~ (1 | g)").to_numpy()
    between = np.corrcoef(
        (kept == 0).reshape(40, 15, -1).mean((1, 2)),
        (results.model.design.y == 0).reshape(40, 15).mean(1),
    )
    assert between[0, 1] > 0.8


def test_quantile_residuals_of_the_model_are_normal() -> None:
    """Of responses drawn from the fit, by both methods."""
    results = _both()
    u = results.resid_quantile(1, scale="uniform").to_numpy()
    by_rank = results.resid_quantile(
        1, scale="uniform", method="simulation", nsim=2000
    ).to_numpy()
    # The two fill jumps with the same uniform numbers only by chance: compare widths.
    assert np.corrcoef(u, by_rank)[0, 1] > 0.7
    assert abs(u.mean() - 0.5) < 0.05
    assert abs(u.std() - 12**-0.5) < 0.04
    assert results.dispersion_test(100, seed=1).pvalue > 0.01
    assert results.zero_inflation_test(100, seed=1).pvalue > 0.01


def test_shares_of_variance_are_of_the_mean() -> None:
    """Effects in other predictors are no part of R-squared and intraclass shares."""
    results = _both()
    assert list(results.icc().index) == ["g", "all"]
    shares = results.r2()
    assert 0 < shares["marginal"] < shares["conditional"] < 1


def test_likelihood_ratio() -> None:
    """A variance of the zero part at zero is one on the edge."""
    full = fit_of(ZI)
    data = load("Salamanders")
    formula = "count ~ mined + (1 | site)"
    small = MixedGLM(formula, data, family="zip", zi_formula="~ mined").fit()
    test = full.compare_lr_test(small)
    assert test.df_num == 1
    assert "mixture" in test.name
    assert test.statistic == pytest.approx(2 * (full.llf - small.llf))
    other = MixedGLM(
        "count ~ mined", data, family="zip", zi_formula="~ mined + (1 | site)"
    ).fit()
    with pytest.raises(ValueError, match="not nested"):
        other.compare_lr_test(MixedGLM("count ~ (1 | site)", data, family="zip").fit())


def test_scores_of_clusters() -> None:
    """They sum to zero, and are what a cluster alone has as its gradient."""
    results = fit_of(ZI)
    sites = results.model.design.grouping("site")
    scores = cluster_scores(results, sites)
    assert np.abs(scores.sum(0)).max() < 1e-3
    table = load("Salamanders")
    pair = table[table["site"].isin(list(sites.levels[:2]))].copy()
    pair["site"] = pair["site"].cat.remove_unused_categories()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Other columns than in the full data would be aliased in two sites.
        model = MixedGLM(
            "count ~ 1 + (1 | site)", pair, family="zip", zi_formula="~ 1 + (1 | site)"
        )
    x = results.found.point.x
    gamma = results.found.point.gamma[[0, 2]]
    if (pair["mined"] == "no").all():
        gamma = gamma + results.found.point.gamma[[1, 3]]
    by_x, by_gamma = model.laplace()(x, gamma).gradient
    own = scores[:2].sum(0)
    np.testing.assert_allclose(own[: len(x)], -0.5 * by_x, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(own[[2, 4]], -0.5 * by_gamma, rtol=1e-5, atol=1e-7)


# -- the fit ---------------------------------------------------------------------------


def test_models_without_are_as_before() -> None:
    """Rows have one weight where the mean alone has random effects."""
    data = load("Salamanders")
    plain = MixedGLM("count ~ (1 | site)", data, family="zip").laplace()
    assert not isinstance(plain.rows, Parted)
    assert not isinstance(plain.density, JointDensity)
    assert plain.rows.parts == (0,)


def test_variance_of_zero() -> None:
    """A zero part that does not vary is at the edge, and the fit is that without."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(30), 10)
    y = rng.poisson(np.exp(1 + 0.4 * rng.standard_normal(30)[g]))
    data = pd.DataFrame({"y": y * (rng.random(300) > 0.3), "g": g})
    model = MixedGLM("y ~ (1 | g)", data, family="zip", zi_formula="~ (1 | g)")
    with pytest.warns(SingularFitWarning, match="inflate:Intercept"):
        full = model.fit()
    plain = MixedGLM("y ~ (1 | g)", data, family="zip").fit()
    assert full.llf == pytest.approx(plain.llf, abs=1e-6)
    np.testing.assert_allclose(full.params, plain.params, rtol=1e-4)
    np.testing.assert_allclose(full.bse, plain.bse, rtol=1e-3)
    assert full.theta["g.inflate:Intercept"] == 0.0


def test_separate_parts_are_separate_models() -> None:
    """A hurdle's parts share nothing: it is a binomial and a truncated model."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(25), 12)
    mu = np.exp(0.8 + 0.5 * rng.standard_normal(25)[g])
    u = rng.random(300)
    from scipy import stats

    positive = stats.poisson.ppf(np.exp(-mu) + u * (1 - np.exp(-mu)), mu)
    logit = 0.3 + rng.standard_normal(25)[g]
    y = positive * (rng.random(300) < 1 / (1 + np.exp(-logit)))
    data = pd.DataFrame({"y": y, "g": g, "any": (y > 0) * 1.0})
    both = MixedGLM("y ~ (1 | g)", data, family="hurdle", zi_formula="~ (1 | g)").fit()
    zero = MixedGLM("any ~ (1 | g)", data, family="binomial").fit()
    counts = MixedGLM("y ~ (1 | g)", data, family="hurdle").fit()
    assert both.params["zero:Intercept"] == pytest.approx(zero.params.iloc[0], abs=1e-5)
    assert both.bse["zero:Intercept"] == pytest.approx(zero.bse.iloc[0], rel=1e-4)
    assert both.theta["g.zero:Intercept"] == pytest.approx(zero.theta.iloc[0], rel=1e-4)
    assert both.params["Intercept"] == pytest.approx(counts.params.iloc[0], abs=1e-5)
    share = y.astype(bool).mean()
    plain = 300 * (share * np.log(share) + (1 - share) * np.log(1 - share))
    assert both.llf - counts.llf == pytest.approx(zero.llf - plain, abs=1e-6)


def test_quadrature_of_a_fit() -> None:
    """nagq= takes the effects of all parts of one factor, and refuses two factors."""
    data = load("Salamanders")
    given: dict[str, Any] = {"family": "zip", "zi_formula": "~ mined + (1 | site)"}
    results = MixedGLM("count ~ mined + (1 | site)", data, **given).fit(nagq=5)
    assert results.converged
    assert results.nagq == 5
    assert abs(results.llf - fit_of(ZI).llf) < 0.5
    given["zi_formula"] = "~ mined + (1 | spp)"
    with pytest.raises(ModelError, match="one grouping factor"):
        MixedGLM("count ~ mined + (1 | site)", data, **given).fit(nagq=5)


def _zip(rng: np.random.Generator) -> pd.DataFrame:
    g, x = np.repeat(np.arange(60), 12), rng.standard_normal(720)
    mu = np.exp(0.8 + 0.3 * x + 0.5 * rng.standard_normal(60)[g])
    zero = 1 / (1 + np.exp(0.5 - 0.5 * x - 0.8 * rng.standard_normal(60)[g]))
    return pd.DataFrame({"y": rng.poisson(mu) * (rng.random(720) > zero), "x": x,
                         "g": g})  # fmt: skip


def _nb2(rng: np.random.Generator) -> pd.DataFrame:
    g, x = np.repeat(np.arange(60), 12), rng.standard_normal(720)
    mu = np.exp(0.8 + 0.3 * x + 0.5 * rng.standard_normal(60)[g])
    alpha = np.exp(-0.5 + 0.6 * rng.standard_normal(60)[g])
    y = rng.negative_binomial(1 / alpha, 1 / (1 + alpha * mu))
    return pd.DataFrame({"y": y, "x": x, "g": g})


def _gaussian(rng: np.random.Generator) -> pd.DataFrame:
    g, x = np.repeat(np.arange(60), 12), rng.standard_normal(720)
    sd = np.exp(-0.2 + 0.2 * x + 0.4 * rng.standard_normal(60)[g])
    y = 1 + 0.3 * x + 0.5 * rng.standard_normal(60)[g] + sd * rng.standard_normal(720)
    return pd.DataFrame({"y": y, "x": x, "g": g})


STUDIES = {
    "zip": (
        _zip, {"family": "zip", "zi_formula": "~ x + (1 | g)"},
        [0.8, 0.3, -0.5, 0.5], [0.5, 0.8],
    ),
    "nb2": (
        _nb2, {"family": "nb2", "disp_formula": "~ (1 | g)"},
        [0.8, 0.3, -0.5], [0.5, 0.6],
    ),
    "gaussian": (
        _gaussian, {"family": "gaussian", "disp_formula": "~ x + (1 | g)"},
        [1.0, 0.3, -0.2, 0.2], [0.5, 0.4],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_recovery(name: str) -> None:
    """Means over replicates are near the truth, and errors are as wide as they say.

    Laplace's method and maximum likelihood bias standard deviations a little.
    """
    draw, given, truth, sds = STUDIES[name]
    rng, estimates, errors, thetas = np.random.default_rng(11), [], [], []
    for _ in range(16):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularFitWarning)
            found = MixedGLM("y ~ x + (1 | g)", draw(rng), **given).fit()
        assert found.converged
        estimates.append(found.params.to_numpy())
        errors.append(found.bse.to_numpy())
        thetas.append(found.theta.to_numpy())
    off = (np.array(estimates) - truth) / np.array(errors)
    assert np.abs(off.mean(0)).max() < 4 / np.sqrt(16)
    assert 0.5 < np.sqrt((off**2).mean()) < 1.5
    np.testing.assert_allclose(np.mean(thetas, axis=0), sds, atol=0.15)


# -- refusals --------------------------------------------------------------------------


def test_refusals() -> None:
    """What cannot be said with random effects in a part, and what to do."""
    data = load("Salamanders")
    with pytest.raises(ModelError, match="no dispersion"):
        MixedGLM("count ~ (1 | site)", data, family="poisson", disp_formula="~ (1 | g)")
    with pytest.raises(ModelError, match="an intercept at least"):
        MixedGLM("count ~ (1 | site)", data, family="zip", zi_formula="~ 0 + (1|site)")
    with pytest.raises(ModelError, match="no random effects"):
        MixedGLM("count ~ mined", data, family="zip", zi_formula="~ mined")
    with pytest.raises(DesignError, match="no column"):
        MixedGLM("count ~ mined", data, family="zip", zi_formula="~ (1 | sitee)")
    with pytest.raises(DesignError, match="group the rows alike"):
        MixedGLM(
            "count ~ mined", data, family="zip", zi_formula="~ (1 | site) + (1 | site)"
        )
    model = MixedGLM("count ~ 1", data, family="zip", zi_formula="~ (1 | site)")
    with pytest.raises(ModelError, match="all in the mean"):
        model.fit(reml=True)
