"""Predictions and their variances against lme4, dense algebra and simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from deepstats.errors import DesignError, ModelError, SingularFitWarning
from deepstats.formula import Rhs
from deepstats.models.mixed import LinearMixed, products, rest, rowvariance
from deepstats.models.mixed.coupling import Dense, Pairs
from deepstats.models.mixed.forecast import kept_effects

from .brute import Brute
from .data import INFERENCE, fit, formula_of, load, sleepstudy_weights

LIMITS = ["mean_ci_lower", "mean_ci_upper"]


@pytest.fixture(scope="module")
def slope():
    return fit("sleepstudy_slope_REML")


@pytest.fixture(scope="module")
def crossed():
    """200 rows with crossed, nested and vector-valued effects."""
    rng = np.random.default_rng(3)
    n = 200
    d = pd.DataFrame({
        "a": rng.integers(0, 5, n), "b": rng.integers(0, 4, n),
        "c": rng.integers(0, 7, n), "x": rng.normal(3, 1, n), "z": rng.normal(size=n),
        "w": rng.uniform(0.5, 2, n),
    })  # fmt: skip
    d["ab"] = 10 * d.a + d.b
    d["abc"] = 10 * d.ab + d.c
    effects = rng.normal(size=(7, 2))
    d["y"] = 10 + d.x + rng.normal(size=5)[d.a] + rng.normal(size=4)[d.b]
    d["y"] += effects[d.c, 0] + d.x * effects[d.c, 1] + rng.normal(size=n)
    return d


def fitted(formula, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return LinearMixed(formula, data, **options).fit()


# -- values --------------------------------------------------------------------------


def test_predictions_of_lme4():
    """Its default fit stops 2e-4 short in theta, which moves predictions by 1e-6."""
    stored, r = INFERENCE["predict_sleepstudy_ML"], fit("sleepstudy_slope_ML")
    new = pd.DataFrame(stored["newdata"])
    found = r.predict(new, allow_new_levels=True)
    np.testing.assert_allclose(found, stored["with_re_allow_new"], rtol=5e-6)
    found = r.predict(new, re_form="none")
    np.testing.assert_allclose(found, stored["population"], rtol=1e-10)
    found = r.predict(new, re_form="~ (1 | Subject)", allow_new_levels=True)
    np.testing.assert_allclose(
        found.drop(2), stored["re_form_intercept_only"], rtol=5e-6
    )


# Of tests/testthat/test-predict.R of lme4: its tolerance is 5e-7, from its own
# optimum; the first two subjects at days 0 and 9.
LME4_FORMS = {
    None: [253.663652396798, 430.66001930835, 211.006415533628, 227.634788908917],
    "none": [251.405104848485, 345.610678484848] * 2,
    "~ (0 + Days | Subject)": [
        251.405104848485, 428.401471760037, 251.405104848485, 268.033478223774,
    ],
    "~ (1 | Subject)": [
        253.663652396798, 347.869226033161, 211.006415533628, 305.211989169991,
    ],
}  # fmt: skip


@pytest.mark.parametrize("re_form", LME4_FORMS)
def test_re_form_of_lme4(slope, re_form):
    new = {"Days": [0, 9, 0, 9], "Subject": ["308", "308", "309", "309"]}
    found = slope.predict(new, re_form=re_form)
    np.testing.assert_allclose(found, LME4_FORMS[re_form], rtol=5e-6)


def test_penicillin_of_lme4():
    expected = [25.9638, 22.7663, 25.7147, 23.6799, 23.7629, 20.773]
    r = fit("penicillin_crossed_REML")
    np.testing.assert_allclose(r.predict()[:6], expected, atol=1e-4)
    both = r.predict(load("Penicillin"), re_form="~ (1 | sample) + (1 | plate)")
    np.testing.assert_allclose(both, r.fittedvalues, rtol=1e-12)


def test_offset_in_the_formula():
    stored = INFERENCE["offset_sleepstudy_ML"]
    data = load("sleepstudy")
    r = LinearMixed(formula_of(stored), data).fit(reml=False)
    np.testing.assert_allclose(r.predict()[:5], stored["fitted_first5"], rtol=1e-5)
    np.testing.assert_allclose(r.predict(data), r.fittedvalues, rtol=1e-12)


def test_offset_given_as_values(crossed):
    off = np.linspace(0, 5, len(crossed))
    r = fitted("y ~ x + (1 | a)", crossed, offset=off)
    found = r.predict(crossed, offset=off)
    np.testing.assert_allclose(found, r.fittedvalues, rtol=1e-12)
    with pytest.raises(DesignError, match="give offset="):
        r.predict(crossed)
    with pytest.raises(ValueError, match="offset goes with new data"):
        r.predict(offset=off)


def test_weights_of_lme4():
    stored, data = INFERENCE["weights_sleepstudy_ML"], sleepstudy_weights()
    r = LinearMixed(stored["formula"], data, weights="w").fit(reml=False)
    np.testing.assert_allclose(r.predict()[:5], stored["fitted_first5"], rtol=1e-5)
    frame = r.with_ddf("normal").predict(interval="prediction")
    inner = r.with_ddf("normal").predict(interval="confidence")["mean_se"]
    rest = frame["obs_se"] ** 2 - inner**2
    np.testing.assert_allclose(rest, r.sigma**2 / data["w"], rtol=1e-9)


def test_rows_and_index_of_new_data(slope):
    new = pd.DataFrame(
        {"Days": [1.0, np.nan, 3.0], "Subject": ["308", "309", None]}, index=[7, 5, 9]
    )
    found = slope.predict(new)
    assert list(found.index) == [7, 5, 9]
    assert found.isna().tolist() == [False, True, True]
    frame = slope.predict(new, re_form="none", interval="prediction")
    assert frame["obs_se"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("nothing", ["none", "~0", "~ 0", False, np.nan, pd.NA])
def test_population_needs_no_grouping(slope, nothing):
    frame = slope.predict({"Days": [0.0]}, re_form=nothing, interval="prediction")
    assert frame["mean"].item() == pytest.approx(slope.params["Intercept"])
    V = slope.varcorr["vcov"]
    expected = slope.bse["Intercept"] ** 2 + V[0] + V.iloc[-1]
    assert frame["obs_se"].item() ** 2 == pytest.approx(expected, rel=1e-9)


def test_unseen_levels(slope):
    new = {"Days": [2.0, 2.0], "Subject": ["new", "308"]}
    with pytest.raises(DesignError, match=r"'new'.*allow_new_levels=True"):
        slope.predict(new)
    found = slope.predict(new, allow_new_levels=True)
    population = slope.predict(new, re_form="none")
    assert found[0] == pytest.approx(population[0], rel=1e-14)
    assert found[1] != pytest.approx(population[1], rel=1e-3)


# -- which effects -------------------------------------------------------------------


def test_kept_effects():
    r = fit("machines_vec_REML")
    assert [k.tolist() for k in kept_effects(r, None)] == [[True] * 3]
    assert [k.tolist() for k in kept_effects(r, "~ (0 + Machine | Worker)")] == [
        [True] * 3
    ]
    slope = fit("sleepstudy_slope_REML")
    assert kept_effects(slope, Rhs.parse("~ (1|Subject)"))[0].tolist() == [True, False]
    apart = fit("sleepstudy_uncorr_REML")
    both = kept_effects(apart, "~ (1 + Days | Subject)")
    assert np.concatenate(both).all()


@pytest.mark.parametrize(
    ("re_form", "message"),
    [
        ("~ (1 | g)", r"an intercept by g; its random effects are \(Days \| Subject\)"),
        ("~ (z | Subject)", "no random effect of z by Subject"),
        ("~ Days", "name random effects"),
        ("~ 1", "Use 'none'"),
        (3, "re_form must be"),
    ],
)
def test_bad_re_form(slope, re_form, message):
    with pytest.raises(ModelError, match=message):
        slope.predict(re_form=re_form)


def test_contrasts_need_their_reference(crossed):
    data = crossed.assign(h=np.where(crossed.z > 0, "u", "v"))
    r = fitted("y ~ x + (h | c)", data)
    with pytest.raises(ModelError, match="differences from a reference level"):
        r.predict(re_form="~ (0 + h | c)")


def test_bad_interval(slope):
    with pytest.raises(ValueError, match="interval must be"):
        slope.predict(interval="both")
    with pytest.raises(ValueError, match="level must be"):
        slope.predict(interval="confidence", level=95)


@pytest.mark.parametrize("interval", ["confidence", "prediction"])
@pytest.mark.parametrize("re_form", [None, "none", "~ (0 + x | c)", "~ (1 | a)"])
def test_rows_of_the_fit_are_new_rows(crossed, re_form, interval):
    """The data of the fit and the same given anew take different ways."""
    r = fitted("y ~ x + (x | c) + (1 | a)", crossed).with_ddf("normal")
    old = r.predict(re_form=re_form, interval=interval)
    new = r.predict(crossed, re_form=re_form, interval=interval)
    pd.testing.assert_frame_equal(old, new, rtol=1e-9)


# -- variances -----------------------------------------------------------------------

FORMULAS = [
    "y ~ x + (1 | a)",
    "y ~ x + (x | c)",
    "y ~ x + (x || c)",
    "y ~ x + (1 | a / b)",
    "y ~ x + (x | c) + (z | b)",
    "y ~ x + (1 | c) + (x | c) + (1 | a)",
    "y ~ x + (x | a / b) + (z | c)",
    "y ~ x + (1 | a:b) + (0 + z + x | c) + (x | a)",
    "y ~ x + (x | a) + (1 | ab) + (1 | abc)",
    "y ~ x + (x | a) + (1 | ab) + (1 | abc) + (1 | c)",
]


def kriging(brute, X, columns, codes):
    """Variance of the error of prediction from the joint normal distribution."""
    parts = []
    for j, factor in enumerate(brute.structure.factors):
        own = np.eye(factor.m)
        for term in brute.structure.of(j):
            Z = columns[term.order] @ term.U
            parts += [own[codes[term.order]] * z[:, None] for z in Z.T]
    z = np.concatenate(parts, axis=1)
    c = brute.Z @ brute.V @ z.T
    left = X.T - brute.X.T @ brute.inverse @ c
    out = np.einsum("ij,jk,ik->i", z, brute.V, z)
    out -= np.einsum("ji,jk,ki->i", c, brute.inverse, c)
    return brute.variance * (out + np.einsum("ji,jk,ki->i", left, brute.cov_beta, left))


@pytest.mark.parametrize("form", [Dense, Pairs])
@pytest.mark.parametrize("formula", FORMULAS)
def test_variance_is_that_of_dense_algebra(crossed, formula, form, monkeypatch):
    """In old rows and in combinations of levels that were not in the data."""
    monkeypatch.setattr(products, "choose", lambda *_: form)
    monkeypatch.setattr(rowvariance, "_ELEMENTS", 500)
    r = fitted(formula, crossed, weights="w").with_ddf("normal")
    brute = Brute(r.model, r.mixed.criterion, r.mixed.x)
    new = crossed.copy()
    rng = np.random.default_rng(1)
    for column in ("a", "c", "abc"):
        new[column] = rng.permutation(new[column])
    spec = r.model.design.spec
    for data in (crossed, new):
        design = spec.rebuild(data, random=True)
        seen = np.all([g.grouping.codes >= 0 for g in design.random], axis=0)
        columns = [g.Z.to_dense().numpy()[seen] for g in design.random]
        codes = [g.grouping.codes[seen] for g in design.random]
        X = design.X.to_dense().numpy()[seen]
        frame = r.predict(data, interval="confidence", allow_new_levels=True)[seen]
        expected = kriging(brute, X, columns, codes)
        np.testing.assert_allclose(frame["mean_se"] ** 2, expected, rtol=1e-8)
        half = norm.ppf(0.975) * frame["mean_se"]
        np.testing.assert_allclose(frame["mean_ci_lower"], frame["mean"] - half)
        obs = r.predict(data, interval="prediction", allow_new_levels=True)[seen]
        expected = expected + r.sigma**2
        np.testing.assert_allclose(obs["obs_se"] ** 2, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "formula", ["y ~ x + (1 | s) + (1 | t) + (1 | r)", "y ~ x + (x | s) + (x | t)"]
)
def test_components_that_never_met(formula, monkeypatch):
    """Pupils, teachers and rooms of eight schools, and new combinations of them."""
    monkeypatch.setattr(rest, "_WORTH", 4)
    rng, n = np.random.default_rng(5), 400
    school = rng.integers(0, 8, n)
    data = pd.DataFrame({
        "x": rng.normal(1, 1, n), "s": 20 * school + rng.integers(0, 20, n),
        "t": 3 * school + rng.integers(0, 3, n),
        "r": 2 * school + rng.integers(0, 2, n),
    })  # fmt: skip
    effects = rng.normal(size=(8 * 25, 2))
    data["y"] = rng.normal(size=n) + sum(
        effects[data[c], 0] + effects[data[c], 1] * data["x"] for c in "st"
    )
    r = fitted(formula, data).with_ddf("normal")
    assert r.mixed.products.layout.count == 8
    brute = Brute(r.model, r.mixed.criterion, r.mixed.x)
    for c in "str":
        data[c] = rng.permutation(data[c])
    design = r.model.design.spec.rebuild(data, random=True)
    expected = kriging(
        brute, design.X.to_dense().numpy(),
        [g.Z.to_dense().numpy() for g in design.random],
        [g.grouping.codes for g in design.random],
    )  # fmt: skip
    frame = r.predict(data, interval="confidence")
    np.testing.assert_allclose(frame["mean_se"] ** 2, expected, rtol=1e-8)


def test_effects_left_out_and_new_levels(slope):
    """What adds z'Vz, and what does not; see the docstring of `predict`."""
    r = slope.with_ddf("normal")
    V, x = r.mixed.covariances[0], np.array([1.0, 4.0])
    new = {"Days": [4.0, 4.0], "Subject": ["308", "new"]}

    def variance(interval, re_form):
        frame = r.predict(
            new, interval=interval, re_form=re_form, allow_new_levels=True
        )
        return (frame.iloc[:, 1] ** 2).to_numpy()

    fixed = x @ r.cov_params().to_numpy() @ x
    everything = x @ V @ x
    np.testing.assert_allclose(variance("confidence", "none"), fixed)
    np.testing.assert_allclose(
        variance("prediction", "none"), fixed + everything + r.sigma**2
    )
    np.testing.assert_allclose(variance("confidence", None)[1], fixed + everything)
    np.testing.assert_allclose(
        variance("prediction", None)[1], fixed + everything + r.sigma**2
    )
    part = variance("confidence", "~ (1 | Subject)")
    np.testing.assert_allclose(part[1], fixed + V[0, 0])
    drawn = variance("prediction", "~ (1 | Subject)")
    np.testing.assert_allclose(drawn[0], part[0] + 16 * V[1, 1] + r.sigma**2)
    np.testing.assert_allclose(drawn[1], fixed + everything + r.sigma**2)


