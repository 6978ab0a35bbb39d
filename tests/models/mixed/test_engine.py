"""The engine against n x n matrices, and the search against what must not matter."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepstats.errors import ModelError, SingularFitWarning
from deepstats.models.mixed import (
    LinearMixed,
    MixedResults,
    coupling,
    light,
    products,
    rest,
)
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.fitted import Fitted
from deepstats.models.mixed.products import Vector
from deepstats.models.mixed.search import Found, _out_of_corner, minimise
from deepstats.models.mixed.sparse import SparseLayout

from .brute import Brute
from .data import CASES, fit, formula_of, load

fifty = settings(max_examples=50, derandomize=True, deadline=None, database=None)

COUPLINGS = {
    "pairs": lambda *_: coupling.Pairs,
    "dense": lambda *_: coupling.Dense,
    "chosen": coupling.choose,
}

FORMS = (*COUPLINGS, "sparse")
_order = products._Pass._order


def _order_sparse(self) -> None:
    """Hold the rest as if a dense block of it would not fit into memory."""
    _order(self)
    if self.q and len(self.chain) == 1:
        self.layout = self._sparse_layout()


# -- random designs ------------------------------------------------------------------

SIZES = (("a", 6), ("b", 5), ("c", 8))
_EFFECTS = ("1", "x", "0 + x", "1 + x + z", "x || ", "0 + x + z || ")
_GROUPS = (("a",), ("a", "b"), ("a", "b", "c"), ("a/b",), ("a/b", "c"), ("a:b", "c"),
           ("a", "a:b"), ("c", "b", "a:b"), ("r", "s"), ("r", "s", "r:s"),
           ("s", "r", "a"))  # fmt: skip


class Case(NamedTuple):
    """A criterion, the model it is of, and parameters, some of them at zero."""

    criterion: Criterion
    model: LinearMixed
    x: np.ndarray
    seed: int

    def __repr__(self) -> str:
        text = self.model.design.spec.formula.text
        return f"<{text}, reml={self.criterion.reml}, x={self.x}, seed={self.seed}>"


@st.composite
def designs(draw) -> Case:
    """Draw a design."""
    seed = draw(st.integers(0, 2**32 - 1))
    groups = draw(st.sampled_from(_GROUPS))
    terms = [_term(draw, g) for g in groups]
    if draw(st.booleans()):
        terms.append("(0 + z | a)")  # a second term on a factor
    weights, offset = draw(st.booleans()), draw(st.booleans())
    sigma = draw(st.sampled_from([None, 0.7]))
    reml, form = draw(st.booleans()), draw(st.sampled_from(FORMS))
    data = _data(np.random.default_rng(seed))
    fixed = draw(st.sampled_from(["1", "0", "x", "x + z", "0 + x + f"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose", COUPLINGS.get(form, coupling.choose))
        if form == "sparse":
            patch.setattr(products._Pass, "_order", _order_sparse)
        patch.setattr(rest, "_WORTH", draw(st.sampled_from([2, 64])))
        model = LinearMixed(
            f"y ~ {fixed} + {' + '.join(terms)}",
            data,
            weights="w" if weights else None,
            offset="o" if offset else None,
            sigma=sigma,
        )
        structure, made = model.prepare()
    x = _parameters(draw, structure, np.random.default_rng(seed + 1))
    return Case(Criterion(made, reml, sigma), model, x, seed)


def _term(draw, group: str) -> str:
    # A vector of effects for each cell of a:b would have more effects than rows.
    effects = draw(st.sampled_from(_EFFECTS[:1] if ":" in group else _EFFECTS))
    if "/" in group:
        effects = draw(st.sampled_from(("1", "x", "0 + x")))
    bar = " " if "||" in effects else " | "
    return f"({effects}{bar}{group})"


def _data(rng: np.random.Generator) -> pd.DataFrame:
    n = int(rng.integers(60, 90))
    sizes = {name: int(rng.integers(3, top)) for name, top in SIZES}
    data = {k: rng.permutation(np.arange(n) % m) for k, m in sizes.items()}
    # Levels of r meet those of s only within blocks: the graph falls into parts.
    block = rng.permutation(np.arange(n) % 3)
    data["r"] = 2 * block + rng.permutation(np.arange(n) % 2)
    data["s"] = 3 * block + rng.permutation(np.arange(n) % 3)
    x = rng.normal(3.0, 1.0, n)
    effects = sum(rng.normal(size=9)[data[k]] for k in data)
    return pd.DataFrame(
        {
            **data,
            "x": x,
            "z": rng.uniform(-1, 1, n),
            "f": rng.choice(["u", "v"], n),
            "w": rng.uniform(0.5, 2.0, n),
            "o": rng.normal(size=n),
            "y": 10 + x + effects + rng.normal(size=n),
        }
    )


def _parameters(draw, structure, rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(0.0, 1.0, structure.size)
    x[structure.lower == 0] = rng.gamma(1.5, 0.7, int((structure.lower == 0).sum()))
    for term in structure.terms:
        singular = draw(st.sampled_from(["no", "no", "zero", "rank"]))
        if singular == "zero":
            x[term.params] = 0.0
        elif singular == "rank":  # the last column of the triangle
            x[term.params.stop - 1] = 0.0
    return x


def fitted_at(criterion: Criterion, model: LinearMixed, x: np.ndarray) -> Fitted:
    found = Found(criterion(x), True, 0, 0, 0.0, "given")
    return Fitted(found, criterion, model.compute)


def as_vector(criterion: Criterion, model: LinearMixed, V: np.ndarray) -> Vector:
    """Columns in the order of `Brute` as a vector of the engine."""
    parts, start = [], 0
    for f in criterion.products.structure.factors:
        part = V[start : start + f.q].reshape(f.k, f.m, -1)
        parts.append(torch.from_numpy(np.ascontiguousarray(part)))
        start += f.q
    X = torch.from_numpy(np.ascontiguousarray(V[start:]))
    return criterion.products.from_factors(parts, X)


def as_matrix(criterion: Criterion, vector: Vector) -> np.ndarray:
    parts = criterion.products.by_factor(vector)
    flat = [p.reshape(-1, p.shape[2]).numpy() for p in parts]
    return np.concatenate([*flat, vector.X.numpy()])


def assert_close(found, wanted, rtol: float) -> None:
    """Compare relative to the largest value: small ones are differences of large."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    size = max(np.abs(wanted).max(initial=0.0), 1e-8)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * size)


