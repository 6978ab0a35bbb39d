"""The rest in one block, by components, and sparse: the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.compute import Compute
from deepstats.models.mixed import LinearMixed, elimination
from deepstats.models.mixed.coupling import Dense, Pairs, choose
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.dense import add_gram, inverse_from, mirror
from deepstats.models.mixed.products import Products, _Pass
from deepstats.models.mixed.rest import Layout
from deepstats.models.mixed.search import minimise, starting
from deepstats.models.mixed.sparse import SparseLayout

FORMULAS = (
    "y ~ x + (1 | pupil) + (1 | rater)",
    "y ~ x + (x | pupil) + (1 | rater) + (1 | school)",
    "y ~ x + (x | pupil) + (z | rater) + (1 | school)",
    "y ~ x + (x | rater) + (1 | pupil) + (z | school)",
)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    """Pupils and raters who meet inside schools only."""
    rng = np.random.default_rng(1)
    n = 1500
    school = rng.integers(0, 30, n)
    pupil, rater = school * 20 + rng.integers(0, 20, n), school * 9
    rater = rater + rng.integers(0, 9, n)
    x, z = rng.normal(3, 1, n), rng.normal(size=n)
    y = 10 + x + rng.normal(size=30)[school] + rng.normal(size=600)[pupil]
    y = y + 0.7 * rng.normal(size=270)[rater] * z + rng.normal(size=n)
    return {"y": y, "x": x, "z": z, "school": school, "pupil": pupil, "rater": rater,
            "w": rng.uniform(0.5, 2, n)}  # fmt: skip


def products_as(
    layout: str, formula: str, data: dict, monkeypatch: pytest.MonkeyPatch
) -> Products:
    """Cross-products with the rest held as asked."""
    order = _Pass._order

    def forced(self: _Pass) -> None:
        order(self)
        if layout == "whole":
            self.layout = Layout(self.q, 1, self.q, torch.arange(self.q))
        elif layout == "sparse":
            self.layout = self._sparse_layout()

    with monkeypatch.context() as patch:
        patch.setattr("deepstats.models.mixed.products._DENSE_CHAIN", 0)
        patch.setattr(_Pass, "_order", forced)
        return LinearMixed(formula, data, weights="w").prepare()[1]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("layout", ["components", "sparse"])
def test_same_criterion(layout, formula, data, monkeypatch):
    whole = products_as("whole", formula, data, monkeypatch)
    other = products_as(layout, formula, data, monkeypatch)
    kind = SparseLayout if layout == "sparse" else Layout
    assert isinstance(other.layout, kind)
    assert other.layout.elements < whole.layout.elements
    if layout == "components":
        assert other.layout.count >= 30
    rng = np.random.default_rng(4)
    lower = whole.structure.lower
    for zero in (False, True):
        x = np.abs(rng.normal(0.7, 0.3, len(lower)))
        x = np.where(zero & (lower == 0), 0.0, x)
        for reml in (True, False):
            one, two = Criterion(whole, reml)(x), Criterion(other, reml)(x)
            assert two.value == pytest.approx(one.value, rel=1e-12)
            np.testing.assert_allclose(two.gradient, one.gradient, rtol=1e-8, atol=1e-8)
            np.testing.assert_allclose(two.information, one.information, rtol=1e-7,
                                       atol=1e-7)  # fmt: skip
            np.testing.assert_allclose(
                two.factorisation.beta, one.factorisation.beta, rtol=1e-10
            )
            np.testing.assert_allclose(
                two.factorisation.cov_beta, one.factorisation.cov_beta, rtol=1e-9
            )


@pytest.mark.parametrize("formula", FORMULAS[1:3])
def test_near_zero_by_the_other_route(formula, data, monkeypatch):
    """Traces divided by a variance equal those that never divide."""
    products = products_as("components", formula, data, monkeypatch)
    x = np.full(products.structure.size, 0.5)
    usual = Criterion(products, True)(x).gradient
    monkeypatch.setattr(elimination, "_SMALL", 10.0)
    np.testing.assert_allclose(Criterion(products, True)(x).gradient, usual, rtol=1e-7)


def test_conditional_variances_by_components(data, monkeypatch):
    formula = FORMULAS[2]
    whole = products_as("whole", formula, data, monkeypatch)
    apart = products_as("components", formula, data, monkeypatch)
    x = np.full(whole.structure.size, 0.4)
    for with_x in (True, False):
        one = Criterion(whole, True)(x).factorisation
        two = Criterion(apart, True)(x).factorisation
        left, _, inner = one.blocks(with_x)
        right, _, other = two.blocks(with_x)
        for a, b in zip(left, right, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-12)
        np.testing.assert_allclose(other.whole(), inner.whole(), atol=1e-12)


@pytest.mark.parametrize("layout", ["components", "sparse"])
def test_same_optimum(layout, data, monkeypatch):
    whole = products_as("whole", FORMULAS[2], data, monkeypatch)
    other = products_as(layout, FORMULAS[2], data, monkeypatch)
    one = minimise(Criterion(whole, True), starting(whole))
    two = minimise(Criterion(other, True), starting(other))
    assert one.converged
    assert two.converged
    assert two.point.value == pytest.approx(one.point.value, abs=1e-9)
    np.testing.assert_allclose(two.point.x, one.point.x, atol=1e-6)


def test_sparse_estimates_traces_on_the_way(data, monkeypatch):
    """Hutchinson's estimate is near the exact trace, and only asked for on the way."""
    products = products_as("sparse", FORMULAS[0], data, monkeypatch)
    x = np.full(products.structure.size, 0.5)
    exact = Criterion(products, True)(x)
    rough = Criterion(products, True, exact=False)(x)
    assert rough.value == exact.value
    gap = np.abs(rough.gradient - exact.gradient)
    assert (gap > 1e-6).any()
    assert (gap < 0.5 * np.sqrt(np.diag(exact.information))).all()


