"""Gram matrices combined from those at hand, against ones multiplied anew."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from deepstats.models.mixed import LinearMixed, grams, products
from deepstats.models.mixed.coupling import Dense, Pairs
from deepstats.models.mixed.criterion import Criterion
from deepstats.models.mixed.grams import WeightedGrams
from deepstats.models.mixed.search import minimise, starting

ROWS, COLUMNS = 900, 130
FORMULA = "y ~ x + (1 | g) + (1 | h)"


def brute(A: Tensor, w: Tensor) -> np.ndarray:
    A, w = A.numpy(), w.numpy()
    return np.tril(A.T @ (A * w[:, None]))


@pytest.fixture
def multiplied(monkeypatch) -> list[Tensor]:
    """Weights whose Gram matrix was multiplied, in order."""
    found, multiply = [], WeightedGrams._multiply

    def count(self, w):
        found.append(w)
        return multiply(self, w)

    monkeypatch.setattr(WeightedGrams, "_multiply", count)
    return found


@pytest.fixture(scope="module")
def tall() -> SimpleNamespace:
    rng = np.random.default_rng(1)
    A = torch.from_numpy(rng.poisson(1.0, (ROWS, COLUMNS)).astype(float))
    half = rng.normal(size=(COLUMNS, COLUMNS))
    M = torch.from_numpy(half @ half.T)
    return SimpleNamespace(A=A, M=M, d=torch.from_numpy(rng.uniform(40, 90, ROWS)))


# -- weights ---------------------------------------------------------------------------


def test_weights_that_converge_are_multiplied_thrice(tall, multiplied):
    """As a search asks: two functions of one number, at parameters ever nearer."""
    found = WeightedGrams(tall.A)
    for v in (0.64, 0.6407, 0.640701, 0.6407010002):
        w = v / (1 + v * tall.d)
        exact = brute(tall.A, w)
        np.testing.assert_allclose(found.gram(w), exact, rtol=2e-14, atol=1e-14)
        w = 1 / (1 + v * tall.d) ** 2
        gram = found.gram(w, 1e-9)
        np.testing.assert_allclose(gram, brute(tall.A, w), rtol=1.1e-9)
    assert len(multiplied) == 3


@pytest.mark.parametrize("size", [1e-14, 1e-11, 1e-6, 1e-2, 0.9])
def test_what_is_missing_is_exact_and_learnt(size, tall, multiplied):
    """However far off the combination was: nearly right, or of another kind."""
    rng = np.random.default_rng(2)
    found, first = WeightedGrams(tall.A), 1 / (1 + tall.d)
    noise = torch.from_numpy(rng.uniform(-1, 1, ROWS))
    for share in (0.0, size, 1e-3 * size):
        w = first * (1 + share * noise)
        exact = brute(tall.A, w)
        np.testing.assert_allclose(found.gram(w), exact, rtol=2e-14, atol=1e-14)
    assert len(multiplied) == 2
    assert all((w > 0).all() for w in multiplied)


@pytest.mark.parametrize("rows", [ROWS, 100])
def test_unlike_weights_are_forgotten(rows, tall, multiplied):
    """No more are kept than A has room for; what is left still combines rightly."""
    rng = np.random.default_rng(3)
    A = tall.A[:rows]
    found = WeightedGrams(A)
    room = max(1, rows // COLUMNS)
    for _ in range(12):
        w = torch.from_numpy(10 ** rng.uniform(-3, 3, rows))
        np.testing.assert_allclose(found.gram(w), brute(A, w), rtol=1e-12)
        assert len(found._kept) <= room
    assert len(multiplied) == 12
    np.testing.assert_allclose(found.gram(3 * w), brute(A, 3 * w), rtol=1e-12)
    assert len(multiplied) == 12


def test_zero_and_extreme_weights(tall):
    found = WeightedGrams(tall.A)
    one = torch.ones(ROWS, dtype=torch.float64)
    for w in (one, 0 * one, 1e-150 * one, one * (tall.d > 60), 1e150 * one, one):
        np.testing.assert_allclose(found.gram(w), brute(tall.A, w), rtol=1e-13)
        value = found.inner(w, tall.M, 0.0)
        assert value == pytest.approx(total(tall, w), rel=1e-12, abs=1e-200)


def test_upper_triangle_is_zero_and_kept_ones_are_not_shared(tall):
    found = WeightedGrams(tall.A)
    gram = found.gram(tall.d)
    assert not gram.triu(1).any()
    gram.fill_(np.nan)
    np.testing.assert_allclose(found.gram(tall.d), brute(tall.A, tall.d), rtol=1e-13)


# -- traces ----------------------------------------------------------------------------


def total(tall: SimpleNamespace, w: Tensor) -> float:
    A = tall.A.numpy()
    return float(w.numpy() @ ((A @ tall.M.numpy()) * A).sum(1))


def test_trace_is_as_near_as_asked(tall, multiplied):
    found = WeightedGrams(tall.A)
    exact = found.inner(tall.d, tall.M, 0.0)
    assert exact == pytest.approx(total(tall, tall.d), rel=1e-12)
    noise = torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, ROWS))
    w = tall.d * (1 + 1e-6 * noise)
    rough = found.inner(w, tall.M, 2e-6 * exact)
    assert len(multiplied) == 1
    assert rough != pytest.approx(total(tall, w), rel=1e-12)
    assert abs(rough - total(tall, w)) <= 1e-6 * exact
    assert found.inner(w, tall.M, 1e-8 * exact) == pytest.approx(
        total(tall, w), rel=1e-12
    )
    assert len(multiplied) == 2
    # What is above the diagonal of M is not used.
    low = tall.M.tril()
    assert found.inner(w, low, 0.0) == pytest.approx(total(tall, w), rel=1e-12)


# -- couplings -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2])
def test_dense_coupling_by_its_entries(k):
    rng = np.random.default_rng(5)
    where = rng.random((60, 20)) < 0.1
    pattern = sp.csr_matrix(where)
    C = torch.from_numpy(rng.normal(size=(k, 60, 20)) * where)
    sparse, dense = Dense(C, pattern), Dense(C)
    assert sparse._entries is not None
    assert dense._entries is None
    assert Dense(C, sp.csr_matrix(np.ones((60, 20))))._entries is None
    V = torch.from_numpy(rng.normal(size=(20, 3)))
    U = torch.from_numpy(rng.normal(size=(k, 60, 3)))
    for other in (sparse, dense):
        times = torch.stack([part @ V for part in C])
        np.testing.assert_allclose(other.times(V), times, atol=1e-13)
        back = sum(part.T @ u for part, u in zip(C, U, strict=True))
        np.testing.assert_allclose(other.transposed(U), back, atol=1e-13)


# -- models ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(6)
    n, x = 30_000, rng.normal(size=30_000)
    g, h = rng.integers(0, ROWS, n), rng.integers(0, COLUMNS, n)
    b = 0.8 * rng.normal(size=ROWS)[g] + 0.5 * rng.normal(size=COLUMNS)[h]
    y = 1 + 0.5 * x + b + rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "g": g, "h": h})


def prepared(form: type, data: pd.DataFrame, monkeypatch) -> products.Products:
    monkeypatch.setattr(products, "_QUICK", 0)
    monkeypatch.setattr(products, "choose", lambda *_: form)
    return LinearMixed(FORMULA, data).prepare()[1]


@pytest.mark.parametrize("reml", [True, False])
def test_search_is_that_of_exact_products(reml, data, multiplied, monkeypatch):
    """Same path, optimum and gradient as with pairs, which are never combined."""
    pairs = prepared(Pairs, data, monkeypatch)
    dense = prepared(Dense, data, monkeypatch)
    assert dense.stages[0].C._entries is not None
    one = minimise(Criterion(pairs, reml), starting(pairs))
    assert not multiplied
    two = minimise(Criterion(dense, reml), starting(dense))
    assert 2 <= len(multiplied) <= 4 < 2 * two.evaluations
    assert two.evaluations == one.evaluations
    assert two.decrement < 1e-6
    assert two.point.value == pytest.approx(one.point.value, abs=1e-9)
    np.testing.assert_allclose(two.point.x, one.point.x, rtol=1e-9)
    deviate = np.sqrt(np.diag(one.point.information))
    assert (np.abs(two.point.gradient - one.point.gradient) < 1e-9 * deviate).all()


@pytest.mark.parametrize("with_x", [True, False])
def test_derivatives_are_those_of_dense_algebra(with_x, data, multiplied, monkeypatch):
    """At points that follow one another, from kept Gram matrices and new ones."""
    dense = prepared(Dense, data, monkeypatch)
    criterion = Criterion(dense, with_x)
    Z = np.concatenate([np.eye(ROWS)[data["g"]], np.eye(COLUMNS)[data["h"]]], axis=1)
    X = np.column_stack([np.ones(len(data)), data["x"]])
    ZZ, ZX, XX = Z.T @ Z, Z.T @ X, X.T @ X
    owner = np.repeat([0, 1], [ROWS, COLUMNS])
    for x in ([0.5, 0.3], [0.501, 0.2995], [0.50101, 0.29951], [3.0, 1e-3]):
        v = np.asarray(x)[owner]
        inner = np.linalg.inv(np.diag(1 / v) + ZZ)
        H = ZZ - ZZ @ inner @ ZZ
        if with_x:
            N = ZX - ZZ @ inner @ ZX
            H -= N @ np.linalg.solve(XX - ZX.T @ inner @ ZX, N.T)
        f = criterion(np.asarray(x)).factorisation
        logdet = np.linalg.slogdet(np.eye(len(v)) + ZZ * v)[1]
        assert f.logdet == pytest.approx(logdet, abs=1e-9)
        traces = [np.trace(H[owner == j][:, owner == j]) for j in (0, 1)]
        np.testing.assert_allclose(
            [float(t) for t in f.traces(with_x)], traces, rtol=1e-11
        )
        squared = [[(H[owner == i][:, owner == j] ** 2).sum() for j in (0, 1)]
                   for i in (0, 1)]  # fmt: skip
        found = f.squared_traces(with_x, {0, 1})
        np.testing.assert_allclose(found, squared, rtol=1e-9)
    assert len(multiplied) < 10


def test_a_fit_with_its_table_multiplies_thrice(data, multiplied, monkeypatch):
    """Satterthwaite's degrees of freedom need no Gram matrix of their own."""
    tables = []
    for form in (Pairs, Dense):
        monkeypatch.setattr(products, "_QUICK", 0)
        monkeypatch.setattr(products, "choose", lambda *_, form=form: form)
        tables.append(LinearMixed(FORMULA, data).fit().tidy())
    numbers = [t.select_dtypes("number").to_numpy() for t in tables]
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-8)
    assert len(multiplied) <= 4


def test_few_columns_keep_one_gram_only():
    A = torch.ones(5000, grams._LEAST_COLUMNS - 1, dtype=torch.float64)
    assert WeightedGrams(A)._most == 1
    assert WeightedGrams(torch.ones(5000, 200, dtype=torch.float64))._most == 8