# -- the equations -------------------------------------------------------------------


@fifty
@given(designs())
def test_criterion_is_the_normal_density(case):
    criterion, model, x, _ = case
    brute, point = Brute(model, criterion, x), criterion(x)
    assert point.value == pytest.approx(brute.value, rel=1e-9)
    assert point.variance == pytest.approx(brute.variance, rel=1e-9)


@fifty
@given(designs())
def test_fixed_effects_are_generalised_least_squares(case):
    criterion, model, x, _ = case
    brute, fitted = Brute(model, criterion, x), fitted_at(criterion, model, x)
    assert_close(fitted.beta, brute.beta, 1e-9)
    assert_close(fitted.cov_beta, brute.variance * brute.cov_beta, 1e-9)


@fifty
@given(designs())
def test_modes_and_their_variances(case):
    criterion, model, x, _ = case
    brute, fitted = Brute(model, criterion, x), fitted_at(criterion, model, x)
    modes, variances = brute.modes, brute.mode_variances
    sparse = isinstance(criterion.products.layout, SparseLayout)
    if sparse:
        with pytest.raises(
            ModelError, match="conditional variances need .* raise the budget"
        ):
            _ = fitted.mode_variances
    start = 0
    for j, f in enumerate(criterion.products.structure.factors):
        U, at = fitted.units[j], slice(start, start + f.q)
        wanted = U @ modes[at].reshape(f.k, f.m)
        assert_close(fitted.modes[j], wanted.T, 1e-8)
        if not sparse:
            V = np.einsum("aibi->iab", variances[at, at].reshape(f.k, f.m, f.k, f.m))
            assert_close(fitted.mode_variances[j], U @ V @ U.T, 1e-8)
        start += f.q


@fifty
@given(designs())
def test_gradient_and_information(case):
    criterion, model, x, _ = case
    brute, point = Brute(model, criterion, x), criterion(x)
    assert_close(point.gradient, brute.gradient, 1e-7)
    assert_close(point.information, brute.information, 1e-7)