def test_population_takes_the_covariance_of_the_results(slope):
    frame = slope.predict({"Days": [0.0]}, re_form="none", interval="confidence")
    assert frame["mean_se"].item() == pytest.approx(slope.bse["Intercept"], rel=1e-12)


@pytest.mark.parametrize(
    "case", ["sleepstudy_slope", "penicillin_crossed", "ergostool", "machines_int"]
)
def test_degrees_of_freedom_are_those_of_lmertest(case):
    """Of the intercept: the prediction where all else is at its reference."""
    stored, r = INFERENCE[case]["satterthwaite"][0], fit(f"{case}_REML")
    reference = {"Days": [0.0], "Type": ["T1"], "Machine": ["A"]}
    frame = r.predict(reference, re_form="none", interval="confidence", level=0.9)
    half = (frame["mean_ci_upper"] - frame["mean"]) / frame["mean_se"]
    assert half.item() == pytest.approx(t.ppf(0.95, stored["df"]), rel=1e-4)


def test_degrees_of_freedom_of_a_conditional_mean(slope):
    """Against the delta method with everything by differences."""
    r = slope
    frame = r.predict({"Days": [4.0], "Subject": ["308"]}, interval="confidence")
    half = (frame["mean_ci_upper"] - frame["mean"]) / frame["mean_se"]
    criterion, x0 = r.mixed.criterion, r.mixed.x
    start = np.append(x0, 2 * np.log(r.sigma))

    def brute(x):
        """Minus twice the restricted likelihood, and the variance, at any sigma."""
        b = Brute(r.model, criterion, x[:-1])
        s2 = np.exp(x[-1])
        value = (
            np.linalg.slogdet(b.Sigma)[1] - np.linalg.slogdet(b.cov_beta)[1]
            + criterion.df * x[-1] + b.y @ b.P @ b.y / s2
        )  # fmt: skip
        X = np.array([[1.0, 4.0]])
        return value, s2 / b.variance * kriging(b, X, [X], [np.array([0])])[0]

    size, step = len(start), 1e-3
    H, g = np.empty((size, size)), np.empty(size)
    e = step * np.eye(size)
    for i in range(size):
        g[i] = (brute(start + e[i])[1] - brute(start - e[i])[1]) / (2 * step)
        for j in range(size):
            H[i, j] = sum(
                a * b * brute(start + a * e[i] + b * e[j])[0]
                for a in (1, -1) for b in (1, -1)
            ) / (4 * step**2)  # fmt: skip
    v = brute(start)[1]
    df = 2 * v**2 / (g @ np.linalg.solve(H / 2, g))
    assert half.item() == pytest.approx(t.ppf(0.975, df), rel=1e-4)


