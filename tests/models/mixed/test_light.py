"""The light criteria give what the general elimination gives."""

from __future__ import annotations

import numpy as np
import pytest

from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.light import (
    DenseCriterion,
    LightCriterion,
    OneFactorCriterion,
    light,
)
from deepstats.models.mixed.products import Products


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    n = 240
    a, b, c = rng.integers(0, 6, n), rng.integers(0, 4, n), rng.integers(0, 7, n)
    x, z = rng.normal(3, 1, n), rng.normal(size=n)
    y = 1 + x + rng.normal(size=6)[a] + rng.normal(size=7)[c] * x + rng.normal(size=n)
    w = rng.uniform(0.5, 2, n)
    return {"y": y, "x": x, "z": z, "a": a, "b": b, "c": c, "w": w}


def products_of(formula: str, data: dict, weights: str | None = None) -> Products:
    return LinearMixed(formula, data, weights=weights).prepare()[1]


def assert_same(quick: LightCriterion, criterion: Criterion, x: np.ndarray) -> None:
    one, two = quick(x), criterion(x)
    assert one.value == pytest.approx(two.value, rel=1e-12)
    assert one.variance == pytest.approx(two.variance, rel=1e-10)
    np.testing.assert_allclose(one.gradient, two.gradient, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(one.information, two.information, rtol=1e-8, atol=1e-8)
    step = 1e-5 * np.eye(len(x))
    differences = [(quick(x + h).gradient - quick(x - h).gradient) / 2e-5 for h in step]
    np.testing.assert_allclose(one.hessian, differences, rtol=1e-5, atol=1e-4)
    for left, right in zip(one.slopes, two.slopes, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("sigma", [None, 0.8])
@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + (1 | a)",
        "y ~ x + (x || a)",
        "y ~ x + (1 | a/b)",
        "y ~ x + (1 | a) + (1 | b) + (1 | c)",
        "y ~ x + (x | c) + (z | b)",
        "y ~ x + (x | a/b) + (z | c)",
    ],
)
def test_dense(formula, sigma, reml, data):
    products = products_of(formula, data, "w")
    criterion = Criterion(products, reml, sigma)
    quick = DenseCriterion(criterion)
    rng = np.random.default_rng(2)
    for zero in (False, True):
        x = np.abs(rng.normal(0.6, 0.4, products.structure.size))
        # Differences of the gradient look a step to the left of it.
        x = np.where(zero & (products.structure.lower == 0), 2e-5, x)
        assert_same(quick, criterion, x)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + (1 | c)",
        "y ~ x + (x | c)",
        "y ~ 0 + x + (x + z | c)",
        "y ~ 0 + z + (x || c)",
    ],
)
def test_one_factor(formula, reml, data):
    products = products_of(formula, data, "w")
    criterion = Criterion(products, reml)
    quick = OneFactorCriterion(criterion)
    rng = np.random.default_rng(3)
    for _ in range(3):
        assert_same(
            quick, criterion, np.abs(rng.normal(0.6, 0.4, quick.structure.size))
        )


def test_choice(data):
    small = Criterion(products_of("y ~ x + (1 | a) + (1 | b)", data), True)
    assert isinstance(light(small), DenseCriterion)
    many = data | {"g": np.arange(240) // 2}
    large = Criterion(products_of("y ~ x + (1 | g)", many), True)
    assert isinstance(light(large), OneFactorCriterion)
    crossed = Criterion(products_of("y ~ x + (1 | g) + (1 | a)", many), True)
    assert light(crossed) is crossed