@fifty
@given(designs())
def test_gradient_is_that_of_central_differences(case):
    criterion, _, x, _ = case
    gradient, numeric = criterion(x).gradient, np.empty(len(x))
    lower, step = criterion.products.structure.lower, 1e-5
    for j, unit in enumerate(np.eye(len(x)) * step):
        if x[j] - step < lower[j]:  # at zero: three points on the side there is
            values = [criterion(x + k * unit).value for k in range(3)]
            numeric[j] = (-3 * values[0] + 4 * values[1] - values[2]) / (2 * step)
        else:
            numeric[j] = criterion(x + unit).value - criterion(x - unit).value
            numeric[j] /= 2 * step
    assert_close(numeric, gradient, 1e-5)


@fifty
@given(designs(), st.integers(0, 2**32 - 1))
def test_solutions_and_projections(case, seed):
    criterion, model, x, _ = case
    brute, f = Brute(model, criterion, x), criterion(x).factorisation
    rng = np.random.default_rng(seed)
    q = brute.Z.shape[1]
    rhs = rng.normal(size=(q + brute.p, 2))
    found = as_matrix(criterion, f.solve(as_vector(criterion, model, rhs)))
    assert_close(found, brute.solve(rhs), 1e-8)
    U = rng.normal(size=(q, 2))
    all_effects = np.concatenate([U, np.zeros((brute.p, 2))])
    AU, form = f.project(as_vector(criterion, model, all_effects))
    assert_close(as_matrix(criterion, AU), brute.equations @ all_effects, 1e-9)
    assert_close(form, U.T @ brute.Z.T @ brute.P @ brute.Z @ U, 1e-8)


@fifty
@given(designs())
def test_light_criteria_are_the_same_function(case):
    criterion, _, x, _ = case
    forms = [light.DenseCriterion(criterion)]
    factors = criterion.products.structure.factors
    if len(factors) == 1:
        forms.append(light.OneFactorCriterion(criterion))
    point = criterion(x)
    for form in forms:
        quick = form(x)
        assert quick.value == pytest.approx(point.value, rel=1e-11)
        assert quick.variance == pytest.approx(point.variance, rel=1e-10)
        assert_close(quick.gradient, point.gradient, 1e-8)
        assert_close(quick.information, point.information, 1e-8)


# -- the optimum ---------------------------------------------------------------------


def assert_optimal(criterion: Criterion, x: np.ndarray) -> None:
    """Gradient zero where free, not negative at zero; no step nearby gains."""
    point = criterion(x)
    lower = criterion.products.structure.lower
    free, gradient = x > lower, point.gradient
    assert (gradient[~free] >= -1e-6).all()
    # In standard errors of the parameters: see `search`.
    H = point.information[np.ix_(free, free)]
    values, vectors = np.linalg.eigh(H)
    along = vectors.T @ gradient[free]
    curved = values > 1e-6 * max(values.max(initial=0.0), 1e-300)
    assert np.sqrt((along[curved] ** 2 / values[curved]).sum()) <= 1e-5
    assert np.abs(along[~curved]).max(initial=0.0) <= 1e-4
    rng = np.random.default_rng(1)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(10):
            other = criterion(np.maximum(x + size * rng.normal(size=len(x)), lower))
            assert other.value >= point.value - 1e-10 * abs(point.value)


@fifty
@given(designs())
def test_search_ends_at_an_optimum(case):
    criterion, _, x, _ = case
    found = minimise(criterion, x)
    assert found.converged
    assert_optimal(criterion, found.point.x)


SMALL = [c for c in CASES if not c.startswith(("insteval", "ham", "mathach"))]


@pytest.mark.parametrize("case", SMALL)
def test_reference_fits_are_optimal(case):
    result = fit(case)
    assert result.converged
    assert_optimal(result.mixed.criterion, result.mixed.x)


@pytest.mark.parametrize(
    "case",
    ["sleepstudy_slope_REML", "machines_vec_REML", "pastes_nested_ML",
     "penicillin_crossed_REML", "orthodont_slope_ML", "oxboys_slope_REML",
     "oats_splitplot_REML", "dyestuff2_singular_ML", "arabidopsis_log_REML"],
)  # fmt: skip
def test_every_start_reaches_the_same_optimum(case):
    result, rng = fit(case), np.random.default_rng(7)
    criterion, structure = result.mixed.criterion, result.mixed.structure
    for _ in range(8):
        x = rng.normal(0.0, 3.0, structure.size)
        x[structure.lower == 0] = 10.0 ** rng.uniform(
            -4, 3, (structure.lower == 0).sum()
        )
        found = minimise(criterion, x)
        assert found.converged
        assert found.point.value == pytest.approx(result.mixed.point.value, abs=1e-8)