def test_memory_is_refused_with_the_alternative(monkeypatch):
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=60_000), "g": rng.integers(0, 6000, 60_000),
            "h": rng.integers(0, 6000, 60_000)}  # fmt: skip
    model = LinearMixed("y ~ 1 + (1 | g) + (1 | h)", data)
    model.compute = Compute("cpu", memory="1MB")
    with pytest.raises(MemoryError, match=r"set_default_device\(memory=...\)"):
        model.prepare()


def test_dense_arithmetic():
    rng = np.random.default_rng(5)
    A = torch.from_numpy(rng.normal(size=(40, 13)))
    found = torch.ones(13, 13, dtype=torch.float64)
    add_gram(A, found)
    np.testing.assert_allclose(found.tril(), (1 + A.T @ A).tril(), atol=1e-12)
    S = A.T @ A + torch.eye(13, dtype=torch.float64)
    L = torch.linalg.cholesky(S)
    np.testing.assert_allclose(inverse_from(L, 9), torch.linalg.inv(S[:9, :9]),
                               atol=1e-12)  # fmt: skip
    low = torch.from_numpy(rng.normal(size=(2100, 2100)))
    expected = low.tril() + low.tril(-1).T
    assert torch.equal(mirror(low.clone()), expected)


@pytest.mark.parametrize(
    ("levels", "met", "columns", "memory", "form"),
    [
        (3000, 35, 1142, 1e9, Pairs),  # InstEval
        (1000, 100, 100, 1e9, Dense),  # every level meets every other
        (30_000, 33, 3000, 2e9, Pairs),
        (30_000, 33, 3000, 1e8, Dense),  # the list of pairs would not fit
        (100_000, 10, 10_000, 1e8, Pairs),  # nor would a dense matrix
        (50, 4, 20, 1e9, Dense),
    ],
)
def test_choice_of_coupling(levels, met, columns, memory, form):
    assert choose(np.full(levels, met), 1, columns, int(memory)) is form
