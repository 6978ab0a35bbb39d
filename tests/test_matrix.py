"""Every operation on blocks against the same algebra on the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.compute import Compute
from deepstats.matrix import Coded, Column, ModelMatrix, Source, intercept_matrix

N = 53
CPU = Compute("cpu", threads=1)
STREAMED = Compute("cpu", threads=1, memory=64)  # holds no matrix whole


def sum_table(levels: int) -> np.ndarray:
    return np.vstack([np.eye(levels - 1), -np.ones(levels - 1)])


def make(kind: str, seed: int = 0, rows: np.ndarray | None = None) -> ModelMatrix:
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=N), rng.integers(-3, 4, size=N)
    few, many = rng.integers(0, 3, size=N), rng.integers(0, 20, size=N).astype(np.int32)

    def source(values):
        return Source(values, rows)

    dense = [
        Column(),
        Column((source(x),)),
        Column((source(x), source(z))),
        Column((), source(few), np.array([0.0, 1.0, -1.0])),
        Column((source(z),), source(few), np.array([2.0, 0.5, 0.0])),
    ]
    wide = [
        Coded(source(many), np.eye(20)[:, 1:]),
        Coded(source(few), sum_table(3), (source(x),)),
        Coded(source(many), sum_table(20), (source(x), source(z))),
    ]
    chosen = {
        "dense": (dense, []),
        "coded": ([], wide[:1]),
        "mixed": (dense[:3], wide[:2]),
        "all": (dense, wide),
    }[kind]
    columns, coded = chosen
    sizes = [1] * len(columns) + [c.table.shape[1] for c in coded]
    order = np.random.default_rng(seed + 1).permutation(sum(sizes)).tolist()
    at = np.split(np.array(order), np.cumsum(sizes)[:-1])
    names = tuple(f"v{j}" for j in range(sum(sizes)))
    n = N if rows is None else len(rows)
    return ModelMatrix(
        n,
        names,
        tuple(columns),
        [int(a[0]) for a in at[: len(columns)]],
        tuple(coded),
        [a.tolist() for a in at[len(columns) :]],
    )


def by_hand(matrix: ModelMatrix) -> np.ndarray:
    """The dense matrix, from the definition of its columns."""
    out = np.full((matrix.n, matrix.k), np.nan)
    everything = slice(0, matrix.n)
    for column, at in zip(matrix.dense, matrix.dense_at, strict=True):
        value = np.ones(matrix.n)
        if column.codes is not None:
            value = column.values[column.codes[everything]]
        for source in column.numerics:
            value = value * source[everything]
        out[:, at] = value
    for piece, at in zip(matrix.coded, matrix.coded_at, strict=True):
        value = piece.table[piece.codes[everything]]
        for source in piece.numerics:
            value = value * source[everything][:, None]
        out[:, at] = value
    return out


KINDS = ("dense", "coded", "mixed", "all")
COMPUTES = pytest.mark.parametrize("compute", (CPU, STREAMED), ids=("held", "streamed"))


def block(matrix, compute, start=0, stop=None):
    stop = matrix.n if stop is None else stop
    return matrix.scratch(N, compute).block(start, stop)


@COMPUTES
@pytest.mark.parametrize("kind", KINDS)
def test_columns(kind, compute):
    matrix = make(kind)
    X = by_hand(matrix)
    assert matrix.shape == X.shape
    np.testing.assert_allclose(matrix.to_dense(compute), X, atol=1e-15)
    np.testing.assert_allclose(
        matrix.extended(7, 31).astype(float), X[7:31], atol=1e-15
    )
    np.testing.assert_allclose(
        block(matrix, compute, 7, 31).columns(), X[7:31], atol=1e-15
    )


def test_rows_kept():
    rows = np.array([0, 3, 4, 17, 30, 52])
    wanted = by_hand(make("all"))[rows]
    matrix = make("all", rows=rows)
    np.testing.assert_allclose(matrix.to_dense(), wanted, atol=1e-15)
    np.testing.assert_allclose(block(matrix, STREAMED, 2, 5).columns(), wanted[2:5])


@COMPUTES
@pytest.mark.parametrize("kind", KINDS)
def test_eta_and_moments(kind, compute):
    matrix = make(kind)
    X = torch.from_numpy(by_hand(matrix))[10:40]
    part = block(matrix, compute, 10, 40)
    beta = torch.linspace(-1, 1, matrix.k, dtype=torch.float64)
    u = torch.linspace(2, -1, 30, dtype=torch.float64)
    torch.testing.assert_close(part.eta(matrix.to_raw(beta)), X @ beta)
    torch.testing.assert_close(matrix.from_raw(part.moments(u)), X.T @ u)


@COMPUTES
@pytest.mark.parametrize("weighted", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_gram(kind, weighted, compute):
    matrix = make(kind)
    X = torch.from_numpy(by_hand(matrix))
    w = torch.linspace(0.1, 2, N, dtype=torch.float64) if weighted else None
    total = torch.zeros(matrix.raw, matrix.raw, dtype=torch.float64)
    space = matrix.scratch(20, compute)
    for start in range(0, N, 20):
        stop = min(start + 20, N)
        part = space.block(start, stop)
        part.add_cross(total, part, None if w is None else w[start:stop])
    found = matrix.sandwich(matrix.symmetric(total), matrix)
    wanted = X.T @ (X if w is None else w[:, None] * X)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, found.T, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("weighted", (True, False))
@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_cross(kind, other, weighted):
    one, two = make(kind), make(other, seed=5)
    X, Z = torch.from_numpy(by_hand(one)), torch.from_numpy(by_hand(two))
    w = torch.linspace(-1, 2, N, dtype=torch.float64) if weighted else None
    total = torch.zeros(one.raw, two.raw, dtype=torch.float64)
    block(one, CPU).add_cross(total, block(two, CPU), w)
    wanted = X.T @ (Z if w is None else w[:, None] * Z)
    torch.testing.assert_close(one.sandwich(total, two), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_group_sums(kind):
    matrix = make(kind)
    X = torch.from_numpy(by_hand(matrix))
    groups = torch.arange(N) % 6
    u = torch.linspace(-1, 1, N, dtype=torch.float64)
    total = torch.zeros(matrix.raw, 6, dtype=torch.float64)
    block(matrix, CPU).add_group_sums(total, groups, u)
    wanted = torch.zeros(6, matrix.k, dtype=torch.float64)
    wanted.index_add_(0, groups, u[:, None] * X)
    torch.testing.assert_close(matrix.from_raw(total.T), wanted)


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_bilinear(kind, other):
    one, two = make(kind), make(other, seed=5)
    X, Z = torch.from_numpy(by_hand(one)), torch.from_numpy(by_hand(two))
    generator = torch.Generator().manual_seed(1)
    M = torch.randn(one.k, two.k, dtype=torch.float64, generator=generator)
    middle = one.coding @ M @ two.coding.T
    found = block(one, CPU).bilinear(middle, block(two, CPU))
    torch.testing.assert_close(found, ((X @ M) * Z).sum(1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_select(kind):
    matrix = make(kind)
    X = by_hand(matrix)
    for keep in ([0], list(range(0, matrix.k, 2)), list(range(matrix.k))):
        part = matrix.select(keep)
        assert part.names == tuple(matrix.names[j] for j in keep)
        np.testing.assert_allclose(part.to_dense(), X[:, keep], atol=1e-15)


@pytest.mark.parametrize("rows", (None, np.arange(0, N, 2)))
@pytest.mark.parametrize("step", (1, 2, 7, 60))
def test_every(step, rows):
    matrix = make("all", rows=rows)
    wanted = by_hand(matrix)[::step]
    found = matrix.every(step)
    assert found.n == len(wanted)
    np.testing.assert_allclose(found.to_dense(), wanted, atol=1e-15)


def test_plain_matrices_have_no_coding():
    matrix = intercept_matrix(4)
    beta = torch.ones(1)
    assert matrix.plain
    assert matrix.to_raw(beta) is beta
    assert matrix.names == ("Intercept",)
    np.testing.assert_array_equal(matrix.to_dense(), np.ones((4, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind):
    compute = Compute("cpu", dtype="float32", threads=1)
    matrix = make(kind)
    found = matrix.to_dense(compute)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, by_hand(matrix), rtol=1e-6, atol=1e-6)
    total = torch.zeros(matrix.raw, matrix.raw, dtype=torch.float64)
    part = block(matrix, compute)
    part.add_cross(total, part, None)
    X = by_hand(matrix)
    found = matrix.sandwich(matrix.symmetric(total), matrix)
    np.testing.assert_allclose(found, X.T @ X, rtol=1e-5, atol=1e-4)