def test_start_can_be_given_as_theta():
    stored = CASES["sleepstudy_slope_ML"]
    model = LinearMixed(formula_of(stored), load("sleepstudy"))
    own = model.fit(reml=False)
    again = model.fit(reml=False, start=own.theta)
    assert again.mixed.found.evaluations <= 2
    np.testing.assert_allclose(again.theta, own.theta, rtol=1e-6)
    by_number = model.fit(reml=False, start=list(own.theta))
    np.testing.assert_allclose(by_number.theta, own.theta, rtol=1e-6)


# -- corners -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "theta", ([0, 0, 0], [0.9, 0, 0], [0, 0, 0.2], [1, 0.3, 0], [1e-9, 0, 1e-9])
)
def test_search_leaves_a_singular_corner_that_is_a_saddle(theta):
    result = fit("sleepstudy_slope_ML")
    again = result.model.fit(reml=False, start=theta)
    assert again.llf == pytest.approx(result.llf, abs=1e-9)
    assert not again.singular


def test_corner_is_left_by_the_slope_in_V():
    """There the gradient in the triangle's entries is zero, and it is no optimum."""
    result = fit("sleepstudy_slope_ML")
    point = result.mixed.criterion(np.zeros(3))
    assert np.abs(point.gradient).max() == 0.0
    away = _out_of_corner(result.mixed.criterion, point)
    assert away.value < point.value - 1.0