def test_residual_degrees_of_freedom(slope):
    frame = slope.with_ddf("residual").predict(interval="confidence")
    half = (frame["mean_ci_upper"] - frame["mean"]) / frame["mean_se"]
    np.testing.assert_allclose(half, t.ppf(0.975, 178), rtol=1e-9)


def test_singular_fit_predicts():
    r = fit("dyestuff2_singular_REML")
    frame = r.predict(interval="confidence")
    np.testing.assert_allclose(frame["mean_se"], r.bse["Intercept"], rtol=1e-9)


def test_known_sigma(crossed):
    r = fitted("y ~ x + (1 | a) + (1 | c)", crossed, sigma=1.5)
    frame = r.predict(interval="prediction")
    inner = r.predict(interval="confidence")
    np.testing.assert_allclose(
        frame["obs_se"] ** 2 - inner["mean_se"] ** 2, 1.5**2, rtol=1e-9
    )
    # The variance is known but for that of the effects: quantiles beyond the normal.
    half = (inner["mean_ci_upper"] - inner["mean"]) / inner["mean_se"]
    assert (half >= norm.ppf(0.975) - 1e-12).all()


def test_intervals_cover():
    """Known groups, and an observation in a new group, over 150 data sets."""
    rng = np.random.default_rng(11)
    group = np.repeat(np.arange(12), 6)
    hits = {"confidence": [], "prediction": []}
    for _ in range(150):
        b, x = rng.normal(0, 1.2, 13), rng.normal(size=73)
        mean = 1 + 0.5 * x + b[np.append(group, 12)]
        y = mean + rng.normal(size=73)
        data = pd.DataFrame({"y": y, "x": x, "g": np.append(group, 12)})
        r = fitted("y ~ x + (1 | g)", data[:-1])
        frame = r.predict(interval="confidence")
        inside = (frame[LIMITS[0]] < mean[:-1]) & (mean[:-1] < frame[LIMITS[1]])
        hits["confidence"].append(inside.mean())
        new = r.predict(data[-1:], interval="prediction", allow_new_levels=True)
        low, high = new["obs_ci_lower"].item(), new["obs_ci_upper"].item()
        hits["prediction"].append(low < y[-1] < high)
    # Monte Carlo standard errors are 0.5 and 1.8 per cent.
    assert 0.93 < np.mean(hits["confidence"]) < 0.97
    assert 0.9 < np.mean(hits["prediction"]) < 0.99


# -- simulation ----------------------------------------------------------------------


def test_simulate_draws_from_the_model(slope):
    draws = slope.simulate(4000, seed=1)
    assert list(draws.columns[:2]) == ["sim_1", "sim_2"]
    assert draws.index.equals(slope.model.design.index)
    brute = Brute(slope.model, slope.mixed.criterion, slope.mixed.x)
    covariance = brute.variance * brute.Sigma
    first = draws.iloc[:10].to_numpy()
    error = np.cov(first) - covariance[:10, :10]
    assert np.abs(error).max() < 0.1 * np.abs(covariance[:10, :10]).max()
    pd.testing.assert_frame_equal(draws.iloc[:, :3], slope.simulate(3, seed=1))


def test_simulate_keeps_effects(slope):
    draws = slope.simulate(2000, seed=2, re_form=None)
    error = draws.mean(axis=1) - slope.fittedvalues
    assert np.abs(error).max() < 5 * slope.sigma / np.sqrt(2000)
    assert draws.std(axis=1).mean() == pytest.approx(slope.sigma, rel=0.01)
    with pytest.raises(ModelError, match="whole terms"):
        slope.simulate(re_form="~ (1 | Subject)")
    with pytest.raises(ValueError, match="nsim"):
        slope.simulate(0)
