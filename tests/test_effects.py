"""Marginal effects against exact references, statsmodels and derivatives by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from deepstats import GLM, OLS
from deepstats.datasets import load_docvisits
from deepstats.errors import ModelError
from deepstats.families import get_family
from deepstats.formula import Rhs
from deepstats.models.base import RegressionModel
from deepstats.models.categorical import OrdinalModel
from deepstats.models.counts import NegativeBinomialModel
from deepstats.parameters import Block, Parameters

FORMULA = "drvisits ~ private + medicaid + age + educ + actlim + chronic"

# shared/reference/regression.json, poisson_docvisits: agrees with statsmodels to 1e-14.
AME = {
    "private": (1.8291796399610043, 0.11158893575180474),
    "medicaid": (1.9172376712451302, 0.14237219093794676),
    "age": (-0.030403668967479543, 0.006067220464849801),
    "educ": (0.14486431738396197, 0.010721497693840091),
    "actlim": (1.0362173457061703, 0.09277836348952806),
    "chronic": (1.1006073689729892, 0.025643360326710343),
}
DISCRETE = {
    **AME,
    "private": (1.678908083983399, 0.09386232365665287),
    "medicaid": (2.2057246509503607, 0.18703504247327032),
    "actlim": (1.0871138745781914, 0.10193434637588081),
}


class ZeroInflated(RegressionModel):
    """Two predictors over different columns: the smallest such model."""

    title = "Zero-inflated Poisson"
    layout = (0, 1)

    def __init__(self, formula, data, **options):
        self.family = get_family("zip")
        super().__init__(formula, data, parts=[Rhs.parse("~ x + z")], **options)

    @classmethod
    def layout_of_class(cls):
        return (0, 1)

    @property
    def parameters(self):
        X, Z = self.design.matrices
        inflation = tuple(f"inflate_{n}" for n in Z.names)
        return Parameters((Block("beta", X.names), Block("gamma", inflation)))


@pytest.fixture(scope="module")
def visits():
    return load_docvisits()


@pytest.fixture(scope="module")
def poisson(visits):
    return GLM(FORMULA, visits, family="poisson").fit()


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(7)
    n = 400
    data = pd.DataFrame(
        {"x": rng.uniform(-1, 2, n), "z": rng.normal(size=n),
         "g": rng.choice(["a", "b", "c"], n), "flag": rng.random(n) < 0.4,
         "e": rng.uniform(0.5, 2, n), "f": rng.integers(1, 4, n)}
    )  # fmt: skip
    eta = 0.4 + 0.5 * data.x - 0.2 * data.x**2 + 0.3 * (data.g == "b") * data.z
    data["y"] = rng.poisson(np.exp(eta)) * (rng.random(n) < 0.8)
    return data


def assert_matches(margeff, reference, effect=1e-8, se=1e-6):
    names = list(reference)
    values, errors = np.array(list(reference.values())).T
    np.testing.assert_allclose(margeff.margeff[names], values, rtol=effect)
    np.testing.assert_allclose(margeff.margeff_se[names], errors, rtol=se)


def numerical_se(results, effect):
    """Delta method by central differences of `effect` in the parameters."""
    x, V = results.fit_info.x, results.covariance.matrix
    gradient = []
    for j in range(len(x)):
        ends = []
        for sign in (1, -1):
            moved = x.clone()
            step = 1e-5 * max(1.0, abs(float(x[j])))
            moved[j] += sign * step
            ends.append(effect(moved))
        gradient.append((ends[0] - ends[1]) / (2 * step))
    g = torch.tensor(gradient).double()
    return float((g @ V @ g).sqrt())


def mean_of(results, x, data, weights=None):
    """Average predicted mean of `data` at other parameters."""
    found, _ = results._new(data, None, None)
    mu = found.map(x, lambda b, e: results.model.mean(*e))
    return float(np.average(mu.numpy(), weights=weights))


def assert_effect(results, data, row, high, low, width, weights=None):
    """An effect and its SE against predictions at changed data."""

    def effect(x):
        a, b = (mean_of(results, x, d, weights) for d in (high, low))
        return (a - b) / width

    assert row["effect"] == pytest.approx(effect(results.fit_info.x), rel=1e-6)
    assert row["std_error"] == pytest.approx(numerical_se(results, effect), rel=1e-5)


def test_poisson_average_effects_match_the_reference(poisson):
    assert_matches(poisson.get_margeff(), AME)
    assert_matches(poisson.get_margeff(dummy=True), DISCRETE)


def test_variables_have_the_effects_of_their_columns(poisson):
    frame = poisson.marginal_effects().set_index("variable")
    names = list(AME)
    values, errors = np.array(list(AME.values())).T
    np.testing.assert_allclose(frame.loc[names, "effect"], values, rtol=1e-8)
    np.testing.assert_allclose(frame.loc[names, "std_error"], errors, rtol=1e-6)
    assert set(frame["contrast"]) == {"dY/dX"}


@pytest.mark.parametrize("at", ["overall", "mean", "median", "zero"])
@pytest.mark.parametrize(
    ("method", "discrete"),
    [("dydx", False), ("eyex", False), ("dyex", False), ("eydx", False),
     ("dydx", True), ("eydx", True)],
)  # fmt: skip
def test_get_margeff_matches_statsmodels(visits, at, method, discrete):
    smf = pytest.importorskip("statsmodels.formula.api")
    data = visits.assign(any_visit=(visits["drvisits"] > 0).astype(float))
    formula = FORMULA.replace("drvisits", "any_visit")
    ours = GLM(formula, data, family="binomial").fit()
    theirs = smf.logit(formula, data).fit(disp=False, method="newton", tol=1e-12)
    if discrete and at in ("median", "zero"):
        pytest.skip("statsmodels does not do these")
    options = {"dummy": discrete, "count": discrete and at == "overall"}
    mine = ours.get_margeff(at=at, method=method, **options)
    other = theirs.get_margeff(at=at, method=method, **options)
    np.testing.assert_allclose(mine.margeff, other.margeff, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(mine.margeff_se, other.margeff_se, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(mine.conf_int(), other.conf_int(), rtol=1e-6, atol=1e-8)
    with np.errstate(invalid="ignore"):  # zero over zero where a column is zero
        pvalues = other.pvalues
    np.testing.assert_allclose(mine.pvalues, pvalues, rtol=1e-5, atol=1e-10)
    assert mine.summary_frame().shape == (6, 6)
    assert "Marginal effects" in str(mine.summary())


def test_least_squares_slopes_are_coefficients(visits):
    fit = OLS(FORMULA, visits).fit("HC1")
    found = fit.get_margeff()
    np.testing.assert_allclose(found.margeff, fit.params[1:], rtol=1e-12)
    np.testing.assert_allclose(found.margeff_se, fit.bse[1:], rtol=1e-10)
    frame = fit.marginal_effects()
    np.testing.assert_allclose(frame["effect"], fit.params[1:], rtol=1e-8)
    np.testing.assert_allclose(frame["std_error"], fit.bse[1:], rtol=1e-8)
    np.testing.assert_allclose(frame["p_value"], fit.pvalues[1:], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "terms", ["poly(x, 3) * z", "ns(x, df=3) + g:z", "x * g + I(x**2)", "exp(x) * flag"]
)
def test_derivatives_go_through_transforms_and_interactions(simulated, terms):
    fit = GLM(f"y ~ {terms}", simulated, family="poisson").fit("HC1")
    frame = fit.marginal_effects().set_index("variable")
    h = 1e-4
    for name in {"x", "z"} & set(frame.index):
        ends = [simulated.assign(**{name: simulated[name] + s * h}) for s in (1, -1)]
        assert_effect(fit, simulated, frame.loc[name], *ends, 2 * h)


def test_b_splines_are_differentiated_to_the_ends_of_the_data(simulated):
    fit = OLS("y ~ bs(x, df=4)", simulated).fit()
    (row,) = fit.marginal_effects().to_dict("records")
    inner = simulated[simulated["x"].between(*simulated["x"].quantile([0.01, 0.99]))]
    (inside,) = fit.marginal_effects(newdata=inner).to_dict("records")
    h = 1e-4
    ends = [inner.assign(x=inner["x"] + s * h) for s in (1, -1)]
    assert_effect(fit, inner, inside, *ends, 2 * h)
    # the ends themselves: one-sided differences by hand
    x = simulated["x"].to_numpy()
    t = np.clip(x, x.min() + h, x.max() - h)
    slope = [fit.predict(simulated.assign(x=t + s * h)) for s in (1, -1)]
    assert row["effect"] == pytest.approx(
        ((slope[0] - slope[1]) / (2 * h)).mean(), 1e-3
    )


@pytest.mark.parametrize(
    ("term", "reference"),
    [("g", "a"), ("C(g, contr.sum)", "a"), ('C(g, Treatment(reference="b"))', "b"),
     ("C(f)", 1), ("flag", False)],
)  # fmt: skip
def test_levels_are_compared_with_the_reference(simulated, term, reference):
    name = "f" if "f)" in term else "flag" if term == "flag" else "g"
    fit = GLM(f"y ~ {term} * x", simulated, family="poisson").fit("HC0")
    frame = fit.marginal_effects(name)
    levels = [v for v in sorted(simulated[name].unique()) if v != reference]
    assert list(frame["contrast"]) == [f"{v} - {reference}" for v in levels]
    for level, row in zip(levels, frame.to_dict("records"), strict=True):
        ends = [simulated.assign(**{name: v}) for v in (level, reference)]
        assert_effect(fit, simulated, row, *ends, 1.0)


def test_two_predictors_and_a_variable_in_both(simulated):
    fit = ZeroInflated("y ~ x + g", simulated).fit()
    frame = fit.marginal_effects().set_index("variable")
    h = 1e-4
    for name in ("x", "z"):
        ends = [simulated.assign(**{name: simulated[name] + s * h}) for s in (1, -1)]
        assert_effect(fit, simulated, frame.loc[name], *ends, 2 * h)
    columns = fit.get_margeff()
    assert columns.margeff["x"] == pytest.approx(frame.loc["x", "effect"], rel=1e-8)
    assert columns.margeff_se["z"] == pytest.approx(
        frame.loc["z", "std_error"], rel=1e-7
    )


def test_frequency_weights_stand_for_rows(simulated):
    long = simulated.loc[simulated.index.repeat(simulated["f"])].reset_index(drop=True)
    short = GLM("y ~ x * g", simulated, family="poisson", freq_weights="f").fit()
    whole = GLM("y ~ x * g", long, family="poisson").fit()
    a, b = short.marginal_effects(), whole.marginal_effects()
    np.testing.assert_allclose(a["effect"], b["effect"], rtol=1e-8)
    np.testing.assert_allclose(a["std_error"], b["std_error"], rtol=1e-7)
    for at in ("overall", "mean", "median"):
        one, other = short.get_margeff(at=at), whole.get_margeff(at=at)
        np.testing.assert_allclose(one.margeff, other.margeff, rtol=1e-8)
        np.testing.assert_allclose(one.margeff_se, other.margeff_se, rtol=1e-7)


def test_offsets_stay_with_their_rows(simulated):
    named = GLM("y ~ x + offset(log(e))", simulated, family="poisson").fit()
    given = GLM("y ~ x", simulated, family="poisson", exposure=simulated["e"]).fit()
    column = GLM("y ~ x", simulated, family="poisson", exposure="e").fit()
    slope = (named.fittedvalues * named.params["x"]).mean()
    for fit in (named, given, column):
        frame = fit.marginal_effects()
        assert list(frame["variable"]) == ["x"]
        assert frame["effect"][0] == pytest.approx(slope, rel=1e-8)
        assert fit.get_margeff().margeff["x"] == pytest.approx(slope, rel=1e-10)


def test_rows_left_out_of_the_fit_are_left_out_of_the_average(simulated):
    data = simulated.copy()
    data.loc[data.index[:40], "y"] = np.nan
    holed = GLM("y ~ x + g", data, family="poisson").fit().marginal_effects()
    short = GLM("y ~ x + g", data[40:], family="poisson").fit().marginal_effects()
    pd.testing.assert_frame_equal(holed, short)


def test_blocks_of_rows_do_not_change_effects(simulated, monkeypatch):
    fit = GLM("y ~ x * g", simulated, family="poisson").fit()
    whole = fit.marginal_effects()
    monkeypatch.setattr(type(fit.model.compute), "block_rows", lambda self, k: 64)
    pd.testing.assert_frame_equal(whole, fit.marginal_effects(), rtol=1e-12)


def test_what_cannot_be_asked(poisson, simulated):
    with pytest.raises(ValueError, match="'income' is not a variable"):
        poisson.marginal_effects("income")
    with pytest.raises(ValueError, match="at must be one of"):
        poisson.get_margeff(at="mode")
    with pytest.raises(ValueError, match="elasticities"):
        poisson.get_margeff(method="eyex", dummy=True)
    both = OLS("y ~ f + C(f)", simulated[["y", "f"]])
    with pytest.warns(UserWarning, match="linear combinations"):
        fit = both.fit()
    with pytest.raises(ModelError, match="number in one term and a category"):
        fit.marginal_effects()


@pytest.mark.filterwarnings("ignore:alpha is at the edge")
def test_a_parameter_at_its_bound_is_held_there(simulated):
    counts = simulated.assign(y=np.arange(len(simulated)) % 2)
    edge = NegativeBinomialModel("y ~ x", counts).fit()
    assert edge.fit_info.at_bound
    plain = GLM("y ~ x", counts, family="poisson").fit()
    a, b = edge.marginal_effects(), plain.marginal_effects()
    np.testing.assert_allclose(a["std_error"], b["std_error"], rtol=1e-4)
    np.testing.assert_allclose(
        edge.get_margeff().margeff_se, plain.get_margeff().margeff_se, rtol=1e-4
    )


def test_effects_on_probabilities_of_levels(simulated):
    fit = OrdinalModel("f ~ x * z", simulated).fit()
    frame = fit.marginal_effects("x")
    assert list(frame["outcome"]) == [1, 2, 3]
    assert abs(frame["effect"].sum()) < 1e-12
    h = 1e-4
    ends = [fit.predict(simulated.assign(x=simulated["x"] + s * h)) for s in (1, -1)]
    slopes = ((ends[0] - ends[1]) / (2 * h)).mean()
    np.testing.assert_allclose(frame["effect"], slopes, rtol=1e-6)
    columns = fit.get_margeff()
    assert columns.margeff.shape == (9,)