def test_corner_that_is_the_optimum_is_kept():
    data = load("sleepstudy")
    rng = np.random.default_rng(3)
    data["noise"] = rng.normal(size=len(data))
    # Residuals with no slopes left in them: less varied than chance would have it.
    flat = LinearMixed("Reaction ~ Days + (noise | Subject)", data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        result = flat.fit(reml=False)
    assert result.singular
    assert_optimal(result.mixed.criterion, result.mixed.x)
    assert _out_of_corner(result.mixed.criterion, result.mixed.point) is None


# -- what must not matter ------------------------------------------------------------


def slopes(data: pd.DataFrame, reml: bool) -> MixedResults:
    return LinearMixed("Reaction ~ Days + (Days | Subject)", data).fit(reml)


def crossed(data: pd.DataFrame, reml: bool) -> MixedResults:
    return LinearMixed("diameter ~ 1 + (1 | plate) + (1 | sample)", data).fit(reml)


@pytest.mark.parametrize("reml", (False, True))
@pytest.mark.parametrize("factor", (1e-6, 3.7, 1e8))
def test_rescaled_response(factor, reml):
    data = load("sleepstudy")
    one = slopes(data, reml)
    two = slopes(data.assign(Reaction=factor * data["Reaction"]), reml)
    df = one.nobs - (2 if reml else 0)
    shift = 2 * df * np.log(factor)
    assert -2 * two.llf == pytest.approx(-2 * one.llf + shift, abs=1e-8)
    np.testing.assert_allclose(two.theta, one.theta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(two.params, factor * one.params, rtol=1e-9)
    np.testing.assert_allclose(
        two.varcorr["vcov"], factor**2 * one.varcorr["vcov"], rtol=1e-6
    )


@pytest.mark.parametrize("reml", (False, True))
@pytest.mark.parametrize("factor", (1e-7, 24.0, 1e6))
def test_rescaled_covariate(factor, reml):
    """Of the fixed and of the random part; REML counts the change of units."""
    data = load("sleepstudy")
    one = slopes(data, reml)
    two = slopes(data.assign(Days=factor * data["Days"]), reml)
    shift = 2 * np.log(factor) if reml else 0.0
    assert -2 * two.llf == pytest.approx(-2 * one.llf + shift, abs=1e-8)
    np.testing.assert_allclose(two.fittedvalues, one.fittedvalues, rtol=1e-6)
    slope = two.varcorr["sdcor"][1] * factor
    assert slope == pytest.approx(one.varcorr["sdcor"][1], rel=1e-6)
    assert two.varcorr["sdcor"][2] == pytest.approx(one.varcorr["sdcor"][2], abs=1e-6)


@pytest.mark.parametrize("reml", (False, True))
def test_recentred_covariate(reml):
    data = load("sleepstudy")
    one = slopes(data, reml)
    two = slopes(data.assign(Days=data["Days"] - 4.5), reml)
    assert two.llf == pytest.approx(one.llf, abs=1e-9)
    np.testing.assert_allclose(two.fittedvalues, one.fittedvalues, rtol=1e-7)


@pytest.mark.parametrize("reml", (False, True))
def test_order_of_rows_and_names_of_levels(reml):
    data = load("penicillin")
    one = crossed(data, reml)
    order = np.random.default_rng(5).permutation(len(data))
    names = {
        level: f"{ord(level) * 7919 % 101:03d}"
        for level in data["plate"].cat.categories
    }
    shuffled = data.iloc[order].assign(plate=data["plate"].map(names).iloc[order])
    two = crossed(shuffled, reml)
    assert two.llf == pytest.approx(one.llf, abs=1e-10)
    np.testing.assert_allclose(
        two.fittedvalues.sort_index(), one.fittedvalues, rtol=1e-9
    )
    modes, renamed = one.ranef()["plate"], two.ranef()["plate"]
    renamed.index = renamed.index.map(str)
    for level, name in names.items():
        assert renamed.loc[name, "Intercept"] == pytest.approx(
            modes.loc[level, "Intercept"], abs=1e-7
        )


@pytest.mark.parametrize("reml", (False, True))
def test_order_of_terms(reml):
    data = load("penicillin")
    one = crossed(data, reml)
    two = LinearMixed("diameter ~ 1 + (1 | sample) + (1 | plate)", data).fit(reml)
    assert two.llf == pytest.approx(one.llf, abs=1e-10)
    np.testing.assert_allclose(two.theta, one.theta, rtol=1e-7)


@pytest.mark.parametrize("reml", (False, True))
def test_distant_response_costs_nothing(reml):
    data = load("sleepstudy")
    one = slopes(data, reml)
    two = slopes(data.assign(Reaction=data["Reaction"] + 1e6), reml)
    assert two.llf == pytest.approx(one.llf, abs=1e-8)
    np.testing.assert_allclose(two.params - [1e6, 0.0], one.params, rtol=1e-8)


@pytest.mark.parametrize("reml", (False, True))
def test_distant_covariate_costs_nothing(reml):
    """In the fixed part, beside random intercepts and slopes of another column."""
    data = load("sleepstudy").assign(age=lambda d: d["Days"] * 0.3 + d.index % 7)
    formula = "Reaction ~ age + Days + (Days | Subject)"
    one = LinearMixed(formula, data).fit(reml)
    two = LinearMixed(formula, data.assign(age=data["age"] + 1e5)).fit(reml)
    assert two.llf == pytest.approx(one.llf, abs=1e-8)
    np.testing.assert_allclose(two.bse[1:], one.bse[1:], rtol=1e-8)


def test_distant_covariate_of_a_random_slope():
    data = load("sleepstudy")
    one = slopes(data, False)
    two = slopes(data.assign(Days=data["Days"] + 1e5), False)
    assert two.llf == pytest.approx(one.llf, abs=1e-6)
    np.testing.assert_allclose(two.fittedvalues, one.fittedvalues, rtol=1e-5)


def test_weights_of_one_and_doubled_rows():
    """Weights scale the residual variance: twice the weight halves sigma^2 only."""
    data = load("sleepstudy").assign(one=1.0, four=4.0)
    formula = "Reaction ~ Days + (Days | Subject)"
    plain = LinearMixed(formula, data).fit()
    ones = LinearMixed(formula, data, weights="one").fit()
    fours = LinearMixed(formula, data, weights="four").fit()
    assert ones.llf == pytest.approx(plain.llf, abs=1e-9)
    assert fours.llf == pytest.approx(plain.llf, abs=1e-8)
    assert fours.sigma == pytest.approx(2 * plain.sigma, rel=1e-7)
    np.testing.assert_allclose(fours.theta, plain.theta / 2, rtol=1e-5)
    np.testing.assert_allclose(fours.bse, plain.bse, rtol=1e-7)
