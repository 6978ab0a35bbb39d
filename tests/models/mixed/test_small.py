"""Small models: one matrix of cross-products, everything else on demand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import deepstats as ds
from deepstats.compute import Compute
from deepstats.models.mixed import LinearMixed, model
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.light import LazyPoint
from deepstats.models.mixed.products import Products
from deepstats.models.mixed.search import starting
from deepstats.models.mixed.small import (
    SmallProducts,
    small_fixed,
    small_of,
    squared_traces,
)

from .data import load

FORMULAS = (
    "y ~ x + (1 | a)",
    "y ~ x + (x || a)",
    "y ~ x + (1 | a/b)",
    "y ~ x + (x | c) + (z | b)",
    "y ~ x + (1 | a) + (1 | b) + (0 + z | c)",
)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    n = 240
    a, b, c = rng.integers(0, 6, n), rng.integers(0, 4, n), rng.integers(0, 7, n)
    x, z = rng.normal(300, 1, n), rng.normal(size=n)
    y = 1e4 + x + rng.normal(size=6)[a] + rng.normal(size=7)[c] * z + rng.normal(size=n)
    return {"y": y, "x": x, "z": z, "a": a, "b": b, "c": c,
            "w": rng.uniform(0.5, 2, n), "o": rng.normal(size=n)}  # fmt: skip


def general(
    formula: str, data: dict, monkeypatch: pytest.MonkeyPatch, **options: object
) -> LinearMixed:
    """Return the model by the general route."""
    with monkeypatch.context() as patch:
        patch.setattr(model, "is_small", lambda design, compute: False)
        found = LinearMixed(formula, data, **options)
        found.prepare()
    return found


@pytest.mark.filterwarnings("ignore::deepstats.errors.SingularFitWarning")
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("options", [{}, {"weights": "w", "offset": "o"}])
def test_same_model_by_both_routes(formula, options, data, monkeypatch):
    quick = LinearMixed(formula, data, **options)
    slow = general(formula, data, monkeypatch, **options)
    assert isinstance(quick.prepare()[1], SmallProducts)
    assert not isinstance(slow.prepare()[1], SmallProducts)
    for reml in (True, False):
        one, two = quick.fit(reml), slow.fit(reml)
        assert one.llf == pytest.approx(two.llf, abs=1e-9)
        np.testing.assert_allclose(one.params, two.params, rtol=1e-7)
        np.testing.assert_allclose(one.bse, two.bse, rtol=1e-6)
        np.testing.assert_allclose(one.theta, two.theta, atol=1e-5)
        np.testing.assert_allclose(one.df_inference, two.df_inference, rtol=1e-4)


def test_parts_are_made_in_the_same_basis_when_asked_for(data):
    products = LinearMixed(FORMULAS[3], data, weights="w").prepare()[1]
    assert "B" not in vars(products)
    R, center = products.R, products.center
    rest = products.B
    assert "stages" in vars(products)
    assert products.R is R
    assert products.center is center
    q = sum(f.q for f in products.structure.factors)
    np.testing.assert_allclose(products.G, small_of(products).A[q:, q:], atol=1e-9)
    assert rest.shape[1] == products.offsets[-1]
    with pytest.raises(AttributeError):
        products.nothing_of_that_name  # noqa: B018


def test_changed_products_are_plain_ones(data):
    products = LinearMixed(FORMULAS[0], data).prepare()[1]
    changed = dataclasses.replace(products, n=products.n + 1)
    assert isinstance(changed, Products)
    assert small_of(changed) is None
    assert changed.stages is products.stages


def test_moments_of_balanced_data_are_the_reml_estimates():
    """Searle, Casella & McCulloch (1992): so the search ends where it starts."""
    for name, formula in (
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
        ("ergoStool", "effort ~ Type + (1 | Subject)"),
    ):
        results = ds.lmer(formula, load(name)).fit()
        start = starting(results.model.prepare()[1])
        np.testing.assert_allclose(start, results.mixed.x, rtol=1e-6)
        assert results.fit_info.iterations == 1


def test_optimum_is_factorised_on_demand():
    results = ds.lmer("Yield ~ 1 + (1 | Batch)", load("Dyestuff")).fit()
    results.tidy()
    point = results.mixed.point
    assert isinstance(point, LazyPoint)
    assert "factorisation" not in vars(point)
    assert point.factorisation.rss == pytest.approx(point.light.rss, rel=1e-10)
    again = Criterion(results.mixed.products, True)(point.x)
    assert again.value == pytest.approx(point.value, rel=1e-12)
    np.testing.assert_allclose(again.factorisation.beta, point.light.beta, rtol=1e-12)


@pytest.mark.parametrize(
    "columns",
    [{"x2": lambda d: 2 * d["x"]}, {"x2": lambda d: d["x"] + 1e-9 * d["z"]}],
)
def test_columns_near_dependence_are_left_to_the_general_route(columns, data):
    given = data | {name: make(data) for name, make in columns.items()}
    design = LinearMixed("y ~ x + x2 + (1 | a)", given).design
    assert small_fixed(design, Compute("cpu")) is None


def test_squared_traces_by_brute_force():
    rng = np.random.default_rng(3)
    H = rng.normal(size=(11, 11))
    H = H + H.T
    at = [slice(0, 6), slice(6, 11)]
    D, one = rng.normal(size=(2, 2)), np.array([[1.7]])
    D = D + D.T
    directions = [(0, D), (1, one)]
    blocks = []
    for j, E in directions:
        B = np.zeros((11, 11))
        m = (at[j].stop - at[j].start) // len(E)
        B[at[j], at[j]] = np.kron(np.eye(m), E)
        blocks.append(B)
    expected = [[np.trace(H @ a @ H @ b) for b in blocks] for a in blocks]
    np.testing.assert_allclose(squared_traces(H, at, directions), expected, rtol=1e-12)
